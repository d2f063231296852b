//! The listener that the fake consumers share. A test can pause, close and reset its connections.
//!
//! One thread accepts, and each connection has its own thread. All of them have ended when `close`
//! or `kill` returns. If one of them panics, the test fails when the fake is dropped.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::SockRef;

use super::stream::Stream;
use super::{PATIENCE, free_port, try_wait_for, wait_until};

/// Serves one connection. The socket is closed when the handler returns.
type Handler = dyn Fn(Stream, &Connection) + Send + Sync;

/// The settings of a fake's listener.
#[derive(Default, Clone)]
pub(crate) struct Options {
    /// The TLS settings, with or without client certificates. `None` is plain TCP.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// The size of the kernel's receive buffer, in bytes. A small buffer limits how much the kernel
    /// receives for a consumer that does not read.
    pub(crate) receive_buffer: Option<usize>,
    /// The port, for a test that needs a certain one, such as the same port on several addresses.
    /// `None` takes a free port.
    pub(crate) port: Option<u16>,
    /// The address to listen on. `None` is 127.0.0.1.
    pub(crate) ip: Option<Ipv4Addr>,
    /// A connection is closed if no byte arrives for this long. `None`: there is no limit.
    pub(crate) idle: Option<Duration>,
}

pub(crate) struct Server {
    address: SocketAddr,
    options: Options,
    shared: Arc<Shared>,
    acceptor: Option<Acceptor>,
}

struct Acceptor {
    /// A second handle of the listening socket. Shutting it down ends the accept loop.
    listener: TcpListener,
    thread: JoinHandle<()>,
}

struct Shared {
    handler: Box<Handler>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// If `true`, no connection is served or read, so the kernel's buffers fill up.
    paused: bool,
    open: BTreeMap<usize, Open>,
    history: Vec<Times>,
    handshake_failures: Vec<String>,
    panics: Vec<String>,
}

struct Open {
    socket: TcpStream,
    ending: bool,
}

/// When a connection began and ended. `closed` is `None` while the connection is open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) opened: Instant,
    pub(crate) closed: Option<Instant>,
}

/// A connection as its handler sees it.
pub(crate) struct Connection {
    /// The connection's number, counted from 0 in the order in which connections were accepted.
    pub(crate) number: usize,
    shared: Arc<Shared>,
}

impl Connection {
    /// Waits while the fake is paused. Returns `false` if the connection must end.
    pub(crate) fn may_go_on(&self) -> bool {
        let mut state = self.shared.lock();
        while state.paused && !state.is_ending(self.number) {
            state = self.shared.changed.wait(state).unwrap();
        }
        !state.is_ending(self.number)
    }

    /// Waits for `time`. Returns `false` as soon as the connection must end.
    pub(crate) fn rest(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut state = self.shared.lock();
        while !state.is_ending(self.number) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
        false
    }
}

impl Server {
    /// Listens on a port that stays the same until the server is dropped.
    pub(crate) fn start(
        options: Options,
        handler: impl Fn(Stream, &Connection) + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        // Another program may take the port after it was chosen and before it is bound.
        for _ in 0..20 {
            let port = options.port.unwrap_or_else(free_port);
            let address = SocketAddr::from((options.ip.unwrap_or(Ipv4Addr::LOCALHOST), port));
            if let Ok(listener) = listen(address, &options) {
                let acceptor = Some(accept(listener, &options, &shared));
                return Self { address, options, shared, acceptor };
            }
        }
        panic!("twenty times the port was taken before it could be bound");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// If `paused`, stops serving and reading, like a consumer that hangs: the kernel still accepts
    /// connections and fills their buffers. Otherwise continues.
    pub(crate) fn pause(&self, paused: bool) {
        self.shared.lock().paused = paused;
        self.shared.changed.notify_all();
    }

    /// Closes every connection as when a process ends: with FIN, or with RST if it has unread
    /// bytes.
    pub(crate) fn close_connections(&self) {
        self.end_connections(End::Close);
    }

    /// Ends every connection with RST (SO_LINGER 0). Unread bytes are lost.
    pub(crate) fn reset_connections(&self) {
        self.end_connections(End::Reset);
    }

    /// Sends FIN on every connection and keeps reading.
    pub(crate) fn finish_writing(&self) {
        for open in self.shared.lock().open.values() {
            // A connection that the client has just ended needs no FIN.
            drop(open.socket.shutdown(Shutdown::Write));
        }
    }

    /// Refuses new connections from now on, and keeps the open ones.
    pub(crate) fn refuse(&mut self) {
        if let Some(Acceptor { listener, thread }) = self.acceptor.take() {
            SockRef::from(&listener).shutdown(Shutdown::Both).expect("a listening socket");
            thread.join().expect("accepting does not panic");
        }
    }

    /// Ends the consumer in order: refuses new connections and closes the open ones.
    pub(crate) fn close(&mut self) {
        self.refuse();
        self.close_connections();
    }

    /// Ends the consumer as in a crash: refuses new connections and resets the open ones.
    pub(crate) fn kill(&mut self) {
        self.refuse();
        self.reset_connections();
    }

    pub(crate) fn reopen(&mut self) {
        assert!(self.acceptor.is_none(), "reopened while open");
        self.pause(false);
        let listener = try_wait_for(PATIENCE, || listen(self.address, &self.options).ok());
        let listener = listener.expect("the port is still ours");
        self.acceptor = Some(accept(listener, &self.options, &self.shared));
    }

    /// Changes [`Options::idle`] for connections after the next [`Server::reopen`].
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn set_idle(&mut self, idle: Option<Duration>) {
        self.options.idle = idle;
    }

    /// Returns `true` if new connections are accepted.
    pub(crate) fn is_listening(&self) -> bool {
        self.acceptor.is_some()
    }

    /// Returns the times of all connections so far, in the order in which they were accepted.
    pub(crate) fn history(&self) -> Vec<Times> {
        self.shared.lock().history.clone()
    }

    /// Waits until every connection has ended. Only then has the fake read all bytes that a relay
    /// sent before its end, because the kernel acknowledges bytes before the fake reads them.
    pub(crate) fn wait_until_left(&self) {
        wait_until("the ends of all connections", PATIENCE, || self.open() == 0);
    }

    pub(crate) fn open(&self) -> usize {
        self.shared.lock().open.len()
    }

    /// Returns the errors of connections that failed before a request, for example because the
    /// client had no certificate.
    pub(crate) fn handshake_failures(&self) -> Vec<String> {
        self.shared.lock().handshake_failures.clone()
    }

    /// Takes the panic messages of the connections' handlers so far. The drop does not panic for
    /// these.
    pub(crate) fn take_panics(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().panics)
    }

