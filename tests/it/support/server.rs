//! What the fake consumers share: a listener whose connections can be held up, closed and reset.
//!
//! One thread accepts, each connection has a thread of its own. All of them have ended when
//! `close` or `kill` returns. A panic in one of them fails the test when the fake is dropped.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::StreamOwned;
use socket2::SockRef;

use super::PATIENCE;
use super::free_port;
use super::stream::Stream;
use super::try_wait_for;

/// Serves one connection until its end; the socket is closed when it returns.
type Handler = dyn Fn(Stream, &Connection) + Send + Sync;

/// How a fake listens.
#[derive(Default, Clone)]
pub(crate) struct Options {
    /// TLS, with or without client certificates.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// The kernel's receive buffer, to bound what a consumer that does not read takes.
    pub(crate) receive_buffer: Option<usize>,
    /// The port, for a process that is told its own, or one of several addresses of a name; else one that is free.
    pub(crate) port: Option<u16>,
    /// The address, where it is not 127.0.0.1.
    pub(crate) ip: Option<Ipv4Addr>,
}

/// The listener of a fake consumer.
pub(crate) struct Server {
    address: SocketAddr,
    options: Options,
    shared: Arc<Shared>,
    acceptor: Option<Acceptor>,
}

struct Acceptor {
    /// A second handle of the listening socket: shutting it down ends the accept.
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
    /// Nothing is served, nothing is read: the kernel's buffers fill.
    paused: bool,
    open: BTreeMap<usize, Open>,
    history: Vec<Times>,
    handshake_failures: Vec<String>,
    panics: Vec<String>,
}

/// A connection that is being served.
struct Open {
    socket: TcpStream,
    ending: bool,
}

/// When a connection began and ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) opened: Instant,
    pub(crate) closed: Option<Instant>,
}

/// One connection as its handler sees it.
pub(crate) struct Connection {
    /// Counted from 0 in the order of accept.
    pub(crate) number: usize,
    shared: Arc<Shared>,
}

impl Connection {
    /// Waits while the fake is paused; false when the connection is to end.
    pub(crate) fn may_go_on(&self) -> bool {
        let mut state = self.shared.lock();
        while state.paused && !state.is_ending(self.number) {
            state = self.shared.changed.wait(state).unwrap();
        }
        !state.is_ending(self.number)
    }

    /// Waits for `time`; false when the connection is to end.
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
    /// Listens on a port of 127.0.0.1 that stays the same until it is dropped.
    pub(crate) fn start(
        options: Options,
        handler: impl Fn(Stream, &Connection) + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        // Another test may take the port between the look and the bind.
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

    /// Stops (true) or goes on (false) serving and reading. Connections are still taken by the
    /// kernel, which fills their buffers: a consumer that hangs.
    pub(crate) fn pause(&self, paused: bool) {
        self.shared.lock().paused = paused;
        self.shared.changed.notify_all();
    }

    /// Ends every connection as the end of a process does: FIN, or RST where bytes are unread.
    pub(crate) fn close_connections(&self) {
        self.end_connections(End::Close);
    }

    /// Ends every connection with RST (SO_LINGER 0); what is unread is lost.
    pub(crate) fn reset_connections(&self) {
        self.end_connections(End::Reset);
    }

    /// Sends FIN on every connection and goes on reading.
    pub(crate) fn finish_writing(&self) {
        for open in self.shared.lock().open.values() {
            // One that the client has just ended needs no FIN.
            drop(open.socket.shutdown(Shutdown::Write));
        }
    }

    /// Refuses connections from now on and leaves the open ones alone.
    pub(crate) fn refuse(&mut self) {
        if let Some(Acceptor { listener, thread }) = self.acceptor.take() {
            SockRef::from(&listener).shutdown(Shutdown::Both).expect("a listening socket");
            thread.join().expect("accepting does not panic");
        }
    }

    /// The consumer ends: refuses connections and closes the open ones.
    pub(crate) fn close(&mut self) {
        self.refuse();
        self.close_connections();
    }

    /// The consumer dies: refuses connections and resets the open ones.
    pub(crate) fn kill(&mut self) {
        self.refuse();
        self.reset_connections();
    }

    /// Listens again on the same port.
    pub(crate) fn reopen(&mut self) {
        assert!(self.acceptor.is_none(), "reopened while open");
        self.pause(false);
        let listener = try_wait_for(PATIENCE, || listen(self.address, &self.options).ok());
        let listener = listener.expect("the port is still ours");
        self.acceptor = Some(accept(listener, &self.options, &self.shared));
    }

    /// Whether connections are taken.
    pub(crate) fn is_listening(&self) -> bool {
        self.acceptor.is_some()
    }

    /// Connections so far, in the order of accept.
    pub(crate) fn history(&self) -> Vec<Times> {
        self.shared.lock().history.clone()
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.shared.lock().open.len()
    }

    /// What failed before the first byte of a request: a client without certificate, …
    pub(crate) fn handshake_failures(&self) -> Vec<String> {
        self.shared.lock().handshake_failures.clone()
    }

    fn end_connections(&self, how: End) {
        for open in self.shared.lock().open.values_mut() {
            if how == End::Reset {
                SockRef::from(&open.socket).set_linger(Some(Duration::ZERO)).expect("a socket");
            }
            open.ending = true;
            // Wakes a blocked read, and sends nothing; the last handle's close decides what is
            // sent. It fails where the client has ended the connection already.
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
        let panics = std::mem::take(&mut self.shared.lock().panics);
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
    // The connections of the previous listener may be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if let Some(bytes) = options.receive_buffer {
        // Before listen: a connection inherits it, and its window is agreed on at the start.
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn accept(listener: TcpListener, options: &Options, shared: &Arc<Shared>) -> Acceptor {
    let handle = listener.try_clone().expect("a second handle");
    let (tls, shared) = (options.tls.clone(), Arc::clone(shared));
    let thread = std::thread::spawn(move || {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                // The client gave up while it waited.
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
            let (tls, shared) = (tls.clone(), Arc::clone(&shared));
            std::thread::spawn(move || serve(socket, number, tls, &shared));
        }
    });
    Acceptor { listener: handle, thread }
}

/// A connection's thread.
fn serve(socket: TcpStream, number: usize, tls: Option<Arc<ServerConfig>>, shared: &Arc<Shared>) {
    let connection = Connection { number, shared: Arc::clone(shared) };
    let served = std::panic::catch_unwind(AssertUnwindSafe(|| {
        if !connection.may_go_on() {
            return;
        }
        match handshake(socket, tls) {
            Ok(stream) => (shared.handler)(stream, &connection),
            Err(error) => {
                let mut state = shared.lock();
                // One that we have ended did not fail.
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
    // The last handle of the socket: it is closed here.
    state.open.remove(&number);
    shared.changed.notify_all();
}

fn handshake(socket: TcpStream, tls: Option<Arc<ServerConfig>>) -> std::io::Result<Stream> {
    socket.set_nodelay(true)?;
    // A client that does not read must not keep this thread: the end of a connection is waited for.
    socket.set_write_timeout(Some(PATIENCE / 2))?;
    let Some(config) = tls else { return Ok(Stream::Plain(socket)) };
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Stream::Server(Box::new(stream)))
}

/// The text of a panic.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}
