//! The files of line hashes below `lines/`: they are appended to, and the oldest are deleted.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::entry::now;
use super::layout::DIRECTORY;
use super::layout::LINES;
use super::layout::LineFile;
use super::layout::if_there;
use super::layout::path;
use super::lines;
use super::lines::FILE_BYTES_MAX;
use super::lines::Record;
use super::store::read_all;
use crate::queue::disk::Access;
use crate::queue::disk::Disk;
use crate::queue::disk::File;

/// The size of a file is `evidence.max_bytes` divided by this number, within [`FILE_BYTES`].
const FILES: u64 = 16;

/// The smallest and the largest size of a file in bytes, approximately.
const FILE_BYTES: (u64, u64) = (64 << 10, 64 << 20);

/// The files of line hashes.
pub(super) struct Hashes {
    disk: Arc<dyn Disk>,
    max_bytes: u64,
    /// The size of each file.
    files: BTreeMap<LineFile, u64>,
    /// The file to which records are appended, its name and its size. `None` if the next records
    /// begin a new file.
    open: Option<(Arc<dyn File>, LineFile, u64)>,
    /// Records that are not durable yet. `first` is the position for the name of a new file, if
    /// they begin one; `None` if there are no such records.
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
            let Some(name) = LineFile::parse(&name) else { continue };
            let file = disk.open(&path(&name.path()), Access::Read)?;
            files.insert(name, file.bytes()?);
        }
        Ok(Self { disk, max_bytes, files, open: None, buffer: Vec::new(), first: None })
    }

    /// Adds a record. `next` is the position after the last range of accepted events before it. The
    /// hashes are not durable before [`Hashes::commit`].
    pub(super) fn push(&mut self, record: &Record, next: u64) {
        self.first.get_or_insert(next);
        record.write(&mut self.buffer);
    }

    /// Makes all hashes durable.
    ///
    /// # Errors
    ///
    /// The disk refuses. The hashes stay, and the next call writes them to a new file.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        let Some(begin) = self.first else { return Ok(()) };
        let (file, name, end) = match self.open.take() {
            Some(open) => open,
            None => self.next_file(begin)?,
        };
        file.write_at(&[&self.buffer], end)?;
        file.sync()?;
        let end = end + self.buffer.len() as u64;
        self.files.insert(name, end);
        self.open = Some((file, name, end)).filter(|_| end < self.file_bytes());
        self.buffer.clear();
        self.first = None;
        Ok(())
    }

    /// Returns `true` if the file to which records are appended still exists.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        let Some((_, name, end)) = &self.open else { return Ok(true) };
        match if_there(self.disk.open(&path(&name.path()), Access::Read))? {
            Some(file) => Ok(file.bytes()? >= *end),
            None => Ok(false),
        }
    }

    /// Finds the files again, after some were removed. The next records begin a new file.
    ///
    /// # Errors
    ///
    /// The directory can't be made or read.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let found = Self::open(Arc::clone(&self.disk), self.max_bytes)?;
        (self.files, self.open) = (found.files, None);
        Ok(())
    }

    /// Returns the file for records from the position `first` on, its name, and the offset at which
    /// its last whole record ends.
    fn next_file(&self, first: u64) -> io::Result<(Arc<dyn File>, LineFile, u64)> {
        let (from, to) = (LineFile { first, number: 0 }, LineFile { first, number: u32::MAX });
        let last = self.files.range(from..=to).next_back();
        let name = match last.map(|(name, bytes)| (*name, *bytes)) {
            Some((name, bytes)) if bytes < self.file_bytes() => return self.go_on(name),
            Some((name, _)) => LineFile { number: name.number.saturating_add(1), ..name },
            None => from,
        };
        let path = path(&name.path());
        // A failed attempt may have left such a file. No entry of the log is about its hashes.
        if_there(self.disk.remove(&path))?;
        let file = self.disk.create(&path, self.buffer.len() as u64)?;
        self.disk.sync_directory(&path_of_lines())?;
        Ok((file, name, 0))
    }

    /// Opens a file of an earlier run. Returns the file, its name, and the offset at which its last
    /// whole record ends.
    fn go_on(&self, name: LineFile) -> io::Result<(Arc<dyn File>, LineFile, u64)> {
        let file = self.disk.open(&path(&name.path()), Access::Write)?;
        let content = read_all(&*file, FILE_BYTES_MAX)?;
        let end = lines::whole_bytes(&content);
        file.truncate(end)?;
        // The run before may have been killed before it synced the file's name.
        self.disk.sync_directory(&path_of_lines())?;
        Ok((file, name, end))
    }

    /// Returns the oldest file that stays if the files are reduced to `evidence.max_bytes`; `None`
    /// if no file has to be deleted.
    pub(super) fn keeps_from(&self) -> Option<LineFile> {
        let mut bytes = self.files.values().sum::<u64>();
        let mut files = self.files.iter().peekable();
        let mut from = None;
        let open = self.open.as_ref().map(|(_, name, _)| *name);
        while bytes > self.max_bytes {
            let Some((_, size)) = files.next().filter(|(name, _)| Some(**name) != open) else {
                break;
            };
            // The newest file always stays.
            let Some((next, _)) = files.peek() else { break };
            bytes -= size;
            from = Some(**next);
        }
        from
    }

    /// Deletes the files before `kept`. The next call tries a file again that can't be deleted now.
    pub(super) fn remove_before(&mut self, kept: LineFile) {
        let disk = &self.disk;
        self.files.retain(|name, _| {
            let is_kept = *name >= kept;
            let removed = if is_kept { Ok(()) } else { disk.remove(&path(&name.path())) };
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

/// Renames the directory of line hashes, because they belong to other events than those in the
/// queue.
///
/// # Errors
///
/// The disk refuses.
pub(super) fn keep_aside(disk: &dyn Disk) -> io::Result<()> {
    let directory = path_of_lines();
    match if_there(disk.rename(&directory, &format!("{directory}-until-{}", now())))? {
        Some(()) => disk.sync_directory(DIRECTORY),
        None => Ok(()),
    }
}

fn path_of_lines() -> String {
    path(LINES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::lines::Range;
    use crate::evidence::lines::SALT_BYTES;
    use crate::evidence::lines::Salt;
    use crate::queue::tests::simulated_disk::SimulatedDisk;
    use crate::tlog::merkle::Hash;

    fn record(first: u64, count: usize) -> Record {
        let lines = vec![Hash([7; 32]); count];
        Record::accepted(Range { first, salt: Salt([1; SALT_BYTES]), lines })
    }

    fn open(disk: &SimulatedDisk, max_bytes: u64) -> Hashes {
        Hashes::open(Arc::new(disk.clone()), max_bytes).expect("no fault is set")
    }

    #[test]
    fn the_oldest_files_go_also_if_the_newest_alone_is_too_large() {
        let disk = SimulatedDisk::new(1);
        let mut hashes = open(&disk, 1 << 20);
        for first in (0..40).map(|at| at * 4096) {
            hashes.push(&record(first, 4096), first);
            hashes.commit().expect("no fault is set");
            if let Some(below) = hashes.keeps_from() {
                hashes.remove_before(below);
                assert!(below.first <= first);
            }
            assert!(disk.bytes_in("evidence/lines") <= 2 << 20);
        }
        // One commit of more than the limit.
        (40..60).for_each(|at| hashes.push(&record(at * 4096, 4096), at * 4096));
        hashes.commit().expect("no fault is set");
        let below = hashes.keeps_from().expect("the limit is passed");
        hashes.remove_before(below);
        assert!(hashes.files.len() < 3, "{:?}", hashes.files);
        assert_eq!(hashes.keeps_from(), None);
    }

    #[test]
    fn a_file_of_an_earlier_run_is_gone_on_with_behind_its_last_whole_record() {
        let disk = SimulatedDisk::new(1);
        for count in [10, 20] {
            let mut hashes = open(&disk, 1 << 20);
            hashes.push(&record(5, count), 5);
            hashes.commit().expect("no fault is set");
        }
        let content = disk.contents("evidence/lines/00000000000000000005");
        let found: Vec<_> = lines::Records::of(&content).map(|(_, record)| record).collect();
        assert_eq!(found, [record(5, 10), record(5, 20)].map(Ok));
    }

    /// Method: no event comes in, and an output catches up: all hashes are of lines that were sent.
    #[test]
    fn files_are_full_at_their_size_also_while_no_event_comes_in() {
        let disk = SimulatedDisk::new(1);
        let mut hashes = open(&disk, 1 << 20);
        let sent = Record { output: Some("siem".to_owned()), ..record(0, 4096) };
        for _ in 0..40 {
            hashes.push(&sent, 9000);
            hashes.commit().expect("no fault is set");
            if let Some(kept) = hashes.keeps_from() {
                hashes.remove_before(kept);
            }
            assert!(disk.bytes_in("evidence/lines") <= 2 << 20);
        }
        let mut names = disk.names();
        names.retain(|name| name.starts_with("evidence/lines/"));
        let newest = names.iter().max().expect("there are files");
        assert!(newest.starts_with("evidence/lines/00000000000000009000-"), "{names:?}");
        // The next start continues the last of these files.
        let mut again = open(&disk, 1 << 20);
        again.push(&record(9000, 5), 9000);
        again.commit().expect("no fault is set");
        let last = again.files.keys().next_back().expect("there are files");
        let content = disk.contents(&format!("evidence/{}", last.path()));
        let last = lines::Records::of(&content).last().expect("it has records").1;
        assert_eq!(last, Ok(record(9000, 5)));
    }
}
