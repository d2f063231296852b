//! Turns one POST into one answer: the body is read within its limits, decoded, and appended to the
//! queue.

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use flate2::write::MultiGzDecoder;
use futures_util::FutureExt as _;
use hyper::StatusCode;
use hyper::body::Body as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::answer;
use super::answer::{Answer, Notes, Refusal};
use super::buffer::Buffer;
use super::in_flight::Reservation;
use super::pieces::{Pieces, Unfit};
use super::policy::Policy;
use super::repeats::Digest;
use super::terms::{DECODING_KIB, Shared, Terms};
use super::upload::{Arriving, Upload};
use audit::{Invalid, Isa, LIST_HEAD, Split};
use config::Acknowledge;
use queue::{Append, Held, Refused};
use telemetry::Rejection;
use transform::volume::{Seen, Volume};

/// The number of compressed bytes that are decompressed in one step. At gzip's best compression
/// ratio, 1032, one step gives about 1 MiB of output.
const GZIP_STEP: usize = 1024;

/// The capacity in bytes that stays for the output of the next step.
const GZIP_KEPT: usize = 64 * 1024;

/// The number of bytes by which a gzip body may be larger than twice its decompressed content. Only
/// a body with much gzip data without content, such as empty gzip members, exceeds this limit.
/// Empty members cost 65 ms of CPU time for each MB and carry no events.
const GZIP_SPARE: u64 = 1024 * 1024;

/// The largest body in bytes that is decoded in the task of its request. A larger body is decoded
/// on another thread, because serde_json would block the async runtime for about 1 ms for each MiB.
const INLINE_MAX: usize = 1024 * 1024;

/// The smallest body in bytes that may stay a list in the queue. A smaller body is copied with
/// others anyway when it is sent, so that a list would save no copy.
const LIST_MIN: usize = 32 * 1024;

/// The number of bytes of a list that are read in one step on a thread for blocking work.
const PIECE_BYTES: usize = 1024 * 1024;

/// The pause before room is looked for again, for the rest of a list of which a part is accepted.
const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// Turns a body into an answer, in these steps:
///
/// 1. `take` reads the body in pieces and decompresses it. The bytes in memory are counted in
///    `InFlight`; if its limit is reached, the request is refused.
/// 2. A body of up to 1 MiB is decoded in the task of the request, a larger body on a thread for
///    blocking work. A body that does not fit into memory is decoded event by event (`pieces`).
/// 3. The lines are appended to the queue. The request waits, for at most `delivered_timeout`,
///    until the queue's ticket says that the events are acknowledged.
/// 4. If the request is refused, [`Upload::refuse`] answers it, in most cases after it has read and
///    discarded the rest of the body.
///
/// A batch with events never gets 200 before its ticket is acknowledged. If the sender has gone,
/// the request is dropped, and its bytes are subtracted from `InFlight`.
pub(super) async fn ingest(mut upload: Upload) -> Answer {
    let Upload { terms, policy, is_gzip, body, .. } = &mut upload;
    let shared = &terms.shared;
    let share = Reservation::new(&shared.in_flight, policy.limits.max_in_flight);
    let mut batch = Batch {
        terms,
        shared,
        policy,
        share,
        max: usize::try_from(policy.limits.max_body).unwrap_or(usize::MAX),
        pieces: None,
        gathered: BytesMut::new(),
        events: 0,
        is_counted: false,
    };
    match batch.take(*is_gzip, body).await {
        Ok(notes) => {
            let (events, rejected, is_counted) =
                (batch.events, notes.rejected.count, batch.is_counted);
            tracing::debug!(events, rejected, bytes = body.sent, "batch accepted");
            if let Some(whole_at) = body.whole_at {
                let now = Instant::now();
                terms.connection.metrics().accepted_after(now.duration_since(whole_at), now);
            }
            if !is_counted {
                terms.connection.noted(notes, &shared.dead_letters);
            }
            answer::accepted(events, rejected)
        }
        Err(refusal) => upload.refuse(refusal).await,
    }
}

/// A batch on its way to the queue, with the policy that was valid when its request began.
struct Batch<'a> {
    terms: &'a Terms,
    shared: &'a Shared,
    policy: &'a Policy,
    share: Reservation,
    /// The maximum size of a body that is held in memory as a whole: `limits.max_body`.
    max: usize,
    /// The events of a list that does not fit into memory; `None` for all other bodies.
    pieces: Option<Box<Pieces>>,
    /// The bytes of that list that were not read yet.
    gathered: BytesMut,
    /// The number of events that are acknowledged.
    events: u64,
    /// `true` if another request with the same body has counted the notes about its events.
    is_counted: bool,
}

