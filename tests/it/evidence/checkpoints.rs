//! `output.checkpoints`: an output also sends the newest checkpoint, on a separate line. The events
//! stay the same.

#[cfg(feature = "kafka")]
use std::cell::Cell;

use serde_json::Value;

use super::recorded::{ORIGIN, keygen, text_of};
#[cfg(feature = "kafka")]
use crate::support::kafka::Cluster;
#[cfg(feature = "kafka")]
use crate::support::kafka::TOPIC;
use crate::support::lumberjack_sink::LumberjackSink;
use crate::support::prelude::*;
use crate::support::relp_sink::RelpSink;
use crate::support::s3::{Keys, Mood, S3};

/// The beginning of each line that is a checkpoint.
const HEAD: &[u8] =
    br#"{"kind":"Checkpoint","apiVersion":"kube-audit-forwarder/v1","note":"example.org/"#;

/// With these keys of `[evidence]`, there is a new checkpoint each second, even without events.
const OFTEN: &str = "checkpoint_interval = \"1s\"\nheartbeat_interval = \"1s\"\n";

/// A relay's directory, its key, and the accepted events.
struct Case {
    directory: TempDir,
    spool: Spool,
    verifier: String,
    events: Vec<Vec<u8>>,
}

impl Case {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let verifier = keygen(ORIGIN, &directory.path().join("key"));
        Self { directory, spool: Spool::new(), verifier, events: Vec::new() }
    }

    fn config(&self, output: &str) -> String {
        let key = self.directory.path().join("key");
        let (queue, key) = (self.spool.queue(""), key.display());
        format!(
            "{BASE}{output}{queue}[evidence]\nkey_file = \"{key}\"\norigin = \"{ORIGIN}\"\n{OFTEN}"
        )
    }

    fn post(&mut self, relay: &Relay, seed: u64, events: usize) {
        let sent = post_batch(relay, seed, events, 700);
        self.events.extend(sent);
    }

    /// Returns the number of entries that the newest checkpoint on the disk covers.
    fn newest(&self) -> u64 {
        let note = std::fs::read(self.spool.path().join("evidence/checkpoint"));
        note.map_or(0, |note| size(&String::from_utf8(note).unwrap()))
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let file = self.directory.path().join(name);
        std::fs::write(&file, content).unwrap();
        file.display().to_string()
    }

    /// Checks that `evidence verify` finds every event in the stored lines, and accepts every
    /// checkpoint among them.
    fn verify(&self, output: &str, lines: &[Vec<u8>]) {
        let (events, notes) = divided(lines);
        let stored = self.file("stored", &text_of(lines));
        let directory = self.spool.path().display().to_string();
        let arguments = ["evidence", "verify", "--directory", &directory, "--key", &self.verifier];
        let arguments = [&arguments[..], &["--output", output, "--events", &stored]].concat();
        let checked = run_command(&arguments, Path::new("/"));
        let text = String::from_utf8([checked.stdout, checked.stderr].concat()).unwrap();
        let checkpoints = notes.len() + 1;
        let all = self.events.len();
        let expected = format!(
            "checkpoints {checkpoints}/{checkpoints} valid; events {all}/{all} found; missing 0, \
             changed 0, extra 0, "
        );
        assert!(text.contains(&expected), "no {expected:?} in {text}");
        let expected = format!("duplicate {}, ", events.len() - all);
        assert!(text.contains(&expected), "no {expected:?} in {text}");
        assert_eq!(checked.status.code(), Some(0), "{text}");
        // The note in such a line is a checkpoint that an auditor can keep.
        let kept = self.file("kept", notes.last().expect("a checkpoint").as_bytes());
        let arguments = ["evidence", "verify", "--directory", &directory, "--key", &self.verifier];
        let checked =
            run_command(&[&arguments[..], &["--checkpoint", &kept]].concat(), Path::new("/"));
        let text = String::from_utf8(checked.stdout).unwrap();
        assert!(text.starts_with("checkpoints 2/2 valid"), "{text}");
    }
}

/// Returns the number of entries that a note covers.
fn size(note: &str) -> u64 {
    note.lines().nth(1).and_then(|line| line.parse().ok()).expect("a size")
}

