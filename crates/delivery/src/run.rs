//! The loop that moves one cursor: it takes events from the queue, sends them, waits for the
//! consumer's response, and finishes them. The loop is generic over the protocol. The ledger makes
//! every decision.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::checkpoints::Checkpoints;
use super::dead_letter::DeadLetters;
use super::failure::Failure;
use super::filtering::{Filtering, INSPECTED_BYTES_MAX};
use super::health::Health;
use super::in_flight::State;
use super::ledger::{Ledger, Rules};
use super::link::{Begin, Connect, Event, Link, until};
use super::orders::{HandOver, Orders};
use super::rate::Rate;
use super::tapped::Tapping;
use crate::filter;
use crate::filter::Filter;

/// After a connection broke before anything was accepted on it, the next one proves that the
/// consumer is up when it has lasted for this time. A consumer that refuses our certificate, or
/// every client, ends a connection sooner.
const PROVEN_AFTER: Duration = Duration::from_secs(1);

/// The longest time that a replaced delivery waits for responses, and then again for dead letters
/// in progress. The new delivery sends events without a response again.
const HAND_OVER_TIME: Duration = Duration::from_secs(10);

/// The longest time for writing the last dead letters at the end of the process.
const LAST_LETTERS: Duration = Duration::from_secs(1);

/// The delivery of one output. One task runs it, from [`Delivery::run`] to its end.
///
/// These phases repeat: *rest* until a connection is needed and may be made; *connect*; *drive* the
/// link (use the connection) until it ends. In each turn of the drive loop, the delivery hands over
/// dead letters, and sends as much as the link takes. Then it waits (`wake`) for something to do:
/// an order, a report of the link, new events in the queue, the end of a pause, and so on.
///
/// A delivery gives up an event only if `rejected.action` or `max_event_bytes` says so, if the
/// protocol leaves no choice (`Verdict::TooLong`, `Verdict::Partly`), or if it can't be read. While
/// dead letters are written, other claims may be sent.
///
/// Invariants:
/// - Every wait ends when `orders.stop` is cancelled, except the close of a link (`CLOSE_TIME`) and
///   the wait for the last dead letters (`LAST_LETTERS`).
/// - Only the loop calls the ledger, so no lock is needed.
/// - The loop yields to the runtime after it has inspected `INSPECTED_BYTES_MAX` of events without
///   sending one of them.
///
/// The delivery must never end without an order while the process continues.
pub(super) struct Delivery<C> {
    connector: C,
    ledger: Ledger,
    orders: Orders,
    checkpoints: Checkpoints,
    rate: Rate,
    is_paused: bool,
}

/// The values from which a delivery is made, except its connector.
pub struct Start {
    pub begin: HandOver,
    pub health: Health,
    pub config: config::Output,
    /// `None` if every event is sent unchanged.
    pub filter: Option<Arc<filter::Rules>>,
    pub dead_letters: DeadLetters,
    pub orders: Orders,
}

enum Done {
    Stopped,
    Retired,
}

enum Ended {
    Stopped,
    Retired,
    Closed,
    Broken(Failure),
    /// `None` if the end was not a failure.
    Gone(Option<Failure>),
    /// The link broke while it had only a checkpoint, so no event needs another connection.
    BrokenBeside,
    Fatal(String),
}

enum Wake {
    /// The process ends, or `HAND_OVER_TIME` has passed since the order to retire.
    Close(Ended),
    /// Another delivery replaces this one, or a reload has removed the output.
    Retire,
    /// The loop begins again, because something may have to be done or sent now.
    Again,
    Reported(Event),
}

