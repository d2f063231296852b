//! Cuts an event that is too large even without its bodies, such as one with a URI of a megabyte.
//!
//! The event has all its other changes already, so a value that must not leave is not in it. Two
//! ways are tried, and the first that makes the event small enough is taken:
//!
//! 1. All strings above one length are cut to this length: the largest length that is enough, of
//!    half the limit, a quarter of it and so on, down to [`STRING_BYTES_MIN`]. Names stay.
//! 2. Only the members in [`KNOWN`] stay, each with the same share of the limit, again the largest
//!    that is enough. An object or array keeps its first entries, and an array its last one too: in
//!    `sourceIPs`, that is the address of the connection.
//!
//! Only if neither is enough, both are tried again with an `auditID` that is cut too. An event that
//! is larger even then needs more than about 3 KiB for the names of its members alone.
//!
//! A cut string ends with its former length, as in `…[cut, 1000000 bytes]`. It is never cut inside
//! of a character or an escape. An output that redacts may get an event that was cut before, to
//! fit into memory. A cut must therefore not hide a credential from it: a string ends before a JSON
//! Web Token that would be cut, and a URI ends with a whole parameter.

use std::iter;
use std::ops::Range;

use memchr::memmem;

use super::annotate::{Annotations, TRUNCATED};
use super::path::is_of_admission;
use super::text;
use super::walk::{Edit, children, place, write};
use audit::scan;

/// The least number of bytes to which the first way cuts a string. Timestamps, verbs and most names
/// are shorter.
const STRING_BYTES_MIN: usize = 128;

/// The least share of a member in the second way. The values of `kind`, `apiVersion`, `level` and
/// `stage` are shorter, even if each letter is an escape.
const SHARE_BYTES_MIN: usize = 128;

/// The greatest length of a mark, with the quotes of its string.
const QUOTED_MARK_BYTES_MAX: usize = "\"…[cut, 18446744073709551615 bytes]\"".len();

/// The number of levels of objects and arrays below the event that the second way keeps. The causes
/// in `responseStatus.details` have this many. This limits how often [`put`] and [`put_entries`]
/// call each other.
const LEVELS_MAX: usize = 4;

/// An object or array with less room than this gets no more entries.
const ENTRY_BYTES_MIN: usize = 8;

/// The members of an event that say who did what, when, from where and with which result. An event
/// that repeats `requestURI` or `objectRef` keeps two, so that a redaction knows that it is
/// ambiguous.
pub(super) const KNOWN: [&[u8]; 19] = [
    b"kind",
    b"apiVersion",
    b"level",
    b"auditID",
    b"stage",
    b"requestURI",
    b"requestURI",
    b"verb",
    b"user",
    b"impersonatedUser",
    b"authenticationMetadata",
    b"sourceIPs",
    b"userAgent",
    b"objectRef",
    b"objectRef",
    b"responseStatus",
    b"requestReceivedTimestamp",
    b"stageTimestamp",
    b"annotations",
];

/// Returns the event in at most `max` bytes; `None` if that is not possible. The event must have
/// the annotation [`TRUNCATED`] already.
pub(super) fn cut(event: &[u8], max: usize) -> Option<Vec<u8>> {
    [true, false].into_iter().find_map(|keeps_id| {
        cut_strings(event, max, keeps_id).or_else(|| cut_members(event, max, keeps_id))
    })
}

