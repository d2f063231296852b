//! Events that are set aside: single events that their consumer does not take, although it takes
//! others. They have left the queue, hold up no other event, and are tried again from here.
//!
//! A queue in memory keeps the lines, and may drop those of an optional output. If the queue has a
//! directory, each event has a file on the queue's [`Shelf`], in the format of a dead letter.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Display;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;

use super::dead_letter::{More, letter_head};
use super::lines::line;
use super::reason::Reason;
use super::trial::{Answer, Retrial};
use base::position::Position;
use queue::{Acceptance, Batch, Claim, Cursor, Shelf};
use telemetry::Cause;
use transform::shape;

/// At this number of events, or at the limit of bytes, the oldest ones that are at fault are given
/// up for each new one. If there are none, or if `rejected.action` is `"retry"`, the new one stays
/// in the queue.
pub(crate) const EVENTS_MAX: usize = if cfg!(test) { 50 } else { 10_000 };

/// The maximum number of events that are given up for a new one.
const PUSHED_OUT_MAX: usize = 8;

/// The end of the reason for giving up an event that could be retried.
pub(crate) const NO_ROOM: &str = "and no more events can be set aside";

/// The events may have a quarter of `queue.max_bytes`, and at most 64 MiB.
const PART_OF_QUEUE: u64 = 4;
const BYTES_MAX: u64 = 64 << 20;

/// Replaces the consumer's response until the file of an event from before the start is read.
const BEFORE_START: &str = "it was set aside before the start";

/// The maximum bytes of an `auditID` in the log and `/status`. One of kube-apiserver has 36.
const AUDIT_ID_MAX: usize = 64;

const CLOSING: Duration = Duration::from_secs(1);

/// The rest after each slow try, in times of what the try took: a consumer that never responds to
/// one event takes at most a tenth of the time.
const REST: u32 = 9;

/// The maximum number of events on the wire.
const WINDOW_MAX: usize = 64;

/// A try that takes at least this time is slow.
const SLOW: Duration = Duration::from_millis(50);

/// The events that one output has set aside. The ledger owns this value, and a reload hands it to
/// the next delivery.
///
/// Phases of an event: it *waits* until its next try is due. Then it is *on the wire*, until the
/// response takes it out ([`Aside::answered`]). Then it waits again ([`Aside::keep`]), is settled
/// ([`Aside::forget`]), or is *doomed* ([`Aside::doom`]): given up as soon as its line is read. At
/// most one file is read at a time. Doomed events do not count against the limits. An event that
/// the queue has dropped is forgotten; if it is on the wire, after its response.
pub struct Aside {
    shelf: Shelf,
    /// The value is [`EVENTS_MAX`], except in tests.
    pub(super) events_max: usize,
    bytes_max: u64,
    events: BTreeMap<Position, (Stage, Kept)>,
    /// The events that wait, in the order of their next tries, without those in `overdue`.
    due: BTreeSet<(Instant, Position)>,
    /// The events that were due when the last one was chosen, each with the number of its slow
    /// tries. One with few of them is tried first, so that silence for some events keeps no other
    /// one waiting. Among them, the one with the lowest position is first. If the order were that
    /// of the due times, and too many events were due, each event would get some tries, and none
    /// its last try.
    overdue: BTreeSet<(u32, Position)>,
    doomed: VecDeque<Position>,
    on_wire: usize,
    bytes: u64,
    reading: Reading,
    deleting: JoinSet<()>,
    /// The event that is tried next, before any other event is sent.
    next: Option<Position>,
    /// The moment when the event on the wire was sent.
    sent_at: Instant,
    /// No event is tried before this moment, so that other events get most of the time.
    rests_until: Instant,
    /// The rest after a slow try, in times of what the try took.
    rest: u32,
    /// The number of events that may be on the wire: 1, and twice as many after each one that the
    /// consumer accepts, until it turns one down.
    window: usize,
    /// `true` if the last request was a try. The next one then carries other events, if there are
    /// any.
    was_try: bool,
}

#[derive(Debug, Clone)]
enum Stage {
    Waits,
    OnWire,
    Doomed(Reason),
}

