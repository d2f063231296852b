//! Reads values of an event, and writes JSON objects.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Range;

use audit::scan;

/// Returns the value if it is a string that is not empty.
pub(super) fn text(value: Option<&[u8]>) -> Option<&[u8]> {
    value.filter(|value| value.first() == Some(&b'"') && *value != b"\"\"")
}

pub(super) fn object(value: Option<&[u8]>) -> Option<&[u8]> {
    value.filter(|value| value.first() == Some(&b'{'))
}

/// Returns the value and its number if it is a whole number of 32 bits without an exponent, as
/// every status code is.
pub(super) fn code(value: Option<&[u8]>) -> Option<(&[u8], i32)> {
    let value = value?;
    let number = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some((value, number))
}

pub(super) fn is_ip(value: &[u8]) -> bool {
    let Some(text) = scan::string(value) else { return false };
    std::str::from_utf8(&text).is_ok_and(|text| text.parse::<IpAddr>().is_ok())
}

/// Returns the range of indices of `part`, a slice of `whole`.
pub(super) fn place(whole: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

/// Appends a JSON string with this content, which must be UTF-8, to `out`.
///
/// About every eighth byte of an event is a quote, so a search for the next escape and a copy up to
/// it would cost two calls for a few bytes. Instead, eight bytes are copied at a time. If one of
/// them must be escaped, `out` is cut off before it.
pub fn write_string(content: &[u8], out: &mut Vec<u8>) {
    out.reserve(content.len() / 4 * 5 + 2);
    out.push(b'"');
    let mut rest = content;
    while let Some((chunk, behind)) = rest.split_first_chunk::<8>() {
        out.extend_from_slice(chunk);
        let escapes = escapes_in(*chunk);
        if escapes == 0 {
            rest = behind;
            continue;
        }
        // The quotient is at most 7.
        let plain = (escapes.trailing_zeros() / 8) as usize;
        out.truncate(out.len() - chunk.len() + plain);
        write_escape(rest[plain], out);
        rest = &rest[plain + 1..];
    }
    for byte in rest {
        match byte {
            0..0x20 | b'"' | b'\\' => write_escape(*byte, out),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}

/// Returns a number whose lowest set bit is the high bit of the first byte that a JSON string can
/// hold only as an escape. The bits above have no meaning. Returns 0 if there is no such byte.
fn escapes_in(chunk: [u8; 8]) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    let word = u64::from_le_bytes(chunk);
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    equal(b'"') | equal(b'\\') | below(word, 0x20)
}

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\t' => out.extend_from_slice(b"\\t"),
        b'\r' => out.extend_from_slice(b"\\r"),
        _ => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
    }
}

/// A JSON object that is being written. [`Object::end`] must be called.
pub(super) struct Object<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Object<'o> {
    pub(super) fn begin(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    /// Begins a member. `key` is the bytes between its quotes, with escapes as written. The caller
    /// appends the value to the returned buffer.
    pub(super) fn key(&mut self, key: &[u8]) -> &mut Vec<u8> {
        if !std::mem::replace(&mut self.is_empty, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key);
        self.out.extend_from_slice(b"\":");
        self.out
    }

    pub(super) fn member(&mut self, key: &str, value: &[u8]) {
        self.key(key.as_bytes()).extend_from_slice(value);
    }

    pub(super) fn optional(&mut self, key: &str, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.member(key, value);
        }
    }

    /// Writes a member that is an object with these members, unless all of them are absent.
    pub(super) fn group(&mut self, key: &str, members: &[(&str, Option<&[u8]>)]) {
        if members.iter().all(|(_, value)| value.is_none()) {
            return;
        }
        let mut group = Object::begin(self.key(key.as_bytes()));
        for (key, value) in members {
            group.optional(key, *value);
        }
        group.end();
    }

    pub(super) fn end(self) {
        self.out.push(b'}');
    }
}

#[derive(Debug, Default)]
pub(super) struct Names<'a> {
    /// The first [`Self::FEW`] names. Most objects have no more, and a search among few names is
    /// fast.
    few: Vec<Cow<'a, [u8]>>,
    many: HashSet<Cow<'a, [u8]>>,
}

impl<'a> Names<'a> {
    const FEW: usize = 16;

    /// Adds a name. Returns `false` if it is there already.
    pub(super) fn add(&mut self, name: Cow<'a, [u8]>) -> bool {
        if self.few.contains(&name) {
            return false;
        }
        if self.few.len() < Self::FEW {
            self.few.push(name);
            return true;
        }
        self.many.insert(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_read_as_it_was_written_wherever_its_escapes_are() {
        let specials = ["\"", "\\", "\"\"", "\t", "\r\n", "\0", "\u{1f}", " ", "\u{7f}", "ä\""];
        for special in specials {
            for length in 0..20 {
                for at in 0..=length {
                    let text =
                        ["a".repeat(at).as_str(), special, &"b".repeat(length - at)].concat();
                    let mut written = b"before".to_vec();
                    write_string(text.as_bytes(), &mut written);
                    let written = written.strip_prefix(b"before").unwrap();
                    assert_eq!(serde_json::from_slice::<String>(written).unwrap(), text);
                }
            }
        }
        let mut written = Vec::new();
        write_string("a\"b\\c\td\re\nf\u{1}ä\"".as_bytes(), &mut written);
        assert_eq!(written, "\"a\\\"b\\\\c\\td\\re\\u000af\\u0001ä\\\"\"".as_bytes());
    }
}
