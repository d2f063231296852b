//! `[queue]`: how much the relay holds, and what a 200 to a sender means.

use std::path::PathBuf;
use std::time::Duration;

use super::output;
use config_table::reader::Context;
use config_table::table::{Table, derived, optional};
use config_table::values;
use config_table::values::{KIB, MIB, ROOM_MIN, TIME_MIN, secs};

/// The bytes that each batch counts in addition to its events, for what the queue itself stores
/// about the batch.
pub const BATCH_OVERHEAD: u64 = 256;

/// The minimum of `max_bytes` on disk, where whole files count, and the body of a request can be at
/// most half of `max_bytes`.
const DISK_MIN: u64 = 256 * KIB;

/// The minimum of `segment_bytes`. With smaller files, the queue would spend most of its time on
/// creating and syncing files.
const SEGMENT_MIN: u64 = 16 * KIB;

/// The settings of the section `[queue]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// The maximum number of bytes in the queue. In memory, each batch counts as its bytes plus
    /// [`BATCH_OVERHEAD`]. On disk, whole files count, including reserved space that is not used
    /// yet.
    pub max_bytes: u64,
    /// The directory of the durable queue; `None` if the queue is in memory only.
    pub directory: Option<PathBuf>,
    /// `true` if the directory is deleted with the pod, so that everything is lost that a drain
    /// leaves in it. Without a directory, this value has no effect.
    pub ephemeral: bool,
    /// The size of one file on disk, in bytes. Without a directory, this value has no effect.
    pub segment_bytes: u64,
    /// The condition for the 200 to a sender: `Synced` with a directory, otherwise `Queued` or
    /// `Delivered`.
    pub acknowledge: Acknowledge,
    /// The longest time that a sender waits: for the condition of `acknowledge`, and for the
    /// decoding of each part of a body. After this time, the sender gets 503.
    pub delivered_timeout: Duration,
    /// The reaction to a new batch when the queue is full.
    pub when_full: WhenFull,
    /// The basis of `Retry-After` in the responses 429 and 503: the header is this time multiplied
    /// by a random factor from 0.6 to 1.6. For 5 s, the header is 3 s to 8 s.
    pub retry_after: Duration,
}

/// `queue.acknowledge`: the condition for the 200 to a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// The batch is in the queue.
    Queued,
    /// Each event of the batch is finished for every required output: the consumer has acknowledged
    /// the event, or the event was counted as lost or dropped.
    Delivered,
    /// The batch is synced to disk (fdatasync).
    Synced,
}

impl Acknowledge {
    /// Returns the value as the config has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delivered => "delivered",
            Self::Synced => "synced",
        }
    }
}

/// `queue.when_full`: the reaction to a new batch when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The sender gets 429 with the header `Retry-After`.
    Reject,
    /// The oldest batches are dropped and counted as lost. A batch that a required output has sent
    /// is not dropped while the output waits for the consumer's response.
    DropOldest,
    /// The new batch is dropped and counted as lost. The sender gets 200 nevertheless.
    DropNewest,
}

impl WhenFull {
    /// Returns the value as the config has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reject => "reject",
            Self::DropOldest => "drop_oldest",
            Self::DropNewest => "drop_newest",
        }
    }
}

/// The environment variable that overrides `queue.ephemeral`: the manifest that mounts the volume
/// knows how long the volume lasts, and the config does not.
const EPHEMERAL: &str = "KUBE_AUDIT_FORWARDER_EPHEMERAL";

/// Returns `true` if the file sets `queue.directory`, even to a wrong value. Call this function
/// only after the key was taken from its table.
pub(crate) fn is_durable(cx: &Context<'_>) -> bool {
    cx.is_set("queue.directory")
}

pub(crate) fn read(t: &mut Table<'_, '_>) -> Queue {
    let cx = t.cx;
    let max_bytes = t.size(
        "max_bytes",
        256 * MIB,
        ROOM_MIN..,
        "maximum size of the queue. In memory: the waiting events, plus 256 bytes for each batch; \
         on disk: whole files, including reserved space; must be at least 256KiB",
    );
    let directory = t.directory(optional(
        "directory",
        "path",
        "in memory",
        "directory for a queue on disk; created with mode 0700 if missing",
    ));
    let ephemeral = t.flag(
        "ephemeral",
        false,
        "`true`: the directory is deleted with the pod (emptyDir), so at shutdown the relay \
         delivers what it can and counts the rest as lost. The environment variable \
         KUBE_AUDIT_FORWARDER_EPHEMERAL (`true` or `false`) overrides this key",
    );
    let ephemeral = match t.env(EPHEMERAL).as_deref() {
        Some("true") => true,
        Some("false") => false,
        Some("") | None => ephemeral,
        Some(_) => {
            let message = format!(
                "is overridden by the environment variable {EPHEMERAL}, whose value is neither \
                 true nor false: set the variable to one of these, or remove it"
            );
            t.error("ephemeral", message);
            ephemeral
        }
    };
    if is_durable(cx) && max_bytes < DISK_MIN {
        let path = t.path_of("max_bytes");
        let least = values::show_size(DISK_MIN);
        cx.error(&path, format!("is too small with queue.directory, allowed: at least {least}"));
        // Other limits are computed from `max_bytes`. Errors about them would only repeat this one.
        cx.unknown.borrow_mut().insert(path);
    }
    let acknowledge = acknowledge(t);
    let delivered_timeout = t.time(
        "delivered_timeout",
        secs(25),
        TIME_MIN..,
        "maximum time that a batch waits before its sender gets 503: with `delivered`, for \
         delivery (kube-apiserver gives up after 30 s); with a directory, for fdatasync",
    );
    let when_full = t.choice(
        "when_full",
        &[
            (WhenFull::Reject.name(), WhenFull::Reject),
            (WhenFull::DropOldest.name(), WhenFull::DropOldest),
            (WhenFull::DropNewest.name(), WhenFull::DropNewest),
        ],
        Some(WhenFull::Reject),
        "`reject`: respond with 429 and Retry-After; `drop_oldest`, `drop_newest`: respond with \
         200, drop the oldest or the new events, and count them as lost; not allowed with \
         `acknowledge = \"delivered\"`",
    );
    let retry_after = t.time(
        "retry_after",
        secs(5),
        secs(1)..=secs(15),
        "Retry-After in 429 and 503 responses, randomized from 0.6 to 1.6 times this value",
    );
    let segment_bytes = segment_bytes(t, max_bytes);
    Queue {
        max_bytes,
        directory,
        ephemeral,
        segment_bytes,
        acknowledge,
        delivered_timeout,
        when_full: when_full.unwrap_or(WhenFull::Reject),
        retry_after,
    }
}

