//! The last hour of the relay in steps of ten seconds, which `GET /status/history` shows. The
//! status page draws its lines from this history, so that they survive a reload of the page, and
//! `/status` gets its rates over the last minute from it.
//!
//! Memory: 2,880 bytes for each line of 360 numbers. The relay itself has 8 lines, and each output
//! has 6: with 20 outputs that is 369 kB, and with 200 outputs 3.5 MB. The last minute adds 400
//! bytes to the relay and to each output. An output that is removed from the config is removed from
//! the history too.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use super::all_dropped::AllDropped;

use base::lock::lock;

/// The time between two points of the history.
pub(super) const STEP: Duration = Duration::from_secs(10);

/// The number of points in a line, which shows one hour.
const POINTS: usize = 360;

/// The maximum number of reloads in the history. The oldest ones are removed first.
const RELOADS_MAX: usize = 100;

/// The number of steps in the last minute.
const MINUTE_STEPS: usize = 6;

/// The number of points over which an output's backlog and lag must have grown to count as growing:
/// those of two minutes, and the point at which they begin.
const GROWING_POINTS: usize = 13;

/// The smallest lag in seconds with which a backlog can count as growing. The time for which the
/// output holds each event is added to this lag.
const GROWING_LAG_MIN: f64 = 1.0;

/// The lines of the relay, in the order of [`Sample::counters`] and [`Sample::states`].
const LINES: [&str; 8] = [
    "accepted_events_per_second",
    "received_bytes_per_second",
    "refused_429_per_second",
    "lost_events_per_second",
    "queue_bytes",
    "queue_needed_bytes",
    "queue_events",
    "memory_bytes",
];

/// The lines of an output, in the order of [`OutputSample::counters`] and [`OutputSample::states`].
const OUTPUT_LINES: [&str; 6] = [
    "delivered_events_per_second",
    "sent_bytes_per_second",
    "errors_per_second",
    "lost_events_per_second",
    "backlog_events",
    "lag_seconds",
];

/// The indices, in [`OUTPUT_LINES`], of the lines that tell whether an output falls behind.
const BACKLOG_AND_LAG: [usize; 2] = [4, 5];

/// The index, in [`LINES`], of the needed bytes of the queue.
const NEEDED: usize = 5;

