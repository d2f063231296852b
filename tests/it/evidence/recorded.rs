//! `[evidence]`: what the relay records, checked by a verifier that shares no code with the relay.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;

use super::verify::{Checked, check};
use crate::support::prelude::*;

pub(super) const ORIGIN: &str = "example.org/prod-eu/relay-0";

/// A relay's queue and key, its consumer, and the events that were accepted so far.
pub(super) struct Recorded {
    pub(super) directory: TempDir,
    pub(super) spool: Spool,
    pub(super) verifier: String,
    pub(super) sink: HttpSink,
    /// The accepted events, in the order of their positions.
    pub(super) events: Vec<Vec<u8>>,
}

impl Recorded {
    pub(super) fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let key = directory.path().join("key");
        let verifier = keygen(ORIGIN, &key);
        let sink = HttpSink::start(|_| Answer::status(200));
        Self { directory, spool: Spool::new(), verifier, sink, events: Vec::new() }
    }

    pub(super) fn config(&self, more: &str) -> String {
        self.config_with("", more)
    }

    /// Returns a config with these further keys of the output and of `[evidence]`.
    pub(super) fn config_with(&self, output: &str, more: &str) -> String {
        let key = self.directory.path().join("key");
        let output = to_sink(self.sink.address(), output);
        let queue = self.spool.queue("segment_bytes = \"256KiB\"\n");
        let key = key.display();
        format!(
            "{output}{queue}[evidence]\nkey_file = \"{key}\"\norigin = \"{ORIGIN}\"\n\
             checkpoint_interval = \"1s\"\n{more}"
        )
    }

    pub(super) fn log(&self) -> PathBuf {
        self.spool.path().join("evidence")
    }

    pub(super) fn post(&mut self, relay: &Relay, seed: u64, events: usize) {
        let sent = post_batch(relay, seed, events, 700);
        self.events.extend(sent);
    }

    /// Waits until a signed checkpoint covers all accepted events.
    pub(super) fn wait_until_signed(&self) {
        let accepted = self.events.len() as u64;
        wait_for_checkpoint(&self.log(), "all events", || covered(&self.entries()) == accepted);
    }

    /// Returns the entries that the checkpoint covers, as the verifier reads them.
    fn entries(&self) -> Vec<Value> {
        verified(&self.log(), &self.verifier, &[]).unwrap_or_default()
    }

    /// Runs `evidence verify` on the directory.
    pub(super) fn check(&self) -> Checked {
        let directory = self.spool.path().display().to_string();
        check(&["--directory", &directory, "--key", &self.verifier])
    }

    /// Checks the log against all accepted and all delivered events, and returns its entries.
    fn verify(&self) -> Vec<Value> {
        let lines = self.directory.path().join("lines");
        let stored = self.directory.path().join("stored");
        std::fs::write(&lines, text_of(&self.events)).unwrap();
        std::fs::write(&stored, text_of(&accepted_events(&self.sink))).unwrap();
        let more = [lines.as_os_str(), "consumer".as_ref(), stored.as_os_str()];
        let verified = verified(&self.log(), &self.verifier, &more);
        verified.unwrap_or_else(|fault| panic!("{fault}"))
    }
}

/// Waits until `check` returns `true`. A check starts a process, so it runs only when the
/// checkpoint file has changed, or after a second.
pub(super) fn wait_for_checkpoint(log: &Path, what: &str, mut check: impl FnMut() -> bool) {
    let (mut seen, mut checked) = (None, Instant::now());
    wait_until(&format!("a checkpoint over {what}"), PATIENCE, || {
        let now = std::fs::read(log.join("checkpoint")).ok();
        if now.is_none() || now == seen && checked.elapsed() < Duration::from_secs(1) {
            return false;
        }
        (seen, checked) = (now, Instant::now());
        check()
    });
}

pub(super) fn text_of(events: &[Vec<u8>]) -> Vec<u8> {
    events.iter().flat_map(|event| [event, b"\n".as_slice()].concat()).collect()
}

