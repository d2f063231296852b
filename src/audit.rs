//! A request body becomes a batch of JSON lines.
//!
//! [`decode`] accepts what kube-apiserver's audit webhook sends (an `EventList` of `audit.k8s.io/v1`), a single `Event`,
//! and JSON lines of Events. It checks every event and splits in place: the separating commas become line breaks, head
//! and tail are cut off, no event is copied or parsed into a tree, and every byte of an event stays as it was received
//! (raw line breaks between its tokens aside, which become spaces).
//!
//! What is written as kube-apiserver writes it is found valid by `fast`, where the CPU has the instructions. For all
//! else serde_json alone decides what is JSON (`strict`); `event` then says whether it is an audit event.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;

mod event;
#[cfg(target_arch = "x86_64")]
mod fast;
pub mod pieces;
pub mod request;
pub mod scan;
mod strict;

/// The group and version of the events, and the only one (the beta versions ended with Kubernetes 1.24).
pub const API_VERSION: &str = "audit.k8s.io/v1";

/// What kube-apiserver, and whoever writes as it does, puts in front of the events of a list.
pub(crate) const LIST_HEAD: &[u8] =
    br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;

/// Deepest nesting of an event, its own braces included. Consumers' parsers give up between 64 and a few thousand levels.
pub const DEPTH_MAX: usize = 1000;

/// The values of the label `level`, in the order of [`Batch::levels`]: upstream's four, and all else.
pub const LEVELS: [&str; 5] = ["None", "Metadata", "Request", "RequestResponse", "other"];

/// Number of events by level, in the order of [`LEVELS`].
pub type LevelCounts = [u64; LEVELS.len()];

/// A checked body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Each event followed by one `\n`; no other line break. Empty where the list is.
    pub lines: Bytes,
    /// Number of events.
    pub events: u64,
    /// The same by level.
    pub levels: LevelCounts,
}

/// Why a body was not taken, for the sender: one sentence that names byte and item, and quotes nothing but a kind or version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Offset in the (decompressed) body.
    pub byte: usize,
    /// Index in `items`, or of the line's event; absent where the envelope is at fault.
    pub item: Option<usize>,
    /// What is wrong.
    pub what: Cow<'static, str>,
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

/// What [`decode_in_place`] has made of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Where the lines are now: each event followed by one `\n`; no other line break. Empty where the list is.
    pub lines: Range<usize>,
    /// Number of events.
    pub events: u64,
    /// The same by level.
    pub levels: LevelCounts,
}

/// [`decode_in_place`] for who has a vector.
///
/// # Errors
///
/// As [`decode_in_place`].
pub fn decode(mut body: Vec<u8>) -> Result<Batch, Invalid> {
    body.push(b'\n');
    let Split { lines, events, levels } = decode_in_place(&mut body)?;
    Ok(Batch { lines: Bytes::from(body).slice(lines), events, levels })
}

/// Checks a body and splits it where it is; the last byte of the slice is not the body's, but room for the last line's
/// end. It is taken whole or not at all.
///
/// # Errors
///
/// [`Invalid`] where the body is not JSON, is none of the accepted forms, or one of its events is not an audit event.
pub fn decode_in_place(body_and_room: &mut [u8]) -> Result<Split, Invalid> {
    let body = body_and_room.split_last().map_or(&[][..], |(_, body)| body);
    #[cfg(target_arch = "x86_64")]
    if let Some((events, levels)) = fast::Isa::best().and_then(|isa| fast::split(isa, body)) {
        let lines = end_lines(body_and_room, &events);
        return Ok(Split { lines, events: events.len() as u64, levels });
    }
    let text = match std::str::from_utf8(body) {
        Ok(text) => text,
        Err(error) => {
            let (byte, what) = (error.valid_up_to(), "not valid UTF-8".into());
            return Err(Invalid {
                byte,
                item: item_at(body.get(..byte).unwrap_or_default()),
                what,
            });
        }
    };
    let (events, levels) = strict::split(text)?;
    let lines = join(body_and_room, &events);
    Ok(Split { lines, events: events.len() as u64, levels })
}

/// [`decode_in_place`] for a part of JSON lines that is not the first: every line is an event, and
/// none a list.
fn decode_lines_in_place(lines_and_room: &mut [u8]) -> Result<Split, Invalid> {
    let lines = lines_and_room.split_last().map_or(&[][..], |(_, lines)| lines);
    let text = std::str::from_utf8(lines).map_err(|error| Invalid {
        byte: error.valid_up_to(),
        item: None,
        what: "not valid UTF-8".into(),
    })?;
    let (events, levels) = strict::split_lines(text)?;
    let lines = join(lines_and_room, &events);
    Ok(Split { lines, events: events.len() as u64, levels })
}

/// The item in which a body that is valid so far breaks off.
fn item_at(before: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(before).ok()?;
    // What is wrong with it before its end is of no interest here.
    let broken_off = strict::split(text).err().filter(|error| error.byte + 1 >= before.len());
    broken_off.and_then(|error| error.item)
}

/// Where an event is. Half the size of a range: of the smallest events, a body holds one in 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// `None` beyond 4 GiB.
    fn new(start: usize, end: usize) -> Option<Self> {
        Some(Self { start: u32::try_from(start).ok()?, end: u32::try_from(end).ok()? })
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    fn len(self) -> usize {
        self.range().len()
    }

    /// Appends it to the events of a text of so many bytes.
    fn push_to(self, events: &mut Vec<Self>, text: usize) {
        if events.len() == events.capacity() {
            // Room for as many of its size as the rest of the text may hold, and if that was too few, of the smallest: what
            // grows by doubling needs its size half again each time, and leaves as much behind.
            let size = if events.is_empty() { self.len() } else { EVENT_BYTES_MIN };
            events.reserve_exact((text - self.range().start) / (size + 1) + 1);
        }
        events.push(self);
    }
}

