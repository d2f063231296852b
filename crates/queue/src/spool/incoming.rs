//! A separate file for the lines of a request body that is too large for memory.
//!
//! An [`Incoming`] takes the lines while the body arrives, and writes them as the records of a
//! segment whose positions are not known yet. When the body is complete, `Queue::append_incoming`
//! adds it to the batches that wait for the writer thread. The writer then fills in the positions,
//! and renames the file, which becomes the last segment of the log. The sender is told that the
//! body is safe only after the new name is synced, and a start deletes files that were not renamed.
//! A crash at any moment therefore leaves all of the body in the log, or nothing.
//!
//! The bytes of the file count in `queue.max_bytes` as soon as they are reserved, before they are
//! written. If an [`Incoming`] is dropped, the upkeep deletes its file.
//!
//! The methods that store and sync lines block on the disk.

use std::io;
use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

#[cfg(doc)]
use super::accounting::Accounting;
use super::{HANGS, Queue, Shared, SpoolState};
use crate::contract::{Append, Refused, Ticket};
use crate::segment::{BLOCK, FIRST_RECORD, RECORD_HEADER};
use audit::LevelCounts;
use base::disk::{File, SEGMENTS};
use base::mutant;

/// The number of bytes of lines from one sync of the file to the next. With rarer syncs, one long
/// sync at the end would delay the small writes of the writer thread.
const SYNC_BYTES: u64 = if cfg!(test) { 6 << 10 } else { 16 << 20 };

pub(super) const SUFFIX: &str = ".incoming";

fn file_name(number: u64) -> String {
    format!("{SEGMENTS}/{number:020}{SUFFIX}")
}

/// One record in the file of an arriving body. Its header is written when the positions are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IncomingRecord {
    pub(super) offset: u64,
    pub(super) events: u64,
    pub(super) length: u64,
    /// The CRC-32C of the record's lines, without a seed.
    pub(super) crc: u32,
}

/// The file of a large body. Code that drops it before it is a segment must first call
/// [`Accounting::abandon`], so that the upkeep deletes the file.
#[derive(Debug)]
pub(super) struct IncomingFile {
    pub(super) file: Arc<dyn File>,
    pub(super) name: String,
    /// The bytes by which the file counts in [`Accounting::files`], including reserved bytes.
    pub(super) size: u64,
    pub(super) records: Vec<IncomingRecord>,
    pub(super) bytes: u64,
}

/// A large request body that is arriving, owned by the task that reads the request.
///
/// The file is made with the first lines. [`Incoming::store`] reserves room for each part of the
/// lines, if necessary after the upkeep has deleted segments. After an error the body can only be
/// dropped.
pub struct Incoming {
    shared: Arc<Shared>,
    /// `None` before the first lines, once the queue has taken the file, and if the body is
    /// dropped.
    file: Option<IncomingFile>,
    unsynced: u64,
    /// The number of all events so far, even if they are dropped.
    events: u64,
    /// The number of bytes of all lines so far, even if they are dropped.
    bytes: u64,
    /// `true` if the queue is full with `drop_newest`, so that the events are only counted.
    pub(super) is_dropped: bool,
    /// `true` if segments were dropped for this body. Until it has arrived, none are dropped for
    /// another body.
    is_dropper: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Reserved,
    /// There is no room until the upkeep has deleted segments. The caller must then try again.
    Later,
    /// The queue is full with `drop_newest`: the events are counted as dropped and not stored.
    Dropped,
}

impl Incoming {
    /// Returns the number of bytes of all lines so far, even if they are dropped.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Stores lines as one record. `events`: the number of lines, each of which ends with one `\n`.
    ///
    /// # Errors
    ///
    /// There is no room for the lines, or the disk refuses them. The body can then only be dropped.
    pub fn store(&mut self, lines: &[u8], events: u64) -> Result<(), Refused> {
        self.reserve_for(lines)?;
        self.write(lines, events)
    }

