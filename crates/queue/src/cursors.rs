//! The cursors file, which says how far each output has got. Its format is in
//! docs/internals/spool-format.md. Only the upkeep writes it.
//!
//! The file has two slots, which are written in turn. The newer one has the higher generation. A
//! failed write leaves the other slot whole.
//!
//! The list of the events that are set aside follows the slots. It is never overwritten: a save
//! whose list has changed makes a new file, with the list and both slots, and renames it over the
//! old one. A slot names the length and the checksum of the list that was true when the slot was
//! written. So the places and the list change together, and no crash leaves a place that has passed
//! an event without the event in the list. If no second file can be made, because the disk is full,
//! the slot is written without a list. Then nothing waits for room, but until there is room, nobody
//! would miss a deleted file of an event.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::{fmt, io};

use bytes::Buf as _;

use super::segment::{LogOffset, READS};
use base::disk;
use base::disk::{Access, Disk, File};
use base::position::Position;
use base::release::Format;

pub(crate) const FILE: &str = "cursors";

const SLOT: usize = 16 << 10;

pub(crate) const BYTES: u64 = 2 * SLOT as u64;

const MAGIC: [u8; 8] = *b"\xFFKAFCUR\0";

const VERSION: u32 = 1;

pub(crate) const FORMAT: Format =
    Format { name: "queue cursors", reads: &[VERSION], writes: VERSION };

/// The part of a slot that names the list: this magic, the length of the list and its checksum.
const LIST_MAGIC: [u8; 8] = *b"\xFFKAFALL\0";
const LIST_NAME: usize = 16;

/// The start of the list in the slots of some earlier versions, which is not complete if the slot
/// had too little room. In slots of still earlier versions, other numbers follow the holes, which
/// are not used.
const PART_MAGIC: [u8; 8] = *b"\xFFKAFASD\0";

/// The list has at most so many events of one output. An output sets 10,000 aside. The others are
/// decided, and wait for their dead letter or for durable evidence. If an output has more, the file
/// has no list.
pub(crate) const LISTED_MAX: u64 = 1 << 15;

/// The largest size of a list in bytes: each event is a range of its own.
const LIST_MAX: u64 = OUTPUTS_MAX as u64 * (4 + 16 * LISTED_MAX);

/// The size of the checksum at the end of a slot, in bytes.
const CRC: usize = 4;

/// A range of positions whose events are missing and counted as lost: dropped, damaged or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole {
    pub start: Position,
    pub end: Position,
    /// The number of bytes of the missing lines.
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Contents {
    /// The end of the log when the slot was written.
    pub end: LogOffset,
    /// The place of each output, by name: its watermark or, with evidence, an earlier place.
    pub outputs: BTreeMap<String, LogOffset>,
    pub(super) holes: Vec<Hole>,
    /// The positions of the events that each output has set aside and whose files must exist, in
    /// order. If [`Found::list`] is `None`, some may be missing here.
    pub aside: BTreeMap<String, Vec<Range<Position>>>,
}

/// Joins positions, which rise, to ranges.
pub(super) fn ranges(positions: impl IntoIterator<Item = Position>) -> Vec<Range<Position>> {
    let mut ranges: Vec<Range<Position>> = Vec::new();
    for position in positions {
        match ranges.last_mut().filter(|last| last.end == position) {
            Some(last) => last.end = position.next(),
            None => ranges.push(position..position.next()),
        }
    }
    ranges
}

/// Returns the number of missing events from `position` on, and the bytes of their lines. The bytes
/// of a hole that contains `position` count in full.
pub(super) fn missing_from(holes: &[Hole], position: Position) -> (u64, u64) {
    let behind = holes.iter().filter(|hole| hole.end > position);
    behind.fold((0, 0), |(events, bytes), hole| {
        (events + (hole.end - hole.start.max(position)), bytes + hole.bytes)
    })
}

pub(crate) fn missing_in(holes: &[Hole], positions: &Range<Position>) -> u64 {
    let overlap =
        |hole: &Hole| hole.end.min(positions.end).saturating_since(hole.start.max(positions.start));
    holes.iter().map(overlap).sum()
}

/// The state of the cursors file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CursorsFile {
    /// Both slots have a valid checksum.
    Whole,
    /// Only one slot has a valid checksum, or both have one but their generations do not follow
    /// each other: a write in between is lost.
    Half,
    /// No slot has a valid checksum.
    Damaged,
    /// There is no cursors file.
    Missing,
    /// A newer version of the program has written the file, with this format version.
    Newer(u32),
}

