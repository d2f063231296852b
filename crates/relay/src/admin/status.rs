//! Makes the response to `/status`. A field that has the name of a metric has the same meaning as
//! the metric.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::Instant;

use super::{Admin, Listener, Output};
use crate::source;
use audit::time::rfc3339;
use base::lock::lock;
use base::release;
use config::Restrict;
use process::restrict;
use queue::{Backlog, Queue};
use telemetry::status::thresholds::held;
use telemetry::status::{self, Status, verdict};
use telemetry::{LastRejected, Quantiles, Reloaded};
use transform::volume::apiservers::Apiserver;

impl Admin {
    /// Returns the response to `/status` as JSON: the state, with the relay's judgement of it.
    pub(super) fn status(&self) -> String {
        let mut status = self.facts();
        verdict::judge(&mut status);
        // A `Status` has only numbers, texts, and maps whose keys are texts, so this cannot fail.
        serde_json::to_string_pretty(&status).expect("JSON has a form for each value") + "\n"
    }

    fn facts(&self) -> Status {
        let [accepted, received, refused_429, lost] =
            self.history.last_minute(Instant::now(), &self.counters());
        let (metrics, earlier) = (&self.telemetry, self.telemetry.earlier());
        Status {
            process: self.process(time(earlier.last_killed), earlier.killed_with_queue),
            intake: self.intake([accepted, received, refused_429].map(known)),
            losses: status::Losses {
                lost_events: metrics.all_lost_events(),
                last_lost_seconds_ago: seconds(metrics.reports().any_lost_ago()),
                lost_events_per_second: known(lost),
                earlier_lost_events: earlier.lost_events,
                earlier_last_lost: time(earlier.last_lost),
                earlier_known: self.telemetry.knows_earlier(),
                dead_letters_dropped_events: metrics.dead_letters_dropped().events.get(),
            },
            apiservers: self.apiservers(),
            listeners: self.listeners(),
            sources: self.sources(),
            queue: self.queue(),
            outputs: self.outputs(),
            certificates: self.certificates(),
            reloads: self.reloads(),
            permissions: status::Permissions { restrict: restriction() },
            evidence: self.evidence.as_ref().map(|_| self.evidence()),
            verdict: None,
        }
    }

    fn process(
        &self,
        last_killed: Option<String>,
        last_killed_with_queue: bool,
    ) -> status::Process {
        status::Process {
            version: release::VERSION.to_owned(),
            revision: release::REVISION.to_owned(),
            host: self.host.clone(),
            time_seconds: telemetry::now(),
            start_time_seconds: telemetry::started(),
            uptime_seconds: self.since.elapsed().as_secs(),
            tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks() as u64,
            started: self.started.load(Ordering::Relaxed),
            stopping: self.stopping.load(Ordering::Relaxed),
            memory_bytes: telemetry::memory(),
            memory_limit_bytes: telemetry::memory_limit(),
            log_dropped_lines: telemetry::dropped_lines(),
            log_error: telemetry::log_error(),
            last_killed,
            last_killed_with_queue,
        }
    }

    /// `rates` are the rates over the last minute of accepted events, received bytes, and requests
    /// refused with 429.
    fn intake(&self, rates: [Option<f64>; 3]) -> status::Intake {
        let (metrics, refusals) = (&self.telemetry, self.telemetry.refusals());
        let (shown, accepted) = (self.shown.load(), metrics.queue().accepted);
        let [accepted_events_per_second, received_bytes_per_second, refused_429_per_second] = rates;
        status::Intake {
            acknowledge: shown.queue.as_ref().map(|queue| queue.acknowledge.name().to_owned()),
            in_flight_bytes: metrics.in_flight().count(),
            accepted_events: accepted.events.get(),
            accepted_events_per_second,
            received_bytes_per_second,
            last_event_seconds_ago: seconds(refusals.accepted_ago()),
            probes: metrics.volume().probes(),
            rejected_requests: counted(metrics.rejections().requests.counts()),
            refused_429_per_second,
            in_flight_full_seconds_ago: seconds(refusals.in_flight_full_ago()),
            refusals: refusals.times(Instant::now()),
            last_rejected: refusals.last().as_ref().map(rejected),
            last_final_refusal: refusals.last_for_good().as_ref().map(rejected),
            refused_connections: refused_connections(refusals.connections()),
            last_tls_failure: refusals.last_tls_failure().map(|last| status::TlsFailure {
                listener: last.listener.to_string(),
                reason: last.reason.name().to_owned(),
                seconds_ago: last.at.elapsed().as_secs_f64(),
            }),
        }
    }

