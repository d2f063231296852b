//! `type = "lumberjack"`: the protocol of Elastic Beats, version 2, as Logstash's `beats` input
//! speaks it.
//!
//! Numbers are big-endian and have 32 bits. The relay sends windows, one after the other:
//!
//! | frame | bytes |
//! |---|---|
//! | window | `2W`, the number of events that follow |
//! | compressed | `2C`, length, that many bytes of a zlib stream: the JSON frames of the window; without compression, the JSON frames follow directly |
//! | JSON | `2J`, number of the event in its window from 1, length, that many bytes: the document |
//!
//! The consumer answers with `2A` and a number, which acknowledges the events of the oldest window
//! up to that number. The number 0 acknowledges no event: Logstash sends it every few seconds while
//! its pipeline is blocked, so that its clients wait.

use std::collections::VecDeque;
use std::io;
use std::io::{BufWriter, Write};

use bytes::{Buf, BytesMut};
use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::setup::{IntoConnector, Setup};
use super::transport::acknowledged;
use super::transport::acknowledged::{Answers, Encoding, Frames, Protocol};
use config::{OutputSettings, Stream, Target};
use config_table::table::Table;
use delivery::link::Verdict;
use delivery::prepared::Connector;
use queue::{Batch, lines};

/// The maximum bytes of one event. Logstash stores the length of an event in a signed integer of 32
/// bits.
const EVENT_BYTES_MAX: usize = i32::MAX as usize;

/// The minimum bytes of a batch that is compressed on another thread. The compression of a smaller
/// batch takes less time than the change of threads.
const LARGE: u64 = 64 * 1024;

/// The size of the buffer in front of the compressor, in bytes. Without the buffer, the compressor
/// would get the four parts of each JSON frame separately, and the compression would take 50 % more
/// time.
const COMPRESSED_BYTES: usize = 64 * 1024;

const ACK_BYTES: usize = 6;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// The compression level of zlib, from 0 to 9. With 0, events are not compressed.
    pub compression_level: u32,
    /// The maximum number of sent events without an acknowledgement, at least 1.
    pub window: u64,
    pub stream: Stream,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "lumberjack";
    const SAMPLE: &'static str = "tls = {}";
    const MEMORY: u64 = 4 << 20;

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let level = t.count("compression_level", 1, 0..=9, "zlib level; 0: no compression");
        let meaning = "maximum unacknowledged events; if the connection breaks, they are sent \
                       again";
        let window = Stream::read_window(t, 2048, meaning);
        let stream = Stream::read(t);
        let compression_level = u32::try_from(level).unwrap_or_default();
        Some(Self { compression_level, window, stream: stream? })
    }

    fn targets(&self) -> Vec<Target> {
        self.stream.targets()
    }

    fn carries_checkpoints(&self) -> bool {
        true
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        let level = self.compression_level;
        let make = move || Lumberjack::new(level);
        let dialer = setup.dialer(&self.stream);
        Box::new(acknowledged::AcknowledgedConnector::new(dialer, self.window, make))
    }
}

/// The state of the Lumberjack protocol on one connection.
pub(super) struct Lumberjack {
    level: u32,
    /// The windows that are not completely acknowledged, the oldest first.
    windows: VecDeque<Window>,
}

/// A window that is not completely acknowledged: the events of one batch, numbered from 1.
struct Window {
    events: u64,
    /// The number of events at the front of the window that the consumer has acknowledged.
    acknowledged: u64,
}

impl Lumberjack {
    pub(crate) fn new(level: u32) -> Self {
        Self { level, windows: VecDeque::new() }
    }
}

impl Protocol for Lumberjack {
    fn encode(&self, batch: Batch) -> Encoding {
        let level = self.level;
        if level == 0 || batch.bytes < LARGE {
            return Box::pin(std::future::ready(window(&batch, level).map_err(cannot)));
        }
        let compressing = tokio::task::spawn_blocking(move || window(&batch, level));
        Box::pin(async move { compressing.await.map_err(cannot)?.map_err(cannot) })
    }

