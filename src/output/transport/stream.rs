//! Bytes over TCP or TLS to a peer that never answers, and how none of them is lost.
//!
//! Plain TCP has no acknowledgement by the application. That the peer's kernel has acknowledged
//! bytes (SIOCOUTQ) does not mean that the peer has read them: if the peer closes or dies before,
//! its kernel answers with a reset. Bytes are therefore final once the peer's kernel has
//! acknowledged them *and* no reset has come for `replay_window` after that. A FIN alone loses
//! nothing: after a FIN nothing more is sent, acknowledged bytes become final unless a reset
//! follows, and the rest goes to a new connection. After a break, everything that is not final is
//! sent again.
//!
//! The rule is weaker than an acknowledgement by the application: a consumer that reads bytes and
//! dies before it has stored them loses them.
//!
//! **Progress is guaranteed** (see [`Pace`]): a consumer that cuts every connection after N bytes
//! still gets about N/2 new bytes on each connection.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

mod pace;

use super::connection::Dialer;
use super::connection::Wire;
use super::encode::Encode;
use super::session;
use super::session::READ_BYTES;
use super::session::Session;
use crate::delivery::endpoints::Attempt;
use crate::delivery::endpoints::Endpoints;
use crate::delivery::endpoints::Probed;
use crate::delivery::endpoints::Watch;
use crate::delivery::failure::Failure;
use crate::delivery::files::Files;
use crate::delivery::link::Connect;
use crate::delivery::link::Event;
use crate::delivery::link::Link;
use crate::delivery::link::REJECTED_BYTES_MAX;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Take;
use crate::telemetry::AttemptError;
use pace::Pace;

/// How many times, at least, the kernel is asked within one replay window which bytes the peer has
/// acknowledged. With a window of 1 s that is every 100 ms.
const SAMPLES_PER_WINDOW: u32 = 10;

/// The kernel is asked more often while much is under way: once for each 2 MiB of one replay
/// window. Bytes that become final soon are freed soon, and memory that is freed in small portions
/// is used again while it is still mapped.
const BYTES_PER_SAMPLE: u64 = 2 * 1024 * 1024;

/// The most samples in one replay window, which bounds the memory for them.
const SAMPLES_MAX: u32 = 1000;

/// The shortest time between two samples.
const SAMPLE_MIN: Duration = Duration::from_millis(2);

/// The most batches on the wire. A peer that takes one event at a time fills a replay window with
/// this many batches.
const CLAIMS_MAX: usize = 65_536;

/// Makes the connections of one output that speak one encoding (`tcp`, `syslog`). Owned by the
/// delivery loop.
///
/// A connection is made in [`Connect::connect`], which calls `Dialer::connect`: the set of
/// endpoints picks an address, the name is looked up, and `Dialer::dial` connects and does the TLS
/// handshake. The loop calls `connect` as soon as the output starts, before there is anything to
/// send. A connection that has ended in order (the peer's FIN, `idle_timeout`,
/// `max_connection_age`) is made again only when there is something to send. One that broke is made
/// again after the retry pause.
pub(in crate::output) struct StreamConnector<E> {
    dialer: Arc<Dialer>,
    encode: Arc<E>,
    replay_window: Duration,
    /// Shared with the current link, so that a limit outlives the connection that broke.
    pace: Arc<Mutex<Pace>>,
    watch: Watch,
}

impl<E: Encode> StreamConnector<E> {
    /// A connector that has made no connection yet.
    pub(in crate::output) fn new(dialer: Dialer, encode: E, replay_window: Duration) -> Self {
        Self {
            dialer: Arc::new(dialer),
            encode: Arc::new(encode),
            replay_window,
            pace: Arc::default(),
            watch: Watch::default(),
        }
    }
}

impl<E: Encode + Sync> Connect for StreamConnector<E> {
    type Link = StreamLink<E>;

    const EAGER: bool = true;

