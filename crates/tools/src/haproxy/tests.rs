//! Tests how each directive is migrated, and that every migrated config is valid.

use super::*;
use config::Severity;

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

fn migrate(text: &str) -> Result<Migrated, Unusable> {
    super::migrate(text, Options { name: "haproxy.cfg", keeps_paths: true, ..Options::default() })
}

/// Returns the errors in a config. Missing files do not count.
fn errors(config: &str) -> Vec<String> {
    let problems = config::read(config, outputs::TYPES).problems;
    let wrong = problems.iter().filter(|problem| problem.severity == Severity::Error);
    wrong.map(|problem| format!("{problem:?}")).collect()
}

/// Migrates the text. Asserts that the result is a valid config, and returns it with the directives
/// that the user has to decide about, each after its line number.
#[track_caller]
fn migrated(text: &str) -> (toml::Table, Vec<String>) {
    let Migrated { config, report } = migrate(text).unwrap();
    assert_eq!(errors(&config), Vec::<String>::new(), "{config}");
    (config.parse().unwrap(), of(&report, Verdict::Decide))
}

/// Returns the directives with this verdict, each after its line number.
fn of(report: &Report, verdict: Verdict) -> Vec<String> {
    let findings = report.findings.iter().filter(|finding| finding.verdict == verdict);
    findings.map(|Finding { line, directive, .. }| format!("{line} {directive}")).collect()
}

#[track_caller]
fn assert_has(table: &toml::Table, expected: &str) {
    let expected: toml::Table = expected.parse().unwrap();
    for (key, value) in &expected {
        assert_eq!(table.get(key), Some(value), "{key}\n{table:?}");
    }
}

fn with_servers(lines: &str) -> String {
    SAMPLE.replace("  server s1 10.1.2.3:8080 check\n", lines)
}

/// Each line is one that `migrate` only reports.
#[test]
fn no_text_of_a_directive_that_may_be_a_secret_is_shown() {
    let lines = "\
http-request redirect location https://user:s3cret@example.com/ if FALSE
redirect prefix https://user:s3cret@example.com/
http-request set-var(txn.key) str(s3cret)
http-request return status 200 content-type text/plain string s3cret
http-request set-uri /s3cret
http-request lua.check s3cret
http-after-response set-map(x) s3cret
http-check send meth POST uri /x body s3cret
http-error status 500 hdr X s3cret
tcp-check send AUTH\\ s3cret
tcp-request content set-var(sess.x) str(s3cret)
http-request deny deny_status 403 content-type text/plain string s3cret
http-request deny deny_status 403 hdr X-A s3cret
http-request deny unless { req.hdr(X-Access) s3cret }
http-request deny if !{ src 10.0.0.0/8 } !{ url s3cret }
acl known req.hdr(X-Access) s3cret
use_backend b if { req.hdr(X-Access) s3cret }
stats http-request allow if { req.hdr(X-Access) s3cret }
option httpchk GET http://user:s3cret@a/";
    let text = format!(
        "global\n  set-var proc.key str(s3cret)\n  setenv auth s3cret\n  presetenv connect s3cret\ndefaults\n  mode http\nlisten a\n  bind :3000\n{lines}\n  server a b:1\n"
    );
    let report = format!("{:?}", migrate(&text).unwrap().report);
    assert!(!report.contains("s3cret"), "{report}");
}

#[test]
fn the_providers_sample_is_carried_over_with_nothing_to_decide() {
    let (table, decide) = migrated(SAMPLE);
    assert_has(
        &table,
        r#"
        listener = [{ address = "0.0.0.0:3000" }]
        limits = { header_timeout = "10s" }
        queue = { max_bytes = "256MiB" }
        output = [{ name = "remotelogstash", type = "http", urls = ["http://10.1.2.3:8080/"], timeouts = { connect = "5s" } }]
        admin = { address = "0.0.0.0:9090" }
        "#,
    );
    assert_eq!(decide, Vec::<String>::new());
    let report = migrate(SAMPLE).unwrap().report;
    let expected = [
        "2 log stdout format raw local0 info",
        "5 timeout client 10s",
        "7 timeout server 10s",
        "9 log global",
    ];
    assert_eq!(of(&report, Verdict::NoEffect), expected);
    let expected = "1 global | 3 defaults | 4 mode http | 6 timeout connect 5s | \
         8 timeout http-request 10s | 10 frontend myfrontend | 11 bind :3000 | \
         12 default_backend remotelogstash | 14 backend remotelogstash | \
         15 server s1 10.1.2.3:8080 check";
    assert_eq!(of(&report, Verdict::Carried).join(" | "), expected);
}