/// Divides lines into events and the notes of checkpoints. Checks the form of each checkpoint.
fn divided(lines: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<String>) {
    let (mut events, mut notes) = (Vec::new(), Vec::new());
    for line in lines {
        if !line.starts_with(br#"{"kind":"Checkpoint""#) {
            events.push(line.clone());
            continue;
        }
        assert!(line.starts_with(HEAD), "{}", line.escape_ascii());
        let object: BTreeMap<String, String> = serde_json::from_slice(line).unwrap();
        assert_eq!(object.len(), 3);
        notes.push(object["note"].clone());
    }
    (events, notes)
}

fn sizes(lines: &[Vec<u8>]) -> Vec<u64> {
    divided(lines).1.iter().map(|note| size(note)).collect()
}

fn output(kind: &str, more: &str) -> String {
    let retry = "retry = { initial_interval = \"20ms\", max_interval = \"100ms\" }";
    format!(
        "[[output]]\nname = \"consumer\"\ntype = \"{kind}\"\ncheckpoints = true\n{retry}\n{more}\n"
    )
}

fn stream(kind: &str, address: SocketAddr, more: &str) -> String {
    output(kind, &format!("addresses = [\"{address}\"]\n{more}"))
}

fn http(sink: &HttpSink, more: &str) -> String {
    output("http", &format!("urls = [\"http://{}/ingest\"]\n{more}", sink.address()))
}

/// Method: the first checkpoint comes before any event, then come events, and then only heartbeats.
/// Each event must arrive once, only events may be counted, and the checkpoints must be in order.
/// `changes` returns an event as the output sends it.
fn both_arrive(
    output: &str,
    lines: impl Fn(&Relay) -> Vec<Vec<u8>>,
    changes: impl Fn(&[u8]) -> Vec<u8>,
) -> Vec<Vec<u8>> {
    let mut case = Case::new();
    let relay = Relay::start(&case.config(output));
    wait_until("the checkpoint of the start", PATIENCE, || !sizes(&lines(&relay)).is_empty());
    for seed in 0..20 {
        case.post(&relay, seed, 30);
        std::thread::sleep(Duration::from_millis(100));
    }
    relay.wait_until_delivered(PATIENCE);
    let covered = case.newest();
    wait_until("checkpoints without events", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(100));
        sizes(&lines(&relay)).iter().filter(|size| **size > covered).count() >= 2
    });
    let metrics = relay.metrics();
    let of_output = [("output", "consumer")];
    assert_eq!(metrics.count("output_events_total", &of_output), case.events.len() as u64);
    for none in ["error_total", "output_errors_total", "output_retries_total"] {
        assert_eq!(metrics.sum(none), 0.0, "{none}");
    }
    relay.settle(Backlog::Empty);
    let got = lines(&relay);
    let (events, notes) = divided(&got);
    let expected: Vec<_> = case.events.iter().map(|event| changes(event)).collect();
    assert_same_set(&events, &expected);
    let sizes: Vec<_> = notes.iter().map(|note| size(note)).collect();
    assert!(sizes.is_sorted_by(|a, b| a < b), "each once, and in order: {sizes:?}");
    relay.finish(Backlog::Empty);
    if expected == case.events {
        case.verify("consumer", &got);
    }
    // After the next start, a newer checkpoint is sent, at the latest the one that covers the stop.
    let relay = Relay::start(&case.config(output));
    let newest = *sizes.last().unwrap();
    let is_newer = |relay: &Relay| self::sizes(&lines(relay)).iter().any(|size| *size > newest);
    wait_until("the checkpoint of the next start", PATIENCE, || is_newer(&relay));
    relay.finish(Backlog::Empty);
    got
}

fn unchanged(event: &[u8]) -> Vec<u8> {
    event.to_vec()
}

/// Returns an event as kube-apiserver writes it to its audit.log.
fn with_kind(event: &[u8]) -> Vec<u8> {
    let head = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;
    [&head[..], event.strip_prefix(b"{").expect("an object")].concat()
}

#[test]
fn by_tcp_a_checkpoint_is_a_line_of_its_own() {
    let sink = TcpSink::start();
    both_arrive(&stream("tcp", sink.address(), ""), |_| sink.lines(), unchanged);
}

#[test]
fn a_checkpoint_keeps_its_form_beside_the_lines_of_an_audit_log() {
    let sink = TcpSink::start();
    let more = "format = \"audit_log\"\n";
    both_arrive(&stream("tcp", sink.address(), more), |_| sink.lines(), with_kind);
}

