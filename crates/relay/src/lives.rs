//! The file `life`, in which one process of a relay tells the next one how it ended, and how many
//! events it has lost.
//!
//! The file is written every few seconds and once more at a normal end. If a process is killed, the
//! file does not record an end, and its last write is normally a few seconds older than the kill at
//! most. The file is not synced, because it only has to outlive the process. After a failure of the
//! machine, the file may be old or damaged, and then says less.

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

const FILE: &str = "life";

/// The size of the file in bytes. A single write replaces all of it, in one sector.
const BYTES: usize = 512;

/// The time between two writes.
const EVERY: Duration = Duration::from_secs(5);

/// The longest wait for a file system, at startup and at the end.
const WAIT: Duration = Duration::from_secs(3);

/// The content of the file, as JSON.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Life {
    /// The time of this write, in seconds since 1970.
    seen: u64,
    /// `true`: the process has ended normally, and has counted the events lost at its end.
    ended: bool,
    /// The same as [`Lives::loses_queue`].
    loses_queue: bool,
    /// The last kill and the losses of this process and of those before it.
    #[serde(flatten)]
    earlier: Earlier,
}

/// The file `life` of this process.
pub(super) struct Lives {
    file: PathBuf,
    telemetry: Arc<Telemetry>,
    /// `true`: the next process that reads the file does not have this process's queue, because it
    /// is in memory, or on a volume that is deleted with the pod although the file is not.
    loses_queue: bool,
    /// `true`: the end is written, and nothing is written after it.
    has_ended: Mutex<bool>,
}

