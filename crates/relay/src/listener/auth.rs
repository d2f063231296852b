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
    let message = match given.is_some() {
        true => "the bearer token is wrong",
        false => {
            "a bearer token is required in the header Authorization, that of \
             listener.bearer_token_file"
        }
    };
    Err(Refusal::new(StatusCode::UNAUTHORIZED, Rejection::Unauthorized, message))
}
