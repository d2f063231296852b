//! The numbers that doctor takes from the metrics of a kube-apiserver or of a relay.
//!
//! A missing number of generated or accepted events is unknown, and not 0. But without a series of
//! `apiserver_audit_error_total`, a plugin has lost 0 events: kube-apiserver adds the series with
//! the first error.
//!
//! A series with an impossible value, such as NaN, is left out and listed in `wrong`. The sum over
//! its family is then unknown, unless it is by label, and other families stay usable.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::exposition::{Exposition, Labels};
use base::words::escape;
use telemetry::{
    AcceptedMetrics, BacklogMetrics, BuildMetrics, EvidenceMetrics, FateMetrics, ListenerMetrics,
    LostMetrics, OutputMetrics, QueueMetrics, RejectionMetrics, SettingMetrics,
};

/// Counts by the value of a label.
pub type ByLabel = BTreeMap<String, u64>;

/// The counter of the events that a kube-apiserver has generated.
pub const EVENTS: &str = "apiserver_audit_event_total";
const ERRORS: &str = "apiserver_audit_error_total";
const LEVELS: &str = "apiserver_audit_level_total";
const REJECTED: &str = "apiserver_audit_requests_rejected_total";
const CLIENT: &str = "rest_client_requests_total";
const STARTED: &str = "process_start_time_seconds";

/// The plugin of kube-apiserver that writes the audit log. Its errors do not concern the webhook.
pub const LOG_PLUGIN: &str = "log";

/// Returns the sum of counts, which saturates at the largest number.
pub fn total(counts: impl IntoIterator<Item = u64>) -> u64 {
    counts.into_iter().fold(0, u64::saturating_add)
}

fn add(counts: &mut ByLabel, value: String, count: u64) {
    let sum = counts.entry(value).or_default();
    *sum = sum.saturating_add(count);
}

/// Adds several counts by label.
pub fn sums<'c>(all: impl IntoIterator<Item = &'c ByLabel>) -> ByLabel {
    let mut sums = ByLabel::new();
    for (value, count) in all.into_iter().flatten() {
        add(&mut sums, value.clone(), *count);
    }
    sums
}

/// Returns counts as text, such as `200: 3, 429: 1`.
pub fn listed(counts: &ByLabel) -> String {
    let each: Vec<_> = counts.iter().map(|(value, count)| format!("{value}: {count}")).collect();
    each.join(", ")
}

/// Returns the label with the highest count, or an empty text without counts.
pub fn most(counts: &ByLabel) -> &str {
    counts.iter().max_by_key(|(_, count)| **count).map_or("", |(value, _)| value)
}

/// The numbers of one kube-apiserver or relay.
pub trait Counts: Sized + Clone {
    /// Reads the numbers from the families. Even if `families` is empty, asks for every family that
    /// may be needed.
    fn take(families: &Families<'_>) -> Self;

    /// Returns the names of the families that [`Counts::take`] asks for.
    fn wanted() -> Vec<String> {
        let nothing = Exposition::default();
        let families = Families::of(&nothing);
        Self::take(&families);
        families.asked.into_inner().into_iter().map(str::to_owned).collect()
    }

    /// Reads the numbers from parsed metrics.
    fn of(exposition: &Exposition) -> Self {
        Self::take(&Families::of(exposition))
    }

    /// Returns the clock of the process's machine.
    fn clock(&mut self) -> &mut Clock;

    /// Returns the start time, if it is known. It distinguishes processes behind the same address.
    fn process(&self) -> Start;

    /// Returns `true` if these numbers are lower than earlier ones, which proves a restart that the
    /// start time does not show.
    fn has_begun_again(&self, _before: &Self) -> bool {
        false
    }
}

/// The clock of another machine. doctor's own clock may differ from it by minutes, so an age is the
/// difference between two times of this clock.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Clock {
    /// The time of the response, in seconds since 1970, by the header `Date` or, if that is not
    /// valid, by doctor's clock. `None` for a file.
    pub now: Option<f64>,
    /// The seconds by which this clock is ahead of doctor's; 0 if that is unknown.
    pub ahead: f64,
}

/// The maximum number of seconds by which a reported time may be later than the `Date` of the
/// server, because a `Date` has no fraction of a second. A time that is later by more is not of the
/// same clock.
const DATE_ERROR_MAX: f64 = 2.0;

