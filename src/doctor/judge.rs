//! Judges everything that was read: whether events were lost, where, and what to do.
//!
//! - Events are *lost* if an error counter says so, since the start of its process; or if the
//!   relays have refused everything for longer than kube-apiserver tries, and kube-apiserver could
//!   not be asked.
//! - A difference between what was sent and what was received is *unexplained*. It is not a loss,
//!   because kube-apiserver may hold a batch for four minutes.
//! - Something is *unknown* if it could not be read, or has not happened yet.
//! - Events that wait for a consumer in trouble are named in the verdict, which is then "OK so
//!   far".
//! - Everything else that an operator should look at is a warning, and does not change the verdict.

mod apiserver;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use super::address::Address;
use super::compare::{Comparison, STARTS_APART_MAX, is_restarted, rejected, rejected_in_interval};
use super::counts::{
    ApiserverCounts, ByLabel, OutputCounts, RelayCounts, Wrong, listed, sums, total,
};
use super::refusals::{ATTEMPTS, Refusal};
use super::remedy::of_reason;
use super::sample::Sampled;
use super::{attempts, compare, refusals};
use crate::audit::time::rfc3339;
use crate::status::thresholds;
use crate::status::verdict::runbook_of_evidence;
use crate::telemetry::{AcceptedMetrics, LostMetrics, Rejection};

/// The shortest time in seconds for which a rate is shown. One batch in a moment is not a rate.
pub const RATE_MIN: f64 = 1.0;

/// After this many seconds without an accepted event, doctor reports the events that kube-apiserver
/// generated as unexplained. kube-apiserver collects a batch for at most 30 s.
const NOTHING_ARRIVES: f64 = 60.0;

/// The age in seconds up to which the restart of a kube-apiserver explains a surplus.
const RESTART_AGE: f64 = 600.0;

/// The number of places that the verdict names. The screen has all of them.
const PLACES_MAX: usize = 3;

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Findings {
    /// The kube-apiservers.
    pub apiservers: Vec<Sampled<ApiserverCounts>>,
    /// The relays.
    pub relays: Vec<Sampled<RelayCounts>>,
    /// `true` if the user named a kube-apiserver. Otherwise only the relays are judged.
    pub has_apiserver: bool,
    /// The address of the audit webhook; `None` if it is not known.
    pub webhook: Option<Address>,
    /// The results of the checks of `webhook` and `probe`.
    pub checks: Vec<Cause>,
    /// What the relays say about themselves, and which of the names lead to the same process.
    pub own: Vec<Cause>,
    /// The number of events that kube-apiserver cannot be collecting any more, although they may
    /// come from the interval; `None` if there are none, or if doctor has not watched for them.
    pub overdue: Option<u64>,
}

impl Findings {
    /// Compares the totals since the processes started.
    pub fn totals(&self) -> Comparison {
        compare::totals(&self.apiservers, &self.relays)
    }

    /// Compares the increases between the two samples.
    pub fn increases(&self) -> Comparison {
        let increases = compare::increases(&self.apiservers, &self.relays, self.webhook.as_ref());
        match (increases, self.overdue) {
            (Comparison::Collected(..), Some(overdue)) => Comparison::Missing(overdue),
            (increases, _) => increases,
        }
    }
}

/// The weight of a cause or of the verdict. The verdict has the greatest weight of all causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Something was checked and is in order.
    Ok,
    /// An operator should look at something, but no event is lost or unaccounted for.
    Warning,
    /// Nothing is lost so far, but the verdict says what is not in order: events wait, or something
    /// was not compared.
    SoFar,
    /// Something cannot be known.
    Unknown,
    /// Events are lost.
    Lost,
}

/// The part of the way from kube-apiserver to the consumers that a cause is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A kube-apiserver, or everything between it and the relays.
    Apiserver,
    /// The URL of the audit webhook, as doctor has tried it.
    Webhook,
    /// The relays, their queues and their outputs.
    Relay,
}

/// A fact that was found, with its place and the action to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The weight.
    pub kind: Kind,
    /// The part that the cause is about.
    pub part: Part,
    /// The number of lost events; 0 for all kinds but [`Kind::Lost`].
    pub lost: u64,
    /// The number of events that were lost between the two samples; `None` if it is not known.
    pub lately: Option<u64>,
    /// `true` if `lost` is an estimate.
    pub is_estimate: bool,
    /// The place, such as `output logstash of http://10.0.0.1:9090`.
    pub place: String,
    /// The fact, as the rest of a sentence that begins with the place.
    pub what: String,
    /// The action for the operator.
    pub advice: String,
}

impl Cause {
    /// Makes a cause without lost events.
    pub fn new(
        kind: Kind,
        place: impl Into<String>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let (place, what, advice) = (place.into(), what.into(), advice.into());
        let part = Part::Apiserver;
        Self { kind, part, lost: 0, lately: None, is_estimate: false, place, what, advice }
    }

    /// Returns the cause as one about this part.
    pub fn about(self, part: Part) -> Self {
        Self { part, ..self }
    }

    fn unknown(place: &str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Kind::Unknown, place, what, advice)
    }

    fn warning(place: &str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(Kind::Warning, place, what, advice)
    }
}

