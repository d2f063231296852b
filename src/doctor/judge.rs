//! Compares the numbers, and says whether events were lost, where, and what to do.
//!
//! The rules are few. A loss is what an error counter says, since the start of its process. A
//! difference between what was sent and what was received is unexplained, and no loss, because
//! kube-apiserver may hold a batch for four minutes. Something that could not be read, or has not
//! happened yet, is unknown. Everything else that an operator should look at is a warning, and does
//! not change the verdict.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use super::address;
use super::address::Address;
use super::counts::ApiserverCounts;
use super::counts::ByLabel;
use super::counts::Counts as _;
use super::counts::EVENTS;
use super::counts::LOG_PLUGIN;
use super::counts::OutputCounts;
use super::counts::RelayCounts;
use super::counts::Wrong;
use super::counts::total;
use super::sample::Sampled;
use crate::delivery::rfc3339::rfc3339;
use crate::telemetry::PREFIX;

/// The greatest difference of the start times, in seconds, with which the totals of two processes
/// are compared.
const STARTS_APART_MAX: f64 = 60.0;

/// kube-apiserver's default for `--audit-webhook-batch-throttle-qps`, in batches per second.
const THROTTLE: f64 = 10.0;
/// The attempts that kube-apiserver makes for a batch, the first one included.
const ATTEMPTS: u64 = 5;

/// The share of [`THROTTLE`] from which the rate of batches is a warning.
const NEAR: f64 = 0.7;

/// The shortest time in seconds for which a rate is told. One batch in a moment is no rate.
pub const RATE_MIN: f64 = 1.0;

/// The time in seconds without an accepted event from which a relay alone is a warning: longer than
/// kube-apiserver holds a batch.
const SILENCE: f64 = 300.0;

/// The time in seconds without an accepted event from which events that kube-apiserver generates
/// are unexplained. It collects a batch for at most 30 s.
const NOTHING_ARRIVES: f64 = 60.0;

/// The lag of an output in seconds from which it is a warning, as in the alert.
const LAG: f64 = 60.0;

/// The share of the queue's capacity from which its fill is a warning, as in the alert.
const QUEUE_NEARLY_FULL: f64 = 0.8;

/// The number of places that the verdict names. The screen has all of them.
const PLACES_MAX: usize = 3;

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Findings {
    /// The kube-apiservers.
    pub apiservers: Vec<Sampled<ApiserverCounts>>,
    /// The relays.
    pub relays: Vec<Sampled<RelayCounts>>,
    /// `true` if a kube-apiserver was asked for. Otherwise the relays are judged alone.
    pub has_apiserver: bool,
    /// The address of the audit webhook; `None` if it is not known.
    pub webhook: Option<Address>,
    /// The results of further checks.
    pub checks: Vec<Cause>,
    /// The time of the newest sample, in seconds since 1970.
    pub now: f64,
}

/// The weight of a cause, and the verdict. The greatest one decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Something was checked and is in order.
    Ok,
    /// An operator should look at something, but no event is lost or unaccounted for.
    Warning,
    /// Something cannot be known.
    Unknown,
    /// Events are lost.
    Lost,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The weight.
    pub kind: Kind,
    /// The number of lost events; 0 for all kinds but [`Kind::Lost`].
    pub lost: u64,
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
        Self { kind, lost: 0, place, what, advice }
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

/// The comparison of what the kube-apiservers have sent with what the relays have received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// The totals cannot be compared, for this reason.
    Not(String),
    /// Everything has arrived that was generated before the first sample.
    Equal,
    /// This number of events was generated, and has neither arrived nor been counted as lost.
    Missing(u64),
    /// This number of events has arrived and was not generated.
    Surplus(u64),
}

