//! `replay`: the events of all inputs arrive byte for byte. However the command ends, it skips no
//! event without a message.

use std::io::Write as _;
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::support::chance::rng;
use crate::support::corpus::audit_log;
use crate::support::prelude::*;

/// The maximum number of events in a request.
const BATCH: u64 = 2000;

/// A directory in which the commands run.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let file = self.path(name);
        std::fs::write(&file, bytes).unwrap();
        text(&file).to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn replay(&self, url: &str, arguments: &[&str]) -> Said {
        said(&[&["replay", "--url", url], arguments].concat(), self.root())
    }

    fn replay_stdin(&self, url: &str, bytes: &[u8]) -> Said {
        said_to(bytes, &["replay", "--url", url, "-"], self.root())
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }
}

impl Said {
    fn figure(&self, name: &str) -> u64 {
        let line = self.stdout.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("{name} is not in {self:?}")).parse().unwrap()
    }

    #[track_caller]
    fn assert_done(&self, accepted: u64, bad_lines: u64) {
        assert_eq!(self.code, Some(0), "{self:?}");
        let figures = ["sent", "accepted", "bad lines"].map(|name| self.figure(name));
        assert_eq!(figures, [accepted, accepted, bad_lines], "{self:?}");
    }

    #[track_caller]
    fn assert_stopped(&self, accepted: u64, said: &[&str]) {
        self.assert(1, said);
        assert_eq!(self.figure("accepted"), accepted, "{self:?}");
    }
}

fn url(sink: &HttpSink) -> String {
    format!("http://{}/audit", sink.address())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns a zstd frame with a checksum, like one that the program zstd makes.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd_with_window(bytes, 0)
}

/// Returns a zstd frame whose window has 2^`window_log` bytes. 0: the level's default.
fn zstd_with_window(bytes: &[u8], window_log: u32) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.window_log(window_log).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A zstd frame without text (RFC 8878 §3.1.2), which pzstd puts before each frame: the magic
/// number, the length, and 4 bytes.
const SKIPPABLE_FRAME: &[u8] = b"\x50\x2a\x4d\x18\x04\0\0\0abcd";

fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(<[u8]>::to_vec).collect()
}

fn numbered_log(events: u64) -> Vec<u8> {
    numbered::events(0, 0..events).iter().flat_map(|event| [event, &b"\n"[..]].concat()).collect()
}

#[test]
fn every_form_of_input_arrives_byte_for_byte() {
    let place = Place::new();
    let log = audit_log();
    let logged = lines(&log);
    let half = log.len() / 2;
    let members = [gzip(&log[..half]), gzip(&log[half..])].concat();
    let frames = [zstd(&log[..half]), SKIPPABLE_FRAME.to_vec(), zstd(&log[half..])].concat();
    let skippable_first = [SKIPPABLE_FRAME, &zstd(&log)].concat();
    let with = |before: &str, behind: &str| -> Vec<u8> {
        logged
            .iter()
            .flat_map(|line| [before.as_bytes(), line, behind.as_bytes()].concat())
            .collect()
    };
    let letter =
        r#"{"time":"2026-01-02T03:04:05.678Z","output":"o","reason":"answered 413","event":"#;
    let lists: Vec<u8> = corpus().into_iter().flat_map(|body| body.bytes).collect();
    let listed: Vec<_> = corpus().iter().flat_map(|body| events_of(&body.bytes)).collect();
    let rotated = "audit-2026-11-20T10-00-00.000.log.gz";
    for (name, bytes, wanted) in [
        ("audit.log", log.clone(), &logged),
        ("without-a-last-line-break", log[..log.len() - 1].to_vec(), &logged),
        ("crlf", with("", "\r\n\n"), &logged),
        (rotated, gzip(&log), &logged),
        ("several-members", members, &logged),
        ("audit.jsonl.zst", zstd(&log), &logged),
        ("several-frames", frames, &logged),
        ("a-skippable-frame-first", skippable_first, &logged),
        ("the-largest-window", zstd_with_window(&log, 23), &logged),
        ("node-logs", with("master-0.example.com ", "\n"), &logged),
        ("dead-letters", with(letter, "}\n"), &logged),
        ("event-lists", lists, &listed),
        ("empty", Vec::new(), &Vec::new()),
    ] {
        let sink = HttpSink::accepting();
        let file = place.write(name, &bytes);
        let count = wanted.len() as u64;
        place.replay(&url(&sink), &[&file]).assert_done(count, 0);
        place.replay_stdin(&url(&sink), &bytes).assert_done(count, 0);
        assert_same_set(&accepted_events(&sink), &[wanted.as_slice(), wanted].concat());
    }
}

/// Returns this text as a JSON string.
fn quoted(text: &[u8]) -> String {
    Value::from(std::str::from_utf8(text).unwrap()).to_string()
}

