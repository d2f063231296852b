//! The judgement of a relay's state: the findings, worst first but notes last, each with what
//! follows from it ([`causes`]), and the headline.
//!
//! The relay judges itself and puts the verdict into `/status`, so that the status page, `top` and
//! scripts cannot contradict each other. The judgement is a pure function of the other fields.
//! No text has a number that changes with each answer, because browsers read new texts aloud.

use serde::{Deserialize, Serialize};

mod causes;

use super::thresholds::{
    ALL_DROPPED, APISERVER_SILENT, CERTIFICATE_DAYS, FULL_WITHIN, MEMORY_NEARLY_USED, PATIENCE,
    PATIENCE_WITH_RETRY_AFTER, QUEUE_NEARLY_FULL, SILENCE, SLOW_ANSWERS, STALLED_LATELY,
};
use super::{Address, Aside, Certificate, Output, Queue, Status};

/// How good or bad the state of the relay, or of a part of it, is. The order is from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing is wrong.
    Good,
    /// Something is worth mentioning, but nobody has to act.
    Note,
    /// Something is wrong that costs no event yet, or only where the config allows it.
    Warn,
    /// Events are lost or refused, or will be if nobody acts.
    Bad,
}

/// The subject of a finding, for scripts and for [`causes`]. In the order of this list, a cause
/// stands before what may follow from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The relay is starting.
    Starting,
    /// The relay is shutting down.
    Stopping,
    /// Files of the queue or of its evidence were changed or removed.
    EvidenceTampered,
    /// A witness has seen a newer log of evidence.
    EvidenceRolledBack,
    /// A certificate has expired.
    CertificateExpired,
    /// A certificate expires soon.
    CertificateExpires,
    /// The disk of the queue refuses to store events.
    DiskRefused,
    /// A consumer turns down some events, and accepts others.
    EventsRefused,
    /// The config has paused an output.
    OutputPaused,
    /// A consumer accepts nothing.
    OutputDown,
    /// A consumer fails and recovers, in turn.
    OutputUnsteady,
    /// A consumer's address is not used, because it has failed.
    AddressDown,
    /// A consumer's address accepts connections again, but has taken no events yet.
    AddressOnTrial,
    /// A delivery has timed out.
    OutputStalls,
    /// Events wait too long for an output.
    OutputLate,
    /// A filter drops every event.
    AllFiltered,
    /// The queue is nearly full, or will be full within an hour.
    QueueFills,
    /// The queue is full.
    QueueFull,
    /// A listener waits for its certificate.
    ListenerClosed,
    /// Requests arrive too slowly.
    SlowRequests,
    /// Connections of senders are closed or not accepted.
    ConnectionsRefused,
    /// The bodies of requests have reached `limits.max_in_flight`.
    InFlightFull,
    /// Senders get 503.
    SendersWait,
    /// Everything is refused for good.
    EverythingRefused,
    /// Some requests are refused for good.
    RequestsRejected,
    /// TLS handshakes of senders fail.
    TlsHandshakesFail,
    /// Responses to senders are slow.
    SlowAnswers,
    /// Evidence cannot be recorded.
    EvidenceNotWritten,
    /// A witness does not cosign.
    WitnessAway,
    /// Events were accepted and then lost.
    EventsLost,
    /// Senders may have dropped events that the relay refused for too long.
    SendersGaveUp,
    /// No event was accepted for a quarter of an hour.
    NothingReceived,
    /// An earlier process has lost events.
    EarlierLosses,
    /// An earlier process was killed.
    Killed,
    /// Memory is nearly used up.
    MemoryNearLimit,
    /// A new config was refused, or cannot open its address.
    ReloadFailed,
    /// A source has an error.
    SourceFails,
    /// One of several kube-apiservers is silent.
    ApiserverSilent,
    /// Lines are missing in the log.
    LogIncomplete,
    /// Nothing is wrong.
    Good,
    /// A kind that this version does not know.
    #[default]
    #[serde(other)]
    Other,
}

/// One thing that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The subject, such as `output_down`. Other versions may have other kinds.
    #[serde(default)]
    pub kind: Kind,
    /// `bad` (needs action), `warn` (worth a look), `note` or `good`: its own state, or that of its
    /// worst consequence.
    pub state: State,
    /// The part of the relay: `queue`, `output NAME`, `listener ADDRESS`, `source NAME`, `evidence`
    /// or `relay`; `senders`: events that senders lost before they reached the relay.
    pub about: String,
    /// One or two sentences that describe the fact.
    pub text: String,
    /// What an operator can do; `None` if nothing needs to be done.
    pub advice: Option<String>,
    /// The URL of the runbook named at the end of `advice`; `None` if it names none.
    #[serde(default)]
    pub runbook: Option<String>,
    /// The consequences of this finding, which end with it. They have none of their own.
    #[serde(default)]
    pub consequences: Vec<Finding>,
}

impl Finding {
    /// Returns the finding and its consequences.
    pub fn all(&self) -> impl Iterator<Item = &Finding> {
        std::iter::once(self).chain(&self.consequences)
    }

    /// Returns the output that the finding is about; `None` if it is about something else.
    pub fn output<'s>(&self, status: &'s Status) -> Option<&'s Output> {
        let name = self.about.strip_prefix("output ")?;
        status.outputs.iter().find(|it| it.name == name)
    }
}

/// The judgement of the whole relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The state of the worst finding: `bad` or `warn`; `good` if no finding is worse than a note.
    pub state: State,
    /// The headline: the text of the worst finding.
    pub text: String,
    /// The findings that no other one explains, worst first. There is at least one.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// Returns all findings: each one before its consequences.
    pub fn all(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().flat_map(Finding::all)
    }
}

/// The state of an address that answers again, and that one delivery at a time may use.
pub const ON_TRIAL: &str = "back, on trial";

/// The subject of a finding about events that senders gave up before the relay got them.
pub const SENDERS: &str = "senders";

/// The folder of the runbooks, to which `runbook_url` of the shipped rules leads too.
const RUNBOOKS: &str =
    "https://github.com/kube-audit-forwarder/kube-audit-forwarder/blob/main/docs/runbooks";

const AT_LIMIT: &str = "limits.max_connections is reached";
const FIND_CLIENTS: &str = "Find the clients that hold connections, such as those whose bodies \
    arrive slowly, or raise limits.max_connections.";

/// For this time after a refused connection, in seconds, connections count as refused now.
const REFUSING: f64 = 60.0;

/// A refused request, connection or TLS handshake is a finding for this time, in seconds.
const REFUSED_LATELY: f64 = 300.0;

/// After this time, in seconds, events that senders have given up are only a note.
const GIVEN_UP_LATELY: f64 = 3600.0;

/// The number of seconds for which the page says that `limits.max_in_flight` was reached.
const IN_FLIGHT_FULL_FOR: f64 = 60.0;

/// The state of an address of an unsteady output is a finding after this time, in seconds.
const ADDRESS_FOR: f64 = 10.0;

/// Outputs with a greater `lag_max_seconds` hold or collect events, so their backlog may grow.
const COLLECTING: f64 = 60.0;

/// The number of characters after which [`cause`] cuts an error.
const ERROR_MAX: usize = 160;

const DAY: f64 = 86_400.0;

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        kind: Kind,
        state: State,
        about: &str,
        text: impl Into<String>,
        advice: &str,
    ) {
        let (about, text) = (about.to_owned(), text.into());
        let page = advice.rsplit_once("Runbook: ").map(|(_, name)| name.trim_end_matches('.'));
        let runbook = page.map(|page| format!("{RUNBOOKS}/{page}.md"));
        let advice = (!advice.is_empty()).then(|| advice.to_owned());
        let consequences = Vec::new();
        self.0.push(Finding { kind, state, about, text, advice, runbook, consequences });
    }
}

/// Judges a relay by its state. The field `verdict` of `status` is not read.
pub fn judge(status: &Status) -> Verdict {
    let mut found = Findings::default();
    losses(status, &mut found);
    earlier(status, &mut found);
    queue(status, &mut found);
    for it in &status.outputs {
        output(it, status, &mut found);
    }
    listeners(status, &mut found);
    senders(status, &mut found);
    apiservers(status, &mut found);
    evidence(status, &mut found);
    process(status, &mut found);
    if found.0.iter().all(|it| it.state <= State::Note) {
        let text = match status.outputs.iter().any(|it| it.health.paused) {
            true => "Every output that is not paused works, and no accepted event is lost.",
            false => "Every output works, and no accepted event is lost.",
        };
        found.add(Kind::Good, State::Good, "relay", text, "");
    }
    let mut findings = causes::first(found.0, status);
    // The good finding comes before the notes, so that a side remark does not become the headline.
    let rank = |it: &Finding| match it.state {
        State::Bad => 0,
        State::Warn => 1,
        State::Good => 2,
        State::Note => 3,
    };
    findings.sort_by_key(rank);
    // There is at least one finding: the good one, or one that is worse than a note.
    let (state, text) = findings
        .first()
        .map_or((State::Good, String::new()), |worst| (worst.state, worst.text.clone()));
    Verdict { state, text, findings }
}

