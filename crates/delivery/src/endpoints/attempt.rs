//! The use of an address by a delivery or a connection: picking it, dialling it, and reporting the
//! result.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::address::ResolvedAddress;
use super::circuit::{Fault, UNANSWERED_MAX};
use super::set::Endpoints;
use crate::failure::Failure;
use client::names;
use telemetry::AttemptError;

/// The results of `check --connect` for one output: each address, and its error. `Ok(Some(_))`: the
/// address has responded, but this does not show that it takes events; the text says why.
pub type Probed = Vec<(String, Result<Option<String>, String>)>;

/// One use of an address. The owner, a delivery or a connection, reports the result with
/// [`Attempt::succeeded`], [`Attempt::failed`] or [`Attempt::refused`]. The result decides whether
/// the address is used further. `failed` and `refused` also count the failure. Dropping the value
/// without a report notes nothing about the address, and ends a trial.
pub struct Attempt {
    set: Arc<Endpoints>,
    address: ResolvedAddress,
    begun: Instant,
    /// `true` if this is a trial: the only delivery that now tests the address after a failure.
    is_trial: bool,
}

impl Endpoints {
    /// Picks the address for the next delivery; `None` if the output has no address. An address can
    /// be picked if it works, or if it may be tested after a failure. Directly after a failed
    /// delivery, no address is tested while another one works. `failover` picks the first address
    /// that can be picked, `round_robin` the next one in turn.
    ///
    /// If no address is known to work, each is tried once, in order, before any is tried again. An
    /// address is left out while its consumer has asked for a pause. If no address is left, the one
    /// whose pause ends first is picked.
    pub fn pick(self: &Arc<Self>) -> Option<Attempt> {
        let now = Instant::now();
        let (address, is_trial) = self.lock().pick(self.strategy, now)?;
        Some(Attempt { set: Arc::clone(self), address, begun: now, is_trial })
    }

    /// Begins an attempt at an address that the caller has chosen.
    pub fn attempt(self: &Arc<Self>, address: ResolvedAddress) -> Attempt {
        Attempt { set: Arc::clone(self), address, begun: Instant::now(), is_trial: false }
    }

