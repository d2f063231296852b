//! The use of an address by a delivery or a connection: the address is picked and dialled, and the
//! result is reported.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::address::ResolvedAddress;
use super::circuit::{Fault, UNANSWERED_MAX};
use super::set::Endpoints;
use crate::failure::Failure;
use base::mutant;
use telemetry::AttemptError;

/// The results of `check --connect` for one output. Each entry has the name of an address, and the
/// error if no connection to it could be made.
pub type Probed = Vec<(String, Result<(), String>)>;

/// One use of an address, by a delivery or a connection. The delivery or connection reports the
/// result with [`Attempt::succeeded`], [`Attempt::failed`] or [`Attempt::refused`]. The result
/// decides whether the address is used further. [`Attempt::ended`] counts the requests, or the
/// writes of a connection, that have ended; `failed` and `refused` already do this. If the value is
/// dropped without a report, nothing is noted about the address. If the attempt is a trial,
/// dropping the value ends the trial.
pub struct Attempt {
    set: Arc<Endpoints>,
    address: ResolvedAddress,
    begun: Instant,
    /// `true` if this attempt is a trial: a delivery that tests the address after a failure. An
    /// address has at most one trial at a time.
    is_trial: bool,
}

impl Endpoints {
    /// Picks the address for the next delivery; `None` if the output has no address. An address can
    /// be picked if it works, or if it may be tested again after a failure. After a delivery that
    /// failed, only an address that works can be picked, if there is one. `failover` picks the
    /// first such address in order, `round_robin` the next one in turn. If no address is known to
    /// work, each is tried once, in order, before any is tried again; an address whose consumer has
    /// asked for a pause is left out until the pause is over. If that leaves no address, the one
    /// whose pause ends first is picked.
    pub fn pick(self: &Arc<Self>) -> Option<Attempt> {
        let now = Instant::now();
        let (address, is_trial) = self.lock().pick(self.strategy, now)?;
        Some(Attempt { set: Arc::clone(self), address, begun: now, is_trial })
    }

    /// Begins an attempt at an address that the caller has chosen, even if `pick` would choose
    /// another address now.
    pub fn attempt(self: &Arc<Self>, address: ResolvedAddress) -> Attempt {
        Attempt { set: Arc::clone(self), address, begun: Instant::now(), is_trial: false }
    }

    /// Makes a connection for an attempt. Looks up the host name of the address, and calls
    /// `connect` with the address. If that fails, calls `connect` with each other usable address of
    /// the same host name. The attempt then counts for the address that was tried last.
    ///
    /// # Errors
    ///
    /// Returns the failure of the address that was tried last, or the failure of the lookup if no
    /// address is known.
    pub async fn dial<T, F>(
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

    /// Looks up every host name of the output and calls `connect` once with each address, for
    /// `check --connect`. Returns one result for each address. A host name whose lookup fails has
    /// one result too, without a call of `connect`. `shown` returns the text that names an
    /// endpoint. If an endpoint has several addresses, the IP address is added to this text.
    pub async fn try_all<T, F>(
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
                let connected = connect(address).await.map(drop);
                results.push((text, connected.map_err(|failure| failure.message)));
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

    /// Returns the time for which what was sent to the address may wait for an answer without any
    /// progress: `timeouts.request`, and at most [`UNANSWERED_MAX`] while another address may
    /// answer. The result changes when another address fails, or works again.
    pub fn patience(&self) -> Duration {
        let request = self.set.timeouts.request;
        let table = self.set.lock();
        let mut others = table.all().filter(|(_, _, other)| other.id != self.address.id);
        match others.any(|(_, _, other)| other.circuit.may_answer()) {
            true => mutant!("mute-address-keeps-the-lanes", request.min(UNANSWERED_MAX), request),
            false => request,
        }
    }

    /// Counts bytes that are sent to the address.
    pub fn sent(&self, bytes: u64) {
        self.address.figures.sent(bytes);
    }

    /// Counts a request, or a write of a connection, that has ended here, and says nothing about
    /// the address. `took` is the time from sending to the acknowledgement; `None` if the consumer
    /// has acknowledged nothing. `failure` is the first reason why the consumer did not take
    /// something; `None` if it took everything.
    pub fn ended(&self, took: Option<Duration>, failure: Option<&Failure>) {
        self.address.figures.ended(took, failure);
    }

    /// Notes and counts that the attempt failed. Returns `true` if another address may be tried
    /// without a pause.
    pub fn failed(&self, failure: &Failure) -> bool {
        self.ended(None, Some(failure));
        self.blamed(failure)
    }

    /// Does the same as [`Attempt::failed`], but counts nothing. It is for callers that have
    /// counted the requests already.
    pub fn blamed(&self, failure: &Failure) -> bool {
        // A timeout has cost the time since the attempt began. A connection that has existed for
        // long did not wait during all that time, but at most for the request timeout.
        let late = failure.reason == AttemptError::Timeout;
        let waited = if late { self.begun.elapsed() } else { Duration::ZERO };
        let waited = waited.min(self.set.timeouts.request);
        self.note(failure, Fault::Failed { asked: failure.retry_after, waited })
    }

    /// Notes and counts that the consumer at this address refused events that another consumer may
    /// accept. Returns `true` if another address may be tried without a pause. Otherwise no
    /// consumer accepts the events now, so no consumer is at fault for refusing them. In this case,
    /// addresses that are down only because of refusals count as up again.
    pub fn refused(&self, failure: &Failure) -> bool {
        self.ended(None, Some(failure));
        let left = self.note(failure, Fault::Refused);
        if !left {
            self.set.lock().forgive(Instant::now());
            self.set.wake();
        }
        left
    }

    /// Notes a failure of the address and logs it. Returns `true` if another address may be tried
    /// without a pause.
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

    /// Notes that there is a connection to the address, so that `/status` shows the address as
    /// used. A connection alone does not prove that the address works.
    pub fn connected(&self) {
        self.set.lock().used = Some(self.address.id);
    }

    /// Moves the attempt to another address of the same host name, if a lookup has removed the
    /// attempt's own address from the output.
    fn follow(&mut self) {
        let mut table = self.set.lock();
        if let Some(address) = table.replacement(&self.address) {
            self.is_trial = table.take(&address);
            self.address = address;
        }
    }

    /// Notes that no connection to the address could be made. Moves the attempt to another usable
    /// address of the same host name, and returns `true`. If there is no such address, notes
    /// nothing and returns `false`.
    fn move_on(&mut self, failure: &Failure) -> bool {
        let next = self.set.lock().sibling(&self.address);
        let Some(next) = next else { return false };
        self.failed(failure);
        self.release();
        self.is_trial = self.set.lock().take(&next);
        (self.address, self.begun) = (next, Instant::now());
        true
    }

    /// Ends the trial, if this attempt is a trial. Another delivery may then test the address.
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
