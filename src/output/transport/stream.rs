//! Bytes over TCP or TLS to a peer that never answers, and what it takes to lose none of them.
//!
//! Plain TCP has no acknowledgement. That the peer's kernel has the bytes (SIOCOUTQ) does not mean that the peer has read
//! them: if it closes or dies before, its kernel answers RST. So what was sent is final once it is acknowledged by the
//! peer's kernel *and* no reset has come for `replay_window` after. A FIN alone is no loss: after it nothing more is
//! sent, what was acknowledged becomes final unless a reset follows, and the rest goes to a new connection. After a
//! break everything that is not final is sent again.
//!
//! This is weaker than an acknowledgement by the application: a consumer that reads bytes and dies before it has stored
//! them loses them.
//!
//! **Progress is guaranteed** (see [`Pace`]): a consumer that cuts every connection after N bytes still gets about N/2
//! of them for each.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadBuf;
use tokio::time::Instant;
use tokio::time::Sleep;

use super::connection::Endpoint;
use super::connection::Wire;
use super::encode::Encode;
use crate::delivery::endpoints::Attempt;
use crate::delivery::endpoints::Endpoints;
use crate::delivery::endpoints::Probed;
use crate::delivery::endpoints::Watch;
use crate::delivery::failure::Failure;
use crate::delivery::files::Files;
use crate::delivery::link::CLOSE_TIME;
use crate::delivery::link::Connect;
use crate::delivery::link::Event;
use crate::delivery::link::Link;
use crate::delivery::link::REJECTED_BYTES_MAX;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Take;
use crate::telemetry::AttemptError;

/// The kernel is asked so often within one replay window what it has acknowledged, at least.
const SAMPLES_PER_WINDOW: u32 = 10;

/// More often where more than this is under way for each: what becomes final at once is free at once, and memory that
/// comes back in small portions is used again while it is mapped.
const BYTES_PER_SAMPLE: u64 = 2 * 1024 * 1024;

/// A bound of what is kept of the answers.
const SAMPLES_MAX: u32 = 1000;

/// And never more often than this.
const SAMPLE_MIN: Duration = Duration::from_millis(2);

/// Batches on the wire. A peer that takes one event at a time fills a replay window with so many.
const CLAIMS_MAX: usize = 65_536;

/// Slices of one vectored write.
const SLICES_MAX: usize = 64;

/// Makes connections that speak one encoding. Owned by the delivery loop.
pub(in crate::output) struct Connector<E> {
    endpoint: Arc<Endpoint>,
    encode: Arc<E>,
    replay_window: Duration,
    pace: Arc<Mutex<Pace>>,
    watch: Watch,
}

impl<E: Encode> Connector<E> {
    pub(in crate::output) fn new(endpoint: Endpoint, encode: E, replay_window: Duration) -> Self {
        Self {
            endpoint: Arc::new(endpoint),
            encode: Arc::new(encode),
            replay_window,
            pace: Arc::default(),
            watch: Watch::default(),
        }
    }
}

impl<E: Encode + Sync> Connect for Connector<E> {
    type Link = StreamLink<E>;

    const EAGER: bool = true;

    fn files(&self) -> Option<Arc<dyn Files>> {
        self.endpoint.files()
    }

    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        Some(Arc::clone(&self.endpoint.endpoints))
    }

    async fn probe(&mut self) -> Probed {
        self.endpoint.probe().await
    }

    async fn connect(&mut self) -> Result<StreamLink<E>, Failure> {
        let (wire, attempt) = self.endpoint.connect(&mut self.watch).await?;
        lock(&self.pace).connected();
        Ok(StreamLink::new(wire, attempt, self))
    }
}

fn length(pieces: &[Bytes]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}

fn lock(pace: &Mutex<Pace>) -> MutexGuard<'_, Pace> {
    pace.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much may be under way, over the connections of one output. Bytes are those handed to the wire.
