//! Tests of what each directive becomes, and that every migrated config is valid.

use super::*;
use crate::config;
use crate::config::Severity;

/// The haproxy.cfg of a forwarder, as a provider's documentation shows it.
const SAMPLE: &str = "\
global
  log stdout format raw local0 info
defaults
  mode http
  timeout client 10s
  timeout connect 5s
  timeout server 10s
  timeout http-request 10s
  log global
frontend myfrontend
  bind :3000
  default_backend remotelogstash
# Use remote log consumer IP and port here
backend remotelogstash
  server s1 10.1.2.3:8080 check
";

/// Migrates a text with the paths of its files kept.
fn migrate(text: &str) -> Result<Migrated, Unusable> {
    super::migrate(text, Options { name: "haproxy.cfg", keeps_paths: true, ..Options::default() })
}

/// Migrates the text. Asserts that the result is a valid config; missing files do not count.
#[track_caller]
fn migrated(text: &str) -> (toml::Table, Vec<Finding>) {
    let Migrated { config, report } = migrate(text).unwrap();
    let left = report.findings;
    let problems = config::read(&config, crate::output::TYPES).problems;
    let wrong = problems.iter().filter(|problem| problem.severity == Severity::Error);
    assert_eq!(wrong.count(), 0, "{problems:?}\n{config}");
    (config.parse().unwrap(), left)
}

/// Returns the line numbers and texts of the directives that were not carried over.
fn shown(left: &[Finding]) -> Vec<(usize, &str)> {
    left.iter().map(|left| (left.line, left.directive.as_str())).collect()
}

#[track_caller]
fn assert_has(table: &toml::Table, expected: &str) {
    let expected: toml::Table = expected.parse().unwrap();
    for (key, value) in &expected {
        assert_eq!(table.get(key), Some(value), "{key}\n{table:?}");
    }
}

/// The sample, with other lines in its backend.
fn with_servers(lines: &str) -> String {
    SAMPLE.replace("  server s1 10.1.2.3:8080 check\n", lines)
}

#[test]
fn the_providers_sample_becomes_a_listener_an_output_and_two_notes() {
    let (table, left) = migrated(SAMPLE);
    assert_has(
        &table,
        r#"
        listener = [{ address = "0.0.0.0:3000" }]
        limits = { header_timeout = "10s" }
        queue = { max_bytes = "256MiB" }
        output = [{ name = "remotelogstash", type = "http", urls = ["http://10.1.2.3:8080/"], timeouts = { connect = "5s" } }]
        admin = { address = "0.0.0.0:9090" }
        log = { level = "info" }
        "#,
    );
    assert_eq!(shown(&left), [(5, "timeout client 10s"), (7, "timeout server 10s")]);
}

#[test]
fn the_report_stands_in_the_config_too() {
    let text = SAMPLE.replace("  bind", "  option forwardfor\n  bind");
    let validity = "NOT CHECKED: validity: HAProxy is not installed here";
    let options = Options { name: "a\nb.cfg", validity, ..Options::default() };
    let Migrated { config, report } = super::migrate(&text, options).unwrap();
    assert!(config.starts_with("# Made from a\u{fffd}b.cfg by"), "{config}");
    let lines = report.lines("a\nb.cfg");
    assert_eq!(
        lines[0],
        "a\u{fffd}b.cfg: 1 listener and 1 output; 8 directives carried over, 1 to decide, 2 left out \
         without effect"
    );
    assert_eq!(lines[1], validity);
    assert!(lines[3].starts_with("Decide these"), "{lines:?}");
    assert!(lines[4].starts_with("a\u{fffd}b.cfg:11: option forwardfor: "), "{lines:?}");
    for line in lines {
        assert!(config.contains(format!("# {line}").trim_end()), "{line}\n{config}");
    }
}

