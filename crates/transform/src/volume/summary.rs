//! Counts the heaviest names of a stream in bounded memory: Space-Saving (Metwally, Agrawal and
//! El Abbadi, 2005) with weights.
//!
//! If there is no room for a new name, it takes the place of the lightest name. If the new name had
//! a place before and lost it, it can have missed at most the rank of the lightest name. A heavy
//! name therefore always has a place, and every error is known.
//!
//! Names are to be found by their bytes and by their events. So a name's rank adds both, as if each
//! event had [`EVENT_BYTES`] more bytes, and one bound holds for both.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::report::{Counted, PARTS, Row};
use super::sample::Weight;
use base::words::whole;

/// The bytes that each event adds to a name's rank: about those of an event at level Metadata.
const EVENT_BYTES: f64 = 1024.0;

/// The maximum memory of a tally without its name, in bytes. A hash table is at least 7/16 full.
pub(super) const TALLY_BYTES: usize = 16 * (size_of::<(Box<str>, Weight)>() + 1) / 7;

/// The number of standard errors within which 95 of 100 estimates lie.
const STANDARD_ERRORS: f64 = 2.0;

/// The tolerance for floating-point errors in rounding. Estimates are rounded down, so that their
/// sum is not more than the whole.
const ROUNDING: f64 = 1e-3;

impl Weight {
    fn rank(&self) -> f64 {
        let [bytes, events] = self.sum;
        bytes + EVENT_BYTES * events + self.missed
    }

    /// Returns the figures of a name, multiplied by `scale`. The errors include the difference that
    /// the scaling makes.
    fn row(&self, name: &str, scale: [f64; 2]) -> Row {
        let missed = [self.missed, self.missed / EVENT_BYTES];
        let [(bytes, bytes_error), (events, events_error)] = [0, 1].map(|unit| {
            let (sum, scale) = (self.sum[unit], scale[unit]);
            let variance = f64::from(self.variance[unit]);
            let error = missed[unit] + STANDARD_ERRORS * variance.sqrt();
            let error = error * scale.max(1.0) + sum * (1.0 - scale).abs();
            (whole((sum * scale + ROUNDING).floor()), whole((error - ROUNDING).ceil()))
        });
        let name = name.split(PARTS).map(str::to_owned).collect();
        Row { name, bytes, bytes_error, events, events_error }
    }
}

/// The heaviest names of one dimension.
#[derive(Debug, Clone, Default)]
pub(super) struct Summary {
    /// The names with their weights. Clients choose the names, and could choose ones with the same
    /// hash. The map is too small for that to matter, so the hash is a fast one.
    tallies: HashMap<Box<str>, Weight, RandomState>,
    /// The maximum number of names.
    room: usize,
    /// The highest rank that a name without a tally can have.
    absent: f64,
}

