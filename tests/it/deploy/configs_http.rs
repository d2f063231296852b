//! The shipped configs with outputs over HTTP. Only addresses, paths and a few values are replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::value::RawValue;

use crate::support::elasticsearch::{Elasticsearch, Mood};
use crate::support::ibm::{Credential, Ibm, Script, write_secret};
use crate::support::loki::Loki;
use crate::support::otlp::{Attribute, Otlp};
use crate::support::peers::{Haproxy, Nginx, Security};
use crate::support::prelude::*;
use crate::support::requests::shipped;
use crate::support::s3::S3;
use crate::support::splunk::Splunk;
use crate::support::{loki, otlp, s3, splunk};

/// POSTs the corpus to several paths of this address, and returns its events.
pub(super) fn post_the_corpus(address: SocketAddr) -> Vec<Vec<u8>> {
    let paths = ["/", "/audit?timeout=30s", "/any/path/at/all", "/%7Etilde/?a=b&c", "//x//"];
    let mut events = Vec::new();
    for (body, path) in corpus().iter().zip(paths.iter().cycle()) {
        let response = http::post(address, path, "application/json", &body.bytes).unwrap();
        let count = events_of(&body.bytes).len();
        assert_eq!(response.status, 200, "{path}: {}", response.text());
        assert_eq!(response.json()["accepted"], count);
        events.extend(events_of(&body.bytes));
    }
    events
}

/// The certificates of a consumer, and a directory for secrets and for the queue.
struct Place {
    certificates: Certificates,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { certificates: Certificates::new(), directory: TempDir::new().unwrap() }
    }

    /// Returns the options of a consumer, which asks for a client certificate if `asks`.
    fn options(&self, asks: bool) -> Options {
        let tls = Some(self.certificates.server_config(&self.certificates.server, asks));
        Options { tls, ..Options::default() }
    }

    fn secret(&self, content: &str) -> String {
        let file = self.directory.path().join("secret");
        std::fs::write(&file, format!("{content}\n")).unwrap();
        text(&file).to_owned()
    }

    /// Starts a relay with a shipped config, its queue in the directory, and the place's CA as the
    /// system's roots. `host` is replaced by the consumer's name in the certificate, and its port.
    fn start(&self, name: &str, host: &str, to: SocketAddr, more: &[(&str, &str)]) -> Relay {
        let consumer = format!("localhost:{}", to.port());
        let queue = ("/var/lib/kube-audit-forwarder", text(self.directory.path()));
        let substitutions = [&[(host, &*consumer), queue][..], more].concat();
        let relay = Relay::with(&shipped(name, &substitutions));
        relay.variable("SSL_CERT_FILE", text(&self.certificates.ca)).start()
    }

    /// Like [`Place::start`]. Posts the corpus, and returns its events once they are delivered.
    fn deliver(
        &self,
        name: &str,
        host: &str,
        to: SocketAddr,
        more: &[(&str, &str)],
    ) -> (Relay, Vec<Vec<u8>>) {
        let relay = self.start(name, host, to, more);
        let events = post_the_corpus(relay.address());
        relay.wait_until_delivered(PATIENCE);
        (relay, events)
    }
}

fn haproxy_replacement(consumer: SocketAddr) -> Relay {
    let consumer = consumer.to_string();
    let substitutions = [("logstash.example.com:8080", consumer.as_str())];
    Relay::start(&shipped("haproxy-replacement.toml", &substitutions))
}

#[test]
fn haproxy_replacement_takes_any_path_and_sends_event_lists() {
    let sink =
        HttpSink::start(|_| Answer::status(200).header("Content-Type", "text/plain").body("ok"));
    let relay = haproxy_replacement(sink.address());
    let events = post_the_corpus(relay.address());
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&sink), &events);
    for request in sink.requests() {
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/"));
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.header("content-encoding"), None);
        assert!(
            request.body.starts_with(br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","#)
        );
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn haproxy_replacement_keeps_what_haproxy_would_have_lost() {
    let mut sink = HttpSink::accepting();
    let address = sink.address();
    sink.close();
    let relay = haproxy_replacement(address);
    let events = post_the_corpus(relay.address());
    sink.reopen();
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&sink), &events);
    relay.finish(Backlog::Empty);
}

