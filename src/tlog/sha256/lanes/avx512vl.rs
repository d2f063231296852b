//! The operations for [`super::rounds`] on registers of 256 bits, with the rotations and the logic
//! of AVX-512.

use std::arch::x86_64 as simd;

use super::BLOCK;
use super::BYTES;
use super::Message;
pub(super) use super::avx2::LANES;
use super::avx2::Lanes;
use super::avx2::add;
use super::avx2::columns;
use super::avx2::shifted;
use super::avx2::splat;
use super::avx2::store;
use super::rounds::CONSTANTS;
use super::rounds::INITIAL;
use super::rounds::end;

super::rounds::rounds!("avx512f,avx512vl,avx2");

/// Returns `a ^ b ^ c`, bit by bit.
#[target_feature(enable = "avx512f,avx512vl")]
fn xor(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
    simd::_mm256_ternarylogic_epi32::<0x96>(a, b, c)
}

/// Returns the bits of `f` where `e` has a 1, and those of `g` where it has a 0.
#[target_feature(enable = "avx512f,avx512vl")]
fn choose(e: Lanes, f: Lanes, g: Lanes) -> Lanes {
    simd::_mm256_ternarylogic_epi32::<0xca>(e, f, g)
}

/// Returns the bits that at least two of the three have.
#[target_feature(enable = "avx512f,avx512vl")]
fn majority(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
    simd::_mm256_ternarylogic_epi32::<0xe8>(a, b, c)
}

/// Rotates each word to the right by `RIGHT` bits. `LEFT` must be 32 - `RIGHT`.
#[target_feature(enable = "avx512f,avx512vl")]
fn rotated<const RIGHT: i32, const LEFT: i32>(words: Lanes) -> Lanes {
    const { assert!(RIGHT + LEFT == 32) }
    simd::_mm256_ror_epi32::<RIGHT>(words)
}