#[test]
fn the_report_stands_in_the_config_too() {
    let text = SAMPLE.replace("  bind", "  option forwardfor\n  bind");
    let validity = "NOT CHECKED: validity: HAProxy is not installed here";
    let options = Options { name: "a\nb.cfg", validity, ..Options::default() };
    let Migrated { config, report } = super::migrate(&text, options).unwrap();
    assert!(config.starts_with("# Made from a\u{fffd}b.cfg by"), "{config}");
    let lines = report.lines("a\nb.cfg", Verdict::NoEffect);
    let summary = "a\u{fffd}b.cfg: decide: 1, no effect: 4, carried over: 10.";
    assert!(lines[0].starts_with(summary), "{lines:?}");
    assert_eq!(lines[1], validity);
    assert!(lines[3].starts_with("decide: a\u{fffd}b.cfg:11: option forwardfor: "), "{lines:?}");
    for line in lines {
        assert!(config.contains(format!("# {line}").trim_end()), "{line}\n{config}");
    }
    let carried = "\n# carried over: a\u{fffd}b.cfg:12: bind :3000: listener\n";
    assert!(config.contains(carried), "{config}");
}

/// A file that sends the bodies to a consumer in the lines of HAProxy's log.
const RING: &str = "\
global
  log ring@siem local0
ring siem
  format rfc5424
  timeout server 10s
  server one 192.0.2.7:6514
  server two siem.example.com:514
frontend audit
  mode http
  bind *:3000
  option http-buffer-request
  log global
  log-format \"%[req.body]\"
  http-request return status 200
";

#[test]
fn a_file_that_forwards_only_by_its_log_becomes_a_syslog_output() {
    let (table, decide) = migrated(RING);
    assert_has(
        &table,
        r#"
        output = [{ name = "siem", type = "syslog", addresses = ["192.0.2.7:6514", "siem.example.com:514"] }]
        "#,
    );
    let expected = "2 log ring@siem local0 | 4 format rfc5424 | 12 log global | \
         13 log-format %[req.body] | 14 http-request return …";
    assert_eq!(decide.join(" | "), expected);
    // A header is for requests only, and TLS is that of all addresses.
    let text = RING.replace("  log-format", "  http-request set-header X-A b\n  log-format");
    let (table, decide) = migrated(&text.replace("com:514", "com:514 ssl verify none"));
    assert_eq!(table["output"][0]["addresses"].as_array().unwrap().len(), 1);
    assert!(decide.contains(&"6 server one 192.0.2.7:6514".to_owned()), "{decide:?}");
    assert!(decide.contains(&"13 http-request set-header X-A …".to_owned()), "{decide:?}");
    // A log without bodies is nothing to forward.
    migrate(&RING.replace("req.body", "src")).unwrap_err();
}

#[test]
fn a_ring_beside_servers_is_to_decide_about_and_has_a_table() {
    let text = SAMPLE.replacen("  log stdout", "  log ring@siem local0\n  log stdout", 1);
    let text = format!("{text}ring siem\n  server one 192.0.2.7:6514\n");
    let (_, decide) = migrated(&text);
    let expected = ["2 log ring@siem local0", "17 ring siem", "18 server one 192.0.2.7:6514"];
    assert_eq!(decide, expected);
    let config = migrate(&text).unwrap().config;
    let table = "# [[output]]\n# name = \"siem\"\n# type = \"syslog\"\n# addresses = [\"192.0.2.7:6514\"]\n";
    assert!(config.contains(table), "{config}");
}

#[test]
fn a_log_is_without_effect_only_if_it_has_nothing_of_requests() {
    let text = SAMPLE.replacen("  log stdout", "  log 192.0.2.7:514 local0\n  log stdout", 1);
    assert_eq!(migrated(&text).1, ["2 log 192.0.2.7:514 local0"]);
    let text = SAMPLE.replace("  bind", "  http-request capture req.body len 100\n  bind");
    let (_, decide) = migrated(&text);
    let expected = "2 log stdout format raw local0 info | 9 log global | \
         11 http-request capture req.body len 100";
    assert_eq!(decide.join(" | "), expected);
}

