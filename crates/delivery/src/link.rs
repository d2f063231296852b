//! The contract between the delivery loop and a protocol, which implements [`Connect`] (it makes
//! connections) and [`Link`] (one of them). The loop hands batches to the link, and the link
//! reports each claim as an [`Event`]. The loop knows no protocol, and a protocol knows no queue,
//! no back-off and no dead letters.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::checkpoints::{Checkpoint, Fate};
use super::endpoints::{Endpoints, Probed};
use super::failure::Failure;
use super::files::Files;
use queue::{Batch, Claim, Crowding, Identity, Notes, Position, Take};

/// The longest time for closing a connection in order, with the messages of its protocol.
pub const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Makes the connections of one output. The delivery loop calls one method at a time.
pub trait Connect: Send {
    /// The type of connection that [`Connect::connect`] makes.
    type Link: Link;

    /// `true` if the loop makes the first connection before there is something to send, so that
    /// `/readyz` and the log show early whether the consumer can be reached.
    ///
    /// A connection that ended by [`Event::Closed`] is replaced when there is something to send,
    /// and any other after the current pause. A break begins no pause if the connection had lasted
    /// for some time or something was accepted on it.
    const EAGER: bool;

    /// `true` if a request carries the events of many batches. The link then counts the retries.
    const COLLECTS: bool = false;

    /// Returns `false` for an `http` output whose `concurrency` is above 1: it may change the
    /// order.
    fn is_ordered(&self) -> bool {
        true
    }

    /// Returns `true` if the consumer's answers are about single events.
    fn judges_events(&self) -> bool {
        false
    }

    /// Returns `true` if reports need the positions of a batch's events ([`Batch::positions`]).
    fn tells_positions(&self) -> bool {
        self.judges_events()
    }

    /// Returns `true` if the requests are JSON lists. With a queue in memory and without a filter,
    /// the link may get pieces of lists as received ([`queue::is_list`]).
    fn sends_lists(&self) -> bool {
        false
    }

    /// Returns the shortest time between two checkpoints of the evidence.
    fn checkpoint_interval(&self) -> Duration {
        Duration::ZERO
    }

    /// Gives the protocol its queue and its delivery. Called once, before the first connection.
    fn begin(&mut self, _begin: Begin) {}

    /// Returns the files that the protocol reads (certificates, tokens), if there are any.
    fn files(&self) -> Option<Arc<dyn Files>> {
        None
    }

    /// Returns the output's addresses, for `/status`; `None` if it has none, like `stdout`.
    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        None
    }

    /// Connects to each address once, for `check --connect`. Returns one result for each.
    fn probe(&mut self) -> impl Future<Output = Probed> + Send;

    /// Makes a link. Tries each address at most once, and returns the last failure. The link of
    /// `http` dials its connections later, when it has a request to send.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Link, Failure>> + Send;
}

/// The facts that a protocol gets before the first connection.
#[derive(Clone)]
pub struct Begin {
    /// The identity of the events' queue.
    pub queue: Identity,
    /// The limit of the queue in bytes. A protocol that collects events must take less.
    pub capacity: u64,
    /// Says whether the queue is crowded.
    pub crowding: Crowding,
    /// Keeps facts for the next delivery and, if the queue is in files, for the next start.
    pub notes: Notes,
    /// Cancelled when the relay drains: a protocol that collects events sends what it has.
    pub draining: CancellationToken,
    /// Cancelled when another delivery replaces this one: a protocol that collects events sends
    /// what it has.
    pub retire: CancellationToken,
}

/// One connection of an output. Several claims may be sent on it before the first is answered.
///
/// Invariant: each claim that was handed to [`Link::send`] is reported exactly once, by
/// [`Event::Accepted`] (which may report a claim in parts, from its front), [`Event::Judged`],
/// [`Event::Refused`] or [`Event::Failed`], or it is covered by the event that ends the link.
/// [`Event::Taken`] may come before one of these.
pub trait Link: Send {
    /// Returns how many events and bytes the link takes now; `None` while too much is unanswered.
    fn room(&self) -> Option<Take>;

    /// Hands over a batch, which must fit into [`Link::room`]. Only [`Link::event`] writes it.
    fn send(&mut self, batch: Batch);

    /// Tells a link that collects events to send them: the loop waits until some are final.
    fn flush(&mut self) {}

    /// Returns `true` if the link takes a checkpoint of the evidence now.
    fn takes_checkpoint(&self) -> bool {
        self.room().is_some()
    }

    /// Hands over a checkpoint to be sent on a separate line. [`Link::takes_checkpoint`] must be
    /// `true`, and the last checkpoint must have a result. The link reports [`Event::Checkpoint`],
    /// or ends before that. The config allows checkpoints only for protocols with this method.
    fn send_checkpoint(&mut self, _checkpoint: Checkpoint) {}

    /// Does the work of the connection (writing, reading, timeouts) until there is a report. The
    /// loop also polls it without a claim on the wire, to notice when the consumer closes the
    /// connection.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped; the loop calls the method again.
    fn event(&mut self) -> impl Future<Output = Event> + Send;

    /// Returns the number of the consumer of the last report (`http` may have several URLs).
    fn consumer(&self) -> usize {
        0
    }

