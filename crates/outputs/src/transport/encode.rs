//! The trait with which protocols without acknowledgements turn batches into bytes.

use bytes::Bytes;

use delivery::link::Parts;
use queue::Batch;

/// Turns batches into the bytes of one protocol.
pub trait Encode: Send + 'static {
    /// The maximum bytes of lines that a batch should have. A protocol that copies the lines wants
    /// small batches, because the copy of a small batch is still in the CPU's cache when it is
    /// written, and takes little memory. A single event may be larger.
    const BATCH_BYTES: u64 = u64::MAX;

    /// `true` if the protocol can't carry events that are too long. Each batch then lists the
    /// positions of its events.
    const HAS_LIMIT: bool = false;

    /// Returns the batch as bytes of the protocol.
    ///
    /// # Errors
    ///
    /// An event can't be sent, and the config does not allow the relay to give it up. The text is
    /// the fault of the event.
    fn encode(&self, batch: Batch) -> Result<Encoded, String>;
}

/// A batch that is encoded as bytes of a protocol.
pub struct Encoded {
    /// The bytes for the connection, in order. Empty if no event of the batch can be sent.
    pub pieces: Vec<Bytes>,
    /// The events in `pieces`, and those that are too long. Empty if all events are in `pieces`.
    pub parts: Parts,
}
