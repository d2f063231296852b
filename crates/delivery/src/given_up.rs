//! The events that leave the queue without having been delivered: those that are set aside, and
//! those that a delivery gives up. It gives up events that the consumer refuses although it accepts
//! others, events that the protocol can't carry, and events that were not delivered in
//! `retry.max_elapsed`.
//!
//! Their lines are read from the queue. Events that are given up are handed over to be written as
//! dead letters, if the config names a place for them. A claim becomes final when its events are
//! written, or when it is clear that they can't be written.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::aside::{Aside, Kept};
use super::dead_letter::{CLAIMS_MAX, DeadLetters, GROUP_BYTES_MAX, PATIENCE, Writing, Written};
use super::failure::Failure;
use super::filtering::{Filtering, INSPECTED_BYTES_MAX};
use super::health::Health;
use super::in_flight::{InFlight, State, Work};
use super::reason::Reason;
use super::tried::Tried;
use base::position::Position;
use config::{BatchLimits, Rejected};
use queue::{Batch, Claim, Cursor, Disposition, Redelivery, Take};
use telemetry::{Cause, LostAs};

/// The claims of one output whose events leave the queue without having been delivered. This value
/// holds a claim from the decision until its events are written: as dead letters, or in the place
/// of the events that are set aside. The ledger owns this value.
///
/// Phases of a claim: *doomed*, until its lines are in memory and the writer of dead letters has
/// room for them; then *ending*, until the dead letters are written. If dead letters are not kept,
/// a claim becomes final at the end of the first phase (without a filter, its lines are not needed
/// then). In both phases, `InFlight` has the claim in the state `State::Burying`.
///
/// Invariants: at most about `GROUP_BYTES_MAX` bytes of lines, and `CLAIMS_MAX` claims, wait for
/// the writer. At these limits, nothing is sent, because further events might have to be given up
/// too. Each event that is given up is counted once, when its claim becomes final.
pub(crate) struct GivenUp {
    /// The output's name, which is written into its dead letters.
    output: Arc<str>,
    /// The writer of dead letters; `None` if events that are given up are only counted, and not
    /// kept.
    place: Option<DeadLetters>,
    /// `true` because of `rejected.action = "retry"`: nothing is given up because of an answer.
    keeps_all: bool,
    /// The claims that are to be given up, in the order of the decisions. The lines of these claims
    /// are not yet handed over to the writer of dead letters.
    doomed: VecDeque<Doomed>,
    /// The claims whose dead letters are being written. They are in the order in which their lines
    /// were handed over to the writer of dead letters.
    endings: VecDeque<Ending>,
    /// The bytes of the lines of all claims in `endings`.
    bytes: u64,
    /// `true` if the lines of the next claim that is to be given up must first be read from the
    /// queue's files, with [`InFlight::readable`]. `false` if they are in memory, or if nobody has
    /// asked for them yet.
    pub(super) needs_lines: bool,
    /// For the events that are not final: the times at which they were first tried (sent, or not
    /// sent because there was no connection). They show which events are too old to be tried again.
    /// `None` if `retry.max_elapsed` is not set, so that no event gets too old.
    tried: Option<Tried>,
    /// The error of the last failed connection. Events of the queue that are too old are given up
    /// with this error as their reason. `None` while there is a connection. Also `None` when the
    /// queue has no more events that are too old, and always if `retry.max_elapsed` is not set.
    failed: Option<Arc<str>>,
}

/// A claim whose events leave the queue as soon as its lines are in memory.
struct Doomed {
    claim: Claim,
    /// The number of the claim's events that are to be sent. The number may be inexact, because the
    /// lines of the claim are not read again yet.
    events: u64,
    /// The record of the event, if it is set aside. `None` if the events are given up.
    aside: Option<Kept>,
    /// The maximum number of the claim's events that count as lost. The consumer has the others,
    /// and nobody knows which, so all events of the claim become dead letters. [`u64::MAX`] if all
    /// are lost.
    lost_max: u64,
    reason: Reason,
}

/// The events that are being written.
pub(super) enum Of {
    /// A claim of the queue, which becomes final.
    Claim(Claim),
    /// An event that was set aside, which is settled.
    Aside(Position, queue::Aside),
    /// A claim of one event, with its line, which is set aside.
    SetAside(Claim, Box<Kept>, Bytes),
}