/// Method: a policy drops all events, and the output's shape is OCSF. Only checkpoints are sent,
/// unchanged.
#[test]
fn a_checkpoint_passes_no_filter() {
    let (sink, mut case) = (TcpSink::start(), Case::new());
    let rules = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: None\n";
    let policy = case.file("policy.yaml", rules.as_bytes());
    let more = format!("filter = {{ policy = \"{policy}\", shape = \"ocsf\" }}\n");
    let relay = Relay::start(&case.config(&stream("tcp", sink.address(), &more)));
    case.post(&relay, 1, 50);
    wait_until("checkpoints", PATIENCE, || sizes(&sink.lines()).len() >= 4);
    relay.wait_until_delivered(PATIENCE);
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("filtered_events_total"), 50.0);
    assert_eq!(metrics.sum("output_events_total"), 0.0);
    assert_eq!(divided(&sink.lines()).0, [] as [Vec<u8>; 0]);
    relay.finish(Backlog::Empty);
}

#[test]
fn on_stdout_a_checkpoint_is_a_line_of_its_own() {
    let lines = |relay: &Relay| {
        let text = relay.stdout();
        let mut lines: Vec<_> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        // The last line may not be complete yet.
        lines.pop();
        lines
    };
    both_arrive(&output("stdout", ""), lines, unchanged);
}

#[test]
fn by_lumberjack_a_checkpoint_is_one_more_event_of_a_window() {
    for level in [0, 3] {
        let sink = LumberjackSink::start();
        let more = format!("compression_level = {level}");
        both_arrive(&stream("lumberjack", sink.address(), &more), |_| sink.events(), unchanged);
    }
}

#[test]
fn by_relp_a_checkpoint_is_one_more_message() {
    let sink = RelpSink::start();
    let event = |message: Vec<u8>| {
        let begin = message.iter().position(|byte| *byte == b'{').expect("an object");
        message[begin..].to_vec()
    };
    let lines = |_: &Relay| sink.runs().into_iter().flatten().map(event).collect();
    both_arrive(&stream("relp", sink.address(), ""), lines, unchanged);
}

#[test]
fn by_http_a_checkpoint_is_a_request_of_its_own() {
    for (more, changes) in [
        ("format = \"ndjson\"\n", unchanged as fn(&[u8]) -> Vec<u8>),
        ("format = \"ndjson\"\nconcurrency = 1\ncompression = \"gzip\"\n", unchanged),
        ("format = \"audit_log\"\ncompression = \"zstd\"\n", with_kind),
    ] {
        let sink = HttpSink::accepting();
        both_arrive(&http(&sink, more), |_| received_events(&sink), changes);
        for request in sink.requests() {
            assert_eq!(request.header("content-type"), Some("application/x-ndjson"));
            let (events, notes) = divided(&events_in(&request));
            assert!(notes.is_empty() || (notes.len(), events.len()) == (1, 0));
        }
    }
}

#[cfg(feature = "kafka")]
#[test]
fn by_kafka_a_checkpoint_is_a_message_with_the_origin_as_its_key() {
    let cluster = Cluster::start(2, 4);
    let brokers = format!("brokers = {}\ntopic = \"{TOPIC}\"", cluster.brokers());
    // The records are sorted by partition and offset, and all checkpoints are in one partition. A
    // reader that has just connected can lack them at first.
    let least = Cell::new(1);
    let lines = |relay: &Relay| {
        let delivered = relay.metrics().count("output_events_total", &[("output", "consumer")]);
        let delivered = usize::try_from(delivered).unwrap();
        let records = cluster.records(least.get().max(delivered + 1), PATIENCE);
        least.set(records.len());
        records.into_iter().map(|record| record.payload).collect()
    };
    both_arrive(&output("kafka", &brokers), lines, unchanged);
    let records = cluster.records(least.get(), PATIENCE).into_iter();
    let checkpoints: Vec<_> = records.filter(|record| record.payload.starts_with(HEAD)).collect();
    assert!(checkpoints.iter().all(|it| it.key.as_deref() == Some(ORIGIN.as_bytes())));
    assert!(checkpoints.iter().all(|it| it.partition == checkpoints[0].partition));
}

/// Returns the objects with a checkpoint, and the others.
fn objects(server: &S3) -> [BTreeMap<String, Vec<u8>>; 2] {
    let all = server.store().objects.clone();
    let (checkpoints, others) =
        all.into_iter().partition(|(name, _)| name.contains("-checkpoint-"));
    [checkpoints, others]
}

