//! Starts the parts of the relay, applies another config to them while they run, and ends them in
//! order.
//!
//! This crate promises that each task and thread has an owner that notices its end. It imports
//! every crate but `config-table`, `manual`, `tools`, `verify`, `doctor` and those for tests. What
//! must never happen here: a listener or a source imports an output, or an output imports a
//! listener or a source.
//!
//! - The *start* reads the files, binds the addresses and opens the queue. Then it starts outputs,
//!   listeners and sources in this order. No batch is accepted before every output has its cursor.
//! - While the relay *runs*, it waits for a signal, for the failure of a part that it needs, and
//!   for a changed config. A changed config goes through two steps. `Parts::prepare` does
//!   everything that can fail or take time. It changes only two things: new outputs join the queue,
//!   and sources that are removed or changed stop. `Parts::reload` puts the result in force. A
//!   signal to end the relay cancels the first step. If the first step fails, the relay keeps the
//!   config that it has.
//! - The *drain* closes the listeners and the sources. The outputs continue until the queue is
//!   drained or the time limit is over. A queue in memory or in an ephemeral directory is drained
//!   when it is empty; any other queue is drained when no output waits for a response from its
//!   consumer. Then outputs, sources, dead letters, evidence and queue end in this order.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `listener` `source` `error` `again` `open_files` `watch` | requests · topics · why a config is refused, or a relay ends · pauses · the limit of open files · files that change |
//! | 2 | `admin` `check` `waiting` | metrics, health, status · files that a config names · file systems that hang |
//! | 3 | `listeners` `outputs` | the listeners and the outputs, and what a reload does to them |
//! | 4 | `config_file` `plan` `evidence` `lives` | the config file · files that a plan names · the recorder · the processes before and after this one |
//! | 5 | `parts` | all parts of a running relay |
//! | 6 | `start` `reload` `drain` | what becomes of the parts |

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use config::Config;

pub mod admin;
mod again;
pub mod check;
mod config_file;
mod drain;
mod error;
mod evidence;
pub mod listener;
mod listeners;
mod lives;
mod open_files;
mod outputs;
mod parts;
mod plan;
mod reload;
pub mod source;
mod start;
mod waiting;
mod watch;

pub use admin::Manual;
pub use error::Error;
pub use start::Opened;

use drain::{abandon, drain, tell_totals};
use parts::Parts;
use start::start;

/// The signals that the caller of [`run`] gives to the relay, and the channel on which the caller
/// learns that the relay runs.
pub struct Signals<S, A> {
    /// When this future completes, the relay drains and ends.
    pub stopped: S,
    /// When this future completes during the drain, the relay ends without waiting for deliveries.
    pub aborted: A,
    /// The relay reads its config again for each message in this channel.
    pub reload: mpsc::Receiver<()>,
    /// Receives the addresses and the queue once the relay runs, if the caller needs them.
    pub opened: Option<oneshot::Sender<Opened>>,
}

/// Runs the relay until `signals.stopped` completes or a part of the relay fails. The relay then
/// drains, within a time limit. A queue in memory or in an ephemeral directory delivers all its
/// events. Any other queue only waits for responses to the events on the wire. `file` is the path
/// from which `config` was read; a reload reads the file again. The admin address serves `manual`.
///
/// # Errors
///
/// - [`Error::Config`]: a file that the config names cannot be used.
/// - [`Error::Run`]: the relay cannot start for another reason. For example, an address cannot be
///   bound, or the queue cannot be opened.
/// - [`Error::Ended`]: an output, or a task that the relay needs, cannot continue; a second signal
///   has cut the drain short; or events were lost when the relay ended.
pub async fn run(
    file: Option<PathBuf>,
    mut config: Config,
    manual: Manual,
    signals: Signals<impl Future<Output = ()>, impl Future<Output = ()>>,
) -> Result<(), Error> {
    if let Err(error) = process::raise_open_files() {
        tracing::warn!(
            %error,
            "cannot raise the limit of open files: the relay continues with the limit that it has"
        );
    }
    open_files::fit(&mut config);
    // Some kernels and sandboxes do not have this setting of the process.
    if let Err(error) = process::refuse_huge_pages() {
        tracing::debug!(%error, "cannot turn off transparent huge pages");
    }
    let Signals { stopped, aborted, reload, opened } = signals;
    let mut stopped = std::pin::pin!(stopped);
    let parts = tokio::select! {
        started = start(file, config, manual, opened) => started?,
        // The relay must be able to end even while a file system hangs.
        () = &mut stopped => return Ok(()),
    };
    serve(parts, reload, stopped, aborted).await
}

/// Runs a relay that was started, until `stopped` completes or a part fails. During this time,
/// reloads the config for each message in `reload`, for each change of a file, and again after a
/// reload that could not bind an address. Then drains the relay, until `aborted` completes at the
/// latest. `Err` is the error that ended the relay, or the loss of events at its end.
async fn serve(
    mut parts: Parts,
    mut reload: mpsc::Receiver<()>,
    mut stopped: Pin<&mut impl Future<Output = ()>>,
    aborted: impl Future<Output = ()>,
) -> Result<(), Error> {
    let failures = parts.tasks.failures.clone();
    let result = loop {
        tokio::select! {
            biased;
            () = &mut stopped => break Ok(()),
            error = failures.wait() => break Err(Error::Ended(error)),
            // An output that has ended for good ends the process. The other outputs are drained as
            // after a signal.
            error = parts.outputs.ended() => {
                tracing::error!(
                    error,
                    "an output has failed and cannot continue: the relay drains and exits with 1"
                );
                break Err(Error::Ended(error));
            }
            Some(()) = reload.recv() => parts.file.again.end(),
            () = parts.file.watch.changed() => parts.file.again.end(),
            () = parts.file.again.due() => {}
        }
        // A signal ends the relay even if a file system hangs, or if an output or a source that is
        // removed takes long to end. Dropping the future of `prepare` is safe, because `prepare`
        // puts nothing in force.
        tokio::select! {
            biased;
            () = &mut stopped => break Ok(()),
            error = failures.wait() => break Err(Error::Ended(error)),
            prepared = parts.prepare() => parts.reload(prepared).await,
        }
    };
    let (queue, telemetry) = (parts.queue.clone(), Arc::clone(&parts.telemetry));
    let (ephemeral, lives) = (parts.config.queue.ephemeral, parts.lives.clone());
    let result = tokio::select! {
        drained = drain(parts) => result.and(drained),
        () = aborted => {
            abandon(&queue, ephemeral, lives).await;
            Err(Error::ended("ended at once by a second signal".to_owned()))
        }
    };
    tell_totals(&queue, &telemetry);
    result
}

#[cfg(test)]
mod tests;
