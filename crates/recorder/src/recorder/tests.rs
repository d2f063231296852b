//! The recorder on a disk that fails and forgets, one step after the other: a power loss may come
//! between any two of its writes.
//!
//! The queue is in memory and outlives each power loss, as if its own files were durable. A start
//! reads again what the recorder had not finished.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::*;
use crate::store::tests::entries;
use evidence_log::layout::{HEAD, KNOWN, LINES, OFF, ROLLED_BACK, path};
use evidence_log::lines::Records;
use evidence_log::tlog::checkpoint::Signed;
use evidence_log::tlog::merkle::{Head, root};
use queue::{Append, Output};
use telemetry::Telemetry;
use testing::simulated_disk::{Operation, SimulatedDisk};

const ORIGIN: &str = "example.org/relay-0";

const CHECKPOINT: &str = "evidence/checkpoint";

/// The time between two checkpoints.
const INTERVAL: Duration = Duration::from_secs(4);

/// Returns the line of the event at this position, without its line break.
fn line(position: u64) -> String {
    format!("{{\"auditID\":\"{position}\"}}")
}

/// A machine with a queue and a recorder.
struct Machine {
    rng: fastrand::Rng,
    disk: SimulatedDisk,
    key: String,
    queue: Queue,
    telemetry: Telemetry,
    /// The number of events that came in.
    events: u64,
    /// The ranges of events that came in while evidence was off.
    off: Vec<Positions<u64>>,
    /// The checkpoints that somebody may have seen.
    seen: Vec<Head>,
}

/// A recorder that runs, and the newest checkpoint that it has published.
struct Life {
    work: Work,
    published: watch::Receiver<Bytes>,
}

impl Machine {
    /// Makes a machine, and returns it with the recorder's place in the queue.
    fn new(seed: u64) -> (Self, Cursor) {
        let telemetry = Telemetry::new();
        let queue = config::Queue {
            max_bytes: 1 << 30,
            directory: None,
            ephemeral: false,
            segment_bytes: 1 << 20,
            acknowledge: config::Acknowledge::Queued,
            delivered_timeout: Duration::from_secs(1),
            when_full: config::WhenFull::Reject,
            retry_after: Duration::from_secs(1),
        };
        let reader = Output {
            name: String::new(),
            required: false,
            metrics: Telemetry::of_no_output(),
            recorder: Some(Position::START),
        };
        let opened = Queue::open(&queue, &telemetry, &[reader]).expect("it is in memory");
        let (queue, mut cursors) = opened;
        let machine = Self {
            rng: fastrand::Rng::with_seed(seed),
            disk: SimulatedDisk::new(seed),
            key: SigningKey::generate(ORIGIN).expect("random numbers").1,
            queue,
            telemetry,
            events: 0,
            off: Vec::new(),
            seen: Vec::new(),
        };
        (machine, cursors.remove(0))
    }

    /// Lets `count` events come in.
    fn append(&mut self, count: u64) {
        let lines = (self.events..self.events + count).map(|position| line(position) + "\n");
        let lines = Bytes::from(lines.collect::<String>());
        self.events += count;
        let batch = Append { lines, events: count, levels: Default::default(), list: None };
        let _ticket = self.queue.append(batch).expect("there is room");
    }

    /// Returns what a recorder needs. The line hashes may take `max_bytes`.
    fn setup(&self, cursor: Cursor, max_bytes: u64) -> (Setup, watch::Receiver<Bytes>) {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let metrics = self.telemetry.evidence();
        let (publish, published) = watch::channel(Bytes::new());
        let settings = config::Evidence {
            key_file: "unused".into(),
            next_key_file: None,
            origin: ORIGIN.to_owned(),
            checkpoint_interval: INTERVAL,
            heartbeat_interval: Duration::from_secs(30),
            max_bytes,
            witnesses: Vec::new(),
        };
        let setup = Setup {
            settings,
            keys: vec![SigningKey::parse(&self.key).expect("it is a key")],
            queue: self.queue.clone(),
            positions: (cursor.position(), Position::new(self.events)),
            originals: Arc::new(Originals::new(Arc::clone(&disk), metrics.clone())),
            disk,
            cursor,
            off: self.off.clone(),
            running: Running::default(),
            metrics,
            witnesses: Vec::new(),
            checkpoints: publish,
        };
        (setup, published)
    }