impl Clock {
    /// Makes a clock from a header `Date` that arrived at the time `here` of doctor's clock.
    pub fn new(date: Option<f64>, here: f64) -> Self {
        Self { now: date.or(Some(here)), ahead: date.map_or(0.0, |date| date - here) }
    }

    /// Returns the seconds since a time of this clock, if they are known.
    pub fn age(&self, at: f64) -> Option<f64> {
        let age = self.now? - at;
        (age > -DATE_ERROR_MAX).then_some(age.max(0.0))
    }

    /// Converts a time of this clock to doctor's clock.
    pub fn here(&self, at: f64) -> f64 {
        at - self.ahead
    }
}

/// The start time of a process, as the bits of its seconds since 1970, if it is known.
pub type Start = Option<u64>;

/// A series that was left out because its value is impossible.
#[derive(Debug, Clone, PartialEq)]
pub struct Wrong {
    /// The name of the metric.
    pub name: String,
    /// The labels of the series, safe to print and bounded in length.
    pub labels: Labels,
    /// The value, which may be NaN.
    pub value: f64,
}

/// Writes the series as on the metrics page, and says that the value is not valid.
impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        let labels: Vec<String> =
            self.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        if !labels.is_empty() {
            write!(f, "{{{}}}", labels.join(","))?;
        }
        write!(f, " is {}, which is not a valid number", self.value)
    }
}

/// The numbers of one kube-apiserver.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ApiserverCounts {
    /// The clock of the machine.
    pub clock: Clock,
    /// The start of the process, in seconds since 1970.
    pub started: Option<f64>,
    /// The generated events. `None` if the metric is missing or not valid.
    pub generated: Option<u64>,
    /// The events that were given up, by plugin. A plugin without errors may be missing.
    pub errors: ByLabel,
    /// The requests, by the audit level of the policy.
    pub levels: ByLabel,
    /// The API requests that were refused because their event could not be audited.
    pub rejected: Option<u64>,
    /// The POSTs of kube-apiserver, including those to itself, by host and then by status.
    pub posts: BTreeMap<String, ByLabel>,
    /// The hosts to which kube-apiserver has sent changes by methods other than POST. A webhook
    /// gets only POSTs, so these hosts are kube-apiservers.
    pub changed: BTreeSet<String>,
    /// The hosts from which kube-apiserver has read.
    pub read: BTreeSet<String>,
    /// The series that were left out.
    pub wrong: Vec<Wrong>,
}

impl ApiserverCounts {
    /// Returns the number of events that the webhook has lost: all that were given up, except those
    /// of the audit log.
    pub fn lost(&self) -> u64 {
        let of_webhook = self.errors.iter().filter(|(plugin, _)| *plugin != LOG_PLUGIN);
        total(of_webhook.map(|(_, lost)| *lost))
    }

    /// Returns [`Self::lost`]. `None` if the number of one plugin is unknown.
    pub fn lost_if_known(&self) -> Option<u64> {
        self.unknown_plugins().next().is_none().then(|| self.lost())
    }

    /// Returns a sum of counters that never decreases while the process runs. The sum in the newer
    /// of two samples is therefore not smaller.
    pub fn progress(&self) -> u64 {
        total(self.errors.values().copied().chain(self.generated))
    }

    /// Returns the plugins whose lost events are unknown, because their series was left out.
    pub fn unknown_plugins(&self) -> impl Iterator<Item = String> {
        let of_errors = self.wrong.iter().filter(|wrong| wrong.name == ERRORS);
        of_errors.map(|wrong| label(&wrong.labels, "plugin"))
    }
}

