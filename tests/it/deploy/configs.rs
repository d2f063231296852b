//! The files of `config/` as shipped. Only addresses, ports and file paths are replaced. The
//! configs for HTTP consumers have their tests in `configs_http.rs`.

use crate::support::PATIENCE;
use crate::support::certificates::Certificates;
use crate::support::corpus::corpus;
use crate::support::corpus::events_of;
use crate::support::http::Client;
use crate::support::http_sink::HttpSink;
use crate::support::lumberjack_server::LumberjackServer;
use crate::support::lumberjack_sink::LumberjackSink;
use crate::support::peers::Rsyslog;
use crate::support::peers::Security;
use crate::support::peers::SyslogNg;
use crate::support::relay::Backlog;
use crate::support::relay::Relay;
use crate::support::repository;
use crate::support::server::Options;
use crate::support::tcp_sink::Framing;
use crate::support::tcp_sink::TcpSink;
use crate::support::text;
use crate::support::wait_until;

/// Returns a shipped file with these texts replaced, each of which must occur. Its listener and
/// admin address become loopback, with ports that the kernel chooses.
fn shipped(name: &str, substitutions: &[(&str, &str)]) -> String {
    let file = repository().join("config").join(name);
    let mut config = std::fs::read_to_string(file).expect("part of the repository");
    let ours = [
        (r#"address = "0.0.0.0:3000""#, r#"address = "127.0.0.1:0""#),
        (r#"address = "0.0.0.0:9090""#, r#"address = "127.0.0.1:0""#),
    ];
    for (theirs, tests) in ours.iter().chain(substitutions) {
        assert!(config.contains(theirs), "{name} has no {theirs}");
        config = config.replace(theirs, tests);
    }
    assert!(!config.contains("example.com"), "{name} names a consumer that no test has");
    config
}

/// Posts the corpus to the first listener, and returns the events that must arrive.
fn post_corpus(relay: &Relay) -> Vec<Vec<u8>> {
    let mut expected = Vec::new();
    for body in corpus() {
        let address = relay.listeners()[0].1;
        let mut client = Client::connect(address).expect("it listens");
        let response = client.post("/any/path?timeout=30s", "application/json", &body.bytes);
        assert_eq!(response.expect("an answer").status, 200, "{}", body.name);
        expected.extend(events_of(&body.bytes));
    }
    expected
}

/// Waits until every event is acknowledged, and until the consumer has read the last one: the
/// kernel acknowledges bytes before the consumer reads them.
fn wait_until_arrived(relay: &Relay, sink: &TcpSink, expected: &[Vec<u8>]) {
    relay.wait_until_delivered(PATIENCE * 2);
    wait_until("the last event", PATIENCE, || sink.has(expected.last().unwrap()));
}

/// Returns `localhost:PORT`; localhost is the name in the certificate.
fn by_name(address: std::net::SocketAddr) -> String {
    format!("localhost:{}", address.port())
}

#[test]
fn logstash_tcp_sends_lines_plain_and_over_tls() {
    let certificates = Certificates::new();
    let plain = TcpSink::start();
    let tls = Some(certificates.server_config(&certificates.server, false));
    let secure = TcpSink::with(Framing::Lines, Options { tls, ..Options::default() });
    let config = shipped(
        "logstash-tcp.toml",
        &[
            ("logstash.example.com:5000", &by_name(plain.address())),
            ("logstash.example.com:5001", &by_name(secure.address())),
            ("/certificates/ca.crt", text(&certificates.ca)),
        ],
    );
    let relay = Relay::start(&config);
    let expected = post_corpus(&relay);
    wait_until_arrived(&relay, &plain, &expected);
    wait_until_arrived(&relay, &secure, &expected);
    assert!(plain.lines() == expected);
    assert!(secure.lines() == expected);
    relay.finish(Backlog::Empty);
}

#[test]
fn logstash_beats_sends_windows_plain_and_over_tls() {
    let certificates = Certificates::new();
    let plain = LumberjackServer::start();
    let tls = Some(certificates.server_config(&certificates.server, false));
    let secure = LumberjackSink::with(Options { tls, ..Options::default() }, |window, reply| {
        reply.acknowledge(window.events.len());
        true
    });
    let config = shipped(
        "logstash-beats.toml",
        &[
            ("logstash.example.com:5044", &by_name(plain.address())),
            ("logstash.example.com:5045", &by_name(secure.address())),
            ("/certificates/ca.crt", text(&certificates.ca)),
        ],
    );
    let relay = Relay::start(&config);
    let expected = post_corpus(&relay);
    relay.wait_until_delivered(PATIENCE);
    assert!(plain.events() == expected);
    assert!(secure.events() == expected);
    relay.finish(Backlog::Empty);
}

#[test]
fn fan_out_sends_everything_to_both_and_goes_to_the_second_logstash_when_the_first_is_down() {
    let (mut first, second) = (TcpSink::start(), TcpSink::start());
    let archive = HttpSink::accepting();
    let config = shipped(
        "fan-out.toml",
        &[
            ("logstash-a.example.com:5000", &first.address().to_string()),
            ("logstash-b.example.com:5000", &second.address().to_string()),
            ("archive.example.com:8080", &archive.address().to_string()),
        ],
    );
    let relay = Relay::start(&config);
    let expected = post_corpus(&relay);
    wait_until_arrived(&relay, &first, &expected);
    assert!(first.lines() == expected && second.count() == 0);
    // Four requests are sent at once. Each holds its events in order, and together they hold all
    // events.
    let as_audit_log = |event: &Vec<u8>| {
        let head = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;
        [&head[..], event.strip_prefix(b"{").expect("an object")].concat()
    };
    let mut wanted: Vec<_> = expected.iter().map(as_audit_log).collect();
    let mut archived: Vec<Vec<u8>> = archive
        .requests()
        .iter()
        .inspect(|request| assert_eq!(request.header("content-encoding"), Some("zstd")))
        .flat_map(|request| {
            let body = request.decoded();
            let mut lines: Vec<_> = body.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
            assert_eq!(lines.pop(), Some(Vec::new()), "each line is ended");
            lines
        })
        .collect();
    wanted.sort();
    archived.sort();
    assert!(archived == wanted);

    first.close();
    let again = post_corpus(&relay);
    wait_until_arrived(&relay, &second, &again);
    assert!(second.lines() == again);
    relay.finish(Backlog::Empty);
}

#[test]
fn stdout_writes_lines_and_opens_https_when_the_certificate_appears() {
    let certificates = Certificates::new();
    let directory = tempfile::TempDir::new().unwrap();
    let file = |name: &str| directory.path().join(name);
    let config = shipped(
        "stdout.toml",
        &[
            (r#"address = "0.0.0.0:4443""#, r#"address = "127.0.0.1:0""#),
            ("/certificates/tls.crt", text(&file("tls.crt"))),
            ("/certificates/tls.key", text(&file("tls.key"))),
        ],
    );
    let mut relay = Relay::with(&config).listeners(1).start();
    let mut expected = post_corpus(&relay);
    assert_eq!(relay.listeners().len(), 1, "without a certificate only plain HTTP");

    std::fs::copy(&certificates.server.key, file("tls.key")).unwrap();
    std::fs::copy(&certificates.server.certificate, file("tls.crt")).unwrap();
    relay.wait_for_listeners(2);
    let (_, https) = relay.listeners()[1];
    for body in corpus() {
        let mut client = Client::connect_tls(https, certificates.client_config(None)).unwrap();
        let response = client.post("/", "application/json", &body.bytes).unwrap();
        assert_eq!(response.status, 200, "{}", body.name);
        expected.extend(events_of(&body.bytes));
    }
    let lines: Vec<u8> =
        expected.iter().flat_map(|event| [event, &b"\n"[..]]).flatten().copied().collect();
    relay.wait_until_delivered(PATIENCE);
    wait_until("all of it", PATIENCE, || relay.stdout().len() >= lines.len());
    assert!(relay.stdout() == lines);
    relay.finish(Backlog::Empty);
}

/// They need peers, or root.
mod peers {
    use super::*;

    #[test]
    fn syslog_tls_sends_to_rsyslog_over_tls_and_to_syslog_ng_over_tcp() {
        let certificates = Certificates::new();
        let secure = Rsyslog::start(Security::Tls, &certificates);
        let plain = SyslogNg::start(Security::Plain, &certificates);
        let config = shipped(
            "syslog-tls.toml",
            &[
                ("syslog.example.com:6514", &by_name(secure.address())),
                ("syslog.example.com:601", &by_name(plain.address())),
                ("/certificates/ca.crt", text(&certificates.ca)),
            ],
        );
        let relay = Relay::start(&config);
        let expected = post_corpus(&relay);
        relay.wait_until_delivered(PATIENCE);
        secure.wait_for_count(expected.len(), PATIENCE);
        plain.wait_for_count(expected.len(), PATIENCE);
        assert!(secure.messages() == expected);
        assert!(plain.messages() == expected);
        relay.finish(Backlog::Empty);
    }

    #[test]
    fn syslog_tls_sends_to_syslog_ng_over_tls_and_to_rsyslog_over_tcp() {
        let certificates = Certificates::new();
        let secure = SyslogNg::start(Security::Tls, &certificates);
        let plain = Rsyslog::start(Security::Plain, &certificates);
        let config = shipped(
            "syslog-tls.toml",
            &[
                ("syslog.example.com:6514", &by_name(secure.address())),
                ("syslog.example.com:601", &by_name(plain.address())),
                ("/certificates/ca.crt", text(&certificates.ca)),
            ],
        );
        let relay = Relay::start(&config);
        let expected = post_corpus(&relay);
        relay.wait_until_delivered(PATIENCE);
        secure.wait_for_count(expected.len(), PATIENCE);
        plain.wait_for_count(expected.len(), PATIENCE);
        assert!(secure.messages() == expected);
        assert!(plain.messages() == expected);
        relay.finish(Backlog::Empty);
    }

    #[test]
    fn rsyslog_relp_sends_over_tls_and_over_tcp() {
        let certificates = Certificates::new();
        let secure = Rsyslog::relp(Security::Tls, &certificates);
        let plain = Rsyslog::relp(Security::Plain, &certificates);
        let config = shipped(
            "rsyslog-relp.toml",
            &[
                ("syslog.example.com:20514", &by_name(secure.address())),
                ("syslog.example.com:2514", &by_name(plain.address())),
                ("/certificates/ca.crt", text(&certificates.ca)),
            ],
        );
        let relay = Relay::start(&config);
        let expected = post_corpus(&relay);
        relay.wait_until_delivered(PATIENCE);
        assert!(secure.messages() == expected);
        assert!(plain.messages() == expected);
        relay.finish(Backlog::Empty);
    }
}