/// Makes a signing key, and returns its verifier key.
pub(super) fn keygen(origin: &str, file: &Path) -> String {
    let (name, directory) = (file.display().to_string(), repository());
    let arguments = ["evidence", "keygen", "--origin", origin, "--out", &name];
    let made = run_command(&arguments, &directory);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap().trim_end().to_owned()
}

/// Runs the independent verifier. Returns the entries, or the first fault that it reports.
fn verified(log: &Path, key: &str, more: &[&OsStr]) -> Result<Vec<Value>, String> {
    let script = repository().join("tests/it/evidence/verify.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(log).arg(key).args(more);
    let output = command.output().expect("python3");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let entries = String::from_utf8(output.stdout).unwrap();
    Ok(entries.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn of_type<'a>(entries: &'a [Value], name: &str) -> Vec<&'a Value> {
    entries.iter().filter(|entry| entry["type"] == name).collect()
}

/// Returns the number of events that the entries cover.
fn covered(entries: &[Value]) -> u64 {
    of_type(entries, "accepted").iter().map(|entry| entry["count"].as_u64().unwrap()).sum()
}

/// Method: batches of random sizes are posted, while the relay is killed three times and stopped
/// once. The log must have each accepted event once, and what happened to the relay.
#[test]
fn each_accepted_event_is_in_the_log_whatever_happens_to_the_relay() {
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut recorded = Recorded::new();
    for _ in 0..3 {
        let mut relay = Relay::start(&recorded.config(""));
        for _ in 0..rng.usize(1..20) {
            let count = rng.usize(1..600);
            recorded.post(&relay, rng.u64(..), count);
            std::thread::sleep(Duration::from_millis(rng.u64(..100)));
        }
        relay.kill();
    }
    let relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, rng.u64(..), 5000);
    relay.wait_until_delivered(PATIENCE);
    // A stop waits only a few seconds for the recorder.
    recorded.wait_until_signed();
    relay.finish(Backlog::Empty);
    let entries = recorded.verify();
    let (starts, stops) = (of_type(&entries, "start"), of_type(&entries, "stop"));
    // A relay that was killed before its `start` entry was on the disk has none.
    assert!((1..=4).contains(&starts.len()) && stops.len() == 1, "{starts:?} {stops:?}");
    assert_eq!(entries.last().unwrap()["type"], "stop");
    assert_eq!(starts[0]["previous"]["size"], 0);
    assert_eq!(stops[0]["outputs"]["consumer"], recorded.events.len());
    assert_eq!(stops[0]["config_sha256"].as_str().unwrap().len(), 64);
}

/// Returns how many undelivered events of the output have this fate in the log.
fn fates(entries: &[Value], fate: &str) -> u64 {
    let of = |entry: &Value| {
        let fates = entry["not_delivered"].as_object().into_iter().flat_map(|it| it.values());
        fates.filter(|it| *it == fate).count() as u64
    };
    of_type(entries, "delivered").into_iter().map(of).sum()
}

