//! Events over TCP or TLS to a consumer that says what it has: a window of them is under way, and its answers make them
//! final.
//!
//! What an answer covers is final at once, also where that is only a part of what was sent together. After a break all else
//! is sent again: an event comes twice only if it was in the window then.
//!
//! **Progress is guaranteed.** After a break, half of what that connection took may be under way on the next one, and each
//! event that is acknowledged lets one more in, up to the window. A consumer that cuts every connection after some bytes
//! gets its events all the same, at the worst one by one.
//!
//! What is sent, and what answers mean, is the protocol's business: `lumberjack` and `relp`.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadBuf;
use tokio::time::Instant;
use tokio::time::Sleep;

use super::connection::Endpoint;
use super::connection::Wire;
use crate::delivery::endpoints::Attempt;
use crate::delivery::endpoints::Endpoints;
use crate::delivery::endpoints::Place;
use crate::delivery::endpoints::Probed;
use crate::delivery::endpoints::Watch;
use crate::delivery::failure::Failure;
use crate::delivery::files::Files;
use crate::delivery::lines::line;
use crate::delivery::link::CLOSE_TIME;
use crate::delivery::link::Connect;
use crate::delivery::link::Event;
use crate::delivery::link::Link;
use crate::delivery::link::REJECTED_BYTES_MAX;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Take;
use crate::telemetry::AttemptError;

/// Bytes of answers that are read at once.
const READ_BYTES: usize = 4096;

/// What is said to one consumer over one connection. It knows bytes, and no socket.
pub(in crate::output) trait Protocol: Send + 'static {
    /// What comes before the first event. What is left in `unread` is answers to events.
    fn open(
        &mut self,
        wire: &mut Wire,
        unread: &mut BytesMut,
    ) -> impl Future<Output = Result<(), Trouble>> + Send {
        let _ = (wire, unread);
        std::future::ready(Ok(()))
    }

    /// Makes frames of events. There is one at a time, and [`Protocol::sent`] before the next.
    fn encode(&self, batch: Batch) -> Encoding;

    /// So many events are in the frames made last, which are sent now.
    fn sent(&mut self, events: u64);

    /// Takes the answers off the front of what was read; the beginning of one stays.
    ///
    /// # Errors
    ///
    /// What is wrong with what the consumer says; the answers before that count. A beginning too long for an answer is wrong.
    fn read(&mut self, unread: &mut BytesMut, answers: &mut Answers) -> Result<(), String>;

    /// What is said before an orderly end.
    fn close(&self) -> Vec<u8>;
}

/// What came of [`Protocol::encode`]; an error where an event can't be sent and may not be given up.
pub(in crate::output) type Encoding = Pin<Box<dyn Future<Output = Result<Frames, String>> + Send>>;

/// A batch as it is sent.
#[derive(Debug, Default, PartialEq)]
pub(in crate::output) struct Frames {
    pub(in crate::output) bytes: Bytes,
    /// Of each run of events, in order: how many, and whether they are in the frames.
    runs: Vec<(u64, bool)>,
    /// The events that are not: a line each.
    rejected: Vec<Bytes>,
}

impl Frames {
    /// The next event is in the frames.
    pub(in crate::output) fn with(&mut self) {
        self.push(true);
    }

    /// The next event can't be sent, and is given up.
    pub(in crate::output) fn without(&mut self, event: &[u8]) {
        self.rejected.push(line(event));
        self.push(false);
    }

    fn push(&mut self, sent: bool) {
        match self.runs.last_mut() {
            Some((events, same)) if *same == sent => *events += 1,
            _ => self.runs.push((1, sent)),
        }
    }

    /// Events that are in the frames.
    fn events(&self) -> u64 {
        self.runs.iter().filter(|(_, sent)| *sent).map(|(events, _)| events).sum()
    }
}

/// What a consumer has said.
#[derive(Debug, Default, PartialEq)]
pub(in crate::output) struct Answers {
    /// So many events more, in the order of sending, are acknowledged.
    pub(in crate::output) acknowledged: u64,
    /// It lives and works on what it got.
    pub(in crate::output) alive: bool,
    /// It is about to end the connection.
    pub(in crate::output) closing: bool,
}

