//! Files in `segments/` that the queue did not write.

use super::*;
use crate::segment;
use crate::segment::{FIRST_RECORD, LogOffset, RecordHeader, SEGMENT_HEADER, Seed, SegmentHeader};
use base::disk::SEGMENTS;

fn open(disk: &SimulatedDisk) -> Scene {
    let config = settings(1 << 20, 32 << 10, WhenFull::Reject);
    Scene::open(disk.clone(), &config, &[("out", true)], |_| {})
}

/// Makes a queue with a few segments, whose first events are delivered. Returns the positions of
/// the last segment and of the end.
fn fill(disk: &SimulatedDisk) -> (Position, Position) {
    let mut scene = open(disk);
    (0..20).for_each(|_| scene.send(4000).expect("there is room"));
    scene.deliver();
    (0..20).for_each(|_| scene.send(4000).expect("there is room"));
    scene.work(Chore::Save);
    let log = &scene.queue.shared.lock().log;
    assert!(log.segments.len() > 3, "{:?}", log.segments);
    (log.segments.back().expect("a segment").first.position, log.end.position)
}

fn put(disk: &SimulatedDisk, first: Position, bytes: &[u8]) -> String {
    let name = segment::file_name(first);
    let file = disk.create(&name, bytes.len() as u64).expect("it is new");
    file.write_at(&[bytes], 0).expect("no fault is set");
    file.sync().expect("no fault is set");
    disk.sync_directory(SEGMENTS).expect("no fault is set");
    name
}

/// Returns the bytes of a whole segment of another queue, with one event.
fn of_another_queue(first: Position) -> Vec<u8> {
    let place = LogOffset { position: first, byte: first.get().wrapping_mul(800) };
    let seed = Seed::of(first);
    let lines = b"{\"another\":\"queue\"}\n";
    let record = RecordHeader {
        first,
        first_byte: place.byte,
        received: 1,
        length: lines.len() as u64,
        events: 1,
        group: first,
        crc: seed.crc(lines),
    };
    let mut bytes = vec![0; usize::try_from(FIRST_RECORD).expect("it fits")];
    bytes[..SEGMENT_HEADER].copy_from_slice(&SegmentHeader::new(place, 1, false).encode());
    bytes.extend(record.encode(seed));
    bytes.extend(lines);
    bytes
}

/// Method: each file is put into the directory of a stopped queue, which is then opened twice.
#[test]
fn a_file_that_the_queue_did_not_write_is_left_alone_and_nothing_is_counted() {
    for kind in 0..7 {
        let disk = SimulatedDisk::new(1);
        let (last, end) = fill(&disk);
        let own = disk.contents(&segment::file_name(last));
        let far = Position::new(100_000);
        let (first, bytes) = match kind {
            0 => (far, of_another_queue(end)),
            1 => (end.next(), of_another_queue(far)),
            2 => (far, own),
            // A copy among the queue's own segments: no event behind it is lost.
            3 => (last.next(), own),
            4 => (end, own),
            5 => (far, Vec::new()),
            _ => (Position::MAX, vec![0xA5; 9000]),
        };
        let name = put(&disk, first, &bytes);
        for _ in 0..2 {
            let mut scene = open(&disk);
            let found = scene.queue.shared.lock().log.end.position;
            assert_eq!(found, end, "file {kind}");
            scene.deliver_to(0);
            let counts = (scene.counts[0].lost(), scene.counts[0].delivered());
            assert_eq!(counts, (0, 20), "file {kind}");
            assert_eq!(disk.contents(&name), bytes, "file {kind}");
        }
    }
}

/// Method: the foreign file has the position of an event that the queue gets later: in the middle
/// of a segment, and then the position at which a segment begins.
#[test]
fn the_log_goes_past_the_position_of_a_foreign_file_and_keeps_both() {
    for ahead in 0..20 {
        let disk = SimulatedDisk::new(1);
        let (_, end) = fill(&disk);
        let first = end + 1 + ahead;
        let bytes = of_another_queue(Position::new(100_000));
        let name = put(&disk, first, &bytes);
        for _ in 0..3 {
            let mut scene = open(&disk);
            (0..10).for_each(|_| scene.send(4000).expect("there is room"));
            scene.work(Chore::Save);
        }
        let mut scene = open(&disk);
        scene.deliver_to(0);
        assert_eq!((scene.counts[0].lost(), scene.counts[0].delivered()), (0, 50), "{first}");
        let renamed = format!("{name}.foreign-");
        let kept: Vec<_> = disk.names().into_iter().filter(|it| it.starts_with(&renamed)).collect();
        assert_eq!(kept.len(), 1, "{first}: {:?}", disk.names());
        assert_eq!(disk.contents(&kept[0]), bytes, "{first}");
    }
}

/// Method: the files `synced` and `cursors` are as they were before the last segments were begun.
#[test]
fn after_a_power_loss_that_took_the_note_of_the_end_the_queues_segments_are_its_own() {
    let disk = SimulatedDisk::new(1);
    fill(&disk);
    let old = [synced::FILE, cursors::FILE].map(|name| (name, disk.contents(name)));
    let mut scene = open(&disk);
    (0..20).for_each(|_| scene.send(4000).expect("there is room"));
    drop(scene);
    for (name, bytes) in old {
        let file = disk.open(name, base::disk::Access::Write).expect("it is there");
        file.write_at(&[&bytes], 0).expect("no fault is set");
    }
    let mut scene = open(&disk);
    scene.deliver_to(0);
    assert_eq!((scene.counts[0].lost(), scene.counts[0].delivered()), (0, 40));
}

#[test]
fn a_deleted_segment_of_the_queue_counts_as_lost() {
    let disk = SimulatedDisk::new(1);
    let (last, _) = fill(&disk);
    let names = segment::list(&disk).expect("no fault is set");
    let before = names[names.len() - 2];
    disk.remove(&segment::file_name(before)).expect("it is there");
    let mut scene = open(&disk);
    scene.deliver_to(0);
    assert_eq!(scene.counts[0].lost(), last - before);
    assert_eq!(scene.counts[0].delivered(), 20 - (last - before));
}
