//! The cursors file, which says how far each output has got. Its format is in
//! docs/internals/spool-format.md.
//!
//! Two slots are written in turn, so that one is whole whatever happens to the other. Only the
//! upkeep writes the file.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Buf as _;

use super::segment::{LogOffset, READS};
use base::disk;
use base::disk::{Access, Disk, File};
use base::position::Position;
use base::release::Format;

/// The name of the cursors file, which says how far each output has got in the queue.
pub(crate) const FILE: &str = "cursors";

/// The size of one slot in bytes. The cursors file has two slots, which are written in turn.
const SLOT: usize = 16 << 10;

/// The size of the cursors file in bytes, which is that of its two slots.
pub(crate) const BYTES: u64 = 2 * SLOT as u64;

/// The first bytes of each slot of the cursors file.
const MAGIC: [u8; 8] = *b"\xFFKAFCUR\0";

/// The version of the format of the cursors file.
const VERSION: u32 = 1;

/// The format of the file, for `--version`.
pub(crate) const FORMAT: Format =
    Format { name: "queue cursors", reads: &[VERSION], writes: VERSION };

/// The size of the checksum at the end of a slot, in bytes.
const CRC: usize = 4;

/// A range of positions whose events are missing, and were counted as lost. In the cursors file, it
/// is a range that was dropped before all outputs had got its events. A cursor uses the same type
/// for damage that it has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole {
    pub start: Position,
    pub end: Position,
    /// The number of bytes of the missing lines.
    pub bytes: u64,
}

/// The contents of one slot of the cursors file. The file has two slots, which are written in turn
/// so that one is always valid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Contents {
    /// The end of the log when the slot was written.
    pub end: LogOffset,
    /// The watermark of each output, by the output's name.
    pub outputs: BTreeMap<String, LogOffset>,
    /// The holes: ranges of the log that were dropped and counted as lost, in the order of
    /// positions.
    pub(super) holes: Vec<Hole>,
    /// The knowledge about the events before the place of each output, by the output's name. A name
    /// of `outputs` is missing here if nothing is known.
    pub(super) histories: BTreeMap<String, History>,
}

/// The knowledge about the events before an output's place. After a start, these events count as
/// sent, and the output does not send a repetition of one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct History {
    /// The consumer has every event from this position up to the output's place, except those that
    /// the output's filter kept back.
    pub since: Position,
    /// A fingerprint of the filter's rules by which these events were chosen; 0 if the output sends
    /// every event.
    pub selection: u64,
}

impl History {
    /// The size of a history in a slot, in bytes.
    const BYTES: usize = 16;

    /// Returns the history of an output that has got none of the events before its place, or of
    /// which nobody knows what it has got.
    pub(crate) fn none(place: LogOffset) -> Self {
        Self { since: place.position, selection: 0 }
    }
}

/// Returns two numbers about the missing events from `position` on: how many they are, and how many
/// bytes their lines have. `holes` are the ranges of missing events. If `position` lies inside a
/// hole, the number of events begins at `position`, but the number of bytes includes the whole
/// hole.
pub(super) fn missing_from(holes: &[Hole], position: Position) -> (u64, u64) {
    let behind = holes.iter().filter(|hole| hole.end > position);
    behind.fold((0, 0), |(events, bytes), hole| {
        (events + (hole.end - hole.start.max(position)), bytes + hole.bytes)
    })
}

/// Returns how many of these positions are in `holes`.
pub(crate) fn missing_in(holes: &[Hole], positions: &Range<Position>) -> u64 {
    let overlap =
        |hole: &Hole| hole.end.min(positions.end).saturating_since(hole.start.max(positions.start));
    holes.iter().map(overlap).sum()
}

/// The result of reading the cursors file, which has two slots: the state of the file, and the
/// contents of its newest valid slot. There are no contents if the file is missing, damaged, or of
/// a newer version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// There is no cursors file.
    Nothing,
    /// Neither of the file's two slots has a valid checksum.
    Damaged,
    /// Only one of the file's two slots has a valid checksum, or their generations do not follow
    /// each other. The slot that is damaged or missing may have been newer than these contents.
    Half(Contents),
    /// Both slots have a valid checksum, and their generations follow each other. These are the
    /// contents of the newer slot.
    Whole(Contents),
    /// A newer version of the program has written the file; this is its format version.
    Newer(u32),
}

