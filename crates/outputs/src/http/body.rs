//! The bodies of requests: a batch in one of the formats, made piece by piece during the transfer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};

use super::wire::RequestMarks;
use delivery::endpoints::Figures;
use queue::is_list;
use telemetry::OutputMetrics;

/// The maximum bytes of a piece that is sent without a copy. The counter `output_bytes_total` grows
/// by whole pieces, and this limit keeps its steps small.
const PIECE_BYTES: usize = 256 * 1024;

/// The maximum bytes of a piece that is a copy of stored bytes, not counting the few bytes after
/// the last event, such as `]`. A copy of this size is still in the CPU's cache when it is written
/// to the socket.
pub(super) const COPIED_BYTES: usize = 64 * 1024;

/// A stored buffer, or the rest of one, of at least this many bytes is sent without a copy, unless
/// commas replace its line breaks. Smaller ones are copied together into one piece, because hyper
/// collects at most 16 pieces for one write, even if they are small.
const PASSED_ON_MIN: usize = 32 * 1024;

/// Stored bytes of a request body.
#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    /// `true` if the bytes are lines for a JSON list. Commas then replace the line breaks.
    gets_commas: bool,
}

impl Stored {
    fn passes(&self) -> bool {
        self.bytes.len() >= PASSED_ON_MIN && !self.gets_commas
    }
}

/// A request body, as an iterator over pieces of bytes. Each piece is made only when hyper or a
/// compressor asks for it. A copied piece is then still in the CPU's cache when it is written, and
/// a body that must be copied is never in memory twice as a whole.
#[derive(Clone)]
pub(super) struct Pieces {
    /// The bytes before the first event, such as `[`. Empty once a piece contains them.
    head: &'static [u8],
    /// The stored bytes that no piece contains yet.
    stored: VecDeque<Stored>,
    /// The bytes after the last event, such as `]`.
    tail: &'static [u8],
    /// The number of bytes of the body that no piece contains yet.
    left: u64,
    /// The memory of the last copied piece. The next copy uses this memory again if hyper has
    /// already dropped the last one.
    copied: BytesMut,
}

impl Pieces {
    pub(super) fn of(pieces: Vec<Bytes>) -> Self {
        let stored = pieces.into_iter().map(|bytes| Stored { bytes, gets_commas: false });
        Self::new(b"", stored.collect(), b"")
    }

    /// Makes a body that is a JSON list: `head`, the events separated by commas, and `tail`.
    /// `pieces` holds the events: lines with line breaks, or lists ([`is_list`]).
    pub(super) fn list(head: &'static [u8], pieces: Vec<Bytes>, tail: &'static [u8]) -> Self {
        let mut stored = VecDeque::with_capacity(2 * pieces.len());
        for mut bytes in pieces {
            let gets_commas = !is_list(&bytes);
            // The comma is a separate buffer, because a piece that is sent without a copy has no
            // room for it.
            if !stored.is_empty() {
                stored.push_back(Stored { bytes: Bytes::from_static(b","), gets_commas: false });
            }
            bytes.truncate(bytes.len().saturating_sub(1));
            stored.push_back(Stored { bytes, gets_commas });
        }
        Self::new(head, stored, tail)
    }

    fn new(head: &'static [u8], stored: VecDeque<Stored>, tail: &'static [u8]) -> Self {
        let bytes: usize = stored.iter().map(|stored| stored.bytes.len()).sum();
        let left = (head.len() + bytes + tail.len()) as u64;
        Self { head, stored, tail, left, copied: BytesMut::new() }
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Takes the next piece without a copy, from the head or a stored buffer. `None` if the next
    /// piece must be a copy: line breaks become commas, the next stored buffer is smaller than
    /// `PASSED_ON_MIN`, or none is left.
    fn pass_on(&mut self) -> Option<Bytes> {
        let front = self.stored.front_mut().filter(|front| front.passes())?;
        if !self.head.is_empty() {
            return Some(Bytes::from_static(std::mem::take(&mut self.head)));
        }
        let piece = front.bytes.split_to(front.bytes.len().min(PIECE_BYTES));
        if front.bytes.is_empty() {
            self.stored.pop_front();
        }
        Some(piece)
    }

    /// Returns the next piece as a copy, which may join several stored buffers, up to about
    /// `COPIED_BYTES` bytes. Stops before a buffer that can be sent without a copy.
    fn copy(&mut self) -> Bytes {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let mut copy = std::mem::take(&mut self.copied);
        let room = left.min(COPIED_BYTES + self.tail.len());
        if !copy.try_reclaim(room) {
            copy = BytesMut::with_capacity(room);
        }
        copy.extend_from_slice(std::mem::take(&mut self.head));
        while copy.len() < COPIED_BYTES {
            let Some(front) = self.stored.front_mut() else {
                copy.extend_from_slice(std::mem::take(&mut self.tail));
                break;
            };
            if front.passes() {
                break;
            }
            let gets_commas = front.gets_commas;
            let piece = front.bytes.split_to(front.bytes.len().min(COPIED_BYTES - copy.len()));
            if front.bytes.is_empty() {
                self.stored.pop_front();
            }
            let start = copy.len();
            copy.extend_from_slice(&piece);
            if gets_commas {
                audit::separate(copy.get_mut(start..).unwrap_or_default());
            }
        }
        let piece = copy.split().freeze();
        self.copied = copy;
        piece
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let piece = self.pass_on().unwrap_or_else(|| self.copy());
        self.left -= piece.len() as u64;
        Some(piece)
    }
}

/// The body of a request, as hyper's type. Its length in bytes is known in advance.
pub(super) struct Upload {
    pub(super) pieces: Pieces,
    /// The metrics that count the bytes of each piece when hyper takes it.
    pub(super) metrics: OutputMetrics,
    /// The figures of the address, which count the same bytes.
    pub(super) figures: Arc<Figures>,
    /// The record of the request's progress. The body records that hyper has taken the last piece.
    pub(super) marks: RequestMarks,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(piece) = self.pieces.next() else { return Poll::Ready(None) };
        self.metrics.bytes.increment(piece.len() as u64);
        self.figures.sent(piece.len() as u64);
        if self.pieces.left == 0 {
            self.marks.body_ended();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.pieces.left)
    }
}