/// The write that is waited for.
enum Write {
    Letters(Writing),
    /// The file of an event that is set aside, and the moment at which the wait for it ends.
    File(JoinHandle<std::io::Result<()>>, Instant),
}

impl Write {
    /// Waits for the result.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped. After the method has returned it must not be
    /// called again.
    async fn done(&mut self) -> Written {
        let (file, deadline) = match self {
            Self::Letters(writing) => return writing.done().await,
            Self::File(file, deadline) => (file, *deadline),
        };
        let error = match tokio::time::timeout_at(deadline, file).await {
            Ok(Ok(Ok(()))) => return Written { events: 1, error: None },
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(panic)) => panic.to_string(),
            Err(_) => "the disk does not answer".to_owned(),
        };
        Written { events: 0, error: Some(error) }
    }
}

/// Events that leave the queue as soon as they are written.
struct Ending {
    of: Of,
    /// The numbers of the claim's events that the consumer did not get: lost, dropped by the
    /// filter, or duplicates.
    disposition: Disposition,
    /// The number of lines that are being written for this claim. It is larger than the number of
    /// lost events if nobody knows which of the events are lost.
    events: u64,
    /// The bytes of the lines that are being written for this claim.
    bytes: u64,
    reason: Reason,
    write: Write,
}

impl GivenUp {
    pub(crate) fn new(config: &config::Output, dead_letters: DeadLetters) -> Self {
        Self {
            output: Arc::from(config.name.as_str()),
            place: (config.rejected == Rejected::DeadLetter).then_some(dead_letters),
            keeps_all: config.rejected == Rejected::Retry,
            doomed: VecDeque::new(),
            endings: VecDeque::new(),
            bytes: 0,
            needs_lines: false,
            tried: config.retry.max_elapsed.map(Tried::new),
            failed: None,
        }
    }

