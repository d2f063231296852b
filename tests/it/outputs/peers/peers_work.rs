//! The peers alone, without the relay: they receive exactly what was sent. If a test of the relay
//! fails against a peer that passes here, it has found a fault of the relay.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::PATIENCE;
use crate::support::certificates::Certificates;
use crate::support::corpus::corpus;
use crate::support::corpus::events_of;
use crate::support::corpus::generated_batch;
use crate::support::http;
use crate::support::http::Client;
use crate::support::http_sink::Answer;
use crate::support::http_sink::HttpSink;
use crate::support::peers;
use crate::support::peers::Haproxy;
use crate::support::peers::Nginx;
use crate::support::peers::Rsyslog;
use crate::support::peers::Security;
use crate::support::peers::SyslogNg;
use crate::support::server::Options;
use crate::support::tcp_sink::Framing;
use crate::support::tcp_sink::TcpSink;
use crate::support::wait_until;

/// Returns a message of RFC 5424 without a frame.
fn rfc5424(event: &[u8]) -> Vec<u8> {
    let header = b"<134>1 2026-01-02T03:04:05.678901Z relay.example kube-audit - - - ";
    [header, event].concat()
}

/// Returns an octet-counted frame (RFC 6587 §3.4.1).
fn octet_counted(message: &[u8]) -> Vec<u8> {
    [message.len().to_string().as_bytes(), b" ", message].concat()
}

/// Returns the recorded events with characters that a syslog server may change, and an event of 500
/// KB.
fn difficult_events() -> Vec<Vec<u8>> {
    let mut events: Vec<Vec<u8>> = corpus()
        .iter()
        .filter(|body| body.name.starts_with("04-") || body.name.starts_with("15-"))
        .flat_map(|body| events_of(&body.bytes))
        .collect();
    events.extend(events_of(&generated_batch(7, 1, 500_000)));
    // Characters that JSON allows unescaped: a tab between tokens, and in strings DEL, a C1 control
    // and U+2028.
    let raw = "{\"a\":\t\"\u{7f}\u{80}\u{2028} %msg% $MSG ${MSG} \\\\n\" , \"b\":1  }";
    events.push(raw.as_bytes().to_vec());
    events
}

/// Sends these bytes over one connection and ends it in order.
fn send(address: SocketAddr, security: Security, certificates: &Certificates, bytes: &[u8]) {
    let mut client = match security {
        Security::Plain => Client::connect(address),
        Security::Tls => Client::connect_tls(address, certificates.client_config(None)),
        Security::MutualTls => {
            Client::connect_tls(address, certificates.client_config(Some(&certificates.client)))
        }
    }
    .expect("the peer listens");
    client.send(bytes).expect("the peer reads");
    client.stream().finish_writing().expect("the peer is there");
    assert!(client.is_closed_by_server(), "the peer answers the end with an end");
}

fn rsyslog_takes_each_event_byte_for_byte(security: Security) {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::start(security, &certificates);
    let events = difficult_events();
    let frames: Vec<u8> = events.iter().flat_map(|event| octet_counted(&rfc5424(event))).collect();
    send(rsyslog.address(), security, &certificates, &frames);
    rsyslog.wait_for_count(events.len(), PATIENCE);
    assert!(rsyslog.messages() == events, "rsyslog changed an event");
    let sent: Vec<_> = events.iter().map(|event| rfc5424(event)).collect();
    assert!(rsyslog.raw() == sent, "rsyslog changed a header");
}

#[test]
fn rsyslog_takes_octet_counting() {
    rsyslog_takes_each_event_byte_for_byte(Security::Plain);
}

#[test]
fn rsyslog_takes_octet_counting_over_tls() {
    rsyslog_takes_each_event_byte_for_byte(Security::Tls);
}

#[test]
fn rsyslog_takes_octet_counting_over_mutual_tls() {
    rsyslog_takes_each_event_byte_for_byte(Security::MutualTls);
}