#[test]
fn in_s3_a_checkpoint_is_an_object_of_its_own_once_in_the_age_of_an_object() {
    let keys = Keys::new();
    for compression in ["none", "zstd"] {
        let server = S3::start(|| Mood::Stores);
        let more = format!(
            "checkpoints = true\nobject_age = \"500ms\"\ncompression = \"{compression}\"\n"
        );
        let output = keys.output(server.address(), &more).replace("archive\"\nt", "consumer\"\nt");
        let lines = |_: &Relay| {
            let [checkpoints, others] = objects(&server);
            let mut lines = crate::support::s3::lines(&others);
            let mut notes: Vec<_> = checkpoints.values().map(|object| text(object)).collect();
            notes.sort_by_key(|line| sizes(std::slice::from_ref(line)));
            lines.extend(notes);
            lines
        };
        both_arrive(&output, lines, unchanged);
    }
    // With an age of minutes, only the first checkpoint is sent.
    let (server, case) = (S3::start(|| Mood::Stores), Case::new());
    let more = "checkpoints = true\nobject_age = \"5m\"\n";
    let relay = Relay::start(&case.config(&keys.output(server.address(), more)));
    wait_until("later checkpoints", PATIENCE, || case.newest() > 4);
    assert_eq!(objects(&server).map(|objects| objects.len()), [1, 0]);
    relay.finish(Backlog::Empty);
}

/// Returns the only line of an object.
fn text(object: &[u8]) -> Vec<u8> {
    let mut text = match object {
        [0x28, 0xb5, ..] => zstd::decode_all(object).expect("zstd"),
        _ => object.to_vec(),
    };
    assert_eq!(text.pop(), Some(b'\n'));
    assert!(!text.contains(&b'\n'), "one line");
    text
}

fn is_checkpoint(request: &Request) -> bool {
    request.decoded().starts_with(HEAD)
}

/// Method: the consumer is down while checkpoints are signed. Then it must get all events and the
/// newest checkpoint, but no older one.
#[test]
fn a_consumer_that_was_away_gets_the_newest_checkpoint() {
    for events in [0, 40] {
        let mut sink = HttpSink::accepting();
        let mut case = Case::new();
        let relay = Relay::start(&case.config(&http(&sink, "format = \"ndjson\"\n")));
        wait_until("a checkpoint", PATIENCE, || !sizes(&received_events(&sink)).is_empty());
        sink.close();
        let missed = case.newest();
        if events > 0 {
            case.post(&relay, 1, events);
        }
        wait_until("checkpoints that are missed", PATIENCE, || case.newest() >= missed + 4);
        let (before, newest) = (received_events(&sink).len(), case.newest());
        sink.reopen();
        wait_until("the newest checkpoint", PATIENCE, || {
            sizes(&received_events(&sink)[before..]).len() >= 2
        });
        relay.wait_until_delivered(PATIENCE);
        let (got, notes) = divided(&received_events(&sink)[before..]);
        assert!(notes.iter().all(|note| size(note) >= newest), "{newest}: {notes:?}");
        assert_same_set(&got, &case.events);
        relay.finish(Backlog::Empty);
    }
}

/// Method: the same for a stream, which reconnects only to send a checkpoint. The log does not say
/// that the output is down, because no event needs the connection.
#[test]
fn a_stream_that_has_ended_is_dialled_for_a_checkpoint() {
    let mut sink = LumberjackSink::start();
    let mut case = Case::new();
    let relay = Relay::start(&case.config(&stream("lumberjack", sink.address(), "")));
    case.post(&relay, 1, 40);
    relay.wait_until_delivered(PATIENCE);
    wait_until("a checkpoint", PATIENCE, || !sizes(&sink.events()).is_empty());
    sink.close();
    let missed = case.newest();
    wait_until("checkpoints that are missed", PATIENCE, || case.newest() >= missed + 4);
    let (before, newest) = (sink.count(), case.newest());
    sink.reopen();
    wait_until("the newest checkpoint", PATIENCE, || sink.count() > before);
    assert!(sizes(&sink.events())[before - 40..].iter().all(|size| *size >= newest));
    case.post(&relay, 2, 40);
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&divided(&sink.events()).0, &case.events);
    let log = relay.finish(Backlog::Empty);
    assert!(!log.contains("output down"), "no event needed it");
}

