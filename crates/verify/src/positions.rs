//! A set of positions, kept as ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of positions. The map has one entry for each range: its first position, and the position
/// after its last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Positions(BTreeMap<u64, u64>);

impl Positions {
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        let touching = self.0.range(..=end).rev().take_while(|(_, last)| **last >= start);
        let touching: Vec<_> = touching.map(|(first, last)| (*first, *last)).collect();
        for (first, last) in touching {
            self.0.remove(&first);
            (start, end) = (start.min(first), end.max(last));
        }
        self.0.insert(start, end);
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        let touched = self.0.range(..range.end).rev().take_while(|(_, end)| **end > range.start);
        for (start, end) in touched.map(|(start, end)| (*start, *end)).collect::<Vec<_>>() {
            self.0.remove(&start);
            self.insert(start..range.start);
            self.insert(range.end..end);
        }
    }

    /// Returns the number of ranges, to which the memory of the set is proportional.
    pub(crate) fn facts(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }

    /// Returns the parts of a range that are in the set, sorted.
    pub(crate) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let before = self.0.range(..range.start).next_back();
        let from = self.0.range(range.start..range.end.max(range.start));
        let cut =
            move |(start, end): (&u64, &u64)| (*start).max(range.start)..(*end).min(range.end);
        before.into_iter().chain(from).map(cut).filter(|part| !part.is_empty())
    }

    /// Returns the parts of a range that are not in the set, sorted.
    pub(crate) fn missing_in(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let (mut next, end) = (range.start, range.end);
        let mut missing = Vec::new();
        for part in self.within(range) {
            if next < part.start {
                missing.push(next..part.start);
            }
            next = part.end;
        }
        if next < end {
            missing.push(next..end);
        }
        missing
    }

    pub(crate) fn contains(&self, position: u64) -> bool {
        self.0.range(..=position).next_back().is_some_and(|(_, end)| position < *end)
    }

    pub(crate) fn len(&self) -> u64 {
        self.ranges().map(|range| range.end - range.start).sum()
    }

    pub(super) fn len_within(&self, range: Range<u64>) -> u64 {
        self.within(range).map(|part| part.end - part.start).sum()
    }
}

impl Extend<Range<u64>> for Positions {
    fn extend<T: IntoIterator<Item = Range<u64>>>(&mut self, ranges: T) {
        ranges.into_iter().for_each(|range| self.insert(range));
    }
}

impl FromIterator<Range<u64>> for Positions {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(ranges: T) -> Self {
        let mut positions = Self::default();
        positions.extend(ranges);
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_as_a_list_of_all_its_positions() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..300 {
            let (mut set, mut list) = (Positions::default(), [false; 60]);
            for _ in 0..rng.usize(..12) {
                let start = rng.usize(..60);
                let end = rng.usize(start..60);
                let (from, to) = (start as u64, end as u64);
                let is_added = rng.u8(..4) > 0;
                if is_added {
                    set.insert(from..to)
                } else {
                    set.remove(from..to)
                }
                list[start..end].fill(is_added);
            }
            let start = rng.usize(..60);
            let end = rng.usize(start..60);
            let (from, to) = (start as u64, end as u64);
            let held: Vec<u64> = set.within(from..to).flatten().collect();
            let missing: Vec<u64> = set.missing_in(from..to).into_iter().flatten().collect();
            let all = |is: bool| -> Vec<u64> {
                (start..end).filter(|at| list[*at] == is).map(|at| at as u64).collect()
            };
            assert_eq!((held, missing), (all(true), all(false)));
            assert_eq!(set.len(), list.iter().filter(|is| **is).count() as u64);
            assert_eq!(set.len_within(from..to), all(true).len() as u64);
            assert!((0..60).all(|at| set.contains(at as u64) == list[at]));
        }
    }
}
