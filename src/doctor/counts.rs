//! The numbers that the doctor takes from an exposition: those of a kube-apiserver, and those of a
//! relay.
//!
//! A number that is not there is not 0, with one exception: kube-apiserver has a series of
//! `apiserver_audit_error_total` only from the first error of a plugin on.

use std::collections::BTreeMap;

use super::exposition::Exposition;
use super::exposition::Labels;
use crate::telemetry::PREFIX;

/// Counts by the value of a label.
pub type ByLabel = BTreeMap<String, u64>;

const EVENTS: &str = "apiserver_audit_event_total";
const ERRORS: &str = "apiserver_audit_error_total";
const LEVELS: &str = "apiserver_audit_level_total";
const REJECTED: &str = "apiserver_audit_requests_rejected_total";
const CLIENT: &str = "rest_client_requests_total";
const STARTED: &str = "process_start_time_seconds";

/// The plugin of kube-apiserver that writes the audit log. Its errors say nothing of the webhook.
pub const LOG_PLUGIN: &str = "log";

/// The names of a relay's metrics that are read, without their prefix.
const OF_RELAY: [&str; 23] = [
    "build_info",
    "dead_letter_events_total",
    "error_total",
    "event_total",
    "evidence_errors_total",
    "evidence_last_checkpoint_timestamp_seconds",
    "evidence_size",
    "filtered_events_total",
    "last_event_timestamp_seconds",
    "output_backlog_events",
    "output_errors_total",
    "output_events_total",
    "output_lag_seconds",
    "output_required",
    "output_retries_total",
    "output_start_events",
    "output_up",
    "queue_bytes",
    "queue_capacity_bytes",
    "queue_events",
    "queue_writable",
    "requests_rejected_total",
    "requests_total",
];

/// Returns the sum of counts. A sum that is too large stays at the largest number.
pub fn total(counts: impl IntoIterator<Item = u64>) -> u64 {
    counts.into_iter().fold(0, u64::saturating_add)
}

/// Adds a count to the counts by label.
fn add(counts: &mut ByLabel, value: String, count: u64) {
    let sum = counts.entry(value).or_default();
    *sum = sum.saturating_add(count);
}

/// The numbers of one source: a kube-apiserver or a relay.
pub trait Counts: Sized + Clone {
    /// Returns the names of the families that are read.
    fn wanted() -> Vec<String>;

    /// Takes the numbers out of an exposition.
    ///
    /// # Errors
    ///
    /// A text that names the metric whose value is no count.
    fn of(exposition: &Exposition) -> Result<Self, String>;

    /// Returns the start of the process, in seconds since 1970; `None` if it is not known.
    fn started(&self) -> Option<f64>;

    /// Returns a sum of counters, which tells the newer of two samples of the same process.
    fn progress(&self) -> u64;
}

/// The numbers of one kube-apiserver.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ApiserverCounts {
    /// The start of the process, in seconds since 1970.
    pub started: Option<f64>,
    /// The events that were generated; `None` if the metric is missing.
    pub generated: Option<u64>,
    /// The events that were given up, by plugin. A plugin without errors may be missing.
    pub errors: ByLabel,
    /// The requests, by the level at which the policy audits them.
    pub levels: ByLabel,
    /// The API requests that were refused because their event could not be audited.
    pub rejected: Option<u64>,
    /// The POSTs that kube-apiserver has sent itself, by host, and there by status.
    pub posts: BTreeMap<String, ByLabel>,
}

impl ApiserverCounts {
    /// Returns the events that the webhook has lost: all that were given up, except those of the
    /// audit log.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let of_webhook = self.errors.iter().filter(|(plugin, _)| *plugin != LOG_PLUGIN);
        total(of_webhook.map(|(_, lost)| *lost))
    }
}

impl Counts for ApiserverCounts {
    fn wanted() -> Vec<String> {
        [EVENTS, ERRORS, LEVELS, REJECTED, CLIENT, STARTED].map(str::to_owned).to_vec()
    }

