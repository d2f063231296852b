//! `replay DIR`: the events that a dead relay left in its queue directory reach another relay byte
//! for byte. No event is left out without a message, and the directory does not change.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::commands_queue::where_it_is_read_only;
use super::replay::replay_that_is_ended;
use crate::docs::pages::Page;
use crate::support::lines_in;
use crate::support::prelude::*;
use crate::support::spool::forge_lines;

/// An address at which nothing listens.
const DEAD: &str = "127.0.0.1:1";

/// A queue's directory, and a directory for the files of the commands.
struct Place {
    spool: Spool,
    scratch: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { spool: Spool::new(), scratch: TempDir::new().unwrap() }
    }

    fn directory(&self) -> &str {
        text(self.spool.path())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Returns a config with this directory, small segments and these outputs. An output is given
    /// as its name and its consumer's address.
    fn config(&self, outputs: &[(&str, &str)]) -> String {
        let mut config = format!("{BASE}{}", self.spool.queue("segment_bytes = \"64KiB\""));
        for (name, to) in outputs {
            let output = format!("[[output]]\nname = \"{name}\"\ntype = \"http\"\n");
            config.push_str(&format!("{output}urls = [\"http://{to}/\"]\n{QUICK}"));
            config.push_str("batch = { max_events = 50 }\n");
        }
        config
    }

    fn replay(&self, sink: &HttpSink, arguments: &[&str]) -> Said {
        let url = format!("http://{}/", sink.address());
        let words = [&["replay", self.directory(), "--url", &url], arguments];
        self.run(&words.concat())
    }

    /// Runs the program in the directory for the files of the commands.
    fn run(&self, words: &[&str]) -> Said {
        said(words, self.scratch.path())
    }

    /// Returns the number of events that the output has not finished, according to `queue inspect`.
    fn backlog(&self, output: &str) -> Option<u64> {
        let words = ["queue", "inspect", "--json", self.directory()];
        let told = run_command(&words, self.scratch.path());
        let told: Value = serde_json::from_slice(&told.stdout).ok()?;
        let outputs = told["outputs"].as_array()?.iter();
        outputs.clone().find(|it| it["name"] == output)?["backlog_events"].as_u64()
    }

    fn identity(&self) -> String {
        std::fs::read_to_string(self.spool.path().join("identity")).unwrap().trim().to_owned()
    }
}

/// POSTs the events of sender 0 with these numbers in batches of 100. Each batch must get a 200.
fn post(relay: &Relay, numbers: std::ops::Range<u64>) {
    for first in numbers.clone().step_by(100) {
        let batch = numbered::list(0, first..numbers.end.min(first + 100));
        assert_eq!(relay.post(&batch).status, 200);
    }
}

/// Returns the directory of a killed relay. Its only output, `away`, has finished none of this many
/// events.
fn left(events: u64) -> Place {
    let place = Place::new();
    let mut relay = Relay::start(&place.config(&[("away", DEAD)]));
    post(&relay, 0..events);
    relay.kill();
    place
}

fn events(numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    numbered::events(0, numbers)
}

