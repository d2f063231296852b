//! Splits a body with serde_json. This module accepts every valid form, with any order of members
//! and any white space, and returns an error for everything else.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use crate::event::{quoted, wrong_version};
use crate::{API_VERSION, EVENT_BYTES_MIN, Invalid, LevelCounts, Rejected, Span, event};

/// The values of a body.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    /// The byte ranges of the values that may be events.
    events: Vec<Span>,
    /// The first values that cannot be events, because they are too short or not an object. Later
    /// ones are only counted, so that a body of many tiny values takes little memory.
    /// Each has its index among all values.
    bad: Vec<(usize, Span)>,
    /// The number of all values, good and bad.
    count: usize,
}

impl Found {
    /// Adds the next value, a slice of `text`. Returns an error for a value beyond the first 4 GiB.
    fn add(&mut self, text: &str, item: &str) -> Result<(), &'static str> {
        let start = item.as_ptr() as usize - text.as_ptr() as usize;
        let span = Span::new(start, start + item.len())
            .ok_or("the event is larger than 4 GiB, or lies beyond the first 4 GiB of the body")?;
        if item.len() >= EVENT_BYTES_MIN && item.starts_with('{') {
            span.push_to(&mut self.events, text.len());
        } else if self.bad.len() < Rejected::ITEMS_MAX {
            self.bad.push((self.count, span));
        }
        self.count += 1;
        Ok(())
    }
}

/// The events of a body, and its other items.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) events: Vec<Span>,
    /// The number of events of each level.
    pub(super) levels: LevelCounts,
    pub(super) rejected: Rejections,
}

/// The items of a body that are not audit events.
#[derive(Debug, Default)]
pub(super) struct Rejections {
    /// The number of all such items.
    pub(super) count: usize,
    /// The first of them in the order of the body, at most [`Rejected::ITEMS_MAX`].
    pub(super) first: Vec<(Span, Invalid)>,
}

/// Finds and checks the events of a body: a list of events, a single event or JSON lines.
pub(super) fn split(text: &str) -> Result<Checked, Invalid> {
    if text.bytes().all(|byte| byte.is_ascii_whitespace()) {
        return Err(envelope(0, "the body is empty"));
    }
    let items = Cell::new(None);
    let mut parser = serde_json::Deserializer::from_str(text);
    let list = EnvelopeSeed { text, items: &items }.deserialize(&mut parser).map_err(|error| {
        let what = if text.trim_start().starts_with('[') {
            "the body is a JSON array: send an EventList, or one event on each line".into()
        } else if error.is_data() {
            "neither an audit event nor an EventList nor JSON lines of events".into()
        } else {
            syntax(&error)
        };
        Invalid { byte: byte_of(text, &error), item: items.get(), what, is_sound: false }
    })?;
    match list.kind()?.as_deref() {
        Some("EventList") => {}
        Some("Event") => return split_lines(text),
        None if list.items != Items::Absent => {
            return Err(envelope(0, "kind is missing: a list of events has kind EventList"));
        }
        None => return split_lines(text),
        Some(kind) => {
            let what = format!("kind is {}, neither EventList nor Event", quoted(kind));
            return Err(envelope(0, what));
        }
    }
    match list.api_version()?.as_deref() {
        Some(API_VERSION) => {}
        other => return Err(envelope(0, wrong_version(other))),
    }
    parser
        .end()
        .map_err(|error| envelope(byte_of(text, &error), "more follows after the EventList"))?;
    let items = match list.items {
        Items::Array(items) => items,
        Items::Absent => return Err(envelope(0, "items is missing")),
        Items::NoArray => return Err(envelope(0, "items is not an array")),
        Items::Twice => return Err(envelope(0, "items occurs twice")),
    };
    check_all(text, items)
}

