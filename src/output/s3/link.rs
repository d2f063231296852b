//! The link of an `s3` output: it collects events into objects, and stores one object after the
//! other.
//!
//! An object goes through these steps:
//!
//! - *collect*: batches are compressed as they come;
//! - *end*: the range of its positions is saved with the queue, unless it was planned before;
//! - *store*: one request carries it;
//! - *mark*: the queue's notes say that it is stored;
//! - *report* its claims.
//!
//! While an object is stored, the next one is collected.
//!
//! If a step fails, the link ends, and all events go back to the delivery loop, which hands them to
//! the next link after a pause. The saved ranges say where the objects ended, so that each gets the
//! name that it had: a server that has the object already then answers 412.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use tokio::task::JoinError;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::bucket::Bucket;
use super::object;
use super::object::Ended;
use super::object::Object;
use super::object::Packed;
use super::object::cut;
use super::plan::Place;
use super::plan::Plan;
use super::plan::Range;
use crate::delivery::checkpoints::Checkpoint;
use crate::delivery::checkpoints::Fate;
use crate::delivery::failure::Failure;
use crate::delivery::link::Begin;
use crate::delivery::link::CLOSE_TIME;
use crate::delivery::link::Event;
use crate::delivery::link::Link;
use crate::delivery::link::Part;
use crate::delivery::link::Verdict;
use crate::output::http::api::Outcome;
use crate::output::http::api::Sent;
use crate::output::http::transfers::Transferred;
use crate::output::http::transfers::Transfers;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Position;
use crate::queue::Take;
use crate::telemetry::AttemptError;

/// The age at which an object ends while the relay drains, or while another delivery is to replace
/// this one. Events of these moments share an object.
const LAST_AGE: Duration = Duration::from_millis(100);

/// The age at which an object ends while the queue is nearly full. Its events are the room that
/// senders wait for.
const CROWDED_AGE: Duration = Duration::from_secs(1);

/// An object that was begun before ends where it ended before. If no more of its events come for
/// this time, because they are lost, it ends without them.
const PLANNED_PAUSE: Duration = Duration::from_secs(10);

/// The value of [`PLANNED_PAUSE`] while the relay drains, or while another delivery is to replace
/// this one.
const LAST_PLANNED_PAUSE: Duration = Duration::from_secs(1);

/// An object that was begun before may have this many times the bytes of another one, because the
/// limits or the filter may have been different then.
const PLANNED_TIMES: u64 = 4;

/// How often the link looks whether the queue is nearly full.
const LOOK: Duration = Duration::from_secs(1);

/// After a small batch (fewer than [`SMALL_BYTES`]), the link takes no events for this time. An
/// object can live for hours, and the delivery loop remembers each batch of it: of events that come
/// one by one, it has at most 20 batches for each second.
const REST: Duration = Duration::from_millis(50);

/// A batch of at least this many bytes is not small. A queue that has more to give is read at full
/// speed.
const SMALL_BYTES: u64 = 64 * 1024;

/// A failure that sends events of an object back to the queue.
const INCOMPLETE: &str = "the relay ends before all events of an object that may be stored already \
                          have come: they stay in the queue";

/// The claim of an object without events. A server that has the object says nothing about events.
const NO_EVENTS: Claim = Claim { start: Position::START, end: Position::START };

/// The limits of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// The bytes of its lines before compression. An object may be larger by one batch.
    pub(super) bytes: u64,
    /// The time after which it ends.
    pub(super) age: Duration,
}

/// An object that is being stored.
struct Storing {
    range: Range,
    packed: Vec<Packed>,
    /// `true` if an attempt to store the object was begun before.
    is_retry: bool,
    step: Step,
    /// Reports about later events. They come after the reports about this object, because a claim
    /// is reported from its front.
    after: Vec<Event>,
}

/// The step of an object that has ended.
enum Step {
    /// The bytes are made, and the range is saved.
    End(JoinHandle<io::Result<Ended>>),
    /// The request is under way.
    Store(Pin<Box<dyn Future<Output = Transferred> + Send>>),
    /// The server has the object, and the fact is saved. The value is the verdict on its events.
    Mark(JoinHandle<()>, Verdict),
}

/// The result of a step.
enum Done {
    Ended(Result<io::Result<Ended>, JoinError>),
    Stored(Transferred),
    Marked(Result<(), JoinError>),
}

