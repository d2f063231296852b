//! Compares the hashes of the lines that left with those of the lines that are stored.
//!
//! There may be hundreds of millions of them, in any order. They are cut into 256 buckets by their
//! first byte. Whenever the buckets take too much memory together, all of them are appended to
//! temporary files. Then one bucket after the other is sorted and compared.

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

/// The group of lines to which a hash belongs. "Left" means that the log says so, and "stored" that
/// the line is in the consumer's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Kind {
    /// A line that left.
    Left = 0,
    /// A line that left, but outside of the time that is asked about.
    Outside = 1,
    /// A line that left after the stored lines were exported.
    Late = 2,
    /// A line that the consumer may have, but need not have.
    Allowed = 3,
    /// An event as it came in, which the log calls dropped or changed. It may have left in this
    /// form before a crash or a change of the config, after which other rules took it.
    Earlier = 4,
    /// A line that left by another output before the output that is asked about joined.
    Elsewhere = 5,
    /// A line that no checkpoint covers yet.
    Newer = 6,
    /// A line that is stored.
    Stored = 7,
    /// A stored line that may have been written by an output that added members. Its event may then
    /// be the line without these members, which is [`Kind::Plain`].
    Either = 8,
    /// The other form of a [`Kind::Either`], without the added members. It has the place of the
    /// stored line.
    Plain = 9,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    const ALL: [Self; 10] = [
        Self::Left,
        Self::Outside,
        Self::Late,
        Self::Allowed,
        Self::Earlier,
        Self::Elsewhere,
        Self::Newer,
        Self::Stored,
        Self::Either,
        Self::Plain,
    ];

    fn of(byte: u8) -> Self {
        Self::ALL.get(usize::from(byte)).copied().unwrap_or(Self::Plain)
    }

    fn is_stored(self) -> bool {
        matches!(self, Self::Stored | Self::Either | Self::Plain)
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
    /// The places of the lines that left and are not stored.
    pub(super) missing: BTreeSet<Place>,
    pub(super) missing_count: u64,
    /// The number of lines that left after the export and are not stored.
    pub(super) late: u64,
    /// The number of stored lines that no checkpoint covers yet.
    pub(super) newer: u64,
    /// The number of events that are stored only in an earlier form ([`Kind::Earlier`]).
    pub(super) earlier: u64,
    /// The number of stored lines that left by another output.
    pub(super) elsewhere: u64,
    /// The places of the lines that are stored but never left.
    pub(super) extra: BTreeSet<u64>,
    pub(super) extra_count: u64,
    /// The number of these lines that are equal to another one of them.
    pub(super) extra_copies: u64,
    /// The number of stored lines that match two lines that left, with and without the members, and
    /// count for both.
    pub(super) ambiguous: u64,
    /// The number of stored lines that match a line that left if the added members are removed.
    pub(super) with_added: u64,
    /// The number of stored lines that match a line that left and do not begin with the added
    /// members.
    pub(super) without_added: u64,
}

