//! Events that an output sets aside.

use super::*;
use crate::contract::Aside;
use base::disk::ASIDE;

#[test]
fn an_event_that_is_set_aside_is_kept_for_the_next_start_and_told_so() {
    let config = settings(1 << 20, 64 << 10, WhenFull::Reject);
    let mut scene = Scene::open(SimulatedDisk::new(1), &config, &[("out", true)], |_| {});
    (0..3).for_each(|_| scene.send(100).expect("there is room"));
    let cursor = &mut scene.cursors[0];
    let batch = cursor.next(Take { events: 1, ..ALL }).expect("three events");
    assert!(cursor.set_aside(batch.claim));
    let batch = cursor.next(Take { events: 1, ..ALL }).expect("two events");
    cursor.acknowledge(batch.claim, Disposition::default());
    assert_eq!(scene.queue.kept(), [("out".to_owned(), 2)]);
    scene.queue.observe();
    let outcomes = scene.telemetry.outcomes();
    let kept = outcomes.iter().map(|outcome| (outcome.name.as_str(), outcome.kept));
    assert!(kept.clone().any(|it| it == ("out", 2)), "{:?}", kept.collect::<Vec<_>>());
}

/// Method: the segment with the event is deleted, because the output has finished everything else.
#[test]
fn an_event_that_is_set_aside_outlives_the_cursors_file() {
    let config = settings(1 << 20, 64 << 10, WhenFull::Reject);
    let open = |disk| Scene::open(disk, &config, &[("out", true)], |_| {});
    let mut scene = open(SimulatedDisk::new(1));
    scene.send(2000).expect("there is room");
    let cursor = &mut scene.cursors[0];
    let first = cursor.next(ALL).expect("an event").claim;
    cursor.shelf().store(first.start, b"{}").expect("the disk is well");
    assert!(cursor.set_aside(first));
    (1..100).for_each(|_| scene.send(2000).expect("there is room"));
    scene.deliver_to(0);
    scene.work(Chore::Save);
    scene.work(Chore::Reclaim);
    scene.disk.remove(cursors::FILE).expect("it was saved");
    let scene = open(scene.disk);
    let backlog = scene.queue.backlogs()[0].1.events;
    assert!(backlog < 100, "the log still has all events");
    let found = scene.cursors[0].take_aside();
    assert_eq!(found.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [first.start]);
}

/// Method: the file of an event is written, and the process is killed before its claim is final.
#[test]
fn an_event_whose_claim_was_not_final_comes_from_the_log_alone() {
    let config = settings(1 << 20, 64 << 10, WhenFull::Reject);
    let open = |disk| Scene::open(disk, &config, &[("out", true)], |_| {});
    let mut scene = open(SimulatedDisk::new(1));
    (0..3).for_each(|_| scene.send(100).expect("there is room"));
    let cursor = &mut scene.cursors[0];
    let claims = [(); 2].map(|()| {
        let batch = cursor.next(Take { events: 1, ..ALL }).expect("three events");
        cursor.shelf().store(batch.claim.start, b"{}").expect("the disk is well");
        batch.claim
    });
    assert!(cursor.set_aside(claims[0]));
    scene.work(Chore::Save);
    let mut scene = open(scene.disk);
    let found = scene.cursors[0].take_aside();
    let found: Vec<_> = found.into_iter().map(|(at, _)| at).collect();
    assert_eq!(found, [claims[0].start], "the other one is in the log");
    scene.deliver_to(0);
    assert_eq!(scene.counts[0].delivered(), 2);
}

/// Method: with evidence, an event that was set aside is decided. The process is killed before the
/// evidence of the decision is durable, or after it.
#[test]
fn a_decided_event_is_kept_until_the_evidence_of_the_decision_is_durable() {
    let config = settings(1 << 20, 64 << 10, WhenFull::Reject);
    let open = |disk| {
        let outputs = [("out", true), ("recorder", false)];
        Scene::open(disk, &config, &outputs, |it| it.recorder = Some(Position::START))
    };
    for is_durable in [false, true] {
        let mut scene = open(SimulatedDisk::new(1));
        scene.send(100).expect("there is room");
        let claim = scene.cursors[0].next(ALL).expect("an event").claim;
        let shelf = scene.cursors[0].shelf();
        shelf.store(claim.start, b"{}").expect("the disk is well");
        assert!(scene.cursors[0].set_aside(claim));
        let of_set_aside = scene.cursors[1].take_finished();
        let event = Aside { bytes: 2, received: 0 };
        scene.cursors[0].settle_aside(claim.start, event, Disposition::lost(1));
        shelf.remove(claim.start);
        scene.cursors[1].recorded(&of_set_aside);
        let of_decision = scene.cursors[1].take_finished();
        assert_eq!(of_decision.len(), 1);
        if is_durable {
            scene.cursors[1].recorded(&of_decision);
        }
        scene.work(Chore::Save);
        let scene = open(scene.disk);
        let found = scene.cursors[0].take_aside();
        assert_eq!(found.is_empty(), is_durable, "{found:?}");
    }
}

