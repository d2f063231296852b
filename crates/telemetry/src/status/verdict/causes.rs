//! Puts each finding below the one that explains it, so that an operator reads the cause first.
//!
//! A rule here is a claim: "this finding ends when that one ends". So each rule asks for the same
//! output, or for the output whose events fill the queue. A loss has a cause only if nothing else
//! can have lost these events. What no rule explains stays a finding of its own.

use super::{Finding, Kind, State, Status};
use crate::status::Output;

/// Returns the findings that no other one explains, each with its consequences. Its state is then
/// that of the worst of them.
pub(super) fn first(found: Vec<Finding>, status: &Status) -> Vec<Finding> {
    let filler = filler(status).map(|it| format!("output {}", it.name));
    let is_cause = |cause: &Finding, of: &Finding| {
        // A cause stands before its consequences in the list of kinds, so this has an end.
        cause.kind < of.kind && explains(cause, of, filler.as_deref(), status)
    };
    let root = |mut at: usize| {
        while let Some(cause) = found.iter().position(|it| is_cause(it, &found[at])) {
            at = cause;
        }
        at
    };
    let roots: Vec<usize> = (0..found.len()).map(root).collect();
    let (mut findings, others): (Vec<_>, Vec<_>) =
        found.into_iter().enumerate().zip(roots).partition(|((at, _), root)| at == root);
    for ((_, finding), root) in others {
        if let Some(((_, cause), _)) = findings.iter_mut().find(|((at, _), _)| *at == root) {
            cause.state = cause.state.max(finding.state);
            cause.consequences.push(finding);
        }
    }
    findings.into_iter().map(|((_, finding), _)| finding).collect()
}

/// Returns the output whose events need at least half of the queue: it explains a queue that fills.
fn filler(status: &Status) -> Option<&Output> {
    let outputs = status.outputs.iter().filter(|it| it.required);
    let most = outputs.max_by_key(|it| it.backlog.backlog_bytes)?;
    let is_half = most.backlog.backlog_bytes.saturating_mul(2) >= status.queue.needed();
    (most.backlog.backlog_bytes > 0 && is_half).then_some(most)
}

fn explains(cause: &Finding, of: &Finding, filler: Option<&str>, status: &Status) -> bool {
    use Kind::*;
    let is_same = cause.about == of.about;
    let fills = Some(cause.about.as_str()) == filler;
    // A note is about something that is over.
    let is_present = of.state > State::Note;
    match (cause.kind, of.kind) {
        (EvidenceTampered | DiskRefused, EvidenceNotWritten) => is_present,
        (DiskRefused, SlowAnswers | SendersWait) => true,
        (CertificateExpired, OutputDown | OutputUnsteady) => {
            is_same && says_certificate(of, status)
        }
        (CertificateExpired, TlsHandshakesFail | ListenerClosed) => {
            is_same && is_of_listener(cause, status)
        }
        (CertificateExpired, EverythingRefused) => {
            of.state == State::Bad && is_of_listener(cause, status)
        }
        (EventsRefused | OutputDown | OutputUnsteady, EventsLost) => lost_by(cause, status),
        (QueueFull, EventsLost) => lost_in_queue(status),
        (EventsRefused, OutputUnsteady | OutputStalls) => is_same,
        (OutputPaused | OutputUnsteady, AddressDown | AddressOnTrial | OutputStalls) => is_same,
        // The limit of an output is a reason of its own.
        (EventsRefused | OutputPaused | OutputUnsteady, OutputLate) => {
            let output = of.output(status);
            is_same && !output.is_some_and(super::outputs::is_limited)
        }
        (OutputPaused | OutputDown | OutputUnsteady | OutputLate, QueueFills | QueueFull) => fills,
        (OutputDown | OutputUnsteady | OutputLate, SendersWait) => {
            fills && status.intake.acknowledge.as_deref() == Some("delivered")
        }
        (SlowRequests, ConnectionsRefused | InFlightFull) => true,
        // The refusals of a time that has ended explain nothing that is there now.
        (EverythingRefused, RequestsRejected | TlsHandshakesFail | NothingReceived) => {
            cause.state == State::Bad
        }
        (DiskRefused | QueueFull | InFlightFull | SendersWait, SendersGaveUp) => {
            of.state == State::Bad
        }
        (
            DiskRefused | QueueFull | InFlightFull | SendersWait | SlowRequests
            | ConnectionsRefused,
            NothingReceived,
        ) => cause.kind != ConnectionsRefused || cause.state == State::Bad,
        _ => false,
    }
}