/// Method: a policy drops the events of one namespace and lowers those of two others, and some
/// batches are posted twice. The log must agree with the counters and the consumer's lines. Then
/// the relay is killed several times, and the log must still agree with the lines.
#[test]
fn the_log_says_what_the_filter_did_with_each_event() {
    let mut recorded = Recorded::new();
    let policy = recorded.directory.path().join("policy.yaml");
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n\
                 - {level: None, namespaces: [team-1]}\n\
                 - {level: Metadata, namespaces: [team-2, team-3]}\n- level: RequestResponse\n";
    std::fs::write(&policy, rules).unwrap();
    let filter =
        format!("filter = {{ policy = \"{}\", deduplicate = \"10m\" }}\n", policy.display());
    let config = recorded.config_with(&filter, "");
    let relay = Relay::start(&config);
    for seed in 0..14 {
        recorded.post(&relay, seed % 9, 30);
    }
    relay.wait_until_delivered(PATIENCE);
    let metrics = relay.metrics();
    let counted = ["dropped", "duplicate", "lowered"].map(|action| {
        let labels = [("output", "consumer"), ("action", action)];
        metrics.count("filtered_events_total", &labels)
    });
    relay.finish(Backlog::Empty);
    let entries = recorded.verify();
    let changed = of_type(&entries, "delivered").into_iter();
    let changed: usize = changed.map(|entry| entry["changed"].as_array().map_or(0, Vec::len)).sum();
    let in_log = [fates(&entries, "dropped"), fates(&entries, "duplicate"), changed as u64];
    assert_eq!(in_log, counted);
    assert!(counted.iter().all(|count| *count > 0), "{counted:?}");

    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..4 {
        let mut relay = Relay::start(&config);
        for _ in 0..rng.usize(1..20) {
            let count = rng.usize(1..300);
            recorded.post(&relay, rng.u64(..20), count);
            std::thread::sleep(Duration::from_millis(rng.u64(..150)));
        }
        relay.kill();
    }
    let relay = Relay::start(&config);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    recorded.verify();
}

/// Method: the consumer refuses each batch with an event of a certain name. With `[dead_letter]`,
/// the event is in the log as a dead letter. With `rejected.action = "drop"`, it is there as lost.
#[test]
fn the_log_says_which_events_were_given_up() {
    for keeps in [false, true] {
        let mut recorded = Recorded::new();
        recorded.sink = HttpSink::start(|request| {
            let is_bad = memchr::memmem::find(&request.decoded(), b"generated-7\"").is_some();
            Answer::status(if is_bad { 400 } else { 200 })
        });
        let letters = recorded.directory.path().join("letters");
        let place = format!("[dead_letter]\ndirectory = \"{}\"\n", letters.display());
        let config = match keeps {
            true => recorded.config("") + &place,
            false => recorded.config_with("rejected = { action = \"drop\" }\n", ""),
        };
        let relay = Relay::start(&config);
        for seed in 0..3 {
            recorded.post(&relay, seed, 20);
        }
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        let entries = recorded.verify();
        let (lost, letters) = (fates(&entries, "lost"), fates(&entries, "dead_letter"));
        assert_eq!((lost, letters), if keeps { (0, 3) } else { (3, 0) });
    }
}

/// Method: one of 40 events is too long for the protocol, and is given up alone. By default, it is
/// in the log as a dead letter. With `rejected.action = "drop"`, it is there as lost.
#[test]
fn the_log_says_which_event_was_too_long() {
    for keeps in [false, true] {
        let recorded = Recorded::new();
        let sink = TcpSink::with(Framing::OctetCounting, Options::default());
        let output = format!(
            "type = \"syslog\"\naddresses = [\"{}\"]\nmax_message_bytes = 4000\n\
             replay_window = \"100ms\"\n",
            sink.address()
        );
        let action = if keeps { "" } else { "rejected = { action = \"drop\" }\n" };
        let config = recorded.config_with(action, "");
        let http =
            format!("type = \"http\"\nurls = [\"http://{}/ingest\"]\n", recorded.sink.address());
        assert!(config.contains(&http), "{config}");
        let config = config.replace(&http, &output);
        let relay = Relay::start(&config);
        let mut events = events_of(&generated_batch(1, 39, 700));
        events.insert(17, events_of(&generated_batch(2, 1, 5000)).remove(0));
        let head = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":["#;
        let body = [&head[..], &events.join(&b","[..]), b"]}"].concat();
        assert_eq!(relay.post(&body).status, 200);
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
        let entries = recorded.entries();
        let (lost, letters) = (fates(&entries, "lost"), fates(&entries, "dead_letter"));
        assert_eq!((lost, letters), if keeps { (0, 1) } else { (1, 0) });
        let named = of_type(&entries, "delivered");
        let named: Vec<_> = named.iter().filter(|it| it["not_delivered"].is_object()).collect();
        let [named] = named.as_slice() else { panic!("{named:?}") };
        let places: Vec<_> = named["not_delivered"].as_object().unwrap().keys().collect();
        let first = named["first"].as_u64().unwrap();
        assert_eq!(places, [&(17 - first).to_string()], "{named:?}");
    }
}

