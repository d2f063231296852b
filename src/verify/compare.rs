//! Compares the hashes of the lines that left with those of the lines that are stored.
//!
//! There may be hundreds of millions of them, in any order. They are cut into 256 buckets by their
//! first byte, and buckets that do not fit into memory go to temporary files. Then one bucket after
//! the other is sorted and compared.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use crate::tlog::merkle::HASH_BYTES;
use crate::tlog::merkle::Hash;

/// The number of buckets: one for each first byte of a hash.
const BUCKETS: usize = 256;

/// The most bytes of all buckets in memory.
const MEMORY: usize = 256 << 20;

/// The bytes of an item: the hash, what it is, and a number.
const ITEM: usize = HASH_BYTES + 1 + 8;

/// The most differences that are kept one by one. Further ones are counted.
const DIFFERENCES_MAX: usize = 1_000_000;

/// The origin of a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Kind {
    /// A line that left. The number is its position.
    Left = 0,
    /// A line that left, and that nobody has asked about.
    Outside = 1,
    /// A line that the consumer may have. The number is its position.
    Allowed = 2,
    /// A line that is stored. The number says where: rising from line to line.
    Stored = 3,
}

impl Kind {
    fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Left,
            1 => Self::Outside,
            2 => Self::Allowed,
            _ => Self::Stored,
        }
    }
}

/// The hashes that are compared.
pub(super) struct Comparison {
    buckets: Vec<Bucket>,
    memory: usize,
    limit: usize,
}

#[derive(Default)]
struct Bucket {
    items: Vec<u8>,
    file: Option<File>,
}

/// The result of a comparison.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    /// The number of lines that left and are stored.
    pub(super) found: u64,
    /// The number of lines that are stored more often than they left.
    pub(super) duplicate: u64,
    /// The positions of the lines that left and are not stored.
    pub(super) missing: BTreeSet<u64>,
    pub(super) missing_count: u64,
    /// The places of the lines that are stored and never left.
    pub(super) extra: BTreeSet<u64>,
    pub(super) extra_count: u64,
}

impl Comparison {
    pub(super) fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
            memory: 0,
            limit: MEMORY,
        }
    }

    /// Adds a hash.
    pub(super) fn add(&mut self, hash: Hash, kind: Kind, number: u64) -> io::Result<()> {
        let Some(bucket) = self.buckets.get_mut(usize::from(hash.0[0])) else { return Ok(()) };
        bucket.items.extend_from_slice(&hash.0);
        bucket.items.push(kind as u8);
        bucket.items.extend_from_slice(&number.to_be_bytes());
        self.memory += ITEM;
        if self.memory >= self.limit {
            self.memory = 0;
            self.buckets.iter_mut().try_for_each(Bucket::spill)?;
        }
        Ok(())
    }

    /// Compares the hashes.
    pub(super) fn differences(&mut self) -> io::Result<Differences> {
        let mut differences = Differences::default();
        for bucket in &mut self.buckets {
            bucket.groups(|group| differences.add(group))?;
        }
        Ok(differences)
    }

    /// Returns the positions of the lines that are stored at these places, where they left.
    pub(super) fn positions_at(
        &mut self,
        places: &BTreeSet<u64>,
    ) -> io::Result<BTreeMap<u64, u64>> {
        let mut found = BTreeMap::new();
        for bucket in &mut self.buckets {
            bucket.groups(|group| {
                let left = group.iter().filter(|(kind, _)| *kind != Kind::Stored);
                let stored = group.iter().filter(|(kind, _)| *kind == Kind::Stored);
                for ((_, position), (_, place)) in left.zip(stored) {
                    if places.contains(place) {
                        found.insert(*place, *position);
                    }
                }
            })?;
        }
        Ok(found)
    }
}