/// Returns how bad the state of one output is; `None` if nothing is wrong with the output.
pub fn trouble(it: &Output) -> Option<State> {
    let is_steadily_down = is_down(it) && !it.health.unsteady;
    let is_bad = it.required && (is_steadily_down || it.counts.lost_events > 0);
    let is_worth_a_look = is_down(it)
        || is_forgotten(it)
        || it.health.unsteady
        || it.counts.lost_events > 0
        || is_late(it)
        || is_growing(it)
        || is_stalling(it)
        || it.aside.as_ref().is_some_and(|aside| aside.at_fault > 0)
        || is_dropping_all(it)
        || it.addresses.iter().any(|it| is_passed_over(it) || it.state == ON_TRIAL);
    match (is_bad, is_worth_a_look) {
        (true, _) => Some(State::Bad),
        (false, true) => Some(State::Warn),
        (false, false) => None,
    }
}

/// Returns `true` if the last attempts of this output have failed. An output that has not made an
/// attempt yet is not down.
pub fn is_down(it: &Output) -> bool {
    !it.health.up && it.health.down_seconds.is_some()
}

/// Returns `true` if an event has waited too long for this output, and the output is not paused.
pub fn is_late(it: &Output) -> bool {
    it.backlog.backlog_events > 0
        && it.backlog.lag_seconds > it.backlog.lag_max_seconds
        && !it.health.paused
}

/// Returns `true` if this output sends about as many bytes as `rate_limit` allows.
fn is_limited(it: &Output) -> bool {
    let sent = it.counts.sent_bytes_per_second.unwrap_or_default();
    it.rate_limit_bytes_per_second.is_some_and(|limit| sent > 0.8 * limit as f64)
}

/// Returns `true` if this output is paused, and its oldest event has waited for more than a day.
fn is_forgotten(it: &Output) -> bool {
    it.health.paused && it.backlog.backlog_events > 0 && it.backlog.lag_seconds > DAY
}

/// Returns `true` if a delivery of this output has timed out in the last two minutes.
pub fn is_stalling(it: &Output) -> bool {
    it.health.stalled_seconds_ago.is_some_and(|ago| ago < STALLED_LATELY)
}

/// Returns `true` if the backlog of this output has grown for minutes. Returns `false` for a paused
/// output, and for one that collects events, as `s3` does for its objects.
pub fn is_growing(it: &Output) -> bool {
    it.backlog.growing && it.backlog.lag_max_seconds <= COLLECTING && !it.health.paused
}

/// Returns `true` if the filter of this output has dropped every event for minutes.
pub fn is_dropping_all(it: &Output) -> bool {
    it.all_dropped_seconds.is_some_and(|seconds| seconds >= ALL_DROPPED)
}

/// Returns `true` if deliveries pass over this address. An address on trial is not passed over.
pub fn is_passed_over(it: &Address) -> bool {
    !matches!(it.state.as_str(), "" | "up" | "unknown" | ON_TRIAL)
}

/// Returns how many of the accepted events are in none of the counts of a required output:
/// delivered, waiting, lost, and dropped by the filter. Negative if these counts have more events
/// than were accepted. `None` if the output is not required.
///
/// The relay does not count all of this at one moment, so the difference of a relay at work changes
/// from one answer to the next. Only one that stays is worth a look: `doctor` compares two answers.
pub fn difference(status: &Status, it: &Output) -> Option<i128> {
    let went = [
        it.counts.delivered_events,
        it.backlog.backlog_events,
        it.counts.lost_events,
        status.queue.lost_events,
        it.counts.filtered_out(),
    ];
    let went: i128 = went.map(i128::from).iter().sum();
    let came = i128::from(status.intake.accepted_events) + i128::from(it.backlog.start_events);
    it.required.then_some(came - went)
}

fn losses(status: &Status, found: &mut Findings) {
    if status.losses.lost_events == 0 {
        return;
    }
    let optional = status.outputs.iter().filter(|it| !it.required);
    let optional: u64 = optional.map(|it| it.counts.lost_events).sum();
    let state = if status.losses.lost_events > optional { State::Bad } else { State::Warn };
    let losing: Vec<_> = status
        .outputs
        .iter()
        .filter(|it| it.counts.lost_events > 0)
        .map(|it| it.name.as_str())
        .collect();
    let mut places = Vec::new();
    if !losing.is_empty() {
        let plural = if losing.len() == 1 { "" } else { "s" };
        places.push(format!("for the output{plural} {}", losing.join(", ")));
    }
    if status.queue.lost_events > 0 {
        places.push("in the queue".to_owned());
    }
    if places.is_empty() {
        places.push("for outputs that a reload has removed".to_owned());
    }
    let places = places.join(" and ");
    let text = match status.losses.lost_events_per_second.is_some_and(|rate| rate > 0.0) {
        true => format!("Events are being lost or refused for good now, {places}."),
        false => format!("Events were lost or refused for good since the start, {places}."),
    };
    let letters = match status.losses.dead_letters_dropped_events {
        _ if status.outputs.iter().all(|it| it.counts.dead_letter_events == 0) => "",
        0 => " The dead letters hold the refused ones: `replay` sends them again.",
        _ => {
            " The dead letters hold only the newest refused ones: dead_letter.max_bytes was used \
             up, and older ones were deleted for good."
        }
    };
    let advice = format!(
        "Look for the log lines at level error: they say how many events, and why.{letters} \
        Runbook: KubeAuditForwarderEventsLost."
    );
    found.add(Kind::EventsLost, state, "relay", text, &advice);
}

fn earlier(status: &Status, found: &mut Findings) {
    if let Some(at) = &status.losses.earlier_last_lost {
        let lost = status.losses.earlier_lost_events;
        let text = format!(
            "Events lost or refused for good before the last restart: {lost}, the last at {at}."
        );
        // Without a runbook: `doctor` leaves out findings with the runbook about losses, and counts
        // the losses since the start itself.
        let advice = "The lines at level error in the log of that process say why.";
        found.add(Kind::EarlierLosses, State::Warn, "relay", text, advice);
    }
    let Some(at) = &status.process.last_killed else { return };
    // On disk are all accepted events. The queue of the killed process may have been another one.
    let (state, text) = match status.queue.kind.as_str() {
        "disk" if !status.process.last_killed_with_queue => {
            let kept = "Its queue is on disk, with all that was accepted.";
            (State::Note, format!("The last process was killed at {at}. {kept}"))
        }
        _ => {
            let unknown = "what it had in memory is unknown";
            let killed = format!("the last process was killed at {at}, and {unknown}");
            (State::Warn, format!("Accepted events may be lost: {killed}."))
        }
    };
    let advice = "`kubectl describe pod` shows the reason. Runbook: KubeAuditForwarderKilled.";
    found.add(Kind::Killed, state, "relay", text, advice);
}

fn queue(status: &Status, found: &mut Findings) {
    let queue = &status.queue;
    if let Some(fault) = &queue.fault {
        let text = format!("The queue cannot store events: {fault}. Senders get 503.");
        // The kernel says the same when inodes are used up.
        let remedy = match fault.contains("No space left on device") {
            true => "Free space on the disk of queue.directory, or inodes if `df -i` shows none.",
            false => "Fix the disk of queue.directory.",
        };
        let advice = format!(
            "{remedy} kube-apiserver keeps its events for about four minutes. Runbook: \
             KubeAuditForwarderDiskRefused."
        );
        found.add(Kind::DiskRefused, State::Bad, "queue", text, &advice);
    }
    // A queue that stores nothing does not fill up.
    let full_in = queue.full_in().filter(|_| queue.fault.is_none());
    let full_soon = full_in.is_some_and(|seconds| seconds < FULL_WITHIN);
    if queue.full {
        full(status, queue, found);
    } else if queue.fill() > QUEUE_NEARLY_FULL || full_soon {
        let text = match queue.fill() > QUEUE_NEARLY_FULL {
            true => "The queue is nearly full.",
            false => "At the current rate, the queue will be full within an hour.",
        };
        let advice = format!("{} Runbook: KubeAuditForwarderQueueNearlyFull.", more_room(status));
        found.add(Kind::QueueFills, State::Bad, "queue", text, &advice);
    }
    // A 429 may also be the answer of a queue that was full a moment ago.
    let in_flight_full = status.intake.in_flight_full_seconds_ago;
    if !queue.full && in_flight_full.is_some_and(|seconds| seconds < IN_FLIGHT_FULL_FOR) {
        let text =
            "Senders get 429: the request bodies in progress have reached limits.max_in_flight.";
        let advice = "Raise limits.max_in_flight and the memory limit, or add replicas. Runbook: \
            KubeAuditForwarderSendersWait.";
        found.add(Kind::InFlightFull, State::Warn, "queue", text, advice);
    }
}

