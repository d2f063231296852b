//! A file beside the log, for the lines of a body that is too large to be held in memory.
//!
//! A [`Incoming`] takes the lines while the body arrives, and writes them as the records of a
//! segment whose positions are not known yet. When the body is whole, [`Queue::append_incoming`]
//! puts the file in line behind the batches that wait; the writer then fills in the positions and
//! gives the file the name of the log's next segment. Before that name is synced, nobody is told
//! that the body is safe, and a start has the file deleted. A crash at any moment therefore leaves
//! all of the body in the log, or nothing.
//!
//! The bytes of the file count in `queue.max_bytes` from the moment when they are reserved, which
//! is before they are written. An incoming body that is dropped leaves its file to the writer,
//! which deletes it.
//!
//! All methods block on the disk; they are for threads that may block.

use std::io;
use std::sync::Arc;
use std::sync::PoisonError;

use tokio::time::Instant;

use super::HANGS;
use super::Queue;
use super::Shared;
use super::SpoolState;
use super::Ticket;
#[cfg(doc)]
use super::accounting::Accounting;
use crate::audit::LevelCounts;
use crate::config::WhenFull;
use crate::queue::Append;
use crate::queue::Refused;
use crate::queue::disk::File;
use crate::queue::disk::SEGMENTS;
use crate::queue::segment::BLOCK;
use crate::queue::segment::FIRST_RECORD;
use crate::queue::segment::RECORD_HEADER;

/// Bytes that are written between two syncs: more would fill the page cache with dirty pages, and a
/// sync of all of them at the end would keep the disk from the writer's small groups for as long as
/// it takes.
const SYNC_BYTES: u64 = if cfg!(test) { 6 << 10 } else { 16 << 20 };

/// Marks the name of a file that is no segment yet.
const SUFFIX: &str = ".incoming";

/// `segments/%020u.incoming`.
fn file_name(number: u64) -> String {
    format!("{SEGMENTS}/{number:020}{SUFFIX}")
}

/// The number in the name of an incoming file; `None` for other files.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let name = name.rsplit('/').next()?;
    name.strip_suffix(SUFFIX)?.parse().ok()
}

/// A number that is in the name of none of these files.
pub(super) fn next_number(files: &[(String, u64)]) -> u64 {
    files
        .iter()
        .filter_map(|(name, _)| number_of(name))
        .max()
        .map_or(0, |last| last.saturating_add(1))
}

/// One record of an incoming file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IncomingRecord {
    /// Offset of its header.
    pub(super) offset: u64,
    pub(super) events: u64,
    /// Bytes of its lines.
    pub(super) length: u64,
    /// CRC-32C of its lines.
    pub(super) crc: u32,
}

/// A body that lies whole in a file, and waits for its place in the log. Whoever drops it first
/// hands it to [`Accounting::abandon`].
#[derive(Debug)]
pub(super) struct IncomingFile {
    pub(super) file: Arc<dyn File>,
    /// The file's name in the queue's directory.
    pub(super) name: String,
    /// Bytes that the file counts for in [`Accounting::files`].
    pub(super) size: u64,
    pub(super) records: Vec<IncomingRecord>,
    /// Bytes of all lines.
    pub(super) bytes: u64,
}

/// A body that is arriving.
pub struct Incoming {
    shared: Arc<Shared>,
    /// Absent before the first lines, once the file was handed on, and where the queue drops the
    /// newest.
    file: Option<IncomingFile>,
    /// Bytes written since the last sync.
    unsynced: u64,
    events: u64,
    bytes: u64,
    /// The queue is full and drops the newest: the body is counted, and not stored.
    pub(super) is_dropped: bool,
    /// Segments were dropped for it: see [`SpoolState::has_dropper`].
    is_dropper: bool,
}

