//! `/metrics` as a map, and the conservation of events.

use std::collections::BTreeMap;

/// The prefix of the relay's own series.
const PREFIX: &str = "kube_audit_forwarder_";

/// The series of one scrape.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// The text as scraped, for promtool.
    pub(crate) text: String,
    series: BTreeMap<Series, f64>,
}

/// A name, and its labels sorted by name.
type Series = (String, Vec<(String, String)>);

impl Metrics {
    /// Reads the Prometheus text format. Panics on a line that is not in this format, and on a
    /// series that occurs twice.
    pub(crate) fn parse(text: &str) -> Self {
        let mut series = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (key, value) =
                parse_line(line).unwrap_or_else(|| panic!("not a line of metrics: {line}"));
            assert!(series.insert(key, value).is_none(), "this series comes twice: {line}");
        }
        Self { text: text.to_owned(), series }
    }

    /// Returns the value of the series with exactly these labels, or `None`. The name can omit the
    /// relay's prefix.
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut labels: Vec<_> =
            labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        labels.sort();
        let with_prefix = (format!("{PREFIX}{name}"), labels.clone());
        let as_named = (name.to_owned(), labels);
        self.series.get(&with_prefix).or_else(|| self.series.get(&as_named)).copied()
    }

    /// Like [`Metrics::get`], but an absent series counts as 0.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or(0.0)
    }

    /// Returns the value of a counter of events, or 0 if it does not exist.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.value(name, labels) as u64
    }

    /// Returns every series with this name: its labels and its value.
    pub(crate) fn all(&self, name: &str) -> Vec<(Vec<(String, String)>, f64)> {
        let with_prefix = format!("{PREFIX}{name}");
        let of_name = |series: &&Series| series.0 == with_prefix || series.0 == name;
        self.series
            .iter()
            .filter(|(series, _)| of_name(series))
            .map(|(series, &value)| (series.1.clone(), value))
            .collect()
    }

    /// Returns the sum over every series with this name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.all(name).iter().map(|(_, value)| value).sum()
    }
}

/// Reads a line `name{label="value",…} value`, with or without labels. Returns `None` if this is
/// another line.
fn parse_line(line: &str) -> Option<(Series, f64)> {
    let (mut key, value) = line.rsplit_once(' ')?;
    let mut labels = Vec::new();
    if let Some((name, rest)) = key.split_once('{') {
        key = name;
        let mut rest = rest.strip_suffix('}')?;
        while !rest.is_empty() {
            let (label, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut characters = after.char_indices();
            let end = loop {
                match characters.next()? {
                    (at, '"') => break at,
                    (_, '\\') => match characters.next()?.1 {
                        'n' => value.push('\n'),
                        escaped => value.push(escaped),
                    },
                    (_, plain) => value.push(plain),
                }
            };
            labels.push((label.to_owned(), value));
            rest = after.get(end + 1..)?;
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
    }
    labels.sort();
    Some(((key.to_owned(), labels), value.parse().ok()?))
}

/// Checks conservation for each of these outputs, and panics if an event is missing or counted
/// twice.
///
/// Conservation is true while the relay is idle: each event that was accepted or found at the start
/// is delivered, waiting, set aside, lost or filtered.
pub(crate) fn assert_conservation(metrics: &Metrics, outputs: &[&str]) {
    if let Err(difference) = conservation(metrics, outputs) {
        panic!("{difference}");
    }
}

/// Like [`assert_conservation`], but returns the difference as an error, so that the caller can
/// retry.
pub(crate) fn conservation(metrics: &Metrics, outputs: &[&str]) -> Result<(), String> {
    for &output in outputs {
        let of_output = |name: &str| metrics.value(name, &[("output", output)]);
        let accepted = metrics.value("event_total", &[]);
        let found_at_start = of_output("output_start_events");
        let delivered = of_output("output_events_total");
        let waiting = of_output("output_backlog_events");
        let aside = of_output("output_aside_events");
        let lost = metrics.value("error_total", &[("plugin", output)]);
        let lost_by_queue = metrics.value("error_total", &[("plugin", "queue")]);
        let filtered: f64 = ["dropped", "duplicate"]
            .map(|action| {
                metrics.value("filtered_events_total", &[("output", output), ("action", action)])
            })
            .iter()
            .sum();
        let out = delivered + waiting + aside + lost + lost_by_queue + filtered;
        let difference = accepted + found_at_start - out;
        // The counts are integers. An `f64` is exact far beyond the numbers of any test.
        if difference != 0.0 {
            return Err(format!(
                "output {output}: {accepted} accepted + {found_at_start} found at start is not \
                 {delivered} delivered + {waiting} waiting + {aside} set aside + {lost} lost + \
                 {lost_by_queue} lost by the queue + {filtered} filtered; difference {difference}"
            ));
        }
    }
    Ok(())
}

#[test]
fn metrics_are_read_with_labels_escapes_and_exponents() {
    let metrics = Metrics::parse(concat!(
        "# HELP kube_audit_forwarder_event_total events\n",
        "kube_audit_forwarder_event_total 12\n",
        "kube_audit_forwarder_requests_total{listener=\"[::1]:0\",code=\"200\"} 3\n\n",
        "kube_audit_forwarder_requests_total{code=\"400\",listener=\"a, \\\"b\\\"}\"} 4\n",
        "process_resident_memory_bytes 1.5e7\n",
    ));
    assert_eq!(metrics.get("event_total", &[]), Some(12.0));
    let labels = [("code", "200"), ("listener", "[::1]:0")];
    assert_eq!(metrics.get("requests_total", &labels), Some(3.0));
    let labels = [("listener", "a, \"b\"}"), ("code", "400")];
    assert_eq!(metrics.get("requests_total", &labels), Some(4.0));
    assert_eq!(metrics.get("requests_total", &[]), None);
    assert_eq!(metrics.sum("requests_total"), 7.0);
    assert_eq!(metrics.get("process_resident_memory_bytes", &[]), Some(1.5e7));
}

#[test]
fn conservation_counts_every_way_out_and_absent_series_as_none() {
    let scrape = |delivered: u32| {
        Metrics::parse(&format!(
            "kube_audit_forwarder_event_total 11\n\
             kube_audit_forwarder_output_events_total{{output=\"a\"}} {delivered}\n\
             kube_audit_forwarder_output_backlog_events{{output=\"a\"}} 2\n\
             kube_audit_forwarder_output_aside_events{{output=\"a\"}} 1\n\
             kube_audit_forwarder_error_total{{plugin=\"a\"}} 1\n\
             kube_audit_forwarder_error_total{{plugin=\"queue\"}} 1\n\
             kube_audit_forwarder_filtered_events_total{{output=\"a\",action=\"dropped\"}} 1\n\
             kube_audit_forwarder_filtered_events_total{{output=\"a\",action=\"trimmed\"}} 9\n"
        ))
    };
    assert_conservation(&scrape(5), &["a"]);
    assert!(conservation(&scrape(4), &["a"]).is_err());
    assert!(conservation(&scrape(5), &["b"]).is_err());
}
