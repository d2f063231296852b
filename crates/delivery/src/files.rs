//! The files that an output reads (certificates, tokens, policies), and how a reload replaces them.
//!
//! A reload first stages the files of every output, which changes nothing, and applies them only
//! when all could be read. A file with a mistake therefore leaves all outputs as they were.

use std::sync::Arc;

use crate::filter::Rules;
use base::staged::Staged;

/// The files (certificates, tokens, policies) that one output, or a part of it, reads.
pub trait Files: Send + Sync {
    /// Reads and checks the files, but does not use them yet. Returns a function that puts them in
    /// use. The call blocks the thread.
    ///
    /// # Errors
    ///
    /// The files cannot be used, and nothing has changed: a reload is refused, a start ends the
    /// process, and `check` reports the error. The text tells the operator which file or config key
    /// is wrong, and why. It never shows a secret; a text about an audit policy may quote its file.
    fn stage(self: Arc<Self>) -> Result<Staged, String>;

    /// Returns, as text, what the files and the variables of the config say now about which events
    /// leave, in which form, and to where. Credentials and certificates are left out, because they
    /// are renewed. The text may hold secrets all the same: only a keyed digest of it may leave.
    fn effective(&self) -> String {
        String::new()
    }
}

/// Several sets of files are staged together. If one set has an error, none of the sets is used.
impl Files for Vec<Arc<dyn Files>> {
    fn stage(self: Arc<Self>) -> Result<Staged, String> {
        let staged = self.iter().map(|files| Arc::clone(files).stage());
        let staged = staged.collect::<Result<Vec<_>, _>>()?;
        Ok(Box::new(move || staged.into_iter().for_each(|staged| staged())))
    }

    fn effective(&self) -> String {
        self.iter().map(|files| files.effective()).collect()
    }
}

/// The audit policies and rules of a filter, which are read from files.
impl Files for Rules {
    fn stage(self: Arc<Self>) -> Result<Staged, String> {
        let read = self.read().map_err(|mistakes| mistakes.join("; "))?;
        Ok(Box::new(move || self.apply(read)))
    }

    fn effective(&self) -> String {
        self.policies_as_text()
    }
}
