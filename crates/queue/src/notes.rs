//! A small text that an output keeps with the queue, with the facts that its protocol must know
//! after a reload, and with a directory also after a restart. The queue does not know what the text
//! says.

use std::sync::{Arc, Mutex};
use std::{fmt, io};

use base::disk;
use base::disk::{Disk, named};
use base::lock::lock;
use base::position::Position;

/// The greatest size of a file with notes, in bytes.
const BYTES_MAX: u64 = 1024 * 1024;

/// The number of bytes of the checksum at the beginning of the file: 8 hexadecimal digits and `\n`.
const CHECKSUM: usize = 9;

/// The place of an output's notes in a queue in memory, which exists as long as the output is in
/// the queue. The inner value is `None` if nothing is noted.
pub(crate) type Memory = Arc<Mutex<Option<Vec<u8>>>>;

/// The notes of one output. Clones are cheap, and refer to the same notes.
#[derive(Clone)]
pub struct Notes {
    place: Place,
    end: Position,
    settled: Arc<dyn Fn() -> Position + Send + Sync>,
}

/// The place where notes are kept.
#[derive(Clone)]
enum Place {
    /// A file with this name.
    File(Arc<dyn Disk>, String),
    Memory(Memory),
}

impl Notes {
    /// Makes the notes of the output with this name. No file is read or made yet.
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

    /// Returns the position of the first event that the output may get again, after a reload or a
    /// crash. For a queue in files, this is the output's place in the cursors file as it was last
    /// saved; for a queue in memory, it is the output's watermark.
    pub fn settled(&self) -> Position {
        (self.settled)()
    }

    /// Returns the position after the last event of the queue when this value was made. Notes about
    /// later positions are not of this queue.
    pub fn end(&self) -> Position {
        self.end
    }

    /// Reads the notes. Returns `None` if there are none. Blocks the thread.
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

    /// Replaces the notes. With a directory, they survive a power loss. Blocks the thread.
    ///
    /// # Errors
    ///
    /// The disk refuses. The notes are then the old ones or the new ones.
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

/// Reads the text of a file with notes. Returns `None` if there is no such file.
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

/// Returns the first line of a file with this text.
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
