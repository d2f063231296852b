//! Finds the events in one line of a file, by the rules of a relay.
//!
//! A line may be an event, as in the audit.log of kube-apiserver and OpenShift. A node's name may
//! be in front, as `oc adm node-logs` prints it, or a time, as CloudWatch and container runtimes
//! write it. A line may also be a dead letter with its event, an EventList, as the webhook sends
//! it, or an array or record with events in it (`wrapping`). Of an event, only line breaks are
//! changed.

use std::ops::Range;

use audit::wrapping::{self, Unwrapped};
use audit::{EVENT_HEAD, Invalid, LIST_HEAD};

/// The maximum bytes of a node's name, which is a DNS subdomain (RFC 1123).
const NODE_BYTES_MAX: usize = 253;

/// The bytes with which some programs begin a UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The message for a part of a line, as container runtimes write it.
const PARTIAL: &str = "a container runtime has cut this line into parts (P): join them with `awk \
     '{t=$3; sub(/^[^ ]+ [^ ]+ [^ ]+ /, \"\"); printf \"%s\", $0 (t == \"P\" ? \"\" : \"\\n\")}' FILE`";

/// The events of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The range of the events in the rewritten line.
    pub(super) range: Range<usize>,
    /// A message about the records of the line that can't be used, if there are any.
    pub(super) others: Option<String>,
}

impl From<Range<usize>> for Found {
    fn from(range: Range<usize>) -> Self {
        Self { range, others: None }
    }
}

