//! Draws bytes of a batch, and finds the events that hold them.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::facts::Names;
use crate::redact::Redaction;
use base::words::whole;

/// The number of events per second that are read while the rate is steady. After 10,000 samples,
/// two standard errors of a share of the bytes are at most one percentage point.
const SAMPLES_PER_SECOND: f64 = 50.0;

/// The time over which the rate of bytes is measured.
const INTERVAL: Duration = Duration::from_secs(1);

/// The maximum number of strides in the bytes that an interval has received so far. This limits the
/// cost of a burst after a quiet time.
const STRIDES_MAX: usize = 1024;

/// The sample of a batch, before the batch is accepted.
#[derive(Debug, Default)]
pub struct Seen {
    pub(super) redaction: Option<Arc<Redaction>>,
    pub(super) bytes: u64,
    pub(super) events: u64,
    /// The kube-apiservers whose own events are in the batch.
    pub(super) apiservers: Vec<Box<str>>,
    /// The digits of the probes in the batch.
    pub(super) probes: Vec<Box<str>>,
    /// The names of sampled events, and the bytes and events for which they stand.
    pub(super) samples: Vec<(Names, Weight)>,
}

/// The bytes and the events for which sampled events stand. Each array has the bytes first.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Weight {
    pub(super) sum: [f64; 2],
    /// Upper bounds of the variances of the sums; 0 if these are exact.
    pub(super) variance: [f32; 2],
    /// The most that can be missing from the sums, as a rank (bytes, plus a fixed number of bytes
    /// for each event): what the name may have gained while it had no place in a `Summary`.
    pub(super) missed: f64,
}

impl Weight {
    pub(super) fn add(&mut self, other: Self) {
        for unit in 0..2 {
            self.sum[unit] += other.sum[unit];
            self.variance[unit] += other.variance[unit];
        }
        self.missed += other.missed;
    }
}

/// Chooses the stride from the rate of bytes.
pub(super) struct Pace {
    /// The beginning of the current interval.
    since: Instant,
    /// The bytes that were received in this interval.
    bytes: usize,
    /// The stride for the rate of the last interval.
    stride: usize,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0, stride: 1 }
    }

    /// Returns the stride for a batch of this many bytes. The stride depends on sizes and times
    /// alone, so that the estimates stay unbiased.
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

/// Draws one byte of each stride, and adds the events that hold these bytes to `samples`. The last
/// stride may be longer than the rest of the lines, so that its byte may be in no event. If the
/// lines have `stride` bytes or more per event, all events are read instead, and count exactly.
/// Each event ends before a line break or, if there is a `list`, before the byte at the next offset
/// in it.
#[expect(clippy::cast_possible_truncation, reason = "an error needs no more digits")]
pub(super) fn draw(
    lines: &[u8],
    list: Option<&[u32]>,
    (events, stride): (u64, usize),
    random: &mut Rng,
    names: impl Fn(&[u8]) -> Names,
    samples: &mut Vec<(Names, Weight)>,
) {
    let is_all = lines.len() as u64 >= events.saturating_mul(stride as u64);
    let strides = (0..lines.len()).step_by(stride);
    let mut drawn = strides.map(|start| start + random.usize(..stride)).peekable();
    let mut next = 0;
    loop {
        let at = if is_all { Some(next) } else { drawn.next() };
        let Some(at) = at.filter(|at| *at < lines.len()) else { return };
        let (start, end) = bounds(lines, list, at);
        let mut weight = Weight { sum: [(end - start) as f64, 1.0], ..Weight::default() };
        if !is_all {
            let mut hits = 1.0;
            while drawn.next_if(|at| *at < end).is_some() {
                hits += 1.0;
            }
            let each = [stride as f64, stride as f64 / (end - start) as f64];
            weight.sum = each.map(|each| hits * each);
            weight.variance = each.map(|each| (hits * each * each) as f32);
        }
        samples.push((names(&lines[start..end - 1]), weight));
        next = end;
    }
}

/// Returns the offset at which the event with the byte `at` begins, and the offset at which the
/// next event begins.
pub(super) fn bounds(lines: &[u8], list: Option<&[u32]>, at: usize) -> (usize, usize) {
    let Some(list) = list else {
        let start = memchr::memrchr(b'\n', &lines[..at]).map_or(0, |found| found + 1);
        let end = memchr::memchr(b'\n', &lines[at..]);
        return (start, end.map_or(lines.len(), |found| at + found + 1));
    };
    let next = list.partition_point(|end| (*end as usize) < at);
    let behind = |end: &u32| *end as usize + 1;
    let start = next.checked_sub(1).and_then(|last| list.get(last)).map_or(0, behind);
    (start, list.get(next).map_or(lines.len(), behind))
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
        let events = memchr::memchr_iter(b'\n', lines).count() as u64;
        draw(lines, None, (events, stride), random, names, &mut samples);
        let name = |names: &Names| names[0].as_deref().unwrap().parse().unwrap();
        samples.iter().map(|(names, weight)| (name(names), *weight)).collect()
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
                draw(text, ends, (sizes.len() as u64, stride), &mut random, size, &mut samples);
                samples
            };
            assert_eq!(sampled(&list, Some(&ends)), sampled(&lines, None), "{stride}");
        }
    }

    #[test]
    fn small_strides_find_every_event_and_count_it_exactly() {
        let (lines, mut random) = (lines(&[20, 21, 500, 22]), Rng::with_seed(1));
        let drawn = drawn(&lines, 10, &mut random);
        let expected = [20, 21, 500, 22]
            .map(|size: usize| (size, Weight { sum: [size as f64, 1.0], ..Weight::default() }));
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
            let [bytes, events] = sum.sum.map(|sum| sum / f64::from(rounds));
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
        // 150 MB in a second give 50 samples in the next one.
        assert_eq!(pace.stride(600_000, at(1000)), 3_000_000);
        // After a quiet time, all of a small batch is read.
        assert_eq!(pace.stride(5_000, at(60_000)), 203);
        assert_eq!(pace.stride(5_000, at(120_000)), 5);
    }
}
