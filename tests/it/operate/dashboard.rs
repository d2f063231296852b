//! The Grafana dashboard: its JSON, checked against Grafana's own types, its links to the runbooks,
//! and its metrics and labels. A real Prometheus that scrapes a running relay evaluates its
//! expressions, annotations and variables.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::support::prelude::*;
use crate::support::prometheus::{JOB, NAMESPACE, POD, Prometheus};

/// The rows, in the order of the page.
const ROWS: [&str; 11] = [
    "Is anything lost?",
    "In",
    "Out",
    "Destinations",
    "Backlog",
    "Lag",
    "Errors",
    "Latency",
    "Evidence",
    "Certificates",
    "CPU and memory",
];

/// The types of panels that every Grafana since version 9 has.
const TYPES: [&str; 3] = ["bargauge", "stat", "timeseries"];

fn dashboard() -> Value {
    let file = repository().join("deploy/overlays/monitoring/dashboard.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    list(&dashboard["panels"]).iter().filter(|panel| panel["type"] != "row")
}

fn variables(dashboard: &Value) -> &[Value] {
    list(&dashboard["templating"]["list"])
}

/// The annotations, except those that Grafana has built in.
fn annotations(dashboard: &Value) -> impl Iterator<Item = &Value> {
    list(&dashboard["annotations"]["list"]).iter().filter(|it| it["builtIn"] != 1)
}

/// Replaces the dashboard's variables in an expression, as Grafana does. `cluster` is the user's
/// choice; `.*` means all clusters.
fn in_cluster(expression: &str, cluster: &str) -> String {
    let replaced = expression
        .replace("$__rate_interval", "15s")
        .replace("$cluster", cluster)
        .replace("$job", JOB)
        .replace("$namespace", NAMESPACE)
        .replace("$pod", POD);
    // The `$1` that is left belongs to label_replace.
    assert!(!replaced.replace("\"$1\"", "").contains('$'), "a variable is left: {replaced}");
    replaced
}

fn substituted(expression: &str) -> String {
    in_cluster(expression, ".*")
}

/// Returns all expressions, each with the title of its panel or the name of its annotation, and
/// with the legend of its series.
fn expressions(dashboard: &Value) -> Vec<(&str, &str, String)> {
    let text = |value: &'static str, of: &'_ Value| of[value].as_str().unwrap_or("").to_owned();
    let of_panels = panels(dashboard).flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        list(&panel["targets"])
            .iter()
            .map(move |it| (title, it["expr"].as_str().unwrap(), text("legendFormat", it)))
    });
    let of_annotations = annotations(dashboard).map(|it| {
        let texts = ["titleFormat", "textFormat"].map(|key| text(key, it)).concat();
        let tags = it["tagKeys"].as_str().unwrap().split(',').map(|tag| format!("{{{{{tag}}}}}"));
        let texts = texts + &tags.collect::<String>();
        (it["name"].as_str().unwrap(), it["expr"].as_str().unwrap(), texts)
    });
    of_panels.chain(of_annotations).collect()
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
            // Each selector filters by the dashboard's variables, so that a user can choose among
            // relays.
            let expression = target["expr"].as_str().unwrap();
            let [selectors, filters] =
                ["{", r#"{cluster=~"$cluster", job=~"$job", namespace=~"$namespace", pod=~"$pod""#]
                    .map(|text| expression.matches(text).count());
            assert!(selectors == filters && selectors > 0, "{title}: {expression}");
        }
    }
    let names: Vec<_> = variables(&dashboard).iter().map(|it| it["name"].as_str()).collect();
    assert_eq!(names, ["datasource", "cluster", "job", "namespace", "pod", "runbooks"].map(Some));
    for variable in variables(&dashboard).iter().filter(|it| it["type"] == "query") {
        assert_eq!(variable["definition"], variable["query"]["query"], "Grafana shows this one");
        // With "All", series without the label count too.
        let is_of_the_relay = variable["name"] == "job";
        assert!(is_of_the_relay || variable["allValue"] == ".*", "{variable}");
    }
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

