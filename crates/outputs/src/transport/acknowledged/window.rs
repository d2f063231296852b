//! The limit for sent events without an acknowledgement.

use std::sync::atomic::{AtomicU64, Ordering};

/// The window of an output: the maximum number of sent events without an acknowledgement. All
/// connections of the output, which exist one after the other, share one window.
///
/// At first, the window is the config's `window`. When a connection breaks before its events are
/// acknowledged, the window falls to half of the events that were sent on that connection, unless
/// it is lower already. It never falls below 1. It grows by one with each acknowledged event, up to
/// the config's `window`. For example, a connection breaks after 80 events were sent: the window
/// falls to 40. When 20 events are acknowledged after that, the window is 60.
pub(super) struct Window {
    configured: u64,
    /// The current window: at least 1, and at most `configured`.
    now: AtomicU64,
}

impl Window {
    pub(super) fn new(configured: u64) -> Self {
        Self { configured, now: AtomicU64::new(configured) }
    }

    pub(super) fn events(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Raises the window by the number of newly acknowledged events, up to the configured window.
    pub(super) fn acknowledged(&self, events: u64) {
        let grown = self.events().saturating_add(events).min(self.configured);
        self.now.store(grown, Ordering::Relaxed);
    }

    /// Lowers the window after a connection broke before its events were acknowledged. `sent` is
    /// the number of all events that were sent on that connection, including acknowledged ones.
    pub(super) fn broke_after(&self, sent: u64) {
        self.now.store(self.events().min(sent / 2).max(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the events that are sent to a consumer that cuts each connection after `cut` events
    /// and acknowledges only whole claims.
    #[test]
    fn a_consumer_that_cuts_gets_everything_for_a_few_times_the_events() {
        for cut in [1, 2, 3, 100, 1000, 2047, 2048] {
            let window = Window::new(2048);
            let (mut done, mut sent, mut carried, total) = (0, 0, 0, 50 * cut);
            while done < total {
                let claim = window.events().div_ceil(2);
                (sent, carried) = (sent + claim, carried + claim);
                if carried > cut {
                    // The next claim was on its way too.
                    sent += claim;
                    window.broke_after(carried + claim);
                    carried = 0;
                } else {
                    done += claim;
                    window.acknowledged(claim);
                }
            }
            assert!(sent <= 6 * total + 4096, "{cut}: {sent} sent for {total}");
        }
    }

    #[test]
    fn after_a_break_the_window_grows_with_each_acknowledgement() {
        let window = Window::new(100);
        let broke = |sent| {
            window.broke_after(sent);
            window.events()
        };
        let acknowledged = |events| {
            window.acknowledged(events);
            window.events()
        };
        assert_eq!((broke(1000), broke(80)), (100, 40));
        assert_eq!((acknowledged(20), acknowledged(1000), broke(1)), (60, 100, 1));
    }
}
