//! The values of an event for the conditions of a reader and for the short form of the command
//! `tap`.

use std::borrow::Cow;

use audit::{request, scan};

/// The values of one event. A missing text is empty. If a key occurs twice, its first value counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields<'a> {
    /// The event's level.
    pub level: Cow<'a, str>,
    /// The event's stage.
    pub stage: Cow<'a, str>,
    /// The event's verb.
    pub verb: Cow<'a, str>,
    /// The user who sent the request.
    pub user: Person<'a>,
    /// The impersonated user, if there is one.
    pub impersonated: Person<'a>,
    /// The object that the request is about.
    pub object: Object<'a>,
    /// The namespace and the name in the URL; `None` if the URL is about no object.
    pub located: Option<(Cow<'a, str>, Cow<'a, str>)>,
    /// The path and the query of the request.
    pub uri: Cow<'a, str>,
    /// The client that sent the request.
    pub client: Client<'a>,
    /// The status of the response; `None` if there is none.
    pub code: Option<u64>,
    /// The time at which the request was received, in the form of the event (RFC 3339).
    pub received: Cow<'a, str>,
    /// The time of the event's stage, in the form of the event (RFC 3339).
    pub staged: Cow<'a, str>,
}

/// A user and the user's groups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Person<'a> {
    /// The name of the user.
    pub name: Cow<'a, str>,
    /// The groups of the user.
    pub groups: Vec<Cow<'a, str>>,
}

/// A client of kube-apiserver.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Client<'a> {
    /// The header `User-Agent`, which the client chooses.
    pub agent: Cow<'a, str>,
    /// The addresses from which the request came, in the order of the event.
    pub ips: Vec<Cow<'a, str>>,
}

/// An object of the Kubernetes API, from `objectRef`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Object<'a> {
    /// `false` if the request is about no object; the texts are then empty.
    pub is_there: bool,
    /// The API group; empty for the core group.
    pub api_group: Cow<'a, str>,
    /// The resource in the plural.
    pub resource: Cow<'a, str>,
    /// The subresource; empty for the resource itself.
    pub subresource: Cow<'a, str>,
    /// The namespace of the object.
    pub namespace: Cow<'a, str>,
    /// The name of the object.
    pub name: Cow<'a, str>,
}

impl<'a> Fields<'a> {
    /// Reads the values of an event, which must be valid JSON.
    pub fn of(event: &'a str) -> Self {
        let event = event.as_bytes();
        if event.first() != Some(&b'{') {
            return Self::default();
        }
        let request = request::request(event);
        let [impersonated, status, ips, agent, received, staged] = scan::firsts(
            event,
            [
                "impersonatedUser",
                "responseStatus",
                "sourceIPs",
                "userAgent",
                "requestReceivedTimestamp",
                "stageTimestamp",
            ],
        );
        let is_object = |value: &&[u8]| value.first() == Some(&b'{');
        let [name, groups] = match impersonated.filter(is_object) {
            Some(user) => scan::firsts(user, ["username", "groups"]),
            None => [None, None],
        };
        let code = status.filter(is_object).and_then(|status| scan::member(status, "code"));
        let code = code.and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
        let located = request.uri.location();
        let located = located.map(|location| {
            let own = |text: &[u8]| Cow::Owned(String::from_utf8_lossy(text).into_owned());
            (own(location.namespace()), own(location.name()))
        });
        let uri = shown(request.uri.text());
        let user = request.user.unwrap_or_default();
        let is_there = request.object.is_some();
        let object = request.object.unwrap_or_default();
        Self {
            level: shown(request.level),
            stage: shown(request.stage),
            verb: shown(request.verb),
            user: Person {
                name: shown(user.name),
                groups: user.groups.into_iter().map(shown).collect(),
            },
            impersonated: Person { name: text(name), groups: texts(groups) },
            object: Object {
                is_there,
                api_group: shown(object.group),
                resource: shown(object.resource),
                subresource: shown(object.subresource),
                namespace: shown(object.namespace),
                name: shown(object.name),
            },
            located,
            uri,
            client: Client { agent: text(agent), ips: texts(ips) },
            code,
            received: text(received),
            staged: text(staged),
        }
    }
}

/// Returns the text, with bytes that are not UTF-8 replaced.
fn shown(text: Cow<'_, [u8]>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => String::from_utf8_lossy(text),
        Cow::Owned(text) => Cow::Owned(String::from_utf8_lossy(&text).into_owned()),
    }
}

fn text(value: Option<&[u8]>) -> Cow<'_, str> {
    value.and_then(scan::string).map(shown).unwrap_or_default()
}

fn texts(value: Option<&[u8]>) -> Vec<Cow<'_, str>> {
    let array = value.filter(|value| value.first() == Some(&b'['));
    array.into_iter().flat_map(scan::elements).map(|element| text(Some(element))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_whatever_its_form() {
        let event = r#"{"verb":"create","verb":"x","user":{"username":"a\u006cice","groups":["g"]},
            "impersonatedUser":{"username":"bob","groups":["h","i"]},"sourceIPs":["10.0.0.1","::1"],
            "objectRef":{"resource":"pods","subresource":"exec","namespace":"prod","name":"web"},
            "requestURI":"/api/v1/namespaces/prod/pods/web/exec?command=ls","userAgent":"curl",
            "responseStatus":{"metadata":{},"code":403},"stageTimestamp":"t"}"#;
        let fields = Fields::of(event);
        assert_eq!(
            (&*fields.verb, &*fields.user.name, fields.code),
            ("create", "alice", Some(403))
        );
        assert_eq!((&*fields.impersonated.name, fields.impersonated.groups.len()), ("bob", 2));
        assert_eq!(fields.client.ips, ["10.0.0.1", "::1"]);
        assert_eq!(fields.located, Some(("prod".into(), "web".into())));
        assert_eq!((&*fields.client.agent, &*fields.staged), ("curl", "t"));
        for odd in [
            "{}",
            "[]",
            "1",
            r#"{"user":1,"objectRef":[],"sourceIPs":{"a":1},"responseStatus":7}"#,
            r#"{"responseStatus":{"code":"x"},"impersonatedUser":null}"#,
        ] {
            assert_eq!(Fields::of(odd), Fields::default(), "{odd}");
        }
    }
}
