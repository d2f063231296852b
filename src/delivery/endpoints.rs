//! The addresses of one output: which is used next, which are down, and what their names resolve to.
//!
//! A set holds the configured `host:port`s in order. A name stands for all addresses that it resolves to: it is looked up
//! at each dial and every [`LOOK_UP`], and each address has a circuit of its own. The set's watch probes what is down, so
//! that no event is used to find out, and sees when a name's addresses change. Those who hold connections ask
//! [`Endpoints::is_over`] whether they should end them in order, and are woken by [`Endpoints::changed`].
//!
//! An output is never kept waiting by this: where every address is down, deliveries try each of them in turn.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

mod circuit;

use super::failure::Failure;
use super::failure::ProbeError;
use crate::config::HostPort;
use crate::config::Strategy;
use crate::config::Timeouts;
use crate::net;
use crate::telemetry::AttemptError;
use circuit::Circuit;
use circuit::Fault;

/// How often a name is looked up while nothing is dialled.
const LOOK_UP: Duration = Duration::from_secs(30);

/// An answer so young is not asked for again: the lanes of an http output dial at the same moment.
const FRESH: Duration = Duration::from_secs(1);

/// Addresses of one name that are used; whoever has more has a load balancer.
const ADDRESSES_MAX: usize = 64;

/// After a panic of the watch, which begins anew then.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// Between two lines of the log about one address.
const QUIET: Duration = Duration::from_secs(60);

/// Asks the resolver. The permit is given back when that has answered.
type LookUp = dyn Fn(HostPort, OwnedSemaphorePermit) -> Answer + Send + Sync;
type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Each address of an output, with the reason why it could not be connected to, if so.
pub(crate) type Probed = Vec<(String, Result<(), ProbeError>)>;

/// A configured endpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target {
    pub(crate) name: HostPort,
    /// False where something else resolves the name: a proxy.
    pub(crate) resolved_here: bool,
}

/// The set. Shared by the output's connections, its watch and `/status`.
pub(crate) struct Endpoints {
    output: String,
    strategy: Strategy,
    timeouts: Timeouts,
    look_up: Box<LookUp>,
    state: Mutex<State>,
    version: AtomicU64,
    changed: Notify,
}

struct State {
    entries: Vec<Entry>,
    /// While everything is down each address is tried once before any is tried again: the number of that round.
    round: u64,
    /// Of `round_robin`: an index into all addresses.
    turn: usize,
    /// The last delivery failed. The next goes where one has worked: between two that try what is back one gets through.
    failing: bool,
    /// The last one that worked.
    used: Option<usize>,
    next_id: usize,
}

struct Entry {
    target: Target,
    /// When the last answer came; there is an address then.
    looked_up: Option<Instant>,
    /// When the watch asks again.
    next_lookup: Option<Instant>,
    /// One lookup at a time: a resolver that hangs keeps one thread.
    lookups: Arc<Semaphore>,
    /// Never empty: a name without known addresses has one without a socket address.
    addresses: Vec<Address>,
}

struct Address {
    /// Never given twice.
    id: usize,
    socket: Option<SocketAddr>,
    circuit: Circuit,
    /// The round in which a delivery has failed there.
    failed_in: Option<u64>,
    /// The last line of the log about it, and whether the log has it as down.
    told: Option<Instant>,
    told_down: bool,
}

/// One address of the set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    /// The index of the configured endpoint.
    pub(crate) entry: usize,
    /// The address, as long as it is in the set.
    pub(crate) id: usize,
    pub(crate) name: HostPort,
    /// `None` where it is not known here.
    pub(crate) socket: Option<SocketAddr>,
}

impl Place {
    /// Why a connection to it has failed.
    pub(crate) fn failure(&self, reason: AttemptError, what: impl fmt::Display) -> Failure {
        Failure::new(reason, format!("connection to {self}: {what}"))
    }
}

