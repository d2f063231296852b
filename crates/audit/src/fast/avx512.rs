//! The operations that [`super::rules`] describes, on registers of 512 bits (eight masks).

use std::arch::x86_64 as simd;

use super::{BLOCK, BLOCKS, Blocks, CHUNK, Pass, Seen, Space, Used, padding};

type Lanes = simd::__m512i;

const LANES: usize = 8;

super::rules::rules!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,gfni,avx2,bmi1,bmi2,lzcnt,popcnt"
);

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

/// Returns `a & !b`.
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

#[target_feature(enable = "avx512f")]
fn later<const BYTES: u32, const UNSEEN: u32>(lanes: Lanes, before: Lanes) -> Lanes {
    let from = simd::_mm512_alignr_epi64::<7>(lanes, before);
    or(simd::_mm512_slli_epi64::<BYTES>(lanes), simd::_mm512_srli_epi64::<UNSEEN>(from))
}

#[target_feature(enable = "avx512f")]
fn same(a: Lanes, b: Lanes) -> u32 {
    u32::from(simd::_mm512_cmpeq_epi64_mask(a, b))
}

#[target_feature(enable = "avx512f")]
fn add(a: Lanes, b: Lanes, carry: &mut u32) -> Lanes {
    let sum = simd::_mm512_add_epi64(a, b);
    let overflows = u32::from(simd::_mm512_cmplt_epu64_mask(sum, a));
    let full = same(sum, splat(u64::MAX));
    let carried = ((overflows << 1 | *carry) + full) ^ full;
    *carry = carried >> LANES;
    simd::_mm512_mask_sub_epi64(sum, carried.to_le_bytes()[0], sum, splat(u64::MAX))
}

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

/// For each ASCII character, the classes that it belongs to: bit i is that of mask i of [`kinds`].
const KINDS: [u8; 128] = {
    let mut kinds = [0; 128];
    kinds[b'"' as usize] = 1;
    kinds[b'\\' as usize] = 1 << 1;
    kinds[b',' as usize] = 1 << 2;
    kinds[b':' as usize] = 1 << 3;
    kinds[b'{' as usize] = 1 << 4 | 1 << 6;
    kinds[b'[' as usize] = 1 << 4;
    kinds[b'}' as usize] = 1 << 5 | 1 << 6;
    kinds[b']' as usize] = 1 << 5;
    kinds[b'n' as usize] = 1 << 7;
    kinds
};

/// Returns the masks of one block, one in each lane: quotes, backslashes, commas, colons, opening
/// brackets, closing brackets, braces, and the letter `n`. Each byte is replaced by its byte of
/// [`KINDS`]: 64 numbers of 8 bits become 8 numbers of 64 bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
fn kinds(text: Lanes) -> Lanes {
    const EACH_BYTE: u64 = u64::from_ne_bytes([1; 8]);
    let [low, high]: [Lanes; 2] = bytemuck::must_cast(KINDS);
    // The look-up ignores the highest bit of a byte. Therefore all bytes above 0x7f first become
    // 0x7f, which belongs to no class.
    let ascii = simd::_mm512_min_epu8(text, splat(EACH_BYTE * 0x7f));
    let kinds = simd::_mm512_permutex2var_epi8(low, ascii, high);
    // In each lane, rows and columns of 8 x 8 bits are exchanged: bit i of byte j becomes bit j of
    // byte i. The instruction wants the rows of its matrix in reverse order.
    let reversed: Lanes =
        bytemuck::must_cast([[0x0001_0203_0405_0607_u64, 0x0809_0a0b_0c0d_0e0f]; 4]);
    let matrix = simd::_mm512_shuffle_epi8(kinds, reversed);
    let columns = splat(0x8040_2010_0804_0201);
    let numbers = simd::_mm512_gf2p8affine_epi64_epi8::<0>(columns, matrix);
    // Lane i gets the byte i of every lane.
    let gather: [u64; LANES] =
        std::array::from_fn(|lane| 0x3830_2820_1810_0800 + EACH_BYTE * lane as u64);
    simd::_mm512_permutexvar_epi8(load(&gather), numbers)
}

/// Exchanges rows and columns: lane j of result i is lane i of row j.
#[target_feature(enable = "avx512f")]
fn transpose([a, b, c, d, e, f, g, h]: [Lanes; LANES]) -> [Lanes; LANES] {
    // `even` and `odd` make pairs of lanes, which the shuffles move together: one shuffle takes the
    // pairs 0 and 2 of both registers, the other one takes their pairs 1 and 3.
    let columns = |ab, cd, ef, gh| {
        let left = simd::_mm512_shuffle_i64x2::<0b10_00_10_00>(ab, cd);
        let right = simd::_mm512_shuffle_i64x2::<0b11_01_11_01>(ab, cd);
        let left_below = simd::_mm512_shuffle_i64x2::<0b10_00_10_00>(ef, gh);
        let right_below = simd::_mm512_shuffle_i64x2::<0b11_01_11_01>(ef, gh);
        [
            simd::_mm512_shuffle_i64x2::<0b10_00_10_00>(left, left_below),
            simd::_mm512_shuffle_i64x2::<0b10_00_10_00>(right, right_below),
            simd::_mm512_shuffle_i64x2::<0b11_01_11_01>(left, left_below),
            simd::_mm512_shuffle_i64x2::<0b11_01_11_01>(right, right_below),
        ]
    };
    let even = |a, b| simd::_mm512_unpacklo_epi64(a, b);
    let odd = |a, b| simd::_mm512_unpackhi_epi64(a, b);
    let [c0, c2, c4, c6] = columns(even(a, b), even(c, d), even(e, f), even(g, h));
    let [c1, c3, c5, c7] = columns(odd(a, b), odd(c, d), odd(e, f), odd(g, h));
    [c0, c1, c2, c3, c4, c5, c6, c7]
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
fn compare(groups: &[[u8; LANES * BLOCK]], blocks: &mut Blocks, first: usize) -> Seen {
    let mut least = splat(u64::MAX);
    let mut all = splat(0);
    for (bytes, group) in groups.iter().zip(first..BLOCKS / LANES) {
        let texts: [Lanes; LANES] = bytemuck::must_cast(*bytes);
        for text in texts {
            least = simd::_mm512_min_epu8(least, text);
            all = or(all, text);
        }
        let masks = transpose(texts.map(|text| kinds(text)));
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
    let control = simd::_mm512_cmplt_epu8_mask(least, splat(u64::from_ne_bytes([b' '; 8])));
    Seen { control: control != 0, high: simd::_mm512_movepi8_mask(all) != 0 }
}
