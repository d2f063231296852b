//! A file beside the log, for the lines of a body that is too large to be held in memory.
//!
//! An [`Incoming`] takes the lines while the body arrives, and writes them as the records of a
//! segment whose positions are not known yet. When the body is whole, `Queue::append_incoming` lets
//! the file wait for the writer thread, behind the batches that wait already. The writer then fills
//! in the positions, and gives the file the name of the log's next segment. Nobody is told that the
//! body is safe before that name is synced, and a start deletes the file if it has not got the
//! name. A crash at any moment therefore leaves all of the body in the log, or nothing.
//!
//! The bytes of the file count in `queue.max_bytes` from the moment when they are reserved, which
//! is before they are written. An incoming body that is dropped leaves its file to the upkeep,
//! which deletes it.
//!
//! All methods wait for the disk; they are for threads that may block.

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

/// The file of a large request body is synced each time after this many bytes of lines were
/// written. With rarer syncs, the page cache would fill with data that is not on the disk yet. One
/// long sync at the end would then delay the small writes of the writer thread.
const SYNC_BYTES: u64 = if cfg!(test) { 6 << 10 } else { 16 << 20 };

/// The end of the name of a file that holds a large request body and is not a segment yet.
pub(super) const SUFFIX: &str = ".incoming";

/// Returns the file name for a large request body that is arriving: `segments/%020u.incoming`,
/// where `%020u` is the number with 20 digits.
fn file_name(number: u64) -> String {
    format!("{SEGMENTS}/{number:020}{SUFFIX}")
}

/// One record in the file of a large request body that is arriving. The record's header is written
/// later, when the positions of its events are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IncomingRecord {
    /// The offset of the record's header in the file.
    pub(super) offset: u64,
    pub(super) events: u64,
    /// The number of bytes of the record's lines.
    pub(super) length: u64,
    /// CRC-32C of the record's lines.
    pub(super) crc: u32,
}

/// The file of a large request body. The file becomes a segment of the queue when the writer thread
/// takes it. Code that drops an `IncomingFile` that is not a segment must call
/// [`Accounting::abandon`] first, so that the upkeep deletes the file.
#[derive(Debug)]
pub(super) struct IncomingFile {
    pub(super) file: Arc<dyn File>,
    /// The file's name in the queue's directory.
    pub(super) name: String,
    /// The size in bytes with which this file counts in [`Accounting::files`]. Reserved bytes that
    /// are not written yet are included.
    pub(super) size: u64,
    /// The records in the file, in the order in which they were written.
    pub(super) records: Vec<IncomingRecord>,
    /// The number of bytes of all lines in the file, without headers.
    pub(super) bytes: u64,
}

/// A large request body that is arriving. Its lines are stored in a file of their own.
///
/// The file is made when the first lines arrive. Lines arrive in parts. [`Incoming::store`]
/// reserves room for each part, and then writes the part. If there is no room, it first waits until
/// the upkeep has deleted segments. [`Incoming::sync`] syncs all lines that were written. At
/// the end `Queue::append_incoming` gives the file to the writer thread, which makes the file a
/// segment. After an error the body can only be dropped.
///
/// The task that reads the request owns this value, and calls the methods on threads that may
/// block. If segments must be dropped to make room, they are dropped for only one arriving body at
/// a time (`Shared::reserve`).
pub struct Incoming {
    shared: Arc<Shared>,
    /// The body's file. `None` before the first lines, after the queue has taken the file, and if
    /// the body is dropped because the queue is full.
    file: Option<IncomingFile>,
    /// The number of bytes of lines that were written since the last sync.
    unsynced: u64,
    /// The number of events in all lines of the body so far, including lines that were dropped.
    events: u64,
    /// The number of bytes of all lines of the body so far, including lines that were dropped.
    bytes: u64,
    /// `true`: the queue is full and drops the newest events. The events of this body are then
    /// counted as dropped, and not stored.
    pub(super) is_dropped: bool,
    /// `true`: segments were dropped to make room for this body. As long as this body arrives, no
    /// segments are dropped for another large request body (`has_dropper` in the writer's state).
    is_dropper: bool,
}

/// The result of an attempt to reserve bytes in the queue for a large request body that is
/// arriving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// The queue has room: the bytes are reserved for this request body, and no other body or batch
    /// can use them.
    Reserved,
    /// The queue has no room until the upkeep has deleted segments. The caller has to try again
    /// after that.
    Later,
    /// The queue is full, and `when_full` is `"drop_newest"`: the events of the request body are
    /// not stored. They are counted as dropped.
    Dropped,
}

impl Incoming {
    /// Returns the number of bytes of all lines of the body so far, including lines that were
    /// dropped because the queue is full.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Stores lines as one record. `events`: the number of lines, each of which ends with one `\n`.
    ///
    /// # Errors
    ///
    /// The queue has no room for the lines, or the disk does not take them. The incoming body can
    /// only be dropped then.
    pub fn store(&mut self, lines: &[u8], events: u64) -> Result<(), Refused> {
        self.reserve_for(lines)?;
        self.write(lines, events)
    }

    /// Reserves room for these lines. If there is no room, waits until the upkeep has deleted
    /// segments. The wait ends after `HANGS` at the latest.
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

    /// Reserves the bytes that a record with these lines takes, if there is room for them. Does not
    /// wait for room: the result says whether the caller has to try again.
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

    /// Makes the body's file, whose bytes are reserved already.
    fn create(&mut self, name: String, size: u64) -> Result<(), Refused> {
        match self.shared.disk.create(&name, BLOCK) {
            Ok(file) => {
                let records = Vec::new();
                self.file = Some(IncomingFile { file, name, size, records, bytes: 0 });
                Ok(())
            }
            Err(error) => {
                // The file may be there although making it has failed.
                self.shared.lock().writing.accounting.abandon(name, size);
                Err(self.refuse(&error))
            }
        }
    }

    /// Writes lines, whose bytes are reserved already, as one record of `events` events.
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

    /// Syncs all lines that were written. The writer thread then has to sync only the headers.
    ///
    /// # Errors
    ///
    /// The disk refuses to sync. The incoming body can only be dropped then.
    pub fn sync(&mut self) -> Result<(), Refused> {
        self.unsynced = 0;
        let Some(stored) = &self.file else { return Ok(()) };
        stored.file.sync().map_err(|error| self.refuse(&error))
    }

    /// Counts and logs an error of the disk. Returns the refusal for the sender.
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
    /// Reserves `bytes` more bytes for a large request body that is arriving, if there is room for
    /// them.
    ///
    /// If segments must be dropped to make room, they are dropped for only one arriving body at a
    /// time. Otherwise one body could drop segments and another body could take the freed room,
    /// until all of these bodies are refused and the segments were dropped for nothing.
    /// `is_dropper` is set to `true` when segments are dropped for this body.
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
    /// Makes a place for the lines of a body that is too large to be held in memory. See
    /// [`crate::Queue::incoming`].
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

    /// Adds a large request body, whose lines are all stored and synced, to the batches that wait
    /// for the writer thread. Returns the ticket on which the sender waits for the answer. See
    /// [`crate::Queue::append_incoming`].
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
            // `incoming` takes the lock when it is dropped at the return.
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
        // Batches that arrive after this body begin a new segment.
        state.writing.accounting.plan_incoming();
        Ok(shared.join_line(state, append, incoming.file.take(), Some(0)))
    }
}
