//! Reads the bytes as a kubeconfig: this may not panic, and only https gets credentials.
//!
//! Run it with `cargo +nightly fuzz run kubeconfig`.

#![no_main]

use std::path::Path;

use doctor::kubeconfig::Kubeconfig;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(kubeconfig) = Kubeconfig::parse(text, Path::new("/home")) {
        assert!(kubeconfig.server.starts_with("https://") || kubeconfig.token.is_none());
    }
});
