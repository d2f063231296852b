//! `migrate haproxy`: a relay with the printed config forwards the same requests as the real
//! HAProxy with the original file.

use std::fs::File;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::support::PATIENCE;
use crate::support::certificates::Certificates;
use crate::support::certificates::Pair;
use crate::support::corpus::corpus;
use crate::support::corpus::events_of;
use crate::support::free_port;
use crate::support::http;
use crate::support::http_sink::Answer;
use crate::support::http_sink::HttpSink;
use crate::support::peers;
use crate::support::peers::Haproxy;
use crate::support::peers::forwarder;
use crate::support::relay::Backlog;
use crate::support::relay::Relay;
use crate::support::relay::run_command;
use crate::support::requests::events_in;
use crate::support::server::Options;
use crate::support::text;
use crate::support::wait_for;

/// Starts a relay with the config that `migrate` prints for this HAProxy, on ports that the kernel
/// chooses.
fn migrated(haproxy: &Haproxy) -> Relay {
    let file = haproxy.config_file();
    let output = run_command(&["migrate", "haproxy", text(&file)], Path::new("/"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    for (line, directive) in [(5, "timeout client 10s"), (7, "timeout server 10s")] {
        assert!(stderr.contains(&format!("{}:{line}: {directive}: ", file.display())), "{stderr}");
    }
    let config = String::from_utf8(output.stdout).unwrap();
    let place = TempDir::new().unwrap();
    let toml = place.path().join("config.toml");
    std::fs::write(&toml, &config).unwrap();
    let checked = run_command(&["check", "--config", text(&toml)], Path::new("/"));
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    let listens = haproxy.address().to_string();
    assert!(config.contains(&listens) && config.contains("0.0.0.0:9090"), "{config}");
    Relay::start(&config.replace(&listens, "127.0.0.1:0").replace("0.0.0.0:9090", "127.0.0.1:0"))
}

/// Sends the corpus to a forwarder. Returns the bodies that have arrived at the consumer since.
fn forward(sink: &HttpSink, mut post: impl FnMut(&[u8])) -> Vec<Vec<u8>> {
    let before = sink.accepted().len();
    let mut count = 0;
    for body in corpus() {
        post(&body.bytes);
        count += events_of(&body.bytes).len();
    }
    let arrived = |sink: &HttpSink| -> Vec<_> {
        sink.requests().into_iter().filter(|request| request.is_accepted()).skip(before).collect()
    };
    wait_for("every event", PATIENCE, || {
        let events: Vec<Vec<u8>> = arrived(sink).iter().flat_map(events_in).collect();
        (events.len() >= count).then_some(events)
    })
}

fn sorted(mut events: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    events.sort();
    events
}

fn post(address: SocketAddr) -> impl FnMut(&[u8]) {
    move |body| {
        let answer = http::post(address, "/post?timeout=30s", "application/json", body).unwrap();
        assert_eq!(answer.status, 200);
    }
}

/// Writes the chain and the key into one PEM file, as HAProxy needs them.
fn joined(pair: &Pair, directory: &TempDir) -> PathBuf {
    let file = directory.path().join("joined.pem");
    let parts = [&pair.certificate, &pair.key].map(|part| std::fs::read(part).unwrap());
    std::fs::write(&file, parts.concat()).unwrap();
    file
}

#[test]
fn the_consumer_of_the_providers_sample_gets_the_same_bodies() {
    let sink = HttpSink::accepting();
    let consumer = sink.address();
    let backend = format!("  server s1 {consumer} check");
    let haproxy = Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port}"), &backend));
    let relay = migrated(&haproxy);
    for body in corpus() {
        let before = sink.accepted().len();
        post(haproxy.address())(&body.bytes);
        sink.wait_for_count(before + 1, PATIENCE);
        post(relay.address())(&body.bytes);
        relay.wait_until_delivered(PATIENCE);
        let accepted = sink.accepted();
        let [original, ours] = &accepted[before..] else { panic!("{} requests", accepted.len()) };
        if body.bytes.starts_with(br#"{"kind":"EventList""#) {
            assert_eq!(original.trim_ascii_end(), ours.trim_ascii_end(), "{}", body.name);
        } else {
            assert_eq!(events_of(original), events_of(ours), "{}", body.name);
        }
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn a_consumer_that_wants_tls_and_a_client_certificate_gets_the_same_events() {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let client = joined(&certificates.client, &directory);
    let tls = Some(certificates.server_config(&certificates.server, true));
    let sink = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200));
    let backend = format!(
        "  server s1 {} check ssl crt {} ca-file {} verify required verifyhost localhost",
        sink.address(),
        text(&client),
        text(&certificates.ca)
    );
    let haproxy = Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port}"), &backend));
    let relay = migrated(&haproxy);
    let original = forward(&sink, post(haproxy.address()));
    let ours = forward(&sink, post(relay.address()));
    assert!(sorted(original) == sorted(ours));
    relay.finish(Backlog::Empty);
}

