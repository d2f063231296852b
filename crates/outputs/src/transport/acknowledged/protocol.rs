//! The contract between an acknowledged session and the protocol that is spoken on it: `lumberjack`
//! or `relp`.

use std::future::Future;
use std::io;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};

use super::super::connection::Wire;
use delivery::link::Parts;
use queue::Batch;

/// The protocol that is spoken on one connection. An implementation turns events into bytes, and
/// the consumer's answers into numbers of acknowledged events. It reads and writes no socket,
/// except in [`Protocol::open`].
pub(crate) trait Protocol: Send + 'static {
    /// Greets the consumer before the first event is sent. The default does nothing. Bytes that are
    /// in `unread` afterwards are the first bytes of the answers to events.
    fn open(
        &mut self,
        wire: &mut Wire,
        unread: &mut BytesMut,
    ) -> impl Future<Output = Result<(), Trouble>> + Send {
        let _ = (wire, unread);
        std::future::ready(Ok(()))
    }

    /// Returns a future that encodes a batch as frames of the protocol. The link encodes one batch
    /// at a time. If the frames hold any event, the link calls [`Protocol::sent`] before it encodes
    /// the next batch.
    fn encode(&self, batch: Batch) -> Encoding;

    /// Notes that the frames of the last encoded batch, with this number of events, are being sent
    /// now.
    fn sent(&mut self, events: u64);

    /// Takes all complete answers off the front of `unread` and adds them to `answers`. The
    /// beginning of an incomplete answer stays in `unread`.
    ///
    /// # Errors
    ///
    /// The consumer violates the protocol; the text says how. Answers before the violation are in
    /// `answers` and count. An incomplete answer that is too long to become a valid one is a
    /// violation too.
    fn read(&mut self, unread: &mut BytesMut, answers: &mut Answers) -> Result<(), String>;

    /// Returns the bytes that are written before the connection ends in order; empty if the
    /// protocol has none.
    fn close(&self) -> Vec<u8>;
}

/// The future that encodes a batch as frames. It fails, with a text, if the batch can't be
/// compressed, or if an event can't be sent and may not be given up.
pub(crate) type Encoding = Pin<Box<dyn Future<Output = Result<Frames, String>> + Send>>;

/// A batch that is encoded as frames of the protocol.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Frames {
    /// All frames, one after the other.
    pub bytes: Bytes,
    /// The events that are in the frames, and those that are too long and are not.
    pub parts: Parts,
}

impl Frames {
    /// Returns the number of events in the frames.
    pub(super) fn events(&self) -> u64 {
        self.parts.delivered()
    }
}

/// The consumer's answers from one call of [`Protocol::read`].
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answers {
    /// The number of events that the answers acknowledge: the oldest ones that were not
    /// acknowledged before.
    pub acknowledged: u64,
    /// `true` if an answer shows that the consumer is at work, even if it acknowledges no event.
    pub alive: bool,
    /// `true` if the consumer has announced that it will end the connection.
    pub closing: bool,
}

/// The reason why a connection can't be used, or can't be used any longer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Reading or writing failed.
    Io(io::Error),
    /// The consumer violates the protocol, in the way that the text says.
    Protocol(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