#[test]
fn the_table_of_a_tcp_frontend_is_of_type_tcp() {
    let text =
        format!("{SAMPLE}\nlisten other\n  mode tcp\n  bind *:5044\n  server a 192.0.2.9:5044\n");
    let Migrated { config, .. } = migrate(&text).unwrap();
    let table =
        "# [[output]]\n# name = \"other\"\n# type = \"tcp\"\n# addresses = [\"192.0.2.9:5044\"]\n";
    assert!(config.contains(table), "{config}");
}

#[test]
fn an_address_that_was_never_filled_in_is_told_with_its_line() {
    for address in ["<REMOTE-IP>:<REMOTE-PORT>", "10.0.0.1:+100", "logs:0", "logs:65536", "logs"] {
        let unusable =
            migrate(&with_servers(&format!("  server s1 {address} check\n"))).unwrap_err();
        assert!(unusable.to_string().ends_with("can be carried over: nothing is written"));
        let [told] = &unusable.findings[..] else { panic!("{unusable:?}") };
        assert!(told.line == 15 && told.reason.contains(address), "{told:?}");
    }
    for bind in [":+3006", ":0", ":3000-3010", "unix@/run/a.sock", "localhost:3000"] {
        let unusable = migrate(&SAMPLE.replace(":3000", bind)).unwrap_err();
        assert_eq!(unusable.findings.len(), 1, "{unusable:?}");
        assert_eq!(unusable.findings[0].line, 11, "{bind}");
    }
}

#[test]
fn servers_with_tls_keep_ca_certificate_and_name() {
    let (table, decide) = migrated(&with_servers(
        "  server s1 logs.example.com:6514 check ssl crt /certs/client.pem ca-file /certs/ca.pem verify required sni str(logs.example.com)\n",
    ));
    assert_has(
        &table,
        r#"
        output = [{ name = "remotelogstash", type = "http", urls = ["https://logs.example.com:6514/"], timeouts = { connect = "5s" }, tls = { ca = "/certs/ca.pem", certificate = "/certs/client.pem", private_key = "/certs/client.pem", server_name = "logs.example.com" } }]
        "#,
    );
    assert_eq!(decide, Vec::<String>::new());
}

#[test]
fn verification_is_left_out_only_where_the_server_left_it_out() {
    let insecure = |text: &str| {
        let (table, decide) = migrated(text);
        let tls = table["output"][0]["tls"].as_table().unwrap();
        (tls.contains_key("insecure_skip_verify"), decide.len())
    };
    let servers = with_servers("  server s1 10.0.0.1:443 ssl verify none\n");
    assert_eq!(insecure(&servers), (true, 0));
    let defaults = "ssl-default-server-options verify none";
    let servers = with_servers("  server s1 10.0.0.1:443 ssl\n");
    assert_eq!(insecure(&format!("global\n {defaults}\n{servers}")), (true, 0));
    // The user decides about this one, and about the name in the certificate.
    assert_eq!(insecure(&format!("global\n ssl-server-verify none\n{servers}")), (false, 2));
}

#[test]
fn servers_are_taken_in_turn_or_in_order_as_before() {
    let two = "  server s1 10.0.0.1:80 check\n  server s2 10.0.0.2:80 check\n";
    let backup_first = "  server s2 10.0.0.2:80 check backup\n  server s1 10.0.0.1:80 check\n";
    for (balance, servers, strategy, decided) in [
        ("", two, Some("round_robin"), 0),
        ("  balance roundrobin\n", two, Some("round_robin"), 0),
        ("  balance source\n", two, Some("round_robin"), 1),
        ("  balance first\n", two, None, 0),
        ("", backup_first, None, 0),
        ("  balance roundrobin\n", backup_first, None, 0),
    ] {
        let (table, decide) = migrated(&with_servers(&format!("{balance}{servers}")));
        let output = &table["output"][0];
        let urls: toml::Value = vec!["http://10.0.0.1:80/", "http://10.0.0.2:80/"].into();
        assert_eq!(output["urls"], urls, "{balance}{servers}");
        let seen = output.get("strategy").and_then(|strategy| strategy.as_str());
        assert_eq!((seen, decide.len()), (strategy, decided), "{balance}{servers}");
    }
}

