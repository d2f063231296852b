//! Checks the bearer token of requests to a listener.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hyper::StatusCode;
use tokio_util::sync::CancellationToken;

use super::answer::Refusal;
use super::settings::Settings;
use crate::telemetry::Rejection;

/// Decides which requests of a connection may be accepted.
pub(super) struct Auth {
    pub(super) settings: Arc<ArcSwap<Settings>>,
    /// This token is cancelled when a reload has changed which clients may connect, so that open
    /// connections of this listener must end.
    pub(super) revoked: CancellationToken,
}

impl Auth {
    /// Returns the refusal for a request with this value of the `Authorization` header; `None` if
    /// the request may be accepted.
    pub(super) fn refusal(&self, authorization: Option<&[u8]>) -> Option<Refusal> {
        if self.revoked.is_cancelled() {
            let message = "TLS or client_ca of this listener has been replaced, connect again";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Some(Refusal::new(status, Rejection::ShuttingDown, message));
        }
        let settings = self.settings.load();
        let token = settings.token.as_ref()?;
        if token.matches(authorization) {
            return None;
        }
        let message = if authorization.is_some() {
            "the bearer token is wrong"
        } else {
            "a bearer token is required"
        };
        Some(Refusal::new(StatusCode::UNAUTHORIZED, Rejection::Unauthorized, message))
    }
}
