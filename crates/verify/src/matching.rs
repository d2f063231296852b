//! Matches the hashes of the sent lines with those of the stored lines.
//!
//! There may be hundreds of millions of hashes, in any order. Their first byte selects one of 256
//! buckets. Whenever all buckets together take too much memory, they are appended to temporary
//! files. In the end, one bucket after the other is sorted and compared.
//!
//! A stored line may have two forms: as it is stored, and without the members that an output may
//! have added (`kind` and `apiVersion` of an audit.log).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use evidence_log::tlog::merkle::{HASH_BYTES, Hash};

/// The number of buckets: one for each first byte of a hash.
const BUCKETS: usize = 256;

/// The maximum number of bytes of all buckets in memory.
const MEMORY: usize = 256 << 20;

/// The number of bytes of an item: the hash, the number of the [`Line`], and the two parts of the
/// place.
const ITEM: usize = HASH_BYTES + 1 + 2 + 8;

/// The maximum number of differences that are kept individually. Further ones are only counted.
pub(super) const DIFFERENCES_MAX: usize = 1_000_000;

/// The place of a line, as a source and a number. What they mean depends on the [`Line`]:
///
/// | line | source | number |
/// |---|---|---|
/// | sent, by an entry of a log | an output of that log, from 1 | the lines of this output, counted |
/// | perhaps sent, by no entry | 0 | the position in the queue |
/// | stored | 0 | the stored lines, counted |
pub(crate) type Place = (u16, u64);

/// A statement of the log or of the consumer about a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// The line was sent in the requested time. It must be stored if the export goes far enough.
    Must,
    May(Reason),
    Stored(Form),
}

/// The reason why a line may be stored, but need not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The line was sent, but outside of the requested time.
    Outside,
    /// The line was sent after lines of later positions, like the line of an event that was set
    /// aside. It must be stored only if the export ends clearly after it. The consumer may have
    /// stored an earlier attempt, so the line does not show where an export ends.
    Late,
    /// The consumer may have the line, although no entry says so: its event was lost, was set
    /// aside, or has no fate in the log yet.
    Doubtful,
    /// The line is another copy of a sent line: the event was sent again after a crash.
    Again,
    /// No checkpoint covers the line yet.
    Newer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Only,
    /// The first of two forms: the whole line, to which an output may have added members.
    Added,
    /// The second form, without these members. Both forms have the same place.
    Plain,
}

/// All statements, in the order in which lines with the same hash are matched.
const LINES: [Line; 9] = [
    Line::May(Reason::Outside),
    Line::Must,
    Line::May(Reason::Late),
    Line::May(Reason::Doubtful),
    Line::May(Reason::Again),
    Line::May(Reason::Newer),
    Line::Stored(Form::Only),
    Line::Stored(Form::Added),
    Line::Stored(Form::Plain),
];

/// The class of a stored line, or of one of its two forms. If the forms of a line differ in class,
/// the first of the two classes in this order counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The line was sent, or may have been sent.
    Fits,
    /// The line is a further copy of a sent line.
    Copy,
    /// No checkpoint covers the line yet.
    Newer,
    /// The log does not have the line.
    Extra,
}

const CLASSES: [Class; 4] = [Class::Fits, Class::Copy, Class::Newer, Class::Extra];

/// The number that is added to the class of a [`Form::Plain`].
const PLAIN: u8 = 8;

pub(crate) struct Lines {
    buckets: Vec<Bucket>,
    memory: usize,
    limit: usize,
}

#[derive(Default)]
struct Bucket {
    items: Vec<u8>,
    file: Option<File>,
}

/// The items with the same hash, sorted by statement and place.
struct Group<'a>(&'a [(u8, Place)]);

/// The matches between the stored and the sent lines of a group.
struct Fit {
    /// The number of stored lines that were sent as they are.
    whole: usize,
    /// The number of stored lines that were sent without the members at their beginning.
    plain: usize,
    /// The number of sent lines of the requested time, and how many of them are stored (`found`).
    /// Lines that must be stored are matched before late ones.
    left: usize,
    found: usize,
    /// The class of the stored lines without a match.
    rest: Class,
}

