//! HTTPS: the consumers that are trusted, the certificate that is presented, and changed files.

use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};

use crate::support::certificates::{Pair, chain, expire};
use crate::support::prelude::*;

fn secure(config: Arc<rustls::ServerConfig>) -> HttpSink {
    HttpSink::with(Options { tls: Some(config), ..Options::default() }, |_| Answer::status(200))
}

fn not_after(pair: &Pair) -> f64 {
    let der = &chain(&pair.certificate)[0];
    let (_, certificate) = x509_parser::parse_x509_certificate(der).unwrap();
    #[allow(clippy::cast_precision_loss, reason = "seconds since 1970")]
    let seconds = certificate.validity().not_after.timestamp() as f64;
    seconds
}

/// An output of the matrix. `host` is the host of its URL, and `tls` its `[output.tls]`.
struct Row<'a> {
    name: &'a str,
    sink: HttpSink,
    host: &'a str,
    tls: String,
    fails: bool,
}

fn rows(files: &Certificates) -> Vec<Row<'static>> {
    let ca = format!("ca = {:?}", text(&files.ca));
    let wrong_ca = format!("ca = {:?}", text(&files.wrong_ca));
    let present = |pair: &Pair| {
        format!("certificate = {:?}, private_key = {:?}", text(&pair.certificate), text(&pair.key))
    };
    let server = |pair| secure(files.server_config(pair, false));
    let mutual = || secure(files.server_config(&files.server, true));
    let old = || secure(files.old_server_config(&files.server));
    let row = |name, sink, host, tls: &[&str], fails| Row {
        name,
        sink,
        host,
        tls: tls.join(", "),
        fails,
    };
    vec![
        row("right", server(&files.server), "localhost", &[&ca], false),
        row("by-address", server(&files.server), "127.0.0.1", &[&ca], false),
        row("wrong-ca", server(&files.server), "localhost", &[&wrong_ca], true),
        row("system-roots", server(&files.server), "localhost", &[], true),
        row("expired", server(&files.expired_server), "localhost", &[&ca], true),
        row("wrong-server", server(&files.wrong_server), "localhost", &[&ca], true),
        row("elsewhere", server(&files.elsewhere_server), "localhost", &[&ca], true),
        row(
            "named",
            server(&files.elsewhere_server),
            "localhost",
            &[&ca, "server_name = \"elsewhere.example\""],
            false,
        ),
        row(
            "misnamed",
            server(&files.server),
            "localhost",
            &[&ca, "server_name = \"elsewhere.example\""],
            true,
        ),
        row(
            "skip",
            server(&files.wrong_server),
            "localhost",
            &["insecure_skip_verify = true"],
            false,
        ),
        row(
            "skip-expired",
            server(&files.expired_server),
            "127.0.0.1",
            &["insecure_skip_verify = true"],
            false,
        ),
        row("mutual", mutual(), "localhost", &[&ca, &present(&files.client)], false),
        row("without", mutual(), "localhost", &[&ca], true),
        row("wrong-client", mutual(), "localhost", &[&ca, &present(&files.wrong_client)], true),
        row("expired-client", mutual(), "localhost", &[&ca, &present(&files.expired_client)], true),
        row("tls12", old(), "localhost", &[&ca], false),
        row("not-tls12", old(), "localhost", &[&ca, "min_version = \"1.3\""], true),
        row("tls13", server(&files.server), "localhost", &[&ca, "min_version = \"1.3\""], false),
    ]
}

