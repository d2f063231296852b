//! Judges everything that was read: whether events were lost, where, and what to do.
//!
//! - Events are *lost* if an error counter says so, since the start of its process. They are also
//!   lost if the relays report that they refused everything for longer than kube-apiserver tries,
//!   and no kube-apiserver counts what it has given up.
//! - A difference between what was sent and what was received is *unexplained*. It is not a loss,
//!   because kube-apiserver may hold a batch for four minutes.
//! - Something is *unknown* if it could not be read, or has not happened yet.
//! - The relays judge their own state. The verdict is never better than their findings: trouble
//!   without a loss so far makes it "OK so far".
//! - Everything else that an operator should look at is a warning, and does not change the verdict.

mod apiserver;
mod own;
mod relay;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use super::address::Address;
use super::compare::{Comparison, STARTS_APART_MAX, is_of_batch, rejected, rejected_in_interval};
use super::counts::{ApiserverCounts, ByLabel, Relay, Wrong, listed, most, sums, total};
use super::remedy::of_reason;
use super::sample::Sampled;
use super::{attempts, compare};
use audit::time::rfc3339;
use base::words::{counted, escape};

/// The minimum interval in seconds for which a rate is shown. One batch in a moment is not a rate.
pub const RATE_MIN: f64 = 1.0;

/// The number of seconds without an accepted event after which generated events are reported as
/// unexplained. kube-apiserver collects a batch for at most 30 s.
const NOTHING_ARRIVES: f64 = 60.0;

/// The maximum age in seconds at which the restart of a kube-apiserver explains a surplus.
const RESTART_AGE: f64 = 600.0;

/// The seconds for which the restart of a kube-apiserver is reported, because it has forgotten its
/// losses. A relay reports what its earlier processes have lost for the same time.
const DAY: f64 = 24.0 * 3600.0;

/// The maximum error in seconds of a difference between the clocks of two machines.
const CLOCK_ERROR_MAX: f64 = 5.0;

/// The maximum number of characters of a kube-apiserver's name. A Lease's name is shorter.
const NAME_MAX: usize = 64;

/// The maximum number of places in the verdict's sentence. The screen has all of them.
const PLACES_MAX: usize = 3;

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Findings {
    /// The kube-apiservers.
    pub apiservers: Vec<Sampled<ApiserverCounts>>,
    /// The relays.
    pub relays: Vec<Sampled<Relay>>,
    /// `true`: the user named a kube-apiserver. Otherwise only the relays are judged.
    pub has_apiserver: bool,
    /// The address of the audit webhook, if it is known.
    pub webhook: Option<Address>,
    /// The results of the checks of `webhook` and `probe`, and the names that were left out because
    /// they lead to the same process as another one.
    pub checks: Vec<Cause>,
    /// The number of missing events that kube-apiserver can't be collecting any more. `None` if
    /// there are none, or if doctor has not waited for them.
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

/// The severity of a cause or of the verdict. The verdict has the highest severity of all causes,
/// but [`Kind::Warning`] and [`Kind::SoFar`] count as [`Kind::Ok`] there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A check found everything in order.
    Ok,
    /// An operator should look at this, but it is not a loss of the webhook.
    Warning,
    /// Nothing is lost so far, but the verdict names a problem: events wait, or something was not
    /// compared.
    SoFar,
    /// Something can't be known.
    Unknown,
    /// Events are lost.
    Lost,
}

/// The subject of a [`Cause`]: a part of the way from kube-apiserver to the consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A kube-apiserver, or everything between it and the relays.
    Apiserver,
    /// The URL of the audit webhook, which doctor has tried.
    Webhook,
    /// The relays, their queues and their outputs.
    Relay,
}

/// A fact, with its place and the action for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The severity.
    pub kind: Kind,
    /// The part of the system.
    pub part: Part,
    /// The number of lost events; 0 except for [`Kind::Lost`].
    pub lost: u64,
    /// The number of events that were lost between the two samples, if it is known.
    pub lately: Option<u64>,
    /// `true`: `lost` is an estimate.
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

    /// Returns the cause with this part.
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
    /// The number of lost events at all places.
    pub lost: u64,
    /// The places that the verdict is about; empty if everything is in order.
    pub place: String,
    /// The action for the operator; empty if there is nothing to do.
    pub advice: String,
    /// The verdict as a sentence; empty if everything is in order.
    pub sentence: String,
    /// All causes, the most severe first.
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
    causes.extend(not_asked(findings));
    causes.extend(forgotten(findings));
    let of_relays = causes.len();
    for relay in &findings.relays {
        relay::causes(relay, findings, &mut causes);
    }
    let given_up = own::given_up(findings);
    let is_given_up_reported = given_up.is_some();
    causes.extend(given_up);
    for relay in &findings.relays {
        relay::turned_away(relay, findings, &mut causes);
        own::causes(relay, is_given_up_reported, &mut causes);
    }
    causes.iter_mut().skip(of_relays).for_each(|cause| cause.part = Part::Relay);
    whole_causes(findings, &mut causes);
    causes.extend(findings.relays.iter().filter_map(|it| relay::unrecorded(it, findings)));
    causes.sort_by_key(|cause| (Reverse(cause.kind), Reverse(cause.lost)));
    verdict(causes)
}