/// The verdict, and everything that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// [`Kind::Ok`], [`Kind::Unknown`] or [`Kind::Lost`].
    pub kind: Kind,
    /// The number of lost events, over all places.
    pub lost: u64,
    /// The places that the verdict is about; empty if everything is in order.
    pub place: String,
    /// The action for the operator; empty if there is nothing to do.
    pub advice: String,
    /// The verdict as a sentence; empty if everything is in order.
    pub sentence: String,
    /// All causes, the weightiest first.
    pub causes: Vec<Cause>,
}

/// Judges everything that was read.
pub fn judge(findings: &Findings) -> Verdict {
    let mut causes = findings.checks.clone();
    for apiserver in &findings.apiservers {
        apiserver::causes(apiserver, findings, &mut causes);
    }
    if findings.has_apiserver && findings.apiservers.is_empty() {
        let advice = "give --apiserver or --kubeconfig";
        causes.push(Cause::unknown("kube-apiserver", "there is none", advice));
    }
    let of_relays = causes.len();
    for relay in &findings.relays {
        relay_causes(relay, findings, &mut causes);
    }
    let refusals = refusals::find(&findings.relays);
    let mut of_refusals: Vec<_> = refusals.iter().map(|it| refused(it, findings)).collect();
    // Events that two relays have refused are the same events, so they must not be added up.
    of_refusals.sort_by_key(|cause| (Reverse(cause.kind), Reverse(cause.lost)));
    of_refusals.iter_mut().skip(1).for_each(|cause| cause.lost = 0);
    causes.extend(of_refusals);
    for relay in &findings.relays {
        turned_away_causes(relay, findings, &mut causes);
    }
    // doctor's own words about an output come before the relay's.
    let is_told = |own: &Cause| {
        let same = |it: &Cause| it.place == own.place && it.kind >= own.kind;
        own.place.starts_with("output ") && causes.iter().any(same)
    };
    let own: Vec<Cause> = findings.own.iter().filter(|it| !is_told(it)).cloned().collect();
    causes.extend(own);
    causes.iter_mut().skip(of_relays).for_each(|cause| cause.part = Part::Relay);
    whole_causes(findings, &mut causes);
    causes.sort_by_key(|cause| (Reverse(cause.kind), Reverse(cause.lost)));
    verdict(causes)
}

/// Puts the weightiest causes into one sentence.
fn verdict(causes: Vec<Cause>) -> Verdict {
    let lost = total(causes.iter().map(|cause| cause.lost));
    let kind = causes.first().map_or(Kind::Ok, |cause| cause.kind);
    let of_kind: Vec<&Cause> = causes.iter().filter(|cause| cause.kind == kind).collect();
    let places: Vec<&str> = of_kind.iter().map(|cause| cause.place.as_str()).collect();
    let is_one = of_kind.len() == 1;
    let told = |cause: &&Cause| match cause.kind {
        Kind::Lost if is_one => format!("at {} ({})", cause.place, cause.what),
        Kind::Lost => format!("{}{} at {} ({})", about(cause), cause.lost, cause.place, cause.what),
        Kind::SoFar => cause.what.clone(),
        Kind::Ok | Kind::Warning | Kind::Unknown => format!("{}: {}", cause.place, cause.what),
    };
    let mut sentence: Vec<String> = of_kind.iter().take(PLACES_MAX).map(told).collect();
    if of_kind.len() > PLACES_MAX {
        sentence.push(format!("{} more places above", of_kind.len() - PLACES_MAX));
    }
    let advice = of_kind.first().map(|cause| cause.advice.clone()).unwrap_or_default();
    let sentence = sentence.join("; ");
    let (kind, sentence) = match kind {
        Kind::Ok | Kind::Warning => (Kind::Ok, String::new()),
        Kind::SoFar => (Kind::Ok, sentence),
        Kind::Unknown => (kind, format!("{sentence}. {advice}")),
        Kind::Lost => {
            let about = of_kind.iter().map(|cause| about(cause)).max().unwrap_or_default();
            let when = when(&of_kind);
            let colon = if is_one { "" } else { ":" };
            // A loss outranks an unknown, but the unknown must be mentioned too.
            let also = causes.iter().find(|it| matches!(it.kind, Kind::Unknown | Kind::SoFar));
            let also = also.map(|cause| format!(". Besides: {}", told(&cause)));
            let also = also.unwrap_or_default();
            let lost = events(lost);
            (kind, format!("{about}{lost} lost{colon} {sentence}. {when}{advice}{also}"))
        }
    };
    let is_ok = sentence.is_empty();
    let place = if is_ok { String::new() } else { places.join(", ") };
    let advice = if is_ok { String::new() } else { advice };
    Verdict { kind, lost, place, advice, sentence, causes }
}

/// Returns the word before an estimated number of lost events; empty if the number was counted.
fn about(cause: &Cause) -> &'static str {
    if cause.is_estimate { "about " } else { "" }
}

/// Returns a sentence that distinguishes earlier losses from those of the interval; empty if the
/// time of one of them is not known.
fn when(lost: &[&Cause]) -> &'static str {
    match lost.iter().map(|cause| cause.lately).collect::<Option<Vec<u64>>>() {
        None => "",
        Some(lately) if total(lately.iter().copied()) == 0 => {
            "These losses are older than the interval. "
        }
        Some(_) => "Events are being lost now. ",
    }
}

