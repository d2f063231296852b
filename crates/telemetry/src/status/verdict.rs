//! The judgement of a relay's state: the findings, worst first but notes last, each with what
//! follows from it ([`causes`]), and the headline.
//!
//! The relay judges itself and puts the verdict into `/status`, so that the status page, `top` and
//! scripts cannot contradict each other. The judgement is a pure function of the other fields.
//! No text has a number that changes with each answer, because browsers read new texts aloud.

use serde::{Deserialize, Serialize};

mod causes;
mod outputs;
mod relay;
mod senders;

pub use outputs::{ON_TRIAL, cause, is_down, is_dropping_all, is_growing, is_late, is_passed_over};
pub use relay::difference;
pub use senders::SENDERS;

use super::{Output, Status};

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
    /// Nobody knows what earlier processes have lost.
    EarlierUnknown,
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

impl Kind {
    /// Returns the name of the alert about the same, whose runbook says what to do. `None` if there
    /// is no such alert.
    pub fn alert(self) -> Option<String> {
        use Kind::*;
        let name = match self {
            CertificateExpired => "CertificateExpires",
            EventsRefused => "EventsSetAside",
            // The page of OutputDown is that of OutputAddressDown too.
            OutputUnsteady | AddressDown | AddressOnTrial => "OutputDown",
            OutputStalls | OutputLate => "OutputLags",
            QueueFills | QueueFull => "QueueNearlyFull",
            SlowRequests | InFlightFull | SendersGaveUp => "SendersWait",
            SlowAnswers => "DiskSlow",
            // These have the names of their alerts.
            CertificateExpires | EvidenceTampered | EvidenceRolledBack | DiskRefused
            | OutputPaused | OutputDown | AllFiltered | ConnectionsRefused | SendersWait
            | EverythingRefused | RequestsRejected | TlsHandshakesFail | EvidenceNotWritten
            | WitnessAway | EventsLost | NothingReceived | EarlierLosses | Killed
            | MemoryNearLimit | ReloadFailed | ApiserverSilent => &format!("{self:?}"),
            Starting | Stopping | ListenerClosed | EarlierUnknown | SourceFails | LogIncomplete
            | Good | Other => return None,
        };
        Some(format!("KubeAuditForwarder{name}"))
    }
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
    /// The path of the runbook about it at the admin address; `None` if there is none.
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

    /// Returns the advice, and the runbook's URL for readers in a terminal. If `relay`, the URL of
    /// the admin address, is not known, the runbook's name stands for it. Version 0.1.0 has another
    /// URL in `runbook`, which leads nowhere.
    pub fn advice_and_runbook(&self, relay: Option<&str>) -> Option<String> {
        let page = self.runbook.as_deref().and_then(|path| path.rsplit_once('/'));
        let folder = relay.map(|relay| format!("{relay}{RUNBOOKS}/")).unwrap_or_default();
        let page =
            page.map(|(_, name)| format!("Runbook: {folder}{}", name.trim_end_matches(".md")));
        let parts: Vec<String> = self.advice.clone().into_iter().chain(page).collect();
        (!parts.is_empty()).then(|| parts.join(" "))
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

/// The folder of the runbooks at the admin address, to which `runbook_url` of the shipped rules
/// leads too.
pub const RUNBOOKS: &str = "/runbooks";

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
        let runbook = kind.alert().map(|alert| format!("{RUNBOOKS}/{alert}"));
        let advice = (!advice.is_empty()).then(|| advice.to_owned());
        let consequences = Vec::new();
        self.0.push(Finding { kind, state, about, text, advice, runbook, consequences });
    }
}

/// Judges a relay by its state: sets its `verdict`, and the `trouble` of its outputs.
pub fn judge(status: &mut Status) {
    let found = found(status);
    for output in &mut status.outputs {
        output.trouble = trouble(output, &found);
    }
    let mut findings = causes::first(found, status);
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
    status.verdict = Some(Verdict { state, text, findings });
}

fn found(status: &Status) -> Vec<Finding> {
    let mut found = Findings::default();
    relay::losses(status, &mut found);
    relay::earlier(status, &mut found);
    relay::queue(status, &mut found);
    for it in &status.outputs {
        outputs::output(it, status, &mut found);
    }
    senders::listeners(status, &mut found);
    senders::senders(status, &mut found);
    senders::apiservers(status, &mut found);
    relay::evidence(status, &mut found);
    relay::process(status, &mut found);
    if found.0.iter().all(|it| it.state <= State::Note) {
        let works = match status.outputs.iter().any(|it| it.health.paused) {
            true => "Every output that is not paused works",
            false => "Every output works",
        };
        let text = match status.losses.earlier_known {
            true => format!("{works}, and no accepted event is lost."),
            false => format!("{works}, and no event accepted since the start is lost."),
        };
        found.add(Kind::Good, State::Good, "relay", text, "");
        // The finding about a kill says more.
        if !status.losses.earlier_known && status.process.last_killed.is_none() {
            let text =
                "What earlier processes have lost is not known: there is no complete record.";
            let advice = "With process.state_directory or queue.directory, each process leaves a \
                record for the next one.";
            found.add(Kind::EarlierUnknown, State::Note, "relay", text, advice);
        }
    }
    found.0
}

/// Returns how bad the state of one output is; `None` if nothing is wrong with it.
fn trouble(it: &Output, found: &[Finding]) -> Option<State> {
    let about = format!("output {}", it.name);
    let loses = if it.required { State::Bad } else { State::Warn };
    let lost = Some(loses).filter(|_| it.counts.lost_events > 0);
    let found = found.iter().filter(|it| it.about == about && it.state > State::Note);
    found.map(|it| it.state).chain(lost).max()
}

#[cfg(test)]
mod tests;
