//! Shows the result: as one screen of text, from kube-apiserver to the consumers, or as one JSON
//! object.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::attempts::{earlier_posts, only_own, webhook_posts};
use super::compare::{Comparison, is_restarted};
use super::counts::{ApiserverCounts, ByLabel, LOG_PLUGIN, Relay, listed, sums, total};
use super::judge::{Cause, Findings, Kind, Part, RATE_MIN, Verdict, events, seconds, time};
use super::sample::Sampled;
use base::words::{counted, escape};
use telemetry::status::verdict::{RUNBOOKS, is_down};
use telemetry::status::{Output, Status};

/// The plugins of kube-apiserver whose errors are losses of the webhook. They are shown with 0 if
/// they are absent.
const PLUGINS: [&str; 3] = ["buffered", "truncate", "webhook"];

const UNKNOWN: &str = "unknown";

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn head(&mut self, text: &str) {
        // The names and reasons in a relay's `/status` may be anything. A write to a `String` can't
        // fail.
        writeln!(self.0, "{}", escape::message(text)).ok();
    }

    fn line(&mut self, name: &str, text: &str) {
        self.head(&format!("  {name:<11} {text}"));
    }
}

/// Returns the screen. Its last line is the verdict.
pub fn text(findings: &Findings, verdict: &Verdict) -> String {
    let mut lines = Lines::default();
    if findings.apiservers.is_empty() {
        lines.head("kube-apiserver: unknown (neither --apiserver nor --kubeconfig was given)");
    }
    for apiserver in &findings.apiservers {
        apiserver_lines(apiserver, &mut lines);
    }
    network_lines(findings, &mut lines);
    if findings.relays.is_empty() {
        lines.head("relay: unknown");
    }
    for relay in &findings.relays {
        relay_lines(relay, &mut lines);
    }
    consumer_lines(findings, &mut lines);
    let of_verdict = |cause: &&Cause| cause.kind == verdict.kind && verdict.kind > Kind::Warning;
    // A cause that the verdict already contains completely is not repeated.
    let is_told = verdict.causes.iter().filter(of_verdict).count() == 1;
    for cause in verdict.causes.iter().filter(|cause| !(is_told && of_verdict(cause))) {
        let word = word(cause.kind);
        let about = if cause.is_estimate { "about " } else { "" };
        let count = match cause.lost {
            0 => String::new(),
            lost => format!("{about}{}, ", events(lost)),
        };
        let end = if cause.advice.is_empty() { "" } else { ". " };
        let (place, what, advice) = (&cause.place, &cause.what, &cause.advice);
        lines.head(&format!("{word}: {place}: {count}{what}{end}{advice}"));
    }
    let mut relays = findings.relays.iter().map(|relay| relay.source.trim_end_matches('/'));
    if let Some(relay) = relays.find(|source| source.contains("://")) {
        let texts = verdict.causes.iter().flat_map(|cause| [&cause.what, &cause.advice]);
        let words = texts.flat_map(|text| text.split(|it: char| !it.is_ascii_alphanumeric()));
        let is_runbook =
            |word: &&str| word.starts_with("KubeAuditForwarder") || *word == "AuditWebhookError";
        for name in words.filter(is_runbook).collect::<BTreeSet<_>>() {
            lines.head(&format!("runbook: {relay}{RUNBOOKS}/{name}"));
        }
    }
    let word = match verdict.kind {
        Kind::Ok | Kind::Warning | Kind::SoFar if verdict.sentence.is_empty() => "OK",
        Kind::Ok | Kind::Warning | Kind::SoFar => "OK so far – ",
        Kind::Unknown => "UNKNOWN – ",
        Kind::Lost => "LOST – ",
    };
    lines.head(&format!("VERDICT: {word}{}", verdict.sentence));
    lines.0
}

/// Returns a number, or the word `unknown`.
fn known(count: Option<u64>) -> String {
    count.map_or_else(|| UNKNOWN.to_owned(), |count| count.to_string())
}

