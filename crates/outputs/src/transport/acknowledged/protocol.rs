//! The contract between an acknowledged session and its protocol, `lumberjack` or `relp`.

use std::future::Future;
use std::io;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};

use super::super::connection::Wire;
use delivery::link::Parts;
use queue::Batch;

/// The protocol on one connection. An implementation turns events into bytes, and the consumer's
/// answers into numbers of acknowledged events. Only [`Protocol::open`] reads and writes the
/// connection.
pub(crate) trait Protocol: Send + 'static {
    /// Greets the consumer before the first event is sent. Leaves in `unread` the bytes that were
    /// read after the answer: the first bytes of later answers. The default does nothing.
    fn open(
        &mut self,
        wire: &mut Wire,
        unread: &mut BytesMut,
    ) -> impl Future<Output = Result<(), Trouble>> + Send {
        let _ = (wire, unread);
        std::future::ready(Ok(()))
    }

    /// Returns a future that encodes a batch as frames of the protocol. The link encodes one batch
    /// at a time. If the frames have an event, the link calls [`Protocol::sent`] before it encodes
    /// the next batch.
    fn encode(&self, batch: Batch) -> Encoding;

    /// Records that the link begins to write the frames of the last encoded batch, which have this
    /// number of events.
    fn sent(&mut self, events: u64);

    /// Removes all complete answers from the front of `unread`, and adds their meaning to
    /// `answers`. The beginning of an incomplete answer stays in `unread`.
    ///
    /// # Errors
    ///
    /// The consumer violates the protocol in the way that the text describes. The answers before
    /// the violation are in `answers`, and are valid. An incomplete answer that is too long to
    /// become a valid one is also a violation.
    fn read(&mut self, unread: &mut BytesMut, answers: &mut Answers) -> Result<(), String>;

    /// Returns the bytes that are written before the connection ends in order.
    fn close(&self) -> Vec<u8>;
}

/// The future that encodes a batch as frames. The result is an error text if the batch can't be
/// compressed, or if an event can't be sent and may not be given up.
pub(crate) type Encoding = Pin<Box<dyn Future<Output = Result<Frames, String>> + Send>>;

/// A batch that is encoded as frames of the protocol.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Frames {
    /// All frames, concatenated.
    pub bytes: Bytes,
    /// The events in the frames, and the events that are too long.
    pub parts: Parts,
}

impl Frames {
    pub(super) fn events(&self) -> u64 {
        self.parts.delivered()
    }
}

/// The consumer's answers from one call of [`Protocol::read`].
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answers {
    /// The number of newly acknowledged events, which are the oldest unacknowledged ones.
    pub acknowledged: u64,
    /// `true` if the consumer has answered. It may acknowledge no event, and ask for patience.
    pub alive: bool,
    /// `true` if an answer acknowledges an event, even if an earlier one is not acknowledged yet.
    pub progress: bool,
    /// `true` if the consumer has announced the end of the connection.
    pub closing: bool,
}

/// The reason why a connection can't be used any longer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Reading or writing failed.
    Io(io::Error),
    /// The consumer violates the protocol in the way that the text describes.
    Protocol(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
