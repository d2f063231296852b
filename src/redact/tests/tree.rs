//! JSON as a tree that keeps the order of members, duplicate keys, and numbers as they are written.
//! A tree can be written with random spelling and white space, and is read by serde_json.

use std::fmt;

use serde::de;
use serde_json::value::RawValue;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tree {
    /// A number, `true`, `false` or `null`, as it is written.
    Plain(String),
    Text(String),
    Array(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// The tree of this JSON, which must be valid.
    pub(super) fn read(json: &str) -> Self {
        match json.as_bytes()[0] {
            b'"' => Self::Text(serde_json::from_str(json).unwrap()),
            b'[' => {
                let elements: Vec<Box<RawValue>> = serde_json::from_str(json).unwrap();
                Self::Array(elements.iter().map(|element| Self::read(element.get())).collect())
            }
            b'{' => {
                let Members(members) = serde_json::from_str(json).unwrap();
                Self::Object(
                    members
                        .into_iter()
                        .map(|(key, value)| (key, Self::read(value.get())))
                        .collect(),
                )
            }
            _ => Self::Plain(json.to_owned()),
        }
    }

    /// Writes the tree as JSON, with random escapes and random white space.
    pub(super) fn write(&self, rng: &mut fastrand::Rng, out: &mut String) {
        match self {
            Self::Plain(plain) => out.push_str(plain),
            Self::Text(text) => spell(text, rng, out),
            Self::Array(elements) => {
                out.push('[');
                for (index, element) in elements.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    space(rng, out);
                    element.write(rng, out);
                    space(rng, out);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (index, (key, value)) in members.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    space(rng, out);
                    spell(key, rng, out);
                    space(rng, out);
                    out.push(':');
                    space(rng, out);
                    value.write(rng, out);
                    space(rng, out);
                }
                out.push('}');
            }
        }
    }

    /// Returns `true` if a text or a key in the tree contains the word.
    pub(super) fn mentions(&self, word: &str) -> bool {
        match self {
            Self::Plain(text) | Self::Text(text) => text.contains(word),
            Self::Array(elements) => elements.iter().any(|element| element.mentions(word)),
            Self::Object(members) => {
                members.iter().any(|(key, value)| key.contains(word) || value.mentions(word))
            }
        }
    }

    /// The values of all members with this name; empty if the tree is no object.
    pub(super) fn all(&self, name: &str) -> Vec<&Self> {
        match self {
            Self::Object(members) => {
                members.iter().filter(|(key, _)| key == name).map(|(_, value)| value).collect()
            }
            Self::Plain(_) | Self::Text(_) | Self::Array(_) => Vec::new(),
        }
    }
}

fn space(rng: &mut fastrand::Rng, out: &mut String) {
    if rng.u8(..8) == 0 {
        out.push_str(["  ", " ", "\t"][rng.usize(..3)]);
    }
}

fn spell(text: &str, rng: &mut fastrand::Rng, out: &mut String) {
    let share = [0, 0, 4][rng.usize(..3)];
    out.push('"');
    for char in text.chars() {
        if char < ' ' || matches!(char, '"' | '\\') || rng.u8(..8) < share {
            for unit in char.encode_utf16(&mut [0; 2]) {
                let digits = if rng.bool() { format!("{unit:04x}") } else { format!("{unit:04X}") };
                out.push_str("\\u");
                out.push_str(&digits);
            }
        } else {
            out.push(char);
        }
    }
    out.push('"');
}

struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> de::Deserialize<'de> for Members {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}
