//! Compares the hashes of the lines that left with those of the lines that are stored.
//!
//! There may be hundreds of millions of them, in any order. They are cut into 256 buckets by their
//! first byte. Whenever the buckets take too much memory together, all of them are appended to
//! temporary files. Then one bucket after the other is sorted and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use crate::tlog::merkle::{HASH_BYTES, Hash};

/// The number of buckets: one for each first byte of a hash.
const BUCKETS: usize = 256;

/// The maximum size in bytes of all buckets in memory.
const MEMORY: usize = 256 << 20;

/// The number of bytes of an item: the hash, its kind, and the two parts of its place.
const ITEM: usize = HASH_BYTES + 1 + 2 + 8;

/// The maximum number of differences that are kept one by one. Any others are only counted.
const DIFFERENCES_MAX: usize = 1_000_000;

/// The place of a line: a source and a number. For a line that left, the source stands for an
/// output of a log, and the number is the position of the event. For a stored line, the source is
/// 0, and the number grows from line to line.
pub(super) type Place = (u16, u64);

/// The group of lines to which a hash belongs: lines that must be in the consumer's store, lines
/// that may be in it, each for a reason, and lines that are. Lines with one hash are in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A line that left, but outside of the time that is asked about.
    Outside = 0,
    /// A line that left.
    Must = 1,
    /// A line that the consumer may have got, although no entry says so: its event was lost, or its
    /// fate is not in the log yet.
    May = 2,
    /// Another copy of a line that left: the event was sent again after a crash.
    Again = 3,
    /// A line that no checkpoint covers yet.
    Newer = 4,
    /// A line that is stored.
    Stored = 5,
    /// A stored line that may have been written by an output that added members. Its event may then
    /// be the line without these members, which is [`Kind::Plain`].
    Either = 6,
    /// The other form of a [`Kind::Either`], without the added members. It has the place of the
    /// stored line.
    Plain = 7,
}

/// The result for a stored line, or for one form of a line that has two. The first result that a
/// form of the line has is that of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    /// The line left, or may have left.
    Fits = 0,
    /// The line is a further copy of a line that left.
    Copy = 1,
    /// No checkpoint covers the line yet.
    Newer = 2,
    /// The log does not have the line.
    Extra = 3,
}

/// The number that is added to the class of the form without the added members.
const PLAIN: u8 = 8;

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
    /// The number of lines that must be stored and are.
    pub(super) found: u64,
    /// For each source the number of the last line that was found.
    pub(super) ends: BTreeMap<u16, u64>,
    /// The number of lines that are stored more often than they left.
    pub(super) duplicate: u64,
    /// The first places of the lines that must be stored and are not.
    pub(super) absent: BTreeSet<Place>,
    pub(super) absent_count: u64,
    /// The number of stored lines that no checkpoint covers yet.
    pub(super) newer: u64,
    /// The places of the stored lines that the log does not have.
    pub(super) extra: BTreeSet<u64>,
    pub(super) extra_count: u64,
    /// The number of stored lines that count for two lines that left, with and without the members.
    pub(super) ambiguous: u64,
    /// The number of stored lines that match a line that left if the added members are removed.
    pub(super) with_added: u64,
    /// The number of stored lines that match a line that left and do not begin with the added
    /// members.
    pub(super) without_added: u64,
}

impl Default for Comparison {
    fn default() -> Self {
        let buckets = (0..BUCKETS).map(|_| Bucket::default()).collect();
        Self { buckets, memory: 0, limit: MEMORY }
    }
}

impl Comparison {
    pub(super) fn add(&mut self, hash: Hash, kind: Kind, place: Place) -> io::Result<()> {
        self.push(hash, kind as u8, place)
    }