/// Each alert's runbook is linked from a panel.
#[test]
fn panels_lead_to_the_runbooks_and_each_runbook_is_led_to() {
    let dashboard = dashboard();
    let rules = std::fs::read_to_string(repository().join("deploy/monitoring/rules.yaml")).unwrap();
    let base = variables(&dashboard).iter().find(|it| it["name"] == "runbooks").unwrap();
    assert_eq!((base["type"].as_str(), base["hide"].as_u64()), (Some("constant"), Some(2)));
    assert_eq!(
        (&base["query"], &base["query"]),
        (&base["current"]["value"], &base["current"]["text"])
    );
    let base = base["query"].as_str().unwrap();
    let of_alert = |line: &str| Some(line.trim().strip_prefix("runbook_url: ")?.to_owned());
    let wanted: BTreeSet<String> = rules.lines().filter_map(of_alert).collect();
    assert!(wanted.len() > 20);
    let mut found = BTreeSet::new();
    for panel in panels(&dashboard) {
        for link in panel["links"].as_array().into_iter().flatten() {
            let url = link["url"].as_str().unwrap().replace("${runbooks:raw}", base);
            assert!(url.ends_with(&format!("/{}", link["title"].as_str().unwrap())), "{url}");
            assert!(wanted.contains(&url), "{}: no alert has {url}", panel["title"]);
            found.insert(url);
        }
    }
    assert_eq!(found, wanted, "each page is one click from the panel that shows the trouble");
    let contents = dashboard["links"][0]["url"].as_str().unwrap().replace("${runbooks:raw}", base);
    assert_eq!(contents, "http://127.0.0.1:9090/runbooks/README");
}

/// The labels of a metric with their values, as docs/reference/metrics.md lists them.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// Returns the labels of each metric, as the reference page has them. A label without a fixed
/// set of values has none here.
fn declared() -> BTreeMap<String, Labels> {
    let page = std::fs::read_to_string(repository().join("docs/reference/metrics.md")).unwrap();
    let mut metrics = BTreeMap::new();
    for section in page.split("\n### `").skip(1) {
        let (name, rest) = section.split_once('`').unwrap();
        let quoted = |text: &str| -> BTreeSet<String> {
            text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        // The section begins with "*kind, unit, by `label`.*". An item lists a label's values.
        let begin = rest.split('*').nth(1).unwrap();
        let mut labels: Labels =
            quoted(begin).into_iter().map(|label| (label, BTreeSet::new())).collect();
        for item in rest.split("\n- ").filter_map(|item| item.strip_prefix("Label ")) {
            let (names, values) = item.split_once(": ").unwrap();
            // "`listener.address` as the config has it" describes values and does not list them.
            let words = values.split('`').step_by(2).flat_map(str::chars);
            let has_words = words.into_iter().any(char::is_alphabetic);
            let is_list = !has_words && !quoted(values).iter().any(|value| value.contains('.'));
            for label in quoted(names) {
                labels.insert(label, if is_list { quoted(values) } else { BTreeSet::new() });
            }
        }
        metrics.insert(name.to_owned(), labels);
    }
    metrics
}

/// A selector of an expression: the metric, and its matchers.
type Selector<'a> = (&'a str, Vec<(&'a str, &'a str)>);

/// Returns the selectors of an expression. All of them must have matchers.
fn selectors(expression: &str) -> Vec<Selector<'_>> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices('{') {
        let (before, after) = expression.split_at(at);
        let name = before.rsplit(|it: char| !it.is_ascii_alphanumeric() && it != '_').next();
        let matchers =
            after.trim_start_matches('{').split_once('}').unwrap().0.split(", ").map(|matcher| {
                let (label, value) = matcher.split_once(['=', '!']).unwrap();
                (label, value.trim_start_matches(['=', '~']).trim_matches('"'))
            });
        found.push((name.unwrap(), matchers.collect()));
    }
    found
}

/// The labels that Prometheus adds to the series of a target, and `le` of histograms.
const OF_THE_TARGET: [&str; 6] = ["cluster", "instance", "job", "namespace", "pod", "le"];

