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
use socket2::SockRef;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio::time::Sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Expiry;
use super::Failure;
use super::Files;
use super::delivery::CLOSE_TIME;
use super::delivery::Connect;
use super::delivery::Event;
use super::delivery::Link;
use super::endpoints::Endpoints;
use crate::config;
use crate::config::HostPort;
use crate::net;
use crate::net::DialError;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Take;
use crate::telemetry::AttemptError;
use crate::telemetry::OutputMetrics;
use crate::tls;
use crate::tls::Reload;

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

/// How a batch becomes bytes.
pub trait Encode: Send + 'static {
    /// The bytes of a batch.
    ///
    /// # Errors
    ///
    /// Where an event can't be sent and may not be dropped: what is wrong with it.
    fn encode(&self, batch: Batch) -> Result<Encoded, String>;
}

/// A batch as bytes.
pub struct Encoded {
    /// What is written; empty where every event was refused.
    pub pieces: Vec<Bytes>,
    /// Events that can't be sent and are given up.
    pub refused: u64,
}

/// Where an output connects to, and with which settings.
pub(super) struct Endpoint {
    addresses: Vec<HostPort>,
    endpoints: Endpoints,
    tls: Option<Arc<tls::Client>>,
    settings: config::Stream,
    timeouts: config::Timeouts,
    metrics: OutputMetrics,
    expiry: Expiry,
}

impl Endpoint {
    pub(super) fn new(
        stream: &config::Stream,
        output: &config::Output,
        metrics: OutputMetrics,
        expiry: Expiry,
    ) -> Self {
        Self {
            addresses: stream.addresses.clone(),
            endpoints: Endpoints::new(stream.addresses.len(), stream.strategy),
            tls: stream.tls.clone().map(|tls| Arc::new(tls::Client::new(tls, &[]))),
            settings: stream.clone(),
            timeouts: output.timeouts.clone(),
            metrics,
            expiry,
        }
    }

    pub(super) fn connector<E: Encode>(self, encode: E) -> Connector<E> {
        Connector { endpoint: Arc::new(self), encode: Arc::new(encode), pace: Arc::default() }
    }

    async fn dial(&self, index: usize) -> Result<Wire, Failure> {
        let HostPort { host, port } = &self.addresses[index];
        let deadline = Instant::now() + self.timeouts.connect;
        let stream =
            net::dial(host, *port, deadline).await.map_err(|error| dial_failure(&error))?;
        // The options guard against silent peers; the request timeout does too, only later.
        net::tune_dialled(&stream, self.settings.keepalive, self.timeouts.request).ok();
        let Some(tls) = &self.tls else { return Ok(Wire::Plain(Counted { stream, written: 0 })) };
        let stream =
            handshake(tls, host, *port, Counted { stream, written: 0 }, deadline, &self.expiry)
                .await?;
        Ok(Wire::Tls(Box::new(stream)))
    }
}

impl Files for Endpoint {
    fn reload(&self) -> Result<bool, String> {
        self.tls.as_ref().map_or(Ok(false), |tls| reload_tls(tls, &self.expiry))
    }
}

/// What dialling says, for the counters and the log.
pub(super) fn dial_failure(error: &DialError) -> Failure {
    let reason = match error {
        DialError::Resolve { .. } => AttemptError::Resolve,
        DialError::Connect { .. } => AttemptError::Connect,
        DialError::Timeout { .. } => AttemptError::Timeout,
    };
    Failure::new(reason, error.to_string())
}

/// The client's part of a TLS handshake, with the settings as they are now.
pub(super) async fn handshake<T: AsyncRead + AsyncWrite + Unpin>(
    tls: &tls::Client,
    host: &str,
    port: u16,
    stream: T,
    deadline: Instant,
    expiry: &Expiry,
) -> Result<TlsStream<T>, Failure> {
    let failure =
        |what: String| Failure::new(AttemptError::Tls, format!("TLS with {host}:{port}: {what}"));
    let settings = tls.settings().ok_or_else(|| failure("no usable settings".into()))?;
    let name = tls.server_name(host).map_err(|error| failure(error.to_string()))?;
    let connecting = TlsConnector::from(settings).connect(name, stream);
    let stream = match tokio::time::timeout_at(deadline, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failure(error.to_string())),
        Err(_) => return Err(failure("no answer within the connect timeout".into())),
    };
    let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    expiry.set("server", peer.and_then(tls::not_after));
    Ok(stream)
}

