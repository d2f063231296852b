//! The cost of requests, decoding and queueing without a clock: the instructions of
//! `benches/hot_path`, counted by valgrind.
//!
//! All numbers but two are those of the AVX2 code. On a CPU without AVX2 only those two are
//! counted, and `./test` says so at its end. Valgrind has no AVX-512, and NEON is counted under
//! qemu, by `benches/hot_path/count.sh`.

use crate::support::instructions::{Figure, compare, has_avx2};

/// The rows that are counted on every CPU.
const WITHOUT_AVX2: [&str; 2] = ["decode batches with SSE2", "decode batches with portable"];

/// The expected numbers. A failing test prints the new row.
const FIGURES: [Figure; 11] = [
    Figure { phase: "decode batches", passes: 4, instructions: 5254691 },
    Figure { phase: WITHOUT_AVX2[0], passes: 4, instructions: 9892216 },
    Figure { phase: WITHOUT_AVX2[1], passes: 4, instructions: 14180521 },
    Figure { phase: "decode mixed", passes: 60, instructions: 318435 },
    Figure { phase: "decode large events", passes: 10, instructions: 2924551 },
    Figure { phase: "decode singles", passes: 1500, instructions: 15302 },
    Figure { phase: "decode lines", passes: 10, instructions: 10319976 },
    Figure { phase: "requests", passes: 2000, instructions: 32220 },
    Figure { phase: "queue batches", passes: 20000, instructions: 3411 },
    Figure { phase: "queue singles", passes: 100, instructions: 796646 },
    Figure { phase: "queue cut batches", passes: 40, instructions: 1500882 },
];

/// These tests need valgrind.
mod peers {
    use super::*;

    /// Method: each phase of `benches/hot_path` runs under callgrind, and the instructions of its
    /// thread are divided by the number of passes.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn decode_and_queue_take_the_instructions_that_are_committed() {
        let has_avx2 = has_avx2();
        compare(FIGURES.iter().filter(|figure| has_avx2 || WITHOUT_AVX2.contains(&figure.phase)));
    }
}
