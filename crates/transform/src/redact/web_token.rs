//! Finds JSON Web Tokens in an event: in every string, whether it is a value or a name.
//!
//! A token (RFC 7519) begins with a JSON object in base64, which begins with `eyJ` unless it has
//! white space before its first key. The parts of a token consist of the letters of base64 and are
//! separated by dots, and JSON requires no escape for any of these characters. The sender of a
//! patch may escape them nevertheless, so escapes are resolved before the search.

use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::text;
use super::text::REDACTED;
use super::walk::EDITS_MAX;
use audit::scan;

/// The three characters with which a JSON Web Token must begin to be found.
static BEGINNING: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"eyJ"));

/// Returns `true` if [`redact`] must search this event for tokens. Most events lack the characters
/// with which tokens begin. An event that may contain letters as escapes (`spells_letters`) must
/// always be searched.
pub(super) fn may_be_in(event: &[u8], spells_letters: bool) -> bool {
    let mut at = 0;
    while let Some(found) = BEGINNING.find(event.get(at..).unwrap_or_default()) {
        at = run(event, at + found);
        // A token's header ends at a dot. A backslash may begin an escape inside the header, so an
        // event with one must be searched too.
        if matches!(event.get(at), Some(b'.' | b'\\')) {
            return true;
        }
    }
    spells_letters
}

/// Returns the event with its tokens replaced, if it has any. The result is never longer than the
/// event.
///
/// Tokens can also occur in the names of members, and two names must not become equal. Each
/// replacement in a name, except for the first one in the event, therefore ends in a number, as in
/// `REDACTED-2`, if the token was long enough for it.
pub(super) fn redact(event: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut copied, mut at, mut names) = (0, 0, 0_usize);
    while let Some(found) = memchr::memchr(b'"', event.get(at..).unwrap_or_default()) {
        let start = at + found + 1;
        at = scan::string_end(event, at + found);
        let parts = in_string(event.get(start..at - 1).unwrap_or_default());
        if parts.is_empty() {
            continue;
        }
        let behind = event.get(at..).unwrap_or_default().iter();
        let is_name = behind.clone().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
        for part in parts {
            names += usize::from(is_name);
            let number = if is_name { names } else { 1 };
            out.extend_from_slice(event.get(copied..start + part.start).unwrap_or_default());
            put(&mut out, part.len(), number);
            copied = start + part.end;
        }
    }
    if copied == 0 {
        return None;
    }
    out.extend_from_slice(event.get(copied..).unwrap_or_default());
    Some(out)
}

/// Appends `REDACTED`, cut to `length` bytes. A `number` above 1 follows, as in `REDACTED-2`, if it
/// fits.
fn put(out: &mut Vec<u8>, length: usize, number: usize) {
    let numbered = format!("-{number}");
    out.extend_from_slice(REDACTED.get(..length).unwrap_or(REDACTED));
    if number > 1 && REDACTED.len() + numbered.len() <= length {
        out.extend_from_slice(numbered.as_bytes());
    }
}

/// Returns the ranges of the tokens in `raw`, the text between the quotes of a string. For
/// [`EDITS_MAX`] or more tokens, this is one range for the whole string.
fn in_string(raw: &[u8]) -> Vec<Range<usize>> {
    let some = |text: &[u8]| web_tokens(text).take(EDITS_MAX).collect::<Vec<_>>();
    let mut parts;
    if memchr::memchr(b'\\', raw).is_none() {
        parts = some(raw);
    } else {
        parts = some(&text::unescape(raw));
        text::to_written(raw, &mut parts);
    }
    if parts.len() >= EDITS_MAX {
        parts.truncate(1);
        parts.fill(0..raw.len());
    }
    parts
}

pub(super) fn web_tokens(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    web_tokens_by(text, |from| run(text, from))
}

/// Returns the index of the first byte at or after `from` that is not a character of base64; the
/// length of the text if there is none.
fn run(text: &[u8], from: usize) -> usize {
    let of_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let rest = text.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| of_base64(byte)).count()
}

