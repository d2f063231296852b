//! Documents of the Elastic Common Schema, with the fields that the integration `kubernetes` of
//! Elastic gives to audit events.
//!
//! The document begins with `@timestamp` if the event has a valid time, and its last member is
//! `kubernetes.audit`, the event.

use super::bodies::Edits;
use super::json::{Object, is_ip, text, write_string};
use super::{Bodies, DataStream, json};
use audit::scan;
use audit::time::is_timestamp;

/// The beginning of each document of an event that has a time.
pub(super) const HEAD: &[u8] = br#"{"@timestamp":""#;

/// The beginnings of all documents: with a time, and without.
pub(super) const HEADS: [&[u8]; 2] = [HEAD, br#"{"ecs":{"version":"#];

/// A version of ECS that has all fields of the document.
const VERSION: &[u8] = br#"{"version":"8.11.0"}"#;

const DATASET: &[u8] = br#""kubernetes.audit_logs""#;

/// The annotation with kube-apiserver's decision about the request, `allow` or `forbid`.
const DECISION: &str = "authorization.k8s.io/decision";

/// The members of an event from which [`write()`] makes other fields of an ECS document, in the
/// order in which it takes them.
const NAMES: [&str; 8] = [
    "verb",
    "user",
    "userAgent",
    "sourceIPs",
    "responseStatus",
    "annotations",
    "requestReceivedTimestamp",
    "stageTimestamp",
];

/// Returns the first value of each of [`NAMES`], and the changes to the event in
/// `kubernetes.audit`.
fn read(event: &[u8], bodies: Bodies) -> ([Option<&[u8]>; 8], Edits) {
    let (mut found, mut edits) = ([None; 8], Edits::default());
    for member in scan::members(event) {
        let name = member.name();
        match &*name {
            b"requestObject" | b"responseObject" => edits.body(event, member, bodies),
            b"annotations" => edits.annotations(event, member),
            b"user" | b"impersonatedUser" => edits.user(event, member),
            _ => {}
        }
        if let Some(index) = NAMES.iter().position(|known| *name == *known.as_bytes()) {
            found[index].get_or_insert(member.value);
        }
    }
    (found, edits)
}

/// Returns the value of `event.outcome`: kube-apiserver's decision or, if there is none, a success
/// for a response code below 400. `None` if the event has neither a decision nor a code.
fn outcome(annotations: Option<&[u8]>, status: Option<&[u8]>) -> Option<&'static [u8]> {
    let [decision] = scan::firsts(annotations.unwrap_or_default(), [DECISION]);
    let is_success = match decision.and_then(scan::string).as_deref() {
        Some(b"allow") => true,
        Some(b"forbid") => false,
        Some(_) | None => {
            let [code] = scan::firsts(status.unwrap_or_default(), ["code"]);
            json::code(code)?.1 < 400
        }
    };
    Some(if is_success { br#""success""# } else { br#""failure""# })
}

pub(super) fn write(
    event: &[u8],
    bodies: Bodies,
    data_stream: Option<&DataStream>,
    out: &mut Vec<u8>,
) {
    let (found, edits) = read(event, bodies);
    let [verb, user, user_agent, source_ips, status, annotations, request_time, stage_time] = found;
    out.reserve(event.len() + 1024);
    let mut document = Object::begin(out);
    let is_time = |time: &&[u8]| scan::inner(time).is_some_and(is_timestamp);
    let time = stage_time.filter(is_time).or_else(|| request_time.filter(is_time));
    document.optional("@timestamp", time);
    document.member("ecs", VERSION);
    let of_event = [
        ("kind", Some(br#""event""#.as_slice())),
        ("dataset", Some(DATASET)),
        ("action", text(verb)),
        ("outcome", outcome(annotations, status)),
    ];
    document.group("event", &of_event);
    let [name, id] = scan::firsts(user.unwrap_or_default(), ["username", "uid"]).map(text);
    document.group("user", &[("name", name), ("id", id)]);
    document.group("user_agent", &[("original", text(user_agent))]);
    write_addresses(source_ips.unwrap_or_default(), &mut document);
    if let Some(DataStream { kind, dataset, namespace }) = data_stream {
        let mut stream = Object::begin(document.key(b"data_stream"));
        for (key, part) in [("type", kind), ("dataset", dataset), ("namespace", namespace)] {
            write_string(part.as_bytes(), stream.key(key.as_bytes()));
        }
        stream.end();
    }
    let mut kubernetes = Object::begin(document.key(b"kubernetes"));
    edits.write(event, kubernetes.key(b"audit"));
    kubernetes.end();
    document.end();
}

/// Writes `source.ip` and `client.ip`. An element of `sourceIPs` that is not an IP address is left
/// out, because Elasticsearch would refuse the whole document for it.
fn write_addresses(source_ips: &[u8], document: &mut Object<'_>) {
    let mut addresses = scan::elements(source_ips).filter(|value| is_ip(value));
    let Some(first) = addresses.next() else { return };
    let mut source = Object::begin(document.key(b"source"));
    let list = source.key(b"ip");
    list.push(b'[');
    list.extend_from_slice(first);
    for address in addresses {
        list.push(b',');
        list.extend_from_slice(address);
    }
    list.push(b']');
    source.end();
    document.group("client", &[("ip", Some(first))]);
}
