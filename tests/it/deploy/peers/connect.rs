//! `deploy/connect.sh` points the audit webhook only to relays that answer. The relay is real, and
//! the cluster's CA signs its certificate. The cluster's commands are fakes in `tests/peers`.

use crate::deploy::cluster::{Cluster, curl, succeeded};
use crate::support::prelude::*;

/// The path at kube-apiserver that leads to the Service of `deploy/base/service-https.yaml`.
const PROXY: &str =
    "/api/v1/namespaces/ibm-kube-audit/services/https:kube-audit-forwarder-https:https/proxy/post";

/// A cluster with a relay whose HTTPS listener opens when the cluster gives it a certificate.
pub(super) struct Connected {
    pub(super) cluster: Cluster,
    consumer: HttpSink,
    pub(super) relay: Relay,
    port: u16,
}

impl Connected {
    pub(super) fn new() -> Self {
        let cluster = Cluster::new();
        for name in ["client", "service"] {
            let (subject, key, crt) =
                (format!("/CN={name}"), format!("{name}.key"), format!("{name}.crt"));
            let options = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", &subject];
            let files = ["-keyout", &key, "-out", &crt];
            assert!(cluster.openssl(&[&options[..], &files[..]].concat()).status.success());
        }
        std::fs::write(cluster.path("webhook"), "Server: the old one\n").unwrap();
        std::fs::create_dir(cluster.path("admin-tokens")).unwrap();
        std::fs::write(cluster.path("audits"), "").unwrap();
        std::fs::write(cluster.path("event.json"), numbered::list(0, 0..1)).unwrap();
        let consumer = HttpSink::accepting();
        let (relay, port) = start(&cluster, &consumer);
        std::fs::write(cluster.path("port"), port.to_string()).unwrap();
        std::fs::write(cluster.path("admin"), relay.admin().port().to_string()).unwrap();
        Self { cluster, consumer, relay, port }
    }

    /// Starts another relay of this cluster. It takes the place of the first one after the script
    /// has looked at that once.
    pub(super) fn replace_the_pod(&self) -> Relay {
        let (relay, port) = start(&self.cluster, &self.consumer);
        std::fs::write(self.cluster.path("port-2"), port.to_string()).unwrap();
        std::fs::write(self.cluster.path("admin-2"), relay.admin().port().to_string()).unwrap();
        relay
    }

    /// Runs the script for the cluster `prod` of IBM Cloud. Returns the exit status and the
    /// standard error.
    pub(super) fn ibm_cloud(&self) -> (Option<i32>, String) {
        self.run(&["ibm-cloud", "prod"])
    }

    pub(super) fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.cluster.script("deploy/connect.sh", arguments);
        assert!(!self.cluster.path("api-key").exists(), "the service ID's API key is left");
        assert_eq!(std::fs::read_dir(self.cluster.path("home")).unwrap().count(), 0);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Ends the relay. The script may have failed before it made the tokens.
    pub(super) fn finish(self) {
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
    pub(super) fn set(&self, name: &str) {
        std::fs::write(self.cluster.path(name), "").unwrap();
    }

    pub(super) fn remove(&self, name: &str) {
        std::fs::remove_file(self.cluster.path(name)).unwrap();
    }

    pub(super) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.cluster.path(name)).unwrap()
    }

    /// Asserts that the webhook goes to the relays, with the certificate of the service ID.
    pub(super) fn has_set_the_webhook(&self) {
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

/// Starts a relay of the cluster. Returns it with the port of its HTTPS listener, which must be
/// known before that opens: the fake kubectl asks for it.
fn start(cluster: &Cluster, consumer: &HttpSink) -> (Relay, u16) {
    let (port, mount) = (free_port(), cluster.path("mount"));
    let tls = format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\n[listener.tls]\n\
         certificate = \"{0}/tls.crt\"\nprivate_key = \"{0}/tls.key\"\noptional = true\n",
        text(&mount)
    );
    let admin = format!(
        "bearer_token_file = \"{0}/token\", metrics_token_file = \"{0}/metrics-token\"",
        text(&cluster.path("admin-tokens"))
    );
    let base = with_admin(BASE, &admin);
    let config = format!("{base}{tls}{}", consumer.output("out", ""));
    (Relay::with(&config).listeners(1).start(), port)
}

