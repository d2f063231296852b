//! The body of a request while it arrives, and the refusal of a request.
//!
//! A refused request is normally answered after the relay has read and discarded its body. If the
//! connection closed while a Go client writes, the client would see a transport error instead of
//! the answer. The answer is sent immediately if the body is larger than allowed, is not sent yet
//! (`Expect: 100-continue`), or has already taken longer than `limits.body_timeout`. The relay
//! waits only [`REFUSED_TIME`] for a body that stops coming.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::{StatusCode, header};
use tokio::time::{Instant, timeout_at};

use super::answer::{Answer, Refusal};
use super::connection::{LINGER_TIME, LINGER_TIME_SLOW};
use super::policy::Policy;
use super::terms::Terms;
use telemetry::Rejection;

/// The longest wait for more bytes of the body of a refused request. The wait starts again with
/// each [`REFUSED_BYTES`], but ends with `limits.body_timeout` at the latest. Then the relay sends
/// the refusal although the body is not complete, and the connection ends (on h2, in most cases
/// only the stream).
const REFUSED_TIME: Duration = Duration::from_secs(2);
/// The number of bytes of a refused body after which the wait of [`REFUSED_TIME`] starts again. A
/// sender must therefore send 64 KiB per second on average, which even a slow network allows.
const REFUSED_BYTES: u64 = 128 * 1024;

/// A request without its head.
pub(super) struct Upload {
    pub(super) terms: Arc<Terms>,
    /// The policy that was valid when the request began.
    pub(super) policy: Arc<Policy>,
    /// `true`: the sender waits for `100 Continue` before it sends the body.
    pub(super) expects: bool,
    /// `true`: the body is gzip. Also `false` before the head was checked.
    pub(super) is_gzip: bool,
    pub(super) body: Arriving,
}

impl Upload {
    /// Returns the answer for a refused request. First discards the rest of the body, unless the
    /// body is too large, the refusal is 408, or the sender waits for `100 Continue`.
    pub(super) async fn refuse(mut self, mut refusal: Refusal) -> Answer {
        let Self { terms, policy, body, expects, .. } = &mut self;
        let max_body = policy.limits.max_body;
        let unsent = *expects && !body.begun;
        let announced = body.incoming.size_hint().lower() + body.sent;
        let discard =
            !unsent && announced <= max_body && refusal.status != StatusCode::REQUEST_TIMEOUT;
        if discard && let Err(slow) = body.discard(terms, max_body).await {
            refusal = slow;
        }
        let mut response = refusal.answer(policy.queue.retry_after);
        let unread = !body.ended && !body.incoming.is_end_stream();
        if unread {
            let slow = discard && body.sent <= max_body;
            terms.connection.linger(if slow { LINGER_TIME_SLOW } else { LINGER_TIME });
        }
        if unread || refusal.closes() {
            // This header ends an HTTP/1.1 connection. On h2 hyper removes the header: the stream
            // of an unread body is reset with NO_ERROR, and only the statuses of
            // [`Refusal::closes`] end the connection.
            response
                .headers_mut()
                .insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            if refusal.closes() || !terms.connection.is_multiplexed() {
                terms.connection.retire();
            }
        }
        tracing::debug!(
            status = refusal.status.as_u16(),
            error = refusal.message,
            "request refused"
        );
        Answer { response, refusal: Some(refusal) }
    }
}

pub(super) struct Arriving {
    pub(super) incoming: Incoming,
    /// The time until which `Arriving::next` waits for more bytes.
    deadline: Instant,
    /// The number of bytes of the body that have arrived, counted before decompression.
    pub(super) sent: u64,
    /// `true`: the relay has begun to read the body. With `Expect: 100-continue`, hyper asks the
    /// sender for the body at this moment.
    begun: bool,
    /// `true`: no more bytes will arrive, because the body is complete or broken.
    ended: bool,
    /// The time at which the body was complete; `None` before.
    pub(super) whole_at: Option<Instant>,
}

impl Arriving {
    /// `deadline` is the time by which the body must be complete.
    pub(super) fn new(incoming: Incoming, deadline: Instant) -> Self {
        Self { incoming, deadline, sent: 0, begun: false, ended: false, whole_at: None }
    }

    /// Waits for the next bytes of the body and returns them; `None` if no more will arrive.
    /// Refuses the request if the body arrives too slowly or is broken, or if the relay is ending.
    pub(super) async fn next(&mut self, terms: &Terms) -> Result<Option<Bytes>, Refusal> {
        loop {
            if self.ended {
                return Ok(None);
            }
            self.begun = true;
            let frame = tokio::select! {
                biased;
                frame = timeout_at(self.deadline, self.incoming.frame()) => frame,
                () = terms.shared.cut.cancelled() => return Err(Refusal::shutting_down()),
            };
            match frame {
                Err(_) => {
                    let message = "the body arrived too slowly";
                    return Err(Refusal::new(
                        StatusCode::REQUEST_TIMEOUT,
                        Rejection::Timeout,
                        message,
                    ));
                }
                Ok(None) => self.ended = true,
                Ok(Some(Err(error))) => {
                    self.ended = true;
                    tracing::debug!(%error, "the body ended early");
                    return Err(Refusal::invalid(
                        "the body is shorter than its Content-Length, or its chunks are broken",
                    ));
                }
                // Trailers are ignored.
                Ok(Some(Ok(frame))) => {
                    if let Ok(piece) = frame.into_data() {
                        self.sent += piece.len() as u64;
                        terms.connection.metrics().received.increment(piece.len() as u64);
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }

    /// Reads and discards the rest of a refused body. Also stops when more than `max` bytes of the
    /// body have arrived in all, or when the body arrives too slowly (see [`REFUSED_TIME`]).
    /// Returns an error, the refusal 408, only if `limits.body_timeout` has passed.
    async fn discard(&mut self, terms: &Terms, max: u64) -> Result<(), Refusal> {
        let refused = terms.connection.refused();
        let latest = self.deadline;
        let (mut counted, mut deadline) = (self.sent, Instant::now() + REFUSED_TIME);
        while self.sent <= max {
            self.deadline = deadline.min(latest);
            match self.next(terms).await {
                Ok(Some(_)) if self.sent - counted >= REFUSED_BYTES => {
                    (counted, deadline) = (self.sent, Instant::now() + REFUSED_TIME);
                    refused.progressed();
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(refusal)
                    if refusal.status == StatusCode::REQUEST_TIMEOUT && deadline >= latest =>
                {
                    return Err(refusal);
                }
                Err(_) => break,
            }
        }
        Ok(())
    }
}