    fn files(&self) -> Option<Arc<dyn Files>> {
        self.dialer.files()
    }

    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        Some(Arc::clone(&self.dialer.endpoints))
    }

    async fn probe(&mut self) -> Probed {
        self.dialer.probe().await
    }

    async fn connect(&mut self) -> Result<StreamLink<E>, Failure> {
        let (wire, attempt) = self.dialer.connect(&mut self.watch).await?;
        lock(&self.pace).connected();
        Ok(StreamLink::new(wire, attempt, self))
    }
}

/// Returns the sum of the lengths of `pieces`, in bytes.
fn length(pieces: &[Bytes]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}

fn lock(pace: &Mutex<Pace>) -> MutexGuard<'_, Pace> {
    pace.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A batch that is written and not final.
struct SentBatch {
    claim: Claim,
    /// Lines of the events in the claim that can't be sent and are given up.
    rejected: Vec<Bytes>,
    /// The number of bytes on the wire (with TLS: of its records) up to the batch's last byte.
    end: u64,
    /// The bytes of the batch before TLS.
    bytes: u64,
}

/// The batch that is being written.
struct Writing {
    claim: Claim,
    /// Lines of the events in the claim that can't be sent and are given up.
    rejected: Vec<Bytes>,
    /// The bytes of the batch before TLS.
    bytes: u64,
    /// The encoded batch, until [`Pace::may_begin`] lets it begin; then `None`, because the
    /// session writes it.
    held_back: Option<VecDeque<Bytes>>,
}

/// How many bytes the peer's kernel had acknowledged at certain times. The times are those at which
/// our kernel was asked.
struct Samples {
    /// The times and the acknowledged bytes of the last replay window, the oldest first.
    kept: VecDeque<(Instant, u64)>,
    /// When the kernel is asked next.
    next: Instant,
    /// The bytes on the wire that the last sample has found acknowledged.
    acknowledged: u64,
}

/// One connection to a peer that never answers. The delivery loop owns the link, and does all its
/// work by polling [`Link::event`].
///
/// The life of a batch on the link:
///
/// 1. *Held back.* [`Link::send`] encodes the batch. While [`Pace`] has a limit and the batch does
///    not fit, the batch waits until everything before it is final.
/// 2. *Being written.* The session writes it. There is one such batch at a time; [`Link::room`] is
///    `None` until it is flushed.
/// 3. *Sent.* Its last byte lies at `end` on the wire. Several batches are in this state.
/// 4. *Final.* A sample that is at least `replay_window` old shows `end` as acknowledged, and the
///    connection still had no error when that sample aged. The link reports [`Event::Accepted`].
///
/// To find out 4, the link asks the kernel regularly how many bytes the peer's kernel has
/// acknowledged, and keeps the answers of the last `replay_window` ([`Samples`]). Asking also
/// reports a reset.
///
/// Invariants: batches become final in the order in which they were sent. Nothing is final that a
/// reset within the window could still concern. After a FIN nothing is written.
///
/// The link ends with [`Event::Closed`] when nothing is under way and the connection is no longer
/// wanted; with [`Event::Broken`] after an error, when the peer takes nothing for
/// `timeouts.request`, and when the peer's FIN came before everything was acknowledged.
pub(in crate::output) struct StreamLink<E> {
    session: Session,
    encode: Arc<E>,
    replay_window: Duration,
    pace: Arc<Mutex<Pace>>,
    /// The batch that is held back or being written.
    writing: Option<Writing>,
    /// The batches that are written and not final, the oldest first.
    sent: VecDeque<SentBatch>,
    /// The bytes of all `rejected` lines in `writing` and `sent`.
    rejected_bytes: u64,
    samples: Samples,
}

impl<E: Encode> StreamLink<E> {
    fn new(wire: Wire, attempt: Attempt, connector: &StreamConnector<E>) -> Self {
        let acknowledged = wire.counted().written;
        Self {
            session: Session::new(wire, attempt, &connector.dialer),
            encode: Arc::clone(&connector.encode),
            replay_window: connector.replay_window,
            pace: Arc::clone(&connector.pace),
            writing: None,
            sent: VecDeque::new(),
            rejected_bytes: 0,
            samples: Samples { kept: VecDeque::new(), next: Instant::now(), acknowledged },
        }
    }

