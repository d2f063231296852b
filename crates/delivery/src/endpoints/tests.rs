//! Tests of the set with simulated consumers, resolvers and time.
//!
//! A `World` holds a resolver, and consumers that work, refuse connections, fall silent or respond
//! with errors. A `Bench` is a set in that world, with its watch. Time is paused: a test of a day
//! takes less than a second.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::circuit::{HOLD_MAX, HOLD_MIN, PAUSE_MAX};
use super::table::LOOK_UP;
use super::*;
use crate::failure::Failure;
use client::names::Names;
use config::{HostPort, Strategy, Timeouts};
use telemetry::{AttemptError, status};
use testing::{Failing, seeds};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mood {
    Good,
    /// The consumer refuses connections.
    Away,
    /// The consumer takes connections and never responds to deliveries.
    Silent,
    /// The consumer responds to deliveries with an error.
    Errs,
}

/// The consumers, by address, and the resolver.
#[derive(Default)]
struct World {
    consumers: Mutex<BTreeMap<SocketAddr, Mood>>,
    /// The addresses of each name. `None` stands for a resolver that never answers.
    names: Mutex<BTreeMap<String, Option<Vec<SocketAddr>>>>,
    /// The time that the resolver needs for an answer.
    needs: Mutex<Duration>,
    lookups: AtomicU64,
    probes: AtomicU64,
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, number), 514))
}

fn failure(reason: AttemptError) -> Failure {
    Failure::new(reason, "simulated")
}

impl World {
    fn set(&self, number: u8, mood: Mood) {
        self.consumers.lock().unwrap().insert(address(number), mood);
    }

    fn name(&self, host: &str, numbers: Option<&[u8]>) {
        let answer = numbers.map(|numbers| numbers.iter().map(|it| address(*it)).collect());
        self.names.lock().unwrap().insert(host.to_owned(), answer);
    }

    fn mood(&self, address: &ResolvedAddress) -> Mood {
        let socket = address.socket.expect("nothing but a name");
        self.consumers.lock().unwrap().get(&socket).copied().unwrap_or(Mood::Good)
    }

    fn connect(&self, address: &ResolvedAddress) -> Result<(), Failure> {
        match self.mood(address) {
            Mood::Away => Err(failure(AttemptError::Connect)),
            Mood::Good | Mood::Silent | Mood::Errs => Ok(()),
        }
    }
}

/// A set whose watch runs.
struct Bench {
    world: Arc<World>,
    set: Arc<Endpoints>,
    _watch: Watch,
}

const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(5),
    request: Duration::from_secs(60),
    max_connection_age: None,
};

impl Bench {
    /// Starts a set of these names or IP addresses, in this order, with its watch.
    fn start(hosts: &[&str], strategy: Strategy) -> Self {
        let world = Arc::new(World::default());
        let mut set = Endpoints::new("output", strategy, &TIMEOUTS);
        let resolver = Arc::clone(&world);
        set.names = Arc::new(Names::new(move |name| {
            let world = Arc::clone(&resolver);
            Box::pin(async move {
                world.lookups.fetch_add(1, Ordering::Relaxed);
                let needs = *world.needs.lock().unwrap();
                tokio::time::sleep(needs).await;
                let answer = world.names.lock().unwrap().get(&name.host).cloned();
                match answer {
                    None => Err(io::Error::new(io::ErrorKind::NotFound, "no such name")),
                    Some(None) => std::future::pending().await,
                    Some(Some(answer)) => Ok(answer),
                }
            })
        }));
        let endpoint = |host: &&str| Endpoint {
            name: HostPort { host: (*host).to_owned(), port: 514 },
            resolved_here: true,
        };
        set.set(hosts.iter().map(endpoint).collect());
        let set = Arc::new(set);
        let mut watch = Watch::default();
        let prober = Arc::clone(&world);
        watch.start(&set, move |address| {
            prober.probes.fetch_add(1, Ordering::Relaxed);
            std::future::ready(prober.connect(&address))
        });
        Self { world, set, _watch: watch }
    }