/// Returns the increase of a count as the end of a line, with its rate unless the time is too
/// short. Empty without two samples.
#[allow(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
fn growth(more: Option<u64>, elapsed: Option<f64>) -> String {
    let Some((more, elapsed)) = more.zip(elapsed) else { return String::new() };
    let rate = match elapsed >= RATE_MIN {
        true => format!(" ({:.1}/s)", more as f64 / elapsed),
        false => String::new(),
    };
    format!(", {more} in the last {}{rate}", seconds(elapsed))
}

/// Returns the counts above 0 by label, such as `200: 3, 429: 1`, or `0`.
fn list(counts: &ByLabel) -> String {
    let mut above = counts.clone();
    above.retain(|_, count| *count > 0);
    if above.is_empty() { "0".to_owned() } else { listed(&above) }
}

fn started(at: Option<f64>) -> String {
    at.map_or_else(|| "start unknown".to_owned(), |at| format!("started {}", time(at)))
}

/// Returns the lost events by plugin, including plugins without losses. `None`: the number is
/// unknown.
fn by_plugin(counts: &ApiserverCounts) -> BTreeMap<String, Option<u64>> {
    let none = PLUGINS.iter().map(|name| ((*name).to_owned(), Some(0)));
    let lost = counts.errors.iter().map(|(name, lost)| (name.clone(), Some(*lost)));
    none.chain(lost).chain(counts.unknown_plugins().map(|name| (name, None))).collect()
}

fn apiserver_lines(apiserver: &Sampled<ApiserverCounts>, lines: &mut Lines) {
    let Some(counts) = &apiserver.counts else {
        return lines.head(&format!("kube-apiserver {}: unknown", apiserver.source));
    };
    let state = if apiserver.fault.is_some() { ", then unknown" } else { "" };
    let started = started(counts.started);
    lines.head(&format!("kube-apiserver {} ({started}{state})", apiserver.source));
    let growth = growth(apiserver.increase(|it| it.generated), apiserver.elapsed);
    lines.line("generated", &format!("{}{growth}", known(counts.generated)));
    let by_plugin = by_plugin(counts);
    let told = |(name, lost): (&String, &Option<u64>)| format!("{name}: {}", known(*lost));
    let each: Vec<_> = by_plugin.iter().map(told).collect();
    let note = match by_plugin.contains_key(LOG_PLUGIN) {
        true => "; log is the audit log, not the webhook",
        false => "",
    };
    let least = if by_plugin.values().all(Option::is_some) { "" } else { "at least " };
    lines.line("lost", &format!("{least}{} ({}{note})", counts.lost(), each.join(", ")));
    if !counts.levels.is_empty() {
        lines.line("levels", &list(&counts.levels));
    }
}

fn network_lines(findings: &Findings, lines: &mut Lines) {
    lines.head("network");
    for apiserver in &findings.apiservers {
        let Some(counts) = &apiserver.counts else { continue };
        let Some((host, posts)) = webhook_posts(counts, findings.webhook.as_ref()) else {
            let hosts = counts.posts.len();
            let why = match hosts {
                0 => "no POST counted".to_owned(),
                _ if only_own(counts) => "no POST to a webhook counted".to_owned(),
                _ if findings.webhook.is_some() => "no POST to the webhook counted".to_owned(),
                _ => "--webhook FILE says which of the hosts that get POSTs is the webhook"
                    .to_owned(),
            };
            lines.line("attempts", &format!("unknown: {why}"));
            continue;
        };
        let sum = total(posts.values().copied());
        let earlier = earlier_posts(apiserver, &host, findings.webhook.as_ref());
        let more = earlier.map(|it| sum.saturating_sub(total(it.into_values())));
        let growth = growth(more, apiserver.elapsed);
        lines.line("attempts", &format!("{sum} to {host} ({}){growth}", list(&posts)));
    }
    if findings.apiservers.is_empty() {
        lines.line("attempts", UNKNOWN);
    }
    let relays = findings.relays.iter().filter_map(|it| it.counts.as_ref());
    let requests = relays.map(Relay::requests).collect::<Vec<_>>();
    let requests = sums(&requests);
    match requests.is_empty() {
        true => lines.line("received", UNKNOWN),
        false => lines.line("received", &format!("requests by status: {}", list(&requests))),
    }
    lines.line("totals", &compared(&findings.totals()));
    lines.line("interval", &compared(&findings.increases()));
}