#[test]
fn rsyslog_takes_newlines_on_the_same_port() {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::start(Security::Plain, &certificates);
    let events = difficult_events();
    let lines: Vec<u8> =
        events.iter().flat_map(|event| [rfc5424(event), b"\n".to_vec()].concat()).collect();
    send(rsyslog.address(), Security::Plain, &certificates, &lines);
    rsyslog.wait_for_count(events.len(), PATIENCE);
    assert!(rsyslog.messages() == events, "rsyslog changed an event");
}

fn syslog_ng_takes_each_event_byte_for_byte(security: Security) {
    let certificates = Certificates::new();
    let syslog_ng = SyslogNg::start(security, &certificates);
    let events = difficult_events();
    let frames: Vec<u8> = events.iter().flat_map(|event| octet_counted(&rfc5424(event))).collect();
    send(syslog_ng.address(), security, &certificates, &frames);
    syslog_ng.wait_for_count(events.len(), PATIENCE);
    assert!(syslog_ng.messages() == events, "syslog-ng changed an event");
    wait_until("the headers", PATIENCE, || syslog_ng.headers().len() == events.len());
    for header in syslog_ng.headers() {
        let header = String::from_utf8(header).unwrap();
        let columns: Vec<&str> = header.split(' ').collect();
        assert_eq!(columns[0], "134", "{header}");
        assert_eq!(columns[3..], ["relay.example", "kube-audit"], "{header}");
    }
}

#[test]
fn syslog_ng_takes_octet_counting() {
    syslog_ng_takes_each_event_byte_for_byte(Security::Plain);
}

#[test]
fn syslog_ng_takes_octet_counting_over_tls() {
    syslog_ng_takes_each_event_byte_for_byte(Security::Tls);
}

#[test]
fn syslog_ng_takes_octet_counting_over_mutual_tls() {
    syslog_ng_takes_each_event_byte_for_byte(Security::MutualTls);
}

#[test]
fn peers_that_require_a_client_certificate_refuse_who_has_none() {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::start(Security::MutualTls, &certificates);
    let syslog_ng = SyslogNg::start(Security::MutualTls, &certificates);
    let frame = octet_counted(&rfc5424(b"{}"));
    for address in [rsyslog.address(), syslog_ng.address()] {
        for pair in [None, Some(&certificates.wrong_client), Some(&certificates.expired_client)] {
            // With TLS 1.3, the refusal comes after the client has completed its handshake.
            let config = certificates.client_config(pair);
            let closed = Client::connect_tls(address, config).and_then(|mut client| {
                client.send(&frame)?;
                Ok(client.read_response().is_err())
            });
            assert!(closed.unwrap_or(true));
        }
    }
    assert!(rsyslog.messages().is_empty() && syslog_ng.messages().is_empty());
}

#[test]
fn a_syslog_peer_keeps_port_and_messages_over_stop_kill_and_start() {
    let certificates = Certificates::new();
    let mut rsyslog = Rsyslog::start(Security::Plain, &certificates);
    let mut syslog_ng = SyslogNg::start(Security::Plain, &certificates);
    for round in 1..=3 {
        for address in [rsyslog.address(), syslog_ng.address()] {
            send(address, Security::Plain, &certificates, &octet_counted(&rfc5424(b"{}")));
        }
        rsyslog.wait_for_count(round, PATIENCE);
        syslog_ng.wait_for_count(round, PATIENCE);
        if round % 2 == 0 {
            rsyslog.process.kill();
            syslog_ng.process.kill();
        } else {
            rsyslog.process.stop();
            syslog_ng.process.stop();
        }
        assert!(Client::connect(rsyslog.address()).is_err(), "nobody listens any more");
        rsyslog.process.start();
        syslog_ng.process.start();
    }
}

#[test]
fn nginx_passes_a_post_on() {
    let certificates = Certificates::new();
    let consumer = HttpSink::accepting();
    let nginx = Nginx::start(Security::Plain, &certificates, consumer.address());
    let body = generated_batch(1, 400, 1600);
    let response = http::post(nginx.address(), "/audit?token=1", "application/json", &body);
    assert_eq!(response.unwrap().status, 200);
    assert_eq!(consumer.requests()[0].target, "/audit?token=1");
    assert!(consumer.accepted() == [body], "nginx changed the body");
    wait_until("nginx's log", PATIENCE, || {
        nginx.access_log().starts_with("POST /audit?token=1 200 ")
    });
}