#[test]
fn a_key_names_the_lines_that_it_comes_from() {
    let Migrated { config, .. } = migrate(SAMPLE).unwrap();
    for expected in [
        "address = \"0.0.0.0:3000\" # haproxy.cfg:11\n",
        "header_timeout = \"10s\" # haproxy.cfg:8\n",
        "urls = [\"http://10.1.2.3:8080/\"] # haproxy.cfg:15\n",
        "connect = \"5s\" # haproxy.cfg:6\n",
        "[log] # haproxy.cfg:2, haproxy.cfg:9\n",
    ] {
        assert!(config.contains(expected), "{expected}{config}");
    }
}

/// A file that sends the bodies to a consumer in the lines of HAProxy's log.
const RING: &str = "\
global
  log ring@siem local0
ring siem
  format rfc5424
  timeout server 10s
  server one 192.0.2.7:6514
  server two siem.example.com
frontend audit
  mode http
  bind *:3000
  option http-buffer-request
  log global
  log-format \"%[req.body]\"
  http-request return status 200
";

#[test]
fn a_ring_that_may_get_the_bodies_is_never_left_out_without_effect() {
    let text = format!("{SAMPLE}\nring siem\n  server one 192.0.2.7:6514\n").replacen(
        "  log stdout",
        "  log ring@siem local0\n  log stdout",
        1,
    );
    assert!(text.contains("ring@siem"), "{text}");
    let Migrated { config, report } = migrate(&text).unwrap();
    let of_log = report.findings.iter().find(|it| it.directive.contains("ring@siem")).unwrap();
    assert_eq!(of_log.verdict, Verdict::Decide, "{of_log:?}");
    let of_ring = report.findings.iter().filter(|it| it.line > of_log.line + 14);
    assert!(of_ring.clone().all(|it| it.verdict != Verdict::NoEffect), "{report:?}");
    let table = "# [[output]]\n# name = \"siem\"\n# type = \"syslog\"\n# addresses = [\"192.0.2.7:6514\"]\n";
    assert!(config.contains(table), "{config}");
    // The same for a syslog server, in a file that reads the bodies.
    let text = SAMPLE.replacen("  log stdout", "  log 192.0.2.7:514 local0\n  log stdout", 1);
    let verdict = |text: &str| {
        let (_, left) = migrated(text);
        left.iter().find(|it| it.directive.contains("192.0.2.7:514")).unwrap().verdict
    };
    assert_eq!(verdict(&text), Verdict::NoEffect);
    let text = text.replace("  bind", "  http-request set-var(txn.body) req.body\n  bind");
    assert_eq!(verdict(&text), Verdict::Decide);
}

#[test]
fn a_file_that_only_has_a_ring_is_refused_with_a_hint_at_syslog() {
    let unusable = migrate(RING).unwrap_err().to_string();
    let hint = "type = \"syslog\" and addresses = [\"192.0.2.7:6514\", \"siem.example.com:514\"]";
    assert!(unusable.contains(hint), "{unusable}");
}

#[test]
fn the_table_of_a_tcp_frontend_is_of_type_tcp() {
    let text =
        format!("{SAMPLE}\nlisten other\n  mode tcp\n  bind *:5044\n  server a 192.0.2.9:5044\n");
    let Migrated { config, .. } = migrate(&text).unwrap();
    let table =
        "# [[output]]\n# name = \"other\"\n# type = \"tcp\"\n# addresses = [\"192.0.2.9:5044\"]\n";
    assert!(config.contains(table), "{config}");
    assert!(!config.contains("5044\"\n# [[output]]"), "{config}");
}

#[test]
fn an_address_that_was_never_filled_in_is_told_with_its_line() {
    let text = with_servers("  server s1 <REMOTE-IP>:<REMOTE-PORT> check\n");
    let unusable = migrate(&text).unwrap_err();
    assert!(unusable.to_string().ends_with("can be carried over: nothing is written"));
    let told = unusable.findings.iter().find(|left| left.line == 15).unwrap();
    assert!(told.reason.contains("<REMOTE-IP>:<REMOTE-PORT>"), "{told:?}");
}

