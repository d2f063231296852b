//! The promises of the memory of seen events, each in a test, and a comparison with a model. The
//! model keeps the whole log in a list and searches it for each question. Random steps ask for the
//! next event, ask again, forget events and settle positions. After each step, the result of the
//! memory must be that of the model. A memory with room for five events may differ from the model
//! only if more events leave.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;

const WINDOW: Duration = Duration::from_secs(300);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn p(number: u64) -> Position {
    Position::new(number)
}

fn seen() -> Seen {
    Seen::new(WINDOW)
}

#[test]
fn an_event_leaves_once_within_the_window_and_again_behind_it() {
    let mut seen = seen();
    assert!(!seen.check(b"a", p(0), at(0)));
    assert!(seen.check(b"a", p(1), at(1)));
    assert!(!seen.check(b"b", p(2), at(1)));
    assert!(seen.check(b"a", p(3), at(300)));
    assert!(!seen.check(b"a", p(4), at(301)), "what was dropped makes the window no longer");
    assert!(seen.check(b"a", p(5), at(600)), "the one before it has left");
}

#[test]
fn no_event_is_hidden_behind_anothers_audit_id() {
    let event = |verb: &str| {
        format!(
            r#"{{"kind":"Event","auditID":"0b0f8cd2-6a47-4a52-a6a3-9f3f4d0a7a11","verb":"{verb}"}}"#
        )
    };
    let mut seen = seen();
    assert!(!seen.check(event("get").as_bytes(), p(0), at(0)));
    assert!(!seen.check(event("delete").as_bytes(), p(1), at(0)));
    assert!(
        !seen.check(format!("{} ", event("get")).as_bytes(), Position::new(2), at(0)),
        "not even a blank"
    );
    assert!(seen.check(event("get").as_bytes(), p(3), at(0)));
}

#[test]
fn the_oldest_are_forgotten_first_and_then_leave_again() {
    let mut seen = Seen::with_room(WINDOW, 3);
    for (position, event) in (0..).zip([b"a", b"b", b"c"]) {
        assert!(!seen.check(event, p(position), at(0)));
    }
    assert!(seen.check(b"a", p(3), at(0)));
    assert!(!seen.check(b"d", p(4), at(0)));
    assert!(!seen.check(b"a", p(5), at(0)), "it was forgotten");
    assert!(seen.check(b"c", p(6), at(0)), "it was not");
    assert_eq!((seen.entries.len(), seen.table.len()), (3, 3));
}

#[test]
fn what_is_final_and_outside_the_window_takes_no_memory() {
    let mut seen = seen();
    for position in 0..1000 {
        assert!(!seen.check(&position.to_string().into_bytes(), p(position), at(position)));
        seen.settled(Position::new(position.saturating_sub(400)));
    }
    assert_eq!((seen.entries.len(), seen.table.len()), (702, 702), "more may be asked for again");
    seen.settled(p(1000));
    assert_eq!((seen.entries.len(), seen.table.len()), (301, 301));
    assert!(seen.check(b"699", p(1000), at(999)));
    assert!(!seen.check(b"698", p(1001), at(999)));
}

#[test]
fn numbers_begin_again_behind_the_last() {
    let mut seen = Seen { first: u32::MAX - 1, ..Seen::with_room(WINDOW, 4) };
    for position in 0..20_u64 {
        assert!(!seen.check(&position.to_le_bytes(), p(2 * position), at(0)));
        assert!(seen.check(&position.to_le_bytes(), p(2 * position + 1), at(0)));
    }
    seen.forget(p(0)..p(37));
    assert!(!seen.check(&18_u64.to_le_bytes(), p(40), at(0)));
    assert!(seen.check(&19_u64.to_le_bytes(), p(41), at(0)));
}

#[tokio::test(start_paused = true)]
async fn an_age_is_a_time_that_does_not_move() {
    let seen = seen();
    let before = seen.received(at(7));
    tokio::time::advance(at(5)).await;
    assert_eq!(seen.received(at(12)), before);
    assert!(seen.received(at(10 * 365 * 24 * 3600)) < before, "older than the process");
}

