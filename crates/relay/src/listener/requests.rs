//! Answers each request of a connection: what is noted at its beginning and end, and the checks
//! before its body is read.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::{Body as _, Incoming};
use hyper::{Method, Request, Response, Version, header};
use tokio::time::Instant;

use super::answer::{Answer, Body, Refusal};
use super::auth::authorize;
use super::head::read_head;
use super::ingest::ingest;
use super::terms::Terms;
use super::upload::{Arriving, Upload};
use config::Acknowledge;
use telemetry::Rejection;

/// Answers a request of a connection with these terms. The first check that refuses the request
/// decides on the answer.
///
/// The connection knows of the request when this function returns. On h2, the future is first
/// polled in another task, which would be too late.
///
/// A request begins when its head is complete. The time by which its body must be complete goes
/// with the body to the body's reader ([`Arriving::next`]), which refuses a late body with a
/// message.
pub(super) fn respond(
    terms: &Arc<Terms>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<> {
    let (terms, started) = (Arc::clone(terms), Instant::now());
    let multiplexed = request.version() == Version::HTTP_2;
    let under_way = UnderWay {
        terms: Arc::clone(&terms),
        started,
        multiplexed,
        may_be_batch: request.method() == Method::POST,
        is_probe: is_probe(&request),
        in_time: terms.connection.begin_request(multiplexed, started),
        refusing: false,
        ended: None,
    };
    let policy = terms.shared.policy.load_full();
    let deadline = started + policy.limits.body_timeout;
    let expects = request.headers().get(header::EXPECT);
    let expects =
        expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let mut request = request.map(|incoming| {
        let body = Arriving::new(incoming, deadline);
        Upload { terms, policy, expects, is_gzip: false, body }
    });
    let checked = authorize(&mut request)
        .and_then(|()| read_head(&mut request))
        .and_then(|()| limit(&mut request));
    // The head is no longer needed and is freed here. It may hold 16 KiB, on h2 for each stream.
    let upload = request.into_body();
    // The future is in a box, so that a connection without a request needs no room for it.
    Box::pin(async move {
        let under_way = under_way;
        let Answer { mut response, refusal } = match checked {
            Ok(()) => ingest(upload).await,
            Err(refusal) => upload.refuse(refusal).await,
        };
        under_way.end(&mut response, refusal);
        Ok(response)
    })
}

/// Returns `true` if this is a health check, such as that of a load balancer. Its answer is the
/// same as that of other requests, but no events are lost by it.
fn is_probe(request: &Request<Incoming>) -> bool {
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
    /// Counts the answer in the metrics. If an HTTP/1.1 connection has reached its maximum age or
    /// its listener is closed, the answer ends the connection.
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

/// Refuses each body while the relay is closing or has no room for more bytes. No byte of the body
/// has been read yet.
///
/// The bytes themselves are counted as they arrive, by `Reservation`: a body in
/// chunks has no Content-Length, and the Content-Length of a gzip body does not say how many bytes
/// will be in memory.
fn limit(request: &mut Request<Upload>) -> Result<(), Refusal> {
    let Upload { terms, policy, is_gzip, body, .. } = request.body();
    let limits = &policy.limits;
    // Not more than `max_body` of a larger body is held at once.
    let length = body.incoming.size_hint().exact().map(|length| length.min(limits.max_body));
    if terms.shared.closing.is_cancelled() {
        return Err(Refusal::shutting_down());
    }
    if terms.shared.in_flight.is_full(limits.max_in_flight) {
        return Err(Refusal::in_flight_full());
    }
    // A repetition needs no room, and only its body tells that it is one.
    if policy.queue.acknowledge == Acknowledge::Delivered && !terms.shared.repeats.is_empty() {
        return Ok(());
    }
    let length = if *is_gzip { 0 } else { length.unwrap_or(0) };
    Ok(terms.shared.queue.admits(length)?)
}