impl fmt::Display for CursorsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "whole",
            Self::Half => "half",
            Self::Damaged => "damaged",
            Self::Missing => "missing",
            Self::Newer(_) => "newer",
        })
    }
}

/// The cursors file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub state: CursorsFile,
    /// The contents of the newest valid slot.
    pub contents: Option<Contents>,
    /// The highest generation in the file, or 0.
    generation: u64,
    /// The bytes of the list of all events that are set aside, if the newest slot names one.
    list: Option<Vec<u8>>,
}

/// The largest number of outputs: a slot has room for them, even with names of 63 bytes.
pub(super) const OUTPUTS_MAX: usize = 200;

impl Contents {
    /// Returns the place up to which the log is known to reach: `end`, or a later place of an
    /// output.
    pub(crate) fn known(&self) -> LogOffset {
        self.outputs.values().copied().fold(self.end, LogOffset::max)
    }

    /// Returns the positions in `aside` that are before their outputs' places. The others come from
    /// the log.
    pub(crate) fn listed(&self) -> BTreeMap<String, BTreeSet<Position>> {
        let listed = self.aside.iter().map(|(name, ranges)| {
            let place = self.outputs.get(name).map_or(Position::START, |it| it.position);
            let all = ranges.iter().flat_map(|range| range.start.get()..range.end.get());
            (name.clone(), all.map(Position::new).take_while(|it| *it < place).collect())
        });
        listed.collect()
    }

    /// Returns the list of all events that are set aside; `None` if an output has too many. It is
    /// empty if there are none.
    fn list(&self) -> Option<Vec<u8>> {
        let mut list = Vec::new();
        for name in self.outputs.keys().filter(|_| !self.aside.is_empty()) {
            let ranges = self.aside.get(name).map_or(&[][..], Vec::as_slice);
            if events(ranges) > LISTED_MAX {
                return None;
            }
            list.extend(count(ranges.len()));
            let numbers = ranges.iter().flat_map(|range| [range.start, range.end]);
            numbers.for_each(|number| list.extend(number.get().to_le_bytes()));
        }
        Some(list)
    }

    /// Returns a slot. `list` is the list in the file, if it is true for these contents.
    fn encode(&self, generation: u64, list: Option<&[u8]>) -> Vec<u8> {
        let mut slot = Vec::with_capacity(SLOT);
        slot.extend(MAGIC);
        slot.extend(VERSION.to_le_bytes());
        slot.extend([0; 4]);
        slot.extend(generation.to_le_bytes());
        slot.extend(self.end.position.get().to_le_bytes());
        slot.extend(self.end.byte.to_le_bytes());
        slot.extend([0; 8]);
        for (name, place) in &self.outputs {
            slot.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            slot.extend(name.bytes().take(u8::MAX.into()));
            slot.extend(place.position.get().to_le_bytes());
            slot.extend(place.byte.to_le_bytes());
        }
        // The oldest holes are written first. A slot has room for the holes of a usual queue,
        // because many adjacent holes are joined before. A hole that finds no room may count as
        // lost a second time after a restart.
        let room = (SLOT - CRC - LIST_NAME).saturating_sub(slot.len()) / 24;
        let holes = &self.holes[..room.min(self.holes.len())];
        for hole in holes {
            for number in [hole.start.get(), hole.end.get(), hole.bytes] {
                slot.extend(number.to_le_bytes());
            }
        }
        let holes = holes.len();
        if let Some(list) = list {
            slot.extend(LIST_MAGIC);
            slot.extend(count(list.len()));
            slot.extend(crc32c::crc32c(list).to_le_bytes());
        }
        let length = count(slot.len() + CRC);
        slot[12..16].copy_from_slice(&length);
        slot[40..44].copy_from_slice(&count(self.outputs.len()));
        slot[44..48].copy_from_slice(&count(holes));
        let crc = crc32c::crc32c(&slot);
        slot.extend(crc.to_le_bytes());
        // A longer slot would overwrite the other one, which may be the newest.
        assert!(slot.len() <= SLOT, "a slot has {} bytes", slot.len());
        slot
    }
}

fn count(count: usize) -> [u8; 4] {
    u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes()
}

fn events(ranges: &[Range<Position>]) -> u64 {
    ranges.iter().map(|range| range.end.saturating_since(range.start)).fold(0, u64::saturating_add)
}

