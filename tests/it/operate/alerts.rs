//! The alerting rules. promtool checks them and runs their unit tests. Both files have the same
//! rules, and each alert has a runbook. A real Prometheus evaluates the expressions while it
//! scrapes a healthy relay and one in trouble.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::corpus::{lease_update, list_of};
use crate::support::prelude::*;
use crate::support::prometheus::{Prometheus, Rule, Sample};
use crate::support::rules::values;
use crate::support::s3::{Keys, Mood, S3};

fn file(name: &str) -> PathBuf {
    repository().join("deploy").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

fn promtool(arguments: &[&str]) {
    let output = Command::new(program("promtool")).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
}

#[test]
fn each_alert_is_tested_where_it_fires_and_where_it_just_does_not() {
    let tests = read("monitoring/rules_test.yaml");
    for alert in values(&read("monitoring/rules.yaml"), "alert:") {
        let name = format!("alertname: {alert}\n");
        let mut cases = tests.split(&name).skip(1);
        let quiet = |case: &str| case.trim_start().starts_with("exp_alerts: []");
        assert!(cases.clone().any(quiet), "{alert} has no near-miss");
        assert!(cases.any(|case| !quiet(case)), "{alert} never fires");
    }
}

/// Each trouble in `rules_test.yaml` lists all alerts that fire in it, and promtool checks the
/// list. At most one alert fires: the one whose runbook leads to the fix.
#[test]
fn each_trouble_has_one_alert() {
    let tests = read("monitoring/rules_test.yaml");
    for trouble in tests.split("\n  - name: ").skip(1) {
        let name = trouble.lines().next().unwrap();
        let (alerts, stated) = trouble.split_once("promql_expr_test:").unwrap_or((trouble, ""));
        let fires = alerts.contains("exp_alerts:\n") || alerts.contains("exp_alerts: &");
        assert!(!fires || !stated.is_empty(), "{name} does not state all of its alerts");
        for statement in stated.split("- expr: ").skip(1) {
            let all = ["*firing\n", "&firing group by", "group by (alertname) (ALERTS{"];
            assert!(all.iter().any(|it| statement.starts_with(it)), "{name}: {statement}");
            assert!(statement.matches("{labels: ").count() <= 1, "{name}: {statement}");
        }
    }
}

#[test]
fn the_operators_rules_are_those_of_the_plain_file() {
    let indented: String = read("monitoring/rules.yaml")
        .split_inclusive('\n')
        .map(|line| if line == "\n" { line.to_owned() } else { format!("  {line}") })
        .collect();
    let operators = read("overlays/monitoring/prometheusrule.yaml");
    let (_, spec) = operators.split_once("\nspec:\n").unwrap();
    assert_eq!(spec, indented, "deploy/monitoring/rules.yaml has changed: sed 's/^./  &/'");
}

/// Each alert has a page in `docs/runbooks`, to which `runbook_url` leads, and each page except
/// README.md has an alert. A page says what the alert means, why it fires, where to look, what to
/// do, and when it ends. The page of an alert that has none of its own names it.
#[test]
fn each_alert_has_a_runbook_and_each_runbook_an_alert() {
    const SHARED: [(&str, &str); 1] =
        [("KubeAuditForwarderOutputAddressDown", "KubeAuditForwarderOutputDown")];
    let runbooks = repository().join("docs/runbooks");
    let rules = read("monitoring/rules.yaml");
    let (alerts, links) = (values(&rules, "alert:"), values(&rules, "runbook_url:"));
    let severities = values(&rules, "severity:");
    assert_eq!((alerts.len(), alerts.len()), (links.len(), severities.len()));
    assert_eq!(alerts.len(), values(&rules, "summary:").len());
    let mut pages = BTreeSet::from(["README.md".to_owned()]);
    for ((alert, link), severity) in alerts.iter().zip(&links).zip(&severities) {
        let shared = SHARED.iter().find(|(of, _)| of == alert);
        let name = shared.map_or(*alert, |(_, page)| *page);
        assert_eq!(*link, format!("http://127.0.0.1:9090/runbooks/{name}"), "{alert}");
        pages.insert(format!("{name}.md"));
        let page = std::fs::read_to_string(runbooks.join(format!("{name}.md"))).unwrap();
        assert!(page.starts_with(&format!("# {name}\n")), "{alert}");
        assert!(page.contains(*alert), "{alert}");
        // The severity of a certificate depends on the days that are left.
        let severity = match severity.contains("critical{{ else }}warning") {
            true => "warning, or critical in the last 3 days",
            false => severity,
        };
        assert!(page.contains(&format!("**Severity:** {severity}\n")), "{alert}");
        let headings: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        let wanted =
            ["What it means", "Why it fires", "What to look at", "What to do", "When it ends"];
        assert_eq!(headings, wanted, "{alert}");
    }
    let there: BTreeSet<String> = std::fs::read_dir(runbooks)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(there, pages);
}

/// Returns the selectors of an expression, each as a metric's name and its matchers. A matcher with
/// alternatives (`=~"a|b"`) gives one selector for each alternative.
fn selectors(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    let is_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
    for prefix in ["kube_audit_forwarder_", "process_"] {
        for (at, _) in expression.match_indices(prefix) {
            let rest = expression.split_at(at).1;
            let (name, rest) = rest.split_at(rest.find(|it| !is_name(it)).unwrap_or(rest.len()));
            let Some(matchers) = rest.strip_prefix('{') else {
                found.push(name.to_owned());
                continue;
            };
            let matchers = matchers.split('}').next().unwrap().trim();
            match matchers.split_once("=~") {
                None => found.push(format!("{name}{{{matchers}}}")),
                Some((label, values)) => found.extend(
                    values
                        .trim_matches('"')
                        .split('|')
                        .map(|it| format!("{name}{{{label}=\"{it}\"}}")),
                ),
            }
        }
    }
    found
}

#[test]
fn selectors_are_found_in_expressions() {
    let expression = r#"rate(kube_audit_forwarder_a{ b=~"c|d" }[5m]) > process_e and kube_audit_forwarder_f{g!="h"}"#;
    let wanted = [
        r#"kube_audit_forwarder_a{b="c"}"#,
        r#"kube_audit_forwarder_a{b="d"}"#,
        r#"kube_audit_forwarder_f{g!="h"}"#,
        "process_e",
    ];
    assert_eq!(selectors(expression), wanted);
}

/// Returns a config with TLS on a listener and on the output `siem`, and with an output `lines` of
/// JSON lines.
pub(super) fn config(
    certificates: &Certificates,
    server: &Pair,
    siem: &HttpSink,
    lines: &TcpSink,
) -> String {
    format!(
        "{BASE}{}[[listener]]\naddress = \"127.0.0.2:0\"\n\
         [[output]]\nname = \"siem\"\ntype = \"http\"\nurls = [\"https://localhost:{}/\"]\n\
         tls = {{ ca = \"{}\" }}\n{QUICK}\
         [[output]]\nname = \"lines\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n\
         replay_window = \"100ms\"\n{QUICK}",
        server.tls(),
        siem.address().port(),
        text(&certificates.ca),
        lines.address(),
    )
}

fn siem(certificates: &Certificates) -> HttpSink {
    let tls = Some(certificates.server_config(&certificates.server, false));
    HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200))
}