/// The result of the comparison. All counts are of lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    /// The sent lines of the requested time that are stored.
    pub found: u64,
    /// The sent lines of the requested time that are not stored.
    pub absent: u64,
    /// For each source of sent lines (see [`Place`]), the highest number of a line that is stored.
    /// Late lines do not count.
    pub ends: BTreeMap<u16, u64>,
    classes: [u64; CLASSES.len()],
    /// The places of stored lines that the log does not have, at most [`DIFFERENCES_MAX`].
    pub extra: BTreeSet<u64>,
    /// The stored lines of which both forms were sent. Each counts as found for both sent lines.
    pub ambiguous: u64,
    /// The stored lines that match a sent line only without the added members.
    pub(super) with_added: u64,
    /// The stored lines that match a sent line and do not begin with these members.
    pub(super) without_added: u64,
}

impl Line {
    fn kind(self) -> u8 {
        (0..).zip(LINES).find(|(_, line)| *line == self).map_or(u8::MAX, |(kind, _)| kind)
    }
}

impl Default for Lines {
    fn default() -> Self {
        let buckets = (0..BUCKETS).map(|_| Bucket::default()).collect();
        Self { buckets, memory: 0, limit: MEMORY }
    }
}

impl Lines {
    pub(crate) fn add(&mut self, hash: Hash, line: Line, place: Place) -> io::Result<()> {
        self.push(hash, line.kind(), place)
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

    /// Compares the stored lines with the sent lines.
    pub(super) fn differences(&mut self) -> io::Result<Differences> {
        let mut differences = Differences::default();
        // The classes of the lines with two forms. The key of a line is made from its place.
        let mut forms = Self { limit: self.limit, ..Self::default() };
        self.groups(&mut |group| {
            let mut of_group = differences.add(group).into_iter();
            of_group.try_for_each(|(form, at)| forms.push(key_of(at), form, (0, at)))
        })?;
        forms.groups(&mut |group| {
            differences.add_forms(group);
            Ok(())
        })?;
        Ok(differences)
    }

    /// Calls `absent` for each sent line that is not stored, with `true` for a late one. `places`
    /// are places of stored lines. For each of these places, returns the place of the sent line
    /// with the same hash, if there is one.
    pub(crate) fn absent(
        &mut self,
        places: &BTreeSet<u64>,
        absent: &mut dyn FnMut(Place, bool),
    ) -> io::Result<BTreeMap<u64, Place>> {
        let mut known = BTreeMap::new();
        self.groups(&mut |group| {
            let late = group.of(Line::May(Reason::Late)).map(|place| (place, true));
            let left = group.of(Line::Must).map(|place| (place, false)).chain(late);
            left.skip(group.fit().found).for_each(|(place, is_late)| absent(place, is_late));
            // Stored lines are sorted last.
            let only = Line::Stored(Form::Only).kind();
            let (left, stored) = group.0.split_at(group.0.partition_point(|it| it.0 < only));
            let known_here = left.iter().zip(stored).map(|(left, stored)| (stored.1.1, left.1));
            known.extend(known_here.filter(|(at, _)| places.contains(at)));
            Ok(())
        })?;
        Ok(known)
    }

    /// Calls `tell` with the group of each hash.
    fn groups(&mut self, tell: &mut dyn FnMut(&Group<'_>) -> io::Result<()>) -> io::Result<()> {
        self.buckets.iter_mut().try_for_each(|bucket| bucket.groups(tell))
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

    fn groups(&mut self, tell: &mut dyn FnMut(&Group<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut bytes)?;
        }
        bytes.extend_from_slice(&self.items);
        let (items, _) = bytes.as_chunks_mut::<ITEM>();
        // The order of the bytes is hash, statement, place.
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
            tell(&Group(&group))?;
        }
        Ok(())
    }
}

impl Group<'_> {
    fn of(&self, line: Line) -> impl Iterator<Item = Place> {
        let kind = line.kind();
        self.0.iter().filter(move |item| item.0 == kind).map(|item| item.1)
    }

    fn fit(&self) -> Fit {
        let [outside, must, late, doubtful, again, newer, only, added, plain] =
            LINES.map(|line| self.of(line).count());
        let expected = outside + must + late + doubtful;
        let whole = (only + added).min(expected);
        let plain = plain.min(expected - whole);
        // Lines that were sent outside of the requested time are matched first.
        let left = must + late;
        let found = (whole + plain).saturating_sub(outside).min(left);
        let rest = match (expected + again, newer) {
            (1.., _) => Class::Copy,
            (0, 1..) => Class::Newer,
            (0, 0) => Class::Extra,
        };
        Fit { whole, plain, left, found, rest }
    }
}

