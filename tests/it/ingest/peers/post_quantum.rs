//! The key exchange with other TLS libraries. Those that have X25519MLKEM768 agree on it with the
//! relay. Older ones agree on X25519, without a second hello.

use std::process::{Command, Stdio};

use crate::support::hello::{Wiretap, X25519, X25519MLKEM768};
use crate::support::needs::needs;
use crate::support::peers::{Haproxy, curl, forwarder};
use crate::support::prelude::*;
use crate::support::setup::start;

/// Returns the group that the peer's offer leads to. OpenSSL has X25519MLKEM768 since version 3.5.
fn expected(offered: &[u16]) -> u16 {
    if offered.contains(&X25519MLKEM768) { X25519MLKEM768 } else { X25519 }
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn curl_and_a_listener_agree_at_the_first_hello() {
    let certificates = Certificates::new();
    let (relay, sink) = start(&certificates.server.tls(), "");
    let tap = Wiretap::start(Some(relay.address()));
    let url = format!("https://localhost:{}/", tap.address().port());
    let batch = generated_batch(1, 3, 600);
    let json = "content-type: application/json";
    let ca = text(&certificates.ca);
    let output = curl(&["--cacert", ca, "-H", json, "--data-binary", "@-", &url], &batch);
    assert!(output.status.success(), "{output:?}");
    sink.wait_for_count(3, PATIENCE);
    assert_eq!(tap.choice(), (expected(&tap.offer().groups), 1));
    relay.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn an_output_and_haproxy_agree_at_the_first_hello() {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let both = directory.path().join("both.pem");
    let files = [&certificates.server.certificate, &certificates.server.key];
    std::fs::write(&both, files.map(|file| std::fs::read(file).unwrap()).concat()).unwrap();
    let sink = HttpSink::start(|_| Answer::status(200));
    let haproxy = Haproxy::with(|port| {
        let bind = format!("  bind 127.0.0.1:{port} ssl crt {}", text(&both));
        forwarder(&bind, &format!("  server s1 {}", sink.address()))
    });
    let tap = Wiretap::start(Some(haproxy.process.address()));
    let url = format!("https://localhost:{}/", tap.address().port());
    let relay =
        Relay::start(&to_http(&[url], &format!("tls = {{ ca = {:?} }}\n", certificates.ca)));
    let sent = post_batch(&relay, 1, 20, 900);
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&sink), &sent);
    let (group, hellos) = tap.choice();
    assert!([X25519, X25519MLKEM768].contains(&group), "{group:#x}");
    assert_eq!(hellos, 1);
    relay.finish(Backlog::Empty);
}

/// kube-apiserver 1.33 and later is such a client. SeaweedFS's shell is built with Go 1.24 or
/// newer. It tries to reach a master by gRPC, which a listener is not, but the handshake is the
/// same.
#[test]
#[ignore = "needs peers or root: ./test"]
fn a_client_in_go_and_a_listener_agree_on_x25519mlkem768() {
    needs("weed");
    let certificates = Certificates::new();
    let (relay, _sink) = start(&certificates.server.tls(), "");
    let tap = Wiretap::start(Some(relay.address()));
    let directory = TempDir::new().unwrap();
    let Certificates { ca, client, .. } = &certificates;
    let security = format!(
        "[grpc]\nca = {ca:?}\n[grpc.client]\ncert = {:?}\nkey = {:?}\n",
        client.certificate, client.key
    );
    std::fs::write(directory.path().join("security.toml"), security).unwrap();
    let mut shell = Command::new(repository().join("target/peers/weed"))
        .args(["shell", &format!("-master=127.0.0.1:1.{}", tap.address().port())])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("`./test setup` installs weed");
    let (offer, choice) = (tap.offer(), tap.choice());
    shell.kill().unwrap();
    shell.wait().unwrap();
    assert!(offer.groups.contains(&X25519MLKEM768), "{offer:x?}");
    assert_eq!(choice, (X25519MLKEM768, 1));
    drop(tap);
    relay.finish(Backlog::Empty);
}