#[test]
#[ignore = "needs peers or root: ./test"]
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
        "events arrive: pod/kube-audit-forwarder-0 has the event of this script's request",
        "sha256 Fingerprint=",
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
        "delete configmap kube-audit-forwarder-probe-",
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
    let asked = it.cluster.calls().matches("delete configmap").count();
    assert!(it.relay.metrics().value("event_total", &[]) <= asked as f64);
    it.finish();
}

/// With `KUBECTL=oc`, the script needs no kubectl, and no command for other clusters.
#[test]
#[ignore = "needs peers or root: ./test"]
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
#[ignore = "needs peers or root: ./test"]
fn connect_sh_sets_the_new_ca_when_it_runs_again() {
    let it = Connected::new();
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(0), "{said}");
    for end in ["crt", "key"] {
        let (old, new) = (format!("ca.{end}"), format!("foreign-ca.{end}"));
        std::fs::rename(it.cluster.path(&new), it.cluster.path(&old)).unwrap();
    }
    let (status, said) = it.ibm_cloud();
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(it.read("webhook--ca-cert"), it.read("ca.crt"));
    let calls = it.cluster.calls();
    assert_eq!(calls.matches("ibmcloud iam service-id-create").count(), 1, "{calls}");
    it.finish();
}

/// If the provider refuses something, the script says why, and does not change the webhook.
#[test]
#[ignore = "needs peers or root: ./test"]
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
#[ignore = "needs peers or root: ./test"]
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

#[test]
#[ignore = "needs peers or root: ./test"]
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
#[ignore = "needs peers or root: ./test"]
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