/// The minimum and the maximum number of points over which the growth of the queue is computed:
/// those of one and of five minutes, and the point at which they begin. With fewer points, a single
/// burst would look like a trend.
const GROWTH_POINTS: (usize, usize) = (7, 31);

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Sample {
    /// Counts since the start: accepted events, received bytes, requests that were refused with
    /// 429, lost events. The lines show their rates.
    pub(super) counters: [f64; 4],
    /// Values that the lines show unchanged: the bytes of the queue, the needed part of them, the
    /// events in the queue, resident memory.
    pub(super) states: [f64; 4],
    pub(super) outputs: Vec<(String, OutputSample)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct OutputSample {
    /// Counts since the start: delivered events, sent bytes, failed attempts, lost events. The
    /// lines show their rates.
    pub(super) counters: [f64; 4],
    /// Values that the lines show unchanged: events of the backlog, lag in seconds.
    pub(super) states: [f64; 2],
    pub(super) dropped: f64,
}

/// The time by which a sample may come before the end of its step. Samples are usually some
/// milliseconds late, and up to a second on a busy machine. If the first sample was late, all
/// others seem early. Without this tolerance, they would count for the step before, which already
/// has a point.
const EARLY: Duration = Duration::from_millis(2500);

/// The history. The admin server owns it; one task adds a sample each [`STEP`].
///
/// A point belongs to a *step*: step 1 ends 10 s after the first sample, step 2 after 20 s, and so
/// on, by the monotonic clock. NaN stands for a number that is not known, and is shown as `null`,
/// such as the points of an output before it existed, or of a step in which the machine was paused.
/// A rate is the growth of a counter per second since the sample of the step before. After a pause,
/// no rate is known: the events that were counted during the pause would be a spike.
pub(super) struct History(Mutex<Hour>);

struct Hour {
    /// The moment of the first sample, from which steps are counted; `None` before it.
    begun: Option<Instant>,
    /// The last step that has points; 0 if there are none yet.
    last: u64,
    relay: Track<{ LINES.len() }>,
    outputs: BTreeMap<String, (Track<{ OUTPUT_LINES.len() }>, AllDropped)>,
    reloads: VecDeque<(Instant, bool)>,
    started: Instant,
}

/// The lines of the relay or of an output.
struct Track<const N: usize> {
    /// The points of the last steps, the newest last: the rates and then the states.
    points: VecDeque<[f64; N]>,
    /// The counters of the last samples, the oldest first. In the first minute, the oldest entry is
    /// the start of the process, or the first sample of the output.
    samples: VecDeque<(Instant, [f64; 4])>,
}

impl<const N: usize> Track<N> {
    /// `start` is the moment at which the counters were 0; `None` if it is not known.
    fn new(start: Option<Instant>) -> Self {
        let samples = start.map(|at| (at, [0.0; 4])).into_iter().collect();
        Self { points: VecDeque::with_capacity(POINTS), samples }
    }

    /// Adds a sample at whose moment this number of steps has ended. The sample gives the point of
    /// the last of them. No other step has a sample.
    fn add(&mut self, now: Instant, ended: u64, counters: [f64; 4], states: &[f64]) {
        let passed = |at: Instant| now.duration_since(at);
        // After a pause of the machine, the step of each change is unknown.
        let before = self.samples.back().filter(|(at, _)| passed(*at) < STEP * 2);
        let rates = before.map(|(at, before)| rates(before, &counters, passed(*at)));
        let rates = rates.unwrap_or([f64::NAN; 4]);
        let mut numbers = rates.into_iter().chain(states.iter().copied());
        let point = std::array::from_fn(|_| numbers.next().unwrap_or(f64::NAN));
        for left in (0..ended.min(POINTS as u64)).rev() {
            if self.points.len() == POINTS {
                self.points.pop_front();
            }
            self.points.push_back(if left == 0 { point } else { [f64::NAN; N] });
        }
        self.samples.push_back((now, counters));
        // The oldest sample must be at least a minute old. A minute needs one sample more than it
        // has steps, and one more because samples may come a little early.
        while self.samples.len() > MINUTE_STEPS + 2 {
            self.samples.pop_front();
        }
    }

    /// Returns the rates over the last minute. `counters` are those of the moment `now`.
    fn last_minute(&self, now: Instant, counters: &[f64; 4]) -> [f64; 4] {
        let minute = steps(MINUTE_STEPS as u64);
        let is_old = |(at, _): &&(Instant, [f64; 4])| now.duration_since(*at) >= minute;
        let old = self.samples.iter().rev().find(is_old).or(self.samples.front());
        let (at, before) = old.copied().unwrap_or((now, *counters));
        // Right after the start, a single event would give an absurdly high rate.
        rates(&before, counters, now.duration_since(at).max(STEP))
    }

    /// Returns the last points of a line, at most this many.
    fn latest(&self, line: usize, count: usize) -> Vec<f64> {
        let before = self.points.len().saturating_sub(count);
        self.points.iter().skip(before).map(|point| point[line]).collect()
    }

    /// Returns the last points of each line, exactly this many.
    fn named(&self, names: &[&'static str; N], count: usize) -> NamedLines {
        let line = |line| {
            let known = self.latest(line, count);
            let unknown = std::iter::repeat_n(f64::NAN, count - known.len());
            unknown.chain(known).map(Number).collect()
        };
        names.iter().enumerate().map(|(at, name)| (*name, line(at))).collect()
    }
}

/// Returns the rates of counters per second. `before` are their values from the time `elapsed` ago.
/// A counter that has fallen, because it began again, has no rate.
fn rates(before: &[f64; 4], now: &[f64; 4], elapsed: Duration) -> [f64; 4] {
    std::array::from_fn(|at| {
        let grown = now[at] - before[at];
        if grown < 0.0 { f64::NAN } else { grown / elapsed.as_secs_f64() }
    })
}

impl History {
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Hour {
            begun: None,
            last: 0,
            relay: Track::new(Some(now)),
            outputs: BTreeMap::new(),
            reloads: VecDeque::new(),
            started: now,
        }))
    }

    /// Adds the sample of the moment `now`. Returns the outputs whose filters drop every event, if
    /// a log line about this is due.
    pub(super) fn add(&self, now: Instant, sample: &Sample) -> Vec<String> {
        let mut hour = lock(&self.0);
        hour.add(now, sample);
        let outputs = hour.outputs.iter_mut();
        let told = outputs.filter_map(|(name, (_, it))| it.tell(now).then(|| name.clone()));
        told.collect()
    }

    pub(super) fn keep(&self, is_kept: impl Fn(&str) -> bool) {
        lock(&self.0).outputs.retain(|name, _| is_kept(name));
    }

    pub(super) fn reloaded(&self, now: Instant, success: bool) {
        let mut hour = lock(&self.0);
        if hour.reloads.len() >= RELOADS_MAX {
            hour.reloads.pop_front();
        }
        hour.reloads.push_back((now, success));
    }

    /// Returns the time of the last reload with this result; `None` if there was none.
    pub(super) fn last_reload(&self, success: bool) -> Option<Instant> {
        let hour = lock(&self.0);
        hour.reloads.iter().rev().find(|(_, was)| *was == success).map(|(at, _)| *at)
    }

    /// Returns the rates of [`Sample::counters`] over the last minute, or since the start of the
    /// process. `counters` are those of the moment `now`.
    pub(super) fn last_minute(&self, now: Instant, counters: &[f64; 4]) -> [f64; 4] {
        lock(&self.0).relay.last_minute(now, counters)
    }

    /// Returns the rates of [`OutputSample::counters`] of this output over the last minute, or
    /// since the output exists. `now_has` are the counters of the moment `now`. The rates are NaN
    /// if a reload has added the output and there is no sample of it yet.
    pub(super) fn last_minute_of(&self, name: &str, now: Instant, now_has: &[f64; 4]) -> [f64; 4] {
        let hour = lock(&self.0);
        match hour.outputs.get(name) {
            Some((output, _)) => output.last_minute(now, now_has),
            None if hour.last == 0 => {
                rates(&[0.0; 4], now_has, now.duration_since(hour.started).max(STEP))
            }
            None => [f64::NAN; 4],
        }
    }

    /// Returns `true` if the backlog and the lag of this output have grown through the last two
    /// minutes. `events` is the number of events that wait now, because the last point may be
    /// older. `held` is the time for which the output holds each event when nothing is wrong.
    pub(super) fn is_growing(&self, name: &str, events: u64, held: Duration) -> bool {
        let hour = lock(&self.0);
        let Some((output, _)) = hour.outputs.get(name) else { return false };
        let [backlog, lag] = BACKLOG_AND_LAG.map(|line| output.latest(line, GROWING_POINTS));
        // Even a working output has a lag of milliseconds, which rises and falls. NaN is unknown.
        let least = GROWING_LAG_MIN + held.as_secs_f64();
        let is_late = lag.last().is_some_and(|lag| *lag >= least);
        events > 0 && is_late && is_growing(&backlog) && is_growing(&lag)
    }

    /// Returns how fast the needed part of the queue has grown in the last minutes, in bytes per
    /// second; negative if it shrinks. `None` if too few points are known.
    pub(super) fn queue_growth(&self) -> Option<f64> {
        let hour = lock(&self.0);
        let points = hour.relay.latest(NEEDED, GROWTH_POINTS.1).into_iter();
        // Points from before a pause of the machine do not show the present growth.
        let points: Vec<_> = points.rev().take_while(|point| !point.is_nan()).collect();
        let is_enough = points.len() >= GROWTH_POINTS.0;
        is_enough.then(|| -slope(&points) / STEP.as_secs_f64())
    }

    /// Returns for how long the filter of this output has dropped every event; `None` if it does
    /// not.
    pub(super) fn all_dropped(&self, name: &str) -> Option<Duration> {
        lock(&self.0).outputs.get(name)?.1.lasts()
    }

    /// Returns the history as JSON. `time_seconds` is `now` by the wall clock, in seconds since
    /// 1970.
    pub(super) fn json(
        &self,
        now: Instant,
        time_seconds: f64,
        host: &str,
        start_time_seconds: f64,
    ) -> String {
        let hour = lock(&self.0);
        let (begun, span) = (hour.begun.unwrap_or(now), steps(POINTS as u64));
        // Times are counted by a clock that never jumps, unlike the wall clock.
        let age = |at: Instant| now.saturating_duration_since(at);
        let time_of = |at: Instant| time_seconds - age(at).as_secs_f64();
        let shown = (hour.last + 1).saturating_sub(POINTS as u64).max(1)..=hour.last;
        let count = hour.relay.points.len();
        let reload = |(at, success): &(Instant, bool)| Reload {
            time_seconds: Number(time_of(*at)),
            result: if *success { "success" } else { "error" },
        };
        let of_output = |(name, (output, _)): (&String, &(Track<_>, _))| {
            (name.clone(), output.named(&OUTPUT_LINES, count))
        };
        let page = Page {
            interval_seconds: STEP.as_secs(),
            points: POINTS,
            host,
            start_time_seconds: Number(start_time_seconds),
            time_seconds: shown.map(|step| Number(time_of(begun + steps(step)).round())).collect(),
            lines: hour.relay.named(&LINES, count),
            reloads: hour.reloads.iter().filter(|(at, _)| age(*at) <= span).map(reload).collect(),
            outputs: hour.outputs.iter().map(of_output).collect(),
        };
        // Writing takes milliseconds, so it is done without the lock.
        drop(hour);
        // Numbers and texts can always be written.
        serde_json::to_string(&page).unwrap_or_default() + "\n"
    }
}

