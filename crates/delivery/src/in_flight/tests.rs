//! The table of claims on a real queue in memory: each transition, and random sequences of them.
//!
//! The random test draws a transition, applies it to a claim in a state that allows it, and
//! compares the table with a plain list of claims and states after each step. The table's own
//! `check` runs too.

use std::sync::Arc;

use audit::LevelCounts;
use bytes::Bytes;

use super::*;
use queue::{Append, Queue};
use telemetry::Telemetry;

const ALL: Take = Take { bytes: u64::MAX, events: u64::MAX };

/// Opens a queue in memory, with one output, which is required.
pub(crate) fn opened(config: &config::Config, telemetry: &Arc<Telemetry>) -> (Queue, Cursor) {
    let output = queue::Output {
        name: "o".to_owned(),
        required: true,
        metrics: telemetry.output("o"),
        recorder: None,
    };
    let opened = Queue::open(&config.queue, telemetry, &[output]);
    let (queue, mut cursors) = opened.expect("a queue in memory");
    (queue, cursors.pop().expect("the output's cursor"))
}

/// A queue with `batches` batches of four events, and the table of its one output.
fn table(batches: usize) -> (Queue, InFlight) {
    let config =
        config::read(config::EMBEDDED, testing_config::TYPES).config.expect("the embedded config");
    let (queue, cursor) = opened(&config, &Arc::new(Telemetry::new()));
    for _ in 0..batches {
        let lines = Bytes::from_static(b"a\nb\nc\nd\n");
        let levels = LevelCounts::default();
        queue.append(Append { lines, events: 4, levels, list: None }).map(drop).expect("room");
    }
    (queue, InFlight::new(cursor))
}

fn claim_four(in_flight: &mut InFlight) -> Claim {
    in_flight.claim_next(Take { events: 4, ..ALL }, false).expect("a batch").claim
}

fn in_batch(batch: u64) -> Sent {
    Sent { batch, answers: 0 }
}

fn answer(in_flight: &mut InFlight, claim: Claim) -> Work {
    in_flight.front_on_wire(claim, None).expect("on the wire")
}

#[test]
fn a_claim_goes_from_the_wire_to_pending_and_back_and_is_final() {
    let (queue, mut in_flight) = table(2);
    let claim = claim_four(&mut in_flight);
    assert_eq!(in_flight.sent(claim, 4, in_batch(1)).map(|work| work.attempts), Some(1));
    let work = answer(&mut in_flight, claim);
    in_flight.give_back(work, State::Pending);
    assert!(in_flight.has(State::Pending) && !in_flight.has(State::OnWire));
    assert!(matches!(in_flight.redeliver(claim), Redelivery::Batch(_)));
    assert_eq!(in_flight.sent(claim, 4, in_batch(2)).map(|work| work.attempts), Some(2));
    let work = answer(&mut in_flight, claim);
    in_flight.finish(work, Disposition::default());
    assert_eq!(in_flight.cursor().watermark(), claim.end);
    assert_eq!(queue.backlogs()[0].1.events, 4);
}

#[test]
fn the_front_of_a_claim_is_final_and_the_rest_stays_on_the_wire() {
    let (_queue, mut in_flight) = table(1);
    let claim = claim_four(&mut in_flight);
    let front = Claim { end: claim.start + 1, ..claim };
    let work = in_flight.front_on_wire(front, None).expect("on the wire");
    assert_eq!((work.claim, work.events), (front, 1));
    in_flight.finish(work, Disposition::default());
    let rest = in_flight.first(State::OnWire).expect("the rest");
    assert_eq!((rest.claim.start, rest.claim.end, rest.events), (front.end, claim.end, 3));
}

#[test]
fn several_claims_of_one_batch_have_one_answer() {
    let (_queue, mut in_flight) = table(3);
    let claims = [(); 3].map(|()| claim_four(&mut in_flight));
    for (claim, batch) in claims.into_iter().zip([1, 1, 2]) {
        in_flight.sent(claim, 4, in_batch(batch));
    }
    let all = Claim { start: claims[0].start, end: claims[2].end };
    let works = in_flight.answered(all, None);
    assert_eq!(works.iter().map(|work| work.claim).collect::<Vec<_>>(), claims[..2]);
    assert_eq!(in_flight.claims(State::OnWire), claims[2..]);
    works.into_iter().for_each(|work| in_flight.give_back(work, State::Pending));
}

#[test]
fn parts_share_the_events_and_the_history_of_the_whole() {
    let (_queue, mut in_flight) = table(1);
    let claim = claim_four(&mut in_flight);
    let mut work = answer(&mut in_flight, claim);
    work.trial.counted = 7;
    in_flight.give_back(work, State::Pending);
    in_flight.cut(claim, claim.start + 3);
    let parts: Vec<_> = in_flight.all(State::Pending).collect();
    assert_eq!(parts.iter().map(|part| part.events).collect::<Vec<_>>(), [3, 1]);
    assert!(parts.iter().all(|part| part.trial.counted == 7));
}

