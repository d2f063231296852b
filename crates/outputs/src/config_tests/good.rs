//! Configs without problems: the defaults, every key, the way back from the effective config, and
//! texts that must not break the reader.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::Strategy as Generator;

use super::{LISTENER, TYPES, checked, config, env, everything, files};
use crate::json_lines::LineFormat;
use crate::{http, lumberjack, relp, stdout, syslog, tcp};
use config::*;
use testing::list;

fn settings<S: OutputSettings>(output: &Output) -> &S {
    output.kind.settings().expect(S::TYPE)
}

fn stdout_as(format: LineFormat) -> OutputKind {
    OutputKind::new(stdout::Settings { format })
}

#[test]
fn the_embedded_config_is_one() {
    let checked = read_with(EMBEDDED, TYPES, &|_| None);
    assert_eq!(checked.files, [] as [PathBuf; 0]);
    let config = checked.config.unwrap();
    assert_eq!(config.listeners[0].label, "127.0.0.1:3000");
    assert_eq!(config.admin.address, "127.0.0.1:9090".parse().unwrap());
    assert_eq!(config.outputs[0].name, "stdout");
    assert_eq!(config.outputs[0].kind, stdout_as(LineFormat::Ndjson));
}

/// A config with one output of each type, as short as possible.
const SHORTEST: &str = "\
[[listener]]
address = '0.0.0.0:3000'
[[output]]
name = 'h'
type = 'http'
urls = ['https://a']
tls = {}
[[output]]
name = 't'
type = 'tcp'
addresses = ['a:1']
[[output]]
name = 's'
type = 'syslog'
addresses = ['a:1']
hostname = 'machine'
[[output]]
name = 'l'
type = 'lumberjack'
addresses = ['a:1']
[[output]]
name = 'r'
type = 'relp'
addresses = ['a:1']
hostname = 'machine'
";

/// The keys that every output has.
const COMMON: &str = r#"
[output.retry]
initial_interval = "500ms"
max_interval = "30s"
multiplier = 2.0
randomization_factor = 0.5

[output.timeouts]
connect = "5s"
request = "60s"
max_connection_age = "0s"

[output.batch]
max_bytes = "4MiB"
max_events = 5000

[output.rejected]
action = "dead_letter"
after_server_errors = "60m"
"#;

/// The keys that `tcp`, `syslog`, `lumberjack` and `relp` have in common.
const STREAM: &str = r#"addresses = ["a:1"]
strategy = "failover"
keepalive = "30s"
idle_timeout = "0s"
"#;

#[allow(clippy::too_many_lines, reason = "each type of output is there")]
#[test]
fn the_effective_config_has_the_defaults_of_the_contract() {
    let messages = r#"facility = "local0"
severity = "info"
hostname = "machine"
app_name = "kube-audit"
max_message_bytes = 0
"#;
    let expected = format!(
        r#"[[listener]]
address = "0.0.0.0:3000"
path_prefix = "/"

[limits]
max_body = "256MiB"
max_in_flight = "256MiB"
max_connections = 4096
header_timeout = "10s"
body_timeout = "30s"
idle_timeout = "5m"
max_connection_age = "15m"

[queue]
max_bytes = "256MiB"
ephemeral = false
acknowledge = "queued"
delivered_timeout = "25s"
when_full = "reject"
retry_after = "5s"

[[output]]
name = "h"
type = "http"
required = true
checkpoints = false
pause = false
urls = ["https://a"]
strategy = "failover"
format = "event_list"
accept_html = false
compression = "none"
headers = {{}}
concurrency = 4

[output.tls]
min_version = "1.2"
insecure_skip_verify = false
{COMMON}
[[output]]
name = "t"
type = "tcp"
required = true
checkpoints = false
pause = false
format = "ndjson"
replay_window = "1s"
{STREAM}{COMMON}
[[output]]
name = "s"
type = "syslog"
required = true
checkpoints = false
pause = false
framing = "octet_counting"
{messages}replay_window = "1s"
{STREAM}{COMMON}
[[output]]
name = "l"
type = "lumberjack"
required = true
checkpoints = false
pause = false
compression_level = 1
window = 2048
{STREAM}{COMMON}
[[output]]
name = "r"
type = "relp"
required = true
checkpoints = false
pause = false
{messages}window = 128
{STREAM}{COMMON}
[dead_letter]
max_bytes = "64MiB"

[admin]
address = "127.0.0.1:9090"

[volume]
enabled = true

[log]
level = "info"
format = "text"

[process]
restrict = "off"
workers = 0

[shutdown]
drain_timeout = "20s"
"#
    );
    let checked = checked(SHORTEST);
    // Receivers of syslog and relp have a limit for messages. The config sets none, so there is a
    // warning.
    let warned: Vec<_> = checked.problems.iter().map(|problem| &*problem.path).collect();
    let [syslog, relp] = [2, 4].map(|index| format!("output[{index}].filter.max_event_bytes"));
    assert_eq!(warned, [&*syslog, &*relp]);
    assert_eq!(checked.effective(), expected);
}

