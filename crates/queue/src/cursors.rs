//! The cursors file, which says how far each output has got. Its format is in
//! docs/internals/spool-format.md. Only the upkeep writes it.
//!
//! The file has two slots, which are written in turn. The newer one has the higher generation. A
//! failed write leaves the other slot whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::{fmt, io};

use bytes::Buf as _;

use super::segment::{LogOffset, READS};
use super::shelf;
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

/// The start of the part of a slot that lists the events that are set aside. In the slots of some
/// earlier versions, other numbers follow the holes, which are not used.
const ASIDE_MAGIC: [u8; 8] = *b"\xFFKAFASD\0";

/// The largest number of events that are set aside in a slot that is believed. It is more than
/// outputs set aside, and keeps a forged slot from filling the memory.
const ASIDE_MAX: u64 = 1 << 20;

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
    /// order. If the slot has too little room, some are missing here.
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
}

/// The largest number of outputs: a slot has room for them, even with names of 63 bytes.
pub(super) const OUTPUTS_MAX: usize = 200;

impl Contents {
    /// Returns the place up to which the log is known to reach: `end`, or a later place of an
    /// output.
    pub(crate) fn known(&self) -> LogOffset {
        self.outputs.values().copied().fold(self.end, LogOffset::max)
    }

    fn encode(&self, generation: u64) -> Vec<u8> {
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
        let room = (SLOT - CRC).saturating_sub(slot.len()) / 24;
        let holes = &self.holes[..room.min(self.holes.len())];
        for hole in holes {
            for number in [hole.start.get(), hole.end.get(), hole.bytes] {
                slot.extend(number.to_le_bytes());
            }
        }
        let holes = holes.len();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
        let heads = ASIDE_MAGIC.len() + 4 * self.outputs.len();
        let mut room = (SLOT - CRC).saturating_sub(slot.len() + heads) / 16;
        if !self.aside.is_empty() && room > 0 {
            slot.extend(ASIDE_MAGIC);
            for name in self.outputs.keys() {
                let ranges = self.aside.get(name).map_or(&[][..], Vec::as_slice);
                let ranges = &ranges[..room.min(ranges.len())];
                room -= ranges.len();
                slot.extend(count(ranges.len()));
                let numbers = ranges.iter().flat_map(|range| [range.start, range.end]);
                numbers.for_each(|number| slot.extend(number.get().to_le_bytes()));
            }
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

/// Returns the generation and the contents of a slot; `None` if the slot is damaged. Fails with the
/// format version if a newer version of the program has written the slot.
fn decode(slot: &[u8]) -> Result<Option<(u64, Contents)>, u32> {
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
    Ok(reader.contents())
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

    fn contents(&mut self) -> Option<(u64, Contents)> {
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
        contents.aside = self.aside(&contents.outputs).unwrap_or_default();
        Some((generation, contents))
    }

    /// Reads the list of the events that are set aside. `None` if the slot has none.
    fn aside(
        &mut self,
        outputs: &BTreeMap<String, LogOffset>,
    ) -> Option<BTreeMap<String, Vec<Range<Position>>>> {
        self.0 = self.0.strip_prefix(&ASIDE_MAGIC)?;
        let (mut aside, mut events) = (BTreeMap::new(), 0_u64);
        for name in outputs.keys() {
            let mut ranges = Vec::new();
            for _ in 0..self.u32()? {
                let range = self.position()?..self.position()?;
                events = events.saturating_add(range.end.saturating_since(range.start));
                ranges.push(range);
            }
            if !ranges.is_empty() {
                aside.insert(name.clone(), ranges);
            }
        }
        (events <= ASIDE_MAX).then_some(aside)
    }
}

impl Found {
    /// Returns `true` if the file says that this event is set aside.
    pub(crate) fn lists(&self, output: &str, position: Position) -> bool {
        let ranges = self.contents.as_ref().and_then(|contents| contents.aside.get(output));
        let mut ranges = ranges.into_iter().flatten();
        self.state == CursorsFile::Whole && ranges.any(|range| range.contains(&position))
    }

    /// Adds the events that the file lists as set aside to those whose files were `found`, with 0
    /// bytes: their files and their names are missing. An event that is not before its output's
    /// place comes from the log, and is not added. Without a whole file, the list may be that of an
    /// older save, and the events may have been decided since: nothing is added, and the number of
    /// these events is returned.
    pub(crate) fn add_aside(&self, found: &mut shelf::Found) -> u64 {
        let Some(contents) = &self.contents else { return 0 };
        let mut unknown = 0;
        for (name, ranges) in &contents.aside {
            let place = contents.outputs.get(name).map_or(Position::START, |it| it.position);
            let there = found.get(name).into_iter().flatten();
            let there: BTreeSet<_> = there.map(|(position, _)| *position).collect();
            let listed = ranges.iter().flat_map(|range| range.start.get()..range.end.get());
            let listed = listed.map(Position::new).filter(|position| *position < place);
            let missing = listed.filter(|position| !there.contains(position));
            let missing: Vec<_> = missing.map(|position| (position, 0)).collect();
            if self.state != CursorsFile::Whole {
                unknown += missing.len() as u64;
            } else if !missing.is_empty() {
                let events = found.entry(name.clone()).or_default();
                events.extend(missing);
                events.sort_unstable();
            }
        }
        unknown
    }
}

/// Reads the cursors file. Fails if no slot is valid and one of them can't be read.
pub(crate) fn read(disk: &dyn Disk) -> io::Result<Found> {
    let without = |state| Ok(Found { state, contents: None, generation: 0 });
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
    slots.sort_unstable_by_key(|(generation, _)| *generation);
    let Some((generation, newest)) = slots.pop() else { return without(CursorsFile::Damaged) };
    let is_whole = slots.pop().is_some_and(|(older, _)| older + 1 == generation);
    let state = if is_whole { CursorsFile::Whole } else { CursorsFile::Half };
    Ok(Found { state, contents: Some(newest), generation })
}

/// The cursors file, open for writing.
///
/// Each write goes into the older slot. After a failed write or sync the file's contents are
/// unknown, so the next write makes a new file with both slots and renames it over the old one.
/// Until then the old file has at least one valid slot.
#[derive(Debug)]
pub(super) struct Cursors {
    /// `None` if the next write must make a new file.
    file: Option<Arc<dyn File>>,
    /// The highest generation that was used so far.
    generation: u64,
}

impl Cursors {
    /// Opens the file for writing. `found` comes from [`read`]. A file with a valid slot is not
    /// replaced, because a full disk has no room for a second file.
    pub(crate) fn open(disk: &dyn Disk, found: &Found) -> io::Result<Self> {
        let valid = found.contents.as_ref();
        let file = valid.map(|_| disk.open(FILE, Access::Write)).transpose()?;
        Ok(Self { file, generation: found.generation })
    }

    /// Writes these contents and syncs them. After an error the next call makes a new file.
    pub(crate) fn write(&mut self, disk: &dyn Disk, contents: &Contents) -> io::Result<()> {
        let Some(file) = self.file.take() else {
            self.file = Some(self.make(disk, contents)?);
            return Ok(());
        };
        self.generation += 1;
        // Even generations are in slot 0, odd ones in slot 1.
        let at = self.generation % 2 * SLOT as u64;
        file.write_at(&[&contents.encode(self.generation)], at)?;
        file.sync()?;
        self.file = Some(file);
        Ok(())
    }

    fn make(&mut self, disk: &dyn Disk, contents: &Contents) -> io::Result<Arc<dyn File>> {
        self.generation = (self.generation + 1).next_multiple_of(2) + 1;
        let mut slots = contents.encode(self.generation - 1);
        slots.resize(SLOT, 0);
        slots.extend(contents.encode(self.generation));
        slots.resize(2 * SLOT, 0);
        disk::replace(disk, FILE, &slots)?;
        disk.open(FILE, Access::Write)
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_slot_reads_back_and_any_changed_byte_is_seen() {
        let slot = contents().encode(12);
        assert_eq!(decode(&slot), Ok(Some((12, contents()))));
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
        let slot = Contents { outputs, holes, ..Contents::default() }.encode(1);
        assert!(slot.len() <= SLOT);
        let (_, read) = decode(&slot).expect("this version").expect("it checks");
        assert_eq!(read.outputs.len(), OUTPUTS_MAX);
    }

    /// Method: 16 bytes for each output follow the holes, as in a slot of an earlier version of the
    /// program.
    #[test]
    fn a_slot_with_histories_is_read_without_them() {
        let contents = || Contents { aside: BTreeMap::new(), ..contents() };
        let mut slot = contents().encode(4);
        slot.truncate(slot.len() - CRC);
        slot.extend([7; 2 * 16]);
        let length = u32::try_from(slot.len() + CRC).unwrap();
        slot[12..16].copy_from_slice(&length.to_le_bytes());
        slot.extend(crc32c::crc32c(&slot).to_le_bytes());
        assert_eq!(decode(&slot), Ok(Some((4, contents()))));
    }

    /// Method: each second event is set aside, by more outputs than a slot has room for.
    #[test]
    fn a_slot_lists_as_many_events_that_are_set_aside_as_it_has_room_for() {
        for outputs in [1, 3, OUTPUTS_MAX] {
            let names: Vec<_> = (0..outputs).map(|n| format!("{n:063}")).collect();
            let second = ranges((0..5000).map(|n| Position::new(2 * n)));
            let aside = names.iter().map(|name| (name.clone(), second.clone())).collect();
            let places = names.iter().map(|name| (name.clone(), LogOffset::default())).collect();
            let slot = Contents { outputs: places, aside, ..Contents::default() }.encode(1);
            assert!(slot.len() <= SLOT);
            let (_, read) = decode(&slot).expect("this version").expect("it checks");
            assert_eq!(read.outputs.len(), outputs);
            let listed: usize = read.aside.values().map(Vec::len).sum();
            assert!(outputs == OUTPUTS_MAX || listed > 900, "{listed}");
            assert!(read.aside.values().all(|ranges| second.starts_with(ranges)));
        }
    }

    #[test]
    fn a_forged_list_of_events_that_are_set_aside_is_not_believed() {
        let range = vec![Position::START..Position::MAX];
        let forged = Contents { aside: [("logstash".to_owned(), range)].into(), ..contents() };
        let (_, read) = decode(&forged.encode(1)).expect("this version").expect("it checks");
        assert_eq!(read, Contents { aside: BTreeMap::new(), ..contents() });
    }

    #[test]
    fn a_newer_version_is_told() {
        let mut slot = contents().encode(1);
        slot[8..12].copy_from_slice(&2_u32.to_le_bytes());
        let body = slot.len() - CRC;
        let crc = crc32c::crc32c(&slot[..body]);
        slot[body..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&slot), Err(2));
    }
}