    /// Returns `true` if nothing would be lost if the connection ended now.
    fn is_idle(&self) -> bool {
        self.writing.is_none() && self.sent.is_empty() && self.session.ready.is_empty()
    }

    /// Returns `true` if some bytes of the batch in `writing` may be on the wire.
    fn has_begun(&self) -> bool {
        self.writing.as_ref().is_some_and(|writing| writing.held_back.is_none())
    }

    fn broken(&mut self, failure: Failure) -> Event {
        lock(&self.pace).broke();
        self.session.broken(failure)
    }

    fn failed(&mut self, error: &io::Error) -> Event {
        let failure = self.session.io_failure(error);
        self.broken(failure)
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(event) = self.session.ready.pop_front() {
                return Poll::Ready(event);
            }
            if let Err(error) = self.poll_read(cx) {
                return Poll::Ready(self.failed(&error));
            }
            if self.session.finished.is_none()
                && let Err(error) = self.poll_write(cx)
            {
                return Poll::Ready(self.failed(&error));
            }
            let now = Instant::now();
            if now >= self.samples.next
                && !self.is_idle()
                && let Err(error) = self.sample(now)
            {
                return Poll::Ready(self.failed(&error));
            }
            if !self.session.ready.is_empty() {
                continue;
            }
            if let Some(event) = self.overdue(now) {
                return Poll::Ready(event);
            }
            let wake = self.wake();
            if self.session.poll_timer(cx, wake).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Reads all that has arrived. Data from the peer is thrown away: only the end of the
    /// connection and errors count.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut waste = [0; READ_BYTES];
        while self.session.finished.is_none() {
            match self.session.poll_read(cx, &mut waste) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => _ = read?,
            }
        }
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        let bytes = writing.bytes;
        if let Some(pieces) = writing.held_back.take_if(|_| lock(&self.pace).may_begin(bytes)) {
            self.session.write(pieces);
            self.session.progress = Instant::now();
        }
        let pace = &self.pace;
        if self.session.poll_write(cx, |bytes| lock(pace).sent(bytes))?
            && let Some(Writing { claim, rejected, bytes, .. }) = self.writing.take()
        {
            let end = self.session.wire.counted().written;
            self.sent.push_back(SentBatch { claim, rejected, end, bytes });
            self.session.ready.push_back(Event::Room);
        }
        Ok(())
    }

    /// Asks our kernel how many bytes the peer's kernel has acknowledged (a sample). Bytes that a
    /// sample at least one replay window old already showed as acknowledged become final.
    ///
    /// # Errors
    ///
    /// The socket has met an error, such as a reset.
    fn sample(&mut self, now: Instant) -> io::Result<()> {
        self.samples.next = now + self.sample_interval();
        let acknowledged = self.session.wire.acknowledged()?;
        if acknowledged > self.samples.acknowledged {
            self.samples.acknowledged = acknowledged;
            self.session.progress = now;
        }
        self.samples.kept.push_back((now, acknowledged));
        let (mut safe, window) = (None, self.replay_window);
        let aged = |(at, _): &mut (Instant, u64)| now.duration_since(*at) >= window;
        while let Some((_, acknowledged)) = self.samples.kept.pop_front_if(aged) {
            safe = Some(acknowledged);
        }
        if let Some(safe) = safe {
            self.finish(safe);
            if self.sent.is_empty() && self.writing.is_none() {
                self.samples.kept.clear();
            }
        }
        Ok(())
    }

    /// Returns the time between two samples, which is shorter the more bytes are under way.
    fn sample_interval(&self) -> Duration {
        let first = self.sent.front().map_or(0, |sent| sent.end - sent.bytes);
        let under_way = self.sent.back().map_or(0, |sent| sent.end) - first;
        let samples = u32::try_from(under_way / BYTES_PER_SAMPLE).unwrap_or(SAMPLES_MAX);
        (self.replay_window / samples.clamp(SAMPLES_PER_WINDOW, SAMPLES_MAX)).max(SAMPLE_MIN)
    }

    /// Reports every batch as accepted whose last byte is among the first `safe` bytes on the wire.
    fn finish(&mut self, safe: u64) {
        let (mut bytes, mut any) = (0, false);
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.end <= safe) {
            (bytes, any) = (bytes + sent.bytes, true);
            self.rejected_bytes -= length(&sent.rejected);
            let accepted = Event::Accepted { claim: sent.claim, rejected: sent.rejected };
            self.session.ready.push_back(accepted);
        }
        if any {
            self.session.succeeded();
            let all = self.sent.is_empty() && !self.has_begun();
            lock(&self.pace).finished(bytes, all);
        }
    }

    /// Returns the event that ends the connection if a time limit is over at `now`; `None` if none
    /// is.
    fn overdue(&mut self, now: Instant) -> Option<Event> {
        if let Some(finished) = self.session.finished {
            if self.is_idle() {
                return Some(Event::Closed);
            }
            // The grace is one replay window and two samples, so that the bytes that were
            // acknowledged when the FIN came have had their whole window.
            let grace =
                self.replay_window + (self.replay_window / SAMPLES_PER_WINDOW).max(SAMPLE_MIN) * 2;
            if now.duration_since(finished) >= grace {
                let what = "closed by the peer before it had received every byte";
                let failure = self.session.failure(AttemptError::Closed, what);
                return Some(self.broken(failure));
            }
        }
        self.session.age(now);
        if self.is_idle() {
            let ends = self.session.leaving || self.session.is_unused(now);
            return ends.then_some(Event::Closed);
        }
        let unacknowledged = self.has_begun()
            || self.sent.back().is_some_and(|last| last.end > self.samples.acknowledged);
        let waited = now.duration_since(self.session.progress);
        if unacknowledged && waited >= self.session.dialer.timeouts.request {
            let what = "the peer accepts no bytes";
            let failure = self.session.failure(AttemptError::Timeout, what);
            return Some(self.broken(failure));
        }
        None
    }

    /// Returns when a time limit or a sample is due next; `None` if nothing is due.
    fn wake(&self) -> Option<Instant> {
        if self.is_idle() { self.session.idle_wake() } else { Some(self.samples.next) }
    }
}