#[test]
fn only_right_certificates_are_trusted_and_only_as_told() {
    let files = Certificates::new();
    let rows = rows(&files);
    let mut config = BASE.to_owned();
    for Row { name, sink, host, tls, .. } in &rows {
        let url = format!("https://{host}:{}/", sink.address().port());
        config.push_str(&format!(
            "[[output]]\nname = \"{name}\"\ntype = \"http\"\nurls = [\"{url}\"]\n{QUICK}tls = {{ {tls} }}\n"
        ));
    }
    config.push_str("[shutdown]\ndrain_timeout = \"200ms\"\n");
    let relay = Relay::start(&config);
    let sent = post_batch(&relay, 1, 20, 900);
    for Row { name, sink, fails, .. } in &rows {
        if *fails {
            relay.wait_for_metrics(&format!("failures of {name}"), PATIENCE, |metrics| {
                let labels = [("output", *name), ("reason", "tls")];
                (metrics.value("output_errors_total", &labels) >= 2.0).then_some(())
            });
            assert_eq!(sink.count(), 0, "{name} got a request");
        } else {
            relay.wait_for_metrics(&format!("the events at {name}"), PATIENCE, |metrics| {
                (metrics.value("output_events_total", &[("output", *name)]) == 20.0).then_some(())
            });
            assert_same_set(&accepted_events(sink), &sent);
        }
    }
    let metrics = relay.metrics();
    let failing = |name: &str| rows.iter().any(|row| row.name == name && row.fails);
    for (labels, value) in metrics.all("output_errors_total") {
        let of = |key: &str| labels.iter().find(|(name, _)| name == key).unwrap().1.clone();
        assert!(
            value == 0.0 || of("reason") == "tls" && failing(&of("output")),
            "{labels:?}: {value}"
        );
    }
    let expiry = |output: &str, role: &str| {
        metrics
            .get("tls_certificate_expiry_timestamp_seconds", &[("output", output), ("role", role)])
    };
    assert_eq!(expiry("right", "server"), Some(not_after(&files.server)));
    assert_eq!(expiry("right", "client"), None);
    assert_eq!(expiry("skip-expired", "server"), Some(not_after(&files.expired_server)));
    assert_eq!(expiry("mutual", "client"), Some(not_after(&files.client)));
    assert_eq!(expiry("expired-client", "client"), Some(not_after(&files.expired_client)));
    let warned = relay
        .log_fields()
        .iter()
        .filter(|fields| {
            fields["key"].as_str().is_some_and(|key| key.ends_with("insecure_skip_verify"))
        })
        .count();
    assert_eq!(warned, 2, "one warning at the start for each output that skips");
    relay.finish(Backlog::Stable);
}

fn last_error(relay: &Relay, output: &str) -> Option<String> {
    let status = http::get(relay.admin(), "/status").unwrap().json();
    let outputs = status["outputs"].as_array().unwrap();
    let output = outputs.iter().find(|it| it["name"] == output).unwrap();
    output["last_error"].as_str().map(str::to_owned)
}