/// Reports kube-apiservers that the relays have heard within an hour, and that were not asked. The
/// counters of a kube-apiserver do not have the name by which the relays know it, so the numbers
/// are compared.
fn not_asked(findings: &Findings) -> Option<Cause> {
    let relays = findings.relays.iter().filter_map(|it| it.counts.as_ref());
    let heard = relays.flat_map(|it| &it.status.apiservers);
    let heard: BTreeSet<_> = heard.map(|it| escape::masked(&it.name, NAME_MAX)).collect();
    let asked = asked(findings);
    (findings.has_apiserver && heard.len() > asked).then(|| {
        let names: Vec<_> = heard.iter().map(String::as_str).collect();
        let what = format!(
            "the relays have heard {} in the last hour ({}), and {asked} could be asked: what the \
             others have sent or lost is unknown",
            heard.len(),
            names.join(", ")
        );
        let advice = "Name each one with --apiserver, or ask for more with --instances. The relays \
                      forget one that has left the cluster after an hour";
        Cause::unknown("kube-apiserver", what, advice)
    })
}

/// Returns the number of kube-apiservers that could be asked.
fn asked(findings: &Findings) -> usize {
    findings.apiservers.iter().filter(|it| it.counts.is_some()).count()
}

/// Puts the most severe causes into one sentence.
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
        let more = (of_kind.len() - PLACES_MAX) as u64;
        sentence.push(counted(more, "more place above", "more places above"));
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
            let also = also.map(|cause| format!(". Also: {}", told(&cause)));
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

/// Returns the word before an estimated number, or nothing for a counted one.
fn about(cause: &Cause) -> &'static str {
    if cause.is_estimate { "about " } else { "" }
}

/// Returns a sentence that says whether events were lost in the interval. Empty if the time of a
/// loss is unknown.
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

/// Formats a time in seconds since 1970, without milliseconds.
pub fn time(seconds: f64) -> String {
    let since = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    match UNIX_EPOCH.checked_add(since) {
        Some(at) => format!("{}Z", rfc3339(at).split('.').next().unwrap_or_default()),
        None => "an impossible time".to_owned(),
    }
}

/// Formats a number of seconds, such as `0.2 s` or `30 s`.
pub fn seconds(elapsed: f64) -> String {
    if elapsed < 9.95 { format!("{elapsed:.1} s") } else { format!("{elapsed:.0} s") }
}

/// Returns the time since which a counter counts, and its increase in the interval if it has one.
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

/// Returns the reason why events of kube-apiserver do not arrive, with the remedy, if doctor has
/// found one.
fn found_cause(findings: &Findings) -> Option<String> {
    let is_of_webhook = |cause: &&Cause| cause.kind == Kind::Unknown && cause.part == Part::Webhook;
    let of_webhook = findings.checks.iter().find(is_of_webhook);
    if let Some(Cause { place, what, advice, .. }) = of_webhook {
        return Some(format!("doctor has found a cause: {place}: {what}. {advice}"));
    }
    let fails = fails(findings);
    for relay in &findings.relays {
        let mut refused = rejected_in_interval(relay);
        refused.retain(|reason, count| *count > 0 && (fails || is_of_batch(reason)));
        if !refused.is_empty() {
            let (reasons, advice) = (listed(&refused), of_reason(most(&refused)));
            let source = &relay.source;
            return Some(format!(
                "doctor has found a cause: relay {source} refuses ({reasons}). {advice}"
            ));
        }
    }
    let mut relays = findings.relays.iter();
    let (source, fault) = relays.find_map(|it| Some((&it.source, &it.fault.as_ref()?.what)))?;
    Some(format!(
        "doctor cannot reach the relay {source} either ({fault}): check first that it runs, and \
         see the runbook AuditWebhookError"
    ))
}

fn wrong_causes(place: &str, wrong: &[Wrong], causes: &mut Vec<Cause>) {
    let cause = |wrong: &Wrong| {
        let advice = "Run the command again; if the value stays, look at the /metrics of this \
                      process, and at the proxies in front of it";
        Cause::unknown(place, format!("unknown, {wrong}"), advice)
    };
    causes.extend(wrong.iter().map(cause));
}

