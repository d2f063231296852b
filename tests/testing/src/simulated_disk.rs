//! A simulated disk that forgets writes, stores parts of them, and refuses operations.
//!
//! The disk does what Linux does on a journalling file system, at its worst. Programs see the page
//! cache; what is on the medium shows after [`SimulatedDisk::crash`]. Before a sync, each written
//! sector, each change of a directory and each new length of a file may or may not have reached the
//! medium, independently of all others. Only three things hold together: the bytes of a sector, the
//! two halves of a rename, and the order of a file's lengths.
//!
//! The same seed and the same operations in the same order give the same disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::{fmt, io, mem};

use rustix::io::Errno;

use base::disk::{ASIDE, Access, Disk, File, QUARANTINE, SEGMENTS, SPARES};

/// The number of bytes that reach the medium as a whole or not at all.
const SECTOR: usize = 512;

/// The number of bytes that can be read as a whole or not at all.
const PAGE: u64 = 4096;

/// An operation on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    List,
    Open,
    Create,
    Remove,
    Rename,
    SyncDirectory,
    Read,
    Write,
    Sync,
    Truncate,
    Bytes,
}

impl Operation {
    /// The operations that change something.
    pub const CHANGES: [Self; 7] = [
        Self::Create,
        Self::Remove,
        Self::Rename,
        Self::SyncDirectory,
        Self::Write,
        Self::Sync,
        Self::Truncate,
    ];
}

/// The error of every operation on a machine that has crashed.
#[derive(Debug, thiserror::Error)]
#[error("the machine has crashed")]
struct Crashed;

/// Returns `true` if this is the error of a machine that has crashed.
pub fn is_crash(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Crashed>())
}

/// A disk as one process sees it. Clones share the disk.
#[derive(Clone)]
pub struct SimulatedDisk {
    shared: Arc<Mutex<State>>,
    /// The number of crashes of the machine before the process started.
    boot: u64,
}

impl SimulatedDisk {
    /// Makes an empty disk. The seed decides about faults and the order of lists; [`Self::crash`]
    /// gets a generator of its own.
    pub fn new(seed: u64) -> Self {
        let state = State {
            rng: fastrand::Rng::with_seed(seed),
            files: BTreeMap::new(),
            seen: BTreeMap::new(),
            kept: BTreeMap::new(),
            changes: Vec::new(),
            boot: 0,
            crash_at: u64::MAX,
            counts: BTreeMap::new(),
            plan: BTreeMap::new(),
            probability: 0.0,
            read_only: false,
            kept_names: BTreeSet::new(),
            capacity: u64::MAX,
        };
        Self { shared: Arc::new(Mutex::new(state)), boot: 0 }
    }

    /// Returns how many operations of this kind were begun.
    pub fn count(&self, operation: Operation) -> u64 {
        self.state().counts.get(&operation).copied().unwrap_or(0)
    }

    /// Returns how many operations that change something were begun.
    pub fn changes(&self) -> u64 {
        self.state().changes_begun()
    }

    /// Lets one operation of this kind fail: the one that comes after the next `after` operations
    /// of the same kind.
    ///
    /// A write that fails may have written any part. A sync that fails marks all unsynced bytes as
    /// clean: reads still return these bytes, some of them may be on the medium, and no later sync
    /// writes the others. A create that fails may leave an empty file. Any other operation that
    /// fails does nothing.
    pub fn fail(&self, operation: Operation, after: u64, error: Errno) {
        let at = self.count(operation) + after;
        self.state().plan.insert((operation, at), error);
    }

    /// From now on, lets every change fail with this probability, with an error that fits the
    /// operation.
    pub fn faults(&self, probability: f64) {
        self.state().probability = probability;
    }

    /// Sets whether every change, and every open for writing, fails with EROFS from now on.
    pub fn read_only(&self, read_only: bool) {
        self.state().read_only = read_only;
    }

    /// From now on, lets every attempt to remove the file with this name fail.
    pub fn undeletable(&self, name: &str) {
        self.state().kept_names.insert(name.to_owned());
    }

    /// Removes the limit of the room, and all faults that were set except unreadable pages.
    pub fn calm(&self) {
        let mut state = self.state();
        state.plan.clear();
        state.kept_names.clear();
        (state.probability, state.read_only, state.capacity) = (0.0, false, u64::MAX);
    }

