//! Passes on the relays' own findings in `/status` word for word, so that doctor's verdict is never
//! better than theirs.
//!
//! A relay can't know whether senders that it has refused for too long have given events up:
//! another replica may have accepted them. doctor asks all relays and kube-apiserver, so it can.

use super::{Cause, Findings, Kind, Part, events, fails, grows, is_asked};
use crate::compare::{is_of_batch, rejected, rejected_in_interval};
use crate::counts::{ApiserverCounts, ByLabel, Relay, listed, most, total};
use crate::remedy::of_reason;
use crate::sample::Sampled;
use base::words::escape;
use telemetry::status::Status;
use telemetry::status::thresholds::ATTEMPTS;
use telemetry::status::verdict::{Finding, Kind as Finds, SENDERS, State, Verdict};

/// The maximum number of characters of a relay's text. The relay's own texts are shorter.
const CHARS_MAX: usize = 1000;

/// The minimum time in seconds for a rate of events that is used as an estimate.
const RATE_TIME_MIN: f64 = 60.0;

/// Returns the newest state of a relay. `None` if the relay could not be read at the last attempt.
fn status(relay: &Sampled<Relay>) -> Option<&Status> {
    relay.counts.as_ref().filter(|_| relay.fault.is_none()).map(|it| &it.status)
}

pub(super) fn of(status: &Status) -> impl Iterator<Item = &Finding> {
    status.verdict.iter().flat_map(Verdict::all)
}

/// Returns `true` if senders were refused for longer than they try, according to the relay.
fn is_given_up(finding: &Finding) -> bool {
    finding.about == SENDERS && finding.state == State::Bad
}

/// Returns the relay's own advice about its losses.
pub(super) fn advice_about_losses(status: &Status) -> String {
    let finding = of(status).find(|it| it.kind == Finds::EventsLost);
    finding.map_or_else(|| "See the runbook KubeAuditForwarderEventsLost".to_owned(), advice)
}

/// Returns a relay's text without its full stop, safe for a terminal.
fn said(text: &str) -> String {
    escape::masked(text.trim_end_matches('.'), CHARS_MAX)
}

fn advice(finding: &Finding) -> String {
    said(&finding.advice_and_runbook(None).unwrap_or_default())
}

/// Reports the findings of a relay's own verdict, each with what follows from it, except its
/// losses, which doctor has counted. If `is_given_up_reported` is set, the relay's finding about
/// events that senders have given up is left out too.
pub(super) fn causes(relay: &Sampled<Relay>, is_given_up_reported: bool, causes: &mut Vec<Cause>) {
    let Some(status) = status(relay) else { return };
    let (source, place) = (&relay.source, format!("relay {}", relay.source));
    let has_lost = |it: &Relay| it.lost().values().any(|lost| *lost > 0);
    let is_lost = relay.before.iter().chain(&relay.counts).any(has_lost);
    let is_told = |it: &&Finding| {
        let is_counted = it.kind == Finds::EventsLost && is_lost || it.kind == Finds::EarlierLosses;
        is_counted || is_given_up(it) && is_given_up_reported
    };
    let first = status.verdict.iter().flat_map(|verdict| &verdict.findings);
    let first = first.flat_map(|it| match is_told(&it) {
        true => it.consequences.iter().collect(),
        false => vec![it],
    });
    for finding in first.filter(|it| it.state >= State::Warn && !is_told(it)) {
        let output = finding.output(status);
        let place = match output {
            Some(_) => format!("{} of {source}", said(&finding.about)),
            None => place.clone(),
        };
        let waits = output.map_or(0, |output| output.backlog.backlog_events);
        let mut what = format!("{source} reports: {}", said(&finding.text));
        if waits > 0 {
            what.push_str(&format!(" ({} waiting)", events(waits)));
        }
        let follows = || finding.consequences.iter().filter(|it| !is_told(it));
        let texts: Vec<_> = follows().map(|it| said(&it.text)).collect();
        if !texts.is_empty() {
            what.push_str(&format!("; because of that, it reports: {}", texts.join("; ")));
        }
        let kind = follows().map(|it| kind(it, status)).fold(kind(finding, status), Ord::max);
        causes.push(Cause::new(kind, place.clone(), what, advice(finding)));
    }
}

/// Returns the severity of a finding. While events wait for a consumer, or senders for room in the
/// queue, nothing is lost so far. A filter that drops everything may be a mistake.
fn kind(finding: &Finding, status: &Status) -> Kind {
    let is_of_output = finding.about.starts_with("output ");
    let waits = is_of_output || finding.about == "queue" && status.queue.fault.is_none();
    match finding.state {
        State::Bad if !waits => Kind::Unknown,
        State::Bad | State::Warn if finding.kind == Finds::AllFiltered => Kind::Unknown,
        State::Bad | State::Warn => Kind::SoFar,
        State::Good | State::Note => Kind::Ok,
    }
}

