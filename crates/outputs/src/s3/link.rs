//! The link of an `s3` output: it collects events into objects, and stores one object after the
//! other.
//!
//! An object goes through these steps:
//!
//! - *collect*: batches are compressed as they arrive;
//! - *end*: the range of its positions is saved with the queue;
//! - *store*: one request carries it;
//! - *report*: the link reports the object's claims.
//!
//! While an object is stored, the next one is collected.
//!
//! If a step fails, the link ends, and all events return to the delivery loop, which passes them to
//! the next link, usually after a pause. The saved ranges contain the ends of the objects, so that
//! the same lines get the same name again: a server that already has the object then answers 412.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::bucket::{Bucket, Tried};
use super::object;
use super::object::{Ended, Object, Packed, cut};
use super::plan::{Place, Plan, Range};
use crate::http::api::{Outcome, Sent};
use crate::http::transfers::Transfers;
use base::lock::lock;
use delivery::checkpoints::{Checkpoint, Fate};
use delivery::failure::Failure;
use delivery::link::{Begin, CLOSE_TIME, Event, Link, Part, Verdict, until};
use queue::{Batch, Claim, Position, Take};
use telemetry::AttemptError;

/// The age at which an object ends while the relay drains, or while another delivery is to replace
/// this one. Events that arrive within this time share an object.
const LAST_AGE: Duration = Duration::from_millis(100);

/// The age at which an object ends while the queue is crowded, because its events take the room
/// that senders wait for.
const CROWDED_AGE: Duration = Duration::from_secs(1);

/// The longest time for which an object with a planned end waits for the next batch. An earlier
/// link has ended the object, and may have stored it, so it should end at the same position again.
/// If no batch arrives in time, the object ends without the missing events, which the queue may
/// have lost.
const PLANNED_PAUSE: Duration = Duration::from_secs(10);

/// The value of [`PLANNED_PAUSE`] while the relay drains, or while another delivery is to replace
/// this one.
const LAST_PLANNED_PAUSE: Duration = Duration::from_secs(1);

/// The factor by which an object that an earlier link has ended may exceed the limit of bytes,
/// because the limits or the filter may have been different then.
const PLANNED_TIMES: u64 = 4;

/// The time between two checks whether the queue is crowded.
const LOOK: Duration = Duration::from_secs(1);

/// The pause after a small batch (fewer than [`SMALL_BYTES`], and less than half of the maximum
/// batch), in which the link takes no events. An object can be collected for hours, and the
/// delivery loop remembers each batch of the object. If events come one by one, the pause limits
/// the batches to 20 per second.
const REST: Duration = Duration::from_millis(50);

/// No pause follows a batch of at least this many bytes, so a queue with many events is read at
/// full speed.
const SMALL_BYTES: u64 = 64 * 1024;

/// The message of a failure that sends the events of an object back to the queue.
const INCOMPLETE: &str = "the relay is stopping before it has all events of an object that may \
                          already be stored: they stay in the queue";

/// The status in a failure's message if the server does not let us look: the key may only write, or
/// the server does not know HEAD.
const NO_LOOK: [u16; 3] = [403, 405, 501];

/// The message of an answer 412 that is not about the object.
const NOT_SEEN: &str = "the server responds with 412 to a request to store an object, but the \
                        object is not there: is there a proxy or a gateway at this URL?";

/// The claim of an object with a checkpoint and no events.
const NO_EVENTS: Claim = Claim { start: Position::START, end: Position::START };

/// The limits of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// The bytes of lines, before compression, at which a new object ends.
    pub(super) bytes: u64,
    /// The age at which an object ends.
    pub(super) age: Duration,
}

/// The object that is being collected.
#[derive(Default)]
struct Collected {
    /// The object. `None` if there are no events yet, or while a batch is compressed into the
    /// object.
    open: Option<Object>,
    /// The thread that compresses a batch into the object. `None` if no batch is being compressed.
    packing: Option<JoinHandle<io::Result<Object>>>,
    /// The end of the pause after a small batch.
    rests_until: Option<Instant>,
    /// `true` if the delivery loop waits for the events of the object, so that the object ends now.
    is_flushed: bool,
    /// The events of the last batch that belong to later objects, because the object ends before
    /// them.
    rest: Option<Batch>,
}

