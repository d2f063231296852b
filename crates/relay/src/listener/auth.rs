//! Checks the bearer token of requests to a listener.

use hyper::{Request, StatusCode, header};

use super::answer::Refusal;
use super::upload::Upload;
use telemetry::Rejection;

/// Refuses a request without the listener's bearer token, if it has one, and each request on a
/// connection that a reload has revoked.
pub(super) fn authorize(request: &mut Request<Upload>) -> Result<(), Refusal> {
    let terms = &request.body().terms;
    if terms.revoked.is_cancelled() {
        let message = "TLS or client_ca of this listener has been replaced, connect again";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return Err(Refusal::new(status, Rejection::ShuttingDown, message));
    }
    let settings = terms.settings.load();
    let Some(token) = &settings.token else { return Ok(()) };
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    if token.matches(given) {
        return Ok(());
    }
    let message =
        if given.is_some() { "the bearer token is wrong" } else { "a bearer token is required" };
    Err(Refusal::new(StatusCode::UNAUTHORIZED, Rejection::Unauthorized, message))
}