    /// Starts the recorder, and lets it open its files.
    fn start(&mut self, cursor: Cursor, max_bytes: u64) -> Life {
        let (setup, published) = self.setup(cursor, max_bytes);
        setup.cursor.tell_acceptances(true);
        let mut work = Work::new(setup);
        work.begin();
        Life { work, published }
    }

    /// Starts the recorder, lets `count` events come in, and gives it three turns.
    async fn live(&mut self, cursor: Cursor, count: u64) -> Life {
        let mut life = self.start(cursor, 1 << 30);
        self.append(count);
        for _ in 0..3 {
            tokio::time::advance(INTERVAL).await;
            life.work.turn();
        }
        life
    }

    /// Ends the recorder as a kill does. Returns its place in the queue as the next start finds it.
    fn kill(&mut self, life: Life) -> Cursor {
        let published = life.published.borrow().clone();
        if !published.is_empty() {
            self.seen.push(Signed::parse(&published).expect("it is a checkpoint").checkpoint.head);
        }
        let mut cursor = life.work.setup.cursor;
        cursor.rewind();
        cursor
    }

    /// Lets evidence be off for a while in which events come in.
    fn turn_off(&mut self, count: u64) {
        off::turned_off(&self.disk, self.events).expect("no fault is set");
        self.append(count);
    }

    fn turn_on(&mut self) {
        self.off = off::turned_on(&self.disk, self.events).expect("no fault is set");
    }

    /// Returns how many entries the checkpoint on the disk covers.
    fn signed(&self) -> u64 {
        match self.disk.names().iter().any(|name| name == CHECKPOINT) {
            true => {
                let note = self.disk.contents(CHECKPOINT);
                Signed::parse(&note).expect("it is a checkpoint").checkpoint.head.size
            }
            false => 0,
        }
    }

    /// Returns the records of line hashes that are on the disk, by their roots.
    fn records(&self) -> BTreeMap<[u8; 32], Record> {
        let names = self.disk.names().into_iter();
        let files = names.filter(|name| name.starts_with(&path(&format!("{LINES}/"))));
        let contents: Vec<_> = files.map(|name| self.disk.contents(&name)).collect();
        let records = contents.iter().flat_map(|content| Records::of(content));
        let whole = records.filter_map(|(_, record)| record.ok());
        whole.map(|record| (record.range.root().0, record)).collect()
    }

    /// Checks the log of a recorder that has just opened it: every event before `recorded` has one
    /// entry, and a line hash unless an entry says that it was deleted.
    fn assert_whole(&self, work: &Work, recorded: u64) {
        let log = work.state.log().expect("no fault is set");
        assert_eq!(log.store.alarms, [], "nobody else has written");
        let all = entries(&log.store);
        let (mut next, mut below, mut accepted) = (0, 0, Vec::new());
        for entry in &all {
            match Entry::parse(entry).expect("it is an entry") {
                Entry::Accepted { first, count, root, .. } => {
                    assert_eq!(first, next, "events without an entry, or with two");
                    accepted.push((first..first + count, root));
                    next += count;
                }
                Entry::Alarm { what: Alarm::Off { first, count }, .. } => {
                    assert_eq!(first, next);
                    next += count;
                }
                Entry::Pruned { below: until, .. } => below = until,
                Entry::Start(_) | Entry::Heartbeat { .. } | Entry::Stop(_) => {}
                other @ (Entry::Delivered(_)
                | Entry::Lost { .. }
                | Entry::Reload(_)
                | Entry::Key { .. }
                | Entry::Alarm { .. }) => panic!("{other:?}"),
            }
        }
        assert!(next >= recorded, "events {next}..{recorded} have left the queue unrecorded");
        let records = self.records();
        for (range, root) in accepted.into_iter().filter(|(range, _)| range.start >= below) {
            let record = records.get(&root.0).unwrap_or_else(|| {
                panic!("the hashes of {range:?} are gone, and not because of {below}")
            });
            let wanted: Vec<_> = range.map(|at| Hash::of(&[line(at).as_bytes()])).collect();
            assert_eq!(record.range.lines, wanted);
        }
        let leaves: Vec<_> = all.iter().map(|entry| Hash::of_leaf(entry)).collect();
        for seen in &self.seen {
            let size = usize::try_from(seen.size).expect("a few");
            let begin = leaves.get(..size).map(|leaves| root(leaves.iter().copied()));
            assert_eq!(begin, Some(seen.root), "{size} entries were published");
        }
    }

