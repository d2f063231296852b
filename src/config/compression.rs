//! `compression`, a key of several outputs.

use super::table::Table;

/// `compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// The bytes as they are.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// Reads `compression`; `meaning` says what is compressed. `None`: there is a problem.
    pub fn read(t: &mut Table<'_, '_>, default: Self, meaning: &'static str) -> Option<Self> {
        t.choice(
            "compression",
            &[("none", Self::None), ("gzip", Self::Gzip), ("zstd", Self::Zstd)],
            Some(default),
            meaning,
        )
    }
}