/// Returns a number of events in words.
pub fn events(count: u64) -> String {
    format!("{count} {}", if count == 1 { "event" } else { "events" })
}

/// Returns a time as text, without its milliseconds.
pub fn time(seconds: f64) -> String {
    let since = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    match UNIX_EPOCH.checked_add(since) {
        Some(at) => format!("{}Z", rfc3339(at).split('.').next().unwrap_or_default()),
        None => "an impossible time".to_owned(),
    }
}

/// Returns a number of seconds in words, such as `0.2 s` or `30 s`.
pub fn seconds(elapsed: f64) -> String {
    if elapsed < 9.95 { format!("{elapsed:.1} s") } else { format!("{elapsed:.0} s") }
}

/// Returns text that says since when a counter counts, and its increase in the interval if there is
/// one.
fn since(started: Option<f64>, increase: Option<(u64, f64)>) -> String {
    let start = match started {
        Some(at) => format!("since the start at {}", time(at)),
        None => "since a start that is unknown".to_owned(),
    };
    match increase {
        Some((count, elapsed)) => {
            format!("{start}, {count} of them in the last {}", seconds(elapsed))
        }
        None => start,
    }
}

/// Returns the cause, with its remedy, that doctor has found for requests of kube-apiserver that
/// reach no relay; `None` if it has found none.
fn found_cause(findings: &Findings) -> Option<String> {
    let is_of_webhook = |cause: &&Cause| cause.kind == Kind::Unknown && cause.part == Part::Webhook;
    let of_webhook = findings.checks.iter().find(is_of_webhook);
    if let Some(Cause { place, what, advice, .. }) = of_webhook {
        return Some(format!("doctor has found a cause: {place}: {what}. {advice}"));
    }
    let fails = fails(findings);
    let rejected = refusals::find(&findings.relays);
    let rejected = rejected.iter().filter(|it| it.are_batches || it.goes_on && fails);
    if let Some(it) = rejected.max_by(|a, b| a.seconds.total_cmp(&b.seconds)) {
        let (source, reasons) = (it.source, it.reasons());
        let advice = of_reason(it.reason());
        return Some(format!(
            "doctor has found a cause: relay {source} refuses ({reasons}). {advice}"
        ));
    }
    let mut relays = findings.relays.iter();
    let (source, fault) = relays.find_map(|it| Some((&it.source, &it.fault.as_ref()?.what)))?;
    Some(format!(
        "doctor cannot reach the relay {source} either ({fault}): check first that it runs, and \
         see the runbook AuditWebhookError"
    ))
}

/// Reports the series whose values cannot be used.
fn wrong_causes(place: &str, wrong: &[Wrong], causes: &mut Vec<Cause>) {
    let cause = |wrong: &Wrong| {
        let advice = "Run the command again; if the value stays, look at the /metrics of this \
                      process, and at whatever changes them on their way";
        Cause::unknown(place, format!("unknown, {wrong}"), advice)
    };
    causes.extend(wrong.iter().map(cause));
}

fn relay_causes(relay: &Sampled<RelayCounts>, findings: &Findings, causes: &mut Vec<Cause>) {
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
            "another process answered the second time: it was restarted, or the URL leads to \
             several relays",
            "Give each relay its own --relay, and run the command again",
        ));
    }
    let refuses = counts.rejected.since.filter(|at| *at > 0.0);
    if refuses.is_some_and(|at| counts.clock.age(at).is_none()) {
        let what = "it refuses every batch, and since when is unknown: its clock is not the one of \
                    its answers";
        causes.push(Cause::unknown(&place, what, "Run doctor beside the relay"));
    }
    causes.extend(forgotten(&place, counts, findings));
    for plugin in counts.errors.iter().flat_map(BTreeMap::keys) {
        lost(&place, relay, plugin, counts, causes);
    }
    for (name, output) in &counts.outputs {
        let place = format!("output {name} of {}", relay.source);
        let before = relay.before.as_ref().filter(|_| !is_restarted(relay));
        causes.extend(all_kept_back(&place, output, counts.lost(name)));
        causes.extend(waiting(&place, name, output, before.and_then(|it| it.outputs.get(name))));
        let differs = difference(counts, name);
        let is_steady = before.is_none_or(|before| difference(before, name) == differs);
        if let Some(differs) = differs.filter(|differs| *differs != 0 && is_steady) {
            let what = format!("the relay's own counts differ by {differs}, unexplained");
            let advice = "See the runbook KubeAuditForwarderConservationBroken";
            causes.push(Cause::unknown(&place, what, advice));
        }
    }
    relay_warnings(&place, relay, counts, causes);
}