    /// Checks that each range without evidence has an entry that a checkpoint covers, so that the
    /// file with the ranges could be deleted. A checkpoint covers `signed` entries.
    fn assert_off_is_signed(off: &[Positions<u64>], work: &Work, signed: u64) {
        let log = work.state.log().expect("no fault is set");
        let all = entries(&log.store);
        let signed = &all[..usize::try_from(signed).expect("a few")];
        let signed: Vec<_> = signed.iter().filter_map(|it| Entry::parse(it).ok()).collect();
        for range in off {
            let is_it = |entry: &Entry| {
                matches!(entry, Entry::Alarm { what: Alarm::Off { first, count }, .. }
                    if *first <= range.start && first + count >= range.end)
            };
            assert!(signed.iter().any(is_it), "no signed entry is about {range:?}");
        }
    }

    fn has(&self, name: &str) -> bool {
        self.disk.names().iter().any(|found| found == name)
    }
}

/// Lets a recorder live and crash `lives` times. Each start checks that nothing is missing.
async fn live(seed: u64, lives: usize, (events_max, max_bytes): (u64, u64), operations: u64) {
    println!("seed {seed}");
    let (mut machine, mut cursor) = Machine::new(seed);
    for _ in 0..lives {
        machine.disk.calm();
        let recorded = cursor.watermark().get();
        let (signed, is_off_noted) = (machine.signed(), machine.has(OFF));
        let off = std::mem::take(&mut machine.off);
        if machine.rng.u8(..4) == 0 {
            let count = machine.rng.u64(1..40);
            machine.turn_off(count);
        }
        machine.turn_on();
        let mut life = machine.start(cursor, max_bytes);
        machine.assert_whole(&life.work, recorded);
        if !is_off_noted {
            Machine::assert_off_is_signed(&off, &life.work, signed);
        }
        if machine.rng.bool() {
            machine.disk.faults(0.05);
        }
        machine.disk.crash_after(machine.rng.u64(1..operations));
        for _ in 0..100 {
            if machine.disk.is_dead() {
                break;
            }
            if machine.rng.bool() {
                let count = machine.rng.u64(1..=events_max);
                machine.append(count);
            }
            tokio::time::advance(Duration::from_millis(machine.rng.u64(..1500))).await;
            life.work.turn();
        }
        cursor = machine.kill(life);
        // Sometimes only the process ends, and not the machine.
        if machine.disk.is_dead() || machine.rng.bool() {
            machine.disk = machine.disk.crash(&mut machine.rng);
        }
    }
    // With a disk that works, everything is recorded and signed, and nothing waits.
    machine.disk.calm();
    let recorded = cursor.watermark().get();
    machine.turn_on();
    let mut life = machine.start(cursor, max_bytes);
    machine.assert_whole(&life.work, recorded);
    for _ in 0..20 {
        tokio::time::advance(INTERVAL).await;
        life.work.turn();
    }
    machine.assert_whole(&life.work, machine.events);
    let log = life.work.state.log().expect("no fault is set");
    assert_eq!(log.store.signed(), log.store.head());
    assert_eq!(life.work.setup.cursor.watermark().get(), machine.events);
    assert!(!machine.has(OFF) && machine.has(KNOWN) && machine.has(HEAD));
}

