//! `deploy/connect.sh` points the audit webhook only to relays that answer. The relay is real, and
//! the cluster's CA signs its certificate. The cluster's commands are fakes in `tests/peers`.

use crate::deploy::cluster::{Cluster, curl, succeeded};
use crate::support::prelude::*;
use crate::support::tally::Tallying;

/// The path at kube-apiserver that leads to the Service of `deploy/base/service-https.yaml`.
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
        for name in ["client", "service"] {
            let (subject, key, crt) =
                (format!("/CN={name}"), format!("{name}.key"), format!("{name}.crt"));
            let options = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", &subject];
            let files = ["-keyout", &key, "-out", &crt];
            assert!(cluster.openssl(&[&options[..], &files[..]].concat()).status.success());
        }
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
        let admin = format!(
            "bearer_token_file = \"{0}/token\", metrics_token_file = \"{0}/metrics-token\"",
            text(&cluster.path("admin-tokens"))
        );
        std::fs::create_dir(cluster.path("admin-tokens")).unwrap();
        let base = with_admin(BASE, &admin);
        let config = format!("{base}{tls}{}", consumer.output("out", ""));
        let relay = Relay::with(&config).listeners(1).start();
        std::fs::write(cluster.path("port"), port.to_string()).unwrap();
        std::fs::write(cluster.path("admin"), relay.admin().port().to_string()).unwrap();
        std::fs::write(cluster.path("event.json"), numbered::list(0, 0..1)).unwrap();
        Self { cluster, consumer, relay, port }
    }

    /// Runs the script for the cluster `prod` of IBM Cloud. Returns the exit status and the
    /// standard error.
    fn ibm_cloud(&self) -> (Option<i32>, String) {
        let output = self.cluster.script("deploy/connect.sh", &["ibm-cloud", "prod"]);
        assert!(!self.cluster.path("api-key").exists(), "the service ID's API key is left");
        assert_eq!(std::fs::read_dir(self.cluster.path("home")).unwrap().count(), 0);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Ends the relay. The script may have failed before it made the tokens.
    fn finish(self) {
        let token = self.cluster.path("admin-tokens/metrics-token");
        if !token.exists() {
            std::fs::write(&token, "made-by-the-test").unwrap();
        }
        let answers = || {
            let bearer = format!("Bearer {}", std::fs::read_to_string(&token).unwrap());
            let mut client = Client::connect(self.relay.admin()).unwrap();
            let headers = [("Authorization", bearer.as_str())];
            client.request("GET", "/metrics", &headers, b"").unwrap().status == 200
        };
        wait_until("the token", PATIENCE, answers);
        self.relay.finish(Backlog::Empty);
    }

    /// Makes the fake cluster or the fake `ibmcloud` behave as the name says.
    fn set(&self, name: &str) {
        std::fs::write(self.cluster.path(name), "").unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.cluster.path(name)).unwrap()
    }

    /// Asserts that the webhook goes to the relays, with the certificate of the service ID.
    fn has_set_the_webhook(&self) {
        assert_eq!(self.read("webhook"), format!("Server: https://127.0.0.1:2040{PROXY}\n"));
        let given =
            [("ca-cert", "ca.crt"), ("client-cert", "service.crt"), ("client-key", "service.key")];
        for (given, file) in given {
            assert_eq!(self.read(&format!("webhook--{given}")), self.read(file), "{given}");
        }
    }

    /// Returns the position of the first call that begins with `begin`.
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
    // The service ID gets its rights a moment after its policy.
    it.set("rights-late");
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(0), "{said}");
    for expected in [
        "Server: the old one",
        "made the service ID kube-audit-forwarder-prod",
        "the master: updating. Refresh in progress.",
        "the master: deployed. Ready",
        "the tokens of the admin port are in the Secret kube-audit-forwarder-admin",
        "events arrive: ",
        "set: policy (default)",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    it.has_set_the_webhook();
    let order = [
        "ibmcloud ks cluster ca get",
        "ibmcloud ks cluster ca status",
        "create -f -",
        "rollout status",
        "certificate approve",
        "create --raw",
        "ibmcloud iam service-id-create",
        "ibmcloud iam service-api-key-delete",
        "ibmcloud ks cluster master audit-webhook set",
        "ibmcloud ks cluster master refresh",
        "port-forward",
    ];
    assert!(order.map(|begin| it.call(begin)).is_sorted(), "{}", it.cluster.calls());
    assert!(!it.cluster.calls().contains("the-secret"), "a key is on a command line");
    let tokens = ["token", "metrics-token"].map(|name| it.read(&format!("admin-tokens/{name}")));
    assert_ne!(tokens[0], tokens[1]);
    for token in tokens {
        assert_eq!(token.len(), 64, "{token}");
        assert!(!it.cluster.calls().contains(&token), "a token is on a command line");
        assert!(!said.contains(&token), "a token is shown");
    }
    let mut admin = Client::connect(it.relay.admin()).unwrap();
    assert_eq!(admin.request("GET", "/status", &[], b"").unwrap().status, 401);
    // The credentials are those of the namespace `default`, without the old object's metadata.
    let created: Value = serde_json::from_str(&it.read("created.json")).unwrap();
    let expected = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": "all-icr-io", "namespace": "ibm-kube-audit"}, "data": {"a": "Yg=="}
    });
    assert_eq!(created, expected);
    // All events come from the fake kube-apiserver: the script sends none.
    let forwarded = it.cluster.calls().matches("port-forward").count();
    assert!(it.relay.metrics().value("event_total", &[]) <= forwarded as f64);
    it.finish();
}