/// Compares the totals. With two samples, events may be on their way in between: all events of the
/// first sample must have arrived in the second one, and none may have arrived that were not
/// generated then. A file has only one sample: what came in after it was read is no surplus, so the
/// first sample of the relays counts.
#[must_use]
pub fn compare(findings: &Findings) -> Comparison {
    let Findings { apiservers, relays, .. } = findings;
    let not = |why: &str| Comparison::Not(why.to_owned());
    if !findings.has_apiserver || apiservers.is_empty() {
        return not("kube-apiserver is unknown");
    }
    if relays.is_empty() {
        return not("there is no relay to ask");
    }
    let apiserver = |it: &Sampled<ApiserverCounts>| format!("kube-apiserver {}", it.source);
    let relay = |it: &Sampled<RelayCounts>| format!("relay {}", it.source);
    let unread = apiservers.iter().filter(|it| it.fault.is_some()).map(apiserver);
    let changed = relays.iter().filter(|it| it.fault.is_some() || is_restarted(it)).map(relay);
    let unread: Vec<String> = unread.chain(changed).collect();
    if !unread.is_empty() {
        return Comparison::Not(format!("not everything could be read: {}", unread.join(", ")));
    }
    let of_apiservers: Vec<_> = apiservers.iter().filter_map(|it| it.counts.as_ref()).collect();
    let of_relays: Vec<_> = relays.iter().filter_map(|it| it.counts.as_ref()).collect();
    let starts = of_apiservers.iter().map(|counts| counts.started);
    // A process without a start time is compared: a difference is then unexplained at least.
    let starts: Vec<f64> = starts.chain(of_relays.iter().map(|it| it.started)).flatten().collect();
    let first = starts.iter().copied().fold(f64::INFINITY, f64::min);
    let last = starts.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if last - first > STARTS_APART_MAX {
        return not("the processes started more than 60 s apart");
    }
    if of_apiservers.iter().any(|it| it.unknown_plugins().next().is_some()) {
        return not("a number of lost events is unknown");
    }
    let sent = of_apiservers.iter().map(|it| it.generated).collect::<Option<Vec<_>>>();
    let received = of_relays.iter().map(|it| it.accepted).collect::<Option<Vec<_>>>();
    let (Some(sent), Some(received)) = (sent, received) else {
        return not("a number of events is unknown");
    };
    let before = |it: &Sampled<ApiserverCounts>| it.before.clone().or_else(|| it.counts.clone());
    let before: Vec<ApiserverCounts> = apiservers.iter().filter_map(before).collect();
    let least = total(before.iter().filter_map(|it| it.generated))
        .saturating_sub(total(of_apiservers.iter().map(|it| it.lost())));
    let received = total(received);
    let earlier = |it: &Sampled<RelayCounts>| it.before.as_ref().or(it.counts.as_ref())?.accepted;
    // The relays were asked before the kube-apiservers in each of the two samples.
    let (sent, early) = match apiservers.iter().any(|it| it.before.is_none()) {
        true => {
            let sent = total(before.iter().filter_map(|it| it.generated));
            (sent, total(relays.iter().filter_map(earlier)))
        }
        false => (total(sent), received),
    };
    let most = sent.saturating_sub(total(before.iter().map(ApiserverCounts::lost)));
    if received < least {
        Comparison::Missing(least - received)
    } else if early > most {
        Comparison::Surplus(early - most)
    } else {
        Comparison::Equal
    }
}

/// Returns `true` if the process was another one in the first sample: its start time has changed,
/// or its counters went back. A number that one of the samples does not have says nothing.
#[must_use]
pub fn is_restarted(relay: &Sampled<RelayCounts>) -> bool {
    let Some((before, now)) = relay.before.as_ref().zip(relay.counts.as_ref()) else {
        return false;
    };
    let is_other = before.started.zip(now.started).is_some_and(|(before, now)| before != now);
    let went_back = before.accepted.zip(now.accepted).is_some_and(|(before, now)| before > now);
    is_other || went_back
}