/// Posts over plain HTTP, and returns the status of the response.
fn post(relay: &Relay, body: &[u8]) -> u16 {
    let plain = relay.listeners().iter().find(|(label, _)| label == "127.0.0.2:0").unwrap().1;
    http::post(plain, "/", "application/json", body).unwrap().status
}

/// Tests that need peers.
mod peers {
    use super::*;

    /// An s3 output with its defaults collects events for five minutes before its first attempt.
    /// Until then, the relay, `doctor` and the alerts must call it neither down nor late.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_first_object_being_collected_is_neither_down_nor_late_for_any_instrument() {
        let (store, keys) = (S3::start(|| Mood::Stores), Keys::new());
        let relay = Relay::start(&format!("{BASE}{}", keys.output(store.address(), "")));
        let prometheus = Prometheus::start(relay.admin());
        assert_accepted(&relay.post(&generated_batch(1, 10, 900)), 10);
        wait_until("the backlog", PATIENCE, || {
            !prometheus.query("kube_audit_forwarder_output_backlog_events == 10").is_empty()
        });
        let status = http::get(relay.admin(), "/status").unwrap().json();
        let output = &status["outputs"][0];
        assert_eq!((&output["up"], &output["trouble"]), (&false.into(), &Value::Null));
        assert_eq!(status["verdict"]["state"], "good", "{status}");
        let limit = prometheus.query("kube_audit_forwarder_output_lag_max_seconds");
        assert_eq!(limit[0].value, 330.0);
        assert_eq!(output["lag_max_seconds"], 330.0);
        assert_eq!(relay.metrics().get("output_up", &[("output", "archive")]), None);
        for rule in prometheus.rules() {
            if ["OutputDown", "OutputLags"].iter().any(|name| rule.name.ends_with(name)) {
                assert!(prometheus.query(&rule.expression).is_empty(), "{}", rule.name);
            }
        }
        let admin = format!("http://{}", relay.admin());
        let said = run_command(&["doctor", "--interval", "0s", "--relay", &admin], Path::new("/"));
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(!said.contains("down") && !said.contains("late"), "{said}");
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn every_series_of_an_alert_exists_and_none_holds_in_health() {
        let certificates = Certificates::new();
        let (siem, lines) = (siem(&certificates), TcpSink::start());
        let directory = TempDir::new().unwrap();
        let (_witness, evidence) = Witness::of_a_log(directory.path());
        let relay =
            Relay::start(&(config(&certificates, &certificates.server, &siem, &lines) + &evidence));
        let prometheus = Prometheus::start(relay.admin());
        assert_eq!(post(&relay, &generated_batch(1, 100, 900)), 200);
        assert_eq!(post(&relay, &list_of(&[lease_update("apiserver-12345678")])), 200);
        relay.wait_until_delivered(PATIENCE);
        let rules = prometheus.rules();
        assert_eq!(rules.len(), values(&read("monitoring/rules.yaml"), "alert:").len());
        for Rule { name, expression, labels, annotations } in &rules {
            let is_known = |it: &&str| ["warning", "critical"].contains(it);
            let mut severities = labels["severity"].split(|it: char| !it.is_ascii_lowercase());
            assert!(severities.any(|it| is_known(&it)), "{name}");
            for annotation in ["summary", "description", "runbook_url"] {
                assert!(annotations.get(annotation).is_some_and(|it| !it.is_empty()), "{name}");
            }
            let selectors = selectors(expression);
            assert_eq!(selectors.is_empty(), name == "AuditWebhookError", "{name}");
            for selector in selectors {
                wait_until(&format!("{selector} of {name}"), PATIENCE, || {
                    !prometheus.query(&selector).is_empty()
                });
            }
        }
        // A scrape can find events in motion, but a later one does not.
        for Rule { name, expression, .. } in &rules {
            wait_until(&format!("{name} to be quiet"), PATIENCE, || {
                prometheus.query(expression).is_empty()
            });
        }
        relay.finish(Backlog::Empty);
    }

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn promtool_takes_the_rules_and_they_fire_when_they_should_and_only_then() {
        promtool(&["check", "rules", "--lint-fatal", text(&file("monitoring/rules.yaml"))]);
        promtool(&["test", "rules", text(&file("monitoring/rules_test.yaml"))]);
    }

