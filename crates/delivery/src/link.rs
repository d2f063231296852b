//! The contract between the delivery loop and a protocol. A protocol implements [`Connect`], which
//! makes connections, and [`Link`], which is one of them. The loop hands batches to the link, and
//! the link reports each claim as an [`Event`]. The loop knows no protocol, and a protocol knows no
//! queue, no back-off and no dead letters.

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

/// The longest time for an orderly end of a connection, with the last messages of the protocol.
pub const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Makes the connections of one output. The delivery loop calls one method at a time.
pub trait Connect: Send {
    /// The type of connection that [`Connect::connect`] makes.
    type Link: Link;

    /// `true` if the loop makes the first connection before there is something to send, so that
    /// `/readyz` and the log show early whether the consumer can be reached.
    ///
    /// After [`Event::Closed`], or if a broken link had only a checkpoint, the next connection is
    /// made when there is something to send. After any other end, it is made at the end of the
    /// current pause. [`Event::Broken`] begins no pause if the connection had lasted for some time,
    /// or if something was accepted on it.
    const EAGER: bool;

    /// `true` if a request carries the events of many batches. The link then counts the retries.
    const COLLECTS: bool = false;

    /// `true` if everything on the wire is one request, which is turned down as a whole when the
    /// connection ends. `false` if each claim has a result of its own.
    const IS_ONE_REQUEST: bool = true;

    /// Returns `true` if events are sent in order, except those that are set aside. An `http`
    /// output may change the order if its `concurrency` is above 1.
    fn is_ordered(&self) -> bool {
        true
    }

    /// Returns `true` if the responses of the consumer are about single events.
    fn judges_events(&self) -> bool {
        false
    }

    /// Returns `true` if the protocol needs the position of each event ([`Batch::positions`]).
    fn tells_positions(&self) -> bool {
        self.judges_events()
    }

    /// Returns `true` if the requests are JSON lists. If every output sends lists, the link may get
    /// pieces of lists as received ([`queue::is_list`]).
    fn sends_lists(&self) -> bool {
        false
    }

    /// Returns the shortest time between two checkpoints of the evidence.
    fn checkpoint_interval(&self) -> Duration {
        Duration::ZERO
    }

    /// Gives the protocol facts about its queue and delivery. Called once, before any connection.
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

    /// Makes a link. Tries each address at most once, and returns the last failure if all have
    /// failed. The link of `http` dials its connections later, when it has a request to send.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Link, Failure>> + Send;
}

/// The facts that a protocol gets before the first connection.
#[derive(Clone)]
pub struct Begin {
    /// The identity of the events' queue.
    pub queue: Identity,
    /// The limit of the queue in bytes. A protocol that collects events must hold fewer bytes.
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

/// One connection of an output. Several claims may be sent on it before the first has a result.
///
/// Invariant: each claim that was handed to [`Link::send`] is reported exactly once, is covered by
/// the event that ends the link, or is dropped when the loop closes the link. The report is
/// [`Event::Accepted`], [`Event::Judged`] (both may report a claim in parts, from its front),
/// [`Event::Refused`] or [`Event::Failed`]. [`Event::Taken`] may come before it.
pub trait Link: Send {
    /// Returns the room of the link in events and bytes; `None` while too many wait for a response.
    fn room(&self) -> Option<Take>;

    /// Hands over a batch. New events usually fit into [`Link::room`]. A single event, or events
    /// that are sent again, may not. The link may write nothing before [`Link::event`] is called.
    fn send(&mut self, batch: Batch);

    /// Hands over a single event that was turned down alone before. If it fails again, the address
    /// does not count as failed. A link whose consumer confirms requests later sends it on a
    /// connection of its own.
    fn send_alone(&mut self, batch: Batch) {
        self.send(batch);
    }

    /// Tells a link that collects events to send what it has: the loop waits for some to be final.
    fn flush(&mut self) {}

    /// Returns `true` if the link takes a checkpoint of the evidence now.
    fn takes_checkpoint(&self) -> bool {
        self.room().is_some()
    }

    /// Hands over a checkpoint to be sent on a separate line. [`Link::takes_checkpoint`] must be
    /// `true`, and the last checkpoint must have a result. The link reports [`Event::Checkpoint`],
    /// or ends before that. The config allows checkpoints only for protocols with this method.
    fn send_checkpoint(&mut self, _checkpoint: Checkpoint) {}

    /// Does the work of the connection (writing, reading, timeouts), or waits for the thread that
    /// does it, until there is a report. The loop also calls this method without a claim on the
    /// wire, to notice when the consumer closes the connection.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped; the loop calls the method again.
    fn event(&mut self) -> impl Future<Output = Event> + Send;

    /// Returns the number of the consumer that the last report is about (`http` may have several).
    fn consumer(&self) -> usize {
        0
    }