/// Returns the seconds for which no relay has accepted an event. `None` if they are unknown for one
/// relay. A relay without accepted events counts from its start, because an earlier process may
/// have accepted some before.
pub(super) fn quiet(findings: &Findings) -> Option<f64> {
    let quiet = |relay: &Sampled<Relay>| {
        // Nobody knows what a relay has accepted since its state was saved.
        relay.counts.as_ref()?.clock.now?;
        let status = status(relay)?;
        let last = status.intake.last_event_seconds_ago;
        Some(last.unwrap_or(status.process.uptime_seconds as f64))
    };
    let each = findings.relays.iter().map(quiet).collect::<Option<Vec<f64>>>()?;
    each.into_iter().reduce(f64::min)
}

/// Returns the cause that senders have given events up, with an estimate of their number. `None`
/// without proof.
///
/// The proof has three parts. A relay reports that it has refused everything for longer than
/// senders try. No other relay has accepted anything in that time. In the interval, batches were
/// refused, or attempts of kube-apiserver failed. A kube-apiserver that was asked counts its losses
/// itself. If it counts none, it may still be trying, so its counter is believed for twice the time
/// that it tries.
pub(super) fn given_up(findings: &Findings) -> Option<Cause> {
    let is_asked = is_asked(findings);
    // An earlier loss does not belong to this refusal.
    let counts_it = |it: &Sampled<ApiserverCounts>| {
        let before = it.before.as_ref().map_or(0, ApiserverCounts::lost);
        it.counts.as_ref().is_some_and(|now| now.lost() > before)
    };
    if findings.apiservers.iter().any(counts_it) || is_asked && !grows(findings) {
        return None;
    }
    let quiet = quiet(findings)?;
    let refusal = |relay: &Sampled<Relay>| {
        let status = status(relay)?;
        let finding = of(status).find(|it| is_given_up(it))?;
        let (seconds, patience) = status.intake.refusals.shut()?;
        let believed = if is_asked { 2.0 * patience } else { patience };
        let beyond = Some(seconds.min(quiet)).filter(|seconds| *seconds > believed)? - patience;
        let reasons = proof(relay, is_asked && fails(findings))?;
        let (source, reasons, advice) =
            (&relay.source, listed(&reasons), of_reason(most(&reasons)));
        let text = said(&finding.text);
        let what = format!("estimated, refused ({reasons}): {source} reports: {text}");
        let cause = Cause::new(Kind::Lost, format!("relay {source}"), what, advice);
        Some((beyond, cause.about(Part::Relay)))
    };
    // Two relays may have refused the same events.
    let refusals = findings.relays.iter().filter_map(refusal);
    let (beyond, cause) = refusals.max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(Cause { lost: estimate(beyond, findings), is_estimate: true, ..cause })
}

/// Returns the refusals of the interval, by reason, if they prove that a sender was refused. At
/// least [`ATTEMPTS`] batches must have been refused since the start, and some of them in the
/// interval. If `fails` is set, attempts of a kube-apiserver failed in the interval, and requests
/// that may not have been batches count too.
fn proof(relay: &Sampled<Relay>, fails: bool) -> Option<ByLabel> {
    let mut lately = rejected_in_interval(relay);
    lately.retain(|reason, count| *count > 0 && (is_of_batch(reason) || fails));
    let mut all = rejected(relay);
    all.retain(|reason, _| is_of_batch(reason) || fails);
    (!lately.is_empty() && total(all.into_values()) >= ATTEMPTS).then_some(lately)
}

/// Estimates the number of events that were given up in this time. The rate is that at which
/// kube-apiserver generates events now or, if that is 0 or unknown, that of the accepted events.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate needs no more digits, and is not negative"
)]
fn estimate(seconds: f64, findings: &Findings) -> u64 {
    let rate_of = |it: &Sampled<ApiserverCounts>| {
        let more = it.increase(|counts| counts.generated)?;
        Some(more as f64 / it.elapsed.filter(|elapsed| *elapsed > 0.0)?)
    };
    let now: f64 = findings.apiservers.iter().filter_map(rate_of).sum();
    let before = findings.relays.iter().filter_map(status).filter_map(|status| {
        let time = status.process.uptime_seconds as f64 - status.intake.last_event_seconds_ago?;
        Some(status.intake.accepted_events as f64 / time.max(RATE_TIME_MIN))
    });
    let rate = if now > 0.0 { now } else { before.sum() };
    ((seconds * rate) as u64).max(1)
}
