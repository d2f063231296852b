//! The loop that moves one cursor: take from the queue, send, wait for the consumer's word, finish.
//!
//! It is generic over what a connection is, and knows no protocol. Back-off, retries, order, and what "refused for good"
//! takes are decided here. It never gives up: what it cannot deliver stays in the queue.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::health::Health;
use super::retry::Retry;
use crate::config::BatchLimits;
use crate::config::Rejected;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Cursor;
use crate::queue::Position;
use crate::queue::Retaken;
use crate::queue::Take;
use crate::telemetry::AttemptError;

/// Events of later batches that are tried, and held, while a consumer refuses everything. Beyond it, only those held
/// are tried.
const SUSPECTS_MAX: usize = if cfg!(test) { 20 } else { 10_000 };

/// A consumer that broke the last connection before it took anything counts as up only when it has kept the next one
/// for so long: one that refuses our certificate, or everybody, does so at once.
const PROVEN_AFTER: Duration = Duration::from_secs(1);

/// The longest pause while the relay drains.
const DRAIN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Makes connections.
pub(super) trait Connect: Send {
    /// What it makes.
    type Link: Link;

    /// Whether a connection is made at the start, before there is anything to send.
    const EAGER: bool;

    /// Tries every address once.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Link, Failure>> + Send;
}

/// A connection with a window: several batches may be on the wire.
pub(super) trait Link: Send {
    /// How much may be sent now; `None` while the window is full.
    fn room(&self) -> Option<Take>;

    /// Hands over a batch, which was taken within [`Link::room`].
    fn send(&mut self, batch: Batch);

    /// Does the work of the connection until there is something to say. Polled also while nothing is on the wire, so
    /// that the peer's closing is seen.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped; it is called again.
    fn event(&mut self) -> impl Future<Output = Event> + Send;

    /// Which of several consumers the last event came from.
    fn consumer(&self) -> usize {
        0
    }

    /// Ends the connection in order, within bounded time.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// What became of something.
#[derive(Debug)]
pub(super) enum Event {
    /// Final: the consumer has it, `lost` events apart that can't be put in its protocol.
    Accepted { claim: Claim, lost: u64 },
    /// The consumer objects to the events themselves.
    Refused(Claim, Failure),
    /// There is room again, without anything having become final.
    Room,
    /// To be sent again; the link works on.
    Failed(Claim, Failure),
    /// The link is gone, and everything not yet accepted is to be sent again. `progress`: something was accepted on it.
    Broken { failure: Failure, progress: bool },
    /// Time to end the link in order, with nothing on the wire.
    Closed,
    /// The process can't go on.
    Fatal(String),
}

/// Something taken from the queue that is not final.
#[derive(Debug, Clone, Copy)]
struct Work {
    claim: Claim,
    events: u64,
    attempts: u32,
    /// The number of refusals before it was sent.
    sent_at: u64,
    /// Where a consumer has refused it, or what it was a part of: the number of that refusal.
    refused_at: Option<u64>,
    /// It was refused alone, and kept.
    suspected: bool,
}

/// One output's delivery. Run by one task.
pub(super) struct Delivery<C> {
    connector: C,
    cursor: Cursor,
    retry: Retry,
    health: Health,
    limits: BatchLimits,
    rejected: Rejected,
    /// Whether events leave one request after the other.
    ordered: bool,

