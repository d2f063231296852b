//! All addresses of an output, and whose turn it is, without I/O.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::address::{Endpoint, ResolvedAddress};
use super::circuit::{Circuit, Fault};
use super::figures::Figures;
use config::Strategy;

/// The time between two lookups of a host name by the background task.
pub(super) const LOOK_UP: Duration = Duration::from_secs(30);

/// The shortest time from one log line about an address to a line that says that it is down.
const QUIET: Duration = Duration::from_secs(60);

/// The endpoints of one output in the order of the config. Their addresses form one list. An
/// *index* is a position in that list, and changes when addresses join or leave. An *id* is never
/// given to a second address.
#[derive(Default)]
pub(super) struct AddressTable {
    entries: Vec<EndpointEntry>,
    /// The current round. While no address is known to work, each is tried once in a round.
    round: u64,
    /// The index at which `round_robin` begins to search for the next address.
    turn: usize,
    /// `true` if the last delivery failed. The next one then goes to an address that is known to
    /// work, if there is one, so that two tests seldom fail in a row while another address works.
    pub(super) failing: bool,
    /// The id of the address at which the last delivery or connection succeeded.
    pub(super) used: Option<usize>,
    /// The id of the newest address. Ids are counted up from 1.
    last_id: usize,
}

pub(super) struct EndpointEntry {
    endpoint: Endpoint,
    /// The time of the resolver's last answer. After the first, all addresses have an IP address.
    looked_up: Option<Instant>,
    next_lookup: Option<Instant>,
    /// Never empty: before the resolver's first answer, a name has one entry without an IP address.
    addresses: Vec<AddressEntry>,
}

pub(super) struct AddressEntry {
    pub(super) id: usize,
    pub(super) socket: Option<SocketAddr>,
    pub(super) circuit: Circuit,
    pub(super) figures: Arc<Figures>,
    /// The last round in which a delivery to this address failed.
    failed_in: Option<u64>,
    told: Option<Instant>,
    /// `true` if the last log line about the address says that it is down.
    told_down: bool,
}

/// Work for the background task (`Watch`).
pub(super) enum Job {
    LookUp(ResolvedAddress),
    Probe(ResolvedAddress),
}

/// The consequences of a failure at an address. The caller must act on each of them.
pub(super) struct Noted {
    /// `true` if the failure has opened the address's circuit.
    pub(super) opened: bool,
    /// `true` if the caller must log the failure. The table counts this line as written.
    pub(super) tells: bool,
    /// `true` if another address may be tried without a pause.
    pub(super) left: bool,
}

impl AddressEntry {
    fn new(id: usize, socket: Option<SocketAddr>, circuit: Circuit) -> Self {
        let figures = Arc::default();
        Self { id, socket, circuit, figures, failed_in: None, told: None, told_down: false }
    }

    /// Makes the entry of a new address. All other addresses of the endpoint, such as `self`, are
    /// down, so the new one counts as down until it has answered probes.
    fn successor(&self, id: usize, socket: SocketAddr, now: Instant) -> Self {
        let circuit = self.circuit.of_successor(now);
        Self { told_down: self.told_down, ..Self::new(id, Some(socket), circuit) }
    }

    /// Returns `true` if the caller must log that the address is down.
    fn may_tell(&mut self, now: Instant) -> bool {
        let may = self.told.is_none_or(|told| now.duration_since(told) >= QUIET);
        if may {
            self.told = Some(now);
        }
        may
    }

    /// Returns `true` if the caller must log that the address is up.
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

    fn position(&self, id: usize) -> Option<usize> {
        self.addresses.iter().position(|address| address.id == id)
    }
}

