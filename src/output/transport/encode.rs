//! The trait by which a protocol without acknowledgements turns batches into bytes.

use bytes::Bytes;

use crate::queue::Batch;

/// Turns batches into the bytes of one protocol.
pub trait Encode: Send + 'static {
    /// Encodes a batch.
    ///
    /// # Errors
    ///
    /// An event can't be sent and may not be given up. The text says what is wrong with the event.
    fn encode(&self, batch: Batch) -> Result<Encoded, String>;
}

/// A batch in the form of bytes of the protocol.
pub struct Encoded {
    /// The bytes to write, in order; empty if every event is rejected.
    pub pieces: Vec<Bytes>,
    /// The events that can't be sent and are given up: a line each, ended by `\n`.
    pub rejected: Vec<Bytes>,
}
