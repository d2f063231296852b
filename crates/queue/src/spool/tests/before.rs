//! Events that an output has received and that are still in the files. They are found after a crash
//! if they are young enough, and reading them changes nothing else.

use super::*;
use crate::contract::Acceptance;
use crate::segment;

const ALWAYS: Duration = Duration::MAX;

const NOTHING: [u64; 0] = [];

const MINUTE: Duration = Duration::from_secs(60);

/// A queue that can be started again.
struct Again {
    now: Scene,
    names: Vec<&'static str>,
    config: config::Queue,
    /// The lines that were sent, by position.
    lines: Vec<Vec<u8>>,
}

fn open(disk: SimulatedDisk, names: &[&str], config: &config::Queue) -> Scene {
    let outputs: Vec<_> = names.iter().map(|name| (*name, true)).collect();
    Scene::open(disk, config, &outputs, |_| {})
}

impl Again {
    /// Opens a queue. The tests look at the first output; the others keep the files from being
    /// deleted.
    fn new(names: &[&'static str]) -> Self {
        let config = settings(1 << 20, 32 << 10, WhenFull::Reject);
        let now = open(SimulatedDisk::new(1), names, &config);
        Self { now, names: names.to_vec(), config, lines: Vec::new() }
    }

    /// Sends a batch of events with `bytes` bytes each, as if it had been received this long ago.
    fn send(&mut self, events: u64, bytes: usize, ago: Duration) {
        let mut all = Vec::new();
        for _ in 0..events {
            let mut line = Vec::new();
            write_line(self.lines.len() as u64, bytes, &mut line);
            all.extend_from_slice(&line);
            self.lines.push(line);
        }
        let append =
            Append { lines: Bytes::from(all), events, levels: LevelCounts::default(), list: None };
        let mut ticket = self.now.queue.append(append).expect("room");
        if let Some(waiting) = self.now.queue.shared.lock().writing.waiting.back_mut() {
            waiting.received -= u64::try_from(ago.as_millis()).expect("not so long");
        }
        self.now.writer.perform(Step::Commit);
        ticket.waits = None;
    }

    /// Lets the first output take and finish this many events.
    fn deliver(&mut self, mut events: u64) {
        let cursor = &mut self.now.cursors[0];
        while events > 0 {
            let Some(batch) = cursor.next(Take { bytes: u64::MAX, events }) else {
                let job = cursor.job(false).expect("there are so many");
                let loaded = self.now.queue.shared.read(&job).expect("the disk is well");
                cursor.take_in(job.epoch, loaded);
                continue;
            };
            events -= batch.events;
            cursor.acknowledge(batch.claim, Disposition::default());
        }
    }

    /// Tells the first output's cursor by which rules events are chosen from now on.
    fn select(&self, selection: u64) {
        let cursor = &self.now.cursors[0];
        cursor.select(selection, cursor.with(|it| it.claims.read));
    }

    /// Saves the cursors, crashes the machine, and starts again.
    fn crash(&mut self) {
        self.now.writer.keep_up(Chore::Save);
        let disk = self.now.disk.crash(&mut fastrand::Rng::with_seed(7));
        self.now = open(disk, &self.names, &self.config);
    }

    /// Returns the positions of the events that are found before the first output's position.
    /// Checks that the lines are as they were sent.
    fn found(&self, within: Duration) -> Vec<u64> {
        self.positions(&self.now.cursors[0].before(within).all())
    }

    fn positions(&self, found: &[(Acceptance, Bytes)]) -> Vec<u64> {
        let mut positions = Vec::new();
        for (acceptance, lines) in found {
            for (position, line) in
                (acceptance.first.get()..).zip(lines.split_inclusive(|it| *it == b'\n'))
            {
                let index = usize::try_from(position).expect("a position");
                assert!(line == self.lines[index], "position {position}");
                positions.push(position);
            }
        }
        positions
    }

    /// Checks that nothing was counted as damaged or lost, or copied to the quarantine.
    fn check_counts(&self) {
        let series = ["spool_corrupt_records_total", "error_total{plugin=\"o\"}"];
        assert_eq!(values(&self.now.telemetry, series), [0, 0]);
        assert!(self.now.disk.names().iter().all(|name| !name.starts_with("quarantine/")));
    }
}

#[test]
fn what_was_delivered_before_a_crash_is_found_after_it() {
    let mut scene = Again::new(&["o", "other"]);
    assert_eq!(scene.found(ALWAYS), NOTHING);
    for _ in 0..40 {
        scene.send(5, 300, Duration::ZERO);
    }
    assert_eq!(scene.found(ALWAYS), NOTHING, "nothing was delivered");
    // The last delivered event is in the middle of a batch.
    scene.deliver(123);
    let delivered: Vec<_> = (0..123).collect();
    assert_eq!(scene.found(ALWAYS), delivered);
    scene.crash();
    assert_eq!(scene.found(ALWAYS), delivered);
    assert_eq!(scene.now.cursors[0].with(|it| it.claims.watermark()), 123);
    scene.check_counts();
    // The other events are delivered as without the crash.
    scene.deliver(77);
    assert_eq!(scene.found(ALWAYS), (0..200).collect::<Vec<_>>());
}

#[test]
fn what_was_received_before_the_window_is_left_out_and_ages_are_told() {
    let mut scene = Again::new(&["o", "other"]);
    for age in (0..120).rev() {
        scene.send(2, 400, MINUTE * age);
    }
    scene.deliver(240);
    scene.crash();
    let found = scene.now.cursors[0].before(MINUTE * 10 + MINUTE / 2).all();
    // The events were received 10, 9, … and 0 minutes ago.
    assert_eq!(scene.positions(&found), (218..240).collect::<Vec<_>>());
    for (minutes, (_, age)) in (0..11).rev().zip(found.iter().map(|(it, _)| (it.first, it.age))) {
        assert!((MINUTE * minutes..MINUTE * minutes + MINUTE / 2).contains(&age), "{age:?}");
    }
    assert_eq!(scene.found(MINUTE / 2), [238, 239]);
}

#[test]
fn the_newest_are_found_where_there_is_more_than_is_read() {
    let mut scene = Again::new(&["o", "other"]);
    for _ in 0..30 {
        scene.send(10, 1000, Duration::ZERO);
    }
    scene.deliver(295);
    let found = scene.found(ALWAYS);
    assert_eq!(found, (230..295).collect::<Vec<_>>(), "whole batches of the last 64 KiB");
}

#[test]
fn long_batches_are_found_in_parts() {
    let mut scene = Again::new(&["o", "other"]);
    scene.send(50, 500, Duration::ZERO);
    scene.send(1, 20_000, Duration::ZERO);
    scene.send(3, 100, Duration::ZERO);
    scene.deliver(40);
    assert_eq!(scene.found(ALWAYS), (0..40).collect::<Vec<_>>());
    scene.deliver(13);
    scene.crash();
    assert_eq!(scene.found(ALWAYS), (0..53).collect::<Vec<_>>());
}

#[test]
fn what_was_lost_and_all_before_it_is_not_found() {
    let mut scene = Again::new(&["o", "other"]);
    for _ in 0..4 {
        scene.send(5, 300, Duration::ZERO);
    }
    scene.deliver(5);
    let lost = scene.now.cursors[0].next(Take { bytes: u64::MAX, events: 5 }).expect("it is there");
    // The third batch is on the wire while the second one is given up. One of its events may not
    // have been sent, as a duplicate of an event that is given up.
    let third =
        scene.now.cursors[0].next(Take { bytes: u64::MAX, events: 5 }).expect("it is there");
    scene.now.cursors[0].acknowledge(lost.claim, Disposition::lost(1));
    scene.now.cursors[0].acknowledge(third.claim, Disposition::default());
    scene.deliver(5);
    assert_eq!(scene.found(ALWAYS), (15..20).collect::<Vec<_>>());
    scene.crash();
    assert_eq!(scene.found(ALWAYS), (15..20).collect::<Vec<_>>());
    assert_eq!(scene.now.cursors[0].with(|it| it.claims.watermark()), 20);
}

#[test]
fn nothing_is_found_that_other_rules_have_chosen() {
    let mut scene = Again::new(&["o", "other"]);
    scene.select(7);
    scene.send(5, 300, Duration::ZERO);
    scene.deliver(5);
    scene.crash();
    scene.select(7);
    assert_eq!(scene.found(ALWAYS), (0..5).collect::<Vec<_>>(), "the rules are the same");
    scene.select(8);
    assert_eq!(scene.found(ALWAYS), NOTHING);
    scene.send(5, 300, Duration::ZERO);
    scene.deliver(5);
    scene.crash();
    assert_eq!(scene.found(ALWAYS), (5..10).collect::<Vec<_>>());
    scene.select(7);
    assert_eq!(scene.found(ALWAYS), NOTHING);
}

#[test]
fn an_output_that_joins_has_got_nothing_of_what_is_there() {
    let mut scene = Again::new(&["o", "other"]);
    scene.send(10, 300, Duration::ZERO);
    let telemetry = Telemetry::new();
    let (_, mut new) = outputs(&telemetry, &["new"]);
    let joining = scene.now.queue.begin_to_join(new.remove(0)).expect("its name is free");
    scene.now.writer.keep_up(Chore::Save);
    let cursor = joining.end().expect("it is saved");
    assert_eq!(scene.positions(&cursor.before(ALWAYS).all()), NOTHING);
    // The same holds after a restart, and for an output that is new in the config.
    scene.names.extend(["new", "late"]);
    for _ in 0..2 {
        scene.crash();
        for cursor in &scene.now.cursors[2..] {
            assert_eq!(scene.positions(&cursor.before(ALWAYS).all()), NOTHING);
        }
    }
}

#[test]
fn what_is_damaged_unreadable_or_gone_is_passed_over_and_costs_nothing() {
    let mut scene = Again::new(&["o", "other"]);
    for _ in 0..60 {
        scene.send(1, 3000, Duration::ZERO);
    }
    scene.deliver(60);
    scene.crash();
    let whole = scene.found(ALWAYS);
    let firsts = segment::list(&scene.now.disk).expect("it can be read");
    let inside: Vec<_> =
        firsts.iter().filter(|first| **first > Position::new(whole[0])).copied().collect();
    let [broken, unreadable, .., gone] = inside[..] else { panic!("{firsts:?}, {whole:?}") };
    scene.now.disk.flip(&segment::file_name(broken), FIRST_RECORD + RECORD_HEADER + 9, 1);
    scene.now.disk.unreadable(&segment::file_name(unreadable), FIRST_RECORD);
    scene.now.disk.remove(&segment::file_name(gone)).expect("it is there");
    let found = scene.found(ALWAYS);
    for position in [broken, unreadable, gone] {
        assert!(!found.contains(&position.get()), "{position} in {found:?}");
        assert!(whole.contains(&position.get()));
    }
    assert!(found.contains(&broken.next().get()) && found.len() >= whole.len() / 2, "{found:?}");
    scene.check_counts();
}