/// Method: the consumer accepts nothing, and the queue drops the oldest events. Then a reload
/// replaces the output by another one. The log must count each event that the output lost.
#[test]
fn the_log_says_what_an_output_lost() {
    let mut recorded = Recorded::new();
    recorded.sink = HttpSink::start(|_| Answer::status(503));
    let config = recorded.config("").replace(
        "segment_bytes = \"256KiB\"",
        "max_bytes = \"512KiB\"\nsegment_bytes = \"64KiB\"\nwhen_full = \"drop_oldest\"",
    );
    let relay = Relay::start(&config);
    let lost =
        |relay: &Relay, name: &str| relay.metrics().count("error_total", &[("plugin", name)]);
    for seed in 0..40 {
        recorded.post(&relay, seed, 50);
    }
    let dropped = lost(&relay, "consumer");
    assert!(dropped > 100, "{dropped}");
    let in_log = |reason: &str| -> u64 {
        let entries = recorded.entries();
        let lost = of_type(&entries, "lost").into_iter();
        let lost = lost.filter(|it| it["output"] == "consumer" && it["reason"] == reason);
        lost.map(|it| it["count"].as_u64().unwrap()).sum()
    };
    wait_for_checkpoint(&recorded.log(), "the losses", || in_log("when_full") == dropped);
    let next = HttpSink::accepting();
    let renamed = config.replace("name = \"consumer\"", "name = \"next\"");
    let old = recorded.sink.address().to_string();
    std::fs::write(relay.config_file(), renamed.replace(&old, &next.address().to_string()))
        .unwrap();
    relay.signal(libc::SIGHUP);
    let all = recorded.events.len() as u64;
    wait_for_checkpoint(&recorded.log(), "the rest", || in_log("removed") == all - dropped);
    assert_eq!(in_log("when_full"), dropped);
    assert_eq!(lost(&relay, "consumer"), all);
    relay.finish(Backlog::Empty);
}

/// Method: a relay receives no events, and reloads its config once.
#[test]
fn a_quiet_relay_says_that_it_lives_and_a_reload_is_recorded() {
    let recorded = Recorded::new();
    let relay = Relay::start(&recorded.config("heartbeat_interval = \"1s\"\n"));
    let number = |name: &str| of_type(&recorded.entries(), name).len();
    wait_for_checkpoint(&recorded.log(), "heartbeats", || number("heartbeat") > 1);
    relay.signal(libc::SIGHUP);
    wait_for_checkpoint(&recorded.log(), "the reload", || number("reload") == 1);
    let size = relay.metrics().get("evidence_size", &[]).unwrap();
    assert!(size >= 4.0, "{size}");
    relay.finish(Backlog::Empty);
    recorded.verify();
}

/// Method: a directory has the name of the file that the next write of evidence needs. Events must
/// still be accepted and delivered. The log must have them once the directory is gone.
#[test]
fn events_are_forwarded_while_no_evidence_can_be_written() {
    let mut recorded = Recorded::new();
    let relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, 1, 100);
    recorded.wait_until_signed();
    let obstacle = recorded.spool.path().join("evidence-head.new");
    wait_until("the obstacle", PATIENCE, || std::fs::create_dir(&obstacle).is_ok());
    recorded.post(&relay, 2, 100);
    relay.wait_for_log(messages::EVIDENCE_NOT_WRITTEN, PATIENCE);
    relay.wait_until_delivered(PATIENCE);
    recorded.post(&relay, 3, 100);
    relay.wait_until_delivered(PATIENCE);
    let failed = relay.metrics().get("evidence_errors_total", &[("reason", "write")]).unwrap();
    assert!(failed >= 1.0, "{failed}");
    assert_eq!(covered(&recorded.entries()), 100);
    // The verdict warns at once, although the last checkpoint is recent, and until the next one.
    let verdict =
        || http::get(relay.admin(), "/status").unwrap().json()["verdict"]["state"].clone();
    assert_eq!(verdict(), "warn");
    std::fs::remove_dir(&obstacle).unwrap();
    recorded.wait_until_signed();
    wait_until("a checkpoint after the error", PATIENCE, || verdict() == "good");
    relay.finish(Backlog::Empty);
    recorded.verify();
}

