//! The numbers that doctor takes from the metrics of a kube-apiserver, and the state of a relay.
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
use telemetry::status::Status;

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

/// The plugin of kube-apiserver that sends batches to the audit webhook.
pub const WEBHOOK_PLUGIN: &str = "webhook";

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

    /// Returns the names of the families that [`ApiserverCounts::of`] reads.
    pub fn wanted() -> Vec<String> {
        let nothing = Exposition::default();
        let families = Families::of(&nothing);
        Self::take(&families);
        families.asked.into_inner().into_iter().map(str::to_owned).collect()
    }

    /// Reads the numbers from parsed metrics.
    pub fn of(exposition: &Exposition) -> Self {
        Self::take(&Families::of(exposition))
    }

    /// Returns the start time, if it is known. It distinguishes processes behind the same address.
    pub fn process(&self) -> Start {
        self.started.map(f64::to_bits)
    }

    /// Returns `true` if fewer events were generated than in an earlier sample, which proves a
    /// restart that the start time does not show.
    pub fn has_begun_again(&self, before: &Self) -> bool {
        self.generated.zip(before.generated).is_some_and(|(now, before)| now < before)
    }

    /// Reads the numbers from the families. Even if `families` is empty, asks for every family that
    /// may be needed.
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
}

/// The state of one relay, as it reports itself in `/status`.
#[derive(Debug, Clone, Default)]
pub struct Relay {
    /// The clock of the machine.
    pub clock: Clock,
    /// The state, with the relay's own verdict.
    pub status: Status,
}

/// The name under which [`Relay::lost`] counts events that no output can get.
pub const QUEUE: &str = "queue";

/// The name under which [`Relay::lost`] counts events of outputs that `/status` no longer has. It
/// is not the name of an output, because it has a space.
pub const REMOVED: &str = "removed outputs";

impl Relay {
    /// Returns the number of accepted events.
    pub fn accepted(&self) -> u64 {
        self.status.intake.accepted_events
    }

    /// Returns the lost events by output, those of [`QUEUE`] and, if there are any, [`REMOVED`].
    pub fn lost(&self) -> ByLabel {
        let Status { queue, outputs, losses, .. } = &self.status;
        let named = outputs.iter().map(|it| (it.name.clone(), it.counts.lost_events));
        let mut lost: ByLabel = named.chain([(QUEUE.to_owned(), queue.lost_events)]).collect();
        // The relay reads the sum first, so the parts are never too small beside it.
        let removed = losses.lost_events.saturating_sub(total(lost.values().copied()));
        if removed > 0 {
            lost.insert(REMOVED.to_owned(), removed);
        }
        lost
    }

    /// Returns the answered requests of all listeners, by status.
    pub fn requests(&self) -> ByLabel {
        sums(self.status.listeners.iter().map(|it| &it.requests))
    }

    /// Returns the connections that were refused, or closed to make room, by reason.
    pub fn refused_connections(&self) -> ByLabel {
        let refused = &self.status.intake.refused_connections;
        refused.iter().map(|(reason, it)| (reason.clone(), it.count)).collect()
    }
}

/// The maximum number of series in `wrong`.
const WRONG_MAX: usize = 10;

/// The maximum number of labels of a series in `wrong`.
const LABELS_MAX: usize = 10;

/// The families that were read. A value is checked when it is taken out.
struct Families<'e> {
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
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> ApiserverCounts {
        let wanted = ApiserverCounts::wanted();
        ApiserverCounts::of(&Exposition::parse(text.as_bytes(), &wanted).unwrap())
    }

    #[test]
    fn an_absent_plugin_has_no_error_and_absent_events_are_unknown() {
        let counts = read("process_start_time_seconds 1.5\n");
        assert_eq!((counts.lost(), counts.generated, counts.started), (0, None, Some(1.5)));
        let text = "apiserver_audit_event_total 7\napiserver_audit_error_total{plugin=\"log\"} 3\n\
                    apiserver_audit_error_total{plugin=\"buffered\"} 2\n\
                    apiserver_audit_error_total{plugin=\"webhook\"} 1e1\n\
                    rest_client_requests_total{code=\"200\",host=\"a\",method=\"POST\"} 4\n\
                    rest_client_requests_total{code=\"200\",host=\"a\",method=\"GET\"} 9\n";
        let counts = read(text);
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
            let counts = read(&text);
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
        let counts = read("process_start_time_seconds NaN\n");
        assert_eq!(counts.started, None);
        let names: Vec<_> = counts.wrong.iter().map(|wrong| wrong.name.as_str()).collect();
        assert_eq!(names, ["process_start_time_seconds"]);
    }

    #[test]
    fn long_labels_and_many_wrong_series_take_little_memory() {
        let host = "h".repeat(60_000);
        let line = |host: &str, value| {
            format!("rest_client_requests_total{{host=\"{host}\",method=\"POST\"}} {value}\n")
        };
        let many: String = (0..1000).map(|n| line(&format!("{n}{host}"), "NaN")).take(60).collect();
        let counts = read(&(line(&host, "1") + &many));
        assert_eq!(counts.posts.keys().map(|host| host.chars().count()).max(), Some(301));
        assert_eq!(counts.wrong.len(), WRONG_MAX);
        assert!(counts.wrong.iter().all(|wrong| wrong.to_string().len() < 1000));
    }

    #[test]
    fn the_losses_of_a_relay_are_sorted_by_place_and_none_is_missing() {
        let status = json!({ "lost_events": 9, "queue": { "lost_events": 1 },
            "outputs": [{ "name": "o", "lost_events": 5 }],
            "listeners": [{ "requests": { "200": 1 } }, { "requests": { "200": 2 } }] });
        let status = serde_json::from_value(status).unwrap();
        let relay = Relay { status, ..Relay::default() };
        let wanted = [("o", 5), (QUEUE, 1), (REMOVED, 3)];
        let wanted = wanted.map(|(name, lost)| (name.to_owned(), lost));
        assert_eq!(relay.lost(), ByLabel::from(wanted));
        assert_eq!(relay.requests()["200"], 3);
    }
}
