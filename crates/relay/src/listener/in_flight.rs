//! Counts the bytes of bodies that are in memory, for `limits.max_in_flight`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::answer::Refusal;
use telemetry::Gauge;

/// The bytes in flight, which `limits.max_in_flight` limits. The bytes of a body count from their
/// arrival until their request ends and, if its sender has gone, until the body is decoded or
/// stored.
pub(super) struct InFlight {
    used: AtomicU64,
    gauge: Gauge,
}

impl InFlight {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self { used: AtomicU64::new(0), gauge }
    }

    /// Adds `bytes` and returns `true`; changes nothing and returns `false` if the sum exceeds
    /// `max`.
    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    fn add(&self, bytes: u64, max: u64) -> bool {
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= max)
        });
        if taken.is_ok() {
            self.gauge.increment(bytes as f64);
        }
        taken.is_ok()
    }

    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.gauge.decrement(bytes as f64);
    }

    pub(super) fn is_full(&self, max: u64) -> bool {
        self.used.load(Ordering::Relaxed) >= max
    }
}

/// The bytes of one body that [`InFlight`] counts. Dropping this value subtracts them.
pub(super) struct Reservation {
    in_flight: Arc<InFlight>,
    /// The largest value that the counter may reach: `limits.max_in_flight`.
    max: u64,
    bytes: u64,
}

impl Reservation {
    pub(super) fn new(in_flight: &Arc<InFlight>, max: u64) -> Self {
        Self { in_flight: Arc::clone(in_flight), max, bytes: 0 }
    }

    /// Sets the number of bytes that are counted for this body to `total`. Refuses the request with
    /// 429 if there is no room now.
    pub(super) fn set(&mut self, total: usize) -> Result<(), Refusal> {
        let total = total as u64;
        if total > self.bytes && !self.in_flight.add(total - self.bytes, self.max) {
            return Err(Refusal::in_flight_full());
        }
        self.in_flight.give_back(self.bytes.saturating_sub(total));
        self.bytes = total;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.in_flight.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_body_does_not_hold_any_more_is_free_again() {
        let in_flight = Arc::new(InFlight::new(Gauge::default()));
        let mut share = Reservation::new(&in_flight, 100);
        for held in [100, 20, 100, 60] {
            share.set(held).expect("there is room");
            assert_eq!(in_flight.is_full(100), held == 100);
        }
        drop(share);
        assert!(!in_flight.is_full(1), "nothing is left");
    }

    #[test]
    fn the_last_byte_of_max_in_flight_is_taken_and_no_more() {
        let in_flight = Arc::new(InFlight::new(Gauge::default()));
        assert!(in_flight.add(60, 100) && in_flight.add(40, 100) && in_flight.is_full(100));
        assert!(!in_flight.add(1, 100), "beyond the limit");
        in_flight.give_back(1);
        assert!(!in_flight.is_full(100) && in_flight.add(1, 100), "what was refused took nothing");
        assert!(!in_flight.add(u64::MAX, u64::MAX), "a sum beyond 64 bits");
    }
}