    fn queue(&self) -> status::Queue {
        let (bytes, events) = self.queue.held();
        let shown = self.shown.load();
        let settings = shown.queue.as_ref();
        let full = self.queue.is_full();
        let reports = self.telemetry.reports();
        let kind = match &self.queue {
            Queue::Memory(_) => "memory",
            Queue::Spool(_) => "disk",
        };
        status::Queue {
            kind: kind.to_owned(),
            bytes,
            needed_bytes: Some(self.queue.needed()),
            growth_bytes_per_second: self.history.queue_growth(),
            capacity_bytes: self.queue.capacity(),
            events,
            earlier_events: self.telemetry.queue().earlier.count(),
            full,
            // The queue may have got room since `full` was read.
            full_seconds: seconds(full.then(|| reports.full_for().unwrap_or_default())),
            when_full: settings.map(|queue| queue.when_full.name().to_owned()),
            retry_after_seconds: seconds(settings.map(|queue| queue.retry_after)),
            fault: self.queue.fault(),
            lost_events: self.telemetry.queue().errors.get(),
            last_lost_seconds_ago: seconds(reports.lost_ago(QUEUE)),
        }
    }

    fn evidence(&self) -> status::Evidence {
        let metrics = self.telemetry.evidence();
        let ages = metrics.error_ages().into_iter();
        // First the log grows, then a checkpoint is signed, then a witness cosigns the checkpoint.
        // The metrics are read in the reverse order, so that no cosignature is newer than the
        // checkpoint that is shown with it.
        let witnesses = self.telemetry.witnesses();
        let (signed, signed_ago) = (metrics.checkpoint.time(), seconds(metrics.signed_ago()));
        // Only their difference is taken from clocks on the wall, which may be set.
        let behind = |at: f64| (signed_ago? + signed? - at).max(0.0).into();
        let witness = |(name, at): (String, Option<f64>)| status::Witness {
            name,
            last_seconds_ago: at.and_then(behind),
        };
        let witnesses = witnesses.into_iter().map(witness).collect();
        status::Evidence {
            size: metrics.size.count(),
            last_checkpoint_seconds_ago: signed_ago,
            witnesses,
            errors: counted_if_any(metrics.errors.counts()),
            last_errors_seconds_ago: ages
                .map(|(reason, age)| (reason.to_owned(), age.as_secs_f64()))
                .collect(),
        }
    }

    fn apiservers(&self) -> Vec<status::Apiserver> {
        let apiserver = |it: Apiserver| status::Apiserver {
            name: it.name,
            id: it.id,
            first_heard_seconds_ago: Some(it.known.as_secs_f64()),
            last_heard_seconds_ago: it.silent.as_secs_f64(),
        };
        self.telemetry.volume().apiservers().into_iter().map(apiserver).collect()
    }

    fn listeners(&self) -> Vec<status::Listener> {
        let listener = |state: &Listener| {
            let metrics = self.telemetry.listener(&state.label);
            let [p50, p99] = quantiles(metrics.quantiles());
            status::Listener {
                listener: state.label.clone(),
                address: state.address.map(|address| address.to_string()),
                received_bytes: metrics.received.get(),
                connections: metrics.connections.count(),
                tls: state.tls,
                requests: counted(metrics.requests.counts()),
                latency_p50_seconds: p50,
                latency_p99_seconds: p99,
            }
        };
        self.shown.load().listeners.iter().map(listener).collect()
    }

