use super::super::tests::{CALM, OK, Small, seconds};
use super::*;
use crate::oracle::Seen;
use crate::truth::{Filter, Output};

/// Returns the answers at second 100 of a relay that started at second 0.
pub(in crate::oracle) fn said(moment: Moment, metrics: &str) -> Said {
    let verdict = Verdict { state: "good".into(), findings: Vec::new() };
    let queue = ShownQueue { capacity_bytes: 64 << 20, when_full: "reject".into() };
    let status = Status {
        accepted_events: 2,
        lost_events: 0,
        acknowledge: "queued".into(),
        queue,
        verdict,
        outputs: Vec::new(),
    };
    Said {
        started: Duration::ZERO,
        asked: seconds(100),
        answered: seconds(100),
        moment,
        metrics: Metrics::parse(metrics),
        status: Some(status),
    }
}

pub(super) fn finds(mut said: Said, about: &str, text: &str) -> Said {
    let state = "bad".to_owned();
    let verdict = &mut said.status.as_mut().expect("a status").verdict;
    verdict.state.clone_from(&state);
    let consequences = Vec::new();
    verdict.findings =
        vec![Finding { state, about: about.into(), text: text.into(), consequences }];
    said
}

/// Checks that the rule finds exactly one fault with this text, or none.
#[track_caller]
pub(super) fn check(small: &Small, rule: impl Fn(&World<'_>) -> Vec<Fault>, says: Option<&str>) {
    let rule = |world: &World<'_>, _: &Seen<'_>| rule(world);
    match says {
        Some(says) => small.fails(rule, says),
        None => small.passes(rule),
    }
}

#[test]
fn a_counter_falls_only_in_another_life() {
    let said = |started, value| {
        let text = format!("event_total {value}\nqueue_bytes {}\n", 9 - value);
        Said { started: seconds(started), ..said(Moment::Any, &text) }
    };
    assert_eq!(backwards(&[said(0, 2), said(0, 2), said(0, 3)]), Vec::new());
    assert_eq!(backwards(&[said(0, 3), said(50, 0)]), Vec::new());
    let faults = backwards(&[said(0, 3), said(0, 2)]);
    assert!(faults.len() == 1 && faults[0].text.contains("event_total fell from 3 to 2"));
}

#[test]
fn what_a_full_queue_drops_is_lost_somewhere() {
    let says = |text| dropped(&said(Moment::Any, text));
    let text = "queue_dropped_events_total{reason=\"drop_oldest\"} 3\n\
                error_total{plugin=\"a\"} 2\nerror_total{plugin=\"queue\"} 0\n";
    let fault = says(text).expect("a fault");
    assert!(fault.text.ends_with("3 events were dropped by a full queue, and 2 are lost at all"));
    assert_eq!(says(&text.replace("} 0", "} 1")), None);
}

#[test]
fn as_many_events_are_counted_as_were_accepted() {
    let mut small = Small::new();
    small.two(10);
    let unknown = small.made(3, "get");
    small.send(&unknown, 20, Some((1, Answer::Broken)));
    let refused = small.made(1, "get");
    small.send(&refused, 30, Some((1, Answer::Status(429))));
    let rule = |count: u64, started: u64| {
        move |world: &World<'_>| {
            let text = format!("event_total {count}\n");
            let said = Said { started: seconds(started), ..said(Moment::Any, &text) };
            accepted(world, &said).into_iter().collect()
        }
    };
    check(&small, rule(1, 0), Some("event_total is 1, and from 2 to 5 events were accepted"));
    check(&small, rule(2, 0), None);
    check(&small, rule(5, 0), None);
    check(&small, rule(6, 0), Some("event_total is 6"));
    // Another life accepted the first two events.
    check(&small, rule(3, 15), None);
    check(&small, rule(4, 15), Some("from 0 to 3"));
}

#[test]
fn the_verdict_is_not_good_after_a_loss() {
    let mut lossy = said(Moment::Any, "");
    assert_eq!(losses(&lossy), None);
    if let Some(status) = &mut lossy.status {
        status.lost_events = 1;
    }
    assert!(losses(&lossy).is_some_and(|fault| fault.text.contains("good, and 1 events are lost")));
    assert_eq!(losses(&finds(lossy, "relay", "Events were lost")), None);
}