impl Step {
    /// Waits for the result of the step.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    async fn done(&mut self) -> Done {
        match self {
            Self::End(task) => Done::Ended(task.await),
            Self::Store(request) => Done::Stored(request.await),
            Self::Mark(task, _) => Done::Marked(task.await),
        }
    }
}

/// The link. It holds at most two objects: one that is collected, and one that is stored. A
/// checkpoint of the evidence is an object of its own, which is stored beside them.
pub(super) struct S3Link {
    bucket: Arc<Bucket>,
    transfers: Transfers,
    beside: Beside,
    limits: Limits,
    begin: Begin,
    plan: Plan,
    collected: Collected,
    /// The end of the rest after a small batch; `None` if the link does not rest.
    rests_until: Option<Instant>,
    /// `true`: the loop waits for the events of the open object, so that it ends now.
    is_flushed: bool,
    /// The events that come after the end of the open object.
    rest: Option<Batch>,
    storing: Option<Storing>,
    reports: VecDeque<Event>,
}

/// The object that is collected.
#[allow(clippy::large_enum_variant, reason = "a link has one of it")]
enum Collected {
    /// It has no events yet.
    Nothing,
    /// A batch is being compressed into it.
    Packing(JoinHandle<io::Result<Object>>),
    Open(Object),
}

impl Collected {
    /// Returns the object, and leaves nothing; `None` if there is none, or while a batch is
    /// compressed into it.
    fn take_open(&mut self) -> Option<Object> {
        match std::mem::replace(self, Self::Nothing) {
            Self::Open(object) => Some(object),
            other @ (Self::Nothing | Self::Packing(_)) => {
                *self = other;
                None
            }
        }
    }

    /// Returns the object; `None` as for [`Collected::take_open`].
    fn open(&self) -> Option<&Object> {
        match self {
            Self::Open(object) => Some(object),
            Self::Nothing | Self::Packing(_) => None,
        }
    }

    /// Waits until a batch is compressed; for ever if none is being compressed.
    async fn packed(&mut self) -> Result<io::Result<Object>, JoinError> {
        match self {
            Self::Packing(task) => task.await,
            Self::Nothing | Self::Open(_) => std::future::pending().await,
        }
    }
}

/// The sender of objects with a checkpoint.
struct Beside {
    transfers: Transfers,
    /// The request under way; `None` if there is none.
    request: Option<Pin<Box<dyn Future<Output = Transferred> + Send>>>,
}

impl Beside {
    /// Waits for the end of the request; for ever if there is none.
    async fn stored(&mut self) -> Fate {
        let Some(request) = &mut self.request else { return std::future::pending().await };
        let transferred = request.await;
        self.request = None;
        match self.transfers.end(transferred) {
            Outcome::Accepted | Outcome::Taken(_) | Outcome::Judged(_) => Fate::Taken,
            Outcome::Refused(failure) => Fate::Refused(failure),
            Outcome::Failed(failure) => Fate::Failed(failure),
        }
    }
}

impl S3Link {
    pub(super) fn new(
        bucket: Arc<Bucket>,
        (transfers, beside): (Transfers, Transfers),
        limits: Limits,
        begin: Begin,
        plan: Plan,
    ) -> Self {
        Self {
            bucket,
            transfers,
            beside: Beside { transfers: beside, request: None },
            limits,
            begin,
            plan,
            collected: Collected::Nothing,
            rests_until: None,
            is_flushed: false,
            rest: None,
            storing: None,
            reports: VecDeque::new(),
        }
    }

    /// Returns `true` if the link sends what it has: the relay drains, or another delivery is to
    /// replace this one.
    fn is_ending(&self) -> bool {
        self.begin.draining.is_cancelled() || self.begin.retire.is_cancelled()
    }

