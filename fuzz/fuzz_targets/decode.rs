//! Decodes each body twice: as it is, and with a space before it. The scanner leaves a body with a
//! space to serde_json. Both must give the same events, or both must refuse. Whatever the scanner
//! takes with any instruction set of the CPU must be the same events, too.
//!
//! Run it with `cargo +nightly fuzz run decode`.

#![no_main]


const HEAD: &[u8] =
    br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;

const EVENT: &[u8] = br#"{"level":"Metadata","auditID":"a","stage":"Panic","x":"#;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    compare(bytes);
    compare(&[HEAD, bytes, b"]}\n"].concat());
    compare(&[HEAD, EVENT, bytes, b"}]}\n"].concat());
});

fn compare(body: &[u8]) {
    let usual = audit::decode(body.to_vec()).ok();
    let spaced = audit::decode([b" ", body].concat()).ok();
    assert_eq!(usual, spaced);
    for isa in audit::Isa::ALL {
        let mut scanned = [body, b"\n"].concat();
        if let Some(split) = audit::scan_in_place(isa, &mut scanned) {
            let batch = spaced.as_ref().expect("serde_json takes what the scanner takes");
            assert_eq!(scanned[split.lines], batch.lines);
            assert_eq!((split.events, split.levels), (batch.events, batch.levels));
        }
    }
}
