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
/// socket, the socket is bound.
pub(super) struct StagedListener {
    config: config::Listener,
    slot: Option<usize>,
    settings: Read,
    /// `None`: the listener has a socket already, or cannot open without its settings.
    socket: Option<(TcpListener, SocketAddr)>,
}

/// The listeners of the relay, and the tasks that accept their connections. [`super::Parts`] owns
/// them.
pub(crate) struct Listeners {
    gate: Arc<Gate>,
    telemetry: Arc<Telemetry>,
    failures: Failures,
    /// The listeners of the config in use.
    slots: Vec<Slot>,
    tasks: TaskTracker,
}

/// A listener of the config in use. `open` is `None` while it has no socket, because its
/// certificate does not exist yet.
struct Slot {
    config: config::Listener,
    open: Option<Open>,
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

/// Binds a socket for each planned listener that needs a new one. `leaving` has the addresses of
/// the listeners that the same reload closes.
///
/// # Errors
///
/// An address cannot be bound. If it overlaps with one of `leaving` on the same port, such as
/// `0.0.0.0:3000` with `127.0.0.1:3000`, only a restart can move the listener.
pub(crate) fn bind(
    planned: Vec<Planned>,
    settings: Vec<Read>,
    leaving: &[SocketAddr],
) -> Result<Vec<StagedListener>, Refused> {
    let bind = |(index, (planned, settings)): (usize, (Planned, Read))| {
        let Planned { config, slot, current } = planned;
        let is_kept = settings.is_none() || current.is_some();
        let socket = match is_kept {
            true => None,
            false => Some(bind_new(index, config.address, leaving)?),
        };
        Ok(StagedListener { config, slot, settings, socket })
    };
    planned.into_iter().zip(settings).enumerate().map(bind).collect()
}

/// Returns the message about the address of the config `key` that can't be bound, with what to do.
pub(crate) fn cannot_listen(key: &str, address: SocketAddr, error: &io::Error) -> String {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
    let known = [
        (AddrInUse, "a free port, or stop the program that has this one (`ss -ltnp` names it)"),
        (PermissionDenied, "a port from 1024 on, or give the relay CAP_NET_BIND_SERVICE"),
        (AddrNotAvailable, "an address that this machine has (`ip addr` lists them), or to [::]"),
    ];
    let todo = known.iter().find(|(kind, _)| *kind == error.kind());
    let todo = todo.map_or("another address", |(_, todo)| todo);
    format!("cannot listen on {address}: {error}: set {key} to {todo}")
}

fn bind_new(
    index: usize,
    address: SocketAddr,
    leaving: &[SocketAddr],
) -> Result<(TcpListener, SocketAddr), Refused> {
    let bound = net::bind(address).and_then(|socket| {
        let address = socket.local_addr()?;
        Ok((socket, address))
    });
    bound.map_err(|error| {
        let is_in_use = error.kind() == io::ErrorKind::AddrInUse;
        match leaving.iter().find(|old| is_in_use && overlap(**old, address)) {
            Some(old) => Refused::Moves(format!(
                "cannot listen on {address}: {error}: a reload opens new addresses before it closes old ones, here {old}: \
                 restart the relay if no other program has the port, or choose another one"
            )),
            None => {
                let key = format!("listener[{index}].address");
                Refused::Address(cannot_listen(&key, address, &error))
            }
        }
    })
}

/// Returns `true` if two sockets that listen cannot have these addresses at the same time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && (is_any || one.ip().to_canonical() == other.ip().to_canonical())
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

    /// Returns the configured addresses of the open listeners that the plan removes.
    pub(crate) fn leaving(&self, planned: &[Planned]) -> Vec<SocketAddr> {
        let kept = |index: usize| planned.iter().any(|planned| planned.slot == Some(index));
        let slots = self.slots.iter().enumerate();
        let leaving = slots.filter(|(index, slot)| slot.open.is_some() && !kept(*index));
        leaving.map(|(_, slot)| slot.config.address).collect()
    }

    /// Puts a plan in force: closes the listeners that are not in the plan, and opens or changes
    /// all others.
    pub(crate) async fn commit(&mut self, staged: Vec<StagedListener>) {
        let mut before: Vec<_> = std::mem::take(&mut self.slots).into_iter().map(Some).collect();
        let mut slots = Vec::new();
        for StagedListener { config, slot, settings, socket } in staged {
            let kept = slot.and_then(|index| before.get_mut(index)?.take());
            slots.push((config, settings, socket, kept.and_then(|slot| slot.open)));
        }
        for Slot { config, open } in before.into_iter().flatten() {
            let Some(Open { listener, accepting }) = open else { continue };
            tracing::info!(
                listener = config.label,
                "listener closed, because the config has removed or changed it"
            );
            listener.close();
            drop(listener);
            // The accept loop ends now and closes its socket. If it has panicked, the failure was
            // reported already.
            accepting.await.ok();
        }
        // The metrics of all listeners exist before one opens, even of those that open later.
        slots.iter().for_each(|(config, ..)| drop(self.telemetry.listener(&config.label)));
        for (config, settings, socket, open) in slots {
            let open = self.open(&config, settings, socket, open);
            self.slots.push(Slot { config, open });
        }
    }

    /// Opens a listener on its socket, or gives new settings to an open listener. Without new
    /// settings, changes nothing. Returns the open listener; `None` if the listener is not open
    /// yet.
    fn open(
        &self,
        config: &config::Listener,
        settings: Read,
        socket: Option<(TcpListener, SocketAddr)>,
        open: Option<Open>,
    ) -> Option<Open> {
        let Some(settings) = settings else {
            if open.is_none() {
                tracing::info!(
                    listener = config.label,
                    "listener not open yet: it waits for its certificate and key files"
                );
            }
            return open;
        };
        let Some(Open { listener, accepting }) = open else {
            let (socket, address) = socket?;
            let telemetry = Arc::clone(&self.telemetry);
            let listener = Listener::new(socket, config, Arc::new(settings), &self.gate, telemetry);
            tracing::info!(listener = config.label, %address, "listening");
            return Some(self.accept(listener));
        };
        if settings.is_compatible(&listener.settings()) {
            listener.apply(settings);
            return Some(Open { listener, accepting });
        }
        tracing::info!(
            listener = config.label,
            "the TLS settings of a listener have changed: each open connection is closed after its \
             current request"
        );
        listener.revoke();
        Some(self.accept(listener.successor(settings, &self.gate)))
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
