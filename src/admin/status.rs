//! The JSON of `/status`. A field that has the name of a metric has the same meaning as the metric.
//! `docs/reference/status-json.md` lists all fields.

use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Admin, Listener, Output};
use crate::audit::time::rfc3339;
use crate::config::Restrict;
use crate::delivery::{AddressState, ParkedEvents};
use crate::lock::lock;
use crate::process::restrict;
use crate::queue::{Backlog, Queue};
use crate::status::thresholds::held;
use crate::status::{Status, verdict};
use crate::telemetry::{
    Certificate, Counter, Gauge, LastRejected, LastTlsFailure, Quantiles, ReloadMetrics,
};
use crate::{release, source, telemetry};

impl Admin {
    /// Returns the page `/status`, with the relay's judgement of the other fields.
    pub(super) fn status(&self) -> Value {
        judged(self.facts())
    }

    fn facts(&self) -> Value {
        let (metrics, refusals) = (&self.telemetry, self.telemetry.refusals());
        let queue = metrics.queue();
        let now = telemetry::now();
        let ago = |time: f64| (now - time).max(0.0);
        let shown = self.shown.load();
        let settings = shown.queue.as_ref();
        let earlier = metrics.earlier();
        let [accepted, received, refused_429, lost] =
            self.history.last_minute(Instant::now(), &self.counters());
        json!({
            "version": release::VERSION,
            "revision": release::REVISION,
            "host": self.host,
            "time_seconds": now,
            "start_time_seconds": telemetry::started(),
            "uptime_seconds": self.since.elapsed().as_secs(),
            "tasks": tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            "memory_bytes": telemetry::memory(),
            "memory_limit_bytes": telemetry::memory_limit(),
            "started": self.started.load(Ordering::Relaxed),
            "stopping": self.stopping.load(Ordering::Relaxed),
            "acknowledge": settings.map(|queue| queue.acknowledge.name()),
            "lost_events": metrics.all_lost_events(),
            "lost_events_per_second": lost,
            "earlier_lost_events": earlier.lost_events,
            "earlier_last_lost": time(earlier.last_lost),
            "last_killed": time(earlier.last_killed),
            "last_lost_seconds_ago": seconds(metrics.reports().any_lost_ago()),
            "dead_letters_dropped_events": metrics.dead_letters_dropped().events.get(),
            "accepted_events": queue.accepted.events.get(),
            "accepted_events_per_second": accepted,
            "received_bytes_per_second": received,
            "last_event_seconds_ago": queue.accepted.last.time().map(ago),
            "in_flight_bytes": metrics.in_flight().count(),
            "log_dropped_lines": telemetry::dropped_lines(),
            "listeners": self.listeners(),
            "sources": self.sources(),
            "rejected_requests": counted(metrics.rejections().requests.counts()),
            "refused_429_per_second": refused_429,
            "in_flight_full_seconds_ago": seconds(refusals.in_flight_full_ago()),
            "refusals": refusals.times(Instant::now()),
            "last_rejected": refusals.last().as_ref().map(last_rejected),
            "last_final_refusal": refusals.last_for_good().as_ref().map(last_rejected),
            "refused_connections": refused_connections(refusals.connections()),
            "last_tls_failure": refusals.last_tls_failure().as_ref().map(last_tls_failure),
            "queue": self.queue_json(queue.errors.get()),
            "outputs": self.outputs(),
            "certificates": self.certificates(),
            "reloads": self.reloads(ago),
            "process": { "restrict": restriction() },
            "evidence": self.evidence.as_ref().map(|_| self.evidence_json(ago)),
        })
    }

    fn queue_json(&self, lost_events: u64) -> Value {
        let (bytes, events) = self.queue.held();
        let shown = self.shown.load();
        let settings = shown.queue.as_ref();
        let full = self.queue.is_full();
        let reports = self.telemetry.reports();
        json!({
            "kind": match &self.queue {
                Queue::Memory(_) => "memory",
                Queue::Spool(_) => "disk",
            },
            "bytes": bytes,
            "needed_bytes": self.queue.needed(),
            "growth_bytes_per_second": self.history.queue_growth(),
            "capacity_bytes": self.queue.capacity(),
            "events": events,
            "when_full": settings.map(|queue| queue.when_full.name()),
            "retry_after_seconds": seconds(settings.map(|queue| queue.retry_after)),
            "full": full,
            // The queue may have got room a moment ago.
            "full_seconds": seconds(full.then(|| reports.full_for().unwrap_or_default())),
            "fault": self.queue.fault(),
            "lost_events": lost_events,
            "last_lost_seconds_ago": seconds(reports.lost_ago(QUEUE)),
        })
    }

