//! Optional outputs, and outputs that join, in cases where the simulation lets the queue choose.
//! Here the queue must do all that it can.

use bytes::Bytes;

use super::super::cursor::Cursor;
use super::*;
use crate::audit::LevelCounts;
use crate::queue::contract::Claim;
use crate::queue::contract::Disposition;
use crate::queue::contract::Take;
use crate::queue::tests::simulated_disk::SimulatedDisk;

const ALL: Take = Take { bytes: u64::MAX, events: u64::MAX };

/// A queue on one thread with two outputs, one required and one optional.
struct Scene {
    disk: SimulatedDisk,
    queue: Queue,
    writer: Writer,
    /// The cursors of the required output and of the optional one.
    cursors: [Cursor; 2],
    counts: [Counts; 2],
    telemetry: Telemetry,
    sent: u64,
}

impl Scene {
    fn new(config: &config::Queue) -> Self {
        Self::with(config, |_| {})
    }

    /// Makes the queue. `change` changes the optional output.
    fn with(config: &config::Queue, change: impl FnOnce(&mut Output)) -> Self {
        let (disk, telemetry) = (SimulatedDisk::new(1), Telemetry::new());
        let counts = [Counts::default(), Counts::default()];
        let mut outputs = [
            counts[0].output(&telemetry, "required", true),
            counts[1].output(&telemetry, "optional", false),
        ];
        change(&mut outputs[1]);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let opened = recovery::open(shared, Path::new("spool"), config, &telemetry, &outputs);
        let (queue, cursors, writer) = opened.expect("nothing is there yet");
        let cursors = <[Cursor; 2]>::try_from(cursors).ok().expect("two");
        Self { disk, queue, writer, cursors, counts, telemetry, sent: 0 }
    }

    fn work(&mut self, work: impl Into<Work>) {
        work.into().perform(&mut self.writer);
    }

    /// Sends one event of this many bytes. Returns the answer to its sender.
    fn send(&mut self, bytes: usize) -> Result<(), Refused> {
        let mut lines = Vec::new();
        write_line(self.sent, bytes, &mut lines);
        let lines = Bytes::from(lines);
        let append = Append { lines, events: 1, levels: LevelCounts::default() };
        let mut ticket = self.queue.append(append)?;
        self.work(Step::Commit);
        let answer = ticket.done.as_mut().expect("it waits").try_recv().expect("it is told");
        self.sent += u64::from(answer.is_ok());
        ticket.place = None;
        answer
    }

    /// Lets the required output take and finish everything that there is.
    fn deliver(&mut self) {
        self.deliver_to(0);
        assert_eq!(self.counts[0].delivered(), self.sent);
    }

