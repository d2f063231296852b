//! The listeners of a running relay, by their addresses.
//!
//! A listener that a reload keeps also keeps its socket and its connections; only the settings for
//! its requests are replaced. If the reload changes whether the listener uses TLS, or the CA of its
//! client certificates, only the socket stays, and each connection ends after its current request.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::error::Refused;
use crate::admin;
use crate::listener::{Gate, Listener, Settings};
use base::mutant;
use client::net;
use process::Failures;
use telemetry::Telemetry;

/// The settings that were read for a listener; `None` if its certificate, its private key or the CA
/// of its clients does not exist yet. A listener without settings cannot open.
pub(crate) type Read = Option<Settings>;

/// The plan for one listener of a config that is about to be applied.
pub(crate) struct Planned {
    config: config::Listener,
    /// The index, in the list of the present listeners, of the listener that gets the new config.
    /// `None` if the relay adds this listener.
    slot: Option<usize>,
    /// The settings that the listener uses now; `None` if the listener is not open.
    current: Option<Arc<Settings>>,
}

impl Planned {
    /// Reads the files that the listener's config names. Blocks the thread.
    pub(crate) fn read(&self) -> Result<Read, Refused> {
        let label = &self.config.label;
        Settings::read(&self.config, self.current.as_deref())
            .map_err(|fault| Refused::File(format!("listener {label}: {fault}")))
    }
}

/// A planned listener that is ready to be put in force. Its files are read. If it needs a new
/// socket and the port is free, the socket is bound.
pub(super) struct StagedListener {
    config: config::Listener,
    slot: Option<usize>,
    settings: Read,
    socket: Socket,
}

/// The socket of a listener that is about to be put in force.
enum Socket {
    /// Nothing was bound: the listener has a socket already, or cannot open without its settings.
    Kept,
    /// A new socket, which is bound to the listener's address.
    New(TcpListener),
    /// The port is still in use, probably by a listener that this reload closes. The socket is
    /// bound after that.
    Awaited,
}

/// The listeners of the relay, and the tasks that accept their connections. [`super::Parts`] owns
/// them.
pub(crate) struct Listeners {
    gate: Arc<Gate>,
    telemetry: Arc<Telemetry>,
    failures: Failures,
    /// The listeners of the config in use. After a failed reload, the list also has the old
    /// listeners that were opened again.
    slots: Vec<Slot>,
    tasks: TaskTracker,
}

/// A listener of the config in use, or one that stands in. `open` is `None` while it has no socket,
/// for example because its certificate does not exist yet.
struct Slot {
    config: config::Listener,
    open: Option<Open>,
    /// `true`: the listener is not in the config any more. It was opened again because a listener
    /// of the config can't have its port.
    stands_in: bool,
}

/// A listener that has a socket, and the task that accepts its connections.
struct Open {
    listener: Listener,
    accepting: JoinHandle<()>,
}

/// Makes the plan for the listeners of the first config, which are all new.
pub(super) fn plan_start(configs: &[config::Listener]) -> Vec<Planned> {
    plan(&[], configs)
}

fn plan(slots: &[Slot], configs: &[config::Listener]) -> Vec<Planned> {
    let mut left: Vec<_> = slots.iter().enumerate().collect();
    let plan = |config: &config::Listener| {
        let at = left.iter().position(|(_, slot)| slot.config.label == config.label);
        let found = at.map(|at| left.remove(at));
        let open = found.and_then(|(_, slot)| slot.open.as_ref());
        Planned {
            config: config.clone(),
            slot: found.map(|(index, _)| index),
            current: open.map(|open| open.listener.settings()),
        }
    };
    configs.iter().map(plan).collect()
}

/// Binds a socket for each planned listener that needs a new one. `taken` has the addresses of the
/// listeners that the same reload closes. If an address is in use, and `taken` has an address with
/// the same port, the socket is bound later. `Err` if any other address cannot be bound.
pub(crate) fn bind(
    planned: Vec<Planned>,
    settings: Vec<Read>,
    taken: &[SocketAddr],
) -> Result<Vec<StagedListener>, Refused> {
    let bind = |(planned, settings): (Planned, Read)| {
        let Planned { config, slot, current } = planned;
        let socket = if settings.is_none() || current.is_some() {
            Socket::Kept
        } else {
            match net::bind(config.address) {
                Ok(socket) => Socket::New(socket),
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && taken.iter().any(|it| it.port() == config.address.port()) =>
                {
                    Socket::Awaited
                }
                Err(error) => return Err(Refused::Address(cannot_listen(&config, &error))),
            }
        };
        Ok(StagedListener { config, slot, settings, socket })
    };
    planned.into_iter().zip(settings).map(bind).collect()
}

