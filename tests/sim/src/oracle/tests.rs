//! Each rule passes a world in which its promise is kept, and finds the one fault in the others.

use std::sync::Arc;

use super::*;
use crate::events::{Event, Maker, Marks};
use crate::truth::{Death, Epoch, Filter, Handshake, Limits, SentBy};

pub(super) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A small world: a book, and the arrivals at the one consumer of the output `out`.
pub(super) struct Small {
    pub(super) truth: Truth,
    maker: Maker,
    pub(super) arrived: Vec<Arrived>,
    pub(super) turned_down: Vec<TurnedDown>,
    pub(super) letters: Vec<Letter>,
    /// `None`: all letters.
    counted_letters: Option<Vec<Letter>>,
    counted: Counted,
    pub(super) refused: Vec<Vec<u8>>,
    pub(super) is_unconfirmed: bool,
    pub(super) is_stream: bool,
    pub(super) promise: Promise,
    consumer_died: Option<Duration>,
    cuts: Vec<Cut>,
    pub(super) longest: Option<Longest>,
    pub(super) has_door: bool,
}

/// Nothing is wrong from second 40 on.
pub(super) const CALM: Calm = Calm {
    healed: Duration::from_secs(40),
    begins: Duration::from_secs(60),
    ends: Duration::from_secs(100),
    away: None,
};

pub(super) const OK: Option<(u64, Answer)> = Some((1, Answer::Status(200)));

impl Small {
    /// Creates a world with a queue in memory and one output.
    pub(super) fn new() -> Self {
        let promise = Promise::PLAIN;
        let mut small = Self {
            truth: Truth::default(),
            maker: Maker::new(1, fastrand::Rng::with_seed(1), Marks::default()),
            arrived: Vec::new(),
            turned_down: Vec::new(),
            letters: Vec::new(),
            counted_letters: None,
            counted: Counted::default(),
            refused: Vec::new(),
            is_unconfirmed: false,
            is_stream: false,
            promise,
            consumer_died: None,
            cuts: Vec::new(),
            longest: None,
            has_door: false,
        };
        small.config(0, |_| {});
        small
    }

    /// Adds a config that is in force from this second on.
    pub(super) fn config(&mut self, second: u64, change: impl FnOnce(&mut Config)) {
        let output = Output {
            name: "out".into(),
            consumer: 0,
            required: true,
            filter: Filter::default(),
            may_lose: None,
            deduplicates: false,
            addresses: vec!["127.0.0.1:1000".parse().expect("an address")],
        };
        let acknowledge = Acknowledge::Queued;
        let limits = Limits::default();
        let outputs = vec![output];
        let mut config = Config {
            on_disk: false,
            when_full: "reject",
            queue_bytes: 64 << 20,
            segment_bytes: 64 << 10,
            acknowledge,
            drain: seconds(20),
            limits,
            keeps: None,
            outputs,
        };
        change(&mut config);
        let (begins, settled) = (seconds(second), Some(seconds(second)));
        self.truth.epochs.push(Epoch { begins, settled, config: Arc::new(config) });
    }

    /// Makes events that all have this verb.
    pub(super) fn made(&mut self, count: usize, verb: &'static str) -> Arc<[Serial]> {
        let mut events = self.maker.events(count);
        events.iter_mut().for_each(|event| event.facts.verb = verb);
        for event in &events {
            let known = Known { event: event.clone(), attempts: Vec::new() };
            self.truth.events.insert(event.serial, known);
        }
        events.iter().map(|event| event.serial).collect()
    }

    /// Sends a body at this second. The answer comes the given number of seconds later.
    pub(super) fn send(
        &mut self,
        serials: &Arc<[Serial]>,
        second: u64,
        answer: Option<(u64, Answer)>,
    ) {
        self.request(serials, second, answer, Must::Take);
    }

    pub(super) fn request(
        &mut self,
        serials: &Arc<[Serial]>,
        second: u64,
        answer: Option<(u64, Answer)>,
        must: Must,
    ) {
        let from = SentBy { sender: 1, connection: 1 };
        let ended = answer.map(|(after, answer)| (seconds(second + after), answer));
        let (serials, begun) = (Arc::clone(serials), seconds(second));
        self.truth.begun(Attempt { from, serials, must, begun, ended });
    }

    /// Sends a body with two events at this second. The 200 comes a second later.
    pub(super) fn two(&mut self, second: u64) -> Arc<[Serial]> {
        let serials = self.made(2, "get");
        self.send(&serials, second, OK);
        serials
    }

    pub(super) fn event(&self, serial: Serial) -> &Event {
        &self.truth.events[&serial].event
    }

    /// Lets the consumer answer a request with these events with a 500 (`is_error`) or a 400.
    pub(super) fn turn_down(&mut self, at: u64, serials: &[Serial], is_error: bool) {
        let events = serials.to_vec();
        let status = if is_error { 500 } else { 400 };
        self.turned_down.push(TurnedDown {
            at: seconds(at),
            until: seconds(at),
            events,
            status,
            is_refusal: !is_error,
            asks: false,
        });
    }

    pub(super) fn arrive(&mut self, second: u64, serials: &[Serial]) {
        self.arrive_on(1, second, serials);
    }

    fn arrive_on(&mut self, connection: usize, second: u64, serials: &[Serial]) {
        for serial in serials {
            let event = events::one_line(&self.event(*serial).bytes);
            self.arrived.push(Arrived { at: seconds(second), connection, event });
        }
    }

    pub(super) fn dies(&mut self, second: u64, kind: Kind) {
        let at = seconds(second);
        self.truth.deaths.push(Death { begun: at, ended: Some(at), kind });
    }

    /// Puts these certificates into the listener's files, each at its second.
    pub(super) fn certificates(&mut self, certificates: &[(u64, Vec<u8>)]) {
        let put = certificates.iter().map(|(second, it)| (seconds(*second), it.clone()));
        self.truth.certificates = put.collect();
    }

    pub(super) fn shakes(&mut self, second: u64, certificate: &[u8]) {
        let (begun, ended) = (seconds(second), seconds(second));
        let certificate = certificate.to_vec();
        self.truth.handshakes.push(Handshake { begun, ended, certificate });
    }

