//! The metrics and the log.
//!
//! [`Telemetry`] is the registry of one relay. It hands out handles, which are resolved once, when
//! a listener, an output or the queue is made; to count is then one atomic addition. Every metric
//! is declared in `catalog`, and nowhere else. The page `/metrics` and the values in `/status` are
//! read from the same registry.
//!
//! The log has a thread of its own, which `log` explains; `reports` limits how often a loss or a
//! state that flaps is logged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use metrics::Gauge;
use metrics::Histogram;
use metrics::KeyName;
use metrics::Recorder as _;
use metrics_exporter_prometheus::Matcher;
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_exporter_prometheus::PrometheusHandle;
use metrics_exporter_prometheus::PrometheusRecorder;
use tokio::time::Instant;

use crate::audit::LevelCounts;
use crate::release;
use crate::status::verdict::ON_TRIAL;

mod catalog;
mod declare;
mod labels;
mod log;
mod memory;
mod reading;
mod recent;
mod reference;
mod reports;

pub use catalog::DroppedLetters;
pub use catalog::EvidenceMetrics;
pub use catalog::ListenerMetrics;
pub use catalog::OutputMetrics;
pub use catalog::QueueMetrics;
pub use catalog::ReloadMetrics;
pub use catalog::TapMetrics;
pub use catalog::WitnessMetrics;
pub use declare::PREFIX;
pub use labels::AttemptError;
pub use labels::EvidenceError;
pub use labels::Rejection;
pub use labels::TlsFailure;
pub use log::change_log;
pub use log::end_log;
pub use log::start_log;
pub use reading::Certificate;
pub use reading::Outcome;
pub use reading::Reading;
pub use recent::Quantiles;
pub use recent::RecentTimes;
pub use reference::reference;
pub use reports::Cause;
pub use reports::Loss;
pub use reports::Losses;
pub use reports::LostAs;
pub use reports::Reports;
pub use reports::State;

/// The greatest number of characters in [`LastRejected::message`]. The relay's own messages are
/// shorter, and quote at most one word that a client has chosen.
const MESSAGE_MAX: usize = 300;

/// The last request that was refused, which `/status` shows. The value holds nothing of the
/// request's body, except that `message` may quote one wrong word.
#[derive(Debug, Clone)]
pub struct LastRejected {
    /// The label of the listener or source that received the request.
    pub listener: Arc<str>,
    /// The reason why the request was refused.
    pub reason: Rejection,
    /// The HTTP status of the response.
    pub code: u16,
    /// The sentence that the sender received, cut to 300 characters.
    pub message: String,
    /// The time at which the request was refused.
    pub at: Instant,
}

/// The last refused requests of all listeners and sources together. A refusal of one kind must not
/// hide one of the other: anybody can send a request that ends with 408.
#[derive(Default)]
pub(crate) struct LastRefusals {
    /// The last refused request; `None` if no request was refused yet.
    any: Option<LastRejected>,
    /// The last request that was refused for good.
    for_good: Option<LastRejected>,
    /// The last TLS handshake that failed; `None` if none failed yet.
    tls: Option<LastTlsFailure>,
}

/// The last TLS handshake of a sender that failed, which `/status` shows.
#[derive(Debug, Clone)]
pub struct LastTlsFailure {
    /// The label of the listener.
    pub listener: Arc<str>,
    /// The reason why the handshake failed.
    pub reason: TlsFailure,
    /// The time at which the handshake failed.
    pub at: Instant,
}

/// The time since when every batch has been refused, over all listeners and sources, and the number
/// of the refused requests. The gauges are set from it only when the metrics are read: two threads
/// that set them could leave the older value behind.
#[derive(Clone, Default)]
pub(crate) struct Refusing(Arc<Mutex<(f64, u64)>>);

impl Refusing {
    fn lock(&self) -> MutexGuard<'_, (f64, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, reason: Rejection) {
        if reason.is_of_batch() {
            let (since, requests) = &mut *self.lock();
            if *requests == 0 {
                *since = now();
            }
            *requests = requests.saturating_add(1);
        }
    }

    fn accepted(&self) {
        *self.lock() = (0.0, 0);
    }

    #[allow(clippy::cast_precision_loss, reason = "a gauge; the count is below 2^52")]
    fn show(&self, gauges: &catalog::RefusingMetrics) {
        let (since, requests) = *self.lock();
        gauges.since.set(since);
        gauges.requests.set(requests as f64);
    }
}

/// The time of the last error with each reason that has occurred.
type LastErrors = BTreeMap<&'static str, Instant>;

