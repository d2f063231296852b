//! The metrics, the log, and the JSON of `/status` with the verdict on it ([`status`]).
//!
//! [`Telemetry`] has the metrics of one relay. It hands out handles, which are resolved once, when
//! a listener, an output or the queue is made; counting is then one atomic addition. All metrics
//! are declared in `catalog`. The page `/metrics` and `/status` read the same values. The log has a
//! thread of its own (`log`), and `reports` limits how often a loss or a flapping state is logged.
//!
//! This crate promises that a caller that counts or logs never waits. It imports `audit`, `base`,
//! `config` (the log's settings) and `transform` (the volume). What must never happen here: a
//! metric without a declaration in `catalog`, or a name of a metric in another crate.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `self` `log` `memory` `process` `recent` `registry` `reports` `status` | the time · the log · numbers of the kernel · times of the last minutes · the values · losses · the JSON of `/status` |
//! | 2 | `declare` | how a metric is declared |
//! | 3 | `labels` | labels and their values |
//! | 4 | `refusals` | refused requests |
//! | 5 | `catalog` | every metric |
//! | 6 | `counting` `page` `reading` | calls that change several metrics · the page `/metrics` · values of `/status` |

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::Histogram;
use serde::{Deserialize, Serialize};

use crate::status::verdict::ON_TRIAL;
use base::release;
use transform::volume::Volume;

mod catalog;
mod counting;
mod declare;
mod labels;
mod log;
mod memory;
mod page;
mod process;
mod reading;
mod recent;
mod refusals;
mod registry;
mod reports;
pub mod status;

pub use catalog::{
    AcceptedMetrics, DroppedLetters, EvidenceMetrics, ListenerMetrics, OutputMetrics, QueueMetrics,
    RejectionMetrics, ReloadMetrics, SpoolMetrics, TapMetrics, WitnessMetrics,
};
use catalog::{BacklogMetrics, BuildMetrics, FateMetrics, LostMetrics, SettingMetrics};
pub use declare::PREFIX;
use labels::AddressState;
pub use labels::{
    AttemptError, ChangedEvent, Dropped, EvidenceError, Filtered, RefusedConnection, Rejection,
    Reloaded, TlsFailure,
};
pub use log::{change_log, dropped_lines, end_log, log_error, start_log};
pub use memory::limit as memory_limit;
pub use reading::Outcome;
pub use recent::{Quantiles, RecentTimes};
pub use refusals::{LastRejected, LastTlsFailure, Refusals};
pub use registry::{Counter, Gauge};
pub use reports::{Cause, Loss, Losses, LostAs, Reports, State};

/// All metrics of one relay, and its notes for the log. The relay owns this value. Handles are
/// cheap to clone, and two calls with the same labels return handles of the same series.
pub struct Telemetry {
    registry: registry::Registry,
    program: catalog::ProgramMetrics,
    refusals: Refusals,
    refusing: catalog::RefusingMetrics,
    /// The last kill and the losses of earlier processes. Unset before [`Telemetry::follow`], and
    /// without a record of an earlier process.
    earlier: OnceLock<Earlier>,
    evidence: EvidenceMetrics,
    reports: Reports,
    delivery_times: recent::TimesByName,
    answer_times: recent::TimesByName,
    volume: Arc<Volume>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

impl Telemetry {
    /// Registers the series of the program, of refused batches and of the evidence. Other series
    /// appear when their handles are made.
    pub fn new() -> Self {
        let registry = registry::Registry::new(page::exporter());
        let build = [(labels::VERSION, release::VERSION), (labels::REVISION, release::REVISION)];
        BuildMetrics::register(&registry, build).info.set(1.0);
        Self {
            program: catalog::ProgramMetrics::register(&registry, []),
            refusals: Refusals::default(),
            refusing: catalog::RefusingMetrics::register(&registry, []),
            earlier: OnceLock::new(),
            evidence: EvidenceMetrics::register(&registry, [], Arc::default(), Arc::default()),
            reports: Reports::default(),
            delivery_times: recent::TimesByName::default(),
            answer_times: recent::TimesByName::default(),
            volume: Arc::default(),
            registry,
        }
    }

    /// Returns the page `/metrics` with all states, for tests.
    pub fn render(&self) -> String {
        self.render_states_of(|_, _, _| true)
    }