    /// Sets the number of bytes for which all files together have room. A removed file takes its
    /// room until nobody has it open.
    pub fn capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// From now on, lets every read of the page that holds this byte fail.
    pub fn unreadable(&self, name: &str, offset: u64) {
        self.state().named(name).unreadable.insert(offset / PAGE);
    }

    /// Flips the bits `mask` of a byte, in what programs see and on the medium.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) {
        let mut state = self.state();
        let file = state.named(name);
        file.seen[index(offset)] ^= mask;
        if let Some(byte) = file.medium.get_mut(index(offset)) {
            *byte ^= mask;
        }
    }

    /// Returns the names of all files, with their directories, in order.
    pub fn names(&self) -> Vec<String> {
        self.state().seen.keys().cloned().collect()
    }

    /// Returns the sum of the lengths of all files in a directory.
    pub fn bytes_in(&self, directory: &str) -> u64 {
        let state = self.state();
        let inside = state.seen.iter().filter(|(name, _)| split(name).0 == directory);
        inside.map(|(_, number)| state.files[number].seen.len() as u64).sum()
    }

    /// Returns the contents of a file.
    pub fn contents(&self, name: &str) -> Vec<u8> {
        self.state().named(name).seen.clone()
    }

    /// Lets the machine die after this many more changes. Every operation then fails until
    /// [`Self::crash`].
    pub fn crash_after(&self, changes: u64) {
        let mut state = self.state();
        state.crash_at = state.changes_begun() + changes;
    }

    /// Returns `true` if the machine has died, either after the changes of [`Self::crash_after`] or
    /// by [`Self::crash`].
    pub fn is_dead(&self) -> bool {
        self.state().is_dead(self.boot)
    }

    /// Returns the disk as the next process finds it after a power loss. For `self` and its files,
    /// the machine stays dead. Faults stay as they were set.
    #[must_use = "it takes the place of the old one"]
    pub fn crash(&self, rng: &mut fastrand::Rng) -> Self {
        let mut state = self.state();
        let State { files, seen, kept, changes, .. } = &mut *state;
        let chance = chance(rng);
        for change in changes.drain(..) {
            if rng.f64() < chance {
                change.apply(kept);
            }
        }
        seen.clone_from(kept);
        files.retain(|number, _| kept.values().any(|kept| kept == number));
        for file in files.values_mut() {
            file.settle(rng);
            file.seen.clone_from(&file.medium);
            file.handles = Arc::new(());
        }
        state.boot += 1;
        state.crash_at = u64::MAX;
        Self { shared: Arc::clone(&self.shared), boot: state.boot }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().expect("nobody panics with it")
    }

    fn handle(&self, state: &State, number: u64, access: Access) -> Arc<dyn File> {
        let open = Arc::clone(&state.files[&number].handles);
        Arc::new(SimulatedFile { disk: self.clone(), number, access, _open: open })
    }
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedDisk").field("boot", &self.boot).finish_non_exhaustive()
    }
}

