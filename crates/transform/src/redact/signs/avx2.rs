//! Looks for signs with registers of 32 bytes, which takes a third of the instructions.
#![allow(unsafe_code, reason = "a call of what needs instructions; the proof is beside it")]

use std::arch::is_x86_feature_detected;

use super::Signs;

/// Does what [`Signs::of`] does; `None` if the CPU lacks AVX2.
pub(super) fn signs(event: &[u8], known: usize) -> Option<Signs> {
    if !is_x86_feature_detected!("avx2") {
        return None;
    }
    // SAFETY: the function is unsafe to call only because it needs AVX2, and this CPU has it.
    Some(unsafe { wide(event, known) })
}

#[target_feature(enable = "avx2")]
fn wide(event: &[u8], known: usize) -> Signs {
    Signs::portable(event, known)
}
