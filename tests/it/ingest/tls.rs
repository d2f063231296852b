//! HTTPS listeners: the clients that are admitted, and certificates and tokens that are replaced
//! while they are in use.

use std::os::unix::fs::symlink;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::support::answers::{
    NO_EVENTS, assert_accepted, assert_head_refusal, assert_kept, assert_refusal,
};
use crate::support::certificates::{Pair, chain, expire};
use crate::support::h2;
use crate::support::h2::H2;
use crate::support::peers::curl;
use crate::support::prelude::*;
use crate::support::setup::{config, start};
use crate::support::stream::Stream;

const JSON: &str = "application/json";

/// Returns the listener's TLS keys.
fn tls(pair: &Pair, more: &str) -> String {
    format!(
        "[listener.tls]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n{more}\n",
        text(&pair.certificate),
        text(&pair.key)
    )
}

fn connect(relay: &Relay, config: &Arc<rustls::ClientConfig>) -> std::io::Result<Client> {
    Client::connect_tls(relay.address(), Arc::clone(config))
}

/// Returns the certificate that the relay presents in a new handshake.
fn presented(relay: &Relay, config: &Arc<rustls::ClientConfig>) -> CertificateDer<'static> {
    let mut client = connect(relay, config).unwrap();
    let Stream::Client(tls) = client.stream() else { panic!("a TLS client") };
    tls.conn.peer_certificates().expect("done")[0].clone().into_owned()
}

/// Returns `true` if a client with only this TLS version completes its handshake.
fn connects_with(
    relay: &Relay,
    certificates: &Certificates,
    version: &'static rustls::SupportedProtocolVersion,
) -> bool {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain(&certificates.ca)[0].clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    connect(relay, &Arc::new(config)).is_ok()
}

