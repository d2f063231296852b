//! The set of an output's addresses: the table of addresses behind a lock, lookups of host names,
//! and the signal by which connections learn of changes.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use std::{fmt, io};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::address::{Endpoint, ResolvedAddress};
use super::figures::FiguresShown;
use super::table::AddressTable;
use crate::failure::Failure;
use base::lock::lock;
use client::net;
use config::{HostPort, Strategy, Timeouts};
use telemetry::AttemptError;

/// After the resolver has answered, the same name is not looked up again for this time. Without
/// this limit, the parallel connections of an `http` output would all look the name up at the same
/// moment.
const FRESH: Duration = Duration::from_secs(1);

/// The maximum number of addresses of one host name that are used. Further addresses are ignored: a
/// consumer with more addresses should have a load balancer in front of it.
const ADDRESSES_MAX: usize = 64;

/// The type of the function that asks the resolver for the addresses of a host name. The caller
/// passes a permit, so that only one lookup of the name runs at a time. The function releases the
/// permit when the resolver has answered, even if nobody waits for the answer any more.
pub(super) type LookUp = dyn Fn(HostPort, OwnedSemaphorePermit) -> Answer + Send + Sync;
type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// The addresses of one output, each with its state. The output's connector, its connections, its
/// watch and `/status` share this value. It has no task of its own.
///
/// A delivery or a connection goes through these steps:
///
/// 1. [`Endpoints::pick`] decides which address has the turn, and returns an
///    [`Attempt`](super::Attempt). With `failover` the first address in order that works has the
///    turn, with `round_robin` the next one that works. An address that is back after a failure
///    gets one delivery at a time, as a trial, until one succeeds.
/// 2. [`Endpoints::dial`] looks up the name and connects to the address, or to another usable
///    address of the same name.
/// 3. The owner of the attempt reports the result. A failure opens the address's circuit: other
///    deliveries avoid the address, and the [`Watch`](super::Watch) probes it (makes test
///    connections). A success closes the circuit.
/// 4. A connection that lasts long asks [`Endpoints::is_over`] whether to end in order, each time
///    that [`Endpoints::changed`] wakes it.
///
/// If no address works, every delivery still gets an address: each address is tried once in a
/// round, before any address is tried again. The delivery loop pauses between rounds
/// ([`Failure::elsewhere`] is `false` for the last address of a round).
///
/// Invariants: an id is never given to a second address, so an attempt whose address was removed
/// changes nothing. A configured endpoint always has at least one address, which may be without a
/// socket address. At most one lookup of each name runs. The lock is never held across an `await`,
/// and [`Endpoints::wake`] is called after the lock is released.
pub struct Endpoints {
    pub(super) output: String,
    /// In which order the addresses are tried.
    pub strategy: Strategy,
    pub(super) timeouts: Timeouts,
    pub(super) look_up: Box<LookUp>,
    table: Mutex<AddressTable>,
    /// A counter that grows with each change of the addresses to which a connection may have to
    /// react (for example, an address is removed, or works again).
    version: AtomicU64,
    changed: Notify,
}

/// The state of one address of an output, as `/status` shows it.
#[derive(Debug, Clone)]
pub struct AddressState {
    /// The number of the configured endpoint, from 0. It distinguishes two URLs with the same host
    /// and port.
    pub endpoint: usize,
    /// The configured host and port, and the IP address that the host resolved to.
    pub address: String,
    /// The state of the address: `unknown`, `up`, `down` or `back, on trial`. `unknown`: no
    /// delivery has tried the address yet. `back, on trial`: the address was `down`, and now one
    /// delivery at a time tests it.
    pub state: &'static str,
    /// The time for which the address has had this state.
    pub state_for: Duration,
    /// `true` if the last delivery or connection that succeeded used this address.
    pub used: bool,
    /// The figures of the address since the output has had it.
    pub figures: FiguresShown,
}

/// Makes a [`Failure`] which says that the lookup of the host name `name` failed. `what` is the
/// text that says why.
fn unresolved(name: &HostPort, what: impl fmt::Display) -> Failure {
    Failure::new(AttemptError::Resolve, format!("cannot resolve {}: {what}", name.host))
}

