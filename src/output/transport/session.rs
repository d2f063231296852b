//! The part that the two kinds of link share: one connection to a consumer, from the finished
//! handshake to its orderly end.
//!
//! [`Session`] writes the batch that it is given, reads, notices that the peer has ended the
//! connection, ages, and collects the events that its link reports. It does not know when events
//! are final, and not which timeout applies while they are not: `stream` and `acknowledged` know.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadBuf;
use tokio::time::Instant;
use tokio::time::Sleep;

use super::connection::Dialer;
use super::connection::Wire;
use crate::delivery::endpoints::Attempt;
use crate::delivery::endpoints::Endpoints;
use crate::delivery::failure::Failure;
use crate::delivery::link::CLOSE_TIME;
use crate::delivery::link::Event;
use crate::queue::Claim;
use crate::telemetry::AttemptError;

/// The most bytes that one call of `Session::poll_read` reads from the peer.
pub(super) const READ_BYTES: usize = 4096;

/// The most slices of one vectored write.
const SLICES_MAX: usize = 64;

/// One connection over TCP or TLS, as both kinds of link use it.
///
/// A link owns its session, and the delivery loop owns the link. No task runs in here: everything
/// happens while the loop polls [`Link::event`](crate::delivery::link::Link::event).
///
/// The life of a session:
///
/// 1. *Open.* The link takes batches. At most one batch is being written at any time
///    ([`Session::write`]); several may be written and not yet final, and the link keeps those.
/// 2. *Leaving.* The connection has reached its age, or a preferred address is usable again. The
///    link takes no more batches, and ends when all that it has is final.
/// 3. *Ended by the peer.* The peer has sent FIN (or TLS's close_notify). Nothing more is read. The
///    link takes no more batches.
/// 4. *Closed* by [`Session::close`] in order, or *broken* by an error, which
///    [`Session::broken`] turns into the link's last event.
///
/// A session never reconnects: the delivery loop asks the connector for a new link. What breaks
/// before anything was accepted counts against the address at once; what breaks after that is most
/// likely a restart, and the same address is tried first, unless the consumer fell silent.
pub(super) struct Session {
    pub(super) wire: Wire,
    /// The claim on the address, which learns whether the address works.
    attempt: Attempt,
    pub(super) dialer: Arc<Dialer>,
    /// The bytes of the current batch that the wire has not taken; `None` once all of them are
    /// written and flushed.
    unwritten: Option<VecDeque<Bytes>>,
    timer: Pin<Box<Sleep>>,
    /// When the peer last made progress (it sent something, or its kernel took bytes), or when the
    /// session last began to wait for it.
    pub(super) progress: Instant,
    /// When the end of the peer's data (FIN) was read; `None` while the peer may still send.
    pub(super) finished: Option<Instant>,
    /// When a batch was last handed over, or when the session began.
    used: Instant,
    /// When the connection reaches `timeouts.max_connection_age`; `None` without such a limit.
    expiry: Option<Instant>,
    /// `true`: the link takes no more batches, and ends when everything that it has is final.
    pub(super) leaving: bool,
    /// `true` if the consumer has accepted anything on this connection.
    accepted_any: bool,
    /// Events that the link reports next, the oldest first.
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
            ready: VecDeque::new(),
        }
    }

    /// Notes that a batch was handed over, which begins the idle timeout anew.
    pub(super) fn used(&mut self, now: Instant) {
        self.used = now;
    }

    /// Begins to write the bytes of a batch. The previous batch must be written and flushed.
    pub(super) fn write(&mut self, pieces: VecDeque<Bytes>) {
        self.unwritten = Some(pieces);
    }

    /// Returns `true` if bytes of a batch are not yet written and flushed.
    pub(super) fn is_writing(&self) -> bool {
        self.unwritten.is_some()
    }

    /// Writes as much of the current batch as the wire takes, and calls `wrote` with the number of
    /// bytes after each write. Returns `true` once for each batch: when all of it is flushed.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        wrote: impl Fn(u64),
    ) -> io::Result<bool> {
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
                    wrote(written as u64);
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

    /// Reads into `bytes` once and returns how many bytes were read. At the peer's end of the
    /// connection this is 0, and [`Session::finished`] is set.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(bytes);
        match self.wire.io().poll_read(cx, &mut buf) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) => {}
            // A peer that ends the connection without TLS's close_notify has ended it all the same.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        }
        let read = buf.filled().len();
        if read == 0 {
            self.finished = Some(Instant::now());
        }
        Poll::Ready(Ok(read))
    }

    /// Notes that the consumer has accepted something: its address works.
    pub(super) fn succeeded(&mut self) {
        self.accepted_any = true;
        self.attempt.succeeded();
    }

    /// Reports that the protocol can't carry a batch and may not drop any of it; `what` says why.
    pub(super) fn refuse(&mut self, claim: Claim, what: String) {
        let failure = Failure::new(AttemptError::Protocol, what);
        self.ready.push_back(Event::Refused(claim, failure));
    }

    /// Returns a failure of this connection with a message that names the address.
    pub(super) fn failure(&self, reason: AttemptError, what: impl fmt::Display) -> Failure {
        self.attempt.address().failure(reason, what)
    }

    /// Returns the failure of this connection for an error of reading or writing.
    pub(super) fn io_failure(&mut self, error: &io::Error) -> Failure {
        self.wire.failure(self.attempt.address(), error)
    }

    /// Returns the event that ends the link of a connection that has failed.
    pub(super) fn broken(&mut self, mut failure: Failure) -> Event {
        // A consumer that worked and breaks was most likely restarted, and its address is tried
        // again first. A consumer that fell silent may still take connections, so its address
        // counts as failed.
        if !self.accepted_any || failure.reason == AttemptError::Timeout {
            failure.elsewhere = self.attempt.failed(&failure);
        }
        Event::Broken { failure, progress: self.accepted_any }
    }

    /// Decides whether the connection is to end in order: it has reached its age, or another
    /// address is to be used instead.
    pub(super) fn age(&mut self, now: Instant) {
        self.leaving = self.leaving
            || self.expiry.is_some_and(|expiry| now >= expiry)
            || self.dialer.endpoints.is_over(self.attempt.address());
    }

    /// Returns `true` if the last batch was handed over at least `idle_timeout` ago.
    pub(super) fn is_unused(&self, now: Instant) -> bool {
        self.idle_end().is_some_and(|end| now >= end)
    }

    fn idle_end(&self) -> Option<Instant> {
        self.dialer.settings.idle_timeout.map(|limit| self.used + limit)
    }

    /// Returns when a session with nothing under way reaches its next time limit; `None` if it has
    /// none.
    pub(super) fn idle_wake(&self) -> Option<Instant> {
        [self.idle_end(), self.expiry].into_iter().flatten().min()
    }

    /// Returns when the connection reaches its age limit; `None` if it has no such limit or takes
    /// no more batches already.
    pub(super) fn age_wake(&self) -> Option<Instant> {
        self.expiry.filter(|_| !self.leaving)
    }

    /// Waits until the time `wake`, or for ever if `wake` is `None`.
    pub(super) fn poll_timer(&mut self, cx: &mut Context<'_>, wake: Option<Instant>) -> Poll<()> {
        let Some(wake) = wake else { return Poll::Pending };
        self.timer.as_mut().reset(wake);
        self.timer.as_mut().poll(cx)
    }

    /// Ends the connection in order: writes `last`, shuts the write side, and reads until the
    /// peer's FIN, for [`CLOSE_TIME`] at most. Errors are ignored: claims that are not final by now
    /// count as undelivered anyway.
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

/// Takes `bytes` bytes off the front of `pieces`.
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

/// Polls a link until it has an event. A change of the output's addresses polls it again, because
/// the connection may have to end then.
pub(super) async fn next_event(
    endpoints: &Endpoints,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<Event>,
) -> Event {
    loop {
        // The future is made before the link looks at the addresses, so that no change is missed.
        let changed = endpoints.changed();
        tokio::select! {
            biased;
            event = poll_fn(&mut poll) => return event,
            () = changed => {}
        }
    }
}
