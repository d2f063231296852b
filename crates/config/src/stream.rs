//! The keys of outputs that hold one TCP connection: `addresses`, `strategy`, keepalive, TLS.

use std::time::Duration;

use super::targets::Target;
use super::tls::ClientTls;
use config_table::table::{Table, required};
use config_table::values;
use config_table::values::{HostPort, secs, unless_zero};

/// The longest `keepalive`: Linux refuses a longer TCP_KEEPIDLE (MAX_TCP_KEEPIDLE).
const KEEPALIVE_MAX: Duration = Duration::from_secs(32_767);

/// The maximum of `window`, the number of events that may be sent and not yet acknowledged. All of
/// them are sent again after a connection breaks, and a larger value makes delivery no faster.
const WINDOW_MAX: u64 = 1 << 16;

/// The addresses of an output that holds one TCP connection, and the connection's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// The consumer's addresses; at least one.
    pub addresses: Vec<HostPort>,
    /// How the address of a connection is chosen from `addresses`.
    pub strategy: Strategy,
    /// The settings of TLS; `None` for plain TCP.
    pub tls: Option<ClientTls>,
    /// The time until an unused connection is probed by TCP keepalive, and between two probes.
    pub keepalive: Duration,
    /// A connection that has carried no event for this long is closed. `None` if an unused
    /// connection stays open.
    pub idle_timeout: Option<Duration>,
}

impl Stream {
    /// Reads the keys. A protocol reads its own plain keys first, because the section `tls` is read
    /// here, and plain keys come before sections. `None` if `addresses` is missing or wrong.
    pub fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let addresses = t.words(
            required("addresses", "array of host:port", "consumer addresses; IPv6 in brackets"),
            values::host_port,
        );
        let strategy = Strategy::read(t);
        let keepalive =
            t.time("keepalive", secs(30), secs(1)..=KEEPALIVE_MAX, "TCP keepalive interval");
        let idle_timeout = unless_zero(t.time(
            "idle_timeout",
            Duration::ZERO,
            ..,
            "time without events after which the relay closes the connection, before a load \
             balancer drops it; `\"0s\"`: never",
        ));
        let tls = ClientTls::read_optional(t);
        Some(Self { addresses: addresses?, strategy: strategy?, tls, keepalive, idle_timeout })
    }

    /// Returns the consumer's addresses, as `OutputSettings::targets` needs them.
    pub fn targets(&self) -> Vec<Target> {
        Target::of_addresses("addresses", &self.addresses)
    }

    /// Reads `replay_window`, a key of protocols without acknowledgements. If a connection breaks
    /// within this time after the peer's kernel has acknowledged bytes, the bytes are sent again,
    /// because the peer may not have read them. Otherwise, they count as delivered.
    pub fn read_replay_window(t: &mut Table<'_, '_>) -> Duration {
        t.time(
            "replay_window",
            secs(1),
            ..=secs(300),
            "an event counts as delivered if the connection is not reset within this time after \
             the peer's kernel has received it; if the connection breaks, events that do not count \
             as delivered yet are sent again",
        )
    }

    /// Reads `window`, a key of protocols with acknowledgements: the maximum number of events (or
    /// messages, as `meaning` says) that may be sent and not yet acknowledged; at least 1.
    pub fn read_window(t: &mut Table<'_, '_>, default: u64, meaning: &'static str) -> u64 {
        t.count("window", default, 1..=WINDOW_MAX, meaning)
    }
}

/// `strategy`: how an output chooses one of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The first healthy address, in the order of the config.
    Failover,
    /// The addresses in turn: the next one for each request (HTTP) or connection (other protocols).
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

    /// Reads `strategy`. The default is `Failover`; never `None`.
    pub fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        t.choice(
            "strategy",
            &[(Self::Failover.name(), Self::Failover), (Self::RoundRobin.name(), Self::RoundRobin)],
            Some(Self::Failover),
            "`failover`: the first healthy address in the listed order; `round_robin`: the next \
             address for each request (HTTP) or connection",
        )
    }
}
