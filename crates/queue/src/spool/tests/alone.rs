//! Promises of the durable queue that need their own scene, on a disk that does what the test says.

use rustix::io::Errno;

use super::*;
use crate::contract::Redelivery;
use crate::segment;
use base::disk::SEGMENTS;
use testing::simulated_disk::Operation;

impl Scene {
    fn alone(config: &config::Queue) -> Self {
        Self::open(SimulatedDisk::new(1), config, &[("o", true)], |_| {})
    }

    fn segments(&self) -> Vec<String> {
        let names = self.disk.names().into_iter();
        names.filter(|name| name.starts_with(SEGMENTS)).collect()
    }

    /// Sends events until another segment is the active one.
    fn fill_segment(&mut self) {
        let active =
            |scene: &Self| scene.queue.shared.lock().log.segments.back().map(|it| it.first);
        let before = active(self);
        while active(self) == before {
            assert_eq!(self.send(5000), Ok(()));
        }
    }
}

#[test]
fn the_room_of_a_batch_whose_sender_goes_is_free_again() {
    let mut scene = Scene::alone(&settings(1 << 20, 64 << 10, WhenFull::Reject));
    assert_eq!(scene.send(100), Ok(()));
    let free = |scene: &Scene| scene.queue.shared.lock().writing.accounting.segment_free();
    let before = free(&scene);
    let ticket = scene.append(1, 100).expect("there is room");
    assert!(free(&scene) < before);
    drop(ticket);
    assert_eq!(free(&scene), before);
}

/// Method: the sync of a batch fails, and the process is killed. The next process finds the batch
/// in the kernel's memory. Then the power fails.
#[test]
fn what_a_failed_sync_has_left_in_memory_is_stored_at_the_next_start() {
    let config = settings(512 << 10, 32 << 10, WhenFull::Reject);
    let open = |disk| Scene::open(disk, &config, &[("o", true)], |_| {});
    for seed in 0..50 {
        let mut scene = open(SimulatedDisk::new(seed));
        assert_eq!(scene.send(5000), Ok(()));
        scene.disk.fail(Operation::Sync, 0, Errno::IO);
        assert_eq!(scene.send(5000), Err(Refused::Disk));
        let scene = open(scene.disk);
        assert_eq!(scene.counts[0].start(), 2.0, "seed {seed}");
        let mut scene = open(scene.disk.crash(&mut fastrand::Rng::with_seed(seed)));
        scene.deliver_to(0);
        let counts = (scene.counts[0].delivered(), scene.counts[0].lost());
        assert_eq!(counts, (2, 0), "seed {seed}");
    }
}

/// Method: the file of one segment can't be deleted, while many others are filled, delivered and
/// deleted, and also after a start. The file must count as used space, and nothing may wait for its
/// deletion. It must be deleted as soon as that is possible.
#[test]
fn a_segment_that_cannot_be_deleted_keeps_no_other_one_and_no_sender_waiting() {
    let mut scene = Scene::alone(&settings(512 << 10, 32 << 10, WhenFull::Reject));
    scene.fill_segment();
    scene.fill_segment();
    let stuck = segment::file_name(Position::new(0));
    scene.disk.undeletable(&stuck);
    for round in 0..500 {
        assert!(scene.queue.admits(5000).is_ok(), "round {round}");
        assert_eq!(scene.send(5000), Ok(()), "round {round}");
        scene.deliver();
        if round % 7 == 0 {
            scene.writer.keep_up(Chore::Reclaim);
        }
        assert_eq!(scene.queue.fault(), None, "round {round}");
        let (held, files) = (scene.queue.held().0, scene.disk.bytes_in(SEGMENTS));
        assert_eq!(held, files + cursors::BYTES, "what is stuck counts");
    }
    scene.writer.keep_up(Chore::Reclaim);
    let segments = scene.segments();
    assert!(segments.contains(&stuck) && segments.len() == 2, "{segments:?}");
    assert_eq!((scene.counts[0].delivered(), scene.counts[0].lost()), (scene.sent, 0));

    // The next start finds the file that can't be deleted, and is not stopped by it.
    scene.writer.end();
    let (disk, config) = (scene.disk, settings(512 << 10, 32 << 10, WhenFull::Reject));
    let mut scene = Scene::open(disk, &config, &[("o", true)], |_| {});
    assert_eq!(scene.counts[0].start(), 0.0, "all of it was delivered");
    scene.fill_segment();
    scene.deliver();
    scene.writer.keep_up(Chore::Reclaim);
    assert!(scene.segments().contains(&stuck));
    assert_eq!(scene.counts[0].lost(), 0);

    // Later the file can be deleted again.
    scene.disk.calm();
    scene.writer.keep_up(Chore::Reclaim);
    assert!(!scene.segments().contains(&stuck), "it was not tried again");
    let files = scene.disk.bytes_in(SEGMENTS);
    assert_eq!(scene.queue.held().0, files + cursors::BYTES);
    scene.queue.observe();
    let [segments] = values(&scene.telemetry, ["spool_segments"]);
    assert_eq!(usize::try_from(segments), Ok(scene.segments().len()));
}

