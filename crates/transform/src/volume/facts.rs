//! Reads the names by which an event is counted.

use std::sync::LazyLock;

use memchr::memmem::FinderRev;

use super::report::{DIMENSIONS, NAME_BYTES_MAX, PARTS};
use crate::redact;
use crate::redact::{Change, Redaction};
use audit::request::Request;
use audit::scan;
use base::words::escape;

/// The name of an event in each of [`DIMENSIONS`], its parts separated by [`PARTS`]; `None` if the
/// event does not count in this dimension.
pub(super) type Names = [Option<Box<str>>; DIMENSIONS.len()];

/// The members of an event that are read in addition to the annotations, in the order in which
/// kube-apiserver writes them. All of them stand before the bodies.
const MEMBERS: [&str; 7] =
    ["level", "requestURI", "verb", "user", "userAgent", "objectRef", "responseStatus"];

/// Returns the names of an event, which must be valid JSON.
pub(super) fn names(event: &[u8], redaction: &Redaction) -> Names {
    let (members, annotations) = (scan::firsts(event, MEMBERS), annotations(event));
    // Only the values that are read are redacted, so that large bodies cost nothing.
    let mut small = Vec::with_capacity(1024);
    small.extend_from_slice(br#"{"kind":"Event""#);
    let values = MEMBERS.iter().zip(members).chain([(&"annotations", annotations)]);
    for (name, value) in values {
        for part in value.iter().flat_map(|value| [b",\"", name.as_bytes(), b"\":", *value]) {
            small.extend_from_slice(part);
        }
    }
    small.push(b'}');
    let (mut redacted, request) = (Vec::new(), request(members));
    let change = Change { redaction: Some(redaction), ..Change::default() };
    redact::apply(&small, &request, 0, &change, &mut redacted);
    match redacted.is_empty() {
        true => of(&request, members, annotations),
        false => {
            let members = scan::firsts(&redacted, MEMBERS);
            of(&self::request(members), members, scan::member(&redacted, "annotations"))
        }
    }
}

type Values<'e> = [Option<&'e [u8]>; MEMBERS.len()];

