//! The last hour and the last 24 hours, in slices of time.
//!
//! A slice of ten minutes collects names in large summaries. When it has ended, its heaviest names
//! are kept: for an hour, and added to a slice of two hours for a day. A span is the sum of all
//! slices in which something came during the span. It is therefore up to ten minutes or two hours
//! longer than its name says, and the report has the true length.
//!
//! Memory: [`ROOMS`] of the longest names and 20 slices of [`SLICE_BYTES`] take less than 1 MiB
//! together. A report takes as much again while it is made.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::report::DIMENSIONS;
use super::report::Figures;
use super::report::Report;
use super::report::SPANS;
use super::sample::Seen;
use super::sample::Weight;
use super::summary::Summary;

/// The greatest number of names of each dimension in the slice that collects. A hash table of a
/// power of two is full at 7/8.
const ROOMS: [usize; DIMENSIONS.len()] = [224, 448, 28, 224, 112, 224, 14, 28];

/// The greatest number of bytes of memory that each dimension takes in a slice that has ended.
const SLICE_BYTES: [usize; DIMENSIONS.len()] = [9216, 6144, 2048, 3584, 3072, 3584, 768, 2048];

/// For each of [`SPANS`], the length of a slice that has ended, and the number of slices that the
/// span can meet. The slice that collects has the length of the first.
const SLICES: [(Duration, usize); SPANS.len()] =
    [(Duration::from_mins(10), 7), (Duration::from_hours(2), 13)];

/// What came in during one part of the time.
#[derive(Debug, Clone)]
struct Slice {
    began: Instant,
    /// The time of the last batch.
    last: Instant,
    bytes: u64,
    events: u64,
    samples: u64,
    /// The bytes and events for which all samples together stand.
    weight: Weight,
    by: [Summary; DIMENSIONS.len()],
}

impl Slice {
    fn new(now: Instant) -> Self {
        let by = ROOMS.map(Summary::new);
        let weight = Weight::default();
        Self { began: now, last: now, bytes: 0, events: 0, samples: 0, weight, by }
    }

    /// Adds another slice.
    fn add(&mut self, other: &Self) {
        self.began = self.began.min(other.began);
        self.last = self.last.max(other.last);
        self.bytes += other.bytes;
        self.events += other.events;
        self.samples += other.samples;
        self.weight.add(other.weight);
        self.by.iter_mut().zip(&other.by).for_each(|(own, other)| own.join(other));
    }

    /// Returns what estimates of bytes and of events are to be multiplied by, so that all of them
    /// together are what came in, and no name has more than the whole.
    fn scale(&self) -> [f64; 2] {
        let Weight { exact, drawn, .. } = self.weight;
        let all = [self.bytes, self.events].map(|all| all as f64);
        let of = |unit: usize| ((all[unit] - exact[unit]) / drawn[unit]).max(0.0);
        [0, 1].map(|unit| if drawn[unit] > 0.0 { of(unit) } else { 1.0 })
    }

    /// Returns the sum of two slices that have ended.
    fn with(&self, other: &Self) -> Arc<Self> {
        let mut sum = self.clone();
        sum.add(other);
        sum.shrunk()
    }

    fn shrunk(mut self) -> Arc<Self> {
        for (summary, bytes_max) in self.by.iter_mut().zip(SLICE_BYTES) {
            summary.shrink(bytes_max);
        }
        Arc::new(self)
    }
}

/// The slices of the last hour and of the last 24 hours.
#[derive(Debug, Clone)]
pub(super) struct Slices {
    started: Instant,
    /// The slice that collects.
    now: Slice,
    /// For each of [`SPANS`], slices that have ended, oldest first.
    ended: [VecDeque<Arc<Slice>>; SPANS.len()],
}

impl Slices {
    pub(super) fn new(now: Instant) -> Self {
        Self { started: now, now: Slice::new(now), ended: Default::default() }
    }

    /// Counts a batch.
    pub(super) fn count(&mut self, seen: Seen, now: Instant) {
        self.rotate(now);
        let slice = &mut self.now;
        slice.last = now;
        slice.bytes += seen.bytes;
        slice.events += seen.events;
        slice.samples += seen.samples.len() as u64;
        for sample in seen.samples {
            slice.weight.add(sample.weight);
            for (summary, name) in slice.by.iter_mut().zip(sample.names) {
                if let Some(name) = name {
                    summary.add(name, sample.weight);
                }
            }
        }
    }

    /// Ends the slice that collects, if its time is over, and forgets slices that are too old.
    fn rotate(&mut self, now: Instant) {
        if now.saturating_duration_since(self.now.began) < SLICES[0].0 {
            return;
        }
        let slice = std::mem::replace(&mut self.now, Slice::new(now)).shrunk();
        for (ended, ((length, most), span)) in self.ended.iter_mut().zip(SLICES.iter().zip(SPANS)) {
            if slice.bytes > 0 {
                let last = ended.pop_back_if(|last| slice.began < last.began + *length);
                ended.push_back(last.map_or_else(|| Arc::clone(&slice), |last| last.with(&slice)));
            }
            let is_old = |slice: &Arc<Slice>| is_before(slice, span.1, now);
            while ended.len() > *most || ended.front().is_some_and(is_old) {
                ended.pop_front();
            }
        }
    }