/// An object that is being stored: the steps *end* and *store*.
struct Storing {
    /// From the first claim of the object to the last.
    whole: Claim,
    packed: Vec<Packed>,
    /// The future of the two steps. The result is the verdict on the object's events.
    steps: Pin<Box<dyn Future<Output = Result<Verdict, Failure>> + Send>>,
    /// Reports about events after the object. They must follow the reports about the object,
    /// because a claim is reported from its front.
    after: Vec<Event>,
}

/// The link. It holds at most two objects: one that is collected, and one that is stored. A
/// checkpoint of the evidence is an additional object, which may be stored at the same time.
pub(super) struct S3Link {
    bucket: Arc<Bucket>,
    transfers: Transfers,
    limits: Limits,
    begin: Begin,
    plan: Arc<Plan>,
    /// The threads that compress or save.
    threads: TaskTracker,
    collected: Collected,
    storing: Option<Storing>,
    /// The sender of objects with a checkpoint.
    beside: Transfers,
    /// The request that stores a checkpoint; `None` if there is none.
    checkpoint: Option<Pin<Box<dyn Future<Output = Outcome> + Send>>>,
    reports: VecDeque<Event>,
}

impl S3Link {
    pub(super) fn new(
        bucket: Arc<Bucket>,
        (transfers, beside): (Transfers, Transfers),
        limits: Limits,
        begin: Begin,
        plan: Arc<Plan>,
    ) -> Self {
        Self {
            bucket,
            transfers,
            limits,
            begin,
            plan,
            threads: TaskTracker::new(),
            collected: Collected::default(),
            storing: None,
            beside,
            checkpoint: None,
            reports: VecDeque::new(),
        }
    }

    /// Returns `true` if the link must send everything now: the relay drains, or another delivery
    /// is to replace this one.
    fn is_ending(&self) -> bool {
        self.begin.draining.is_cancelled() || self.begin.retire.is_cancelled()
    }

    /// Begins to compress a batch into the open object, or into a new one. Events of objects that
    /// the server has are not compressed, but reported as existing.
    fn pack(&mut self, batch: Batch) {
        let mut left = Some(batch);
        while let Some(batch) = left.take() {
            let object = match self.collected.open.take() {
                Some(object) => Ok(object),
                None => {
                    let (until, is_planned) = match self.plan.place(batch.claim.start) {
                        Place::Stored(until) => {
                            let (there, rest) = cut(batch, until);
                            let report = there.map(|it| existing(it.claim, it.events));
                            match &mut self.storing {
                                Some(storing) => storing.after.extend(report),
                                None => self.reports.extend(report),
                            }
                            left = rest;
                            continue;
                        }
                        Place::Planned(until) => (Some(until), true),
                        Place::Before(until) => (Some(until), false),
                        Place::Free => (None, false),
                    };
                    Object::new(self.bucket.compression, until, is_planned)
                }
            };
            let until = object.as_ref().ok().and_then(|object| object.until);
            let (here, rest) = match until {
                Some(until) => cut(batch, until),
                None => (Some(batch), None),
            };
            self.collected.rest = rest;
            self.collected.packing = Some(self.threads.spawn_blocking(move || {
                let mut object = object?;
                here.map_or(Ok(()), |batch| object.add(batch))?;
                Ok(object)
            }));
        }
    }

    /// Returns the time when the open object ends because of its age.
    fn ages_at(&self, object: &Object) -> Instant {
        if object.is_planned {
            let pause = if self.is_ending() { LAST_PLANNED_PAUSE } else { PLANNED_PAUSE };
            return object.added + pause;
        }
        let age = match self.is_ending() {
            true => LAST_AGE,
            false if self.begin.crowding.is_crowded() => CROWDED_AGE,
            false => self.limits.age,
        };
        object.began + age.min(self.limits.age)
    }

