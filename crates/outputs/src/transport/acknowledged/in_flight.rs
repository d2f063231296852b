//! The claims that were sent on one connection and are not final.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::time::Instant;

use delivery::link::Event;
use queue::Claim;

/// The claims that were sent and are not final, in the order of sending. A sent event is final when
/// the consumer has acknowledged it.
///
/// If some events of a claim can't be sent, the claim is usually kept as several parts. Each part
/// is reported as soon as everything before it is final. For example, 2 events that are sent, 1
/// that can't be sent, and 1 that is sent are three parts.
#[derive(Default)]
pub(super) struct InFlight {
    parts: VecDeque<SentPart>,
    /// One entry for each batch that was acknowledged as a whole and is not counted yet: the time
    /// when it was sent.
    ended: Vec<Instant>,
}

/// A claim that was sent, or a part of one.
#[derive(Debug)]
struct SentPart {
    /// `None` for a checkpoint, which the consumer acknowledges as one event.
    claim: Option<Claim>,
    /// The number of events of this part that the consumer has not acknowledged yet.
    awaited: u64,
    /// The events of this part that can't be sent and are given up, one line each.
    rejected: Vec<Bytes>,
    /// When the batch was sent, if its last sent event is in this part; otherwise `None`.
    last_of: Option<Instant>,
}

impl InFlight {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Returns `true` if there is a claim, and not only checkpoints.
    pub(super) fn has_events(&self) -> bool {
        self.parts.iter().any(|part| part.claim.is_some())
    }

    pub(super) fn add_checkpoint(&mut self) {
        let last_of = Some(Instant::now());
        self.parts.push_back(SentPart { claim: None, awaited: 1, rejected: Vec::new(), last_of });
    }

    /// Takes the times when batches were sent: one for each batch that was acknowledged as a whole
    /// since the last call.
    pub(super) fn take_ended(&mut self) -> Vec<Instant> {
        std::mem::take(&mut self.ended)
    }

    /// Returns the number of events that the consumer has yet to acknowledge. A checkpoint counts
    /// as one.
    pub(super) fn events(&self) -> u64 {
        self.parts.iter().map(|sent| sent.awaited).sum()
    }

    /// Returns the number of bytes of the events that can't be sent. These events are kept until
    /// all events before them are final.
    pub(super) fn rejected_bytes(&self) -> u64 {
        self.parts.iter().flat_map(|sent| &sent.rejected).map(|line| line.len() as u64).sum()
    }

    /// Adds a claim that is sent now. `runs` says which of its events are sent, as in `Frames`, and
    /// `rejected` holds the events that can't be sent. If events are final at once, adds reports
    /// about them to `told`.
    pub(super) fn add(
        &mut self,
        claim: Claim,
        runs: &[(u64, bool)],
        rejected: Vec<Bytes>,
        told: &mut VecDeque<Event>,
    ) {
        let events: u64 = runs.iter().map(|(events, _)| events).sum();
        let before = self.parts.len();
        // If some events of the claim were filtered out, or dropped from the queue in the
        // meantime, the position of an event can't be told from its number in the batch. The claim
        // then stays one part.
        if events == claim.end - claim.start {
            let (mut start, mut rejected) = (claim.start, rejected.into_iter());
            for (events, sent) in runs {
                let end = start + *events;
                let claim = Some(Claim { start, end });
                let (awaited, unsent) = if *sent { (*events, 0) } else { (0, *events) };
                let unsent = usize::try_from(unsent).unwrap_or(usize::MAX);
                let rejected = rejected.by_ref().take(unsent).collect();
                self.parts.push_back(SentPart { claim, awaited, rejected, last_of: None });
                start = end;
            }
        } else {
            let awaited = events - rejected.len() as u64;
            self.parts.push_back(SentPart { claim: Some(claim), awaited, rejected, last_of: None });
        }
        let last = self.parts.range_mut(before..).rfind(|part| part.awaited > 0);
        if let Some(last) = last {
            last.last_of = Some(Instant::now());
        }
        self.acknowledge(0, told);
    }