    fn push(&mut self, hash: Hash, kind: u8, place: Place) -> io::Result<()> {
        let Some(bucket) = self.buckets.get_mut(usize::from(hash.0[0])) else { return Ok(()) };
        bucket.items.extend_from_slice(&hash.0);
        bucket.items.push(kind);
        bucket.items.extend_from_slice(&place.0.to_be_bytes());
        bucket.items.extend_from_slice(&place.1.to_be_bytes());
        self.memory += ITEM;
        if self.memory >= self.limit {
            self.memory = 0;
            self.buckets.iter_mut().try_for_each(Bucket::spill)?;
        }
        Ok(())
    }

    pub(super) fn differences(&mut self) -> io::Result<Differences> {
        let mut differences = Differences::default();
        // The lines with two forms, by place.
        let mut forms = Self { limit: self.limit, ..Self::default() };
        for bucket in &mut self.buckets {
            bucket.groups(|group| {
                let mut of_group = differences.add(group).into_iter();
                of_group.try_for_each(|(form, at)| forms.push(key_of(at), form, (0, at)))
            })?;
        }
        for bucket in &mut forms.buckets {
            bucket.groups(|group| {
                differences.add_forms(group);
                Ok(())
            })?;
        }
        Ok(differences)
    }

    /// Returns for each of these places of stored lines the place of a line that left and has the
    /// same hash; places without such a line are left out.
    pub(super) fn positions_at(
        &mut self,
        places: &BTreeSet<u64>,
    ) -> io::Result<BTreeMap<u64, Place>> {
        let mut found = BTreeMap::new();
        for bucket in &mut self.buckets {
            bucket.groups(|group| {
                // The stored lines are behind all others.
                let begin = group.partition_point(|(kind, _)| *kind < Kind::Stored as u8);
                let (left, stored) = group.split_at(begin);
                for ((_, left), (_, (_, at))) in left.iter().zip(stored) {
                    if places.contains(at) {
                        found.insert(*at, *left);
                    }
                }
                Ok(())
            })?;
        }
        Ok(found)
    }
}

impl Bucket {
    /// Appends the items to an unnamed temporary file.
    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(temporary_file()?),
        };
        file.write_all(&self.items)?;
        self.items.clear();
        Ok(())
    }

    /// Calls `tell` with all items of each hash, in the order of kind and place.
    fn groups(&mut self, mut tell: impl FnMut(&[(u8, Place)]) -> io::Result<()>) -> io::Result<()> {
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut bytes)?;
        }
        bytes.extend_from_slice(&self.items);
        let (items, _) = bytes.as_chunks_mut::<ITEM>();
        // The bytes are in the order of hash, kind and place.
        items.sort_unstable();
        let mut group = Vec::new();
        for same in items.chunk_by(|a, b| a[..HASH_BYTES] == b[..HASH_BYTES]) {
            group.clear();
            for item in same {
                let (kind, place) = (item[HASH_BYTES], &item[HASH_BYTES + 1..]);
                let (source, number) = place.split_at(2);
                let source = source.iter().fold(0, |sum, byte| sum << 8 | u16::from(*byte));
                let number = number.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                group.push((kind, (source, number)));
            }
            group.dedup();
            tell(&group)?;
        }
        Ok(())
    }
}

