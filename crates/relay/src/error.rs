//! The errors of the relay, by the next step of their caller.

use tokio::task::JoinError;

use base::named_file;

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
    /// A running relay has failed, its drain was cut short, or it has lost events at its end. The
    /// log already says so, so the caller does not print the error.
    #[error("{0}")]
    Ended(String),
}

impl Error {
    /// Logs `error`, which has ended a running relay, and returns it as `Error::Ended`.
    pub fn ended(error: String) -> Self {
        tracing::error!(error, "the relay has failed");
        Self::Ended(error)
    }
}

/// The reason why a config was refused. Nothing of this config is in use. After a reload the relay
/// continues with the config that it has; at startup the process ends with [`Error`].
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The config has errors. The first of them are logged. The operator must correct the config.
    #[error("the config is wrong; `check` prints every problem of it")]
    Problems,
    /// The sources of the config need another queue, and the queue in use cannot be replaced. The
    /// operator must restart the relay, or remove the sources.
    #[error(
        "a [[source]] needs a queue in memory with acknowledge = \"delivered\", and queue.directory \
         can't change without a restart: restart the relay, or leave the [[source]] out"
    )]
    NeedsRestart,
    /// The config names files or directories to which this process has given up access. The first
    /// of them are logged. The operator must restart the relay, or name another file or directory.
    #[error(
        "the config names files that this process may no longer open (process.restrict): restart \
         the relay to apply the config"
    )]
    Outside,
    /// The config file, or a file that it names, cannot be read or used. The operator must correct
    /// the file, its permissions or the config.
    #[error("{0}")]
    File(String),
    /// An address in the config cannot be bound, for example because it is in use, or is not an
    /// address of this machine. The operator must free the address or choose another. The relay
    /// repeats such a reload.
    #[error("{0}")]
    Address(String),
    /// A listener moves to an address that overlaps with its old one. The operator must restart the
    /// relay, or choose another port.
    #[error("{0}")]
    Moves(String),
    /// The queue has refused a new output, for example because the disk did not store its cursor.
    #[error("{0}")]
    Join(String),
    /// The file system has not responded within the time limit. The next reload tries again.
    #[error("the file system has not responded within {} s: cannot read {files}", named_file::WAIT_MAX.as_secs())]
    Hangs {
        /// The names of the files that were being read.
        files: String,
    },
    /// The code that reads files has panicked, which is a fault of the program.
    #[error("a file could not be read: {0}")]
    Panicked(JoinError),
}

/// A config that is refused at startup ends the process.
impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::Problems | Refused::NeedsRestart | Refused::Outside | Refused::File(_) => {
                Self::Config(text)
            }
            Refused::Address(_)
            | Refused::Moves(_)
            | Refused::Join(_)
            | Refused::Hangs { .. }
            | Refused::Panicked(_) => Self::Run(text),
        }
    }
}
