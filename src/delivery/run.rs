//! The loop that moves one cursor: take from the queue, send, wait for the consumer's word, finish.
//!
//! It is generic over what a connection is, and knows no protocol. Back-off, retries, order, and what "refused for good"
//! takes are decided here. It never gives up unless `retry.max_elapsed` says so: what it cannot deliver stays in the queue.
//!
//! What is given up goes to the dead letters, and its claim is finished when the letters are safe; meanwhile the rest goes
//! on.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dead_letter::DeadLetters;
use super::dead_letter::Written;
use super::failure::Failure;
use super::filtering::Filtering;
use super::filtering::INSPECTED_BYTES_MAX;
use super::given_up::GivenUp;
use super::given_up::Reason;
use super::health::Health;
use super::in_flight::Work;
use super::link::Connect;
use super::link::Event;
use super::link::Link;
use super::retry::Retry;
use crate::config::BatchLimits;
use crate::config::Rejected;
use crate::filter::Filter;
use crate::filter::Seen;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Cursor;
use crate::queue::Disposition;
use crate::queue::Position;
use crate::queue::Redelivery;
use crate::queue::Take;
use crate::telemetry::Cause;

/// Events of later batches that are tried, and held, while a consumer refuses everything. Beyond it, only those held
/// are tried.
const SUSPECTS_MAX: usize = if cfg!(test) { 20 } else { 10_000 };

/// Consumers whose acceptances are remembered. Addresses come and go, and each is one; one that is forgotten has to accept
/// something else before what it refuses is given up.
const CONSUMERS_MAX: usize = 1024;

/// A consumer that broke the last connection before it took anything counts as up only when it has kept the next one
/// for so long: one that refuses our certificate, or everybody, does so at once.
const PROVEN_AFTER: Duration = Duration::from_secs(1);

/// A delivery that is to be replaced waits so long for what is on the wire. What is not final then is sent again by its
/// successor: whoever changes the settings of an output whose consumer hangs must not wait for it.
const HAND_OVER_TIME: Duration = Duration::from_secs(10);

/// The longest pause while the relay drains.
const DRAIN_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What letters that are being written get at the end. What is not safe by then is the next start's, or lost with the queue.
const LAST_LETTERS: Duration = Duration::from_secs(1);

/// Why an event is given up that the filter could not make smaller.
const TOO_LARGE: &str = "larger than filter.max_event_bytes, also without its objects";

/// Why one is that can't be put in the protocol.
const TOO_LONG: &str = "longer than max_message_bytes";

const TOO_LARGE_OR_LONG: &str = "longer than max_message_bytes, or larger than filter.max_event_bytes, also without its objects";

/// What of the queue has left before is looked at for so long, at the start; who is not told all may send something twice.
const LOOK_BACK_TIME: Duration = Duration::from_secs(30);

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
    /// So many events are tried; more than one only while the filter keeps them back.
    probe_events: u64,
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
    orders: Orders,
    /// The drain has ended a pause.
    hurried: bool,
    given_up: GivenUp,
    filtering: Filtering,
    /// So much was looked through since others on this thread had their turn.
    sifted_bytes: u64,
}

/// What is left when a delivery ends to be replaced: nothing of it is on the wire.
pub struct HandOver {
    /// Its place in the log.
    pub cursor: Cursor,
    /// Claims that are not final, where others behind them are.
    pub claims: Vec<Claim>,
    /// What has left, where duplicates do not.
    pub seen: Option<Seen>,
}

/// What a delivery is told from outside.
#[derive(Clone, Default)]
pub struct Orders {
    /// The process ends, and first tries to deliver what it has: no long pauses any more.
    pub draining: CancellationToken,
    /// The process ends.
    pub stop: CancellationToken,
    /// Another takes its place.
    pub retire: CancellationToken,
}

/// Why a delivery has ended.
enum Done {
    Stopped,
    Retired,
}

