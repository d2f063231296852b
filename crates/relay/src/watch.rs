//! Notices that the config file, or a file that it names, has changed.
//!
//! The files are polled. A watch on a file would report nothing after the first swap of the
//! symlinks in a ConfigMap or Secret, and nothing at all on network file systems.

use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use base::named_file;

/// The time between two checks whether the files have changed. It is short enough that a TLS
/// handshake 3 s after a change gets the new certificate.
const POLL: Duration = Duration::from_secs(1);

/// The pause between two checks of files that have changed. The checks are repeated until two in a
/// row find the same contents, because a file may be half written, or a certificate may arrive
/// before its key.
const SETTLE: Duration = Duration::from_millis(100);

/// The maximum number of checks while the files keep changing. After these checks, the relay reads
/// the files even if they still change.
const SETTLE_MAX: u32 = 10;

/// The number of checks for a further change after the relay has read an unusable config, each
/// after a pause of [`SETTLE`]. The program that writes the files may not have finished.
const UNFINISHED: u32 = 3;

/// The greatest size in bytes of a file whose contents are compared. A larger file counts as one
/// that cannot be read, so a change of its contents is not noticed.
const BYTES_MAX: u64 = 16 << 20;

/// The state of some files: for each the path with all symlinks resolved, and a hash of its
/// contents. A value is `None` if it cannot be read. Two states are equal if no file has changed.
/// The default is the state of no files, which differs from that of any file.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct Seen(Vec<(Option<PathBuf>, Option<u64>)>);

/// Returns the present state of the files. Blocks the thread.
pub(crate) fn look(files: &[PathBuf]) -> Seen {
    Seen(files.iter().map(|file| (file.canonicalize().ok(), hash(file).ok())).collect())
}

fn hash(file: &Path) -> std::io::Result<u64> {
    let content = named_file::read(file, BYTES_MAX)?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&content);
    Ok(hasher.finish())
}

/// The watched files, and the state that they had before the relay last read them.
pub(crate) struct Watch {
    files: Vec<PathBuf>,
    seen: Seen,
    next: Instant,
    /// The number of times that [`Watch::has_moved`] has returned `true` since it last returned
    /// `false`, or since a config was last usable.
    moved: u32,
}

impl Watch {
    /// Makes a watch on `files`. `seen` must be the state that the files had before they were read,
    /// so that no change is missed.
    pub(crate) fn new(files: Vec<PathBuf>, seen: Seen) -> Self {
        Self { files, seen, next: Instant::now() + POLL, moved: 0 }
    }

    /// Replaces the list of files after another read of the config. `seen` is the state that the
    /// files had before they were read.
    pub(crate) fn renew(&mut self, files: Vec<PathBuf>, seen: Seen) {
        (self.files, self.seen) = (files, seen);
    }

    /// Notes that the relay could not read the config in this state of the files, because a file
    /// system hangs. The config is not read again before a file changes.
    pub(crate) fn pass_over(&mut self, seen: Seen) {
        self.seen = seen;
    }

    /// Checks three times, after a pause of [`SETTLE`] each, whether the files have changed since
    /// they were last read. Returns `true` at the first change: the config should be read again.
    /// After [`SETTLE_MAX`] times in a row it returns `false`, so that a file that keeps changing
    /// does not delay a reload without limit.
    pub(super) async fn has_moved(&mut self) -> bool {
        for _ in 0..UNFINISHED {
            tokio::time::sleep(SETTLE).await;
            if self.look().await != self.seen && self.moved < SETTLE_MAX {
                self.moved += 1;
                return true;
            }
        }
        self.moved = 0;
        false
    }

    /// Resets the count of [`Watch::has_moved`], so that a later config gets all retries again.
    pub(super) fn was_usable(&mut self) {
        self.moved = 0;
    }

    /// Waits until a watched file has changed, and then until no file changes any more. After
    /// [`SETTLE_MAX`] checks it returns although files still change.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, no change is lost: the next call notices it.
    pub(crate) async fn changed(&mut self) {
        loop {
            tokio::time::sleep_until(self.next).await;
            self.next = Instant::now() + POLL;
            let mut seen = self.look().await;
            if seen == self.seen {
                continue;
            }
            for _ in 0..SETTLE_MAX {
                tokio::time::sleep(SETTLE).await;
                let again = self.look().await;
                if std::mem::replace(&mut seen, again) == seen {
                    break;
                }
            }
            return;
        }
    }

    /// Returns the present state of the files, read on a thread for blocking work. Waits as long as
    /// the file system hangs.
    pub(crate) async fn look(&self) -> Seen {
        let files = self.files.clone();
        let looked = tokio::task::spawn_blocking(move || look(&files)).await;
        // A panic gives no information about the files. Their state counts as changed; the next
        // look corrects that.
        looked.unwrap_or(Seen(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn content_and_targets_count_and_times_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        fs::write(&file, "a").unwrap();
        let files = [file.clone()];
        let before = look(&files);
        fs::write(&file, "a").unwrap();
        assert!(look(&files) == before);
        fs::write(&file, "b").unwrap();
        let changed = look(&files);
        assert!(changed != before);
        fs::remove_file(&file).unwrap();
        assert!(look(&files) != changed);
    }

    /// A file changes before each look. Each of many reloads reads an unusable config once and then
    /// a usable one. The unusable ones together are more than [`SETTLE_MAX`].
    #[tokio::test]
    async fn a_config_that_was_usable_in_between_is_read_again_however_often_it_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        fs::write(&file, "0").unwrap();
        let mut watch = Watch::new(vec![file.clone()], look(std::slice::from_ref(&file)));
        for reload in 1..=SETTLE_MAX + 2 {
            fs::write(&file, reload.to_string()).unwrap();
            assert!(watch.has_moved().await, "reload {reload}");
            watch.renew(vec![file.clone()], look(std::slice::from_ref(&file)));
            watch.was_usable();
        }
    }

    #[test]
    fn a_swapped_data_link_is_a_change_also_to_the_same_content() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["..1", "..2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("tls.crt"), "a").unwrap();
        }
        symlink("..1", dir.path().join("..data")).unwrap();
        symlink("..data/tls.crt", dir.path().join("tls.crt")).unwrap();
        let files = [dir.path().join("tls.crt")];
        let before = look(&files);
        assert!(look(&files) == before);
        symlink("..2", dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        assert!(look(&files) != before);
    }
}
