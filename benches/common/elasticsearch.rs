//! A consumer that speaks Elasticsearch's bulk API, and reports each document as stored.

#![allow(
    clippy::panic_in_result_fn,
    reason = "an error is the end of the connection, a panic a relay that breaks the protocol"
)]

use std::io;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BUFFER, content_length, read_head};

/// The bytes of the answer before and after its items.
const BEGINNING: &[u8] = br#"{"errors":false,"items":["#;
const END: &[u8] = b"]}";

/// An item of the answer, and the comma before the next one.
const ITEM: &[u8] = br#"{"create":{"status":201}},"#;

/// Answers requests until the connection ends, and counts their documents in `arrived`. A document
/// is two lines of the body, so the consumer only counts line feeds. The answer has an item for
/// each document, in the form that the relay's `filter_path` asks for.
pub(super) fn serve(stream: impl Read + Write, arrived: &AtomicU64) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(BUFFER, stream);
    let (mut head, mut answer) = (Vec::new(), Vec::new());
    loop {
        if !read_head(&mut stream, &mut head)? {
            return Ok(());
        }
        assert!(head.starts_with(b"POST /_bulk?"), "a request of the bulk API");
        let documents = line_feeds(&mut stream, content_length(&head))? / 2;
        arrived.fetch_add(documents as u64, Ordering::Relaxed);
        let items = ITEM.repeat(documents);
        let items = items.strip_suffix(b",").unwrap_or(&items);
        answer.clear();
        let length = BEGINNING.len() + items.len() + END.len();
        write!(answer, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")?;
        write!(answer, "Content-Length: {length}\r\n\r\n")?;
        answer.extend_from_slice(BEGINNING);
        answer.extend_from_slice(items);
        answer.extend_from_slice(END);
        stream.get_mut().write_all(&answer)?;
        stream.get_mut().flush()?;
    }
}

/// Reads this many bytes, and returns how many of them are line feeds.
fn line_feeds<S: Read>(stream: &mut BufReader<S>, mut bytes: usize) -> io::Result<usize> {
    let mut found = 0;
    while bytes > 0 {
        let available = stream.fill_buf()?;
        let read = available.len().min(bytes);
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        found += memchr::memchr_iter(b'\n', &available[..read]).count();
        stream.consume(read);
        bytes -= read;
    }
    Ok(found)
}