/// All metrics of one relay, and its notes for the log. The relay owns this value. Its functions
/// return handles (references to metric series), which are cheap to clone. Two calls with the same
/// labels return handles of the same series.
pub struct Telemetry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    program: catalog::ProgramMetrics,
    refusals: Arc<Mutex<LastRefusals>>,
    refusing: Refusing,
    refusing_shown: catalog::RefusingMetrics,
    evidence_errors: Arc<Mutex<LastErrors>>,
    reports: Reports,
    /// The times until delivery of each output, by its name. An entry ends with the last handle of
    /// the output.
    delivery_times: Mutex<BTreeMap<String, Weak<Mutex<RecentTimes>>>>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

impl Telemetry {
    /// Makes the metrics of a relay, with their help texts. The series about the program itself
    /// exist from the start. The series of listeners, outputs and the queue are added when their
    /// handles (references to series) are made.
    #[must_use]
    pub fn new() -> Self {
        let histograms = catalog::own().filter(|metric| !metric.buckets.is_empty());
        let recorder = histograms
            .into_iter()
            .try_fold(PrometheusBuilder::new(), |builder, metric| {
                builder.set_buckets_for_metric(Matcher::Full(metric.full_name()), metric.buckets)
            })
            // The only error is a list of buckets that is empty.
            .unwrap_or_else(|_| PrometheusBuilder::new())
            .build_recorder();
        for metric in catalog::own() {
            // The exporter finds a help text by the name alone, so `describe_counter` is right for
            // every kind of metric.
            let name = KeyName::from(metric.full_name());
            recorder.describe_counter(name, None, metric.help.into());
        }
        let build =
            [labels::VERSION.with(release::VERSION), labels::REVISION.with(release::REVISION)];
        catalog::BuildMetrics::register(&recorder, build).info.set(1.0);
        let program = catalog::ProgramMetrics::register(&recorder, []);
        let process = metrics_process::Collector::default();
        metrics::with_local_recorder(&recorder, || process.describe());
        let handle = recorder.handle();
        let (refusals, reports) = (Arc::default(), Reports::default());
        let refusing_shown = catalog::RefusingMetrics::register(&recorder, []);
        let refusing = Refusing::default();
        let (evidence_errors, delivery_times) = (Arc::default(), Mutex::default());
        Self {
            recorder,
            handle,
            process,
            program,
            refusals,
            refusing,
            refusing_shown,
            evidence_errors,
            reports,
            delivery_times,
        }
    }

    /// Returns the page `/metrics`, in the Prometheus text format. Call `Queue::observe` before,
    /// because the gauges of the queue are set only there.
    #[must_use]
    pub fn render(&self) -> String {
        #[allow(clippy::cast_precision_loss, reason = "a gauge; sizes are below 2^60")]
        let limit = memory::limit().unwrap_or_default() as f64;
        self.program.memory_limit.set(limit);
        self.program.log_dropped.absolute(log::dropped_lines());
        self.refusing.show(&self.refusing_shown);
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.render()
    }

