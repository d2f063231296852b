//! The service of one connection: each request is counted, authorized and answered.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{Method, Request, Response, Version, header};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::answer::{Body, Refusal};
use super::auth::Auth;
use super::connection::Connection;
use super::ingest::Ingest;

/// Answers the requests of one connection, and counts them and their answers in the metrics. If an
/// HTTP/1.1 connection has reached its maximum age, or its listener is closed, the next answer ends
/// the connection.
pub(super) struct Requests {
    pub(super) auth: Auth,
    pub(super) ingest: Ingest,
    /// The age at which the connection must end; `None` if a connection of any age may stay.
    pub(super) max_age: Option<Duration>,
    /// This token is cancelled when the listener is closed.
    pub(super) closing: CancellationToken,
}

/// The service that hyper calls. A request keeps what it needs even if its connection ends.
#[derive(Clone)]
pub(super) struct Shared(pub(super) Arc<Requests>);

impl Service<Request<Incoming>> for Shared {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let Self(requests) = self.clone();
        let started = Instant::now();
        let multiplexed = request.version() == Version::HTTP_2;
        // A health check has another method.
        let may_be_batch = request.method() == Method::POST;
        let connection = Arc::clone(&requests.ingest.connection);
        let in_time = connection.begin_request(multiplexed, started);
        let mut under_way = UnderWay { connection, in_time, refusing: false, ended: None };
        let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let refusal = requests.auth.refusal(given);
        Box::pin(async move {
            let (mut response, refusal) = requests.ingest.handle(request, refusal, started).await;
            let Requests { ingest: Ingest { connection, .. }, max_age, closing, .. } = &*requests;
            let metrics = connection.metrics();
            metrics.answered(response.status().as_u16());
            if let Some(Refusal { rejection, status, message }) = refusal {
                connection.rejected(rejection, status.as_u16(), &message, may_be_batch);
                under_way.refusing = true;
            }
            let now = Instant::now();
            let old = max_age.is_some_and(|max| connection.age(now) >= max);
            if !multiplexed && (old || closing.is_cancelled()) {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            }
            metrics.duration.record(now.duration_since(started).as_secs_f64());
            under_way.ended = Some(now);
            drop(under_way);
            Ok(response)
        })
    }
}

/// A guard for one request that is under way. Dropping this value notes the end of the request. The
/// end is therefore noted even if the sender has gone and no answer is written.
struct UnderWay {
    connection: Arc<Connection>,
    /// The result of [`Connection::begin_request`]: `true` if the request began before the
    /// connection was told to end.
    in_time: bool,
    /// `true`: the answer to this request is a refusal.
    refusing: bool,
    /// The time at which the answer was ready; `None` if there is none.
    ended: Option<Instant>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now = self.ended.unwrap_or_else(Instant::now);
        self.connection.end_request(self.in_time, self.refusing, now);
    }
}
