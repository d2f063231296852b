//! The power is lost after each single change of the disk, one after the other, while events are
//! stored, set aside, decided and forgotten, and again while the next start recovers.
//!
//! The simulation next to this file draws its crashes at random. Here, no change is left out.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;
use crate::Fate;
use crate::contract::{Aside, Batch, Claim, Outcome};
use base::disk::OpenError;

/// The number of states of the medium that are tried after each loss of power. They differ in the
/// changes that have reached it without a sync.
const MEDIA: u64 = 3;

/// The bytes of an event. About five fill a segment.
const BYTES: usize = 3000;

/// The facts about the events that are known outside the queue. The number of an event is its
/// position, because one thread appends them.
#[derive(Debug, Default, Clone)]
struct Known {
    /// The number of events whose senders were told that they are stored. One more may be there.
    stored: u64,
    /// The events that the queue may forget. With evidence, the evidence of the end is durable.
    may_go: BTreeSet<u64>,
    /// The notes of the output that are stored, and those that may be: the two are the same, except
    /// while notes are replaced.
    notes: [Option<Vec<u8>>; 2],
}

/// A life with or without evidence.
struct Life {
    has_evidence: bool,
    config: config::Queue,
    known: Known,
}

impl Life {
    fn new(has_evidence: bool) -> Self {
        let config = settings(512 << 10, 16 << 10, WhenFull::Reject);
        Self { has_evidence, config, known: Known::default() }
    }

    fn open(&self, disk: &SimulatedDisk) -> Result<Scene, OpenError> {
        let telemetry = Telemetry::new();
        let counts = vec![Counts::default(), Counts::default()];
        let mut outputs = vec![counts[0].output(&telemetry, "out", true)];
        if self.has_evidence {
            let recorder = Some(Position::START);
            let output = counts[1].output(&telemetry, "recorder", false);
            outputs.push(Output { recorder, ..output });
        }
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let directory = Path::new("spool");
        let (queue, cursors, writer) =
            recovery::open(shared, directory, &self.config, &telemetry, &outputs)?;
        Ok(Scene { disk: disk.clone(), queue, writer, cursors, counts, telemetry, sent: 0 })
    }

    fn send(&mut self, scene: &mut Scene) {
        let Ok(mut ticket) = scene.append(1, BYTES) else { return };
        scene.work(Step::Commit);
        if ticket.acknowledged().now_or_never().is_some_and(|answer| answer.is_ok()) {
            scene.sent += 1;
            self.known.stored += 1;
        }
    }

    fn take(scene: &mut Scene) -> Option<Claim> {
        Some(scene.cursors[0].next(Take { events: 1, ..ALL })?.claim)
    }

    fn deliver(&mut self, scene: &mut Scene) {
        let Some(claim) = Self::take(scene) else { return };
        scene.cursors[0].acknowledge(claim, Disposition::default());
        self.ended(claim.start);
    }

    /// The output has finished the event. With evidence, the evidence must have it, too.
    fn ended(&mut self, position: Position) {
        if !self.has_evidence {
            self.known.may_go.insert(position.get());
        }
    }

    fn set_aside(scene: &mut Scene) -> Option<Position> {
        let claim = Self::take(scene)?;
        let stored = scene.cursors[0].shelf().store(claim.start, b"{}");
        (stored.is_ok() && scene.cursors[0].set_aside(claim)).then_some(claim.start)
    }

    fn decide(&mut self, scene: &mut Scene, position: Option<Position>) {
        let Some(position) = position else { return };
        let event = Aside { bytes: 2, received: 0 };
        scene.cursors[0].settle_aside(position, event, Disposition::default());
        scene.cursors[0].shelf().remove(position);
        self.ended(position);
    }

    /// The evidence of everything that has ended so far becomes durable.
    fn record(&mut self, scene: &mut Scene) {
        if !self.has_evidence {
            return;
        }
        let finished = scene.cursors[1].take_finished();
        for it in &finished {
            let Outcome::Settled(fates) = &it.outcome else { panic!("{it:?} is lost") };
            if fates.rest != Some(Fate::Aside) {
                self.known.may_go.extend(it.claim.start.get()..it.claim.end.get());
            }
        }
        scene.cursors[1].recorded(&finished);
    }

    fn note(&mut self, scene: &mut Scene, text: &[u8]) {
        if scene.disk.is_dead() {
            return;
        }
        self.known.notes[1] = Some(text.to_vec());
        if scene.cursors[0].notes().store(text).is_ok() {
            self.known.notes[0] = Some(text.to_vec());
        }
    }

    fn keep_up(scene: &mut Scene) {
        for chore in [Chore::Cut, Chore::Save, Chore::Reclaim, Chore::Prepare] {
            scene.work(chore);
        }
    }

