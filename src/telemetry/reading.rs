//! The values of the series as numbers, for `/status` and for the last line of the log. They are
//! parsed from the text of `/metrics`. So the two pages never differ, and the path of a batch
//! counts everything only once.

use std::collections::HashMap;
use std::fmt;

use metrics::Counter;

use super::AttemptError;
use super::EvidenceError;
use super::Rejection;
use super::catalog;
use super::declare::LabelValue;
use super::declare::PREFIX;
use super::labels::Code;
use super::labels::Filtered;
use super::reports::QUEUE;

/// The values of all metric series at one moment.
pub struct Reading {
    /// The values of the series. A key is the name of a series with its labels, as on the page
    /// `/metrics`, but without the prefix `kube_audit_forwarder_`.
    values: HashMap<String, f64>,
}

/// A certificate that the relay uses or has seen, and the time at which its validity ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The kind of connection on which the certificate is used: of a `listener` or of an `output`.
    pub place: String,
    /// The label of the listener, or the name of the output, on whose connections the certificate
    /// is used.
    pub name: String,
    /// The side of the connection that presented the certificate: `server` or `client`.
    pub role: String,
    /// The end of the certificate's validity (notAfter), in seconds since 1970.
    pub not_after: i64,
}

/// The numbers of events of one output since the start, by their result. The entry with the name
/// `queue` counts the events that no output can get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The name of the output, or `queue`.
    pub name: String,
    /// The number of events that the output's consumer has acknowledged.
    pub delivered: u64,
    /// The number of events that are lost, or that the consumer has refused permanently.
    pub lost: u64,
    /// The number of events that were not sent because the output's settings exclude them.
    /// Duplicates are included.
    pub filtered: u64,
    /// The number of events that the consumer has not acknowledged yet.
    pub backlog: u64,
}

