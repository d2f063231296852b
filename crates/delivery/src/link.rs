//! The contract between the delivery loop and a protocol.
//!
//! A protocol implements [`Connect`], which makes connections, and [`Link`], which is one of them.
//! The loop hands batches to the link, and the link reports by [`Event`] what became of each claim.
//! The loop knows no protocol, and a protocol knows no queue, no back-off and no dead letters.

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

/// The longest time that closing a connection in order may take, with the messages that its
/// protocol asks for.
pub const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Makes the connections of one output. The delivery loop owns this value and calls one method at a
/// time.
pub trait Connect: Send {
    /// The type of connection that [`Connect::connect`] makes.
    type Link: Link;

    /// `true`: the loop makes the first connection as soon as it starts, before there is anything
    /// to send. So `/readyz` and the log show early if the consumer can be reached. `false`: the
    /// loop makes the first connection when there is something to send. In both cases, a connection
    /// that ended by [`Event::Closed`] is replaced when there is something to send. Any other is
    /// replaced without waiting for events, after the current pause if there is one: a break begins
    /// no pause if the connection had lasted for some time or something was accepted on it.
    const EAGER: bool;

    /// `true` if a request carries the events of many batches, which wait in the link meanwhile.
    /// The link then counts the requests that are sent again, and not the loop.
    const COLLECTS: bool = false;

    /// Returns `true` if the consumer gets events in the order of the queue. Returns `false` for an
    /// `http` output whose `concurrency` is above 1.
    fn is_ordered(&self) -> bool {
        true
    }

    /// Returns `true` if the consumer's answers are about single events.
    fn judges_events(&self) -> bool {
        false
    }

    /// Returns `true` if each batch has to list the positions of its events ([`Batch::positions`]).
    /// A protocol needs them if its reports are about single events.
    fn tells_positions(&self) -> bool {
        self.judges_events()
    }

    /// Returns `true` if the requests are JSON lists of events. With a queue in memory and without
    /// a filter, the link may then get pieces of lists as they were received
    /// ([`queue::is_list`]).
    fn sends_lists(&self) -> bool {
        false
    }

    /// Returns the shortest time between two checkpoints of the evidence. An output that collects
    /// events for minutes sends checkpoints no more often than events.
    fn checkpoint_interval(&self) -> Duration {
        Duration::ZERO
    }

    /// Tells the protocol about its queue and its delivery. Called once, before the first
    /// connection.
    fn begin(&mut self, _begin: Begin) {}

    /// Returns the files that the protocol reads (certificates, tokens); `None` if it reads none.
    fn files(&self) -> Option<Arc<dyn Files>> {
        None
    }

    /// Returns the output's addresses, for `/status`; `None` if it has no addresses, like `stdout`.
    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        None
    }

    /// Connects to each address once, for `check --connect`. Returns one result for each address.
    fn probe(&mut self) -> impl Future<Output = Probed> + Send;

    /// Makes a link. Tries each address at most once. If no address works, returns the failure of
    /// the last one.
    ///
    /// A link is not always a TCP connection: the link of `http` is made once and dials its
    /// connections itself, when it has a request to send.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Link, Failure>> + Send;
}

/// The facts about its queue and its delivery that a protocol gets before the first connection.
#[derive(Clone)]
pub struct Begin {
    /// The identity of the queue from which the events come.
    pub queue: Identity,
    /// The limit of the queue in bytes. A protocol that collects events must take less: the events
    /// stay in the queue until they are final.
    pub capacity: u64,
    /// Says whether the queue is crowded.
    pub crowding: Crowding,
    /// The notes in which the protocol may keep facts for the delivery that replaces this one, and,
    /// if the queue is in files, for the next start.
    pub notes: Notes,
    /// Cancelled when the relay drains, which is its orderly end: a protocol that collects events
    /// sends what it has.
    pub draining: CancellationToken,
    /// Cancelled when another delivery is to replace this one. A protocol that collects events then
    /// sends what it has.
    pub retire: CancellationToken,
}

/// One connection of an output. Several claims may be sent on it before the first is answered.
///
/// Invariant: each claim that was handed to [`Link::send`] is reported exactly once, by
/// [`Event::Accepted`] (which may report a claim in parts, from its front), [`Event::Judged`],
/// [`Event::Refused`] or [`Event::Failed`], or it is covered by the event that ends the link.
/// [`Event::Taken`] may come before one of these.
pub trait Link: Send {
    /// Returns how many events and bytes the link takes now; `None` while it takes nothing, because
    /// too much is sent without an answer.
    fn room(&self) -> Option<Take>;

    /// Hands over a batch to be sent, which must fit into [`Link::room`]. Nothing is written before
    /// [`Link::event`] is polled.
    fn send(&mut self, batch: Batch);

    /// Tells a link that collects events to send the events that it has: the loop hands over no
    /// more events before some of these are final. Links that do not collect events do nothing.
    fn flush(&mut self) {}

    /// Returns `true` if the link takes a checkpoint of the evidence now.
    fn takes_checkpoint(&self) -> bool {
        self.room().is_some()
    }

