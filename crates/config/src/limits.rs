//! `[limits]`: the limits of requests and connections.

use std::time::Duration;

use super::queue;
use super::queue::{BATCH_OVERHEAD, Queue};
use config_table::problem::Severity;
use config_table::reader::Context;
use config_table::table::Table;
use config_table::values::{KIB, MIB, ROOM_MIN, TIME_MIN, secs, unless_zero};

/// The maximum of `max_connections`: the default of `fs.nr_open`, which limits the sockets of a
/// process.
const CONNECTIONS_MAX: u64 = 1 << 20;

/// The size in bytes that usual request bodies do not exceed: a batch of 400 events at the audit
/// level RequestResponse is seldom larger. If other keys set a lower limit, there is a warning.
const USUAL_BODY: u64 = 64 * MIB;

/// The settings of the section `[limits]`. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The largest accepted request body; a larger one gets 413. The smallest of the configured
    /// `max_body`, `max_in_flight` and, for a queue in memory, `queue.max_bytes` - 256 or, for a
    /// queue on disk, half of `queue.max_bytes`.
    pub max_body: u64,
    /// The maximum number of bytes that request bodies occupy in memory. A body counts until it is
    /// in the queue, and also while its sender waits for the acknowledgement.
    pub max_in_flight: u64,
    /// The maximum number of open connections across all listeners.
    pub max_connections: usize,
    /// The time limit from the first byte to the end of a request's head, and for a TLS handshake.
    pub header_timeout: Duration,
    /// The time limit from the end of a request's head to the end of its body.
    pub body_timeout: Duration,
    /// The longest time that a connection without a request is kept open for the next one.
    pub idle_timeout: Duration,
    /// The age, ±10% at random, at which a connection is closed. A request in progress gets its
    /// response first. `None` if there is no age limit.
    pub max_connection_age: Option<Duration>,
}

/// Reads `[limits]`, with `max_body` as configured; see [`effective_max_body`].
pub(crate) fn read(t: &mut Table<'_, '_>) -> Limits {
    Limits {
        max_body: t.size(
            "max_body",
            256 * MIB,
            KIB..,
            "maximum bytes of a request body in memory, after decompression; a larger list is read \
             event by event, and its largest events are trimmed; above it, anything else gets 413. \
             The effective limit is the smallest of this, `max_in_flight` and `queue.max_bytes` / \
             2 (with a queue in memory: `queue.max_bytes` - 256)",
        ),
        max_in_flight: t.size(
            "max_in_flight",
            256 * MIB,
            ROOM_MIN..,
            "maximum bytes of request bodies in memory that are not yet queued, or whose senders \
             are still waiting for a response; above it: 429",
        ),
        max_connections: usize::try_from(t.count(
            "max_connections",
            4096,
            1..=CONNECTIONS_MAX,
            "maximum number of connections across all listeners. Above it, a new connection \
             replaces one whose requests were all refused or, if there is none, the one that has \
             gone longest without a complete request head. If the limit on open files is too low \
             for this value, the value is reduced",
        ))
        .unwrap_or(usize::MAX),
        header_timeout: t.time(
            "header_timeout",
            secs(10),
            TIME_MIN..,
            "timeout for a request head, from its first byte",
        ),
        body_timeout: t.time(
            "body_timeout",
            secs(30),
            TIME_MIN..,
            "timeout for the whole body, after which the sender gets 408; the body of a refused \
             request gets 2s, plus 2s for each 128KiB",
        ),
        idle_timeout: t.time(
            "idle_timeout",
            secs(300),
            TIME_MIN..,
            "maximum time between two requests on a connection",
        ),
        max_connection_age: unless_zero(t.time(
            "max_connection_age",
            secs(900),
            ..,
            "age (±10%) at which a connection is closed after its current response (Connection: \
             close or GOAWAY); `\"0s\"`: never",
        )),
    }
}

/// Returns the largest request body, in bytes, that `limits` and `queue` together allow. Warns if
/// this is less than the file's `max_body`, or, if the file has none, too small for usual batches.
pub(super) fn effective_max_body(cx: &Context<'_>, limits: &Limits, queue: &Queue) -> u64 {
    let (room, room_shown) = if queue::is_durable(cx) {
        (queue.max_bytes / 2, "queue.max_bytes / 2 (with queue.directory)")
    } else {
        (queue.max_bytes - BATCH_OVERHEAD, "queue.max_bytes - 256")
    };
    let bounds = [
        (limits.max_body, "limits.max_body", "max_body"),
        (limits.max_in_flight, "limits.max_in_flight", "limits.max_in_flight"),
        (room, "queue.max_bytes", room_shown),
    ];
    // If bounds are equal, the first is taken: max_body itself, if it is among them.
    let [configured, ..] = bounds;
    let smallest = bounds.into_iter().min_by_key(|(size, ..)| *size).unwrap_or(configured);
    let known = cx.are_known(&["limits.max_body", "limits.max_in_flight", "queue.max_bytes"]);
    let is_asked_for = cx.is_set(configured.1) || smallest.0 < USUAL_BODY;
    if smallest.0 < configured.0 && known && is_asked_for {
        let (_, key, shown) = smallest;
        // If the file does not set max_body, the warning is about the key that lowers its default.
        let (key, than) = match cx.is_set(configured.1) {
            true => (configured.1, ""),
            false => (key, " than the default of limits.max_body"),
        };
        let message = format!("{shown} is smaller{than}, and takes effect instead");
        cx.problem_at(key, key, message, Severity::Warning);
    }
    smallest.0
}