/// The shortest text that is an event: `{"auditID":"a","stage":"Panic"}`.
const EVENT_BYTES_MIN: usize = 31;

/// Makes each event one line, in place, and returns where the lines are.
fn join(body: &mut [u8], events: &[Span]) -> Range<usize> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return 0..0 };
    let (start, end) = (first.range().start, last.range().end);
    // In valid JSON a raw line break is white space between tokens.
    let mut from = start;
    while let Some(found) = memchr::memchr2(b'\n', b'\r', &body[from..end]) {
        body[from + found] = b' ';
        from += found + 1;
    }
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

/// [`join`] for events that one byte divides.
fn end_lines(body: &mut [u8], events: &[Span]) -> Range<usize> {
    for event in events {
        body[event.range().end] = b'\n';
    }
    let start = events.first().map_or(0, |event| event.range().start);
    start..events.last().map_or(0, |event| event.range().end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::corpus;
    use proptest::prelude::*;

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
            // kube-apiserver writes compact JSON: putting head, commas and tail back must give its very bytes.
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
    fn the_lines_of_an_audit_log_pass_unchanged() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/audit.log");
        let log = std::fs::read(path).unwrap();
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
        // The first of duplicate keys counts, and a key may be written with escapes.
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
                // While it grows, both are there.
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
        let body = list(
            &[
                of("None"),
                of("Request"),
                of("Request"),
                of("RequestResponse"),
                of("Loud"),
                EVENT.into(),
            ]
            .join(","),
        );
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
        assert!(refusal(&list(&deep(DEPTH_MAX + 1))).contains("nested more than 1000 deep"));
        assert!(refusal(&deep(3_000_000)).contains("nested more than 1000 deep"));
    }

    #[test]
    fn refusals_name_the_byte_and_the_item() {
        let cases = [
            ("", "at byte 0: the body is empty"),
            (" \r\n", "at byte 0: the body is empty"),
            ("hello", "not JSON"),
            ("[]", "not an audit event"),
            ("null", "not an audit event"),
            ("7", "not an audit event"),
            ("{}", "item 0 at byte 0: auditID is missing"),
            (r#"{"auditID":"a"}"#, "stage is missing"),
            (r#"{"auditID":7,"stage":"Panic"}"#, "item 0 at byte 11: auditID is no string"),
            (r#"{"auditID":"","stage":"Panic"}"#, "item 0 at byte 11: auditID is empty"),
            (r#"{"auditID":"a","stage":"panic"}"#, "item 0 at byte 23: stage is none of"),
            (r#"{"auditID":"a","stage":null}"#, "stage is none of"),
            (r#"{"kind":"Pod","auditID":"a","stage":"Panic"}"#, r#"kind is "Pod""#),
            (r#"{"auditID":"a","stage":"Panic","kind":"Event"}"#, "apiVersion is missing"),
            (
                r#"{"auditID":"a","stage":"Panic","apiVersion":"audit.k8s.io/v1"}"#,
                "kind is not Event",
            ),
            (
                r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1beta1","auditID":"a","stage":"Panic"}"#,
                "ended with Kubernetes 1.24",
            ),
            (
                r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1alpha1","items":[]}"#,
                "ended with Kubernetes 1.24",
            ),
            (r#"{"kind":"EventList","items":[]}"#, "apiVersion is missing"),
            (r#"{"apiVersion":"audit.k8s.io/v1","items":[]}"#, "kind is missing"),
            (r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1"}"#, "items is missing"),
            (
                r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":null}"#,
                "items is no array",
            ),
            (
                r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":{"a":[1]}}"#,
                "items is no array",
            ),
            (
                r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[],"items":[]}"#,
                "items is there twice",
            ),
            (r#"{"kind":7,"items":[]}"#, "kind is no string"),
        ];
        for (body, expected) in cases {
            let refusal = refusal(body);
            assert!(refusal.contains(expected), "{body} gives {refusal}");
        }
        let start = list("").len() - 2;
        let second = start + EVENT.len() + 1;
        let item = |items: &str| refusal(&list(items));
        assert!(
            item(&format!("{EVENT},7"))
                .starts_with(&format!("item 1 at byte {second}: not an object"))
        );
        assert!(
            item(&format!("{EVENT},{{}}"))
                .starts_with(&format!("item 1 at byte {second}: auditID is missing"))
        );
        assert!(
            item(&format!("{EVENT},{{x"))
                .starts_with(&format!("item 1 at byte {}: not JSON", second + 1))
        );
        assert!(item(&format!("{EVENT} {EVENT}")).contains("item 1"));
        assert!(item(&format!("{EVENT},")).contains("item 1"));
        assert!(
            refusal(&format!("{EVENT} {EVENT}"))
                .starts_with("item 1 at byte 51: two events on one line")
        );
        assert!(
            refusal(&format!("{EVENT}\n{}", list(EVENT)))
                .contains("item 1 at byte 59: kind is not Event")
        );
        assert!(
            refusal(&format!("{}\n{}", list(EVENT), list(EVENT)))
                .contains("more follows after the EventList")
        );
        assert!(refusal(&format!("{EVENT}\n{{")).starts_with("item 1 at byte "));
        let mut broken = EVENT.as_bytes().to_vec();
        broken[12] = 0xff;
        assert_eq!(decode(broken).unwrap_err().to_string(), "at byte 12: not valid UTF-8");
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
        /// Against serde_json's tree: the same events, each still the same value.
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