    fn sent(&mut self, events: u64) {
        self.windows.push_back(Window { events, acknowledged: 0 });
    }

    fn read(&mut self, unread: &mut BytesMut, answers: &mut Answers) -> Result<(), String> {
        while let Some((ack, _)) = unread.split_first_chunk::<ACK_BYTES>() {
            let [b'2', b'A', number @ ..] = *ack else { break };
            let number = u64::from(u32::from_be_bytes(number));
            answers.alive = true;
            unread.advance(ACK_BYTES);
            let awaited = self.windows.front().map_or(0, |window| window.events);
            if number > awaited {
                return Err(format!(
                    "acknowledges event {number}, but the window has only {awaited}"
                ));
            }
            if let Some(window) = self.windows.front_mut() {
                answers.progress |= number > window.acknowledged;
                answers.acknowledged += number.saturating_sub(window.acknowledged);
                window.acknowledged = number.max(window.acknowledged);
            }
            self.windows.pop_front_if(|window| window.acknowledged == window.events);
        }
        if !unread.iter().zip(b"2A").all(|(byte, wanted)| byte == wanted) {
            let said = &unread[..unread.len().min(ACK_BYTES)];
            return Err(format!("responds with \"{}\" instead of an ACK", said.escape_ascii()));
        }
        Ok(())
    }

    fn close(&self) -> Vec<u8> {
        Vec::new()
    }
}

fn cannot(error: impl std::fmt::Display) -> String {
    format!("cannot compress: {error}")
}

/// Encodes a batch as one window. With `level` 0, the events are not compressed.
fn window(batch: &Batch, level: u32) -> io::Result<Frames> {
    let mut frames = Frames::default();
    let capacity = if level == 0 { batch.bytes + 10 * batch.events } else { batch.bytes / 4 };
    let mut out = Vec::with_capacity(usize::try_from(capacity).unwrap_or_default() + 12);
    // The number of events is filled in at the end, because some events may be left out.
    out.extend_from_slice(b"2W\0\0\0\0");
    let events = if level == 0 {
        json(batch, &mut out, &mut frames)?
    } else {
        out.extend_from_slice(b"2C\0\0\0\0");
        let encoder = ZlibEncoder::new(out, Compression::new(level));
        let mut encoder = BufWriter::with_capacity(COMPRESSED_BYTES, encoder);
        let events = json(batch, &mut encoder, &mut frames)?;
        out = encoder.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?;
        let length = u32::try_from(out.len() - 12).map_err(io::Error::other)?;
        out[8..12].copy_from_slice(&length.to_be_bytes());
        events
    };
    out[2..6].copy_from_slice(&events.to_be_bytes());
    frames.bytes = out.into();
    Ok(frames)
}