/// Does what [`split`] does for a single event or JSON lines.
fn split_lines(text: &str) -> Result<Checked, Invalid> {
    let mut found = Found::default();
    let stream = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let mut before = 0;
    for value in stream {
        let item = Some(found.count);
        let at = |byte, what| Invalid { byte, item, what, is_sound: false };
        let value = value.map_err(|error| at(byte_of(text, &error), syntax(&error)))?.get();
        let start = value.as_ptr() as usize - text.as_ptr() as usize;
        let gap = text.as_bytes().get(before..start).unwrap_or_default();
        if found.count > 0 && memchr::memchr2(b'\n', b'\r', gap).is_none() {
            return Err(at(start, "two events on one line".into()));
        }
        before = start + value.len();
        found.add(text, value).map_err(|what| envelope(start, what))?;
    }
    check_all(text, found)
}

/// Checks the values of `found`, and sorts the events from the others. Returns an error, the fault
/// of the first value, if there are values and none is an event.
fn check_all(text: &str, found: Found) -> Result<Checked, Invalid> {
    let Found { mut events, bad, count } = found;
    let (mut levels, mut first) = (LevelCounts::default(), Vec::new());
    let all_bad = count - events.len();
    // Each range is that of a slice of `text`, so there are always bytes.
    let check = |span: Span| event::check(text.as_bytes().get(span.range()).unwrap_or_default());
    let fault = |span: Span, item, (at, what)| {
        (span, Invalid { byte: span.range().start + at, item, what, is_sound: true })
    };
    let mut index = 0;
    events.retain(|span| {
        index += 1;
        match check(*span) {
            Ok(level) => levels[level] += 1,
            Err(error) if first.len() < Rejected::ITEMS_MAX => {
                let before = bad.partition_point(|(_, other)| other.start < span.start);
                // Behind the last value in `bad`, others may have come that were only counted.
                let is_known = before < bad.len() || before == all_bad;
                first.push(fault(*span, is_known.then_some(index - 1 + before), error));
                return false;
            }
            Err(_) => return false,
        }
        true
    });
    first.extend(bad.into_iter().map(|(item, span)| {
        let error = check(span).err().unwrap_or((0, "too short for an event".into()));
        fault(span, Some(item), error)
    }));
    first.sort_by_key(|(span, _)| span.start);
    first.truncate(Rejected::ITEMS_MAX);
    match first.first() {
        Some((_, fault)) if events.is_empty() => Err(fault.clone()),
        _ => {
            let count = count - events.len();
            Ok(Checked { events, levels, rejected: Rejections { count, first } })
        }
    }
}

/// Makes the error for a fault outside of all events, at the offset `byte`.
fn envelope(byte: usize, what: impl Into<Cow<'static, str>>) -> Invalid {
    Invalid { byte, item: None, what: what.into(), is_sound: false }
}

/// Returns serde_json's message without line and column: the offset is given separately.
fn syntax(error: &serde_json::Error) -> Cow<'static, str> {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    // serde_json says this where it has seen the first letter of `true`, `false` or `null`.
    let what = if what == "expected ident" { "expected value" } else { what };
    format!("not JSON: {what}").into()
}

/// Returns the offset of an error, which serde_json gives as line and byte, counted from 1.
fn byte_of(text: &str, error: &serde_json::Error) -> usize {
    let line = error.line().saturating_sub(1);
    let start = match line {
        0 => 0,
        _ => memchr::memchr_iter(b'\n', text.as_bytes()).nth(line - 1).map_or(0, |at| at + 1),
    };
    (start + error.column().saturating_sub(1)).min(text.len())
}

/// The outermost object of a body, whose members decide if the body is a valid list of events. The
/// events in `items` are found; [`check_all`] checks them.
struct Envelope<'a> {
    kind: Option<&'a RawValue>,
    api_version: Option<&'a RawValue>,
    items: Items,
}

#[derive(PartialEq)]
enum Items {
    Absent,
    NoArray,
    /// Two members `items` are refused: using only the first would lose the second's events.
    Twice,
    Array(Found),
}

