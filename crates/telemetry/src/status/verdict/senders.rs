//! What is wrong with the listeners and the senders: what is refused, late or silent.

use super::{Findings, Kind, State};
use crate::status::Status;
use crate::status::thresholds::{
    APISERVER_SILENT, PATIENCE, PATIENCE_WITH_RETRY_AFTER, SILENCE, SLOW_ANSWERS,
};

/// The subject of a finding about events that senders gave up before the relay got them.
pub const SENDERS: &str = "senders";

const AT_LIMIT: &str = "limits.max_connections is reached";
const FIND_CLIENTS: &str = "Find the clients that hold connections, such as those whose bodies \
    arrive slowly, or raise limits.max_connections.";

/// For this time after a refused connection, in seconds, connections count as refused now.
const REFUSING: f64 = 60.0;

/// A refused request, connection or TLS handshake is a finding for this time, in seconds.
const REFUSED_LATELY: f64 = 300.0;

/// After this time, in seconds, events that senders have given up are only a note.
const GIVEN_UP_LATELY: f64 = 3600.0;

pub(super) fn listeners(status: &Status, found: &mut Findings) {
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
                be slow; otherwise, the CPU limit may be too low.";
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

pub(super) fn senders(status: &Status, found: &mut Findings) {
    let is_everything = everything_refused(status, found);
    if let Some(last) = &status.intake.last_final_refusal
        && last.seconds_ago < REFUSED_LATELY
        && !is_everything
    {
        let text = format!(
            "Requests were rejected permanently in the last five minutes ({}).",
            last.reason
        );
        let advice = "If the sender is kube-apiserver, its events are lost there.";
        found.add(Kind::RequestsRejected, State::Warn, "relay", text, advice);
    }
    refused_connections(status, found);
    if let Some(last) = &status.intake.last_tls_failure
        && last.seconds_ago < REFUSED_LATELY
        && !is_everything
    {
        let text =
            format!("TLS handshakes at {} failed recently ({}).", last.listener, last.reason);
        let advice = "The log has the sender's address and the reason.";
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
        let advice = "Every cluster constantly generates audit events.";
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
pub(super) fn apiservers(status: &Status, found: &mut Findings) {
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
                that kube-apiserver.";
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
        `doctor` checks kube-apiserver's own count.";
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
        found.add(Kind::ConnectionsRefused, state, "relay", text, advice);
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
            in between.";
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
        let advice = "`last_rejected` in /status has the reason.";
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
            `lost`. `doctor` checks kube-apiserver's own count.";
        found.add(Kind::SendersGaveUp, state, SENDERS, text, advice);
    }
    both.iter().any(|times| times.seconds.is_some())
}