#[test]
fn the_counters_agree_when_nothing_is_in_motion() {
    let text = |delivered: u64| {
        format!("event_total 2\noutput_events_total{{output=\"out\"}} {delivered}\n")
    };
    let rule = |moment: Moment, text: String, accepted_events: u64| {
        move |world: &World<'_>| {
            let mut said = said(moment.clone(), &text);
            said.status.as_mut().expect("a status").accepted_events = accepted_events;
            identity(world, &said).into_iter().collect::<Vec<_>>()
        }
    };
    let small = Small::new();
    check(&small, rule(Moment::Quiet, text(2), 2), None);
    check(&small, rule(Moment::Quiet, text(1), 2), Some("difference 1"));
    check(&small, rule(Moment::Calm, text(1), 2), None);
    check(&small, rule(Moment::Quiet, text(2), 3), Some("and /status has 3 and 0"));
}

#[test]
fn nothing_is_said_to_be_wrong_while_nothing_is_wrong() {
    let rule = |about: &'static str, text: &'static str, moment: Moment| {
        move |world: &World<'_>| at_ease(world, &finds(said(moment.clone(), ""), about, text), CALM)
    };
    let mut small = Small::new();
    let down = rule("output out", "Output out is down.", Moment::Calm);
    check(&small, &down, Some("nothing is wrong since 40s, but: Output out is down."));
    check(&small, rule("queue", "The queue is full.", Moment::Calm), Some("queue is full"));
    check(&small, rule("output out", "Output out is down.", Moment::Any), None);
    let dropped = "The filter of output out has dropped every event for minutes.";
    check(&small, rule("output out", dropped, Moment::Calm), None);
    check(&small, rule("relay", "Requests were rejected", Moment::Calm), None);
    // The consumer refuses an event at this time.
    let serials = small.made(1, "get");
    small.refused.push(small.event(serials[0]).bytes.to_vec());
    small.send(&serials, 70, OK);
    check(&small, &down, Some("Output out is down."));
    small.send(&serials, 90, OK);
    check(&small, &down, None);
}

#[test]
fn an_event_that_is_set_aside_is_said_while_it_is_tried_and_fills_no_queue() {
    let text = "Output out: the consumer returns an error each time for 1 of its events";
    let aside = finds(said(Moment::Calm, ""), "output out", text);
    let asked = aside.asked.as_secs();
    let rule = |world: &World<'_>| at_ease(world, &aside, CALM);
    let mut small = Small::new();
    let serials = small.two(2);
    check(&small, rule, Some(text));
    small.turn_down(asked - 61, &serials[..1], true);
    check(&small, rule, Some(text));
    small.turn_down(asked - 59, &serials[1..], true);
    check(&small, rule, None);
    let full = finds(said(Moment::Calm, ""), "queue", "The queue is nearly full.");
    let of_queue = |world: &World<'_>| at_ease(world, &full, CALM);
    check(&small, of_queue, Some("The queue is nearly full."));
    small.letter_at(asked - 1, serials[1]);
    check(&small, rule, Some(text));
    small.letters.clear();
    small.arrive(asked - 1, &serials);
    check(&small, rule, Some(text));
}

#[test]
fn an_address_that_is_away_is_in_the_findings() {
    let text = "Output out: the address 127.0.0.1:80 is down; its other addresses take the events.";
    let address = "127.0.0.1:80".parse().expect("an address");
    let calm = Calm { away: Some((0, address)), ..CALM };
    let rule = |text: &'static str, calm| {
        move |world: &World<'_>| {
            let said = finds(said(Moment::Calm, ""), "output out", text);
            passes_over(world, &said, calm).into_iter().collect::<Vec<_>>()
        }
    };
    let mut small = Small::new();
    let serials = small.two(70);
    check(&small, rule("", calm), None);
    small.arrive(71, &serials);
    check(&small, rule("", calm), Some("127.0.0.1:80 is away since 40s, and no finding says so"));
    check(&small, rule(text, calm), None);
    check(&small, rule("", CALM), None);
    let at_ease = |text: &'static str| {
        move |world: &World<'_>| {
            at_ease(world, &finds(said(Moment::Calm, ""), "output out", text), CALM)
        }
    };
    check(&small, at_ease(text), Some("its other addresses take the events"));
    small.has_door = true;
    check(&small, at_ease(text), None);
    let all = "Output out: the address 127.0.0.1:80 is down; so are its other addresses.";
    check(&small, at_ease(all), Some("so are its other addresses"));
}