fn full(status: &Status, queue: &Queue, found: &mut Findings) {
    let when = match queue.needed().saturating_mul(10) > queue.capacity_bytes.saturating_mul(9) {
        true => "The queue is full",
        false => "The queue was full a moment ago",
    };
    let text = match queue.when_full.as_deref().unwrap_or_default() {
        "drop_oldest" => format!("{when}: the oldest events are dropped, and counted as lost."),
        "drop_newest" => format!("{when}: new events are dropped, and counted as lost."),
        _ => format!(
            "{when}: senders get 429, and are told to retry in about {} s.",
            queue.retry_after_seconds.unwrap_or_default()
        ),
    };
    let kept = match queue.when_full.as_deref().unwrap_or_default() {
        "drop_oldest" | "drop_newest" => "",
        _ => " kube-apiserver keeps refused events for about four minutes.",
    };
    let advice = format!("{}{kept} Runbook: KubeAuditForwarderQueueNearlyFull.", more_room(status));
    found.add(Kind::QueueFull, State::Bad, "queue", text, &advice);
}

fn more_room(status: &Status) -> String {
    let slowest =
        status.outputs.iter().filter(|it| it.required).max_by_key(|it| it.backlog.backlog_bytes);
    match slowest.filter(|it| it.backlog.backlog_events > 0) {
        Some(it) => format!(
            "Fix the consumer of output {}, which has the largest backlog, or raise \
             queue.max_bytes.",
            it.name
        ),
        None => "Raise queue.max_bytes.".to_owned(),
    }
}

/// Shortens an error of an output or an address to 160 characters, without the URL or `HOST:PORT`
/// at its beginning. The finding names the output or the address itself.
pub fn cause(error: &str) -> String {
    let cause = match error.split_once(": ") {
        Some((place, rest)) if is_place(place) => rest,
        _ => error,
    };
    let cause = cause.strip_prefix("answered ").unwrap_or(cause).trim_end_matches('.');
    match cause.char_indices().nth(ERROR_MAX) {
        Some((end, _)) => format!("{} …", cause.split_at(end).0.trim_end()),
        None => cause.to_owned(),
    }
}

fn sentence(error: &str) -> String {
    let cause = cause(error);
    let mut rest = cause.chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if cause.ends_with('…') { "" } else { "." };
    format!("{first}{}{end}", rest.as_str())
}

/// Returns `true` if this part of an error message is a URL, or a host and a port.
fn is_place(text: &str) -> bool {
    let port = text.rsplit_once(':').map_or("", |(_, port)| port);
    let has_port = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    !text.contains(' ') && (has_port || text.contains("://"))
}

fn output(it: &Output, status: &Status, found: &mut Findings) {
    let about = format!("output {}", it.name);
    if it.health.unsteady {
        let why = it.health.last_error.as_deref().map(|error| format!(" ({})", cause(error)));
        let why = why.unwrap_or_default();
        let text = format!("Output {} keeps failing and recovering{why}.", it.name);
        let advice = "Its last error says why: the consumer may be overloaded, or fail on some of \
            the events. Runbook: KubeAuditForwarderOutputDown.";
        found.add(Kind::OutputUnsteady, State::Warn, &about, text, advice);
    } else if is_down(it) {
        let state = if it.required { State::Bad } else { State::Warn };
        let fate = if it.keeps_events { "its events are kept" } else { "it may lose events" };
        // The error comes first: it is what the operator acts on.
        let text = match &it.health.last_error {
            Some(error) => format!("{} Output {} is down; {fate}.", sentence(error), it.name),
            None => format!("Output {} is down; {fate}.", it.name),
        };
        let advice = "Look at the consumer and its log, and at the network to it. Runbook: \
            KubeAuditForwarderOutputDown.";
        found.add(Kind::OutputDown, state, &about, text, advice);
        return;
    }
    if it.health.paused {
        paused(it, &about, status, found);
    }
    addresses_passed_over(it, &about, found);
    if is_late(it) || is_growing(it) {
        let (name, seconds) = (&it.name, it.backlog.lag_max_seconds);
        let is_limited = is_limited(it);
        let why = if is_limited { ", because rate_limit is reached" } else { "" };
        let text = match is_late(it) {
            true => format!(
                "Output {name} is late{why}: its oldest event has waited for more than {seconds} s."
            ),
            false => format!("The backlog of output {name} is growing{why}."),
        };
        let advice = match is_limited {
            true => {
                "Raise rate_limit, or filter more events out. Runbook: \
                KubeAuditForwarderOutputLags."
            }
            false => {
                "The consumer accepts events more slowly than they arrive. Runbook: \
                KubeAuditForwarderOutputLags."
            }
        };
        found.add(Kind::OutputLate, State::Warn, &about, text, advice);
    } else if is_stalling(it) {
        let text = format!("Output {}: a delivery timed out in the last two minutes.", it.name);
        let advice = "Check whether the consumer has stopped reading: its kernel may accept unread \
            events for a while. Runbook: KubeAuditForwarderOutputLags.";
        found.add(Kind::OutputStalls, State::Warn, &about, text, advice);
    }
    if is_dropping_all(it) {
        let text = format!("The filter of output {} has dropped every event for minutes.", it.name);
        let advice = "If this is not intended, `policy explain` shows which rule applies to an \
            event; names of verbs, resources and users must match exactly.";
        found.add(Kind::AllFiltered, State::Warn, &about, text, advice);
    }
    if let Some(aside) = it.aside.as_ref().filter(|it| it.at_fault > 0) {
        let Aside { at_fault, position, bytes, .. } = aside;
        let text = format!(
            "Output {}: the consumer turns down {at_fault} of its events each time, the first at \
             position {position} with {bytes} bytes, and accepts the others.",
            it.name
        );
        let fate = match aside.crowded {
            true => {
                "There is no room to set more aside, so new ones push out the oldest ones, \
                which are given up unless rejected.action is \"retry\"."
            }
            false => {
                "They are set aside, hold up no others, and are given up after \
                rejected.after_server_errors unless rejected.action is \"retry\"."
            }
        };
        let advice = format!(
            "{fate} `aside` in /status says what the consumer did. Runbook: \
             KubeAuditForwarderEventsSetAside."
        );
        found.add(Kind::EventsRefused, State::Warn, &about, text, &advice);
    }
    addresses_on_trial(it, &about, found);
}

/// Returns the addresses of an output that are worth a finding of their own. The state of a single
/// address is that of its output. Where many requests fail, an address is down after each of them.
fn addresses_apart(it: &Output) -> impl Iterator<Item = &Address> {
    let is_apart = |at: &&Address| {
        let has_lasted = at.state_seconds.is_none_or(|seconds| seconds >= ADDRESS_FOR);
        it.addresses.len() > 1 && (has_lasted || !it.health.unsteady)
    };
    it.addresses.iter().filter(is_apart)
}

/// A pause is what the operator has asked for, until it seems to be forgotten: its oldest event has
/// waited for a day, or its events need half of the queue.
fn paused(it: &Output, about: &str, status: &Status, found: &mut Findings) {
    let bytes = it.backlog.backlog_bytes;
    let is_half = it.required && bytes.saturating_mul(2) > status.queue.capacity_bytes;
    let (state, fate) = match it.backlog.backlog_events {
        0 => (State::Note, ""),
        _ if is_half => (State::Warn, ", and its events need half of the queue"),
        _ if is_forgotten(it) => (State::Warn, ", and its events have waited for more than a day"),
        _ => (State::Note, "; its events wait in the queue"),
    };
    let text = format!("Output {} is paused by the config{fate}.", it.name);
    let advice = "Remove `pause` from the config before the queue is full. Runbook: \
        KubeAuditForwarderOutputPaused.";
    found.add(Kind::OutputPaused, state, about, text, advice);
}

