//! Consumers that take some events and turn the others down, in every way: all that they take
//! arrives in bounded time, and nothing of it is given up.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::any_consumer::run_paused;
use super::*;

/// The way in which a consumer turns a request down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Way {
    /// 400, 413 or 422.
    Refuse,
    /// Another status.
    Status(AttemptError),
    /// 503 with `Retry-After`, in seconds.
    Asks(u64),
    Close,
    /// An answer that can't be read.
    Half,
    Silence,
}

impl Way {
    pub(super) fn failure(self) -> Failure {
        let (reason, asked) = match self {
            Self::Refuse => (AttemptError::Status4xx, None),
            Self::Status(reason) => (reason, None),
            Self::Asks(seconds) => (AttemptError::Status5xx, Some(Duration::from_secs(seconds))),
            Self::Close => (AttemptError::Closed, None),
            Self::Half => (AttemptError::Protocol, None),
            Self::Silence => (AttemptError::Timeout, None),
        };
        Failure { retry_after: asked, ..failure(reason) }
    }
}

/// A consumer that is chosen at random, and the events that wait for it.
#[derive(Debug, Clone)]
pub(super) struct Life {
    /// The runs of events: each has a number of good events, and then a number of bad ones, which
    /// are turned down in this way.
    pub(super) runs: Vec<(usize, usize, Way)>,
    /// The consumer turns down requests with more events than this, in this way.
    pub(super) size: Option<(u64, Way)>,
    /// The times without and with an outage, in seconds, in turns. In an outage, everything is
    /// turned down in this way.
    pub(super) outages: Vec<(u64, u64, Way)>,
    pub(super) lanes: usize,
    pub(super) ordered: bool,
    pub(super) latency: Duration,
    /// The settings `timeouts.request` and `retry.max_interval`.
    pub(super) request: Duration,
    pub(super) retry_max: Duration,
    /// The consumer confirms each request this long after it has taken it, on the connection of the
    /// request.
    pub(super) confirms: Option<Duration>,
}

impl Default for Life {
    /// A consumer that takes everything at once, one request after the other. No event waits.
    fn default() -> Self {
        Self {
            runs: Vec::new(),
            size: None,
            outages: Vec::new(),
            lanes: 1,
            ordered: false,
            latency: Duration::from_millis(2),
            request: Duration::from_secs(60),
            retry_max: Duration::from_secs(30),
            confirms: None,
        }
    }
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        Just(Way::Refuse),
        Just(Way::Status(AttemptError::Status5xx)),
        Just(Way::Status(AttemptError::Status4xx)),
        Just(Way::Status(AttemptError::Status429)),
        (1_u64..20).prop_map(Way::Asks),
        Just(Way::Close),
        Just(Way::Half),
        Just(Way::Silence),
    ]
}

prop_compose! {
    pub(super) fn life()(
        runs in prop::collection::vec(
            (prop_oneof![0_usize..4, 0_usize..400],
             prop_oneof![4 => 1_usize..5, 2 => 1_usize..60, 1 => 1_usize..2001], way()), 1..6),
        size in prop::option::weighted(0.3, (prop_oneof![1_u64..5, 1_u64..1000], way())),
        outages in prop::collection::vec((0_u64..300, 1_u64..600, way()), 0..3),
        lanes in 1_usize..5,
        ordered in any::<bool>(),
        latency_ms in 1_u64..30,
        request in prop_oneof![Just(1_u64), Just(60)],
        retry_max in prop_oneof![Just(1_u64), Just(30)],
        confirms in prop::option::weighted(0.3, 1_u64..5000),
    ) -> Life {
        // A run of silence takes a day in real life too: see the manual.
        let few = |(good, bad, way)| match way {
            Way::Silence | Way::Asks(_) | Way::Status(AttemptError::Status429) => {
                (good, bad % 20 + 1, way)
            }
            Way::Refuse | Way::Status(_) | Way::Close | Way::Half => (good, bad, way),
        };
        let runs = runs.into_iter().map(few).collect();
        let (ordered, latency) = (ordered, Duration::from_millis(latency_ms));
        let confirms = confirms.filter(|_| !ordered).map(Duration::from_millis);
        let lanes = if ordered { 1 } else { lanes };
        let (request, retry_max) = (Duration::from_secs(request), Duration::from_secs(retry_max));
        Life { runs, size, outages, lanes, ordered, latency, request, retry_max, confirms }
    }
}

