//! The errors of the relay, by what their caller does next.

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
    /// A running relay has failed, or its end was cut short. The relay logs such errors itself,
    /// before the last log line with the numbers of events. The caller therefore does not print the
    /// error.
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

/// The reason why a config was refused. Nothing of this config is in use. After a refused reload,
/// the relay continues with the config that it has; a refused config at the start ends the process
/// with [`Error`].
#[derive(Debug, thiserror::Error)]
pub enum Refused {
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
    /// The config names files or directories that this process can no longer use, because it has
    /// restricted itself at its start. Each of them is logged. The operator must restart the relay,
    /// or name another place.
    #[error(
        "the config names files that this process may no longer open (process.restrict): restart \
         the relay to apply the config"
    )]
    Outside,
    /// The config file, or a file that it names, cannot be read or used. The operator must correct
    /// the file, its permissions or the config.
    #[error("{0}")]
    File(String),
    /// An address in the config cannot be bound: it is in use, or it is not an address of this
    /// machine. The operator must free the address or choose another. A reload is tried again.
    #[error("{0}")]
    Address(String),
    /// The queue has refused a new output, for example because the disk did not store the output's
    /// place in the queue.
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

/// Converts the reason why the config was refused at the start into the error that ends the
/// process.
impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::Problems | Refused::NeedsRestart | Refused::Outside | Refused::File(_) => {
                Self::Config(text)
            }
            Refused::Address(_)
            | Refused::Join(_)
            | Refused::Hangs { .. }
            | Refused::Panicked(_) => Self::Run(text),
        }
    }
}