#[test]
fn nothing_is_deleted_twice_where_the_next_segment_has_the_name_of_a_stuck_one() {
    let mut scene = Scene::alone(&settings(512 << 10, 32 << 10, WhenFull::Reject));
    scene.fill_segment();
    scene.deliver();
    // The first group of the next segment can't be written. The segment stays empty, and its file
    // has the name that the segment after it needs.
    let next = segment::file_name(Position::new(scene.sent));
    while scene.queue.shared.lock().writing.accounting.segment_free() >= needed(5000) {
        assert_eq!(scene.send(5000), Ok(()));
        scene.deliver();
    }
    let name = segment::file_name(Position::new(scene.sent));
    assert_ne!(next, name);
    scene.disk.undeletable(&name);
    // The segment's header is written, and the group is not.
    let mut ticket = scene.append(1, 5000).expect("there is room");
    scene.disk.fail(Operation::Write, 1, Errno::IO);
    scene.writer.perform(Step::Commit);
    assert_eq!(ticket.acknowledged().now_or_never(), Some(Err(Refused::Disk)));
    for _ in 0..5 {
        scene.writer.perform(Step::Probe);
        scene.writer.keep_up(Chore::Reclaim);
    }
    assert!(scene.queue.fault().expect("its place is taken").contains("can't be deleted"));
    scene.disk.calm();
    scene.writer.perform(Step::Probe);
    assert_eq!(scene.queue.fault(), None);
    for _ in 0..20 {
        assert_eq!(scene.send(5000), Ok(()));
        scene.writer.keep_up(Chore::Reclaim);
    }
    scene.deliver();
    assert_eq!((scene.counts[0].delivered(), scene.counts[0].lost()), (scene.sent, 0));
}

/// Method: the write of the log's end into the file `synced` (the note) fails. Depending on the
/// seed of the disk, the note may be in the file nevertheless. The batch is refused, and the
/// process is killed, at once or some steps later. The refused events must not count as lost.
#[test]
fn events_that_were_refused_are_never_lost_although_the_note_names_them() {
    let config = settings(512 << 10, 32 << 10, WhenFull::Reject);
    for (seed, has_segment) in (0..250).flat_map(|seed| [(seed, false), (seed, true)]) {
        for steps in 0..4 {
            let disk = SimulatedDisk::new(seed);
            let mut scene = Scene::open(disk, &config, &[("o", true)], |_| {});
            if has_segment {
                assert_eq!(scene.send(100), Ok(()));
            }
            // A new segment has a header, which is written before the batch and the note.
            scene.disk.fail(Operation::Write, if has_segment { 1 } else { 2 }, Errno::IO);
            let refused = scene.append(3, 100).map(|mut ticket| {
                scene.writer.perform(Step::Commit);
                ticket.acknowledged().now_or_never()
            });
            assert_eq!(refused.expect("there is room"), Some(Err(Refused::Disk)));
            if steps > 0 {
                scene.writer.keep_up(Chore::Reclaim);
            }
            if steps > 1 {
                scene.writer.perform(Step::Probe);
                assert_eq!(scene.queue.fault(), None);
            }
            if steps > 2 {
                assert_eq!(scene.send(100), Ok(()));
            }
            let sent = scene.sent;
            let disk = scene.disk.clone();
            drop(scene);
            let mut scene = Scene::open(disk, &config, &[("o", true)], |_| {});
            scene.deliver_to(0);
            let (delivered, lost) = (scene.counts[0].delivered(), scene.counts[0].lost());
            assert_eq!(lost, 0, "seed {seed}, after {steps} steps");
            // The refused events may be stored: their sender may send them again.
            assert!([sent, sent + 3].contains(&delivered), "{delivered} of {sent}");
        }
    }
}

