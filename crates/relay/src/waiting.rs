//! Work on files, on other threads, so that a file system that hangs holds up nothing else.

use std::time::Duration;

use tokio::time::Instant;

use super::error::Refused;
use base::named_file;

/// If reading the files of a config or opening the queue takes longer than this, the log says so.
/// The relay stops waiting for the files of a config after [`named_file::WAIT_MAX`].
const SLOW: Duration = Duration::from_secs(5);

/// Runs `work` on a thread for blocking work, and returns its result. `Err` if the work panics.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(Refused::Panicked)
}

/// Like [`blocking`], and calls `warn` if the work is not done after 5 s.
pub(crate) async fn blocking_or_warn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    warn: impl FnOnce(),
) -> Result<T, Refused> {
    let mut done = std::pin::pin!(blocking(work));
    if let Ok(done) = tokio::time::timeout(SLOW, &mut done).await {
        return done;
    }
    warn();
    done.await
}

/// Runs `work`, which reads files, on a thread for blocking work, and returns its result. `Err` if
/// the work is not done at the `deadline`, or if it panics.
pub(crate) async fn in_time<T: Send + 'static>(
    deadline: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    let mut done = std::pin::pin!(blocking(work));
    let soon = deadline.min(Instant::now() + SLOW);
    if let Ok(done) = tokio::time::timeout_at(soon, &mut done).await {
        return done;
    }
    let files = named_file::names_of_files_being_read();
    tracing::warn!(
        files,
        "the file system does not respond: waiting for files that the config names"
    );
    let hangs = |_| Err(Refused::Hangs { files: named_file::names_of_files_being_read() });
    tokio::time::timeout_at(deadline, done).await.unwrap_or_else(hangs)
}
