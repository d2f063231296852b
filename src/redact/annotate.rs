//! Members that an event's `annotations` get, besides those that it has.

use std::ops::Range;

use super::walk::Child;
use super::walk::Edit;

/// Says that the bodies of an event were larger than what takes it; kube-apiserver's own word for it.
pub(super) static TRUNCATED: Addition = Addition {
    key: std::borrow::Cow::Borrowed("audit.k8s.io/truncated"),
    member: std::borrow::Cow::Borrowed(r#""audit.k8s.io/truncated":"true""#),
};

/// Constants for every event, as JSON.
#[derive(Debug)]
pub struct Annotations {
    additions: Vec<Addition>,
}

#[derive(Debug)]
pub(super) struct Addition {
    key: std::borrow::Cow<'static, str>,
    member: std::borrow::Cow<'static, str>,
}

impl Annotations {
    /// What their keys begin with.
    pub const PREFIX: &str = "kube-audit-forwarder/";

    /// Of names, each once, and their values.
    pub fn new<'a>(constants: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let json = |text: &str| serde_json::Value::from(text).to_string();
        let addition = |(name, value)| {
            let key = format!("{}{name}", Self::PREFIX);
            let member = format!("{}:{}", json(&key), json(value));
            Addition { key: key.into(), member: member.into() }
        };
        Self { additions: constants.into_iter().map(addition).collect() }
    }

    pub(super) fn additions(&self) -> impl Iterator<Item = &Addition> {
        self.additions.iter()
    }
}

/// The `annotations` of an event, or one of them where it has several.
#[derive(Debug)]
pub(super) struct Target<'a> {
    /// Where members are added; the whole of what is no object yet.
    place: Range<usize>,
    is_object: bool,
    /// As written: those that stay.
    keys: Vec<Child<'a>>,
}

impl<'a> Target<'a> {
    /// `None`: nothing can be added to it.
    pub(super) fn new(place: Range<usize>, value: &[u8], keys: Vec<Child<'a>>) -> Option<Self> {
        let is_object = value.first() == Some(&b'{');
        let place = match keys.last() {
            _ if !is_object => place,
            Some(last) => last.place.1..last.place.1,
            None => place.start + 1..place.start + 1,
        };
        (is_object || value == b"null").then_some(Self { place, is_object, keys })
    }

    /// What to write, where it has not all of these.
    pub(super) fn add(&self, additions: &[&Addition]) -> Option<Edit> {
        let names: Vec<_> = self.keys.iter().filter_map(Child::name).collect();
        let has = |addition: &Addition| names.iter().any(|name| **name == *addition.key.as_bytes());
        let missing: Vec<_> = additions.iter().copied().filter(|one| !has(one)).collect();
        if missing.is_empty() {
            return None;
        }
        let mut with = members(&missing);
        if !self.is_object {
            with = [b"{", &*with, b"}"].concat();
        } else if !self.keys.is_empty() {
            with.insert(0, b',');
        }
        Some(Edit { place: self.place.clone(), with })
    }
}

/// The whole member, for an event that has none.
pub(super) fn whole(additions: &[&Addition]) -> Vec<u8> {
    [b"\"annotations\":{", &*members(additions), b"}"].concat()
}

fn members(additions: &[&Addition]) -> Vec<u8> {
    let members: Vec<_> = additions.iter().map(|one| one.member.as_bytes()).collect();
    members.join(&b',')
}
