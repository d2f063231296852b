//! Checks the bearer token of requests to a listener.

use std::net::SocketAddr;
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
use super::handshake::Refused;
use crate::config::read_token;
use crate::telemetry::Rejection;

/// The bearer token that requests to a listener, or requests for a tap, must carry.
pub struct Token(String);

impl Token {
    /// Reads the token from a file. White space around the token is ignored.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is empty, or contains bytes that no header can carry.
    pub fn read(file: &Path) -> Result<Self, String> {
        read_token(file)
            .map(Self)
            .map_err(|error| format!("cannot read the bearer token in {}: {error}", file.display()))
    }

    /// Returns `true` if `authorization`, the value of an `Authorization` header, contains this
    /// token (RFC 6750 §2.1). The word `Bearer` may be in upper or lower case (RFC 9110 §11.1), and
    /// white space around the token is ignored. The comparison takes constant time.
    #[must_use]
    pub fn matches(&self, authorization: Option<&[u8]>) -> bool {
        let Some((scheme, given)) = authorization.and_then(|value| value.split_at_checked(7))
        else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"Bearer ")
            && bool::from(given.trim_ascii().ct_eq(self.0.as_bytes()))
    }

    /// Returns `true` if `other` is the same token. The comparison takes constant time.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

/// A layer that decides if a request may go on. It attaches a refusal to a request that lacks the
/// right token, and to a request on a connection that a reload has revoked. The layer does not send
/// the refusal. `Ingest`, the innermost service, does this, because only `Ingest` knows if the body
/// must be read first.
#[derive(Clone)]
pub(super) struct AuthLayer {
    pub(super) settings: Arc<ArcSwap<Settings>>,
    /// This token is cancelled when a reload has changed which clients may connect, so that open
    /// connections of this listener must end.
    pub(super) revoked: CancellationToken,
    /// The senders that were refused, for the log.
    pub(super) refused: Arc<Refused>,
    /// The label of the listener.
    pub(super) listener: Arc<str>,
    /// The address of the sender.
    pub(super) peer: SocketAddr,
}

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { rules: self.clone(), inner }
    }
}

/// The service that the layer [`AuthLayer`] makes. It attaches refusals to requests and passes them
/// to `inner`.
#[derive(Clone)]
pub(super) struct Auth<S> {
    rules: AuthLayer,
    inner: S,
}

impl AuthLayer {
    /// Returns the refusal for a request with this value of the `Authorization` header; `None` if
    /// the request may go on. A refusal is noted for the log.
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
        self.refused.token(&self.listener, self.peer, message);
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
