//! The repeated attempts of a reload that could not bind an address.
//!
//! An address that is in use, or that this machine does not have yet, may be available a moment
//! later, without a change of any file. The pauses between the attempts grow. The attempts end with
//! any other reload, and with an attempt that succeeds or fails for another reason.

use std::time::Duration;

use tokio::time::Instant;

/// The first and the longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The shortest time between two log lines about attempts that fail.
const QUIET: Duration = Duration::from_secs(60);

/// The next attempt of a reload that could not bind an address, and the pause before that attempt.
/// `None` if no reload waits for an address.
#[derive(Default)]
pub(crate) struct Again(Option<Waiting>);

struct Waiting {
    next: Instant,
    pause: Duration,
    told: Instant,
}

impl Again {
    /// Notes an attempt that failed because of an address. Returns `true` if a log line about it is
    /// due.
    pub(crate) fn failed(&mut self) -> bool {
        let (now, (first, longest)) = (Instant::now(), PAUSES);
        let Some(waiting) = &mut self.0 else {
            self.0 = Some(Waiting { next: now + first, pause: first, told: now });
            return true;
        };
        waiting.pause = (waiting.pause * 2).min(longest);
        waiting.next = now + waiting.pause;
        let tells = now >= waiting.told + QUIET;
        if tells {
            waiting.told = now;
        }
        tells
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn end(&mut self) {
        self.0 = None;
    }

    /// Waits until the next attempt is due. If no reload waits, never returns.
    pub(crate) async fn due(&self) {
        match &self.0 {
            Some(waiting) => tokio::time::sleep_until(waiting.next).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_pauses_grow_to_half_a_minute_and_the_log_tells_each_minute() {
        let mut again = Again::default();
        let (mut pauses, mut told) = (Vec::new(), 0);
        for _ in 0..10 {
            told += u32::from(again.failed());
            let before = Instant::now();
            again.due().await;
            pauses.push(before.elapsed().as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30, 30, 30]);
        assert_eq!(told, 3);
        again.end();
        assert!(again.failed(), "this is another reload");
    }
}