/// With `KUBECTL=oc`, the script needs no kubectl, and no command for other clusters.
#[test]
fn connect_sh_uses_the_commands_of_openshift_and_no_others() {
    let mut it = Connected::new();
    it.set("only-oc");
    let (status, said) = it.ibm_cloud();
    assert_ne!(status, Some(0), "a call of kubectl has to fail: {said}");
    std::fs::remove_file(it.cluster.path("names")).unwrap();
    std::fs::remove_file(it.cluster.path("calls")).unwrap();
    it.cluster.variables.insert("KUBECTL", "oc");
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(0), "{said}");
    it.has_set_the_webhook();
    let names = it.read("names");
    assert!(names.lines().all(|name| name == "oc"), "{names}");
    let calls = it.cluster.calls();
    for expected in ["cluster ca get", "cluster config", "cluster master audit-webhook set"] {
        assert!(calls.contains(&format!("ibmcloud oc {expected} ")), "{expected}: {calls}");
    }
    assert!(!calls.contains("ibmcloud ks "), "{calls}");
    it.finish();
}

/// The cluster's CA has changed since the last run, and the service ID exists already.
#[test]
fn connect_sh_says_what_has_changed_since_it_ran_last() {
    let it = Connected::new();
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(0), "{said}");
    for end in ["crt", "key"] {
        let (old, new) = (format!("ca.{end}"), format!("foreign-ca.{end}"));
        std::fs::rename(it.cluster.path(&new), it.cluster.path(&old)).unwrap();
    }
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(0), "{said}");
    for expected in ["changed: ca (before: ", "unchanged: client (", "unchanged: url (https://"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert_eq!(it.read("webhook--ca-cert"), it.read("ca.crt"));
    let calls = it.cluster.calls();
    assert_eq!(calls.matches("ibmcloud iam service-id-create").count(), 1, "{calls}");
    it.finish();
}

