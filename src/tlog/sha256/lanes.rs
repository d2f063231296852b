//! Hashes several messages at once, each in a lane of wide registers ("multi-buffer hashing").
//!
//! Each round of SHA-256 needs the result of the round before, so that one message leaves most of
//! a CPU idle. Several messages are independent: a register holds a word of each of them, one in
//! each lane. All lanes together take as many steps of 64 bytes as their longest message.
//! Therefore the messages are sorted by their number of steps, and those that lie side by side
//! then make a group. A message that is much longer than the others of its group is hashed alone.

use std::cmp::Reverse;

use super::BYTES;
use super::alone;

mod avx2;
mod avx512;
mod avx512vl;
mod isa;
mod rounds;

pub use isa::Isa;

/// The number of bytes that one step of SHA-256 takes.
const BLOCK: usize = 64;

/// The least number of bytes that SHA-256 puts behind a message: a byte with its highest bit set,
/// and the length of the message in bits.
const END: usize = 1 + size_of::<u64>();

/// One of the messages that are hashed.
struct Message<'a> {
    bytes: &'a [u8],
    /// The index of its hash.
    index: usize,
}

impl Message<'_> {
    /// Returns the number of blocks of 64 bytes that are hashed, with those that hold the end.
    fn steps(&self) -> usize {
        (self.bytes.len() + END).div_ceil(BLOCK)
    }
}

/// Returns the hash of each message, as [`each`](super::each) does, with this instruction set.
#[must_use]
pub fn each_by<M: AsRef<[u8]>>(isa: Isa, messages: &[M]) -> Vec<[u8; BYTES]> {
    let messages = messages.iter().map(M::as_ref).enumerate();
    let mut sorted: Vec<_> = messages.map(|(index, bytes)| Message { bytes, index }).collect();
    sorted.sort_unstable_by_key(|message| Reverse(message.steps()));
    let mut hashes = vec![[0; BYTES]; sorted.len()];
    let mut left = sorted.as_slice();
    while let [longest, shorter @ ..] = left {
        let (group, others) = left.split_at(left.len().min(isa.lanes()));
        let steps: usize = group.iter().map(Message::steps).sum();
        let is_worth_it = steps >= longest.steps() * isa.lanes_min();
        if is_worth_it && isa.run(group, &mut hashes) {
            left = others;
        } else {
            hashes[longest.index] = alone(longest.bytes);
            left = shorter;
        }
    }
    hashes
}

#[cfg(test)]
mod tests;