impl<C: Connect> Delivery<C> {
    pub(crate) fn new(mut connector: C, start: Start) -> Self {
        let Start { begin, health, config, filter, dead_letters, orders } = start;
        let HandOver { cursor, claims, aside, seen } = begin;
        connector.begin(Begin {
            queue: cursor.identity(),
            capacity: cursor.capacity(),
            crowding: cursor.crowding(),
            notes: cursor.notes(),
            draining: orders.draining.clone(),
            retire: orders.retire.clone(),
        });
        let filter = filter.map(|rules| Filter::new(rules, seen));
        let tells_positions = connector.tells_positions();
        cursor.tell_acceptances(filter.is_some() || tells_positions || cursor.is_recorded());
        // The evidence needs the hash of each line that the filter sends, and a list has no lines.
        let hashes = filter.is_some() && cursor.is_recorded();
        let sends_lists = connector.sends_lists() && !hashes;
        cursor.take_lists(sends_lists);
        let tapping = Tapping::new(orders.taps.clone(), &config.name);
        let filtering = Filtering::new(filter, &cursor, tapping, sends_lists);
        let rules = Rules::new(&connector, &config, (sends_lists, orders.outlives));
        let (draining, place) = (orders.draining.clone(), (cursor, aside));
        let mut ledger =
            Ledger::new(place, filtering, health, dead_letters, draining, &config, rules);
        // If the consumer judges single events, most claims are remainders of batches.
        ledger.in_flight.inherit(claims, connector.judges_events());
        let published = orders.checkpoints.clone().filter(|_| config.checkpoints);
        let interval = connector.checkpoint_interval();
        let checkpoints = Checkpoints::new(&config.name, published, interval);
        let (rate, is_paused) = (Rate::new(config.rate_limit), config.pause);
        Self { connector, ledger, orders, checkpoints, rate, is_paused }
    }