fn addresses_passed_over(it: &Output, about: &str, found: &mut Findings) {
    let passed_over = it.addresses.iter().filter(|it| is_passed_over(it)).count();
    let rest = match passed_over < it.addresses.len() {
        true => "its other addresses take the events",
        false => "so are its other addresses",
    };
    for address in addresses_apart(it).filter(|it| is_passed_over(it)) {
        let (name, state) = (&address.address, &address.state);
        let why = address.last_error.as_deref().map(|error| format!(" ({})", cause(error)));
        let why = why.unwrap_or_default();
        let text = format!("Output {}: the address {name} is {state}{why}; {rest}.", it.name);
        let advice = "Look at the consumer at this address. Runbook: \
            KubeAuditForwarderOutputAddressDown.";
        found.add(Kind::AddressDown, State::Warn, about, text, advice);
    }
}

fn addresses_on_trial(it: &Output, about: &str, found: &mut Findings) {
    for address in addresses_apart(it).filter(|it| it.state == ON_TRIAL) {
        let name = &address.address;
        let text = format!(
            "Output {}: the address {name} accepts connections again, but has taken no events \
             since it failed.",
            it.name
        );
        let advice = "It is on trial until one delivery to it succeeds. Runbook: \
            KubeAuditForwarderOutputAddressDown.";
        found.add(Kind::AddressOnTrial, State::Warn, about, text, advice);
    }
}

fn listeners(status: &Status, found: &mut Findings) {
    for it in &status.listeners {
        if it.address.is_none() && status.process.started {
            let about = format!("listener {}", it.listener);
            let text = format!(
                "The listener {} is not open: it is waiting for its certificate.",
                it.listener
            );
            let advice = "Put the certificate and its key where the config names them.";
            found.add(Kind::ListenerClosed, State::Warn, &about, text, advice);
        }
        let is_slow = it.latency_p99_seconds.is_some_and(|seconds| seconds > SLOW_ANSWERS);
        // With `delivered`, the answers wait for the consumers.
        if is_slow && status.intake.acknowledge.as_deref() != Some("delivered") {
            let text = format!(
                "The listener {} responds slowly: one response in a hundred takes longer than \
                 {SLOW_ANSWERS} s.",
                it.listener
            );
            let advice = "kube-apiserver gives up after 30 s. With queue.directory, the disk may \
                be slow; otherwise, the CPU limit may be too low. Runbook: \
                KubeAuditForwarderDiskSlow.";
            found.add(
                Kind::SlowAnswers,
                State::Warn,
                &format!("listener {}", it.listener),
                text,
                advice,
            );
        }
    }
}

fn senders(status: &Status, found: &mut Findings) {
    let is_everything = everything_refused(status, found);
    if let Some(last) = &status.intake.last_final_refusal
        && last.seconds_ago < REFUSED_LATELY
        && !is_everything
    {
        let text = format!(
            "Requests were rejected permanently in the last five minutes ({}).",
            last.reason
        );
        let advice = "If the sender is kube-apiserver, its events are lost there. Runbook: \
            KubeAuditForwarderRequestsRejected.";
        found.add(Kind::RequestsRejected, State::Warn, "relay", text, advice);
    }
    refused_connections(status, found);
    if let Some(last) = &status.intake.last_tls_failure
        && last.seconds_ago < REFUSED_LATELY
        && !is_everything
    {
        let text =
            format!("TLS handshakes at {} failed recently ({}).", last.listener, last.reason);
        let advice = "The log has the sender's address and the reason. Runbook: \
            KubeAuditForwarderTlsHandshakesFail.";
        found.add(
            Kind::TlsHandshakesFail,
            State::Warn,
            &format!("listener {}", last.listener),
            text,
            advice,
        );
    }
    for it in status.sources.iter().filter(|it| it.last_error.is_some()) {
        let text = format!("Source {} has an error.", it.name);
        found.add(
            Kind::SourceFails,
            State::Warn,
            &format!("source {}", it.name),
            text,
            "Its last error says why.",
        );
    }
    let is_asked_again = refusals(status, found);
    let is_slow = slow_requests(status, found);
    let is_refused_lately =
        status.intake.last_final_refusal.as_ref().is_some_and(|it| it.seconds_ago < REFUSED_LATELY);
    let is_refusing = is_asked_again || is_slow || is_refused_lately;
    let silence =
        status.intake.last_event_seconds_ago.unwrap_or(status.process.uptime_seconds as f64);
    if silence > SILENCE && is_refusing {
        let text = "No event was accepted for more than 15 minutes: requests are refused.";
        found.add(
            Kind::NothingReceived,
            State::Warn,
            "relay",
            text,
            "The findings about refused requests say why.",
        );
    } else if silence > SILENCE {
        let advice = "Every cluster constantly generates audit events. Runbook: \
            KubeAuditForwarderNothingReceived.";
        found.add(
            Kind::NothingReceived,
            State::Warn,
            "relay",
            "No event has arrived for more than 15 minutes.",
            advice,
        );
    }
}

/// Notes a silent kube-apiserver, if another one is heard. It is only a note, because
/// kube-apiserver may send everything to another relay.
fn apiservers(status: &Status, found: &mut Findings) {
    let newest = status.apiservers.iter().map(|it| it.last_heard_seconds_ago);
    let newest = newest.fold(f64::INFINITY, f64::min);
    for it in &status.apiservers {
        if it.last_heard_seconds_ago - newest > APISERVER_SILENT {
            let text = format!(
                "This relay has received no events from the kube-apiserver {} for five minutes, \
                 but has received events from another one.",
                it.name
            );
            let advice = "If no other relay receives its events either, check the audit webhook of \
                that kube-apiserver. Runbook: KubeAuditForwarderApiserverSilent.";
            found.add(Kind::ApiserverSilent, State::Note, "relay", text, advice);
        }
    }
}

/// Judges a time in which everything was refused for good, for longer than kube-apiserver repeats a
/// batch. Returns `true` if that time has not ended.
fn everything_refused(status: &Status, found: &mut Findings) -> bool {
    let times = &status.intake.refusals.permanent;
    let Some(ended) = times.long_shut_ended_seconds_ago else { return false };
    let request = status.intake.last_final_refusal.as_ref();
    let request = request.map(|last| (last.seconds_ago, format!("requests: {}", last.reason)));
    let tls = status.intake.last_tls_failure.as_ref();
    let tls = tls.map(|last| (last.seconds_ago, format!("TLS handshakes: {}", last.reason)));
    let last = request.into_iter().chain(tls).min_by(|a, b| a.0.total_cmp(&b.0));
    let (_, what) = last.unwrap_or_default();
    let (state, text) = if times.shut_for(PATIENCE).is_some() {
        let text = format!(
            "Everything is refused ({what}), and nothing was accepted for longer than \
             kube-apiserver retries a batch (about 90 s)."
        );
        (State::Bad, text)
    } else {
        let (state, when) = match ended < GIVEN_UP_LATELY {
            true => (State::Warn, "in the last hour"),
            false => (State::Note, "more than an hour ago"),
        };
        let text = format!(
            "Everything was refused for a time {when}: {} attempts by senders. kube-apiserver \
             drops a batch after five, unless another replica accepted it.",
            times.long_shut_requests
        );
        (state, text)
    };
    let advice = "The relay cannot count events that it never received, so they are not in `lost`. \
        `doctor` checks kube-apiserver's own count. Runbook: KubeAuditForwarderEverythingRefused.";
    found.add(Kind::EverythingRefused, state, SENDERS, text, advice);
    state == State::Bad
}

fn refused_connections(status: &Status, found: &mut Findings) {
    for (reason, refused) in &status.intake.refused_connections {
        let state = match refused.last_seconds_ago.unwrap_or_default() {
            ago if ago < REFUSING && reason != "evicted" => State::Bad,
            ago if ago < REFUSED_LATELY => State::Warn,
            _ => continue,
        };
        let when = if state == State::Bad { "are" } else { "were recently" };
        let (text, advice) = match reason.as_str() {
            "accept_failed" => (
                format!("New sender connections {when} not accepted: the kernel refuses them."),
                "The log has the error; with too many open files, raise the limit of the process.",
            ),
            "evicted" => (
                format!("Sender connections {when} closed for newer ones: {AT_LIMIT}."),
                FIND_CLIENTS,
            ),
            _ => (
                format!(
                    "New sender connections {when} closed: {AT_LIMIT}, and each open one has a \
                     request in progress."
                ),
                FIND_CLIENTS,
            ),
        };
        let advice = format!("{advice} Runbook: KubeAuditForwarderConnectionsRefused.");
        found.add(Kind::ConnectionsRefused, state, "relay", text, &advice);
    }
}

