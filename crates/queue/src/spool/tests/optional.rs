//! Optional outputs, and outputs that join, in cases where the simulation accepts several decisions
//! of the queue. Here the queue must do all that it can.

use super::*;
use crate::contract::Claim;

fn scene(config: &config::Queue) -> Scene {
    scene_with(config, |_| {})
}

/// Makes the same as [`scene`]. `change` changes the optional output.
fn scene_with(config: &config::Queue, change: impl FnOnce(&mut Output)) -> Scene {
    let outputs = [("required", true), ("optional", false)];
    Scene::open(SimulatedDisk::new(1), config, &outputs, change)
}

impl Scene {
    /// Lets the optional output take a claim, which its consumer never acknowledges.
    fn hang(&mut self) -> Claim {
        self.cursors[1].next(ALL).expect("it is in memory").claim
    }

    fn check(&self) {
        let backlogs = self.queue.backlogs();
        let backlog = |name: &str| {
            let found = backlogs.iter().find(|(other, _)| other == name);
            found.map(|(_, backlog)| backlog.events)
        };
        assert_eq!(backlog("required"), Some(0));
        let kept = backlog("optional").expect("it is here");
        let [required, optional] = &self.counts[..] else { panic!("two") };
        assert_eq!(
            (required.lost(), self.sent),
            (0, optional.delivered() + optional.lost() + kept)
        );
        let dropped = "queue_dropped_events_total{reason=\"drop_oldest\"}";
        assert_eq!(values(&self.telemetry, [dropped]), [0], "that is for when_full");
    }
}

/// Method: the optional output's consumer hangs while the required one keeps up with 500 batches,
/// which is much more than the queue can hold. No batch may be refused, and the optional output
/// must keep as many events as there is room for.
#[test]
fn nobody_is_refused_while_an_optional_output_has_what_could_go() {
    for when_full in [WhenFull::Reject, WhenFull::DropNewest, WhenFull::DropOldest] {
        let mut scene = scene(&settings(512 << 10, 32 << 10, when_full));
        assert_eq!(scene.send(5000), Ok(()));
        let hanging = scene.hang();
        for number in 0..500 {
            assert!(scene.queue.admits(5000).is_ok(), "batch {number}");
            assert_eq!(scene.send(5000), Ok(()), "batch {number}");
            scene.deliver();
            scene.check();
        }
        let lost = scene.counts[1].lost();
        assert!((440..480).contains(&lost), "{lost}: it has what room there is");
        scene.cursors[1].acknowledge(hanging, Disposition::default());
        assert_eq!((scene.counts[1].delivered(), scene.counts[1].lost()), (0, lost), "twice");
        scene.check();
    }
}

/// Method: the queue is filled with events that the required output has finished, and that are kept
/// for an optional output or for the evidence. Then the required output stops. Only then is the
/// queue nearly full, and a batch is refused.
#[test]
fn what_no_required_output_needs_does_not_count_as_full() {
    let (limit, segment) = (2 << 20, 64 << 10);
    for case in ["optional output", "evidence"] {
        let mut scene = scene_with(&settings(limit, segment, WhenFull::Reject), |output| {
            output.recorder = (case == "evidence").then_some(Position::START);
        });
        let is_crowded = scene.cursors[0].crowding();
        let mut most = 0;
        for number in 0..1000 {
            assert_eq!(scene.send(5000), Ok(()), "{case}, batch {number}");
            scene.deliver();
            scene.work(Chore::Reclaim);
            most = most.max(scene.queue.needed());
            assert!(!is_crowded(), "{case}, batch {number}: {} are needed", scene.queue.needed());
        }
        let held = scene.queue.held().0;
        assert!(held > limit / 4 * 3, "{case}: {held} are held");
        assert!(most <= cursors::BYTES, "{case}: {most} were needed");

        let mut sent = 0;
        while scene.send(5000).is_ok() {
            sent += 1;
            let needed = scene.queue.needed();
            let least = sent * 5000;
            assert!((least..limit).contains(&needed), "{case}: {needed} are needed for {least}");
        }
        assert!(scene.queue.is_full() && is_crowded(), "{case}");
        let (needed, usable) = (scene.queue.needed(), scene.queue.shared.usable());
        assert!(needed + segment > usable, "{case}: {needed} of {usable} are needed");
        scene.deliver();
        assert!(!scene.queue.is_full() && !is_crowded(), "{case}");
    }
}

