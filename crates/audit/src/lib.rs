//! Turns a request body into a batch of JSON lines.
//!
//! This crate promises that an accepted batch has the same events as the body, in the same order,
//! and that a refused body has an error that names the reason. It imports no other crate of the
//! relay. It must never leave an event out, or change more of an event than line breaks.
//!
//! [`decode`] accepts three forms: the `EventList` of `audit.k8s.io/v1` that kube-apiserver's audit
//! webhook sends, a single `Event`, and JSON lines of `Event`s. [`decode`] checks every event and
//! splits the body in place: the commas between events become line breaks, and the head and the
//! tail of the list are cut off. No event is copied into a tree. Every byte of an event stays as it
//! was received, except that raw line breaks between its tokens become spaces, and that bytes that
//! are not UTF-8 become U+FFFD (`mend`).
//!
//! A client of the cluster can choose much of an event, and a refused body costs the events of all
//! others. A body whose JSON is sound is therefore never refused because of one of its items: an
//! item that is not an audit event is left out, and reported in [`Rejected`].
//!
//! The module `fast` recognises a body that is written as kube-apiserver writes it, with the wide
//! registers of x86-64 and arm64, and without them on other CPUs. For every other body, the module
//! `strict` finds out with serde_json whether the body is JSON, and the module `event` whether each
//! object is an audit event.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;

mod event;
mod fast;
mod items;
mod list;
mod mend;
#[cfg(test)]
mod one_event;
pub mod request;
pub mod scan;
mod strict;
pub mod time;
pub mod wrapping;

pub use fast::Isa;
pub use items::{Ended, Items, shorten};
pub use list::{Events, ListEnds, separate};
pub use mend::{NOT_UTF8, annotate, mended};

/// The only accepted API group and version of events. Kubernetes 1.24 removed the beta versions.
pub const API_VERSION: &str = "audit.k8s.io/v1";

/// The bytes that kube-apiserver writes before the first event of a list.
pub const LIST_HEAD: &[u8] =
    br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;

/// The beginning of an event in kube-apiserver's audit.log. An event in its lists lacks them.
pub const EVENT_HEAD: &[u8] = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;

/// The deepest nesting that an event may have; its own braces are level 1. kube-apiserver takes and
/// writes bodies of at most 10,000 levels (`maxNestingDepth` in Go's encoding/json/scanner.go), and
/// each body is a member of the event. The other levels are room for what a version may wrap around
/// a body. The JSON parsers of consumers have limits too, from 64 levels to a few thousand.
pub const DEPTH_MAX: usize = 10_016;

/// The values of the metrics' label `level`: the four levels of Kubernetes, and `other`.
pub const LEVELS: [&str; 5] = ["None", "Metadata", "Request", "RequestResponse", "other"];

/// The number of events of each level, in the order of [`LEVELS`].
pub type LevelCounts = [u64; LEVELS.len()];

/// The events of a body that was checked and accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The text: each event is followed by one `\n`, and there is no other line break.
    pub lines: Bytes,
    /// The number of events in `lines`.
    pub events: u64,
    /// The number of events of each level.
    pub levels: LevelCounts,
    /// The items of the body that are not audit events.
    pub rejected: Rejected,
    /// The number of events in `lines` in which bytes that are not UTF-8 were replaced.
    pub mended: u64,
}

/// The items of a body that are not audit events, beside others that are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejected {
    /// The number of all such items.
    pub count: u64,
    /// The first of these items: at most [`Self::ITEMS_MAX`], and only as long as all together have
    /// at most [`Self::BYTES_MAX`] bytes.
    pub first: Vec<RejectedItem>,
}

/// An item that is not an audit event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedItem {
    /// The fault of the item.
    pub fault: Invalid,
    /// The item, valid JSON without a line break.
    pub text: Bytes,
}

impl Rejected {
    /// The maximum number of items that are kept for each body.
    pub const ITEMS_MAX: usize = 1000;
    /// The maximum number of bytes of the items that are kept for each body.
    pub const BYTES_MAX: usize = 8 * 1024 * 1024;