    /// Returns a copy, from which a report can be made without the lock. Slices that have ended are
    /// not copied.
    pub(super) fn at(&mut self, now: Instant) -> Self {
        self.rotate(now);
        self.clone()
    }

    /// Makes the report of this moment.
    pub(super) fn report(&self, now: Instant) -> Report {
        let figures = |span: Duration, ended: &VecDeque<Arc<Slice>>| {
            let mut sum = self.now.clone();
            ended.iter().filter(|it| !is_before(it, span, now)).for_each(|it| sum.add(it));
            let time = now.saturating_duration_since(sum.began).max(span);
            let by = sum.by.iter().map(|by| by.counted(sum.scale()));
            Figures {
                seconds: time.min(now.saturating_duration_since(self.started)).as_secs_f64(),
                bytes: sum.bytes,
                events: sum.events,
                read_events: sum.samples,
                by: DIMENSIONS.map(str::to_owned).into_iter().zip(by).collect(),
            }
        };
        let spans = SPANS.iter().zip(&self.ended);
        let spans = spans.map(|((name, span), ended)| ((*name).to_owned(), figures(*span, ended)));
        Report { enabled: true, spans: spans.collect() }
    }
}

/// Returns `true` if all of a slice came before the span.
fn is_before(slice: &Slice, span: Duration, now: Instant) -> bool {
    now.saturating_duration_since(slice.last) > span
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;

    fn seen(name: &str, bytes: u64) -> Seen {
        let weight = Weight { exact: [bytes as f64, 1.0], ..Weight::default() };
        let names = std::array::from_fn(|_| Some(name.into()));
        Seen { bytes, events: 1, samples: vec![Sample { names, weight }], ..Seen::default() }
    }

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn spans_forget_what_is_older_and_say_what_they_cover() {
        let start = Instant::now();
        let mut slices = Slices::new(start);
        slices.count(seen("old", 7), start);
        for minute in 1..=30 * 60 {
            slices.count(seen("new", 1), start + MINUTE * minute);
        }
        let now = start + MINUTE * 30 * 60;
        let report = slices.at(now).report(now);
        for (span, minutes, fuzz) in [("1h", 60, 10), ("24h", 24 * 60, 120)] {
            let figures = &report.spans[span];
            let covered = figures.seconds / 60.0;
            assert!((f64::from(minutes)..=f64::from(minutes + fuzz)).contains(&covered));
            // One batch came each minute.
            assert!((figures.bytes as f64 - covered).abs() < 2.0, "{}: {covered}", figures.bytes);
            let [user] = &figures.by["user"].rows[..] else { panic!("{figures:?}") };
            assert_eq!((&user.name[..], user.bytes_error), (&["new".to_owned()][..], 0));
            assert_eq!(user.bytes, figures.bytes);
        }
        // After two quiet days nothing is left, and the spans are as long as they are.
        let later = now + MINUTE * 48 * 60;
        let report = slices.at(later).report(later);
        assert_eq!((report.spans["1h"].bytes, report.spans["1h"].seconds), (0, 3600.0));
        assert_eq!(report.spans["24h"].bytes, 0);
    }

    #[test]
    fn all_of_it_stays_within_one_mebibyte_whatever_the_names() {
        let start = Instant::now();
        let mut slices = Slices::new(start);
        // 27 hours of the longest names, all different.
        let longest = |number: u64, parts: usize| {
            let part = format!("{number:0>width$}", width = super::super::report::NAME_BYTES_MAX);
            vec![part; parts].join("\n").into_boxed_str()
        };
        let mut number = 0;
        for minutes in (0..27 * 60).step_by(5) {
            let samples = (0..300).map(|_| {
                number += 1;
                let parts = [3, 1, 1, 1, 1, 1, 1, 4];
                let names = parts.map(|parts| Some(longest(number, parts)));
                let weight = Weight { exact: [1000.0, 1.0], ..Weight::default() };
                Sample { names, weight }
            });
            let samples = samples.collect();
            let seen = Seen { bytes: 300_000, events: 300, samples, ..Seen::default() };
            slices.count(seen, start + MINUTE * minutes);
        }
        let [hour, day] = &slices.ended;
        assert_eq!((hour.len(), day.len()), (SLICES[0].1 - 1, SLICES[1].1));
        let ended = hour.iter().chain(day).map(|slice| &**slice);
        let memory = |slice: &Slice| {
            size_of::<Slice>() + slice.by.iter().map(Summary::memory).sum::<usize>()
        };
        let all: usize = ended.chain([&slices.now]).map(memory).sum();
        // A seventh slice of the hour may be there for a moment.
        let all = all + memory(&hour[0]);
        println!("{all} bytes of memory");
        assert!(all <= 1 << 20, "{all}");
        assert!(memory(&slices.now) > 300_000, "{}", memory(&slices.now));
    }
}