/// Method: a relay has two outputs, one of which delivers 400 events. Then neither can deliver, 600
/// more events come, and the relay is killed. The directory is replayed for all outputs together
/// and for each one alone.
#[test]
fn what_a_killed_relay_still_held_reaches_another_relay_byte_for_byte() {
    let place = Place::new();
    let is_away = Arc::new(AtomicBool::new(false));
    let away = Arc::clone(&is_away);
    let archive = HttpSink::start(move |_| {
        Answer::status(if away.load(Ordering::Relaxed) { 503 } else { 200 })
    });
    let to = archive.address().to_string();
    let mut relay = Relay::start(&place.config(&[("archive", &to), ("siem", DEAD)]));
    post(&relay, 0..400);
    wait_until("the first events", PATIENCE, || place.backlog("archive") == Some(0));
    is_away.store(true, Ordering::Relaxed);
    post(&relay, 400..1000);
    relay.kill();
    let before = place.spool.files();
    let identity = place.identity();

    let sink = HttpSink::accepting();
    let other = Relay::start(&to_sink(sink.address(), ""));
    let url = format!("http://{}/", other.address());
    let words = ["replay", place.directory(), "--url", &url, "--resume", "state"];
    let said = place.run(&words);
    said.assert(
        0,
        &[
            "1,000 events that at least one output has not finished, from position 0 on",
            "output archive gets 400 events a second time",
            "With --output NAME, only what NAME has not finished is sent",
            "accepted: 1000\n",
            &format!(
                "replayed 1000 events from position 0 to 999 of queue {identity}; the relay \
                 accepted 1000\n"
            ),
        ],
    );
    assert!(!said.stderr.contains("output siem gets"), "{said:?}");
    other.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&sink), &events(0..1000));
    other.finish(Backlog::Empty);
    // A second run with the resume file finds nothing left, and says so.
    let again = place.replay(&sink, &["--resume", "state"]);
    again.assert(0, &["sent: 0\n", "replayed 1000 events", "continuing with", "position 1000"]);

    for (output, from) in [("archive", 400), ("siem", 0)] {
        let sink = HttpSink::accepting();
        let said = place.replay(&sink, &["--output", output]);
        let result = format!(
            "replayed {} events from position {from} to 999 of queue {identity};",
            1000 - from
        );
        said.assert(0, &[&format!("events that output {output} has not finished, "), &result]);
        assert!(!said.stderr.contains("second time"), "{said:?}");
        assert_same_set(&accepted_events(&sink), &events(from..1000));
        let words = ["queue", "export", place.directory(), "--output", output];
        let exported = run_command(&words, place.scratch.path()).stdout;
        let lines: Vec<&[u8]> = exported.split(|it| *it == b'\n').collect();
        assert_eq!(lines.len() as u64, 1000 - from + 1);
    }
    assert!(place.spool.files() == before, "a file was changed");
}

/// Method: a sender POSTs until the relay is killed. The kill can cut off the last write, which is
/// not damage. Every event that got a 200 must arrive.
#[test]
fn what_was_acknowledged_before_a_kill_in_the_middle_of_writes_arrives() {
    let place = Place::new();
    let mut relay = Relay::start(&place.config(&[("away", DEAD)]));
    let address = relay.address();
    let sender = std::thread::spawn(move || {
        for first in (0..).step_by(40) {
            let batch = numbered::list(0, first..first + 40);
            match http::post(address, "/", "application/json", &batch) {
                Ok(response) if response.status == 200 => {}
                _ => return first,
            }
        }
        unreachable!("the relay is killed")
    });
    wait_until("a backlog", PATIENCE, || place.backlog("away") > Some(2000));
    relay.kill();
    let acknowledged = sender.join().unwrap();
    let sink = HttpSink::accepting();
    place.replay(&sink, &[]).assert(0, &["replayed "]);
    // At most one more batch can be there: the one whose response was not read.
    let mut received = accepted_events(&sink);
    assert!(received.len() as u64 <= acknowledged + 40);
    received.retain(|event| numbered::identify(event).number < acknowledged);
    assert_same_set(&received, &events(0..acknowledged));
}

#[test]
fn a_replay_that_is_killed_goes_on_and_repeats_only_what_was_under_way() {
    // The rounds together send fewer than 48 requests of 250 events, even if a busy machine delays
    // the signals.
    const EVENTS: u64 = 12_000;
    let place = left(EVENTS);
    let before = place.spool.files();
    let sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(50)));
    let url = format!("http://{}/", sink.address());
    let arguments =
        ["replay", place.directory(), "--url", &url, "--rate", "1000", "--resume", "state"];
    let position = || {
        let text = std::fs::read(place.path("state")).unwrap();
        let state: Value = serde_json::from_slice(&text).unwrap();
        state["files"][0]["lines"].as_u64().unwrap_or(0)
    };
    let scratch = place.scratch.path();
    let told = |saved: u64| format!("everything before position {saved} of ");
    let amounts = (4, 6, EVENTS);
    let (said, saved) = replay_that_is_ended(&arguments, scratch, &sink, amounts, position, told);
    let result = format!("replayed {EVENTS} events from position 0 to {} of", EVENTS - 1);
    said.assert(0, &[&format!("position {saved}"), &result]);
    assert!(place.spool.files() == before, "a file was changed");
}