/// An event that is set aside, and the record of its tries.
#[must_use = "the event is in no stage until it is given back"]
#[derive(Debug, Clone)]
pub struct Kept {
    pub(super) retrial: Retrial,
    /// The consumer's last response, with the consumer's address.
    pub answer: Arc<str>,
    /// The size and the time of the event. For an event from before the start, the size is that of
    /// its file, and the time is approximate until the file is read.
    pub event: queue::Aside,
    /// The number of times that the event was sent, counted from 1 after a start.
    pub attempts: u32,
    /// The number of responses that had turned something down when the event was last sent.
    pub sent_at: u64,
    /// The `auditID` of the event, shortened; empty if its file was not read yet.
    pub audit_id: Arc<str>,
    /// The number of tries that took long.
    slow: u32,
    /// The line in a queue in memory. It refers to nothing if the queue has dropped the event, or
    /// if the line is in a file.
    line: Weak<Bytes>,
}

#[derive(Default)]
enum Reading {
    #[default]
    Idle,
    Under(Position, JoinHandle<Result<Read, String>>),
    Done(Position, Result<Read, String>),
}

#[derive(Debug)]
struct Read {
    line: Bytes,
    more: More,
    reason: String,
}

impl Read {
    fn of(read: Result<Result<Self, String>, JoinError>) -> Result<Self, String> {
        read.unwrap_or_else(|panic| Err(format!("the read has failed: {panic}")))
    }
}

#[derive(Deserialize)]
struct Letter<'a> {
    reason: String,
    received: u64,
    refused: bool,
    #[serde(borrow)]
    event: &'a RawValue,
}

pub(crate) enum Line {
    Is(Bytes),
    /// The queue in memory has dropped the event, and has counted it as lost.
    Dropped,
    /// The file is being read ([`Aside::readable`]).
    NotYet,
    /// The file is damaged, missing or changed. The text says what is wrong.
    Gone(String),
}

impl Aside {
    /// Takes over the events that the output of this cursor set aside before the start.
    pub fn new(cursor: &Cursor) -> Self {
        let mut aside = Self {
            shelf: cursor.shelf(),
            events_max: EVENTS_MAX,
            bytes_max: 0,
            events: BTreeMap::new(),
            due: BTreeSet::new(),
            overdue: BTreeSet::new(),
            doomed: VecDeque::new(),
            on_wire: 0,
            bytes: 0,
            reading: Reading::Idle,
            deleting: JoinSet::new(),
            next: None,
            sent_at: Instant::now(),
            rests_until: Instant::now(),
            rest: REST,
            window: 1,
            was_try: false,
        };
        aside.begin(cursor, false);
        for (position, bytes) in cursor.take_aside() {
            let kept = Kept::new(Retrial::found(), BEFORE_START, 1);
            let kept = Kept { event: queue::Aside { bytes, received: 0 }, ..kept };
            aside.keep(position, kept);
        }
        aside
    }

    /// Begins a delivery. The limit of bytes depends on the queue's capacity at this moment. Other
    /// requests may be sent during a slow try if there `are_lanes` for them.
    pub fn begin(&mut self, cursor: &Cursor, are_lanes: bool) {
        self.rest = if are_lanes { 0 } else { REST };
        self.bytes_max = (cursor.capacity() / PART_OF_QUEUE).min(BYTES_MAX);
    }

    pub(super) fn inherited(mut self) -> Self {
        let positions: Vec<_> = self.events.keys().copied().collect();
        for position in positions {
            if let Some((stage, mut kept)) = self.take(position) {
                kept.retrial = kept.retrial.inherited();
                match stage {
                    Stage::Waits | Stage::OnWire => self.keep(position, kept),
                    Stage::Doomed(reason) => self.doom(position, kept, reason),
                }
            }
        }
        self.next = None;
        self
    }

    /// Returns the number of events, doomed ones included.
    pub fn count(&self) -> usize {
        self.events.len()
    }

    pub(super) fn may_send(&self) -> bool {
        self.on_wire < self.window
    }

    pub(super) fn is_on_wire(&self) -> bool {
        self.on_wire > 0
    }

    pub(super) fn is_sent(&self, position: Position) -> bool {
        matches!(self.events.get(&position), Some((Stage::OnWire, _)))
    }

    /// Returns the events that are not doomed, in the order of their positions.
    pub fn waiting(&self) -> impl Iterator<Item = (Position, &Kept)> {
        let is_waiting = |stage: &Stage| !matches!(stage, Stage::Doomed(_));
        let events = self.events.iter().filter(move |(_, (stage, _))| is_waiting(stage));
        events.map(|(position, (_, kept))| (*position, kept))
    }