    /// Copies the first items of `found`, whose ranges are in `text`.
    fn new(found: strict::Rejections, text: &str) -> Self {
        let mut rejected = Self { count: found.count as u64, first: Vec::new() };
        let mut room = Self::BYTES_MAX;
        for (span, fault) in found.first {
            let item = text.as_bytes().get(span.range()).unwrap_or_default();
            let Some(left) = room.checked_sub(item.len()) else { break };
            room = left;
            let mut item = item.to_vec();
            mend::without_breaks(&mut item);
            rejected.first.push(RejectedItem { fault, text: item.into() });
        }
        rejected
    }

    /// Adds the items of `other`, within the same limits.
    pub fn append(&mut self, other: Self) {
        self.count += other.count;
        if self.first.len() == Self::ITEMS_MAX {
            return;
        }
        let mut held: usize = self.first.iter().map(|item| item.text.len()).sum();
        let room = Self::ITEMS_MAX - self.first.len();
        self.first.extend(other.first.into_iter().take(room).take_while(|item| {
            held += item.text.len();
            held <= Self::BYTES_MAX
        }));
    }

    /// Returns a message about the items, for the log; `None` if there are none.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let fault = self.first.first().map(|item| item.fault.to_string()).unwrap_or_default();
        match self.count {
            0 => None,
            1 => Some(format!("one item that is not an audit event: {fault}")),
            count => Some(format!("{count} items that are not audit events, the first: {fault}")),
        }
    }
}

/// The reason why a body was refused. `Display` writes it as one sentence for the sender, with the
/// byte offset of the fault and, if it is known, the index of the event. The sentence quotes
/// nothing of the body except a `kind` or an `apiVersion`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The offset of the fault in the body, in bytes, after decompression.
    pub byte: usize,
    /// The index of the faulty event in `items`, or among the JSON lines. `None` if the fault is
    /// outside of all events, and for some faults of JSON or UTF-8 in a body that is not a list.
    pub item: Option<usize>,
    /// A description of the fault, such as `auditID is missing`.
    pub what: Cow<'static, str>,
    /// `true` if the JSON is sound, and the fault is that an item, or each of them, is not an audit
    /// event.
    pub is_sound: bool,
}

impl std::error::Error for Invalid {}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.item {
            Some(item) => write!(f, "item {item} at byte {}: {}", self.byte, self.what),
            None => write!(f, "at byte {}: {}", self.byte, self.what),
        }
    }
}

/// The result of [`decode_in_place`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The byte range of the lines in the slice. Each event is followed by one `\n` (if no list was
    /// kept, see [`scan_keeping_list`]), and there is no other line break.
    pub lines: Range<usize>,
    /// The number of events in `lines`.
    pub events: u64,
    /// The number of events of each level.
    pub levels: LevelCounts,
    /// The items of the body that are not audit events.
    pub rejected: Rejected,
    /// The number of events in `lines` in which bytes that are not UTF-8 were replaced.
    pub mended: u64,
    /// The text to which `lines` refers, if it is not the slice: a body becomes longer if bytes are
    /// replaced. The slice is then unchanged.
    pub own: Option<Vec<u8>>,
}

impl Split {
    /// Makes the result for events in the slice, all of which are valid UTF-8.
    fn of(lines: Range<usize>, events: usize, levels: LevelCounts) -> Self {
        let (events, rejected) = (events as u64, Rejected::default());
        Self { lines, events, levels, rejected, mended: 0, own: None }
    }
}

/// Does what [`decode_in_place`] does, and returns a batch that owns the lines.
///
/// # Errors
///
/// The same as [`decode_in_place`].
pub fn decode(mut body: Vec<u8>) -> Result<Batch, Invalid> {
    body.push(b'\n');
    let Split { lines, events, levels, rejected, mended, own } = decode_in_place(&mut body)?;
    let lines = Bytes::from(own.unwrap_or(body)).slice(lines);
    Ok(Batch { lines, events, levels, rejected, mended })
}

/// Checks a body, and turns it into lines in the slice, one for each event. The last byte of the
/// slice does not belong to the body: it is room for the line break after the last event. After an
/// error, the slice is unchanged.
///
/// # Errors
///
/// The body is not JSON, has none of the accepted forms, or has items of which none is an audit
/// event.
pub fn decode_in_place(body_and_room: &mut [u8]) -> Result<Split, Invalid> {
    match scan_in_place(Isa::best(), body_and_room) {
        Some(split) => Ok(split),
        None => parse_in_place(body_and_room),
    }
}

