//! The error of the functions that read the text of a key, a note, a checkpoint or a proof.

/// The reason why text is not valid. The text itself is not shown, because it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) &'static str);
