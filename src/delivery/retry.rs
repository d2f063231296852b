//! How long to wait before the next attempt. The only file that knows the crate `backoff`.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::ExponentialBackoffBuilder;
use backoff::backoff::Backoff;

use crate::config;

/// A consumer's Retry-After is heeded up to here; what asks for more has lost its clock.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(5 * 60);

/// Growing, jittered waits without an end. Owned by a delivery loop.
pub(super) struct Retry {
    backoff: ExponentialBackoff,
}

impl Retry {
    pub(super) fn new(config: &config::Retry) -> Self {
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(config.initial_interval)
            .with_max_interval(config.max_interval)
            .with_multiplier(config.multiplier)
            .with_randomization_factor(config.randomization_factor)
            .with_max_elapsed_time(None)
            .build();
        Self { backoff }
    }

    /// The next wait: longer than the last, and no shorter than what the consumer asked for.
    pub(super) fn pause(&mut self, retry_after: Option<Duration>) -> Duration {
        // None only where a maximum of elapsed time is set.
        let own = self.backoff.next_backoff().unwrap_or(self.backoff.max_interval);
        own.max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX))
    }

    /// After a success.
    pub(super) fn reset(&mut self) {
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_start_again_after_a_success() {
        let mut retry = Retry::new(&config::Retry {
            initial_interval: Duration::from_millis(500),
            max_interval: Duration::from_secs(30),
            multiplier: 2.0,
            randomization_factor: 0.0,
            max_elapsed: None,
        });
        let waits: Vec<_> = (0..9).map(|_| retry.pause(None).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert_eq!(retry.pause(Some(Duration::from_secs(60))), Duration::from_secs(60));
        assert_eq!(retry.pause(Some(Duration::from_secs(86_400))), Duration::from_secs(300));
        retry.reset();
        assert_eq!(retry.pause(Some(Duration::from_millis(1))), Duration::from_millis(500));
    }
}
