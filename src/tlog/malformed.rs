//! The error of everything that reads a text here.

/// The reason why the text of a key, a note, a checkpoint or a proof is not valid. The text itself
/// is not shown, because it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(super) &'static str);
