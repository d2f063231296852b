//! The instruction sets that the scanner is compiled for, and the call of the compiled code.
#![allow(unsafe_code, reason = "a call for each instruction set; the proof is beside it")]

use std::arch::is_x86_feature_detected;

use super::Pass;

/// An instruction set that the scanner of bodies is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Isa {
    /// AVX2, in Intel Haswell, AMD Zen and later CPUs.
    Avx2,
    /// AVX-512, in Intel Ice Lake, AMD Zen 4 and later CPUs. The scanner does not use the extension
    /// VBMI2, but requires it, because CPUs that have AVX-512 without VBMI2 lower their clock when
    /// they use wide registers.
    Avx512,
}

impl Isa {
    /// Returns the instruction set with the widest registers that this CPU has; `None` if the CPU
    /// has none of them.
    pub(in super::super) fn best() -> Option<Self> {
        [Self::Avx512, Self::Avx2].into_iter().find(|isa| isa.is_there())
    }

    /// Returns `true` if this CPU has all instructions of the instruction set that the scanner
    /// uses.
    pub(in super::super) fn is_there(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt");
        match self {
            Self::Avx2 => avx2,
            Self::Avx512 => {
                avx2 && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi2")
                    // The compiler assumes that a CPU with AVX-512 has these two as well.
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
        }
    }

    /// Runs the scanner over one whole body, in chunks of `BYTES` bytes. Returns `true` if the body
    /// is certainly valid. Returns `false` if the scanner does not recognise the body or the CPU
    /// lacks the instructions.
    pub(super) fn run<const BYTES: usize>(self, pass: &mut Pass<'_>) -> bool {
        if !self.is_there() {
            return false;
        }
        // SAFETY: the functions are unsafe to call only because they need certain instructions, and
        // `is_there` has found those in this CPU.
        unsafe {
            match self {
                Self::Avx2 => super::avx2::run::<BYTES>(pass),
                Self::Avx512 => super::avx512::run::<BYTES>(pass),
            }
        }
    }
}
