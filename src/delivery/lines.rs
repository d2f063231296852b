//! The lines of a batch. A batch is stored as JSON lines, each ended by `\n`.

use bytes::Bytes;

/// The events of a batch, each without its line break.
pub(crate) fn lines(pieces: &[Bytes]) -> impl Iterator<Item = &[u8]> {
    pieces.iter().flat_map(|piece| {
        let mut start = 0;
        memchr::memchr_iter(b'\n', piece)
            .map(move |end| &piece[std::mem::replace(&mut start, end + 1)..end])
    })
}

/// A copy of one event, ended by a line break. The copy lets the memory of its batch be freed.
pub(crate) fn line(event: &[u8]) -> Bytes {
    Bytes::from([event, b"\n"].concat())
}
