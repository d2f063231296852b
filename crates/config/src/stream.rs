//! The keys of outputs that hold one TCP connection: `addresses`, `strategy`, keepalive, TLS.

use std::time::Duration;

use super::targets::Target;
use super::tls::ClientTls;
use config_table::table::{Table, required};
use config_table::values;
use config_table::values::{HostPort, secs, unless_zero};

/// The longest `keepalive`: Linux refuses a longer TCP_KEEPIDLE (MAX_TCP_KEEPIDLE).
const KEEPALIVE_MAX: Duration = Duration::from_secs(32_767);

/// The largest allowed value of the key `window`: how many events may be sent and not yet
/// acknowledged. After a connection breaks, all of these events are sent again, and a larger value
/// makes delivery no faster.
const WINDOW_MAX: u64 = 1 << 16;

/// The addresses of an output that speaks over one TCP connection, and the connection's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// The consumer's addresses, at least one.
    pub addresses: Vec<HostPort>,
    /// How the address of a connection is chosen from `addresses`.
    pub strategy: Strategy,
    /// The settings of TLS; `None`: plain TCP.
    pub tls: Option<ClientTls>,
    /// The time after which an unused connection is probed by TCP keepalive, and the time between
    /// two probes.
    pub keepalive: Duration,
    /// The output closes a connection that has carried no event for this long. `None`: an unused
    /// connection stays open.
    pub idle_timeout: Option<Duration>,
}

impl Stream {
    /// Reads the keys of an output that uses one TCP connection. A protocol must read its own plain
    /// keys before this call, because the call reads the section `tls`, and plain keys come before
    /// sections. Returns `None` if `addresses` is missing or wrong. Any other wrong value is
    /// replaced by its default or left out. Each problem is recorded.
    pub fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let addresses = t.words(
            required(
                "addresses",
                "array of host:port",
                "addresses of the consumer; IPv6 in brackets",
            ),
            values::host_port,
        );
        let strategy = Strategy::read(t);
        let keepalive =
            t.time("keepalive", secs(30), secs(1)..=KEEPALIVE_MAX, "interval of TCP keepalive");
        let idle_timeout = unless_zero(t.time(
            "idle_timeout",
            Duration::ZERO,
            ..,
            "time without events after which the relay reconnects, before a load balancer drops \
             the connection; \"0s\": never",
        ));
        let tls = ClientTls::read_optional(t);
        Some(Self { addresses: addresses?, strategy: strategy?, tls, keepalive, idle_timeout })
    }

    /// Returns the consumer's addresses as `Target`s, which can be compared with other addresses.
    /// See [`OutputSettings::targets`].
    ///
    /// [`OutputSettings::targets`]: super::protocol::OutputSettings::targets
    pub fn targets(&self) -> Vec<Target> {
        Target::of_addresses("addresses", &self.addresses, self.tls.is_some())
    }

    /// Reads `replay_window`, a key of protocols without acknowledgements. The value is a time that
    /// begins when the peer's kernel acknowledges bytes. If the connection does not break within
    /// this time, the bytes count as delivered. If it breaks earlier, the bytes are sent again,
    /// because the peer may not have read them.
    pub fn read_replay_window(t: &mut Table<'_, '_>) -> Duration {
        t.time(
            "replay_window",
            secs(1),
            ..=secs(300),
            "an event is delivered if the connection was not reset within this time after the \
             peer's kernel received it; after a break, newer events are sent again",
        )
    }

    /// Reads the key `window` of protocols with acknowledgements: the largest number of events (or
    /// messages, as `meaning` says) that may be sent and not yet acknowledged. The result is at
    /// least 1; it is `default` if the key is absent or wrong.
    pub fn read_window(t: &mut Table<'_, '_>, default: u64, meaning: &'static str) -> u64 {
        t.count("window", default, 1..=WINDOW_MAX, meaning)
    }
}

/// The values of the key `strategy`: how an output chooses one of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The output uses the first healthy address, in the order of the config.
    Failover,
    /// The output uses its addresses in turn. It takes the next address for each request (HTTP), or
    /// for each connection (other protocols).
    RoundRobin,
}

impl Strategy {
    /// Returns the value as the config has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failover => "failover",
            Self::RoundRobin => "round_robin",
        }
    }

    /// Reads the key `strategy`. Returns `Failover`, the default, if the key is absent or wrong, so
    /// the result is never `None`; a wrong value is recorded as a problem.
    pub fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        t.choice(
            "strategy",
            &[(Self::Failover.name(), Self::Failover), (Self::RoundRobin.name(), Self::RoundRobin)],
            Some(Self::Failover),
            "the first healthy address in the order of the config; or the next address for each \
             request (http) or connection",
        )
    }
}