#[test]
fn listeners_with_tls_keep_certificate_clients_and_version() {
    let text = SAMPLE.replace(
        "  bind :3000\n",
        "  bind :3000\n  bind [::]:4443,127.0.0.1:4444 ssl crt tls.pem ca-file ca.pem verify required ssl-min-ver TLSv1.3 alpn h2,http/1.1\n",
    );
    let text = text.replacen("global\n", "global\n  crt-base /etc/crt\n  ca-base /etc/ca/\n", 1);
    let (table, decide) = migrated(&text);
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
    assert_eq!(decide, Vec::<String>::new());
}

#[test]
fn a_listener_that_was_https_never_becomes_http() {
    for crt in ["", " crt /etc/certs/", " crt-list /etc/list.txt", " crt @store/site"] {
        let text = SAMPLE.replace("bind :3000", &format!("bind :3000 ssl{crt}"));
        let unusable = migrate(&text).unwrap_err();
        assert!(unusable.findings.iter().all(|finding| finding.line == 11), "{unusable:?}");
    }
    // If a line has two certificates, the first is kept, and the user decides about the second.
    let text = SAMPLE.replace("bind :3000", "bind :3000 ssl crt /a.pem crt /b.pem");
    let (table, decide) = migrated(&text);
    assert_eq!(table["listener"][0]["tls"]["certificate"].as_str(), Some("/a.pem"));
    assert_eq!(decide, ["11 bind :3000 … crt /b.pem"]);
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
defaults
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
  stats auth admin:secret
nonsense
";
    let (table, decide) = migrated(text);
    assert_has(
        &table,
        r#"
        limits = { max_connections = 1000 }
        output = [{ name = "logs", type = "http", urls = ["http://logs-a:8080/"], headers = { x-cluster = "prod" }, timeouts = { connect = "500ms" } }]
        admin = { address = "0.0.0.0:9090" }
        "#,
    );
    let expected = "4 maxconn 2000 | 6 userlist admins | 7 user root … | \
         15 timeout client 2m | 16 timeout server 90s | \
         18 timeout http-keep-alive 3m | 20 bind :3000 … accept-proxy | \
         22 acl posts method POST | 23 http-request deny if !posts | \
         25 use_backend other if posts | 30 server a … weight 10 send-proxy | \
         31 backend other | 32 server b 10.0.0.9:80 | 33 listen stats | 34 bind 127.0.0.1:8404 | \
         35 stats enable | 36 stats auth … | 37 nonsense";
    assert_eq!(decide.join(" | "), expected);
    let report = migrate(text).unwrap().report;
    let expected = "2 daemon | 3 user haproxy | 5 stats socket /run/haproxy.sock | \
         10 option httplog | 11 option redispatch | 12 retries 3 | \
         13 retry-on all-retryable-errors | 17 timeout queue 1m | \
         28 option httpchk GET / | 29 http-check expect …";
    assert_eq!(of(&report, Verdict::NoEffect).join(" | "), expected);
    assert!(report.findings.iter().all(|finding| !finding.reason.is_empty()));
}

#[test]
fn no_directive_that_changes_what_is_forwarded_is_without_effect() {
    for words in DANGEROUS.split(", ") {
        let words = words.split_whitespace().map(str::to_owned).collect();
        let line = Line { number: 1, words };
        assert!(!is_harmless(&line), "{line:?}");
    }
}

/// Directives that change the sent events, their receivers, or who may send.
const DANGEROUS: &str = "\
    acl a src 10.0.0.10, block if a, capture request header Host len 9, capture response header \
    Server len 9, chroot-x, compression algo-req gzip, declare capture request len 9, disabled, \
    error-log-format %hr, filter spoe engine a, frobnicate 1, http-request allow, http-request \
    auth, http-request capture src len 9, http-request deny, http-request redirect location /, \
    http-request set-dst hdr(a), http-request set-header a b, http-request use-service lua.a, \
    http-send-name-header X, log 10.0.0.1 local0, log ring@a local0, log-format %hr, lua-load /a, \
    no log, option allbackups, option forwardfor, option frobnicate, option transparent, \
    rate-limit sessions 5, redirect scheme https, source 10.0.0.1, stats enable, stick on src, \
    tcp-request connection reject, tcp-request content accept, timeout frobnicate 5s, timeout \
    client 5h, timeout server 0, timeout client, unique-id-header X, use-server s if a";