/// Adds a finding and returns `true` if the last refused request came too slowly, within the last
/// five minutes, and no event has been accepted since.
fn slow_requests(status: &Status, found: &mut Findings) -> bool {
    let is_slow = status.intake.last_rejected.as_ref().is_some_and(|last| {
        let is_since = |ago: f64| ago < last.seconds_ago;
        last.reason == "timeout"
            && last.seconds_ago < REFUSED_LATELY
            && !status.intake.last_event_seconds_ago.is_some_and(is_since)
    });
    if is_slow {
        let text = "Requests arrive too slowly (408), and no event has been accepted since.";
        let advice = "They take longer than limits.body_timeout: check the network and any proxies \
            in between. Runbook: KubeAuditForwarderSendersWait.";
        found.add(Kind::SlowRequests, State::Warn, "relay", text, advice);
    }
    is_slow
}

/// Judges refusals with 429 and 503, after which senders repeat the batch for minutes. Returns
/// `true` if a request was refused with one of them in the last minute.
fn refusals(status: &Status, found: &mut Findings) -> bool {
    let both = [&status.intake.refusals.with_429, &status.intake.refusals.with_503];
    if status.intake.refusals.with_503.seconds.is_some() && status.queue.fault.is_none() {
        let text = "Senders get 503: their events could not be stored or delivered in time.";
        let advice = "`last_rejected` in /status has the reason. Runbook: \
            KubeAuditForwarderSendersWait.";
        found.add(Kind::SendersWait, State::Warn, "queue", text, advice);
    }
    for times in both {
        let is_long = |seconds: f64| seconds >= PATIENCE_WITH_RETRY_AFTER;
        // `None` if there was no such time; `true` if it was lately, or its end is unknown.
        let lately = |longest: f64, ended: Option<f64>| {
            is_long(longest).then(|| ended.is_none_or(|ended| ended < GIVEN_UP_LATELY))
        };
        let shut = lately(times.longest_shut_seconds, times.long_shut_ended_seconds_ago);
        let any = lately(times.longest_seconds, times.long_ended_seconds_ago);
        let (what, is_lately) = match (shut, any) {
            (Some(true), _) => ("none was accepted here", true),
            (_, Some(true)) => ("requests were refused here", true),
            (Some(false), _) => ("none was accepted here", false),
            (_, Some(false)) => ("requests were refused here", false),
            (None, None) => continue,
        };
        let (state, when) = match is_lately {
            _ if times.shut_for(PATIENCE_WITH_RETRY_AFTER).is_some() => (State::Bad, ""),
            true => (State::Warn, " in the last hour"),
            false => (State::Note, " more than an hour ago"),
        };
        let text = format!(
            "Senders may have dropped events{when}, unless another replica accepted them: {what} \
             for longer than kube-apiserver retries a batch (about four minutes)."
        );
        let advice = "The relay cannot count events that it never received, so they are not in \
            `lost`. `doctor` checks kube-apiserver's own count. Runbook: \
            KubeAuditForwarderSendersWait.";
        found.add(Kind::SendersGaveUp, state, SENDERS, text, advice);
    }
    both.iter().any(|times| times.seconds.is_some())
}

fn evidence(status: &Status, found: &mut Findings) {
    let Some(evidence) = &status.evidence else { return };
    for (reason, _) in evidence.errors.iter().filter(|(_, count)| **count > 0) {
        let error = evidence.last_errors_seconds_ago.get(reason).copied();
        // A checkpoint or a cosignature after the error shows that it is over. An error of unknown
        // age counts as present.
        let is_since = |ago: Option<f64>| ago.zip(error).is_some_and(|(ago, error)| ago < error);
        let state_of = |is_over: bool| if is_over { State::Note } else { State::Warn };
        let (kind, state, text) = match reason.as_str() {
            "rolled_back" => {
                let text = "A witness has seen a newer log: queue.directory was restored from an \
                    older copy (rolled_back).";
                (Kind::EvidenceRolledBack, State::Bad, text.to_owned())
            }
            "tampered" => {
                let text =
                    "Files of the queue or of its evidence were changed or removed (tampered).";
                (Kind::EvidenceTampered, State::Bad, text.to_owned())
            }
            "witness" => {
                let is_over = evidence.witnesses.iter().all(|it| is_since(it.last_seconds_ago));
                let text = "A witness does not cosign (witness).";
                let text = if is_over { "A witness did not cosign for a time." } else { text };
                (Kind::WitnessAway, state_of(is_over), text.to_owned())
            }
            other => {
                let is_over = is_since(evidence.last_checkpoint_seconds_ago);
                let text = match is_over {
                    true => format!("Evidence could not be recorded for a time ({other})."),
                    false => format!("Evidence cannot be recorded ({other})."),
                };
                (Kind::EvidenceNotWritten, state_of(is_over), text)
            }
        };
        // Each of these kinds has the name of its alert.
        let advice = format!("The log says more. Runbook: KubeAuditForwarder{kind:?}.");
        found.add(kind, state, "evidence", text, &advice);
    }
}

fn process(status: &Status, found: &mut Findings) {
    if let Some(limit) = status.process.memory_limit_bytes
        && status.process.memory_bytes as f64 > MEMORY_NEARLY_USED * limit as f64
    {
        let text = "Memory is nearly used up: above the limit, the kernel kills the relay.";
        let advice = "Raise the memory limit. Runbook: KubeAuditForwarderMemoryNearLimit.";
        found.add(Kind::MemoryNearLimit, State::Warn, "relay", text, advice);
    }
    for it in &status.certificates {
        certificate(status, it, found);
    }
    let (applied, refused) =
        (status.reloads.success.last_seconds_ago, status.reloads.error.last_seconds_ago);
    if let Some(error) = &status.reloads.awaits_address {
        let text = format!("The last config change is being retried: {error}.");
        let advice = "Free the address, or correct it in the config. Runbook: \
            KubeAuditForwarderReloadFailed.";
        found.add(Kind::ReloadFailed, State::Warn, "relay", text, advice);
    } else if refused.is_some_and(|refused| applied.is_none_or(|applied| refused < applied)) {
        let text =
            "The last config change was refused; the relay continues with the previous config.";
        let advice = "The log names the reason, and `check` most mistakes. Runbook: \
            KubeAuditForwarderReloadFailed.";
        found.add(Kind::ReloadFailed, State::Warn, "relay", text, advice);
    }
    if status.process.stopping {
        found.add(Kind::Stopping, State::Warn, "relay", "The relay is shutting down.", "");
    } else if !status.process.started {
        found.add(Kind::Starting, State::Warn, "relay", "The relay is starting.", "");
    }
    if status.process.log_dropped_lines > 0 {
        let text = match &status.process.log_error {
            Some(error) => {
                format!("Log lines are missing, because stderr could not be written: {error}.")
            }
            None => "Log lines are missing, because stderr is not read fast enough.".to_owned(),
        };
        found.add(Kind::LogIncomplete, State::Note, "relay", text, "");
    }
}

