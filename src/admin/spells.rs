//! For how long a state has lasted that a single look at the counters does not show: requests that
//! are refused again and again, and an output whose filter lets nothing through.
//!
//! The samples of the history feed both, so a time is exact to one step (ten seconds). No clock and
//! no I/O: callers pass the time.

use std::time::Duration;

use tokio::time::Instant;

use crate::status::thresholds::PATIENCE_WITH_RETRY_AFTER;

/// A spell ends when nothing of it has happened for this time. kube-apiserver repeats a request
/// after at most 40 s.
const PAUSE: Duration = Duration::from_secs(60);

/// The requests that were refused with one status, and that their senders send again.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals {
    /// The refused requests and the accepted events at the last sample; 0 at the start.
    before: [f64; 2],
    /// The first refusal of the present spell; `None` if there is none.
    since: Option<Instant>,
    /// The first refusal since the last accepted event, within the present spell.
    shut_since: Option<Instant>,
    /// The last refusal.
    last: Option<Instant>,
    longest: Duration,
    longest_shut: Duration,
    /// The last refusal at which a spell was longer than kube-apiserver repeats a batch.
    long_last: Option<Instant>,
    /// The same, of the spells in which no event was accepted.
    long_shut_last: Option<Instant>,
}

/// How long requests were refused.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct RefusalTimes {
    /// For how long requests have been refused without a pause of a minute; `None` if none was
    /// refused in the last minute.
    pub(super) now: Option<Duration>,
    /// The same time, counted from the last accepted event.
    pub(super) shut_now: Option<Duration>,
    /// The longest spell since the start.
    pub(super) longest: Duration,
    /// The longest spell since the start in which no event was accepted.
    pub(super) longest_shut: Duration,
    /// The time since a spell was longer than kube-apiserver repeats a batch; `None` if none was.
    pub(super) long_ended: Option<Duration>,
    /// The same, of the spells in which no event was accepted.
    pub(super) long_shut_ended: Option<Duration>,
}

/// Returns `true` if kube-apiserver gives up a batch that is refused for this time.
fn is_long(time: Duration) -> bool {
    time.as_secs_f64() >= PATIENCE_WITH_RETRY_AFTER
}

impl Refusals {
    /// Takes the counts since the start: refused requests, and accepted events.
    pub(super) fn add(&mut self, now: Instant, refused: f64, accepted: f64) {
        let [refused_before, accepted_before] =
            std::mem::replace(&mut self.before, [refused, accepted]);
        self.end(now);
        if accepted > accepted_before {
            self.shut_since = None;
        }
        if refused > refused_before {
            let since = *self.since.get_or_insert(now);
            self.last = Some(now);
            self.longest = self.longest.max(now - since);
            if is_long(now - since) {
                self.long_last = Some(now);
            }
            if accepted <= accepted_before {
                let since = *self.shut_since.get_or_insert(now);
                self.longest_shut = self.longest_shut.max(now - since);
                if is_long(now - since) {
                    self.long_shut_last = Some(now);
                }
            }
        }
    }

    /// Ends the spell if the last refusal was too long ago.
    fn end(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > PAUSE) {
            (self.since, self.shut_since, self.last) = (None, None, None);
        }
    }

    /// Returns how long requests were refused, up to the last refusal.
    pub(super) fn times(&self, now: Instant) -> RefusalTimes {
        let mut spell = self.clone();
        spell.end(now);
        let until = |since: Option<Instant>| Some(spell.last?.saturating_duration_since(since?));
        let ago = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        RefusalTimes {
            now: until(spell.since),
            shut_now: until(spell.shut_since),
            longest: self.longest,
            longest_shut: self.longest_shut,
            long_ended: ago(self.long_last),
            long_shut_ended: ago(self.long_shut_last),
        }
    }
}

/// An output whose filter drops every event.
#[derive(Debug, Clone, Default)]
pub(super) struct AllDropped {
    /// The delivered and the dropped events at the last sample; `None` before the first one.
    before: Option<[f64; 2]>,
    /// The first sample of the spell; `None` if there is none.
    since: Option<Instant>,
    /// The last sample at which events were dropped.
    last: Option<Instant>,
}

impl AllDropped {
    /// Takes the counts since the start: delivered events, and events that the filter dropped.
    /// `waits` is `true` if events wait for the output, so the filter has let them through.
    pub(super) fn add(&mut self, now: Instant, delivered: f64, dropped: f64, waits: bool) {
        let before = self.before.replace([delivered, dropped]);
        let Some([delivered_before, dropped_before]) = before else { return };
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(10);

    fn seconds(time: Option<Duration>) -> Option<u64> {
        time.map(|time| time.as_secs())
    }

    #[test]
    fn refusals_last_until_a_minute_has_passed_without_one_and_their_length_is_kept() {
        let (mut now, mut refusals) = (Instant::now(), Refusals::default());
        refusals.add(now, 0.0, 10.0);
        assert_eq!(refusals.times(now), RefusalTimes::default());
        for step in 1..=30_u8 {
            now += STEP;
            refusals.add(now, f64::from(step), 10.0);
        }
        let times = refusals.times(now);
        assert_eq!((seconds(times.now), seconds(times.shut_now)), (Some(290), Some(290)));
        // An accepted event ends the time in which nothing was accepted, and not the refusals.
        now += STEP;
        refusals.add(now, 31.0, 11.0);
        let times = refusals.times(now);
        assert_eq!((seconds(times.now), times.shut_now), (Some(300), None));
        now += PAUSE + STEP;
        refusals.add(now, 31.0, 12.0);
        let times = refusals.times(now);
        assert_eq!((times.now, times.shut_now), (None, None));
        assert_eq!(
            (seconds(times.long_ended), seconds(times.long_shut_ended)),
            (Some(70), Some(80))
        );
        assert_eq!((times.longest.as_secs(), times.longest_shut.as_secs()), (300, 290));
    }

    #[test]
    fn lone_refusals_do_not_add_up() {
        let (mut now, mut refusals) = (Instant::now(), Refusals::default());
        for count in 1..=20_u8 {
            now += PAUSE + STEP;
            refusals.add(now, f64::from(count), 0.0);
        }
        assert_eq!(refusals.times(now).longest, Duration::ZERO);
    }

    #[test]
    fn a_filter_drops_everything_until_an_event_leaves_or_waits_or_none_comes() {
        let (mut now, mut dropped) = (Instant::now(), AllDropped::default());
        dropped.add(now, 5.0, 100.0, false);
        let mut count = 100.0;
        let mut drop_for = |dropped: &mut AllDropped, now: &mut Instant, steps: u8| {
            for _ in 0..steps {
                *now += STEP;
                count += 1.0;
                dropped.add(*now, 5.0, count, false);
            }
        };
        drop_for(&mut dropped, &mut now, 31);
        assert_eq!(seconds(dropped.lasts()), Some(300));
        let ended = [(6.0, false, STEP), (5.0, true, STEP), (5.0, false, PAUSE + STEP)];
        for (delivered, waits, later) in ended {
            let mut dropped = dropped.clone();
            dropped.add(now + later, delivered, 131.0, waits);
            assert_eq!(dropped.lasts(), None, "{delivered} {waits} {later:?}");
        }
    }
}