    /// Begins to compress a batch into the open object, or into a new one. Events of objects that
    /// the server has are reported at once.
    fn pack(&mut self, batch: Batch) {
        let mut left = Some(batch);
        while let Some(batch) = left.take() {
            let object = match self.collected.take_open() {
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
                    Object::new(self.bucket.compression(), until, is_planned)
                }
            };
            let until = object.as_ref().ok().and_then(|object| object.until);
            let (here, rest) = match until {
                Some(until) => cut(batch, until),
                None => (Some(batch), None),
            };
            self.rest = rest;
            self.collected = Collected::Packing(tokio::task::spawn_blocking(move || {
                let mut object = object?;
                here.map_or(Ok(()), |batch| object.add(batch))?;
                Ok(object)
            }));
        }
    }

    /// Returns when the open object ends because of its age.
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
        self.rest.is_some()
            || (self.is_flushed && !object.is_planned)
            || object.is_complete()
            || object.bytes >= self.bytes_max(object)
            || self.ages_at(object) <= Instant::now()
    }

    /// Returns the number of bytes of lines at which the open object ends.
    fn bytes_max(&self, object: &Object) -> u64 {
        let times = if object.is_planned { PLANNED_TIMES } else { 1 };
        self.limits.bytes.saturating_mul(times)
    }

    /// Ends the open object if it is time, and begins to collect the next one.
    fn end_object(&mut self) {
        if self.storing.is_some() {
            return;
        }
        let Some(object) = self.collected.take_open() else { return };
        let range = object.range().filter(|_| self.is_over(&object));
        let Some(range) = range else {
            self.collected = Collected::Open(object);
            return;
        };
        let is_cut_short = object.is_planned && !object.is_complete() && self.rest.is_none();
        if object.is_empty() {
            // The filter has kept back all events.
            let packed = object.packed.iter();
            self.reports.extend(packed.map(|it| accepted(it.claim)));
        } else if is_cut_short && self.is_ending() {
            for Packed { claim, .. } in object.packed {
                let failure = Failure::new(AttemptError::Closed, INCOMPLETE);
                self.reports.push_back(Event::Failed(claim, failure));
            }
        } else {
            let (packed, is_retry) = (object.packed.clone(), object.is_planned);
            let (relay, plan) = (self.begin.queue, self.plan.clone());
            let step = Step::End(tokio::task::spawn_blocking(move || {
                let ended = object.end(relay)?;
                plan.begin(range);
                Ok(ended)
            }));
            self.storing = Some(Storing { range, packed, is_retry, step, after: Vec::new() });
        }
        if let Some(rest) = self.rest.take() {
            self.pack(rest);
        }
        if !matches!(self.collected, Collected::Packing(_)) {
            self.reports.push_back(Event::Room);
        }
    }

    /// Begins the next step of the object that is being stored. Returns the failure if the link
    /// must end.
    fn on_done(&mut self, done: Done) -> Result<(), Failure> {
        let Some(Storing { range, packed, is_retry, step, after }) = self.storing.take() else {
            return Ok(());
        };
        let next = match done {
            Done::Ended(ended) => {
                let Ended { name, body, body_sha256 } = joined(ended, "end an object")?;
                if is_retry {
                    self.transfers.count_retry();
                }
                let events = packed.iter().map(|it| it.events).sum();
                let sent = Sent::whole_batches(range.claim(), events);
                Step::Store(self.transfers.begin(self.bucket.put(&name, body_sha256), body, sent))
            }
            Done::Stored(transferred) => {
                let verdict = match self.transfers.end(transferred) {
                    Outcome::Accepted | Outcome::Taken(_) => Verdict::Delivered,
                    Outcome::Judged(_) => Verdict::Existing,
                    Outcome::Refused(failure) | Outcome::Failed(failure) => return Err(failure),
                };
                let plan = self.plan.clone();
                Step::Mark(tokio::task::spawn_blocking(move || plan.stored(range)), verdict)
            }
            Done::Marked(marked) => {
                let task = marked.map(Ok);
                joined(task, "save that an object is stored")?;
                let is_existing = matches!(step, Step::Mark(_, Verdict::Existing));
                self.reports.extend(packed.iter().map(|it| match is_existing {
                    true => existing(it.claim, it.events),
                    false => accepted(it.claim),
                }));
                self.reports.extend(after);
                return Ok(());
            }
        };
        self.storing = Some(Storing { range, packed, is_retry, step: next, after });
        Ok(())
    }
}

/// Returns the report that the server has the events of a claim.
fn accepted(claim: Claim) -> Event {
    Event::Accepted { claim, rejected: Vec::new() }
}

/// Returns the report that the server had the events of a claim already.
fn existing(claim: Claim, events: u64) -> Event {
    Event::Judged(claim, vec![Part { end: claim.end, events, verdict: Verdict::Existing }])
}

