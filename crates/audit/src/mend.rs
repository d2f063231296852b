//! Replaces bytes that are not UTF-8, and marks the events in which that was necessary.
//!
//! kube-apiserver writes the body of a patch into its event as the client sent it, so a client can
//! put any bytes between two quotes. Go's reader of JSON takes such a text, and reads U+FFFD for
//! each byte that is not part of a character (`unquote` in encoding/json/decode.go). The relay does
//! the same before a body is split, so that all code that reads the event later sees valid UTF-8.

use crate::{Invalid, Rejected, Split, scan, strict};

/// The annotation of an event in which bytes that were not UTF-8 became U+FFFD. Its value is the
/// string `true`, as that of `audit.k8s.io/truncated`.
pub const NOT_UTF8: &str = "kube-audit-forwarder/invalid-utf8";

/// Does what [`strict::split`] does for a body that is not UTF-8.
pub(super) fn split(body: &[u8]) -> Result<Split, Invalid> {
    let text = mended(body);
    let strict::Checked { events, levels, rejected } = strict::split(&text).map_err(|error| {
        let before = replacements(body).take_while(|at| *at < error.byte).count();
        Invalid { byte: error.byte - before * (REPLACEMENT.len() - 1), ..error }
    })?;
    let mut own = Vec::with_capacity(text.len() + 1);
    let (mut replaced, mut mended) = (replacements(body).peekable(), 0);
    for event in events.iter().map(|event| event.range()) {
        while replaced.next_if(|at| *at < event.start).is_some() {}
        let is_mended = replaced.peek().is_some_and(|at| *at < event.end);
        let (bytes, start) = (text.as_bytes().get(event).unwrap_or_default(), own.len());
        match is_mended {
            true => annotate(bytes, NOT_UTF8, &mut own),
            false => own.extend_from_slice(bytes),
        }
        mended += u64::from(is_mended);
        without_breaks(&mut own[start..]);
        own.push(b'\n');
    }
    let rejected = Rejected::new(rejected, &text);
    let (lines, events) = (0..own.len(), events.len() as u64);
    Ok(Split { lines, events, levels, rejected, mended, own: Some(own) })
}

/// Turns the raw line breaks of valid JSON into spaces. They are white space between two tokens,
/// never part of a string.
pub(super) fn without_breaks(json: &mut [u8]) {
    let mut from = 0;
    while let Some(found) = memchr::memchr2(b'\n', b'\r', &json[from..]) {
        json[from + found] = b' ';
        from += found + 1;
    }
}

const REPLACEMENT: &str = "\u{fffd}";

/// Returns the body with U+FFFD in place of each byte that is not part of a character.
pub fn mended(body: &[u8]) -> String {
    let bad: usize = body.utf8_chunks().map(|chunk| chunk.invalid().len()).sum();
    let mut text = String::with_capacity(body.len() + bad * (REPLACEMENT.len() - 1));
    for chunk in body.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| REPLACEMENT));
    }
    text
}

/// Returns the offsets in the [`mended`] text at which a replaced byte was, in order.
fn replacements(body: &[u8]) -> impl Iterator<Item = usize> {
    let chunks = body.utf8_chunks().scan(0, |end, chunk| {
        let (start, count) = (*end + chunk.valid().len(), chunk.invalid().len());
        *end = start + count * REPLACEMENT.len();
        Some((0..count).map(move |index| start + index * REPLACEMENT.len()))
    });
    chunks.flatten()
}