///
/// While nothing breaks: any amount. After a connection that broke: half of what that one took, and no more until that
/// is final. The limit doubles with each window that becomes final, but only once the connection has carried more than
/// the one that broke: a consumer that cuts after N bytes is then sent N/2 twice per connection, of which one half is
/// final, and not N/2 and N.
#[derive(Debug, Default)]
struct Pace {
    /// `None`: unlimited.
    limit: Option<u64>,
    /// What the connection that broke had taken.
    broke_after: u64,
    /// Sent in this window.
    window: u64,
    /// Final on this connection.
    final_bytes: u64,
    /// Sent on this connection.
    sent: u64,
}

impl Pace {
    fn connected(&mut self) {
        (self.window, self.final_bytes, self.sent) = (0, 0, 0);
    }

    /// Bytes that may be sent now.
    fn room(&self) -> Option<u64> {
        match self.limit {
            None => Some(u64::MAX),
            Some(limit) if self.window == 0 => Some(limit),
            Some(limit) => limit.checked_sub(self.window).filter(|left| *left > 0),
        }
    }

    /// Whether something of so many bytes may be begun now. One event may be larger than what is left, and then waits
    /// until everything before it is final: sent with it, it could cost them their place again and again.
    fn may_begin(&self, bytes: u64) -> bool {
        self.limit.is_none_or(|limit| self.window == 0 || self.window + bytes <= limit)
    }

    fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
        self.window += bytes;
    }

    /// So many bytes became final; `all`: nothing else is under way.
    fn finished(&mut self, bytes: u64, all: bool) {
        self.final_bytes += bytes;
        let Some(limit) = self.limit.filter(|_| all && self.window > 0) else { return };
        self.window = 0;
        if self.final_bytes > self.broke_after {
            // Beyond any window that a replay could hold, a limit is none.
            self.limit = limit.checked_mul(2).filter(|doubled| *doubled < 1 << 40);
        }
    }

    fn broke(&mut self) {
        if self.sent > self.final_bytes {
            self.broke_after = self.sent;
            self.limit = Some((self.sent / 2).max(1));
        }
    }
}

/// A batch that is written and not final.
struct Sent {
    claim: Claim,
    rejected: Vec<Bytes>,
    /// The wire's count behind its last byte.
    end: u64,
    /// Bytes of it.
    bytes: u64,
}

/// A batch that is to be written.
struct Writing {
    claim: Claim,
    rejected: Vec<Bytes>,
    bytes: u64,
    /// Some of it may be on the wire; not before [`Pace::may_begin`].
    begun: bool,
}

/// One connection.
pub(in crate::output) struct StreamLink<E> {
    wire: Wire,
    attempt: Attempt,
    endpoint: Arc<Endpoint>,
    encode: Arc<E>,
    replay_window: Duration,
    pace: Arc<Mutex<Pace>>,
    /// The batch that is being written, and what is left of it.
    writing: Option<Writing>,
    unwritten: VecDeque<Bytes>,
    sent: VecDeque<Sent>,
    /// Of events that can't be sent, in what is not final.
    rejected_bytes: u64,
    /// What the peer's kernel had acknowledged, and when we saw that.
    samples: VecDeque<(Instant, u64)>,
    next_sample: Instant,
    timer: Pin<Box<Sleep>>,
    /// The last time that bytes were written or acknowledged, or there was nothing under way.
    progress: Instant,
    acknowledged: u64,
    /// The peer has sent FIN.
    finished: Option<Instant>,
    /// The last time a batch was handed over.
    used: Instant,
    /// When the connection is of age.
    expiry: Option<Instant>,
    /// It takes no more batches, and ends when what it has is final: it is of age, or a better address is there.
    leaving: bool,
    accepted_any: bool,
    /// Ready to be told.
    ready: VecDeque<Event>,
}

