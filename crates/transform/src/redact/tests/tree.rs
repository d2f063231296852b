//! JSON as a tree that keeps the order of members, duplicate keys, and numbers as they are written.
//! A tree is read by serde_json, so that the relay's own scanner is not its own judge. It can be
//! written with random spelling and white space.

use std::fmt;

use serde::de;
use serde_json::value::RawValue;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tree {
    /// A number, `true`, `false` or `null`, as it is written.
    Plain(String),
    /// A string with its escapes resolved; as it is written if it has a lone surrogate.
    Text(String),
    Array(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub(crate) fn read(json: &str) -> Self {
        let string = |raw: &str| match serde_json::from_str(raw) {
            Ok(text) => text,
            Err(_) => raw.trim_matches('"').to_owned(),
        };
        match json.as_bytes()[0] {
            b'"' => Self::Text(string(json)),
            b'[' => {
                let elements: Vec<Box<RawValue>> = serde_json::from_str(json).expect(json);
                Self::Array(elements.iter().map(|element| Self::read(element.get())).collect())
            }
            b'{' => {
                let Pairs(pairs) = serde_json::from_str(json).expect(json);
                let member = |(key, value): &(Box<RawValue>, Box<RawValue>)| {
                    (string(key.get()), Self::read(value.get()))
                };
                Self::Object(pairs.iter().map(member).collect())
            }
            _ => Self::Plain(json.to_owned()),
        }
    }

    /// Writes the tree as JSON, with random escapes and random white space.
    pub(crate) fn write(&self, rng: &mut fastrand::Rng, out: &mut String) {
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
    pub(crate) fn mentions(&self, word: &str) -> bool {
        match self {
            Self::Plain(text) | Self::Text(text) => text.contains(word),
            Self::Array(elements) => elements.iter().any(|element| element.mentions(word)),
            Self::Object(members) => {
                members.iter().any(|(key, value)| key.contains(word) || value.mentions(word))
            }
        }
    }

    /// Returns the values of all members with this name; empty if the tree is not an object.
    pub(crate) fn all(&self, name: &str) -> Vec<&Self> {
        match self {
            Self::Object(members) => {
                members.iter().filter(|(key, _)| key == name).map(|(_, value)| value).collect()
            }
            Self::Plain(_) | Self::Text(_) | Self::Array(_) => Vec::new(),
        }
    }
}

/// The members of an object in their order, each key and value as it is written.
pub(crate) struct Pairs(pub(crate) Vec<(Box<RawValue>, Box<RawValue>)>);

impl<'de> de::Deserialize<'de> for Pairs {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor)
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