pub(super) struct Store {
    pub(super) life: Life,
    started: Instant,
    pub(super) seen: Mutex<Seen>,
}

#[derive(Default)]
pub(super) struct Seen {
    pub(super) events: BTreeSet<String>,
    pub(super) requests: u64,
}

impl Store {
    /// Returns the way in which a request is turned down now; `None` if it is taken.
    pub(super) fn turns_down(&self, events: &[String]) -> Option<Way> {
        let mut elapsed = self.started.elapsed();
        for (well, ill, way) in &self.life.outages {
            let (well, both) = (Duration::from_secs(*well), Duration::from_secs(well + ill));
            if elapsed < both {
                if elapsed >= well {
                    return Some(*way);
                }
                break;
            }
            elapsed -= both;
        }
        let size = self.life.size.filter(|(most, _)| events.len() as u64 > *most);
        let bad = events.iter().find_map(|event| event.strip_prefix("bad")?.split('-').next());
        let bad = bad.map(|run| self.life.runs[run.parse::<usize>().unwrap()].2);
        bad.or(size.map(|(_, way)| way))
    }
}

struct Maker<const STREAM: bool>(Arc<Store>);

struct Wire<const STREAM: bool> {
    store: Arc<Store>,
    batches: Vec<Sent>,
    /// The claims that the consumer has taken and can no longer confirm.
    doubts: Vec<Claim>,
    accepted_any: bool,
    connections: usize,
}

/// A batch on the wire, and the time of its result or of its confirmation.
struct Sent {
    batch: Batch,
    due: Instant,
    connection: usize,
    is_taken: bool,
}

impl<const STREAM: bool> Connect for Maker<STREAM> {
    type Link = Wire<STREAM>;

    const EAGER: bool = STREAM;
    const IS_ONE_REQUEST: bool = STREAM;

    fn is_ordered(&self) -> bool {
        STREAM || self.0.life.ordered
    }

    async fn probe(&mut self) -> Probed {
        Vec::new()
    }

    async fn connect(&mut self) -> Result<Wire<STREAM>, Failure> {
        tokio::time::sleep(self.0.life.latency).await;
        let (store, batches, doubts) = (Arc::clone(&self.0), Vec::new(), Vec::new());
        let (accepted_any, connections) = (false, self.0.life.lanes);
        Ok(Wire { store, batches, doubts, accepted_any, connections })
    }
}

impl<const STREAM: bool> Wire<STREAM> {
    fn is_busy(&self, connection: usize) -> bool {
        self.batches.iter().any(|sent| sent.connection == connection && !sent.is_taken)
    }

    fn send_on(&mut self, batch: Batch, connection: usize) {
        let way = self.store.turns_down(&events_of(&batch));
        let takes = match way {
            Some(Way::Silence) => self.store.life.request,
            _ => self.store.life.latency,
        };
        self.store.seen.lock().unwrap().requests += 1;
        self.batches.push(Sent { batch, due: Instant::now() + takes, connection, is_taken: false });
    }
}

impl<const STREAM: bool> Link for Wire<STREAM> {
    fn room(&self) -> Option<Take> {
        let lanes = if STREAM { 64 } else { self.store.life.lanes };
        let busy = self.batches.iter().filter(|sent| !sent.is_taken).count();
        (busy < lanes).then_some(Take { bytes: u64::MAX, events: u64::MAX })
    }