impl<E: Encode> StreamLink<E> {
    fn new(wire: Wire, attempt: Attempt, connector: &Connector<E>) -> Self {
        let now = Instant::now();
        let acknowledged = wire.counted().written;
        Self {
            wire,
            attempt,
            endpoint: Arc::clone(&connector.endpoint),
            encode: Arc::clone(&connector.encode),
            replay_window: connector.replay_window,
            pace: Arc::clone(&connector.pace),
            writing: None,
            unwritten: VecDeque::new(),
            sent: VecDeque::new(),
            rejected_bytes: 0,
            samples: VecDeque::new(),
            next_sample: now,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            progress: now,
            acknowledged,
            finished: None,
            used: now,
            expiry: connector.endpoint.endpoints.expiry(),
            leaving: false,
            accepted_any: false,
            ready: VecDeque::new(),
        }
    }

    fn is_idle(&self) -> bool {
        self.writing.is_none() && self.sent.is_empty() && self.ready.is_empty()
    }

    fn broken(&mut self, reason: AttemptError, what: impl std::fmt::Display) -> Event {
        let failure = self.attempt.place().failure(reason, what);
        self.broken_by(failure)
    }

    fn failed(&mut self, error: &io::Error) -> Event {
        let failure = self.wire.failure(self.attempt.place(), error);
        self.broken_by(failure)
    }

    fn broken_by(&mut self, mut failure: Failure) -> Event {
        lock(&self.pace).broke();
        // One that has worked and breaks is tried again first; one that takes nothing any more may be connected to.
        if !self.accepted_any || failure.reason == AttemptError::Timeout {
            failure.elsewhere = self.attempt.failed(&failure);
        }
        Event::Broken { failure, progress: self.accepted_any }
    }

    fn has_begun(&self) -> bool {
        self.writing.as_ref().is_some_and(|writing| writing.begun)
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(event);
            }
            if let Err(error) = self.poll_read(cx) {
                return Poll::Ready(self.failed(&error));
            }
            if self.finished.is_none()
                && let Err(error) = self.poll_write(cx)
            {
                return Poll::Ready(self.failed(&error));
            }
            let now = Instant::now();
            if now >= self.next_sample
                && !self.is_idle()
                && let Err(error) = self.sample(now)
            {
                return Poll::Ready(self.failed(&error));
            }
            if !self.ready.is_empty() {
                continue;
            }
            if let Some(event) = self.overdue(now) {
                return Poll::Ready(event);
            }
            let Some(wake) = self.wake() else { return Poll::Pending };
            self.timer.as_mut().reset(wake);
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Data from the peer is thrown away; what matters is its end, and its errors.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut waste = [0; 4096];
        while self.finished.is_none() {
            let mut buf = ReadBuf::new(&mut waste);
            match self.wire.io().poll_read(cx, &mut buf) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                    self.finished = Some(Instant::now())
                }
                Poll::Ready(Ok(())) => {}
                // A peer that ends without TLS's close_notify has ended all the same.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.finished = Some(Instant::now());
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        if !writing.begun {
            if !lock(&self.pace).may_begin(writing.bytes) {
                return Ok(());
            }
            writing.begun = true;
            self.progress = Instant::now();
        }
        while !self.unwritten.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.unwritten.len().min(SLICES_MAX);
            for (slice, piece) in slices.iter_mut().zip(&self.unwritten) {
                *slice = IoSlice::new(piece);
            }
            match self.wire.io().poll_write_vectored(cx, &slices[..count]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    self.wrote(written);
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        match self.wire.io().poll_flush(cx) {
            Poll::Pending => return Ok(()),
            Poll::Ready(flushed) => flushed?,
        }
        let end = self.wire.counted().written;
        if let Some(Writing { claim, rejected, bytes, .. }) = self.writing.take() {
            self.sent.push_back(Sent { claim, rejected, end, bytes });
            self.ready.push_back(Event::Room);
        }
        Ok(())
    }