/// Does what [`decode_in_place`] does, without the scanner. The result is the same.
///
/// # Errors
///
/// The same as [`decode_in_place`].
pub fn parse_in_place(body_and_room: &mut [u8]) -> Result<Split, Invalid> {
    let body = body_and_room.split_last().map_or(&[][..], |(_, body)| body);
    let Ok(text) = std::str::from_utf8(body) else { return mend::split(body) };
    let strict::Checked { events, levels, rejected } = strict::split(text)?;
    let rejected = Rejected::new(rejected, text);
    let lines = join(body_and_room, &events);
    Ok(Split { rejected, ..Split::of(lines, events.len(), levels) })
}

/// Does what [`decode_in_place`] does, with the scanner alone. `None` if the scanner does not
/// recognise the body, which may be valid, or if the CPU lacks `isa`; the slice is then unchanged.
pub fn scan_in_place(isa: Isa, body_and_room: &mut [u8]) -> Option<Split> {
    let (_, body) = body_and_room.split_last()?;
    let (events, levels) = fast::split(isa, body)?;
    let lines = end_lines(body_and_room, &events);
    Some(Split::of(lines, events.len(), levels))
}

/// Does what [`scan_in_place`] does, but leaves a list as it was received if it has at least
/// [`KEPT_EVENT_BYTES`] bytes for each event. The second value is then `Some`, and the events in
/// [`Split::lines`] are followed by commas and a bracket.
pub fn scan_keeping_list(body_and_room: &mut [u8]) -> Option<(Split, Option<ListEnds>)> {
    let (_, body) = body_and_room.split_last()?;
    let (events, levels) = fast::split(Isa::best(), body)?;
    let Span { start, .. } = events.first().copied()?;
    let kept = body.len() >= events.len() * KEPT_EVENT_BYTES;
    let ends = kept.then(|| events.iter().map(|event| event.end - start).collect());
    let lines = match kept {
        true => lines_of(&events),
        false => end_lines(body_and_room, &events),
    };
    Some((Split::of(lines, events.len(), levels), ends))
}

/// [`scan_keeping_list`] leaves a list as received only if it has at least this many bytes for
/// each event. An offset takes 4 bytes, so the offsets take at most 1.6 % of such a list.
pub const KEPT_EVENT_BYTES: usize = 256;

/// The byte range of one event in the text of a body. It takes 8 bytes, half of a `Range<usize>`,
/// because a body of the smallest events has one event in every 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Makes a span of two byte offsets; `None` if one of them is beyond 4 GiB.
    fn new(start: usize, end: usize) -> Option<Self> {
        Some(Self { start: u32::try_from(start).ok()?, end: u32::try_from(end).ok()? })
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    fn len(self) -> usize {
        self.range().len()
    }

    /// Appends this span to `events`. If `events` is full, this reserves room for the spans of the
    /// rest of the body, whose number is estimated from `text`, the size of the body in bytes.
    fn push_to(self, events: &mut Vec<Self>, text: usize) {
        if events.len() == events.capacity() {
            // The first reservation assumes that all events have the size of the first. If that was
            // too few, the second assumes the smallest events. A `Vec` that grows by doubling would
            // hold two buffers at each step, and could end with twice the room that it needs.
            let size = if events.is_empty() { self.len() } else { EVENT_BYTES_MIN };
            events.reserve_exact((text - self.range().start) / (size + 1) + 1);
        }
        events.push(self);
    }
}

/// The length of the shortest valid event, `{"auditID":"a","stage":"Panic"}`.
const EVENT_BYTES_MIN: usize = 31;

/// Makes each event one line, and returns the range of the lines. A raw line break inside of an
/// event becomes a space.
fn join(body: &mut [u8], events: &[Span]) -> Range<usize> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return 0..0 };
    let (start, end) = (first.range().start, last.range().end);
    mend::without_breaks(&mut body[start..end]);
    if events.windows(2).all(|pair| pair[0].end + 1 == pair[1].start) {
        return end_lines(body, events);
    }
    let mut write = start;
    for event in events.iter().map(|event| event.range()) {
        body.copy_within(event.clone(), write);
        write += event.len();
        body[write] = b'\n';
        write += 1;
    }
    start..write
}

/// Replaces the byte after each event by a line break. Only that byte may be between two events.
fn end_lines(body: &mut [u8], events: &[Span]) -> Range<usize> {
    for event in events {
        body[event.range().end] = b'\n';
    }
    lines_of(events)
}

