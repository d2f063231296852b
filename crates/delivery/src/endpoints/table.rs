//! All addresses of an output, and whose turn it is. This file has no I/O and no clock: callers
//! pass the time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::address::{Endpoint, ResolvedAddress};
use super::circuit::{Circuit, Fault};
use super::figures::Figures;
use config::Strategy;

/// When this time has passed since the last lookup of a host name, the background task looks the
/// name up again.
pub(super) const LOOK_UP: Duration = Duration::from_secs(30);

/// After a log line about an address, the log waits at least this long before it may say that the
/// address is down.
const QUIET: Duration = Duration::from_secs(60);

/// The endpoints of one output in the order of the config, with the addresses of each.
/// `Endpoints` owns it.
///
/// All addresses of all endpoints together form one list, in order. An *index* is a place in that
/// list, and changes when addresses join or leave. An *id* is never given to a second address.
#[derive(Default)]
pub(super) struct AddressTable {
    entries: Vec<EndpointEntry>,
    /// The number of the current round. While no address is known to work, each address is tried
    /// once in a round before any address is tried again.
    round: u64,
    /// The index of the address whose turn is next. With `round_robin`, the search for the address
    /// of the next delivery begins there.
    turn: usize,
    /// `true` if the last delivery failed. While this is `true`, the next delivery goes to an
    /// address that is known to work, if there is one. It does not test an address that was down.
    /// So two tests never fail in a row while another address works.
    pub(super) failing: bool,
    /// The id of the address at which the last delivery or connection succeeded; `None` if none has
    /// succeeded yet.
    pub(super) used: Option<usize>,
    /// The id of the newest address. Ids are counted up from 1.
    last_id: usize,
}

/// A configured endpoint (host and port) and its addresses.
pub(super) struct EndpointEntry {
    endpoint: Endpoint,
    /// The moment of the resolver's last answer for the endpoint's host name; `None` before the
    /// first answer. After the first answer, all addresses of the endpoint have an IP address.
    looked_up: Option<Instant>,
    /// The moment when the background task looks the host name up next; `None` before the first
    /// answer of the resolver.
    next_lookup: Option<Instant>,
    /// A semaphore with one permit, so that only one lookup of the name runs at a time: a resolver
    /// that hangs then blocks only one thread.
    lookups: Arc<Semaphore>,
    /// The addresses of the endpoint. The list is never empty: a host name that the resolver has
    /// not answered yet has one entry, without an IP address.
    addresses: Vec<AddressEntry>,
}

/// One address of an endpoint, with its circuit and with the last log line about it.
pub(super) struct AddressEntry {
    /// The address's id, which is never given to another address.
    pub(super) id: usize,
    /// The IP address and port; `None` while the host is not resolved, and if a proxy resolves it.
    pub(super) socket: Option<SocketAddr>,
    pub(super) circuit: Circuit,
    /// What is counted at the address.
    pub(super) figures: Arc<Figures>,
    /// The number of the last round in which a delivery to this address failed; `None` if none
    /// failed. In a round, each address is tried once.
    failed_in: Option<u64>,
    /// The moment of the last log line about the address; `None` if there was no line.
    told: Option<Instant>,
    /// `true` if the last log line about the address says that it is down.
    told_down: bool,
}

/// Work for the background task (`Watch`) that watches the addresses of an output.
pub(super) enum Job {
    /// Look up the name of this address.
    LookUp(ResolvedAddress),
    /// Connect to this address, to find out whether it works again.
    Probe(ResolvedAddress),
}

/// The consequences of a failure at an address. The caller must act on each of them.
pub(super) struct Noted {
    /// `true` if the failure has opened the address's circuit: from now on, the address counts as
    /// down.
    pub(super) opened: bool,
    /// `true` if the caller must log the failure. The table already counts this log line as
    /// written.
    pub(super) tells: bool,
    /// `true` if another address may be tried without a pause.
    pub(super) left: bool,
}

impl AddressEntry {
    fn new(id: usize, socket: Option<SocketAddr>, circuit: Circuit) -> Self {
        let figures = Arc::default();
        Self { id, socket, circuit, figures, failed_in: None, told: None, told_down: false }
    }

    /// Makes the entry of a new address of an endpoint whose other addresses are all down. `self`
    /// is the entry of one of these. The new address gets a copy of that circuit, so it counts as
    /// down, too, until it has answered probes.
    fn successor(&self, id: usize, socket: SocketAddr, now: Instant) -> Self {
        let circuit = self.circuit.of_successor(now);
        Self { told_down: self.told_down, ..Self::new(id, Some(socket), circuit) }
    }

