//! Attacks on signed logs: each log is made here, entry by entry.

use std::collections::BTreeMap;
use std::time::Duration;

use tempfile::TempDir;

use super::report::Counts;
use super::*;
use evidence_log::entry::{Alarm, Delivered, Entry, Fate, Offset, Running, Stamp, Started, now};
use evidence_log::lines::{Range, Record, SALT_BYTES, Salt};
use evidence_log::tlog::checkpoint::Checkpoint;
use evidence_log::tlog::key::SigningKey;
use evidence_log::tlog::merkle::{Frontier, Hash, Head, root};
use evidence_log::tlog::tile::{Content, Tile, push_entry};

mod aside;

const HOUR: u64 = 3_600_000;

/// A log with fewer than 256 entries, and its key.
struct Made {
    directory: TempDir,
    origin: &'static str,
    key: SigningKey,
    entries: Vec<Vec<u8>>,
    hashes: Vec<u8>,
    /// The time from which the entries count their times.
    began: u64,
    /// The number of the process (`Stamp::boot`), which changes with a crash.
    boot: u32,
    /// The error of the machine's clock, in milliseconds.
    step: i64,
}

impl Made {
    fn new(origin: &'static str) -> Self {
        let (key, _) = SigningKey::generate(origin).expect("random numbers");
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("evidence")).expect("a directory");
        let (entries, hashes) = (Vec::new(), Vec::new());
        Self { directory, origin, key, entries, hashes, began: now() - HOUR, boot: 1, step: 0 }
    }

    fn time(&self, at: u64) -> u64 {
        (self.began + at).saturating_add_signed(self.step)
    }

    fn running(&self, at: u64, config: &str, places: &[(&str, u64)]) -> Running {
        Running {
            at: self.time(at),
            version: String::new(),
            config_sha256: config.to_owned(),
            heartbeat_ms: 2 * HOUR,
            left: BTreeMap::new(),
            directory: disk::identity(&self.directory.path().join("evidence")),
            outputs: places.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect(),
        }
    }

    /// Adds an entry. The relay has been up since `began`.
    fn push(&mut self, entry: &Entry) {
        let up = entry.at().saturating_add_signed(-self.step).saturating_sub(self.began);
        self.entries.push(entry.stamped(Stamp { boot: self.boot, up }));
    }

    fn frontier(&self) -> Frontier {
        let mut frontier = Frontier::default();
        self.entries.iter().for_each(|it| frontier.push(Hash::of_leaf(it), &mut |_, _| {}));
        frontier
    }

    fn start(&mut self, at: u64, config: &str, places: &[(&str, u64)]) {
        let frontier = self.frontier();
        let previous = Head { size: frontier.size(), root: frontier.root() };
        let running = self.running(at, config, places);
        self.push(&Entry::Start(Started { running, previous }));
    }

    fn reload(&mut self, at: u64, config: &str, places: &[(&str, u64)]) {
        self.push(&Entry::Reload(self.running(at, config, places)));
    }

    fn stop(&mut self, at: u64, config: &str, places: &[(&str, u64)]) {
        self.push(&Entry::Stop(self.running(at, config, places)));
    }

    fn accepted(&mut self, first: u64, lines: &[String], at: u64) {
        let record = Record::accepted(range(first, lines));
        record.write(&mut self.hashes);
        let (count, root) = (record.count, record.range.root());
        self.push(&Entry::Accepted { first, count, at: self.time(at), root });
    }

    /// Adds the entry that all lines of a range were sent as received.
    fn delivered(&mut self, output: &str, first: u64, count: u64, at: u64) {
        self.push(&self.fates(output, first, count, at, None, &[]));
    }

    fn fates(
        &self,
        output: &str,
        first: u64,
        count: u64,
        at: u64,
        root: Option<Hash>,
        fates: &[(u64, Fate)],
    ) -> Entry {
        Entry::Delivered(Delivered {
            output: output.to_owned(),
            first,
            count,
            at: self.time(at),
            root,
            not_delivered: fates.iter().map(|(at, fate)| (Offset(*at), *fate)).collect(),
            changed: Vec::new(),
        })
    }

    /// Starts a relay with the output `a`, and adds entries about some sent lines.
    fn with_lines(origin: &'static str, lines: &[String]) -> Self {
        let mut made = Self::new(origin);
        made.start(0, "1", &[("a", 0)]);
        made.accepted(0, lines, 10);
        made.delivered("a", 0, lines.len() as u64, 20);
        made
    }

    fn stopped(mut self, places: &[(&str, u64)]) -> Self {
        self.stop(1000, "1", places);
        self.sign();
        self
    }

    /// Writes the files, and signs a checkpoint over all entries.
    fn sign(&self) {
        let log = self.directory.path().join("evidence");
        let width = self.entries.len() as u64;
        let leaves: Vec<u8> = self.entries.iter().flat_map(|it| Hash::of_leaf(it).0).collect();
        let mut bundle = Vec::new();
        self.entries.iter().for_each(|it| push_entry(it, &mut bundle).expect("it is short"));
        let frontier = self.frontier();
        let head = Head { size: width, root: frontier.root() };
        let checkpoint = Checkpoint { origin: self.origin.to_owned(), head };
        let note = checkpoint.sign(std::slice::from_ref(&self.key)).expect("a key");
        let tile = |content| Tile { content, index: 0, width }.path();
        for (name, bytes) in [
            (tile(Content::Hashes(0)), leaves),
            (tile(Content::Entries), bundle),
            (format!("lines/{:020}", 0), self.hashes.clone()),
            ("checkpoint".to_owned(), note.to_string().into_bytes()),
        ] {
            let path = log.join(name);
            std::fs::create_dir_all(path.parent().expect("below it")).expect("a directory");
            std::fs::write(path, bytes).expect("a file");
        }
    }

    fn note(&self) -> String {
        let path = self.directory.path().join("evidence/checkpoint");
        std::fs::read_to_string(path).expect("a checkpoint")
    }
}

