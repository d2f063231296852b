//! The setups in `examples/` work as shipped. The tests replace only ports and paths of files.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::support::peers::{Process, lines_of, start_on_free_port};
use crate::support::prelude::*;

/// A copy of an example's directory, in which the example's files can be created.
struct Example {
    directory: TempDir,
}

impl Example {
    fn copy(name: &str) -> Self {
        let directory = TempDir::new().unwrap();
        for entry in std::fs::read_dir(repository().join("examples").join(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns a file of the example with these texts replaced. Each of them must occur.
    fn read(&self, name: &str, substitutions: &[(&str, &str)]) -> String {
        let mut text = std::fs::read_to_string(self.path(name)).unwrap();
        for (theirs, tests) in substitutions {
            assert!(text.contains(theirs), "{name} has no {theirs}");
            text = text.replace(theirs, tests);
        }
        text
    }

    /// Starts the relay with these texts of its config replaced, on ports that the kernel chooses.
    fn relay(&self, substitutions: &[(&str, &str)]) -> Relay {
        let ours = [("127.0.0.1:3000", "127.0.0.1:0"), ("127.0.0.1:9090", "127.0.0.1:0")];
        Relay::start(&self.read("relay.toml", &[&ours, substitutions].concat()))
    }

    /// Starts rsyslog with the example's config, on a free port instead of `port`. As in the
    /// README, its files are in the directory that PWD names.
    fn rsyslog(&self, port: &str) -> Process {
        start_on_free_port(|free| {
            let config = self.read("rsyslog.conf", &[(port, &free.to_string())]);
            let file = self.path("on-a-free-port.conf");
            std::fs::write(&file, config).unwrap();
            let pid_file = self.path("rsyslog.pid");
            let arguments = ["-n", "-f", text(&file), "-i", text(&pid_file)];
            let own = self.directory.path();
            Process::new(program("rsyslogd"), &arguments, free, own).variable("PWD", text(own))
        })
    }

    /// Waits until rsyslog has written this many lines, and returns all its lines.
    fn audit_log(&self, lines: usize) -> Vec<Vec<u8>> {
        let file = self.path("audit.log");
        wait_until("rsyslog's file", PATIENCE, || lines_of(&file).len() >= lines);
        lines_of(&file)
    }
}

/// Posts the batch that the READMEs post, and returns its events.
fn post(relay: &Relay) -> Vec<Vec<u8>> {
    let file = repository().join("tests/corpus/01-batch400-metadata.json");
    let body = std::fs::read(file).unwrap();
    assert_eq!(relay.post(&body).status, 200);
    events_of(&body)
}

#[test]
fn each_example_is_listed_and_passes_check() {
    let listed = std::fs::read_to_string(repository().join("examples/README.md")).unwrap();
    let directories = std::fs::read_dir(repository().join("examples")).unwrap();
    let mut count = 0;
    for directory in directories.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let name = directory.file_name().unwrap().to_str().unwrap();
        assert!(listed.contains(&format!("| [`{name}`]({name}) |")), "{name} is not listed");
        let readme = std::fs::read_to_string(directory.join("README.md")).unwrap();
        assert!(readme.contains("kube-audit-forwarder run --config relay.toml"), "{name}");
        // Files that the reader has to create are missing: with --elsewhere, a warning.
        said(&["check", "--elsewhere", "relay.toml"], &directory).assert(0, &[]);
        count += 1;
    }
    assert_eq!(listed.matches("\n| [`").count(), count, "a listed example is not there");
}

#[test]
fn stdout_writes_only_writes_the_events_of_writes() {
    let relay = Example::copy("stdout-writes-only").relay(&[]);
    let events = post(&relay);
    let verb = |event: &[u8]| {
        let event: Value = serde_json::from_slice(event).unwrap();
        event["verb"].as_str().unwrap().to_owned()
    };
    let writes = ["create", "update", "patch", "delete", "deletecollection"];
    let expected = events.iter().filter(|event| writes.contains(&verb(event).as_str())).count();
    assert!(0 < expected && expected < events.len());
    relay.wait_until_delivered(PATIENCE);
    let lines = || relay.stdout().iter().filter(|&&byte| byte == b'\n').count();
    wait_until("the lines of the writes", PATIENCE, || lines() >= expected);
    assert_eq!(lines(), expected);
    for line in relay.stdout().split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        assert!(writes.contains(&verb(line).as_str()), "{}", String::from_utf8_lossy(line));
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn two_clusters_can_be_told_apart_by_the_annotation_of_their_relays() {
    let config = Example::copy("two-clusters").read(
        "relay.toml",
        &[
            ("127.0.0.1:${env:PORT:-3000}", "127.0.0.1:0"),
            ("127.0.0.1:${env:ADMIN_PORT:-9090}", "127.0.0.1:0"),
        ],
    );
    for cluster in ["prod-eu", "prod-us"] {
        let relay = Relay::with(&config).variable("CLUSTER", cluster).start();
        let count = post(&relay).len();
        relay.wait_until_delivered(PATIENCE);
        let annotation = format!("\"kube-audit-forwarder/cluster\":\"{cluster}\"");
        let named = || String::from_utf8(relay.stdout()).unwrap().matches(&annotation).count();
        wait_until("each event with its cluster", PATIENCE, || named() == count);
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn logstash_http_sends_arrays_with_the_password() {
    let example = Example::copy("logstash-http");
    std::fs::write(example.path("password"), "example").unwrap();
    let sink = HttpSink::accepting();
    let relay = example.relay(&[
        ("127.0.0.1:8080", &sink.address().to_string()),
        ("\"password\"", &format!("\"{}\"", text(&example.path("password")))),
    ]);
    let expected = post(&relay);
    relay.wait_until_delivered(PATIENCE);
    let credentials = format!("Basic {}", BASE64_STANDARD.encode("relay:example"));
    let mut arrived = Vec::new();
    for request in sink.requests() {
        assert_eq!(request.header("authorization"), Some(credentials.as_str()));
        let body: Vec<Value> = serde_json::from_slice(&request.decoded()).unwrap();
        arrived.extend(body);
    }
    let parsed: Vec<Value> =
        expected.iter().map(|event| serde_json::from_slice(event).unwrap()).collect();
    assert!(arrived == parsed, "{} of {} events", arrived.len(), parsed.len());
    // The pipeline expects the user and the password that the relay sends.
    let pipeline = example.read("pipeline.conf", &[]);
    assert!(pipeline.contains(r#"user => "relay""#) && pipeline.contains(r#"=> "example""#));
    relay.finish(Backlog::Empty);
}

/// Tests that need peers or root.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn rsyslog_tls_writes_each_event_as_a_line() {
        needs("openssl");
        let example = Example::copy("rsyslog-tls");
        let script = example.path("certificates.sh");
        assert_eq!(std::fs::metadata(&script).unwrap().permissions().mode() & 0o111, 0o111);
        let made = Command::new(&script).current_dir(example.directory.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let rsyslog = example.rsyslog("6514");
        let relay = example.relay(&[
            ("localhost:6514", &format!("localhost:{}", rsyslog.address().port())),
            ("\"ca.crt\"", &format!("\"{}\"", text(&example.path("ca.crt")))),
        ]);
        let expected = post(&relay);
        relay.wait_until_delivered(PATIENCE);
        assert!(example.audit_log(expected.len()) == expected);
        relay.finish(Backlog::Empty);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn rsyslog_relp_on_disk_delivers_after_a_kill_what_was_accepted_before_rsyslog_started() {
        let example = Example::copy("rsyslog-relp-on-disk");
        let spool = ("\"queue\"", &*format!("\"{}\"", text(&example.path("queue"))));
        // Nothing listens at this address yet.
        let away = format!("127.0.0.1:{}", free_port());
        let mut relay = example.relay(&[spool, ("127.0.0.1:2514", &away)]);
        let expected = post(&relay);
        relay.kill();
        let rsyslog = example.rsyslog("2514");
        let relay = example.relay(&[spool, ("127.0.0.1:2514", &rsyslog.address().to_string())]);
        relay.wait_until_delivered(PATIENCE);
        assert!(example.audit_log(expected.len()) == expected);
        relay.finish(Backlog::Empty);
    }
}
