//! The release data of the program. Each file format is declared next to the code that writes it.

/// The name of the program.
pub const NAME: &str = "kube-audit-forwarder";

/// The version of the program, as in `Cargo.toml`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit of the build (`KUBE_AUDIT_FORWARDER_REVISION` at build time), or `unknown`.
pub const REVISION: &str = match option_env!("KUBE_AUDIT_FORWARDER_REVISION") {
    Some(revision) if !revision.is_empty() => revision,
    _ => "unknown",
};

/// The features of `Cargo.toml` in this build, in alphabetical order.
pub const FEATURES: &[&str] = if cfg!(feature = "kafka") { &["kafka"] } else { &[] };

/// A file format and its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The name for people, such as `queue segments`.
    pub name: &'static str,
    /// The versions that this program reads, in rising order.
    pub reads: &'static [u32],
    /// The version that this program writes, which is one of `reads`.
    pub writes: u32,
}
