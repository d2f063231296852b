//! Tests with a real queue in memory. Time is paused.

use bytes::Bytes;

use super::*;
use audit::LevelCounts;
use queue::{Append, Cursor, Disposition, Output, Queue, Take};
use telemetry::Telemetry;

const ALL: Take = Take { bytes: u64::MAX, events: u64::MAX };

/// A queue with one output, and the batches that are remembered.
struct World {
    queue: Queue,
    cursor: Cursor,
    repeats: Arc<Repeats>,
}

impl World {
    fn new() -> Self {
        let config = config::read(config::EMBEDDED, outputs::TYPES).config.expect("it is right");
        let acknowledge = config::Acknowledge::Delivered;
        let (config, telemetry) = (config::Queue { acknowledge, ..config.queue }, Telemetry::new());
        let (name, metrics) = ("o".to_owned(), telemetry.output("o"));
        let output = Output { name, required: true, metrics, recorder: None };
        let (queue, mut cursors) = Queue::open(&config, &telemetry, &[output]).expect("in memory");
        Self { queue, cursor: cursors.remove(0), repeats: Arc::default() }
    }

    /// Makes a request with this body.
    fn enter(&self, body: &str) -> Attempt {
        let append = || {
            let lines = Bytes::from(format!("{body}\n"));
            self.queue.append(Append {
                lines,
                events: 1,
                levels: LevelCounts::default(),
                list: None,
            })
        };
        let key = ("listener".into(), Digest::of(body.as_bytes()));
        self.repeats.enter(key, append).expect("there is room")
    }

    /// The output begins to send all that waits.
    fn begin(&mut self) -> queue::Claim {
        self.cursor.next(ALL).expect("a batch waits").claim
    }

    fn count(&self) -> usize {
        self.repeats.batches.lock().unwrap().len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_withdrawn_when_the_last_of_its_requests_ends_unless_it_is_begun() {
    let mut world = World::new();
    let (first, second) = (world.enter("a"), world.enter("a"));
    assert!(!first.is_repetition && second.is_repetition);
    drop(first);
    assert_eq!((world.queue.held().1, world.count()), (1, 1));
    drop(second);
    assert_eq!((world.queue.held().1, world.count()), (0, 0));
    let third = world.enter("a");
    assert!(!third.is_repetition);
    let claim = world.begin();
    drop(third);
    assert_eq!((world.queue.held().1, world.count()), (1, 1));
    let mut fourth = world.enter("a");
    assert!(fourth.is_repetition);
    world.cursor.acknowledge(claim, Disposition::default());
    assert_eq!(fourth.acknowledged().await, Ok(()));
    assert!(fourth.accept());
    drop(fourth);
    let mut fifth = world.enter("a");
    assert!(fifth.is_repetition && !fifth.accept(), "another request has counted it");
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_requests_all_got_200_is_not_remembered() {
    let mut world = World::new();
    let mut attempts = [world.enter("a"), world.enter("a")];
    let claim = world.begin();
    world.cursor.acknowledge(claim, Disposition::default());
    for attempt in &mut attempts {
        assert_eq!(attempt.acknowledged().await, Ok(()));
    }
    assert_eq!(attempts.each_mut().map(Attempt::accept), [true, false]);
    drop(attempts);
    assert_eq!(world.count(), 0);
    assert!(!world.enter("a").is_repetition, "its sender means it");
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_forgotten_some_minutes_after_its_last_request() {
    let mut world = World::new();
    let first = world.enter("a");
    let claim = world.begin();
    tokio::time::sleep(2 * KEPT).await;
    drop(first);
    for _ in 0..2 {
        tokio::time::sleep(KEPT - Duration::from_secs(1)).await;
        assert!(world.enter("a").is_repetition);
    }
    world.cursor.acknowledge(claim, Disposition::default());
    tokio::time::sleep(KEPT).await;
    assert!(!world.enter("a").is_repetition);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_was_refused_is_a_new_one_when_it_comes_again() {
    let mut world = World::new();
    let first = world.enter("a");
    world.begin();
    world.queue.give_up("o");
    assert!(first.acknowledged().await.is_err());
    let key = ("listener".into(), Digest::of(b"a"));
    let mut asked = false;
    let append = || {
        asked = true;
        Ok(Ticket::stored())
    };
    let second = world.repeats.enter(key, append).expect("it is stored");
    assert!(asked && !second.is_repetition);
    // The end of the old request says nothing about the new batch.
    drop(first);
    assert_eq!(world.count(), 1);
}

/// Seed 40 of the simulator: the output had joined between the two requests, and never got the
/// events of the second one, which had a 200.
#[tokio::test(start_paused = true)]
async fn a_repetition_joins_no_batch_that_a_new_output_does_not_get() {
    let mut world = World::new();
    drop_begun(&mut world, "a");
    assert!(world.enter("a").is_repetition);
    let metrics = Telemetry::new().output("new");
    let mut new = world.queue.join("new", true, metrics).await.expect("it joins");
    let again = world.enter("a");
    assert!(!again.is_repetition);
    assert_eq!(new.next(ALL).expect("it gets the batch").events, 1);
    assert!(world.enter("a").is_repetition, "both get this one");
    // An output that has left misses nothing.
    let newest = world.queue.join("newest", false, Telemetry::new().output("newest")).await;
    newest.expect("it joins").leave();
    assert!(world.enter("a").is_repetition);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_remembered_batches_is_bounded_and_more_are_new_batches() {
    let mut world = World::new();
    for number in 0..BATCHES_MAX {
        drop_begun(&mut world, &number.to_string());
    }
    drop_begun(&mut world, "one more");
    assert_eq!(world.count(), BATCHES_MAX);
    let again = world.enter("one more");
    assert!(!again.is_repetition);
    let waiting = world.queue.held().1;
    drop(again);
    assert_eq!(world.queue.held().1, waiting - 1, "it is withdrawn nevertheless");
    assert!(world.enter("17").is_repetition);
    tokio::time::sleep(KEPT).await;
    drop_begun(&mut world, "one more");
    assert_eq!(world.count(), 1, "the old ones make room");
    assert!(world.enter("one more").is_repetition);
}

/// Makes a request that ends after the output has begun to send its batch.
fn drop_begun(world: &mut World, body: &str) {
    let attempt = world.enter(body);
    world.begin();
    drop(attempt);
}

#[test]
fn bodies_are_equal_only_with_the_same_length_and_hash() {
    let bodies = ["", "a", "a\n", "a ", "b", "aa"];
    for (at, body) in bodies.iter().enumerate() {
        for (other_at, other) in bodies.iter().enumerate() {
            let is_equal = Digest::of(body.as_bytes()) == Digest::of(other.as_bytes());
            assert_eq!(is_equal, at == other_at, "{body:?} {other:?}");
        }
    }
    // FIPS 180-2, appendix B.1.
    let start = [0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea];
    assert_eq!(Digest::of(b"abc").sha256[..8], start);
}