    /// Returns `true` if the open object takes no more events.
    fn is_over(&self, object: &Object) -> bool {
        self.collected.rest.is_some()
            || self.collected.is_flushed
            || object.is_complete()
            || object.bytes >= self.bytes_max(object)
            || self.ages_at(object) <= Instant::now()
    }

    /// Returns the bytes of lines at which the open object ends.
    fn bytes_max(&self, object: &Object) -> u64 {
        let times = if object.is_planned { PLANNED_TIMES } else { 1 };
        self.limits.bytes.saturating_mul(times)
    }

    /// Ends the open object if it is over and no other one is being stored. Begins to store the
    /// object. If the object is empty, or if it is incomplete while the link is ending, only
    /// reports its claims. Then collects the events after the end of the object.
    fn end_object(&mut self) {
        if self.storing.is_some() {
            return;
        }
        let Some(object) = self.collected.open.take() else { return };
        let range = object.range().filter(|_| self.is_over(&object));
        let Some(range) = range else {
            self.collected.open = Some(object);
            return;
        };
        let is_cut_short =
            object.is_planned && !object.is_complete() && self.collected.rest.is_none();
        if object.is_empty() {
            // The filter has dropped all events.
            let packed = object.packed.iter();
            let reports = packed.map(|it| Event::Accepted(it.claim));
            self.reports.push_back(Event::Together(reports.collect()));
        } else if is_cut_short && self.is_ending() {
            for Packed { claim, .. } in object.packed {
                let failure = Failure::new(AttemptError::Closed, INCOMPLETE).not_the_events();
                self.reports.push_back(Event::Failed(claim, failure));
            }
        } else {
            let (whole, packed) = (range.claim(), object.packed.clone());
            let steps = Box::pin(self.store(object, range));
            self.storing = Some(Storing { whole, packed, steps, after: Vec::new() });
        }
        if let Some(rest) = self.collected.rest.take() {
            self.pack(rest);
        }
        if self.collected.packing.is_none() {
            self.reports.push_back(Event::Room);
        }
    }

    /// Returns a future that ends an object and stores it. A failure must end the link.
    fn store(
        &self,
        object: Object,
        range: Range,
    ) -> impl Future<Output = Result<Verdict, Failure>> + use<> {
        let (plan, bucket) = (Arc::clone(&self.plan), Arc::clone(&self.bucket));
        let (transfers, threads) = (self.transfers.clone(), self.threads.clone());
        let relay = self.begin.queue;
        async move {
            let (planned, is_retry) = (Arc::clone(&plan), object.is_planned);
            let events = object.packed.iter().map(|it| it.events).sum();
            let ended = threads.spawn_blocking(move || {
                let ended = object.end(relay)?;
                planned.begin(range);
                Ok(ended)
            });
            let ended = joined(ended.await, "end an object")?;
            if is_retry {
                transfers.count_retry();
            }
            let whole = (range.claim(), events);
            let verdict =
                match put(&transfers, &bucket, ended, whole, (&bucket.tried, is_retry)).await {
                    Outcome::Accepted | Outcome::Taken(_) => Verdict::Delivered,
                    Outcome::Judged(_) => Verdict::Existing,
                    Outcome::Refused(failure) | Outcome::Failed(failure) => return Err(failure),
                };
            plan.stored(range);
            Ok(verdict)
        }
    }

    /// Reports the claims of the object that was being stored.
    fn on_stored(&mut self, verdict: Verdict) {
        let Some(Storing { packed, after, .. }) = self.storing.take() else { return };
        let reports = packed.iter().map(|it| match verdict == Verdict::Existing {
            true => existing(it.claim, it.events),
            false => Event::Accepted(it.claim),
        });
        self.reports.push_back(Event::Together(reports.collect()));
        self.reports.extend(after);
    }
}

/// Returns the report that the server already had the events of a claim.
fn existing(claim: Claim, events: u64) -> Event {
    Event::Judged(claim, vec![Part { end: claim.end, events, verdict: Verdict::Existing }])
}

