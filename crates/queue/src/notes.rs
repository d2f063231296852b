//! A small text that an output keeps with the queue: facts that its protocol must know after a
//! reload and, with a queue in files, also after a restart. The queue does not interpret the text.

use std::sync::{Arc, Mutex};
use std::{fmt, io};

use base::disk;
use base::disk::{Disk, named};
use base::lock::lock;
use base::position::Position;

const BYTES_MAX: u64 = 1024 * 1024;

/// The size of the checksum at the beginning of the file: 8 hexadecimal digits and `\n`.
const CHECKSUM: usize = 9;

/// The notes of an output of a queue in memory. `None` if there are none.
pub(crate) type Memory = Arc<Mutex<Option<Vec<u8>>>>;

/// The notes of one output. Clones are cheap, and refer to the same notes.
#[derive(Clone)]
pub struct Notes {
    place: Place,
    end: Position,
    settled: Arc<dyn Fn() -> Position + Send + Sync>,
}

#[derive(Clone)]
enum Place {
    File(Arc<dyn Disk>, String),
    Memory(Memory),
}

impl Notes {
    /// Makes the notes of an output of a queue in files. No file is read or made yet.
    pub fn new(
        disk: Arc<dyn Disk>,
        output: &str,
        end: Position,
        settled: impl Fn() -> Position + Send + Sync + 'static,
    ) -> Self {
        let place = Place::File(disk, format!("notes-{output}"));
        Self { place, end, settled: Arc::new(settled) }
    }

    /// Makes the notes of an output of a queue in memory.
    pub fn in_memory(
        memory: Memory,
        end: Position,
        settled: impl Fn() -> Position + Send + Sync + 'static,
    ) -> Self {
        Self { place: Place::Memory(memory), end, settled: Arc::new(settled) }
    }

    /// Makes empty notes that belong to no queue, for tests.
    pub fn empty() -> Self {
        Self::in_memory(Memory::default(), Position::MAX, || Position::START)
    }

    /// Returns the first position that the output may get again after a reload or a crash: its
    /// place in the saved cursors file or, for a queue in memory, its watermark.
    pub fn settled(&self) -> Position {
        (self.settled)()
    }

    /// Returns the log's end when this value was made. Notes about later events are from another
    /// queue.
    pub fn end(&self) -> Position {
        self.end
    }

    /// Reads the notes; `None` if there are none. Blocks.
    ///
    /// # Errors
    ///
    /// The disk refuses, or the file is damaged.
    pub fn load(&self) -> io::Result<Option<Vec<u8>>> {
        match &self.place {
            Place::File(disk, file) => read(&**disk, file).map_err(named(file)),
            Place::Memory(memory) => Ok(lock(memory).clone()),
        }
    }

    /// Replaces the notes. In files, they survive a power loss. Blocks.
    ///
    /// # Errors
    ///
    /// The disk refuses. The old or the new notes are then stored.
    pub fn store(&self, text: &[u8]) -> io::Result<()> {
        match &self.place {
            Place::File(disk, file) => {
                let content = [checksum(text).as_bytes(), text].concat();
                disk::replace(&**disk, file, &content).map_err(named(file))
            }
            Place::Memory(memory) => {
                *lock(memory) = Some(text.to_vec());
                Ok(())
            }
        }
    }
}

fn read(disk: &dyn Disk, file: &str) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = disk::open_if_there(disk, file)? else { return Ok(None) };
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the file is damaged");
    let bytes = file.bytes()?;
    if bytes > BYTES_MAX {
        return Err(damaged());
    }
    let mut content = vec![0; usize::try_from(bytes).unwrap_or_default()];
    let read = file.read_at(&mut content, 0)?;
    content.truncate(read);
    let (first, text) = content.split_at_checked(CHECKSUM).ok_or_else(damaged)?;
    if first != checksum(text).as_bytes() {
        return Err(damaged());
    }
    Ok(Some(text.to_vec()))
}

fn checksum(text: &[u8]) -> String {
    format!("{:08x}\n", crc32c::crc32c(text))
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = match &self.place {
            Place::File(_, file) => Some(file),
            Place::Memory(_) => None,
        };
        f.debug_struct("Notes").field("file", &file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::simulated_disk::SimulatedDisk;

    #[test]
    fn notes_are_kept_and_damaged_ones_are_an_error() {
        let disk = Arc::new(SimulatedDisk::new(1));
        let same = Arc::clone(&disk) as Arc<dyn Disk>;
        let notes = Notes::new(same, "archive", Position::START, || Position::START);
        assert_eq!(notes.load().expect("no fault is set"), None);
        for text in [&b"one"[..], b"", b"a longer one"] {
            notes.store(text).expect("no fault is set");
            assert_eq!(notes.load().expect("no fault is set").as_deref(), Some(text));
        }
        for at in [0, 8, 12] {
            disk.flip("notes-archive", at, 0x01);
            assert!(notes.load().is_err(), "byte {at}");
            disk.flip("notes-archive", at, 0x01);
        }
        assert_eq!(notes.load().expect("no fault is set").as_deref(), Some(&b"a longer one"[..]));
    }
}
