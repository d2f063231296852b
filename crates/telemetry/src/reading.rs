//! Values that are read from several series: sums over all outputs or listeners, and lists. They
//! include outputs and listeners that a reload has removed. All other values are read from their
//! handles.

use std::fmt;

use super::Telemetry;
use super::catalog::{CertificateMetrics, ListenerMetrics, LostMetrics, WitnessMetrics};
use super::labels::Filtered;
use super::registry::Labels;
use super::reports::QUEUE;
use crate::status::Certificate;

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
    /// The number of events that the output's settings excluded, duplicates included.
    pub filtered: u64,
    /// The number of events not acknowledged yet, those that are set aside included.
    pub kept: u64,
}

/// Writes `b: 7 delivered, 2 lost, 1 filtered, 3 kept`, as the log shows it. Filtered and kept
/// events are left out if there are none. The entry `queue` has no delivered events.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, delivered, lost, filtered, kept } = self;
        write!(f, "{name}: ")?;
        if name != QUEUE {
            write!(f, "{delivered} delivered, ")?;
        }
        write!(f, "{lost} lost")?;
        for (count, what) in [(*filtered, "filtered"), (*kept, "kept")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

impl Telemetry {
    fn sum(&self, counter: &str) -> u64 {
        self.registry.series(counter).into_iter().map(|(_, count)| count).sum()
    }

    /// Returns the number of events lost or refused permanently, over the queue and all outputs.
    pub fn all_lost_events(&self) -> u64 {
        self.sum(LostMetrics::events)
    }

    /// Returns the bytes of request bodies that all listeners and sources have received.
    pub fn all_received_bytes(&self) -> u64 {
        self.sum(ListenerMetrics::received)
    }

    /// Returns the outcome of each output and of the queue, sorted by name. The backlogs are as of
    /// the last `Queue::observe`.
    pub fn outcomes(&self) -> Vec<Outcome> {
        let outcome = |(labels, lost): (Labels, u64)| {
            let (_, name) = labels.into_iter().next()?;
            if name == QUEUE {
                return Some(Outcome { name, delivered: 0, lost, filtered: 0, kept: 0 });
            }
            let metrics = self.output(&name);
            let of = |action| metrics.fates.filtered.of(action).get();
            let filtered = of(Filtered::Dropped) + of(Filtered::Duplicate);
            let delivered = metrics.events.get();
            let kept = metrics.backlog.events.count() + metrics.aside.count();
            Some(Outcome { name, delivered, lost, filtered, kept })
        };
        self.registry.series(LostMetrics::events).into_iter().filter_map(outcome).collect()
    }

    /// Returns each witness, sorted by name, with its last cosignature in seconds since 1970;
    /// `None` if it has not cosigned since the start.
    pub fn witnesses(&self) -> Vec<(String, Option<f64>)> {
        let witness = |(labels, bits): (Labels, u64)| {
            let at = Some(f64::from_bits(bits)).filter(|at| *at > 0.0);
            labels.into_iter().next().map(|(_, name)| (name, at))
        };
        self.registry.series(WitnessMetrics::last).into_iter().filter_map(witness).collect()
    }

    /// Returns the certificates that were loaded, or presented by a peer, sorted by their end.
    pub fn certificates(&self) -> Vec<Certificate> {
        let certificate = |(labels, bits): (Labels, u64)| {
            let [(place, name), (_, role)] = labels.try_into().ok()?;
            #[allow(clippy::cast_possible_truncation, reason = "seconds since 1970")]
            let not_after_seconds = f64::from_bits(bits) as i64;
            Some(Certificate { place: place.to_owned(), name, role, not_after_seconds })
        };
        let series = self.registry.series(CertificateMetrics::not_after);
        let mut found: Vec<_> = series.into_iter().filter_map(certificate).collect();
        found.sort_by_key(|it| it.not_after_seconds);
        found
    }
}
