//! The members of an event that protocols put next to the event, so that a consumer need not parse
//! the event to find them.

use std::borrow::Cow;

use audit::scan;
use audit::time::nanos;
use transform::shape;

/// The members of an audit event that protocols put next to the event. A text is the bytes between
/// the quotes, with escapes as written ([`unescaped`] resolves them).
///
/// A member is `None` if the event has no such member, or if the value has another type than in
/// Kubernetes. If a key occurs twice, the first one counts.
///
/// An event may be sent in another shape than it was received. In the shape `ecs`, the members are
/// read from the audit event in `kubernetes.audit`. In the shape `ocsf`, they are read from the
/// members with the same values; only the request's URI is reduced to its path.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EventFields<'a> {
    pub level: Option<&'a [u8]>,
    pub stage: Option<&'a [u8]>,
    pub verb: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
    pub(super) request_uri: Option<&'a [u8]>,
    pub username: Option<&'a [u8]>,
    /// The groups of the user, as a JSON array.
    groups: Option<&'a [u8]>,
    pub object: ObjectRef<'a>,
    /// The status code of the response. `None` also if the code is not a whole number.
    pub code: Option<i64>,
    /// The time of the stage, in nanoseconds since 1970. `None` also for an impossible time.
    pub time: Option<u64>,
}

/// The members of an event about the object of its request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ObjectRef<'a> {
    /// The resource of the object, such as `pods`.
    pub resource: Option<&'a [u8]>,
    pub name: Option<&'a [u8]>,
    pub namespace: Option<&'a [u8]>,
    pub api_group: Option<&'a [u8]>,
    pub api_version: Option<&'a [u8]>,
}

impl<'a> EventFields<'a> {
    /// Finds the members in an event of any shape.
    pub(crate) fn of(event: &'a [u8]) -> Self {
        let keys = [
            "level",
            "stage",
            "verb",
            "userAgent",
            "requestURI",
            "user",
            "objectRef",
            "responseStatus",
            "stageTimestamp",
        ];
        if shape::is_ocsf(event) {
            return Self::of_ocsf(event);
        }
        let found = values(Some(shape::event_in(event)), keys);
        let [level, stage, verb, user_agent, request_uri, user, object, status, time] = found;
        let [username, groups] = values(user, ["username", "groups"]);
        let keys = ["resource", "name", "namespace", "apiGroup", "apiVersion"];
        let [resource, name, namespace, api_group, api_version] = values(object, keys).map(text);
        let [code] = values(status, ["code"]);
        let [level, stage, verb, user_agent, request_uri, username, time] =
            [level, stage, verb, user_agent, request_uri, username, time].map(text);
        let object = ObjectRef { resource, name, namespace, api_group, api_version };
        let (groups, code, time) = (array(groups), code.and_then(integer), time.and_then(nanos));
        Self { level, stage, verb, user_agent, request_uri, username, groups, object, code, time }
    }

    /// Finds the members of an event in its OCSF document.
    fn of_ocsf(document: &'a [u8]) -> Self {
        let keys = ["metadata", "message", "api", "actor", "resources", "http_request", "unmapped"];
        let [metadata, stage, api, actor, resources, request, rest] = values(Some(document), keys);
        let [operation, response, group, version] =
            values(api, ["operation", "response", "group", "version"]);
        let [user] = values(actor, ["user"]);
        let [username, groups] = values(user, ["name", "groups"]);
        let object = array(resources).and_then(|resources| scan::elements(resources).next());
        let [resource, name, namespace] = values(object, ["type", "name", "namespace"]);
        // OCSF has no place for an object without a name, such as the object of a list.
        let [object] = values(rest, ["objectRef"]);
        let [of_list, in_namespace] = values(object, ["resource", "namespace"]);
        let [url, user_agent] = values(request, ["url", "user_agent"]);
        let object = ObjectRef {
            resource: text(resource.or(of_list)),
            name: text(name),
            namespace: text(namespace.or(in_namespace)),
            api_group: text(values(group, ["name"])[0]),
            api_version: text(version),
        };
        Self {
            level: text(values(metadata, ["log_level"])[0]),
            stage: text(stage),
            verb: text(operation),
            user_agent: text(user_agent),
            request_uri: text(values(url, ["path"])[0]),
            username: text(username),
            groups: array(groups),
            object,
            code: values(response, ["code"])[0].and_then(integer),
            time: shape::time_of(document).and_then(nanos),
        }
    }

    /// Returns the groups of the user, each as a text. `None` if the event has no groups.
    pub(crate) fn groups(&self) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        let name = |group: &'a [u8]| match group.first() {
            // OCSF has an object for each group.
            Some(b'{') => text(values(Some(group), ["name"])[0]),
            _ => scan::inner(group),
        };
        self.groups.map(|groups| scan::elements(groups).filter_map(name))
    }
}

/// Returns the bytes between the quotes of a JSON string. `None` for any other value.
fn text(value: Option<&[u8]>) -> Option<&[u8]> {
    value.and_then(scan::inner)
}

