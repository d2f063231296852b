//! Durations of the last minutes and their quantiles, in bounded memory. `/status` shows from them
//! how long responses and deliveries take now; the histograms of `/metrics` count since the start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::time::Instant;

use base::lock::lock;

/// The number of minutes in a [`RecentTimes`]: the present one, and those before it.
const MINUTES: usize = 5;

const MINUTE_SECONDS: u64 = 60;

/// The binary logarithm of the number of buckets for each power of two. With 8 buckets, each time
/// of at least 8 µs differs from the middle of its bucket by at most 6.3 %.
const PARTS_BITS: u32 = 3;

/// The last bucket also counts all times of 2^37 µs (38 hours) or more.
const LONGEST_BITS: u32 = 37;

/// The number of buckets: one for each microsecond below 8 µs, and 8 for each power of two above.
const BUCKETS: usize = ((LONGEST_BITS - PARTS_BITS + 1) << PARTS_BITS) as usize;

/// The quantiles of recent times. Each differs from a recorded time by at most 6.3 %, or by 0.5 µs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    /// Half of the times are shorter than this one, in seconds.
    pub p50: f64,
    /// 99 of a hundred times are shorter than this one, in seconds.
    pub p99: f64,
}

/// The durations of the last four to five minutes, as counts in buckets: at most 6 KiB.
#[derive(Debug)]
pub struct RecentTimes {
    begun: Instant,
    minutes: [Minute; MINUTES],
}

#[derive(Debug, Default, Clone)]
struct Minute {
    /// The number of the minute, counted from 0 at [`RecentTimes::begun`].
    number: u64,
    /// Empty if nothing was ever recorded here.
    counts: Vec<u32>,
}

fn bucket(took: Duration) -> usize {
    let longest = (1 << LONGEST_BITS) - 1;
    let micros = u64::try_from(took.as_micros()).unwrap_or(longest).min(longest);
    let bits = u64::BITS - micros.leading_zeros();
    // The value without its lowest bits is between 8 and 15, or the value itself if it is smaller.
    let shift = bits.saturating_sub(PARTS_BITS + 1);
    let index = (u64::from(shift) << PARTS_BITS) + (micros >> shift);
    usize::try_from(index).unwrap_or_default()
}

/// Returns the middle of a bucket, in seconds.
fn middle(bucket: usize) -> f64 {
    let parts = 1 << PARTS_BITS;
    let shift = (bucket / parts).saturating_sub(1);
    let first = (bucket - shift * parts) << shift;
    (first as f64 + (1_u64 << shift) as f64 / 2.0) / 1e6
}

impl RecentTimes {
    /// Makes an empty value. Its minutes are counted from `now`.
    pub fn new(now: Instant) -> Self {
        Self { begun: now, minutes: Default::default() }
    }

    fn minute(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begun).as_secs() / MINUTE_SECONDS
    }

    /// Records a duration that has ended at `now`.
    pub fn record(&mut self, took: Duration, now: Instant) {
        let number = self.minute(now);
        let slot = usize::try_from(number).unwrap_or_default() % MINUTES;
        let Some(minute) = self.minutes.get_mut(slot) else { return };
        if minute.number != number || minute.counts.is_empty() {
            minute.number = number;
            minute.counts.clear();
            minute.counts.resize(BUCKETS, 0);
        }
        if let Some(count) = minute.counts.get_mut(bucket(took)) {
            *count = count.saturating_add(1);
        }
    }

    /// Returns the quantiles of the times of the last minutes; `None` if there were none.
    pub fn quantiles(&self, now: Instant) -> Option<Quantiles> {
        self.quantiles_of(MINUTES as u64, now)
    }

    /// Returns the quantiles of this many minutes, the present one included; `None` without times.
    pub(super) fn quantiles_of(&self, minutes: u64, now: Instant) -> Option<Quantiles> {
        let oldest = (self.minute(now) + 1).saturating_sub(minutes);
        let mut counts = [0_u64; BUCKETS];
        for minute in self.minutes.iter().filter(|minute| minute.number >= oldest) {
            for (sum, count) in counts.iter_mut().zip(&minute.counts) {
                *sum += u64::from(*count);
            }
        }
        let all: u64 = counts.iter().sum();
        let of = |per_cent: u64| {
            let rank = (all * per_cent).div_ceil(100).max(1);
            let mut before = 0;
            let reached = |count: &u64| {
                before += count;
                before >= rank
            };
            counts.iter().position(reached).map(middle)
        };
        Some(Quantiles { p50: of(50)?, p99: of(99)? })
    }
}