fn compared(comparison: &Comparison) -> String {
    match comparison {
        Comparison::Not(why) => format!("not compared: {why}"),
        Comparison::Equal => "everything that was generated has arrived, or is counted".to_owned(),
        Comparison::More(count) => {
            format!("not compared: the relays have received {count} more than the file counts")
        }
        Comparison::Collected(count, of) => {
            format!("kube-apiserver may still be collecting {count} of {}", events(*of))
        }
        Comparison::Others(count) => {
            format!("{} more than generated: held before, or from other senders", events(*count))
        }
        Comparison::Held(count) => format!("at most {} held by kube-apiserver", events(*count)),
        Comparison::Missing(count) => format!("{} missing, unexplained", events(*count)),
        Comparison::Surplus(count) => format!("{} too many, unexplained", events(*count)),
    }
}

fn relay_lines(relay: &Sampled<Relay>, lines: &mut Lines) {
    let Some(counts) = &relay.counts else {
        return lines.head(&format!("relay {}: unknown", relay.source));
    };
    let Status { process, intake, queue, outputs, .. } = &counts.status;
    let version = &process.version;
    let state = if relay.fault.is_some() { ", then unknown" } else { "" };
    let started = started(Some(process.start_time_seconds));
    lines.head(&format!("relay {} ({version}, {started}{state})", relay.source));
    let elapsed = relay.elapsed.filter(|_| !is_restarted(relay));
    let more = growth(relay.increase(|it| Some(it.accepted())), elapsed);
    lines.line("accepted", &format!("{}{more}", counts.accepted()));
    let refused = counts.refused_connections();
    let connections = match refused.values().any(|count| *count > 0) {
        true => format!("; connections: {}", list(&refused)),
        false => String::new(),
    };
    let requests = list(&intake.rejected_requests);
    lines.line("rejected", &format!("requests by reason: {requests}{connections}"));
    let full = match queue.needed().saturating_mul(100) / queue.capacity_bytes.max(1) {
        0 if queue.needed() > 0 => "< 1".to_owned(),
        full => full.to_string(),
    };
    lines.line("queued", &format!("{}, {full} % of queue.max_bytes", events(queue.events)));
    lines.line("lost", &format!("{} that no output could get", queue.lost_events));
    for output in outputs {
        let more = growth(relay.increase(|it| delivered(it, &output.name)), elapsed);
        output_lines(relay, output, &more, lines);
    }
}

/// Returns the number of events that an output has delivered. `None` if there is no such output.
fn delivered(relay: &Relay, name: &str) -> Option<u64> {
    let output = relay.status.outputs.iter().find(|it| it.name == name)?;
    Some(output.counts.delivered_events)
}

/// Returns `true` if the last attempt succeeded, and `None` before the first attempt.
fn is_up(it: &Output) -> Option<bool> {
    (it.health.up || is_down(it)).then_some(it.health.up)
}

fn output_lines(relay: &Sampled<Relay>, output: &Output, more: &str, lines: &mut Lines) {
    let Output { backlog, counts, .. } = output;
    let state = match (is_up(output), output.required) {
        (Some(false), false) => " (down, optional)",
        (Some(false), true) => " (down)",
        (None, false) => " (never used, optional)",
        (None, true) => " (never used)",
        (Some(true), false) => " (optional)",
        (Some(true), true) => "",
    };
    lines.head(&format!("output {} of {}{state}", output.name, relay.source));
    lines.line("delivered", &format!("{}{more}", counts.delivered_events));
    let lag = match backlog.backlog_events {
        0 => String::new(),
        _ => format!(", the oldest for {}", seconds(backlog.lag_seconds)),
    };
    lines.line("waiting", &format!("{}{lag}", events(backlog.backlog_events)));
    let failed = list(&counts.errors);
    lines.line("retried", &format!("{} (failed attempts: {failed})", counts.retries));
    lines.line("filtered", &list(&counts.filtered));
    let letters = counts.dead_letter_events;
    lines.line("lost", &format!("{}, dead letters {letters}", counts.lost_events));
}