#[test]
fn damaged_and_missing_events_are_named_and_the_rest_arrives_and_the_status_is_1() {
    let place = left(1000);
    let segments = place.spool.segments();
    let records = place.spool.records();
    // One byte of the second record's lines is changed, and the last segment but one is removed.
    let record = &records[1];
    let (bad, gone) = (100..200, first_of(&segments[segments.len() - 2]));
    let missing = gone..first_of(&segments[segments.len() - 1]);
    place.spool.edit(&record.segment, |bytes| bytes[record.bytes.start + 200] ^= 4);
    std::fs::remove_file(place.spool.path().join(&segments[segments.len() - 2])).unwrap();
    let lost = 100 + (missing.end - missing.start);

    let sink = HttpSink::accepting();
    let said = place.replay(&sink, &["--resume", "state"]);
    let messages = [
        " bytes damaged, 100 events missing (positions 100 to 199)\n",
        &format!(
            "positions {} to {}: {} events missing, no segment has them\n",
            missing.start,
            missing.end - 1,
            missing.end - missing.start
        ),
        &format!("stopped: damaged or missing events: {lost}, in 2 places; they are left out\n"),
        "every event that could be read is accepted\n",
        &format!("; {lost} damaged or missing events were not sent\n"),
    ];
    said.assert(1, &messages);
    let there = |number: &u64| !bad.contains(number) && !missing.contains(number);
    let whole: Vec<Vec<u8>> =
        (0..1000).filter(there).flat_map(|number| events(number..number + 1)).collect();
    assert_same_set(&accepted_events(&sink), &whole);
    // The next run has nothing to send, but still reports the loss.
    let again = place.replay(&sink, &["--resume", "state"]);
    again.assert(1, &[messages[2], "sent: 0\n"]);
    assert_eq!(accepted_events(&sink).len(), whole.len());
}

/// Returns the first position of a segment, which is its name.
fn first_of(segment: &Path) -> u64 {
    segment.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn a_directory_whose_relay_runs_is_refused_and_nothing_is_sent() {
    let place = Place::new();
    let relay = Relay::start(&place.config(&[("away", DEAD)]));
    post(&relay, 0..200);
    let sink = HttpSink::accepting();
    let said = place.replay(&sink, &[]);
    said.assert(2, &["a relay is running with ", "--even-if-running"]);
    assert_eq!(sink.count(), 0);
    let said = place.replay(&sink, &["--even-if-running"]);
    said.assert(0, &["a relay is running with this directory", "replayed 200 events"]);
    assert_same_set(&accepted_events(&sink), &events(0..200));
    relay.finish(Backlog::Stable);
    // The relay no longer uses the directory.
    place.replay(&sink, &[]).assert(0, &["replayed 200 events"]);
}

/// A replay does not keep a relay from starting, because a relay that cannot start is worse than
/// duplicate events.
#[test]
fn a_relay_that_starts_meanwhile_is_told_and_nothing_is_left_out() {
    let place = left(1000);
    let sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(50)));
    let url = format!("http://{}/", sink.address());
    let words = ["replay", place.directory(), "--url", &url, "--rate", "400"];
    let mut running = spawn_command(&words, place.scratch.path(), &[]);
    sink.wait_for_count(1, PATIENCE);
    let relay = Relay::start(&place.config(&[("away", DEAD)]));
    let (status, stderr) = running.wait();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let told = "a relay has since been started with this directory";
    assert!(stderr.contains(told), "{stderr}");
    assert_same_set(&accepted_events(&sink), &events(0..1000));
    relay.finish(Backlog::Stable);
}

#[test]
fn without_a_usable_cursors_file_everything_that_is_stored_is_sent_and_this_is_said() {
    let place = left(300);
    let cursors = place.spool.path().join("cursors");
    let whole = std::fs::read(&cursors).unwrap();
    for (bytes, state, output) in [
        (Some(vec![0; whole.len()]), "damaged", None),
        (None, "missing", None),
        (None, "missing", Some("whatever")),
    ] {
        match bytes {
            Some(bytes) => std::fs::write(&cursors, bytes).unwrap(),
            None => drop(std::fs::remove_file(&cursors)),
        }
        let sink = HttpSink::accepting();
        let arguments = output.map(|output| vec!["--output", output]).unwrap_or_default();
        let said = place.replay(&sink, &arguments);
        let told = format!(
            "all 300 events that are stored, from position 0 on: the cursors file is {state}, so \
             nobody knows what the outputs have finished"
        );
        said.assert(0, &[&told]);
        assert_same_set(&accepted_events(&sink), &events(0..300));
    }
}

