//! Kafka over TLS: the brokers that are trusted, the certificate that is presented, changed files,
//! and the shipped configs of a fleet.

use crate::support::certificates::Pair;
use crate::support::kafka::{Secure, ids};
use crate::support::numbered::list;
use crate::support::prelude::*;
use crate::support::requests::shipped;

/// Returns the keys of an output or a source that uses this cluster.
fn keys(secure: &Secure, ca: &Path, identity: Option<&Pair>) -> String {
    let identity = identity.map(|Pair { certificate, key }| {
        format!(", certificate = {:?}, private_key = {:?}", text(certificate), text(key))
    });
    format!(
        "brokers = {:?}\ntopic = \"audit\"\ntls = {{ ca = {:?}{} }}\n",
        secure.addresses(),
        text(ca),
        identity.unwrap_or_default()
    )
}

fn output(secure: &Secure, name: &str, ca: &Path, identity: Option<&Pair>) -> String {
    format!(
        "[[output]]\nname = \"{name}\"\ntype = \"kafka\"\n{}\
         retry = {{ initial_interval = \"100ms\", max_interval = \"500ms\" }}\n",
        keys(secure, ca, identity)
    )
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn events_go_into_the_topic_and_out_of_it_over_mutual_tls() {
    let certificates = Certificates::new();
    let secure = Secure::start(1, &certificates);
    let consumer = Tallying::tcp();
    let keys = keys(&secure, &certificates.ca, Some(&certificates.client));
    let config = format!(
        "{BASE}{}[[source]]\nname = \"topic\"\ntype = \"kafka\"\ngroup = \"relays\"\n{keys}\
         [queue]\nacknowledge = \"delivered\"\n",
        consumer.output("lines", "")
    );
    let worker = Relay::start(&config);
    let output = output(&secure, "topic", &certificates.ca, Some(&certificates.client));
    let edge = Relay::start(&format!("{BASE}{output}"));
    assert_eq!(edge.post(&list(0, 0..50)).status, 200);
    consumer.tally.wait_for_count(50, PATIENCE);
    let expiry = [("output", "topic"), ("role", "client")];
    let seconds = edge.metrics().value("tls_certificate_expiry_timestamp_seconds", &expiry);
    assert!(seconds > 1e9, "{seconds}");
    edge.finish(Backlog::Empty);
    worker.finish(Backlog::Empty);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_broker_that_is_not_trusted_gets_nothing_and_that_is_told() {
    let certificates = Certificates::new();
    let secure = Secure::start(1, &certificates);
    let client = &certificates.client;
    let outputs = [
        output(&secure, "trusts-another", &certificates.wrong_ca, Some(client)),
        output(&secure, "presents-nothing", &certificates.ca, None),
        output(&secure, "presents-another", &certificates.ca, Some(&certificates.wrong_client)),
    ];
    let relay = Relay::start(&format!("{BASE}{}", outputs.concat()));
    assert_eq!(relay.post(&list(0, 0..5)).status, 200);
    let error = |output: &str| {
        let told = relay.log_fields().into_iter().find(|line| {
            line["output"] == output && line["message"] == "output down, events are kept"
        });
        told.map(|told| told["error"].as_str().unwrap().to_owned())
    };
    for output in ["trusts-another", "presents-nothing", "presents-another"] {
        wait_until(&format!("{output} down"), PATIENCE, || error(output).is_some());
    }
    let said = error("trusts-another").unwrap();
    assert!(said.contains("certificate verify failed"), "{said}");
    relay.wait_for_metrics("a failure of TLS", PATIENCE, |metrics| {
        let labels = [("output", "trusts-another"), ("reason", "tls")];
        (metrics.value("output_errors_total", &labels) > 0.0).then_some(())
    });
    relay.settle(Backlog::Stable);
    drop(relay);
    assert_eq!(secure.into_plain().records(0, PATIENCE), []);
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn a_changed_client_certificate_is_used_without_a_restart() {
    let certificates = Certificates::new();
    let secure = Secure::start(1, &certificates);
    let directory = TempDir::new().unwrap();
    let file = |name: &str| directory.path().join(name);
    let own = Pair { certificate: file("tls.crt"), key: file("tls.key") };
    let install = |pair: &Pair| {
        std::fs::copy(&pair.key, &own.key).unwrap();
        std::fs::copy(&pair.certificate, &own.certificate).unwrap();
    };
    install(&certificates.wrong_client);
    let output = output(&secure, "topic", &certificates.ca, Some(&own));
    let relay = Relay::start(&format!("{BASE}{output}"));
    assert_eq!(relay.post(&list(0, 0..5)).status, 200);
    relay.wait_for_log("output down, events are kept", PATIENCE);
    install(&certificates.client);
    relay.wait_until_delivered(PATIENCE);
    // A valid certificate is replaced by another one, and no event arrives twice.
    install(&certificates.another_client("another"));
    let producers = || {
        let lines = relay.log_fields();
        lines.iter().filter(|line| line["message"] == "config reloaded").count()
    };
    wait_until("the reload", PATIENCE, || producers() >= 2);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(relay.post(&list(0, 5..10)).status, 200);
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
    let records = secure.into_plain().records(10, PATIENCE);
    let numbers: Vec<u64> = ids(&records).iter().map(|id| id.number).collect();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn the_configs_of_a_fleet_bring_events_through_the_topic() {
    let certificates = Certificates::new();
    let secure = Secure::start(3, &certificates);
    let tls = Some(certificates.server_config(&certificates.server, false));
    let options = Options { tls, ..Options::default() };
    let sink = HttpSink::with(options, |_| Answer::status(200));
    let addresses = secure.addresses();
    let consumer = format!("localhost:{}", sink.address().port());
    let files = [&certificates.ca, &certificates.client.certificate, &certificates.client.key];
    let substitutions = [
        ("kafka-0.example.com:9093", addresses[0].as_str()),
        ("kafka-1.example.com:9093", &addresses[1]),
        ("kafka-2.example.com:9093", &addresses[2]),
        ("\"kubernetes-audit\"", "\"audit\""),
        ("/certificates/ca.crt", text(files[0])),
        ("/certificates/tls.crt", text(files[1])),
        ("/certificates/tls.key", text(files[2])),
    ];
    let edge = Relay::start(&shipped("kafka-fleet.toml", &substitutions));
    let behind = [&substitutions[..], &[("logstash.example.com:8443", &consumer)]].concat();
    let worker = Relay::start(&shipped("kafka-fleet-worker.toml", &behind));
    let expected = post_corpus(&edge);
    wait_until("every event", PATIENCE, || accepted_events(&sink).len() >= expected.len());
    worker.finish(Backlog::Empty);
    edge.finish(Backlog::Empty);
    assert_same_set(&accepted_events(&sink), &expected);
}
