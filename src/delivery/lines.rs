//! The lines of a batch. A batch is stored as JSON lines, each ended by `\n`.

use bytes::Bytes;

/// Returns the events of a batch in order, each without its line break. `pieces` are the lines of
/// the batch.
pub(crate) fn lines(pieces: &[Bytes]) -> impl Iterator<Item = &[u8]> {
    pieces.iter().flat_map(|piece| {
        let mut start = 0;
        memchr::memchr_iter(b'\n', piece)
            .map(move |end| &piece[std::mem::replace(&mut start, end + 1)..end])
    })
}

/// Returns a copy of one event, with a line break at its end. Because it is a copy, the memory of
/// the event's batch can be freed.
pub(crate) fn line(event: &[u8]) -> Bytes {
    Bytes::from([event, b"\n"].concat())
}
