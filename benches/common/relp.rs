//! A consumer that speaks RELP, and answers each complete command except `close` with 200.

#![allow(
    clippy::panic_in_result_fn,
    reason = "an error is the end of the connection, a panic a relay that breaks the protocol"
)]

use std::io;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BUFFER, skip};

/// The answer to `open`, in the form that rsyslog uses.
const OFFERS: &str = "200 OK\nrelp_version=0\nrelp_software=sink\ncommands=syslog";

/// The most bytes of a number or a command's name, with the byte after it.
const WORD_MAX: u64 = 32;

/// Reads commands until the connection ends, and counts the messages in `arrived`. Answers are
/// written together, before the next read, so that the consumer is as fast as it can be.
pub(super) fn serve(stream: impl Read + Write, arrived: &AtomicU64) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    let mut answers = Vec::new();
    let mut messages = 0;
    for awaited in 1.. {
        if stream.buffer().is_empty() {
            arrived.fetch_add(std::mem::take(&mut messages), Ordering::Relaxed);
            stream.get_mut().write_all(&answers)?;
            stream.get_mut().flush()?;
            answers.clear();
        }
        let number: u64 = word(&mut stream, b' ')?.parse().expect("a number");
        assert_eq!(number, awaited, "commands are numbered from 1");
        let command = word(&mut stream, b' ')?;
        if command == "close" {
            return Ok(());
        }
        let length: u64 = word(&mut stream, b' ')?.parse().expect("a length");
        skip(&mut stream, length)?;
        let mut end = [0];
        stream.read_exact(&mut end)?;
        assert_eq!(end, *b"\n", "a frame ends with a line feed");
        let answer = match command.as_str() {
            "open" => OFFERS,
            "syslog" => "200 OK",
            other => panic!("a command {other:?}"),
        };
        messages += u64::from(command == "syslog");
        writeln!(answers, "{number} rsp {} {answer}", answer.len())?;
    }
    Ok(())
}

/// Reads up to the byte `end`, and returns the text before it.
fn word(stream: &mut impl BufRead, end: u8) -> io::Result<String> {
    let mut word = Vec::new();
    stream.take(WORD_MAX).read_until(end, &mut word)?;
    if word.pop() != Some(end) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8(word).expect("letters and digits"))
}