    fn send(&mut self, batch: Batch) {
        let free = (0..self.store.life.lanes).find(|lane| !self.is_busy(*lane));
        self.send_on(batch, free.unwrap_or_default());
    }

    fn send_alone(&mut self, batch: Batch) {
        self.connections += 1;
        self.send_on(batch, self.connections);
    }

    async fn event(&mut self) -> Event {
        if let Some(claim) = self.doubts.pop() {
            return Event::Failed(claim, failure(AttemptError::Acknowledgement));
        }
        // A stream has its results in order. Confirmations come only between two requests.
        let is_open = |it: &Sent| !(it.is_taken && self.is_busy(it.connection));
        let open = self.batches.iter().enumerate().filter(|(_, sent)| is_open(sent));
        let first = open.min_by_key(|(index, sent)| match STREAM {
            true => (None, *index),
            false => (Some(sent.due), 0),
        });
        let Some((index, Sent { due, .. })) = first else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(*due).await;
        let sent = self.batches.remove(index);
        let (batch, connection) = (&sent.batch, sent.connection);
        let events = events_of(batch);
        if sent.is_taken {
            self.store.seen.lock().unwrap().events.extend(events);
            return Event::Accepted(batch.claim);
        }
        let way = self.store.turns_down(&events);
        if let (None, Some(confirms)) = (way, self.store.life.confirms) {
            let (claim, due) = (batch.claim, Instant::now() + confirms);
            self.batches.push(Sent { due, is_taken: true, ..sent });
            return Event::Taken(claim);
        }
        if matches!(way, Some(Way::Close | Way::Half | Way::Silence)) {
            let ended = |it: &mut Sent| it.is_taken && it.connection == connection;
            let ended = self.batches.extract_if(.., ended).map(|sent| sent.batch.claim);
            self.doubts.extend(ended);
        }
        let mut seen = self.store.seen.lock().unwrap();
        let Some(way) = way else {
            seen.events.extend(events);
            self.accepted_any = true;
            return Event::Accepted(batch.claim);
        };
        let failure = way.failure();
        if STREAM {
            return Event::Broken { failure, progress: self.accepted_any };
        }
        match way == Way::Refuse {
            true => Event::Refused(batch.claim, failure),
            false => Event::Failed(batch.claim, failure),
        }
    }

    async fn close(self) {}
}

/// Lives through a life. Asserts that everything that the consumer takes has arrived in time, and
/// that nothing of it was given up.
async fn arrives<const STREAM: bool>(life: &Life) -> TestCaseResult {
    let bad: usize = life.runs.iter().map(|(_, bads, _)| bads).sum();
    arrives_within::<STREAM>(life, bound(life, STREAM, bad)).await
}

async fn arrives_within<const STREAM: bool>(life: &Life, bound: Duration) -> TestCaseResult {
    arrives_by(Maker::<STREAM>, life, bound).await
}

