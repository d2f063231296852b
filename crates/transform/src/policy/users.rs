//! Remembers which rules of a list the user of a request can match.
//!
//! A few users send most of the requests to a cluster, and the rules that a user can match never
//! change. The names of users and groups are chosen by those who manage accounts, and sometimes by
//! the clients themselves. Therefore the memory has a fixed number of places, remembers no long
//! texts, and compares every byte. The worst that a user can do is to take the place of another
//! user, who is then looked up again.

use std::sync::atomic::{AtomicU64, Ordering};

use audit::request::User;

const PLACES: usize = 256;

/// The maximum number of bytes of a user's name and groups, with eight bytes for the length of
/// each. A user with more is not remembered. A memory of [`PLACES`] users, with sets of
/// [`RULES_MAX`](super::RULES_MAX) bits, stays below 192 KiB: 256 × (512 + 128) bytes, and the
/// overhead of the vectors.
const KEY_BYTES_MAX: usize = 512;

/// A number that identifies a list of rules within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListId(u64);

impl ListId {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A memory of users, for one list of rules at a time. When another list is asked for, all users
/// are forgotten.
#[derive(Debug, Default)]
pub struct Users {
    /// The list to which the remembered sets belong; `None` until the first request.
    list: Option<ListId>,
    places: Vec<Place>,
}

#[derive(Debug, Default)]
struct Place {
    /// The user's name and groups, each with its length before it; empty if no user is here.
    key: Vec<u8>,
    /// The set of rules that the user can match, one bit for each rule.
    rules: Vec<u64>,
}

impl Users {
    /// Returns the set of rules of `list` that this user can match. If the user is not remembered,
    /// `look_up` writes the set to its argument, which has `words` words.
    pub(super) fn rules(
        &mut self,
        list: ListId,
        user: &User<'_>,
        words: usize,
        look_up: impl FnOnce(&mut [u64]),
    ) -> &[u64] {
        if self.list != Some(list) {
            self.places.clear();
            self.places.resize_with(PLACES, Place::default);
            self.list = Some(list);
        }
        let place = &mut self.places[place(user)];
        if !place.is_of(user) {
            place.key.clear();
            place.rules.clear();
            place.rules.resize(words, 0);
            look_up(&mut place.rules);
            place.remember(user);
        }
        &place.rules
    }
}

impl Place {
    /// Returns `true` if this user is here: exactly this name, and exactly these groups in this
    /// order.
    fn is_of(&self, user: &User<'_>) -> bool {
        let mut rest = &*self.key;
        for text in std::iter::once(&user.name).chain(&user.groups) {
            match rest.split_first_chunk() {
                Some((length, behind)) if usize::from_le_bytes(*length) == text.len() => {
                    let Some(behind) = behind.strip_prefix(&**text) else { return false };
                    rest = behind;
                }
                Some(_) | None => return false,
            }
        }
        rest.is_empty()
    }

    /// Notes that `rules` is the set of this user, unless the user has more than [`KEY_BYTES_MAX`]
    /// bytes.
    fn remember(&mut self, user: &User<'_>) {
        let texts = || std::iter::once(&user.name).chain(&user.groups);
        let length = texts().map(|text| size_of::<usize>() + text.len()).sum();
        if length > KEY_BYTES_MAX {
            return;
        }
        self.key.reserve_exact(length);
        for text in texts() {
            self.key.extend_from_slice(&text.len().to_le_bytes());
            self.key.extend_from_slice(text);
        }
    }
}

/// Returns the index of the place for this user. It is a hash of the name's length, the name's end,
/// in which names of accounts differ, and the number of groups.
fn place(user: &User<'_>) -> usize {
    let name = &*user.name;
    let mix = |all: u64, byte: &u8| all.rotate_left(5) ^ u64::from(*byte);
    let end = name.get(name.len().saturating_sub(16)..).unwrap_or_default();
    let mixed = end.iter().fold((name.len() ^ user.groups.len() << 4) as u64, mix);
    usize::from(mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]) % PLACES
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn user(name: &str, groups: &[&str]) -> User<'static> {
        let text = |text: &str| Cow::Owned(text.as_bytes().to_vec());
        User { name: text(name), groups: groups.iter().map(|group| text(group)).collect() }
    }

    /// Returns the set for this user, and `true` if it was looked up. A set that is looked up is
    /// `set`.
    fn asked(users: &mut Users, list: ListId, user: &User<'_>, set: u64) -> (u64, bool) {
        let mut looked_up = false;
        let rules = users.rules(list, user, 1, |rules| {
            looked_up = true;
            rules[0] = set;
        });
        (rules[0], looked_up)
    }

    #[test]
    fn users_are_told_apart_by_every_byte_of_their_name_and_groups() {
        let (mut users, list) = (Users::default(), ListId::new());
        // Some of these users may have the same place by chance, so each is asked about twice in a
        // row.
        let all = [
            user("", &[]),
            user("", &[""]),
            user("", &["", ""]),
            user("ab", &["c"]),
            user("a", &["bc"]),
            user("a", &["b", "c"]),
            user("a", &["c", "b"]),
            user("abc", &[]),
            user("ab", &["C"]),
            user("ab\u{1}\0\0\0\0\0\0\0c", &[]),
        ];
        for (set, user) in (1..).zip(&all) {
            assert_eq!(asked(&mut users, list, user, set), (set, true), "{user:?}");
            assert_eq!(asked(&mut users, list, user, 0), (set, false), "{user:?}");
        }
    }

    #[test]
    fn a_user_who_takes_the_place_of_another_does_not_get_its_rules() {
        let (mut users, list) = (Users::default(), ListId::new());
        // Names of the same length whose last 16 bytes are the same have the same place.
        let names: Vec<_> = (0..10).map(|index| format!("{index}{}", "x".repeat(16))).collect();
        for round in 0..2 {
            for (set, name) in (1..).zip(&names) {
                let one = user(name, &["g"]);
                assert_eq!(place(&one), place(&user(&names[0], &["g"])));
                assert_eq!(asked(&mut users, list, &one, set), (set, true), "{round}: {name}");
            }
        }
    }

    #[test]
    fn long_users_are_not_remembered_and_the_memory_does_not_grow() {
        let (mut users, list) = (Users::default(), ListId::new());
        let room = KEY_BYTES_MAX - size_of::<usize>();
        let fits = user(&"x".repeat(room), &[]);
        assert_eq!(asked(&mut users, list, &fits, 1), (1, true));
        assert_eq!(asked(&mut users, list, &fits, 2), (1, false));
        for long in [user(&"x".repeat(room + 1), &[]), user("a", &[&"g".repeat(room)])] {
            assert_eq!(asked(&mut users, list, &long, 3), (3, true));
            assert_eq!(asked(&mut users, list, &long, 4), (4, true));
        }
        for index in 0..100_000 {
            asked(&mut users, list, &user(&format!("{index:0>480}"), &["g"]), 1);
        }
        assert_eq!(users.places.len(), PLACES);
        assert!(users.places.iter().all(|place| place.key.capacity() <= KEY_BYTES_MAX));
    }

    #[test]
    fn another_list_of_rules_knows_nobody() {
        let (mut users, list, other) = (Users::default(), ListId::new(), ListId::new());
        let one = user("a", &["g"]);
        assert_eq!(asked(&mut users, list, &one, 1), (1, true));
        assert_eq!(asked(&mut users, other, &one, 2), (2, true));
        assert_eq!(asked(&mut users, list, &one, 3), (3, true));
    }
}
