//! The operations for [`super::rounds`] on registers of 256 bits, which hold a word of each of 8
//! messages.

use std::arch::x86_64 as simd;

use super::BLOCK;
use super::BYTES;
use super::Message;
use super::rounds::CONSTANTS;
use super::rounds::INITIAL;
use super::rounds::end;

/// A register of 256 bits that holds a word of each of [`LANES`] (8) messages.
pub(super) type Lanes = simd::__m256i;

pub(super) const LANES: usize = 8;

super::rounds::rounds!("avx2");

#[target_feature(enable = "avx2")]
pub(super) fn splat(word: u32) -> Lanes {
    simd::_mm256_set1_epi32(word.cast_signed())
}

#[target_feature(enable = "avx2")]
pub(super) fn add(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm256_add_epi32(a, b)
}

/// Returns `a ^ b ^ c`, bit by bit.
#[target_feature(enable = "avx2")]
fn xor(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
    simd::_mm256_xor_si256(simd::_mm256_xor_si256(a, b), c)
}

/// Returns the bits of `f` where `e` has a 1, and those of `g` where it has a 0.
#[target_feature(enable = "avx2")]
fn choose(e: Lanes, f: Lanes, g: Lanes) -> Lanes {
    simd::_mm256_xor_si256(g, simd::_mm256_and_si256(e, simd::_mm256_xor_si256(f, g)))
}

/// Returns the bits that at least two of the three have.
#[target_feature(enable = "avx2")]
fn majority(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
    let with_c = simd::_mm256_and_si256(simd::_mm256_or_si256(a, b), c);
    simd::_mm256_or_si256(with_c, simd::_mm256_and_si256(a, b))
}

/// Rotates each word to the right by `RIGHT` bits. `LEFT` must be 32 - `RIGHT`.
#[target_feature(enable = "avx2")]
fn rotated<const RIGHT: i32, const LEFT: i32>(words: Lanes) -> Lanes {
    const { assert!(RIGHT + LEFT == 32) }
    let right = simd::_mm256_srli_epi32::<RIGHT>(words);
    simd::_mm256_or_si256(right, simd::_mm256_slli_epi32::<LEFT>(words))
}

#[target_feature(enable = "avx2")]
pub(super) fn shifted<const RIGHT: i32>(words: Lanes) -> Lanes {
    simd::_mm256_srli_epi32::<RIGHT>(words)
}

#[target_feature(enable = "avx2")]
pub(super) fn store(words: Lanes) -> [u32; LANES] {
    let stored = [
        simd::_mm256_extract_epi32::<0>(words),
        simd::_mm256_extract_epi32::<1>(words),
        simd::_mm256_extract_epi32::<2>(words),
        simd::_mm256_extract_epi32::<3>(words),
        simd::_mm256_extract_epi32::<4>(words),
        simd::_mm256_extract_epi32::<5>(words),
        simd::_mm256_extract_epi32::<6>(words),
        simd::_mm256_extract_epi32::<7>(words),
    ];
    stored.map(i32::cast_unsigned)
}

/// Returns a register with the 8 words of half a block. A block has its words with their highest
/// byte first.
#[target_feature(enable = "avx2")]
fn row(bytes: &[u8; BLOCK / 2]) -> Lanes {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |at: usize| i64::from_le_bytes(words[at]);
    let text = simd::_mm256_set_epi64x(word(3), word(2), word(1), word(0));
    let reversed = simd::_mm_set_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    simd::_mm256_shuffle_epi8(text, simd::_mm256_broadcastsi128_si256(reversed))
}

/// Returns 16 registers. Each of them has one of the 16 words of each block.
#[target_feature(enable = "avx2")]
pub(super) fn columns(blocks: &[&[u8; BLOCK]; LANES]) -> [Lanes; 16] {
    let mut columns = [splat(0); 16];
    for (half, columns) in columns.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let rows = blocks.map(|block| row(&block.as_chunks().0[half]));
        let [a, b, c, d, e, f, g, h] = rows;
        // The quads have the words 0 and 4, 1 and 5, 2 and 6, 3 and 7 of four rows.
        let quads = |a, b, c, d| {
            let (ab, cd) = (simd::_mm256_unpacklo_epi32(a, b), simd::_mm256_unpacklo_epi32(c, d));
            let (low, high) =
                (simd::_mm256_unpacklo_epi64(ab, cd), simd::_mm256_unpackhi_epi64(ab, cd));
            let (ab, cd) = (simd::_mm256_unpackhi_epi32(a, b), simd::_mm256_unpackhi_epi32(c, d));
            [low, high, simd::_mm256_unpacklo_epi64(ab, cd), simd::_mm256_unpackhi_epi64(ab, cd)]
        };
        for (at, (first, last)) in quads(a, b, c, d).into_iter().zip(quads(e, f, g, h)).enumerate()
        {
            columns[at] = simd::_mm256_permute2x128_si256::<0x20>(first, last);
            columns[at + 4] = simd::_mm256_permute2x128_si256::<0x31>(first, last);
        }
    }
    columns
}
