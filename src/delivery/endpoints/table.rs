//! All addresses of an output, and whose turn it is. No I/O and no clock: callers pass the time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::address::Endpoint;
use super::address::ResolvedAddress;
use super::circuit::Circuit;
use super::circuit::Fault;
use crate::config::Strategy;

/// How often a name is looked up while nothing is dialled.
pub(super) const LOOK_UP: Duration = Duration::from_secs(30);

/// The shortest time between two log lines about one address.
const QUIET: Duration = Duration::from_secs(60);

/// The endpoints of one output in order, with the addresses of each. Owned by the set.
///
/// All addresses of all endpoints together form one list, in order. An *index* is a place in that
/// list, and changes when addresses join or leave; an *id* belongs to one address for ever.
#[derive(Default)]
pub(super) struct AddressTable {
    entries: Vec<EndpointEntry>,
    /// The number of the current round. While no address is known to work, each address is tried
    /// once in a round before any address is tried again.
    round: u64,
    /// The index of the address whose turn is next, with `round_robin`.
    turn: usize,
    /// `true` if the last delivery failed. The next delivery then goes to an address that is known
    /// to work: of two deliveries that follow each other, one that is not a trial gets through.
    pub(super) failing: bool,
    /// The id of the address where the last delivery, or connection, worked; `None` if none worked
    /// yet.
    pub(super) used: Option<usize>,
    /// The id that was given to the newest address.
    last_id: usize,
}

/// A configured endpoint and its addresses.
struct EndpointEntry {
    endpoint: Endpoint,
    /// When the resolver last answered for the name; `None` before the first answer. After an
    /// answer the endpoint has at least one address.
    looked_up: Option<Instant>,
    /// When the watch looks the name up next; `None` before the first answer.
    next_lookup: Option<Instant>,
    /// A semaphore with one permit, so that only one lookup of the name runs at a time: a resolver
    /// that hangs then blocks only one thread.
    lookups: Arc<Semaphore>,
    /// The addresses of the endpoint, never empty: a name without known addresses has one entry
    /// without a socket address.
    addresses: Vec<AddressEntry>,
}

/// One address of an endpoint, with its circuit and its log state.
pub(super) struct AddressEntry {
    /// The address's id, which is never given to another address.
    pub(super) id: usize,
    pub(super) socket: Option<SocketAddr>,
    pub(super) circuit: Circuit,
    /// The last round in which a delivery failed at this address; `None` if none did.
    failed_in: Option<u64>,
    /// When the log last had a line about the address; `None` if it never had.
    told: Option<Instant>,
    /// `true` if the last line in the log says that the address is down.
    told_down: bool,
}

/// Work for the task that watches over the addresses of an output.
pub(super) enum Job {
    /// Look up the name of this address.
    LookUp(ResolvedAddress),
    /// Connect to this address, to see whether it is back.
    Probe(ResolvedAddress),
}

/// What follows from a failure at an address, for the caller to do.
pub(super) struct Noted {
    /// `true` if the failure has opened the address's circuit.
    pub(super) opened: bool,
    /// `true` if the log is due a line about the failure. The line counts as written.
    pub(super) tells: bool,
    /// `true` if another address is left that may be tried without a pause.
    pub(super) left: bool,
}

impl AddressEntry {
    fn new(id: usize, socket: Option<SocketAddr>, circuit: Circuit) -> Self {
        Self { id, socket, circuit, failed_in: None, told: None, told_down: false }
    }

    /// Makes the entry of an address that joins an endpoint while all addresses of the endpoint,
    /// `self` among them, are down.
    fn successor(&self, id: usize, socket: SocketAddr, now: Instant) -> Self {
        let circuit = self.circuit.of_successor(now);
        Self { told_down: self.told_down, ..Self::new(id, Some(socket), circuit) }
    }

    /// Returns `true` if a log line may be written about the address now. The caller must write the
    /// line: it counts as written.
    fn may_tell(&mut self, now: Instant) -> bool {
        let may = self.told.is_none_or(|told| now.duration_since(told) >= QUIET);
        if may {
            self.told = Some(now);
        }
        may
    }

    /// Returns whether a line has to say that the address is up, because the last line says that it
    /// is down. The line counts as written.
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
        let (id, socket) = (address.id, address.socket);
        ResolvedAddress { endpoint, id, name: self.endpoint.name.clone(), socket }
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

