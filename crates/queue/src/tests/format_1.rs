//! The committed spool of format version 1, which every later version has to read.
//!
//! Method: the directory in `tests/fixtures/spool-format-1` was made by the program of version
//! 0.1.0, and is never made again. Each test works on a copy. Events, positions and the outputs'
//! places must be exactly those that were acknowledged then.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{embedded_config, outputs, values};
use crate::inspect::{Directory, Seen};
use crate::{Append, Cursor, Disposition, Position, Queue, Take};
use audit::LevelCounts;
use telemetry::Telemetry;

const EVENTS: u64 = 47;

fn fixture() -> PathBuf {
    testing::repository("tests/fixtures/spool-format-1")
}

/// Makes a copy of the committed spool, which a test may change.
fn copy() -> TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(copy.path().join("segments")).expect("it can be made");
    let spool = fixture().join("spool");
    fs::copy(spool.join("cursors"), copy.path().join("cursors")).expect("it can be copied");
    for entry in fs::read_dir(spool.join("segments")).expect("it is there") {
        let entry = entry.expect("it can be read");
        let to = copy.path().join("segments").join(entry.file_name());
        fs::copy(entry.path(), to).expect("it can be copied");
    }
    copy
}

fn events(positions: Range<u64>) -> String {
    let all = fs::read_to_string(fixture().join("events.jsonl")).expect("it is there");
    assert_eq!(all.lines().count() as u64, EVENTS);
    let index = |position| usize::try_from(position).expect("it is small");
    let wanted = all.lines().skip(index(positions.start));
    wanted.take(index(positions.end - positions.start)).map(|line| format!("{line}\n")).collect()
}

fn config(directory: &Path) -> config::Queue {
    config::Queue { directory: Some(directory.to_owned()), ..embedded_config() }
}

/// Reads and acknowledges everything up to a position, and returns the lines.
async fn drain(cursor: &mut Cursor, end: u64) -> String {
    let mut lines = Vec::new();
    while cursor.position().get() < end {
        cursor.readable().await;
        let Some(batch) = cursor.next(Take { bytes: 10_000, events: 9 }) else { continue };
        assert_eq!(batch.events, batch.claim.end - batch.claim.start, "nothing is missing");
        lines.extend(batch.pieces.concat());
        cursor.acknowledge(batch.claim, Disposition::default());
    }
    String::from_utf8(lines).expect("JSON is UTF-8")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_of_format_1_is_read_event_for_event_and_goes_on() {
    let spool = copy();
    let telemetry = Telemetry::new();
    let (counts, outputs) = outputs(&telemetry, &["analysis", "archive"]);
    let config = config(spool.path());
    let opened = Queue::open(&config, &telemetry, &outputs);
    let (queue, mut cursors) = opened.expect("this version reads it");
    assert!(queue.is_durable());

    let places: Vec<Position> = cursors.iter().map(Cursor::watermark).collect();
    assert_eq!(places, [Position::new(11), Position::START], "as the cursors file says");

    let lines = events(0..1);
    let append = Append {
        lines: lines.clone().into(),
        events: 1,
        levels: LevelCounts::default(),
        list: None,
    };
    let mut ticket = queue.append(append).expect("there is room");
    ticket.acknowledged().await.expect("the disk is well");

    let analysis = drain(&mut cursors[0], EVENTS + 1).await;
    assert!(analysis == events(11..EVENTS) + &lines, "the backlog, then the new event");
    let archive = drain(&mut cursors[1], EVENTS + 1).await;
    assert!(archive == events(0..EVENTS) + &lines, "all events, then the new one");
    assert_eq!([counts[0].delivered(), counts[1].delivered()], [37, 48]);
    assert_eq!([counts[0].lost(), counts[1].lost()], [0, 0]);
    assert_eq!(values(&telemetry, ["spool_corrupt_records_total"]), [0]);
    queue.close().await;
}

#[test]
fn the_commands_read_a_spool_of_format_1() {
    let spool = copy();
    let directory = Directory::open(spool.path()).expect("it holds a queue");

    let summary = directory.summary().expect("it can be read");
    assert_eq!((summary.format, summary.segments), (1, 3));
    assert_eq!((summary.first.get(), summary.end.get()), (0, EVENTS));
    let backlogs = summary.outputs.iter().map(|output| (output.name.as_str(), output.events));
    assert_eq!(backlogs.collect::<Vec<_>>(), [("analysis", 36), ("archive", 47)]);

    let verdict = directory.verify(&mut |_| Ok(())).expect("it can be read");
    assert_eq!((verdict.events, verdict.findings, verdict.missing), (EVENTS, 0, 0));
    assert!(verdict.unfinished.is_none());

    let mut lines = Vec::new();
    let exported = directory.export(None, &mut |seen| {
        if let Seen::Lines(more) = seen {
            lines.extend_from_slice(more);
        }
        Ok(())
    });
    exported.expect("it can be read");
    assert!(lines == events(0..EVENTS).into_bytes(), "every event as it was sent");
}
