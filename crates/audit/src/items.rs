//! Takes a list of events apart while it arrives, item by item.
//!
//! A list of any size passes in constant memory: what is read of an item goes to the caller, and
//! only the text around the items is kept, with an empty array in their place. Strings and brackets
//! alone tell where an item ends, so the caller decodes each item, and the envelope at the end.

use std::borrow::Cow;
use std::ops::Range;

use crate::scan::{Member, members};
use crate::{Invalid, decode};

/// The maximum number of bytes around the items. kube-apiserver writes 77.
const ENVELOPE_BYTES_MAX: usize = 64 * 1024;

/// The number of bytes that stay of a string that is too long to be held.
const KEPT_BYTES: usize = 1024;

/// The place in the list at which the next byte is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Outside of the array of items.
    Envelope,
    /// In the array, before an item. `after_comma`: an item must follow.
    Before { after_comma: bool },
    /// In an item that is an object or an array.
    Nested,
    /// In an item that is a string.
    Text,
    /// In an item that is a number or a literal.
    Scalar,
    /// In the array, after an item.
    After,
}

/// The state of a list that arrives.
#[derive(Debug)]
pub struct Items {
    envelope: Vec<u8>,
    /// `true`: the array of items has begun.
    has_array: bool,
    at: At,
    /// The number of containers that are open in the envelope, or in the item.
    depth: usize,
    in_string: bool,
    /// `true`: the last byte was a backslash that escapes the next one.
    is_escaped: bool,
    /// The number of bytes of the list that were read.
    read: usize,
    /// The number of items that have ended.
    items: usize,
    /// The lengths of the caller's item after its opening brace, and at the beginning of its last
    /// member: after the brace, or before the comma.
    first: usize,
    member: usize,
    /// `true`: the bytes up to the end of the item's member are left out.
    skips: bool,
}

/// The reason why [`Items::read`] has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All bytes were read.
    Input,
    /// An item is complete.
    Item,
}

impl Default for Items {
    fn default() -> Self {
        Self {
            envelope: Vec::new(),
            has_array: false,
            at: At::Envelope,
            depth: 0,
            in_string: false,
            is_escaped: false,
            read: 0,
            items: 0,
            first: 0,
            member: 0,
            skips: false,
        }
    }
}

