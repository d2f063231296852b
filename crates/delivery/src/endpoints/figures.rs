//! The numbers that `/status` shows for one address. Every protocol counts here through its
//! [`Attempt`](super::Attempt). An attempt that ends costs one short lock, and each call of
//! [`Figures::sent`] one atomic addition.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Failure;
use base::lock::lock;
use telemetry::{AttemptError, Quantiles, RecentTimes};

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

/// The figures of one address at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct FiguresShown {
    /// The number of ended requests or writes of a connection, failed connections included.
    pub requests: u64,
    /// The number of bytes that were sent to the address, repetitions included.
    pub sent_bytes: u64,
    /// The number of errors by reason, without zeros.
    pub errors: Vec<(AttemptError, u64)>,
    /// Quantiles of the times from sending to the acknowledgement; `None` if none is recent.
    pub times: Option<Quantiles>,
    /// The text of the last error, and the time since then; `None` if there was none.
    pub last_error: Option<(String, Duration)>,
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

    /// Returns the figures of this moment, for `/status`.
    pub fn show(&self) -> FiguresShown {
        let now = Instant::now();
        let counted = lock(&self.counted);
        let last_error = counted.last_error.as_ref();
        FiguresShown {
            requests: counted.requests,
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            errors: counted.errors.clone(),
            times: counted.times.quantiles(now),
            last_error: last_error.map(|(text, at)| (text.clone(), now.duration_since(*at))),
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
        assert_eq!(figures.show().last_error.unwrap().0.chars().count(), ERROR_CHARS_MAX);
        // A response that takes some events and refuses others is one request, and has a time and
        // an error.
        let failure = Failure::new(AttemptError::Item, "one is refused");
        figures.ended(Some(Duration::from_millis(50)), Some(&failure));
        tokio::time::advance(Duration::from_secs(2)).await;
        let shown = figures.show();
        assert_eq!((shown.requests, shown.sent_bytes), (6, 701));
        assert_eq!(shown.errors, [(AttemptError::Status5xx, 2), (AttemptError::Item, 1)]);
        let error = shown.last_error.unwrap();
        assert_eq!(error, ("one is refused".to_owned(), Duration::from_secs(2)));
        let Quantiles { p50, p99 } = shown.times.unwrap();
        assert!((0.046..0.054).contains(&p50) && p50 == p99, "{p50} {p99}");
    }
}
