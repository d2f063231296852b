//! The sections that every output has in addition to `filter`: `retry`, `timeouts`, `batch` and
//! `rejected`.

use std::ops::Bound;
use std::time::Duration;

use config_table::table::Table;
use config_table::values::{BatchBytes, TIME_MIN, millis, secs, unless_zero};

/// `[output.retry]`: how long an output waits before it tries again to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// The wait after the first failed attempt.
    pub initial_interval: Duration,
    /// The longest wait between two attempts, before the wait is randomized.
    pub max_interval: Duration,
    /// The factor from one wait to the next; at least 1.
    pub multiplier: f64,
    /// The random part of each wait, relative to the wait, from 0 to 1. With 0.5 and an interval of
    /// 10 s, the wait is a random time from 5 s to 15 s.
    pub randomization_factor: f64,
}

/// `[output.timeouts]`: the time limits of connections and of attempts to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    /// The time limit for each of these: the lookup of a host name; the connection to one address
    /// (TCP, the proxy's CONNECT and TLS together); with `relp`, the protocol's `open`.
    pub connect: Duration,
    /// The longest time that an attempt to send goes on without progress to an acknowledgement.
    pub request: Duration,
    /// The age, ±10% at random, at which the output replaces a connection by a new one. The work
    /// on the old connection is finished first. `None` if there is no age limit.
    pub max_connection_age: Option<Duration>,
}

/// `[output.batch]`: the limits of one request or write to the consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// The maximum number of bytes. A larger event is sent alone, in a request or write of its own.
    pub max_bytes: u64,
    /// The maximum number of events; at least 1.
    pub max_events: u64,
}

/// `[output.rejected] action`: the treatment of an event that the consumer turns down again and
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// The event is written to the dead-letter files, or dropped if there is no directory for them.
    DeadLetter,
    /// The event is dropped and counted as lost.
    Drop,
    /// The event is sent again, without limit, until the consumer accepts it.
    Retry,
}

/// The default of `after_server_errors` if a sender waits for the output. The next try of the event
/// may be 30 s later. That leaves 105 s of three minutes to find the event among the 400 of a
/// batch: enough for a consumer that takes 10 s to fail.
const AFTER_SERVER_ERRORS_AWAITED: Duration = secs(45);

/// The longest `after_server_errors` without a warning if a sender waits for the output.
/// kube-apiserver repeats a batch for about four minutes, and then drops it.
pub(super) const AFTER_SERVER_ERRORS_MAX: Duration = secs(180);

/// The message for `max_elapsed`, which 0.1 had.
const MAX_ELAPSED_ENDED: &str = "this key has ended: remove it. The relay keeps sending an event \
    until its consumer takes it, or turns it down while it takes others. To bound what waits for a \
    consumer, set queue.max_bytes and queue.when_full";

pub(crate) fn retry(t: &mut Table<'_, '_>) -> Retry {
    let retry = Retry {
        initial_interval: t.time("initial_interval", millis(500), TIME_MIN.., "initial wait"),
        max_interval: t.time("max_interval", secs(30), TIME_MIN.., "maximum wait, before jitter"),
        multiplier: t.number("multiplier", 2.0, 1.0.., "factor by which each wait grows"),
        randomization_factor: t.number(
            "randomization_factor",
            0.5,
            0.0..=1.0,
            "jitter: each wait is multiplied by a random factor from 1 - this to 1 + this",
        ),
    };
    let [initial, max] = ["initial_interval", "max_interval"].map(|name| t.path_of(name));
    if retry.initial_interval > retry.max_interval && t.cx.are_known(&[&initial, &max]) {
        if t.is_set("initial_interval") {
            t.error(
                "initial_interval",
                "is longer than max_interval: lower it, or raise max_interval",
            );
        } else {
            t.error(
                "max_interval",
                "is shorter than initial_interval: raise it, or lower initial_interval",
            );
        }
    }
    t.refuse_rest(&|key| (key == "max_elapsed").then(|| MAX_ELAPSED_ENDED.to_owned()));
    retry
}

pub(crate) fn timeouts(t: &mut Table<'_, '_>) -> Timeouts {
    Timeouts {
        connect: t.time(
            "connect",
            secs(5),
            TIME_MIN..,
            "timeout for each of these: resolving a name; all handshakes with one address combined \
             (TCP, proxy and TLS); the `open` command (`relp`)",
        ),
        request: t.time(
            "request",
            secs(60),
            TIME_MIN..,
            "maximum time without progress toward an acknowledgement. If a slow consumer takes \
             longer, it gets the same events again, in smaller requests. Limited to 10 s while \
             another address may respond (does not apply to `tcp`, `syslog` and `kafka`). Over \
             HTTP, the time runs from when the consumer's kernel has received the whole request \
             to the end of the final response's headers",
        ),
        max_connection_age: unless_zero(t.time(
            "max_connection_age",
            Duration::ZERO,
            ..,
            "age (±10%) at which a connection is closed gracefully and reopened; `\"0s\"`: never",
        )),
    }
}

/// Reads `[output.batch]` of a type of output that allows these values of `max_bytes`.
pub(crate) fn batch(t: &mut Table<'_, '_>, bytes: BatchBytes) -> BatchLimits {
    let max = bytes.max.map_or(Bound::Unbounded, Bound::Included);
    BatchLimits {
        max_bytes: t.size(
            "max_bytes",
            bytes.default,
            (Bound::Included(1), max),
            "maximum bytes of events per request or write; a larger event is sent alone",
        ),
        max_events: t.count(
            "max_events",
            5000,
            1..=u64::from(u32::MAX),
            "maximum events per request or write",
        ),
    }
}

/// Reads `action` (never `None`) and `after_server_errors` of `[output.rejected]`. `is_awaited`: a
/// sender waits until this output has finished its events.
pub(crate) fn rejected(t: &mut Table<'_, '_>, is_awaited: bool) -> (Option<Rejected>, Duration) {
    let action = t.choice(
        "action",
        &[
            ("dead_letter", Rejected::DeadLetter),
            ("drop", Rejected::Drop),
            ("retry", Rejected::Retry),
        ],
        Some(Rejected::DeadLetter),
        "what happens to an event that the consumer turns down again and again while it accepts \
         others; `dead_letter` drops it if dead letters have no directory; `retry` keeps trying \
         it. Dead letters and dropped events count as lost",
    );
    let default = if is_awaited { AFTER_SERVER_ERRORS_AWAITED } else { secs(3600) };
    let after_server_errors = t.time_with(
        "after_server_errors",
        (default, "\"60m\"".to_owned()),
        TIME_MIN..,
        "time after which an event counts as refused if the consumer turns it down in another way \
         than by 400, 413 or 422 (another status, a closed connection, silence) while it accepts \
         other events. With a listener and `queue.acknowledge = \"delivered\"`, senders wait for \
         each output with `required = true`: the default is then 45s, and more than 3m causes a \
         warning",
    );
    (action, after_server_errors)
}
