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
//! | Filebeat and Elastic Agent | `message`, `event.original` |
//!
//! No event of a record is left out in silence: a member that stands twice is a fault, and so are
//! two members with different events. Elements of an array that can't be used are counted: exports
//! have records of other categories between those of the audit log.
//!
//! An event in a JSON string is unescaped, which restores the bytes that kube-apiserver wrote. The
//! audit logs of Google Cloud (GKE) have other members than an event and are refused.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The maximum number of arrays, records and strings around an event. Azure needs five.
pub const DEPTH_MAX: usize = 8;

/// The members of a record that may contain events.
const MEMBERS: [&str; 11] = [
    "event",
    "original",
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

/// The events of a text, and the number of elements of its arrays that can't be used.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unwrapped {
    /// The events, each followed by `\n`.
    pub events: Vec<u8>,
    /// The number of elements of arrays that have no event, beside others that have one.
    pub others: usize,
    /// The fault of the first of these elements; empty if there are none.
    pub first: String,
}

impl Unwrapped {
    /// Returns a message about the elements that can't be used, if there are any.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let (others, first) = (self.others, &self.first);
        match others {
            0 => None,
            1 => Some(format!("one record that can't be used: {first}")),
            _ => Some(format!("{others} records that can't be used, the first: {first}")),
        }
    }

    fn append(&mut self, mut other: Self) {
        self.events.append(&mut other.events);
        self.others += other.others;
        if self.first.is_empty() {
            self.first = other.first;
        }
    }
}

/// Appends what is in `text` to `found`. `depth` is the number of layers that may be around the
/// events.
///
/// # Errors
///
/// The fault, or `None` if the text does not begin an array or a string and is not a known record;
/// then nothing is appended.
pub fn unwrap(text: &str, depth: usize, found: &mut Unwrapped) -> Result<(), Option<String>> {
    let text = text.trim_ascii();
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Some("too many layers are around the event".to_owned()));
    };
    let not_json = |error: serde_json::Error| Some(format!("not JSON: {error}"));
    match text.as_bytes().first() {
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
            let (mut all, mut faults) = (Unwrapped::default(), 0);
            for (index, element) in elements.iter().enumerate() {
                if let Err(what) = inner(element.get(), depth, &mut all) {
                    let first = format!("element {} of the array: {what}", index + 1);
                    all.append(Unwrapped { others: 1, first, ..Unwrapped::default() });
                    faults += 1;
                }
            }
            if faults > 0 && faults == elements.len() {
                return Err(Some(all.first));
            }
            found.append(all);
            Ok(())
        }
        Some(b'"') => {
            let text: String = serde_json::from_str(text).map_err(not_json)?;
            inner(&text, depth, found).map_err(Some)
        }
        _ => {
            let Members(record) = serde_json::from_str(text).map_err(|_| None)?;
            if record.iter().any(|(name, _)| name == "protoPayload") {
                return Err(Some(GOOGLE.to_owned()));
            }
            of_record(&record, depth, found)
        }
    }
}

/// The members of a JSON object in their order, also those that stand twice.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(name) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Appends what is in the known members of a record. Several of them may have the same event.
fn of_record(
    record: &[(String, &RawValue)],
    depth: usize,
    found: &mut Unwrapped,
) -> Result<(), Option<String>> {
    let mut known: Option<(&str, Unwrapped)> = None;
    let mut fault = None;
    for name in MEMBERS {
        let mut values = record.iter().filter(|(member, _)| member == name);
        let Some((_, value)) = values.next() else { continue };
        if values.next().is_some() {
            return Err(Some(format!("the member {name} stands twice")));
        }
        let mut own = Unwrapped::default();
        match (inner(value.get(), depth, &mut own), &known) {
            (Err(what), _) => drop(fault.get_or_insert(format!("{name}: {what}"))),
            (Ok(()), None) => known = Some((name, own)),
            (Ok(()), Some((_, same))) if same.events == own.events => {}
            (Ok(()), Some((other, _))) => {
                return Err(Some(format!("{other} and {name} have different events")));
            }
        }
    }
    match known {
        Some((_, own)) => found.append(own),
        None => return Err(fault),
    }
    Ok(())
}

/// Appends what is in a text inside a record, an array or a string. The text may be an event.
fn inner(text: &str, depth: usize, found: &mut Unwrapped) -> Result<(), String> {
    let text = text.trim_ascii();
    let as_event = match text.starts_with('{').then(|| crate::decode(text.into())) {
        Some(Ok(batch)) => {
            found.events.extend_from_slice(&batch.lines);
            let first = batch.rejected.first.first().map(|item| item.fault.to_string());
            let others = usize::try_from(batch.rejected.count).unwrap_or(usize::MAX);
            let first = first.unwrap_or_default();
            found.append(Unwrapped { others, first, ..Unwrapped::default() });
            return Ok(());
        }
        Some(Err(invalid)) => invalid.what.to_string(),
        None => "not an event".to_owned(),
    };
    unwrap(text, depth, found).map_err(|what| what.unwrap_or(as_event))
}