    fn deliver_to(&mut self, output: usize) {
        let cursor = &mut self.cursors[output];
        loop {
            while let Some(batch) = cursor.next(ALL) {
                cursor.acknowledge(batch.claim, Disposition::default());
            }
            let Some(job) = cursor.job(false) else { break };
            let loaded = self.queue.shared.read(&job).expect("the disk is well");
            cursor.take_in(job.epoch, loaded);
        }
    }

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
        let [required, optional] = &self.counts;
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
        let mut scene = Scene::new(&settings(512 << 10, 32 << 10, when_full));
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
/// for an optional output, for the evidence, or for `deduplicate`. Then the required output stops.
/// Only then is the queue nearly full, and a batch is refused.
#[test]
fn what_no_required_output_needs_does_not_count_as_full() {
    let (limit, segment) = (2 << 20, 64 << 10);
    for case in ["optional output", "evidence", "deduplicate"] {
        let mut scene = Scene::with(&settings(limit, segment, WhenFull::Reject), |output| {
            output.recorder = (case == "evidence").then_some(Position::START);
        });
        if case == "deduplicate" {
            scene.cursors[0].keep(Duration::from_secs(3600));
        }
        let is_crowded = scene.cursors[0].crowding();
        let mut most = 0;
        for number in 0..1000 {
            assert_eq!(scene.send(5000), Ok(()), "{case}, batch {number}");
            scene.deliver();
            if case == "deduplicate" {
                scene.deliver_to(1);
            }
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

/// Of the segment that is written to, only the events count that a required output has not
/// finished: with segments of a quarter of the queue, it would otherwise be a quarter full for
/// ever.
#[test]
fn a_few_events_that_wait_in_a_large_segment_are_few_bytes() {
    let mut scene = Scene::new(&settings(4 << 20, 1 << 20, WhenFull::Reject));
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
    let mut scene = Scene::new(&settings(1 << 20, 32 << 10, WhenFull::Reject));
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
    let mut scene = Scene::new(&settings(256 << 10, 64 << 10, WhenFull::Reject));
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

#[test]
fn a_smaller_queue_drops_nothing_and_keeps_to_what_it_has_planned() {
    let mut scene = Scene::new(&settings(1 << 20, 64 << 10, WhenFull::Reject));
    for _ in 0..80 {
        assert_eq!(scene.send(8000), Ok(()));
    }
    // The batch is large enough to begin a segment.
    let append = |bytes: usize| Append {
        lines: Bytes::from([vec![b'x'; bytes - 1], vec![b'\n']].concat()),
        events: 1,
        levels: LevelCounts::default(),
    };
    let mut planned = scene.queue.append(append(100_000)).expect("room");
    scene.queue.apply(&settings(256 << 10, 16 << 10, WhenFull::Reject));
    assert_eq!(scene.queue.capacity(), 256 << 10);
    scene.work(Step::Commit);
    let answer = planned.done.as_mut().expect("it waits").try_recv();
    assert_eq!(answer, Ok(Ok(())), "there was room as it came");
    assert_eq!(scene.queue.fault(), None);
    scene.sent += 1;
    assert!(scene.queue.append(append(100_000)).is_err());
    assert_eq!(scene.counts[1].lost(), 0);
    assert_eq!(scene.queue.held().1, 81, "all of it is there");
}

#[tokio::test(start_paused = true)]
async fn who_is_not_saved_in_time_has_not_joined() {
    let mut scene = Scene::new(&settings(512 << 10, 32 << 10, WhenFull::Reject));
    let (queue, counts) = (scene.queue.clone(), Counts::default());
    let guest = counts.output(&scene.telemetry, "guest", true);
    // Nobody does the writer's work, so joining takes too long.
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

    let joining = queue.begin_to_join(guest).expect("its name is free");
    assert_eq!(counts.start(), -1.0);
    assert!(!joining.is_saved());
    scene.work(Chore::Save);
    joining.saved().await;
    let cursor = joining.end().expect("it has joined");
    assert_eq!(scene.send(5000), Ok(()));
    assert_eq!(cursor.leave(), 1);
    let again = scene.queue.begin_to_join(counts.output(&scene.telemetry, "guest", true));
    assert_eq!((again.is_ok(), counts.start(), counts.lost()), (true, -1.0, 1));
}

#[test]
fn one_that_joined_for_nothing_has_lost_nothing() {
    let mut scene = Scene::new(&settings(512 << 10, 32 << 10, WhenFull::Reject));
    let counts = Counts::default();
    let guest = counts.output(&scene.telemetry, "guest", true);
    assert_eq!(scene.send(5000), Ok(()));
    let joining = scene.queue.begin_to_join(guest.clone()).expect("its name is free");
    scene.work(Chore::Save);
    let undone = crate::queue::Cursor::Spool(joining.end().expect("it has joined"));
    assert_eq!(scene.send(5000), Ok(()));
    undone.leave_uncounted();
    assert_eq!((counts.lost(), counts.start()), (0, -2.0), "it adds up to 0");
    let again = scene.queue.begin_to_join(guest);
    assert_eq!((again.is_ok(), counts.start(), counts.lost()), (true, -2.0, 0));
}

#[test]
fn drop_oldest_drops_the_oldest_also_from_the_wire_of_an_optional_output() {
    let mut scene = Scene::new(&settings(256 << 10, 32 << 10, WhenFull::DropOldest));
    assert_eq!(scene.send(5000), Ok(()));
    let hanging = scene.hang();
    for number in 0..100 {
        assert_eq!(scene.send(5000), Ok(()), "batch {number}: nobody delivers anything");
    }
    let [required, optional] = &scene.counts;
    assert!((50..100).contains(&required.lost()), "{}", required.lost());
    assert_eq!(optional.lost(), required.lost(), "both lose the same: the oldest");
    let lost = optional.lost();
    let backlogs = scene.queue.backlogs();
    assert!(backlogs.iter().all(|(_, backlog)| backlog.events == scene.sent - lost));
    scene.cursors[1].acknowledge(hanging, Disposition::default());
    assert_eq!((scene.counts[1].delivered(), scene.counts[1].lost()), (0, lost), "counted once");
}