/// In the active segment, only events count as needed that a required output has not finished.
/// Otherwise a queue with segments of a quarter of its size would always be a quarter full.
#[test]
fn a_few_events_that_wait_in_a_large_segment_are_few_bytes() {
    let mut scene = scene(&settings(4 << 20, 1 << 20, WhenFull::Reject));
    for _ in 0..100 {
        assert_eq!(scene.send(4000), Ok(()));
    }
    scene.deliver();
    assert_eq!(scene.queue.needed(), cursors::BYTES);
    for _ in 0..8 {
        assert_eq!(scene.send(4000), Ok(()));
    }
    let needed = scene.queue.needed() - cursors::BYTES;
    assert!((8 * 4000..8 * 8192).contains(&needed), "{needed} are needed");
    assert!(scene.queue.held().0 > 1 << 20, "the whole file is there");
}

#[test]
fn a_disk_that_is_smaller_than_the_queue_may_use_takes_from_the_optional_output_first() {
    let mut scene = scene(&settings(1 << 20, 32 << 10, WhenFull::Reject));
    scene.disk.capacity(400 << 10);
    for number in 0..200 {
        assert_eq!(scene.send(5000), Ok(()), "batch {number}");
        scene.deliver();
        scene.check();
        assert_eq!(scene.queue.fault(), None);
    }
    assert!(scene.counts[1].lost() > 100, "{}", scene.counts[1].lost());
}

#[test]
fn the_segment_that_is_written_to_makes_room_too_whoever_hangs() {
    let mut scene = scene(&settings(256 << 10, 64 << 10, WhenFull::Reject));
    for number in 0..20 {
        // The body is as large as a body may be. Two such bodies never fit into the queue together.
        let bytes = 128 << 10;
        if scene.send(bytes) == Err(Refused::Full) {
            scene.work(Step::Seal);
            scene.work(Chore::Reclaim);
            assert_eq!(scene.send(bytes), Ok(()), "batch {number}: its sender has come again");
        }
        scene.deliver();
        scene.check();
    }
    assert!(scene.counts[1].lost() >= 18, "{}", scene.counts[1].lost());
}

#[tokio::test(start_paused = true)]
async fn who_is_not_saved_in_time_has_not_joined() {
    let mut scene = scene(&settings(512 << 10, 32 << 10, WhenFull::Reject));
    let (queue, counts) = (scene.queue.clone(), Counts::default());
    let guest = counts.output(&scene.telemetry, "guest", true);
    // Nobody does the work of the upkeep, so joining takes too long.
    let refused = queue.join(guest.clone()).await.err();
    assert!(matches!(refused, Some(JoinError::Disk { within: HANGS, .. })), "{refused:?}");
    assert_eq!(queue.backlogs().len(), 2);
    {
        let joining = queue.join(guest.clone());
        tokio::pin!(joining);
        tokio::select! { biased; _ = &mut joining => panic!("not yet"), () = std::future::ready(()) => {} }
        assert_eq!(queue.backlogs().len(), 3, "it waits");
        assert_eq!(queue.join(guest.clone()).await.err(), Some(JoinError::Taken));
        assert_eq!(scene.send(5000), Ok(()));
        assert_eq!(queue.held().1, 1);
    }
    assert_eq!(queue.backlogs().len(), 2, "who asked for it has gone");
    assert_eq!(counts.lost(), 0, "and nothing was ever for it");

    let cursor = {
        let joining = queue.join(guest);
        tokio::pin!(joining);
        tokio::select! { biased; _ = &mut joining => panic!("not yet"), () = std::future::ready(()) => {} }
        assert_eq!(counts.start(), -1.0);
        scene.work(Chore::Save);
        joining.await.expect("it hears in time that it is saved")
    };
    assert_eq!(scene.send(5000), Ok(()));
    assert_eq!(cursor.remove(true), 1);
    let again = scene.queue.begin_to_join(counts.output(&scene.telemetry, "guest", true));
    assert_eq!((again.is_ok(), counts.start(), counts.lost()), (true, -1.0, 1));
}

#[test]
fn drop_oldest_drops_the_oldest_also_from_the_wire_of_an_optional_output() {
    let mut scene = scene(&settings(256 << 10, 32 << 10, WhenFull::DropOldest));
    assert_eq!(scene.send(5000), Ok(()));
    let hanging = scene.hang();
    for number in 0..100 {
        assert_eq!(scene.send(5000), Ok(()), "batch {number}: nobody delivers anything");
    }
    let [required, optional] = &scene.counts[..] else { panic!("two") };
    assert!((50..100).contains(&required.lost()), "{}", required.lost());
    assert_eq!(optional.lost(), required.lost(), "both lose the same: the oldest");
    let lost = optional.lost();
    let backlogs = scene.queue.backlogs();
    assert!(backlogs.iter().all(|(_, backlog)| backlog.events == scene.sent - lost));
    scene.cursors[1].acknowledge(hanging, Disposition::default());
    assert_eq!((scene.counts[1].delivered(), scene.counts[1].lost()), (0, lost), "counted once");
}
