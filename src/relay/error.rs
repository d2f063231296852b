//! The errors of the relay, by what their caller does next.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::task::JoinError as TaskError;

use crate::delivery::RunError;
use crate::delivery::StageError;
use crate::queue::JoinError;
use crate::source;

/// The reason why the relay did not start or has ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The config names something that cannot be used. An operator must correct the config.
    #[error("{0}")]
    Config(String),
    /// The operating system or a peer refused something.
    #[error("{0}")]
    Run(String),
    /// A running relay could not go on, or could not end in order. The error is in the log already,
    /// followed by the totals.
    #[error("{0}")]
    Ended(String),
}

impl Error {
    /// Logs the error that ended a running relay, and returns it.
    pub(super) fn ended(error: &impl ToString) -> Self {
        let error = error.to_string();
        tracing::error!(error, "the relay has failed");
        Self::Ended(error)
    }
}

/// The reason why a config was not put in force. Nothing has changed. A refused reload leaves the
/// config in use; a refused config at the start ends the process with [`Error`].
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
    /// The config has errors, which are logged one by one. The operator must correct it.
    #[error("the config is wrong; `check` prints every problem of it")]
    Problems,
    /// The config is right, but the queue in use cannot serve its sources. The operator must
    /// restart the relay, or leave the sources out.
    #[error(
        "a [[source]] needs a queue in memory with acknowledge = \"delivered\", and queue.directory \
         can't change without a restart: restart the relay, or leave the [[source]] out"
    )]
    NeedsRestart,
    /// A file that the config names cannot be used. The operator must correct the file or the
    /// config.
    #[error(transparent)]
    File(#[from] FileError),
    /// An address of the config is taken or does not exist. The operator must free the address or
    /// choose another.
    #[error(transparent)]
    Address(#[from] BindError),
    /// The queue refuses to let a new output join.
    #[error("output {name} cannot join the queue: {source}")]
    Join {
        /// The output's name.
        name: String,
        /// The reason why the queue refuses the output.
        source: JoinError,
    },
    /// The file system has not responded within the time limit. The next reload tries again.
    #[error("the file system does not answer")]
    Hangs,
    /// The code that reads files has panicked, which is a fault of the program.
    #[error("a file could not be read: {0}")]
    Panicked(TaskError),
}

/// Converts the reason for the start of the relay, which cannot go on.
impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::ConfigFile { .. }
            | Refused::Problems
            | Refused::NeedsRestart
            | Refused::File(_) => Self::Config(text),
            Refused::Address(_) | Refused::Join { .. } | Refused::Hangs | Refused::Panicked(_) => {
                Self::Run(text)
            }
        }
    }
}

/// An error about a file that the config names and that cannot be used. Nothing has changed.
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

/// An error about an address of the config that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub(super) struct BindError {
    /// The address that cannot be bound.
    pub address: SocketAddr,
    /// The error of the operating system when the address was bound.
    pub source: io::Error,
}

/// Listeners that could not be opened when a config was put in force. Everything else is in force:
/// the operator must free the addresses and reload again. Each text says which address is taken,
/// and whether the listener that had it before still listens.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub(super) struct NotListening(pub Vec<String>);

/// The task of an output has ended without being told to. The process must end: the other outputs
/// are drained first.
#[derive(Debug, thiserror::Error)]
#[error("output {name}: {reason}")]
pub(super) struct OutputEnded {
    /// The output's name.
    pub name: String,
    /// The reason why the task ended.
    pub reason: EndReason,
}

/// The reason why the task of an output ended without being told to.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndReason {
    /// The output itself cannot go on, for example because nobody reads stdout any more.
    #[error(transparent)]
    Fatal(#[from] RunError),
    /// The delivery returned although nobody had stopped it, which is a fault of the program.
    #[error("has ended")]
    Returned,
    /// The task has panicked, which is a fault of the program.
    #[error("its task has panicked: {0}")]
    Panicked(TaskError),
}
