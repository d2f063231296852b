//! Events whose sender wants to make the relay spend memory and time. Each shape repeats one part
//! of an event until the event has 4 MiB or, if the part opens brackets, nearly the greatest depth.
//! The tests assert that the edits and their memory stay below a bound, and that the result is
//! still one event.

use super::*;
use walk::EDITS_MAX;

/// Returns the number of bytes of memory that the edits of an event take.
fn kept(changed: &Changed) -> usize {
    let texts = changed.edits.iter().map(|edit| match &edit.with {
        std::borrow::Cow::Owned(text) => text.capacity(),
        std::borrow::Cow::Borrowed(_) => 0,
    });
    changed.edits.capacity() * size_of::<Edit>() + texts.sum::<usize>()
}

fn all_rules() -> Redaction {
    rules(&[
        ("configmaps", "requestObject.p requestObject.*.q annotations.p", With::Drop),
        ("configmaps", "requestObject.h[*] requestObject.spec.*.*.*.*.x", With::Sha256),
        ("configmaps", "responseObject.data.* user.extra", With::Drop),
    ])
}

/// The text before the repeated part, the repeated part, and the text after it.
const SHAPES: [[&str; 3]; 26] = [
    [r#","level":"Metadata""#, r#","level":1"#, ""],
    ["", r#","level":1,"":1"#, ""],
    ["", r#","requestObject":1"#, ""],
    ["", r#","requestObject":1,"":1"#, ""],
    ["", r#","requestObject":{},"responseObject":[1]"#, ""],
    ["", r#","responseStatus":{"message":1},"":1"#, ""],
    ["", r#","annotations":{}"#, ""],
    ["", r#","annotations":null,"":1"#, ""],
    ["", r#","requestURI":"/?token=a","":1"#, ""],
    ["", r#","objectRef":1"#, ""],
    ["", r#","objectRef":{"resource":""},"":1"#, ""],
    ["", r#","":1"#, ""],
    [r#","annotations":{"":1"#, r#","":1"#, "}"],
    [r#","annotations":{"":1"#, r#","p":1,"":1"#, "}"],
    [r#","requestObject":{"":1"#, r#","p":1,"":1"#, "}"],
    [r#","requestObject":{"":1"#, r#","":{"q":1}"#, "}"],
    [r#","requestObject":{"h":[1"#, ",1", "]}"],
    [r#","requestObject":{"items":[1"#, r#",{"":1,"p":1}"#, "]}"],
    [r#","requestObject":[1"#, ",1", "]"],
    [r#","requestObject":[1"#, ",{}", "]"],
    [r#","requestObject":[1"#, r#",{"path":"/p","value":1}"#, "]"],
    [r#","requestObject":[{"op":"add""#, r#","path":"/a/b/c""#, "}]"],
    [r#","requestObject":[{"op":"add","path":"#, "/", r#"","value":1}]"#],
    [r#","requestObject":{"spec":"#, r#"{"":["#, ""],
    [r#","requestURI":"/?"#, r"token=a\u0026", r#"""#],
    [r#","requestURI":"/"#, r"%65yJ.%65yJ.a/", r#"""#],
];

fn hostile([before, repeated, behind]: [&str; 3], bytes: usize) -> String {
    let mut times = bytes / repeated.len();
    let mut behind = behind.to_owned();
    if repeated.ends_with('[') {
        times = (audit::DEPTH_MAX - 8) / 2;
        behind = format!("{}}}", "]}".repeat(times));
    }
    // The path needs an opening quote, which cannot be part of the repeated text.
    let quote = if repeated == "/" { "\"" } else { "" };
    event("configmaps", &format!("{before}{quote}{}{behind}", repeated.repeat(times)))
}

#[test]
fn no_event_takes_more_than_a_few_times_its_size() {
    let (redaction, annotations) = (all_rules(), Annotations::new([("cluster", "c")]));
    let bytes = 4 << 20;
    for shape in SHAPES {
        let event = hostile(shape, bytes);
        for (level, event_bytes_max) in [(None, Some(1000)), (Some(Level::Metadata), None)] {
            let change = Change {
                level,
                without_bodies: false,
                omit_managed_fields: true,
                redaction: Some(&redaction),
                annotations: Some(&annotations),
                event_bytes_max,
            };
            let request = request(event.as_bytes());
            let event_bytes = event.as_bytes();
            let look = Look::at(event_bytes, &request, 0);
            let asked = Asked { event: event_bytes, request: &request, look };
            let changed = super::super::changed(&asked, &change).unwrap();
            // The members together may have [`EDITS_MAX`] edits, and the member that reaches this
            // limit as many again.
            assert!(changed.edits.len() <= 2 * EDITS_MAX + ESSENTIAL.len(), "{shape:?}");
            let kept = kept(&changed);
            assert!(kept <= 4 * bytes, "{kept} for {}: {shape:?}", event.len());
            let mut out = Vec::new();
            write(event.as_bytes(), &changed.edits, &mut out);
            assert!(out.len() <= 4 * bytes, "{} of {shape:?}", out.len());
            assert_eq!(audit::decode(out).map(|batch| batch.events), Ok(1), "{shape:?}");
        }
    }
}

#[test]
fn a_uri_that_no_server_takes_goes_as_a_whole() {
    let redaction = rules(&[]);
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    let uri = |length: usize| format!(r#","requestURI":"/{}""#, "a".repeat(length - 1));
    becomes("pods", &change, &uri(uri::BYTES_MAX), &uri(uri::BYTES_MAX));
    becomes("pods", &change, &uri(uri::BYTES_MAX + 1), r#","requestURI":"REDACTED""#);
    // Go's server reads 4096 bytes more than the limit of 1 MiB.
    let longest = uri((1 << 20) + 4096);
    becomes("pods", &change, &longest, &longest);
}

#[test]
fn what_has_too_many_secrets_goes_as_a_whole() {
    let redaction = all_rules();
    let change = Change { redaction: Some(&redaction), ..Change::default() };
    let body = |pairs: usize, secret: &str| {
        format!(r#","requestObject":{{"":1{}}},"x":1"#, format!("{secret},\"\":1").repeat(pairs))
    };
    let few = EDITS_MAX - 1;
    becomes("configmaps", &change, &body(few, r#","p":1"#), &body(few, ""));
    becomes("configmaps", &change, &body(few + 1, r#","p":1"#), r#","x":1"#);
}