impl Counts for ApiserverCounts {
    fn take(families: &Families<'_>) -> Self {
        // The decisive numbers come first, because the list of wrong series has a limit.
        let (errors, generated) = (families.by(ERRORS, "plugin"), families.sum(EVENTS));
        let mut posts = BTreeMap::<String, ByLabel>::new();
        let (mut changed, mut read) = (BTreeSet::new(), BTreeSet::new());
        for (labels, count) in families.counts(CLIENT) {
            match labels.get("method").map(String::as_str) {
                Some("POST") => {
                    let by_code = posts.entry(label(labels, "host")).or_default();
                    add(by_code, label(labels, "code"), count);
                }
                Some("PUT" | "PATCH" | "DELETE") => {
                    changed.insert(label(labels, "host"));
                }
                Some("GET") => {
                    read.insert(label(labels, "host"));
                }
                _ => {}
            }
        }
        Self {
            clock: Clock::default(),
            started: families.gauge(STARTED),
            generated,
            errors,
            levels: families.by(LEVELS, "level"),
            rejected: families.sum(REJECTED),
            posts,
            changed,
            read,
            wrong: families.wrong.take(),
        }
    }

    fn clock(&mut self) -> &mut Clock {
        &mut self.clock
    }

    fn process(&self) -> Start {
        self.started.map(f64::to_bits)
    }

    fn has_begun_again(&self, before: &Self) -> bool {
        self.generated.zip(before.generated).is_some_and(|(now, before)| now < before)
    }
}

/// The numbers of one relay.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RelayCounts {
    /// The clock of the machine.
    pub clock: Clock,
    /// The start of the process, in seconds since 1970.
    pub started: Option<f64>,
    /// The version of the relay.
    pub version: Option<String>,
    /// The accepted events. `None` if the metric is missing or not valid.
    pub accepted: Option<u64>,
    /// The lost events, by output. `queue` stands for events that no output can get. `None` if the
    /// metric is missing, or has no valid value.
    pub errors: Option<ByLabel>,
    /// The requests that were not accepted, by reason.
    pub rejected: ByLabel,
    /// The connections that were refused, or closed to make room, by reason.
    pub refused_connections: ByLabel,
    /// The answered requests, by status.
    pub requests: ByLabel,
    /// The queue.
    pub queue: QueueCounts,
    /// The outputs, by name.
    pub outputs: BTreeMap<String, OutputCounts>,
    /// The evidence log.
    pub evidence: EvidenceCounts,
    /// The series that were left out.
    pub wrong: Vec<Wrong>,
}

/// The queue of a relay.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueueCounts {
    /// The events in the queue.
    pub events: Option<u64>,
    /// The bytes that count for the fill of the queue: `queue_needed_bytes`, or `queue_bytes` of a
    /// version without it.
    pub needed: Option<u64>,
    /// The maximum number of bytes in the queue.
    pub capacity: Option<u64>,
    /// `true`: the queue is in memory and is lost with the process. `None`: unknown.
    pub in_memory: Option<bool>,
    /// The events that earlier processes have accepted into the queue's directory.
    pub earlier: Option<u64>,
}

/// The evidence log of a relay.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EvidenceCounts {
    /// The entries of the log; 0 without evidence.
    pub size: Option<u64>,
    /// The time of the last checkpoint since the start, in seconds since 1970; 0 if there is none.
    pub checkpoint: Option<f64>,
}

/// The numbers of one output of a relay.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OutputCounts {
    /// The events that the consumer has acknowledged.
    pub delivered: u64,
    /// The waiting events. `None` for an output that a reload has removed.
    pub backlog: Option<u64>,
    /// The backlog at the start; negative for an output that a reload has added.
    pub start: i64,
    /// The age of the oldest waiting event, in seconds.
    pub lag: Option<f64>,
    /// The attempts after the first one, from the metric `output_retries_total`.
    pub retried: u64,
    /// The failed attempts, by reason.
    pub failed: ByLabel,
    /// The events that were written to dead-letter files.
    pub dead_letters: u64,
    /// The events that were filtered out or changed, by action.
    pub filtered: ByLabel,
    /// `true` if the last attempt succeeded. `None` before the first attempt.
    pub up: Option<bool>,
    /// `false` for an optional output. `None`: unknown, or the output was removed.
    pub required: Option<bool>,
}

impl OutputCounts {
    /// Returns the number of events that the filter or the deduplication dropped.
    pub fn filtered(&self) -> u64 {
        let actions = ["dropped", "duplicate"].iter();
        total(actions.filter_map(|action| self.filtered.get(*action)).copied())
    }
}

impl RelayCounts {
    /// Returns the number of events that the output named `plugin` has lost. For the name `queue`,
    /// returns the number of events that no output can get.
    pub fn lost(&self, plugin: &str) -> u64 {
        self.errors.as_ref().and_then(|errors| errors.get(plugin)).copied().unwrap_or_default()
    }
}

