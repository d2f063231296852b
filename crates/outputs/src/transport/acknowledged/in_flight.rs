//! The claims that were sent on one connection and are not final.

use std::collections::VecDeque;

use tokio::time::Instant;

use delivery::link::{Event, Part, Verdict};
use queue::Claim;

/// The number of waiting parts at which the link takes no more batches. The window does not limit
/// events that are too long, which wait for the answers to earlier events.
const PARTS_MAX: usize = 65_536;

/// The claims that were sent and are not final, in the order of sending.
///
/// If some events of a claim are too long to be sent, the claim is stored as several parts. For
/// example, 2 sent events, 1 event that is too long, and 1 sent event are three parts. A part of
/// sent events is final when the consumer has acknowledged them; a part of events that are too long
/// is final when everything before it is.
#[derive(Default)]
pub(super) struct InFlight {
    parts: VecDeque<SentPart>,
    /// The send time of each batch that was acknowledged as a whole and is not counted yet.
    ended: Vec<Instant>,
}

/// A claim that was sent, or a part of one.
#[derive(Debug)]
struct SentPart {
    /// `None` for a checkpoint, which the consumer acknowledges as one event.
    claim: Option<Claim>,
    /// The number of events of this part that the consumer has not acknowledged yet.
    awaited: u64,
    /// The report about the part. `None` if it is [`Event::accepted`]: the part's events are sent,
    /// and the part is a whole claim or has an event at each of its positions.
    judged: Option<Part>,
    /// The send time of the batch, if its last sent event is in this part.
    last_of: Option<Instant>,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn add_checkpoint(&mut self) {
        let last_of = Some(Instant::now());
        self.parts.push_back(SentPart { claim: None, awaited: 1, judged: None, last_of });
    }

    /// Returns the send times of the batches that were acknowledged as a whole since the last call.
    pub(super) fn take_ended(&mut self) -> Vec<Instant> {
        std::mem::take(&mut self.ended)
    }

    /// Returns the number of unacknowledged events. A checkpoint counts as one.
    pub(super) fn events(&self) -> u64 {
        self.parts.iter().map(|sent| sent.awaited).sum()
    }

    /// Returns `true` if no more claims should be added.
    pub(super) fn is_full(&self) -> bool {
        self.parts.len() >= PARTS_MAX
    }

    /// Adds a claim that is being sent. `parts` are its sent events and its events that are too
    /// long. Adds reports about parts that are already final to `told`.
    pub(super) fn add(&mut self, claim: Claim, parts: Vec<Part>, told: &mut VecDeque<Event>) {
        let (before, is_whole) = (self.parts.len(), parts.len() == 1);
        let mut start = claim.start;
        for part in parts {
            let claim = Claim { start, end: part.end };
            let is_sent = part.verdict == Verdict::Delivered;
            let is_plain = is_sent && (is_whole || part.events == claim.end - claim.start);
            let awaited = if is_sent { part.events } else { 0 };
            let judged = Some(part).filter(|_| !is_plain);
            self.parts.push_back(SentPart { claim: Some(claim), awaited, judged, last_of: None });
            start = claim.end;
        }
        let last = self.parts.range_mut(before..).rfind(|part| part.awaited > 0);
        if let Some(last) = last {
            last.last_of = Some(Instant::now());
        }
        self.acknowledge(0, told);
    }

