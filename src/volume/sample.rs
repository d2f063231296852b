//! Draws bytes of a batch, and finds the events that hold them.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::facts::Names;
use super::facts::Settings;
use crate::words::whole;

/// The number of events per second that are read while the rate is steady.
const SAMPLES_PER_SECOND: f64 = 100.0;

/// The time over which the rate of bytes is measured.
const INTERVAL: Duration = Duration::from_secs(1);

/// The greatest number of strides in the bytes of an interval that have come so far. It limits what
/// a burst after a quiet time costs.
const STRIDES_MAX: usize = 1024;

/// What was sampled of a batch that is not accepted yet.
#[derive(Debug, Default)]
pub struct Seen {
    /// The settings by which the names were redacted.
    pub(super) settings: Option<Arc<Settings>>,
    pub(super) bytes: u64,
    pub(super) events: u64,
    pub(super) samples: Vec<Sample>,
}

/// A sampled event, and what it stands for.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) names: Names,
    pub(super) weight: Weight,
}

/// The numbers of bytes and of events, in this order, for which sampled events stand.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Weight {
    /// The events that were certain to be drawn.
    pub(super) exact: [f64; 2],
    /// Estimates from all others.
    pub(super) drawn: [f64; 2],
    /// Upper bounds of the variances of the estimates.
    pub(super) variance: [f32; 2],
}

impl Weight {
    /// Returns the weight of an event of `bytes` bytes of which `hits` bytes were drawn.
    #[expect(clippy::cast_possible_truncation, reason = "an error needs no more digits")]
    fn new(bytes: usize, hits: usize, stride: usize) -> Self {
        // Such an event holds a whole stride, so that it was certain to be drawn.
        if bytes >= 2 * stride {
            return Self { exact: [bytes as f64, 1.0], ..Self::default() };
        }
        let (hits, each) = (hits as f64, [stride as f64, stride as f64 / bytes as f64]);
        let variance = each.map(|each| (hits * each * each) as f32);
        Self { drawn: each.map(|each| hits * each), variance, ..Self::default() }
    }

    /// Adds another weight.
    pub(super) fn add(&mut self, other: Self) {
        for unit in 0..2 {
            self.exact[unit] += other.exact[unit];
            self.drawn[unit] += other.drawn[unit];
            self.variance[unit] += other.variance[unit];
        }
    }
}

/// Chooses the stride from the rate of bytes.
pub(super) struct Pace {
    /// The beginning of this interval.
    since: Instant,
    /// The bytes that have come in this interval.
    bytes: usize,
    /// The stride that the last interval asks for.
    stride: usize,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, stride: 1 }
    }

    /// Returns the stride for a batch of this many bytes. It depends on sizes and times alone, so
    /// that the estimates stay unbiased.
    pub(super) fn stride(&mut self, bytes: usize, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.since);
        if passed >= INTERVAL {
            let rate = self.bytes as f64 / passed.as_secs_f64();
            let stride = whole(rate / SAMPLES_PER_SECOND);
            *self =
                Self { stride: usize::try_from(stride).unwrap_or(usize::MAX), ..Self::new(now) };
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.stride.max(self.bytes.div_ceil(STRIDES_MAX)).max(1)
    }
}

