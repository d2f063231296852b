//! The reference page of the metrics: equal to the declarations, and in step with the alerts and
//! the dashboard.

use std::collections::BTreeSet;

use crate::support::generated::assert_file;
use crate::support::relay::run_command;
use crate::support::repository;

const PAGE: &str = "docs/reference/metrics.md";

/// The page as the program prints it.
fn printed() -> String {
    let output = run_command(&["metrics"], &repository());
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).unwrap()
}

/// The words of a text that start with `prefix`.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    text.split(|char: char| !char.is_alphanumeric() && char != '_')
        .filter(|word| word.starts_with(prefix))
        .collect()
}

#[test]
fn the_page_of_the_metrics_is_what_the_program_prints() {
    assert_file(PAGE, &printed());
}

#[test]
fn every_alert_and_every_metric_of_an_alert_or_the_dashboard_exists() {
    let page = printed();
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    let rules = read("deploy/monitoring/rules.yaml");
    let alerts = words(&rules, "KubeAuditForwarder");
    for alert in words(&page, "KubeAuditForwarder") {
        assert!(alerts.contains(alert), "{PAGE} names {alert}, which is not in rules.yaml");
    }
    for alert in alerts {
        assert!(page.contains(alert), "{PAGE} does not say which metric {alert} watches");
        let runbook = repository().join(format!("docs/runbooks/{alert}.md"));
        assert!(runbook.is_file(), "{PAGE} links to {}", runbook.display());
    }
    let metrics = words(&page, "kube_audit_forwarder_");
    let dashboard = read("deploy/overlays/monitoring/dashboard.json");
    for (file, text) in [("rules.yaml", &rules), ("dashboard.json", &dashboard)] {
        for used in words(text, "kube_audit_forwarder_") {
            let series = ["_bucket", "_sum", "_count"].iter().find_map(|it| used.strip_suffix(it));
            let is_known = metrics.contains(used) || series.is_some_and(|it| metrics.contains(it));
            assert!(is_known, "{file} names {used}, which no declaration has");
        }
    }
}

/// Readers see the page as plain text too: prose ends at column 100, tables may be wider.
#[test]
fn the_prose_of_the_page_ends_at_column_100() {
    for line in printed().lines().filter(|line| !line.starts_with('|')) {
        assert!(line.chars().count() <= 100, "{line}");
    }
}