/// The first way.
fn cut_strings(event: &[u8], max: usize, keeps_id: bool) -> Option<Vec<u8>> {
    let [id, uri] = scan::firsts(event, ["auditID", "requestURI"]);
    // The text of a string begins after its quote.
    let start = |value: Option<&[u8]>| value.map(|value| place(event, value).start + 1);
    let (id, uri) = (start(id).filter(|_| keeps_id), start(uri));
    let long: Vec<_> = long_strings(event).filter(|text| Some(text.start) != id).collect();
    let is_enough = |length: &usize| {
        let removed: usize = long.iter().map(|text| text.len().saturating_sub(*length)).sum();
        event.len() - removed <= max
    };
    let lengths = iter::successors(Some(max / 2), |length| Some(length / 2));
    let length =
        lengths.take_while(|length| *length >= STRING_BYTES_MIN).find(|it| is_enough(it))?;
    let edit = |text: &Range<usize>| {
        let raw = event.get(text.clone()).unwrap_or_default();
        let (kept, mark) = shortened(raw, length, Some(text.start) == uri);
        Edit { place: text.start + kept.len()..text.end, with: mark.into_bytes().into() }
    };
    let edits: Vec<_> = long.iter().filter(|text| text.len() > length).map(edit).collect();
    let mut out = Vec::with_capacity(max);
    write(event, &edits, &mut out);
    Some(out)
}

/// Returns the places of the strings of more than [`STRING_BYTES_MIN`] bytes, without their quotes.
/// Strings that are the names of members are left out.
fn long_strings(event: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    let strings = iter::from_fn(move || {
        let quote = at + memchr::memchr(b'"', event.get(at..)?)?;
        at = scan::string_end(event, quote);
        Some(quote + 1..at - 1)
    });
    strings.filter(|text| {
        let mut behind = event.get(text.end + 1..).unwrap_or_default().iter();
        text.len() > STRING_BYTES_MIN
            && behind.find(|byte| !byte.is_ascii_whitespace()) != Some(&b':')
    })
}

/// The second way.
fn cut_members(event: &[u8], max: usize, keeps_id: bool) -> Option<Vec<u8>> {
    let mut names = KNOWN.to_vec();
    let mut members: Vec<_> = children(event, event)
        .filter_map(|child| {
            let name = child.name()?;
            let own = names.iter().position(|own| **own == *name)?;
            Some((names.swap_remove(own), child.value))
        })
        .collect();
    let annotations;
    if let Some((_, value)) = members.iter_mut().find(|(name, _)| *name == b"annotations")
        && value.first() == Some(&b'{')
    {
        annotations = by_importance(value);
        *value = &annotations;
    }
    let shares = iter::successors(Some(max), |share| {
        (*share > SHARE_BYTES_MIN).then_some((share / 2).max(SHARE_BYTES_MIN))
    });
    shares.skip(1).find_map(|share| {
        let mut out = vec![b'{'];
        for (name, value) in &members {
            let is_whole = keeps_id && *name == b"auditID";
            let share = if is_whole { max } else { share };
            let form = Form { is_uri: *name == b"requestURI", levels: LEVELS_MAX };
            put(&mut out, Some(name), value, share, form);
            if out.len() > max {
                return None;
            }
        }
        out.push(b'}');
        (out.len() <= max).then_some(out)
    })
}

/// Returns the annotations with those first that matter most: the mark of a truncated event, then
/// those of kube-apiserver and of this relay.
fn by_importance(annotations: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(annotations.len());
    for wanted in 0..3 {
        for member in scan::members(annotations) {
            let name = member.name();
            let is_mark = *name == *TRUNCATED.key.as_bytes();
            let is_others = !name.starts_with(Annotations::PREFIX.as_bytes())
                && is_of_admission(&name, member.value);
            if usize::from(!is_mark) + usize::from(is_others) == wanted {
                out.push(if out.is_empty() { b'{' } else { b',' });
                put_name(&mut out, member.key);
                out.extend_from_slice(member.value);
            }
        }
    }
    if out.is_empty() {
        out.push(b'{');
    }
    out.push(b'}');
    out
}

fn put_name(out: &mut Vec<u8>, name: &[u8]) {
    out.push(b'"');
    out.extend_from_slice(name);
    out.extend_from_slice(b"\":");
}

/// The facts about a value that [`put`] needs.
#[derive(Clone, Copy)]
struct Form {
    is_uri: bool,
    /// An object or array without any more levels is left out.
    levels: usize,
}

