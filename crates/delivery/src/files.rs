//! The files that an output reads (certificates, tokens, policies), and how a reload replaces them.
//! A reload stages the files of every output, and then applies them only if all could be read.

use std::sync::Arc;

use crate::filter::Rules;
use base::staged::Staged;

/// The files that one output, or a part of it, reads.
pub trait Files: Send + Sync {
    /// Reads and checks the files. Returns a function that puts them in use. Blocks the thread.
    ///
    /// # Errors
    ///
    /// The files cannot be used, and nothing has changed: a reload is refused, a start ends the
    /// process, and `check` reports the error. The text names the file or config key, and the
    /// mistake. It never shows a secret, but may quote an audit policy.
    fn stage(self: Arc<Self>) -> Result<Staged, String>;

    /// Returns the content of files and variables that decides which events leave, in which form,
    /// and to where. Credentials and certificates are left out, because they are renewed. The text
    /// may still hold secrets: only a keyed digest of it may leave.
    fn effective(&self) -> String {
        String::new()
    }
}

/// If one of the sets has an error, none of them is used.
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

impl Files for Rules {
    fn stage(self: Arc<Self>) -> Result<Staged, String> {
        let read = self.read().map_err(|mistakes| mistakes.join("; "))?;
        Ok(Box::new(move || self.apply(read)))
    }

    fn effective(&self) -> String {
        self.policies_as_text()
    }
}
