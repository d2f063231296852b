//! Decides which characters may reach a terminal unchanged, and escapes the others.
//!
//! A printed text may come from a stranger, and could clear the screen, forge a line or look like
//! another text. A character reaches a terminal unchanged only if it [is plain](is_plain). Control
//! characters (C0, DEL, C1), controls of direction, and spaces other than that of ASCII are not
//! plain. Nor are characters without a width (combining marks and tags too), and unassigned or
//! private ones, and the few letters that are blank. The escapes of std (`{:?}`) follow the same
//! rule, except for quotes, backslashes, combining marks and blank letters.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The largest number of characters that [`field`] shows. Names of users are usually shorter.
const FIELD_CHARS_MAX: usize = 256;

/// The characters that std counts as printable although nothing is seen: the fillers of Hangul, the
/// blank pattern of Braille, the blanks of Egyptian hieroglyphs, and the null notehead.
const BLANK: &str = "\u{115f}\u{1160}\u{2800}\u{3164}\u{ffa0}\u{13441}\u{13442}\u{1d159}";

/// Returns `true` if a terminal shows the character unchanged and at its place.
pub fn is_plain(char: char) -> bool {
    match char {
        ' '..='~' => true,
        _ if BLANK.contains(char) => false,
        // std escapes every character that Unicode does not count as printable by itself.
        _ => char.escape_debug().len() == 1,
    }
}

/// Adds the escape of a character that is not plain.
fn push_escaped(safe: &mut String, char: char) {
    match BLANK.contains(char) {
        true => safe.extend(char.escape_unicode()),
        false => safe.extend(char.escape_debug()),
    }
}

/// Escapes the characters of a JSON text that are not plain. The value of the text stays the same.
pub fn json(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_plain(char) {
            safe.push(char);
        } else if char < ' ' {
            // RFC 8259 §7: strings have no unescaped control characters, so this one is whitespace.
            safe.push(' ');
        } else {
            for unit in char.encode_utf16(&mut [0; 2]) {
                write!(safe, "\\u{unit:04x}").ok();
            }
        }
    }
    Cow::Owned(safe)
}

/// Returns a text as one field of a line whose fields are separated by spaces. A text with a space,
/// a quote, a backslash, one of `separators`, or a character that is not plain is quoted and
/// escaped, so that nobody can forge a field. A text of more than 256 bytes is quoted too, and cut
/// after 256 characters. An empty text becomes `-`, and the text `-` becomes `"-"`.
pub fn field(text: &str, separators: &str) -> String {
    let is_bare = |char: char| {
        is_plain(char) && !matches!(char, ' ' | '"' | '\\') && !separators.contains(char)
    };
    if text.is_empty() {
        return "-".to_owned();
    }
    if text != "-" && text.len() <= FIELD_CHARS_MAX && text.chars().all(is_bare) {
        return text.to_owned();
    }
    let mut chars = text.chars();
    let mut safe = String::from("\"");
    for char in chars.by_ref().take(FIELD_CHARS_MAX) {
        match char {
            '"' | '\\' => safe.extend(['\\', char]),
            _ if is_plain(char) => safe.push(char),
            _ => push_escaped(&mut safe, char),
        }
    }
    safe.push_str(if chars.next().is_some() { "…\"" } else { "\"" });
    safe
}

/// Returns a text with escapes such as `\u{1b}` for characters that are not plain.
pub fn message(text: &str) -> String {
    // This fast check looks at many bytes at a time. Most texts are plain ASCII.
    if text.bytes().fold(true, |is_plain, byte| is_plain & matches!(byte, b' '..=b'~')) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        if is_plain(char) { safe.push(char) } else { push_escaped(&mut safe, char) }
    }
    safe
}

/// Returns [`message`] of a text, cut to `bytes_max` bytes (at least 3). A cut text ends with `…`.
pub fn cut(text: &str, bytes_max: usize) -> String {
    // `start` is longer than `bytes_max` if `text` is. No escape is shorter than its character.
    let (start, _) = text.split_at(text.floor_char_boundary(bytes_max + 4));
    let mut safe = message(start);
    if safe.len() > bytes_max {
        safe.truncate(safe.floor_char_boundary(bytes_max.saturating_sub('…'.len_utf8())));
        safe.push('…');
    }
    safe
}