    /// Delivers until the process ends (`None`), another delivery replaces this one, or a reload
    /// has removed the output. The text of an error says why the process can't continue.
    pub(crate) async fn run(mut self) -> Result<Option<HandOver>, String> {
        let ended = self.deliver().await;
        // Without this wait, the next delivery would write the dead letters in progress again.
        let retired = matches!(ended, Ok(Done::Retired));
        let wait = if retired { HAND_OVER_TIME } else { LAST_LETTERS };
        let stop = self.orders.stop.clone();
        let letters = tokio::time::timeout(wait, self.ledger.all_written());
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

    /// Returns the order that has ended the delivery, or the reason why the process must end.
    async fn deliver(&mut self) -> Result<Done, String> {
        let Orders { stop, retire, .. } = self.orders.clone();
        if self.is_paused {
            // Nothing is sent until another delivery replaces this one.
            return tokio::select! {
                biased;
                () = stop.cancelled() => Ok(Done::Stopped),
                () = retire.cancelled() => Ok(Done::Retired),
            };
        }
        let mut needed = C::EAGER;
        loop {
            let connecting = async {
                let for_events = self.rest(needed).await;
                (for_events, self.connector.connect().await)
            };
            let (for_events, connected) = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Done::Stopped),
                () = retire.cancelled() => return Ok(Done::Retired),
                connected = connecting => connected,
            };
            needed = true;
            let link = match connected {
                Ok(link) => link,
                Err(failure) if !for_events => {
                    // No pause begins, so events that arrive now are sent without a wait.
                    self.checkpoints.failed(&failure);
                    needed = false;
                    continue;
                }
                Err(failure) => {
                    self.ledger.on_unreachable(&failure);
                    continue;
                }
            };
            self.ledger.given_up.lines_are_read();
            // For a protocol that connects only to send an event, a connection proves nothing.
            if C::EAGER && self.ledger.pacing.connected() {
                self.ledger.health.succeeded();
            }
            let ended = self.drive(link).await;
            let failure = match &ended {
                Ended::Broken(failure) | Ended::Gone(Some(failure)) => Some(failure),
                Ended::Stopped | Ended::Retired | Ended::Closed | Ended::Gone(None) => None,
                Ended::BrokenBeside | Ended::Fatal(_) => None,
            };
            self.checkpoints.link_ended(failure);
            match ended {
                Ended::Stopped => return Ok(Done::Stopped),
                Ended::Retired => return Ok(Done::Retired),
                Ended::Fatal(message) => return Err(message),
                Ended::Broken(_) | Ended::Gone(_) => {}
                Ended::Closed | Ended::BrokenBeside => needed = false,
            }
        }
    }

    /// Waits until a connection is needed and may be made. Returns `false` if only a checkpoint
    /// needs the connection. Nothing is lost when the future is dropped.
    async fn rest(&mut self, mut needed: bool) -> bool {
        let draining = self.orders.draining.clone();
        let (ledger, checkpoints) = (&mut self.ledger, &mut self.checkpoints);
        loop {
            let goes_on = ledger.bury();
            ledger.finish_decided();
            if goes_on {
                tokio::task::yield_now().await;
                continue;
            }
            needed |= ledger.in_flight.has(State::Pending)
                || ledger.in_flight.has(State::PassedOver)
                || ledger.in_flight.has(State::Waiting)
                || ledger.aside.count() > 0;
            let until = ledger.pacing.paused_until;
            let may_shorten = ledger.may_hurry();
            let reads = ledger.given_up.needs_lines || !needed;
            tokio::select! {
                biased;
                written = ledger.given_up.written() => ledger.on_written(written),
                // The drain ends the current pause, and later ones are short, so that a consumer
                // that works again is noticed.
                () = draining.cancelled(), if may_shorten => ledger.hurry(),
                () = ledger.aside.readable() => {}
                () = ledger.in_flight.readable(), if reads => {
                    needed |= !ledger.given_up.lines_are_read();
                }
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if needed => {
                    ledger.pacing.end_pause();
                    return true;
                }
                () = checkpoints.due(until), if !needed => {
                    ledger.pacing.end_pause();
                    return false;
                }
            }
        }
    }

    fn hand_over(mut self) -> HandOver {
        self.ledger.finish_decided();
        let Ledger { in_flight, filtering, aside, .. } = self.ledger;
        let (cursor, claims) = in_flight.hand_over();
        HandOver { cursor, claims, aside: aside.inherited(), seen: filtering.into_seen() }
    }

    async fn drive(&mut self, mut link: C::Link) -> Ended {
        let proven_at = Instant::now() + PROVEN_AFTER;
        // `Some` once another delivery replaces this one: the link gets no new claims, and has
        // until this moment to finish its claims.
        let mut leave_at = None;
        loop {
            if self.ledger.bury() {
                self.ledger.inspected_bytes = INSPECTED_BYTES_MAX;
            }
            self.ledger.finish_decided();
            if leave_at.is_some() && !self.ledger.is_on_wire() {
                link.close().await;
                return Ended::Retired;
            }
            if leave_at.is_none() {
                if self.ledger.pacing.paused_until.is_none()
                    && self.has_turn_for_checkpoint(&link)
                    && let Some(checkpoint) = self.checkpoints.next()
                {
                    link.send_checkpoint(checkpoint);
                }
                while self.rate.closed_until().is_none()
                    && let Some(room) = link.room()
                    && let Some(batch) = self.ledger.next_to_send(room)
                {
                    self.rate.sent(batch.bytes);
                    match self.ledger.was_alone(&batch) {
                        true => link.send_alone(batch),
                        false => link.send(batch),
                    }
                }
                if self.ledger.wants_flush() {
                    link.flush();
                }
            }
            let event = match self.wake(&mut link, proven_at, leave_at).await {
                Wake::Close(ended) => {
                    link.close().await;
                    return ended;
                }
                Wake::Retire => {
                    leave_at = Some(Instant::now() + HAND_OVER_TIME);
                    continue;
                }
                Wake::Again => continue,
                Wake::Reported(event) => event,
            };
            if let Some(ended) = self.on_event(event, link.consumer(), proven_at) {
                // After any other end, the link is already closed or unusable.
                if matches!(ended, Ended::Closed | Ended::Gone(_)) {
                    link.close().await;
                }
                return ended;
            }
        }
    }

    /// Waits until the loop has something to do. Nothing is lost when the future is dropped.
    async fn wake(
        &mut self,
        link: &mut C::Link,
        proven_at: Instant,
        leave_at: Option<Instant>,
    ) -> Wake {
        let takes_checkpoint = leave_at.is_none() && self.has_turn_for_checkpoint(link);
        let Orders { draining, stop, retire, .. } = &self.orders;
        let (ledger, checkpoints) = (&mut self.ledger, &mut self.checkpoints);
        let yields = ledger.inspected_bytes >= INSPECTED_BYTES_MAX;
        if yields {
            ledger.inspected_bytes = 0;
            tokio::task::yield_now().await;
        }
        if !ledger.in_flight.has(State::OnWire) && ledger.in_flight.cursor().is_closed() {
            // No new event can show any more that the consumer works: the next start sends first
            // what was passed over. Held claims become final now.
            ledger.finish_all(ledger.in_flight.claims(State::Held));
        }
        let paused = ledger.pacing.paused_until;
        let may_shorten = ledger.may_hurry();
        let closed_until = self.rate.closed_until().filter(|_| leave_at.is_none());
        let has_room = leave_at.is_none() && closed_until.is_none() && link.room().is_some();
        let wants = leave_at.is_none() && ledger.wants_events(has_room);
        let reads = wants || ledger.given_up.needs_lines;
        let is_unproven = ledger.pacing.is_unproven && !ledger.has_failed();
        let proves_at = (C::EAGER && is_unproven).then_some(proven_at);
        let next_try = ledger.next_try().filter(|_| has_room);
        tokio::select! {
            biased;
            () = stop.cancelled() => Wake::Close(Ended::Stopped),
            () = retire.cancelled(), if leave_at.is_none() => Wake::Retire,
            () = until(leave_at) => Wake::Close(Ended::Retired),
            () = std::future::ready(()), if yields => Wake::Again,
            written = ledger.given_up.written() => {
                ledger.on_written(written);
                Wake::Again
            }
            event = link.event() => Wake::Reported(event),
            () = ledger.aside.readable() => Wake::Again,
            () = draining.cancelled(), if may_shorten => {
                ledger.hurry();
                Wake::Again
            }
            () = ledger.in_flight.readable(), if reads => {
                ledger.on_readable(wants);
                Wake::Again
            }
            () = until(paused) => {
                ledger.pacing.end_pause();
                Wake::Again
            }
            () = until(next_try) => Wake::Again,
            () = until(closed_until) => Wake::Again,
            () = until(proves_at) => {
                ledger.pacing.proven();
                ledger.health.succeeded();
                Wake::Again
            }
            // `due` also waits for the end of the pause, so it can complete at the same moment as
            // `until(paused)`. That arm is above this one, because it must end the pause first.
            () = checkpoints.due(paused), if takes_checkpoint => Wake::Again,
        }
    }

    /// Returns `true` if a checkpoint may be sent now. Claims that are sent again go first.
    fn has_turn_for_checkpoint(&self, link: &C::Link) -> bool {
        !self.ledger.in_flight.has(State::Pending) && link.takes_checkpoint()
    }

    /// Returns the reason if the link has ended.
    fn on_event(&mut self, event: Event, consumer: usize, proven_at: Instant) -> Option<Ended> {
        match event {
            Event::Accepted(claim) => self.ledger.on_accepted(claim, consumer),
            Event::Together(events) => {
                self.ledger.in_flight.begin_together();
                for event in events {
                    self.on_event(event, consumer, proven_at);
                }
                self.ledger.in_flight.end_together();
            }
            Event::Taken(claim) => self.ledger.on_taken(claim),
            Event::Judged(claim, parts) => self.ledger.on_judged(claim, parts, consumer),
            Event::Room => {}
            Event::Checkpoint(fate) => self.checkpoints.ended(fate),
            Event::Refused(claim, failure) => self.ledger.on_refused(claim, &failure, consumer),
            Event::Failed(claim, failure) => self.ledger.on_failed(claim, &failure, consumer),
            Event::Broken { failure, .. }
                if self.checkpoints.is_in_delivery
                    && !self.ledger.is_on_wire()
                    && !self.ledger.in_flight.has(State::Pending) =>
            {
                self.checkpoints.failed(&failure);
                return Some(Ended::BrokenBeside);
            }
            Event::Broken { failure, progress } => {
                let has_lasted = Instant::now() >= proven_at;
                self.ledger.on_broken(&failure, (progress, has_lasted), consumer);
                return Some(Ended::Broken(failure));
            }
            Event::Closed => {
                self.ledger.start_over();
                return Some(Ended::Closed);
            }
            Event::Gone { failure, request } => {
                self.ledger.on_gone(failure.as_ref(), request, consumer);
                return Some(Ended::Gone(failure));
            }
            Event::Troubled(failure) => self.ledger.health.failed(&failure),
            Event::Fatal(message) => return Some(Ended::Fatal(message)),
        }
        None
    }
}

#[cfg(test)]
mod tests;