fn request([level, uri, verb, user, _, object, _]: Values<'_>) -> Request<'_> {
    Request::of([level, None, uri, verb, user, object])
}

fn of(
    request: &Request<'_>,
    [.., agent, object, status]: Values<'_>,
    annotations: Option<&[u8]>,
) -> Names {
    let text = |value: Option<&[u8]>| name(&value.and_then(scan::string).unwrap_or_default());
    let user = name(request.user.as_ref().map_or(b"", |user| &user.name));
    let verb = name(&request.verb);
    let resource = match &request.object {
        Some(object) => {
            let mut resource = object.resource.to_vec();
            for (separator, part) in [(b'.', &object.group), (b'/', &object.subresource)] {
                if !part.is_empty() {
                    resource.push(separator);
                    resource.extend_from_slice(part);
                }
            }
            name(&resource)
        }
        None => name(&request.uri.path()),
    };
    let namespace = request.uri.location().map_or_else(String::new, |it| name(it.namespace()));
    let of_annotation = |name: &str| annotations.and_then(|all| scan::member(all, name));
    let is_deprecated = of_annotation("k8s.io/deprecated") == Some(br#""true""#);
    let deprecated = is_deprecated.then(|| {
        let version = text(object.and_then(|object| scan::member(object, "apiVersion")));
        let removed = text(of_annotation("k8s.io/removed-release"));
        [&*user, &*resource, &*version, &*removed].join(PARTS).into()
    });
    let [code] = scan::firsts(status.unwrap_or_default(), ["code"]);
    let code = code.map_or("", |code| match std::str::from_utf8(code) {
        Ok(code) if code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit()) => code,
        _ => "other",
    });
    // In the order of `DIMENSIONS`.
    [
        Some([&*user, &*verb, &*resource].join(PARTS).into()),
        Some(user.into()),
        Some(verb.into()),
        Some(resource.into()),
        Some(namespace.into()),
        Some(text(agent).into()),
        Some(name(&request.level).into()),
        deprecated,
        Some(code.into()),
    ]
}

/// Returns a text of an event, cut to [`NAME_BYTES_MAX`] bytes. Special characters are escaped, so
/// that it has no line break.
fn name(text: &[u8]) -> String {
    escape::cut(&String::from_utf8_lossy(text), NAME_BYTES_MAX)
}

/// Returns the event's own annotations, if they are after `stageTimestamp`, where kube-apiserver
/// writes them. So the bodies, which may be large, are not read.
fn annotations(event: &[u8]) -> Option<&[u8]> {
    static BEFORE: LazyLock<FinderRev<'static>> =
        LazyLock::new(|| FinderRev::new("\"stageTimestamp\""));
    let at = BEFORE.rfind(event)? + BEFORE.needle().len();
    let rest = event.get(at..)?.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let end = event.len() - rest.len() + scan::value_end(rest)?;
    let mut members = scan::members_behind(event, end);
    members.find(|member| member.key == b"annotations").map(|member| member.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::{Rule, With};

    fn named(event: &str, rules: &[Rule]) -> Vec<String> {
        let names = names(event.as_bytes(), &Redaction::new(rules).unwrap());
        names.iter().map(|name| name.as_deref().unwrap_or("none").replace(PARTS, " ")).collect()
    }

    const EVENT: &str = r#"{"kind":"Event","level":"RequestResponse","auditID":"1","stage":"ResponseComplete","requestURI":"/apis/apps/v1/namespaces/prod/deployments/web/scale?token=s3cret","verb":"update","user":{"username":"system:serviceaccount:a:b","groups":["g"]},"userAgent":"helm/v3","objectRef":{"resource":"deployments","namespace":"prod","name":"web","apiGroup":"apps","apiVersion":"v1","subresource":"scale"},"responseStatus":{"metadata":{},"code":409},"responseObject":{"annotations":{"k8s.io/deprecated":"true"},"stageTimestamp":"x"},"requestReceivedTimestamp":"t","stageTimestamp":"t","annotations":{"k8s.io/deprecated":"true","k8s.io/removed-release":"1.40"}}"#;

    #[test]
    fn an_event_counts_by_what_it_says() {
        assert_eq!(
            named(EVENT, &[]),
            [
                "system:serviceaccount:a:b update deployments.apps/scale",
                "system:serviceaccount:a:b",
                "update",
                "deployments.apps/scale",
                "prod",
                "helm/v3",
                "RequestResponse",
                "system:serviceaccount:a:b deployments.apps/scale v1 1.40",
                "409",
            ]
        );
        // There are at most a thousand names of codes, whatever is in the event.
        for (code, name) in
            [("200", "200"), ("-20", "other"), ("2000", "other"), (r#""404""#, "other")]
        {
            assert_eq!(named(&EVENT.replace("409", code), &[])[8], name);
        }
        assert_eq!(named(&EVENT.replace(r#","code":409"#, ""), &[])[8], "");
        let current = EVENT.replace(
            r#","annotations":{"k8s.io/deprecated":"true","k8s.io/removed-release":"1.40"}}"#,
            "}",
        );
        assert_eq!(named(&current, &[])[7], "none");
        let spaced = EVENT.replace("\":\"", "\" : \"").replace(",\"", ", \"");
        assert_eq!(named(&spaced, &[]), named(EVENT, &[]));
    }

    #[test]
    fn a_request_for_no_object_counts_by_its_path() {
        let names = named(
            r#"{"level":"Metadata","requestURI":"/healthz?x=1","verb":"get","userAgent":"a\nb\u202ec"}"#,
            &[],
        );
        assert_eq!(names[..6], [" get /healthz", "", "get", "/healthz", "", "a\\nb\\u{202e}c"]);
        assert_eq!(named("{}", &[])[..3], ["  ", "", ""]);
    }

    #[test]
    fn long_names_are_cut() {
        let agent = "x".repeat(5000);
        let names = named(&format!(r#"{{"userAgent":"{agent}"}}"#), &[]);
        assert_eq!(names[5].len(), NAME_BYTES_MAX);
        assert!(names[5].ends_with('…'));
    }

    #[test]
    fn what_the_config_redacts_and_what_always_is_stays_out() {
        let rule = |field: &str| Rule {
            resources: Vec::new(),
            fields: vec![field.to_owned()],
            with: With::Drop,
        };
        for field in ["user.username", "user", "user.*"] {
            let names = named(EVENT, &[rule(field)]).join("\n");
            assert!(!names.contains("serviceaccount"), "{field}: {names}");
        }
        let agents = named(EVENT, &[rule("userAgent")]);
        assert!(!agents[5].contains("helm"), "{agents:?}");
        let path = r#"{"requestURI":"/x/eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJlc2lnbmF0dXJl"}"#;
        assert!(!named(path, &[])[3].contains("c2lnbmF0"), "{:?}", named(path, &[]));
    }
}
