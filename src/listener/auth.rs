//! The bearer token of a listener.

use std::path::Path;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use arc_swap::ArcSwap;
use hyper::Request;
use hyper::StatusCode;
use hyper::header;
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;
use tower::Layer;
use tower::Service;

use super::Settings;
use super::answer::Refusal;
use crate::config::read_token;
use crate::telemetry::Rejection;

/// The token that a listener asks for.
pub(super) struct Token(String);

impl Token {
    /// Reads the token of a file; blanks and line breaks around it are no part of it.
    ///
    /// # Errors
    ///
    /// The file can't be read, is empty, or holds what no header can carry.
    pub(super) fn read(file: &Path) -> Result<Self, String> {
        read_token(file)
            .map(Self)
            .map_err(|error| format!("cannot read the bearer token in {}: {error}", file.display()))
    }

    /// RFC 6750 §2.1; the scheme in any case (RFC 9110 §11.1), blanks around the token aside.
    /// Compared in constant time.
    fn matches(&self, authorization: Option<&[u8]>) -> bool {
        let Some((scheme, given)) = authorization.and_then(|value| value.split_at_checked(7))
        else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"Bearer ")
            && bool::from(given.trim_ascii().ct_eq(self.0.as_bytes()))
    }
}

/// Leaves a refusal in requests without the token, and in those on connections that may not stay;
/// ingest answers it, for only ingest knows what to do with the body.
#[derive(Clone)]
pub(super) struct AuthLayer {
    pub(super) settings: Arc<ArcSwap<Settings>>,
    /// Cancelled once other clients are let in than those that are connected.
    pub(super) revoked: CancellationToken,
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { rules: self.clone(), inner }
    }
}

/// See [`AuthLayer`].
#[derive(Clone)]
pub(super) struct Auth<S> {
    rules: AuthLayer,
    inner: S,
}

impl AuthLayer {
    /// Why a request with this header is not accepted.
    fn refusal(&self, authorization: Option<&[u8]>) -> Option<Refusal> {
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

impl<S: Service<Request<B>>, B> Service<Request<B>> for Auth<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
        if let Some(refusal) = self.rules.refusal(given) {
            request.extensions_mut().insert(refusal);
        }
        self.inner.call(request)
    }
}