#[test]
fn numbers_that_the_relay_does_not_take_are_to_decide_about() {
    for (from, to, line) in [
        ("mode http", "maxconn 2000000\n  mode http", 4),
        ("mode http", "maxconn 10k\n  mode http", 4),
        ("timeout connect 5s", "timeout connect 0", 6),
        ("timeout connect 5s", "timeout connect 5s5", 6),
        ("timeout connect 5s", "timeout connect 5S", 6),
        ("timeout client 10s", "timeout client 24h", 5),
        ("timeout server 10s", "timeout server 86400s", 7),
        ("timeout http-request 10s", "timeout http-request 2h", 8),
        ("timeout http-request 10s", "timeout http-keep-alive 400d", 8),
    ] {
        let (table, decide) = migrated(&SAMPLE.replace(from, to));
        let [told] = &decide[..] else { panic!("{to}: {decide:?}") };
        assert!(told.starts_with(&format!("{line} ")), "{told}");
        let number = to.split_whitespace().find(|word| word.starts_with(char::is_numeric));
        assert!(!format!("{table:?}").contains(&format!("\"{}\"", number.unwrap())), "{table:?}");
    }
}

#[test]
fn a_backup_that_verifies_nothing_takes_no_verification_from_others() {
    let (table, decide) = migrated(&with_servers(
        "  server y 3.3.3.3:3 ssl verify none backup\n  server z 4.4.4.4:4 ssl ca-file /ca verify required verifyhost z\n",
    ));
    let output = &table["output"][0];
    assert_eq!(output["urls"].as_array().unwrap().len(), 1);
    assert_eq!(output["urls"][0].as_str(), Some("https://4.4.4.4:4/"));
    assert!(!output["tls"].as_table().unwrap().contains_key("insecure_skip_verify"));
    assert_eq!(decide, ["15 server y 3.3.3.3:3 ssl verify none backup"]);
}

#[test]
fn tokens_are_not_shown_in_the_report() {
    let text = SAMPLE.replace(
        "  bind :3000\n",
        "  bind :3000\n  http-request set-header Authorization \"Basic c2Vj\" if TRUE\n  http-request set-header X-Token c2Vj\n  acl a hdr(Authorization) -m str c2Vj\n  monitor-uri /?token=c2Vj\n  user a password c2Vj\n",
    );
    let Migrated { config, report } = migrate(&text).unwrap();
    assert!(!format!("{report:?}").contains("c2Vj"), "{report:?}");
    let decide = report.lines("f", Verdict::Decide).join("\n");
    assert!(decide.contains("/readyz and /livez on the relay's admin address"), "{decide}");
    let (head, settings) = config.split_once("\n[[listener]]").unwrap();
    assert!(!head.contains("c2Vj") && settings.contains("\"x-token\" = \"c2Vj\""), "{config}");
}

#[test]
fn a_secret_in_a_header_gets_the_hint_of_a_file() {
    let carried = |header: &str| {
        let line = format!("  bind :3000\n  http-request set-header {header} Bearer-c2Vj\n");
        let Migrated { report, .. } = migrate(&SAMPLE.replace("  bind :3000\n", &line)).unwrap();
        report.lines("f", Verdict::Carried).join("\n")
    };
    for header in ["Authorization", "X-Api-Key", "X-Vault-Token", "Cookie"] {
        let lines = carried(header);
        assert!(lines.contains("${file:PATH}") && !lines.contains("c2Vj"), "{lines}");
    }
    assert!(!carried("X-Cluster").contains("${file:"));
}