impl Items {
    /// Reads from `bytes`, the next part of the list, up to the end of an item. Appends what
    /// belongs to the item to `item`, and returns the number of bytes that were read.
    ///
    /// # Errors
    ///
    /// `Some`: the list is not JSON. `None`: the text is not a list of items, or has too much text
    /// around them.
    pub fn read(
        &mut self,
        bytes: &[u8],
        item: &mut Vec<u8>,
    ) -> Result<(usize, Ended), Option<Invalid>> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let start = self.read + at;
            let fault = |what: &'static str| {
                let what = Cow::Borrowed(what);
                Some(Invalid { byte: start, item: Some(self.items), what, is_sound: false })
            };
            match (self.at, byte) {
                (At::Envelope, _) => self.around(byte)?,
                (At::Before { .. } | At::After, b' ' | b'\n' | b'\r' | b'\t') => {}
                (At::Before { after_comma: false } | At::After, b']') => {
                    self.envelope.push(byte);
                    (self.at, self.depth) = (At::Envelope, 1);
                }
                (At::After, b',') => self.at = At::Before { after_comma: true },
                (At::After, _) => return Err(fault("not JSON: expected `,` or `]`")),
                (At::Before { .. }, b',' | b']' | b'}' | b':') => {
                    return Err(fault("not JSON: expected value"));
                }
                (At::Before { .. }, _) => {
                    (self.depth, self.in_string, self.is_escaped) = (0, false, false);
                    self.at = match byte {
                        b'{' | b'[' => At::Nested,
                        b'"' => At::Text,
                        _ => At::Scalar,
                    };
                    continue;
                }
                (At::Scalar, b',' | b']' | b' ' | b'\n' | b'\r' | b'\t') => {
                    return Ok(self.ended(at));
                }
                (At::Scalar, _) => item.push(byte),
                (At::Nested | At::Text, _) => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let (count, has_ended) = self.inside(rest, item);
                    at += count;
                    if has_ended {
                        return Ok(self.ended(at));
                    }
                    continue;
                }
            }
            at += 1;
        }
        self.read += at;
        Ok((at, Ended::Input))
    }

    /// Makes the open item shorter, because it is too long to be held: leaves out its longest
    /// member, or the part of it that has arrived, and then skips the rest. A member that is a
    /// string keeps its beginning. `start` is the offset in `item` at which the open item begins.
    /// Returns `false` if that would free nothing.
    pub fn leave_member_out(&mut self, item: &mut Vec<u8>, start: usize) -> bool {
        let text = item.get(start..).unwrap_or_default();
        if self.at != At::Nested {
            return false;
        }
        let Some(Cut { name, value, marker }) = longest(text) else { return false };
        let is_open = start + value.start >= self.member;
        let cut = match marker {
            _ if !marker.is_empty() => start + value.start..start + value.end,
            _ if is_open => self.member..start + value.end,
            _ => start + name.start..start + name.end,
        };
        let freed = cut.len() - marker.len();
        item.splice(cut, marker.iter().copied());
        if is_open {
            // With a beginning of it, the comma behind the member stays.
            self.first = if marker.is_empty() { self.first } else { 0 };
            self.skips = true;
        } else {
            self.member -= freed;
        }
        true
    }

    /// Returns the number of items that have ended.
    pub fn count(&self) -> usize {
        self.items
    }

    /// Returns the number of bytes of the list that were read.
    pub fn offset(&self) -> usize {
        self.read
    }

    /// Checks the envelope after the last byte.
    ///
    /// # Errors
    ///
    /// `Some`: the list is not complete, or not a list of events. `None`: the text has no array of
    /// items. It may be an event, of which nothing was given to the caller.
    pub fn finish(self) -> Result<(), Option<Invalid>> {
        if !self.has_array {
            return Err(None);
        }
        let item = (self.at != At::Envelope).then_some(self.items);
        decode(self.envelope).map(drop).map_err(|error| {
            // Behind the items, a byte of the envelope stands later in the list.
            let byte = if item.is_some() { self.read } else { error.byte };
            Some(Invalid { byte, item, ..error })
        })
    }

    fn ended(&mut self, read: usize) -> (usize, Ended) {
        (self.at, self.skips) = (At::After, false);
        self.read += read;
        self.items += 1;
        (read, Ended::Item)
    }

    /// Reads a byte of the envelope.
    fn around(&mut self, byte: u8) -> Result<(), Option<Invalid>> {
        let is_space = matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
        if is_space && !self.in_string && self.envelope.last() == Some(&b' ') {
            return Ok(());
        }
        let begins = self.depth == 0 && byte != b'{' && !is_space;
        if self.envelope.len() == ENVELOPE_BYTES_MAX
            || begins && self.envelope.iter().all(u8::is_ascii_whitespace)
        {
            return Err(None);
        }
        let opens_items = byte == b'[' && !self.in_string && self.depth == 1 && {
            let before = self.envelope.trim_ascii_end().strip_suffix(b":");
            before.is_some_and(|before| before.trim_ascii_end().ends_with(b"\"items\""))
        };
        // One space stands for all white space between two tokens.
        self.envelope.push(if is_space && !self.in_string { b' ' } else { byte });
        if opens_items {
            (self.at, self.has_array) = (At::Before { after_comma: false }, true);
            return Ok(());
        }
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(());
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        Ok(())
    }

    /// Reads from `bytes`, which are in an item that is a container or a string. Returns the number
    /// of bytes that were read, and `true` if the item ends with them.
    fn inside(&mut self, bytes: &[u8], item: &mut Vec<u8>) -> (usize, bool) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let start = at;
            if self.in_string {
                at += self.string(bytes.get(at..).unwrap_or_default());
            } else {
                at += 1;
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth -= 1,
                    _ => {}
                }
                let is_member = self.depth == 1 && matches!(byte, b',' | b'{');
                let ends = self.depth == 0 && !self.in_string;
                if self.skips && (is_member && byte == b',' || ends) {
                    self.skips = false;
                    // Without a member before it, the comma goes with the member.
                    if byte == b',' && self.member == self.first {
                        continue;
                    }
                }
                if is_member && byte == b'{' {
                    self.first = item.len() + 1;
                }
                if is_member {
                    self.member = item.len() + usize::from(byte == b'{');
                }
            }
            if !self.skips {
                item.extend_from_slice(bytes.get(start..at).unwrap_or_default());
            }
            if self.depth == 0 && !self.in_string {
                return (at, true);
            }
        }
        (at, false)
    }

    /// Returns how many of these bytes belong to the string in which the item is, with its quote.
    fn string(&mut self, bytes: &[u8]) -> usize {
        let mut at = usize::from(std::mem::take(&mut self.is_escaped));
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(found) = memchr::memchr2(b'"', b'\\', rest) else { return bytes.len() };
            at += found + 1;
            if rest.get(found) == Some(&b'"') {
                self.in_string = false;
                return at;
            }
            self.is_escaped = at == bytes.len();
            at += usize::from(!self.is_escaped);
        }
    }
}

