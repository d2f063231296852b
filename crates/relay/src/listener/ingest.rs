//! Turns one POST into one answer: the body is read within its limits, decoded, and appended to the
//! queue.

use std::io;
use std::io::Write;
use std::sync::Arc;

use flate2::write::MultiGzDecoder;
use futures_util::FutureExt as _;
use hyper::StatusCode;
use hyper::body::Body as _;
use tokio::time::{Instant, timeout_at};

use super::answer;
use super::answer::{Answer, Refusal};
use super::buffer::Buffer;
use super::in_flight::Reservation;
use super::policy::Policy;
use super::terms::{DECODING_KIB, Shared, Terms};
use super::upload::{Arriving, Upload};
use audit::{Invalid, Split};
use config::Acknowledge;
use queue::{Append, Held, Ticket};
use telemetry::Rejection;
use transform::volume::{Seen, Volume};

/// The number of compressed bytes that are decompressed in one step. At gzip's best compression
/// ratio, 1032, one step gives about 4 MiB of output.
const GZIP_STEP: usize = 4 * 1024;

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

/// Turns a body into an answer, in these steps:
///
/// 1. `take` reads the body in pieces and decompresses it. The bytes in memory are counted in
///    `InFlight`; if its limit is reached, the request is refused.
/// 2. A body of up to 1 MiB is decoded in the task of the request, a larger body on a thread for
///    blocking work.
/// 3. The lines are appended to the queue. The request waits, for at most `delivered_timeout`,
///    until the queue's ticket says that the events are acknowledged.
/// 4. If the request is refused, [`Upload::refuse`] answers it, in most cases after it has read and
///    discarded the rest of the body.
///
/// A batch with events never gets 200 before its ticket is acknowledged. If the sender has gone,
/// the request is dropped, and its bytes are subtracted from `InFlight`.
pub(super) async fn ingest(mut upload: Upload) -> Answer {
    let Upload { terms, policy, is_gzip, body, .. } = &mut upload;
    let batch = Batch { terms, shared: &terms.shared, policy };
    match batch.take(*is_gzip, body).await {
        Ok(events) => {
            tracing::debug!(events, bytes = body.sent, "batch accepted");
            if let Some(whole_at) = body.whole_at {
                let now = Instant::now();
                terms.connection.metrics().accepted_after(now.duration_since(whole_at), now);
            }
            answer::accepted(events)
        }
        Err(refusal) => upload.refuse(refusal).await,
    }
}

/// A batch on its way to the queue, with the policy that was valid when its request began.
struct Batch<'a> {
    terms: &'a Terms,
    shared: &'a Shared,
    policy: &'a Policy,
}

