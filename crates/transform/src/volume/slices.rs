//! The last hour and the last 24 hours, in slices of time.
//!
//! A slice of ten minutes collects names in large summaries. When the slice has ended, only the
//! heaviest names are kept. The slice itself is kept for an hour. It is also added to a slice of
//! two hours, which is kept for a day. A span is the sum of all slices in which something was
//! received during the span. It is therefore up to ten minutes or two hours longer than its name
//! says, and the report has the true length.
//!
//! Memory: [`ROOMS`] of the longest names and 20 slices of [`SLICE_BYTES`] take less than 1 MiB
//! together. A report takes up to twice as much in addition while it is made.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::report::{DIMENSIONS, Figures, Report, SPANS};
use super::sample::Seen;
use super::summary::Summary;

/// For each dimension, the maximum number of names in the slice that collects: 7/8 of a power of
/// two, at which a hash table is full.
const ROOMS: [usize; DIMENSIONS.len()] = [224, 448, 28, 224, 112, 224, 14, 28, 28];

/// For each dimension, the maximum number of bytes of memory in a slice that has ended.
const SLICE_BYTES: [usize; DIMENSIONS.len()] =
    [9216, 6144, 2048, 3584, 3072, 3584, 768, 2048, 1792];

/// For each of [`SPANS`], the length of a slice that has ended. The slice that collects has the
/// first length. At most 7 ended slices are kept for the span of an hour, and 13 for that of a day.
const LENGTHS: [Duration; SPANS.len()] = [Duration::from_mins(10), Duration::from_hours(2)];

#[derive(Debug, Clone)]
struct Slice {
    began: Instant,
    last: Instant,
    bytes: u64,
    events: u64,
    samples: u64,
    /// The bytes and events for which all samples together stand.
    drawn: [f64; 2],
    by: [Summary; DIMENSIONS.len()],
}

impl Slice {
    fn new(now: Instant) -> Self {
        let by = ROOMS.map(Summary::new);
        Self { began: now, last: now, bytes: 0, events: 0, samples: 0, drawn: [0.0; 2], by }
    }

    fn add(&mut self, other: &Self) {
        self.began = self.began.min(other.began);
        self.last = self.last.max(other.last);
        self.bytes += other.bytes;
        self.events += other.events;
        self.samples += other.samples;
        self.drawn = [0, 1].map(|unit| self.drawn[unit] + other.drawn[unit]);
        self.by.iter_mut().zip(&other.by).for_each(|(own, other)| own.join(other));
    }

    /// Keeps only the heaviest names, in at most [`SLICE_BYTES`] of memory for each dimension.
    fn shrink(&mut self) {
        self.by.iter_mut().zip(SLICE_BYTES).for_each(|(by, bytes_max)| by.shrink(bytes_max));
    }
}

#[derive(Debug, Clone)]
pub(super) struct Slices {
    started: Instant,
    /// The slice that collects.
    now: Slice,
    /// For each of [`SPANS`], slices that have ended, oldest first.
    ended: [VecDeque<Slice>; SPANS.len()],
}

impl Slices {
    pub(super) fn new(now: Instant) -> Self {
        Self { started: now, now: Slice::new(now), ended: Default::default() }
    }

    pub(super) fn count(&mut self, seen: Seen, now: Instant) {
        self.rotate(now);
        let slice = &mut self.now;
        slice.last = now;
        slice.bytes += seen.bytes;
        slice.events += seen.events;
        slice.samples += seen.samples.len() as u64;
        for (names, weight) in seen.samples {
            slice.drawn = [0, 1].map(|unit| slice.drawn[unit] + weight.sum[unit]);
            for (summary, name) in slice.by.iter_mut().zip(names) {
                if let Some(name) = name {
                    summary.add(name, weight);
                }
            }
        }
    }

    /// Ends the slice that collects, if its time is over, and forgets slices that are too old.
    fn rotate(&mut self, now: Instant) {
        let is_over = now.saturating_duration_since(self.now.began) >= LENGTHS[0];
        let slice = is_over.then(|| std::mem::replace(&mut self.now, Slice::new(now)));
        for (ended, (length, (_, span))) in self.ended.iter_mut().zip(LENGTHS.iter().zip(SPANS)) {
            if let Some(slice) = &slice {
                match ended.back_mut().filter(|last| slice.began < last.began + *length) {
                    Some(last) => last.add(slice),
                    None => ended.push_back(slice.clone()),
                }
                ended.back_mut().into_iter().for_each(Slice::shrink);
            }
            ended.retain(|slice| now.saturating_duration_since(slice.last) <= span);
        }
    }

    pub(super) fn report(&mut self, now: Instant) -> Report {
        self.rotate(now);
        let figures = |span: Duration, ended: &VecDeque<Slice>| {
            let mut sum = self.now.clone();
            ended.iter().for_each(|slice| sum.add(slice));
            let time = now.saturating_duration_since(sum.began).max(span);
            // The figures are scaled so that all names together have everything that was received.
            let scale = [sum.bytes as f64 / sum.drawn[0], sum.events as f64 / sum.drawn[1]];
            let by = sum.by.iter().map(|by| by.counted(scale));
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

#[cfg(test)]
mod tests {
    use super::super::sample::Weight;
    use super::*;

    fn seen(name: &str, bytes: u64) -> Seen {
        let weight = Weight { sum: [bytes as f64, 1.0], ..Weight::default() };
        let names = std::array::from_fn(|_| Some(name.into()));
        Seen { bytes, events: 1, samples: vec![(names, weight)], ..Seen::default() }
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
        let report = slices.report(now);
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
        let report = slices.report(later);
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
                let parts = [3, 1, 1, 1, 1, 1, 1, 4, 1];
                let names = parts.map(|parts| Some(longest(number, parts)));
                let weight = Weight { sum: [1000.0, 1.0], ..Weight::default() };
                (names, weight)
            });
            let samples = samples.collect();
            let seen = Seen { bytes: 300_000, events: 300, samples, ..Seen::default() };
            slices.count(seen, start + MINUTE * minutes);
        }
        let [hour, day] = &slices.ended;
        assert_eq!((hour.len(), day.len()), (6, 13));
        let ended = hour.iter().chain(day);
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