    /// On the wire, by first position.
    wire: BTreeMap<Position, Work>,
    /// To be sent again, in order, before anything new.
    pending: VecDeque<Work>,
    /// Refused alone, in order; final only when refused again after an acceptance.
    suspects: VecDeque<Work>,
    /// What the consumer said of the last of them.
    last_refusal: Option<Failure>,
    /// Accepted after a suspect that is before them; not final until it is, so that order can be kept.
    held: Vec<Work>,
    /// A refused batch is being taken apart: one request at a time.
    isolating: bool,
    /// In this round of suspects, the next of the queue was tried.
    probed: bool,
    /// There was nothing in the queue to try.
    awaits_probe: bool,
    /// Which suspect is tried beside the first.
    turn: usize,
    /// Refusals so far.
    refusals: u64,
    /// By consumer: of what it accepted, the latest [`Work::sent_at`]. It has accepted something that was sent after so
    /// many refusals, so that a later refusal of its is about the event.
    vouched: BTreeMap<usize, u64>,
    /// No new attempt before.
    paused_until: Option<Instant>,
    /// After a failure, one attempt at a time until one succeeds.
    careful: bool,
    /// The last connection broke before anything was accepted on it.
    doubted: bool,
    /// Everything before it was on the wire once.
    sent_until: Position,
    draining: CancellationToken,
    /// The drain has ended a pause.
    hurried: bool,
}

enum Ended {
    Stopped,
    Closed,
    Broken,
    Fatal(String),
}

impl<C: Connect> Delivery<C> {
    pub(super) fn new(
        connector: C,
        cursor: Cursor,
        health: Health,
        config: &crate::config::Output,
        ordered: bool,
    ) -> Self {
        Self {
            connector,
            retry: Retry::new(&config.retry),
            health,
            limits: config.batch,
            rejected: config.rejected,
            ordered,
            wire: BTreeMap::new(),
            pending: VecDeque::new(),
            suspects: VecDeque::new(),
            last_refusal: None,
            held: Vec::new(),
            isolating: false,
            probed: false,
            awaits_probe: false,
            turn: 0,
            refusals: 0,
            vouched: BTreeMap::new(),
            paused_until: None,
            careful: false,
            doubted: false,
            sent_until: cursor.position(),
            draining: CancellationToken::new(),
            hurried: false,
            cursor,
        }
    }

    /// When the drain begins, a pause under way ends and others are short: a consumer that is back must not be missed.
    pub(super) fn draining(mut self, draining: CancellationToken) -> Self {
        self.draining = draining;
        self
    }

