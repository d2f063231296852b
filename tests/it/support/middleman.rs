//! A middleman between the relay and a consumer, which does to their connections what networks do.
//!
//! It strikes where it is told to: once so many more bytes have passed one way, on the connection that carried them. What
//! ends one connection in disorder ends the other with RST, as the network between them would have.
//!
//! One thread with a runtime of its own runs everything, and is joined when this is dropped.

use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use tokio::net::tcp::WriteHalf;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::PATIENCE;
use super::server::Options;
use super::server::Server;
use super::wait_until;

/// Bytes that it takes at once; behind them it holds what the kernel's buffers do.
const PIECE_BYTES: usize = 16 * 1024;

/// It looks so often whether it runs.
const BEAT: Duration = Duration::from_millis(20);

/// Where it did not run for so long, what the kernel held meanwhile may count as delivered for an output whose consumer
/// does not answer: no reset until [`CALM`] later.
const HELD_UP: Duration = Duration::from_millis(200);

/// Time in which it passes on what the kernel held.
const CALM: Duration = Duration::from_millis(100);

/// The direction in which bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToConsumer,
    ToRelay,
}

/// What it does to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strike {
    /// Both ends get RST, and what is on its way is lost.
    Reset,
    /// What comes this way is thrown away from here on, its end too.
    Swallow(Way),
    /// This way ends here in order (FIN); what comes after is thrown away. The other way goes on.
    Finish(Way),
    /// Nothing passes this way for so long.
    Stall(Way, Duration),
}

/// The middleman.
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
    /// Nothing passes either way.
    held: bool,
    /// Before each piece that goes to the relay.
    delay: Duration,
    beat: Option<Instant>,
    /// It did not run until then.
    held_up: Option<Instant>,
}

struct Armed {
    /// Bytes that pass this way count.
    way: Way,
    /// So many pass before the strike.
    left: u64,
    strike: Strike,
}

impl Middleman {
    pub(crate) fn start(consumer: SocketAddr) -> Self {
        Self::with_receive_buffer(consumer, None)
    }

    /// The receive buffer of its connections to the relay bounds what it takes while nothing passes.
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

    /// Strikes once, when `after` more bytes have passed this way over all connections.
    pub(crate) fn arm(&self, way: Way, after: u64, strike: Strike) {
        let before = self.shared.lock().armed.replace(Armed { way, left: after, strike });
        assert!(before.is_none(), "armed twice");
    }

    /// How often it has struck.
    pub(crate) fn strikes(&self) -> usize {
        self.shared.lock().strikes
    }

    /// Waits until it has struck so often.
    pub(crate) fn wait_for_strikes(&self, count: usize) {
        wait_until("the middleman's strike", PATIENCE, || self.strikes() >= count);
    }

    /// Stands still (true), as a process that is stopped, or goes on (false): the kernel still takes bytes.
    pub(crate) fn hold(&self, held: bool) {
        self.shared.lock().held = held;
        self.shared.released.notify_waiters();
    }

    /// From now on each piece that goes to the relay comes so much later.
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

    /// Waits while it is held.
    async fn release(&self) {
        loop {
            let released = self.released.notified();
            if !self.lock().held {
                return;
            }
            released.await;
        }
    }

    /// Of these bytes on this way: how many pass before the strike that is due, if one is.
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
    /// Nothing lies in a kernel because this thread did not run.
    fn is_calm(&self) -> bool {
        let runs = self.beat.is_some_and(|beat| beat.elapsed() < HELD_UP);
        runs && self.held_up.is_none_or(|until| until.elapsed() > CALM)
    }
}

/// Notes when this thread did not run. Never ends.
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
        // Before listen: a connection inherits it.
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    socket.listen(1024)
}

/// Never ends; its connections end with it.
async fn accept(listener: &TcpListener, consumer: SocketAddr, shared: &Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // The relay may have given up while it waited.
                let Ok((relay, _)) = accepted else { continue };
                connections.spawn(serve(relay, consumer, Arc::clone(shared)));
            }
            Some(served) = connections.join_next() => served.expect("it does not panic"),
        }
    }
}

/// One connection of the relay, and the one to the consumer that belongs to it.
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

/// Ends when both ways have ended in order; an error is the disorderly end of either.
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

/// What a strike has made of one way of a connection.
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
    // False once it ends, or throws away what comes.
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
        // What came behind it on its own way: kept from passing, or passed on late.
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

/// A consumer that sends back what it gets, behind a middleman, and a connection to it.
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

/// What comes back, and how it ends.
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
        // The consumer ends its side in turn.
        (to_consumer, Strike::Finish(to_consumer), ("abc", None)),
        (to_consumer, Strike::Stall(to_consumer, PATIENCE), ("abc", still_open)),
        // The other way.
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
