//! The reference page of the metrics agrees with the alerts. A unit test of `telemetry` compares it
//! with the declarations, and the test of the dashboard compares its expressions with this page.

use std::collections::BTreeSet;

use crate::support::prelude::*;

const PAGE: &str = "docs/reference/metrics.md";

fn page() -> String {
    std::fs::read_to_string(repository().join(PAGE)).unwrap()
}

/// Returns the words of a text that start with `prefix`.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    text.split(|char: char| !char.is_alphanumeric() && char != '_')
        .filter(|word| word.starts_with(prefix))
        .collect()
}

#[test]
fn every_alert_and_every_metric_of_an_alert_exists() {
    let page = page();
    let rules = std::fs::read_to_string(repository().join("deploy/monitoring/rules.yaml")).unwrap();
    let alerts = words(&rules, "KubeAuditForwarder");
    for alert in words(&page, "KubeAuditForwarder") {
        assert!(alerts.contains(alert), "{PAGE} names {alert}, which is not in rules.yaml");
    }
    for alert in alerts {
        assert!(page.contains(alert), "{PAGE} does not say which metric {alert} watches");
    }
    let metrics = words(&page, "kube_audit_forwarder_");
    for used in words(&rules, "kube_audit_forwarder_") {
        let series = ["_bucket", "_sum", "_count"].iter().find_map(|it| used.strip_suffix(it));
        let is_known = metrics.contains(used) || series.is_some_and(|it| metrics.contains(it));
        assert!(is_known, "rules.yaml names {used}, which no declaration has");
    }
}