fn range(first: u64, lines: &[String]) -> Range {
    let lines = lines.iter().map(|line| Hash::of(&[line.as_bytes()])).collect();
    Range { first, salt: Salt([7; SALT_BYTES]), lines }
}

/// Returns `count` lines that begin with this letter.
fn lines(letter: char, count: usize) -> Vec<String> {
    (0..count).map(|at| format!("{letter}{at}")).collect()
}

/// Checks these logs against stored lines of the output `a`.
fn check(logs: &[&Made], lines: &[String], change: impl FnOnce(&mut Request)) -> Report {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("stored");
    std::fs::write(&file, format!("{}\n", lines.join("\n"))).expect("a file");
    let mut request = Request {
        keys: logs.iter().map(|log| log.key.verifier().clone()).collect(),
        outputs: vec!["a".to_owned()],
        events: vec![file],
        ..Request::default()
    };
    change(&mut request);
    let places: Vec<_> = logs.iter().map(|log| log.directory.path().to_owned()).collect();
    directories(&places, &request, &mut |_| {}).expect("files")
}

/// Checks the exit status, that texts are in the report, and that each requested event counts once.
#[track_caller]
fn assert(report: &Report, status: u8, texts: &[&str]) {
    let faults = report.faults.kept().iter().map(ToString::to_string);
    let rows = [&report.outputs, &report.runs, &report.unchecked, &report.notes];
    let rows = rows.into_iter().flatten().cloned();
    let text: Vec<_> = [report.counts.to_string()].into_iter().chain(faults).chain(rows).collect();
    let text = text.join("\n");
    assert_eq!(report.status(), status, "{text}");
    use Number::{Changed, Missing, NotExported, NotSettled, Unknown};
    let rest = [Missing, Changed, NotSettled, NotExported, Unknown].map(|it| report.counts[it]);
    let Counts { events, .. } = report.counts;
    assert_eq!(events.good + rest.iter().sum::<u64>(), events.all, "{text}");
    for expected in texts {
        assert!(text.contains(expected), "no {expected:?} in {text}");
    }
}