    /// Returns `true` if one more event, of `bytes` bytes, has no room. The first always has room.
    fn is_full(&self, bytes: u64) -> bool {
        let events = self.events.len() - self.doomed.len();
        events > 0 && (events >= self.events_max || self.bytes + bytes > self.bytes_max)
    }

    /// Returns `true` if nine tenths of the room are used: new events push out old ones.
    pub fn is_crowded(&self) -> bool {
        let events = self.events.len() - self.doomed.len();
        events > self.events_max / 10 * 9 || self.bytes > self.bytes_max / 10 * 9
    }

    /// Dooms the oldest events that are at fault, at most [`PUSHED_OUT_MAX`], so that an event of
    /// `bytes` bytes has room. Returns `false` and dooms none if that would not be enough: the new
    /// event must then stay in the queue. A client that makes a large event must not decide about
    /// the events of others, and no event is given up before it is known to be at fault.
    #[must_use]
    pub(super) fn make_room(&mut self, bytes: u64, keeps_all: bool) -> bool {
        if !self.is_full(bytes) {
            return true;
        }
        let old = self.events.iter().filter(|(_, (stage, kept))| {
            !keeps_all && matches!(stage, Stage::Waits) && kept.retrial.is_at_fault()
        });
        let mut old: Vec<_> = old
            .map(|(position, (_, kept))| (kept.retrial.since, *position, kept.event.bytes))
            .collect();
        old.sort_unstable();
        let left = (self.events.len() - self.doomed.len(), self.bytes);
        let left = old.iter().take(PUSHED_OUT_MAX).scan(left, |(events, held), (_, _, its)| {
            (*events, *held) = (*events - 1, *held - its);
            Some((*events, *held))
        });
        let enough = |(events, held): (usize, u64)| {
            events == 0 || (events < self.events_max && held + bytes <= self.bytes_max)
        };
        let Some(last) = left.into_iter().position(enough) else { return false };
        for (_, position, _) in old.into_iter().take(last + 1) {
            if let Some(kept) = self.take_waiting(position) {
                let why = format!("{}, {NO_ROOM}", kept.answer);
                self.doom(position, kept, Reason::new(Cause::Refused, &why));
            }
        }
        true
    }

    /// Begins to write the file of an event whose claim is not final yet; `None` if there is no
    /// directory. When the file is synced, [`Aside::add`] sets the event aside.
    pub fn store(
        &self,
        output: &str,
        position: Position,
        kept: &Kept,
        event: &[u8],
    ) -> Option<JoinHandle<io::Result<()>>> {
        if !self.shelf.is_durable() {
            return None;
        }
        let more = More { received: kept.event.received, refused: !kept.fails() };
        let mut content = letter_head(output, &kept.answer, Some(more));
        content.extend_from_slice(event);
        content.extend_from_slice(b"}\n");
        let shelf = self.shelf.clone();
        Some(tokio::task::spawn_blocking(move || shelf.store(position, &content)))
    }

    /// Sets an event aside after its claim has become final. `in_queue` is the line in a queue in
    /// memory.
    pub fn add(&mut self, position: Position, kept: Kept, line: &[u8], in_queue: Weak<Bytes>) {
        self.keep(position, Kept { audit_id: audit_id(line), line: in_queue, ..kept });
    }

    /// Forgets the events that the queue has dropped, except one on the wire. Returns `true` if
    /// there were any.
    pub(super) fn forget_dropped(&mut self) -> bool {
        if self.shelf.is_durable() {
            return false;
        }
        // The queue drops the oldest events first.
        let all = self.events.iter();
        let dropped = all.take_while(|(_, (_, kept))| kept.line.strong_count() == 0);
        let dropped = dropped.filter(|(_, (stage, _))| !matches!(stage, Stage::OnWire));
        let dropped: Vec<_> = dropped.map(|(position, _)| *position).collect();
        dropped.iter().filter(|position| self.take(**position).is_some()).count() > 0
    }

    /// Puts an event back, to wait for its next try.
    pub fn keep(&mut self, position: Position, kept: Kept) {
        self.due.insert((kept.retrial.due, position));
        self.bytes += kept.event.bytes;
        self.events.insert(position, (Stage::Waits, kept));
    }

