//! Merkle trees (RFC 6962 §2.1): their hashes and their proofs.

use std::{fmt, io};

use aws_lc_rs::digest::{Context, SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The number of bytes of a hash.
pub const HASH_BYTES: usize = 32;

/// The maximum number of hashes in an inclusion proof: a tree has at most 2^63 entries. A
/// consistency proof may have one more.
pub const PROOF_MAX: usize = 63;

/// The maximum total number of bytes of parts that are joined before they are hashed. A hasher for
/// separate parts allocates memory, which costs more than the hash.
const JOINED_MAX: usize = 128;

/// A SHA-256 hash. Its text is base64 with padding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; HASH_BYTES]);

/// Computes the SHA-256 hash of bytes that come in pieces.
pub struct Hasher(Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the hash of all bytes.
    pub fn finish(self) -> Hash {
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(self.0.finish().as_ref());
        Hash(hash)
    }
}

impl Hash {
    /// Returns the SHA-256 hash of the concatenated parts.
    pub fn of(parts: &[&[u8]]) -> Self {
        let length = parts.iter().map(|part| part.len()).sum();
        let mut joined = [0; JOINED_MAX];
        match (parts, joined.get_mut(..length)) {
            ([bytes], _) => Self::of_bytes(bytes),
            (_, Some(joined)) => {
                let mut rest = &mut *joined;
                for part in parts {
                    let (to, behind) = rest.split_at_mut(part.len());
                    to.copy_from_slice(part);
                    rest = behind;
                }
                Self::of_bytes(joined)
            }
            (_, None) => {
                let mut hasher = Hasher::default();
                parts.iter().for_each(|part| hasher.update(part));
                hasher.finish()
            }
        }
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(hash)
    }

    /// Returns the leaf hash of an entry.
    pub fn of_leaf(entry: &[u8]) -> Self {
        Self::of(&[&[0], entry])
    }

    /// Returns the hash of the parent of two nodes.
    pub fn of_node(left: &Self, right: &Self) -> Self {
        Self::of(&[&[1], &left.0, &right.0])
    }

    /// Returns the root of a log without entries.
    pub fn of_nothing() -> Self {
        Self::of(&[])
    }

    /// Reads a hash from base64 with padding. `None` for any other text, even if it encodes the
    /// same bytes.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("a text is not a hash in base64"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The roots of the largest whole subtrees, from left to right. There is one for each bit that is
/// set in the number of entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    nodes: Vec<Hash>,
}

impl Frontier {
    /// Reads the frontier of the first `size` entries of a log.
    ///
    /// # Errors
    ///
    /// A hash can't be read.
    pub fn read(nodes: &impl Nodes, size: u64) -> io::Result<Self> {
        let (mut begin, mut found) = (0, Vec::new());
        for level in (0..u64::BITS).rev().filter(|level| size >> level & 1 == 1) {
            found.push(nodes.node(level, begin >> level)?);
            begin += 1 << level;
        }
        Ok(Self { size, nodes: found })
    }

    /// Returns the number of entries.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds an entry's hash. Calls `made` with the level and the hash of each subtree that the
    /// entry completes, first with the entry itself (level 0).
    pub fn push(&mut self, leaf: Hash, made: &mut impl FnMut(u32, Hash)) {
        let mut node = leaf;
        made(0, node);
        for level in 0..self.size.trailing_ones() {
            let Some(left) = self.nodes.pop() else { break };
            node = Hash::of_node(&left, &node);
            made(level + 1, node);
        }
        self.nodes.push(node);
        self.size += 1;
    }

    /// Returns the root.
    pub fn root(&self) -> Hash {
        let mut nodes = self.nodes.iter().rev();
        let Some(&last) = nodes.next() else { return Hash::of_nothing() };
        nodes.fold(last, |right, left| Hash::of_node(left, &right))
    }
}

/// Returns the root over these leaf hashes. The last of an odd number of nodes moves up alone,
/// which gives the tree of RFC 6962: the number of entries in the left part of each node is a power
/// of two.
pub fn root(leaves: impl IntoIterator<Item = Hash>) -> Hash {
    let mut nodes: Vec<Hash> = leaves.into_iter().collect();
    while nodes.len() > 1 {
        let (pairs, last) = nodes.as_chunks();
        let above = pairs.iter().map(|[left, right]| Hash::of_node(left, right));
        nodes = above.chain(last.iter().copied()).collect();
    }
    nodes.first().copied().unwrap_or_else(Hash::of_nothing)
}

/// The hashes of a log's tree.
pub trait Nodes {
    /// Returns the root of the whole subtree of `1 << level` entries from `index << level` on.
    fn node(&self, level: u32, index: u64) -> io::Result<Hash>;
}

impl Nodes for [Hash] {
    fn node(&self, level: u32, index: u64) -> io::Result<Hash> {
        let missing = || io::Error::other("the tree has no such node");
        let range = usize::try_from(index << level)
            .ok()
            .and_then(|begin| Some(begin..begin.checked_add(1 << level)?));
        let leaves = range.and_then(|range| self.get(range)).ok_or_else(missing)?;
        Ok(root(leaves.iter().copied()))
    }
}

/// Returns the largest power of two below `size`, the left part of a tree. `size` is at least 2.
fn left_part(size: u64) -> u64 {
    1 << (u64::BITS - 1 - (size - 1).leading_zeros())
}

/// Returns the root over the entries `begin..end`. `begin` must be a multiple of the smallest power
/// of two that is not less than the number of entries, as it is for every node of a proof.
fn root_of<N: Nodes + ?Sized>(nodes: &N, begin: u64, end: u64) -> io::Result<Hash> {
    let size = end - begin;
    if size.is_power_of_two() {
        let level = size.trailing_zeros();
        return nodes.node(level, begin >> level);
    }
    let middle = begin + left_part(size);
    let (left, right) = (root_of(nodes, begin, middle)?, root_of(nodes, middle, end)?);
    Ok(Hash::of_node(&left, &right))
}

/// Returns the root over the first `size` entries of a log.
///
/// # Errors
///
/// A hash can't be read.
pub fn root_at<N: Nodes + ?Sized>(nodes: &N, size: u64) -> io::Result<Hash> {
    if size == 0 { Ok(Hash::of_nothing()) } else { root_of(nodes, 0, size) }
}

/// Returns the Merkle path of the entry with this index among the first `size` entries, from its
/// neighbour to the root (RFC 6962 §2.1.1).
///
/// # Errors
///
/// The index is not below `size`, or a hash can't be read.
pub fn inclusion<N: Nodes + ?Sized>(nodes: &N, index: u64, size: u64) -> io::Result<Vec<Hash>> {
    if index >= size {
        return Err(io::Error::other(format!("the log has no entry {index} below {size}")));
    }
    let (mut begin, mut end, mut path) = (0, size, Vec::new());
    while end - begin > 1 {
        let middle = begin + left_part(end - begin);
        if index < middle {
            path.push(root_of(nodes, middle, end)?);
            end = middle;
        } else {
            path.push(root_of(nodes, begin, middle)?);
            begin = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// Returns `true` if `path` proves that the entry with this index and hash is among the `size`
/// entries with this root (RFC 9162 §2.1.3.2).
pub fn includes(leaf: Hash, index: u64, size: u64, path: &[Hash], root: Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut way, mut node) = (Way { at: index, last: size - 1 }, leaf);
    for beside in path {
        let Some(is_left) = way.step() else { return false };
        node = if is_left { Hash::of_node(beside, &node) } else { Hash::of_node(&node, beside) };
    }
    way.last == 0 && node == root
}

/// A node on a Merkle path: its index in its level, and the index of the last node of this level.
struct Way {
    at: u64,
    last: u64,
}

impl Way {
    /// Moves up past the next hash of a proof. Returns `true` if this hash is the left neighbour of
    /// the node, and `None` at the root.
    fn step(&mut self) -> Option<bool> {
        if self.last == 0 {
            return None;
        }
        let is_left = self.at & 1 == 1 || self.at == self.last;
        if is_left {
            // The last node of a level moves up alone until it has a neighbour on its left.
            while self.at & 1 == 0 && self.at != 0 {
                self.up();
            }
        }
        self.up();
        Some(is_left)
    }

    fn up(&mut self) {
        (self.at, self.last) = (self.at >> 1, self.last >> 1);
    }
}

/// Returns the proof that the first `new` entries begin with the first `old` ones (RFC 6962
/// §2.1.2). The proof is empty if the sizes are equal, or if `old` is 0.
///
/// # Errors
///
/// `old` is greater than `new`, or a hash can't be read.
pub fn consistency<N: Nodes + ?Sized>(nodes: &N, old: u64, new: u64) -> io::Result<Vec<Hash>> {
    if old > new {
        return Err(io::Error::other(format!("a log of {new} entries has no {old}")));
    }
    if old == 0 || old == new {
        return Ok(Vec::new());
    }
    let (mut begin, mut end, mut path) = (0, new, Vec::new());
    // `true` while `begin` is 0: the old tree is one subtree, whose hash the verifier has.
    let mut is_known = true;
    while end != old {
        let middle = begin + left_part(end - begin);
        if old <= middle {
            path.push(root_of(nodes, middle, end)?);
            end = middle;
        } else {
            path.push(root_of(nodes, begin, middle)?);
            (begin, is_known) = (middle, false);
        }
    }
    if !is_known {
        path.push(root_of(nodes, begin, end)?);
    }
    path.reverse();
    Ok(path)
}

/// The state of a log: the number of its entries, and their root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The number of entries.
    pub size: u64,
    /// The root over the entries.
    pub root: Hash,
}

/// Returns `true` if `path` proves that the log `new` begins with the log `old` (RFC 9162
/// §2.1.4.2).
pub fn extends(old: Head, new: Head, path: &[Hash]) -> bool {
    if old.size >= new.size {
        return path.is_empty() && old == new;
    }
    if old.size == 0 {
        return path.is_empty() && old.root == Hash::of_nothing();
    }
    // If the old tree is a whole subtree, the path lacks its hash, which is the old root.
    let own = old.size.is_power_of_two().then_some(old.root);
    let mut path = own.iter().chain(path);
    let mut way = Way { at: old.size - 1, last: new.size - 1 };
    while way.at & 1 == 1 {
        way.up();
    }
    let Some(&first) = path.next() else { return false };
    let (mut of_old, mut of_new) = (first, first);
    for beside in path {
        let Some(is_left) = way.step() else { return false };
        if is_left {
            of_old = Hash::of_node(beside, &of_old);
            of_new = Hash::of_node(beside, &of_new);
        } else {
            of_new = Hash::of_node(&of_new, beside);
        }
    }
    way.last == 0 && of_old == old.root && of_new == new.root
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the hashes of `count` different entries.
    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|number| Hash::of_leaf(&number.to_be_bytes())).collect()
    }

    /// The definition of RFC 6962 §2.1, word for word.
    fn defined(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Hash::of_nothing(),
            [leaf] => *leaf,
            leaves => {
                let left = leaves.len().next_power_of_two() / 2;
                let (left, right) = leaves.split_at(left);
                Hash::of_node(&defined(left), &defined(right))
            }
        }
    }

    /// Vectors of RFC 6962's reference implementation (certificate-transparency,
    /// `merkle_tree_test`).
    #[test]
    fn roots_are_those_of_the_reference_implementation() {
        let hex = |text: &str| {
            let digit = |digit: &u8| char::from(*digit).to_digit(16).unwrap();
            let byte = |pair: &[u8]| u8::try_from(digit(&pair[0]) * 16 + digit(&pair[1])).unwrap();
            text.as_bytes().chunks(2).map(byte).collect::<Vec<_>>()
        };
        let entries = " 00 10 2021 3031 40414243 5051525354555657 606162636465666768696a6b6c6d6e6f";
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let leaves: Vec<_> = entries.split(' ').map(|entry| Hash::of_leaf(&hex(entry))).collect();
        for (size, expected) in roots.iter().enumerate() {
            assert_eq!(root(leaves[..size].iter().copied()).0, *hex(expected), "{size}");
        }
    }

    #[test]
    fn each_entry_of_each_small_log_is_proven_and_no_other() {
        let all = leaves(70);
        for size in 1..=all.len() {
            let leaves = &all[..size];
            let root = root(leaves.iter().copied());
            assert_eq!(root, defined(leaves));
            assert_eq!(root_at(leaves, size as u64).unwrap(), root);
            for (index, leaf) in leaves.iter().enumerate() {
                let (index, size) = (index as u64, size as u64);
                let path = inclusion(leaves, index, size).unwrap();
                assert!(includes(*leaf, index, size, &path, root), "{index} of {size}");
                assert!(!includes(Hash::of_nothing(), index, size, &path, root));
                for other in 0..=size {
                    let is_same = other == index;
                    assert_eq!(includes(*leaf, other, size, &path, root), is_same, "{other}");
                }
                let mut longer = path.clone();
                longer.push(root);
                assert!(!includes(*leaf, index, size, &longer, root));
                if let Some((_, shorter)) = path.split_last() {
                    assert!(!includes(*leaf, index, size, shorter, root));
                }
            }
        }
    }

    #[test]
    fn each_log_extends_its_beginnings_and_nothing_else() {
        let all = leaves(70);
        let head = |size: usize| Head { size: size as u64, root: defined(&all[..size]) };
        for new in 0..=all.len() {
            for old in 0..=new {
                let path = consistency(&all[..new], old as u64, new as u64).unwrap();
                assert!(path.len() <= PROOF_MAX);
                assert!(extends(head(old), head(new), &path), "{old} of {new}");
                let forged = Head { root: Hash::of(&[b"forged"]), ..head(old) };
                assert!(!extends(forged, head(new), &path), "{old} of {new}");
                let forged = Head { root: Hash::of(&[b"forged"]), ..head(new) };
                assert_eq!(extends(head(old), forged, &path), old == 0 && new > 0, "{old} {new}");
                let mut longer = path.clone();
                longer.push(Hash::of_nothing());
                assert!(!extends(head(old), head(new), &longer), "{old} of {new}");
                for at in 0..path.len() {
                    let mut changed = path.clone();
                    changed[at] = Hash::of_nothing();
                    assert!(!extends(head(old), head(new), &changed), "{old} of {new}");
                }
            }
            assert!(consistency(&all[..new], new as u64 + 1, new as u64).is_err());
        }
    }

    proptest::proptest! {
        #[test]
        fn a_frontier_goes_on_where_it_was_read(size in 0_u64..3000, more in 0_u64..40) {
            let all = leaves(size + more);
            let (before, behind) = all.split_at(usize::try_from(size).unwrap());
            let mut frontier = Frontier::read(&Slice(before), size).unwrap();
            let mut nodes = 0;
            for leaf in behind {
                frontier.push(*leaf, &mut |_, _| nodes += 1);
            }
            proptest::prop_assert_eq!(frontier.root(), root(all.iter().copied()));
            proptest::prop_assert_eq!(frontier.size(), size + more);
            // A tree of n entries has n nodes of level 0, n / 2 of level 1, and so on.
            let whole = |size: u64| (0..64).map(|level| size >> level).sum::<u64>();
            proptest::prop_assert_eq!(nodes, whole(size + more) - whole(size));
        }
    }

    struct Slice<'a>(&'a [Hash]);

    impl Nodes for Slice<'_> {
        fn node(&self, level: u32, index: u64) -> io::Result<Hash> {
            self.0.node(level, index)
        }
    }

    #[test]
    fn only_one_text_is_a_hash() {
        let hash = Hash::of(&[b"x"]);
        assert_eq!(Hash::parse(&hash.to_string()), Some(hash));
        for other in ["", "AA==", &hash.to_string().replace('=', ""), &format!("{hash}\n")] {
            assert_eq!(Hash::parse(other), None, "{other}");
        }
    }
}