/// Judges everything that was read.
#[must_use]
pub fn judge(findings: &Findings) -> Verdict {
    let mut causes = findings.checks.clone();
    for apiserver in &findings.apiservers {
        apiserver_causes(apiserver, findings, &mut causes);
    }
    if findings.has_apiserver && findings.apiservers.is_empty() {
        let advice = "give --apiserver or --kubeconfig";
        causes.push(Cause::unknown("kube-apiserver", "there is none", advice));
    }
    for relay in &findings.relays {
        relay_causes(relay, findings.now, &mut causes);
    }
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
    let told = |cause: &&Cause| match kind {
        Kind::Lost => format!("{} at {} ({})", cause.lost, cause.place, cause.what),
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
        Kind::Unknown => (kind, format!("{sentence}. {advice}")),
        Kind::Lost => (kind, format!("{} lost: {sentence}. {advice}", events(lost))),
    };
    let is_ok = kind == Kind::Ok;
    let place = if is_ok { String::new() } else { places.join(", ") };
    let advice = if is_ok { String::new() } else { advice };
    Verdict { kind, lost, place, advice, sentence, causes }
}

/// Returns a number of events in words.
#[must_use]
pub fn events(count: u64) -> String {
    format!("{count} {}", if count == 1 { "event" } else { "events" })
}

/// Returns a time as text, without its milliseconds.
#[must_use]
pub fn time(seconds: f64) -> String {
    let since = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    match UNIX_EPOCH.checked_add(since) {
        Some(at) => format!("{}Z", rfc3339(at).split('.').next().unwrap_or_default()),
        None => "an impossible time".to_owned(),
    }
}

/// Returns a number of seconds in words, such as `0.2 s` or `30 s`.
#[must_use]
pub fn seconds(elapsed: f64) -> String {
    if elapsed < 9.95 { format!("{elapsed:.1} s") } else { format!("{elapsed:.0} s") }
}

/// Returns since when a counter counts, and its increase in the interval if there is one.
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

fn apiserver_causes(
    apiserver: &Sampled<ApiserverCounts>,
    findings: &Findings,
    causes: &mut Vec<Cause>,
) {
    let place = format!("kube-apiserver {}", apiserver.source);
    if let Some(fault) = &apiserver.fault {
        let advice = "Check the option --apiserver or --kubeconfig, and that the address can be \
                      reached from here";
        causes.push(Cause::unknown(&place, format!("unknown, {fault}"), advice));
    }
    let Some(counts) = &apiserver.counts else { return };
    wrong_causes(&place, counts.wrong(), causes);
    let before = apiserver.before.as_ref();
    for (plugin, &lost) in counts.errors.iter().filter(|(_, lost)| **lost > 0) {
        let earlier = before.map(|it| it.errors.get(plugin).copied().unwrap_or_default());
        let increase = earlier.map(|earlier| lost.saturating_sub(earlier)).zip(apiserver.elapsed);
        let what = format!("plugin {plugin}, {}", since(counts.started, increase));
        if plugin == LOG_PLUGIN {
            let what = format!("{} of the audit log lost ({what})", events(lost));
            causes.push(Cause::warning(&place, what, of_plugin(plugin)));
        } else {
            causes.push(Cause { lost, ..Cause::new(Kind::Lost, &place, what, of_plugin(plugin)) });
        }
    }
    match counts.generated {
        // The series is named already.
        None if counts.wrong.iter().any(|wrong| wrong.name == EVENTS) => {}
        None => causes.push(Cause::unknown(
            &place,
            "its events are unknown: apiserver_audit_event_total is missing",
            "Check that this is the /metrics of a kube-apiserver, and not of another component",
        )),
        Some(0) => causes.push(Cause::unknown(
            &place,
            "nothing has happened yet: it has generated no audit event since its start",
            "Check that kube-apiserver has --audit-policy-file and --audit-webhook-config-file, \
             and that the policy has a rule with another level than None",
        )),
        Some(_) => {}
    }
    if let Some(rejected) = counts.rejected.filter(|rejected| *rejected > 0) {
        let what = format!("{rejected} API requests refused because they could not be audited");
        let advice = "--audit-webhook-mode=blocking-strict refuses requests while the relay is \
                      away: use batch, or make the relay reachable";
        causes.push(Cause::warning(&place, what, advice));
    }
    if let Some((host, posts)) = webhook_posts(counts, findings.webhook.as_ref()) {
        let earlier = earlier_posts(apiserver, &host, findings.webhook.as_ref());
        attempts(&place, &host, &posts, earlier.as_ref(), apiserver.elapsed, causes);
    }
}

