//! Events over TCP or TLS to a consumer that acknowledges them. The window limits the number of
//! events that are sent without an acknowledgement. Only a batch that is sent again may exceed it.
//! The consumer's answers make events final.
//!
//! An acknowledged event is final even if the rest of its batch is not, unless the batch lacks
//! events (see [`AcknowledgedLink`]). After a break, every event that is not final is sent again,
//! and may arrive twice.
//!
//! **Progress is guaranteed.** After a break with unacknowledged events, the delivery sends at most
//! half of them on the next connection. A consumer that cuts every connection after some bytes
//! still gets its events, at worst one by one.
//!
//! The protocol, `lumberjack` or `relp` ([`Protocol`]), defines the bytes of events and the meaning
//! of answers.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

mod in_flight;
mod protocol;

use super::connection::{Dialer, Wire};
use super::session;
use super::session::{READ_BYTES, Session};
use delivery::checkpoints::Checkpoint;
use delivery::endpoints::{Attempt, Endpoints, Probed, ResolvedAddress, Watch};
use delivery::failure::Failure;
use delivery::files::Files;
use delivery::link::{CLOSE_TIME, Connect, Event, Link};
use in_flight::InFlight;
pub(crate) use protocol::{Answers, Encoding, Frames, Protocol, Trouble};
use queue::{Batch, Claim, Take};
use telemetry::AttemptError;

/// The connector of an output whose consumer acknowledges events. It makes the output's
/// connections, one after the other. The delivery loop owns the connector.
///
/// [`Connect::connect`] makes a connection: `Dialer::connect` picks an address, connects and does
/// the TLS handshake, and then [`Protocol::open`] greets the consumer. The loop first calls
/// `connect` when the delivery begins, even if there is nothing to send. After a connection has
/// ended in order (the consumer's FIN, `idle_timeout`, `max_connection_age`), the next one is made
/// only when there is something to send. After a connection has broken, the next one is made
/// without a pause in three cases: events were accepted on the broken connection, it had lasted for
/// some time, or another address may be tried. Otherwise the next one is made after a pause.
pub(crate) struct AcknowledgedConnector<P> {
    dialer: Arc<Dialer>,
    /// Makes the object that encodes events and reads answers on one new connection.
    make: Box<dyn Fn() -> P + Send + Sync>,
    /// The maximum number of sent events without an acknowledgement.
    window: u64,
    watch: Watch,
}

/// A connection after the greeting, its protocol, and the bytes that were read after the answer to
/// the greeting: the first bytes of later answers.
type Opened<P> = (Wire, P, BytesMut);

impl<P: Protocol> AcknowledgedConnector<P> {
    /// Makes a connector without a connection. `make` is called for each new connection, and
    /// returns the object that encodes events and reads answers.
    pub(crate) fn new(
        dialer: Dialer,
        window: u64,
        make: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        Self { dialer: Arc::new(dialer), make: Box::new(make), window, watch: Watch::default() }
    }

    /// Greets the consumer on a new connection. The greeting may take `timeouts.connect`, in
    /// addition to the time of connecting.
    async fn open(&self, mut wire: Wire, address: &ResolvedAddress) -> Result<Opened<P>, Failure> {
        let (mut protocol, mut unread) = ((self.make)(), BytesMut::new());
        let opening = protocol.open(&mut wire, &mut unread);
        match tokio::time::timeout(self.dialer.timeouts.connect, opening).await {
            Ok(Ok(())) => Ok((wire, protocol, unread)),
            Ok(Err(Trouble::Io(error))) => Err(wire.failure(address, &error)),
            Ok(Err(Trouble::Protocol(what))) => Err(address.failure(AttemptError::Protocol, what)),
            Err(_) => {
                let what = "connected, but no response within the connect timeout";
                Err(address.failure(AttemptError::Timeout, what))
            }
        }
    }
}

impl<P: Protocol> Connect for AcknowledgedConnector<P> {
    type Link = AcknowledgedLink<P>;

    const EAGER: bool = true;

    fn tells_positions(&self) -> bool {
        true
    }