/// Whether the bytes of an incoming body have found room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// The bytes are counted as the incoming body's.
    Reserved,
    /// The writer has to delete segments first.
    Later,
    /// `when_full = "drop_newest"`, and the queue is full.
    Dropped,
}

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            file: None,
            unsynced: 0,
            events: 0,
            bytes: 0,
            is_dropped: false,
            is_dropper: false,
        }
    }

    /// Bytes of all lines that were stored.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Stores lines as one record: `events` events, each followed by one `\n`.
    ///
    /// # Errors
    ///
    /// The queue has no room for them, or the disk does not take them. The incoming body can only
    /// be dropped then.
    pub fn store(&mut self, lines: &[u8], events: u64) -> Result<(), Refused> {
        self.reserve_for(lines)?;
        self.write(lines, events)
    }

    /// Waits until the writer has deleted the segments whose room the lines need.
    fn reserve_for(&mut self, lines: &[u8]) -> Result<(), Refused> {
        let deadline = Instant::now() + HANGS;
        while self.try_reserve(lines)? == Room::Later {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Refused::Disk);
            }
            let state = self.shared.lock();
            if state.writing.reclaim_wanted {
                let waited = self.shared.reclaimed.wait_timeout(state, left);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
        }
        Ok(())
    }

    /// Counts the bytes that a record with these lines takes, if there is room for them.
    pub(super) fn try_reserve(&mut self, lines: &[u8]) -> Result<Room, Refused> {
        if self.is_dropped {
            return Ok(Room::Dropped);
        }
        let size = self.file.as_ref().map_or(0, |stored| stored.size);
        // Each record begins a block, as a group of its own.
        let offset = size.max(FIRST_RECORD).next_multiple_of(BLOCK);
        let more = offset + RECORD_HEADER + lines.len() as u64 - size;
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let room = shared.reserve(&mut state, more, &mut self.is_dropper)?;
        match room {
            Room::Later => {}
            Room::Dropped => {
                self.is_dropped = true;
                if let Some(stored) = self.file.take() {
                    state.writing.accounting.abandon(stored.name, stored.size);
                }
            }
            Room::Reserved => match &mut self.file {
                Some(stored) => stored.size += more,
                None => {
                    let name = file_name(state.writing.incoming_count);
                    state.writing.incoming_count += 1;
                    drop(state);
                    self.create(name, more)?;
                }
            },
        }
        Ok(room)
    }

    fn create(&mut self, name: String, size: u64) -> Result<(), Refused> {
        match self.shared.disk.create(&name, BLOCK) {
            Ok(file) => {
                let records = Vec::new();
                self.file = Some(IncomingFile { file, name, size, records, bytes: 0 });
                Ok(())
            }
            Err(error) => {
                // A file that could not be made may be there all the same.
                self.shared.lock().writing.accounting.abandon(name, size);
                Err(self.refuse(&error))
            }
        }
    }

    /// Writes lines whose bytes were reserved.
    pub(super) fn write(&mut self, lines: &[u8], events: u64) -> Result<(), Refused> {
        self.events += events;
        self.bytes += lines.len() as u64;
        let Some(stored) = &mut self.file else { return Ok(()) };
        let offset = stored.size - RECORD_HEADER - lines.len() as u64;
        // The header stays zeros until the writer knows the positions.
        let header = [0; 64];
        if let Err(error) = stored.file.write_at(&[&header, lines], offset) {
            return Err(self.refuse(&error));
        }
        let (length, crc) = (lines.len() as u64, crc32c::crc32c(lines));
        stored.records.push(IncomingRecord { offset, events, length, crc });
        stored.bytes += length;
        self.unsynced += length;
        if self.unsynced >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// Makes all lines safe, so that the writer has only the headers to sync.
    ///
    /// # Errors
    ///
    /// The disk refuses. The incoming body can only be dropped then.
    pub fn sync(&mut self) -> Result<(), Refused> {
        self.unsynced = 0;
        let Some(stored) = &self.file else { return Ok(()) };
        stored.file.sync().map_err(|error| self.refuse(&error))
    }

    fn refuse(&self, error: &io::Error) -> Refused {
        self.shared.metrics.write_errors.increment(1);
        tracing::warn!(%error, "a large body can't be stored while it arrives, its sender gets 503");
        Refused::Disk
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let file = self.file.take();
        if file.is_none() && !self.is_dropper {
            return;
        }
        let mut state = self.shared.lock();
        if let Some(stored) = file {
            state.writing.accounting.abandon(stored.name, stored.size);
        }
        if self.is_dropper {
            state.writing.has_dropper = false;
        }
        drop(state);
        self.shared.work.notify_one();
    }
}