#[test]
fn no_output_is_late_once_everything_has_left() {
    let says = |moment, text| at_rest(&finds(said(moment, ""), "output out", text));
    let growing = "The backlog of output out is growing.";
    let fault = says(Moment::Quiet, growing).expect("a fault");
    assert!(fault.text.ends_with("nothing waits, but: The backlog of output out is growing."));
    assert!(says(Moment::Quiet, "Output out is late: its oldest event has waited.").is_some());
    assert_eq!(says(Moment::Calm, growing), None);
    assert_eq!(says(Moment::Quiet, "Output out is down."), None);
}

#[test]
fn an_output_whose_consumer_is_away_is_in_the_findings() {
    let away = || said(Moment::Away(0, seconds(50)), "");
    let silent = |world: &World<'_>| notices(world, &away()).into_iter().collect::<Vec<_>>();
    let says = |about: &'static str| {
        move |world: &World<'_>| {
            let said = finds(away(), about, "It is down.");
            notices(world, &said).into_iter().collect::<Vec<_>>()
        }
    };
    let mut small = Small::new();
    // Nothing waits, or not long enough.
    check(&small, silent, None);
    small.two(70);
    check(&small, silent, None);
    let serials = small.two(55);
    check(&small, silent, Some("the consumer of out is away since 50s, event 1/2 waits since 56s"));
    check(&small, says("queue"), Some("is away"));
    check(&small, says("output out"), None);
    small.arrive(58, &serials);
    check(&small, silent, None);
    small.arrived.clear();
    small.config(20, |config| {
        config.outputs[0].filter = Filter { verbs: vec!["create"], ..Filter::default() };
    });
    check(&small, silent, None);
}

#[test]
fn the_heap_stays_below_the_sum_of_its_parts() {
    let mut small = Small::new();
    // First one body, then two at the same time.
    let serials = small.made(3, "get");
    let bytes = |serial| small.event(serial).bytes.len();
    let (one, both) = (bytes(serials[0]), bytes(serials[1]) + bytes(serials[2]));
    for (place, second) in [(0, 10), (1, 20), (2, 20)] {
        small.send(&serials[place..=place].into(), second, OK);
    }
    let rule = |spare: usize, bodies: usize| {
        move |world: &World<'_>| {
            let most = PROGRAM + 1000 + spare + 2 * bodies;
            let life = Memory { most, lived: (Duration::ZERO, seconds(100)) };
            memory(world, life, 1000).into_iter().collect::<Vec<_>>()
        }
    };
    let bodies = both.max(one);
    check(&small, rule(0, bodies), None);
    check(&small, rule(1, bodies), Some("bytes on its heap; the bound is"));
    let late = |world: &World<'_>| {
        let life = Memory { most: PROGRAM + 1001, lived: (seconds(50), seconds(100)) };
        memory(world, life, 1000).into_iter().collect::<Vec<_>>()
    };
    check(&small, late, Some("with 0 in bodies under way and 1000 for the queue"));
}

#[test]
fn dead_letters_are_counted_as_they_are_written() {
    let rule = |moment: Moment, count: u64| {
        let text = format!("dead_letter_events_total{{output=\"out\"}} {count}\n");
        let said = Said { started: seconds(20), ..said(moment, &text) };
        move |world: &World<'_>| letters(world, &said)
    };
    let mut small = Small::new();
    let serials = small.made(3, "get");
    small.letter_at(10, serials[0]);
    small.letter_at(30, serials[1]);
    small.letter_at(40, serials[2]);
    check(&small, rule(Moment::Quiet, 2), None);
    check(&small, rule(Moment::Calm, 1), None);
    check(&small, rule(Moment::Quiet, 1), Some("is 1, and there are 2 dead letters of this life"));
    // The sync of the letter at 30 s took longer than the relay waits.
    small.letter_hangs(25, 35);
    check(&small, rule(Moment::Quiet, 1), None);
    check(&small, rule(Moment::Quiet, 2), None);
    check(&small, rule(Moment::Quiet, 0), Some("is 0, and there are 2 dead letters of this life"));
}

