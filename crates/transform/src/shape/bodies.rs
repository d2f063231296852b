//! The changes inside an event: bodies that become strings, members of `extra` that do, and the
//! keys of annotations without dots.

use std::borrow::Cow;
use std::ops::Range;

use super::json::{Object, place, write_string};
use super::{Bodies, extra};
use audit::scan;
use audit::scan::Member;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    /// A string that holds the bytes.
    String,
    /// The same object, with `_` for `.` in its keys.
    DotlessKeys,
    /// The same object, with all members of unknown names in one string.
    KnownNames,
}

/// The changes to an event, which must be added in the order of its members.
#[derive(Debug, Default)]
pub(super) struct Edits {
    /// The ranges of the event that are replaced, in their order.
    list: Vec<(Range<usize>, With)>,
}

impl Edits {
    /// Returns the changes that [`Bodies::String`] makes to an event.
    pub(super) fn to_strings(event: &[u8]) -> Self {
        let mut edits = Self::default();
        for member in scan::members(event) {
            match &*member.name() {
                b"requestObject" | b"responseObject" => edits.body(event, member, Bodies::String),
                b"user" | b"impersonatedUser" => edits.user(event, member),
                _ => {}
            }
        }
        edits
    }

    pub(super) fn body(&mut self, event: &[u8], member: Member<'_>, bodies: Bodies) {
        if bodies == Bodies::String && member.value != b"null" {
            self.list.push((place(event, member.value), With::String));
        }
    }

    /// Adds the member `annotations`, whose keys lose their dots.
    pub(super) fn annotations(&mut self, event: &[u8], member: Member<'_>) {
        let value = member.value;
        if value.first() == Some(&b'{') && memchr::memchr2(b'.', b'\\', value).is_some() {
            self.list.push((place(event, member.value), With::DotlessKeys));
        }
    }

    /// Adds the member `user` or `impersonatedUser`.
    pub(super) fn user(&mut self, event: &[u8], member: Member<'_>) {
        let extras = extra::in_user(member.value);
        self.list.extend(extras.map(|extra| (place(event, extra), With::KnownNames)));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn write(&self, event: &[u8], out: &mut Vec<u8>) {
        let mut at = 0;
        for (range, with) in &self.list {
            out.extend_from_slice(event.get(at..range.start).unwrap_or_default());
            let replaced = event.get(range.clone()).unwrap_or_default();
            match with {
                With::String => write_string(replaced, out),
                With::DotlessKeys => write_without_dots(replaced, out),
                With::KnownNames => extra::write(replaced, out),
            }
            at = range.end;
        }
        out.extend_from_slice(event.get(at..).unwrap_or_default());
    }
}

/// Appends the object to `out`, with `_` for each `.` in its keys. A key stays as it is if the
/// object already has the new key, or if an earlier key was changed to it.
fn write_without_dots(object: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    if !write_few_without_dots(object, out) {
        out.truncate(start);
        write_any_without_dots(object, out);
    }
}

/// Does the work of [`write_without_dots`] for an object with at most eight keys that have no
/// escapes and stay different from each other without dots, as usual annotations do. Returns
/// `false` for any other object; the caller must then remove the bytes that were appended to `out`.
fn write_few_without_dots(object: &[u8], out: &mut Vec<u8>) -> bool {
    const FEW: usize = 8;
    // The positions of the new keys in `out`.
    let mut places: [Range<usize>; FEW] = Default::default();
    let mut written = Object::begin(out);
    for (index, member) in scan::members(object).enumerate() {
        let (earlier, free) = places.split_at_mut(index.min(FEW));
        let Some(place) = free.first_mut().filter(|_| !member.has_escapes) else { return false };
        let out = written.key(member.key);
        // A quote and a colon follow the key.
        let end = out.len() - 2;
        *place = end - member.key.len()..end;
        let key = &mut out[place.clone()];
        key.iter_mut().filter(|byte| **byte == b'.').for_each(|byte| *byte = b'_');
        if earlier.iter().any(|other| out[other.clone()] == out[place.clone()]) {
            return false;
        }
        out.extend_from_slice(member.value);
    }
    written.end();
    true
}

fn write_any_without_dots(object: &[u8], out: &mut Vec<u8>) {
    let keys: Vec<_> = scan::members(object).map(|member| member.name()).collect();
    let dotless = |index: usize| {
        let key: &[u8] = keys.get(index).map(|key| &**key).unwrap_or_default();
        key.iter().map(|byte| if *byte == b'.' { b'_' } else { *byte })
    };
    let has_dot: Vec<_> = keys.iter().map(|key| memchr::memchr(b'.', key).is_some()).collect();
    // Among keys with the same new key, one without a dot comes first, and then the earliest.
    let mut order: Vec<_> = (0..keys.len()).collect();
    order.sort_by(|a, b| dotless(*a).cmp(dotless(*b)).then(has_dot[*a].cmp(&has_dot[*b])));
    let mut changes = has_dot;
    for pair in order.windows(2) {
        if let [before, after] = *pair
            && dotless(before).eq(dotless(after))
        {
            changes[after] = false;
        }
    }
    let mut written = Object::begin(out);
    for (index, member) in scan::members(object).enumerate() {
        let key = match changes.get(index) {
            Some(true) => without_dots(member.key),
            Some(false) | None => Cow::Borrowed(member.key),
        };
        written.key(&key).extend_from_slice(member.value);
    }
    written.end();
}

/// Returns a key with `_` for each `.`, which may be written as an escape. `raw` and the result are
/// the bytes between the quotes, with escapes as written.
fn without_dots(raw: &[u8]) -> Cow<'_, [u8]> {
    let mut plain = raw.to_vec();
    if memchr::memchr(b'\\', raw).is_some() {
        let Some(text) = serde_json::from_slice::<String>(&[b"\"", raw, b"\""].concat()).ok()
        else {
            return Cow::Borrowed(raw);
        };
        plain.clear();
        write_string(text.replace('.', "_").as_bytes(), &mut plain);
        plain.pop();
        plain.remove(0);
    }
    plain.iter_mut().filter(|byte| **byte == b'.').for_each(|byte| *byte = b'_');
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Compares the two ways to write an object without dots in its keys, for objects with up
        /// to nine keys that often become the same. The first way must refuse an object exactly if
        /// it has too many keys, or two keys that become the same.
        #[test]
        fn few_keys_lose_their_dots_as_any_keys_do(
            keys in proptest::collection::vec("[ab._]{0,6}", 0..10),
        ) {
            let members: Vec<_> = keys.iter().map(|key| format!("\"{key}\":\"a.b\"")).collect();
            let object = format!("{{{}}}", members.join(","));
            let (mut few, mut any) = (Vec::new(), Vec::new());
            write_any_without_dots(object.as_bytes(), &mut any);
            let is_written = write_few_without_dots(object.as_bytes(), &mut few);
            let mut dotless: Vec<_> = keys.iter().map(|key| key.replace('.', "_")).collect();
            dotless.sort();
            dotless.dedup();
            proptest::prop_assert_eq!(is_written, keys.len() <= 8 && dotless.len() == keys.len());
            proptest::prop_assert!(!is_written || few == any, "{}", object);
        }
    }

    #[test]
    fn a_key_with_an_escaped_dot_is_left_to_the_careful_way() {
        let (mut few, object) = (Vec::new(), br#"{"a\u002eb":1}"#);
        assert!(!write_few_without_dots(object, &mut few));
        let mut written = Vec::new();
        write_without_dots(object, &mut written);
        assert_eq!(written, br#"{"a_b":1}"#);
    }
}
