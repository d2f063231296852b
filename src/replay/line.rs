//! Finds the events in one line of a file, by the rules by which a relay accepts them.
//!
//! A line may be an event, as in the audit.log of kube-apiserver and OpenShift; an event after a
//! node's name, as `oc adm node-logs` prints it; a dead letter with its event; or an EventList, as
//! the webhook sends it. The events are not changed.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::audit;
use crate::audit::EVENT_HEAD;
use crate::audit::Invalid;
use crate::audit::LIST_HEAD;

/// The longest name of a node, in bytes. A node's name is a DNS subdomain (RFC 1123).
const NODE_BYTES_MAX: usize = 253;

/// The members of a dead letter, as `src/delivery/dead_letter.rs` writes them.
#[derive(Deserialize)]
struct Letter<'a> {
    #[serde(rename = "time")]
    _time: &'a RawValue,
    #[serde(rename = "output")]
    _output: &'a RawValue,
    #[serde(rename = "reason")]
    _reason: &'a RawValue,
    #[serde(borrow)]
    event: &'a RawValue,
}

/// Finds the events in `line`, whose last byte must be `\n`. Rewrites the line in place so that
/// each event is followed by `\n`, and returns the range of the events; the range is empty for an
/// empty line. `Err` says what is wrong with the line.
pub(super) fn find(line: &mut [u8]) -> Result<Range<usize>, String> {
    if line.trim_ascii().is_empty() {
        return Ok(0..0);
    }
    if is_usual(line) {
        return Ok(0..line.len());
    }
    let start = node_bytes(line);
    let as_event = match decode(line, start..line.len()) {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    // The line is tried as a dead letter only after it was tried as an event. Every event is sent
    // as it is, even an event that looks like a letter.
    match event_of_letter(line, start) {
        // The byte after the event belongs to the letter. The event needs it for its `\n`.
        Some(event) => decode(line, event.start..event.end + 1)
            .map_err(|error| format!("the event of a dead letter, {error}")),
        None => Err(as_event),
    }
}

/// Returns `true` if the line is an event as kube-apiserver logs it, and nothing else; `false` says
/// nothing. The event is checked as the only one of a list, whose events have no kind, because the
/// scanner for such lists is several times as fast as the check of a single event.
fn is_usual(line: &[u8]) -> bool {
    let rest = line.strip_prefix(EVENT_HEAD).and_then(|rest| rest.strip_suffix(b"\n"));
    let Some(rest) = rest else { return false };
    // The last byte is the room that the scanner needs.
    let mut list = [LIST_HEAD, b"{", rest, b"]}\n"].concat();
    #[cfg(target_arch = "x86_64")]
    let split = audit::Isa::best().and_then(|isa| audit::scan_in_place(isa, &mut list));
    #[cfg(not(target_arch = "x86_64"))]
    let split = None::<audit::Split>;
    // If the text has been the whole of one event, it cannot have ended the list by itself.
    let whole = LIST_HEAD.len()..list.len() - 2;
    split.is_some_and(|split| split.events == 1 && split.lines == whole)
}

/// Finds the events in this range of the line, by the rules by which a relay accepts events. The
/// last byte of the range is not read: it is room for a `\n`. Returns the range of the events,
/// counted from the beginning of the line. `Err` says what is wrong with the line.
fn decode(line: &mut [u8], range: Range<usize>) -> Result<Range<usize>, String> {
    let Range { start, .. } = range;
    let body = line.get_mut(range).unwrap_or_default();
    match audit::decode_in_place(body) {
        Ok(split) => Ok(split.lines.start + start..split.lines.end + start),
        Err(Invalid { byte, what, .. }) => Err(format!("at byte {}: {what}", byte + start)),
    }
}

/// Returns the length in bytes of a node's name and the white space after it at the beginning of
/// the line; 0 if the line does not begin with a node's name.
fn node_bytes(line: &[u8]) -> usize {
    let Some(brace) = memchr::memchr(b'{', &line[..line.len().min(NODE_BYTES_MAX + 16)]) else {
        return 0;
    };
    let name = line[..brace].trim_ascii_end();
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_prefix = !name.is_empty() && name.len() < brace && name.iter().all(is_name);
    if is_prefix { brace } else { 0 }
}

/// Returns the range of the event in a dead letter, which begins at `start` in the line; `None` if
/// the line is not a dead letter.
fn event_of_letter(line: &[u8], start: usize) -> Option<Range<usize>> {
    let letter: Letter<'_> = serde_json::from_slice(line.get(start..)?).ok()?;
    let event = letter.event.get();
    let at = event.as_ptr() as usize - line.as_ptr() as usize;
    Some(at..at + event.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::corpus_file;

    /// Method: each recorded line, and each with a byte changed, left out or doubled. What the
    /// scanner takes, the check of a single event must take as it is.
    #[test]
    fn the_scanner_takes_recorded_lines_and_nothing_that_is_not_an_event() {
        let mut random = fastrand::Rng::with_seed(32);
        let (log, mut usual) = (corpus_file("audit.log"), 0);
        let check = |line: &[u8]| {
            let (is_usual, mut own) = (is_usual(line), line.to_vec());
            let found = decode(&mut own, 0..line.len());
            assert!(
                !is_usual || found == Ok(0..line.len()) && own == line,
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
        assert!(usual > 450 || !cfg!(target_arch = "x86_64"), "{usual}");
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
        let lines = std::str::from_utf8(&line[found]).unwrap().split_inclusive('\n');
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
                "the event of a dead letter, at byte 46: stage is missing",
            ),
            (
                r#"{"output":"o","reason":"r","event":{"auditID":"a","stage":"Panic"}}"#,
                "at byte 0: auditID is missing",
            ),
        ] {
            let error = events(line).expect_err(line);
            assert!(error.contains(wanted), "{line}: {error}");
        }
        let mut line = b"{\"auditID\":\"\xff\",\"stage\":\"Panic\"}\n".to_vec();
        assert_eq!(find(&mut line).err().as_deref(), Some("at byte 12: not valid UTF-8"));
    }
}