impl Summary {
    pub(super) fn new(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    pub(super) fn add(&mut self, name: Box<str>, mut weight: Weight) {
        if let Some(tally) = self.tallies.get_mut(&name) {
            tally.add(weight);
            return;
        }
        if self.tallies.len() >= self.room {
            let lightest = self.tallies.iter().min_by(|a, b| a.1.rank().total_cmp(&b.1.rank()));
            let Some((lightest, tally)) = lightest else { return };
            (self.absent, _) =
                (self.absent.max(tally.rank()), self.tallies.remove(&lightest.clone()));
        }
        // The first sample of a name counts double in the variance. Otherwise the error of a name
        // with few samples would be too small: by chance, few of its many bytes may have been
        // drawn.
        weight.variance = weight.variance.map(|variance| 2.0 * variance);
        weight.missed = self.absent;
        self.tallies.insert(name, weight);
    }

    /// Adds the summary of another time. The sum has room for the names of both summaries.
    pub(super) fn join(&mut self, other: &Self) {
        // A name that is in only one of the summaries can have missed the `absent` of the other.
        self.tallies.values_mut().for_each(|tally| tally.missed += other.absent);
        for (name, tally) in &other.tallies {
            let new = Weight { missed: self.absent + other.absent, ..Weight::default() };
            let own = self.tallies.entry(name.clone()).or_insert(new);
            own.add(*tally);
            own.missed -= other.absent;
        }
        self.absent += other.absent;
    }

    /// Keeps the heaviest names for which `bytes_max` bytes of memory suffice.
    pub(super) fn shrink(&mut self, bytes_max: usize) {
        let mut all: Vec<_> = std::mem::take(&mut self.tallies).into_iter().collect();
        all.sort_by(|a, b| b.1.rank().total_cmp(&a.1.rank()).then_with(|| a.0.cmp(&b.0)));
        let mut bytes = 0;
        let fits = |(name, _): &&(Box<str>, Weight)| {
            bytes += TALLY_BYTES + name.len();
            bytes <= bytes_max
        };
        let kept = all.iter().take_while(fits).count();
        if let Some((_, first)) = all.get(kept) {
            self.absent = self.absent.max(first.rank());
        }
        all.truncate(kept);
        self.tallies = all.into_iter().collect();
    }

    /// Returns the names as `/status/volume` lists them. Estimates are multiplied by `scale`.
    pub(super) fn counted(&self, scale: [f64; 2]) -> Counted {
        let rows = self.tallies.iter().map(|(name, tally)| tally.row(name, scale)).collect();
        let absent = [self.absent * scale[0], self.absent / EVENT_BYTES * scale[1]];
        Counted::new(rows, absent.map(|most| whole(most.ceil())))
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        let buckets = (self.tallies.capacity() * 8).div_ceil(7).next_power_of_two();
        let table = buckets * (size_of::<(Box<str>, Weight)>() + 1) + 16;
        // The allocator's size classes are at most an eighth apart.
        let names = self.tallies.keys().map(|name| name.len() * 9 / 8 + 8);
        table + names.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn weight(bytes: u32) -> Weight {
        Weight { sum: [f64::from(bytes), 1.0], ..Weight::default() }
    }

    /// Returns the true bytes and events of each name.
    fn truth(stream: &[(u8, u32)]) -> BTreeMap<String, (u64, u64)> {
        let mut truth = BTreeMap::<_, (u64, u64)>::new();
        for (name, bytes) in stream {
            let own = truth.entry(name.to_string()).or_default();
            own.0 += u64::from(*bytes);
            own.1 += 1;
        }
        truth
    }

    proptest! {
        /// A listed name has at least its figure, and at most its figure and error together. An
        /// unlisted name has at most the bound. Both are true even after parts are added up and
        /// cut.
        #[test]
        fn every_figure_is_within_its_bound(
            parts in prop::collection::vec(
                prop::collection::vec((0_u8..60, 1_u32..5000), 0..200), 1..4),
            room in 1_usize..40,
            bytes_max in 0_usize..6000,
        ) {
            let summaries = parts.iter().map(|stream| {
                let mut summary = Summary::new(room);
                stream.iter().for_each(|(name, bytes)| {
                    summary.add(name.to_string().into(), weight(*bytes));
                });
                summary.shrink(bytes_max);
                summary
            });
            let mut sum = Summary::default();
            summaries.for_each(|summary| sum.join(&summary));
            let counted = sum.counted([1.0; 2]);
            for (name, (bytes, events)) in truth(&parts.concat()) {
                match counted.rows.iter().find(|row| row.name == [name.clone()]) {
                    Some(row) => {
                        prop_assert!((row.bytes..=row.bytes + row.bytes_error).contains(&bytes));
                        prop_assert!((row.events..=row.events + row.events_error).contains(&events));
                    }
                    None => {
                        prop_assert!(bytes <= counted.unlisted_bytes_estimate, "{name}");
                        prop_assert!(events <= counted.unlisted_events_estimate, "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn with_room_for_all_nothing_is_estimated() {
        let mut summary = Summary::new(3);
        for (name, bytes) in [("a", 5), ("b", 9), ("a", 5), ("c", 1)] {
            summary.add(name.into(), weight(bytes));
        }
        let counted = summary.counted([1.0; 2]);
        let rows: Vec<_> = counted.rows.iter().map(|it| (&*it.name[0], it.bytes)).collect();
        assert_eq!(rows, [("a", 10), ("b", 9), ("c", 1)]);
        assert!(counted.rows.iter().all(|row| (row.bytes_error, row.events_error) == (0, 0)));
        assert_eq!((counted.unlisted_bytes_estimate, counted.unlisted_events_estimate), (0, 0));
    }
}
