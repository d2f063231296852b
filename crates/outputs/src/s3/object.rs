//! An object: the events of a range of positions, one line each, compressed.

use std::io;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use bytes::Bytes;
use flate2::write::GzEncoder;
use tokio::time::Instant;

use super::plan::Range;
use super::signature::{hex, sha256};
use audit::time::rfc3339;
use config::Compression;
use delivery::checkpoints::Checkpoint;
use queue::{Acceptance, Batch, Claim, Identity, Position};

/// The number of hexadecimal digits of the SHA-256 in an object's name: 64 bits.
const HASH_DIGITS: usize = 16;

/// The events of a claim, or of a part of it, in an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed {
    pub(super) claim: Claim,
    /// The number of events, which may be smaller than the number of positions, because the filter
    /// may have dropped events.
    pub(super) events: u64,
}

/// An object that is being collected. It holds the bytes of its lines, compressed as the config
/// says. The events stay in the queue until the object is stored.
pub(super) struct Object {
    /// The claims of the object's events, in the order of the queue.
    pub(super) packed: Vec<Packed>,
    /// The bytes of the lines before compression.
    pub(super) bytes: u64,
    /// The time when the link began to collect the object.
    pub(super) began: Instant,
    /// The time when the last batch was added.
    pub(super) added: Instant,
    /// The position before which the object must end, because the next event belongs to another
    /// object. `None`: the object may end anywhere.
    pub(super) until: Option<Position>,
    /// `true` if an earlier link has ended this object at `until`, so that it may already be
    /// stored.
    pub(super) is_planned: bool,
    /// The position and the time of acceptance (in milliseconds since 1970) of the first event.
    first: Option<(Position, u64)>,
    last: Position,
    hash: digest::Context,
    packer: Packer,
}

/// The compressor of an object's lines.
enum Packer {
    None(Vec<Bytes>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

/// An object that has ended.
pub(super) struct Ended {
    /// The name of the object, below the prefix of the config.
    pub(super) name: String,
    /// The bytes of the object, in pieces.
    pub(super) body: Vec<Bytes>,
    /// The SHA-256 of the body, in hexadecimal digits.
    pub(super) body_sha256: String,
}

impl Object {
    /// Makes an object without events.
    pub(super) fn new(
        compression: Compression,
        until: Option<Position>,
        is_planned: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            packed: Vec::new(),
            bytes: 0,
            began: Instant::now(),
            added: Instant::now(),
            until,
            is_planned,
            first: None,
            last: Position::START,
            hash: digest::Context::new(&digest::SHA256),
            packer: Packer::new(compression)?,
        })
    }

