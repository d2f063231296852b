//! One batch as a request and its answer.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, header};
use tokio::time::Instant;

use super::answer;
use super::api::{Call, Outcome, RequestHead, Sent, UNREAD_PAUSE};
use super::body::{Pieces, Upload};
use super::client::Client;
use super::expanded::Expanded;
use super::pool::{Lane, PooledConnection, exchange};
use super::request::{cannot_read, compressed, content_encoding};
use super::url::{BaseUrl, HttpEndpoint};
use super::wire::Progress;
use client::ask::{USER_AGENT, chain};
use config::Strategy;
use delivery::checkpoints::{Checkpoint, Fate};
use delivery::endpoints::{Attempt, UNANSWERED_MAX};
use delivery::failure::Failure;
use delivery::link::Part;
use queue::{Batch, Identity};
use telemetry::AttemptError;

/// The number of checks of a request's progress within `timeouts.request` or [`UNANSWERED_MAX`],
/// whichever is shorter. Usually there is one check per second.
const PROGRESS_CHECKS: u32 = 10;

/// A balancer may have chosen its server for a connection, such as a Service of Kubernetes does.
/// After this number of failures in a row, and each further one, the connection is not used again,
/// so that the next request may reach another server.
const FAILURES_MAX: u32 = 2;

/// The message for a request that the consumer has taken, on a connection that can't be used again.
const CLOSED: &str = "the consumer closed the connection before it confirmed the events: they are \
    sent again, so some may arrive twice";

/// The message for a request that got the same number from the consumer as an earlier request
/// without a confirmation.
const AGAIN: &str = "the consumer no longer knows which events it accepted, or a load balancer \
    without sticky sessions spreads a connection over several servers: the events are sent again, \
    so some may arrive twice";

/// The number of 2xx responses in a row that can't be read before each further one costs
/// [`UNREAD_PAUSE`]. With a request of many events, each has arrived at most this often.
const UNREAD_MAX: u32 = 3;

const MAY_BE_STORED: &str = ": the consumer may have stored the events, so they are sent again \
    only every 30 s";

/// The end of the message about an answer that may be about the compression of the body.
const COMPRESSION: &str = "; if each request gets this answer, try compression = \"none\"";

/// The end of the message about an answer that hyper can't parse.
const NOT_HTTP: &str =
    ": this is not HTTP/1.1; is it the port of gRPC (4317 instead of 4318), or one for https://?";

const UNREAD: &str = "the URL's files have not been read";

const NO_IDENTITY: &str = "the queue has no identity yet";

/// Returns the outcome of a request that the consumer has taken and won't confirm, for the reason
/// `what`. Its events are not at fault.
fn unconfirmed(what: &str) -> Outcome {
    Outcome::Failed(Failure::new(AttemptError::Acknowledgement, what).not_the_events())
}

pub(super) struct Load {
    pub(super) head: RequestHead,
    /// The body, compressed as `head` says.
    pub(super) body: Pieces,
    pub(super) sent: Sent,
}

/// A request that has ended.
struct Exchanged {
    attempt: Attempt,
    /// The time when the request was last sent. Not used if nothing was sent.
    sent_at: Instant,
    outcome: Outcome,
    /// The connection of the request. `None` if no other request can use it.
    connection: Option<PooledConnection>,
}