#[test]
fn a_log_with_all_its_lines_passes_and_any_other_lines_do_not() {
    let all = lines('a', 9);
    let log = Made::with_lines("example.org/a", &all).stopped(&[("a", 9)]);
    assert(&check(&[&log], &all, |_| {}), 0, &["events 9/9 found", "newer 0", "proven: bytes"]);
    let more = [&all[..2], &[String::new(), "b".to_owned()], &all[2..]].concat();
    assert(&check(&[&log], &more, |_| {}), 1, &["extra 1", "not in the log: ", "stored:4"]);
    let mut changed = all.clone();
    changed[5] = "b".to_owned();
    assert(&check(&[&log], &changed, |_| {}), 1, &["changed 1", "in its place: ", "stored:6"]);
    assert(&check(&[&log], &all[1..], |_| {}), 1, &["missing 1", "FAULT position 0 2"]);
    // An event that looks like a checkpoint at its beginning.
    let disguised =
        r#"{"kind":"Checkpoint","kind":"Event","apiVersion":"x","note":"n"}"#.to_owned();
    let more = [&all[..], &[disguised]].concat();
    assert(&check(&[&log], &more, |_| {}), 1, &["extra 1"]);
    // The lines that are not stored left after the export.
    let report = check(&[&log], &all[..4], |_| {});
    assert(&report, 2, &["missing 0", "events 4/9 found", "not exported 5"]);
    let none = check(&[&log], &all, |request| request.until = Some(1));
    assert(&none, 2, &["events 0/0 found", "the log has nothing of the time that is asked about"]);
}

#[test]
fn events_from_a_time_without_evidence_are_a_fault_and_their_lines_are_unexplained() {
    let (all, off) = (lines('a', 5), lines('o', 3));
    let mut log = Made::with_lines("example.org/a", &all);
    log.stop(30, "1", &[("a", 5)]);
    log.start(40, "1", &[("a", 8)]);
    let at = log.began + 41;
    log.push(&Entry::Alarm { at, what: Alarm::Off { first: 5, count: 3 } });
    let log = log.stopped(&[("a", 8)]);
    let fault = "FAULT position 5 2";
    // Nobody can tell lines of that time from lines that were added later.
    for stored in [off.clone(), [off.clone(), off.clone()].concat(), [off, lines('f', 2)].concat()]
    {
        let unexplained = format!("extra 0, unexplained {},", stored.len());
        let with = check(&[&log], &[all.clone(), stored].concat(), |_| {});
        let texts = [fault, "3 events came in while", &unexplained, "without evidence 3"];
        assert(&with, 1, &texts);
    }
    let without = check(&[&log], &all, |_| {});
    assert(&without, 1, &[fault, "missing 0", "without evidence 3"]);
    let no_lines = check(&[&log], &all, |request| request.events.clear());
    assert(&no_lines, 1, &[fault, "without evidence 3"]);
}

#[test]
fn lost_events_are_a_fault_unless_they_are_allowed_and_damage_is_never_allowed() {
    let all = lines('a', 6);
    for (reason, allowed) in [("when_full", 0), ("removed", 0), ("damaged", 1), ("tampered", 1)] {
        let mut log = Made::new("example.org/a");
        log.start(0, "1", &[("a", 0)]);
        log.accepted(0, &all, 10);
        log.delivered("a", 0, 4, 20);
        let (output, reason_text) = ("a".to_owned(), reason.to_owned());
        let at = log.began + 20;
        log.push(&Entry::Lost { output, first: Some(4), count: 2, at, reason: reason_text });
        let log = log.stopped(&[("a", 6)]);
        let fault = "FAULT position 4 2";
        assert(&check(&[&log], &all[..4], |_| {}), 1, &["lost 2,", fault, reason]);
        let report = check(&[&log], &all[..4], |request| request.allows_lost = true);
        assert(&report, allowed, &["lost 2,", "by the log, 2 events were lost at a"]);
    }
    // A loss of the queue is a loss of every output.
    let mut log = Made::with_lines("example.org/a", &all);
    let (output, reason, at) = ("queue".to_owned(), "when_full".to_owned(), log.began + 25);
    log.push(&Entry::Lost { output, first: Some(6), count: 2, at, reason });
    let log = log.stopped(&[("a", 8)]);
    assert(&check(&[&log], &all, |_| {}), 1, &["lost 2,", "2 events were lost at queue"]);
}

