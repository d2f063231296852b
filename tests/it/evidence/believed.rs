//! `evidence verify` beside a running relay, after kills and after reloads: it reports no fault
//! where nothing is wrong, and counts nothing as proven that is not signed.

use std::process::Command;

use super::recorded::{Recorded, text_of};
use super::verify::{Checked, check};
use crate::support::prelude::*;
use crate::support::s3::{Keys, Mood, S3};

/// How many times the test checks a running relay.
const ROUNDS: usize = 10;

/// Writes the consumer's lines to a file, and returns its path.
fn export(recorded: &Recorded, files: &TempDir) -> String {
    let path = files.path().join("stored");
    std::fs::write(&path, text_of(&accepted_events(&recorded.sink))).unwrap();
    path.display().to_string()
}

/// Checks a directory against stored lines.
fn check_lines(recorded: &Recorded, directory: &Path, file: &str, more: &[&str]) -> Checked {
    let directory = directory.display().to_string();
    let arguments = ["--directory", &directory, "--key", &recorded.verifier];
    check(&[&arguments, ["--output", "consumer", "--events", file].as_slice(), more].concat())
}

/// Copies a directory in use, as an operator does.
fn copy(from: &Path, to: &Path) {
    // cp reports an error if a file is deleted while it is copied, which is fine here.
    Command::new("cp").arg("-r").args([from, to]).output().expect("cp");
}

/// Asserts that the check reports no fault.
#[track_caller]
fn assert_not_accused(checked: &Checked, round: usize) {
    let is_fine = [0, 2].contains(&checked.status) && !checked.text.contains("FAULT");
    assert!(is_fine && checked.text.starts_with("checkpoints "), "{round}: {}", checked.text);
}

/// Method: events come in all the time. The directory is checked in place and as a copy, with lines
/// that were exported before and after the copy. `KUBE_AUDIT_FORWARDER_ROUNDS` sets the number of
/// rounds.
#[test]
fn a_relay_in_use_and_copies_of_its_directory_pass_at_any_moment() {
    let rounds = std::env::var("KUBE_AUDIT_FORWARDER_ROUNDS").ok();
    let rounds = rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let recorded = Recorded::new();
    let policy = recorded.directory.path().join("policy.yaml");
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
                 - {level: None, namespaces: [team-1]}\n\
                 - {level: Metadata, namespaces: [team-2]}\n- level: RequestResponse\n";
    std::fs::write(&policy, rules).unwrap();
    let filter = format!("filter = {{ policy = \"{}\" }}\n", policy.display());
    let relay = Relay::start(&recorded.config_with(&filter, ""));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for seed in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                post_batch(&relay, seed, 30, 700);
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        // The other thread must end if an assertion fails.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let checkpoint = recorded.log().join("checkpoint");
            wait_until("the first checkpoint", PATIENCE, || checkpoint.exists());
            (0..rounds).for_each(|round| look(&recorded, round));
        }));
        is_over.store(true, Ordering::Relaxed);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    relay.wait_until_delivered(PATIENCE);
    relay.settle(Backlog::Empty);
    // An invented line is found, and so is a missing one.
    let files = TempDir::new().unwrap();
    let file = export(&recorded, &files);
    let lines = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{lines}{{\"invented\":1}}\n")).unwrap();
    check_lines(&recorded, recorded.spool.path(), &file, &[])
        .assert(1, &["extra 1", "FAULT", &format!("{file}:")]);
    let (first, rest) = lines.split_once('\n').unwrap();
    assert!(!first.is_empty());
    std::fs::write(&file, rest).unwrap();
    let strict = ["--settle", "0s"];
    check_lines(&recorded, recorded.spool.path(), &file, &strict).assert(1, &["missing 1"]);
    relay.finish(Backlog::Empty);
}

/// Checks a running relay's directory and a copy of it, each against lines of the consumer.
fn look(recorded: &Recorded, round: usize) {
    let files = TempDir::new().unwrap();
    let copied = files.path().join("copy");
    let before = export(recorded, &files);
    copy(recorded.spool.path(), &copied);
    assert_not_accused(&check_lines(recorded, &copied, &before, &[]), round);
    let after = export(recorded, &files);
    assert_not_accused(&check_lines(recorded, &copied, &after, &[]), round);
    assert_not_accused(&check_lines(recorded, recorded.spool.path(), &after, &[]), round);
    let no_wait = ["--no-wait"];
    assert_not_accused(&check_lines(recorded, recorded.spool.path(), &after, &no_wait), round);
}

/// Method: the only checkpoint is from the start, and the relay is killed. The later entries are
/// signed in `evidence-head`. Then somebody changes them.
#[test]
fn what_no_checkpoint_covers_yet_is_proven_and_a_change_of_it_is_a_fault() {
    let mut recorded = Recorded::new();
    let config =
        recorded.config("").replace("checkpoint_interval = \"1s\"", "checkpoint_interval = \"1h\"");
    let mut relay = Relay::start(&config);
    let checkpoint = recorded.log().join("checkpoint");
    wait_until("the first checkpoint", PATIENCE, || checkpoint.exists());
    recorded.post(&relay, 1, 200);
    relay.wait_until_delivered(PATIENCE);
    let head = recorded.spool.path().join("evidence-head");
    wait_until("the entries", PATIENCE, || {
        let entries = std::fs::read(&head).unwrap_or_default();
        memchr::memmem::find(&entries, b"\"delivered\"").is_some()
    });
    relay.kill();
    let files = TempDir::new().unwrap();
    let file = export(&recorded, &files);
    let checked = check_lines(&recorded, recorded.spool.path(), &file, &[]);
    checked.assert(0, &["checkpoints 1/1 valid", "events 200/200 found", "proven: bytes"]);
    // Without this file, only the checkpoint's entries are proven.
    let mut content = std::fs::read(&head).unwrap();
    std::fs::remove_file(&head).unwrap();
    let newer = ["NOT CHECKED", "events 0/0 found", "extra 0"];
    check_lines(&recorded, recorded.spool.path(), &file, &[]).assert(2, &newer);
    let last = content.len() - 2;
    content[last] ^= 1;
    std::fs::write(&head, &content).unwrap();
    let changed = check_lines(&recorded, recorded.spool.path(), &file, &[]);
    changed.assert(1, &["FAULT", "evidence-head was signed over other entries"]);
}