/// Asserts that the defaults are used. The test above compares the printed defaults.
#[test]
fn defaults_are_the_same_whether_written_or_not() {
    let short = checked(SHORTEST);
    let long = checked(&short.effective());
    assert_eq!(short.config.unwrap(), long.config.unwrap());
    assert_eq!(config(LISTENER).limits.max_body, 256 * 1024 * 1024 - 256);
}

#[test]
fn the_machines_name_is_the_default_of_syslog() {
    let keys = "addresses = ['a:1']\nmax_message_bytes = '8KiB'\n";
    let config = config(&format!("[[output]]\nname = 's'\ntype = 'syslog'\n{keys}"));
    let syslog: &syslog::Settings = settings(&config.outputs[0]);
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(syslog.messages.hostname, name.trim());
    assert_eq!(syslog.messages.priority, 16 * 8 + 6);
}

#[test]
fn every_key_is_read() {
    let dir = files();
    let checked = checked(&everything(dir.path()));
    let config = checked.config.unwrap();
    assert_eq!(config.listeners[0].label, "[::1]:3001");
    assert_eq!(config.listeners[0].tls.as_ref().unwrap().min_version, TlsVersion::V1_3);
    assert_eq!(config.limits.max_body, 2 << 20);
    assert_eq!(config.limits.max_in_flight, 4_000_000);
    assert_eq!(config.limits.max_connections, 16);
    assert_eq!(config.limits.header_timeout, Duration::from_secs(7));
    assert_eq!(config.limits.max_connection_age, None);
    assert_eq!(config.queue.directory, Some(dir.path().join("logs.example")));
    assert_eq!(config.queue.acknowledge, Acknowledge::Synced);
    assert_eq!(config.queue.when_full, WhenFull::DropOldest);
    assert_eq!(config.queue.segment_bytes, 16 << 10);
    let [http, tcp, syslog, lumberjack, relp, stdout, ..] = config.outputs.as_slice() else {
        panic!("six or more")
    };
    let http_kind = &settings::<http::Settings>(http).client;
    assert_eq!(http_kind.urls[0].expand().unwrap(), "https://a/x?y=s3cr3t");
    assert_eq!(http_kind.urls[1].expand().unwrap(), "http://logs.example:8080");
    assert_eq!(http_kind.headers["x-scope"].expand().unwrap(), "s3cr3t");
    assert_eq!(http_kind.headers["x_1"].expand().unwrap(), "tab\tand \"quotes\"");
    let basic_auth = http_kind.basic_auth.as_ref().unwrap();
    assert_eq!(basic_auth.username.expand().unwrap(), "${ logs.example");
    assert_eq!(http_kind.tls.server_name.as_deref(), Some("es.example"));
    assert_eq!((http.required, tcp.required), (false, true));
    assert_eq!(http.retry.multiplier, 1.0);
    assert_eq!(http.batch, BatchLimits { max_bytes: 1024, max_events: 1 });
    assert_eq!(http.rejected, Rejected::Drop);
    let tcp_kind: &tcp::Settings = settings(tcp);
    assert_eq!(tcp_kind.format, LineFormat::AuditLog);
    assert_eq!(tcp_kind.stream.addresses[1].to_string(), "[::1]:1");
    assert_eq!(tcp_kind.stream.tls, Some(ClientTls::default()));
    assert_eq!(tcp_kind.stream.idle_timeout, Some(Duration::from_secs(60)));
    let syslog: &syslog::Settings = settings(syslog);
    assert_eq!(syslog.messages.priority, 10 * 8 + 7);
    assert_eq!(syslog.stream.addresses[0].host, "logs.example");
    assert_eq!(syslog.messages.max_message_bytes, 8192);
    let lumberjack: &lumberjack::Settings = settings(lumberjack);
    assert_eq!((lumberjack.compression_level, lumberjack.window), (0, 65_536));
    assert_eq!(lumberjack.stream.addresses[1].to_string(), "b:5044");
    let relp: &relp::Settings = settings(relp);
    assert_eq!((relp.messages.priority, relp.window), (4 * 8 + 3, 1));
    assert_eq!(relp.stream.tls, Some(ClientTls::default()));
    assert_eq!(stdout.kind, stdout_as(LineFormat::AuditLog));
    assert_eq!((config.restrict, config.workers), (Restrict::Required, 3));
    assert_eq!(config.directory_of_state(), Some(dir.path()));
    let names: Vec<_> =
        checked.files.iter().map(|it| it.strip_prefix(dir.path()).unwrap().to_owned()).collect();
    assert_eq!(names, ["ca", "crt", "key", "token"].map(PathBuf::from));
}

