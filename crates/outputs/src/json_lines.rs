//! Batches as JSON lines: unchanged, or in the format of kube-apiserver's own audit.log. `tcp` and
//! `stdout` use both formats, and `http` uses only [`audit_log`] of this file.

use bytes::{Bytes, BytesMut};

use super::transport::encode::{Encode, Encoded};
use audit::scan;
use config_table::table::Table;
use delivery::link::Parts;
use queue::{Batch, lines};

/// The values of the key `format` of an output that writes each event as a line of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineFormat {
    /// Each line is the document, unchanged.
    Ndjson,
    /// Each line is the event as kube-apiserver writes it to its own audit.log ([`audit_log`]).
    AuditLog,
}

impl LineFormat {
    /// Reads the key `format`. For a wrong value, reports a problem and returns `None`.
    pub(crate) fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        t.choice(
            "format",
            &[("ndjson", Self::Ndjson), ("audit_log", Self::AuditLog)],
            Some(Self::Ndjson),
            "JSON lines. `ndjson`: each event as received; `audit_log`: with `kind` and \
             `apiVersion`, as in kube-apiserver's audit.log",
        )
    }

    /// Returns the lines of a batch in this format.
    pub(crate) fn pieces(self, pieces: Vec<Bytes>) -> Vec<Bytes> {
        match self {
            Self::Ndjson => pieces,
            Self::AuditLog => vec![audit_log(&pieces)],
        }
    }
}

impl Encode for LineFormat {
    fn encode(&self, batch: Batch) -> Result<Encoded, String> {
        Ok(Encoded { pieces: self.pieces(batch.pieces), parts: Parts::default() })
    }
}

/// Returns the events as lines of kube-apiserver's own audit.log. An event without `kind`, such as
/// an item of an EventList, gets `kind` and `apiVersion` as its first members.
pub(crate) fn audit_log(pieces: &[Bytes]) -> Bytes {
    let mut out = BytesMut::new();
    for line in lines(pieces) {
        match line.strip_prefix(b"{") {
            Some(rest) if scan::member(line, "kind").is_none() => {
                out.extend_from_slice(audit::EVENT_HEAD);
                out.extend_from_slice(rest);
            }
            _ => out.extend_from_slice(line),
        }
        out.extend_from_slice(b"\n");
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_log_adds_kind_and_version_only_where_they_lack() {
        let with = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"a"}"#;
        let late = r#"{"auditID":"a","kind":"Event","apiVersion":"audit.k8s.io/v1"}"#;
        let lines = format!("{}\n{with}\n{late}\n", r#"{"auditID":"a"}"#);
        let expected = format!("{with}\n{with}\n{late}\n");
        assert_eq!(audit_log(&[Bytes::from(lines)]), expected);
    }
}