/// Returns `true` if the last error of this finding's output is about a certificate.
fn says_certificate(finding: &Finding, status: &Status) -> bool {
    let error = finding.output(status).and_then(|it| it.health.last_error.as_ref());
    error.is_some_and(|error| error.contains("ertificate"))
}

/// Returns `true` if the expired certificate is that of a listener, and not that of a sender.
fn is_of_listener(finding: &Finding, status: &Status) -> bool {
    let now = status.process.time_seconds;
    status.certificates.iter().any(|it| {
        let is_it = finding.about == format!("listener {}", it.name) && it.place == "listener";
        is_it && it.role == "server" && (it.not_after_seconds as f64) < now
    })
}

/// Returns `true` if only the queue has lost events, since the moment at which it became full.
fn lost_in_queue(status: &Status) -> bool {
    let (queue, all) = (&status.queue, status.losses.lost_events);
    let since = queue.last_lost_seconds_ago.zip(queue.full_seconds);
    queue.lost_events == all && since.is_some_and(|(lost, full)| lost <= full)
}

/// Returns `true` if only the output of this finding has lost events, the last of them since the
/// finding began.
fn lost_by(cause: &Finding, status: &Status) -> bool {
    let Some(output) = cause.output(status) else { return false };
    // An optional output also loses events when the queue needs room.
    let age = match cause.kind == Kind::EventsRefused {
        true => output.aside.as_ref().filter(|_| output.required).map(|aside| aside.seconds),
        false => output.health.down_seconds,
    };
    let since = output.counts.last_lost_seconds_ago.zip(age);
    output.counts.lost_events == status.losses.lost_events
        && since.is_some_and(|(lost, age)| lost <= age)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Kind, State, Verdict, judge};
    use Kind::*;

    /// Judges a relay with a required output `siem`, which has most of the events in the queue, and
    /// an optional output `lake`, after `change` has changed its state.
    fn judged(change: impl FnOnce(&mut Value)) -> Verdict {
        let output = |name: &str, required: bool, bytes: u64| {
            json!({ "name": name, "required": required, "up": true, "keeps_events": required,
                "lag_max_seconds": 30.0, "backlog_bytes": bytes, "backlog_events": 3,
                "addresses": [{ "address": "10.0.0.1:1", "state": "up" }] })
        };
        let mut status = json!({
            "started": true, "uptime_seconds": 5000, "last_event_seconds_ago": 1.0,
            "time_seconds": 1_000_000.0, "earlier_known": true,
            "queue": { "capacity_bytes": 1000, "bytes": 10, "needed_bytes": 10,
                "when_full": "reject", "retry_after_seconds": 5.0 },
            "listeners": [{ "listener": "l", "address": "0.0.0.0:3000" }],
            "outputs": [output("siem", true, 8), output("lake", false, 9)],
        });
        change(&mut status);
        let mut status = serde_json::from_value(status).unwrap();
        judge(&mut status);
        status.verdict.unwrap()
    }

    /// Each finding's kind, with the kinds of its consequences.
    fn kinds(verdict: &Verdict) -> Vec<(Kind, Vec<Kind>)> {
        let below = |it: &super::Finding| it.consequences.iter().map(|it| it.kind).collect();
        verdict.findings.iter().map(|it| (it.kind, below(it))).collect()
    }

    #[track_caller]
    fn assert_kinds(wanted: &[(Kind, &[Kind])], change: impl FnOnce(&mut Value)) -> Verdict {
        let verdict = judged(change);
        let wanted: Vec<_> = wanted.iter().map(|(kind, below)| (*kind, below.to_vec())).collect();
        assert_eq!(kinds(&verdict), wanted, "{verdict:#?}");
        verdict
    }

    fn nearly_full(status: &mut Value) {
        status["queue"]["needed_bytes"] = json!(810);
        status["outputs"][0]["backlog_bytes"] = json!(700);
    }

    fn down(status: &mut Value) {
        status["outputs"][0]["up"] = json!(false);
        status["outputs"][0]["down_seconds"] = json!(90.0);
    }

    fn late(status: &mut Value) {
        status["outputs"][0]["lag_seconds"] = json!(31.0);
    }

    /// The five findings of a consumer that turns down some events are one: what it turns down.
    #[test]
    fn events_that_a_consumer_turns_down_explain_all_that_follows_from_them() {
        let verdict = assert_kinds(
            &[(EventsRefused, &[EventsLost, QueueFills, OutputUnsteady, OutputLate])],
            |status| {
                nearly_full(status);
                late(status);
                status["lost_events"] = json!(7);
                let output = &mut status["outputs"][0];
                output["unsteady"] = json!(true);
                output["lost_events"] = json!(7);
                output["last_lost_seconds_ago"] = json!(3.0);
                output["aside"] =
                    json!({ "events": 637, "at_fault": 637, "position": 7, "seconds": 200.0 });
            },
        );
        assert_eq!(verdict.state, State::Bad, "events are lost");
        assert!(verdict.text.contains("turns down 637 of its events"), "{verdict:?}");
    }

    #[test]
    fn the_queue_fills_because_of_the_output_whose_events_need_most_of_it() {
        for (change, wanted) in [
            (down as fn(&mut Value), &[(OutputDown, &[QueueFills][..])][..]),
            (late, &[(OutputLate, &[QueueFills])]),
            (
                |status| status["outputs"][0]["paused"] = json!(true),
                &[(OutputPaused, &[QueueFills])],
            ),
            (|_| (), &[(QueueFills, &[])]),
        ] {
            let verdict = assert_kinds(wanted, |status| {
                nearly_full(status);
                change(status);
            });
            assert_eq!(verdict.state, State::Bad);
        }
        // Most of the queue is not of this output.
        assert_kinds(&[(QueueFills, &[]), (OutputDown, &[])], |status| {
            nearly_full(status);
            down(status);
            status["outputs"][0]["backlog_bytes"] = json!(300);
        });
    }

    #[test]
    fn a_loss_has_a_cause_only_if_nothing_else_can_have_lost_these_events() {
        let lost = |lost: u64, ago: f64| {
            move |status: &mut Value| {
                down(status);
                status["lost_events"] = json!(7);
                status["outputs"][0]["lost_events"] = json!(lost);
                status["outputs"][0]["last_lost_seconds_ago"] = json!(ago);
            }
        };
        assert_kinds(&[(OutputDown, &[EventsLost])], lost(7, 89.0));
        let older = [(EventsLost, &[][..]), (OutputDown, &[])];
        assert_kinds(&older, lost(7, 91.0));
        assert_kinds(&older, lost(6, 89.0));
        assert_kinds(&[(QueueFull, &[EventsLost])], |status| {
            status["lost_events"] = json!(7);
            status["queue"]["when_full"] = json!("drop_oldest");
            status["queue"]["full"] = json!(true);
            status["queue"]["full_seconds"] = json!(60.0);
            status["queue"]["lost_events"] = json!(7);
            status["queue"]["last_lost_seconds_ago"] = json!(2.0);
        });
    }

    #[test]
    fn what_senders_suffer_has_the_cause_that_stops_them() {
        let silent = |status: &mut Value| {
            status["last_event_seconds_ago"] = json!(901.0);
            status["refusals"]["with_503"] = json!({ "seconds": 901.0, "shut_seconds": 901.0,
                "longest_seconds": 901.0, "longest_shut_seconds": 901.0,
                "long_ended_seconds_ago": 1.0, "long_shut_ended_seconds_ago": 1.0 });
        };
        assert_kinds(&[(DiskRefused, &[SendersGaveUp, NothingReceived])], |status| {
            silent(status);
            status["queue"]["fault"] = json!("No space left on device");
        });
        assert_kinds(&[(OutputDown, &[SendersWait, SendersGaveUp, NothingReceived])], |status| {
            silent(status);
            down(status);
            status["acknowledge"] = json!("delivered");
        });
        assert_kinds(&[(EverythingRefused, &[NothingReceived])], |status| {
            status["last_event_seconds_ago"] = json!(901.0);
            status["refusals"]["permanent"] =
                json!({ "shut_seconds": 901.0, "long_shut_ended_seconds_ago": 10.0 });
            status["last_final_refusal"] = json!({ "reason": "invalid", "seconds_ago": 10.0 });
        });
        // The refusals have ended, and something else is wrong now.
        let over = [(EverythingRefused, &[][..]), (RequestsRejected, &[]), (NothingReceived, &[])];
        assert_kinds(&over, |status| {
            status["last_event_seconds_ago"] = json!(901.0);
            status["refusals"]["permanent"] = json!({ "long_shut_ended_seconds_ago": 3000.0 });
            status["last_final_refusal"] = json!({ "reason": "invalid", "seconds_ago": 10.0 });
        });
        // A stranger's handshake is no reason for the 503 that others get.
        let stranger =
            [(TlsHandshakesFail, &[][..]), (SendersWait, &[SendersGaveUp, NothingReceived])];
        let verdict = judged(|status| {
            silent(status);
            status["last_tls_failure"] =
                json!({ "listener": "l", "reason": "unknown_ca", "seconds_ago": 3.0 });
        });
        let found = kinds(&verdict);
        assert!(stranger.iter().all(|(kind, below)| found.contains(&(*kind, below.to_vec()))));
        assert_eq!(verdict.findings[0].kind, SendersWait, "{verdict:#?}");
        let verdict = assert_kinds(&[(SlowRequests, &[ConnectionsRefused])], |status| {
            status["last_event_seconds_ago"] = json!(500.0);
            status["last_rejected"] = json!({ "reason": "timeout", "seconds_ago": 3.0 });
            status["refused_connections"] = json!({ "all_busy": { "last_seconds_ago": 2.0 } });
        });
        assert_eq!((verdict.state, verdict.findings[0].state), (State::Bad, State::Bad));
    }

    /// A finding about the past does not follow from one about the present.
    #[test]
    fn a_note_is_no_consequence() {
        assert_kinds(&[(QueueFull, &[]), (SendersGaveUp, &[])], |status| {
            status["queue"]["full"] = json!(true);
            status["refusals"]["with_429"] = json!({ "longest_seconds": 900.0,
                "long_ended_seconds_ago": 4000.0 });
        });
    }

    #[test]
    fn an_expired_certificate_explains_the_side_that_shows_it() {
        let expired = |place: &'static str, name: &'static str| {
            move |status: &mut Value| {
                down(status);
                status["outputs"][0]["last_error"] = json!("invalid peer certificate: Expired");
                status["last_tls_failure"] =
                    json!({ "listener": "l", "reason": "refused", "seconds_ago": 3.0 });
                status["certificates"] = json!([{ "place": place, "name": name,
                    "role": "server", "not_after_seconds": 5 }]);
            }
        };
        let of_listener = [(OutputDown, &[][..]), (CertificateExpired, &[TlsHandshakesFail])];
        assert_kinds(&of_listener, expired("listener", "l"));
        let of_output = [(CertificateExpired, &[OutputDown][..]), (TlsHandshakesFail, &[])];
        assert_kinds(&of_output, expired("output", "siem"));
        assert_kinds(
            &[(OutputDown, &[]), (CertificateExpired, &[]), (TlsHandshakesFail, &[])],
            expired("output", "lake"),
        );
    }

    #[test]
    fn an_output_at_its_limit_is_late_because_of_it() {
        assert_kinds(&[(OutputLate, &[]), (EventsRefused, &[])], |status| {
            late(status);
            let output = &mut status["outputs"][0];
            output["rate_limit_bytes_per_second"] = json!(100);
            output["sent_bytes_per_second"] = json!(99.0);
            output["aside"] = json!({ "events": 1, "at_fault": 1, "seconds": 200.0 });
        });
    }

    /// A pause is what the operator asked for, until it seems to be forgotten.
    #[test]
    fn a_pause_is_a_note_until_it_lasts_for_a_day_or_fills_half_of_the_queue() {
        for (lag, bytes, state, words) in [
            (86_399.0, 500, State::Good, "that is not paused works"),
            (86_401.0, 500, State::Warn, "waited for more than a day"),
            (60.0, 501, State::Warn, "need half of the queue"),
        ] {
            let verdict = judged(|status| {
                status["outputs"][0]["paused"] = json!(true);
                status["outputs"][0]["lag_seconds"] = json!(lag);
                status["outputs"][0]["backlog_bytes"] = json!(bytes);
            });
            assert_eq!(verdict.state, state, "{verdict:?}");
            assert!(verdict.text.contains(words), "{verdict:?}");
        }
    }

    #[test]
    fn a_kind_of_another_version_is_read() {
        let of_other = json!({ "kind": "new", "state": "warn", "about": "relay", "text": "t" });
        let finding: super::Finding = serde_json::from_value(of_other).unwrap();
        assert_eq!(finding.kind, Other);
    }
}