#[test]
fn a_checkpoint_of_another_log_with_the_same_key_is_a_fault() {
    let all = lines('a', 3);
    let log = Made::with_lines("example.org/a", &all).stopped(&[("a", 3)]);
    for (root, status, text) in [
        (root_of(&log, 2), 0, "checkpoints 2/2 valid"),
        (Hash::of(&[b"x"]), 1, "two logs of one origin"),
    ] {
        let checkpoint = Checkpoint { origin: log.origin.to_owned(), head: Head { size: 2, root } };
        let note = checkpoint.sign([&log.key]).expect("a key").to_string().into_bytes();
        let kept = vec![("kept".to_owned(), note)];
        assert(&check(&[&log], &all, |request| request.checkpoints = kept), status, &[text]);
    }
}

/// Returns the root over the first entries of a log.
fn root_of(log: &Made, size: usize) -> Hash {
    root(log.entries.iter().take(size).map(|entry| Hash::of_leaf(entry)))
}

#[test]
fn filters_reloads_and_times_without_a_relay_are_listed() {
    let all = lines('a', 8);
    let mut log = Made::with_lines("example.org/a", &all);
    log.reload(30, "2", &[("a", 8)]);
    log.accepted(8, &lines('b', 4), 40);
    let fates = [Fate::Dropped, Fate::Duplicate, Fate::Lost, Fate::DeadLetter];
    let fates: Vec<_> = (0..).zip(fates).collect();
    log.push(&log.fates("a", 8, 4, 50, None, &fates));
    log.reload(60, "2", &[("a", 12), ("b", 12)]);
    log.reload(70, "2", &[("a", 12)]);
    log.stop(80, "2", &[("a", 12)]);
    log.start(5080, "2", &[("a", 12)]);
    let log = log.stopped(&[("a", 12)]);
    let report = check(&[&log], &all, |request| request.allows_lost = true);
    let texts = [
        "lost 1, dropped 1, without evidence 0",
        "output a: dropped 1, duplicate 1, changed 0, given up 1, dead letters 1, lost 0, not its \
         own 0",
        "output b: dropped 0, duplicate 0, changed 0, given up 0, dead letters 0, lost 0, not its \
         own 12",
        "config_sha256 2 instead of 1",
        "output b joined",
        "output b left",
        "(5.0 s): it had been stopped",
    ];
    assert(&report, 0, &texts);
    assert(&check(&[&log], &all, |_| {}), 1, &["1 event was lost at a: given up"]);
}

#[test]
fn a_log_that_another_version_went_on_writing_is_a_note() {
    let all = lines('a', 8);
    let mut log = Made::with_lines("example.org/a", &all);
    log.stop(80, "1", &[("a", 8)]);
    for (at, version) in [(100, "0.1.0"), (200, "0.2.0")] {
        let frontier = log.frontier();
        let previous = Head { size: frontier.size(), root: frontier.root() };
        let running = Running { version: version.to_owned(), ..log.running(at, "1", &[("a", 8)]) };
        log.push(&Entry::Start(Started { running, previous }));
        log.stop(at + 10, "1", &[("a", 8)]);
    }
    log.sign();
    let note = "another version of the relay has gone on with this log (in all, 2 changes of the \
                version): version 0.1.0 wrote up to entry 5, and version 0.2.0 from entry 6 on";
    assert(&check(&[&log], &all, |_| {}), 0, &[note]);
}

