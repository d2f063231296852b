//! The ranges of positions of objects. A range is decided once, and stored with the queue. The same
//! events therefore make the same objects after a reload and, if the queue has a directory, after a
//! crash.
//!
//! A range stays there until the queue reports that its events are final. Only the plan that saw an
//! object stored trusts that the server has it. After a reload or a start, the filter may give the
//! events another form, or drop different events. The object is therefore made again. Its name has
//! a hash of the lines, so the server can tell whether it is the same object.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use base::lock::lock;
use queue::{Claim, Notes, Position};

/// The maximum number of ranges. The limit is reached only if the queue's files were not saved
/// while this many objects were stored. The oldest ranges are then forgotten.
const RANGES_MAX: usize = 4096;

/// The positions of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Range {
    first: u64,
    last: u64,
    /// `true` if this plan knows that the server has the object. The value is saved only because
    /// older programs can't read a range without the value; [`Plan::load`] does not trust it.
    #[serde(default)]
    stored: bool,
}

impl Range {
    /// Makes the range of an object that is not stored yet. The claim must have a position.
    pub(super) fn new(claim: Claim) -> Self {
        let last = claim.end.get().saturating_sub(1);
        Self { first: claim.start.get(), last, stored: false }
    }

    pub(super) fn claim(&self) -> Claim {
        Claim { start: Position::new(self.first), end: Position::new(self.last).next() }
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// The object to which an event belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// An object that the server has. It ends before this position.
    Stored(Position),
    /// An object whose range was already decided, and that may already be stored. It ends before
    /// this position.
    Planned(Position),
    /// A new object. It must end before this position, because another object begins there.
    Before(Position),
    /// A new object.
    Free,
}

/// The ranges of an output's objects. Links of the same output use one plan, one after the other.
#[derive(Debug)]
pub(super) struct Plan {
    /// The name of the output, for the log.
    output: Arc<str>,
    /// The ranges, in the order of the queue. No two overlap.
    ranges: Mutex<Vec<Range>>,
    /// Held while the ranges are changed and saved, and never by an async task. The value is `true`
    /// if the last save has failed, so that the log already has the message.
    saving: Mutex<bool>,
    notes: Notes,
}

impl Plan {
    /// Reads the plan of an earlier delivery. Blocks the thread.
    ///
    /// # Errors
    ///
    /// The notes can't be read. Notes with a wrong checksum, or with a text that is not a list of
    /// ranges, are not an error: the plan is then empty, so events may be stored twice, but none is
    /// lost.
    pub(super) fn load(output: Arc<str>, notes: Notes) -> io::Result<Self> {
        let parse = |text: Vec<u8>| -> io::Result<Vec<Range>> {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            serde_json::from_slice(&text).map_err(invalid)
        };
        let loaded = notes.load().and_then(|text| text.map(parse).transpose());
        let mut ranges = match loaded {
            Ok(ranges) => ranges.unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(
                    output = &*output,
                    %error,
                    "the saved state of unfinished S3 objects is damaged: their events are stored \
                     again, in other objects"
                );
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        // If the events of the directory were removed, positions begin at 0 again.
        let end = notes.end().get();
        ranges.retain(|range| range.last < end);
        ranges.iter_mut().for_each(|range| range.stored = false);
        Ok(Self { output, ranges: Mutex::new(ranges), saving: Mutex::default(), notes })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Range>> {
        lock(&self.ranges)
    }

    /// Returns the object to which the event at `position` belongs.
    pub(super) fn place(&self, position: Position) -> Place {
        let ranges = self.lock();
        let Some(range) = ranges.iter().find(|range| range.last >= position.get()) else {
            return Place::Free;
        };
        let end = Position::new(range.last).next();
        match (range.first <= position.get(), range.stored) {
            (false, _) => Place::Before(Position::new(range.first)),
            (true, true) => Place::Stored(end),
            (true, false) => Place::Planned(end),
        }
    }

    /// Records that an object with this range is stored next, and saves the ranges. A new range
    /// replaces all ranges that overlap it, and ranges whose events are final are forgotten. Blocks
    /// the thread.
    pub(super) fn begin(&self, range: Range) {
        let settled = self.notes.settled().get();
        self.change(|ranges| {
            if !ranges.contains(&range) {
                ranges.retain(|it| it.last >= settled && !it.overlaps(&range));
                let index = ranges.partition_point(|it| it.first < range.first);
                ranges.insert(index, range);
                let excess = ranges.len().saturating_sub(RANGES_MAX);
                ranges.drain(..excess);
            }
        });
    }

    /// Notes that the server has the object with this range.
    pub(super) fn stored(&self, range: Range) {
        self.lock().iter_mut().for_each(|it| it.stored |= *it == range);
    }

    /// Changes the ranges, and saves them. A failure to save is only logged, because the relay must
    /// deliver events even if the disk can't be written. The next change saves all ranges again.
    fn change(&self, change: impl FnOnce(&mut Vec<Range>)) {
        // One change is saved after the other.
        let mut is_told = lock(&self.saving);
        let ranges = {
            let mut ranges = self.lock();
            change(&mut ranges);
            ranges.clone()
        };
        let text = serde_json::to_vec(&ranges).map_err(io::Error::other);
        match text.and_then(|text| self.notes.store(&text)) {
            Ok(()) => *is_told = false,
            Err(error) => {
                if !std::mem::replace(&mut *is_told, true) {
                    tracing::warn!(
                        output = &*self.output,
                        %error,
                        "cannot save the state of the current S3 object: if the relay is killed \
                         now, its events may be stored twice"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, end: u64) -> Range {
        Range::new(Claim::of(first, end))
    }

    #[test]
    fn an_event_belongs_to_the_object_that_was_planned_for_it() {
        let plan = Plan::load(Arc::from("o"), Notes::empty()).unwrap();
        let place = |position| plan.place(Position::new(position));
        let planned = |end| Place::Planned(Position::new(end));
        assert_eq!(place(0), Place::Free);
        plan.begin(range(0, 10));
        assert_eq!([place(0), place(9), place(10)], [planned(10), planned(10), Place::Free]);
        plan.stored(range(0, 10));
        assert_eq!(place(9), Place::Stored(Position::new(10)));
        plan.begin(range(20, 30));
        assert_eq!(place(15), Place::Before(Position::new(20)));
        // An object that ended at another position, because events were lost in the meantime.
        plan.begin(range(22, 28));
        assert_eq!([place(21), place(27)], [Place::Before(Position::new(22)), planned(28)]);
    }

    #[test]
    fn the_next_plan_does_not_know_which_objects_the_server_has() {
        let notes = Notes::empty();
        let plan = Plan::load(Arc::from("o"), notes.clone()).unwrap();
        plan.begin(range(0, 10));
        plan.stored(range(0, 10));
        plan.begin(range(10, 20));
        assert_eq!(plan.place(Position::START), Place::Stored(Position::new(10)));
        let next = Plan::load(Arc::from("o"), notes).unwrap();
        assert_eq!(next.place(Position::START), Place::Planned(Position::new(10)));
    }

    #[test]
    fn notes_that_are_not_a_list_of_ranges_do_not_stop_the_output() {
        let notes = Notes::empty();
        notes.store(b"{\"ranges\": []}").unwrap();
        let plan = Plan::load(Arc::from("o"), notes).unwrap();
        assert_eq!(plan.place(Position::START), Place::Free);
    }
}
