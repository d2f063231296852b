//! The trait that turns batches into bytes, for protocols without acknowledgements.

use bytes::Bytes;

use delivery::link::Parts;
use queue::Batch;

/// Turns batches into the bytes of one protocol.
pub trait Encode: Send + 'static {
    /// The maximum bytes of lines in a new batch; only a single event may be larger. A protocol
    /// that copies the lines may set a low maximum: the copy of a small batch takes little memory,
    /// and is still in the CPU's cache when it is written.
    const BATCH_BYTES: u64 = u64::MAX;

    /// `true` if the protocol or its config can limit the length of an event. Each batch then lists
    /// the positions of its events.
    const HAS_LIMIT: bool = false;

    /// Returns the batch as bytes of the protocol.
    ///
    /// # Errors
    ///
    /// An event can't be sent, and the config does not allow the relay to give it up. The text says
    /// why the event can't be sent.
    fn encode(&self, batch: Batch) -> Result<Encoded, String>;
}

/// A batch as bytes of a protocol.
pub struct Encoded {
    /// The bytes for the connection, in order. Empty if no event of the batch can be sent.
    pub pieces: Vec<Bytes>,
    /// The events in `pieces`, and the events that are too long. May be empty if all events of the
    /// batch are in `pieces`.
    pub parts: Parts,
}
