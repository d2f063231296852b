//! A middleman between the relay and a consumer, which inflicts the faults of a network on their
//! connections.
//!
//! The test says how many more bytes pass in one direction. The middleman then strikes the
//! connection that carried the last of them. If one of the two connections of a pair ends with an
//! error, the middleman ends the other with RST, as a network between the two would.
//!
//! One thread with its own runtime does all of this. Dropping the middleman ends and joins it.

use std::io;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::server::{Options, Server};
use super::{PATIENCE, wait_until};

/// The middleman reads at most this many bytes at once. All other bytes in transit are in the
/// kernel's buffers.
const PIECE_BYTES: usize = 16 * 1024;

/// The interval at which the middleman records that its thread runs.
const BEAT: Duration = Duration::from_millis(20);

/// If the thread did not run for this long, the kernel may hold bytes that an output without
/// acknowledgements has already counted as delivered. A reset would lose them, so the middleman
/// does not reset a connection until [`CALM`] later.
const HELD_UP: Duration = Duration::from_millis(200);

/// The time in which the middleman then passes on the bytes from the kernel.
const CALM: Duration = Duration::from_millis(100);

/// The direction in which bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToConsumer,
    ToRelay,
}

/// A fault that the middleman inflicts on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strike {
    /// Both ends get RST, and bytes in transit are lost.
    Reset,
    /// From here on, all bytes in this direction are discarded, and so is the end of the stream.
    Swallow(Way),
    /// This direction ends here with FIN, and later bytes are discarded. The other direction
    /// continues.
    Finish(Way),
    /// Nothing passes in this direction for this time.
    Stall(Way, Duration),
}

/// The middleman. It forwards the connections to its address to the consumer.
pub(crate) struct Middleman {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    plan: Mutex<Plan>,
    released: Notify,
    over: Notify,
}

#[derive(Default)]
struct Plan {
    armed: Option<Armed>,
    strikes: usize,
    /// If true, nothing passes in either direction.
    held: bool,
    /// The delay before each piece for the relay is sent.
    delay: Duration,
    beat: Option<Instant>,
    /// The end of the last period of at least [`HELD_UP`] in which the thread did not run.
    held_up: Option<Instant>,
}

struct Armed {
    /// The direction whose bytes are counted.
    way: Way,
    /// How many more bytes pass before the strike.
    left: u64,
    strike: Strike,
}

impl Middleman {
    pub(crate) fn start(consumer: SocketAddr) -> Self {
        Self::with_receive_buffer(consumer, None)
    }

    /// Like [`Middleman::start`], but connections from the relay have a receive buffer of this many
    /// bytes. It limits how much the kernel takes while the middleman is held.
    pub(crate) fn with_receive_buffer(consumer: SocketAddr, bytes: Option<u32>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(async { listen(bytes) }).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::<Shared>::default();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = for_thread.over.notified() => {}
                    () = accept(&listener, consumer, &for_thread) => {}
                    () = beat(&for_thread) => {}
                }
            });
        });
        Self { address, shared, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Strikes once, after `after` more bytes have passed in this direction over all connections.
    pub(crate) fn arm(&self, way: Way, after: u64, strike: Strike) {
        let before = self.shared.lock().armed.replace(Armed { way, left: after, strike });
        assert!(before.is_none(), "armed twice");
    }

    /// Returns how often the middleman has struck.
    pub(crate) fn strikes(&self) -> usize {
        self.shared.lock().strikes
    }

    /// Waits until the middleman has struck `count` times.
    pub(crate) fn wait_for_strikes(&self, count: usize) {
        wait_until("the middleman's strike", PATIENCE, || self.strikes() >= count);
    }

    /// If `held`, acts like a stopped process: the kernel still takes bytes. Otherwise continues.
    pub(crate) fn hold(&self, held: bool) {
        self.shared.lock().held = held;
        self.shared.released.notify_waiters();
    }

    /// From now on, delays each piece for the relay by this time.
    pub(crate) fn delay_answers(&self, by: Duration) {
        self.shared.lock().delay = by;
    }
}

impl Drop for Middleman {
    fn drop(&mut self) {
        self.shared.over.notify_one();
        let ended = self.thread.take().expect("not dropped before").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the middleman failed");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().expect("no panic while the plan is held")
    }

    /// Waits until the middleman is not held.
    async fn release(&self) {
        loop {
            let released = self.released.notified();
            if !self.lock().held {
                return;
            }
            released.await;
        }
    }

