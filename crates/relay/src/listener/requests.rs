//! The layers through which each request of a connection goes: their order, and those layers that
//! have no files of their own.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body as _, Incoming};
use hyper::{Method, Request, Response, Version, header};
use tokio::time::Instant;
use tower::{Service, ServiceBuilder};

use super::answer::{Answer, Body, Refusal};
use super::auth::authorize;
use super::head::read_head;
use super::ingest::Ingest;
use super::terms::Terms;
use super::upload::{Answering, Arriving, Upload};
use telemetry::Rejection;

/// The service of one connection.
///
/// No layer waits for room in `poll_ready`, which is therefore always ready. A clone of the service
/// for a request costs one `Arc`, because the layers below [`Deadline`] find their data in
/// [`Upload`].
pub(super) type Requests = Deadline<Count<Check<Check<Check<Ingest>>>>>;

/// Makes the service of a connection with these terms. A request passes through the layers from the
/// first to the last.
pub(super) fn requests(terms: &Arc<Terms>) -> Requests {
    ServiceBuilder::new()
        .layer_fn(|inner| Deadline { terms: Arc::clone(terms), inner })
        .layer_fn(Count)
        .layer_fn(|inner| Check { check: authorize, inner })
        .layer_fn(|inner| Check { check: read_head, inner })
        .layer_fn(|inner| Check { check: limit, inner })
        .service(Ingest)
}

/// Notes the beginning of a request, which is the moment at which its head is complete, and
/// computes the time by which its body must be complete.
///
/// The deadline of the head itself cannot be a layer: before a head is complete, there is no
/// request. This layer does not end late requests: the deadline goes with the body to the body's
/// reader ([`Arriving::next`]), which refuses the request with a message.
#[derive(Clone)]
pub(super) struct Deadline<S> {
    terms: Arc<Terms>,
    inner: S,
}

impl<S: Service<Request<Upload>>> Service<Request<Incoming>> for Deadline<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> S::Future {
        let (terms, started) = (Arc::clone(&self.terms), Instant::now());
        let policy = terms.shared.policy.load_full();
        let deadline = started + policy.limits.body_timeout;
        let expects = request.headers().get(header::EXPECT);
        let expects =
            expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        self.inner.call(request.map(|incoming| {
            let body = Arriving::new(incoming, deadline);
            Upload { terms, policy, started, expects, is_gzip: false, body }
        }))
    }
}

/// Counts a request and its answer in the metrics and in the state of the connection. If an
/// HTTP/1.1 connection has reached its maximum age or its listener is closed, the answer ends the
/// connection.
#[derive(Clone)]
pub(super) struct Count<S>(S);

impl<S> Service<Request<Upload>> for Count<S>
where
    S: Service<Request<Upload>, Response = Answer, Error = Infallible, Future = Answering>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Counted;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Upload>) -> Counted {
        let &Upload { ref terms, started, .. } = request.body();
        let multiplexed = request.version() == Version::HTTP_2;
        let under_way = UnderWay {
            terms: Arc::clone(terms),
            started,
            multiplexed,
            may_be_batch: request.method() == Method::POST,
            is_probe: is_probe(&request),
            in_time: terms.connection.begin_request(multiplexed, started),
            refusing: false,
            ended: None,
        };
        Counted { answer: self.0.call(request), under_way: Some(under_way) }
    }
}

pub(super) struct Counted {
    answer: Answering,
    /// `None` after the answer.
    under_way: Option<UnderWay>,
}

impl Future for Counted {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Answer { mut response, refusal } = ready!(Pin::new(&mut self.answer).poll(cx))?;
        if let Some(under_way) = self.under_way.take() {
            under_way.end(&mut response, refusal);
        }
        Poll::Ready(Ok(response))
    }
}

/// Returns `true` if this is a health check, such as that of a load balancer. Its answer is the
/// same as that of other requests, but no events are lost by it.
fn is_probe(request: &Request<Upload>) -> bool {
    let is_reading = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    is_reading && request.uri().path() == "/"
}

/// One request in progress. Dropping this value notes its end, even if the sender has gone.
struct UnderWay {
    terms: Arc<Terms>,
    started: Instant,
    multiplexed: bool,
    may_be_batch: bool,
    is_probe: bool,
    /// The result of `Connection::begin_request`.
    in_time: bool,
    /// `true`: the answer to this request is a refusal.
    refusing: bool,
    /// The time at which the answer was ready; `None` if there is none.
    ended: Option<Instant>,
}

impl UnderWay {
    fn end(mut self, response: &mut Response<Body>, refusal: Option<Refusal>) {
        let Terms { connection, closing, max_age, .. } = &*self.terms;
        let metrics = connection.metrics();
        metrics.answered(response.status().as_u16());
        if let Some(Refusal { rejection, status, message }) = refusal {
            let rejection = match self.is_probe && rejection.is_for_good() {
                true => Rejection::Probe,
                false => rejection,
            };
            connection.rejected(rejection, status.as_u16(), &message, self.may_be_batch);
            self.refusing = true;
        }
        let now = Instant::now();
        let old = max_age.is_some_and(|max| connection.age(now) >= max);
        if !self.multiplexed && (old || closing.is_cancelled()) {
            let close = header::HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        metrics.duration.record(now.duration_since(self.started).as_secs_f64());
        self.ended = Some(now);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now = self.ended.unwrap_or_else(Instant::now);
        self.terms.connection.end_request(self.in_time, self.refusing, now);
    }
}

/// Answers the requests that `check` refuses. The layers below never see them.
#[derive(Clone)]
pub(super) struct Check<S> {
    check: fn(&mut Request<Upload>) -> Result<(), Refusal>,
    inner: S,
}

impl<S> Service<Request<Upload>> for Check<S>
where
    S: Service<Request<Upload>, Response = Answer, Error = Infallible, Future = Answering>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Upload>) -> Answering {
        match (self.check)(&mut request) {
            Ok(()) => self.inner.call(request),
            Err(refusal) => Answering::new(request.into_body().refuse(refusal)),
        }
    }
}

/// Refuses a body that is announced as too large, and each body while the relay is closing or has
/// no room for more bytes. No byte of the body has been read yet.
///
/// The bytes themselves are counted as they arrive, by `Reservation`, and not by a layer: a body in
/// chunks has no Content-Length, and the Content-Length of a gzip body does not say how many bytes
/// will be in memory.
fn limit(request: &mut Request<Upload>) -> Result<(), Refusal> {
    let Upload { terms, policy, is_gzip, body, .. } = request.body();
    let limits = &policy.limits;
    let length = body.incoming.size_hint().exact();
    if length.is_some_and(|length| length > limits.max_body) {
        return Err(Refusal::too_large(limits.max_body));
    }
    if terms.shared.closing.is_cancelled() {
        return Err(Refusal::shutting_down());
    }
    if terms.shared.in_flight.is_full(limits.max_in_flight) {
        return Err(Refusal::in_flight_full());
    }
    let length = if *is_gzip { 0 } else { length.unwrap_or(0) };
    Ok(terms.shared.queue.admits(length)?)
}
