//! One case for each verdict, on expositions as kube-apiserver and the relay write them.

use serde_json::json;

use super::*;
use crate::attempts::webhook_posts;
use crate::counts::{Clock, REMOVED};
use crate::exposition::Exposition;
use crate::sample::Change;
use crate::{remedy, screen};
use client::ask::AskFault;
use telemetry::status::{Refusals, Status, verdict};

/// The time of the newest sample in these tests.
const NOW: f64 = 1_800_000_000.0;

/// The numbers of a healthy kube-apiserver that started 1000 s ago.
const APISERVER: &str = "\
# TYPE apiserver_audit_event_total counter
apiserver_audit_event_total 100
apiserver_audit_level_total{level=\"Metadata\"} 90
apiserver_audit_requests_rejected_total 0
rest_client_requests_total{code=\"200\",host=\"[::1]:6443\",method=\"POST\"} 900
rest_client_requests_total{code=\"200\",host=\"relay.example\",method=\"GET\"} 5
rest_client_requests_total{code=\"200\",host=\"relay.example\",method=\"POST\"} 7
process_start_time_seconds 1.799999e+09
";

/// The state of a healthy relay that started at the same time, with its verdict, after `changes`.
/// Each is written as `PATH VALUE`, with the path of a number in the JSON.
fn relay(changes: &[&str]) -> Relay {
    let mut state = json!({
        "version": "1.2.3", "start_time_seconds": NOW - 990.0, "time_seconds": NOW,
        "started": true, "uptime_seconds": 990, "accepted_events": 100, "earlier_known": true,
        "last_event_seconds_ago": 10.0, "rejected_requests": {}, "refused_connections": {},
        "listeners": [{ "address": "127.0.0.1:1", "requests": { "200": 7 } }],
        "queue": { "kind": "disk", "capacity_bytes": 1000, "bytes": 10, "when_full": "reject" },
        "outputs": [{ "name": "out", "required": true, "up": true, "keeps_events": true,
            "lag_max_seconds": 30.0, "delivered_events": 100, "filtered": {} }],
    });
    for change in changes {
        let (path, value) = change.split_once(' ').unwrap();
        let (parent, key) = path.rsplit_once('/').unwrap();
        state.pointer_mut(parent).unwrap()[key] = serde_json::from_str(value).unwrap();
    }
    changed(&serde_json::from_value(state).unwrap(), |it| {
        let outputs = it.outputs.iter().map(|it| it.counts.lost_events);
        it.losses.lost_events = it.queue.lost_events + outputs.sum::<u64>();
    })
}

/// Returns a relay with this state after `change`, and with the verdict on that.
fn changed(status: &Status, change: impl FnOnce(&mut Status)) -> Relay {
    let mut status = status.clone();
    change(&mut status);
    verdict::judge(&mut status);
    Relay { clock: Clock { now: Some(NOW), ahead: 0.0 }, status }
}

/// Replaces the values of series, each written as `SERIES VALUE`. A value `-` removes the line, and
/// a series that is not there yet is added.
fn with(text: &str, changes: &[&str]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for change in changes {
        let (series, value) = change.rsplit_once(' ').unwrap();
        lines.retain(|line| line.rsplit_once(' ').is_none_or(|(it, _)| it != series));
        if value != "-" {
            lines.push((*change).to_owned());
        }
    }
    lines.join("\n")
}

fn counts(text: &str) -> ApiserverCounts {
    let wanted = ApiserverCounts::wanted();
    let counts = ApiserverCounts::of(&Exposition::parse(text.as_bytes(), &wanted).unwrap());
    ApiserverCounts { clock: Clock { now: Some(NOW), ahead: 0.0 }, ..counts }
}

/// Makes a source with one sample, or with two.
fn sampled<C: Clone>(source: &str, samples: &[C]) -> Sampled<C> {
    let before = (samples.len() > 1).then(|| samples[0].clone());
    let elapsed = before.is_some().then_some(30.0);
    let counts = samples.last().cloned();
    Sampled { source: source.to_owned(), before, counts, elapsed, fault: None }
}

/// Makes a kube-apiserver whose samples have these changes.
fn apiserver(source: &str, samples: &[&[&str]]) -> Sampled<ApiserverCounts> {
    let samples: Vec<_> = samples.iter().map(|it| counts(&with(APISERVER, it))).collect();
    sampled(source, &samples)
}

/// Makes findings of two equal samples of everything, with this state of the relay.
fn saying(change: impl FnOnce(&mut Status)) -> Findings {
    let mut found = findings(&[NONE, NONE], &[NONE, NONE]);
    say(&mut found, change);
    found
}

/// Changes the state in the newest sample of the first relay.
fn say(found: &mut Findings, change: impl FnOnce(&mut Status)) {
    let relay = found.relays[0].counts.as_mut().unwrap();
    *relay = changed(&relay.status, change);
}

/// Leaves out the kube-apiserver.
fn alone(mut found: Findings) -> Findings {
    found.has_apiserver = false;
    found.apiservers.clear();
    found
}

/// Makes findings of one kube-apiserver and one relay, whose samples have these changes.
fn findings(apiserver: &[&[&str]], relay: &[&[&str]]) -> Findings {
    let relay: Vec<_> = relay.iter().map(|it| self::relay(it)).collect();
    Findings {
        apiservers: vec![self::apiserver("a", apiserver)],
        relays: vec![sampled("r", &relay)],
        has_apiserver: true,
        ..Findings::default()
    }
}

const NONE: &[&str] = &[];

/// Returns the series with the POSTs of kube-apiserver to a host.
fn posts(code: &str, host: &str, count: u64) -> String {
    format!("rest_client_requests_total{{code=\"{code}\",host=\"{host}\",method=\"POST\"}} {count}")
}

/// Returns the series with the events that a plugin of kube-apiserver has lost.
fn lost_by(plugin: &str, count: u64) -> String {
    format!("apiserver_audit_error_total{{plugin=\"{plugin}\"}} {count}")
}

/// Returns the series with the events that the relay's output has delivered.
fn delivered(count: u64) -> String {
    format!("/outputs/0/delivered_events {count}")
}

#[test]
fn losses_are_what_the_error_counters_say() {
    let (none, api) = (String::new, "kube-apiserver a");
    let full = "--audit-webhook-batch-buffer-size";
    for (apiserver, relay, also, lost, place, advice) in [
        (lost_by("webhook", 3), none(), none(), 3, api, "AuditWebhookError"),
        (lost_by("buffered", 4), none(), none(), 4, api, full),
        (lost_by("truncate", 1), none(), none(), 1, api, "--audit-webhook-truncate-max-event-size"),
        (
            none(),
            "/queue/lost_events 5".to_owned(),
            delivered(95),
            5,
            "the queue of r",
            "KubeAuditForwarderEventsLost",
        ),
        (
            none(),
            "/outputs/0/lost_events 6".to_owned(),
            delivered(94),
            6,
            "output out of r",
            "KubeAuditForwarderEventsLost",
        ),
    ] {
        let relay: Vec<&str> =
            [relay.as_str(), &also].into_iter().filter(|it| !it.is_empty()).collect();
        let apiserver = Some(apiserver.as_str()).filter(|it| !it.is_empty());
        let verdict = judge(&findings(&[apiserver.as_slice()], &[&relay]));
        assert_eq!((verdict.kind, verdict.lost), (Kind::Lost, lost), "{verdict:?}");
        assert_eq!(verdict.place, place);
        assert!(verdict.advice.contains(advice), "{advice}: {}", verdict.advice);
        let words = format!("{} lost", events(lost));
        assert!(verdict.sentence.starts_with(&words), "{}", verdict.sentence);
        assert!(verdict.sentence.contains("since the start at 2027-01-15T07:43:"), "{verdict:?}");
    }
}

#[test]
fn a_loss_says_how_much_of_it_is_new() {
    let (now, old) = ("Events are being lost now. ", "These losses are older than the interval. ");
    // The first error of a plugin may come between the samples.
    for (before, after, new, said) in
        [(Some(3), 5, 2, now), (Some(5), 5, 0, old), (None, 2, 2, now)]
    {
        let earlier = before.map(|before| lost_by("webhook", before));
        let earlier: Vec<&str> = earlier.as_deref().into_iter().collect();
        let found = findings(&[&earlier, &[&lost_by("webhook", after)]], &[NONE, NONE]);
        let verdict = judge(&found);
        assert_eq!(verdict.lost, after);
        for said in [said, &format!("{new} of them in the last 30 s")] {
            assert!(verdict.sentence.contains(said), "{}", verdict.sentence);
        }
        let note = &screen::json(&found, &verdict)["apiserver"]["notes"][0];
        assert_eq!(note["lost_in_interval"], new, "{note}");
    }
}

#[test]
fn losses_at_several_places_are_added_and_the_largest_comes_first() {
    let verdict = judge(&findings(
        &[&[&*lost_by("webhook", 3)]],
        &[&["/outputs/0/lost_events 40", "/queue/lost_events 1"]],
    ));
    assert_eq!((verdict.kind, verdict.lost), (Kind::Lost, 44));
    assert_eq!(verdict.place, "output out of r, kube-apiserver a, the queue of r");
    let (one, several) = (findings(&[NONE], &[&["/outputs/0/lost_events 1"]]), verdict.clone());
    let text = screen::text(&one, &judge(&one));
    assert_eq!(text.matches("1 event lost at ").count(), 1, "told once: {text}");
    let text = screen::text(&one, &several);
    assert_eq!(text.matches("\nlost: ").count(), 3, "each with its advice: {text}");
    let start = "44 events lost: 40 at output out of r (";
    assert!(verdict.sentence.starts_with(start), "{}", verdict.sentence);
}

#[test]
fn what_cannot_be_known_is_unknown() {
    for (apiserver, relay, what) in [
        (&["apiserver_audit_event_total -"][..], NONE, "apiserver_audit_event_total is missing"),
        (&["apiserver_audit_event_total 0"], NONE, "nothing has happened yet"),
        (
            NONE,
            &["/accepted_events 0", "/outputs/0/delivered_events 0"],
            "nothing has happened yet",
        ),
        (&["apiserver_audit_event_total 112"], NONE, "12 events unexplained: generated"),
        (NONE, &["/outputs/0/delivered_events 98"], "counts differ by 2 in the only sample"),
        (NONE, &["/outputs/0/backlog_events 1"], "counts differ by -1 in the only sample"),
    ] {
        let verdict = judge(&findings(&[apiserver], &[relay]));
        assert_eq!((verdict.kind, verdict.lost), (Kind::Unknown, 0), "{what}: {verdict:?}");
        assert!(verdict.sentence.contains(what), "{what}: {}", verdict.sentence);
        assert!(!verdict.advice.is_empty() && !verdict.place.is_empty());
    }
}

#[test]
fn a_source_that_cannot_be_read_is_unknown_and_a_loss_outranks_it() {
    let mut found = findings(&[NONE], &[NONE]);
    found.apiservers.push(Sampled {
        source: "b".to_owned(),
        before: None,
        counts: None,
        elapsed: None,
        fault: Some("http://b: cannot connect".to_owned().into()),
    });
    let verdict = judge(&found);
    assert_eq!((verdict.kind, verdict.place.as_str()), (Kind::Unknown, "kube-apiserver b"));
    assert!(verdict.sentence.contains("cannot connect"), "{}", verdict.sentence);
    // The events of the instance that can't be read are not a surplus of the relay.
    let why = "not everything could be read: kube-apiserver b".to_owned();
    assert_eq!(found.totals(), Comparison::Not(why.clone()));
    let text = screen::text(&found, &verdict);
    assert!(text.contains(&format!("not compared: {why}\n")), "{text}");
    found.relays[0] = sampled("r", &[relay(&["/queue/lost_events 9"])]);
    assert_eq!(judge(&found).kind, Kind::Lost);
    found.relays.clear();
    assert_eq!(judge(&found).kind, Kind::Unknown);
}

#[test]
fn a_number_that_is_none_is_named_and_a_loss_beside_it_outranks_it() {
    let buffered = "apiserver_audit_error_total{plugin=\"buffered\"}";
    let mut changes = vec![format!("{buffered} NaN")];
    for (more, kind) in [(None, Kind::Unknown), (Some(&*lost_by("webhook", 3)), Kind::Lost)] {
        changes.extend(more.map(str::to_owned));
        let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
        let found = findings(&[&changes], &[NONE]);
        let verdict = judge(&found);
        assert_eq!(verdict.kind, kind, "{verdict:?}");
        let text = screen::text(&found, &verdict);
        assert!(
            text.contains(&format!("{buffered} is NaN, which is not a valid number")),
            "{text}"
        );
        assert!(text.contains("(buffered: unknown, "), "{text}");
        assert!(text.contains("generated   100"), "{text}");
        let json = screen::json(&found, &verdict);
        let of_plugin = &json["apiserver"]["instances"][0]["lost"]["buffered"];
        assert_eq!(of_plugin, &serde_json::Value::Null);
    }
    let verdict = judge(&findings(&[&["apiserver_audit_event_total +Inf"]], &[NONE]));
    assert_eq!(verdict.kind, Kind::Unknown, "{verdict:?}");
    assert!(verdict.sentence.contains("apiserver_audit_event_total is inf"), "{verdict:?}");
    assert!(!verdict.sentence.contains("  "), "{}", verdict.sentence);
}

#[test]
fn health_is_ok_and_so_is_what_is_only_worth_a_look() {
    for (apiserver, relay, warning) in [
        (NONE, NONE, ""),
        (&[&*lost_by("log", 8)], NONE, "The webhook has not lost these"),
        (&["apiserver_audit_requests_rejected_total 2"], NONE, "2 API requests refused"),
        (&[&*posts("503", "relay.example", 2)], NONE, "(503: 2)"),
    ] {
        let found = findings(&[apiserver], &[relay]);
        let verdict = judge(&found);
        assert_eq!(verdict.kind, Kind::Ok, "{warning}: {verdict:?}");
        assert_eq!((verdict.lost, verdict.place.as_str(), verdict.advice.as_str()), (0, "", ""));
        let text = screen::text(&found, &verdict);
        assert!(text.ends_with("\nVERDICT: OK\n"), "{text}");
        assert!(text.contains(warning), "{warning}: {text}");
        assert_eq!(text.contains("warning: "), !warning.is_empty(), "{text}");
    }
}

#[test]
fn what_a_relay_turns_away_or_keeps_back_is_never_ok() {
    let refused = |reason: &str| {
        format!("/refused_connections/{reason} {{\"count\":3,\"last_seconds_ago\":900}}")
    };
    let (busy, evicted) = (refused("all_busy"), refused("evicted"));
    for (relay, advice) in [
        (&["/rejected_requests/too_large 3"][..], "limits.max_body"),
        (&["/rejected_requests/invalid 3"], "RequestsRejected"),
        (
            &["/outputs/0/delivered_events 0", "/outputs/0/filtered {\"dropped\":100}"],
            "policy explain",
        ),
    ] {
        let verdict = judge(&findings(&[NONE, NONE], &[relay, relay]));
        assert_eq!(verdict.kind, Kind::Unknown, "{advice}: {verdict:?}");
        assert!(verdict.advice.contains(advice), "{advice}: {verdict:?}");
    }
    // kube-apiserver counts the events that it gives up, so it proves that an earlier refusal of
    // connections cost nothing. If it was not asked, that is unknown.
    for (change, is_asked, kind) in
        [(&busy, true, Kind::Ok), (&busy, false, Kind::Unknown), (&evicted, false, Kind::Ok)]
    {
        let found = findings(&[NONE, NONE], &[&[change], &[change]]);
        let found = if is_asked { found } else { alone(found) };
        assert_eq!(judge(&found).kind, kind, "{change} {is_asked}");
    }
}

/// A change of the relay's state, and the kind, the place and the text of the cause for it.
type Passed = (fn(&mut Status), Kind, &'static str, &'static str);

#[test]
fn the_relays_own_findings_are_passed_on_word_for_word_and_no_verdict_is_better() {
    let findings: [Passed; 8] = [
        (
            |it| {
                it.outputs[0].health.up = false;
                it.outputs[0].health.down_seconds = Some(3.0);
                it.outputs[0].backlog.backlog_events = 40;
            },
            Kind::SoFar,
            "output out of r",
            "Output out is down; its events are kept (40 events waiting)",
        ),
        (
            |it| {
                it.outputs[0].backlog.backlog_events = 1;
                it.outputs[0].backlog.lag_seconds = 31.0;
            },
            Kind::SoFar,
            "output out of r",
            "Output out is late: its oldest event has waited for more than 30 s (1 event waiting)",
        ),
        (
            |it| it.outputs[0].all_dropped_seconds = Some(400.0),
            Kind::Unknown,
            "output out of r",
            "The filter of output out has dropped every event for minutes",
        ),
        (|it| it.queue.bytes = 900, Kind::SoFar, "relay r", "The queue is nearly full"),
        (
            |it| it.queue.fault = Some("No space left".to_owned()),
            Kind::Unknown,
            "relay r",
            "The queue cannot store events: No space left. Senders get 503",
        ),
        (
            |it| it.intake.last_event_seconds_ago = Some(901.0),
            Kind::SoFar,
            "relay r",
            "No event has arrived for more than 15 minutes",
        ),
        (
            |it| it.evidence = serde_json::from_value(json!({ "errors": { "write": 1 } })).unwrap(),
            Kind::SoFar,
            "relay r",
            "Evidence cannot be recorded (write)",
        ),
        (
            |it| {
                it.evidence =
                    serde_json::from_value(json!({ "errors": { "tampered": 1 } })).unwrap();
            },
            Kind::Unknown,
            "relay r",
            "Files of the queue or of its evidence were changed or removed (tampered)",
        ),
    ];
    for (change, kind, place, text) in findings {
        let found = saying(change);
        let verdict = judge(&found);
        let of_relay = &found.relays[0].counts.as_ref().unwrap().status.verdict;
        let of_relay = of_relay.as_ref().unwrap().text.as_str();
        let what = format!("r reports: {text}");
        let cause = verdict.causes.iter().find(|it| it.what == what).unwrap_or_else(|| {
            panic!("{what}: {verdict:?}");
        });
        assert_eq!((cause.kind, cause.place.as_str()), (kind, place), "{verdict:?}");
        assert!(text.starts_with(of_relay.trim_end_matches('.')), "{of_relay}");
        assert!(verdict.sentence.contains(&what), "{verdict:?}");
        let worst = if kind == Kind::Unknown { Kind::Unknown } else { Kind::Ok };
        assert_eq!(verdict.kind, worst, "{verdict:?}");
        let text = screen::text(&found, &verdict);
        assert!(!text.ends_with("VERDICT: OK\n"), "{text}");
    }
}

#[test]
fn a_loss_of_an_output_that_a_reload_has_removed_is_lost_with_its_number() {
    let found = saying(|it| it.losses.lost_events = 3);
    let verdict = judge(&found);
    assert_eq!((verdict.kind, verdict.lost, verdict.causes.len()), (Kind::Lost, 3, 1));
    assert_eq!(verdict.place, format!("{REMOVED} of r"));
    assert!(verdict.sentence.contains("3 of them in the last 30 s"), "{}", verdict.sentence);
    assert_eq!(screen::json(&found, &verdict)["relay"]["lost"], 3);
}

#[test]
fn a_saved_state_is_judged_and_what_came_later_is_said() {
    let mut found = findings(&[NONE], &[NONE]);
    found.relays[0].counts.as_mut().unwrap().clock.now = None;
    let verdict = judge(&found);
    let said = "r was saved at 2027-01-15T08:00:00Z: what came later was not checked";
    assert_eq!((verdict.kind, verdict.sentence.as_str()), (Kind::Ok, said));
}

#[test]
fn the_advice_about_a_loss_is_the_relays_own_and_the_loss_is_told_once() {
    let lost = ["/outputs/0/lost_events 6", &delivered(94)];
    let mut found = findings(&[NONE, NONE], &[&lost, &lost]);
    let change = |it: &mut Status| {
        it.losses.lost_events = 6;
        it.outputs[0].counts.lost_events = 6;
        it.outputs[0].counts.dead_letter_events = 6;
    };
    say(&mut found, change);
    let verdict = judge(&found);
    assert_eq!(
        (verdict.kind, verdict.lost, verdict.causes.len()),
        (Kind::Lost, 6, 1),
        "{verdict:?}"
    );
    assert!(verdict.advice.contains("The dead letters hold the refused ones"), "{verdict:?}");
}

#[test]
fn an_output_that_was_never_used_is_not_down() {
    for (down, is_down) in [(None, false), (Some(3.0), true)] {
        let found = saying(|it| {
            it.outputs[0].health.up = false;
            it.outputs[0].health.down_seconds = down;
        });
        let text = screen::text(&found, &judge(&found));
        assert_eq!(text.contains("(down)"), is_down, "{text}");
        assert_eq!(text.contains("(never used)"), !is_down, "{text}");
    }
}

#[test]
fn increases_within_the_interval_are_always_compared() {
    // The relay is older, so the totals are not compared.
    let old = "/start_time_seconds 1.7e+09";
    for (sent, arrived, rejected, wanted) in [
        (20_009, 20, 0, Comparison::Missing(19_989)),
        (20_009, 20_009, 0, Comparison::Equal),
        (20_009, 20_409, 0, Comparison::Equal),
        (20_009, 19_700, 0, Comparison::Collected(309, 20_009)),
        (361, 3, 0, Comparison::Collected(358, 361)),
        (400, 0, 0, Comparison::Collected(400, 400)),
        (401, 0, 0, Comparison::Missing(401)),
        (1807, 6027, 0, Comparison::Others(4220)),
        (1807, 12_207, 0, Comparison::Others(10_400)),
        (1807, 12_208, 0, Comparison::Surplus(10_401)),
        (1201, 0, 2, Comparison::Missing(1201)),
        (1200, 0, 2, Comparison::Held(1200)),
    ] {
        let generated = format!("apiserver_audit_event_total {}", 100 + sent);
        let accepted = format!("/accepted_events {}", 100 + arrived);
        let delivered = accepted.replace("/accepted_events", "/outputs/0/delivered_events");
        let rejected = format!("/rejected_requests/queue_full {rejected}");
        let after = [old, &accepted, &delivered, &rejected];
        // Two hosts get POSTs, so the attempts are not known.
        let other = posts("200", "other.example", 1);
        let found = findings(&[&[&other], &[&other, &generated]], &[&[old], &after]);
        assert_eq!(found.increases(), wanted, "{sent} {arrived}");
        assert!(matches!(found.totals(), Comparison::Not(_)));
        let verdict = judge(&found);
        let (kind, said) = match wanted {
            Comparison::Missing(count) => {
                let said = format!("{count} events of the last 30 s unexplained: generated, and");
                (Kind::Unknown, said)
            }
            Comparison::Held(count) => {
                let said = format!("kube-apiserver may hold {count} events whose requests have");
                (Kind::Ok, said)
            }
            Comparison::Collected(count, of) => {
                let may = "kube-apiserver may still be collecting";
                (Kind::Ok, format!("{may} {count} of {of}, which were not compared"))
            }
            Comparison::Others(count) => {
                (Kind::Ok, format!("up to {count} events may be hidden by senders"))
            }
            Comparison::Surplus(count) => {
                (Kind::Unknown, format!("{count} events unexplained: received, and not generated"))
            }
            Comparison::Not(_) | Comparison::Equal | Comparison::More(_) => {
                (Kind::Ok, String::new())
            }
        };
        assert_eq!(verdict.kind, kind, "{sent} {arrived}: {verdict:?}");
        assert!(verdict.sentence.contains(&said), "{sent} {arrived}: {verdict:?}");
        assert_eq!(verdict.sentence.is_empty(), said.is_empty(), "{verdict:?}");
    }
    // After a longer interval, fewer of the events may still be collected.
    let generated = ["apiserver_audit_event_total 461"];
    let arrived = ["/accepted_events 103", old];
    let mut found = findings(&[NONE, &generated], &[&[old], &arrived]);
    for (elapsed, wanted) in
        [(30.0, Comparison::Collected(358, 361)), (60.0, Comparison::Missing(358))]
    {
        found.apiservers[0].elapsed = Some(elapsed);
        assert_eq!(found.increases(), wanted, "{elapsed}");
    }
    // Events that kube-apiserver counts as lost explain the difference.
    let generated = ["apiserver_audit_event_total 1100", &*lost_by("buffered", 1000)];
    assert_eq!(findings(&[NONE, &generated], &[&[old], &[old]]).increases(), Comparison::Equal);
    // Without two samples of each, nothing is said about an interval.
    assert!(matches!(findings(&[NONE], &[NONE, NONE]).increases(), Comparison::Not(_)));
}

/// Makes findings of a single relay that has refused every request for `seconds`. The counter of
/// `reason` has the values `counts` in the two samples. The relay accepted 100 events in the 500 s
/// before.
fn refusing(reason: &str, seconds: f64, counts: [u64; 2]) -> Findings {
    let relay = counts.map(|it| format!("/rejected_requests/{reason} {it}"));
    let mut found = alone(findings(&[NONE], &[&[&relay[0]], &[&relay[1]]]));
    let is_for_good = ["too_large", "unauthorized", "not_found"].contains(&reason);
    let kind = if is_for_good { "permanent" } else { "with_429" };
    let patience = if is_for_good { 80.0 } else { 235.0 };
    let times = json!({ "seconds": seconds, "shut_seconds": seconds,
        "longest_seconds": seconds, "longest_shut_seconds": seconds,
        "long_shut_ended_seconds_ago": (seconds >= patience).then_some(0.0) });
    let refusals: Refusals = serde_json::from_value(json!({ kind: times })).unwrap();
    say(&mut found, |it| {
        it.process.uptime_seconds = Duration::from_secs_f64(seconds).as_secs() + 500;
        it.intake.last_event_seconds_ago = Some(seconds);
        it.intake.refusals = refusals;
    });
    found
}

#[test]
fn refusals_beyond_the_patience_of_kube_apiserver_are_lost_with_an_estimate() {
    for (reason, ago, counts, lost) in [
        ("queue_full", 1320.0, [700, 710], Some(217)),
        ("disk", 240.0, [100, 110], Some(1)),
        ("queue_full", 230.0, [100, 110], None),
        ("too_large", 85.0, [9, 10], None),
        ("too_large", 100.0, [9, 10], Some(2)),
        ("too_large", 1320.0, [400, 404], Some(246)),
    ] {
        let verdict = judge(&refusing(reason, ago, counts));
        let told = format!("{reason} {ago}: {verdict:?}");
        let kind = match lost {
            Some(_) => Kind::Lost,
            // kube-apiserver gives such a batch up, but no counter has its events.
            None if reason == "too_large" => Kind::Unknown,
            None => Kind::Ok,
        };
        assert_eq!((verdict.kind, verdict.lost), (kind, lost.unwrap_or(0)), "{told}");
        let is_estimate = verdict.sentence.starts_with("about ")
            && verdict.sentence.contains("estimated, refused (")
            && verdict.sentence.contains("r reports: ");
        assert_eq!(is_estimate, lost.is_some(), "{told}");
    }
    // Nothing is proven by requests that may have had no batch, by an interval without a refusal,
    // or by fewer requests than kube-apiserver makes attempts.
    for (reason, counts) in [
        ("unauthorized", [700, 710]),
        ("not_found", [700, 710]),
        ("queue_full", [710, 710]),
        ("queue_full", [3, 4]),
    ] {
        let verdict = judge(&refusing(reason, 1320.0, counts));
        assert_eq!(verdict.kind, Kind::Unknown, "{reason}: {verdict:?}");
        assert!(verdict.sentence.contains("r reports: "), "{verdict:?}");
    }
    // If another relay accepts batches, or cannot be read, it is unknown whether any sender was
    // refused for good.
    for fault in [None, Some("other/status: no answer".to_owned().into())] {
        let mut found = refusing("queue_full", 1320.0, [700, 710]);
        found.relays.push(Sampled { fault, ..sampled("other", &[relay(NONE), relay(NONE)]) });
        let verdict = judge(&found);
        assert_eq!(verdict.kind, Kind::Unknown, "{verdict:?}");
        assert!(verdict.sentence.contains("unless another replica accepted them"), "{verdict:?}");
    }
    // Two relays have refused the same events.
    let mut found = refusing("queue_full", 1320.0, [700, 710]);
    found.relays.push(Sampled { source: "other".to_owned(), ..found.relays[0].clone() });
    let verdict = judge(&found);
    let lost = verdict.causes.iter().filter(|it| it.kind == Kind::Lost).count();
    assert_eq!((verdict.kind, lost), (Kind::Lost, 1), "{verdict:?}");
    // A kube-apiserver counts its losses itself, and doctor believes it for a while. An earlier
    // loss does not silence refusals of now.
    let generated = ["apiserver_audit_event_total 3100"];
    for (ago, before, after, kind, sum) in [
        (300.0, None, None, Kind::Unknown, 0),
        (300.0, None, Some(7), Kind::Lost, 7),
        (1320.0, None, None, Kind::Lost, 108_500),
        (1320.0, Some(1), Some(1), Kind::Lost, 108_501),
    ] {
        let mut found = refusing("queue_full", ago, [700, 710]);
        let errors = [before, after].map(|it| it.map(|count| lost_by("webhook", count)));
        let before: Vec<&str> = errors[0].as_deref().into_iter().collect();
        let after: Vec<&str> = generated.into_iter().chain(errors[1].as_deref()).collect();
        found.has_apiserver = true;
        found.apiservers = vec![apiserver("a", &[&before, &after])];
        let verdict = judge(&found);
        assert_eq!((verdict.kind, verdict.lost), (kind, sum), "{ago}: {verdict:?}");
    }
}

#[test]
fn a_queue_in_memory_that_began_after_kube_apiserver_is_unknown() {
    let start = |ago: f64| format!("/start_time_seconds {}", NOW - ago);
    for (kind, ago, is_unknown) in [
        ("memory", 900.0, true),
        ("disk", 900.0, false),
        ("memory", 950.0, false),
        ("memory", 2000.0, false),
    ] {
        let (start, kind) = (start(ago), format!("/queue/kind \"{kind}\""));
        let changes = [start.as_str(), kind.as_str()];
        let verdict = judge(&findings(&[NONE, NONE], &[&changes, &changes]));
        assert_eq!(verdict.kind == Kind::Unknown, is_unknown, "{kind} {ago}: {verdict:?}");
        assert_eq!(verdict.sentence.contains("its queue is in memory"), is_unknown, "{verdict:?}");
    }
}

/// Method: the relay has no complete record of earlier processes. It is asked alone, and together
/// with a kube-apiserver that started before it, with it or after it.
#[test]
fn a_relay_without_a_record_of_earlier_processes_is_ok_so_far_at_best() {
    let unknown = ["/earlier_known false"];
    let said =
        "what processes of relay r before its start at 2027-01-15T07:43:30Z have lost is not";
    let beside = |start: &str| {
        let start = format!("process_start_time_seconds {start}");
        findings(&[&[&start], &[&start]], &[&unknown, &unknown])
    };
    for (found, is_said) in [
        (alone(beside("-")), true),
        (beside("-"), true),
        (beside("1.7e+09"), true),
        // All that this kube-apiserver has sent was sent to this process.
        (beside("1.799999e+09"), false),
        (beside("1.8e+09"), false),
    ] {
        let verdict = judge(&found);
        assert_eq!(verdict.kind, Kind::Ok, "{verdict:?}");
        let text = screen::text(&found, &verdict);
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("VERDICT: OK"), "{text}");
        assert_eq!(last.contains(said), is_said, "{text}");
    }
    // Neither hides a loss of an earlier process, nor is hidden by it.
    let lost = [
        "/earlier_known false",
        "/earlier_lost_events 5",
        "/earlier_last_lost \"2027-01-15T07:00:00Z\"",
    ];
    let verdict = judge(&alone(findings(&[NONE, NONE], &[&lost, &lost])));
    assert_eq!((verdict.kind, verdict.lost), (Kind::Lost, 5), "{verdict:?}");
    assert!(verdict.causes.iter().any(|it| it.what.contains(said)), "{verdict:?}");
    // The relay itself reports a kill, and that it took the queue.
    let killed =
        ["/earlier_known false", "/last_killed \"2027-01-15T07:00:00Z\"", "/queue/kind \"memory\""];
    let verdict = judge(&alone(findings(&[NONE, NONE], &[&killed, &killed])));
    assert!(verdict.sentence.contains("r reports: Accepted events may be lost"), "{verdict:?}");
    assert!(!verdict.sentence.contains(said), "{verdict:?}");
}

#[test]
fn the_remedy_names_the_cause_that_doctor_has_found() {
    let lost = [&*lost_by("webhook", 94)];
    let advice = |change: &dyn Fn(&mut Findings)| {
        let mut found = findings(&[&lost], &[NONE]);
        found.webhook = Some(Address::new("relay.example", true));
        change(&mut found);
        let verdict = judge(&found);
        assert_eq!((verdict.kind, verdict.lost), (Kind::Lost, 94));
        verdict.advice
    };
    // No attempt has failed, so the cause is an event that kube-apiserver can't marshal.
    let said = advice(&|_| {});
    assert!(said.contains("can't marshal") && said.contains("PATCH"), "{said}");
    // Without the address of the webhook, the attempts are those of a guessed host.
    let said = advice(&|found| found.webhook = None);
    assert!(said.contains("gave up after five attempts"), "{said}");
    let failed = posts("503", "relay.example", 5);
    let said = advice(&|found| found.apiservers = vec![apiserver("a", &[&[lost[0], &failed]])]);
    assert!(said.contains("gave up after five attempts"), "{said}");
    let error = "https://relay: TLS: invalid peer certificate: UnknownIssuer";
    let advice_of = remedy::of_webhook(AskFault::Issuer);
    let check = Cause::unknown("the webhook https://relay", error, advice_of).about(Part::Webhook);
    let said = advice(&|found| found.checks = vec![check.clone()]);
    assert!(said.contains("doctor has found a cause: the webhook https://relay"), "{said}");
    assert!(said.contains("put the right CA into that file"), "{said}");
    let said = advice(&|found| {
        let fault = "http://r: cannot connect to 10.0.0.1:9090".to_owned();
        found.relays[0].fault = Some(fault.into());
    });
    assert!(said.contains("cannot reach the relay r either (http://r: cannot connect"), "{said}");
    // The same for events that have not arrived.
    let mut found = findings(&[&["apiserver_audit_event_total 112"]], &[NONE]);
    found.checks = vec![check];
    assert!(judge(&found).advice.contains("the right CA"), "{:?}", judge(&found));
}

/// Method: kube-apiserver has lost 102 events within the interval, or before it. Its POSTs to the
/// webhook, to itself or to an admission webhook have failed, before the interval or within it. The
/// address of the webhook is known, or a guess.
#[test]
fn a_batch_that_kube_apiserver_could_not_encode_is_told_apart_from_one_that_it_could_not_send() {
    let lost = lost_by("webhook", 102);
    let [to_relay, to_itself, to_admission] =
        ["relay.example", "[::1]:6443", "admission.example"].map(|host| posts("503", host, 5));
    // The metrics of requests are missing, as in a selection of a managed service.
    let none =
        ["relay.example", "[::1]:6443"].map(|host| posts("200", host, 0).replace(" 0", " -"));
    let none = none.each_ref().map(String::as_str);
    for (webhook, words) in [
        (
            Some(Address::new("relay.example", true)),
            "doctor has found a cause: none of its attempts",
        ),
        (None, "or, more likely, could not encode a batch"),
    ] {
        let is_named = |before: &[&str], now: &[&str]| {
            let now: Vec<&str> = now.iter().copied().chain([lost.as_str()]).collect();
            let mut found = findings(&[before, &now], &[NONE, NONE]);
            found.webhook = webhook.clone();
            let verdict = judge(&found);
            assert_eq!((verdict.kind, verdict.lost), (Kind::Lost, 102), "{verdict:?}");
            assert!(verdict.advice.contains("can't marshal"), "{verdict:?}");
            verdict.advice.contains(words)
        };
        assert!(is_named(NONE, NONE));
        assert!(!is_named(NONE, &[&to_relay]), "attempts failed with the loss");
        assert!(is_named(&[&to_relay], &[&to_relay]), "they failed before it");
        assert!(!is_named(&[&to_relay, &lost], &[&to_relay]), "they may have caused it");
        assert!(is_named(&[&lost], NONE), "none has ever failed");
        assert!(is_named(NONE, &[&to_itself]));
        // Without the address, this host may be the webhook.
        assert_eq!(is_named(NONE, &[&to_admission]), webhook.is_some());
        assert!(!is_named(&none, &none), "there may have been any number of attempts");
    }
}

#[test]
fn a_loss_does_not_hide_what_is_unknown_beside_it() {
    let lost = ["/outputs/0/lost_events 5", "/outputs/0/delivered_events 95"];
    let sent = ["apiserver_audit_event_total 70254"];
    let found = findings(&[NONE, &sent], &[&lost, &lost]);
    let verdict = judge(&found);
    assert_eq!((verdict.kind, verdict.lost), (Kind::Lost, 5), "{verdict:?}");
    assert!(verdict.sentence.contains("These losses are older than the interval. "), "{verdict:?}");
    assert!(verdict.sentence.contains(". Also: "), "{verdict:?}");
    assert!(verdict.sentence.contains("70154 events of the last 30 s unexplained"), "{verdict:?}");
}

#[test]
fn attempts_that_did_not_fail_excuse_nothing() {
    // The relay has refused strangers, and all POSTs of kube-apiserver were answered with 200.
    let old = "/start_time_seconds 1.7e+09";
    let sent = ["apiserver_audit_event_total 1300"];
    for (reason, posts, wanted) in [
        ("queue_full", "200", Comparison::Missing(1200)),
        ("queue_full", "503", Comparison::Held(1200)),
        ("unauthorized", "200", Comparison::Missing(1200)),
    ] {
        let posts = self::posts(posts, "relay.example", 9);
        let refused = format!("/rejected_requests/{reason} 9");
        let found = findings(&[NONE, &[sent[0], &posts]], &[&[old], &[old, &refused]]);
        assert_eq!(found.increases(), wanted, "{reason} {posts}");
    }
}

#[test]
fn one_kube_apiserver_of_several_is_named_as_such() {
    let mut found = findings(&[&[&*lost_by("webhook", 3)]], &[NONE]);
    found.apiservers.push(apiserver("b", &[NONE]));
    let verdict = judge(&found);
    let start = "3 events lost at kube-apiserver a (plugin webhook, one of 2 instances, since";
    assert!(verdict.sentence.starts_with(start), "{}", verdict.sentence);
}

#[test]
fn without_a_kube_apiserver_the_relays_are_judged_alone() {
    let mut found = findings(&[NONE], &[NONE]);
    found.apiservers.clear();
    found.has_apiserver = false;
    let verdict = judge(&found);
    assert_eq!(verdict.kind, Kind::Ok);
    let text = screen::text(&found, &verdict);
    assert!(text.starts_with("kube-apiserver: unknown"), "{text}");
    let last = "\nVERDICT: OK so far – kube-apiserver was not asked\n";
    assert!(text.ends_with(last), "{text}");
    let json = screen::json(&found, &verdict);
    assert_eq!(
        (&json["apiserver"]["state"], &json["apiserver"]["generated"]),
        (&"unknown".into(), &serde_json::Value::Null)
    );
}

#[test]
fn totals_are_compared_only_if_the_processes_started_together() {
    let apart = || Comparison::Not("the processes started more than 60 s apart".to_owned());
    for (start, wanted) in [
        ("1.79999906e+09", Comparison::Missing(12)),
        ("1.79999894e+09", Comparison::Missing(12)),
        ("1.799999061e+09", apart()),
        ("1.79e+09", apart()),
    ] {
        let start = format!("/start_time_seconds {start}");
        let sent = "apiserver_audit_event_total 112";
        let found = findings(&[&[sent]], &[&[&start]]);
        assert_eq!(found.totals(), wanted, "{start}");
        // Nothing was compared, so nothing is known.
        let verdict = judge(&found);
        assert_eq!(verdict.kind, Kind::Unknown, "{start}");
        let is_told = verdict.sentence.contains("generated and received events were not compared");
        assert_eq!(is_told, matches!(wanted, Comparison::Not(_)), "{verdict:?}");
    }
}

#[test]
fn events_that_are_on_their_way_between_two_samples_are_no_difference() {
    let sent = |count| format!("apiserver_audit_event_total {count}");
    let lost = &*lost_by("webhook", 10);
    let received = |count| format!("/accepted_events {count}");
    for (before, after, early, arrived, wanted) in [
        (100, 130, 100, 100, Comparison::Equal),
        (100, 130, 90, 130, Comparison::Equal),
        (100, 130, 90, 99, Comparison::Missing(1)),
        // The relays are asked last, so they may have more than was generated in the interval.
        (100, 130, 100, 140, Comparison::Equal),
        (100, 130, 101, 130, Comparison::Surplus(1)),
    ] {
        let apiserver = [sent(before), sent(after)];
        let relay = [received(early), received(arrived)];
        let found = findings(&[&[&apiserver[0]], &[&apiserver[1]]], &[&[&relay[0]], &[&relay[1]]]);
        assert_eq!(found.totals(), wanted, "{before} {after} {early} {arrived}");
        if let Comparison::Surplus(_) = wanted {
            let verdict = judge(&found);
            assert_eq!(verdict.kind, Kind::Unknown, "{verdict:?}");
            assert!(verdict.sentence.contains("1 event unexplained: received"), "{verdict:?}");
        }
    }
    // A lost event is not missing a second time.
    let (sent, received) = (sent(110), received(100));
    let found = findings(&[&[&sent, lost]], &[&[&received]]);
    assert_eq!(found.totals(), Comparison::Equal);
}

#[test]
fn a_saved_file_never_makes_a_surplus_and_hides_nothing() {
    let received = |count| format!("/accepted_events {count}");
    for (early, late, verdict) in [
        (100, 100, "VERDICT: OK\n"),
        (90, 100, "VERDICT: OK\n"),
        (
            100,
            130,
            "VERDICT: OK so far – generated and received events were not compared: the relays have \
             received 30 more than the file counts",
        ),
        (5733, 5733, "VERDICT: OK so far – generated and received events were not compared"),
        (90, 99, "VERDICT: UNKNOWN – the path from kube-apiserver to the relays: 1 event unexpl"),
    ] {
        let (before, after) = (received(early), received(late));
        let delivered = after.replace("/accepted_events", "/outputs/0/delivered_events");
        let found = findings(&[NONE], &[&[&before], &[&after, &delivered]]);
        let judged = judge(&found);
        let text = screen::text(&found, &judged);
        assert!(text.contains(verdict), "{early} {late}: {text}");
        // A file has no interval, so the advice names none.
        assert!(!judged.advice.contains("--interval"), "{}", judged.advice);
        assert_eq!(judged.advice.contains("the same file"), judged.kind == Kind::Unknown);
    }
}

#[test]
fn requests_that_are_all_rejected_are_the_cause_that_is_named() {
    let nothing = ["/accepted_events 0", "/outputs/0/delivered_events 0"];
    let rejected = "/rejected_requests/unauthorized";
    let (few, many) = (format!("{rejected} 4"), format!("{rejected} 12"));
    let empty = [&nothing[..], &[&many]].concat();
    // With a kube-apiserver and without one.
    for has_apiserver in [true, false] {
        let mut found = findings(&[NONE], &[&empty]);
        found.has_apiserver = has_apiserver;
        if !has_apiserver {
            found.apiservers.clear();
        }
        let verdict = judge(&found);
        assert_eq!((verdict.kind, verdict.lost), (Kind::Unknown, 0), "{verdict:?}");
        let start = "relay r: every request since the start rejected, by reason: unauthorized: 12";
        assert!(verdict.sentence.starts_with(start), "{}", verdict.sentence);
        assert!(verdict.advice.contains("listener.bearer_token_file"), "{}", verdict.advice);
        assert!(!verdict.sentence.contains("nothing has happened"), "{}", verdict.sentence);
    }
    // Events were accepted before, and are rejected now.
    let more = ["apiserver_audit_event_total 140"];
    let found = findings(&[&more, &more], &[&[&few], &[&many]]);
    let verdict = judge(&found);
    let start = "relay r: requests rejected in the interval, by reason: unauthorized: 8; the path \
        from kube-apiserver to the relays: 40 events unexplained";
    assert!(verdict.sentence.starts_with(start), "{}", verdict.sentence);
    // Rejections alone are no cause as long as everything arrives.
    assert_eq!(judge(&findings(&[NONE, NONE], &[&[&few], &[&many]])).kind, Kind::Ok);
}

#[test]
fn a_minute_without_an_event_while_events_are_generated_is_unexplained() {
    // The relay is older, so the totals are not compared.
    let old = ["/start_time_seconds 1.7e+09"];
    let more = ["apiserver_audit_event_total 150"];
    // Events that kube-apiserver has lost itself do not come any more.
    let lost = [more[0], &*lost_by("webhook", 50)];
    let young = |it: &mut Status, uptime: u64| {
        it.intake.last_event_seconds_ago = None;
        it.process.uptime_seconds = uptime;
    };
    type Change = Box<dyn Fn(&mut Status)>;
    let last =
        |ago: f64| -> Change { Box::new(move |it| it.intake.last_event_seconds_ago = Some(ago)) };
    let none = |uptime| -> Change { Box::new(move |it| young(it, uptime)) };
    for (after, change, is_told) in [
        (&more[..], last(59.0), false),
        (&more, last(60.0), true),
        (NONE, last(60.0), false),
        (&lost, last(60.0), false),
        // A relay that has just started has not been quiet for long.
        (&more, none(10), false),
        (&more, none(100), true),
    ] {
        let mut found = findings(&[NONE, after], &[&old, &old]);
        say(&mut found, change);
        let verdict = judge(&found);
        let said =
            verdict.causes.iter().any(|it| it.what.contains("no relay has accepted one for"));
        assert_eq!(said, is_told, "{verdict:?}");
        if is_told {
            assert_eq!(verdict.kind, Kind::Unknown, "{verdict:?}");
            assert!(verdict.advice.contains("NothingReceived"), "{}", verdict.advice);
        }
    }
}

#[test]
fn the_sum_of_an_output_is_not_judged_while_events_are_in_motion() {
    for (second, kind) in [(98, Kind::Ok), (97, Kind::Unknown)] {
        let found = findings(&[NONE, NONE], &[&[&delivered(97)], &[&delivered(second)]]);
        assert_eq!(judge(&found).kind, kind, "{second}");
    }
}

#[test]
fn a_restart_between_the_samples_is_unknown_and_its_losses_stay_lost() {
    let later = "/start_time_seconds 1.7999999e+09";
    let found = findings(&[NONE, NONE], &[NONE, &[later]]);
    let verdict = judge(&found);
    assert_eq!(verdict.kind, Kind::Unknown, "{verdict:?}");
    assert!(verdict.sentence.contains("restarted"), "{}", verdict.sentence);
    let lost = ["/queue/lost_events 4"];
    let verdict = judge(&findings(&[NONE, NONE], &[&lost, &[later]]));
    assert_eq!((verdict.kind, verdict.lost), (Kind::Lost, 4));
}

/// Method: 30 s have room for 210 batches below the warning. A batch that is sent again is still
/// one batch. In blocking mode, each event has a request of its own.
#[test]
fn a_rate_near_the_throttle_is_a_warning_unless_each_event_is_sent_alone() {
    for (taken, failed, elapsed, in_batch, is_near) in [
        (209, 0, 30.0, 400, false),
        (210, 0, 30.0, 400, true),
        (300, 0, 30.0, 400, true),
        (300, 0, 30.0, 2, true),
        (300, 0, 30.0, 1, false),
        (9000, 3, 30.0, 1, false),
        // The two samples come directly after each other.
        (300, 0, 0.001, 400, false),
        (0, 1000, 30.0, 400, false),
        (0, 1050, 30.0, 400, true),
        (200, 800, 30.0, 400, false),
    ] {
        let posts =
            [posts("200", "relay.example", 7 + taken), posts("503", "relay.example", failed)];
        let batches = std::cmp::max(taken, failed / 5);
        let generated = format!("apiserver_audit_event_total {}", 100 + batches * in_batch);
        let accepted = generated.replace("apiserver_audit_event_total", "/accepted_events");
        let delivered = delivered(100 + batches * in_batch);
        let mut found = findings(
            &[NONE, &[&posts[0], &posts[1], &generated]],
            &[NONE, &[&accepted, &delivered]],
        );
        found.apiservers[0].elapsed = Some(elapsed);
        let verdict = judge(&found);
        let near = verdict.causes.iter().any(|it| it.advice.contains("throttle-qps"));
        assert_eq!((verdict.kind, near), (Kind::Ok, is_near), "{taken} {failed} {elapsed}");
    }
}

#[test]
fn a_batch_whose_requests_fail_is_held_no_longer_than_kube_apiserver_tries() {
    let old = "/start_time_seconds 1.7e+09";
    for (reason, elapsed, wanted) in [
        ("invalid", 120.0, Comparison::Held(3000)),
        ("invalid", 360.0, Comparison::Missing(3000)),
        ("queue_full", 260.0, Comparison::Held(3000)),
        ("queue_full", 600.0, Comparison::Missing(3000)),
    ] {
        let sent = "apiserver_audit_event_total 3100";
        let failed = posts("503", "relay.example", 30);
        let refused = format!("/rejected_requests/{reason} 30");
        let mut found = findings(&[NONE, &[sent, &failed]], &[&[old], &[old, &refused]]);
        found.apiservers[0].elapsed = Some(elapsed);
        assert_eq!(found.increases(), wanted, "{reason} {elapsed}");
    }
}

#[test]
fn a_restart_of_a_kube_apiserver_is_named_instead_of_a_sender_that_was_not_asked() {
    // Within a minute of the relay's start, the totals are compared. A restart is proven if the
    // relays had heard every kube-apiserver before: it began `heard` seconds after the first event.
    let named = "name every kube-apiserver";
    for (age, heard, advice) in [
        (960.0, &[20.0][..], named),
        (590.0, &[20.0], "kube-apiserver a was restarted at "),
        (590.0, &[20.0, 25.0], "kube-apiserver a was restarted at "),
        (590.0, &[], named),
        (590.0, &[-8.0], named),
        (590.0, &[20.0, -8.0], named),
        (590.0, &[2.0], named),
    ] {
        let started = NOW - age;
        let apiserver = format!("process_start_time_seconds {started}");
        let relay = format!("/start_time_seconds {}", started - 30.0);
        let relay = [relay.as_str(), "/accepted_events 150", &delivered(150)];
        let mut found = findings(&[&[&apiserver], &[&apiserver]], &[&relay, &relay]);
        hear(&mut found, heard.iter().map(|before| age + before));
        let verdict = judge(&found);
        assert!(verdict.sentence.contains("50 events unexplained: received, and"), "{verdict:?}");
        let advice_of =
            verdict.causes.iter().find(|it| it.what.contains("50 events")).unwrap().advice.clone();
        assert!(advice_of.contains(advice), "{heard:?}: {advice_of}");
        assert_eq!(advice_of.contains("was restarted"), advice != named, "{advice_of}");
    }
    // A restart between the samples is a cause of its own.
    let mut found = findings(&[NONE], &[NONE, NONE]);
    found.apiservers[0].fault = Some(Change::Restarted.into());
    let verdict = judge(&found);
    let said =
        "kube-apiserver a: unknown, it was restarted between the two samples. Run the command";
    assert!(verdict.sentence.starts_with(said), "{}", verdict.sentence);
}

/// Lets the relay report kube-apiservers that it first heard this many seconds ago.
fn hear(found: &mut Findings, ages: impl Iterator<Item = f64> + Clone) {
    say(found, |status| {
        status.process.time_seconds = NOW;
        let one = |(name, ago): (u32, f64)| telemetry::status::Apiserver {
            name: format!("apiserver-{name}"),
            first_heard_seconds_ago: Some(ago),
            ..Default::default()
        };
        status.apiservers = (0..).zip(ages.clone()).map(one).collect();
    });
}

#[test]
fn what_a_kube_apiserver_has_lost_before_its_restart_is_not_summed_up_as_ok() {
    let hour = 3600.0;
    for (age, heard, kind, words) in [
        // The relay is two days old, and has heard this one for as long.
        (hour, Some(2.0 * 24.0 * hour), Kind::Unknown, "has lost is not compared"),
        (23.0 * hour, Some(2.0 * 24.0 * hour), Kind::Unknown, "a: a was restarted at "),
        // It is forgotten after a day.
        (25.0 * hour, Some(2.0 * 24.0 * hour), Kind::Ok, ""),
        // Perhaps a new one, which was heard only after its start; or the policy omits Leases.
        (hour, Some(hour - 20.0), Kind::Ok, "a may have been restarted at "),
        (hour, None, Kind::Ok, ""),
    ] {
        let apiserver = format!("process_start_time_seconds {}", NOW - age);
        let relay = format!("/start_time_seconds {}", NOW - 2.0 * 24.0 * hour);
        let relay = [relay.as_str(), "/accepted_events 150", &delivered(150)];
        let mut found = findings(&[&[&apiserver], &[&apiserver]], &[&relay, &relay]);
        hear(&mut found, heard.into_iter());
        let verdict = judge(&found);
        assert_eq!(verdict.kind, kind, "{age} {heard:?}: {verdict:?}");
        assert!(verdict.sentence.contains(words), "{age} {heard:?}: {verdict:?}");
        assert_eq!(verdict.sentence.is_empty(), words.is_empty(), "{verdict:?}");
        let is_told = verdict.causes.iter().any(|it| it.what.contains("has lost is not compared"));
        assert_eq!(is_told, age < 24.0 * hour, "{verdict:?}");
    }
    // A common start leaves nothing behind.
    let mut found = findings(&[NONE, NONE], &[NONE, NONE]);
    hear(&mut found, [10.0].into_iter());
    assert!(judge(&found).causes.iter().all(|it| !it.what.contains("earlier process")));
}

#[test]
fn events_that_are_missing_at_those_that_were_read_are_said_beside_one_that_was_not() {
    let old = "/start_time_seconds 1.7e+09";
    let (sent, arrived) = ("apiserver_audit_event_total 1100", "/accepted_events 110");
    let mut found = findings(&[NONE, &[sent]], &[&[old], &[old, arrived, &delivered(110)]]);
    let fault = Some("http://b: no answer".to_owned().into());
    let (source, counts) = ("b".to_owned(), None);
    found.apiservers.push(Sampled { source, before: None, counts, elapsed: None, fault });
    assert_eq!(found.increases(), Comparison::Missing(990));
    let verdict = judge(&found);
    let said = "kube-apiserver b: unknown, http://b: no answer; ";
    assert!(verdict.sentence.starts_with(said), "{}", verdict.sentence);
    assert!(verdict.sentence.contains("990 events of the last 30 s unexplained"), "{verdict:?}");
    // The kube-apiserver that was not read may have sent what arrived, so nothing else is known.
    say(&mut found, |it| it.intake.accepted_events = 1000);
    assert!(matches!(found.increases(), Comparison::Not(_)));
}

#[test]
fn the_host_of_the_webhook_is_known_only_if_there_is_no_other() {
    let post = |host: &str| posts("200", host, 1);
    let no = |host: &str| post(host).replace("} 1", "} -");
    let (relay, own, other) = (no("relay.example"), no("[::1]:6443"), post("admission.example"));
    let put = post("10.0.0.5:443").replace("POST", "PUT");
    for (changes, named, wanted) in [
        (vec![], None, Some("relay.example")),
        (vec![other.clone()], None, None),
        (vec![other.clone()], Some("relay.example"), Some("relay.example")),
        (vec![other.clone()], Some("away.example"), None),
        (
            vec![relay.clone(), post("relay.example:443"), other],
            Some("relay.example"),
            Some("relay.example:443"),
        ),
        (vec![relay.clone()], None, Some("[::1]:6443")),
        (vec![post("[0:0:0:0:0:0:0:1]:6443")], None, Some("relay.example")),
        (vec![post("[fd00:0::1]:443")], Some("[fd00::1]"), Some("[fd00:0::1]:443")),
        // A kube-apiserver that listens only on IPv4 sends its own requests there.
        (vec![own.clone(), post("127.0.0.1:6443")], None, Some("relay.example")),
        (vec![own.clone(), post("10.0.0.5:6443")], None, Some("relay.example")),
        (vec![own.clone(), post("10.0.0.5:443")], None, None),
        (vec![own, post("10.0.0.5:443"), put], None, Some("relay.example")),
        // If kube-apiserver has its own IPv6 address, another one on the same machine is a
        // webhook's.
        (vec![relay.clone(), post("127.0.0.1:2040")], None, Some("127.0.0.1:2040")),
    ] {
        let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
        let counts = counts(&with(APISERVER, &changes));
        let named = named.map(|authority| Address::new(authority, true));
        let host = webhook_posts(&counts, named.as_ref()).map(|(host, _)| host);
        assert_eq!(host.as_deref(), wanted, "{changes:?}");
    }
    // kube-apiserver reads from itself, and from no webhook.
    for method in ["GET", "PATCH"] {
        let reads = post("[::1]:6443").replace("POST", method);
        let found = findings(&[&[&relay, &reads]], &[NONE]);
        let text = screen::text(&found, &judge(&found));
        assert!(text.contains("attempts    unknown: no POST to a webhook counted\n"), "{text}");
        assert!(text.contains("no attempt to reach an audit webhook is seen"), "{text}");
    }
    let mut found = findings(&[NONE], &[NONE]);
    found.webhook = Some(Address::new("away.example", true));
    let text = screen::text(&found, &judge(&found));
    assert!(text.contains("attempts    unknown: no POST to the webhook counted\n"), "{text}");
    // Two forms of one address are added.
    let forms = [relay.as_str(), &post("relay.example"), &post("RELAY.example.")];
    let counts = counts(&with(APISERVER, &forms));
    let webhook = Address::new("relay.example:443", true);
    for address in [Some(&webhook), None] {
        assert_eq!(webhook_posts(&counts, address).map(|(_, posts)| posts["200"]), Some(2));
    }
}

#[test]
fn the_screen_goes_from_kube_apiserver_to_the_consumer_and_ends_with_the_verdict() {
    let found = findings(
        &[NONE, &["apiserver_audit_event_total 130"]],
        &[NONE, &["/evidence {\"size\":7,\"last_checkpoint_seconds_ago\":10}"]],
    );
    let verdict = judge(&found);
    let text = screen::text(&found, &verdict);
    let mut rest = text.as_str();
    for part in [
        "kube-apiserver a (started 2027-01-15T07:43:20Z)",
        "generated   130, 30 in the last 30 s (1.0/s)",
        "lost        0 (buffered: 0, truncate: 0, webhook: 0)",
        "network",
        "attempts    7 to relay.example (200: 7), 0 in the last 30 s (0.0/s)",
        "received    requests by status: 200: 7",
        "totals      everything that was generated has arrived, or is counted",
        "relay r (1.2.3, started",
        "accepted    100, 0 in the last 30 s (0.0/s)",
        "rejected    requests by reason: 0",
        "queued      0 events, 1 % of queue.max_bytes",
        "lost        0 that no output could get",
        "output out of r",
        "delivered   100",
        "waiting     0 events",
        "retried     0 (failed attempts: 0)",
        "lost        0, dead letters 0",
        "consumer: evidence present at r (7 entries, the last checkpoint 10 s ago)",
        "VERDICT: OK so far – kube-apiserver may still be collecting 30 of 30, which were not \
         compared",
    ] {
        let (_, after) = rest.split_once(part).unwrap_or_else(|| panic!("{part}:\n{text}"));
        rest = after;
    }
    assert_eq!(rest, "\n");
    assert!(text.lines().count() <= 24, "{text}");
}

#[test]
fn the_json_has_the_members_of_the_verdict() {
    let found = findings(&[&[&*lost_by("webhook", 3)]], &[NONE]);
    let verdict = judge(&found);
    let json = screen::json(&found, &verdict);
    let members: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
    let mut wanted = ["apiserver", "relay", "outputs", "verdict", "lost", "where", "advice"];
    wanted.sort_unstable();
    assert_eq!(members, wanted);
    assert_eq!((&json["verdict"], &json["lost"]), (&"lost".into(), &3.into()));
    assert_eq!(json["where"], "kube-apiserver a");
    assert_eq!(json["apiserver"]["instances"][0]["lost"]["webhook"], 3);
    assert_eq!(json["apiserver"]["notes"][0]["kind"], "lost");
    assert_eq!(json["relay"]["notes"], serde_json::json!([]));
    assert_eq!(json["outputs"][0]["delivered"], 100);
}

mod model;

#[test]
fn a_kube_apiserver_that_the_relays_have_heard_and_that_was_not_asked_is_unknown_by_name() {
    let heard = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
        saying(move |status| {
            let one = |name| telemetry::status::Apiserver { name, ..Default::default() };
            status.apiservers = names.into_iter().map(one).collect();
        })
    };
    assert_eq!(judge(&heard(&["apiserver-a"])).kind, Kind::Ok, "it is the one that was asked");
    let verdict = judge(&heard(&["apiserver-a", "apiserver-b"]));
    assert_eq!(verdict.kind, Kind::Unknown, "{verdict:?}");
    let words = "have heard 2 in the last hour (apiserver-a, apiserver-b), and 1 could be asked";
    assert!(verdict.sentence.contains(words), "{verdict:?}");
    // Nobody asked for a comparison.
    assert_eq!(judge(&alone(heard(&["apiserver-a", "apiserver-b"]))).kind, Kind::Ok);
}
