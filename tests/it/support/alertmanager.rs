//! A real Alertmanager with the repository's inhibit rules, and what it tells its receiver.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http;
use super::http_sink::{Answer, HttpSink};
use super::peers::{Process, program, start_on_free_port};
use super::{PATIENCE, repository, text, wait_until};

/// Alertmanager and its receiver. Dropping this value ends both.
pub(crate) struct Alertmanager {
    process: Process,
    told: Arc<Mutex<Vec<Notification>>>,
    _receiver: HttpSink,
    _directory: TempDir,
}

/// One message about one alert.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Notification {
    /// The alert's label `namespace`.
    pub(crate) namespace: String,
    /// The name without its prefix.
    pub(crate) alert: String,
    /// `true`: it fires. `false`: it is resolved.
    pub(crate) fires: bool,
}

impl Alertmanager {
    /// Starts an Alertmanager for which each alert is a group of its own, and which waits for a
    /// second before it tells of a group.
    pub(crate) fn start() -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let receiver = HttpSink::forgetful(move |request| {
            let message: Value = serde_json::from_slice(&request.decoded()).expect("JSON");
            let alerts = message["alerts"].as_array().expect("alerts");
            list.lock().expect("no panic").extend(alerts.iter().map(notification));
            Answer::status(200)
        });
        let directory = TempDir::new().expect("a temporary directory");
        let rules = repository().join("deploy/monitoring/inhibit_rules.yaml");
        let rules = std::fs::read_to_string(rules).expect("the inhibit rules");
        let route = json!({ "receiver": "operators", "group_by": ["..."], "group_wait": "1s",
            "group_interval": "1s", "repeat_interval": "1h" });
        let url = format!("http://{}/", receiver.address());
        let receivers = json!([{ "name": "operators", "webhook_configs": [{ "url": url }] }]);
        let file = directory.path().join("alertmanager.yaml");
        // Any JSON is also YAML.
        let config = format!("route: {route}\nreceivers: {receivers}\n{rules}");
        std::fs::write(&file, config).expect("a writable directory");
        let process = start_on_free_port(|port| {
            let arguments = [
                format!("--config.file={}", text(&file)),
                format!("--storage.path={}", text(&directory.path().join("data"))),
                format!("--web.listen-address=127.0.0.1:{port}"),
                // It is no member of a cluster.
                "--cluster.listen-address=".to_owned(),
            ];
            let arguments = arguments.each_ref().map(String::as_str);
            Process::new(program("prometheus-alertmanager"), &arguments, port, directory.path())
        });
        let manager = Self { process, told, _receiver: receiver, _directory: directory };
        wait_until("Alertmanager to be ready", PATIENCE, || {
            http::get(manager.address(), "/-/ready").is_ok_and(|answer| answer.status == 200)
        });
        manager
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.process.address()
    }

    /// Lets these alerts fire, as Prometheus does: each is an object of labels.
    pub(crate) fn fire(&self, alerts: &[Value]) {
        let alerts: Vec<_> = alerts.iter().map(|labels| json!({ "labels": labels })).collect();
        let body = Value::from(alerts).to_string();
        let answer =
            http::post(self.address(), "/api/v2/alerts", "application/json", body.as_bytes());
        assert_eq!(answer.expect("an answer").status, 200);
    }

    /// Returns what the receiver was told until now.
    pub(crate) fn told(&self) -> Vec<Notification> {
        self.told.lock().expect("no panic").clone()
    }
}

fn notification(alert: &Value) -> Notification {
    let label = |name: &str| alert["labels"][name].as_str().unwrap_or_default();
    Notification {
        namespace: label("namespace").to_owned(),
        alert: label("alertname").trim_start_matches("KubeAuditForwarder").to_owned(),
        fires: alert["status"] == "firing",
    }
}
