//! What is wrong with the relay itself: losses, the queue, the evidence and the process.

use super::{DAY, Findings, Kind, State, cause};
use crate::status::thresholds::{
    CERTIFICATE_DAYS, FULL_WITHIN, MEMORY_NEARLY_USED, QUEUE_NEARLY_FULL,
};
use crate::status::{Certificate, Output, Queue, Status};

/// The number of seconds for which the page says that `limits.max_in_flight` was reached.
const IN_FLIGHT_FULL_FOR: f64 = 60.0;

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

pub(super) fn losses(status: &Status, found: &mut Findings) {
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
        "Look for the log lines at level error: they say how many events, and why.{letters}"
    );
    found.add(Kind::EventsLost, state, "relay", text, &advice);
}

pub(super) fn earlier(status: &Status, found: &mut Findings) {
    if let Some(at) = &status.losses.earlier_last_lost {
        let lost = status.losses.earlier_lost_events;
        let text = format!(
            "Events lost or refused for good before the last restart: {lost}, the last at {at}."
        );
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
    let advice = "`kubectl describe pod` shows the reason.";
    found.add(Kind::Killed, state, "relay", text, advice);
}

pub(super) fn queue(status: &Status, found: &mut Findings) {
    let queue = &status.queue;
    if let Some(fault) = &queue.fault {
        let text = format!("The queue cannot store events: {fault}. Senders get 503.");
        // The kernel says the same when inodes are used up.
        let remedy = match fault.contains("No space left on device") {
            true => "Free space on the disk of queue.directory, or inodes if `df -i` shows none.",
            false => "Fix the disk of queue.directory.",
        };
        let advice = format!("{remedy} kube-apiserver keeps its events for about four minutes.");
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
        found.add(Kind::QueueFills, State::Bad, "queue", text, &more_room(status));
    }
    // A 429 may also be the answer of a queue that was full a moment ago.
    let in_flight_full = status.intake.in_flight_full_seconds_ago;
    if !queue.full && in_flight_full.is_some_and(|seconds| seconds < IN_FLIGHT_FULL_FOR) {
        let text =
            "Senders get 429: the request bodies in progress have reached limits.max_in_flight.";
        let advice = "Raise limits.max_in_flight and the memory limit, or add replicas.";
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
    let advice = format!("{}{kept}", more_room(status));
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

pub(super) fn evidence(status: &Status, found: &mut Findings) {
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
        found.add(kind, state, "evidence", text, "The log says more.");
    }
}

pub(super) fn process(status: &Status, found: &mut Findings) {
    if let Some(limit) = status.process.memory_limit_bytes
        && status.process.memory_bytes as f64 > MEMORY_NEARLY_USED * limit as f64
    {
        let text = "Memory is nearly used up: above the limit, the kernel kills the relay.";
        let advice = "Raise the memory limit.";
        found.add(Kind::MemoryNearLimit, State::Warn, "relay", text, advice);
    }
    for it in &status.certificates {
        certificate(status, it, found);
    }
    let (applied, refused) =
        (status.reloads.success.last_seconds_ago, status.reloads.error.last_seconds_ago);
    if let Some(error) = &status.reloads.awaits_address {
        let text = format!("The last config change is being retried: {error}.");
        let advice = "Free the address, or correct it in the config.";
        found.add(Kind::ReloadFailed, State::Warn, "relay", text, advice);
    } else if refused.is_some_and(|refused| applied.is_none_or(|applied| refused < applied)) {
        let why = status.reloads.refused.as_deref().map(|error| format!(" ({})", cause(error)));
        let why = why.unwrap_or_default();
        let text = format!(
            "The last config change was refused{why}; the relay continues with the previous config."
        );
        let advice = "The log names the reason, and `check` most mistakes.";
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
    let kind = if days < 0.0 { Kind::CertificateExpired } else { Kind::CertificateExpires };
    found.add(kind, state, &about, text, advice);
}
