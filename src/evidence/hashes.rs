//! The files of line hashes below `lines/`: they are appended to, and the oldest are deleted.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::layout::LINES;
use super::layout::file_name;
use super::layout::first_of;
use super::layout::path;
use super::lines::Range;
use crate::queue::disk::Access;
use crate::queue::disk::Disk;
use crate::queue::disk::File;

/// The size of a file is `evidence.max_bytes` divided by this number, within [`FILE_BYTES`].
const FILES: u64 = 16;

/// The least and the most bytes of a file, about.
const FILE_BYTES: (u64, u64) = (64 << 10, 64 << 20);

/// The files of line hashes. The name of a file is the first position in it, with 20 digits.
pub(super) struct Hashes {
    disk: Arc<dyn Disk>,
    max_bytes: u64,
    /// The first position and the size of each file.
    files: BTreeMap<u64, u64>,
    /// The file that is appended to, its first position and its size. `None`: the next records
    /// begin a new one.
    open: Option<(Arc<dyn File>, u64, u64)>,
    /// Records that are not durable yet, and the first position in them.
    buffer: Vec<u8>,
    first: Option<u64>,
}

impl Hashes {
    /// Finds the files of earlier runs.
    ///
    /// # Errors
    ///
    /// The directory can't be made or read.
    pub(super) fn open(disk: Arc<dyn Disk>, max_bytes: u64) -> io::Result<Self> {
        let directory = path_of_lines();
        disk.make_directory(&directory)?;
        let mut files = BTreeMap::new();
        for name in disk.list(&directory)? {
            let Some(first) = first_of(&name) else { continue };
            let file = disk.open(&file_path(first), Access::Read)?;
            files.insert(first, file.bytes()?);
        }
        Ok(Self { disk, max_bytes, files, open: None, buffer: Vec::new(), first: None })
    }

    /// Adds the hashes of a range. They are not durable before [`Hashes::commit`].
    pub(super) fn push(&mut self, range: &Range) {
        self.first.get_or_insert(range.first);
        range.write(&mut self.buffer);
    }

    /// Makes all hashes durable.
    ///
    /// # Errors
    ///
    /// The disk refuses. The hashes stay, and the next call writes them to a new file.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        let Some(begin) = self.first else { return Ok(()) };
        let (file, first, end) = match self.open.take() {
            Some(open) => open,
            None => (self.create(begin)?, begin, 0),
        };
        file.write_at(&[&self.buffer], end)?;
        file.sync()?;
        let end = end + self.buffer.len() as u64;
        self.files.insert(first, end);
        self.open = Some((file, first, end)).filter(|_| end < self.file_bytes());
        self.buffer.clear();
        self.first = None;
        Ok(())
    }

    /// Makes the file whose first record has this position.
    fn create(&self, first: u64) -> io::Result<Arc<dyn File>> {
        let path = file_path(first);
        // The file of a failed attempt has nothing that the log says is there.
        match self.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.disk.create(&path, self.buffer.len() as u64)?;
        self.disk.sync_directory(&path_of_lines())?;
        Ok(file)
    }

    /// Returns the first position that is kept when as many files are deleted as
    /// `evidence.max_bytes` asks for. `None` if none has to go.
    pub(super) fn keeps_from(&self) -> Option<u64> {
        let mut bytes = self.files.values().sum::<u64>();
        let mut files = self.files.iter().peekable();
        let mut from = None;
        while bytes > self.max_bytes {
            bytes -= files.next()?.1;
            // The newest file always stays.
            from = Some(*files.peek()?.0);
        }
        from
    }

    /// Deletes the files before a position. One that can't be deleted is tried again with the next
    /// call.
    pub(super) fn remove_before(&mut self, position: u64) {
        let disk = &self.disk;
        self.files.retain(|first, _| {
            let is_kept = *first >= position;
            let removed = if is_kept { Ok(()) } else { disk.remove(&file_path(*first)) };
            if let Err(error) = &removed {
                tracing::debug!(%error, "a file of line hashes can't be deleted");
            }
            is_kept || removed.is_err()
        });
    }

    fn file_bytes(&self) -> u64 {
        (self.max_bytes / FILES).clamp(FILE_BYTES.0, FILE_BYTES.1)
    }
}

fn path_of_lines() -> String {
    path(LINES)
}

fn file_path(first: u64) -> String {
    path(&format!("{LINES}/{}", file_name(first)))
}
