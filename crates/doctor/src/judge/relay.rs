//! Judges what one relay cannot know alone: whether another process answered at its address, what
//! an earlier process may have lost, and whether a difference between its counts stays. The relay
//! itself judges the state of its outputs, its queue and its evidence.

use super::{Cause, Findings, Kind, Part, events, is_asked, own, since, time};
use crate::compare::{Comparison, STARTS_APART_MAX, is_restarted};
use crate::counts::{ApiserverCounts, QUEUE, REMOVED, Relay, listed, sums, total};
use crate::remedy::of_reason;
use crate::sample::Sampled;
use telemetry::status::Output;
use telemetry::status::thresholds::ATTEMPTS;
use telemetry::status::verdict::{Finding, Kind as Finds, State, difference};

pub(super) fn causes(relay: &Sampled<Relay>, findings: &Findings, causes: &mut Vec<Cause>) {
    let place = format!("relay {}", relay.source);
    if let Some(fault) = &relay.fault {
        let advice = fault.advice.unwrap_or(
            "Check that the relay runs, and that this is its admin.address: --relay URL or \
             --config FILE names another",
        );
        causes.push(Cause::unknown(&place, format!("unknown, {}", fault.what), advice));
    }
    let Some(counts) = &relay.counts else { return };
    if counts.clock.now.is_none() {
        let at = time(counts.status.process.time_seconds);
        let what = format!("{} was saved at {at}: what came later was not checked", relay.source);
        let advice = "Give --relay the URL of its admin address";
        causes.push(Cause::new(Kind::SoFar, &place, what, advice));
    }
    if is_restarted(relay) {
        causes.push(Cause::unknown(
            &place,
            "a different process responded the second time: the relay was restarted, or the URL \
             leads to several relays",
            "Give each relay its own --relay, and run the command again",
        ));
    }
    causes.extend(forgotten(&place, counts, findings));
    causes.extend(lost_earlier(&place, relay, counts));
    let earlier = relay.before.as_ref().map(Relay::lost).unwrap_or_default();
    for plugin in sums([&counts.lost(), &earlier]).keys() {
        causes.extend(lost(relay, plugin, counts));
    }
    let before = relay.before.as_ref().filter(|_| !is_restarted(relay));
    for output in &counts.status.outputs {
        let place = format!("output {} of {}", output.name, relay.source);
        causes.extend(all_filtered(&place, output));
        let differs = difference(&counts.status, output);
        let was = before.and_then(|it| {
            let output = it.status.outputs.iter().find(|it| it.name == output.name)?;
            difference(&it.status, output)
        });
        let is_steady = before.is_none() || was == differs;
        if let Some(differs) = differs.filter(|differs| *differs != 0 && is_steady) {
            let what = match before {
                Some(_) => format!("the relay's own counts differ by {differs}, unexplained"),
                None => format!(
                    "the relay's own counts differ by {differs} in the only sample, perhaps \
                     because it was at work"
                ),
            };
            let advice = "See the runbook KubeAuditForwarderConservationBroken";
            causes.push(Cause::unknown(&place, what, advice));
        }
    }
}

/// Reports what earlier processes of the relay have lost in the last day, and recorded. [`lost`]
/// has the losses of a process that has ended since the first sample.
fn lost_earlier(place: &str, relay: &Sampled<Relay>, counts: &Relay) -> Option<Cause> {
    let losses = &counts.status.losses;
    let at = losses.earlier_last_lost.as_ref()?;
    let ended = relay.before.as_ref().filter(|_| is_restarted(relay));
    let told = ended.map_or(0, |it| total(it.lost().into_values()));
    let lost = losses.earlier_lost_events.checked_sub(told).filter(|lost| *lost > 0)?;
    let what = format!("before its last restart, the last at {at}");
    let advice = "The lines at level error in the log of that process say why";
    let cause = Cause::new(Kind::Lost, place, what, advice);
    Some(Cause { lost, lately: Some(0), ..cause })
}