    /// Records that the consumer has acknowledged `events` more events. Adds reports about the
    /// events that are now final to `told`. Returns the number of acknowledged events that were
    /// never sent, which is 0 unless the consumer violates the protocol.
    pub(super) fn acknowledge(&mut self, mut events: u64, told: &mut VecDeque<Event>) -> u64 {
        // A part of events that are too long has 0 awaited events, so it is final as soon as the
        // parts before it are.
        while let Some(SentPart { claim, awaited, judged, last_of }) =
            self.parts.pop_front_if(|first| first.awaited <= events)
        {
            events -= awaited;
            self.ended.extend(last_of);
            told.push_back(match (claim, judged) {
                (Some(claim), Some(part)) => Event::Judged(claim, vec![part]),
                (claim, _) => Event::accepted(claim),
            });
        }
        let Some(first) = self.parts.front_mut() else { return events };
        if let Some(claim) = &mut first.claim
            && events > 0
            && first.awaited == claim.end - claim.start
        {
            let front = Claim { end: claim.start + events, ..*claim };
            claim.start = front.end;
            told.push_back(Event::Accepted(front));
        }
        first.awaited -= events;
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use delivery::checkpoints::Fate;
    use delivery::link::Parts;
    use queue::Position;

    /// Unfinished claims, and the reports about them.
    #[derive(Default)]
    struct Told {
        in_flight: InFlight,
        reports: VecDeque<Event>,
    }

    impl Told {
        /// Adds a claim, and returns the reports about it. In `events`, `s` is an event that is
        /// sent, `x` one that is too long, and `.` a position without an event.
        fn add(&mut self, (start, end): (u64, u64), events: &str) -> String {
            let (claim, mut parts) = (Claim::of(start, end), Parts::default());
            for (position, event) in (start..).map(Position::new).zip(events.chars()) {
                match event {
                    's' => parts.add(position, Verdict::Delivered),
                    'x' => parts.add(position, Verdict::TooLong),
                    _ => {}
                }
            }
            self.in_flight.add(claim, parts.end(claim), &mut self.reports);
            self.told()
        }

        /// Acknowledges `events` events. Returns the new reports, and the number of events that
        /// were never sent.
        fn acknowledge(&mut self, events: u64) -> (String, u64) {
            let more = self.in_flight.acknowledge(events, &mut self.reports);
            (self.told(), more)
        }

        /// Takes the reports as a text: `10..14` is an accepted claim, `10..14+3` one of three
        /// events, and `10..14-2` two events that are too long.
        fn told(&mut self) -> String {
            let shown = |claim: Claim| format!("{}..{}", claim.start.get(), claim.end.get());
            #[expect(clippy::wildcard_enum_match_arm, reason = "no other event is expected")]
            let tell = |event| match event {
                Event::Accepted(claim) => shown(claim),
                Event::Judged(claim, parts) => {
                    let [part] = parts.as_slice() else { panic!("{parts:?}") };
                    let is_sent = part.verdict == Verdict::Delivered;
                    format!("{}{}{}", shown(claim), if is_sent { '+' } else { '-' }, part.events)
                }
                Event::Checkpoint(Fate::Taken) => "checkpoint".to_owned(),
                other => panic!("{other:?}"),
            };
            self.reports.drain(..).map(tell).collect::<Vec<_>>().join(" ")
        }
    }

    #[test]
    fn what_an_answer_covers_is_final_and_no_more() {
        let mut told = Told::default();
        assert_eq!((told.add((10, 14), "ssss"), told.add((20, 22), "ss")), Default::default());
        assert_eq!(told.in_flight.events(), 6);
        for (events, wanted, more) in
            [(1, "10..11", 0), (0, "", 0), (4, "11..14 20..21", 0), (3, "21..22", 2)]
        {
            assert_eq!(told.acknowledge(events), (wanted.to_owned(), more));
        }
        assert!(told.in_flight.is_empty());
    }

    #[test]
    fn what_cannot_be_sent_is_final_in_its_turn() {
        let mut told = Told::default();
        assert_eq!(told.add((0, 7), "xxssxsx"), "0..2-2");
        assert_eq!(told.in_flight.events(), 3);
        for wanted in ["2..3", "3..4 4..5-1", "5..6 6..7-1"] {
            assert_eq!(told.acknowledge(1).0, wanted);
        }
        assert_eq!(told.add((7, 9), "xx"), "7..9-2");
        assert!(told.in_flight.is_empty());
        // A part with a gap is final as a whole.
        assert_eq!(told.add((10, 19), "s.s.x.ss"), "");
        assert_eq!((told.acknowledge(1).0.as_str(), told.in_flight.events()), ("", 3));
        assert_eq!(told.acknowledge(1).0, "10..13+2 13..15-1");
        assert_eq!(told.acknowledge(2).0, "15..19+2");
        assert_eq!((told.add((20, 29), ".s.s."), told.acknowledge(1).0), Default::default());
        assert_eq!(told.acknowledge(1).0, "20..29");
    }

    #[test]
    fn a_checkpoint_is_answered_between_events_and_is_none() {
        let mut told = Told::default();
        told.in_flight.add_checkpoint();
        assert!(!told.in_flight.is_empty());
        told.add((0, 3), "sss");
        told.in_flight.add_checkpoint();
        told.add((3, 5), "ss");
        assert_eq!(told.in_flight.events(), 7);
        for (events, wanted) in [(3, "checkpoint 0..2"), (3, "2..3 checkpoint 3..4"), (1, "4..5")] {
            assert_eq!(told.acknowledge(events), (wanted.to_owned(), 0));
        }
    }

    /// A batch counts once, even if it is stored as several parts. A batch without a sent event
    /// does not count.
    #[test]
    fn a_batch_has_ended_once_its_last_sent_event_is_acknowledged() {
        let mut told = Told::default();
        for (claim, events) in [((0, 4), "sxsx"), ((4, 6), "xx"), ((6, 9), "sss")] {
            told.add(claim, events);
        }
        let mut ended = |acknowledged| {
            told.acknowledge(acknowledged);
            told.in_flight.take_ended().len()
        };
        assert_eq!([ended(1), ended(1), ended(2), ended(1), ended(0)], [0, 1, 0, 1, 0]);
    }
}
