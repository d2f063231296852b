//! The set of an output's addresses: the table behind its lock, lookups of names, and the changes
//! that connections wait for.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::address::Endpoint;
use super::address::ResolvedAddress;
use super::table::AddressTable;
use crate::config::HostPort;
use crate::config::Strategy;
use crate::config::Timeouts;
use crate::delivery::failure::Failure;
use crate::net;
use crate::telemetry::AttemptError;

/// The time after the resolver's answer for which the name is not looked up again: the lanes of an
/// `http` output dial at the same moment.
const FRESH: Duration = Duration::from_secs(1);

/// The most addresses of one name that are used. A consumer with more addresses has a load
/// balancer.
const ADDRESSES_MAX: usize = 64;

/// The function that asks the resolver. It gives the permit back when the resolver has answered,
/// even if nobody waits for the answer any more.
pub(super) type LookUp = dyn Fn(HostPort, OwnedSemaphorePermit) -> Answer + Send + Sync;
type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// The addresses of one output. Shared by the output's connector, its connections, its watch and
/// `/status`. It has no task of its own.
///
/// A delivery or a connection goes through these steps:
///
/// 1. [`Endpoints::pick`] decides whose turn it is and gives out an [`Attempt`](super::Attempt).
///    With `failover` the first address in order that works has the turn, with `round_robin` the
///    next one that works. An address that is back after a failure gets one delivery at a time, as
///    a trial, until one succeeds.
/// 2. [`Endpoints::dial`] looks up the name and connects to the address, or to another usable
///    address of the same name.
/// 3. The attempt says how it went. A failure opens the address's circuit: other deliveries pass
///    the address over, and the [`Watch`](super::Watch) probes it. A success closes the circuit.
/// 4. A connection that lives long asks [`Endpoints::is_over`] whether to end in order, each time
///    that [`Endpoints::changed`] wakes it.
///
/// If no address works, every delivery still gets an address: each is tried once in a round, before
/// any is tried again. The delivery loop pauses between rounds ([`Failure::elsewhere`] is `false`
/// for the last of a round).
///
/// Invariants: an id belongs to one address for ever, so an attempt that outlives its address
/// changes nothing. A configured endpoint always has at least one address, which may be without a
/// socket address. At most one lookup of each name runs. The lock is never held across an `await`,
/// and [`Endpoints::wake`] is called after the lock is released.
pub(crate) struct Endpoints {
    pub(super) output: String,
    pub(super) strategy: Strategy,
    pub(super) timeouts: Timeouts,
    pub(super) look_up: Box<LookUp>,
    table: Mutex<AddressTable>,
    /// A number that grows with every change that connections may have to react to.
    version: AtomicU64,
    changed: Notify,
}

/// An address as `/status` shows it.
#[derive(Debug, Clone)]
pub struct AddressState {
    /// The configured host and port, and the IP address that the host resolved to.
    pub address: String,
    /// `up`; `down`; `suspect` for an address that is silent while another one answers; or
    /// `back, on trial` after one of these.
    pub state: &'static str,
    /// `true` if the last delivery, or connection, that worked was at this address.
    pub used: bool,
}

/// Makes the failure of looking up a name.
fn unresolved(name: &HostPort, what: impl fmt::Display) -> Failure {
    Failure::new(AttemptError::Resolve, format!("cannot resolve {}: {what}", name.host))
}

