//! The events that leave the queue without having been delivered. They are set aside, or a delivery
//! gives them up, for example because the protocol can't carry them.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::aside::{Aside, Kept};
use super::dead_letter::{CLAIMS_MAX, DeadLetters, GROUP_BYTES_MAX, PATIENCE, Writing, Written};
use super::filtering::{Filtering, INSPECTED_BYTES_MAX};
use super::health::Health;
use super::in_flight::{InFlight, State, Work};
use super::reason::Reason;
use base::position::Position;
use config::Rejected;
use queue::{Batch, Claim, Disposition, Redelivery};
use telemetry::{Cause, LostAs};

/// The claims of one output whose events leave the queue without having been delivered. The ledger
/// owns this value.
///
/// Phases of a claim: *doomed*, until its lines are in memory and the writer of dead letters has
/// room for them; then *ending*, until the dead letters, or the file of an event to set aside, are
/// written. If nothing is to be written, a claim ends with the first phase. In both phases,
/// `InFlight` has the claim in the state `State::Burying`.
///
/// Invariants: at most about `GROUP_BYTES_MAX` bytes of lines, and `CLAIMS_MAX` claims, wait for
/// the writer. At these limits, nothing is sent, because further events might have to be given up
/// too. Each event that is given up is counted once, when it becomes final.
pub(crate) struct GivenUp {
    output: Arc<str>,
    place: Option<DeadLetters>,
    /// `true` if `rejected.action` is `"retry"`: no event is given up to make room for another one.
    keeps_all: bool,
    doomed: VecDeque<Doomed>,
    endings: VecDeque<Ending>,
    bytes: u64,
    /// `true` if the next lines to give up must first be read with [`InFlight::readable`].
    pub(super) needs_lines: bool,
}

struct Doomed {
    claim: Claim,
    events: u64,
    /// `None` if the events are given up, and not set aside.
    aside: Option<Kept>,
    /// At most this many events count as lost. If these are not all, nobody knows which.
    lost_max: u64,
    reason: Reason,
}

pub(super) enum Of {
    /// A claim of the queue, which becomes final.
    Claim(Claim),
    /// An event that was set aside, and is settled.
    Aside(Position, queue::Aside),
    /// A claim of one event, with its line, which is set aside.
    SetAside(Claim, Box<Kept>, Bytes),
}

enum Write {
    Letters(Writing),
    File(JoinHandle<std::io::Result<()>>, Instant),
}

impl Write {
    /// Nothing is lost when the future is dropped. Must not be called again after it has returned.
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

struct Ending {
    of: Of,
    disposition: Disposition,
    /// The number of lines that are written: all events of the claim if nobody knows which are
    /// lost.
    events: u64,
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
        }
    }

    /// Returns `true` if nothing more should be sent until the result of a write is known.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= GROUP_BYTES_MAX || self.endings.len() >= CLAIMS_MAX
    }

    pub(super) fn is_ended(&self) -> bool {
        self.endings.is_empty()
    }

    /// Notes that lines were read. Returns `true` if events to be given up have waited for them.
    pub(super) fn lines_are_read(&mut self) -> bool {
        std::mem::take(&mut self.needs_lines)
    }

    /// Gives up a claim as soon as its lines are in memory. If `aside` is `Some`, sets the claim's
    /// event aside instead. At most `lost_max` of the events count as lost.
    pub(crate) fn add(
        &mut self,
        work: Work,
        aside: Option<Kept>,
        lost_max: u64,
        reason: Reason,
        in_flight: &mut InFlight,
    ) {
        let Work { claim, events, .. } = work;
        in_flight.give_back(work, State::Burying);
        self.doomed.push_back(Doomed { claim, events, aside, lost_max, reason });
    }

    /// The cursor was set back: the queue hands out the doomed events again, in new claims.
    pub(super) fn rewound(&mut self) {
        self.doomed.clear();
    }

    /// Hands over the lines of doomed claims and events, or sets claims aside, as far as there is
    /// room and lines are in memory. If the result is `true`, the loop yields and calls this
    /// function again.
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
                // The queue may have dropped a released claim already.
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

    /// Sets the event of a batch aside. If the queue has a directory, this takes effect when the
    /// event's file is synced. If the filter now drops the event, the claim becomes final instead.
    fn set_aside(&mut self, batch: Batch, mut kept: Kept, reason: Reason, parts: &mut Parts<'_>) {
        let claim = batch.claim;
        let received = batch.acceptances.first().map_or(0, |it| it.received);
        let (lines, disposition) = parts.filtering.originals(batch, parts.in_flight.cursor());
        let [line] = lines.as_slice() else {
            parts.in_flight.finish_claim(claim, disposition);
            return;
        };
        let position = claim.start;
        let event = queue::Aside { bytes: line.len() as u64, received };
        if !parts.aside.make_room(event.bytes, self.keeps_all) {
            return parts.in_flight.wait(claim);
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

    /// `line` is empty if the event can't be read.
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

    /// Gives up the events in `lines`, which are, or may be, lost. The claim becomes final when the
    /// lines are written as dead letters, or now if dead letters are not kept or there are no
    /// lines.
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
            // The filter would not have sent any of the events.
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

    /// Ends a claim or an event. If the file of an event to set aside could not be stored, its
    /// claim waits, and is sent again later.
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
                match in_flight.set_aside(claim, &line) {
                    Some(in_queue) => aside.add(claim.start, *kept, &line, in_queue),
                    None => aside.forget(claim.start),
                }
                health.aside(aside, None);
            }
            Of::SetAside(claim, ..) => in_flight.wait(claim),
        }
    }

    /// Waits for the result of the oldest write. Never returns if there is none. Nothing is lost
    /// when the future is dropped.
    pub(crate) async fn written(&mut self) -> Written {
        match self.endings.front_mut() {
            Some(ending) => ending.write.done().await,
            None => std::future::pending().await,
        }
    }

    /// Ends the oldest write. Returns the disk's error if an event could not be set aside.
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
        // If nobody knows which events are lost, those without a letter count as lost first.
        let unwritten = events.saturating_sub(written.events).min(lost);
        let in_letters = lost - unwritten;
        health.given_up(in_letters, cause, LostAs::DeadLetter, &text);
        if let Some(error) = written.error {
            health.given_up(unwritten, cause, LostAs::Unwritten, &format!("{error}; {text}"));
        }
        None
    }
}

pub(crate) struct Parts<'a> {
    pub in_flight: &'a mut InFlight,
    pub aside: &'a mut Aside,
    pub(super) filtering: &'a mut Filtering,
    pub health: &'a mut Health,
}

impl Parts<'_> {
    /// Returns the lines as received, or redacted if the events are too long for the protocol.
    fn letters(&mut self, batch: Batch, cause: Cause) -> (Vec<Bytes>, Disposition) {
        let Self { in_flight, filtering, health, .. } = self;
        match cause {
            Cause::TooLong => filtering.too_long(batch, in_flight.cursor(), &health.metrics),
            Cause::Refused | Cause::Unreadable => filtering.originals(batch, in_flight.cursor()),
        }
    }
}

fn count(lines: &[Bytes]) -> u64 {
    lines.iter().map(|piece| memchr::memchr_iter(b'\n', piece).count() as u64).sum()
}
