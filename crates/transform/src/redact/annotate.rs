//! Adds members to an event's `annotations`.

use std::ops::Range;

use super::walk::{Child, Edit};

/// Marks an event that was too large, so that parts of it were removed or cut.
/// kube-apiserver marks the events that it truncates with the same annotation.
pub(super) static TRUNCATED: Addition = Addition {
    key: std::borrow::Cow::Borrowed("audit.k8s.io/truncated"),
    member: std::borrow::Cow::Borrowed(r#""audit.k8s.io/truncated":"true""#),
};

/// Constant annotations that are added to every event, already written as JSON.
#[derive(Debug)]
pub struct Annotations {
    pub(super) additions: Vec<Addition>,
}

/// An annotation to add: its key, and the whole member `"key":"value"` as JSON.
#[derive(Debug)]
pub(super) struct Addition {
    pub(super) key: std::borrow::Cow<'static, str>,
    member: std::borrow::Cow<'static, str>,
}

impl Annotations {
    /// The prefix of the keys of all constant annotations.
    pub const PREFIX: &str = "kube-audit-forwarder/";

    /// Makes annotations from pairs of a name (without [`Self::PREFIX`]) and a value. No name may
    /// occur twice.
    pub fn new<'a>(constants: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let json = |text: &str| serde_json::Value::from(text).to_string();
        let addition = |(name, value)| {
            let key = format!("{}{name}", Self::PREFIX);
            let member = format!("{}:{}", json(&key), json(value));
            Addition { key: key.into(), member: member.into() }
        };
        Self { additions: constants.into_iter().map(addition).collect() }
    }
}

/// Returns the edit that adds the missing ones of `additions` to the event's `annotations`. `value`
/// is the value of `annotations`, `place` is its range in the event, and `kept` are the members of
/// `value` that stay.
///
/// `None` if no addition is missing, or if `value` is neither an object nor null, so that nothing
/// can be added.
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

/// Returns the whole member `"annotations":{…}` for an event without annotations.
pub(super) fn whole(additions: &[&Addition]) -> Vec<u8> {
    [b"\"annotations\":{", &*members(additions), b"}"].concat()
}

fn members(additions: &[&Addition]) -> Vec<u8> {
    let members: Vec<_> = additions.iter().map(|one| one.member.as_bytes()).collect();
    members.join(&b',')
}
