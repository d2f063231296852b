//! The numbers that `/status` shows for one address. Every protocol counts here through its
//! [`Attempt`](super::Attempt). An attempt that ends costs one short lock, and each call of
//! [`Figures::sent`] one atomic addition.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Failure;
use base::lock::lock;
use telemetry::{AttemptError, RecentTimes, status};

/// The maximum length of an error's text, which may quote a consumer.
const ERROR_CHARS_MAX: usize = 1000;

/// The figures of one address of an output. The address and all its users share this value.
#[derive(Debug)]
pub struct Figures {
    sent_bytes: AtomicU64,
    counted: Mutex<Counted>,
}

#[derive(Debug)]
struct Counted {
    requests: u64,
    errors: Vec<(AttemptError, u64)>,
    times: RecentTimes,
    last_error: Option<(String, Instant)>,
}

impl Default for Figures {
    fn default() -> Self {
        let times = RecentTimes::new(Instant::now());
        let counted = Counted { requests: 0, errors: Vec::new(), times, last_error: None };
        Self { sent_bytes: AtomicU64::new(0), counted: Mutex::new(counted) }
    }
}

impl Counted {
    fn failed(&mut self, failure: &Failure, now: Instant) {
        match self.errors.iter_mut().find(|(reason, _)| *reason == failure.reason) {
            Some((_, count)) => *count += 1,
            None => self.errors.push((failure.reason, 1)),
        }
        let text = failure.message.chars().take(ERROR_CHARS_MAX).collect();
        self.last_error = Some((text, now));
    }
}

impl Figures {
    /// Counts bytes that are sent to the address.
    pub fn sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts an attempt that has ended. `took` is the time from sending to the acknowledgement;
    /// `None` if nothing was acknowledged. `failure` says why not everything was acknowledged.
    pub fn ended(&self, took: Option<Duration>, failure: Option<&Failure>) {
        let now = Instant::now();
        let mut counted = lock(&self.counted);
        counted.requests += 1;
        if let Some(took) = took {
            counted.times.record(took, now);
        }
        if let Some(failure) = failure {
            counted.failed(failure, now);
        }
    }

    /// Returns the figures of this moment. The fields that name the address and its state are
    /// empty.
    pub fn show(&self) -> status::Address {
        let now = Instant::now();
        let counted = lock(&self.counted);
        let (times, last_error) = (counted.times.quantiles(now), counted.last_error.as_ref());
        let error = |(reason, count): &(AttemptError, u64)| (reason.name().to_owned(), *count);
        status::Address {
            requests: Some(counted.requests),
            sent_bytes: Some(self.sent_bytes.load(Ordering::Relaxed)),
            errors: counted.errors.iter().map(error).collect(),
            latency_p50_seconds: times.map(|times| times.p50),
            latency_p99_seconds: times.map(|times| times.p99),
            last_error: last_error.map(|(text, _)| text.clone()),
            last_error_seconds_ago: last_error.map(|(_, at)| now.duration_since(*at).as_secs_f64()),
            ..status::Address::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_are_counted_with_their_errors_and_times() {
        let figures = Figures::default();
        figures.sent(700);
        figures.sent(1);
        for _ in 0..3 {
            figures.ended(Some(Duration::from_millis(50)), None);
        }
        figures.ended(None, Some(&Failure::new(AttemptError::Status5xx, "answered 500")));
        tokio::time::advance(Duration::from_secs(7)).await;
        let long = "é".repeat(100_000);
        figures.ended(None, Some(&Failure::new(AttemptError::Status5xx, long)));
        assert_eq!(figures.show().last_error.unwrap().chars().count(), ERROR_CHARS_MAX);
        // A response that takes some events and refuses others is one request, and has a time and
        // an error.
        let failure = Failure::new(AttemptError::Item, "one is refused");
        figures.ended(Some(Duration::from_millis(50)), Some(&failure));
        tokio::time::advance(Duration::from_secs(2)).await;
        let shown = figures.show();
        assert_eq!((shown.requests, shown.sent_bytes), (Some(6), Some(701)));
        let errors = [(AttemptError::Status5xx, 2), (AttemptError::Item, 1)];
        assert_eq!(shown.errors, errors.map(|(it, count)| (it.name().to_owned(), count)).into());
        assert_eq!(shown.last_error.as_deref(), Some("one is refused"));
        assert_eq!(shown.last_error_seconds_ago, Some(2.0));
        let (p50, p99) = (shown.latency_p50_seconds.unwrap(), shown.latency_p99_seconds.unwrap());
        assert!((0.046..0.054).contains(&p50) && p50 == p99, "{p50} {p99}");
    }
}