#[test]
fn a_port_is_listened_on_once_and_admins_is_another() {
    let text = SAMPLE.replace("  bind :3000\n", "  bind :9090\n  bind 127.0.0.1:9091,:::9090\n");
    let (table, decide) = migrated(&text);
    assert_has(
        &table,
        r#"
        listener = [{ address = "0.0.0.0:9090" }, { address = "127.0.0.1:9091" }]
        admin = { address = "0.0.0.0:9092" }
        "#,
    );
    assert_eq!(decide, ["12 bind 127.0.0.1:9091,:::9090 … :::9090"]);
}

#[test]
fn a_listen_section_is_both_sides() {
    let (table, decide) = migrated(
        "listen audit\n bind *:3000\n mode http\n server one logs.example.com:8080\n server two [::1]:81\n",
    );
    assert_has(
        &table,
        r#"
        listener = [{ address = "0.0.0.0:3000" }]
        output = [{ name = "audit", type = "http", strategy = "round_robin", urls = ["http://logs.example.com:8080/", "http://[::1]:81/"] }]
        "#,
    );
    assert_eq!(decide, Vec::<String>::new());
}

#[test]
fn nothing_to_listen_on_or_to_send_to_is_an_error() {
    for text in [
        "",
        "global\n",
        "backend b\n server s 1.2.3.4:80\n",
        "frontend f\n bind :80\n default_backend none\n",
        "frontend f\n bind :80\n http-request deny\n",
        "listen f\n bind :80\n disabled\n server s 1.2.3.4:80\n",
        "frontend f\n bind :80\n default_backend b\nbackend b\n server s 1.2.3.4:80 disabled\n",
    ] {
        let unusable = migrate(text).unwrap_err();
        assert!(unusable.to_string().contains("nothing is written"), "{unusable}");
    }
}

#[test]
fn names_of_backends_become_names_of_outputs() {
    for (backend, expected) in
        [("queue", "consumer"), ("Logs_A.b", "logs-a-b"), ("-__", "consumer")]
    {
        let text = SAMPLE.replace("remotelogstash", backend);
        let (table, _) = migrated(&text);
        assert_eq!(table["output"][0]["name"].as_str(), Some(expected));
    }
}

#[test]
fn paths_of_files_become_those_of_secrets_and_commands_make_them() {
    let text = SAMPLE.replace("bind :3000", "bind :4443 ssl crt \"/etc/o'd/site.pem\"");
    let text = text.replace("8080 check", "8080 ssl ca-file /etc/ca.pem verifyhost a");
    let options = Options { name: "f", ..Options::default() };
    let Migrated { config, report } = super::migrate(&text, options).unwrap();
    let table: toml::Table = config.parse().unwrap();
    assert_eq!(table["listener"][0]["tls"]["certificate"].as_str(), Some("/certificates/tls.crt"));
    assert_eq!(table["output"][0]["tls"]["ca"].as_str(), Some("/consumer/ca.crt"));
    let commands: Vec<&str> =
        report.needs.iter().filter_map(|need| need.strip_prefix("    ")).collect();
    let expected = [
        r"sed -n '/-BEGIN CERT/,/-END CERT/p' '/etc/o'\''d/site.pem' > tls.crt",
        r"openssl pkey -in '/etc/o'\''d/site.pem' -out tls.key",
        "kubectl create secret generic audit-webhook -n ibm-kube-audit --from-file=tls.crt --from-file=tls.key",
        "kubectl create secret generic kube-audit-forwarder-consumer -n ibm-kube-audit --from-file=ca.crt='/etc/ca.pem'",
    ];
    assert_eq!(commands, expected);
    assert_eq!(migrate(&text).unwrap().report.needs, Vec::<String>::new());
}

#[test]
fn what_restricts_senders_and_has_no_counterpart_is_to_decide_about() {
    for option in ["ssl-min-ver TLSv1.0", "force-tlsv11", "verify required", "crl-file /a"] {
        let text = SAMPLE.replace("bind :3000", &format!("bind :3000 ssl crt /a.pem {option}"));
        assert_eq!(migrated(&text).1, [format!("11 bind :3000 … {option}")]);
    }
}