/// Returns the events of an audit.log in the formats of several stores and agents, which wrap each
/// event. An event can be restored from each format byte for byte.
fn wrapped(logged: &[Vec<u8>]) -> Vec<(&'static str, Vec<u8>)> {
    let lines_of = |wrap: &dyn Fn(&[u8]) -> String| -> Vec<u8> {
        logged.iter().flat_map(|line| wrap(line.trim_ascii_end()).into_bytes()).collect()
    };
    let joined = |wrap: &dyn Fn(&[u8]) -> String| {
        logged.iter().map(|line| wrap(line.trim_ascii_end())).collect::<Vec<_>>().join(",")
    };
    let plain = |line: &[u8]| String::from_utf8(line.to_owned()).unwrap();
    let azure = |line: &[u8]| {
        let log = quoted(&[line, b"\n"].concat());
        format!(
            r#"{{"time":"t","category":"kube-audit","properties":{{"log":{log},"stream":"stdout"}}}}"#
        )
    };
    let message = |line: &[u8]| format!(r#"{{"timestamp":1,"message":{},"id":"1"}}"#, quoted(line));
    let journal = |line: &[u8]| {
        format!("{{\"__CURSOR\":\"s=1\",\"MESSAGE\":{},\"_PID\":\"1\"}}\n", quoted(line))
    };
    let docker = |line: &[u8]| format!("{{\"log\":{},\"stream\":\"stdout\"}}\n", quoted(line));
    let cri = |line: &[u8]| format!("2026-11-25T18:00:00.1Z stdout F {}\n", plain(line));
    let exported = |line: &[u8]| format!("2026-11-25T18:00:00.000Z {}\n", plain(line));
    let tailed =
        |line: &[u8]| format!("2026-11-25T18:00:00+00:00 kube-apiserver-audit-1 {}\n", plain(line));
    let array = format!("[{}]", joined(&plain));
    vec![
        ("byte-order-mark", [b"\xef\xbb\xbf", &*lines_of(&|line| plain(line) + "\n")].concat()),
        ("array", format!("{array}\n").into_bytes()),
        ("aks", lines_of(&|line| azure(line) + "\n")),
        ("aks-records", format!("{{\"records\": [{}]}}\n", joined(&azure)).into_bytes()),
        ("log-analytics", lines_of(&|line| format!("{{\"log_s\":{}}}\n", quoted(line)))),
        ("cloudwatch", format!("{{\"events\":[{}]}}", joined(&message)).into_bytes()),
        ("subscription", format!("{{\"logEvents\":[{}]}}", joined(&message)).into_bytes()),
        ("insights", lines_of(&|line| format!("{{\"@message\":{}}}\n", quoted(line)))),
        ("exported", lines_of(&exported)),
        ("tailed", lines_of(&tailed)),
        ("cri", lines_of(&cri)),
        ("journald", lines_of(&journal)),
        ("docker", lines_of(&docker)),
    ]
}

#[test]
fn an_event_that_another_system_has_wrapped_arrives_byte_for_byte() {
    let place = Place::new();
    let logged = lines(&audit_log())[..60].to_vec();
    for (name, bytes) in wrapped(&logged) {
        let sink = HttpSink::accepting();
        let file = place.write(name, &bytes);
        let said = place.replay(&url(&sink), &[&file]);
        assert_eq!(said.code, Some(0), "{name}: {said:?}");
        said.assert_done(60, 0);
        assert_same_set(&accepted_events(&sink), &logged);
        place.replay_stdin(&url(&sink), &gzip(&bytes)).assert_done(60, 0);
    }
}

#[test]
fn a_line_that_was_cut_off_never_hides_the_events_behind_it() {
    let place = Place::new();
    let logged = lines(&audit_log())[..4].to_vec();
    let whole = std::str::from_utf8(&logged[0]).unwrap().trim_end();
    let value = whole.find("\"user\":").unwrap() + 7;
    // The line is cut off in a string, after a member, or after a bracket or a colon, where the
    // value could follow on the next line.
    for torn in [
        whole.split_at(40).0,
        "{\"kind\":\"Event\",",
        whole.split_at(value).0,
        "{\"items\":[",
        "[",
        "{",
    ] {
        let mut log = format!("{torn}\n").into_bytes();
        for line in &logged {
            log.extend_from_slice(&[line.as_slice(), b"\n"].concat());
        }
        let sink = HttpSink::accepting();
        let file = place.write("log", &log);
        let said = place.replay(&url(&sink), &[&file, "--on-bad-line", "skip"]);
        said.assert_done(4, 1);
        assert_same_set(&accepted_events(&sink), &logged);
    }
}

#[test]
fn what_is_not_the_same_event_is_refused_with_what_to_do() {
    let place = Place::new();
    let sink = HttpSink::accepting();
    let google = r#"{"insertId":"1","protoPayload":{"methodName":"io.k8s.core.v1.pods.list"}}"#;
    for (name, bytes, what) in [
        (
            "gke",
            google.as_bytes(),
            "an entry of Google Cloud's audit logs (protoPayload) is not an",
        ),
        ("array", br#"[{"auditID":"a"}]"#, "element 1 of the array: stage is missing"),
        ("aks", br#"{"properties":{"log":"I1125 a log"}}"#, "properties: log: "),
        ("part", b"2026-11-25T18:00:00Z stdout P {\"kind\":\"Event\",", "join them with `awk '"),
        ("array-of-lines", b"[\n{},\n{}\n]\n", "make lines of it with `jq -c '.[]' FILE`"),
        ("pretty", b"{\n  \"kind\": \"EventList\",\n", "with `jq -c '.items[]? // .' FILE`"),
        ("list-of-lines", b"{\"items\":[\n{},\n{}\n]}", "with `jq -c '.items[]? // .' FILE`"),
    ] {
        let file = place.write(name, bytes);
        let said = place.replay(&url(&sink), &[&file]);
        said.assert_stopped(0, &[what]);
        assert!(!said.stderr.contains("tail -n +1 "), "{said:?}");
    }
    // A file that is no audit log is called so, and no advice leads to the same line again.
    let config = b"[[listener]]\naddress = \"x\"\n";
    for bytes in [&b"true colours\n"[..], b"a,b\n1,2\n", b"<xml/>\n", config, b"{}\n", b"\xff\n"] {
        let file = place.write("file", bytes);
        let said = place.replay(&url(&sink), &[&file, "--resume", "state"]);
        said.assert_stopped(0, &["It is probably no audit log", "--on-bad-line skip"]);
        for wrong in ["expected ident", "is accepted", "the same command"] {
            assert!(!said.stderr.contains(wrong), "{wrong}: {said:?}");
        }
        std::fs::remove_file(place.path("state")).unwrap();
    }
    assert_eq!(sink.count(), 0);
}

#[test]
fn events_without_a_connection_are_not_counted_as_sent() {
    let place = Place::new();
    let file = place.write("log", &numbered_log(400));
    let url = format!("http://127.0.0.1:{}/", free_port());
    let mut running = spawn_command(&["replay", "--url", &url, &file], place.root(), &[]);
    wait_until("an attempt", PATIENCE, || running.stderr().contains("attempt 1"));
    running.stdout();
    running.signal(libc::SIGINT);
    let (status, stderr) = running.wait();
    assert_eq!(status.code(), Some(1), "{stderr}");
    for told in ["the address of a listener; attempt 1", "no connection was made"] {
        assert!(stderr.contains(told), "{told}: {stderr}");
    }
    wait_until("the summary", PATIENCE, || running.stdout().starts_with(b"sent: 0\naccepted: 0\n"));
}

#[test]
fn a_replay_that_sent_nothing_of_bad_lines_fails_and_names_ten_of_them() {
    let place = Place::new();
    let sink = HttpSink::accepting();
    let file = place.write("log", &b"not an event\n".repeat(5000));
    let said = place.replay(&url(&sink), &[&file, "--on-bad-line", "skip"]);
    assert_eq!((said.code, said.figure("bad lines")), (Some(1), 5000), "{said:?}");
    assert_eq!(said.stderr.matches(": skipped: ").count(), 10, "{said:?}");
    assert!(said.stderr.contains("4990 more bad lines were skipped"), "{said:?}");
    assert!(said.stderr.contains("no event was sent"), "{said:?}");
    // With one event in the file, the command succeeds and counts the bad lines.
    let file = place.write("log", &[b"not an event\n", &*numbered_log(1)].concat());
    place.replay(&url(&sink), &[&file, "--on-bad-line", "skip"]).assert_done(1, 1);
}

#[test]
fn policy_cost_reads_what_replay_reads() {
    let place = Place::new();
    let logged = lines(&audit_log())[..60].to_vec();
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n";
    let policy = place.write("policy", policy.as_bytes());
    for (name, bytes) in wrapped(&logged) {
        let file = place.write(name, &bytes);
        let said = said(&["policy", "cost", "--json", &policy, &file], place.root());
        assert_eq!(said.code, Some(0), "{name}: {said:?}");
        let json: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(json["total"]["events"], 60, "{name}");
    }
}

#[test]
fn what_a_relay_refused_or_still_holds_is_replayed_to_another() {
    let place = Place::new();
    let batch = numbered::list(0, 0..400);
    let refused = numbered::events(0, 137..138);
    let bad = refused[0].clone();
    let picky = refusing(400, move |event| *event == bad);
    let keys = format!("[dead_letter]\ndirectory = {:?}\n", text(&place.path("letters")));
    let relay = Relay::start(&to_sink(picky.address(), &keys));
    assert_eq!(relay.post(&batch).status, 200);
    relay.wait_until_delivered(PATIENCE);
    let letters = std::fs::read_dir(place.path("letters")).unwrap();
    let letters: Vec<_> = letters.map(|file| file.unwrap().path()).collect();
    relay.finish(Backlog::Empty);
    let sink = HttpSink::accepting();
    place.replay(&url(&sink), &[text(&letters[0])]).assert_done(1, 0);
    assert_same_set(&accepted_events(&sink), &refused);

    // The events wait in a spool, because the consumer answers with 503.
    let away = HttpSink::start(|_| Answer::status(503));
    let spool = place.path("spool");
    let keys = format!("[queue]\ndirectory = {:?}\n", text(&spool));
    let relay = Relay::start(&to_sink(away.address(), &keys));
    assert_eq!(relay.post(&batch).status, 200);
    let exported = run_command(&["queue", "export", text(&spool)], place.root());
    let sink = HttpSink::accepting();
    place.replay_stdin(&url(&sink), &exported.stdout).assert_done(400, 0);
    assert_same_set(&accepted_events(&sink), &numbered::events(0, 0..400));
    relay.finish(Backlog::Stable);
}

#[test]
fn requests_are_event_lists_of_2000_events_or_4_mib_in_the_order_of_the_files() {
    let place = Place::new();
    let log = numbered_log(BATCH + 100);
    let (first, second) = (place.write("first", &log), place.write("second", &gzip(&log)));
    let sizes = |sink: &HttpSink| -> Vec<usize> {
        sink.requests().iter().map(|it| events_in(it).len()).collect()
    };
    let sink = HttpSink::accepting();
    place.replay(&url(&sink), &[&first, &second]).assert_done(2 * (BATCH + 100), 0);
    assert_eq!(sizes(&sink), [2000, 100, 2000, 100]);
    assert!(accepted_events(&sink) == lines(&[log.clone(), log].concat()));
    for request in sink.requests() {
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/audit"));
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.header("content-length"), Some(request.body.len().to_string().as_str()));
        let head = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
        assert!(request.body.starts_with(head.as_bytes()) && request.body.ends_with(b"]}\n"));
    }

    // A request has fewer events if it would otherwise be too large. An event that is larger than
    // the limit is sent alone.
    let event = |bytes: usize| {
        format!("{{\"auditID\":\"a\",\"stage\":\"Panic\",\"x\":\"{}\"}}\n", "x".repeat(bytes))
    };
    let log = [1_500_000, 1_500_000, 1_500_000, 5 << 20, 10].map(event).concat();
    let file = place.write("large", log.as_bytes());
    let sink = HttpSink::accepting();
    place.replay(&url(&sink), &[&file]).assert_done(5, 0);
    assert_eq!(sizes(&sink), [2, 1, 1, 1]);
}

#[test]
fn a_rate_is_kept_with_more_and_smaller_requests() {
    let place = Place::new();
    let file = place.write("log", &numbered_log(300));
    let sink = HttpSink::accepting();
    let begun = Instant::now();
    place.replay(&url(&sink), &[&file, "--rate", "400"]).assert_done(300, 0);
    let took = begun.elapsed();
    let sizes: Vec<_> = sink.requests().iter().map(|it| events_in(it).len()).collect();
    assert_eq!(sizes, [100, 100, 100]);
    // The third request is due half a second after the first. On a busy machine, it can be later.
    assert!(took >= Duration::from_millis(500), "{took:?}");
}

#[test]
fn errors_are_retried_and_nothing_is_accepted_twice() {
    let place = Place::new();
    let file = place.write("log", &numbered_log(10));
    let sink = HttpSink::script([
        // The pause is as long as the response asks for.
        Answer::status(503).header("Retry-After", "3"),
        // A broken kept connection says nothing about the request, so the request is sent again at
        // once. The second break counts as a failure.
        Answer::hang_up(),
        Answer::reset(),
        Answer::status(408),
        Answer::status(200).body(r#"{"accepted":10}"#),
    ]);
    let said = place.replay(&url(&sink), &[&file]);
    said.assert_done(10, 0);
    let retries = said.stderr.lines().filter(|line| line.contains("lines 1 to 10: http://"));
    assert_eq!(retries.count(), 3, "{said:?}");
    for told in [
        "answered 503 Service Unavailable; attempt 1, the next in 3.0 s",
        "; attempt 2, the next in 2.",
        "answered 408 Request Timeout; attempt 3, the next in 4.",
    ] {
        assert!(said.stderr.contains(told), "{told}: {said:?}");
    }
    assert_same_set(&accepted_events(&sink), &numbered::events(0, 0..10));
}

/// The second run stops before any of its requests is accepted. Its message must name the place
/// where it began, which is in the second file.
#[test]
fn a_run_that_goes_on_in_the_second_file_and_gets_nowhere_names_that_file() {
    let place = Place::new();
    let files = [place.write("first", &audit_log()), place.write("second", &numbered_log(4500))];
    let resume = place.path("resume");
    let arguments = [files[0].as_str(), files[1].as_str(), "--resume", text(&resume)];
    // Only the numbered events of the second file have this member.
    let is_numbered = |event: &[u8]| event.windows(11).any(|it| it == b"\"n\":[1e400,");
    let is_late =
        move |event: &[u8]| is_numbered(event) && numbered::identify(event).number >= 2430;
    let late = refusing(400, move |event| is_late(event));
    let nothing = HttpSink::start(|_| Answer::status(400));
    for sink in [late, nothing] {
        let said = place.replay(&url(&sink), &arguments);
        assert_eq!(said.code, Some(1), "{said:?}");
        let begin = format!("before line 2001 of {}", files[1]);
        assert!(said.stderr.contains(&begin), "{begin}: {said:?}");
    }
}

#[test]
fn where_a_replay_stops_is_said_and_the_next_one_continues_there() {
    let place = Place::new();
    let file = place.write("log", &numbered_log(4500));
    let resume = place.path("resume");
    let resume = ["--resume", text(&resume)];
    let is_late = |event: &[u8]| numbered::identify(event).number >= 2430;
    let sink = refusing(400, move |event| is_late(event));
    let arguments = [&[file.as_str()], &resume[..]].concat();
    let said = place.replay(&url(&sink), &arguments);
    said.assert_stopped(
        2000,
        &[
            "log, lines 2001 to 4000: http",
            "answered 400",
            "before line 2001 of",
            "continue from there: run the same",
            resume[1],
        ],
    );
    let sink = HttpSink::accepting();
    let said = place.replay(&url(&sink), &arguments);
    said.assert_done(2500, 0);
    assert!(
        said.stderr.contains("continuing with") && said.stderr.contains("line 2001"),
        "{said:?}"
    );
    assert_eq!(said.figure("accepted before"), 2000);
    assert_same_set(&accepted_events(&sink), &numbered::events(0, 2000..4500));

    // Another run finds nothing left. Then the log grows, and is compressed under another name.
    place.replay(&url(&sink), &arguments).assert_done(0, 0);
    let grown = place.write("grown.gz", &gzip(&numbered_log(4505)));
    let sink = HttpSink::accepting();
    place.replay(&url(&sink), &[&[grown.as_str()], &resume[..]].concat()).assert_done(5, 0);
    assert_same_set(&accepted_events(&sink), &numbered::events(0, 4500..4505));
    let grown = place.write("grown.zst", &zstd(&numbered_log(4509)));
    let sink = HttpSink::accepting();
    place.replay(&url(&sink), &[&[grown.as_str()], &resume[..]].concat()).assert_done(4, 0);
    assert_same_set(&accepted_events(&sink), &numbered::events(0, 4505..4509));

    // A different file is not mistaken for the first one. Neither is a shorter one.
    let other = place.write("other", &audit_log());
    let said = place.replay(&url(&sink), &[&[other.as_str()], &resume[..]].concat());
    said.assert_stopped(0, &["is not the file that the resume file names"]);
    let shorter = place.write("shorter", &numbered_log(900));
    let said = place.replay(&url(&sink), &[&[shorter.as_str()], &resume[..]].concat());
    said.assert_stopped(0, &["shorter than before"]);
}

#[test]
fn what_cannot_get_better_stops_at_once_with_the_answer() {
    let place = Place::new();
    let file = place.write("log", &numbered_log(10));
    let status =
        r#"{"kind":"Status","status":"Failure","message":"item 3 at byte 7: no","code":400}"#;
    for (answer, said) in [
        (Answer::status(400).body(status), "answered 400 Bad Request: item 3 at byte 7: no"),
        (Answer::status(401), "see --bearer-token-file"),
        (Answer::status(404).body("no\u{1b}[2J"), "answered 404 Not Found: no [2J; see the path"),
        (Answer::status(413), "see the relay's limits.max_body"),
        (Answer::status(302).header("Location", "/login"), "answered 302"),
        (Answer::status(200).body(r#"{"accepted":9}"#), "accepted 9 events of 10"),
    ] {
        let sink = HttpSink::start(move |_| answer.clone());
        let stopped = place.replay(&format!("{}?token=secret", url(&sink)), &[&file]);
        stopped
            .assert_stopped(0, &[said, "log, lines 1 to 10: http://127.0.0.1", "before line 1 of"]);
        assert!(!stopped.stderr.contains("secret"), "{stopped:?}");
        assert_eq!(sink.count(), 1);
        assert_eq!(sink.requests()[0].target, "/audit?token=secret");
    }
}

#[test]
fn a_pipe_is_opened_once_and_read_to_its_end() {
    let place = Place::new();
    let pipe = place.root().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let log = numbered_log(2000);
    assert!(log.len() > 64 << 10, "more than a pipe holds");
    let sink = HttpSink::accepting();
    let (said, written) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| std::fs::write(&pipe, &log));
        let said = place.replay(&url(&sink), &["pipe"]);
        (said, writer.join().unwrap())
    });
    said.assert_done(2000, 0);
    assert!(written.is_ok(), "{written:?}");
}

#[test]
fn a_line_that_is_still_being_written_is_taken_when_it_is_whole() {
    let place = Place::new();
    let log = numbered_log(15);
    let eleventh = log.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(9).unwrap().0;
    let file = place.write("log", &log[..eleventh + 20]);
    let sink = HttpSink::accepting();
    let arguments = [&*file, "--on-bad-line", "skip", "--resume", "state"];
    let first = place.replay(&url(&sink), &arguments);
    first.assert_done(10, 1);
    place.write("log", &log);
    place.replay(&url(&sink), &arguments).assert_done(5, 0);
    let events: Vec<_> = sink.requests().iter().flat_map(events_in).collect();
    assert_eq!(events, lines(&log));
}

#[test]
fn bad_lines_stop_or_are_skipped_and_are_always_told() {
    let place = Place::new();
    let events = numbered::events(0, 0..6);
    let long = [b"{\"x\":\"", vec![b'x'; 65 << 20].as_slice(), b"\"}"].concat();
    let bad: [&[u8]; 4] = [b"not JSON", br#"{"auditID":"a"}"#, &long, b"{\"auditID\":\xff}"];
    let mut log = Vec::new();
    for (index, event) in events.iter().enumerate() {
        log.extend_from_slice(&[event, &b"\n"[..]].concat());
        log.extend_from_slice(
            &bad.get(index).map(|bad| [bad, &b"\n"[..]].concat()).unwrap_or_default(),
        );
    }
    let file = place.write("log", &log);
    let sink = HttpSink::accepting();
    place.replay(&url(&sink), &[&file]).assert_stopped(
        1,
        &[
            "log, line 2: at byte 1: not JSON",
            "; with --on-bad-line skip such lines are counted and left out\n",
            "before line 2 of",
            "run `tail -n +2 /",
            "| kube-audit-forwarder replay - --on-bad-line skip --url",
        ],
    );
    let sink = HttpSink::accepting();
    let said = place.replay(&url(&sink), &[&file, "--on-bad-line", "skip"]);
    said.assert_done(6, 4);
    for told in ["line 2: skipped: at byte 1", "line 4: skipped", "line 6: skipped: longer than"] {
        assert!(said.stderr.contains(told), "{told}: {said:?}");
    }
    assert!(said.stderr.contains("line 8: skipped: at byte 11: not JSON"), "{said:?}");
    assert_same_set(&accepted_events(&sink), &events);
}

#[test]
fn a_compressed_file_that_is_cut_off_is_never_taken_for_whole() {
    let place = Place::new();
    let log = numbered_log(1000);
    for (name, packed, cat) in [("gzip", gzip(&log), "zcat"), ("zstd", zstd(&log), "zstdcat")] {
        let cut = place.write("cut", &packed[..packed.len() / 2]);
        let whole = place.write("whole", &packed);
        let sink = HttpSink::accepting();
        let said = place.replay(&url(&sink), &[&cut, &whole]);
        let accepted = said.figure("accepted");
        assert!((1..1000).contains(&accepted), "{said:?}");
        let line = format!(
            "cut, line {}: cannot read further: the {name} data are cut off: the file is not \
             complete, or is still being written. Get the complete file",
            accepted + 1
        );
        let rest = format!("run `{cat} {cut} | tail -n +{} |", accepted + 1);
        said.assert_stopped(accepted, &[&line, &rest]);
        assert_same_set(&accepted_events(&sink), &numbered::events(0, 0..accepted));
        // With `skip`, the other file is sent, but the command still fails.
        let sink = HttpSink::accepting();
        let said = place.replay(&url(&sink), &[&cut, &whole, "--on-bad-line", "skip"]);
        let line = line.replace("cannot", "skipped: cannot");
        let every = "every event that could be read is accepted";
        let one = "1 of the files could not be read";
        said.assert_stopped(accepted + 1000, &[&line, every, one]);
    }
}

#[test]
fn a_compressed_file_that_is_damaged_or_needs_too_much_memory_is_told_with_what_to_do() {
    let place = Place::new();
    let log = numbered_log(1000);
    let damaged = |mut packed: Vec<u8>, from_end: usize| {
        let at = packed.len() - from_end;
        packed[at] ^= 1;
        packed
    };
    let trailing = [zstd(&log), b"no frame".to_vec()].concat();
    let gzip_said = "the gzip data are damaged: ";
    let zstd_said = "the zstd data are damaged: ";
    let window = "the zstd window is larger than 8 MiB (`zstd --long` and `--ultra` make such \
                  files). Decompress the file with `zstd -dc --long=31`, and send the output with \
                  `replay -`";
    for (packed, said, advice) in [
        // In gzip, 4 bytes of length follow the checksum. In zstd, nothing follows it.
        (damaged(gzip(&log), 5), gzip_said, "`gzip -t` checks a file; get another copy"),
        (damaged(zstd(&log), 1), zstd_said, "`zstd -t` checks a file; get another copy"),
        (trailing, zstd_said, "`zstd -t` checks a file; get another copy"),
        (zstd_with_window(&log, 24), window, "before line 1 of"),
        (zstd_with_window(&log, 27), window, "before line 1 of"),
    ] {
        let file = place.write("damaged", &packed);
        let sink = HttpSink::accepting();
        let stopped = place.replay(&url(&sink), &[&file]);
        let accepted = stopped.figure("accepted");
        let line = format!("damaged, line {}: cannot read further: {said}", accepted + 1);
        stopped.assert_stopped(accepted, &[&line, advice]);
        assert_same_set(&accepted_events(&sink), &numbered::events(0, 0..accepted));
    }
}

#[test]
fn wrong_usage_is_status_2_and_sends_nothing() {
    let place = Place::new();
    let file = place.write("log", &numbered_log(1));
    let sink = HttpSink::accepting();
    let to = url(&sink);
    let bad = place.write("bad", b"no resume file");
    for (arguments, what) in [
        (vec!["missing", "--url", &to], "missing: cannot read the events"),
        (vec![file.as_str(), "missing", "--url", &to], "missing: cannot read the events"),
        (vec![".", "--url", &to], "is a directory"),
        (vec!["-", "-", "--url", &to], "once"),
        (vec!["--url", &to], "FILE"),
        (vec![&file], "--url"),
        (vec![&file, "--url", "ftp://127.0.0.1/"], "neither http:// nor https://"),
        (vec![&file, "--url", "http://user:secret@127.0.0.1/"], "use --bearer-token-file"),
        (vec![&file, "--url", &to, "--ca", "ca.pem"], "https://"),
        (vec![&file, "--url", "https://127.0.0.1/", "--ca", "ca.pem"], "ca.pem: cannot read"),
        (vec![&file, "--url", &to, "--rate", "0"], "--rate"),
        (vec![&file, "--url", &to, "--resume", &bad], "is not the resume file"),
        (vec![&file, "--url", &to, "--resume", "missing/resume"], "cannot write"),
    ] {
        let refused = said(&[&["replay"], &arguments[..]].concat(), place.root());
        refused.assert_refused(what);
        assert!(!refused.stderr.contains("secret"), "{refused:?}");
    }
    assert_eq!(sink.count(), 0);
}

#[test]
fn https_with_a_client_certificate_and_a_token() {
    let place = Place::new();
    let files = Certificates::new();
    let token = place.write("token", b"a-secret-token\n");
    let sink = HttpSink::accepting();
    let tls = format!(
        "bearer_token_file = {token:?}\n[listener.tls]\ncertificate = {:?}\nprivate_key = {:?}\nclient_ca = {:?}\n",
        text(&files.server.certificate),
        text(&files.server.key),
        text(&files.ca),
    );
    let config = to_sink(sink.address(), "").replacen(BASE, &format!("{BASE}{tls}"), 1);
    let relay = Relay::start(&config);
    let to = format!("https://localhost:{}/", relay.address().port());
    let file = place.write("log", &audit_log());
    let ca = ["--ca", text(&files.ca)];
    let identity =
        ["--certificate", text(&files.client.certificate), "--key", text(&files.client.key)];
    let bearer = ["--bearer-token-file", &token];
    let replay = |arguments: &[&[&str]]| {
        place.replay(&to, &[&[file.as_str()], arguments.concat().as_slice()].concat())
    };
    // A handshake that fails is tried again, so the test interrupts the command after the first
    // failure.
    let failing = |arguments: &[&[&str]]| {
        let all = [&["replay", "--url", &to, &file], arguments.concat().as_slice()].concat();
        let mut running = spawn_command(&all, place.root(), &[]);
        wait_until("a failure", PATIENCE, || running.stderr().contains("attempt 1, the next in"));
        running.signal(libc::SIGINT);
        let (status, stderr) = running.wait();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("before line 1 of"), "{stderr}");
        stderr
    };
    let refused = failing(&[&identity, &bearer]);
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    // In TLS 1.3, the server rejects a client after the handshake. The client can notice this
    // before the request, at the request, or while it writes the body.
    let refused = failing(&[&ca, &bearer]);
    let whys = ["ertificate", "Broken pipe", "Connection reset"];
    assert!(whys.iter().any(|why| refused.contains(why)), "{refused}");
    replay(&[&ca, &identity]).assert_stopped(0, &["answered 401"]);
    replay(&[&ca, &identity, &bearer]).assert_done(495, 0);
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&sink), &lines(&audit_log()));
    relay.finish(Backlog::Empty);
}

