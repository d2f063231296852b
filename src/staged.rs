//! The second half of a reload: putting in use what the first half has read and checked.

/// Puts what was read and checked (files, settings) in use when it is called, and can't fail. If it
/// is dropped instead, nothing has changed.
///
/// A reload first makes one of these for every output and every source. Only if all could be made,
/// it calls them: a mistake in one file leaves everything as it was.
pub type Staged = Box<dyn FnOnce() + Send>;