fn certificate(status: &Status, it: &Certificate, found: &mut Findings) {
    let days = (it.not_after_seconds as f64 - status.process.time_seconds) / DAY;
    let (warn, bad) = CERTIFICATE_DAYS;
    if days >= warn {
        return;
    }
    let state = if days < bad { State::Bad } else { State::Warn };
    let when = match days.floor() {
        days if days < 0.0 => "has expired".to_owned(),
        days if days < 1.0 => "expires within a day".to_owned(),
        days if days < 2.0 => "expires in 1 day".to_owned(),
        days => format!("expires in {days} days"),
    };
    let about = format!("{} {}", it.place, it.name);
    let (whose, advice) = match (it.place.as_str(), it.role.as_str()) {
        ("output", "server") => ("consumer's", "The consumer's operators have to replace it."),
        ("listener", "client") => ("sender's", "The sender's operators have to replace it."),
        _ => ("relay's own", "Replace it; the relay reloads the file automatically."),
    };
    let text = format!("The {whose} certificate at {about} {when}.");
    let advice = format!("{advice} Runbook: KubeAuditForwarderCertificateExpiresIn3Days.");
    let kind = if days < 0.0 { Kind::CertificateExpired } else { Kind::CertificateExpires };
    found.add(kind, state, &about, text, &advice);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Judges a relay that works, with one output of two addresses, after `change` has changed its
    /// state.
    fn judged(change: impl FnOnce(&mut Value)) -> Verdict {
        let mut status = json!({
            "started": true, "uptime_seconds": 1000, "last_event_seconds_ago": 1.0,
            "time_seconds": 1_000_000.0,
            "queue": { "capacity_bytes": 1000, "bytes": 10, "when_full": "reject",
                "retry_after_seconds": 5.0 },
            "listeners": [{ "listener": "0.0.0.0:3000", "address": "0.0.0.0:3000" }],
            "outputs": [{ "name": "siem", "required": true, "up": true, "keeps_events": true,
                "lag_max_seconds": 30.0,
                "addresses": [{ "address": "10.0.0.1:1", "state": "up" },
                    { "address": "10.0.0.2:1", "state": "up" }] }],
        });
        change(&mut status);
        judge(&serde_json::from_value(status).unwrap())
    }

    #[track_caller]
    fn assert_headline(state: State, words: &str, change: impl FnOnce(&mut Value)) {
        let verdict = judged(change);
        assert_eq!(verdict.state, state, "{verdict:?}");
        assert!(verdict.text.contains(words), "{verdict:?}");
        assert_eq!(verdict.text, verdict.findings[0].text);
    }

    #[test]
    fn health_is_one_good_finding() {
        let verdict = judged(|_| {});
        assert_eq!((verdict.state, verdict.findings.len()), (State::Good, 1), "{verdict:?}");
    }

    #[test]
    fn an_event_that_waits_because_of_server_errors_is_a_warning() {
        let aside = |server_errors: bool| {
            let at_fault = u64::from(server_errors);
            json!({ "events": 1, "position": 7, "bytes": 900, "at_fault": at_fault })
        };
        assert_headline(State::Warn, "the first at position 7", |status| {
            status["outputs"][0]["aside"] = aside(true);
        });
        assert_headline(State::Good, "works", |status| {
            status["outputs"][0]["aside"] = aside(false);
        });
    }

    #[test]
    fn an_output_that_has_not_tried_yet_is_not_down() {
        assert_headline(State::Good, "works", |status| {
            status["outputs"][0]["up"] = json!(false);
        });
    }

    #[test]
    fn a_required_output_that_is_down_is_bad_and_an_optional_one_a_warning() {
        assert_headline(State::Bad, "siem is down; its events are kept", |status| {
            status["outputs"][0]["up"] = json!(false);
            status["outputs"][0]["down_seconds"] = json!(3.0);
        });
        assert_headline(State::Warn, "siem is down; it may lose events", |status| {
            status["outputs"][0]["up"] = json!(false);
            status["outputs"][0]["required"] = json!(false);
            status["outputs"][0]["keeps_events"] = json!(false);
            status["outputs"][0]["down_seconds"] = json!(3.0);
        });
    }

    #[test]
    fn an_output_that_fails_and_works_again_in_turn_has_one_state_in_both_phases() {
        let phase = |up: bool| {
            judged(|status| {
                let output = &mut status["outputs"][0];
                output["unsteady"] = json!(true);
                output["up"] = json!(up);
                output["down_seconds"] = json!((!up).then_some(3.0));
                output["addresses"] = json!([{ "state": if up { "up" } else { "down" } }]);
            })
        };
        assert_eq!(phase(true), phase(false));
        assert_eq!(phase(true).state, State::Warn);
        assert_eq!(phase(true).text, "Output siem keeps failing and recovering.");
    }

    #[test]
    fn one_address_down_is_a_warning_that_names_it() {
        assert_headline(State::Warn, "10.0.0.2:1 is down; its other addresses", |status| {
            status["outputs"][0]["addresses"][1]["state"] = json!("down");
        });
        assert_headline(State::Warn, "is down (503 Service Unavailable); its", |status| {
            status["outputs"][0]["addresses"][1]["state"] = json!("down");
            status["outputs"][0]["addresses"][1]["last_error"] =
                json!("http://10.0.0.2:1: answered 503 Service Unavailable");
        });
    }

    /// An address that takes connections and fails deliveries changes between `down` and `back, on
    /// trial`. It is a warning all the time.
    #[test]
    fn an_address_on_trial_is_a_warning_until_a_delivery_succeeds() {
        assert_headline(State::Warn, "10.0.0.2:1 accepts connections again", |status| {
            status["outputs"][0]["addresses"][1]["state"] = json!("back, on trial");
        });
        let mut output = Output::default();
        output.health.up = true;
        output.addresses = vec![Address { state: ON_TRIAL.to_owned(), ..Address::default() }];
        assert_eq!(trouble(&output), Some(State::Warn));
    }

    #[test]
    fn the_error_comes_first_in_the_finding_of_an_output_that_is_down() {
        for (error, first) in [
            ("https://siem.example/x: answered 400 Bad Request", "400 Bad Request. Output siem"),
            ("10.0.0.1:514: no answer for 60 s", "No answer for 60 s. Output siem is down"),
            ("cannot connect to [::1]:9: Connection refused", "Cannot connect to [::1]:9: Conn"),
            ("cannot resolve siem: it has no address", "Cannot resolve siem: it has no"),
        ] {
            let verdict = judged(|status| {
                status["outputs"][0]["up"] = json!(false);
                status["outputs"][0]["down_seconds"] = json!(3.0);
                status["outputs"][0]["last_error"] = json!(error);
            });
            assert!(verdict.text.starts_with(first), "{verdict:?}");
        }
        let long = cause(&"é".repeat(ERROR_MAX + 1));
        assert_eq!(long.chars().count(), ERROR_MAX + 2, "{long}");
    }

    #[test]
    fn a_filter_that_drops_everything_for_minutes_is_a_warning() {
        for (seconds, state) in [(ALL_DROPPED - 1.0, State::Good), (ALL_DROPPED, State::Warn)] {
            assert_headline(state, "", |status| {
                status["outputs"][0]["all_dropped_seconds"] = json!(seconds);
            });
        }
    }

    /// Nobody has counted the events that kube-apiserver has given up, and another replica may have
    /// taken them.
    #[test]
    fn refusals_for_longer_than_a_sender_repeats_may_be_losses_there_and_it_is_said() {
        const LONG: f64 = PATIENCE_WITH_RETRY_AFTER;
        for answers in ["with_429", "with_503"] {
            let refused = |now: bool, longest: f64, shut: f64, ended: f64| {
                move |status: &mut Value| {
                    let [longest_now, shut_now] = [longest, shut].map(|it| now.then_some(it));
                    let [ended, shut_ended] =
                        [longest, shut].map(|it| (it >= LONG).then_some(ended));
                    status["refusals"][answers] = json!({ "seconds": longest_now,
                        "shut_seconds": shut_now, "longest_seconds": longest,
                        "longest_shut_seconds": shut, "long_ended_seconds_ago": ended,
                        "long_shut_ended_seconds_ago": shut_ended });
                }
            };
            let words = "Senders may have dropped events";
            let lately = "may have dropped events in the last hour, unless another replica";
            assert_headline(State::Good, "works", refused(false, LONG - 1.0, 0.0, 0.0));
            assert_headline(State::Warn, lately, refused(false, LONG, 10.0, 3599.0));
            assert_headline(State::Warn, lately, refused(false, LONG, LONG, 3599.0));
            // While this lasts, the finding about the responses is the cause.
            let verdict = judged(refused(true, LONG, LONG, 0.0));
            assert_eq!(verdict.state, State::Bad, "{verdict:?}");
            assert!(verdict.all().any(|it| it.text.starts_with(words)), "{verdict:?}");
            let verdict = judged(refused(false, LONG, LONG, 3600.0));
            assert_eq!((verdict.state, verdict.findings.len()), (State::Good, 2), "{verdict:?}");
            assert!(verdict.findings[1].text.contains("more than an hour ago"), "{verdict:?}");
        }
    }

    #[test]
    fn slow_answers_are_a_warning_unless_they_wait_for_consumers() {
        let slow = |seconds: f64, acknowledge: &'static str| {
            move |status: &mut Value| {
                status["acknowledge"] = json!(acknowledge);
                status["listeners"][0]["latency_p99_seconds"] = json!(seconds);
            }
        };
        assert_headline(State::Good, "works", slow(1.0, "synced"));
        assert_headline(State::Warn, "0.0.0.0:3000 responds slowly", slow(1.1, "synced"));
        assert_headline(State::Good, "works", slow(9.0, "delivered"));
    }

    #[test]
    fn an_output_whose_delivery_has_timed_out_is_a_warning_for_two_minutes() {
        for (ago, state) in [(119.0, State::Warn), (120.0, State::Good)] {
            assert_headline(state, "", |status| {
                status["outputs"][0]["stalled_seconds_ago"] = json!(ago);
            });
        }
    }

    #[test]
    fn what_is_refused_altogether_is_bad_and_stays_seen_for_an_hour() {
        let refused = |shut: Option<f64>, ended: Option<f64>, tls: f64| {
            move |status: &mut Value| {
                status["refusals"]["permanent"] = json!({ "shut_seconds": shut,
                    "long_shut_ended_seconds_ago": ended, "long_shut_requests": 45 });
                status["last_final_refusal"] =
                    json!({ "reason": "unauthorized", "seconds_ago": 400.0 });
                status["last_tls_failure"] =
                    json!({ "listener": "l", "reason": "unknown_ca", "seconds_ago": tls });
            }
        };
        assert_headline(State::Good, "works", refused(Some(79.0), None, 500.0));
        let now = refused(Some(80.0), Some(0.0), 500.0);
        assert_headline(State::Bad, "Everything is refused (requests: unauthorized)", now);
        let tls = refused(Some(80.0), Some(0.0), 399.0);
        assert_headline(State::Bad, "Everything is refused (TLS handshakes: unknown_ca)", tls);
        let lately = "in the last hour: 45 attempts by senders";
        assert_headline(State::Warn, lately, refused(Some(79.0), Some(3599.0), 500.0));
        let verdict = judged(refused(None, Some(3600.0), 500.0));
        assert_eq!((verdict.state, verdict.findings.len()), (State::Good, 2), "{verdict:?}");
        assert!(verdict.findings[1].text.contains("more than an hour ago"), "{verdict:?}");
    }

    #[test]
    fn requests_that_come_too_slowly_are_a_warning_until_an_event_is_accepted() {
        let slow = |seconds: f64, accepted: f64| {
            move |status: &mut Value| {
                status["last_event_seconds_ago"] = json!(accepted);
                status["last_rejected"] = json!({ "reason": "timeout", "seconds_ago": seconds });
            }
        };
        assert_headline(State::Warn, "too slowly (408)", slow(3.0, 500.0));
        assert_headline(State::Good, "works", slow(3.0, 2.0));
        assert_headline(State::Good, "works", slow(301.0, 500.0));
        let verdict = judged(slow(3.0, 901.0));
        let texts: Vec<_> = verdict.all().map(|it| &*it.text).collect();
        assert!(texts.iter().any(|it| it.starts_with("No event was accepted")), "{texts:?}");
        assert!(!texts.iter().any(|it| it.starts_with("No event has arrived")), "{texts:?}");
    }

    #[test]
    fn the_silence_of_a_relay_that_refuses_is_not_that_of_its_senders() {
        for (refusals, words) in [
            (json!({ "with_429": { "seconds": 9.0 } }), "No event was accepted for more"),
            (json!({}), "No event has arrived for more"),
        ] {
            let verdict = judged(|status| {
                status["last_event_seconds_ago"] = json!(901.0);
                status["refusals"] = refusals;
            });
            let silences: Vec<_> =
                verdict.all().filter(|it| it.text.starts_with("No event")).collect();
            assert_eq!(silences.len(), 1, "{verdict:?}");
            assert!(silences[0].text.starts_with(words), "{verdict:?}");
        }
    }

    #[test]
    fn a_queue_that_fills_is_bad_before_it_is_full_and_a_few_events_are_not() {
        let filling = |bytes: u64, growth: f64| {
            move |status: &mut Value| {
                status["queue"]["bytes"] = json!(bytes);
                status["queue"]["growth_bytes_per_second"] = json!(growth);
            }
        };
        assert_headline(State::Good, "works", filling(99, 10.0));
        assert_headline(State::Bad, "full within an hour", filling(101, 0.3));
        assert_headline(State::Good, "works", filling(101, 0.2));
        assert_headline(State::Good, "works", filling(700, -1.0));
        assert_headline(State::Bad, "nearly full", filling(801, -1.0));
        let verdict = judged(|status| {
            filling(101, 0.3)(status);
            status["queue"]["fault"] = json!("Read-only file system");
        });
        assert_eq!(verdict.findings.len(), 1, "a queue that stores nothing fills up: {verdict:?}");
    }

    #[test]
    fn lag_and_a_growing_backlog_are_warnings() {
        assert_headline(State::Warn, "more than 30 s", |status| {
            status["outputs"][0]["backlog_events"] = json!(5);
            status["outputs"][0]["lag_seconds"] = json!(31.0);
        });
        for (sent, words) in
            [(79.0, "is late: its"), (81.0, "late, because rate_limit is reached: ")]
        {
            assert_headline(State::Warn, words, |status| {
                status["outputs"][0]["backlog_events"] = json!(5);
                status["outputs"][0]["lag_seconds"] = json!(31.0);
                status["outputs"][0]["rate_limit_bytes_per_second"] = json!(100);
                status["outputs"][0]["sent_bytes_per_second"] = json!(sent);
            });
        }
        assert_headline(State::Warn, "siem is growing", |status| {
            status["outputs"][0]["growing"] = json!(true);
        });
        assert_headline(State::Good, "works", |status| {
            status["outputs"][0]["growing"] = json!(true);
            status["outputs"][0]["lag_max_seconds"] = json!(330.0);
        });
    }

    #[test]
    fn a_full_queue_says_what_happens_to_events() {
        for (setting, words) in
            [("reject", "429"), ("drop_oldest", "the oldest"), ("drop_newest", "new events")]
        {
            assert_headline(State::Bad, words, |status| {
                status["queue"]["full"] = json!(true);
                status["queue"]["bytes"] = json!(950);
                status["queue"]["when_full"] = json!(setting);
            });
            let verdict = judged(|status| {
                status["queue"]["full"] = json!(true);
                status["queue"]["when_full"] = json!(setting);
            });
            let is_kept = verdict.findings[0].advice.as_deref().unwrap().contains("keeps refused");
            assert_eq!(is_kept, setting == "reject");
        }
        assert_headline(State::Bad, "a moment ago", |status| {
            status["queue"]["full"] = json!(true);
        });
    }

    #[test]
    fn the_advice_for_a_full_queue_names_the_required_output_with_the_largest_backlog() {
        let verdict = judged(|status| {
            status["queue"]["full"] = json!(true);
            let output = status["outputs"][0].clone();
            status["outputs"] = json!([output.clone(), output.clone(), output]);
            status["outputs"][0]["backlog_bytes"] = json!(5);
            for (index, name, bytes) in [(1, "slow", 9), (2, "optional", 99)] {
                status["outputs"][index]["name"] = json!(name);
                status["outputs"][index]["backlog_bytes"] = json!(bytes);
                status["outputs"][index]["backlog_events"] = json!(1);
            }
            status["outputs"][2]["required"] = json!(false);
        });
        let advice = verdict.findings[0].advice.as_deref().unwrap();
        assert!(advice.contains("output slow"), "{advice}");
    }

    #[test]
    fn losses_are_bad_unless_only_optional_outputs_have_them() {
        assert_headline(State::Bad, "in the queue", |status| {
            status["lost_events"] = json!(3);
            status["queue"]["lost_events"] = json!(3);
        });
        assert_headline(State::Bad, "that a reload has removed", |status| {
            status["lost_events"] = json!(3);
        });
        assert_headline(State::Bad, "now, for the output siem", |status| {
            status["lost_events"] = json!(3);
            status["lost_events_per_second"] = json!(0.1);
            status["outputs"][0]["lost_events"] = json!(3);
        });
        assert_headline(State::Warn, "since the start, for the output siem", |status| {
            status["lost_events"] = json!(3);
            status["outputs"][0]["lost_events"] = json!(3);
            status["outputs"][0]["required"] = json!(false);
        });
    }

    #[test]
    fn dead_letters_that_were_deleted_are_not_said_to_be_held() {
        for (letters, dropped, words) in [
            (0, 0, "and why. Runbook"),
            (120, 0, "The dead letters hold the refused ones: `replay` sends them again. Runbook"),
            (120, 72, "hold only the newest refused ones"),
        ] {
            let verdict = judged(|status| {
                status["lost_events"] = json!(120);
                status["dead_letters_dropped_events"] = json!(dropped);
                status["outputs"][0]["lost_events"] = json!(120);
                status["outputs"][0]["dead_letter_events"] = json!(letters);
            });
            let advice = verdict.findings[0].advice.as_deref().unwrap();
            assert!(advice.contains(words), "{advice}");
        }
    }

    #[test]
    fn refused_connections_are_bad_for_a_minute_and_a_warning_for_five() {
        let refused = |reason: &'static str, ago: f64| {
            move |status: &mut Value| {
                status["refused_connections"] =
                    json!({ reason: { "count": 3, "last_seconds_ago": ago } });
            }
        };
        let words = "are closed: limits.max_connections is reached";
        assert_headline(State::Bad, words, refused("all_busy", 59.0));
        assert_headline(State::Bad, "the kernel refuses", refused("accept_failed", 59.0));
        assert_headline(State::Warn, "were recently closed for newer", refused("evicted", 3.0));
        assert_headline(State::Warn, "were recently closed", refused("all_busy", 61.0));
        assert_headline(State::Good, "works", refused("all_busy", 301.0));
    }

    #[test]
    fn the_worst_finding_is_the_headline() {
        let verdict = judged(|status| {
            status["outputs"][0]["growing"] = json!(true);
            status["queue"]["fault"] = json!("No space left on device");
            status["log_dropped_lines"] = json!(1);
        });
        let states: Vec<_> = verdict.findings.iter().map(|it| it.state).collect();
        assert_eq!(states, [State::Bad, State::Warn, State::Note]);
        assert!(verdict.text.contains("No space left"), "{verdict:?}");
    }

    #[test]
    fn certificates_warn_14_days_before_their_end_and_are_bad_at_3() {
        for (hours, state, words) in [
            (15 * 24, State::Good, "works"),
            (13 * 24 + 12, State::Warn, "expires in 13 days"),
            (36, State::Bad, "expires in 1 day."),
            (-24, State::Bad, "The consumer's certificate at output siem has expired."),
        ] {
            assert_headline(state, words, |status| {
                status["certificates"] = json!([{ "place": "output", "name": "siem",
                    "role": "server", "not_after_seconds": 1_000_000 + hours * 3600 }]);
            });
        }
    }

    #[test]
    fn only_a_certificate_of_the_relay_is_replaced_here() {
        for (place, role, words) in [
            ("output", "client", "the relay reloads the file"),
            ("output", "server", "consumer's operators"),
            ("listener", "server", "the relay reloads the file"),
            ("listener", "client", "sender's operators"),
        ] {
            let verdict = judged(|status| {
                status["certificates"] = json!([{ "place": place, "name": "siem", "role": role,
                    "not_after_seconds": 0 }]);
            });
            let advice = verdict.findings[0].advice.as_deref().unwrap();
            assert!(advice.starts_with(if words.starts_with("the") { "Repl" } else { "The" }));
            assert!(advice.contains(words), "{advice}");
        }
    }

    #[test]
    fn a_kube_apiserver_is_noted_that_is_silent_while_others_are_heard() {
        let texts = |ages: &[f64]| {
            let verdict = judged(|status| {
                let apiserver =
                    |age: &f64| json!({ "name": format!("a{age}"), "last_heard_seconds_ago": age });
                status["apiservers"] = ages.iter().map(apiserver).collect();
            });
            assert_eq!(verdict.state, State::Good, "another relay may hear it: {verdict:?}");
            verdict.findings.into_iter().skip(1).map(|it| it.text).collect::<Vec<_>>()
        };
        for quiet in [&[][..], &[900.0], &[900.0, 920.0, 1200.0], &[9.0, 309.0]] {
            assert_eq!(texts(quiet), [""; 0], "{quiet:?}");
        }
        let said = texts(&[9.0, 310.0, 40.0]);
        assert!(
            said.len() == 1 && said[0].starts_with("This relay has received no events from"),
            "{said:?}"
        );
        assert!(said[0].contains("kube-apiserver a310 "), "{said:?}");
    }

    /// A runbook's name alone is no advice.
    #[test]
    fn advice_is_a_sentence_and_a_runbook_has_an_address() {
        let source = include_str!("verdict.rs").split("mod tests").next().unwrap();
        assert!(!source.contains("\"Runbook: Kube"), "an advice is only the name of a runbook");
        let verdict = judged(|status| {
            status["outputs"][0]["up"] = json!(false);
            status["outputs"][0]["down_seconds"] = json!(3.0);
        });
        let page = verdict.findings[0].runbook.as_deref().unwrap();
        assert!(page.ends_with("/docs/runbooks/KubeAuditForwarderOutputDown.md"), "{page}");
        let rules = include_str!("../../../../deploy/monitoring/rules.yaml");
        assert!(rules.contains(&format!("runbook_url: {page}\n")));
    }

    #[test]
    fn refusals_silence_and_a_refused_config_are_warnings() {
        assert_headline(
            State::Warn,
            "rejected permanently in the last five minutes (invalid)",
            |status| {
                status["last_final_refusal"] = json!({ "reason": "invalid", "seconds_ago": 3.0 });
            },
        );
        assert_headline(State::Good, "works", |status| {
            status["last_final_refusal"] = json!({ "reason": "invalid", "seconds_ago": 301.0 });
        });
        assert_headline(State::Warn, "at [::]:3000 failed recently (unknown_ca)", |status| {
            status["last_tls_failure"] =
                json!({ "listener": "[::]:3000", "reason": "unknown_ca", "seconds_ago": 3.0 });
        });
        assert_headline(State::Good, "works", |status| {
            status["last_tls_failure"] =
                json!({ "listener": "[::]:3000", "reason": "unknown_ca", "seconds_ago": 301.0 });
        });
        assert_headline(State::Warn, "No event", |status| {
            status["last_event_seconds_ago"] = json!(901.0);
        });
        assert_headline(State::Warn, "config change was refused", |status| {
            status["reloads"] = json!({ "success": { "last_seconds_ago": 9.0 },
                "error": { "last_seconds_ago": 3.0 } });
        });
        assert_headline(State::Warn, "retried: cannot listen on [::]:3000: in use", |status| {
            status["reloads"] = json!({ "success": { "last_seconds_ago": 9.0 },
                "error": { "last_seconds_ago": 3.0 },
                "awaits_address": "cannot listen on [::]:3000: in use" });
        });
        assert_headline(State::Warn, "max_in_flight", |status| {
            status["refused_429_per_second"] = json!(0.5);
            status["in_flight_full_seconds_ago"] = json!(59.0);
        });
        // The queue was full.
        assert_headline(State::Good, "", |status| {
            status["refused_429_per_second"] = json!(0.5);
            status["in_flight_full_seconds_ago"] = json!(61.0);
        });
    }

    #[test]
    fn evidence_that_fails_is_a_warning_at_once_until_a_checkpoint_is_younger_than_the_error() {
        for reason in ["write", "sign", "another"] {
            for (checkpoint, error, state) in [
                (json!(12.0), json!(3.0), State::Warn),
                (json!(null), json!(3.0), State::Warn),
                (json!(3.0), json!(null), State::Warn),
                (json!(3.0), json!(12.0), State::Good),
            ] {
                assert_headline(state, "", |status| {
                    status["evidence"] = json!({ "errors": { reason: 1 },
                        "last_checkpoint_seconds_ago": checkpoint });
                    if error.is_number() {
                        status["evidence"]["last_errors_seconds_ago"] = json!({ reason: error });
                    }
                });
            }
        }
        assert_headline(State::Bad, "(tampered)", |status| {
            status["evidence"] = json!({ "errors": { "tampered": 1 },
                "last_checkpoint_seconds_ago": 1.0, "last_errors_seconds_ago": { "tampered": 9 } });
        });
    }

    #[test]
    fn a_witness_that_was_away_is_a_warning_until_it_cosigns_again() {
        for (ago, state) in
            [(json!(null), State::Warn), (json!(6.0), State::Warn), (json!(3.0), State::Good)]
        {
            assert_headline(state, "", |status| {
                status["evidence"] = json!({ "errors": { "witness": 1 },
                    "last_errors_seconds_ago": { "witness": 5.0 },
                    "witnesses": [{ "name": "w", "last_seconds_ago": ago }] });
            });
        }
    }

    #[test]
    fn a_log_that_was_set_back_is_bad() {
        assert_headline(State::Bad, "an older copy", |status| {
            status["evidence"] = json!({ "errors": { "rolled_back": 1, "witness": 2 } });
        });
    }
}
