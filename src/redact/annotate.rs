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

/// What to write into the `annotations` of an event, or one of them where it has several; `None`: it has all of these, or
/// nothing can be added to it.
///
/// `kept` are those of its members that stay.
pub(super) fn added<'a>(
    place: Range<usize>,
    value: &[u8],
    kept: impl Iterator<Item = Child<'a>>,
    additions: &[&Addition],
) -> Option<Edit> {
    let mut missing = additions.to_vec();
    let mut last = None;
    for child in kept {
        last = Some(child.place.1);
        let name = child.name().unwrap_or_default();
        missing.retain(|addition| *name != *addition.key.as_bytes());
    }
    if missing.is_empty() {
        return None;
    }
    let mut with = members(&missing);
    let place = match (value.first(), last) {
        (Some(b'{'), Some(end)) => {
            with.insert(0, b',');
            end..end
        }
        (Some(b'{'), None) => place.start + 1..place.start + 1,
        _ if value == b"null" => {
            with = [b"{", &*with, b"}"].concat();
            place
        }
        _ => return None,
    };
    Some(Edit { place, with: with.into() })
}

/// The whole member, for an event that has none.
pub(super) fn whole(additions: &[&Addition]) -> Vec<u8> {
    [b"\"annotations\":{", &*members(additions), b"}"].concat()
}

fn members(additions: &[&Addition]) -> Vec<u8> {
    let members: Vec<_> = additions.iter().map(|one| one.member.as_bytes()).collect();
    members.join(&b',')
}