impl Differences {
    /// Adds the lines with one hash. Returns the places of the stored lines for which this is one
    /// of two forms, with the class of this form.
    fn add(&mut self, group: &[(u8, Place)]) -> Vec<(u8, u64)> {
        let of_kind = |kind: Kind| group.iter().filter(move |item| item.0 == kind as u8);
        let of = |kind: Kind| of_kind(kind).map(|item| item.1);
        let count = |kind: Kind| of(kind).count();
        let whole = count(Kind::Stored) + count(Kind::Either);
        let expected = count(Kind::Outside) + count(Kind::Must) + count(Kind::May);
        let fits = whole.min(expected);
        let plain = count(Kind::Plain).min(expected - fits);
        // The lines that left outside of the time that is asked about are matched first.
        let found = (fits + plain).saturating_sub(count(Kind::Outside)).min(count(Kind::Must));
        self.found += found as u64;
        for (source, number) in
            of(Kind::Outside).take(fits + plain).chain(of(Kind::Must).take(found))
        {
            let end = self.ends.entry(source).or_default();
            *end = number.max(*end);
        }
        for place in of(Kind::Must).skip(found) {
            self.absent_count += 1;
            self.absent.insert(place);
            if self.absent.len() > DIFFERENCES_MAX {
                self.absent.pop_last();
            }
        }
        let rest = if expected > 0 || count(Kind::Again) > 0 {
            Class::Copy
        } else if count(Kind::Newer) > 0 {
            Class::Newer
        } else {
            Class::Extra
        };
        let class = |fits: bool| if fits { Class::Fits } else { rest };
        for (at, (_, place)) in of(Kind::Stored).enumerate() {
            self.without_added += u64::from(rest != Class::Extra);
            self.count(class(at < fits), place);
        }
        let either = of(Kind::Either).enumerate();
        let either = either.map(|(at, (_, place))| (class(at < fits) as u8, place));
        // Equal lines have equal other forms. The first of them count as they are stored, and the
        // last of them without the added members.
        let copies = count(Kind::Plain) - plain;
        let plains = of(Kind::Plain).enumerate();
        let plains = plains.map(|(at, (_, place))| (PLAIN + class(at >= copies) as u8, place));
        either.chain(plains).collect()
    }

    /// Counts a stored line with two forms. `forms` has the results of [`Differences::add`] for its
    /// place.
    fn add_forms(&mut self, forms: &[(u8, Place)]) {
        let Some((_, (_, place))) = forms.first() else { return };
        let has = |class: Class, plain: u8| forms.iter().any(|it| it.0 == class as u8 + plain);
        match (has(Class::Fits, 0), has(Class::Fits, PLAIN)) {
            (true, true) => self.ambiguous += 1,
            (false, true) => self.with_added += 1,
            (_, _) => {}
        }
        let all = [Class::Fits, Class::Copy, Class::Newer];
        let class = all.into_iter().find(|class| has(*class, 0) || has(*class, PLAIN));
        self.count(class.unwrap_or(Class::Extra), *place);
    }

    fn count(&mut self, class: Class, place: u64) {
        match class {
            Class::Fits => {}
            Class::Copy => self.duplicate += 1,
            Class::Newer => self.newer += 1,
            Class::Extra => {
                self.extra_count += 1;
                if self.extra.len() < DIFFERENCES_MAX {
                    self.extra.insert(place);
                }
            }
        }
    }
}

