//! The files of `config/` as shipped. Only addresses, ports and file paths are replaced. The
//! configs for HTTP consumers have their tests in `configs_http.rs`.

use std::net::SocketAddr;

use super::configs_http::post_the_corpus;
use crate::support::lumberjack_server::LumberjackServer;
use crate::support::lumberjack_sink::LumberjackSink;
use crate::support::peers::{Rsyslog, Security, SyslogNg};
use crate::support::prelude::*;
use crate::support::requests::shipped;
use crate::support::tcp_sink::Framing;

/// Starts a relay with a shipped config. Each consumer in the config is replaced by the one at this
/// address, under the name in its certificate, and the CA by this one. Posts the corpus, and
/// returns the events once the relay has delivered them.
fn run(name: &str, ca: &Certificates, consumers: &[(&str, SocketAddr)]) -> (Relay, Vec<Vec<u8>>) {
    let by_name = |address: &SocketAddr| format!("localhost:{}", address.port());
    let ours: Vec<String> = consumers.iter().map(|(_, address)| by_name(address)).collect();
    let theirs = consumers.iter().map(|(theirs, _)| *theirs);
    let mut substitutions: Vec<_> = theirs.zip(ours.iter().map(String::as_str)).collect();
    let config = std::fs::read_to_string(repository().join("config").join(name)).unwrap();
    if config.contains("/certificates/ca.crt") {
        substitutions.push(("/certificates/ca.crt", text(&ca.ca)));
    }
    let config = shipped(name, &substitutions);
    assert!(!config.contains("example.com"), "{name} names a consumer that no test has");
    let relay = Relay::start(&config);
    let events = post_the_corpus(relay.address());
    relay.wait_until_delivered(PATIENCE * 2);
    (relay, events)
}

/// Waits until the consumer has read the last event. The kernel acknowledges bytes earlier.
fn wait_until_arrived(sink: &TcpSink, expected: &[Vec<u8>]) {
    wait_until("the last event", PATIENCE, || sink.has(expected.last().unwrap()));
}

fn tls(certificates: &Certificates) -> Options {
    Options { tls: Some(certificates.server.server_config()), ..Options::default() }
}

#[test]
fn logstash_tcp_sends_lines_plain_and_over_tls() {
    let certificates = Certificates::new();
    let (plain, secure) = (TcpSink::start(), TcpSink::with(Framing::Lines, tls(&certificates)));
    let consumers = [
        ("logstash.example.com:5000", plain.address()),
        ("logstash.example.com:5001", secure.address()),
    ];
    let (relay, expected) = run("logstash-tcp.toml", &certificates, &consumers);
    for sink in [plain, secure] {
        wait_until_arrived(&sink, &expected);
        assert!(sink.lines() == expected);
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn logstash_beats_sends_windows_plain_and_over_tls() {
    let certificates = Certificates::new();
    let plain = LumberjackServer::start();
    let secure = LumberjackSink::with(tls(&certificates), |window, reply| {
        reply.acknowledge(window.events.len());
        true
    });
    let consumers = [
        ("logstash.example.com:5044", plain.address()),
        ("logstash.example.com:5045", secure.address()),
    ];
    let (relay, expected) = run("logstash-beats.toml", &certificates, &consumers);
    assert!(plain.events() == expected);
    assert!(secure.events() == expected);
    relay.finish(Backlog::Empty);
}

#[test]
fn fan_out_sends_everything_to_both_and_goes_to_the_second_logstash_when_the_first_is_down() {
    let (mut first, second) = (TcpSink::start(), TcpSink::start());
    let archive = HttpSink::accepting();
    let consumers = [
        ("logstash-a.example.com:5000", first.address()),
        ("logstash-b.example.com:5000", second.address()),
        ("archive.example.com:8080", archive.address()),
    ];
    let (relay, expected) = run("fan-out.toml", &Certificates::new(), &consumers);
    wait_until_arrived(&first, &expected);
    assert!(first.lines() == expected && second.count() == 0);
    // Four requests are sent at once, so the order of the events is not compared.
    let as_audit_log = |event: &Vec<u8>| {
        let head = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;
        [&head[..], event.strip_prefix(b"{").expect("an object")].concat()
    };
    let mut wanted: Vec<_> = expected.iter().map(as_audit_log).collect();
    let mut archived: Vec<Vec<u8>> = archive
        .requests()
        .iter()
        .inspect(|request| assert_eq!(request.header("content-encoding"), Some("zstd")))
        .flat_map(events_in)
        .collect();
    wanted.sort();
    archived.sort();
    assert!(archived == wanted);

    first.close();
    let again = post_the_corpus(relay.address());
    relay.wait_until_delivered(PATIENCE * 2);
    wait_until_arrived(&second, &again);
    assert!(second.lines() == again);
    relay.finish(Backlog::Empty);
}

#[test]
fn stdout_writes_lines_and_opens_https_when_the_certificate_appears() {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
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
    let mut expected = post_the_corpus(relay.address());
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

/// Tests that need peers.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn syslog_tls_sends_to_rsyslog_and_to_syslog_ng_over_tls_and_over_tcp() {
        let certificates = Certificates::new();
        let [rsyslog, plain_rsyslog] =
            [Security::Tls, Security::Plain].map(|it| Rsyslog::start(it, &certificates));
        let [syslog_ng, plain_syslog_ng] =
            [Security::Tls, Security::Plain].map(|it| SyslogNg::start(it, &certificates));
        let mut expected = Vec::new();
        for (secure, plain) in [
            (rsyslog.address(), plain_syslog_ng.address()),
            (syslog_ng.address(), plain_rsyslog.address()),
        ] {
            let consumers =
                [("syslog.example.com:6514", secure), ("syslog.example.com:601", plain)];
            let (relay, events) = run("syslog-tls.toml", &certificates, &consumers);
            relay.finish(Backlog::Empty);
            expected = events;
        }
        for peer in [rsyslog, plain_rsyslog] {
            peer.wait_for_count(expected.len(), PATIENCE);
            assert!(peer.messages() == expected);
        }
        for peer in [syslog_ng, plain_syslog_ng] {
            peer.wait_for_count(expected.len(), PATIENCE);
            assert!(peer.messages() == expected);
        }
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn rsyslog_relp_sends_over_tls_and_over_tcp() {
        let certificates = Certificates::new();
        let [secure, plain] =
            [Security::Tls, Security::Plain].map(|it| Rsyslog::relp(it, &certificates));
        let consumers = [
            ("syslog.example.com:20514", secure.address()),
            ("syslog.example.com:2514", plain.address()),
        ];
        let (relay, expected) = run("rsyslog-relp.toml", &certificates, &consumers);
        assert!(secure.messages() == expected);
        assert!(plain.messages() == expected);
        relay.finish(Backlog::Empty);
    }
}