/// kube-apiserver is configured after the script has printed the file.
#[test]
#[ignore = "needs peers or root: ./test"]
fn connect_sh_seen_proves_that_events_arrive() {
    let mut it = Connected::new();
    let printed = it.cluster.script("deploy/connect.sh", &["own", "192.0.2.10"]);
    succeeded(&printed);
    let said = String::from_utf8_lossy(&printed.stderr).into_owned();
    assert!(said.contains("Then run: deploy/connect.sh seen"), "{said}");
    it.cluster.variables.insert("TIMEOUT", "3");
    let (status, said) = it.run(&["seen"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("not seen yet: within 3 s no relay"), "{said}");
    it.set("own");
    it.cluster.variables.insert("TIMEOUT", "60");
    let (status, said) = it.run(&["seen"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("events arrive: pod/kube-audit-forwarder-0 has"), "{said}");
    it.finish();
}

/// One command does what a person does otherwise: the namespace, the Secret, the check and the
/// manifests.
#[test]
#[ignore = "needs peers or root: ./test"]
fn connect_sh_installs_the_relays_with_a_config() {
    let mut it = Connected::new();
    std::os::unix::fs::symlink(binary(), it.cluster.path("bin/kube-audit-forwarder")).unwrap();
    let shipped = std::fs::read_to_string(repository().join("deploy/base/relay.toml")).unwrap();
    let output = "type = \"http\"\nurls = [\"https://siem.example/\"]\n\
                  tls = { ca = \"/consumer/ca.crt\" }\nbearer_token_file = \"/consumer/token\"";
    let good = shipped.replace("type = \"stdout\"", output);
    assert_ne!(good, shipped);
    let files = ["relay.toml", "ca.crt", "the-token"].map(|name| it.cluster.path(name));
    let [config, ca, token] = files.each_ref().map(|file| text(file).to_owned());
    std::fs::write(&token, "the-s3cret").unwrap();
    let named = format!("token={token}");
    let image = "registry.example:5000/audit/kube-audit-forwarder:1.2";
    let all = ["--config", &config, "--file", &ca, "--file", &named, "--image", image];
    let ibm = |options: &[&str]| it.run(&[&["ibm-cloud", "prod"], options].concat());
    let gap = "neither a --file nor the Secret kube-audit-forwarder-consumer has token";
    let refusals = [
        (&good, &all[..4], "no image is published", true),
        (&good, &[&all[..4], &all[6..]].concat()[..], gap, false),
        (&good, &[&all[..5], &["/no/token"], &all[6..]].concat()[..], "/no/token can't be", false),
        (&good.replace("/consumer/", "/secrets/"), &all[..], "names /secrets/ca.crt, which", false),
        (&good.replace("urls", "url"), &all[..], "has mistakes", false),
        (&BASE.to_owned(), &all[..], "begin with deploy/base/relay.toml", false),
        (&good, &all[2..], "--image and --file need --config", false),
    ];
    for (text, options, expected, needs_no_release) in refusals {
        let published = std::fs::read_to_string(repository().join("deploy/published"));
        if needs_no_release && published.is_ok_and(|it| it.trim() != "none") {
            continue;
        }
        std::fs::write(&config, text).unwrap();
        let (status, said) = ibm(options);
        assert_eq!(status, Some(1), "{expected}: {said}");
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let calls = std::fs::read_to_string(it.cluster.path("calls")).unwrap_or_default();
    assert!(calls.lines().all(|call| call.starts_with("get ")), "changed: {calls}");

    std::fs::write(&config, &good).unwrap();
    let (status, said) = ibm(&all);
    assert_eq!(status, Some(0), "{said}");
    it.has_set_the_webhook();
    assert_eq!(it.read("applied.toml"), good);
    let deployment = it.read("deployment.yaml");
    assert!(deployment.contains(&format!("\n          image: {image}\n")), "{deployment}");
    assert!(deployment.contains("deploy/overlays/ibm-iks\n"), "{deployment}");
    let data = |it: &Connected| -> BTreeMap<String, String> {
        let secret: Value = serde_json::from_str(&it.read("consumer.json")).unwrap();
        serde_json::from_value(secret["data"].clone()).unwrap()
    };
    assert_eq!(data(&it).keys().collect::<Vec<_>>(), ["ca.crt", "token"]);
    assert_eq!(data(&it)["token"], "dGhlLXMzY3JldA==");
    let calls = it.cluster.calls();
    assert!(!calls.contains("s3cret") && !said.contains("s3cret"), "a value is shown: {calls}");
    let order = ["apply -f ", "apply --server-side", "kustomize ", "rollout status"];
    assert!(order.map(|begin| it.call(begin)).is_sorted(), "{calls}");
    let now = std::fs::read_to_string(repository().join("deploy/base/relay.toml")).unwrap();
    assert_eq!(now, shipped, "the clone stays as it is");

    // The Secret that is there is enough, and other forms have other manifests.
    let again = ["own", "192.0.2.10", "--config", &config, "--image", image];
    let (status, said) = it.run(&again);
    assert_eq!(status, Some(0), "{said}");
    assert!(it.read("deployment.yaml").contains("deploy/base\n"));
    // A new token leaves the CA of the first run in the Secret.
    std::fs::write(&token, "another").unwrap();
    let (status, said) = it.run(&[&again[..], &["--file", &named]].concat());
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(data(&it).keys().collect::<Vec<_>>(), ["ca.crt", "token"]);
    assert_eq!(data(&it)["token"], "YW5vdGhlcg==");
    it.cluster.variables.insert("KUBECTL", "oc");
    let (status, said) = it.run(&[&["ibm-cloud", "prod"], &again[2..]].concat());
    assert_eq!(status, Some(0), "{said}");
    assert!(it.read("deployment.yaml").contains("deploy/overlays/ibm-openshift\n"));
    assert_eq!(data(&it).len(), 2);
    let durable = r#"{"items": [{"kind": "StatefulSet", "metadata": {"name": "kube-audit-forwarder",
        "labels": {}}, "spec": {"template": {"metadata": {"labels": {"app.kubernetes.io/name":
        "kube-audit-forwarder"}}}}}]}"#;
    let helm = durable.replace("{}", r#"{"app.kubernetes.io/managed-by": "Helm"}"#);
    let haproxy = durable.replace("StatefulSet", "Deployment").replace("/name", "/other");
    for (workloads, expected) in [
        (durable, "the relays are a StatefulSet"),
        (&helm, "Helm has installed the relays"),
        (&haproxy, "for HAProxy, see docs/replace-haproxy.md"),
    ] {
        std::fs::write(it.cluster.path("workloads.json"), workloads).unwrap();
        let (status, said) = it.run(&again);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    it.finish();
}

/// The relay is on a server, and the cluster has none.
#[test]
#[ignore = "needs peers or root: ./test"]
fn connect_sh_sets_the_webhook_to_a_relay_elsewhere() {
    let it = Connected::new();
    let certificates = Certificates::new();
    let base = BASE
        .replace("\"127.0.0.1:0\"\n", &format!("\"127.0.0.1:0\"\n{}", certificates.server.tls()));
    let relay = Relay::start(&format!("{base}{}", it.consumer.output("out", "")));
    let url = format!("https://{}/", relay.address());
    let ca = text(&certificates.ca);
    let (status, said) = it.run(&["url", "prod", &url, "--ca", text(&certificates.wrong_ca)]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("no relay answers at https://"), "{said}");
    let plain = url.replace("https", "http");
    let (status, said) = it.run(&["url", "prod", &plain, "--ca", ca]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("in plain text"), "{said}");
    assert_eq!(it.read("webhook"), "Server: the old one\n");
    let (status, said) = it.run(&["url", "prod", &url, "--ca", ca]);
    assert_eq!(status, Some(0), "{said}");
    for expected in [
        "a relay answers at",
        "Server: the old one",
        "the master: deployed. Ready",
        "Whether events arrive can't be seen from here",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert_eq!(it.read("webhook"), format!("Server: {url}\n"));
    assert!(!it.cluster.path("webhook--client-cert").exists());
    // The master may reach what this machine does not.
    let closed = format!("https://127.0.0.1:{}/", free_port());
    let client = [text(&certificates.client.certificate), text(&certificates.client.key)];
    let with_client = ["url", "prod", &closed, "--ca", ca, "--cert", client[0], "--key", client[1]];
    let (status, said) = it.run(&with_client);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("can't be reached from this machine"), "{said}");
    let given = std::fs::read_to_string(it.cluster.path("webhook--client-key")).unwrap();
    assert_eq!(given, std::fs::read_to_string(client[1]).unwrap());
    relay.finish(Backlog::Empty);
    it.finish();
}

#[test]
#[ignore = "needs peers or root: ./test"]
fn connect_sh_says_how_it_is_used() {
    let cluster = Cluster::new();
    let wrong: [&[&str]; 11] = [
        &[],
        &["ibm-cloud"],
        &["own"],
        &["elsewhere", "x"],
        &["seen", "x"],
        &["ibm-cloud", "prod", "--ca", "x"],
        &["ibm-cloud", "prod", "--config"],
        &["own", "192.0.2.10", "--no-such", "x"],
        &["url", "prod", "https://siem.example"],
        &["url", "prod", "https://siem.example", "--ca", "x", "--cert", "x"],
        &["url", "prod", "https://siem.example", "--ca", "x", "--config", "x"],
    ];
    for arguments in wrong {
        let output = cluster.script("deploy/connect.sh", arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage: "), "{arguments:?}");
    }
}