    /// Looks up the host name of an attempt, and calls `connect` with its address. After a failure,
    /// calls `connect` with each other usable address of the name. The attempt then counts for the
    /// address that was tried last.
    ///
    /// # Errors
    ///
    /// The failure of the address that was tried last, or of the lookup if no address is known.
    pub async fn dial<T, F>(
        &self,
        attempt: &mut Attempt,
        connect: impl Fn(ResolvedAddress) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        match self.look_up(&attempt.address, self.timeouts.connect).await {
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

    /// Looks up every host name and calls `connect` once with each address, for `check --connect`.
    /// Returns a result for each address, and for each failed lookup. `shown` names an endpoint;
    /// the IP address is added if the endpoint has several.
    pub async fn try_all<F>(
        &self,
        shown: impl Fn(&ResolvedAddress) -> String,
        connect: impl Fn(ResolvedAddress) -> F,
    ) -> Probed
    where
        F: Future<Output = Result<Option<String>, Failure>>,
    {
        let mut results = Vec::new();
        for address in self.addresses() {
            let name = shown(&address);
            if let Err(failure) = self.look_up(&address, names::LONGEST).await {
                results.push((name, Err(failure.message)));
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
                results.push((text, connect(address).await.map_err(|failure| failure.message)));
            }
        }
        results
    }
}

impl Attempt {
    /// Returns the address of the attempt.
    pub fn address(&self) -> &ResolvedAddress {
        &self.address
    }

    /// Returns `true` if another address may respond. The result changes when other addresses fail
    /// or work.
    pub fn is_replaceable(&self) -> bool {
        let table = self.set.lock();
        let mut others = table.all().filter(|(_, _, other)| other.id != self.address.id);
        others.any(|(_, _, other)| other.circuit.may_answer())
    }

    /// Returns the longest time that the address may make no progress: `timeouts.request`, but at
    /// most [`UNANSWERED_MAX`] while the address [is replaceable](Attempt::is_replaceable).
    pub fn patience(&self) -> Duration {
        let request = self.set.timeouts.request;
        if self.is_replaceable() { request.min(UNANSWERED_MAX) } else { request }
    }

    /// Counts bytes that are sent to the address.
    pub fn sent(&self, bytes: u64) {
        self.address.figures.sent(bytes);
    }

    /// Counts a request, or a write of a connection, that has ended, in the figures of the address.
    /// The address does not go up or down by this. `took` is the time to the acknowledgement, if
    /// there was one. `failure` says why the consumer did not take all.
    pub fn ended(&self, took: Option<Duration>, failure: Option<&Failure>) {
        self.address.figures.ended(took, failure);
    }

    /// Notes and counts a failure. Returns `true` if another address may be tried without a pause.
    pub fn failed(&self, failure: &Failure) -> bool {
        self.ended(None, Some(failure));
        self.blamed(failure)
    }

    /// Does the same as [`Attempt::failed`], for callers that have counted the requests already.
    pub fn blamed(&self, failure: &Failure) -> bool {
        // An old connection has waited for the request timeout at most.
        let late = failure.reason == AttemptError::Timeout;
        let waited = if late { self.begun.elapsed() } else { Duration::ZERO };
        let waited = waited.min(self.set.timeouts.request);
        self.note(failure, Fault::Failed { asked: failure.retry_after, waited })
    }

    /// Notes and counts that this consumer turned down an event that failed alone before. The event
    /// is the most likely reason, so the address does not go down: other events would move to an
    /// address that may be worse. Returns `true` if another address may be tried without a pause,
    /// because none is known to work.
    pub fn turned_down(&self, failure: &Failure) -> bool {
        self.ended(None, Some(failure));
        self.set.lock().turned_down(&self.address, Instant::now())
    }

    /// Notes and counts that this consumer refused events that another one may accept. Returns
    /// `true` if another address may be tried without a pause. Otherwise no address accepts the
    /// events, so none is at fault: addresses that are down only because of refusals are up again.
    pub fn refused(&self, failure: &Failure) -> bool {
        self.ended(None, Some(failure));
        let left = self.note(failure, Fault::Refused);
        if !left {
            self.set.lock().forgive(Instant::now());
            self.set.wake();
        }
        left
    }

    fn note(&self, failure: &Failure, fault: Fault) -> bool {
        let noted = self.set.lock().failed(&self.address, fault, Instant::now());
        if noted.tells {
            let (reason, error) = (failure.reason.name(), &failure.message);
            let (output, address) = (&self.set.output, &self.address);
            tracing::warn!(
                output,
                %address,
                reason,
                error,
                "address down, the output uses its other addresses"
            );
        }
        if noted.opened {
            self.set.wake();
        }
        noted.left
    }

    /// Notes that the attempt succeeded: the address works.
    pub fn succeeded(&self) {
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

    /// Notes a connection: `/status` shows the address as used.
    pub fn connected(&self) {
        self.set.lock().used = Some(self.address.id);
    }

    /// If a lookup has removed the address, moves the attempt to another one of the same host name.
    fn follow(&mut self) {
        let mut table = self.set.lock();
        if let Some(address) = table.replacement(&self.address) {
            self.is_trial = table.take(&address);
            self.address = address;
        }
    }

    /// Notes a failed connection and moves on to another usable address of the host name. If there
    /// is none, notes nothing and returns `false`.
    fn move_on(&mut self, failure: &Failure) -> bool {
        let next = self.set.lock().sibling(&self.address);
        let Some(next) = next else { return false };
        self.failed(failure);
        self.release();
        self.is_trial = self.set.lock().take(&next);
        (self.address, self.begun) = (next, Instant::now());
        true
    }

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