impl Found {
    /// Returns the contents of the newest slot with a valid checksum. `None` if there is no such
    /// slot, or if a newer version of the program has written the file.
    pub(crate) fn contents(&self) -> Option<&Contents> {
        match self {
            Self::Half(contents) | Self::Whole(contents) => Some(contents),
            Self::Nothing | Self::Damaged | Self::Newer(_) => None,
        }
    }
}

/// The greatest number of outputs in a slot of the cursors file. A slot has room for them even if
/// all their names have the greatest length, 63 bytes.
pub(super) const OUTPUTS_MAX: usize = 200;

impl Contents {
    /// Returns the place up to which the log is known to reach. This is the end of the log that
    /// this slot has. If an output has got further, it is the place that this output has reached.
    pub(crate) fn known(&self) -> LogOffset {
        self.outputs.values().copied().fold(self.end, LogOffset::max)
    }

    /// Returns the bytes of a slot that has these contents. `generation` is the number of this
    /// write.
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
            // Names have at most 63 bytes.
            slot.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            slot.extend(name.bytes().take(u8::MAX.into()));
            slot.extend(place.position.get().to_le_bytes());
            slot.extend(place.byte.to_le_bytes());
        }
        // The oldest holes are written first. The events of a hole that finds no room in the slot
        // are counted as lost a second time after a start. There are no more holes than segments,
        // and a slot has room for more holes than a queue of a usual size has segments.
        let room = (SLOT - CRC).saturating_sub(slot.len());
        let room = room.saturating_sub(self.outputs.len() * History::BYTES) / 24;
        let holes = &self.holes[..room.min(self.holes.len())];
        for hole in holes {
            for number in [hole.start.get(), hole.end.get(), hole.bytes] {
                slot.extend(number.to_le_bytes());
            }
        }
        // An output whose history finds no room may send events twice after a start. This takes
        // more than 150 outputs with long names.
        let room = (SLOT - CRC).saturating_sub(slot.len()) / History::BYTES;
        for (name, place) in self.outputs.iter().take(room) {
            let history = self.histories.get(name).copied();
            let History { since, selection } = history.unwrap_or(History::none(*place));
            slot.extend(since.get().to_le_bytes());
            slot.extend(selection.to_le_bytes());
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
        let length = count(slot.len() + CRC);
        slot[12..16].copy_from_slice(&length);
        slot[40..44].copy_from_slice(&count(self.outputs.len()));
        slot[44..48].copy_from_slice(&count(holes.len()));
        let crc = crc32c::crc32c(&slot);
        slot.extend(crc.to_le_bytes());
        // The check runs once for each save. A longer slot would overwrite the other one, which may
        // be the newest.
        assert!(slot.len() <= SLOT, "a slot has {} bytes", slot.len());
        slot
    }
}

/// Returns the generation and the contents of a slot. `None` if the slot is damaged, for example
/// because its checksum is wrong.
///
/// # Errors
///
/// The slot has a valid checksum, but a newer version of the program has written it. The error is
/// its format version.
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

/// Reads numbers from the front of a slot's bytes, one after the other. Each method returns `None`
/// if too few bytes are left.
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
        // Earlier versions of the program write no histories, and ignore them.
        for name in contents.outputs.keys() {
            let (Some(since), Some(selection)) = (self.position(), self.u64()) else { break };
            contents.histories.insert(name.clone(), History { since, selection });
        }
        Some((generation, contents))
    }
}

/// Reads the cursors file. Returns the state and contents of the file, and the highest generation
/// in its slots. The generation is 0 if no slot is valid, or if a newer version of the program has
/// written the file.
///
/// # Errors
///
/// The file can't be opened, or a slot can't be read and the other one is not valid either: nobody
/// knows what the file says.
pub(crate) fn read(disk: &dyn Disk) -> io::Result<(Found, u64)> {
    let Some(file) = disk::open_if_there(disk, FILE)? else { return Ok((Found::Nothing, 0)) };
    let (mut slots, mut unreadable) = (Vec::new(), None);
    for slot in 0..2_u64 {
        let mut bytes = vec![0; SLOT];
        let mut read = || file.read_at(&mut bytes, slot * SLOT as u64);
        let size = (1..READS).find_map(|_| read().ok()).map_or_else(read, Ok);
        // A slot that can't be read counts as damaged if the other one is whole.
        let size = size.unwrap_or_else(|error| {
            unreadable = Some(error);
            0
        });
        match decode(&bytes[..size]) {
            Ok(decoded) => slots.extend(decoded),
            Err(version) => return Ok((Found::Newer(version), 0)),
        }
    }
    if let Some(error) = unreadable.filter(|_| slots.is_empty()) {
        return Err(error);
    }
    slots.sort_unstable_by_key(|(generation, _)| *generation);
    let generations: Vec<u64> = slots.iter().map(|(generation, _)| *generation).collect();
    let newest = slots.pop().map(|(_, contents)| contents);
    let found = match (newest, generations.as_slice()) {
        (None, _) => Found::Damaged,
        (Some(newest), [older, newer]) if older + 1 == *newer => Found::Whole(newest),
        (Some(newest), _) => Found::Half(newest),
    };
    Ok((found, generations.last().copied().unwrap_or(0)))
}

