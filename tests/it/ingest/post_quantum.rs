//! X25519MLKEM768, a key exchange that resists quantum computers. Each output offers it first, and
//! a listener agrees on it with every client that has it.

use rustls::crypto::aws_lc_rs;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::{HandshakeKind, NamedGroup};

use crate::support::certificates::chain;
use crate::support::hello::{Wiretap, X25519, X25519MLKEM768};
use crate::support::prelude::*;
use crate::support::setup::start;
use crate::support::stream::Stream;

/// Returns the types of outputs, in the order of the reference.
fn types() -> Vec<String> {
    let page = std::fs::read_to_string(repository().join("docs/reference/config.md")).unwrap();
    let row = page.lines().find(|line| line.starts_with("| `type` |  |")).expect("the types");
    row.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the keys with which an output of this type connects to `address` by TLS. `secret` is a
/// file with a secret.
fn keys(kind: &str, address: SocketAddr, secret: &Path) -> String {
    let url = format!("https://{address}");
    let more = match kind {
        "tcp" | "syslog" | "lumberjack" | "relp" => {
            return format!("addresses = [\"{address}\"]\ntls = {{}}\n");
        }
        "elasticsearch" => "index = \"audit\"".to_owned(),
        "http" | "loki" | "otlp" => String::new(),
        "splunk_hec" => format!("token_file = {secret:?}"),
        "ibm_cloud_logs" => format!("api_key_file = {secret:?}\niam_url = \"{url}\""),
        "s3" => format!(
            "bucket = \"audit\"\nregion = \"eu-central-1\"\nobject_age = \"100ms\"\n\
             access_key_id_file = {secret:?}\nsecret_access_key_file = {secret:?}"
        ),
        other => panic!("how does an output of the type {other} connect by TLS?"),
    };
    format!("urls = [\"{url}\"]\n{more}\n")
}

#[test]
fn every_output_offers_x25519mlkem768_first_and_has_a_key_for_it_and_for_x25519() {
    let directory = TempDir::new().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef").unwrap();
    // stdout connects to nothing, and kafka uses OpenSSL for TLS.
    let types: Vec<_> =
        types().into_iter().filter(|kind| !["stdout", "kafka"].contains(&&**kind)).collect();
    assert_eq!(types.len(), 11, "{types:?}");
    let taps: Vec<_> = types.iter().map(|_| Wiretap::start(None)).collect();
    let mut config = unrestricted(BASE);
    for (kind, tap) in types.iter().zip(&taps) {
        let keys = keys(kind, tap.address(), &secret);
        let name = kind.replace('_', "-");
        config += &format!("[[output]]\nname = \"{name}\"\ntype = \"{kind}\"\n{keys}{QUICK}");
    }
    config += "[shutdown]\ndrain_timeout = \"200ms\"\n";
    let relay = Relay::start(&config);
    post_batch(&relay, 1, 5, 900);
    for (kind, tap) in types.iter().zip(&taps) {
        let offer = tap.offer();
        assert_eq!(offer.groups[..2], [X25519MLKEM768, X25519], "{kind}");
        assert_eq!(offer.keys, [X25519MLKEM768, X25519], "{kind}");
    }
    relay.finish(Backlog::Stable);
}

#[test]
fn a_listener_agrees_on_x25519mlkem768_with_every_client_that_has_it() {
    let certificates = Certificates::new();
    let (relay, _sink) = start(&certificates.server.tls(), "");
    let (hybrid, plain) = (kx_group::X25519MLKEM768, kx_group::X25519);
    for (groups, chosen) in [
        (vec![hybrid, plain], NamedGroup::X25519MLKEM768),
        (vec![hybrid], NamedGroup::X25519MLKEM768),
        // The relay prefers it too: this client has sent a key for X25519 only.
        (vec![plain, hybrid], NamedGroup::X25519MLKEM768),
        // These are older clients.
        (vec![plain, kx_group::SECP256R1], NamedGroup::X25519),
        (vec![kx_group::SECP256R1], NamedGroup::secp256r1),
    ] {
        let provider = rustls::crypto::CryptoProvider {
            kx_groups: groups.clone(),
            ..aws_lc_rs::default_provider()
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(chain(&certificates.ca)[0].clone()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = Client::connect_tls(relay.address(), Arc::new(config)).unwrap();
        let Stream::Client(tls) = client.stream() else { panic!("a TLS client") };
        let group = tls.conn.negotiated_key_exchange_group().expect("a full handshake").name();
        assert_eq!(group, chosen, "{groups:?}");
        let kind = match groups[..] {
            [first, second] if first.name() == plain.name() && second.name() == hybrid.name() => {
                HandshakeKind::FullWithHelloRetryRequest
            }
            _ => HandshakeKind::Full,
        };
        assert_eq!(tls.conn.handshake_kind(), Some(kind), "{groups:?}");
    }
    relay.finish(Backlog::Empty);
}
