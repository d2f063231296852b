//! The consumer: it counts what arrives, and keeps nothing. Except with Kafka, each connection has
//! its own thread, which ends with the connection.

#![allow(dead_code, reason = "no bench needs everything")]

use std::io;
use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::work::Work;
use crate::{interrupt, work};

mod api;
mod elasticsearch;
#[cfg(feature = "kafka")]
mod kafka;
mod lumberjack;
mod relp;

/// The topic of a consumer that speaks Kafka.
pub(crate) const TOPIC: &str = "audit";

/// The most bytes that the sink reads at once. Larger reads do not save CPU time.
const BUFFER: usize = 256 * 1024;

/// The most bytes of a request's head.
const HEAD_MAX: usize = 16 * 1024;

/// The longest wait for missing bytes.
const PATIENCE: Duration = Duration::from_secs(600);

/// The protocol between a proxy and its consumer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// POSTs of EventLists, plain or compressed with gzip.
    Http,
    /// POSTs of EventLists, compressed with zstd.
    Zstd,
    /// A stream of bytes, which the consumer does not answer.
    Stream,
    /// Version 2 of the lumberjack protocol.
    Lumberjack,
    Relp,
    /// Kafka. The bench needs the feature `kafka` for this consumer.
    Kafka,
    /// POSTs of Elasticsearch's bulk API.
    Elasticsearch,
    /// The APIs of Splunk, IBM Cloud Logs, Loki, OTLP and S3.
    Api,
}

impl Wire {
    /// Returns `true` if the sink counts events, not bytes: see [`Sink::count_events_of`].
    pub(crate) fn counts_events(self) -> bool {
        match self {
            Self::Http | Self::Stream => false,
            Self::Zstd
            | Self::Lumberjack
            | Self::Relp
            | Self::Kafka
            | Self::Elasticsearch
            | Self::Api => true,
        }
    }

    /// Returns `true` if the sink cannot see how many events arrive: see [`Sink::tell`].
    pub(crate) fn is_told(self) -> bool {
        matches!(self, Self::Zstd | Self::Kafka | Self::Api)
    }
}

/// A consumer on a port that the kernel chooses. It listens until it is dropped. The proxy must
/// have ended by then.
pub(crate) struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Converts the sink's count into bytes of lines (see [`work::lines_of_list`]): multiply by the
    /// first number and divide by the second. Both are 1 if the sink counts these bytes itself.
    counted: (u64, u64),
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// The sink's count: events if [`Wire::counts_events`], all bytes for [`Wire::Stream`], and
    /// otherwise bytes of lines (see [`work::lines_of_list`]).
    arrived: AtomicU64,
    /// The bytes of lines whose senders got a 200, once for each output.
    expected: AtomicU64,
    /// The framing of a stream, in millionths of the bytes of its lines.
    framing: AtomicU64,
    /// See [`Sink::hold_back`].
    held_back: AtomicU64,
    /// See [`Sink::expect_more`].
    more: AtomicU64,
    /// See [`Sink::go_away`].
    away: Mutex<Option<Duration>>,
    /// The connections since the last [`Sink::go_away`]; `None` before [`Sink::may_go_away`].
    connections: Mutex<Option<Vec<TcpStream>>>,
    stopped: AtomicBool,
    /// Locked after each change that a thread may wait for, and by that thread when it checks.
    turn: Mutex<()>,
    turns: Condvar,
}

impl Sink {
    pub(crate) fn start(wire: Wire) -> Self {
        if wire == Wire::Kafka {
            Self::start_kafka()
        } else {
            Self::start_on(wire, |stream| stream)
        }
    }

    /// The cluster has its own thread, because librdkafka's handle cannot move between threads.
    #[cfg(feature = "kafka")]
    fn start_kafka() -> Self {
        let shared = Arc::<Shared>::default();
        let for_thread = Arc::clone(&shared);
        let (sending, started) = std::sync::mpsc::channel();
        let serving = std::thread::spawn(move || kafka::serve(&sending, &for_thread));
        let address = started.recv().expect("the cluster starts");
        Self { address, shared, counted: (1, 1), accepting: Some(serving) }
    }

