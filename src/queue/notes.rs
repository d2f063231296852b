//! A small file that an output keeps in the queue's directory, with the facts that its protocol
//! must know after a restart. The queue does not know what the file says.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::disk;
use super::disk::Access;
use super::disk::Disk;
use super::disk::named;
use crate::position::Position;

/// The most bytes of a file with notes.
const BYTES_MAX: u64 = 1024 * 1024;

/// The number of bytes of the checksum at the beginning of the file: 8 hexadecimal digits and `\n`.
const CHECKSUM: usize = 9;

/// The notes of one output. Clones are cheap, and refer to the same file.
#[derive(Clone)]
pub struct Notes {
    disk: Arc<dyn Disk>,
    file: String,
    end: Position,
    settled: Arc<dyn Fn() -> Position + Send + Sync>,
}

impl Notes {
    /// Makes the notes of the output with this name. No file is read or made yet.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        output: &str,
        end: Position,
        settled: impl Fn() -> Position + Send + Sync + 'static,
    ) -> Self {
        Self { disk, file: format!("notes-{output}"), end, settled: Arc::new(settled) }
    }

    /// Returns the position of the first event that may come again after a crash: the place of the
    /// output that the queue's files have.
    #[must_use]
    pub fn settled(&self) -> Position {
        (self.settled)()
    }

    /// Returns the position after the last event of the queue when this value was made. Notes about
    /// later positions are not of this queue.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// Reads the notes. Returns `None` if there are none. Blocks the thread.
    ///
    /// # Errors
    ///
    /// The disk refuses, or the file is damaged.
    pub fn load(&self) -> io::Result<Option<Vec<u8>>> {
        self.read().map_err(named(&self.file))
    }

    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match self.disk.open(&self.file, Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
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

    /// Replaces the notes, so that they survive a power loss. Blocks the thread.
    ///
    /// # Errors
    ///
    /// The disk refuses. The notes are then the old ones or the new ones.
    pub fn store(&self, text: &[u8]) -> io::Result<()> {
        let content = [checksum(text).as_bytes(), text].concat();
        disk::replace(&*self.disk, &self.file, &content).map_err(named(&self.file))
    }
}

/// Returns the first line of a file with this text.
fn checksum(text: &[u8]) -> String {
    format!("{:08x}\n", crc32c::crc32c(text))
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notes").field("file", &self.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::tests::simulated_disk::SimulatedDisk;

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