#[tokio::test(start_paused = true)]
async fn no_power_loss_takes_the_evidence_of_an_event_that_has_left_the_queue() {
    for seed in 0..20 {
        live(seed, 8, (30, 1 << 30), 150).await;
    }
}

/// Method: 500 short lives, so that there are power losses at each step of writing.
#[tokio::test(start_paused = true)]
async fn no_power_loss_at_any_step_is_an_alarm() {
    for seed in 0..25 {
        live(seed, 20, (3, 1 << 30), 40).await;
    }
}

/// Method: so many events come in that the oldest line hashes are deleted all the time.
#[tokio::test(start_paused = true)]
async fn line_hashes_are_deleted_only_when_an_entry_that_is_durable_says_so() {
    for seed in 0..6 {
        live(seed, 8, (600, 100 << 10), 200).await;
    }
}

/// Method: the power fails at each step of a write that deletes old line hashes. The next start
/// must find every file that `evidence-head` names.
#[tokio::test(start_paused = true)]
async fn old_line_hashes_are_there_until_no_file_names_them() {
    const MAX: u64 = 100 << 10;
    // The hashes of one range fill a file of 64 KiB, and those of two take more than `MAX`.
    const EVENTS: u64 = 2100;
    for seed in 0..6 {
        for steps in 1.. {
            let (mut machine, cursor) = Machine::new(seed);
            let mut life = machine.start(cursor, MAX);
            machine.append(EVENTS);
            for _ in 0..2 {
                tokio::time::advance(INTERVAL).await;
                life.work.turn();
            }
            machine.append(EVENTS);
            machine.disk.crash_after(steps);
            for _ in 0..2 {
                tokio::time::advance(COMMIT_EVERY).await;
                life.work.turn();
            }
            let is_over = !machine.disk.is_dead();
            let cursor = machine.kill(life);
            let recorded = cursor.watermark().get();
            machine.disk = machine.disk.crash(&mut machine.rng);
            let life = machine.start(cursor, MAX);
            machine.assert_whole(&life.work, recorded);
            if is_over {
                assert_eq!(recorded, 2 * EVENTS);
                break;
            }
        }
    }
}

/// Method: the disk refuses each change for a while.
#[tokio::test(start_paused = true)]
async fn events_stay_in_the_queue_while_nothing_can_be_written_and_are_recorded_later() {
    let (mut machine, cursor) = Machine::new(1);
    machine.disk.read_only(true);
    let mut life = machine.start(cursor, 1 << 30);
    assert!(matches!(life.work.state, State::Closed(_)));
    assert!(matches!(life.work.trouble, Trouble::Waits(_)));
    for is_open in [false, true, true] {
        let before = life.work.setup.cursor.watermark().get();
        machine.disk.read_only(true);
        machine.append(7);
        for _ in 0..10 {
            tokio::time::advance(PAUSE).await;
            life.work.turn();
        }
        assert_eq!(life.work.setup.cursor.watermark().get(), before);
        assert_eq!(life.work.state.log().is_some(), is_open);
        assert_ne!(life.work.trouble, Trouble::None);
        machine.disk.calm();
        for _ in 0..4 {
            tokio::time::advance(INTERVAL).await;
            life.work.turn();
        }
        assert_eq!(life.work.setup.cursor.watermark().get(), machine.events);
        assert_eq!(life.work.trouble, Trouble::None);
        machine.assert_whole(&life.work, machine.events);
    }
    let errors = machine.telemetry.evidence().errors.counts();
    let (tried, others): (Vec<_>, Vec<_>) =
        errors.into_iter().partition(|(reason, _)| *reason == "write");
    assert!(tried.iter().all(|(_, count)| *count > 20), "{tried:?}");
    assert!(others.iter().all(|(_, count)| *count == 0), "{others:?}");
}