    /// Ends the connection in an orderly way, within [`CLOSE_TIME`].
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Events of a claim that follow each other and have the same verdict.
#[derive(Debug, PartialEq)]
pub struct Part {
    /// The position after the last event. A part begins where the previous one ends.
    pub end: Position,
    /// The number of sent events in the part. The filter may have dropped others.
    pub events: u64,
    /// The consumer's verdict on these events.
    pub verdict: Verdict,
}

impl Part {
    /// Returns `true` if the consumer has confirmed an event of the part.
    pub fn is_taken(&self) -> bool {
        match &self.verdict {
            Verdict::Delivered | Verdict::Existing => true,
            Verdict::Partly { refused, .. } => *refused < self.events,
            Verdict::Again(_) | Verdict::Refused(_) | Verdict::TooLong => false,
            Verdict::Unconfirmed | Verdict::Unsent => false,
        }
    }

    /// Returns the reason why the consumer did not take events of the part, if the verdict has one.
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

/// The parts of a response, collected event by event.
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

    /// Returns `true` if the verdict on each event is [`Verdict::Delivered`], or if there are none.
    pub fn are_delivered(&self) -> bool {
        self.0.iter().all(|part| part.verdict == Verdict::Delivered)
    }

    /// Returns the number of events with the verdict [`Verdict::Delivered`].
    pub fn delivered(&self) -> u64 {
        let delivered = self.0.iter().filter(|part| part.verdict == Verdict::Delivered);
        delivered.map(|part| part.events).sum()
    }

    /// Returns the parts of the response about `claim`. The last one is extended to the claim's
    /// end.
    pub fn end(mut self, claim: Claim) -> Vec<Part> {
        if let Some(last) = self.0.last_mut() {
            last.end = claim.end;
        }
        self.0
    }
}

/// The meaning of the consumer's response for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The consumer has the event.
    Delivered,
    /// The consumer had the event already, from an earlier attempt.
    Existing,
    /// The consumer has not taken the event, and may take it later.
    Again(Failure),
    /// The consumer refuses the event itself.
    Refused(Failure),
    /// The event is too long for the protocol. It was not sent, and is given up.
    TooLong,
    /// The consumer refuses some events of the part for good and has the rest, but does not say
    /// which. All are given up. None is sent again, because the rest would arrive twice.
    Partly {
        /// The number of refused events.
        refused: u64,
        /// The reason of the refusal.
        failure: Failure,
    },
    /// The consumer has the event, as the response about a later event shows, but will never
    /// confirm it. The event is sent again, but not in a request with events that the consumer has
    /// not read.
    Unconfirmed,
    /// The consumer has not read the event, or the request had no room for it. The event is sent
    /// again, and is no reason for a pause.
    Unsent,
}

/// A report of a link to the delivery loop.
#[derive(Debug)]
pub enum Event {
    /// The consumer has the claim. The claim may be the first part of one that was sent; the rest
    /// then still waits for a response.
    Accepted(Claim),
    /// The consumer has received the request with the claim. A later report has the result.
    Taken(Claim),
    /// The response is about single events. The parts are in order and cover the claim. The claim
    /// may be the first part of one that was sent.
    Judged(Claim, Vec<Part>),
    /// The reports of claims that are finished together, because one stored object has their
    /// events. If the relay is killed, the next start sends all of these events again or none,
    /// unless dead letters of some are in progress.
    Together(Vec<Self>),
    /// The consumer refuses the request because of its events.
    Refused(Claim, Failure),
    /// The link can take events again, although no claim has become final.
    Room,
    /// The result of the checkpoint that the link was given last.
    Checkpoint(Fate),
    /// An attempt failed, and the link still works. [`Failure::may_be_the_events`] says whether the
    /// consumer has turned the claim down.
    Failed(Claim, Failure),
    /// The link has ended. Claims on the wire are sent again, and usually all that are not final.
    Broken {
        /// The reason of the end.
        failure: Failure,
        /// `true` if the consumer accepted something on this link.
        progress: bool,
    },
    /// The link asks for its orderly end. No claim waits for a response.
    Closed,
    /// A link that reports refusals, or results out of order, has ended. Claims on the wire are
    /// sent again; other claims keep their state.
    Gone {
        /// The reason of the end; `None` if it is no failure.
        failure: Option<Failure>,
        /// The events of the request that failed; `None` if they are all that is on the wire.
        request: Option<Claim>,
    },
    /// The link can send nothing because of this failure, but keeps trying.
    Troubled(Failure),
    /// The process can't continue. The text says why.
    Fatal(String),
}

impl Event {
    /// Returns the report that the consumer has `claim`. `None` stands for the checkpoint.
    pub fn accepted(claim: Option<Claim>) -> Self {
        match claim {
            Some(claim) => Self::Accepted(claim),
            None => Self::Checkpoint(Fate::Taken),
        }
    }
}

/// Waits until `moment`. Never returns if it is `None`.
pub async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