/// Compresses a request body with gzip at level 1, the fastest.
pub(super) fn gzip(mut pieces: Pieces) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    pieces.try_for_each(|piece| encoder.write_all(&piece))?;
    encoder.finish()
}

/// Compresses a request body with zstd at level 1, the fastest of the usual levels.
pub(super) fn zstd(mut pieces: Pieces) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
    pieces.try_for_each(|piece| encoder.write_all(&piece))?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_sent_whole_in_few_pieces() {
        let text = |pieces: Pieces| {
            let length = pieces.left;
            let pieces: Vec<Bytes> = pieces.collect();
            let text = pieces.concat();
            assert_eq!(text.len() as u64, length);
            assert!(pieces.iter().all(|piece| !piece.is_empty()), "{pieces:?}");
            // Pieces are on average at least half full, except for the last one.
            assert!(pieces.len() <= text.len() * 2 / COPIED_BYTES + 1, "{}", pieces.len());
            String::from_utf8(text).unwrap()
        };
        let line = |length: usize| "x".repeat(length - 1) + "\n";
        let sizes = [
            vec![4, 4],
            vec![COPIED_BYTES],
            vec![COPIED_BYTES - 1, 2, COPIED_BYTES + 1],
            vec![PASSED_ON_MIN, 3, PASSED_ON_MIN - 1, 5 * PIECE_BYTES, 1],
            vec![800; 5000],
        ];
        for sizes in sizes {
            let lines: Vec<String> = sizes.iter().map(|length| line(*length)).collect();
            let stored: Vec<Bytes> = lines.iter().cloned().map(Bytes::from).collect();
            let joined = lines.concat();
            assert!(text(Pieces::of(stored.clone())) == joined, "{sizes:?}");
            let joined = joined.strip_suffix('\n').unwrap();
            let list = format!("[{}]", joined.replace('\n', ","));
            assert!(text(Pieces::list(b"[", stored, b"]")) == list, "{sizes:?}");
        }
        assert_eq!(
            text(Pieces::list(b"[", vec![Bytes::from_static(b"{1}\n{2}\n")], b"]")),
            "[{1},{2}]"
        );
        assert_eq!(text(Pieces::list(b"[", Vec::new(), b"]")), "[]");
        // Parts of lists, as they were received: one is cut in the middle, one is whole.
        let large = "x".repeat(PASSED_ON_MIN);
        let stored = ["{1},{2},", "{3}\n{4}\n", &format!("{{5}},{large}]"), "{6}]", "{7}\n"];
        let stored = stored.map(|piece| Bytes::copy_from_slice(piece.as_bytes())).to_vec();
        let list: Vec<Bytes> = Pieces::list(b"[", stored, b"]").collect();
        let list = String::from_utf8(list.concat()).unwrap();
        assert!(list == format!("[{{1}},{{2}},{{3}},{{4}},{{5}},{large},{{6}},{{7}}]"), "{list}");
        // The head and the tail are pieces of their own, because the list is not copied.
        let lone = Pieces::list(b"[", vec![Bytes::from(format!("{large},"))], b"]}");
        let lone: Vec<Bytes> = lone.collect();
        assert!(lone.len() == 3 && lone.concat() == format!("[{large}]}}").as_bytes());
    }
}
