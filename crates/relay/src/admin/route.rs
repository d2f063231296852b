//! The layers and services of which the admin routes are made.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::TryFutureExt as _;
use futures_util::future::{Either, MapOk};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use tokio::task::JoinHandle;
use tower::{Layer, Service};

use super::access::{Audience, Refusal};
use super::tap::Answer;
use super::{Caller, text};

/// The response to a request: a page, or the lines of a tap. Every request gets a response.
type Answered = Result<Response<Answer>, Infallible>;

type Page = Response<Full<Bytes>>;

/// The future of a response, which is ready or is made by a thread for blocking work.
pub(super) type Responding = Either<Ready<Answered>, Made>;

pub(super) fn now(response: Response<Answer>) -> Responding {
    Either::Left(ready(Ok(response)))
}

pub(super) fn page(page: Page) -> Responding {
    now(page.map(Answer::Left))
}

/// Responds with the page that `make` returns. `make` may take milliseconds, or read the disk. If
/// `make` panics, the response is 500 with the text `failed`.
pub(super) fn made(
    make: impl FnOnce() -> Page + Send + 'static,
    failed: &'static str,
) -> Responding {
    Either::Right(Made { making: tokio::task::spawn_blocking(make), failed })
}

pub(super) struct Made {
    making: JoinHandle<Page>,
    failed: &'static str,
}

impl Future for Made {
    type Output = Answered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answered> {
        let made = task::ready!(Pin::new(&mut self.making).poll(cx));
        let failed = |_| text(StatusCode::INTERNAL_SERVER_ERROR, self.failed.to_owned());
        Poll::Ready(Ok(made.unwrap_or_else(failed).map(Answer::Left)))
    }
}

/// A layer that answers `GET` and `HEAD` for one path, and leaves all other requests to the layers
/// below. The pages for probes also answer `OPTIONS`, the method of HAProxy's `option httpchk`. A
/// caller who does not belong to the page's audience gets 401. A path that ends with `*` stands for
/// all paths that begin with the text before the `*`. At the probe address, only the pages for
/// probes exist.
///
/// A route that is used as the service below all layers answers every request.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) caller: Arc<Caller>,
    pub(super) audience: Audience,
    pub(super) path: &'static str,
    pub(super) respond: fn(&Caller, &Request<Incoming>) -> Responding,
}

impl Service<Request<Incoming>> for Route {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Responding;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Responding {
        (self.respond)(&self.caller, &request)
    }
}

impl<S> Layer<S> for Route {
    type Service = Routed<S>;

    fn layer(&self, rest: S) -> Routed<S> {
        Routed { route: self.clone(), rest }
    }
}

#[derive(Clone)]
pub(super) struct Routed<S> {
    route: Route,
    rest: S,
}

impl<S> Service<Request<Incoming>> for Routed<S>
where
    S: Service<Request<Incoming>, Response = Response<Answer>, Error = Infallible>,
{
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Either<Responding, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        task::ready!(self.route.poll_ready(cx))?;
        self.rest.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let path = request.uri().path();
        let is_for = match self.route.path.strip_suffix('*') {
            Some(beginning) => path.starts_with(beginning),
            None => path == self.route.path,
        };
        let Route { caller, audience, .. } = &self.route;
        let is_here = *audience == Audience::Probes || !caller.is_probe;
        let takes = match *request.method() {
            Method::GET | Method::HEAD => true,
            Method::OPTIONS => *audience == Audience::Probes,
            _ => false,
        };
        if !is_for || !is_here || !takes {
            return Either::Right(self.rest.call(request));
        }
        let Some(what) = caller.admin.access.load().refusal(*audience, request.headers()) else {
            return Either::Left(self.route.call(request));
        };
        caller.admin.refused.note(caller.peer, what);
        let refusal = Refusal(StatusCode::UNAUTHORIZED, what.to_owned());
        Either::Left(page(refusal.response()))
    }
}

/// The service of a layer that adds headers to all responses of the layers below.
#[derive(Clone)]
pub(super) struct Headers<S> {
    pub(super) add: fn(Response<Answer>) -> Response<Answer>,
    pub(super) inner: S,
}

impl<S> Service<Request<Incoming>> for Headers<S>
where
    S: Service<Request<Incoming>, Response = Response<Answer>, Error = Infallible>,
{
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = MapOk<S::Future, fn(Response<Answer>) -> Response<Answer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        self.inner.call(request).map_ok(self.add)
    }
}