impl<E: Encode + Sync> Link for StreamLink<E> {
    fn room(&self) -> Option<Take> {
        let full = self.sent.len() >= CLAIMS_MAX || self.rejected_bytes >= REJECTED_BYTES_MAX;
        let ending = self.session.finished.is_some() || self.session.leaving;
        if self.writing.is_some() || ending || full {
            return None;
        }
        let bytes = lock(&self.pace).room()?;
        Some(Take { bytes, events: u64::MAX })
    }

    fn send(&mut self, batch: Batch) {
        let claim = batch.claim;
        let now = Instant::now();
        if self.is_idle() {
            (self.session.progress, self.samples.next) = (now, now);
        }
        self.session.used(now);
        match self.encode.encode(batch) {
            Err(what) => self.session.refuse(claim, what),
            // Every event was given up and nothing is on the wire, so the claim is final at once.
            Ok(encoded) if encoded.pieces.is_empty() && self.sent.is_empty() => {
                let accepted = Event::Accepted { claim, rejected: encoded.rejected };
                self.session.ready.push_back(accepted);
            }
            Ok(encoded) => {
                let bytes = length(&encoded.pieces);
                let (rejected, held_back) = (encoded.rejected, Some(encoded.pieces.into()));
                self.rejected_bytes += length(&rejected);
                self.writing = Some(Writing { claim, rejected, bytes, held_back });
            }
        }
    }

    async fn event(&mut self) -> Event {
        let dialer = Arc::clone(&self.session.dialer);
        session::next_event(&dialer.endpoints, |cx| self.poll_event(cx)).await
    }

    /// Shuts the write side and waits for the peer's FIN: the peer has then read everything.
    async fn close(self) {
        self.session.close(&[]).await;
    }
}