    fn evidence_json(&self, ago: impl Fn(f64) -> f64) -> Value {
        let metrics = self.telemetry.evidence();
        let witness = |(name, at): (String, Option<f64>)| json!({ "name": name, "last_seconds_ago": at.map(&ago) });
        let ages = metrics.error_ages().into_iter();
        let ages = ages.map(|(reason, age)| (reason.to_owned(), json!(age.as_secs_f64())));
        json!({
            "size": metrics.size.count(),
            "last_checkpoint_seconds_ago": metrics.checkpoint.time().map(&ago),
            "witnesses": self.telemetry.witnesses().into_iter().map(witness).collect::<Value>(),
            "errors": counted_if_any(metrics.errors.counts()),
            "last_errors_seconds_ago": ages.collect::<Value>(),
        })
    }

    fn listeners(&self) -> Value {
        let listener = |state: &Listener| {
            let metrics = self.telemetry.listener(&state.label);
            let [p50, p99] = quantiles(metrics.quantiles());
            json!({
                "listener": state.label,
                "tls": state.tls,
                "address": state.address.map(|address| address.to_string()),
                "connections": metrics.connections.count(),
                "received_bytes": metrics.received.get(),
                "requests": counted(metrics.requests.counts()),
                "latency_p50_seconds": p50,
                "latency_p99_seconds": p99,
            })
        };
        self.shown.load().listeners.iter().map(listener).collect()
    }

    fn reloads(&self, ago: impl Fn(f64) -> f64) -> Value {
        let ReloadMetrics { count, last } = self.telemetry.reloads();
        let of = |count: Counter, last: Gauge| json!({ "count": count.get(), "last_seconds_ago": last.time().map(&ago) });
        json!({
            "success": of(count.success, last.success),
            "error": of(count.error, last.error),
            "awaits_address": lock(&self.awaited_address).clone(),
        })
    }

    fn sources(&self) -> Value {
        let received = |it: &source::Shown| self.telemetry.listener(&it.config.name).received.get();
        self.shown.load().sources.iter().map(|it| source(it, received(it))).collect()
    }

    /// Returns, as JSON, the certificates of the outputs and listeners that exist now. The metrics
    /// may also have certificates of outputs and listeners that a reload has removed; the result
    /// leaves them out.
    fn certificates(&self) -> Value {
        let is_here = |it: &&Certificate| self.has(it.place, &it.name);
        self.telemetry.certificates().iter().filter(is_here).map(certificate).collect()
    }

    fn outputs(&self) -> Value {
        let backlogs = self.queue.backlogs();
        let output = |output: &Output| {
            let backlog = backlogs.iter().find(|(name, _)| *name == output.name);
            self.output(output, backlog.map(|(_, backlog)| *backlog).unwrap_or_default())
        };
        self.shown.load().outputs.iter().map(output).collect()
    }

    fn output(&self, output: &Output, backlog: Backlog) -> Value {
        let (name, snapshot) = (&output.name, output.status.snapshot());
        let metrics = self.telemetry.output(name);
        let [p50, p99] = quantiles(metrics.quantiles());
        let [delivered, sent, _, lost] =
            self.history.last_minute_of(name, Instant::now(), &self.output_counters(name));
        let unsteady = snapshot.is_unsteady();
        let (last_error, failed) = snapshot.last_error.unzip();
        let wait = |at: Instant| at.saturating_duration_since(Instant::now());
        json!({
            "name": name,
            "type": output.kind,
            "required": output.required,
            "shape": output.shape,
            "strategy": output.status.strategy(),
            "up": snapshot.up,
            "paused": output.status.paused,
            "unsteady": unsteady,
            "down_seconds": seconds(snapshot.down_since.map(|at| at.elapsed())),
            "keeps_events": !snapshot.may_lose,
            "backlog_events": backlog.events,
            "backlog_bytes": backlog.bytes,
            "lag_seconds": backlog.lag,
            "lag_max_seconds": output.lag_max.as_secs_f64(),
            "growing": self.history.is_growing(name, backlog.events, held(output.lag_max)),
            "all_dropped_seconds": seconds(self.history.all_dropped(name)),
            "delivered_events": metrics.events.get(),
            "delivered_events_per_second": delivered,
            "existing_events": metrics.existing.get(),
            "filtered": counted(metrics.fates.filtered.counts()),
            "sent_bytes": metrics.bytes.get(),
            "sent_bytes_per_second": sent,
            "latency_p50_seconds": p50,
            "latency_p99_seconds": p99,
            "retries": metrics.retries.get(),
            "errors": counted_if_any(metrics.errors.counts()),
            "lost_events": metrics.lost.get(),
            "lost_events_per_second": lost,
            "last_lost_seconds_ago": seconds(self.telemetry.reports().lost_ago(name)),
            "dead_letter_events": metrics.fates.dead_letters.get(),
            "last_error": last_error,
            "last_error_seconds_ago": seconds(failed.map(|at| at.elapsed())),
            "stalled_seconds_ago": seconds(snapshot.stalled.map(|at| at.elapsed())),
            "next_retry_seconds": seconds(snapshot.next_attempt.map(wait)),
            "parked": snapshot.parked.as_ref().map(parked),
            "addresses": output.status.addresses().iter().map(address).collect::<Value>(),
        })
    }
}

