//! The claims that an output has taken from the queue and that are not final.

use crate::queue::Claim;

/// Something taken from the queue that is not final.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) claim: Claim,
    pub(super) events: u64,
    pub(super) attempts: u32,
    /// The number of refusals before it was sent.
    pub(super) sent_at: u64,
    /// Where a consumer has refused it, or what it was a part of: the number of that refusal.
    pub(super) refused_at: Option<u64>,
    /// It was refused alone, and kept.
    pub(super) suspected: bool,
}
