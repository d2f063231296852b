//! A disk for the start of the queue, on which a failed read is retried for a while.
//!
//! A disk that does not respond for a moment must not look damaged: the start would put copies of
//! good bytes into the quarantine, cut off good records, or deliver events again. If a read still
//! fails after [`PATIENCE`], there are two cases. If other parts of the file can be read, a sector
//! is bad, and counts as damage. If nothing of the file can be read, the disk is unreachable, and
//! the start must fail ([`Patient::check`]).

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::io::Errno;

use base::disk::{Access, Disk, File, may_pass};
use base::lock::lock;

/// The total time for which a start may pause between failed reads.
pub(crate) const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 30 });

const PAUSE: Duration = Duration::from_millis(250);

/// The size of a block in bytes. A disk reads a block as a whole or not at all.
const BLOCK: u64 = 4096;

/// The largest number of blocks that are tried, besides the first eight, before a file counts as
/// unreadable.
const PROBES: u64 = 64;

/// A disk whose reads are retried. Writes are not.
#[derive(Debug)]
pub(crate) struct Patient {
    disk: Arc<dyn Disk>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    left: Mutex<Duration>,
    /// The error of the first file of which nothing could be read.
    dead: Mutex<Option<Errno>>,
}

impl Patient {
    pub(crate) fn new(disk: Arc<dyn Disk>, patience: Duration) -> Self {
        let state = State { left: Mutex::new(patience), dead: Mutex::new(None) };
        Self { disk, state: Arc::new(state) }
    }

    /// Fails if nothing could be read of some file: the results of all reads are then worthless.
    pub(crate) fn check(&self) -> io::Result<()> {
        lock(&self.state.dead).map_or(Ok(()), |error| Err(error.into()))
    }
}

impl State {
    #[allow(clippy::disallowed_methods, reason = "the start has a thread of its own")]
    fn patiently<T>(&self, name: &str, read: &mut dyn FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut is_told = false;
        loop {
            let error = match read() {
                Err(error) if may_pass(&error) => error,
                done => return done,
            };
            let mut left = lock(&self.left);
            if left.is_zero() {
                return Err(error);
            }
            *left = left.saturating_sub(PAUSE);
            drop(left);
            if !std::mem::replace(&mut is_told, true) {
                tracing::error!(
                    file = name,
                    %error,
                    "cannot read a file of the queue at the start, retrying for half a minute: \
                     check the disk of queue.directory"
                );
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Disk for Patient {
    fn identity(&self, directory: &str) -> Option<String> {
        self.disk.identity(directory)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.state.patiently(directory, &mut || self.disk.list(directory))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let file = self.state.patiently(name, &mut || self.disk.open(name, access))?;
        let (name, state) = (name.to_owned(), Arc::clone(&self.state));
        Ok(Arc::new(PatientFile { file, name, state }))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn File>> {
        self.disk.create(name, bytes)
    }

    fn make_directory(&self, name: &str) -> io::Result<()> {
        self.disk.make_directory(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn recycle(&self, from: &str, to: &str) -> io::Result<bool> {
        self.disk.recycle(from, to)
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        self.disk.sync_directory(directory)
    }
}

#[derive(Debug)]
struct PatientFile {
    file: Arc<dyn File>,
    name: String,
    state: Arc<State>,
}

impl PatientFile {
    /// Returns `true` if the file's size is unknown, or if the file has more than one block and
    /// none that is tried can be read. The first eight blocks are tried, and others at equal
    /// distances.
    fn is_dead(&self) -> bool {
        let Ok(bytes) = self.file.bytes() else { return true };
        let blocks = bytes.div_ceil(BLOCK);
        let step = blocks.div_ceil(PROBES).max(1);
        let first = (0..blocks).take(8);
        let mut tried = first.chain((0..blocks).step_by(usize::try_from(step).unwrap_or(1)));
        blocks > 1 && tried.all(|block| self.file.read_at(&mut [0], block * BLOCK).is_err())
    }
}

impl File for PatientFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read =
            self.state.patiently(&self.name, &mut || self.file.read_at(&mut *buffer, offset));
        if let Some(errno) = read.as_ref().err().and_then(Errno::from_io_error)
            && lock(&self.state.dead).is_none()
            && self.is_dead()
        {
            *lock(&self.state.dead) = Some(errno);
            tracing::error!(
                file = self.name,
                error = %errno,
                "no part of a file of the queue can be read, so the relay does not start: check \
                 the disk of queue.directory"
            );
        }
        read
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        self.file.write_at(pieces, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.truncate(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        self.state.patiently(&self.name, &mut || self.file.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::simulated_disk::{Operation, SimulatedDisk};

    /// Makes a file of this many blocks, and returns it as a patient disk opens it.
    fn scene(blocks: u64, patience: Duration) -> (SimulatedDisk, Patient, Arc<dyn File>) {
        let disk = SimulatedDisk::new(1);
        drop(disk.create("file", blocks * BLOCK).expect("it is new"));
        let patient = Patient::new(Arc::new(disk.clone()), patience);
        let file = patient.open("file", Access::Read).expect("it is there");
        (disk, patient, file)
    }

    #[test]
    fn a_read_that_fails_is_tried_again_until_the_patience_ends() {
        let (disk, patient, file) = scene(3, 2 * PAUSE);
        for after in 0..2 {
            disk.fail(Operation::Read, after, Errno::IO);
        }
        assert_eq!(file.read_at(&mut [0; 9], 0).expect("the third attempt"), 9);
        disk.fail(Operation::Read, 0, Errno::IO);
        assert!(file.read_at(&mut [0; 9], 0).is_err(), "the patience has ended");
        assert!(patient.check().is_ok(), "other parts can be read");
    }

    #[test]
    fn a_bad_sector_is_damage_and_a_file_that_can_not_be_read_at_all_is_not() {
        for blocks in [2, 9, 700] {
            let (disk, patient, file) = scene(blocks, Duration::ZERO);
            disk.unreadable("file", 0);
            assert!(file.read_at(&mut [0; 9], 0).is_err() && patient.check().is_ok(), "{blocks}");
            (1..blocks).for_each(|block| disk.unreadable("file", block * BLOCK));
            assert!(file.read_at(&mut [0; 9], 0).is_err() && patient.check().is_err(), "{blocks}");
        }
    }

    #[test]
    fn a_missing_file_is_not_waited_for() {
        let patient = Patient::new(Arc::new(SimulatedDisk::new(1)), Duration::from_secs(3600));
        let error = patient.open("file", Access::Read).expect_err("there is none");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
