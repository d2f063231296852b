//! What an event says of the request that it is about, as far as an audit policy asks: who, what, and which object.

use std::borrow::Cow;

use super::scan;

mod location;
mod quotes;
mod reader;

pub use location::Location;
pub use reader::Reader;

/// A text of an event with its escapes resolved.
pub type Text<'a> = Cow<'a, [u8]>;

/// One event's request. What the event does not say is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// Of the event.
    pub level: Text<'a>,
    /// Of the event.
    pub stage: Text<'a>,
    /// Path and query, as the client has escaped them.
    pub uri: Uri<'a>,
    /// Of Kubernetes (`get`, `list` …); of a request about no object, the method in lower case.
    pub verb: Text<'a>,
    /// `None`: nobody was authenticated (a 401).
    pub user: Option<User<'a>>,
    /// `None`: it is about no object of the API, but a path.
    pub object: Option<Object<'a>>,
}

/// `requestURI`. Few ask for it, and JSON's escapes are frequent there (kube-apiserver writes `\u0026` for `&`): they are
/// resolved for who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uri<'a>(&'a [u8]);

impl<'a> Uri<'a> {
    /// Of what stands between the quotes.
    #[must_use]
    pub fn written(raw: &'a [u8]) -> Self {
        Self(raw)
    }

    /// All of it.
    #[must_use]
    pub fn text(&self) -> Text<'a> {
        scan::key(self.0)
    }

    /// Without the query, percent-encoded as it is written. Empty where kube-apiserver saw no path:
    /// a URI that begins with neither `/` nor is `*` is an opaque one, like `k:x` in the request's
    /// first line.
    #[must_use]
    pub fn path(&self) -> Text<'a> {
        // The question mark, too, may be written as an escape.
        let mut text = self.text();
        if let Some(end) = memchr::memchr(b'?', &text) {
            match &mut text {
                Text::Borrowed(text) => *text = text.get(..end).unwrap_or_default(),
                Text::Owned(text) => text.truncate(end),
            }
        }
        match &*text {
            b"*" | [b'/', ..] => text,
            _ => Text::default(),
        }
    }

    /// The namespace and name that the URL of a request about an object has. `None`: kube-apiserver
    /// does not read this as the URL of one, so that nobody knows where the object is.
    #[must_use]
    pub fn location(&self) -> Option<Location<'a>> {
        Location::of(*self)
    }
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User<'a> {
    /// `username`
    pub name: Text<'a>,
    /// In their order.
    pub groups: Vec<Text<'a>>,
}

/// `objectRef`: what was asked for. Lists have no name, what belongs to no namespace has none.
///
/// Group, resource and subresource are those of the URL. A namespace or name that the URL lacks is
/// taken from the body by kube-apiserver, which means from the sender of the request: decisions use
/// [`Uri::location`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Object<'a> {
    /// `apiGroup`; empty: the core group.
    pub group: Text<'a>,
    /// Plural, in lower case.
    pub resource: Text<'a>,
    /// Like `log`.
    pub subresource: Text<'a>,
    /// The namespace that the object is in; the sender's word if the URL has none.
    pub namespace: Text<'a>,
    /// Which one; the sender's word where neither the URL nor, of a list or watch, its field
    /// selector has one.
    pub name: Text<'a>,
}

/// Reads an event, which is valid JSON. Of duplicate keys the first counts; what is no string is empty.
#[must_use]
pub fn request(event: &[u8]) -> Request<'_> {
    let [level, stage, uri, verb, user, object] =
        firsts(event, ["level", "stage", "requestURI", "verb", "user", "objectRef"]);
    Request {
        level: text(level),
        stage: text(stage),
        uri: Uri(uri.and_then(scan::inner).unwrap_or_default()),
        verb: text(verb),
        user: user.and_then(self::user),
        object: object.filter(|object| object.first() == Some(&b'{')).map(self::object),
    }
}

