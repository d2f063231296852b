//! kube-apiserver's audit webhook.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::client::{Body, Line, Reply};
use super::shop::Job;
use super::{Actor, Batch, Blocking, Kind};
use crate::events::Event;
use crate::truth::Must;
use crate::{events, kernel};

/// `defaultRequestTimeout`: the limit of one attempt, including all that follows a Retry-After.
pub(super) const ATTEMPT: Duration = Duration::from_secs(30);
/// `Steps` of `DefaultRetryBackoffWithInitialDelay`.
const ATTEMPTS: u32 = 5;
/// `Factor`.
const FACTOR: f64 = 1.5;
/// `Jitter`: a pause is longer by up to this share.
const JITTER: f64 = 0.2;
/// `maxRetries` of client-go: the further requests of one attempt after a Retry-After.
const AGAIN_MAX: u32 = 10;

impl Job {
    pub(super) fn new(actor: &Actor, events: &[Event], body: Vec<u8>, backoff: Duration) -> Self {
        let serials = actor.book.made(events);
        let body = body.into();
        Self { serials, body, failed: 0, requests: 0, deadline: Duration::ZERO, backoff }
    }

    /// Returns the same body without any attempts.
    pub(super) fn again(self) -> Self {
        Self { failed: 0, requests: 0, deadline: Duration::ZERO, ..self }
    }
}

/// Makes the batches, with the buffer, the size, the wait and the throttle of `buffered.go`.
pub(super) fn batches(actor: &Actor, role: u32) {
    let Kind::Batch(batch) = &actor.profile.kind else { return };
    let (mut maker, mut rng) = (actor.maker(role), actor.rng(role));
    let mut throttle = Throttle { tokens: f64::from(batch.burst), at: kernel::now() };
    loop {
        // In a busy moment, batches follow each other as fast as the throttle permits.
        for _ in 0..if rng.u8(..10) == 0 { rng.u8(2..8) } else { 1 } {
            let count = rng.usize(1..=batch.size);
            if !actor.shop.has_room(count, batch.buffer) {
                // "audit buffer queue blocked": kube-apiserver counts these events as lost.
                break;
            }
            if !actor.shop.pause(throttle.accept(batch)) {
                return;
            }
            let events = actor.events(&mut maker, count);
            if events.is_empty() {
                continue;
            }
            actor.shop.add(Job::new(actor, &events, events::list(&events), batch.backoff));
        }
        if !actor.shop.pause(batch.wait.mul_f64(rng.f64())) {
            return;
        }
    }
}

/// A bucket of tokens, one for each batch.
struct Throttle {
    tokens: f64,
    at: Duration,
}

impl Throttle {
    /// Takes a token, and returns how long to wait for it.
    fn accept(&mut self, batch: &Batch) -> Duration {
        let now = kernel::now();
        let gained = now.saturating_sub(self.at).as_secs_f64() * batch.qps;
        self.tokens = (self.tokens + gained).min(f64::from(batch.burst)) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.tokens).max(0.0) / batch.qps)
    }
}

/// Sends batches over its own connections. Other couriers do the same at the same time.
pub(super) fn courier(actor: &Actor, role: u32) {
    let mut rng = actor.rng(role);
    let mut line = Line::new(actor, u64::from(role) << 32);
    while let Some(mut job) = actor.shop.take() {
        match step(actor, &mut line, &mut job, &mut rng) {
            ControlFlow::Continue(due) => actor.shop.put(due, job),
            ControlFlow::Break(_) => actor.shop.done(job.serials.len()),
        }
    }
}

/// One API client. Its requests wait for their events, each of which is sent in its own body.
pub(super) fn client(actor: &Actor, role: u32) {
    let Kind::Blocking(Blocking { gap, strict, backoff, .. }) = actor.profile.kind else { return };
    let (mut maker, mut rng) = (actor.maker(role), actor.rng(role));
    let mut line = Line::new(actor, u64::from(role) << 32);
    while actor.shop.pause(gap.mul_f64(rng.f64())) {
        for stage in ["RequestReceived", "ResponseComplete"] {
            let event = [maker.event_of(stage)];
            if event[0].bytes.len() > actor.target.body_max / 2 {
                break;
            }
            let mut job = Job::new(actor, &event, events::list(&event), backoff);
            actor.shop.busy(true);
            let delivered = deliver(actor, &mut line, &mut job, &mut rng);
            actor.shop.busy(false);
            if strict && !delivered {
                break;
            }
        }
    }
}

/// Sends a body until it is acknowledged (`true`) or given up (`false`).
pub(super) fn deliver(
    actor: &Actor,
    line: &mut Line<'_>,
    job: &mut Job,
    rng: &mut fastrand::Rng,
) -> bool {
    loop {
        match step(actor, line, job, rng) {
            ControlFlow::Break(delivered) => return delivered,
            ControlFlow::Continue(due) if actor.shop.pause_to_retry(due) => {}
            ControlFlow::Continue(_) => return false,
        }
    }
}

/// Makes one request. Returns whether the body is acknowledged, or when the next request is due.
fn step(
    actor: &Actor,
    line: &mut Line<'_>,
    job: &mut Job,
    rng: &mut fastrand::Rng,
) -> ControlFlow<bool, Duration> {
    if job.requests == 0 {
        job.deadline = kernel::now() + ATTEMPT;
    }
    job.requests += 1;
    // After a Retry-After, the rest of an attempt may be too short for a slow body.
    let is_slow = rng.u8(..100) < actor.profile.slow && job.requests == 1;
    let pieces = if is_slow { rng.u8(2..6) } else { 1 };
    let body = Body { bytes: Arc::clone(&job.body), pieces, pauses: rng.fork() };
    let reply = line.post(&job.serials, Must::Take, &body, job.deadline);
    let failed_at = match reply {
        Some(Reply { status: 200..300, .. }) => return ControlFlow::Break(true),
        // `checkWait` and `IsNextRetry` of client-go: a Retry-After that is a number of seconds.
        Some(Reply { status: 429 | 500.., retry_after: Some(after), .. })
            if job.requests <= AGAIN_MAX =>
        {
            let due = kernel::now() + after;
            if due < job.deadline {
                return ControlFlow::Continue(due);
            }
            job.deadline
        }
        _ => kernel::now(),
    };
    job.failed += 1;
    job.requests = 0;
    if job.failed == ATTEMPTS {
        return ControlFlow::Break(false);
    }
    let pause = job.backoff.mul_f64(1.0 + JITTER * rng.f64());
    job.backoff = job.backoff.mul_f64(FACTOR);
    ControlFlow::Continue(failed_at + pause)
}