impl Disk for SimulatedDisk {
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let mut state = self.state();
        state.begin_whole(self.boot, Operation::List)?;
        exists(directory)?;
        let inside = state.seen.keys().filter(|name| split(name).0 == directory);
        let mut names: Vec<String> = inside.map(|name| split(name).1.to_owned()).collect();
        state.rng.shuffle(&mut names);
        Ok(names)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        state.begin_whole(self.boot, Operation::Open)?;
        let number = state.number(name)?;
        if access != Access::Read && state.read_only {
            return Err(Errno::ROFS.into());
        }
        Ok(self.handle(&state, number, access))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        let fault = state.begin(self.boot, Operation::Create)?;
        exists(split(name).0)?;
        if state.seen.contains_key(name) {
            return Err(Errno::EXIST.into());
        }
        if fault.is_none() && bytes > state.room() {
            return Err(Errno::NOSPC.into());
        }
        let leaves = fault.is_none() || state.rng.u8(..4) == 0;
        let number = state.files.keys().next_back().map_or(0, |last| last + 1);
        if leaves {
            let mut file = Inode::default();
            if fault.is_none() {
                file.resize(index(bytes));
            }
            state.files.insert(number, file);
            state.change(Change::Create { name: name.to_owned(), file: number });
        }
        failed(fault)?;
        Ok(self.handle(&state, number, Access::Write))
    }

    /// Directories are always there, as after a sync.
    fn make_directory(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin_whole(self.boot, Operation::Remove)?;
        failed(state.kept_names.contains(name).then_some(Errno::PERM))?;
        let file = state.number(name)?;
        state.change(Change::Remove { name: name.to_owned(), file });
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin_whole(self.boot, Operation::Rename)?;
        // Only a spare file, which holds no events, is moved to another directory: after a crash it
        // could be in both.
        let moves = split(from).0 != split(to).0 && split(from).0 != SPARES;
        failed(moves.then_some(Errno::XDEV))?;
        let file = state.number(from)?;
        state.change(Change::Rename { from: from.to_owned(), to: to.to_owned(), file });
        Ok(())
    }

    fn recycle(&self, from: &str, to: &str) -> io::Result<bool> {
        let mut state = self.state();
        state.begin_whole(self.boot, Operation::Rename)?;
        let file = state.number(from)?;
        if Arc::strong_count(&state.files[&file].handles) > 1 {
            return Ok(false);
        }
        state.change(Change::Rename { from: from.to_owned(), to: to.to_owned(), file });
        Ok(true)
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin_whole(self.boot, Operation::SyncDirectory)?;
        exists(directory)?;
        let State { kept, changes, .. } = &mut *state;
        changes.retain(|change| {
            let elsewhere = change.directory() != directory;
            if !elsewhere {
                change.apply(kept);
            }
            elsewhere
        });
        Ok(())
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    number: u64,
    access: Access,
    /// Counts as an open handle in [`Inode::handles`].
    _open: Arc<()>,
}

impl SimulatedFile {
    fn may_write(&self) -> io::Result<()> {
        failed((self.access == Access::Read).then_some(Errno::BADF))
    }
}

impl fmt::Debug for SimulatedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedFile").field("number", &self.number).finish_non_exhaustive()
    }
}

impl File for SimulatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.begin_whole(self.disk.boot, Operation::Read)?;
        let file = state.file(self.number);
        let from = index(offset).min(file.seen.len());
        let size = buffer.len().min(file.seen.len() - from);
        let pages = offset / PAGE..(offset + size as u64).div_ceil(PAGE);
        if size > 0 && file.unreadable.range(pages).next().is_some() {
            return Err(Errno::IO.into());
        }
        buffer[..size].copy_from_slice(&file.seen[from..from + size]);
        Ok(size)
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        self.may_write()?;
        let mut state = self.disk.state();
        let mut fault = state.begin(self.disk.boot, Operation::Write)?;
        let mut bytes = pieces.concat();
        if fault.is_some() {
            let part = state.rng.usize(..=bytes.len());
            bytes.truncate(part);
        }
        let room = state.room();
        let file = state.file(self.number);
        let fits = (file.seen.len() as u64).saturating_add(room).saturating_sub(offset);
        if bytes.len() as u64 > fits {
            bytes.truncate(index(fits));
            fault = fault.or(Some(Errno::NOSPC));
        }
        file.write(&bytes, index(offset));
        failed(fault)
    }

    fn sync(&self) -> io::Result<()> {
        self.may_write()?;
        let mut state = self.disk.state();
        let fault = state.begin(self.disk.boot, Operation::Sync)?;
        let State { files, rng, .. } = &mut *state;
        let file = files.get_mut(&self.number).expect("it is open");
        match fault {
            None => file.sync(),
            Some(_) => file.settle(rng),
        }
        failed(fault)
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.may_write()?;
        let mut state = self.disk.state();
        state.begin_whole(self.disk.boot, Operation::Truncate)?;
        let room = state.room();
        let file = state.file(self.number);
        if bytes.saturating_sub(file.seen.len() as u64) > room {
            return Err(Errno::NOSPC.into());
        }
        file.resize(index(bytes));
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.begin_whole(self.disk.boot, Operation::Bytes)?;
        Ok(state.file(self.number).seen.len() as u64)
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(self.disk.state().seen.values().any(|number| *number == self.number))
    }
}

