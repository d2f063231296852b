//! Values and keys as TOML, and as messages show them.

use std::fmt::Write as _;

use toml::de::DeValue;

use base::words::escape::is_plain;

/// The maximum number of characters of a value that an error message shows.
const SHOWN_CHARS_MAX: usize = 60;

/// Returns a text as a basic string of TOML: in double quotes, and with escapes where necessary.
pub fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if is_plain(c) => quoted.push(c),
            c => {
                let code = u32::from(c);
                let escaped = match code {
                    ..0x10000 => write!(quoted, "\\u{code:04X}"),
                    _ => write!(quoted, "\\U{code:08X}"),
                };
                escaped.expect("a String takes everything");
            }
        }
    }
    quoted.push('"');
    quoted
}

pub(crate) fn bare_or_quoted(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(bare) { key.to_owned() } else { quoted(key) }
}

/// Returns a value as TOML, on one line.
pub fn literal(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(date) => date.to_string(),
        DeValue::Array(array) => {
            let values: Vec<_> = array.iter().map(|value| literal(value.get_ref())).collect();
            format!("[{}]", values.join(", "))
        }
        DeValue::Table(table) => {
            let keys: Vec<_> = table
                .iter()
                .map(|(key, value)| {
                    format!("{} = {}", bare_or_quoted(key.get_ref()), literal(value.get_ref()))
                })
                .collect();
            if keys.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", keys.join(", ")) }
        }
    }
}

/// Returns a value as messages show it: as TOML, on one line, cut after 60 characters.
pub fn shown(value: &DeValue<'_>) -> String {
    cut(literal(value))
}

/// Cuts the text after 60 characters. A text that was cut ends in `…`.
pub fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(SHOWN_CHARS_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}