/// Stores an object. After an answer 412, looks whether it is there: a gateway may answer 412, too.
/// If the server does not let us look (the key may only write), the 412 counts if it is the store's
/// own answer, or if an earlier attempt may have stored the object. If an earlier attempt may have
/// stored it and this one fails, looks too: otherwise, nobody could know whether an object that the
/// store refuses may be divided.
async fn put(
    transfers: &Transfers,
    bucket: &Bucket,
    ended: Ended,
    (claim, events): (Claim, u64),
    (tried, is_retry): (&Mutex<Tried>, bool),
) -> Outcome {
    let Ended { name, body, body_sha256 } = ended;
    let sent = || Sent::whole_batches(claim, events);
    lock(tried).begin(&name, is_retry);
    let own = match transfers.send(bucket.put(&name, body_sha256), body, sent()).await {
        Outcome::Judged(own) => own,
        Outcome::Accepted | Outcome::Taken(_) => return Outcome::Accepted,
        Outcome::Refused(failure) | Outcome::Failed(failure) => {
            let was_there = lock(tried).may_be_there();
            lock(tried).failed(&failure);
            if was_there && failure.may_be_the_events {
                match transfers.send(bucket.look(&name), Vec::new(), sent()).await {
                    Outcome::Accepted | Outcome::Taken(_) => return Outcome::Judged(Vec::new()),
                    Outcome::Refused(looked) | Outcome::Failed(looked) => {
                        // With 409, an earlier request still runs.
                        let runs = is_answered(&failure, &[409]);
                        lock(tried).looked(!runs && is_answered(&looked, &[404]));
                    }
                    Outcome::Judged(_) => {}
                }
            }
            let may_be_stored = lock(tried).may_be_there();
            return Outcome::Failed(Failure { may_be_stored, ..failure });
        }
    };
    let may_be_there = !own.is_empty() || lock(tried).may_be_there();
    match transfers.send(bucket.look(&name), Vec::new(), sent()).await {
        Outcome::Accepted | Outcome::Taken(_) => Outcome::Judged(own),
        Outcome::Refused(failure) | Outcome::Failed(failure) => {
            if may_be_there && is_answered(&failure, &NO_LOOK) {
                return Outcome::Judged(own);
            }
            let message = format!("{NOT_SEEN} ({})", failure.message);
            Outcome::Failed(Failure { message, ..failure }.not_the_events())
        }
        Outcome::Judged(_) => {
            Outcome::Failed(Failure::new(AttemptError::Status4xx, NOT_SEEN).not_the_events())
        }
    }
}

/// Returns `true` if the failure is an answer with one of these statuses.
fn is_answered(failure: &Failure, statuses: &[u16]) -> bool {
    statuses.iter().any(|status| failure.message.contains(&format!(": answered {status} ")))
}

/// Returns the result of a thread, or the failure that ends the link. `what` names the work.
fn joined<T>(result: Result<io::Result<T>, JoinError>, what: &str) -> Result<T, Failure> {
    result.map_err(io::Error::other).flatten().map_err(|error| {
        Failure::new(AttemptError::Protocol, format!("cannot {what}: {error}")).not_the_events()
    })
}

