//! Copies of events on the wire for the open taps.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::tap::{Line, Reader, Taps};
use base::position::Position;
use queue::Claim;

/// The copies of one output's events for taps. The output's filtering owns this value.
///
/// A claim's events are copied while it goes through the filter to be sent: [`begin`], then
/// [`copy`] for each event, then [`end`]. The copies wait here until the consumer has acknowledged
/// the events ([`accepted`]), or until they will be sent again or are given up ([`forget`]). While
/// no tap is open, [`begin`] reads one number.
///
/// [`begin`]: Tapping::begin
/// [`copy`]: Tapping::copy
/// [`end`]: Tapping::end
/// [`accepted`]: Tapping::accepted
/// [`forget`]: Tapping::forget
#[derive(Default)]
pub(super) struct Tapping {
    taps: Option<Arc<Taps>>,
    output: Arc<str>,
    /// The copies of the claim that goes through the filter now, for each tap.
    current: Vec<Sample>,
    /// The copies of claims on the wire. The taps limit their bytes.
    samples: Vec<Sample>,
}

/// The copies of one claim for one tap.
struct Sample {
    /// The range of the events that are not decided.
    claim: Claim,
    reader: Arc<Reader>,
    /// The copies that the limits of the tap allowed.
    lines: VecDeque<(Position, Line)>,
}

impl Tapping {
    pub(crate) fn new(taps: Option<Arc<Taps>>, output: &str) -> Self {
        Self { taps, output: output.into(), ..Self::default() }
    }

    /// Begins a claim. Returns `false` if no tap asks for its events.
    pub(crate) fn begin(&mut self, claim: Claim) -> bool {
        let open = self.taps.as_ref().filter(|taps| taps.is_open());
        let Some(taps) = open else {
            // The taps that asked for these copies are closed.
            self.samples.clear();
            return false;
        };
        let sample = |reader| Sample { claim, reader, lines: VecDeque::new() };
        self.current = taps.readers_of(&self.output).into_iter().map(sample).collect();
        self.forget(claim.start, claim.end);
        !self.current.is_empty()
    }

    /// Returns `true` if a tap asks for events of the current claim.
    pub(super) fn is_copying(&self) -> bool {
        !self.current.is_empty()
    }

    /// Copies an event, which does not have its form yet, for each tap whose limits allow it.
    pub(crate) fn copy(&mut self, position: Position, event: &[u8]) {
        for sample in &mut self.current {
            let line = sample.reader.copy(&self.output, event);
            sample.lines.extend(line.map(|line| (position, line)));
        }
    }

    /// Ends the claim. `is_sent` is `false` if none of its events is sent.
    pub(crate) fn end(&mut self, is_sent: bool) {
        let current = std::mem::take(&mut self.current);
        if is_sent {
            self.samples.extend(current);
        }
    }

    /// Hands copies to their taps: the consumer has acknowledged `events` events of the claim.
    pub(crate) fn accepted(&mut self, claim: Claim, events: u64) {
        for sample in self.samples.iter_mut().filter(|sample| sample.overlaps(claim)) {
            let lines = sample.take(claim);
            let skipped = events.saturating_sub(lines.len() as u64);
            sample.reader.deliver(lines, skipped);
            sample.cut(claim.start, claim.end);
        }
        self.samples.retain(|sample| sample.claim.start < sample.claim.end);
    }

    /// Drops the copies of events that will be sent again or are given up.
    pub(crate) fn forget(&mut self, start: Position, end: Position) {
        if self.samples.is_empty() {
            return;
        }
        for sample in &mut self.samples {
            drop(sample.take(Claim { start, end }));
            sample.cut(start, end);
        }
        self.samples.retain(|sample| sample.claim.start < sample.claim.end);
    }
}

impl Sample {
    fn overlaps(&self, claim: Claim) -> bool {
        self.claim.start < claim.end && claim.start < self.claim.end
    }

    fn take(&mut self, claim: Claim) -> Vec<Line> {
        let Claim { start, end } = claim;
        let from = self.lines.partition_point(|(position, _)| *position < start);
        let until = self.lines.partition_point(|(position, _)| *position < end);
        self.lines.drain(from..until.max(from)).map(|(_, line)| line).collect()
    }

