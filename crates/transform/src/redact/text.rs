//! Resolves the escapes of JSON strings and URIs, and finds the position at which each byte of the
//! resolved text was written.
//!
//! A lone surrogate becomes U+FFFD, as in Go, and the text after it is read as usual.

use std::borrow::Cow;
use std::ops::Range;

/// The text that replaces a credential or a token.
pub(super) const REDACTED: &[u8] = b"REDACTED";

/// Resolves the escapes in `raw`, the text between the quotes of a JSON string.
pub(super) fn unescape(raw: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = memchr::memchr(b'\\', raw) else { return Cow::Borrowed(raw) };
    let mut text = Vec::with_capacity(raw.len());
    let (mut rest, mut next) = (raw, Some(first));
    while let Some((plain, escaped)) = next.and_then(|at| rest.split_at_checked(at)) {
        let (char, length) = escape(escaped);
        text.extend_from_slice(plain);
        text.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        rest = escaped.get(length..).unwrap_or_default();
        next = memchr::memchr(b'\\', rest);
    }
    text.extend_from_slice(rest);
    Cow::Owned(text)
}

/// Returns the text of a JSON string with its escapes resolved; `None` for any other value.
pub(super) fn string(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    match value {
        [b'"', inner @ .., b'"'] => Some(unescape(inner)),
        _ => None,
    }
}

/// Translates `parts`, ranges of the result of [`unescape`], into ranges of `raw`, its argument.
/// The parts must be in order and must not overlap.
pub(super) fn to_written(raw: &[u8], parts: &mut [Range<usize>]) {
    trace(raw.len(), parts, |take| walk(raw, take));
}

/// Resolves percent-encoding (RFC 3986 §2.1): `%41` becomes `A`. The decoder is written here,
/// because [`to_percents`] must agree with it on each byte.
pub(super) fn percent_decode(raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(raw.len());
    walk_percents(raw, |_, bytes| text.extend_from_slice(bytes));
    text
}

/// Does for [`percent_decode`] what [`to_written`] does for [`unescape`].
pub(super) fn to_percents(raw: &[u8], parts: &mut [Range<usize>]) {
    trace(raw.len(), parts, |take| walk_percents(raw, take));
}

/// Translates the bounds of `parts` from the decoded text to the raw text of `length` bytes. `walk`
/// decodes the raw text once more and passes each part with its index. A table of all indices would
/// take more memory.
fn trace(
    length: usize,
    parts: &mut [Range<usize>],
    walk: impl FnOnce(&mut dyn FnMut(usize, &[u8])),
) {
    let bounds = parts.iter_mut().flat_map(|Range { start, end }| [start, end]);
    let mut bounds = bounds.peekable();
    let mut behind = 0;
    walk(&mut |place, bytes| {
        behind += bytes.len();
        while let Some(bound) = bounds.next_if(|bound| **bound < behind) {
            *bound = place;
        }
    });
    bounds.for_each(|bound| *bound = length);
}

/// Calls `take` for each part of a percent-encoded text, with its index in `raw` and the decoded
/// byte. A part is an encoded byte such as `%41`, or one other byte.
fn walk_percents(raw: &[u8], mut take: impl FnMut(usize, &[u8])) {
    let mut at = 0;
    while let Some(&byte) = raw.get(at) {
        let decoded = match raw.get(at..at + 3) {
            Some([b'%', high, low]) => hex(&[*high, *low]).and_then(|n| u8::try_from(n).ok()),
            _ => None,
        };
        take(at, &[decoded.unwrap_or(byte)]);
        at += if decoded.is_some() { 3 } else { 1 };
    }
}

/// Calls `take` for each part of the text between the quotes of a JSON string, with its index in
/// `raw` and the decoded bytes. A part is one escape, a surrogate pair of two escapes, or one other
/// byte.
fn walk(raw: &[u8], mut take: impl FnMut(usize, &[u8])) {
    let mut at = 0;
    while let Some(&byte) = raw.get(at) {
        if byte != b'\\' {
            take(at, &[byte]);
            at += 1;
            continue;
        }
        let mut space = [0; 4];
        let (char, length) = escape(raw.get(at..).unwrap_or_default());
        take(at, char.encode_utf8(&mut space).as_bytes());
        at += length;
    }
}

/// Returns the character for the escape at the beginning of `text`, and the length of the escape.
pub(super) fn escape(text: &[u8]) -> (char, usize) {
    let unit = |text: &[u8]| match text {
        [b'\\', b'u', digits @ ..] => digits.get(..4).and_then(hex),
        _ => None,
    };
    let short = match text.get(1) {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => {
            let Some(first) = unit(text) else { return (char::REPLACEMENT_CHARACTER, 2) };
            if let (0xd800..0xdc00, Some(second @ 0xdc00..0xe000)) =
                (first, text.get(6..).and_then(unit))
            {
                let char = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return (char::from_u32(char).unwrap_or(char::REPLACEMENT_CHARACTER), 12);
            }
            return (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 6);
        }
        Some(byte) => char::from(*byte),
        None => return (char::REPLACEMENT_CHARACTER, 1),
    };
    (short, 2)
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, digit| Some(number << 4 | char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_resolved_as_serde_json_and_go_do() {
        for raw in [
            r"",
            r"plain ä",
            r#"\"\\\/\b\f\n\r\t"#,
            r"d\u0061ta",
            r"\u00e4\u20AC\ud83d\ude00.",
            r"a\\u0041",
        ] {
            let expected: String = serde_json::from_str(&format!("\"{raw}\"")).unwrap();
            assert_eq!(*unescape(raw.as_bytes()), *expected.as_bytes(), "{raw}");
        }
        for (raw, expected) in [
            (r"\ud800x\u0041", "\u{fffd}xA"),
            (r"\udc00\ud83d\ude00", "\u{fffd}😀"),
            (r"\ud800\ud83d\ude00", "\u{fffd}😀"),
            (r"\ud800", "\u{fffd}"),
        ] {
            assert_eq!(*unescape(raw.as_bytes()), *expected.as_bytes(), "{raw}");
        }
    }

    #[test]
    fn nothing_that_is_no_json_panics() {
        for raw in [r"\", r"\u", r"\u00", r"\u00zz", r"\ud83d\u", r"\ud83d\", r"\x"] {
            unescape(raw.as_bytes());
            to_written(raw.as_bytes(), &mut [0..1, 1..2]);
        }
    }

    #[test]
    fn each_byte_is_traced_to_where_it_was_written() {
        let raw = br"a\u0026b\n";
        assert_eq!(*unescape(raw), *b"a&b\n");
        let mut parts = [0..0, 1..2, 2..4];
        to_written(raw, &mut parts);
        assert_eq!(parts, [0..0, 1..7, 7..10]);
        let raw = b"%41b%4%zz%2";
        assert_eq!(percent_decode(raw), b"Ab%4%zz%2");
        let mut parts = [0..1, 1..9];
        to_percents(raw, &mut parts);
        assert_eq!(parts, [0..3, 3..11]);
    }
}
