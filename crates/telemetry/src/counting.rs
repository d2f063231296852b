//! One function for each thing that happens in the relay. A function may change several metrics
//! together, and leave notes for `/status` and for the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::catalog::{
    DroppedLetters, EvidenceMetrics, ListenerMetrics, OutputMetrics, QueueMetrics, ReloadMetrics,
    TapMetrics, WitnessMetrics,
};
use super::labels::{
    AttemptError, Code, Dropped, EvidenceError, RefusedConnection, Rejection, Reloaded, TlsFailure,
};
use super::now;
use super::recent::Quantiles;
use super::refusals::{LastRejected, LastTlsFailure};
use super::reports::{Loss, State};
use audit::LevelCounts;
use base::lock::lock;

impl ListenerMetrics {
    /// Counts a response with this HTTP status.
    pub fn answered(&self, status: u16) {
        self.requests.of(Code::of(status)).increment(1);
    }

    /// Records the time from the end of a body to the response that accepts it.
    pub fn accepted_after(&self, took: Duration, now: Instant) {
        lock(&self.times).record(took, now);
    }

    /// Returns the quantiles of the times that [`Self::accepted_after`] recorded in the last one to
    /// two minutes. `None` if there are none.
    pub fn quantiles(&self) -> Option<Quantiles> {
        lock(&self.times).quantiles_of(2, Instant::now())
    }

    /// Counts a request, or a message of a source, that was not accepted. `code` is the HTTP status
    /// and `message` the sentence that a sender receives.
    pub fn rejected(&self, reason: Rejection, code: u16, message: &str) {
        self.rejections.requests.of(reason).increment(1);
        let (listener, message) = (Arc::clone(&self.label), message.to_owned());
        self.refusals.refused(LastRejected { listener, reason, code, message, at: Instant::now() });
    }

    /// Notes a request that may have had a batch and was refused for good.
    pub fn turned_away(&self) {
        self.refusals.turned_away(Instant::now());
    }

    /// Counts a refused connection, and stores the time.
    pub fn connection_refused(&self, reason: RefusedConnection) {
        self.refused.of(reason).increment(1);
        self.refusals.connection_refused(reason);
    }

    /// Counts a failed TLS handshake of a sender, and stores it as the last failed one. If the
    /// sender has closed the connection, as some health checks do, the handshake is only counted.
    pub fn tls_failed(&self, reason: TlsFailure) {
        self.tls_failures.of(reason).increment(1);
        if reason != TlsFailure::Closed {
            let (listener, at) = (Arc::clone(&self.label), Instant::now());
            self.refusals.tls_failed(LastTlsFailure { listener, reason, at });
        }
    }
}

impl QueueMetrics {
    /// Counts an accepted batch: its events in all and by audit level, and its bytes.
    pub fn accepted(&self, events: u64, bytes: u64, levels: &LevelCounts) {
        let accepted = &self.accepted;
        accepted.events.increment(events);
        accepted.bytes.increment(bytes);
        accepted.levels.add(levels);
        accepted.refusals.accepted();
    }

    /// Counts a batch that was accepted, but dropped because the queue was full.
    pub fn drop_newest(&self, events: u64, bytes: u64, levels: &LevelCounts) {
        self.accepted(events, bytes, levels);
        self.errors.increment(events);
        self.dropped.of(Dropped::Newest).increment(events);
        self.losses.add(Loss::DropNewest, events, None);
    }

    /// Notes a damaged place in the queue's files. Each output counts the events that it loses
    /// there when it reaches the place.
    pub fn damaged(&self, place: &str) {
        self.losses.note(Loss::Damaged, 1, Some(place));
    }

    /// Notes for the log that a state of the queue, or of its disk, has changed.
    pub fn changed(&self, state: State) {
        self.losses.reports.changed(state);
    }
}

impl OutputMetrics {
    /// Counts events as lost, and notes them for the log.
    pub fn lose(&self, loss: Loss, events: u64) {
        self.lost.increment(events);
        self.losses.add(loss, events, None);
    }

    /// Counts a failed attempt to deliver, by its reason.
    pub fn failed(&self, reason: AttemptError) {
        self.errors.of(reason).increment(1);
    }

    /// Records the time from the acceptance of a batch to its acknowledgement at the time `now`.
    pub fn delivered(&self, took: Duration, now: Instant) {
        self.fates.delivery.record(took.as_secs_f64());
        lock(&self.fates.times).record(took, now);
    }

    /// Returns the quantiles of [`Self::delivered`] over the last minutes; `None` without times.
    pub fn quantiles(&self) -> Option<Quantiles> {
        lock(&self.fates.times).quantiles(Instant::now())
    }
}

impl DroppedLetters {
    /// Counts events whose dead-letter files were deleted.
    pub fn add(&self, events: u64) {
        self.events.increment(events);
        self.losses.note(Loss::DeadLetters, events, None);
    }
}

impl ReloadMetrics {
    /// Counts a reload of the config. `success` is `false` if the config was refused, or if one of
    /// its listeners could not be opened.
    pub fn reloaded(&self, success: bool) {
        let result = if success { Reloaded::Success } else { Reloaded::Error };
        self.count.of(result).increment(1);
        self.last.of(result).set(now());
    }
}

impl TapMetrics {
    /// Sets the number of open taps.
    pub fn open(&self, open: usize) {
        self.taps.set(open as f64);
    }
}

impl EvidenceMetrics {
    /// Sets the number of entries of the evidence log.
    pub fn grew(&self, size: u64) {
        self.size.set(size as f64);
    }

    /// Notes that a checkpoint was signed.
    pub fn signed(&self) {
        self.checkpoint.set(now());
        *lock(&self.last_signed) = Some(Instant::now());
    }

    /// Returns the time since [`Self::signed`] was last called, by a clock that nobody sets.
    pub fn signed_ago(&self) -> Option<Duration> {
        lock(&self.last_signed).map(|at| at.elapsed())
    }

    /// Counts an error of the evidence, and stores its time.
    pub fn failed(&self, reason: EvidenceError) {
        self.errors.of(reason).increment(1);
        let mut last = lock(&self.last_errors);
        last.insert(reason.name(), Instant::now());
    }

    /// Returns each reason for which an error has occurred, with the time since the last one.
    pub fn error_ages(&self) -> Vec<(&'static str, Duration)> {
        let last = lock(&self.last_errors);
        last.iter().map(|(reason, at)| (*reason, at.elapsed())).collect()
    }
}

impl WitnessMetrics {
    /// Notes that the witness has cosigned a checkpoint at this time, in seconds since 1970.
    pub fn cosigned(&self, at: u64) {
        self.last.set(at as f64);
    }
}
