//! Deliveries and connections at one address: picking it, dialling it, and saying how it went.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::address::ResolvedAddress;
use super::circuit::Fault;
use super::set::Endpoints;
use crate::delivery::failure::Failure;
use crate::delivery::failure::ProbeError;
use crate::telemetry::AttemptError;

/// The result of `check --connect` for each address of an output: the address's name to show, and
/// the reason if it could not be connected to.
pub(crate) type Probed = Vec<(String, Result<(), ProbeError>)>;

/// A delivery, or a connection, that has begun at an address. Its owner says how it went with
/// [`Attempt::succeeded`], [`Attempt::failed`] or [`Attempt::refused`]. If it is dropped without a
/// word, only the trial that it may be has ended.
pub(crate) struct Attempt {
    set: Arc<Endpoints>,
    address: ResolvedAddress,
    begun: Instant,
    /// `true` if this attempt is the one that tries whether the address works again.
    is_trial: bool,
}

impl Endpoints {
    /// Picks the address for the next delivery. With `failover` that is the first one in order that
    /// works or is due for a trial; with `round_robin` the next one. If none is known to work, each
    /// is tried once, in order; then a new round begins. Returns `None` while the set is empty.
    pub(crate) fn pick(self: &Arc<Self>) -> Option<Attempt> {
        let now = Instant::now();
        let (address, is_trial) = self.lock().pick(self.strategy, now)?;
        Some(Attempt { set: Arc::clone(self), address, begun: now, is_trial })
    }

    /// Begins an attempt at an address that is tried for its own sake, by `check --connect`.
    pub(crate) fn attempt(self: &Arc<Self>, address: ResolvedAddress) -> Attempt {
        Attempt { set: Arc::clone(self), address, begun: Instant::now(), is_trial: false }
    }

    /// Begins a delivery at an address whose turn it is not, because another address is silent.
    pub(crate) fn give(self: &Arc<Self>, address: ResolvedAddress) -> Attempt {
        let is_trial = self.lock().take(&address);
        let mut attempt = self.attempt(address);
        attempt.is_trial = is_trial;
        attempt
    }

    /// Makes a connection for an attempt. Looks up the address's name, and calls `connect` with the
    /// address. If that fails, calls it with each other usable address of the same name. The
    /// attempt is then one at the address that was tried last.
    ///
    /// # Errors
    ///
    /// The failure of the last address, or of the lookup if no address is known.
    pub(crate) async fn dial<T, F>(
        &self,
        attempt: &mut Attempt,
        connect: impl Fn(ResolvedAddress) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        match self.look_up(&attempt.address).await {
            Ok(()) => attempt.follow(),
            Err(failure) if attempt.address.socket.is_some() => {
                tracing::debug!(%failure, "lookup failed, the addresses known before stay in use");
            }
            Err(failure) => return Err(failure),
        }
        loop {
            match connect(attempt.address.clone()).await {
                Err(failure) if attempt.move_on(&failure) => {}
                result => return result,
            }
        }
    }

    /// Looks up every name and calls `connect` once with each address, for `check --connect`.
    /// Returns how each went. `shown` gives an endpoint's name; the IP address is added to the name
    /// of an endpoint with several addresses.
    pub(crate) async fn try_all<T, F>(
        &self,
        shown: impl Fn(&ResolvedAddress) -> String,
        connect: impl Fn(ResolvedAddress) -> F,
    ) -> Probed
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut results = Vec::new();
        for address in self.addresses() {
            let name = shown(&address);
            if let Err(failure) = self.look_up(&address).await {
                results.push((name, Err(failure.into())));
                continue;
            }
            let mut addresses = self.addresses();
            addresses.retain(|other| other.endpoint == address.endpoint);
            let several = addresses.len() > 1;
            for address in addresses {
                let text = match address.socket {
                    Some(socket) if several => format!("{name} ({})", socket.ip()),
                    _ => name.clone(),
                };
                let connected = connect(address).await.map(drop);
                results.push((text, connected.map_err(ProbeError::from)));
            }
        }
        results
    }
}

impl Attempt {
    /// Returns the address of the attempt.
    pub(crate) fn address(&self) -> &ResolvedAddress {
        &self.address
    }

    /// Notes that the attempt failed. Returns `true` if there is another address to try at once.
    pub(crate) fn failed(&self, failure: &Failure) -> bool {
        // The cost of the failure is the time that was spent waiting for nothing. For a connection
        // that has lived long, that is not its whole life, but at most the request timeout.
        let late = failure.reason == AttemptError::Timeout;
        let waited = if late { self.begun.elapsed() } else { Duration::ZERO };
        let waited = waited.min(self.set.timeouts.request);
        self.note(failure, Fault::Failed { asked: failure.retry_after, waited })
    }

    /// Notes that the consumer refused events that another consumer may take. Returns `true` if
    /// there is another address to try at once. If there is none, every consumer has refused the
    /// events: no consumer was at fault, and all refusals are forgiven.
    pub(crate) fn refused(&self, failure: &Failure) -> bool {
        let left = self.note(failure, Fault::Refused);
        if !left {
            self.set.lock().forgive();
            self.set.wake();
        }
        left
    }

    fn note(&self, failure: &Failure, fault: Fault) -> bool {
        let noted = self.set.lock().failed(&self.address, fault, Instant::now());
        if noted.tells {
            let (reason, error) = (failure.reason.name(), &failure.message);
            let (output, address) = (&self.set.output, &self.address);
            tracing::warn!(output, %address, reason, error, "address down, passed over");
        }
        if noted.opened {
            self.set.wake();
        }
        noted.left
    }

    /// Notes that the attempt succeeded: the address works.
    pub(crate) fn succeeded(&self) {
        let now = Instant::now();
        let mut table = self.set.lock();
        let Some(address) = table.address(&self.address) else { return };
        let down_since = address.circuit.open_since();
        let closed = address.circuit.succeeded(self.begun, now);
        let tells = closed && address.is_to_be_told_up(now);
        table.used = Some(self.address.id);
        table.failing = false;
        drop(table);
        if tells {
            self.set.tell_up(&self.address, down_since, now);
        }
        if closed {
            self.set.wake();
        }
    }

    /// Notes that there is a connection to the address, for `/status`. This does not count as a
    /// success of the address.
    pub(crate) fn connected(&self) {
        self.set.lock().used = Some(self.address.id);
    }

    /// Moves the attempt to another address of the same name if, after a lookup, its own address
    /// has left the set.
    fn follow(&mut self) {
        let mut table = self.set.lock();
        if let Some(address) = table.replacement(&self.address) {
            self.is_trial = table.take(&address);
            self.address = address;
        }
    }

    /// Notes that the address can't be connected to, and moves to another usable address of the
    /// same name. Returns `false`, and notes nothing, if there is none.
    fn move_on(&mut self, failure: &Failure) -> bool {
        let next = self.set.lock().sibling(&self.address);
        let Some(next) = next else { return false };
        self.failed(failure);
        self.release();
        self.is_trial = self.set.lock().take(&next);
        (self.address, self.begun) = (next, Instant::now());
        true
    }

    /// Ends the attempt's trial of the address, if the attempt is a trial.
    fn release(&mut self) {
        if std::mem::take(&mut self.is_trial)
            && let Some(address) = self.set.lock().address(&self.address)
        {
            address.circuit.release();
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.release();
    }
}
