//! Changes one event of a recorded list, in one of its strings or members, and demands that all
//! others arrive as they are. The first bytes of the input choose the place; the others are what
//! stands there, alone, between quotes or deep in arrays.
//!
//! Run it with `cargo +nightly fuzz run one_event`.

#![no_main]

use audit::{DEPTH_MAX, Ended, Invalid, Items, LIST_HEAD, NOT_UTF8, decode, scan};

#[path = "../../crates/audit/src/one_event.rs"]
mod one_event;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [event, spot, form, deep, deeper, rest @ ..] = input else { return };
    let (sizes, bytes) = rest.split_at(rest.len().min(4));
    let levels = match form & 4 {
        0 => 0,
        _ => usize::from(u16::from_le_bytes([*deep, *deeper])) % (DEPTH_MAX + 2),
    };
    let quote: &[u8] = if form & 2 == 0 { b"" } else { b"\"" };
    let value = [&b"[".repeat(levels)[..], quote, bytes, quote, &b"]".repeat(levels)].concat();
    one_event::check(&one_event::Shape {
        event: usize::from(*event),
        spot: usize::from(*spot),
        is_inside: form & 1 == 0,
        bytes: if form & 1 == 0 { bytes } else { &value },
        sizes,
    });
});
