//! Tests each class of problem, with its position. The problems of `[queue]` are in `queue.rs`; the
//! configs without problems are in `good.rs`.

mod filter;
mod good;
#[cfg(feature = "kafka")]
mod kafka;
mod queue;
mod types;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::TYPES;
use config::*;

const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
const OUTPUT: &str = "[[output]]\nname = \"out\"\ntype = \"stdout\"\n";

fn env(name: &str) -> Option<String> {
    match name {
        "SIZE" => Some("2MiB".to_owned()),
        "TIME" => Some("7s".to_owned()),
        "HOST" => Some("logs.example".to_owned()),
        "BAD" => Some("hunter2".to_owned()),
        _ => None,
    }
}

/// Reads a config. Adds a listener and an output to the end of the text if it has none.
fn checked(text: &str) -> Checked {
    let mut text = text.to_owned();
    if !text.contains("listener") {
        text.push_str(LISTENER);
    }
    if !text.contains("output") {
        text.push_str(OUTPUT);
    }
    read_with(&text, TYPES, &env)
}

fn config(text: &str) -> Config {
    let checked = checked(text);
    assert_eq!(checked.problems, [], "{text}");
    checked.config.expect("no problems")
}

fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["crt", "key", "ca"] {
        std::fs::write(dir.path().join(name), "pem").unwrap();
    }
    std::fs::write(dir.path().join("token"), "s3cr3t\n").unwrap();
    dir
}

/// Every key, at another value than its default.
const EVERYTHING: &str = r#"
[[listener]]
address = "[::1]:3001"
path_prefix = "/audit"
bearer_token_file = "DIR/token"
[listener.tls]
certificate = "DIR/crt"
private_key = "DIR/key"
client_ca = "DIR/ca"
optional = true
min_version = "1.3"
[[listener]]
address = "127.0.0.1:0"
[[listener]]
address = "127.0.0.1:0"
[limits]
max_body = "${env:SIZE}"
max_in_flight = "${env:UNSET:-4MB}"
max_connections = 0x10
header_timeout = "${env:TIME}"
body_timeout = "1m"
idle_timeout = "2h"
max_connection_age = "0s"
[queue]
max_bytes = 100_000_000
directory = "DIR/${env:HOST}"
ephemeral = true
acknowledge = "synced"
delivered_timeout = "29s"
when_full = "drop_oldest"
retry_after = "1s"
segment_bytes = "16KiB"
[filter]
policy = "DIR/ca"
max_event_bytes = "1MiB"
deduplicate = "2h"
annotate = { region = "${env:HOST}" }
match = { verbs = ["get"], non_resource_urls = ["/healthz*"] }
redact = []
[[output]]
name = "es-1"
type = "http"
required = false
urls = ["https://a/x?y=${file:DIR/token}", "http://${env:HOST}:8080", "$${x"]
strategy = "round_robin"
format = "ndjson"
accept_html = true
compression = "zstd"
headers = { X-Scope = "${file:DIR/token}", "x_1" = "tab\tand \"quotes\"" }
concurrency = 1
proxy = "http://u:${file:DIR/token}@${env:HOST}:3128"
basic_auth = { username = "u ${env:HOST}", password_file = "DIR/token" }
retry = { initial_interval = "1ms", max_interval = "1ms", multiplier = 1, randomization_factor = 0 }
timeouts = { connect = "1s", request = "24h", max_connection_age = "10m" }
batch = { max_bytes = 1024, max_events = 1 }
rejected.action = "drop"
[output.tls]
ca = "DIR/ca"
certificate = "DIR/crt"
private_key = "DIR/key"
server_name = "es.example"
min_version = "1.3"
[[output]]
name = "logstash"
type = "tcp"
addresses = ["10.0.0.5:5000", "[::1]:1"]
strategy = "round_robin"
format = "audit_log"
keepalive = "1s"
idle_timeout = "1m"
replay_window = "10ms"
rejected = { action = "retry" }
tls = {}
[[output]]
name = "rsyslog"
type = "syslog"
addresses = ["${env:HOST}:6514"]
framing = "newline"
facility = "authpriv"
severity = "debug"
hostname = "h"
app_name = "a"
max_message_bytes = "8KiB"
[[output]]
name = "beats"
type = "lumberjack"
addresses = ["a:5044", "b:5044"]
strategy = "round_robin"
compression_level = 0
window = 65536
keepalive = "1s"
idle_timeout = "30s"
tls = {}
[[output]]
name = "relp"
type = "relp"
addresses = ["a:2514"]
facility = "auth"
severity = "err"
hostname = "h"
app_name = "a"
max_message_bytes = "8KiB"
window = 1
tls = {}
[[output]]
name = "stdout"
type = "stdout"
format = "audit_log"
[output.filter]
policy = "DIR/key"
max_event_bytes = 2000
deduplicate = "1s"
annotate = { cluster = "a b", "x.y" = "$${z" }
redact = [{ fields = ["requestObject.data.*"] }, { resources = ["apps/*"], fields = ['annotations["a.b"]'], with = "sha256" }]
[[output.filter.match]]
users = ["u"]
user_groups = ["g"]
namespaces = [""]
[[output.filter.match.resources]]
group = "apps"
resources = ["deployments"]
resource_names = ["web"]
[[output.filter.match.resources]]
group = "*"
[[output.filter.match]]
verbs = ["delete"]
[[output]]
name = "search"
type = "elasticsearch"
urls = ["https://search.example.com:9200/"]
index = "logs-kubernetes.audit_logs-default"
api_key_file = "DIR/token"
[[output]]
name = "cloud"
type = "ibm_cloud_logs"
urls = ["https://instance.ingress.eu-de.logs.cloud.ibm.com"]
trusted_profile = { id = "Profile-1", token_file = "DIR/token" }
iam_url = "https://private.iam.cloud.ibm.com"

[[output]]
name = "loki"
type = "loki"
urls = ["https://loki.example.com:3100/"]
tenant = "team-a"
labels = { cluster = "prod" }
timestamp = "received"
metadata = false
[[output]]
name = "collector"
type = "otlp"
urls = ["https://collector.example.com:4318/"]
resource = { "k8s.cluster.name" = "prod" }