/// Returns the first characters of a text, with U+FFFD for each one that is not plain.
pub fn masked(text: &str, chars_max: usize) -> String {
    let mask = |char| if is_plain(char) { char } else { char::REPLACEMENT_CHARACTER };
    text.chars().take(chars_max).map(mask).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns `true` if no character of the text can change how a terminal shows the others. The
    /// list comes from the Unicode standard, and not from the code above.
    fn is_safe(text: &str) -> bool {
        text.chars().all(|char| {
            !matches!(
                char,
                '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{180e}'
                    | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                    | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
                    | '\u{300}'..='\u{36f}' | '\u{fe00}'..='\u{fe0f}' | '\u{a0}' | '\u{3000}'
                    | '\u{115f}' | '\u{1160}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}'
            )
        })
    }

    /// Texts with many characters that are dangerous.
    fn texts() -> impl Strategy<Value = String> {
        let dangerous = "\x1b\x07\n\r\t\x7f\u{9b}\u{85}\u{202e}\u{2066}\u{200d}\u{feff}\u{e0041}\u{301}\
                         \u{115f}\u{2800}\u{3164}\u{ffa0}\"\\ /[-";
        let dangerous = proptest::sample::select(dangerous.chars().collect::<Vec<_>>());
        let char = prop_oneof![dangerous, any::<char>(), proptest::char::range(' ', '~')];
        proptest::collection::vec(char, 0..400).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn a_field_is_one_safe_word_whatever_the_client_chose(text in texts()) {
            let shown = field(&text, "/[");
            prop_assert!(is_safe(&shown), "{shown:?}");
            match shown.strip_prefix('"') {
                // Nothing in a bare field separates it from its neighbours.
                None => prop_assert!(
                    shown == "-" && text.is_empty()
                        || shown == text && !shown.contains([' ', '/', '[', '"', '\\'])
                ),
                // The only quote that is not escaped is the last character.
                Some(rest) => {
                    let mut is_escaped = false;
                    let end = rest.chars().position(|char| {
                        let ends = char == '"' && !is_escaped;
                        is_escaped = char == '\\' && !is_escaped;
                        ends
                    });
                    prop_assert_eq!(end, Some(rest.chars().count() - 1));
                }
            }
        }

        #[test]
        fn json_keeps_its_value_and_is_safe(text in texts()) {
            let before = serde_json::to_string(&text).unwrap();
            let after = json(&before);
            prop_assert!(is_safe(&after), "{after:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&after).unwrap(), text);
        }

        #[test]
        fn a_message_is_safe(text in texts(), chars_max in 0_usize..500) {
            prop_assert!(is_safe(&message(&text)));
            let masked = masked(&text, chars_max);
            prop_assert!(is_safe(&masked));
            prop_assert_eq!(masked.chars().count(), text.chars().count().min(chars_max));
            let (whole, cut) = (message(&text), cut(&text, chars_max + 3));
            prop_assert!(is_safe(&cut) && cut.len() <= chars_max + 3);
            prop_assert!(cut == whole || cut.strip_suffix('…').is_some_and(|it| whole.starts_with(it)));
        }
    }

    #[test]
    fn each_character_that_hides_or_commands_is_escaped() {
        let dangerous: Vec<char> =
            ('\0'..=char::MAX).filter(|char| !is_safe(&char.to_string())).collect();
        assert!(dangerous.len() > 300 && dangerous.contains(&'\u{1b}'));
        for char in dangerous {
            assert!(!is_plain(char), "{char:?}");
            assert!(message(&char.to_string()).is_ascii(), "{char:?}");
        }
    }

    #[test]
    fn usual_texts_stay_as_they_are() {
        for text in ["system:serviceaccount:a:b", "jürgen@example.org", "日本", "10.0.0.1"] {
            assert_eq!(field(text, "/"), text);
            assert_eq!(message(text), text);
        }
        assert_eq!(field("a b", ""), r#""a b""#);
        assert_eq!(field("a/b", "/"), r#""a/b""#);
        assert_eq!(field("", ""), "-");
        assert_eq!(field("-", ""), r#""-""#);
        assert_eq!(field("a\u{1b}[31m", ""), r#""a\u{1b}[31m""#);
        assert_eq!(field(&"a".repeat(300), "").chars().count(), 259);
        assert_eq!(json("{\"a\":\t\"\u{202e}\u{e0041}\"}"), r#"{"a": "\u202e\udb40\udc41"}"#);
    }
}