/// Draws one byte of each stride, and adds the events that hold these bytes to `samples`. `lines`
/// are events with a line break behind each; with `list`, the bytes at these offsets are behind the
/// events. The last stride may be longer than what is left of the lines, so that its byte may be
/// none of theirs.
pub(super) fn draw(
    lines: &[u8],
    list: Option<&[u32]>,
    stride: usize,
    random: &mut Rng,
    names: impl Fn(&[u8]) -> Names,
    samples: &mut Vec<Sample>,
) {
    let (mut start, mut end, mut hits) = (0, 0, 0);
    let mut sampled = |start: usize, end: usize, hits: usize| {
        let event = lines.get(start..end).filter(|_| hits > 0);
        samples.extend(event.map(|event| Sample {
            names: names(event.split_last().map_or(event, |(_, event)| event)),
            weight: Weight::new(event.len(), hits, stride),
        }));
    };
    for first in (0..lines.len()).step_by(stride) {
        let at = first + random.usize(..stride);
        let Some(behind) = lines.get(at..).filter(|behind| !behind.is_empty()) else { break };
        if at < end {
            hits += 1;
            continue;
        }
        sampled(start, end, hits);
        (start, end) = match list {
            Some(list) => {
                let next = list.partition_point(|end| (*end as usize) < at);
                let after = |end: &u32| *end as usize + 1;
                let before = next.checked_sub(1).and_then(|last| list.get(last)).map_or(0, after);
                (before, list.get(next).map_or(lines.len(), after))
            }
            None => (
                memchr::memrchr(b'\n', &lines[end..at]).map_or(end, |found| end + found + 1),
                memchr::memchr(b'\n', behind).map_or(lines.len(), |found| at + found + 1),
            ),
        };
        hits = 1;
    }
    sampled(start, end, hits);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(sizes: &[usize]) -> Vec<u8> {
        sizes.iter().flat_map(|size| [vec![b'x'; size - 1], vec![b'\n']].concat()).collect()
    }

    fn drawn(lines: &[u8], stride: usize, random: &mut Rng) -> Vec<(usize, Weight)> {
        let mut samples = Vec::new();
        let names = |event: &[u8]| {
            let mut names = Names::default();
            names[0] = Some((event.len() + 1).to_string().into());
            names
        };
        draw(lines, None, stride, random, names, &mut samples);
        let name = |sample: &Sample| sample.names[0].as_deref().unwrap().parse().unwrap();
        samples.iter().map(|sample| (name(sample), sample.weight)).collect()
    }

    #[test]
    fn a_list_is_sampled_as_its_lines_are() {
        let sizes = [100, 2, 999, 1400, 3, 700, 1];
        let lines = lines(&sizes);
        let list: Vec<u8> = lines.iter().map(|b| if *b == b'\n' { b',' } else { *b }).collect();
        let ends = memchr::memchr_iter(b'\n', &lines).map(|end| u32::try_from(end).unwrap());
        let ends: Vec<u32> = ends.collect();
        for stride in [1, 10, 300, 5000] {
            let sampled = |text: &[u8], ends: Option<&[u32]>| {
                let (mut samples, mut random) = (Vec::new(), Rng::with_seed(stride as u64));
                let size = |event: &[u8]| {
                    assert!(event.iter().all(|byte| *byte == b'x'));
                    let mut names = Names::default();
                    names[0] = Some(event.len().to_string().into());
                    names
                };
                draw(text, ends, stride, &mut random, size, &mut samples);
                let of = |sample: Sample| (sample.names[0].clone(), sample.weight);
                samples.into_iter().map(of).collect::<Vec<_>>()
            };
            assert_eq!(sampled(&list, Some(&ends)), sampled(&lines, None), "{stride}");
        }
    }

    #[test]
    fn small_strides_find_every_event_and_count_it_exactly() {
        let (lines, mut random) = (lines(&[20, 21, 500, 22]), Rng::with_seed(1));
        let drawn = drawn(&lines, 10, &mut random);
        let expected = [20, 21, 500, 22]
            .map(|size: usize| (size, Weight { exact: [size as f64, 1.0], ..Weight::default() }));
        assert_eq!(drawn, expected);
    }

    /// A client that knows the stride cannot hide: not by the size of its events, and not by their
    /// place in a batch.
    #[test]
    fn each_event_is_expected_to_count_what_it_is_wherever_it_stands() {
        let sizes = [100, 1, 999, 100, 1400, 3, 700, 1];
        let (lines, mut random) = (lines(&sizes), Rng::with_seed(2));
        let (rounds, stride) = (40_000, 1000);
        let mut sums = std::collections::BTreeMap::<usize, Weight>::new();
        for _ in 0..rounds {
            for (size, weight) in drawn(&lines, stride, &mut random) {
                sums.entry(size).or_default().add(weight);
            }
        }
        for (size, sum) in sums {
            let times = sizes.iter().filter(|one| **one == size).count() as f64;
            let [bytes, events] =
                [0, 1].map(|unit| (sum.exact[unit] + sum.drawn[unit]) / f64::from(rounds));
            let error = 4.0 * f64::from(sum.variance[0]).sqrt() / f64::from(rounds);
            let truth = times * size as f64;
            assert!((bytes - truth).abs() <= error.max(0.01), "{size}: {bytes} ± {error}");
            assert!((events - times).abs() <= error.max(0.01) / size as f64, "{size}: {events}");
        }
    }

    #[test]
    fn the_stride_follows_the_rate_and_a_burst_is_limited() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let at = |millis: u64| start + Duration::from_millis(millis);
        // A burst after silence: the strides of each batch stay few.
        let mut strides = 0;
        for _ in 0..250 {
            strides += 600_000_usize.div_ceil(pace.stride(600_000, at(500)));
        }
        assert!(strides < 8 * STRIDES_MAX, "{strides}");
        // 150 MB in a second give 100 samples in the next one.
        assert_eq!(pace.stride(600_000, at(1000)), 1_500_000);
        // After a quiet time, all of a small batch is read.
        assert_eq!(pace.stride(5_000, at(60_000)), 102);
        assert_eq!(pace.stride(5_000, at(120_000)), 5);
    }
}