/// The consumer is as strict as Site24x7 may be: it accepts only what kube-apiserver itself would
/// send, at the path that ends with the token.
#[test]
fn site24x7_sends_what_kube_apiserver_would_to_a_path_with_the_token() {
    let certificates = Certificates::new();
    let tls = Some(certificates.server_config(&certificates.server, false));
    let options = Options { tls, ..Options::default() };
    let sink = HttpSink::with(options, |request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let is_list = body["kind"] == "EventList" && body["apiVersion"] == "audit.k8s.io/v1";
        let count = body["items"].as_array().map_or(0, Vec::len);
        let is_plain = request.header("content-type") == Some("application/json")
            && request.header("content-encoding").is_none()
            && request.header("authorization").is_none();
        let path = request.target == "/event/receiver/s3cr3t-t0ken";
        let taken = path && is_list && is_plain && (1..=400).contains(&count);
        Answer::status(if taken { 200 } else { 400 })
    });
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "s3cr3t-t0ken\n").unwrap();
    let host = format!("localhost:{}", sink.address().port());
    let substitutions = [("logc.site24x7.com", host.as_str()), ("/secrets/token", text(&token))];
    let relay = Relay::with(&shipped("site24x7.toml", &substitutions))
        .variable("SSL_CERT_FILE", text(&certificates.ca))
        .start();
    let events = post_the_corpus(relay.address());
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&sink), &events);
    relay.finish(Backlog::Empty);
}

fn https_mtls(certificates: &Certificates, port: u16) -> Relay {
    let address = format!("localhost:{port}");
    let config = shipped(
        "https-mtls.toml",
        &[
            ("fluentd.example.com:9880", address.as_str()),
            ("/certificates/ca.crt", text(&certificates.ca)),
            ("/certificates/client.crt", text(&certificates.client.certificate)),
            ("/certificates/client.key", text(&certificates.client.key)),
        ],
    );
    Relay::start(&config)
}

#[test]
fn https_mtls_presents_its_certificate_and_sends_arrays() {
    let certificates = Certificates::new();
    let tls = Some(certificates.server_config(&certificates.server, true));
    let options = Options { tls, ..Options::default() };
    let sink = HttpSink::with(options, |_| Answer::status(200));
    let relay = https_mtls(&certificates, sink.address().port());
    let events = post_the_corpus(relay.address());
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&sink), &events);
    for request in sink.requests() {
        assert_eq!(request.target, "/kube.audit");
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert!(request.body.starts_with(b"[{") && request.body.ends_with(b"}]"));
    }
    assert_eq!(sink.handshake_failures(), [] as [String; 0]);
    relay.finish(Backlog::Empty);
}

#[test]
fn elasticsearch_stores_each_event_once_with_the_key_of_a_file() {
    const KEY: &str = "VnVhQ2ZHY0JDZGJrUW0tZTVhT3g6dWkybHAyYXhUTm1zeWFrdzl0dk5udw==";
    let place = Place::new();
    let consumer = Elasticsearch::with(place.options(false), 4 << 20, || Mood::Judges, |_| 201);
    let key = [("/secrets/api-key", &*place.secret(KEY))];
    let host = "elasticsearch.example.com:9200";
    let (relay, events) = place.deliver("elasticsearch.toml", host, consumer.address(), &key);
    // The documents have the shape ECS, with bodies as strings, and name the data stream.
    let mut stored = BTreeMap::new();
    for document in consumer.store().documents.values() {
        let document: Value =
            serde_json::from_str(&String::from_utf8_lossy(document).replace("1e400", "1")).unwrap();
        assert_eq!(document["data_stream"]["dataset"], "kubernetes.audit_logs");
        let audit = &document["kubernetes"]["audit"];
        assert!(!audit["requestObject"].is_object() && !audit["responseObject"].is_object());
        let key = (audit["auditID"].to_string(), audit["stage"].to_string());
        *stored.entry(key).or_insert(0) += 1;
    }
    let mut posted = BTreeMap::new();
    for event in &events {
        let event: BTreeMap<String, &RawValue> = serde_json::from_slice(event).unwrap();
        let key = (event["auditID"].get().to_owned(), event["stage"].get().to_owned());
        *posted.entry(key).or_insert(0) += 1;
    }
    assert_eq!(stored, posted);
    for request in consumer.sink.requests() {
        assert_eq!(request.header("authorization"), Some(&*format!("ApiKey {KEY}")));
        assert_eq!(request.header("content-encoding"), Some("gzip"));
    }
    relay.finish(Backlog::Empty);
}