/// Reports a relay whose earlier process may have lost events that no counter tells any more: one
/// that was started after kube-apiserver and has its queue in memory, or one whose queue's
/// directory an earlier process has used, unless kube-apiserver was started together with the relay
/// or later.
fn forgotten(place: &str, counts: &RelayCounts, findings: &Findings) -> Option<Cause> {
    let apiservers = findings.apiservers.iter().filter_map(|it| it.counts.as_ref());
    let start = |it: &ApiserverCounts| it.started.map(|at| it.clock.here(at));
    let first = apiservers.filter_map(start).reduce(f64::min);
    let started = counts.clock.here(counts.started?);
    let is_later = first.map(|first| started - first > STARTS_APART_MAX);
    let (what, advice) = if is_later == Some(true) && counts.queue.in_memory == Some(true) {
        let what = format!(
            "it began at {}, after kube-apiserver ({}), and its queue is in memory: what an earlier \
             process had in its queue at a crash is lost, and no counter tells it",
            time(started),
            time(first.unwrap_or_default())
        );
        let advice = "Set queue.directory: a queue on disk keeps its events when the process ends. \
                      To know about the past, compare the consumer's events with the audit log of \
                      kube-apiserver";
        (what, advice)
    } else if is_later != Some(false) && counts.queue.earlier > Some(0) {
        let what = format!(
            "it began at {}, and what earlier processes with its queue.directory have lost is \
             unknown: counters begin at 0 with each process",
            time(started)
        );
        let advice = "Prometheus and the relay's older logs have the earlier losses: see the \
                      runbook KubeAuditForwarderEventsLost";
        (what, advice)
    } else {
        return None;
    };
    Some(Cause::unknown(place, what, advice))
}

/// Reports the lost events of one relay: those of the output named `plugin` or, if it is `queue`,
/// those that no output can get.
fn lost(
    place: &str,
    relay: &Sampled<RelayCounts>,
    plugin: &str,
    counts: &RelayCounts,
    causes: &mut Vec<Cause>,
) {
    let before = relay.before.as_ref();
    // The losses of a process that has ended since the first sample are losses too.
    let earlier = before.filter(|_| is_restarted(relay)).map_or(0, |it| it.lost(plugin));
    let lost = total([counts.lost(plugin), earlier]);
    if lost == 0 {
        return;
    }
    let elapsed = relay.elapsed.filter(|_| !is_restarted(relay));
    let increase = relay.increase(|it| Some(it.lost(plugin))).zip(elapsed);
    let lately = increase.map(|(lost, _)| lost);
    let since = since(counts.started, increase);
    let output = counts.outputs.get(plugin);
    let letters = output.map_or(0, |output| output.dead_letters);
    // The relay does not say to which output the letters belonged that it has deleted.
    let written = total(counts.outputs.values().map(|output| output.dead_letters));
    let left = letters.min(written.saturating_sub(counts.letters_dropped));
    let (place, advice) = match (plugin, output) {
        ("queue", None) => (
            format!("the queue of {}", place.trim_start_matches("relay ")),
            "Set queue.when_full = \"reject\", so that kube-apiserver sends again, and enlarge \
             queue.max_bytes; see the runbook KubeAuditForwarderEventsLost"
                .to_owned(),
        ),
        (name, output) => {
            let advice = if left > 0 {
                let most = if counts.letters_dropped > 0 { "at most " } else { "" };
                format!(
                    "{most}{left} of them are dead letters: mend the consumer, then send them again \
                     with `replay`; see the runbook KubeAuditForwarderEventsLost"
                )
            } else if letters > 0 {
                "The dead letters were deleted, so that they cannot be sent again: raise \
                 dead_letter.max_bytes, and mend the consumer; see the runbook \
                 KubeAuditForwarderEventsLost"
                    .to_owned()
            } else if output.and_then(|output| output.required) == Some(false) {
                "The output is optional: set output.required = true, or enlarge queue.max_bytes; \
                 see the runbook KubeAuditForwarderEventsLost"
                    .to_owned()
            } else {
                "The log of the relay says why; check output.rejected, output.retry.max_elapsed \
                 and queue.when_full, and see the runbook KubeAuditForwarderEventsLost"
                    .to_owned()
            };
            (format!("output {name} of {}", place.trim_start_matches("relay ")), advice)
        }
    };
    causes.push(Cause { lost, lately, ..Cause::new(Kind::Lost, place, since, advice) });
}

/// Returns how many of the accepted events are in none of the counters of a required output:
/// delivered, waiting, lost, and kept back by the filter. Negative if these counters have more
/// events than were accepted. `None` if the output is not required, or if a number is not known.
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
        output.kept_back(),
    ];
    Some(came - went.into_iter().map(i128::from).sum::<i128>())
}

/// Reports events that wait for an output in trouble. Only a required output changes the verdict's
/// sentence. The relay itself says above which lag an output is late.
fn waiting(
    place: &str,
    name: &str,
    output: &OutputCounts,
    before: Option<&OutputCounts>,
) -> Option<Cause> {
    let waits = output.backlog.filter(|count| *count > 0)?;
    let lag = output.lag.unwrap_or_default();
    let of_lag = "see the runbook KubeAuditForwarderOutputLags";
    let (state, advice) = if output.up == Some(false) {
        let runbook = "see the runbook KubeAuditForwarderOutputDown";
        ("which is down".to_owned(), format!("last_error in /status says why; {runbook}"))
    } else if output.lag_max.is_some_and(|most| lag > most) {
        (format!("which is late by {lag:.0} s"), format!("The consumer is too slow; {of_lag}"))
    } else if before.is_some_and(|before| is_growing(before, output)) {
        let advice = format!("The consumer takes events more slowly than they come; {of_lag}");
        ("and the backlog grows".to_owned(), advice)
    } else if output.lag_max.is_none() && lag >= RATE_MIN {
        let state =
            format!("the oldest for {}, which was not compared with anything", seconds(lag));
        (state, format!("This relay does not say when an output is late; {of_lag}"))
    } else {
        return None;
    };
    let kind = if output.required == Some(false) { Kind::Warning } else { Kind::SoFar };
    let wait = if waits == 1 { "waits" } else { "wait" };
    Some(Cause::new(kind, place, format!("{} {wait} for {name}, {state}", events(waits)), advice))
}