/// Names the series whose values cannot be used.
fn wrong_causes(place: &str, wrong: &[Wrong], causes: &mut Vec<Cause>) {
    let cause = |wrong: &Wrong| {
        let advice = "Run the command again; if the value stays, look at the /metrics of this                       process, and at whatever changes them on their way";
        Cause::unknown(place, format!("unknown, {wrong}"), advice)
    };
    causes.extend(wrong.iter().map(cause));
}

/// Returns the remedy for events that a plugin of kube-apiserver has lost.
fn of_plugin(plugin: &str) -> &'static str {
    match plugin {
        "buffered" => {
            "kube-apiserver's buffer was full: raise --audit-webhook-batch-buffer-size (10000 by \
             default) and --audit-webhook-batch-throttle-qps (10 by default), and see the runbook \
             AuditWebhookError"
        }
        "webhook" => {
            "kube-apiserver gave up after five attempts: check that the relays can be reached at \
             the URL in --audit-webhook-config-file and answer in time, and see the runbook \
             AuditWebhookError"
        }
        "truncate" => {
            "The events were too large: raise --audit-webhook-truncate-max-event-size, or audit \
             with the level Metadata what is so large"
        }
        LOG_PLUGIN => {
            "This is no loss of the webhook: check --audit-log-path and the disk of kube-apiserver"
        }
        _ => {
            "Look for the name of the plugin in kube-apiserver's log, and see the runbook \
              AuditWebhookError"
        }
    }
}

/// Returns the host of the audit webhook as in the metrics, and the POSTs to it by status. If the
/// address is not known and kube-apiserver sends POSTs to several hosts, such as admission
/// webhooks, the result is `None`. Its POSTs to itself (`[::1]`) do not count as long as there are
/// others.
#[must_use]
pub fn webhook_posts(
    counts: &ApiserverCounts,
    address: Option<&Address>,
) -> Option<(String, ByLabel)> {
    let hosts: Vec<&String> = match address {
        Some(address) => counts.posts.keys().filter(|label| address.is(label)).collect(),
        None => {
            let others = counts.posts.keys().filter(|label| !address::is_own(label)).collect();
            let hosts = Some(others).filter(|others: &Vec<_>| !others.is_empty());
            hosts.unwrap_or_else(|| counts.posts.keys().collect())
        }
    };
    let label = *hosts.first()?;
    let is_one = address.is_some() || hosts.iter().all(|other| address::is_same(label, other));
    let mut posts = ByLabel::new();
    for (code, count) in hosts.iter().filter_map(|label| counts.posts.get(*label)).flatten() {
        let sum = posts.entry(code.clone()).or_default();
        *sum = total([*sum, *count]);
    }
    is_one.then(|| (label.clone(), posts))
}

/// Returns the POSTs to the same host in the first sample; `None` if there were none.
#[must_use]
pub fn earlier_posts(
    apiserver: &Sampled<ApiserverCounts>,
    host: &str,
    address: Option<&Address>,
) -> Option<ByLabel> {
    let (earlier, posts) = webhook_posts(apiserver.before.as_ref()?, address)?;
    (address.is_some() || address::is_same(&earlier, host)).then_some(posts)
}

