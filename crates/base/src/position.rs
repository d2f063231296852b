//! The number of an event in the log.
//!
//! A position is a type of its own, so that it can't be passed for a count of events, a byte number
//! or a file offset: those are plain `u64`.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// The number of an event: how many events were accepted before it. The first event of a queue has
/// the position 0. A queue on disk keeps counting after a restart; a queue in memory begins with 0
/// in each process.
///
/// A position plus a count of events is a position; the difference of two positions is a count. For
/// example, a range with the positions 10 to 14 starts at 10, ends at 15, and holds 15 - 10 = 5
/// events.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(u64);

impl Position {
    /// The position of the first event that a new queue accepts, 0.
    pub const START: Self = Self(0);

    /// A position that is greater than the position of every event. No queue ever accepts so many
    /// events.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes a position from its number, which is the number of events that were accepted before
    /// the event at this position.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the position as a plain number, as files, logs and commands show it.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns this position plus 1. This is the position of the event that is accepted directly
    /// after the event at this position.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Returns the number of events from the position `earlier` up to this position; 0 if `earlier`
    /// is not before this position. For example, from 10 up to 15 there are 5 events.
    pub const fn saturating_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the position that is `events` smaller than this one; [`Position::START`] if fewer
    /// than `events` events were accepted before this position.
    pub const fn saturating_back(self, events: u64) -> Self {
        Self(self.0.saturating_sub(events))
    }
}

impl Add<u64> for Position {
    type Output = Self;

    fn add(self, events: u64) -> Self {
        Self(self.0 + events)
    }
}

impl AddAssign<u64> for Position {
    fn add_assign(&mut self, events: u64) {
        self.0 += events;
    }
}

impl Sub for Position {
    /// The difference of two positions, which is a number of events.
    type Output = u64;

    fn sub(self, earlier: Self) -> u64 {
        self.0 - earlier.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Tests compare a position with a plain number.
impl PartialEq<u64> for Position {
    fn eq(&self, number: &u64) -> bool {
        self.0 == *number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_of_positions_is_a_number_of_events() {
        let (start, end) = (Position::new(10), Position::new(10) + 5);
        assert_eq!(end - start, 5);
        assert_eq!(end.saturating_since(start), 5);
        assert_eq!(start.saturating_since(end), 0);
        assert_eq!(start.saturating_back(11), Position::START);
        assert_eq!(Position::new(14).next(), end);
        assert_eq!(format!("{start:05} {end}"), "00010 15");
    }
}
