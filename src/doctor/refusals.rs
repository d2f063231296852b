//! Judges by the relays alone whether senders have given events up, because every request was
//! refused for longer than kube-apiserver tries.
//!
//! A relay reports since when it has refused every batch, and how many. An older version reports
//! only when it last accepted a batch. Then the refusals count only if they are as many as a sender
//! that tries all the time would cause.
//!
//! Only some reasons show that a batch was refused. A request without a token or with a wrong path
//! may be a health check or a scan, so its refusal alone accuses nobody.

use super::compare::{
    PATIENCE, comes_back, is_of_batch, is_restarted, rejected, rejected_in_interval,
};
use super::counts::{ByLabel, RelayCounts, listed, total};
use super::sample::Sampled;
use crate::status::thresholds::PATIENCE_WITH_RETRY_AFTER;

/// The reasons that never count as the refusal of a batch. kube-apiserver's requests have the right
/// method and media type, and a relay that shuts down ends soon.
const NO_BATCH: [&str; 3] = ["method", "media_type", "shutting_down"];

/// The minimum number of attempts that kube-apiserver makes for a batch, including the first one.
pub const ATTEMPTS: u64 = 5;

/// The maximum number of attempts that kube-apiserver makes for a batch while the answers have
/// `Retry-After`.
const ATTEMPTS_MAX: u64 = 50;

/// A time in which a relay has refused every request.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal<'f> {
    /// The relay.
    pub source: &'f str,
    /// The seconds for which the relay has accepted nothing and refused requests.
    pub seconds: f64,
    /// The seconds since any of the relays last accepted something; `None` if that is not known for
    /// one of them.
    pub seconds_at_all: Option<f64>,
    /// The time in seconds after which kube-apiserver gives a batch up.
    pub patience: f64,
    /// The refused requests by reason: those of the interval, or else those since the start.
    pub reasons: ByLabel,
    /// The minimum number of batches that were given up.
    pub batches: u64,
    /// `true` if the requests certainly had batches.
    pub are_batches: bool,
    /// `true` if requests were refused in the interval.
    pub goes_on: bool,
}

impl Refusal<'_> {
    /// Returns the reasons as text.
    pub fn reasons(&self) -> String {
        listed(&self.reasons)
    }

    /// Returns the most frequent reason.
    pub fn reason(&self) -> &str {
        self.reasons.iter().max_by_key(|(_, count)| **count).map_or("", |(reason, _)| reason)
    }
}

/// Returns a refusal for each relay that refuses everything now.
pub fn find(relays: &[Sampled<RelayCounts>]) -> Vec<Refusal<'_>> {
    let last = last_accepted(relays);
    relays.iter().filter_map(|relay| of_one(relay, last)).collect()
}

/// Returns the seconds since any of the relays last accepted a batch; `None` if that is not known
/// for one of them. For a relay that has accepted none, its start counts; if it reports no time of
/// a last batch, the seconds are infinite.
fn last_accepted(relays: &[Sampled<RelayCounts>]) -> Option<f64> {
    let last = |relay: &Sampled<RelayCounts>| {
        let counts = relay.counts.as_ref().filter(|_| relay.fault.is_none())?;
        let has_grown = relay.before.as_ref().is_none_or(|it| it.accepted < counts.accepted);
        match counts.last_event {
            _ if is_restarted(relay) => None,
            _ if has_grown && counts.accepted > Some(0) && relay.before.is_some() => Some(0.0),
            // An earlier process of the relay may have accepted batches until this one started.
            Some(at) => counts.clock.age(at.max(counts.started.unwrap_or_default())),
            None => Some(f64::INFINITY).filter(|_| counts.accepted == Some(0)),
        }
    };
    relays.iter().map(last).collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::min)
}

#[allow(clippy::cast_precision_loss, reason = "a comparison with a time needs no more digits")]
fn of_one(relay: &Sampled<RelayCounts>, last: Option<f64>) -> Option<Refusal<'_>> {
    let counts = relay.counts.as_ref().filter(|_| relay.fault.is_none() && !is_restarted(relay))?;
    let of = |mut rejected: ByLabel, is_wanted: &dyn Fn(&str) -> bool| {
        rejected.retain(|reason, count| *count > 0 && is_wanted(reason));
        rejected
    };
    // Refusals of batches come before those of requests that may have had none.
    let may_be = |reason: &str| !NO_BATCH.contains(&reason);
    let are_batches = !of(rejected_in_interval(relay), &is_of_batch).is_empty()
        || of(rejected_in_interval(relay), &may_be).is_empty();
    let is_wanted: &dyn Fn(&str) -> bool = if are_batches { &is_of_batch } else { &may_be };
    let (all, lately) =
        (of(rejected(relay), is_wanted), of(rejected_in_interval(relay), is_wanted));
    let reasons = if lately.is_empty() { all.clone() } else { lately.clone() };
    // The refusals may have begun with `Retry-After`, even if those of the interval have none.
    let come_back = all.keys().any(|reason| comes_back(reason));
    let (patience, pause, attempts) = match come_back && are_batches {
        true => (PATIENCE_WITH_RETRY_AFTER, 10.0, ATTEMPTS_MAX),
        false => (PATIENCE, 45.0, ATTEMPTS),
    };
    let since = match (counts.rejected.since, counts.last_event) {
        (Some(at), _) if are_batches => Some(at).filter(|at| *at > 0.0)?,
        (_, Some(at)) => at.max(counts.started?),
        (_, None) => return None,
    };
    // Requests that were refused before `since` do not belong to this refusal.
    let counted = counts.rejected.batches.filter(|_| are_batches);
    let (seconds, requests) =
        (counts.clock.age(since)?, counted.unwrap_or_else(|| total(all.into_values())));
    // A sender that is still refused tries again after `pause` seconds at the latest, so a shorter
    // interval need not show it.
    let goes_on = !lately.is_empty();
    let may_go_on = are_batches
        && counts.rejected.since.is_some()
        && relay.elapsed.is_none_or(|elapsed| elapsed < pause);
    let are_enough = requests >= ATTEMPTS && requests as f64 * pause >= seconds;
    let is_one = if seconds > patience { are_enough } else { requests > 0 };
    let known = counted.unwrap_or_else(|| total(lately.into_values()));
    ((goes_on || may_go_on) && is_one).then(|| Refusal {
        source: &relay.source,
        seconds,
        seconds_at_all: last.map(|last| seconds.min(last)),
        patience,
        reasons,
        batches: (known / attempts).max(1),
        are_batches,
        goes_on,
    })
}