fn distinct(sink: &HttpSink) -> u64 {
    let mut numbers: Vec<_> =
        accepted_events(sink).iter().map(|event| numbered::identify(event).number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.len() as u64
}

/// Ends a replay `rounds` times, by SIGKILL and SIGINT in turn, each time at a random moment after
/// fewer than `requests` requests. Then runs it to its end. `saved` returns the number of finished
/// events in the resume file, which may never be greater than the number of accepted events. After
/// an interrupt, at most one request may be repeated, and the message must contain `told(saved)`.
/// Returns what the last run printed, and the number that was saved before it.
pub(super) fn replay_that_is_ended(
    arguments: &[&str],
    directory: &Path,
    sink: &HttpSink,
    (rounds, requests, events): (u32, usize, u64),
    saved: impl Fn() -> u64,
    told: impl Fn(u64) -> String,
) -> (Said, u64) {
    let mut random = rng();
    let mut before = 0;
    for round in 0..rounds {
        let signal = if round % 2 == 0 { libc::SIGKILL } else { libc::SIGINT };
        let (count, accepted) = (sink.count(), accepted_events(sink).len() as u64);
        let mut running = spawn_command(arguments, directory, &[]);
        sink.wait_for_count(count + random.usize(1..requests), PATIENCE);
        running.signal(signal);
        let (status, stderr) = running.wait();
        wait_until("the end of its connections", PATIENCE, || sink.open() == 0);
        let repeated = accepted_events(sink).len() as u64 - accepted + before - saved();
        before = saved();
        if signal == libc::SIGINT {
            assert_eq!(status.code(), Some(1), "{stderr}");
            assert!(stderr.contains("stopped: interrupted"), "{stderr}");
            assert!(stderr.contains(&told(before)), "{stderr}");
            assert!(repeated <= BATCH, "{repeated}: {stderr}");
        }
        assert!(before <= distinct(sink), "{before} events are not all there");
    }
    let last = said(arguments, directory);
    last.assert(0, &[]);
    assert_eq!((distinct(sink), saved()), (events, events));
    (last, before)
}

#[test]
fn kills_and_interrupts_at_any_moment_skip_nothing_and_repeat_only_what_was_not_saved() {
    // The rounds together send fewer than 40 requests, even if a busy machine delays the signals.
    const EVENTS: u64 = 80_000;
    let place = Place::new();
    // The events are in two files, one of which is compressed.
    let log = numbered_log(EVENTS);
    let half = memchr::memchr(b'\n', &log[log.len() / 2..]).unwrap() + log.len() / 2 + 1;
    let files = [place.write("a.gz", &gzip(&log[..half])), place.write("b", &log[half..])];
    let resume = place.path("resume");
    let sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(150)));
    let to = url(&sink);
    let [a, b] = files.each_ref().map(String::as_str);
    let arguments = ["replay", "--url", &to, "--resume", text(&resume), a, b];
    let saved = || {
        let text = std::fs::read(&resume).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()["events"].as_u64().unwrap()
    };
    replay_that_is_ended(&arguments, place.root(), &sink, (6, 4, EVENTS), saved, |_| {
        "same command".to_owned()
    });
}

#[test]
fn on_a_terminal_there_is_a_bar_and_elsewhere_none() {
    let place = Place::new();
    let file = place.write("log", &numbered_log(400));
    let sink = HttpSink::start(|_| Answer::status(200).after(Duration::from_millis(600)));
    let binary = binary();
    // Each request has 200 events.
    let command = format!("{binary} replay {file} --url {} --rate 800", url(&sink));
    let drawn = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .current_dir(place.root())
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .expect("script, of bsdutils");
    let drawn = Said::of(drawn);
    assert_eq!(drawn.code, Some(0), "{drawn:?}");
    for wanted in ["\u{1b}[", " %", "200 events", "left", "accepted: 400"] {
        assert!(drawn.stdout.contains(wanted), "{wanted}: {drawn:?}");
    }
    let said = place.replay(&url(&sink), &[&file]);
    said.assert_done(400, 0);
    assert_eq!(said.stderr, "");
}