    /// Gives an event up, as soon as its line is read.
    pub(super) fn doom(&mut self, position: Position, kept: Kept, reason: Reason) {
        self.doomed.push_back(position);
        self.events.insert(position, (Stage::Doomed(reason), kept));
    }

    pub(super) fn take_waiting(&mut self, position: Position) -> Option<Kept> {
        self.is_waiting(position).then(|| self.take(position)).flatten().map(|(_, kept)| kept)
    }

    /// Takes an event off the wire, because its response is here; `None` if it is not on the wire.
    pub fn answered(&mut self, position: Position) -> Option<Kept> {
        if !self.is_sent(position) {
            return None;
        }
        let (now, took) = (Instant::now(), self.sent_at.elapsed());
        let (is_slow, (_, mut kept)) = (took >= SLOW, self.take(position)?);
        let rests = is_slow;
        self.rests_until = if rests { now + took * self.rest } else { now };
        kept.slow = kept.slow.saturating_add(u32::from(is_slow));
        Some(kept)
    }

    /// The consumer has accepted an event that was set aside. A slow confirmation is not a reason
    /// to rest: the others may be accepted, too.
    pub(super) fn accepted(&mut self) {
        self.rests_until = Instant::now();
        self.window = (2 * self.window).min(WINDOW_MAX);
    }

    /// The consumer has turned down an event that was set aside.
    pub(super) fn turned_down(&mut self) {
        self.window = 1;
    }

    pub(super) fn all_answered(&mut self) -> Vec<(Position, Kept)> {
        let on_wire = self.events.iter().filter(|(_, (stage, _))| matches!(stage, Stage::OnWire));
        let positions: Vec<_> = on_wire.map(|(position, _)| *position).collect();
        let answered = positions.into_iter();
        answered.filter_map(|position| Some((position, self.answered(position)?))).collect()
    }

    fn take(&mut self, position: Position) -> Option<(Stage, Kept)> {
        let (stage, kept) = self.events.remove(&position)?;
        self.next = self.next.filter(|next| *next != position);
        match &stage {
            Stage::Waits => {
                self.due.remove(&(kept.retrial.due, position));
                self.overdue.remove(&(kept.slow, position));
            }
            Stage::OnWire => self.on_wire -= 1,
            Stage::Doomed(_) => self.doomed.retain(|other| *other != position),
        }
        if !matches!(stage, Stage::Doomed(_)) {
            self.bytes -= kept.event.bytes;
        }
        Some((stage, kept))
    }

    /// Begins to delete the file of a settled event.
    pub fn forget(&mut self, position: Position) {
        if let Reading::Under(of, _) | Reading::Done(of, _) = &self.reading
            && *of == position
        {
            self.reading = Reading::Idle;
        }
        if self.shelf.is_durable() {
            while self.deleting.try_join_next().is_some() {}
            let shelf = self.shelf.clone();
            self.deleting.spawn_blocking(move || shelf.remove(position));
        }
    }

    /// Makes the tries of all waiting events due, because the drain has begun.
    pub fn hurry(&mut self) {
        (self.rest, self.rests_until) = (0, Instant::now());
        self.retry_all(Retrial::hurry);
    }

    /// Makes the tries of all waiting events due soon: the consumer takes events again.
    pub(super) fn recovered(&mut self) {
        self.retry_all(Retrial::soon);
    }

    fn retry_all(&mut self, change: fn(&mut Retrial)) {
        let positions: Vec<_> = self.events.keys().copied().collect();
        for position in positions {
            if let Some(mut kept) = self.take_waiting(position) {
                change(&mut kept.retrial);
                self.keep(position, kept);
            }
        }
    }

    /// Returns the moment of the next try; `None` if no event waits, or while a file is being read.
    pub(super) fn next_try(&self) -> Option<Instant> {
        let is_reading = matches!(self.reading, Reading::Under(..));
        let due = self.due.first().map(|(due, _)| *due);
        let next = if self.overdue.is_empty() { due } else { Some(self.rests_until) };
        next.map(|due| due.max(self.rests_until)).filter(|_| !is_reading)
    }

    /// Returns `true` while the event that is tried next waits for its file. If other events were
    /// sent during this time, they would get the address that this event must ask, and this event
    /// would get theirs (seed 3401060802 of the simulator).
    pub(super) fn awaits_next(&self) -> bool {
        self.next.is_some() && matches!(self.reading, Reading::Under(..))
    }