enum Ended {
    Stopped,
    Retired,
    Closed,
    /// Without a failure it was nobody's fault.
    Broken(Option<Failure>),
    Fatal(String),
}

impl<C: Connect> Delivery<C> {
    pub(super) fn new(
        connector: C,
        cursor: Cursor,
        health: Health,
        config: &crate::config::Output,
    ) -> Self {
        Self {
            ordered: connector.is_ordered(),
            connector,
            retry: Retry::new(&config.retry),
            health,
            limits: config.batch,
            rejected: config.rejected,
            wire: BTreeMap::new(),
            pending: VecDeque::new(),
            suspects: VecDeque::new(),
            last_refusal: None,
            held: Vec::new(),
            isolating: false,
            probed: false,
            probe_events: 1,
            awaits_probe: false,
            turn: 0,
            refusals: 0,
            vouched: BTreeMap::new(),
            paused_until: None,
            careful: false,
            doubted: false,
            sent_until: cursor.position(),
            orders: Orders::default(),
            hurried: false,
            given_up: GivenUp::new(config),
            filtering: Filtering::new(None, &cursor),
            sifted_bytes: 0,
            cursor,
        }
    }

    /// Where what is given up goes, if the config says so.
    pub(super) fn dead_letters(mut self, dead_letters: DeadLetters) -> Self {
        if self.rejected == Rejected::DeadLetter {
            self.given_up.place(dead_letters);
        }
        self
    }

    /// Sends what this lets pass.
    pub(super) fn filter(mut self, filter: Option<Filter>) -> Self {
        self.cursor.tell_origins(filter.is_some());
        self.cursor.keep(filter.as_ref().and_then(Filter::window).unwrap_or_default());
        self.filtering = Filtering::new(filter, &self.cursor);
        self
    }

    /// Begins with what the delivery before it has left, in its order.
    pub(super) fn inherit(mut self, claims: Vec<Claim>) -> Self {
        self.pending = claims
            .into_iter()
            .map(|claim| Work {
                claim,
                events: claim.end - claim.start,
                attempts: 1,
                sent_at: 0,
                refused_at: None,
                suspected: false,
            })
            .collect();
        self
    }

    /// Delivers until stopped, or until another is to take its place.
    ///
    /// # Errors
    ///
    /// Where the process can't go on.
    pub(super) async fn run(mut self, orders: Orders) -> Result<Option<HandOver>, String> {
        self.orders = orders;
        let ended = self.deliver().await;
        // A letter that is all but safe would be written again.
        let retired = matches!(ended, Ok(Done::Retired));
        let wait = if retired { HAND_OVER_TIME } else { LAST_LETTERS };
        let stop = self.orders.stop.clone();
        let letters = self.given_up.all_ended(&self.cursor, &mut self.health);
        let letters = tokio::time::timeout(wait, letters);
        if retired {
            stop.run_until_cancelled(letters).await;
        } else {
            letters.await.ok();
        }
        Ok(match ended? {
            Done::Stopped => None,
            Done::Retired => Some(self.hand_over()),
        })
    }

