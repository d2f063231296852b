//! One line of a batch.

use bytes::Bytes;

/// Returns a copy of one event, with a line break at its end. Because it is a copy, the memory of
/// the event's batch can be freed.
pub(crate) fn line(event: &[u8]) -> Bytes {
    Bytes::from([event, b"\n"].concat())
}