impl Counts for RelayCounts {
    fn take(families: &Families<'_>) -> Self {
        let builds = families.all(BuildMetrics::info);
        let version = builds.first().map(|(labels, _)| label(labels, "version"));
        let needed = families.sum(QueueMetrics::needed);
        let errors = families.by(LostMetrics::events, "plugin");
        Self {
            clock: Clock::default(),
            started: families.gauge(STARTED),
            version,
            accepted: families.sum(AcceptedMetrics::events),
            errors: Some(errors).filter(|errors| !errors.is_empty()),
            rejected: families.by(RejectionMetrics::requests, "reason"),
            refused_connections: families.by(ListenerMetrics::refused, "reason"),
            requests: families.by(ListenerMetrics::requests, "code"),
            queue: QueueCounts {
                events: families.sum(QueueMetrics::held),
                needed: needed.or_else(|| families.sum(QueueMetrics::bytes)),
                capacity: families.sum(QueueMetrics::capacity),
                in_memory: families.gauge(QueueMetrics::durable).map(|value| value == 0.0),
                earlier: families.sum(QueueMetrics::earlier),
            },
            outputs: outputs(families),
            evidence: EvidenceCounts {
                size: families.sum(EvidenceMetrics::size),
                checkpoint: families.gauge(EvidenceMetrics::checkpoint),
            },
            wrong: families.wrong.take(),
        }
    }

    fn clock(&mut self) -> &mut Clock {
        &mut self.clock
    }

    /// Always `None`: one relay is behind an address, and after a restart the new process is
    /// compared with the old one.
    fn process(&self) -> Start {
        None
    }
}