    /// Returns the page `/metrics` in the Prometheus text format. Call `Queue::observe` first: it
    /// sets the gauges of the queue. `is_known` gets the metric's name, the label (`output` or
    /// `listener`) and the label's value. A state, such as `output_up`, is shown only if `is_known`
    /// returns `true`: an alert on the state of a removed output would never end. Counters are
    /// always shown.
    pub fn render_states_of(&self, is_known: impl Fn(&str, &str, &str) -> bool) -> String {
        let limit = memory_limit().unwrap_or_default() as f64;
        self.program.memory_limit.set(limit);
        let earlier = self.earlier();
        self.program.last_killed.set(earlier.last_killed as f64);
        self.program.earlier_lost.set(earlier.lost_events as f64);
        self.program.log_dropped.raise_to(dropped_lines());
        // If each refusal set these gauges, two threads could leave the older value behind.
        let (since, batches) = self.refusals.of_batches();
        self.refusing.since.set(since);
        self.refusing.requests.set(batches as f64);
        // Counted back from now, so that setting the clock does not change the age.
        if let Some(ago) = self.refusals.accepted_ago() {
            self.queue().accepted.last.set(now() - ago.as_secs_f64());
        }
        self.show_apiservers();
        page::page(&self.registry, is_known)
    }

    /// Sets the series of each kube-apiserver that is remembered, and removes all others. The time
    /// of a series is counted back from now, so that setting the clock does not change the age.
    fn show_apiservers(&self) {
        let (heard, now) = (self.volume.apiservers(), now());
        for it in &heard {
            let labels = [(labels::APISERVER, it.id.as_str())];
            let metrics = catalog::ApiserverMetrics::register(&self.registry, labels);
            metrics.last_heard.set(now - it.silent.as_secs_f64());
        }
        let is_heard = |labels: &registry::Labels| {
            heard.iter().any(|it| labels.iter().any(|(_, id)| *id == it.id))
        };
        self.registry.keep(catalog::ApiserverMetrics::last_heard, is_heard);
    }

    /// Notes the kill and the losses of earlier processes. Only the first call has an effect.
    pub fn follow(&self, earlier: Earlier) {
        self.earlier.set(earlier).ok();
    }

    /// Returns the last kill and the losses of earlier processes, as far as they still count.
    pub fn earlier(&self) -> Earlier {
        self.earlier.get().copied().unwrap_or_default().at(now())
    }

    /// Returns `true` if the losses of all processes that have ended within the last 24 hours are
    /// recorded. Without a record of an earlier process, they are unknown until this process has
    /// run for that time.
    pub fn knows_earlier(&self) -> bool {
        match self.earlier.get() {
            Some(_) => self.earlier().unrecorded == 0,
            None => now() - started() > Earlier::KEPT,
        }
    }

    /// Returns the counter of the requests for `/metrics` that were refused with 401.
    pub fn unauthorized(&self) -> &Counter {
        &self.program.unauthorized
    }

    /// Returns the state of refused requests.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Returns the accepted volume of all listeners and sources, by cause.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Returns the handles that count refused requests, over all listeners and sources.
    pub fn rejections(&self) -> RejectionMetrics {
        RejectionMetrics::register(&self.registry, [])
    }

    /// Moves the collected values of each histogram into its buckets. The relay must call this
    /// function every few seconds, because until then the values pile up in memory.
    pub fn upkeep(&self) {
        self.registry.exporter.handle().run_upkeep();
    }

    /// Returns the handles of the metrics of one listener or source.
    pub fn listener(&self, label: &str) -> ListenerMetrics {
        let (labels, refusals) = ([(labels::LISTENER, label)], self.refusals.clone());
        let (rejections, times) = (self.rejections(), self.answer_times.of(label));
        ListenerMetrics::register(&self.registry, labels, rejections, label.into(), refusals, times)
    }

    /// Returns the handle of the metric `in_flight_bytes`.
    pub fn in_flight(&self) -> Gauge {
        catalog::InFlightMetrics::register(&self.registry, []).bytes
    }

    fn lost(&self, plugin: &str) -> Counter {
        LostMetrics::register(&self.registry, [(labels::PLUGIN, plugin)]).events
    }

    /// Returns the handles of the queue's metrics.
    pub fn queue(&self) -> QueueMetrics {
        let lost = self.lost(reports::QUEUE);
        let losses = self.reports.losses(reports::QUEUE);
        let accepted = AcceptedMetrics::register(&self.registry, [], self.refusals.clone());
        let spool = SpoolMetrics::register(&self.registry, []);
        QueueMetrics::register(&self.registry, [], accepted, spool, lost, losses)
    }

    /// Returns the handles that count reloads of the config.
    pub fn reloads(&self) -> ReloadMetrics {
        ReloadMetrics::register(&self.registry, [])
    }

    /// Returns the handles of the metrics about taps.
    pub fn taps(&self) -> TapMetrics {
        TapMetrics::register(&self.registry, [])
    }

    /// Returns the handles of the metrics about the evidence.
    pub fn evidence(&self) -> EvidenceMetrics {
        self.evidence.clone()
    }

