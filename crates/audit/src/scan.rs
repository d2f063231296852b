//! Walks through JSON that is already known to be valid.
//!
//! If the text is not valid JSON, the walk ends early or returns wrong values; it never panics and
//! never reads outside of its slice.

use std::borrow::Cow;

/// One member (key and value) of a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// The bytes between the key's quotes, with escapes as written.
    pub key: &'a [u8],
    /// The bytes of the value as written, without white space around it.
    pub value: &'a [u8],
    /// `true` if the key is written with escapes.
    pub has_escapes: bool,
}

impl<'a> Member<'a> {
    /// Returns the key with its escapes resolved, as [`key`] does.
    pub fn name(&self) -> Cow<'a, [u8]> {
        if self.has_escapes { key(self.key) } else { Cow::Borrowed(self.key) }
    }
}

/// An iterator over the members of a JSON object. A key that occurs twice is returned twice.
#[derive(Debug)]
pub struct Members<'a> {
    /// The object or array, which begins at the first byte.
    text: &'a [u8],
    /// The offset in `text` up to which the iterator has read.
    at: usize,
    depth: usize,
}

/// Returns an iterator over the members of `object`, a JSON text that begins with `{`.
pub fn members(object: &[u8]) -> Members<'_> {
    Members { text: object, at: 1, depth: 1 }
}

/// Returns the members of `object` after the offset `at`, at which the preceding member ends.
pub fn members_behind(object: &[u8], at: usize) -> Members<'_> {
    Members { text: object, at, depth: 1 }
}

impl<'a> Members<'a> {
    /// Returns the deepest nesting that the iterator has met so far; the object itself is level 1.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Moves to the next byte that is not white space, a comma or a colon, and returns it.
    fn skip_to_token(&mut self) -> Option<u8> {
        loop {
            match *self.text.get(self.at)? {
                b' ' | b'\n' | b'\r' | b'\t' | b',' | b':' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }

    /// Returns the bytes of the value at the offset `at`, and moves `at` to its end.
    fn value(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        match self.text.get(start)? {
            b'"' => self.skip_string(),
            b'{' | b'[' => self.skip_nested(),
            _ => {
                let end =
                    |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t');
                let rest = self.text.get(start..)?;
                self.at = start + rest.iter().position(end).unwrap_or(rest.len());
            }
        }
        self.text.get(start..self.at)
    }

    /// Moves `at` from the opening quote past the string.
    fn skip_string(&mut self) {
        self.at = string_end(self.text, self.at);
    }

    /// Moves `at` from the opening bracket past the object or array.
    fn skip_nested(&mut self) {
        let mut open = 0_usize;
        while let Some(&byte) = self.text.get(self.at) {
            match byte {
                b'"' => {
                    self.skip_string();
                    continue;
                }
                b'{' | b'[' => {
                    open += 1;
                    self.depth = self.depth.max(open + 1);
                }
                b'}' | b']' => {
                    open -= 1;
                    if open == 0 {
                        self.at += 1;
                        return;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Member<'a>;

    fn next(&mut self) -> Option<Member<'a>> {
        if self.skip_to_token()? != b'"' {
            return None;
        }
        let start = self.at + 1;
        let (end, has_escapes) = end_and_escapes(self.text, self.at);
        self.at = end;
        let key = self.text.get(start..end - 1)?;
        self.skip_to_token()?;
        Some(Member { key, value: self.value()?, has_escapes })
    }
}

/// Returns the elements of a JSON array as written, without white space; none for other values.
pub fn elements(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_array = array.first() == Some(&b'[');
    let mut walk = Members { text: array, at: if is_array { 1 } else { array.len() }, depth: 1 };
    std::iter::from_fn(move || match walk.skip_to_token()? {
        b']' => None,
        // An empty value means that no value begins here: the text is not valid JSON.
        _ => walk.value().filter(|value| !value.is_empty()),
    })
}

/// Returns the offset at which the string, object or array at the beginning of `text` ends; `None`
/// for any other value.
pub fn value_end(text: &[u8]) -> Option<usize> {
    let mut members = Members { text, at: 0, depth: 1 };
    match text.first()? {
        b'"' => members.skip_string(),
        b'{' | b'[' => members.skip_nested(),
        _ => return None,
    }
    Some(members.at)
}

/// Returns the offset after the closing quote of the string with the opening quote at `at`, or the
/// length of `text` if the string does not end.
pub fn string_end(text: &[u8], at: usize) -> usize {
    end_and_escapes(text, at).0
}

/// Does the work of [`string_end`]. Also returns `true` if the string has an escape.
///
/// Strings of audit events have 10 to 16 bytes on average. For these, a search of eight bytes at a
/// time is faster than a call of memchr.
fn end_and_escapes(text: &[u8], at: usize) -> (usize, bool) {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    // The lowest byte that is 0 has its high bit set in the result. Bytes above it may have the bit
    // set although they are not 0.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let (mut at, mut has_escapes) = (at + 1, false);
    while let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        let found =
            zeros(word ^ (ONES * u64::from(b'"'))) | zeros(word ^ (ONES * u64::from(b'\\')));
        if found == 0 {
            at += 8;
            continue;
        }
        // The quotient is at most 7.
        at += (found.trailing_zeros() / 8) as usize;
        if text[at] == b'"' {
            return (at + 1, has_escapes);
        }
        has_escapes = true;
        at += 2;
    }
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return (at + 1, has_escapes),
            b'\\' => {
                has_escapes = true;
                at += 2;
            }
            _ => at += 1,
        }
    }
    (text.len(), has_escapes)
}

/// Returns a key with its escapes resolved; `raw` is the bytes between its quotes. A key with an
/// escaped lone surrogate, which cannot be UTF-8, is returned as written.
pub fn key(raw: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', raw).is_none() {
        return Cow::Borrowed(raw);
    }
    let quoted = [b"\"", raw, b"\""].concat();
    match serde_json::from_slice::<String>(&quoted) {
        Ok(text) => Cow::Owned(text.into_bytes()),
        // The key has a lone surrogate, and equals no key that callers look for.
        Err(_) => Cow::Borrowed(raw),
    }
}

/// Returns a JSON string as [`key`] resolves it; `None` if `value` is not a string.
pub fn string(value: &[u8]) -> Option<Cow<'_, [u8]>> {
    inner(value).map(key)
}

/// Returns the bytes between the quotes of a JSON string; `None` if `value` is not a string.
pub fn inner(value: &[u8]) -> Option<&[u8]> {
    match value {
        [b'"', inner @ .., b'"'] => Some(inner),
        _ => None,
    }
}

/// Returns the value of the first member of `object` with the key `name`.
pub fn member<'a>(object: &'a [u8], name: &str) -> Option<&'a [u8]> {
    members(object).find(|member| *member.name() == *name.as_bytes()).map(|member| member.value)
}

/// Returns, for each of `names`, the value of the first member of `object` with this name. All are
/// `None` if `object` is not a JSON object.
pub fn firsts<'a, const N: usize>(object: &'a [u8], names: [&str; N]) -> [Option<&'a [u8]>; N] {
    let (mut found, mut missing) = ([None; N], N);
    if object.first() != Some(&b'{') {
        return found;
    }
    let mut walk = members(object);
    while missing > 0
        && let Some(member) = walk.next()
    {
        let name = member.name();
        if let Some(index) = names.iter().position(|wanted| *name == *wanted.as_bytes())
            && found[index].is_none()
        {
            found[index] = Some(member.value);
            missing -= 1;
        }
    }
    found
}
