//! The instruction sets that the scanner is compiled for, and the call of the compiled code.
#![allow(unsafe_code, reason = "a call for each instruction set; the proof is beside it")]

#[cfg(target_arch = "x86_64")]
use std::arch::is_x86_feature_detected;

use super::Pass;

/// An instruction set that the scanner of bodies is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// No instructions of one architecture: numbers of 64 bits, on every CPU.
    Portable,
    /// SSE2, which every x86-64 CPU has.
    Sse2,
    /// NEON, which every arm64 CPU has.
    Neon,
    /// AVX2, in Intel Haswell, AMD Zen and later CPUs.
    Avx2,
    /// AVX-512 with VBMI and GFNI: Intel's server CPUs since Ice Lake, AMD's CPUs since Zen 4.
    ///
    /// CPUs with AVX-512 but without these extensions lower their clock during and after the use of
    /// registers of 512 bits. On an Intel Cascade Lake, the scanner took a fifth less time than
    /// with AVX2, and everything else on that core a seventh more.
    Avx512,
}

impl Isa {
    /// All instruction sets, from the narrowest registers to the widest.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Sse2, Self::Neon, Self::Avx2, Self::Avx512];

    /// Returns the usual name of the instruction set.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Sse2 => "SSE2",
            Self::Neon => "NEON",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
        }
    }

    /// Returns the instruction set with the widest registers that this CPU has.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_there()).unwrap_or(Self::Portable)
    }

    /// Returns `true` if this CPU has all instructions that the scanner uses.
    pub fn is_there(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Sse2 => cfg!(target_arch = "x86_64"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("lzcnt")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_there()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("gfni")
                    // The compiler assumes that a CPU with AVX-512 has these two as well.
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
        }
    }

    /// Runs the scanner over one whole body, in chunks of `BYTES` bytes. Returns `true` if the body
    /// is certainly valid, and `false` if it is not recognised or the CPU lacks the instructions.
    pub(super) fn run<const BYTES: usize>(self, pass: &mut Pass<'_>) -> bool {
        if !self.is_there() {
            return false;
        }
        match self {
            Self::Portable => super::portable::run::<BYTES>(pass),
            // SAFETY, here and below: the functions are unsafe to call only because they need
            // certain instructions, and `is_there` has found those in this CPU.
            #[cfg(target_arch = "x86_64")]
            Self::Sse2 => unsafe { super::sse2::run::<BYTES>(pass) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { super::avx2::run::<BYTES>(pass) },
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { super::avx512::run::<BYTES>(pass) },
            #[cfg(target_arch = "aarch64")]
            Self::Neon => unsafe { super::neon::run::<BYTES>(pass) },
            #[cfg(not(target_arch = "x86_64"))]
            Self::Sse2 | Self::Avx2 | Self::Avx512 => false,
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
        }
    }
}