    fn three(strategy: Strategy) -> Self {
        Self::start(&["10.0.0.1", "10.0.0.2", "10.0.0.3"], strategy)
    }

    fn pick(&self) -> Attempt {
        self.set.pick().expect("there are addresses")
    }

    /// Returns the number of the consumer of the next delivery, which ends without a result.
    fn next(&self) -> u8 {
        number(self.pick().address())
    }

    /// Makes the next delivery fail. Returns its consumer, and `true` if another address is left.
    fn fail(&self) -> (u8, bool) {
        self.fail_for(None)
    }

    /// Does the same as [`Bench::fail`] for a consumer that asks for a pause.
    fn fail_for(&self, retry_after: Option<Duration>) -> (u8, bool) {
        let attempt = self.pick();
        let failure = Failure { retry_after, ..failure(AttemptError::Status5xx) };
        let left = attempt.failed(&failure);
        (number(attempt.address()), left)
    }

    fn succeed(&self) -> u8 {
        let attempt = self.pick();
        attempt.succeeded();
        number(attempt.address())
    }

    /// Makes a delivery as an output does: dials, and waits for a response. Returns the consumer (0
    /// if there was no address), and for a failure `true` if another address is left.
    async fn deliver(&self) -> (u8, Result<(), bool>) {
        let mut attempt = self.pick();
        let world = &self.world;
        let connect = |address: ResolvedAddress| std::future::ready(world.connect(&address));
        let mut result = self.set.dial(&mut attempt, connect).await;
        if result.is_ok() {
            result = match world.mood(attempt.address()) {
                Mood::Good => Ok(()),
                Mood::Errs => Err(failure(AttemptError::Status5xx)),
                Mood::Silent | Mood::Away => {
                    let begun = Instant::now();
                    while begun.elapsed() < attempt.patience() {
                        tokio::time::sleep(SECOND).await;
                    }
                    Err(failure(AttemptError::Timeout))
                }
            };
        }
        let number = attempt.address().socket.map_or(0, |_| number(attempt.address()));
        match result {
            Ok(()) => {
                attempt.succeeded();
                (number, Ok(()))
            }
            Err(failure) => (number, Err(attempt.failed(&failure))),
        }
    }
}

/// Returns the last byte of an IP address, by which the tests name a consumer.
fn number(address: &ResolvedAddress) -> u8 {
    match address.socket {
        Some(SocketAddr::V4(address)) => address.ip().octets()[3],
        other => panic!("{other:?}"),
    }
}

/// Waits for this time, and then until the watch has run.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn failover_keeps_to_the_first_that_works_and_comes_back_to_it_once_it_has_answered() {
    let bench = Bench::three(Strategy::Failover);
    assert_eq!((bench.succeed(), bench.succeed()), (1, 1));
    bench.world.set(1, Mood::Away);
    assert_eq!(bench.fail(), (1, true));
    assert_eq!((bench.succeed(), bench.succeed()), (2, 2));
    // No delivery tests an unreachable consumer, however much time passes.
    pass(HOLD_MIN * 100).await;
    assert_eq!(bench.next(), 2);
    bench.world.set(1, Mood::Good);
    pass(HOLD_MIN - SECOND).await;
    assert_eq!(bench.next(), 2);
    pass(PAUSE_MAX + SECOND).await;
    assert_eq!(bench.next(), 1);
}

#[tokio::test(start_paused = true)]
async fn when_all_are_down_each_is_tried_once_before_any_is_again() {
    let bench = Bench::three(Strategy::Failover);
    assert_eq!((bench.fail(), bench.fail(), bench.fail()), ((1, true), (2, true), (3, false)));
    assert_eq!((bench.fail(), bench.fail(), bench.fail()), ((1, true), (2, true), (3, false)));
    assert_eq!(bench.fail(), (1, true));
    // An address that works is used again. When it fails, the rest of the round is tried.
    assert_eq!((bench.succeed(), bench.succeed()), (2, 2));
    assert_eq!(bench.fail(), (2, true));
    assert_eq!(bench.fail(), (3, false));
}

