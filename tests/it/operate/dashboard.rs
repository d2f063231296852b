//! The Grafana dashboard: the fields that Grafana needs, and each expression evaluated by a real
//! Prometheus that scrapes the running relay.

use std::collections::BTreeSet;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::PATIENCE;
use crate::support::answers::assert_accepted;
use crate::support::certificates::Certificates;
use crate::support::corpus::corpus;
use crate::support::http::Client;
use crate::support::http_sink::Answer;
use crate::support::http_sink::HttpSink;
use crate::support::prometheus::JOB;
use crate::support::prometheus::NAMESPACE;
use crate::support::prometheus::POD;
use crate::support::prometheus::Prometheus;
use crate::support::relay::Backlog;
use crate::support::relay::Relay;
use crate::support::repository;
use crate::support::server::Options;
use crate::support::tcp_sink::TcpSink;
use crate::support::text;
use crate::support::wait_until;

/// The rows, in the order of the page.
const ROWS: [&str; 9] = [
    "Is anything lost?",
    "In",
    "Out",
    "Backlog",
    "Lag",
    "Errors",
    "Latency",
    "Certificates",
    "CPU and memory",
];

/// Types of panels that every Grafana from version 9 on has.
const TYPES: [&str; 3] = ["bargauge", "stat", "timeseries"];

fn dashboard() -> Value {
    let file = repository().join("deploy/overlays/monitoring/dashboard.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

/// Returns all panels except the rows.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row")
}

fn variables(dashboard: &Value) -> &[Value] {
    list(&dashboard["templating"]["list"])
}

/// Replaces the dashboard's variables in an expression, as Grafana does.
fn substituted(expression: &str) -> String {
    let replaced = expression
        .replace("$__rate_interval", "15s")
        .replace("$job", JOB)
        .replace("$namespace", NAMESPACE)
        .replace("$pod", POD);
    // The `$1` that is left belongs to label_replace.
    assert!(!replaced.replace("\"$1\"", "").contains('$'), "a variable is left: {replaced}");
    replaced
}

#[test]
fn the_dashboard_is_one_page_in_its_order_with_titles_units_and_descriptions() {
    let dashboard = dashboard();
    assert_eq!(dashboard["uid"], "kube-audit-forwarder");
    assert_eq!(dashboard["id"], Value::Null, "Grafana gives it");
    assert_eq!(dashboard["schemaVersion"], 38);
    let rows = list(&dashboard["panels"]).iter().filter(|panel| panel["type"] == "row");
    let titles: Vec<_> = rows.clone().map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(titles, ROWS);
    assert!(rows.clone().all(|row| row["collapsed"] == false), "one page");
    let mut ids = BTreeSet::new();
    assert!(list(&dashboard["panels"]).iter().all(|panel| ids.insert(panel["id"].as_u64())));
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(TYPES.contains(&panel["type"].as_str().unwrap()), "{title}");
        for (what, value) in [
            ("title", &panel["title"]),
            ("description", &panel["description"]),
            ("unit", &panel["fieldConfig"]["defaults"]["unit"]),
        ] {
            assert!(value.as_str().is_some_and(|text| !text.is_empty()), "{title} has no {what}");
        }
        for target in list(&panel["targets"]) {
            for datasource in [&panel["datasource"], &target["datasource"]] {
                assert_eq!(datasource["uid"], "${datasource}", "{title}");
            }
            // Each selector filters by the dashboard's variables, so that a user with several
            // relays can choose among them.
            let expression = target["expr"].as_str().unwrap();
            let [selectors, filters] =
                ["{", r#"{job=~"$job", namespace=~"$namespace", pod=~"$pod""#]
                    .map(|text| expression.matches(text).count());
            assert!(selectors == filters && selectors > 0, "{title}: {expression}");
        }
    }
    let names: Vec<_> = variables(&dashboard).iter().map(|it| it["name"].as_str()).collect();
    assert_eq!(names, ["datasource", "job", "namespace", "pod"].map(Some));
}

#[test]
fn panels_lie_beside_and_below_each_other() {
    let dashboard = dashboard();
    let number = |panel: &Value, key: &str| panel["gridPos"][key].as_u64().unwrap();
    let mut taken = BTreeSet::new();
    let mut last = 0;
    for panel in list(&dashboard["panels"]) {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| number(panel, key));
        assert!(x + w <= 24 && y >= last, "{}", panel["title"]);
        last = y;
        for cell in (x..x + w).flat_map(|column| (y..y + h).map(move |line| (column, line))) {
            assert!(taken.insert(cell), "{} lies on another", panel["title"]);
        }
    }
}

#[test]
fn every_expression_of_the_dashboard_has_data_from_a_running_relay() {
    let certificates = Certificates::new();
    let directory = TempDir::new().unwrap();
    let tls = Some(certificates.server_config(&certificates.server, false));
    let consumer = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200));
    let lines = TcpSink::start();
    let config = format!(
        r#"
log = {{ format = "json" }}
admin = {{ address = "127.0.0.1:0" }}
queue = {{ directory = "{}" }}
[[listener]]
address = "127.0.0.1:0"
tls = {{ certificate = "{}", private_key = "{}" }}
[[output]]
name = "siem"
type = "http"
urls = ["https://localhost:{}/"]
tls = {{ ca = "{}" }}
[[output]]
name = "lines"
type = "tcp"
addresses = ["{}"]
replay_window = "100ms"
"#,
        text(directory.path()),
        text(&certificates.server.certificate),
        text(&certificates.server.key),
        consumer.address().port(),
        text(&certificates.ca),
        lines.address(),
    );
    let relay = Relay::start(&config);
    let prometheus = Prometheus::start(relay.admin());
    let body = corpus().remove(0).bytes;
    let events = crate::support::corpus::events_of(&body).len() as u64;
    let post = || {
        let mut client =
            Client::connect_tls(relay.address(), certificates.client_config(None)).unwrap();
        assert_accepted(&client.post("/", "application/json", &body).unwrap(), events);
    };
    let dashboard = dashboard();
    for panel in panels(&dashboard) {
        for target in list(&panel["targets"]) {
            let expression = substituted(target["expr"].as_str().unwrap());
            let what = format!("data for '{}': {expression}", panel["title"]);
            wait_until(&what, PATIENCE, || {
                // Rates and quantiles need a counter that changes from scrape to scrape.
                post();
                let samples = prometheus.query(&expression);
                !samples.is_empty() && samples.iter().all(|sample| sample.value.is_finite())
            });
        }
    }
    for variable in variables(&dashboard).iter().filter(|it| it["type"] == "query") {
        let query = substituted(variable["query"]["query"].as_str().unwrap());
        let arguments = query.strip_prefix("label_values(").and_then(|it| it.strip_suffix(')'));
        let (selector, label) = arguments.unwrap().rsplit_once(", ").unwrap();
        let [wanted] = [substituted(&format!("${label}"))];
        assert_eq!(prometheus.label_values(label, selector), [wanted]);
    }
    // The panels in the first row.
    relay.wait_until_delivered(PATIENCE);
    let first = |index: usize| {
        let panel = panels(&dashboard).nth(index).unwrap();
        let samples = prometheus.query(&substituted(panel["targets"][0]["expr"].as_str().unwrap()));
        samples[0].value
    };
    wait_until("nothing in motion", PATIENCE, || first(1) == 0.0);
    assert_eq!([first(0), first(2), first(5)], [0.0; 3], "nothing lost, down or rejected");
    relay.finish(Backlog::Empty);
}