impl AddressTable {
    fn new_id(&mut self) -> usize {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn set(&mut self, endpoints: Vec<Endpoint>, now: Instant) {
        let mut old: Vec<Option<EndpointEntry>> =
            std::mem::take(&mut self.entries).into_iter().map(Some).collect();
        for (index, endpoint) in endpoints.into_iter().enumerate() {
            let same =
                old.get_mut(index).and_then(|entry| entry.take_if(|it| it.endpoint == endpoint));
            let entry = same.unwrap_or_else(|| {
                let socket = if endpoint.resolved_here { endpoint.literal() } else { None };
                let addresses = vec![AddressEntry::new(self.new_id(), socket, Circuit::new(now))];
                EndpointEntry { endpoint, looked_up: None, next_lookup: None, addresses }
            });
            self.entries.push(entry);
        }
    }

    /// Returns `None` if the output does not have this address any more.
    pub(super) fn address(&mut self, of: &ResolvedAddress) -> Option<&mut AddressEntry> {
        let entry = self.entries.get_mut(of.endpoint)?;
        let position = entry.position(of.id)?;
        entry.addresses.get_mut(position)
    }

    pub(super) fn count(&self) -> usize {
        self.entries.iter().map(|entry| entry.addresses.len()).sum()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &EndpointEntry, &AddressEntry)> {
        self.entries.iter().enumerate().flat_map(|(index, entry)| {
            entry.addresses.iter().map(move |address| (index, entry, address))
        })
    }

    pub(super) fn resolved(&self) -> impl Iterator<Item = (ResolvedAddress, &AddressEntry)> {
        self.all().map(|(index, entry, address)| (entry.resolved(index, address), address))
    }

    fn any_closed(&self) -> bool {
        self.all().any(|(_, _, address)| address.circuit.is_closed())
    }

    /// Returns `true` if the address may be tried without a pause while none is known to work.
    fn is_untried(&self, address: &AddressEntry, now: Instant) -> bool {
        address.circuit.asked_until(now).is_none() && address.failed_in != Some(self.round)
    }

    /// Returns `true` if an address may be tried without a pause.
    fn is_any_left(&self, now: Instant) -> bool {
        let untried = |address: &AddressEntry| self.is_untried(address, now);
        self.any_closed() || self.all().any(|(_, _, address)| untried(address))
    }

    /// Returns the first wanted address, from the index `from` to the end, and then from the start.
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

    /// Returns the address with the earliest end of the pause that its consumer has asked for.
    fn soonest(&self, now: Instant) -> Option<(usize, ResolvedAddress)> {
        let until = |address: &AddressEntry| address.circuit.asked_until(now);
        let all = self.all().enumerate();
        let soonest = all.min_by_key(|(_, (_, _, address))| until(address));
        soonest.map(|(index, (endpoint, of, address))| (index, of.resolved(endpoint, address)))
    }

    /// Picks the next address, and moves the turn on. The `bool` is `true` for a trial.
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

    /// Takes an address for a delivery. Returns `true` for a trial.
    pub(super) fn take(&mut self, address: &ResolvedAddress) -> bool {
        self.address(address).is_some_and(|address| address.circuit.take())
    }

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
        // Only an address that works may accept what this one refuses. One that does not respond
        // would cost a time-out for each refused event.
        let left = match fault {
            Fault::Refused => self.any_closed(),
            Fault::Failed { .. } => self.is_any_left(now),
        };
        Noted { opened, tells, left }
    }

    /// The consumer at this address has turned down an event that is most likely the reason itself:
    /// the address stays up. Returns `true` if no address is known to work, and another one may be
    /// tried without a pause.
    pub(super) fn turned_down(&mut self, at: &ResolvedAddress, now: Instant) -> bool {
        let round = self.round;
        if let Some(address) = self.address(at) {
            address.failed_in = Some(round);
        }
        !self.any_closed() && self.is_any_left(now)
    }

    /// Closes the circuits that only refusals have opened: no consumer accepts the refused events,
    /// so none is at fault.
    pub(super) fn forgive(&mut self, now: Instant) {
        self.failing = false;
        for address in self.entries.iter_mut().flat_map(|entry| &mut entry.addresses) {
            if address.circuit.forgive(now) {
                address.told_down = false;
            }
        }
    }

    /// Returns `true` if the name must be looked up, and its last answer is not `fresh` any more.
    pub(super) fn needs_lookup(&self, of: &ResolvedAddress, fresh: Duration) -> bool {
        let Some(entry) = self.entries.get(of.endpoint) else { return false };
        let young = entry.looked_up.is_some_and(|at| at.elapsed() < fresh);
        entry.endpoint.needs_lookup() && entry.endpoint.name == of.name && !young
    }

    /// Replaces the addresses of the name of `of`. Returns `true` if they have changed.
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
        // The figures from before the first lookup move to the first address.
        let unresolved = entry.addresses.iter().find(|address| address.socket.is_none());
        if let Some((unresolved, first)) = unresolved.zip(joining.first_mut()) {
            first.figures = Arc::clone(&unresolved.figures);
        }
        // An answer in another order is not a reason to use another address.
        let stays = |socket: SocketAddr| answer.contains(&socket);
        entry.addresses.retain(|address| address.socket.is_some_and(stays));
        entry.addresses.extend(joining);
        let after = entry.addresses.iter().filter_map(|address| address.socket).collect();
        before != after
    }

    /// If a lookup has removed `of`, returns another address of the name, and moves the turn on.
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

    /// Returns another usable address of the same host name.
    pub(super) fn sibling(&self, of: &ResolvedAddress) -> Option<ResolvedAddress> {
        let entry = self.entries.get(of.endpoint).filter(|it| it.endpoint.name == of.name)?;
        let mut others = entry.addresses.iter().filter(|other| other.id != of.id);
        let usable = others.find(|other| other.circuit.is_usable())?;
        Some(entry.resolved(of.endpoint, usable))
    }

    pub(super) fn is_over(&mut self, of: &ResolvedAddress, strategy: Strategy) -> bool {
        let Some(address) = self.address(of) else { return true };
        let works = address.circuit.is_closed() && !self.failing;
        let preferred = |(endpoint, _, address): (usize, &EndpointEntry, &AddressEntry)| {
            endpoint < of.endpoint && address.circuit.is_usable()
        };
        strategy == Strategy::Failover && works && self.all().any(preferred)
    }

    /// Returns the lookups and probes that are due now (and count as begun), and the time of the
    /// next call. A probe takes at most `limit`. A single address is never probed.
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