/// Waits for the end of some work. Never returns without work.
async fn end_of<F: Future + Unpin>(work: Option<&mut F>) -> F::Output {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

impl Link for S3Link {
    fn room(&self) -> Option<Take> {
        let is_resting = self.collected.rests_until.is_some_and(|until| until > Instant::now());
        let is_busy = self.collected.packing.is_some()
            || self.collected.rest.is_some()
            || is_resting
            || !self.reports.is_empty();
        let open = self.collected.open.as_ref();
        let is_over = open.is_some_and(|object| self.is_over(object));
        let limits = self.transfers.limits();
        let left = match open {
            Some(object) => self.bytes_max(object).saturating_sub(object.bytes),
            None => self.limits.bytes,
        };
        let room = Take { bytes: limits.max_bytes.min(left.max(1)), events: limits.max_events };
        (!is_busy && !is_over).then_some(room)
    }

    fn send(&mut self, batch: Batch) {
        // The claim has no result until its object is stored. Without this report, the loop would
        // wait for the claim after a failure, before it sends the next events of the object.
        self.reports.push_back(Event::Taken(batch.claim));
        let limits = self.transfers.limits();
        let is_small = batch.bytes < SMALL_BYTES.min(limits.max_bytes / 2)
            && batch.events < limits.max_events / 2;
        let rests = is_small && !self.is_ending();
        self.collected.rests_until = rests.then(|| Instant::now() + REST);
        self.collected.is_flushed = false;
        self.pack(batch);
    }

    /// Ends the open object before it has reached its age. Does not change the end of an object
    /// that an earlier link has ended.
    fn flush(&mut self) {
        self.collected.is_flushed = true;
    }

    /// A checkpoint does not wait for an object.
    fn takes_checkpoint(&self) -> bool {
        self.checkpoint.is_none()
    }

    fn send_checkpoint(&mut self, checkpoint: Checkpoint) {
        let (compression, relay) = (self.bucket.compression, self.begin.queue);
        match object::of_checkpoint(&checkpoint, compression, relay, SystemTime::now()) {
            Ok(ended) => {
                let tried = Mutex::default();
                let (bucket, beside) = (Arc::clone(&self.bucket), self.beside.clone());
                let request = async move {
                    put(&beside, &bucket, ended, (NO_EVENTS, 0), (&tried, false)).await
                };
                self.checkpoint = Some(Box::pin(request));
            }
            Err(error) => {
                let what = format!("cannot compress a checkpoint: {error}");
                let failure = Failure::new(AttemptError::Protocol, what);
                self.reports.push_back(Event::Checkpoint(Fate::Failed(failure)));
            }
        }
    }

    async fn event(&mut self) -> Event {
        loop {
            self.end_object();
            if let Some(event) = self.reports.pop_front() {
                return event;
            }
            let open = self.collected.open.as_ref().filter(|_| self.storing.is_none());
            let ages_at = open.map(|object| self.ages_at(object));
            let may_end = ages_at.is_some() && !self.is_ending();
            tokio::select! {
                biased;
                packed = end_of(self.collected.packing.as_mut()) => {
                    self.collected.packing = None;
                    match joined(packed, "compress events") {
                        Ok(object) => self.collected.open = Some(object),
                        Err(failure) => {
                            return Event::Gone { failure: Some(failure), request: None };
                        }
                    }
                    self.reports.push_back(Event::Room);
                }
                stored = end_of(self.storing.as_mut().map(|it| &mut it.steps)) => match stored {
                    Ok(verdict) => self.on_stored(verdict),
                    Err(failure) => {
                        let request = self.storing.take().map(|it| it.whole);
                        return Event::Gone { failure: Some(failure), request };
                    }
                },
                outcome = end_of(self.checkpoint.as_mut()) => {
                    self.checkpoint = None;
                    return Event::Checkpoint(match outcome {
                        Outcome::Accepted | Outcome::Taken(_) | Outcome::Judged(_) => Fate::Taken,
                        Outcome::Refused(failure) => Fate::Refused(failure),
                        Outcome::Failed(failure) => Fate::Failed(failure),
                    });
                }
                () = until(self.collected.rests_until) => {
                    self.collected.rests_until = None;
                    self.reports.push_back(Event::Room);
                }
                () = until(ages_at.map(|at| at.min(Instant::now() + LOOK))) => {}
                () = self.begin.draining.cancelled(), if may_end => {}
                () = self.begin.retire.cancelled(), if may_end => {}
            }
        }
    }

    fn consumer(&self) -> usize {
        self.transfers.consumer()
    }

    /// Aborts the requests. Waits until the threads and the connections have ended, at most
    /// [`CLOSE_TIME`], because no other link may save ranges at the same time.
    async fn close(self) {
        drop((self.storing, self.checkpoint, self.beside));
        self.threads.close();
        let all = async { tokio::join!(self.threads.wait(), self.transfers.close()) };
        tokio::time::timeout(CLOSE_TIME, all).await.ok();
    }
}
