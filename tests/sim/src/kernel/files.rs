//! The relay's files. They are real files in a directory in memory. The kernel records each change
//! until it is synced. A power loss reverts a part of the recorded changes.
//!
//! The model is stricter than ext4 and XFS, and allows everything that POSIX allows:
//! - `fdatasync` of a file stores its bytes and its length, but not its name. The bytes are stored
//!   when the sync ends, so a power loss during a sync can lose them.
//! - The sync of a directory stores the creations, removals and renames in that directory only. Of
//!   the others, a power loss keeps a random number, the oldest first.
//! - A failed sync stores nothing, and later syncs do not store these bytes either.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::baton::Owner;
use super::net_model::Errno;
use super::raw;

/// The bytes that a disk writes at once. A power loss tears a write only between sectors.
const SECTOR: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Faults {
    /// Every write that needs space fails.
    pub(crate) no_space: bool,
    /// The share of writes that fail, from 0 to 1.
    pub(crate) write_error: f32,
    /// The share of syncs that fail.
    pub(crate) sync_error: f32,
    /// The time that is added to each sync.
    pub(crate) sync_time: Duration,
    /// The share of reads at an offset that fail.
    pub(crate) read_error: f32,
    /// The longest time that such a read takes.
    pub(crate) read_time: Duration,
    /// A power loss keeps or loses each sector of a write independently.
    pub(crate) tears: bool,
}

/// A file, identified by device and inode.
type Inode = (u64, u64);

/// A change of a file's bytes that is not stored yet.
#[derive(Debug)]
struct Change {
    /// Counts all changes, in order.
    number: u64,
    offset: u64,
    /// The bytes that were there before. There may be fewer.
    old: Vec<u8>,
    old_length: u64,
    new: Vec<u8>,
    new_length: u64,
    /// The sync that should have stored this change has failed. No other will store it.
    is_lost: bool,
}

#[derive(Debug)]
struct Written {
    file: File,
    changes: Vec<Change>,
}

impl Written {
    /// Stores the changes before this number, except the lost ones. Where a later change has
    /// overwritten a lost one, its bytes are stored.
    fn store(&mut self, end: u64) {
        let later = self.changes.split_off(self.place(end));
        let mut kept: Vec<Change> = Vec::new();
        for change in self.changes.drain(..) {
            match change.is_lost {
                true => kept.push(change),
                false => kept.iter_mut().for_each(|earlier| earlier.overwrite(&change)),
            }
        }
        kept.extend(later);
        self.changes = kept;
    }

    /// Marks the changes before this number as lost.
    fn lose(&mut self, end: u64) {
        let place = self.place(end);
        self.changes[..place].iter_mut().for_each(|change| change.is_lost = true);
    }

    /// Returns the index of the first change with this number or a higher one.
    fn place(&self, end: u64) -> usize {
        self.changes.partition_point(|change| change.number < end)
    }
}

impl Change {
    /// Applies a later change, which is stored, to this change, which is lost.
    fn overwrite(&mut self, later: &Change) {
        (self.old_length, self.new_length) = (later.new_length, later.new_length);
        let (begin, offset) = (self.offset, later.offset);
        for bytes in [&mut self.old, &mut self.new] {
            let end = begin + bytes.len() as u64;
            let (from, to) = (begin.max(offset), end.min(offset + later.new.len() as u64));
            if from < to {
                let at = |position: u64, first| usize::try_from(position - first).unwrap_or(0);
                bytes[at(from, begin)..at(to, begin)]
                    .copy_from_slice(&later.new[at(from, offset)..at(to, offset)]);
            }
            let room = usize::try_from(later.new_length.saturating_sub(begin)).unwrap_or(0);
            bytes.truncate(room);
        }
    }
}

/// A change of a directory that is not stored yet.
#[derive(Debug)]
enum Name {
    Made(PathBuf),
    MadeDirectory(PathBuf),
    /// The file is at the second path until the removal is stored.
    Removed(PathBuf, PathBuf),
    /// The old path, the new path, and where the file is that had the new path before.
    Renamed(PathBuf, PathBuf, Option<PathBuf>),
}

/// A running sync of a file.
#[derive(Debug)]
pub(super) struct Syncing {
    inode: Inode,
    /// The number of the first change that the sync does not cover.
    end: u64,
    fails: bool,
}

/// A descriptor of the real kernel that a process of the simulation has opened.
#[derive(Debug)]
struct Opened {
    owner: Owner,
    path: PathBuf,
    inode: Inode,
}

