//! The peers refuse what is wrong. With a peer that accepts everything, tests of the relay prove
//! little.

use crate::support::peers;
use crate::support::peers::{Nginx, Rsyslog, SyslogNg};
use crate::support::prelude::*;

#[test]
#[ignore = "needs peers or root: ./test"]
fn peers_that_require_a_client_certificate_refuse_who_has_none() {
    let certificates = Certificates::new();
    let rsyslog = Rsyslog::start(Security::MutualTls, &certificates);
    let syslog_ng = SyslogNg::start(Security::MutualTls, &certificates);
    let frame = b"51 <134>1 2026-01-02T03:04:05.678901Z relay a - - - {}";
    for address in [rsyslog.address(), syslog_ng.address()] {
        for pair in [None, Some(&certificates.wrong_client), Some(&certificates.expired_client)] {
            // With TLS 1.3, the refusal comes after the client has completed its handshake.
            let config = certificates.client_config(pair);
            let closed = Client::connect_tls(address, config).and_then(|mut client| {
                client.send(frame)?;
                Ok(client.read_response().is_err())
            });
            assert!(closed.unwrap_or(true));
        }
    }
    assert!(rsyslog.messages().is_empty() && syslog_ng.messages().is_empty());
}

#[test]
#[ignore = "needs peers or root: ./test"]
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
#[ignore = "needs peers or root: ./test"]
fn promtool_tells_right_metrics_from_wrong_ones() {
    let right = "# HELP a_total What it counts.\n# TYPE a_total counter\na_total 1\n";
    assert_eq!(peers::promtool_check(right), Ok(()));
    assert!(peers::promtool_check("# TYPE a counter\na 1\n").is_err());
    assert!(peers::promtool_check("no metrics\n").is_err());
}

#[test]
#[ignore = "needs peers or root: ./test"]
#[should_panic(expected = "request 1 is not in the script")]
fn a_fake_that_is_asked_for_more_than_its_script_fails_the_test() {
    let sink = HttpSink::script([Answer::status(200)]);
    let mut client = Client::connect(sink.address()).unwrap();
    assert_eq!(client.post("/", "text/plain", b"1").unwrap().status, 200);
    assert!(client.post("/", "text/plain", b"2").is_err());
}