/// The directory in `tests/fixtures/spool-format-1` was made by the program of version 0.1.0. The
/// cursor of `analysis` is at position 11, and that of `archive` at position 0.
#[test]
fn a_directory_of_format_1_is_read() {
    let fixture = repository().join("tests/fixtures/spool-format-1");
    let lines = lines_in(&std::fs::read(fixture.join("events.jsonl")).unwrap());
    assert_eq!(lines.len(), 47);
    let spool = fixture.join("spool");
    for (output, from) in [(None, 0), (Some("archive"), 0), (Some("analysis"), 11)] {
        let sink = HttpSink::accepting();
        let url = format!("http://{}/", sink.address());
        let mut words = vec!["replay", text(&spool), "--url", &url];
        words.extend(output.into_iter().flat_map(|output| ["--output", output]));
        let said = said(&words, &repository());
        said.assert(0, &[&format!("replayed {} events from position {from} to 46", 47 - from)]);
        assert_same_set(&accepted_events(&sink), &lines[from..]);
    }
}

#[test]
fn directories_and_files_are_sent_in_the_given_order() {
    let (first, second) = (left(150), left(0));
    let log: Vec<u8> =
        events(150..250).iter().flat_map(|event| [event, &b"\n"[..]].concat()).collect();
    std::fs::write(first.path("log"), log).unwrap();
    let sink = HttpSink::accepting();
    let arguments = [text(&first.path("log")).to_owned(), second.directory().to_owned()];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let more = [&arguments[..], &["--resume", "state"]].concat();
    let said = first.replay(&sink, &more);
    let none = format!("replayed 0 events of queue {}: none was left", second.identity());
    said.assert(0, &["replayed 150 events from position 0 to 149 of", &none, "accepted: 250\n"]);
    assert!(accepted_events(&sink) == events(0..250));
    first.replay(&sink, &more).assert(0, &["sent: 0\n"]);
}

#[test]
fn what_the_resume_file_is_not_about_is_refused_with_words() {
    let (place, other) = (left(20), left(20));
    let file = place.path("log");
    std::fs::write(&file, [&events(0..1)[0][..], b"\n"].concat()).unwrap();
    let sink = HttpSink::accepting();
    let url = format!("http://{}/", sink.address());
    let run = |input: &str, more: &[&str]| {
        let words = [&["replay", input, "--url", &url][..], more].concat();
        place.run(&words)
    };
    run(place.directory(), &["--resume", "all"]).assert(0, &[]);
    run(place.directory(), &["--resume", "one", "--output", "away"]).assert(0, &[]);
    run(text(&file), &["--resume", "file"]).assert(0, &[]);
    let count = sink.count();
    let (mine, others) = (place.identity(), other.identity());
    let (is_of, of_one) =
        (format!("is of the queue {mine}, but"), format!("holds the queue {others}: name"));
    for (input, more, said) in [
        (other.directory(), &["--resume", "all"][..], &[&*is_of, &of_one][..]),
        (
            place.directory(),
            &["--resume", "all", "--output", "away"],
            &["all outputs, without --output, but this run is of --output away"],
        ),
        (place.directory(), &["--resume", "one"], &["is of --output away, but this run is of all"]),
        (place.directory(), &["--resume", "file"], &["the resume file file is of the file "]),
        (text(&file), &["--resume", "all"], &["log is a file: name the same inputs"]),
        (text(&file), &["--output", "away"], &["--output is for the directory of a queue"]),
        (place.directory(), &["--output", "no\u{1b}body"], &[r"no\u{1b}body", "outputs: away"]),
        (text(place.scratch.path()), &[], &["is a directory and holds no queue"]),
        (text(&place.spool.path().join("segments")), &[], &["is a directory and holds no queue"]),
    ] {
        let refused = run(input, more);
        refused.assert(2, said);
        assert!(!refused.stderr.contains('\u{1b}'), "{refused:?}");
    }
    assert_eq!(sink.count(), count, "something was sent");
}

