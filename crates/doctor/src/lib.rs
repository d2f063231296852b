//! `doctor`: compares the counters of kube-apiserver with those of the relays, and says whether
//! events were lost, where, how many, and what to do.
//!
//! This crate promises that a result which could not be read or compared is named, and never counts
//! as OK. It imports `client` and `telemetry` (the JSON of `/status`). What must never happen here:
//! a second judgement on what a relay has judged itself.
//!
//! kube-apiservers are read by their metrics, and relays by `/status` alone. Each relay has judged
//! its own outputs, its queue, its refusals and its evidence there, and doctor passes that on.
//! doctor judges only what no process can know alone: whether what was sent has arrived.
//!
//! The examination changes nothing, except that the requests of `webhook` and `probe` are counted
//! and audited. A file is read once; a URL is read twice, with some time between the two samples.
//! The two samples show what happens now, and they distinguish events that are on their way from
//! events that are missing.
//!
//! # Floors
//!
//! A file imports only from floors below its own.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `exposition` `kubeconfig` `address` | the text format of Prometheus · a cluster's address and credentials · hosts in labels |
//! | 2 | `counts` `credentials` | the metrics by their names, and a relay's state · a server with the credentials of a kubeconfig |
//! | 3 | `sample` | instances, and the two samples |
//! | 4 | `attempts` `remedy` | kube-apiserver's attempts to reach the webhook · what an operator can do |
//! | 5 | `compare` | what was sent beside what was received |
//! | 6 | `judge` | what the numbers and the relays' own verdicts mean |
//! | 7 | `screen` `webhook` `probe` `names` | how the result is shown · the webhook's URL · events made on purpose · names of one process |

pub mod address;
pub mod attempts;
pub mod compare;
pub mod counts;
pub mod credentials;
pub mod exposition;
pub mod judge;
pub mod kubeconfig;
pub mod names;
pub mod probe;
pub mod remedy;
pub mod sample;
pub mod screen;
pub mod webhook;

use std::time::Duration;

use tokio::time::Instant;

use address::Address;
use compare::Comparison;
use judge::{Findings, Kind, Verdict};
use sample::{Apiservers, Relays, Source};

use client::ask::Target;

/// The longest time for which the second sample is repeated, because events may be on their way.
const SETTLE: Duration = Duration::from_secs(5);

/// The pause before the second sample is repeated. Each sample costs a large kube-apiserver about a
/// second of CPU time.
const PAUSE: Duration = Duration::from_secs(2);

/// The time after which an event has arrived, unless an attempt to send it has failed.
/// kube-apiserver collects a batch for at most 30 s; the rest is for the transfer.
const AGE: Duration = Duration::from_secs(35);

/// The longest time for which doctor waits for events that kube-apiserver may still be collecting.
/// The second half reveals an instance whose webhook leads elsewhere.
const WATCH: Duration = Duration::from_secs(2 * AGE.as_secs());

/// The pause between two samples within [`WATCH`]. The samples fall on different moments within the
/// 30 s for which kube-apiserver collects a batch.
const WATCH_PAUSE: Duration = Duration::from_secs(7);

/// The longest pause between the two samples of the relays if every kube-apiserver is a file. There
/// is no increase to compare then. The second sample only shows whether a relay's numbers are
/// stable, and whether its URL leads to only one relay.
const OF_FILES: Duration = Duration::from_millis(200);

/// The servers and files of an examination, and its options.
pub struct Plan {
    /// The kube-apiservers that were named.
    pub apiservers: Vec<Source>,
    /// The server of a kubeconfig. Its kube-apiservers are the endpoints of a Service.
    pub cluster: Option<Target>,
    /// The number of kube-apiservers behind each URL, if it is known.
    pub instances: Option<usize>,
    /// The relays.
    pub relays: Vec<Source>,
    /// The wanted time between the two samples. [`examine`] waits at most [`OF_FILES`] if every
    /// kube-apiserver is a file.
    pub interval: Duration,
    /// The server of the audit webhook's kubeconfig, if the webhook is to be tried.
    pub webhook: Option<Target>,
    /// `true` if the kubeconfig lets nobody verify the webhook's certificate.
    pub is_insecure: bool,
    /// `true`: kube-apiserver is to generate events on purpose.
    pub probe: bool,
}

impl Plan {
    /// Makes the source of a kube-apiserver. The default path is `/metrics`.
    pub fn apiserver(target: Target) -> Source {
        let path = target.given().unwrap_or("/metrics").to_owned();
        Source::Url(target, path)
    }

