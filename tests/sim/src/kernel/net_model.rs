//! TCP, socket pairs, event counters and epoll, as far as Rust programs use them.
//!
//! A connection has two ends. The bytes that one end writes are cut into segments, which arrive at
//! the other end later, in order. A connection belongs to the listener's address to which it was
//! made, and that address's fault applies to it.

#![allow(clippy::wildcard_enum_match_arm, reason = "what is not a socket is refused alike")]

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};

use super::baton::{Owner, TaskId};
use super::state::{Event, Kernel, MICROSECOND, MILLISECOND, SECOND};

/// An error number of the kernel.
pub(super) type Errno = i32;

/// The number of an open file. Several descriptors can refer to it.
pub(super) type Id = usize;

/// The first simulated descriptor. Lower ones belong to the real kernel.
const FIRST: i32 = 100_000;

/// The first port for sockets that are bound to port 0.
const FIRST_PORT: u16 = 20_000;

/// How long the kernel tries to send without `TCP_USER_TIMEOUT` (tcp_retries2).
const SEND_LIMIT: u64 = 924 * SECOND;

/// How long the kernel tries to connect (tcp_syn_retries).
const CONNECT_LIMIT: u64 = 127 * SECOND;

/// A fault on the way to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fault {
    #[default]
    None,
    /// New connections are refused. Open ones are not affected.
    Refused,
    /// No packet gets through, in either direction. Senders try again until they give up.
    Silent,
    /// Packets take this much longer, in milliseconds.
    Slow(u32),
}

/// Something that happens in the network at a certain time.
#[derive(Debug)]
pub(super) enum NetEvent {
    /// A client asks for a connection. It asked for the first time at `first`.
    Syn {
        client: Id,
        first: u64,
    },
    /// The client learns that it is connected.
    Connected {
        client: Id,
    },
    Refused {
        client: Id,
    },
    Data {
        to: Id,
        bytes: Vec<u8>,
    },
    Fin {
        to: Id,
    },
    Reset {
        to: Id,
    },
    /// The other end has read bytes, so there is room again.
    Room {
        to: Id,
    },
    /// The sender has waited long enough for an acknowledgement.
    GiveUp {
        from: Id,
        since: u64,
    },
    /// Packets get through again.
    Resume {
        to: Id,
    },
    /// The probes of an idle connection got no answer.
    Probed {
        id: Id,
        since: u64,
    },
}

#[derive(Debug, Default)]
pub(super) struct Net {
    open: Vec<Open>,
    descriptors: BTreeMap<i32, Id>,
    listeners: BTreeMap<SocketAddr, Id>,
    faults: BTreeMap<SocketAddr, (Fault, u64)>,
    /// Second addresses of listeners. Each has its own fault.
    doors: BTreeMap<SocketAddr, SocketAddr>,
    last_port: u16,
}

/// An open file of the simulated kernel.
#[derive(Debug)]
pub(super) struct Open {
    owner: Owner,
    references: u32,
    is_blocking: bool,
    pub(super) object: Object,
    waiting: Vec<TaskId>,
    /// The epolls that watch it, and the descriptor under which they know it.
    watched: Vec<(Id, i32)>,
    options: Options,
}