struct State {
    /// The generator that decides about faults, and about the order of lists.
    rng: fastrand::Rng,
    files: BTreeMap<u64, Inode>,
    /// The file of each name, as programs see it.
    seen: BTreeMap<String, u64>,
    /// The file of each name, as it is on the medium.
    kept: BTreeMap<String, u64>,
    /// The changes of names that are not synced yet, in order.
    changes: Vec<Change>,
    boot: u64,
    /// The number of begun changes at which the machine dies.
    crash_at: u64,
    counts: BTreeMap<Operation, u64>,
    /// The planned errors, by the kind of the operation and the number of those begun before it.
    plan: BTreeMap<(Operation, u64), Errno>,
    probability: f64,
    read_only: bool,
    /// The names of the files that can't be removed.
    kept_names: BTreeSet<String>,
    capacity: u64,
}

impl State {
    /// Counts an operation. Returns the error with which it is to fail, after it has done a part of
    /// its work; `None` if it is to succeed. If this function itself returns an error, the
    /// operation must do nothing at all.
    fn begin(&mut self, boot: u64, operation: Operation) -> io::Result<Option<Errno>> {
        if self.is_dead(boot) {
            return Err(io::Error::other(Crashed));
        }
        let count = self.counts.entry(operation).or_default();
        let planned = self.plan.remove(&(operation, *count));
        *count += 1;
        let changes = Operation::CHANGES.contains(&operation);
        if changes && self.read_only {
            return Err(Errno::ROFS.into());
        }
        if planned.is_some() || !changes || self.rng.f64() >= self.probability {
            return Ok(planned);
        }
        let mut errors = vec![Errno::IO];
        if matches!(operation, Operation::Create | Operation::Write) {
            errors.extend([Errno::NOSPC, Errno::DQUOT]);
        }
        Ok(self.rng.choice(errors))
    }

    /// Does the same as [`State::begin`], for an operation that happens as a whole or not at all.
    fn begin_whole(&mut self, boot: u64, operation: Operation) -> io::Result<()> {
        failed(self.begin(boot, operation)?)
    }

    fn is_dead(&self, boot: u64) -> bool {
        boot != self.boot || self.changes_begun() >= self.crash_at
    }

    fn changes_begun(&self) -> u64 {
        Operation::CHANGES.iter().filter_map(|operation| self.counts.get(operation)).sum()
    }

    fn number(&self, name: &str) -> io::Result<u64> {
        self.seen.get(name).copied().ok_or_else(|| Errno::NOENT.into())
    }

    fn file(&mut self, number: u64) -> &mut Inode {
        self.files.get_mut(&number).expect("files go only with those who have them open")
    }

    fn named(&mut self, name: &str) -> &mut Inode {
        let number = self.number(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        self.file(number)
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.changes.push(change);
    }

    fn room(&self) -> u64 {
        let linked: BTreeSet<u64> = self.seen.values().copied().collect();
        let held = self.files.iter().filter(|(number, file)| {
            linked.contains(number) || Arc::strong_count(&file.handles) > 1
        });
        let used = held.map(|(_, file)| file.seen.len() as u64).sum();
        self.capacity.saturating_sub(used)
    }
}

/// A change of a directory. It has the number of the file, so that it does nothing to another file
/// that has got the same name in the meantime.
enum Change {
    Create { name: String, file: u64 },
    Remove { name: String, file: u64 },
    Rename { from: String, to: String, file: u64 },
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        let (gone, there) = match self {
            Self::Create { name, file } => (None, Some((name, file))),
            Self::Remove { name, file } => (Some((name, file)), None),
            Self::Rename { from, to, file } => (Some((from, file)), Some((to, file))),
        };
        if let Some((name, file)) = gone
            && names.get(name) == Some(file)
        {
            names.remove(name);
        }
        names.extend(there.map(|(name, file)| (name.clone(), *file)));
    }

    fn directory(&self) -> &str {
        let (Self::Create { name, .. } | Self::Remove { name, .. } | Self::Rename { to: name, .. }) =
            self;
        split(name).0
    }
}