/// `host:port`, and behind it the address where it does not say that already.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        match self.socket {
            Some(socket) if self.name.host.parse() != Ok(socket.ip()) => {
                write!(f, " ({})", socket.ip())
            }
            _ => Ok(()),
        }
    }
}

/// A delivery, or a connection, that is begun at an address. Says how it went, if it can; dropped, it has ended.
pub(crate) struct Attempt {
    set: Arc<Endpoints>,
    place: Place,
    begun: Instant,
    /// It is the one that tries whether the address works again.
    tries: bool,
}

/// An address as `/status` shows it.
#[derive(Debug, Clone)]
pub struct AddressState {
    /// Host and port, and what the host resolved to.
    pub address: String,
    /// `up`; `down`; `suspect`, where it is silent while another one answers; or on trial after
    /// these.
    pub state: &'static str,
    /// The last delivery, or connection, that worked was there.
    pub used: bool,
}

impl Address {
    fn new(id: usize, socket: Option<SocketAddr>, circuit: Circuit) -> Self {
        Self { id, socket, circuit, failed_in: None, told: None, told_down: false }
    }

    /// One that joins where `self` and all others of its name are down.
    fn successor(&self, id: usize, socket: SocketAddr, now: Instant) -> Self {
        let circuit = self.circuit.of_successor(now);
        Self { told_down: self.told_down, ..Self::new(id, Some(socket), circuit) }
    }

    /// Whether a line may be written. It counts as written.
    fn may_tell(&mut self, now: Instant) -> bool {
        let may = self.told.is_none_or(|told| now.duration_since(told) >= QUIET);
        if may {
            self.told = Some(now);
        }
        may
    }

    /// Whether the log has the address as down, and a line has to say that it is up. It counts as
    /// written.
    fn is_to_be_told_up(&mut self, now: Instant) -> bool {
        let tells = std::mem::take(&mut self.told_down);
        if tells {
            self.told = Some(now);
        }
        tells
    }
}

impl Entry {
    fn place(&self, entry: usize, address: &Address) -> Place {
        Place { entry, id: address.id, name: self.target.name.clone(), socket: address.socket }
    }

    fn is_name(&self) -> bool {
        self.target.resolved_here && socket_of(&self.target.name).is_none()
    }

    fn position(&self, id: usize) -> Option<usize> {
        self.addresses.iter().position(|address| address.id == id)
    }
}

fn unresolved(name: &HostPort, what: impl fmt::Display) -> Failure {
    Failure::new(AttemptError::Resolve, format!("cannot resolve {}: {what}", name.host))
}

/// The address that a host is without a lookup.
fn socket_of(name: &HostPort) -> Option<SocketAddr> {
    name.host.parse().ok().map(|ip| SocketAddr::new(ip, name.port))
}

impl State {
    fn id(&mut self) -> usize {
        self.next_id += 1;
        self.next_id
    }

    fn address(&mut self, place: &Place) -> Option<&mut Address> {
        let entry = self.entries.get_mut(place.entry)?;
        let position = entry.position(place.id)?;
        entry.addresses.get_mut(position)
    }

    fn count(&self) -> usize {
        self.entries.iter().map(|entry| entry.addresses.len()).sum()
    }

    fn all(&self) -> impl Iterator<Item = (usize, &Entry, &Address)> {
        self.entries.iter().enumerate().flat_map(|(index, entry)| {
            entry.addresses.iter().map(move |address| (index, entry, address))
        })
    }

    fn any_closed(&self) -> bool {
        self.all().any(|(_, _, address)| address.circuit.is_closed())
    }

    /// Whether a delivery that finds none closed may go there at once.
    fn is_untried(&self, address: &Address, now: Instant) -> bool {
        address.circuit.asked_until(now).is_none() && address.failed_in != Some(self.round)
    }

    /// Whether there is something to try without a pause.
    fn is_any_left(&self, now: Instant) -> bool {
        let untried = |address: &Address| self.is_untried(address, now);
        self.any_closed() || self.all().any(|(_, _, address)| untried(address))
    }