/// Method: the relay is killed while no evidence can be written, so some events are in the queue
/// but not in the log. Their segments must stay, although the events are delivered.
#[test]
fn delivered_events_without_evidence_stay_in_the_queue_over_a_crash() {
    let mut recorded = Recorded::new();
    let mut relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, 1, 100);
    recorded.wait_until_signed();
    let obstacle = recorded.spool.path().join("evidence-head.new");
    wait_until("the obstacle", PATIENCE, || std::fs::create_dir(&obstacle).is_ok());
    for seed in 2..8 {
        // Together, the batches are larger than a segment.
        recorded.post(&relay, seed, 400);
    }
    relay.wait_until_delivered(PATIENCE);
    std::thread::sleep(Duration::from_secs(2));
    relay.kill();
    std::fs::remove_dir(&obstacle).unwrap();
    let relay = Relay::start(&recorded.config(""));
    recorded.wait_until_signed();
    relay.finish(Backlog::Empty);
    recorded.verify();
}

/// Method: while no evidence can be written, more events are delivered than the queue has room for.
/// Later, the log must say that the events that were deleted for room are unknown, and not that
/// they are lost. In the second round, the relay is also killed in this state and started again.
#[test]
fn delivered_events_whose_room_was_needed_are_without_evidence_and_not_lost() {
    for is_killed in [false, true] {
        let mut recorded = Recorded::new();
        let small = "max_bytes = \"512KiB\"\nsegment_bytes = \"64KiB\"";
        let config = recorded.config("").replace("segment_bytes = \"256KiB\"", small);
        let mut relay = Relay::start(&config);
        recorded.post(&relay, 1, 100);
        recorded.wait_until_signed();
        let obstacle = recorded.spool.path().join("evidence-head.new");
        wait_until("the obstacle", PATIENCE, || std::fs::create_dir(&obstacle).is_ok());
        for seed in 2..42 {
            recorded.post(&relay, seed, 50);
            relay.wait_until_delivered(PATIENCE);
            if seed == 2 {
                // The relay writes evidence about once a second. Until a write has failed, it can
                // keep in memory what it needs to record later events.
                relay.wait_for_log(messages::EVIDENCE_NOT_WRITTEN, PATIENCE);
            }
        }
        if is_killed {
            // The cursors file is written once a second.
            std::thread::sleep(Duration::from_millis(1500));
            relay.kill();
            relay = Relay::start(&config);
            relay.wait_for_log(messages::EVIDENCE_NOT_WRITTEN, PATIENCE);
            relay.wait_until_delivered(PATIENCE);
        }
        std::fs::remove_dir(&obstacle).unwrap();
        let count = |entries: &[Value], of: &str| -> u64 {
            of_type(entries, of).iter().filter_map(|it| it["count"].as_u64()).sum()
        };
        let accepted = recorded.events.len() as u64;
        wait_for_checkpoint(&recorded.log(), "all events", || {
            let entries = recorded.entries();
            covered(&entries) + count(&entries, "alarm") == accepted
        });
        relay.finish(Backlog::Empty);
        let entries = recorded.entries();
        let unknown = count(&entries, "alarm");
        assert!(unknown > 100, "{unknown} of {accepted}");
        assert_eq!(count(&entries, "lost"), 0, "killed: {is_killed}");
        let said = recorded.check();
        assert_eq!(said.status, 1, "{}", said.text);
        let faults: Vec<_> = said.text.lines().filter(|line| line.starts_with("FAULT")).collect();
        let is_known = |line: &&str| line.contains("was off or could not be written");
        assert!(!faults.is_empty() && faults.iter().all(is_known), "{faults:#?}");
        assert!(said.text.contains("lost 0,"), "{}", said.text);
    }
}