/// The cursors file as the upkeep uses it, to save how far each output has got.
///
/// The file has two slots, and each write goes into the older slot. After a failed write or sync it
/// is not known what the file contains. The next write therefore makes a new file, with both slots,
/// and renames it to replace the old file. Until the new file has replaced it, the old file has at
/// least one valid slot.
#[derive(Debug)]
pub(super) struct Cursors {
    /// The open file. `None` if the next write must make a new file: no valid file was found, or a
    /// write or sync has failed.
    file: Option<Arc<dyn File>>,
    /// The highest generation that was written so far. Each write of a slot has a generation, which
    /// is one higher than that of the write before it.
    generation: u64,
}

impl Cursors {
    /// Opens the cursors file for writing. `found` and `generation` are the results of reading the
    /// file: its state, and the highest generation in it. The old file is used if one of its slots
    /// is valid, because a full disk has no room for a second file. If no slot is valid, the next
    /// write makes a new file.
    pub(crate) fn open(disk: &dyn Disk, found: &Found, generation: u64) -> io::Result<Self> {
        let file = match found {
            Found::Half(_) | Found::Whole(_) => Some(disk.open(FILE, Access::Write)?),
            Found::Nothing | Found::Damaged | Found::Newer(_) => None,
        };
        Ok(Self { file, generation })
    }

    /// Writes these contents to the cursors file, and syncs the file.
    ///
    /// # Errors
    ///
    /// The write or the sync has failed. The next call makes a new file.
    pub(crate) fn write(&mut self, disk: &dyn Disk, contents: &Contents) -> io::Result<()> {
        let Some(file) = self.file.take() else {
            self.file = Some(self.make(disk, contents)?);
            return Ok(());
        };
        self.generation += 1;
        // Even generations are in the slot 0, odd ones in the slot 1.
        let at = self.generation % 2 * SLOT as u64;
        file.write_at(&[&contents.encode(self.generation)], at)?;
        file.sync()?;
        self.file = Some(file);
        Ok(())
    }

    /// Makes a new cursors file with these contents in both slots, and renames it to replace the
    /// old file.
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
            histories: [
                ("logstash".to_owned(), History { since: Position::new(3), selection: 0 }),
                ("x".repeat(63), History { since: Position::new(900), selection: u64::MAX }),
            ]
            .into(),
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

    /// Method: from the slot that this program writes, the histories are cut off. An earlier
    /// version of the program, which did not know histories, wrote such a slot.
    #[test]
    fn a_slot_without_histories_is_read_and_nothing_is_known_of_what_was_sent() {
        let mut slot = contents().encode(4);
        slot.truncate(slot.len() - CRC - 2 * History::BYTES);
        let length = u32::try_from(slot.len() + CRC).unwrap();
        slot[12..16].copy_from_slice(&length.to_le_bytes());
        slot.extend(crc32c::crc32c(&slot).to_le_bytes());
        let wanted = Contents { histories: BTreeMap::new(), ..contents() };
        assert_eq!(decode(&slot), Ok(Some((4, wanted))));
    }

    #[test]
    fn holes_take_no_room_from_the_histories_of_a_few_outputs() {
        let hole = Hole { start: Position::new(1), end: Position::new(2), bytes: 3 };
        let slot = Contents { holes: vec![hole; 1000], ..contents() }.encode(1);
        assert!(slot.len() <= SLOT);
        let (_, read) = decode(&slot).expect("this version").expect("it checks");
        assert_eq!(read.histories, contents().histories);
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