/// Returns the ranges of the JSON Web Tokens in a text whose second part is not empty. `run`
/// returns the end of the run of base64 characters that begins at its argument. Each run is read at
/// most twice, so the search takes linear time even if the text has many beginnings of tokens.
fn web_tokens_by(
    text: &[u8],
    mut run: impl FnMut(usize) -> usize,
) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(found) = BEGINNING.find(text.get(at..)?) {
            let start = at + found;
            let header = run(start);
            // The same byte would follow the header of a token that begins later in this run, so
            // the rest of the run is skipped.
            at = header;
            if text.get(header) != Some(&b'.') {
                continue;
            }
            let mut claims = run(header + 1);
            if claims == header + 1 && text.get(claims) == Some(&b'.') {
                // The second part of an encrypted token is the encrypted key, and is empty if both
                // sides have the key already. A dot follows its third part too; no dot follows the
                // third part of a signed token without its claims, which gives no access.
                claims = run(claims + 1);
                if claims == header + 2 {
                    continue;
                }
            }
            if claims > header + 1 && text.get(claims) == Some(&b'.') {
                // An encrypted token (RFC 7516) has five parts.
                at = claims;
                while text.get(at) == Some(&b'.') {
                    at = run(at + 1);
                }
                return Some(start..at);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::marked;

    fn redacted(event: &str) -> String {
        let bytes = event.as_bytes();
        let spells = memchr::memmem::find(bytes, b"\\u00").is_some();
        let out = redact(bytes);
        assert!(out.is_none() || may_be_in(bytes, spells), "{event}");
        let out = out.map_or(event.to_owned(), |out| String::from_utf8(out).unwrap());
        assert!(out.len() <= event.len(), "{out}");
        out
    }

    #[test]
    fn tokens_are_found_in_every_string_of_an_event() {
        for row in [
            r#"{"a":"«eyJh.eyJz.Si-_g→REDACTED»"}"#,
            r#"{"a":["Bearer «eyJh.eyJz.Sig→REDACTED», «eyJh.eyJz.Sig→REDACTED»"]}"#,
            r#"{"«eyJh.eyJz.Sig→REDACTED»":{"b":1}}"#,
            r#"{"«eyJh.eyJz.Signature→REDACTED»":1,"«eyJh.eyJy.Signature→REDACTED-2»" :2,"«eyJh.eyJ.c→REDACTED-3»":"«eyJh.eyJz.Signature→REDACTED»"}"#,
            // The replacement is cut, because it is never longer than the token.
            r#"{"a":"«eyJ.b.→REDACT»"}"#,
            // Encrypted tokens.
            r#"{"a":"«eyJh.key.iv.text.tag→REDACTED» b"}"#,
            r#"{"a":"«eyJh..iv.text.tag→REDACTED» b"}"#,
            r#"{"«eyJ.b.c→REDACTE»":"«eyJ.b.c→REDACTE»"}"#,
            // JSON inside a string, and strings with escapes.
            r#"{"a":"{\"b\":\"«eyJh.eyJz.Sig→REDACTED»\"}"}"#,
            r#"{"a":"«\u0065yJh\u002eeyJz.S\u0069g→REDACTED»\n"}"#,
            r#"{"a":"\u123eyJh.eyJz.Sig"}"#,
            r#"{"a":"\n«eyJh.eyJz.Sig→REDACTED»\\"}"#,
            r#"{"a":"x\"«eyJh.eyJz.Sig→REDACTED»","b\\":"«eyJh.eyJz.Sig→REDACTED»"}"#,
            // No tokens.
            r#"{"a":"eyJ2IjoibWV0YS5rOHMuaW8"}"#,
            r#"{"a":"eyJh.eyJz"}"#,
            r#"{"a":"eyJh..Sig"}"#,
            r#"{"a":"eyJh...Sig"}"#,
            r#"{"a":"eyJh","b":".eyJz.Sig"}"#,
        ] {
            let (event, expected) = marked(row);
            assert_eq!(redacted(&event), expected);
            assert_eq!(redacted(&expected), expected);
        }
    }

    #[test]
    fn an_event_without_the_beginning_of_a_token_is_not_looked_through() {
        for event in [
            r#"{"a":"x\u0026y"}"#,
            r#"{"a":"eyJ2IjoibWV0YS5rOHMuaW8"}"#,
            r#"{"requestURI":"/a?continue=eyJ2Ijoi\u0026limit=1"}"#,
            "{}",
        ] {
            let is_alone = event.contains("continue");
            assert_eq!(may_be_in(event.as_bytes(), false), is_alone, "{event}");
            assert_eq!(redacted(event), event);
        }
        assert!(may_be_in(b"{}", true));
    }

    #[test]
    fn a_string_of_nothing_but_tokens_goes_as_a_whole() {
        let few = EDITS_MAX - 1;
        let event = |times| format!(r#"{{"a":"{}b"}}"#, "eyJh.eyJz.Sig ".repeat(times));
        let kept = format!(r#"{{"a":"{}b"}}"#, "REDACTED ".repeat(few));
        assert!(redacted(&event(few)) == kept);
        assert_eq!(redacted(&event(few + 1)), r#"{"a":"REDACTED"}"#);
    }

    #[test]
    fn beginnings_of_web_tokens_cost_no_more_than_their_length() {
        let many = 1 << 18;
        for (text, expected) in [
            ("eyJ".repeat(many), 0),
            ("eyJ".repeat(many) + ".", 0),
            ("eyJ".repeat(many) + "..", 0),
            ("eyJ".repeat(many) + "." + &"a".repeat(many), 0),
            ("eyJ".repeat(many) + "." + &"eyJ".repeat(many), 0),
            ("eyJ./".repeat(many), 0),
            ("eyJ..".repeat(many), 1),
            ("eyJ..a/".repeat(many), 0),
            ("eyJ..eyJ/".repeat(many), 0),
            ("eyJ..".to_owned() + &"eyJ".repeat(many), 0),
            ("eyJ.a/".repeat(many), 0),
            ("eyJ.".repeat(many), 1),
            ("eyJ.eyJ./".repeat(many), many),
            ("eyJ".repeat(many) + ".a.", 1),
        ] {
            let mut steps = 0;
            let counting = |from| {
                let end = run(text.as_bytes(), from);
                steps += end - from + 1;
                end
            };
            assert_eq!(web_tokens_by(text.as_bytes(), counting).count(), expected);
            assert!(steps <= 3 * text.len(), "{steps} for {}: {:.16}", text.len(), text);
        }
    }
}