#[test]
fn s3_has_each_event_in_an_object_with_the_key_of_files() {
    let (place, keys) = (Place::new(), s3::Keys::new());
    let server = S3::with(place.options(false), || s3::Mood::Stores);
    let [id, secret] = keys.files();
    let more = [
        ("clusters/prod-eu", s3::PREFIX),
        ("/secrets/access-key-id", text(&id)),
        ("/secrets/secret-access-key", text(&secret)),
        ("object_age = \"5m\"", "object_age = \"300ms\""),
    ];
    let host = "s3.eu-central-1.amazonaws.com";
    let (relay, events) = place.deliver("s3.toml", host, server.address(), &more);
    relay.finish(Backlog::Empty);
    let lines = server.store().lines();
    assert!(lines == events, "{} lines, {} events", lines.len(), events.len());
    let store = server.store();
    assert_eq!(store.puts, store.objects.len());
}

#[test]
fn splunk_indexes_each_event_with_the_token_of_a_file() {
    let place = Place::new();
    let consumer = Splunk::with(place.options(false), splunk::Script::default());
    let token = [("/secrets/hec-token", &*place.secret(splunk::TOKEN))];
    let host = "splunk.example.com:8088";
    let (relay, events) = place.deliver("splunk-hec.toml", host, consumer.address(), &token);
    assert_same_set(&consumer.store().indexed, &events);
    let envelopes = consumer.store().envelopes.clone();
    assert!(envelopes.iter().all(|envelope| envelope["index"] == "\"kubernetes\""));
    relay.finish(Backlog::Empty);
}