/// Method: an earlier version was killed, and has left a journal. The first attempts to open the
/// log fail after they have found it.
#[tokio::test(start_paused = true)]
async fn an_alarm_that_a_failed_start_has_found_gets_one_entry() {
    let (mut machine, cursor) = Machine::new(1);
    let life = machine.live(cursor, 5).await;
    let cursor = machine.kill(life);
    base::disk::replace(&machine.disk, "evidence/journal", b"other").expect("no fault is set");
    machine.disk.remove(HEAD).expect("it is there");
    // The second list is that of the line hashes, when the journal was set aside already.
    machine.disk.fail(Operation::List, 1, Errno::IO);
    let mut life = machine.start(cursor, 1 << 30);
    assert!(matches!(life.work.state, State::Closed(_)));
    assert!(!machine.has("evidence/journal"));
    tokio::time::advance(PAUSE).await;
    life.work.turn();
    let log = life.work.state.log().expect("no fault is set");
    let all: Vec<_> = entries(&log.store).iter().filter_map(|it| Entry::parse(it).ok()).collect();
    let alarms = all.iter().filter(|it| matches!(it, Entry::Alarm { what: Alarm::Journal, .. }));
    assert_eq!(alarms.count(), 1, "{all:?}");
}

/// Method: `evidence-head` was removed while events wait in the queue. The next process is killed
/// after its first commit, before it has read an event. The process after it must not count the
/// events as received: somebody may have changed their lines.
#[tokio::test(start_paused = true)]
async fn what_is_not_proven_is_told_with_the_first_commit() {
    let (mut machine, cursor) = Machine::new(1);
    let life = machine.live(cursor, 5).await;
    let mut cursor = machine.kill(life);
    machine.append(4);
    machine.disk.remove(HEAD).expect("it is there");
    for _ in 0..2 {
        let life = machine.start(cursor, 1 << 30);
        let log = life.work.state.log().expect("no fault is set");
        let all: Vec<_> =
            entries(&log.store).iter().filter_map(|it| Entry::parse(it).ok()).collect();
        let is_off = |it: &&Entry| {
            matches!(it, Entry::Alarm { what: Alarm::Off { first: 5, count: 4 }, .. })
        };
        assert_eq!(all.iter().filter(is_off).count(), 1, "{all:?}");
        cursor = machine.kill(life);
    }
}

/// Method: a witness has contradicted the log. No later process may sign anything.
#[tokio::test(start_paused = true)]
async fn a_log_that_was_contradicted_is_not_gone_on_with_and_lets_go_of_the_events() {
    let (mut machine, cursor) = Machine::new(1);
    let mut life = machine.live(cursor, 5).await;
    let log = life.work.state.log().expect("no fault is set");
    log.store.roll_back("another root").expect("no fault is set");
    life.work.roll_back("another root");
    let mut cursor = machine.kill(life);
    machine.disk = machine.disk.crash(&mut machine.rng);
    assert!(machine.has(ROLLED_BACK), "it is durable");
    for _ in 0..2 {
        machine.append(6);
        let before = machine.disk.changes();
        let mut life = machine.start(cursor, 1 << 30);
        for _ in 0..3 {
            tokio::time::advance(INTERVAL).await;
            life.work.turn();
        }
        assert!(matches!(life.work.state, State::RolledBack));
        assert_eq!(machine.disk.changes(), before, "nothing is written");
        assert_eq!(life.work.setup.cursor.watermark().get(), machine.events);
        assert!(life.published.borrow().is_empty());
        cursor = machine.kill(life);
    }
}