fn files(disk: &SimulatedDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.starts_with(ASIDE)).collect()
}

/// Sets aside the first events of a new queue, each second one, and stops it. Returns their
/// positions.
fn stopped(config: &config::Queue, events: u64) -> (SimulatedDisk, Vec<Position>) {
    let mut scene = Scene::open(SimulatedDisk::new(1), config, &[("out", true)], |_| {});
    let mut aside = Vec::new();
    for number in 0..2 * events {
        scene.send(100).expect("there is room");
        let claim = scene.cursors[0].next(ALL).expect("an event").claim;
        if number % 2 == 0 {
            scene.cursors[0].shelf().store(claim.start, b"{}").expect("the disk is well");
            assert!(scene.cursors[0].set_aside(claim));
            aside.push(claim.start);
        } else {
            scene.cursors[0].acknowledge(claim, Disposition::default());
        }
    }
    let Scene { disk, writer, .. } = scene;
    writer.end();
    (disk, aside)
}

/// Method: some of the files are deleted while the relay is down. The second time the process is
/// killed before it has saved the cursors again.
#[test]
fn an_event_whose_file_is_deleted_is_found_missing() {
    let config = settings(1 << 20, 64 << 10, WhenFull::Reject);
    for (left, kills) in [(0, 0), (2, 0), (2, 1), (3, 1)] {
        let (disk, aside) = stopped(&config, 3);
        let files = files(&disk);
        assert_eq!(files.len(), 3, "{files:?}");
        let own =
            |name: &&String| aside[left..].iter().any(|at| name.contains(&format!("{at:020}")));
        files.iter().filter(own).for_each(|name| disk.remove(name).expect("it is there"));
        for _ in 0..kills {
            drop(Scene::open(disk.clone(), &config, &[("out", true)], |_| {}));
        }
        let scene = Scene::open(disk, &config, &[("out", true)], |_| {});
        let found = scene.cursors[0].take_aside();
        let missing: Vec<_> = found.iter().filter(|(_, bytes)| *bytes == 0).collect();
        assert_eq!((found.len(), missing.len()), (3, 3 - left), "{found:?}");
        assert_eq!(found.iter().map(|(at, _)| *at).collect::<Vec<_>>(), aside);
    }
}

/// Method: an event is decided, and the process is killed before and after each of the steps that
/// follow. A file that the relay itself has deleted must never be a loss.
#[test]
fn the_file_of_a_decided_event_is_deleted_after_the_cursors_are_saved_without_it() {
    let config = settings(1 << 20, 64 << 10, WhenFull::Reject);
    let open = |disk| Scene::open(disk, &config, &[("out", true)], |_| {});
    let mut rng = fastrand::Rng::with_seed(7);
    let mut states = std::collections::BTreeSet::new();
    for changes in 0..40 {
        let (disk, aside) = stopped(&config, 1);
        let mut scene = open(disk);
        assert_eq!(scene.cursors[0].take_aside().len(), 1);
        let event = Aside { bytes: 2, received: 0 };
        scene.cursors[0].settle_aside(aside[0], event, Disposition::default());
        scene.cursors[0].shelf().remove(aside[0]);
        assert_eq!(files(&scene.disk).len(), 1, "the cursors file lists it");
        scene.disk.crash_after(changes);
        scene.work(Chore::Save);
        let scene = open(scene.disk.crash(&mut rng));
        let found = scene.cursors[0].take_aside();
        let is_lost = found.iter().any(|(_, bytes)| *bytes == 0);
        assert!(!is_lost, "{changes}: {found:?}");
        states.insert(found.len());
    }
    assert_eq!(states.into_iter().collect::<Vec<_>>(), [0, 1], "each of the two was seen");
}

/// Method: more events are set aside than a slot of the cursors file has room for, each a range of
/// its own. Then the file of one of the last is deleted.
#[test]
fn each_of_many_events_is_missed() {
    let config = settings(4 << 20, 64 << 10, WhenFull::Reject);
    let (disk, aside) = stopped(&config, 1500);
    let missing = aside[1400];
    disk.remove(&crate::shelf::name("out", missing)).expect("it is there");
    let scene = Scene::open(disk, &config, &[("out", true)], |_| {});
    let found = scene.cursors[0].take_aside();
    assert_eq!(found.len(), aside.len());
    let found: Vec<_> = found.into_iter().filter(|(_, bytes)| *bytes == 0).collect();
    assert_eq!(found, [(missing, 0)]);
}

