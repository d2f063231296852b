//! The files of line hashes below `lines/`. One file at a time grows; the oldest are deleted.
//!
//! The size of a file on the disk is not trusted, because somebody else may have written to the
//! file. At startup, the sizes in `evidence-head` count: no entry is about hashes after them.

use std::io;
use std::sync::Arc;

use base::disk::{Access, Disk, File};
use evidence_log::entry::now;
use evidence_log::head::Sizes;
use evidence_log::layout::{DIRECTORY, LINES, LineFile, if_there, path, read_at_most};
use evidence_log::lines;
use evidence_log::lines::{FILE_BYTES_MAX, Record};

/// The number of files among which `evidence.max_bytes` is divided. [`FILE_BYTES`] limits the
/// result.
const FILES: u64 = 16;

/// The limits for the size in bytes at which a new file begins.
const FILE_BYTES: (u64, u64) = (64 << 10, 64 << 20);

pub(crate) struct Hashes {
    disk: Arc<dyn Disk>,
    max_bytes: u64,
    /// The number of bytes that count in each file.
    files: Sizes,
    /// The file to which records are appended, its name and its size. `None` if the next commit
    /// must choose a file ([`Hashes::next_file`]).
    open: Option<(Arc<dyn File>, LineFile, u64)>,
    /// The file to which the last write failed, and the size to which this file must be cut.
    /// Without the cut, the file would look changed by somebody else as soon as a newer file
    /// exists.
    failed: Option<(Arc<dyn File>, u64)>,
    /// Records that are not durable yet.
    buffer: Vec<u8>,
    /// The first position of a new file, if the records in `buffer` begin one. `None` if `buffer`
    /// is empty.
    first: Option<u64>,
}