    async fn deliver(&mut self) -> Result<Done, String> {
        let Orders { stop, retire, .. } = self.orders.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Done::Stopped),
            () = retire.cancelled() => return Ok(Done::Retired),
            _ = tokio::time::timeout(LOOK_BACK_TIME, self.filtering.look_back(&self.cursor)) => {}
        }
        let mut needed = C::EAGER;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Done::Stopped),
                () = retire.cancelled() => return Ok(Done::Retired),
                () = self.rest(needed) => {}
            }
            needed = true;
            let connected = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Done::Stopped),
                () = retire.cancelled() => return Ok(Done::Retired),
                connected = self.connector.connect() => connected,
            };
            match connected {
                Err(failure) => {
                    self.health.failed(&failure);
                    self.pause(&failure);
                    self.all_failed(&failure);
                }
                Ok(link) => {
                    self.given_up.connected();
                    if C::EAGER {
                        self.careful = false;
                        if !self.doubted {
                            self.health.succeeded();
                        }
                    }
                    match self.drive(link).await {
                        Ended::Stopped => return Ok(Done::Stopped),
                        Ended::Retired => return Ok(Done::Retired),
                        Ended::Fatal(message) => return Err(message),
                        Ended::Broken(Some(failure)) => self.all_failed(&failure),
                        Ended::Broken(None) => {}
                        Ended::Closed => needed = false,
                    }
                }
            }
        }
    }

    /// Between two connections: waits until the next is needed and may be made, and gives up what is too old.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
    async fn rest(&mut self, mut needed: bool) {
        let draining = self.orders.draining.clone();
        loop {
            let mut goes_on = self.bury();
            if self.pending.is_empty() && self.suspects.is_empty() {
                // Those that they waited for are given up; what comes next is rewound if it is not.
                self.finish_held();
                let (cursor, filtering) = (&mut self.cursor, &mut self.filtering);
                goes_on |= self.given_up.next_old(cursor, filtering, &mut self.health, self.limits);
            }
            if goes_on {
                tokio::task::yield_now().await;
                continue;
            }
            needed |= !self.pending.is_empty();
            let until = self.paused_until;
            tokio::select! {
                biased;
                written = self.given_up.written() => self.end(written),
                // When the drain begins, a pause under way ends and others are short: a consumer that is back must not be
                // missed.
                () = draining.cancelled(), if until.is_some() && !self.hurried => {
                    self.hurried = true;
                    self.paused_until = None;
                }
                () = self.cursor.readable(), if self.given_up.unread || !needed => {
                    needed |= !std::mem::take(&mut self.given_up.unread);
                }
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if needed => {
                    self.paused_until = None;
                    return;
                }
            }
        }
    }

    /// What is not final is released, to be sent by another.
    fn hand_over(mut self) -> HandOver {
        if self.pending.is_empty() && self.suspects.is_empty() {
            self.finish_held();
        }
        // What went ahead of others goes again, behind them.
        for work in self.wire.values().chain(&self.held) {
            self.cursor.release(work.claim);
        }
        self.given_up.claims().for_each(|claim| self.cursor.release(claim));
        let sent = self.wire.values().chain(&self.held);
        let left = sent.chain(&self.pending).chain(&self.suspects);
        let left = left.map(|work| work.claim).chain(self.given_up.claims());
        let mut claims: Vec<_> = left.collect();
        claims.sort_unstable();
        if self.cursor.is_in_order() {
            self.cursor.rewind();
            claims.clear();
        }
        HandOver { cursor: self.cursor, claims, seen: self.filtering.into_seen() }
    }

    async fn drive(&mut self, mut link: C::Link) -> Ended {
        let Orders { draining, stop, retire } = self.orders.clone();
        let proven = Instant::now() + PROVEN_AFTER;
        let mut retired = None;
        loop {
            if self.bury() {
                self.sifted_bytes = INSPECTED_BYTES_MAX;
            }
            if retired.is_some() && self.wire.is_empty() {
                link.close().await;
                return Ended::Retired;
            }
            if retired.is_none() {
                self.fill(&mut link);
            }
            let goes_on = self.give_way().await;
            if self.wire.is_empty() && !self.held.is_empty() && self.cursor.is_closed() {
                // Nobody will know more of the suspects before the next start, which begins with them.
                self.finish_held();
            }
            let paused = self.paused_until;
            let wants = retired.is_none() && self.wants(&link);
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    link.close().await;
                    return Ended::Stopped;
                }
                () = retire.cancelled(), if retired.is_none() => {
                    retired = Some(Instant::now() + HAND_OVER_TIME);
                    continue;
                }
                () = tokio::time::sleep_until(retired.unwrap_or(proven)), if retired.is_some() => {
                    link.close().await;
                    return Ended::Retired;
                }
                () = std::future::ready(()), if goes_on => continue,
                written = self.given_up.written() => {
                    self.end(written);
                    continue;
                }
                event = link.event() => event,
                () = draining.cancelled(), if paused.is_some() && !self.hurried => {
                    self.hurried = true;
                    self.paused_until = None;
                    continue;
                }
                () = self.cursor.readable(), if wants || self.given_up.unread => {
                    self.on_readable(wants);
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
                Event::Accepted { claim, rejected } => {
                    self.on_accepted(claim, rejected, link.consumer());
                }
                Event::Room => {}
                Event::Refused(claim, failure) => self.on_refused(claim, &failure, link.consumer()),
                Event::Failed(claim, failure) => self.on_failed(claim, &failure),
                Event::Broken { failure, progress } => {
                    self.start_over();
                    self.on_broken(&failure, progress || Instant::now() >= proven);
                    return Ended::Broken(Some(failure));
                }
                Event::Closed => {
                    self.start_over();
                    link.close().await;
                    return Ended::Closed;
                }
                #[cfg(any(feature = "kafka", test))]
                Event::Gone(failure) => {
                    self.on_gone(failure.as_ref());
                    link.close().await;
                    return Ended::Broken(failure);
                }
                #[cfg(any(feature = "kafka", test))]
                Event::Troubled(failure) => self.health.failed(&failure),
                Event::Fatal(message) => return Ended::Fatal(message),
            }
        }
    }

    /// Leaves the thread to others where much was looked through.
    async fn give_way(&mut self) -> bool {
        let is_much = self.sifted_bytes >= INSPECTED_BYTES_MAX;
        if is_much {
            self.sifted_bytes = 0;
            tokio::task::yield_now().await;
        }
        is_much
    }

    /// Whether something new in the queue would be sent, or tried.
    fn wants(&self, link: &C::Link) -> bool {
        match self.paused_until {
            None => self.may_send() && link.room().is_some(),
            // A suspect waits for another event to be compared with.
            Some(_) => self.awaits_probe,
        }
    }

    /// What is on the wire is to be sent again, in its order.
    fn take_back(&mut self) {
        for work in std::mem::take(&mut self.wire).into_values() {
            self.release(work.claim);
            self.pending.push_back(work);
        }
        self.pending.make_contiguous().sort_unstable_by_key(|work| work.claim);
    }

    /// Only links that finish in order break or close as a whole, and never suspect an event. What they have inherited
    /// from one that does not is taken again claim by claim, and so is what is behind letters that are being written.
    fn start_over(&mut self) {
        self.isolating = false;
        if self.given_up.is_ended() && self.cursor.is_in_order() {
            self.wire.clear();
            self.pending.clear();
            self.given_up.rewound();
            self.cursor.rewind();
            self.filtering.rewound(&self.cursor);
            return;
        }
        self.take_back();
    }

    fn is_serial(&self) -> bool {
        self.isolating || self.careful
    }

    /// As far as it is not the link's to say. Events that wait for their letters are held, and so bounded.
    fn may_send(&self) -> bool {
        !self.given_up.is_full()
            && !self.filtering.is_full()
            && (self.wire.is_empty() || !self.is_serial())
    }

    /// Sends as long as the link has room.
    fn fill(&mut self, link: &mut C::Link) {
        while self.paused_until.is_none()
            && self.may_send()
            && self.sifted_bytes < INSPECTED_BYTES_MAX
        {
            let Some(room) = link.room() else { return };
            let Some((batch, mut work)) = self.take(room) else { return };
            let bytes = batch.bytes;
            let batch = self.filtering.pass(batch, &self.cursor);
            work.events = batch.events;
            if batch.events == 0 {
                self.sifted_bytes += bytes;
                self.nothing_left(work.claim);
                continue;
            }
            (self.sifted_bytes, self.probe_events) = (0, 1);
            let again = work.attempts > 0 || work.claim.start < self.sent_until;
            if again {
                self.health.metrics.retries.increment(1);
            }
            self.sent_until = self.sent_until.max(work.claim.end);
            self.given_up.tried(work.claim, &self.cursor);
            work.attempts += 1;
            work.sent_at = self.refusals;
            self.wire.insert(work.claim.start, work);
            link.send(batch);
        }
    }

    /// The next to send: what was sent before, then, while suspects wait, one event to compare them with, then new ones.
    fn take(&mut self, room: Take) -> Option<(Batch, Work)> {
        // It is read for what is given up, which goes first.
        if self.given_up.unread {
            return None;
        }
        while let Some(mut work) = self.pending.pop_front() {
            match self.cursor.redeliver(work.claim) {
                Redelivery::Batch(batch) => {
                    work.events = batch.events;
                    return Some((batch, work));
                }
                Redelivery::Gone => {
                    self.filtering.give_up(work.claim);
                }
                Redelivery::NotYet => {
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
            take.events = take.events.min(self.probe_events);
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
        if self.orders.draining.is_cancelled() { wait.min(DRAIN_PAUSE_MAX) } else { wait }
    }

    /// Nothing is refused, suspected or pending any more.
    fn settle(&mut self) {
        if !self.isolating || !self.wire.is_empty() {
            return;
        }
        self.isolating = false;
        self.finish_held();
    }

    fn finish_held(&mut self) {
        for work in std::mem::take(&mut self.held) {
            self.finish(work.claim);
        }
    }

    /// The consumer has what of this claim was for it.
    fn finish(&mut self, claim: Claim) {
        let disposition = self.filtering.finish(claim, &self.health.metrics);
        self.cursor.acknowledge(claim, disposition);
    }

    /// Nothing of a claim leaves, whatever the consumer says of others.
    fn nothing_left(&mut self, claim: Claim) {
        // What was to be compared with suspects says nothing: what comes next may.
        self.probed = false;
        self.probe_events = (2 * self.probe_events).min(self.limits.max_events);
        self.sent_until = self.sent_until.max(claim.end);
        self.finish_without(claim, Vec::new());
    }

    /// A claim is final but for these events, which can't be put in the protocol, and for those that are too large.
    fn finish_without(&mut self, claim: Claim, mut lines: Vec<Bytes>) {
        let mut too_large = self.filtering.too_large(claim);
        let reason = match (lines.is_empty(), too_large.is_empty()) {
            (true, true) => return self.finish(claim),
            (true, false) => TOO_LARGE,
            (false, true) => TOO_LONG,
            (false, false) => TOO_LARGE_OR_LONG,
        };
        if !lines.is_empty() {
            self.filtering.doubt(claim);
        }
        lines.append(&mut too_large);
        let kept = self.filtering.finish(claim, &self.health.metrics);
        let disposition = Disposition { lost: lines.len() as u64, ..kept };
        let (reason, health) = (Reason::new(Cause::TooLong, reason), &mut self.health);
        self.given_up.end_with(claim, disposition, lines, &reason, &self.cursor, health);
    }

    /// A claim is not on the wire any more, and will be sent again.
    fn release(&mut self, claim: Claim) {
        self.cursor.release(claim);
        self.filtering.released(claim);
    }

    fn on_accepted(&mut self, claim: Claim, rejected: Vec<Bytes>, consumer: usize) {
        let Some(mut work) = self.wire.remove(&claim.start) else { return };
        if let Some((front, rest)) = self.cursor.split_at(work.claim, claim.end) {
            let events = work.events.min(front.end - front.start);
            self.wire
                .insert(rest.start, Work { claim: rest, events: work.events - events, ..work });
            (work.claim, work.events) = (front, events);
        }
        let vouched = self.vouched.entry(consumer).or_default();
        *vouched = work.sent_at.max(*vouched);
        if self.vouched.len() > CONSUMERS_MAX {
            self.vouched.pop_first();
        }
        (self.careful, self.doubted) = (false, false);
        self.retry.reset();
        self.health.succeeded();
        self.health.delivered(work.events, work.attempts);
        let behind_suspect = self.suspects.front().is_some_and(|first| first.claim < claim);
        if rejected.is_empty()
            && self.ordered
            && behind_suspect
            && !self.filtering.has_too_large(claim)
        {
            self.held.push(work);
        } else {
            self.finish_without(claim, rejected);
        }
        if work.suspected {
            // It was no event's fault after all. What went ahead of it goes again, behind it.
            let (kept, ahead) =
                std::mem::take(&mut self.held).into_iter().partition(|held| held.claim < claim);
            self.held = kept;
            for ahead in ahead {
                self.release(ahead.claim);
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
        self.release(claim);
        if work.events > 1
            && let Some((left, right)) = self.cursor.split(claim)
        {
            self.pending.push_front(Work { claim: right, attempts: 1, ..work });
            self.pending.push_front(Work { claim: left, attempts: 1, ..work });
        } else if self.rejected == Rejected::Retry {
            self.pending.push_front(work);
            self.health.down(failure);
            self.pause(failure);
        } else if vouched {
            self.given_up.add(&work, &failure.message);
        } else {
            work.suspected = true;
            let place = self.suspects.partition_point(|other| other.claim < claim);
            self.suspects.insert(place, work);
            self.last_refusal = Some(failure.clone());
            // Not what else of the batch is pending: it was not refused alone.
            self.given_up.take_old(&mut self.suspects, failure);
        }
    }

    /// What was waited for has been read, or is there.
    fn on_readable(&mut self, wanted: bool) {
        if wanted {
            self.awaits_probe = false;
            self.paused_until = None;
        }
        self.given_up.unread = false;
    }

    /// A link whose end says nothing about what was on the wire.
    #[cfg(any(feature = "kafka", test))]
    fn on_gone(&mut self, failure: Option<&Failure>) {
        self.take_back();
        if let Some(failure) = failure {
            self.health.failed(failure);
            self.doubted = true;
            self.pause(failure);
        }
    }

    /// One that has lasted is no refusal, whether or not there was something to send.
    fn on_broken(&mut self, failure: &Failure, lasted: bool) {
        if failure.elsewhere {
            self.health.passed_over(failure);
        } else {
            self.health.failed(failure);
        }
        if lasted {
            self.retry.reset();
            return;
        }
        self.doubted = true;
        if !failure.elsewhere {
            self.pause(failure);
        }
    }

    fn on_failed(&mut self, claim: Claim, failure: &Failure) {
        let Some(work) = self.wire.remove(&claim.start) else { return };
        self.release(claim);
        let place = self.pending.partition_point(|other| other.claim < claim);
        self.pending.insert(place, work);
        if failure.elsewhere {
            self.health.passed_over(failure);
        } else {
            self.health.failed(failure);
            self.pause(failure);
            self.given_up.take_old(&mut self.pending, failure);
            self.given_up.take_old(&mut self.suspects, failure);
        }
    }

    /// There is no link any more: an attempt at everything that is not final has failed.
    fn all_failed(&mut self, failure: &Failure) {
        if !failure.elsewhere {
            self.given_up.take_old(&mut self.pending, failure);
            self.given_up.take_old(&mut self.suspects, failure);
            self.given_up.all_failed(failure);
        }
    }

    /// See [`GivenUp::bury`].
    fn bury(&mut self) -> bool {
        self.given_up.bury(&mut self.cursor, &mut self.filtering, &mut self.health)
    }

    fn end(&mut self, written: Written) {
        self.given_up.end(written, &self.cursor, &mut self.health);
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

#[cfg(test)]
mod tests;
