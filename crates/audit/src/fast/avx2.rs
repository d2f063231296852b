//! The operations that [`super::rules`] describes, on registers of 256 bits, which hold four masks.

use std::arch::x86_64 as simd;

use super::{BLOCK, BLOCKS, Blocks, CHUNK, Pass, Seen, Space, Used, padding};

type Lanes = simd::__m256i;

const LANES: usize = 4;

super::rules::rules!("avx2,bmi1,bmi2,lzcnt,popcnt");

#[target_feature(enable = "avx2")]
fn load(masks: &[u64; LANES]) -> Lanes {
    bytemuck::must_cast(*masks)
}

#[target_feature(enable = "avx2")]
fn store(lanes: Lanes, masks: &mut [u64; LANES]) {
    *masks = bytemuck::must_cast(lanes);
}

#[target_feature(enable = "avx2")]
fn splat(mask: u64) -> Lanes {
    simd::_mm256_set1_epi64x(mask.cast_signed())
}

#[target_feature(enable = "avx2")]
fn and(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm256_and_si256(a, b)
}

/// Returns `a & !b`.
#[target_feature(enable = "avx2")]
fn and_not(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm256_andnot_si256(b, a)
}

#[target_feature(enable = "avx2")]
fn or(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm256_or_si256(a, b)
}

#[target_feature(enable = "avx2")]
fn xor(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm256_xor_si256(a, b)
}

#[target_feature(enable = "avx2")]
fn is_zero(lanes: Lanes) -> bool {
    simd::_mm256_testz_si256(lanes, lanes) == 1
}

#[target_feature(enable = "avx2")]
fn later<const BYTES: i32, const UNSEEN: i32>(lanes: Lanes, before: Lanes) -> Lanes {
    let crossing = simd::_mm256_permute2x128_si256::<0x21>(before, lanes);
    let from = simd::_mm256_alignr_epi8::<8>(lanes, crossing);
    or(simd::_mm256_slli_epi64::<BYTES>(lanes), simd::_mm256_srli_epi64::<UNSEEN>(from))
}

/// Returns a number in which bit i is the highest bit of lane i.
#[target_feature(enable = "avx2")]
fn highest(lanes: Lanes) -> u32 {
    simd::_mm256_movemask_pd(simd::_mm256_castsi256_pd(lanes)).cast_unsigned()
}

#[target_feature(enable = "avx2")]
fn same(a: Lanes, b: Lanes) -> u32 {
    highest(simd::_mm256_cmpeq_epi64(a, b))
}

/// Returns a register in which all bits of lane i are equal to bit i of `bits`.
#[target_feature(enable = "avx2")]
fn spread(bits: u32) -> Lanes {
    let one = simd::_mm256_set_epi64x(8, 4, 2, 1);
    simd::_mm256_cmpeq_epi64(and(splat(u64::from(bits)), one), one)
}

#[target_feature(enable = "avx2")]
fn add(a: Lanes, b: Lanes, carry: &mut u32) -> Lanes {
    let sum = simd::_mm256_add_epi64(a, b);
    // A lane overflows if both summands have the highest bit, or if one has it and the sum has not.
    let overflows = highest(or(and(a, b), and_not(or(a, b), sum)));
    let full = same(sum, splat(u64::MAX));
    let carried = ((overflows << 1 | *carry) + full) ^ full;
    *carry = carried >> LANES;
    simd::_mm256_sub_epi64(sum, spread(carried))
}

#[target_feature(enable = "avx2")]
fn parity(lanes: Lanes, carry: &mut u32) -> Lanes {
    let mut all = xor(lanes, simd::_mm256_slli_epi64::<1>(lanes));
    all = xor(all, simd::_mm256_slli_epi64::<2>(all));
    all = xor(all, simd::_mm256_slli_epi64::<4>(all));
    all = xor(all, simd::_mm256_slli_epi64::<8>(all));
    all = xor(all, simd::_mm256_slli_epi64::<16>(all));
    all = xor(all, simd::_mm256_slli_epi64::<32>(all));
    let mut odd = highest(all) << 1 | *carry;
    odd ^= odd << 1;
    odd ^= odd << 2;
    odd ^= odd << 4;
    *carry = odd >> LANES & 1;
    xor(all, spread(odd))
}

/// Returns a mask of the bytes of a block (`low`: 32, `high`: 32) that are equal to `byte`.
#[target_feature(enable = "avx2")]
fn equal(low: Lanes, high: Lanes, byte: Lanes) -> u64 {
    let low = simd::_mm256_movemask_epi8(simd::_mm256_cmpeq_epi8(low, byte)).cast_unsigned();
    let high = simd::_mm256_movemask_epi8(simd::_mm256_cmpeq_epi8(high, byte)).cast_unsigned();
    u64::from(low) | u64::from(high) << 32
}

#[target_feature(enable = "avx2")]
fn compare(groups: &[[u8; LANES * BLOCK]], blocks: &mut Blocks, first: usize) -> Seen {
    let splat = |byte: u8| simd::_mm256_set1_epi8(byte.cast_signed());
    let (quote, backslash, comma, colon) = (splat(b'"'), splat(b'\\'), splat(b','), splat(b':'));
    let (case, open, n) = (splat(0x20), splat(b'{'), splat(b'n'));
    let close = splat(b'}');
    let mut least = splat(0xff);
    let mut all = splat(0);
    let (bytes, _) = groups.as_flattened().as_chunks::<BLOCK>();
    for (bytes, block) in bytes.iter().zip(first * LANES..BLOCKS) {
        let [low, high]: [Lanes; 2] = bytemuck::must_cast(*bytes);
        least = simd::_mm256_min_epu8(least, simd::_mm256_min_epu8(low, high));
        all = or(all, or(low, high));
        blocks.quote[block] = equal(low, high, quote);
        blocks.backslash[block] = equal(low, high, backslash);
        blocks.comma[block] = equal(low, high, comma);
        blocks.colon[block] = equal(low, high, colon);
        blocks.n[block] = equal(low, high, n);
        let curly =
            |half| simd::_mm256_movemask_epi8(simd::_mm256_slli_epi16::<2>(half)).cast_unsigned();
        blocks.curly[block] = u64::from(curly(low)) | u64::from(curly(high)) << 32;
        let (low, high) = (or(low, case), or(high, case));
        blocks.open[block] = equal(low, high, open);
        blocks.close[block] = equal(low, high, close);
    }
    let control = simd::_mm256_cmpeq_epi8(simd::_mm256_min_epu8(least, splat(0x1f)), least);
    Seen {
        control: simd::_mm256_movemask_epi8(control) != 0,
        high: simd::_mm256_movemask_epi8(all) != 0,
    }
}
