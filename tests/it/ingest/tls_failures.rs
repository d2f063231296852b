//! A metric, the log and the verdict in `/status` show a sender that cannot connect. The log shows
//! a sender with a wrong token. Health checks do not appear.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::support::certificates::Pair;
use crate::support::peers::program;
use crate::support::prelude::*;
use crate::support::setup::start;

const LINE: &str = "a sender cannot connect: the TLS handshake fails";
const REFUSED: &str = "requests from a sender are refused";

/// Returns the keys of a listener with TLS.
fn tls(certificates: &Certificates, more: &str) -> String {
    let Pair { certificate, key } = &certificates.server;
    format!(
        "[listener.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n{more}\n",
        text(certificate),
        text(key)
    )
}

/// Connects to the relay with openssl and these arguments.
fn openssl(relay: &Relay, arguments: &[&str]) {
    let address = relay.address().to_string();
    let mut child = Command::new(program("openssl"))
        .args(["s_client", "-connect", &address])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl runs");
    // A TLS 1.3 client notices a refusal only when it reads.
    child.stdin.take().expect("piped").write_all(b"GET / HTTP/1.1\r\n\r\n").ok();
    child.wait().expect("our child");
}

fn curl(relay: &Relay, scheme: &str, arguments: &[&str]) {
    let url = format!("{scheme}://{}/", relay.address());
    crate::support::peers::curl(&[arguments, &[url.as_str()]].concat(), b"");
}

