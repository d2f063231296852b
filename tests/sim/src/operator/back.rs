//! A copy of the queue's directory, which the operator makes and puts back.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Death, Operator};
use crate::kernel::disk;
use crate::plan::{Back, Why};
use crate::{evidence, kernel};

const QUEUE: &str = "queue";

const COPY: &str = "backup";

/// The record of a copy of the queue's directory that was put back.
pub(crate) struct Restored {
    pub(crate) back: Back,
    /// When the copy was made, and when the relay ended before the copy was put back.
    pub(crate) gone: (Duration, Duration),
    /// The sizes of the evidence log, in the copy and before it was put back.
    pub(crate) sizes: (u64, u64),
    /// The size that the witness knew at that time.
    pub(crate) witnessed: u64,
    /// The length of the relay's log before that, in bytes.
    pub(crate) log: usize,
}

impl Operator<'_> {
    /// Ends the relay in order, copies its directory, and starts the relay again.
    pub(super) fn back_up(&mut self) {
        // This needs one life, and putting the copy back needs another.
        if self.process.is_none() || self.restored.is_some() || !self.has_libraries(6) {
            return;
        }
        self.stop(Why::Signal);
        fs::remove_dir_all(COPY).ok();
        evidence::copy(Path::new(QUEUE), Path::new(COPY));
        self.copied = Some(kernel::now());
        self.start();
    }

    /// Ends the relay, and puts the copy of the directory back, with or without its evidence.
    pub(super) fn restore(&mut self, back: Back, kills: bool) {
        let Some(copied) = self.copied.filter(|_| self.process.is_some() && self.has_life()) else {
            return;
        };
        match kills {
            true => self.kill(Death::Kill),
            false => self.stop(Why::Signal),
        }
        let (ended, log) = (kernel::now(), self.log.len());
        self.copied = None;
        self.book.set_back(copied, ended);
        let newest = evidence::checkpoint(Path::new(QUEUE));
        let sizes = (evidence::checkpoint(Path::new(COPY)).1, newest.1);
        fs::write(evidence::KEPT, newest.0).expect("a writable directory");
        disk::store_all();
        disk::unstick();
        for name in names(QUEUE, back) {
            let path = Path::new(QUEUE).join(name);
            let removed =
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.expect("it is there");
        }
        for name in names(COPY, back) {
            fs::rename(Path::new(COPY).join(&name), Path::new(QUEUE).join(name))
                .expect("nothing has its name");
        }
        let witnessed = self.witness.as_ref().map_or(0, |witness| witness.size());
        let gone = (copied, ended);
        self.restored = Some(Restored { back, gone, sizes, witnessed, log });
        self.start();
    }
}

/// Returns the names in a directory that a copy replaces.
fn names(directory: &str, back: Back) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it is there");
    let names = entries.map(|entry| entry.expect("a name").file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| back == Back::Whole || !name.starts_with("evidence"));
    names.sort();
    names
}