/// Method: a power loss, after each number of changes, while an event is set aside and the place of
/// its output moves behind it. Before the save, the event comes from the log, and then from its
/// file.
#[test]
fn an_event_is_in_the_log_or_set_aside_after_a_power_loss() {
    let config = settings(1 << 20, 64 << 10, WhenFull::Reject);
    let open = |disk| Scene::open(disk, &config, &[("out", true)], |_| {});
    let seed = fastrand::u64(..);
    let (mut rng, mut places) = (fastrand::Rng::with_seed(seed), std::collections::BTreeSet::new());
    for changes in 0..40 {
        let mut scene = open(SimulatedDisk::new(seed));
        scene.send(100).expect("there is room");
        let claim = scene.cursors[0].next(ALL).expect("an event").claim;
        scene.disk.crash_after(changes);
        if scene.cursors[0].shelf().store(claim.start, b"{}").is_ok() {
            assert!(scene.cursors[0].set_aside(claim));
            scene.work(Chore::Save);
        }
        let mut scene = open(scene.disk.crash(&mut rng));
        let found = scene.cursors[0].take_aside();
        scene.deliver_to(0);
        let (of_log, of_file) = (scene.counts[0].delivered(), found.len() as u64);
        assert_eq!(of_log + of_file, 1, "seed {seed}, {changes}: {found:?}");
        assert!(found.iter().all(|(_, bytes)| *bytes > 0), "seed {seed}, {changes}: {found:?}");
        assert_eq!(files(&scene.disk).len() as u64, of_file, "seed {seed}, {changes}");
        places.insert(of_file);
    }
    assert_eq!(places.len(), 2, "each of the two was seen, seed {seed}");
}

/// Method: names that no output needs are in the directory at a start, hundreds of each type.
#[test]
fn a_name_that_is_not_listed_costs_no_read_and_no_sync() {
    let config = settings(1 << 20, 64 << 10, WhenFull::Reject);
    let read = |disk: &SimulatedDisk| {
        use testing::simulated_disk::Operation::{Bytes, Open, Sync, SyncDirectory};
        [Open, Bytes, Sync, SyncDirectory].map(|operation| disk.count(operation))
    };
    let remove = |disk: &SimulatedDisk| disk.count(testing::simulated_disk::Operation::Remove);
    let mut costs = Vec::new();
    for count in [0, 600] {
        let (disk, aside) = stopped(&config, 3);
        for number in 0..count {
            let at = Position::new(100 + number);
            let own = crate::shelf::name("out", at);
            let other = crate::shelf::name("other", at);
            for name in [format!("{own}.new"), format!("{ASIDE}/{number}"), own, other] {
                disk.create(&name, 10).expect("no fault is set");
            }
        }
        let (before, removed) = (read(&disk), remove(&disk));
        let scene = Scene::open(disk.clone(), &config, &[("out", true)], |_| {});
        let after = read(&disk);
        costs.push([0, 1, 2, 3].map(|index| after[index] - before[index]));
        assert_eq!(remove(&disk) - removed, 1000.min(2 * count));
        let found = scene.cursors[0].take_aside();
        assert_eq!(found.into_iter().map(|(at, _)| at).collect::<Vec<_>>(), aside);
    }
    assert_eq!(costs[0], costs[1]);
}

/// Method: half of the cursors file is damaged, and nobody knows whether its list was newer.
#[test]
fn a_list_that_may_be_old_makes_no_event_lost() {
    let config = settings(1 << 20, 64 << 10, WhenFull::Reject);
    let (disk, _) = stopped(&config, 2);
    files(&disk).iter().for_each(|name| disk.remove(name).expect("it is there"));
    disk.flip(cursors::FILE, 20, 1);
    let scene = Scene::open(disk, &config, &[("out", true)], |_| {});
    assert_eq!(scene.cursors[0].take_aside(), []);
}

/// Method: the queue drops the event of an optional output while the event's file is written.
#[test]
fn an_event_that_was_dropped_is_not_set_aside() {
    let config = settings(512 << 10, 32 << 10, WhenFull::Reject);
    let outputs = [("required", true), ("optional", false)];
    let mut scene = Scene::open(SimulatedDisk::new(1), &config, &outputs, |_| {});
    scene.send(5000).expect("there is room");
    let claim = scene.cursors[1].next(ALL).expect("it is in memory").claim;
    for _ in 0..200 {
        scene.send(5000).expect("older events make room");
        scene.deliver_to(0);
    }
    let lost = scene.counts[1].lost();
    assert!(lost > 0 && !scene.cursors[1].set_aside(claim));
    assert_eq!(values(&scene.telemetry, ["output_aside_events{output=\"optional\"}"]), [0]);
    assert_eq!((scene.counts[1].lost(), scene.counts[1].delivered()), (lost, 0));
}
