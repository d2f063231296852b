//! The second half of a reload: putting in use what the first half has read and checked.

/// A function that puts files or settings in use. They were read and checked before, so that the
/// call can't fail. If the function is dropped without a call, nothing has changed.
///
/// A reload first makes one such function for every output that reads files, and for every source.
/// It calls these functions only if all of them could be made. A mistake in one file therefore
/// changes nothing.
pub type Staged = Box<dyn FnOnce() + Send>;