/// A symlink in place of a file is not followed: the file counts as unreadable.
#[test]
fn a_file_that_cannot_be_read_is_named_and_what_can_be_read_is_sent() {
    let place = left(1000);
    let segments = place.spool.segments();
    let link = |file: &Path| {
        let path = place.spool.path().join(file);
        std::fs::rename(&path, place.path("moved")).unwrap();
        std::os::unix::fs::symlink(place.path("moved"), path).unwrap();
    };
    link(&segments[1]);
    let (gone, end) = (first_of(&segments[1]), first_of(&segments[2]));
    let sink = HttpSink::accepting();
    let said = place.replay(&sink, &[]);
    let named = format!("{}: cannot be read, {} events missing: ", text(&segments[1]), end - gone);
    let positions = format!("(positions {gone} to {})", end - 1);
    said.assert(1, &[&named, &positions, "stopped: damaged or missing events: "]);
    assert_same_set(&accepted_events(&sink), &[events(0..gone), events(end..1000)].concat());

    let count = sink.count();
    for file in ["spool.lock", "cursors"] {
        link(Path::new(file));
        let file = place.spool.path().join(file);
        let cannot = format!("cannot read {}: ", text(&file));
        place.replay(&sink, &[]).assert(2, &[&cannot]);
        std::fs::remove_file(&file).unwrap();
        std::fs::rename(place.path("moved"), &file).unwrap();
    }
    assert_eq!(sink.count(), count, "something was sent");
}

/// Method: a stored line is not an event, although its record's checksum is valid.
#[test]
fn a_stored_line_that_is_no_event_is_handled_like_a_bad_line_of_a_file() {
    let place = left(300);
    let record = place.spool.records()[1].clone();
    place.spool.edit(&record.segment, |segment| {
        forge_lines(&record, segment, |lines| lines[0] = b'!');
    });
    let sink = HttpSink::accepting();
    let said = place.replay(&sink, &[]);
    said.assert(1, &["stopped: ", ", position 100: at byte", "everything before position 100 of"]);
    assert_same_set(&accepted_events(&sink), &events(0..100));
    let sink = HttpSink::accepting();
    let said = place.replay(&sink, &["--on-bad-line", "skip"]);
    said.assert(0, &[", position 100: skipped: at byte", "bad lines: 1\n", "replayed 299 events"]);
    let whole = [events(0..100), events(101..300)].concat();
    assert_same_set(&accepted_events(&sink), &whole);
}

/// When the relay drops events because its queue is full, it moves the output's cursor past them.
/// They are no longer part of the backlog.
#[test]
fn events_that_the_old_relay_has_dropped_are_not_missing() {
    let place = Place::new();
    let config = place.config(&[("away", DEAD)]);
    let full = "directory = \"";
    let config = config
        .replace(full, &format!("max_bytes = \"512KiB\"\nwhen_full = \"drop_oldest\"\n{full}"));
    let mut relay = Relay::start(&config);
    let mut sent = 0;
    wait_until("a dropped segment", PATIENCE, || {
        post(&relay, sent..sent + 100);
        sent += 100;
        place.spool.segments().first().is_some_and(|segment| first_of(segment) > 0)
    });
    let kept = || place.backlog("away").unwrap();
    wait_until("the cursors", PATIENCE, || kept() < sent);
    relay.kill();
    let kept = kept();
    let sink = HttpSink::accepting();
    let said = place.replay(&sink, &[]);
    let (first, last) = (sent - kept, sent - 1);
    let result = format!("replayed {kept} events from position {first} to {last} of queue ");
    said.assert(0, &[&result]);
    assert_same_set(&accepted_events(&sink), &events(sent - kept..sent));
}

/// Method: the second relay removes duplicates. The directory is replayed twice, and its events are
/// delivered once. Events that the first relay had delivered are delivered again, because the
/// second relay has never seen them.
#[test]
fn deduplication_knows_what_was_replayed_and_not_what_the_old_relay_had_delivered() {
    let place = Place::new();
    let archive = HttpSink::accepting();
    let to = archive.address().to_string();
    let mut relay = Relay::start(&place.config(&[("archive", &to), ("siem", DEAD)]));
    post(&relay, 0..100);
    wait_until("the cursors", PATIENCE, || place.backlog("archive") == Some(0));
    relay.kill();
    let config = to_sink(archive.address(), "filter = { deduplicate = \"1h\" }\n");
    let other = Relay::start(&config);
    let url = format!("http://{}/", other.address());
    for _ in 0..2 {
        let words = ["replay", place.directory(), "--url", &url];
        let said = place.run(&words);
        said.assert(0, &["output archive gets 100 events a second time"]);
    }
    other.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&archive), &[events(0..100), events(0..100)].concat());
    other.finish(Backlog::Empty);
}

