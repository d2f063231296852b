//! The cost of filtering, storing and delivering a batch, without a clock: the instructions of
//! `benches/hot_path`, counted by valgrind.
//!
//! The kernel's instructions are not counted. The outputs send lists of 100 events, and their
//! consumer runs in the same thread. Without AVX2, nothing is counted, and `./test` says so at its
//! end.

use crate::support::instructions::{Figure, compare, has_avx2};

/// The committed numbers. A failing test prints the new row.
const FIGURES: [Figure; 8] = [
    Figure { phase: "filter by verb", passes: 20, instructions: 660215 },
    Figure { phase: "filter by policy", passes: 20, instructions: 977430 },
    Figure { phase: "filter presets", passes: 20, instructions: 1575060 },
    Figure { phase: "filter presets of bodies", passes: 20, instructions: 1901224 },
    Figure { phase: "disk", passes: 200, instructions: 467108 },
    Figure { phase: "http", passes: 300, instructions: 59692 },
    Figure { phase: "http with presets", passes: 300, instructions: 300686 },
    Figure { phase: "tcp", passes: 300, instructions: 29775 },
];

/// Tests that need peers.
mod peers {
    use super::*;

    /// Method: the same as in `ingest/instructions.rs`.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn filters_the_disk_and_outputs_take_the_instructions_that_are_committed() {
        compare(FIGURES.iter().filter(|_| has_avx2()));
    }
}