#[tokio::test(start_paused = true)]
async fn round_robin_takes_turns_and_passes_over_what_failed() {
    let bench = Bench::three(Strategy::RoundRobin);
    let turns: Vec<_> = (0..4).map(|_| bench.succeed()).collect();
    assert_eq!(turns, [1, 2, 3, 1]);
    bench.world.set(2, Mood::Away);
    assert_eq!(bench.fail(), (2, true));
    let turns: Vec<_> = (0..4).map(|_| bench.succeed()).collect();
    assert_eq!(turns, [3, 1, 3, 1]);
    bench.world.set(2, Mood::Good);
    pass(HOLD_MIN + PAUSE_MAX).await;
    let turns: Vec<_> = (0..4).map(|_| bench.succeed()).collect();
    assert_eq!(turns, [2, 3, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn who_refuses_what_another_takes_is_passed_over_and_who_refuses_what_nobody_takes_is_not() {
    let bench = Bench::three(Strategy::RoundRobin);
    let refuse = || {
        let attempt = bench.pick();
        (number(attempt.address()), attempt.refused(&failure(AttemptError::Status4xx)))
    };
    assert_eq!(refuse(), (1, true));
    assert_eq!((bench.succeed(), bench.succeed(), bench.succeed()), (2, 3, 2));
    assert_eq!((refuse(), refuse()), ((3, true), (2, false)));
    let turns: BTreeSet<_> = (0..3).map(|_| bench.succeed()).collect();
    assert_eq!(turns, BTreeSet::from([1, 2, 3]));
    // An address that has failed in another way is not forgiven.
    assert!(bench.fail().1);
    assert_eq!((refuse().1, refuse().1), (true, false));
    let turns: BTreeSet<_> = (0..3).map(|_| bench.succeed()).collect();
    assert_eq!(turns.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_fails_alone_again_takes_no_address_away_from_the_others() {
    let bench = Bench::three(Strategy::Failover);
    let turn_down = || {
        let attempt = bench.pick();
        (number(attempt.address()), attempt.turned_down(&failure(AttemptError::Timeout)))
    };
    assert_eq!((bench.succeed(), turn_down(), turn_down()), (1, (1, false), (1, false)));
    assert_eq!(bench.succeed(), 1);
    // If no address is known to work, each takes its turn.
    assert_eq!((bench.fail(), bench.fail(), bench.fail()), ((1, true), (2, true), (3, false)));
    assert_eq!((turn_down(), turn_down(), turn_down()), ((1, true), (2, true), (3, false)));
    assert_eq!(bench.succeed(), 1);
}

/// A refused event is not tried at an address that does not respond.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_final_if_no_other_address_works() {
    let bench = Bench::start(&["10.0.0.1", "10.0.0.2"], Strategy::RoundRobin);
    assert_eq!((bench.succeed(), bench.fail()), (1, (2, true)));
    let attempt = bench.pick();
    let refused = attempt.refused(&failure(AttemptError::Status4xx));
    assert_eq!((number(attempt.address()), refused), (1, false));
    assert_eq!(bench.succeed(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_asks_for_a_pause_gets_it_though_others_fail() {
    let bench = Bench::start(&["10.0.0.1", "10.0.0.2"], Strategy::Failover);
    assert_eq!(bench.fail_for(Some(SECOND * 120)), (1, true));
    bench.world.set(2, Mood::Away);
    for _ in 0..5 {
        assert_eq!(bench.fail(), (2, false));
        pass(SECOND * 20).await;
    }
    pass(SECOND * 21).await;
    assert_eq!(bench.next(), 1);
    // All addresses have asked for a pause: the one whose pause ends first is next.
    assert_eq!(bench.fail_for(Some(SECOND * 60)).0, 1);
    assert_eq!(bench.fail_for(Some(SECOND * 30)), (2, false));
    assert_eq!(bench.next(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_waited_for_less_long_while_another_address_may_be_used() {
    let single = Bench::start(&["10.0.0.1"], Strategy::Failover);
    assert_eq!(single.pick().patience(), TIMEOUTS.request);
    for strategy in [Strategy::Failover, Strategy::RoundRobin] {
        let bench = Bench::start(&["10.0.0.1", "10.0.0.2"], strategy);
        let first = bench.pick();
        assert_eq!((number(first.address()), first.patience()), (1, UNANSWERED_MAX));
        // The patience follows the state of the other address.
        let other = bench.set.attempt(bench.set.addresses().remove(1));
        bench.world.set(2, Mood::Away);
        assert!(other.failed(&failure(AttemptError::Connect)));
        assert_eq!((first.patience(), other.patience()), (TIMEOUTS.request, UNANSWERED_MAX));
        bench.world.set(2, Mood::Good);
        pass(HOLD_MIN + PAUSE_MAX * 2).await;
        assert_eq!(first.patience(), UNANSWERED_MAX);
        // An address without a response to a request is back when it accepts connections, but only
        // a response to a later request shows that it responds.
        other.succeeded();
        bench.world.set(2, Mood::Silent);
        pass(UNANSWERED_MAX).await;
        assert!(other.failed(&failure(AttemptError::Timeout)));
        pass((HOLD_MAX + PAUSE_MAX) * 2).await;
        assert_eq!(bench.set.states()[1].state, "back, on trial");
        assert_eq!((first.patience(), other.patience()), (TIMEOUTS.request, UNANSWERED_MAX));
        other.succeeded();
        assert_eq!(first.patience(), UNANSWERED_MAX);
        // A shorter `timeouts.request` stays as it is.
        let short = Timeouts { request: SECOND, ..TIMEOUTS };
        let set = Arc::new(Endpoints::new("output", strategy, &short));
        let endpoint = |host: &str| Endpoint {
            name: HostPort { host: host.to_owned(), port: 514 },
            resolved_here: true,
        };
        set.set(vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")]);
        assert_eq!(set.pick().unwrap().patience(), SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_address_is_always_the_next_and_never_probed() {
    let bench = Bench::start(&["10.0.0.1"], Strategy::Failover);
    bench.world.set(1, Mood::Away);
    for _ in 0..10 {
        assert_eq!(bench.fail(), (1, false));
        pass(SECOND * 20).await;
    }
    assert_eq!(bench.world.probes.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_back_is_tried_by_one_delivery_while_others_go_elsewhere() {
    let bench = Bench::three(Strategy::Failover);
    assert_eq!(bench.fail(), (1, true));
    pass(HOLD_MIN + PAUSE_MAX).await;
    // The first delivery after the failure goes to an address that works.
    assert_eq!(bench.succeed(), 2);
    let trial = bench.pick();
    assert_eq!(number(trial.address()), 1);
    assert_eq!((bench.succeed(), bench.next()), (2, 2));
    // The trial ends without a result, like a connection that carried nothing.
    drop(trial);
    assert_eq!(bench.succeed(), 1);
    assert_eq!(bench.next(), 1);
    let (one, other) = (bench.pick(), bench.pick());
    assert_eq!((number(one.address()), number(other.address())), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn connections_are_over_when_a_better_address_is_there_and_not_before() {
    let bench = Bench::three(Strategy::Failover);
    bench.world.set(1, Mood::Away);
    assert_eq!(bench.fail(), (1, true));
    let second = bench.pick();
    second.succeeded();
    let over = |attempt: &Attempt| bench.set.is_over(attempt.address());
    pass(HOLD_MIN * 3).await;
    assert!(!over(&second));
    bench.world.set(1, Mood::Good);
    let changed = bench.set.changed();
    pass(HOLD_MIN + PAUSE_MAX).await;
    assert!(over(&second));
    tokio::time::timeout(SECOND, changed).await.expect("those who wait were woken");
    // For `round_robin`, all addresses are equal, so none is better.
    let bench = Bench::three(Strategy::RoundRobin);
    assert_eq!(bench.fail(), (1, true));
    let second = bench.pick();
    pass(HOLD_MIN + PAUSE_MAX).await;
    assert!(!bench.set.is_over(second.address()));
}

#[tokio::test(start_paused = true)]
async fn a_name_stands_for_all_its_addresses_and_is_looked_up_at_each_dial() {
    let bench = Bench::start(&["logs", "10.0.0.9"], Strategy::Failover);
    bench.world.name("logs", Some(&[1, 2]));
    bench.world.set(1, Mood::Away);
    // One attempt tries both addresses of the name, so it succeeds.
    assert_eq!(bench.deliver().await, (2, Ok(())));
    assert_eq!(bench.set.count(), 3);
    let shown: Vec<_> = bench.set.states().into_iter().map(|it| (it.address, it.state)).collect();
    let expected = [
        ("logs:514 (10.0.0.1)", "down"),
        ("logs:514 (10.0.0.2)", "up"),
        ("10.0.0.9:514", "unknown"),
    ];
    assert_eq!(shown, expected.map(|(address, state)| (address.to_owned(), state.to_owned())));
    // The resolver gives another answer, in another order, and the address in use stays.
    bench.world.name("logs", Some(&[3, 2]));
    pass(SECOND * 2).await;
    assert_eq!(bench.deliver().await, (2, Ok(())));
    bench.world.name("logs", Some(&[3]));
    pass(SECOND * 2).await;
    assert_eq!(bench.deliver().await, (3, Ok(())));
    // If the resolver fails, the known addresses are used. If it does not answer, only the first
    // delivery waits for it.
    let lookups = bench.world.lookups.load(Ordering::Relaxed);
    bench.world.names.lock().unwrap().clear();
    pass(SECOND * 2).await;
    assert_eq!(bench.deliver().await, (3, Ok(())));
    bench.world.name("logs", None);
    for wait in [TIMEOUTS.connect, Duration::ZERO, Duration::ZERO] {
        let begun = Instant::now();
        assert_eq!(bench.deliver().await, (3, Ok(())));
        assert_eq!(begun.elapsed(), wait);
    }
    assert_eq!(bench.world.lookups.load(Ordering::Relaxed), lookups + 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_looked_up_again_while_nothing_is_dialled() {
    let bench = Bench::start(&["logs"], Strategy::Failover);
    bench.world.name("logs", Some(&[1]));
    assert_eq!(bench.deliver().await, (1, Ok(())));
    let connection = bench.pick();
    bench.world.name("logs", Some(&[1, 2]));
    pass(LOOK_UP + SECOND).await;
    assert!(!bench.set.is_over(connection.address()) && !bench.set.is_gone(connection.address()));
    bench.world.names.lock().unwrap().clear();
    pass(LOOK_UP * 3).await;
    assert!(!bench.set.is_gone(connection.address()), "errors change nothing");
    bench.world.name("logs", Some(&[2]));
    let changed = bench.set.changed();
    pass(LOOK_UP + SECOND).await;
    assert!(bench.set.is_over(connection.address()) && bench.set.is_gone(connection.address()));
    tokio::time::timeout(SECOND, changed).await.expect("those who wait were woken");
    assert_eq!(bench.next(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_address_takes_its_turn() {
    let bench = Bench::start(&["logs"], Strategy::RoundRobin);
    bench.world.name("logs", Some(&[1, 2]));
    assert_eq!(bench.deliver().await, (1, Ok(())));
    assert_eq!((bench.succeed(), bench.succeed()), (2, 1));
    bench.world.name("logs", Some(&[1, 2, 3]));
    pass(LOOK_UP + SECOND).await;
    let turns: BTreeSet<_> = (0..3).map(|_| bench.succeed()).collect();
    assert_eq!(turns, BTreeSet::from([1, 2, 3]));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_does_not_resolve_is_down_until_it_does_and_its_addresses_answer() {
    let bench = Bench::start(&["logs", "10.0.0.9"], Strategy::Failover);
    assert_eq!(bench.deliver().await, (0, Err(true)));
    assert_eq!(bench.deliver().await, (9, Ok(())));
    pass(HOLD_MIN * 3).await;
    assert_eq!(bench.deliver().await, (9, Ok(())));
    bench.world.set(1, Mood::Away);
    bench.world.name("logs", Some(&[1]));
    pass(HOLD_MIN * 3).await;
    assert_eq!(bench.deliver().await, (9, Ok(())));
    bench.world.set(1, Mood::Good);
    pass(HOLD_MIN + PAUSE_MAX).await;
    assert_eq!(bench.deliver().await, (1, Ok(())));
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_hangs_is_asked_once_at_a_time() {
    let bench = Bench::start(&["logs", "10.0.0.9"], Strategy::Failover);
    bench.world.name("logs", None);
    let deliveries = (0..50).map(|_| bench.deliver());
    let failed = futures_util::future::join_all(deliveries).await;
    assert!(failed.iter().all(|it| *it == (0, Err(true))), "{failed:?}");
    assert_eq!(bench.world.lookups.load(Ordering::Relaxed), 1);
}

/// Method: the first of two name servers is dead, so the resolver needs longer than an attempt
/// waits.
#[tokio::test(start_paused = true)]
async fn a_lookup_that_needs_longer_than_an_attempt_waits_ends_at_last() {
    for (needs, failures) in [(5_100, 1), (14_000, 2)] {
        let needs = Duration::from_millis(needs);
        let bench = Bench::start(&["logs"], Strategy::Failover);
        bench.world.name("logs", Some(&[1]));
        *bench.world.needs.lock().unwrap() = needs;
        let begun = Instant::now();
        for _ in 0..failures {
            assert_eq!(bench.deliver().await, (0, Err(false)));
        }
        assert_eq!(bench.deliver().await, (1, Ok(())));
        assert_eq!((begun.elapsed(), bench.world.lookups.load(Ordering::Relaxed)), (needs, 1));
        // The name has moved. The next attempt waits for 5 s, and uses what is known.
        bench.world.name("logs", Some(&[2]));
        pass(SECOND * 2).await;
        let begun = Instant::now();
        assert_eq!(bench.deliver().await, (1, Ok(())));
        assert_eq!(begun.elapsed(), TIMEOUTS.connect);
        pass(needs).await;
        assert_eq!(bench.deliver().await, (2, Ok(())));
    }
    // `check --connect` waits for as long as the C library may need.
    let bench = Bench::start(&["logs"], Strategy::Failover);
    bench.world.name("logs", Some(&[1]));
    *bench.world.needs.lock().unwrap() = SECOND * 29;
    let connect = |_| std::future::ready(Ok(None));
    let probed = bench.set.try_all(|address| address.name.to_string(), connect).await;
    assert_eq!(probed, [("logs:514".to_owned(), Ok(None))]);
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_change_leave_the_others_alone() {
    let bench = Bench::three(Strategy::Failover);
    assert_eq!(bench.fail(), (1, true));
    let (kept, gone) = (bench.pick(), {
        bench.fail();
        bench.pick()
    });
    let endpoint = |host: &str| Endpoint {
        name: HostPort { host: host.to_owned(), port: 514 },
        resolved_here: true,
    };
    bench.set.set(["10.0.0.1", "10.0.0.2", "10.0.0.8"].map(endpoint).to_vec());
    assert!(bench.set.is_gone(gone.address()) && !bench.set.is_gone(kept.address()));
    assert_eq!(bench.next(), 8);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_takes_connections_and_never_answers_costs_little_in_a_day() {
    let bench = Bench::start(&["10.0.0.1", "10.0.0.2"], Strategy::Failover);
    bench.world.set(1, Mood::Silent);
    let started = Instant::now();
    let (mut tried, mut delivered) = (0, 0);
    while started.elapsed() < SECOND * 24 * 3600 {
        match bench.deliver().await {
            (1, Err(left)) => {
                tried += 1;
                assert!(left);
            }
            (2, Ok(())) => delivered += 1,
            other => panic!("{other:?}"),
        }
        pass(SECOND).await;
    }
    // The holds are 20, 40, 80, 160 and 320 seconds, and then 10 minutes each.
    assert!((135..=150).contains(&tried), "{tried}");
    assert!(delivered > 24 * 3600 * 8 / 10, "{delivered}");
}

/// The state of each address, the whole seconds since it began, the attempts, and the errors.
fn shown(bench: &Bench) -> Vec<String> {
    let of = |it: &status::Address| {
        let (seconds, requests) = (it.state_seconds.unwrap().floor(), it.requests.unwrap());
        format!("{} for {seconds} s, {requests} attempts, {:?}", it.state, it.errors)
    };
    bench.set.states().iter().map(of).collect()
}

#[tokio::test(start_paused = true)]
async fn each_address_counts_its_own_attempts_and_tells_since_when_it_has_its_state() {
    let bench = Bench::three(Strategy::Failover);
    pass(SECOND * 5).await;
    let attempt = bench.pick();
    attempt.sent(700);
    attempt.ended(Some(SECOND / 4), None);
    attempt.succeeded();
    bench.world.set(1, Mood::Away);
    assert_eq!(bench.deliver().await.0, 1);
    pass(SECOND * 3).await;
    let untouched = "unknown for 8 s, 0 attempts, {}";
    let wanted = [r#"down for 3 s, 2 attempts, {"connect": 1}"#, untouched, untouched];
    assert_eq!(shown(&bench), wanted);
    let states = bench.set.states();
    assert_eq!(states.iter().map(|it| it.endpoint).collect::<Vec<_>>(), [0, 1, 2]);
    let first = &states[0];
    assert_eq!(first.sent_bytes, Some(700));
    assert!(first.latency_p50_seconds.is_some_and(|p50| (0.23..0.27).contains(&p50)));
    assert_eq!(first.last_error.as_deref(), Some("simulated"));
    assert_eq!(first.last_error_seconds_ago, Some(3.0));
    // Further failures and probes do not restart the time of the state; another state does.
    bench.world.set(1, Mood::Good);
    pass(SECOND * 4).await;
    assert_eq!(shown(&bench)[0], r#"down for 7 s, 2 attempts, {"connect": 1}"#);
    pass(HOLD_MIN).await;
    assert!(bench.set.states()[0].state_seconds.unwrap() < 10.0);
    let first = &shown(&bench)[0];
    assert!(first.starts_with("back, on trial for "), "{first}");
    assert!(first.ends_with(r#", 2 attempts, {"connect": 1}"#), "{first}");
}

#[tokio::test(start_paused = true)]
async fn what_is_counted_of_a_name_goes_to_its_first_address_and_leaves_with_the_address() {
    let bench = Bench::start(&["logs"], Strategy::Failover);
    for _ in 0..3 {
        bench.deliver().await.1.ok();
    }
    assert_eq!(shown(&bench), [r#"down for 0 s, 3 attempts, {"resolve": 3}"#]);
    bench.world.name("logs", Some(&[1, 2]));
    bench.deliver().await.1.ok();
    let rows = shown(&bench);
    assert!(rows.len() == 2 && rows[0].ends_with(r#"{"resolve": 3}"#), "{rows:?}");
    assert!(rows[1].ends_with("{}"), "{rows:?}");
    for turn in 1..200_u8 {
        bench.world.name("logs", Some(&[turn, turn + 1]));
        pass(LOOK_UP * 2).await;
        bench.deliver().await.1.ok();
        assert_eq!(shown(&bench).len(), 2, "addresses that vanished have left");
    }
    assert!(shown(&bench).iter().all(|row| row.ends_with("{}")), "{:?}", shown(&bench));
}

/// Returns a bench with this many consumers: behind one name, or with an address each.
fn random_bench(random: &mut fastrand::Rng, consumers: u8) -> Bench {
    let hosts: Vec<String> = (1..=consumers).map(|it| address(it).ip().to_string()).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let bench = match random.u8(..3) {
        0 => Bench::start(&["logs"], Strategy::Failover),
        1 => Bench::start(&hosts, Strategy::RoundRobin),
        _ => Bench::start(&hosts, Strategy::Failover),
    };
    bench.world.name("logs", Some(&(1..=consumers).collect::<Vec<_>>()));
    bench
}

fn random_mood(random: &mut fastrand::Rng) -> Mood {
    match random.u8(..6) {
        0 => Mood::Away,
        1 => Mood::Silent,
        2 => Mood::Errs,
        _ => Mood::Good,
    }
}

/// One to four consumers change their mood at random, while one to three lanes deliver without end.
/// Asserts two things all the time: as long as one consumer works, something is delivered soon; and
/// for `failover`, deliveries go to the first consumer when it has worked for long enough.
async fn simulate(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let consumers = random.u8(1..=4);
    let bench = random_bench(&mut random, consumers);
    let lanes = random.u8(1..=3);
    let first_is_preferred = bench.set.strategy == Strategy::Failover && bench.set.count() > 1;
    // Each other consumer may stall a lane for one request timeout, and one of them a second time
    // when it is tried again. The consumer that works now may have left an earlier request without
    // a response. A pause may come before or after that.
    let bound = TIMEOUTS.request * (u32::from(consumers) + 1) + SECOND * 40;
    let delivered = Mutex::new((Instant::now(), 0));
    let lane = async |mut random: fastrand::Rng| {
        let mut pause = SECOND / 2;
        loop {
            match bench.deliver().await {
                (number, Ok(())) => {
                    *delivered.lock().unwrap() = (Instant::now(), number);
                    pause = SECOND / 2;
                    tokio::time::sleep(Duration::from_millis(random.u64(..2000))).await;
                }
                (_, Err(true)) => tokio::time::sleep(Duration::from_millis(1)).await,
                (_, Err(false)) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(SECOND * 30);
                }
            }
        }
    };
    let rng = || fastrand::Rng::with_seed(seed);
    let lanes = futures_util::future::join_all((0..lanes).map(|_| lane(rng())));
    let fate = async {
        let mut good_since = vec![Some(Instant::now()); usize::from(consumers)];
        for _ in 0..60 {
            let number = random.u8(1..=consumers);
            let mood = random_mood(&mut random);
            bench.world.set(number, mood);
            let since = &mut good_since[usize::from(number - 1)];
            *since = (mood == Mood::Good).then(|| since.unwrap_or_else(Instant::now));
            let calm = if random.u8(..5) == 0 { 3000 } else { 200 };
            for _ in 0..random.u32(..calm) {
                pass(SECOND).await;
                let works = good_since.iter().flatten().any(|since| since.elapsed() >= bound);
                let (last, at) = *delivered.lock().unwrap();
                assert!(!works || last.elapsed() < bound, "nothing for {:?}", last.elapsed());
                let settled = HOLD_MAX + PAUSE_MAX * 2 + bound;
                let first_is_back = good_since[0].is_some_and(|since| since.elapsed() >= settled);
                if first_is_preferred && first_is_back {
                    assert_eq!(at, 1, "it has worked for {:?}", good_since[0].unwrap().elapsed());
                }
            }
        }
    };
    tokio::select! {
        _ = lanes => unreachable!("lanes never end"),
        () = fate => {}
    }
}

#[test]
fn something_is_delivered_as_long_as_one_consumer_works() {
    for seed in seeds(25) {
        let _says = Failing(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(simulate(seed));
    }
}