    /// Hands over a checkpoint to be sent on a line of its own. The caller makes sure that
    /// [`Link::takes_checkpoint`] is `true` and that the result of the last checkpoint was
    /// reported. The link reports the result by [`Event::Checkpoint`], or ends before that. A
    /// checkpoint is not an event: it has no claim, and its failure does not count as a failed
    /// attempt of any event. If a protocol does not have this method, the config does not allow
    /// checkpoints on its outputs.
    fn send_checkpoint(&mut self, _checkpoint: Checkpoint) {}

    /// Does the work of the connection (writing, reading, timeouts) until there is something to
    /// report, and returns the report. The loop also polls this future while no claim waits for an
    /// answer, so that it notices when the consumer closes the connection.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped; the loop calls the method again.
    fn event(&mut self) -> impl Future<Output = Event> + Send;

    /// Returns the number of the consumer that the last report of [`Link::event`] is about. A link
    /// may reach several consumers (`http` with several URLs).
    fn consumer(&self) -> usize {
        0
    }

    /// Ends the connection in order, within [`CLOSE_TIME`].
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Events of a claim that follow each other, and for which the consumer's answer is the same.
#[derive(Debug, PartialEq)]
pub struct Part {
    /// The position after the last event of the part. The part begins where the part before it
    /// ends, and the first part begins with the claim.
    pub end: Position,
    /// The number of events of the part that were sent. It may be smaller than the number of
    /// positions, because the filter may have kept back events.
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

    /// Returns the reason why the consumer has not taken all events of the part; `None` if it has,
    /// or if they were not sent.
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
    /// Adds what the answer says of the event at `position`. Events come in their order.
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

    /// Returns `true` if the consumer has all events of the parts. True of no parts, too.
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

/// The verdict of a consumer's answer on an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The consumer has the event.
    Delivered,
    /// The consumer had the event already, from an earlier attempt.
    Existing,
    /// The consumer has not taken the event. The event is to be sent again after a pause.
    Again(Failure),
    /// The consumer refuses the event itself, so it would refuse the event again.
    Refused(Failure),
    /// The protocol can't carry the event, because it is too long. It was not sent, and is given
    /// up.
    TooLong,
    /// The consumer refuses this many events of the part for good and has the others, and does not
    /// say which. None is sent again, because the consumer would have the others twice. All events
    /// of the part are kept as dead letters.
    Partly {
        /// The number of events that are refused, at most those of the part.
        refused: u64,
        /// The refusal.
        failure: Failure,
    },
    /// The consumer has the event, as its answer about a later event of the request shows, but it
    /// will never confirm it. The event is sent again without a pause, and never in one request
    /// with events that the consumer has not read yet: one of these may be refused, and the
    /// consumer would have the event once more.
    Unconfirmed,
    /// The event is sent next, without a pause: it found no room in the request, or the consumer
    /// did not read it because of another event in the request.
    Unsent,
}

/// A report of a link to the delivery loop.
#[derive(Debug)]
pub enum Event {
    /// The consumer has all events of the claim. If the link settles events in order, it may be
    /// only the first part of a claim that was sent. The rest of that claim then still waits for an
    /// answer.
    Accepted(Claim),
    /// The consumer has taken the request with the events of the claim, and will confirm the events
    /// later, by another report. Until then the claim is not final.
    Taken(Claim),
    /// The answer is about single events of the claim. The parts follow each other in
    /// the order of the queue, and together they are the whole claim. As for [`Event::Accepted`],
    /// `claim` may be only the first part of a claim that was sent.
    Judged(Claim, Vec<Part>),
    /// Reports about claims that became final at the same moment: an object with their events is
    /// stored. The queue never has only some of them as final, whenever the relay is killed.
    Together(Vec<Self>),
    /// The consumer refuses the claim because of its events, so it would refuse the same request
    /// again. The loop then searches for the events at fault.
    Refused(Claim, Failure),
    /// The link can take events again, although no claim has become final.
    Room,
    /// The result of the checkpoint that the link was given last.
    Checkpoint(Fate),
    /// An attempt to send the claim failed. The claim is to be sent again after a pause; the link
    /// continues to work.
    Failed(Claim, Failure),
    /// The link has ended. Every claim that was not accepted yet is to be sent again.
    Broken {
        /// The reason why the link has ended.
        failure: Failure,
        /// `true` if the consumer accepted something on this link.
        progress: bool,
    },
    /// The link asks the loop to close it in order now. No claim waits for an answer.
    Closed,
    /// The link has ended. Only a link that can refuse events, or that makes claims final out of
    /// order, reports this. Its claims on the wire are to be sent again; claims that were refused
    /// or failed before keep their state. The value is the reason; `None` if the end is nobody's
    /// fault.
    Gone(Option<Failure>),
    /// The link can send nothing at the moment, because of this failure, but keeps trying.
    #[cfg(any(feature = "kafka", test))]
    Troubled(Failure),
    /// The process can't continue. The text says why.
    Fatal(String),
}

impl Event {
    /// Returns the report that the consumer has all events of `claim`, or that it has taken the
    /// checkpoint, which has no claim.
    pub fn accepted(claim: Option<Claim>) -> Self {
        match claim {
            Some(claim) => Self::Accepted(claim),
            None => Self::Checkpoint(Fate::Taken),
        }
    }
}

/// Waits until the moment; waits for ever if it is `None`.
pub async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
