//! Printing of the effective config and of the reference.

use super::reader::{Entry, Item};

/// Returns the config as TOML with every default filled in. Each `${…}` is printed unexpanded.
pub fn effective(items: &[Item]) -> String {
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

/// Returns the recorded keys, grouped by section. Keys that several types of output declare with
/// exactly the same texts become one entry that lists all these types.
pub fn merged(items: Vec<Item>) -> Vec<Entry> {
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

/// Returns the config reference: all keys as a Markdown table. `types` are all types of output. A
/// key that all types have is printed without a list of types.
pub fn reference(entries: &[Entry], types: &[&str]) -> String {
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