#[test]
fn ibm_cloud_logs_gets_its_token_by_the_key_of_a_file_and_shortens_large_events() {
    let ibm = Ibm::start(Script::default());
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("api-key");
    write_secret(&key, &Credential::key("1"));
    let [logs, iam] =
        [&ibm.logs, &ibm.iam].map(|it| format!("https://localhost:{}", it.address().port()));
    let substitutions = [
        ("https://instance.ingress.eu-de.logs.cloud.ibm.com", logs.as_str()),
        ("https://iam.cloud.ibm.com", iam.as_str()),
        ("/secrets/api-key", text(&key)),
        ("/var/lib/kube-audit-forwarder", text(directory.path())),
    ];
    let relay = ibm.relay(&shipped("ibm-cloud-logs.toml", &substitutions)).start();
    let events = post_the_corpus(relay.address());
    relay.wait_until_delivered(PATIENCE);
    let stored = ibm.memory().stored.clone();
    assert_eq!(stored.len(), events.len());
    assert!(stored.iter().all(|event| event.len() <= 30 << 10));
    let (whole, large): (BTreeSet<_>, BTreeSet<_>) =
        events.into_iter().partition(|event| event.len() <= 30 << 10);
    let (unchanged, shortened): (Vec<_>, Vec<_>) =
        stored.into_iter().partition(|event| whole.contains(event));
    assert_same_set(&unchanged, &whole.into_iter().collect::<Vec<_>>());
    assert!(!large.is_empty() && shortened.len() == large.len());
    let is_marked = |event: &Vec<u8>| {
        String::from_utf8_lossy(event).contains(r#""audit.k8s.io/truncated":"true""#)
    };
    assert!(shortened.iter().all(is_marked));
    ibm.assert_hides_secrets(&relay);
    relay.finish(Backlog::Empty);
}

#[test]
fn loki_gets_an_entry_for_each_event_with_the_tenant_and_the_token_of_a_file() {
    let place = Place::new();
    let consumer = Loki::with(place.options(false), 4 << 20, || loki::Mood::Stores, |_| true);
    let (tenant, token) = (format!("tenant = \"{}\"", loki::TENANT), place.secret("s3cr3t-t0ken"));
    let more = [("tenant = \"platform\"", &*tenant), ("/secrets/loki-token", &token)];
    let to = consumer.address();
    let (relay, events) = place.deliver("loki.toml", "loki.example.com", to, &more);
    // Larger events are sent without their bodies, as the filter of the config says.
    let is_small = |event: &Vec<u8>| event.len() <= 256_000;
    let (small, large): (Vec<_>, Vec<_>) = events.into_iter().partition(is_small);
    let lines = consumer.store().lines();
    assert!(lines.iter().all(is_small));
    assert_eq!(lines.len(), small.len() + large.len());
    let whole: Vec<_> = lines.into_iter().filter(|line| small.contains(line)).collect();
    assert_same_set(&whole, &small);
    for request in consumer.sink.requests() {
        assert_eq!(request.header("authorization"), Some("Bearer s3cr3t-t0ken"));
        assert_eq!(request.header("content-encoding"), Some("gzip"));
    }
    assert!(consumer.store().entries.iter().all(|entry| entry.labels["cluster"] == "prod-eu"));
    relay.finish(Backlog::Empty);
}

#[test]
fn otlp_sends_records_to_a_collector_that_asks_for_a_certificate() {
    let place = Place::new();
    let consumer = Otlp::with(place.options(true), 4_000_000, || otlp::Mood::Counts, |_| true);
    let Certificates { ca, client, .. } = &place.certificates;
    let more = [
        ("/certificates/ca.crt", text(ca)),
        ("/certificates/tls.crt", text(&client.certificate)),
        ("/certificates/tls.key", text(&client.key)),
    ];
    let host = "collector.example.com:4318";
    let (relay, events) = place.deliver("otlp.toml", host, consumer.address(), &more);
    let store = consumer.store();
    assert_same_set(&store.bodies(), &events);
    let service = Attribute::Text("kube-apiserver".to_owned());
    assert!(store.records.iter().all(|record| record.resource["service.name"] == service));
    drop(store);
    relay.finish(Backlog::Empty);
}

#[test]
fn durable_keeps_what_was_accepted_through_a_kill() {
    let place = Place::new();
    let mut sink = HttpSink::with(place.options(false), |_| Answer::status(200));
    let ca = [("/certificates/ca.crt", text(&place.certificates.ca))];
    let to = sink.address();
    let start = || place.start("durable.toml", "logstash.example.com:8443", to, &ca);
    sink.close();
    let mut relay = start();
    let events = post_the_corpus(relay.address());
    relay.kill();
    sink.reopen();
    let relay = start();
    relay.wait_until_delivered(PATIENCE);
    assert_same_set(&accepted_events(&sink), &events);
    relay.finish(Backlog::Empty);
}

/// Tests that need peers.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn haproxy_replacement_works_in_front_of_the_haproxy_that_it_replaces() {
        let sink = HttpSink::accepting();
        let haproxy = Haproxy::start(sink.address());
        let relay = haproxy_replacement(haproxy.address());
        let events = post_the_corpus(relay.address());
        relay.wait_until_delivered(PATIENCE);
        assert_same_set(&accepted_events(&sink), &events);
        relay.finish(Backlog::Empty);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn haproxy_replacement_works_behind_the_haproxy_that_it_replaces_and_nginx_after_it() {
        let certificates = Certificates::new();
        let sink = HttpSink::accepting();
        let nginx = Nginx::start(Security::Plain, &certificates, sink.address());
        let relay = haproxy_replacement(nginx.address());
        let haproxy = Haproxy::start(relay.address());
        let events = post_the_corpus(haproxy.address());
        relay.wait_until_delivered(PATIENCE);
        assert_same_set(&accepted_events(&sink), &events);
        relay.finish(Backlog::Empty);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn https_mtls_works_with_an_nginx_that_asks_for_certificates() {
        let certificates = Certificates::new();
        let sink = HttpSink::accepting();
        let nginx = Nginx::start(Security::MutualTls, &certificates, sink.address());
        let relay = https_mtls(&certificates, nginx.address().port());
        let events = post_the_corpus(relay.address());
        relay.wait_until_delivered(PATIENCE);
        assert_same_set(&accepted_events(&sink), &events);
        relay.finish(Backlog::Empty);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn saas_webhook_sends_compressed_lines_to_a_url_with_the_token() {
        let certificates = Certificates::new();
        let sink = HttpSink::accepting();
        let nginx = Nginx::start(Security::Tls, &certificates, sink.address());
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("token");
        std::fs::write(&token, "s3cr3t-t0ken\n").unwrap();
        let host = format!("localhost:{}", nginx.address().port());
        let substitutions = [("logs.example.com", host.as_str()), ("/secrets/token", text(&token))];
        // The config names no CA, so the system's roots count. Here, they are only our CA.
        let relay = Relay::with(&shipped("saas-webhook.toml", &substitutions))
            .variable("SSL_CERT_FILE", text(&certificates.ca))
            .start();
        let events = post_the_corpus(relay.address());
        relay.wait_until_delivered(PATIENCE);
        assert_same_set(&accepted_events(&sink), &events);
        for request in sink.requests() {
            assert_eq!(request.target, "/v1/ingest?token=s3cr3t-t0ken");
            assert_eq!(request.header("content-type"), Some("application/x-ndjson"));
            assert_eq!(request.header("content-encoding"), Some("gzip"));
        }
        relay.finish(Backlog::Empty);
    }
}
