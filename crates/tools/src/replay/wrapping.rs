//! Finds events inside a JSON array, or inside a record of another system whose member is the event
//! or its text.
//!
//! | record | the event is in |
//! |---|---|
//! | the relay's dead letters | `event` |
//! | Azure (AKS): diagnostic settings, Event Hubs, Log Analytics | `records[].properties.log`, `log_s` |
//! | AWS (EKS): CloudWatch Logs and its subscriptions | `events[].message`, `logEvents[].message`, `@message` |
//! | journald (`journalctl -o json`) | `MESSAGE` |
//! | Docker, Fluentd and Fluent Bit | `log`, `message` |
//!
//! An event in a JSON string is unescaped, which restores the bytes that kube-apiserver wrote. The
//! audit logs of Google Cloud (GKE) have other members than an event and are refused.

use std::collections::HashMap;

use serde_json::value::RawValue;

/// The maximum number of arrays, records and strings around an event. Azure needs five.
pub(super) const DEPTH_MAX: usize = 8;

/// The members of a record that may contain an event. Only the first of them that the record has
/// is read.
const MEMBERS: [&str; 10] = [
    "event",
    "records",
    "events",
    "logEvents",
    "properties",
    "log",
    "log_s",
    "message",
    "@message",
    "MESSAGE",
];

const GOOGLE: &str = "an entry of Google Cloud's audit logs (protoPayload) is not an event of \
                      kube-apiserver: it has other members, and no event can be made of it";

/// Appends the events in `text` to `events`, each followed by `\n`. `depth` is the number of layers
/// that may be around them. `Err` is the fault, or `None` if the text does not begin an array or a
/// string and is not a known record.
pub(super) fn unwrap(text: &str, depth: usize, events: &mut Vec<u8>) -> Result<(), Option<String>> {
    let text = text.trim_ascii();
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Some("too many layers are around the event".to_owned()));
    };
    let not_json = |error: serde_json::Error| Some(format!("not JSON: {error}"));
    match text.as_bytes().first() {
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
            for (index, element) in elements.iter().enumerate() {
                inner(element.get(), depth, events)
                    .map_err(|what| format!("element {} of the array: {what}", index + 1))?;
            }
            Ok(())
        }
        Some(b'"') => {
            let text: String = serde_json::from_str(text).map_err(not_json)?;
            inner(&text, depth, events).map_err(Some)
        }
        _ => {
            let record: HashMap<&str, &RawValue> = serde_json::from_str(text).map_err(|_| None)?;
            if record.contains_key("protoPayload") {
                return Err(Some(GOOGLE.to_owned()));
            }
            let member = MEMBERS.into_iter().find_map(|name| Some((name, *record.get(name)?)));
            let (name, value) = member.ok_or(None)?;
            inner(value.get(), depth, events).map_err(|what| Some(format!("{name}: {what}")))
        }
    }
}

/// Appends the events of a text inside a record, an array or a string. The text may be an event.
fn inner(text: &str, depth: usize, events: &mut Vec<u8>) -> Result<(), String> {
    let text = text.trim_ascii();
    let as_event = match text.starts_with('{').then(|| audit::decode(text.into())) {
        Some(Ok(batch)) => {
            events.extend_from_slice(&batch.lines);
            return Ok(());
        }
        Some(Err(invalid)) => invalid.what.to_string(),
        None => "not an event".to_owned(),
    };
    unwrap(text, depth, events).map_err(|what| what.unwrap_or(as_event))
}