impl Hashes {
    /// Finds the files of earlier runs. `known` has the sizes at the last commit, or is `None` if
    /// they are not known. Bytes after the known size, or after the last whole record, are cut off.
    /// `has_ended`: the relay ended in order, and thus without such bytes. The second value of the
    /// result is `true` if a file is missing or too short, or has more bytes than a crash explains.
    ///
    /// # Errors
    ///
    /// The directory can't be made or read, or a file in it can't be read or cut.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        max_bytes: u64,
        known: Option<&Sizes>,
        has_ended: bool,
    ) -> io::Result<(Self, bool)> {
        let slack = if has_ended { 0 } else { FILE_BYTES_MAX as u64 };
        disk.make_directory(&path(LINES))?;
        let mut names: Vec<_> =
            disk.list(&path(LINES))?.iter().filter_map(|name| LineFile::parse(name)).collect();
        names.sort_unstable();
        let is_there = |name: &LineFile| names.binary_search(name).is_ok();
        let mut is_tampered = known.is_some_and(|known| !known.keys().all(is_there));
        let ends =
            known.and_then(|known| Some((*known.keys().next()?, *known.keys().next_back()?)));
        let mut files = Sizes::new();
        for name in names {
            let path = path(&name.path());
            let file = disk.open(&path, Access::Read)?;
            let bytes = file.bytes()?;
            let size = known.and_then(|known| known.get(&name)).copied();
            let is_newest = ends.is_none_or(|(_, newest)| name >= newest);
            let end = match known {
                None => lines::whole_bytes(&read_at_most(&*file, FILE_BYTES_MAX)?),
                Some(_) => size.unwrap_or_default(),
            };
            // Only in the newest file can a crash have interrupted a write.
            let is_interrupted = is_newest && bytes <= end.saturating_add(slack);
            // An earlier run may have been killed before it could delete the oldest files.
            let is_old = size.is_none() && ends.is_some_and(|(oldest, _)| name < oldest);
            is_tampered |= bytes < end || bytes > end && !is_interrupted && !is_old;
            drop(file);
            if end == 0 {
                disk.remove(&path)?;
                continue;
            }
            if bytes > end {
                // Without the sync, a power failure could undo the cut, and the next start would
                // report tampering.
                let file = disk.open(&path, Access::Write)?;
                file.truncate(end)?;
                file.sync()?;
            }
            files.insert(name, end.min(bytes));
        }
        let (open, failed, buffer, first) = (None, None, Vec::new(), None);
        Ok((Self { disk, max_bytes, files, open, failed, buffer, first }, is_tampered))
    }

    pub(crate) fn sizes(&self) -> &Sizes {
        &self.files
    }

    /// Adds a record. `next` is the position after the last range of accepted events before this
    /// record. The hashes are not durable before [`Hashes::commit`].
    pub(crate) fn push(&mut self, record: &Record, next: u64) {
        self.first.get_or_insert(next);
        record.write(&mut self.buffer);
    }

    /// Makes all hashes durable.
    ///
    /// # Errors
    ///
    /// The disk refuses. The hashes stay in memory, and the next call writes them again.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        let Some(begin) = self.first else { return Ok(()) };
        if let Some((file, end)) = &self.failed {
            file.truncate(*end)?;
            file.sync()?;
            self.failed = None;
        }
        let (file, name, end) = match self.open.take() {
            Some(open) => open,
            None => self.next_file(begin)?,
        };
        if let Err(error) = file.write_at(&[&self.buffer], end).and_then(|()| file.sync()) {
            self.failed = Some((file, end));
            return Err(error);
        }
        let end = end + self.buffer.len() as u64;
        self.files.insert(name, end);
        self.open = Some((file, name, end)).filter(|_| end < self.file_bytes());
        self.buffer.clear();
        self.first = None;
        Ok(())
    }

    /// Returns `false` if the file to which records are appended was removed or cut by somebody
    /// else.
    pub(crate) fn is_there(&self) -> io::Result<bool> {
        let Some((_, name, end)) = &self.open else { return Ok(true) };
        match if_there(self.disk.open(&path(&name.path()), Access::Read))? {
            Some(file) => Ok(file.bytes()? >= *end),
            None => Ok(false),
        }
    }

    /// Forgets the files that were removed, and the file to which records are appended.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.disk.make_directory(&path(LINES))?;
        let names = self.disk.list(&path(LINES))?;
        self.open = None;
        self.files.retain(|name, _| names.contains(&name.to_string()));
        Ok(())
    }

    /// Returns the file for records from the position `first` on, the name of the file, and the
    /// offset of the next record.
    fn next_file(&self, first: u64) -> io::Result<(Arc<dyn File>, LineFile, u64)> {
        let (from, to) = (LineFile { first, number: 0 }, LineFile { first, number: u32::MAX });
        let last = self.files.range(from..=to).next_back();
        let name = match last.map(|(name, bytes)| (*name, *bytes)) {
            Some((name, bytes)) if bytes < self.file_bytes() => {
                let file = self.disk.open(&path(&name.path()), Access::Write)?;
                // A failed write may have left more bytes.
                file.truncate(bytes)?;
                // The earlier process may have been killed before it synced the file's name.
                self.disk.sync_directory(&path(LINES))?;
                return Ok((file, name, bytes));
            }
            Some((name, _)) => LineFile { number: name.number.saturating_add(1), ..name },
            None => from,
        };
        let new = path(&name.path());
        // A failed attempt may have left such a file. No entry of the log is about its hashes.
        if_there(self.disk.remove(&new))?;
        let file = self.disk.create(&new, self.buffer.len() as u64)?;
        self.disk.sync_directory(&path(LINES))?;
        Ok((file, name, 0))
    }

    /// If all files together have more than `evidence.max_bytes`, returns the oldest ones, but
    /// never the newest. These files no longer count, and [`Hashes::remove`] deletes them.
    pub(super) fn give_up_oldest(&mut self) -> Vec<LineFile> {
        let open = self.open.as_ref().map(|(_, name, _)| *name);
        let mut bytes = self.files.values().sum::<u64>();
        let mut oldest = Vec::new();
        while bytes > self.max_bytes && self.files.len() > 1 {
            let Some(first) = self.files.first_entry().filter(|it| Some(*it.key()) != open) else {
                break;
            };
            let (name, size) = first.remove_entry();
            bytes -= size;
            oldest.push(name);
        }
        oldest
    }

    /// Returns the first position of the oldest file, or 0 without files.
    pub(super) fn begins_at(&self) -> u64 {
        self.files.keys().next().map_or(0, |oldest| oldest.first)
    }

    /// Deletes files. A file that can't be deleted now is tried again at the next start.
    pub(crate) fn remove(&self, files: &[LineFile]) {
        for name in files {
            if let Err(error) = self.disk.remove(&path(&name.path())) {
                tracing::debug!(%error, "a file of line hashes can't be deleted");
            }
        }
    }

    fn file_bytes(&self) -> u64 {
        (self.max_bytes / FILES).clamp(FILE_BYTES.0, FILE_BYTES.1)
    }
}