pub(super) async fn arrives_by<C: Connect + Send + 'static>(
    connector: impl FnOnce(Arc<Store>) -> C,
    life: &Life,
    bound: Duration,
) -> TestCaseResult {
    let started = Instant::now();
    let store = Arc::new(Store { life: life.clone(), started, seen: Mutex::new(Seen::default()) });
    let mut config =
        config::read(config::EMBEDDED, testing_config::TYPES).config.expect("it is right");
    config.outputs[0].rejected = Rejected::DeadLetter;
    config.outputs[0].timeouts.request = life.request;
    config.outputs[0].retry.max_interval = life.retry_max;
    let telemetry = Arc::new(Telemetry::new());
    let metrics = telemetry.output("o");
    let (queue, cursor) = opened(&config, &telemetry);
    let (status, stop) = (Arc::<Status>::default(), CancellationToken::new());
    let (letters, mut desk) = Desk::new(&telemetry);
    let given_up = Arc::<Mutex<Vec<String>>>::default();
    let letters_of = Arc::clone(&given_up);
    let health = Health::new(&config.outputs[0], metrics, Arc::clone(&status));
    let orders = Orders { stop: stop.clone(), ..Orders::default() };
    let mut begin = HandOver::begin(cursor);
    begin.aside.events_max = 10_000;
    let config = config.outputs[0].clone();
    let start = Start { begin, health, config, filter: None, dead_letters: letters, orders };
    let delivery = Delivery::new(connector(Arc::clone(&store)), start);
    let mut tasks = JoinSet::new();
    tasks.spawn(delivery.run());
    let mut writing = JoinSet::new();
    writing.spawn(async move {
        while let Some(letters) = desk.next().await {
            letters_of.lock().unwrap().extend(letters.events.iter().cloned());
            let events = letters.events.len() as u64;
            letters.written(events, None);
        }
    });
    let mut good = BTreeSet::new();
    let append = |names: &[String]| {
        let lines: String = names.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
        let (lines, events) = (Bytes::from(lines), names.len() as u64);
        let batch = Append { lines, events, levels: Default::default(), list: None };
        queue.append(batch).map(drop).expect("room");
    };
    let mut names = Vec::new();
    for (run, (goods, bads, _)) in life.runs.iter().enumerate() {
        names.extend((0..*goods).map(|number| format!("good{run}-{number}")));
        good.extend(names.iter().filter(|name| name.starts_with("good")).cloned());
        names.extend((0..*bads).map(|number| format!("bad{run}-{number}")));
    }
    names.chunks(400).for_each(&append);
    let ill: u64 = life.outages.iter().map(|(well, ill, _)| well + ill).sum();
    let (old, mut old_at) = (good.clone(), None);
    // New events come every second, and the last of them after the outages.
    for second in 0..ill + 60 {
        let name = format!("good-new{second}");
        append(std::slice::from_ref(&name));
        good.insert(name);
        tokio::time::sleep(Duration::from_secs(1)).await;
        if old_at.is_none() && old.is_subset(&store.seen.lock().unwrap().events) {
            old_at = Some(started.elapsed());
        }
    }
    let all_there = || good.is_subset(&store.seen.lock().unwrap().events);
    while !all_there() {
        let late = started.elapsed().saturating_sub(Duration::from_secs(ill));
        let left = || {
            let seen = store.seen.lock().unwrap();
            let missing: Vec<_> = good.difference(&seen.events).take(9).cloned().collect();
            format!("{} requests, {missing:?}, {:?}", seen.requests, queue.backlogs()[0].1)
        };
        prop_assert!(late < bound, "{bound:?} are over: {}", left());
        // New events never end: each shows whether the consumer works.
        let name = format!("good-late{late:?}");
        append(std::slice::from_ref(&name));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let old_at = old_at.unwrap_or_else(|| started.elapsed());
    let late = old_at.saturating_sub(Duration::from_secs(ill));
    prop_assert!(late <= bound, "the first {} took {late:?} of {bound:?}", old.len());
    // The bad ones are given up, and no good one.
    tokio::time::sleep(3 * HOUR).await;
    let given_up = given_up.lock().unwrap().clone();
    prop_assert!(given_up.iter().all(|event| event.starts_with("bad")), "{given_up:?}");
    stop.cancel();
    let ended = tasks.join_next().await;
    prop_assert!(matches!(ended, Some(Ok(Ok(None)))));
    Ok(())
}

/// Returns the time in which all that a consumer takes arrives, as docs/concepts/guarantees.md says
/// it.
fn bound(life: &Life, is_stream: bool, bad: usize) -> Duration {
    let cost = |way: &Way| match way {
        Way::Silence => life.request,
        Way::Refuse | Way::Status(_) | Way::Asks(_) => 4 * life.latency,
        Way::Close | Way::Half => 4 * life.latency,
    };
    // Events beside each other that all get a pause may be a consumer that takes nothing.
    let asked = life.runs.iter().map(|(_, bads, way)| match way {
        Way::Asks(seconds) => *seconds * (2 + *bads as u64),
        Way::Refuse | Way::Status(_) | Way::Close | Way::Half | Way::Silence => 0,
    });
    let asked = Duration::from_secs(asked.sum());
    let ways = life.runs.iter().map(|(_, _, way)| way).chain(life.size.iter().map(|(_, way)| way));
    let slowest = ways.chain(life.outages.iter().map(|(_, _, way)| way)).map(cost).max();
    let slowest = slowest.into_iter().chain(life.confirms).max().unwrap_or_default();
    let each = if is_stream || life.ordered { 24 } else { 8 };
    let requests = u32::try_from(64 + each * bad).unwrap();
    // If large requests are turned down, each good event may need a request of its own. So does, on
    // a stream, each one that was turned down alone in an outage.
    let ill: u64 = life.outages.iter().map(|(well, ill, _)| well + ill).sum();
    let good = life.runs.iter().map(|(good, ..)| *good as u64).sum::<u64>() + ill + 60;
    let are_alone = life.size.is_some() || (is_stream && ill > 0);
    let good = u32::try_from(if are_alone { good } else { 0 }).unwrap();
    let taken = life.confirms.unwrap_or_default() + 2 * life.latency;
    Duration::from_secs(120) + asked + slowest * requests + taken * good
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn all_that_a_consumer_of_requests_takes_arrives_in_time(life in life()) {
        run_paused(arrives::<false>(&life))?;
    }

    #[test]
    fn all_that_a_consumer_of_a_stream_takes_arrives_in_time(life in life()) {
        run_paused(arrives::<true>(&life))?;
    }
}

/// The table in docs/concepts/guarantees.md: one event among 1,000 is turned down, and all others
/// arrive in this time, also by one request at a time.
#[test]
fn one_event_holds_up_the_others_no_longer_than_the_manual_says() {
    let seconds = Duration::from_secs;
    let unavailable = Way::Status(AttemptError::Status5xx);
    for (way, bound) in [
        (Way::Refuse, seconds(3)),
        (unavailable, seconds(3)),
        (Way::Asks(3600), seconds(3)),
        (Way::Status(AttemptError::Status429), seconds(3)),
        (Way::Close, seconds(3)),
        (Way::Half, seconds(3)),
        (Way::Silence, seconds(20 * 60)),
    ] {
        for before in [0, 499, 999] {
            for (lanes, ordered) in [(1, true), (1, false), (4, false)] {
                let life = Life {
                    runs: vec![(before, 1, way), (999 - before, 0, way)],
                    lanes,
                    ordered,
                    ..Life::default()
                };
                for is_stream in [false, true] {
                    let arrived = match is_stream {
                        false => run_paused(arrives_within::<false>(&life, bound)),
                        true => run_paused(arrives_within::<true>(&life, bound)),
                    };
                    assert!(arrived.is_ok(), "stream: {is_stream}, {life:?}: {arrived:?}");
                }
            }
        }
    }
}

/// An event that makes the consumer end the connection does not keep it from confirming the others.
#[test]
fn what_is_taken_is_confirmed_beside_events_that_end_the_connection() {
    let unavailable = Way::Status(AttemptError::Status5xx);
    let plain = Life {
        runs: vec![(5, 9, Way::Close), (5, 9, Way::Silence), (5, 60, Way::Half)],
        request: Duration::from_secs(1),
        retry_max: Duration::from_secs(1),
        confirms: Some(Duration::from_millis(4300)),
        ..Life::default()
    };
    let small = Life {
        runs: vec![(340, 4, Way::Silence), (350, 3, unavailable)],
        size: Some((2, Way::Asks(15))),
        outages: vec![(23, 15, unavailable)],
        ..plain.clone()
    };
    for life in [plain, small] {
        run_paused(arrives::<false>(&life)).unwrap();
    }
}
