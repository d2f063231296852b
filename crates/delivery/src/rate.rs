//! The limit of the bytes that an output sends in a second: `rate_limit`.

use std::time::Duration;

use tokio::time::Instant;

/// The limit of one output. A batch is sent whole, and the output then waits until the bytes are
/// within the limit. Time in which nothing was sent is not saved up.
pub(super) struct Rate {
    /// In bytes per second.
    limit: Option<u64>,
    free_at: Option<Instant>,
}

impl Rate {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self { limit, free_at: None }
    }

    /// Returns the moment before which no events may be sent; `None` if they may be sent now.
    pub(super) fn closed_until(&self) -> Option<Instant> {
        self.free_at.filter(|at| *at > Instant::now())
    }

    pub(crate) fn sent(&mut self, bytes: u64) {
        let Some(limit) = self.limit else { return };
        let begin = self.closed_until().unwrap_or_else(Instant::now);
        self.free_at = Some(begin + Duration::from_secs_f64(bytes as f64 / limit as f64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn batches_of_any_size_keep_the_limit_on_average() {
        let (begun, mut rate, mut sent) = (Instant::now(), Rate::new(Some(5_000_000)), 0);
        let mut random = fastrand::Rng::with_seed(1);
        while begun.elapsed() < Duration::from_secs(60) {
            if let Some(until) = rate.closed_until() {
                tokio::time::sleep_until(until).await;
            }
            let bytes = random.u64(1..4_000_000);
            rate.sent(bytes);
            sent += bytes;
        }
        assert!((290_000_000..310_000_000).contains(&sent), "{sent}");
        // An hour of rest does not allow more than one batch without a pause.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(rate.closed_until().is_none());
        rate.sent(10_000_000);
        let until = rate.closed_until().expect("two seconds have to pass");
        assert_eq!(until.duration_since(Instant::now()), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let mut rate = Rate::new(None);
        rate.sent(u64::MAX);
        assert!(rate.closed_until().is_none());
    }
}
