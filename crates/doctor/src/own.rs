//! Reads what each relay reports about itself in `/status`: its verdict, and its host, start and
//! addresses, which show that two names lead to the same process.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::counts::{Clock, Counts};
use super::judge::{Cause, Findings, Kind, Part};
use super::sample::Sampled;
use client::ask::Target;
use telemetry::status::Status;

const LIMIT: Duration = Duration::from_secs(20);

/// Adds the state of each relay to the findings. If several relays, or several kube-apiservers, are
/// the same process, keeps only one of them. `relays` has each relay with the path of its metrics.
pub async fn add(mut findings: Findings, relays: &[(Target, String)]) -> Findings {
    let is_read =
        |source: &str| findings.relays.iter().any(|it| it.source == source && it.fault.is_none());
    let read = relays.iter().filter(|(target, _)| is_read(&target.to_string()));
    let states = join_all(read.map(|(target, path)| async move {
        (target.to_string(), ask(target, path.trim_end_matches("metrics")).await)
    }));
    let own: BTreeMap<_, _> = states.await.into_iter().collect();
    let is_same = |a: &Sampled<_>, b: &Sampled<_>| match (own.get(&a.source), own.get(&b.source)) {
        (Some(Ok(a)), Some(Ok(b))) => is_same_relay(a, b),
        _ => has_same_numbers(a, b),
    };
    once("relay", Part::Relay, &mut findings.relays, is_same, &mut findings.checks);
    let apiservers = &mut findings.apiservers;
    once("kube-apiserver", Part::Apiserver, apiservers, has_same_numbers, &mut findings.checks);
    Findings { own, ..findings }
}

/// Returns the state of a relay. The error says why the state or its verdict is not known.
async fn ask(target: &Target, base: &str) -> Result<Status, String> {
    let path = format!("{base}status");
    let late = || format!("{target}{path}: no complete response within {} s", LIMIT.as_secs());
    let body = timeout(LIMIT, target.get_text(&path)).await.map_err(|_| late())?;
    let body = body.map_err(|error| error.to_string())?;
    let status: Result<Status, _> = serde_json::from_slice(&body);
    let status = status.map_err(|error| format!("{target}{path}: {error}"))?;
    match status.verdict {
        Some(_) => Ok(status),
        None => Err(format!("{target}{path} has no verdict, because the relay is too old")),
    }
}

/// Returns `true` if two states are of the same process. Two processes on one host can't listen on
/// the same address.
fn is_same_relay(a: &Status, b: &Status) -> bool {
    let of = |it: &Status| {
        let listeners = it.listeners.iter().map(|it| it.address.clone()).collect::<Vec<_>>();
        (it.process.host.clone(), it.process.start_time_seconds.to_bits(), listeners)
    };
    of(a) == of(b)
}

/// Returns `true` if two processes have the same start and all their numbers are equal. `false`
/// proves nothing, because numbers may change between two requests.
fn has_same_numbers<C: Counts + PartialEq>(a: &Sampled<C>, b: &Sampled<C>) -> bool {
    let without_clock = |it: &Sampled<C>| {
        let mut counts = it.counts.clone()?;
        *counts.clock() = Clock::default();
        Some(counts)
    };
    let (a, b) = (without_clock(a), without_clock(b));
    a.is_some() && a == b
}

/// Keeps one of the entries about the same process, and reports the names of the others.
fn once<C>(
    what: &str,
    part: Part,
    all: &mut Vec<Sampled<C>>,
    is_same: impl Fn(&Sampled<C>, &Sampled<C>) -> bool,
    causes: &mut Vec<Cause>,
) {
    let mut kept: Vec<Sampled<C>> = Vec::new();
    for sampled in all.drain(..) {
        let is_read = sampled.fault.is_none();
        match kept.iter().find(|it| is_read && it.fault.is_none() && is_same(it, &sampled)) {
            Some(first) => {
                let place = format!("{what} {}", sampled.source);
                let what = format!("is the same process as {}, and counts once", first.source);
                let advice = "Name each process once, and make sure that none is missing";
                causes.push(Cause::new(Kind::Warning, place, what, advice).about(part));
            }
            None => kept.push(sampled),
        }
    }
    *all = kept;
}