    /// Replaces the endpoints. An endpoint that is the same at the same place keeps all that is
    /// known about it.
    pub(super) fn set(&mut self, endpoints: Vec<Endpoint>) {
        let mut old: Vec<Option<EndpointEntry>> =
            std::mem::take(&mut self.entries).into_iter().map(Some).collect();
        for (index, endpoint) in endpoints.into_iter().enumerate() {
            let same =
                old.get_mut(index).and_then(|entry| entry.take_if(|it| it.endpoint == endpoint));
            let entry = same.unwrap_or_else(|| {
                let socket = if endpoint.resolved_here { endpoint.literal() } else { None };
                let addresses = vec![AddressEntry::new(self.new_id(), socket, Circuit::new())];
                let lookups = Arc::new(Semaphore::new(1));
                EndpointEntry { endpoint, looked_up: None, next_lookup: None, lookups, addresses }
            });
            self.entries.push(entry);
        }
    }

    /// Returns the entry of an address; `None` if the address has left the set.
    pub(super) fn address(&mut self, of: &ResolvedAddress) -> Option<&mut AddressEntry> {
        let entry = self.entries.get_mut(of.endpoint)?;
        let position = entry.position(of.id)?;
        entry.addresses.get_mut(position)
    }

    /// The number of addresses.
    pub(super) fn count(&self) -> usize {
        self.entries.iter().map(|entry| entry.addresses.len()).sum()
    }

    fn all(&self) -> impl Iterator<Item = (usize, &EndpointEntry, &AddressEntry)> {
        self.entries.iter().enumerate().flat_map(|(index, entry)| {
            entry.addresses.iter().map(move |address| (index, entry, address))
        })
    }

    /// Returns every address in order, with its entry.
    pub(super) fn resolved(&self) -> impl Iterator<Item = (ResolvedAddress, &AddressEntry)> {
        self.all().map(|(index, entry, address)| (entry.resolved(index, address), address))
    }

    fn any_closed(&self) -> bool {
        self.all().any(|(_, _, address)| address.circuit.is_closed())
    }

    /// Returns whether a delivery may go to an address at once, if no address is known to work: the
    /// address was not tried in this round, and has not asked for a pause.
    fn is_untried(&self, address: &AddressEntry, now: Instant) -> bool {
        address.circuit.asked_until(now).is_none() && address.failed_in != Some(self.round)
    }

    /// Returns whether there is an address to try without a pause.
    fn is_any_left(&self, now: Instant) -> bool {
        let untried = |address: &AddressEntry| self.is_untried(address, now);
        self.any_closed() || self.all().any(|(_, _, address)| untried(address))
    }

    /// Returns the first address that `wanted` accepts, with its index. The search begins at the
    /// index `from`, and goes on from the beginning of the list.
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

    /// Returns the address whose requested pause ends first, with its index. Called when every
    /// address has asked for a pause.
    fn soonest(&self, now: Instant) -> Option<(usize, ResolvedAddress)> {
        let until = |address: &AddressEntry| address.circuit.asked_until(now);
        let all = self.all().enumerate();
        let soonest = all.min_by_key(|(_, (_, _, address))| until(address));
        soonest.map(|(index, (endpoint, of, address))| (index, of.resolved(endpoint, address)))
    }

    /// Picks the address of the next delivery, and passes the turn on. The `bool` is `true` if the
    /// delivery is the one that tries whether the address works again. `None` while there is no
    /// address.
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

    /// Notes that a delivery begins at an address. Returns `true` if it is the one that tries
    /// whether the address works again.
    pub(super) fn take(&mut self, address: &ResolvedAddress) -> bool {
        self.address(address).is_some_and(|address| address.circuit.take())
    }

    /// The addresses that may be used, except for the one with this id: first those that are known
    /// to work, each group in the order of their turns.
    pub(super) fn others(&self, id: usize) -> Vec<ResolvedAddress> {
        let count = self.count().max(1);
        let mut others: Vec<_> = self
            .all()
            .enumerate()
            .filter(|(_, (_, _, address))| address.circuit.is_usable() && address.id != id)
            .map(|(index, (endpoint, of, address))| {
                let turn = (index + count - self.turn.min(count)) % count;
                ((!address.circuit.is_closed(), turn), of.resolved(endpoint, address))
            })
            .collect();
        others.sort_by_key(|(order, _)| *order);
        others.into_iter().map(|(_, address)| address).collect()
    }