    /// Lives on this disk until the power is lost. Each event ends in another way, or not at all.
    fn live(&mut self, disk: &SimulatedDisk) -> Result<(), OpenError> {
        let mut scene = self.open(disk)?;
        for _ in 0..4 {
            self.send(&mut scene);
        }
        self.note(&mut scene, b"some");
        let first = Self::set_aside(&mut scene);
        self.deliver(&mut scene);
        self.record(&mut scene);
        Self::keep_up(&mut scene);
        let second = Self::set_aside(&mut scene);
        self.decide(&mut scene, first);
        Self::keep_up(&mut scene);
        self.record(&mut scene);
        // The next events need other segments, and the first segment is reclaimed.
        for _ in 0..9 {
            self.send(&mut scene);
        }
        for _ in 0..6 {
            self.deliver(&mut scene);
        }
        Self::keep_up(&mut scene);
        self.record(&mut scene);
        self.note(&mut scene, b"others");
        let _stays = Self::set_aside(&mut scene);
        self.decide(&mut scene, second);
        Self::keep_up(&mut scene);
        self.record(&mut scene);
        for _ in 0..5 {
            self.send(&mut scene);
        }
        Self::keep_up(&mut scene);
        scene.writer.end();
        Ok(())
    }

    /// Starts again, and checks where each event is.
    fn check(&self, disk: &SimulatedDisk, at: &str) {
        let mut scene = self.open(disk).unwrap_or_else(|error| panic!("{at}: {error}"));
        let found = scene.cursors[0].take_aside();
        let mut places = BTreeMap::<u64, u32>::new();
        for (position, bytes) in found {
            assert!(bytes > 0, "{at}: the file of {position} is missing, and the event is lost");
            let loaded = scene.cursors[0].shelf().load(position).expect("it was found");
            assert_eq!(loaded.damage, None, "{at}");
            *places.entry(position.get()).or_default() += 1;
        }
        for (position, number) in logged(&mut scene) {
            assert_eq!(position, number, "{at}: an event has the place of another one");
            *places.entry(position).or_default() += 1;
        }
        assert!(places.values().all(|count| *count == 1), "{at}: in two places: {places:?}");
        let missing = (0..self.known.stored).filter(|it| !places.contains_key(it));
        let forgotten: Vec<_> = missing.filter(|it| !self.known.may_go.contains(it)).collect();
        assert_eq!(forgotten, [0; 0], "{at}: {:?}, and there are {places:?}", self.known);
        assert_eq!(scene.counts[0].lost(), 0, "{at}");
        let notes = scene.cursors[0].notes().load().expect("they are whole");
        assert!(self.known.notes.contains(&notes), "{at}: {notes:?}");
        let damage = values(&scene.telemetry, ["spool_corrupt_records_total"]);
        assert_eq!(damage, [0], "{at}");
    }
}

/// Returns the position and the number of each event that the output gets from the log.
fn logged(scene: &mut Scene) -> Vec<(u64, u64)> {
    let mut events = Vec::new();
    loop {
        while let Some(batch) = scene.cursors[0].next(Take { events: 1, ..ALL }) {
            events.push((batch.claim.start.get(), number(&batch)));
        }
        let Some(job) = scene.cursors[0].job(false) else { return events };
        let loaded = scene.queue.shared.read(&job).expect("the disk is well");
        scene.cursors[0].take_in(job.epoch, loaded);
    }
}

fn number(batch: &Batch) -> u64 {
    let line: Vec<u8> = batch.pieces.iter().flat_map(|piece| piece.to_vec()).collect();
    let line = String::from_utf8(line).expect("letters");
    line.split(' ').next().and_then(|it| it.parse().ok()).expect("a number, and a space")
}

/// Returns the number of changes after which the power can be lost in a life.
fn lose_power_after_each_change(has_evidence: bool) -> u64 {
    for changes in 0.. {
        for medium in 0..MEDIA {
            let (mut life, disk) = (Life::new(has_evidence), SimulatedDisk::new(medium));
            disk.crash_after(changes);
            life.live(&disk).ok();
            if !disk.is_dead() {
                return changes;
            }
            let disk = disk.crash(&mut Rng::with_seed(medium));
            life.check(&disk, &format!("change {changes}, medium {medium}"));
        }
    }
    unreachable!("each life ends")
}

#[test]
fn the_power_may_be_lost_after_each_change_of_the_disk() {
    for has_evidence in [false, true] {
        let changes = lose_power_after_each_change(has_evidence);
        println!("{changes} changes");
        assert!(changes > 100, "{changes} changes are not the whole life");
    }
}

/// The power is lost once in the life, and once more after each change that the next start makes.
#[test]
fn the_power_may_be_lost_again_after_each_change_of_the_recovery() {
    let mut again = 0;
    for changes in (0..).step_by(3) {
        let mut life = Life::new(true);
        for second in 0.. {
            let disk = SimulatedDisk::new(second);
            (life.known, again) = (Known::default(), again + 1);
            disk.crash_after(changes);
            life.live(&disk).ok();
            if !disk.is_dead() {
                assert!(again > 300, "{again} losses in recoveries");
                return;
            }
            let disk = disk.crash(&mut Rng::with_seed(changes + second));
            disk.crash_after(second);
            if let Ok(scene) = life.open(&disk) {
                scene.writer.end();
            }
            if !disk.is_dead() {
                break;
            }
            let disk = disk.crash(&mut Rng::with_seed(second));
            life.check(&disk, &format!("changes {changes} and {second}"));
        }
    }
}