/// Method: one relay is suspended (SIGSTOP) for longer than its heartbeat interval, and another one
/// is killed. Only the first one has a silence: nobody knows how long a killed relay should have
/// run.
#[test]
fn silence_is_judged_by_the_time_that_the_relay_was_up() {
    let mut recorded = Recorded::new();
    let mut relay = Relay::start(&recorded.config("heartbeat_interval = \"1s\"\n"));
    recorded.post(&relay, 1, 20);
    recorded.wait_until_signed();
    relay.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_millis(4500));
    relay.signal(libc::SIGCONT);
    let said = "nothing was recorded for ";
    wait_until("the silence", PATIENCE, || recorded.check().text.contains(said));
    recorded.check().assert(1, &["FAULT 2", said, "although the relay was running"]);
    relay.kill();

    let mut recorded = Recorded::new();
    let mut relay = Relay::start(&recorded.config("heartbeat_interval = \"1s\"\n"));
    recorded.post(&relay, 1, 20);
    recorded.wait_until_signed();
    relay.kill();
    std::thread::sleep(Duration::from_millis(4500));
    let checked = recorded.check();
    assert_not_accused(&checked, 0);
    assert!(!checked.text.contains(said), "{}", checked.text);
}

/// Method: one reload filters out all events, and another one removes the filter.
#[test]
fn a_reload_that_filters_events_away_is_listed() {
    let mut recorded = Recorded::new();
    let policy = recorded.directory.path().join("policy.yaml");
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: None\n";
    std::fs::write(&policy, rules).unwrap();
    let filter = format!("filter = {{ policy = \"{}\" }}\n", policy.display());
    let (open, shut) = (recorded.config(""), recorded.config_with(&filter, ""));
    let relay = Relay::start(&open);
    for (seed, config) in [(1, &shut), (2, &open), (3, &open)] {
        recorded.post(&relay, seed, 40);
        relay.wait_until_delivered(PATIENCE);
        if seed < 3 {
            relay.reload(config, "success");
        }
    }
    relay.finish(Backlog::Empty);
    let files = TempDir::new().unwrap();
    let file = export(&recorded, &files);
    let checked = check_lines(&recorded, recorded.spool.path(), &file, &[]);
    let texts =
        ["events 80/80 found", "lost 0, dropped 40, without", "output consumer: dropped 40,"];
    checked.assert(0, &texts);
    let reloads = checked.text.lines().filter(|line| line.starts_with("reload ")).count();
    assert_eq!(reloads, 2, "{}", checked.text);
}

/// Method: an object is stored, and the relay is killed before it saves the output's cursor. The
/// next start has another filter, which would change the events in the object. The log must not say
/// that the object has the changed lines.
#[test]
fn an_object_from_before_another_filter_is_no_accusation() {
    let mut recorded = Recorded::new();
    let policy = recorded.directory.path().join("policy.yaml");
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
                 - {level: Metadata, namespaces: [team-2]}\n- level: RequestResponse\n";
    std::fs::write(&policy, rules).unwrap();
    let (keys, calm) = (Keys::new(), Arc::new(AtomicBool::new(false)));
    let is_calm = Arc::clone(&calm);
    let server = S3::start(move || match is_calm.load(Ordering::SeqCst) {
        true => Mood::Stores,
        false => Mood::HangsUp(true),
    });
    let retry = "retry = { initial_interval = \"10ms\", max_interval = \"100ms\" }";
    let more = format!("compression = \"none\"\nobject_age = \"100ms\"\n{retry}\n");
    let output = keys.output(server.address(), &more).replace("archive\"\nt", "consumer\"\nt");
    let evidence = recorded.config("");
    let (_, evidence) = evidence.split_once("[queue]").expect("a queue");
    let config = |filter: &str| format!("{BASE}{output}{filter}[queue]{evidence}");

    let mut relay = Relay::start(&config(""));
    recorded.post(&relay, 2, 40);
    wait_until("an object", PATIENCE, || !server.store().objects.is_empty());
    relay.kill();
    let notes = recorded.spool.path().join("notes-consumer");
    let text = std::fs::read_to_string(&notes).unwrap();
    let (_, ranges) = text.split_once('\n').expect("a checksum");
    let ranges = ranges.replace("\"stored\":false", "\"stored\":true");
    std::fs::write(&notes, format!("{:08x}\n{ranges}", crc32c::crc32c(ranges.as_bytes()))).unwrap();

    calm.store(true, Ordering::SeqCst);
    let filter = format!("filter = {{ policy = \"{}\" }}\n", policy.display());
    let relay = Relay::start(&config(&filter));
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    let files = TempDir::new().unwrap();
    let stored = files.path().join("stored");
    let objects: Vec<_> = server.store().objects.values().cloned().collect();
    assert_eq!(objects.len(), 2, "the second one has what the new filter lets pass");
    std::fs::write(&stored, objects.concat()).unwrap();
    let stored = stored.display().to_string();
    let checked = check_lines(&recorded, recorded.spool.path(), &stored, &[]);
    assert_not_accused(&checked, 0);
    checked.assert(2, &["NOT CHECKED", "it was sent again by other rules, after a crash"]);
}
