//! Upgrading and rolling back, as docs/operating/upgrade.md describes it.
//!
//! The directories in `tests/fixtures/upgrade` come from earlier versions of the program: queues
//! with a backlog, dead letters and, in one of them, evidence. A test starts this program on a
//! copy. Rolling back is tested without the earlier programs: the files must have formats that the
//! last version reads.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::support::letters::events_in_letters;
use crate::support::lines_in;
use crate::support::prelude::*;
use crate::support::spool::{Entry, SLOT};

/// With this key, events are sent in order. Without it, requests can overtake each other.
const IN_ORDER: &str = "concurrency = 1\n";

const ORIGIN: &str = "example.org/prod-eu/relay-0";

/// The number of events that the earlier versions have accepted.
const EVENTS: usize = 47;

/// The cursors of the outputs when the earlier version was stopped.
const ANALYSIS: usize = 11;
const ARCHIVE: usize = 25;

/// The events that the consumer `archive` refuses.
const REFUSED: [usize; 2] = [5, 17];

/// A version whose files are in `tests/fixtures/upgrade`.
struct Earlier {
    /// The name of its directory.
    name: &'static str,
    /// For each format of `--version`, the newest version of the format that the program reads.
    /// Formats that the program does not have are missing.
    reads: &'static [(&'static str, u32)],
}

/// The formats whose newer versions the earlier program ignores if this one was stopped in order: a
/// checkpoint then covers all entries.
const PASSED_OVER: [&str; 1] = ["evidence"];

const RELEASED: Earlier =
    Earlier { name: "0.1.0", reads: &[("queue segments", 1), ("queue cursors", 1)] };

const WITH_EVIDENCE: Earlier = Earlier {
    name: "f097d69",
    reads: &[
        ("queue segments", 2),
        ("queue cursors", 1),
        ("queue end of the log", 1),
        ("dead letters", 1),
        ("evidence", 1),
        ("resume files of replay", 1),
    ],
};

/// The members of each type of entry that the version with evidence knows.
const ENTRIES: [(&str, &str); 8] = [
    ("accepted", "type first count at root"),
    ("delivered", "type output first count at root not_delivered changed"),
    ("lost", "type output first count at reason"),
    ("start", "type at version config_sha256 heartbeat_ms outputs previous"),
    ("reload", "type at version config_sha256 heartbeat_ms outputs"),
    ("stop", "type at version config_sha256 heartbeat_ms outputs"),
    ("heartbeat", "type at"),
    ("key", "type at verifier_key"),
];

/// The newer members of entries. An earlier version ignores members that it does not know.
const NEW_MEMBERS: [&str; 3] = ["boot", "up", "directory"];

fn fixtures() -> PathBuf {
    repository().join("tests/fixtures/upgrade")
}

fn earlier_events() -> Vec<Vec<u8>> {
    let all = std::fs::read(fixtures().join("events.jsonl")).unwrap();
    let events = lines_in(&all);
    assert_eq!(events.len(), EVENTS);
    events
}

/// A copy of the directory of an earlier version, and the two consumers.
struct Upgrade {
    directory: TempDir,
    spool: Spool,
    analysis: HttpSink,
    archive: HttpSink,
    has_evidence: bool,
}

