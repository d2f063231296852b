//! The reference page of all metrics, in Markdown, made from their declarations.

use super::catalog;
use super::declare::{Label, Metric, Values};

const COLUMNS: usize = 100;

const ALERT: &str = "KubeAuditForwarder";

const HEAD: &str = "\
# Metrics

<!-- Generated from crates/telemetry/src/catalog.rs; do not edit. -->

The relay exposes these metrics at `/metrics` on its admin address. Each series exists from the
start, at 0, so that `increase()` sees the first event. The exceptions are `output_up`, which
appears with the first attempt of its output, and the certificate series, which appear once a
certificate is loaded or seen.

Counters start at 0 when the process starts. When a reload removes an output or a listener, its
counters stay and its backlog becomes 0. Its state gauges are removed, as noted below for each one.

With several replicas, each replica counts only what it received itself. For losses that no counter
shows, see [this list](../concepts/guarantees.md#what-no-counter-counts).
";

/// Returns the text of the page `docs/reference/metrics.md`.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n| metric | kind | unit | labels |\n|---|---|---|---|\n");
    for metric in catalog::families().flat_map(|(_, metrics)| metrics) {
        let (name, kind, unit) = (metric.name, metric.kind.name(), metric.unit);
        let labels: Vec<_> = metric.labels().map(label_name).collect();
        let labels = labels.join(", ");
        page.push_str(&format!("| [`{name}`](#{name}) | {kind} | {unit} | {labels} |\n"));
    }
    let mut section = "";
    for (heading, metrics) in catalog::families() {
        if heading != section {
            page.push_str(&format!("\n## {heading}\n"));
            section = heading;
        }
        metrics.iter().for_each(|metric| describe(&mut page, metric));
    }
    page
}

fn describe(page: &mut String, metric: &Metric) {
    let Metric { name, kind, help, unit, meaning, action, buckets, is_state, .. } = metric;
    page.push_str(&format!("\n### `{name}`\n\n"));
    let state =
        if *is_state { " Removed when a reload removes its output or listener." } else { "" };
    paragraph(page, "", &format!("{help}{state}"));
    let mut items = vec![format!("Kind: {}. Unit: {unit}.", kind.name())];
    items.extend(metric.labels().map(label));
    if !buckets.is_empty() {
        let bounds: Vec<_> = buckets.iter().map(ToString::to_string).collect();
        items.push(format!("Buckets: up to {} {unit}, and above.", bounds.join(", ")));
    }
    items.push(format!("Meaning: {meaning}"));
    items.push(format!("What to do: {}", linked(action)));
    page.push('\n');
    items.iter().for_each(|item| paragraph(page, "- ", item));
}

/// A label that has one of two names (`listener or output`) gets both.
fn label_name(label: &Label) -> String {
    let names: Vec<_> = label.name.split(" or ").map(|name| format!("`{name}`")).collect();
    names.join(" or ")
}

fn label(label: &Label) -> String {
    let name = label_name(label);
    match label.values {
        Values::Described(values) => format!("Label {name}: {values}."),
        Values::Fixed(values) => {
            let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("Label {name}: {}.", values.join(", "))
        }
    }
}

/// Links each alert's name, which is in backticks and begins with [`ALERT`], to its runbook.
fn linked(text: &str) -> String {
    let mut out = String::new();
    for (index, part) in text.split('`').enumerate() {
        let is_code = index % 2 == 1;
        match part.strip_prefix(ALERT) {
            Some(name) if is_code => {
                out.push_str(&format!("[{name}](../runbooks/{part}.md)"));
            }
            _ if is_code => out.push_str(&format!("`{part}`")),
            _ => out.push_str(part),
        }
    }
    out
}

/// Adds a paragraph, wrapped at [`COLUMNS`]. `mark` begins it, and indents the other lines.
fn paragraph(page: &mut String, mark: &str, text: &str) {
    let mut width = mark.len();
    page.push_str(mark);
    for (index, word) in text.split_whitespace().enumerate() {
        let length = word.chars().count();
        if index > 0 && width + 1 + length > COLUMNS {
            page.push('\n');
            page.push_str(&" ".repeat(mark.len()));
            width = mark.len();
        } else if index > 0 {
            page.push(' ');
            width += 1;
        }
        page.push_str(word);
        width += length;
    }
    page.push('\n');
}