[dead_letter]
max_bytes = "64MiB"
[admin]
address = "[::]:0"
probe_address = "[::]:9091"
bearer_token_file = "DIR/token"
metrics_token_file = "DIR/token"
tap_token_file = "DIR/token"
[admin.tls]
certificate = "DIR/crt"
private_key = "DIR/key"
client_ca = "DIR/ca"
min_version = "1.3"
[volume]
enabled = false
[log]
level = "trace"
format = "json"
[process]
restrict = "required"
workers = 3
state_directory = "DIR"
[shutdown]
drain_timeout = "1ms"
"#;

fn everything(dir: &Path) -> String {
    // `$${x` is not a URL, so it is removed. The user name gets an escape instead, which the
    // effective config must keep.
    let text = EVERYTHING.replace(r#", "$${x"]"#, "]").replace(r#""u ${env"#, r#""$${ ${env"#);
    text.replace("DIR", dir.to_str().unwrap())
}

/// Asserts that the problems of the text are these lines, in this order: `LINE:COLUMN: key.path:
/// message`. A message is compared up to the length of the expected one.
#[track_caller]
fn assert_problems(text: &str, expected: &str) {
    let checked = checked(text);
    let found: Vec<_> = checked.problems.iter().map(|it| it.render("f").split_off(2)).collect();
    let expected: Vec<_> = expected.lines().collect();
    let same = found.len() == expected.len()
        && found.iter().zip(&expected).all(|(found, expected)| found.starts_with(expected));
    assert!(same, "{text}\nfound {found:#?}\nexpected {expected:#?}");
    let failed = checked.problems.iter().any(|it| it.severity == Severity::Error);
    assert!(!(failed && checked.config.is_some()), "an error and a config:\n{text}");
}

/// Calls [`assert_problems`] for an output of the type `kind`. The first of `lines` is line 5 of
/// the text.
#[track_caller]
fn assert_in_output(kind: &str, lines: &str, expected: &str) {
    let place = match kind {
        "http" | "loki" | "otlp" => "urls = [\"https://a/\"]",
        "stdout" => "",
        _ => "addresses = [\"a:1\"]",
    };
    // Without this limit, which is Loki's default, there would be a warning about large events.
    let limit = "\n[filter]\nmax_event_bytes = '256kB'\n";
    let text = format!("[[output]]\nname = \"o\"\ntype = \"{kind}\"\n{place}\n{lines}{limit}");
    assert_problems(&text, expected);
}

#[test]
fn loki_and_otlp_take_only_what_their_consumers_take() {
    assert_in_output(
        "loki",
        "tenant = 'a/b'\nheaders = { X-Scope-OrgID = 'a' }\ncompression = 'zstd'\ntimestamp = 'now'\n",
        r#"5:10: output[0].tenant: is not a tenant, allowed: 1 to 150 letters
5:10: output[0].tenant: conflicts with the header `x-scope-orgid`: set only one of the two
7:15: output[0].compression: is not supported by Loki, allowed: "none", "gzip"
8:13: output[0].timestamp: "now" is unknown, allowed: "event", "received""#,
    );
    assert_in_output(
        "loki",
        "[output.labels]\n1a = 'x'\n__b = 'x'\nverb = 'x'\nlog_type = 'x'\n\"a.b\" = 'x'\nc = ''\nd_1 = 'x'\n",
        r#"6:1: output[0].labels.1a: "1a" is not a label, allowed:
7:1: output[0].labels.__b: "__b" is not a label, allowed:
8:1: output[0].labels.verb: "verb" is set by the relay itself
9:1: output[0].labels.log_type: "log_type" is set by the relay itself
10:1: output[0].labels."a.b": "a.b" is not a label, allowed:
11:5: output[0].labels.c: "" is not a valid label value, allowed:"#,
    );
    let labels: String = (0..14).map(|number| format!("l{number} = 'x'\n")).collect();
    assert_in_output(
        "loki",
        &format!("[output.labels]\n{labels}"),
        "5:1: output[0].labels: has too many labels, allowed: at most 13",
    );
    assert_in_output(
        "otlp",
        "resource = { \"a b\" = 'x', c = 1 }\n",
        r#"5:14: output[0].resource."a b": "a b" is not a valid name, allowed:
5:31: output[0].resource.c: is a"#,
    );
    let text = "[[output]]\nname = 'o'\ntype = 'otlp'\nurls = ['https://a/']\n";
    let limits = BatchLimits { max_bytes: 4_000_000, max_events: 5000 };
    assert_eq!(checked(text).config.unwrap().outputs[0].batch, limits);
}

#[test]
fn nothing_is_said_of_the_sample_from_which_the_reference_is_made_but_what_is_missing() {
    for problem in read_with(&sample(TYPES), TYPES, &|_| None).problems {
        let expected = ["is required", "this binary was built without kafka"];
        let known = expected.iter().any(|known| problem.message.starts_with(known));
        assert!(known, "{problem:?}");
    }
}

#[test]
fn what_is_not_toml_is_reported_line_by_line_and_what_follows_from_it_is_not() {
    assert_problems(
        "[limits]\nmax_body = 64MiB\nmax_conections = 5\nidle_timeout =\n[queue\nmax_bytes = 1\n",
        r"2:12: not TOML: string values must be quoted
3:1: limits.max_conections: unknown key
4:15: not TOML: string values must be quoted
5:7: not TOML: unclosed table",
    );
    assert_problems("[[output]]\nname = \n", "2:8: not TOML: ");
    assert_problems("[log]\nlevel = 'info'\nlevel = 'warn'\n", "3:1: not TOML: duplicate key");
    let rendered = read_with("x", TYPES, &|_| None).problems[0].render("a.toml");
    assert_eq!(rendered, "a.toml:1:2: not TOML: key with no value, expected `=`");
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    assert_problems(
        "[limits]\n  max_bdy = 1\n",
        "2:3: limits.max_bdy: unknown key `max_bdy`, did you mean `max_body`?",
    );
    assert_problems(
        "lmits.max_body = 1\nx = 1\n[shutdown]\n\"a b\" = 1\n",
        r#"1:1: lmits: unknown key `lmits`, did you mean `limits`?
2:1: x: unknown key `x`, allowed: listener, source, limits, queue, filter, output, dead_letter, evidence, admin, volume, log, process, shutdown
4:1: shutdown."a b": unknown key `"a b"`, allowed: drain_timeout"#,
    );
    assert_in_output(
        "tcp",
        "[output.retry]\nmultplier = 2\n",
        "6:1: output[0].retry.multplier: unknown key `multplier`, did you mean `multiplier`?",
    );
    assert_problems(
        "[[listener]]\naddress = '0.0.0.0:1'\n[listener.tls.x]\n",
        r"3:11: listener[0].tls.certificate: is required
3:11: listener[0].tls.private_key: is required
3:15: listener[0].tls.x: unknown key",
    );
}

#[test]
fn columns_count_characters_and_lines_any_line_break() {
    assert_problems(
        "\u{feff}# ü\r\n[log]\r\nformat = { \"ü\" = 'ü', x = 1 }\r\n[admin]\r\naddress = \"ü\"\r\n",
        r#"3:10: log.format: is a table, allowed: one of
5:11: admin.address: "ü" is not IP"#,
    );
    assert_in_output(
        "http",
        "headers = { \"ü\" = 'a', x = \"\u{1F600}\", y = \"\\n\" }\n",
        r#"5:13: output[0].headers."ü": "ü" is not a header name
5:28: output[0].headers.x: is not a header value
5:37: output[0].headers.y: is not a header value"#,
    );
}

#[test]
fn another_type_of_value_is_refused() {
    assert_problems(
        "[limits]\nmax_body = true\nmax_connections = \"1\"\nidle_timeout = 5\n\
         [queue]\nwhen_full = 1\nmax_bytes = 1.5\n[log]\nlevel = []\n[admin]\naddress = 1979-05-27\n",
        r#"2:12: limits.max_body: is a boolean, allowed: a size such as "64MiB", or a number
3:19: limits.max_connections: is a string, allowed: an integer, 1 to 1048576
4:16: limits.idle_timeout: is an integer, allowed: a time such as "10s"
6:13: queue.when_full: is an integer, allowed: one of "reject"
7:13: queue.max_bytes: is a float, allowed: a size
9:9: log.level: is an array, allowed: one of "error"
11:11: admin.address: is a date, allowed: a string"#,
    );
    assert_problems(
        "limits = 1\n[listener]\naddress = 1\n[output]\n",
        r"1:10: limits: is an integer, allowed: a table
2:1: listener: is a table, allowed: one or more [[listener]]
3:11: listener[0].address: is an integer, allowed: a string
4:1: output: is a table, allowed: one or more [[output]]
4:1: output[0].name: is required
4:1: output[0].type: is required",
    );
    assert_problems(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[output.siem]\ntype = \"stdout\"\n",
        "3:2: output: is a table, allowed: one or more [[output]]",
    );
    assert_problems(
        "listener = []\noutput = [1]\n",
        r"1:12: listener: is required: one or more [[listener]]
2:11: output[0]: is an integer, allowed: one or more [[output]]",
    );
    assert_in_output(
        "http",
        "headers = []\nbasic_auth = 1\nretry.multiplier = '2'\ntls.insecure_skip_verify = 1\n\
         tls.ca = 1\nretry.randomization_factor = 0x1\n",
        r"5:11: output[0].headers: is an array, allowed: table
6:14: output[0].basic_auth: is an integer, allowed: a table
7:20: output[0].retry.multiplier: is a string, allowed: a number
8:28: output[0].tls.insecure_skip_verify: is an integer, allowed: true or false
9:10: output[0].tls.ca: is an integer, allowed: a path
10:30: output[0].retry.randomization_factor: is an integer, allowed: a number",
    );
    let text = "[[output]]\nname = 'o'\ntype = 'tcp'\naddresses = 'a:1'\n\
                [[output]]\nname = 'p'\ntype = 'tcp'\naddresses = ['a:1', 2]\n";
    assert_problems(
        text,
        r"4:13: output[0].addresses: is a string, allowed: an array of strings
8:21: output[1].addresses[1]: is an integer, allowed: a string",
    );
}

#[test]
fn what_is_required_is_missed_at_the_header() {
    let missing = ["1:1: listener: is required", "1:1: output: is required"];
    let found: Vec<_> =
        read_with("", TYPES, &env).problems.iter().map(|it| it.render("")).collect();
    assert!(found.iter().zip(missing).all(|(found, it)| found.starts_with(&format!(":{it}"))));
    assert_problems(
        "[limits]\n[[listener]]\n  [listener.tls]\n[[output]]\n[[output]]\ntype = 'http'\nname = 'h'\n\
         basic_auth = {}\n[[output]]\ntype = 'syslog'\nname = 's'\n",
        r"2:1: listener[0].address: is required
3:3: listener[0].tls.certificate: is required
3:3: listener[0].tls.private_key: is required
4:1: output[0].name: is required
4:1: output[0].type: is required
5:1: output[1].urls: is required
8:14: output[1].basic_auth.password_file: is required
8:14: output[1].basic_auth.username: is required
9:1: output[2].addresses: is required",
    );
}

#[test]
fn values_out_of_range_say_the_range() {
    assert_problems(
        "[limits]\nmax_body = 1023\nmax_in_flight = 1023\nmax_connections = 0\nheader_timeout = '0s'\n\
         body_timeout = '0ms'\nidle_timeout = '0h'\nmax_connection_age = '9000h'\n\
         [queue]\nmax_bytes = 1023\ndelivered_timeout = '0s'\nretry_after = '16s'\n\
         [shutdown]\ndrain_timeout = '9000h'\n",
        r#"2:12: limits.max_body: 1023 is out of range, allowed: at least 1KiB
3:17: limits.max_in_flight: 1023 is out of range, allowed: at least 1KiB
4:19: limits.max_connections: 0 is out of range, allowed: 1 to 1048576
5:18: limits.header_timeout: "0s" is out of range, allowed: at least 1ms
6:16: limits.body_timeout: 
7:16: limits.idle_timeout: 
8:22: limits.max_connection_age: "9000h" is too long, allowed: at most 8760h
10:13: queue.max_bytes: 1023 is out of range, allowed: at least 1KiB
11:21: queue.delivered_timeout: "0s" is out of range, allowed: at least 1ms
12:15: queue.retry_after: "16s" is out of range, allowed: 1s to 15s
14:17: shutdown.drain_timeout: "#,
    );
    assert_in_output(
        "http",
        "concurrency = 257\nbatch = { max_events = 0, max_bytes = -1 }\n\
         retry = { multiplier = 0.99, randomization_factor = 1.01, initial_interval = '0s' }\n\
         timeouts = { connect = '0s', request = '0s' }\n",
        r#"5:15: output[0].concurrency: 257 is out of range, allowed: 1 to 256
6:24: output[0].batch.max_events: 0 is out of range, allowed: 1 to
6:39: output[0].batch.max_bytes: -1 is out of range, allowed: a size
7:24: output[0].retry.multiplier: 0.99 is out of range, allowed: at least 1.0
7:53: output[0].retry.randomization_factor: 1.01 is out of range, allowed: 0.0 to 1.0
7:78: output[0].retry.initial_interval: "0s" is out of range
8:24: output[0].timeouts.connect: "0s"
8:40: output[0].timeouts.request: "0s""#,
    );
    assert_in_output(
        "tcp",
        "retry.multiplier = inf\nretry.randomization_factor = nan\n",
        r"5:20: output[0].retry.multiplier: inf is out of range
6:30: output[0].retry.randomization_factor: nan is out of range",
    );
    assert_in_output(
        "tcp",
        "keepalive = '999ms'\nreplay_window = '301s'\n",
        r#"5:13: output[0].keepalive: "999ms" is out of range, allowed: 1s to 32767s
6:17: output[0].replay_window: "301s" is out of range, allowed: "#,
    );
}

#[test]
fn words_that_are_none_say_which_are() {
    assert_problems(
        "[limits]\nmax_body = '64 MiB'\nmax_in_flight = 'lots'\nidle_timeout = '10'\nbody_timeout = ''\n\
         [queue]\nacknowledge = 'Queued'\nwhen_full = 'block'\n[log]\nformat = 'jsn'\n",
        r#"2:12: limits.max_body: "64 MiB" is not a size, allowed: a whole number of bytes
3:17: limits.max_in_flight: "lots" is not a size
4:16: limits.idle_timeout: "10" is not a time, allowed: a whole number with ms, s, m or h
5:16: limits.body_timeout: "" is not a time
7:15: queue.acknowledge: "Queued" is unknown, did you mean "queued"? Allowed: "queued", "delivered"
8:13: queue.when_full: "block" is unknown, allowed: "reject", "drop_oldest", "drop_newest"
10:10: log.format: "jsn" is unknown, did you mean "json"?"#,
    );
    assert_in_output(
        "syslog",
        "facility = 'local8'\nseverity = 'warn'\nframing = ''\nhostname = 'a b'\napp_name = ''\n\
         tls = { server_name = 'a b', min_version = '1.1' }\n",
        r#"5:12: output[0].facility: "local8" is unknown, did you mean "local0"?
6:12: output[0].severity: "warn" is unknown, 
7:11: output[0].framing: "" is unknown, allowed: "octet_counting", "newline"
8:12: output[0].hostname: "a b" is not a valid name, allowed: 1 to 255 printable ASCII
9:12: output[0].app_name: "" is not a valid name, allowed: 1 to 48 printable ASCII
10:23: output[0].tls.server_name: "a b" is not a server name
10:44: output[0].tls.min_version: "1.1" is unknown, did you mean "1.2"? Allowed: "1.2", "1.3""#,
    );
    assert_in_output(
        "syslog",
        &format!("app_name = '{}'\n", "x".repeat(49)),
        r#"5:12: output[0].app_name: "xxxxxxxxxx"#,
    );
}

#[test]
fn addresses_names_and_urls_are_checked() {
    assert_problems(
        "[[listener]]\naddress = ':3000'\npath_prefix = 'audit'\n[[listener]]\naddress = 'localhost:1'\n\
         path_prefix = ''\n",
        r#"2:11: listener[0].address: ":3000" is not IP:PORT, allowed: an address such as "0.0.0.0:3000"
3:15: listener[0].path_prefix: "audit" must begin with "/"
5:11: listener[1].address: "localhost:1" is not IP:PORT
6:15: listener[1].path_prefix: "" must begin with"#,
    );
    let mut text = String::new();
    for name in ["", "A", "-a", "a_b", "queue"] {
        text.push_str(&format!("[[output]]\nname = '{name}'\ntype = 'tcp'\naddresses = []\n"));
    }
    assert_problems(
        &text,
        r#"2:8: output[0].name: "" is not a name, allowed: 1 to 63
4:13: output[0].addresses: is empty, allowed: at least one
6:8: output[1].name: 
8:13: output[1].addresses: 
10:8: output[2].name: 
12:13: output[2].addresses: 
14:8: output[3].name: 
16:13: output[3].addresses: 
18:8: output[4].name: "queue" is the name of the queue
20:13: output[4].addresses: "#,
    );
    assert_problems(
        "[[output]]\nname = 'o'\ntype = 'tcp'\naddresses = ['a', '::1:1', 'a:0', 'http://a:1', '[::1]:1']\n\
         [[output]]\nname = 'p'\ntype = 'http'\n\
         urls = ['a', 'ftp://a', 'https://u:sesame@a/', 'https://a/', 'http://']\n",
        r#"4:14: output[0].addresses[0]: "a" has no port, allowed: host:port
4:19: output[0].addresses[1]: "::1:1" has more than one colon
4:28: output[0].addresses[2]: "a:0" has a port that is not 1 to 65535
4:35: output[0].addresses[3]: "http://a:1" has more than one colon
8:9: output[1].urls[0]: is not a URL (relative URL without a base), allowed: http://
8:14: output[1].urls[1]: has a scheme that is not http or https
8:25: output[1].urls[2]: has a user name or password in it, use basic_auth
8:62: output[1].urls[4]: is not a URL (empty host)"#,
    );
    for (proxy, wrong) in [
        ("p", "is not a URL (relative URL without a base), allowed: http://[USER:PASSWORD@]HOST"),
        ("https://p", "has a scheme that is not http, allowed: http://"),
        ("http://p:0", "has port 0, allowed: http://"),
        ("http://u:sesame@p/x", "has more than a host and a port, allowed: http://"),
        ("http://p?x", "has more than a host and a port"),
    ] {
        let expected = format!("5:9: output[0].proxy: {wrong}");
        assert_in_output("http", &format!("proxy = '{proxy}'\n"), &expected);
    }
}

#[test]
fn headers_that_are_ours_or_none_are_refused() {
    assert_in_output(
        "http",
        "headers = { Host = 'a', content-length = '1', Transfer-Encoding = 'a', connection = 'a', \
         content-type = 'a', content-encoding = 'a' }\n",
        r#"5:13: output[0].headers.Host: "Host" is set by the relay itself
5:25: output[0].headers.content-length: 
5:47: output[0].headers.Transfer-Encoding: 
5:72: output[0].headers.connection: 
5:90: output[0].headers.content-type: 
5:110: output[0].headers.content-encoding: "#,
    );
    assert_in_output(
        "http",
        "[output.headers]\nX-A = 'a'\nx-a = 'b'\n\"a b\" = 1\n",
        r#"7:1: output[0].headers.x-a: "x-a" appears twice
8:1: output[0].headers."a b": "a b" is not a header name
8:9: output[0].headers."a b": is an integer, allowed: a string"#,
    );
}

#[test]
fn keys_of_another_type_of_output_say_whose_they_are() {
    assert_in_output(
        "tcp",
        "urls = 1\nframing = 'newline'\nwindow = 1\nfoo = 1\n",
        r"5:1: output[0].urls: type tcp has no key `urls`, allowed only for: http
6:1: output[0].framing: type tcp has no key `framing`, allowed only for: syslog
7:1: output[0].window: type tcp has no key `window`, allowed only for: lumberjack, relp
8:1: output[0].foo: unknown key `foo`",
    );
    assert_in_output(
        "syslog",
        "format = 'ndjson'\nproxy = 1\n",
        r"5:1: output[0].format: type syslog has no key `format`, allowed only for: http, tcp, stdout
6:1: output[0].proxy: type syslog has no key `proxy`, allowed only for: http",
    );
    assert_in_output(
        "http",
        "addresses = []\nreplay_window = '1s'\n",
        r"5:1: output[0].addresses: type http has no key `addresses`, allowed only for: tcp, syslog, lumberjack, relp
6:1: output[0].replay_window: type http has no key `replay_window`, allowed only for: tcp, syslog",
    );
    assert_in_output(
        "stdout",
        "strategy = 'failover'\n[output.tls]\n",
        r"5:1: output[0].strategy: type stdout has no key `strategy`, allowed only for: http, tcp, syslog, lumberjack, relp
6:9: output[0].tls: type stdout has no key `tls`, allowed only for: http, splunk_hec, elasticsearch, ibm_cloud_logs, s3, loki, otlp, tcp, syslog, lumberjack, relp",
    );
}

#[test]
fn an_unknown_type_is_one_problem_and_what_no_type_knows_another() {
    assert_in_output(
        "htp",
        "urls = 1\nfoo = 1\nretry.multiplier = 0\n",
        r#"3:8: output[0].type: "htp" is unknown, did you mean "http"?
6:1: output[0].foo: unknown key `foo`
7:20: output[0].retry.multiplier: "#,
    );
}

#[test]
fn never_is_no_time() {
    assert_in_output(
        "tcp",
        "timeouts.max_connection_age = 'never'\n",
        r#"5:31: output[0].timeouts.max_connection_age: "never" is not a time"#,
    );
}

#[test]
fn dead_letters_have_a_place_of_their_own_or_one_in_the_queues_directory() {
    let place = |text: &str| {
        let config = config(text);
        (config.dead_letter_directory(), config.dead_letter.max_bytes)
    };
    assert_eq!(place(""), (None, 64 << 20));
    let queue = "[queue]\ndirectory = '/q'\n";
    let below = place(&format!("{queue}[dead_letter]\nmax_bytes = '1MiB'\n"));
    assert_eq!(below, (Some(PathBuf::from("/q/dead-letter")), 1 << 20));
    let own = place(&format!("{queue}[dead_letter]\ndirectory = '/d'\n"));
    assert_eq!(own.0, Some(PathBuf::from("/d")));
    assert_problems(
        "[dead_letter]\ndirectory = ''\nmax_bytes = 1048575\nx = 1\n",
        r#"2:13: dead_letter.directory: "" is empty
3:13: dead_letter.max_bytes: 1048575 is out of range, allowed: at least 1MiB
4:1: dead_letter.x: unknown key"#,
    );
}

#[test]
fn dead_letters_that_are_asked_for_without_a_place_are_warned_of_once() {
    let output = |name: &str| {
        format!(
            "[[output]]\nname = '{name}'\ntype = 'http'\nurls = ['https://a/']\n\
             rejected.action = 'dead_letter'\n"
        )
    };
    let two = output("a") + &output("b");
    let warning = "5:19: output[0].rejected.action: warning: needs dead_letter.directory or";
    assert_problems(&two, warning);
    assert!(checked(&two).config.is_some());
    config(&format!("{two}[dead_letter]\ndirectory = '/d'\n"));
    config(&format!("{two}[queue]\ndirectory = '/d'\n"));
}

#[test]
fn a_receiver_with_a_limit_for_events_is_warned_of_until_the_limit_is_known() {
    for (lines, words) in [
        ("type = 'loki'", "By default, Loki rejects events over 256 KB"),
        ("type = 'splunk_hec'\ntoken_file = '/proc/self/status'", "Splunk acknowledges events"),
        ("type = 'ibm_cloud_logs'\napi_key_file = '/proc/self/status'", "IBM Cloud Logs accepts"),
    ] {
        let output = format!("[[output]]\nname = 'a'\nurls = ['https://a/']\n{lines}\n");
        let key = "output[0].filter.max_event_bytes";
        let warning = format!("1:1: {key}: warning: is not set. {words}");
        assert_problems(&output, &warning);
        assert!(checked(&output).config.is_some(), "{lines}");
        assert_problems(&format!("{output}filter = {{ max_event_bytes = '1MiB' }}\n"), "");
        assert_problems(&format!("{output}[filter]\nmax_event_bytes = '1MiB'\n"), "");
    }
    let splunk = "[[output]]\nname = 'a'\ntype = 'splunk_hec'\nurls = ['https://a/']\n\
                  token_file = '/proc/self/status'\nsourcetype = 'kube:audit'\n";
    assert_problems(splunk, "");
}

#[test]
fn max_elapsed_has_ended_and_the_message_says_what_to_set() {
    assert_in_output(
        "tcp",
        "retry.max_elapsed = '24h'\n",
        "5:7: output[0].retry.max_elapsed: this key has ended: remove it.",
    );
}

#[test]
fn concurrency_of_s3_has_ended_and_the_message_says_what_the_relay_does() {
    assert_problems(
        "[[output]]\nname = 'a'\ntype = 's3'\nurls = ['https://a/']\nbucket = 'abc'\n\
         region = 'eu'\naccess_key_id_file = '/proc/self/status'\nsecret_access_key_file = '/proc/self/status'\n\
         concurrency = 8\n",
        "9:1: output[0].concurrency: this key has ended: remove it. It had no effect: an s3 output",
    );
}

#[test]
fn at_least_one_output_is_required() {
    let output = |name: &str, required: &str| {
        format!("[[output]]\nname = '{name}'\ntype = 'tcp'\naddresses = ['a:1']\n{required}\n")
    };
    let none = [output("a", "required = false"), output("b", "required = false")].concat();
    assert_problems(
        &none,
        "5:12: output[0].required: is false for every output: at least one output must",
    );
    assert_problems(
        &[output("a", "required = 1"), output("b", "required = false")].concat(),
        "5:12: output[0].required: is an integer, allowed: true or false",
    );
    let one = config(&[output("a", "required = false"), output("b", "")].concat());
    let required: Vec<_> = one.outputs.iter().map(|output| output.required).collect();
    assert_eq!(required, [false, true]);
    // No response waits for an optional output, so the times of the output contradict nothing.
    let delivered = "[queue]\nacknowledge = 'delivered'\ndelivered_timeout = '1s'\n";
    let stdout = "[[output]]\nname = 'b'\ntype = 'stdout'\n";
    config(&format!("{delivered}{}{stdout}", output("a", "required = false")));
}

#[test]
fn contradictions_are_found() {
    assert_problems(
        "[[listener]]\naddress = '127.0.0.1:1'\n[[listener]]\naddress = '127.0.0.1:1'\n\
         [[listener]]\naddress = '127.0.0.1:9090'\n",
        r"4:11: listener[1].address: uses the same port as listener[0].address (line 2): choose
6:11: listener[2].address: uses the same port as the default of admin.address",
    );
    assert_problems(
        "[[listener]]\naddress = '[::1]:1'\n[admin]\naddress = '[0::1]:1'\n",
        "4:11: admin.address: uses the same port as listener[0].address",
    );
    // Linux refuses these pairs of addresses, as attempts with bind(2) show.
    for other in ["0.0.0.0", "127.0.0.1", "[::1]"] {
        assert_problems(
            &format!("[[listener]]\naddress = '[::]:1'\n[admin]\naddress = '{other}:1'\n"),
            "4:11: admin.address: uses the same port as listener[0].address",
        );
    }
    config("[[listener]]\naddress = '[::1]:1'\n[admin]\naddress = '0.0.0.0:1'\n");
    assert_problems(
        "[queue]\nacknowledge = 'delivered'\nwhen_full = 'drop_oldest'\n",
        r#"3:13: queue.when_full: conflicts with acknowledge = "delivered""#,
    );
    let output = "[[output]]\nname = 'a'\ntype = 'tcp'\naddresses = ['a:1']\n";
    assert_problems(
        &format!("[queue]\nacknowledge = 'delivered'\ndelivered_timeout = '1s'\n{output}"),
        r#"3:21: queue.delivered_timeout: must be longer than replay_window of output "a" (line 4) with queue.acknowledge = "delivered", allowed: more than 1s"#,
    );
    assert_problems(
        &format!("[queue]\nacknowledge = 'delivered'\n{output}replay_window = '25s'\n"),
        r#"7:17: output[0].replay_window: must be shorter than queue.delivered_timeout with queue.acknowledge = "delivered", allowed: less than 25s"#,
    );
    config(&format!("[queue]\nacknowledge = 'queued'\n{output}replay_window = '25s'\n"));
    assert_problems(
        "[[output]]\nname = 'a'\ntype = 'stdout'\n[[output]]\nname = 'a'\ntype = 'stdout'\n",
        r#"5:8: output[1].name: duplicate name, also used by output "a" (line 1)
6:8: output[1].type: output "a" (line 1) already writes to stdout: only one"#,
    );
    assert_in_output(
        "tcp",
        "retry.initial_interval = '31s'\n",
        "5:26: output[0].retry.initial_interval: is longer than max_interval",
    );
    assert_in_output(
        "tcp",
        "retry.max_interval = '499ms'\n",
        "5:22: output[0].retry.max_interval: is shorter than initial_interval",
    );
    assert_in_output(
        "tcp",
        "[output.tls]\ninsecure_skip_verify = true\n",
        "6:24: output[0].tls.insecure_skip_verify: warning: certificates are not verified",
    );
    let dir = files();
    let dir = dir.path().display();
    assert_in_output(
        "tcp",
        &format!("[output.tls]\ncertificate = '{dir}/crt'\n"),
        "6:15: output[0].tls.certificate: needs private_key too",
    );
    assert_in_output(
        "tcp",
        &format!("[output.tls]\nprivate_key = '{dir}/key'\n"),
        "6:15: output[0].tls.private_key: needs certificate too",
    );
    let basic = format!("basic_auth = {{ username = 'u', password_file = '{dir}/token' }}\n");
    let bearer = format!("bearer_token_file = '{dir}/token'\n");
    let header = "headers = { Authorization = 'x' }\n";
    assert_in_output(
        "http",
        &format!("{basic}{bearer}"),
        "5:14: output[0].basic_auth: conflicts with bearer_token_file",
    );
    assert_in_output(
        "http",
        &format!("{bearer}{header}"),
        "5:21: output[0].bearer_token_file: conflicts with the header `authorization`",
    );
    assert_in_output(
        "http",
        &format!("{basic}{header}"),
        "5:14: output[0].basic_auth: conflicts with the header `authorization`",
    );
    let plain =
        "[[output]]\nname = 'a'\ntype = 'http'\nurls = ['http://a', 'HTTP://b']\n[output.tls]\n";
    assert_problems(plain, "5:1: output[0].tls: is for https, but all urls are http://");
    config(&plain.replace("'http://a'", "'https://a'"));
}

#[test]
fn a_smaller_bound_of_bodies_takes_effect_with_a_warning() {
    let memory = "queue.max_bytes - 256 is smaller";
    let disk = "queue.max_bytes / 2 (with queue.directory) is smaller";
    let in_flight = "limits.max_in_flight is smaller";
    let (body, room) = ("limits.max_body", "queue.max_bytes");
    let directory = "[queue]\ndirectory = '/no'\n";
    for (text, position, key, what, effective) in [
        ("[queue]\nmax_bytes = '1MiB'\n", "2:13", room, memory, (1 << 20) - 256),
        (&format!("{directory}max_bytes = '1MiB'\n"), "3:13", room, disk, 1 << 19),
        (&format!("{directory}[limits]\nmax_body = '200MiB'\n"), "4:12", body, disk, 128 << 20),
        ("[limits]\nmax_body = '2MiB'\nmax_in_flight = '1MiB'\n", "2:12", body, in_flight, 1 << 20),
        ("[limits]\nmax_in_flight = '1MiB'\n", "2:17", "limits.max_in_flight", in_flight, 1 << 20),
        (
            &format!("{directory}[limits]\nmax_in_flight = '1MiB'\n"),
            "4:17",
            "limits.max_in_flight",
            in_flight,
            1 << 20,
        ),
    ] {
        let than = if key == body { "" } else { " than the default of limits.max_body" };
        let message = format!("{what}{than}, and takes effect instead");
        assert_problems(text, &format!("{position}: {key}: warning: {message}"));
        assert_eq!(checked(text).config.unwrap().limits.max_body, effective);
    }
    // If the config does not set `max_body`, other limits lower the default of `max_body` without a
    // warning, as long as usual batches fit.
    for (text, effective) in [
        ("", (256 << 20) - 256),
        ("[queue]\nmax_bytes = '65MiB'\n", (65 << 20) - 256),
        (directory, 128 << 20),
        ("[queue]\ndirectory = '/no'\nmax_bytes = '2GiB'\n", 256 << 20),
    ] {
        assert_eq!(config(&format!("{text}{LISTENER}")).limits.max_body, effective, "{text}");
    }
    for (exact, directory) in [(1_048_320, ""), (524_288, "directory = '/no'\n")] {
        let text = format!(
            "[limits]\nmax_body = {exact}\nmax_in_flight = {exact}\n[queue]\nmax_bytes = '1MiB'\n{directory}"
        );
        assert_eq!(config(&text).limits.max_body, exact);
    }
    // A wrong value of queue.directory makes the queue durable too.
    let broken = "[limits]\nmax_body = '600KiB'\n[queue]\nmax_bytes = '1MiB'\ndirectory = ''\n";
    assert_problems(broken, &format!("2:12: limits.max_body: warning: {disk}\n5:13: queue."));
}

#[test]
fn a_token_on_a_listener_without_tls_is_warned_of() {
    let listener =
        "[[listener]]\naddress = '127.0.0.1:0'\nbearer_token_file = '/proc/self/status'\n";
    let warning =
        "3:21: listener[0].bearer_token_file: warning: kube-apiserver sends no token over";
    assert_problems(listener, warning);
    assert!(checked(listener).strict().config.is_some(), "it is no error");
    // Any regular file is enough, because this test reads no certificate.
    let tls = "tls = { certificate = '/proc/self/status', private_key = '/proc/self/status' }\n";
    assert_problems(&format!("{listener}{tls}"), "");
    assert_problems("[[listener]]\naddress = '127.0.0.1:0'\n", "");
}

#[test]
fn missing_files_are_no_errors_until_strict() {
    let text = "[[listener]]\naddress = '127.0.0.1:0'\nbearer_token_file = '/no/1'\n\
                [listener.tls]\ncertificate = '/no/2'\nprivate_key = '/no/3'\nclient_ca = '/no/4'\n\
                [[output]]\nname = 'o'\ntype = 'http'\nurls = ['${file:/no/5}', 'https://a/${file:/no/6}']\n\
                headers = { a = '${file:/no/7}' }\n\
                basic_auth = { username = '${file:/no/8}', password_file = '/no/9' }\n\
                tls = { ca = '/no/a', certificate = '/no/b', private_key = '/no/c' }\n";
    let expected = [
        "3:21: listener[0].bearer_token_file: warning: the file \"/no/1\" does not exist",
        "5:15: listener[0].tls.certificate: warning: the file \"/no/2\" does not exist",
        "6:15: listener[0].tls.private_key: warning: the file \"/no/3\" does not exist",
        "7:13: listener[0].tls.client_ca: warning: the file \"/no/4\" does not exist",
        "11:9: output[0].urls[0]: warning: the file \"/no/5\" does not exist",
        "11:26: output[0].urls[1]: warning: the file \"/no/6\" does not exist",
        "12:17: output[0].headers.a: warning: the file \"/no/7\" does not exist",
        "13:27: output[0].basic_auth.username: warning: the file \"/no/8\" does not exist",
        "13:60: output[0].basic_auth.password_file: warning: the file \"/no/9\" does not exist",
        "14:14: output[0].tls.ca: warning: the file \"/no/a\" does not exist",
        "14:37: output[0].tls.certificate: warning: the file \"/no/b\" does not exist",
        "14:60: output[0].tls.private_key: warning: the file \"/no/c\" does not exist",
    ];
    assert_problems(text, &expected.join("\n"));
    let found = checked(text);
    assert!(found.problems.iter().all(|it| it.severity == Severity::MissingFile));
    assert_eq!(found.files.len(), expected.len());
    let strict = found.strict();
    assert!(strict.problems.iter().all(|it| it.severity == Severity::Error));
    assert_eq!(strict.config, None);

    let optional = text.replace("client_ca = '/no/4'", "client_ca = '/no/4'\noptional = true");
    let found = checked(&optional);
    assert_eq!(found.problems.len(), expected.len() - 3);
    assert_eq!(found.files.len(), expected.len());
    assert_problems(
        "[log]\nlevel = '${file:/no/1}'\n",
        r#"2:9: log.level: warning: the file "/no/1" does not exist"#,
    );
    assert_eq!(checked("[log]\nlevel = '${file:/no/1}'\n").config, None);
}

#[test]
fn paths_that_are_no_files_are_errors() {
    assert_problems(
        "[[listener]]\naddress = '127.0.0.1:0'\nbearer_token_file = ''\n\
         tls = { certificate = '/', private_key = '' }\n",
        r#"3:21: listener[0].bearer_token_file: "" is empty, allowed: the path of a file
4:23: listener[0].tls.certificate: "/" is a directory, allowed: a file
4:42: listener[0].tls.private_key: "" is empty"#,
    );
}

#[test]
fn interpolation_is_for_values_and_never_shown_expanded() {
    let config = config(
        "# ${env:NO}\n[limits]\nmax_body = '${env:SIZE}'\nidle_timeout = '1${env:NO:-0s}'\n\
         [[output]]\nname = '${env:NO:-a}'\ntype = 'http'\nurls = ['http://${env:HOST}']\n\
         headers = { x = '${env:HOST}' }\n",
    );
    assert_eq!(config.limits.max_body, 2 << 20);
    assert_eq!(config.limits.idle_timeout, Duration::from_secs(10));
    assert_eq!(config.outputs[0].name, "a");

    let text = "[limits]\nmax_body = '${env:BAD}'\nmax_connections = 1\n'${env:HOST}' = 1\n\
                [log]\nlevel = '${env:BAD}'\n[admin]\naddress = '${env:BAD}'\n\
                [queue]\nretry_after = '${env:NO}'\nwhen_full = '${BAD}'\n\
                [[output]]\nname = '${env:BAD}_'\ntype = 'http'\nurls = ['${env:BAD}', 'http://${env:BAD}:x/']\n\
                headers = { x = \"\\n${env:BAD}\" }\nbearer_token_file = '${env:BAD}'\n";
    assert_problems(
        text,
        r#"2:12: limits.max_body: "${env:BAD}" is not a size
4:1: limits."${env:HOST}": unknown key `"${env:HOST}"`
6:9: log.level: "${env:BAD}" is unknown
8:11: admin.address: "${env:BAD}" is not IP:PORT
10:15: queue.retry_after: the variable NO is not set: set it, or write `${env:NO:-default}`
11:13: queue.when_full: an unknown `${…}`, allowed: `${env:NAME}`
13:8: output[0].name: "${env:BAD}_" is not a name
15:9: output[0].urls[0]: is not a URL
15:23: output[0].urls[1]: is not a URL (invalid port number)
16:17: output[0].headers.x: is not a header value
17:21: output[0].bearer_token_file: warning: the file "${env:BAD}" does not exist"#,
    );
    let shown = format!("{:?}{}", checked(text).problems, checked(text).effective());
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn secrets_are_shown_nowhere() {
    let dir = files();
    let text = everything(dir.path());
    let found = checked(&text);
    let broken = checked(&text.replace("https://a/x?y=", "ftp://"));
    assert!(!broken.problems.is_empty());
    for shown in
        [format!("{found:?}"), found.effective(), format!("{broken:?}"), broken.effective()]
    {
        assert!(!shown.contains("s3cr3t"), "{shown}");
    }
    let inline = "[[output]]\nname = 'a'\ntype = 'http'\nurls = ['https://u:s3cr3t@a/', 's3cr3t']\n\
                  headers = { x = \"s3cr3t\\u0000\" }\nbasic_auth = { username = 's3cr3t:', password_file = '/no' }\n\
                  proxy = 'http://s3cr3t:s3cr3t@p/s3cr3t'\n";
    for problem in checked(inline).problems {
        assert!(!problem.message.contains("s3cr3t"), "{problem:?}");
    }
}

#[test]
fn no_message_about_a_filter_or_a_name_shows_what_a_variable_or_a_file_contains() {
    let dir = files();
    for secret in [format!("${{file:{}}}", dir.path().join("token").display()), "${env:BAD}".into()]
    {
        let text = format!(
            "[filter]\nmatch = [{{ users = ['a', '{secret}*x*'] }}, {{ userGroups = ['{secret}*'] }}, \
             {{ verbs = ['{secret}X'] }}, {{ namespaces = ['{secret}*x*'] }}, \
             {{ non_resource_urls = ['{secret}'] }}, \
             {{ resources = {{ group = '{secret}/v1' }} }}, {{ resources = {{ resources = ['{secret}'] }} }}, \
             {{ unless = {{ users = ['{secret}*x*'] }} }}]\n\
             redact = {{ resources = ['{secret}/a/b/c'], fields = ['{secret}'] }}\n\
             [[output]]\nname = '{secret}'\ntype = 'stdout'\nbatch.max_bytes = '0'\n\
             [[output]]\nname = '{secret}'\ntype = 'stdout'\n"
        );
        let problems = checked(&text).problems;
        let found: Vec<_> = problems.iter().map(|problem| problem.render("f")).collect();
        for expected in [
            "match[0].users[1]: warning: ",
            "match[1].user_groups[0]: warning: ",
            "match[2].verbs[0]: warning: ",
            "match[3].namespaces[0]: warning: ",
            "match[4].non_resource_urls[0]: ",
            "match[5].resources[0].group: ",
            "match[6].resources[0].resources[0]: warning: ",
            "match[7].unless[0].users[0]: warning: ",
            "redact[0].resources[0]: ",
            "redact[0].fields[0]: ",
        ] {
            let message = found.iter().find(|it| it.contains(&format!(" filter.{expected}")));
            let message = message.unwrap_or_else(|| panic!("{expected}: {found:#?}"));
            let said = message.contains("has a mistake after ${…} is expanded, which is not shown");
            assert!(said && message.contains("\"${"), "{message}");
        }
        let name = |name: &str| format!("duplicate name, also used by output {name:?} (line 4)");
        assert!(found.iter().any(|it| it.ends_with(&name(&secret))), "{found:#?}");
        let output = format!(" [output {secret:?}]");
        assert!(found.iter().any(|it| it.ends_with(&output)), "{found:#?}");
        let shown = format!("{problems:?}{found:?}").to_lowercase();
        assert!(!shown.contains("s3cr3t") && !shown.contains("hunter2"), "{found:#?}");
    }
    // A text without `${…}` is shown.
    let text = "[filter]\nmatch = { user_groups = ['x*'] }\n";
    assert_problems(text, "2:26: filter.match[0].user_groups[0]: warning: \"x*\" is compared");
}

#[test]
fn messages_are_single_lines_of_bounded_length() {
    let text = format!("[admin]\naddress = \"a\\nb\\u001b[2J\u{202e}{}\"\n", "x".repeat(10_000));
    let message = checked(&text).problems[0].render("f");
    assert!(message.contains(r#""a\nb\u001B[2J\u202Exx"#), "{message}");
    assert!(message.chars().count() < 300 && !message.contains('\n'), "{message}");
    assert_problems(
        "[log]\nlevel = \"${file:/no\\n1}\"\n",
        r#"2:9: log.level: warning: the file "/no\n1" does not exist"#,
    );
}