/// The contents of a slot.
#[derive(Debug, PartialEq, Eq)]
struct Slot {
    generation: u64,
    contents: Contents,
    /// The length and the checksum of the list, if the slot names one.
    list: Option<(u32, u32)>,
}

/// Returns `None` if the slot is damaged. Fails with the format version if a newer version of the
/// program has written the slot.
fn decode(slot: &[u8]) -> Result<Option<Slot>, u32> {
    if !slot.starts_with(&MAGIC) {
        return Ok(None);
    }
    let mut reader = Reader(&slot[MAGIC.len()..]);
    let (Some(version), Some(length)) = (reader.u32(), reader.u32()) else { return Ok(None) };
    let checked = usize::try_from(length).ok().and_then(|length| {
        let (body, crc) = slot.get(..length)?.split_at_checked(length.checked_sub(CRC)?)?;
        (crc32c::crc32c(body).to_le_bytes() == crc).then_some(body)
    });
    let Some(body) = checked else { return Ok(None) };
    if version != VERSION {
        return Err(version);
    }
    let mut reader = Reader(body.get(16..).unwrap_or_default());
    Ok(reader.slot())
}

/// A reader of numbers from the front of a slot. `None` means that too few bytes are left.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32_le().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64_le().ok()
    }

    fn position(&mut self) -> Option<Position> {
        self.u64().map(Position::new)
    }

    fn place(&mut self) -> Option<LogOffset> {
        Some(LogOffset { position: self.position()?, byte: self.u64()? })
    }

    fn slot(&mut self) -> Option<Slot> {
        let generation = self.u64()?;
        let mut contents = Contents { end: self.place()?, ..Contents::default() };
        let (outputs, holes) = (self.u32()?, self.u32()?);
        for _ in 0..outputs {
            let length = self.0.try_get_u8().ok()?;
            let (name, rest) = self.0.split_at_checked(length.into())?;
            self.0 = rest;
            let name = std::str::from_utf8(name).ok()?.to_owned();
            contents.outputs.insert(name, self.place()?);
        }
        for _ in 0..holes {
            contents.holes.push(Hole {
                start: self.position()?,
                end: self.position()?,
                bytes: self.u64()?,
            });
        }
        let mut list = None;
        if let Some(named) = self.0.strip_prefix(&LIST_MAGIC) {
            self.0 = named;
            list = Some((self.u32()?, self.u32()?));
        } else if let Some(part) = self.0.strip_prefix(&PART_MAGIC) {
            contents.aside = Reader(part).aside(&contents.outputs).unwrap_or_default();
        }
        Some(Slot { generation, contents, list })
    }

    /// Reads the events that are set aside. `None` if the list is wrong.
    fn aside(
        &mut self,
        outputs: &BTreeMap<String, LogOffset>,
    ) -> Option<BTreeMap<String, Vec<Range<Position>>>> {
        let mut aside = BTreeMap::new();
        for name in outputs.keys() {
            let mut ranges = Vec::new();
            for _ in 0..self.u32()? {
                ranges.push(self.position()?..self.position()?);
            }
            if events(&ranges) > LISTED_MAX {
                return None;
            }
            if !ranges.is_empty() {
                aside.insert(name.clone(), ranges);
            }
        }
        Some(aside)
    }
}

impl Found {
    /// Returns `true` if the contents list all events that are set aside, and are those of the last
    /// save.
    pub(crate) fn lists_all(&self) -> bool {
        self.state == CursorsFile::Whole && self.list.is_some()
    }
}

/// Reads the list, and adds it to the contents of its slot. `None` if the list is damaged.
fn read_list(file: &dyn File, slot: &mut Slot) -> Option<Vec<u8>> {
    let (length, crc) = slot.list.filter(|(length, _)| u64::from(*length) <= LIST_MAX)?;
    let mut list = vec![0; usize::try_from(length).ok()?];
    let mut read = || file.read_at(&mut list, BYTES).ok();
    let size = (0..READS).find_map(|_| read())?;
    if size != list.len() || crc32c::crc32c(&list) != crc {
        return None;
    }
    if !list.is_empty() {
        slot.contents.aside = Reader(&list).aside(&slot.contents.outputs)?;
    }
    Some(list)
}