    #[cfg(not(feature = "kafka"))]
    fn start_kafka() -> Self {
        panic!("this bench was built without kafka");
    }

    /// Like [`Self::start`], but over the stream that `wrap` makes of each connection.
    pub(crate) fn start_on<S: Read + Write>(
        wire: Wire,
        wrap: impl Fn(TcpStream) -> S + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::<Shared>::default();
        let for_thread = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            let mut listener = listener;
            loop {
                let (stream, _) = listener.accept().expect("a connection");
                if for_thread.stopped.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(away) = for_thread.away.lock().expect("no panic").take() {
                    drop((listener, stream));
                    std::thread::sleep(away);
                    listener = TcpListener::bind(address).expect("the port is still ours");
                    continue;
                }
                stream.set_nodelay(true).expect("a TCP socket");
                if let Some(connections) = &mut *for_thread.connections.lock().expect("no panic") {
                    connections.push(stream.try_clone().expect("a free descriptor"));
                }
                let (wrap, shared) = (wrap.clone(), Arc::clone(&for_thread));
                std::thread::spawn(move || match wire {
                    Wire::Http | Wire::Zstd => answer(wrap(stream), &shared),
                    Wire::Stream => discard(wrap(stream), &shared.arrived),
                    // These end with an error when the connection ends, which is normal.
                    Wire::Elasticsearch => {
                        drop(elasticsearch::serve(wrap(stream), &shared.arrived));
                    }
                    Wire::Api => drop(api::serve(wrap(stream))),
                    Wire::Lumberjack => drop(lumberjack::serve(wrap(stream), &shared.arrived)),
                    Wire::Relp => drop(relp::serve(wrap(stream), &shared.arrived)),
                    Wire::Kafka => unreachable!("Sink::start knows it"),
                });
            }
        });
        Self { address, shared, counted: (1, 1), accepting: Some(accepting) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn arrived(&self) -> u64 {
        let (bytes, events) = self.counted;
        self.shared.arrived.load(Ordering::Relaxed) * bytes / events
    }

    /// From now on, counts events of this work. All bodies of the work have the same number of
    /// bytes and of events. So [`Self::missing`] is exact whenever whole bodies have arrived, and
    /// is 0 only when everything has arrived. In between, it is off by less than a body.
    pub(crate) fn count_events_of(&mut self, work: &Work) {
        self.counted = (work.lines(), work.events);
    }

    /// From now on, expects bodies of this work as a filter changes them. Call this when exactly
    /// one body has arrived. The filter must change all bodies by the same number of bytes.
    pub(crate) fn learn_filter(&mut self, work: &Work) {
        self.counted = (work.lines(), self.shared.arrived.load(Ordering::Relaxed));
    }

    /// Tells a sink that cannot see it how many events have arrived since [`Self::restart`].
    pub(crate) fn tell(&self, events: u64) {
        self.shared.arrived.store(events, Ordering::Relaxed);
    }

    /// Adds bytes of lines whose senders got a 200.
    pub(crate) fn expect(&self, bytes: u64) {
        let times = 1 + self.shared.more.load(Ordering::Relaxed);
        self.shared.expected.fetch_add(times * bytes, Ordering::Relaxed);
        if self.shared.held_back.load(Ordering::Relaxed) > 0 {
            self.shared.take_turns();
        }
    }

    /// From now on, expects each event `times` more times, from other outputs.
    pub(crate) fn expect_more(&self, times: u64) {
        self.shared.more.store(times, Ordering::Relaxed);
    }

    /// From now on, keeps this many bytes back: a POST is answered only once the senders have got a
    /// 200 for at least this many bytes after it. With [`u64::MAX`], no POST is answered. With 0,
    /// the initial value, each POST is answered at once.
    pub(crate) fn hold_back(&self, bytes: u64) {
        self.shared.held_back.store(bytes, Ordering::Relaxed);
        self.shared.take_turns();
    }

    /// Returns how many bytes are still to arrive: those whose senders got a 200, minus those that
    /// are held back, minus those that have arrived.
    pub(crate) fn missing(&self) -> u64 {
        let expected = self.shared.expected.load(Ordering::Relaxed);
        let held_back = self.shared.held_back.load(Ordering::Relaxed);
        let framing = self.shared.framing.load(Ordering::Relaxed);
        let arrived = self.arrived() * 1_000_000 / (1_000_000 + framing);
        expected.saturating_sub(held_back).saturating_sub(arrived)
    }

    /// Waits until nothing is missing.
    pub(crate) fn wait(&self) {
        let end = Instant::now() + PATIENCE;
        while self.missing() > 0 {
            interrupt::check();
            assert!(Instant::now() < end, "{} bytes are missing", self.missing());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Learns how many bytes frame the events of a stream. Call this when all expected events have
    /// arrived. The other bytes are framing, and are not counted from now on. 1 % of them still
    /// count, because the lengths of other events may have fewer digits.
    pub(crate) fn learn_framing(&self) {
        let expected = self.shared.expected.load(Ordering::Relaxed).max(1);
        let more = self.arrived().saturating_sub(expected) * 99 / 100;
        self.shared.framing.store(more * 1_000_000 / expected, Ordering::Relaxed);
    }

    /// From now on, [`Sink::go_away`] may be called.
    pub(crate) fn may_go_away(&self) {
        self.shared.connections.lock().expect("no panic").get_or_insert_default();
    }

    /// Resets all connections, as a consumer does that ends before it has read everything, and
    /// refuses new ones for this time.
    pub(crate) fn go_away(&self, away: Duration) {
        *self.shared.away.lock().expect("no panic") = Some(away);
        // This connection wakes the accept loop, unless another one does.
        drop(TcpStream::connect(self.address));
        let mut connections = self.shared.connections.lock().expect("no panic");
        for connection in connections.iter_mut().flat_map(|all| all.drain(..)) {
            // The other end may have ended it before.
            drop(SockRef::from(&connection).set_linger(Some(Duration::ZERO)));
            drop(connection.shutdown(Shutdown::Both));
        }
    }

    /// Counts from 0 again.
    pub(crate) fn restart(&self) {
        self.shared.arrived.store(0, Ordering::Relaxed);
        self.shared.expected.store(0, Ordering::Relaxed);
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.shared.take_turns();
        // This connection wakes the accept loop, which then ends.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

fn discard(mut stream: impl Read, arrived: &AtomicU64) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        arrived.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Reads and discards this many bytes.
fn skip(stream: &mut impl BufRead, mut bytes: u64) -> io::Result<()> {
    while bytes > 0 {
        let read = stream.fill_buf()?.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.consume(read);
        bytes -= read as u64;
    }
    Ok(())
}

impl Shared {
    /// Waits until the sink is dropped.
    #[cfg(feature = "kafka")]
    fn wait_until_stopped(&self) {
        let turn = self.turn.lock().expect("no panic");
        drop(self.turns.wait_while(turn, |()| !self.stopped.load(Ordering::Relaxed)));
    }

    fn take_turns(&self) {
        drop(self.turn.lock());
        self.turns.notify_all();
    }

    /// Waits until a POST that ends before byte `end` may be answered. Returns `false` if the sink
    /// is dropped first.
    fn may_take(&self, end: u64) -> bool {
        let waits = |(): &mut ()| {
            let held_back = self.held_back.load(Ordering::Relaxed);
            let expected = self.expected.load(Ordering::Relaxed);
            let early = held_back > 0 && end.saturating_add(held_back) > expected;
            early && !self.stopped.load(Ordering::Relaxed)
        };
        let turn = self.turn.lock().expect("no panic");
        drop(self.turns.wait_while(turn, waits));
        !self.stopped.load(Ordering::Relaxed)
    }
}

/// Answers each POST with 200 when its body has arrived and the answer is not held back.
/// Decompression would take more CPU time than the rest of the sink, so nothing is decompressed:
///
/// - A gzip body ends with its uncompressed length (ISIZE, RFC 1952 §2.3.1), so its bytes are
///   counted exactly.
/// - A zstd body has its length at its beginning only if the sender knew it then. Such bodies are
///   not counted. The sink is told of them (see [`Sink::tell`]).
fn answer(mut stream: impl Read + Write, shared: &Shared) {
    let mut buffer = vec![0; BUFFER];
    let mut filled = 0;
    let mut last = [0; 4];
    loop {
        let (head, body, encoding) = loop {
            if let Some(head) = memchr::memmem::find(&buffer[..filled], b"\r\n\r\n") {
                let (body, encoding) =
                    (content_length(&buffer[..head]), Encoding::of(&buffer[..head]));
                break (head + 4, body, encoding);
            }
            match stream.read(&mut buffer[filled..]) {
                Ok(count @ 1..) => filled += count,
                _ => return,
            }
        };
        let mut left = body;
        let taken = left.min(filled - head);
        left -= taken;
        // No proxy here pipelines requests.
        assert_eq!(head + taken, filled, "more than one request at once");
        keep_last(&mut last, &buffer[head..filled]);
        filled = 0;
        while left > 0 {
            match stream.read(&mut buffer) {
                Ok(count @ 1..) => {
                    left = left.checked_sub(count).expect("no more than announced");
                    keep_last(&mut last, &buffer[..count]);
                }
                _ => return,
            }
        }
        let lines = match encoding {
            Encoding::Plain => work::lines_of_list(body as u64),
            Encoding::Gzip => work::lines_of_list(u32::from_le_bytes(last).into()),
            Encoding::Zstd => 0,
        };
        let end = shared.arrived.fetch_add(lines, Ordering::Relaxed) + lines;
        if shared.held_back.load(Ordering::Relaxed) > 0 && !shared.may_take(end) {
            return;
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        if stream.write_all(answer).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
}

/// The Content-Encoding of a body.
enum Encoding {
    Plain,
    Gzip,
    Zstd,
}

impl Encoding {
    fn of(head: &[u8]) -> Self {
        match value_of(head, "content-encoding") {
            None => Self::Plain,
            Some("gzip") => Self::Gzip,
            Some("zstd") => Self::Zstd,
            Some(other) => panic!("a body of {other}"),
        }
    }
}

/// Updates `last`, the last bytes that were read, with `bytes`.
fn keep_last(last: &mut [u8; 4], bytes: &[u8]) {
    let count = bytes.len().min(last.len());
    last.rotate_left(count);
    last[4 - count..].copy_from_slice(&bytes[bytes.len() - count..]);
}

pub(crate) fn content_length(head: &[u8]) -> usize {
    let value = value_of(head, "content-length").expect("a body with its length");
    value.parse().expect("a number")
}

/// Reads the head of the next request into `head`. Returns `false` if the connection has ended.
#[allow(
    clippy::panic_in_result_fn,
    reason = "an error is the end of the connection, a panic a relay that breaks the protocol"
)]
fn read_head(stream: &mut impl BufRead, head: &mut Vec<u8>) -> io::Result<bool> {
    head.clear();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', head)? == 0 {
            return Ok(false);
        }
        assert!(head.len() <= HEAD_MAX, "a head that does not end");
    }
    Ok(true)
}

fn value_of<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let head = std::str::from_utf8(head).expect("a head is ASCII");
    head.lines().find_map(|line| {
        let (this, value) = line.split_once(':')?;
        this.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}