    fn wrote(&mut self, mut bytes: usize) {
        self.progress = Instant::now();
        self.endpoint.metrics.bytes.increment(bytes as u64);
        lock(&self.pace).sent(bytes as u64);
        while let Some(piece) = self.unwritten.front_mut() {
            if piece.len() > bytes {
                piece.advance(bytes);
                return;
            }
            bytes -= piece.len();
            self.unwritten.pop_front();
        }
    }

    /// Asks the kernel, and makes final what was acknowledged a replay window ago.
    fn sample(&mut self, now: Instant) -> io::Result<()> {
        let window = self.replay_window;
        let first = self.sent.front().map_or(0, |sent| sent.end - sent.bytes);
        let under_way = self.sent.back().map_or(0, |sent| sent.end) - first;
        let samples = u32::try_from(under_way / BYTES_PER_SAMPLE).unwrap_or(SAMPLES_MAX);
        let interval = window / samples.clamp(SAMPLES_PER_WINDOW, SAMPLES_MAX);
        self.next_sample = now + interval.max(SAMPLE_MIN);
        let acknowledged = self.wire.acknowledged()?;
        if acknowledged > self.acknowledged {
            self.acknowledged = acknowledged;
            self.progress = now;
        }
        self.samples.push_back((now, acknowledged));
        let mut safe = None;
        while let Some((_, acknowledged)) =
            self.samples.front().filter(|(at, _)| now.duration_since(*at) >= window)
        {
            safe = Some(*acknowledged);
            self.samples.pop_front();
        }
        let Some(safe) = safe else { return Ok(()) };
        let (mut bytes, mut any) = (0, false);
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.end <= safe) {
            (bytes, any) = (bytes + sent.bytes, true);
            self.rejected_bytes -= length(&sent.rejected);
            self.ready.push_back(Event::Accepted { claim: sent.claim, rejected: sent.rejected });
        }
        if any {
            self.accepted_any = true;
            self.attempt.succeeded();
            let all = self.sent.is_empty() && !self.has_begun();
            lock(&self.pace).finished(bytes, all);
        }
        if self.sent.is_empty() && self.writing.is_none() {
            self.samples.clear();
        }
        Ok(())
    }

    /// What has taken too long.
    fn overdue(&mut self, now: Instant) -> Option<Event> {
        let waited = |since: Instant| now.duration_since(since);
        let settings = &self.endpoint.settings;
        if let Some(finished) = self.finished {
            if self.is_idle() {
                return Some(Event::Closed);
            }
            // One sample more than the window, so that what was acknowledged at the FIN has had its time.
            let grace =
                self.replay_window + (self.replay_window / SAMPLES_PER_WINDOW).max(SAMPLE_MIN) * 2;
            if waited(finished) >= grace {
                return Some(
                    self.broken(
                        AttemptError::Closed,
                        "closed by the peer before it had everything",
                    ),
                );
            }
        }
        self.leaving = self.leaving
            || self.expiry.is_some_and(|expiry| now >= expiry)
            || self.endpoint.endpoints.is_over(self.attempt.place());
        if self.is_idle() {
            let idle = settings.idle_timeout.is_some_and(|limit| waited(self.used) >= limit);
            return (idle || self.leaving).then_some(Event::Closed);
        }
        let unacknowledged =
            self.has_begun() || self.sent.back().is_some_and(|last| last.end > self.acknowledged);
        if unacknowledged && waited(self.progress) >= self.endpoint.timeouts.request {
            return Some(self.broken(AttemptError::Timeout, "the peer takes nothing"));
        }
        None
    }

    /// When there is something to do again without the peer.
    fn wake(&self) -> Option<Instant> {
        if self.is_idle() {
            let idle = self.endpoint.settings.idle_timeout.map(|limit| self.used + limit);
            return [idle, self.expiry].into_iter().flatten().min();
        }
        Some(self.next_sample)
    }
}