#[test]
fn nginx_ends_mutual_tls_and_answers_plain_http_on_that_port_with_400() {
    let certificates = Certificates::new();
    let consumer = HttpSink::accepting();
    let nginx = Nginx::start(Security::MutualTls, &certificates, consumer.address());
    let with_certificate = certificates.client_config(Some(&certificates.client));
    let mut client = Client::connect_tls(nginx.address(), with_certificate).unwrap();
    for _ in 0..2 {
        assert_eq!(client.post("/", "application/json", b"{}").unwrap().status, 200);
    }
    let without = certificates.client_config(None);
    let mut client = Client::connect_tls(nginx.address(), without).unwrap();
    assert_eq!(client.post("/", "application/json", b"{}").unwrap().status, 400);
    let plain = http::post(nginx.address(), "/", "application/json", b"{}").unwrap();
    assert_eq!(plain.status, 400);
    assert_eq!(consumer.count(), 2);
}

#[test]
fn haproxy_passes_a_post_on_and_answers_503_without_a_consumer() {
    let mut consumer = HttpSink::accepting();
    let mut haproxy = Haproxy::start(consumer.address());
    let body = generated_batch(1, 400, 1600);
    let response = http::post(haproxy.address(), "/", "application/json", &body).unwrap();
    assert_eq!(response.status, 200);
    assert!(consumer.accepted() == [body.clone()], "HAProxy changed the body");
    consumer.close();
    let response = http::post(haproxy.address(), "/", "application/json", &body).unwrap();
    assert_eq!(response.status, 503);
    consumer.reopen();
    haproxy.process.stop();
    haproxy.process.start();
    let response = http::post(haproxy.address(), "/", "application/json", &body).unwrap();
    assert_eq!(response.status, 200);
}

#[test]
fn promtool_tells_right_metrics_from_wrong_ones() {
    let right = "# HELP a_total What it counts.\n# TYPE a_total counter\na_total 1\n";
    assert_eq!(peers::promtool_check(right), Ok(()));
    assert!(peers::promtool_check("# TYPE a counter\na 1\n").is_err());
    assert!(peers::promtool_check("no metrics\n").is_err());
}

#[test]
fn curl_posts_to_a_fake_with_tls() {
    let certificates = Certificates::new();
    let tls = Some(certificates.server_config(&certificates.server, true));
    let consumer =
        HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200).body("ok"));
    let url = format!("https://localhost:{}/", consumer.address().port());
    let ca = certificates.ca.to_str().unwrap();
    let certificate = certificates.client.certificate.to_str().unwrap();
    let key = certificates.client.key.to_str().unwrap();
    let body = generated_batch(3, 400, 1600);
    let arguments = ["--cacert", ca, "--cert", certificate, "--key", key, "--data-binary", "@-"];
    let output = peers::curl(&[&arguments[..], &[&url]].concat(), &body);
    assert_eq!(output.stdout, b"ok", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(consumer.accepted() == [body], "curl changed the body");
    let refused = peers::curl(&["--cacert", ca, "--data-binary", "@-", &url], b"{}");
    assert!(!refused.status.success());
    wait_until("the failed handshake", PATIENCE, || consumer.handshake_failures().len() == 1);
}