/// Reads the cursors file. Fails if no slot is valid and one of them can't be read.
pub(crate) fn read(disk: &dyn Disk) -> io::Result<Found> {
    let without = |state| Ok(Found { state, contents: None, generation: 0, list: None });
    let Some(file) = disk::open_if_there(disk, FILE)? else {
        return without(CursorsFile::Missing);
    };
    let (mut slots, mut unreadable) = (Vec::new(), None);
    for slot in 0..2_u64 {
        let mut bytes = vec![0; SLOT];
        let mut read = || file.read_at(&mut bytes, slot * SLOT as u64);
        let size = (1..READS).find_map(|_| read().ok()).map_or_else(read, Ok);
        let size = size.unwrap_or_else(|error| {
            unreadable = Some(error);
            0
        });
        match decode(&bytes[..size]) {
            Ok(decoded) => slots.extend(decoded),
            Err(version) => return without(CursorsFile::Newer(version)),
        }
    }
    if let Some(error) = unreadable.filter(|_| slots.is_empty()) {
        return Err(error);
    }
    slots.sort_unstable_by_key(|slot: &Slot| slot.generation);
    let Some(mut newest) = slots.pop() else { return without(CursorsFile::Damaged) };
    let list = read_list(&*file, &mut newest);
    let Slot { generation, contents, list: named } = newest;
    let follows = slots.pop().is_some_and(|older| older.generation + 1 == generation);
    let is_whole = follows && named.is_some() == list.is_some();
    let state = if is_whole { CursorsFile::Whole } else { CursorsFile::Half };
    Ok(Found { state, contents: Some(contents), generation, list })
}

/// The cursors file, open for writing.
///
/// Each write goes into the older slot, unless the list has changed. After a failed write or sync
/// the file's contents are unknown, so the next write makes a new file with both slots. Until then
/// the old file has at least one valid slot.
#[derive(Debug)]
pub(super) struct Cursors {
    /// `None` if the next write must make a new file.
    file: Option<Arc<dyn File>>,
    /// The highest generation that was used so far.
    generation: u64,
    /// The list in the file. A slot that names none may be newer.
    list: Vec<u8>,
    /// `true` if it was logged that the file has no list at present.
    told_unlisted: bool,
}

impl Cursors {
    /// Opens the file for writing. `found` comes from [`read`]. A file with a valid slot is not
    /// replaced, because a full disk has no room for a second file.
    pub(crate) fn open(disk: &dyn Disk, found: &Found) -> io::Result<Self> {
        let valid = found.contents.as_ref();
        let file = valid.map(|_| disk.open(FILE, Access::Write)).transpose()?;
        let list = found.list.clone().unwrap_or_default();
        Ok(Self { file, generation: found.generation, list, told_unlisted: false })
    }

    /// Writes these contents and syncs them. After an error the next call makes a new file.
    pub(crate) fn write(&mut self, disk: &dyn Disk, contents: &Contents) -> io::Result<()> {
        let list = contents.list();
        let is_there = list.as_ref().is_none_or(|list| list.is_empty() || *list == self.list);
        match self.file.take() {
            Some(file) if is_there => self.overwrite(file, contents, list.as_deref()),
            old => match (self.make(disk, contents, list), old) {
                // No new file has taken the name of the old one.
                (Err(_), Some(old)) if old.is_linked().is_ok_and(|is_linked| is_linked) => {
                    self.overwrite(old, contents, None)
                }
                (made, _) => made,
            },
        }
    }

    fn overwrite(
        &mut self,
        file: Arc<dyn File>,
        contents: &Contents,
        list: Option<&[u8]>,
    ) -> io::Result<()> {
        self.generation += 1;
        // Even generations are in slot 0, odd ones in slot 1.
        let at = self.generation % 2 * SLOT as u64;
        file.write_at(&[&contents.encode(self.generation, list)], at)?;
        file.sync()?;
        self.file = Some(file);
        self.tell(list.is_some());
        Ok(())
    }

    fn make(
        &mut self,
        disk: &dyn Disk,
        contents: &Contents,
        list: Option<Vec<u8>>,
    ) -> io::Result<()> {
        let generation = (self.generation + 1).next_multiple_of(2) + 1;
        let mut bytes = contents.encode(generation - 1, list.as_deref());
        bytes.resize(SLOT, 0);
        bytes.extend(contents.encode(generation, list.as_deref()));
        bytes.resize(2 * SLOT, 0);
        bytes.extend(list.as_deref().unwrap_or_default());
        disk::replace(disk, FILE, &bytes)?;
        self.file = Some(disk.open(FILE, Access::Write)?);
        self.tell(list.is_some());
        (self.generation, self.list) = (generation, list.unwrap_or_default());
        Ok(())
    }

