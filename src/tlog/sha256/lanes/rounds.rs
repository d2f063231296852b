//! The steps of SHA-256 (FIPS 180-4 §6.2), written once for all instruction sets.
//!
//! They are a macro for the reasons that the head of `src/audit/fast/rules.rs` tells. The module
//! that uses the macro defines `Lanes` (a register that holds a word of 32 bits of each message),
//! `LANES` (the number of messages in it), and the operations on registers.

use super::BLOCK;
use super::END;

/// The state before the first block (FIPS 180-4 §5.3.3).
pub(super) const INITIAL: [u32; 8] = [
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
];

/// The constants of the 64 rounds (FIPS 180-4 §4.2.2).
pub(super) const CONSTANTS: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

macro_rules! rounds {
    ($features:literal) => {
        /// Hashes the messages of a group, of which there are at most [`LANES`], and writes each
        /// hash to its index.
        #[target_feature(enable = $features)]
        pub(super) fn hash(group: &[Message<'_>], hashes: &mut [[u8; BYTES]]) {
            let mut messages: [&[u8]; LANES] = [&[]; LANES];
            messages.iter_mut().zip(group).for_each(|(lane, message)| *lane = message.bytes);
            let whole = messages.map(|message| message.as_chunks::<BLOCK>().0);
            let mut state = INITIAL.map(|word| splat(word));
            let common = whole.iter().map(|blocks| blocks.len()).min().unwrap_or_default();
            for at in 0..common {
                step(&mut state, &whole.map(|blocks| &blocks[at]));
            }
            let ends = messages.map(|message| end(message));
            let steps = group.iter().map(Message::steps).max().unwrap_or_default();
            for at in common..steps {
                let mut blocks = [&[0; BLOCK]; LANES];
                for ((block, whole), end) in blocks.iter_mut().zip(&whole).zip(&ends) {
                    // A message that has ended is hashed on with any bytes: its hash was taken.
                    let end = || &end[(at - whole.len()).min(1)];
                    *block = whole.get(at).unwrap_or_else(end);
                }
                step(&mut state, &blocks);
                let words = state.map(|words| store(words));
                for (lane, message) in group.iter().enumerate() {
                    if message.steps() == at + 1 {
                        let (hash, _) = hashes[message.index].as_chunks_mut();
                        for (bytes, words) in hash.iter_mut().zip(&words) {
                            *bytes = words[lane].to_be_bytes();
                        }
                    }
                }
            }
        }

        /// Adds a block of each message to the state.
        #[target_feature(enable = $features)]
        fn step(state: &mut [Lanes; 8], blocks: &[&[u8; BLOCK]; LANES]) {
            let mut words = columns(blocks);
            let before = *state;
            let [a, b, c, d, e, f, g, h] = state;
            for (group, constants) in CONSTANTS.as_chunks::<16>().0.iter().enumerate() {
                if group > 0 {
                    let mut extend = |at: usize| {
                        let near = add(small_1(words[(at + 14) % 16]), words[(at + 9) % 16]);
                        let far = add(small_0(words[(at + 1) % 16]), words[at]);
                        words[at] = add(near, far);
                    };
                    super::rounds::sixteen_times!(extend);
                }
                let input = |at: usize| add(words[at], splat(constants[at]));
                // The names move instead of the values: `h` of a round is `a` of the next one.
                round([*a, *b, *c], d, [*e, *f, *g], h, input(0));
                round([*h, *a, *b], c, [*d, *e, *f], g, input(1));
                round([*g, *h, *a], b, [*c, *d, *e], f, input(2));
                round([*f, *g, *h], a, [*b, *c, *d], e, input(3));
                round([*e, *f, *g], h, [*a, *b, *c], d, input(4));
                round([*d, *e, *f], g, [*h, *a, *b], c, input(5));
                round([*c, *d, *e], f, [*g, *h, *a], b, input(6));
                round([*b, *c, *d], e, [*f, *g, *h], a, input(7));
                round([*a, *b, *c], d, [*e, *f, *g], h, input(8));
                round([*h, *a, *b], c, [*d, *e, *f], g, input(9));
                round([*g, *h, *a], b, [*c, *d, *e], f, input(10));
                round([*f, *g, *h], a, [*b, *c, *d], e, input(11));
                round([*e, *f, *g], h, [*a, *b, *c], d, input(12));
                round([*d, *e, *f], g, [*h, *a, *b], c, input(13));
                round([*c, *d, *e], f, [*g, *h, *a], b, input(14));
                round([*b, *c, *d], e, [*f, *g, *h], a, input(15));
            }
            for (word, before) in state.iter_mut().zip(before) {
                *word = add(*word, before);
            }
        }

        /// Does one round. `input` is the sum of the round's word and constant.
        #[target_feature(enable = $features)]
        fn round(
            [a, b, c]: [Lanes; 3],
            d: &mut Lanes,
            [e, f, g]: [Lanes; 3],
            h: &mut Lanes,
            input: Lanes,
        ) {
            let sum = add(add(*h, input), add(big_1(e), choose(e, f, g)));
            *d = add(*d, sum);
            *h = add(sum, add(big_0(a), majority(a, b, c)));
        }

        #[target_feature(enable = $features)]
        fn big_0(word: Lanes) -> Lanes {
            xor(rotated::<2, 30>(word), rotated::<13, 19>(word), rotated::<22, 10>(word))
        }

        #[target_feature(enable = $features)]
        fn big_1(word: Lanes) -> Lanes {
            xor(rotated::<6, 26>(word), rotated::<11, 21>(word), rotated::<25, 7>(word))
        }

        #[target_feature(enable = $features)]
        fn small_0(word: Lanes) -> Lanes {
            xor(rotated::<7, 25>(word), rotated::<18, 14>(word), shifted::<3>(word))
        }

        #[target_feature(enable = $features)]
        fn small_1(word: Lanes) -> Lanes {
            xor(rotated::<17, 15>(word), rotated::<19, 13>(word), shifted::<10>(word))
        }
    };
}
pub(super) use rounds;

/// Calls a function with 0 to 15. In a loop of 16 turns the compiler leaves the words of the
/// messages in memory, which takes a tenth more time.
macro_rules! sixteen_times {
    ($call:ident) => {
        $call(0);
        $call(1);
        $call(2);
        $call(3);
        $call(4);
        $call(5);
        $call(6);
        $call(7);
        $call(8);
        $call(9);
        $call(10);
        $call(11);
        $call(12);
        $call(13);
        $call(14);
        $call(15);
    };
}
pub(super) use sixteen_times;

/// Returns the blocks behind the whole blocks of a message: the rest of it, one bit, and its length
/// in bits. If all of this fits into one block, the second one has no meaning.
pub(super) fn end(message: &[u8]) -> [[u8; BLOCK]; 2] {
    let (_, rest) = message.as_chunks::<BLOCK>();
    let mut end = [[0; BLOCK]; 2];
    let bytes = end.as_flattened_mut();
    bytes[..rest.len()].copy_from_slice(rest);
    bytes[rest.len()] = 0x80;
    let length = (message.len() as u64 * 8).to_be_bytes();
    let last = (rest.len() + END).div_ceil(BLOCK) * BLOCK;
    bytes[last - length.len()..last].copy_from_slice(&length);
    end
}