#[test]
fn the_fake_tcp_consumer_cuts_pauses_dies_and_comes_back() {
    let mut sink = TcpSink::start();
    sink.cut_each_after(Some(10));
    let mut client = Client::connect(sink.address()).unwrap();
    client.send(b"one\ntwo\nthree\nfour\n").unwrap();
    sink.wait_for_count(2, PATIENCE);
    assert!(client.is_closed_by_server());
    wait_until("the cut", PATIENCE, || sink.open() == 0);
    assert_eq!(sink.lines(), [b"one", b"two"]);
    assert_eq!(sink.bytes_of_connections(), [10]);

    sink.cut_each_after(None);
    sink.pause(true);
    let mut client = Client::connect(sink.address()).unwrap();
    client.send(b"five\n").unwrap();
    wait_until("the accept", PATIENCE, || sink.open() == 1);
    sink.kill();
    let error = client.read_response().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(sink.count(), 2, "what it had not read is lost");
    assert!(Client::connect(sink.address()).is_err(), "nobody listens any more");

    sink.reopen();
    let mut client = Client::connect(sink.address()).unwrap();
    client.send(b"six\n").unwrap();
    sink.wait_for_count(3, PATIENCE);
    sink.finish_writing();
    assert!(client.is_closed_by_server(), "its FIN arrives");
    client.send(b"seven\n").unwrap();
    sink.wait_for_count(4, PATIENCE);
    sink.close();
    assert!(sink.history().iter().all(|times| times.closed.is_some()));
}

#[test]
fn the_fake_tcp_consumer_reads_frames_over_tls() {
    let certificates = Certificates::new();
    let tls = Some(certificates.server_config(&certificates.server, true));
    let sink = TcpSink::with(Framing::OctetCounting, Options { tls, ..Options::default() });
    let events = difficult_events();
    let frames: Vec<u8> = events.iter().flat_map(|event| octet_counted(event)).collect();
    send(sink.address(), Security::MutualTls, &certificates, &frames);
    sink.wait_for_count(events.len(), PATIENCE);
    assert!(sink.lines() == events);
}

#[test]
fn the_fake_http_consumer_follows_its_script() {
    let soon = Duration::from_millis(50);
    let sink = HttpSink::script([
        Answer::status(429).header("Retry-After", "2"),
        Answer::status(200).after(soon).closing(),
        Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        Answer::reset(),
        Answer::never(),
    ]);
    let mut client = Client::connect(sink.address()).unwrap();
    let response = client.post("/", "text/plain", b"1").unwrap();
    assert_eq!((response.status, response.header("retry-after")), (429, Some("2")));
    let response = client.post("/", "text/plain", b"2").unwrap();
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    assert!(client.is_closed_by_server());
    let mut client = Client::connect(sink.address()).unwrap();
    assert_eq!(client.post("/", "text/plain", b"3").unwrap().body, b"ok");
    assert!(client.post("/", "text/plain", b"4").is_err());
    let mut client = Client::connect(sink.address()).unwrap();
    client.read_timeout(soon);
    assert!(client.post("/", "text/plain", b"5").is_err());
    assert_eq!(sink.accepted(), [b"2", b"3"]);
    let requests = sink.requests();
    let (_, answered) = requests[1].answered.unwrap();
    assert!(answered - requests[1].read >= soon);
    assert_eq!(requests.iter().map(|request| request.connection).collect::<Vec<_>>(), {
        [0, 0, 1, 1, 2]
    });
}

#[test]
#[should_panic(expected = "request 1 is not in the script")]
fn a_fake_that_is_asked_for_more_than_its_script_fails_the_test() {
    let sink = HttpSink::script([Answer::status(200)]);
    let mut client = Client::connect(sink.address()).unwrap();
    assert_eq!(client.post("/", "text/plain", b"1").unwrap().status, 200);
    assert!(client.post("/", "text/plain", b"2").is_err());
}

#[test]
fn wrong_certificates_are_refused() {
    let certificates = Certificates::new();
    let wrong =
        [&certificates.expired_server, &certificates.wrong_server, &certificates.elsewhere_server];
    for pair in wrong {
        let tls = Some(certificates.server_config(pair, false));
        let sink = TcpSink::with(Framing::Lines, Options { tls, ..Options::default() });
        let config = certificates.client_config(None);
        assert!(Client::connect_tls(sink.address(), config).is_err(), "{pair:?}");
        wait_until("the failed handshake", PATIENCE, || sink.handshake_failures().len() == 1);
    }
    let another = certificates.another_server("another");
    let tls = Some(certificates.server_config(&another, false));
    let sink = TcpSink::with(Framing::Lines, Options { tls, ..Options::default() });
    Client::connect_tls(sink.address(), certificates.client_config(None)).unwrap();
}