impl Endpoints {
    /// Makes the state of an output that has no addresses yet. [`Endpoints::set`] adds the
    /// addresses.
    pub fn new(output: &str, strategy: Strategy, timeouts: &Timeouts) -> Self {
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
        lock(&self.table)
    }

    /// Wakes all callers that wait for a change of the addresses with [`Endpoints::changed`].
    pub(super) fn wake(&self) {
        self.version.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Replaces the list of endpoints, which is in the order of the config. An endpoint that is the
    /// same as before, and at the same place in the list, keeps its addresses and their state.
    pub fn set(&self, endpoints: Vec<Endpoint>) {
        self.lock().set(endpoints, Instant::now());
        self.wake();
    }

    /// Returns all addresses of the output, in the order of their endpoints in the config.
    pub(super) fn addresses(&self) -> Vec<ResolvedAddress> {
        self.lock().resolved().map(|(address, _)| address).collect()
    }

    /// Looks up the host name of an address. Does nothing if the host needs no lookup, or if its
    /// last lookup succeeded less than `FRESH` (1 s) ago. If the lookup fails, the addresses that
    /// were known before stay. If the IP address is known already and another task looks the name
    /// up, the method returns at once.
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

    /// Returns the semaphore that permits one lookup of the address's host name at a time; `None`
    /// if no lookup is needed now.
    pub(super) fn lookups(&self, address: &ResolvedAddress) -> Option<Arc<Semaphore>> {
        self.lock().lookups(address, FRESH)
    }

    /// Returns a number that grows whenever the result of [`Endpoints::is_over`] or
    /// [`Endpoints::is_gone`] may change.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns a future that ends at the next change of the addresses after this call. It also
    /// notices a change that happens before it is first polled.
    pub fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Returns `true` if an address is not an address of the output any more: its host name no
    /// longer resolves to it, or a reload has removed or changed its endpoint, or has moved the
    /// endpoint in the list.
    pub fn is_gone(&self, address: &ResolvedAddress) -> bool {
        self.lock().address(address).is_none()
    }

    /// Returns `true` if a connection to this address should be closed in order. The connection
    /// carries all events of the output. There are two reasons to close it. First: the address is
    /// not an address of the output any more. Second, only with `failover`: an address of an
    /// earlier endpoint is usable again, while this address works and the last delivery did not
    /// fail.
    pub fn is_over(&self, address: &ResolvedAddress) -> bool {
        self.lock().is_over(address, self.strategy)
    }

    /// Returns the moment when a connection that is made now should be closed in order: after
    /// `timeouts.max_connection_age`, with a small random difference. `None` if connections have no
    /// age limit (the setting is absent or `0s`).
    pub fn expiry(&self) -> Option<Instant> {
        let age = self.timeouts.max_connection_age?;
        Some(Instant::now() + net::jittered(age))
    }

    /// Returns the number of addresses of the output, of all its endpoints together.
    pub fn count(&self) -> usize {
        self.lock().count()
    }

    /// Returns the state of each address for `/status`, in the order of the config.
    pub fn states(&self) -> Vec<AddressState> {
        let now = Instant::now();
        let table = self.lock();
        let entries = table.resolved().map(|(address, entry)| {
            let (circuit, used) = (&entry.circuit, table.used == Some(address.id));
            (address, circuit.name(), now.saturating_duration_since(circuit.since()), used)
        });
        let entries: Vec<_> = entries.collect();
        drop(table);
        let states = entries.into_iter().map(|(address, state, state_for, used)| AddressState {
            endpoint: address.endpoint,
            address: address.to_string(),
            state,
            state_for,
            used,
            figures: address.figures.show(),
        });
        states.collect()
    }

    /// Logs that an address is up again, and how long it was down. `since` is when it went down.
    pub(super) fn tell_up(&self, address: &ResolvedAddress, since: Option<Instant>, now: Instant) {
        let after = since.map_or(Duration::ZERO, |since| now.duration_since(since));
        let after = format!("{:.1} s", after.as_secs_f64());
        tracing::info!(output = self.output, %address, after, "address up again");
    }
}