#[test]
fn the_effective_config_reads_back_to_the_same() {
    let dir = files();
    let first = checked(&everything(dir.path()));
    let second = checked(&first.effective());
    let is_warning = |problem: &Problem| problem.severity == Severity::Warning;
    assert!(second.problems.iter().all(is_warning), "{:?}\n{}", second.problems, first.effective());
    assert_eq!(first.effective(), second.effective());
    assert_eq!(format!("{:?}", first.config), format!("{:?}", second.config));
    assert_eq!(first.config, second.config);
    for source in ["\"${env:SIZE}\"", "?y=${file:", "\"$${ ${env:HOST}\"", "0x10", "\"1m\""] {
        assert!(first.effective().contains(source), "{source} in {}", first.effective());
    }
}

#[test]
fn the_reference_lists_each_key_once_for_each_meaning() {
    let dir = files();
    let reference = reference(TYPES);
    let mut section = String::new();
    for line in checked(&everything(dir.path())).effective().lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.split_once(" = ") {
            let row = format!("| `{section}.{key}`");
            assert!(reference.contains(&row), "{row} is not in the reference");
        }
    }
    for row in [
        "| `output.tls.ca` (http, tcp, syslog, lumberjack, relp, kafka, splunk_hec, elasticsearch, ibm_cloud_logs, s3, loki, otlp) | path | the system's CAs | PEM",
        "| `output.retry.multiplier` | number, at least 1.0 | `2.0` |",
        "| `output.format` (tcp, stdout) | \"ndjson\" · \"audit_log\" | `\"ndjson\"` |",
        "| `output.hostname` (syslog, relp) | name | the machine's hostname |",
        "| `queue.retry_after` | time, 1s to 15s | `\"5s\"` |",
        "| `queue.directory` | path | in memory |",
        "| `queue.acknowledge` | \"queued\" · \"delivered\" · \"synced\" | `\"queued\"` |",
        "| `queue.segment_bytes` | size, 16KiB to max_bytes / 4 | the smaller of 64MiB and max_bytes / 4 |",
        "| `listener.tls` | table | plain HTTP |",
        "| `dead_letter.directory` | path | dead-letter/ in queue.directory |",
        "| `filter` | table | all events, unchanged |",
        "| `output.filter.match.resources.group` | string | `\"\"` |",
        "| `dead_letter.max_bytes` | size, at least 1MiB | `\"64MiB\"` |",
    ] {
        assert_eq!(reference.matches(row).count(), 1, "{row} in {reference}");
    }
    assert!(reference.lines().all(|line| line.matches('|').count() == 5), "{reference}");
}

#[derive(Debug, Clone)]
enum Edit {
    Delete(usize, usize),
    Insert(usize, String),
    Copy(usize, usize, usize),
}

fn edits() -> impl Generator<Value = Vec<Edit>> {
    let at = || any::<prop::sample::Index>().prop_map(|index| index.index(4000));
    let mut pieces = list(
        r#"
[|]|[[|]]|{|}|=|"|'|"""|,|.|-|ü|${|${env:|${env:HOST}|$${|}|0|99999999999999999999|1e999|nan|true
1979-05-27|listener|output|type|tls|[output.tls]|# 
"#,
    );
    pieces.extend(["\n", "\0", "\r\n"]);
    let piece = prop::sample::select(pieces);
    prop::collection::vec(
        prop_oneof![
            (at(), 0..40_usize).prop_map(|(at, len)| Edit::Delete(at, len)),
            (at(), piece).prop_map(|(at, piece)| Edit::Insert(at, piece.to_owned())),
            (at(), 0..80_usize, at()).prop_map(|(from, len, to)| Edit::Copy(from, len, to)),
        ],
        0..6,
    )
}

fn edited(text: &str, edits: &[Edit]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for edit in edits {
        let len = chars.len();
        let range = |at: usize, count: usize| at.min(len)..at.saturating_add(count).min(len);
        match edit {
            Edit::Delete(at, count) => drop(chars.drain(range(*at, *count))),
            Edit::Insert(at, piece) => {
                chars.splice(range(*at, 0), piece.chars());
            }
            Edit::Copy(from, count, to) => {
                let copy = chars[range(*from, *count)].to_vec();
                chars.splice(range(*to, 0), copy);
            }
        }
    }
    chars.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: testing::cases(300), ..ProptestConfig::default() })]

    #[test]
    fn no_text_is_too_broken_to_be_read(edits in edits()) {
        // The paths do not exist, so that an edit can't name an existing file by chance.
        let text = edited(&everything(Path::new("/no/such/directory")), &edits);
        let found = read_with(&text, TYPES, &env);
        let lines = text.split('\n').count();
        for problem in &found.problems {
            prop_assert!((1..=lines).contains(&problem.line), "{problem:?}");
            prop_assert!(!problem.render("f").contains('\n'), "{problem:?}");
        }
        let failed = found.problems.iter().any(|it| it.severity == Severity::Error);
        prop_assert!(!(failed && found.config.is_some()));
        if !failed {
            let again = read_with(&found.effective(), TYPES, &env);
            prop_assert_eq!(&again.config, &found.config);
            prop_assert_eq!(again.effective(), found.effective());
        }
    }

    #[test]
    fn arbitrary_text_is_read_too(text in "\\PC*") {
        prop_assert!(!read_with(&text, TYPES, &env).problems.is_empty());
    }
}
