//! `deploy/connect.sh` turns the audit webhook to relays that answer, and to no others. The relay
//! is real, its certificate comes from the cluster's CA, and `tests/peers` has the cluster's
//! commands.

use crate::deploy::cluster::{Cluster, curl, succeeded};
use crate::support::prelude::*;
use crate::support::tally::Tallying;

/// The path below kube-apiserver's address, as `deploy/base/service-https.yaml` makes it.
const PROXY: &str =
    "/api/v1/namespaces/ibm-kube-audit/services/https:kube-audit-forwarder-https:https/proxy/post";

/// A cluster with a relay whose HTTPS listener opens when the cluster gives it a certificate.
struct Connected {
    cluster: Cluster,
    consumer: Tallying,
    relay: Relay,
    port: u16,
}

impl Connected {
    fn new() -> Self {
        let cluster = Cluster::new();
        let subject = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=admin"];
        let files = ["-keyout", "client.key", "-out", "client.crt"];
        assert!(cluster.openssl(&[&subject[..], &files[..]].concat()).status.success());
        std::fs::write(cluster.path("webhook"), "Server: the old one\n").unwrap();
        let consumer = Tallying::tcp();
        // The port must be known before the listener opens: the fake kubectl asks for it.
        let port = free_port();
        let mount = cluster.path("mount");
        let tls = format!(
            "[[listener]]\naddress = \"127.0.0.1:{port}\"\n[listener.tls]\n\
             certificate = \"{0}/tls.crt\"\nprivate_key = \"{0}/tls.key\"\noptional = true\n",
            text(&mount)
        );
        let config = format!("{BASE}{tls}{}", consumer.output("out", ""));
        let relay = Relay::with(&config).listeners(1).start();
        std::fs::write(cluster.path("port"), port.to_string()).unwrap();
        Self { cluster, consumer, relay, port }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.cluster.path(name)).unwrap()
    }

    /// Returns the place of a call in the order of calls.
    fn call(&self, begin: &str) -> usize {
        let calls = self.cluster.calls();
        let found = calls.lines().position(|call| call.starts_with(begin));
        found.unwrap_or_else(|| panic!("{begin}: {calls}"))
    }
}

#[test]
fn connect_sh_turns_the_webhook_of_ibm_cloud_to_relays_that_answer() {
    let it = Connected::new();
    let secret = r#"{"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": "all-icr-io", "namespace": "default", "uid": "1"}, "data": {"a": "Yg=="}}"#;
    std::fs::write(it.cluster.path("all-icr-io-default.json"), secret).unwrap();
    let output = it.cluster.script("deploy/connect.sh", &["ibm-cloud", "prod"]);
    succeeded(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Server: the old one"), "the way back is not shown: {said}");
    assert_eq!(it.read("webhook"), format!("Server: https://127.0.0.1:2040{PROXY}\n"));
    for (given, file) in
        [("ca-cert", "ca.crt"), ("client-cert", "client.crt"), ("client-key", "client.key")]
    {
        assert_eq!(it.read(&format!("webhook--{given}")), it.read(file), "{given}");
    }
    let order = [
        "create -f -",
        "rollout status",
        "certificate approve",
        "create --raw",
        "ibmcloud ks cluster master audit-webhook set",
        "ibmcloud ks cluster master refresh",
    ];
    assert!(order.map(|begin| it.call(begin)).is_sorted(), "{}", it.cluster.calls());
    // The credentials are those of the namespace default, without what belongs to the old object.
    let created: Value = serde_json::from_str(&it.read("created.json")).unwrap();
    let expected = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": "all-icr-io", "namespace": "ibm-kube-audit"}, "data": {"a": "Yg=="}
    });
    assert_eq!(created, expected);
    // The trial sends no event.
    assert_eq!(it.relay.metrics().value("event_total", &[]), 0.0);
    it.relay.finish(Backlog::Empty);
    assert!(it.consumer.tally.arrivals().is_empty());
}

#[test]
fn connect_sh_leaves_the_webhook_alone_where_no_relay_answers() {
    let mut it = Connected::new();
    std::fs::remove_file(it.cluster.path("port")).unwrap();
    it.cluster.timeout = "3";
    let output = it.cluster.script("deploy/connect.sh", &["ibm-cloud", "prod"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no relay answers") && said.contains("no endpoints"), "{said}");
    assert_eq!(it.read("webhook"), "Server: the old one\n");
    std::fs::write(it.cluster.path("two-ports"), "").unwrap();
    let output = it.cluster.script("deploy/connect.sh", &["ibm-cloud", "prod"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no Service kube-audit-forwarder-https"), "{said}");
    std::fs::write(it.cluster.path("empty"), "").unwrap();
    let output = it.cluster.script("deploy/connect.sh", &["ibm-cloud", "prod"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("apply the manifests or the chart first"), "{said}");
    it.relay.finish(Backlog::Empty);
}

/// The printed file has the address and the CA with which a sender reaches the relay over HTTPS.
/// The policy lets exactly the given addresses through.
#[test]
fn connect_sh_prints_the_file_for_a_kube_apiserver_of_ones_own() {
    let it = Connected::new();
    let arguments = ["own", "192.0.2.10", "2001:db8::10"];
    let output = it.cluster.script("deploy/connect.sh", &arguments);
    succeeded(&output);
    let printed = String::from_utf8(output.stdout).unwrap();
    let value = |key: &str| -> String {
        let found = printed.lines().find_map(|line| line.trim().strip_prefix(key));
        found.unwrap_or_else(|| panic!("{key}: {printed}")).to_owned()
    };
    let ca = it.cluster.path("printed-ca");
    std::fs::write(it.cluster.path("printed-ca.b64"), value("certificate-authority-data: "))
        .unwrap();
    let decoded = ["base64", "-d", "-A", "-in", "printed-ca.b64", "-out", "printed-ca"];
    assert!(it.cluster.openssl(&decoded).status.success());
    let body = it.cluster.path("batch.json");
    std::fs::write(&body, numbered::list(0, 0..10)).unwrap();
    assert_eq!(value("server: "), "https://10.96.0.18/post");
    let answer = curl(&ca, &value("server: "), it.port, &body);
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "{\"accepted\":10}", "{answer:?}");
    let policy = it.read("policy.yaml");
    let blocks: Vec<&str> =
        policy.lines().filter_map(|line| line.trim().strip_prefix("cidr: ")).collect();
    assert_eq!(blocks, ["192.0.2.10/32", "2001:db8::10/128"], "{policy}");
    assert!(policy.contains("name: kube-audit-forwarder-control-plane"), "{policy}");
    for wrong in ["", "no-address", "192.0.2.10/0", "192.0.2.10 0.0.0.0"] {
        let output = it.cluster.script("deploy/connect.sh", &["own", wrong]);
        assert_eq!(output.status.code(), Some(1), "{wrong}");
    }
    it.relay.finish(Backlog::Empty);
}

#[test]
fn connect_sh_says_how_it_is_used() {
    let cluster = Cluster::new();
    for arguments in [&[][..], &["ibm-cloud"], &["own"], &["elsewhere", "x"]] {
        let output = cluster.script("deploy/connect.sh", arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage: "), "{arguments:?}");
    }
}