    /// Returns the values of all series as numbers. They are the same values as on the page of
    /// [`Telemetry::render`].
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading::new(&self.render())
    }

    /// Returns the last request that was refused; `None` if no request was refused yet.
    #[must_use]
    pub fn last_rejected(&self) -> Option<LastRejected> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).any.clone()
    }

    /// Returns the last request that was refused for good, so that its sender gives its events up;
    /// `None` if there was none yet.
    #[must_use]
    pub fn last_final_refusal(&self) -> Option<LastRejected> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).for_good.clone()
    }

    /// Returns the last TLS handshake of a sender that failed; `None` if none failed yet.
    #[must_use]
    pub fn last_tls_failure(&self) -> Option<LastTlsFailure> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).tls.clone()
    }

    /// Returns the page `/metrics` with only those states of outputs and listeners that `is_known`
    /// accepts. A state is a gauge such as `output_up`. The state of a removed output would never
    /// change again, so an alert on it would never end. Counters stay on the page. `is_known` gets
    /// the name of the metric without its prefix, a kind (`output` or `listener`) and a name. It
    /// returns `true` if the config still has this output or listener, and its state is known.
    pub fn render_states_of(&self, is_known: impl Fn(&str, &str, &str) -> bool) -> String {
        let shown = |line: &&str| {
            state_of(line).is_none_or(|(metric, place, name)| is_known(metric, place, name))
        };
        self.render().split_inclusive('\n').filter(shown).collect()
    }

    /// Counts the newly collected values of each histogram in the histogram's buckets. The relay
    /// must call this function every few seconds. Otherwise the values pile up in memory until the
    /// next scrape.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Returns the handles of the metrics of one listener or source.
    #[must_use]
    pub fn listener(&self, label: &str) -> ListenerMetrics {
        ListenerMetrics::register(
            &self.recorder,
            [labels::LISTENER.with(label)],
            catalog::RejectionMetrics::register(&self.recorder, []),
            label.into(),
            Arc::clone(&self.refusals),
            self.refusing.clone(),
        )
    }

    /// Returns the handle of the metric `in_flight_bytes`.
    pub fn in_flight(&self) -> Gauge {
        catalog::InFlightMetrics::register(&self.recorder, []).bytes
    }

    /// Returns the counter `error_total` of one output, or of the queue.
    fn lost(&self, plugin: &str) -> metrics::Counter {
        let labels = [labels::PLUGIN.with(plugin)];
        catalog::LostMetrics::register(&self.recorder, labels).events
    }

    /// Returns the handles of the queue's metrics.
    #[must_use]
    pub fn queue(&self) -> QueueMetrics {
        let lost = self.lost(reports::QUEUE);
        let losses = self.reports.losses(reports::QUEUE);
        QueueMetrics::register(&self.recorder, [], lost, losses, self.refusing.clone())
    }

    /// Returns the handles that count reloads of the config.
    #[must_use]
    pub fn reloads(&self) -> ReloadMetrics {
        ReloadMetrics::register(&self.recorder, [])
    }

    /// Returns the handles of the metrics about taps.
    #[must_use]
    pub fn taps(&self) -> TapMetrics {
        TapMetrics::register(&self.recorder, [])
    }

    /// Returns the handles of the metrics about the evidence.
    #[must_use]
    pub fn evidence(&self) -> EvidenceMetrics {
        EvidenceMetrics::register(&self.recorder, [], Arc::clone(&self.evidence_errors))
    }

    /// Returns the time since the last error of the evidence with each reason that has occurred.
    #[must_use]
    pub fn evidence_error_ages(&self) -> Vec<(&'static str, Duration)> {
        let last = self.evidence_errors.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().map(|(reason, at)| (*reason, at.elapsed())).collect()
    }

    /// Sets the metric `output_addresses` of an output, by the states of its addresses.
    #[allow(clippy::cast_precision_loss, reason = "a gauge; there are few addresses")]
    pub fn output_addresses<'s>(&self, name: &str, states: impl Iterator<Item = &'s str> + Clone) {
        let labels = [labels::OUTPUT.with(name)];
        let metrics = catalog::AddressMetrics::register(&self.recorder, labels).addresses;
        let count = |state: &str| states.clone().filter(|it| *it == state).count() as f64;
        metrics.up.set(count("up"));
        metrics.down.set(count("down"));
        metrics.suspect.set(count("suspect"));
        metrics.on_trial.set(count(ON_TRIAL));
        metrics.unknown.set(count("unknown"));
    }

    /// Returns the handle of the metric about the witness of this name.
    #[must_use]
    pub fn witness(&self, name: &str) -> WitnessMetrics {
        WitnessMetrics::register(&self.recorder, [labels::WITNESS.with(name)])
    }

    /// Returns handles for a reader of the queue that is no output. Nothing shows them.
    #[must_use]
    pub(crate) fn of_no_output() -> OutputMetrics {
        let mut metrics = Self::new().output("");
        // Nobody would ever collect its samples.
        metrics.delivery = Histogram::noop();
        metrics
    }

    /// Returns the handles of the metrics of one output.
    #[must_use]
    pub fn output(&self, name: &str) -> OutputMetrics {
        let labels = [labels::OUTPUT.with(name)];
        let losses = self.reports.losses(name);
        let times = self.times_of(name);
        OutputMetrics::register(&self.recorder, labels, self.lost(name), losses, times)
    }

    /// Returns the times until delivery of one output. Two calls with the same name return the same
    /// value, as long as a handle of the output exists.
    fn times_of(&self, name: &str) -> Arc<Mutex<RecentTimes>> {
        let mut all = self.delivery_times.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(times) = all.get(name).and_then(Weak::upgrade) {
            return times;
        }
        all.retain(|_, times| times.strong_count() > 0);
        let times = Arc::new(Mutex::new(RecentTimes::new(Instant::now())));
        all.insert(name.to_owned(), Arc::downgrade(&times));
        times
    }

    /// Returns the median and the 99th percentile of the times from the acceptance of a batch to
    /// its acknowledgement by the consumer of one output, over the last minutes. Returns `None` if
    /// no event was delivered lately.
    #[must_use]
    pub fn delivery_quantiles(&self, name: &str) -> Option<Quantiles> {
        let all = self.delivery_times.lock().unwrap_or_else(PoisonError::into_inner);
        let times = all.get(name).and_then(Weak::upgrade)?;
        drop(all);
        let times = times.lock().unwrap_or_else(PoisonError::into_inner);
        times.quantiles(Instant::now())
    }

    /// Sets the metrics about the settings of an output: whether it is required, and the lag above
    /// which it is late.
    pub fn output_settings(&self, name: &str, required: bool, lag_max: Duration) {
        let labels = [labels::OUTPUT.with(name)];
        let metrics = catalog::SettingMetrics::register(&self.recorder, labels);
        metrics.required.set(f64::from(u8::from(required)));
        metrics.lag_max.set(lag_max.as_secs_f64());
    }

    /// Counts `events` as lost. They are the events that the output `name` had not delivered when
    /// it was removed from the config.
    pub fn removed(&self, name: &str, events: u64) {
        self.lost(name).increment(events);
        self.reports.losses(name).add(Loss::Removed, events, None);
    }

    /// Returns the handle of `dead_letter_dropped_events_total`.
    pub fn dead_letters_dropped(&self) -> DroppedLetters {
        DroppedLetters::register(&self.recorder, [], self.reports.losses(reports::QUEUE))
    }

    /// Returns the handle that notes lost events and changes of the queue's state, so that they are
    /// logged.
    #[must_use]
    pub fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// Sets the metric `tls_certificate_expiry_timestamp_seconds` of one certificate. `place` says
    /// on which connections the certificate is used: those of a `listener` or of an `output`.
    /// `name` is the label of the listener, or the name of the output. `role` is the side that
    /// presents the certificate: `server` or `client`. `not_after` is the end of the certificate's
    /// validity, in seconds since 1970.
    pub fn certificate_expiry(
        &self,
        place: &'static str,
        name: &str,
        role: &'static str,
        not_after: i64,
    ) {
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit 52 bits")]
        let seconds = not_after as f64;
        let labels = [(place, name), labels::ROLE.with(role)];
        catalog::CertificateMetrics::register(&self.recorder, labels).not_after.set(seconds);
    }
}

