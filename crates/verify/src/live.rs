//! The wait until a running relay has signed its newest entries.
//!
//! The stored lines are read first. At that moment, a consumer has only lines of events that are or
//! were in the queue. Once a checkpoint or `evidence-head` covers all events of the queue, each
//! stored line can be judged.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::request::Request;
use evidence_log::reader::{Directory, Log};
use evidence_log::tlog::tile::{Content, Tile, WIDTH};

/// The maximum time between two checkpoints that a check assumes: the relay's default. The log does
/// not contain the setting.
const INTERVAL_MAX: Duration = Duration::from_secs(10);

/// The minimum time between two checkpoints that a check assumes.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Additional time for a checkpoint on a busy machine.
const SLACK: Duration = Duration::from_secs(1);

const PAUSE: Duration = Duration::from_millis(50);

/// The end of the time for which a check waits for checkpoints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn new(request: &Request, files: &Directory, log: &Path) -> Self {
        let now = Instant::now();
        match request.waits {
            true => Self(now + interval(files, log) * 2 + SLACK),
            false => Self(now),
        }
    }

    /// Waits until a checkpoint or `evidence-head` covers the events before `end`. Returns `false`
    /// if the time is over.
    pub(super) fn wait_for_events(self, files: &Directory, end: u64) -> bool {
        let covered = || Log::newest(files).ok()?.end_in_queue().ok()?;
        self.wait(|| end == 0 || covered().is_some_and(|covered| end <= covered))
    }

    /// Waits until a checkpoint or `evidence-head` covers more than `size` entries. Returns `false`
    /// if the time is over.
    pub(super) fn wait_for_entries(self, files: &Directory, size: u64) -> bool {
        self.wait(|| Log::newest(files).is_ok_and(|log| log.size() > size))
    }

    #[expect(clippy::disallowed_methods, reason = "this runs in a command, not in a runtime")]
    fn wait(self, has_come: impl Fn() -> bool) -> bool {
        while !has_come() {
            if self.0 <= Instant::now() {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        true
    }
}

/// Returns the approximate time between the relay's last two checkpoints, from the times of their
/// partial tiles. Without these files, returns [`INTERVAL_MAX`].
fn interval(files: &Directory, log: &Path) -> Duration {
    let size = Log::open(files).map_or(0, |log| log.size());
    let modified_at = |width: u64| {
        let tile = Tile { content: Content::Hashes(0), index: size / WIDTH, width };
        fs::metadata(log.join(tile.path())).and_then(|metadata| metadata.modified()).ok()
    };
    let newest = modified_at(size % WIDTH);
    let before = (1..size % WIDTH).rev().find_map(modified_at);
    let between = |(before, newest): (SystemTime, SystemTime)| newest.duration_since(before).ok();
    let between = before.zip(newest).and_then(between);
    between.unwrap_or(INTERVAL_MAX).clamp(INTERVAL_MIN, INTERVAL_MAX)
}