impl Batch<'_> {
    /// Takes the whole body. The events are acknowledged when this returns `Ok`.
    async fn take(&mut self, is_gzip: bool, body: &mut Arriving) -> Result<Notes, Refusal> {
        let whole = if is_gzip { self.inflate(body).await? } else { self.collect(body).await? };
        body.whole_at = Some(Instant::now());
        if self.pieces.is_none() {
            let is_awaited = self.policy.queue.acknowledge == Acknowledge::Delivered;
            return self.take_whole(whole, is_awaited).await;
        }
        let gathered = self.gathered.split().freeze();
        self.read(gathered, 0).await?;
        self.finish().await
    }

    /// Takes a body, or the beginning of a list, that is in memory as a whole. If `may_join` is
    /// `true`, a repeated body joins its earlier batch.
    async fn take_whole(&mut self, whole: Buffer, may_join: bool) -> Result<Notes, Refusal> {
        let keeps_list = whole.len() >= LIST_MIN && self.shared.queue.keeps_list(whole.len());
        let how = How { keeps_list, may_join, max: self.max };
        let decoded = match whole.len() {
            ..=INLINE_MAX => decode(whole, how, &self.shared.volume)?,
            _ => self.decode_off_thread(whole, how).await?,
        };
        match decoded {
            // The last line of a body without a final line break is stored with one. A body of
            // exactly the allowed size can thus become one byte too large, and so can a body in
            // which bytes were replaced. The answer is then 413, because 429 would promise that
            // the body fits later.
            Decoded::Whole(append, ..) if append.lines.len() > self.max => {
                Err(Refusal::too_large(self.policy.limits.max_body))
            }
            Decoded::Whole(append, seen, notes, digest) => {
                match digest.filter(|_| append.events > 0) {
                    Some(digest) => self.append_once(append, seen, digest).await?,
                    None => self.append(append, seen, false).await?,
                }
                Ok(notes)
            }
            Decoded::ByPieces(body, _turn) => {
                self.pieces = Some(Box::new(Pieces::new(self.max, &self.shared.pool)));
                for piece in body.chunks(PIECE_BYTES) {
                    self.read(body.slice_ref(piece), body.len()).await?;
                }
                self.finish().await
            }
        }
    }

    /// Appends lines to the queue, and waits until they are acknowledged. If `waits_for_room` is
    /// `true`, a full queue is asked again and again, for at most `delivered_timeout`.
    async fn append(
        &mut self,
        append: Append,
        seen: Seen,
        waits_for_room: bool,
    ) -> Result<(), Refusal> {
        let events = append.events;
        if events == 0 {
            return Ok(());
        }
        let share: Held = Some(Arc::new(self.take_share()));
        let deadline = Instant::now() + self.policy.queue.delivered_timeout;
        let mut ticket = loop {
            match self.shared.queue.append_holding(append.clone(), share.clone()) {
                Err(Refused::Full) if waits_for_room && Instant::now() < deadline => {
                    self.pause().await?;
                }
                appended => break appended?,
            }
        };
        drop(append);
        // If `acknowledge` is `queued`, the batch is acknowledged already, and needs no timer.
        let at_once = ticket.acknowledged().now_or_never();
        match at_once {
            Some(acknowledged) => acknowledged?,
            None => self.wait_for(ticket.acknowledged()).await?,
        }
        self.shared.volume.count(seen);
        self.events += events;
        Ok(())
    }

    /// Does what [`Batch::append`] does, unless an earlier request has brought the same body: this
    /// request then waits for that batch.
    async fn append_once(
        &mut self,
        append: Append,
        seen: Seen,
        digest: Digest,
    ) -> Result<(), Refusal> {
        let (shared, events) = (self.shared, append.events);
        let metrics = self.terms.connection.metrics();
        let share: Held = Some(Arc::new(self.take_share()));
        let append = || shared.queue.append_holding(append, share.clone());
        let mut attempt = shared.repeats.enter((Arc::clone(&metrics.label), digest), append)?;
        if attempt.is_repetition {
            metrics.joined.increment(1);
        }
        // The lines of a repetition are gone.
        let _share = share.filter(|_| !attempt.is_repetition);
        self.wait_for(attempt.acknowledged()).await?;
        if attempt.is_repetition {
            // The batch was accepted when it was begun, and its sender was refused since.
            metrics.refusals.accepted();
        }
        match attempt.accept() {
            true => shared.volume.count(seen),
            false => self.is_counted = true,
        }
        self.events += events;
        Ok(())
    }

    /// Takes the share of the body in `InFlight`, for work that may end later than the request, if
    /// the sender goes.
    fn take_share(&mut self) -> Reservation {
        let (in_flight, max) = (&self.shared.in_flight, self.policy.limits.max_in_flight);
        std::mem::replace(&mut self.share, Reservation::new(in_flight, max))
    }

    /// Adds the next bytes of the body to `whole` or, if the body does not fit into memory, reads
    /// its events.
    async fn add(
        &mut self,
        bytes: &[u8],
        whole: &mut Buffer,
        announced: Option<usize>,
    ) -> Result<(), Refusal> {
        if self.pieces.is_none() {
            let limit = match announced {
                Some(announced) if announced > self.max => 0,
                _ => self.max,
            };
            if whole.len() + bytes.len() <= limit {
                self.share.set(whole.len() + bytes.len())?;
                whole.extend(bytes);
                return Ok(());
            }
            let begun = std::mem::replace(whole, Buffer::new(None, &self.shared.pool));
            self.continue_by_pieces(begun).await?;
        }
        self.gathered.extend_from_slice(bytes);
        // The first bytes tell whether this is a list.
        let is_begun = self.pieces.as_ref().is_some_and(|pieces| pieces.is_begun());
        if is_begun && self.gathered.len() < PIECE_BYTES.min(self.max) {
            return Ok(());
        }
        let gathered = self.gathered.split().freeze();
        self.read(gathered, 0).await
    }

    /// Accepts the complete items in `begun`, the beginning of a list that is too large for memory.
    /// The events of the rest are taken one by one.
    async fn continue_by_pieces(&mut self, begun: Buffer) -> Result<(), Refusal> {
        let (max, pool) = (self.max, Arc::clone(&self.shared.pool));
        let task = tokio::task::spawn_blocking(move || Pieces::after(begun, max, &pool));
        let split = task.await.map_err(|_| Refusal::shutting_down())?;
        let (mut pieces, complete) = split.map_err(|unfit| self.unfit(unfit))?;
        if let Some(complete) = complete {
            *pieces.notes() = self.take_whole(complete, false).await?;
        }
        self.pieces = Some(Box::new(pieces));
        Ok(())
    }

    /// Reads a part of the list whose events are taken one by one. `received` is the number of
    /// bytes of the body that are in memory too, which the permits of its decoding bound.
    async fn read(&mut self, mut bytes: Bytes, received: usize) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            let part = bytes.clone();
            let read = self.off_thread(move |pieces| pieces.read(&part)).await?;
            bytes.advance(read.map_err(|unfit| self.unfit(unfit))?);
            if self.pieces.as_ref().is_some_and(|pieces| pieces.is_full()) {
                self.append_pieces().await?;
            }
            if self.hold(received).await.is_err() {
                self.trim_all().await?;
                self.hold(received).await?;
            }
        }
        Ok(())
    }

    /// Counts the bytes of the list that are in memory: those of its lines, or the `received` ones
    /// if these are more. If a part of the list is in the queue, this waits for room, because the
    /// queue may hold the part a moment longer.
    async fn hold(&mut self, received: usize) -> Result<(), Refusal> {
        // A step that has filled the memory may have read a little more.
        let held = self.pieces.as_ref().map_or(0, |pieces| pieces.held().min(self.max));
        let deadline = Instant::now() + self.policy.queue.delivered_timeout;
        loop {
            match self.share.set(held.max(received)) {
                Err(_) if self.events > 0 && Instant::now() < deadline => self.pause().await?,
                counted => return counted,
            }
        }
    }

    /// Waits for a moment, until there may be room.
    async fn pause(&self) -> Result<(), Refusal> {
        let pause = self.shared.cut.run_until_cancelled(tokio::time::sleep(ROOM_PAUSE));
        pause.await.ok_or_else(Refusal::shutting_down)
    }

    /// Takes the rest of the list whose events are taken one by one.
    async fn finish(&mut self) -> Result<Notes, Refusal> {
        // The end of the list is checked before its last events are accepted.
        let ended = self.pieces.as_mut().map_or(Ok(()), |pieces| pieces.finish());
        ended.map_err(|unfit| self.unfit(unfit))?;
        self.append_pieces().await?;
        let notes = self.pieces.take().map(|mut pieces| std::mem::take(pieces.notes()));
        let notes = notes.unwrap_or_default();
        match notes.rejected.first.first() {
            Some(item) if self.events == 0 => Err(item.fault.clone().into()),
            _ => Ok(notes),
        }
    }

    /// Appends the lines so far to the queue. A full queue is asked again only if it has a part of
    /// the list already, because the sender would send all of the list again.
    async fn append_pieces(&mut self) -> Result<(), Refusal> {
        let held = self.pieces.as_ref().map_or(0, |pieces| pieces.held());
        if self.shared.queue.admits(held as u64).is_err() {
            self.trim_all().await?;
        }
        let volume = Arc::clone(&self.shared.volume);
        let taken = self.off_thread(move |pieces| {
            let (append, mut seen) = (pieces.take()?, Seen::default());
            volume.look(&append.lines, None, append.events, &mut seen);
            Some((append, seen))
        });
        match taken.await? {
            Some((append, seen)) => self.append(append, seen, self.events > 0).await,
            None => Ok(()),
        }
    }

    /// Trims all large events of a list that is above `max_body`, because there is less room for it
    /// now. A smaller list waits for room, as other bodies do.
    async fn trim_all(&mut self) -> Result<(), Refusal> {
        if self.pieces.as_ref().is_some_and(|pieces| pieces.is_above_max()) {
            self.off_thread(|pieces| pieces.trim(usize::MAX)).await?;
        }
        Ok(())
    }

    /// Does work of milliseconds with the events of the list on a thread for blocking work.
    async fn off_thread<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Pieces) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let Some(mut pieces) = self.pieces.take() else { return Err(Refusal::shutting_down()) };
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&mut pieces);
            (pieces, result)
        });
        let (pieces, result) = task.await.map_err(|_| Refusal::shutting_down())?;
        self.pieces = Some(pieces);
        Ok(result)
    }

    fn unfit(&self, unfit: Unfit) -> Refusal {
        match unfit {
            Unfit::Invalid(error) => error.into(),
            Unfit::TooLarge => Refusal::too_large(self.policy.limits.max_body),
        }
    }

    /// Waits for the queue's response, for at most `delivered_timeout`.
    async fn wait_for(
        &self,
        acknowledged: impl Future<Output = Result<(), Refused>>,
    ) -> Result<(), Refusal> {
        let deadline = Instant::now() + self.policy.queue.delivered_timeout;
        tokio::select! {
            biased;
            acknowledged = timeout_at(deadline, acknowledged) => match acknowledged {
                Ok(acknowledged) => acknowledged.map_err(Refusal::from),
                Err(_) => Err(too_late(self.policy.queue.acknowledge)),
            },
            () = self.shared.cut.cancelled() => Err(Refusal::shutting_down()),
        }
    }

    /// Reads an uncompressed body to its end.
    async fn collect(&mut self, body: &mut Arriving) -> Result<Buffer, Refusal> {
        let announced =
            body.incoming.size_hint().exact().and_then(|length| usize::try_from(length).ok());
        let mut whole = Buffer::new(announced, &self.shared.pool);
        while let Some(piece) = body.next(self.terms).await? {
            self.add(&piece, &mut whole, announced).await?;
        }
        Ok(whole)
    }

    /// Reads a gzip body to its end and decompresses it.
    async fn inflate(&mut self, body: &mut Arriving) -> Result<Buffer, Refusal> {
        let broken =
            |error: io::Error| Refusal::invalid(format!("the body is broken gzip: {error}"));
        let (mut whole, mut inflated) = (Buffer::new(None, &self.shared.pool), 0);
        let mut decoder = MultiGzDecoder::new(Vec::new());
        while let Some(piece) = body.next(self.terms).await? {
            for step in piece.chunks(GZIP_STEP) {
                decoder.write_all(step).map_err(broken)?;
                let bytes = decoder.get_mut();
                inflated += bytes.len() as u64;
                if body.sent > inflated.saturating_mul(2).saturating_add(GZIP_SPARE) {
                    return Err(Refusal::invalid(
                        "the gzip is more than twice as large as the body in it: it has too many members without content",
                    ));
                }
                self.add(bytes, &mut whole, None).await?;
                bytes.clear();
                // No limit counts this memory, and one step can take megabytes of it.
                bytes.shrink_to(GZIP_KEPT);
                tokio::task::consume_budget().await;
            }
        }
        if body.sent == 0 {
            return Err(Refusal::invalid("the body is empty"));
        }
        let rest = decoder.finish().map_err(broken)?;
        self.add(&rest, &mut whole, None).await?;
        Ok(whole)
    }

    /// Decodes a body on a thread for blocking work, because it takes milliseconds. The size of the
    /// body decides how many permits of `decoding` it takes. If the request ends before the permits
    /// are taken, the body is not decoded. If the request ends later, it still is, and keeps its
    /// permits until then.
    async fn decode_off_thread(&mut self, body: Buffer, how: How) -> Result<Decoded, Refusal> {
        let (decoding, volume) =
            (Arc::clone(&self.shared.decoding), Arc::clone(&self.shared.volume));
        let kib = u32::try_from(body.len() / 1024).unwrap_or(u32::MAX).clamp(1, DECODING_KIB);
        // The bytes count until the body is decoded, also if the request ends before.
        let share = self.take_share();
        let done = async {
            let turn = decoding.acquire_many_owned(kib).await.ok()?;
            let task = tokio::task::spawn_blocking(move || {
                let decoded = match decode(body, how, &volume) {
                    Ok(Decoded::ByPieces(body, _)) => Ok(Decoded::ByPieces(body, Some(turn))),
                    decoded => decoded,
                };
                (decoded, share)
            });
            task.await.ok()
        };
        let deadline = Instant::now() + self.policy.queue.delivered_timeout;
        tokio::select! {
            biased;
            done = timeout_at(deadline, done) => match done {
                Ok(Some((decoded, share))) => {
                    self.share = share;
                    decoded.map_err(Refusal::from)
                }
                Ok(None) => Err(Refusal::shutting_down()),
                Err(_) => Err(too_late(self.policy.queue.acknowledge)),
            },
            () = self.shared.cut.cancelled() => Err(Refusal::shutting_down()),
        }
    }
}

