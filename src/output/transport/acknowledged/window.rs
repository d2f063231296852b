//! How many events an acknowledged session may have under way.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// The most events that may be sent and not yet acknowledged. All connections of an output, which
/// exist one after the other, share one value.
///
/// The number is `window` from the config until a connection breaks. It then falls to half of the
/// events that were sent on that connection, unless it is lower already, and is at least 1. It
/// grows by one with each acknowledged event, up to `window`. For example, after a connection broke
/// at 80 events, 40 may be unacknowledged; when 20 of them are acknowledged, the number is 60.
pub(super) struct Window {
    /// The most events that the config allows to be sent and not yet acknowledged.
    configured: u64,
    /// The most events that may be sent and not yet acknowledged now: at least 1, and at most
    /// `configured`.
    now: AtomicU64,
}

impl Window {
    /// Makes the limit for an output that has had no broken connection yet. `configured` is the
    /// most events that may ever be sent and not yet acknowledged.
    pub(super) fn new(configured: u64) -> Self {
        Self { configured, now: AtomicU64::new(configured) }
    }

    /// Returns the number of events that may be sent and not yet acknowledged now.
    pub(super) fn events(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Notes that the consumer has acknowledged `events` more events. From now on, `events` more
    /// may be unacknowledged, up to the configured number.
    pub(super) fn acknowledged(&self, events: u64) {
        let grown = self.events().saturating_add(events).min(self.configured);
        self.now.store(grown, Ordering::Relaxed);
    }

    /// Notes that a connection broke while events waited for acknowledgement. Fewer events may then
    /// be sent without acknowledgement. `sent` is the number of all events that were sent on that
    /// connection.
    pub(super) fn broke_after(&self, sent: u64) {
        self.now.store(self.events().min(sent / 2).max(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates a consumer that cuts each connection after `cut` events and acknowledges claims
    /// whole, and counts the events that are sent to it.
    #[test]
    fn a_consumer_that_cuts_gets_everything_for_a_few_times_the_events() {
        for cut in [1, 2, 3, 100, 1000, 2047, 2048] {
            let window = Window::new(2048);
            let (mut done, mut sent, total) = (0, 0, 50 * cut);
            while done < total {
                let mut carried = 0;
                loop {
                    let claim = window.events().div_ceil(2);
                    carried += claim;
                    if carried > cut {
                        // The next claim was on its way too.
                        carried += claim;
                        window.broke_after(carried);
                        break;
                    }
                    done += claim;
                    window.acknowledged(claim);
                }
                sent += carried;
            }
            assert!(sent <= 6 * total + 4096, "{cut}: {sent} sent for {total}");
        }
    }

    #[test]
    fn after_a_break_the_window_grows_with_each_acknowledgement() {
        let window = Window::new(100);
        window.broke_after(1000);
        assert_eq!(window.events(), 100);
        window.broke_after(80);
        assert_eq!(window.events(), 40);
        window.acknowledged(20);
        assert_eq!(window.events(), 60);
        window.acknowledged(1000);
        assert_eq!(window.events(), 100);
        window.broke_after(1);
        assert_eq!(window.events(), 1);
    }
}