    /// Adds the events of a batch. The claim of the batch begins at or after the end of the last
    /// one.
    pub(super) fn add(&mut self, batch: Batch) -> io::Result<()> {
        self.first = self.first.or_else(|| batch.places().next());
        self.last = batch.positions().last().unwrap_or(self.last);
        self.bytes += batch.bytes;
        self.added = Instant::now();
        self.packed.push(Packed { claim: batch.claim, events: batch.events });
        for piece in batch.pieces {
            self.hash.update(&piece);
            self.packer.add(&piece)?;
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Returns the range of the object, including the positions of dropped events. `None` if
    /// nothing was added yet.
    pub(super) fn range(&self) -> Option<Range> {
        let (first, last) = self.packed.first().zip(self.packed.last())?;
        Some(Range::new(Claim { start: first.claim.start, end: last.claim.end }))
    }

    /// Returns `true` if the object has reached `until`.
    pub(super) fn is_complete(&self) -> bool {
        let end = self.packed.last().map(|last| last.claim.end);
        self.until.is_some_and(|until| end.is_some_and(|end| end >= until))
    }

    /// Ends the object, and returns its name and its bytes. `relay` is the identity of the queue.
    pub(super) fn end(self, relay: Identity) -> io::Result<Ended> {
        let (first, received) = self.first.unwrap_or((Position::START, 0));
        let hour = hour_of(UNIX_EPOCH + Duration::from_millis(received));
        let hash: String = hex(self.hash.finish().as_ref()).chars().take(HASH_DIGITS).collect();
        let (first, last) = (first.get(), self.last.get());
        self.packer.end(&format!("{hour}/{relay}-{first}-{last}-{hash}"))
    }
}

/// Returns the beginning of the name of an object of this time: `2026/11/22/08`.
fn hour_of(time: SystemTime) -> String {
    let slashes = |c| if matches!(c, '-' | 'T') { '/' } else { c };
    rfc3339(time).chars().take("yyyy-mm-ddThh".len()).map(slashes).collect()
}

/// Makes an object with a checkpoint of the evidence and no event. `relay` is the identity of the
/// queue, and `time` is now.
pub(super) fn of_checkpoint(
    checkpoint: &Checkpoint,
    compression: Compression,
    relay: Identity,
    time: SystemTime,
) -> io::Result<Ended> {
    let mut packer = Packer::new(compression)?;
    packer.add(checkpoint.line())?;
    let hash: String = sha256(checkpoint.line()).chars().take(HASH_DIGITS).collect();
    packer.end(&format!("{}/{relay}-checkpoint-{hash}", hour_of(time)))
}

impl Packer {
    fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(Vec::new()),
            Compression::Gzip => {
                Self::Gzip(Box::new(GzEncoder::new(Vec::new(), flate2::Compression::default())))
            }
            Compression::Zstd => {
                let level = zstd::DEFAULT_COMPRESSION_LEVEL;
                Self::Zstd(Box::new(zstd::stream::write::Encoder::new(Vec::new(), level)?))
            }
        })
    }

    fn add(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            // The lines may be a small part of a large buffer, which would stay in memory.
            Self::None(pieces) => pieces.push(Bytes::copy_from_slice(lines)),
            Self::Gzip(encoder) => encoder.write_all(lines)?,
            Self::Zstd(encoder) => encoder.write_all(lines)?,
        }
        Ok(())
    }

    /// Ends the object. `name` is the name of the object without the extension.
    fn end(self, name: &str) -> io::Result<Ended> {
        let (body, extension) = match self {
            Self::None(pieces) => (pieces, "jsonl"),
            Self::Gzip(encoder) => (vec![Bytes::from(encoder.finish()?)], "jsonl.gz"),
            Self::Zstd(encoder) => (vec![Bytes::from(encoder.finish()?)], "jsonl.zst"),
        };
        let mut context = digest::Context::new(&digest::SHA256);
        body.iter().for_each(|piece| context.update(piece));
        let body_sha256 = hex(context.finish().as_ref());
        Ok(Ended { name: format!("{name}.{extension}"), body, body_sha256 })
    }
}

/// Cuts a batch at the position `at`. Returns the events before `at`, and the events from `at` on.
/// A part without positions is `None`. The batch must have acceptances.
pub(super) fn cut(batch: Batch, at: Position) -> (Option<Batch>, Option<Batch>) {
    let Claim { start, end } = batch.claim;
    if at <= start {
        return (None, Some(batch));
    }
    if at >= end {
        return (Some(batch), None);
    }
    let before = batch.positions().take_while(|position| *position < at).count();
    let (mut front, mut back, mut left) = (Vec::new(), Vec::new(), before);
    for mut piece in batch.pieces {
        let mut ends = memchr::memchr_iter(b'\n', &piece).map(|end| end + 1);
        let split = match left.checked_sub(1) {
            Some(index) => ends.nth(index).unwrap_or(piece.len()),
            None => 0,
        };
        let taken = piece.split_to(split);
        left -= memchr::memchr_iter(b'\n', &taken).count().min(left);
        front.extend(Some(taken).filter(|taken| !taken.is_empty()));
        back.extend(Some(piece).filter(|rest| !rest.is_empty()));
    }
    let part = |claim: Claim, pieces: Vec<Bytes>| {
        let acceptances: Vec<Acceptance> =
            batch.acceptances.iter().filter_map(|it| within(it, claim)).collect();
        let events = acceptances.iter().map(|acceptance| acceptance.events).sum();
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        Batch { events, bytes, pieces, acceptances, ..Batch::of(claim) }
    };
    (Some(part(Claim { start, end: at }, front)), Some(part(Claim { start: at, end }, back)))
}