/// Returns a hash for a place, so that a comparison can have places as its items. The places are
/// spread evenly over the buckets.
fn key_of(place: u64) -> Hash {
    let mut key = [0; HASH_BYTES];
    key[..8].copy_from_slice(&place.to_le_bytes());
    Hash(key)
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

    /// Method: an event came in by the webhook, and again by a replay of an audit.log, whose lines
    /// have the members that an output may add. The consumer got both lines.
    #[test]
    fn an_audit_log_that_was_replayed_beside_the_webhook_makes_no_duplicates() {
        let (event, line) = (hash(1), hash(2));
        for stored in [[event, line], [line, line]] {
            let mut comparison = Comparison::default();
            for (number, hash) in (0..).zip([event, line]) {
                comparison.add(hash, Kind::Must, (1, number)).expect("no file");
            }
            for (place, hash) in (0..).zip(stored) {
                let has_two = hash == line;
                let kind = if has_two { Kind::Either } else { Kind::Stored };
                comparison.add(hash, kind, (0, place)).expect("no file");
                if has_two {
                    comparison.add(event, Kind::Plain, (0, place)).expect("no file");
                }
            }
            let found = comparison.differences().expect("no file");
            assert_eq!((found.found, found.duplicate, found.ambiguous), (2, 0, 0));
            assert_eq!((found.absent_count, found.extra_count), (0, 0));
        }
    }

    #[test]
    fn copies_that_were_sent_again_are_duplicates_and_never_must_be_there() {
        let mut comparison = Comparison::default();
        let mut add = |line: u64, kind: Kind, place: Place| {
            comparison.add(hash(line), kind, place).expect("no file");
        };
        add(1, Kind::Must, (1, 0));
        add(1, Kind::Again, (1, 9));
        add(2, Kind::Again, (1, 10));
        add(3, Kind::Again, (1, 11));
        for (place, line) in (0..).zip([1, 1, 2]) {
            add(line, Kind::Stored, (0, place));
        }
        let found = comparison.differences().expect("no file");
        assert_eq!((found.found, found.duplicate, found.absent_count), (1, 2, 0));
        assert_eq!((found.extra_count, found.ends), (0, BTreeMap::from([(1, 0)])));
    }

    #[test]
    fn lines_are_compared_in_memory_and_in_files() {
        for limit in [MEMORY, 10 * ITEM] {
            let mut comparison = Comparison { limit, ..Comparison::default() };
            for position in 0..1000 {
                // Each tenth line has the same bytes.
                let line = if position % 10 == 0 { 5000 } else { position };
                comparison.add(hash(line), Kind::Must, (1, position)).expect("a file");
                // After a crash, one line was sent again.
                if position == 3 {
                    comparison.add(hash(line), Kind::Must, (1, position)).expect("a file");
                }
            }
            comparison.add(hash(2000), Kind::Outside, (1, 1000)).expect("a file");
            comparison.add(hash(2001), Kind::May, (1, 1001)).expect("a file");
            let mut stored: Vec<u64> = (0..1000).filter(|at| at % 10 != 0).collect();
            stored.extend([5000; 97]);
            stored.retain(|line| *line != 7);
            stored.extend([11, 11, 2000, 2001, 2001, 9999]);
            for (place, line) in (0..).zip(&stored) {
                comparison.add(hash(*line), Kind::Stored, (0, place)).expect("a file");
            }
            let found = comparison.differences().expect("a file");
            assert_eq!((found.found, found.duplicate), (899 + 97, 3));
            assert_eq!(found.absent, BTreeSet::from([7, 970, 980, 990].map(|at| (1, at))));
            assert_eq!(found.ends, BTreeMap::from([(1, 1000)]));
            assert_eq!(found.extra, BTreeSet::from([stored.len() as u64 - 1]));
            assert_eq!((found.absent_count, found.extra_count), (4, 1));
            let places = BTreeSet::from([0, 5, stored.len() as u64 - 1]);
            let at = comparison.positions_at(&places).expect("a file");
            assert_eq!(at, BTreeMap::from([(0, (1, 1)), (5, (1, 6))]));
        }
    }

    /// Method: stored lines have two hashes. Some left as they are stored, some without the members
    /// that the output has added, some never left, and for one line both forms left.
    #[test]
    fn a_line_with_added_members_is_the_event_that_left() {
        let plain = |line: u64| hash(line + 1_000_000);
        for limit in [MEMORY, 10 * ITEM] {
            let mut comparison = Comparison { limit, ..Comparison::default() };
            for line in 0..300 {
                let left = if line % 3 == 0 { hash(line) } else { plain(line) };
                comparison.add(left, Kind::Must, (1, line)).expect("a file");
            }
            comparison.add(plain(3), Kind::Must, (1, 300)).expect("a file");
            let stored: Vec<u64> = (0..300).filter(|line| *line != 7).chain([5, 500]).collect();
            for (place, line) in (0..).zip(&stored) {
                comparison.add(hash(*line), Kind::Either, (0, place)).expect("a file");
                comparison.add(plain(*line), Kind::Plain, (0, place)).expect("a file");
            }
            let found = comparison.differences().expect("a file");
            assert_eq!((found.found, found.duplicate, found.ambiguous), (300, 1, 1));
            assert_eq!((found.absent, found.absent_count), (BTreeSet::from([(1, 7)]), 1));
            assert_eq!((found.with_added, found.without_added), (199, 0));
            assert_eq!(found.extra, BTreeSet::from([stored.len() as u64 - 1]));
        }
    }
}
