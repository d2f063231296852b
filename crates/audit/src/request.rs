//! Reads the facts for an audit policy from an event: the user, the verb, and the object.

use std::borrow::Cow;

use crate::scan;

mod location;
mod quotes;
mod reader;

pub use location::Location;
pub use reader::Reader;

/// A text from an event, with its JSON escapes resolved.
pub type Text<'a> = Cow<'a, [u8]>;

/// The request to kube-apiserver that an audit event describes. A missing text is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request<'a> {
    /// The event's level.
    pub level: Text<'a>,
    /// The event's stage.
    pub stage: Text<'a>,
    /// The path and the query of the request, percent-encoded.
    pub uri: Uri<'a>,
    /// A verb of Kubernetes (`get`, `list` …), or the HTTP method in lower case if there is no
    /// object.
    pub verb: Text<'a>,
    /// The user who made the request; `None` if nobody was authenticated (status 401).
    pub user: Option<User<'a>>,
    /// The object that the request is about; `None` for a path such as `/healthz`.
    pub object: Option<Object<'a>>,
}

/// Returns the code of an event's response. `None` if the event has none, as at the stage
/// RequestReceived, or if the code is not written as three digits.
pub fn code(event: &[u8]) -> Option<u16> {
    let [status] = scan::firsts(event, ["responseStatus"]);
    let [code] = scan::firsts(status?, ["code"]);
    let digits = code.filter(|code| code.len() == 3 && code.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The value of `requestURI` with its JSON escapes, which are resolved only on demand: few callers
/// need the URI, and kube-apiserver writes `\u0026` for each `&`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uri<'a>(&'a [u8]);

impl<'a> Uri<'a> {
    /// Makes a `Uri` of the bytes between the quotes of `requestURI`.
    pub fn written(raw: &'a [u8]) -> Self {
        Self(raw)
    }

    /// Returns the bytes between the quotes of `requestURI`.
    pub fn as_written(&self) -> &'a [u8] {
        self.0
    }

    /// Returns the whole URI, with the escapes of JSON resolved.
    pub fn text(&self) -> Text<'a> {
        scan::key(self.0)
    }

    /// Returns the URI without its query, percent-encoded. Empty unless the URI is `*` or begins
    /// with `/`: for any other URI, kube-apiserver saw no path. Example: it records `GET k:x` with
    /// the URI `x`.
    pub fn path(&self) -> Text<'a> {
        // The question mark, too, may be written as an escape of JSON.
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

    /// Returns the namespace and the name of the request's object, as the URL has them. `None` if,
    /// to kube-apiserver, a request with this URL is not about an object.
    pub fn location(&self) -> Option<Location<'a>> {
        Location::of(*self)
    }
}

/// The user who made the request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User<'a> {
    /// The `username`; empty if the event has none.
    pub name: Text<'a>,
    /// The `groups`, in the order of the event.
    pub groups: Vec<Text<'a>>,
}

/// The event's `objectRef`. For a request for a list, the name is empty unless the field selector
/// has one. For an object of no namespace, the namespace is normally empty.
///
/// The group, the resource and the subresource always come from the URL. If the URL lacks the
/// namespace or the name, kube-apiserver takes the missing one from the body of the request, in
/// which a client can write anything. Decisions therefore use [`Uri::location`], not `namespace`
/// and `name`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Object<'a> {
    /// The API group; empty for the core group.
    pub group: Text<'a>,
    /// The resource in the plural, in lower case, like `pods`.
    pub resource: Text<'a>,
    /// The subresource, like `log`, if the request is about one.
    pub subresource: Text<'a>,
    /// The namespace. If the URL has none, the client chose this value.
    pub namespace: Text<'a>,
    /// The name, from the URL or, for a list or watch, from the field selector. If neither has one,
    /// the client chose this value.
    pub name: Text<'a>,
}

/// Returns the request of `event`, which must be valid JSON. If a key occurs twice, its first value
/// counts. A value that is not a string counts as an empty text.
pub fn request(event: &[u8]) -> Request<'_> {
    let members = ["level", "stage", "requestURI", "verb", "user", "objectRef"];
    Request::of(scan::firsts(event, members))
}

impl<'a> Request<'a> {
    /// Returns the request of an event whose first members `level`, `stage`, `requestURI`, `verb`,
    /// `user` and `objectRef` have these values.
    pub fn of([level, stage, uri, verb, user, object]: [Option<&'a [u8]>; 6]) -> Self {
        Self {
            level: text(level),
            stage: text(stage),
            uri: Uri(uri.and_then(scan::inner).unwrap_or_default()),
            verb: text(verb),
            user: user.and_then(self::user),
            object: object.filter(|object| object.first() == Some(&b'{')).map(self::object),
        }
    }
}

/// Reads the member `user`; `None` if it has neither a name nor groups.
fn user(user: &[u8]) -> Option<User<'_>> {
    let [name, groups] = scan::firsts(user, ["username", "groups"]);
    let name = text(name);
    let groups: Vec<_> =
        groups.into_iter().flat_map(scan::elements).map(|group| text(Some(group))).collect();
    (!name.is_empty() || !groups.is_empty()).then_some(User { name, groups })
}

fn object(object: &[u8]) -> Object<'_> {
    let [group, resource, subresource, namespace, name] =
        scan::firsts(object, ["apiGroup", "resource", "subresource", "namespace", "name"]);
    let (group, resource, subresource) = (text(group), text(resource), text(subresource));
    Object { group, resource, subresource, namespace: text(namespace), name: text(name) }
}

/// Returns a JSON string with its escapes resolved; empty if `value` is not a string.
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
        // kube-apiserver records `GET k:%2Fhealthz HTTP/1.1` as `%2Fhealthz`, and its path is
        // empty.
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