    fn letter(&mut self, serial: Serial) {
        self.letter_at(20, serial);
    }

    pub(super) fn letter_hangs(&mut self, from: u64, to: u64) {
        self.truth.hanging_letters.push((seconds(from), seconds(to)));
    }

    pub(super) fn letter_at(&mut self, second: u64, serial: Serial) {
        let (at, event) = (seconds(second), self.event(serial).bytes.to_vec());
        self.letters.push(Letter { at, output: "out".into(), reason: "400".into(), event });
    }

    /// Runs a rule at second 100, and returns its faults.
    pub(super) fn rule(&self, rule: impl Fn(&World<'_>, &Seen<'_>) -> Vec<Fault>) -> Vec<String> {
        let view = View {
            output: "out",
            consumer: 0,
            promise: self.promise,
            arrived: &self.arrived,
            turned_down: &self.turned_down,
            troubles: &[],
            letters: &self.letters,
            counted_letters: self.counted_letters.as_ref().unwrap_or(&self.letters),
            counted: self.counted,
            is_unconfirmed: self.is_unconfirmed,
            is_stream: self.is_stream || self.is_unconfirmed,
            refuses_requests: true,
            has_door: self.has_door,
            refuses: &|event| self.refused.iter().any(|refused| refused == event),
            consumer_died: self.consumer_died,
            cuts: &self.cuts,
            longest: self.longest,
            late: seconds(40),
        };
        let world = World::new(&self.truth, seconds(100), vec![view]);
        rule(&world, &world.outputs[0]).iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    pub(super) fn passes(&self, rule: impl Fn(&World<'_>, &Seen<'_>) -> Vec<Fault>) {
        assert_eq!(self.rule(rule), Vec::<String>::new());
    }

    /// Checks that the rule finds exactly one fault, and that its text contains `says`.
    #[track_caller]
    pub(super) fn fails(&self, rule: impl Fn(&World<'_>, &Seen<'_>) -> Vec<Fault>, says: &str) {
        let faults = self.rule(rule);
        assert!(faults.len() == 1 && faults[0].contains(says), "{faults:#?}");
    }
}

#[test]
fn what_was_accepted_arrives_or_is_counted() {
    let mut small = Small::new();
    let serials = small.two(10);
    small.fails(conservation, "2 events were accepted and have not arrived, and 0 are counted");
    small.arrive(12, &serials[..1]);
    small.fails(conservation, "1/1 (11s)");
    small.counted.lost = 1;
    small.passes(conservation);
    small.counted = Counted { queue: 1, ..Counted::default() };
    small.passes(conservation);
    small.counted = Counted::default();
    small.arrive(13, &serials[1..]);
    small.passes(conservation);
}

#[test]
fn a_loss_that_is_counted_as_a_letter_is_in_a_file() {
    let mut small = Small::new();
    let serials = small.two(10);
    small.arrive(12, &serials[..1]);
    small.counted = Counted { lost: 1, letters: 1, ..Counted::default() };
    small.fails(conservation, "neither at the consumer nor in the dead letters");
    small.counted.letters_dropped = 1;
    small.passes(conservation);
    small.counted.letters_dropped = 0;
    small.letter(serials[1]);
    small.passes(conservation);
}

#[test]
fn an_event_whose_letter_is_not_counted_comes_again() {
    let mut small = Small::new();
    let serials = small.two(10);
    small.letter(serials[0]);
    // The counted letter belongs to some other event.
    small.counted_letters = Some(Vec::new());
    small.counted = Counted { lost: 2, letters: 1, ..Counted::default() };
    small.fails(conservation, "2 events are neither at the consumer");
    small.arrive(25, &serials[..1]);
    small.passes(conservation);
}

#[test]
fn a_queue_in_memory_dies_with_its_process_and_one_on_disk_does_not() {
    for (kind, on_disk, is_lost) in [
        (Kind::Kill, false, true),
        (Kind::PowerLoss, false, true),
        (Kind::Drain, false, false),
        (Kind::UnseenDrain, false, true),
        (Kind::Kill, true, false),
        (Kind::PowerLoss, true, false),
    ] {
        let mut small = Small::new();
        small.truth.epochs.clear();
        small.config(0, |config| config.on_disk = on_disk);
        small.two(10);
        small.dies(20, kind);
        let faults = small.rule(conservation);
        assert_eq!(faults.is_empty(), is_lost, "{kind:?} {on_disk} {faults:?}");
    }
    // A death before the event was sent is no reason.
    let mut small = Small::new();
    small.dies(5, Kind::Kill);
    small.two(10);
    small.fails(conservation, "2 events were accepted");
    // Neither is the death of a later process.
    small.dies(20, Kind::Drain);
    small.dies(30, Kind::Kill);
    small.fails(conservation, "2 events were accepted");
    // Two processes existed between the request and its answer.
    let mut small = Small::new();
    small.dies(11, Kind::Drain);
    small.dies(12, Kind::Kill);
    let serials = small.made(2, "get");
    small.send(&serials, 10, Some((2, Answer::Status(200))));
    small.passes(conservation);
    // With `delivered`, the death of the process loses nothing.
    let mut small = Small::new();
    small.truth.epochs.clear();
    small.config(0, |config| config.acknowledge = Acknowledge::Delivered);
    small.two(10);
    small.dies(20, Kind::Kill);
    small.fails(conservation, "2 events were accepted");
}

#[test]
fn a_copy_that_is_put_back_loses_what_it_does_not_have_and_nothing_else() {
    for (sent, is_lost) in [(10, false), (25, true), (45, false)] {
        let mut small = Small::new();
        small.truth.set_back.push((seconds(20), seconds(40)));
        small.two(sent);
        assert_eq!(small.rule(conservation).is_empty(), is_lost, "{sent}");
        let is_late = |world: &World<'_>, seen: &Seen<'_>| progress(world, seen, CALM);
        assert_eq!(small.rule(is_late).is_empty(), is_lost, "{sent}");
    }
    // Events from the copy arrive after those that were sent in between, but later events do not.
    for (copied, restored, is_right) in [(20, 40, true), (20, 50, false), (8, 40, false)] {
        let mut small = Small::new();
        let (old, new) = (small.two(10), small.two(25));
        small.arrive(30, &new);
        small.arrive(45, &old);
        small.truth.set_back.push((seconds(copied), seconds(restored)));
        assert_eq!(small.rule(order).is_empty(), is_right, "{copied} {restored}");
    }
}

#[test]
fn what_a_full_queue_has_dropped_comes_late_only_after_a_kill_at_once() {
    for (death, kind, is_right) in
        [(31, Kind::Kill, true), (33, Kind::Kill, false), (31, Kind::Drain, false)]
    {
        let mut small = Small::new();
        small.truth.epochs.clear();
        small.config(0, |config| config.outputs[0].may_lose = Some(FULL));
        small.counted.lost = 2;
        let (old, new) = (small.two(10), small.two(25));
        small.arrive(30, &new);
        small.dies(death, kind);
        small.arrive(45, &old);
        small.arrive(46, &new);
        assert_eq!(small.rule(order).is_empty(), is_right, "{death} {kind:?}");
    }
}

#[test]
fn a_body_without_an_answer_is_stored_whole_or_not_at_all() {
    for answer in [None, Some((30, Answer::TimedOut)), Some((1, Answer::Status(503)))] {
        let mut small = Small::new();
        let serials = small.made(3, "get");
        small.send(&serials, 10, answer);
        small.passes(conservation);
        small.arrive(12, &serials[..1]);
        small.fails(conservation, "2 of them are of bodies without a 200");
        small.arrive(13, &serials[1..]);
        small.passes(conservation);
        small.passes(invented);
    }
}

#[test]
fn an_output_is_owed_what_its_filter_keeps_while_it_is_there() {
    let drops_gets = |config: &mut Config| {
        config.outputs[0].filter.verbs = vec!["create"];
    };
    // The filter drops the event, from the start or later.
    let mut small = Small::new();
    small.config(5, drops_gets);
    let serials = small.two(10);
    small.passes(conservation);
    small.arrive(12, &serials[..1]);
    small.fails(invented, "that each filter drops (1/0");
    let mut small = Small::new();
    let serials = small.two(10);
    small.config(20, drops_gets);
    small.passes(conservation);
    small.arrive(12, &serials[..1]);
    small.passes(invented);
    // If the output is added later, its consumer gets no earlier events.
    let mut small = Small::new();
    small.truth.epochs.clear();
    small.config(0, |config| config.outputs.clear());
    small.config(20, |_| {});
    let before = small.two(10);
    let after = small.two(30);
    small.fails(conservation, "2 events were accepted");
    small.arrive(31, &after);
    small.passes(conservation);
    small.arrive(32, &before[..1]);
    small.fails(invented, "before the output was there");
    // The output is removed, and its backlog is counted.
    let mut small = Small::new();
    small.two(10);
    small.config(20, |config| config.outputs.clear());
    small.fails(conservation, "2 events were accepted");
    small.counted.lost = 2;
    small.passes(conservation);
}

#[test]
fn a_stream_without_acknowledgements_may_lose_what_a_dead_consumer_read() {
    let mut small = Small::new();
    small.two(10);
    small.consumer_died = Some(seconds(20));
    small.fails(conservation, "2 events were accepted");
    small.is_unconfirmed = true;
    small.passes(conservation);
    small.consumer_died = None;
    small.fails(conservation, "2 events were accepted");
}

#[test]
fn what_a_dead_consumer_without_acknowledgements_had_is_not_late() {
    let rule = |world: &World<'_>, seen: &Seen<'_>| progress(world, seen, CALM);
    let mut small = Small::new();
    let serials = small.two(10);
    small.consumer_died = Some(seconds(20));
    small.fails(rule, "2 events have not come");
    small.is_unconfirmed = true;
    small.passes(rule);
    // It died before the events were sent.
    small.consumer_died = Some(seconds(9));
    small.fails(rule, "2 events have not come");
    // What arrives too late was not lost.
    small.consumer_died = Some(seconds(20));
    small.arrive(99, &serials);
    small.fails(rule, "2 events have not come");
}

#[test]
fn a_consumer_that_cuts_its_connections_turns_down_longer_events() {
    let case = |begun: u64, ended: u64, more: i64, other: u64| {
        let mut small = Small::new();
        let serials = small.made(1, "get");
        small.send(&serials, 10, OK);
        let (later, another) = (small.made(1, "get"), small.made(1, "get"));
        small.send(&later, 30, OK);
        small.send(&another, 5, OK);
        small.arrive(other, &another);
        small.arrive(32, &later);
        small.arrive(50, &serials);
        let bytes = small.event(serials[0]).bytes.len() as u64;
        let bytes = bytes.saturating_add_signed(more);
        small.cuts = vec![Cut { bytes, begun: seconds(begun), ended: Some(seconds(ended)) }];
        small.rule(order)
    };
    assert_eq!(case(15, 40, -1, 20), Vec::<String>::new());
    // The event is not longer, the consumer cut at another time, or nothing came in between.
    assert_eq!(case(15, 40, 0, 20).len(), 1);
    assert_eq!(case(6, 9, -1, 7).len(), 1);
    assert_eq!(case(51, 60, -1, 20).len(), 1);
    assert_eq!(case(15, 25, -1, 7).len(), 1);
}

#[test]
fn a_loss_has_a_reason() {
    let mut small = Small::new();
    small.passes(reasons);
    small.counted.lost = 1;
    small
        .fails(reasons, "1 events are counted as lost, and 0 by the queue; the consumer refuses 0");
    small.counted = Counted { queue: 1, ..Counted::default() };
    small.fails(reasons, "1 by the queue");
    let serials = small.two(10);
    small.refused.push(small.event(serials[0]).bytes.to_vec());
    small.letter(serials[0]);
    small.passes(reasons);
    small.letter(serials[1]);
    small.fails(reasons, "event 1/1 is in a dead letter, and the consumer takes such events");
    small.config(20, |config| config.outputs[0].may_lose = Some("the queue drops"));
    small.passes(reasons);
}

#[test]
fn a_letter_may_be_there_again_after_a_start() {
    let case = |kind: Option<Kind>, crash| {
        let mut small = Small::new();
        let serials = small.two(10);
        small.refused.push(small.event(serials[0]).bytes.to_vec());
        small.counted.lost = 2;
        small.letter_at(20, serials[0]);
        small.letter_at(30, serials[0]);
        if let Some(kind) = kind {
            small.dies(crash, kind);
        }
        small
    };
    let twice = "2 events are counted as lost, and 0 by the queue; the consumer refuses 1";
    case(Some(Kind::Kill), 25).passes(reasons);
    case(Some(Kind::PowerLoss), 25).passes(reasons);
    case(Some(Kind::Kill), 31).fails(reasons, twice);
    case(Some(Kind::Drain), 25).passes(reasons);
    case(None, 0).fails(reasons, twice);
}

#[test]
fn what_the_disk_never_took_counts_as_missing_after_a_power_loss() {
    let case = |answer, refuses, kind| {
        let mut small = Small::new();
        let serials = small.made(1, "get");
        small.send(&serials, 10, Some((1, Answer::Status(answer))));
        small.truth.refusing.push((seconds(refuses), seconds(refuses + 2)));
        small.dies(20, kind);
        small.counted.lost = 1;
        small
    };
    case(503, 9, Kind::PowerLoss).passes(reasons);
    case(503, 9, Kind::Kill).fails(reasons, "1 events are counted as lost");
    case(503, 11, Kind::PowerLoss).fails(reasons, "1 events are counted as lost");
    case(200, 9, Kind::PowerLoss).fails(reasons, "1 events are counted as lost");
    let mut small = case(503, 9, Kind::PowerLoss);
    small.counted.lost = 2;
    small.fails(reasons, "2 events are counted as lost");
}

#[test]
fn a_200_for_delivered_comes_after_the_consumer_has_it() {
    let case = |second, change: fn(&mut Config)| {
        let mut small = Small::new();
        small.truth.epochs.clear();
        small.config(0, |config| {
            config.acknowledge = Acknowledge::Delivered;
            change(config);
        });
        let serials = small.two(10);
        small.arrive(10, &serials[..1]);
        small.arrive(second, &serials[1..]);
        small
    };
    case(11, |_| {}).passes(delivered);
    let mut early = case(12, |_| {});
    early.fails(delivered, "1 events were answered 200 before the consumer had them");
    case(12, |config| config.acknowledge = Acknowledge::Queued).passes(delivered);
    case(12, |config| config.outputs[0].required = false).passes(delivered);
    early.counted.lost = 1;
    early.passes(delivered);
    early.counted.letters = 1;
    early.fails(delivered, "1 events were answered 200");
    early.letter(Serial { sender: 1, number: 1 });
    early.passes(delivered);
}

#[test]
fn a_200_for_delivered_needs_a_consumer_whatever_a_reload_removes() {
    let case = |acknowledge, arrival: Option<u64>| {
        let mut small = Small::new();
        small.truth.epochs.clear();
        small.config(0, |config| config.acknowledge = acknowledge);
        small.config(11, |config| {
            config.acknowledge = acknowledge;
            config.outputs.clear();
        });
        let serials = small.made(2, "get");
        small.send(&serials, 10, Some((2, Answer::Status(200))));
        if let Some(second) = arrival {
            small.arrive(second, &serials);
        }
        small
    };
    let nowhere = |world: &World<'_>, _: &Seen<'_>| acknowledged::nowhere(world);
    case(Acknowledge::Delivered, None).fails(nowhere, "2 events were answered 200 with delivered");
    case(Acknowledge::Delivered, Some(12)).passes(nowhere);
    case(Acknowledge::Delivered, Some(13)).fails(nowhere, "no consumer had them");
    case(Acknowledge::Queued, None).passes(nowhere);
    let mut aside = case(Acknowledge::Delivered, None);
    aside.promise.aside = true;
    aside.passes(nowhere);
}

#[test]
fn nothing_arrives_that_was_not_sent_or_was_refused() {
    let mut small = Small::new();
    let serials = small.two(10);
    small.arrive(12, &serials);
    small.passes(invented);
    let event = b"{}".to_vec();
    small.arrived.push(Arrived { at: seconds(13), connection: 1, event });
    small.fails(invented, "that has no serial: {}");
    // Somebody else's event, an event that was never sent, and one that arrives before it is sent.
    let mut small = Small::new();
    let never = small.made(1, "get");
    small.arrive(12, &never);
    small.fails(invented, "that was not sent, or refused (1/0): never in a body");
    small.send(&never, 13, OK);
    small.fails(invented, "13s  200");
    small.truth.events.clear();
    small.fails(invented, "that nobody has made (1/0)");
    for (answer, must) in [
        (Answer::Status(429), Must::Take),
        (Answer::NoConnection, Must::Take),
        (Answer::Status(400), Must::Refuse("another kind", &[400])),
        (Answer::Unread, Must::Never),
    ] {
        let mut small = Small::new();
        let serials = small.made(1, "get");
        small.request(&serials, 10, Some((1, answer)), must);
        small.arrive(12, &serials);
        small.fails(invented, "that was not sent, or refused");
        small.send(&serials, 11, OK);
        small.passes(invented);
    }
}

#[test]
fn a_dead_letter_is_judged_as_what_arrives() {
    let mut small = Small::new();
    let serials = small.made(1, "get");
    small.letter(serials[0]);
    small.fails(invented, "in a dead letter (400) that was not sent");
    small.send(&serials, 10, OK);
    small.passes(invented);
    small.passes(bytes);
    small.letters[0].event = [&small.letters[0].event[..], b" "].concat();
    small.fails(bytes, "event 1/0 arrived changed");
}

#[test]
fn every_byte_arrives() {
    let mut small = Small::new();
    let serials = small.two(10);
    small.arrive(12, &serials);
    small.passes(bytes);
    small.arrived[1].event[20] ^= 1;
    small.fails(bytes, "event 1/1 arrived changed from byte 20 on");
    small.promise.bytes = false;
    small.passes(bytes);
    small.promise.bytes = true;
    small.config(20, |config| config.outputs[0].filter.changes = true);
    small.passes(bytes);
    // Raw line breaks become spaces.
    let mut small = Small::new();
    let serials = small.two(10);
    let known = small.truth.events.get_mut(&serials[0]).unwrap();
    known.event.bytes = [&known.event.bytes[..], b"\r\n"].concat().into();
    small.arrive(12, &serials);
    small.passes(bytes);
}

#[test]
fn events_leave_in_the_order_of_their_acceptance() {
    let case = |is_unconfirmed| {
        let mut small = Small::new();
        small.is_unconfirmed = is_unconfirmed;
        let (first, second) = (small.two(10), small.two(20));
        (small, first, second)
    };
    for is_unconfirmed in [false, true] {
        let (mut small, first, second) = case(is_unconfirmed);
        small.arrive(21, &first);
        small.arrive(22, &second);
        small.passes(order);
        // The events are repeated on another connection.
        small.arrive_on(2, 23, &first);
        small.arrive_on(2, 23, &second);
        small.passes(order);
        let (mut small, first, second) = case(is_unconfirmed);
        small.arrive(22, &second);
        small.arrive(23, &first[..1]);
        small.fails(order, "event 1/0 came at 23s after 1/3, but was accepted by 11s");
        small.refused.push(small.event(first[0]).bytes.to_vec());
        small.passes(order);
        small.refused.clear();
        small.promise.ordered = false;
        small.passes(order);
    }
    // A consumer may read connections in any order, although they were opened one by one.
    for is_unconfirmed in [false, true] {
        let (mut small, first, second) = case(is_unconfirmed);
        small.is_stream = true;
        small.arrive_on(2, 22, &second);
        small.arrive_on(1, 23, &first);
        small.passes(order);
        small.arrived.clear();
        small.arrive_on(1, 22, &second);
        small.arrive_on(2, 23, &first[..1]);
        small.fails(order, "event 1/0 came at 23s after 1/3, but was accepted by 11s");
        small.arrived.clear();
        small.arrive_on(2, 22, &second);
        small.arrive_on(1, 23, &first);
        (small.is_stream, small.is_unconfirmed) = (false, false);
        assert_eq!(small.rule(order).len(), 2);
    }
    // On one connection of such a stream, no event arrives twice.
    let (mut small, first, _) = case(true);
    small.arrive(22, &first);
    small.arrive(23, &first[..1]);
    small.fails(order, "event 1/0 came at 23s after 1/1, but stands before it in their body");
    small.is_unconfirmed = false;
    small.passes(order);
}

#[test]
fn an_event_that_a_filter_kept_back_comes_late_if_later_ones_come_again() {
    let case = |filters: bool| {
        let mut small = Small::new();
        small.is_stream = true;
        if filters {
            small.config(20, |config| config.outputs[0].filter.verbs = vec!["create"]);
            small.config(30, |_| {});
        }
        let events = [small.made(1, "get"), small.made(1, "create")].concat();
        let events: Arc<[Serial]> = events.into();
        small.send(&events, 22, OK);
        small.arrive(24, &events[1..]);
        small.arrive_on(2, 32, &events);
        (small, events)
    };
    let (mut small, events) = case(true);
    small.passes(order);
    small.arrived.pop();
    small.fails(order, "came at 32s after 1/");
    // Events that its output lost when it was removed cannot arrive again.
    small.config(33, |config| config.outputs[0].name = "another".into());
    small.fails(order, "came at 32s after 1/");
    small.counted.lost = 1;
    small.passes(order);
    assert_eq!(events.len(), 2);
    let (small, _) = case(false);
    small.fails(order, "came at 32s after 1/");
}

#[test]
fn a_later_event_may_come_early_and_again_while_an_earlier_one_is_in_doubt() {
    let case = |downs: &[(u64, bool)]| {
        let mut small = Small::new();
        let (first, second) = (small.two(10), small.two(20));
        for &(second, is_error) in downs {
            let (at, events) = (seconds(second), first.to_vec());
            small.turned_down.push(TurnedDown {
                at,
                until: at,
                events,
                status: 400,
                is_refusal: !is_error,
                asks: false,
            });
        }
        small.arrive(24, &second[..1]);
        small.arrive(25, &first[..1]);
        small.arrive(26, &second);
        small
    };
    let late = "event 1/0 came at 25s after 1/2, but was accepted by 11s";
    case(&[(22, true), (23, true)]).passes(order);
    case(&[(22, false), (23, true)]).passes(order);
    case(&[(22, false)]).passes(order);
    case(&[(22, true)]).passes(order);
    case(&[]).fails(order, late);
    case(&[(25, true)]).fails(order, late);
    // One of the earlier events alone gets a pause, while another one is accepted.
    let mut small = case(&[(22, true)]);
    small.arrived.truncate(2);
    small.turned_down[0].events.truncate(1);
    small.fails(order, late);
    small.turned_down[0].asks = true;
    small.passes(order);
    // They are in an object that fails four times.
    for (failures, is_late) in [(3, true), (4, false)] {
        let mut small = case(&vec![(22, true); failures]);
        small.arrived.truncate(2);
        small.fails(order, late);
        small.promise.copies = Copies::OnceByRange;
        assert_eq!(small.rule(order).is_empty(), !is_late, "{failures}");
    }
    // The later event does not arrive again.
    let mut small = case(&[(22, true), (23, true)]);
    small.arrived.truncate(2);
    small.fails(order, late);
    // The queue may drop it, but only if the output is optional and the loss has no letter.
    small.counted.lost = 1;
    small.fails(order, late);
    small.config(27, |config| config.outputs[0].required = false);
    small.passes(order);
    small.counted.letters = 1;
    small.fails(order, late);
    // A kill takes the later event with the queue in memory, but not with one on disk.
    small.dies(27, Kind::Kill);
    small.passes(order);
    small.truth.epochs.clear();
    small.config(0, |config| config.on_disk = true);
    small.fails(order, late);
    // The consumer has accepted the earlier event in the meantime, in its second request.
    let mut small = case(&[(21, true), (22, true)]);
    let first = small.turned_down[0].events.clone();
    small.turned_down.iter_mut().for_each(|down| down.events.truncate(1));
    small.arrived.clear();
    small.arrive(23, &first[..1]);
    small.arrive(24, &[Serial { number: 2, ..first[0] }]);
    small.arrive(25, &first[1..]);
    small.arrive(26, &[Serial { number: 2, ..first[0] }]);
    small.fails(order, "event 1/1 came at 25s after 1/2");
    // The later event has come before, on a connection of a stream that then broke.
    let mut small = case(&[(22, true), (23, true)]);
    (small.is_stream, small.is_unconfirmed) = (true, true);
    small.arrived.clear();
    let again = [Serial { number: 2, ..first[0] }];
    small.arrive_on(1, 21, &first);
    small.arrive_on(1, 21, &again);
    small.arrive_on(2, 24, &again);
    small.arrive_on(2, 25, &first);
    small.arrive_on(2, 26, &again);
    small.passes(order);
    small.turned_down.clear();
    let order_of_one = |world: &World<'_>, seen: &Seen<'_>| {
        order(world, seen).into_iter().take(1).collect::<Vec<_>>()
    };
    small.fails(order_of_one, "event 1/0 came at 25s after 1/2");
}

#[test]
fn what_left_in_an_earlier_life_may_be_read_after_what_left_in_the_next() {
    let case = |death: Option<u64>, connections: (usize, usize)| {
        let mut small = Small::new();
        let (first, second) = (small.two(10), small.two(20));
        if let Some(second) = death {
            small.dies(second, Kind::Kill);
        }
        small.arrive_on(connections.0, 30, &second);
        small.arrive_on(connections.1, 30, &first[..1]);
        small
    };
    let late = "event 1/0 came at 30s after 1/3";
    case(Some(15), (2, 1)).passes(order);
    case(Some(15), (1, 1)).fails(order, late);
    case(Some(15), (1, 2)).fails(order, late);
    case(Some(9), (2, 1)).fails(order, late);
    case(Some(22), (2, 1)).fails(order, late);
    case(None, (2, 1)).fails(order, late);
    // In the meantime, the queue has dropped the event.
    let mut small = case(None, (2, 1));
    small.config(25, |config| config.outputs[0].required = false);
    small.fails(order, late);
    small.counted.lost = 1;
    small.passes(order);
}

#[test]
fn an_output_that_is_leaving_at_the_end_of_a_life_may_come_back_with_its_place() {
    let case = |on_disk, leaves, dies, is_back: bool| {
        let mut small = Small::new();
        small.truth.epochs.clear();
        small.config(0, |config| config.on_disk = on_disk);
        small.config(leaves, |config| config.outputs.clear());
        let serials = small.two(20);
        small.dies(dies, Kind::Drain);
        small.config(dies, |config| {
            if !is_back {
                config.outputs.clear();
            }
        });
        small.config(dies + 1, |_| {});
        small.arrive(dies + 2, &serials[..1]);
        small
    };
    let early = "before the output was there";
    case(true, 15, 25, true).passes(invented);
    case(false, 15, 25, true).fails(invented, early);
    case(true, 5, 25, true).fails(invented, early);
    case(true, 15, 25, false).fails(invented, early);
}

#[test]
fn an_event_leaves_the_order_after_three_failures_alone_between_which_others_are_taken() {
    let case = |is_error: bool, events: usize, count: u64| {
        let mut small = Small::new();
        let (first, second) = (small.two(10), small.two(20));
        small.turn_down(21, &first, is_error);
        for number in 0..count {
            let at = 23 + 2 * number;
            small.arrive(at - 1, &second);
            small.turn_down(at, &first[..events], is_error);
        }
        small.arrive(40, &first[..1]);
        small
    };
    let late = "event 1/0 came at 40s after 1/3";
    for is_error in [true, false] {
        case(is_error, 1, 3).passes(order);
        case(is_error, 1, 2).fails(order, late);
        case(is_error, 2, 3).fails(order, late);
        // The consumer accepted something else only before the last failures: refusals need no
        // more.
        let mut small = case(is_error, 1, 3);
        small.arrived.retain(|arrived| arrived.at != seconds(24) && arrived.at != seconds(26));
        assert_eq!(small.rule(order).is_empty(), !is_error);
    }
}

#[test]
fn letters_of_requests_of_which_a_number_was_rejected_stand_for_this_number() {
    let letter = |reason: &str, number: u8| Letter {
        at: seconds(20),
        output: "out".into(),
        reason: reason.into(),
        event: vec![number],
    };
    let of = |reason: &str, count| (0..count).map(|it| letter(reason, it)).collect::<Vec<_>>();
    let partly = of("http://a: answered 200 OK: 2 of 15 rejected", 30);
    let all = [partly, of("answered 400", 3), of("one of x rejected", 1)].concat();
    assert_eq!(losses_in(&all), 4 + 3 + 1);
    // A copy of a letter in the next file counts once, a second letter for the same event does not.
    let [mut one, other] = [letter("answered 400", 1), letter("answered 400", 1)];
    assert_eq!(losses_in(&[one.clone(), other.clone()]), 1);
    one.at = seconds(21);
    assert_eq!(losses_in(&[one, other]), 2);
}

#[test]
fn requests_that_overlap_have_no_order_but_their_bodies_have() {
    let mut small = Small::new();
    let (first, second) = (small.made(2, "get"), small.made(2, "get"));
    small.send(&first, 10, Some((10, Answer::Status(200))));
    small.send(&second, 15, OK);
    small.arrive(21, &[second[0], first[0], first[1], second[1]]);
    small.passes(order);
    let mut small = Small::new();
    let serials = small.two(10);
    small.arrive(12, &[serials[1], serials[0]]);
    small.fails(order, "stands before it in their body");
    // A copy that was accepted again has its own place in the order.
    let mut small = Small::new();
    let first = small.two(10);
    let second = small.two(20);
    small.arrive(22, &second);
    small.arrive(32, &first[..1]);
    small.fails(order, "event 1/0 came at 32s after 1/3");
    small.send(&first, 30, OK);
    small.passes(order);
    // A copy that nobody knows about may arrive after later events.
    let mut small = Small::new();
    let (first, second) = (small.made(1, "get"), small.made(1, "get"));
    small.send(&first, 10, Some((1, Answer::Broken)));
    small.send(&second, 20, OK);
    small.send(&first, 30, Some((1, Answer::Broken)));
    small.arrive(22, &second);
    small.arrive(32, &first);
    small.passes(order);
}

#[test]
fn a_store_with_names_has_each_event_once() {
    let mut small = Small::new();
    small.promise.copies = Copies::Once;
    let serials = small.made(1, "get");
    small.send(&serials, 10, Some((1, Answer::Broken)));
    small.arrive(11, &serials);
    small.passes(once);
    small.arrive(12, &serials);
    small.fails(once, "event 1/0 is there 2 times instead of 1 at most");
    small.send(&serials, 12, Some((1, Answer::Status(429))));
    small.fails(once, "instead of 1 at most");
    small.send(&serials, 14, OK);
    small.passes(once);
    small.promise.copies = Copies::OnceMerged;
    small.fails(once, "instead of 1 at most");
    small.promise.copies = Copies::AtLeastOnce;
    small.passes(once);
}

#[test]
fn an_object_may_be_another_one_after_a_change_of_its_filter_or_an_unsaved_range() {
    let drops_gets = |config: &mut Config| config.outputs[0].filter.verbs = vec!["create"];
    let case = |refuses: Option<u64>| {
        let mut small = Small::new();
        small.promise.copies = Copies::OnceByRange;
        let serials = small.made(1, "create");
        small.send(&serials, 10, OK);
        small.arrive(15, &serials);
        small.arrive(25, &serials);
        let at = |second| (seconds(second), seconds(second + 1));
        small.truth.refusing.extend(refuses.map(at));
        small
    };
    let mut small = case(None);
    small.fails(once, "event 1/0 is there 2 times instead of 1 at most");
    // A reload that changes nothing, and a change of the filter after the arrivals.
    small.config(20, |_| {});
    small.config(26, drops_gets);
    small.fails(once, "2 times instead of 1 at most");
    let mut small = case(None);
    small.config(20, drops_gets);
    small.passes(once);
    small.promise.copies = Copies::Once;
    small.fails(once, "2 times instead of 1 at most");
    // A sender sent the event twice, and both copies become part of another object.
    let mut small = case(None);
    let serials: Arc<[_]> = small.truth.events.keys().copied().collect();
    small.send(&serials, 11, OK);
    small.config(20, drops_gets);
    for _ in 0..2 {
        small.arrive(27, &serials);
    }
    small.passes(once);
    small.arrive(28, &serials);
    small.fails(once, "event 1/0 is there 5 times instead of 4 at most");
    // The queue drops events of the object.
    let mut small = case(None);
    small.counted.lost = 1;
    small.fails(once, "2 times instead of 1 at most");
    small.config(20, |config| config.outputs[0].required = false);
    small.passes(once);
    let mut small = case(None);
    small.counted.queue = 1;
    small.config(20, |config| config.outputs[0].may_lose = Some(FULL));
    small.passes(once);
    // Either the disk refuses writes, or the relay ends, but not both.
    case(Some(12)).fails(once, "2 times instead of 1 at most");
    let mut small = case(None);
    small.dies(20, Kind::Kill);
    small.fails(once, "2 times instead of 1 at most");
    for (refuses, dies, is_right) in
        [(12, 20, true), (12, 11, false), (12, 26, false), (21, 20, false)]
    {
        let mut small = case(Some(refuses));
        small.dies(dies, Kind::Kill);
        assert_eq!(small.rule(once).is_empty(), is_right, "{refuses} {dies}");
    }
}

#[test]
fn every_answer_is_one_of_the_documented() {
    let judge = |must, answer| {
        let mut small = Small::new();
        let serials = small.made(2, "get");
        small.request(&serials, 10, Some((1, answer)), must);
        answers(&small.truth).len()
    };
    let refuse = Must::Refuse("another kind", &[400]);
    for (must, right, wrong) in [
        (Must::Take, &[200, 408, 429, 503][..], &[400, 413, 500, 204][..]),
        (refuse, &[400, 503], &[200, 404, 500]),
        (Must::Never, &[400, 408], &[200, 500]),
    ] {
        for status in right {
            assert_eq!(judge(must, Answer::Status(*status)), 0, "{must:?} {status}");
        }
        for status in wrong {
            assert_eq!(judge(must, Answer::Status(*status)), 1, "{must:?} {status}");
        }
    }
    assert_eq!(judge(Must::Take, Answer::Miscounted), 1);
    assert_eq!(judge(Must::Take, Answer::Unhelpful(429)), 1);
    assert_eq!(judge(Must::Take, Answer::Broken), 0);
}

#[test]
fn what_can_go_on_goes_on() {
    let rule = |world: &World<'_>, seen: &Seen<'_>| progress(world, seen, CALM);
    let mut small = Small::new();
    let serials = small.two(10);
    small.fails(rule, "2 events have not come within 20s although nothing is wrong since 40s");
    small.arrive(60, &serials[..1]);
    small.arrive(61, &serials[1..]);
    small.fails(rule, "1 events have not come");
    small.counted.lost = 1;
    small.passes(rule);
    small.counted.lost = 0;
    small.arrived[1].at = seconds(60);
    small.passes(rule);
    small.arrived[1].at = seconds(61);
    small.refused.push(small.event(serials[1]).bytes.to_vec());
    small.passes(rule);
    // The events are not due yet.
    let mut small = Small::new();
    small.two(80);
    small.passes(rule);
    small.two(79);
    small.fails(rule, "2 events have not come");
    // Earlier refused events delay these, later ones do not.
    let mut small = Small::new();
    small.two(60);
    let refused = small.made(2, "get");
    small.refused = refused.iter().map(|it| small.event(*it).bytes.to_vec()).collect();
    small.send(&refused, 62, OK);
    small.fails(rule, "2 events have not come within 20s");
    small.send(&refused, 60, OK);
    small.passes(rule);
}

#[test]
fn nothing_comes_twice_while_nothing_is_wrong() {
    let rule = |world: &World<'_>, seen: &Seen<'_>| repeats(world, seen, CALM);
    let mut small = Small::new();
    let serials = small.two(10);
    small.arrive(59, &serials);
    small.arrive(60, &serials);
    small.arrive(101, &serials);
    small.passes(rule);
    small.arrive(61, &serials[..1]);
    small.fails(rule, "event 1/0 came at 60s and again at 61s");
    small.send(&serials, 12, Some((1, Answer::Broken)));
    small.passes(rule);
}

#[test]
fn what_a_sender_repeats_comes_once_with_deduplicate() {
    let rule = |world: &World<'_>, seen: &Seen<'_>| repeats(world, seen, CALM);
    let case = |deduplicates: bool, first| {
        let mut small = Small::new();
        small.truth.epochs.clear();
        small.config(0, |config| config.outputs[0].deduplicates = deduplicates);
        let serials = small.two(10);
        small.send(&serials, 65, OK);
        small.arrive(first, &serials[..1]);
        small.arrive(67, &serials[..1]);
        small
    };
    case(false, 12).passes(rule);
    case(true, 12).fails(rule, "event 1/0 came at 12s and again at 67s");
    case(true, 66).fails(rule, "event 1/0 came at 66s and again at 67s");
    // A new life, a new config, and a repeated event before the calm time.
    let mut small = case(true, 12);
    small.dies(20, Kind::Kill);
    small.passes(rule);
    let mut small = case(true, 12);
    small.config(20, |config| config.outputs[0].deduplicates = true);
    small.passes(rule);
    let mut small = case(true, 12);
    small.arrived[1].at = seconds(59);
    small.passes(rule);
}

#[test]
fn what_a_store_refuses_may_repeat_others_and_let_senders_wait() {
    let repeats = |world: &World<'_>, seen: &Seen<'_>| repeats(world, seen, CALM);
    let senders =
        |world: &World<'_>, _: &Seen<'_>| senders_progress(world, &Room::new(world), CALM);
    for (refused_at, is_right) in [(40, false), (45, true), (64, true), (67, false)] {
        let mut small = Small::new();
        let (serials, refused) = (small.made(1, "get"), small.made(1, "get"));
        small.send(&serials, 60, OK);
        small.arrive(61, &serials);
        small.arrive(64, &serials);
        small.send(&refused, refused_at, OK);
        let others = small.made(1, "get");
        small.send(&others, 65, Some((1, Answer::Status(429))));
        assert_eq!((small.rule(repeats).len(), small.rule(senders).len()), (1, 1));
        small.refused.push(small.event(refused[0]).bytes.to_vec());
        small.promise.ordered = false;
        small.fails(repeats, "came at 61s and again at 64s");
        small.promise.copies = Copies::AgainBesideRefused;
        assert_eq!(small.rule(repeats).is_empty(), is_right, "{refused_at}");
        // An output that keeps the order sends a later event as a test, and then again in order.
        (small.promise.ordered, small.promise.copies) = (true, Copies::AtLeastOnce);
        assert_eq!(small.rule(repeats).is_empty(), is_right, "{refused_at}");
        assert_eq!(small.rule(senders).is_empty(), is_right, "{refused_at}");
    }
    // With a backlog, an event is refused long after its request.
    for (letter_at, is_right) in [(55, false), (56, true), (75, true), (77, false)] {
        let mut small = Small::new();
        let serials = small.made(1, "get");
        small.send(&serials, 60, OK);
        small.arrive(61, &serials);
        small.arrive(64, &serials);
        small.letter_at(letter_at, serials[0]);
        assert_eq!(small.rule(repeats).is_empty(), is_right, "{letter_at}");
    }
}

#[test]
fn senders_are_answered_while_nothing_is_wrong() {
    let judge = |second, answer| {
        let mut small = Small::new();
        let serials = small.made(1, "get");
        small.send(&serials, second, answer);
        small.rule(|world, _| senders_progress(world, &Room::new(world), CALM)).len()
    };
    assert_eq!(judge(59, Some((1, Answer::Status(429)))), 0);
    assert_eq!(judge(60, Some((1, Answer::Status(429)))), 1);
    assert_eq!(judge(60, Some((1, Answer::NoConnection))), 1);
    assert_eq!(judge(60, OK), 0);
    assert_eq!(judge(75, None), 1);
    assert_eq!(judge(76, None), 0);
    assert_eq!(judge(99, Some((1, Answer::Status(503)))), 1);
    assert_eq!(judge(99, Some((2, Answer::Status(503)))), 0);
    assert_eq!(judge(75, Some((26, Answer::Status(503)))), 1);
}

#[test]
fn the_judge_runs_every_rule() {
    let mut small = Small::new();
    let serials = small.two(10);
    small.two(10);
    small.arrive(12, &[serials[1], serials[0], serials[0]]);
    small.promise.copies = Copies::Once;
    small.counted = Counted { lost: 1, ..Counted::default() };
    small.arrived[2].event = [&small.arrived[2].event[..], b" "].concat();
    let event = b"{}".to_vec();
    small.arrived.push(Arrived { at: seconds(13), connection: 1, event });
    let refused = small.made(1, "get");
    small.request(&refused, 20, OK, Must::Never);
    let faults = small.rule(|world, _| world.judge(CALM));
    for rule in ["answers", "invented", "bytes", "conservation", "reasons", "order", "once"] {
        assert!(faults.iter().any(|fault| fault.starts_with(rule)), "{rule}: {faults:#?}");
    }
}

#[test]
fn a_file_of_dead_letters_is_read_to_its_last_whole_line() {
    let of_event = r#""reason":"400 \"x\"","event":{"auditID":"a"}"#;
    let line = format!(r#"{{"time":"2026-06-01T12:00:20.500Z","output":"out",{of_event}}}"#);
    let torn = line.replace("auditID", "audit\0\0");
    let file = format!("{line}\n{torn}\n{line}\n{line}");
    let letters = letters(file.as_bytes());
    assert_eq!(letters.len(), 2);
    assert_eq!(letters[1].at, Duration::from_millis(20_500));
    assert_eq!(letters[1].reason, "400 \"x\"");
    assert_eq!(&letters[1].event[..], br#"{"auditID":"a"}"#);
}