/// Returns the result of a task that did `what`, or the failure that ends the link.
fn joined<T>(result: Result<io::Result<T>, JoinError>, what: &str) -> Result<T, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(AttemptError::Protocol, format!("cannot {what}: {error}"))
    };
    match result {
        Ok(result) => result.map_err(|error| failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}

async fn at(time: Option<Instant>) {
    tokio::time::sleep_until(time.unwrap_or_else(Instant::now)).await;
}

/// Waits for the end of a step that is under way; for ever if there is none.
async fn step_of(storing: &mut Option<Storing>) -> Done {
    match storing {
        Some(storing) => storing.step.done().await,
        None => std::future::pending().await,
    }
}

impl Link for S3Link {
    fn room(&self) -> Option<Take> {
        let is_resting = self.rests_until.is_some_and(|until| until > Instant::now());
        let is_packing = matches!(self.collected, Collected::Packing(_));
        let is_busy = is_packing || self.rest.is_some() || is_resting || !self.reports.is_empty();
        let open = self.collected.open();
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
        // The claim is on the wire until its object is stored. Without this report, the loop would
        // wait for that after a failure, before it sends the next events of the object.
        self.reports.push_back(Event::Taken(batch.claim));
        let limits = self.transfers.limits();
        let is_small = batch.bytes < SMALL_BYTES.min(limits.max_bytes / 2)
            && batch.events < limits.max_events / 2;
        let rests = is_small && !self.is_ending();
        self.rests_until = rests.then(|| Instant::now() + REST);
        self.is_flushed = false;
        self.pack(batch);
    }

    /// The open object ends before its age. One that was begun before keeps its end.
    fn flush(&mut self) {
        self.is_flushed = true;
    }

    /// A checkpoint waits for no object.
    fn takes_checkpoint(&self) -> bool {
        self.beside.request.is_none()
    }

    fn send_checkpoint(&mut self, checkpoint: Checkpoint) {
        let (compression, relay) = (self.bucket.compression(), self.begin.queue);
        match object::of_checkpoint(&checkpoint, compression, relay, SystemTime::now()) {
            Ok(Ended { name, body, body_sha256 }) => {
                let sent = Sent::whole_batches(NO_EVENTS, 0);
                let head = self.bucket.put(&name, body_sha256);
                self.beside.request = Some(self.beside.transfers.begin(head, body, sent));
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
            let ages_at = match (self.collected.open(), &self.storing) {
                (Some(object), None) => Some(self.ages_at(object)),
                _ => None,
            };
            let may_end = ages_at.is_some() && !self.is_ending();
            tokio::select! {
                biased;
                packed = self.collected.packed() => {
                    self.collected = match joined(packed, "compress events") {
                        Ok(object) => Collected::Open(object),
                        Err(failure) => {
                            self.collected = Collected::Nothing;
                            return Event::Gone(Some(failure));
                        }
                    };
                    self.reports.push_back(Event::Room);
                }
                done = step_of(&mut self.storing) => {
                    if let Err(failure) = self.on_done(done) {
                        return Event::Gone(Some(failure));
                    }
                }
                fate = self.beside.stored() => return Event::Checkpoint(fate),
                () = at(self.rests_until), if self.rests_until.is_some() => {
                    self.rests_until = None;
                    self.reports.push_back(Event::Room);
                }
                () = at(ages_at.map(|at| at.min(Instant::now() + LOOK))), if ages_at.is_some() => {}
                () = self.begin.draining.cancelled(), if may_end => {}
                () = self.begin.retire.cancelled(), if may_end => {}
            }
        }
    }

    fn consumer(&self) -> usize {
        self.transfers.consumer
    }

    async fn close(self) {
        drop(self.beside);
        // A thread that compresses or saves ends by itself. Nobody else may save meanwhile.
        let packed = async {
            if let Collected::Packing(task) = self.collected {
                task.await.ok();
            }
        };
        let saved = async {
            match self.storing.map(|storing| storing.step) {
                Some(Step::End(task)) => drop(task.await),
                Some(Step::Mark(task, _)) => drop(task.await),
                Some(Step::Store(_)) | None => {}
            }
        };
        let all = async { tokio::join!(packed, saved, self.transfers.close()) };
        tokio::time::timeout(CLOSE_TIME, all).await.ok();
    }
}
