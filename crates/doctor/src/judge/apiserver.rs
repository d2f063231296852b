//! Judges the numbers of one kube-apiserver: its losses, its attempts to reach the webhook, and how
//! near it is to its throttle.

use std::collections::BTreeMap;

use super::{Cause, Findings, Kind, RATE_MIN, events, found_cause, seconds, since, wrong_causes};
use crate::attempts;
use crate::attempts::{earlier_posts, webhook_posts};
use crate::counts::{ApiserverCounts, EVENTS, LOG_PLUGIN, WEBHOOK_PLUGIN, listed, total};
use crate::remedy::{of_apiserver, of_encoding, of_plugin};
use crate::sample::Sampled;
use telemetry::status::thresholds::ATTEMPTS;

/// kube-apiserver's default for `--audit-webhook-batch-throttle-qps`, in batches per second.
const THROTTLE: f64 = 10.0;

/// The smallest share of [`THROTTLE`] at which the rate of batches is a warning.
const NEAR: f64 = 0.7;

/// Reports everything about one kube-apiserver that does not concern the relays.
pub(super) fn causes(
    apiserver: &Sampled<ApiserverCounts>,
    findings: &Findings,
    causes: &mut Vec<Cause>,
) {
    let place = format!("kube-apiserver {}", apiserver.source);
    if let Some(fault) = &apiserver.fault {
        let what = format!("unknown, {}", fault.what);
        causes.push(Cause::unknown(&place, what, of_apiserver(fault.change)));
    }
    let Some(counts) = &apiserver.counts else { return };
    wrong_causes(&place, &counts.wrong, causes);
    let posts = webhook_posts(counts, findings.webhook.as_ref());
    lost_by_plugins(&place, apiserver, findings, causes);
    match counts.generated {
        // The series was already reported as wrong.
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
        Some(_) if findings.webhook.is_none() && attempts::only_own(counts) => {
            causes.push(Cause::unknown(
                &place,
                "no attempt to reach an audit webhook is seen: all its POSTs go to itself",
                "Check that kube-apiserver has --audit-webhook-config-file",
            ));
        }
        Some(_) => {}
    }
    if let Some(rejected) = counts.rejected.filter(|rejected| *rejected > 0) {
        let what = format!("{rejected} API requests refused because they could not be audited");
        let advice = "--audit-webhook-mode=blocking-strict refuses requests while the relay is \
                      unreachable: use batch, or make the relay reachable";
        causes.push(Cause::warning(&place, what, advice));
    }
    if let Some((host, posts)) = posts {
        let earlier = earlier_posts(apiserver, &host, findings.webhook.as_ref());
        attempt_causes(&place, &host, &posts, earlier.as_ref(), apiserver, causes);
    }
}

/// Reports the events that the plugins of a kube-apiserver have lost.
fn lost_by_plugins(
    place: &str,
    apiserver: &Sampled<ApiserverCounts>,
    findings: &Findings,
    causes: &mut Vec<Cause>,
) {
    let Some(counts) = &apiserver.counts else { return };
    let instance = match findings.apiservers.len() {
        0 | 1 => String::new(),
        count => format!(", one of {count} instances"),
    };
    for (plugin, &lost) in counts.errors.iter().filter(|(_, lost)| **lost > 0) {
        let of_plugin_in = |it: &ApiserverCounts| Some(it.errors.get(plugin).copied().unwrap_or(0));
        let increase = apiserver.increase(of_plugin_in).zip(apiserver.elapsed);
        let what = format!("plugin {plugin}{instance}, {}", since(counts.started, increase));
        if plugin == LOG_PLUGIN {
            let what = format!("{} of the audit log lost ({what})", events(lost));
            causes.push(Cause::warning(place, what, of_plugin(plugin)));
            continue;
        }
        let is_webhook = plugin == WEBHOOK_PLUGIN;
        let webhook = findings.webhook.as_ref();
        let advice = match is_webhook && attempts::none_failed(apiserver, webhook) {
            true => of_encoding(webhook.is_some()),
            false => of_plugin(plugin).to_owned(),
        };
        let advice = found_cause(findings).filter(|_| is_webhook).unwrap_or(advice);
        let lately = increase.map(|(lost, _)| lost);
        causes.push(Cause { lost, lately, ..Cause::new(Kind::Lost, place, what, advice) });
    }
}

/// Reports failed attempts, and a rate near the throttle.
fn attempt_causes(
    place: &str,
    host: &str,
    posts: &BTreeMap<String, u64>,
    earlier: Option<&BTreeMap<String, u64>>,
    apiserver: &Sampled<ApiserverCounts>,
    causes: &mut Vec<Cause>,
) {
    let elapsed = apiserver.elapsed;
    let increases = attempts::increases(posts, earlier);
    let mut failed = increases.clone();
    failed.retain(|code, count| *count > 0 && !code.starts_with('2'));
    if !failed.is_empty() {
        let period = match elapsed.filter(|_| earlier.is_some()) {
            Some(elapsed) => format!("in the last {}", seconds(elapsed)),
            None => "since its start".to_owned(),
        };
        let what = format!("attempts to send to {host} failed {period} ({})", listed(&failed));
        let advice = "kube-apiserver tries each batch five times: see the runbook \
                      AuditWebhookError for the errors";
        causes.push(Cause::warning(place, what, advice));
    }
    if let Some(elapsed) = elapsed.filter(|elapsed| *elapsed >= RATE_MIN && earlier.is_some()) {
        // The throttle counts a batch once, but kube-apiserver may send it five times. There are
        // therefore at least as many batches as successes, and at least a fifth as many as
        // attempts.
        let all = total(increases.values().copied());
        let taken = all - attempts::failed(&increases);
        let batches = taken.max(all.div_ceil(ATTEMPTS));
        #[allow(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
        let rate = batches as f64 / elapsed;
        // With --audit-webhook-mode=blocking, each event has a request of its own, and there is no
        // throttle. Real batches at such a rate have several events each.
        let sent = apiserver.increase(|it| it.generated);
        let are_batches = sent.is_none_or(|sent| sent >= batches.saturating_mul(2));
        if rate >= NEAR * THROTTLE && are_batches {
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