/// Reports a relay whose earlier process may have lost events that no counter shows any more.
/// Either the relay started after kube-apiserver and its queue is in memory, or an earlier process
/// has used its queue's directory and was killed before it recorded its losses. In the second
/// case, nothing is reported if kube-apiserver started together with the relay or later.
fn forgotten(place: &str, counts: &Relay, findings: &Findings) -> Option<Cause> {
    let (queue, started) = (&counts.status.queue, start(counts));
    let first = first_apiserver(findings);
    let is_later = first.map(|first| started - first > STARTS_APART_MAX);
    let (what, advice) = if is_later == Some(true) && queue.kind == "memory" {
        let what = format!(
            "it started at {}, after kube-apiserver ({}), and its queue is in memory: if an \
             earlier process crashed, the events in its queue were lost, and no counter shows them",
            time(started),
            time(first.unwrap_or_default())
        );
        let advice = "Set queue.directory: a queue on disk keeps its events when the process ends. \
                      To check for past losses, compare the consumer's events with the audit log \
                      of kube-apiserver";
        (what, advice)
    } else if is_later != Some(false)
        && queue.earlier_events > 0
        && !counts.status.losses.earlier_known
    {
        let what = format!(
            "it started at {}, and the losses of earlier processes with its queue.directory are \
             unknown: counters start at 0 with each process, and the last one did not end in order",
            time(started)
        );
        let advice = "Prometheus and the relay's older logs show earlier losses: see the runbook \
            KubeAuditForwarderEventsLost";
        (what, advice)
    } else {
        return None;
    };
    Some(Cause::unknown(place, what, advice))
}

/// Reports a relay without a complete record of what its earlier processes have lost, unless
/// [`forgotten`] or the relay itself reports a reason to suspect a loss. Without one, the verdict
/// stays OK so far, because each new relay lacks a record. If kube-apiserver started together with
/// the relay or later, none of its events was in an earlier process.
pub(super) fn unrecorded(relay: &Sampled<Relay>, findings: &Findings) -> Option<Cause> {
    let counts = relay.counts.as_ref()?;
    let place = format!("relay {}", relay.source);
    let is_kill = |it: &Finding| it.kind == Finds::Killed && it.state >= State::Warn;
    let is_told =
        forgotten(&place, counts, findings).is_some() || own::of(&counts.status).any(is_kill);
    let is_first =
        first_apiserver(findings).is_some_and(|at| start(counts) - at <= STARTS_APART_MAX);
    (!counts.status.losses.earlier_known && !is_told && !is_first).then(|| {
        let at = time(start(counts));
        let what = format!(
            "what processes of {place} before its start at {at} have lost is not known, because \
             they left no complete record"
        );
        let advice = "With process.state_directory or queue.directory, each process leaves a \
                      record for the next one. Prometheus and the relay's older logs show earlier \
                      losses";
        Cause::new(Kind::SoFar, place, what, advice).about(Part::Relay)
    })
}

/// Returns the start of the relay's process, by doctor's clock.
fn start(counts: &Relay) -> f64 {
    counts.clock.here(counts.status.process.start_time_seconds)
}

/// Returns the first start of a kube-apiserver, by doctor's clock, if one is known.
fn first_apiserver(findings: &Findings) -> Option<f64> {
    let apiservers = findings.apiservers.iter().filter_map(|it| it.counts.as_ref());
    let start = |it: &ApiserverCounts| it.started.map(|at| it.clock.here(at));
    apiservers.filter_map(start).reduce(f64::min)
}