#[test]
fn servers_with_tls_keep_ca_certificate_and_name() {
    let (table, left) = migrated(&with_servers(
        "  server s1 logs.example.com:6514 check ssl crt /certs/client.pem ca-file /certs/ca.pem verify required sni str(logs.example.com)\n",
    ));
    assert_has(
        &table,
        r#"
        output = [{ name = "remotelogstash", type = "http", urls = ["https://logs.example.com:6514/"], timeouts = { connect = "5s" }, tls = { ca = "/certs/ca.pem", certificate = "/certs/client.pem", private_key = "/certs/client.pem", server_name = "logs.example.com" } }]
        "#,
    );
    assert_eq!(shown(&left), [(5, "timeout client 10s"), (7, "timeout server 10s")]);
}

#[test]
fn verification_is_left_out_where_haproxy_left_it_out() {
    let no_check = with_servers("  server s1 10.0.0.1:443 ssl verify none\n");
    let globally = format!(
        "global\n ssl-server-verify none\n{}",
        with_servers("  server s1 10.0.0.1:443 ssl\n")
    );
    for text in [no_check, globally] {
        let (table, _) = migrated(&text);
        assert_eq!(table["output"][0]["tls"]["insecure_skip_verify"].as_bool(), Some(true));
    }
}

#[test]
fn servers_are_taken_in_turn_or_in_order_as_before() {
    let two = "  server s1 10.0.0.1:80 check\n  server s2 10.0.0.2:80 check\n";
    let backup_first = "  server s2 10.0.0.2:80 check backup\n  server s1 10.0.0.1:80 check\n";
    for (balance, servers, strategy, findings) in [
        ("", two, Some("round_robin"), 0),
        ("  balance roundrobin\n", two, Some("round_robin"), 0),
        ("  balance leastconn\n", two, Some("round_robin"), 0),
        ("  balance first\n", two, None, 0),
        ("", backup_first, None, 0),
        ("  balance roundrobin\n", backup_first, None, 1),
    ] {
        let (table, left) = migrated(&with_servers(&format!("{balance}{servers}")));
        let output = &table["output"][0];
        let urls: toml::Value = vec!["http://10.0.0.1:80/", "http://10.0.0.2:80/"].into();
        assert_eq!(output["urls"], urls, "{balance}{servers}");
        let seen = output.get("strategy").and_then(|strategy| strategy.as_str());
        let count = left.iter().filter(|left| left.line > 12).count();
        assert_eq!((seen, count), (strategy, findings), "{balance}{servers}");
    }
}

