//! Notices that the config file, or a file that it names, has changed.
//!
//! The files are polled. A watch on a file would report nothing after the first swap of the
//! symlinks in a ConfigMap or Secret, and nothing at all on network file systems.

use std::fs::File;
use std::hash::DefaultHasher;
use std::hash::Hasher;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

/// The time between two looks at the files. It is short enough that a handshake 3 s after a change
/// gets the new certificate.
const POLL: Duration = Duration::from_secs(1);

/// The pause between two looks at files that have changed. The looks are repeated until two of them
/// in a row see the same state, because an editor may be halfway through a file, or a certificate
/// may be written before its key.
const SETTLE: Duration = Duration::from_millis(100);

/// The greatest number of looks at files that have changed. If they still change after so many
/// looks, they are read as they are.
const SETTLE_MAX: u32 = 10;

/// The number of looks, [`SETTLE`] apart, at the files of a config that cannot be used, because
/// their writer may not be done.
const UNFINISHED: u32 = 3;

/// The greatest number of bytes of a file that are compared.
const BYTES_MAX: u64 = 16 << 20;

/// The state of some files at one moment. Two states are equal if nothing has changed.
#[derive(PartialEq, Eq)]
pub(super) struct Seen(Vec<Print>);

/// The path of the file to which a watched path leads, and a hash of the file's contents. Each is
/// `None` if it cannot be read.
#[derive(PartialEq, Eq)]
struct Print {
    target: Option<PathBuf>,
    content: Option<u64>,
}

/// Returns the present state of the files. Blocks.
pub(super) fn look(files: &[PathBuf]) -> Seen {
    Seen(
        files
            .iter()
            .map(|file| Print { target: file.canonicalize().ok(), content: hash(file).ok() })
            .collect(),
    )
}

fn hash(file: &Path) -> std::io::Result<u64> {
    let mut content = Vec::new();
    File::open(file)?.take(BYTES_MAX).read_to_end(&mut content)?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&content);
    Ok(hasher.finish())
}

/// The files that are watched, and their state before they were last read. The relay's own task
/// polls them by [`Watch::changed`].
pub(super) struct Watch {
    files: Vec<PathBuf>,
    seen: Seen,
    next: Instant,
    /// The number of changes that [`Watch::has_moved`] has reported in a row.
    moved: u32,
}

impl Watch {
    /// Makes a watch on `files`. `seen` must be the state of the files before they were read, so
    /// that no change is missed.
    pub(super) fn new(files: Vec<PathBuf>, seen: Seen) -> Self {
        Self { files, seen, next: Instant::now() + POLL, moved: 0 }
    }

    /// Replaces the files and their state, after the config was read again.
    pub(super) fn renew(&mut self, files: Vec<PathBuf>, seen: Seen) {
        (self.files, self.seen) = (files, seen);
    }

    /// Waits up to 300 ms for a change of the files. `true`: they have changed, so the config
    /// should be read again. `false`: they have not changed, or this function has returned `true`
    /// [`SETTLE_MAX`] times in a row already.
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

    /// Waits until the files have changed and are at rest.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, nothing is lost.
    pub(super) async fn changed(&mut self) {
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

    /// Reads the state of the files on a thread for blocking work. If the file system hangs, this
    /// waits for it.
    async fn look(&self) -> Seen {
        let files = self.files.clone();
        let looked = tokio::task::spawn_blocking(move || look(&files)).await;
        // A panic gives no information about the files. Their state counts as changed, and the next
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