/// Returns the metric's name without its prefix, the kind (`output` or `listener`) and the name,
/// from a line of `/metrics` that shows a state of an output or a listener, such as `output_up`.
/// Returns `None` for every other line.
fn state_of(line: &str) -> Option<(&str, &str, &str)> {
    let (metric, labels) = line.strip_prefix(PREFIX)?.split_once('{')?;
    let (place, rest) = labels.split_once("=\"")?;
    let (name, _) = rest.split_once('"')?;
    catalog::find(metric)?.is_state.then_some((metric, place, name))
}

impl ListenerMetrics {
    /// Counts a response with this HTTP status.
    pub fn answered(&self, status: u16) {
        self.requests.of(labels::Code::of(status)).increment(1);
    }

    /// Counts a request that was not accepted, and keeps it as the last refused request. `code` is
    /// the HTTP status of the response, and `message` is the sentence that the sender receives.
    pub fn rejected(&self, reason: Rejection, code: u16, message: &str) {
        self.rejections.requests.of(reason).increment(1);
        self.refusing.refused(reason);
        let last = LastRejected {
            listener: Arc::clone(&self.label),
            reason,
            code,
            message: message.chars().take(MESSAGE_MAX).collect(),
            at: Instant::now(),
        };
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if reason.is_for_good() {
            refusals.for_good = Some(last.clone());
        }
        refusals.any = Some(last);
    }

    /// Counts a TLS handshake of a sender that failed, and keeps it as the last one. A sender that
    /// has closed its connection is only counted: some health checks do that.
    pub fn tls_failed(&self, reason: TlsFailure) {
        self.tls_failures.of(reason).increment(1);
        if reason == TlsFailure::Closed {
            return;
        }
        let last = LastTlsFailure { listener: Arc::clone(&self.label), reason, at: Instant::now() };
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).tls = Some(last);
    }
}

impl QueueMetrics {
    /// Counts an accepted batch: its events, the bytes of their lines, and the events by audit
    /// level.
    pub fn accepted(&self, events: u64, bytes: u64, levels: &LevelCounts) {
        self.events.increment(events);
        self.accepted_bytes.increment(bytes);
        self.levels.add(levels);
        self.last_event.set(now());
        self.refusing.accepted();
    }

    /// Counts a batch that was accepted and then dropped at once, because the queue was full. No
    /// output can get the events of this batch.
    pub fn drop_newest(&self, events: u64, bytes: u64, levels: &LevelCounts) {
        self.accepted(events, bytes, levels);
        self.errors.increment(events);
        self.dropped.drop_newest.increment(events);
        self.losses.add(Loss::DropNewest, events, None);
    }