#[test]
fn every_metric_exists_and_has_the_labels_that_are_asked_for() {
    let declared = declared();
    assert!(declared.len() > 50);
    let (mut seen, dashboard) = (BTreeSet::new(), dashboard());
    for (title, expression, legend) in expressions(&dashboard) {
        let mut known = BTreeSet::from(OF_THE_TARGET.map(str::to_owned));
        for (metric, matchers) in selectors(expression) {
            let series =
                ["_bucket", "_sum", "_count"].iter().find_map(|it| metric.strip_suffix(it));
            let labels = declared.get(metric).or_else(|| declared.get(series?));
            let labels = labels.unwrap_or_else(|| panic!("{title}: there is no {metric}"));
            seen.insert(metric);
            known.extend(labels.keys().cloned());
            for (label, values) in matchers {
                if OF_THE_TARGET.contains(&label) {
                    continue;
                }
                let listed = labels.get(label);
                let listed = listed.unwrap_or_else(|| panic!("{title}: {metric} has no {label}"));
                for value in values.split('|').filter(|_| !listed.is_empty()) {
                    assert!(listed.contains(value), "{title}: {metric} has no {label}={value}");
                }
            }
        }
        // An expression can make the label `output` itself.
        known.extend(expression.contains("\"output\"").then(|| "output".to_owned()));
        let grouped = ["by (", "without (", "ignoring (", "group_left ("].into_iter();
        let grouped = grouped.flat_map(|word| expression.split(word).skip(1));
        let grouped = grouped.flat_map(|rest| rest.split_once(')').unwrap().0.split(", "));
        let in_legend = legend.split("{{").skip(1).map(|rest| rest.split_once("}}").unwrap().0);
        for label in grouped.chain(in_legend).filter(|label| !label.is_empty()) {
            assert!(known.contains(label), "{title}: no series has the label {label}");
        }
    }
    // These metrics must be on the page.
    for metric in [
        "output_existing_events_total",
        "output_errors_total",
        "filtered_events_total",
        "evidence_size",
        "evidence_errors_total",
        "evidence_last_checkpoint_timestamp_seconds",
        "evidence_witness_timestamp_seconds",
        "config_last_reload_timestamp_seconds",
    ] {
        let metric = format!("kube_audit_forwarder_{metric}");
        assert!(seen.contains(metric.as_str()), "{metric} is on no panel");
    }
}

/// Checks the annotations. Grafana reads the value of a series as the time in milliseconds.
fn assert_annotations(dashboard: &Value, prometheus: &Prometheus, relay: &Relay) {
    let at = |name: &str| -> Vec<f64> {
        let annotation = annotations(dashboard).find(|it| it["name"] == name).unwrap();
        assert_eq!(annotation["useValueForTime"], true);
        assert_eq!(annotation["expr"], annotation["target"]["expr"], "for old and new Grafana");
        let expression = substituted(annotation["expr"].as_str().unwrap());
        prometheus.query(&expression).iter().map(|sample| sample.value).collect()
    };
    let milliseconds = |seconds: f64| seconds * 1000.0;
    let started = relay.metrics().value("process_start_time_seconds", &[]);
    assert_eq!(at("Restarts"), [milliseconds(started)]);
    assert!(at("Reloads").is_empty() && at("Refused reloads").is_empty(), "none yet");
    let before = milliseconds(started);
    relay.signal(libc::SIGHUP);
    let reloads =
        wait_for("the reload", PATIENCE, || Some(at("Reloads")).filter(|it| !it.is_empty()));
    assert!(reloads.len() == 1 && reloads[0] > before, "{reloads:?}");
    let config = relay.config_file();
    let right = std::fs::read(&config).unwrap();
    std::fs::write(&config, "[wrong]\n").unwrap();
    relay.signal(libc::SIGHUP);
    let refused = wait_for("the refusal", PATIENCE, || {
        Some(at("Refused reloads")).filter(|it| !it.is_empty())
    });
    assert!(refused[0] >= reloads[0], "{refused:?}");
    std::fs::write(config, right).unwrap();
}