/// Returns the part of an acceptance whose positions are in `claim`. `None` if there are no such
/// positions.
fn within(acceptance: &Acceptance, claim: Claim) -> Option<Acceptance> {
    let first = acceptance.first.max(claim.start);
    let end = (acceptance.first + acceptance.events).min(claim.end);
    let events = end.saturating_since(first);
    (events > 0).then_some(Acceptance { first, events, ..*acceptance })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a batch of the claim `0..20` with events at these positions. A piece has at most
    /// three lines, whose positions have no gap between them.
    fn batch(positions: &[u64]) -> Batch {
        let (mut pieces, mut acceptances): (Vec<Bytes>, Vec<Acceptance>) = (Vec::new(), Vec::new());
        let mut piece: Vec<u64> = Vec::new();
        for (index, position) in positions.iter().enumerate() {
            piece.push(*position);
            let next = positions.get(index + 1);
            if piece.len() == 3 || next != Some(&(position + 1)) {
                let first = Position::new(piece[0]);
                let events = piece.len() as u64;
                acceptances.push(Acceptance { first, events, age: Duration::ZERO, received: 7 });
                let lines: String = piece.drain(..).map(|it| format!("event {it}\n")).collect();
                pieces.push(Bytes::from(lines));
            }
        }
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        let events = positions.len() as u64;
        Batch { events, bytes, pieces, acceptances, ..Batch::of(Claim::of(0, 20)) }
    }

    /// Cuts batches with and without gaps at each position. Both parts together must be the batch,
    /// and each line must be in the part of its position.
    #[test]
    fn a_batch_is_cut_at_any_position() {
        let all: Vec<u64> = (0..20).collect();
        for positions in [&all[..], &[0, 1, 5, 6, 7, 8, 12, 19], &[3], &[]] {
            for at in 0..=21 {
                let (front, back) = cut(batch(positions), Position::new(at));
                let (mut kept, mut claims) = (Vec::new(), Vec::new());
                for part in [front, back].into_iter().flatten() {
                    claims.push(part.claim.numbers());
                    assert!(part.claim.end > part.claim.start);
                    let numbers: Vec<u64> = part.positions().map(Position::get).collect();
                    assert!(numbers.iter().all(|it| part.claim.numbers().contains(it)));
                    assert_eq!(part.events, numbers.len() as u64);
                    assert_eq!(part.bytes, part.pieces.concat().len() as u64);
                    let wanted: String = numbers.iter().map(|it| format!("event {it}\n")).collect();
                    assert_eq!(part.pieces.concat(), wanted.as_bytes(), "{positions:?} at {at}");
                    kept.extend(numbers);
                }
                assert_eq!(kept, positions, "at {at}");
                let whole = claims.iter().flat_map(Clone::clone).collect::<Vec<u64>>();
                assert_eq!(whole, all, "the claims are the claim");
            }
        }
    }

    /// The name depends only on the events, and not on their batches. The bytes of the object are
    /// the lines.
    #[test]
    fn an_object_is_named_by_its_events() {
        let relay = Identity::random().unwrap();
        let ended = |compression, cuts: &[u64]| {
            let mut object = Object::new(compression, None, false).unwrap();
            let mut rest = Some(batch(&[0, 1, 5, 6, 7, 8, 12, 19]));
            for at in cuts {
                let (front, back) = cut(rest.take().unwrap(), Position::new(*at));
                object.add(front.unwrap()).unwrap();
                rest = back;
            }
            object.add(rest.unwrap()).unwrap();
            object.end(relay).unwrap()
        };
        let (whole, parts) = (ended(Compression::None, &[]), ended(Compression::None, &[1, 6, 13]));
        assert_eq!(whole.name, parts.name);
        let start = format!("1970/01/01/00/{relay}-0-19-");
        let hash = whole.name.strip_prefix(&start).unwrap().strip_suffix(".jsonl").unwrap();
        let lines = batch(&[0, 1, 5, 6, 7, 8, 12, 19]).pieces.concat();
        assert!(sha256(&lines).starts_with(hash) && hash.len() == 16);
        assert_eq!((whole.body.concat(), parts.body.concat()), (lines.clone(), lines.clone()));
        let zstd = ended(Compression::Zstd, &[6]);
        assert_eq!(zstd.name, whole.name.clone() + ".zst");
        assert_eq!(zstd::decode_all(&*zstd.body.concat()).unwrap(), lines);
        assert_eq!(ended(Compression::Gzip, &[6]).name, whole.name + ".gz");
    }
}
