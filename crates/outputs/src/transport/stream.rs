//! Sends bytes over TCP or TLS to a peer that never answers, and finds out which bytes have
//! arrived.
//!
//! Plain TCP has no acknowledgement by the application. The peer may not have read bytes that the
//! peer's kernel has acknowledged (SIOCOUTQ). If the peer closes the connection or dies before it
//! has read them, the peer's kernel sends a reset. Bytes are therefore final once the peer's kernel
//! has acknowledged them *and* no reset has come for `replay_window` after that. A FIN alone loses
//! nothing: after a FIN nothing more is sent, acknowledged bytes become final unless a reset
//! follows, and all other bytes go to a new connection. After a break, everything that is not final
//! is sent again.
//!
//! The rule is weaker than an acknowledgement by the application: a consumer that reads bytes and
//! dies before it has stored them loses them.
//!
//! **Progress is guaranteed**: after a break before which nothing had become final, or a second
//! break with the same events, the delivery sends at most half of them on the next connection, and
//! sends more only when they are final.
//!
//! The link asks our kernel regularly how many bytes the peer's kernel has acknowledged. Each such
//! number is a *sample*.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::connection::{Dialer, Wire};
use super::encode::{Encode, Encoded};
use super::session;
use super::session::{READ_BYTES, Session};
use delivery::checkpoints::Checkpoint;
use delivery::endpoints::{Attempt, Endpoints, Probed, Watch};
use delivery::failure::Failure;
use delivery::files::Files;
use delivery::link::{Connect, Event, Link, Parts};
use queue::{Batch, Claim, Take};
use telemetry::AttemptError;

/// The minimum number of samples within one replay window, such as one every 100 ms in a window of
/// 1 s. A very short window has fewer samples, because of [`SAMPLE_MIN`].
const SAMPLES_PER_WINDOW: u32 = 10;

/// A replay window has one sample for each 2 MiB that are not final, within the limits of
/// [`SAMPLES_PER_WINDOW`], [`SAMPLES_MAX`] and [`SAMPLE_MIN`]. With frequent samples, memory is
/// freed sooner and in small portions, which the allocator can use again before it unmaps them.
const BYTES_PER_SAMPLE: u64 = 2 * 1024 * 1024;

/// The maximum number of samples in one replay window. All samples of a window are in memory, so
/// this limit bounds their memory.
const SAMPLES_MAX: u32 = 1000;

/// The shortest time between two samples.
const SAMPLE_MIN: Duration = Duration::from_millis(2);

/// The maximum number of batches that are sent and not final. The limit matters only if most
/// batches have very few events.
const CLAIMS_MAX: usize = 65_536;

/// The connector of an output whose consumer acknowledges nothing (`tcp`, `syslog`). It makes the
/// output's connections, one after the other. The delivery loop owns the connector.
///
/// [`Connect::connect`] makes a connection: `Dialer::connect` picks an address and looks up the
/// host name, and `Dialer::dial` connects and does the TLS handshake. The loop first calls
/// `connect` when the delivery begins, even if there is nothing to send. After a connection has
/// ended in order (the peer's FIN, `idle_timeout`, `max_connection_age`), the next one is made only
/// when there is something to send. After a connection has broken, the next one is made without a
/// pause in three cases: events were accepted on the broken connection, it had lasted for some
/// time, or another address may be tried. Otherwise the next one is made after a pause.
pub(crate) struct StreamConnector<E> {
    dialer: Arc<Dialer>,
    encode: Arc<E>,
    replay_window: Duration,
    watch: Watch,
}

impl<E: Encode> StreamConnector<E> {
    /// Makes a connector without a connection. Acknowledged bytes are final after a `replay_window`
    /// without a reset.
    pub(crate) fn new(dialer: Dialer, encode: E, replay_window: Duration) -> Self {
        Self {
            dialer: Arc::new(dialer),
            encode: Arc::new(encode),
            replay_window,
            watch: Watch::default(),
        }
    }
}

impl<E: Encode + Sync> Connect for StreamConnector<E> {
    type Link = StreamLink<E>;

    const EAGER: bool = true;

    fn tells_positions(&self) -> bool {
        E::HAS_LIMIT
    }

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
        Ok(StreamLink::new(wire, attempt, self))
    }
}

fn length(pieces: &[Bytes]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}

/// Returns the report about a final batch. `claim` is `None` for a checkpoint.
fn report(claim: Option<Claim>, parts: Parts) -> Event {
    match claim {
        Some(claim) if !parts.are_delivered() => Event::Judged(claim, parts.end(claim)),
        claim => Event::accepted(claim),
    }
}

/// A batch that waits to be written, is being written, or is written and not final.
struct SentBatch {
    /// `None` for a checkpoint.
    claim: Option<Claim>,
    /// The events of the batch that are written, and the events that are too long; see [`Encoded`].
    parts: Parts,
    /// The number of bytes that our kernel had taken since the connection was made, up to the end
    /// of this batch. With TLS, they are bytes of TLS records. 0 until the batch is written.
    end: u64,
    /// The length of the encoded batch in bytes, before TLS.
    bytes: u64,
    /// The time when the writing began.
    begun: Instant,
}