/// Method: the consumer answers each checkpoint with 400. All events must arrive once, nothing may
/// be counted as refused, and the log must warn once.
#[test]
fn a_consumer_that_refuses_checkpoints_gets_its_events() {
    let sink =
        HttpSink::start(|request| Answer::status(if is_checkpoint(request) { 400 } else { 200 }));
    let mut case = Case::new();
    let letters = case.directory.path().join("letters");
    let place = format!("[dead_letter]\ndirectory = \"{}\"\n", letters.display());
    let more = "format = \"ndjson\"\nconcurrency = 1\n";
    let relay = Relay::start(&(case.config(&http(&sink, more)) + &place));
    let refused = || sink.requests().iter().filter(|request| is_checkpoint(request)).count();
    let begun = Instant::now();
    while refused() < 3 || begun.elapsed() < Duration::from_secs(4) {
        case.post(&relay, refused() as u64 + 10 * case.events.len() as u64, 10);
        std::thread::sleep(Duration::from_millis(100));
        assert!(begun.elapsed() < PATIENCE, "{} checkpoints", refused());
    }
    relay.wait_until_delivered(PATIENCE);
    let metrics = relay.metrics();
    for none in ["error_total", "output_errors_total", "output_retries_total"] {
        assert_eq!(metrics.sum(none), 0.0, "{none}");
    }
    let events: Vec<_> =
        received_events(&sink).into_iter().filter(|line| !line.starts_with(HEAD)).collect();
    assert_same_set(&events, &case.events);
    wait_until("the warning", PATIENCE, || warnings(&relay) > 0);
    assert_eq!(warnings(&relay), 1, "{}", relay.log_text());
    // The pauses grow: 1, 2, 4, 8 s.
    let most = begun.elapsed().as_secs().ilog2() as usize + 3;
    assert!(refused() <= most, "{} in {:?}", refused(), begun.elapsed());
    relay.finish(Backlog::Empty);
    let kept = std::fs::read_dir(&letters).map_or(0, Iterator::count);
    assert_eq!(kept, 0, "no dead letters");
}

fn warnings(relay: &Relay) -> usize {
    let fields = relay.log_fields();
    let is_one = |line: &&Value| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("cannot send the newest evidence checkpoint to the output")
    };
    fields.iter().filter(is_one).count()
}

/// Method: the consumer never answers a checkpoint, and the output has only one connection. Events
/// wait for at most one such request, and for none while the output pauses.
#[test]
fn a_silent_consumer_delays_events_by_one_request() {
    let sink = HttpSink::start(|request| match is_checkpoint(request) {
        true => Answer::never(),
        false => Answer::status(200),
    });
    let mut case = Case::new();
    let more = "format = \"ndjson\"\nconcurrency = 1\ntimeouts = { request = \"1s\" }\n";
    let relay = Relay::start(&case.config(&http(&sink, more)));
    wait_until("a checkpoint", PATIENCE, || sink.count() > 0);
    for seed in 0..30 {
        let begun = Instant::now();
        case.post(&relay, seed, 5);
        relay.wait_until_delivered(PATIENCE);
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }
    assert!(sink.requests().iter().filter(|request| is_checkpoint(request)).count() >= 1);
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    relay.finish(Backlog::Empty);
}