    /// Method: a relay with a tiny queue and an expired certificate gets into one trouble after
    /// another: refused bodies, bodies that are too large, a dead consumer, a full queue, a config
    /// that cannot be loaded, the removal of an output with a backlog, its own end. Prometheus
    /// scrapes it every second. The expression of each alert must have a result only once its
    /// trouble has begun.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn trouble_of_a_real_relay_is_what_the_alerts_look_for() {
        let certificates = Certificates::new();
        let (siem, mut lines) = (siem(&certificates), TcpSink::start());
        // A few batches fill the queue of 256 KiB. The listener's certificate has expired.
        let queue = "[queue]\nmax_bytes = \"256KiB\"\n[shutdown]\ndrain_timeout = \"500ms\"\n";
        let expired = config(&certificates, &certificates.expired_server, &siem, &lines) + queue;
        let mut relay = Relay::start(&expired);
        let prometheus = Prometheus::start(relay.admin());
        let rules = prometheus.rules();
        let holds = |alert: &str| {
            let rule = rules.iter().find(|rule| rule.name == alert).unwrap();
            // A test does not wait for the three minutes in which the output was up.
            let expression = rule.expression.replace("output_up[3m]", "output_up[2s]");
            // Nor for the third minute in which senders have to wait.
            prometheus.query(&expression.replace("[2m] offset 1m", "[2m] offset 3s"))
        };
        let wait_for_alert = |alert: &str| -> Vec<Sample> {
            wait_for(alert, PATIENCE, || Some(holds(alert)).filter(|samples| !samples.is_empty()))
        };
        let labels = |samples: &[Sample], label: &str| -> Vec<String> {
            samples.iter().map(|sample| sample.labels[label].clone()).collect()
        };
        let quiet = |alert: &str| wait_until(alert, PATIENCE, || holds(alert).is_empty());
        let expires = wait_for_alert("KubeAuditForwarderCertificateExpires");
        assert_eq!(labels(&expires, "listener"), ["127.0.0.1:0"]);
        assert_eq!(post(&relay, &generated_batch(1, 10, 900)), 200);
        relay.wait_until_delivered(PATIENCE);

