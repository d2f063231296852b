//! Finds out for how long the filter of an output has dropped every event. A single look at the
//! counters does not show this.
//!
//! The samples of the history are the source, so the time is exact to ten seconds. Nothing here
//! reads a clock or does I/O: callers pass the time.

use std::time::Duration;

use tokio::time::Instant;

use telemetry::status::thresholds::ALL_DROPPED;

/// The shortest time between two log lines about the same output. A narrow filter often drops every
/// event for minutes.
const QUIET: Duration = Duration::from_secs(3600);

/// The longest time without a dropped event. After this time, the record begins again.
const PAUSE: Duration = Duration::from_secs(60);

/// The record of one output: whether its filter drops every event, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct AllDropped {
    /// The last sample: its time, the delivered and the dropped events, and the age of the oldest
    /// event that waited; `None` before the first one.
    before: Option<(Instant, [f64; 3])>,
    /// The time of the sample since which the filter drops every event; `None` if it does not.
    since: Option<Instant>,
    /// The time of the last sample that has found newly dropped events; `None` as for `since`.
    last: Option<Instant>,
    /// The time of the last log line; `None` if there was none.
    told: Option<Instant>,
}

impl AllDropped {
    /// Takes the numbers of delivered or lost, and of dropped events since the start, and the age
    /// of the oldest event that waits, in seconds. At a busy relay some events have always just
    /// arrived, and the filter drops them in a moment. If it has let one through that waits, the
    /// age grows with the time.
    pub(super) fn add(&mut self, now: Instant, delivered: f64, dropped: f64, lag: f64) {
        let before = self.before.replace((now, [delivered, dropped, lag]));
        let Some((at, [delivered_before, dropped_before, lag_before])) = before else { return };
        let elapsed = now.saturating_duration_since(at).as_secs_f64();
        let waits = lag > lag_before + 0.9 * elapsed;
        let is_over = self.last.is_some_and(|last| now.saturating_duration_since(last) > PAUSE);
        if waits || delivered > delivered_before || is_over {
            (self.since, self.last) = (None, None);
        } else if dropped > dropped_before {
            self.since.get_or_insert(now);
            self.last = Some(now);
        }
    }

    /// Returns for how long the filter has dropped every event; `None` if it does not.
    pub(super) fn lasts(&self) -> Option<Duration> {
        Some(self.last?.saturating_duration_since(self.since?))
    }

    /// Returns `true` if a log line is due that says that the filter drops every event.
    pub(super) fn tell(&mut self, now: Instant) -> bool {
        let is_long = self.lasts().is_some_and(|lasts| lasts.as_secs_f64() >= ALL_DROPPED);
        let is_quiet = self.told.is_some_and(|told| now.saturating_duration_since(told) < QUIET);
        if is_long && !is_quiet {
            self.told = Some(now);
        }
        is_long && !is_quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(10);

    #[test]
    fn a_filter_drops_everything_until_an_event_leaves_or_waits_or_none_comes() {
        let (mut now, mut dropped) = (Instant::now(), AllDropped::default());
        dropped.add(now, 5.0, 100.0, 900.0);
        let mut count = 100.0;
        let mut drop_for = |dropped: &mut AllDropped, now: &mut Instant, steps: u8| {
            for _ in 0..steps {
                *now += STEP;
                count += 1.0;
                // Old events arrive, and others have just arrived.
                dropped.add(*now, 5.0, count, if count < 110.0 { 900.0 - count } else { 0.02 });
            }
        };
        drop_for(&mut dropped, &mut now, 31);
        assert_eq!(dropped.lasts(), Some(Duration::from_secs(300)));
        let ended = [(6.0, 0.0, STEP), (5.0, 10.02, STEP), (5.0, 0.0, PAUSE + STEP)];
        for (delivered, lag, later) in ended {
            let mut dropped = dropped.clone();
            dropped.add(now + later, delivered, 131.0, lag);
            assert_eq!(dropped.lasts(), None, "{delivered} {lag} {later:?}");
        }
    }

    #[test]
    fn the_log_says_after_five_minutes_that_everything_is_dropped_and_once_in_an_hour() {
        let (mut now, mut dropped, mut told) = (Instant::now(), AllDropped::default(), Vec::new());
        for step in 0..800_u32 {
            now += STEP;
            // An event passes after 20 minutes.
            let delivered = if step < 120 { 0.0 } else { 1.0 };
            dropped.add(now, delivered, f64::from(step), 0.0);
            told.extend(dropped.tell(now).then_some(step));
        }
        assert_eq!(told, [31, 391, 751]);
    }
}