impl Endpoints {
    /// Makes a set without addresses, which [`Endpoints::set`] fills.
    pub(crate) fn new(output: &str, strategy: Strategy, timeouts: &Timeouts) -> Self {
        Self {
            output: output.to_owned(),
            strategy,
            timeouts: timeouts.clone(),
            look_up: Box::new(|name, permit| Box::pin(net::resolve(name.host, name.port, permit))),
            table: Mutex::default(),
            version: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, AddressTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those who wait in [`Endpoints::changed`].
    pub(super) fn wake(&self) {
        self.version.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Replaces the endpoints, in the order of the config. An endpoint that is the same at the same
    /// place keeps all that is known about it.
    pub(crate) fn set(&self, endpoints: Vec<Endpoint>) {
        self.lock().set(endpoints);
        self.wake();
    }

    /// Returns the addresses that may be used, except for the one with this id. Those that are
    /// known to work come first; each group is in the order of turns.
    pub(crate) fn others(&self, id: usize) -> Vec<ResolvedAddress> {
        self.lock().others(id)
    }

    /// Returns every address of the set, in order.
    pub(super) fn addresses(&self) -> Vec<ResolvedAddress> {
        self.lock().resolved().map(|(address, _)| address).collect()
    }

    /// Notes that the address with this id has not answered for `waited` while another one works.
    /// The address is passed over until it answers.
    pub(crate) fn suspect(&self, id: usize, waited: Duration) {
        let Some((address, noted)) = self.lock().silent(id, waited, Instant::now()) else { return };
        if noted.tells {
            let (output, waited) = (&self.output, format!("{:.1} s", waited.as_secs_f64()));
            tracing::warn!(output, %address, waited, "address silent, passed over");
        }
        if noted.opened {
            self.wake();
        }
    }

    /// Looks up the name of an address, unless the host needs no lookup or was looked up a moment
    /// ago. If the lookup fails, the addresses known before stay. If the address has a socket
    /// address already, a lookup that another task has begun is not waited for.
    ///
    /// # Errors
    ///
    /// The resolver reported an error or no address, or did not answer within `timeouts.connect`.
    pub(super) async fn look_up(&self, address: &ResolvedAddress) -> Result<(), Failure> {
        let (name, known) = (&address.name, address.socket.is_some());
        let Some(lookups) = self.lookups(address) else { return Ok(()) };
        let asking = async {
            let permit = match known {
                true => lookups.try_acquire_owned().ok()?,
                false => lookups.acquire_owned().await.ok()?,
            };
            // Another lookup may have ended while this one waited for the permit.
            self.lookups(address)?;
            Some((self.look_up)(name.clone(), permit).await)
        };
        let answer = match tokio::time::timeout(self.timeouts.connect, asking).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(answer))) if !answer.is_empty() => answer,
            Ok(Some(Ok(_))) => return Err(unresolved(name, "it has no address")),
            Ok(Some(Err(error))) => return Err(unresolved(name, error)),
            Err(_) => return Err(unresolved(name, "no answer within the connect timeout")),
        };
        let answer = answer.get(..ADDRESSES_MAX).unwrap_or(&answer);
        let changed = self.lock().take_answer(address, answer, Instant::now());
        if changed {
            tracing::debug!(output = self.output, name = name.host, ?answer, "addresses changed");
            self.wake();
        }
        Ok(())
    }

    /// The permits for looking up an address's name; `None` if there is nothing to look up now.
    pub(super) fn lookups(&self, address: &ResolvedAddress) -> Option<Arc<Semaphore>> {
        self.lock().lookups(address, FRESH)
    }

    /// A number that grows whenever the result of [`Endpoints::is_over`] or [`Endpoints::is_gone`]
    /// may change.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Waits for a change that happens after this method was called, even if the future is polled
    /// later.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Returns whether an address has left the set: its name no longer resolves to it, or a reload
    /// has removed it.
    pub(crate) fn is_gone(&self, address: &ResolvedAddress) -> bool {
        self.lock().address(address).is_none()
    }

    /// Returns whether a connection that carries all events should be ended in order: its address
    /// has left the set, or, with `failover`, an address of an earlier endpoint is usable again.
    /// While the connection's own address has not yet shown that it works, only the former counts.
    pub(crate) fn is_over(&self, address: &ResolvedAddress) -> bool {
        self.lock().is_over(address, self.strategy)
    }

    /// When a connection that is made now should be ended in order, with some jitter; `None`
    /// without `timeouts.max_connection_age`.
    pub(crate) fn expiry(&self) -> Option<Instant> {
        let age = self.timeouts.max_connection_age?;
        Some(Instant::now() + net::jittered(age))
    }

    /// Returns the number of addresses in the set.
    pub(crate) fn count(&self) -> usize {
        self.lock().count()
    }

    /// Returns the state of each address, in order, for `/status`.
    pub(crate) fn states(&self) -> Vec<AddressState> {
        let table = self.lock();
        let states = table.resolved().map(|(address, entry)| AddressState {
            address: address.to_string(),
            state: entry.circuit.name(),
            used: table.used == Some(address.id),
        });
        states.collect()
    }

    /// Logs that an address is up, and for how long it was down.
    pub(super) fn tell_up(&self, address: &ResolvedAddress, since: Option<Instant>, now: Instant) {
        let after = since.map_or(Duration::ZERO, |since| now.duration_since(since));
        let after = format!("{:.1} s", after.as_secs_f64());
        tracing::info!(output = self.output, %address, after, "address up again");
    }
}