#[test]
fn a_million_events_take_less_than_64_bytes_each() {
    let mut seen = seen();
    let most = u64::try_from(EVENTS_MAX).unwrap();
    for position in 0..most + 1000 {
        assert!(!seen.check(&position.to_le_bytes(), p(position), at(0)));
    }
    assert_eq!((seen.entries.len(), seen.table.len()), (EVENTS_MAX, EVENTS_MAX));
    let bytes = seen.entries.capacity() * size_of::<Entry>() + seen.table.allocation_size();
    println!("{bytes} bytes");
    assert!(bytes < 46_000_000, "{bytes} bytes");
}

#[derive(Debug, Clone)]
enum Step {
    /// Checks the next event of the log: one of eight, received some seconds after the last.
    Next { event: u8, later: u64 },
    /// Checks the last `events` events of the log again, in order.
    Again { events: usize },
    /// Forgets some events, because they did not leave after all. `from` counts back from the end
    /// of the log.
    Forget { from: usize, events: u64 },
    /// Settles all but the last `events` events.
    Settled { events: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0_u8..8, prop_oneof![0_u64..3, 0_u64..200])
            .prop_map(|(event, later)| Step::Next { event, later }),
        3 => (0_usize..40).prop_map(|events| Step::Again { events }),
        1 => (0_usize..40, 0_u64..4).prop_map(|(from, events)| Step::Forget { from, events }),
        1 => (0_u64..40).prop_map(|events| Step::Settled { events }),
    ]
}

/// The model: the whole log, and which of its events have left.
#[derive(Default)]
struct Model {
    /// For each position, the number of the event and the second in which it was received.
    log: Vec<(u8, u64)>,
    /// The positions of the events that have left.
    left: BTreeSet<usize>,
    /// The highest position that was ever in `left`; `None` if no event has left yet.
    highest: Option<usize>,
}

impl Model {
    /// Returns `true` if an equal event has left before, within the window. The function looks
    /// through the whole log.
    fn has_left_before(&self, position: usize) -> bool {
        let (event, received) = self.log[position];
        self.left.range(..position).any(|other| {
            let (like, then) = self.log[*other];
            like == event && received - then <= WINDOW.as_secs()
        })
    }

    fn ask(&mut self, seen: &mut Seen, position: usize, little: bool) -> Result<(), TestCaseError> {
        let (event, received) = self.log[position];
        let real = seen.check(&[event], p(position as u64), at(received));
        let told = self.has_left_before(position) && !self.left.contains(&position);
        match little {
            true => prop_assert!(told || !real, "{position}: nothing like it has left"),
            false => prop_assert_eq!(real, told, "{}", position),
        }
        // An event out of order is not remembered, so its copy may leave.
        if !real && (little || self.highest.is_none_or(|highest| highest < position)) {
            self.left.insert(position);
            self.highest = self.highest.max(Some(position));
        }
        Ok(())
    }
}

/// Takes the steps on a model and a memory. With little room, more events may leave than in the
/// model.
fn run(steps: &[Step], little: bool) -> Result<(), TestCaseError> {
    let room = if little { 5 } else { 10_000 };
    let (mut model, mut seen) = (Model::default(), Seen::with_room(WINDOW, room));
    let mut settled = 0;
    for step in steps {
        let end = model.log.len();
        match step {
            Step::Next { event, later } => {
                let time = model.log.last().map_or(0, |(_, time)| *time) + later;
                model.log.push((*event, time));
                model.ask(&mut seen, end, little)?;
            }
            Step::Again { events } => {
                for position in end.saturating_sub(*events).max(settled)..end {
                    model.ask(&mut seen, position, little)?;
                }
            }
            Step::Forget { from, events } => {
                let from = end.saturating_sub(*from).max(settled) as u64;
                seen.forget(p(from)..p(from + events));
                model.left.retain(|left| !(from..from + events).contains(&(*left as u64)));
            }
            Step::Settled { events } => {
                settled = end.saturating_sub(usize::try_from(*events).unwrap()).max(settled);
                seen.settled(p(settled as u64));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_is_as_its_model(steps in prop::collection::vec(step(), 1..200)) {
        run(&steps, false)?;
    }

    #[test]
    fn little_room_only_lets_more_leave(steps in prop::collection::vec(step(), 1..200)) {
        run(&steps, true)?;
    }
}