impl Client {
    /// Sends a batch to the address whose turn it is, on the open connection in `lane` to that
    /// address, or on a new one. Returns the id of the address, and the outcome. The id is 0 if
    /// [`Client::begin`] fails.
    pub(super) async fn attempt(&self, lane: &mut Lane, batch: Batch) -> (usize, Outcome) {
        let (expanded, attempt, queue) = match self.begin().await {
            Ok(begun) => begun,
            Err(failure) => return (0, Outcome::Failed(failure.not_the_events())),
        };
        let (mut sent, bytes) = (Sent::of(&batch), batch.bytes);
        let made = async {
            let address = attempt.address();
            if let Some(test) = self.api.asks_first()
                && let Some(endpoint) = expanded.endpoints.get(address.endpoint)
            {
                self.test_with(test, address, &expanded, endpoint).await?;
            }
            let encoded = self.api.encode(batch, queue, self.room.limits.max_bytes);
            debug_assert!(encoded.events > 0, "a request carries at least one event");
            self.room.note(bytes, &encoded, &sent);
            sent.cut(encoded.events);
            compressed(encoded.body, self.config.compression).await
        };
        match made.await {
            Ok(body) => {
                let load = self.load(body, sent);
                let (id, outcome) = self.send_to(lane, &expanded, attempt, &load).await;
                (id, load.sent.with_unsent(outcome))
            }
            Err(failure) => {
                let (outcome, sent_at) =
                    (Outcome::Failed(failure.not_the_events()), Instant::now());
                let done = Exchanged { attempt, sent_at, outcome, connection: None };
                self.settle(lane, done, &sent)
            }
        }
    }

    /// Sends a checkpoint of the evidence to the address whose turn it is, as a separate request.
    /// An answer says nothing about the address, because a consumer may accept events and refuse
    /// checkpoints. A failure without an answer counts against the address.
    pub(super) async fn send_checkpoint(&self, lane: &mut Lane, checkpoint: &Checkpoint) -> Fate {
        let (expanded, attempt, queue) = match self.begin().await {
            Ok(begun) => begun,
            Err(failure) => return Fate::Failed(failure),
        };
        let batch = checkpoint.batch();
        let sent = Sent::of(&batch);
        let encoded = self.api.encode(batch, queue, self.room.limits.max_bytes);
        let load = match compressed(encoded.body, self.config.compression).await {
            Ok(body) => self.load(body, sent),
            Err(failure) => return Fate::Failed(failure),
        };
        let pooled = lane.take(&expanded, attempt.address());
        let Exchanged { attempt, sent_at, outcome, connection } =
            self.exchange(pooled, &expanded, attempt, &load).await;
        if let Some(connection) = connection {
            lane.put_back(connection, self.endpoints.count());
        }
        match outcome {
            Outcome::Accepted | Outcome::Taken(_) | Outcome::Judged(_) => {
                attempt.ended(Some(sent_at.elapsed()), None);
                Fate::Taken
            }
            Outcome::Refused(failure) => {
                attempt.ended(None, Some(&failure));
                Fate::Refused(failure)
            }
            Outcome::Failed(failure) => {
                attempt.ended(None, Some(&failure));
                if answer::NO_ANSWER.contains(&failure.reason) {
                    attempt.blamed(&failure);
                }
                Fate::Failed(failure)
            }
        }
    }

    /// Like [`Client::attempt`], for a request that the protocol's own link has made.
    pub(super) async fn transfer(&self, lane: &mut Lane, load: Load) -> (usize, Outcome) {
        match self.begin().await {
            Ok((expanded, attempt, _)) => self.send_to(lane, &expanded, attempt, &load).await,
            Err(failure) => (0, Outcome::Failed(failure.not_the_events())),
        }
    }

    /// Waits until the protocol is ready, and picks the address for a request. Returns the URLs and
    /// headers, the address, and the identity of the queue.
    async fn begin(&self) -> Result<(Arc<Expanded>, Attempt, Identity), Failure> {
        self.api.ready().await?;
        let failed = |what| Failure::new(AttemptError::Protocol, what);
        let (expanded, attempt) = self.pick().await.ok_or_else(|| failed(UNREAD))?;
        let queue = self.queue.get().ok_or_else(|| failed(NO_IDENTITY))?;
        Ok((expanded, attempt, *queue))
    }

    /// Returns a request of the protocol with this body, which must be compressed already.
    fn load(&self, body: Pieces, sent: Sent) -> Load {
        let post = RequestHead::post(self.api.path(), self.api.content_type());
        Load { head: RequestHead { compression: self.config.compression, ..post }, body, sent }
    }