/// Returns `true` if the backlog has grown and nothing was delivered, or if it has grown by a tenth
/// or more of the events that came. Events that wait for less than a second are in motion.
fn is_growing(before: &OutputCounts, now: &OutputCounts) -> bool {
    let is_moving = now.lag.is_some_and(|lag| lag < RATE_MIN);
    let Some(more) =
        now.backlog.zip(before.backlog).and_then(|(now, before)| now.checked_sub(before))
    else {
        return false;
    };
    let left = now.delivered.saturating_sub(before.delivered);
    let is_much = !is_moving && more.saturating_mul(10) >= total([more, left]);
    more > 0 && (left == 0 || is_much)
}

fn relay_warnings(
    place: &str,
    relay: &Sampled<RelayCounts>,
    counts: &RelayCounts,
    causes: &mut Vec<Cause>,
) {
    for (reason, &count) in counts.rejected.by_reason.iter().filter(|(_, count)| **count > 0) {
        let of_reason_in =
            |it: &RelayCounts| Some(it.rejected.by_reason.get(reason).copied().unwrap_or(0));
        let since = since(counts.started, relay.increase(of_reason_in).zip(relay.elapsed));
        let fate = match Rejection::named(reason).is_some_and(Rejection::is_for_good) {
            true => "kube-apiserver gives such a batch up after five attempts",
            false => "kube-apiserver sends them again, so this alone is no loss",
        };
        let what = format!("{count} requests rejected with the reason {reason} ({since}); {fate}");
        causes.push(Cause::warning(place, what, of_reason(reason)));
    }
    if counts.queue.writable == Some(false) {
        let advice = "See the runbook KubeAuditForwarderDiskRefused";
        causes.push(Cause::unknown(place, "the queue can't store, senders get 503", advice));
    }
    if let Some((bytes, capacity)) = counts.queue.needed.zip(counts.queue.capacity) {
        #[allow(clippy::cast_precision_loss, reason = "a share needs no more digits")]
        let share = bytes as f64 / capacity.max(1) as f64;
        let waits = counts.outputs.values().any(|output| output.backlog > Some(0));
        if share >= thresholds::QUEUE_NEARLY_FULL && waits {
            let what = format!("the queue is {:.0} % full", share * 100.0);
            let advice = "See the runbook KubeAuditForwarderQueueNearlyFull";
            causes.push(Cause::warning(place, what, advice));
        }
    }
    for (reason, count) in counts.evidence.errors.iter().filter(|(_, count)| **count > 0) {
        let what = match reason.as_str() {
            "rolled_back" => "the evidence was set back".to_owned(),
            "tampered" => format!("{count} events were changed in the queue's files"),
            "witness" => format!("{count} requests to a witness failed"),
            _ => format!("{count} failed attempts to record evidence ({reason})"),
        };
        let advice = format!("See the runbook {}", runbook_of_evidence(reason));
        let is_attacked = ["rolled_back", "tampered"].contains(&reason.as_str());
        let kind = if is_attacked { Kind::Unknown } else { Kind::Warning };
        causes.push(Cause::new(kind, place, what, advice));
    }
    let quiet = counts.last_event.filter(|at| *at > 0.0).and_then(|at| counts.clock.age(at));
    if let Some(quiet) = quiet.filter(|quiet| *quiet > thresholds::SILENCE) {
        let what = format!("no event accepted for {quiet:.0} s");
        let advice = "See the runbook KubeAuditForwarderNothingReceived";
        causes.push(Cause::warning(place, what, advice));
    }
}

/// The place of causes that concern everything between kube-apiserver and the relays.
const WAY: &str = "the way from kube-apiserver to the relays";

const NOTHING_RECEIVED: &str = "Check the URL in kube-apiserver's --audit-webhook-config-file, and \
                                see the runbook KubeAuditForwarderNothingReceived";

