//! Helpers that the tests of several protocols share.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::syslog::Rfc5424;
use super::transport::acknowledged::{Answers, Protocol};
use config::Rejected;
use queue::{Acceptance, Batch, Claim};

/// Returns the config of an output with the name `o` and the lines `keys`.
pub(crate) fn output(keys: &str) -> config::Output {
    let text = format!("[[listener]]\naddress = '127.0.0.1:0'\n[[output]]\nname = 'o'\n{keys}\n");
    let read = config::read(&text, super::TYPES);
    read.config.unwrap_or_else(|| panic!("{text}")).outputs.remove(0)
}

/// Returns the encoder of messages such as `<134>1 TIME host app - - - EVENT`. A message may have
/// at most `max_message_bytes` bytes.
pub(super) fn rfc5424(max_message_bytes: u64, rejected: Rejected) -> Rfc5424 {
    let (hostname, app_name) = ("host".into(), "app".into());
    let config = config::Messages { priority: 134, hostname, app_name, max_message_bytes };
    Rfc5424::new(&config, rejected, &BTreeMap::new())
}

/// Returns a batch that begins at the position `start` and has one piece for each event.
pub(crate) fn batch(start: u64, events: &[impl AsRef<str>]) -> Batch {
    let piece = |event: &_| Bytes::from(format!("{}\n", AsRef::<str>::as_ref(event)));
    let pieces: Vec<_> = events.iter().map(piece).collect();
    let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
    let events = events.len() as u64;
    let claim = Claim::of(start, start + events);
    let acceptance =
        |at| Acceptance { first: claim.start + at, events: 1, age: Duration::ZERO, received: 0 };
    let acceptances = (0..events).map(acceptance).collect();
    Batch { events, bytes, pieces, acceptances, ..Batch::of(claim) }
}

/// Reads the answers `said`, which arrive in pieces of `step` bytes. Returns the number of events
/// that the answers acknowledge, whether any answer is a sign of life, and whether the consumer
/// announces the end of the connection.
pub(super) fn answered(
    protocol: &mut impl Protocol,
    said: &[u8],
    step: usize,
) -> Result<(u64, bool, bool), String> {
    let (mut unread, mut answers) = (BytesMut::new(), Answers::default());
    for piece in said.chunks(step) {
        unread.extend_from_slice(piece);
        protocol.read(&mut unread, &mut answers)?;
    }
    Ok((answers.acknowledged, answers.alive, answers.closing))
}
