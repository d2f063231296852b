//! Evidence that was off, removed or forged: the relay says so in its log, and records an alarm.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::recorded::{ORIGIN, Recorded, keygen, wait_for_checkpoint};
use super::tampered::{forge, with_consumer_away};
use crate::support::prelude::*;

/// The messages of the ERROR lines that these tests expect.
const CUT: &str = "the newest entries of the evidence log, which no checkpoint covers, are \
                   missing: evidence-head or files in evidence/ were removed or replaced";
const GONE: &str = "signed entries of the evidence log are missing: files in evidence/ were \
                    removed or replaced by older ones; keep a copy of the directory, compare it \
                    with a checkpoint that a consumer or a witness has, and find out who can \
                    write to it";

/// Returns the entries that a checkpoint covers; none while there is no complete log.
fn entries(spool: &Spool) -> Vec<Value> {
    let directory = spool.path().display().to_string();
    let shown = run_command(&["evidence", "show", "--json", &directory], Path::new("/"));
    let text = String::from_utf8(shown.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("an entry")).collect()
}

/// Returns the subject of each alarm in the log, with the first position and the number of events.
fn alarms(spool: &Spool) -> Vec<(String, u64, u64)> {
    let of_alarm = |entry: &Value| {
        let number = |name: &str| entry[name].as_u64().unwrap_or_default();
        (entry["what"].as_str().unwrap().to_owned(), number("first"), number("count"))
    };
    entries(spool).iter().filter(|entry| entry["type"] == "alarm").map(of_alarm).collect()
}

fn off(first: u64, count: u64) -> (String, u64, u64) {
    ("off".to_owned(), first, count)
}

fn of(what: &str) -> (String, u64, u64) {
    (what.to_owned(), 0, 0)
}

/// Returns the number of alarms that the metric has counted.
fn tampered(relay: &Relay) -> u64 {
    relay.metrics().count("evidence_errors_total", &[("reason", "tampered")])
}

/// Waits for a line of level ERROR in the relay's log that contains this text.
fn assert_error(relay: &Relay, text: &str) {
    let is_it = |line: &String| line.contains("\"level\":\"ERROR\"") && line.contains(text);
    wait_until(text, PATIENCE, || relay.log_lines().iter().any(is_it));
}

/// Returns the ranges of positions in the log, including those that came in while evidence was off.
fn positions(spool: &Spool) -> Vec<(u64, u64)> {
    let entries = entries(spool).into_iter();
    let is_range = |entry: &Value| entry["type"] == "accepted" || entry["what"] == "off";
    let range = |entry: Value| {
        let first = entry["first"].as_u64().unwrap();
        (first, first + entry["count"].as_u64().unwrap())
    };
    entries.filter(is_range).map(range).collect()
}

/// Asserts that the ranges in the log are consecutive, from `first` to `end`.
fn assert_whole(spool: &Spool, first: u64, end: u64) {
    let mut next = first;
    for (from, to) in positions(spool) {
        assert_eq!(from, next, "{:?}", positions(spool));
        next = to;
    }
    assert_eq!(next, end);
}

fn without_evidence(config: &str) -> String {
    config.split_once("[evidence]").expect("it has evidence").0.to_owned()
}

/// Posts some events, waits until they are delivered, and ends the relay in order.
fn run(recorded: &mut Recorded, config: &str, seed: u64, events: usize) {
    let relay = Relay::start(config);
    recorded.post(&relay, seed, events);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
}

/// Waits until a checkpoint covers the position before `end`.
fn wait_until_covered(spool: &Spool, end: u64) {
    let last = || positions(spool).last().is_some_and(|(_, last)| *last == end);
    wait_for_checkpoint(&spool.path().join("evidence"), "the last event", last);
}

