//! `type = "tcp"`: JSON lines, as Logstash's `json_lines` codec reads them; and the same for stdout.

use bytes::Bytes;
use bytes::BytesMut;

use super::stream::Encode;
use super::stream::Encoded;
use crate::audit;
use crate::audit::scan;
use crate::config::LineFormat;
use crate::queue::Batch;

/// Lines, as stored or as kube-apiserver's own audit.log has them.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    format: LineFormat,
}

impl Lines {
    pub(super) fn new(format: LineFormat) -> Self {
        Self { format }
    }
}

impl Encode for Lines {
    fn encode(&self, batch: Batch) -> Result<Encoded, String> {
        let pieces = match self.format {
            LineFormat::Ndjson => batch.pieces,
            LineFormat::AuditLog => vec![audit_log(&batch.pieces)],
        };
        Ok(Encoded { pieces, rejected: Vec::new() })
    }
}

/// Puts kind and apiVersion first where an event lacks them; the items of an EventList carry neither.
pub(super) fn audit_log(pieces: &[Bytes]) -> Bytes {
    let mut out = BytesMut::new();
    for line in lines(pieces) {
        match line.strip_prefix(b"{") {
            Some(rest) if scan::member(line, "kind").is_none() => {
                out.extend_from_slice(b"{\"kind\":\"Event\",\"apiVersion\":\"");
                out.extend_from_slice(audit::API_VERSION.as_bytes());
                out.extend_from_slice(b"\",");
                out.extend_from_slice(rest);
            }
            _ => out.extend_from_slice(line),
        }
        out.extend_from_slice(b"\n");
    }
    out.freeze()
}

/// Each event without its line break.
pub(super) fn lines(pieces: &[Bytes]) -> impl Iterator<Item = &[u8]> {
    pieces.iter().flat_map(|piece| {
        let mut start = 0;
        memchr::memchr_iter(b'\n', piece)
            .map(move |end| &piece[std::mem::replace(&mut start, end + 1)..end])
    })
}

/// An event with its line break, apart from its batch, whose bytes may go.
pub(super) fn line(event: &[u8]) -> Bytes {
    Bytes::from([event, b"\n"].concat())
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