/// Method: events are sent, and the relay is killed before their fates are recorded. It starts with
/// a filter that drops them. The consumer has one of them twice, because there were two kills.
#[test]
fn events_that_left_before_a_crash_are_unexplained_when_later_rules_drop_them() {
    let all = lines('a', 8);
    let later = lines('b', 4);
    let log = |is_killed: bool| {
        let mut log = Made::with_lines("example.org/a", &all);
        log.accepted(8, &later, 40);
        if is_killed {
            log.boot += 1;
            log.start(5000, "2", &[("a", 8)]);
        }
        let fates: Vec<_> = (0..4).map(|at| (at, Fate::Dropped)).collect();
        log.push(&log.fates("a", 8, 4, 5050, None, &fates));
        log.stopped(&[("a", 12)])
    };
    let stored = [&all[..], &later[..2], &later[..1]].concat();
    let killed = log(true);
    let texts = ["extra 0, unexplained 3", "perhaps it was sent again by other rules"];
    assert(&check(&[&killed], &stored, |_| {}), 2, &texts);
    assert(&check(&[&killed], &all, |_| {}), 0, &["unexplained 0", "duplicate 0"]);
    // The events may have been sent in another form, which is unknown.
    let other = [&stored[..], &lines('c', 3)].concat();
    assert(&check(&[&killed], &other, |_| {}), 2, &["extra 0, unexplained 6"]);
    assert(&check(&[&log(false)], &stored, |_| {}), 1, &["extra 3, unexplained 0"]);
}

#[test]
fn entries_behind_a_stop_and_a_silent_end_are_faults() {
    let all = lines('a', 3);
    let mut log = Made::with_lines("example.org/a", &all);
    log.stop(30, "1", &[("a", 3)]);
    let at = log.began + 40;
    log.push(&Entry::Heartbeat { at });
    let log = log.stopped(&[("a", 3)]);
    assert(&check(&[&log], &all, |_| {}), 1, &["entry 4 is behind a stop"]);

    // The relay ran all the time: the silence is not that of a clock that was set.
    let mut log = Made::with_lines("example.org/a", &all);
    let at = log.began + 4 * HOUR;
    log.push(&Entry::Heartbeat { at });
    let silent = log.stopped(&[("a", 3)]);
    assert(&check(&[&silent], &all, |_| {}), 1, &["nothing was recorded for 14399 s"]);
}

#[test]
fn a_clock_that_is_set_is_a_note_and_a_log_without_a_stop_is_not_silent() {
    let all = lines('a', 3);
    for (step, text) in [
        (7_200_000, "the machine's clock was set forward by 7200 s before entry 3"),
        (-7_200_000, "the machine's clock was set back by 7200 s before entry 3"),
    ] {
        let mut log = Made::with_lines("example.org/a", &all);
        log.step = step;
        let at = log.time(2000);
        log.push(&Entry::Heartbeat { at });
        let log = log.stopped(&[("a", 3)]);
        assert(&check(&[&log], &all, |_| {}), 0, &[text]);
    }
    // The clock began in 1970, and was then set.
    let mut log = Made::new("example.org/a");
    log.step = -i64::try_from(log.began).expect("it is small");
    log.start(0, "1", &[("a", 0)]);
    log.accepted(0, &all, 10);
    log.step = 0;
    log.delivered("a", 0, 3, 20);
    let log = log.stopped(&[("a", 3)]);
    assert(&check(&[&log], &all, |_| {}), 0, &["the machine's clock was set forward by"]);
    // A relay was killed long ago.
    let mut log = Made::new("example.org/a");
    log.began -= 30 * HOUR;
    log.start(0, "1", &[("a", 0)]);
    log.accepted(0, &all, 10);
    log.delivered("a", 0, 3, 20);
    log.sign();
    assert(&check(&[&log], &all, |_| {}), 0, &["missing 0"]);
}