fn user(user: &[u8]) -> Option<User<'_>> {
    let [name, groups] = firsts(user, ["username", "groups"]);
    let name = text(name);
    let groups: Vec<_> =
        groups.into_iter().flat_map(scan::elements).map(|group| text(Some(group))).collect();
    (!name.is_empty() || !groups.is_empty()).then_some(User { name, groups })
}

fn object(object: &[u8]) -> Object<'_> {
    let [group, resource, subresource, namespace, name] =
        firsts(object, ["apiGroup", "resource", "subresource", "namespace", "name"]);
    let (group, resource, subresource) = (text(group), text(resource), text(subresource));
    Object { group, resource, subresource, namespace: text(namespace), name: text(name) }
}

/// Of each of these members the first; none where it is no object.
fn firsts<'a, const N: usize>(object: &'a [u8], names: [&str; N]) -> [Option<&'a [u8]>; N] {
    let mut found = [None; N];
    if object.first() != Some(&b'{') {
        return found;
    }
    for member in scan::members(object) {
        let key = scan::key(member.key);
        if let Some(index) = names.iter().position(|name| *key == *name.as_bytes()) {
            found[index].get_or_insert(member.value);
        }
    }
    found
}

fn text(value: Option<&[u8]>) -> Text<'_> {
    value.and_then(scan::string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_event_says_is_read_whatever_its_form() {
        let event = br#"{"stage":"Panic", "verb" : "\u0067et","verb":"list","requestURI":"/a?b=\u0026c",
            "user":{"extra":{"groups":["x"]},"username":"u","groups":["g","\u0068",1,["i"]]},"level":"Metadata",
            "objectRef":{"resource":"pods","name":"n","apiVersion":"v1","subresource":"log","namespace":"ns"}}"#;
        let text = |text: &'static str| Text::Borrowed(text.as_bytes());
        let request = request(event);
        assert_eq!(request.level, text("Metadata"));
        assert_eq!(request.stage, text("Panic"));
        assert_eq!(request.verb, text("get"));
        assert_eq!(request.uri.text(), text("/a?b=&c"));
        assert_eq!(request.uri.path(), text("/a"));
        let user = request.user.unwrap();
        assert_eq!(user.name, text("u"));
        assert_eq!(user.groups, [text("g"), text("h"), text(""), text("")]);
        let object = Object {
            group: text(""),
            resource: text("pods"),
            subresource: text("log"),
            namespace: text("ns"),
            name: text("n"),
        };
        assert_eq!(request.object, Some(object));
    }

    #[test]
    fn a_path_ends_where_its_query_begins() {
        let path = |uri: &'static str| Uri(uri.as_bytes()).path();
        assert_eq!(path("/a%3Fb").into_owned(), b"/a%3Fb");
        assert_eq!(path("/a?b?c").into_owned(), b"/a");
        assert_eq!(path(r"/a\u0026b\u003fc?d").into_owned(), b"/a&b");
        assert_eq!(path("").into_owned(), b"");
        assert_eq!(path("*").into_owned(), b"*");
    }

    #[test]
    fn what_is_no_path_for_kube_apiserver_is_none_here() {
        // `GET k:%2Fhealthz HTTP/1.1` is recorded as `%2Fhealthz`, and its path is empty.
        for uri in ["%2Fhealthz", "x/healthz", "**", "*x", "?/a", "REDACTED"] {
            assert_eq!(Uri(uri.as_bytes()).path().into_owned(), b"", "{uri}");
        }
    }

    #[test]
    fn nobody_and_nothing_are_told_from_somebody_and_something() {
        let user = |user: &str| request(format!(r#"{{"user":{user}}}"#).as_bytes()).user.is_some();
        assert!(!user("{}") && !user("null") && !user(r#"{"username":""}"#) && !user(r#""u""#));
        assert!(user(r#"{"username":"u"}"#) && user(r#"{"groups":["g"]}"#));
        assert_eq!(request(br#"{"objectRef":null}"#).object, None);
        assert_eq!(request(br#"{"objectRef":{}}"#).object, Some(Object::default()));
        assert_eq!(request(b"{}"), Request::default());
    }
}
