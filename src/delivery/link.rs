//! The contract between the delivery loop and a protocol.
//!
//! A protocol implements [`Connect`], which makes connections, and [`Link`], which is one of them.
//! The loop hands batches to the link, and the link reports by [`Event`] what became of each claim.
//! The loop knows no protocol, and a protocol knows no queue, no back-off and no dead letters.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::endpoints::Endpoints;
use super::endpoints::Probed;
use super::failure::Failure;
use super::files::Files;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Take;

/// The longest time that the orderly end of a connection may take.
pub(crate) const CLOSE_TIME: Duration = Duration::from_secs(2);

/// A link keeps the events that its protocol can't carry until all events before them are final.
/// While a link keeps this many bytes of such events, its [`Link::room`] is `None`.
pub(crate) const REJECTED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Makes the connections of one output. The delivery loop owns it and calls one method at a time.
pub(crate) trait Connect: Send {
    /// The type of the connections that [`Connect::connect`] makes.
    type Link: Link;

    /// `true`: the loop connects as soon as it starts, before there is anything to send, so that
    /// `/readyz` and the log show early whether the consumer can be reached. `false`: the loop
    /// connects when there is something to send. In both cases, a connection that broke is made
    /// again after a pause, and one that ended in order only when there is something to send.
    const EAGER: bool;

    /// Returns `true` if the consumer gets events in the order of the queue. `false` for an `http`
    /// output whose `concurrency` is above 1.
    fn is_ordered(&self) -> bool {
        true
    }

    /// The files that the protocol reads (certificates, tokens); `None` if it reads none.
    fn files(&self) -> Option<Arc<dyn Files>> {
        None
    }

    /// The output's addresses, for `/status`; `None` if it has none, as `stdout`.
    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        None
    }

    /// Connects to each address once, for `check --connect`, and returns how each attempt went.
    fn probe(&mut self) -> impl Future<Output = Probed> + Send;

    /// Makes a link. Tries each address at most once; the failure is that of the last address.
    ///
    /// A link is not always a TCP connection: the link of `http` is made once and dials its
    /// connections itself, when it has a request to send.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Link, Failure>> + Send;
}

/// A connection with a window: several claims may be on the wire at once.
///
/// Invariant: each claim that was handed to [`Link::send`] is reported exactly once, by
/// [`Event::Accepted`] (in parts, from its front), [`Event::Refused`] or [`Event::Failed`], or is
/// covered by the event that ends the link.
pub(crate) trait Link: Send {
    /// How much the link takes now; `None` while its window is full.
    fn room(&self) -> Option<Take>;

    /// Hands over a batch that was taken within [`Link::room`]. Nothing is written before
    /// [`Link::event`] is polled.
    fn send(&mut self, batch: Batch);

    /// Does the work of the connection (writing, reading, timeouts) until there is something to
    /// report. The loop polls it also while nothing is on the wire, so that the peer's closing is
    /// seen.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped; the loop calls it again.
    fn event(&mut self) -> impl Future<Output = Event> + Send;

    /// The number of the consumer that the last event came from, for a link that reaches several
    /// (`http` with several URLs).
    fn consumer(&self) -> usize {
        0
    }

    /// Ends the connection in order, within [`CLOSE_TIME`].
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// What a link reports.
#[derive(Debug)]
pub(crate) enum Event {
    /// The consumer has all events of the claim except `rejected`: events that can't be put in the
    /// protocol, a line each, ended by `\n`. A link that finishes in order may report the front of
    /// a claim that was sent; the rest of that claim is still on the wire.
    Accepted {
        /// The events that are final.
        claim: Claim,
        /// Lines of events that the protocol can't carry, and that are given up.
        rejected: Vec<Bytes>,
    },
    /// The consumer objects to the events of the claim themselves: the same request would be
    /// refused again. The loop looks for the events at fault.
    Refused(Claim, Failure),
    /// The link has room again, without any claim having become final.
    Room,
    /// The claim is to be sent again after a pause; the link works on.
    Failed(Claim, Failure),
    /// The link has ended, and every claim that was not yet accepted is to be sent again.
    /// `progress` is `true` if something was accepted on this link.
    Broken {
        /// Why the link has ended.
        failure: Failure,
        /// `true` if the consumer accepted something on this link.
        progress: bool,
    },
    /// The link is to be ended in order now; nothing is on the wire.
    Closed,
    /// The link has ended, as for [`Event::Broken`], but it is one that refuses events or finishes
    /// them out of order: only the claims on the wire are to be sent again; claims that were
    /// refused or failed before keep their state. `None`: the end is nobody's fault.
    #[cfg(any(feature = "kafka", test))]
    Gone(Option<Failure>),
    /// Nothing moves, for this reason; the link goes on trying.
    #[cfg(any(feature = "kafka", test))]
    Troubled(Failure),
    /// The process can't go on, for this reason.
    Fatal(String),
}
