//! The common part of the two kinds of link: one connection to a consumer, from the finished
//! handshake to the end of the connection.
//!
//! [`Session`] writes batches, reads, notices the end and the age limit of the connection, and
//! collects the events for the delivery loop. `stream` and `acknowledged` know when events are
//! final, and which timeout applies until then.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::connection::{Dialer, Wire};
use delivery::checkpoints::Fate;
use delivery::endpoints::{Attempt, Endpoints};
use delivery::failure::Failure;
use delivery::link::{CLOSE_TIME, Event};
use queue::Claim;
use telemetry::AttemptError;

/// The maximum bytes that one call of `Session::poll_read` reads from the peer.
pub(super) const READ_BYTES: usize = 4096;

/// The maximum number of buffers in one vectored write.
const SLICES_MAX: usize = 64;

/// One connection over TCP or TLS: the part that both kinds of link have in common.
///
/// A link owns its session, and the delivery loop owns the link. A session starts no task: until
/// the link is closed, all work of the session happens while the loop polls
/// [`Link::event`](delivery::link::Link::event).
///
/// The life of a session:
///
/// 1. *Open.* The link takes batches. At most one batch is being written at any time
///    ([`Session::unwritten`]). The link keeps a list of the batches that are written and not yet
///    final.
/// 2. *Leaving.* The connection has reached its age limit, a preferred address is usable again, or
///    the output does not have the connection's address any more. The link takes no more batches,
///    and ends when all its batches are final.
/// 3. *Ended by the peer.* The peer has sent FIN (or TLS's close_notify). Nothing more is read, and
///    the link takes no more batches.
/// 4. *Closed* by [`Session::close`] in order, or *broken* by an error, which [`Session::broken`]
///    turns into the link's last event.
///
/// A session never reconnects: the delivery loop asks the connector for a new link. If a connection
/// breaks before the consumer has accepted anything on it, or because the consumer has stopped
/// answering, the address counts as failed. If a connection breaks for another reason, the consumer
/// was most likely restarted, so the address does not count as failed. The same is true if the last
/// batch was a single event that was turned down alone before.
pub(super) struct Session {
    pub(super) wire: Wire,
    /// The attempt at the connection's address, for the reports that the address works or has
    /// failed.
    attempt: Attempt,
    pub(super) dialer: Arc<Dialer>,
    /// The bytes of the current batch that are still to be written. Empty if all bytes are written
    /// but not yet flushed. `None` if no batch is being written. The link puts the bytes of the
    /// next batch here.
    pub(super) unwritten: Option<VecDeque<Bytes>>,
    /// The timer that wakes the link when its next time limit is over.
    timer: Pin<Box<Sleep>>,
    /// The time of the last progress: our kernel took bytes, the peer's kernel acknowledged bytes
    /// (`stream`), or the consumer acknowledged events (`acknowledged`). If the link began to wait
    /// for the peer after that, the time when the wait began.
    pub(super) progress: Instant,
    /// The time when the peer's FIN was read. `None` while the peer may still send.
    pub(super) finished: Option<Instant>,
    /// The time when the link last got a batch, or when the session began. The idle timeout counts
    /// from this time.
    pub(super) used: Instant,
    /// The time when the connection reaches its age limit: `timeouts.max_connection_age` with a
    /// random difference of at most 10 %. `None` without a limit.
    pub(super) expiry: Option<Instant>,
    /// `true` if the connection is *leaving*: see state 2 of [`Session`].
    pub(super) leaving: bool,
    /// `true` if the consumer has accepted anything on this connection.
    accepted_any: bool,
    /// `true` if the last batch is a single event that was turned down alone before. If the
    /// connection then breaks, the event is the most likely reason, and not the address.
    pub(super) is_alone: bool,
    /// The reports ([`Event`]) that the delivery loop gets next from the link, the oldest first.
    pub(super) ready: VecDeque<Event>,
}

impl Session {
    /// Makes a session on a connection that is ready for the first batch.
    pub(super) fn new(wire: Wire, attempt: Attempt, dialer: &Arc<Dialer>) -> Self {
        let now = Instant::now();
        Self {
            wire,
            attempt,
            dialer: Arc::clone(dialer),
            unwritten: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            progress: now,
            finished: None,
            used: now,
            expiry: dialer.endpoints.expiry(),
            leaving: false,
            accepted_any: false,
            is_alone: false,
            ready: VecDeque::new(),
        }
    }