#[test]
fn listeners_with_tls_keep_certificate_clients_and_version() {
    let text = SAMPLE.replace(
        "  bind :3000\n",
        "  bind :3000\n  bind [::]:4443,127.0.0.1:4444 ssl crt tls.pem ca-file ca.pem verify required ssl-min-ver TLSv1.3 alpn h2,http/1.1\n",
    );
    let text = text.replacen("global\n", "global\n  crt-base /etc/crt\n  ca-base /etc/ca/\n", 1);
    let (table, left) = migrated(&text);
    assert_has(
        &table,
        r#"
        listener = [
            { address = "0.0.0.0:3000" },
            { address = "[::]:4443", tls = { certificate = "/etc/crt/tls.pem", private_key = "/etc/crt/tls.pem", client_ca = "/etc/ca/ca.pem", min_version = "1.3" } },
            { address = "127.0.0.1:4444", tls = { certificate = "/etc/crt/tls.pem", private_key = "/etc/crt/tls.pem", client_ca = "/etc/ca/ca.pem", min_version = "1.3" } },
        ]
        "#,
    );
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_listener_that_was_https_never_becomes_http() {
    let text = SAMPLE.replace("bind :3000", "bind :3000 ssl");
    let unusable = migrate(&text).unwrap_err();
    assert!(unusable.findings.iter().any(|finding| finding.line == 11), "{unusable:?}");
    for crt in ["crt /etc/certs/", "crt-list /etc/list.txt"] {
        let text = SAMPLE.replace("bind :3000", &format!("bind :3000 ssl {crt}"));
        let (table, left) = migrated(&text);
        assert!(table["listener"][0].get("tls").is_some(), "{table:?}");
        let told = left.iter().find(|finding| finding.line == 11).unwrap();
        assert_eq!(told.verdict, Verdict::Decide, "{told:?}");
    }
}

#[test]
fn what_has_no_counterpart_is_named_line_by_line() {
    let text = "\
global
  daemon
  user haproxy
  maxconn 2000
  stats socket /run/haproxy.sock
userlist admins
  user root insecure-password secret
defaults base
  mode http
  option httplog
  option redispatch
  retries 3
  retry-on all-retryable-errors
  timeout connect 500
  timeout client 2m
  timeout server 90s
  timeout queue 1m
  timeout http-keep-alive 3m
frontend in
  bind :3000 accept-proxy
  maxconn 1000
  acl posts method POST
  http-request deny if !posts
  http-request set-header X-Cluster prod
  use_backend other if posts
  default_backend logs
backend logs
  option httpchk GET /
  http-check expect status 200
  server a logs-a:8080 check inter 2s rise 2 weight 10 send-proxy
backend other
  server b 10.0.0.9:80
listen stats
  bind 127.0.0.1:8404
  stats enable
  stats uri /
  stats auth admin:secret
nonsense
";
    let (table, left) = migrated(text);
    assert_has(
        &table,
        r#"
        limits = { max_connections = 1000, idle_timeout = "180s" }
        output = [{ name = "logs", type = "http", urls = ["http://logs-a:8080/"], headers = { x-cluster = "prod" }, timeouts = { connect = "500ms" } }]
        admin = { address = "127.0.0.1:8404" }
        "#,
    );
    assert!(!table.contains_key("log"));
    let expected = "2 daemon | 3 user haproxy | 5 stats socket /run/haproxy.sock | 6 userlist admins | \
         7 user root … | 10 option httplog | 11 option redispatch | 12 retries 3 | \
         13 retry-on all-retryable-errors | 15 timeout client 2m | 16 timeout server 90s | 17 timeout queue 1m | 20 bind … accept-proxy | \
         22 acl posts method POST | 23 http-request deny if !posts | \
         25 use_backend other if posts | 28 option httpchk GET / | \
         29 http-check expect status 200 | 30 server a … send-proxy | 30 server a … inter 2s | \
         30 server a … rise 2 | 30 server a … weight 10 | 31 backend other | \
         32 server b 10.0.0.9:80 | 33 listen stats | 35 stats enable | 36 stats uri / | \
         37 stats auth … | 38 nonsense";
    let seen: Vec<_> = shown(&left).iter().map(|(line, what)| format!("{line} {what}")).collect();
    assert_eq!(seen.join(" | "), expected);
    assert!(left.iter().all(|left| !left.reason.is_empty()));
    let decided: Vec<usize> =
        left.iter().filter(|left| left.verdict == Verdict::Decide).map(|left| left.line).collect();
    assert_eq!(decided, [6, 15, 16, 20, 22, 23, 25, 30, 38]);
}

#[test]
fn ports_that_are_counted_from_others_and_numbers_beyond_all_bounds_are_told() {
    for server in ["10.0.0.1:+100", "logs:0", "logs:65536"] {
        let unusable = migrate(&with_servers(&format!("  server s1 {server}\n"))).unwrap_err();
        let findings = &unusable.findings;
        assert!(findings.iter().any(|finding| finding.line == 15), "{server}: {unusable:?}");
        assert!(findings.iter().all(|finding| finding.line != 2), "only what was tried");
    }
    for bind in [":+3006", ":0"] {
        let text = SAMPLE.replace(":3000", bind);
        let unusable = migrate(&text).unwrap_err();
        assert!(unusable.findings.iter().any(|finding| finding.line == 11), "{bind}");
    }
    let text = SAMPLE.replace("frontend myfrontend\n", "frontend myfrontend\n  maxconn 2000000\n");
    let text = text.replace("timeout connect 5s", "timeout connect 0");
    let (table, left) = migrated(&text);
    assert_eq!(table["limits"]["max_connections"].as_integer(), Some(1 << 20));
    assert!(!table["output"][0].as_table().unwrap().contains_key("timeouts"));
    let expected = [(5, "timeout client 10s"), (6, "timeout connect 0"), (7, "timeout server 10s")];
    assert_eq!(shown(&left), expected);
    assert_eq!(left[1].verdict, Verdict::Decide);
}

#[test]
fn a_backup_that_verifies_nothing_takes_no_verification_from_others() {
    let (table, left) = migrated(&with_servers(
        "  server y 3.3.3.3:3 ssl verify none backup\n  server z 4.4.4.4:4 ssl ca-file /ca verify required\n",
    ));
    let output = &table["output"][0];
    assert_eq!(output["urls"].as_array().unwrap().len(), 1);
    assert_eq!(output["urls"][0].as_str(), Some("https://4.4.4.4:4/"));
    assert_eq!(output["tls"].as_table().unwrap().len(), 1);
    assert!(left.iter().any(|left| left.line == 15 && left.reason.starts_with("left out")));
}

#[test]
fn tokens_in_headers_are_not_shown() {
    let text = SAMPLE.replace(
        "  bind :3000\n",
        "  bind :3000\n  http-request set-header Authorization \"Basic c2Vj\" if TRUE\n  http-request set-header X-Token abc\n",
    );
    let Migrated { config, report } = migrate(&text).unwrap();
    let left = report.findings;
    assert!(!config.contains("c2Vj") && !format!("{left:?}").contains("c2Vj"), "{config}");
    assert!(config.contains("\"x-token\" = \"abc\""), "{config}");
}

#[test]
fn a_secret_in_a_header_gets_the_hint_of_a_file() {
    let line = |header: &str, value: &str| {
        let line = format!("  bind :3000\n  http-request set-header {header} \"{value}\"\n");
        let Migrated { report, .. } = migrate(&SAMPLE.replace("  bind :3000\n", &line)).unwrap();
        report.needs.join("\n")
    };
    for header in ["Authorization", "X-Api-Key", "X-Vault-Token", "Cookie"] {
        let needs = line(header, "Bearer-c2Vj");
        let hint = format!("\"{}\" = \"${{file:PATH}}\"", header.to_lowercase());
        assert!(needs.contains(&hint) && !needs.contains("c2Vj"), "{needs}");
    }
    assert!(!line("X-Cluster", "prod").contains("${file:"));
}

#[test]
fn an_address_is_listened_on_once_and_admins_is_another() {
    let text = SAMPLE.replace("  bind :3000\n", "  bind :9090\n  bind 127.0.0.1:9091,:9090\n");
    let (table, _) = migrated(&text);
    assert_has(
        &table,
        r#"
        listener = [{ address = "0.0.0.0:9090" }, { address = "127.0.0.1:9091" }]
        admin = { address = "0.0.0.0:9092" }
        "#,
    );
    let shared = "listen stats\n  bind 127.0.0.1:9091\n  stats enable\n";
    let (table, _) = migrated(&format!("{text}{shared}"));
    assert_has(&table, r#"admin = { address = "0.0.0.0:9092" }"#);
}

#[test]
fn a_listen_section_is_both_sides_and_variables_stay_variables() {
    let (table, left) = migrated(
        "listen audit\n bind \"*:${PORT-3000}\"\n mode http\n server one \"${LOGSTASH-logstash.example.com}:8080\"\n server two [::1]:81\n server three logs\n",
    );
    assert_has(
        &table,
        r#"
        listener = [{ address = "0.0.0.0:${env:PORT:-3000}" }]
        output = [{ name = "audit", type = "http", strategy = "round_robin", urls = ["http://${env:LOGSTASH:-logstash.example.com}:8080/", "http://[::1]:81/", "http://logs:${env:PORT:-3000}/"] }]
        "#,
    );
    assert_eq!(left, []);
}

#[test]
fn nothing_to_listen_on_or_to_send_to_is_an_error() {
    for text in [
        "",
        "global\n",
        "backend b\n server s 1.2.3.4:80\n",
        "frontend f\n bind :80\n default_backend none\n",
    ] {
        let unusable = migrate(text).unwrap_err();
        assert!(unusable.to_string().contains("nothing is written"), "{unusable}");
    }
}

#[test]
fn names_of_backends_become_names_of_outputs() {
    for (backend, expected) in
        [("queue", "backend-queue"), ("Logs_A.b", "logs-a-b"), ("-__", "consumer")]
    {
        let text = SAMPLE.replace("remotelogstash", backend);
        let (table, _) = migrated(&text);
        assert_eq!(table["output"][0]["name"].as_str(), Some(expected));
    }
}

/// Returns the numbers of the lines of a haproxy.cfg that the report does not account for: neither
/// as carried over nor as a finding. Heads of sections in which a line is carried over count as
/// accounted for.
fn unaccounted(text: &str, report: &Report) -> Vec<usize> {
    let mut known: BTreeSet<usize> = report.carried.keys().copied().collect();
    known.extend(report.findings.iter().map(|finding| finding.line));
    let heads = "global defaults frontend backend listen crt-store userlist peers resolvers ring cache \
         http-errors mailers log-forward program";
    let is_directive = |(_, line): &(usize, &str)| {
        let first = line.split_whitespace().next().unwrap_or_default();
        !first.is_empty() && !first.starts_with('#') && !heads.split(' ').any(|head| head == first)
    };
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let unknown = lines.filter(is_directive).filter(|(number, _)| !known.contains(number));
    unknown.map(|(number, _)| number).collect()
}

/// A haproxy.cfg of `tests/fixtures/haproxy`, with what its lines `#! KEY: VALUE` expect.
struct Example {
    name: String,
    text: String,
}

impl Example {
    fn all() -> Vec<Self> {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/haproxy");
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            Self { text: std::fs::read_to_string(path).unwrap(), name }
        };
        let mut examples: Vec<Self> = std::fs::read_dir(directory).unwrap().map(read).collect();
        examples.sort_by(|a, b| a.name.cmp(&b.name));
        examples
    }

    /// Returns the values of a key, in their order.
    fn expected(&self, key: &str) -> Vec<&str> {
        let prefix = format!("#! {key}: ");
        self.text.lines().filter_map(|line| line.strip_prefix(&prefix)).collect()
    }

    fn migrate(&self) -> Result<Migrated, Unusable> {
        super::migrate(&self.text, Options { name: &self.name, ..Options::default() })
    }
}

#[test]
fn every_example_becomes_what_its_head_says_and_passes_check() {
    let examples = Example::all();
    assert!(examples.len() >= 45, "{} examples", examples.len());
    for example in &examples {
        let name = &example.name;
        let exit = example.expected("exit");
        let migrated = match example.migrate() {
            Ok(migrated) => migrated,
            Err(unusable) => {
                assert_eq!(exit, ["2"], "{name}: {unusable:?}");
                assert!(!unusable.findings.is_empty(), "{name}");
                continue;
            }
        };
        if exit == ["2"] {
            // Where HAProxy is not installed, somebody has to decide about the mistake.
            assert_ne!(migrated.report.count(Verdict::Decide), 0, "{name}");
            continue;
        }
        let Migrated { config, report } = &migrated;
        let decided: Vec<&str> = report
            .findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Decide)
            .map(|finding| finding.directive.as_str())
            .collect();
        let expected = example.expected("decide");
        let fits = decided.len() == expected.len()
            && decided.iter().zip(&expected).all(|(is, begin)| is.starts_with(begin));
        assert!(fits, "{name}: {decided:#?}\n{expected:#?}");
        assert_eq!(exit, [if decided.is_empty() { "0" } else { "3" }], "{name}");
        let is_setting = |line: &&str| !line.starts_with('#');
        let settings: String =
            config.lines().filter(is_setting).flat_map(|line| [line, "\n"]).collect();
        for has in example.expected("has") {
            assert!(settings.contains(has), "{name} has no {has}\n{settings}");
        }
        for lacks in example.expected("lacks") {
            assert!(!settings.contains(lacks), "{name} has {lacks}\n{settings}");
        }
        for comment in example.expected("comment") {
            assert!(config.contains(comment), "{name} has no {comment}\n{config}");
        }
        for hidden in example.expected("hides") {
            let lines = report.lines(name).join("\n");
            assert!(!lines.contains(hidden), "{name} shows {hidden}\n{lines}");
        }
        for count in example.expected("count") {
            let (table, count) = count.split_once("]] ").unwrap();
            let found = settings.lines().filter(|line| line.starts_with(table)).count();
            assert_eq!(found.to_string(), count, "{name}: {table}\n{settings}");
        }
        assert_eq!(unaccounted(&example.text, report), Vec::<usize>::new(), "{name}");
        let problems = config::read(config, crate::output::TYPES).problems;
        let wrong: Vec<_> =
            problems.iter().filter(|problem| problem.severity == Severity::Error).collect();
        assert!(wrong.is_empty(), "{name}: {wrong:?}\n{config}");
    }
}

