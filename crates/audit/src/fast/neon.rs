//! The operations that [`super::rules`] describes, on registers of 128 bits, which hold two masks.
//! The operations need only NEON, which every arm64 CPU has.

use std::arch::aarch64 as simd;

use super::{BLOCK, BLOCKS, Blocks, CHUNK, Pass, Seen, Space, Used, padding, portable};

type Lanes = simd::uint64x2_t;

const LANES: usize = 2;

super::rules::rules!("neon");

#[target_feature(enable = "neon")]
fn load(masks: &[u64; LANES]) -> Lanes {
    bytemuck::must_cast(*masks)
}

#[target_feature(enable = "neon")]
fn store(lanes: Lanes, masks: &mut [u64; LANES]) {
    *masks = bytemuck::must_cast(lanes);
}

#[target_feature(enable = "neon")]
fn splat(mask: u64) -> Lanes {
    simd::vdupq_n_u64(mask)
}

#[target_feature(enable = "neon")]
fn and(a: Lanes, b: Lanes) -> Lanes {
    simd::vandq_u64(a, b)
}

/// Returns `a & !b`.
#[target_feature(enable = "neon")]
fn and_not(a: Lanes, b: Lanes) -> Lanes {
    simd::vbicq_u64(a, b)
}

#[target_feature(enable = "neon")]
fn or(a: Lanes, b: Lanes) -> Lanes {
    simd::vorrq_u64(a, b)
}

#[target_feature(enable = "neon")]
fn xor(a: Lanes, b: Lanes) -> Lanes {
    simd::veorq_u64(a, b)
}

#[target_feature(enable = "neon")]
fn is_zero(lanes: Lanes) -> bool {
    simd::vmaxvq_u32(simd::vreinterpretq_u32_u64(lanes)) == 0
}

#[target_feature(enable = "neon")]
fn later<const BYTES: i32, const UNSEEN: i32>(lanes: Lanes, before: Lanes) -> Lanes {
    let from = simd::vextq_u64::<1>(before, lanes);
    simd::vsriq_n_u64::<UNSEEN>(simd::vshlq_n_u64::<BYTES>(lanes), from)
}

#[target_feature(enable = "neon")]
fn same(a: Lanes, b: Lanes) -> u32 {
    let bits = and(simd::vceqq_u64(a, b), load(&[1, 2]));
    simd::vaddvq_u32(simd::vreinterpretq_u32_u64(bits))
}

// A carry passes through numbers in fewer instructions than through the lanes of a register.
#[target_feature(enable = "neon")]
fn add(a: Lanes, b: Lanes, carry: &mut u32) -> Lanes {
    let ([a, c], [b, d]): ([u64; LANES], [u64; LANES]) =
        (bytemuck::must_cast(a), bytemuck::must_cast(b));
    load(&[portable::add(a, b, carry), portable::add(c, d, carry)])
}

#[target_feature(enable = "neon")]
fn parity(lanes: Lanes, carry: &mut u32) -> Lanes {
    let masks: [u64; LANES] = bytemuck::must_cast(lanes);
    load(&masks.map(|mask| portable::parity(mask, carry)))
}

/// The classes of bytes, one bit each: quotes, backslashes, commas, colons, opening brackets,
/// closing brackets, braces, and the letter `n`. A byte belongs to the classes that both tables
/// have, this one for its lower four bits (2, 10 to 14) and [`UPPER`] for its upper four.
const LOWER: [u8; 16] = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1 << 3, 0x50, 0x06, 0x60, 1 << 7, 0];
const UPPER: [u8; 16] = [0, 0, 0x05, 1 << 3, 0, 0x32, 1 << 7, 0x70, 0, 0, 0, 0, 0, 0, 0, 0];

type Bytes = simd::uint8x16_t;

/// Returns the classes of each byte.
#[target_feature(enable = "neon")]
fn kinds(text: Bytes) -> Bytes {
    let lower = simd::vandq_u8(text, simd::vdupq_n_u8(0x0f));
    let upper = simd::vshrq_n_u8::<4>(text);
    simd::vandq_u8(
        simd::vqtbl1q_u8(bytemuck::must_cast(LOWER), lower),
        simd::vqtbl1q_u8(bytemuck::must_cast(UPPER), upper),
    )
}