/// Reports the causes that concern all processes together.
fn whole_causes(findings: &Findings, causes: &mut Vec<Cause>) {
    if findings.relays.is_empty() {
        let what = "there is none to ask";
        let advice = "Name the admin address with --relay";
        causes.push(Cause::unknown("relay", what, advice).about(Part::Relay));
    }
    let counts: Vec<_> = findings.relays.iter().filter_map(|it| it.counts.as_ref()).collect();
    let are_known = !counts.is_empty() && counts.iter().all(|it| it.accepted.is_some());
    let has_accepted = !are_known || counts.iter().any(|it| it.accepted > Some(0));
    let has_delivered =
        counts.iter().flat_map(|it| it.outputs.values()).any(|output| output.delivered > 0);
    // If something could not be read, its own cause already says why nothing was compared.
    let is_unknown = causes.iter().any(|it| it.kind == Kind::Unknown);
    let is_compared = !matches!(
        (findings.totals(), findings.increases()),
        (Comparison::Not(_), Comparison::Not(_))
    );
    let compared = compared(findings).filter(|_| is_compared || !is_unknown);
    let silence = quiet_for(findings).filter(|quiet| *quiet >= NOTHING_ARRIVES);
    let silence = silence.filter(|_| are_known && grows(findings));
    let is_missing =
        is_compared && compared.iter().any(|it| it.kind == Kind::Unknown) || silence.is_some();
    // Current rejections come first: they explain why nothing arrives, and their remedy is the one
    // to begin with.
    let now = match has_accepted {
        false => rejections(findings, rejected, "every request since the start rejected"),
        true if is_missing => {
            rejections(findings, rejected_in_interval, "requests rejected in the interval")
        }
        true => None,
    };
    let has_rejected = now.is_some();
    causes.extend(now);
    causes.extend(compared);
    let advice = || found_cause(findings).unwrap_or_else(|| NOTHING_RECEIVED.to_owned());
    if !has_accepted && !has_delivered && !has_rejected {
        let what = "nothing has happened yet: no event accepted since the start";
        causes.push(Cause::unknown("relay", what, advice()).about(Part::Relay));
    } else if let Some(quiet) = silence {
        let what = format!(
            "unexplained: kube-apiserver generates events, and no relay has accepted one for \
             {quiet:.0} s"
        );
        causes.push(Cause::unknown(WAY, what, advice()));
    }
    // Earlier rejections may be the cause too, or may have ended long ago.
    if has_accepted && is_missing && !has_rejected {
        causes.extend(rejections(findings, rejected, "requests rejected since the start"));
    }
    if !findings.has_apiserver {
        let advice = "Name it with --kubeconfig or --apiserver, to compare what was generated with \
                      what was received";
        let what = "kube-apiserver was not asked";
        causes.push(Cause::new(Kind::SoFar, "kube-apiserver", what, advice));
    }
}

const ASK_TWICE: &str = "Ask kube-apiserver by a URL, such as that of kubectl proxy, so that two \
                         samples can be compared";

/// Returns the cause that events are missing; `when` says to which time they belong.
fn missing(count: u64, when: &str, findings: &Findings) -> Cause {
    let what =
        format!("{} {when}unexplained: generated, and neither received nor lost", events(count));
    let again = match findings.apiservers.iter().all(|it| it.before.is_none()) {
        true => "run the command again five minutes later with the same file",
        false => "run the command again with --interval 5m",
    };
    let advice = found_cause(findings).unwrap_or_else(|| {
        format!(
            "kube-apiserver may hold a batch for four minutes: {again}, and check that --relay \
             names every relay and that the webhook of kube-apiserver leads there"
        )
    });
    Cause::unknown(WAY, what, advice)
}

/// Returns the conclusion from the comparisons of the totals and of the increases. A number that
/// both show is reported once.
fn compared(findings: &Findings) -> Option<Cause> {
    let (totals, increases) = (findings.totals(), findings.increases());
    let so_far = |what, advice: &str| Some(Cause::new(Kind::SoFar, WAY, what, advice));
    match (&totals, &increases) {
        (Comparison::Missing(count), _) => Some(missing(*count, "", findings)),
        (_, Comparison::Missing(count)) => {
            let elapsed = findings.apiservers.iter().filter_map(|it| it.elapsed).reduce(f64::max);
            let when = format!("of the last {} ", seconds(elapsed.unwrap_or_default()));
            Some(missing(*count, &when, findings))
        }
        (Comparison::Surplus(surplus), _) | (_, Comparison::Surplus(surplus)) => {
            let advice = "A batch that was sent twice does this, or a sender that is not among the \
                          --apiserver: name every kube-apiserver";
            let advice = restarted_lately(findings).unwrap_or_else(|| advice.to_owned());
            let what = format!("{} unexplained: received, and not generated", events(*surplus));
            Some(Cause::unknown(WAY, what, advice))
        }
        (_, Comparison::Held(count)) => {
            let what = format!(
                "kube-apiserver may hold {} whose requests have failed, and sends them again",
                events(*count)
            );
            let advice = "Run the command again with --interval 5m; see the runbook \
                          AuditWebhookError";
            so_far(what, advice)
        }
        (_, Comparison::Collected(count, of)) => {
            let what = format!(
                "{count} of {of} may still be collected by kube-apiserver, and were not compared"
            );
            let advice = "Run the command again with --interval 5m, of which less remains";
            so_far(what, advice)
        }
        (_, Comparison::Others(count)) => {
            let what = format!(
                "senders that were not asked hide up to {}: received in the interval, and not \
                 generated in it",
                events(*count)
            );
            let advice = "Name every kube-apiserver; if all are named, it has sent what it had \
                          held, so run the command again";
            so_far(what, &restarted_lately(findings).unwrap_or_else(|| advice.to_owned()))
        }
        (Comparison::More(more), _) => {
            let what = format!(
                "what was generated was not compared with what was received: the relays have \
                 received {more} more than the file counts. They came after it was saved, and may \
                 hide that earlier ones are missing"
            );
            so_far(what, ASK_TWICE)
        }
        (Comparison::Not(why), Comparison::Not(_)) if findings.has_apiserver => {
            let what = format!("what was generated was not compared with what was received: {why}");
            Some(Cause::unknown(WAY, what, ASK_TWICE))
        }
        _ => None,
    }
}

