//! Which program this is: its version, its revision, its features, and how a part of it declares
//! the versions of its file formats.
//!
//! Each format is declared beside the code that writes it, so that a change of the number there is
//! a change of the output of `kube-audit-forwarder --version`.

/// The name of the program.
pub const NAME: &str = "kube-audit-forwarder";

/// The version of the program, as in `Cargo.toml`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that the program was built from, as its builder has said in the environment variable
/// `KUBE_AUDIT_FORWARDER_REVISION`. The text is `unknown` if the variable was empty or not set.
pub const REVISION: &str = match option_env!("KUBE_AUDIT_FORWARDER_REVISION") {
    Some(revision) if !revision.is_empty() => revision,
    _ => "unknown",
};

/// The features of `Cargo.toml` that the program was built with, in alphabetical order.
pub const FEATURES: &[&str] = if cfg!(feature = "kafka") { &["kafka"] } else { &[] };

/// A format of files, with its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The name of the format, for people: `queue segments`.
    pub name: &'static str,
    /// The versions that this program reads, in rising order.
    pub reads: &'static [u32],
    /// The version that this program writes. It is also one of `reads`.
    pub writes: u32,
}