#[derive(Debug)]
pub(super) struct Files {
    rng: fastrand::Rng,
    pub(super) faults: Faults,
    opened: BTreeMap<i32, Opened>,
    written: BTreeMap<Inode, Written>,
    /// The number of changes so far.
    changes: u64,
    names: Vec<Name>,
    /// A file that cannot be removed or renamed.
    stuck: Option<PathBuf>,
    /// The directory for files whose removal is not stored yet.
    graves: PathBuf,
    buried: u64,
    /// The number of files that have become segments of the queue by a new name.
    pub(super) renamed: usize,
}

fn around(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn inode(file: &File) -> Inode {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().map_or((0, 0), |metadata| (metadata.dev(), metadata.ino()))
}

/// Returns the descriptor as a file that is not closed when it is dropped.
fn borrowed(descriptor: i32) -> std::mem::ManuallyDrop<File> {
    std::mem::ManuallyDrop::new(raw::file(descriptor))
}

impl Files {
    pub(super) fn new(rng: fastrand::Rng) -> Self {
        Self {
            rng,
            faults: Faults::default(),
            opened: BTreeMap::new(),
            written: BTreeMap::new(),
            changes: 0,
            names: Vec::new(),
            stuck: None,
            graves: PathBuf::new(),
            buried: 0,
            renamed: 0,
        }
    }

    pub(super) fn set_graves(&mut self, directory: PathBuf) {
        self.graves = directory;
    }

    /// Records that a process has opened a file, and whether this has `made` the file.
    pub(super) fn open(&mut self, owner: Owner, descriptor: i32, path: PathBuf, made: bool) {
        if made {
            self.names.push(Name::Made(path.clone()));
        }
        let inode = inode(&borrowed(descriptor));
        self.opened.insert(descriptor, Opened { owner, path, inode });
    }

    pub(super) fn duplicate(&mut self, from: i32, to: i32) {
        if let Some(Opened { owner, path, inode }) = self.opened.get(&from) {
            let opened = Opened { owner: *owner, path: path.clone(), inode: *inode };
            self.opened.insert(to, opened);
        }
    }

    pub(super) fn close(&mut self, descriptor: i32) {
        self.opened.remove(&descriptor);
    }

    /// Closes the files that a process has open.
    pub(super) fn close_all(&mut self, owner: Owner) {
        let of_owner = self.opened.iter().filter(|(_, opened)| opened.owner == owner);
        let descriptors: Vec<i32> = of_owner.map(|(descriptor, _)| *descriptor).collect();
        for descriptor in descriptors {
            let opened = self.opened.remove(&descriptor);
            // libc itself closes the descriptor of a directory (closedir(3)). By now, the
            // descriptor may refer to another file.
            if opened.is_some_and(|opened| opened.inode == inode(&borrowed(descriptor))) {
                raw::close(descriptor);
            }
        }
    }

    pub(super) fn is_known(&self, descriptor: i32) -> bool {
        self.opened.contains_key(&descriptor)
    }

    /// Records a write before it is made. Returns how many of its bytes may be written.
    pub(super) fn before_write(
        &mut self,
        descriptor: i32,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        if self.rng.f32() < self.faults.write_error {
            return Err(libc::EIO);
        }
        let length = borrowed(descriptor).metadata().map_or(0, |metadata| metadata.len());
        let mut count = bytes.len();
        if self.faults.no_space && offset + bytes.len() as u64 > length {
            count = if self.rng.bool() { 0 } else { self.rng.usize(..=count / 2) };
            if count == 0 {
                return Err(libc::ENOSPC);
            }
        }
        self.change(descriptor, offset, &bytes[..count], None)?;
        Ok(count)
    }

    /// Records a new length of a file before it is set. `is_reserved`: space is reserved.
    pub(super) fn before_length(
        &mut self,
        descriptor: i32,
        length: u64,
        is_reserved: bool,
    ) -> Result<(), Errno> {
        let before = borrowed(descriptor).metadata().map_or(0, |metadata| metadata.len());
        if is_reserved && self.faults.no_space && length > before {
            return Err(libc::ENOSPC);
        }
        self.change(descriptor, length.min(before), &[], Some(length))
    }

    fn change(
        &mut self,
        descriptor: i32,
        offset: u64,
        new: &[u8],
        length: Option<u64>,
    ) -> Result<(), Errno> {
        let Some(Opened { inode, .. }) = self.opened.get(&descriptor) else { return Ok(()) };
        let written = match self.written.entry(*inode) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let path = format!("/proc/self/fd/{descriptor}");
                let file = File::options().read(true).write(true).open(path);
                let file = file.map_err(|_| libc::EIO)?;
                entry.insert(Written { file, changes: Vec::new() })
            }
        };
        let old_length = written.file.metadata().map_or(0, |metadata| metadata.len());
        let new_length = length.unwrap_or(old_length.max(offset + new.len() as u64));
        let count = match length {
            Some(length) => old_length.saturating_sub(length),
            None => (new.len() as u64).min(old_length.saturating_sub(offset)),
        };
        let mut old = vec![0; usize::try_from(count).unwrap_or(0)];
        written.file.read_exact_at(&mut old, offset).map_err(|_| libc::EIO)?;
        let new = new.to_vec();
        let number = self.changes;
        let change = Change { number, offset, old, old_length, new, new_length, is_lost: false };
        written.changes.push(change);
        self.changes += 1;
        Ok(())
    }

    /// Begins the sync of a file or a directory. Returns how long the sync takes, and the value
    /// that [`Files::end_sync`] needs at its end.
    pub(super) fn begin_sync(&mut self, descriptor: i32) -> (Duration, Option<Syncing>) {
        let longest = 1 << self.rng.u32(6..15);
        let time = Duration::from_micros(self.rng.u64(20..20 + longest)) + self.faults.sync_time;
        let fails = self.rng.f32() < self.faults.sync_error;
        let Some(Opened { path, inode, .. }) = self.opened.get(&descriptor) else {
            return (time, None);
        };
        let sync = Syncing { inode: *inode, end: self.changes, fails };
        if fails || !borrowed(descriptor).metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return (time, Some(sync));
        }
        let is_here = |name: &Name| match name {
            Name::Made(at) | Name::MadeDirectory(at) | Name::Removed(at, _) => around(at) == path,
            Name::Renamed(from, to, _) => around(from) == path || around(to) == path,
        };
        for name in self.names.extract_if(.., |name| is_here(name)) {
            if let Name::Removed(_, grave) | Name::Renamed(_, _, Some(grave)) = name {
                fs::remove_file(grave).ok();
            }
        }
        (time, Some(sync))
    }

    /// Ends a sync. Unless it fails, it stores the changes that were made before it began.
    pub(super) fn end_sync(&mut self, sync: Option<Syncing>) -> Result<(), Errno> {
        let Some(Syncing { inode, end, fails }) = sync else { return Ok(()) };
        if let Some(written) = self.written.get_mut(&inode) {
            match fails {
                true => written.lose(end),
                false => written.store(end),
            }
            if written.changes.is_empty() {
                self.written.remove(&inode);
            }
        }
        if fails { Err(libc::EIO) } else { Ok(()) }
    }

    /// Returns how long a read at an offset takes, and whether it fails.
    pub(super) fn before_read(&mut self, descriptor: i32) -> (Duration, Result<(), Errno>) {
        let Faults { read_error, read_time, .. } = self.faults;
        if read_error == 0.0 && read_time.is_zero() || !self.is_known(descriptor) {
            return (Duration::ZERO, Ok(()));
        }
        let fails = self.rng.f32() < read_error;
        (read_time.mul_f32(self.rng.f32()), if fails { Err(libc::EIO) } else { Ok(()) })
    }

    /// Makes a file that cannot be removed or renamed. There is at most one.
    pub(super) fn stick(&mut self, path: PathBuf) {
        self.stuck = Some(path);
    }

    pub(super) fn unstick(&mut self) {
        self.stuck = None;
    }

    pub(super) fn is_stuck(&self, path: &Path) -> bool {
        self.stuck.as_deref() == Some(path)
    }

    /// Returns a path for a file whose removal is not stored yet.
    fn grave(&mut self) -> PathBuf {
        self.buried += 1;
        self.graves.join(self.buried.to_string())
    }

    /// Records the removal of a file. Returns where the file must be moved instead.
    pub(super) fn remove(&mut self, path: PathBuf) -> PathBuf {
        let grave = self.grave();
        self.names.push(Name::Removed(path, grave.clone()));
        grave
    }

    /// Reverts the last [`Files::remove`], which has failed.
    pub(super) fn not_removed(&mut self) {
        self.names.pop();
    }

    /// Records a new path. Returns where the file must be moved that has this path now, if any.
    pub(super) fn rename(&mut self, from: PathBuf, to: PathBuf) -> Option<PathBuf> {
        let grave = to.symlink_metadata().is_ok().then(|| self.grave());
        for opened in self.opened.values_mut().filter(|opened| opened.path == from) {
            opened.path.clone_from(&to);
        }
        self.renamed += usize::from(to.extension().is_some_and(|it| it == "seg"));
        self.names.push(Name::Renamed(from, to, grave.clone()));
        grave
    }

    pub(super) fn make_directory(&mut self, path: PathBuf) {
        self.names.push(Name::MadeDirectory(path));
    }

    pub(super) fn store_all(&mut self) {
        self.written.clear();
        for name in self.names.drain(..) {
            if let Name::Removed(_, grave) | Name::Renamed(_, _, Some(grave)) = name {
                fs::remove_file(grave).ok();
            }
        }
    }

    /// Cuts the power: a random part of the changes that are not stored is lost.
    pub(super) fn power_loss(&mut self) {
        for Written { file, changes } in std::mem::take(&mut self.written).into_values() {
            lose(&mut self.rng, &file, &changes, self.faults.tears);
        }
        let kept = self.rng.usize(..=self.names.len());
        for name in self.names.split_off(kept).into_iter().rev() {
            // If somebody else has removed the directory around it, there is nothing to restore.
            match name {
                Name::Made(path) => drop(fs::remove_file(path)),
                Name::MadeDirectory(path) => drop(fs::remove_dir_all(path)),
                Name::Removed(path, grave) => drop(fs::rename(grave, path)),
                Name::Renamed(from, to, grave) => {
                    fs::rename(&to, from).ok();
                    if let Some(grave) = grave {
                        fs::rename(grave, to).ok();
                    }
                }
            }
        }
        self.names.clear();
    }
}

