//! Checks how an index maps the bodies of events, for `check --connect` and for the messages about
//! refused events.
//!
//! An index maps a body as an object or as a single value, and usually refuses each event with a
//! body of the other type. The template of Elastic's own Kubernetes integration maps bodies as
//! objects, and refuses each event with a body if `filter.bodies` has its default, `string`. The
//! operator then needs to know which key to set.

use hyper::Method;
use serde_json::Value;

use crate::http::api::{RequestHead, TestRequest};
use transform::shape::{Bodies, Form, Shape};

/// The members of an event that are bodies.
const BODIES: [&str; 2] = ["requestObject", "responseObject"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapped {
    AsObject,
    AsValue,
}

/// Returns the requests whose answers show how an index maps bodies. The first request asks for the
/// mapping of the index. The second one asks for the mapping that a template would give to an index
/// that does not exist yet. There are no requests if the form has no bodies, or no separate fields
/// for them.
pub(super) fn requests(index: &str, form: Form) -> Vec<TestRequest> {
    if form.bodies == Bodies::Drop || form.shape == Shape::Ocsf {
        return Vec::new();
    }
    let request = |method, path: String| {
        let post = RequestHead::post(&path, "application/json");
        TestRequest { head: RequestHead { method, ..post }, body: b"" }
    };
    vec![
        request(Method::GET, format!("/{index}/_mapping")),
        request(Method::POST, format!("/_index_template/_simulate_index/{index}")),
    ]
}

/// Checks whether events in this form fit the mapping in an answer. `None` if the answer has no
/// mapping. The error says which key to set.
pub(super) fn fits(answer: &[u8], form: Form) -> Option<Result<(), String>> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    // A data stream has several indices, whose names end with numbers. New events go to the last
    // one.
    let mappings = answer.as_object()?.values().rev().find_map(|index| index.get("mappings"))?;
    let outer: &[&str] = match form.shape {
        Shape::Ecs => &["kubernetes", "audit"],
        Shape::Event | Shape::Ocsf => &[],
    };
    let member = |of: &Value, name: &str| of.get("properties")?.get(name).cloned();
    let parent = outer.iter().try_fold(mappings.clone(), |of, name| member(&of, name));
    for name in BODIES {
        let found = parent.as_ref().and_then(|parent| member(parent, name));
        let mapped = found.as_ref().and_then(mapped);
        if let Some(hint) = mapped.and_then(|mapped| hint(mapped, form.bodies)) {
            let field = [outer, &[name]].concat().join(".");
            return Some(Err(format!(
                "the server would reject events because of their {field}: {hint}"
            )));
        }
    }
    Some(Ok(()))
}

/// Returns how a field is mapped. `None` if it accepts both objects and values.
fn mapped(field: &Value) -> Option<Mapped> {
    if field.get("enabled").is_some_and(|enabled| *enabled == false || *enabled == "false") {
        return None;
    }
    match field.get("type").and_then(Value::as_str) {
        None | Some("object" | "nested" | "flattened" | "flat_object") => Some(Mapped::AsObject),
        Some(_) => Some(Mapped::AsValue),
    }
}

/// Returns advice about the key to set if an index maps bodies as `mapped` and the relay sends them
/// as `bodies`. `None` unless the two contradict each other.
fn hint(mapped: Mapped, bodies: Bodies) -> Option<&'static str> {
    match (mapped, bodies) {
        (Mapped::AsObject, Bodies::String) => Some(
            "the index maps bodies as objects, as Elastic's Kubernetes integration does: set \
             filter.bodies = \"keep\" or \"drop\"",
        ),
        (Mapped::AsValue, Bodies::Keep) => {
            Some("the index maps bodies as strings: set filter.bodies = \"string\" or \"drop\"")
        }
        _ => None,
    }
}

