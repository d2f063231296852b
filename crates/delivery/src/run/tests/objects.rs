//! Stores of objects that take some events and turn down each object with another one, in every
//! way: all that they take arrives in bounded time, and nothing of it is given up.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::any_consumer::run_paused;
use super::progress::{Life, Store, Way, arrives_by, life};
use super::*;

/// The age at which an object ends.
const AGE: Duration = Duration::from_millis(300);

/// The number of events at which an object ends.
const MOST: u64 = 400;

struct Maker(Arc<Store>);

/// A link that stores an object while it collects the next one.
struct Objects {
    store: Arc<Store>,
    collected: Vec<Batch>,
    began: Instant,
    is_flushed: bool,
    /// The object that is stored, and the time of the answer.
    storing: Option<(Vec<Batch>, Instant)>,
    reports: VecDeque<Event>,
}

impl Connect for Maker {
    type Link = Objects;

    const EAGER: bool = false;
    const COLLECTS: bool = true;

    async fn probe(&mut self) -> Probed {
        Vec::new()
    }

    async fn connect(&mut self) -> Result<Objects, Failure> {
        let (store, collected, reports) = (Arc::clone(&self.0), Vec::new(), VecDeque::new());
        let (began, is_flushed, storing) = (Instant::now(), false, None);
        Ok(Objects { store, collected, began, is_flushed, storing, reports })
    }
}

fn all_of(batches: &[Batch]) -> Vec<String> {
    batches.iter().flat_map(events_of).collect()
}

impl Objects {
    fn collected_events(&self) -> u64 {
        self.collected.iter().map(|batch| batch.events).sum()
    }

    fn is_over(&self) -> bool {
        let is_old = self.began + AGE <= Instant::now();
        self.is_flushed || is_old || self.collected_events() >= MOST
    }

    /// Begins to store the collected object if it has ended.
    fn end_object(&mut self) {
        if self.storing.is_some() || self.collected.is_empty() || !self.is_over() {
            return;
        }
        let object = std::mem::take(&mut self.collected);
        let way = self.store.turns_down(&all_of(&object));
        let is_silent = way.is_some_and(|way| way.failure().reason == AttemptError::Timeout);
        let life = &self.store.life;
        let takes = if is_silent { life.request } else { life.latency };
        self.storing = Some((object, Instant::now() + takes));
        self.reports.push_back(Event::Room);
    }

    fn stored(&mut self) -> Event {
        let (object, _) = self.storing.take().expect("it is stored");
        let events = all_of(&object);
        let mut seen = self.store.seen.lock().unwrap();
        seen.requests += 1;
        if let Some(way) = self.store.turns_down(&events) {
            let ends = object.first().zip(object.last()).expect("it has events");
            let request = Claim { start: ends.0.claim.start, end: ends.1.claim.end };
            return Event::Gone { failure: Some(way.failure()), request: Some(request) };
        }
        // A store that has an object of these events already says so.
        seen.events.extend(events);
        Event::Together(object.iter().map(|batch| Event::Accepted(batch.claim)).collect())
    }
}

impl Link for Objects {
    fn room(&self) -> Option<Take> {
        let left = MOST.saturating_sub(self.collected_events());
        let is_over = !self.collected.is_empty() && self.is_over();
        (!is_over).then_some(Take { bytes: u64::MAX, events: left.max(1) })
    }

    fn send(&mut self, batch: Batch) {
        if self.collected.is_empty() {
            (self.began, self.is_flushed) = (Instant::now(), false);
        }
        self.reports.push_back(Event::Taken(batch.claim));
        self.collected.push(batch);
    }

    fn flush(&mut self) {
        self.is_flushed = true;
    }

    async fn event(&mut self) -> Event {
        loop {
            self.end_object();
            if let Some(report) = self.reports.pop_front() {
                return report;
            }
            let ends = (!self.collected.is_empty()).then_some(self.began + AGE);
            let Some(next) = self.storing.as_ref().map(|(_, due)| *due).or(ends) else {
                return std::future::pending().await;
            };
            tokio::time::sleep_until(next).await;
            if self.storing.is_some() {
                return self.stored();
            }
        }
    }

    async fn close(self) {}
}

/// The longest time in which all that a store takes arrives. Each failed object costs a pause.
fn bound(life: &Life) -> Duration {
    let bad: usize = life.runs.iter().map(|(_, bad, _)| bad).sum();
    let failures = u32::try_from(100 + 24 * bad).unwrap();
    let asked = Duration::from_secs(20) * u32::try_from(8 * bad).unwrap();
    failures * (life.request + life.retry_max) + asked
}

proptest! {
    #![proptest_config(ProptestConfig { cases: testing::cases(24), ..ProptestConfig::default() })]

    #[test]
    fn all_that_a_store_of_objects_takes_arrives_in_time(mut life in life()) {
        // Each event at fault costs some pauses for everything, until others are taken.
        for (_, bad, _) in &mut life.runs {
            *bad = (*bad - 1) % 5 + 1;
        }
        run_paused(arrives_by(Maker, &life, bound(&life)))?;
    }
}

/// A pause that a store asks for an object that steps aside, or that is too large, is not one for
/// everything.
#[test]
fn a_pause_that_an_object_gets_is_its_own() {
    let unavailable = Way::Status(AttemptError::Status5xx);
    let late = Life {
        runs: vec![(4, 2, Way::Asks(9))],
        outages: vec![
            (45, 520, Way::Status(AttemptError::Status429)),
            (125, 212, Way::Status(AttemptError::Status4xx)),
        ],
        latency: Duration::from_millis(22),
        request: Duration::from_secs(1),
        retry_max: Duration::from_secs(1),
        ..Life::default()
    };
    let small = Life {
        runs: vec![
            (309, 2, Way::Status(AttemptError::Status4xx)),
            (221, 4, Way::Refuse),
            (2, 2, Way::Refuse),
            (0, 2, unavailable),
            (207, 2, Way::Close),
        ],
        size: Some((2, Way::Asks(13))),
        outages: vec![(209, 123, Way::Silence), (269, 96, Way::Refuse)],
        latency: Duration::from_millis(11),
        ..late.clone()
    };
    for life in [late, small] {
        run_paused(arrives_by(Maker, &life, bound(&life))).unwrap();
    }
}

/// An outage has cut an object into single events, which the next objects carry together. They are
/// halved like others.
#[test]
fn what_an_outage_has_cut_is_divided_in_halves() {
    let life = Life {
        runs: vec![(140, 2, Way::Silence)],
        outages: vec![(0, 85, Way::Close), (88, 47, Way::Status(AttemptError::Status429))],
        latency: Duration::from_millis(19),
        retry_max: Duration::from_secs(1),
        ..Life::default()
    };
    let small = Life {
        runs: vec![(0, 2, Way::Silence)],
        size: Some((3, Way::Silence)),
        outages: vec![(0, 149, Way::Refuse)],
        ..life.clone()
    };
    for (life, bound) in [(life, 40), (small, 80)] {
        run_paused(arrives_by(Maker, &life, Duration::from_secs(60 * bound))).unwrap();
    }
}