    /// Returns `true` if the caller may now log that the address is down. The line then counts as
    /// written already, so the caller must write it. Returns `false` if the last log line about the
    /// address is too recent.
    fn may_tell(&mut self, now: Instant) -> bool {
        let may = self.told.is_none_or(|told| now.duration_since(told) >= QUIET);
        if may {
            self.told = Some(now);
        }
        may
    }

    /// Returns `true` if the last log line about the address says that it is down. The caller must
    /// then log that the address is up. This new line is already counted as written.
    pub(super) fn is_to_be_told_up(&mut self, now: Instant) -> bool {
        let tells = std::mem::take(&mut self.told_down);
        if tells {
            self.told = Some(now);
        }
        tells
    }
}

impl EndpointEntry {
    fn resolved(&self, endpoint: usize, address: &AddressEntry) -> ResolvedAddress {
        let (id, socket, figures) = (address.id, address.socket, Arc::clone(&address.figures));
        ResolvedAddress { endpoint, id, name: self.endpoint.name.clone(), socket, figures }
    }

    /// Returns the index, within this endpoint, of the address with this id; `None` if there is
    /// none.
    fn position(&self, id: usize) -> Option<usize> {
        self.addresses.iter().position(|address| address.id == id)
    }
}

impl AddressTable {
    fn new_id(&mut self) -> usize {
        self.last_id += 1;
        self.last_id
    }

    /// Replaces the list of endpoints. An endpoint that is the same as before, and at the same
    /// place in the list, keeps its addresses and their state.
    pub(super) fn set(&mut self, endpoints: Vec<Endpoint>, now: Instant) {
        let mut old: Vec<Option<EndpointEntry>> =
            std::mem::take(&mut self.entries).into_iter().map(Some).collect();
        for (index, endpoint) in endpoints.into_iter().enumerate() {
            let same =
                old.get_mut(index).and_then(|entry| entry.take_if(|it| it.endpoint == endpoint));
            let entry = same.unwrap_or_else(|| {
                let socket = if endpoint.resolved_here { endpoint.literal() } else { None };
                let addresses = vec![AddressEntry::new(self.new_id(), socket, Circuit::new(now))];
                let lookups = Arc::new(Semaphore::new(1));
                EndpointEntry { endpoint, looked_up: None, next_lookup: None, lookups, addresses }
            });
            self.entries.push(entry);
        }
    }

    /// Returns the entry of an address; `None` if it is not an address of the output any more.
    pub(super) fn address(&mut self, of: &ResolvedAddress) -> Option<&mut AddressEntry> {
        let entry = self.entries.get_mut(of.endpoint)?;
        let position = entry.position(of.id)?;
        entry.addresses.get_mut(position)
    }

    /// Returns the number of addresses, of all endpoints together.
    pub(super) fn count(&self) -> usize {
        self.entries.iter().map(|entry| entry.addresses.len()).sum()
    }