    /// Logs once that the file has no list.
    fn tell(&mut self, is_listed: bool) {
        if !std::mem::replace(&mut self.told_unlisted, !is_listed) && !is_listed {
            tracing::warn!(
                "the file `cursors` cannot list the events that are set aside, because the disk \
                 has no room for a new file, or there are too many of these events: until it can, \
                 nobody notices if the file of such an event is deleted"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use testing::simulated_disk::SimulatedDisk;

    use super::*;

    fn contents() -> Contents {
        let place = |position, byte| LogOffset { position, byte };
        Contents {
            end: place(Position::new(900), 80_000),
            outputs: [
                ("logstash".to_owned(), place(Position::new(7), 600)),
                ("x".repeat(63), place(Position::new(900), 80_000)),
            ]
            .into(),
            holes: vec![Hole { start: Position::new(20), end: Position::new(40), bytes: 2_000 }],
            aside: [("logstash".to_owned(), ranges([3, 4, 6].map(Position::new)))].into(),
        }
    }

    fn without_list(contents: Contents) -> Contents {
        Contents { aside: BTreeMap::new(), ..contents }
    }

    /// Reads what these contents were written to.
    fn written(contents: &Contents) -> (SimulatedDisk, Found) {
        let disk = SimulatedDisk::new(1);
        let found = read(&disk).expect("no fault is set");
        let mut cursors = Cursors::open(&disk, &found).expect("no fault is set");
        cursors.write(&disk, contents).expect("no fault is set");
        let found = read(&disk).expect("no fault is set");
        (disk, found)
    }

    #[test]
    fn a_slot_reads_back_and_any_changed_byte_is_seen() {
        let list = contents().list().expect("it is short");
        let slot = contents().encode(12, Some(&list));
        let list = Some((4 + 2 * 16 + 4, crc32c::crc32c(&list)));
        let contents = without_list(contents());
        assert_eq!(decode(&slot), Ok(Some(Slot { generation: 12, contents, list })));
        for at in 0..slot.len() {
            for mask in [1, 0x80, 0xFF] {
                let mut changed = slot.clone();
                changed[at] ^= mask;
                assert_eq!(decode(&changed), Ok(None), "byte {at}, mask {mask}");
            }
        }
    }

    #[test]
    fn as_many_outputs_as_are_allowed_find_room() {
        let outputs =
            (0..OUTPUTS_MAX).map(|n| (format!("{n:063}"), LogOffset::default())).collect();
        let holes = vec![Hole { start: Position::new(1), end: Position::new(2), bytes: 3 }; 1000];
        let slot = Contents { outputs, holes, ..Contents::default() }.encode(1, Some(&[]));
        assert!(slot.len() <= SLOT);
        let read = decode(&slot).expect("this version").expect("it checks");
        assert_eq!((read.contents.outputs.len(), read.list), (OUTPUTS_MAX, Some((0, 0))));
    }

    /// Returns the slot of an earlier version, which ends with these bytes.
    fn earlier(end: &[u8]) -> Vec<u8> {
        let mut slot = contents().encode(4, None);
        slot.truncate(slot.len() - CRC);
        slot.extend(end);
        let length = u32::try_from(slot.len() + CRC).unwrap();
        slot[12..16].copy_from_slice(&length.to_le_bytes());
        slot.extend(crc32c::crc32c(&slot).to_le_bytes());
        slot
    }

    /// Method: 16 bytes for each output follow the holes, or a list, as in slots of earlier
    /// versions of the program.
    #[test]
    fn the_slots_of_earlier_versions_are_read() {
        let list = contents().list().expect("it is short");
        for (end, contents) in [
            (vec![7; 2 * 16], without_list(contents())),
            ([&PART_MAGIC[..], &list].concat(), contents()),
        ] {
            let slot = Slot { generation: 4, contents, list: None };
            assert_eq!(decode(&earlier(&end)), Ok(Some(slot)));
        }
    }

    /// Method: each second event is set aside, by up to as many outputs as are allowed.
    #[test]
    fn the_file_lists_all_events_that_are_set_aside() {
        for (outputs, events) in [(1, 10_000), (3, 10_000), (OUTPUTS_MAX, 100)] {
            let names: Vec<_> = (0..outputs).map(|n| format!("{n:063}")).collect();
            let second = ranges((0..events).map(|n| Position::new(2 * n)));
            let aside = names.iter().map(|name| (name.clone(), second.clone())).collect();
            let place = LogOffset { position: Position::new(2 * events), byte: 7 };
            let places = names.into_iter().map(|name| (name, place)).collect();
            let contents = Contents { outputs: places, aside, ..Contents::default() };
            let (disk, found) = written(&contents);
            assert!(found.lists_all());
            assert_eq!(found.contents.expect("it is whole"), contents);
            let most = BYTES + outputs as u64 * (4 + 16 * events);
            assert_eq!(disk.contents(FILE).len() as u64, most);
        }
    }

    #[test]
    fn a_list_that_is_damaged_forged_or_too_long_is_not_believed() {
        let (disk, found) = written(&contents());
        assert!(found.lists_all());
        for at in BYTES..disk.contents(FILE).len() as u64 {
            disk.flip(FILE, at, 4);
            let found = read(&disk).expect("no fault is set");
            assert_eq!((found.state, found.lists_all()), (CursorsFile::Half, false));
            assert_eq!(found.contents, Some(without_list(contents())));
            disk.flip(FILE, at, 4);
        }
        let range = vec![Position::START..Position::MAX];
        let forged = Contents { aside: [("logstash".to_owned(), range)].into(), ..contents() };
        let (_, found) = written(&forged);
        assert_eq!((found.state, found.lists_all()), (CursorsFile::Whole, false));
        assert_eq!(found.contents, Some(without_list(contents())));
        let list = [&1_u32.to_le_bytes()[..], &[0; 8], &[0xFF; 8], &[0; 4]].concat();
        let slot = forged.encode(1, Some(&list));
        let mut slot = decode(&slot).expect("this version").expect("it checks");
        let file = disk.create("forged", BYTES + list.len() as u64).expect("no fault is set");
        file.write_at(&[&list], BYTES).expect("no fault is set");
        assert_eq!(read_list(&*file, &mut slot), None);
    }

    /// Method: on a disk without room for a second file, an event is set aside. Then there is room.
    #[test]
    fn a_full_disk_takes_the_places_without_a_list() {
        let disk = SimulatedDisk::new(1);
        let found = read(&disk).expect("no fault is set");
        let mut cursors = Cursors::open(&disk, &found).expect("no fault is set");
        cursors.write(&disk, &without_list(contents())).expect("there is room");
        disk.capacity(BYTES + 100);
        for lists_all in [false, false, true] {
            if lists_all {
                disk.calm();
            }
            cursors.write(&disk, &contents()).expect("the file itself has room");
            let found = read(&disk).expect("no fault is set");
            assert_eq!((found.state, found.lists_all()), (CursorsFile::Whole, lists_all));
            let expected = if lists_all { contents() } else { without_list(contents()) };
            assert_eq!(found.contents, Some(expected));
        }
    }

    /// Method: a power loss, after each number of changes, while events are set aside one after the
    /// other, and the place moves behind each of them.
    #[test]
    fn the_places_and_the_list_change_together() {
        let of = |events: u64| {
            let place = LogOffset { position: Position::new(events), byte: events };
            let aside = ranges((0..events / 2).map(|n| Position::new(2 * n)));
            let aside = if aside.is_empty() { None } else { Some(("a".to_owned(), aside)) };
            let outputs = [("a".to_owned(), place)].into();
            Contents { end: place, outputs, aside: aside.into_iter().collect(), holes: Vec::new() }
        };
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        for changes in 0..60 {
            let disk = SimulatedDisk::new(seed);
            let found = read(&disk).expect("no fault is set");
            let mut cursors = Cursors::open(&disk, &found).expect("no fault is set");
            cursors.write(&disk, &of(0)).expect("no fault is set");
            disk.crash_after(changes);
            let saved = (1..10).take_while(|n| cursors.write(&disk, &of(*n)).is_ok()).count();
            let found = read(&disk.crash(&mut rng)).expect("no fault is set");
            let contents = found.contents.clone().expect("a slot is whole");
            let place = contents.outputs["a"].position.get();
            assert_eq!(contents, of(place), "seed {seed}, {changes}");
            assert!(place >= saved as u64 && found.list.is_some(), "seed {seed}, {changes}");
        }
    }

    #[test]
    fn a_newer_version_is_told() {
        let mut slot = contents().encode(1, None);
        slot[8..12].copy_from_slice(&2_u32.to_le_bytes());
        let body = slot.len() - CRC;
        let crc = crc32c::crc32c(&slot[..body]);
        slot[body..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&slot), Err(2));
    }
}