    /// Makes the source of a relay from the base URL of its admin pages.
    pub fn relay(target: Target) -> Source {
        let base = target.base();
        let path = format!("{}/status", base.trim_end_matches("/status"));
        Source::Url(target, path)
    }
}

/// Takes the samples and judges them. Before the interval, and before a watch ([`WATCH`]),
/// `waiting` is called with a sentence for the user. It is never called if the interval is 0, if
/// every kube-apiserver is a file, or if no server has answered.
///
/// # Cancel safety
///
/// The future can be dropped at any time. Nothing is stored.
pub async fn examine(plan: Plan, waiting: impl Fn(&str)) -> (Findings, Verdict) {
    let Plan { apiservers, cluster, instances, relays, interval, webhook, is_insecure, probe } =
        plan;
    let is_file = |source: &Source| matches!(source, Source::File(_));
    let has_only_files =
        cluster.is_none() && !apiservers.is_empty() && apiservers.iter().all(is_file);
    let interval = if has_only_files { interval.min(OF_FILES) } else { interval };
    let urls: Vec<(Target, String)> = relays.iter().filter_map(Source::url).collect();
    let mut checks = Vec::new();
    if let Some(webhook) = &webhook {
        checks.extend(webhook::check(webhook, is_insecure, &urls, telemetry::now()).await);
    }
    if let Some(server) = cluster.as_ref().filter(|_| probe) {
        checks.push(probe::check(server, &urls).await);
    }
    let has_apiserver = !apiservers.is_empty() || cluster.is_some();
    let relays = Relays::first(relays).await;
    let apiservers = Apiservers::first(apiservers, cluster, instances).await;
    // Without an answer in the first sample, a second one could not be compared.
    let has_urls = relays.has_answers() || apiservers.has_answers();
    if has_urls {
        if !has_only_files && !interval.is_zero() {
            waiting(&format!("the second sample follows after {} s", interval.as_secs_f64()));
        }
        tokio::time::sleep(interval).await;
    }
    // The relays are asked first in the first sample and last in the second one. Therefore an event
    // that a relay has counted in its first sample was generated before the kube-apiservers were
    // asked. An event that a kube-apiserver generates between its samples can arrive between those
    // of the relays.
    let sample = async || {
        let (apiservers, relays) = apiservers.second(async || relays.second().await).await;
        let findings = Findings {
            apiservers,
            relays,
            has_apiserver,
            webhook: webhook.as_ref().map(|it| Address::new(&it.authority(), it.is_https())),
            checks: checks.clone(),
            overdue: None,
        };
        names::once_each(findings)
    };
    let is_missing = |it: &Comparison| matches!(it, Comparison::Missing(_));
    let is_settled = |found: &Findings| {
        !has_urls || !is_missing(&found.totals()) && !is_missing(&found.increases())
    };
    let limit = SETTLE.min(interval);
    let settled = async || sample::settle(limit, PAUSE, &sample, is_settled).await;
    let mut findings = settled().await;
    let mut verdict = judge::judge(&findings);
    let is_collected = matches!(findings.increases(), Comparison::Collected(..));
    if is_collected && !interval.is_zero() && verdict.kind < Kind::Unknown {
        let limit = WATCH.as_secs();
        waiting(&format!("kube-apiserver may still collect events: watching for up to {limit} s"));
        findings = watched(findings, settled).await;
        verdict = judge::judge(&findings);
    }
    (findings, verdict)
}

/// Repeats the second sample until all generated events have arrived, but not for longer than
/// [`WATCH`]. Within each [`AGE`], a kube-apiserver sends everything that it had generated before.
/// Events are overdue if, in all samples of an [`AGE`], more are missing than were generated
/// between any two consecutive samples.
async fn watched(mut findings: Findings, sample: impl AsyncFn() -> Findings) -> Findings {
    let mut seen: Vec<(Instant, u64, u64)> = Vec::new();
    let begin = Instant::now();
    while let Comparison::Collected(missing, sent) = findings.increases() {
        let now = Instant::now();
        seen.push((now, missing, sent));
        if let Some(first) = seen.iter().rposition(|(at, ..)| *at + AGE <= now) {
            let least = seen[first..].iter().map(|(_, missing, _)| *missing).min();
            let more = seen[first..].windows(2).map(|pair| pair[1].2 - pair[0].2).max();
            findings.overdue = least.filter(|least| Some(*least) > more);
        }
        if findings.overdue.is_some() || now - begin >= WATCH {
            break;
        }
        tokio::time::sleep(WATCH_PAUSE).await;
        findings = sample().await;
    }
    findings
}

#[cfg(test)]
mod tests;