impl Comparison {
    pub(super) fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Bucket::default()).collect(),
            memory: 0,
            limit: MEMORY,
        }
    }

    pub(super) fn add(&mut self, hash: Hash, kind: Kind, place: Place) -> io::Result<()> {
        let Some(bucket) = self.buckets.get_mut(usize::from(hash.0[0])) else { return Ok(()) };
        bucket.items.extend_from_slice(&hash.0);
        bucket.items.push(kind as u8);
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
        // The lines with two hashes, by place, to find which of the two matches.
        let mut fits = Self { limit: self.limit, ..Self::new() };
        for bucket in &mut self.buckets {
            bucket.groups(|group| {
                let mut of_group = differences.add(group).into_iter();
                of_group.try_for_each(|(kind, at)| fits.add(key_of(at), kind, (0, at)))
            })?;
        }
        for bucket in &mut fits.buckets {
            bucket.groups(|group| {
                differences.add_place(group);
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
                let left = group.iter().filter(|(kind, _)| !kind.is_stored());
                let stored = group.iter().filter(|(kind, _)| kind.is_stored());
                for ((_, left), (_, (_, at))) in left.zip(stored) {
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
    fn groups(
        &mut self,
        mut tell: impl FnMut(&[(Kind, Place)]) -> io::Result<()>,
    ) -> io::Result<()> {
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
                group.push((Kind::of(kind), (source, number)));
            }
            // A line that was sent again after a crash counts once. It left before the export if
            // any of its entries says so.
            group.dedup();
            let left: BTreeSet<Place> = match group.iter().any(|(kind, _)| *kind == Kind::Late) {
                true => group.iter().filter(|it| it.0 == Kind::Left).map(|it| it.1).collect(),
                false => BTreeSet::new(),
            };
            group.retain(|(kind, place)| *kind != Kind::Late || !left.contains(place));
            tell(&group)?;
        }
        Ok(())
    }
}

impl Differences {
    /// Adds the lines with one hash. Returns the places of the stored lines for which this is one
    /// of two hashes. Their kind is that of the hash if it matches a line of a log. If it does not,
    /// their own hash has [`Kind::Stored`] instead, and the hash without the added members is left
    /// out.
    fn add(&mut self, group: &[(Kind, Place)]) -> Vec<(Kind, u64)> {
        let of = |kind: Kind| group.iter().filter(move |item| item.0 == kind).map(|item| item.1);
        let count = |kind: Kind| of(kind).count();
        let stored = group.iter().filter(|(kind, _)| kind.is_stored()).count();
        // A line from outside the time that is asked about is matched first, and one that left
        // after the export is matched last.
        let mut rest = stored;
        let mut share = |kind: Kind| {
            let taken = rest.min(count(kind));
            rest -= taken;
            taken
        };
        let (_, found, late) = (share(Kind::Outside), share(Kind::Left), share(Kind::Late));
        self.found += (found + late) as u64;
        self.late += (count(Kind::Late) - late) as u64;
        for place in of(Kind::Left).skip(found) {
            self.missing_count += 1;
            if self.missing.len() < DIFFERENCES_MAX {
                self.missing.insert(place);
            }
        }
        let expected = count(Kind::Left) + count(Kind::Outside) + count(Kind::Late);
        let known = if expected > 0 { expected } else { count(Kind::Allowed) };
        if known > 0 {
            self.duplicate += stored.saturating_sub(known) as u64;
        } else if count(Kind::Earlier) > 0 {
            // Each crash may have been followed by another attempt.
            let events = stored.min(count(Kind::Earlier));
            self.earlier += events as u64;
            self.duplicate += (stored - events) as u64;
        } else if count(Kind::Elsewhere) > 0 {
            self.elsewhere += stored as u64;
        } else if count(Kind::Newer) > 0 {
            self.newer += stored as u64;
        } else {
            of(Kind::Stored).for_each(|(_, place)| self.add_extra(place));
            self.extra_copies += (count(Kind::Stored) as u64).saturating_sub(1);
            return of(Kind::Either).map(|(_, place)| (Kind::Stored, place)).collect();
        }
        self.without_added += count(Kind::Stored) as u64;
        let doubtful = group.iter().filter(|it| matches!(it.0, Kind::Either | Kind::Plain));
        doubtful.map(|(kind, (_, place))| (*kind, *place)).collect()
    }

    /// Counts a stored line with two hashes. `group` has the kinds that [`Differences::add`] has
    /// returned for its place.
    fn add_place(&mut self, group: &[(Kind, Place)]) {
        let has = |kind: Kind| group.iter().find(|item| item.0 == kind).map(|item| item.1.1);
        match (has(Kind::Stored), has(Kind::Either), has(Kind::Plain)) {
            (Some(place), _, None) => self.add_extra(place),
            (Some(_), _, Some(_)) => self.with_added += 1,
            (None, Some(_), Some(_)) => self.ambiguous += 1,
            (_, _, _) => {}
        }
    }

    fn add_extra(&mut self, place: u64) {
        self.extra_count += 1;
        if self.extra.len() < DIFFERENCES_MAX {
            self.extra.insert(place);
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

    #[test]
    fn events_in_an_earlier_form_are_counted_and_their_copies_are_duplicates() {
        let mut comparison = Comparison::new();
        let mut add = |line: u64, kind: Kind, place: Place| {
            comparison.add(hash(line), kind, place).expect("no file");
        };
        // Events 1 and 2 have equal lines. Event 3 left too, by the log.
        (1..=3).for_each(|event| add(event.max(2), Kind::Earlier, (1, event)));
        add(3, Kind::Left, (1, 3));
        add(4, Kind::Earlier, (1, 4));
        for (place, line) in (0..).zip([2, 2, 2, 3, 3, 9]) {
            add(line, Kind::Stored, (0, place));
        }
        let found = comparison.differences().expect("no file");
        let expected = Differences {
            found: 1,
            earlier: 2,
            duplicate: 2,
            extra: BTreeSet::from([5]),
            extra_count: 1,
            without_added: 5,
            ..Differences::default()
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn lines_are_compared_in_memory_and_in_files() {
        for limit in [MEMORY, 10 * ITEM] {
            let mut comparison = Comparison { limit, ..Comparison::new() };
            for position in 0..1000 {
                // Each tenth line has the same bytes.
                let line = if position % 10 == 0 { 5000 } else { position };
                comparison.add(hash(line), Kind::Left, (1, position)).expect("a file");
                // After a crash, one line was sent again.
                if position == 3 {
                    comparison.add(hash(line), Kind::Left, (1, position)).expect("a file");
                }
            }
            comparison.add(hash(2000), Kind::Outside, (1, 1000)).expect("a file");
            comparison.add(hash(2001), Kind::Allowed, (1, 1001)).expect("a file");
            let mut stored: Vec<u64> = (0..1000).filter(|at| at % 10 != 0).collect();
            stored.extend([5000; 97]);
            stored.retain(|line| *line != 7);
            stored.extend([11, 11, 2000, 2001, 2001, 9999]);
            for (place, line) in (0..).zip(&stored) {
                comparison.add(hash(*line), Kind::Stored, (0, place)).expect("a file");
            }
            let found = comparison.differences().expect("a file");
            assert_eq!((found.found, found.duplicate), (899 + 97, 3));
            assert_eq!(found.missing, BTreeSet::from([7, 970, 980, 990].map(|at| (1, at))));
            assert_eq!(found.extra, BTreeSet::from([stored.len() as u64 - 1]));
            assert_eq!((found.missing_count, found.extra_count), (4, 1));
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
            let mut comparison = Comparison { limit, ..Comparison::new() };
            for line in 0..300 {
                let left = if line % 3 == 0 { hash(line) } else { plain(line) };
                comparison.add(left, Kind::Left, (1, line)).expect("a file");
            }
            comparison.add(plain(3), Kind::Left, (1, 300)).expect("a file");
            let stored: Vec<u64> = (0..300).filter(|line| *line != 7).chain([5, 500]).collect();
            for (place, line) in (0..).zip(&stored) {
                comparison.add(hash(*line), Kind::Either, (0, place)).expect("a file");
                comparison.add(plain(*line), Kind::Plain, (0, place)).expect("a file");
            }
            let found = comparison.differences().expect("a file");
            assert_eq!((found.found, found.duplicate, found.ambiguous), (300, 1, 1));
            assert_eq!((found.missing, found.missing_count), (BTreeSet::from([(1, 7)]), 1));
            assert_eq!((found.with_added, found.without_added), (199 + 1, 0));
            assert_eq!(found.extra, BTreeSet::from([stored.len() as u64 - 1]));
        }
    }
}