/// Returns the value if it is a JSON array.
fn array(value: Option<&[u8]>) -> Option<&[u8]> {
    value.filter(|value| value.first() == Some(&b'['))
}

/// Returns the text of a JSON string with its escapes resolved. A text with an escaped lone
/// surrogate, which can't be UTF-8, is returned as written.
pub(super) fn unescaped(written: &[u8]) -> Cow<'_, str> {
    match scan::key(written) {
        Cow::Borrowed(text) => String::from_utf8_lossy(text),
        Cow::Owned(text) => Cow::Owned(String::from_utf8_lossy(&text).into_owned()),
    }
}

/// Returns the values that [`scan::firsts`] finds. All are `None` if `object` is `None`.
fn values<'a, const N: usize>(object: Option<&'a [u8]>, keys: [&str; N]) -> [Option<&'a [u8]>; N] {
    object.map_or([None; N], |object| scan::firsts(object, keys))
}

/// Returns the whole number in a JSON value. `None` if the value is not a whole number.
fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use transform::shape::{Form, Shape};

    const EVENT: &str = r#"{"level":"Metadata","stage":"Panic","verb":"get","user":{"username":"a\"b","uid":"u","groups":["g","h\u00e4",7]},"requestURI":"/api?a=b","userAgent":"kubectl","objectRef":{"resource":"pods","namespace":"n","name":"p","apiGroup":"apps","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":404},"stageTimestamp":"1970-01-01T00:00:01.5Z","annotations":{"level":"x"}}"#;

    fn assert_of_event(fields: &EventFields<'_>, path: &str) {
        let texts = [
            (fields.level, "Metadata"),
            (fields.stage, "Panic"),
            (fields.verb, "get"),
            (fields.username, "a\"b"),
            (fields.request_uri, path),
            (fields.user_agent, "kubectl"),
            (fields.object.resource, "pods"),
            (fields.object.namespace, "n"),
            (fields.object.name, "p"),
            (fields.object.api_group, "apps"),
            (fields.object.api_version, "v1"),
        ];
        for (found, wanted) in texts {
            assert_eq!(found.map(unescaped).as_deref(), Some(wanted));
        }
        let groups: Vec<Cow<'_, str>> = fields.groups().unwrap().map(unescaped).collect();
        assert_eq!(groups, ["g", "hä"]);
        assert_eq!((fields.code, fields.time), (Some(404), Some(1_500_000_000)));
    }

    #[test]
    fn the_members_are_found_in_the_documents_of_each_shape() {
        assert_of_event(&EventFields::of(EVENT.as_bytes()), "/api?a=b");
        // OCSF has no place for groups that are not texts.
        let event = EVENT.replace(",7]", "]");
        for (shape, path) in [(Shape::Ecs, "/api?a=b"), (Shape::Ocsf, "/api")] {
            let form = Form { shape, ..Form::AS_RECEIVED };
            let mut document = Vec::new();
            form.write(event.as_bytes(), None, &mut document);
            let document = document.as_slice();
            assert_of_event(&EventFields::of(document), path);
        }
    }

    /// Method: a stack on which a call for each level has no room.
    #[test]
    fn the_members_of_an_event_of_ten_thousand_levels_are_found() {
        let test = || {
            let deep = format!("{}{}", r#"{"a":["#.repeat(5003), "]}".repeat(5003));
            for place in ["requestObject", "annotations", "responseStatus", "unmapped"] {
                let event = format!(
                    r#"{{"level":"a","user":{{"extra":{deep}}},"{place}":{deep},"verb":"get"}}"#
                );
                let fields = EventFields::of(event.as_bytes());
                assert_eq!((fields.level, fields.verb), (Some(&b"a"[..]), Some(&b"get"[..])));
                let own = "2026-11-20T06:24:22.439323Z";
                let event =
                    event.replace("\"verb\":\"get\"", &format!("\"stageTimestamp\":\"{own}\""));
                let time = crate::event_time::stage_time(event.as_bytes());
                assert_eq!(time, Some(own.as_bytes()));
            }
        };
        std::thread::Builder::new().stack_size(256 * 1024).spawn(test).unwrap().join().unwrap();
    }

    #[test]
    fn the_first_of_two_equal_keys_counts_and_wrong_types_are_absent() {
        let fields = EventFields { level: Some(b"a"), ..EventFields::default() };
        for event in [
            r#"{"lev\u0065l":"a","level":"b","stage":7,"stage":"late","user":["username","a"],"objectRef":"resource","responseStatus":{"code":"200"},"stageTimestamp":"yesterday"}"#,
            // An event that looks like a document keeps its own members.
            r#"{"level":"a","time":1500,"kubernetes":{"audit":{"level":"b"}}}"#,
        ] {
            assert_eq!(EventFields::of(event.as_bytes()), fields);
        }
        for event in ["{}", "{", "[]", "7", ""] {
            assert_eq!(EventFields::of(event.as_bytes()), EventFields::default());
        }
        let groups = EventFields::of(br#"{"user":{"groups":{"a":"b"}}}"#);
        assert!(groups.groups().is_none());
    }
}
