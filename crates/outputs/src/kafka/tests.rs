//! The settings that librdkafka gets from the common keys of outputs and sources.

use std::time::Duration;

use rdkafka::config::ClientConfig;

use super::Settings;
use client::kafka::{Cluster, Trouble};

fn cluster(keys: &str) -> Cluster {
    let keys = format!("type = 'kafka'\nbrokers = ['[::1]:9092', 'b:9093']\ntopic = 't'\n{keys}");
    let output = crate::tests::output(&keys);
    let kafka: &Settings = output.kind.settings().expect("it is");
    Cluster::new(&kafka.cluster)
}

fn settings(cluster: &Cluster) -> ClientConfig {
    cluster.client(Duration::from_secs(5), Duration::from_secs(60))
}

#[test]
fn every_setting_is_one_that_librdkafka_has() {
    let plain = settings(&cluster(""));
    plain.create_native_config().unwrap();
    assert_eq!(plain.get("security.protocol"), Some("plaintext"));
    assert_eq!(plain.get("bootstrap.servers"), Some("[::1]:9092,b:9093"));
    let directory = tempfile::TempDir::new().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, "hunter2\n").unwrap();
    let sasl = |more: &str| {
        let file = password.display();
        cluster(&format!("sasl = {{ username = 'u', password_file = '{file}' }}\n{more}"))
    };
    for (more, protocol) in [("", "sasl_plaintext"), ("tls = {}", "sasl_ssl")] {
        let cluster = sasl(more);
        cluster.apply(cluster.read().unwrap());
        let settings = settings(&cluster);
        settings.create_native_config().unwrap();
        assert_eq!(settings.get("security.protocol"), Some(protocol));
        assert_eq!(settings.get("sasl.mechanism"), Some("SCRAM-SHA-512"));
        assert_eq!(settings.get("sasl.password"), Some("hunter2"));
        let mut changes = cluster.changes();
        assert!(!changes.has_changed().unwrap());
        cluster.apply(cluster.read().unwrap());
        assert!(!changes.has_changed().unwrap());
        std::fs::write(&password, "another").unwrap();
        cluster.apply(cluster.read().unwrap());
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        std::fs::write(&password, "hunter2").unwrap();
    }
}

#[test]
fn no_error_shows_a_secret() {
    let mut settings = settings(&cluster("tls = {}"));
    settings.set("ssl.key.pem", "hunter2").set("sasl.password", "hunter2");
    settings.set("security.protocol", "ssl").set("acks", "hunter2");
    let error = settings.create_native_config().err().unwrap();
    assert!(error.to_string().contains("hunter2"), "{error}");
    let shown = Trouble::new(&error, "").to_string();
    assert!(shown.starts_with("acks: "), "{shown}");
}
