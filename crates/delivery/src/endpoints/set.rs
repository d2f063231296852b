//! The set of an output's addresses: the table behind a lock, and lookups of host names.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::address::{Endpoint, ResolvedAddress};
use super::table::AddressTable;
use crate::failure::Failure;
use base::lock::lock;
use client::names::Names;
use client::net;
use config::{HostPort, Strategy, Timeouts};
use telemetry::{AttemptError, status};

/// A name is not looked up again within this time after the resolver's last answer. Otherwise the
/// parallel connections of an `http` output would all look up a name at the same moment.
const FRESH: Duration = Duration::from_secs(1);

/// The most addresses of a name that are used. A larger consumer should have a load balancer.
const ADDRESSES_MAX: usize = 64;

/// The addresses of one output, each with its state. The output's connector, its connections, its
/// watch and `/status` share this value. It has no task of its own.
///
/// A delivery or a connection goes through these steps:
///
/// 1. [`Endpoints::pick`] returns an [`Attempt`](super::Attempt) at the address whose turn it is.
/// 2. [`Endpoints::dial`] connects to the address, or to another usable address of the same name.
/// 3. The owner reports the result. A failure opens the address's circuit: other deliveries avoid
///    the address, and the [`Watch`](super::Watch) probes it. A success closes the circuit.
/// 4. A connection that lasts long asks [`Endpoints::is_over`] whether to end, each time that
///    [`Endpoints::changed`] wakes it.
///
/// If no address works, each is tried once in a round, before any is tried again. The delivery loop
/// pauses between rounds ([`Failure::elsewhere`] is `false` for the last address of a round).
///
/// Invariants: an id is never given to a second address, so an attempt whose address was removed
/// changes the state of no other address. A configured endpoint always has at least one address,
/// which may lack a socket address. At most one lookup for each name runs. The lock is never held
/// across an `await`, or when [`Endpoints::wake`] is called.
pub struct Endpoints {
    pub(super) output: String,
    /// The order in which the addresses are tried.
    pub strategy: Strategy,
    pub(super) timeouts: Timeouts,
    pub(super) names: Arc<Names>,
    table: Mutex<AddressTable>,
    /// Grows with each change that may be a reason to end a connection.
    version: AtomicU64,
    changed: Notify,
}

fn unresolved(name: &HostPort, what: impl fmt::Display) -> Failure {
    Failure::new(AttemptError::Resolve, format!("cannot resolve {}: {what}", name.host))
}

impl Endpoints {
    /// Makes the value without addresses; [`Endpoints::set`] adds them.
    pub fn new(output: &str, strategy: Strategy, timeouts: &Timeouts) -> Self {
        Self {
            output: output.to_owned(),
            strategy,
            timeouts: timeouts.clone(),
            names: Names::of_process(),
            table: Mutex::default(),
            version: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, AddressTable> {
        lock(&self.table)
    }

    pub(super) fn wake(&self) {
        self.version.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Replaces the endpoints. An endpoint that is the same as before, at the same index, keeps its
    /// addresses.
    pub fn set(&self, endpoints: Vec<Endpoint>) {
        self.lock().set(endpoints, Instant::now());
        self.wake();
    }

    pub(super) fn addresses(&self) -> Vec<ResolvedAddress> {
        self.lock().resolved().map(|(address, _)| address).collect()
    }

    /// Looks up the host name of an address. Does nothing if the host is an IP address, if a proxy
    /// resolves it, if the last answer is younger than [`FRESH`], or if another task asks and an
    /// address is known. After a failure, the known addresses stay. Waits for at most `patience`;
    /// the lookup then runs on, and the next call gets its answer.
    pub(super) async fn look_up(
        &self,
        address: &ResolvedAddress,
        patience: Duration,
    ) -> Result<(), Failure> {
        let (name, known) = (&address.name, address.socket.is_some());
        if !self.needs_lookup(address) || (known && self.names.is_running(name)) {
            return Ok(());
        }
        let answer = match self.names.look_up(name, patience).await {
            // Another task may have taken the same answer.
            Ok(Some(_)) if !self.needs_lookup(address) => return Ok(()),
            Ok(Some(answer)) if !answer.is_empty() => answer,
            Ok(Some(_)) => return Err(unresolved(name, "it has no address")),
            Err(error) => return Err(unresolved(name, error)),
            Ok(None) => {
                let what = format!("no response within {} s", patience.as_secs_f64());
                return Err(unresolved(name, what));
            }
        };
        let answer = answer.get(..ADDRESSES_MAX).unwrap_or(&answer);
        let changed = self.lock().take_answer(address, answer, Instant::now());
        if changed {
            tracing::debug!(output = self.output, name = name.host, ?answer, "addresses changed");
            self.wake();
        }
        Ok(())
    }

    /// Returns `true` if the name must be looked up now.
    pub(super) fn needs_lookup(&self, address: &ResolvedAddress) -> bool {
        self.lock().needs_lookup(address, FRESH)
    }

    /// Grows when the list of addresses changes, and when an address goes down or may be used
    /// again. Each change of [`Endpoints::is_gone`] is among these; [`Endpoints::is_over`] may also
    /// change with the result of a delivery.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Waits for the next change of the addresses. A change before the first poll counts, too.
    pub fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Returns `true` if a lookup has removed the address, or a reload removed, changed or moved
    /// its endpoint.
    pub fn is_gone(&self, address: &ResolvedAddress) -> bool {
        self.lock().address(address).is_none()
    }

    /// Returns `true` if a connection that carries all events of the output should be closed: its
    /// address is gone, or `failover` has a better one. A better one is a usable address of an
    /// earlier endpoint, while the current one works and the last delivery did not fail.
    pub fn is_over(&self, address: &ResolvedAddress) -> bool {
        self.lock().is_over(address, self.strategy)
    }

    /// Returns the moment when a new connection should be closed: after about
    /// `timeouts.max_connection_age`, if that is set.
    pub fn expiry(&self) -> Option<Instant> {
        let age = self.timeouts.max_connection_age?;
        Some(Instant::now() + net::jittered(age))
    }

    /// Returns the number of addresses of all endpoints.
    pub fn count(&self) -> usize {
        self.lock().count()
    }

    /// Returns the state of each address for `/status`, in the order of the config.
    pub fn states(&self) -> Vec<status::Address> {
        let now = Instant::now();
        let table = self.lock();
        let entries = table.resolved().map(|(address, entry)| {
            let (circuit, used) = (&entry.circuit, table.used == Some(address.id));
            (address, circuit.name(), now.saturating_duration_since(circuit.since()), used)
        });
        let entries: Vec<_> = entries.collect();
        drop(table);
        let states = entries.into_iter().map(|(address, state, state_for, used)| status::Address {
            endpoint: address.endpoint as u64,
            address: address.to_string(),
            state: state.to_owned(),
            state_seconds: Some(state_for.as_secs_f64()),
            used,
            ..address.figures.show()
        });
        states.collect()
    }

    pub(super) fn tell_up(&self, address: &ResolvedAddress, since: Option<Instant>, now: Instant) {
        let after = since.map_or(Duration::ZERO, |since| now.duration_since(since));
        let after = format!("{:.1} s", after.as_secs_f64());
        tracing::info!(output = self.output, %address, after, "address up again");
    }
}
