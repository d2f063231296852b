//! The pauses between attempts. Only this file knows the crate `backoff`.

use std::time::Duration;

use backoff::backoff::Backoff;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

use super::failure::RETRY_AFTER_MAX;

/// The pauses after failures. Each loop that tries again owns its own value.
pub struct Retry {
    backoff: ExponentialBackoff,
}

impl Retry {
    /// Makes the series of pauses that the section `retry` of the config describes.
    pub fn new(config: &config::Retry) -> Self {
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(config.initial_interval)
            .with_max_interval(config.max_interval)
            .with_multiplier(config.multiplier)
            .with_randomization_factor(config.randomization_factor)
            .with_max_elapsed_time(None)
            .build();
        Self { backoff }
    }

    /// Returns the next pause. Pauses grow by `retry.multiplier` up to `retry.max_interval`, with a
    /// random difference. A pause is at least as long as `retry_after`, or [`RETRY_AFTER_MAX`] if
    /// that is shorter.
    pub fn pause(&mut self, retry_after: Option<Duration>) -> Duration {
        // `None` is returned only if a maximum of elapsed time is set, and none is.
        let own = self.backoff.next_backoff().unwrap_or(self.backoff.max_interval);
        own.max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX))
    }

    /// Goes back to the shortest pause, after a success.
    pub fn reset(&mut self) {
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
        });
        let waits: Vec<_> = (0..9).map(|_| retry.pause(None).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert_eq!(retry.pause(Some(Duration::from_secs(60))), Duration::from_secs(60));
        assert_eq!(retry.pause(Some(Duration::from_secs(86_400))), Duration::from_secs(300));
        retry.reset();
        assert_eq!(retry.pause(Some(Duration::from_millis(1))), Duration::from_millis(500));
    }
}
