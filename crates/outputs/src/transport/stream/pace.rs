//! The limit for bytes that a stream sends ahead, so that every consumer makes progress.

use base::mutant;

/// The limit for bytes that are sent and not yet final. All connections of an output, which exist
/// one after the other, share one value.
///
/// There is no limit until a connection breaks with bytes that are not final. The limit is then
/// half of the bytes that were sent on the broken connection. The bytes that are sent under the
/// limit are a *window*: no more bytes are sent until all of them are final, and then the next
/// window begins. When a window becomes final, the limit may double. It doubles only if more bytes
/// have become final since the break than were sent on the broken connection. Bytes on connections
/// that ended in order count too. This matters if a consumer ends connections on which nothing
/// arrives: nothing is sent until the window is final.
///
/// For example, a consumer cuts every connection after N = 100 kB. With this limit, the relay sends
/// 50 kB that become final on each connection, and then 50 kB in vain. If the limit doubled after
/// the first window, 100 kB would be sent in vain after the first 50 kB.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The maximum bytes that may be sent before all of them are final. A larger batch is sent
    /// alone. `None`: no limit.
    limit: Option<u64>,
    /// The bytes that were sent on the last connection whose break set the limit.
    broke_after: u64,
    /// The bytes that were sent in the current window. Not used without a limit.
    window: u64,
    /// The bytes of this connection that are final.
    final_bytes: u64,
    /// The bytes that have become final on all connections since a break last set the limit.
    since_break: u64,
    /// The bytes that were sent on this connection.
    sent: u64,
}

impl Pace {
    /// Begins a new connection. The limit stays.
    pub(super) fn connected(&mut self) {
        (self.window, self.final_bytes, self.sent) = (0, 0, 0);
    }

    /// Returns the maximum bytes that may be taken from the queue now. `None` if the limit is
    /// reached: all sent bytes must become final first.
    pub(super) fn room(&self) -> Option<u64> {
        match self.limit {
            None => Some(u64::MAX),
            Some(limit) if self.window == 0 => Some(limit),
            Some(limit) => limit.checked_sub(self.window).filter(|left| *left > 0),
        }
    }

    /// Returns `true` if the writing of a batch of `bytes` bytes may begin now. A batch that does
    /// not fit in the rest of the limit must wait until all earlier bytes are final. Otherwise the
    /// batch could break every connection before the earlier bytes are final.
    pub(super) fn may_begin(&self, bytes: u64) -> bool {
        self.limit.is_none_or(|limit| {
            self.window == 0
                || mutant!(
                    "stream-sends-large-after-break",
                    self.window + bytes <= limit,
                    self.window < limit
                )
        })
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
        self.window += bytes;
    }

    /// Records that `bytes` bytes became final. `all` is `true` if all sent bytes are now final:
    /// the next window begins, and the limit may double.
    pub(super) fn finished(&mut self, bytes: u64, all: bool) {
        self.final_bytes += bytes;
        self.since_break += bytes;
        let Some(limit) = self.limit.filter(|_| all && self.window > 0) else { return };
        self.window = 0;
        if mutant!("orderly-ends-keep-the-limit", self.since_break, self.final_bytes)
            > self.broke_after
        {
            // A limit beyond 1 TiB limits nothing: no replay window holds that many bytes.
            self.limit = limit.checked_mul(2).filter(|doubled| *doubled < 1 << 40);
        }
    }

    /// Records that the connection broke. If some bytes of the connection are not final, the limit
    /// becomes half of all bytes that were sent on it. Otherwise nothing changes.
    pub(super) fn broke(&mut self) {
        if self.sent > self.final_bytes {
            (self.broke_after, self.since_break) = (self.sent, 0);
            self.limit = Some((self.sent / 2).max(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pace;

    /// Returns the number of bytes that are sent until a consumer has `total` bytes. The consumer
    /// breaks each connection after `cut` bytes.
    fn sent_to_cutter(cut: u64, total: u64) -> u64 {
        let (mut pace, mut done, mut sent, mut carried) = (Pace::default(), 0, 0, 0);
        while done < total {
            let part = pace.room().unwrap().min(total - done).min(4 * cut);
            pace.sent(part);
            (sent, carried) = (sent + part, carried + part);
            if carried > cut {
                pace.broke();
                pace.connected();
                carried = 0;
            } else {
                pace.finished(part, true);
                done += part;
            }
        }
        sent
    }

    #[test]
    fn a_consumer_that_cuts_gets_everything_for_at_most_three_times_the_bytes() {
        for cut in [1_000, 65_536, 1_999_999, 2_000_000] {
            let total = 50 * cut;
            let sent = sent_to_cutter(cut, total);
            assert!(sent <= 3 * total, "{cut}: {sent} sent for {total}");
        }
    }

    /// The consumer closes a connection that was unused for less than the replay window. Each
    /// connection therefore carries one window, and ends in order.
    #[test]
    fn after_a_break_the_limit_goes_away_although_each_connection_ends_after_a_window() {
        let mut pace = Pace::default();
        pace.connected();
        pace.sent(1000);
        pace.broke();
        let mut connections = 0;
        loop {
            pace.connected();
            let Some(room) = pace.room().filter(|room| *room < u64::MAX) else { break };
            pace.sent(room);
            pace.finished(room, true);
            connections += 1;
            assert!(connections < 40, "{pace:?}");
        }
    }

    #[test]
    fn after_a_single_break_the_limit_goes_away_again() {
        let mut pace = Pace::default();
        pace.connected();
        assert_eq!(pace.room(), Some(u64::MAX));
        pace.sent(1000);
        pace.broke();
        pace.connected();
        assert_eq!(pace.room(), Some(500));
        pace.sent(500);
        assert_eq!(pace.room(), None);
        pace.finished(500, true);
        // The second window reaches the 1000 bytes of the break, and the third one passes them.
        // Then the limit doubles.
        assert_eq!(pace.room(), Some(500));
        pace.sent(500);
        pace.finished(500, true);
        assert_eq!(pace.room(), Some(500));
        let mut windows = 0;
        while let Some(room) = pace.room().filter(|room| *room < u64::MAX) {
            pace.sent(room);
            pace.finished(room, true);
            windows += 1;
        }
        assert!(windows < 40, "{windows}");
    }
}