#[test]
fn an_export_ends_where_its_newest_line_left_and_not_by_any_clock() {
    let all = lines('a', 60);
    let mut log = Made::new("example.org/a");
    log.start(0, "1", &[("a", 0)]);
    log.accepted(0, &all, 5);
    // Ten lines leave every ten seconds.
    (0..6).for_each(|batch| log.delivered("a", batch * 10, 10, 10 + batch * 10_000));
    log.stop(50_020, "1", &[("a", 60)]);
    log.sign();
    let settle = |stored: &[String], seconds: u64| {
        check(&[&log], stored, |request| request.settle = Duration::from_secs(seconds))
    };
    assert(&settle(&all, 30), 0, &["events 60/60", "not settled 0, not exported 0"]);
    let begin = &all[..45];
    assert(&settle(begin, 0), 2, &["missing 0", "not settled 0, not exported 15"]);
    // The consumer writes the lines to two files, and one of them ends earlier.
    let late = [&all[..5], &all[6..25], &all[28..45]].concat();
    assert(&settle(&late, 0), 1, &["missing 4", "not settled 0, not exported 15"]);
    assert(&settle(&late, 30), 1, &["missing 1", "not settled 3, not exported 15"]);
    let late = [&all[..25], &all[28..45]].concat();
    assert(&settle(&late, 30), 2, &["missing 0", "not settled 3, not exported 15"]);
    // An earlier event that was refused for a while is delivered after later ones.
    let mut log = Made::new("example.org/a");
    log.start(0, "1", &[("a", 0)]);
    log.accepted(0, &all, 5);
    log.delivered("a", 10, 50, 1000);
    log.delivered("a", 0, 10, 120_000);
    log.stop(120_020, "1", &[("a", 60)]);
    log.sign();
    assert(&check(&[&log], &all[10..], |_| {}), 2, &["missing 0", "not exported 10"]);
}

#[test]
fn lines_that_are_newer_than_a_copy_accuse_nobody() {
    let all = lines('a', 5);
    let log = Made::with_lines("example.org/a", &all).stopped(&[("a", 5)]);
    let later = [&all[..], &lines('b', 3)].concat();
    assert(&check(&[&log], &later, |_| {}), 1, &["extra 3, unexplained 0"]);
    // The directory is copied while the relay is stopped, and the lines are exported later.
    let copy = tempfile::tempdir().expect("a directory");
    let original = log.directory.path().join("evidence");
    let status = std::process::Command::new("cp").arg("-a").arg(original).arg(copy.path()).status();
    assert!(status.expect("cp runs").success());
    let log = Made { directory: copy, ..log };
    assert(&check(&[&log], &later, |_| {}), 2, &["extra 0, unexplained 3", "it left after"]);
}

#[test]
fn copies_of_lines_whose_hashes_were_pruned_are_unexplained_at_most() {
    let (old, new) = (lines('a', 5), lines('b', 5));
    let mut log = Made::with_lines("example.org/a", &old);
    log.boot += 1;
    log.start(100, "1", &[("a", 0)]);
    log.delivered("a", 0, 5, 120);
    log.hashes.clear();
    let at = log.began + 130;
    log.push(&Entry::Pruned { at, below: 5 });
    log.accepted(5, &new, 140);
    log.delivered("a", 5, 5, 150);
    let log = log.stopped(&[("a", 10)]);
    let stored = [old.clone(), old, new].concat();
    assert(&check(&[&log], &stored, |_| {}), 2, &["extra 0, unexplained 10", "unknown 5"]);
}

