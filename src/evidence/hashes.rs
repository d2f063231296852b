//! The files of line hashes below `lines/`: they are appended to, and the oldest are deleted.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::layout::LINES;
use super::layout::file_name;
use super::layout::first_of;
use super::layout::path;
use super::lines;
use super::lines::FILE_BYTES_MAX;
use super::lines::Range;
use super::store::read_all;
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
            None => match self.files.contains_key(&begin) {
                true => self.go_on(begin)?,
                false => (self.create(begin)?, begin, 0),
            },
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

    /// Opens the file of an earlier run whose first record has this position. Returns the file, the
    /// position, and where its last whole record ends.
    fn go_on(&self, first: u64) -> io::Result<(Arc<dyn File>, u64, u64)> {
        let file = self.disk.open(&file_path(first), Access::Write)?;
        let content = read_all(&*file, FILE_BYTES_MAX)?;
        Ok((file, first, lines::read(&content).bytes))
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
            let Some((_, size)) = files.next() else { break };
            // The newest file always stays.
            let Some((next, _)) = files.peek() else { break };
            bytes -= size;
            from = Some(**next);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::lines::SALT_BYTES;
    use crate::evidence::lines::Salt;
    use crate::queue::tests::simulated_disk::SimulatedDisk;
    use crate::tlog::merkle::Hash;

    fn range(first: u64, count: usize) -> Range {
        Range { first, salt: Salt([1; SALT_BYTES]), lines: vec![Hash([7; 32]); count] }
    }

    fn open(disk: &SimulatedDisk, max_bytes: u64) -> Hashes {
        Hashes::open(Arc::new(disk.clone()), max_bytes).expect("no fault is set")
    }

    #[test]
    fn the_oldest_files_go_also_if_the_newest_alone_is_too_large() {
        let disk = SimulatedDisk::new(1);
        let mut hashes = open(&disk, 1 << 20);
        for first in (0..40).map(|at| at * 4096) {
            hashes.push(&range(first, 4096));
            hashes.commit().expect("no fault is set");
            if let Some(below) = hashes.keeps_from() {
                hashes.remove_before(below);
                assert!(below <= first);
            }
            assert!(disk.bytes_in("evidence/lines") <= 2 << 20);
        }
        // One commit of more than the limit.
        (40..60).for_each(|at| hashes.push(&range(at * 4096, 4096)));
        hashes.commit().expect("no fault is set");
        let below = hashes.keeps_from().expect("the limit is passed");
        hashes.remove_before(below);
        assert!(hashes.files.len() < 3, "{:?}", hashes.files);
        assert_eq!(hashes.keeps_from(), None);
    }

    #[test]
    fn a_file_of_an_earlier_run_is_gone_on_with_behind_its_last_whole_record() {
        let disk = SimulatedDisk::new(1);
        let mut hashes = open(&disk, 1 << 20);
        hashes.push(&range(5, 10));
        hashes.commit().expect("no fault is set");
        let mut again = open(&disk, 1 << 20);
        again.push(&range(5, 20));
        again.commit().expect("no fault is set");
        let found = lines::read(&disk.contents("evidence/lines/00000000000000000005"));
        assert_eq!(found.ranges, [range(5, 10), range(5, 20)]);
    }
}