    /// The first that `wanted` takes, from the turn on.
    fn find(&self, from: usize, wanted: impl Fn(&Address) -> bool) -> Option<(usize, Place)> {
        let count = self.count();
        let all = || self.all().enumerate();
        let behind = all().filter(|(index, _)| *index >= from);
        let before = all().take(from.min(count));
        behind
            .chain(before)
            .find(|(_, (_, _, address))| wanted(address))
            .map(|(index, (entry, of, address))| (index, of.place(entry, address)))
    }

    /// Where every address has asked for a pause: the one whose pause ends first.
    fn soonest(&self, now: Instant) -> Option<(usize, Place)> {
        let until = |address: &Address| address.circuit.asked_until(now);
        let all = self.all().enumerate();
        let soonest = all.min_by_key(|(_, (_, _, address))| until(address));
        soonest.map(|(index, (entry, of, address))| (index, of.place(entry, address)))
    }

    /// Takes the answer to a lookup; says whether it changes anything.
    fn take_answer(&mut self, entry: usize, answer: &[SocketAddr], now: Instant) -> bool {
        let new_ids: Vec<usize> = answer.iter().map(|_| self.id()).collect();
        let Some(entry) = self.entries.get_mut(entry) else { return false };
        (entry.looked_up, entry.next_lookup) = (Some(now), Some(now + LOOK_UP));
        let before: BTreeSet<_> =
            entry.addresses.iter().filter_map(|address| address.socket).collect();
        let all_down = entry.addresses.iter().all(|address| address.circuit.is_open());
        let new = |(socket, id): (&SocketAddr, usize)| match entry.addresses.first() {
            Some(first) if all_down => first.successor(id, *socket, now),
            _ => Address::new(id, Some(*socket), Circuit::new()),
        };
        let joining = answer.iter().zip(new_ids).filter(|(socket, _)| !before.contains(socket));
        let joining: Vec<_> = joining.map(new).collect();
        // Those that stay keep their place: an answer in another order is no reason to go elsewhere.
        let stays = |socket: SocketAddr| answer.contains(&socket);
        entry.addresses.retain(|address| address.socket.is_some_and(stays));
        entry.addresses.extend(joining);
        let after = entry.addresses.iter().filter_map(|address| address.socket).collect();
        before != after
    }
}

/// What the watch has to do.
enum Job {
    LookUp(Place),
    Probe(Place),
}