        // kube-apiserver also makes five attempts. They must not all fall between two scrapes,
        // because the first scrape of a series has no increase.
        let rejections = "sum(kube_audit_forwarder_requests_rejected_total{reason=\"invalid\"})";
        for attempt in 1..=5 {
            assert!(holds("KubeAuditForwarderRequestsRejected").is_empty(), "after {attempt} - 1");
            assert_eq!(post(&relay, b"no JSON"), 400);
            wait_until("the next scrape", PATIENCE, || {
                prometheus.query(rejections)[0].value >= f64::from(attempt)
            });
        }
        let rejected = wait_for_alert("KubeAuditForwarderRequestsRejected");
        assert_eq!(labels(&rejected, "reason"), ["invalid"]);

        quiet("KubeAuditForwarderBatchTooLarge");
        let too_large = vec![b'x'; 300 * 1024];
        for _ in 0..2 {
            assert_eq!(post(&relay, &too_large), 413);
        }
        assert_eq!(wait_for_alert("KubeAuditForwarderBatchTooLarge")[0].value, 2.0);

        // One consumer dies: its output is down, then the queue fills, is nearly full, and is full.
        quiet("KubeAuditForwarderOutputDown");
        lines.close();
        let mut seed = 2;
        let mut fill = || {
            seed += 1;
            post(&relay, &generated_batch(seed, 10, 900))
        };
        assert_eq!(fill(), 200);
        assert_eq!(labels(&wait_for_alert("KubeAuditForwarderOutputDown"), "output"), ["lines"]);
        wait_until("the queue to fill within an hour", PATIENCE, || {
            assert_eq!(fill(), 200);
            // Each batch is posted only after a scrape has seen the batch before.
            let before = prometheus.query("kube_audit_forwarder_event_total")[0].value;
            wait_until("the next scrape", PATIENCE, || {
                prometheus.query("kube_audit_forwarder_event_total")[0].value > before
            });
            !holds("KubeAuditForwarderQueueNearlyFull").is_empty()
        });
        wait_until("429", PATIENCE, || fill() == 429);
        wait_until("the queue to be nearly full", PATIENCE, || {
            wait_for_alert("KubeAuditForwarderQueueNearlyFull")[0].value > 0.8
        });
        let waits = wait_for("429 between two scrapes", PATIENCE, || {
            assert_eq!(fill(), 429);
            Some(holds("KubeAuditForwarderSendersWait")).filter(|samples| !samples.is_empty())
        });
        assert_eq!(labels(&waits, "reason"), ["queue_full"]);

        // The reload of a wrong config fails. The next config has no output `lines`: its backlog is
        // lost, and the output's other alerts end.
        std::fs::write(relay.config_file(), "nonsense = 1\n").unwrap();
        wait_for_alert("KubeAuditForwarderReloadFailed");
        quiet("KubeAuditForwarderEventsLost");
        let (without, _) = expired.split_once("[[output]]\nname = \"lines\"").unwrap();
        std::fs::write(relay.config_file(), format!("{without}{queue}")).unwrap();
        assert_eq!(labels(&wait_for_alert("KubeAuditForwarderEventsLost"), "plugin"), ["lines"]);
        for alert in ["ReloadFailed", "OutputDown", "QueueNearlyFull"] {
            quiet(&format!("KubeAuditForwarder{alert}"));
        }
        assert_eq!(fill(), 200);
        wait_until("the delivery to the other", PATIENCE, || {
            prometheus
                .query("kube_audit_forwarder_output_backlog_events{output=\"siem\"} == 0")
                .len()
                == 1
        });
        quiet("KubeAuditForwarderConservationBroken");
        assert_eq!(prometheus.query("kube_audit_forwarder_output_up").len(), 1);

        quiet("KubeAuditForwarderAbsent");
        relay.stop();
        wait_for_alert("KubeAuditForwarderAbsent");
    }
}