    async fn send_to(
        &self,
        lane: &mut Lane,
        expanded: &Expanded,
        attempt: Attempt,
        load: &Load,
    ) -> (usize, Outcome) {
        let pooled = lane.take(expanded, attempt.address());
        let done = self.exchange(pooled, expanded, attempt, load).await;
        self.settle(lane, done, &load.sent)
    }

    /// Ends a request: records whether the address works, and puts the connection back into `lane`
    /// if it may be used again. Returns the id of the address, and the outcome for the loop.
    /// With `round_robin`, a refusal becomes a failure as long as another address may accept the
    /// batch, so that the batch is sent again.
    fn settle(&self, lane: &mut Lane, done: Exchanged, sent: &Sent) -> (usize, Outcome) {
        let Exchanged { attempt, sent_at, mut outcome, mut connection } = done;
        self.note_unread(&mut outcome);
        if let Outcome::Taken(number) = outcome {
            match &mut connection {
                Some(open) if open.confirmations.has(number) => {
                    outcome = unconfirmed(AGAIN);
                    // The unconfirmed requests on the connection become doubts, and are sent again.
                    connection = None;
                }
                Some(connection) => {
                    connection.was_alone = lane.sends_alone;
                    let confirmed = sent.with_unsent(Outcome::Accepted);
                    connection.confirmations.add(sent.whole(), confirmed, number, sent_at);
                }
                None => outcome = unconfirmed(CLOSED),
            }
        }
        lane.failures = match outcome {
            Outcome::Accepted | Outcome::Taken(_) => 0,
            Outcome::Judged(ref parts) if parts.iter().any(Part::is_taken) => 0,
            // Over a new connection, an event that was refused alone may reach another server.
            Outcome::Refused(_) if sent.events == 1 => FAILURES_MAX,
            Outcome::Judged(_) | Outcome::Refused(_) | Outcome::Failed(_) => lane.failures + 1,
        };
        if let Some(mut connection) = connection {
            if lane.failures >= FAILURES_MAX {
                connection.expiry = Some(Instant::now());
            }
            lane.put_back(connection, self.endpoints.count());
        }
        let another_may = self.config.strategy == Strategy::RoundRobin;
        match outcome {
            Outcome::Refused(ref mut failure) | Outcome::Failed(ref mut failure)
                if lane.sends_alone && failure.may_be_the_events =>
            {
                failure.elsewhere = attempt.turned_down(failure);
            }
            // With `round_robin` all consumers are equal. As long as another consumer may accept
            // the batch, the one that refuses it is at fault: its address is skipped, and retried
            // later.
            Outcome::Refused(mut failure) if another_may && attempt.refused(&failure) => {
                failure.elsewhere = true;
                outcome = Outcome::Failed(failure);
            }
            Outcome::Refused(_) if another_may => {}
            // Only a confirmation shows that the address works, and ends the request.
            Outcome::Taken(_) => {}
            Outcome::Accepted => {
                attempt.ended(Some(sent_at.elapsed()), None);
                attempt.succeeded();
            }
            Outcome::Judged(ref parts) => {
                let took = parts.iter().any(Part::is_taken).then(|| sent_at.elapsed());
                attempt.ended(took, parts.iter().find_map(Part::failure));
                attempt.succeeded();
            }
            Outcome::Refused(ref failure) => {
                attempt.ended(None, Some(failure));
                attempt.succeeded();
            }
            Outcome::Failed(ref mut failure) => failure.elsewhere = attempt.failed(failure),
        }
        (attempt.address().id, outcome)
    }