/// Method: the consumer accepts nothing, so the queue becomes full and drops the newest events,
/// although their senders get a 200. The log must have their number.
#[test]
fn events_that_a_full_queue_drops_are_in_the_log_as_lost() {
    let mut recorded = Recorded::new();
    recorded.sink = HttpSink::start(|_| Answer::status(503));
    let config = recorded.config("").replace(
        "segment_bytes = \"256KiB\"",
        "max_bytes = \"512KiB\"\nsegment_bytes = \"64KiB\"\nwhen_full = \"drop_newest\"",
    );
    let relay = Relay::start(&config);
    let mut posted = 0;
    let dropped = |relay: &Relay| {
        relay.metrics().get("error_total", &[("plugin", "queue")]).unwrap_or_default()
    };
    while dropped(&relay) < 100.0 {
        assert!(posted < 10_000);
        recorded.post(&relay, posted, 50);
        posted += 50;
    }
    let dropped = dropped(&relay);
    let in_log = || {
        let entries = recorded.entries();
        let lost = of_type(&entries, "lost");
        assert!(lost.iter().all(|it| it["output"] == "queue" && it.get("first").is_none()));
        assert!(lost.iter().all(|it| it["reason"] == "when_full"));
        let lost: u64 = lost.iter().map(|it| it["count"].as_u64().unwrap()).sum();
        (lost as f64, lost + covered(&entries))
    };
    wait_for_checkpoint(&recorded.log(), "all events", || in_log() == (dropped, posted));
    relay.finish(Backlog::Stable);
}