fn acknowledge(t: &mut Table<'_, '_>) -> Acknowledge {
    let default = if is_durable(t.cx) { Acknowledge::Synced } else { Acknowledge::Queued };
    let chosen = t.choice(
        "acknowledge",
        &[
            (Acknowledge::Queued.name(), Acknowledge::Queued),
            (Acknowledge::Delivered.name(), Acknowledge::Delivered),
            (Acknowledge::Synced.name(), Acknowledge::Synced),
        ],
        Some(default),
        "the sender gets 200 once the batch is in the queue (`queued`), delivered or given up by \
         every required output (`delivered`), or synced to disk with fdatasync (`synced`). With a \
         directory, `synced` is the default and the only choice; without one, it is not available",
    );
    chosen.unwrap_or(default)
}

/// Reads `segment_bytes`. The maximum is a quarter of `max_bytes`, because the queue drops events
/// by deleting whole files.
fn segment_bytes(t: &mut Table<'_, '_>, max_bytes: u64) -> u64 {
    let (cx, path) = (t.cx, t.path_of("segment_bytes"));
    let durable = is_durable(cx);
    let limit_known = cx.are_known(&["queue.max_bytes"]);
    let limit = max_bytes / 4;
    let default = limit.min(64 * MIB);
    let key = derived(
        "segment_bytes",
        "size, 16KiB to max_bytes / 4",
        ((durable && limit_known).then_some(default), "the smaller of 64MiB and max_bytes / 4"),
        "size of each queue file; requires a directory",
    );
    let least = if durable { SEGMENT_MIN } else { 0 };
    let segment_bytes = t.size_of(key, least..).unwrap_or(default);
    if !limit_known {
        return segment_bytes;
    }
    if durable && segment_bytes > limit {
        let most = values::show_size(limit);
        cx.error(&path, format!("is larger than queue.max_bytes / 4, allowed: at most {most}"));
    }
    if !durable && segment_bytes != default {
        let message = "needs queue.directory: set that key, or remove this one";
        cx.error(&path, message);
    }
    segment_bytes
}

/// Reports contradictions between `acknowledge`, `directory`, `when_full`, and the outputs.
pub(super) fn contradictions(cx: &Context<'_>, queue: &Queue, outputs: &[output::Draft]) {
    match (is_durable(cx), queue.acknowledge) {
        (false, Acknowledge::Queued) | (true, Acknowledge::Synced) => {}
        (false, Acknowledge::Delivered) => contradictions_of_delivered(cx, queue, outputs),
        (false, Acknowledge::Synced) => cx.error(
            "queue.acknowledge",
            "needs queue.directory, allowed without it: \"queued\", \"delivered\"",
        ),
        (true, Acknowledge::Queued | Acknowledge::Delivered) => cx.error(
            "queue.acknowledge",
            "conflicts with queue.directory, allowed with it: \"synced\"",
        ),
    }
}

/// Reports settings that contradict `acknowledge = "delivered"`, where a 200 means that every
/// required output has the events. A full queue must then not drop events (`when_full`), and no
/// required output may collect events for minutes. `delivered_timeout` must be longer than a
/// required output waits until a sent event counts as delivered.
fn contradictions_of_delivered(cx: &Context<'_>, queue: &Queue, outputs: &[output::Draft]) {
    if queue.when_full != WhenFull::Reject {
        let message = "conflicts with acknowledge = \"delivered\", allowed with it: \"reject\"";
        cx.error("queue.when_full", message);
    }
    let timeout_path = "queue.delivered_timeout";
    for draft in outputs.iter().filter(|draft| draft.required) {
        if let Some(kind) = draft.collects {
            let message = format!(
                "\"delivered\" conflicts with {} of type {kind}, which collects events for minutes \
                 before delivery: use \"queued\", or set queue.directory",
                draft.shown(cx)
            );
            cx.error("queue.acknowledge", message);
            continue;
        }
        let Some((key, time)) = draft.final_after else { continue };
        let path = format!("{}.{key}", draft.path);
        if time >= queue.delivered_timeout && cx.are_known(&[timeout_path, &path]) {
            let because = "with queue.acknowledge = \"delivered\"";
            if cx.is_set(&path) {
                let most = values::show_time(queue.delivered_timeout);
                let message = format!(
                    "must be shorter than {timeout_path} {because}, allowed: less than {most}"
                );
                cx.error(&path, message);
            } else {
                let least = values::show_time(time);
                let message = format!(
                    "must be longer than {key} of {} {because}, allowed: more than {least}",
                    draft.shown(cx)
                );
                cx.error(timeout_path, message);
            }
        }
    }
}
