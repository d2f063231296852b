//! The errors of the relay, by what their caller does next.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::task::JoinError as TaskError;

use crate::delivery::RunError;
use crate::delivery::StageError;
use crate::named_file;
use crate::queue::JoinError;
use crate::source;

/// The reason why the relay did not start or has ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config names something that cannot be used, for example a certificate. An operator must
    /// correct the config or the file.
    #[error("{0}")]
    Config(String),
    /// The relay could not start or continue, although the config is right. For example, the
    /// operating system has refused an address.
    #[error("{0}")]
    Run(String),
    /// A running relay has failed, or its end was cut short. The relay logs such errors itself,
    /// before the last log line with the numbers of events. The caller therefore does not print the
    /// error.
    #[error("{0}")]
    Ended(String),
}

impl Error {
    /// Logs `error`, which has ended a running relay, and returns it as `Error::Ended`.
    pub(super) fn ended(error: &impl ToString) -> Self {
        let error = error.to_string();
        tracing::error!(error, "the relay has failed");
        Self::Ended(error)
    }
}

/// The reason why a config was refused. Nothing of this config is in use. After a refused reload,
/// the relay continues with the config that it has; a refused config at the start ends the process
/// with [`Error`].
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// The config file cannot be read. The operator must restore the file or its permissions.
    #[error("cannot read {}: {source}", file.display())]
    ConfigFile {
        /// The path of the config file.
        file: PathBuf,
        /// The error of the operating system when the file was read.
        source: io::Error,
    },
    /// The config has errors, and each of them is logged. The operator must correct the config.
    #[error("the config is wrong; `check` prints every problem of it")]
    Problems,
    /// The config is right, but its sources need another queue, and the queue in use cannot be
    /// replaced without a restart. The operator must restart the relay, or remove the sources from
    /// the config.
    #[error(
        "a [[source]] needs a queue in memory with acknowledge = \"delivered\", and queue.directory \
         can't change without a restart: restart the relay, or leave the [[source]] out"
    )]
    NeedsRestart,
    /// A file that the config names cannot be used. The operator must correct the file or the
    /// config.
    #[error(transparent)]
    File(#[from] FileError),
    /// An address in the config cannot be bound: it is in use, or it is no address of this machine.
    /// The operator must free the address or choose another. A reload is tried again.
    #[error(transparent)]
    Address(#[from] BindError),
    /// The queue has refused a new output, for example because the disk did not store the output's
    /// place in the queue.
    #[error("output {name} cannot join the queue: {source}")]
    Join {
        /// The output's name.
        name: String,
        /// The reason why the queue refuses the output.
        source: JoinError,
    },
    /// The file system has not responded within the time limit. The next reload tries again.
    #[error("the file system has not answered within {} s: cannot read {files}", named_file::WAIT_MAX.as_secs())]
    Hangs {
        /// The names of the files that were being read.
        files: String,
    },
    /// The code that reads files has panicked, which is a fault of the program.
    #[error("a file could not be read: {0}")]
    Panicked(TaskError),
}

/// Converts the reason why the config was refused at the start into the error that ends the
/// process.
impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::ConfigFile { .. }
            | Refused::Problems
            | Refused::NeedsRestart
            | Refused::File(_) => Self::Config(text),
            Refused::Address(_)
            | Refused::Join { .. }
            | Refused::Hangs { .. }
            | Refused::Panicked(_) => Self::Run(text),
        }
    }
}

/// The error for a file that the config names and that cannot be used. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// A file that an output reads cannot be used.
    #[error("output {name}: {source}")]
    Output {
        /// The output's name.
        name: String,
        /// The path of the file, and its fault.
        source: StageError,
    },
    /// The token that opens taps cannot be read. The text names the file and its fault.
    #[error("admin.tap_token_file: {0}")]
    Tap(String),
    /// A file that a source reads cannot be used.
    #[error(transparent)]
    Source(#[from] source::StageError),
    /// A file that a listener reads cannot be used.
    #[error("listener {label}: {fault}")]
    Listener {
        /// The listener's address as the config has it.
        label: String,
        /// The path of the file and its fault, as text.
        fault: String,
    },
}

/// The error for an address in the config that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub(super) struct BindError {
    /// The address that cannot be bound.
    pub address: SocketAddr,
    /// The error of the operating system when the address was bound.
    pub source: io::Error,
}

/// The errors of listeners that could not be opened when a config was put in force. The rest of the
/// config is in force. The operator must free the addresses; the reload is tried again. Each text
/// names the address of one listener. If an old listener was closed to free the port, the text also
/// says whether that old listener was opened again.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub(super) struct NotListening(pub Vec<String>);

/// The task of an output has ended although nobody told it to end. The process must end; before
/// that, the relay drains with the other outputs.
#[derive(Debug, thiserror::Error)]
#[error("output {name}: {reason}")]
pub(super) struct OutputEnded {
    /// The output's name.
    pub name: String,
    /// The reason why the task ended.
    pub reason: EndReason,
}

/// The reason why the task of an output has ended although nobody told it to end.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndReason {
    /// The output itself cannot continue, for example because nobody reads stdout any more.
    #[error(transparent)]
    Fatal(#[from] RunError),
    /// The delivery has returned although nobody had stopped it, which is a fault of the program.
    #[error("has ended")]
    Returned,
    /// The task has panicked, which is a fault of the program.
    #[error("its task has panicked: {0}")]
    Panicked(TaskError),
}
