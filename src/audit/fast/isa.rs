//! Which instructions there are, and the call of what is compiled for them.
#![allow(unsafe_code, reason = "a call for each instruction set; the proof is beside it")]

use std::arch::is_x86_feature_detected;

use super::Pass;

/// An instruction set that the scanner is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Isa {
    /// Haswell, Zen and later.
    Avx2,
    /// Ice Lake, Zen 4 and later. VBMI2 is not used: it tells those CPUs from earlier ones, which lower their clock for
    /// wide registers.
    Avx512,
}

impl Isa {
    /// The widest that this CPU has.
    pub(in super::super) fn best() -> Option<Self> {
        [Self::Avx512, Self::Avx2].into_iter().find(|isa| isa.is_there())
    }

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
                    // The compiler takes them to come with AVX-512.
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
        }
    }

    /// The whole pass, in chunks of so many bytes; `false` also where the CPU lacks the instructions.
    pub(super) fn run<const BYTES: usize>(self, pass: &mut Pass<'_>) -> bool {
        if !self.is_there() {
            return false;
        }
        // SAFETY: what the functions need beyond safe code is the instructions, and those are there.
        unsafe {
            match self {
                Self::Avx2 => super::avx2::run::<BYTES>(pass),
                Self::Avx512 => super::avx512::run::<BYTES>(pass),
            }
        }
    }
}