/// Finds the events in `line`, whose last byte must be `\n`. Rewrites the line so that a `\n`
/// follows each event, and returns the range of the events, which is empty if the line has none.
/// `Err` is the fault of the line.
pub(super) fn find(line: &mut Vec<u8>) -> Result<Found, String> {
    if is_usual(line) {
        return Ok((0..line.len()).into());
    }
    if line.starts_with(BYTE_ORDER_MARK) {
        line.drain(..BYTE_ORDER_MARK.len());
    }
    if line.trim_ascii().is_empty() {
        return Ok((0..0).into());
    }
    let (start, end) = (prefix_bytes(line)?, line.len());
    let as_event = match decode(line, start..end) {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    // A record around the event is looked for last, so that every event is sent unchanged, even one
    // that looks like a dead letter.
    let Ok(text) = str::from_utf8(&line[start..]) else { return Err(as_event) };
    let mut found = Unwrapped::default();
    let unwrapped = wrapping::unwrap(text, wrapping::DEPTH_MAX, &mut found);
    unwrapped.map_err(|what| what.unwrap_or(as_event))?;
    let others = found.told();
    *line = found.events;
    Ok(Found { range: 0..line.len(), others })
}

/// Returns `true` if the line is exactly one event as kube-apiserver logs it; `false` proves
/// nothing. The event is checked without `kind` and `apiVersion`, as the only event of a list: the
/// scanner for lists is several times as fast as the check of a single event.
fn is_usual(line: &[u8]) -> bool {
    let rest = line.strip_prefix(EVENT_HEAD).and_then(|rest| rest.strip_suffix(b"\n"));
    let Some(rest) = rest else { return false };
    // The last byte is room that the scanner needs.
    let mut list = [LIST_HEAD, b"{", rest, b"]}\n"].concat();
    let split = audit::scan_in_place(audit::Isa::best(), &mut list);
    // An event that spans the whole text proves that the text has not ended the list early.
    let whole = LIST_HEAD.len()..list.len() - 2;
    split.is_some_and(|split| split.events == 1 && split.lines == whole)
}

/// Finds the events in this range of the line, by the rules of a relay. The last byte of the range
/// is not read: it is room for a `\n`. `Err` is the fault of the line.
fn decode(line: &mut Vec<u8>, range: Range<usize>) -> Result<Found, String> {
    let Range { start, .. } = range;
    let body = line.get_mut(range).unwrap_or_default();
    let split = audit::decode_in_place(body)
        .map_err(|Invalid { byte, what, .. }| format!("at byte {}: {what}", byte + start))?;
    let others = split.rejected.told();
    let range = match split.own {
        Some(own) => {
            *line = own;
            split.lines
        }
        None => split.lines.start + start..split.lines.end + start,
    };
    Ok(Found { range, others })
}

/// Returns the length in bytes of a prefix before the JSON text: a node's name, or a time and the
/// words after it, such as `2026-11-25T18:00:00Z stdout F `. 0 if no such prefix is found. `Err` if
/// a container runtime has marked the line as a part of a longer one (`P`).
fn prefix_bytes(line: &[u8]) -> Result<usize, String> {
    let Some(brace) = memchr::memchr(b'{', &line[..line.len().min(NODE_BYTES_MAX + 16)]) else {
        return Ok(0);
    };
    let prefix = line[..brace].trim_ascii_end();
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_time = prefix.get(..8).is_some_and(|date| {
        let digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
        digits(&date[..4]) && digits(&date[5..7]) && date[4] == b'-' && date[7] == b'-'
    });
    let words: Vec<&[u8]> = prefix.split(u8::is_ascii_whitespace).collect();
    if let (true, [_, b"stdout" | b"stderr", b"P", ..]) = (is_time, &*words) {
        return Err(PARTIAL.to_owned());
    }
    let is_prefix = prefix.len() < brace && (is_time || prefix.iter().all(is_name));
    Ok(if is_prefix && !prefix.is_empty() { brace } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::corpus_file;

    /// Method: each recorded line, and each with a byte changed, left out, doubled or swapped. If
    /// the scanner accepts a line, the check of a single event must accept it unchanged.
    #[test]
    fn the_scanner_takes_recorded_lines_and_nothing_that_is_not_an_event() {
        let mut random = fastrand::Rng::with_seed(32);
        let (log, mut usual) = (corpus_file("audit.log"), 0);
        let check = |line: &[u8]| {
            let (is_usual, mut own) = (is_usual(line), line.to_vec());
            let found = decode(&mut own, 0..line.len());
            assert!(
                !is_usual || found == Ok((0..line.len()).into()) && own == line,
                "{found:?}: {}",
                String::from_utf8_lossy(line)
            );
            is_usual
        };
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            usual += usize::from(check(line));
            for _ in 0..20 {
                let (mut other, at) = (line.to_vec(), random.usize(..line.len()));
                match random.u8(..4) {
                    0 => drop(other.remove(at)),
                    1 => other.insert(at, line[at]),
                    2 => other[at] = *random.choice(b"\"{}[],:\\ \n\x00\xff0e").unwrap(),
                    _ => other.swap(at, random.usize(..line.len())),
                }
                check(&other);
            }
        }
        assert!(usual > 450, "{usual}");
        let head = std::str::from_utf8(EVENT_HEAD).unwrap();
        let own = r#""auditID":"a","stage":"Panic""#;
        for rest in [
            format!("{own}}},{{{own}}}"),
            format!("{own}}}],\"x\":[{{{own}}}"),
            format!("{own}}}],\"x\":{{\"y\":[{{{own}}}"),
            format!("\"kind\":\"Pod\",{own}}}"),
            format!("{own}}} "),
            "}".to_owned(),
            String::new(),
        ] {
            check(format!("{head}{rest}\n").as_bytes());
        }
    }

    const EVENT: &str = r#"{"auditID":"a","stage":"Panic","n":1e400}"#;
    const LOGGED: &str =
        r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"a","stage":"Panic"}"#;

    fn events(text: &str) -> Result<Vec<String>, String> {
        let mut line = format!("{text}\n").into_bytes();
        let found = find(&mut line)?;
        let lines = std::str::from_utf8(&line[found.range]).unwrap().split_inclusive('\n');
        Ok(lines.map(|event| event.strip_suffix('\n').unwrap().to_owned()).collect())
    }

    #[test]
    fn an_event_is_found_in_each_form_of_a_line_and_not_changed() {
        for event in [EVENT, LOGGED] {
            let letter =
                format!(r#"{{"time":"t","output":"o","reason":"\"event\":{{}}","event":{event}}}"#);
            let list = format!(
                r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{event}, {event}]}}"#
            );
            for (line, count) in [
                (event.to_owned(), 1),
                (format!("{event}\r"), 1),
                (format!("  {event} "), 1),
                (format!("master-0.example.com {event}"), 1),
                (format!("ip-10-0-1-2\t {event}"), 1),
                (letter.clone(), 1),
                (format!("node_1 {letter}"), 1),
                (letter.replace(',', " , ").replacen(" , ", ",", 0), 1),
                (list, 2),
            ] {
                let wanted = if line.contains(" , ") && line.contains("reason") {
                    event.replace(',', " , ")
                } else {
                    event.to_owned()
                };
                assert_eq!(events(&line).as_deref(), Ok(vec![wanted; count].as_slice()), "{line}");
            }
        }
        assert_eq!(events(""), Ok(Vec::new()));
        assert_eq!(events(" \r"), Ok(Vec::new()));
        let nothing = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[]}"#;
        assert_eq!(events(nothing), Ok(Vec::new()));
    }

    /// Two events, of which each form of a record can hold one or both.
    #[test]
    fn no_event_of_a_record_is_left_out_in_silence() {
        let other = LOGGED.replace(r#""a""#, r#""b""#);
        let text = |event: &str| serde_json::to_string(event).unwrap();
        let (one, two) = (text(LOGGED), text(&other));
        for (line, wanted) in [
            (format!(r#"{{"log":{one},"stream":"stdout","log":{two}}}"#), "log stands twice"),
            (format!(r#"{{"log":{one},"l\u006fg":{two}}}"#), "log stands twice"),
            (format!(r#"{{"properties":{{"log":{one},"log":{one}}}}}"#), "log stands twice"),
            (
                format!(r#"{{"logEvents":[{{"message":{one}}}],"logEvents":[]}}"#),
                "logEvents stands twice",
            ),
            (r#"{"records":["junk",7]}"#.to_owned(), "records: element 1"),
            (
                format!(r#"{{"records":[{two},"junk"],"message":{one}}}"#),
                "records and message have different events",
            ),
            (
                format!(r#"{{"log":{one},"message":{two}}}"#),
                "log and message have different events",
            ),
        ] {
            let error = events(&line).expect_err(&line);
            assert!(error.contains(wanted), "{line}: {error}");
        }
        for line in [
            format!(r#"{{"event":{{"dataset":"kubernetes"}},"message":{one}}}"#),
            format!(r#"{{"event":{{"original":{one}}},"log":{{"offset":1}},"message":{one}}}"#),
            format!(r#"{{"event":{{"original":{one}}}}}"#),
            format!(r#"{{"stream":"stderr","log":{one},"stream":"stdout"}}"#),
        ] {
            assert_eq!(events(&line), Ok(vec![LOGGED.to_owned()]), "{line}");
        }
    }

    /// Exports of Azure and CloudWatch have the lines of other components between the events.
    #[test]
    fn records_of_other_categories_are_told_beside_the_events() {
        let text = serde_json::to_string(LOGGED).unwrap();
        let azure = |log: &str| format!(r#"{{"category":"x","properties":{{"log":{log}}}}}"#);
        let other = azure(r#""I1125 httplog.go:109] verb=\"GET\"""#);
        let watch = format!(r#"{{"message":{text}}}"#);
        for (line, count, others) in [
            (format!(r#"{{"records":[{other},{},{other}]}}"#, azure(&text)), 1, "2 records that"),
            (format!(r#"[{watch},{{"message":"x"}},{watch}]"#), 2, "one record that"),
            (format!(r#"{{"logEvents":[{watch},{{}},7,[{watch},1]]}}"#), 2, "3 records that"),
        ] {
            let mut bytes = format!("{line}\n").into_bytes();
            let found = find(&mut bytes).unwrap();
            assert_eq!(bytes, format!("{LOGGED}\n").repeat(count).into_bytes(), "{line}");
            let told = found.others.unwrap();
            assert!(told.starts_with(others) && told.contains("element"), "{line}: {told}");
        }
        let nothing = format!(r#"{{"records":[{other},{other}]}}"#);
        assert!(events(&nothing).unwrap_err().contains("records: element 1"));
    }

    #[test]
    fn what_is_no_event_is_refused_with_its_byte_in_the_line() {
        for (line, wanted) in [
            ("hello", "not JSON"),
            ("hello {", "not JSON"),
            (r#"two words {"auditID":"a","stage":"Panic"}"#, "not JSON"),
            (r#"node {"auditID":"","stage":"Panic"}"#, "at byte 16: auditID is empty"),
            (r#"{"auditID":"a","stage":"Panic"} x"#, "not JSON"),
            (
                r#"{"auditID":"a","stage":"Panic"} {"auditID":"a","stage":"Panic"}"#,
                "two events on one line",
            ),
            (r#"{"auditID":"a","stage":"Panic""#, "at byte"),
            (
                r#"{"time":"t","output":"o","reason":"r","event":{"auditID":"a"}}"#,
                "event: stage is missing",
            ),
            (
                r#"{"output":"o","reason":"r","evil":{"auditID":"a","stage":"Panic"}}"#,
                "at byte 0: auditID is missing",
            ),
        ] {
            let error = events(line).expect_err(line);
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced_as_a_relay_replaces_them() {
        let line = b"node {\"auditID\":\"\xff\",\"stage\":\"Panic\"}\n";
        let expected = audit::decode(line[5..].to_vec()).unwrap().lines;
        let mut line = line.to_vec();
        let found = find(&mut line).unwrap();
        assert_eq!(line[found.range], expected);
        assert!(str::from_utf8(&expected).unwrap().contains(audit::NOT_UTF8));
    }

    #[test]
    fn items_of_a_list_that_are_not_events_are_told_beside_the_events() {
        let list = format!(
            r#"{{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{EVENT},{{}},{EVENT}]}}"#
        );
        let mut line = format!("{list}\n").into_bytes();
        let found = find(&mut line).unwrap();
        assert_eq!(line[found.range], *format!("{EVENT}\n{EVENT}\n").as_bytes());
        assert!(found.others.unwrap().contains("auditID is missing"));
    }
}