/// The place of causes that concern everything between kube-apiserver and the relays.
const WAY: &str = "the path from kube-apiserver to the relays";

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
    let has_accepted = counts.is_empty() || counts.iter().any(|it| it.accepted() > 0);
    let mut outputs = counts.iter().flat_map(|it| &it.status.outputs);
    let has_delivered = outputs.any(|it| it.counts.delivered_events > 0);
    // The cause of a failed read already says why nothing was compared.
    let is_unknown = causes.iter().any(|it| it.kind == Kind::Unknown);
    let is_compared = !matches!(
        (findings.totals(), findings.increases()),
        (Comparison::Not(_), Comparison::Not(_))
    );
    let compared = compared(findings).filter(|_| is_compared || !is_unknown);
    let silence = own::quiet(findings).filter(|quiet| *quiet >= NOTHING_ARRIVES);
    let silence = silence.filter(|_| grows(findings));
    let is_missing =
        is_compared && compared.iter().any(|it| it.kind == Kind::Unknown) || silence.is_some();
    // Current rejections come first: they explain why nothing arrives, and the operator should
    // begin with their remedy.
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
    if !findings.has_apiserver {
        let advice = "Name it with --kubeconfig or --apiserver, to compare what was generated with \
                      what was received";
        let what = "kube-apiserver was not asked";
        causes.push(Cause::new(Kind::SoFar, "kube-apiserver", what, advice));
    }
}

const ASK_TWICE: &str = "Ask kube-apiserver by a URL, such as that of kubectl proxy, so that two \
                         samples can be compared";

/// Returns the cause that events are missing; `when` is the time to which they belong.
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
             names every relay and that kube-apiserver's webhook leads to them"
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
            let advice = "A batch that was sent twice causes this, or a sender that no --apiserver \
                names: name every kube-apiserver";
            let advice = restarted_lately(findings).unwrap_or_else(|| advice.to_owned());
            let what = format!("{} unexplained: received, and not generated", events(*surplus));
            Some(Cause::unknown(WAY, what, advice))
        }
        (_, Comparison::Held(count)) => {
            let what = format!(
                "kube-apiserver may hold {} whose requests have failed, and retry them",
                events(*count)
            );
            let advice = "Run the command again with --interval 5m; see the runbook \
                          AuditWebhookError";
            so_far(what, advice)
        }
        (_, Comparison::Collected(count, of)) => {
            let what = format!(
                "kube-apiserver may still be collecting {count} of {of}, which were not compared"
            );
            let advice = "Run the command again with --interval 5m, so that fewer remain";
            so_far(what, advice)
        }
        (_, Comparison::Others(count)) => {
            let what = format!(
                "up to {} may be hidden by senders that were not asked: received in the interval, \
                 but not generated in it",
                events(*count)
            );
            let advice = "Name every kube-apiserver. If all are named, they sent events that they \
                had held: run the command again";
            so_far(what, &restarted_lately(findings).unwrap_or_else(|| advice.to_owned()))
        }
        (Comparison::More(more), _) => {
            let what = format!(
                "generated and received events were not compared: the relays have received {more} \
                 more than the file counts. These came after the file was saved, and may hide \
                 missing ones"
            );
            so_far(what, ASK_TWICE)
        }
        (Comparison::Not(why), Comparison::Not(_)) if findings.has_apiserver => {
            let what = format!("generated and received events were not compared: {why}");
            Some(Cause::unknown(WAY, what, ASK_TWICE))
        }
        _ => None,
    }
}

/// Returns `true` if kube-apiservers were named, and the number of generated events of each is
/// known.
fn is_asked(findings: &Findings) -> bool {
    let is_known = |it: &Sampled<ApiserverCounts>| {
        it.fault.is_none() && it.counts.as_ref().is_some_and(|it| it.generated.is_some())
    };
    findings.has_apiserver && findings.apiservers.iter().all(is_known)
}

/// A kube-apiserver that has started after the first relay.
struct Late<'f> {
    source: &'f str,
    /// The start, in seconds since 1970 by its own clock.
    at: f64,
    age: f64,
    /// The seconds between the start of the first relay and its own.
    after: f64,
    /// `Some(true)`: the relays had heard every kube-apiserver before, so an earlier process of
    /// this one has ended. `Some(false)`: they had not, and this one may be new. `None`: they have
    /// heard none, because the audit policy may leave out the updates of the Leases.
    is_restart: Option<bool>,
}