/// Method: consumers have certificates that are themselves in the `ca` file, or that are wrong in
/// one respect. A delivery and `check --connect` try each one.
#[test]
fn a_certificate_that_is_itself_in_the_ca_file_is_trusted_if_names_dates_and_usage_fit() {
    let files = Certificates::new();
    let right = files.self_signed("right", |_| ());
    let same = |of: &Pair| of.certificate.clone();
    let bundle = files.ca.with_file_name("bundle.pem");
    let parts = [&files.ca, &right.certificate].map(|file| std::fs::read(file).unwrap());
    std::fs::write(&bundle, parts.concat()).unwrap();
    let for_clients = files.self_signed("for-clients", |it| {
        it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let for_servers = files.self_signed("for-servers", |it| {
        it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        it.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    });
    let only_signs = files.self_signed("only-signs", |it| {
        it.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    });
    let expired = files.self_signed("expired", expire);
    let not_yet = files.self_signed("not-yet", |it| {
        it.not_before = rcgen::date_time_ymd(2100, 1, 1);
        it.not_after = rcgen::date_time_ymd(2101, 1, 1);
    });
    let elsewhere = files.self_signed("elsewhere-ca", |it| {
        it.subject_alt_names = vec![SanType::DnsName("elsewhere.example".try_into().unwrap())];
    });
    let nameless = files.self_signed("nameless", |it| it.subject_alt_names.clear());
    let again = files.self_signed("again", |_| ());
    let is_ca = "the certificate is a CA certificate: issue one for the server";
    let usage = "its extensions do not allow this use";
    let rows = [
        ("right", &right, Some(same(&right)), None),
        ("bundle", &right, Some(bundle), None),
        ("for-servers", &for_servers, Some(same(&for_servers)), None),
        ("leaf", &files.server, Some(same(&files.server)), None),
        ("another", &right, Some(same(&again)), Some(is_ca)),
        ("system-roots", &right, None, Some(is_ca)),
        ("for-clients", &for_clients, Some(same(&for_clients)), Some(usage)),
        ("only-signs", &only_signs, Some(same(&only_signs)), Some(usage)),
        ("expired", &expired, Some(same(&expired)), Some("expired on 2021")),
        ("not-yet", &not_yet, Some(same(&not_yet)), Some("not valid before 2100")),
        ("elsewhere", &elsewhere, Some(same(&elsewhere)), Some("not valid for name")),
        ("nameless", &nameless, Some(same(&nameless)), Some("not valid for any names")),
    ];
    let mut config = BASE.to_owned();
    let mut sinks = Vec::new();
    for (name, pair, ca, _) in &rows {
        let sink = secure(pair.server_config());
        let old = secure(files.old_server_config(pair));
        let tls = ca.as_ref().map_or(String::new(), |ca| format!("tls = {{ ca = {ca:?} }}\n"));
        for (kind, sink) in [("tls13", &sink), ("tls12", &old)] {
            let url = format!("https://localhost:{}/", sink.address().port());
            config.push_str(&format!(
                "[[output]]\nname = \"{name}-{kind}\"\ntype = \"http\"\nurls = [\"{url}\"]\n\
                 {QUICK}{tls}"
            ));
        }
        sinks.push([sink, old]);
    }
    config.push_str("[shutdown]\ndrain_timeout = \"200ms\"\n");
    let relay = Relay::start(&config);
    let sent = post_batch(&relay, 1, 20, 900);
    let file = files.ca.with_file_name("relay.toml");
    std::fs::write(&file, &config).unwrap();
    let Said { stderr, .. } =
        said(&["check", "--connect", "--config", text(&file)], Path::new("/"));
    for ((name, _, _, refused), sinks) in rows.iter().zip(&sinks) {
        for (kind, sink) in ["tls13", "tls12"].iter().zip(sinks) {
            let name = format!("{name}-{kind}");
            let start = format!("output {name}:");
            let lines: Vec<_> = stderr.lines().filter(|said| said.starts_with(&start)).collect();
            match refused {
                None => {
                    wait_until(&format!("the events at {name}"), PATIENCE, || {
                        accepted_events(sink).len() >= sent.len()
                    });
                    assert_same_set(&accepted_events(sink), &sent);
                    assert!(lines.iter().any(|line| line.ends_with(": ok")), "{stderr}");
                }
                Some(words) => {
                    wait_until(&format!("the error of {name}"), PATIENCE, || {
                        last_error(&relay, &name).is_some_and(|error| error.contains(words))
                    });
                    assert!(lines.iter().any(|line| line.contains(words)), "{name}: {stderr}");
                    assert_eq!(sink.count(), 0, "{name} got a request");
                }
            }
        }
    }
    relay.finish(Backlog::Stable);
}

#[test]
fn changed_certificates_are_taken_up_at_the_next_handshake() {
    let files = Certificates::new();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let copy = |from: &Path, to: &str| std::fs::copy(from, at(to)).unwrap();
    copy(&files.wrong_ca, "ca.crt");
    copy(&files.expired_client.certificate, "client.crt");
    copy(&files.expired_client.key, "client.key");
    let sink = secure(files.server_config(&files.server, true));
    let url = format!("https://localhost:{}/", sink.address().port());
    let more = format!(
        "tls = {{ ca = {:?}, certificate = {:?}, private_key = {:?} }}\n",
        at("ca.crt"),
        at("client.crt"),
        at("client.key")
    );
    let relay = Relay::start(&to_http(&[url], &more));
    let sent = post_batch(&relay, 1, 20, 900);
    let said = |what: &'static str| {
        wait_until(what, PATIENCE, || {
            let status = http::get(relay.admin(), "/status").unwrap().json();
            status["outputs"][0]["last_error"].as_str().is_some_and(|error| error.contains(what))
        });
    };
    said("UnknownIssuer");
    copy(&files.ca, "ca.crt");
    said("xpired");
    // For a moment, the key and the certificate do not match. The old pair stays in use.
    copy(&files.client.certificate, "client.crt");
    relay.wait_for_log(messages::NOT_RELOADED, PATIENCE);
    assert_eq!(sink.count(), 0);
    copy(&files.client.key, "client.key");
    let changed = Instant::now();
    relay.wait_until_delivered(PATIENCE);
    assert!(changed.elapsed() < Duration::from_secs(10), "3 s, and more for a loaded machine");
    assert_same_set(&accepted_events(&sink), &sent);
    let labels = [("output", "consumer"), ("role", "client")];
    let expiry = relay.metrics().get("tls_certificate_expiry_timestamp_seconds", &labels);
    assert_eq!(expiry, Some(not_after(&files.client)));
    relay.finish(Backlog::Empty);
}
