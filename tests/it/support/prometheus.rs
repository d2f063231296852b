//! A real Prometheus that scrapes a relay every second, evaluates the repository's rules, and
//! answers queries.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::peers::{Process, program, start_on_free_port};
use super::{PATIENCE, http, repository, rules, text, wait_until};

/// The labels of the scraped target, as a PodMonitor sets them.
pub(crate) const JOB: &str = "kube-audit-forwarder";
pub(crate) const NAMESPACE: &str = "ibm-kube-audit";
pub(crate) const POD: &str = "relay-0";

/// Prometheus and its data. Dropping this value ends the process and deletes the data.
pub(crate) struct Prometheus {
    process: Process,
    _directory: TempDir,
}

/// One element of the result of a query.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// An alerting rule as Prometheus has read it.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) expression: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Prometheus {
    /// Starts a Prometheus that scrapes this admin address, and waits until it has scraped once.
    pub(crate) fn start(admin: SocketAddr) -> Self {
        Self::with_labels(admin, &[])
    }

    /// Like [`Prometheus::start`], but with more labels on the target.
    pub(crate) fn with_labels(admin: SocketAddr, more: &[(&str, &str)]) -> Self {
        let mut labels = BTreeMap::from([("namespace", NAMESPACE), ("pod", POD)]);
        labels.extend(more.iter().copied());
        let rules = repository().join("deploy/monitoring/rules.yaml");
        Self::launch(&[], |_| {
            let target = json!({ "targets": [admin.to_string()], "labels": labels });
            json!({ "rule_files": [text(&rules)],
                "scrape_configs": [{ "job_name": JOB, "static_configs": [target] }] })
        })
    }

    /// Starts a Prometheus for which time passes this many times faster, and which tells this
    /// Alertmanager. It scrapes the relay whose admin address is in the file `targets`
    /// ([`target`]).
    pub(crate) fn faster(times: u32, targets: &Path, alertmanager: SocketAddr) -> Self {
        let rules = repository().join("deploy/monitoring/rules.yaml");
        let rules = rules::faster(&std::fs::read_to_string(rules).expect("the rules"), times);
        // Alertmanager forgets an alert after four times this. Prometheus needs five seconds after
        // its start until it knows its Alertmanagers, whatever the rules say.
        Self::launch(&["--rules.alert.resend-delay=8s"], |directory| {
            let file = directory.join("rules.yaml");
            std::fs::write(&file, rules).expect("a writable directory");
            let managers = json!([{ "targets": [alertmanager.to_string()] }]);
            json!({ "rule_files": [text(&file)],
                "alerting": { "alertmanagers": [{ "static_configs": managers }] },
                "scrape_configs": [{ "job_name": JOB,
                    "file_sd_configs": [{ "files": [text(targets)] }] }] })
        })
    }

    fn launch(more: &[&str], config: impl FnOnce(&Path) -> Value) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut config = config(directory.path());
        config["global"] = json!({ "scrape_interval": "1s", "evaluation_interval": "1s" });
        // Any JSON is also YAML.
        let file = directory.path().join("prometheus.yaml");
        std::fs::write(&file, config.to_string()).expect("a writable directory");
        let process = start_on_free_port(|port| {
            let arguments = [
                format!("--config.file={}", text(&file)),
                format!("--storage.tsdb.path={}", text(&directory.path().join("data"))),
                format!("--web.listen-address=127.0.0.1:{port}"),
            ];
            let arguments = arguments.iter().map(String::as_str).chain(more.iter().copied());
            let arguments: Vec<&str> = arguments.collect();
            Process::new(program("prometheus"), &arguments, port, directory.path())
        });
        let prometheus = Self { process, _directory: directory };
        wait_until("Prometheus to be ready", PATIENCE, || {
            http::get(prometheus.address(), "/-/ready").is_ok_and(|answer| answer.status == 200)
        });
        wait_until("the first scrape", PATIENCE, || {
            prometheus.query("up").iter().any(|sample| sample.value == 1.0)
        });
        prometheus
    }

    /// Ends Prometheus in order, and starts it again with its data.
    pub(crate) fn restart(&mut self) {
        self.process.stop();
        self.process.start();
    }

    fn address(&self) -> SocketAddr {
        self.process.address()
    }

    fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let query =
            url::form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        let answer = http::get(self.address(), &format!("{path}?{query}")).expect("an answer");
        assert_eq!(answer.status, 200, "{path} {parameters:?}: {}", answer.text());
        answer.json()["data"].clone()
    }

    /// Returns the current value of an expression: an instant vector, or a scalar as one sample
    /// without labels. Panics if the value has another type.
    pub(crate) fn query(&self, expression: &str) -> Vec<Sample> {
        let data = self.get("/api/v1/query", &[("query", expression)]);
        let number = |pair: &Value| -> f64 {
            pair[1].as_str().and_then(|text| text.parse().ok()).expect("a number")
        };
        if data["resultType"] == "scalar" {
            return vec![Sample { labels: BTreeMap::new(), value: number(&data["result"]) }];
        }
        assert_eq!(data["resultType"], "vector", "{expression}");
        let samples = data["result"].as_array().expect("a vector").iter();
        samples
            .map(|it| Sample { labels: strings(&it["metric"]), value: number(&it["value"]) })
            .collect()
    }

    /// Returns the values of a label in the series that match a selector.
    pub(crate) fn label_values(&self, label: &str, selector: &str) -> Vec<String> {
        let path = format!("/api/v1/label/{label}/values");
        let values = self.get(&path, &[("match[]", selector)]);
        serde_json::from_value(values).expect("strings")
    }

    /// Returns every alerting rule.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        let data = self.get("/api/v1/rules", &[("type", "alert")]);
        let groups = data["groups"].as_array().expect("groups").iter();
        groups
            .flat_map(|group| group["rules"].as_array().expect("rules"))
            .map(|rule| Rule {
                name: rule["name"].as_str().expect("a name").to_owned(),
                expression: rule["query"].as_str().expect("an expression").to_owned(),
                labels: strings(&rule["labels"]),
                annotations: strings(&rule["annotations"]),
            })
            .collect()
    }
}

/// Writes the file that names a relay to [`Prometheus::faster`]. A relay that is restarted keeps
/// its labels, as a pod of a StatefulSet does.
pub(crate) fn target(file: &Path, admin: SocketAddr) {
    let labels = json!({ "namespace": NAMESPACE, "pod": POD, "instance": POD });
    let targets = json!([{ "targets": [admin.to_string()], "labels": labels }]);
    let new = file.with_extension("new");
    std::fs::write(&new, targets.to_string()).expect("a writable directory");
    std::fs::rename(new, file).expect("a writable directory");
}

fn strings(object: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(object.clone()).expect("an object of strings")
}
