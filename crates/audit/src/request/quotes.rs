//! Finds the quotes and backslashes among 64 bytes, with wide registers if the CPU has them.

/// The number of bytes in a window, the text that is searched in one step.
pub(super) const WINDOW: usize = 64;

/// Two masks of a window with one bit for each byte, the lowest for the first byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct Masks {
    pub(super) quote: u64,
    pub(super) backslash: u64,
}

/// A search that asks for the masks of windows. `run` must be inlined: only then does the compiler
/// use the wide registers of the function that calls it.
pub(super) trait Search {
    fn run(self, masks: impl Fn(&[u8; WINDOW]) -> Masks) -> bool;
}

/// Computes the masks of a window on every CPU, eight bytes at a time.
#[inline]
pub(super) fn portable(window: &[u8; WINDOW]) -> Masks {
    const LOW: u64 = u64::from_ne_bytes([0x7f; 8]);
    let equal = |word: u64, byte: u8| {
        let other = word ^ u64::from_ne_bytes([byte; 8]);
        // The high bit of each byte is set if the byte of `other` is 0.
        let zeros = !(((other & LOW) + LOW) | other | LOW);
        // The multiplication gathers the eight bits in the highest byte.
        (zeros >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
    };
    let (words, _) = window.as_chunks();
    let none = Masks { quote: 0, backslash: 0 };
    words.iter().rev().fold(none, |masks, word| {
        let word = u64::from_le_bytes(*word);
        Masks {
            quote: masks.quote << 8 | equal(word, b'"'),
            backslash: masks.backslash << 8 | equal(word, b'\\'),
        }
    })
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    //! Computes the masks with registers of 32 bytes.
    #![allow(unsafe_code, reason = "a call of what needs instructions; the proof is beside it")]

    use std::arch::{is_x86_feature_detected, x86_64 as simd};

    use super::{Masks, Search, WINDOW};

    /// A proof, which only [`Self::detect`] makes, that the CPU has AVX2, BMI1 and BMI2.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) struct Avx2(());

    impl Avx2 {
        pub(in super::super) fn detect() -> Option<Self> {
            let is_there = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2");
            is_there.then_some(Self(()))
        }

        pub(in super::super) fn run(self, search: impl Search) -> bool {
            // SAFETY: the function is unsafe to call only because it needs certain instructions,
            // and `self` proves that the CPU has them.
            unsafe { run(search) }
        }
    }

    #[target_feature(enable = "avx2,bmi1,bmi2")]
    fn run(search: impl Search) -> bool {
        search.run(|window| masks(window))
    }

    #[target_feature(enable = "avx2,bmi1,bmi2")]
    #[inline]
    fn masks(window: &[u8; WINDOW]) -> Masks {
        let [low, high]: [simd::__m256i; 2] = bytemuck::must_cast(*window);
        let equal = |byte: u8| {
            let byte = simd::_mm256_set1_epi8(byte.cast_signed());
            let mask = |half| simd::_mm256_movemask_epi8(simd::_mm256_cmpeq_epi8(half, byte));
            u64::from(mask(low).cast_unsigned()) | u64::from(mask(high).cast_unsigned()) << 32
        };
        Masks { quote: equal(b'"'), backslash: equal(b'\\') }
    }
}