/// Returns the byte range of `events`, up to and including the byte after the last event.
fn lines_of(events: &[Span]) -> Range<usize> {
    let start = events.first().map_or(0, |event| event.range().start);
    start..events.last().map_or(0, |event| event.range().end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use testing::{corpus, corpus_file};

    fn lines(body: &str) -> Vec<String> {
        let batch =
            decode(body.as_bytes().to_vec()).unwrap_or_else(|error| panic!("{error}: {body}"));
        let text = std::str::from_utf8(&batch.lines).unwrap().to_owned();
        assert!(text.is_empty() || text.ends_with('\n'));
        assert_eq!(text.lines().count() as u64, batch.events);
        assert_eq!(batch.levels.iter().sum::<u64>(), batch.events);
        text.lines().map(str::to_owned).collect()
    }

    fn refusal(body: &str) -> String {
        decode(body.as_bytes().to_vec()).expect_err(body).to_string()
    }

    const EVENT: &str = r#"{"level":"Metadata","auditID":"a","stage":"Panic"}"#;

    fn list(items: &str) -> String {
        format!(
            r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{{}},"items":[{items}]}}"#
        )
    }

    #[test]
    fn what_comes_out_of_the_corpus_is_what_went_in() {
        for (name, body) in corpus() {
            let batch = decode(body.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
            // kube-apiserver writes compact JSON: with head, commas and tail put back, the lines
            // must give the same bytes as the body.
            let mut again =
                br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#
                    .to_vec();
            let events: Vec<&[u8]> =
                batch.lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
            again.extend_from_slice(&events.join(&b','));
            again.extend_from_slice(b"]}\n");
            assert!(again == body, "{name}");
            assert_eq!(events.len() as u64, batch.events);
        }
    }

    #[test]
    fn the_scanner_alone_splits_as_decode_does_and_leaves_what_it_does_not_know_unchanged() {
        let body = list(&format!("{EVENT},{EVENT}"));
        let room = |body: &str| [body.as_bytes(), b"?"].concat();
        let mut decoded = room(&body);
        let split = decode_in_place(&mut decoded).unwrap();
        let spaced = list(&format!("{EVENT}, {EVENT}"));
        for isa in Isa::ALL {
            let mut scanned = room(&body);
            let found = scan_in_place(isa, &mut scanned);
            assert_eq!(found, isa.is_there().then(|| split.clone()), "{isa:?}");
            assert_eq!(scanned == decoded, isa.is_there(), "{isa:?}");
            let mut unknown = room(&spaced);
            assert_eq!(scan_in_place(isa, &mut unknown), None, "{isa:?}");
            assert_eq!(unknown, room(&spaced), "{isa:?}");
            assert_eq!(scan_in_place(isa, &mut []), None, "{isa:?}");
        }
    }

    #[test]
    fn a_list_of_large_events_can_stay_as_it_is() {
        for (name, body) in corpus() {
            let (mut lines, mut list) = (body.clone(), body.clone());
            lines.push(b'\n');
            list.push(b'\n');
            let expected = decode_in_place(&mut lines).unwrap();
            let Some((split, ends)) = scan_keeping_list(&mut list) else {
                assert!(scan_in_place(Isa::best(), &mut lines).is_none(), "{name}");
                continue;
            };
            assert_eq!(split, expected, "{name}");
            if let Some(ends) = ends {
                assert!(list[..body.len()] == body, "{name} is unchanged");
                let text = &mut list[split.lines.clone()];
                for end in ends.iter() {
                    assert!(matches!(text[end], b',' | b']'), "{name}");
                    text[end] = b'\n';
                }
                assert_eq!(ends.offsets().len() as u64, split.events, "{name}");
            }
            assert!(list[split.lines.clone()] == lines[split.lines], "{name}");
        }
        let event = EVENT.replace("\"a\"", &format!("\"{}\"", "a".repeat(KEPT_EVENT_BYTES)));
        let kept = |events: &str| {
            let mut body = (list(events) + "?").into_bytes();
            scan_keeping_list(&mut body).is_some_and(|(_, ends)| ends.is_some())
        };
        assert!(kept(&event) && kept(&format!("{event},{event}")));
        assert!(!kept(EVENT) && !kept(&format!("{event}, {event}")) && !kept(""));
    }

    #[test]
    fn the_lines_of_an_audit_log_pass_unchanged() {
        let log = corpus_file("audit.log");
        let batch = decode(log.clone()).unwrap();
        assert_eq!(batch.lines, log);
        assert_eq!(batch.events, 495);
    }

    #[test]
    fn a_list_a_single_event_and_lines_are_split_into_lines() {
        assert_eq!(lines(&list("")), Vec::<String>::new());
        assert_eq!(lines(&list(EVENT)), [EVENT]);
        assert_eq!(lines(&list(&format!("{EVENT},{EVENT}"))), [EVENT, EVENT]);
        assert_eq!(lines(EVENT), [EVENT]);
        assert_eq!(lines(&format!("\n{EVENT}\n\n{EVENT}\r\n")), [EVENT, EVENT]);
        let with_kind =
            EVENT.replacen('{', r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#, 1);
        assert_eq!(lines(&with_kind), [with_kind.as_str()]);
        assert_eq!(lines(&format!("{with_kind}\n{EVENT}")), [with_kind.as_str(), EVENT]);
        // items before kind, white space around everything, other members.
        let odd = format!(
            r#" {{ "x":[{{}}], "items" : [ {EVENT} , {EVENT} ] , "apiVersion":"audit.k8s.io/v1","kind":"EventList" }} "#
        );
        assert_eq!(lines(&odd), [EVENT, EVENT]);
    }

    #[test]
    fn raw_line_breaks_between_tokens_become_spaces_and_nothing_else_changes() {
        let pretty = "{\n  \"auditID\": \"a\\n\",\r\n  \"stage\": \"Panic\"\n}";
        let line = "{   \"auditID\": \"a\\n\",    \"stage\": \"Panic\" }";
        assert_eq!(lines(pretty), [line]);
        assert_eq!(lines(&list(&format!("\n{pretty}\n,\n{pretty}\n"))), [line, line]);
    }

    #[test]
    fn numbers_escapes_and_duplicate_keys_pass_as_they_are() {
        let event = r#"{"auditID":"\u00e4","stage":"Panic","requestObject":{"n":1e400,"m":123456789012345678901234567890,"s":"\ud800","k":1,"k":-0}}"#;
        assert_eq!(lines(&list(event)), [event]);
        // The first of two equal keys counts, and a key may be written with escapes.
        assert_eq!(lines(r#"{"auditID":"a","stage":"Panic","stage":"Nothing"}"#).len(), 1);
        assert!(refusal(r#"{"auditID":"a","stage":"Nothing","stage":"Panic"}"#).contains("stage"));
        assert_eq!(lines(r#"{"\u0061uditID":"a","st\u0061ge":"Panic"}"#).len(), 1);
        assert!(
            refusal(r#"{"\u0061uditID":"","auditID":"a","stage":"Panic"}"#)
                .contains("auditID is empty")
        );
    }

    #[test]
    fn the_places_of_events_need_at_most_half_of_the_text() {
        let text = 100_000;
        for first in EVENT_BYTES_MIN..text / 2 {
            let (mut places, mut at, mut size, mut most) = (Vec::<Span>::new(), 0, first, 0);
            while at + size < text {
                let before = places.capacity();
                Span::new(at, at + size).unwrap().push_to(&mut places, text);
                // While the `Vec` grows, the old and the new buffer are both in memory.
                let both = if before == places.capacity() { 0 } else { before };
                most = most.max((both + places.capacity()) * size_of::<Span>());
                (at, size) = (at + size + 1, EVENT_BYTES_MIN);
            }
            assert!(most <= text / 2, "{most} where the first has {first} bytes");
        }
    }

    #[test]
    fn levels_are_counted_by_name_and_all_others_together() {
        let of = |level: &str| EVENT.replace("Metadata", level);
        let levels = ["None", "Request", "Request", "RequestResponse", "Loud", "Metadata"];
        let body = list(&levels.map(of).join(","));
        assert_eq!(decode(body.into_bytes()).unwrap().levels, [1, 1, 2, 1, 1]);
    }

    #[test]
    fn depth_is_limited_with_the_event_as_the_first_level() {
        let deep = |levels: usize| {
            let inner = levels - 1;
            format!(
                r#"{{"auditID":"a","stage":"Panic","x":{}{}}}"#,
                "[".repeat(inner),
                "]".repeat(inner)
            )
        };
        assert_eq!(lines(&list(&deep(DEPTH_MAX))).len(), 1);
        for too_deep in [list(&deep(DEPTH_MAX + 1)), deep(3_000_000)] {
            assert!(refusal(&too_deep).contains("nested more than 10016 deep"));
        }
    }

    #[test]
    fn refusals_name_the_byte_and_the_item() {
        let cases = [
            ("", "at byte 0: the body is empty"),
            (" \r\n", "at byte 0: the body is empty"),
            ("hello", "not JSON"),
            ("[]", "the body is a JSON array"),
            ("null", "neither an audit event"),
            ("7", "neither an audit event"),
            ("{}", "item 0 at byte 0: auditID is missing"),
            (r#"{"auditID":"a"}"#, "stage is missing"),
            (r#"{"auditID":7,"stage":"Panic"}"#, "item 0 at byte 11: auditID is not a string"),
            (r#"{"auditID":"","stage":"Panic"}"#, "item 0 at byte 11: auditID is empty"),
            (r#"{"auditID":"a","stage":"panic"}"#, "item 0 at byte 23: stage is not one of"),
            (r#"{"auditID":"a","stage":null}"#, "stage is not one of"),
            (r#"{"kind":"Pod","auditID":"a","stage":"Panic"}"#, r#"kind is "Pod""#),
            (r#"{"auditID":"a","stage":"Panic","kind":"Event"}"#, "apiVersion is missing"),
            (
                r#"{"auditID":"a","stage":"Panic","apiVersion":"audit.k8s.io/v1"}"#,
                "kind is not Event",
            ),
            (
                r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1beta1","auditID":"a","stage":"Panic"}"#,
                "removed in Kubernetes 1.24",
            ),
            (
                r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1alpha1","items":[]}"#,
                "removed in Kubernetes 1.24",
            ),
            (r#"{"kind":"EventList","items":[]}"#, "apiVersion is missing"),
            (r#"{"apiVersion":"audit.k8s.io/v1","items":[]}"#, "kind is missing"),
            (r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1"}"#, "items is missing"),
            (
                r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":null}"#,
                "items is not an array",
            ),
            (
                r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":{"a":[1]}}"#,
                "items is not an array",
            ),
            (
                r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[],"items":[]}"#,
                "items occurs twice",
            ),
            (r#"{"kind":7,"items":[]}"#, "kind is not a string"),
        ];
        for (body, expected) in cases {
            let refusal = refusal(body);
            assert!(refusal.contains(expected), "{body} gives {refusal}");
        }
        let start = list("").len() - 2;
        let second = start + EVENT.len() + 1;
        for (body, expected) in [
            (list(&format!("{EVENT},{{x")), format!("item 1 at byte {}: not JSON", second + 1)),
            (list(&format!("{EVENT} {EVENT}")), "item 1".to_owned()),
            (list(&format!("{EVENT},")), "item 1".to_owned()),
            (format!("{EVENT} {EVENT}"), "item 1 at byte 51: two events on one line".to_owned()),
            (format!("{0}\n{0}", list(EVENT)), "more follows after the EventList".to_owned()),
            (format!("{EVENT}\n{{"), "item 1 at byte ".to_owned()),
        ] {
            let refusal = refusal(&body);
            let is_in_order = !expected.starts_with("item") || refusal.starts_with(&expected);
            assert!(refusal.contains(&expected) && is_in_order, "{body} gives {refusal}");
        }
    }

    #[test]
    fn an_item_that_is_not_an_event_is_left_out_and_named_and_the_others_are_taken() {
        let start = list("").len() - 2;
        let second = start + EVENT.len() + 1;
        let beta =
            EVENT.replacen('{', r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1beta1","#, 1);
        for (item, at, what) in [
            ("7", 0, "not an object"),
            ("null", 0, "not an object"),
            (r#"{"auditID":"a","x":"0123456789"}"#, 0, "stage is missing"),
            ("{}", 0, "auditID is missing"),
            ("[{\"auditID\":\"a\",\"stage\":\"Panic\"}]", 0, "not an object"),
            (&beta, 29, "removed in Kubernetes 1.24"),
            (&list(EVENT), 8, "kind is not Event"),
        ] {
            for body in
                [list(&format!("{EVENT},{item},{EVENT}")), format!("{EVENT}\n{item}\n{EVENT}")]
            {
                let before = if body.starts_with(LIST_START) { second } else { EVENT.len() + 1 };
                let batch = decode(body.clone().into_bytes()).expect(&body);
                assert_eq!(batch.lines, format!("{EVENT}\n{EVENT}\n"), "{body}");
                let Rejected { count: 1, first } = batch.rejected else { panic!("{body}") };
                assert_eq!(first[0].text, item.as_bytes());
                let fault = first[0].fault.to_string();
                let expected = format!("item 1 at byte {}: ", before + at);
                assert!(fault.starts_with(&expected) && fault.contains(what), "{body}: {fault}");
            }
        }
        let none = decode(list("7,{}").into_bytes()).unwrap_err();
        assert!(none.is_sound && none.to_string().contains("item 0"), "{none}");
        assert!(!decode(list("7,{x").into_bytes()).unwrap_err().is_sound);
    }

    const LIST_START: &str = r#"{"kind":"EventList""#;

    #[test]
    fn only_the_first_items_are_kept_and_all_are_counted() {
        let many = "7,".repeat(3 * Rejected::ITEMS_MAX);
        let odd = r#"{"auditID":"a","x":"0123456789"}"#;
        let rejected = decode(list(&format!("{odd},{many}{EVENT},{odd}")).into()).unwrap().rejected;
        assert_eq!(rejected.count, 3 * Rejected::ITEMS_MAX as u64 + 2);
        assert_eq!(rejected.first.len(), Rejected::ITEMS_MAX);
        let indices: Vec<_> = rejected.first.iter().map(|item| item.fault.item).collect();
        assert_eq!(indices, (0..Rejected::ITEMS_MAX).map(Some).collect::<Vec<_>>());
        let told = rejected.told().unwrap();
        assert!(
            told.starts_with("3002 items that are not audit events, the first: item 0"),
            "{told}"
        );
        let large = format!("\"{}\"", "x".repeat(Rejected::BYTES_MAX));
        let (small, large) = (list(&format!("1,{EVENT},{large},2")), large.len());
        let mut rejected = decode(small.into()).unwrap().rejected;
        assert_eq!((rejected.count, rejected.first.len()), (3, 1), "{large}");
        rejected.append(rejected.clone());
        assert_eq!((rejected.count, rejected.first.len()), (6, 2));
    }

    #[test]
    fn every_truncation_of_a_body_is_refused_and_none_panics() {
        let body = list(&format!("{EVENT},{EVENT}"));
        for end in 0..body.len() {
            assert!(decode(body.as_bytes()[..end].to_vec()).is_err(), "{end}");
        }
    }

    #[test]
    fn members_of_nonsense_end_without_a_panic() {
        let valid = r#"{"a":"b\"","c":[{"d":"]"}],"e":1.5 , "f" : null}"#;
        for end in 0..valid.len() {
            let _count = scan::members(&valid.as_bytes()[..end]).count();
        }
        assert_eq!(scan::members(valid.as_bytes()).count(), 4);
        assert_eq!(scan::member(valid.as_bytes(), "e"), Some(b"1.5".as_slice()));
        assert_eq!(scan::member(valid.as_bytes(), "c"), Some(br#"[{"d":"]"}]"#.as_slice()));
    }

    fn json(depth: u32) -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        ];
        leaf.prop_recursive(depth, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|items| format!("[{}]", items.join(" , "))),
                prop::collection::vec((any::<String>(), inner), 0..4).prop_map(|members| {
                    let members: Vec<_> = members
                        .into_iter()
                        .map(|(key, value)| {
                            format!("{}:\n{value}", serde_json::to_string(&key).unwrap())
                        })
                        .collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        })
    }

    proptest! {
        /// Lists of random events, with random white space around their commas, must be split into
        /// the same events, in which only line breaks have become spaces.
        #[test]
        fn random_events_come_out_as_they_went_in(objects in prop::collection::vec(json(4), 1..6), gap in "[ \n\r\t]{0,3}") {
            let events: Vec<String> = objects
                .iter()
                .map(|object| format!(r#"{{"auditID":"a","requestObject":{object},"stage":"Panic"}}"#))
                .collect();
            let body = list(&events.join(&format!("{gap},{gap}")));
            let out = lines(&body);
            prop_assert_eq!(out.len(), events.len());
            for (line, event) in out.iter().zip(&events) {
                prop_assert_eq!(line.clone(), event.replace(['\n', '\r'], " "));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _refusal = decode(bytes);
        }
    }
}
