//! Decides whether an event names its object or its URI twice, so that a consumer's parser may read
//! another object than this program does.
//!
//! Outside of patches, which it records as sent, kube-apiserver writes each key once and no letter
//! as an escape. For most of its events, two searches and a look at one small object are enough.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use audit::scan;

/// The key `objectRef` as it usually is in an event: with its quotes and without escapes.
static OBJECT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""objectRef""#));

/// The members of `objectRef` that decide which redaction rules apply to an event.
const PARTS: [&[u8]; 3] = [b"apiGroup", b"resource", b"subresource"];

static URI: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(br#""requestURI""#));

/// The beginning of an escape whose code is below `\u0100`.
static ESCAPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\\u00"));

/// Returns `true` if the event has `objectRef` or `requestURI` more than once, or if `objectRef`
/// (even the only one, inside a body) has one of [`PARTS`] more than once: parsers differ in which
/// key they read. `spells_letters` is the result of [`spells_letters`] for this event. The first
/// `known` bytes ([`Look::known`](super::look::Look::known)) have none of these members twice.
pub(super) fn is_ambiguous(event: &[u8], known: usize, spells_letters: bool) -> bool {
    if known > 0 && !spells_letters {
        let rest = event.get(known..).unwrap_or_default();
        let may_repeat = OBJECT.find(rest).is_some() || URI.find(rest).is_some();
        return may_repeat && is_repeated(event);
    }
    let mut places = OBJECT.find_iter(event);
    match (places.next(), places.next()) {
        _ if spells_letters => is_repeated(event),
        _ if URI.find_iter(event).nth(1).is_some() => is_repeated(event),
        (None, _) => false,
        // The second key may be inside a body, so the event's own members are read.
        (Some(_), Some(_)) => is_repeated(event),
        (Some(at), None) => {
            let behind = event.get(at + OBJECT.needle().len()..).unwrap_or_default();
            let value = behind.iter().position(|byte| !b": \t\n\r".contains(byte));
            value.and_then(|at| behind.get(at..)).is_some_and(repeats_parts)
        }
    }
}

/// Returns `true` if the event may contain a letter that is written as an escape, such as `\u0041`
/// for `A`. Codes below `\u0040` do not count: they are not letters, and kube-apiserver writes some
/// of them, such as `\u0026`.
pub(super) fn spells_letters(event: &[u8]) -> bool {
    ESCAPE.find_iter(event).any(|at| event.get(at + 4).is_some_and(|byte| *byte > b'3'))
}

/// Does the work of [`is_ambiguous`] by reading all members of the event.
fn is_repeated(event: &[u8]) -> bool {
    let (mut has_object, mut has_uri) = (false, false);
    scan::members(event).any(|member| match &*member.name() {
        b"objectRef" => std::mem::replace(&mut has_object, true) || repeats_parts(member.value),
        b"requestURI" => std::mem::replace(&mut has_uri, true),
        _ => false,
    })
}

/// Returns `true` if one of [`PARTS`] occurs more than once in the JSON object at the beginning of
/// `object`.
fn repeats_parts(object: &[u8]) -> bool {
    if object.first() != Some(&b'{') {
        return false;
    }
    let mut counts = [0; PARTS.len()];
    for member in scan::members(object) {
        let key = member.name();
        if let Some(index) = PARTS.iter().position(|name| *key == **name) {
            counts[index] += 1;
        }
    }
    counts.iter().any(|count| *count > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_twice_is_told_however_it_is_written() {
        for (event, expected) in [
            (r#"{"objectRef":{"resource":"pods","name":"a","name":"b"},"verb":1,"verb":2}"#, false),
            (r#"{"objectRef":{"resource":"pods"},"requestObject":{"objectRef":{}}}"#, false),
            (r#"{"requestObject":{"objectRef":1,"objectRef":2}}"#, false),
            (r#"{"requestURI":"/a?b\u0026c\u003d","objectRef":{"resource":"a"}}"#, false),
            (r#"{"requestURI":"\u0041","objectRef":{"resource":"a"}}"#, false),
            (r#"{"objectRef":{"resource":"pods"},"objectRef":null}"#, true),
            (r#"{"objectRef":{"resource":"pods"},"object\u0052ef":null}"#, true),
            (r#"{"objectRef" : {"resource":"pods","resource":"secrets"}}"#, true),
            (r#"{"objectRef":{"resource":"pods","\u0072esource":"secrets"}}"#, true),
            (r#"{"objectRef":{"apiGroup":"","apiGroup":"a"},"x":{"objectRef":1}}"#, true),
            (r#"{"object\u0052ef":{"apiGroup":"","apiGroup":"a"}}"#, true),
            (r#"{"objectRef":{"subresource":"","subresource":"a"}}"#, true),
            (r#"{"requestURI":"/a","request\u0055RI":"/b"}"#, true),
            (r#"{"requestURI":"/a","requestObject":{"requestURI":"/b"}}"#, false),
            ("{}", false),
        ] {
            let event = event.as_bytes();
            let is_told = is_ambiguous(event, 0, spells_letters(event));
            assert_eq!(is_told, expected, "{}", event.escape_ascii());
        }
    }
}