impl Bucket {
    /// Appends the items to a temporary file, which has no name.
    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(temporary_file()?),
        };
        file.write_all(&self.items)?;
        self.items.clear();
        Ok(())
    }

    /// Calls `tell` with the items of each hash: what each is, and its number, in this order.
    fn groups(&mut self, mut tell: impl FnMut(&[(Kind, u64)])) -> io::Result<()> {
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut bytes)?;
        }
        bytes.extend_from_slice(&self.items);
        let (items, _) = bytes.as_chunks_mut::<ITEM>();
        // The bytes are in the order of hash, kind and number.
        items.sort_unstable();
        let mut group = Vec::new();
        for same in items.chunk_by(|a, b| a[..HASH_BYTES] == b[..HASH_BYTES]) {
            group.clear();
            for item in same {
                let (kind, number) = (item[HASH_BYTES], &item[HASH_BYTES + 1..]);
                let number = number.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                group.push((Kind::of(kind), number));
            }
            // A line that was sent again after a crash left once.
            group.dedup();
            tell(&group);
        }
        Ok(())
    }
}

impl Differences {
    fn add(&mut self, group: &[(Kind, u64)]) {
        let of = |kind: Kind| group.iter().filter(move |item| item.0 == kind).map(|item| item.1);
        let (left, outside) = (of(Kind::Left).count(), of(Kind::Outside).count());
        let stored = of(Kind::Stored).count();
        let expected = left + outside;
        // A line outside of the time that is asked about takes its share first.
        let found = stored.saturating_sub(outside).min(left);
        self.found += found as u64;
        for position in of(Kind::Left).skip(found) {
            self.missing_count += 1;
            if self.missing.len() < DIFFERENCES_MAX {
                self.missing.insert(position);
            }
        }
        let known = if expected > 0 { expected } else { of(Kind::Allowed).count() };
        if known > 0 {
            self.duplicate += stored.saturating_sub(known) as u64;
            return;
        }
        for place in of(Kind::Stored) {
            self.extra_count += 1;
            if self.extra.len() < DIFFERENCES_MAX {
                self.extra.insert(place);
            }
        }
    }
}

/// Returns a file that is deleted when it is closed.
fn temporary_file() -> io::Result<File> {
    let directory = std::env::temp_dir();
    loop {
        let name = format!("kube-audit-forwarder-{:016x}", fastrand::u64(..));
        let path = directory.join(name);
        let mut options = File::options();
        match options.read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return std::fs::remove_file(&path).map(|()| file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let text = format!("cannot make a temporary file in {}: {error}", path.display());
                return Err(io::Error::new(error.kind(), text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(of: u64) -> Hash {
        Hash::of(&[&of.to_be_bytes()])
    }

    #[test]
    fn lines_are_compared_in_memory_and_in_files() {
        for limit in [MEMORY, 10 * ITEM] {
            let mut comparison = Comparison { limit, ..Comparison::new() };
            for position in 0..1000 {
                // Each tenth line has the same bytes.
                let line = if position % 10 == 0 { 5000 } else { position };
                comparison.add(hash(line), Kind::Left, position).expect("a file");
                // After a crash, one line was sent again.
                if position == 3 {
                    comparison.add(hash(line), Kind::Left, position).expect("a file");
                }
            }
            comparison.add(hash(2000), Kind::Outside, 1000).expect("a file");
            comparison.add(hash(2001), Kind::Allowed, 1001).expect("a file");
            let mut stored: Vec<u64> = (0..1000).filter(|at| at % 10 != 0).collect();
            stored.extend([5000; 97]);
            stored.retain(|line| *line != 7);
            stored.extend([11, 11, 2000, 2001, 2001, 9999]);
            for (place, line) in (0..).zip(&stored) {
                comparison.add(hash(*line), Kind::Stored, place).expect("a file");
            }
            let found = comparison.differences().expect("a file");
            assert_eq!((found.found, found.duplicate), (899 + 97, 3));
            assert_eq!(found.missing, BTreeSet::from([7, 970, 980, 990]));
            assert_eq!(found.extra, BTreeSet::from([stored.len() as u64 - 1]));
            assert_eq!((found.missing_count, found.extra_count), (4, 1));
            let places = BTreeSet::from([0, 5, stored.len() as u64 - 1]);
            let at = comparison.positions_at(&places).expect("a file");
            assert_eq!(at, BTreeMap::from([(0, 1), (5, 6)]));
        }
    }
}
