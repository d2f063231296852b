//! Words that several outputs have in common: compression, and the format of lines.

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
    /// Reads `compression`, with no compression by default; `meaning` says of what. `None`: there
    /// is a problem.
    pub fn read(t: &mut Table<'_, '_>, meaning: &'static str) -> Option<Self> {
        t.choice(
            "compression",
            &[("none", Self::None), ("gzip", Self::Gzip), ("zstd", Self::Zstd)],
            Some(Self::None),
            meaning,
        )
    }
}

/// `format` of the outputs that write each event as a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFormat {
    /// The event as it was received.
    Ndjson,
    /// The event with `kind` and `apiVersion` first, as a line of kube-apiserver's audit.log.
    AuditLog,
}

impl LineFormat {
    /// Reads `format`. `None`: there is a problem.
    pub fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        t.choice(
            "format",
            &[("ndjson", Self::Ndjson), ("audit_log", Self::AuditLog)],
            Some(Self::Ndjson),
            "lines: each event as received, or with kind and apiVersion as in kube-apiserver's audit.log",
        )
    }
}