/// Returns the lost events that [`Relay::lost`] has under the name `plugin` as a cause.
fn lost(relay: &Sampled<Relay>, plugin: &str, counts: &Relay) -> Option<Cause> {
    let before = relay.before.as_ref();
    let lost_by = |it: &Relay| it.lost().get(plugin).copied().unwrap_or_default();
    // The losses of a process that has ended since the first sample count too.
    let earlier = before.filter(|_| is_restarted(relay)).map_or(0, lost_by);
    let lost = Some(total([lost_by(counts), earlier])).filter(|lost| *lost > 0)?;
    let elapsed = relay.elapsed.filter(|_| !is_restarted(relay));
    let increase = relay.increase(|it| Some(lost_by(it))).zip(elapsed);
    let place = match plugin {
        QUEUE => format!("the queue of {}", relay.source),
        REMOVED => format!("{REMOVED} of {}", relay.source),
        _ => format!("output {plugin} of {}", relay.source),
    };
    let advice = own::advice_about_losses(&counts.status);
    let lately = increase.map(|(lost, _)| lost);
    let what = since(Some(counts.status.process.start_time_seconds), increase);
    Some(Cause { lost, lately, ..Cause::new(Kind::Lost, place, what, advice) })
}

/// The reasons for which a relay turns away a batch because of its content or its size. The same
/// batch gets the same response each time, and kube-apiserver gives it up.
const OF_CONTENT: [&str; 2] = ["invalid", "too_large"];

/// The reason of `connections_refused_total` for connections that were closed in favour of newer
/// ones.
const EVICTED: &str = "evicted";

/// Reports what a relay has refused since its start: requests, for the reasons in [`OF_CONTENT`],
/// and connections. No counter shows how many events were in them. The relay itself reports them
/// only for minutes.
pub(super) fn turned_away(relay: &Sampled<Relay>, findings: &Findings, causes: &mut Vec<Cause>) {
    let Some(counts) = &relay.counts else { return };
    let place = format!("relay {}", relay.source);
    let is_lost = causes.iter().any(|it| it.kind == Kind::Lost && it.place == place);
    let mut for_good = counts.status.intake.rejected_requests.clone();
    for_good.retain(|reason, count| *count > 0 && OF_CONTENT.contains(&reason.as_str()));
    // If nothing was ever accepted, the cause about that names the refusals.
    if !for_good.is_empty() && counts.accepted() > 0 && !is_lost {
        let batches = total(for_good.values().copied()).div_ceil(ATTEMPTS);
        let what = format!(
            "requests refused for good ({}): kube-apiserver drops a batch after five such responses, here at least {batches}, with an unknown number of events",
            listed(&for_good)
        );
        let reason = for_good.keys().next_back().map_or("", String::as_str);
        causes.push(Cause::unknown(&place, what, of_reason(reason)));
    }
    let refused = |it: &Relay| {
        let mut refused = it.refused_connections();
        refused.retain(|reason, count| *count > 0 && reason != EVICTED);
        refused
    };
    let lately = relay.increase(|it| Some(total(refused(it).into_values()))).zip(relay.elapsed);
    // Failed attempts of kube-apiserver may still succeed, and it counts the events that it gives
    // up.
    let is_over = lately.is_some_and(|(count, _)| count == 0) && is_asked(findings);
    if !refused(counts).is_empty() && !is_over && findings.totals() != Comparison::Equal {
        let what = format!(
            "connections refused ({}), {}: what kube-apiserver wanted to send over them is unknown",
            listed(&refused(counts)),
            since(Some(counts.status.process.start_time_seconds), lately)
        );
        let advice = "Find the clients that hold the connections, or raise \
                      limits.max_connections; see the runbook \
                      KubeAuditForwarderConnectionsRefused";
        causes.push(Cause::unknown(&place, what, advice));
    }
}

/// Reports an output whose filter has dropped every event since the start. The relay itself reports
/// it after five minutes.
fn all_filtered(place: &str, output: &Output) -> Option<Cause> {
    let counts = &output.counts;
    let filtered = counts.filtered_out();
    let others = counts.delivered_events + output.backlog.backlog_events + counts.lost_events;
    (others == 0 && filtered > 0).then(|| {
        let what = format!("its filter has filtered out all {} since the start", events(filtered));
        let advice =
            "If this is not intended, `policy explain` shows which rule applies to an event";
        Cause::unknown(place, what, advice)
    })
}
