//! Compares the events that the kube-apiservers have sent with those that the relays have received:
//! the totals since the processes started, and the increases between the two samples.
//!
//! The totals can be compared only if all processes started together. The increases do not depend
//! on the starts, but kube-apiserver holds events back: those of the batch that it collects, and
//! those of the batches that it sends again.

use super::address::Address;
use super::attempts;
use super::counts::{ApiserverCounts, ByLabel, Relay, total};
use super::sample::Sampled;
use telemetry::Rejection;
use telemetry::status::thresholds::{PATIENCE_MAX, PATIENCE_WITH_RETRY_AFTER};

/// The maximum number of seconds between the first and the last start of processes whose totals are
/// compared.
pub const STARTS_APART_MAX: f64 = 60.0;

/// The maximum number of events in a batch: kube-apiserver's default for
/// `--audit-webhook-batch-max-size`.
pub const BATCH_MAX: u64 = 400;

/// The maximum time in seconds for which kube-apiserver collects a batch: its default for
/// `--audit-webhook-batch-max-wait`.
const BATCH_WAIT: f64 = 30.0;

/// The maximum number of events that wait for a batch: kube-apiserver's default for
/// `--audit-webhook-batch-buffer-size`.
const BUFFER_MAX: u64 = 10_000;

/// Returns `true` if a relay gives this reason only for the refusal of a batch.
pub fn is_of_batch(reason: &str) -> bool {
    Rejection::named(reason).is_some_and(Rejection::is_of_batch)
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// Nothing was compared, for this reason.
    Not(String),
    /// The counts show no difference. Events from other senders may hide missing ones.
    Equal,
    /// The relays have received this many events more than a saved file counts, because the file is
    /// older. The surplus may hide a loss.
    More(u64),
    /// This many events have not arrived, of this many generated ones. kube-apiserver may still
    /// collect all of them for its next batches.
    Collected(u64, u64),
    /// This many events have arrived that were not generated in the interval. kube-apiserver may
    /// have held all of them before the interval; otherwise they come from senders that were not
    /// asked.
    Others(u64),
    /// This many events have not arrived. kube-apiserver may still hold all of them, because
    /// attempts to send them have failed.
    Held(u64),
    /// This many events were generated, but have neither arrived nor been counted as lost.
    Missing(u64),
    /// This many events have arrived that were not generated.
    Surplus(u64),
}

/// The newest numbers of every kube-apiserver and every relay.
type Known<'f> = (Vec<&'f ApiserverCounts>, Vec<&'f Relay>);

/// Returns the newest numbers of all processes, or the reason why they can't be compared.
fn known<'f>(
    apiservers: &'f [Sampled<ApiserverCounts>],
    relays: &'f [Sampled<Relay>],
) -> Result<Known<'f>, String> {
    if apiservers.is_empty() {
        return Err("kube-apiserver is unknown".to_owned());
    }
    if relays.is_empty() {
        return Err("there is no relay to ask".to_owned());
    }
    let apiserver = |it: &Sampled<ApiserverCounts>| format!("kube-apiserver {}", it.source);
    let relay = |it: &Sampled<Relay>| format!("relay {}", it.source);
    let unread = apiservers.iter().filter(|it| it.fault.is_some()).map(apiserver);
    let changed = relays.iter().filter(|it| it.fault.is_some() || is_restarted(it)).map(relay);
    let unread: Vec<String> = unread.chain(changed).collect();
    if !unread.is_empty() {
        return Err(format!("not everything could be read: {}", unread.join(", ")));
    }
    let apiservers: Vec<_> = apiservers.iter().filter_map(|it| it.counts.as_ref()).collect();
    let relays: Vec<_> = relays.iter().filter_map(|it| it.counts.as_ref()).collect();
    if apiservers.iter().any(|it| it.lost_if_known().is_none()) {
        return Err("a number of lost events is unknown".to_owned());
    }
    match apiservers.iter().all(|it| it.generated.is_some()) {
        true => Ok((apiservers, relays)),
        false => Err("a number of events is unknown".to_owned()),
    }
}

/// Compares only the kube-apiservers that could be read. The events of an unread kube-apiserver can
/// hide a loss but not cause one, so missing events are a valid result. Any other result becomes
/// [`Comparison::Not`] with the reason `why`.
fn of_the_read(
    apiservers: &[Sampled<ApiserverCounts>],
    why: String,
    compare: impl Fn(&[Sampled<ApiserverCounts>]) -> Comparison,
) -> Comparison {
    let read = apiservers.iter().filter(|it| it.fault.is_none()).cloned();
    let read: Vec<Sampled<ApiserverCounts>> = read.collect();
    if read.is_empty() || read.len() == apiservers.len() {
        return Comparison::Not(why);
    }
    let compared = compare(&read);
    if matches!(compared, Comparison::Missing(_)) { compared } else { Comparison::Not(why) }
}