/// Returns the refusal of a request that has waited for `delivered_timeout`. This limit exists so
/// that neither a slow consumer nor a slow disk can block a request for an unlimited time.
fn too_late(acknowledge: Acknowledge) -> Refusal {
    let (reason, message) = match acknowledge {
        // `queued` is only for a queue in memory, where nothing but the decoding of a large body
        // can take this long.
        Acknowledge::Queued => {
            (Rejection::DeliveryTimeout, "the relay has not decoded the body in time")
        }
        Acknowledge::Delivered => {
            (Rejection::DeliveryTimeout, "the consumers have not acknowledged the events in time")
        }
        Acknowledge::Synced => (Rejection::Disk, "the disk has not stored the events in time"),
    };
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason, message)
}

/// A body that was in memory as a whole.
#[allow(clippy::large_enum_variant, reason = "nearly all values are of the large variant")]
enum Decoded {
    /// The lines of the body, samples of them for the volume by cause, the notes and, with
    /// [`How::may_join`], the digest of the body.
    Whole(Append, Seen, Notes, Option<Digest>),
    /// A large list with bytes that are not UTF-8. It becomes up to three times as large when they
    /// are replaced, so its events are read one by one, under the permits of its decoding.
    ByPieces(Bytes, Option<OwnedSemaphorePermit>),
}