/// Method: while the relay runs, somebody removes the checkpoint, or the whole log. The events
/// whose evidence was not durable are read again, and the log says that something was removed.
#[tokio::test(start_paused = true)]
async fn a_log_that_is_removed_while_the_relay_runs_goes_on_with_what_is_left() {
    for everything in [false, true] {
        let (mut machine, cursor) = Machine::new(1);
        let mut life = machine.start(cursor, 1 << 30);
        for _ in 0..2 {
            machine.append(5);
            tokio::time::advance(INTERVAL).await;
            life.work.turn();
        }
        machine.append(4);
        let names = machine.disk.names().into_iter();
        let gone = names.filter(|name| match everything {
            true => name.starts_with("evidence/"),
            false => name == CHECKPOINT,
        });
        gone.for_each(|name| machine.disk.remove(&name).expect("it is there"));
        for _ in 0..3 {
            tokio::time::advance(INTERVAL).await;
            life.work.turn();
        }
        let log = life.work.state.log().expect("no fault is set");
        let all: Vec<_> =
            entries(&log.store).iter().filter_map(|it| Entry::parse(it).ok()).collect();
        let is_alarm = |it: &&Entry| matches!(it, Entry::Alarm { what: Alarm::Removed, .. });
        assert_eq!(all.iter().filter(is_alarm).count(), 1, "{all:?}");
        let last = all.iter().filter_map(Entry::in_queue).next_back();
        assert_eq!(last, Some(10..14), "{all:?}");
        assert_eq!(life.work.setup.cursor.watermark().get(), 14);
        assert_eq!(machine.records().len(), if everything { 1 } else { 3 });
    }
}

/// Method: an output finishes events, and the disk of the evidence refuses writes. Until the
/// entries about them are durable, the next start of the relay must find these events in the queue.
#[tokio::test]
async fn the_place_of_an_output_waits_for_the_evidence_of_what_it_has_finished() {
    let (mut machine, _) = Machine::new(1);
    let directory = tempfile::tempdir().expect("a directory");
    let output = |name: &str, recorder: Option<Position>| Output {
        name: name.to_owned(),
        required: recorder.is_none(),
        metrics: Telemetry::of_no_output(),
        recorder,
    };
    let config = config::Queue {
        max_bytes: 8 << 20,
        directory: Some(directory.path().to_owned()),
        ephemeral: false,
        segment_bytes: 1 << 20,
        acknowledge: config::Acknowledge::Synced,
        delivered_timeout: Duration::from_secs(1),
        when_full: config::WhenFull::Reject,
        retry_after: Duration::from_secs(1),
    };
    let outputs = [output("o", None), output("", Some(Position::START))];
    let opened = Queue::open(&config, &machine.telemetry, &outputs).expect("a new directory");
    let (queue, mut cursors) = opened;
    machine.queue = queue;
    let reader = cursors.pop().expect("there are two");
    let mut output = cursors.pop().expect("there are two");
    let places = |machine: &Machine, life: &Life| {
        (machine.queue.places()[0].1.get(), life.work.setup.cursor.watermark().get())
    };
    let mut life = machine.start(reader, 1 << 30);
    for round in 1..=3_u64 {
        machine.disk.read_only(true);
        let lines = Bytes::from("{}\n".repeat(5));
        let batch = Append { lines, events: 5, levels: Default::default(), list: None };
        let mut ticket = machine.queue.append(batch).expect("there is room");
        assert_eq!(ticket.acknowledged().await, Ok(()));
        output.readable().await;
        let batch = output.next(TAKE).expect("it is readable");
        output.acknowledge(batch.claim, Disposition::default());
        life.work.setup.cursor.readable().await;
        life.work.take();
        life.work.write(false);
        assert_eq!(places(&machine, &life), (5 * (round - 1), 5 * (round - 1)));
        machine.disk.calm();
        life.work.write(false);
        assert_eq!(places(&machine, &life), (5 * round, 5 * round));
    }
    drop((life, output));
    machine.queue.close().await;
}
