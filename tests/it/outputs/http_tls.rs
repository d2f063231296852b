//! HTTPS: which consumers are trusted, which certificate is presented, and changes of the files.

use crate::support::certificates::Pair;
use crate::support::certificates::chain;
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

/// An output of the matrix: its name, its consumer, the host that it dials, its `[output.tls]`, and
/// whether it must fail.
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
    // For a moment, key and certificate don't fit. The old pair stays in use, and nothing breaks.
    copy(&files.client.certificate, "client.crt");
    relay.wait_for_log("config not reloaded, going on with the one in use", PATIENCE);
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