    /// Returns `true` once after each try, so that other events are sent before the next try.
    pub(super) fn lets_others_go_first(&mut self) -> bool {
        std::mem::take(&mut self.was_try)
    }

    /// Returns `true` if the try of an event is due, and its file is not being read.
    pub(super) fn is_due(&self) -> bool {
        self.next_try().is_some_and(|at| at <= Instant::now())
    }

    /// Makes the event at this position the next one, because another address can be asked.
    pub fn try_next(&mut self, position: Position) {
        if let Some(mut kept) = self.take_waiting(position) {
            kept.retrial.at_once();
            self.keep(position, kept);
            (self.next, self.was_try) = (Some(position), false);
            self.rests_until = Instant::now();
        }
    }

    /// Returns the event whose try is due, if its file is read. An event that can't be read is
    /// doomed.
    pub(super) fn next_due(&mut self) -> Option<Batch> {
        let now = Instant::now();
        if now < self.rests_until {
            return None;
        }
        loop {
            while let Some((due, position)) = self.due.first().copied()
                && due <= now
            {
                self.due.pop_first();
                let slow = self.events.get(&position).map_or(0, |(_, kept)| kept.slow);
                self.overdue.insert((slow, position));
            }
            let first = self.overdue.first().map(|(_, position)| *position);
            let position = self.next.or(first)?;
            match self.line(position) {
                Line::Is(line) => {
                    let (_, kept) = self.events.get(&position)?;
                    return Some(kept.batch(position, line));
                }
                Line::Dropped => drop(self.take(position)?),
                Line::NotYet => return None,
                Line::Gone(why) => {
                    let kept = self.take_waiting(position)?;
                    self.doom(position, kept, Reason::unreadable(&why));
                    // The end of this read wakes the loop, which then gives the event up.
                    self.line(position);
                }
            }
        }
    }

    fn is_waiting(&self, position: Position) -> bool {
        matches!(self.events.get(&position), Some((Stage::Waits, _)))
    }

    /// Puts an event on the wire. `answers` is the number of responses that have turned something
    /// down.
    pub fn sent(&mut self, position: Position, answers: u64) {
        if let Some(mut kept) = self.take_waiting(position) {
            kept.attempts += 1;
            kept.sent_at = answers;
            self.bytes += kept.event.bytes;
            self.on_wire += 1;
            (self.sent_at, self.was_try) = (Instant::now(), true);
            self.events.insert(position, (Stage::OnWire, kept));
        }
    }

    /// Returns the next event to give up, with its line. `None` if there is none, or while its file
    /// is being read. If the file can't be read, the line is empty, and the reason says so. The
    /// caller settles the event.
    pub(super) fn next_doomed(&mut self) -> Option<(Position, Kept, Bytes, Reason)> {
        loop {
            let position = *self.doomed.front()?;
            let (line, why) = match self.line(position) {
                Line::Is(line) => (line, None),
                Line::Dropped => {
                    drop(self.take(position)?);
                    continue;
                }
                Line::NotYet => return None,
                Line::Gone(why) => (Bytes::new(), Some(Reason::unreadable(&why))),
            };
            let (Stage::Doomed(reason), kept) = self.take(position)? else { return None };
            return Some((position, kept, line, why.unwrap_or(reason)));
        }
    }

    /// Returns the line of an event, or begins to read its file.
    fn line(&mut self, position: Position) -> Line {
        if !self.shelf.is_durable() {
            let line = self.events.get(&position).and_then(|(_, kept)| kept.line.upgrade());
            return line.map_or(Line::Dropped, |line| Line::Is(Bytes::clone(&line)));
        }
        // A loop that always has a response to handle never waits in `readable`.
        if let Reading::Under(of, task) = &mut self.reading
            && let Some(read) = task.now_or_never()
        {
            self.reading = Reading::Done(*of, Read::of(read));
        }
        match std::mem::take(&mut self.reading) {
            Reading::Done(of, read) if of == position => match read {
                Ok(Read { line, more, reason }) => {
                    if let Some((_, kept)) = self.events.get_mut(&position) {
                        kept.event.received = more.received;
                        kept.audit_id = audit_id(&line);
                        if &*kept.answer == BEFORE_START {
                            kept.answer = reason.into();
                            if more.refused {
                                kept.retrial.refused_before();
                            }
                        }
                    }
                    Line::Is(line)
                }
                Err(why) => Line::Gone(why),
            },
            Reading::Under(of, task) => {
                self.reading = Reading::Under(of, task);
                Line::NotYet
            }
            Reading::Idle | Reading::Done(..) => {
                let shelf = self.shelf.clone();
                let task = tokio::task::spawn_blocking(move || read(&shelf, position));
                self.reading = Reading::Under(position, task);
                Line::NotYet
            }
        }
    }