/// Returns `true` if kube-apiservers were named, and the numbers of all of them are known. They
/// count then what they have given up.
fn is_asked(findings: &Findings) -> bool {
    let is_known = |it: &Sampled<ApiserverCounts>| {
        it.fault.is_none() && it.counts.as_ref().is_some_and(|it| it.generated.is_some())
    };
    findings.has_apiserver && findings.apiservers.iter().all(is_known)
}

/// Returns the advice for a surplus that a restart of a kube-apiserver explains: the relays have
/// received events that an earlier process has generated. `None` if none has begun after a relay
/// within [`RESTART_AGE`].
fn restarted_lately(findings: &Findings) -> Option<String> {
    let relays = findings.relays.iter().filter_map(|it| it.counts.as_ref());
    let first = relays.filter_map(|it| Some(it.clock.here(it.started?))).reduce(f64::min)?;
    let (source, at) = findings.apiservers.iter().find_map(|it| {
        let counts = it.counts.as_ref()?;
        let at = counts.started?;
        let is_young = counts.clock.age(at).is_some_and(|age| age < RESTART_AGE);
        (is_young && counts.clock.here(at) > first).then_some((&it.source, at))
    })?;
    Some(format!(
        "kube-apiserver {source} was restarted at {}, after the relays, which have counted what it \
         sent before: run the command again in ten minutes",
        time(at)
    ))
}

/// Returns `true` if attempts of a kube-apiserver to reach its webhook have failed in the interval.
fn fails(findings: &Findings) -> bool {
    let webhook = findings.webhook.as_ref();
    findings.apiservers.iter().any(|it| attempts::failed_in_interval(it, webhook) > Some(0))
}

/// Judges a relay that refuses everything. This is a loss only if there is proof: batches were
/// refused in the interval, or attempts of a kube-apiserver that was asked have failed in it. A
/// kube-apiserver that was asked counts its losses itself. If it counts none, it may still be
/// trying, so its counter is believed until twice its patience is over. If no counter has the
/// number of lost events, it is estimated.
fn refused(refusal: &Refusal<'_>, findings: &Findings) -> Cause {
    let place = format!("relay {}", refusal.source);
    let advice = of_reason(refusal.reason());
    let time = seconds(refusal.seconds);
    let is_asked = is_asked(findings);
    // An earlier loss does not belong to this refusal.
    let counted = |it: &Sampled<ApiserverCounts>| {
        let before = it.before.as_ref().map_or(0, ApiserverCounts::lost);
        it.counts.as_ref().is_some_and(|now| now.lost() > before)
    };
    let is_counted = findings.apiservers.iter().any(counted);
    let is_proof = refusal.goes_on && (refusal.are_batches || is_asked && fails(findings));
    let patience = if is_asked { 2.0 * refusal.patience } else { refusal.patience };
    let is_over = refusal.seconds_at_all.is_some_and(|seconds| seconds > patience);
    if is_proof && is_over && !is_counted && (!is_asked || grows(findings)) {
        let what = format!(
            "estimated: every request refused for {time}, by reason: {}; kube-apiserver gives up \
             after {:.0} s",
            refusal.reasons(),
            refusal.patience
        );
        let lost = Cause::new(Kind::Lost, place, what, advice);
        return Cause { lost: estimate(refusal, findings), is_estimate: true, ..lost };
    }
    let what = format!("requests to {} refused for {time} ({})", refusal.source, refusal.reasons());
    match refusal.seconds > refusal.patience && !is_asked && !is_counted {
        true => {
            let open = match (refusal.are_batches, refusal.goes_on) {
                (false, _) => "the requests were those of kube-apiserver",
                (true, false) => "they are still refused, because the interval is short",
                (true, true) => "another relay got the events",
            };
            let what = format!("{what}, and it is not known whether {open}");
            Cause::new(Kind::Unknown, place, what, advice)
        }
        false => Cause::new(Kind::SoFar, place, what, advice),
    }
}

/// Estimates the number of events that were given up during a refusal, from the rate at which
/// kube-apiserver generates events now or, if it is not known, from the rate at which the relays
/// accepted events before. The result is at least the number of batches that were given up.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate needs no more digits, and is not negative"
)]
fn estimate(refusal: &Refusal<'_>, findings: &Findings) -> u64 {
    let rate_of = |it: &Sampled<ApiserverCounts>| {
        let more = it.increase(|counts| counts.generated)?;
        Some(more as f64 / it.elapsed.filter(|elapsed| *elapsed > 0.0)?)
    };
    let now: f64 = findings.apiservers.iter().filter_map(rate_of).sum();
    let relays = findings.relays.iter().filter_map(|it| it.counts.as_ref());
    let before = relays.filter_map(|it| {
        let time = it.last_event? - it.started?;
        (time > 0.0).then_some(it.accepted? as f64 / time.max(NOTHING_ARRIVES))
    });
    let rate = if now > 0.0 { now } else { before.sum() };
    let time = refusal.seconds_at_all.unwrap_or_default() - refusal.patience;
    ((time.max(0.0) * rate) as u64).max(refusal.batches)
}

/// The reasons for which a relay turns away a batch that it has read. kube-apiserver gets the same
/// answer for the same batch each time, and gives it up.
const OF_CONTENT: [&str; 2] = ["invalid", "too_large"];

/// The reason of `connections_refused_total` for connections whose place was given to newer ones.
const EVICTED: &str = "evicted";