#[test]
fn every_line_that_is_carried_over_is_named_in_the_config() {
    for example in Example::all() {
        let Ok(Migrated { config, report }) = example.migrate() else { continue };
        for (line, keys) in report.carried {
            let place = format!("{}:{line}", example.name);
            let is_named = |text: &str| {
                let after = text.split(&place).nth(1)?;
                Some(!after.starts_with(|c: char| c.is_ascii_digit()))
            };
            let is_named = config.lines().any(|text| is_named(text) == Some(true));
            // These values are the relay's defaults, or stand in a table of several lines.
            let defaults = ["listener.tls", "log", "output.strategy"];
            let is_default = keys.iter().all(|key| defaults.contains(&key.as_str()));
            assert!(is_named || is_default, "{place} {keys:?}\n{config}");
        }
    }
}

#[test]
fn what_does_not_fit_into_one_relay_is_a_relay_for_each_frontend() {
    let example = Example::all();
    let example = example.iter().find(|e| e.name == "two-frontends-two-backends.cfg").unwrap();
    let of = |frontend| {
        super::migrate(&example.text, Options { frontend: Some(frontend), ..Options::default() })
    };
    let table: toml::Table = of("two").unwrap().config.parse().unwrap();
    assert_eq!(table["output"][0]["urls"][0].as_str(), Some("http://10.9.9.9:9090/"));
    assert_eq!(table["listener"][0]["address"].as_str(), Some("0.0.0.0:3001"));
    assert!(of("three").unwrap_err().to_string().contains("no frontend `three`"));
}

