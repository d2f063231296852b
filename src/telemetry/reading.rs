//! What the series say, for `/status`: read from what `/metrics` renders, so that the two never differ, and nothing is
//! counted twice on the way of a batch.

use std::collections::HashMap;
use std::fmt;

use super::PREFIX;
use super::REJECTIONS;
use super::reports::QUEUE;

/// The values of all series at one moment, histograms aside.
pub struct Reading {
    /// By name and labels, as rendered.
    values: HashMap<String, f64>,
}

/// A certificate's end.
#[derive(Debug, PartialEq, Eq)]
pub struct Certificate {
    /// `listener` or `output`.
    pub place: String,
    /// The label of that place.
    pub name: String,
    /// `server` or `client`.
    pub role: String,
    /// notAfter, in seconds since 1970.
    pub not_after: i64,
}

/// The fate of all events of one output since the start, or of those that no output could get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The output's name, or `queue`.
    pub name: String,
    /// Events that its consumer has acknowledged.
    pub delivered: u64,
    /// Events that are lost or refused for good.
    pub lost: u64,
    /// Events that its settings have kept back, duplicates among them.
    pub filtered: u64,
    /// Events that it has not got yet.
    pub backlog: u64,
}

/// For the log.
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
    /// Of the Prometheus text format.
    pub(super) fn new(text: &str) -> Self {
        let value = |line: &str| {
            // Those of the process have no prefix.
            let (series, value) = line.strip_prefix(PREFIX).unwrap_or(line).rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        Self { values: text.lines().filter_map(value).collect() }
    }

    /// 0 for a series that is not there, as for one that was never counted.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
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

    /// Those of this name, with all their labels.
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
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

    /// Events lost or refused for good, summed over all who should have got them; outputs that are gone too.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a sum of counters: whole, not negative, and below 2^53"
    )]
    pub fn all_lost_events(&self) -> u64 {
        self.all("error_total").map(|(_, value)| value).sum::<f64>() as u64
    }

    /// The same of one output, or of `queue`.
    #[must_use]
    pub fn lost_events(&self, plugin: &str) -> u64 {
        self.count("error_total", &[("plugin", plugin)])
    }

    /// The fate of the events of each output that there was, and of the queue, by name. The
    /// backlogs are those of the moment when the gauges were set.
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

    /// Of these of an output, the ones that are in the dead-letter files.
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

    /// Attempts of an output after the first.
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
        REJECTIONS.iter().map(|reason| (*reason, count(reason))).collect()
    }

    /// Bytes of bodies on their way into the queue.
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

    /// Memory that the process may have; `None`: as much as there is.
    #[must_use]
    pub fn memory_limit_bytes(&self) -> Option<u64> {
        Some(self.count("memory_limit_bytes", &[])).filter(|limit| *limit > 0)
    }

    /// When the process began, in seconds since 1970.
    #[must_use]
    pub fn started(&self) -> f64 {
        self.value("process_start_time_seconds", &[])
    }

    /// Reloads of the config that had this result, and when the last of them was, in seconds since 1970.
    #[must_use]
    pub fn reloads(&self, result: &str) -> (u64, Option<f64>) {
        let label = [("result", result)];
        let last = self.value("config_last_reload_timestamp_seconds", &label);
        (self.count("config_reload_total", &label), Some(last).filter(|time| *time > 0.0))
    }

    /// All certificates that were loaded or seen, those that end first in front.
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