/// Appends `event`, a valid event, to `out`, with the annotation `name` of the value `"true"`. An
/// event that has this annotation, or whose `annotations` are neither an object nor null, is
/// appended as it is.
pub fn annotate(event: &[u8], name: &str, out: &mut Vec<u8>) {
    let member = [b"\"", name.as_bytes(), b"\":\"true\""].concat();
    let end = event.len().saturating_sub(1);
    let (place, with) = match scan::member(event, "annotations") {
        None => (end..end, [b",\"annotations\":{", &*member, b"}"].concat()),
        Some(value) => {
            let start = value.as_ptr() as usize - event.as_ptr() as usize;
            let inside = start + 1..start + 1;
            match value.first() {
                Some(b'{') if scan::member(value, name).is_some() => (end..end, Vec::new()),
                Some(b'{') if scan::members(value).next().is_none() => (inside, member),
                Some(b'{') => (inside, [&*member, b","].concat()),
                _ if value == b"null" => {
                    (start..start + value.len(), [b"{", &*member, b"}"].concat())
                }
                _ => (end..end, Vec::new()),
            }
        }
    };
    out.extend_from_slice(event.get(..place.start).unwrap_or_default());
    out.extend_from_slice(&with);
    out.extend_from_slice(event.get(place.end..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;

    /// Pairs of bytes in a string and what Go 1.25 makes of them: `json.Unmarshal` into a string.
    const GO: [(&[u8], &str); 12] = [
        (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        (b"a\xc3b", "a\u{fffd}b"),
        // An overlong slash, and an overlong NUL of three bytes.
        (b"\xc0\xaf", "\u{fffd}\u{fffd}"),
        (b"\xe0\x80\x80", "\u{fffd}\u{fffd}\u{fffd}"),
        // A surrogate, and a pair of them.
        (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
        (b"\xed\xa0\xbd\xed\xb8\x80", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
        // Beyond U+10FFFF.
        (b"\xf4\x90\x80\x80", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
        // Sequences that end early: at the quote, and at another character.
        (b"\xe2\x82", "\u{fffd}\u{fffd}"),
        (b"\xf0\x9f\x98\xc3\xa4", "\u{fffd}\u{fffd}\u{fffd}\u{e4}"),
        (b"\x80\xbf", "\u{fffd}\u{fffd}"),
        (b"\xc3\xa4\xff\xf0\x9f\x98\x80", "\u{e4}\u{fffd}\u{1f600}"),
        (b"\xef\xbf\xbd", "\u{fffd}"),
    ];

    fn event(value: &[u8]) -> Vec<u8> {
        let (head, tail) = (br#"{"auditID":"a","stage":"Panic","x":{"y":""#, br#""}}"#);
        [&head[..], value, tail].concat()
    }

    #[test]
    fn each_byte_that_is_no_character_becomes_one_as_in_go() {
        for (bytes, text) in GO {
            let batch = decode(event(bytes)).expect("an event");
            let mark = format!(r#","annotations":{{"{NOT_UTF8}":"true"}}}}"#);
            let is_bad = std::str::from_utf8(bytes).is_err();
            let mut expected = event(text.as_bytes());
            if is_bad {
                expected.pop();
                expected.extend_from_slice(mark.as_bytes());
            }
            expected.push(b'\n');
            assert_eq!(batch.lines, expected, "{bytes:?}");
            assert_eq!(batch.mended, u64::from(is_bad), "{bytes:?}");
        }
    }

    #[test]
    fn only_the_event_with_such_bytes_changes_and_is_marked() {
        let good = event("ä".as_bytes());
        let in_name = br#"{"auditID":"b","stage":"Panic","annotations":{"k":"v"},"x":{"\xff":1}}"#;
        let in_name = in_name.escape_ascii_back();
        let body = [&good[..], b"\n", &in_name, b"\r\n", &good, b"\n", &event(b"\xff")].concat();
        let batch = decode(body).expect("lines");
        let lines: Vec<_> = batch.lines.split(|byte| *byte == b'\n').collect();
        assert_eq!((batch.events, batch.mended), (4, 2));
        assert_eq!([lines[0], lines[2]], [&good[..], &good]);
        let marked = format!(
            r#"{{"auditID":"b","stage":"Panic","annotations":{{"{NOT_UTF8}":"true","k":"v"}},"x":{{"{REPLACEMENT}":1}}}}"#
        );
        assert_eq!(lines[1], marked.as_bytes());
    }

    /// A test's text with `\xff` written out.
    trait Unescaped {
        fn escape_ascii_back(&self) -> Vec<u8>;
    }

    impl Unescaped for [u8] {
        fn escape_ascii_back(&self) -> Vec<u8> {
            let at = memchr::memmem::find(self, br"\xff").expect("an escape");
            [&self[..at], b"\xff", &self[at + 4..]].concat()
        }
    }

    #[test]
    fn such_bytes_outside_of_strings_are_refused_at_their_own_byte() {
        for (body, expected) in [
            (&b"\xff"[..], "at byte 0: not JSON"),
            (b"{\"auditID\":\"\xff\xff\",\xff", "byte 16: not JSON"),
        ] {
            let refusal = decode(body.to_vec()).expect_err("not JSON").to_string();
            assert!(refusal.contains(expected), "{refusal}");
        }
    }

    #[test]
    fn an_annotation_is_added_once_and_to_each_form_of_annotations() {
        for (before, after) in [
            (r#"{"a":1}"#, r#"{"a":1,"annotations":{"n":"true"}}"#),
            (r#"{"annotations":{},"a":1}"#, r#"{"annotations":{"n":"true"},"a":1}"#),
            (r#"{"annotations": { "b":"c"} }"#, r#"{"annotations": {"n":"true", "b":"c"} }"#),
            (r#"{"annotations":null}"#, r#"{"annotations":{"n":"true"}}"#),
            (r#"{"annotations":{"n":"x"}}"#, r#"{"annotations":{"n":"x"}}"#),
            (r#"{"annotations":"x"}"#, r#"{"annotations":"x"}"#),
        ] {
            let mut out = Vec::new();
            annotate(before.as_bytes(), "n", &mut out);
            assert_eq!(String::from_utf8(out).as_deref(), Ok(after));
        }
    }
}
