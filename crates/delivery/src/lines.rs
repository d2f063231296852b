//! Lines of a batch, in pieces: buffers of whole lines.

use bytes::Bytes;

use queue::{Acceptance, Position, is_list};

/// Shorter runs of unchanged events are copied next to the changed ones, except whole pieces: a
/// vectored write of many short buffers would be slow.
const PASSED_ON_MIN: usize = 32 * 1024;

/// The size of a buffer for copies. One buffer for a whole batch would itself be copied each time
/// that it grows.
const COPIED_BYTES: usize = 256 * 1024;

/// Returns a copy of one event with a line break, so that the memory of its batch can be freed.
pub fn line(event: &[u8]) -> Bytes {
    Bytes::from([event, b"\n"].concat())
}

/// Returns the position of each line of a piece, the offset of the line's first byte, and the
/// offset after the line break.
pub fn events<'a>(
    piece: &'a [u8],
    acceptance: &Acceptance,
) -> impl Iterator<Item = (Position, usize, usize)> + use<'a> {
    let ends = memchr::memchr_iter(b'\n', piece).map(|end| end + 1);
    let (mut next, mut start) = (acceptance.first, 0);
    ends.map(move |end| {
        let line = (next, std::mem::replace(&mut start, end), end);
        next = next.next();
        line
    })
}

/// The events of one batch that have passed the filter. Long unchanged runs and unchanged pieces
/// stay in their buffers; all other events are copied.
#[derive(Default)]
pub struct Lines {
    /// The byte after each copied event: a line break or, for an output that sends lists, a comma.
    behind: u8,
    pieces: Vec<Bytes>,
    copied: Vec<u8>,
    events: u64,
    /// Lines with the same times whose positions follow each other share an entry.
    acceptances: Vec<Acceptance>,
}

impl Lines {
    /// Makes a value without events. `as_list`: copied events become parts of a JSON list.
    pub fn new(as_list: bool) -> Self {
        Self { behind: if as_list { b',' } else { b'\n' }, ..Self::default() }
    }

    /// Adds the bytes `start..end` of a piece: whole events, each with the byte after it. Only an
    /// output that sends lists has pieces that are lists.
    pub fn pass(&mut self, piece: &Bytes, start: usize, end: usize) {
        let run = start..end;
        if run.len() >= PASSED_ON_MIN || run.len() == piece.len() {
            if !run.is_empty() {
                self.seal();
                self.pieces.push(piece.slice(run));
            }
            return;
        }
        let from = self.copied.len();
        self.copied.extend_from_slice(piece.get(run).unwrap_or_default());
        let copy = self.copied.get_mut(from..).unwrap_or_default();
        if self.behind == b',' && !is_list(piece) {
            audit::separate(copy);
        }
        // The last event of a list has `]` after it.
        if let Some(last) = copy.last_mut() {
            *last = self.behind;
        }
        self.seal_if_full();
    }

    /// Adds a changed event, and the byte after it.
    pub fn add(&mut self, event: &[u8]) {
        self.copied.extend_from_slice(event);
        self.copied.push(self.behind);
        self.seal_if_full();
    }

    fn seal_if_full(&mut self) {
        if self.copied.len() >= COPIED_BYTES {
            self.seal();
            // A batch that has filled one buffer probably needs another one: reserve it now.
            self.copied.reserve(COPIED_BYTES + COPIED_BYTES / 8);
        }
    }

    /// Counts the next line, which has `position` and the times of `of`.
    pub fn count(&mut self, position: Position, of: &Acceptance) {
        self.events += 1;
        match self.acceptances.last_mut() {
            Some(last)
                if last.first + last.events == position
                    && (last.age, last.received) == (of.age, of.received) =>
            {
                last.events += 1;
            }
            _ => self.acceptances.push(Acceptance { first: position, events: 1, ..*of }),
        }
    }

    fn seal(&mut self) {
        if !self.copied.is_empty() {
            self.pieces.push(Bytes::from(std::mem::take(&mut self.copied)));
        }
    }

    /// Returns the number of events, the pieces that hold their lines, and the lines' acceptances.
    pub fn end(mut self) -> (u64, Vec<Bytes>, Vec<Acceptance>) {
        self.seal();
        (self.events, self.pieces, self.acceptances)
    }
}
