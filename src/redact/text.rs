//! Texts of JSON with their escapes resolved, and where each byte of them was written.
//!
//! A lone surrogate becomes U+FFFD, as in Go: what is written behind it is read all the same.

use std::borrow::Cow;
use std::ops::Range;

/// What stands between the quotes of a string, with its escapes resolved.
pub(super) fn unescape(raw: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', raw).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut text = Vec::with_capacity(raw.len());
    walk(raw, |_, bytes| text.extend_from_slice(bytes));
    Cow::Owned(text)
}

/// A value's text, where it is a string.
pub(super) fn string(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    match value {
        [b'"', inner @ .., b'"'] => Some(unescape(inner)),
        _ => None,
    }
}

/// A text and where it comes from.
pub(super) struct Traced {
    /// With its escapes resolved.
    pub(super) text: Vec<u8>,
    /// For each byte of the text, and for its end, the place in what was written.
    places: Vec<usize>,
}

impl Traced {
    /// [`unescape`] that remembers.
    pub(super) fn unescape(raw: &[u8]) -> Self {
        let (mut text, mut places) = (Vec::new(), Vec::new());
        walk(raw, |place, bytes| {
            text.extend_from_slice(bytes);
            places.resize(text.len(), place);
        });
        places.push(raw.len());
        Self { text, places }
    }

    /// The same of `%41` and its like (RFC 3986 §2.1).
    pub(super) fn percent_decode(raw: &[u8]) -> Self {
        let (mut text, mut places) = (Vec::new(), Vec::new());
        let mut at = 0;
        while let Some(&byte) = raw.get(at) {
            let decoded = match raw.get(at..at + 3) {
                Some([b'%', high, low]) => hex(&[*high, *low]).and_then(|n| u8::try_from(n).ok()),
                _ => None,
            };
            text.push(decoded.unwrap_or(byte));
            places.push(at);
            at += if decoded.is_some() { 3 } else { 1 };
        }
        places.push(raw.len());
        Self { text, places }
    }

    /// Where a part of the text was written.
    pub(super) fn written(&self, part: &Range<usize>) -> Range<usize> {
        let end = self.places.last().copied().unwrap_or_default();
        let place = |at: usize| self.places.get(at).copied().unwrap_or(end);
        place(part.start)..place(part.end)
    }
}

/// Hands out each character, or run of such as are not escaped, with its place.
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

/// The character that an escape stands for, and the length of the escape.
fn escape(text: &[u8]) -> (char, usize) {
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
            assert_eq!(Traced::unescape(raw.as_bytes()).text, expected.as_bytes(), "{raw}");
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
            Traced::unescape(raw.as_bytes());
        }
    }

    #[test]
    fn each_byte_is_traced_to_where_it_was_written() {
        let traced = Traced::unescape(br"a\u0026b\n");
        assert_eq!(traced.text, b"a&b\n");
        assert_eq!(traced.written(&(1..2)), 1..7);
        assert_eq!(traced.written(&(2..4)), 7..10);
        let traced = Traced::percent_decode(b"%41b%4%zz%2");
        assert_eq!(traced.text, b"Ab%4%zz%2");
        assert_eq!(traced.written(&(0..1)), 0..3);
        assert_eq!(traced.written(&(1..9)), 3..11);
    }
}