/// Reverts a part of a file's changes.
fn lose(rng: &mut fastrand::Rng, file: &File, changes: &[Change], tears: bool) {
    for change in changes.iter().rev() {
        file.set_len(change.old_length).ok();
        file.write_all_at(&change.old, change.offset).ok();
    }
    // Either the changes up to a moment are kept, or each change is judged separately.
    let in_order = (!tears && rng.bool()).then(|| rng.usize(..=changes.len()));
    for (number, change) in changes.iter().enumerate() {
        let is_kept = match in_order {
            Some(kept) => number < kept && !(change.is_lost && rng.bool()),
            None => !change.is_lost && (tears || rng.u32(..3) > 0),
        };
        if !is_kept {
            continue;
        }
        if change.new.is_empty() {
            file.set_len(change.new_length).ok();
            continue;
        }
        let is_torn = tears || rng.u32(..4) == 0;
        let mut at = 0;
        while at < change.new.len() {
            let offset = change.offset + at as u64;
            let to_sector = SECTOR - usize::try_from(offset % SECTOR as u64).unwrap_or(0);
            let end = change.new.len().min(at + to_sector);
            if !is_torn || rng.bool() {
                file.write_all_at(&change.new[at..end], offset).ok();
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(offset: u64, old: &[u8], new: &[u8], lengths: (u64, u64)) -> Change {
        let (old, new) = (old.to_vec(), new.to_vec());
        let (old_length, new_length) = lengths;
        Change { number: 0, offset, old, old_length, new, new_length, is_lost: false }
    }

    #[test]
    fn a_stored_write_covers_an_earlier_one_whose_sync_has_failed() {
        let file = tempfile::tempfile().expect("a writable directory");
        let mut written = Written { file, changes: vec![change(2, b"abcd", b"efgh", (6, 6))] };
        written.changes[0].is_lost = true;
        written.changes.push(change(4, b"gh", b"ijklm", (6, 9)));
        written.store(u64::MAX);
        let [lost] = written.changes.as_slice() else { panic!("{written:?}") };
        assert_eq!((lost.old.as_slice(), lost.new.as_slice()), (&b"abij"[..], &b"efij"[..]));
        assert_eq!((lost.old_length, lost.new_length), (9, 9));
        // The file is cut to 3 bytes.
        written.changes.push(change(3, b"fijklm", b"", (9, 3)));
        written.store(u64::MAX);
        let [lost] = written.changes.as_slice() else { panic!("{written:?}") };
        assert_eq!((lost.old.as_slice(), lost.old_length), (&b"a"[..], 3));
    }

    #[test]
    fn a_sync_stores_only_what_was_written_before_it_began() {
        let file = tempfile::tempfile().expect("a writable directory");
        let changes = (0..3).map(|number| Change { number, ..change(0, b"a", b"b", (1, 1)) });
        let mut written = Written { file, changes: changes.collect() };
        written.lose(1);
        written.store(2);
        let numbers: Vec<_> = written.changes.iter().map(|it| (it.number, it.is_lost)).collect();
        assert_eq!(numbers, [(0, true), (2, false)]);
    }
}
