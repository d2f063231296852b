//! The second half of a reload: applying what the first half has read and checked.

/// A function that applies what was read and checked before. It can't fail. A reload calls such
/// functions only after it has made all of them, so a mistake in one file changes nothing.
pub type Staged = Box<dyn FnOnce() + Send>;