impl<E: Encode + Sync> Link for StreamLink<E> {
    fn room(&self) -> Option<Take> {
        let full = self.sent.len() >= CLAIMS_MAX || self.rejected_bytes >= REJECTED_BYTES_MAX;
        let ending = self.finished.is_some() || self.leaving;
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
            (self.progress, self.next_sample) = (now, now);
        }
        self.used = now;
        match self.encode.encode(batch) {
            Err(what) => {
                let failure = Failure::new(AttemptError::Protocol, what);
                self.ready.push_back(Event::Refused(claim, failure));
            }
            // Nothing to wait for: every event of it was given up.
            Ok(encoded) if encoded.pieces.is_empty() && self.sent.is_empty() => {
                self.ready.push_back(Event::Accepted { claim, rejected: encoded.rejected });
            }
            Ok(encoded) => {
                let bytes = length(&encoded.pieces);
                self.unwritten = encoded.pieces.into();
                let rejected = encoded.rejected;
                self.rejected_bytes += length(&rejected);
                self.writing = Some(Writing { claim, rejected, bytes, begun: false });
            }
        }
    }

    async fn event(&mut self) -> Event {
        let endpoint = Arc::clone(&self.endpoint);
        loop {
            // Made before it is looked: a change is not missed.
            let changed = endpoint.endpoints.changed();
            tokio::select! {
                biased;
                event = poll_fn(|cx| self.poll_event(cx)) => return event,
                () = changed => {}
            }
        }
    }

    /// Shuts the write side and waits for the peer's FIN: it has then read everything.
    async fn close(mut self) {
        let closing = async {
            self.wire.io().shutdown().await?;
            let mut waste = [0; 4096];
            while self.finished.is_none() {
                let mut buf = ReadBuf::new(&mut waste);
                poll_fn(|cx| self.wire.io().poll_read(cx, &mut buf)).await?;
                if buf.filled().is_empty() {
                    break;
                }
            }
            io::Result::Ok(())
        };
        // Nothing depends on it: what is not final counts as undelivered.
        tokio::time::timeout(CLOSE_TIME, closing).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;

    /// A consumer that takes `cut` bytes of each connection and then breaks it.
    fn sent_to_cutter(cut: u64, total: u64) -> u64 {
        let (mut pace, mut done, mut sent) = (Pace::default(), 0, 0);
        while done < total {
            pace.connected();
            let mut under_way;
            let mut carried = 0;
            loop {
                under_way = pace.room().unwrap().min(total - done).min(4 * cut);
                pace.sent(under_way);
                sent += under_way;
                carried += under_way;
                if carried > cut {
                    pace.broke();
                    break;
                }
                done += under_way;
                pace.finished(under_way, true);
                if done == total {
                    break;
                }
            }
        }
        sent
    }

    #[test]
    fn a_consumer_that_cuts_gets_everything_for_at_most_three_times_the_bytes() {
        for cut in [1_000, 65_536, 1_999_999, 2_000_000] {
            let total = 50 * cut;
            let sent = sent_to_cutter(cut, total);
            assert!(sent <= 3 * total, "{cut}: {sent} sent for {total}");
        }
    }

    #[test]
    fn after_a_single_break_the_limit_goes_away_again() {
        let mut pace = Pace::default();
        pace.connected();
        assert_eq!(pace.room(), Some(u64::MAX));
        pace.sent(1000);
        pace.broke();
        pace.connected();
        assert_eq!(pace.room(), Some(500));
        pace.sent(500);
        assert_eq!(pace.room(), None);
        pace.finished(500, true);
        // One more half, up to where the last one broke, and a third beyond; then it doubles.
        assert_eq!(pace.room(), Some(500));
        pace.sent(500);
        pace.finished(500, true);
        assert_eq!(pace.room(), Some(500));
        let mut windows = 0;
        while let Some(room) = pace.room().filter(|room| *room < u64::MAX) {
            pace.sent(room);
            pace.finished(room, true);
            windows += 1;
        }
        assert!(windows < 40, "{windows}");
    }
}