impl Lives {
    /// Notes for `/status` and `/metrics` how the previous process ended, and writes the file for
    /// this process. The queue must be open, so that no other relay uses the directory. Returns
    /// `None` if the config has no directory for the file, or if the file cannot be written in
    /// time.
    pub(crate) async fn begin(config: &Config, telemetry: &Arc<Telemetry>) -> Option<Arc<Self>> {
        let directory = config.directory_of_state()?.to_owned();
        let (file, telemetry) = (directory.join(FILE), Arc::clone(telemetry));
        let goes_with_pod = config.queue.ephemeral && config.state_directory.is_some();
        let loses_queue = config.queue.directory.is_none() || goes_with_pod;
        let begun = tokio::task::spawn_blocking(move || {
            let lives = Self { file, telemetry, loses_queue, has_ended: Mutex::default() };
            lives.follow();
            queue::make_directory(&directory).map_err(io::Error::other)?;
            lives.write(false, 0).map(|()| lives)
        });
        let error = match tokio::time::timeout(WAIT, begun).await {
            Ok(Ok(Ok(lives))) => return Some(Arc::new(lives)),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(_)) | Err(_) => "no answer".to_owned(),
        };
        tracing::warn!(
            error,
            "cannot write the file that records how this process ends: the next start will not \
             know whether it was killed"
        );
        None
    }

    /// Reads the file of the previous process, and passes its content to the telemetry. If the file
    /// does not record an end, the process counts as killed. A process whose losses are not
    /// recorded leaves a damaged file, or events in the queue without a file. If there is neither,
    /// this process is the first one that uses the directory, and the telemetry gets nothing.
    fn follow(&self) {
        let read = named_file::read(&self.file, BYTES as u64);
        let is_first = read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            && self.telemetry.queue().earlier.count() == 0;
        let life = read.ok().and_then(|text| serde_json::from_slice::<Life>(&text).ok());
        let Some(Life { seen, ended, loses_queue, mut earlier }) = life else {
            if !is_first {
                let unrecorded = whole(telemetry::now().floor());
                self.telemetry.follow(Earlier { unrecorded, ..Earlier::default() });
            }
            return;
        };
        if !ended {
            (earlier.last_killed, earlier.killed_with_queue) = (seen, loses_queue);
            earlier.unrecorded = seen;
            tracing::warn!("the previous process of the relay was killed, or its machine failed");
        }
        self.telemetry.follow(earlier);
    }

    /// Writes the file, unless the end is written already. Blocks the thread. `uncounted` is the
    /// number of events that were counted as lost, but are not lost if another process reads this
    /// file.
    fn write(&self, ended: bool, uncounted: u64) -> io::Result<()> {
        let mut has_ended = lock(&self.has_ended);
        if *has_ended {
            return Ok(());
        }
        *has_ended = ended;
        let (mut earlier, seen) = (self.telemetry.earlier(), telemetry::now());
        let uncounted = if self.loses_queue { 0 } else { uncounted };
        let lost = self.telemetry.all_lost_events().saturating_sub(uncounted);
        if lost > 0 {
            let ago = self.telemetry.reports().any_lost_ago().unwrap_or_default();
            earlier.lost_events += lost;
            earlier.last_lost = whole((seen - ago.as_secs_f64()).floor());
        }
        let loses_queue = self.loses_queue;
        let life = Life { seen: whole(seen.floor()), ended, loses_queue, earlier };
        let text = serde_json::to_string(&life)?;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        // JSON may be followed by blanks.
        let line = format!("{text:<width$}\n", width = BYTES - 1);
        options.open(&self.file)?.write_all_at(line.as_bytes(), 0)
    }

    /// Writes the file every few seconds until `stop` is cancelled.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            let lives = Arc::clone(&self);
            // An error is not logged here: `begin` and `end` log theirs.
            let written = tokio::task::spawn_blocking(move || lives.write(false, 0).ok());
            stop.run_until_cancelled(written).await;
        }
    }

    /// Records the normal end of the process. `uncounted` is as for `write`.
    pub(crate) async fn end(self: Arc<Self>, uncounted: u64) {
        let written = tokio::task::spawn_blocking(move || self.write(true, uncounted));
        if !matches!(tokio::time::timeout(WAIT, written).await, Ok(Ok(Ok(())))) {
            tracing::warn!(
                "cannot record that this process ends normally: the next start will report that it \
                 was killed"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    async fn begin(directory: &Path) -> (Arc<Telemetry>, Option<Arc<Lives>>) {
        let telemetry = Arc::new(Telemetry::new());
        let more = format!(
            "[process]\nstate_directory = {directory:?}\n[queue]\ndirectory = {directory:?}\n"
        );
        let lives = begin_with(&more, &telemetry).await;
        (telemetry, lives)
    }

    async fn begin_with(more: &str, telemetry: &Arc<Telemetry>) -> Option<Arc<Lives>> {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[output]]\nname = \"o\"\ntype = \"stdout\"\n\
             {more}"
        );
        let config = config::read(&text, outputs::TYPES).config.expect("it is right");
        Lives::begin(&config, telemetry).await
    }

    /// Begins a process. The third value is what the process knows of the processes before it: the
    /// number of lost events, and whether one of the processes was killed.
    async fn next(directory: &Path) -> (Arc<Telemetry>, Arc<Lives>, (u64, bool)) {
        let (telemetry, lives) = begin(directory).await;
        let Earlier { lost_events, last_killed, .. } = telemetry.earlier();
        (telemetry, lives.expect("it can be written"), (lost_events, last_killed > 0))
    }

    #[tokio::test]
    async fn a_process_that_has_not_noted_its_end_was_killed_and_the_later_ones_remember_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (_, first, found) = next(directory.path()).await;
        assert_eq!(found, (0, false), "nothing was before it");
        first.end(0).await;
        let (_, second, found) = next(directory.path()).await;
        assert_eq!(found, (0, false), "the first one has ended in order");
        let seen = whole(telemetry::now().floor());
        second.write(false, 0).expect("it can be written");
        drop(second);
        let (third, lives, found) = next(directory.path()).await;
        assert_eq!(found, (0, true));
        let killed = third.earlier().last_killed;
        assert!(killed >= seen, "it is the time of the last write");
        lives.end(0).await;
        let (fourth, ..) = next(directory.path()).await;
        assert_eq!(fourth.earlier().last_killed, killed);
    }

    /// Method: processes lose events, some of which the next process delivers after all.
    #[tokio::test]
    async fn losses_add_up_over_the_processes_except_those_that_the_next_one_delivers() {
        let directory = tempfile::tempdir().expect("a directory");
        let (telemetry, lives, _) = next(directory.path()).await;
        telemetry.removed("o", 5);
        lives.end(0).await;
        let (telemetry, lives, found) = next(directory.path()).await;
        assert_eq!(found, (5, false));
        telemetry.removed("o", 3);
        lives.end(2).await;
        let (telemetry, lives, found) = next(directory.path()).await;
        assert_eq!(found, (6, false));
        let last = telemetry.earlier().last_lost;
        assert!(last > 0);
        // Without a loss, the time of the last one stays. A kill leaves what was written before it.
        lives.write(false, 0).expect("it can be written");
        drop(lives);
        let (telemetry, _, found) = next(directory.path()).await;
        assert_eq!((found, telemetry.earlier().last_lost), ((6, true), last));
    }

    /// Method: the queue is in memory, or on a volume that is deleted with the pod, or on a disk.
    #[tokio::test]
    async fn a_queue_that_the_next_process_does_not_have_is_remembered() {
        for (queue, loses) in [("", true), ("ephemeral = true", true), ("ephemeral = false", false)]
        {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path();
            let place =
                if queue.is_empty() { String::new() } else { format!("directory = {path:?}") };
            let text = format!(
                "[[listener]]\naddress = \"127.0.0.1:0\"\n[[output]]\nname = \"o\"\n\
                 type = \"stdout\"\n[process]\nstate_directory = {path:?}\n[queue]\n{place}\n{queue}\n"
            );
            let config = config::read(&text, outputs::TYPES).config.expect("it is right");
            let telemetry = Arc::new(Telemetry::new());
            let killed = Lives::begin(&config, &telemetry).await;
            drop(killed);
            // The config has another queue now.
            let (telemetry, lives, _) = next(path).await;
            assert_eq!(telemetry.earlier().killed_with_queue, loses, "{queue}");
            lives.end(0).await;
            let telemetry = Arc::new(Telemetry::new());
            let lives = Lives::begin(&config, &telemetry).await.expect("it can be written");
            telemetry.removed("o", 3);
            lives.end(3).await;
            let (_, _, (lost, _)) = next(path).await;
            assert_eq!(lost, if loses { 3 } else { 0 }, "{queue}");
        }
    }

    /// The task that writes every few seconds may be late.
    #[tokio::test]
    async fn after_the_end_nothing_is_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join(FILE);
        let (telemetry, lives, _) = next(directory.path()).await;
        Arc::clone(&lives).end(0).await;
        let ended = std::fs::read(&file).expect("it was written");
        assert_eq!(ended.len(), BYTES);
        telemetry.removed("o", 1);
        lives.write(false, 0).expect("it does nothing");
        assert_eq!(std::fs::read(&file).expect("it is there"), ended);
    }

    /// Method: processes with one directory begin one after the other, with what is stated as the
    /// content of the file `life`.
    #[tokio::test]
    async fn earlier_losses_are_known_only_by_a_record_without_a_gap() {
        let memory = Arc::new(Telemetry::new());
        assert!(begin_with("", &memory).await.is_none(), "there is no place for a record");
        assert!(!memory.knows_earlier());
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join(FILE);
        let (first, lives, _) = next(directory.path()).await;
        assert!(!first.knows_earlier(), "it has found no record");
        lives.end(0).await;
        let (second, lives, _) = next(directory.path()).await;
        assert!(second.knows_earlier());
        lives.end(0).await;
        let ended = std::fs::read(&file).expect("it was written");
        std::fs::write(&file, &ended[..100]).expect("written");
        // The gap is remembered by the processes after it.
        for _ in 0..2 {
            let (telemetry, lives, _) = next(directory.path()).await;
            assert!(!telemetry.knows_earlier(), "the record is damaged");
            lives.end(0).await;
        }
        // An earlier process has stored events in the queue, and its record is gone.
        std::fs::remove_file(&file).expect("removed");
        for _ in 0..2 {
            let telemetry = Arc::new(Telemetry::new());
            telemetry.queue().earlier.set(1.0);
            let more = format!("[process]\nstate_directory = {:?}\n", directory.path());
            let lives = begin_with(&more, &telemetry).await.expect("it can be written");
            assert!(!telemetry.knows_earlier());
            lives.end(0).await;
        }
    }

    #[tokio::test]
    async fn a_damaged_file_says_nothing_and_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join(FILE);
        let (_, lives, _) = next(directory.path()).await;
        lives.end(0).await;
        let whole = std::fs::read(&file).expect("it was written");
        let day = 86_400;
        let old = format!("{{\"lost_events\":7,\"last_lost\":{day},\"last_killed\":{day}}}");
        let too_long = [&whole[..], b" "].concat();
        for damaged in [&whole[..100], b"", b"[]", b"{\"seen\":\"x\"}", &too_long] {
            std::fs::write(&file, damaged).expect("written");
            let (_, lives, found) = next(directory.path()).await;
            assert_eq!(found, (0, false), "{}", String::from_utf8_lossy(damaged));
            lives.end(0).await;
            let ended = std::fs::read(&file).expect("it was written");
            assert!(ended.len() >= BYTES);
            assert!(serde_json::from_slice::<Life>(&ended).is_ok_and(|life| life.ended));
        }
        // A file from long ago, whose losses no longer count.
        std::fs::write(&file, old).expect("written");
        let (telemetry, _, (lost, is_killed)) = next(directory.path()).await;
        assert_eq!((lost, is_killed), (0, false), "{:?}", telemetry.earlier());
    }

    /// Somebody else has put a link there, which could lead to any file of the machine.
    #[tokio::test]
    async fn no_link_is_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let other = directory.path().join("other");
        std::fs::write(&other, "other").expect("written");
        std::os::unix::fs::symlink(&other, directory.path().join(FILE)).expect("a link");
        let (telemetry, lives) = begin(directory.path()).await;
        assert!(lives.is_none() && !telemetry.knows_earlier());
        assert_eq!(std::fs::read(&other).expect("it is there"), b"other");
    }
}