#[test]
fn min_version_is_kept() {
    let certificates = Certificates::new();
    for (key, takes_1_2) in
        [("", true), ("min_version = \"1.2\"", true), ("min_version = \"1.3\"", false)]
    {
        let (relay, _sink) = start(&tls(&certificates.server, key), "");
        assert_eq!(
            connects_with(&relay, &certificates, &rustls::version::TLS12),
            takes_1_2,
            "{key}"
        );
        assert!(connects_with(&relay, &certificates, &rustls::version::TLS13), "{key}");
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn a_client_ca_lets_nobody_in_without_its_certificate() {
    let certificates = Certificates::new();
    let ca = format!("client_ca = \"{}\"", text(&certificates.ca));
    let (relay, sink) = start(&tls(&certificates.server, &ca), "");
    let batch = generated_batch(1, 3, 600);
    for wrong in [
        None,
        Some(&certificates.wrong_client),
        Some(&certificates.expired_client),
        Some(&certificates.server),
    ] {
        // With TLS 1.3, the refusal comes after the client's side of the handshake.
        let answer = connect(&relay, &certificates.client_config(wrong))
            .and_then(|mut client| client.post("/", JSON, &batch));
        assert!(answer.is_err(), "{wrong:?}: {answer:?}");
    }
    assert_eq!(relay.metrics().sum("requests_total"), 0.0);
    let mut client =
        connect(&relay, &certificates.client_config(Some(&certificates.client))).unwrap();
    assert_accepted(&client.post("/", JSON, &batch).unwrap(), 3);
    // The gauge shows when the client's certificate expires.
    let labels = [("listener", "127.0.0.1:0"), ("role", "client")];
    let expiry = relay.metrics().get("tls_certificate_expiry_timestamp_seconds", &labels);
    assert!(expiry.is_some_and(|seconds| seconds > 1_800_000_000.0), "{expiry:?}");
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 3);
}

/// HAProxy and Go admit a client whose certificate is itself in their CA file.
#[test]
fn a_client_whose_self_signed_certificate_is_the_client_ca_is_let_in() {
    let certificates = Certificates::new();
    let right = certificates.self_signed("right", |_| ());
    let batch = generated_batch(1, 3, 600);
    let try_as = |client: &Pair, ca: &Path, words: &str| {
        let ca = format!("client_ca = \"{}\"", text(ca));
        let (relay, sink) = start(&tls(&certificates.server, &ca), "");
        let answer = connect(&relay, &certificates.client_config(Some(client)))
            .and_then(|mut client| client.post("/", JSON, &batch));
        let is_in = answer.is_ok_and(|answer| answer.status == 200);
        assert_eq!(is_in, words.is_empty(), "{words}: {}", relay.log_text());
        wait_until(words, PATIENCE, || relay.log_text().contains(words));
        relay.finish(Backlog::Empty);
        assert_eq!(sink.count(), if is_in { 3 } else { 0 });
    };
    try_as(&right, &right.certificate, "");
    try_as(&certificates.client, &certificates.client.certificate, "");
    let expired = certificates.self_signed("expired", expire);
    let for_servers = certificates.self_signed("for-servers", |it| {
        it.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    let another = certificates.self_signed("another", |_| ());
    for (client, ca, words) in [
        (&expired, &expired, "the client certificate has expired"),
        (&for_servers, &for_servers, "its extensions do not allow this use"),
        (&another, &right, "the certificate is a CA certificate"),
    ] {
        try_as(client, &ca.certificate, words);
    }
}

#[test]
fn a_handshake_that_does_not_go_on_ends_at_header_timeout() {
    let certificates = Certificates::new();
    let (relay, _sink) =
        start(&tls(&certificates.server, ""), "[limits]\nheader_timeout = \"400ms\"\n");
    let began = Instant::now();
    let mut silent = Client::connect(relay.address()).unwrap();
    let mut begun = Client::connect(relay.address()).unwrap();
    // These bytes are the beginning of a ClientHello.
    begun.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").unwrap();
    assert!(silent.is_closed_by_server());
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    assert!(begun.is_closed_by_server());
    relay.wait_for_metrics("their ends", PATIENCE, |metrics| {
        (metrics.sum("connections") == 0.0).then_some(())
    });
    // After the handshake, the head gets the whole timeout, and its 408 comes over TLS.
    let mut client = connect(&relay, &certificates.client_config(None)).unwrap();
    client.send(b"POST / HT").unwrap();
    assert_head_refusal(&client.read_response().unwrap(), 408);
    assert!(client.is_closed_by_server());
    relay.finish(Backlog::Empty);
}

#[test]
fn handshakes_make_room_at_max_connections() {
    let certificates = Certificates::new();
    let (relay, _sink) = start(&tls(&certificates.server, ""), "[limits]\nmax_connections = 2\n");
    let client_config = certificates.client_config(None);
    let mut kept = connect(&relay, &client_config).unwrap();
    assert_kept(&mut kept);
    let mut silent = Client::connect(relay.address()).unwrap();
    relay.wait_for_metrics("both", PATIENCE, |metrics| {
        (metrics.sum("connections") == 2.0).then_some(())
    });
    assert_kept(&mut kept);
    let mut next = connect(&relay, &client_config).unwrap();
    assert!(silent.is_closed_by_server());
    assert_kept(&mut kept);
    assert_kept(&mut next);
    relay.finish(Backlog::Empty);
}

/// A certificate and a key at fixed paths, with contents that a test replaces.
struct Files {
    directory: TempDir,
    pair: Pair,
}

impl Files {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        let pair = Pair { certificate: at("tls.crt"), key: at("tls.key") };
        Self { directory, pair }
    }

    fn put(&self, pair: &Pair) {
        std::fs::copy(&pair.certificate, &self.pair.certificate).unwrap();
        std::fs::copy(&pair.key, &self.pair.key).unwrap();
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Waits until a handshake presents this certificate. Returns how long that took. 3 s are promised,
/// and a busy machine can need longer.
fn wait_for_certificate(
    relay: &Relay,
    client_config: &Arc<rustls::ClientConfig>,
    pair: &Pair,
) -> Duration {
    let wanted = chain(&pair.certificate)[0].clone();
    let began = Instant::now();
    wait_until("the new certificate", PATIENCE, || presented(relay, client_config) == wanted);
    began.elapsed()
}

#[test]
fn a_handshake_3_s_after_the_files_change_has_the_new_certificate() {
    let certificates = Certificates::new();
    let files = Files::new();
    files.put(&certificates.server);
    let (relay, _sink) = start(&tls(&files.pair, ""), "");
    let client_config = certificates.client_config(None);
    let mut kept = connect(&relay, &client_config).unwrap();
    assert_kept(&mut kept);
    assert_eq!(presented(&relay, &client_config), chain(&certificates.server.certificate)[0]);
    let took = ["second", "third", "fourth"].map(|name| {
        let another = certificates.another_server(name);
        files.put(&another);
        wait_for_certificate(&relay, &client_config, &another)
    });
    assert!(took.iter().min() < Some(&Duration::from_secs(3)), "{took:?}");
    // Connections that were open stay open.
    assert_kept(&mut kept);
    relay.finish(Backlog::Empty);
}

/// Returns the settings of a client that trusts our `ca`, presents `pair`, uses one version of TLS,
/// and resumes sessions.
fn client_of(
    certificates: &Certificates,
    pair: &Pair,
    version: &'static rustls::SupportedProtocolVersion,
) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain(&certificates.ca)[0].clone()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&pair.key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain(&pair.certificate), key);
    Arc::new(config.unwrap())
}

/// Connects with this client. Returns whether the client was admitted, and whether it resumed a
/// session.
fn enters(relay: &Relay, config: &Arc<rustls::ClientConfig>) -> (bool, bool) {
    let Ok(mut client) = connect(relay, config) else { return (false, false) };
    let is_in = client.post("/", JSON, NO_EVENTS.as_bytes()).is_ok();
    let Stream::Client(tls) = client.stream() else { panic!("a TLS client") };
    (is_in, tls.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed))
}

#[test]
fn a_replaced_client_ca_ends_the_connections_that_the_old_one_let_in() {
    let certificates = Certificates::new();
    let files = Files::new();
    files.put(&certificates.server);
    let ca = files.path().join("ca.crt");
    std::fs::copy(&certificates.ca, &ca).unwrap();
    let keys = tls(&files.pair, &format!("client_ca = \"{}\"", text(&ca)));
    let (relay, sink) = start(&keys, "[limits]\nmax_connection_age = \"0s\"\n");
    let versions = [&rustls::version::TLS12, &rustls::version::TLS13];
    let old = versions.map(|version| client_of(&certificates, &certificates.client, version));
    let new = certificates.client_config(Some(&certificates.wrong_client));

    // The server gets another certificate, and the clients' CA stays the same. Open connections
    // stay open.
    let mut idle = connect(&relay, &old[1]).unwrap();
    assert_kept(&mut idle);
    let another = certificates.another_server("another");
    files.put(&another);
    wait_for_certificate(&relay, &old[1], &another);
    assert_kept(&mut idle);

    let body = generated_batch(1, 1, 800);
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut working = connect(&relay, &old[0]).unwrap();
    working.send(&[head.as_bytes(), &body[..100]].concat()).unwrap();
    let mut half = connect(&relay, &old[1]).unwrap();
    half.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Le").unwrap();
    let mut fresh = connect(&relay, &old[1]).unwrap();
    // This client has an open stream, and does not react to GOAWAY.
    let mut deaf = H2::over(connect(&relay, &old[1]).unwrap().into_stream());
    deaf.deaf = true;
    deaf.send(h2::PREFACE).unwrap();
    deaf.settings().unwrap();
    deaf.post(1, NO_EVENTS.as_bytes()).unwrap();
    assert!(deaf.wait_for(h2::HEADERS).is_200());
    deaf.post_head(3, Some(body.len())).unwrap();
    deaf.frame(h2::DATA, 0, 3, &body[..100]).unwrap();
    relay.wait_for_metrics("both bodies", PATIENCE, |metrics| {
        (metrics.value("in_flight_bytes", &[]) == 200.0).then_some(())
    });
    for config in &old {
        enters(&relay, config);
        assert_eq!(enters(&relay, config), (true, true), "tickets are good while the CA is");
    }

    std::fs::copy(&certificates.wrong_ca, &ca).unwrap();
    wait_until("the new CA", PATIENCE, || enters(&relay, &new).0);
    for config in &old {
        for _ in 0..2 {
            assert!(!enters(&relay, config).0, "a ticket of before the change lets nobody in");
        }
    }
    assert!(idle.is_closed_by_server());
    assert!(fresh.is_closed_by_server());
    // Requests that had begun are answered. Requests that begin after the change are refused.
    working.send(&body[100..]).unwrap();
    let response = working.read_response().unwrap();
    assert_accepted(&response, 1);
    assert_eq!(response.header("connection"), Some("close"));
    assert!(working.is_closed_by_server());
    deaf.post(5, &body).unwrap();
    let refused = deaf.wait_for(h2::HEADERS);
    assert_eq!((refused.stream, refused.is_200()), (5, false));
    deaf.frame(h2::DATA, h2::END_STREAM, 3, &body[100..]).unwrap();
    let answer = deaf.wait_for(h2::HEADERS);
    assert_eq!((answer.stream, answer.is_200()), (3, true));
    deaf.rest();
    // The relay may have closed this connection before its head was complete.
    drop(half.send(format!("ngth: {}\r\n\r\n", body.len()).as_bytes()));
    drop(half.send(&body));
    if let Ok(response) = half.read_response() {
        assert_refusal(&response, 503);
        assert!(half.is_closed_by_server());
    }
    relay.wait_for_metrics("their ends", PATIENCE, |metrics| {
        (metrics.sum("connections") == 0.0).then_some(())
    });
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 2);
}