#[test]
fn a_name_that_no_log_has_is_a_usage_error_that_lists_the_names() {
    let all = lines('a', 5);
    let log = Made::with_lines("example.org/a", &all).stopped(&[("a", 5)]);
    let request = Request {
        keys: vec![log.key.verifier().clone()],
        outputs: vec!["nosuch".to_owned()],
        ..Request::default()
    };
    let error = |place: &Path| {
        let found = directories(&[place.to_owned()], &request, &mut |_| {});
        found.expect_err("a usage error").to_string()
    };
    assert_eq!(error(log.directory.path()), "the log has no output nosuch; it has a");
    let empty = tempfile::tempdir().expect("a directory");
    std::fs::write(empty.path().join("other"), "").expect("a file");
    assert!(error(empty.path()).ends_with("It has: other"));
}

#[test]
fn no_line_escapes_a_window_whatever_the_clock_said() {
    let all = lines('a', 9);
    let mut log = Made::new("example.org/a");
    log.start(0, "1", &[("a", 0)]);
    log.accepted(0, &all[..3], 100);
    log.accepted(3, &all[3..6], 50);
    log.accepted(6, &all[6..], 120);
    log.delivered("a", 0, 9, 130);
    let log = log.stopped(&[("a", 9)]);
    let rest = [&all[..3], &all[4..]].concat();
    let since = |at: u64| check(&[&log], &rest, |it| it.since = Some(log.began + at));
    let until = |at: u64| check(&[&log], &rest, |it| it.until = Some(log.began + at));
    for report in [since(40), since(90), until(60), until(110)] {
        assert(&report, 1, &["missing 1", "FAULT position 3 2"]);
    }
    assert(&since(110), 0, &["events 3/3 found"]);
}

#[test]
fn a_line_that_left_altered_while_the_log_says_unchanged_is_a_fault() {
    let all = lines('a', 3);
    let sent = ["a0", "x", "a2"].map(str::to_owned);
    let mut log = Made::new("example.org/a");
    log.start(0, "1", &[("a", 0)]);
    log.accepted(0, &all, 10);
    let record = Record { output: Some("a".to_owned()), ..Record::accepted(range(0, &sent)) };
    record.write(&mut log.hashes);
    log.push(&log.fates("a", 0, 3, 20, Some(record.range.root()), &[]));
    let log = log.stopped(&[("a", 3)]);
    let text = "FAULT position 1 2";
    assert(&check(&[&log], &sent, |_| {}), 1, &[text, "says that it was not changed"]);
}

#[test]
fn several_relays_with_one_store_are_checked_together() {
    let (of_a, of_b) = (lines('a', 5), lines('b', 7));
    let a = Made::with_lines("example.org/a", &of_a).stopped(&[("a", 5)]);
    let b = Made::with_lines("example.org/b", &of_b).stopped(&[("a", 7)]);
    let checkpoint = |made: &Made| {
        let note = serde_json::to_string(&made.note()).expect("text");
        format!(r#"{{"kind":"Checkpoint","apiVersion":"kube-audit-forwarder/v1","note":{note}}}"#)
    };
    let stored = [of_a, vec![checkpoint(&a), checkpoint(&b)], of_b].concat();
    let both = check(&[&a, &b], &stored, |_| {});
    assert(&both, 0, &["checkpoints 4/4 valid; events 12/12 found", "extra 0"]);
    let without = [&stored[..9], &stored[10..]].concat();
    assert(&check(&[&a, &b], &without, |_| {}), 1, &["missing 1", "example.org/b: "]);
    // The log of the other checkpoint is not given.
    let key = b.key.verifier().clone();
    let one = check(&[&a], &stored[..7], |request| request.keys.push(key));
    assert(&one, 2, &["no --directory has this log"]);
}

#[test]
fn a_renamed_output_is_followed() {
    let (before, after) = (lines('a', 5), lines('b', 4));
    let mut log = Made::with_lines("example.org/a", &before);
    log.reload(30, "2", &[("b", 5)]);
    log.accepted(5, &after, 40);
    log.delivered("b", 5, 4, 50);
    let log = log.stopped(&[("b", 9)]);
    let stored = [before, after].concat();
    let names = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        check(&[&log], &stored, |request| request.outputs = names)
    };
    assert(&names(&["a", "b"]), 0, &["events 9/9 found", "extra 0"]);
    assert(&names(&["b"]), 2, &["events 4/4 found", "extra 0", "name it with --output too"]);
}