    fn reloads(&self) -> status::Reloads {
        let count = self.telemetry.reloads().count;
        let last = |result| self.history.last_reload(result == Reloaded::Success);
        let of = |result: Reloaded| status::Occurred {
            count: count.of(result).get(),
            last_seconds_ago: seconds(last(result).map(|at| at.elapsed())),
        };
        status::Reloads {
            success: of(Reloaded::Success),
            error: of(Reloaded::Error),
            awaits_address: lock(&self.awaited_address).clone(),
            refused: lock(&self.refused_config).clone(),
        }
    }

    fn sources(&self) -> Vec<status::Source> {
        let received = |it: &source::Shown| self.telemetry.listener(&it.config.name).received.get();
        self.shown.load().sources.iter().map(|it| source(it, received(it))).collect()
    }

    /// Returns the certificates, without those of outputs and listeners that a reload has removed.
    fn certificates(&self) -> Vec<status::Certificate> {
        let is_here = |it: &status::Certificate| self.has(&it.place, &it.name);
        self.telemetry.certificates().into_iter().filter(is_here).collect()
    }

    /// Returns each required output that is not paused, with the number of events that wait or are
    /// set aside.
    pub(super) fn waiting(&self) -> Vec<(String, u64)> {
        let outputs = self.outputs().into_iter().filter(|it| it.required && !it.health.paused);
        let events = |it: &status::Output| {
            it.backlog.backlog_events + it.aside.as_ref().map_or(0, |aside| aside.events)
        };
        outputs
            .map(|it| {
                let events = events(&it);
                (it.name, events)
            })
            .collect()
    }

    pub(super) fn outputs(&self) -> Vec<status::Output> {
        let backlogs = self.queue.backlogs();
        let output = |output: &Output| {
            let backlog = backlogs.iter().find(|(name, _)| *name == output.name);
            self.output(output, backlog.map(|(_, backlog)| *backlog).unwrap_or_default())
        };
        self.shown.load().outputs.iter().map(output).collect()
    }

    fn output(&self, output: &Output, backlog: Backlog) -> status::Output {
        let (name, snapshot) = (&output.name, output.status.snapshot());
        let unsteady = snapshot.is_unsteady();
        let (last_error, failed) = snapshot.last_error.unzip();
        let wait = |at: Instant| at.saturating_duration_since(Instant::now());
        status::Output {
            name: name.clone(),
            kind: output.kind.to_owned(),
            required: output.required,
            shape: output.shape.to_owned(),
            strategy: output.status.strategy().map(str::to_owned),
            rate_limit_bytes_per_second: output.rate_limit,
            keeps_events: !snapshot.may_lose,
            health: status::Health {
                up: snapshot.up,
                paused: output.status.paused,
                unsteady,
                down_seconds: seconds(snapshot.down_since.map(|at| at.elapsed())),
                last_error,
                last_error_seconds_ago: seconds(failed.map(|at| at.elapsed())),
                stalled_seconds_ago: seconds(snapshot.stalled.map(|at| at.elapsed())),
                next_retry_seconds: seconds(snapshot.next_attempt.map(wait)),
            },
            backlog: status::Backlog {
                backlog_events: backlog.events,
                backlog_bytes: backlog.bytes,
                start_events: self.telemetry.output(name).backlog.start.signed(),
                lag_seconds: backlog.lag,
                lag_max_seconds: output.lag_max.as_secs_f64(),
                growing: self.history.is_growing(name, backlog.events, held(output.lag_max)),
            },
            counts: self.counts(name),
            all_dropped_seconds: seconds(self.history.all_dropped(name)),
            aside: snapshot.aside.map(|(aside, since)| status::Aside {
                seconds: since.elapsed().as_secs_f64(),
                ..aside
            }),
            addresses: output.status.addresses(),
            trouble: None,
        }
    }