/// Finds attempts that have failed, and a rate near the throttle.
fn attempts(
    place: &str,
    host: &str,
    posts: &BTreeMap<String, u64>,
    earlier: Option<&BTreeMap<String, u64>>,
    elapsed: Option<f64>,
    causes: &mut Vec<Cause>,
) {
    let increase = |code: &String, count: u64| {
        let earlier = earlier.and_then(|it| it.get(code)).copied().unwrap_or_default();
        count.saturating_sub(earlier)
    };
    let increases: Vec<(&String, u64)> =
        posts.iter().map(|(code, count)| (code, increase(code, *count))).collect();
    let failed: Vec<String> = increases
        .iter()
        .filter(|(code, count)| *count > 0 && !code.starts_with('2'))
        .map(|(code, count)| format!("{code}: {count}"))
        .collect();
    if !failed.is_empty() {
        let period = match elapsed.filter(|_| earlier.is_some()) {
            Some(elapsed) => format!("in the last {}", seconds(elapsed)),
            None => "since its start".to_owned(),
        };
        let what = format!("attempts to send to {host} failed {period} ({})", failed.join(", "));
        let advice = "kube-apiserver tries each batch five times: see the runbook \
                      AuditWebhookError for the errors";
        causes.push(Cause::warning(place, what, advice));
    }
    if let Some(elapsed) = elapsed.filter(|elapsed| *elapsed >= RATE_MIN && earlier.is_some()) {
        // An attempt is not a batch: the throttle counts a batch once, and kube-apiserver may send
        // it five times. So there are at least as many batches as successes.
        let taken = increases.iter().filter(|(code, _)| code.starts_with('2'));
        let taken = total(taken.map(|(_, count)| *count));
        let all = total(increases.iter().map(|(_, count)| *count));
        #[allow(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
        let rate = taken.max(all.div_ceil(ATTEMPTS)) as f64 / elapsed;
        if rate >= NEAR * THROTTLE {
            let what = format!(
                "at least {rate:.1} batches a second to {host}, near the throttle of {THROTTLE:.0} (the \
                 default)"
            );
            let advice = "Above it the buffer fills and events are lost: raise \
                          --audit-webhook-batch-throttle-qps, or audit less";
            causes.push(Cause::warning(place, what, advice));
        }
    }
}

