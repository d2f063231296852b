//! A consumer that speaks version 2 of the lumberjack protocol, and acknowledges each window when
//! all of it has arrived.

#![allow(
    clippy::panic_in_result_fn,
    reason = "an error is the end of the connection, a panic a relay that breaks the protocol"
)]

use std::io;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BUFFER, skip};

/// Reads windows until the connection ends, and counts their events in `arrived`. A window begins
/// with the number of its events, uncompressed, so nothing needs to be decompressed.
pub(super) fn serve(stream: impl Read + Write, arrived: &AtomicU64) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    loop {
        assert_eq!(kind(&mut stream)?, b'W', "a window begins");
        let events = number(&mut stream)?;
        window(&mut stream, events)?;
        arrived.fetch_add(events.into(), Ordering::Relaxed);
        let mut acknowledgement = *b"2A\0\0\0\0";
        acknowledgement[2..].copy_from_slice(&events.to_be_bytes());
        stream.get_mut().write_all(&acknowledgement)?;
        stream.get_mut().flush()?;
    }
}

/// Reads the frames of a window: a compressed one with all events, or one for each event.
fn window(stream: &mut impl BufRead, events: u32) -> io::Result<()> {
    for event in 1..=events {
        match kind(stream)? {
            b'C' => {
                assert_eq!(event, 1, "a compressed frame is the only one of its window");
                let length = number(stream)?;
                return skip(stream, length.into());
            }
            b'J' => {
                assert_eq!(number(stream)?, event, "events are numbered from 1");
                let length = number(stream)?;
                skip(stream, length.into())?;
            }
            other => panic!("a frame of the kind {:?} in a window", char::from(other)),
        }
    }
    Ok(())
}

/// Reads the first two bytes of a frame, and returns its kind.
fn kind(stream: &mut impl Read) -> io::Result<u8> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    assert_eq!(head[0], b'2', "the version");
    Ok(head[1])
}

fn number(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}
