//! The second half of a reload, which applies the files that the first half has read and checked.

/// A function that applies a file that was read and checked before. It can't fail. A reload makes
/// all of these functions before it calls the first one, so a mistake in one file changes nothing.
pub type Staged = Box<dyn FnOnce() + Send>;