    /// Sets `output_addresses` of an output: the number of its addresses in each state.
    pub fn output_addresses<'s>(&self, name: &str, states: impl Iterator<Item = &'s str> + Clone) {
        let labels = [(labels::OUTPUT, name)];
        let metrics = catalog::AddressMetrics::register(&self.registry, labels).addresses;
        for (label, state) in [
            (AddressState::Up, "up"),
            (AddressState::Down, "down"),
            (AddressState::OnTrial, ON_TRIAL),
            (AddressState::Unknown, "unknown"),
        ] {
            metrics.of(label).set(states.clone().filter(|it| *it == state).count() as f64);
        }
    }

    /// Returns the handle of the metric about the witness of this name.
    pub fn witness(&self, name: &str) -> WitnessMetrics {
        WitnessMetrics::register(&self.registry, [(labels::WITNESS, name)])
    }

    /// Returns handles for a reader of the queue that is not an output. `/metrics` does not show
    /// them.
    pub fn of_no_output() -> OutputMetrics {
        let mut metrics = Self::new().output("");
        // Nobody calls `upkeep` for this histogram, so its samples would pile up in memory.
        metrics.fates.delivery = Histogram::noop();
        metrics
    }

    /// Returns the handles of the metrics of one output.
    pub fn output(&self, name: &str) -> OutputMetrics {
        let labels = [(labels::OUTPUT, name)];
        let losses = self.reports.losses(name);
        let backlog = BacklogMetrics::register(&self.registry, labels);
        let fates = FateMetrics::register(&self.registry, labels, self.delivery_times.of(name));
        OutputMetrics::register(&self.registry, labels, backlog, fates, self.lost(name), losses)
    }

    /// Sets the metrics about the settings of an output, which is late above the lag `lag_max`.
    pub fn output_settings(&self, name: &str, required: bool, lag_max: Duration) {
        let labels = [(labels::OUTPUT, name)];
        let metrics = SettingMetrics::register(&self.registry, labels);
        metrics.required.set(f64::from(u8::from(required)));
        metrics.lag_max.set(lag_max.as_secs_f64());
    }

    /// Counts as lost the events that the output `name` had not delivered when it was removed.
    pub fn removed(&self, name: &str, events: u64) {
        self.lost(name).increment(events);
        self.reports.losses(name).add(Loss::Removed, events, None);
    }

    /// Returns the handle of `dead_letter_dropped_events_total`.
    pub fn dead_letters_dropped(&self) -> DroppedLetters {
        DroppedLetters::register(&self.registry, [], self.reports.losses(reports::QUEUE))
    }

    /// Returns the notes for the log.
    pub fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// Sets `tls_certificate_expiry_timestamp_seconds` of one certificate; see
    /// [`status::Certificate`].
    pub fn certificate_expiry(
        &self,
        place: &'static str,
        name: &str,
        role: &'static str,
        not_after: i64,
    ) {
        let seconds = not_after as f64;
        let labels = [(place, name), (labels::ROLE, role)];
        catalog::CertificateMetrics::register(&self.registry, labels).not_after.set(seconds);
    }
}

/// The last kill and the losses of earlier processes. A kill is forgotten after 24 hours, and the
/// losses 24 hours after the last one. Times are in seconds since 1970; 0 means never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Earlier {
    /// The number of events that earlier processes have lost.
    pub lost_events: u64,
    /// The time of the last loss.
    pub last_lost: u64,
    /// The time at which a process was last killed, accurate to a few seconds.
    pub last_killed: u64,
    /// `true`: the queue of the killed process was not in a directory that is still there, so that
    /// nobody knows which events it had.
    pub killed_with_queue: bool,
    /// The time at which a process ended without a record of all its losses.
    pub unrecorded: u64,
}

impl Earlier {
    /// The time for which a loss or a kill counts, in seconds.
    const KEPT: f64 = 86_400.0;

    /// Forgets losses and kills that are older than [`Self::KEPT`] at the time `now`.
    fn at(mut self, now: f64) -> Self {
        if now - self.last_lost as f64 > Self::KEPT {
            (self.lost_events, self.last_lost) = (0, 0);
        }
        if now - self.unrecorded as f64 > Self::KEPT {
            self.unrecorded = 0;
        }
        if now - self.last_killed as f64 > Self::KEPT {
            (self.last_killed, self.killed_with_queue) = (0, false);
        }
        self
    }
}

/// Returns the present time in seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// Returns the resident memory of the process, in bytes.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 2^53, and whole")]
pub fn memory() -> u64 {
    process::resident_bytes().unwrap_or_default() as u64
}

/// Returns the time at which the process began, in seconds since 1970.
pub fn started() -> f64 {
    process::started().unwrap_or_default()
}

#[cfg(test)]
mod tests;
