//! The values of the series as numbers, for `/status` and for the last line of the log. They are
//! parsed from the text of `/metrics`. So the two pages never differ, and the path of a batch
//! counts everything only once.

use std::collections::HashMap;
use std::fmt;

use super::Rejection;
use super::catalog;
use super::declare::LabelValue as _;
use super::declare::PREFIX;
use super::reports::QUEUE;

/// The values of all series at one moment.
pub struct Reading {
    /// Values by name and labels, as `/metrics` has them, without the prefix of the names.
    values: HashMap<String, f64>,
}

/// The end of one certificate's validity.
#[derive(Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The kind of its place: `listener` or `output`.
    pub place: String,
    /// The listener's label, or the output's name.
    pub name: String,
    /// The side that presented the certificate: `server` or `client`.
    pub role: String,
    /// notAfter, in seconds since 1970.
    pub not_after: i64,
}

/// How the events of one output have ended since the start, or (with the name `queue`) the events
/// that no output can get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The output's name, or `queue`.
    pub name: String,
    /// Events that the output's consumer has acknowledged.
    pub delivered: u64,
    /// Events that are lost or refused for good.
    pub lost: u64,
    /// Events that the output's settings have kept back, duplicates included.
    pub filtered: u64,
    /// Events that the consumer has not acknowledged yet.
    pub backlog: u64,
}

/// The form of the log: `b: 7 delivered, 2 lost, 1 filtered, 3 kept`. Zeros of the last two are
/// left out.
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

impl Reading {
    /// Parses the Prometheus text format. Comments have no value, so they are left out.
    pub(super) fn new(text: &str) -> Self {
        let value = |line: &str| {
            // The metrics of the process have no prefix.
            let (series, value) = line.strip_prefix(PREFIX).unwrap_or(line).rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        Self { values: text.lines().filter_map(value).collect() }
    }

    /// The value of one series; 0 if the series does not exist.
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
    fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.value(name, labels) as u64
    }

    /// Every series of a metric that has labels: the labels as rendered, and the value.
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        debug_assert!(catalog::find(name).is_some(), "{name} is not declared");
        self.values.iter().filter_map(move |(series, value)| {
            let labels = series.strip_prefix(name)?.strip_prefix('{')?.strip_suffix('}')?;
            Some((labels, *value))
        })
    }

    /// Events accepted.
    #[must_use]
    pub fn accepted_events(&self) -> u64 {
        self.count("event_total", &[])
    }

    /// When the last batch was accepted, in seconds since 1970; `None` before the first.
    #[must_use]
    pub fn last_event(&self) -> Option<f64> {
        Some(self.value("last_event_timestamp_seconds", &[])).filter(|time| *time > 0.0)
    }

    /// Events lost or refused for good, summed over the queue and all outputs, removed ones
    /// included.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a sum of counters: whole, not negative, and below 2^53"
    )]
    pub fn all_lost_events(&self) -> u64 {
        self.all("error_total").map(|(_, value)| value).sum::<f64>() as u64
    }

    /// Events that one output has lost, or that no output can get (`queue`).
    #[must_use]
    pub fn lost_events(&self, plugin: &str) -> u64 {
        self.count("error_total", &[("plugin", plugin)])
    }

    /// How the events of each output ended, and those of the queue, sorted by name. Removed outputs
    /// are included. The backlogs are from the moment when the gauges were set.
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

    /// Events of an output that were written to the dead-letter files.
    #[must_use]
    pub fn dead_letter_events(&self, output: &str) -> u64 {
        self.count("dead_letter_events_total", &[("output", output)])
    }

    /// Events that an output's consumer has acknowledged.
    #[must_use]
    pub fn delivered_events(&self, output: &str) -> u64 {
        self.count("output_events_total", &[("output", output)])
    }

    /// Bytes sent to an output's consumer.
    #[must_use]
    pub fn sent_bytes(&self, output: &str) -> u64 {
        self.count("output_bytes_total", &[("output", output)])
    }

    /// Attempts of an output after the first one.
    #[must_use]
    pub fn retries(&self, output: &str) -> u64 {
        self.count("output_retries_total", &[("output", output)])
    }

    /// Open connections of a listener.
    #[must_use]
    pub fn connections(&self, listener: &str) -> u64 {
        self.count("connections", &[("listener", listener)])
    }

    /// Body bytes that a listener has received.
    #[must_use]
    pub fn received_bytes(&self, listener: &str) -> u64 {
        self.count("received_bytes_total", &[("listener", listener)])
    }

    /// Requests that were not accepted, by reason.
    #[must_use]
    pub fn rejected_requests(&self) -> Vec<(&'static str, u64)> {
        let count = |reason| self.count("requests_rejected_total", &[("reason", reason)]);
        let names = Rejection::ALL.iter().map(|reason| reason.name());
        names.map(|name| (name, count(name))).collect()
    }

    /// Bytes of bodies that `limits.max_in_flight` counts.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.count("in_flight_bytes", &[])
    }

    /// Lines of the log that were not written.
    #[must_use]
    pub fn log_dropped_lines(&self) -> u64 {
        self.count("log_dropped_lines_total", &[])
    }

    /// Resident memory of the process.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.count("process_resident_memory_bytes", &[])
    }

    /// Memory that the process may have, in bytes; `None` if there is no limit.
    #[must_use]
    pub fn memory_limit_bytes(&self) -> Option<u64> {
        Some(self.count("memory_limit_bytes", &[])).filter(|limit| *limit > 0)
    }

    /// When the process began, in seconds since 1970.
    #[must_use]
    pub fn started(&self) -> f64 {
        self.value("process_start_time_seconds", &[])
    }

    /// The number of reloads with this result (`success` or `error`), and when the last of them
    /// was, in seconds since 1970; `None` if there was none.
    #[must_use]
    pub fn reloads(&self, result: &str) -> (u64, Option<f64>) {
        let label = [("result", result)];
        let last = self.value("config_last_reload_timestamp_seconds", &label);
        (self.count("config_reload_total", &label), Some(last).filter(|time| *time > 0.0))
    }

    /// All certificates that were loaded or seen, sorted by their end, the first to end first.
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