fn consumer_lines(findings: &Findings, lines: &mut Lines) {
    let mut any = false;
    for relay in &findings.relays {
        let evidence = relay.counts.as_ref().and_then(|it| it.status.evidence.as_ref());
        let Some(evidence) = evidence.filter(|it| it.size > 0) else { continue };
        any = true;
        let age = match evidence.last_checkpoint_seconds_ago {
            Some(age) => format!("the last checkpoint {age:.0} s ago"),
            None => "no checkpoint yet".to_owned(),
        };
        lines.head(&format!(
            "consumer: evidence present at {} ({}, {age}), not checked here. Check it with",
            relay.source,
            counted(evidence.size, "entry", "entries"),
        ));
        lines.head("  evidence verify --directory DIR --key VKEY --output NAME --events FILE");
    }
    if !any {
        lines.head(
            "consumer: not checked (no relay keeps evidence; with [evidence] in its config, \
             `evidence verify` checks",
        );
        lines.head("  what a consumer has stored)");
    }
}

/// Returns the result as one JSON object.
pub fn json(findings: &Findings, verdict: &Verdict) -> Value {
    let outputs: Vec<Value> = findings.relays.iter().flat_map(outputs_json).collect();
    json!({
        "apiserver": apiserver_json(findings, notes(verdict, false)),
        "relay": relay_json(findings, notes(verdict, true)),
        "outputs": outputs,
        "verdict": match verdict.kind {
            Kind::Ok | Kind::Warning | Kind::SoFar => "ok",
            Kind::Unknown => UNKNOWN,
            Kind::Lost => "lost",
        },
        "lost": verdict.lost,
        "where": verdict.place,
        "advice": verdict.advice,
    })
}

/// Returns the causes about the relays or, if `of_relays` is `false`, all others.
fn notes(verdict: &Verdict, of_relays: bool) -> Vec<Value> {
    let is_wanted = |cause: &&Cause| (cause.part == Part::Relay) == of_relays;
    let note = |cause: &Cause| {
        json!({
            "kind": word(cause.kind),
            "lost": cause.lost,
            "lost_in_interval": cause.lately,
            "estimated": cause.is_estimate,
            "where": cause.place,
            "what": cause.what,
            "advice": cause.advice,
        })
    };
    verdict.causes.iter().filter(is_wanted).map(note).collect()
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Ok => "ok",
        Kind::Warning | Kind::SoFar => "warning",
        Kind::Unknown => UNKNOWN,
        Kind::Lost => "lost",
    }
}

/// Returns `known` if all processes could be read, `unknown` if none could, and otherwise `partly`.
fn state<C>(sampled: &[Sampled<C>]) -> &'static str {
    let read = sampled.iter().filter(|it| it.fault.is_none()).count();
    match read {
        0 => UNKNOWN,
        _ if read == sampled.len() => "known",
        _ => "partly",
    }
}

/// Returns the sum of a count over all sources. `None` without sources, or if one count is unknown.
fn sum<C>(sampled: &[Sampled<C>], of: impl Fn(&C) -> Option<u64>) -> Option<u64> {
    let each: Option<Vec<u64>> =
        sampled.iter().map(|it| it.counts.as_ref().and_then(&of)).collect();
    each.filter(|each| !each.is_empty()).map(total)
}