/// Asserts that each line with words is in the list of the config, and that the config is valid.
#[track_caller]
fn assert_whole(name: &str, text: &str, config: &str) {
    let verdicts = ["# decide: ", "# no effect: ", "# carried over: "];
    let listed: BTreeSet<usize> = config
        .lines()
        .filter_map(|line| verdicts.iter().find_map(|verdict| line.strip_prefix(verdict)))
        .filter_map(|rest| rest.strip_prefix(name)?.split(':').nth(1)?.parse().ok())
        .collect();
    let has_words =
        |line: &&str| !line.trim_start().is_empty() && !line.trim_start().starts_with('#');
    let lines = text.lines().enumerate().filter(|(_, line)| has_words(line));
    let lines: BTreeSet<usize> = lines.map(|(index, _)| index + 1).collect();
    assert_eq!(listed, lines, "{text}\n{config}");
    assert_eq!(errors(config), Vec::<String>::new(), "{text}\n{config}");
}

/// A haproxy.cfg of `tests/fixtures/haproxy`, with the expectations in its lines `#! KEY: VALUE`.
struct Example {
    name: String,
    text: String,
}

impl Example {
    fn all() -> Vec<Self> {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/haproxy");
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
                continue;
            }
        };
        if exit == ["2"] {
            // Without HAProxy, the user has to decide about the mistake.
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
            let lines = report.lines(name, Verdict::Carried).join("\n");
            assert!(!lines.contains(hidden), "{name} shows {hidden}\n{lines}");
        }
        for count in example.expected("count") {
            let (table, count) = count.split_once("]] ").unwrap();
            let found = settings.lines().filter(|line| line.starts_with(table)).count();
            assert_eq!(found.to_string(), count, "{name}: {table}\n{settings}");
        }
        assert_whole(name, &example.text, config);
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
        assert_eq!(errors(&whole), Vec::<String>::new(), "{whole}");
    }
}

mod any {
    use proptest::prelude::*;

    use super::*;

    /// Words with and without a meaning for HAProxy.
    const WORDS: &str = "bind :3000 server s1 10.0.0.1:80 ssl crt /a.pem ca-file verify none required check backup \
         timeout connect server 10s 0 maxconn log stdout balance first http-request set-header X-A \
         set-path /a \"${A-b}\" ' \" \\ default_backend b .if .endif frontend defaults from \u{7f}\u{1}";

    fn line() -> impl Strategy<Value = String> {
        let words: Vec<&str> = WORDS.split(' ').collect();
        let word = prop_oneof![4 => prop::sample::select(words).prop_map(str::to_owned), 1 => "[!-~]{0,8}"];
        prop::collection::vec(word, 1..6).prop_map(|words| words.join(" "))
    }

    /// A change at a line of a file: the line is removed or doubled, or another one is put above
    /// it.
    fn change() -> impl Strategy<Value = (prop::sample::Index, Option<Option<String>>)> {
        let inserted = prop::option::of(prop::option::of(line()));
        (any::<prop::sample::Index>(), inserted)
    }

    proptest! {
        /// For any file, `migrate` does not panic. A config that it returns is valid and lists
        /// every line.
        #[test]
        fn file_gives_a_whole_config_or_an_error(
            frontend in prop::collection::vec(line(), 0..4),
            backend in prop::collection::vec(line(), 0..6),
        ) {
            let text = format!(
                "frontend f\nbind :3000\ndefault_backend b\n{}\nbackend b\nserver s 10.0.0.1:80\n{}\n",
                frontend.join("\n"),
                backend.join("\n")
            );
            if let Ok(Migrated { config, .. }) = migrate(&text) {
                assert_whole("haproxy.cfg", &text, &config);
            }
        }

        /// The same for an example with some changes.
        #[test]
        fn changed_example_gives_a_whole_config_or_an_error(
            example in any::<prop::sample::Index>(),
            changes in prop::collection::vec(change(), 0..8),
        ) {
            let examples = Example::all();
            let Example { name, text } = example.get(&examples);
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            for (at, change) in changes {
                let at = at.index(lines.len());
                match change {
                    None if lines.len() > 1 => drop(lines.remove(at)),
                    None => {}
                    Some(inserted) => {
                        let line = inserted.unwrap_or_else(|| lines[at].clone());
                        lines.insert(at, line);
                    }
                }
            }
            let text = lines.join("\n");
            let options = Options { name, ..Options::default() };
            if let Ok(Migrated { config, .. }) = super::super::migrate(&text, options) {
                assert_whole(name, &text, &config);
            }
        }
    }
}