/// If the provider refuses something, the script says why, and does not change the webhook.
#[test]
fn connect_sh_stops_where_the_provider_refuses() {
    let mut it = Connected::new();
    it.cluster.variables.insert("TIMEOUT", "5");
    let refusals = [
        ("no-administrator", "you need the role Administrator for the cluster"),
        ("ca-in-progress", "run this script again when that is complete"),
        ("no-service-ids", "set IDENTITY=own: You are not authorized to create a service ID."),
        ("no-rights", "gets no client certificate: The specified service ID is not authorized."),
    ];
    for (refusal, expected) in refusals {
        // This refusal needs the HTTPS listener, which can take longer than 5 s to open.
        if refusal == "no-service-ids" {
            it.cluster.variables.insert("TIMEOUT", "60");
        }
        if refusal == "no-rights" {
            it.cluster.variables.insert("TIMEOUT", "5");
        }
        it.set(refusal);
        let (status, said) = it.ibm_cloud();
        std::fs::remove_file(it.cluster.path(refusal)).unwrap();
        assert_eq!(status, Some(1), "{refusal}: {said}");
        assert!(said.contains(expected), "{refusal}: {said}");
        assert_eq!(it.read("webhook"), "Server: the old one\n", "{refusal}");
        // The first two refusals are reported before the script changes anything in the cluster.
        let changes = it.cluster.calls().contains("certificate approve");
        assert_eq!(changes, refusal.starts_with("no-s") || refusal == "no-rights", "{refusal}");
    }
    it.finish();
}

#[test]
fn connect_sh_warns_where_the_webhook_gets_the_certificate_of_a_person() {
    let mut it = Connected::new();
    it.cluster.variables.insert("IDENTITY", "own");
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(0), "{said}");
    let warning = "the client certificate of person@example.com. Events stop";
    assert!(said.contains(warning), "{said}");
    assert_eq!(it.read("webhook--client-cert"), it.read("client.crt"));
    // A service ID that is logged in needs no other one.
    for identity in ["own", "service-id"] {
        it.cluster.variables.insert("IDENTITY", identity);
        it.set("is-service-id");
        let (status, said) = it.ibm_cloud();
        assert_eq!(status, Some(0), "{said}");
        assert!(said.contains("of ServiceId-77, who is logged in"), "{said}");
        assert!(!said.contains("Events stop"), "{said}");
    }
    assert!(!it.cluster.calls().contains("service-id-create"));
    it.finish();
}

/// The script succeeds only after an event has arrived.
#[test]
fn connect_sh_fails_where_the_refresh_fails_or_no_event_comes() {
    let mut it = Connected::new();
    it.set("refresh-fails");
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("refresh has failed (update_failed): Refresh failed."), "{said}");
    std::fs::remove_file(it.cluster.path("refresh-fails")).unwrap();
    std::fs::remove_file(it.cluster.path("event.json")).unwrap();
    it.cluster.variables.insert("TIMEOUT", "5");
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("no event came within 5 s"), "{said}");
    assert_eq!(it.relay.metrics().value("event_total", &[]), 0.0);
    let consumer = std::mem::replace(&mut it.consumer, Tallying::tcp());
    it.finish();
    assert!(consumer.tally.arrivals().is_empty());
}

#[test]
fn connect_sh_leaves_the_webhook_alone_where_no_relay_answers() {
    let mut it = Connected::new();
    std::fs::remove_file(it.cluster.path("port")).unwrap();
    it.cluster.variables.insert("TIMEOUT", "5");
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(1));
    assert!(said.contains("no relay answers") && said.contains("no endpoints"), "{said}");
    assert_eq!(it.read("webhook"), "Server: the old one\n");
    it.set("two-ports");
    let (_, said) = it.ibm_cloud();
    assert!(said.contains("no Service kube-audit-forwarder-https"), "{said}");
    it.set("empty");
    let (_, said) = it.ibm_cloud();
    assert!(said.contains("apply the manifests or the chart first"), "{said}");
    it.finish();
}

/// The printed file has the address and the CA with which a sender reaches the relay over HTTPS.
/// The policy allows only the given addresses.
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
    it.finish();
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
