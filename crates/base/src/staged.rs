//! The second half of a reload: applying what the first half has read and checked.

/// Applies what was read and checked before, and can't fail. A reload calls these functions only if
/// it could make all of them, so that a mistake in one file changes nothing.
pub type Staged = Box<dyn FnOnce() + Send>;
