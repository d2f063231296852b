//! Printing: the effective config, the reference, and values in messages.

use std::fmt::Write as _;

use toml::de::DeValue;

use super::reader::Entry;
use super::reader::Item;

/// A value of more characters is cut in messages.
const SHOWN_CHARS_MAX: usize = 60;

/// The config as TOML with every default filled in. Strings are as the file has them: a `${…}` in
/// them is not expanded.
pub(super) fn effective(items: &[Item]) -> String {
    let mut printed = String::new();
    let mut header = None;
    for item in items {
        match item {
            Item::Header(section) => header = Some(section),
            Item::Key(Entry { name, value: Some(value), .. }) => {
                // The header of a section is printed with its first key that has a value.
                if let Some(section) = header.take() {
                    let gap = if printed.is_empty() { "" } else { "\n" };
                    printed.push_str(&format!("{gap}{section}\n"));
                }
                printed.push_str(&format!("{name} = {value}\n"));
            }
            Item::Key(_) => {}
        }
    }
    printed
}

/// The keys among the items. Keys of several types of output that are declared in the same words
/// become one entry with all these types, and the keys of one section stand together.
pub(super) fn merged(items: Vec<Item>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for item in items {
        let Item::Key(entry) = item else { continue };
        let same = |other: &&mut Entry| {
            (&other.section, other.name, &other.kind, &other.default, other.meaning)
                == (&entry.section, entry.name, &entry.kind, &entry.default, entry.meaning)
        };
        match entries.iter_mut().find(same) {
            Some(other) => {
                other.scopes.extend(&entry.scopes);
                other.scopes.dedup();
            }
            None => entries.push(entry),
        }
    }
    let mut sections: Vec<String> = Vec::new();
    for entry in &entries {
        if !sections.contains(&entry.section) {
            sections.push(entry.section.clone());
        }
    }
    entries.sort_by_key(|entry| sections.iter().position(|section| *section == entry.section));
    entries
}

/// All keys as a Markdown table. `types` are all types of output: a key that all of them have is
/// printed without their names.
pub(super) fn reference(entries: &[Entry], types: &[&str]) -> String {
    let mut table = "| key | kind | default | meaning |\n|---|---|---|---|\n".to_owned();
    for entry in entries {
        let Entry { section, scopes, name, kind, default, meaning, .. } = entry;
        let of_all = scopes.is_empty() || scopes.len() == types.len();
        let scope = if of_all { String::new() } else { format!(" ({})", scopes.join(", ")) };
        let literal = default.starts_with(|c: char| "\"[{".contains(c) || c.is_ascii_digit())
            || matches!(default.as_str(), "true" | "false");
        let dot = if section.is_empty() { "" } else { "." };
        let default = if literal { format!("`{default}`") } else { default.clone() };
        table.push_str(&format!(
            "| `{section}{dot}{name}`{scope} | {kind} | {default} | {meaning} |\n"
        ));
    }
    table
}

/// A text as a basic string of TOML, with its quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            // TOML requires escapes for control characters. The others here hide text, or turn its
            // direction, where a message is shown.
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}') =>
            {
                let code = u32::from(c);
                write!(quoted, "\\u{code:04X}").expect("a String takes everything");
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A key as TOML: quoted only if it has to be.
pub(super) fn bare_or_quoted(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(bare) { key.to_owned() } else { quoted(key) }
}

/// A value as TOML, on one line.
pub(super) fn literal(value: &DeValue<'_>) -> String {
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

/// A value as a message shows it: as TOML, on one line, and cut after 60 characters.
pub(super) fn shown(value: &DeValue<'_>) -> String {
    cut(literal(value))
}

/// Cuts a text after 60 characters; see [`shown`].
pub(super) fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(SHOWN_CHARS_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}
