//! The compression of requests, and the bodies of `type = "http"`.

use std::io;

use bytes::Bytes;
use hyper::{StatusCode, header};

use super::api::{Api, Encoded, Outcome, Reply, RequestHead, Sent, TestRequest};
use super::body::{Pieces, gzip, zstd};
use super::settings::HttpFormat;
use crate::json_lines::audit_log;
use audit::LIST_HEAD;
use config::Compression;
use delivery::failure::Failure;
use queue::{Batch, Identity};
use telemetry::AttemptError;

/// The protocol of `type = "http"`: any consumer that answers 2xx, unless the answer is a web page.
pub(super) struct AnyConsumer {
    pub(super) format: HttpFormat,
    /// `true`: a web page with a status 2xx is an acknowledgement.
    pub(super) accept_html: bool,
}

impl Api for AnyConsumer {
    fn content_type(&self) -> &'static str {
        match self.format {
            HttpFormat::EventList | HttpFormat::JsonArray => "application/json",
            HttpFormat::Ndjson | HttpFormat::AuditLog => "application/x-ndjson",
        }
    }

    fn sends_lists(&self) -> bool {
        matches!(self.format, HttpFormat::EventList | HttpFormat::JsonArray)
    }

    /// Returns a request with an empty list or, if events are lines, with an empty body.
    fn test_requests(&self) -> Vec<TestRequest> {
        let body: &[u8] = match self.format {
            HttpFormat::EventList => EMPTY_LIST,
            HttpFormat::JsonArray => b"[]",
            HttpFormat::Ndjson | HttpFormat::AuditLog => b"",
        };
        vec![TestRequest { head: RequestHead::post("", self.content_type()), body }]
    }

    fn may_refuse_tests(&self, reply: &Reply<'_>) -> bool {
        let is_about_body = [StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY];
        is_about_body.contains(&reply.status)
    }

    fn tested(&self, reply: &Reply<'_>) -> Result<(), String> {
        match reply.status {
            status if status.is_success() && self.is_page(reply) => Err(PAGE.to_owned()),
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED if reply.path == "/" => {
                Err("it takes no events at /: add the path that the consumer serves to the URL"
                    .to_owned())
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                Err("it takes no events at the path of the URL: correct the path".to_owned())
            }
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Err(format!(
                "it does not take the Content-Type {}: set `format` or `headers`",
                self.content_type()
            )),
            _ => self.tested_by_status(reply),
        }
    }

    /// Checks nothing, because a consumer may answer anything. [`Api::judge`] looks for web pages.
    fn acknowledged(&self, _: &Reply<'_>) -> Result<(), String> {
        Ok(())
    }

    fn encode(&self, batch: Batch, _: Identity, _: u64) -> Encoded {
        let body = match self.format {
            HttpFormat::Ndjson => Pieces::of(batch.pieces),
            HttpFormat::AuditLog => Pieces::of(vec![audit_log(&batch.pieces)]),
            HttpFormat::EventList => Pieces::list(LIST_HEAD, batch.pieces, b"]}\n"),
            HttpFormat::JsonArray => Pieces::list(b"[", batch.pieces, b"]"),
        };
        Encoded { body, events: batch.events }
    }

    /// Fails a 2xx with the media type of a web page, unless `accept_html` is set or the head of
    /// the answer shows that there is no body.
    fn judge(&self, reply: Reply<'_>, _: &Sent) -> Outcome {
        if matches!(reply.by_status, Outcome::Accepted) && self.is_page(&reply) {
            let message = format!("{}: answered {}: {PAGE}", reply.base, reply.status);
            return Outcome::Failed(Failure::new(AttemptError::Protocol, message));
        }
        reply.by_status
    }
}

impl AnyConsumer {
    /// Returns `true` if an answer with a status 2xx counts as a web page.
    fn is_page(&self, reply: &Reply<'_>) -> bool {
        let length = reply.headers.get(header::CONTENT_LENGTH);
        let is_empty = reply.status == StatusCode::NO_CONTENT
            || length.is_some_and(|length| length.as_bytes() == b"0");
        !is_empty && !self.accept_html && reply.has_type_of_page()
    }
}

/// The body of an `event_list` without events.
const EMPTY_LIST: &[u8] =
    br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[]}"#;

const PAGE: &str = "this looks like a sign-in page, not an acknowledgement; set accept_html = true \
    if the consumer itself sent it";

/// Compresses the body of a request, on a thread for blocking work.
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

/// Returns the header `Content-Encoding`. `None` without compression.
pub(super) fn content_encoding(compression: Compression) -> Option<&'static str> {
    match compression {
        Compression::None => None,
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
    }
}

/// Returns `true` for a status by which a consumer answers to a body that it can't decompress.
pub(super) fn cannot_read(status: StatusCode) -> bool {
    [StatusCode::BAD_REQUEST, StatusCode::UNSUPPORTED_MEDIA_TYPE, StatusCode::UNPROCESSABLE_ENTITY]
        .contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_list_has_the_version_of_its_events() {
        let list = [LIST_HEAD, b"]}"].concat();
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        assert_eq!(list["apiVersion"], audit::API_VERSION);
        assert_eq!(list["kind"], "EventList");
        assert_eq!(EMPTY_LIST, [LIST_HEAD, b"]}"].concat());
    }
}