fn late(findings: &Findings) -> Vec<Late<'_>> {
    let relays = || findings.relays.iter().filter_map(|it| it.counts.as_ref());
    let start = |it: &Relay| it.clock.here(it.status.process.start_time_seconds);
    let Some(first) = relays().map(start).reduce(f64::min) else { return Vec::new() };
    let mut heard = BTreeMap::<&str, f64>::new();
    for relay in relays() {
        for it in &relay.status.apiservers {
            let ago = it.first_heard_seconds_ago.unwrap_or_default();
            let at = relay.clock.here(relay.status.process.time_seconds - ago);
            heard.entry(&it.name).and_modify(|first| *first = first.min(at)).or_insert(at);
        }
    }
    let is_whole = heard.len() >= asked(findings);
    let late = findings.apiservers.iter().filter_map(|it| {
        let counts = it.counts.as_ref()?;
        let (at, source) = (counts.started?, &*it.source);
        let (age, here) = (counts.clock.age(at)?, counts.clock.here(at));
        let is_before = |heard: &f64| here - heard > CLOCK_ERROR_MAX;
        // A new one is heard within a minute.
        let is_restart = is_whole && age > STARTS_APART_MAX && heard.values().all(is_before);
        let is_restart = (!heard.is_empty()).then_some(is_restart);
        Some(Late { source, at, age, after: here - first, is_restart })
    });
    late.filter(|it| it.after > 0.0).collect()
}

/// Reports the kube-apiservers that were restarted in the last day: nobody counts any more what
/// their earlier processes have lost.
fn forgotten(findings: &Findings) -> impl Iterator<Item = Cause> {
    let late = late(findings).into_iter();
    let of_day = late.filter(|it| it.after > STARTS_APART_MAX && it.age < DAY);
    of_day.map(|Late { source, at, is_restart, .. }| {
        let (kind, was) = match is_restart {
            Some(true) => (Kind::Unknown, "was"),
            Some(false) => (Kind::SoFar, "may have been"),
            None => (Kind::Warning, "may have been"),
        };
        let what = format!(
            "{source} {was} restarted at {}, after the relays: what an earlier process of it has \
             lost is not compared, because no counter shows it any more",
            time(at)
        );
        let advice = "To check for past losses, look at apiserver_audit_error_total in Prometheus, \
                      or compare the consumer's events with the audit log of kube-apiserver";
        Cause::new(kind, format!("kube-apiserver {source}"), what, advice)
    })
}

/// Returns the advice for a surplus that a restart of a kube-apiserver explains: the relays have
/// received events that its earlier process generated. `None` without a proof of a restart within
/// [`RESTART_AGE`].
fn restarted_lately(findings: &Findings) -> Option<String> {
    let is_proven = |it: &Late<'_>| it.is_restart == Some(true) && it.age < RESTART_AGE;
    let Late { source, at, .. } = late(findings).into_iter().find(is_proven)?;
    Some(format!(
        "kube-apiserver {source} was restarted at {}, after the relays, which counted what it had \
         sent before: run the command again in ten minutes",
        time(at)
    ))
}

/// Returns `true` if attempts of a kube-apiserver to reach its webhook failed in the interval.
fn fails(findings: &Findings) -> bool {
    let webhook = findings.webhook.as_ref();
    findings.apiservers.iter().any(|it| attempts::failed_in_interval(it, webhook) > Some(0))
}

/// Returns a cause that says that relays have rejected requests, and has the remedy for the most
/// frequent reason. `None` without rejections. `of` returns the rejections of a relay by reason.
/// `when` is the beginning of the text, such as `requests rejected in the interval`.
fn rejections(
    findings: &Findings,
    of: impl Fn(&Sampled<Relay>) -> ByLabel,
    when: &str,
) -> Option<Cause> {
    let rejected = findings.relays.iter().filter_map(|relay| {
        let mut rejected = of(relay);
        rejected.retain(|_, count| *count > 0);
        (!rejected.is_empty()).then_some((relay.source.as_str(), rejected))
    });
    let (places, rejected): (Vec<&str>, Vec<_>) = rejected.unzip();
    let sum = sums(&rejected);
    let what = format!("{when}, by reason: {}", listed(&sum));
    let place = format!("relay {}", places.join(", "));
    let cause = Cause::unknown(&place, what, of_reason(most(&sum))).about(Part::Relay);
    Some(cause).filter(|_| !sum.is_empty())
}

/// Returns `true` if a kube-apiserver generated more events in the interval than it lost.
fn grows(findings: &Findings) -> bool {
    let grows = |it: &Sampled<ApiserverCounts>| {
        it.increase(|counts| counts.generated) > it.increase(|counts| Some(counts.lost()))
    };
    findings.apiservers.iter().any(grows)
}

#[cfg(test)]
mod tests;
