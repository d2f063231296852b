//! `queue.directory` and SIGKILL: every event that was answered with 200 arrives, whenever the
//! process ends, and only events of about the last second before a kill arrive twice.
//!
//! Method: senders post numbered events all the time, and three consumers record each arrival.
//! Relays on one directory start, and are killed or stopped at random moments, while consumers
//! close and open. A last relay delivers the rest. Then each consumer's arrivals are compared with
//! the events that were answered with 200: none may be missing, the order must be right where it is
//! promised, and each repeated event must first have arrived shortly before a kill.

use crate::support::prelude::*;
use crate::support::tally::{Repeat, accepted, check, check_unordered};

/// A repeated event first arrived at most this long before a kill. The cursors file is at most one
/// second older than the cursors in memory, and a tcp output counts bytes as delivered 100 ms after
/// it sent them. The rest is for the write and sync of the cursors file on a busy machine.
const REPEATED_MAX: Duration = Duration::from_millis(1000 + 100 + 1400);

/// The number of kills for one spool. A run with more kills uses several spools, so that their
/// records of arrivals stay small.
const ROUNDS_OF_ONE_SPOOL: u64 = 60;

/// A relay from its start to its end.
struct Life {
    started: Instant,
    ended: Instant,
    how: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Stop,
}

/// The name of the output with four requests at a time, whose events can arrive in any order.
const PARALLEL: &str = "parallel";

/// The segments are so small that the queue creates and deletes them all the time.
const QUEUE: &str = "max_bytes = \"64MiB\"\nsegment_bytes = \"256KiB\"\n";

/// One spool, with its senders, its consumers and the lives of its relays.
struct Campaign {
    spool: Spool,
    consumers: Vec<(&'static str, Tallying)>,
    senders: Senders,
    lives: Vec<Life>,
}

impl Campaign {
    fn new(bodies: Bodies, rng: &mut fastrand::Rng) -> Self {
        Self {
            spool: Spool::new(),
            consumers: vec![
                ("lines", Tallying::tcp()),
                ("requests", Tallying::http()),
                (PARALLEL, Tallying::http()),
            ],
            senders: Senders::start(4, bodies, rng),
            lives: Vec::new(),
        }
    }

    fn launch(&self) -> Relay {
        let output = |(name, consumer): &(&str, Tallying)| match *name {
            // With batches of 97 events, this output's cursor is usually in the middle of a record.
            PARALLEL => consumer.output(name, "concurrency = 4\nbatch = { max_events = 97 }\n"),
            _ => consumer.output(name, ""),
        };
        let outputs: Vec<String> = self.consumers.iter().map(output).collect();
        let config = format!("{BASE}{}{}", outputs.concat(), self.spool.queue(QUEUE));
        Relay::with(&config).launch()
    }

    /// Starts a relay and points the senders to it.
    fn start(&self) -> Relay {
        let mut relay = self.launch();
        assert!(relay.listens_or_exits(1), "it does not start:\n{}", relay.log_text());
        self.senders.go_to(relay.address());
        relay
    }

    fn end(&mut self, mut relay: Relay, started: Instant, how: End) {
        match how {
            End::Kill => relay.kill(),
            End::Stop => drop(relay.stop()),
        }
        self.lives.push(Life { started, ended: Instant::now(), how });
        self.senders.wait();
        // Bytes that a dead relay has sent belong to its life, so they are read before the next one
        // starts.
        wait_for_ends(&self.consumers);
    }

    fn round(&mut self, rng: &mut fastrand::Rng) {
        let how = if rng.u32(..5) == 0 { End::Stop } else { End::Kill };
        for (_, consumer) in &mut self.consumers {
            consumer.set_open(rng.u32(..6) > 0);
        }
        let started = Instant::now();
        if how == End::Kill && rng.u32(..4) == 0 {
            let relay = self.launch();
            // The kill comes during recovery, or just after the relay has begun to listen.
            std::thread::sleep(Duration::from_micros(rng.u64(..80_000)));
            return self.end(relay, started, how);
        }
        let relay = self.start();
        std::thread::sleep(Duration::from_millis(rng.u64(..250)));
        for (_, consumer) in &mut self.consumers {
            let open = consumer.is_listening() || rng.bool();
            consumer.set_open(open);
        }
        std::thread::sleep(Duration::from_millis(rng.u64(..250)));
        self.end(relay, started, how);
    }