    /// Notes that the consumer has acknowledged `events` more events. Adds reports about the events
    /// that are now final to `told`. Returns how many of the acknowledged events were never sent;
    /// this is 0 unless the consumer violates the protocol.
    pub(super) fn acknowledge(&mut self, mut events: u64, told: &mut VecDeque<Event>) -> u64 {
        // A part that can't be sent awaits nothing, so it is final as soon as all parts before it
        // are.
        while let Some(SentPart { claim, awaited, rejected, last_of }) =
            self.parts.pop_front_if(|first| first.awaited <= events)
        {
            events -= awaited;
            self.ended.extend(last_of);
            told.push_back(Event::accepted(claim, rejected));
        }
        let Some(first) = self.parts.front_mut() else { return events };
        if let Some(claim) = &mut first.claim
            && events > 0
            && first.awaited == claim.end - claim.start
        {
            let front = Claim { end: claim.start + events, ..*claim };
            claim.start = front.end;
            told.push_back(Event::Accepted { claim: front, rejected: Vec::new() });
        }
        first.awaited -= events;
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::Frames;
    use super::*;
    use delivery::checkpoints::Fate;

    /// Claims under way, and the reports about them.
    #[derive(Default)]
    struct Told {
        in_flight: InFlight,
        reports: VecDeque<Event>,
    }

    impl Told {
        /// Adds a claim, and returns the reports about it. In `events`, `s` is an event that is
        /// sent, and `x` one that can't be sent.
        fn add(&mut self, (start, end): (u64, u64), events: &str) -> String {
            let mut frames = Frames::default();
            for event in events.chars() {
                if event == 's' { frames.push(true) } else { frames.without(b"x") }
            }
            let Frames { runs, rejected, .. } = frames;
            self.in_flight.add(Claim::of(start, end), &runs, rejected, &mut self.reports);
            self.told()
        }

        /// Acknowledges `events` events. Returns the reports about them, and how many of them were
        /// never sent.
        fn acknowledge(&mut self, events: u64) -> (String, u64) {
            let more = self.in_flight.acknowledge(events, &mut self.reports);
            (self.told(), more)
        }

        /// Takes the reports as a text: `10..14` is an accepted claim, and `10..14-2` one of which
        /// two events were rejected.
        fn told(&mut self) -> String {
            #[expect(clippy::wildcard_enum_match_arm, reason = "no other event is expected")]
            let tell = |event| match event {
                Event::Accepted { claim, rejected } if rejected.is_empty() => {
                    format!("{}..{}", claim.start.get(), claim.end.get())
                }
                Event::Accepted { claim, rejected } => {
                    format!("{}..{}-{}", claim.start.get(), claim.end.get(), rejected.len())
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
        // A claim with a gap is final as a whole.
        assert_eq!(told.add((10, 19), "ssxs"), "");
        assert_eq!((told.acknowledge(2).0.as_str(), told.in_flight.events()), ("", 1));
        assert_eq!(told.acknowledge(1).0, "10..19-1");
    }

    #[test]
    fn a_checkpoint_is_answered_between_events_and_is_none() {
        let mut told = Told::default();
        told.in_flight.add_checkpoint();
        assert_eq!((told.in_flight.is_empty(), told.in_flight.has_events()), (false, false));
        told.add((0, 3), "sss");
        told.in_flight.add_checkpoint();
        told.add((3, 5), "ss");
        assert_eq!((told.in_flight.events(), told.in_flight.has_events()), (7, true));
        for (events, wanted) in [(3, "checkpoint 0..2"), (3, "2..3 checkpoint 3..4"), (1, "4..5")] {
            assert_eq!(told.acknowledge(events), (wanted.to_owned(), 0));
        }
    }

    /// A batch counts once, also if it is kept as several parts, and a batch of which no event was
    /// sent does not count.
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