/// Appends a member, or an element if `name` is `None`, whose value takes at most `bytes` bytes.
/// Appends nothing if the value cannot be cut to them: a number, for example.
fn put(out: &mut Vec<u8>, name: Option<&[u8]>, value: &[u8], bytes: usize, form: Form) {
    let start = out.len();
    if !matches!(out.last(), Some(b'{' | b'[')) {
        out.push(b',');
    }
    if let Some(name) = name {
        put_name(out, name);
    }
    match value {
        _ if value.len() <= bytes => out.extend_from_slice(value),
        [b'"', raw @ .., b'"'] if bytes >= QUOTED_MARK_BYTES_MAX => {
            let (kept, mark) = shortened(raw, bytes - 2, form.is_uri);
            out.push(b'"');
            out.extend_from_slice(kept);
            out.extend_from_slice(mark.as_bytes());
            out.push(b'"');
        }
        [b'{' | b'[', ..] if bytes >= 2 && form.levels > 0 => {
            put_entries(out, value, bytes, Form { is_uri: false, levels: form.levels - 1 });
        }
        _ => out.truncate(start),
    }
}

/// Appends an object or array in at most `bytes` bytes. Each entry may take half of what the
/// entries before it left, so a few large ones leave room for small ones behind them.
fn put_entries(out: &mut Vec<u8>, value: &[u8], bytes: usize, form: Form) {
    let (open, close) = if value.first() == Some(&b'{') { (b'{', b'}') } else { (b'[', b']') };
    let last_element = scan::elements(value).last();
    let mut last = vec![open];
    if let Some(element) = last_element {
        put(&mut last, None, element, bytes / 2, form);
    }
    // Both brackets and the last element, with a comma before it.
    let end = (out.len() + bytes).saturating_sub(last.len() + 2);
    out.push(open);
    for child in children(value, value) {
        let is_last = last_element.is_some_and(|last| std::ptr::eq(last, child.value));
        let left = end.saturating_sub(out.len());
        if is_last || left < ENTRY_BYTES_MIN {
            break;
        }
        // Two quotes, a colon and a comma.
        let name = child.key.map_or(1, |key| key.len() + 4);
        if let Some(bytes) = (left / 2).checked_sub(name) {
            put(out, child.key, child.value, bytes, form);
        }
    }
    if let Some(last) = last.get(1..).filter(|last| !last.is_empty()) {
        if out.last() != Some(&open) {
            out.push(b',');
        }
        out.extend_from_slice(last);
    }
    out.push(close);
}

/// Returns the beginning of the text between the quotes of a string, and the mark to put behind it.
/// Together, they have at most `bytes` bytes, or the mark alone more.
fn shortened(raw: &[u8], bytes: usize, is_uri: bool) -> (&[u8], String) {
    let mark = format!("…[cut, {} bytes]", raw.len());
    let before = |end: usize| raw.get(..end).unwrap_or_default();
    let mut end = bytes.saturating_sub(mark.len()).min(raw.len());
    let mut at = 0;
    while let Some(found) = raw.get(at..end).and_then(|text| memchr::memchr(b'\\', text)) {
        let escape = at + found;
        at = escape + text::escape(raw.get(escape..).unwrap_or_default()).1;
        if at > end {
            end = escape;
        }
    }
    while raw.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) && end > 0 {
        end -= 1;
    }
    if is_uri && let Some(query) = memchr::memchr(b'?', before(end)) {
        let parameters = before(end);
        let ends = [memchr::memrchr(b'&', parameters), memmem::rfind(parameters, br"\u0026")];
        end = ends.into_iter().flatten().fold(query + 1, usize::max);
    }
    let is_of_token =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'\\');
    let run = before(end).iter().rposition(|byte| !is_of_token(byte)).map_or(0, |at| at + 1);
    // The beginning of a token, or a letter that is written as an escape, such as `\u0065`.
    let begins = |text: &[u8]| {
        text.starts_with(b"eyJ") || matches!(text, [b'\\', b'u', b'0', b'0', b'4'..=b'7'])
    };
    let token = before(end).get(run..).unwrap_or_default().windows(5).position(begins);
    end = token.map_or(end, |token| run + token);
    (before(end), mark)
}