    /// Removes decided events from the range, if they are at one of its ends.
    fn cut(&mut self, start: Position, end: Position) {
        let Claim { start: first, end: last } = self.claim;
        if start <= first && end > first {
            self.claim.start = end.min(last);
        } else if end >= last && start < last {
            self.claim.end = start.max(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Tap;
    use telemetry::Telemetry;

    fn position(number: u64) -> Position {
        Position::new(number)
    }

    fn claim(start: u64, end: u64) -> Claim {
        Claim { start: position(start), end: position(end) }
    }

    fn tapping() -> (Tapping, Arc<Taps>) {
        let taps = Arc::new(Taps::new(Telemetry::new().taps()));
        (Tapping::new(Some(Arc::clone(&taps)), "o"), taps)
    }

    /// Sends a claim whose events have their positions as text.
    fn send(tapping: &mut Tapping, claim: Claim) {
        assert!(tapping.begin(claim));
        for number in claim.start.get()..claim.end.get() {
            assert!(tapping.is_copying());
            tapping.copy(position(number), number.to_string().as_bytes());
        }
        tapping.end(true);
    }

    fn shown(tap: &mut Tap) -> Vec<u64> {
        let line = |line: Line| std::str::from_utf8(line.event()).unwrap().parse().unwrap();
        std::iter::from_fn(|| tap.try_next()).map(line).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_is_shown_when_it_is_acknowledged_and_not_before() {
        let (mut tapping, taps) = tapping();
        assert!(!tapping.begin(claim(0, 1)));
        let mut tap = taps.open(None).unwrap();
        let mut other = taps.open(Some("other".to_owned())).unwrap();
        send(&mut tapping, claim(0, 10));
        assert!(shown(&mut tap).is_empty());
        // Acknowledged in parts; one part is sent again and then acknowledged.
        tapping.accepted(claim(0, 3), 3);
        assert_eq!(shown(&mut tap), [0, 1, 2]);
        tapping.forget(position(5), position(8));
        tapping.accepted(claim(8, 10), 2);
        tapping.accepted(claim(3, 5), 2);
        assert_eq!(shown(&mut tap), [8, 9, 3, 4]);
        send(&mut tapping, claim(5, 8));
        tapping.accepted(claim(5, 8), 3);
        assert_eq!(shown(&mut tap), [5, 6, 7]);
        assert_eq!(tap.take_skipped(), 0);
        assert!(tapping.samples.is_empty());
        assert!(shown(&mut other).is_empty() && other.take_skipped() == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_shown_is_counted_once() {
        let (mut tapping, taps) = tapping();
        let mut tap = taps.open(None).unwrap();
        assert!(tapping.begin(claim(0, 4)));
        tapping.copy(position(0), b"0");
        tapping.copy(position(1), &vec![b' '; 300_000]);
        tapping.copy(position(2), b"2");
        tapping.end(true);
        // The filter has dropped event 3, so three events were sent.
        tapping.accepted(claim(0, 4), 3);
        assert_eq!(shown(&mut tap), [0, 2]);
        assert_eq!(tap.take_skipped(), 1);

        // The event 5 is too long for the protocol.
        send(&mut tapping, claim(4, 6));
        tapping.accepted(claim(4, 5), 1);
        tapping.forget(position(5), position(6));
        assert_eq!((shown(&mut tap), tap.take_skipped()), (vec![4], 0));

        send(&mut tapping, claim(6, 8));
        tapping.forget(position(6), position(8));
        tapping.accepted(claim(6, 8), 2);
        assert_eq!((shown(&mut tap).len(), tap.take_skipped()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_copies_of_a_closed_tap_are_dropped() {
        let (mut tapping, taps) = tapping();
        let tap = taps.open(None).unwrap();
        send(&mut tapping, claim(0, 2));
        drop(tap);
        assert_eq!(tapping.samples.len(), 1);
        assert!(!tapping.begin(claim(2, 3)) && tapping.samples.is_empty());
        tapping.accepted(claim(0, 2), 2);
    }
}
