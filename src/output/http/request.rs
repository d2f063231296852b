//! The compression of requests, and the bodies of `type = "http"`.

use std::io;

use bytes::Bytes;

use super::api::{Api, Encoded, Reply};
use super::body::{Pieces, gzip, zstd};
use super::settings::HttpFormat;
use crate::audit::LIST_HEAD;
use crate::config::Compression;
use crate::delivery::failure::Failure;
use crate::output::json_lines::audit_log;
use crate::queue::{Batch, Identity};
use crate::telemetry::AttemptError;

/// The protocol of `type = "http"`: any consumer that answers 2xx.
impl Api for HttpFormat {
    fn content_type(&self) -> &'static str {
        match self {
            Self::EventList | Self::JsonArray => "application/json",
            Self::Ndjson | Self::AuditLog => "application/x-ndjson",
        }
    }

    fn sends_lists(&self) -> bool {
        matches!(self, Self::EventList | Self::JsonArray)
    }

    /// Any 2xx is the contract of `http`: nobody knows what else its consumers answer.
    fn acknowledged(&self, _: &Reply<'_>) -> Result<(), String> {
        Ok(())
    }

    fn encode(&self, batch: Batch, _: Identity, _: u64) -> Encoded {
        let body = match self {
            Self::Ndjson => Pieces::of(batch.pieces),
            Self::AuditLog => Pieces::of(vec![audit_log(&batch.pieces)]),
            Self::EventList => Pieces::list(LIST_HEAD, batch.pieces, b"]}\n"),
            Self::JsonArray => Pieces::list(b"[", batch.pieces, b"]"),
        };
        Encoded { body, events: batch.events }
    }
}

/// Returns the body of a request, compressed. Compression runs on a thread for blocking work.
///
/// # Errors
///
/// The compression failed.
pub(super) async fn compressed(body: Pieces, compression: Compression) -> Result<Pieces, Failure> {
    let compress: fn(Pieces) -> io::Result<Vec<u8>> = match compression {
        Compression::None => return Ok(body),
        Compression::Gzip => gzip,
        Compression::Zstd => zstd,
    };
    let compressed = tokio::task::spawn_blocking(move || compress(body)).await;
    let bytes = compressed.map_err(io::Error::other).flatten().map_err(|error| {
        Failure::new(AttemptError::Protocol, format!("cannot compress: {error}"))
    })?;
    Ok(Pieces::of(vec![Bytes::from(bytes)]))
}

/// Returns the value of the header `Content-Encoding`; `None` without compression.
pub(super) fn content_encoding(compression: Compression) -> Option<&'static str> {
    match compression {
        Compression::None => None,
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit;

    #[test]
    fn the_head_of_a_list_has_the_version_of_its_events() {
        let list = [LIST_HEAD, b"]}"].concat();
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        assert_eq!(list["apiVersion"], audit::API_VERSION);
        assert_eq!(list["kind"], "EventList");
    }
}