/// The samples of one connection.
struct Samples {
    /// The samples that are younger than the replay window, the oldest first: the time when our
    /// kernel was asked, and the number of acknowledged bytes.
    kept: VecDeque<(Instant, u64)>,
    next: Instant,
    /// The highest number of acknowledged bytes on this connection so far. Before the first sample,
    /// the number of bytes that the handshake has written.
    acknowledged: u64,
}

/// One connection to a peer that never answers. The delivery loop owns the link. Until the loop
/// closes the link, all reading and writing happens while the loop polls [`Link::event`].
///
/// The life of a batch on the link:
///
/// 1. *Being written.* [`Link::send`] encodes the batch, and the session writes it. There is one
///    such batch at a time; [`Link::room`] is `None` until this batch is written and flushed.
/// 2. *Sent.* The batch is written, and its `end` is set. Several batches can be in this state.
/// 3. *Final.* A sample that is at least `replay_window` old shows that all bytes up to `end` were
///    acknowledged, and the connection has had no error since. The link reports
///    [`Event::Accepted`], or [`Event::Judged`] if some events were too long to be sent.
///
/// For state 3, the link keeps the samples of the last `replay_window` ([`Samples`]). When the link
/// takes a sample, it also sees whether the connection was reset.
///
/// Invariants: batches become final in the order in which they were sent. Bytes become final only
/// when `replay_window` has passed since their acknowledgement without a reset of the connection.
/// After the peer's FIN nothing is written.
///
/// Once every batch is final, the link ends with [`Event::Closed`] if the peer has sent FIN, the
/// connection is leaving ([`Session`]), or `idle_timeout` is over. The link ends with
/// [`Event::Broken`] in three cases: after an error; when the peer takes no bytes for
/// `timeouts.request`; and when the peer's FIN came before all bytes were acknowledged.
pub(crate) struct StreamLink<E> {
    session: Session,
    encode: Arc<E>,
    replay_window: Duration,
    /// The batch that is being written.
    writing: Option<SentBatch>,
    /// The batches that are written and not final, the oldest first.
    sent: VecDeque<SentBatch>,
    samples: Samples,
}

impl<E: Encode> StreamLink<E> {
    fn new(wire: Wire, attempt: Attempt, connector: &StreamConnector<E>) -> Self {
        let acknowledged = wire.socket().written();
        Self {
            session: Session::new(wire, attempt, &connector.dialer),
            encode: Arc::clone(&connector.encode),
            replay_window: connector.replay_window,
            writing: None,
            sent: VecDeque::new(),
            samples: Samples { kept: VecDeque::new(), next: Instant::now(), acknowledged },
        }
    }

    /// Encodes a batch, and restarts the idle timeout. If the link was idle, the request timeout
    /// also begins now, and the next sample is due at once.
    fn encode(&mut self, batch: Batch) -> Result<Encoded, String> {
        let now = Instant::now();
        if self.is_idle() {
            (self.session.progress, self.samples.next) = (now, now);
        }
        self.session.used = now;
        self.encode.encode(batch)
    }

    /// Begins to write an encoded batch. `claim` is `None` for a checkpoint.
    fn begin(&mut self, claim: Option<Claim>, encoded: Encoded) {
        let (bytes, parts) = (length(&encoded.pieces), encoded.parts);
        let (end, begun) = (0, Instant::now());
        self.session.unwritten = Some(encoded.pieces.into());
        self.session.progress = begun;
        self.writing = Some(SentBatch { claim, parts, end, bytes, begun });
    }

    /// Returns `true` if no batch waits to be written, to become final or to be reported. If the
    /// connection ends now, nothing has to be sent again.
    fn is_idle(&self) -> bool {
        self.writing.is_none() && self.sent.is_empty() && self.session.ready.is_empty()
    }

    fn failed(&mut self, error: &io::Error) -> Event {
        let failure = self.session.io_failure(error);
        self.session.broken(failure)
    }