/// Why [`Protocol::open`] failed.
#[derive(Debug)]
pub(in crate::output) enum Trouble {
    /// Reading or writing.
    Io(io::Error),
    /// What the consumer says.
    Protocol(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Makes connections that speak one protocol. Owned by the delivery loop.
pub(in crate::output) struct Connector<P> {
    endpoint: Arc<Endpoint>,
    make: Box<dyn Fn() -> P + Send + Sync>,
    limit: Arc<Limit>,
    watch: Watch,
}

/// How many events may be under way, over the connections of one output.
struct Limit {
    window: u64,
    /// Less than the window after a break.
    now: AtomicU64,
}

impl Limit {
    fn events(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn acknowledged(&self, events: u64) {
        self.now.store(self.events().saturating_add(events).min(self.window), Ordering::Relaxed);
    }

    /// A connection broke with some under way, after so many were sent on it.
    fn broke_after(&self, sent: u64) {
        self.now.store(self.events().min(sent / 2).max(1), Ordering::Relaxed);
    }
}

/// A connection that is ready for events.
struct Opened<P> {
    wire: Wire,
    protocol: P,
    unread: BytesMut,
}

impl<P: Protocol> Connector<P> {
    /// `make` gives the protocol of a new connection, `window` bounds the events that are under way.
    pub(in crate::output) fn new(
        endpoint: Endpoint,
        window: u64,
        make: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        let limit = Limit { window, now: AtomicU64::new(window) };
        Self {
            endpoint: Arc::new(endpoint),
            make: Box::new(make),
            limit: Arc::new(limit),
            watch: Watch::default(),
        }
    }

    /// What the protocol has to say first takes as long as connecting may, at most.
    async fn open(&self, mut wire: Wire, place: &Place) -> Result<Opened<P>, Failure> {
        let (mut protocol, mut unread) = ((self.make)(), BytesMut::new());
        let opening = protocol.open(&mut wire, &mut unread);
        match tokio::time::timeout(self.endpoint.timeouts.connect, opening).await {
            Ok(Ok(())) => Ok(Opened { wire, protocol, unread }),
            Ok(Err(Trouble::Io(error))) => Err(wire.failure(place, &error)),
            Ok(Err(Trouble::Protocol(what))) => Err(place.failure(AttemptError::Protocol, what)),
            Err(_) => {
                let what = "connected, but no answer within the connect timeout";
                Err(place.failure(AttemptError::Timeout, what))
            }
        }
    }
}

impl<P: Protocol> Connect for Connector<P> {
    type Link = AcknowledgedLink<P>;

    const EAGER: bool = true;

    fn files(&self) -> Option<Arc<dyn Files>> {
        self.endpoint.files()
    }

    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        Some(Arc::clone(&self.endpoint.endpoints))
    }

    async fn probe(&mut self) -> Probed {
        let shown = |place: &Place| place.name.to_string();
        let open = async |place: Place| {
            let wire = self.endpoint.dial(place.clone()).await?;
            let opened = self.open(wire, &place).await?;
            let attempt = self.endpoint.endpoints.attempt(place);
            AcknowledgedLink::new(opened, attempt, self).close().await;
            Ok(())
        };
        self.endpoint.endpoints.try_all(shown, open).await
    }

    async fn connect(&mut self) -> Result<AcknowledgedLink<P>, Failure> {
        loop {
            let (wire, attempt) = self.endpoint.connect(&mut self.watch).await?;
            match self.open(wire, attempt.place()).await {
                Ok(opened) => return Ok(AcknowledgedLink::new(opened, attempt, self)),
                Err(failure) if attempt.failed(&failure) => {
                    self.endpoint.metrics.failed(failure.reason);
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// What was sent and is not final, in order.
#[derive(Default)]
struct InFlight(VecDeque<Sent>);

/// A claim, or a part of one.
#[derive(Debug)]
struct Sent {
    claim: Claim,
    /// So many of its events are to be acknowledged.
    awaited: u64,
    /// And these can't be sent.
    rejected: Vec<Bytes>,
}

impl InFlight {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Events that are to be acknowledged.
    fn events(&self) -> u64 {
        self.0.iter().map(|sent| sent.awaited).sum()
    }

    fn rejected_bytes(&self) -> u64 {
        self.0.iter().flat_map(|sent| &sent.rejected).map(|line| line.len() as u64).sum()
    }

    /// Adds a claim, and tells what of it is final at once.
    fn add(
        &mut self,
        claim: Claim,
        runs: &[(u64, bool)],
        rejected: Vec<Bytes>,
        told: &mut VecDeque<Event>,
    ) {
        let events: u64 = runs.iter().map(|(events, _)| events).sum();
        // Where some were dropped from the queue meanwhile, it can't be said where in the claim an event is.
        if events == claim.end - claim.start {
            let (mut start, mut rejected) = (claim.start, rejected.into_iter());
            for (events, sent) in runs {
                let claim = Claim { start, end: start + *events };
                let count = usize::try_from(*events).unwrap_or(usize::MAX);
                self.0.push_back(match sent {
                    true => Sent { claim, awaited: *events, rejected: Vec::new() },
                    false => {
                        let rejected = rejected.by_ref().take(count).collect();
                        Sent { claim, awaited: 0, rejected }
                    }
                });
                start = claim.end;
            }
        } else {
            let awaited = events - rejected.len() as u64;
            self.0.push_back(Sent { claim, awaited, rejected });
        }
        self.acknowledge(0, told);
    }

    /// So many events more are acknowledged. Tells what is final by that, and returns how many of them were never sent.
    fn acknowledge(&mut self, mut events: u64, told: &mut VecDeque<Event>) -> u64 {
        // What can't be sent is final as soon as all before it is.
        while let Some(Sent { claim, awaited, rejected }) =
            self.0.pop_front_if(|first| first.awaited <= events)
        {
            events -= awaited;
            told.push_back(Event::Accepted { claim, rejected });
        }
        let Some(first) = self.0.front_mut() else { return events };
        let claim = first.claim;
        if events > 0 && first.awaited == claim.end - claim.start {
            first.claim.start += events;
            let front = Claim { end: first.claim.start, ..claim };
            told.push_back(Event::Accepted { claim: front, rejected: Vec::new() });
        }
        first.awaited -= events;
        0
    }
}

/// One connection.
pub(in crate::output) struct AcknowledgedLink<P> {
    wire: Wire,
    attempt: Attempt,
    endpoint: Arc<Endpoint>,
    limit: Arc<Limit>,
    protocol: P,
    /// Read, and no whole answer yet.
    unread: BytesMut,
    /// What is made into frames.
    encoding: Option<(Claim, Encoding)>,
    /// What is left of its frames; `None` once they are flushed.
    unwritten: Option<Bytes>,
    in_flight: InFlight,
    /// Events that were sent.
    sent: u64,
    timer: Pin<Box<Sleep>>,
    /// The last time that bytes were written, the consumer said something, or nothing was awaited.
    progress: Instant,
    /// The consumer sends nothing more.
    finished: bool,
    /// Why nothing can be written any more, and until when the end of what can be read is waited for.
    unwritable: Option<(io::Error, Instant)>,
    /// It has said that it will end the connection.
    closing: bool,
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

impl<P: Protocol> AcknowledgedLink<P> {
    fn new(opened: Opened<P>, attempt: Attempt, connector: &Connector<P>) -> Self {
        let now = Instant::now();
        Self {
            wire: opened.wire,
            attempt,
            endpoint: Arc::clone(&connector.endpoint),
            limit: Arc::clone(&connector.limit),
            protocol: opened.protocol,
            unread: opened.unread,
            encoding: None,
            unwritten: None,
            in_flight: InFlight::default(),
            sent: 0,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            progress: now,
            finished: false,
            unwritable: None,
            closing: false,
            used: now,
            expiry: connector.endpoint.endpoints.expiry(),
            leaving: false,
            accepted_any: false,
            ready: VecDeque::new(),
        }
    }

    /// Nothing would be lost if the connection ended now.
    fn is_idle(&self) -> bool {
        self.encoding.is_none() && self.unwritten.is_none() && self.in_flight.is_empty()
    }

    fn broken(&mut self, reason: AttemptError, what: impl fmt::Display) -> Event {
        let failure = self.attempt.place().failure(reason, what);
        self.broken_by(failure)
    }

    fn broken_by(&mut self, mut failure: Failure) -> Event {
        if !self.in_flight.is_empty() {
            self.limit.broke_after(self.sent);
        }
        // One that has worked and breaks is tried again first; one that says nothing any more may be connected to.
        if !self.accepted_any || failure.reason == AttemptError::Timeout {
            failure.elsewhere = self.attempt.failed(&failure);
        }
        Event::Broken { failure, progress: self.accepted_any }
    }

    fn troubled(&mut self, trouble: Trouble) -> Event {
        let error = match trouble {
            Trouble::Protocol(what) => return self.broken(AttemptError::Protocol, what),
            Trouble::Io(error) => error,
        };
        let failure = self.wire.failure(self.attempt.place(), &error);
        // A consumer may end a connection that is not used, by a reset too: Logstash does after a minute.
        if self.is_idle() && failure.reason == AttemptError::Closed {
            return Event::Closed;
        }
        self.broken_by(failure)
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(event);
            }
            if let Err(trouble) = self.poll_read(cx) {
                let end = self.troubled(trouble);
                self.ready.push_back(end);
                continue;
            }
            let (finished, now) = (self.finished, Instant::now());
            if let Some((error, _)) =
                self.unwritable.take_if(|(_, until)| finished || now >= *until)
            {
                let end = self.troubled(Trouble::Io(error));
                self.ready.push_back(end);
                continue;
            }
            self.poll_encode(cx);
            if !self.finished
                && self.unwritable.is_none()
                && let Err(error) = self.poll_write(cx)
            {
                // What it answered before it ended the connection may lie in the socket, which does not say so yet.
                self.unwritable = Some((error, now + CLOSE_TIME));
                continue;
            }
            if !self.ready.is_empty() {
                continue;
            }
            if let Some(event) = self.overdue(Instant::now()) {
                return Poll::Ready(event);
            }
            let Some(wake) = self.wake() else { return Poll::Pending };
            self.timer.as_mut().reset(wake);
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Reads what there is.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<(), Trouble> {
        let mut read = [0; READ_BYTES];
        while !self.finished {
            let mut buf = ReadBuf::new(&mut read);
            match self.wire.io().poll_read(cx, &mut buf) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {}
                // A peer that ends without TLS's close_notify has ended all the same.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
            if buf.filled().is_empty() {
                self.finished = true;
                return Ok(());
            }
            self.wire.acknowledge_at_once();
            self.unread.extend_from_slice(buf.filled());
            let mut answers = Answers::default();
            let result = self.protocol.read(&mut self.unread, &mut answers);
            if answers.alive {
                self.progress = Instant::now();
            }
            self.closing |= answers.closing;
            let acknowledged = self.acknowledge(answers.acknowledged);
            result.and(acknowledged).map_err(Trouble::Protocol)?;
        }
        Ok(())
    }

    /// So many events more are final.
    fn acknowledge(&mut self, events: u64) -> Result<(), String> {
        if events > 0 {
            self.limit.acknowledged(events);
            self.accepted_any = true;
            self.attempt.succeeded();
        }
        match self.in_flight.acknowledge(events, &mut self.ready) {
            0 => Ok(()),
            more => Err(format!("acknowledges {more} events that it was not sent")),
        }
    }

    fn poll_encode(&mut self, cx: &mut Context<'_>) {
        let Some((claim, encoding)) = &mut self.encoding else { return };
        let Poll::Ready(encoded) = encoding.as_mut().poll(cx) else { return };
        let claim = *claim;
        self.encoding = None;
        match encoded {
            Err(what) => {
                let failure = Failure::new(AttemptError::Protocol, what);
                self.ready.push_back(Event::Refused(claim, failure));
            }
            Ok(frames) => self.enlist(claim, frames),
        }
    }

    /// Frames are written from now on.
    fn enlist(&mut self, claim: Claim, frames: Frames) {
        let events = frames.events();
        self.in_flight.add(claim, &frames.runs, frames.rejected, &mut self.ready);
        if events > 0 {
            self.progress = Instant::now();
            self.sent += events;
            self.protocol.sent(events);
            self.unwritten = Some(frames.bytes);
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(unwritten) = &mut self.unwritten else { return Ok(()) };
        while unwritten.has_remaining() {
            match self.wire.io().poll_write(cx, unwritten) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    unwritten.advance(written);
                    self.progress = Instant::now();
                    self.endpoint.metrics.bytes.increment(written as u64);
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        match self.wire.io().poll_flush(cx) {
            Poll::Pending => return Ok(()),
            Poll::Ready(flushed) => flushed?,
        }
        self.unwritten = None;
        self.ready.push_back(Event::Room);
        Ok(())
    }

    /// What has come to its end, or has taken too long.
    fn overdue(&mut self, now: Instant) -> Option<Event> {
        let settings = &self.endpoint.settings;
        self.leaving = self.leaving
            || self.expiry.is_some_and(|expiry| now >= expiry)
            || self.endpoint.endpoints.is_over(self.attempt.place());
        if self.is_idle() {
            let idle = settings.idle_timeout.is_some_and(|limit| now >= self.used + limit);
            let ended = idle || self.leaving || self.finished || self.closing;
            return ended.then_some(Event::Closed);
        }
        if self.finished {
            let left = self.in_flight.events();
            let what = format!("closed by the peer with {left} events not acknowledged");
            return Some(self.broken(AttemptError::Closed, what));
        }
        let timeout = self.endpoint.timeouts.request;
        if self.is_awaiting() && now >= self.progress + timeout {
            let waited = timeout.as_secs_f64();
            let what = format!("no acknowledgement and no progress for {waited} s");
            return Some(self.broken(AttemptError::Timeout, what));
        }
        None
    }

    /// Whether it is the consumer's turn.
    fn is_awaiting(&self) -> bool {
        self.unwritten.is_some() || !self.in_flight.is_empty()
    }

    /// When there is something to do again without the peer.
    fn wake(&self) -> Option<Instant> {
        if self.is_idle() {
            let idle = self.endpoint.settings.idle_timeout.map(|limit| self.used + limit);
            return [idle, self.expiry].into_iter().flatten().min();
        }
        let late = self.is_awaiting().then(|| self.progress + self.endpoint.timeouts.request);
        let of_age = self.expiry.filter(|_| !self.leaving);
        let unwritable = self.unwritable.as_ref().map(|(_, until)| *until);
        [late, of_age, unwritable].into_iter().flatten().min()
    }
}

impl<P: Protocol> Link for AcknowledgedLink<P> {
    fn room(&self) -> Option<Take> {
        let ending = self.finished || self.closing || self.leaving;
        if self.encoding.is_some() || self.unwritten.is_some() || ending {
            return None;
        }
        let limit = self.limit.events();
        // In halves: one is made and written while the other is acknowledged, and not event by event.
        let half = limit.div_ceil(2);
        let left = limit.saturating_sub(self.in_flight.events());
        if self.in_flight.rejected_bytes() >= REJECTED_BYTES_MAX {
            return None;
        }
        (left >= half).then_some(Take { bytes: u64::MAX, events: half })
    }

    fn send(&mut self, batch: Batch) {
        self.used = Instant::now();
        self.encoding = Some((batch.claim, self.protocol.encode(batch)));
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

    /// Says so, shuts the write side, and waits for the peer's end.
    async fn close(mut self) {
        // Not in the middle of a frame.
        let last = if self.unwritten.is_none() { self.protocol.close() } else { Vec::new() };
        let closing = async {
            self.wire.io().write_all(&last).await?;
            self.wire.io().shutdown().await?;
            let mut waste = [0; 4096];
            while !self.finished {
                self.finished = self.wire.io().read(&mut waste).await? == 0;
            }
            io::Result::Ok(())
        };
        // Nothing depends on it: what is not final counts as undelivered.
        tokio::time::timeout(CLOSE_TIME, closing).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `s`: an event that is sent, `x`: one that can't be.
    fn frames(events: &str) -> Frames {
        let mut frames = Frames::default();
        for event in events.chars() {
            if event == 's' { frames.with() } else { frames.without(b"x") }
        }
        frames
    }

    fn add(in_flight: &mut InFlight, claim: Claim, events: &str, told: &mut VecDeque<Event>) {
        let Frames { runs, rejected, .. } = frames(events);
        in_flight.add(claim, &runs, rejected, told);
    }

    /// What was told: start, end and lost of each.
    fn told(events: &mut VecDeque<Event>) -> Vec<(u64, u64, u64)> {
        let tell = |event| {
            let Event::Accepted { claim, rejected } = event else { panic!("{event:?}") };
            (claim.start.get(), claim.end.get(), rejected.len() as u64)
        };
        events.drain(..).map(tell).collect()
    }

    #[test]
    fn what_an_answer_covers_is_final_and_no_more() {
        let (mut in_flight, mut events) = (InFlight::default(), VecDeque::new());
        add(&mut in_flight, Claim::of(10, 14), "ssss", &mut events);
        add(&mut in_flight, Claim::of(20, 22), "ss", &mut events);
        assert_eq!((told(&mut events), in_flight.events()), (vec![], 6));
        assert_eq!(in_flight.acknowledge(1, &mut events), 0);
        assert_eq!(told(&mut events), [(10, 11, 0)]);
        assert_eq!(in_flight.acknowledge(0, &mut events), 0);
        assert_eq!(told(&mut events), []);
        assert_eq!(in_flight.acknowledge(4, &mut events), 0);
        assert_eq!((told(&mut events), in_flight.events()), (vec![(11, 14, 0), (20, 21, 0)], 1));
        assert_eq!(in_flight.acknowledge(3, &mut events), 2);
        assert_eq!(told(&mut events), [(21, 22, 0)]);
        assert!(in_flight.is_empty());
    }

    #[test]
    fn what_cannot_be_sent_is_final_in_its_turn() {
        let (mut in_flight, mut events) = (InFlight::default(), VecDeque::new());
        add(&mut in_flight, Claim::of(0, 7), "xxssxsx", &mut events);
        assert_eq!((told(&mut events), in_flight.events()), (vec![(0, 2, 2)], 3));
        in_flight.acknowledge(1, &mut events);
        assert_eq!(told(&mut events), [(2, 3, 0)]);
        in_flight.acknowledge(1, &mut events);
        assert_eq!(told(&mut events), [(3, 4, 0), (4, 5, 1)]);
        in_flight.acknowledge(1, &mut events);
        assert_eq!(told(&mut events), [(5, 6, 0), (6, 7, 1)]);
        add(&mut in_flight, Claim::of(7, 9), "xx", &mut events);
        assert_eq!(told(&mut events), [(7, 9, 2)]);
        assert!(in_flight.is_empty());
    }

    #[test]
    fn a_claim_with_a_gap_is_final_as_a_whole() {
        let (mut in_flight, mut events) = (InFlight::default(), VecDeque::new());
        add(&mut in_flight, Claim::of(0, 9), "ssxs", &mut events);
        in_flight.acknowledge(2, &mut events);
        assert_eq!((told(&mut events), in_flight.events()), (vec![], 1));
        in_flight.acknowledge(1, &mut events);
        assert_eq!(told(&mut events), [(0, 9, 1)]);
    }

    /// A consumer that cuts each connection after `cut` events, and acknowledges claims whole.
    #[test]
    fn a_consumer_that_cuts_gets_everything_for_a_few_times_the_events() {
        for cut in [1, 2, 3, 100, 1000, 2047, 2048] {
            let limit = Limit { window: 2048, now: AtomicU64::new(2048) };
            let (mut done, mut sent, total) = (0, 0, 50 * cut);
            while done < total {
                let mut carried = 0;
                loop {
                    let claim = limit.events().div_ceil(2);
                    carried += claim;
                    if carried > cut {
                        // The next one was on its way too.
                        carried += claim;
                        limit.broke_after(carried);
                        break;
                    }
                    done += claim;
                    limit.acknowledged(claim);
                }
                sent += carried;
            }
            assert!(sent <= 6 * total + 4096, "{cut}: {sent} sent for {total}");
        }
    }

    #[test]
    fn after_a_break_the_window_grows_with_each_acknowledgement() {
        let limit = Limit { window: 100, now: AtomicU64::new(100) };
        limit.broke_after(1000);
        assert_eq!(limit.events(), 100);
        limit.broke_after(80);
        assert_eq!(limit.events(), 40);
        limit.acknowledged(20);
        assert_eq!(limit.events(), 60);
        limit.acknowledged(1000);
        assert_eq!(limit.events(), 100);
        limit.broke_after(1);
        assert_eq!(limit.events(), 1);
    }
}