    /// Returns `true` if the dead letters that wait to be written have reached a limit, so that
    /// nothing more should be sent.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= GROUP_BYTES_MAX || self.endings.len() >= CLAIMS_MAX
    }

    /// Returns `true` if no claim waits for its dead letters to be written.
    pub(super) fn is_ended(&self) -> bool {
        self.endings.is_empty()
    }

    /// Notes that the lines of the next claim that is to be given up are in memory. Returns `true`
    /// if they had to be read from files, and `false` if they were in memory already.
    pub(super) fn lines_are_read(&mut self) -> bool {
        std::mem::take(&mut self.needs_lines)
    }

    /// Decides to give up a claim for `reason`, or to set its one event aside: then `aside` is the
    /// record of the event. Both happen later, when the claim's lines are in memory. At most
    /// `lost_max` of its events then count as lost. If the consumer has some of them and nobody
    /// knows which, all events become dead letters.
    pub(crate) fn add(
        &mut self,
        work: Work,
        aside: Option<Kept>,
        lost_max: u64,
        reason: Reason,
        in_flight: &mut InFlight,
    ) {
        let Work { claim, events, .. } = work;
        in_flight.bury(work);
        self.doomed.push_back(Doomed { claim, events, aside, lost_max, reason });
    }

    /// Forgets the claims in `doomed`: they are to be given up, but their lines are not yet handed
    /// over to the writer of dead letters. The caller has set the cursor back. The queue hands out
    /// the same events again, in new claims, and it is then decided again what happens to them.
    pub(super) fn rewound(&mut self) {
        self.doomed.clear();
    }

    /// Notes that the events of this claim are being sent now. If an event was never sent before,
    /// this is the time of its first attempt.
    pub(crate) fn tried(&mut self, claim: Claim, cursor: &Cursor) {
        if let Some(tried) = &mut self.tried {
            tried.note(claim, cursor.watermark());
        }
    }

    /// Returns the reason for giving up events that were not delivered within `retry.max_elapsed`.
    /// `error` is the text of the last error.
    fn too_old(tried: &Tried, error: &str) -> Reason {
        let after = tried.max_elapsed;
        let text =
            format!("not delivered in {after:?} (retry.max_elapsed), the last error: {error}");
        Reason::new(Cause::TooOld, &text)
    }

    /// Decides, after a failure, to give up all claims in the state `state` that are too old. A
    /// claim is too old when all its events were first sent at least `retry.max_elapsed` ago. The
    /// state is `Pending` or `Suspect`, so these claims are not being sent now.
    pub(super) fn take_old(&mut self, state: State, failure: &Failure, in_flight: &mut InFlight) {
        let Some(tried) = &self.tried else { return };
        let until = tried.over_until();
        let reason = Self::too_old(tried, &failure.message);
        while let Some(work) = in_flight.first(state).filter(|work| work.claim.end <= until) {
            let (claim, events) = (work.claim, work.events);
            in_flight.change(claim, State::Burying);
            let (aside, lost_max, reason) = (None, u64::MAX, reason.clone());
            self.doomed.push_back(Doomed { claim, events, aside, lost_max, reason });
        }
    }

    /// Decides, after a failure, to give up all events that wait to be sent again and are too old:
    /// they were first sent, or set aside, at least `retry.max_elapsed` ago.
    pub(super) fn take_all_old(&mut self, failure: &Failure, parts: &mut Parts<'_>) {
        for state in [State::Pending, State::Suspect] {
            self.take_old(state, failure, parts.in_flight);
        }
        let Some(tried) = &self.tried else { return };
        parts.aside.doom_older(tried.max_elapsed, &Self::too_old(tried, &failure.message));
    }

    /// Notes that there is no connection any more, because of `failure`. This counts as a failed
    /// attempt for every event that is not final.
    pub(super) fn all_failed(&mut self, failure: &Failure) {
        if self.tried.is_some() {
            self.failed = Some(Arc::from(failure.message.as_str()));
        }
    }

    /// Notes that there is a connection again.
    pub(crate) fn connected(&mut self) {
        (self.failed, self.needs_lines) = (None, false);
    }

    /// Gives up the next events of the queue, as long as they are too old. The next batch after
    /// these events counts as tried now, unless it was tried before. Called while there is no
    /// connection, and when no claim waits to be sent again. Does nothing before
    /// [`GivenUp::all_failed`], and while other claims are being given up. If the result is `true`,
    /// there may be more to do; the loop should first yield to the runtime.
    pub(super) fn next_old(&mut self, parts: &mut Parts<'_>, max: BatchLimits) -> bool {
        let mut inspected = 0;
        while self.endings.is_empty()
            && self.doomed.is_empty()
            && !self.needs_lines
            && let (Some(error), Some(tried)) = (&self.failed, &mut self.tried)
        {
            let until = tried.over_until();
            let cursor = parts.in_flight.cursor();
            let old = until.saturating_since(cursor.position());
            let events = if old > 0 { old } else { u64::MAX }.min(max.max_events);
            match parts.in_flight.claim_next(Take { bytes: max.max_bytes, events }) {
                Some(batch) if batch.claim.end <= until => {
                    let reason = Self::too_old(tried, error);
                    let claim = batch.claim;
                    inspected += batch.bytes;
                    let cursor = parts.in_flight.cursor();
                    let (lines, disposition) = parts.filtering.originals(batch, cursor);
                    self.end_with(Of::Claim(claim), disposition, lines, reason, parts);
                    if inspected >= INSPECTED_BYTES_MAX {
                        return true;
                    }
                }
                Some(batch) => {
                    tried.note(batch.claim, parts.in_flight.cursor().watermark());
                    parts.in_flight.rewind();
                    self.failed = None;
                }
                None if parts.in_flight.cursor().is_at_end() => self.failed = None,
                None => self.needs_lines = true,
            }
        }
        false
    }

    /// Gives up the claims in `doomed` and the events that were set aside and are doomed, or sets
    /// claims aside. Hands over their lines to be written, until there is no more room, or the next
    /// lines must first be read from files. If the result is `true`, there may be more to do; the
    /// loop should first yield to the runtime.
    pub(super) fn bury(&mut self, parts: &mut Parts<'_>) -> bool {
        let mut inspected = 0;
        while !self.is_full()
            && inspected < INSPECTED_BYTES_MAX
            && let Some((position, kept, line, reason)) = parts.aside.next_doomed()
        {
            inspected += line.len() as u64;
            self.give_up_aside(position, &kept, line, reason, parts);
        }
        while !self.is_full() && !self.needs_lines && inspected < INSPECTED_BYTES_MAX {
            let Some(mut doomed) = self.doomed.pop_front() else { break };
            let (claim, lost_max) = (doomed.claim, doomed.lost_max);
            if doomed.aside.is_none() && self.place.is_none() && !parts.filtering.is_enabled() {
                // A released claim may have been dropped by the queue already.
                if parts.in_flight.take_back(claim) {
                    let disposition = Disposition::lost(doomed.events.min(lost_max));
                    self.end_with(Of::Claim(claim), disposition, Vec::new(), doomed.reason, parts);
                }
                continue;
            }
            match parts.in_flight.redeliver(claim) {
                Redelivery::Batch(batch) => {
                    inspected += batch.bytes;
                    if let Some(kept) = doomed.aside.take() {
                        self.set_aside(batch, kept, doomed.reason, parts);
                        continue;
                    }
                    let (lines, mut disposition) = parts.letters(batch, doomed.reason.cause);
                    disposition.lost = disposition.lost.min(lost_max);
                    self.end_with(Of::Claim(claim), disposition, lines, doomed.reason, parts);
                }
                Redelivery::Gone => {
                    parts.filtering.give_up(claim);
                }
                Redelivery::NotYet => {
                    self.doomed.push_front(doomed);
                    self.needs_lines = true;
                }
            }
        }
        inspected >= INSPECTED_BYTES_MAX
    }

    /// Sets the one event of a batch aside, which was read again. An event that the filter keeps
    /// back by now is final instead. With a directory the claim is final when the file of the event
    /// is synced.
    fn set_aside(&mut self, batch: Batch, mut kept: Kept, reason: Reason, parts: &mut Parts<'_>) {
        let claim = batch.claim;
        let (lines, disposition) = parts.filtering.originals(batch, parts.in_flight.cursor());
        let [line] = lines.as_slice() else {
            parts.in_flight.finish_claim(claim, disposition);
            return;
        };
        let (position, received) = (claim.start, parts.in_flight.cursor().received(claim));
        let event = queue::Aside { bytes: line.len() as u64, received };
        if !self.keeps_all {
            parts.aside.make_room(event.bytes);
        }
        kept.event = event;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let storing = parts.aside.store(&self.output, position, &kept, text);
        let of = Of::SetAside(claim, Box::new(kept), line.clone());
        let Some(file) = storing else { return Self::settle(of, disposition, true, parts) };
        let (bytes, deadline) = (event.bytes, Instant::now() + PATIENCE);
        self.bytes += bytes;
        let write = Write::File(file, deadline);
        self.endings.push_back(Ending { of, disposition, events: 1, bytes, reason, write });
    }

    /// Gives up an event that was set aside. `line` is empty if it can't be read.
    fn give_up_aside(
        &mut self,
        position: Position,
        kept: &Kept,
        line: Bytes,
        reason: Reason,
        parts: &mut Parts<'_>,
    ) {
        let of = Of::Aside(position, kept.event);
        if line.is_empty() {
            let Reason { cause, text } = &reason;
            parts.health.given_up(1, *cause, LostAs::Unwritten, text);
            return Self::settle(of, Disposition::lost(1), true, parts);
        }
        let (lines, disposition) = parts.letters(kept.batch(position, line), reason.cause);
        self.end_with(of, disposition, lines, reason, parts);
    }

    /// Gives up the lost events of a claim, or an event that was set aside. `disposition` counts
    /// the events that the consumer did not get, and `lines` has the lines of those that are, or
    /// may be, lost. The lines are handed over to be written as dead letters, and the claim becomes
    /// final after that. If dead letters are not kept, or no event is lost, it becomes final at
    /// once.
    pub(super) fn end_with(
        &mut self,
        of: Of,
        disposition: Disposition,
        lines: Vec<Bytes>,
        reason: Reason,
        parts: &mut Parts<'_>,
    ) {
        let events = count(&lines);
        if disposition.lost == 0 && events == 0 {
            // No event of the claim is lost: the filter would not have sent any of them.
            return Self::settle(of, disposition, true, parts);
        }
        let bytes = lines.iter().map(|piece| piece.len() as u64).sum();
        let Reason { cause, text } = &reason;
        let place = self.place.as_ref();
        let Some(writing) = place.and_then(|place| place.write(&self.output, lines, text)) else {
            parts.health.given_up(disposition.lost, *cause, LostAs::Dropped, text);
            return Self::settle(of, disposition, true, parts);
        };
        self.bytes += bytes;
        if let Of::Claim(claim) = of {
            parts.in_flight.change(claim, State::Burying);
        }
        let write = Write::Letters(writing);
        self.endings.push_back(Ending { of, disposition, events, bytes, reason, write });
    }

    /// Makes a claim final, or settles an event that was set aside. `is_stored` is `false` if the
    /// file of an event that is set aside could not be written: its claim is then sent again.
    fn settle(of: Of, disposition: Disposition, is_stored: bool, parts: &mut Parts<'_>) {
        let Parts { in_flight, aside, health, .. } = parts;
        match of {
            Of::Claim(claim) => in_flight.finish_claim(claim, disposition),
            Of::Aside(position, event) => {
                in_flight.cursor().settle_aside(position, event, disposition);
                aside.forget(position);
                health.aside(aside, None);
            }
            Of::SetAside(claim, kept, line) if is_stored => {
                in_flight.set_aside(claim, kept.event.bytes);
                aside.add(claim.start, *kept, line);
                health.aside(aside, Some(claim.start));
            }
            Of::SetAside(claim, ..) => in_flight.release(claim),
        }
    }

    /// Waits for the result of the oldest write that has no result yet, and returns this result.
    /// Never returns if nothing is being written.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn written(&mut self) -> Written {
        match self.endings.front_mut() {
            Some(ending) => ending.write.done().await,
            None => std::future::pending().await,
        }
    }

    /// Makes a claim final, because its events have a result: they are written, or can't be
    /// written. It is the claim whose lines were handed over first. `written` is the result that
    /// [`GivenUp::written`] returned. Returns the disk's error if an event could not be set aside.
    #[must_use]
    pub(crate) fn end(&mut self, written: Written, parts: &mut Parts<'_>) -> Option<String> {
        let Ending { of, mut disposition, events, bytes, reason, .. } = self.endings.pop_front()?;
        let Reason { cause, text } = reason;
        self.bytes -= bytes;
        if matches!(of, Of::SetAside(..)) {
            Self::settle(of, disposition, written.error.is_none(), parts);
            return written.error;
        }
        let lost = disposition.lost;
        if written.events >= events {
            disposition.fates.kept_as_dead_letters();
        }
        Self::settle(of, disposition, true, parts);
        let health = &parts.health;
        health.metrics.fates.dead_letters.increment(written.events);
        // If only some letters are written, and nobody knows which of the events are lost, those
        // without a letter count as lost first.
        let unwritten = events.saturating_sub(written.events).min(lost);
        let in_letters = lost - unwritten;
        health.given_up(in_letters, cause, LostAs::DeadLetter, &text);
        if let Some(error) = written.error {
            health.given_up(unwritten, cause, LostAs::Unwritten, &format!("{error}; {text}"));
        }
        None
    }
}

/// The parts of the ledger that events leave.
pub(crate) struct Parts<'a> {
    pub in_flight: &'a mut InFlight,
    pub aside: &'a mut Aside,
    pub(super) filtering: &'a mut Filtering,
    pub health: &'a mut Health,
}

impl Parts<'_> {
    /// Takes a batch that is given up because of `cause`. Returns the lines for the dead letters:
    /// as they were received, or redacted if the events are too long for the protocol. Also returns
    /// how many of the events are lost, dropped by the filter, or duplicates.
    fn letters(&mut self, batch: Batch, cause: Cause) -> (Vec<Bytes>, Disposition) {
        let Self { in_flight, filtering, health, .. } = self;
        match cause {
            Cause::TooLong => filtering.too_long(batch, in_flight.cursor(), &health.metrics),
            Cause::Refused | Cause::TooOld | Cause::Unreadable => {
                filtering.originals(batch, in_flight.cursor())
            }
        }
    }
}

/// Returns the number of events in these lines.
fn count(lines: &[Bytes]) -> u64 {
    lines.iter().map(|piece| memchr::memchr_iter(b'\n', piece).count() as u64).sum()
}