/// Returns the first samples of all processes. `None` if a process has only one sample.
fn before<C>(sampled: &[Sampled<C>]) -> Option<Vec<&C>> {
    sampled.iter().map(|it| it.before.as_ref()).collect()
}

fn generated(apiservers: &[&ApiserverCounts]) -> u64 {
    total(apiservers.iter().filter_map(|it| it.generated))
}

fn accepted(relays: &[&Relay]) -> u64 {
    total(relays.iter().map(|it| it.accepted()))
}

fn lost(apiservers: &[&ApiserverCounts]) -> u64 {
    total(apiservers.iter().map(|it| it.lost()))
}

/// Returns `true` if the totals of these processes count from about the same time. A process
/// without a start time is compared too, so that a difference is at least reported as unexplained.
fn started_together(apiservers: &[&ApiserverCounts], relays: &[&Relay]) -> bool {
    let starts = apiservers.iter().filter_map(|it| Some(it.clock.here(it.started?)));
    let of_relay = |it: &&Relay| it.clock.here(it.status.process.start_time_seconds);
    let starts: Vec<f64> = starts.chain(relays.iter().map(of_relay)).collect();
    let first = starts.iter().copied().fold(f64::INFINITY, f64::min);
    let last = starts.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    last - first <= STARTS_APART_MAX
}

/// Compares the totals. Because events may be on their way, the samples are compared crosswise. All
/// events that were generated before the first sample must have arrived by the second one. All
/// events that had arrived by the first sample must have been generated by that time. A file has
/// only one sample, at an unknown time. Events that the relays received after it are not a surplus,
/// but may hide that earlier events are missing.
pub fn totals(apiservers: &[Sampled<ApiserverCounts>], relays: &[Sampled<Relay>]) -> Comparison {
    let (of_apiservers, of_relays) = match known(apiservers, relays) {
        Ok(known) => known,
        Err(why) => return of_the_read(apiservers, why, |read| totals(read, relays)),
    };
    if !started_together(&of_apiservers, &of_relays) {
        return Comparison::Not("the processes started more than 60 s apart".to_owned());
    }
    let earlier = apiservers.iter().filter_map(|it| it.before.as_ref().or(it.counts.as_ref()));
    let earlier: Vec<&ApiserverCounts> = earlier.collect();
    let least = generated(&earlier).saturating_sub(lost(&of_apiservers));
    let received = accepted(&of_relays);
    if received < least {
        return Comparison::Missing(least - received);
    }
    let most = generated(&earlier).saturating_sub(lost(&earlier));
    if before(apiservers).is_none() {
        return match received.saturating_sub(most) {
            0 => Comparison::Equal,
            more => Comparison::More(more),
        };
    }
    let early = before(relays).map_or(0, |relays| accepted(&relays));
    match early.saturating_sub(most) {
        0 => Comparison::Equal,
        surplus => Comparison::Surplus(surplus),
    }
}

/// Returns an upper bound of the events that a kube-apiserver generated in the `seconds` before the
/// second sample: the mean plus four times the square root of the mean. `None` if the interval is
/// not longer than `seconds`.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bound needs no more digits, and is not negative"
)]
fn generated_within(seconds: f64, apiserver: &Sampled<ApiserverCounts>) -> Option<u64> {
    let elapsed = apiserver.elapsed.filter(|elapsed| *elapsed > seconds)?;
    let sent = apiserver.increase(|it| it.generated).unwrap_or_default();
    let mean = sent as f64 * seconds / elapsed;
    Some((mean + 4.0 * mean.sqrt()).ceil() as u64)
}

/// Returns the maximum number of events that a kube-apiserver may be collecting for its next batch:
/// a whole batch or, if that is less, the events of 30 s.
fn collects(apiserver: &Sampled<ApiserverCounts>) -> u64 {
    generated_within(BATCH_WAIT, apiserver).map_or(BATCH_MAX, |events| events.min(BATCH_MAX))
}