    fn end_connections(&self, how: End) {
        for open in self.shared.lock().open.values_mut() {
            if how == End::Reset {
                SockRef::from(&open.socket).set_linger(Some(Duration::ZERO)).expect("a socket");
            }
            open.ending = true;
            // The shutdown wakes a blocked read and sends nothing. FIN or RST is sent when the last
            // handle is closed. The shutdown fails if the client has already ended the connection.
            drop(open.socket.shutdown(Shutdown::Read));
        }
        self.shared.changed.notify_all();
        let ended = |state: &State| state.open.values().all(|open| !open.ending);
        let ended = try_wait_for(PATIENCE, || ended(&self.shared.lock()).then_some(()));
        assert!(ended.is_some() || std::thread::panicking(), "a connection does not end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let panics = self.take_panics();
        if !panics.is_empty() && !std::thread::panicking() {
            panic!("a fake consumer failed: {}", panics.join("; "));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Close,
    Reset,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the state is held")
    }
}

impl State {
    fn is_ending(&self, number: usize) -> bool {
        self.open.get(&number).is_none_or(|open| open.ending)
    }
}

fn listen(address: SocketAddr, options: &Options) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    // Connections of the previous listener may still be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if let Some(bytes) = options.receive_buffer {
        // The size must be set before `listen`: connections inherit it, and agree on their window
        // at their start.
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn accept(listener: TcpListener, options: &Options, shared: &Arc<Shared>) -> Acceptor {
    let handle = listener.try_clone().expect("a second handle");
    let (options, shared) = (options.clone(), Arc::clone(shared));
    let thread = std::thread::spawn(move || {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                // The client gave up before its connection was accepted.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                // EINVAL: the second handle was shut down.
                Err(error) if error.kind() == ErrorKind::InvalidInput => return,
                Err(error) => panic!("accept: {error}"),
            };
            let number = {
                let mut state = shared.lock();
                let number = state.history.len();
                state.history.push(Times { opened: Instant::now(), closed: None });
                let socket = socket.try_clone().expect("a second handle");
                state.open.insert(number, Open { socket, ending: false });
                number
            };
            let (options, shared) = (options.clone(), Arc::clone(&shared));
            std::thread::spawn(move || serve(socket, number, &options, &shared));
        }
    });
    Acceptor { listener: handle, thread }
}

fn serve(socket: TcpStream, number: usize, options: &Options, shared: &Arc<Shared>) {
    let connection = Connection { number, shared: Arc::clone(shared) };
    let served = std::panic::catch_unwind(AssertUnwindSafe(|| {
        if !connection.may_go_on() {
            return;
        }
        match handshake(socket, options) {
            Ok(stream) => (shared.handler)(stream, &connection),
            Err(error) => {
                let mut state = shared.lock();
                // A handshake that the test itself has ended is not a failure.
                if !state.is_ending(number) {
                    state.handshake_failures.push(error.to_string());
                }
            }
        }
    }));
    let mut state = shared.lock();
    if let Err(panic) = served {
        state.panics.push(said(panic.as_ref()));
    }
    state.history[number].closed = Some(Instant::now());
    // This drops the last handle of the socket, which closes it.
    state.open.remove(&number);
    shared.changed.notify_all();
}

fn handshake(socket: TcpStream, options: &Options) -> std::io::Result<Stream> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(options.idle)?;
    // A client that does not read must not block this thread for ever. Ending a connection waits
    // for this thread.
    socket.set_write_timeout(Some(PATIENCE / 2))?;
    let Some(config) = options.tls.clone() else { return Ok(Stream::Plain(socket)) };
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Stream::Server(Box::new(stream)))
}

/// Returns the message of a panic.
pub(crate) fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}

/// Lets a fake `Deref` to the [`Server`] that is its field `server`.
macro_rules! derefs_to_its_server {
    ($fake:ty) => {
        impl std::ops::Deref for $fake {
            type Target = $crate::support::server::Server;

            fn deref(&self) -> &Self::Target {
                &self.server
            }
        }

        impl std::ops::DerefMut for $fake {
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.server
            }
        }
    };
}
pub(crate) use derefs_to_its_server;