#[derive(Default)]
struct Inode {
    /// The bytes of the file as programs see them: the page cache.
    seen: Vec<u8>,
    medium: Vec<u8>,
    /// The sectors that were written and not synced, each with every content that it has had since
    /// the last sync. Any of these contents may have reached the medium.
    dirty: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    /// The lengths of the file since the last sync. They reach the medium in this order.
    lengths: Vec<usize>,
    unreadable: BTreeSet<u64>,
    /// A value whose strong count is one more than the number of open handles.
    handles: Arc<()>,
}

impl Inode {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if end > self.seen.len() {
            self.resize(end);
        }
        self.seen[offset..end].copy_from_slice(bytes);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            self.touch(sector);
        }
    }

    fn resize(&mut self, length: usize) {
        self.seen.resize(length, 0);
        self.lengths.push(length);
        // Bytes that were cut off do not come back if the file grows again.
        drop(self.dirty.split_off(&length.div_ceil(SECTOR)));
        if self.dirty.contains_key(&(length / SECTOR)) {
            self.touch(length / SECTOR);
        }
    }

    fn touch(&mut self, sector: usize) {
        let from = sector * SECTOR;
        let held = &self.seen[from..self.seen.len().min(from + SECTOR)];
        let mut bytes = [0; SECTOR];
        bytes[..held.len()].copy_from_slice(held);
        self.dirty.entry(sector).or_default().push(bytes);
    }

    fn sync(&mut self) {
        for length in mem::take(&mut self.lengths) {
            self.medium.resize(length, 0);
        }
        for (sector, held) in mem::take(&mut self.dirty) {
            self.put(sector, held.last().expect("it was written"));
        }
    }

    /// Lets chance decide which of the unsynced bytes have reached the medium. The others never
    /// will.
    fn settle(&mut self, rng: &mut fastrand::Rng) {
        let lengths = rng.usize(..=self.lengths.len());
        for length in mem::take(&mut self.lengths).into_iter().take(lengths) {
            self.medium.resize(length, 0);
        }
        let chance = chance(rng);
        for (sector, held) in mem::take(&mut self.dirty) {
            if rng.f64() < chance {
                self.put(sector, rng.choice(&held).expect("it was written"));
            }
        }
    }

    fn put(&mut self, sector: usize, bytes: &[u8; SECTOR]) {
        let from = sector * SECTOR;
        if from < self.medium.len() {
            let to = self.medium.len().min(from + SECTOR);
            self.medium[from..to].copy_from_slice(&bytes[..to - from]);
        }
    }
}

/// Returns a probability: often 0 or 1, otherwise any value in between.
fn chance(rng: &mut fastrand::Rng) -> f64 {
    match rng.u8(..4) {
        0 => 0.0,
        1 => 1.0,
        _ => rng.f64(),
    }
}

/// Returns the directory of a file, and its name in this directory.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

fn exists(directory: &str) -> io::Result<()> {
    let is_evidence = directory.split('/').next() == Some("evidence");
    let others = ["", SEGMENTS, SPARES, QUARANTINE, ASIDE];
    let there = is_evidence || others.contains(&directory);
    failed((!there).then_some(Errno::NOENT))
}

fn failed(error: Option<Errno>) -> io::Result<()> {
    error.map_or(Ok(()), |error| Err(error.into()))
}