fn relay_causes(relay: &Sampled<RelayCounts>, now: f64, causes: &mut Vec<Cause>) {
    let place = format!("relay {}", relay.source);
    if let Some(fault) = &relay.fault {
        let advice = "Check that the relay runs, and that --relay is the URL of its admin address";
        causes.push(Cause::unknown(&place, format!("unknown, {fault}"), advice));
    }
    let Some(counts) = &relay.counts else { return };
    wrong_causes(&place, counts.wrong(), causes);
    let is_named = |metric: &str| {
        counts.wrong.iter().any(|wrong| wrong.name.strip_prefix(PREFIX) == Some(metric))
    };
    let has_no_events = counts.accepted.is_none() && !is_named("event_total");
    if has_no_events || counts.errors.is_none() && !is_named("error_total") {
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
    for plugin in counts.errors.iter().flat_map(BTreeMap::keys) {
        lost(&place, relay, plugin, counts, causes);
    }
    for (name, output) in &counts.outputs {
        let place = format!("output {name} of {}", relay.source);
        output_warnings(&place, output, causes);
        let before = relay.before.as_ref().filter(|_| !is_restarted(relay));
        let differs = difference(counts, name);
        let is_steady = before.is_none_or(|before| difference(before, name) == differs);
        if let Some(differs) = differs.filter(|differs| *differs != 0 && is_steady) {
            let what = format!("the relay's own counts differ by {differs}, unexplained");
            let advice = "See the runbook KubeAuditForwarderConservationBroken";
            causes.push(Cause::unknown(&place, what, advice));
        }
    }
    relay_warnings(&place, relay, counts, now, causes);
}

/// Finds the events that an output of a relay has lost, or those that no output can get.
fn lost(
    place: &str,
    relay: &Sampled<RelayCounts>,
    plugin: &str,
    counts: &RelayCounts,
    causes: &mut Vec<Cause>,
) {
    let before = relay.before.as_ref();
    // The losses of a process that has ended since are losses too.
    let earlier = before.filter(|_| is_restarted(relay)).map_or(0, |it| it.lost(plugin));
    let lost = total([counts.lost(plugin), earlier]);
    if lost == 0 {
        return;
    }
    let increase = before
        .filter(|_| !is_restarted(relay))
        .map(|before| counts.lost(plugin).saturating_sub(before.lost(plugin)))
        .zip(relay.elapsed);
    let since = since(counts.started, increase);
    let output = counts.outputs.get(plugin);
    let letters = output.map_or(0, |output| output.dead_letters);
    let (place, advice) = match (plugin, output) {
        ("queue", None) => (
            format!("the queue of {}", place.trim_start_matches("relay ")),
            "Set queue.when_full = \"reject\", so that kube-apiserver sends again, and enlarge \
             queue.max_bytes; see the runbook KubeAuditForwarderEventsLost"
                .to_owned(),
        ),
        (name, output) => {
            let advice = if letters > 0 {
                format!(
                    "{letters} of them are dead letters: mend the consumer, then send them again \
                     with `replay`; see the runbook KubeAuditForwarderEventsLost"
                )
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
    causes.push(Cause { lost, ..Cause::new(Kind::Lost, place, since, advice) });
}

/// Returns the events that are missing in the sum of a required output: accepted, but neither
/// delivered, nor waiting, nor counted as lost or kept back. Negative if there are too many. `None`
/// if the sum does not hold for this output, or a term is unknown.
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

fn output_warnings(place: &str, output: &OutputCounts, causes: &mut Vec<Cause>) {
    let waiting = output.backlog.unwrap_or_default();
    if output.up == Some(false) && waiting > 0 {
        let what = format!("down, {} waiting, nothing lost by it yet", events(waiting));
        let advice = "last_error in /status says why; see the runbook KubeAuditForwarderOutputDown";
        causes.push(Cause::warning(place, what, advice));
    } else if let Some(lag) = output.lag.filter(|lag| *lag > LAG && waiting > 0) {
        let what = format!("late by {lag:.0} s, {} waiting", events(waiting));
        causes.push(Cause::warning(place, what, "See the runbook KubeAuditForwarderOutputLags"));
    }
}

fn relay_warnings(
    place: &str,
    relay: &Sampled<RelayCounts>,
    counts: &RelayCounts,
    now: f64,
    causes: &mut Vec<Cause>,
) {
    for (reason, &count) in counts.rejected.iter().filter(|(_, count)| **count > 0) {
        let increase = relay.before.as_ref().map(|before| {
            count.saturating_sub(before.rejected.get(reason).copied().unwrap_or_default())
        });
        let since = since(counts.started, increase.zip(relay.elapsed));
        let what = format!(
            "{count} requests rejected with the reason {reason} ({since}); kube-apiserver sends \
             them again, so this alone is no loss"
        );
        causes.push(Cause::warning(place, what, of_reason(reason)));
    }
    if counts.writable == Some(false) {
        let advice = "See the runbook KubeAuditForwarderDiskRefused";
        causes.push(Cause::warning(place, "the queue can't store, senders get 503", advice));
    }
    if let Some((bytes, capacity)) = counts.queue_needed.zip(counts.queue_capacity) {
        #[allow(clippy::cast_precision_loss, reason = "a share needs no more digits")]
        let share = bytes as f64 / capacity.max(1) as f64;
        let waits = counts.outputs.values().any(|output| output.backlog > Some(0));
        if share >= QUEUE_NEARLY_FULL && waits {
            let what = format!("the queue is {:.0} % full", share * 100.0);
            let advice = "See the runbook KubeAuditForwarderQueueNearlyFull";
            causes.push(Cause::warning(place, what, advice));
        }
    }
    for (reason, count) in counts.evidence_errors.iter().filter(|(_, count)| **count > 0) {
        let (what, alert) = match reason.as_str() {
            "rolled_back" => ("the evidence was set back".to_owned(), "EvidenceRolledBack"),
            "tampered" => {
                (format!("{count} events were changed in the queue's files"), "EvidenceTampered")
            }
            "witness" => (format!("{count} requests to a witness were in vain"), "WitnessAway"),
            _ => {
                let what = format!("{count} failed attempts to record evidence ({reason})");
                (what, "EvidenceNotWritten")
            }
        };
        let advice = format!("See the runbook KubeAuditForwarder{alert}");
        causes.push(Cause::warning(place, what, advice));
    }
    let quiet = counts.last_event.filter(|at| *at > 0.0).map(|at| now - at);
    if let Some(quiet) = quiet.filter(|quiet| *quiet > SILENCE) {
        let what = format!("no event accepted for {quiet:.0} s");
        let advice = "See the runbook KubeAuditForwarderNothingReceived";
        causes.push(Cause::warning(place, what, advice));
    }
}

/// Returns the remedy for requests that a relay has rejected for this reason.
fn of_reason(reason: &str) -> &'static str {
    match reason {
        "queue_full" => {
            "Enlarge queue.max_bytes, or mend the output that holds the queue up; see the runbook \
             KubeAuditForwarderSendersWait"
        }
        "in_flight_full" => {
            "Raise limits.max_in_flight; see the runbook KubeAuditForwarderSendersWait"
        }
        "timeout" | "disk" | "delivery_timeout" => "See the runbook KubeAuditForwarderSendersWait",
        "too_large" => {
            "Raise limits.max_body now, because kube-apiserver loses such a batch after five \
             attempts; see the runbook KubeAuditForwarderBatchTooLarge"
        }
        "shutting_down" => "A restart does this; nothing to do",
        "unauthorized" => {
            "The bearer token is missing or wrong: the user in kube-apiserver's \
             --audit-webhook-config-file needs the token of listener.bearer_token_file; see the \
             runbook KubeAuditForwarderRequestsRejected"
        }
        "not_found" => {
            "The path of the URL is wrong: the server in kube-apiserver's \
             --audit-webhook-config-file needs listener.path_prefix; see the runbook \
             KubeAuditForwarderRequestsRejected"
        }
        _ => "See the runbook KubeAuditForwarderRequestsRejected",
    }
}

/// Finds the causes that concern all processes together.
fn whole_causes(findings: &Findings, causes: &mut Vec<Cause>) {
    const WAY: &str = "the way from kube-apiserver to the relays";
    const NOTHING_RECEIVED: &str = "Check the URL in kube-apiserver's \
                                    --audit-webhook-config-file, and see the runbook \
                                    KubeAuditForwarderNothingReceived";
    if findings.relays.is_empty() {
        let what = "there is none to ask";
        causes.push(Cause::unknown("relay", what, "Name the admin address with --relay"));
    }
    let counts: Vec<_> = findings.relays.iter().filter_map(|it| it.counts.as_ref()).collect();
    let are_known = !counts.is_empty() && counts.iter().all(|it| it.accepted.is_some());
    let has_accepted = !are_known || counts.iter().any(|it| it.accepted > Some(0));
    let has_delivered =
        counts.iter().flat_map(|it| it.outputs.values()).any(|output| output.delivered > 0);
    let compared = compare(findings);
    let silence = quiet_for(findings).filter(|quiet| *quiet >= NOTHING_ARRIVES);
    let silence = silence.filter(|_| are_known && grows(findings));
    let is_missing = matches!(compared, Comparison::Missing(_)) || silence.is_some();
    // Rejections of now come first: they explain why nothing arrives, and their remedy is the one
    // to begin with.
    let rejected = match has_accepted {
        false => rejections(findings, since_start, "every request since the start rejected"),
        true if is_missing => {
            rejections(findings, in_interval, "requests rejected in the interval")
        }
        true => None,
    };
    let has_rejected = rejected.is_some();
    causes.extend(rejected);
    let are_files = findings.apiservers.iter().all(|it| it.before.is_none());
    match compared {
        Comparison::Not(_) | Comparison::Equal => {}
        Comparison::Missing(missing) => {
            let advice = match are_files {
                true => {
                    "kube-apiserver may hold a batch for four minutes: run the command again five \
                     minutes later with the same file, and check that --relay names every relay \
                     and that the webhook of kube-apiserver leads there"
                }
                false => {
                    "kube-apiserver may hold a batch for four minutes: run the command again with \
                     --interval 5m, and check that --relay names every relay and that the webhook \
                     of kube-apiserver leads there"
                }
            };
            let missing = events(missing);
            let what = format!("{missing} unexplained: generated, and neither received nor lost");
            causes.push(Cause::unknown(WAY, what, advice));
        }
        Comparison::Surplus(surplus) => {
            let advice = match are_files {
                true => {
                    "Events that came after the file was saved do this: save the metrics and run \
                     the command at once. A batch that was sent twice does it too, and a sender \
                     that is not among the --apiserver: name every kube-apiserver"
                }
                false => {
                    "A batch that was sent twice does this, or a sender that is not among the \
                     --apiserver: name every kube-apiserver, and save files at the same time"
                }
            };
            let what = format!("{} unexplained: received, and not generated", events(surplus));
            causes.push(Cause::unknown(WAY, what, advice));
        }
    }
    if !has_accepted && !has_delivered && !has_rejected {
        let what = "nothing has happened yet: no event accepted since the start";
        causes.push(Cause::unknown("relay", what, NOTHING_RECEIVED));
    } else if let Some(quiet) = silence {
        let what = format!(
            "unexplained: kube-apiserver generates events, and no relay has accepted one for \
             {quiet:.0} s"
        );
        causes.push(Cause::unknown(WAY, what, NOTHING_RECEIVED));
    }
    // Rejections of an earlier time may be the cause too, or have long been mended.
    if has_accepted && is_missing && !has_rejected {
        causes.extend(rejections(findings, since_start, "requests rejected since the start"));
    }
}

/// Returns the requests that a relay has rejected since its start, by reason.
fn since_start(relay: &Sampled<RelayCounts>) -> ByLabel {
    relay.counts.as_ref().map(|counts| counts.rejected.clone()).unwrap_or_default()
}

/// Returns the requests that a relay has rejected between the two samples, by reason.
fn in_interval(relay: &Sampled<RelayCounts>) -> ByLabel {
    let Some(before) = relay.before.as_ref().filter(|_| !is_restarted(relay)) else {
        return ByLabel::new();
    };
    let mut rejected = since_start(relay);
    for (reason, count) in &mut rejected {
        *count = count.saturating_sub(before.rejected.get(reason).copied().unwrap_or_default());
    }
    rejected
}

/// Returns the cause that relays have rejected requests, with the remedy for the most frequent
/// reason; `None` if they have rejected none. `of` returns the numbers of a relay, and `when` says
/// of which time they are.
fn rejections(
    findings: &Findings,
    of: impl Fn(&Sampled<RelayCounts>) -> ByLabel,
    when: &str,
) -> Option<Cause> {
    let (mut places, mut sum) = (Vec::new(), ByLabel::new());
    for relay in &findings.relays {
        let mut rejected = of(relay);
        rejected.retain(|_, count| *count > 0);
        if !rejected.is_empty() {
            places.push(relay.source.as_str());
        }
        for (reason, count) in rejected {
            let entry = sum.entry(reason).or_default();
            *entry = total([*entry, count]);
        }
    }
    let (most, _) = sum.iter().max_by_key(|(_, count)| **count)?;
    let reasons: Vec<_> = sum.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
    let what = format!("{when}, by reason: {}", reasons.join(", "));
    Some(Cause::unknown(&format!("relay {}", places.join(", ")), what, of_reason(most)))
}

/// Returns `true` if a kube-apiserver has generated events in the interval that it has not lost.
fn grows(findings: &Findings) -> bool {
    let grows = |it: &Sampled<ApiserverCounts>| {
        let (before, now) = it.before.as_ref().zip(it.counts.as_ref())?;
        let generated = now.generated?.saturating_sub(before.generated?);
        Some(generated > now.lost().saturating_sub(before.lost()))
    };
    findings.apiservers.iter().any(|it| grows(it) == Some(true))
}

/// Returns the seconds for which no relay has accepted an event; `None` if that is not known, or if
/// one has accepted events in the interval.
fn quiet_for(findings: &Findings) -> Option<f64> {
    let quiet = |it: &Sampled<RelayCounts>| {
        let counts = it.counts.as_ref()?;
        let has_grown = it.before.as_ref().is_none_or(|before| before.accepted < counts.accepted);
        let quiet = match counts.last_event {
            Some(at) => findings.now - at.max(counts.started.unwrap_or_default()),
            None => it.elapsed?,
        };
        Some(quiet).filter(|_| !has_grown && !is_restarted(it))
    };
    let each = findings.relays.iter().map(quiet).collect::<Option<Vec<f64>>>()?;
    each.into_iter().reduce(f64::min)
}

#[cfg(test)]
mod tests;