/// Method: a Lumberjack consumer closes each connection on which a checkpoint arrives. Events may
/// arrive twice, but none may be missing or late for long.
#[test]
fn a_consumer_that_breaks_at_checkpoints_gets_its_events() {
    let sink = LumberjackSink::with(Options::default(), |window, reply| {
        if window.events.iter().any(|event| event.starts_with(HEAD)) {
            return false;
        }
        reply.acknowledge(window.events.len());
        true
    });
    let mut case = Case::new();
    let relay = Relay::start(&case.config(&stream("lumberjack", sink.address(), "")));
    for seed in 0..30 {
        let begun = Instant::now();
        case.post(&relay, seed, 20);
        relay.wait_until_delivered(PATIENCE);
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    let (mut got, notes) = divided(&sink.events());
    got.sort();
    got.dedup();
    assert_same_set(&got, &case.events);
    assert!((1..8).contains(&notes.len()), "{}", notes.len());
    wait_until("the warning", PATIENCE, || warnings(&relay) > 0);
    assert_eq!(warnings(&relay), 1);
    relay.finish(Backlog::Empty);
}

/// Method: a TCP consumer reads nothing for some seconds. Then it must get all events and the
/// newest checkpoint.
#[test]
fn a_slow_consumer_gets_the_newest_and_not_all() {
    let sink = TcpSink::start();
    let mut case = Case::new();
    let relay = Relay::start(&case.config(&stream("tcp", sink.address(), "")));
    wait_until("a checkpoint", PATIENCE, || !sizes(&sink.lines()).is_empty());
    sink.pause(true);
    let begun = case.newest();
    for seed in 0..100 {
        case.post(&relay, seed, 100);
    }
    wait_until("checkpoints", PATIENCE, || case.newest() > begun + 10);
    sink.pause(false);
    relay.wait_until_delivered(PATIENCE);
    let newest = case.newest();
    wait_until("the newest", PATIENCE, || sizes(&sink.lines()).iter().any(|it| *it >= newest));
    let got = || divided(&sink.lines()).0;
    wait_until("the last event", PATIENCE, || got().len() >= case.events.len());
    assert_same_set(&got(), &case.events);
    relay.finish(Backlog::Empty);
}

/// Replaces the config, and waits until the relay has read it.
fn reload(relay: &Relay, config: &str) {
    let count = |relay: &Relay| {
        let metrics = relay.metrics();
        metrics.value("config_reload_total", &[("result", "success")])
    };
    let before = count(relay);
    let beside = relay.config_file().with_extension("new");
    std::fs::write(&beside, config).unwrap();
    std::fs::rename(&beside, relay.config_file()).unwrap();
    relay.signal(libc::SIGHUP);
    wait_until("the reload", PATIENCE, || count(relay) > before);
}

#[test]
fn a_reload_turns_checkpoints_on_and_off() {
    let sink = TcpSink::start();
    let mut case = Case::new();
    let on = case.config(&stream("tcp", sink.address(), ""));
    let off = on.replace("checkpoints = true", "checkpoints = false");
    let relay = Relay::start(&off);
    case.post(&relay, 1, 10);
    wait_until("some seconds", PATIENCE, || case.newest() > 5);
    assert_eq!(sizes(&sink.lines()), [] as [u64; 0]);
    reload(&relay, &on);
    wait_until("checkpoints", PATIENCE, || sizes(&sink.lines()).len() >= 2);
    reload(&relay, &off);
    // The old delivery may have just sent a checkpoint.
    std::thread::sleep(Duration::from_secs(1));
    let (sent, newest) = (sink.count(), case.newest());
    wait_until("some seconds", PATIENCE, || case.newest() > newest + 3);
    assert_eq!(sink.count(), sent);
    case.post(&relay, 2, 10);
    relay.wait_until_delivered(PATIENCE);
    let got = || divided(&sink.lines()).0;
    wait_until("the last event", PATIENCE, || got().len() >= case.events.len());
    assert_same_set(&got(), &case.events);
    relay.finish(Backlog::Empty);
}

/// Returns whether `check` accepts a config, and what it prints.
fn checked(config: &str) -> (bool, String) {
    let directory = TempDir::new().unwrap();
    let file: PathBuf = directory.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let output = run_command(&["check", "--config", &file.display().to_string()], directory.path());
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn the_config_says_where_checkpoints_have_no_place() {
    let case = Case::new();
    let urls = "urls = [\"http://a.example:1/\"]\n";
    let no_place = "this output cannot send checkpoints, allowed: types tcp, stdout, lumberjack, \
                    relp, kafka, s3, and http with format ndjson or audit_log";
    for output in [
        output("syslog", "addresses = [\"a.example:1\"]"),
        output("http", urls),
        output("http", &format!("{urls}format = \"json_array\"")),
        output("loki", &format!("{urls}labels = {{ a = \"b\" }}")),
        output("otlp", urls),
        output("elasticsearch", &format!("{urls}index = \"logs\"")),
    ] {
        let (is_usable, said) = checked(&case.config(&output));
        assert!(!is_usable && said.contains(no_place), "{output}: {said}");
        assert!(said.contains("output[0].checkpoints"), "{said}");
    }
    let good = case.config(&output("tcp", "addresses = [\"a.example:1\"]"));
    let (is_usable, said) = checked(&good);
    assert!(is_usable, "{said}");
    let without = good.split("[evidence]").next().unwrap();
    let (is_usable, said) = checked(without);
    assert!(!is_usable, "{said}");
    let nothing =
        "output[0].checkpoints: needs the section [evidence], which creates the checkpoints";
    assert!(said.contains(nothing), "{said}");
}
