//! The operations that [`super::rules`] describes, on numbers of 64 bits, which hold one mask.
//! Every CPU has them, and the order of bytes in its numbers does not matter.

use super::{BLOCK, BLOCKS, Blocks, CHUNK, Pass, Seen, Space, Used, padding};

type Lanes = u64;

const LANES: usize = 1;

super::rules::rules!();

fn load([mask]: &[u64; LANES]) -> Lanes {
    *mask
}

fn store(lanes: Lanes, masks: &mut [u64; LANES]) {
    *masks = [lanes];
}

fn splat(mask: u64) -> Lanes {
    mask
}

fn and(a: Lanes, b: Lanes) -> Lanes {
    a & b
}

/// Returns `a & !b`.
fn and_not(a: Lanes, b: Lanes) -> Lanes {
    a & !b
}

fn or(a: Lanes, b: Lanes) -> Lanes {
    a | b
}

fn xor(a: Lanes, b: Lanes) -> Lanes {
    a ^ b
}

fn is_zero(lanes: Lanes) -> bool {
    lanes == 0
}

fn later<const BYTES: u32, const UNSEEN: u32>(lanes: Lanes, before: Lanes) -> Lanes {
    lanes << BYTES | before >> UNSEEN
}

fn same(a: Lanes, b: Lanes) -> u32 {
    u32::from(a == b)
}

pub(super) fn add(a: Lanes, b: Lanes, carry: &mut u32) -> Lanes {
    let (sum, overflows) = a.carrying_add(b, *carry == 1);
    *carry = u32::from(overflows);
    sum
}

pub(super) fn parity(lanes: Lanes, carry: &mut u32) -> Lanes {
    let mut all = lanes ^ lanes << 1;
    all ^= all << 2;
    all ^= all << 4;
    all ^= all << 8;
    all ^= all << 16;
    all ^= all << 32;
    all ^= u64::from(*carry).wrapping_neg();
    *carry = u32::from(all >> 63 == 1);
    all
}

/// The bit of a brace in [`KINDS`].
const CURLY: u64 = 1 << 48;

/// For each byte, a number whose byte i, counted from the lowest, is 1 if the byte belongs to class
/// i: quotes, backslashes, commas, colons, opening brackets, closing brackets, braces, and the
/// letter `n`. A byte that [`Seen`] reports counts as a brace, but not as a bracket.
static KINDS: [u64; 256] = {
    let mut kinds = [0; 256];
    let mut byte = 0;
    while byte < kinds.len() {
        kinds[byte] = if byte >= 0x20 && byte < 0x80 { 0 } else { CURLY };
        byte += 1;
    }
    kinds[b'"' as usize] = 1;
    kinds[b'\\' as usize] = 1 << 8;
    kinds[b',' as usize] = 1 << 16;
    kinds[b':' as usize] = 1 << 24;
    kinds[b'{' as usize] = 1 << 32 | CURLY;
    kinds[b'[' as usize] = 1 << 32;
    kinds[b'}' as usize] = 1 << 40 | CURLY;
    kinds[b']' as usize] = 1 << 40;
    kinds[b'n' as usize] = 1 << 56;
    kinds
};

/// Exchanges rows and columns: byte j of result i is byte i of row j, counted from the lowest byte.
fn transpose([a, b, c, d, e, f, g, h]: [u64; 8]) -> [u64; 8] {
    // A step exchanges the upper half of each part of the first row with the lower half of that
    // part of the second row. `lower` marks the lower halves, which have `BITS` bits.
    fn exchange<const BITS: u32>(first: u64, second: u64, lower: u64) -> [u64; 2] {
        let changed = (first >> BITS ^ second) & lower;
        [first ^ changed << BITS, second ^ changed]
    }
    let eight = |first, second| exchange::<8>(first, second, 0x00ff_00ff_00ff_00ff);
    let sixteen = |first, second| exchange::<16>(first, second, 0x0000_ffff_0000_ffff);
    let half = |first, second| exchange::<32>(first, second, 0xffff_ffff);
    let ([a, e], [b, f], [c, g], [d, h]) = (half(a, e), half(b, f), half(c, g), half(d, h));
    let ([a, c], [b, d], [e, g], [f, h]) =
        (sixteen(a, c), sixteen(b, d), sixteen(e, g), sixteen(f, h));
    let ([a, b], [c, d], [e, f], [g, h]) = (eight(a, b), eight(c, d), eight(e, f), eight(g, h));
    [a, b, c, d, e, f, g, h]
}

fn compare(groups: &[[u8; LANES * BLOCK]], blocks: &mut Blocks, first: usize) -> Seen {
    let mut unusual = 0;
    for (bytes, block) in groups.iter().zip(first..BLOCKS) {
        let (words, _) = bytes.as_chunks::<8>();
        let mut rows = [0; 8];
        for (bytes, row) in words.iter().zip(&mut rows) {
            // Bit i of each class is about byte i.
            *row = bytes.iter().rev().fold(0, |row, byte| row << 1 | KINDS[usize::from(*byte)]);
        }
        let [quote, backslash, comma, colon, open, close, curly, n] = transpose(rows);
        unusual |= curly & !(open | close);
        blocks.quote[block] = quote;
        blocks.backslash[block] = backslash;
        blocks.comma[block] = comma;
        blocks.colon[block] = colon;
        blocks.open[block] = open;
        blocks.close[block] = close;
        blocks.curly[block] = curly;
        blocks.n[block] = n;
    }
    let any = |is: fn(&u8) -> bool| unusual != 0 && groups.as_flattened().iter().any(is);
    Seen { control: any(|byte| *byte < b' '), high: any(|byte| !byte.is_ascii()) }
}
