//! Takes the load from the metrics of running relays, or of kube-apiservers.
//!
//! Two readings some time apart show what comes in now. Without an interval, and if nothing came in
//! during it, the mean since the start of the process is taken. A relay also tells the highest rate
//! of its last hour.

use std::fmt;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::Instant;

use crate::ask::Target;
use crate::doctor::counts::{ApiserverCounts, Counts as _, EVENTS, RelayCounts};
use crate::doctor::exposition::{Exposition, Reader};
use crate::telemetry;
use crate::telemetry::AcceptedMetrics;

/// The greatest number of bytes in the history of a relay. An hour with 200 outputs has some 5 MB.
const HISTORY_MAX: usize = 16 << 20;

/// The kind of process that serves the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A relay.
    Relay,
    /// A kube-apiserver.
    Apiserver,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay => "relay",
            Self::Apiserver => "kube-apiserver",
        })
    }
}

/// The numbers of one process.
#[derive(Debug, Clone, PartialEq)]
struct Counts {
    kind: Kind,
    /// The events since the start.
    events: u64,
    /// The bytes of these events; `None` if the process does not count them.
    bytes: Option<u64>,
    /// `queue.max_bytes` of a relay.
    capacity: Option<u64>,
    /// `true` if the queue is on disk.
    on_disk: bool,
    /// The start of the process, in seconds since 1970.
    started: Option<f64>,
}

/// The load of one process.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    /// The URL, without what may be secret in it.
    pub source: String,
    /// The kind of process that serves the metrics.
    pub kind: Kind,
    /// The mean rate, in events per second.
    pub events_per_second: f64,
    /// The mean size of an event in bytes; `None` if it is not known.
    pub event_bytes: Option<f64>,
    /// The highest rate of the last hour, in events per second; `None` if it is not known.
    pub peak: Option<f64>,
    /// `queue.max_bytes`; `None` if it is not known.
    pub capacity: Option<u64>,
    /// `true` if the queue is on disk.
    pub on_disk: bool,
    /// The time that the numbers are about, in words: `the last 30 s`.
    pub of: String,
}

fn wanted() -> Vec<String> {
    [RelayCounts::wanted(), ApiserverCounts::wanted()].concat()
}

/// Reads the numbers from metrics that were parsed. The error says what is missing.
fn counts(exposition: &Exposition) -> Result<Counts, String> {
    let relay = RelayCounts::of(exposition);
    let apiserver = ApiserverCounts::of(exposition);
    let (kind, events, started) = match (relay.accepted, apiserver.generated) {
        (Some(events), _) => (Kind::Relay, events, relay.started),
        (None, Some(events)) => (Kind::Apiserver, events, apiserver.started),
        (None, None) => {
            return Err(format!("has neither {} nor {EVENTS}", AcceptedMetrics::events));
        }
    };
    let (bytes, capacity) = (relay.accepted_bytes, relay.queue.capacity);
    let on_disk = relay.queue.in_memory == Some(false);
    Ok(Counts { kind, events, bytes, capacity, on_disk, started })
}

/// Reads the metrics once. The error says why there are none.
async fn read(target: &Target, path: &str) -> Result<Counts, String> {
    let mut reader = Reader::new(wanted());
    let sink = |part: &[u8]| reader.feed(part).map_err(|fault| fault.to_string());
    target.get(path, sink).await.map_err(|error| error.to_string())?;
    let exposition = reader.finish().map_err(|fault| format!("{target}{path}: {fault}"))?;
    counts(&exposition).map_err(|what| format!("{target}{path}: {what}"))
}

/// Returns the highest rate of a relay's last hour, in events per second; `None` if the relay does
/// not report it.
async fn peak(target: &Target) -> Option<f64> {
    let mut body = Vec::new();
    let sink = |part: &[u8]| {
        body.extend_from_slice(part);
        if body.len() > HISTORY_MAX { Err("too long".to_owned()) } else { Ok(()) }
    };
    let base = target.base().trim_end_matches("/metrics");
    target.get(&format!("{base}/status/history"), sink).await.ok()?;
    let history: Value = serde_json::from_slice(&body).ok()?;
    let rates = history["accepted_events_per_second"].as_array()?;
    let rates = rates.iter().filter_map(Value::as_f64).filter(|rate| rate.is_finite());
    rates.reduce(f64::max)
}

