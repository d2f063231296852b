//! The load that a relay is to carry, and the limits of what is computed.

use std::time::Duration;

use super::measured::{EVENTS_PER_SECOND_OF_APISERVER, PEAK};

/// The greatest rate that is computed, in events per second. One kube-apiserver sends at most 4,000
/// at its defaults.
pub const EVENTS_PER_SECOND_MAX: f64 = 10_000_000.0;

/// The smallest rate that is computed, in events per second: one event in about a day.
pub const EVENTS_PER_SECOND_MIN: f64 = 0.00001;

/// The largest mean size of an event in bytes. kube-apiserver's events are seldom above 1 MiB.
pub const EVENT_BYTES_MAX: f64 = (64_u64 << 20) as f64;

/// The place of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The queue is in files. The process needs little memory, and a crash loses nothing.
    Disk,
    /// The queue is in memory.
    Memory,
}

/// The load of all replicas together, and the conditions under which they must bear it.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// The mean rate of all kube-apiservers together, in events per second.
    pub events_per_second: f64,
    /// The highest rate, in events per second. `None` stands for [`PEAK`] times the mean, but at
    /// most what the kube-apiservers can send.
    pub peak: Option<f64>,
    /// The mean size of an event in bytes.
    pub event_bytes: f64,
    /// The time for which the consumer may be away without a loss.
    pub outage: Duration,
    /// The number of relays behind the Service; at least 1.
    pub replicas: u32,
    /// The number of kube-apiservers, each of which has one connection; at least 1.
    pub apiservers: u32,
    /// The types of the outputs of each relay, as in the config; at least one.
    pub outputs: Vec<String>,
    /// The place of the queue.
    pub place: Place,
    /// `true` if the relays keep evidence.
    pub evidence: bool,
    /// `true` if kube-apiserver sends each event alone (`--audit-webhook-mode=blocking`).
    pub is_blocking: bool,
}

impl Load {
    /// Returns the highest rate in events per second, which is at least the mean.
    pub fn peak(&self) -> f64 {
        let most = EVENTS_PER_SECOND_OF_APISERVER * f64::from(self.apiservers);
        let peak = self.peak.unwrap_or_else(|| (self.events_per_second * PEAK).min(most));
        peak.max(self.events_per_second)
    }
}