/// Reports what a relay has turned away and no counter of events has: requests that it refused for
/// good, and connections for which it had no place. How many events they had is unknown.
fn turned_away_causes(relay: &Sampled<RelayCounts>, findings: &Findings, causes: &mut Vec<Cause>) {
    let Some(counts) = &relay.counts else { return };
    let place = format!("relay {}", relay.source);
    let is_lost = causes.iter().any(|it| it.kind == Kind::Lost && it.place == place);
    let mut for_good = counts.rejected.by_reason.clone();
    for_good.retain(|reason, count| *count > 0 && OF_CONTENT.contains(&reason.as_str()));
    // If nothing was ever accepted, its own cause names the refusals.
    if !for_good.is_empty() && counts.accepted != Some(0) && !is_lost {
        let batches = total(for_good.values().copied()).div_ceil(ATTEMPTS);
        let what = format!(
            "requests refused for good ({}): kube-apiserver gives up a batch after five such \
             answers, here at least {batches} of them, with an unknown number of events",
            listed(&for_good)
        );
        let reason = for_good.keys().next_back().map_or("", String::as_str);
        causes.push(Cause::unknown(&place, what, of_reason(reason)));
    }
    let mut refused = counts.rejected.connections.clone();
    refused.retain(|_, count| *count > 0);
    if refused.is_empty() {
        return;
    }
    let without_evicted = |it: &RelayCounts| {
        let refused = it.rejected.connections.iter().filter(|(reason, _)| *reason != EVICTED);
        Some(total(refused.map(|(_, count)| *count)))
    };
    let lately = relay.increase(without_evicted).zip(relay.elapsed);
    let has_no_place = without_evicted(counts) > Some(0);
    // Attempts that kube-apiserver makes in vain may still succeed, and it counts what it gives up.
    let is_over = lately.is_some_and(|(count, _)| count == 0) && is_asked(findings);
    let kind = match has_no_place && !is_over && findings.totals() != Comparison::Equal {
        true => Kind::Unknown,
        false => Kind::Warning,
    };
    let what = format!(
        "connections refused ({}), {}: what kube-apiserver wanted to send over them is unknown",
        listed(&refused),
        since(counts.started, lately)
    );
    let advice = "Find the clients that hold the connections, or raise limits.max_connections; see \
                  the runbook KubeAuditForwarderConnectionsRefused";
    causes.push(Cause::new(kind, &place, what, advice));
}

/// Reports an output whose filter has kept back every event since the start.
fn all_kept_back(place: &str, output: &OutputCounts, lost: u64) -> Option<Cause> {
    let kept_back = output.kept_back();
    let is_all = output.delivered == 0 && output.backlog == Some(0) && lost == 0 && kept_back > 0;
    is_all.then(|| {
        let what = format!("its filter has kept back all {} since the start", events(kept_back));
        Cause::unknown(place, what, ALL_KEPT_BACK)
    })
}

/// The advice for a filter that keeps back everything.
pub const ALL_KEPT_BACK: &str = "If this is not intended, `policy explain` says which rule decides \
                                 on an event";

/// Returns the cause that relays have rejected requests, with the remedy for the most frequent
/// reason; `None` if they have rejected none. `of` returns the numbers of a relay, and `when` says
/// to which time they belong.
fn rejections(
    findings: &Findings,
    of: impl Fn(&Sampled<RelayCounts>) -> ByLabel,
    when: &str,
) -> Option<Cause> {
    let rejected = findings.relays.iter().filter_map(|relay| {
        let mut rejected = of(relay);
        rejected.retain(|_, count| *count > 0);
        (!rejected.is_empty()).then_some((relay.source.as_str(), rejected))
    });
    let (places, rejected): (Vec<&str>, Vec<_>) = rejected.unzip();
    let sum = sums(&rejected);
    let (most, _) = sum.iter().max_by_key(|(_, count)| **count)?;
    let what = format!("{when}, by reason: {}", listed(&sum));
    let place = format!("relay {}", places.join(", "));
    Some(Cause::unknown(&place, what, of_reason(most)).about(Part::Relay))
}

/// Returns `true` if a kube-apiserver has generated more events in the interval than it has lost.
fn grows(findings: &Findings) -> bool {
    let grows = |it: &Sampled<ApiserverCounts>| {
        it.increase(|counts| counts.generated) > it.increase(|counts| Some(counts.lost()))
    };
    findings.apiservers.iter().any(grows)
}

/// Returns the seconds for which no relay has accepted an event; `None` if that is not known, or if
/// one has accepted events in the interval.
fn quiet_for(findings: &Findings) -> Option<f64> {
    let quiet = |it: &Sampled<RelayCounts>| {
        let counts = it.counts.as_ref()?;
        let has_grown = it.before.as_ref().is_none_or(|before| before.accepted < counts.accepted);
        let quiet = match counts.last_event {
            Some(at) => counts.clock.age(at.max(counts.started.unwrap_or_default()))?,
            None => it.elapsed?,
        };
        Some(quiet).filter(|_| !has_grown && !is_restarted(it))
    };
    let each = findings.relays.iter().map(quiet).collect::<Option<Vec<f64>>>()?;
    each.into_iter().reduce(f64::min)
}

#[cfg(test)]
mod tests;
