//! Reads what each relay says about itself in `/status`: its verdict, so that doctor's is never
//! better than that of the status page, and its host, its start and its addresses, which show that
//! two names lead to the same process.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::counts::{Clock, Counts};
use super::judge::{ALL_KEPT_BACK, Cause, Findings, Kind};
use super::sample::Sampled;
use crate::ask::Target;
use crate::status::verdict::{Finding, State};
use crate::status::{Status, verdict};

/// The time limit for the state of one relay.
const LIMIT: Duration = Duration::from_secs(20);

/// A relay's own state, or the reason why it could not be read.
type Own = Result<Status, String>;

/// Asks the relays for their state, and adds what they say. Leaves out all but one of the relays,
/// and of the kube-apiservers, that are the same process. `relays` has each relay with the path of
/// its metrics.
pub async fn add(mut findings: Findings, relays: &[(Target, String)]) -> Findings {
    let is_read =
        |source: &str| findings.relays.iter().any(|it| it.source == source && it.fault.is_none());
    let read = relays.iter().filter(|(target, _)| is_read(&target.to_string()));
    let states = join_all(read.map(|(target, path)| async move {
        (target.to_string(), ask(target, path.trim_end_matches("metrics")).await)
    }));
    let states = states.await;
    let own = |source: &str| {
        let state = states.iter().find(|(name, _)| name == source);
        state.map(|(_, own)| own)
    };
    let is_same = |a: &Sampled<_>, b: &Sampled<_>| match (own(&a.source), own(&b.source)) {
        (Some(Ok(a)), Some(Ok(b))) => is_same_relay(a, b),
        _ => has_same_numbers(a, b),
    };
    once("relay", &mut findings.relays, is_same, &mut findings.own);
    once("kube-apiserver", &mut findings.apiservers, has_same_numbers, &mut findings.own);
    for relay in findings.relays.iter().filter(|it| it.fault.is_none()) {
        match own(&relay.source) {
            Some(Ok(status)) => causes(&relay.source, status, &mut findings.own),
            Some(Err(fault)) => {
                let what = format!("what the relay says about itself is unknown: {fault}");
                let advice = "Make sure that doctor can read /status beside /metrics";
                let place = format!("relay {}", relay.source);
                findings.own.push(Cause::new(Kind::SoFar, place, what, advice));
            }
            None => {}
        }
    }
    findings
}

async fn ask(target: &Target, base: &str) -> Own {
    let path = format!("{base}status");
    let late = || format!("{target}{path}: no complete answer within {} s", LIMIT.as_secs());
    let body = timeout(LIMIT, target.get_text(&path)).await.map_err(|_| late())?;
    let body = body.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| format!("{target}{path}: {error}"))
}

/// Returns `true` if two states are of the same process. Two processes on one host do not listen on
/// the same address.
fn is_same_relay(a: &Status, b: &Status) -> bool {
    let of = |it: &Status| {
        let listeners = it.listeners.iter().map(|it| it.address.clone()).collect::<Vec<_>>();
        (it.process.host.clone(), it.process.start_time_seconds.to_bits(), listeners)
    };
    of(a) == of(b)
}

/// Returns `true` if two processes have the same start, and all numbers are equal. Numbers that
/// move between two requests show nothing.
fn has_same_numbers<C: Counts + PartialEq>(a: &Sampled<C>, b: &Sampled<C>) -> bool {
    let without_clock = |it: &Sampled<C>| {
        let mut counts = it.counts.clone()?;
        *counts.clock() = Clock::default();
        Some(counts)
    };
    let (a, b) = (without_clock(a), without_clock(b));
    a.is_some() && a == b
}

/// Keeps only one of the processes that are the same, and says which names are left out.
fn once<C>(
    what: &str,
    all: &mut Vec<Sampled<C>>,
    is_same: impl Fn(&Sampled<C>, &Sampled<C>) -> bool,
    causes: &mut Vec<Cause>,
) {
    let mut kept: Vec<Sampled<C>> = Vec::new();
    for sampled in all.drain(..) {
        let is_read = sampled.fault.is_none();
        match kept.iter().find(|it| is_read && it.fault.is_none() && is_same(it, &sampled)) {
            Some(first) => causes.push(Cause::new(
                Kind::Warning,
                format!("{what} {}", sampled.source),
                format!("is the same process as {}, and counts once", first.source),
                "Name each process once, and make sure that none is missing",
            )),
            None => kept.push(sampled),
        }
    }
    *all = kept;
}

/// Adds the findings of a relay's own verdict.
fn causes(source: &str, status: &Status, causes: &mut Vec<Cause>) {
    for output in status.outputs.iter().filter(|it| verdict::is_dropping_all(it)) {
        let place = format!("output {} of {source}", output.name);
        let what = "its filter has kept back every event for minutes";
        causes.push(Cause::new(Kind::Unknown, place, what, ALL_KEPT_BACK));
    }
    let findings = status.verdict.iter().flat_map(|verdict| &verdict.findings);
    for finding in findings.filter(|it| it.state >= State::Warn) {
        let advice = finding.advice.clone().unwrap_or_default();
        // doctor counts the losses itself.
        if advice.contains("KubeAuditForwarderEventsLost") {
            continue;
        }
        let place = match finding.about.starts_with("output ") {
            true => format!("{} of {source}", finding.about),
            false => format!("relay {source}"),
        };
        let text = finding.text.trim_end_matches('.');
        let what = format!("{source} says of itself: {text}");
        causes.push(Cause::new(kind(finding, status), place, what, advice));
    }
}

/// Returns the weight of a finding. While events wait for a consumer, or senders for room in the
/// queue, nothing is lost so far.
fn kind(finding: &Finding, status: &Status) -> Kind {
    let waits = finding.about.starts_with("output ")
        || finding.about == "queue" && status.queue.fault.is_none();
    match finding.state {
        State::Bad if !waits => Kind::Unknown,
        State::Bad | State::Warn => Kind::SoFar,
        State::Good | State::Note => Kind::Ok,
    }
}