impl Differences {
    /// Adds a group. Returns a class and a place for each stored line that has two forms. The class
    /// is that of the form in this group.
    fn add(&mut self, group: &Group<'_>) -> Vec<(u8, u64)> {
        let Fit { whole, plain, left, found, rest } = group.fit();
        self.found += found as u64;
        self.absent += (left - found) as u64;
        let outside = group.of(Line::May(Reason::Outside)).take(whole + plain);
        for (source, number) in outside.chain(group.of(Line::Must).take(found)) {
            let end = self.ends.entry(source).or_default();
            *end = number.max(*end);
        }
        let class = |fits: bool| if fits { Class::Fits } else { rest };
        for (at, (_, place)) in group.of(Line::Stored(Form::Only)).enumerate() {
            self.without_added += u64::from(rest != Class::Extra);
            self.count(class(at < whole), place);
        }
        let added = group.of(Line::Stored(Form::Added)).enumerate();
        let added = added.map(|(at, (_, place))| (class(at < whole) as u8, place));
        // Equal lines have equal second forms. The first of these lines count as sent with the
        // added members, and the last ones as sent without them.
        let copies = group.of(Line::Stored(Form::Plain)).count() - plain;
        let plains = group
            .of(Line::Stored(Form::Plain))
            .enumerate()
            .map(|(at, (_, place))| (PLAIN + class(at >= copies) as u8, place));
        added.chain(plains).collect()
    }

    /// Counts a stored line with two forms. `forms` are the results of [`Differences::add`] for its
    /// place.
    fn add_forms(&mut self, forms: &Group<'_>) {
        let Some((_, (_, place))) = forms.0.first() else { return };
        let has = |class: Class, plain: u8| forms.0.iter().any(|it| it.0 == class as u8 + plain);
        match (has(Class::Fits, 0), has(Class::Fits, PLAIN)) {
            (true, true) => self.ambiguous += 1,
            (false, true) => self.with_added += 1,
            (_, _) => {}
        }
        let class = CLASSES.into_iter().find(|class| has(*class, 0) || has(*class, PLAIN));
        self.count(class.unwrap_or(Class::Extra), *place);
    }

    fn count(&mut self, class: Class, place: u64) {
        self.classes[class as usize] += 1;
        if class == Class::Extra && self.extra.len() < DIFFERENCES_MAX {
            self.extra.insert(place);
        }
    }

    pub(crate) fn of(&self, class: Class) -> u64 {
        self.classes[class as usize]
    }
}