/// Method: after a run, the relay gets another origin and key. The old log must stay unchanged in a
/// directory beside the new one.
#[test]
fn a_new_origin_begins_a_new_log_and_keeps_the_old_one_aside() {
    let mut recorded = Recorded::new();
    let relay = Relay::start(&recorded.config(""));
    recorded.post(&relay, 1, 100);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    let old = recorded.verify();
    let next = recorded.directory.path().join("next");
    let verifier = keygen("example.org/next", &next);
    let config = recorded.config("").replace(ORIGIN, "example.org/next");
    let key = recorded.directory.path().join("key").display().to_string();
    let config = config.replace(&format!("{key}\""), &format!("{}\"", next.display()));
    let relay = Relay::start(&config);
    relay.wait_for_log(
        "evidence.origin has changed: a new evidence log begins, and the old one is kept in \
         another directory",
        PATIENCE,
    );
    relay.finish(Backlog::Empty);
    let new = verified(&recorded.log(), &verifier, &[]).unwrap();
    assert_eq!((new[0]["type"].as_str(), &new[0]["previous"]["size"]), (Some("start"), &0.into()));
    assert!(of_type(&new, "alarm").is_empty(), "{new:?}");
    let names = std::fs::read_dir(recorded.spool.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let aside: Vec<_> = names.filter(|name| name.starts_with("evidence-until-")).collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    let aside = recorded.spool.path().join(&aside[0]);
    assert_eq!(verified(&aside, &recorded.verifier, &[]).as_ref(), Ok(&old));
    // The relay does not continue the log of the old origin, and changes neither log.
    let relay = Relay::start(&recorded.config(""));
    relay.wait_for_log(messages::EVIDENCE_NOT_WRITTEN, PATIENCE);
    relay.finish(Backlog::Empty);
    assert_eq!(verified(&aside, &recorded.verifier, &[]), Ok(old));
    assert_eq!(verified(&recorded.log(), &verifier, &[]), Ok(new));
}

/// Method: the config names the next key for one run, and then only that key. An auditor with the
/// old verifier key can follow the log to the new one. Then nobody needs the old key.
#[test]
fn a_key_is_followed_by_the_next_one() {
    let mut recorded = Recorded::new();
    let next = recorded.directory.path().join("next");
    let next_verifier = keygen(ORIGIN, &next);
    let more = format!("next_key_file = \"{}\"\n", next.display());
    let run = |recorded: &mut Recorded, config: &str, seed: u64| {
        let relay = Relay::start(config);
        recorded.post(&relay, seed, 20);
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
    };
    let config = recorded.config("");
    run(&mut recorded, &config, 1);
    recorded.verify();
    assert!(verified(&recorded.log(), &next_verifier, &[]).is_err());
    let both = recorded.config(&more);
    run(&mut recorded, &both, 2);
    let entries = recorded.verify();
    assert_eq!(verified(&recorded.log(), &next_verifier, &[]).as_ref(), Ok(&entries));
    let named = of_type(&entries, "key");
    assert_eq!(named.len(), 1);
    assert_eq!(named[0]["verifier_key"], next_verifier.as_str());
    let key = recorded.directory.path().join("key");
    let only_next =
        config.replace(&format!("{}\"", key.display()), &format!("{}\"", next.display()));
    std::fs::remove_file(&key).unwrap();
    run(&mut recorded, &only_next, 3);
    assert!(verified(&recorded.log(), &recorded.verifier, &[]).is_err());
    recorded.verifier = next_verifier;
    recorded.verify();
}

/// Method: a script checks the proofs of some events with the hashes of RFC 6962.
#[test]
fn a_proof_leads_from_the_line_to_the_checkpoint() {
    let mut recorded = Recorded::new();
    let relay = Relay::start(&recorded.config(""));
    for seed in 0..3 {
        recorded.post(&relay, seed, 40);
        recorded.wait_until_signed();
    }
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    let directory = recorded.spool.path().display().to_string();
    let prove = |position: &str| {
        run_command(&["evidence", "prove", &directory, "--position", position], &repository())
    };
    let script = repository().join("tests/it/evidence/proof.py");
    for position in [0, 39, 77, 119] {
        let proof = prove(&position.to_string());
        assert!(proof.status.success(), "{}", String::from_utf8_lossy(&proof.stderr));
        let (file, line) = (recorded.directory.path().join("proof"), &recorded.events[position]);
        std::fs::write(&file, &proof.stdout).unwrap();
        let text = String::from_utf8(line.clone()).unwrap();
        let checked = |position: usize, line: &str| {
            let position = position.to_string();
            Command::new("python3")
                .arg(&script)
                .arg(&file)
                .args([&position, line])
                .output()
                .unwrap()
        };
        let checked_it = checked(position, &text);
        assert!(checked_it.status.success(), "{}", String::from_utf8_lossy(&checked_it.stderr));
        assert!(!checked(position + 1, &text).status.success());
        assert!(!checked(position, "{}").status.success());
    }
    let beyond = prove("120");
    assert_eq!(beyond.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&beyond.stderr).contains("no entry"), "{beyond:?}");
    let shown = run_command(&["evidence", "show", &directory], &repository());
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.starts_with(ORIGIN) && shown.contains("\"type\":\"stop\""), "{shown}");
    let lines = run_command(&["evidence", "show", "--json", &directory], &repository()).stdout;
    let lines = String::from_utf8(lines).unwrap();
    let lines: Vec<Value> = lines.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    assert_eq!(lines, recorded.entries());
}