#[test]
fn lines_from_before_the_window_whose_hashes_are_gone_are_unexplained() {
    let (old, new) = (lines('a', 100), lines('b', 5));
    let mut log = Made::with_lines("example.org/a", &old);
    log.hashes.clear();
    let at = log.began + 30;
    log.push(&Entry::Pruned { at, below: 100 });
    log.accepted(100, &new, 40);
    log.delivered("a", 100, 5, 50);
    let log = log.stopped(&[("a", 105)]);
    let stored = [old, new].concat();
    let since = |lines: &[String]| check(&[&log], lines, |it| it.since = Some(log.began + 40));
    assert(&since(&stored), 2, &["events 5/5 found", "extra 0", "unknown 0"]);
    assert(&since(&stored[100..]), 0, &["events 5/5 found", "extra 0"]);
    assert(&since(&[stored, lines('x', 1)].concat()), 2, &["unexplained 101"]);
}

#[test]
fn a_copy_of_a_directory_in_use_is_newer_at_its_end_and_proves_nothing_there() {
    let (all, more) = (lines('a', 5), lines('b', 2));
    let stored = [all.clone(), more].concat();
    let log = Made::with_lines("example.org/a", &all);
    log.sign();
    assert(&check(&[&log], &stored, |_| {}), 2, &["events 5/5 found", "unexplained 2"]);
    assert(&check(&[&log], &all[1..], |_| {}), 1, &["missing 1"]);
    // The bundle was copied before the checkpoint.
    let bundles = log.directory.path().join("evidence/tile/entries/000.p");
    let older = Tile { content: Content::Entries, index: 0, width: 1 };
    let mut first = Vec::new();
    push_entry(&log.entries[0], &mut first).expect("it is short");
    std::fs::write(log.directory.path().join("evidence").join(older.path()), first)
        .expect("a file");
    std::fs::remove_file(bundles.join("3")).expect("it is there");
    let torn = check(&[&log], &all, |_| {});
    assert(&torn, 2, &["checkpoints 0/1 valid", "the entries from 0 on", "unexplained 5"]);
}

#[test]
fn a_log_that_was_kept_aside_explains_the_lines_from_before_the_next_one() {
    let (before, after) = (lines('a', 5), lines('b', 4));
    let mut old = Made::new("example.org/old");
    old.began -= 2 * HOUR + HOUR / 2;
    old.start(0, "1", &[("a", 0)]);
    old.accepted(0, &before, 10);
    old.delivered("a", 0, 5, 20);
    old.sign();
    let mut new = Made::new("example.org/new");
    new.start(0, "1", &[("a", 5)]);
    new.accepted(5, &after, 10);
    new.delivered("a", 5, 4, 20);
    let new = new.stopped(&[("a", 9)]);
    let aside = new.directory.path().join("evidence-until-1");
    std::fs::rename(old.directory.path().join("evidence"), &aside).expect("a directory");
    let stored = [before, after].concat();
    let file = old.directory.path().join("stored");
    std::fs::write(&file, format!("{}\n", stored.join("\n"))).expect("a file");
    let request = Request {
        keys: [&old, &new].map(|log| log.key.verifier().clone()).to_vec(),
        outputs: vec!["a".to_owned()],
        events: vec![file],
        ..Request::default()
    };
    let check = |places: &[PathBuf]| directories(places, &request, &mut |_| {}).expect("files");
    let queue = new.directory.path().to_owned();
    assert(&check(&[queue.clone(), aside.clone()]), 0, &["events 9/9 found"]);
    let texts = ["events 4/4 found", "unexplained 5", "it came in before this log began"];
    assert(&check(&[queue]), 2, &texts);
    assert(&check(&[aside]), 2, &["events 5/5 found", "unexplained 4", "it left after"]);
}