impl Endpoints {
    /// Empty until [`Endpoints::set`].
    pub(crate) fn new(output: &str, strategy: Strategy, timeouts: &Timeouts) -> Self {
        let state = State {
            entries: Vec::new(),
            round: 0,
            turn: 0,
            failing: false,
            used: None,
            next_id: 0,
        };
        Self {
            output: output.to_owned(),
            strategy,
            timeouts: timeouts.clone(),
            look_up: Box::new(|name, permit| Box::pin(net::resolve(name.host, name.port, permit))),
            state: Mutex::new(state),
            version: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those who wait for a change look again.
    fn wake(&self) {
        self.version.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// The endpoints as configured, in order. What is known of those that stay the same stays.
    pub(crate) fn set(&self, targets: Vec<Target>) {
        let mut state = self.lock();
        let mut old: Vec<Option<Entry>> =
            std::mem::take(&mut state.entries).into_iter().map(Some).collect();
        for (index, target) in targets.into_iter().enumerate() {
            let same = old.get_mut(index).and_then(|entry| entry.take_if(|it| it.target == target));
            let entry = same.unwrap_or_else(|| {
                let socket = if target.resolved_here { socket_of(&target.name) } else { None };
                let addresses = vec![Address::new(state.id(), socket, Circuit::new())];
                let lookups = Arc::new(Semaphore::new(1));
                Entry { target, looked_up: None, next_lookup: None, lookups, addresses }
            });
            state.entries.push(entry);
        }
        drop(state);
        self.wake();
    }

    /// Where to go next: with `failover` the first in order that works, or has to be tried again; with `round_robin` the
    /// next such. Where none is known to work each is tried once, in order; then a new round begins. `None` while the set
    /// is empty.
    pub(crate) fn pick(self: &Arc<Self>) -> Option<Attempt> {
        let now = Instant::now();
        let mut state = self.lock();
        let from = match self.strategy {
            Strategy::Failover => 0,
            Strategy::RoundRobin => state.turn,
        };
        let found = if state.any_closed() {
            let failing = state.failing;
            state.find(from, |address| {
                address.circuit.is_closed() || (!failing && address.circuit.is_usable())
            })
        } else {
            if !state.is_any_left(now) {
                state.round += 1;
            }
            state.find(from, |address| state.is_untried(address, now))
        };
        let (index, place) = found.or_else(|| state.soonest(now))?;
        state.turn = (index + 1) % state.count();
        let tries = state.address(&place).is_some_and(|address| address.circuit.take());
        drop(state);
        Some(Attempt { set: Arc::clone(self), place, begun: now, tries })
    }

    /// An attempt at a place that was not its turn.
    pub(crate) fn attempt(self: &Arc<Self>, place: Place) -> Attempt {
        Attempt { set: Arc::clone(self), place, begun: Instant::now(), tries: false }
    }

    /// The addresses that may be used, but for one: first those that are known to work, each in the
    /// order of their turns.
    pub(crate) fn others(&self, id: usize) -> Vec<Place> {
        let state = self.lock();
        let count = state.count().max(1);
        let mut others: Vec<_> = state
            .all()
            .enumerate()
            .filter(|(_, (_, _, address))| address.circuit.is_usable() && address.id != id)
            .map(|(index, (entry, of, address))| {
                let turn = (index + count - state.turn.min(count)) % count;
                ((!address.circuit.is_closed(), turn), of.place(entry, address))
            })
            .collect();
        others.sort_by_key(|(order, _)| *order);
        others.into_iter().map(|(_, place)| place).collect()
    }

    /// A delivery that is given to a place whose turn it is not.
    pub(crate) fn give(self: &Arc<Self>, place: Place) -> Attempt {
        let mut state = self.lock();
        let tries = state.address(&place).is_some_and(|address| address.circuit.take());
        drop(state);
        let mut attempt = self.attempt(place);
        attempt.tries = tries;
        attempt
    }

    /// An address has said nothing for so long, while another one works: it is passed over until it
    /// answers.
    pub(crate) fn suspect(&self, id: usize, waited: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        let all = state.all();
        let mut places = all.filter(|it| it.2.id == id).map(|it| it.1.place(it.0, it.2));
        let Some(place) = places.next() else { return };
        drop(places);
        let round = state.round;
        let Some(address) = state.address(&place) else { return };
        address.failed_in = Some(round);
        let opened = address.circuit.failed(Fault::Silent { waited }, now);
        if opened && address.may_tell(now) {
            address.told_down = true;
            let (output, address) = (&self.output, &place);
            let waited = format!("{:.1} s", waited.as_secs_f64());
            tracing::warn!(output, %address, waited, "address silent, passed over");
        }
        drop(state);
        if opened {
            self.wake();
        }
    }

    /// Makes a connection for an attempt: looks its name up, and connects to its address, or to another of the same name
    /// that is usable where that fails.
    pub(crate) async fn dial<T, F>(
        &self,
        attempt: &mut Attempt,
        connect: impl Fn(Place) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        match self.look_up(&attempt.place).await {
            Ok(()) => attempt.follow(),
            Err(failure) if attempt.place.socket.is_some() => {
                tracing::debug!(%failure, "going on with the addresses known before");
            }
            Err(failure) => return Err(failure),
        }
        loop {
            match connect(attempt.place.clone()).await {
                Err(failure) if attempt.move_on(&failure) => {}
                result => return result,
            }
        }
    }

    /// Looks every name up, connects to each address once, and says how it went. `shown` is what an endpoint is called.
    pub(crate) async fn try_all<T, F>(
        &self,
        shown: impl Fn(&Place) -> String,
        connect: impl Fn(Place) -> F,
    ) -> Probed
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut results = Vec::new();
        for place in self.places() {
            let name = shown(&place);
            if let Err(failure) = self.look_up(&place).await {
                results.push((name, Err(failure.into())));
                continue;
            }
            let mut addresses = self.places();
            addresses.retain(|other| other.entry == place.entry);
            let several = addresses.len() > 1;
            for place in addresses {
                let text = match place.socket {
                    Some(socket) if several => format!("{name} ({})", socket.ip()),
                    _ => name.clone(),
                };
                let connected = connect(place).await.map(drop);
                results.push((text, connected.map_err(ProbeError::from)));
            }
        }
        results
    }

    fn places(&self) -> Vec<Place> {
        let state = self.lock();
        state.all().map(|(index, entry, address)| entry.place(index, address)).collect()
    }

    /// Asks for the addresses of a place's name, if it is one and the last answer is not young. Where that fails, those
    /// known before stay. Whoever knows an address does not wait for a resolver that somebody else waits for.
    async fn look_up(&self, place: &Place) -> Result<(), Failure> {
        let (name, known) = (&place.name, place.socket.is_some());
        let Some(lookups) = self.lookups(place) else { return Ok(()) };
        let asking = async {
            let permit = match known {
                true => lookups.try_acquire_owned().ok()?,
                false => lookups.acquire_owned().await.ok()?,
            };
            // Somebody else may have asked while this one waited.
            self.lookups(place)?;
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
        let mut state = self.lock();
        let changed = state.entries.get(place.entry).is_some_and(|it| it.target.name == *name)
            && state.take_answer(place.entry, answer, Instant::now());
        drop(state);
        if changed {
            tracing::debug!(output = self.output, name = name.host, ?answer, "addresses changed");
            self.wake();
        }
        Ok(())
    }

    /// Where a place's name has to be looked up: the permit to do it.
    fn lookups(&self, place: &Place) -> Option<Arc<Semaphore>> {
        let state = self.lock();
        let entry = state.entries.get(place.entry)?;
        let young = entry.looked_up.is_some_and(|at| at.elapsed() < FRESH);
        (entry.is_name() && entry.target.name == place.name && !young)
            .then(|| Arc::clone(&entry.lookups))
    }

    /// Changes whenever [`Endpoints::is_over`] may.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Waits for a change after this call.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Whether the name of a place does not resolve to it any more.
    pub(crate) fn is_gone(&self, place: &Place) -> bool {
        self.lock().address(place).is_none()
    }

    /// Whether a connection that is used for everything should be ended in order: its address is gone, or one that is
    /// preferred is back. One that has not shown yet that it works is no reason to be elsewhere.
    pub(crate) fn is_over(&self, place: &Place) -> bool {
        let mut state = self.lock();
        let Some(address) = state.address(place) else { return true };
        let works = address.circuit.is_closed() && !state.failing;
        let preferred = |(entry, _, address): (usize, &Entry, &Address)| {
            entry < place.entry && address.circuit.is_usable()
        };
        self.strategy == Strategy::Failover && works && state.all().any(preferred)
    }

    /// When a connection made now should be ended in order.
    pub(crate) fn expiry(&self) -> Option<Instant> {
        let age = self.timeouts.max_connection_age?;
        Some(Instant::now() + net::jittered(age))
    }

    /// How many addresses there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().count()
    }

    /// What is known of each address.
    pub(crate) fn states(&self) -> Vec<AddressState> {
        let state = self.lock();
        let states = state.all().map(|(index, entry, address)| AddressState {
            address: entry.place(index, address).to_string(),
            state: address.circuit.name(),
            used: state.used == Some(address.id),
        });
        states.collect()
    }

    /// Probes what is down and looks names up, for ever. A probe connects and sends nothing.
    async fn watch<F>(&self, probe: &impl Fn(Place) -> F)
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let mut jobs = FuturesUnordered::new();
        loop {
            let changed = self.changed();
            let (due, wake) = self.due(Instant::now());
            jobs.extend(due.into_iter().map(|job| self.run(job, probe)));
            tokio::select! {
                Some(()) = jobs.next(), if !jobs.is_empty() => {}
                () = changed => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// What is to be done now, which counts as begun, and when to ask again. An address that is the only one is not
    /// probed: every delivery tries it.
    fn due(&self, now: Instant) -> (Vec<Job>, Instant) {
        let mut state = self.lock();
        let several = state.count() > 1;
        let (mut due, mut wake) = (Vec::new(), now + LOOK_UP);
        for (index, entry) in state.entries.iter_mut().enumerate() {
            if let Some(at) = entry.next_lookup.filter(|_| entry.is_name()) {
                if at <= now {
                    entry.next_lookup = Some(now + LOOK_UP);
                    let first = entry.addresses.first();
                    due.extend(first.map(|it| Job::LookUp(entry.place(index, it))));
                } else {
                    wake = wake.min(at);
                }
            }
            let mut probed = Vec::new();
            for address in entry.addresses.iter_mut().filter(|_| several) {
                match address.circuit.next_probe() {
                    Some(at) if at <= now => {
                        address.circuit.probing(self.timeouts.connect, now);
                        probed.push(address.id);
                    }
                    Some(at) => wake = wake.min(at),
                    None => {}
                }
            }
            let of = |id: &usize| entry.position(*id).map(|it| &entry.addresses[it]);
            due.extend(probed.iter().filter_map(of).map(|it| Job::Probe(entry.place(index, it))));
        }
        (due, wake)
    }

    async fn run<F>(&self, job: Job, probe: &impl Fn(Place) -> F)
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let (place, result) = match job {
            Job::LookUp(place) => {
                if let Err(failure) = self.look_up(&place).await {
                    tracing::debug!(%failure, "going on with the addresses known before");
                }
                return;
            }
            // All that can be tried with a name without addresses.
            Job::Probe(place) if place.socket.is_none() && self.lookups(&place).is_some() => {
                let result = self.look_up(&place).await;
                (place, result)
            }
            Job::Probe(place) => (place.clone(), probe(place).await),
        };
        if let Err(failure) = &result {
            tracing::debug!(output = self.output, %failure, "still down");
        }
        let now = Instant::now();
        let mut state = self.lock();
        let Some(address) = state.address(&place) else { return };
        let down_since = address.circuit.open_since();
        if address.circuit.probed(result.is_ok(), now) {
            let tells = address.is_to_be_told_up(now);
            drop(state);
            if tells {
                self.tell_up(&place, down_since, now);
            }
            self.wake();
        }
    }

    fn tell_up(&self, place: &Place, since: Option<Instant>, now: Instant) {
        let after = since.map_or(Duration::ZERO, |since| now.duration_since(since));
        let after = format!("{:.1} s", after.as_secs_f64());
        tracing::info!(output = self.output, address = %place, after, "address up again");
    }
}

impl Attempt {
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Notes that it failed; says whether there is another address to try at once.
    pub(crate) fn failed(&self, failure: &Failure) -> bool {
        // Of a connection's life only the end was waiting.
        let late = failure.reason == AttemptError::Timeout;
        let waited = if late { self.begun.elapsed() } else { Duration::ZERO };
        let waited = waited.min(self.set.timeouts.request);
        self.note(failure, Fault::Failed { asked: failure.retry_after, waited })
    }

    /// Notes that the consumer refused what others may take; likewise. Where nobody is left who has not refused it, it was
    /// no consumer's fault.
    pub(crate) fn refused(&self, failure: &Failure) -> bool {
        let left = self.note(failure, Fault::Refused);
        if !left {
            let mut state = self.set.lock();
            state.failing = false;
            let all = state.entries.iter_mut().flat_map(|entry| &mut entry.addresses);
            for address in all {
                if address.circuit.forgive() {
                    address.told_down = false;
                }
            }
            drop(state);
            self.set.wake();
        }
        left
    }

    fn note(&self, failure: &Failure, fault: Fault) -> bool {
        let now = Instant::now();
        let mut state = self.set.lock();
        let several = state.count() > 1;
        let (mut opened, mut tells) = (false, false);
        state.failing = true;
        let round = state.round;
        if let Some(address) = state.address(&self.place) {
            address.failed_in = Some(round);
            opened = address.circuit.failed(fault, now);
            tells = opened && several && address.may_tell(now);
            address.told_down |= tells;
        }
        let left = state.is_any_left(now);
        drop(state);
        if tells {
            let (reason, error) = (failure.reason.name(), &failure.message);
            let (output, address) = (&self.set.output, &self.place);
            tracing::warn!(output, %address, reason, error, "address down, passed over");
        }
        if opened {
            self.set.wake();
        }
        left
    }

    /// Notes that it succeeded.
    pub(crate) fn succeeded(&self) {
        let now = Instant::now();
        let mut state = self.set.lock();
        let Some(address) = state.address(&self.place) else { return };
        let down_since = address.circuit.open_since();
        let closed = address.circuit.succeeded(self.begun, now);
        let tells = closed && address.is_to_be_told_up(now);
        state.used = Some(self.place.id);
        state.failing = false;
        drop(state);
        if tells {
            self.set.tell_up(&self.place, down_since, now);
        }
        if closed {
            self.set.wake();
        }
    }

    /// Notes that there is a connection, for `/status`.
    pub(crate) fn connected(&self) {
        self.set.lock().used = Some(self.place.id);
    }

    /// After a lookup: where the address is gone, another of the same name.
    fn follow(&mut self) {
        let mut state = self.set.lock();
        let Some(entry) = state.entries.get(self.place.entry) else { return };
        if entry.position(self.place.id).is_some() || entry.target.name != self.place.name {
            return;
        }
        let mut usable = entry.addresses.iter().filter(|address| address.circuit.is_usable());
        let Some(address) = usable.next().or(entry.addresses.first()) else { return };
        self.place = entry.place(self.place.entry, address);
        let index = state.all().position(|(_, _, address)| address.id == self.place.id);
        state.turn = index.map_or(0, |index| (index + 1) % state.count());
        self.tries = state.address(&self.place).is_some_and(|address| address.circuit.take());
    }

    /// The address can't be connected to: goes to another of the same name if one is usable.
    fn move_on(&mut self, failure: &Failure) -> bool {
        let state = self.set.lock();
        let entry = state.entries.get(self.place.entry);
        let next = entry.filter(|entry| entry.target.name == self.place.name).and_then(|entry| {
            let mut others = entry.addresses.iter().filter(|other| other.id != self.place.id);
            let usable = others.find(|other| other.circuit.is_usable())?;
            Some(entry.place(self.place.entry, usable))
        });
        drop(state);
        let Some(next) = next else { return false };
        self.failed(failure);
        self.release();
        self.tries = self.set.lock().address(&next).is_some_and(|address| address.circuit.take());
        (self.place, self.begun) = (next, Instant::now());
        true
    }

    fn release(&mut self) {
        if std::mem::take(&mut self.tries)
            && let Some(address) = self.set.lock().address(&self.place)
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

/// The task that watches a set. Owned by what makes the output's connections, and ends with it.
#[derive(Default)]
pub(crate) struct Watch {
    task: JoinSet<()>,
}

impl Watch {
    /// Begins to watch, unless it does already.
    pub(crate) fn start<F>(
        &mut self,
        set: &Arc<Endpoints>,
        probe: impl Fn(Place) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        if self.task.is_empty() {
            let set = Arc::clone(set);
            self.task.spawn(async move {
                // Without it, no address that is down would be looked at again.
                while AssertUnwindSafe(set.watch(&probe)).catch_unwind().await.is_err() {
                    tracing::error!(output = set.output, "the watch over addresses begins anew");
                    tokio::time::sleep(WATCH_PAUSE).await;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;