    /// Waits until the current file is read. Never returns if no file is being read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn readable(&mut self) {
        let Reading::Under(position, task) = &mut self.reading else {
            return std::future::pending().await;
        };
        let (position, read) = (*position, task.await);
        self.reading = Reading::Done(position, Read::of(read));
    }

    /// Waits until the files of settled events are deleted, for at most a second.
    pub async fn close(&mut self) {
        let deleted = async { while self.deleting.join_next().await.is_some() {} };
        tokio::time::timeout(CLOSING, deleted).await.ok();
    }

    /// Deletes the files of all events, because the output leaves the queue and counts them as
    /// lost.
    pub async fn clear(mut self) {
        let positions: Vec<_> = self.events.keys().copied().collect();
        positions.into_iter().for_each(|position| self.forget(position));
        self.close().await;
    }
}

impl Kept {
    /// `answer` is the consumer's last response. The size and the time are set when the line is
    /// read again.
    pub(crate) fn new(retrial: Retrial, answer: &str, attempts: u32) -> Self {
        let event = queue::Aside { bytes: 0, received: 0 };
        let (audit_id, line) = (Arc::default(), Weak::new());
        let answer = answer.into();
        Self { retrial, answer, event, attempts, sent_at: 0, audit_id, slow: 0, line }
    }

    pub fn batch(&self, position: Position, line: Bytes) -> Batch {
        let claim = Claim { start: position, end: position.next() };
        let queue::Aside { received, .. } = self.event;
        let acceptance = Acceptance { first: position, events: 1, age: self.event.age(), received };
        let bytes = line.len() as u64;
        Batch {
            events: 1,
            bytes,
            pieces: vec![line],
            acceptances: vec![acceptance],
            ..Batch::of(claim)
        }
    }

    /// Returns `true` if the consumer turns the event down in another way than by a refusal.
    pub(super) fn fails(&self) -> bool {
        self.retrial.answer == Answer::Failed
    }
}

/// Returns the `auditID` of an event for the log and `/status`: shortened, because a client may
/// have chosen it. The log escapes it.
fn audit_id(line: &[u8]) -> Arc<str> {
    let id = shape::audit_id(line).and_then(audit::scan::string).unwrap_or_default();
    String::from_utf8_lossy(&id[..id.len().min(AUDIT_ID_MAX)]).into()
}

/// Reads the file of an event. Blocks the thread.
fn read(shelf: &Shelf, position: Position) -> Result<Read, String> {
    let loaded = shelf.load(position).map_err(|error| error.to_string())?;
    let damaged = |what: &dyn Display| format!("the file of the event is damaged: {what}");
    let Letter { reason, received, refused, event } =
        serde_json::from_slice(&loaded.content).map_err(|error| damaged(&error))?;
    let event = event.get().as_bytes();
    if shelf.is_changed(position, event) {
        return Err("somebody has changed the file of the event".to_owned());
    }
    if let Some(damage) = loaded.damage {
        return Err(damaged(&damage));
    }
    Ok(Read { line: line(event), more: More { received, refused }, reason })
}