    /// Returns how many of these bytes pass before a strike, and the strike if it is due.
    fn pass(&self, way: Way, bytes: usize) -> (usize, Option<Strike>) {
        let mut plan = self.lock();
        let Some(armed) = plan.armed.as_mut().filter(|armed| armed.way == way) else {
            return (bytes, None);
        };
        let passing = usize::try_from(armed.left).unwrap_or(usize::MAX).min(bytes);
        armed.left -= passing as u64;
        let (left, strike) = (armed.left, armed.strike);
        if left > 0 || (strike == Strike::Reset && !plan.is_calm()) {
            return (bytes, None);
        }
        plan.armed = None;
        (passing, Some(strike))
    }
}

impl Plan {
    /// Returns `true` if the thread has run steadily, so no bytes wait in the kernel because of a
    /// pause.
    fn is_calm(&self) -> bool {
        let runs = self.beat.is_some_and(|beat| beat.elapsed() < HELD_UP);
        runs && self.held_up.is_none_or(|until| until.elapsed() > CALM)
    }
}

/// Records the pauses of this thread. Never ends.
async fn beat(shared: &Shared) {
    loop {
        {
            let mut plan = shared.lock();
            if plan.beat.is_some_and(|beat| beat.elapsed() >= HELD_UP) {
                plan.held_up = Some(Instant::now());
            }
            plan.beat = Some(Instant::now());
        }
        tokio::time::sleep(BEAT).await;
    }
}

fn listen(receive_buffer: Option<u32>) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_buffer {
        // The size must be set before `listen`, because the connections inherit it from there.
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    socket.listen(1024)
}

/// Accepts connections and never ends. Dropping this future ends the connections.
async fn accept(listener: &TcpListener, consumer: SocketAddr, shared: &Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // The relay may have given up before its connection was accepted.
                let Ok((relay, _)) = accepted else { continue };
                connections.spawn(serve(relay, consumer, Arc::clone(shared)));
            }
            Some(served) = connections.join_next() => served.expect("it does not panic"),
        }
    }
}

/// Serves one connection of the relay through a new connection to the consumer.
async fn serve(mut relay: TcpStream, consumer: SocketAddr, shared: Arc<Shared>) {
    let dialled = TcpStream::connect(consumer).await;
    let broke = match dialled {
        Ok(mut consumer) => {
            let ended = pass_both_ways(&mut relay, &mut consumer, &shared).await;
            ended.is_err() && reset_when_dropped(&consumer)
        }
        Err(_) => true,
    };
    if broke {
        reset_when_dropped(&relay);
    }
}

fn reset_when_dropped(stream: &TcpStream) -> bool {
    stream.set_zero_linger().expect("an open socket");
    true
}

/// Passes bytes until both directions have ended with FIN. Returns an error if one of them ended in
/// another way.
async fn pass_both_ways(
    relay: &mut TcpStream,
    consumer: &mut TcpStream,
    shared: &Shared,
) -> io::Result<()> {
    relay.set_nodelay(true)?;
    consumer.set_nodelay(true)?;
    let (from_relay, to_relay) = relay.split();
    let (from_consumer, to_consumer) = consumer.split();
    let ways = [WayState::default(), WayState::default()];
    let there = pass(Way::ToConsumer, from_relay, to_consumer, &ways, shared);
    let back = pass(Way::ToRelay, from_consumer, to_relay, &ways, shared);
    tokio::try_join!(there, back).map(drop)
}

/// The pending strike on one direction of a connection.
#[derive(Default)]
struct WayState {
    strike: Mutex<Option<Strike>>,
    struck: Notify,
}

impl WayState {
    fn take(&self) -> Option<Strike> {
        self.strike.lock().expect("nothing panics meanwhile").take()
    }
}