    fn counts(&self, name: &str) -> status::Counts {
        let metrics = self.telemetry.output(name);
        let [p50, p99] = quantiles(metrics.quantiles());
        let [delivered, sent, _, lost] =
            self.history.last_minute_of(name, Instant::now(), &self.output_counters(name));
        status::Counts {
            delivered_events: metrics.events.get(),
            delivered_events_per_second: known(delivered),
            existing_events: metrics.existing.get(),
            sent_bytes: metrics.bytes.get(),
            sent_bytes_per_second: known(sent),
            retries: metrics.retries.get(),
            filtered: counted(metrics.fates.filtered.counts()),
            errors: counted_if_any(metrics.errors.counts()),
            lost_events: metrics.lost.get(),
            lost_events_per_second: known(lost),
            last_lost_seconds_ago: seconds(self.telemetry.reports().lost_ago(name)),
            dead_letter_events: metrics.fates.dead_letters.get(),
            latency_p50_seconds: p50,
            latency_p99_seconds: p99,
        }
    }
}

/// The name under which lost events are counted that no output could get.
const QUEUE: &str = "queue";

fn restriction() -> status::Restriction {
    let state = restrict::state();
    status::Restriction {
        setting: state.map_or(Restrict::Off, |state| state.restrict).name().to_owned(),
        landlock_abi: state.and_then(|state| state.landlock),
        seccomp: state.is_some_and(|state| state.seccomp),
        missing: state.and_then(|state| state.missing.clone()),
    }
}

/// Returns a rate; `None` if it is NaN, because it is not known yet.
fn known(rate: f64) -> Option<f64> {
    Some(rate).filter(|rate| !rate.is_nan())
}

/// Returns a time in seconds since 1970 as RFC 3339 has it; `None` for 0.
fn time(seconds: u64) -> Option<String> {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).filter(|_| seconds > 0)?;
    Some(rfc3339(at).replace(".000", ""))
}

fn seconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64())
}

fn quantiles(times: Option<Quantiles>) -> [Option<f64>; 2] {
    [times.map(|times| times.p50), times.map(|times| times.p99)]
}

fn counted(counts: Vec<(&'static str, u64)>) -> BTreeMap<String, u64> {
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

fn counted_if_any(counts: Vec<(&'static str, u64)>) -> BTreeMap<String, u64> {
    counted(counts.into_iter().filter(|(_, count)| *count > 0).collect())
}

fn refused_connections(
    refused: Vec<(&'static str, u64, Duration)>,
) -> BTreeMap<String, status::Occurred> {
    let of = |(reason, count, ago): (&str, u64, Duration)| {
        (reason.to_owned(), status::Occurred { count, last_seconds_ago: Some(ago.as_secs_f64()) })
    };
    refused.into_iter().map(of).collect()
}

fn rejected(last: &LastRejected) -> status::Rejected {
    status::Rejected {
        listener: last.listener.to_string(),
        reason: last.reason.name().to_owned(),
        code: last.code,
        message: last.message.clone(),
        seconds_ago: last.at.elapsed().as_secs_f64(),
    }
}

fn source(source: &source::Shown, received_bytes: u64) -> status::Source {
    let [kind, topic, group] = source.config.origin().map(str::to_owned);
    let snapshot = source.status.snapshot();
    let state = match (snapshot.partitions.is_empty(), snapshot.paused) {
        (true, _) => "waiting",
        (false, true) => "paused",
        (false, false) => "reading",
    };
    status::Source {
        name: source.config.name.clone(),
        kind,
        topic,
        group,
        state: state.to_owned(),
        partitions: snapshot.partitions,
        received_bytes,
        last_error: snapshot.last_error,
    }
}