/// Tests that need peers.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn every_expression_is_taken_by_promtool() {
        let dashboard = dashboard();
        let rules: Vec<Value> = expressions(&dashboard)
            .iter()
            .enumerate()
            .map(|(index, (_, expression, _))| {
                let record = format!("dashboard:expression:{index}");
                serde_json::json!({ "record": record, "expr": substituted(expression) })
            })
            .collect();
        assert!(rules.len() > 50);
        let groups = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
        let file = tempfile::NamedTempFile::new().unwrap();
        // Any JSON is also YAML.
        std::fs::write(file.path(), groups.to_string()).unwrap();
        let output = Command::new(program("promtool"))
            .args(["check", "rules", "--lint-fatal", text(file.path())])
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn every_expression_of_the_dashboard_has_data_from_a_running_relay() {
        let certificates = Certificates::new();
        let directory = TempDir::new().unwrap();
        let tls = Some(certificates.server_config(&certificates.server, false));
        let consumer =
            HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200));
        let lines = TcpSink::start();
        let (_witness, evidence) = Witness::of_a_log(directory.path());
        let config = super::super::alerts::config;
        let config = config(&certificates, &certificates.server, &consumer, &lines);
        // A listener without requests has no quantiles.
        let config = config.replace("[[listener]]\naddress = \"127.0.0.2:0\"\n", "");
        let relay = Relay::start(&(config + &evidence));
        let prometheus = Prometheus::start(relay.admin());
        let body = corpus().remove(0).bytes;
        let events = events_of(&body).len() as u64;
        let post = || {
            let mut client =
                Client::connect_tls(relay.listeners()[0].1, certificates.client_config(None))
                    .unwrap();
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
            let there = prometheus.label_values(label, selector);
            if label == "cluster" {
                assert_eq!(there, [""; 0], "this Prometheus sets no such label, and all works");
            } else {
                assert_eq!(there, [substituted(&format!("${label}"))]);
            }
        }
        assert_annotations(&dashboard, &prometheus, &relay);
        // The panels in the first row show a healthy relay.
        relay.wait_until_delivered(PATIENCE);
        let first = |index: usize| {
            let panel = panels(&dashboard).nth(index).unwrap();
            let samples =
                prometheus.query(&substituted(panel["targets"][0]["expr"].as_str().unwrap()));
            samples[0].value
        };
        wait_until("nothing in motion", PATIENCE, || first(1) == 0.0);
        assert_eq!([first(0), first(2), first(5)], [0.0; 3], "nothing lost, down or rejected");
        relay.finish(Backlog::Empty);
    }

    /// Method: Prometheus has a `cluster` label, like one with `external_labels` or relabelling.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn every_expression_can_be_about_one_cluster() {
        let sink = HttpSink::accepting();
        let relay = Relay::start(&to_sink(sink.address(), ""));
        let prometheus = Prometheus::with_labels(relay.admin(), &[("cluster", "prod-eu")]);
        let dashboard = dashboard();
        let panel = panels(&dashboard).find(|it| it["title"] == "Waiting events").unwrap();
        let expression = panel["targets"][0]["expr"].as_str().unwrap();
        let samples = |cluster: &str| prometheus.query(&in_cluster(expression, cluster)).len();
        wait_until("a scrape", PATIENCE, || samples(".*") == 1);
        assert_eq!((samples("prod-eu"), samples("prod-us")), (1, 0));
        let variable = variables(&dashboard).iter().find(|it| it["name"] == "cluster").unwrap();
        let query = variable["query"]["query"].as_str().unwrap();
        let selector = query.strip_prefix("label_values(").unwrap().split_once(", ").unwrap().0;
        assert_eq!(prometheus.label_values("cluster", selector), ["prod-eu"]);
        // Its queue is in memory, and it has had no request. A panel without data says so.
        wait_until("rates", PATIENCE, || {
            !prometheus.query("rate(kube_audit_forwarder_event_total[15s])").is_empty()
        });
        for (title, expression, _) in expressions(&dashboard) {
            let samples = prometheus.query(&substituted(expression));
            assert!(!samples.iter().any(|it| it.value.is_nan()), "{title}: {expression}");
        }
        relay.finish(Backlog::Empty);
    }

    /// tests/peers/grafana.py turns the types that Grafana publishes into a JSON Schema.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn grafanas_own_types_have_each_member_and_value() {
        needs("grafana_foundation_sdk");
        let check = |dashboard: &Value| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), dashboard.to_string()).unwrap();
            let output = Command::new(repository().join("target/peers/python/bin/python3"))
                .arg(repository().join("tests/peers/grafana.py"))
                .arg(file.path())
                .output()
                .expect("Python runs");
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8(said).unwrap())
        };
        let right = dashboard();
        let count = list(&right["panels"]).len();
        assert_eq!(check(&right), (true, format!("{count} panels are valid\n")));
        // The check finds faults at each depth.
        for (place, value, said) in [
            ("/panels/1/type", "graf", "there is no panel of the type"),
            ("/panels/1/gridPos/w", "8", "is not of type 'integer'"),
            ("/panels/1/options/colorMode", "loud", "is not one of"),
            ("/annotations/list/1/useValueForTime", "yes", "is not of type 'boolean'"),
            ("/templating/list/1/multi", "yes", "is not valid"),
        ] {
            let mut wrong = right.clone();
            *wrong.pointer_mut(place).unwrap() = value.into();
            let (is_valid, text) = check(&wrong);
            assert!(!is_valid && text.contains(said), "{place}: {text}");
        }
        let mut wrong = right;
        wrong["panels"][1]["targets"][0]["expression"] = "up".into();
        assert!(!check(&wrong).0, "a member that Grafana does not know");
    }
}