    /// Delivers until stopped.
    ///
    /// # Errors
    ///
    /// Where the process can't go on.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), String> {
        let mut needed = C::EAGER;
        loop {
            if !needed {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    () = self.cursor.readable() => {}
                }
            }
            needed = true;
            if let Some(until) = self.paused_until.take() {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    () = self.draining.cancelled(), if !self.hurried => self.hurried = true,
                    () = tokio::time::sleep_until(until) => {}
                }
            }
            let connecting = stop.run_until_cancelled(self.connector.connect());
            let Some(connected) = connecting.await else { return Ok(()) };
            match connected {
                Err(failure) => {
                    self.health.failed(&failure);
                    self.pause(&failure);
                }
                Ok(link) => {
                    if C::EAGER {
                        self.careful = false;
                        if !self.doubted {
                            self.health.succeeded();
                        }
                    }
                    match self.drive(link, &stop).await {
                        Ended::Stopped => return Ok(()),
                        Ended::Fatal(message) => return Err(message),
                        Ended::Broken => {}
                        Ended::Closed => needed = false,
                    }
                }
            }
        }
    }

    async fn drive(&mut self, mut link: C::Link, stop: &CancellationToken) -> Ended {
        let proven = Instant::now() + PROVEN_AFTER;
        loop {
            self.fill(&mut link);
            if self.wire.is_empty() && !self.held.is_empty() && self.cursor.is_closed() {
                // Nobody will know more of the suspects before the next start, which begins with them.
                for work in std::mem::take(&mut self.held) {
                    self.cursor.finish(work.claim, 0);
                }
            }
            let paused = self.paused_until;
            let wants = match paused {
                None => link.room().is_some() && (self.wire.is_empty() || !self.is_serial()),
                // A suspect waits for another event to be compared with.
                Some(_) => self.awaits_probe,
            };
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    link.close().await;
                    return Ended::Stopped;
                }
                event = link.event() => event,
                () = self.draining.cancelled(), if paused.is_some() && !self.hurried => {
                    self.hurried = true;
                    self.paused_until = None;
                    continue;
                }
                () = self.cursor.readable(), if wants => {
                    self.awaits_probe = false;
                    self.paused_until = None;
                    continue;
                }
                () = tokio::time::sleep_until(paused.unwrap_or(proven)), if paused.is_some() => {
                    self.paused_until = None;
                    continue;
                }
                () = tokio::time::sleep_until(proven), if C::EAGER && self.doubted => {
                    self.doubted = false;
                    self.health.succeeded();
                    continue;
                }
            };
            match event {
                Event::Accepted { claim, lost } => self.on_accepted(claim, lost, link.consumer()),
                Event::Room => {}
                Event::Refused(claim, failure) => self.on_refused(claim, &failure, link.consumer()),
                Event::Failed(claim, failure) => self.on_failed(claim, &failure),
                Event::Broken { failure, progress } => {
                    self.health.failed(&failure);
                    self.start_over();
                    // One that has lasted is no refusal, whether or not there was something to send.
                    if progress || Instant::now() >= proven {
                        self.retry.reset();
                    } else {
                        self.doubted = true;
                        self.pause(&failure);
                    }
                    return Ended::Broken;
                }
                Event::Closed => {
                    self.start_over();
                    link.close().await;
                    return Ended::Closed;
                }
                Event::Fatal(message) => return Ended::Fatal(message),
            }
        }
    }

    /// Only links that finish in order break or close as a whole, and never suspect an event.
    fn start_over(&mut self) {
        self.wire.clear();
        self.pending.clear();
        self.isolating = false;
        self.cursor.rewind();
    }

    fn is_serial(&self) -> bool {
        self.isolating || self.careful
    }

    /// Sends as long as the link has room.
    fn fill(&mut self, link: &mut C::Link) {
        while self.paused_until.is_none() && (self.wire.is_empty() || !self.is_serial()) {
            let Some(room) = link.room() else { return };
            let Some((batch, mut work)) = self.take(room) else { return };
            let again = work.attempts > 0 || work.claim.start < self.sent_until;
            if again {
                self.health.metrics.retries.increment(1);
            }
            self.sent_until = self.sent_until.max(work.claim.end);
            work.attempts += 1;
            work.sent_at = self.refusals;
            self.wire.insert(work.claim.start, work);
            link.send(batch);
        }
    }

    /// The next to send: what was sent before, then, while suspects wait, one event to compare them with, then new ones.
    fn take(&mut self, room: Take) -> Option<(Batch, Work)> {
        while let Some(mut work) = self.pending.pop_front() {
            match self.cursor.retake(work.claim) {
                Retaken::Batch(batch) => {
                    work.events = batch.events;
                    return Some((batch, work));
                }
                Retaken::Gone => {}
                Retaken::NotYet => {
                    self.pending.push_front(work);
                    return None;
                }
            }
        }
        let mut take = Take {
            bytes: room.bytes.min(self.limits.max_bytes),
            events: room.events.min(self.limits.max_events),
        };
        if !self.suspects.is_empty() {
            take.events = 1;
            if std::mem::replace(&mut self.probed, true) || self.suspects.len() >= SUSPECTS_MAX {
                self.next_round();
                return None;
            }
        } else {
            self.settle();
        }
        let Some(batch) = self.cursor.next(take) else {
            if !self.suspects.is_empty() {
                self.awaits_probe = true;
                self.next_round();
            }
            return None;
        };
        let work = Work {
            claim: batch.claim,
            events: batch.events,
            attempts: 0,
            sent_at: 0,
            refused_at: None,
            suspected: false,
        };
        Some((batch, work))
    }

    /// Everything was refused, the last probe too: wait, then try the first suspect again, and another in its turn: if
    /// the first is refused for good, and nothing new comes, only another suspect can be accepted.
    fn next_round(&mut self) {
        self.probed = false;
        if let Some(first) = self.suspects.pop_front() {
            self.pending.push_back(first);
        }
        self.turn = (self.turn + 1) % self.suspects.len().max(1);
        if let Some(another) = self.suspects.remove(self.turn) {
            self.pending.push_back(another);
        }
        if let Some(failure) = &self.last_refusal {
            self.health.down(failure);
        }
        let asked = self.last_refusal.as_ref().and_then(|failure| failure.retry_after);
        let wait = self.wait(asked);
        self.health.next_attempt(wait);
        self.paused_until = Some(Instant::now() + wait);
    }

    /// The next pause; short where the drain is what ends it.
    fn wait(&mut self, asked: Option<Duration>) -> Duration {
        let wait = self.retry.pause(asked);
        if self.draining.is_cancelled() { wait.min(DRAIN_PAUSE_MAX) } else { wait }
    }

    /// Nothing is refused, suspected or pending any more.
    fn settle(&mut self) {
        if !self.isolating || !self.wire.is_empty() {
            return;
        }
        self.isolating = false;
        for work in std::mem::take(&mut self.held) {
            self.cursor.finish(work.claim, 0);
        }
    }

    fn on_accepted(&mut self, claim: Claim, lost: u64, consumer: usize) {
        let Some(work) = self.wire.remove(&claim.start) else { return };
        let vouched = self.vouched.entry(consumer).or_default();
        *vouched = work.sent_at.max(*vouched);
        (self.careful, self.doubted) = (false, false);
        self.retry.reset();
        self.health.succeeded();
        self.health.delivered(work.events, work.attempts);
        if lost > 0 {
            self.health
                .lost(lost, &Failure::new(AttemptError::Protocol, "longer than max_message_bytes"));
        }
        let behind_suspect = self.suspects.front().is_some_and(|first| first.claim < claim);
        if self.ordered && behind_suspect {
            self.held.push(work);
        } else {
            self.cursor.finish(claim, lost);
        }
        if work.suspected {
            // It was no event's fault after all. What went ahead of it goes again, behind it.
            let (kept, ahead) =
                std::mem::take(&mut self.held).into_iter().partition(|held| held.claim < claim);
            self.held = kept;
            for ahead in ahead {
                self.cursor.release(ahead.claim);
                self.pending.push_back(ahead);
            }
        }
        self.probed = false;
        self.awaits_probe = false;
        self.pending.append(&mut self.suspects);
        self.pending.make_contiguous().sort_unstable_by_key(|work| work.claim);
    }

    /// What was on the wire beside it when it was refused says nothing: the consumer may refuse everything since. Nor does
    /// what another consumer accepts: this one's setting may be wrong.
    fn on_refused(&mut self, claim: Claim, failure: &Failure, consumer: usize) {
        let Some(mut work) = self.wire.remove(&claim.start) else { return };
        self.health.refused(failure);
        self.isolating = true;
        self.refusals += 1;
        let refused_at = *work.refused_at.get_or_insert(self.refusals);
        let vouched = self.vouched.get(&consumer).is_some_and(|sent_at| *sent_at >= refused_at);
        self.cursor.release(claim);
        if let Some((left, right)) = self.cursor.split(claim) {
            self.pending.push_front(Work { claim: right, attempts: 1, ..work });
            self.pending.push_front(Work { claim: left, attempts: 1, ..work });
        } else if self.rejected == Rejected::Retry {
            self.pending.push_front(work);
            self.health.down(failure);
            self.pause(failure);
        } else if vouched {
            // A released claim may have been dropped already.
            if self.cursor.reclaim(claim) {
                self.cursor.finish(claim, work.events);
                self.health.lost(work.events, failure);
            }
        } else {
            work.suspected = true;
            let place = self.suspects.partition_point(|other| other.claim < claim);
            self.suspects.insert(place, work);
            self.last_refusal = Some(failure.clone());
        }
    }

    fn on_failed(&mut self, claim: Claim, failure: &Failure) {
        let Some(work) = self.wire.remove(&claim.start) else { return };
        self.cursor.release(claim);
        let place = self.pending.partition_point(|other| other.claim < claim);
        self.pending.insert(place, work);
        if failure.elsewhere {
            self.health.passed_over(failure);
        } else {
            self.health.failed(failure);
            self.pause(failure);
        }
    }

    /// Failures of one moment are one reason to wait, however many requests were on the wire.
    fn pause(&mut self, failure: &Failure) {
        let asked = failure.retry_after.map(|wait| Instant::now() + wait);
        let until = match self.paused_until {
            Some(until) => until.max(asked.unwrap_or(until)),
            None => Instant::now() + self.wait(failure.retry_after),
        };
        self.careful = true;
        // Whatever a suspect waits for, the consumer has asked for a pause, or can't be reached.
        self.awaits_probe = false;
        self.paused_until = Some(until);
        self.health.next_attempt(until.saturating_duration_since(Instant::now()));
    }
}

/// The longest that an orderly end of a connection may take.
pub(super) const CLOSE_TIME: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
