//! The program by itself. This target also makes cargo build the program whenever it builds the
//! integration tests, which are a separate package (`tests/Cargo.toml`).

use std::process::Command;

#[test]
fn the_short_version_is_one_line() {
    let output = Command::new(env!("CARGO_BIN_EXE_kube-audit-forwarder")).arg("-V").output();
    let said = output.expect("a program that starts").stdout;
    let expected = concat!("kube-audit-forwarder ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8_lossy(&said), expected);
}