impl Envelope<'_> {
    fn kind(&self) -> Result<Option<Cow<'_, str>>, Invalid> {
        text_of(self.kind, "kind is not a string")
    }

    fn api_version(&self) -> Result<Option<Cow<'_, str>>, Invalid> {
        text_of(self.api_version, "apiVersion is not a string")
    }
}

/// Returns the text of `raw`, if there is a `raw`. If it is not a JSON string, returns an error
/// with the text `otherwise`.
fn text_of<'a>(
    raw: Option<&'a RawValue>,
    otherwise: &'static str,
) -> Result<Option<Cow<'a, str>>, Invalid> {
    raw.map(|raw| {
        serde_json::from_str(raw.get()).map(Cow::Owned).map_err(|_| envelope(0, otherwise))
    })
    .transpose()
}

/// Reads the outermost object of a body with serde. While its array `items` is read, the cell
/// `items` counts the elements so far, so that a syntax error can name the faulty element.
struct EnvelopeSeed<'c> {
    /// A whole body, or the part of a body before its first byte that is not valid UTF-8.
    text: &'c str,
    /// The number of elements of `items` that were read so far; `None` outside of the array.
    items: &'c Cell<Option<usize>>,
}

impl<'a> DeserializeSeed<'a> for EnvelopeSeed<'_> {
    type Value = Envelope<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Envelope<'a>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for EnvelopeSeed<'_> {
    type Value = Envelope<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Envelope<'a>, A::Error> {
        let mut envelope = Envelope { kind: None, api_version: None, items: Items::Absent };
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::Kind => {
                    let value = map.next_value()?;
                    envelope.kind.get_or_insert(value);
                }
                Key::ApiVersion => {
                    let value = map.next_value()?;
                    envelope.api_version.get_or_insert(value);
                }
                Key::Items => {
                    let found =
                        map.next_value_seed(ItemsSeed { text: self.text, items: self.items })?;
                    envelope.items =
                        if envelope.items == Items::Absent { found } else { Items::Twice };
                }
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(envelope)
    }
}

/// A key of the outermost object of a body. A list of events must have the first three.
enum Key {
    Kind,
    ApiVersion,
    Items,
    Other,
}

impl<'a> Deserialize<'a> for Key {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_bytes<E>(self, key: &[u8]) -> Result<Key, E> {
                Ok(match key {
                    b"kind" => Key::Kind,
                    b"apiVersion" => Key::ApiVersion,
                    b"items" => Key::Items,
                    _ => Key::Other,
                })
            }
        }
        // Keys are read as bytes: one with a lone surrogate is valid JSON, but not a valid `str`.
        deserializer.deserialize_bytes(KeyVisitor)
    }
}

/// Reads the member `items` with serde. The fields are those of [`EnvelopeSeed`].
struct ItemsSeed<'c> {
    text: &'c str,
    items: &'c Cell<Option<usize>>,
}

impl<'a> DeserializeSeed<'a> for ItemsSeed<'_> {
    type Value = Items;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Items, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for ItemsSeed<'_> {
    type Value = Items;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<Items, A::Error> {
        let mut found = Found::default();
        self.items.set(Some(0));
        while let Some(item) = seq.next_element::<&RawValue>()? {
            found.add(self.text, item.get()).map_err(A::Error::custom)?;
            self.items.set(Some(found.count));
        }
        self.items.set(None);
        Ok(Items::Array(found))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Items, A::Error> {
        while map.next_entry::<Key, IgnoredAny>()?.is_some() {}
        Ok(Items::NoArray)
    }

    fn visit_unit<E>(self) -> Result<Items, E> {
        Ok(Items::NoArray)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Items, E> {
        Ok(Items::NoArray)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Items, E> {
        Ok(Items::NoArray)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Items, E> {
        Ok(Items::NoArray)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Items, E> {
        Ok(Items::NoArray)
    }

    fn visit_str<E>(self, _: &str) -> Result<Items, E> {
        Ok(Items::NoArray)
    }
}
