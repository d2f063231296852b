//! Reads the bytes as metrics, whole and in two parts: neither may panic, and both must give the
//! same.
//!
//! Run it with `cargo +nightly fuzz run exposition`.

#![no_main]

use doctor::counts::ApiserverCounts;
use doctor::exposition::Exposition;
use doctor::exposition::Reader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((cut, text)) = bytes.split_first() else { return };
    let wanted = ApiserverCounts::wanted();
    let whole = Exposition::parse(text, &wanted);
    let mut reader = Reader::new(wanted);
    let (first, second) = text.split_at(usize::from(*cut).min(text.len()));
    let parts = reader.feed(first).and_then(|()| reader.feed(second));
    let parts = parts.and_then(|()| reader.finish());
    // The expositions themselves cannot be compared, because NaN is equal to nothing.
    assert_eq!(parts.map(drop), whole.clone().map(drop));
    if let Ok(exposition) = whole {
        drop(ApiserverCounts::of(&exposition));
    }
});
