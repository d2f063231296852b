//! Batches that senders repeat, if `acknowledge` is `delivered`.
//!
//! A sender that got 503, or has hung up, sends the same body again. If an output has begun to send
//! the batch of that body, the batch is still in the queue, or is delivered already. The repetition
//! then *joins* it: nothing is queued again, and the sender gets the response to the batch.
//!
//! Two requests belong to one batch if they came over the same listener and their decompressed
//! bodies have the same length and the same SHA-256. Nothing that a client of the cluster can
//! choose, such as an `auditID`, plays a part. Equal bodies have equal events, and a listener adds
//! nothing to them, so a join hides no event, no matter who has sent the first body.
//!
//! A batch is remembered
//!
//! - while a request waits for it. If all of its requests got 200, the same body is then a new
//!   batch;
//! - if a request ended without a 200, for [`KEPT`] after the last one. Until then, a repetition
//!   gets 200 also if the batch has become final in the meantime, or if another one got 200: its
//!   sender may have gone before it could read the response;
//! - unless it is withdrawn (no output has begun to send it) or refused (an output has ended);
//! - until an output joins the queue: it does not get this batch, and must get the events of each
//!   request that is answered from then on;
//! - only if fewer than [`BATCHES_MAX`] others are. The same body is a new batch otherwise.
//!
//! Two cases must never happen: two bodies that differ are one batch; a request gets 200 before
//! every required output has finished the events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::Instant;

use base::lock::lock;
use queue::{Appended, Refused, Ticket};

/// The maximum number of batches that are remembered: about 4 MiB of memory.
const BATCHES_MAX: usize = 8192;

/// The time for which a batch is remembered after its last request. kube-apiserver waits at most
/// 41 s before it repeats a batch.
const KEPT: Duration = Duration::from_secs(5 * 60);

/// The identity of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Digest {
    length: usize,
    sha256: [u8; 32],
}

impl Digest {
    /// Takes about 0.6 ms for each MiB.
    pub(super) fn of(body: &[u8]) -> Self {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, body).as_ref());
        Self { length: body.len(), sha256 }
    }
}

/// The label of the listener, and the body.
type Key = (Arc<str>, Digest);

/// The response to all requests of a batch. It owns the batch's ticket.
type Fate = Shared<BoxFuture<'static, Result<(), Refused>>>;

/// The remembered batches of all listeners.
#[derive(Default)]
pub(super) struct Repeats {
    batches: Mutex<HashMap<Key, Batch>>,
}

struct Batch {
    fate: Fate,
    appended: Appended,
    /// The number of requests that wait.
    waiting: usize,
    /// The moment at which the last request has ended.
    left_at: Instant,
    /// `true` if a request got 200.
    is_accepted: bool,
    /// `true` if a request has ended without a 200.
    was_left: bool,
}

impl Batch {
    fn may_be_joined(&self, now: Instant) -> bool {
        let is_kept = self.waiting > 0 || now.duration_since(self.left_at) < KEPT;
        let is_refused = matches!(self.fate.clone().now_or_never(), Some(Err(_)));
        is_kept && !is_refused && self.appended.is_for_all()
    }
}

impl Repeats {
    /// Returns `true` if no batch is remembered.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.batches).is_empty()
    }

    /// Joins the batch of an earlier request with this body or, if there is none, calls `append`.
    ///
    /// # Errors
    ///
    /// `append` has refused the batch.
    pub(super) fn enter(
        self: &Arc<Self>,
        key: Key,
        append: impl FnOnce() -> Result<Ticket, Refused>,
    ) -> Result<Attempt, Refused> {
        let (repeats, now) = (Arc::clone(self), Instant::now());
        let mut batches = lock(&self.batches);
        if let Some(batch) = batches.get_mut(&key).filter(|batch| batch.may_be_joined(now)) {
            batch.waiting += 1;
            let fate = batch.fate.clone();
            return Ok(Attempt { repeats, key, fate, is_repetition: true, is_accepted: false });
        }
        let mut ticket = append()?;
        let appended = ticket.appended();
        let fate = async move { ticket.acknowledged().await }.boxed().shared();
        if batches.len() >= BATCHES_MAX {
            batches.retain(|_, batch| batch.may_be_joined(now));
        }
        if batches.len() < BATCHES_MAX {
            let fate = fate.clone();
            let (is_accepted, was_left) = (false, false);
            let batch = Batch { fate, appended, waiting: 1, left_at: now, is_accepted, was_left };
            batches.insert(key.clone(), batch);
        }
        Ok(Attempt { repeats, key, fate, is_repetition: false, is_accepted: false })
    }
}

/// One request that waits for the response to its batch. If the last one is dropped without a 200,
/// the batch is withdrawn from the queue, or else remembered.
pub(super) struct Attempt {
    repeats: Arc<Repeats>,
    key: Key,
    fate: Fate,
    /// `true` if an earlier request has brought the batch.
    pub(super) is_repetition: bool,
    /// `true` if the request gets 200.
    is_accepted: bool,
}

impl Attempt {
    /// Waits as [`Ticket::acknowledged`] does.
    ///
    /// # Errors
    ///
    /// Not every required output will deliver the batch.
    pub(super) async fn acknowledged(&self) -> Result<(), Refused> {
        self.fate.clone().await
    }

    /// Notes that the request gets 200. Returns `true` if it is the first one of its batch.
    pub(super) fn accept(&mut self) -> bool {
        self.is_accepted = true;
        let mut batches = lock(&self.repeats.batches);
        let batch = batches.get_mut(&self.key).filter(|batch| batch.fate.ptr_eq(&self.fate));
        batch.is_none_or(|batch| !std::mem::replace(&mut batch.is_accepted, true))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut batches = lock(&self.repeats.batches);
        // A batch that was not remembered is withdrawn with its ticket, in `fate`.
        let batch = batches.get_mut(&self.key).filter(|batch| batch.fate.ptr_eq(&self.fate));
        let Some(batch) = batch else { return };
        batch.waiting -= 1;
        batch.left_at = Instant::now();
        batch.was_left |= !self.is_accepted;
        let is_over = || match batch.is_accepted {
            true => !batch.was_left,
            false => batch.appended.withdraw(),
        };
        if batch.waiting == 0 && is_over() {
            batches.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests;
