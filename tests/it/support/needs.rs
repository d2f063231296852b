//! Tests that need more than a toolchain: a peer that `./test setup` installs, or root.
//!
//! They are in modules named `peers`, and ignored by cargo (docs::profiles), so that `cargo test`
//! passes on a machine without peers, and `./test` runs them. Each helper that uses a peer calls
//! [`needs`], which fails a test in another module before it fails on such a machine.

/// Panics if `cargo test` would run this test, although it needs `what`.
pub(crate) fn needs(what: &str) {
    // `cargo test` runs many tests in one process, and does not say which of them this is.
    let Some(name) = own_name() else { return };
    let is_left_out = name.split("::").any(|module| module == "peers");
    assert!(is_left_out, "{name} needs {what}: put it into a module named `peers`");
}

/// Returns the name of the test that this process runs, or `None` if it is not known. nextest runs
/// each test in its own process, with `--exact NAME`.
fn own_name() -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--exact").skip(1);
    arguments.find(|argument| !argument.starts_with("--"))
}