#[derive(Debug)]
pub(super) enum Object {
    /// A socket that neither listens nor is connected. It may be bound to an address.
    Fresh {
        bound: Option<SocketAddr>,
        is_v6: bool,
    },
    Listener {
        address: SocketAddr,
        backlog: VecDeque<Id>,
        is_shut: bool,
    },
    Stream(Stream),
    Counter(u64),
    Epoll(Vec<Watch>),
    /// Standard output (1) or standard error (2) of a process.
    Output(Owner, i32),
    Closed,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Options {
    pub(super) receive_limit: Option<u64>,
    pub(super) send_limit: Option<u64>,
    pub(super) linger_zero: bool,
    pub(super) user_timeout: Option<u64>,
    pub(super) keepalive: bool,
    pub(super) keepalive_idle: Option<u64>,
    pub(super) keepalive_interval: Option<u64>,
    pub(super) receive_buffer: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Watch {
    descriptor: i32,
    id: Id,
    interest: u32,
    data: u64,
    /// `true` if something has changed since the last report.
    has_news: bool,
}

#[derive(Debug)]
pub(super) struct Stream {
    local: SocketAddr,
    remote: SocketAddr,
    /// The address of the listener; `None` for a socket pair, which has no faults.
    service: Option<SocketAddr>,
    peer: Option<Id>,
    is_connected: bool,
    received: VecDeque<u8>,
    has_fin: bool,
    is_reset: bool,
    is_shut: bool,
    error: Errno,
    /// Bytes that were written here and have not arrived yet.
    in_flight: usize,
    /// When the newest segment to this end arrives. Later segments do not arrive before that.
    newest: u64,
    /// The segments to this end that wait because packets get lost.
    held: VecDeque<NetEvent>,
    /// Since when bytes that were sent here have been waiting for an acknowledgement.
    unacknowledged: Option<u64>,
    /// `true` if a writer found no room, and must be told when there is room again.
    wants_room: bool,
    /// How many bytes can be on the way to this end or wait there to be read.
    capacity: usize,
    /// The shortest time that a packet takes, in nanoseconds.
    latency: u64,
}

/// Everything that is needed to send from an end.
#[derive(Debug, Clone, Copy)]
struct Way {
    peer: Option<Id>,
    service: Option<SocketAddr>,
    latency: u64,
}

impl Stream {
    fn way(&self) -> Way {
        Way { peer: self.peer, service: self.service, latency: self.latency }
    }
}

impl Open {
    fn new(owner: Owner, object: Object) -> Self {
        Self {
            owner,
            references: 1,
            is_blocking: true,
            object,
            waiting: Vec::new(),
            watched: Vec::new(),
            options: Options::default(),
        }
    }

    fn stream(&mut self) -> Option<&mut Stream> {
        match &mut self.object {
            Object::Stream(stream) => Some(stream),
            _ => None,
        }
    }
}

impl Net {
    pub(super) fn id(&self, descriptor: i32) -> Option<Id> {
        self.descriptors.get(&descriptor).copied()
    }

    fn stream(&mut self, id: Id) -> Option<&mut Stream> {
        self.open[id].stream()
    }

    fn fault_of(&self, service: Option<SocketAddr>) -> Fault {
        let fault = service.and_then(|service| self.faults.get(&service));
        fault.map_or(Fault::None, |(fault, _)| *fault)
    }

    pub(super) fn is_blocking(&self, id: Id) -> bool {
        self.open[id].is_blocking
    }

    pub(super) fn set_blocking(&mut self, id: Id, is_blocking: bool) {
        self.open[id].is_blocking = is_blocking;
    }

    pub(super) fn options(&mut self, id: Id) -> &mut Options {
        &mut self.open[id].options
    }

    pub(super) fn object(&self, id: Id) -> &Object {
        &self.open[id].object
    }

    pub(super) fn output(&self, id: Id) -> Option<(Owner, i32)> {
        match &self.open[id].object {
            Object::Output(owner, which) => Some((*owner, *which)),
            _ => None,
        }
    }

    /// Registers a thread that waits for the next change.
    pub(super) fn wait_for(&mut self, id: Id, task: TaskId) {
        self.open[id].waiting.push(task);
    }

    /// Returns what can be done with an open file, in epoll's bits.
    pub(super) fn readiness(&mut self, id: Id) -> u32 {
        let bits = |bits: i32| bits.unsigned_abs();
        match &self.open[id].object {
            Object::Fresh { .. } => bits(libc::EPOLLOUT | libc::EPOLLHUP),
            Object::Listener { is_shut: true, .. } => bits(libc::EPOLLIN | libc::EPOLLHUP),
            Object::Listener { backlog, .. } => {
                if backlog.is_empty() {
                    0
                } else {
                    bits(libc::EPOLLIN)
                }
            }
            Object::Counter(0) => bits(libc::EPOLLOUT),
            Object::Counter(_) => bits(libc::EPOLLIN | libc::EPOLLOUT),
            Object::Epoll(_) | Object::Closed => 0,
            Object::Output(..) => bits(libc::EPOLLOUT),
            Object::Stream(_) => self.readiness_of_stream(id),
        }
    }

    fn readiness_of_stream(&mut self, id: Id) -> u32 {
        let room = self.room(id);
        let Some(stream) = self.stream(id) else { return 0 };
        if !stream.is_connected && stream.error == 0 && !stream.is_reset {
            return 0;
        }
        let mut ready = 0;
        if !stream.received.is_empty() || stream.has_fin || stream.is_reset {
            ready |= libc::EPOLLIN;
        }
        if room > 0 || stream.is_shut || stream.is_reset {
            ready |= libc::EPOLLOUT;
        } else {
            stream.wants_room = true;
        }
        if stream.has_fin || stream.is_reset {
            ready |= libc::EPOLLRDHUP;
        }
        if stream.is_reset || stream.has_fin && stream.is_shut {
            ready |= libc::EPOLLHUP;
        }
        if stream.error != 0 {
            ready |= libc::EPOLLERR;
        }
        ready.unsigned_abs()
    }

    /// Returns how many bytes this end can write now.
    fn room(&self, id: Id) -> usize {
        let Object::Stream(stream) = &self.open[id].object else { return 0 };
        let Some(peer) = stream.peer else { return 0 };
        let Object::Stream(other) = &self.open[peer].object else { return usize::MAX };
        other.capacity.saturating_sub(stream.in_flight + other.received.len())
    }

    pub(super) fn local(&self, id: Id) -> Option<SocketAddr> {
        match &self.open[id].object {
            Object::Fresh { bound, is_v6 } => bound.or(Some(nowhere(*is_v6))),
            Object::Listener { address, .. } => Some(*address),
            Object::Stream(stream) => Some(stream.local),
            _ => None,
        }
    }

    pub(super) fn remote(&self, id: Id) -> Option<SocketAddr> {
        match &self.open[id].object {
            Object::Stream(stream) if stream.is_connected => Some(stream.remote),
            _ => None,
        }
    }

    pub(super) fn unacknowledged(&self, id: Id) -> usize {
        match &self.open[id].object {
            Object::Stream(stream) => stream.in_flight,
            _ => 0,
        }
    }

    pub(super) fn take_error(&mut self, id: Id) -> Errno {
        self.stream(id).map_or(0, |stream| std::mem::take(&mut stream.error))
    }
}

fn nowhere(is_v6: bool) -> SocketAddr {
    match is_v6 {
        true => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        false => (Ipv4Addr::UNSPECIFIED, 0).into(),
    }
}

impl Kernel {
    /// Adds an open file. Its descriptor is the smallest that is free.
    pub(super) fn open(&mut self, owner: Owner, object: Object) -> i32 {
        self.net.open.push(Open::new(owner, object));
        self.describe(self.net.open.len() - 1)
    }

    fn describe(&mut self, id: Id) -> i32 {
        let mut descriptor = FIRST;
        while self.net.descriptors.contains_key(&descriptor) {
            descriptor += 1;
        }
        self.net.descriptors.insert(descriptor, id);
        descriptor
    }

    /// Makes another descriptor for an open file.
    pub(super) fn duplicate(&mut self, id: Id) -> i32 {
        self.net.open[id].references += 1;
        self.describe(id)
    }

    /// Makes two connected sockets.
    pub(super) fn pair(&mut self, owner: Owner) -> (i32, i32) {
        let end = |peer| {
            let mut stream = stream(nowhere(false), nowhere(false), None, 1 << 16, 0);
            stream.peer = Some(peer);
            stream.is_connected = true;
            Object::Stream(stream)
        };
        let first = self.net.open.len();
        let (one, other) = (end(first + 1), end(first));
        (self.open(owner, one), self.open(owner, other))
    }

    /// Closes a descriptor. Returns `false` if it is not simulated.
    pub(super) fn close(&mut self, descriptor: i32) -> bool {
        let Some(id) = self.net.descriptors.remove(&descriptor) else { return false };
        let open = &mut self.net.open[id];
        open.references -= 1;
        if open.references == 0 {
            for (epoll, _) in std::mem::take(&mut self.net.open[id].watched) {
                if let Object::Epoll(watches) = &mut self.net.open[epoll].object {
                    watches.retain(|watch| watch.id != id);
                }
            }
            self.end_open(id);
        }
        true
    }

    pub(super) fn close_all(&mut self, owner: Owner) {
        let is_of = |id: &Id| self.net.open[*id].owner == owner;
        let of_owner = self.net.descriptors.iter().filter(|(_, id)| is_of(id));
        let descriptors: Vec<i32> = of_owner.map(|(descriptor, _)| *descriptor).collect();
        for descriptor in descriptors {
            self.close(descriptor);
        }
    }

    fn end_open(&mut self, id: Id) {
        let linger_zero = self.net.open[id].options.linger_zero;
        match std::mem::replace(&mut self.net.open[id].object, Object::Closed) {
            Object::Listener { address, backlog, .. } => {
                self.net.listeners.remove(&address);
                for client in backlog {
                    self.net.open[client].options.linger_zero = true;
                    self.end_open(client);
                }
            }
            Object::Stream(mut stream) => {
                let is_rude = linger_zero || !stream.received.is_empty();
                let (peer, is_shut) = (stream.peer, stream.is_shut);
                stream.received.clear();
                if let Some(peer) = peer
                    && stream.is_connected
                    && !stream.is_reset
                {
                    match is_rude {
                        true => self.send_segment(stream.way(), NetEvent::Reset { to: peer }),
                        false if is_shut => {}
                        false => self.send_segment(stream.way(), NetEvent::Fin { to: peer }),
                    }
                }
            }
            _ => {}
        }
        self.changed(id);
    }

    /// Wakes the threads that wait for an open file, and tells the epolls that watch it.
    fn changed(&mut self, id: Id) {
        for task in std::mem::take(&mut self.net.open[id].waiting) {
            self.wake(task);
        }
        for (epoll, descriptor) in self.net.open[id].watched.clone() {
            let open = &mut self.net.open[epoll];
            if let Object::Epoll(watches) = &mut open.object {
                let watch = watches.iter_mut().find(|watch| watch.descriptor == descriptor);
                if let Some(watch) = watch {
                    watch.has_news = true;
                }
            }
            for task in std::mem::take(&mut open.waiting) {
                self.wake(task);
            }
        }
    }

    pub(super) fn bind(&mut self, id: Id, mut address: SocketAddr) -> Result<(), Errno> {
        if address.port() == 0 {
            self.net.last_port = self.net.last_port.max(FIRST_PORT - 1) + 1;
            address.set_port(self.net.last_port);
        } else if self.net.listeners.contains_key(&address) {
            return Err(libc::EADDRINUSE);
        }
        match &mut self.net.open[id].object {
            Object::Fresh { bound, .. } => *bound = Some(address),
            _ => return Err(libc::EINVAL),
        }
        Ok(())
    }

    pub(super) fn listen(&mut self, id: Id) -> Result<(), Errno> {
        let Object::Fresh { bound: Some(address), .. } = self.net.open[id].object else {
            return Err(libc::EINVAL);
        };
        if self.net.listeners.contains_key(&address) {
            return Err(libc::EADDRINUSE);
        }
        self.net.listeners.insert(address, id);
        self.net.open[id].object =
            Object::Listener { address, backlog: VecDeque::new(), is_shut: false };
        self.trace.add(self.now, format_args!("listen {address}"));
        Ok(())
    }

    /// Returns the descriptor of the next connection and the client's address, if there is one.
    pub(super) fn accept(
        &mut self,
        id: Id,
        owner: Owner,
    ) -> Result<Option<(i32, SocketAddr)>, Errno> {
        let Object::Listener { backlog, is_shut, .. } = &mut self.net.open[id].object else {
            return Err(libc::EINVAL);
        };
        if *is_shut {
            return Err(libc::EINVAL);
        }
        let Some(client) = backlog.pop_front() else { return Ok(None) };
        let open = &mut self.net.open[client];
        open.owner = owner;
        open.references = 1;
        let from = self.net.remote(client).unwrap_or(nowhere(false));
        Ok(Some((self.describe(client), from)))
    }

    /// Begins to connect. The connection is made or refused later.
    pub(super) fn connect(&mut self, id: Id, address: SocketAddr) -> Result<(), Errno> {
        let Object::Fresh { bound, .. } = &self.net.open[id].object else {
            return Err(libc::EISCONN);
        };
        let ip = if address.ip().is_loopback() { address.ip() } else { Ipv4Addr::LOCALHOST.into() };
        let local = bound.unwrap_or_else(|| {
            self.net.last_port = self.net.last_port.max(FIRST_PORT - 1) + 1;
            (ip, self.net.last_port).into()
        });
        let latency = (self.rng.u64(20..=40) * MICROSECOND) << self.rng.u32(..6);
        let capacity = self.capacity(id);
        let stream = stream(local, address, Some(address), capacity, latency);
        self.net.open[id].object = Object::Stream(stream);
        self.at(self.now + latency, Event::Net(NetEvent::Syn { client: id, first: self.now }));
        Ok(())
    }

    fn capacity(&mut self, id: Id) -> usize {
        let most = self.net.open[id].options.receive_buffer.unwrap_or(1 << 18);
        (most >> self.rng.u32(..5)).max(2048)
    }

    /// Returns the result of a connect that has begun, or `None` if it is not known yet.
    pub(super) fn is_connected(&mut self, id: Id) -> Option<Result<(), Errno>> {
        let stream = self.net.stream(id)?;
        match std::mem::take(&mut stream.error) {
            0 if stream.is_connected => Some(Ok(())),
            0 => None,
            error => Some(Err(error)),
        }
    }

    fn syn(&mut self, client: Id, first: u64) {
        let Some(stream) = self.net.stream(client) else { return };
        let (address, local, latency) = (stream.remote, stream.local, stream.latency);
        let wildcard: SocketAddr = (Ipv4Addr::UNSPECIFIED, address.port()).into();
        let behind = self.net.doors.get(&address).copied().unwrap_or(address);
        let service = if self.net.listeners.contains_key(&behind) { behind } else { wildcard };
        let fault = self.net.fault_of(Some(address));
        let listener = self.net.listeners.get(&service).copied();
        match (fault, listener) {
            (Fault::Silent, _) => {
                let waited = self.now - first;
                if waited >= CONNECT_LIMIT {
                    self.fail(client, libc::ETIMEDOUT);
                    return;
                }
                let pause = waited.clamp(SECOND, 32 * SECOND);
                self.at(self.now + pause, Event::Net(NetEvent::Syn { client, first }));
            }
            (Fault::Refused, _) | (_, None) => {
                self.at(self.now + latency, Event::Net(NetEvent::Refused { client }));
            }
            (Fault::None | Fault::Slow(_), Some(listener)) => {
                let capacity = self.capacity(listener);
                let mut server = self::stream(address, local, Some(address), capacity, latency);
                server.peer = Some(client);
                server.is_connected = true;
                let owner = self.net.open[listener].owner;
                self.net.open.push(Open::new(owner, Object::Stream(server)));
                let server = self.net.open.len() - 1;
                if let Some(stream) = self.net.stream(client) {
                    stream.peer = Some(server);
                }
                if let Object::Listener { backlog, .. } = &mut self.net.open[listener].object {
                    backlog.push_back(server);
                }
                self.changed(listener);
                self.trace.add(self.now, format_args!("connect {local} -> {address}"));
                self.at(self.now + latency, Event::Net(NetEvent::Connected { client }));
            }
        }
    }

    /// Ends a connection with an error.
    fn fail(&mut self, id: Id, error: Errno) {
        if let Some(stream) = self.net.stream(id) {
            stream.is_reset = true;
            stream.error = error;
            stream.held.clear();
            self.changed(id);
        }
    }

    /// Sends a segment from an end to its peer.
    fn send_segment(&mut self, from: Way, segment: NetEvent) {
        let Some(to) = from.peer else { return };
        let slow = match self.net.fault_of(from.service) {
            Fault::Slow(time) => u64::from(time) * MILLISECOND,
            _ => 0,
        };
        let jitter = if from.service.is_some() { self.short_time(from.latency) } else { 0 };
        let arrival = self.now + from.latency + slow + jitter;
        let Some(peer) = self.net.stream(to) else { return };
        let arrival = arrival.max(peer.newest);
        peer.newest = arrival;
        if from.service.is_none() {
            // Between the ends of a pair, nothing takes time.
            self.happen(segment);
        } else {
            self.at(arrival, Event::Net(segment));
        }
    }

    /// Writes to a connection. Returns the number of accepted bytes; 0: there is no room.
    pub(super) fn send(&mut self, id: Id, bytes: &[u8]) -> Result<usize, Errno> {
        let room = self.net.room(id);
        let Some(stream) = self.net.stream(id) else { return Err(libc::ENOTCONN) };
        if stream.error != 0 {
            return Err(std::mem::take(&mut stream.error));
        }
        if stream.is_reset || stream.is_shut {
            return Err(libc::EPIPE);
        }
        if !stream.is_connected {
            return Err(libc::ENOTCONN);
        }
        let taken = bytes.len().min(room);
        if taken < bytes.len() {
            stream.wants_room = true;
        }
        let way = stream.way();
        let Some(to) = way.peer else { return Err(libc::ENOTCONN) };
        stream.in_flight += taken;
        let mut rest = &bytes[..taken];
        while !rest.is_empty() {
            let most = if self.rng.u32(..4) == 0 { 1 + rest.len() / 2 } else { rest.len() };
            let (part, others) = rest.split_at(most.min(rest.len()));
            self.send_segment(way, NetEvent::Data { to, bytes: part.to_vec() });
            rest = others;
        }
        Ok(taken)
    }

    /// Reads from a connection. `Ok(None)`: there is nothing yet. `Ok(Some(0))`: the end.
    pub(super) fn receive(
        &mut self,
        id: Id,
        buffer: &mut [u8],
        is_peek: bool,
    ) -> Result<Option<usize>, Errno> {
        let Some(stream) = self.net.stream(id) else { return Err(libc::ENOTCONN) };
        if buffer.is_empty() {
            return Ok(Some(0));
        }
        if stream.received.is_empty() {
            return match std::mem::take(&mut stream.error) {
                0 if stream.has_fin || stream.is_reset => Ok(Some(0)),
                0 if !stream.is_connected => Err(libc::ENOTCONN),
                0 => Ok(None),
                error => Err(error),
            };
        }
        let count = buffer.len().min(stream.received.len());
        for (to, from) in buffer.iter_mut().zip(&stream.received) {
            *to = *from;
        }
        if is_peek {
            return Ok(Some(count));
        }
        stream.received.drain(..count);
        let (peer, latency, is_pair) = (stream.peer, stream.latency, stream.service.is_none());
        if let Some(peer) = peer
            && let Some(other) = self.net.stream(peer)
            && std::mem::take(&mut other.wants_room)
        {
            let room = NetEvent::Room { to: peer };
            if is_pair { self.happen(room) } else { self.at(self.now + latency, Event::Net(room)) }
        }
        Ok(Some(count))
    }

    /// Shuts down one or both directions of a connection, or a listener.
    pub(super) fn shut(&mut self, id: Id, how: i32) -> Result<(), Errno> {
        match &mut self.net.open[id].object {
            Object::Listener { is_shut, address, .. } => {
                *is_shut = true;
                let address = *address;
                self.net.listeners.remove(&address);
            }
            Object::Stream(stream) if stream.is_connected && !stream.is_reset => {
                if how != libc::SHUT_WR {
                    stream.has_fin = true;
                }
                if how != libc::SHUT_RD && !std::mem::replace(&mut stream.is_shut, true) {
                    let way = stream.way();
                    let Some(to) = way.peer else { return Ok(()) };
                    self.send_segment(way, NetEvent::Fin { to });
                }
            }
            _ => return Err(libc::ENOTCONN),
        }
        self.changed(id);
        Ok(())
    }

    pub(super) fn happen(&mut self, event: NetEvent) {
        match event {
            NetEvent::Syn { client, first } => self.syn(client, first),
            NetEvent::Connected { client } => {
                if let Some(stream) = self.net.stream(client) {
                    stream.is_connected = true;
                    self.changed(client);
                }
            }
            NetEvent::Refused { client } => self.fail(client, libc::ECONNREFUSED),
            NetEvent::Data { to, .. } | NetEvent::Fin { to } | NetEvent::Reset { to } => {
                self.arrive(to, event);
            }
            NetEvent::Room { to } => self.changed(to),
            NetEvent::GiveUp { from, since } => {
                let is_old = |stream: &mut Stream| stream.unacknowledged == Some(since);
                if self.net.stream(from).is_some_and(is_old) {
                    self.fail(from, libc::ETIMEDOUT);
                }
            }
            NetEvent::Resume { to } => {
                let held = self.net.stream(to).map(|stream| std::mem::take(&mut stream.held));
                let peer = self.net.stream(to).and_then(|stream| stream.peer);
                if let Some(sender) = peer.and_then(|peer| self.net.stream(peer)) {
                    sender.unacknowledged = None;
                }
                for segment in held.into_iter().flatten() {
                    self.arrive(to, segment);
                }
            }
            NetEvent::Probed { id, since } => {
                let service = self.net.stream(id).and_then(|stream| stream.service);
                let fault = service.and_then(|service| self.net.faults.get(&service));
                if fault == Some(&(Fault::Silent, since)) {
                    self.fail(id, libc::ETIMEDOUT);
                }
            }
        }
    }

    /// Lets a segment arrive at an end, unless packets get lost.
    fn arrive(&mut self, to: Id, segment: NetEvent) {
        let Some(stream) = self.net.stream(to) else {
            // The end is closed: it answers data with a reset.
            if let NetEvent::Data { .. } = segment {
                self.refuse_data(to);
            }
            return;
        };
        let (service, peer, is_held) = (stream.service, stream.peer, !stream.held.is_empty());
        if self.net.fault_of(service) == Fault::Silent || is_held {
            self.hold(to, peer, segment);
            return;
        }
        let Some(stream) = self.net.stream(to) else { return };
        match segment {
            NetEvent::Data { bytes, .. } => {
                if !stream.is_reset {
                    stream.received.extend(&bytes);
                }
                let (local, count) = (stream.local, bytes.len());
                if let Some(sender) = peer.and_then(|peer| self.net.stream(peer)) {
                    sender.in_flight -= count.min(sender.in_flight);
                }
                if service.is_some() {
                    self.trace.add(self.now, format_args!("{count} bytes -> {local}"));
                }
            }
            NetEvent::Fin { .. } => stream.has_fin = true,
            _ => {
                stream.is_reset = true;
                stream.error = libc::ECONNRESET;
            }
        }
        self.changed(to);
    }

    /// Resets the sender of data for an end that is closed. What this end has sent before arrives
    /// first, such as an answer.
    fn refuse_data(&mut self, closed: Id) {
        let of_closed = |open: &Open| match &open.object {
            Object::Stream(stream) => stream.peer == Some(closed),
            _ => false,
        };
        if let Some(sender) = self.net.open.iter().rposition(of_closed) {
            let newest = self.net.stream(sender).map_or(0, |stream| stream.newest);
            let arrival = newest.max(self.now + MICROSECOND);
            self.at(arrival, Event::Net(NetEvent::Reset { to: sender }));
        }
    }

    /// Holds a segment back while packets get lost. The sender tries again until it gives up.
    fn hold(&mut self, to: Id, from: Option<Id>, segment: NetEvent) {
        if let Some(stream) = self.net.stream(to) {
            stream.held.push_back(segment);
        }
        let Some(from) = from else { return };
        let now = self.now;
        let limit = self.net.open[from].options.user_timeout.unwrap_or(SEND_LIMIT);
        if let Some(stream) = self.net.stream(from)
            && stream.unacknowledged.is_none()
        {
            stream.unacknowledged = Some(now);
            self.at(now + limit, Event::Net(NetEvent::GiveUp { from, since: now }));
        }
    }

    /// Makes connections to the address `door` reach this listener.
    pub(super) fn open_door(&mut self, door: SocketAddr, listener: SocketAddr) {
        self.net.doors.insert(door, listener);
    }

    /// Sets the fault on the way to a listener.
    pub(super) fn set_fault(&mut self, service: SocketAddr, fault: Fault) {
        let before = self.net.faults.insert(service, (fault, self.now));
        self.trace.add(self.now, format_args!("fault {service} {fault:?}"));
        let before = before.map_or(Fault::None, |(fault, _)| fault);
        let is_of = |open: &Open| match &open.object {
            Object::Stream(stream) => stream.service == Some(service),
            _ => false,
        };
        let ends: Vec<Id> =
            (0..self.net.open.len()).filter(|id| is_of(&self.net.open[*id])).collect();
        for id in ends {
            let options = self.net.open[id].options;
            if fault == Fault::Silent && options.keepalive {
                let idle = options.keepalive_idle.unwrap_or(7200 * SECOND);
                let probes = 9 * options.keepalive_interval.unwrap_or(75 * SECOND);
                let limit = idle + options.user_timeout.unwrap_or(probes).min(probes);
                let probed = NetEvent::Probed { id, since: self.now };
                self.at(self.now + limit, Event::Net(probed));
            }
            if before == Fault::Silent && fault != Fault::Silent {
                let after = self.short_time(2 * SECOND);
                self.at(self.now + after, Event::Net(NetEvent::Resume { to: id }));
            }
        }
    }

    /// Resets all connections to a listener.
    pub(super) fn reset_all(&mut self, service: SocketAddr) {
        self.trace.add(self.now, format_args!("reset {service}"));
        for id in 0..self.net.open.len() {
            let stream = self.net.stream(id);
            if stream.is_some_and(|stream| stream.service == Some(service) && stream.is_connected) {
                self.fail(id, libc::ECONNRESET);
            }
        }
    }

    pub(super) fn add_to_counter(&mut self, id: Id, number: u64) {
        if let Object::Counter(count) = &mut self.net.open[id].object {
            *count = count.saturating_add(number);
        }
        self.changed(id);
    }

    pub(super) fn take_counter(&mut self, id: Id) -> Option<u64> {
        match &mut self.net.open[id].object {
            Object::Counter(count) if *count > 0 => Some(std::mem::take(count)),
            _ => None,
        }
    }

    /// epoll_ctl(2).
    pub(super) fn control(
        &mut self,
        epoll: Id,
        operation: i32,
        descriptor: i32,
        wanted: Option<(u32, u64)>,
    ) -> Result<(), Errno> {
        let id = self.net.id(descriptor).ok_or(libc::EPERM)?;
        let Object::Epoll(watches) = &mut self.net.open[epoll].object else {
            return Err(libc::EINVAL);
        };
        let at = watches.iter().position(|watch| watch.descriptor == descriptor && watch.id == id);
        match (operation, at, wanted) {
            (libc::EPOLL_CTL_ADD, None, Some((interest, data))) => {
                watches.push(Watch { descriptor, id, interest, data, has_news: true });
                self.net.open[id].watched.push((epoll, descriptor));
            }
            (libc::EPOLL_CTL_MOD, Some(at), Some((interest, data))) => {
                watches[at] = Watch { descriptor, id, interest, data, has_news: true };
            }
            (libc::EPOLL_CTL_DEL, Some(at), _) => {
                watches.remove(at);
                self.net.open[id].watched.retain(|watch| *watch != (epoll, descriptor));
                return Ok(());
            }
            (libc::EPOLL_CTL_ADD, Some(_), _) => return Err(libc::EEXIST),
            _ => return Err(libc::ENOENT),
        }
        for task in std::mem::take(&mut self.net.open[epoll].waiting) {
            self.wake(task);
        }
        Ok(())
    }

    /// Returns the report of epoll_wait(2): the events and the data of at most `most` descriptors.
    pub(super) fn report(&mut self, epoll: Id, most: usize) -> Vec<(u32, u64)> {
        let always = (libc::EPOLLERR | libc::EPOLLHUP).unsigned_abs();
        let is_edge = |interest: u32| interest & libc::EPOLLET.unsigned_abs() != 0;
        let Object::Epoll(watches) = &self.net.open[epoll].object else { return Vec::new() };
        let news = |watch: &Watch| (watch.descriptor, watch.id, watch.interest, watch.data);
        let mut candidates: Vec<_> =
            watches.iter().filter(|watch| watch.has_news).map(news).collect();
        self.rng.shuffle(&mut candidates);
        let mut reported = Vec::new();
        for (descriptor, id, interest, data) in candidates {
            if reported.len() == most {
                break;
            }
            let ready = self.net.readiness(id) & (interest | always);
            if ready != 0 {
                reported.push((ready, data));
            }
            if let Object::Epoll(watches) = &mut self.net.open[epoll].object
                && (ready == 0 || is_edge(interest))
                && let Some(watch) = watches.iter_mut().find(|it| it.descriptor == descriptor)
            {
                watch.has_news = false;
            }
        }
        reported
    }
}

fn stream(
    local: SocketAddr,
    remote: SocketAddr,
    service: Option<SocketAddr>,
    capacity: usize,
    latency: u64,
) -> Stream {
    Stream {
        local,
        remote,
        service,
        peer: None,
        is_connected: false,
        received: VecDeque::new(),
        has_fin: false,
        is_reset: false,
        is_shut: false,
        error: 0,
        in_flight: 0,
        newest: 0,
        held: VecDeque::new(),
        unacknowledged: None,
        wants_room: false,
        capacity,
        latency,
    }
}
