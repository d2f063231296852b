//! Sees that the config, or a file that it names, has changed.
//!
//! By polling: watching a file tells nothing after the first swap of the symlinks of a ConfigMap or Secret, and nothing at
//! all on network file systems.

use std::fs::File;
use std::hash::DefaultHasher;
use std::hash::Hasher;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

/// How often is looked: a handshake 3 s after a change has the new certificate.
const POLL: Duration = Duration::from_secs(1);

/// What changes is looked at again after so long, until it is twice the same: an editor may be half-way, or a certificate
/// be there before its key.
const SETTLE: Duration = Duration::from_millis(100);

/// So often at most: what never rests is read as it is.
const SETTLE_MAX: u32 = 10;

/// What can't be used is looked at so often again, for whoever writes it takes his time.
const UNFINISHED: u32 = 3;

/// More of a file is not looked at.
const BYTES_MAX: u64 = 16 << 20;

/// What files are now. Equal where nothing has changed.
#[derive(PartialEq, Eq)]
pub(super) struct Seen(Vec<Print>);

/// Where a path leads, and a hash of what is there. `None`: it can't be read.
#[derive(PartialEq, Eq)]
struct Print {
    target: Option<PathBuf>,
    content: Option<u64>,
}

/// Looks at files. Blocks.
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

/// Files, and what they were when they were read.
pub(super) struct Watch {
    files: Vec<PathBuf>,
    seen: Seen,
    next: Instant,
    /// How often they have moved while they were read.
    moved: u32,
}

impl Watch {
    /// `seen` was looked at before the files were read, so that no change is missed.
    pub(super) fn new(files: Vec<PathBuf>, seen: Seen) -> Self {
        Self { files, seen, next: Instant::now() + POLL, moved: 0 }
    }

    /// Other files, or the same after they were read again.
    pub(super) fn renew(&mut self, files: Vec<PathBuf>, seen: Seen) {
        (self.files, self.seen) = (files, seen);
    }

    /// Whether they change again soon after they were read, and not for ever.
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

    /// Waits until they are others, and at rest.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when dropped.
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

    /// Off the runtime's threads. A file system that hangs is waited for: there is nothing else to do here.
    async fn look(&self) -> Seen {
        let files = self.files.clone();
        let looked = tokio::task::spawn_blocking(move || look(&files)).await;
        // A panic is none of the files' doing; the next look shows it again, or not.
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