impl Shared {
    /// Counts so many bytes of an incoming body, if there is room for them.
    ///
    /// Segments are dropped for one body at a time. Several would drop what each of them has stored so far, or what others
    /// had found room with, until all of them are refused and nothing is left. `is_dropper`: segments are dropped for this
    /// body.
    fn reserve(
        &self,
        state: &mut SpoolState,
        bytes: u64,
        is_dropper: &mut bool,
    ) -> Result<Room, Refused> {
        if state.writing.closed {
            return Err(Refused::Full);
        }
        if state.writing.fault().is_some() {
            return Err(Refused::Disk);
        }
        let (wanted, usable) = (state.writing.accounting.taken() + bytes, self.usable());
        if wanted <= usable {
            state.writing.accounting.reserve_incoming(bytes);
            return Ok(Room::Reserved);
        }
        let missing = wanted.saturating_sub(usable + state.reclaimable());
        if missing > 0 {
            let mut chosen = state.log.droppable(missing, false);
            if chosen.is_none() {
                self.log_full(state);
                match state.writing.when_full {
                    WhenFull::Reject => {}
                    WhenFull::DropNewest => return Ok(Room::Dropped),
                    WhenFull::DropOldest => chosen = state.log.droppable(missing, true),
                }
            }
            let Some(chosen) = chosen else { return Err(Refused::Full) };
            if std::mem::replace(&mut state.writing.has_dropper, true) && !*is_dropper {
                return Err(Refused::Full);
            }
            *is_dropper = true;
            state.drop_segments(chosen, &self.metrics);
        }
        state.writing.reclaim_wanted = true;
        self.work.notify_one();
        Ok(Room::Later)
    }
}

impl Queue {
    /// Takes the lines of a body that is too large for memory while it arrives.
    #[must_use]
    pub fn incoming(&self) -> Incoming {
        Incoming::new(Arc::clone(&self.shared))
    }

    /// Takes a body whose lines were all stored and synced. It is safe once
    /// [`Ticket::acknowledged`] says so.
    ///
    /// # Errors
    ///
    /// The disk refuses, or the queue has ended; nothing is stored then.
    pub fn append_incoming(
        &self,
        mut incoming: Incoming,
        levels: LevelCounts,
    ) -> Result<Ticket, Refused> {
        let shared = &self.shared;
        let mut state = shared.lock();
        let refused = match state.writing.closed {
            true => Some(Refused::Full),
            false => state.writing.fault().map(|_| Refused::Disk),
        };
        if let Some(refused) = refused {
            // The incoming body takes the lock when it is dropped.
            drop(state);
            return Err(refused);
        }
        if incoming.is_dropped {
            shared.metrics.drop_newest(incoming.events, incoming.bytes, &levels);
            return Ok(Ticket { done: None, answer: Ok(()), place: None });
        }
        let append = Append { lines: bytes::Bytes::new(), events: incoming.events, levels };
        // The batches behind it begin a segment of their own.
        state.writing.accounting.plan_incoming();
        let (number, acknowledged) = state.writing.join_line(append, incoming.file.take(), Some(0));
        drop(state);
        shared.work.notify_one();
        let place = Some((Arc::clone(shared), number));
        Ok(Ticket { done: Some(acknowledged), answer: Ok(()), place })
    }
}