impl Upgrade {
    fn of(version: &Earlier) -> Self {
        let place = fixtures().join(version.name);
        let directory = TempDir::new().unwrap();
        let spool = Spool::at(place.join("spool")).copy();
        let has_evidence = place.join("evidence-key").exists();
        if has_evidence {
            let key = directory.path().join("evidence-key");
            std::fs::copy(place.join("evidence-key"), &key).unwrap();
            // The relay refuses a key that others may read, and git does not store this mode.
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        let analysis = HttpSink::accepting();
        let archive = refusing(400, |event| memchr::memmem::find(event, b"/refused-").is_some());
        Self { directory, spool, analysis, archive, has_evidence }
    }

    /// Returns the config of the earlier version, with the addresses of these consumers.
    fn config(&self) -> String {
        let outputs =
            [("analysis", &self.analysis), ("archive", &self.archive)].map(|(name, it)| {
                let url = format!("http://{}/", it.address());
                let keys = format!("urls = [{url:?}]\n{IN_ORDER}{QUICK}");
                format!("[[output]]\nname = {name:?}\ntype = \"http\"\n{keys}")
            });
        let queue = self.spool.queue("segment_bytes = \"16KiB\"\nmax_bytes = \"1MiB\"");
        let evidence = if self.has_evidence {
            let key = self.directory.path().join("evidence-key");
            let key = text(&key);
            format!(
                "[evidence]\nkey_file = {key:?}\norigin = {ORIGIN:?}\n\
                 checkpoint_interval = \"1s\"\n"
            )
        } else {
            String::new()
        };
        format!("{BASE}{}{queue}{evidence}", outputs.concat())
    }

    /// Starts this program on the copy, sends new events, waits until all are delivered, and stops
    /// the program in order. Returns all events, those of the earlier version first.
    fn run(&self) -> Vec<Vec<u8>> {
        let relay = Relay::start(&self.config());
        let body = generated_batch(7, 30, 600);
        assert_eq!(relay.post(&body).status, 200);
        let metrics = relay.metrics();
        for (output, from) in [("analysis", ANALYSIS), ("archive", ARCHIVE)] {
            let waits = metrics.count("output_start_events", &[("output", output)]);
            assert_eq!(waits, (EVENTS - from) as u64, "the backlog that {output} has found");
        }
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        let mut events = earlier_events();
        events.extend(events_of(&body));
        events
    }

    fn letters(&self) -> PathBuf {
        self.spool.path().join("dead-letter")
    }

    /// Returns the files of dead letters by their paths below the queue's directory.
    fn letter_files(&self) -> BTreeMap<PathBuf, Entry> {
        let files = self.spool.files().into_iter();
        files.filter(|(path, _)| path.starts_with("dead-letter")).collect()
    }
}

/// Each consumer must get exactly the events that the earlier version has not delivered, once and
/// in order, and then the new events. The earlier dead letters must stay unchanged.
fn assert_upgraded(version: &Earlier) -> (Upgrade, Vec<Vec<u8>>) {
    let upgrade = Upgrade::of(version);
    let letters = upgrade.letter_files();
    assert_eq!(letters.len(), 2);
    let events = upgrade.run();
    for (sink, from) in [(&upgrade.analysis, ANALYSIS), (&upgrade.archive, ARCHIVE)] {
        assert!(accepted_events(sink) == events[from..], "{}: from {from} on", version.name);
    }
    assert_eq!(upgrade.letter_files(), letters, "{}", version.name);
    let refused = REFUSED.map(|index| events[index].clone());
    let mut found = events_in_letters(&upgrade.letters());
    found.sort_by_key(|letter| refused.iter().position(|event| event == letter));
    assert!(found == refused, "each letter is the event that was refused");
    (upgrade, events)
}

#[test]
fn what_version_0_1_0_has_left_is_delivered_without_loss_or_repetition() {
    assert_upgraded(&RELEASED);
}

#[test]
fn what_the_last_version_has_left_is_delivered_and_its_evidence_goes_on() {
    let (upgrade, events) = assert_upgraded(&WITH_EVIDENCE);
    let place = fixtures().join(WITH_EVIDENCE.name);
    let identity = |spool: &Path| std::fs::read(spool.join("identity")).unwrap();
    assert_eq!(identity(upgrade.spool.path()), identity(&place.join("spool")), "the same queue");

    // There is one log. It contains the checkpoint of the earlier version's first run, and says
    // what happened to each event of both versions.
    let key = std::fs::read_to_string(place.join("verifier-key")).unwrap();
    let (directory, older) = (text(upgrade.spool.path()), place.join("checkpoint-1"));
    let stored = upgrade.directory.path().join("stored");
    let was_refused = |index: usize| REFUSED.contains(&index);
    for (output, lines) in [
        ("analysis", events.clone()),
        ("archive", {
            let all = events.iter().enumerate();
            all.filter(|(index, _)| !was_refused(*index)).map(|(_, it)| it.clone()).collect()
        }),
    ] {
        let mut text_of_lines = lines.join(&b"\n"[..]);
        text_of_lines.push(b'\n');
        std::fs::write(&stored, text_of_lines).unwrap();
        let log = ["--directory", directory, "--key", key.trim(), "--checkpoint", text(&older)];
        let consumer = ["--output", output, "--events", text(&stored)];
        let command = [&["evidence", "verify"], log.as_slice(), &consumer].concat();
        let verified = run_command(&command, Path::new("/"));
        let said =
            String::from_utf8_lossy(&[verified.stdout, verified.stderr].concat()).into_owned();
        assert!(verified.status.success(), "{output}: {said}");
        let count = lines.len();
        let found = format!("events {count}/{count} found; missing 0, changed 0, extra 0");
        assert!(said.contains("checkpoints 2/2 valid") && said.contains(&found), "{said}");
    }
}

#[test]
fn dead_letters_of_an_earlier_version_are_replayed() {
    for version in [RELEASED, WITH_EVIDENCE] {
        let upgrade = Upgrade::of(&version);
        let files: Vec<_> = upgrade.letter_files().into_keys().collect();
        let url = format!("http://{}/", upgrade.analysis.address());
        let mut command = ["replay", "--url", &url].map(str::to_owned).to_vec();
        command.extend(files.iter().map(|it| text(&upgrade.spool.path().join(it)).to_owned()));
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let replayed = run_command(&command, Path::new("/"));
        assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
        let events = earlier_events();
        let received = accepted_events(&upgrade.analysis);
        assert!(received == REFUSED.map(|index| events[index].clone()), "{}", version.name);
    }
}

/// Returns the version at this offset, or `None` if the bytes do not begin with this magic.
fn version_at(bytes: &[u8], magic: &[u8; 8], offset: usize) -> Option<u32> {
    let field = bytes.strip_prefix(magic)?.get(offset - 8..offset - 4)?;
    field.try_into().ok().map(u32::from_le_bytes)
}

/// Returns the entries of the evidence, as a verifier that shares no code with the relay reads
/// them.
fn entries(spool: &Path) -> Vec<Value> {
    let key = fixtures().join(WITH_EVIDENCE.name).join("verifier-key");
    let mut command = Command::new("python3");
    command.arg(repository().join("tests/it/evidence/verify.py")).arg(spool.join("evidence"));
    let output = command.arg(std::fs::read_to_string(key).unwrap().trim()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let entries = String::from_utf8(output.stdout).unwrap();
    entries.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A type of file: the end of its name, the magic of its parts, the size of a part, and the name of
/// its format.
const PARTS: [(&str, &[u8; 8], usize, &str); 5] = [
    (".seg", b"\xFFKAFSEG\0", usize::MAX, "queue segments"),
    (".spare", b"\xFFKAFSEG\0", usize::MAX, "queue segments"),
    ("cursors", b"\xFFKAFCUR\0", SLOT, "queue cursors"),
    ("cursors.new", b"\xFFKAFCUR\0", SLOT, "queue cursors"),
    ("synced", b"\xFFKAFSYN\0", 4096, "queue end of the log"),
];

/// Method: this program runs on the directory of the version with evidence. It delivers, writes a
/// dead letter, and leaves a backlog. Then the earlier version must know the name of each file, and
/// must read each version number in the files.
#[test]
fn the_last_version_reads_all_that_this_one_writes() {
    let upgrade = Upgrade::of(&WITH_EVIDENCE);
    upgrade.run();
    // A consumer must accept other events before one counts as refused for good.
    let refused = generated_batch(8, 3, 600);
    let refused = String::from_utf8(refused).unwrap().replacen("/api/v1/", "/refused-/api/v1/", 1);
    assert!(refused.contains("/refused-"));
    let relay = Relay::start(&upgrade.config());
    assert_eq!(relay.post(refused.as_bytes()).status, 200);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    // Nothing listens on port 1, so the events stay in the queue's files.
    let archive = upgrade.archive.address().to_string();
    let config = upgrade.config().replace(&archive, "127.0.0.1:1");
    let relay = Relay::start(&format!("{config}[shutdown]\ndrain_timeout = \"500ms\"\n"));
    assert_eq!(relay.post(&generated_batch(9, 30, 600)).status, 200);
    relay.finish(Backlog::Stable);

    let names = [
        "cursors",
        "cursors.new",
        "synced",
        "identity",
        "spool.lock",
        "segments/",
        "spare/",
        "dead-letter/",
        "evidence/checkpoint",
        "evidence/journal",
        "evidence/tile/",
        "evidence/lines/",
        // The earlier version ignores these.
        "life",
        "evidence-checkpoint",
        "evidence-head",
    ];
    let reads: BTreeMap<_, _> = WITH_EVIDENCE.reads.iter().copied().collect();
    let mut seen = BTreeSet::new();
    for (path, Entry { bytes, .. }) in upgrade.spool.files() {
        let path = text(&path);
        let is_known = |name: &&str| *name == path || name.ends_with('/') && path.starts_with(name);
        assert!(names.iter().any(is_known), "the earlier version has no {path}");
        let Some((_, magic, size, format)) = PARTS.iter().find(|(end, ..)| path.ends_with(end))
        else {
            continue;
        };
        // The list behind the two slots of `cursors` is not read.
        for part in bytes.chunks(*size).take(2) {
            let version = version_at(part, magic, 8).unwrap_or_else(|| panic!("{path}"));
            assert!(version <= reads[format], "{path} is of version {version}");
            seen.insert(*format);
        }
    }
    assert_eq!(seen.len(), 3, "all formats were looked at: {seen:?}");

    let mut letters = 0;
    for (path, Entry { bytes, .. }) in upgrade.letter_files() {
        for line in String::from_utf8(bytes).unwrap().lines() {
            let letter: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
            let members: BTreeSet<_> = letter.keys().map(String::as_str).collect();
            assert_eq!(members, BTreeSet::from(["event", "output", "reason", "time"]), "{path:?}");
            letters += 1;
        }
    }
    assert_eq!(letters, 3);

    let known: BTreeMap<_, _> = ENTRIES.into_iter().collect();
    let entries = entries(upgrade.spool.path());
    let stops = entries.iter().filter(|entry| entry["type"] == "stop").count();
    assert_eq!(stops, 6, "three of the earlier version, and three of this one");
    for entry in entries {
        let members = known.get(entry["type"].as_str().unwrap());
        let members = members.unwrap_or_else(|| panic!("a type that is new: {entry}"));
        let members = members.split(' ').chain(NEW_MEMBERS);
        let is_known = |member: &String| members.clone().any(|it| it == member);
        assert!(entry.as_object().unwrap().keys().all(is_known), "a member is new: {entry}");
    }
}

#[test]
fn no_format_is_newer_than_the_page_about_rolling_back_says() {
    let output = run_command(&["--version"], Path::new("/"));
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, formats) = text.split_once("formats of files:\n").unwrap();
    let written: BTreeMap<_, u32> = formats
        .lines()
        .map(|line| {
            let (name, versions) = line.trim().split_once(": ").unwrap();
            (name, versions.rsplit_once("writes ").unwrap().1.parse().unwrap())
        })
        .collect();
    let is_read = |earlier: &Earlier| {
        let reads: BTreeMap<_, _> = earlier.reads.iter().copied().collect();
        written.iter().all(|(name, version)| {
            PASSED_OVER.contains(name) || reads.get(name).is_none_or(|newest| version <= newest)
        })
    };
    assert!(is_read(&WITH_EVIDENCE), "rolling back is a start of the old program: {written:?}");
    assert!(!is_read(&RELEASED), "0.1.0 refuses the directory, so the page says what to do then");
}

/// Method: follows the page for a directory that the old program refuses. This program stands in
/// for the old one: neither `replay` nor an empty directory depends on the version.
#[test]
fn a_backlog_goes_to_an_older_program_over_an_export() {
    let upgrade = Upgrade::of(&RELEASED);
    let directory = text(upgrade.spool.path()).to_owned();
    let backlog = upgrade.directory.path().join("backlog.jsonl");
    let command = ["queue", "export", &directory, "--output", "analysis"];
    let exported = run_command(&command, Path::new("/"));
    assert!(exported.status.success());
    std::fs::write(&backlog, &exported.stdout).unwrap();
    std::fs::rename(&directory, upgrade.directory.path().join("moved")).unwrap();

    let relay = Relay::start(&upgrade.config());
    let url = format!("http://{}/", relay.address());
    let replayed = run_command(&["replay", text(&backlog), "--url", &url], Path::new("/"));
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    assert!(accepted_events(&upgrade.analysis) == earlier_events()[ANALYSIS..]);
}
