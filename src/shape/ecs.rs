//! Documents of the Elastic Common Schema, with the fields that the integration `kubernetes` of
//! Elastic gives to audit events.
//!
//! The document begins with `@timestamp`, and its last member is `kubernetes.audit`, the event.

use super::Bodies;
use super::DataStream;
use super::bodies::Edits;
use super::json;
use super::json::Object;
use super::json::is_ip;
use super::json::text;
use super::json::write_string;
use crate::audit::scan;
use crate::audit::time::is_timestamp;

/// The beginning of each document of an event that has a time.
pub(super) const HEAD: &[u8] = br#"{"@timestamp":""#;

/// The beginnings of all documents: with a time, and without.
pub(super) const HEADS: [&[u8]; 2] = [HEAD, br#"{"ecs":{"version":"#];

/// The version of ECS that has all fields of the document.
const VERSION: &[u8] = br#"{"version":"8.11.0"}"#;

/// The name of the integration's dataset.
const DATASET: &[u8] = br#""kubernetes.audit_logs""#;

/// The annotation in which kube-apiserver says if it has allowed the request.
const DECISION: &str = "authorization.k8s.io/decision";

/// The members of an event that an ECS document has in places of their own too. Each is a JSON
/// text; `None` if the event does not have it.
#[derive(Default)]
struct Fields<'a> {
    verb: Option<&'a [u8]>,
    user: Option<&'a [u8]>,
    user_agent: Option<&'a [u8]>,
    source_ips: Option<&'a [u8]>,
    status: Option<&'a [u8]>,
    annotations: Option<&'a [u8]>,
    request_time: Option<&'a [u8]>,
    stage_time: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    /// Reads an event. Returns its fields, and the changes to the event in `kubernetes.audit`.
    fn read(event: &'a [u8], bodies: Bodies) -> (Self, Edits) {
        let (mut fields, mut edits) = (Self::default(), Edits::default());
        for member in scan::members(event) {
            let slot = match &*member.name() {
                b"requestObject" | b"responseObject" => {
                    edits.body(event, member, bodies);
                    continue;
                }
                b"annotations" => {
                    edits.annotations(event, member);
                    fields.annotations.get_or_insert(member.value);
                    continue;
                }
                b"verb" => &mut fields.verb,
                b"user" => &mut fields.user,
                b"userAgent" => &mut fields.user_agent,
                b"sourceIPs" => &mut fields.source_ips,
                b"responseStatus" => &mut fields.status,
                b"requestReceivedTimestamp" => &mut fields.request_time,
                b"stageTimestamp" => &mut fields.stage_time,
                _ => {
                    edits.keep(event, member);
                    continue;
                }
            };
            slot.get_or_insert(member.value);
            edits.keep(event, member);
        }
        edits.finish();
        (fields, edits)
    }

    /// Returns the value of `event.outcome`: kube-apiserver's decision or, if it does not say it,
    /// whether the response's code is below 400. Returns `None` if the event has neither.
    fn outcome(&self) -> Option<&'static [u8]> {
        let (success, failure) = (br#""success""#.as_slice(), br#""failure""#.as_slice());
        let [decision] = scan::firsts(self.annotations.unwrap_or_default(), [DECISION]);
        match decision.and_then(scan::string).as_deref() {
            Some(b"allow") => return Some(success),
            Some(b"forbid") => return Some(failure),
            Some(_) | None => {}
        }
        let [code] = scan::firsts(self.status.unwrap_or_default(), ["code"]);
        let (_, code) = json::code(code)?;
        Some(if code < 400 { success } else { failure })
    }
}

/// Appends the document of an event to `out`.
pub(super) fn write(
    event: &[u8],
    bodies: Bodies,
    data_stream: Option<&DataStream>,
    out: &mut Vec<u8>,
) {
    let (fields, edits) = Fields::read(event, bodies);
    out.reserve(event.len() + 1024);
    let mut document = Object::begin(out);
    let is_time = |time: &&[u8]| scan::inner(time).is_some_and(is_timestamp);
    let time = fields.stage_time.filter(is_time).or_else(|| fields.request_time.filter(is_time));
    document.optional("@timestamp", time);
    document.member("ecs", VERSION);
    let outcome = fields.outcome();
    let of_event = [
        ("kind", Some(br#""event""#.as_slice())),
        ("dataset", Some(DATASET)),
        ("action", text(fields.verb)),
        ("outcome", outcome),
    ];
    document.group("event", &of_event);
    let [name, id] = scan::firsts(fields.user.unwrap_or_default(), ["username", "uid"]).map(text);
    document.group("user", &[("name", name), ("id", id)]);
    document.group("user_agent", &[("original", text(fields.user_agent))]);
    write_addresses(fields.source_ips.unwrap_or_default(), &mut document);
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

/// Writes `source.ip` and `client.ip`. An element of `sourceIPs` that is no IP address is in
/// neither, because Elasticsearch would refuse the whole document for it.
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