    /// Ends the connection in order, within [`CLOSE_TIME`].
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Events of a claim that follow each other and have the same verdict.
#[derive(Debug, PartialEq)]
pub struct Part {
    /// The position after the last event. A part begins where the previous one ends.
    pub end: Position,
    /// The number of events that were sent. The filter may have dropped others.
    pub events: u64,
    /// The consumer's verdict on these events.
    pub verdict: Verdict,
}

impl Part {
    /// Returns `true` if the consumer has events of the part.
    pub fn is_taken(&self) -> bool {
        match &self.verdict {
            Verdict::Delivered | Verdict::Existing => true,
            Verdict::Partly { refused, .. } => *refused < self.events,
            Verdict::Again(_) | Verdict::Refused(_) | Verdict::TooLong => false,
            Verdict::Unconfirmed | Verdict::Unsent => false,
        }
    }

    /// Returns the reason why events of the part were sent and not taken, if there is one.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.verdict {
            Verdict::Delivered | Verdict::Existing | Verdict::TooLong => None,
            Verdict::Unconfirmed | Verdict::Unsent => None,
            Verdict::Again(failure)
            | Verdict::Refused(failure)
            | Verdict::Partly { failure, .. } => Some(failure),
        }
    }
}

/// The parts of an answer, collected event by event.
#[derive(Debug, Default, PartialEq)]
pub struct Parts(Vec<Part>);

impl Parts {
    /// Adds the verdict on the event at `position`. Positions must ascend.
    pub fn add(&mut self, position: Position, verdict: Verdict) {
        let end = position.next();
        match self.0.last_mut() {
            Some(last) if last.verdict == verdict => {
                last.end = end;
                last.events += 1;
            }
            _ => self.0.push(Part { end, events: 1, verdict }),
        }
    }

    /// Returns `true` if the consumer has all events, or if there are none.
    pub fn are_delivered(&self) -> bool {
        self.0.iter().all(|part| part.verdict == Verdict::Delivered)
    }

    /// Returns the number of events that the consumer has.
    pub fn delivered(&self) -> u64 {
        let delivered = self.0.iter().filter(|part| part.verdict == Verdict::Delivered);
        delivered.map(|part| part.events).sum()
    }

    /// Returns the parts of the answer about `claim`. The last part reaches to the claim's end.
    pub fn end(mut self, claim: Claim) -> Vec<Part> {
        if let Some(last) = self.0.last_mut() {
            last.end = claim.end;
        }
        self.0
    }
}

/// The meaning of a consumer's answer for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The consumer has the event.
    Delivered,
    /// The consumer had the event already, from an earlier attempt.
    Existing,
    /// The consumer has not taken the event, which is sent again after a pause.
    Again(Failure),
    /// The consumer refuses the event itself, and would refuse it again.
    Refused(Failure),
    /// The event is too long for the protocol. It was not sent, and is given up.
    TooLong,
    /// The consumer refuses some events of the part for good and has the others, and does not say
    /// which. All are kept as dead letters and none is sent again, because the consumer would have
    /// the others twice.
    Partly {
        /// The number of refused events.
        refused: u64,
        /// The reason of the refusal.
        failure: Failure,
    },
    /// The consumer has the event, as its answer about a later event shows, but will never confirm
    /// it. It is sent again without a pause, but never with events that the consumer has not read:
    /// one of these may be refused, and the consumer would have the event again.
    Unconfirmed,
    /// The event was not read or had no room in the request. It is sent next, without a pause.
    Unsent,
}

/// A report of a link to the delivery loop.
#[derive(Debug)]
pub enum Event {
    /// The consumer has the claim, which may be the first part of a sent claim. The rest then still
    /// waits for an answer.
    Accepted(Claim),
    /// The consumer has taken the request with the claim, and will confirm it in another report.
    Taken(Claim),
    /// The answer is about single events. The parts are in order, and cover the claim, which may be
    /// the first part of a claim that was sent.
    Judged(Claim, Vec<Part>),
    /// Claims that became final at the same moment, because an object with their events is stored.
    /// The queue never has only some of them as final, whenever the relay is killed.
    Together(Vec<Self>),
    /// The consumer refuses the request because of its events. The loop searches for those at
    /// fault.
    Refused(Claim, Failure),
    /// The link can take events again, although no claim has become final.
    Room,
    /// The result of the checkpoint that the link was given last.
    Checkpoint(Fate),
    /// An attempt failed, and the link still works. The claim is sent again after a pause.
    Failed(Claim, Failure),
    /// The link has ended. Every claim that was not accepted is sent again.
    Broken {
        /// The reason of the end.
        failure: Failure,
        /// `true` if the consumer accepted something on this link.
        progress: bool,
    },
    /// The link asks to be closed in order. No claim waits for an answer.
    Closed,
    /// The end of a link that can refuse events, or that makes claims final out of order. Claims on
    /// the wire are sent again; others keep their state. `None` if the end was not a failure.
    Gone(Option<Failure>),
    /// The link can send nothing because of this failure, but keeps trying.
    #[cfg(any(feature = "kafka", test))]
    Troubled(Failure),
    /// The process can't continue. The text says why.
    Fatal(String),
}

impl Event {
    /// Returns the report that the consumer has `claim` or, without a claim, the checkpoint.
    pub fn accepted(claim: Option<Claim>) -> Self {
        match claim {
            Some(claim) => Self::Accepted(claim),
            None => Self::Checkpoint(Fate::Taken),
        }
    }
}

/// Waits until the moment, or for ever if it is `None`.
pub async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