/// A directory can also hold copies of damaged records, and dead letters. They are reported, but
/// not sent.
#[test]
fn the_quarantine_and_the_dead_letters_are_named() {
    let place = left(10);
    for (directory, bytes) in [("quarantine", 70), ("dead-letter", 80)] {
        let directory = place.spool.path().join(directory);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("x"), vec![b'x'; bytes]).unwrap();
    }
    std::fs::write(place.spool.path().join("segments/00000000000000000010.incoming"), "x").unwrap();
    let sink = HttpSink::accepting();
    let said = place.replay(&sink, &[]);
    let letters = format!("`replay {}/dead-letter/* --url …` sends them", place.directory());
    said.assert(
        0,
        &[
            "1 file with copies of damaged records in quarantine/ (70 bytes) is not sent",
            "1 file of dead letters (80 bytes) is not sent",
            &letters,
        ],
    );
    assert_same_set(&accepted_events(&sink), &events(0..10));
}

/// Method: the consumer fails on one event and accepts all others. The event is set aside, and no
/// longer counts as backlog. A replay of the directory must report it, and a replay of its file
/// sends it.
#[test]
fn an_event_that_was_set_aside_is_named_and_its_file_can_be_sent() {
    let (place, bad) = (Place::new(), events(42..43).remove(0));
    let failing = bad.clone();
    let archive = refusing(500, move |event| *event == failing);
    let to = archive.address().to_string();
    let mut relay = Relay::start(&place.config(&[("archive", &to)]));
    post(&relay, 0..100);
    wait_until("the cursors", PATIENCE, || place.backlog("archive") == Some(0));
    relay.kill();
    let inspected =
        run_command(&["queue", "inspect", "--json", place.directory()], place.spool.path());
    let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["aside_events"], 1, "{inspected}");
    let sink = HttpSink::accepting();
    let told = format!(
        "set aside by outputs and not sent: 1 event; `replay {}/set-aside/*.json --url …` sends them",
        place.directory()
    );
    place.replay(&sink, &[]).assert(1, &[&told]);
    assert_eq!(accepted_events(&sink), [] as [Vec<u8>; 0]);
    let file = place.spool.path().join("set-aside").join("archive-00000000000000000042.json");
    let url = format!("http://{}/", sink.address());
    place.run(&["replay", text(&file), "--url", &url]).assert(0, &[]);
    assert_eq!(accepted_events(&sink), [bad]);
}

/// Method: small events surround one that is larger than a read of the queue's files.
#[test]
fn large_events_arrive_byte_for_byte() {
    let place = Place::new();
    let mut relay = Relay::start(&place.config(&[("away", DEAD)]));
    let large = format!(
        r#"{{"auditID":"large","stage":"ResponseComplete","text":"{}"}}"#,
        "ä€".repeat(5 << 20)
    )
    .into_bytes();
    post(&relay, 0..100);
    assert_eq!(relay.post(&large).status, 200);
    post(&relay, 100..200);
    relay.kill();
    let sink = HttpSink::accepting();
    let said = place.replay(&sink, &[]);
    said.assert(0, &["replayed 201 events from position 0 to 200 of"]);
    let wanted = [events(0..100), vec![large], events(100..200)].concat();
    assert!(accepted_events(&sink) == wanted);
}

/// A read-only mount, as in the Job of `deploy/jobs`, is enough.
#[test]
fn a_read_only_mount_is_enough_for_a_replay() {
    let place = left(300);
    let before = place.spool.files();
    let sink = HttpSink::accepting();
    let url = format!("http://{}/", sink.address());
    let directory = place.directory();
    let mut command = where_it_is_read_only(place.spool.path());
    command.args(["replay", directory, "--url", &url, "--resume", "state"]);
    command.current_dir(place.scratch.path());
    Said::of(command.output().unwrap()).assert(0, &["replayed 300 events"]);
    assert_same_set(&accepted_events(&sink), &events(0..300));
    assert!(place.spool.files() == before, "a file was changed");
}

/// Returns the first code block of the page that is in this language and contains `text`.
fn block_on(page: &str, language: &str, text: &str) -> String {
    let blocks = Page::read(page).blocks().into_iter();
    let mut code = blocks.filter(|block| block.language == language).map(|block| block.code);
    code.find(|code| code.contains(text)).expect("such a block")
}