#[test]
fn an_address_is_up_only_if_something_has_gone_there() {
    let says = |state: &str, requests| {
        let mut said = said(Moment::Looked, "");
        let address =
            Address { address: "a:1".into(), state: state.into(), requests, sent_bytes: 0 };
        let status = said.status.as_mut().expect("a status");
        status.outputs =
            vec![Shown { name: "out".into(), required: true, addresses: vec![address] }];
        untried(&said)
    };
    assert_eq!(says("unknown", 0), None);
    assert_eq!(says("up", 1), None);
    let fault = says("up", 0).expect("a fault");
    assert!(fault.text.ends_with("output out: a:1 is called up, and nothing has gone there"));
}

#[test]
fn nothing_is_needed_if_nothing_waits_for_a_required_output() {
    let rule = |(backlog, aside): (u64, u64), bytes: u64| {
        let out = format!(
            "output_backlog_events{{output=\"out\"}} {backlog}\n\
             output_aside_events{{output=\"out\"}} {aside}\n"
        );
        let more = ["output_backlog_events", "output_aside_events"];
        let more = more.map(|name| format!("{name}{{output=\"more\"}} 7\n")).concat() + &out;
        let text = format!("{more}queue_needed_bytes {bytes}\n");
        move |world: &World<'_>| -> Vec<_> {
            needed(world, &said(Moment::Any, &text)).into_iter().collect()
        }
    };
    let mut small = Small::new();
    small.config(0, |config| {
        let more = Output { name: "more".into(), required: false, ..config.outputs[0].clone() };
        config.outputs.push(more);
    });
    check(&small, rule((0, 0), 0), None);
    check(&small, rule((1, 0), 900), None);
    check(&small, rule((0, 1), 900), None);
    check(&small, rule((0, 0), 900), Some("queue_needed_bytes is 900"));
    // The output is optional only in the newer config.
    small.config(40, |config| config.outputs[0].required = false);
    check(&small, rule((1, 0), 900), None);
    // A queue on disk keeps whole segments.
    small.config(50, |config| config.on_disk = true);
    check(&small, rule((0, 0), 900), None);
}

#[test]
fn what_was_refused_for_good_is_said_for_five_minutes() {
    let says = "Requests were rejected permanently in the last five minutes (invalid).";
    let rule = |is_said: bool| {
        move |world: &World<'_>| -> Vec<_> {
            let said = said(Moment::Calm, "");
            let said = if is_said { finds(said, "relay", says) } else { said };
            refused_for_good(world, &said).into_iter().collect()
        }
    };
    let mut small = Small::new();
    let events = small.made(1, "get");
    small.request(&events, 10, OK, Must::Take);
    check(&small, rule(false), None);
    small.request(&events, 20, Some((1, Answer::Status(429))), Must::Refuse("PUT", &[405]));
    check(&small, rule(false), None);
    small.request(&events, 30, Some((1, Answer::Status(405))), Must::Refuse("PUT", &[405]));
    check(&small, rule(false), Some("was answered 405 at 31s, and no finding says so"));
    check(&small, rule(true), None);
}

#[test]
fn senders_that_were_shut_out_for_minutes_are_said() {
    let says = "Senders may have dropped events in the last hour, unless another replica";
    let rule = |started: u64, is_said: bool| {
        move |world: &World<'_>| -> Vec<_> {
            let (started, asked) = (seconds(started), seconds(1000));
            let said = Said { started, asked, ..said(Moment::Calm, "") };
            let said = if is_said { finds(said, "senders", says) } else { said };
            shut_out(world, &said).into_iter().collect()
        }
    };
    let mut small = Small::new();
    let events = small.made(1, "get");
    for second in (100..=350).step_by(50) {
        small.send(&events, second, Some((1, Answer::Status(429))));
    }
    check(&small, rule(0, false), Some("429 from 101s to 351s, and no finding says so"));
    check(&small, rule(0, true), None);
    check(&small, rule(120, false), None);
    // A minute without a refusal ends the period.
    let mut small = Small::new();
    let events = small.made(1, "get");
    for second in (100..=400).step_by(60) {
        small.send(&events, second, Some((1, Answer::Status(429))));
    }
    check(&small, rule(0, false), None);
}
