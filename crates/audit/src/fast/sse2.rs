//! The operations that [`super::rules`] describes, on registers of 128 bits, which hold two masks.
//! The operations need only SSE2, which every x86-64 CPU has.

use std::arch::x86_64 as simd;

use super::{BLOCK, BLOCKS, Blocks, CHUNK, Pass, Seen, Space, Used, padding, portable};

type Lanes = simd::__m128i;

const LANES: usize = 2;

super::rules::rules!("sse2");

#[target_feature(enable = "sse2")]
fn load(masks: &[u64; LANES]) -> Lanes {
    bytemuck::must_cast(*masks)
}

#[target_feature(enable = "sse2")]
fn store(lanes: Lanes, masks: &mut [u64; LANES]) {
    *masks = bytemuck::must_cast(lanes);
}

#[target_feature(enable = "sse2")]
fn splat(mask: u64) -> Lanes {
    simd::_mm_set1_epi64x(mask.cast_signed())
}

#[target_feature(enable = "sse2")]
fn and(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm_and_si128(a, b)
}

/// Returns `a & !b`.
#[target_feature(enable = "sse2")]
fn and_not(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm_andnot_si128(b, a)
}

#[target_feature(enable = "sse2")]
fn or(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm_or_si128(a, b)
}

#[target_feature(enable = "sse2")]
fn xor(a: Lanes, b: Lanes) -> Lanes {
    simd::_mm_xor_si128(a, b)
}

#[target_feature(enable = "sse2")]
fn is_zero(lanes: Lanes) -> bool {
    same(lanes, splat(0)) == ALL
}

#[target_feature(enable = "sse2")]
fn later<const BYTES: i32, const UNSEEN: i32>(lanes: Lanes, before: Lanes) -> Lanes {
    let last = simd::_mm_unpackhi_epi64(before, before);
    let from = simd::_mm_unpacklo_epi64(last, lanes);
    or(simd::_mm_slli_epi64::<BYTES>(lanes), simd::_mm_srli_epi64::<UNSEEN>(from))
}

#[target_feature(enable = "sse2")]
fn same(a: Lanes, b: Lanes) -> u32 {
    // SSE2 compares at most 32 bits: a lane is equal if both of its halves are.
    let halves = simd::_mm_cmpeq_epi32(a, b);
    let lanes = and(halves, simd::_mm_shuffle_epi32::<0b10_11_00_01>(halves));
    simd::_mm_movemask_pd(simd::_mm_castsi128_pd(lanes)).cast_unsigned()
}

#[target_feature(enable = "sse2")]
fn add(a: Lanes, b: Lanes, carry: &mut u32) -> Lanes {
    let ([a, c], [b, d]): ([u64; LANES], [u64; LANES]) =
        (bytemuck::must_cast(a), bytemuck::must_cast(b));
    load(&[portable::add(a, b, carry), portable::add(c, d, carry)])
}

#[target_feature(enable = "sse2")]
fn parity(lanes: Lanes, carry: &mut u32) -> Lanes {
    let masks: [u64; LANES] = bytemuck::must_cast(lanes);
    load(&masks.map(|mask| portable::parity(mask, carry)))
}

/// Returns a mask of the highest bit of each byte of a block, whose quarters are `quarters`.
#[target_feature(enable = "sse2")]
fn highest_of_bytes(quarters: [Lanes; 4]) -> u64 {
    let [a, b, c, d] =
        quarters.map(|quarter| u64::from(simd::_mm_movemask_epi8(quarter).cast_unsigned()));
    a | b << 16 | c << 32 | d << 48
}

#[target_feature(enable = "sse2")]
fn compare(groups: &[[u8; LANES * BLOCK]], blocks: &mut Blocks, first: usize) -> Seen {
    let splat = |byte: u8| simd::_mm_set1_epi8(byte.cast_signed());
    let mut least = splat(0xff);
    let mut all = splat(0);
    let (bytes, _) = groups.as_flattened().as_chunks::<BLOCK>();
    for (bytes, block) in bytes.iter().zip(first * LANES..BLOCKS) {
        let text: [Lanes; 4] = bytemuck::must_cast(*bytes);
        let [a, b, c, d] = text;
        let equal = |[a, b, c, d]: [Lanes; 4], byte: u8| {
            let equal = |quarter| simd::_mm_cmpeq_epi8(quarter, splat(byte));
            highest_of_bytes([equal(a), equal(b), equal(c), equal(d)])
        };
        let min = |a, b| simd::_mm_min_epu8(a, b);
        least = min(least, min(min(a, b), min(c, d)));
        all = or(all, or(or(a, b), or(c, d)));
        blocks.quote[block] = equal(text, b'"');
        blocks.backslash[block] = equal(text, b'\\');
        blocks.comma[block] = equal(text, b',');
        blocks.colon[block] = equal(text, b':');
        blocks.n[block] = equal(text, b'n');
        let case = |quarter| simd::_mm_slli_epi16::<2>(quarter);
        blocks.curly[block] = highest_of_bytes([case(a), case(b), case(c), case(d)]);
        let fold = |quarter| or(quarter, splat(0x20));
        let folded = [fold(a), fold(b), fold(c), fold(d)];
        blocks.open[block] = equal(folded, b'{');
        blocks.close[block] = equal(folded, b'}');
    }
    let control = simd::_mm_cmpeq_epi8(simd::_mm_min_epu8(least, splat(0x1f)), least);
    Seen { control: simd::_mm_movemask_epi8(control) != 0, high: simd::_mm_movemask_epi8(all) != 0 }
}
