//! Lines of a batch, in pieces: buffers of whole lines.

use bytes::Bytes;

use queue::{Origin, Position};

/// An unchanged run of lines with fewer bytes than this is copied into one buffer with the changed
/// lines next to it, unless the run is a whole piece. Otherwise, the vectored write would get many
/// short buffers, and would be slow.
const PASSED_ON_MIN: usize = 32 * 1024;

/// Copied lines become a piece of their own when they have this many bytes. One buffer for the
/// copies of a whole batch would be copied itself each time that it has to grow.
const COPIED_BYTES: usize = 256 * 1024;

/// Returns a copy of one event, with a line break at its end. Because it is a copy, the memory of
/// the event's batch can be freed.
pub fn line(event: &[u8]) -> Bytes {
    Bytes::from([event, b"\n"].concat())
}

/// Returns three values for each line of a piece: its position, the index of its first byte in the
/// piece, and the index after its line break.
pub fn events<'a>(
    piece: &'a [u8],
    origin: &Origin,
) -> impl Iterator<Item = (Position, usize, usize)> + use<'a> {
    let ends = memchr::memchr_iter(b'\n', piece).map(|end| end + 1);
    let (mut next, mut start) = (origin.first, 0);
    ends.map(move |end| {
        let line = (next, std::mem::replace(&mut start, end), end);
        next = next.next();
        line
    })
}

/// The lines of one batch that have passed the filter, in pieces. Long unchanged runs of lines, and
/// pieces without any change, stay in their buffers. Other lines are copied into new buffers.
#[derive(Default)]
pub struct Lines {
    pieces: Vec<Bytes>,
    /// The copied lines that are not in `pieces` yet.
    copied: Vec<u8>,
    events: u64,
    /// The positions and times of the lines. Lines of the same times whose positions follow each
    /// other share an entry.
    origins: Vec<Origin>,
}

impl Lines {
    /// Adds the bytes `start..end` of a piece, which must be whole lines, without a change.
    pub fn pass(&mut self, piece: &Bytes, start: usize, end: usize) {
        let run = start..end;
        if run.len() < PASSED_ON_MIN && run.len() < piece.len() {
            self.copy(piece.get(run).unwrap_or_default());
        } else if !run.is_empty() {
            self.seal();
            self.pieces.push(piece.slice(run));
        }
    }

    /// Adds a changed event, and a line break after it.
    pub fn add(&mut self, event: &[u8]) {
        self.copied.extend_from_slice(event);
        self.copy(b"\n");
    }

    /// Adds a copy of the bytes up to the end of a line.
    fn copy(&mut self, bytes: &[u8]) {
        self.copied.extend_from_slice(bytes);
        if self.copied.len() >= COPIED_BYTES {
            self.seal();
            // A batch that has filled a buffer will fill the next one too.
            self.copied.reserve(COPIED_BYTES + COPIED_BYTES / 8);
        }
    }

    /// Counts the next line. Its position is `position`, and its times are those of the origin
    /// `of`.
    pub fn count(&mut self, position: Position, of: &Origin) {
        self.events += 1;
        match self.origins.last_mut() {
            Some(last)
                if last.first + last.events == position
                    && (last.age, last.received) == (of.age, of.received) =>
            {
                last.events += 1;
            }
            _ => self.origins.push(Origin { first: position, events: 1, ..*of }),
        }
    }

    /// Adds the copied lines to `pieces` as one piece.
    fn seal(&mut self) {
        if !self.copied.is_empty() {
            self.pieces.push(Bytes::from(std::mem::take(&mut self.copied)));
        }
    }

    /// Returns the number of events, the pieces that hold their lines, and the lines' origins.
    pub fn end(mut self) -> (u64, Vec<Bytes>, Vec<Origin>) {
        self.seal();
        (self.events, self.pieces, self.origins)
    }
}