/// Returns the words after the program's name in the line of a shell block that runs this command.
fn command_in(code: &str, command: &str) -> Vec<String> {
    let name = format!("kube-audit-forwarder {command} ");
    let line = code.lines().find(|line| line.trim_start().starts_with(&name)).expect("a line");
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

const PAGE: &str = "docs/operating/replay-queue.md";
const JOB: &str = "deploy/jobs/replay-left-over-volume.yaml";

/// Method: follows the page about a left-over volume. The Job's command is read from the manifest
/// and must be the one on the page. It runs with a killed relay's directory instead of the volume,
/// and with a second relay's address instead of the Service. Every row of the page's table occurs.
#[test]
fn the_page_about_a_volume_that_is_left_over_does_what_it_says() {
    let job = std::fs::read_to_string(repository().join(JOB)).unwrap();
    let list = job.split_once("          command:\n").unwrap().1;
    let words = list.lines().map_while(|line| line.strip_prefix("            - "));
    let words: Vec<String> = words.map(str::to_owned).collect();
    assert_eq!(words[0], "/usr/bin/kube-audit-forwarder");
    let code = block_on(PAGE, "sh", "replay /spool");
    assert_eq!(command_in(&code, "replay"), words[1..]);

    let place = left(500);
    let sink = HttpSink::accepting();
    let other = Relay::start(&to_sink(sink.address(), ""));
    let url = format!("http://{}/", other.address());
    let state = place.path("replay.state");
    let run = |place: &Place| {
        let replaced = words[1..].iter().map(|word| match word.as_str() {
            "/spool" => place.directory(),
            "http://kube-audit-forwarder/" => &url,
            "/progress/replay.state" => text(&state),
            word => word,
        });
        let words: Vec<&str> = replaced.collect();
        place.run(&words)
    };
    // A replay does not change the backlog that this shows.
    let inspect =
        || run_command(&["queue", "inspect", "--json", place.directory()], Path::new("/"));
    let backlog = || {
        let told: Value = serde_json::from_slice(&inspect().stdout).unwrap();
        told["outputs"][0]["backlog_events"].as_u64()
    };
    assert_eq!(backlog(), Some(500));
    let before = place.spool.files();
    let accepted = format!(
        "replayed 500 events from position 0 to 499 of queue {}; the relay accepted 500\n",
        place.identity()
    );
    let said = run(&place);
    said.assert(0, &[]);
    assert!(said.stdout.ends_with(&accepted), "{said:?}");
    assert_eq!(backlog(), Some(500));
    assert!(place.spool.files() == before, "a file was changed");
    other.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&sink), &events(0..500));

    let page = std::fs::read_to_string(repository().join(PAGE)).unwrap();
    let row = |words: &str| {
        let row =
            page.lines().find(|line| line.trim_start().starts_with("| `") && line.contains(words));
        assert!(row.is_some(), "no row of the table is about: {words}");
    };
    row("replayed N events from position A to B of queue ID; the relay accepted N");
    // The old relay had delivered everything.
    let done = Place::new();
    let to = sink.address().to_string();
    let mut relay = Relay::start(&done.config(&[("out", &to)]));
    post(&relay, 0..100);
    wait_until("the cursors", PATIENCE, || done.backlog("out") == Some(0));
    row("a relay is running with");
    std::fs::remove_file(&state).unwrap();
    run(&done).assert(2, &["a relay is running with "]);
    relay.kill();
    row("replayed 0 events of queue ID: none was left");
    let said = run(&done);
    said.assert(0, &["accepted: 0\n"]);
    let none = format!("replayed 0 events of queue {}: none was left", done.identity());
    assert!(said.stdout.lines().last().unwrap().starts_with(&none), "{said:?}");
    // A record is damaged.
    row("stopped: damaged or missing events: N");
    std::fs::remove_file(&state).unwrap();
    let record = &place.spool.records()[0];
    place.spool.edit(&record.segment, |bytes| bytes[record.bytes.start + 200] ^= 4);
    run(&place).assert(1, &["stopped: damaged or missing events: 100, in 1 place"]);
    other.wait_until_delivered(PATIENCE);
    // The second relay is gone. That does not matter if there is nothing to send.
    row("with a URL, exit status 1");
    other.finish(Backlog::Empty);
    place.run(&["replay", done.directory(), "--url", &url]).assert(0, &[]);
    let refusing = HttpSink::start(|_| Answer::status(400));
    place.replay(&refusing, &[]).assert(1, &["stopped: ", "http://127.0.0.1", "answered 400"]);
}