fn apiserver_json(findings: &Findings, notes: Vec<Value>) -> Value {
    let apiservers = &findings.apiservers;
    let address = findings.webhook.as_ref();
    let instance = |it: &Sampled<ApiserverCounts>| {
        let counts = it.counts.as_ref();
        let posts = counts.and_then(|counts| webhook_posts(counts, address));
        json!({
            "source": it.source,
            "start_time_seconds": counts.and_then(|counts| counts.started),
            "generated": counts.and_then(|counts| counts.generated),
            "generated_in_interval": it.increase(|counts| counts.generated),
            "interval_seconds": it.elapsed,
            "lost": counts.map(by_plugin),
            "levels": counts.map(|counts| &counts.levels),
            "rejected_requests": counts.and_then(|counts| counts.rejected),
            "webhook_host": posts.as_ref().map(|(host, _)| host),
            "attempts": posts.as_ref().map(|(_, by_code)| by_code),
            "error": it.fault.as_ref().map(|fault| &fault.what),
        })
    };
    let unexplained = |comparison: &Comparison| match comparison {
        Comparison::Equal => Some((0, 0)),
        Comparison::Missing(count) => Some((*count, 0)),
        Comparison::Surplus(count) => Some((0, *count)),
        // These comparisons show nothing about missing events.
        Comparison::Not(_)
        | Comparison::More(_)
        | Comparison::Collected(..)
        | Comparison::Others(_)
        | Comparison::Held(_) => None,
    };
    let totals = unexplained(&findings.totals());
    // A surplus of the interval may hide missing events.
    let increases = unexplained(&findings.increases()).filter(|(_, surplus)| *surplus == 0);
    json!({
        "state": state(apiservers),
        "generated": sum(apiservers, |counts| counts.generated),
        "lost": sum(apiservers, |counts| counts.lost_if_known()),
        "unexplained_missing": totals.map(|(missing, _)| missing),
        "unexplained_surplus": totals.map(|(_, surplus)| surplus),
        "unexplained_missing_in_interval": increases.map(|(missing, _)| missing),
        "notes": notes,
        "instances": apiservers.iter().map(instance).collect::<Vec<_>>(),
    })
}

fn relay_json(findings: &Findings, notes: Vec<Value>) -> Value {
    let relays = &findings.relays;
    let counts = relays.iter().filter_map(|it| it.counts.as_ref());
    let rejected = sums(counts.map(|counts| &counts.status.intake.rejected_requests));
    let instance = |it: &Sampled<Relay>| {
        let counts = it.counts.as_ref();
        let status = counts.map(|counts| &counts.status);
        let evidence = status.and_then(|status| status.evidence.as_ref());
        let checkpoint = status.zip(evidence).and_then(|(status, evidence)| {
            Some(status.process.time_seconds - evidence.last_checkpoint_seconds_ago?)
        });
        json!({
            "source": it.source,
            "version": status.map(|status| &status.process.version),
            "start_time_seconds": status.map(|status| status.process.start_time_seconds),
            "accepted": counts.map(Relay::accepted),
            "accepted_in_interval": it.increase(|counts| Some(counts.accepted())),
            "interval_seconds": it.elapsed,
            "lost": counts.map(Relay::lost),
            "rejected": status.map(|status| &status.intake.rejected_requests),
            "refused_connections": counts.map(Relay::refused_connections),
            "requests": counts.map(Relay::requests),
            "queued": status.map(|status| status.queue.events),
            "evidence_size": status.map(|_| evidence.map_or(0, |evidence| evidence.size)),
            "last_checkpoint_seconds": checkpoint,
            "error": it.fault.as_ref().map(|fault| &fault.what),
        })
    };
    json!({
        "state": state(relays),
        "accepted": sum(relays, |counts| Some(counts.accepted())),
        "rejected": rejected,
        "queued": sum(relays, |counts| Some(counts.status.queue.events)),
        "lost": sum(relays, |counts| Some(total(counts.lost().into_values()))),
        "notes": notes,
        "instances": relays.iter().map(instance).collect::<Vec<_>>(),
    })
}

fn outputs_json(relay: &Sampled<Relay>) -> Vec<Value> {
    let Some(counts) = &relay.counts else { return Vec::new() };
    let output = |output: &Output| {
        let Output { name, backlog, counts, .. } = output;
        json!({
            "relay": relay.source,
            "name": name,
            "delivered": counts.delivered_events,
            "delivered_in_interval": relay.increase(|it| delivered(it, name)),
            "waiting": backlog.backlog_events,
            "lag_seconds": backlog.lag_seconds,
            "retried": counts.retries,
            "failed_attempts": counts.errors,
            "filtered": counts.filtered,
            "dead_letters": counts.dead_letter_events,
            "lost": counts.lost_events,
            "up": is_up(output),
            "required": output.required,
        })
    };
    counts.status.outputs.iter().map(output).collect()
}
