//! Judges the numbers of one relay: its losses, events that its counters do not explain, and what
//! it has turned away. The relay itself judges the state of its outputs, its queue and its
//! evidence.

use std::collections::BTreeMap;

use super::{Cause, Findings, Kind, events, is_asked, own, since, time, wrong_causes};
use crate::compare::{Comparison, STARTS_APART_MAX, is_restarted};
use crate::counts::{ApiserverCounts, OutputCounts, RelayCounts, listed, total};
use crate::remedy::of_reason;
use crate::sample::Sampled;
use telemetry::status::thresholds::ATTEMPTS;
use telemetry::{AcceptedMetrics, LostMetrics};

pub(super) fn causes(relay: &Sampled<RelayCounts>, findings: &Findings, causes: &mut Vec<Cause>) {
    let place = format!("relay {}", relay.source);
    if let Some(fault) = &relay.fault {
        let advice = "Check that the relay runs, and that --relay is the URL of its admin address";
        causes.push(Cause::unknown(&place, format!("unknown, {}", fault.what), advice));
    }
    let Some(counts) = &relay.counts else { return };
    wrong_causes(&place, &counts.wrong, causes);
    let is_named = |metric: &str| counts.wrong.iter().any(|wrong| wrong.name == metric);
    let has_no_events = counts.accepted.is_none() && !is_named(AcceptedMetrics::events);
    if has_no_events || counts.errors.is_none() && !is_named(LostMetrics::events) {
        causes.push(Cause::unknown(
            &place,
            "its events or its losses are unknown: event_total or error_total is missing",
            "Check that --relay is the URL of a relay's admin address, and not of another program",
        ));
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
    for plugin in counts.errors.iter().flat_map(BTreeMap::keys) {
        causes.extend(lost(relay, plugin, counts, findings));
    }
    let before = relay.before.as_ref().filter(|_| !is_restarted(relay));
    for (name, output) in &counts.outputs {
        let place = format!("output {name} of {}", relay.source);
        causes.extend(all_filtered(&place, output, counts.lost(name)));
        let differs = difference(counts, name);
        let is_steady = before.is_none_or(|before| difference(before, name) == differs);
        if let Some(differs) = differs.filter(|differs| *differs != 0 && is_steady) {
            let what = format!("the relay's own counts differ by {differs}, unexplained");
            let advice = "See the runbook KubeAuditForwarderConservationBroken";
            causes.push(Cause::unknown(&place, what, advice));
        }
    }
}

/// Reports a relay whose earlier process may have lost events that no counter shows any more.
/// Either the relay started after kube-apiserver and its queue is in memory, or an earlier process
/// has used its queue's directory. In the second case, nothing is reported if kube-apiserver
/// started together with the relay or later.
fn forgotten(place: &str, counts: &RelayCounts, findings: &Findings) -> Option<Cause> {
    let apiservers = findings.apiservers.iter().filter_map(|it| it.counts.as_ref());
    let start = |it: &ApiserverCounts| it.started.map(|at| it.clock.here(at));
    let first = apiservers.filter_map(start).reduce(f64::min);
    let started = counts.clock.here(counts.started?);
    let is_later = first.map(|first| started - first > STARTS_APART_MAX);
    let (what, advice) = if is_later == Some(true) && counts.queue.in_memory == Some(true) {
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
    } else if is_later != Some(false) && counts.queue.earlier > Some(0) {
        let what = format!(
            "it started at {}, and the losses of earlier processes with its queue.directory are \
             unknown: counters start at 0 with each process",
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

/// Returns the lost events of one relay as a cause: those of the output `plugin`, or, for `queue`,
/// those that no output can get.
fn lost(
    relay: &Sampled<RelayCounts>,
    plugin: &str,
    counts: &RelayCounts,
    findings: &Findings,
) -> Option<Cause> {
    let before = relay.before.as_ref();
    // The losses of a process that has ended since the first sample count too.
    let earlier = before.filter(|_| is_restarted(relay)).map_or(0, |it| it.lost(plugin));
    let lost = Some(total([counts.lost(plugin), earlier])).filter(|lost| *lost > 0)?;
    let elapsed = relay.elapsed.filter(|_| !is_restarted(relay));
    let increase = relay.increase(|it| Some(it.lost(plugin))).zip(elapsed);
    let place = match counts.outputs.contains_key(plugin) || plugin != "queue" {
        true => format!("output {plugin} of {}", relay.source),
        false => format!("the queue of {}", relay.source),
    };
    let advice = own::advice_about_losses(&relay.source, findings);
    let lately = increase.map(|(lost, _)| lost);
    let what = since(counts.started, increase);
    Some(Cause { lost, lately, ..Cause::new(Kind::Lost, place, what, advice) })
}

/// Returns how many of the accepted events are in none of the counters of a required output:
/// delivered, waiting, lost, and dropped by the filter. Negative if these counters have more events
/// than were accepted. `None` if the output is not required, or if a number is unknown.
fn difference(counts: &RelayCounts, name: &str) -> Option<i128> {
    let output = counts.outputs.get(name)?;
    let knows_required = counts.outputs.values().any(|output| output.required.is_some());
    if output.required == Some(false) || knows_required && output.required.is_none() {
        return None;
    }
    counts.errors.as_ref().filter(|_| counts.wrong.is_empty())?;
    let came = i128::from(counts.accepted?) + i128::from(output.start);
    let went = [
        output.delivered,
        output.backlog?,
        counts.lost(name),
        counts.lost("queue"),
        output.filtered(),
    ];
    Some(came - went.into_iter().map(i128::from).sum::<i128>())
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
pub(super) fn turned_away(
    relay: &Sampled<RelayCounts>,
    findings: &Findings,
    causes: &mut Vec<Cause>,
) {
    let Some(counts) = &relay.counts else { return };
    let place = format!("relay {}", relay.source);
    let is_lost = causes.iter().any(|it| it.kind == Kind::Lost && it.place == place);
    let mut for_good = counts.rejected.clone();
    for_good.retain(|reason, count| *count > 0 && OF_CONTENT.contains(&reason.as_str()));
    // If nothing was ever accepted, the cause about that names the refusals.
    if !for_good.is_empty() && counts.accepted != Some(0) && !is_lost {
        let batches = total(for_good.values().copied()).div_ceil(ATTEMPTS);
        let what = format!(
            "requests refused for good ({}): kube-apiserver drops a batch after five such responses, here at least {batches}, with an unknown number of events",
            listed(&for_good)
        );
        let reason = for_good.keys().next_back().map_or("", String::as_str);
        causes.push(Cause::unknown(&place, what, of_reason(reason)));
    }
    let refused = |it: &RelayCounts| {
        let mut refused = it.refused_connections.clone();
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
            since(counts.started, lately)
        );
        let advice = "Find the clients that hold the connections, or raise \
                      limits.max_connections; see the runbook \
                      KubeAuditForwarderConnectionsRefused";
        causes.push(Cause::unknown(&place, what, advice));
    }
}

/// Reports an output whose filter has dropped every event since the start.
fn all_filtered(place: &str, output: &OutputCounts, lost: u64) -> Option<Cause> {
    let filtered = output.filtered();
    let is_all = output.delivered == 0 && output.backlog == Some(0) && lost == 0 && filtered > 0;
    is_all.then(|| {
        let what = format!("its filter has filtered out all {} since the start", events(filtered));
        let advice =
            "If this is not intended, `policy explain` shows which rule applies to an event";
        Cause::unknown(place, what, advice)
    })
}
