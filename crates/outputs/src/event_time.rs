//! The times of an event, for protocols that put a time next to the event.

use std::sync::LazyLock;

use memchr::memmem::{Finder, FinderRev};

use audit::scan;
use audit::time::is_timestamp;
use transform::shape;

/// Returns the value of `stageTimestamp`, without quotes, if the value is a valid TIMESTAMP of RFC
/// 5424 (§6.2.3); kube-apiserver writes such values. For a document in another shape, returns the
/// time at the beginning of the document.
pub(crate) fn stage_time(event: &[u8]) -> Option<&[u8]> {
    if let Some(time) = shape::time_of(event) {
        return Some(time);
    }
    let written = timestamp_at_the_end(event);
    valid(written.or_else(|| scan::member(event, "stageTimestamp")))
}

/// Returns the value of `requestReceivedTimestamp`, without quotes, if it is a valid TIMESTAMP.
pub(crate) fn request_time(event: &[u8]) -> Option<&[u8]> {
    valid(scan::member(event, "requestReceivedTimestamp"))
}

/// Returns the text of a JSON string, without quotes, if it is a valid TIMESTAMP.
fn valid(value: Option<&[u8]>) -> Option<&[u8]> {
    value.and_then(scan::inner).filter(|time| is_timestamp(time))
}

const STAGE_TIMESTAMP: &[u8] = b"\"stageTimestamp\":";

/// The maximum bytes at the end of an event that are searched forwards. A forward search compares
/// many bytes in one step, and a backward search does not. In 99 of 100 recorded events of
/// kube-apiserver, the time and the annotations after it have at most 200 bytes.
const TAIL: usize = 256;

/// Returns the value of `stageTimestamp`, with quotes, if the event is as kube-apiserver writes it:
/// the member is the last one, or only `annotations` follows. Without this search, the walk over
/// all members would take a fifth of the CPU time of a syslog output.
fn timestamp_at_the_end(event: &[u8]) -> Option<&[u8]> {
    static FORWARDS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(STAGE_TIMESTAMP));
    static BACKWARDS: LazyLock<FinderRev<'static>> =
        LazyLock::new(|| FinderRev::new(STAGE_TIMESTAMP));
    let tail = event.len().saturating_sub(TAIL);
    let in_tail = FORWARDS.find_iter(event.get(tail..)?).last().map(|at| tail + at);
    let from = in_tail.or_else(|| BACKWARDS.rfind(event))? + STAGE_TIMESTAMP.len();
    let rest = event.get(from..)?;
    let length = memchr::memchr(b'"', rest.get(1..)?)? + 2;
    let (value, behind) = rest.split_at_checked(length)?;
    // The member belongs to the event itself, and not to an object inside the event, if exactly one
    // closing brace is left after it and its annotations.
    let is_last = match behind.strip_prefix(b",\"annotations\":") {
        None => behind == b"}",
        Some(annotations) => ends_event(annotations),
    };
    is_last.then_some(value)
}

/// Returns `true` if `text` is an object, followed by the brace that ends the event. The event is
/// valid JSON: if the last two bytes are the only closing braces, the first of them ends the
/// object, and the second one ends the event. If there are other closing braces, perhaps in
/// strings, the object is parsed.
fn ends_event(text: &[u8]) -> bool {
    if text.first() != Some(&b'{') {
        return false;
    }
    let ends_at_once = memchr::memchr(b'}', text).is_some_and(|at| text.get(at..) == Some(b"}}"));
    ends_at_once || scan::value_end(text).and_then(|end| text.get(end..)) == Some(b"}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timestamp_is_the_events_own_wherever_it_stands() {
        let own = "2026-11-20T06:24:22.439323Z";
        let inner = r#""stageTimestamp":"1999-01-01T00:00:00Z""#;
        for event in [
            format!(r#"{{"a":{{{inner}}},"stageTimestamp":"{own}"}}"#),
            format!(r#"{{"stageTimestamp":"{own}","a":{{{inner}}}}}"#),
            format!(r#"{{"stageTimestamp":"{own}","annotations":{{"a":"}}"}}}}"#),
            format!(r#"{{"stageTimestamp":"{own}","annotations":{{{inner}}}}}"#),
            format!(
                r#"{{"stageTimestamp":"{own}","annotations":{{"b":{{{inner},"annotations":{{}}}}}}}}"#
            ),
            format!(r#"{{"stageTimestamp" : "{own}" }}"#),
            format!(r#"{{"a":"\"stageTimestamp\":","stageTimestamp":"{own}","b":1}}"#),
        ] {
            assert_eq!(stage_time(event.as_bytes()), Some(own.as_bytes()), "{event}");
        }
        // Annotations of many lengths, so that the name of the member lies within the searched
        // tail, before it, and across its beginning.
        for length in TAIL - 80..TAIL {
            let long = "x".repeat(length);
            let event = format!(
                r#"{{"a":{{{inner}}},"stageTimestamp":"{own}","annotations":{{"b":"{long}"}}}}"#
            );
            assert_eq!(stage_time(event.as_bytes()), Some(own.as_bytes()), "{event}");
        }
        for none in [
            format!(r#"{{"a":{{{inner},"annotations":null}}}}"#),
            format!(r#"{{"a":{{{inner},"annotations":{{}}}}}}"#),
            format!(r#"{{"a":{{{inner},"annotations":"{{"}}}}"#),
            format!(r#"{{"a":[{{{inner},"annotations":{{}}}}]}}"#),
            format!(r#"{{"a":{{{inner}}}}}"#),
            r#"{"stageTimestamp":"}"#.to_owned(),
            r#"{"stageTimestamp":7}"#.to_owned(),
        ] {
            assert_eq!(stage_time(none.as_bytes()), None, "{none}");
        }
    }
}
