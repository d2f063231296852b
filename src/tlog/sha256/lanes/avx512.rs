//! The operations for [`super::rounds`] on registers of 512 bits, which hold a word of each of 16
//! messages.

use std::arch::x86_64 as simd;

use super::BLOCK;
use super::BYTES;
use super::Message;
use super::avx2;
use super::rounds::CONSTANTS;
use super::rounds::INITIAL;
use super::rounds::end;

/// A register of 512 bits that holds a word of each of [`LANES`] (16) messages.
type Lanes = simd::__m512i;

pub(super) const LANES: usize = 16;

super::rounds::rounds!("avx512f,avx512bw,avx512vl,avx2");

#[target_feature(enable = "avx512f")]
fn splat(word: u32) -> Lanes {
    simd::_mm512_set1_epi32(word.cast_signed())
}

#[target_feature(enable = "avx512f")]
fn add(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm512_add_epi32(a, b)
}

/// Returns `a ^ b ^ c`, bit by bit.
#[target_feature(enable = "avx512f")]
fn xor(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
    simd::_mm512_ternarylogic_epi32::<0x96>(a, b, c)
}

/// Returns the bits of `f` where `e` has a 1, and those of `g` where it has a 0.
#[target_feature(enable = "avx512f")]
fn choose(e: Lanes, f: Lanes, g: Lanes) -> Lanes {
    simd::_mm512_ternarylogic_epi32::<0xca>(e, f, g)
}

/// Returns the bits that at least two of the three have.
#[target_feature(enable = "avx512f")]
fn majority(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
    simd::_mm512_ternarylogic_epi32::<0xe8>(a, b, c)
}

/// Rotates each word to the right by `RIGHT` bits. `LEFT` must be 32 - `RIGHT`.
#[target_feature(enable = "avx512f")]
fn rotated<const RIGHT: i32, const LEFT: i32>(words: Lanes) -> Lanes {
    const { assert!(RIGHT + LEFT == 32) }
    simd::_mm512_ror_epi32::<RIGHT>(words)
}

#[target_feature(enable = "avx512f")]
fn shifted<const RIGHT: u32>(words: Lanes) -> Lanes {
    simd::_mm512_srli_epi32::<RIGHT>(words)
}

#[target_feature(enable = "avx512f,avx2")]
fn store(words: Lanes) -> [u32; LANES] {
    let low = simd::_mm512_castsi512_si256(words);
    let high = simd::_mm512_extracti64x4_epi64::<1>(words);
    let mut stored = [0; LANES];
    let (first, last) = stored.split_at_mut(LANES / 2);
    first.copy_from_slice(&avx2::store(low));
    last.copy_from_slice(&avx2::store(high));
    stored
}

/// Returns a register with the 16 words of a block, which has them with their highest byte first.
#[target_feature(enable = "avx512f,avx512bw")]
fn row(block: &[u8; BLOCK]) -> Lanes {
    let (words, _) = block.as_chunks::<8>();
    let word = |at: usize| i64::from_le_bytes(words[at]);
    let text = simd::_mm512_set_epi64(
        word(7),
        word(6),
        word(5),
        word(4),
        word(3),
        word(2),
        word(1),
        word(0),
    );
    let reversed = simd::_mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    simd::_mm512_shuffle_epi8(text, reversed)
}

/// Returns 16 registers. Each of them has one of the 16 words of each block.
#[target_feature(enable = "avx512f,avx512bw")]
fn columns(blocks: &[&[u8; BLOCK]; LANES]) -> [Lanes; 16] {
    let rows = blocks.map(|block| row(block));
    // The quads have the words 0, 4, 8 and 12 of four rows, then 1, 5, 9 and 13, and so on. A
    // register has the words 0 of all four rows in its first quarter.
    let mut quads = [[splat(0); 4]; 4];
    for (quads, rows) in quads.iter_mut().zip(rows.as_chunks().0) {
        let [a, b, c, d] = *rows;
        let (ab, cd) = (simd::_mm512_unpacklo_epi32(a, b), simd::_mm512_unpacklo_epi32(c, d));
        quads[0] = simd::_mm512_unpacklo_epi64(ab, cd);
        quads[1] = simd::_mm512_unpackhi_epi64(ab, cd);
        let (ab, cd) = (simd::_mm512_unpackhi_epi32(a, b), simd::_mm512_unpackhi_epi32(c, d));
        quads[2] = simd::_mm512_unpacklo_epi64(ab, cd);
        quads[3] = simd::_mm512_unpackhi_epi64(ab, cd);
    }
    let mut columns = [splat(0); 16];
    for at in 0..4 {
        let [a, b, c, d] = quads.map(|quads| quads[at]);
        // The first and the second two quarters of two registers.
        let (ab, cd) =
            (simd::_mm512_shuffle_i32x4::<0x44>(a, b), simd::_mm512_shuffle_i32x4::<0x44>(c, d));
        columns[at] = simd::_mm512_shuffle_i32x4::<0x88>(ab, cd);
        columns[at + 4] = simd::_mm512_shuffle_i32x4::<0xdd>(ab, cd);
        let (ab, cd) =
            (simd::_mm512_shuffle_i32x4::<0xee>(a, b), simd::_mm512_shuffle_i32x4::<0xee>(c, d));
        columns[at + 8] = simd::_mm512_shuffle_i32x4::<0x88>(ab, cd);
        columns[at + 12] = simd::_mm512_shuffle_i32x4::<0xdd>(ab, cd);
    }
    columns
}