#[test]
fn the_tables_in_the_comments_make_a_valid_config() {
    for example in Example::all() {
        let Ok(Migrated { config, .. }) = example.migrate() else { continue };
        let Some((before, after)) = config.split_once("\n# For ") else { continue };
        let tables: String = after.lines().skip(1).filter_map(|line| line.strip_prefix("# ")).fold(
            String::new(),
            |text, line| {
                if line.starts_with("For ") { text } else { text + line + "\n" }
            },
        );
        let whole = format!("{before}\n{tables}");
        let parsed: toml::Table = whole.parse().unwrap_or_else(|e| panic!("{e}\n{whole}"));
        assert!(parsed["output"].as_array().unwrap().len() > 1, "{whole}");
        let problems = config::read(&whole, crate::output::TYPES).problems;
        assert!(problems.iter().all(|p| p.severity != Severity::Error), "{problems:?}\n{whole}");
    }
}

#[test]
fn what_the_config_needs_where_it_runs_is_said() {
    let text = SAMPLE.replace(":3000", ":8080").replace("10.1.2.3:8080", "\"${HOST}:${PORT-80}\"");
    let needs = |keeps_paths| {
        let options = Options { name: "f", keeps_paths, ..Options::default() };
        super::migrate(&text, options).unwrap().report.needs
    };
    let [variable, port] = &needs(false)[..] else { panic!("{:?}", needs(false)) };
    assert!(variable.starts_with("the variable HOST is in the relay's environment"), "{variable}");
    assert!(port.contains("to port 3000 of the pods, not to 0.0.0.0:8080"), "{port}");
    assert_eq!(needs(true).len(), 1, "ports of manifests matter only in a cluster");
}