/// The name under which events are counted as lost that no output can get.
const QUEUE: &str = "queue";

/// Adds the verdict, and the trouble of each output, which follow from the other fields.
fn judged(mut status: Value) -> Value {
    let facts = Status::deserialize(&status).unwrap_or_else(|error| {
        tracing::warn!(%error, "the verdict of /status is made without its fields");
        Status::default()
    });
    for (output, facts) in
        status["outputs"].as_array_mut().into_iter().flatten().zip(&facts.outputs)
    {
        output["trouble"] = json!(verdict::trouble(facts));
    }
    status["verdict"] = json!(verdict::judge(&facts));
    status
}

/// Returns, as JSON, what the process has given up at its start.
fn restriction() -> Value {
    let state = restrict::state();
    json!({
        "setting": state.map_or(Restrict::Off, |state| state.restrict).name(),
        "landlock_abi": state.and_then(|state| state.landlock),
        "seccomp": state.is_some_and(|state| state.seccomp),
        "missing": state.and_then(|state| state.missing.as_deref()),
    })
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

/// Returns counts by name as an object.
fn counted(counts: Vec<(&'static str, u64)>) -> Value {
    counts.into_iter().map(|(name, count)| (name.to_owned(), json!(count))).collect()
}

/// Returns counts by name as an object, without those that are 0.
fn counted_if_any(counts: Vec<(&'static str, u64)>) -> Value {
    counted(counts.into_iter().filter(|(_, count)| *count > 0).collect())
}

/// Returns, as JSON, the connections that were refused, by reason.
fn refused_connections(refused: Vec<(&'static str, u64, Duration)>) -> Value {
    let of = |(reason, count, ago): (&str, u64, Duration)| {
        (reason.to_owned(), json!({ "count": count, "last_seconds_ago": ago.as_secs_f64() }))
    };
    refused.into_iter().map(of).collect()
}

fn last_rejected(last: &LastRejected) -> Value {
    json!({
        "listener": *last.listener,
        "reason": last.reason.name(),
        "code": last.code,
        "message": last.message,
        "seconds_ago": last.at.elapsed().as_secs_f64(),
    })
}

fn last_tls_failure(last: &LastTlsFailure) -> Value {
    json!({
        "listener": *last.listener,
        "reason": last.reason.name(),
        "seconds_ago": last.at.elapsed().as_secs_f64(),
    })
}

fn certificate(certificate: &Certificate) -> Value {
    json!({
        "place": certificate.place,
        "name": certificate.name,
        "role": certificate.role,
        "not_after_seconds": certificate.not_after,
    })
}

fn parked(parked: &ParkedEvents) -> Value {
    json!({
        "events": parked.events,
        "position": parked.position.get(),
        "seconds": parked.since.elapsed().as_secs_f64(),
        "tries": parked.tries,
        "error": *parked.error,
        "out_of_order": parked.out_of_order,
    })
}

fn address(state: &AddressState) -> Value {
    let figures = &state.figures;
    let [p50, p99] = quantiles(figures.times);
    let errors = figures.errors.iter().map(|(reason, count)| (reason.name(), *count));
    let (last_error, ago) = figures.last_error.as_ref().map(|(text, ago)| (text, *ago)).unzip();
    json!({
        "endpoint": state.endpoint,
        "address": state.address,
        "state": state.state,
        "state_seconds": state.state_for.as_secs_f64(),
        "used": state.used,
        "requests": figures.requests,
        "sent_bytes": figures.sent_bytes,
        "errors": counted_if_any(errors.collect()),
        "latency_p50_seconds": p50,
        "latency_p99_seconds": p99,
        "last_error": last_error,
        "last_error_seconds_ago": seconds(ago),
    })
}

fn source(source: &source::Shown, received_bytes: u64) -> Value {
    let [kind, topic, group] = source.config.origin();
    let snapshot = source.status.snapshot();
    let state = match (snapshot.partitions.is_empty(), snapshot.paused) {
        (true, _) => "waiting",
        (false, true) => "paused",
        (false, false) => "reading",
    };
    json!({
        "name": source.config.name,
        "type": kind,
        "topic": topic,
        "group": group,
        "state": state,
        "partitions": snapshot.partitions,
        "received_bytes": received_bytes,
        "last_error": snapshot.last_error,
    })
}