    /// Counts the 2xx responses in a row that can't be read. A server that stores events and
    /// answers in its own words would store them again with each attempt.
    fn note_unread(&self, outcome: &mut Outcome) {
        match outcome {
            Outcome::Failed(failure) if failure.may_be_stored => {
                let unread = self.unread.fetch_add(1, Ordering::Relaxed) + 1;
                if unread >= UNREAD_MAX || failure.retry_after.is_some() {
                    failure.retry_after = failure.retry_after.max(Some(UNREAD_PAUSE));
                    failure.message += MAY_BE_STORED;
                }
            }
            Outcome::Failed(_) => {}
            Outcome::Accepted | Outcome::Taken(_) | Outcome::Judged(_) | Outcome::Refused(_) => {
                self.unread.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Sends one request and waits for its answer. `pooled` is an open connection to the address,
    /// if there is one.
    async fn exchange(
        &self,
        mut pooled: Option<PooledConnection>,
        expanded: &Expanded,
        mut attempt: Attempt,
        load: &Load,
    ) -> Exchanged {
        let mut sent_at = Instant::now();
        let parts = (&mut pooled, &mut attempt, &mut sent_at);
        let result = self.send(parts, expanded, load).await;
        let outcome = result.unwrap_or_else(Outcome::Failed);
        Exchanged { attempt, sent_at, outcome, connection: pooled }
    }

    /// Sends one request for [`Client::exchange`]. Returns the outcome of an answered request, or
    /// the failure of a request without an answer. Sets `pooled` to the connection if another
    /// request can use it. Sets `sent_at` when the request is sent.
    async fn send(
        &self,
        (pooled, attempt, sent_at): (&mut Option<PooledConnection>, &mut Attempt, &mut Instant),
        expanded: &Expanded,
        load: &Load,
    ) -> Result<Outcome, Failure> {
        let Load { head, body, sent } = load;
        let Some(endpoint) = expanded.endpoints.get(attempt.address().endpoint) else {
            return Err(Failure::new(AttemptError::Protocol, "the config no longer has this URL"));
        };
        let base = &endpoint.base;
        let asked = (base, head.path.split('?').next().unwrap_or_default());
        let failed = |reason, what: &str| Failure::new(reason, format!("{base}: {what}"));
        loop {
            let connected = self.connected(pooled.take(), attempt, base, expanded).await;
            let (mut connection, reused) = connected.map_err(Failure::not_the_events)?;
            let extra = &expanded.headers;
            let request = match self.request(&mut connection, endpoint, head, extra, body.clone()) {
                Ok(request) => request,
                Err(failure) => {
                    *pooled = Some(connection).filter(|it| !it.busy);
                    return Err(failure);
                }
            };
            let marks = request.body().marks.clone();
            *sent_at = Instant::now();
            // On a reused connection, the peer's kernel has the whole previous request, which was
            // answered.
            let seen = match reused {
                true => connection.progress.written(),
                false => connection.progress.acknowledged(),
            };
            let answer = exchange(&mut connection.sender, request);
            let parts = (&connection.progress, &*attempt);
            let (response, since) = match self.in_time(parts, (seen, *sent_at), answer).await {
                Ok((Ok(response), since)) => (response, since),
                Ok((Err(error), _)) => {
                    let reason = answer::reason(&error);
                    // The peer has closed the idle connection, and has not rejected this request.
                    if reused && reason == AttemptError::Closed {
                        continue;
                    }
                    let hint = if reason == AttemptError::Protocol { NOT_HTTP } else { "" };
                    return Err(failed(reason, &format!("{}{hint}", chain(&error))));
                }
                Err(limit) => {
                    let what = format!("no response and no progress for {} s", limit.as_secs_f64());
                    return Err(failed(AttemptError::Timeout, &what));
                }
            };
            connection.take_up_cookies(response.headers(), &endpoint.target(&head.path));
            if !marks.was_whole() {
                // The answer came before the consumer had the whole request, so no other request
                // can use the connection.
                return Ok(answer::early(&*self.api, asked, &response, sent));
            }
            connection.busy = false;
            let deadline = since + attempt.patience();
            let may_be_compression =
                content_encoding(head.compression).is_some() && cannot_read(response.status());
            let judged = answer::judge(&*self.api, asked, response, sent, deadline);
            let (mut outcome, is_whole) = judged.await;
            if let Outcome::Refused(failure) | Outcome::Failed(failure) = &mut outcome
                && may_be_compression
            {
                failure.message += COMPRESSION;
            }
            let is_needed = matches!(outcome, Outcome::Taken(_)) || !connection.is_free();
            let may_stay = is_needed || !connection.is_over(&self.endpoints);
            *pooled = Some(connection).filter(|_| is_whole && may_stay);
            return Ok(outcome);
        }
    }

    /// Makes the next request on a connection, which is busy from then on. `extra` are the headers
    /// of the config, which replace those that the relay sets itself. The protocol's own headers
    /// and the cookies of the connection replace both. The body counts the bytes that hyper takes.
    pub(super) fn request(
        &self,
        connection: &mut PooledConnection,
        endpoint: &HttpEndpoint,
        head: &RequestHead,
        extra: &HeaderMap,
        pieces: Pieces,
    ) -> Result<Request<Upload>, Failure> {
        let target = &endpoint.target(&head.path);
        let cookies = connection.cookies.as_ref();
        let cookie = cookies.and_then(|it| it.header(target, extra.get(header::COOKIE)));
        let call =
            Call { connection: connection.id, host: &endpoint.authority, target, head, extra };
        let mut own = self.api.request_headers(&call)?;
        own.extend(cookie.map(|cookie| (header::COOKIE, cookie)));
        connection.busy = true;
        let marks = connection.progress.begin();
        let upload = Upload {
            pieces,
            metrics: self.metrics.clone(),
            figures: Arc::clone(&connection.key.address.figures),
            marks,
        };
        if upload.pieces.left() == 0 {
            // hyper asks for no piece of an empty body.
            upload.marks.body_ended();
        }
        let request = Request::builder().method(&head.method).uri(target).body(upload);
        let mut request = request.map_err(|error| {
            Failure::new(AttemptError::Protocol, format!("{}: {error}", endpoint.base))
        })?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, endpoint.authority.clone());
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(head.content_type));
        if let Some(encoding) = content_encoding(head.compression) {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        let extra = extra.iter().map(|(name, value)| (name.clone(), value.clone()));
        for (name, value) in extra.chain(own) {
            headers.insert(name, value);
        }
        Ok(request)
    }

    /// Returns a connection for a request: `pooled` if it is ready within `timeouts.connect`,
    /// otherwise a new one. The `bool` is `true` if the connection is `pooled`.
    async fn connected(
        &self,
        pooled: Option<PooledConnection>,
        attempt: &mut Attempt,
        base: &BaseUrl,
        expanded: &Expanded,
    ) -> Result<(PooledConnection, bool), Failure> {
        if let Some(mut connection) = pooled {
            let ready = connection.sender.ready();
            let ready = tokio::time::timeout(self.timeouts.connect, ready).await;
            if matches!(ready, Ok(Ok(()))) {
                return Ok((connection, true));
            }
        }
        let dial = |address| self.dial(base, address, expanded.proxy.as_ref());
        Ok((self.endpoints.dial(attempt, dial).await?, false))
    }

    /// Waits for the end of `exchange`, but gives up when there was no progress for the patience of
    /// the attempt. Progress means that the peer's kernel has acknowledged more bytes of the
    /// request. `seen` is the number of bytes that were acknowledged at the time `since`. Returns
    /// the result and the time of the last progress. `Err` is the patience that was exceeded; the
    /// caller then drops the connection, so that a later answer is not read.
    async fn in_time<T>(
        &self,
        (progress, attempt): (&Progress, &Attempt),
        (mut seen, mut since): (Option<u64>, Instant),
        exchange: impl Future<Output = T>,
    ) -> Result<(T, Instant), Duration> {
        let mut exchange = std::pin::pin!(exchange);
        let interval = self.timeouts.request.min(UNANSWERED_MAX) / PROGRESS_CHECKS;
        loop {
            let until = (Instant::now() + interval).min(since + attempt.patience());
            if let Ok(done) = tokio::time::timeout_at(until, exchange.as_mut()).await {
                return Ok((done, since));
            }
            let (now, limit) = (Instant::now(), attempt.patience());
            let acknowledged = progress.acknowledged();
            if acknowledged.is_some() && acknowledged != seen {
                (seen, since) = (acknowledged, now);
            } else if now.duration_since(since) >= limit {
                return Err(limit);
            }
        }
    }
}