#[test]
fn numbers_and_times_are_read_as_far_as_haproxy_reads_them() {
    let text = SAMPLE.replace("  bind :3000", "  maxconn 10k\n  bind localhost:3000");
    let (table, _) = migrated(&text.replace("timeout connect 5s", "timeout connect 5s5"));
    assert_has(
        &table,
        r#"
        listener = [{ address = "127.0.0.1:3000" }]
        limits = { header_timeout = "10s", max_connections = 10 }
        "#,
    );
    assert_eq!(table["output"][0]["timeouts"]["connect"].as_str(), Some("5s"));
    for time in ["400d", "5S", "x"] {
        let text = SAMPLE.replace("timeout connect 5s", &format!("timeout connect {time}"));
        let (_, left) = migrated(&text);
        let decided = |finding: &&Finding| finding.verdict == Verdict::Decide;
        assert_eq!(left.iter().find(decided).map(|left| left.line), Some(6), "{time}: {left:?}");
    }
}

#[test]
fn a_time_limit_of_hours_is_never_carried_over_and_is_to_decide_about() {
    for name in ["client", "server", "connect", "http-request", "http-keep-alive"] {
        for time in ["24h", "86400s", "2h"] {
            let text = SAMPLE.replace("  log global\n", &format!("  timeout {name} {time}\n"));
            let (table, left) = migrated(&text);
            let written = format!("{table:?}");
            assert!(!written.contains("86400") && !written.contains("7200"), "{written}");
            let told = left.iter().find(|finding| finding.line == 9).unwrap();
            assert_eq!(told.verdict, Verdict::Decide, "{told:?}");
        }
    }
}

