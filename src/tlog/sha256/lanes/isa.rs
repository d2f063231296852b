//! The instruction sets that hash several messages at once, and the call of the compiled code.
#![allow(unsafe_code, reason = "a call for each instruction set; the proof is beside it")]

use std::arch::is_x86_feature_detected;

use super::BYTES;
use super::Message;

/// An instruction set that hashes several messages at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX2, in Intel Haswell, AMD Zen and later CPUs: 8 messages.
    Avx2,
    /// AVX-512 with registers of 256 bits: 8 messages, in half of AVX2's time. It is for CPUs that
    /// lower their clock when they use registers of 512 bits, such as Intel Skylake and Cascade
    /// Lake; the documentation of `audit::Isa::Avx512` has what that costs.
    Avx512Vl,
    /// AVX-512 in Intel Ice Lake, AMD Zen 4 and later CPUs: 16 messages. It requires the extension
    /// VBMI2, which it does not use, because only CPUs without VBMI2 lower their clock.
    Avx512,
}

impl Isa {
    /// All of these instruction sets, from the slowest to the fastest.
    pub const ALL: [Self; 3] = [Self::Avx2, Self::Avx512Vl, Self::Avx512];

    /// Returns the fastest instruction set that this CPU has; `None` if ring is faster with one
    /// message at a time, or if the CPU has none of them.
    ///
    /// ring uses the SHA extensions of a CPU that has them. They are faster than registers of 256
    /// bits.
    #[must_use]
    pub fn best() -> Option<Self> {
        let is_faster = |isa: &Self| *isa == Self::Avx512 || !has_sha();
        Self::ALL.into_iter().rev().find(|isa| isa.is_there() && is_faster(isa))
    }

    /// Returns `true` if this CPU has all instructions of the instruction set that are used.
    #[must_use]
    pub fn is_there(self) -> bool {
        match self {
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            Self::Avx512Vl => {
                Self::Avx2.is_there()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    // The compiler assumes that a CPU with AVX-512 has these two as well.
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Self::Avx512 => {
                Self::Avx512Vl.is_there()
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vbmi2")
            }
        }
    }

    /// Returns the most messages that are hashed at once.
    pub(super) fn lanes(self) -> usize {
        match self {
            Self::Avx2 => super::avx2::LANES,
            Self::Avx512Vl => super::avx512vl::LANES,
            Self::Avx512 => super::avx512::LANES,
        }
    }

    /// Returns the number of messages of the same length from which on hashing them at once takes
    /// less time than hashing them by ring one after the other.
    pub(super) fn lanes_min(self) -> usize {
        match self {
            Self::Avx2 | Self::Avx512 if !has_sha() => 3,
            Self::Avx512Vl if !has_sha() => 2,
            Self::Avx2 => 8,
            Self::Avx512Vl => 6,
            Self::Avx512 => 10,
        }
    }

    /// Hashes a group of at most [`Isa::lanes`] messages. Returns `false`, and hashes nothing, if
    /// the CPU lacks the instructions.
    pub(super) fn run(self, group: &[Message<'_>], hashes: &mut [[u8; BYTES]]) -> bool {
        if !self.is_there() {
            return false;
        }
        // SAFETY: the functions are unsafe to call only because they need certain instructions, and
        // `is_there` has found those in this CPU.
        unsafe {
            match self {
                Self::Avx2 => super::avx2::hash(group, hashes),
                Self::Avx512Vl => super::avx512vl::hash(group, hashes),
                Self::Avx512 => super::avx512::hash(group, hashes),
            }
        }
        true
    }
}

/// Returns `true` if the CPU has the SHA extensions, with which ring hashes one message.
fn has_sha() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3")
}