    /// Notes a failure of a delivery, or of a connection, at an address.
    pub(super) fn failed(&mut self, of: &ResolvedAddress, fault: Fault, now: Instant) -> Noted {
        let several = self.count() > 1;
        let (mut opened, mut tells) = (false, false);
        self.failing = true;
        let round = self.round;
        if let Some(address) = self.address(of) {
            address.failed_in = Some(round);
            opened = address.circuit.failed(fault, now);
            tells = opened && several && address.may_tell(now);
            address.told_down |= tells;
        }
        Noted { opened, tells, left: self.is_any_left(now) }
    }

    /// Notes that the address with this id is silent while another one works. Returns the address,
    /// and what follows; `None` if the address has left the set.
    pub(super) fn silent(
        &mut self,
        id: usize,
        waited: Duration,
        now: Instant,
    ) -> Option<(ResolvedAddress, Noted)> {
        let (of, _) = self.resolved().find(|(of, _)| of.id == id)?;
        let round = self.round;
        let address = self.address(&of)?;
        address.failed_in = Some(round);
        let opened = address.circuit.failed(Fault::Silent { waited }, now);
        let tells = opened && address.may_tell(now);
        address.told_down |= tells;
        Some((of, Noted { opened, tells, left: true }))
    }

    /// Lifts every refusal: no consumer takes the events that were refused, so no consumer is at
    /// fault.
    pub(super) fn forgive(&mut self) {
        self.failing = false;
        for address in self.entries.iter_mut().flat_map(|entry| &mut entry.addresses) {
            if address.circuit.forgive() {
                address.told_down = false;
            }
        }
    }

    /// The permits for looking up an address's name. `None` if there is nothing to look up: the
    /// host is an IP address, a proxy resolves it, its endpoint has left the set, or the last
    /// answer is younger than `fresh`.
    pub(super) fn lookups(&self, of: &ResolvedAddress, fresh: Duration) -> Option<Arc<Semaphore>> {
        let entry = self.entries.get(of.endpoint)?;
        let young = entry.looked_up.is_some_and(|at| at.elapsed() < fresh);
        (entry.endpoint.needs_lookup() && entry.endpoint.name == of.name && !young)
            .then(|| Arc::clone(&entry.lookups))
    }

    /// Takes the resolver's answer for the name of an address. Returns `true` if the addresses of
    /// the name have changed.
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
            _ => AddressEntry::new(id, Some(*socket), Circuit::new()),
        };
        let joining = answer.iter().zip(new_ids).filter(|(socket, _)| !before.contains(socket));
        let joining: Vec<_> = joining.map(new).collect();
        // Addresses that stay keep their order: an answer in another order is no reason to use
        // another address.
        let stays = |socket: SocketAddr| answer.contains(&socket);
        entry.addresses.retain(|address| address.socket.is_some_and(stays));
        entry.addresses.extend(joining);
        let after = entry.addresses.iter().filter_map(|address| address.socket).collect();
        before != after
    }

    /// Returns another address of the same name if, after a lookup, this address has left the set.
    /// The turn passes on to the address after the returned one. `None`: this address is still in
    /// the set.
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

    /// Returns another usable address of the same name; `None` if there is none.
    pub(super) fn sibling(&self, of: &ResolvedAddress) -> Option<ResolvedAddress> {
        let entry = self.entries.get(of.endpoint).filter(|it| it.endpoint.name == of.name)?;
        let mut others = entry.addresses.iter().filter(|other| other.id != of.id);
        let usable = others.find(|other| other.circuit.is_usable())?;
        Some(entry.resolved(of.endpoint, usable))
    }

    /// Returns whether a connection that carries all events should be ended in order: its address
    /// has left the set, or, with `failover`, an endpoint before its own is usable again. A
    /// connection whose own address has not yet shown that it works, or where deliveries fail, is
    /// not ended for the latter.
    pub(super) fn is_over(&mut self, of: &ResolvedAddress, strategy: Strategy) -> bool {
        let Some(address) = self.address(of) else { return true };
        let works = address.circuit.is_closed() && !self.failing;
        let preferred = |(endpoint, _, address): (usize, &EndpointEntry, &AddressEntry)| {
            endpoint < of.endpoint && address.circuit.is_usable()
        };
        strategy == Strategy::Failover && works && self.all().any(preferred)
    }

    /// Returns the work that is due now, which counts as begun, and the time when to call this
    /// again. A probe takes at most `limit`. A single address is not probed, because every delivery
    /// tries it anyway.
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