/// The longest member of an event, which may be incomplete.
struct Cut {
    /// The member, up to the comma behind it, if there is one.
    name: Range<usize>,
    /// The bytes of the value that go. A string keeps its beginning.
    value: Range<usize>,
    /// The bytes that take their place; empty if the whole member goes.
    marker: &'static [u8],
}

/// Finds the longest member of `event`, if it is long enough to be cut.
fn longest(event: &[u8]) -> Option<Cut> {
    if event.first() != Some(&b'{') {
        return None;
    }
    let Member { key, value, .. } = members(event).max_by_key(|member| member.value.len())?;
    if value.len() <= KEPT_BYTES + 12 {
        return None;
    }
    let offset = |part: &[u8]| part.as_ptr() as usize - event.as_ptr() as usize;
    let (from, to) = (offset(value), offset(value) + value.len());
    let comma = event.get(to..).and_then(|rest| memchr::memchr(b',', rest));
    let name = offset(key) - 1..comma.map_or(to, |at| to + at + 1);
    let (from, marker) = match beginning(value) {
        Some(kept) => (from + kept, "…\"".as_bytes()),
        None => (from, &b""[..]),
    };
    Some(Cut { name, value: from..to, marker })
}

/// Cuts the longest members of a complete event until it has at most `max` bytes, and appends it to
/// `out`. A member that is a string keeps its beginning. Returns `false` if the event cannot be
/// made as short as that.
pub fn shorten(event: &[u8], max: usize, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let put = |out: &mut Vec<u8>, event: &[u8], cut: Range<usize>, marker: &[u8]| {
        out.extend_from_slice(event.get(..cut.start).unwrap_or_default());
        out.extend_from_slice(marker);
        out.extend_from_slice(event.get(cut.end..).unwrap_or_default());
    };
    let whole = |event: &[u8], Cut { name, value, marker }: Cut| {
        let is_last = event.get(..name.end).is_some_and(|text| text.last() != Some(&b','));
        match (marker.is_empty(), is_last) {
            (false, _) => (value, marker),
            (true, false) => (name, marker),
            // Without a comma behind it, the comma before the member goes with it.
            (true, true) => {
                let before = event.get(..name.start).and_then(|text| memchr::memrchr(b',', text));
                (before.unwrap_or(name.start)..name.end, marker)
            }
        }
    };
    let Some(cut) = longest(event) else { return false };
    let (range, marker) = whole(event, cut);
    put(out, event, range, marker);
    while out.len() - start > max {
        let text = out.split_off(start);
        let Some(cut) = longest(&text) else {
            out.extend_from_slice(&text);
            return false;
        };
        let (range, marker) = whole(&text, cut);
        put(out, &text, range, marker);
    }
    true
}

