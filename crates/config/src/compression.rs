//! `compression`, a key of several outputs.

use config_table::table::Table;

/// The values of the key `compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// The bytes are sent uncompressed.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// Reads the key `compression`. Returns `default` if it is absent or wrong, never `None`.
    /// `meaning` says in the config reference which bytes are compressed.
    pub fn read(t: &mut Table<'_, '_>, default: Self, meaning: &'static str) -> Option<Self> {
        t.choice(
            "compression",
            &[("none", Self::None), ("gzip", Self::Gzip), ("zstd", Self::Zstd)],
            Some(default),
            meaning,
        )
    }
}