    /// Notes for the log that a place in the queue's files is damaged. No lost events are counted
    /// here: each output counts the events that it loses there when it reaches the damaged place.
    pub fn damaged(&self, place: &str) {
        self.losses.note(Loss::Damaged, 1, Some(place));
    }

    /// Notes for the log that a state of the queue, or of its disk, has changed.
    pub fn changed(&self, state: State) {
        self.losses.changed(state);
    }
}

impl DroppedLetters {
    /// Counts events whose dead-letter files were deleted. Dead-letter files hold the events that
    /// outputs have given up.
    pub fn add(&self, events: u64) {
        self.events.increment(events);
        self.losses.note(Loss::DeadLetters, events, None);
    }
}

/// Returns the present time in seconds since 1970.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

impl ReloadMetrics {
    /// Counts one reload of the config, and notes its time. `success` is `true` if the new config
    /// is in use, and `false` if it was refused or if one of its listeners could not be opened.
    pub fn reloaded(&self, success: bool) {
        let (count, last) = if success {
            (&self.count.success, &self.last.success)
        } else {
            (&self.count.error, &self.last.error)
        };
        count.increment(1);
        last.set(now());
    }
}

impl TapMetrics {
    /// Shows the number of open taps.
    #[allow(clippy::cast_precision_loss, reason = "a gauge; there are few taps")]
    pub fn open(&self, open: usize) {
        self.open.set(open as f64);
    }
}

impl EvidenceMetrics {
    /// Shows the number of entries of the log.
    #[allow(clippy::cast_precision_loss, reason = "a gauge; the log has fewer than 2^52 entries")]
    pub fn grew(&self, size: u64) {
        self.size.set(size as f64);
    }

    /// Notes that a checkpoint was signed.
    pub fn signed(&self) {
        self.checkpoint.set(now());
    }

    /// Counts a failed attempt to record evidence.
    pub fn failed(&self, reason: EvidenceError) {
        self.errors.of(reason).increment(1);
        let mut last = self.last_errors.lock().unwrap_or_else(PoisonError::into_inner);
        last.insert(reason.name(), Instant::now());
    }
}

