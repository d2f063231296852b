//! `evidence verify`: an intact log passes, and each attack on a copy of it is found and named.

use std::io::Write as _;

use super::recorded::{ORIGIN, Recorded, keygen, text_of, wait_for_checkpoint};
use crate::support::prelude::*;
use crate::support::spool::forge_lines;

/// A log of two runs, and the lines that the consumer has stored.
struct Whole {
    recorded: Recorded,
    stored: Vec<Vec<u8>>,
    /// A checkpoint of the first run.
    older: Vec<u8>,
}

/// The result of a check: the exit status, and what was printed.
pub(super) struct Checked {
    pub(super) status: i32,
    pub(super) text: String,
}

impl Checked {
    #[track_caller]
    pub(super) fn assert(&self, status: i32, texts: &[&str]) {
        assert_eq!(self.status, status, "{}", self.text);
        for text in texts {
            assert!(self.text.contains(text), "no {text:?} in {}", self.text);
        }
    }
}

pub(super) fn check(arguments: &[&str]) -> Checked {
    let arguments = [&["evidence", "verify"], arguments].concat();
    let output = run_command(&arguments, Path::new("/"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("text");
    Checked { status: output.status.code().expect("it has ended"), text }
}

impl Whole {
    /// Records two runs, in which the output drops, changes and deduplicates events.
    fn new() -> Self {
        Self::with(|policy| {
            let policy = policy.display();
            format!("filter = {{ policy = \"{policy}\", deduplicate = \"1h\" }}\n")
        })
    }

    fn with(output: impl FnOnce(&Path) -> String) -> Self {
        let mut recorded = Recorded::new();
        let policy = recorded.directory.path().join("policy.yaml");
        let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
                     - {level: None, namespaces: [team-1]}\n\
                     - {level: Metadata, namespaces: [team-2]}\n- level: RequestResponse\n";
        std::fs::write(&policy, rules).unwrap();
        // With one request at a time, the consumer has the lines in the order of the log.
        let output = format!("concurrency = 1\n{}", output(&policy));
        let config = recorded.config_with(&output, "");
        let mut older = Vec::new();
        for seeds in [&[0, 1, 2, 3, 4, 5][..], &[6, 6, 7, 8, 9, 10, 11]] {
            let relay = Relay::start(&config);
            for seed in seeds {
                recorded.post(&relay, *seed, 40);
            }
            relay.wait_until_delivered(PATIENCE);
            relay.finish(Backlog::Empty);
            if older.is_empty() {
                older = std::fs::read(recorded.log().join("checkpoint")).unwrap();
            }
        }
        let stored = accepted_events(&recorded.sink);
        Self { recorded, stored, older }
    }

    /// Posts a batch that stays in the queue, because nobody listens at the consumer's address.
    fn leave_events(&mut self) {
        let config = self.recorded.config_with("", "");
        let there = self.recorded.sink.address().to_string();
        let config = config.replace(&there, &format!("127.0.0.1:{}", free_port()));
        let relay = Relay::start(&config);
        self.recorded.post(&relay, 20, 40);
        relay.finish(Backlog::Stable);
    }

    /// Checks a directory against stored lines.
    fn check(&self, spool: &Spool, stored: &[Vec<u8>], more: &[&str]) -> Checked {
        let files = TempDir::new().unwrap();
        let file = files.path().join("stored");
        std::fs::write(&file, text_of(stored)).unwrap();
        let directory = spool.path().display().to_string();
        let file = file.display().to_string();
        let arguments = ["--directory", &directory, "--key", &self.recorded.verifier];
        let events = ["--output", "consumer", "--events", &file];
        let settle = if more.contains(&"--settle") { &[] } else { &["--settle", "0s"][..] };
        check(&[&arguments, events.as_slice(), settle, more].concat())
    }

    fn copy(&self) -> Spool {
        self.recorded.spool.copy()
    }

    /// Attacks a copy of the directory, and checks it against all stored lines.
    fn attack(&self, attack: impl FnOnce(&Spool)) -> Checked {
        let copy = self.copy();
        attack(&copy);
        self.check(&copy, &self.stored, &[])
    }

    /// Writes a checkpoint to a file, and returns its path.
    fn note(&self, name: &str, note: &[u8]) -> String {
        let path = self.recorded.directory.path().join(name);
        std::fs::write(&path, note).unwrap();
        path.display().to_string()
    }
}

/// Flips a bit in the middle of a file.
fn flip(spool: &Spool, file: &Path) {
    spool.edit(file, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
}

/// Returns the files of the spool whose paths begin with `beginning`.
fn files_below(spool: &Spool, beginning: &str) -> Vec<PathBuf> {
    let files = spool.files().into_keys();
    files.filter(|path| path.starts_with(beginning)).collect()
}

#[test]
fn an_untouched_log_passes_in_any_order_and_with_repeated_lines() {
    let whole = Whole::new();
    let spool = &whole.recorded.spool;
    let count = whole.stored.len();
    let passed = whole.check(spool, &whole.stored, &[]);
    let found = format!("events {count}/{count} found; missing 0, changed 0, extra 0");
    passed.assert(0, &["checkpoints 1/1 valid; ", &found, "pending 0\n", "duplicate 0, unknown 0"]);
    assert!(!passed.text.contains("FAULT"), "{}", passed.text);

    // The lines are shuffled and in two files, one of which is compressed. One line is there twice.
    let mut rng = fastrand::Rng::with_seed(3);
    let mut lines = whole.stored.clone();
    rng.shuffle(&mut lines);
    lines.push(lines[7].clone());
    let (one, other) = lines.split_at(count / 3);
    let files = TempDir::new().unwrap();
    let (plain, packed) = (files.path().join("plain"), files.path().join("packed"));
    std::fs::write(&plain, text_of(one)).unwrap();
    let file = std::fs::File::create(&packed).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    gzip.write_all(&text_of(other)).unwrap();
    gzip.finish().unwrap();
    let log = whole.recorded.log();
    let [log, plain, packed] = [&log, &plain, &packed].map(|path| path.display().to_string());
    let key = &whole.recorded.verifier;
    let older = whole.note("older", &whole.older);
    let arguments = ["--directory", &log, "--key", key, "--checkpoint", &older];
    let events = ["--output", "consumer", "--events", &plain, &packed];
    let found = format!("events {count}/{count} found; missing 0, changed 0, extra 0");
    check(&[arguments.as_slice(), &events].concat())
        .assert(0, &["checkpoints 2/2 valid; ", &found, "duplicate 1", "proven: bytes"]);

    // Without the consumer's lines, the accepted events are counted.
    let accepted = whole.recorded.events.len();
    let found = format!("events {accepted}/{accepted} found; missing 0");
    check(&arguments).assert(0, &[&found, "proven: positions"]);
}

#[test]
fn each_change_of_a_file_is_found() {
    let mut whole = Whole::new();
    // Events that wait: a queue whose events have all left has no segment.
    whole.leave_events();
    for (beginning, said) in [
        ("evidence/tile/0", "tile/0/000"),
        ("evidence/tile/entries", ""),
        ("evidence/checkpoint", "checkpoint"),
        ("evidence/lines", "wrong checksum"),
    ] {
        let checked = whole.attack(|spool| {
            // Partial tiles of older checkpoints are not checked.
            let newest = files_below(spool, beginning)
                .into_iter()
                .max_by_key(|path| std::fs::metadata(spool.path().join(path)).unwrap().len());
            flip(spool, &newest.unwrap());
        });
        checked.assert(1, &["FAULT", said]);
        let checked = whole.attack(|spool| {
            for file in files_below(spool, beginning) {
                std::fs::remove_file(spool.path().join(file)).unwrap();
            }
        });
        let (status, said) = match beginning {
            "evidence/checkpoint" => (1, "has no checkpoint, although the relay had signed one"),
            "evidence/lines" => (2, "NOT CHECKED: positions 0 to "),
            _ => (1, "is missing"),
        };
        checked.assert(status, &[said]);
    }
    // The last record of the newest file is about lines as they were sent.
    let checked = whole.attack(|spool| {
        let newest = files_below(spool, "evidence/lines").pop().unwrap();
        spool.edit(&newest, |bytes| *bytes.last_mut().unwrap() ^= 1);
    });
    checked.assert(1, &["FAULT", "wrong checksum", "unknown "]);
    let checked = whole.attack(|spool| {
        let newest = files_below(spool, "evidence/lines").pop().unwrap();
        spool.edit(&newest, |bytes| bytes.truncate(bytes.len() - 1));
    });
    checked.assert(1, &["FAULT", "is cut off"]);
    let segment = |spool: &Spool| spool.segments().remove(0);
    whole
        .attack(|spool| spool.edit(&segment(spool), |bytes| bytes[BEYOND_THE_HEADERS] ^= 1))
        .assert(1, &["FAULT", "the queue: segments/"]);
    // An event is changed, and the record gets the right checksum for it.
    let checked = whole.attack(|spool| {
        let record = &spool.records()[0];
        let change = |lines: &mut [u8]| {
            let at = memchr::memmem::find(lines, b"10.0.0.1").unwrap();
            lines[at + 7] = b'9';
        };
        spool.edit(&record.segment, |bytes| forge_lines(record, bytes, change));
    });
    let fault = format!("FAULT position {} 2", whole.recorded.events.len() - 40);
    checked.assert(1, &[&fault, "the queue has another line than the one that came"]);
    let checked = whole.attack(|spool| {
        std::fs::remove_dir_all(spool.path().join("evidence")).unwrap();
    });
    checked.assert(2, &["holds no evidence", "It has: ", "segments"]);
}

/// An offset in the first segment that is within the lines of its first record.
const BEYOND_THE_HEADERS: usize = 4096 + 64 + 100;

/// Method: the output adds `kind` and `apiVersion` to each event, and its filter drops and changes
/// some events.
#[test]
fn the_lines_of_an_audit_log_are_the_events_that_left() {
    let whole = Whole::with(|policy| {
        let policy = policy.display();
        format!("format = \"audit_log\"\nfilter = {{ policy = \"{policy}\" }}\n")
    });
    let spool = &whole.recorded.spool;
    let count = whole.stored.len();
    assert!(whole.stored.iter().all(|line| line.starts_with(br#"{"kind":"Event","apiVersion""#)));
    let found = format!("events {count}/{count} found; missing 0, changed 0, extra 0");
    whole.check(spool, &whole.stored, &[]).assert(0, &[&found, "proven: bytes"]);
    let mut stored = whole.stored.clone();
    let line = stored.remove(7);
    let found = format!("events {}/{count} found; missing 1, changed 0, extra 0", count - 1);
    whole.check(spool, &stored, &[]).assert(1, &[&found]);
    let text = String::from_utf8(line).unwrap().replace("10.0.0.1", "10.0.0.9");
    stored.insert(7, text.into_bytes());
    let found = format!("events {}/{count} found; missing 0, changed 1, extra 0", count - 1);
    whole.check(spool, &stored, &[]).assert(1, &[&found]);
}

#[test]
fn what_a_consumer_lacks_or_has_besides_is_named() {
    let whole = Whole::new();
    let spool = &whole.recorded.spool;
    let count = whole.stored.len();
    let position = |line: &Vec<u8>| {
        whole.recorded.events.iter().position(|event| event == line).expect("it came so")
    };
    // The lines that the filter has not changed.
    let unchanged: Vec<usize> =
        (0..count).filter(|at| whole.recorded.events.contains(&whole.stored[*at])).collect();
    for at in [unchanged[0], unchanged[unchanged.len() / 2]] {
        let mut stored = whole.stored.clone();
        let line = stored.remove(at);
        let place = whole.recorded.events.iter().position(|event| *event == line);
        let fault = place.map_or("FAULT position ".to_owned(), |it| format!("position {it} 2"));
        let found = format!("events {}/{count} found; missing 1, changed 0, extra 0", count - 1);
        whole.check(spool, &stored, &[]).assert(1, &[&found, &fault, "its line is not stored"]);
    }
    // If the newest lines are missing, the export ended early: neither a fault nor a pass.
    let last = whole.check(spool, &whole.stored[..count - 1], &[]);
    last.assert(2, &["missing 0", "not exported 1", "NOT CHECKED: 1 line left by consumer after"]);
    let late = [&whole.stored[..count - 2], &whole.stored[count - 1..]].concat();
    let late = whole.check(spool, &late, &["--settle", "1h"]);
    late.assert(2, &["missing 0", "not settled 1", "left by consumer within 60m before"]);
    let mut stored = whole.stored.clone();
    stored.insert(5, stored[4].iter().rev().copied().collect());
    let found = format!("events {count}/{count} found; missing 0, changed 0, extra 1");
    whole.check(spool, &stored, &[]).assert(1, &[&found, "FAULT: 1 stored line is not in"]);
    for at in [0, unchanged[unchanged.len() / 2]] {
        let mut stored = whole.stored.clone();
        let place = unchanged.contains(&at).then(|| position(&stored[at]));
        let middle = stored[at].len() / 2;
        stored[at][middle] ^= 1;
        let fault = place.map_or("FAULT position ".to_owned(), |it| format!("position {it} 2"));
        let found = format!("events {}/{count} found; missing 0, changed 1, extra 0", count - 1);
        whole
            .check(spool, &stored, &[])
            .assert(1, &[&found, &fault, "another line is in its place"]);
    }
    // Nothing was recorded in these periods.
    let none = whole.check(spool, &whole.stored, &["--since", "2100-01-01T00:00:00Z"]);
    none.assert(2, &["events 0/0 found; missing 0, changed 0, extra 0", "has nothing of the time"]);
    let none = whole.check(spool, &[], &["--until", "2000-01-01T00:00:00Z"]);
    none.assert(2, &["events 0/0 found; missing 0, changed 0, extra 0", "has nothing of the time"]);
    let all = whole.check(spool, &[], &[]);
    all.assert(2, &[&format!("events 0/{count} found; missing 0,"), "not exported"]);
}

#[test]
fn a_log_that_was_set_back_or_replaced_is_found() {
    let whole = Whole::new();
    let newest = std::fs::read(whole.recorded.log().join("checkpoint")).unwrap();
    let newest = whole.note("newest", &newest);
    // An older checkpoint is put back. Without `evidence-head`, this also cuts off the log's end.
    let cut = whole.copy();
    std::fs::write(cut.path().join("evidence/checkpoint"), &whole.older).unwrap();
    let kept = whole.check(&cut, &whole.stored, &["--checkpoint", &newest]);
    kept.assert(2, &["checkpoints 2/2 valid", "an older checkpoint was put back"]);
    std::fs::remove_file(cut.path().join("evidence-head")).unwrap();
    let kept = whole.check(&cut, &[], &["--checkpoint", &newest]);
    kept.assert(1, &["checkpoints 1/2 valid", "its end was cut off"]);

    // The queue shows that the log was longer.
    let directory = cut.path().display().to_string();
    check(&["--directory", &directory, "--key", &whole.recorded.verifier])
        .assert(1, &["the queue says that consumer is finished with"]);

    let other = TempDir::new().unwrap();
    let key = keygen(ORIGIN, &other.path().join("key"));
    let directory = whole.recorded.spool.path().display().to_string();
    let replaced = check(&["--directory", &directory, "--key", &key]);
    replaced.assert(1, &["checkpoints 0/1 valid", "is not signed by the key"]);
    let both = ["--key", &key, "--key", &whole.recorded.verifier];
    check(&[["--directory", &directory].as_slice(), &both].concat()).assert(0, &[]);
    let wrong = check(&["--directory", &directory, "--key", "no key"]);
    wrong.assert(2, &["--key no key"]);

    // Another relay has the same key and origin.
    let twin = Spool::new();
    let config = whole.recorded.config("");
    let config = config.replace(&directory, &twin.path().display().to_string());
    let relay = Relay::start(&config);
    relay.finish(Backlog::Empty);
    let checkpoint = std::fs::read(twin.path().join("evidence/checkpoint")).unwrap();
    let checkpoint = whole.note("twin", &checkpoint);
    let fork = whole.check(&whole.recorded.spool, &whole.stored, &["--checkpoint", &checkpoint]);
    fork.assert(1, &["checkpoints 1/2 valid", "there are two logs of one origin"]);

    let mut elsewhere = Recorded::new();
    let file = elsewhere.directory.path().join("elsewhere");
    elsewhere.verifier = keygen("example.org/elsewhere", &file);
    let config = elsewhere.config("").replace(ORIGIN, "example.org/elsewhere");
    let config = config.replace("/key\"", "/elsewhere\"");
    Relay::start(&config).finish(Backlog::Empty);
    let checkpoint = std::fs::read(elsewhere.log().join("checkpoint")).unwrap();
    let checkpoint = whole.note("elsewhere", &checkpoint);
    let other = whole.check(&whole.recorded.spool, &whole.stored, &["--checkpoint", &checkpoint]);
    other.assert(1, &["checkpoints 1/2 valid", "is a checkpoint of example.org/elsewhere"]);
}

/// Method: the relay is killed before the consumer has some of the events. The check must find no
/// fault, and count these events as pending. There is a checkpoint among the consumer's lines.
#[test]
fn events_without_a_fate_are_pending_and_checkpoints_among_the_lines_are_checked() {
    let mut recorded = Recorded::new();
    let mut relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, 1, 50);
    relay.wait_until_delivered(PATIENCE);
    let stored = accepted_events(&recorded.sink);
    recorded.wait_until_signed();
    relay.stop();
    let down = HttpSink::start(|_| Answer::status(503));
    let old = to_sink(recorded.sink.address(), "");
    let config = recorded.config("").replace(&old, &to_sink(down.address(), ""));
    let mut relay = Relay::start(&config);
    recorded.post(&relay, 2, 30);
    recorded.wait_until_signed();
    relay.kill();
    let checkpoint = std::fs::read_to_string(recorded.log().join("checkpoint")).unwrap();
    let kind = "Checkpoint";
    let version = "kube-audit-forwarder/v1";
    let line = |note: &str| {
        let object = serde_json::json!({ "apiVersion": version, "note": note }).to_string();
        format!("{{\"kind\":\"{kind}\",{}", object.strip_prefix('{').unwrap()).into_bytes()
    };
    let whole = Whole { recorded, stored, older: Vec::new() };
    let with_checkpoint = [whole.stored.clone(), vec![line(&checkpoint)]].concat();
    let checked = whole.check(&whole.recorded.spool, &with_checkpoint, &[]);
    checked.assert(0, &["checkpoints 2/2 valid; events 50/50 found", "pending 30", "unknown 0"]);
    // The consumer has received a pending event after all.
    let more = [with_checkpoint, vec![whole.recorded.events[60].clone()]].concat();
    whole.check(&whole.recorded.spool, &more, &[]).assert(0, &["extra 0"]);
    let forged = [whole.stored.clone(), vec![line(&checkpoint.replace("\n80", "\n81"))]].concat();
    let forged = [forged, vec![line(&checkpoint.replace(ORIGIN, "example.org/x"))]].concat();
    let checked = whole.check(&whole.recorded.spool, &forged, &[]);
    checked.assert(1, &["a checkpoint among the stored lines"]);
}

/// Method: a store has lost an event, which is a fault. Then the relay's files are replaced in turn
/// by something that no relay makes.
#[test]
fn a_file_that_can_not_be_read_is_named_and_hides_no_fault() {
    let whole = Whole::with(|_| String::new());
    let stored = [&whole.stored[..3], &whole.stored[4..]].concat();
    let missing = "its line is not stored";
    for beginning in ["evidence/lines/0", "evidence/lines", "evidence/tile/0", "evidence-head"] {
        for way in ["a symlink", "a FIFO", "directory", "too large"] {
            let copy = whole.copy();
            let file = files_below(&copy, beginning).pop();
            let file = file.filter(|_| beginning != "evidence/lines");
            let path = copy.path().join(file.unwrap_or_else(|| PathBuf::from(beginning)));
            match path.is_dir() {
                true => std::fs::rename(&path, copy.path().join("moved")).unwrap(),
                false => std::fs::remove_file(&path).unwrap_or_default(),
            }
            match way {
                "a symlink" => {
                    std::os::unix::fs::symlink(copy.path().join("moved"), &path).unwrap()
                }
                "a FIFO" => {
                    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
                    assert!(made.success());
                }
                "directory" => std::fs::create_dir(&path).unwrap(),
                // A sparse file of 30 GiB.
                _ => std::fs::File::create(&path).unwrap().set_len(30 << 30).unwrap(),
            }
            let checked = whole.check(&copy, &stored, &[]);
            let name = path.file_name().unwrap().to_str().unwrap();
            let said = checked.text.lines().filter(|line| {
                let is_told = line.starts_with("FAULT") || line.starts_with("NOT CHECKED");
                is_told && line.contains(name)
            });
            assert!(said.count() > 0, "{beginning} {way}: {}", checked.text);
            // Without the hash of the lost line, the check cannot know that it was lost.
            let is_known = !beginning.starts_with("evidence/lines");
            assert!(!is_known || checked.text.contains(missing), "{way}: {}", checked.text);
            assert!(checked.status == 1 || way == "directory", "{way}: {}", checked.text);
            assert!(checked.status > 0, "{way}: {}", checked.text);
        }
    }
    // A file of stored lines is cut off. No line is called missing, and the log is still checked.
    let files = TempDir::new().unwrap();
    let file = files.path().join("cut.gz");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text_of(&stored)).unwrap();
    let bytes = gzip.finish().unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let directory = whole.recorded.spool.path().display().to_string();
    let arguments = ["--directory", &directory, "--key", &whole.recorded.verifier];
    let events = ["--output", "consumer", "--events", file.to_str().unwrap()];
    let checked = check(&[&arguments[..], &events].concat());
    checked.assert(
        2,
        &["checkpoints 1/1 valid", "missing 0", "cut.gz", "No stored line was compared"],
    );
}

/// Method: events come from the webhook, and some of them again as lines of an audit.log, which
/// have `kind` and `apiVersion`.
#[test]
fn an_audit_log_that_is_replayed_beside_the_webhook_passes() {
    let mut recorded = Recorded::new();
    let relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, 1, 40);
    let head = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;
    let line = |event: &Vec<u8>| [head.as_slice(), &event[1..], b"\n"].concat();
    let lines: Vec<u8> = recorded.events[..20].iter().flat_map(line).collect();
    assert_eq!(relay.post(&lines).status, 200);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    let stored = accepted_events(&recorded.sink);
    assert_eq!(stored.len(), 60);
    let whole = Whole { recorded, stored, older: Vec::new() };
    let checked = whole.check(&whole.recorded.spool, &whole.stored, &[]);
    checked.assert(0, &["events 60/60 found; missing 0", "duplicate 0"]);
}

/// Method: the directory of a stopped relay is copied. The lines are exported after another run.
#[test]
fn lines_that_left_after_a_copy_of_a_stopped_relay_accuse_nobody() {
    let mut recorded = Recorded::new();
    let config = recorded.config("");
    let relay = Relay::start(&config);
    recorded.post(&relay, 1, 40);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    let copy = recorded.spool.copy();
    let relay = Relay::start(&config);
    recorded.post(&relay, 2, 40);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    let stored = accepted_events(&recorded.sink);
    let whole = Whole { recorded, stored, older: Vec::new() };
    whole.check(&copy, &whole.stored, &[]).assert(2, &["extra 0, unexplained 40"]);
    whole.check(&whole.recorded.spool, &whole.stored, &[]).assert(0, &["events 80/80 found"]);
    // The relay's own directory is complete, so a line that is not in it is extra.
    let more = [whole.stored.clone(), vec![b"{\"auditID\":\"x\"}".to_vec()]].concat();
    whole.check(&whole.recorded.spool, &more, &[]).assert(1, &["extra 1, unexplained 0"]);
    // The output's name is misspelt.
    let directory = whole.recorded.spool.path().display().to_string();
    let key = ["--key", &whole.recorded.verifier];
    let typo = ["--directory", &directory, "--output", "consummer", "--events", "/dev/null"];
    let said = "the log has no output consummer; it has consumer";
    check(&[&key[..], &typo].concat()).assert(2, &[said]);
}

/// Method: the line hashes exceed `evidence.max_bytes`, so the oldest ones are deleted.
#[test]
fn events_whose_line_hashes_were_deleted_are_unknown() {
    let mut recorded = Recorded::new();
    let relay = Relay::start(&recorded.config("max_bytes = \"1MiB\"\n"));
    for seed in 0..10 {
        recorded.post(&relay, seed, 4000);
    }
    relay.wait_until_delivered(Duration::from_secs(60));
    // The recorder may be behind, and a stop waits for it only a few seconds.
    let is_whole = || recorded_events(&recorded) == 40_000;
    wait_for_checkpoint(&recorded.log(), "all events", is_whole);
    relay.finish(Backlog::Empty);
    let stored = accepted_events(&recorded.sink);
    let whole = Whole { recorded, stored, older: Vec::new() };
    let checked = whole.check(&whole.recorded.spool, &whole.stored, &[]);
    checked.assert(2, &["missing 0, changed 0, extra 0", "were deleted to make room, by the log"]);
    assert!(!checked.text.contains("unknown 0\n"), "{}", checked.text);
    // Copies of these lines may have been sent again, so their number proves nothing.
    let unknown = checked.text.split("unknown ").nth(1).unwrap().split('\n').next().unwrap();
    let unknown: usize = unknown.parse().unwrap();
    let mut stored = whole.stored.clone();
    stored.extend((0..3).map(|at| format!("{{\"forged\":{at}}}").into_bytes()));
    let checked = whole.check(&whole.recorded.spool, &stored, &[]);
    let unexplained = format!("extra 0, unexplained {}", unknown + 3);
    checked.assert(2, &["missing 0, changed 0", &unexplained, &format!("unknown {unknown}\n")]);
}

/// Returns the number of accepted events that the newest checkpoint covers.
fn recorded_events(recorded: &Recorded) -> u64 {
    let log = recorded.log().display().to_string();
    let shown = run_command(&["evidence", "show", "--json", &log], Path::new("/")).stdout;
    let entries = shown.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let entries = entries.map(|line| serde_json::from_slice::<Value>(line).unwrap());
    let accepted = entries.filter(|entry| entry["type"] == "accepted");
    accepted.map(|entry| entry["count"].as_u64().unwrap()).sum()
}

/// Method: the log of a running relay is checked over its admin address, which does not serve the
/// line hashes. The result must say so. Everything else must be valid.
#[test]
fn a_published_log_is_checked_without_its_line_hashes() {
    let mut recorded = Recorded::new();
    let relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, 1, 300);
    relay.wait_until_delivered(PATIENCE);
    recorded.wait_until_signed();
    let url = format!("http://{}", relay.admin());
    let key = ["--key", &recorded.verifier];
    let checked = check(&[["--url", &url].as_slice(), &key].concat());
    let texts =
        ["checkpoints 1/1 valid; events 0/300 found", "unknown 300", "no line was compared"];
    checked.assert(0, &texts);
    assert!(!checked.text.contains("FAULT"), "{}", checked.text);
    let below = format!("{url}/evidence/");
    check(&[["--url", &below].as_slice(), &key].concat()).assert(0, &["checkpoints 1/1 valid"]);
    let other = keygen(ORIGIN, &recorded.directory.path().join("other"));
    check(&["--url", &url, "--key", &other]).assert(1, &["is not signed by the key"]);
    let events = ["--output", "consumer", "--events", "/dev/null"];
    check(&[["--url", &url].as_slice(), &key, &events].concat()).assert(2, &["--directory"]);
    let none = check(&["--url", &format!("{url}/nothing"), "--key", &recorded.verifier]);
    none.assert(2, &["has no checkpoint yet: nothing is proven"]);
    // The directory of a running relay can also be checked.
    let directory = recorded.spool.path().display().to_string();
    let checked = check(&[["--directory", &directory].as_slice(), &key].concat());
    checked.assert(0, &["checkpoints 1/1 valid; events 300/300 found"]);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_proof_is_checked_without_the_log() {
    let whole = Whole::with(|_| String::new());
    let directory = whole.recorded.spool.path().display().to_string();
    let prove = ["evidence", "prove", &directory, "--position", "77"];
    let proof = run_command(&prove, Path::new("/")).stdout;
    let file = whole.note("proof", &proof);
    let line = whole.note("line", &whole.recorded.events[77]);
    let other = whole.note("other", &whole.recorded.events[78]);
    let key = &whole.recorded.verifier;
    let of = ["--proof", &file, "--key", key];
    check(&of).assert(0, &["checkpoints 1/1 valid", "the line itself was not compared"]);
    check(&[of.as_slice(), &["--events", &line]].concat())
        .assert(0, &["the line is the event at position 77"]);
    check(&[of.as_slice(), &["--events", &other]].concat())
        .assert(1, &["no line of --events is the one that the proof is about"]);
    let witness = ["--witness", key];
    check(&[of.as_slice(), &witness].concat()).assert(1, &["no valid cosignature"]);
    let text = String::from_utf8(proof).unwrap();
    for (wrong, said) in [
        (text.replace("index ", "index 1"), "the entry is not in the log"),
        (text.replace("extra ey", "extra eyA"), ""),
        (text.replace(ORIGIN, "example.org/x"), "is not signed by the key"),
        ("no proof".to_owned(), "the proof has no checkpoint"),
    ] {
        let wrong = whole.note("wrong", wrong.as_bytes());
        check(&["--proof", &wrong, "--key", key]).assert(1, &["FAULT", said]);
    }
}