/// Returns a key for a place, in the form of a hash, so that items can be grouped by their place.
/// The keys are spread evenly over the buckets.
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

    /// Returns the places of the lines that must be stored and are not, and the result of
    /// [`Lines::absent`].
    fn absent(lines: &mut Lines, places: &[u64]) -> (BTreeSet<Place>, BTreeMap<u64, Place>) {
        let (mut absent, places) = (BTreeSet::new(), places.iter().copied().collect());
        let at = lines.absent(&places, &mut |place, _| assert!(absent.insert(place)));
        (absent, at.expect("a file"))
    }

    /// Method: an event came in by the webhook, and again by a replay of an audit.log, whose lines
    /// have the members that an output may add. The consumer got both lines.
    #[test]
    fn an_audit_log_that_was_replayed_beside_the_webhook_makes_no_duplicates() {
        let (event, line) = (hash(1), hash(2));
        for stored in [[event, line], [line, line]] {
            let mut lines = Lines::default();
            for (number, hash) in (0..).zip([event, line]) {
                lines.add(hash, Line::Must, (1, number)).expect("no file");
            }
            for (place, hash) in (0..).zip(stored) {
                let has_two = hash == line;
                let kind =
                    if has_two { Line::Stored(Form::Added) } else { Line::Stored(Form::Only) };
                lines.add(hash, kind, (0, place)).expect("no file");
                if has_two {
                    lines.add(event, Line::Stored(Form::Plain), (0, place)).expect("no file");
                }
            }
            let found = lines.differences().expect("no file");
            assert_eq!((found.found, found.of(Class::Copy), found.ambiguous), (2, 0, 0));
            assert_eq!((absent(&mut lines, &[]).0, found.of(Class::Extra)), (BTreeSet::new(), 0));
        }
    }

    #[test]
    fn copies_that_were_sent_again_are_duplicates_and_never_must_be_there() {
        let mut lines = Lines::default();
        let mut add = |line: u64, kind: Line, place: Place| {
            lines.add(hash(line), kind, place).expect("no file");
        };
        add(1, Line::Must, (1, 0));
        add(1, Line::May(Reason::Again), (1, 9));
        add(2, Line::May(Reason::Again), (1, 10));
        add(3, Line::May(Reason::Again), (1, 11));
        for (place, line) in (0..).zip([1, 1, 2]) {
            add(line, Line::Stored(Form::Only), (0, place));
        }
        let found = lines.differences().expect("no file");
        assert_eq!((found.found, found.of(Class::Copy)), (1, 2));
        assert_eq!(absent(&mut lines, &[]).0, BTreeSet::new());
        assert_eq!((found.of(Class::Extra), found.ends), (0, BTreeMap::from([(1, 0)])));
    }

    #[test]
    fn lines_are_compared_in_memory_and_in_files() {
        for limit in [MEMORY, 10 * ITEM] {
            let mut lines = Lines { limit, ..Lines::default() };
            for position in 0..1000 {
                // Each tenth line has the same bytes.
                let line = if position % 10 == 0 { 5000 } else { position };
                lines.add(hash(line), Line::Must, (1, position)).expect("a file");
                // After a crash, one line was sent again.
                if position == 3 {
                    lines.add(hash(line), Line::Must, (1, position)).expect("a file");
                }
            }
            lines.add(hash(2000), Line::May(Reason::Outside), (1, 1000)).expect("a file");
            lines.add(hash(2001), Line::May(Reason::Doubtful), (1, 1001)).expect("a file");
            let mut stored: Vec<u64> = (0..1000).filter(|at| at % 10 != 0).collect();
            stored.extend([5000; 97]);
            stored.retain(|line| *line != 7);
            stored.extend([11, 11, 2000, 2001, 2001, 9999]);
            for (place, line) in (0..).zip(&stored) {
                lines.add(hash(*line), Line::Stored(Form::Only), (0, place)).expect("a file");
            }
            let found = lines.differences().expect("a file");
            assert_eq!((found.found, found.of(Class::Copy)), (899 + 97, 3));
            assert_eq!(found.ends, BTreeMap::from([(1, 1000)]));
            assert_eq!(found.extra, BTreeSet::from([stored.len() as u64 - 1]));
            assert_eq!(found.of(Class::Extra), 1);
            assert_eq!(found.absent, 4);
            let (absent, at) = absent(&mut lines, &[0, 5, stored.len() as u64 - 1]);
            assert_eq!(absent, BTreeSet::from([7, 970, 980, 990].map(|at| (1, at))));
            assert_eq!(at, BTreeMap::from([(0, (1, 1)), (5, (1, 6))]));
        }
    }

    /// Method: 300 lines were sent: every third one as it is stored, the others without the members
    /// that the output added, and line 3 in both forms. Line 7 is not stored, line 5 is stored
    /// twice, and line 500 was not sent.
    #[test]
    fn a_line_with_added_members_is_the_event_that_left() {
        let plain = |line: u64| hash(line + 1_000_000);
        for limit in [MEMORY, 10 * ITEM] {
            let mut lines = Lines { limit, ..Lines::default() };
            for line in 0..300 {
                let left = if line % 3 == 0 { hash(line) } else { plain(line) };
                lines.add(left, Line::Must, (1, line)).expect("a file");
            }
            lines.add(plain(3), Line::Must, (1, 300)).expect("a file");
            let stored: Vec<u64> = (0..300).filter(|line| *line != 7).chain([5, 500]).collect();
            for (place, line) in (0..).zip(&stored) {
                lines.add(hash(*line), Line::Stored(Form::Added), (0, place)).expect("a file");
                lines.add(plain(*line), Line::Stored(Form::Plain), (0, place)).expect("a file");
            }
            let found = lines.differences().expect("a file");
            assert_eq!((found.found, found.of(Class::Copy), found.ambiguous), (300, 1, 1));
            assert_eq!(absent(&mut lines, &[]).0, BTreeSet::from([(1, 7)]));
            assert_eq!((found.with_added, found.without_added), (199, 0));
            assert_eq!(found.extra, BTreeSet::from([stored.len() as u64 - 1]));
        }
    }
}
