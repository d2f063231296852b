//! The file `synced`, which says up to where the log is known to be on the disk. Its format is in
//! docs/internals/spool-format.md.
//!
//! An invalid record at the end of the log after a crash has two possible reasons: its write was
//! not finished, and its sender got no response; or it was damaged later. The file tells the two
//! cases apart. After each sync of new records, the writer thread writes the end of the log into
//! the file (a note), and only then responds to the senders. The note itself is not synced: it is
//! in the kernel's memory, which survives a kill of the process. After a power loss the file may
//! hold an older note, which names an earlier end and is still true.

use std::io;
use std::sync::Arc;

use super::segment::{BLOCK, LogOffset, u32_at, u64_at};
use base::disk;
use base::disk::{Access, Disk, File};
use base::position::Position;
use base::release::Format;

pub(crate) const FILE: &str = "synced";

const MAGIC: [u8; 8] = *b"\xFFKAFSYN\0";

const VERSION: u32 = 1;

pub(crate) const FORMAT: Format =
    Format { name: "queue end of the log", reads: &[VERSION], writes: VERSION };

/// The size of a note in bytes. A note lies in one sector: it is written as a whole or not at all.
const NOTE: usize = 52;

/// The size of the file in bytes. Two notes, each in its own block, are written in turn.
pub(crate) const BYTES: u64 = 2 * BLOCK;

/// The place up to which the log is known to be synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Synced {
    /// The end of the synced part of the log.
    pub end: LogOffset,
    /// The first position of the segment of this end.
    pub segment: Position,
    /// The offset of this end in the segment's file.
    pub offset: u64,
}

impl Synced {
    fn encode(&self) -> [u8; NOTE] {
        let mut bytes = [0; NOTE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let fields = [self.end.position.get(), self.end.byte, self.segment.get(), self.offset];
        for (field, value) in bytes[16..48].chunks_exact_mut(8).zip(fields) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..48]);
        bytes[48..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Returns `None` if the note is damaged, was never written, or has another version.
    fn decode(bytes: &[u8; NOTE]) -> Option<Self> {
        let checks = bytes.starts_with(&MAGIC)
            && u32_at(bytes, 8) == VERSION
            && u32_at(bytes, 48) == crc32c::crc32c(&bytes[..48]);
        let at = |at| u64_at(bytes, at);
        checks.then(|| Self {
            end: LogOffset { position: Position::new(at(16)), byte: at(24) },
            segment: Position::new(at(32)),
            offset: at(40),
        })
    }
}

/// Returns the later one of the two notes; `None` if neither is valid. If only one note can't be
/// read, it counts as damaged.
pub(crate) fn read(disk: &dyn Disk) -> io::Result<Option<Synced>> {
    let Some(file) = disk::open_if_there(disk, FILE)? else { return Ok(None) };
    let note = |slot: u64| {
        let mut bytes = [0; NOTE];
        file.read_at(&mut bytes, slot * BLOCK).map(|_| Synced::decode(&bytes))
    };
    match (note(0), note(1)) {
        (Err(error), Err(_)) => Err(error),
        (one, other) => {
            let notes = [one, other].into_iter().flatten().flatten();
            Ok(notes.max_by_key(|synced| synced.end))
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct SyncedFile {
    /// `None` before the first note, and after an error.
    file: Option<Arc<dyn File>>,
    /// The slot of the next note: 0 or 1.
    slot: u64,
}

impl SyncedFile {
    pub(crate) fn write(&mut self, disk: &dyn Disk, synced: &Synced) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => match disk.open(FILE, Access::Write) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    disk.create(FILE, BYTES)?
                }
                opened => opened?,
            },
        };
        file.write_at(&[&synced.encode()], self.slot * BLOCK)?;
        self.slot = 1 - self.slot;
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::simulated_disk::SimulatedDisk;

    fn synced(position: u64) -> Synced {
        let end = LogOffset { position: Position::new(position), byte: position * 100 };
        Synced { end, segment: Position::new(7), offset: 4096 + position }
    }

    #[test]
    fn the_later_note_counts_and_a_damaged_one_gives_way_to_the_one_before() {
        let disk = SimulatedDisk::new(1);
        assert_eq!(read(&disk).expect("no fault"), None, "there is no file");
        let mut file = SyncedFile::default();
        for position in [8, 9, 12] {
            file.write(&disk, &synced(position)).expect("no fault is set");
            assert_eq!(read(&disk).expect("no fault"), Some(synced(position)));
        }
        for at in 0..NOTE as u64 {
            disk.flip(FILE, at, 0x10);
            assert_eq!(read(&disk).expect("no fault"), Some(synced(9)), "byte {at}");
            disk.flip(FILE, at, 0x10);
        }
    }
}
