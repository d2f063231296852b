//! Checks the head of a request.

use hyper::{HeaderMap, Method, Request, StatusCode, Version, header};

use super::answer::Refusal;
use super::upload::Upload;
use telemetry::Rejection;

/// Refuses a request whose `Host`, path, method, media type or encoding is not that of a batch.
/// Notes whether the body is gzip.
pub(super) fn read_head(request: &mut Request<Upload>) -> Result<(), Refusal> {
    if request.version() == Version::HTTP_11
        && request.headers().get_all(header::HOST).iter().count() != 1
    {
        return Err(Refusal::invalid("a request has exactly one Host header (RFC 9112 §3.2)"));
    }
    // The prefix "/" allows every path, and the `*` of OPTIONS, which is not a path.
    let settings = request.body().terms.settings.load();
    let prefix = settings.path_prefix.trim_end_matches('/');
    let rest = request.uri().path().strip_prefix(prefix);
    let inside = |rest: &str| prefix.is_empty() || rest.is_empty() || rest.starts_with('/');
    if !rest.is_some_and(inside) {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            Rejection::NotFound,
            format!("audit events are accepted below {}", settings.path_prefix),
        ));
    }
    if request.method() != Method::POST {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Rejection::Method,
            "audit events are accepted by POST only",
        ));
    }
    request.body_mut().is_gzip = media(request.headers())?;
    Ok(())
}

/// Returns `true` if the headers say that the body is gzip. Refuses unknown types and encodings.
fn media(headers: &HeaderMap) -> Result<bool, Refusal> {
    let refuse = |message: &str| {
        Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Rejection::MediaType, message))
    };
    if let Some(value) = headers.get(header::CONTENT_TYPE) {
        let essence =
            value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let known = ["application/json", "application/x-ndjson", "text/plain", ""];
        if !known.iter().any(|name| essence.eq_ignore_ascii_case(name.as_bytes())) {
            return refuse(
                "the Content-Type is not one of application/json, application/x-ndjson, text/plain",
            );
        }
    }
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    match (
        encodings.next().map(|value| value.as_bytes().trim_ascii().to_ascii_lowercase()),
        encodings.next(),
    ) {
        (None, _) => Ok(false),
        (Some(encoding), None) if encoding == b"identity" => Ok(false),
        (Some(encoding), None) if encoding == b"gzip" || encoding == b"x-gzip" => Ok(true),
        _ => refuse("the Content-Encoding is neither gzip nor absent"),
    }
}