    fn of(exposition: &Exposition) -> Result<Self, String> {
        let family = Family { exposition, prefix: "" };
        let mut posts = BTreeMap::<String, ByLabel>::new();
        for (labels, value) in exposition.family(CLIENT) {
            if labels.get("method").is_some_and(|method| method == "POST") {
                let by_code = posts.entry(label(labels, "host")).or_default();
                add(by_code, label(labels, "code"), count(CLIENT, value)?);
            }
        }
        Ok(Self {
            started: exposition.value(STARTED),
            generated: family.sum(EVENTS)?,
            errors: family.by(ERRORS, "plugin")?,
            levels: family.by(LEVELS, "level")?,
            rejected: family.sum(REJECTED)?,
            posts,
        })
    }

    fn started(&self) -> Option<f64> {
        self.started
    }

    fn progress(&self) -> u64 {
        total(self.errors.values().copied().chain(self.generated))
    }
}

/// The numbers of one relay.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RelayCounts {
    /// The start of the process, in seconds since 1970.
    pub started: Option<f64>,
    /// The version of the relay.
    pub version: Option<String>,
    /// The events that were accepted; `None` if the metric is missing.
    pub accepted: Option<u64>,
    /// The time at which the last batch was accepted, in seconds since 1970; 0: none yet.
    pub last_event: Option<f64>,
    /// The lost events, by output, or `queue`; `None` if the metric is missing.
    pub errors: Option<ByLabel>,
    /// The requests that were not accepted, by reason.
    pub rejected: ByLabel,
    /// The answered requests, by status.
    pub requests: ByLabel,
    /// The events in the queue.
    pub queued: Option<u64>,
    /// The bytes in the queue.
    pub queue_bytes: Option<u64>,
    /// The greatest number of bytes in the queue.
    pub queue_capacity: Option<u64>,
    /// `false` while the queue cannot store.
    pub writable: Option<bool>,
    /// The outputs, by name.
    pub outputs: BTreeMap<String, OutputCounts>,
    /// The entries of the evidence log; 0 without evidence.
    pub evidence_size: Option<u64>,
    /// The time of the last checkpoint, in seconds since 1970; 0: none yet.
    pub checkpoint: Option<f64>,
    /// The failed attempts to record evidence, by reason.
    pub evidence_errors: ByLabel,
}

/// The numbers of one output of a relay.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OutputCounts {
    /// The events that the consumer has acknowledged.
    pub delivered: u64,
    /// The events that wait; `None` for an output that a reload has removed.
    pub backlog: Option<u64>,
    /// The backlog at the start; negative for an output that a reload has added.
    pub start: i64,
    /// The age of the oldest event that waits, in seconds.
    pub lag: Option<f64>,
    /// The attempts after the first.
    pub retried: u64,
    /// The failed attempts, by reason.
    pub failed: ByLabel,
    /// The lost events that are in dead-letter files.
    pub dead_letters: u64,
    /// The events that the filter kept back or changed, by action.
    pub filtered: ByLabel,
    /// `true` while the last attempt succeeded.
    pub up: Option<bool>,
    /// `false` for an optional output; `None` if it is not known, or the output was removed.
    pub required: Option<bool>,
}

impl OutputCounts {
    /// Returns the events that the filter kept back.
    #[must_use]
    pub fn kept_back(&self) -> u64 {
        let actions = ["dropped", "duplicate"].iter();
        total(actions.filter_map(|action| self.filtered.get(*action)).copied())
    }
}

impl RelayCounts {
    /// Returns the events that this output has lost, or those of `queue`.
    #[must_use]
    pub fn lost(&self, plugin: &str) -> u64 {
        self.errors.as_ref().and_then(|errors| errors.get(plugin)).copied().unwrap_or_default()
    }
}

impl Counts for RelayCounts {
    fn wanted() -> Vec<String> {
        let own = OF_RELAY.iter().map(|name| format!("{PREFIX}{name}"));
        own.chain([STARTED.to_owned()]).collect()
    }

