//! The relay's files. They are real files in a directory in memory. The kernel notes each change
//! that is not synced yet, and a power loss takes back a part of those changes.
//!
//! The model is stricter than ext4 and XFS, and allows what POSIX allows: `fdatasync` of a file
//! stores its bytes and its length, but not its name. The sync of a directory stores the creations,
//! removals and renames in this directory, and none in others. What is not synced is stored in its
//! order. The sync of a file stores its bytes when it ends, so the power may go while it is under
//! way. A sync that fails has stored nothing, and the kernel holds the bytes for stored from then
//! on.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::baton::Owner;
use super::net_model::Errno;
use super::raw;

/// The bytes that a disk writes at once: a power loss tears a write only between them.
const SECTOR: usize = 512;

/// What is wrong with the disk.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Faults {
    /// Every write that needs space fails.
    pub(crate) no_space: bool,
    /// The part of all writes that fail.
    pub(crate) write_error: f32,
    /// The part of all syncs that fail.
    pub(crate) sync_error: f32,
    /// How much longer a sync takes.
    pub(crate) sync_time: Duration,
    /// The part of all reads at an offset that fail.
    pub(crate) read_error: f32,
    /// The longest time that such a read takes.
    pub(crate) read_time: Duration,
    /// A power loss keeps or loses each sector of a write for itself.
    pub(crate) tears: bool,
}

/// A file, by device and inode.
type Inode = (u64, u64);

/// A change of a file's bytes that is not stored yet.
#[derive(Debug)]
struct Change {
    /// Counts all changes in their order.
    number: u64,
    offset: u64,
    /// The bytes that were there before, which may be fewer.
    old: Vec<u8>,
    old_length: u64,
    new: Vec<u8>,
    new_length: u64,
    /// The sync that should have stored it has failed: no other will store it.
    is_lost: bool,
}

#[derive(Debug)]
struct Written {
    file: File,
    changes: Vec<Change>,
}

impl Written {
    /// Stores the changes before this number, but not the lost ones. What a lost change has written
    /// is stored where a later change has written over it.
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

    /// Notes that the changes before this number will never be stored.
    fn lose(&mut self, end: u64) {
        let place = self.place(end);
        self.changes[..place].iter_mut().for_each(|change| change.is_lost = true);
    }

    /// Returns the index of the first change that is not before this number.
    fn place(&self, end: u64) -> usize {
        self.changes.partition_point(|change| change.number < end)
    }
}

impl Change {
    /// Puts a later change, which is stored, in the place of this one, which is lost.
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
    /// From, to, and where the file is that had the second name.
    Renamed(PathBuf, PathBuf, Option<PathBuf>),
}

/// The sync of a file that is under way.
#[derive(Debug)]
pub(super) struct Syncing {
    inode: Inode,
    /// The number of the first change that came later.
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
    /// The number of all changes so far.
    changes: u64,
    names: Vec<Name>,
    /// A file that cannot be removed or renamed.
    stuck: Option<PathBuf>,
    /// The directory for files whose removal is not stored.
    graves: PathBuf,
    buried: u64,
}

/// Returns the directory that a path is in.
fn around(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn inode(file: &File) -> Inode {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().map_or((0, 0), |metadata| (metadata.dev(), metadata.ino()))
}

/// Returns the descriptor as a file that is not closed when the value goes.
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
        }
    }

    pub(super) fn set_graves(&mut self, directory: PathBuf) {
        self.graves = directory;
    }

    /// A process has opened a file. `made`: it was not there before.
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

    /// Closes what a process has open.
    pub(super) fn close_all(&mut self, owner: Owner) {
        let of_owner = self.opened.iter().filter(|(_, opened)| opened.owner == owner);
        let descriptors: Vec<i32> = of_owner.map(|(descriptor, _)| *descriptor).collect();
        for descriptor in descriptors {
            let opened = self.opened.remove(&descriptor);
            // libc closes the descriptor of a directory by itself (closedir(3)), and it may lead to
            // another file by now.
            if opened.is_some_and(|opened| opened.inode == inode(&borrowed(descriptor))) {
                raw::close(descriptor);
            }
        }
    }

    pub(super) fn is_known(&self, descriptor: i32) -> bool {
        self.opened.contains_key(&descriptor)
    }

    /// Notes a write before it is made, and returns how many of its bytes may be written.
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

    /// Notes that a file gets another length. `is_reserved`: space is reserved for it.
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

    /// The sync of a file or a directory begins. Returns how long it takes, and what is to be ended
    /// then by [`Files::end_sync`].
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

    /// The sync of a file ends: what was written before it began is stored.
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

    /// Lets this file be one that cannot be removed or renamed. There is at most one.
    pub(super) fn stick(&mut self, path: PathBuf) {
        self.stuck = Some(path);
    }

    pub(super) fn unstick(&mut self) {
        self.stuck = None;
    }

    pub(super) fn is_stuck(&self, path: &Path) -> bool {
        self.stuck.as_deref() == Some(path)
    }

    /// Returns a path for a file whose removal is not stored.
    fn grave(&mut self) -> PathBuf {
        self.buried += 1;
        self.graves.join(self.buried.to_string())
    }

    /// A file loses its name. Returns where it has to be moved instead.
    pub(super) fn remove(&mut self, path: PathBuf) -> PathBuf {
        let grave = self.grave();
        self.names.push(Name::Removed(path, grave.clone()));
        grave
    }

    /// Makes a name again that [`Files::remove`] was to take.
    pub(super) fn not_removed(&mut self) {
        self.names.pop();
    }

    /// A file gets another name. Returns where the file has to be moved that has that name now.
    pub(super) fn rename(&mut self, from: PathBuf, to: PathBuf) -> Option<PathBuf> {
        let grave = to.symlink_metadata().is_ok().then(|| self.grave());
        for opened in self.opened.values_mut().filter(|opened| opened.path == from) {
            opened.path.clone_from(&to);
        }
        self.names.push(Name::Renamed(from, to, grave.clone()));
        grave
    }

    pub(super) fn make_directory(&mut self, path: PathBuf) {
        self.names.push(Name::MadeDirectory(path));
    }

    /// Everything is stored.
    pub(super) fn store_all(&mut self) {
        self.written.clear();
        for name in self.names.drain(..) {
            if let Name::Removed(_, grave) | Name::Renamed(_, _, Some(grave)) = name {
                fs::remove_file(grave).ok();
            }
        }
    }

    /// The power is gone: a random part of what is not stored is lost.
    pub(super) fn power_loss(&mut self) {
        for Written { file, changes } in std::mem::take(&mut self.written).into_values() {
            lose(&mut self.rng, &file, &changes, self.faults.tears);
        }
        let kept = self.rng.usize(..=self.names.len());
        for name in self.names.split_off(kept).into_iter().rev() {
            // Somebody else may have removed the directory around it: nothing is there to restore.
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

/// Takes back a part of a file's changes.
fn lose(rng: &mut fastrand::Rng, file: &File, changes: &[Change], tears: bool) {
    for change in changes.iter().rev() {
        file.set_len(change.old_length).ok();
        file.write_all_at(&change.old, change.offset).ok();
    }
    // What came before a moment is there, or each sector for itself.
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
