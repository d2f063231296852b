//! The advice in the message about an event that an index refuses because of how it maps bodies.
//!
//! An index maps a body as an object or as a single value, and usually refuses each event with a
//! body of the other type. The template of Elastic's own Kubernetes integration maps bodies as
//! objects, and refuses each event with a body if `filter.bodies` has its default, `string`. The
//! operator then needs to know which key to set.

use transform::shape::Bodies;

/// The members of an event that are bodies.
const BODIES: [&str; 2] = ["requestObject", "responseObject"];

/// Returns advice about the key to set if a server refuses an event for `reason` and the relay
/// sends bodies as `bodies`. `None` if the reason is not about bodies, or if no key helps. The
/// advice does not contain the reason, which may quote the event.
pub(super) fn hint_for(reason: &str, bodies: Bodies) -> Option<&'static str> {
    let is_about = |before: &str, after: &str| {
        BODIES.iter().any(|name| reason.contains(&format!("{before}{name}]{after}")))
    };
    match bodies {
        Bodies::String
            if is_about("parse field [", " as object, but found a concrete value")
                || is_about("", " of type [flattened]")
                || is_about("", " of type [flat_object]") =>
        {
            Some(
                "the index maps bodies as objects, as Elastic's Kubernetes integration does: set \
                 filter.bodies = \"keep\" or \"drop\"",
            )
        }
        Bodies::Keep if is_about("", " of type [text]") || is_about("", " of type [keyword]") => {
            Some("the index maps bodies as strings: set filter.bodies = \"string\" or \"drop\"")
        }
        Bodies::String | Bodies::Keep | Bodies::Drop => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