async fn pass(
    way: Way,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    ways: &[WayState; 2],
    shared: &Shared,
) -> io::Result<()> {
    let own = &ways[way as usize];
    let mut buffer = vec![0; PIECE_BYTES];
    // `false` once this direction has ended or its bytes are discarded.
    let mut passes = true;
    loop {
        match own.take() {
            Some(Strike::Reset) => return Err(io::ErrorKind::ConnectionReset.into()),
            Some(Strike::Swallow(_)) => passes = false,
            Some(Strike::Finish(_)) => {
                to.shutdown().await?;
                passes = false;
            }
            Some(Strike::Stall(_, time)) => tokio::time::sleep(time).await,
            None => {}
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            () = own.struck.notified() => continue,
        };
        shared.release().await;
        if read == 0 {
            if passes {
                to.shutdown().await?;
            }
            return Ok(());
        }
        if !passes {
            continue;
        }
        let delay = if way == Way::ToRelay { shared.lock().delay } else { Duration::ZERO };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let (before, strike) = shared.pass(way, read);
        to.write_all(&buffer[..before]).await?;
        let Some(strike) = strike else { continue };
        let struck = match strike {
            Strike::Reset => way,
            Strike::Swallow(way) | Strike::Finish(way) | Strike::Stall(way, _) => way,
        };
        *ways[struck as usize].strike.lock().expect("nothing panics meanwhile") = Some(strike);
        shared.lock().strikes += 1;
        // The rest of the piece that triggered the strike is discarded, delayed or passed on.
        match strike {
            Strike::Stall(stalled, time) if stalled == way => {
                own.take();
                tokio::time::sleep(time).await;
                to.write_all(&buffer[before..read]).await?;
            }
            Strike::Reset => {}
            Strike::Swallow(_) | Strike::Finish(_) if struck == way => {}
            Strike::Swallow(_) | Strike::Finish(_) | Strike::Stall(..) => {
                ways[struck as usize].struck.notify_one();
                to.write_all(&buffer[before..read]).await?;
            }
        }
    }
}

/// Starts a consumer that echoes every byte, a middleman in front of it, and a connection to the
/// middleman.
fn echo() -> (Server, Middleman, std::net::TcpStream) {
    let server = Server::start(Options::default(), |mut stream, connection| {
        let mut buffer = [0; 1024];
        while connection.may_go_on() {
            let Ok(size @ 1..) = stream.read(&mut buffer) else { return };
            if stream.write_all(&buffer[..size]).is_err() {
                return;
            }
        }
    });
    let middleman = Middleman::start(server.address());
    let client = std::net::TcpStream::connect(middleman.address()).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    (server, middleman, client)
}

/// Reads to the end. Returns the text, and the error that ended the stream, if there was one.
fn read(client: &mut std::net::TcpStream) -> (String, Option<io::ErrorKind>) {
    let mut bytes = Vec::new();
    let ended = client.read_to_end(&mut bytes);
    (String::from_utf8(bytes).unwrap(), ended.err().map(|error| error.kind()))
}

#[test]
fn a_middleman_strikes_behind_the_byte_it_is_told() {
    let still_open = Some(io::ErrorKind::WouldBlock);
    let (to_consumer, to_relay) = (Way::ToConsumer, Way::ToRelay);
    for (way, strike, wanted) in [
        (to_relay, Strike::Swallow(to_relay), ("abc", still_open)),
        (to_relay, Strike::Finish(to_relay), ("abc", None)),
        (to_consumer, Strike::Swallow(to_consumer), ("abc", still_open)),
        // The consumer ends its direction in turn.
        (to_consumer, Strike::Finish(to_consumer), ("abc", None)),
        (to_consumer, Strike::Stall(to_consumer, PATIENCE), ("abc", still_open)),
        // The strike is not on the direction whose bytes are counted.
        (to_consumer, Strike::Finish(to_relay), ("", None)),
    ] {
        let (_server, middleman, mut client) = echo();
        middleman.arm(way, 3, strike);
        client.write_all(b"abcdef").unwrap();
        let (text, ended) = read(&mut client);
        assert_eq!((text.as_str(), ended), wanted, "{strike:?}");
        assert_eq!(middleman.strikes(), 1);
    }
}

#[test]
fn a_middleman_resets_both_ends() {
    for way in [Way::ToConsumer, Way::ToRelay] {
        let (server, middleman, mut client) = echo();
        let mut back = [0; 3];
        client.write_all(b"abc").unwrap();
        client.read_exact(&mut back).unwrap();
        middleman.arm(way, 2, Strike::Reset);
        client.write_all(b"def").unwrap();
        middleman.wait_for_strikes(1);
        assert_eq!(read(&mut client).1, Some(io::ErrorKind::ConnectionReset), "{way:?}");
        wait_until("the consumer's end", PATIENCE, || server.open() == 0);
    }
}

#[test]
fn a_middleman_passes_everything_late_where_it_is_told() {
    let (_server, middleman, mut client) = echo();
    middleman.hold(true);
    client.write_all(b"abc").unwrap();
    let mut back = [0; 3];
    assert_eq!(client.read(&mut back).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    middleman.hold(false);
    client.read_exact(&mut back).unwrap();

    let delay = Duration::from_millis(400);
    middleman.delay_answers(delay);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = Instant::now();
    client.write_all(b"abc").unwrap();
    client.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"abc");
    assert!(sent.elapsed() >= delay, "{:?}", sent.elapsed());
}