/// Converts an offset into an index of the bytes of a file, which are in memory.
fn index(number: u64) -> usize {
    usize::try_from(number).expect("a small file")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "segments/a";

    const SEEDS: u64 = 300;

    fn sectors(count: usize, number: u8) -> Vec<u8> {
        vec![number; count * SECTOR]
    }

    /// Makes a file whose bytes are all 1, and that is synced.
    fn synced(seed: u64, count: usize) -> (SimulatedDisk, Arc<dyn File>) {
        let disk = SimulatedDisk::new(seed);
        let file = disk.create(NAME, (count * SECTOR) as u64).expect("it is new");
        file.write_at(&[&sectors(count, 1)], 0).expect("no fault is set");
        file.sync().expect("no fault is set");
        disk.sync_directory(SEGMENTS).expect("no fault is set");
        (disk, file)
    }

    fn crash(disk: &SimulatedDisk, seed: u64) -> SimulatedDisk {
        disk.crash(&mut fastrand::Rng::with_seed(seed))
    }

    fn errno<T>(result: io::Result<T>) -> Option<Errno> {
        result.err().as_ref().and_then(Errno::from_io_error)
    }

    fn read(disk: &SimulatedDisk, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = sectors(count, 0);
        let size = disk.open(NAME, Access::Read)?.read_at(&mut bytes, 0)?;
        bytes.truncate(size);
        Ok(bytes)
    }

    #[test]
    fn of_what_was_not_synced_any_sectors_survive() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..SEEDS {
            let (disk, file) = synced(seed, 4);
            for number in [2, 3] {
                file.write_at(&[&sectors(1, number), &sectors(2, number)], 512).expect("no fault");
            }
            let before = read(&disk, 4).expect("it is there");
            assert_eq!(before, [sectors(1, 1), sectors(3, 3)].concat(), "the page cache has all");
            let disk = crash(&disk, seed);
            let after = disk.contents(NAME);
            assert_eq!(after.len(), before.len(), "seed {seed}");
            assert!(
                after.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0]))
            );
            let numbers: Vec<u8> = after.iter().step_by(SECTOR).copied().collect();
            assert_eq!(numbers[0], 1, "it was not written again, seed {seed}");
            assert_eq!(crash(&disk, seed + 1).contents(NAME), after, "seed {seed}");
            outcomes.insert(numbers);
        }
        for expected in [[1, 1, 1, 1], [1, 3, 3, 3], [1, 1, 1, 3], [1, 1, 2, 1]] {
            assert!(outcomes.contains(expected.as_slice()), "never {expected:?}");
        }
    }

    #[test]
    fn what_was_synced_survives_and_its_name_only_with_the_directory() {
        let (mut there, mut missing) = (0, 0);
        for seed in 0..SEEDS {
            let (disk, _) = synced(seed, 2);
            let other = disk.create("cursors", 512).expect("it is new");
            other.write_at(&[b"x"], 0).expect("no fault");
            other.sync().expect("no fault");
            let disk = crash(&disk, seed);
            assert_eq!(disk.contents(NAME), sectors(2, 1), "seed {seed}");
            match disk.names().as_slice() {
                [_] => missing += 1,
                _ => {
                    assert_eq!(disk.contents("cursors")[..2], *b"x\0", "seed {seed}");
                    there += 1;
                }
            }
        }
        assert!(there > 50 && missing > 50, "{there} {missing}");
    }

    #[test]
    fn a_failed_sync_forgets_and_the_next_one_says_nothing() {
        let mut lost = 0;
        for seed in 0..SEEDS {
            let (disk, file) = synced(seed, 4);
            file.write_at(&[&sectors(4, 2)], 0).expect("no fault");
            disk.fail(Operation::Sync, 0, Errno::IO);
            assert_eq!(errno(file.sync()), Some(Errno::IO));
            file.write_at(&[&sectors(1, 3)], 512).expect("no fault");
            file.sync().expect("as if nothing were wrong");
            let read = read(&disk, 4).expect("it is there");
            assert_eq!(read, [sectors(1, 2), sectors(1, 3), sectors(2, 2)].concat());
            let after = crash(&disk, seed).contents(NAME);
            assert_eq!(after[512..1024], sectors(1, 3), "it was written again, seed {seed}");
            lost += u32::from(after != read);
        }
        assert!(lost > 100, "{lost}");
    }

    #[test]
    fn a_dead_machine_changes_nothing_and_is_known_by_its_error() {
        let (disk, file) = synced(1, 1);
        let changes = disk.changes();
        disk.crash_after(1);
        file.write_at(&[&sectors(1, 2)], 0).expect("the last change");
        assert!(disk.is_dead());
        let mut byte = [0];
        for dead in [
            file.sync().err(),
            file.read_at(&mut byte, 0).err(),
            disk.remove(NAME).err(),
            disk.list(SEGMENTS).err(),
            disk.open(NAME, Access::Read).err(),
        ] {
            assert!(dead.as_ref().is_some_and(is_crash), "{dead:?}");
        }
        assert_eq!(disk.changes(), changes + 1);
        let next = crash(&disk, 1);
        assert!(!next.is_dead() && disk.is_dead());
        assert!(read(&next, 1).is_ok());
        assert!(file.read_at(&mut byte, 0).as_ref().is_err_and(is_crash));
        assert!(read(&disk, 1).as_ref().is_err_and(is_crash), "of the process that was before");
    }
}
