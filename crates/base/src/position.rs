//! The number of an event, as a type that can't be confused with a count or an offset (`u64`).

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// The number of an event in the order of the queue, counted from 0. A queue on disk continues to
/// count after a restart; a queue in memory begins again with 0.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(u64);

impl Position {
    /// The position of the first event of a new queue.
    pub const START: Self = Self(0);

    /// The greatest position, which no event has.
    pub const MAX: Self = Self(u64::MAX);

    /// Makes a position from its number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number, as files, logs and commands show it.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the position of the next event.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Returns the number of events from `earlier` up to this position; 0 if `earlier` is later.
    pub const fn saturating_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the position that is `events` before this one; at least [`Position::START`].
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