#[test]
fn a_rewound_table_is_empty_and_the_queue_gives_the_same_again() {
    let (_queue, mut in_flight) = table(2);
    let first = claim_four(&mut in_flight);
    claim_four(&mut in_flight);
    let work = answer(&mut in_flight, first);
    in_flight.give_back(work, State::Pending);
    in_flight.rewind();
    assert!(State::ALL.into_iter().all(|state| !in_flight.has(state)));
    assert_eq!(claim_four(&mut in_flight), first);
}

#[test]
fn what_is_handed_over_is_released_and_in_order() {
    let (_queue, mut in_flight) = table(3);
    let claims = [(); 3].map(|()| claim_four(&mut in_flight));
    let [_, second, last] = claims;
    let work = answer(&mut in_flight, second);
    in_flight.finish(work, Disposition::default());
    let work = answer(&mut in_flight, last);
    in_flight.hold(work);
    let (mut cursor, left) = in_flight.hand_over();
    assert_eq!(left, [claims[0], claims[2]]);
    assert!(matches!(cursor.redeliver(claims[2]), Redelivery::Batch(_)), "it was released");
}

#[test]
fn random_transitions_keep_the_table_and_the_queue_in_step() {
    let seed = std::env::var("KUBE_AUDIT_FORWARDER_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in seed.map_or(0..200, |seed: u64| seed..seed + 1) {
        let mut random = fastrand::Rng::with_seed(seed);
        let batches = 8;
        let (queue, mut in_flight) = table(batches);
        let mut model: Vec<(State, Claim)> = Vec::new();
        let (mut finished, mut aside) = (0, 0);
        for _ in 0..200 {
            let index = random.usize(..model.len().max(1));
            match (random.u8(..11), model.get(index).copied()) {
                (0, _) => {
                    let take = Take { events: random.u64(1..=5), ..ALL };
                    if let Some(batch) = in_flight.claim_next(take, false) {
                        model.push((State::OnWire, batch.claim));
                    }
                }
                (1, Some((State::OnWire, claim))) => {
                    let work = answer(&mut in_flight, claim);
                    if claim.end == claim.start.next() {
                        in_flight.give_back(work, State::PassedOver);
                        model[index].0 = State::PassedOver;
                    } else {
                        in_flight.give_back(work, State::Pending);
                        model[index].0 = State::Pending;
                    }
                }
                (8, Some((state @ (State::Pending | State::PassedOver), claim)))
                    if claim.end > claim.start.next() =>
                {
                    let middle = claim.start.next();
                    in_flight.cut(claim, middle);
                    model[index].1 = Claim { end: middle, ..claim };
                    model.push((state, Claim { start: middle, ..claim }));
                }
                (9, Some((State::Pending, claim))) => {
                    in_flight.change(claim, State::PassedOver);
                    model[index].0 = State::PassedOver;
                }
                (2, Some((State::Pending, claim))) => {
                    assert!(
                        matches!(in_flight.redeliver(claim), Redelivery::Batch(_)),
                        "seed {seed}"
                    );
                    model[index].0 = State::OnWire;
                }
                (3, Some((State::OnWire, claim))) => {
                    let work = answer(&mut in_flight, claim);
                    in_flight.hold(work);
                    model[index].0 = State::Held;
                }
                (4, Some((State::OnWire, claim))) => {
                    let work = answer(&mut in_flight, claim);
                    in_flight.give_back(work, State::Pending);
                    model[index].0 = State::Pending;
                }
                (4, Some((State::Held, claim))) => {
                    in_flight.release(claim);
                    model[index].0 = State::Pending;
                }
                (5, Some((State::PassedOver, claim))) => {
                    in_flight.change(claim, State::Pending);
                    model[index].0 = State::Pending;
                }
                (6, Some((State::OnWire, claim))) if claim.end == claim.start.next() => {
                    let work = answer(&mut in_flight, claim);
                    in_flight.give_back(work, State::Burying);
                    assert!(matches!(in_flight.redeliver(claim), Redelivery::Batch(_)));
                    in_flight.set_aside(claim, b"e\n").expect("it is in the queue");
                    aside += 1;
                    model.remove(index);
                }
                (7, Some((State::OnWire | State::Held, claim))) => {
                    in_flight.finish_claim(claim, Disposition::default());
                    finished += claim.end - claim.start;
                    model.remove(index);
                }
                _ => {}
            }
            for state in State::ALL {
                let mut wanted: Vec<_> = model.iter().filter(|held| held.0 == state).collect();
                wanted.sort_by_key(|held| held.1);
                let wanted: Vec<_> = wanted.into_iter().map(|held| held.1).collect();
                assert_eq!(in_flight.claims(state), wanted, "{state:?}, seed {seed}");
            }
        }
        let accepted = 4 * batches as u64;
        assert_eq!(queue.backlogs()[0].1.events, accepted - finished - aside, "seed {seed}");
    }
}