/// Reads an output's TLS files again.
pub(super) fn reload_tls(tls: &tls::Client, expiry: &Expiry) -> Result<bool, String> {
    let reload = tls.reload().map_err(|error| error.to_string())?;
    expiry.set("client", tls.not_after());
    Ok(reload == Reload::Replaced)
}

/// Makes connections that speak one encoding. Owned by the delivery loop.
pub(super) struct Connector<E> {
    endpoint: Arc<Endpoint>,
    encode: Arc<E>,
    pace: Arc<Mutex<Pace>>,
}

impl<E: Encode> Connector<E> {
    pub(super) fn files(&self) -> Option<Arc<dyn Files>> {
        self.endpoint.tls.is_some().then(|| Arc::clone(&self.endpoint) as Arc<dyn Files>)
    }

    pub(super) async fn probe(&self) -> Vec<(String, Result<(), String>)> {
        let mut results = Vec::new();
        for (index, address) in self.endpoint.addresses.iter().enumerate() {
            let dialled = self.endpoint.dial(index).await;
            results.push((
                format!("{}:{}", address.host, address.port),
                dialled.map(drop).map_err(|failure| failure.to_string()),
            ));
        }
        results
    }
}

impl<E: Encode + Sync> Connect for Connector<E> {
    type Link = StreamLink<E>;

    const EAGER: bool = true;