/// Returns the maximum number of events that kube-apiserver may hold because attempts have failed:
/// a batch for each failed attempt, but no event for longer than kube-apiserver tries. If its
/// attempts are unknown, the batches that the relays have refused count instead.
fn retried(
    apiservers: &[Sampled<ApiserverCounts>],
    relays: &[Sampled<Relay>],
    webhook: Option<&Address>,
) -> u64 {
    let failed = apiservers.iter().map(|it| attempts::failed_in_interval(it, webhook));
    let failed: Vec<Option<u64>> = failed.collect();
    let of_relay = |it: &Sampled<Relay>| {
        let mut rejected = rejected_in_interval(it);
        rejected.retain(|reason, _| is_of_batch(reason));
        total(rejected.into_values())
    };
    let known = total(failed.iter().flatten().copied());
    let attempts = match failed.iter().all(Option::is_some) {
        true => known,
        false => known.max(total(relays.iter().map(of_relay))),
    };
    let mut lately = relays.iter().flat_map(rejected_in_interval);
    // The response to such a batch has `Retry-After`, so kube-apiserver sends the batch again.
    let comes_back = |reason: &str| {
        is_of_batch(reason) && !Rejection::named(reason).is_some_and(Rejection::is_for_good)
    };
    let has_retry_after = lately.any(|(reason, count)| count > 0 && comes_back(&reason));
    let patience = if has_retry_after { PATIENCE_WITH_RETRY_AFTER } else { PATIENCE_MAX };
    let young = apiservers.iter().map(|it| generated_within(BATCH_WAIT + patience, it));
    let young = young.collect::<Option<Vec<u64>>>().map_or(u64::MAX, total);
    attempts.saturating_mul(BATCH_MAX).min(young)
}

/// Compares the increases between the two samples. The samples of the relays enclose those of the
/// kube-apiservers. Each kube-apiserver may still collect one batch, and may hold a batch for each
/// failed attempt. If more events arrive than were generated, kube-apiserver held them before the
/// interval, or they come from other senders.
pub fn increases(
    apiservers: &[Sampled<ApiserverCounts>],
    relays: &[Sampled<Relay>],
    webhook: Option<&Address>,
) -> Comparison {
    let (of_apiservers, of_relays) = match known(apiservers, relays) {
        Ok(known) => known,
        Err(why) => {
            return of_the_read(apiservers, why, |read| increases(read, relays, webhook));
        }
    };
    let (Some(first), Some(relays_first)) = (before(apiservers), before(relays)) else {
        return Comparison::Not("there is only one sample, so there is no interval".to_owned());
    };
    if first.iter().any(|it| it.generated.is_none()) {
        return Comparison::Not("a number of events is unknown".to_owned());
    }
    let sent = generated(&of_apiservers).saturating_sub(generated(&first));
    let arrived = accepted(&of_relays).saturating_sub(accepted(&relays_first));
    let given_up = lost(&of_apiservers).saturating_sub(lost(&first));
    let missing = sent.saturating_sub(total([given_up, arrived]));
    if missing == 0 {
        let batches = BATCH_MAX.saturating_mul(apiservers.len() as u64);
        let more = arrived.saturating_sub(sent);
        // After a common start, no more events can have arrived than were generated.
        let is_held = started_together(&of_apiservers, &of_relays)
            && accepted(&of_relays) <= generated(&of_apiservers);
        return match more.saturating_sub(batches) {
            0 => Comparison::Equal,
            _ if is_held => Comparison::Equal,
            beyond if beyond <= BUFFER_MAX => Comparison::Others(more),
            _ => Comparison::Surplus(more),
        };
    }
    let collected = total(apiservers.iter().map(collects));
    let Some(beyond) = missing.checked_sub(collected).filter(|beyond| *beyond > 0) else {
        return Comparison::Collected(missing, sent);
    };
    match beyond <= retried(apiservers, relays, webhook) {
        true => Comparison::Held(missing),
        false => Comparison::Missing(missing),
    }
}

/// Returns `true` if another process answered in the second sample: the start time has changed, or
/// the count of accepted events has decreased.
pub fn is_restarted(relay: &Sampled<Relay>) -> bool {
    let Some((before, now)) = relay.before.as_ref().zip(relay.counts.as_ref()) else {
        return false;
    };
    let start = |it: &Relay| it.status.process.start_time_seconds.to_bits();
    start(before) != start(now) || before.accepted() > now.accepted()
}

/// Returns the requests that a relay has rejected since its start, by reason. Health checks are
/// left out.
pub fn rejected(relay: &Sampled<Relay>) -> ByLabel {
    let counts = relay.counts.as_ref();
    let mut rejected =
        counts.map(|it| it.status.intake.rejected_requests.clone()).unwrap_or_default();
    rejected.remove(Rejection::Probe.name());
    rejected
}

/// Returns the requests that a relay has rejected between the two samples, by reason.
pub fn rejected_in_interval(relay: &Sampled<Relay>) -> ByLabel {
    match relay.before.as_ref().filter(|_| !is_restarted(relay)) {
        Some(before) => {
            attempts::increases(&rejected(relay), Some(&before.status.intake.rejected_requests))
        }
        None => ByLabel::new(),
    }
}