#[test]
fn connections_end_however_client_ca_changes_and_stay_where_it_is_the_same() {
    let certificates = Certificates::new();
    let sink = TcpSink::start();
    let directory = TempDir::new().unwrap();
    let copy = directory.path().join("copy.crt");
    std::fs::copy(&certificates.ca, &copy).unwrap();
    let of = |more: &str| unrestricted(&config(&sink, &tls(&certificates.server, more), ""));
    let ca = |file: &Path| of(&format!("client_ca = \"{}\"", text(file)));
    let relay = Relay::start(&of(""));
    let client_config = certificates.client_config(Some(&certificates.client));
    let mut reloads = 0.0;
    for (config, stays) in [
        (ca(&certificates.ca), false),
        (ca(&copy), true),
        (ca(&certificates.wrong_ca), false),
        (ca(&certificates.ca), false),
        (of(""), false),
    ] {
        // With the wrong CA no client is connected, because none has a certificate of it.
        let client = connect(&relay, &client_config);
        let kept = client.and_then(|mut client| {
            client.post("/", JSON, NO_EVENTS.as_bytes()).map(|answer| (client, answer.status))
        });
        std::fs::write(relay.config_file(), &config).unwrap();
        reloads += 1.0;
        relay.wait_for_metrics("the reload", PATIENCE, |metrics| {
            let done = metrics.value("config_reload_total", &[("result", "success")]);
            (done >= reloads).then_some(())
        });
        let Ok((mut kept, _)) = kept else { continue };
        if stays {
            assert_kept(&mut kept);
        } else {
            assert!(kept.is_closed_by_server(), "{config}");
        }
    }
    relay.finish(Backlog::Empty);
}