/// Returns the load between two readings of one process.
///
/// # Errors
///
/// A text that says why the readings give no rate.
fn between(before: &Counts, after: &Counts, elapsed: Duration) -> Result<Running, String> {
    if before.started != after.started || before.kind != after.kind {
        return Err("two processes have answered, or it was restarted: name each one".to_owned());
    }
    let bytes = after.bytes.zip(before.bytes).map(|(after, before)| after.saturating_sub(before));
    let in_interval = after.events.saturating_sub(before.events);
    let (events, bytes, seconds, of) = match in_interval > 0 && !elapsed.is_zero() {
        true => {
            let seconds = elapsed.as_secs_f64();
            (in_interval, bytes, seconds, format!("the last {seconds:.0} s"))
        }
        // Nothing has come in, or there was no interval.
        false => {
            let started = after.started.ok_or("does not say when it started")?;
            let seconds = (telemetry::now() - started).max(1.0);
            let time = super::plan::time(Duration::from_secs_f64(seconds));
            (after.events, after.bytes, seconds, format!("the {time} since its start"))
        }
    };
    if events == 0 {
        return Err("has counted no event yet".to_owned());
    }
    let event_bytes = bytes.map(|bytes| bytes as f64 / events as f64);
    Ok(Running {
        source: String::new(),
        kind: after.kind,
        events_per_second: events as f64 / seconds,
        event_bytes: event_bytes.filter(|bytes| *bytes >= 1.0),
        peak: None,
        capacity: after.capacity.filter(|bytes| *bytes > 0),
        on_disk: after.on_disk,
        of,
    })
}

/// Reads the load of each process: the metrics at the path of its target, twice. `waiting` is
/// called before the wait for the second reading, if there is one.
///
/// # Errors
///
/// A text that names the process and says why its load is not known.
pub async fn running(
    targets: Vec<(Target, String)>,
    interval: Duration,
    waiting: impl FnOnce(),
) -> Result<Vec<Running>, String> {
    let read_all = async || {
        let asked = targets.iter().map(|(target, path)| async move {
            read(target, path).await.map(|counts| (counts, Instant::now()))
        });
        join_all(asked).await.into_iter().collect::<Result<Vec<_>, _>>()
    };
    let before = read_all().await?;
    let after = match interval.is_zero() {
        true => before.clone(),
        false => {
            waiting();
            tokio::time::sleep(interval).await;
            read_all().await?
        }
    };
    let mut found = Vec::new();
    for ((target, _), (before, after)) in targets.iter().zip(before.iter().zip(&after)) {
        let named = |what: String| format!("{target}: {what}");
        let source = target.to_string();
        let running = between(&before.0, &after.0, after.1 - before.1).map_err(named)?;
        let peak = match running.kind {
            Kind::Relay => peak(target).await,
            Kind::Apiserver => None,
        };
        found.push(Running { source, peak, ..running });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::PREFIX;

    fn of(text: &str) -> Result<Counts, String> {
        counts(&Exposition::parse(text.as_bytes(), &wanted()).unwrap())
    }

    fn relay(events: u64, bytes: u64) -> Counts {
        of(&format!(
            "{PREFIX}event_total {events}\n{PREFIX}accepted_bytes_total {bytes}\n\
             {PREFIX}queue_capacity_bytes 268435456\nprocess_start_time_seconds 1000\n"
        ))
        .unwrap()
    }

    #[test]
    fn the_rate_is_that_between_the_readings_and_else_that_since_the_start() {
        let (before, after) = (relay(100, 1000), relay(400, 301_000));
        let running = between(&before, &after, Duration::from_secs(30)).unwrap();
        assert_eq!((running.events_per_second, running.event_bytes), (10.0, Some(1000.0)));
        assert_eq!((running.capacity, running.of.as_str()), (Some(256 << 20), "the last 30 s"));
        // Nothing came in during the interval.
        for interval in [Duration::ZERO, Duration::from_secs(30)] {
            let running = between(&after, &after, interval).unwrap();
            assert!(running.events_per_second < 0.001, "{running:?}");
            assert_eq!(running.event_bytes, Some(301_000.0 / 400.0));
            assert!(running.of.ends_with("since its start"), "{running:?}");
        }
        let none = relay(0, 0);
        assert!(between(&none, &none, Duration::ZERO).is_err());
        let restarted = Counts { started: Some(2000.0), ..after };
        assert!(between(&before, &restarted, Duration::from_secs(30)).is_err());
    }

    /// A queue on disk has no file yet if no batch has come since its first start.
    #[test]
    fn the_place_of_a_queue_is_known_before_it_has_files() {
        for (durable, on_disk) in [("1", true), ("0", false)] {
            let text = format!(
                "{PREFIX}event_total 0\n{PREFIX}spool_segments 0\n{PREFIX}queue_durable {durable}\n"
            );
            assert_eq!(of(&text).unwrap().on_disk, on_disk, "{text}");
        }
    }

    #[test]
    fn numbers_that_are_none_are_no_load() {
        for text in ["", "x 1\n", "apiserver_audit_event_total NaN\n"] {
            assert!(of(text).is_err(), "{text}");
        }
        assert_eq!(of("apiserver_audit_event_total 7\n").unwrap().kind, Kind::Apiserver);
    }
}