/// Returns how many bytes of a value stay if the value is a string: its quote and at most
/// [`KEPT_BYTES`]. `None` for other values.
///
/// The string ends behind a whole parameter of a URI, or behind a word: what is left of a token or
/// of a password would not be recognised as one when the event is redacted.
fn beginning(value: &[u8]) -> Option<usize> {
    let text = value.strip_prefix(b"\"")?;
    let text = text.get(..KEPT_BYTES.min(text.len()))?;
    let plain = text.iter().rposition(|byte| matches!(byte, b'&' | b'?' | b' '));
    let escaped = memchr::memmem::rfind(text, br"\u0026").map(|at| at + br"\u0026".len() - 1);
    Some(plain.max(escaped).map_or(1, |at| at + 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::corpus;

    /// Reads a list in pieces of `size` bytes. Returns its items, and the result of the end.
    fn read(list: &[u8], size: usize) -> Result<Vec<Vec<u8>>, Option<Invalid>> {
        let (mut items, mut item, mut found) = (Items::default(), Vec::new(), Vec::new());
        for mut piece in list.chunks(size) {
            while !piece.is_empty() {
                let (count, ended) = items.read(piece, &mut item)?;
                piece = &piece[count..];
                if ended == Ended::Item {
                    found.push(std::mem::take(&mut item));
                }
            }
        }
        // A wrong count changes the result.
        found.resize(items.count(), Vec::new());
        items.finish()?;
        Ok(found)
    }

    #[test]
    fn the_items_are_those_of_the_whole_list_however_it_is_cut() {
        for (name, list) in corpus() {
            let whole = decode(list.clone()).unwrap();
            for size in [1, 7, 4096, list.len()] {
                let items = read(&list, size).unwrap_or_else(|error| panic!("{name}: {error:?}"));
                let lines: Vec<u8> =
                    items.into_iter().flat_map(|item| [&item[..], b"\n"].concat()).collect();
                assert!(lines == whole.lines, "{name} in pieces of {size}");
            }
        }
        let odd =
            br#" {"x":[{"items":[1]},"\"items\":["],"items" : [ 7 ,"a\\\"]", [1,{"b":"]"}] ,null]
            ,"apiVersion":"audit.k8s.io/v1","kind":"EventList"} "#;
        for size in 1..odd.len() {
            let items = read(odd, size).expect("a list");
            let expected = [&b"7"[..], br#""a\\\"]""#, br#"[1,{"b":"]"}]"#, b"null"];
            assert_eq!(items, expected, "{size}");
        }
        assert_eq!(read(&[crate::LIST_HEAD, b"]}"].concat(), 3), Ok(Vec::new()));
    }

    #[test]
    fn what_is_not_a_list_is_refused_at_once_and_a_broken_one_at_its_byte() {
        for text in [&b"hello"[..], b"[1]", b"7", b"\"a\"", b" \n x"] {
            assert_eq!(read(text, 3), Err(None));
        }
        let space = b" \n".repeat(ENVELOPE_BYTES_MAX);
        let padded = [&space[..], crate::LIST_HEAD, b"7", &space, b"]", &space, b"}", &space];
        assert_eq!(read(&padded.concat(), 999), Ok(vec![b"7".to_vec()]));
        let event = r#"{"auditID":"a","stage":"Panic"}"#;
        for text in [event.to_owned(), format!("{event}\n{event}\n"), "{}".into(), String::new()] {
            assert_eq!(read(text.as_bytes(), 3), Err(None), "{text}");
        }
        let event = [b"{\"auditID\":\"", &b"a".repeat(ENVELOPE_BYTES_MAX)[..]].concat();
        assert_eq!(read(&event, 512), Err(None), "a single event");
        let head = std::str::from_utf8(crate::LIST_HEAD).unwrap();
        for (rest, at, item) in [
            ("1 2]}", 2, Some(1)),
            ("1,]}", 2, Some(1)),
            (",1]}", 0, Some(0)),
            ("1,,2]}", 2, Some(1)),
            ("1,2", 3, Some(1)),
            ("{\"a\":[1", 7, Some(0)),
        ] {
            let list = format!("{head}{rest}");
            let error = read(list.as_bytes(), 2).expect_err("broken").expect("it has a byte");
            assert_eq!((error.byte - head.len(), error.item), (at, item), "{rest}: {error}");
        }
        for list in [r#"{"kind":"EventList","items":[1]}"#, r#"{"kind":"Pod","items":[]}"#] {
            assert!(matches!(read(list.as_bytes(), 5), Err(Some(_))), "{list}");
        }
        let twice = [crate::LIST_HEAD, br#"1],"items":[2]}"#].concat();
        assert!(read(&twice, 9).unwrap_err().unwrap().what.contains("twice"));
    }

    /// Method: the longest member of an event is left out when each further byte has arrived.
    #[test]
    fn a_member_that_is_left_out_leaves_the_others_as_they_are() {
        let long = "1,".repeat(KEPT_BYTES);
        for place in 0..3 {
            let mut members = [r#""a":["x,\"}"]"#.to_owned(), r#""b": 1"#.to_owned()].to_vec();
            members.insert(place, format!(r#""c" : {{"d":[1,{{"e":[{long}0]}}],"f":3}}"#));
            let event = format!("{{{}}}", members.join(" , "));
            let list = format!("{}{event},7]}}", std::str::from_utf8(crate::LIST_HEAD).unwrap());
            members.remove(place);
            let (head, mut cuts) = (crate::LIST_HEAD.len(), 0);
            let expected = [format!("{{{}}}", members.join(",")), event.clone()];
            for cut in 1..event.len() {
                // The caller may have text of its own before the item.
                let (mut items, mut item) = (Items::default(), b"own{\"".to_vec());
                let (first, rest) = list.as_bytes().split_at(head + cut);
                items.read(first, &mut item).unwrap();
                let is_left_out = items.leave_member_out(&mut item, 5);
                assert_eq!(items.read(rest, &mut item).unwrap().1, Ended::Item);
                let text = String::from_utf8(item[5..].to_vec()).unwrap();
                let compact = text.replace(' ', "");
                let wanted = &expected[usize::from(!is_left_out)];
                assert_eq!(compact, wanted.replace(' ', ""), "{place} {cut}");
                cuts += usize::from(is_left_out);
            }
            assert!(cuts > KEPT_BYTES / 2, "{cuts}");
        }
    }

    /// Method: a long string is cut while it arrives, and when a later member has begun.
    #[test]
    fn a_string_that_is_left_out_keeps_its_whole_parameters_and_words() {
        for (begins, kept) in [
            ("/x?", "/x?"),
            (r"/x?a=1\u0026b=2\u0026token=", r"/x?a=1\u0026b=2\u0026"),
            ("/x?a=1&token=", "/x?a=1&"),
            ("curl 8 ", "curl 8 "),
            ("", ""),
            (r"caf\u00e9 \ud83d", r"caf\u00e9 "),
        ] {
            let value = format!("{begins}{}", r"é\u003c\ude00x".repeat(2 * KEPT_BYTES));
            let event = format!(r#"{{"a":1,"uri":"{value}","b":22}}"#);
            let expected = format!(r#"{{"a":1,"uri":"{kept}…","b":22}}"#);
            let list = [crate::LIST_HEAD, event.as_bytes(), b"]}"].concat();
            for missing in [20, 2] {
                let (mut items, mut item) = (Items::default(), Vec::new());
                let end = crate::LIST_HEAD.len() + event.len() - missing;
                items.read(&list[..end], &mut item).unwrap();
                assert!(items.leave_member_out(&mut item, 0), "{begins}");
                items.read(&list[end..], &mut item).unwrap();
                assert_eq!(String::from_utf8(item).as_deref(), Ok(&*expected), "{missing}");
            }
            let mut out = b"before".to_vec();
            assert!(shorten(event.as_bytes(), 200, &mut out));
            assert_eq!(out, [b"before", expected.as_bytes()].concat());
        }
    }

    #[test]
    fn the_longest_members_of_an_event_go_until_it_is_short_enough() {
        let long = |count: usize| format!("[{}0]", "1,".repeat(count));
        let event =
            format!(r#"{{"a":{},"b":7,"c":{}, "d":{}}}"#, long(2000), long(4000), long(3000));
        for (max, expected) in [
            (12_000, format!(r#"{{"a":{},"b":7, "d":{}}}"#, long(2000), long(3000))),
            (6_000, format!(r#"{{"a":{},"b":7}}"#, long(2000))),
            (3_000, r#"{"b":7}"#.to_owned()),
        ] {
            let mut out = Vec::new();
            assert!(shorten(event.as_bytes(), max, &mut out), "{max}");
            assert_eq!(String::from_utf8(out), Ok(expected));
        }
        let mut out = Vec::new();
        assert!(!shorten(event.as_bytes(), 5, &mut out));
        assert_eq!(out, br#"{"b":7}"#);
        assert!(!shorten(br#"{"b":7}"#, 5, &mut out));
    }
}