    /// Reserves room for these lines. Waits at most [`HANGS`] for the upkeep to make room.
    fn reserve_for(&mut self, lines: &[u8]) -> Result<(), Refused> {
        let deadline = Instant::now() + HANGS;
        while self.try_reserve(lines)? == Room::Later {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Refused::Disk);
            }
            let state = self.shared.lock();
            if state.writing.chores.reclaim_wanted {
                let waited = self.shared.wakes.reclaimed.wait_timeout(state, left);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
        }
        Ok(())
    }

    /// Reserves the bytes of a record with these lines. Does not wait for the upkeep.
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
                    let name = file_name(state.writing.bodies.count);
                    state.writing.bodies.count += 1;
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
                // The file may exist although its creation has failed.
                self.shared.lock().writing.accounting.abandon(name, size);
                Err(self.refuse(&error))
            }
        }
    }

    /// Writes lines as one record, whose bytes are reserved already.
    pub(super) fn write(&mut self, lines: &[u8], events: u64) -> Result<(), Refused> {
        self.events += events;
        self.bytes += lines.len() as u64;
        let Some(stored) = &mut self.file else { return Ok(()) };
        let offset = stored.size - RECORD_HEADER - lines.len() as u64;
        // The header stays zero until the writer knows the positions.
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

    /// Syncs all written lines. The writer thread then has to sync only the headers.
    ///
    /// # Errors
    ///
    /// The disk refuses. The body can then only be dropped.
    pub fn sync(&mut self) -> Result<(), Refused> {
        self.unsynced = 0;
        let Some(stored) = &self.file else { return Ok(()) };
        stored.file.sync().map_err(|error| self.refuse(&error))
    }

    fn refuse(&self, error: &io::Error) -> Refused {
        self.shared.metrics.spool.write_errors.increment(1);
        tracing::warn!(
            %error,
            "cannot write a large request body to the queue's disk while it arrives: its sender \
             gets 503 and has to send it again"
        );
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
            state.writing.bodies.has_dropper = false;
        }
        drop(state);
        self.shared.wakes.upkeep.notify_one();
    }
}

impl Shared {
    /// Reserves `bytes` more bytes for an arriving body.
    ///
    /// Segments are dropped for only one arriving body at a time. Otherwise one body could drop
    /// segments and another could take their room, until all these bodies are refused and the
    /// segments were dropped for nothing. `is_dropper` becomes `true` when segments are dropped for
    /// this body.
    fn reserve(
        &self,
        state: &mut SpoolState,
        bytes: u64,
        is_dropper: &mut bool,
    ) -> Result<Room, Refused> {
        state.writing.takes()?;
        let (wanted, usable) = (state.writing.accounting.taken() + bytes, self.usable());
        if wanted <= usable {
            state.writing.accounting.reserve_incoming(bytes);
            return Ok(Room::Reserved);
        }
        let missing = wanted.saturating_sub(usable + state.reclaimable());
        if missing > 0 {
            let Some(chosen) = self.choose(state, missing)? else { return Ok(Room::Dropped) };
            if std::mem::replace(&mut state.writing.bodies.has_dropper, true)
                && mutant!("large-bodies-drop-each-other", !*is_dropper, false)
            {
                return Err(Refused::Full);
            }
            *is_dropper = true;
            state.drop_segments(chosen, &self.metrics);
        }
        state.writing.chores.reclaim_wanted = true;
        self.wake();
        Ok(Room::Later)
    }
}

impl Queue {
    /// See [`crate::Queue::incoming`].
    pub fn incoming(&self) -> Incoming {
        Incoming {
            shared: Arc::clone(&self.shared),
            file: None,
            unsynced: 0,
            events: 0,
            bytes: 0,
            is_dropped: false,
            is_dropper: false,
        }
    }

    /// See [`crate::Queue::append_incoming`].
    ///
    /// # Errors
    ///
    /// The disk refuses, or the queue has ended.
    pub fn append_incoming(
        &self,
        mut incoming: Incoming,
        levels: LevelCounts,
    ) -> Result<Ticket, Refused> {
        let shared = &self.shared;
        let mut state = shared.lock();
        if let Err(refused) = state.writing.takes() {
            // When `incoming` is dropped at the return, it takes the lock.
            drop(state);
            return Err(refused);
        }
        if incoming.is_dropped {
            shared.metrics.drop_newest(incoming.events, incoming.bytes, &levels);
            state.writing.unplaced += incoming.events;
            return Ok(Ticket::stored());
        }
        let append =
            Append { lines: bytes::Bytes::new(), events: incoming.events, levels, list: None };
        state.writing.accounting.plan_incoming();
        Ok(shared.join_line(state, append, incoming.file.take(), Some(0)))
    }
}