/// Returns advice about the key to set if a server refuses an event for `reason` and the relay
/// sends bodies as `bodies`. `None` if the reason is not about bodies, or if no key helps. The
/// advice does not contain the reason, which may quote the event.
pub(super) fn hint_for(reason: &str, bodies: Bodies) -> Option<&'static str> {
    let is_about = |before: &str, after: &str| {
        BODIES.iter().any(|name| reason.contains(&format!("{before}{name}]{after}")))
    };
    let mapped = if is_about("parse field [", " as object, but found a concrete value")
        || is_about("", " of type [flattened]")
        || is_about("", " of type [flat_object]")
    {
        Mapped::AsObject
    } else if is_about("", " of type [text]") || is_about("", " of type [keyword]") {
        Mapped::AsValue
    } else {
        return None;
    };
    hint(mapped, bodies)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FORM: Form = Form { shape: Shape::Ecs, ..Form::AS_RECEIVED };

    /// Returns the error about an index that maps `responseObject` as `field`.
    fn told(field: &Value, form: Form) -> Option<String> {
        let body = json!({"properties": {"responseObject": field}});
        let mappings = match form.shape {
            Shape::Ecs => json!({"properties": {"kubernetes": {"properties": {"audit": body}}}}),
            Shape::Event | Shape::Ocsf => body,
        };
        let answer = json!({".ds-a-01": {"mappings": {}}, ".ds-a-02": {"mappings": mappings}});
        fits(answer.to_string().as_bytes(), form).expect("it has a mapping").err()
    }

    #[test]
    fn the_key_is_told_that_fits_the_mapping() {
        for shape in [Shape::Event, Shape::Ecs] {
            for (field, as_object, as_string) in [
                (json!({"dynamic": "false", "properties": {}}), None, Some("\"keep\"")),
                (json!({"type": "object"}), None, Some("\"keep\"")),
                (json!({"type": "flattened"}), None, Some("\"keep\"")),
                (json!({"type": "text"}), Some("\"string\""), None),
                (json!({"type": "keyword", "ignore_above": 256}), Some("\"string\""), None),
                (json!({"type": "object", "enabled": false}), None, None),
            ] {
                for (bodies, wanted) in [(Bodies::Keep, as_object), (Bodies::String, as_string)] {
                    let told = told(&field, Form { shape, bodies, ..FORM });
                    let key = told.as_deref().map(|told| {
                        assert!(told.contains("responseObject: "), "{told}");
                        told.split_once("filter.bodies = ")
                            .unwrap()
                            .1
                            .split([',', ' '])
                            .next()
                            .unwrap()
                    });
                    assert_eq!(key, wanted, "{field} {bodies:?}: {told:?}");
                }
            }
        }
    }

    #[test]
    fn an_answer_without_a_mapping_says_nothing() {
        for answer in ["", "<html>", "[]", "{}", r#"{"error":{"type":"x"},"status":404}"#] {
            assert_eq!(fits(answer.as_bytes(), FORM), None, "{answer}");
        }
        let bodies = Bodies::String;
        let empty = r#"{"a":{"mappings":{}}}"#;
        assert_eq!(fits(empty.as_bytes(), Form { bodies, ..FORM }), Some(Ok(())));
    }

    #[test]
    fn the_reason_of_a_refusal_leads_to_the_key() {
        let object = "[1:9] object mapping for [kubernetes.audit.requestObject] tried to parse \
                      field [requestObject] as object, but found a concrete value";
        let text = "failed to parse field [kubernetes.audit.responseObject] of type [text] in \
                    document with id 'x'. Preview of field's value: '{a=1}'";
        let inner = "object mapping for [kubernetes.audit.requestObject.status] tried to parse \
                     field [status] as object, but found a concrete value";
        assert!(hint_for(object, Bodies::String).is_some_and(|it| it.contains("\"keep\"")));
        assert!(hint_for(text, Bodies::Keep).is_some_and(|it| it.contains("\"string\"")));
        for (reason, bodies) in [
            (object, Bodies::Keep),
            (text, Bodies::String),
            (inner, Bodies::String),
            (inner, Bodies::Keep),
            ("", Bodies::String),
        ] {
            assert_eq!(hint_for(reason, bodies), None, "{reason}");
        }
    }
}