/// Writes a Secret as kubelet does: `tls.crt` is a link to `..data/tls.crt`. `..data` is a link to
/// a directory of this version, and is replaced by a rename.
fn kubelet_writes(volume: &Path, version: &str, pair: Option<&Pair>) {
    let directory = volume.join(format!("..{version}"));
    std::fs::create_dir(&directory).unwrap();
    if let Some(pair) = pair {
        std::fs::copy(&pair.certificate, directory.join("tls.crt")).unwrap();
        std::fs::copy(&pair.key, directory.join("tls.key")).unwrap();
    }
    let fresh = volume.join("..data_tmp");
    symlink(format!("..{version}"), &fresh).unwrap();
    let data = volume.join("..data");
    let before = std::fs::read_link(&data).ok();
    std::fs::rename(fresh, data).unwrap();
    for name in ["tls.crt", "tls.key"] {
        let link = volume.join(name);
        if !link.is_symlink() {
            symlink(format!("..data/{name}"), link).unwrap();
        }
    }
    if let Some(before) = before {
        std::fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

#[test]
fn a_secret_that_kubernetes_swaps_is_followed() {
    let certificates = Certificates::new();
    let files = Files::new();
    kubelet_writes(files.path(), "2026_01", Some(&certificates.server));
    let (relay, _sink) = start(&tls(&files.pair, ""), "");
    let client_config = certificates.client_config(None);
    assert_eq!(presented(&relay, &client_config), chain(&certificates.server.certificate)[0]);
    let took = ["2026_02", "2026_03", "2026_04"].map(|version| {
        let another = certificates.another_server(version);
        kubelet_writes(files.path(), version, Some(&another));
        wait_for_certificate(&relay, &client_config, &another)
    });
    assert!(took.iter().min() < Some(&Duration::from_secs(3)), "{took:?}");
    relay.finish(Backlog::Empty);
}

#[test]
fn a_broken_file_keeps_the_old_certificate_and_is_told_once() {
    let certificates = Certificates::new();
    let files = Files::new();
    files.put(&certificates.server);
    let (relay, _sink) = start(&tls(&files.pair, ""), "");
    let client_config = certificates.client_config(None);
    let old = chain(&certificates.server.certificate)[0].clone();
    let told = |relay: &Relay| {
        let failed = |fields: &&Value| {
            fields["message"]
                .as_str()
                .is_some_and(|message| message.starts_with("config not reloaded"))
        };
        relay.log_fields().iter().filter(failed).count()
    };
    let another = certificates.another_server("another");
    let key = std::fs::read_to_string(&certificates.server.key).unwrap();
    let breaks: [(&str, &dyn Fn()); 4] = [
        ("no PEM", &|| std::fs::write(&files.pair.certificate, "no PEM").unwrap()),
        ("half a certificate", &|| {
            let whole = std::fs::read(&certificates.server.certificate).unwrap();
            std::fs::write(&files.pair.certificate, &whole[..whole.len() / 2]).unwrap();
        }),
        ("another's key", &|| {
            std::fs::copy(&another.certificate, &files.pair.certificate).unwrap();
        }),
        ("no file", &|| std::fs::remove_file(&files.pair.key).unwrap()),
    ];
    for (index, (what, break_it)) in breaks.into_iter().enumerate() {
        break_it();
        wait_until(what, PATIENCE, || told(&relay) == index + 1);
        assert_eq!(presented(&relay, &client_config), old, "{what}");
    }
    // The relay reads the files several times in this pause, and logs nothing more.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(told(&relay), 4);
    files.put(&another);
    wait_for_certificate(&relay, &client_config, &another);
    let log = relay.finish(Backlog::Empty);
    let secret = key.lines().nth(1).unwrap();
    assert!(!log.contains(secret), "the key is in the log");
}

#[test]
fn an_optional_listener_opens_when_its_files_appear() {
    let certificates = Certificates::new();
    let files = Files::new();
    let sink = TcpSink::start();
    let https =
        format!("[[listener]]\naddress = \"127.0.0.2:0\"\n{}", tls(&files.pair, "optional = true"));
    let mut relay = Relay::with(&config(&sink, "", &https)).listeners(1).start();
    let batch = generated_batch(1, 3, 600);
    assert_accepted(&relay.post(&batch), 3);
    let answered = [("listener", "127.0.0.2:0"), ("code", "200")];
    assert_eq!(relay.metrics().get("requests_total", &answered), Some(0.0), "from the start");
    // A certificate without its key is not enough.
    std::fs::copy(&certificates.server.certificate, &files.pair.certificate).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(relay.listeners().len(), 1);
    let expiry = (
        "tls_certificate_expiry_timestamp_seconds",
        [("listener", "127.0.0.2:0"), ("role", "server")],
    );
    assert_eq!(relay.metrics().get(expiry.0, &expiry.1), None);
    files.put(&certificates.server);
    relay.wait_for_listeners(2);
    let (label, address) = relay.listeners()[1].clone();
    assert_eq!(label, "127.0.0.2:0");
    let mut client = Client::connect_tls(address, certificates.client_config(None)).unwrap();
    assert_accepted(&client.post("/", JSON, &batch).unwrap(), 3);
    assert!(relay.metrics().get(expiry.0, &expiry.1).is_some());
    // The file is deleted. The certificate in use is kept.
    std::fs::remove_file(&files.pair.certificate).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let mut again = Client::connect_tls(address, certificates.client_config(None)).unwrap();
    assert_kept(&mut again);
    relay.finish(Backlog::Empty);
    sink.wait_until_left();
    assert_eq!(sink.count(), 6);
}

#[test]
fn a_listener_whose_files_are_missing_or_broken_is_an_error_of_the_start() {
    let certificates = Certificates::new();
    let broken = Files::new();
    std::fs::write(&broken.pair.certificate, "no PEM").unwrap();
    std::fs::write(&broken.pair.key, "no PEM").unwrap();
    let missing = Pair {
        certificate: PathBuf::from("/nowhere/tls.crt"),
        key: PathBuf::from("/nowhere/tls.key"),
    };
    let mixed = Pair {
        certificate: certificates.server.certificate.clone(),
        key: certificates.client.key.clone(),
    };
    for (pair, more, says) in [
        (&missing, "", "/nowhere/tls.crt"),
        (&broken.pair, "", "tls.crt"),
        // `optional` permits files that are missing, not files that are wrong.
        (&broken.pair, "optional = true", "tls.crt"),
        (&mixed, "", "server.crt"),
    ] {
        let sink = TcpSink::start();
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(&file, config(&sink, &tls(pair, more), "")).unwrap();
        let output = run_command(&["run", "--config", text(&file)], directory.path());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{more}: {said}");
        assert!(said.contains(says), "{says}: {said}");
    }
}

#[test]
fn a_bearer_token_that_changes_is_asked_for_anew() {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let keys =
        format!("bearer_token_file = \"{}\"\n{}", text(&file), tls(&certificates.server, ""));
    let (relay, _sink) = start(&keys, "");
    let mut client = connect(&relay, &certificates.client_config(None)).unwrap();
    let mut status = |token: &str| {
        let bearer = format!("Bearer {token}");
        let response = client
            .request("POST", "/", &[("Authorization", &bearer)], NO_EVENTS.as_bytes())
            .unwrap();
        response.status
    };
    assert_eq!((status("first"), status("second")), (200, 401));
    let took = [("second", "first"), ("first", "second"), ("second", "first")].map(|(new, old)| {
        std::fs::write(&file, new).unwrap();
        let changed = Instant::now();
        wait_until("the new token", PATIENCE, || status(new) == 200);
        assert_eq!(status(old), 401);
        changed.elapsed()
    });
    // 3 s are promised, and a busy machine can delay some of these changes.
    assert!(took.iter().min() < Some(&Duration::from_secs(3)), "{took:?}");
    // An empty file does not admit a client without a token: the last token stays in use.
    std::fs::write(&file, "\n").unwrap();
    relay.wait_for_log(messages::NOT_RELOADED, PATIENCE);
    assert_eq!((status("second"), status("")), (200, 401));
    let log = relay.finish(Backlog::Empty);
    assert!(!log.contains("second"), "the token is in the log");
}

#[test]
fn the_expiry_gauge_follows_the_certificate() {
    let certificates = Certificates::new();
    let files = Files::new();
    files.put(&certificates.expired_server);
    let (relay, _sink) = start(&tls(&files.pair, ""), "");
    let labels = [("listener", "127.0.0.1:0"), ("role", "server")];
    let expiry =
        |relay: &Relay| relay.metrics().get("tls_certificate_expiry_timestamp_seconds", &labels);
    // This is 2021-01-01T00:00:00Z.
    assert_eq!(expiry(&relay), Some(1_609_459_200.0));
    files.put(&certificates.server);
    wait_until("the new expiry", PATIENCE, || {
        expiry(&relay).is_some_and(|seconds| seconds > 1_800_000_000.0)
    });
    relay.finish(Backlog::Empty);
}

/// These tests need curl.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn https_takes_batches_over_http_1_1_and_h2() {
        let certificates = Certificates::new();
        let (relay, sink) = start(&tls(&certificates.server, ""), "");
        let client_config = certificates.client_config(None);
        let batch = generated_batch(1, 400, 1600);
        let mut client = connect(&relay, &client_config).unwrap();
        assert_accepted(&client.post("/audit", JSON, &batch).unwrap(), 400);
        assert_refusal(&client.post("/audit", JSON, b"{}").unwrap(), 400);
        assert_kept(&mut client);

        let directory = TempDir::new().unwrap();
        let body = directory.path().join("body");
        std::fs::write(&body, &batch).unwrap();
        let (data, ca) = (format!("@{}", text(&body)), text(&certificates.ca));
        let url = format!("https://localhost:{}/audit", relay.address().port());
        // ALPN chooses h2 if the client offers it, and HTTP/1.1 otherwise.
        for (wish, version) in [("--http2", "2"), ("--http1.1", "1.1"), ("--no-alpn", "1.1")] {
            let told = "%{http_code} %{http_version}";
            let arguments = [
                wish,
                "--cacert",
                ca,
                "-H",
                "Content-Type: application/json",
                "-w",
                told,
                "--data-binary",
                &data,
                &url,
            ];
            let output = curl(&arguments, b"");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(said, format!("{{\"accepted\":400}}200 {version}"), "{wish}: {output:?}");
        }
        // A connection that does not use TLS is closed, and does not affect others.
        let mut plain = Client::connect(relay.address()).unwrap();
        let answer = plain.post("/audit", JSON, &batch);
        assert!(answer.is_err(), "{answer:?}");
        assert_kept(&mut client);
        relay.finish(Backlog::Empty);
        sink.wait_until_left();
        assert!(sink.lines() == vec![events_of(&batch); 4].concat());
    }
}