/// Returns the bytes at the even places of two registers, and those at the odd places.
#[target_feature(enable = "neon")]
fn unzip(a: Bytes, b: Bytes) -> (Bytes, Bytes) {
    (simd::vuzp1q_u8(a, b), simd::vuzp2q_u8(a, b))
}

/// Exchanges the upper half of each part of `a` with the lower half of that part of `b`. `lower`
/// marks the lower halves, which have `BITS` bits.
#[target_feature(enable = "neon")]
fn exchange<const BITS: i32>(a: Bytes, b: Bytes, lower: u8) -> (Bytes, Bytes) {
    let lower = simd::vdupq_n_u8(lower);
    (
        simd::vbslq_u8(lower, a, simd::vshlq_n_u8::<BITS>(b)),
        simd::vbslq_u8(lower, simd::vshrq_n_u8::<BITS>(a), b),
    )
}

/// Returns a mask of each class for two blocks. Byte j of mask i has the bits i of the eight bytes
/// from the byte 8 j on.
#[target_feature(enable = "neon")]
fn transpose([a, b, c, d, e, f, g, h]: [Bytes; 8]) -> [Bytes; 8] {
    // Three steps bring the bytes whose places have the same remainder by 8 into one register.
    let ((a, b), (c, d), (e, f), (g, h)) = (unzip(a, b), unzip(c, d), unzip(e, f), unzip(g, h));
    let ((a, c), (b, d), (e, g), (f, h)) = (unzip(a, c), unzip(b, d), unzip(e, g), unzip(f, h));
    let ((a, e), (b, f), (c, g), (d, h)) = (unzip(a, e), unzip(b, f), unzip(c, g), unzip(d, h));
    // Here a to h have the remainders 0, 1, 2, 3, 4, 5, 6, 7.
    let four = |a, b| (simd::vsliq_n_u8::<4>(a, b), simd::vsriq_n_u8::<4>(b, a));
    let two = |a, b| exchange::<2>(a, b, 0x33);
    let one = |a, b| exchange::<1>(a, b, 0x55);
    let ((a, e), (b, f), (c, g), (d, h)) = (four(a, e), four(b, f), four(c, g), four(d, h));
    let ((a, c), (b, d), (e, g), (f, h)) = (two(a, c), two(b, d), two(e, g), two(f, h));
    let ((a, b), (c, d), (e, f), (g, h)) = (one(a, b), one(c, d), one(e, f), one(g, h));
    [a, b, c, d, e, f, g, h]
}

#[target_feature(enable = "neon")]
fn compare(groups: &[[u8; LANES * BLOCK]], blocks: &mut Blocks, first: usize) -> Seen {
    let mut least = simd::vdupq_n_u8(0xff);
    let mut most = simd::vdupq_n_u8(0);
    for (bytes, group) in groups.iter().zip(first..BLOCKS / LANES) {
        let texts: [Bytes; 8] = bytemuck::must_cast(*bytes);
        for text in texts {
            least = simd::vminq_u8(least, text);
            most = simd::vmaxq_u8(most, text);
        }
        let masks =
            transpose(texts.map(|text| kinds(text))).map(|mask| simd::vreinterpretq_u64_u8(mask));
        let [quote, backslash, comma, colon, open, close, curly, n] = masks;
        store(quote, &mut blocks.quote.as_chunks_mut().0[group]);
        store(backslash, &mut blocks.backslash.as_chunks_mut().0[group]);
        store(comma, &mut blocks.comma.as_chunks_mut().0[group]);
        store(colon, &mut blocks.colon.as_chunks_mut().0[group]);
        store(open, &mut blocks.open.as_chunks_mut().0[group]);
        store(close, &mut blocks.close.as_chunks_mut().0[group]);
        store(curly, &mut blocks.curly.as_chunks_mut().0[group]);
        store(n, &mut blocks.n.as_chunks_mut().0[group]);
    }
    Seen { control: simd::vminvq_u8(least) < b' ', high: simd::vmaxvq_u8(most) > 0x7f }
}