/// How a body is decoded.
#[derive(Clone, Copy)]
struct How {
    /// `true` if a list of events may stay as it was received ([`Append::list`]).
    keeps_list: bool,
    /// `true` if the body may be a repetition, which its digest tells.
    may_join: bool,
    /// The maximum number of bytes of the lines.
    max: usize,
}

/// Checks and splits a body that is completely in memory.
fn decode(mut body: Buffer, how: How, volume: &Volume) -> Result<Decoded, Invalid> {
    let How { keeps_list, may_join, max } = how;
    let digest = may_join.then(|| Digest::of(body.bytes()));
    let text = body.with_room();
    let scanned = match keeps_list {
        true => audit::scan_keeping_list(text),
        false => audit::scan_in_place(Isa::best(), text).map(|split| (split, None)),
    };
    let (split, list) = match scanned {
        Some(scanned) => scanned,
        None if text.len() > INLINE_MAX.min(max / 4)
            && text.starts_with(LIST_HEAD)
            && std::str::from_utf8(text).is_err() =>
        {
            let length = body.len();
            return Ok(Decoded::ByPieces(body.keep(0..length), None));
        }
        None => (audit::parse_in_place(text)?, None),
    };
    let Split { lines, events, levels, rejected, mended, own } = split;
    let lines = match own {
        Some(own) => Bytes::from(own).slice(lines),
        None => body.keep(lines),
    };
    let (mut seen, notes) = (Seen::default(), Notes { rejected, mended, trimmed: 0 });
    volume.look(&lines, list.as_ref(), events, &mut seen);
    Ok(Decoded::Whole(Append { lines, list, events, levels }, seen, notes, digest))
}

impl From<Invalid> for Refusal {
    fn from(error: Invalid) -> Self {
        Self::invalid(error.to_string())
    }
}
