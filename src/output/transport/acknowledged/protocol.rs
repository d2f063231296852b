//! The contract between an acknowledged session and the protocol that is spoken on it: `lumberjack`
//! or `relp`.

use std::future::Future;
use std::io;
use std::pin::Pin;

use bytes::Bytes;
use bytes::BytesMut;

use super::super::connection::Wire;
use crate::delivery::lines::line;
use crate::queue::Batch;

/// The protocol that one connection speaks. It turns events into bytes and answers into counts, and
/// reads and writes no socket, except in [`Protocol::open`].
pub(in crate::output) trait Protocol: Send + 'static {
    /// Does the exchange with the consumer that comes before the first event. Bytes that are left
    /// in `unread` afterwards belong to answers to events.
    fn open(
        &mut self,
        wire: &mut Wire,
        unread: &mut BytesMut,
    ) -> impl Future<Output = Result<(), Trouble>> + Send {
        let _ = (wire, unread);
        std::future::ready(Ok(()))
    }

    /// Makes frames of a batch. The link encodes one batch at a time, and calls
    /// [`Protocol::sent`] before it encodes the next, if the frames hold any event.
    fn encode(&self, batch: Batch) -> Encoding;

    /// Notes that the frames that were made last, which hold `events` events, are being sent now.
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

    /// Returns the bytes to write before the connection ends in order.
    fn close(&self) -> Vec<u8>;
}

/// The frames of a batch, when they are ready. An error says which event can't be sent although it
/// may not be given up.
pub(in crate::output) type Encoding = Pin<Box<dyn Future<Output = Result<Frames, String>> + Send>>;

/// A batch in the form in which it is sent.
#[derive(Debug, Default, PartialEq)]
pub(in crate::output) struct Frames {
    /// The bytes to write.
    pub(in crate::output) bytes: Bytes,
    /// The events of the batch in order, as runs: the number of events, and whether these events
    /// are in the frames.
    pub(super) runs: Vec<(u64, bool)>,
    /// The events that are not in the frames, a line each.
    pub(super) rejected: Vec<Bytes>,
}

impl Frames {
    /// Notes that the next event of the batch is in the frames.
    pub(in crate::output) fn with(&mut self) {
        self.push(true);
    }

    /// Notes that the next event of the batch can't be sent and is given up.
    pub(in crate::output) fn without(&mut self, event: &[u8]) {
        self.rejected.push(line(event));
        self.push(false);
    }

    fn push(&mut self, sent: bool) {
        match self.runs.last_mut() {
            Some((events, same)) if *same == sent => *events += 1,
            _ => self.runs.push((1, sent)),
        }
    }

    /// The number of events in the frames.
    pub(super) fn events(&self) -> u64 {
        self.runs.iter().filter(|(_, sent)| *sent).map(|(events, _)| events).sum()
    }
}

/// The consumer's answers from one call of [`Protocol::read`].
#[derive(Debug, Default, PartialEq)]
pub(in crate::output) struct Answers {
    /// The number of events that the answers acknowledge, in the order of sending.
    pub(in crate::output) acknowledged: u64,
    /// `true` if the consumer has shown that it is still working on the events that were sent.
    pub(in crate::output) alive: bool,
    /// `true` if the consumer has announced that it will end the connection.
    pub(in crate::output) closing: bool,
}

/// Why a connection can't be used, or not any longer.
#[derive(Debug)]
pub(in crate::output) enum Trouble {
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