    /// Returns every address in the order of the list, with its endpoint and the index of the
    /// endpoint in the config.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &EndpointEntry, &AddressEntry)> {
        self.entries.iter().enumerate().flat_map(|(index, entry)| {
            entry.addresses.iter().map(move |address| (index, entry, address))
        })
    }

    /// Returns every address in the order of the list, with its entry in the table.
    pub(super) fn resolved(&self) -> impl Iterator<Item = (ResolvedAddress, &AddressEntry)> {
        self.all().map(|(index, entry, address)| (entry.resolved(index, address), address))
    }

    /// Returns `true` if at least one address is known to work.
    fn any_closed(&self) -> bool {
        self.all().any(|(_, _, address)| address.circuit.is_closed())
    }

    /// Returns `true` if a delivery may go to this address without a pause, while no address is
    /// known to work: no delivery has failed here in this round, and the consumer has not asked for
    /// a pause that still lasts.
    fn is_untried(&self, address: &AddressEntry, now: Instant) -> bool {
        address.circuit.asked_until(now).is_none() && address.failed_in != Some(self.round)
    }

    /// Returns `true` if there is an address that may be tried without a pause.
    fn is_any_left(&self, now: Instant) -> bool {
        let untried = |address: &AddressEntry| self.is_untried(address, now);
        self.any_closed() || self.all().any(|(_, _, address)| untried(address))
    }

    /// Returns the first address that `wanted` accepts, with its index; `None` if there is none.
    /// The search begins at the index `from`. After the last address, it continues at the first.
    fn find(
        &self,
        from: usize,
        wanted: impl Fn(&AddressEntry) -> bool,
    ) -> Option<(usize, ResolvedAddress)> {
        let count = self.count();
        let all = || self.all().enumerate();
        let after = all().filter(|(index, _)| *index >= from);
        let before = all().take(from.min(count));
        after
            .chain(before)
            .find(|(_, (_, _, address))| wanted(address))
            .map(|(index, (endpoint, of, address))| (index, of.resolved(endpoint, address)))
    }

    /// Returns the address whose pause ends first, and the index of the address; `None` if the
    /// output has no address. Called when the consumer of every address has asked for a pause.
    fn soonest(&self, now: Instant) -> Option<(usize, ResolvedAddress)> {
        let until = |address: &AddressEntry| address.circuit.asked_until(now);
        let all = self.all().enumerate();
        let soonest = all.min_by_key(|(_, (_, _, address))| until(address));
        soonest.map(|(index, (endpoint, of, address))| (index, of.resolved(endpoint, address)))
    }

    /// Picks the address of the next delivery. The turn then goes to the address after it in the
    /// list. Returns the address, and `true` if the delivery is a trial. Returns `None` if the
    /// output has no address.
    pub(super) fn pick(
        &mut self,
        strategy: Strategy,
        now: Instant,
    ) -> Option<(ResolvedAddress, bool)> {
        let from = match strategy {
            Strategy::Failover => 0,
            Strategy::RoundRobin => self.turn,
        };
        let found = if self.any_closed() {
            let failing = self.failing;
            self.find(from, |address| {
                address.circuit.is_closed() || (!failing && address.circuit.is_usable())
            })
        } else {
            if !self.is_any_left(now) {
                self.round += 1;
            }
            self.find(from, |address| self.is_untried(address, now))
        };
        let (index, address) = found.or_else(|| self.soonest(now))?;
        self.turn = (index + 1) % self.count();
        let is_trial = self.take(&address);
        Some((address, is_trial))
    }

    /// Notes that a delivery begins at an address. Returns `true` if the delivery is a trial.
    pub(super) fn take(&mut self, address: &ResolvedAddress) -> bool {
        self.address(address).is_some_and(|address| address.circuit.take())
    }

    /// Notes that a delivery or a connection failed at an address because of `fault`. The result
    /// tells the caller what to do: wake the connections, log the failure, try another address.
    pub(super) fn failed(&mut self, of: &ResolvedAddress, fault: Fault, now: Instant) -> Noted {
        self.failing = true;
        let (round, several) = (self.round, self.count() > 1);
        let (mut opened, mut tells) = (false, false);
        if let Some(address) = self.address(of) {
            address.failed_in = Some(round);
            opened = address.circuit.failed(fault, now);
            tells = opened && several && address.may_tell(now);
            address.told_down |= tells;
        }
        Noted { opened, tells, left: self.is_any_left(now) }
    }

    /// Forgives every refusal: addresses that are down only because their consumers refused events
    /// count as up again. Called when no consumer accepts the refused events, so that no consumer
    /// is at fault.
    pub(super) fn forgive(&mut self, now: Instant) {
        self.failing = false;
        for address in self.entries.iter_mut().flat_map(|entry| &mut entry.addresses) {
            if address.circuit.forgive(now) {
                address.told_down = false;
            }
        }
    }

    /// Returns the semaphore that permits one lookup of the address's host name at a time. `None`
    /// if no lookup is needed: the host is an IP address, a proxy resolves it, a reload has removed
    /// the endpoint, or the last answer is younger than `fresh`.
    pub(super) fn lookups(&self, of: &ResolvedAddress, fresh: Duration) -> Option<Arc<Semaphore>> {
        let entry = self.entries.get(of.endpoint)?;
        let young = entry.looked_up.is_some_and(|at| at.elapsed() < fresh);
        (entry.endpoint.needs_lookup() && entry.endpoint.name == of.name && !young)
            .then(|| Arc::clone(&entry.lookups))
    }

    /// Replaces the addresses of a host name by the resolver's answer. `of` is any address of this
    /// name. Addresses that stay keep their order and state. Returns `true` if the set of addresses
    /// has changed.
    pub(super) fn take_answer(
        &mut self,
        of: &ResolvedAddress,
        answer: &[SocketAddr],
        now: Instant,
    ) -> bool {
        if self.entries.get(of.endpoint).is_none_or(|it| it.endpoint.name != of.name) {
            return false;
        }
        let new_ids: Vec<usize> = answer.iter().map(|_| self.new_id()).collect();
        let Some(entry) = self.entries.get_mut(of.endpoint) else { return false };
        (entry.looked_up, entry.next_lookup) = (Some(now), Some(now + LOOK_UP));
        let before: BTreeSet<_> =
            entry.addresses.iter().filter_map(|address| address.socket).collect();
        let all_down = entry.addresses.iter().all(|address| address.circuit.is_open());
        let new = |(socket, id): (&SocketAddr, usize)| match entry.addresses.first() {
            Some(first) if all_down => first.successor(id, *socket, now),
            _ => AddressEntry::new(id, Some(*socket), Circuit::new(now)),
        };
        let joining = answer.iter().zip(new_ids).filter(|(socket, _)| !before.contains(socket));
        let mut joining: Vec<_> = joining.map(new).collect();
        // Figures from before the first lookup move to the first address.
        let unresolved = entry.addresses.iter().find(|address| address.socket.is_none());
        if let Some((unresolved, first)) = unresolved.zip(joining.first_mut()) {
            first.figures = Arc::clone(&unresolved.figures);
        }
        // Addresses that stay keep their order: an answer in another order is not a reason to use
        // another address.
        let stays = |socket: SocketAddr| answer.contains(&socket);
        entry.addresses.retain(|address| address.socket.is_some_and(stays));
        entry.addresses.extend(joining);
        let after = entry.addresses.iter().filter_map(|address| address.socket).collect();
        before != after
    }

    /// Returns another address of the same host name, if a lookup has removed the address `of` from
    /// the output. The turn then goes to the address after the returned one in the list. Returns
    /// `None` if `of` was not removed, or if its endpoint is gone.
    pub(super) fn replacement(&mut self, of: &ResolvedAddress) -> Option<ResolvedAddress> {
        let entry = self.entries.get(of.endpoint)?;
        if entry.position(of.id).is_some() || entry.endpoint.name != of.name {
            return None;
        }
        let mut usable = entry.addresses.iter().filter(|address| address.circuit.is_usable());
        let address = usable.next().or(entry.addresses.first())?;
        let found = entry.resolved(of.endpoint, address);
        let index = self.all().position(|(_, _, address)| address.id == found.id);
        self.turn = index.map_or(0, |index| (index + 1) % self.count());
        Some(found)
    }

    /// Returns another usable address of the same host name; `None` if there is none.
    pub(super) fn sibling(&self, of: &ResolvedAddress) -> Option<ResolvedAddress> {
        let entry = self.entries.get(of.endpoint).filter(|it| it.endpoint.name == of.name)?;
        let mut others = entry.addresses.iter().filter(|other| other.id != of.id);
        let usable = others.find(|other| other.circuit.is_usable())?;
        Some(entry.resolved(of.endpoint, usable))
    }

    /// Returns `true` if a connection to the address `of` should be closed in order. The connection
    /// carries all events of the output. There are two reasons to close it. First: `of` is not an
    /// address of the output any more. Second, only with `failover`: an address of an earlier
    /// endpoint is usable again, while `of` works and the last delivery did not fail.
    pub(super) fn is_over(&mut self, of: &ResolvedAddress, strategy: Strategy) -> bool {
        let Some(address) = self.address(of) else { return true };
        let works = address.circuit.is_closed() && !self.failing;
        let preferred = |(endpoint, _, address): (usize, &EndpointEntry, &AddressEntry)| {
            endpoint < of.endpoint && address.circuit.is_usable()
        };
        strategy == Strategy::Failover && works && self.all().any(preferred)
    }

    /// Returns the lookups and probes that are due now, and the time when this method must be
    /// called again. The returned work counts as begun. A probe takes at most `limit`. If the
    /// output has only one address, this address is not probed, because every delivery tries it
    /// anyway.
    pub(super) fn due(&mut self, limit: Duration, now: Instant) -> (Vec<Job>, Instant) {
        let several = self.count() > 1;
        let (mut due, mut wake) = (Vec::new(), now + LOOK_UP);
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if let Some(at) = entry.next_lookup.filter(|_| entry.endpoint.needs_lookup()) {
                if at <= now {
                    entry.next_lookup = Some(now + LOOK_UP);
                    let first = entry.addresses.first();
                    due.extend(first.map(|it| Job::LookUp(entry.resolved(index, it))));
                } else {
                    wake = wake.min(at);
                }
            }
            let mut probed = Vec::new();
            for address in entry.addresses.iter_mut().filter(|_| several) {
                match address.circuit.next_probe() {
                    Some(at) if at <= now => {
                        address.circuit.probing(limit, now);
                        probed.push(address.id);
                    }
                    Some(at) => wake = wake.min(at),
                    None => {}
                }
            }
            let of = |id: &usize| entry.position(*id).map(|it| &entry.addresses[it]);
            let probes = probed.iter().filter_map(of);
            due.extend(probes.map(|it| Job::Probe(entry.resolved(index, it))));
        }
        (due, wake)
    }
}