    async fn connect(&mut self) -> Result<StreamLink<E>, Failure> {
        let endpoint = &self.endpoint;
        loop {
            let index = endpoint.endpoints.pick();
            match endpoint.dial(index).await {
                Ok(wire) => {
                    lock(&self.pace).connected();
                    return Ok(StreamLink::new(wire, index, self));
                }
                Err(failure) if endpoint.endpoints.failed(index, None) => {
                    // Another address is left; only the last failure of a round is the output's.
                    endpoint.metrics.failed(failure.reason);
                    tracing::debug!(error = failure.message, "address failed, trying the next");
                }
                Err(failure) => return Err(failure),
            }
        }
    }
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

/// A socket that knows how many bytes were written to it: with TLS, those of its records.
struct Counted {
    stream: TcpStream,
    written: u64,
}

impl Counted {
    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.written += *bytes as u64;
        }
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

enum Wire {
    Plain(Counted),
    Tls(Box<TlsStream<Counted>>),
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Wire {
    fn counted(&self) -> &Counted {
        match self {
            Self::Plain(counted) => counted,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    fn io(&mut self) -> Pin<&mut (dyn Duplex + 'static)> {
        match self {
            Self::Plain(counted) => Pin::new(counted),
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }

    /// What the peer has said in TLS before it ended the connection. Asks the socket itself: a failed write is known
    /// before the runtime has heard that there is something to read.
    fn refusal(&mut self) -> Option<rustls::Error> {
        let Self::Tls(stream) = self else { return None };
        let (counted, session) = stream.get_mut();
        let socket = SockRef::from(&counted.stream);
        while session.read_tls(&mut &*socket).is_ok_and(|bytes| bytes > 0) {
            if let Err(error) = session.process_new_packets() {
                return Some(error);
            }
        }
        None
    }

    /// Bytes that the peer's kernel has acknowledged, or the error that the socket has met.
    fn acknowledged(&self) -> io::Result<u64> {
        let counted = self.counted();
        let unacknowledged = net::unacknowledged(&counted.stream)?;
        // Asked in this order: after a reset the number above means nothing.
        if let Some(error) = counted.stream.take_error()? {
            return Err(error);
        }
        Ok(counted.written.saturating_sub(unacknowledged))
    }
}

/// A batch that is written and not final.
struct Sent {
    claim: Claim,
    lost: u64,
    /// The wire's count behind its last byte.
    end: u64,
    /// Bytes of it.
    bytes: u64,
}

/// A batch that is to be written.
struct Writing {
    claim: Claim,
    lost: u64,
    bytes: u64,
    /// Some of it may be on the wire; not before [`Pace::may_begin`].
    begun: bool,
}

/// One connection.
pub(super) struct StreamLink<E> {
    wire: Wire,
    index: usize,
    endpoint: Arc<Endpoint>,
    encode: Arc<E>,
    pace: Arc<Mutex<Pace>>,
    /// The batch that is being written, and what is left of it.
    writing: Option<Writing>,
    unwritten: VecDeque<Bytes>,
    sent: VecDeque<Sent>,
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
    accepted_any: bool,
    /// Ready to be told.
    ready: VecDeque<Event>,
}

impl<E: Encode> StreamLink<E> {
    fn new(wire: Wire, index: usize, connector: &Connector<E>) -> Self {
        let now = Instant::now();
        let acknowledged = wire.counted().written;
        Self {
            wire,
            index,
            endpoint: Arc::clone(&connector.endpoint),
            encode: Arc::clone(&connector.encode),
            pace: Arc::clone(&connector.pace),
            writing: None,
            unwritten: VecDeque::new(),
            sent: VecDeque::new(),
            samples: VecDeque::new(),
            next_sample: now,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            progress: now,
            acknowledged,
            finished: None,
            used: now,
            accepted_any: false,
            ready: VecDeque::new(),
        }
    }

    fn is_idle(&self) -> bool {
        self.writing.is_none() && self.sent.is_empty() && self.ready.is_empty()
    }

    fn broken(&mut self, reason: AttemptError, what: impl std::fmt::Display) -> Event {
        lock(&self.pace).broke();
        if !self.accepted_any {
            self.endpoint.endpoints.failed(self.index, None);
        }
        let HostPort { host, port } = &self.endpoint.addresses[self.index];
        let failure = Failure::new(reason, format!("connection to {host}:{port}: {what}"));
        Event::Broken { failure, progress: self.accepted_any }
    }

    fn failed(&mut self, error: &io::Error) -> Event {
        // With TLS 1.3 a server refuses our certificate when we believe the handshake done.
        if let Some(refusal) = self.wire.refusal() {
            return self.broken(AttemptError::Tls, refusal);
        }
        let reason = if error.kind() == io::ErrorKind::TimedOut {
            AttemptError::Timeout
        } else if error.kind() == io::ErrorKind::InvalidData {
            // rustls's own errors, an alert of the peer's among them.
            AttemptError::Tls
        } else {
            AttemptError::Closed
        };
        self.broken(reason, error)
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
        if let Some(Writing { claim, lost, bytes, .. }) = self.writing.take() {
            self.sent.push_back(Sent { claim, lost, end, bytes });
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
        let window = self.endpoint.settings.replay_window;
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
            self.ready.push_back(Event::Accepted { claim: sent.claim, lost: sent.lost });
        }
        if any {
            self.accepted_any = true;
            self.endpoint.endpoints.succeeded(self.index);
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
            let grace = settings.replay_window
                + (settings.replay_window / SAMPLES_PER_WINDOW).max(SAMPLE_MIN) * 2;
            if waited(finished) >= grace {
                return Some(
                    self.broken(
                        AttemptError::Closed,
                        "closed by the peer before it had everything",
                    ),
                );
            }
        }
        if self.is_idle() {
            let idle = settings.idle_timeout.filter(|limit| waited(self.used) >= *limit);
            return idle.map(|_| Event::Closed);
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
            return self.endpoint.settings.idle_timeout.map(|limit| self.used + limit);
        }
        Some(self.next_sample)
    }
}

impl<E: Encode + Sync> Link for StreamLink<E> {
    fn room(&self) -> Option<Take> {
        if self.writing.is_some() || self.finished.is_some() || self.sent.len() >= CLAIMS_MAX {
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
                self.ready.push_back(Event::Accepted { claim, lost: encoded.refused });
            }
            Ok(encoded) => {
                let bytes = encoded.pieces.iter().map(|piece| piece.len() as u64).sum();
                self.unwritten = encoded.pieces.into();
                self.writing = Some(Writing { claim, lost: encoded.refused, bytes, begun: false });
            }
        }
    }

    async fn event(&mut self) -> Event {
        poll_fn(|cx| self.poll_event(cx)).await
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
