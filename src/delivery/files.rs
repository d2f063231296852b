//! The files that an output reads (certificates, tokens, policies), and how a reload replaces them.
//!
//! A reload first stages the files of every output, which changes nothing, and applies them only
//! when all could be read. A file with a mistake therefore leaves all outputs as they were.

use std::sync::Arc;

use crate::filter::Rules;
use crate::staged::Staged;
use crate::tls::TlsError;

/// The files (certificates, tokens, policies) that one output, or a part of it, reads.
pub trait Files: Send + Sync {
    /// Reads and checks the files, but does not use them yet. Returns a function that puts them in
    /// use. The call blocks the thread.
    ///
    /// # Errors
    ///
    /// [`StageError`]: the text tells the operator which file or config key is wrong, and why.
    fn stage(self: Arc<Self>) -> Result<Staged, StageError>;
}

/// The reason why the files of an output cannot be used. Nothing has changed: a reload is refused,
/// a start ends the process, and `check` reports the error. The operator must correct the file or
/// the config. No text shows a secret; a text about an audit policy may quote a part of its file.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A certificate, key or CA cannot be read or used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The audit policies of the filter have these mistakes, each with its file and line.
    #[error("{}", .0.join("; "))]
    Policy(Vec<String>),
    /// A URL, a header, a token, a password or another secret cannot be read or used. The text
    /// names the config key or the file.
    #[error("{0}")]
    Setting(String),
}

/// Several sets of files are staged together. If one set has an error, none of the sets is used.
impl Files for Vec<Arc<dyn Files>> {
    fn stage(self: Arc<Self>) -> Result<Staged, StageError> {
        let staged = self.iter().map(|files| Arc::clone(files).stage());
        let staged = staged.collect::<Result<Vec<_>, _>>()?;
        Ok(Box::new(move || staged.into_iter().for_each(|staged| staged())))
    }
}

/// The audit policies and rules of a filter, which are read from files.
impl Files for Rules {
    fn stage(self: Arc<Self>) -> Result<Staged, StageError> {
        let read = self.read().map_err(StageError::Policy)?;
        Ok(Box::new(move || self.apply(read)))
    }
}