impl Batch<'_> {
    /// Returns the number of events that were accepted and acknowledged.
    async fn take(&self, is_gzip: bool, body: &mut Arriving) -> Result<u64, Refusal> {
        let (in_flight, max) = (&self.shared.in_flight, self.policy.limits.max_in_flight);
        let mut share = Reservation::new(in_flight, max);
        let whole = if is_gzip {
            self.inflate(body, &mut share).await?
        } else {
            self.collect(body, &mut share).await?
        };
        body.whole_at = Some(Instant::now());
        let share = Arc::new(share);
        let keeps_list = whole.len() >= LIST_MIN && self.shared.queue.keeps_list(whole.len());
        let (append, seen) = match whole.len() {
            ..=INLINE_MAX => decode(whole, keeps_list, &self.shared.volume)?,
            _ => self.decode_off_thread(whole, keeps_list, Arc::clone(&share)).await?,
        };
        let events = append.events;
        if events == 0 {
            return Ok(0);
        }
        // The last line of a body without a final line break is stored with one. A body of exactly
        // the allowed size can thus become one byte too large. The answer is then 413, because 429
        // would promise that the body fits later.
        if append.lines.len() as u64 > self.policy.limits.max_body {
            return Err(Refusal::too_large(self.policy.limits.max_body));
        }
        // If the sender goes, the queue may keep the batch for a moment longer than this function.
        let held: Held = Some(Arc::<Reservation>::clone(&share));
        let mut ticket = self.shared.queue.append_holding(append, held)?;
        // If `acknowledge` is `queued`, the batch is acknowledged already, and needs no timer.
        let at_once = ticket.acknowledged().now_or_never();
        match at_once {
            Some(acknowledged) => acknowledged?,
            None => self.wait_for(&mut ticket).await?,
        }
        self.shared.volume.count(seen);
        Ok(events)
    }

    async fn wait_for(&self, ticket: &mut Ticket) -> Result<(), Refusal> {
        let deadline = Instant::now() + self.policy.queue.delivered_timeout;
        tokio::select! {
            biased;
            acknowledged = timeout_at(deadline, ticket.acknowledged()) => match acknowledged {
                Ok(acknowledged) => acknowledged.map_err(Refusal::from),
                Err(_) => Err(too_late(self.policy.queue.acknowledge)),
            },
            () = self.shared.cut.cancelled() => Err(Refusal::shutting_down()),
        }
    }

    /// Reads an uncompressed body to its end.
    async fn collect(
        &self,
        body: &mut Arriving,
        share: &mut Reservation,
    ) -> Result<Buffer, Refusal> {
        let announced =
            body.incoming.size_hint().exact().and_then(|length| usize::try_from(length).ok());
        let mut whole = Buffer::new(announced, &self.shared.pool);
        while let Some(piece) = body.next(self.terms).await? {
            if body.sent > self.policy.limits.max_body {
                return Err(Refusal::too_large(self.policy.limits.max_body));
            }
            share.set(whole.len() + piece.len())?;
            whole.extend(&piece);
        }
        Ok(whole)
    }

    /// Reads a gzip body to its end and decompresses it.
    async fn inflate(
        &self,
        body: &mut Arriving,
        share: &mut Reservation,
    ) -> Result<Buffer, Refusal> {
        let broken = |error: io::Error| {
            if error.kind() == io::ErrorKind::FileTooLarge {
                Refusal::too_large(self.policy.limits.max_body)
            } else {
                Refusal::invalid(format!("the body is broken gzip: {error}"))
            }
        };
        let whole = Buffer::new(None, &self.shared.pool);
        let mut decoder = MultiGzDecoder::new(Inflated { whole, max: self.policy.limits.max_body });
        while let Some(piece) = body.next(self.terms).await? {
            if body.sent > self.policy.limits.max_body {
                return Err(Refusal::too_large(self.policy.limits.max_body));
            }
            for step in piece.chunks(GZIP_STEP) {
                decoder.write_all(step).map_err(broken)?;
                let held = decoder.get_ref().whole.len();
                if body.sent > (held as u64).saturating_mul(2).saturating_add(GZIP_SPARE) {
                    return Err(Refusal::invalid(
                        "the gzip is more than twice as large as the body in it: it has too many members without content",
                    ));
                }
                share.set(held)?;
                tokio::task::consume_budget().await;
            }
        }
        if body.sent == 0 {
            return Err(Refusal::invalid("the body is empty"));
        }
        let whole = decoder.finish().map_err(broken)?.whole;
        share.set(whole.len())?;
        Ok(whole)
    }

    /// Decodes a body on a thread for blocking work, because it takes milliseconds. The size of the
    /// body decides how many permits of `decoding` it takes. If the request ends before the permits
    /// are taken, the body is not decoded. If the request ends later, it still is, and keeps its
    /// permits until then.
    async fn decode_off_thread(
        &self,
        body: Buffer,
        keeps_list: bool,
        share: Arc<Reservation>,
    ) -> Result<(Append, Seen), Refusal> {
        let (decoding, volume) =
            (Arc::clone(&self.shared.decoding), Arc::clone(&self.shared.volume));
        let kib = u32::try_from(body.len() / 1024).unwrap_or(u32::MAX).clamp(1, DECODING_KIB);
        let done = async {
            let turn = decoding.acquire_many_owned(kib).await.ok()?;
            let task = tokio::task::spawn_blocking(move || {
                let (_turn, _share) = (turn, share);
                decode(body, keeps_list, &volume)
            });
            task.await.ok()
        };
        let deadline = Instant::now() + self.policy.queue.delivered_timeout;
        tokio::select! {
            biased;
            done = timeout_at(deadline, done) => match done {
                Ok(Some(outcome)) => outcome.map_err(Refusal::from),
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

/// Checks and splits a body that is completely in memory, and returns its lines.
///
/// If `keeps_list` is `true`, a list of events may stay as it was received ([`Append::list`]).
/// Also returns samples of the lines, for the volume by cause.
fn decode(mut body: Buffer, keeps_list: bool, volume: &Volume) -> Result<(Append, Seen), Invalid> {
    let (split, list) = match keeps_list {
        true => audit::decode_keeping_list(body.with_room())?,
        false => (audit::decode_in_place(body.with_room())?, None),
    };
    let Split { lines, events, levels } = split;
    let (lines, mut seen) = (body.keep(lines), Seen::default());
    volume.look(&lines, list.as_ref(), events, &mut seen);
    Ok((Append { lines, list, events, levels }, seen))
}

impl From<Invalid> for Refusal {
    fn from(error: Invalid) -> Self {
        Self::invalid(error.to_string())
    }
}

/// A writer that receives the decompressed bytes of a gzip body.
struct Inflated {
    whole: Buffer,
    /// The maximum number of decompressed bytes. `write` returns an error when there are more.
    max: u64,
}

impl Write for Inflated {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if (self.whole.len() + buf.len()) as u64 > self.max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.whole.extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