/// Writes each event of a batch to `out` as a JSON frame. Leaves out events of more than
/// [`EVENT_BYTES_MAX`], and records them in `frames` as too long. Returns the number of written
/// events.
fn json(batch: &Batch, out: &mut impl Write, frames: &mut Frames) -> io::Result<u32> {
    let mut number = 0_u32;
    for (event, position) in lines(&batch.pieces).zip(batch.positions()) {
        let Some(length) =
            u32::try_from(event.len()).ok().filter(|_| event.len() <= EVENT_BYTES_MAX)
        else {
            frames.parts.add(position, Verdict::TooLong);
            continue;
        };
        number += 1;
        frames.parts.add(position, Verdict::Delivered);
        out.write_all(b"2J")?;
        out.write_all(&number.to_be_bytes())?;
        out.write_all(&length.to_be_bytes())?;
        out.write_all(event)?;
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::ZlibDecoder;

    use super::*;
    use crate::tests::{answered, batch};

    /// Two events: the second has 9 characters and 10 bytes.
    const TWO: [&str; 2] = [r#"{"a":1}"#, r#"{"b":"ä"}"#];

    /// The window of these two events, written by hand from the protocol's description.
    const WINDOW_OF_TWO: &[u8] = b"2W\x00\x00\x00\x02\
        2J\x00\x00\x00\x01\x00\x00\x00\x07{\"a\":1}\
        2J\x00\x00\x00\x02\x00\x00\x00\x0a{\"b\":\"\xc3\xa4\"}";

    #[test]
    fn a_window_is_these_bytes_and_a_compressed_one_holds_them_in_one_frame_of_zlib() {
        assert_eq!(window(&batch(0, &TWO), 0).unwrap().bytes, WINDOW_OF_TWO);
        for level in 1..=9 {
            let bytes = window(&batch(0, &TWO), level).unwrap().bytes;
            // The number of events is not compressed.
            assert_eq!(bytes[..8], *b"2W\x00\x00\x00\x022C");
            let length = u32::from_be_bytes(bytes[8..12].try_into().unwrap());
            assert_eq!(usize::try_from(length).unwrap(), bytes.len() - 12);
            // CMF (RFC 1950 §2.2): deflate with a window of 32 KiB; with FLG a multiple of 31.
            assert_eq!(bytes[12], 0x78);
            assert_eq!(u16::from_be_bytes([bytes[12], bytes[13]]) % 31, 0);
            let mut inside = Vec::new();
            ZlibDecoder::new(&bytes[12..]).read_to_end(&mut inside).unwrap();
            assert_eq!(inside, WINDOW_OF_TWO[6..]);
        }
    }

    #[tokio::test]
    async fn a_large_window_is_compressed_on_another_thread_and_the_same() {
        let event = format!("{{\"a\":\"{}\"}}", "x".repeat(100_000));
        let batch = batch(0, &[&event, &event]);
        let encoded = Lumberjack::new(3).encode(batch.clone()).await.unwrap();
        assert_eq!(encoded.bytes, window(&batch, 3).unwrap().bytes);
    }

    fn ack(number: u32) -> Vec<u8> {
        [b"2A", &number.to_be_bytes()[..]].concat()
    }

    #[test]
    fn answers_count_what_is_new_wherever_they_are_cut() {
        let said = [ack(0), ack(2), ack(0), ack(2), ack(1), ack(5), ack(3)].concat();
        for step in 1..=said.len() {
            let mut protocol = Lumberjack::new(3);
            protocol.sent(5);
            protocol.sent(4);
            assert_eq!(answered(&mut protocol, &said, step), Ok((5 + 3, true, false)), "{step}");
            assert_eq!(answered(&mut protocol, &ack(4), step), Ok((1, true, false)));
            assert!(protocol.windows.is_empty());
        }
        // An answer with the number 0 is a sign of life, even if nothing was sent. The beginning of
        // an answer is not a sign of life.
        let mut protocol = Lumberjack::new(3);
        for (said, wanted) in [(&ack(0)[..], (0, true, false)), (&ack(0)[..5], (0, false, false))] {
            assert_eq!(answered(&mut protocol, said, 6), Ok(wanted));
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error_as_soon_as_it_shows() {
        for wrong in [&b"H"[..], b"1A\0\0\0\x01", b"2J", b"2A\0\0\0\x06", b"2A\xff\xff\xff\xff"] {
            let mut protocol = Lumberjack::new(3);
            protocol.sent(5);
            let result = answered(&mut protocol, wrong, wrong.len());
            assert!(result.is_err(), "{wrong:?}: {result:?}");
        }
        let mut protocol = Lumberjack::new(3);
        assert!(answered(&mut protocol, &ack(1), 6).is_err(), "nothing was sent");
        let wrong = answered(&mut protocol, b"HTTP/1.1 400 Bad Request", 24).unwrap_err();
        assert_eq!(wrong, "responds with \"HTTP/1\" instead of an ACK");
    }
}
