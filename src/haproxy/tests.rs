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

/// Migrates the text. Asserts that the result is a valid config; missing files do not count.
#[track_caller]
fn migrated(text: &str) -> (toml::Table, Vec<Left>) {
    let Migrated { config, left } = migrate(text, "haproxy.cfg").unwrap();
    let problems = config::read(&config, crate::output::TYPES).problems;
    let wrong = problems.iter().filter(|problem| problem.severity == Severity::Error);
    assert_eq!(wrong.count(), 0, "{problems:?}\n{config}");
    (config.parse().unwrap(), left)
}

/// The lines and the directives that were not carried over.
fn shown(left: &[Left]) -> Vec<(usize, &str)> {
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
fn notes_stand_in_the_config_too() {
    let Migrated { config, left } = migrate(SAMPLE, "a\nb.cfg").unwrap();
    assert!(config.starts_with("# Made from ab.cfg by"), "{config}");
    for Left { line, directive, reason } in left {
        assert!(config.contains(&format!("# - line {line}: {directive}: {reason}\n")), "{config}");
    }
}

#[test]
fn an_address_that_was_never_filled_in_is_told_with_its_line() {
    let text = with_servers("  server s1 <REMOTE-IP>:<REMOTE-PORT> check\n");
    let unusable = migrate(&text, "haproxy.cfg").unwrap_err();
    assert_eq!(unusable.to_string(), "no `server` line can be carried over: nothing is written");
    let told = unusable.left.iter().find(|left| left.line == 15).unwrap();
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
fn a_name_that_haproxy_did_not_check_is_told_since_the_relay_does() {
    let (table, left) = migrated(&with_servers("  server s1 10.0.0.1:443 ssl ca-file ca.pem\n"));
    assert_eq!(table["output"][0]["tls"]["ca"].as_str(), Some("ca.pem"));
    let told = left.iter().find(|left| left.line == 15).unwrap();
    assert!(told.reason.contains("names 10.0.0.1"), "{told:?}");
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
    let (table, left) = migrated(&with_servers(
        "  server s1 10.0.0.1:443 ssl verify required ca-file a.pem verifyhost a\n  server s2 10.0.0.2:443 ssl verify none\n",
    ));
    assert_eq!(table["output"][0]["tls"].get("insecure_skip_verify"), None);
    assert_eq!(table["output"][0]["urls"].as_array().unwrap().len(), 1);
    assert_eq!(left.last().unwrap().line, 16);
}

#[test]
fn servers_are_taken_in_turn_or_in_order_as_before() {
    let two = "  server s1 10.0.0.1:80 check\n  server s2 10.0.0.2:80 check\n";
    let strategy = |lines: &str| {
        let (table, left) = migrated(&with_servers(lines));
        let output = &table["output"][0];
        let urls: Vec<String> = output["urls"]
            .as_array()
            .unwrap()
            .iter()
            .map(|url| url.as_str().unwrap().to_owned())
            .collect();
        let strategy =
            output.get("strategy").and_then(|strategy| strategy.as_str()).map(str::to_owned);
        (strategy, urls, left.iter().filter(|left| left.line > 12).count())
    };
    let in_turn = Some("round_robin".to_owned());
    let urls = vec!["http://10.0.0.1:80/".to_owned(), "http://10.0.0.2:80/".to_owned()];
    assert_eq!(strategy(two), (in_turn.clone(), urls.clone(), 0));
    assert_eq!(
        strategy(&format!("  balance roundrobin\n{two}")),
        (in_turn.clone(), urls.clone(), 0)
    );
    assert_eq!(strategy(&format!("  balance leastconn\n{two}")), (in_turn, urls.clone(), 1));
    assert_eq!(strategy(&format!("  balance first\n{two}")), (None, urls.clone(), 0));
    let backup_first = "  server s2 10.0.0.2:80 check backup\n  server s1 10.0.0.1:80 check\n";
    assert_eq!(strategy(backup_first), (None, urls.clone(), 0));
    assert_eq!(strategy(&format!("  balance roundrobin\n{backup_first}")), (None, urls, 1));
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
    for crt in ["", " crt /etc/certs/"] {
        let text = SAMPLE.replace("bind :3000", &format!("bind :3000 ssl{crt}"));
        let unusable = migrate(&text, "haproxy.cfg").unwrap_err();
        assert!(unusable.left.iter().any(|left| left.line == 11), "{unusable:?}");
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
        limits = { max_connections = 1000, body_timeout = "120s", idle_timeout = "180s" }
        output = [{ name = "logs", type = "http", urls = ["http://logs-a:8080/"], headers = { x-cluster = "prod" }, timeouts = { connect = "500ms", request = "90s" } }]
        admin = { address = "127.0.0.1:8404" }
        "#,
    );
    assert!(!table.contains_key("log"));
    let expected = [
        (2, "daemon"),
        (3, "user haproxy"),
        (5, "stats socket /run/haproxy.sock"),
        (6, "userlist admins"),
        (7, "user root …"),
        (10, "option httplog"),
        (11, "option redispatch"),
        (12, "retries 3"),
        (13, "retry-on all-retryable-errors"),
        (17, "timeout queue 1m"),
        (20, "bind … accept-proxy"),
        (22, "acl posts method POST"),
        (23, "http-request deny if !posts"),
        (25, "use_backend other if posts"),
        (28, "option httpchk GET /"),
        (29, "http-check expect status 200"),
        (30, "server a … inter 2s"),
        (30, "server a … rise 2"),
        (30, "server a … weight 10"),
        (30, "server a … send-proxy"),
        (31, "backend other"),
        (32, "server b 10.0.0.9:80"),
        (37, "stats auth …"),
        (38, "nonsense"),
    ];
    assert_eq!(shown(&left), expected);
    assert!(left.iter().all(|left| !left.reason.is_empty()));
}

#[test]
fn frontends_of_the_same_backend_are_all_listeners_and_others_are_named() {
    let text = format!(
        "{SAMPLE}frontend second\n  bind :3001\n  default_backend remotelogstash\nlisten third\n  bind :3002\n  server s 10.0.0.1:1\n"
    );
    let (table, left) = migrated(&text);
    let addresses: Vec<_> = table["listener"]
        .as_array()
        .unwrap()
        .iter()
        .map(|listener| listener["address"].as_str().unwrap())
        .collect();
    assert_eq!(addresses, ["0.0.0.0:3000", "0.0.0.0:3001"]);
    let third: Vec<_> = shown(&left).into_iter().filter(|(line, _)| *line > 15).collect();
    assert_eq!(third, [(19, "listen third"), (20, "bind :3002"), (21, "server s 10.0.0.1:1")]);
}

#[test]
fn ports_that_are_counted_from_others_and_numbers_beyond_all_bounds_are_told() {
    for server in ["10.0.0.1:+100", "logs:0", "logs:65536"] {
        let unusable = migrate(&with_servers(&format!("  server s1 {server}\n")), "f").unwrap_err();
        assert!(unusable.left.iter().any(|left| left.line == 15), "{server}: {unusable:?}");
        assert!(
            unusable.left.iter().all(|left| left.line != 2),
            "only what was tried: {unusable:?}"
        );
    }
    for bind in [":+3006", ":0"] {
        let text = SAMPLE.replace(":3000", bind);
        assert!(migrate(&text, "f").unwrap_err().left.iter().any(|left| left.line == 11), "{bind}");
    }
    let text = SAMPLE.replace("frontend myfrontend\n", "frontend myfrontend\n  maxconn 2000000\n");
    let text = text.replace("timeout connect 5s", "timeout connect 0");
    let (table, left) = migrated(&text);
    assert_eq!(table["limits"]["max_connections"].as_integer(), Some(1 << 20));
    assert!(!table["output"][0].as_table().unwrap().contains_key("timeouts"));
    assert_eq!(shown(&left)[1..3], [(6, "timeout connect 0"), (7, "timeout server 10s")]);
    assert_eq!(shown(&left)[3], (11, "maxconn 2000000"));
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
    let Migrated { config, left } = migrate(&text, "f").unwrap();
    assert!(!config.contains("c2Vj") && !format!("{left:?}").contains("c2Vj"), "{config}");
    assert!(config.contains("\"x-token\" = \"abc\""), "{config}");
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
        let unusable = migrate(text, "haproxy.cfg").unwrap_err();
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

mod any {
    use proptest::prelude::*;

    use super::*;

    /// Words with and without a meaning for HAProxy.
    const WORDS: [&str; 34] = [
        "bind",
        ":3000",
        "server",
        "s1",
        "10.0.0.1:80",
        "ssl",
        "crt",
        "/a.pem",
        "ca-file",
        "verify",
        "none",
        "required",
        "check",
        "backup",
        "timeout",
        "connect",
        "server",
        "10s",
        "0",
        "maxconn",
        "log",
        "stdout",
        "balance",
        "first",
        "http-request",
        "set-header",
        "X-A",
        "\"${A-b}\"",
        "'",
        "\"",
        "\\",
        "default_backend",
        "b",
        "\u{7f}\u{1}",
    ];

    fn line() -> impl Strategy<Value = String> {
        let word = prop_oneof![4 => prop::sample::select(&WORDS[..]).prop_map(str::to_owned), 1 => "[!-~]{0,8}"];
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
            if let Ok(Migrated { config, .. }) = migrate(&text, "haproxy.cfg") {
                let problems = config::read(&config, crate::output::TYPES).problems;
                // The words contain a variable, whose value in the test's environment may be
                // anything; only errors count here.
                let wrong = problems.iter().find(|problem| problem.severity == Severity::Error);
                prop_assert!(wrong.is_none(), "{wrong:?}\n{config}");
            }
        }
    }
}