impl WitnessMetrics {
    /// Notes that the witness has cosigned a checkpoint at this time, in seconds since 1970.
    #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit 52 bits")]
    pub fn cosigned(&self, at: u64) {
        self.cosigned.set(at as f64);
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

    /// Records the time from the acceptance of a batch to its acknowledgement by the consumer,
    /// which has come now.
    pub fn delivered(&self, took: Duration, now: Instant) {
        self.delivery.record(took.as_secs_f64());
        self.times.lock().unwrap_or_else(PoisonError::into_inner).record(took, now);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::declare::Kind;
    use super::declare::PREFIX;
    use super::declare::Values;
    use super::*;

    /// An output that a reload replaces goes on with the same times, and one that was removed
    /// leaves nothing behind.
    #[test]
    fn the_times_of_an_output_are_shared_by_its_handles_and_end_with_them() {
        let telemetry = Telemetry::new();
        let (first, second) = (telemetry.output("o"), telemetry.output("o"));
        assert_eq!(telemetry.delivery_quantiles("o"), None);
        first.delivered(Duration::from_secs(2), Instant::now());
        drop(first);
        let p50 = telemetry.delivery_quantiles("o").unwrap().p50;
        assert!((1.9..2.1).contains(&p50), "{p50}");
        drop(second);
        assert_eq!(telemetry.delivery_quantiles("o"), None);
        let _other = telemetry.output("other");
        assert_eq!(telemetry.delivery_times.lock().unwrap().len(), 1);
        assert!(telemetry.render().contains("output_delivery_seconds_count{output=\"o\"} 1"));
    }

    #[test]
    fn what_is_read_back_is_what_was_counted() {
        let telemetry = Telemetry::new();
        let (output, listener) = (telemetry.output("o"), telemetry.listener("l"));
        output.failed(AttemptError::Status5xx);
        output.failed(AttemptError::Status5xx);
        output.filtered.duplicate.increment(7);
        output.existing.increment(3);
        listener.answered(429);
        listener.received.increment(100);
        telemetry.listener("removed").received.increment(11);
        listener.rejected(Rejection::InFlightFull, 429, "full");
        listener.rejected(Rejection::QueueFull, 429, "full");
        listener.rejected(Rejection::Disk, 503, "the disk");
        let (evidence, name) = (telemetry.evidence(), "a \"b\" \\ c");
        evidence.failed(EvidenceError::Witness);
        evidence.grew(12);
        drop(telemetry.witness("z"));
        telemetry.witness(name).cosigned(1_700_000_000);
        let reading = telemetry.read();
        let some = |counts: Vec<(&'static str, u64)>| -> Vec<_> {
            counts.into_iter().filter(|(_, count)| *count > 0).collect()
        };
        assert_eq!(some(reading.errors("o")), [("status_5xx", 2)]);
        assert_eq!(some(reading.filtered("o")), [("duplicate", 7)]);
        assert_eq!((reading.filtered("o").len(), reading.existing_events("o")), (5, 3));
        assert_eq!(some(reading.requests("l")), [("429", 1)]);
        assert_eq!((reading.all_received_bytes(), reading.refused_429()), (111, 2));
        assert_eq!((reading.evidence_size(), reading.last_checkpoint()), (12, None));
        assert_eq!(some(reading.evidence_errors()), [("witness", 1)]);
        let witnesses = [(name.to_owned(), Some(1_700_000_000.0)), ("z".to_owned(), None)];
        assert_eq!(reading.witnesses(), witnesses);
    }

    #[test]
    fn refusals_have_a_beginning_until_a_batch_is_accepted() {
        let telemetry = Telemetry::new();
        let (listener, queue) = (telemetry.listener("l"), telemetry.queue());
        let name = format!("{PREFIX}requests_rejected_since_timestamp_seconds ");
        let since = || -> f64 {
            let text = telemetry.render();
            text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
        };
        let requests = || -> f64 {
            let name = format!("{PREFIX}requests_rejected_since_last_accepted ");
            let text = telemetry.render();
            text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
        };
        // Nobody knows whether these requests had a batch.
        for (reason, code) in [
            (Rejection::Method, 405),
            (Rejection::NotFound, 404),
            (Rejection::Unauthorized, 401),
            (Rejection::Invalid, 400),
            (Rejection::Timeout, 408),
        ] {
            listener.rejected(reason, code, "stray");
        }
        assert_eq!((since(), requests()), (0.0, 0.0));
        listener.rejected(Rejection::QueueFull, 429, "full");
        let first = since();
        assert!((now() - first).abs() < 60.0, "{first}");
        listener.rejected(Rejection::TooLarge, 413, "too large");
        assert_eq!((since(), requests()), (first, 2.0));
        queue.accepted(1, 1, &LevelCounts::default());
        assert_eq!((since(), requests()), (0.0, 0.0));
        listener.rejected(Rejection::QueueFull, 429, "full");
        assert!(since() >= first);
    }

    #[test]
    fn every_series_exists_at_zero_and_has_help() {
        let telemetry = Telemetry::new();
        let listener = telemetry.listener("127.0.0.1:3000");
        let _handles = (telemetry.in_flight(), telemetry.queue(), telemetry.output("o"));
        let _dropped = telemetry.dead_letters_dropped();
        let _reloads = (telemetry.reloads(), telemetry.evidence(), telemetry.witness("w"));
        let _taps = telemetry.taps();
        telemetry.certificate_expiry("listener", "127.0.0.1:3000", "server", 4_102_444_800);
        telemetry.output_settings("o", true, Duration::from_secs(30));
        telemetry.output_addresses("o", ["up"].into_iter());
        listener.answered(431);
        listener.rejected(Rejection::DeliveryTimeout, 503, "too late");
        let text = telemetry.render();
        for metric in catalog::families().flat_map(|(_, metrics)| metrics) {
            let (name, help, kind) = (metric.full_name(), metric.help, metric.kind.name());
            let lines = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
            assert!(text.contains(&lines), "{lines}\n{text}");
        }
        for line in [
            "error_total{plugin=\"queue\"} 0",
            "error_total{plugin=\"o\"} 0",
            "output_errors_total{output=\"o\",reason=\"status_5xx\"} 0",
            "dead_letter_events_total{output=\"o\"} 0",
            "filtered_events_total{output=\"o\",action=\"dropped\"} 0",
            "filtered_events_total{output=\"o\",action=\"duplicate\"} 0",
            "filtered_events_total{output=\"o\",action=\"lowered\"} 0",
            "filtered_events_total{output=\"o\",action=\"trimmed\"} 0",
            "filtered_events_total{output=\"o\",action=\"redacted\"} 0",
            "dead_letter_dropped_events_total 0",
            "log_dropped_lines_total 0",
            "level_total{level=\"other\"} 0",
            "requests_total{listener=\"127.0.0.1:3000\",code=\"200\"} 0",
            "requests_total{listener=\"127.0.0.1:3000\",code=\"4xx\"} 1",
            "requests_rejected_total{reason=\"delivery_timeout\"} 1",
            "output_delivery_seconds_count{output=\"o\"} 0",
            "output_required{output=\"o\"} 1",
            "output_lag_max_seconds{output=\"o\"} 30",
            "tls_certificate_expiry_timestamp_seconds{listener=\"127.0.0.1:3000\",role=\"server\"} 4102444800",
        ] {
            assert!(text.contains(&format!("\n{PREFIX}{line}\n")), "{line}\n{text}");
        }
    }

    /// Registers everything, and compares each series on the page with its declaration: its labels,
    /// and the values that a label with fixed values has. A declared value without a series, or a
    /// series that nobody declared, fails.
    #[test]
    fn the_page_has_the_declared_series_and_no_other() {
        let telemetry = Telemetry::new();
        let _handles = (telemetry.listener("l"), telemetry.queue(), telemetry.output("o"));
        let _others =
            (telemetry.in_flight(), telemetry.dead_letters_dropped(), telemetry.reloads());
        let _evidence = (telemetry.evidence(), telemetry.witness("w"), telemetry.taps());
        telemetry.output_settings("o", true, Duration::from_secs(30));
        telemetry.output_addresses("o", ["up"].into_iter());
        for (place, name) in [("listener", "l"), ("output", "o")] {
            for role in ["server", "client"] {
                telemetry.certificate_expiry(place, name, role, 1);
            }
        }
        let mut seen = BTreeSet::new();
        for line in telemetry.render().lines().filter(|line| !line.starts_with('#')) {
            let Some((series, _)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let name = name.strip_prefix(PREFIX).unwrap_or(name);
            let part = ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it));
            let of_part = part.and_then(catalog::find).filter(|it| it.kind == Kind::Histogram);
            let metric = of_part.or_else(|| catalog::find(name)).expect(line);
            let pairs = labels.trim_end_matches('}').split(',').filter(|pair| !pair.is_empty());
            let pairs: Vec<_> = pairs
                .filter_map(|pair| pair.split_once('='))
                .map(|(label, value)| (label, value.trim_matches('"')))
                .filter(|(label, _)| *label != "le")
                .collect();
            let declared: Vec<_> = metric.labels().collect();
            assert_eq!(pairs.len(), declared.len(), "{line}");
            for ((label, value), declared) in pairs.into_iter().zip(declared) {
                assert!(declared.name.split(" or ").any(|name| name == label), "{line}");
                if let Values::Fixed(values) = declared.values {
                    assert!(values.contains(&value), "{line}");
                    seen.insert((metric.name, label.to_owned(), value.to_owned()));
                }
            }
        }
        for metric in catalog::own() {
            for label in metric.labels() {
                let Values::Fixed(values) = label.values else { continue };
                for value in values {
                    let is_there =
                        seen.contains(&(metric.name, label.name.into(), (*value).into()));
                    assert!(is_there, "{} has no {}={value}", metric.name, label.name);
                }
            }
        }
    }

    #[test]
    fn every_declaration_is_complete_and_named_once() {
        let mut names = BTreeSet::new();
        for metric in catalog::families().flat_map(|(_, metrics)| metrics) {
            let name = metric.name;
            assert!(names.insert(name), "{name} is declared twice");
            for text in [metric.help, metric.unit, metric.meaning, metric.action] {
                assert!(!text.is_empty(), "{name}");
            }
            let is_histogram = metric.kind == Kind::Histogram;
            assert_eq!(is_histogram, !metric.buckets.is_empty(), "{name}");
            assert!(metric.buckets.is_sorted(), "{name}");
            let is_total = name.ends_with("_total");
            assert_eq!(metric.kind == Kind::Counter, is_total, "{name}: counters end in _total");
        }
    }

    #[test]
    fn every_status_has_a_code() {
        for (status, code) in [
            (0, "1xx"),
            (101, "1xx"),
            (200, "200"),
            (204, "2xx"),
            (304, "3xx"),
            (401, "401"),
            (431, "4xx"),
            (500, "5xx"),
            (503, "503"),
            (999, "5xx"),
        ] {
            assert_eq!(labels::Code::of(status).name(), code, "{status}");
        }
    }

    #[test]
    fn a_reading_says_what_is_rendered() {
        let telemetry = Telemetry::new();
        let (queue, output) = (telemetry.queue(), telemetry.output("o"));
        let listener = telemetry.listener("[::]:3000");
        let before = telemetry.read();
        assert_eq!((before.accepted_events(), before.last_event()), (0, None));
        assert_eq!((before.all_lost_events(), before.certificates()), (0, vec![]));
        assert_eq!(before.reloads("success"), (0, None));
        queue.accepted(7, 7000, &LevelCounts::default());
        queue.errors.increment(2);
        output.lost.increment(3);
        telemetry.removed("gone", 4);
        output.events.increment(5);
        output.dead_letters.increment(1);
        listener.connections.set(6.0);
        listener.received.increment(1 << 40);
        listener.rejected(Rejection::QueueFull, 429, &"x".repeat(10_000));
        telemetry.certificate_expiry("output", "o", "server", 4_102_444_800);
        telemetry.certificate_expiry("listener", "[::]:3000", "client", 1_000_000_000);
        telemetry.reloads().reloaded(false);
        let reading = telemetry.read();
        assert_eq!(reading.accepted_events(), 7);
        assert!(reading.started() > 0.0 && reading.memory_bytes() > 0);
        assert!(reading.last_event().is_some_and(|time| time > reading.started()));
        assert_eq!((reading.lost_events("queue"), reading.lost_events("o")), (2, 3));
        assert_eq!(reading.all_lost_events(), 9);
        assert_eq!((reading.delivered_events("o"), reading.dead_letter_events("o")), (5, 1));
        assert_eq!(reading.connections("[::]:3000"), 6);
        assert_eq!(reading.received_bytes("[::]:3000"), 1 << 40);
        let rejected = reading.rejected_requests();
        assert_eq!(
            rejected.iter().find(|(reason, _)| *reason == "queue_full"),
            Some(&("queue_full", 1))
        );
        assert_eq!((reading.reloads("error").0, reading.reloads("success").0), (1, 0));
        let certificate = |place: &str, name: &str, role: &str, not_after| Certificate {
            place: place.into(),
            name: name.into(),
            role: role.into(),
            not_after,
        };
        let certificates = [
            certificate("listener", "[::]:3000", "client", 1_000_000_000),
            certificate("output", "o", "server", 4_102_444_800),
        ];
        assert_eq!(reading.certificates(), certificates);
        let last = telemetry.last_rejected().unwrap();
        assert_eq!(
            (last.reason.name(), last.code, &*last.listener),
            ("queue_full", 429, "[::]:3000")
        );
        assert_eq!(last.message.len(), MESSAGE_MAX);
    }

    #[test]
    fn a_request_that_may_come_again_does_not_hide_one_that_was_refused_for_good() {
        let telemetry = Telemetry::new();
        let listener = telemetry.listener("l");
        assert!(telemetry.last_final_refusal().is_none());
        listener.rejected(Rejection::Invalid, 400, "no JSON");
        for (reason, code) in [(Rejection::Timeout, 408), (Rejection::QueueFull, 429)] {
            listener.rejected(reason, code, "come back");
        }
        let last = |last: Option<LastRejected>| last.map(|last| last.reason.name());
        assert_eq!(last(telemetry.last_rejected()), Some("queue_full"));
        assert_eq!(last(telemetry.last_final_refusal()), Some("invalid"));
    }

    #[test]
    fn what_was_removed_has_no_state_any_more_and_keeps_its_counters() {
        let telemetry = Telemetry::new();
        let _handles = ["a", "b"].map(|name| telemetry.output(name));
        for name in ["a", "b"] {
            telemetry.output_settings(name, false, Duration::from_secs(30));
            telemetry.output_addresses(name, ["down"].into_iter());
            telemetry.certificate_expiry("output", name, "server", 1);
        }
        telemetry.certificate_expiry("listener", "a", "server", 1);
        let text = telemetry.render_states_of(|_, place, name| (place, name) == ("output", "a"));
        let of = |labels: &str| {
            text.lines()
                .filter(|line| line.contains(labels))
                .map(|line| line.split_once('{').unwrap().0)
                .collect::<Vec<_>>()
        };
        let [with, without] = [of("output=\"a\""), of("output=\"b\"")];
        let states: Vec<_> = catalog::own().filter(|metric| metric.is_state).collect();
        assert_eq!(states.len(), 5);
        for state in states.iter().map(|metric| metric.full_name()) {
            assert!(with.contains(&&*state) && !without.contains(&&*state), "{state}\n{text}");
        }
        assert!(without.contains(&&*format!("{PREFIX}output_events_total")), "{text}");
        assert!(!text.contains("{listener=\"a\""), "{text}");
        // One of the states, `output_addresses`, has a series for each of five states.
        assert_eq!(with.len() - states.len() - 4, without.len());
    }
}