fn spares(scene: &Scene) -> Vec<String> {
    scene.disk.names().into_iter().filter(|name| name.ends_with(".spare")).collect()
}

/// Method: segments are filled and delivered in turn, with all due chores after each fill and each
/// delivery. After a few rounds no file may be made any more, and all segments must use earlier
/// files. At the end no file without events may be left.
#[test]
fn files_of_finished_segments_are_used_again() {
    let mut scene = Scene::alone(&settings(1 << 20, 32 << 10, WhenFull::Reject));
    let keep_up = |scene: &mut Scene| {
        for chore in [Chore::Prepare, Chore::Cut, Chore::Save, Chore::Reclaim] {
            let is_due = chore != Chore::Prepare || {
                let state = scene.queue.shared.lock();
                state.wants_spare(scene.queue.shared.usable())
            };
            if is_due {
                scene.writer.keep_up(chore);
            }
        }
    };
    for _ in 0..4 {
        scene.fill_segment();
        keep_up(&mut scene);
        scene.deliver();
        keep_up(&mut scene);
    }
    let made = scene.disk.count(Operation::Create);
    for round in 0..50 {
        scene.fill_segment();
        keep_up(&mut scene);
        scene.deliver();
        keep_up(&mut scene);
        assert!(spares(&scene).len() <= 2, "round {round}: {:?}", spares(&scene));
        let state = scene.queue.shared.lock();
        assert!(state.log.segments.back().is_some_and(|last| last.reused), "round {round}");
    }
    assert_eq!(scene.disk.count(Operation::Create), made, "no file was made");
    assert_eq!((scene.counts[0].delivered(), scene.counts[0].lost()), (scene.sent, 0));
    let held = scene.queue.held().0;
    assert!(held < (64 << 10) + cursors::BYTES, "{held}: spare files hold no events");
    scene.writer.end();
    let left: Vec<String> =
        scene.disk.names().into_iter().filter(|name| name.contains('/')).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Method: segments are filled, marked as damaged or not, and then delivered.
#[test]
fn the_files_of_damaged_segments_are_not_used_again() {
    for is_damaged in [false, true] {
        let mut scene = Scene::alone(&settings(1 << 20, 32 << 10, WhenFull::Reject));
        for _ in 0..3 {
            scene.fill_segment();
        }
        let mut state = scene.queue.shared.lock();
        for segment in state.log.segments.iter_mut().filter(|_| is_damaged) {
            segment.damaged.insert(0);
        }
        drop(state);
        scene.deliver();
        for chore in [Chore::Cut, Chore::Save, Chore::Reclaim] {
            scene.writer.keep_up(chore);
        }
        assert_eq!(spares(&scene).is_empty(), is_damaged, "{:?}", spares(&scene));
    }
}

/// Method: a reader has a finished segment open, as `queue export` does. The segment must be
/// deleted. The content that the reader has open must not change, however many segments follow.
#[test]
fn a_segment_that_somebody_reads_is_deleted_and_its_contents_stay() {
    let mut scene = Scene::alone(&settings(1 << 20, 32 << 10, WhenFull::Reject));
    scene.fill_segment();
    scene.fill_segment();
    let name = scene.segments().first().expect("one").clone();
    let contents = scene.disk.contents(&name);
    let reader = scene.disk.open(&name, base::disk::Access::Read).expect("it is there");
    for _ in 0..10 {
        scene.fill_segment();
        scene.deliver();
        for chore in [Chore::Cut, Chore::Save, Chore::Reclaim] {
            scene.writer.keep_up(chore);
        }
    }
    assert!(!scene.segments().contains(&name));
    let mut read = vec![0; contents.len()];
    reader.read_at(&mut read, 0).expect("it is open");
    assert!(read == contents, "it was overwritten");
}

/// Method: the log has given up the segment of a claim that is to be sent again, because its file
/// was deleted. The read of the claim must say at once that its events are missing, although a
/// segment follows. A read that fails would log that files were deleted, and pause.
#[test]
fn a_claim_whose_segment_is_gone_is_missing_at_once() {
    let mut scene = Scene::alone(&settings(1 << 20, 32 << 10, WhenFull::Reject));
    assert_eq!(scene.send(200), Ok(()));
    let claim = scene.cursors[0].next(ALL).expect("one event").claim;
    scene.cursors[0].release(claim);
    for _ in 0..20 {
        assert_eq!(scene.send(5000), Ok(()));
    }
    assert!(matches!(scene.cursors[0].redeliver(claim), Redelivery::NotYet), "it has to be read");
    scene.queue.shared.lock().give_up_segments(&[claim.start]);
    let job = scene.cursors[0].job(false).expect("to read it");
    let loaded = scene.queue.shared.read(&job).expect("no file is looked for");
    assert!(loaded.pieces.iter().all(load::Piece::is_gap), "{:?}", loaded.pieces);
}

#[test]
fn a_part_of_a_claim_gets_nothing_of_the_rest() {
    let mut scene = Scene::alone(&settings(1 << 20, 64 << 10, WhenFull::Reject));
    let mut ticket = scene.append(10, 200).expect("there is room");
    scene.writer.perform(Step::Commit);
    assert_eq!(ticket.acknowledged().now_or_never(), Some(Ok(())));
    scene.sent = 10;
    let whole = scene.cursors[0].next(ALL).expect("ten events").claim;
    scene.cursors[0].release(whole);
    // Later events take the claim's place in memory.
    for _ in 0..8 {
        assert_eq!(scene.send(5000), Ok(()));
    }
    assert!(matches!(scene.cursors[0].redeliver(whole), Redelivery::NotYet), "it has to be read");
    let job = scene.cursors[0].job(false).expect("to read all of it");
    let loaded = scene.queue.shared.read(&job).expect("the disk is well");
    // While the claim is being read, it is split, and its second half is asked for.
    let middle = whole.start + (whole.end - whole.start) / 2;
    let (left, right) = scene.cursors[0].split_at(whole, middle).expect("two halves");
    assert!(matches!(scene.cursors[0].redeliver(right), Redelivery::NotYet));
    scene.cursors[0].take_in(job.epoch, loaded);
    for half in [right, left] {
        let batch = loop {
            match scene.cursors[0].redeliver(half) {
                Redelivery::Batch(batch) => break batch,
                Redelivery::Gone => panic!("it was not dropped"),
                Redelivery::NotYet => {}
            }
            let job = scene.cursors[0].job(false).expect("it is to be read");
            let loaded = scene.queue.shared.read(&job).expect("the disk is well");
            scene.cursors[0].take_in(job.epoch, loaded);
        };
        let mut wanted = Vec::new();
        half.numbers().for_each(|number| write_line(number, 200, &mut wanted));
        assert!(batch.pieces.concat() == wanted, "{half:?} has {} events", batch.events);
        assert_eq!(batch.events, half.end - half.start);
    }
}
