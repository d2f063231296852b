//! The bearer token of a listener.

use std::path::PathBuf;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use arc_swap::ArcSwapOption;
use hyper::Request;
use hyper::StatusCode;
use hyper::header;
use subtle::ConstantTimeEq;
use tower::Layer;
use tower::Service;

use super::answer::Refusal;
use crate::config::read_secret;
use crate::telemetry::Rejection;

/// The token that a listener asks for, as its file has it now.
pub struct Token {
    file: PathBuf,
    value: ArcSwapOption<String>,
}

impl Token {
    /// Nothing is accepted until the first [`Token::reload`] that succeeds.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self { file, value: ArcSwapOption::empty() }
    }

    /// Reads the file again; says whether the token is another.
    ///
    /// # Errors
    ///
    /// The file can't be read or is empty; the token in use stays.
    pub fn reload(&self) -> Result<bool, String> {
        let value = read_secret(&self.file).map_err(|error| {
            format!("cannot read the bearer token in {}: {error}", self.file.display())
        })?;
        if value.is_empty() {
            return Err(format!("the bearer token in {} is empty", self.file.display()));
        }
        let changed = self.value.load().as_deref().is_none_or(|current| *current != value);
        if changed {
            self.value.store(Some(Arc::new(value)));
        }
        Ok(changed)
    }

    /// RFC 6750 §2.1; the scheme in any case (RFC 9110 §11.1). Compared in constant time.
    fn matches(&self, authorization: Option<&[u8]>) -> bool {
        let Some((scheme, given)) = authorization.and_then(|value| value.split_at_checked(7))
        else {
            return false;
        };
        let token = self.value.load();
        let expected = token.as_ref().map_or(&[][..], |token| token.as_bytes());
        scheme.eq_ignore_ascii_case(b"Bearer ")
            && !expected.is_empty()
            && bool::from(given.trim_ascii().ct_eq(expected))
    }
}

/// Leaves a 401 in requests without the token; ingest answers it, for only ingest knows what to do with the body.
#[derive(Clone)]
pub(super) struct AuthLayer(pub(super) Option<Arc<Token>>);

impl<S> Layer<S> for AuthLayer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { token: self.0.clone(), inner }
    }
}

/// See [`AuthLayer`].
#[derive(Clone)]
pub(super) struct Auth<S> {
    token: Option<Arc<Token>>,
    inner: S,
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
        if self.token.as_ref().is_some_and(|token| !token.matches(given)) {
            let message = if given.is_some() {
                "the bearer token is wrong"
            } else {
                "a bearer token is required"
            };
            let refusal = Refusal::new(StatusCode::UNAUTHORIZED, Rejection::Unauthorized, message);
            request.extensions_mut().insert(refusal);
        }
        self.inner.call(request)
    }
}