    fn of(exposition: &Exposition) -> Result<Self, String> {
        let family = Family { exposition, prefix: PREFIX };
        let version = family.all("build_info").next().map(|(labels, _)| label(labels, "version"));
        let errors = family.by("error_total", "plugin")?;
        Ok(Self {
            started: exposition.value(STARTED),
            version,
            accepted: family.sum("event_total")?,
            last_event: family.gauge("last_event_timestamp_seconds"),
            errors: Some(errors).filter(|errors| !errors.is_empty()),
            rejected: family.by("requests_rejected_total", "reason")?,
            requests: family.by("requests_total", "code")?,
            queued: family.sum("queue_events")?,
            queue_bytes: family.sum("queue_bytes")?,
            queue_capacity: family.sum("queue_capacity_bytes")?,
            writable: family.gauge("queue_writable").map(|value| value != 0.0),
            outputs: outputs(&family)?,
            evidence_size: family.sum("evidence_size")?,
            checkpoint: family.gauge("evidence_last_checkpoint_timestamp_seconds"),
            evidence_errors: family.by("evidence_errors_total", "reason")?,
        })
    }

    fn started(&self) -> Option<f64> {
        self.started
    }

    fn progress(&self) -> u64 {
        let lost = self.errors.iter().flat_map(|errors| errors.values().copied());
        total(lost.chain(self.accepted))
    }
}

/// Returns the outputs that any of the families about outputs names.
fn outputs(family: &Family<'_>) -> Result<BTreeMap<String, OutputCounts>, String> {
    let mut outputs = BTreeMap::<String, OutputCounts>::new();
    for (name, delivered) in family.by("output_events_total", "output")? {
        outputs.entry(name).or_default().delivered = delivered;
    }
    for (name, backlog) in family.by("output_backlog_events", "output")? {
        outputs.entry(name).or_default().backlog = Some(backlog);
    }
    for (name, retried) in family.by("output_retries_total", "output")? {
        outputs.entry(name).or_default().retried = retried;
    }
    for (name, letters) in family.by("dead_letter_events_total", "output")? {
        outputs.entry(name).or_default().dead_letters = letters;
    }
    for (labels, value) in family.all("output_start_events") {
        let size = count("output_start_events", value.abs())?;
        let size = i64::try_from(size).unwrap_or_default();
        let start = if value < 0.0 { -size } else { size };
        outputs.entry(label(labels, "output")).or_default().start = start;
    }
    for (labels, value) in family.all("output_lag_seconds") {
        outputs.entry(label(labels, "output")).or_default().lag = Some(value);
    }
    for (labels, value) in family.all("output_up") {
        outputs.entry(label(labels, "output")).or_default().up = Some(value != 0.0);
    }
    for (labels, value) in family.all("output_required") {
        outputs.entry(label(labels, "output")).or_default().required = Some(value != 0.0);
    }
    for (name, key, by) in
        [("output_errors_total", "reason", false), ("filtered_events_total", "action", true)]
    {
        for (labels, value) in family.all(name) {
            let output = outputs.entry(label(labels, "output")).or_default();
            let counts = if by { &mut output.filtered } else { &mut output.failed };
            add(counts, label(labels, key), count(name, value)?);
        }
    }
    Ok(outputs)
}

/// The families of an exposition whose names have this prefix.
struct Family<'e> {
    exposition: &'e Exposition,
    prefix: &'static str,
}