    /// Starts a last relay that delivers everything, and checks and counts the arrivals.
    fn finish(mut self) -> Counts {
        for (_, consumer) in &mut self.consumers {
            consumer.set_open(true);
        }
        let relay = self.start();
        let sent = self.senders.finish();
        relay.finish(Backlog::Empty);
        wait_for_ends(&self.consumers);
        let mut counts = Counts { accepted: accepted(&sent), ..Counts::default() };
        for (name, consumer) in &self.consumers {
            let arrivals = consumer.tally.arrivals();
            let checked = if *name == PARALLEL { check_unordered } else { check };
            let repeats = checked(name, &sent, &arrivals);
            counts.delivered += arrivals.len();
            counts.repeats += repeats.len();
            for repeat in &repeats {
                assert_bounded(name, repeat, &self.lives);
            }
        }
        let left = self.spool.segments();
        assert!(left.len() <= 1, "what every output has got is deleted: {left:?}");
        counts
    }
}

/// Waits until the consumers have read everything that the previous relay sent.
fn wait_for_ends(consumers: &[(&str, Tallying)]) {
    for (name, consumer) in consumers {
        wait_until(&format!("the end of {name}"), PATIENCE, || consumer.open() == 0);
    }
}

/// Checks that a repeated event had arrived shortly before a kill. After SIGTERM no event may
/// arrive again.
fn assert_bounded(consumer: &str, repeat: &Repeat, lives: &[Life]) {
    let life = lives.iter().rfind(|life| life.started <= repeat.before);
    let life = life.expect("nothing comes before the first life");
    assert_eq!(life.how, End::Kill, "{consumer}: {:?} again after a clean stop", repeat.id);
    let age = life.ended.saturating_duration_since(repeat.before);
    assert!(age <= REPEATED_MAX, "{consumer}: {:?} again, {age:?} before the kill", repeat.id);
}

#[derive(Debug, Default)]
struct Counts {
    accepted: u64,
    /// The arrivals at all consumers.
    delivered: usize,
    repeats: usize,
}

/// Method: each round has a random end, a kill in four of five rounds, sometimes during recovery.
/// Consumers open and close at random. `KUBE_AUDIT_FORWARDER_KILLS` sets the number of kills; each
/// spool gets up to [`ROUNDS_OF_ONE_SPOOL`] of them.
#[test]
fn what_was_answered_200_arrives_whenever_the_process_is_killed() {
    let kills = number_from("KUBE_AUDIT_FORWARDER_KILLS", 55);
    let mut rng = rng();
    let mut left = kills;
    while left > 0 {
        let mut campaign = Campaign::new(Bodies::Mixed, &mut rng);
        let mut killed = 0;
        while killed < ROUNDS_OF_ONE_SPOOL.min(left) {
            campaign.round(&mut rng);
            let last = campaign.lives.last().expect("a round is a life");
            killed += u64::from(last.how == End::Kill);
        }
        left -= killed;
        let stops = campaign.lives.len() as u64 - killed;
        let counts = campaign.finish();
        eprintln!(
            "{killed} kills and {stops} clean stops: {} events accepted, each for 3 consumers, \
             {} arrivals, {} of them repeats",
            counts.accepted, counts.delivered, counts.repeats
        );
        assert!(counts.accepted > 100 * killed, "too few to mean anything: {counts:?}");
    }
}

/// Method: two lives of five seconds each end with a kill. Only events of the last moments before a
/// kill may arrive again.
#[test]
fn a_kill_after_a_while_repeats_at_most_about_the_last_second() {
    let mut rng = rng();
    let mut campaign = Campaign::new(Bodies::Mixed, &mut rng);
    for _ in 0..2 {
        let started = Instant::now();
        let relay = campaign.start();
        // The life is so long that most of its events must not arrive again.
        std::thread::sleep(REPEATED_MAX * 2);
        campaign.end(relay, started, End::Kill);
    }
    let counts = campaign.finish();
    eprintln!("2 kills after 5 s: {counts:?}");
    assert!(counts.accepted > 5000, "too few to mean anything: {counts:?}");
}