/// Writes an [`Outcome`] as the log shows it: `b: 7 delivered, 2 lost, 1 filtered, 3 kept`, where
/// `b` is the name of the output. `kept` is the backlog: the events that are not delivered yet. The
/// numbers of filtered and kept events are left out if they are 0. The entry of the name `queue`
/// has no number of delivered events.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, delivered, lost, filtered, backlog } = self;
        write!(f, "{name}: ")?;
        if name != QUEUE {
            write!(f, "{delivered} delivered, ")?;
        }
        write!(f, "{lost} lost")?;
        for (count, what) in [(*filtered, "filtered"), (*backlog, "kept")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// Returns the value of a label as it was before the escapes of the page `/metrics`: a backslash
/// stands before a quote and before another backslash, and `\n` is a line feed.
fn unescaped(label: &str) -> String {
    let mut chars = label.chars();
    let mut text = String::with_capacity(label.len());
    while let Some(char) = chars.next() {
        text.push(match char {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            _ => char,
        });
    }
    text
}

impl Reading {
    /// Parses the page `/metrics`, which is in the Prometheus text format. Lines whose last word is
    /// not a number, such as comments, are skipped.
    pub(super) fn new(text: &str) -> Self {
        let value = |line: &str| {
            // The metrics of the process have no prefix.
            let (series, value) = line.strip_prefix(PREFIX).unwrap_or(line).rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        Self { values: text.lines().filter_map(value).collect() }
    }

    /// Returns the value of the series with this name and these labels; 0 if the series does not
    /// exist.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        debug_assert!(catalog::find(name).is_some(), "{name} is not declared");
        let labels: Vec<_> =
            labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let series = match labels.as_slice() {
            [] => name.to_owned(),
            labels => format!("{name}{{{}}}", labels.join(",")),
        };
        self.values.get(&series).copied().unwrap_or_default()
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters and sizes: whole, not negative, and below 2^53"
    )]
    /// Returns the value of a counter or gauge as a whole number; 0 if the series does not exist.
    fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.value(name, labels) as u64
    }

    /// Returns every series of the metric `name` that has labels. Each result is the text of the
    /// labels, and the value.
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        debug_assert!(catalog::find(name).is_some(), "{name} is not declared");
        self.values.iter().filter_map(move |(series, value)| {
            let labels = series.strip_prefix(name)?.strip_prefix('{')?.strip_suffix('}')?;
            Some((labels, *value))
        })
    }

    /// Returns the number of events that were accepted since the start.
    #[must_use]
    pub fn accepted_events(&self) -> u64 {
        self.count("event_total", &[])
    }

    /// Returns the time at which the last batch was accepted, in seconds since 1970; `None` if no
    /// batch was accepted yet.
    #[must_use]
    pub fn last_event(&self) -> Option<f64> {
        Some(self.value("last_event_timestamp_seconds", &[])).filter(|time| *time > 0.0)
    }

    /// Returns the number of events that are lost, or that a consumer has refused permanently. The
    /// sum is over the queue and all outputs, removed outputs included.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a sum of counters: whole, not negative, and below 2^53"
    )]
    pub fn all_lost_events(&self) -> u64 {
        self.all("error_total").map(|(_, value)| value).sum::<f64>() as u64
    }

    /// Returns the number of events that one output has lost. For the name `queue`, returns the
    /// number of events that no output can get.
    #[must_use]
    pub fn lost_events(&self, plugin: &str) -> u64 {
        self.count("error_total", &[("plugin", plugin)])
    }

    /// Returns the numbers of events (delivered, lost, filtered, backlog) of each output and of the
    /// queue, sorted by name. Removed outputs are included. The backlogs are as old as the last
    /// call of `Queue::observe`.
    #[must_use]
    pub fn outcomes(&self) -> Vec<Outcome> {
        let plugins = self.all("error_total").filter_map(|(labels, _)| {
            labels.strip_prefix("plugin=\"").and_then(|name| name.strip_suffix('"'))
        });
        let mut names: Vec<_> = plugins.collect();
        names.sort_unstable();
        let outcome = |name: &str| {
            let kept_back = |action| {
                self.count("filtered_events_total", &[("output", name), ("action", action)])
            };
            Outcome {
                name: name.to_owned(),
                delivered: self.delivered_events(name),
                lost: self.lost_events(name),
                filtered: kept_back("dropped") + kept_back("duplicate"),
                backlog: self.count("output_backlog_events", &[("output", name)]),
            }
        };
        names.into_iter().map(outcome).collect()
    }

    /// Returns the number of events of an output that were written to the dead-letter files.
    #[must_use]
    pub fn dead_letter_events(&self, output: &str) -> u64 {
        self.count("dead_letter_events_total", &[("output", output)])
    }

    /// Returns the number of events that an output's consumer has acknowledged.
    #[must_use]
    pub fn delivered_events(&self, output: &str) -> u64 {
        self.count("output_events_total", &[("output", output)])
    }

    /// Returns the number of bytes that were sent to an output's consumer.
    #[must_use]
    pub fn sent_bytes(&self, output: &str) -> u64 {
        self.count("output_bytes_total", &[("output", output)])
    }

    /// Returns the number of events that an output's consumer said it had already.
    #[must_use]
    pub fn existing_events(&self, output: &str) -> u64 {
        self.count("output_existing_events_total", &[("output", output)])
    }

    /// Returns each reason for a failed attempt of an output, with the number of attempts that
    /// failed for it.
    #[must_use]
    pub fn errors(&self, output: &str) -> Vec<(&'static str, u64)> {
        self.by_label::<AttemptError>("output_errors_total", &[("output", output)])
    }

    /// Returns what an output's settings have done to events: each action, with the number of
    /// events.
    #[must_use]
    pub fn filtered(&self, output: &str) -> Vec<(&'static str, u64)> {
        let count =
            |action| self.count("filtered_events_total", &[("output", output), ("action", action)]);
        Filtered::<Counter>::NAMES.iter().map(|action| (*action, count(action))).collect()
    }

    /// Returns each status with which a listener has answered, with the number of requests.
    #[must_use]
    pub fn requests(&self, listener: &str) -> Vec<(&'static str, u64)> {
        self.by_label::<Code>("requests_total", &[("listener", listener)])
    }

    /// Returns the value of each series of a metric that has these labels, and the label of `L`
    /// behind them.
    fn by_label<L: LabelValue>(
        &self,
        name: &str,
        labels: &[(&str, &str)],
    ) -> Vec<(&'static str, u64)> {
        let count = |value: &L| {
            let labels = [labels, &[(L::LABEL.name, value.value())]].concat();
            (value.value(), self.count(name, &labels))
        };
        L::ALL.iter().map(count).collect()
    }

    /// Returns the number of requests that were refused with the status 429.
    #[must_use]
    pub fn refused_429(&self) -> u64 {
        self.rejected_for([Rejection::QueueFull, Rejection::InFlightFull])
    }

    /// Returns the number of requests that were refused with the status 503, because the disk
    /// refuses writes or the consumers are too slow. An orderly end of the relay does not count.
    #[must_use]
    pub fn refused_503(&self) -> u64 {
        self.rejected_for([Rejection::Disk, Rejection::DeliveryTimeout])
    }

    fn rejected_for(&self, reasons: [Rejection; 2]) -> u64 {
        let count =
            |reason: Rejection| self.count("requests_rejected_total", &[("reason", reason.name())]);
        reasons.into_iter().map(count).sum()
    }

    /// Returns the number of events that an output's filter has dropped.
    #[must_use]
    pub fn dropped_events(&self, output: &str) -> u64 {
        self.count("filtered_events_total", &[("output", output), ("action", "dropped")])
    }

    /// Returns the number of bytes of request bodies that all listeners and sources have received,
    /// those of removed ones included.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a sum of counters: whole, not negative, and below 2^53"
    )]
    pub fn all_received_bytes(&self) -> u64 {
        self.all("received_bytes_total").map(|(_, value)| value).sum::<f64>() as u64
    }

    /// Returns the number of entries of the evidence log.
    #[must_use]
    pub fn evidence_size(&self) -> u64 {
        self.count("evidence_size", &[])
    }

    /// Returns the time at which the last checkpoint of the evidence was signed, in seconds since
    /// 1970; `None` if none was signed since the start.
    #[must_use]
    pub fn last_checkpoint(&self) -> Option<f64> {
        let last = self.value("evidence_last_checkpoint_timestamp_seconds", &[]);
        Some(last).filter(|time| *time > 0.0)
    }

    /// Returns the name of each witness, and the time of its last cosignature in seconds since
    /// 1970. The time is `None` if it has not cosigned since the start. Sorted by name.
    #[must_use]
    pub fn witnesses(&self) -> Vec<(String, Option<f64>)> {
        let witness = |(labels, at): (&str, f64)| {
            let name = labels.strip_prefix("witness=\"")?.strip_suffix('"')?;
            Some((unescaped(name), Some(at).filter(|time| *time > 0.0)))
        };
        let mut all: Vec<_> =
            self.all("evidence_witness_timestamp_seconds").filter_map(witness).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Returns each reason for which evidence could not be recorded, with the number of attempts.
    #[must_use]
    pub fn evidence_errors(&self) -> Vec<(&'static str, u64)> {
        self.by_label::<EvidenceError>("evidence_errors_total", &[])
    }

    /// Returns the number of an output's repeated attempts to deliver. The first attempt for each
    /// request or batch does not count.
    #[must_use]
    pub fn retries(&self, output: &str) -> u64 {
        self.count("output_retries_total", &[("output", output)])
    }

    /// Returns the number of open connections of a listener.
    #[must_use]
    pub fn connections(&self, listener: &str) -> u64 {
        self.count("connections", &[("listener", listener)])
    }

    /// Returns the number of bytes of request bodies that a listener has received.
    #[must_use]
    pub fn received_bytes(&self, listener: &str) -> u64 {
        self.count("received_bytes_total", &[("listener", listener)])
    }

    /// Returns each reason for refusing a request, with the number of requests that were refused
    /// for it.
    #[must_use]
    pub fn rejected_requests(&self) -> Vec<(&'static str, u64)> {
        let count = |reason| self.count("requests_rejected_total", &[("reason", reason)]);
        let names = Rejection::ALL.iter().map(|reason| reason.name());
        names.map(|name| (name, count(name))).collect()
    }

    /// Returns the number of bytes of the request bodies that now count against the limit
    /// `limits.max_in_flight`.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.count("in_flight_bytes", &[])
    }

    /// Returns the number of log lines that were dropped because they could not be written fast
    /// enough, or not at all.
    #[must_use]
    pub fn log_dropped_lines(&self) -> u64 {
        self.count("log_dropped_lines_total", &[])
    }

    /// Returns the resident memory of the process, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.count("process_resident_memory_bytes", &[])
    }

    /// Returns the greatest amount of memory that the process may use, in bytes; `None` if there is
    /// no limit.
    #[must_use]
    pub fn memory_limit_bytes(&self) -> Option<u64> {
        Some(self.count("memory_limit_bytes", &[])).filter(|limit| *limit > 0)
    }

    /// Returns the time at which the process began, in seconds since 1970.
    #[must_use]
    pub fn started(&self) -> f64 {
        self.value("process_start_time_seconds", &[])
    }

    /// Returns the number of reloads with this `result` (`success` or `error`), and the time of the
    /// last such reload in seconds since 1970. The time is `None` if there was no such reload.
    #[must_use]
    pub fn reloads(&self, result: &str) -> (u64, Option<f64>) {
        let label = [("result", result)];
        let last = self.value("config_last_reload_timestamp_seconds", &label);
        (self.count("config_reload_total", &label), Some(last).filter(|time| *time > 0.0))
    }

    /// Returns all certificates that the relay has loaded or that a peer has presented. They are
    /// sorted by the end of their validity, the earliest end first.
    #[must_use]
    pub fn certificates(&self) -> Vec<Certificate> {
        let certificate = |(labels, not_after): (&str, f64)| {
            let (place, rest) = labels.split_once("=\"")?;
            let (name, rest) = rest.split_once("\",role=\"")?;
            #[allow(clippy::cast_possible_truncation, reason = "seconds since 1970")]
            Some(Certificate {
                place: place.to_owned(),
                name: name.to_owned(),
                role: rest.trim_end_matches('"').to_owned(),
                not_after: not_after as i64,
            })
        };
        let mut found: Vec<_> =
            self.all("tls_certificate_expiry_timestamp_seconds").filter_map(certificate).collect();
        found.sort_by(|a, b| {
            (a.not_after, &a.place, &a.name, &a.role).cmp(&(
                b.not_after,
                &b.place,
                &b.name,
                &b.role,
            ))
        });
        found
    }
}
