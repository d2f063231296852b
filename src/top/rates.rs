//! Events and bytes in each second, from the last answers of one run of the relay.

use std::collections::VecDeque;

use crate::status::Status;

/// The time over which a rate is averaged, in seconds.
const WINDOW: f64 = 10.0;

/// The greatest number of answers that are kept.
const SAMPLES_MAX: usize = 64;

/// The counters of one answer.
struct Sample {
    time: f64,
    start: f64,
    accepted: u64,
    received: u64,
    outputs: Vec<(String, u64, u64)>,
}

/// The counters of the last answers.
#[derive(Default)]
pub(super) struct Rates {
    samples: VecDeque<Sample>,
}

/// Events and bytes in each second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    pub(super) events: f64,
    pub(super) bytes: f64,
}

impl Rates {
    /// Adds an answer. Answers of an earlier run of the relay, or from before counters went back,
    /// are forgotten.
    pub(super) fn add(&mut self, status: &Status) {
        let received = status.listeners.iter().map(|it| it.received_bytes);
        let sources = status.sources.iter().map(|it| it.received_bytes);
        let output = |it: &crate::status::Output| {
            (it.name.clone(), it.counts.delivered_events, it.counts.sent_bytes)
        };
        let sample = Sample {
            time: status.process.time_seconds,
            start: status.process.start_time_seconds,
            accepted: status.intake.accepted_events,
            received: received.chain(sources).sum(),
            outputs: status.outputs.iter().map(output).collect(),
        };
        let is_before = |last: &Sample| {
            last.start == sample.start
                && last.time < sample.time
                && last.accepted <= sample.accepted
                && last.received <= sample.received
        };
        if !self.samples.back().is_none_or(is_before) {
            self.samples.clear();
        }
        self.samples.push_back(sample);
        let now = status.process.time_seconds;
        // The oldest sample that is kept is the newest one of those that are at least as old as the
        // window.
        while self.samples.get(1).is_some_and(|second| second.time <= now - WINDOW)
            || self.samples.len() > SAMPLES_MAX
        {
            self.samples.pop_front();
        }
    }

    /// Returns the rate at which events are accepted; `None` if there is only one answer.
    pub(super) fn accepted(&self) -> Option<Rate> {
        self.rate(|it| Some((it.accepted, it.received)))
    }

    /// Returns the rate at which an output delivers events; `None` if there is only one answer, or
    /// if the output is new.
    pub(super) fn delivered(&self, name: &str) -> Option<Rate> {
        self.rate(|it| {
            let found = it.outputs.iter().find(|(output, _, _)| output == name);
            found.map(|(_, events, bytes)| (*events, *bytes))
        })
    }

    fn rate(&self, read: impl Fn(&Sample) -> Option<(u64, u64)>) -> Option<Rate> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.time - first.time;
        let ((events_before, bytes_before), (events, bytes)) = (read(first)?, read(last)?);
        // An output that was removed and added again counts from 0.
        let grown = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
        let (events, bytes) = (grown(events_before, events), grown(bytes_before, bytes));
        (seconds > 0.0).then_some(Rate { events, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(time: f64, start: f64, accepted: u64) -> Status {
        let mut status = Status::default();
        (status.process.time_seconds, status.process.start_time_seconds) = (time, start);
        status.intake.accepted_events = accepted;
        status
    }

    #[test]
    fn a_rate_is_averaged_over_ten_seconds_and_forgets_an_earlier_run() {
        let mut rates = Rates::default();
        rates.add(&status(0.0, 1.0, 0));
        assert_eq!(rates.accepted(), None);
        for second in 1..=20 {
            rates.add(&status(f64::from(second), 1.0, u64::from(second.max(10) as u32 - 10) * 30));
        }
        assert_eq!(rates.accepted().map(|it| it.events), Some(30.0));
        rates.add(&status(21.0, 20.5, 0));
        assert_eq!(rates.accepted(), None);
        rates.add(&status(22.0, 20.5, 7));
        assert_eq!(rates.accepted().map(|it| it.events), Some(7.0));
    }
}