fn steps(count: u64) -> Duration {
    STEP * u32::try_from(count).unwrap_or(u32::MAX)
}

/// The response to `/status/history`.
#[derive(Serialize)]
struct Page<'a> {
    interval_seconds: u64,
    points: usize,
    host: &'a str,
    start_time_seconds: Number,
    time_seconds: Vec<Number>,
    #[serde(flatten)]
    lines: NamedLines,
    reloads: Vec<Reload>,
    outputs: BTreeMap<String, NamedLines>,
}

type NamedLines = BTreeMap<&'static str, Vec<Number>>;

#[derive(Serialize)]
struct Reload {
    time_seconds: Number,
    result: &'static str,
}

/// A number that is written with at most three decimals, or as `null` if it is not known. All
/// numbers of the history are at least 0.
struct Number(f64);

impl Serialize for Number {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts, sizes and times are below 2^53, and not negative"
    )]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0 * 1000.0).round() / 1000.0 {
            number if !number.is_finite() => serializer.serialize_none(),
            number if number.fract() == 0.0 => serializer.serialize_u64(number as u64),
            number => serializer.serialize_f64(number),
        }
    }
}

impl Hour {
    fn add(&mut self, now: Instant, sample: &Sample) {
        let begun = *self.begun.get_or_insert(now);
        let step = (now.saturating_duration_since(begun) + EARLY).as_secs() / STEP.as_secs();
        let ended = step.saturating_sub(self.last);
        self.relay.add(now, ended, sample.counters, &sample.states);
        // An output of the first samples was most likely there since the start, with counts from 0.
        let start = (self.last <= 1).then_some(self.started);
        self.last += ended;
        self.outputs.retain(|name, _| sample.outputs.iter().any(|(other, _)| other == name));
        for (name, output) in &sample.outputs {
            let new = || (Track::new(start), AllDropped::default());
            let (track, all_dropped) = self.outputs.entry(name.clone()).or_insert_with(new);
            track.add(now, ended, output.counters, &output.states);
            let ([delivered, _, _, lost], [_, lag]) = (output.counters, output.states);
            // A lost event had passed the filter, or the filter never saw it.
            all_dropped.add(now, delivered + lost, output.dropped, lag);
        }
    }
}

