//! Compares the instruction sets that this CPU has with ring.

use fastrand::Rng;

use super::super::each;
use super::super::each_alone;
use super::*;
use crate::tests::Failing;
use crate::tests::seeds;

/// Lengths at which a message needs one more block, or one block for its end alone.
const BORDERS: [usize; 15] = [0, 1, 54, 55, 56, 57, 63, 64, 65, 118, 119, 120, 127, 128, 129];

/// Hashes the messages in all ways, and asserts that each of them has the hashes of ring.
fn check(messages: &[Vec<u8>]) {
    let expected = each_alone(messages);
    let lengths = || messages.iter().map(Vec::len).collect::<Vec<_>>();
    assert!(each(messages) == expected, "{:?}", lengths());
    for isa in Isa::ALL {
        // The result must also be right if the CPU lacks the instructions.
        assert!(each_by(isa, messages) == expected, "{isa:?}: {:?}", lengths());
        for group in messages.chunks(isa.lanes()).filter(|_| isa.is_there()) {
            check_group(isa, group);
        }
    }
}

/// Checks a group of messages that are hashed together although that takes longer than alone.
fn check_group(isa: Isa, messages: &[Vec<u8>]) {
    let message = |(index, bytes)| Message { bytes, index };
    let group: Vec<_> = messages.iter().map(Vec::as_slice).enumerate().map(message).collect();
    let mut hashes = vec![[0; BYTES]; group.len()];
    assert!(isa.run(&group, &mut hashes));
    assert!(hashes == each_alone(messages), "{isa:?}, {} together", group.len());
}

fn message(rng: &mut Rng, bytes: usize) -> Vec<u8> {
    let mut message = vec![0; bytes];
    rng.fill(&mut message);
    message
}

/// Prints which instruction sets are tested; the output is always shown (`.config/nextest.toml`).
#[test]
fn the_instruction_sets_that_are_tested() {
    for isa in Isa::ALL {
        let is_tested = if isa.is_there() { "tested" } else { "NOT TESTED, this CPU lacks it" };
        println!("{isa:?}: {is_tested}");
    }
    println!("used: {:?}", Isa::best());
    assert!(Isa::Avx2.is_there(), "this CPU has no AVX2: no instruction set is tested");
}

#[test]
fn messages_of_each_length_have_the_hashes_of_ring() {
    let mut rng = Rng::with_seed(1);
    for bytes in 0..300 {
        // A full group, and one that is not full.
        check(&(0..30).map(|_| message(&mut rng, bytes)).collect::<Vec<_>>());
    }
}

#[test]
fn each_number_of_messages_is_hashed_in_order() {
    let mut rng = Rng::with_seed(2);
    for count in 0..70 {
        check(&(0..count).map(|_| message(&mut rng, 200)).collect::<Vec<_>>());
        let lengths = BORDERS.iter().cycle().take(count);
        check(&lengths.map(|bytes| message(&mut rng, *bytes)).collect::<Vec<_>>());
    }
}

#[test]
fn random_messages_have_the_hashes_of_ring() {
    for seed in seeds(300) {
        let _failing = Failing(seed);
        let mut rng = Rng::with_seed(seed);
        let most = rng.usize(1..5000);
        let messages: Vec<_> = (0..rng.usize(0..100))
            .map(|_| {
                let bytes = match rng.u8(..4) {
                    0 => BORDERS[rng.usize(..BORDERS.len())],
                    1 => rng.usize(..10) * BLOCK,
                    _ => rng.usize(..most),
                };
                message(&mut rng, bytes)
            })
            .collect();
        check(&messages);
    }
}

#[test]
fn messages_of_megabytes_are_hashed_beside_empty_ones() {
    for seed in seeds(4) {
        let _failing = Failing(seed);
        let mut rng = Rng::with_seed(seed);
        let mut messages = vec![Vec::new(); 30];
        for _ in 0..rng.usize(1..4) {
            let (index, bytes) = (rng.usize(..messages.len()), rng.usize(..3 << 20));
            messages[index] = message(&mut rng, bytes);
        }
        check(&messages);
    }
}
