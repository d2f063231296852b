use super::super::tests::{check, finds, said};
use super::*;
use crate::oracle::said::Moment;
use crate::oracle::tests::{OK, Small, seconds};
use crate::truth::{Acknowledge, Answer};

#[test]
fn the_status_has_no_less_than_the_metrics_before_it() {
    let says = |metrics: &str| agrees(&said(Moment::Any, metrics));
    assert_eq!(says("event_total 2\n"), None);
    assert_eq!(says("event_total 1\n"), None);
    let fault = says("event_total 3\nerror_total{plugin=\"out\"} 0\n").expect("a fault");
    assert!(fault.text.contains("3 accepted and 0 lost events, and /status has 2 and 0 later"));
    let fault = says("event_total 2\nerror_total{plugin=\"out\"} 1\n").expect("a fault");
    assert!(fault.text.contains("1 lost"));
}

#[test]
fn findings_are_about_outputs_that_there_are() {
    let rule = |about: &'static str| {
        move |world: &World<'_>| {
            let said = finds(said(Moment::Any, ""), about, "It is down.");
            named(world, &said).into_iter().collect::<Vec<_>>()
        }
    };
    let mut small = Small::new();
    small.config(70, |config| config.outputs[0].name = "another".into());
    check(&small, rule("queue"), None);
    check(&small, rule("output another"), None);
    check(&small, rule("output old"), Some("a finding is about old, which is no output"));
    // The output was removed a moment ago.
    let mut small = Small::new();
    small.config(0, |config| config.outputs[0].name = "old".into());
    small.config(90, |config| config.outputs[0].name = "another".into());
    check(&small, rule("output old"), None);
}

#[test]
fn an_output_for_which_an_event_waits_is_late() {
    let silent = |world: &World<'_>| {
        let said = Said { answered: seconds(101), ..said(Moment::Any, "") };
        late(world, &said)
    };
    let says = |about: &'static str| {
        move |world: &World<'_>| late(world, &finds(said(Moment::Any, ""), about, "It is late."))
    };
    let mut small = Small::new();
    let (old, young) = (small.two(50), small.two(70));
    // An event that never arrives may have been given up.
    check(&small, silent, None);
    small.arrive(110, &young);
    check(&small, silent, None);
    small.arrive(110, &old);
    check(&small, silent, Some("event 1/0 waits since 51s, and no finding says so"));
    check(&small, says("queue"), Some("event 1/0 waits"));
    check(&small, says("output out"), None);
    let another_life =
        |world: &World<'_>| late(world, &Said { started: seconds(55), ..said(Moment::Any, "") });
    check(&small, another_life, None);
    // The event arrived before the answer.
    small.arrived.clear();
    small.arrive(99, &old);
    check(&small, silent, None);
    // At that time, the output had another name.
    small.arrived.clear();
    small.arrive(110, &old);
    small.config(60, |config| config.outputs[0].name = "another".into());
    check(&small, silent, None);
}

#[test]
fn what_is_missing_in_the_identity_is_under_way() {
    let rule = |delivered: u64| {
        move |world: &World<'_>| {
            let text = format!(
                "event_total 5\noutput_start_events{{output=\"out\"}} 0\n\
                 output_events_total{{output=\"out\"}} {delivered}\n\
                 output_backlog_events{{output=\"out\"}} 1\n\
                 filtered_events_total{{output=\"out\",action=\"dropped\"}} 1\n"
            );
            in_motion(world, &said(Moment::Any, &text))
        }
    };
    let mut small = Small::new();
    check(&small, rule(3), None);
    check(&small, rule(2), Some("1 events are missing in the identity, and 0 are in bodies"));
    check(&small, rule(4), Some("-1 events are missing"));
    let bodies = small.made(2, "get");
    small.send(&bodies, 99, Some((2, Answer::Status(200))));
    check(&small, rule(2), None);
    check(&small, rule(0), Some("3 events are missing in the identity, and 2 are in bodies"));
    let mut small = Small::new();
    let before = small.made(2, "get");
    small.send(&before, 90, OK);
    check(&small, rule(2), Some("and 0 are in bodies"));
    // The output was removed.
    small.config(95, |config| config.outputs[0].name = "another".into());
    check(&small, rule(2), None);
}

#[test]
fn bodies_that_wait_for_their_answer_are_in_flight() {
    let case = |acknowledge, comes: u64, answered_at: u64| {
        let mut small = Small::new();
        small.config(0, |config| config.acknowledge = acknowledge);
        let serials = small.made(2, "get");
        small.send(&serials, 90, Some((answered_at - 90, Answer::Status(200))));
        small.arrive(comes, &serials[..1]);
        small
    };
    let says = |bytes: usize| {
        let text = format!("in_flight_bytes {bytes}\n");
        move |world: &World<'_>| {
            in_flight(world, &said(Moment::Any, &text)).into_iter().collect::<Vec<_>>()
        }
    };
    let waits = case(Acknowledge::Delivered, 95, 105);
    let events = waits.truth.events.values();
    let bytes: usize = events.map(|known| known.event.bytes.len()).sum();
    check(&waits, says(bytes), None);
    check(&waits, says(bytes - 1), Some("and bodies with"));
    // The batch may have its 200, or may not have reached the relay yet.
    check(&case(Acknowledge::Delivered, 95, 101), says(0), None);
    check(&case(Acknowledge::Delivered, 100, 105), says(0), None);
    check(&case(Acknowledge::Queued, 95, 105), says(0), None);
}