/// Returns `true` if a line grows, except for small noise. Each third of the points must have a
/// higher mean than the third before. Each point of the last third must be above all points of the
/// first. Returns `false` if a point is not known, or with fewer than [`GROWING_POINTS`] points.
#[allow(clippy::cast_precision_loss, reason = "a number of points")]
fn is_growing(points: &[f64]) -> bool {
    let mut thirds = points.chunks(points.len().div_ceil(3).max(1));
    let (Some(first), Some(middle), Some(last)) = (thirds.next(), thirds.next(), thirds.next())
    else {
        return false;
    };
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let highest = first.iter().copied().fold(f64::MIN, f64::max);
    // A comparison with NaN is false.
    let is_above = last.iter().all(|point| *point > highest);
    points.len() >= GROWING_POINTS
        && is_above
        && mean(first) < mean(middle)
        && mean(middle) < mean(last)
}

/// Returns the slope per step of the straight line that fits the points best (least squares).
#[allow(clippy::cast_precision_loss, reason = "a number of points")]
fn slope(points: &[f64]) -> f64 {
    let middle = (points.len() as f64 - 1.0) / 2.0;
    let distances = points.iter().enumerate().map(|(index, point)| (index as f64 - middle, point));
    let (mut sum, mut squares) = (0.0, 0.0);
    for (distance, point) in distances {
        sum += distance * point;
        squares += distance * distance;
    }
    if squares > 0.0 { sum / squares } else { 0.0 }
}

#[cfg(test)]
mod tests;