/// Method: after a run, somebody without the key adds forged entries to those that the relay has
/// signed: `accepted`, `pruned` and `heartbeat`. A relay that believed them would delete events
/// without an entry. Or somebody adds a journal, in which earlier versions kept such entries.
#[test]
fn the_relay_signs_nothing_of_forged_entries() {
    let lies = [
        r#"{"type":"accepted","first":100,"count":4000,"at":1,"root":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#,
        r#"{"type":"pruned","at":1,"below":100}"#,
        r#"{"type":"heartbeat","at":1}"#,
    ];
    for is_journal in [true, false] {
        let mut recorded = Recorded::new();
        let config = recorded.config("");
        run(&mut recorded, &config, 1, 100);
        let size = entries(&recorded.spool).len() as u64;
        let head = recorded.spool.path().join("evidence-head");
        let own = fs::read(&head).unwrap();
        let journal = [b"\xFFKAFJRN\x03".as_slice(), &size.to_be_bytes(), &[7; 64]].concat();
        match is_journal {
            true => {
                fs::write(&head, r#"{"origin":"example.org/relay-0"}"#).unwrap();
                fs::write(recorded.log().join("journal"), &journal).unwrap();
            }
            false => {
                let mut forged =
                    replaced(&own, &format!("\n{size}\n"), &format!("\n{}\n", size + 3));
                for lie in lies {
                    forged.extend(u16::try_from(lie.len()).unwrap().to_be_bytes());
                    forged.extend(lie.bytes());
                }
                fs::write(&head, forged).unwrap();
            }
        }
        let relay = Relay::start(&config);
        recorded.post(&relay, 2, 50);
        wait_until_covered(&recorded.spool, 150);
        assert_eq!(tampered(&relay), 1);
        assert_error(&relay, if is_journal { "evidence/journal was set aside" } else { CUT });
        // doctor repeats the relay's own verdict.
        let admin = format!("http://{}", relay.admin());
        let said = run_command(&["doctor", "--interval", "0s", "--relay", &admin], Path::new("/"));
        let text = String::from_utf8_lossy(&said.stdout);
        let own = "reports: Files of the queue or of its evidence were changed or removed";
        assert!(said.status.code() == Some(2) && text.contains(own), "{text}");
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        assert_eq!(alarms(&recorded.spool), [of(if is_journal { "journal" } else { "removed" })]);
        assert_whole(&recorded.spool, 0, 150);
        assert!(!entries(&recorded.spool).iter().any(|entry| entry["at"] == 1));
        let names = fs::read_dir(recorded.log()).unwrap().map(|entry| entry.unwrap().path());
        let aside = names.filter(|it| it.display().to_string().contains("refused"));
        let aside: Vec<_> = aside.map(|path| fs::read(path).unwrap()).collect();
        assert_eq!(aside, if is_journal { vec![journal] } else { Vec::new() });
        recorded.check().assert(1, &["FAULT"]);
    }
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = memchr::memmem::find(bytes, from.as_bytes()).expect("it is there");
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

/// Method: 500 events come in while evidence is off, in two runs, and are delivered.
#[test]
fn events_that_came_in_while_evidence_was_off_have_an_alarm_with_their_number() {
    let mut recorded = Recorded::new();
    let config = recorded.config("");
    run(&mut recorded, &config, 1, 100);
    let without = without_evidence(&config);
    run(&mut recorded, &without, 2, 300);
    run(&mut recorded, &without, 3, 200);
    run(&mut recorded, &config, 4, 50);
    assert_eq!(alarms(&recorded.spool), [off(100, 500)]);
    assert_whole(&recorded.spool, 0, 650);
    // The alarm is not repeated.
    run(&mut recorded, &config, 5, 10);
    assert_eq!(alarms(&recorded.spool), [off(100, 500)]);
    assert_whole(&recorded.spool, 0, 660);
    // This time, no event comes in while evidence is off.
    Relay::start(&without).finish(Backlog::Empty);
    run(&mut recorded, &config, 6, 10);
    assert_eq!(alarms(&recorded.spool).len(), 1);
    let text = "500 events came in while evidence was off";
    recorded.check().assert(1, &[text]);
}

/// Method: the consumer is down, so the queue still has the events that came in while evidence was
/// on, off and on again. A kill comes before the last of them have entries.
#[test]
fn events_that_the_queue_still_has_are_not_taken_for_recorded_ones() {
    let mut recorded = Recorded::new();
    let address = recorded.sink.address().to_string();
    let config = recorded.config("");
    let away = config.replace(&address, "127.0.0.1:1");
    let mut relay = Relay::start(&away);
    recorded.post(&relay, 1, 100);
    wait_until_covered(&recorded.spool, 100);
    recorded.post(&relay, 2, 30);
    relay.kill();
    let mut relay = Relay::start(&without_evidence(&away));
    recorded.post(&relay, 3, 500);
    relay.kill();
    let mut relay = Relay::start(&away);
    recorded.post(&relay, 4, 20);
    relay.kill();
    let relay = Relay::start(&config);
    recorded.post(&relay, 5, 7);
    relay.wait_until_delivered(PATIENCE);
    wait_until_covered(&recorded.spool, 657);
    assert_eq!(tampered(&relay), 0, "nobody has changed anything");
    relay.finish(Backlog::Empty);
    assert_eq!(alarms(&recorded.spool), [off(130, 500)]);
    assert_whole(&recorded.spool, 0, 657);
}

/// Removes the log, or only its contents.
fn remove(recorded: &Recorded, leaves_directory: bool) {
    fs::remove_dir_all(recorded.log()).unwrap();
    if leaves_directory {
        fs::create_dir(recorded.log()).unwrap();
    }
}

#[test]
fn a_log_that_was_removed_or_emptied_while_the_relay_was_stopped_is_an_alarm() {
    for leaves_directory in [false, true] {
        let mut recorded = Recorded::new();
        let config = recorded.config("");
        run(&mut recorded, &config, 1, 100);
        remove(&recorded, leaves_directory);
        let relay = Relay::start(&config);
        assert_error(&relay, GONE);
        recorded.post(&relay, 2, 50);
        wait_until_covered(&recorded.spool, 150);
        assert_eq!(tampered(&relay), 1);
        relay.finish(Backlog::Empty);
        assert_eq!(alarms(&recorded.spool), [of("removed"), off(0, 100)]);
        assert_whole(&recorded.spool, 0, 150);
        // The alarm is not repeated.
        run(&mut recorded, &config, 3, 10);
        assert_eq!(alarms(&recorded.spool).len(), 2);
        assert_whole(&recorded.spool, 0, 160);
    }
}

/// Method: an older copy of the log is put back while the relay is stopped.
#[test]
fn a_log_that_was_cut_while_the_relay_was_stopped_is_an_alarm() {
    let mut recorded = Recorded::new();
    let config = recorded.config("");
    run(&mut recorded, &config, 1, 100);
    let older = recorded.spool.copy();
    run(&mut recorded, &config, 2, 100);
    remove(&recorded, false);
    fs::rename(older.path().join("evidence"), recorded.log()).unwrap();
    let relay = Relay::start(&config);
    relay.wait_for_log(GONE, PATIENCE);
    recorded.post(&relay, 3, 50);
    wait_until_covered(&recorded.spool, 250);
    assert_eq!(tampered(&relay), 1);
    relay.finish(Backlog::Empty);
    assert_eq!(alarms(&recorded.spool)[0], of("removed"));
    assert_whole(&recorded.spool, 0, 250);
}

#[test]
fn a_log_that_is_removed_while_the_relay_runs_is_an_alarm() {
    for leaves_directory in [false, true] {
        let mut recorded = Recorded::new();
        let relay = Relay::start(&recorded.config(""));
        recorded.post(&relay, 1, 100);
        wait_until_covered(&recorded.spool, 100);
        relay.wait_until_delivered(PATIENCE);
        remove(&recorded, leaves_directory);
        wait_until("the alarm", PATIENCE, || tampered(&relay) >= 1);
        wait_for_checkpoint(&recorded.log(), "an alarm", || !alarms(&recorded.spool).is_empty());
        recorded.post(&relay, 2, 50);
        wait_until_covered(&recorded.spool, 150);
        assert_error(&relay, "was removed or replaced while the relay was running");
        relay.finish(Backlog::Empty);
        let found = alarms(&recorded.spool);
        assert_eq!((found[0].0.as_str(), found.last()), ("removed", Some(&off(0, 100))));
        assert_whole(&recorded.spool, 0, 150);
        let seen = alarms(&recorded.spool).len();
        let config = recorded.config("");
        run(&mut recorded, &config, 3, 10);
        assert_eq!(alarms(&recorded.spool).len(), seen, "it is said once");
    }
}

/// Returns the files of line hashes, the oldest first, with their contents.
fn line_hashes(spool: &Spool) -> Vec<(PathBuf, Vec<u8>)> {
    let names = fs::read_dir(spool.path().join("evidence/lines")).unwrap();
    let mut files: Vec<_> = names.map(|name| name.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

/// Method: after a stop or a kill, somebody extends a file of line hashes to 30 GiB with a hole, or
/// adds copies of its records. By its size alone, the file would displace all other hashes.
#[test]
fn line_hashes_make_no_room_for_what_the_relay_did_not_write() {
    for (newest, killed, holes) in
        [(true, false, true), (true, true, true), (false, false, true), (true, false, false)]
    {
        let mut recorded = Recorded::new();
        let config = recorded.config("max_bytes = \"1MiB\"\n");
        let mut relay = Relay::start(&config);
        for seed in 0..4 {
            recorded.post(&relay, seed, 1500);
            recorded.wait_until_signed();
        }
        relay.wait_until_delivered(PATIENCE);
        match killed {
            true => relay.kill(),
            false => drop(relay.finish(Backlog::Empty)),
        }
        let before = line_hashes(&recorded.spool);
        assert!(before.len() > 1, "several files");
        let (path, content) = if newest { before.last() } else { before.first() }.unwrap();
        match holes {
            true => fs::File::options().write(true).open(path).unwrap().set_len(30 << 30).unwrap(),
            false => fs::write(path, content.repeat(2 + (2 << 20) / content.len())).unwrap(),
        }
        let relay = Relay::start(&config);
        recorded.post(&relay, 5, 10);
        recorded.wait_until_signed();
        assert_eq!(tampered(&relay), 1, "{newest} {killed} {holes}");
        relay.finish(Backlog::Empty);
        assert_eq!(alarms(&recorded.spool), [of("removed")]);
        assert!(entries(&recorded.spool).iter().all(|entry| entry["type"] != "pruned"));
        let after: BTreeMap<_, _> = line_hashes(&recorded.spool).into_iter().collect();
        for (path, content) in &before {
            assert!(after[path].starts_with(content), "{}", path.display());
            assert!(after[path].len() < content.len() + (1 << 20), "{}", path.display());
        }
        recorded.check().assert(1, &["FAULT"]);
    }
}

/// Method: the only checkpoint is from the start, and the consumer is down. The relay is killed, an
/// event in the queue is changed, the file with the newest entries is cut or removed, and the line
/// hashes are deleted. The next start reads the changed event.
#[test]
fn an_event_that_was_changed_after_a_crash_is_not_signed_as_it_is_then() {
    for is_cut in [true, false] {
        let (mut recorded, is_there) = with_consumer_away();
        let often = recorded.config("");
        let config = often.replace("checkpoint_interval = \"1s\"", "checkpoint_interval = \"1h\"");
        let mut relay = Relay::start(&config);
        let head = recorded.spool.path().join("evidence-head");
        for seed in [1, 2] {
            recorded.post(&relay, seed, 100);
            let entry = format!("\"accepted\",\"first\":{},\"count\":100,", (seed - 1) * 100);
            wait_until("durable evidence", PATIENCE, || {
                let content = fs::read(&head).unwrap_or_default();
                memchr::memmem::find(&content, entry.as_bytes()).is_some()
            });
        }
        relay.kill();
        forge(&recorded.spool, 150);
        match is_cut {
            true => {
                let file = fs::File::options().write(true).open(&head).unwrap();
                file.set_len(file.metadata().unwrap().len() - 10).unwrap();
            }
            false => fs::remove_file(&head).unwrap(),
        }
        for (path, _) in line_hashes(&recorded.spool) {
            fs::write(path, "").unwrap();
        }
        is_there.store(true, Ordering::Relaxed);
        let relay = Relay::start(&often);
        wait_until_covered(&recorded.spool, 200);
        assert_error(&relay, CUT);
        assert_eq!(tampered(&relay), 1);
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        assert_eq!(alarms(&recorded.spool), [of("removed"), off(0, 200)]);
        assert_whole(&recorded.spool, 0, 200);
        recorded.check().assert(1, &["FAULT"]);
    }
}

/// Method: directories of the log are replaced by symlinks to directories outside while the relay
/// is stopped.
#[test]
fn no_symlink_below_the_queues_directory_is_followed() {
    for name in ["evidence", "evidence/lines", "evidence/tile", "evidence/tile/0"] {
        let mut recorded = Recorded::new();
        let config = recorded.config("");
        run(&mut recorded, &config, 1, 100);
        let (outside, path) = (Spool::new(), recorded.spool.path().join(name));
        fs::rename(&path, outside.path()).unwrap();
        std::os::unix::fs::symlink(outside.path(), &path).unwrap();
        let before: Vec<_> = outside.files().into_iter().map(|(at, it)| (at, it.bytes)).collect();
        let relay = Relay::start(&config);
        recorded.post(&relay, 2, 100);
        relay.wait_until_delivered(PATIENCE);
        wait_until("a count", PATIENCE, || tampered(&relay) > 0);
        assert_error(&relay, "is a symlink");
        let after: Vec<_> = outside.files().into_iter().map(|(at, it)| (at, it.bytes)).collect();
        assert!(before == after, "{name} was followed");
        // When the directory is back, the relay writes evidence again.
        fs::remove_file(&path).unwrap();
        fs::rename(outside.path(), &path).unwrap();
        wait_until_covered(&recorded.spool, 200);
        relay.finish(Backlog::Empty);
        assert_whole(&recorded.spool, 0, 200);
    }
}

/// Method: a backup of the directory is restored, and the relay gets a new origin and a new key, as
/// docs/prove/trouble.md says. The queue still has events from before.
#[test]
fn a_restored_directory_under_a_new_origin_makes_no_alarm() {
    let (mut recorded, is_there) = with_consumer_away();
    let config = recorded.config("");
    let mut relay = Relay::start(&config);
    recorded.post(&relay, 1, 100);
    wait_until_covered(&recorded.spool, 100);
    relay.kill();
    let backup = recorded.spool.copy();
    run_away(&mut recorded, &config);
    let next = recorded.directory.path().join("next");
    let origin = format!("{ORIGIN}-b");
    keygen(&origin, &next);
    let config = config
        .replace(ORIGIN, &origin)
        .replace(recorded.directory.path().join("key").to_str().unwrap(), next.to_str().unwrap())
        .replace(recorded.spool.path().to_str().unwrap(), backup.path().to_str().unwrap());
    is_there.store(true, Ordering::Relaxed);
    let relay = Relay::start(&config);
    recorded.post(&relay, 3, 20);
    relay.wait_until_delivered(PATIENCE);
    wait_until_covered(&backup, 120);
    assert_eq!(tampered(&relay), 0);
    relay.finish(Backlog::Empty);
    assert_eq!(alarms(&backup), []);
    assert_whole(&backup, 0, 120);
}

/// Posts events that the backup does not have.
fn run_away(recorded: &mut Recorded, config: &str) {
    let mut relay = Relay::start(config);
    recorded.post(&relay, 2, 50);
    wait_until_covered(&recorded.spool, 150);
    relay.kill();
}

/// Method: single files are removed while the relay runs. The relay has their contents in memory,
/// so every event still gets evidence.
#[test]
fn a_file_that_vanishes_under_the_relay_is_an_alarm_and_is_written_again() {
    let mut recorded = Recorded::new();
    let config = recorded.config("");
    let rare = "checkpoint_interval = \"4s\"";
    let relay = Relay::start(&config.replace("checkpoint_interval = \"1s\"", rare));
    recorded.post(&relay, 1, 100);
    wait_until_covered(&recorded.spool, 100);
    fs::remove_file(recorded.log().join("checkpoint")).unwrap();
    wait_until("the alarm", PATIENCE, || tampered(&relay) == 1);
    wait_for_checkpoint(&recorded.log(), "an alarm", || alarms(&recorded.spool).len() == 1);
    for seed in [2, 3] {
        recorded.post(&relay, seed, 10);
        let head = recorded.spool.path().join("evidence-head");
        let changed_at = || fs::metadata(&head).and_then(|it| it.modified()).ok();
        let before = changed_at();
        wait_until("a commit", PATIENCE, || changed_at() != before);
        let alarms = tampered(&relay);
        fs::remove_file(&head).unwrap();
        wait_until("the alarm", PATIENCE, || tampered(&relay) > alarms);
    }
    let events = recorded.events.len() as u64;
    wait_until_covered(&recorded.spool, events);
    assert_error(&relay, "was removed or replaced while the relay was running");
    relay.finish(Backlog::Empty);
    assert!(alarms(&recorded.spool).iter().all(|alarm| *alarm == of("removed")));
    assert_whole(&recorded.spool, 0, events);
}

#[test]
fn evidence_that_is_turned_on_for_the_first_time_makes_no_alarm() {
    let mut recorded = Recorded::new();
    let config = recorded.config("");
    let without = without_evidence(&config);
    run(&mut recorded, &without, 1, 100);
    run(&mut recorded, &config, 2, 100);
    assert_eq!(alarms(&recorded.spool), []);
    assert_whole(&recorded.spool, 100, 200);
}