#[test]
fn a_frontend_that_wants_tls_and_client_certificates_takes_the_same_senders() {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let server = joined(&certificates.server, &directory);
    let sink = HttpSink::accepting();
    let frontend =
        format!("ssl crt {} ca-file {} verify required", text(&server), text(&certificates.ca));
    let backend = format!("  server s1 {} check", sink.address());
    let haproxy =
        Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port} {frontend}"), &backend));
    let relay = migrated(&haproxy);
    let ca = ["--cacert", text(&certificates.ca)];
    let client = &certificates.client;
    let identity = ["--cert", text(&client.certificate), "--key", text(&client.key)];
    let curl = |address: SocketAddr, options: &[&str], body: &[u8]| {
        let url = format!("https://localhost:{}/post", address.port());
        let header =
            ["--fail", "-H", "Content-Type: application/json", "--data-binary", "@-", &url];
        peers::curl(&[&ca[..], options, &header].concat(), body).status.success()
    };
    let forwarded = [haproxy.address(), relay.address()].map(|address| {
        assert!(!curl(address, &[], b"{}"), "without a certificate");
        forward(&sink, |body| assert!(curl(address, &identity, body)))
    });
    let [original, ours] = forwarded.map(sorted);
    assert!(original == ours);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_backup_gets_everything_while_the_first_server_is_down() {
    let sink = HttpSink::accepting();
    let dead = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let backend = format!(
        "  option redispatch\n  retry-on conn-failure\n  server backup {} check backup\n  server first {dead} check",
        sink.address()
    );
    let haproxy = Haproxy::with(|port| forwarder(&format!("  bind 127.0.0.1:{port}"), &backend));
    let relay = migrated(&haproxy);
    // HAProxy checks a server every two seconds, and takes it for down after the third failure.
    wait_for("HAProxy to use its backup", PATIENCE, || {
        let answer = http::post(haproxy.address(), "/", "application/json", b"{}").ok()?;
        (answer.status == 200).then_some(())
    });
    let original = forward(&sink, post(haproxy.address()));
    let ours = forward(&sink, post(relay.address()));
    assert!(sorted(original) == sorted(ours));
    relay.finish(Backlog::Empty);
}

#[test]
fn standard_input_is_read_and_what_is_no_config_is_wrong_usage() {
    let directory = TempDir::new().unwrap();
    let sample = forwarder("  bind :3000", "  server s1 10.0.0.1:8080 check");
    let file = directory.path().join("haproxy.cfg");
    std::fs::write(&file, sample).unwrap();
    let piped = Command::new(env!("CARGO_BIN_EXE_kube-audit-forwarder"))
        .args(["migrate", "haproxy", "-"])
        .stdin(File::open(file).unwrap())
        .output()
        .unwrap();
    assert_eq!(piped.status.code(), Some(0));
    assert!(String::from_utf8(piped.stdout).unwrap().contains("address = \"0.0.0.0:3000\""));
    std::fs::write(directory.path().join("latin1.cfg"), b"global\n  # caf\xe9\n").unwrap();
    std::fs::write(directory.path().join("empty.cfg"), "").unwrap();
    for (file, said) in [
        ("empty.cfg", "nothing is written"),
        ("latin1.cfg", "line 2 is not UTF-8"),
        ("none.cfg", "cannot read it: No such file"),
    ] {
        let output = run_command(&["migrate", "haproxy", file], directory.path());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{stderr}");
        assert!(stderr.contains(said) && stderr.contains(file), "{stderr}");
    }
}