    /// Writes as many bytes of the current batch as the connection takes now. Returns `true` once
    /// for each batch, when the whole batch is written and flushed.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let Some(unwritten) = &mut self.unwritten else { return Ok(false) };
        while !unwritten.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = unwritten.len().min(SLICES_MAX);
            for (slice, piece) in slices.iter_mut().zip(&*unwritten) {
                *slice = IoSlice::new(piece);
            }
            match self.wire.io().poll_write_vectored(cx, &slices[..count]) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    self.progress = Instant::now();
                    self.dialer.metrics.bytes.increment(written as u64);
                    self.attempt.sent(written as u64);
                    advance(unwritten, written);
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        match self.wire.io().poll_flush(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(flushed) => flushed?,
        }
        self.unwritten = None;
        Ok(true)
    }

    /// Reads once into `bytes`, and returns the number of bytes. If the peer has ended the
    /// connection, returns 0 and sets [`Session::finished`].
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(bytes);
        match self.wire.io().poll_read(cx, &mut buf) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) => {}
            // A peer that ends the connection without TLS's close_notify has ended it nevertheless.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        }
        let read = buf.filled().len();
        if read == 0 {
            self.finished = Some(Instant::now());
        }
        Poll::Ready(Ok(read))
    }

    /// Counts a completely acknowledged batch. `begun` is the time when its writing began.
    pub(super) fn ended(&self, begun: Instant) {
        self.attempt.ended(Some(begun.elapsed()), None);
    }

    /// Returns the longest time without any progress of the consumer while sent bytes are
    /// unanswered: see [`Attempt::patience`].
    pub(super) fn patience(&self) -> Duration {
        self.attempt.patience()
    }

    /// See [`Attempt::is_replaceable`].
    pub(super) fn is_replaceable(&self) -> bool {
        self.attempt.is_replaceable()
    }

    /// Records that the consumer has accepted something, so that its address works.
    pub(super) fn succeeded(&mut self) {
        self.accepted_any = true;
        self.attempt.succeeded();
    }

    /// Reports to the delivery loop that this protocol can't carry a claim, or the checkpoint if
    /// `claim` is `None`. `what` is the reason.
    pub(super) fn refuse(&mut self, claim: Option<Claim>, what: String) {
        let failure = Failure::new(AttemptError::Protocol, what);
        self.ready.push_back(match claim {
            Some(claim) => Event::Refused(claim, failure),
            None => Event::Checkpoint(Fate::Refused(failure)),
        });
    }

    /// Returns a failure of this connection. The message has the address, and then `what`.
    pub(super) fn failure(&self, reason: AttemptError, what: impl fmt::Display) -> Failure {
        self.attempt.address().failure(reason, what)
    }

    pub(super) fn io_failure(&mut self, error: &io::Error) -> Failure {
        self.wire.failure(self.attempt.address(), error)
    }

    /// Returns the event that ends the link after `failure`. Also reports that the address failed,
    /// unless the consumer was most likely only restarted, or has turned down a single event.
    pub(super) fn broken(&mut self, mut failure: Failure) -> Event {
        // A consumer that worked and then breaks was most likely restarted, so its address is not
        // blamed. A consumer that became silent may still accept connections, so its address is
        // blamed.
        if self.is_alone {
            failure.elsewhere = self.attempt.turned_down(&failure);
            return Event::Broken { failure, progress: self.accepted_any };
        }
        self.attempt.ended(None, Some(&failure));
        if !self.accepted_any || failure.reason == AttemptError::Timeout {
            failure.elsewhere = self.attempt.blamed(&failure);
        }
        Event::Broken { failure, progress: self.accepted_any }
    }

    /// Sets `leaving` if the connection has reached its age limit, or if its address should no
    /// longer be used.
    pub(super) fn age(&mut self, now: Instant) {
        self.leaving = self.leaving
            || self.expiry.is_some_and(|expiry| now >= expiry)
            || self.dialer.endpoints.is_over(self.attempt.address());
    }

    /// Returns `true` if the link got its last batch at least `idle_timeout` ago.
    pub(super) fn is_unused(&self, now: Instant) -> bool {
        self.idle_end().is_some_and(|end| now >= end)
    }

    /// Returns the time when the connection reaches `idle_timeout`, unless the link gets a batch
    /// before. `None` without an `idle_timeout`.
    fn idle_end(&self) -> Option<Instant> {
        self.dialer.settings.idle_timeout.map(|limit| self.used + limit)
    }

    /// Returns the time when a session without a batch reaches its next time limit: `idle_timeout`
    /// or the age limit. `None` without a limit.
    pub(super) fn idle_wake(&self) -> Option<Instant> {
        [self.idle_end(), self.expiry].into_iter().flatten().min()
    }

    /// Polls a timer that is ready at the time `wake`, or never if `wake` is `None`.
    pub(super) fn poll_timer(&mut self, cx: &mut Context<'_>, wake: Option<Instant>) -> Poll<()> {
        let Some(wake) = wake else { return Poll::Pending };
        self.timer.as_mut().reset(wake);
        self.timer.as_mut().poll(cx)
    }

    /// Ends the connection in order, within [`CLOSE_TIME`]: writes `last`, shuts the write side,
    /// and reads until the peer's FIN. If the socket were closed with unread bytes, our kernel
    /// would send a reset, and the peer could lose bytes that it has not read yet. Errors are
    /// ignored: events that are not final by now are sent again anyway.
    pub(super) async fn close(mut self, last: &[u8]) {
        let closing = async {
            self.wire.io().write_all(last).await?;
            self.wire.io().shutdown().await?;
            let mut ended = self.finished.is_some();
            let mut waste = [0; READ_BYTES];
            while !ended {
                ended = self.wire.io().read(&mut waste).await? == 0;
            }
            io::Result::Ok(())
        };
        tokio::time::timeout(CLOSE_TIME, closing).await.ok();
    }
}

/// Removes the first `bytes` bytes from `pieces`.
fn advance(pieces: &mut VecDeque<Bytes>, mut bytes: usize) {
    while let Some(piece) = pieces.front_mut() {
        if piece.len() > bytes {
            piece.advance(bytes);
            return;
        }
        bytes -= piece.len();
        pieces.pop_front();
    }
}

/// Polls a link until there is an event. If the output's addresses change, the link is polled
/// again, because a change of addresses may end its connection.
pub(super) async fn next_event(
    endpoints: &Endpoints,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<Event>,
) -> Event {
    loop {
        // The future is made before the link reads the addresses, so that no change is missed.
        let changed = endpoints.changed();
        tokio::select! {
            biased;
            event = poll_fn(&mut poll) => return event,
            () = changed => {}
        }
    }
}
