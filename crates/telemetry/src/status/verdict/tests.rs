//! Findings of each subject, and the headline.

use serde_json::{Value, json};

use super::outputs::ERROR_MAX;
use super::*;
use crate::status::thresholds::{ALL_DROPPED, PATIENCE_WITH_RETRY_AFTER};

/// Judges a relay that works, with one output of two addresses, after `change` has changed its
/// state.
fn judged(change: impl FnOnce(&mut Value)) -> Verdict {
    let mut status = json!({
        "started": true, "uptime_seconds": 1000, "last_event_seconds_ago": 1.0,
        "time_seconds": 1_000_000.0, "earlier_known": true,
        "queue": { "capacity_bytes": 1000, "bytes": 10, "when_full": "reject",
            "retry_after_seconds": 5.0 },
        "listeners": [{ "listener": "0.0.0.0:3000", "address": "0.0.0.0:3000" }],
        "outputs": [{ "name": "siem", "required": true, "up": true, "keeps_events": true,
            "lag_max_seconds": 30.0,
            "addresses": [{ "address": "10.0.0.1:1", "state": "up" },
                { "address": "10.0.0.2:1", "state": "up" }] }],
    });
    change(&mut status);
    let mut status = serde_json::from_value(status).unwrap();
    judge(&mut status);
    status.verdict.unwrap()
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

/// The verdict says only of the present process that no event is lost. A relay that was killed has
/// a finding about that.
#[test]
fn what_earlier_processes_have_lost_is_not_called_nothing_if_nobody_knows() {
    let texts = |change: fn(&mut Value)| {
        let verdict = judged(|status| {
            status["earlier_known"] = json!(false);
            change(status);
        });
        assert_eq!(verdict.state, State::Good, "{verdict:?}");
        verdict.findings.iter().map(|it| it.text.clone()).collect::<Vec<_>>()
    };
    let [works, unknown] = &texts(|_| {})[..] else { panic!("two findings") };
    assert_eq!(works, "Every output works, and no event accepted since the start is lost.");
    assert!(unknown.starts_with("What earlier processes have lost is not known"), "{unknown}");
    let [works, killed] = &texts(|status| {
        status["last_killed"] = json!("2026-11-26T04:35:04Z");
        status["queue"]["kind"] = json!("disk");
    })[..] else {
        panic!("two findings")
    };
    assert!(works.contains("since the start"), "{works}");
    assert!(killed.starts_with("The last process was killed at"), "{killed}");
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
                let [ended, shut_ended] = [longest, shut].map(|it| (it >= LONG).then_some(ended));
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
        let silences: Vec<_> = verdict.all().filter(|it| it.text.starts_with("No event")).collect();
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
    for (sent, words) in [(79.0, "is late: its"), (81.0, "late, because rate_limit is reached: ")] {
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
        (0, 0, "and why."),
        (120, 0, "The dead letters hold the refused ones: `replay` sends them again."),
        (120, 72, "were deleted for good."),
    ] {
        let verdict = judged(|status| {
            status["lost_events"] = json!(120);
            status["dead_letters_dropped_events"] = json!(dropped);
            status["outputs"][0]["lost_events"] = json!(120);
            status["outputs"][0]["dead_letter_events"] = json!(letters);
        });
        let advice = verdict.findings[0].advice.as_deref().unwrap();
        assert!(advice.ends_with(words), "{advice}");
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

#[test]
fn a_runbook_has_an_address() {
    let verdict = judged(|status| {
        status["outputs"][0]["up"] = json!(false);
        status["outputs"][0]["down_seconds"] = json!(3.0);
    });
    let page = verdict.findings[0].runbook.as_deref().unwrap();
    assert_eq!(page, "/runbooks/KubeAuditForwarderOutputDown");
    let rules = include_str!("../../../../../deploy/monitoring/rules.yaml");
    assert!(rules.contains(&format!("runbook_url: http://127.0.0.1:9090{page}\n")));
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
