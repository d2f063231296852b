//! The trace of a run: its lines, and their sum, which is the same in every run of a seed.

use std::fmt;
use std::fmt::Write as _;

pub(super) struct Trace {
    /// FNV-1a of all lines, and of the turns of the threads.
    sum: u64,
    line: String,
    /// The descriptor of the real kernel to which lines are written. `None`: only the sum is kept.
    out: Option<i32>,
}

impl Trace {
    pub(super) fn new(out: Option<i32>) -> Self {
        Self { sum: 0xcbf2_9ce4_8422_2325, line: String::new(), out }
    }

    pub(super) fn add(&mut self, now: u64, text: fmt::Arguments<'_>) {
        self.line.clear();
        let (seconds, rest) = (now / super::state::SECOND, now % super::state::SECOND);
        // Writing to a String cannot fail.
        writeln!(self.line, "{seconds}.{rest:09} {text}").ok();
        for byte in self.line.bytes() {
            self.sum = (self.sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(out) = self.out {
            super::raw::write(out, self.line.as_bytes());
        }
    }

    /// Adds a thread's turn to the sum, without a line.
    pub(super) fn runs(&mut self, now: u64, task: usize) {
        for word in [now, task as u64] {
            self.sum = (self.sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
    }

    pub(super) fn sum(&self) -> u64 {
        self.sum
    }
}
