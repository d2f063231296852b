//! A stream whose consumer restarts again and again: how much of it the consumer gets twice.

use std::collections::VecDeque;

use super::*;

/// The events that arrive each tenth of a second.
const EVENTS: usize = 500;
const RESTARTS: u32 = 7;

/// The time until bytes are final, as with the setting `replay_window`.
const FINAL: Duration = Duration::from_secs(1);

/// A consumer that reads everything at once, and ends all connections at each multiple of `every`.
struct Restarting {
    started: Instant,
    every: Duration,
    /// The time for which it refuses connections after each end.
    away: Duration,
    /// The number of times that each event was read.
    copies: Mutex<BTreeMap<Position, u32>>,
}

struct Maker(Arc<Restarting>);

struct Wire {
    consumer: Arc<Restarting>,
    ends: Option<Instant>,
    sent: VecDeque<(Claim, Instant)>,
    accepted_any: bool,
}

impl Connect for Maker {
    type Link = Wire;

    const EAGER: bool = true;

    async fn probe(&mut self) -> Probed {
        Vec::new()
    }

    async fn connect(&mut self) -> Result<Wire, Failure> {
        let Restarting { started, every, away, .. } = *self.0;
        let restarts = (1..=RESTARTS).map(|number| started + every * number);
        let now = Instant::now();
        if restarts.clone().any(|at| at <= now && now < at + away) {
            return Err(failure(AttemptError::Connect));
        }
        let ends = restarts.into_iter().find(|at| *at > now);
        let (consumer, sent) = (Arc::clone(&self.0), VecDeque::new());
        Ok(Wire { consumer, ends, sent, accepted_any: false })
    }
}

impl Link for Wire {
    fn room(&self) -> Option<Take> {
        Some(Take { bytes: u64::MAX, events: u64::MAX })
    }

    fn send(&mut self, batch: Batch) {
        let mut copies = self.consumer.copies.lock().unwrap();
        let Claim { mut start, end } = batch.claim;
        while start < end {
            *copies.entry(start).or_default() += 1;
            start = start.next();
        }
        self.sent.push_back((batch.claim, Instant::now() + FINAL));
    }

    async fn event(&mut self) -> Event {
        let due = self.sent.front().map(|(_, due)| *due);
        let Some(next) = due.into_iter().chain(self.ends).min() else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(next).await;
        if self.ends == Some(next) {
            let failure = failure(AttemptError::Closed);
            return Event::Broken { failure, progress: self.accepted_any };
        }
        self.accepted_any = true;
        let (claim, _) = self.sent.pop_front().expect("it was due");
        Event::Accepted(claim)
    }

    async fn close(self) {}
}

/// Returns how many events were read twice, and how many more often.
async fn read_again(every: Duration, away: Duration) -> (usize, usize) {
    let mut config =
        config::read(config::EMBEDDED, testing_config::TYPES).config.expect("it is right");
    // The pauses must not depend on chance.
    config.outputs[0].retry.randomization_factor = 0.0;
    let telemetry = Arc::new(Telemetry::new());
    let (queue, cursor) = opened(&config, &telemetry);
    let config = config.outputs.swap_remove(0);
    let (letters, _) = Desk::new(&telemetry);
    let health = Health::new(&config, telemetry.output("o"), Arc::default());
    let (stop, begin) = (CancellationToken::new(), HandOver::begin(cursor));
    let orders = Orders { stop: stop.clone(), ..Orders::default() };
    let start = Start { begin, health, config, filter: None, dead_letters: letters, orders };
    let (started, copies) = (Instant::now(), Mutex::default());
    let consumer = Arc::new(Restarting { started, every, away, copies });
    let mut tasks = JoinSet::new();
    tasks.spawn(Delivery::new(Maker(Arc::clone(&consumer)), start).run());
    while started.elapsed() < every * (RESTARTS + 1) {
        let (lines, events) = (Bytes::from("event\n".repeat(EVENTS)), EVENTS as u64);
        let append = Append { lines, events, levels: Default::default(), list: None };
        queue.append(append).map(drop).expect("room");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    queue.drained(false).await;
    stop.cancel();
    assert!(matches!(tasks.join_next().await, Some(Ok(Ok(None)))));
    let copies = consumer.copies.lock().unwrap();
    let count = |is: fn(u32) -> bool| copies.values().filter(|copies| is(**copies)).count();
    (count(|copies| copies == 2), count(|copies| copies > 2))
}

/// At each restart, what was not final is sent again: the events of one second. If the next
/// connection had to begin with a part of them, the others would wait and add up, and the next
/// restart would repeat them all.
#[tokio::test(start_paused = true)]
async fn a_restart_of_the_consumer_repeats_what_was_on_the_wire_once() {
    for (every, away) in [(1500, 0), (2300, 0), (3000, 0), (2800, 1200), (4000, 1200)] {
        let (every, away) = (Duration::from_millis(every), Duration::from_millis(away));
        let (twice, more) = read_again(every, away).await;
        let most = RESTARTS as usize * 11 * EVENTS;
        assert!(twice <= most && more == 0, "{every:?}, {away:?}: {twice} twice, {more} more");
    }
}
