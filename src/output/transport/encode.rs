//! How a protocol that only writes (no acknowledgements of its own) turns a batch into bytes.

use bytes::Bytes;

use crate::queue::Batch;

/// Turns batches into the bytes of one protocol.
pub trait Encode: Send + 'static {
    /// Encodes a batch.
    ///
    /// # Errors
    ///
    /// An event can't be sent and may not be dropped. The text says what is wrong with the event.
    fn encode(&self, batch: Batch) -> Result<Encoded, String>;
}

/// A batch as bytes.
pub struct Encoded {
    /// The bytes to write; empty if every event was rejected.
    pub pieces: Vec<Bytes>,
    /// Events that can't be sent and are given up: a line each, ended by `\n`.
    pub rejected: Vec<Bytes>,
}