/// Method: all files that the checkpoint needs are copied from the admin address into a directory.
/// A tile of an older checkpoint is also there, but the line hashes are not.
#[test]
fn the_admin_address_serves_the_log_and_no_line_hash() {
    let mut recorded = Recorded::new();
    let relay = Relay::start(&recorded.config(""));
    let get = |path: &str| http::get(relay.admin(), &format!("/evidence/{path}")).unwrap();
    recorded.post(&relay, 1, 10);
    recorded.wait_until_signed();
    for seed in 2..5 {
        recorded.post(&relay, seed, 10);
        recorded.wait_until_signed();
    }
    relay.wait_until_delivered(PATIENCE);
    let checkpoint = get("checkpoint");
    assert_eq!(checkpoint.status, 200);
    let size: u64 = checkpoint.text().lines().nth(1).unwrap().parse().unwrap();
    assert!((5..256).contains(&size), "{size}");
    let copy = TempDir::new().unwrap();
    let paths = [format!("tile/entries/000.p/{size}"), format!("tile/0/000.p/{size}")];
    std::fs::write(copy.path().join("checkpoint"), &checkpoint.body).unwrap();
    for path in &paths {
        let (served, file) = (get(path), copy.path().join(path));
        assert_eq!(served.status, 200, "{path}");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, &served.body).unwrap();
    }
    std::fs::create_dir(copy.path().join("lines")).unwrap();
    // Only the line hashes are missing for the verifier.
    let said = verified(copy.path(), &recorded.verifier, &[]).unwrap_err();
    assert!(said.contains("KeyError"), "{said}");
    let older = get("tile/0/000.p/1");
    assert_eq!((older.status, older.body.len()), (200, 32));
    assert_eq!(older.body, get(&paths[1]).body[..32]);
    let line_hashes = std::fs::read_dir(recorded.log().join("lines")).unwrap().next().unwrap();
    let line_hashes = line_hashes.unwrap().file_name().into_string().unwrap();
    for hidden in [
        &format!("lines/{line_hashes}"),
        "lines/",
        "../evidence-head",
        "",
        "tile/0/000",
        "tile/0/001",
        "tile/0/000.p/255",
        "tile/0/../../checkpoint",
        "../identity",
        "%2e%2e/identity",
    ] {
        assert_eq!(get(hidden).status, 404, "{hidden}");
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn a_key_is_for_its_owner_alone_and_never_written_over() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("key");
    let verifier = keygen("log", &file);
    assert!(verifier.starts_with("log+"), "{verifier}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let before = std::fs::read(&file).unwrap();
    let name = file.display().to_string();
    let run = |origin: &str, name: &str| {
        run_command(&["evidence", "keygen", "--origin", origin, "--out", name], directory.path())
    };
    let again = run("log", &name);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(std::fs::read(&file).unwrap(), before);
    let secret = String::from_utf8(before).unwrap();
    let secret = secret.trim_end().splitn(5, '+').last().unwrap();
    let said = [again.stdout, again.stderr].concat();
    assert!(!String::from_utf8(said).unwrap().contains(secret));
    assert_eq!(run("a log", "other").status.code(), Some(2));
    assert!(!directory.path().join("other").exists());
}

#[test]
fn a_config_whose_key_or_queue_does_not_fit_is_refused() {
    let recorded = Recorded::new();
    let check = |config: &str| {
        let file = recorded.directory.path().join("config.toml");
        std::fs::write(&file, config).unwrap();
        let name = file.display().to_string();
        let output = run_command(&["check", "--config", &name], recorded.directory.path());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let good = recorded.config("");
    assert_eq!(check(&good).0, Some(0), "{}", check(&good).1);
    let (status, said) = check(&good.replace(ORIGIN, "example.org/other"));
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("it is the key of example.org/prod-eu/relay-0"), "{said}");
    let (status, said) = check(&good.replace("[queue]\ndirectory", "[queue]\n# directory"));
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("evidence: needs queue.directory"), "{said}");
    std::fs::write(recorded.directory.path().join("key"), "no key").unwrap();
    let (status, said) = check(&good);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("is not a signing key"), "{said}");
}