#[test]
fn a_file_that_only_denies_is_told_with_the_rule() {
    let text = with_servers("  http-request deny deny_status 403\n");
    let unusable = migrate(&text).unwrap_err();
    let told = unusable.findings.iter().find(|left| left.line == 12).unwrap();
    assert!(told.reason.contains("`http-request deny deny_status 403`"), "{told:?}");
}

#[test]
fn what_restricts_senders_and_has_no_counterpart_is_to_decide_about() {
    for option in ["ssl-min-ver TLSv1.0", "force-tlsv11", "verify required", "crl-file /a"] {
        let text = SAMPLE.replace("bind :3000", &format!("bind :3000 ssl crt /a.pem {option}"));
        let (_, left) = migrated(&text);
        let told = left.iter().find(|finding| finding.line == 11).unwrap();
        let directive = format!("bind … {option}");
        assert_eq!((told.verdict, told.directive.as_str()), (Verdict::Decide, directive.as_str()));
    }
}

mod any {
    use proptest::prelude::*;

    use super::*;

    /// Words with and without a meaning for HAProxy.
    const WORDS: &str = "bind :3000 server s1 10.0.0.1:80 ssl crt /a.pem ca-file verify none required check backup \
         timeout connect server 10s 0 maxconn log stdout balance first http-request set-header X-A \
         \"${A-b}\" ' \" \\ default_backend b \u{7f}\u{1}";

    fn line() -> impl Strategy<Value = String> {
        let words: Vec<&str> = WORDS.split(' ').collect();
        let word = prop_oneof![4 => prop::sample::select(words).prop_map(str::to_owned), 1 => "[!-~]{0,8}"];
        prop::collection::vec(word, 1..6).prop_map(|words| words.join(" "))
    }

    proptest! {
        /// For any file, `migrate` does not panic, and a config that it gives is valid.
        #[test]
        fn file_gives_a_config_or_an_error(
            frontend in prop::collection::vec(line(), 0..4),
            backend in prop::collection::vec(line(), 0..6),
        ) {
            let text = format!(
                "frontend f\nbind :3000\ndefault_backend b\n{}\nbackend b\nserver s 10.0.0.1:80\n{}\n",
                frontend.join("\n"),
                backend.join("\n")
            );
            if let Ok(Migrated { config, report }) = migrate(&text) {
                prop_assert_eq!(unaccounted(&text, &report), Vec::<usize>::new());
                let problems = config::read(&config, crate::output::TYPES).problems;
                // The words contain a variable, whose value in the test's environment may be
                // anything; only errors count here.
                let wrong = problems.iter().find(|problem| problem.severity == Severity::Error);
                prop_assert!(wrong.is_none(), "{wrong:?}\n{config}");
            }
        }
    }
}