impl<'e> Family<'e> {
    fn all(&self, name: &str) -> impl Iterator<Item = (&'e Labels, f64)> + use<'e> {
        self.exposition.family(&format!("{}{name}", self.prefix))
    }

    /// Returns the value of a family without labels; `None` if it is missing.
    fn gauge(&self, name: &str) -> Option<f64> {
        self.all(name).next().map(|(_, value)| value)
    }

    /// Returns the sum over all series of a family; `None` if there is none.
    fn sum(&self, name: &str) -> Result<Option<u64>, String> {
        let mut sum = None;
        for (_, value) in self.all(name) {
            sum = Some(total([sum.unwrap_or_default(), count(name, value)?]));
        }
        Ok(sum)
    }

    /// Returns the sums of a family by the value of one label.
    fn by(&self, name: &str, key: &str) -> Result<ByLabel, String> {
        let mut counts = ByLabel::new();
        for (labels, value) in self.all(name) {
            add(&mut counts, label(labels, key), count(name, value)?);
        }
        Ok(counts)
    }
}

/// Returns the value of a label, without control characters, because it is printed; empty if the
/// series does not have the label.
fn label(labels: &Labels, name: &str) -> String {
    let value = labels.get(name).map(String::as_str).unwrap_or_default();
    value.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

/// The greatest count that a floating-point number holds exactly.
const COUNT_MAX: f64 = 9_007_199_254_740_992.0;

/// Returns a value as a count. `Err` if it is negative, no number or too large.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value is between 0 and COUNT_MAX"
)]
fn count(name: &str, value: f64) -> Result<u64, String> {
    match (0.0..=COUNT_MAX).contains(&value) {
        true => Ok(value.round() as u64),
        false => Err(format!("{name} has the value {value}, which is no count")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<C: Counts>(text: &str) -> Result<C, String> {
        C::of(&Exposition::parse(text.as_bytes(), &C::wanted()).unwrap())
    }

    #[test]
    fn an_absent_plugin_has_no_error_and_absent_events_are_unknown() {
        let counts: ApiserverCounts = read("process_start_time_seconds 1.5\n").unwrap();
        assert_eq!((counts.lost(), counts.generated, counts.started), (0, None, Some(1.5)));
        let text = "apiserver_audit_event_total 7\napiserver_audit_error_total{plugin=\"log\"} 3\n\
                    apiserver_audit_error_total{plugin=\"buffered\"} 2\n\
                    apiserver_audit_error_total{plugin=\"webhook\"} 1e1\n\
                    rest_client_requests_total{code=\"200\",host=\"a\",method=\"POST\"} 4\n\
                    rest_client_requests_total{code=\"200\",host=\"a\",method=\"GET\"} 9\n";
        let counts: ApiserverCounts = read(text).unwrap();
        assert_eq!((counts.lost(), counts.generated), (12, Some(7)));
        assert_eq!(counts.posts["a"], ByLabel::from([("200".to_owned(), 4)]));
    }

    #[test]
    fn a_value_that_is_no_count_is_refused() {
        for value in ["-1", "NaN", "+Inf", "1e300"] {
            let wrong = read::<ApiserverCounts>(&format!("apiserver_audit_event_total {value}"));
            assert!(wrong.unwrap_err().contains("apiserver_audit_event_total"), "{value}");
        }
    }

    #[test]
    fn the_numbers_of_a_relay_are_sorted_by_output() {
        let text = "P_event_total 9\nP_error_total{plugin=\"queue\"} 1\n\
                    P_output_events_total{output=\"o\"} 5\nP_output_start_events{output=\"o\"} -3\n\
                    P_output_backlog_events{output=\"o\"} 2\n\
                    P_filtered_events_total{output=\"o\",action=\"dropped\"} 4\n\
                    P_filtered_events_total{output=\"o\",action=\"lowered\"} 8\n\
                    P_requests_total{listener=\"a\",code=\"200\"} 1\n\
                    P_requests_total{listener=\"b\",code=\"200\"} 2\n\
                    P_build_info{version=\"1\x1b\",revision=\"x\"} 1\n";
        let counts: RelayCounts = read(&text.replace("P_", PREFIX)).unwrap();
        let output = &counts.outputs["o"];
        assert_eq!((output.delivered, output.start, output.backlog), (5, -3, Some(2)));
        assert_eq!((output.kept_back(), counts.lost("queue"), counts.requests["200"]), (4, 1, 3));
        assert_eq!(counts.version.as_deref(), Some("1\u{fffd}"));
        assert_eq!(read::<RelayCounts>("").unwrap(), RelayCounts::default());
    }
}