    /// Reads, writes and takes samples until there is an event for the delivery loop.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(event) = self.session.ready.pop_front() {
                return Poll::Ready(event);
            }
            if let Err(error) = self.poll_work(cx) {
                return Poll::Ready(self.failed(&error));
            }
            if !self.session.ready.is_empty() {
                continue;
            }
            if let Some(event) = self.overdue(Instant::now()) {
                return Poll::Ready(event);
            }
            let wake = self.wake();
            if self.session.poll_timer(cx, wake).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn poll_work(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.poll_read(cx)?;
        if self.session.finished.is_none() {
            self.poll_write(cx)?;
        }
        let now = Instant::now();
        let is_due = now >= self.samples.next && !self.is_idle();
        if is_due { self.sample(now) } else { Ok(()) }
    }

    /// Reads and discards all bytes that have arrived from the peer. Only errors and the end of the
    /// connection matter.
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

    /// Writes as many bytes of the current batch as the connection takes now. A completely written
    /// batch is added to `sent`.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.writing.is_some()
            && self.session.poll_write(cx)?
            && let Some(written) = self.writing.take()
        {
            let end = self.session.wire.socket().written();
            self.sent.push_back(SentBatch { end, ..written });
            self.session.ready.push_back(Event::Room);
        }
        Ok(())
    }

    /// Takes a sample, and reports the batches that are now final.
    ///
    /// # Errors
    ///
    /// The socket has an error, such as a reset.
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

    /// Returns the time until the next sample. The more bytes are not final, the shorter the time:
    /// for a replay window of 1 s, 100 ms with up to 20 MiB, and 10 ms with 200 MiB.
    fn sample_interval(&self) -> Duration {
        let first = self.sent.front().map_or(0, |sent| sent.end - sent.bytes);
        let under_way = self.sent.back().map_or(0, |sent| sent.end) - first;
        let samples = u32::try_from(under_way / BYTES_PER_SAMPLE).unwrap_or(SAMPLES_MAX);
        (self.replay_window / samples.clamp(SAMPLES_PER_WINDOW, SAMPLES_MAX)).max(SAMPLE_MIN)
    }

    /// Reports the batches that are final: those whose last byte is among the first `safe` bytes of
    /// the connection.
    fn finish(&mut self, safe: u64) {
        let mut any = false;
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.end <= safe) {
            any = true;
            // A batch whose events are all too long was not written, and does not count as an
            // attempt.
            if sent.bytes > 0 {
                self.session.ended(sent.begun);
            }
            self.session.ready.push_back(report(sent.claim, sent.parts));
        }
        if any {
            self.session.succeeded();
        }
    }

    /// Returns the event that ends the link. `None` if the link does not end at the time `now`. The
    /// link ends when a time limit is over, and without a waiting batch also when the connection is
    /// finished or leaving.
    fn overdue(&mut self, now: Instant) -> Option<Event> {
        if let Some(finished) = self.session.finished {
            if self.is_idle() {
                return Some(Event::Closed);
            }
            // The grace is one replay window and the time of two samples. Bytes that were
            // acknowledged before the FIN came are final by then.
            let grace =
                self.replay_window + (self.replay_window / SAMPLES_PER_WINDOW).max(SAMPLE_MIN) * 2;
            if now.duration_since(finished) >= grace {
                let what = "the peer closed the connection before it had acknowledged every byte";
                let failure = self.session.failure(AttemptError::Closed, what);
                return Some(self.session.broken(failure));
            }
        }
        self.session.age(now);
        if self.is_idle() {
            let ends = self.session.leaving || self.session.is_unused(now);
            return ends.then_some(Event::Closed);
        }
        let unacknowledged = self.writing.is_some()
            || self.sent.back().is_some_and(|last| last.end > self.samples.acknowledged);
        let waited = now.duration_since(self.session.progress);
        if unacknowledged && waited >= self.session.dialer.timeouts.request {
            let what = "the peer accepts no bytes";
            let failure = self.session.failure(AttemptError::Timeout, what);
            return Some(self.session.broken(failure));
        }
        None
    }

    /// Returns the time when the link must be polled again even if nothing happens until then: for
    /// the next sample or, without a batch, for the next time limit.
    fn wake(&self) -> Option<Instant> {
        if self.is_idle() { self.session.idle_wake() } else { Some(self.samples.next) }
    }
}

impl<E: Encode + Sync> Link for StreamLink<E> {
    fn room(&self) -> Option<Take> {
        let full = self.sent.len() >= CLAIMS_MAX;
        let ending = self.session.finished.is_some() || self.session.leaving;
        if self.writing.is_some() || ending || full {
            return None;
        }
        Some(Take { bytes: E::BATCH_BYTES, events: u64::MAX })
    }

    fn send(&mut self, batch: Batch) {
        self.session.is_alone = false;
        let claim = batch.claim;
        match self.encode(batch) {
            Err(what) => self.session.refuse(Some(claim), what),
            // No event of the claim could be sent, and no earlier batch waits, so the claim is
            // final now.
            Ok(encoded) if encoded.pieces.is_empty() && self.sent.is_empty() => {
                self.session.ready.push_back(report(Some(claim), encoded.parts));
            }
            Ok(encoded) => self.begin(Some(claim), encoded),
        }
    }

    fn send_alone(&mut self, batch: Batch) {
        self.send(batch);
        self.session.is_alone = true;
    }

    fn send_checkpoint(&mut self, checkpoint: Checkpoint) {
        match self.encode(checkpoint.batch()) {
            Ok(encoded) if encoded.parts.are_delivered() => self.begin(None, encoded),
            Ok(_) => self.session.refuse(None, "it is too long".to_owned()),
            Err(what) => self.session.refuse(None, what),
        }
    }

    async fn event(&mut self) -> Event {
        let dialer = Arc::clone(&self.session.dialer);
        session::next_event(&dialer.endpoints, |cx| self.poll_event(cx)).await
    }

    /// Ends the connection in order. The rest of a batch that is being written is not written.
    async fn close(self) {
        self.session.close(&[]).await;
    }
}
