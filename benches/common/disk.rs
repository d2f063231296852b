//! The directory that a bench writes to, and the speed of its disk without a relay.

#![allow(dead_code, reason = "no bench needs everything")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags};
use tempfile::TempDir;

use crate::interrupt;
use crate::load::percentile;
use crate::process::thread_cpu;

/// The bytes that a raw write adds to the lines of each record, in place of a header.
const RECORD_HEADER: usize = 56;
/// Groups of records start at multiples of this (docs/internals/spool-format.md).
pub(crate) const BLOCK: u64 = 4096;

/// The largest size of the file for raw writes, in bytes. They end when the file is full.
const RAW_FILE_MAX: u64 = 4 << 30;

/// The most bytes that one call writes. Larger calls are slower: with 20 MiB per call, the kernel
/// took 0.7 CPU s/GB instead of 0.15. This was measured on a virtual machine whose large free pages
/// belonged to the host.
pub(crate) const PIECE: usize = 1 << 20;

/// The `f_type` of tmpfs (statfs(2)).
const TMPFS: i64 = 0x0102_1994;

/// A new directory below the given one, which is removed when this is dropped.
pub(crate) struct Disk {
    directory: TempDir,
}

impl Disk {
    pub(crate) fn new(below: &Path) -> Self {
        std::fs::create_dir_all(below).expect("a directory that can be made");
        let system = rustix::fs::statfs(below).expect("a file system");
        assert!(system.f_type != TMPFS, "{} is on tmpfs, which syncs nothing", below.display());
        let directory = tempfile::Builder::new().prefix("spool-bench-").tempdir_in(below);
        Self { directory: directory.expect("a writable directory") }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns how many bytes are free for this process.
    pub(crate) fn free(&self) -> u64 {
        let system = rustix::fs::statvfs(self.path()).expect("a file system");
        system.f_bavail * system.f_frsize
    }

    /// Returns the file system, its device and mount options, and the free space.
    pub(crate) fn describe(&self) -> String {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let path = self.path().canonicalize().expect("it is there");
        let mounts = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ');
            Some((fields.next()?, fields.next()?, fields.next()?, fields.next()?))
        });
        let deepest =
            mounts.filter(|(_, at, ..)| path.starts_with(at)).max_by_key(|(_, at, ..)| at.len());
        deepest.map_or_else(String::new, |(device, _, kind, options)| {
            format!("{kind} on {device} ({options}), {} GiB free", self.free() >> 30)
        })
    }

    /// Syncs the whole file system. Otherwise, bytes that others have written would be synced
    /// together with the first bytes of a run.
    pub(crate) fn settle(&self) {
        interrupt::check();
        let directory = File::open(self.path()).expect("it is there");
        rustix::fs::syncfs(directory).expect("a disk that syncs");
    }

    /// Measures the fastest that a queue on disk could be. One thread writes groups of `batches`
    /// records, with `lines` bytes of lines each, into reserved space. It syncs each group with one
    /// `fdatasync`, and stops after `limit` or when the file is full.
    pub(crate) fn raw(&self, batches: usize, lines: u64, limit: Duration) -> Raw {
        self.settle();
        let path = self.path().join("raw");
        let file = File::create_new(&path).expect("a new file");
        let size = RAW_FILE_MAX.min(self.free() / 4);
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size).expect("room");
        file.sync_all().expect("a disk that syncs");
        let record = RECORD_HEADER + usize::try_from(lines).expect("a batch");
        let group: Vec<u8> = (b'a'..=b'z').cycle().take(batches * record).collect();
        let step = (group.len() as u64).next_multiple_of(BLOCK);
        let mut took = Vec::new();
        let (begun, cpu_before, mut at) = (Instant::now(), thread_cpu(), 0);
        while at + step <= size && begun.elapsed() < limit {
            let begun = Instant::now();
            for (piece, bytes) in group.chunks(PIECE).enumerate() {
                file.write_all_at(bytes, at + (piece * PIECE) as u64).expect("a disk that writes");
            }
            file.sync_data().expect("a disk that syncs");
            took.push(begun.elapsed());
            at += step;
        }
        let (elapsed, cpu) = (begun.elapsed(), thread_cpu() - cpu_before);
        std::fs::remove_file(&path).expect("our own file");
        self.settle();
        took.sort_unstable();
        Raw { writes: took.len() as u64, elapsed, cpu, took }
    }
}

/// The results of raw writes.
pub(crate) struct Raw {
    pub(crate) writes: u64,
    pub(crate) elapsed: Duration,
    /// The CPU time of the writing thread, in seconds.
    pub(crate) cpu: f64,
    took: Vec<Duration>,
}

impl Raw {
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.took, percent)
    }
}

/// Removes a queue's segments from the kernel's cache, so that they are read from the disk. Only
/// synced pages can be removed.
pub(crate) fn drop_cached(queue: &Path) {
    for segment in segments(queue) {
        // The relay may have deleted the segment.
        let Ok(file) = File::open(segment) else { continue };
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("advice that Linux knows");
    }
}

fn segments(queue: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(queue.join("segments")).expect("a queue's directory");
    entries.map(|entry| entry.expect("a file").path()).collect()
}
