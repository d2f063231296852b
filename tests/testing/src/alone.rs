//! Tests that need a process of their own, because they change a limit of the process or read what
//! all its threads count. nextest gives one to each test; `cargo test` runs many tests in one.

use std::process::Command;

/// Returns `true` if the calling test is the only one of this process. Otherwise runs it in a
/// process of its own, panics if it fails there, and returns `false`.
///
/// The test calls this first, on its own thread, which has its name:
///
/// ```ignore
/// if !runs_alone() {
///     return;
/// }
/// ```
pub fn runs_alone() -> bool {
    if std::env::args().any(|argument| argument == "--exact") {
        return true;
    }
    let name = std::thread::current().name().map(str::to_owned).expect("the thread of a test");
    let mut alone = Command::new(std::env::current_exe().expect("the tests"));
    let status = alone.args([&name, "--exact", "--nocapture"]).status().expect("it starts");
    assert!(status.success(), "{name} fails in a process of its own: {status}");
    false
}