/// The page's command changes only the image and the claim of the Job. The Service must not select
/// the Job's pod, and the relays must accept its requests.
#[test]
fn the_job_of_a_volume_that_is_left_over_fits_the_relays() {
    let code = block_on(PAGE, "sh", JOB);
    let sed = code.split_once("sed ").unwrap().1.split(" |").next().unwrap();
    let script = format!("sed {sed}");
    let changed = Command::new("sh").args(["-c", &script]).current_dir(repository()).output();
    let changed = String::from_utf8(changed.unwrap().stdout).unwrap();
    let job = std::fs::read_to_string(repository().join(JOB)).unwrap();
    let differing: Vec<&str> = changed
        .lines()
        .zip(job.lines())
        .filter(|(new, old)| new != old && !old.starts_with('#'))
        .map(|(new, _)| new.trim())
        .collect();
    assert_eq!(differing, ["image: IMAGE", "claimName: CLAIM"]);
    // The claim belongs to the StatefulSet, and the image is that of the relays.
    let durable = repository().join("deploy/overlays/durable/statefulset.yaml");
    let durable = std::fs::read_to_string(durable).unwrap();
    let image = job.lines().find(|line| line.contains(" image: ")).unwrap();
    assert!(durable.lines().any(|line| line == image), "{image}");
    assert!(durable.contains("volumeClaimTemplates:\n    - metadata:\n        name: spool\n"));
    // The Job has the relays' label, with which everything is deleted. Its pod does not have it.
    let (head, pod) = job.split_once("  template:\n").unwrap();
    let pod = pod.split_once("\n---\n").unwrap().0;
    assert!(head.contains("    app: kube-audit-forwarder\n"));
    assert!(!pod.contains("app: kube-audit-forwarder\n"), "the Service would select the pod");
    assert!(pod.contains("        app: replay-left-over-volume\n"));
    let policy = job.split_once("kind: NetworkPolicy\n").unwrap().1;
    let service = std::fs::read_to_string(repository().join("deploy/base/service.yaml")).unwrap();
    assert!(service.contains("      port: 80\n      targetPort: 3000\n"));
    assert!(policy.contains("          port: 3000\n"));
    assert!(policy.contains("              app: replay-left-over-volume\n"));
}

/// Method: follows the page about events for only one output. The page's config is used with other
/// addresses and directories, and with the test's consumer.
#[test]
fn one_output_alone_gets_what_it_has_not_finished_as_the_page_says() {
    let place = left(300);
    let sink = HttpSink::accepting();
    let config = block_on(PAGE, "toml", "only-siem.toml")
        .replace("127.0.0.1:3001", "127.0.0.1:0")
        .replace("127.0.0.1:9091", "127.0.0.1:0")
        .replace("/var/lib/only-siem", text(&place.path("only-siem")))
        .replace("https://siem.example.com/audit", &format!("http://{}/", sink.address()));
    let relay = Relay::start(&format!("log = {{ format = \"json\" }}\n{config}"));
    let code = block_on(PAGE, "sh", "--output siem");
    let run = |command: &str, changes: &[(&str, &str)]| {
        let words = command_in(&code, command);
        let change = |word: &String| {
            let change = changes.iter().find(|(from, _)| from == word);
            change.map_or_else(|| word.clone(), |(_, to)| (*to).to_owned())
        };
        let words: Vec<String> = words.iter().map(change).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        place.run(&words)
    };
    let url = format!("http://{}/", relay.address());
    let changes = [("DIR", place.directory()), ("siem", "away"), ("http://127.0.0.1:3001/", &url)];
    run("replay", &changes).assert(0, &["replayed 300 events from position 0 to 299 of"]);
    assert!(place.path("siem.state").is_file());
    let admin = format!("http://{}", relay.admin());
    run("drain", &[("http://127.0.0.1:9091", &admin)]).assert(0, &[]);
    assert_same_set(&accepted_events(&sink), &events(0..300));
    relay.finish(Backlog::Empty);
}
