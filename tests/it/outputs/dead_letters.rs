//! Events that an output gives up on are kept in files, with the reason, before they count as lost.
//! On a full disk they count as lost, and are not kept.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::value::RawValue;

use crate::support::filesystem::{Kind, Mounted};
use crate::support::numbered;
use crate::support::prelude::*;

/// Returns the dead-letter files of a directory, oldest first.
fn files_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Returns the events of all letters, oldest first. Leaves out a torn last line of a file.
fn letters_in(directory: &Path) -> Vec<Vec<u8>> {
    let mut letters = Vec::new();
    for file in files_in(directory) {
        let bytes = std::fs::read(&file).unwrap();
        let mut lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
        lines.pop();
        letters.extend(lines.into_iter().map(event_of_letter));
    }
    letters
}

fn event_of_letter(line: &[u8]) -> Vec<u8> {
    let told = String::from_utf8_lossy(line);
    let fields: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {told}"));
    assert_eq!(fields.len(), 4, "{told}");
    for name in ["time", "output", "reason"] {
        let _text: String = serde_json::from_str(fields[name].get()).unwrap();
    }
    fields["event"].get().as_bytes().to_vec()
}

#[test]
fn one_refused_event_of_400_is_kept_with_its_reason_and_costs_thirty_requests_at_most() {
    let bad = numbered::events(0, 137..138).remove(0);
    let refused = bad.clone();
    let sink = refusing(400, move |event| *event == refused);
    let place = TempDir::new().unwrap();
    let directory = place.path().join("letters");
    let keys = format!("[dead_letter]\ndirectory = \"{}\"\n", text(&directory));
    let relay = Relay::start(&to_sink(sink.address(), &keys));
    assert_eq!(relay.post(&numbered::list(0, 0..400)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let mut good = numbered::events(0, 0..400);
    good.retain(|event| *event != bad);
    assert_same_set(&accepted_events(&sink), &good);
    assert!(sink.count() <= 30, "{} requests", sink.count());
    let metrics = relay.metrics();
    assert_eq!(metrics.value("error_total", &[("plugin", "consumer")]), 1.0);
    assert_eq!(metrics.value("dead_letter_events_total", &[("output", "consumer")]), 1.0);
    let files: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|it| it.unwrap()).collect();
    assert_eq!(files.len(), 1);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&files[0].path())), (0o700, 0o600));
    let letter = std::fs::read_to_string(files[0].path()).unwrap();
    assert_eq!(letter.lines().count(), 1);
    // The letter has the event byte for byte.
    assert!(letter.contains(std::str::from_utf8(&bad).unwrap()), "{letter}");
    let letter: Value = serde_json::from_str(&letter.replace("1e400", "1")).unwrap();
    assert_eq!(letter["output"], "consumer");
    assert!(letter["reason"].as_str().unwrap().contains("answered 400"), "{letter}");
    assert!(letter["time"].as_str().is_some());
    relay.finish(Backlog::Empty);
}

/// Returns an event that the consumer refuses. It is larger than the free space of the blocks that
/// the disk has already allocated.
fn large(number: u32) -> Vec<u8> {
    let text = "x".repeat(200_000);
    format!(
        r#"{{"level":"Metadata","auditID":"refused-{number}","stage":"ResponseComplete","text":"{text}"}}"#
    )
    .into_bytes()
}

/// These tests need root.
mod peers {
    use super::*;

    /// Method: the directory of the dead letters is on a small file system that becomes full and is
    /// freed again, while the consumer refuses one event of each batch. Deliveries must continue,
    /// each refused event must count as lost, and letters must be written again once there is room.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_full_disk_costs_dead_letters_alone_and_what_comes_later_is_kept_again() {
        for kind in [Kind::Tmpfs, Kind::Ext4] {
            let disk = Mounted::new(kind, 16 * 1024 * 1024);
            let (directory, ballast) = (disk.path().join("letters"), disk.path().join("ballast"));
            let sink = refusing(400, |event| event.len() > 200_000);
            let keys = format!(
                "[dead_letter]\ndirectory = \"{}\"\nmax_bytes = \"8MiB\"\n",
                text(&directory)
            );
            let relay = Relay::start(&to_sink(sink.address(), &keys));
            let mut posted = 0;
            let mut post = |expected_letters: f64| {
                let numbers = posted * 10..(posted + 1) * 10;
                posted += 1;
                let mut events = numbered::events(0, numbers);
                // The numbered events are smaller than the refused event.
                assert!(events.iter().all(|event| event.len() < 200_000));
                events.insert(5, large(u32::try_from(posted).unwrap()));
                let body = [
                    br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":["#.as_slice(),
                    &events.join(&b','),
                    b"]}",
                ];
                assert_eq!(relay.post(&body.concat()).status, 200);
                relay.wait_until_delivered(PATIENCE);
                let metrics = relay.metrics();
                let lost = metrics.value("error_total", &[("plugin", "consumer")]);
                let letters = metrics.value("dead_letter_events_total", &[("output", "consumer")]);
                #[allow(clippy::cast_precision_loss, reason = "a small count")]
                let expected_lost = posted as f64;
                assert_eq!((lost, letters), (expected_lost, expected_letters), "{kind:?}");
            };
            post(1.0);
            disk.fill_up_to(0, &ballast);
            for _ in 0..3 {
                post(1.0);
            }
            let unwritten = |fields: &Value| {
                fields["message"].as_str().is_some_and(|it| it.starts_with(messages::GIVEN_UP))
                    && fields["error"].as_str().is_some_and(|error| error.contains("No space left"))
            };
            wait_until("the reason", PATIENCE, || relay.log_fields().iter().any(unwritten));
            std::fs::remove_file(&ballast).unwrap();
            post(2.0);
            post(3.0);
            let kept: Vec<_> = letters_in(&directory);
            assert!(kept == [large(1), large(5), large(6)], "{kind:?}: {} letters", kept.len());
            let torn = files_in(&directory)
                .into_iter()
                .filter(|file| !std::fs::read(file).unwrap().ends_with(b"\n"))
                .count();
            assert_eq!(torn, 0, "nothing of what did not fit stays");
            // The halves of a refused request may arrive in any order.
            assert_same_set(&accepted_events(&sink), &numbered::events(0, 0..posted * 10));
            relay.finish(Backlog::Empty);
        }
    }
}