fn cannot_listen(config: &config::Listener, error: &io::Error) -> String {
    format!("cannot listen on {}: {error}", config.address)
}

impl Listeners {
    pub(crate) fn new(gate: Arc<Gate>, telemetry: Arc<Telemetry>, failures: Failures) -> Self {
        Self { gate, telemetry, failures, slots: Vec::new(), tasks: TaskTracker::new() }
    }

    /// Compares a config with the listeners in use. Returns the plan for each listener of the
    /// config, and changes nothing.
    pub(crate) fn plan(&self, configs: &[config::Listener]) -> Vec<Planned> {
        plan(&self.slots, configs)
    }

    /// Returns the configured addresses of the listeners that the plan removes, open or not.
    pub(crate) fn leaving(&self, planned: &[Planned]) -> Vec<SocketAddr> {
        let kept = |index: usize| planned.iter().any(|planned| planned.slot == Some(index));
        let leaving = self.slots.iter().enumerate().filter(|(index, _)| !kept(*index));
        leaving.map(|(_, slot)| slot.config.address).collect()
    }

    /// Puts a plan in force: closes the listeners that are not in the plan, and opens or changes
    /// all others.
    ///
    /// # Errors
    ///
    /// An address of a new listener cannot be bound, and the operator must free it. The rest of the
    /// plan is in force. If an old listener with the same port was closed, it is opened again if
    /// possible, and the error text says whether it is open.
    pub(crate) async fn commit(&mut self, staged: Vec<StagedListener>) -> Result<(), String> {
        let mut before: Vec<_> = std::mem::take(&mut self.slots).into_iter().map(Some).collect();
        let mut slots = Vec::new();
        for StagedListener { config, slot, settings, socket } in staged {
            let kept = slot.and_then(|index| before.get_mut(index)?.take());
            slots.push((config, settings, socket, kept.and_then(|slot| slot.open)));
        }
        let mut gone = Vec::new();
        for Slot { config, open, .. } in before.into_iter().flatten() {
            let Some(Open { listener, accepting }) = open else { continue };
            tracing::info!(
                listener = config.label,
                "listener closed, because the config has removed or changed it"
            );
            listener.close();
            gone.push((config, listener.settings()));
            drop(listener);
            // The accept loop ends now and closes its socket. If it has panicked, the failure was
            // reported already.
            accepting.await.ok();
        }
        // The metrics of all listeners exist before one opens, even of those that open later.
        slots.iter().for_each(|(config, ..)| drop(self.telemetry.listener(&config.label)));
        let mut errors = Vec::new();
        for (config, settings, socket, open) in slots {
            let opened = self.open(&config, settings, socket, open);
            let open = opened.unwrap_or_else(|error| {
                let mut error = cannot_listen(&config, &error);
                let is_its = |(gone, _): &&(config::Listener, _)| {
                    gone.address.port() == config.address.port()
                };
                // A closed listener is opened again only once. If two new listeners wanted its
                // port, the second one finds no closed listener here.
                if let Some(index) = gone.iter().position(|it| is_its(&it)) {
                    let (before, settings) = gone.swap_remove(index);
                    error.push_str(&self.reopen(&before, settings));
                }
                errors.push(error);
                None
            });
            self.slots.push(Slot { config, open, stands_in: false });
        }
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }

    /// Opens an old listener again. The reload had closed it for a new one, whose address could not
    /// be bound. Senders can connect to the old address until the next reload. Returns the last
    /// part of the error message, which says whether the old address is open.
    fn reopen(&mut self, config: &config::Listener, settings: Arc<Settings>) -> String {
        let socket = mutant!(
            "reload-listens-nowhere",
            net::bind(config.address),
            Err(io::ErrorKind::AddrInUse.into())
        );
        let listener = socket.and_then(|socket| self.listener(config, settings, socket));
        let opened = listener.map(|listener| self.accept(listener));
        match opened {
            Ok(open) => {
                self.slots.push(Slot { config: config.clone(), open: Some(open), stands_in: true });
                format!(", still listening on {}", config.address)
            }
            Err(error) => format!(", and no longer on {}: {error}", config.address),
        }
    }

