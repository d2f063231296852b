//! Requests: the head, and the body that a batch becomes.

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::Method;
use hyper::Request;
use hyper::header;
use hyper::header::HeaderValue;

use super::body::Pieces;
use super::body::Upload;
use super::body::gzip;
use super::body::zstd;
use super::proxy::USER_AGENT;
use super::settings::HttpFormat;
use super::url::HttpEndpoint;
use crate::audit::LIST_HEAD;
use crate::config::Compression;
use crate::delivery::failure::Failure;
use crate::output::json_lines::audit_log;
use crate::queue::Batch;
use crate::telemetry::AttemptError;

/// The format and the compression in which an `http` output sends batches.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub(super) format: HttpFormat,
    pub(super) compression: Compression,
}

impl Form {
    /// Returns the request body that carries `batch`, in the output's format and compression.
    /// Compression runs on a thread for blocking work.
    ///
    /// # Errors
    ///
    /// The compression failed.
    pub(super) async fn encode(self, batch: Batch) -> Result<Pieces, Failure> {
        let body = match self.format {
            HttpFormat::Ndjson => Pieces::of(batch.pieces),
            HttpFormat::AuditLog => Pieces::of(vec![audit_log(&batch.pieces)]),
            HttpFormat::EventList => Pieces::list(LIST_HEAD, batch.pieces, b"]}\n"),
            HttpFormat::JsonArray => Pieces::list(b"[", batch.pieces, b"]"),
        };
        let compress: fn(Pieces) -> std::io::Result<Vec<u8>> = match self.compression {
            Compression::None => return Ok(body),
            Compression::Gzip => gzip,
            Compression::Zstd => zstd,
        };
        let compressed = tokio::task::spawn_blocking(move || compress(body)).await;
        match compressed {
            Ok(Ok(bytes)) => Ok(Pieces::of(vec![Bytes::from(bytes)])),
            Ok(Err(error)) => {
                Err(Failure::new(AttemptError::Protocol, format!("cannot compress: {error}")))
            }
            Err(error) => {
                Err(Failure::new(AttemptError::Protocol, format!("cannot compress: {error}")))
            }
        }
    }

    /// Returns a POST request to `endpoint` with this body. If a header in `extra` has the same
    /// name as one that the relay sets itself, the one in `extra` is sent.
    ///
    /// # Errors
    ///
    /// The path or query of the URL can't be put in a request.
    pub(super) fn request(
        self,
        endpoint: &HttpEndpoint,
        extra: &HeaderMap,
        body: Upload,
    ) -> Result<Request<Upload>, hyper::http::Error> {
        let marks = body.marks.clone();
        let content_type = match self.format {
            HttpFormat::EventList | HttpFormat::JsonArray => "application/json",
            HttpFormat::Ndjson | HttpFormat::AuditLog => "application/x-ndjson",
        };
        let encoding = match self.compression {
            Compression::None => None,
            Compression::Gzip => Some("gzip"),
            Compression::Zstd => Some("zstd"),
        };
        let mut request =
            Request::builder().method(Method::POST).uri(&endpoint.path_and_query).body(body)?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, endpoint.authority.clone());
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(encoding) = encoding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        for (name, value) in extra {
            headers.insert(name, value.clone());
        }
        hyper::ext::on_informational(&mut request, move |_| marks.interim());
        Ok(request)
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