/// The names of metrics of outputs, each with the function that sets its field.
type Setters<V, const N: usize> = [(&'static str, fn(&mut OutputCounts, V)); N];

/// A function that returns one of the fields of an output that are counts by label.
type LabelledField = fn(&mut OutputCounts) -> &mut ByLabel;

/// Returns the outputs in all families about outputs.
fn outputs(families: &Families<'_>) -> BTreeMap<String, OutputCounts> {
    let mut outputs = BTreeMap::<String, OutputCounts>::new();
    let counts: Setters<u64, 4> = [
        (OutputMetrics::events, |it, count| it.delivered = count),
        (BacklogMetrics::events, |it, count| it.backlog = Some(count)),
        (OutputMetrics::retries, |it, count| it.retried = count),
        (FateMetrics::dead_letters, |it, count| it.dead_letters = count),
    ];
    for (name, set) in counts {
        for (output, count) in families.by(name, "output") {
            set(outputs.entry(output).or_default(), count);
        }
    }
    let signed = |value: f64| {
        let size = i64::try_from(count(value.abs())?).ok()?;
        Some(if value < 0.0 { -size } else { size })
    };
    for (labels, start) in families.series(BacklogMetrics::start, signed) {
        outputs.entry(label(labels, "output")).or_default().start = start;
    }
    let gauges: Setters<f64, 3> = [
        (BacklogMetrics::lag, |it, value| it.lag = Some(value)),
        (OutputMetrics::up, |it, value| it.up = Some(value != 0.0)),
        (SettingMetrics::required, |it, value| it.required = Some(value != 0.0)),
    ];
    for (name, set) in gauges {
        for (labels, value) in families.gauges(name) {
            set(outputs.entry(label(labels, "output")).or_default(), value);
        }
    }
    let by_label: [(_, _, LabelledField); 2] = [
        (OutputMetrics::errors, "reason", |it| &mut it.failed),
        (FateMetrics::filtered, "action", |it| &mut it.filtered),
    ];
    for (name, key, of) in by_label {
        for (labels, count) in families.counts(name) {
            let output = outputs.entry(label(labels, "output")).or_default();
            add(of(output), label(labels, key), count);
        }
    }
    for output in outputs.values_mut() {
        // Some relays report 0 before the first attempt.
        let has_tried = output.delivered > 0 || output.failed.values().any(|count| *count > 0);
        output.up = output.up.filter(|up| *up || has_tried);
    }
    outputs
}

/// The maximum number of series in `wrong`.
const WRONG_MAX: usize = 10;

/// The maximum number of labels of a series in `wrong`.
const LABELS_MAX: usize = 10;

/// The families that were read. A value is checked when it is taken out.
pub struct Families<'e> {
    exposition: &'e Exposition,
    asked: RefCell<BTreeSet<&'static str>>,
    wrong: RefCell<Vec<Wrong>>,
}

impl<'e> Families<'e> {
    fn of(exposition: &'e Exposition) -> Self {
        Self { exposition, asked: RefCell::default(), wrong: RefCell::default() }
    }

    fn all(&self, name: &'static str) -> Vec<(&'e Labels, f64)> {
        self.asked.borrow_mut().insert(name);
        self.exposition.family(name).collect()
    }

    /// Returns the series of a family whose values are valid. Series with another value are added
    /// to `wrong`.
    fn series<T>(
        &self,
        name: &'static str,
        read: impl Fn(f64) -> Option<T>,
    ) -> Vec<(&'e Labels, T)> {
        let mut read_all = Vec::new();
        for (labels, value) in self.all(name) {
            let mut wrong = self.wrong.borrow_mut();
            if let Some(read) = read(value) {
                read_all.push((labels, read));
            } else if wrong.len() < WRONG_MAX {
                let keys = labels.keys().filter(|key| key.len() <= LABEL_CHARS_MAX);
                let keys = keys.take(LABELS_MAX);
                let labels = keys.map(|key| (key.clone(), label(labels, key))).collect();
                wrong.push(Wrong { name: name.to_owned(), labels, value });
            }
        }
        read_all
    }

    /// Returns the series of a family whose values are finite.
    fn gauges(&self, name: &'static str) -> Vec<(&'e Labels, f64)> {
        self.series(name, |value| value.is_finite().then_some(value))
    }

    /// Returns the series of a family whose values are counts.
    fn counts(&self, name: &'static str) -> Vec<(&'e Labels, u64)> {
        self.series(name, count)
    }

    /// Returns the value of a family without labels. `None` if it is missing or not finite.
    fn gauge(&self, name: &'static str) -> Option<f64> {
        self.gauges(name).first().map(|(_, value)| *value)
    }

    /// Returns the sum over all series of a family. `None` without series, or if a series was left
    /// out.
    fn sum(&self, name: &'static str) -> Option<u64> {
        let counts = self.counts(name);
        let is_whole = !counts.is_empty() && counts.len() == self.all(name).len();
        is_whole.then(|| total(counts.into_iter().map(|(_, count)| count)))
    }

    /// Returns the sums of a family by the value of one label.
    fn by(&self, name: &'static str, key: &str) -> ByLabel {
        let mut counts = ByLabel::new();
        for (labels, count) in self.counts(name) {
            add(&mut counts, label(labels, key), count);
        }
        counts
    }
}

/// The maximum number of characters of a label's value. A host has at most 253, its port 6.
const LABEL_CHARS_MAX: usize = 300;

/// Returns the value of a label, safe for a terminal, or an empty text. A long value is cut and
/// ends with `…`.
fn label(labels: &Labels, name: &str) -> String {
    let value = labels.get(name).map(String::as_str).unwrap_or_default();
    let mut text = escape::masked(value, LABEL_CHARS_MAX);
    if value.chars().nth(LABEL_CHARS_MAX).is_some() {
        text.push('…');
    }
    text
}

/// The greatest number up to which a floating-point number holds every count exactly (2^53).
const COUNT_MAX: f64 = 9_007_199_254_740_992.0;

/// Returns a value as a count. `None` if it is negative, not a number, or too large.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value is between 0 and COUNT_MAX"
)]
fn count(value: f64) -> Option<u64> {
    (0.0..=COUNT_MAX).contains(&value).then(|| value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use telemetry::PREFIX;

    fn read<C: Counts>(text: &str) -> C {
        C::of(&Exposition::parse(text.as_bytes(), &C::wanted()).unwrap())
    }

    #[test]
    fn an_absent_plugin_has_no_error_and_absent_events_are_unknown() {
        let counts: ApiserverCounts = read("process_start_time_seconds 1.5\n");
        assert_eq!((counts.lost(), counts.generated, counts.started), (0, None, Some(1.5)));
        let text = "apiserver_audit_event_total 7\napiserver_audit_error_total{plugin=\"log\"} 3\n\
                    apiserver_audit_error_total{plugin=\"buffered\"} 2\n\
                    apiserver_audit_error_total{plugin=\"webhook\"} 1e1\n\
                    rest_client_requests_total{code=\"200\",host=\"a\",method=\"POST\"} 4\n\
                    rest_client_requests_total{code=\"200\",host=\"a\",method=\"GET\"} 9\n";
        let counts: ApiserverCounts = read(text);
        assert_eq!((counts.lost_if_known(), counts.generated), (Some(12), Some(7)));
        assert_eq!(counts.posts["a"], ByLabel::from([("200".to_owned(), 4)]));
    }

    #[test]
    fn a_value_that_is_no_count_is_named_and_other_families_stay_usable() {
        for (value, shown) in [("-1", "-1"), ("NaN", "NaN"), ("+Inf", "inf"), ("1e300", "10000")] {
            let text = format!(
                "apiserver_audit_event_total {value}\n\
                 apiserver_audit_error_total{{plugin=\"buffered\"}} {value}\n\
                 apiserver_audit_error_total{{plugin=\"webhook\"}} 3\n\
                 apiserver_audit_requests_rejected_total 4\nprocess_start_time_seconds 5\n"
            );
            let counts: ApiserverCounts = read(&text);
            assert_eq!((counts.generated, counts.lost()), (None, 3), "{value}");
            assert_eq!((counts.rejected, counts.started), (Some(4), Some(5.0)), "{value}");
            let wrong: Vec<String> = counts.wrong.iter().map(ToString::to_string).collect();
            let [errors, events] = wrong.as_slice() else { panic!("{wrong:?}") };
            let start = format!("apiserver_audit_event_total is {shown}");
            assert!(events.starts_with(&start), "{events}");
            let start = format!("apiserver_audit_error_total{{plugin=\"buffered\"}} is {shown}");
            assert!(errors.starts_with(&start), "{errors}");
            assert_eq!(counts.unknown_plugins().collect::<Vec<_>>(), ["buffered"]);
            assert_eq!(counts.lost_if_known(), None);
        }
    }

    #[test]
    fn a_gauge_that_is_not_finite_is_unknown_and_named() {
        let text = "P_output_lag_seconds{output=\"o\"} +Inf\n\
                    P_output_start_events{output=\"o\"} -Inf\nP_event_total{listener=\"a\"} 1\n\
                    P_event_total{listener=\"b\"} NaN\nprocess_start_time_seconds NaN\n";
        let counts: RelayCounts = read(&text.replace("P_", PREFIX));
        assert_eq!((counts.started, counts.accepted), (None, None));
        let names: Vec<_> = counts.wrong.iter().map(|wrong| wrong.name.as_str()).collect();
        let wanted = [
            "process_start_time_seconds",
            "P_event_total",
            "P_output_start_events",
            "P_output_lag_seconds",
        ];
        assert_eq!(names, wanted.map(|name| name.replace("P_", PREFIX)));
    }

    #[test]
    fn long_labels_and_many_wrong_series_take_little_memory() {
        let host = "h".repeat(60_000);
        let line = |host: &str, value| {
            format!("rest_client_requests_total{{host=\"{host}\",method=\"POST\"}} {value}\n")
        };
        let many: String = (0..1000).map(|n| line(&format!("{n}{host}"), "NaN")).take(60).collect();
        let counts: ApiserverCounts = read(&(line(&host, "1") + &many));
        assert_eq!(counts.posts.keys().map(|host| host.chars().count()).max(), Some(301));
        assert_eq!(counts.wrong.len(), WRONG_MAX);
        assert!(counts.wrong.iter().all(|wrong| wrong.to_string().len() < 1000));
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
        let counts: RelayCounts = read(&text.replace("P_", PREFIX));
        let output = &counts.outputs["o"];
        assert_eq!((output.delivered, output.start, output.backlog), (5, -3, Some(2)));
        assert_eq!((output.filtered(), counts.lost("queue"), counts.requests["200"]), (4, 1, 3));
        assert_eq!(counts.version.as_deref(), Some("1\u{fffd}"));
        assert_eq!(read::<RelayCounts>(""), RelayCounts::default());
    }
}
