//! The events that an earlier version has set aside: with a note for each file, and without a list
//! in the cursors file.

use std::fs;
use std::path::Path;

use super::{embedded_config, outputs};
use crate::{Append, Cursor, Position, Queue, Take};
use audit::LevelCounts;
use telemetry::Telemetry;

const OUTPUT: &str = "archive";

fn open(directory: &Path) -> (Queue, Cursor) {
    let config = config::Queue { directory: Some(directory.to_owned()), ..embedded_config() };
    let telemetry = Telemetry::new();
    let (_, outputs) = outputs(&telemetry, &[OUTPUT]);
    let (queue, mut cursors) = Queue::open(&config, &telemetry, &outputs).expect("it can be read");
    (queue, cursors.remove(0))
}

fn file(position: u64) -> String {
    format!("{OUTPUT}-{position:020}.json")
}

/// Makes the directory one of an earlier version, which did not know the list of this version.
fn turn_back(directory: &Path) {
    let path = directory.join("cursors");
    let mut slots = fs::read(&path).expect("it was saved");
    slots.truncate(2 * 16_384);
    for slot in slots.chunks_mut(16_384) {
        let at = memchr::memmem::find(slot, b"\xFFKAFALL\0").expect("it has a list");
        slot[at..at + 8].fill(0);
        let length = u32::from_le_bytes(slot[12..16].try_into().unwrap()) as usize;
        let crc = crc32c::crc32c(&slot[..length - 4]);
        slot[length - 4..length].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(path, slots).expect("it can be written");
    let notes = directory.join("set-aside-names");
    fs::create_dir(&notes).expect("it does not exist");
    for position in 0..4 {
        fs::write(notes.join(file(position)), "").expect("it can be written");
    }
}

/// Method: one file is deleted before the start of this version, and another one after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_an_earlier_version_is_missed_before_and_after_the_first_start() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let directory = directory.path();
    let (queue, mut cursor) = open(directory);
    for event in ["1", "2", "3", "4"] {
        let (lines, levels) = (format!("{event}\n").into(), LevelCounts::default());
        let append = Append { lines, events: 1, levels, list: None };
        let mut ticket = queue.append(append).expect("there is room");
        ticket.acknowledged().await.expect("the disk is well");
        cursor.readable().await;
        let claim = cursor.next(Take { bytes: 10, events: 1 }).expect("an event").claim;
        cursor.shelf().store(claim.start, b"{}").expect("the disk is well");
        assert!(cursor.set_aside(claim, &[]).is_some());
    }
    queue.close().await;
    drop((queue, cursor));
    turn_back(directory);

    let mut expected = [0, 1, 2, 3].map(|position| (Position::new(position), 32));
    for missing in [1, 2] {
        let aside = directory.join("set-aside");
        fs::remove_file(aside.join(file(missing as u64))).expect("it is there");
        expected[missing].1 = 0;
        let (queue, cursor) = open(directory);
        assert_eq!(cursor.take_aside(), expected);
        queue.close().await;
    }
    let names = fs::read_dir(directory).expect("it is there");
    let names =
        names.map(|entry| entry.expect("it can be read").file_name().into_string().unwrap());
    let notes: Vec<_> = names.filter(|name| name.starts_with("set-aside-names")).collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].starts_with("set-aside-names.old-"), "{notes:?}");
}
