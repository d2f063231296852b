//! The file `life`, in which one process of a relay tells the next one how it ended, and how many
//! events it has lost.
//!
//! The file is written every few seconds and once more at the orderly end. A process that was
//! killed has not written its end, and the time of its last write is that of the kill, to a few
//! seconds. The file is not synced, because it only has to outlive the process. If the machine has
//! failed too, the next process may know less, and then says less.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use base::lock::lock;
use base::named_file;
use base::words::whole;
use config::Config;
use telemetry::{Earlier, Telemetry};

/// The name of the file.
const FILE: &str = "life";

/// The size of the file in bytes. A single write replaces all of it, in one sector.
const BYTES: usize = 512;

/// The time between two writes.
const EVERY: Duration = Duration::from_secs(5);

/// The longest wait for a file system, at the start and at the end.
const WAIT: Duration = Duration::from_secs(3);

/// The content of the file, as JSON.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Life {
    /// The time of this write, in seconds since 1970.
    seen: u64,
    /// `true`: the process has ended in order, and has counted what it lost by that.
    ended: bool,
    /// The last kill and the losses of this process and of those before it.
    #[serde(flatten)]
    earlier: Earlier,
}

/// The file of this process. The relay owns it, and one task writes it.
pub(super) struct Lives {
    file: PathBuf,
    telemetry: Arc<Telemetry>,
    /// `true`: the end is written, and nothing is written after it.
    has_ended: Mutex<bool>,
}

impl Lives {
    /// Reads what the process before this one has left, notes it for `/status` and `/metrics`, and
    /// begins the file of this process. The queue must be open, so that no other relay uses its
    /// directory. Returns `None` if the config has no directory for the file, or if the file cannot
    /// be written.
    pub(crate) async fn begin(config: &Config, telemetry: &Arc<Telemetry>) -> Option<Arc<Self>> {
        let directory = config.directory_of_state()?.to_owned();
        let (file, telemetry) = (directory.join(FILE), Arc::clone(telemetry));
        let begun = tokio::task::spawn_blocking(move || {
            let lives = Self { file, telemetry, has_ended: Mutex::default() };
            lives.follow();
            queue::make_directory(&directory).map_err(io::Error::other)?;
            lives.write(false, 0).map(|()| lives)
        });
        let error = match tokio::time::timeout(WAIT, begun).await {
            Ok(Ok(Ok(lives))) => return Some(Arc::new(lives)),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(_)) | Err(_) => "no answer".to_owned(),
        };
        tracing::warn!(error, "the next start will not know how this process ended");
        None
    }

    /// Notes what the file says. A file that is missing or damaged says nothing.
    fn follow(&self) {
        let read = named_file::read(&self.file, BYTES as u64).ok();
        let life = read.and_then(|text| serde_json::from_slice::<Life>(&text).ok());
        let Some(Life { seen, ended, mut earlier }) = life else { return };
        if !ended {
            earlier.last_killed = seen;
            tracing::warn!("the process before this one was killed, or its machine has failed");
        }
        self.telemetry.follow(earlier);
    }

    /// Writes the file. `uncounted` events of those that count as lost are not lost if there is a
    /// next process that reads this file. Blocks the thread.
    fn write(&self, ended: bool, uncounted: u64) -> io::Result<()> {
        let mut has_ended = lock(&self.has_ended);
        if *has_ended {
            return Ok(());
        }
        *has_ended = ended;
        let (mut earlier, seen) = (self.telemetry.earlier(), telemetry::now());
        let lost = self.telemetry.all_lost_events().saturating_sub(uncounted);
        if lost > 0 {
            let ago = self.telemetry.reports().any_lost_ago().unwrap_or_default();
            earlier.lost_events += lost;
            earlier.last_lost = whole((seen - ago.as_secs_f64()).floor());
        }
        let life = Life { seen: whole(seen.floor()), ended, earlier };
        let text = serde_json::to_string(&life)?;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        // Blanks behind JSON mean nothing.
        let line = format!("{text:<width$}\n", width = BYTES - 1);
        options.open(&self.file)?.write_all_at(line.as_bytes(), 0)
    }

    /// Writes the file every few seconds until `stop` is cancelled.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            let lives = Arc::clone(&self);
            // A disk that refuses this write refuses those of the queue too, which says so.
            let written = tokio::task::spawn_blocking(move || lives.write(false, 0).ok());
            stop.run_until_cancelled(written).await;
        }
    }

    /// Writes that the process ends in order. `uncounted` is as for `write`.
    pub(crate) async fn end(self: Arc<Self>, uncounted: u64) {
        let written = tokio::task::spawn_blocking(move || self.write(true, uncounted));
        if !matches!(tokio::time::timeout(WAIT, written).await, Ok(Ok(Ok(())))) {
            tracing::warn!(
                "the end could not be noted: the next start will say that it was a kill"
            );
        }
    }
}