#[cfg(test)]
pub(super) mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::in_flight::tests::opened;
    use telemetry::Telemetry;

    /// Returns an empty value with a directory, which is deleted when the second value is dropped.
    pub(crate) fn with_directory() -> (Aside, TempDir) {
        let directory = TempDir::new().unwrap();
        let text = format!(
            "[[listener]]\naddress = '127.0.0.1:0'\n[queue]\ndirectory = {:?}\n[[output]]\n\
             name = 'o'\ntype = 'stdout'\n",
            directory.path()
        );
        let config = config::read(&text, testing_config::TYPES).config.expect("it is right");
        let (_queue, cursor) = opened(&config, &Arc::new(Telemetry::new()));
        (Aside::new(&cursor), directory)
    }

    /// Sets the event at a position aside, with a try that is due immediately.
    async fn set_aside(aside: &mut Aside, position: Position) {
        let mut kept = Kept::new(Retrial::found(), "400", 1);
        kept.retrial.at_once();
        let file = aside.store("o", position, &kept, b"{}");
        file.expect("there is a directory").await.unwrap().unwrap();
        aside.add(position, kept, b"{}\n", Weak::new());
    }

    /// Method: a stack on which a call for each level has no room.
    #[tokio::test]
    async fn the_file_of_an_event_of_ten_thousand_levels_is_read() {
        let (aside, _directory) = with_directory();
        let deep = format!("{}{}", "[".repeat(10_005), "]".repeat(10_005));
        let deep = format!(r#"{{"auditID":"a","requestObject":{deep}}}"#);
        let (position, kept) = (Position::new(7), Kept::new(Retrial::found(), "400", 1));
        let file = aside.store("o", position, &kept, deep.as_bytes());
        file.expect("there is a directory").await.unwrap().unwrap();
        let shelf = aside.shelf.clone();
        let stack = std::thread::Builder::new().stack_size(256 * 1024);
        let read = stack.spawn(move || read(&shelf, position)).unwrap().join().unwrap();
        assert!(read.is_ok_and(|read| read.line == line(deep.as_bytes())));
    }

    /// Method: small events fill the room. Then a small, a larger and a very large one come.
    #[tokio::test]
    async fn a_large_event_pushes_out_few_others() {
        let (mut aside, _directory) = with_directory();
        let small = aside.bytes_max / 20;
        for position in 0..20 {
            let mut kept = Kept::new(Retrial::found(), "400", 1);
            kept.event.bytes = small;
            // The last one may be an accident.
            kept.retrial.tries = if position < 19 { 10 } else { 1 };
            aside.add(Position::new(position), kept, b"{}\n", Weak::new());
        }
        for (bytes, has_room, doomed) in [
            (aside.bytes_max, false, 0),
            (small * 9, false, 0),
            (small, true, 1),
            (small * 7, true, 7),
        ] {
            assert_eq!(aside.make_room(bytes, false), has_room, "{bytes}");
            assert_eq!(aside.doomed.len(), doomed, "{bytes}");
        }
        assert!(!aside.make_room(small * 12, true), "nothing may be given up");
        let oldest: Vec<_> = aside.doomed.iter().map(|position| position.get()).collect();
        assert_eq!(oldest, [0, 1, 2, 3, 4, 5, 6]);
    }

    /// A loop whose consumer always has a response ready never waits for a read, but must try
    /// events and give them up nevertheless.
    #[tokio::test]
    async fn a_file_that_was_read_is_used_by_a_loop_that_never_waits_for_it() {
        let (mut aside, _directory) = with_directory();
        set_aside(&mut aside, Position::new(0)).await;
        set_aside(&mut aside, Position::new(1)).await;
        let (tried, given_up) = (Position::new(1), Position::new(0));
        aside.try_next(tried);
        let kept = aside.take_waiting(given_up).expect("it waits");
        aside.doom(given_up, kept, Reason::unreadable("it is given up"));
        let (mut trying, mut letters) = (None, None);
        for _ in 0..10_000 {
            letters = letters.or_else(|| aside.next_doomed());
            trying = trying.or_else(|| aside.next_due());
            if trying.is_some() && letters.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (position, _, line, _) = letters.expect("its file was read");
        assert_eq!((position, &line[..]), (given_up, &b"{}\n"[..]));
        assert_eq!(trying.expect("its file was read").claim.start, tried);
    }

    /// Another address must be asked about the second event without a pause, although the first
    /// event is older and due as well.
    #[tokio::test]
    async fn the_event_to_try_next_is_tried_next_when_its_file_was_read() {
        let (mut aside, _directory) = with_directory();
        set_aside(&mut aside, Position::new(0)).await;
        set_aside(&mut aside, Position::new(1)).await;
        aside.try_next(Position::new(1));
        for expected in [1, 0] {
            let batch = loop {
                match aside.next_due() {
                    Some(batch) => break batch,
                    None => aside.readable().await,
                }
            };
            assert_eq!(batch.claim.start, Position::new(expected));
            aside.sent(batch.claim.start, 0);
        }
    }
}
