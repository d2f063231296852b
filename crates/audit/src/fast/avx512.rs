//! The operations for [`super::rules`] on registers of 512 bits, which hold eight masks.

use std::arch::x86_64 as simd;

use super::BLOCK;
use super::BLOCKS;
use super::Blocks;
use super::CHUNK;
use super::Pass;
use super::Seen;
use super::Space;
use super::Used;
use super::padding;

/// A register of 512 bits that holds the masks of [`LANES`] blocks, one mask of 64 bits in each
/// lane.
type Lanes = simd::__m512i;

const LANES: usize = 8;

super::rules::rules!("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,lzcnt,popcnt");

#[target_feature(enable = "avx512f")]
fn load(masks: &[u64; LANES]) -> Lanes {
    bytemuck::must_cast(*masks)
}

#[target_feature(enable = "avx512f")]
fn store(lanes: Lanes, masks: &mut [u64; LANES]) {
    *masks = bytemuck::must_cast(lanes);
}

#[target_feature(enable = "avx512f")]
fn splat(mask: u64) -> Lanes {
    simd::_mm512_set1_epi64(mask.cast_signed())
}

#[target_feature(enable = "avx512f")]
fn and(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm512_and_si512(a, b)
}

/// Returns `a & !b`, bit by bit.
#[target_feature(enable = "avx512f")]
fn and_not(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm512_andnot_si512(b, a)
}

#[target_feature(enable = "avx512f")]
fn or(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm512_or_si512(a, b)
}

#[target_feature(enable = "avx512f")]
fn xor(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm512_xor_si512(a, b)
}

#[target_feature(enable = "avx512f")]
fn is_zero(lanes: Lanes) -> bool {
    simd::_mm512_test_epi64_mask(lanes, lanes) == 0
}

/// Moves each mark, a set bit in a mask, `BYTES` bytes further in the text. The masks of the
/// register count as one long number, which is shifted up by `BYTES` bits. The lowest bits then get
/// the marks of the last `BYTES` bytes before this register, from `before`, the register with the
/// masks of the preceding blocks. `UNSEEN` must be 64 - `BYTES`: the number of bits of a mask that
/// do not move into the next mask.
#[target_feature(enable = "avx512f")]
fn later<const BYTES: u32, const UNSEEN: u32>(lanes: Lanes, before: Lanes) -> Lanes {
    let from = simd::_mm512_alignr_epi64::<7>(lanes, before);
    or(simd::_mm512_slli_epi64::<BYTES>(lanes), simd::_mm512_srli_epi64::<UNSEEN>(from))
}

/// Returns a number in which bit i is 1 if lane i of `a` is equal to lane i of `b`.
#[target_feature(enable = "avx512f")]
fn same(a: Lanes, b: Lanes) -> u32 {
    u32::from(simd::_mm512_cmpeq_epi64_mask(a, b))
}

/// Returns the sum of `a` and `b`, where each register counts as one long number made of all its
/// lanes. `carry` (0 or 1) is the carry from the previous blocks and is added too. The function
/// then sets `carry` to the carry for the next blocks.
#[target_feature(enable = "avx512f")]
fn add(a: Lanes, b: Lanes, carry: &mut u32) -> Lanes {
    let sum = simd::_mm512_add_epi64(a, b);
    let overflows = u32::from(simd::_mm512_cmplt_epu64_mask(sum, a));
    let full = same(sum, splat(u64::MAX));
    let carried = ((overflows << 1 | *carry) + full) ^ full;
    *carry = carried >> LANES;
    simd::_mm512_mask_sub_epi64(sum, carried.to_le_bytes()[0], sum, splat(u64::MAX))
}

/// Returns masks in which a bit is 1 if `lanes` has an odd number of 1 bits up to and including
/// this position. The 1 bits of earlier blocks count too: the caller passes a `carry` of 1 if their
/// number is odd, otherwise 0. The function then sets `carry` for the next blocks.
#[target_feature(enable = "avx512f,avx512dq")]
fn parity(lanes: Lanes, carry: &mut u32) -> Lanes {
    let mut all = xor(lanes, simd::_mm512_slli_epi64::<1>(lanes));
    all = xor(all, simd::_mm512_slli_epi64::<2>(all));
    all = xor(all, simd::_mm512_slli_epi64::<4>(all));
    all = xor(all, simd::_mm512_slli_epi64::<8>(all));
    all = xor(all, simd::_mm512_slli_epi64::<16>(all));
    all = xor(all, simd::_mm512_slli_epi64::<32>(all));
    let mut odd = u32::from(simd::_mm512_movepi64_mask(all)) << 1 | *carry;
    odd ^= odd << 1;
    odd ^= odd << 2;
    odd ^= odd << 4;
    odd ^= odd << 8;
    *carry = odd >> LANES & 1;
    simd::_mm512_mask_xor_epi64(all, odd.to_le_bytes()[0], all, splat(u64::MAX))
}

/// Computes the masks of the 64-byte blocks in `bytes` and writes them to `blocks`, beginning at
/// the index `first`. A bit of a mask is set if its byte is of the kind that the mask stands for,
/// for example a quote. Returns which unusual kinds of bytes occur in `bytes`.
#[target_feature(enable = "avx512f,avx512bw")]
fn compare(bytes: &[[u8; BLOCK]], blocks: &mut Blocks, first: usize) -> Seen {
    let splat = |byte: u8| simd::_mm512_set1_epi8(byte.cast_signed());
    let (quote, backslash, comma, colon) = (splat(b'"'), splat(b'\\'), splat(b','), splat(b':'));
    let (case, open, n) = (splat(0x20), splat(b'{'), splat(b'n'));
    let close = splat(b'}');
    let mut least = splat(0xff);
    let mut all = splat(0);
    for (bytes, block) in bytes.iter().zip(first..BLOCKS) {
        let text: Lanes = bytemuck::must_cast(*bytes);
        least = simd::_mm512_min_epu8(least, text);
        all = simd::_mm512_or_si512(all, text);
        blocks.quote[block] = simd::_mm512_cmpeq_epi8_mask(text, quote);
        blocks.backslash[block] = simd::_mm512_cmpeq_epi8_mask(text, backslash);
        blocks.comma[block] = simd::_mm512_cmpeq_epi8_mask(text, comma);
        blocks.colon[block] = simd::_mm512_cmpeq_epi8_mask(text, colon);
        blocks.n[block] = simd::_mm512_cmpeq_epi8_mask(text, n);
        let folded = simd::_mm512_or_si512(text, case);
        blocks.open[block] = simd::_mm512_cmpeq_epi8_mask(folded, open);
        blocks.close[block] = simd::_mm512_cmpeq_epi8_mask(folded, close);
        blocks.curly[block] = simd::_mm512_test_epi8_mask(text, case);
    }
    let control = simd::_mm512_cmplt_epu8_mask(least, splat(0x20));
    Seen { control: control != 0, high: simd::_mm512_movepi8_mask(all) != 0 }
}