    /// Returns `true` if another attempt of a reload that waits for an address would fail. An old
    /// listener was then opened again because a new one could not get the port, and another process
    /// still has this port. The attempt would also close the old listener for a moment.
    pub(super) fn would_fail_again(&self) -> bool {
        let own = |port: u16| {
            let open = self.slots.iter().filter(|slot| slot.open.is_some());
            open.filter(|slot| slot.config.address.port() == port).count()
        };
        let held = self.slots.iter().filter(|slot| slot.stands_in);
        held.map(|slot| slot.config.address.port())
            .any(|port| net::sockets_listening_on(port).is_some_and(|all| all > own(port)))
    }

    /// Opens a listener on its socket, or gives new settings to an open listener. Without new
    /// settings, changes nothing. Returns the open listener; `None` if the listener is not open
    /// yet. `Err` if the listener's address cannot be bound.
    fn open(
        &self,
        config: &config::Listener,
        settings: Read,
        socket: Socket,
        open: Option<Open>,
    ) -> io::Result<Option<Open>> {
        let Some(settings) = settings else {
            if open.is_none() {
                tracing::info!(
                    listener = config.label,
                    "listener not open yet: it waits for its certificate and key files"
                );
            }
            return Ok(open);
        };
        let listener = match (socket, open) {
            (_, Some(Open { listener, accepting })) => {
                if settings.is_compatible(&listener.settings()) {
                    listener.apply(settings);
                    return Ok(Some(Open { listener, accepting }));
                }
                tracing::info!(
                    listener = config.label,
                    "the TLS settings of a listener have changed: each open connection is closed \
                     after its current request"
                );
                listener.revoke();
                listener.successor(settings, &self.gate)
            }
            (Socket::New(socket), None) => self.listener(config, Arc::new(settings), socket)?,
            (Socket::Awaited | Socket::Kept, None) => {
                self.listener(config, Arc::new(settings), net::bind(config.address)?)?
            }
        };
        Ok(Some(self.accept(listener)))
    }

    fn accept(&self, listener: Listener) -> Open {
        let accepting = listener.clone().serve(Arc::clone(&self.gate));
        self.own(listener, accepting)
    }

    /// Runs `accepting`, the accept loop of `listener`, as a task. If it panics, the relay ends.
    fn own(
        &self,
        listener: Listener,
        accepting: impl Future<Output = ()> + Send + 'static,
    ) -> Open {
        let name = format!("the accept loop of listener {}", listener.label());
        let accepting = self.tasks.spawn(self.failures.watched(name, accepting));
        Open { listener, accepting }
    }

    fn listener(
        &self,
        config: &config::Listener,
        settings: Arc<Settings>,
        socket: TcpListener,
    ) -> io::Result<Listener> {
        let address = socket.local_addr()?;
        let telemetry = Arc::clone(&self.telemetry);
        let listener = Listener::new(socket, config, settings, &self.gate, telemetry);
        tracing::info!(listener = config.label, %address, "listening");
        Ok(listener)
    }

    /// Runs `accepting` as the task of the first listener. The earlier task is forgotten, but not
    /// ended. Only tests call this function.
    #[cfg(test)]
    pub(super) fn replace_accept_loop(
        &mut self,
        accepting: impl Future<Output = ()> + Send + 'static,
    ) {
        let open = self.slots[0].open.take().expect("it listens");
        self.slots[0].open = Some(self.own(open.listener, accepting));
    }

    pub(crate) fn show(&self) -> Vec<admin::Listener> {
        let show = |slot: &Slot| admin::Listener {
            label: slot.config.label.clone(),
            tls: slot.config.tls.is_some(),
            address: slot.open.as_ref().and_then(|open| open.listener.address().ok()),
        };
        self.slots.iter().map(show).collect()
    }

    /// Removes all listeners. Call this after `Gate::close`, which ends the accept loops.
    pub(crate) fn close(&mut self) {
        self.slots.clear();
    }

    /// Waits until all accept loops have ended. Call this after `Gate::close`.
    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