/// The durations of each output or listener, by name. They exist as long as somebody holds them.
#[derive(Default)]
pub(super) struct TimesByName(Mutex<BTreeMap<String, Weak<Mutex<RecentTimes>>>>);

impl TimesByName {
    pub(crate) fn of(&self, name: &str) -> Arc<Mutex<RecentTimes>> {
        let mut all = lock(&self.0);
        if let Some(times) = all.get(name).and_then(Weak::upgrade) {
            return times;
        }
        all.retain(|_, times| times.strong_count() > 0);
        let times = Arc::new(Mutex::new(RecentTimes::new(Instant::now())));
        all.insert(name.to_owned(), Arc::downgrade(&times));
        times
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_bucket_is_near_each_time_in_it() {
        let mut last = 0;
        for step in 0..200_000_u64 {
            // The step grows, so that the times go from 0 to beyond the longest one.
            let micros = step + step.pow(3) / 50_000;
            let (index, real) = (bucket(Duration::from_micros(micros)), micros as f64 / 1e6);
            assert!((last..BUCKETS).contains(&index), "{micros}: {index} after {last}");
            last = index;
            if micros < 1 << LONGEST_BITS {
                let wrong = (middle(index) - real).abs();
                assert!(wrong <= (real * 0.063).max(0.000_000_51), "{real}: {}", middle(index));
            }
        }
        assert_eq!((last, bucket(Duration::MAX)), (BUCKETS - 1, BUCKETS - 1));
    }

    #[tokio::test(start_paused = true)]
    async fn quantiles_are_those_of_the_last_minutes() {
        let mut times = RecentTimes::new(Instant::now());
        assert_eq!(times.quantiles(Instant::now()), None);
        for _ in 0..99 {
            times.record(Duration::from_millis(50), Instant::now());
        }
        times.record(Duration::from_millis(800), Instant::now());
        let near = |value: f64, wanted: f64| (value - wanted).abs() <= wanted * 0.063;
        let Quantiles { p50, p99 } = times.quantiles(Instant::now()).unwrap();
        assert!(near(p50, 0.05) && near(p99, 0.05), "{p50} {p99}");
        times.record(Duration::from_millis(800), Instant::now());
        let Quantiles { p50, p99 } = times.quantiles(Instant::now()).unwrap();
        assert!(near(p50, 0.05) && near(p99, 0.8), "{p50} {p99}");
        tokio::time::advance(Duration::from_secs(239)).await;
        assert!(times.quantiles(Instant::now()).is_some(), "four minutes count");
        times.record(Duration::from_secs(3), Instant::now());
        tokio::time::advance(Duration::from_secs(61)).await;
        let Quantiles { p50, p99 } = times.quantiles(Instant::now()).unwrap();
        assert!(near(p50, 3.0) && near(p99, 3.0), "the older ones are forgotten: {p50} {p99}");
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(times.quantiles(Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_of_a_million_times_is_that_of_a_few() {
        let mut times = RecentTimes::new(Instant::now());
        for _ in 0..100_000 {
            times.record(Duration::from_millis(7), Instant::now());
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        let bytes: usize = times.minutes.iter().map(|it| it.counts.capacity() * 4).sum();
        assert!(bytes <= 6 * 1024, "{bytes}");
    }
}