fn send(relay: &Relay, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(relay.address()).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

fn failures(relay: &Relay, reason: &str) -> f64 {
    let labels = [("listener", "127.0.0.1:0"), ("reason", reason)];
    relay.metrics().value("listener_tls_failures_total", &labels)
}

fn is_warning(relay: &Relay, message: &str) -> bool {
    let mut lines = relay.log_lines().into_iter();
    lines.any(|line| line.contains(message) && line.contains("\"level\":\"WARN\""))
}

/// The beginning of a ClientHello.
const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

/// Checks the log line about a failed handshake, and what `/status` says.
fn assert_traced(relay: &Relay, reason: &str, words: &str) {
    let line = relay.wait_for_log(LINE, PATIENCE);
    assert_eq!(line["reason"], reason, "{line}");
    assert_eq!(line["listener"], "127.0.0.1:0", "{line}");
    assert!(is_warning(relay, LINE), "{}", relay.log_text());
    assert_eq!(line["handshakes"], 1, "{line}");
    assert!(line["peer"].as_str().is_some_and(|it| it.starts_with("127.0.0.1:")), "{line}");
    assert!(line["error"].as_str().is_some_and(|it| it.contains(words)), "{line}");
    let status = http::get(relay.admin(), "/status").unwrap().json();
    if reason == "closed" {
        // Some health checks do this.
        assert_eq!(status["last_tls_failure"], Value::Null, "{status:#}");
        return;
    }
    assert_eq!(status["last_tls_failure"]["reason"], reason, "{status:#}");
    let words = format!("TLS handshakes at 127.0.0.1:0 failed recently ({reason}).");
    assert_eq!(status["verdict"]["state"], "warn", "{status:#}");
    assert_eq!(status["verdict"]["text"], words, "{status:#}");
}

#[test]
fn a_sender_that_fails_again_and_again_has_one_line_and_its_count() {
    let certificates = Certificates::new();
    let (relay, _sink) = start(&tls(&certificates, ""), "");
    for _ in 0..50 {
        drop(send(&relay, b"POST / HTTP/1.1\r\n\r\n"));
    }
    wait_until("all of them", PATIENCE, || failures(&relay, "plain_http") == 50.0);
    relay.wait_for_log(LINE, PATIENCE);
    let lines = || relay.log_fields().iter().filter(|line| line["message"] == LINE).count();
    assert!((1..=2).contains(&lines()), "{}", relay.log_text());
    relay.finish(Backlog::Empty);
}

/// Method: many connections end before their first byte. Half of them end with a reset, as from
/// some load balancers.
#[test]
fn a_health_check_that_only_connects_is_no_failure() {
    let certificates = Certificates::new();
    let (relay, _sink) = start(&tls(&certificates, ""), "");
    for number in 0..20 {
        let stream = TcpStream::connect(relay.address()).unwrap();
        if number % 2 == 0 {
            let socket = socket2::SockRef::from(&stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    // This later connection shows that the relay has handled all others.
    drop(send(&relay, b"POST / HTTP/1.1\r\n\r\n"));
    wait_until("the last one", PATIENCE, || failures(&relay, "plain_http") == 1.0);
    wait_until("the ends", PATIENCE, || relay.metrics().sum("connections") == 0.0);
    assert_eq!(relay.metrics().sum("listener_tls_failures_total"), 1.0);
    relay.finish(Backlog::Empty);
}

/// A load balancer or a browser connects before it has something to send.
#[test]
fn a_connection_without_a_single_byte_is_no_failure_when_its_time_is_over() {
    let certificates = Certificates::new();
    let limits = "[limits]\nheader_timeout = \"300ms\"\n";
    let (relay, _sink) = start(&tls(&certificates, ""), limits);
    let mut stream = TcpStream::connect(relay.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the relay closes it");
    wait_until("its end", PATIENCE, || relay.metrics().sum("connections") == 0.0);
    assert_eq!(relay.metrics().sum("listener_tls_failures_total"), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_wrong_token_has_one_line_with_the_sender_and_without_the_token() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "the-right-token").unwrap();
    let (relay, _sink) = start(&format!("bearer_token_file = \"{}\"\n", text(&file)), "");
    let mut client = Client::connect(relay.address()).unwrap();
    for _ in 0..20 {
        let headers = [("Authorization", "Bearer the-wrong-token")];
        assert_eq!(client.request("POST", "/", &headers, b"{}").unwrap().status, 401);
    }
    let line = relay.wait_for_log(REFUSED, PATIENCE);
    assert!(is_warning(&relay, REFUSED), "{}", relay.log_text());
    assert_eq!(line["listener"], "127.0.0.1:0", "{line}");
    assert_eq!(line["requests"], 1, "{line}");
    assert_eq!((&line["code"], &line["reason"]), (&json!(401), &json!("unauthorized")), "{line}");
    assert_eq!(line["error"], "the bearer token is wrong", "{line}");
    assert!(line["peer"].as_str().is_some_and(|it| it.starts_with("127.0.0.1:")), "{line}");
    let said = |line: &&Value| line["message"] == REFUSED;
    let lines = relay.log_fields().iter().filter(said).count();
    assert!((1..=2).contains(&lines), "{}", relay.log_text());
    let log = relay.finish(Backlog::Empty);
    assert!(!log.contains("the-wrong-token"), "{log}");
}

/// The log has a line for each sender and reason of a permanent refusal, and none for a health
/// check.
#[test]
fn what_is_refused_for_good_has_a_line_with_the_sender_and_the_reason() {
    let more = "[limits]\nmax_body = \"64KiB\"\n[queue]\nmax_bytes = \"1MiB\"\n";
    let (relay, _sink) = start("path_prefix = \"/in\"\n", more);
    let large = vec![b'x'; 70_000];
    let word = format!("{{\"kind\":\"{}\"}}", "x".repeat(2000));
    let refused: [(&str, &str, &[u8], u16, &str); 5] = [
        ("/in", "identity", word.as_bytes(), 400, "invalid"),
        ("/in", "identity", b"no JSON", 400, "invalid"),
        ("/out", "identity", b"{}", 404, "not_found"),
        ("/in", "identity", &large, 413, "too_large"),
        ("/in", "br", b"{}", 415, "media_type"),
    ];
    for (path, encoding, body, status, _) in refused {
        let mut client = Client::connect(relay.address()).unwrap();
        let headers = [("Content-Encoding", encoding)];
        let answer = client.request("POST", path, &headers, body).unwrap();
        assert_eq!(answer.status, status, "{path} {encoding}");
    }
    let mut client = Client::connect(relay.address()).unwrap();
    assert_eq!(client.request("GET", "/in", &[], b"").unwrap().status, 405);
    send(&relay, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        .read_to_end(&mut Vec::new())
        .unwrap();
    wait_until("the last line", PATIENCE, || relay.log_text().contains("media_type"));
    assert!(is_warning(&relay, REFUSED), "{}", relay.log_text());
    let lines = relay.log_fields();
    let lines: Vec<_> = lines.iter().filter(|line| line["message"] == REFUSED).collect();
    for (.., status, reason) in refused {
        let one = lines.iter().find(|line| line["code"] == status && line["reason"] == reason);
        let error = one.and_then(|line| line["error"].as_str()).unwrap_or_default();
        assert!((1..=300).contains(&error.chars().count()), "{status}: {lines:#?}");
    }
    assert_eq!(lines.len(), 4, "one line for each reason, and none for a health check: {lines:#?}");
    relay.finish(Backlog::Empty);
}

/// These tests need openssl and curl.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_sender_whose_handshake_fails_leaves_a_trace_with_the_reason() {
        let certificates = Certificates::new();
        let client_ca = format!("client_ca = \"{}\"", text(&certificates.ca));
        let identity = |pair: &Pair| {
            ["-cert", text(&pair.certificate), "-key", text(&pair.key)].map(str::to_owned)
        };
        let as_client = |relay: &Relay, pair: &Pair| {
            let identity = identity(pair);
            openssl(relay, &identity.each_ref().map(String::as_str));
        };
        type Try<'a> = Box<dyn Fn(&Relay) + 'a>;
        let ca = text(&certificates.ca);
        let cases: [(&str, &str, &str, Try<'_>); 10] = [
            (
                "no_certificate",
                &client_ca,
                "presents no client certificate, and tls.client_ca asks for one",
                Box::new(|relay| openssl(relay, &[])),
            ),
            (
                "unknown_ca",
                &client_ca,
                "a CA that is not in tls.client_ca",
                Box::new(|relay| as_client(relay, &certificates.wrong_client)),
            ),
            (
                "expired",
                &client_ca,
                "has expired",
                Box::new(|relay| as_client(relay, &certificates.expired_client)),
            ),
            (
                "bad_certificate",
                &client_ca,
                "certificate",
                Box::new(|relay| as_client(relay, &certificates.server)),
            ),
            (
                "refused",
                "",
                "does not accept the certificate of this listener",
                Box::new(|relay| curl(relay, "https", &[])),
            ),
            (
                "plain_http",
                "",
                "its URL must begin with https://",
                Box::new(|relay| curl(relay, "http", &["--data-binary", "{}"])),
            ),
            (
                "protocol_version",
                "min_version = \"1.3\"",
                "older than tls.min_version",
                Box::new(|relay| openssl(relay, &["-tls1_2", "-CAfile", ca])),
            ),
            (
                "timeout",
                "",
                "within limits.header_timeout",
                Box::new(|relay| {
                    let stream = send(relay, HELLO);
                    wait_until("the end", PATIENCE, || failures(relay, "timeout") > 0.0);
                    drop(stream);
                }),
            ),
            ("closed", "", "has closed the connection", Box::new(|relay| drop(send(relay, HELLO)))),
            (
                "other",
                "",
                "bytes that are not TLS",
                Box::new(|relay| drop(send(relay, b"\x00\x01\x02\x03\x04\x05\x06\x07"))),
            ),
        ];
        for (reason, keys, words, attempt) in cases {
            // Only one case waits for the timeout.
            let limits =
                if reason == "timeout" { "[limits]\nheader_timeout = \"3s\"\n" } else { "" };
            let (relay, _sink) = start(&tls(&certificates, keys), limits);
            assert_eq!(
                relay.metrics().sum("listener_tls_failures_total"),
                0.0,
                "there from the start"
            );
            attempt(&relay);
            wait_until(reason, PATIENCE, || failures(&relay, reason) == 1.0);
            assert_eq!(relay.metrics().sum("listener_tls_failures_total"), 1.0, "{reason}");
            assert_traced(&relay, reason, words);
            relay.finish(Backlog::Empty);
        }
    }
}