    fn files(&self) -> Option<Arc<dyn Files>> {
        self.dialer.files()
    }

    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        Some(Arc::clone(&self.dialer.endpoints))
    }

    async fn probe(&mut self) -> Probed {
        let shown = |address: &ResolvedAddress| address.name.to_string();
        let open = async |address: ResolvedAddress| {
            let wire = self.dialer.dial(address.clone()).await?;
            let opened = self.open(wire, &address).await?;
            let attempt = self.dialer.endpoints.attempt(address);
            AcknowledgedLink::new(opened, attempt, self).close().await;
            Ok(None)
        };
        self.dialer.endpoints.try_all(shown, open).await
    }

    async fn connect(&mut self) -> Result<AcknowledgedLink<P>, Failure> {
        loop {
            let (wire, attempt) = self.dialer.connect(&mut self.watch).await?;
            match self.open(wire, attempt.address()).await {
                Ok(opened) => return Ok(AcknowledgedLink::new(opened, attempt, self)),
                Err(failure) if attempt.failed(&failure) => {
                    self.dialer.metrics.failed(failure.reason);
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// One connection to a consumer that acknowledges events. The delivery loop owns the link. Until
/// the loop closes the link, all reading and writing happens while the loop polls [`Link::event`].
///
/// The life of a batch on the link:
///
/// 1. *Being encoded.* [`Link::send`] starts [`Protocol::encode`], which may run on another thread.
/// 2. *Being written.* The events of the batch are added to [`InFlight`], and the session writes
///    the frames. At most one batch is in the states 1 and 2 together. [`Link::room`] is `None`
///    until this batch is written and flushed.
/// 3. *Sent.* The events of the batch wait for the consumer's answers. Several batches can be in
///    this state. The window limits the number of their events.
/// 4. *Final.* The consumer has acknowledged the batch or its first events. The link reports these
///    events, usually as [`Event::Accepted`]. Where a batch lacks events of its claim (filtered
///    out, or dropped from the queue), several events become final together. Events that are too
///    long are reported separately ([`Event::Judged`]).
///
/// Invariants: events become final in the order in which they were sent. An event that can't be
/// sent is reported as too long only when all earlier events are final. Therefore the output's
/// position in the queue never passes an event that waits for an answer. An answer that
/// acknowledges more events than were sent breaks the link.
///
/// When writing fails, the link continues to read for up to [`CLOSE_TIME`], because the consumer's
/// last answers may still be in the socket. Events that they acknowledge need not be sent again.
///
/// The link ends with [`Event::Closed`] when the relay or the consumer wants to end the connection
/// and no event waits for an answer. The link ends with [`Event::Broken`] after an error, and when
/// the consumer's FIN comes before the consumer has acknowledged all events. It also ends with
/// [`Event::Broken`] when events wait, and the consumer makes no progress for
/// [`Session::patience`]: it takes no bytes and acknowledges no event. If it still answers, and no
/// other address may respond, the link waits on, and reports [`Event::Troubled`].
pub(crate) struct AcknowledgedLink<P> {
    session: Session,
    window: u64,
    protocol: P,
    /// The read bytes that are not yet interpreted, such as the beginning of an incomplete answer.
    unread: BytesMut,
    /// The batch that is being encoded: its claim (`None` for a checkpoint), and the future that
    /// returns its frames.
    encoding: Option<(Option<Claim>, Encoding)>,
    in_flight: InFlight,
    /// The error of a failed write, and the time until which answers are still read.
    unwritable: Option<(io::Error, Instant)>,
    /// `true` if the consumer has announced the end of the connection.
    closing: bool,
    /// The time of the consumer's last answer, or of the connection.
    heard: Instant,
    /// The time of the last [`Event::Troubled`].
    told: Option<Instant>,
}

impl<P: Protocol> AcknowledgedLink<P> {
    fn new(
        (wire, protocol, unread): Opened<P>,
        attempt: Attempt,
        connector: &AcknowledgedConnector<P>,
    ) -> Self {
        Self {
            session: Session::new(wire, attempt, &connector.dialer),
            window: connector.window,
            protocol,
            unread,
            encoding: None,
            in_flight: InFlight::default(),
            unwritable: None,
            closing: false,
            heard: Instant::now(),
            told: None,
        }
    }

    /// Returns `true` if no event or checkpoint is being encoded, is being written or waits for an
    /// answer. If the connection ends now, nothing has to be sent again.
    fn is_idle(&self) -> bool {
        self.encoding.is_none() && self.session.unwritten.is_none() && self.in_flight.is_empty()
    }

    /// Returns the event that ends the link after an error: [`Event::Closed`] if the consumer has
    /// ended a connection without unacknowledged events, otherwise [`Event::Broken`].
    fn troubled(&mut self, trouble: Trouble) -> Event {
        let failure = match trouble {
            Trouble::Protocol(what) => self.session.failure(AttemptError::Protocol, what),
            Trouble::Io(error) => {
                let failure = self.session.io_failure(&error);
                // A consumer may end an unused connection, even with a reset: Logstash does so
                // after a minute.
                if self.is_idle() && failure.reason == AttemptError::Closed {
                    return Event::Closed;
                }
                failure
            }
        };
        self.session.broken(failure)
    }

    /// Reads, encodes and writes until there is an event for the delivery loop.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(event) = self.session.ready.pop_front() {
                return Poll::Ready(event);
            }
            // The results of answers that were read before an error are already in `ready`, so they
            // are reported before the error.
            if let Err(trouble) = self.poll_read(cx) {
                let end = self.troubled(trouble);
                self.session.ready.push_back(end);
                continue;
            }
            let (finished, now) = (self.session.finished.is_some(), Instant::now());
            if let Some((error, _)) =
                self.unwritable.take_if(|(_, until)| finished || now >= *until)
            {
                let end = self.troubled(Trouble::Io(error));
                self.session.ready.push_back(end);
                continue;
            }
            self.poll_encode(cx);
            if !finished && self.unwritable.is_none() {
                match self.session.poll_write(cx) {
                    Ok(false) => {}
                    Ok(true) => self.session.ready.push_back(Event::Room),
                    // Reading continues for `CLOSE_TIME`: answers may already be in the socket,
                    // although the runtime does not know of them yet.
                    Err(error) => {
                        self.unwritable = Some((error, now + CLOSE_TIME));
                        continue;
                    }
                }
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

    /// Reads all bytes that have arrived, and records the acknowledged events.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble> {
        let mut bytes = [0; READ_BYTES];
        while self.session.finished.is_none() {
            let read = match self.session.poll_read(cx, &mut bytes) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => read?,
            };
            if read == 0 {
                return Ok(());
            }
            self.session.wire.acknowledge_at_once();
            self.unread.extend_from_slice(&bytes[..read]);
            let mut answers = Answers::default();
            let result = self.protocol.read(&mut self.unread, &mut answers);
            if answers.alive {
                self.heard = Instant::now();
            }
            if answers.progress {
                self.session.progress = Instant::now();
            }
            self.closing |= answers.closing;
            let acknowledged = self.acknowledge(answers.acknowledged);
            result.and(acknowledged).map_err(Trouble::Protocol)?;
        }
        Ok(())
    }

    /// Records that the `events` oldest unacknowledged events are now acknowledged. Returns an
    /// error text if the consumer acknowledges more events than were sent.
    fn acknowledge(&mut self, events: u64) -> Result<(), String> {
        if events > 0 {
            self.session.succeeded();
        }
        let more = self.in_flight.acknowledge(events, &mut self.session.ready);
        for begun in self.in_flight.take_ended() {
            self.session.ended(begun);
        }
        match more {
            0 => Ok(()),
            more => Err(format!("acknowledges more events than it was sent, by {more}")),
        }
    }

    /// Begins to write the encoded batch, if its frames are ready now. Reports the batch as refused
    /// if it can't be encoded.
    fn poll_encode(&mut self, cx: &mut Context<'_>) {
        let Some((claim, encoding)) = &mut self.encoding else { return };
        let Poll::Ready(encoded) = encoding.as_mut().poll(cx) else { return };
        let claim = *claim;
        self.encoding = None;
        match (claim, encoded) {
            (Some(claim), Ok(frames)) => self.begin(claim, frames),
            // The protocol has left out the checkpoint because of its length.
            (None, Ok(frames)) if frames.events() == 0 => {
                self.session.refuse(None, "it is too long".to_owned());
            }
            (None, Ok(frames)) => {
                self.in_flight.add_checkpoint();
                self.write(1, frames.bytes);
            }
            (claim, Err(what)) => self.session.refuse(claim, what),
        }
    }

    fn begin(&mut self, claim: Claim, frames: Frames) {
        let events = frames.events();
        self.in_flight.add(claim, frames.parts.end(claim), &mut self.session.ready);
        self.write(events, frames.bytes);
    }

    /// Begins to write frames with this number of events. 0 means that no event of the batch can be
    /// sent: then nothing is written.
    fn write(&mut self, events: u64, bytes: Bytes) {
        if events > 0 {
            self.session.progress = Instant::now();
            self.protocol.sent(events);
            self.session.unwritten = Some([bytes].into());
        }
    }

    /// Returns the event that ends the link. `None` if the link does not end at the time `now`. The
    /// link ends when a time limit is over, when the consumer has ended the connection, or when the
    /// connection is to end and no event waits for an answer.
    fn overdue(&mut self, now: Instant) -> Option<Event> {
        self.session.age(now);
        let finished = self.session.finished.is_some();
        if self.is_idle() {
            let unused = self.session.is_unused(now);
            let ends = unused || self.session.leaving || finished || self.closing;
            return ends.then_some(Event::Closed);
        }
        if finished {
            let left = self.in_flight.events();
            let what = format!("the peer closed the connection; events not acknowledged: {left}");
            let failure = self.session.failure(AttemptError::Closed, what);
            return Some(self.session.broken(failure));
        }
        if !self.is_awaiting() {
            return None;
        }
        let waited = self.session.patience().as_secs_f64();
        if now >= self.ends_at() {
            let what = format!("no acknowledgement and no progress for {waited} s");
            let failure = self.session.failure(AttemptError::Timeout, what);
            return Some(self.session.broken(failure));
        }
        if now >= self.told_at() {
            self.told = Some(now);
            let what = format!(
                "no acknowledgement for {waited} s, but the consumer asks for patience: what it \
                 sends its events to may be blocked"
            );
            return Some(Event::Troubled(self.session.failure(AttemptError::Timeout, what)));
        }
        None
    }

    /// Returns the time when the link ends if the consumer acknowledges nothing and takes no bytes
    /// until then. An answer without an acknowledgement puts off the end only if no other address
    /// may respond.
    fn ends_at(&self) -> Instant {
        let progress = self.session.progress;
        let since = if self.session.is_replaceable() { progress } else { progress.max(self.heard) };
        since + self.session.patience()
    }

    /// Returns the time of the next [`Event::Troubled`] if there is no progress until then.
    fn told_at(&self) -> Instant {
        let since = self.told.unwrap_or(self.session.progress).max(self.session.progress);
        since + self.session.patience()
    }

    /// Returns `true` if the link waits until the consumer takes bytes or acknowledges events.
    fn is_awaiting(&self) -> bool {
        self.session.unwritten.is_some() || !self.in_flight.is_empty()
    }

    /// Returns the time when the next time limit of the link is over if the peer does nothing until
    /// then. `None` without a limit.
    fn wake(&self) -> Option<Instant> {
        if self.is_idle() {
            return self.session.idle_wake();
        }
        let late = self.is_awaiting().then(|| self.ends_at().min(self.told_at()));
        let unwritable = self.unwritable.as_ref().map(|(_, until)| *until);
        let age = self.session.expiry.filter(|_| !self.session.leaving);
        [late, age, unwritable].into_iter().flatten().min()
    }
}

impl<P: Protocol> Link for AcknowledgedLink<P> {
    /// Returns the maximum events of the next batch: half of the window, such as 64 of 128. `None`
    /// if the link takes no batch now, or if less than half of the window is free. While the
    /// consumer acknowledges one half, the other half is encoded and written. Batches therefore do
    /// not shrink to single events.
    fn room(&self) -> Option<Take> {
        let ending = self.session.finished.is_some() || self.closing || self.session.leaving;
        if self.encoding.is_some() || self.session.unwritten.is_some() || ending {
            return None;
        }
        let half = self.window.div_ceil(2);
        let left = self.window.saturating_sub(self.in_flight.events());
        (left >= half && !self.in_flight.is_full())
            .then_some(Take { bytes: u64::MAX, events: half })
    }

    fn send(&mut self, batch: Batch) {
        self.session.is_alone = false;
        self.session.used = Instant::now();
        self.encoding = Some((Some(batch.claim), self.protocol.encode(batch)));
    }

    fn send_alone(&mut self, batch: Batch) {
        self.send(batch);
        self.session.is_alone = true;
    }

    fn send_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.session.used = Instant::now();
        self.encoding = Some((None, self.protocol.encode(checkpoint.batch())));
    }

    async fn event(&mut self) -> Event {
        let dialer = Arc::clone(&self.session.dialer);
        session::next_event(&dialer.endpoints, |cx| self.poll_event(cx)).await
    }

    /// Ends the connection in order, after the bytes of [`Protocol::close`]. If a frame is only
    /// partly written, the bytes are not sent, because the consumer would read them as part of an
    /// event.
    async fn close(self) {
        let last =
            if self.session.unwritten.is_some() { Vec::new() } else { self.protocol.close() };
        self.session.close(&last).await;
    }
}
