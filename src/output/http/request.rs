//! Requests: the head, the compression, and the bodies of `type = "http"`.

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::Request;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;

use super::api::Api;
use super::api::Encoded;
use super::api::Reply;
use super::api::RequestHead;
use super::body::Pieces;
use super::body::Upload;
use super::body::gzip;
use super::body::zstd;
use super::settings::HttpFormat;
use super::url::HttpEndpoint;
use crate::ask::USER_AGENT;
use crate::audit::LIST_HEAD;
use crate::config::Compression;
use crate::delivery::failure::Failure;
use crate::output::json_lines::audit_log;
use crate::queue::Batch;
use crate::queue::Identity;
use crate::telemetry::AttemptError;

/// The protocol of `type = "http"`: any consumer that answers 2xx.
impl Api for HttpFormat {
    fn content_type(&self) -> &'static str {
        match self {
            Self::EventList | Self::JsonArray => "application/json",
            Self::Ndjson | Self::AuditLog => "application/x-ndjson",
        }
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
    let compress: fn(Pieces) -> std::io::Result<Vec<u8>> = match compression {
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

/// Returns a request to `endpoint` with this body. `own` are the headers of the protocol's own for
/// it. A header in `extra` replaces one that the relay sets itself, and a header of the protocol's
/// own replaces both.
///
/// # Errors
///
/// The path or query of the URL can't be put in a request.
pub(super) fn request(
    endpoint: &HttpEndpoint,
    head: &RequestHead,
    own: Vec<(HeaderName, HeaderValue)>,
    extra: &HeaderMap,
    body: Upload,
) -> Result<Request<Upload>, hyper::http::Error> {
    let marks = body.marks.clone();
    let encoding = match head.compression {
        Compression::None => None,
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
    };
    let target = endpoint.target(&head.path);
    let mut request = Request::builder().method(&head.method).uri(target).body(body)?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, endpoint.authority.clone());
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(head.content_type));
    if let Some(encoding) = encoding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    for (name, value) in extra {
        headers.insert(name, value.clone());
    }
    for (name, value) in own {
        headers.insert(name, value);
    }
    hyper::ext::on_informational(&mut request, move |_| marks.interim());
    Ok(request)
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