/// Renames the directory of line hashes, because the hashes are not those of the events in the
/// queue.
pub(crate) fn keep_aside(disk: &dyn Disk) -> io::Result<()> {
    let directory = path(LINES);
    match if_there(disk.rename(&directory, &format!("{directory}-until-{}", now())))? {
        Some(()) => disk.sync_directory(DIRECTORY),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use evidence_log::lines::{Range, SALT_BYTES, Salt};
    use evidence_log::tlog::merkle::Hash;
    use testing::simulated_disk::{Operation, SimulatedDisk};

    fn record(first: u64, count: usize) -> Record {
        let lines = vec![Hash([7; 32]); count];
        Record::accepted(Range { first, salt: Salt([1; SALT_BYTES]), lines })
    }

    fn open(disk: &SimulatedDisk, max_bytes: u64) -> Hashes {
        let opened = Hashes::open(Arc::new(disk.clone()), max_bytes, None, false);
        opened.expect("no fault is set").0
    }

    fn prune(hashes: &mut Hashes) {
        let oldest = hashes.give_up_oldest();
        hashes.remove(&oldest);
    }

    #[test]
    fn the_oldest_files_go_also_if_the_newest_alone_is_too_large() {
        let disk = SimulatedDisk::new(1);
        let mut hashes = open(&disk, 1 << 20);
        for first in (0..40).map(|at| at * 4096) {
            hashes.push(&record(first, 4096), first);
            hashes.commit().expect("no fault is set");
            prune(&mut hashes);
            assert!(hashes.begins_at() <= first);
            assert!(disk.bytes_in("evidence/lines") <= 2 << 20);
        }
        // One commit of more than the limit.
        (40..60).for_each(|at| hashes.push(&record(at * 4096, 4096), at * 4096));
        hashes.commit().expect("no fault is set");
        prune(&mut hashes);
        assert!(hashes.files.len() < 3, "{:?}", hashes.files);
        assert_eq!(hashes.give_up_oldest(), []);
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

    /// Method: a write or a sync fails after a part was written, and the next attempt succeeds, in
    /// a new file.
    #[test]
    fn what_a_failed_write_has_left_is_no_trace_of_somebody_else() {
        for fault in [Operation::Write, Operation::Sync] {
            let disk = SimulatedDisk::new(1);
            let mut hashes = open(&disk, 1 << 20);
            hashes.push(&record(1, 40), 1);
            hashes.commit().expect("no fault is set");
            disk.fail(fault, 0, Errno::IO);
            hashes.push(&record(41, 40), 41);
            hashes.commit().expect_err("a fault is set");
            // The first attempt to cut off what is left may fail, too.
            disk.fail(Operation::Truncate, 0, Errno::IO);
            hashes.commit().expect_err("a fault is set");
            hashes.commit().expect("no fault is set");
            let known = hashes.sizes().clone();
            assert_eq!(known.len(), 2, "{known:?}");
            let disk: Arc<dyn Disk> = Arc::new(disk);
            let (found, is_tampered) =
                Hashes::open(disk, 1 << 20, Some(&known), false).expect("no fault");
            assert_eq!((found.sizes(), is_tampered), (&known, false), "{fault:?}");
        }
    }

    /// Method: the relay is killed after two records were bound and a third one was written. Then
    /// somebody adds copies of records, holes, and files.
    #[test]
    fn sizes_that_the_relay_did_not_give_are_cut_off_and_do_not_count() {
        let newest = "evidence/lines/00000000000000000005";
        let older = "evidence/lines/00000000000000000001";
        let made = || {
            let disk = SimulatedDisk::new(1);
            let mut hashes = open(&disk, 1 << 20);
            hashes.push(&record(1, 4), 1);
            hashes.commit().expect("no fault is set");
            hashes.open = None;
            hashes.push(&record(5, 9), 5);
            hashes.commit().expect("no fault is set");
            let known = hashes.sizes().clone();
            hashes.push(&record(14, 3), 14);
            hashes.commit().expect("no fault is set");
            (disk, known)
        };
        let look = |disk: &SimulatedDisk, known: &Sizes, has_ended: bool| {
            let opened: Arc<dyn Disk> = Arc::new(disk.clone());
            let (found, is_tampered) =
                Hashes::open(opened, 1 << 20, Some(known), has_ended).expect("no fault is set");
            let sum = found.files.values().sum::<u64>();
            assert_eq!(disk.bytes_in("evidence/lines"), sum);
            (sum, is_tampered)
        };
        let (disk, known) = made();
        let bound = known.values().sum::<u64>();
        assert_eq!(look(&disk, &known, false), (bound, false), "as the kill has left it");
        let (disk, known) = made();
        assert_eq!(look(&disk, &known, true), (bound, true), "no kill has left it");
        let append = |disk: &SimulatedDisk, name: &str, more: &[u8]| {
            let file = disk.open(name, Access::Write).expect("it is there");
            let end = file.bytes().expect("no fault is set");
            file.write_at(&[more], end).expect("no fault is set");
        };
        // Copies of true records, and holes that a crash may have left.
        let (disk, known) = made();
        let copy = disk.contents(newest);
        append(&disk, newest, &copy);
        append(&disk, newest, &[0; 5000]);
        assert_eq!(look(&disk, &known, false), (bound, false));
        // No crash leaves anything in an older file, or takes anything away.
        let (disk, known) = made();
        append(&disk, older, &copy);
        assert_eq!(look(&disk, &known, false), (bound, true));
        let (disk, known) = made();
        disk.remove(older).expect("it is there");
        let rest = bound - known.values().next().expect("there are two");
        assert_eq!(look(&disk, &known, false), (rest, true));
        let (disk, known) = made();
        let hole = disk.open(newest, Access::Write).expect("it is there");
        hole.truncate(FILE_BYTES_MAX as u64 * 2).expect("no fault is set");
        assert_eq!(look(&disk, &known, false), (bound, true));
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
            prune(&mut hashes);
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
