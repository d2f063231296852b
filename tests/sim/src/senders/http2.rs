//! HTTP/2 (RFC 9113), with prior knowledge or after the TLS handshake, as far as a POST needs it.
//! There is one request at a time.

use std::time::Duration;

use super::Actor;
use super::client::{Body, Reply};
use super::socket::Socket;
use crate::pki::Papers;
use crate::truth::Answer;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No dynamic table (1), so that fields are sent literally, and no push (2).
const OUR_SETTINGS: [u8; 12] = [0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0];
/// The largest frame that every peer accepts.
const FRAME_MAX: i64 = 16_384;
const WINDOW: i64 = 65_535;

pub(super) struct Http2 {
    socket: Socket,
    read: Vec<u8>,
    /// The newest stream. Before the first stream, which is 1, this is `u32::MAX`, because adding 2
    /// to it gives 1.
    stream: u32,
    /// `true` after GOAWAY.
    is_leaving: bool,
    /// The peer's windows: of the connection, of a new stream, and of the newest stream.
    window: i64,
    window_first: i64,
    window_stream: i64,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Http2 {
    pub(super) fn connect(actor: &Actor, deadline: Duration) -> Result<Self, Answer> {
        let mut http = Self {
            socket: Socket::connect(actor, Papers::Right, true, deadline)?,
            read: Vec::new(),
            stream: u32::MAX,
            is_leaving: false,
            window: WINDOW,
            window_first: WINDOW,
            window_stream: WINDOW,
        };
        let mut first = PREFACE.to_vec();
        first.extend(frame_of(SETTINGS, 0, 0, &OUR_SETTINGS));
        http.socket.write(&first, deadline)?;
        Ok(http)
    }

    /// Returns `false` if the peer accepts no further stream.
    pub(super) fn is_usable(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read_now(&mut buffer) {
                Ok(size @ 1..) => {
                    self.read.extend_from_slice(buffer.get(..size).unwrap_or_default());
                }
                Err(Answer::TimedOut) => break,
                _ => return false,
            }
        }
        let soon = crate::kernel::now() + Duration::from_secs(1);
        while let Some(frame) = self.taken() {
            if self.heed(&frame, soon).is_err() {
                return false;
            }
        }
        !self.is_leaving
    }

    pub(super) fn post(
        &mut self,
        actor: &Actor,
        body: &Body,
        deadline: Duration,
    ) -> Result<Reply, Answer> {
        self.stream = self.stream.wrapping_add(2);
        self.window_stream = self.window_first;
        let mut answer = Reply { status: 0, retry_after: None, closes: false, body: Vec::new() };
        let head = frame_of(HEADERS, END_HEADERS, self.stream, &fields(actor, body.bytes.len()));
        self.socket.write(&head, deadline)?;
        let mut is_over = false;
        body.write(|piece| self.data(piece, &mut answer, &mut is_over, deadline))?;
        if !is_over {
            let end = frame_of(DATA, END_STREAM, self.stream, &[]);
            self.socket.write(&end, deadline)?;
        }
        while !is_over {
            is_over = self.receive(&mut answer, deadline)?;
        }
        answer.closes = self.is_leaving;
        if answer.status == 0 { Err(Answer::Broken) } else { Ok(answer) }
    }

    /// Writes a piece of the body within the peer's windows, until the response is complete.
    fn data(
        &mut self,
        mut piece: &[u8],
        answer: &mut Reply,
        is_over: &mut bool,
        deadline: Duration,
    ) -> Result<(), Answer> {
        while !piece.is_empty() && !*is_over {
            let room = self.window.min(self.window_stream).min(FRAME_MAX);
            let Ok(room @ 1..) = usize::try_from(room) else {
                *is_over = self.receive(answer, deadline)?;
                continue;
            };
            let (now, rest) = piece.split_at(room.min(piece.len()));
            self.socket.write(&frame_of(DATA, 0, self.stream, now), deadline)?;
            let sent = i64::try_from(now.len()).expect("at most a frame");
            self.window -= sent;
            self.window_stream -= sent;
            piece = rest;
        }
        Ok(())
    }

    /// Reads a frame and applies it. Returns `true` if it ends the response.
    fn receive(&mut self, answer: &mut Reply, deadline: Duration) -> Result<bool, Answer> {
        let frame = self.next(deadline)?;
        match frame.kind {
            GOAWAY => {
                let last = frame.payload.first_chunk().map_or(0, |last| u32::from_be_bytes(*last));
                return if last < self.stream { Err(Answer::Broken) } else { Ok(false) };
            }
            _ if frame.stream != self.stream => return Ok(false),
            // A peer may send the response and then RST_STREAM (NO_ERROR): the response is valid.
            RST_STREAM => return Ok(true),
            HEADERS => fields_of(&frame, answer).ok_or(Answer::Broken)?,
            DATA => answer.body.extend(&frame.payload),
            _ => return Ok(false),
        }
        Ok(frame.flags & END_STREAM != 0 && answer.status >= 200)
    }

    /// Reads a frame, and obeys it if it is about the whole connection.
    fn next(&mut self, deadline: Duration) -> Result<Frame, Answer> {
        let frame = loop {
            if let Some(frame) = self.taken() {
                break frame;
            }
            let mut buffer = [0; 4096];
            match self.socket.read(&mut buffer, deadline)? {
                0 => return Err(Answer::Broken),
                size => self.read.extend_from_slice(buffer.get(..size).unwrap_or_default()),
            }
        };
        self.heed(&frame, deadline)?;
        Ok(frame)
    }

    /// Obeys a frame about the whole connection.
    fn heed(&mut self, frame: &Frame, deadline: Duration) -> Result<(), Answer> {
        match frame.kind {
            GOAWAY => self.is_leaving = true,
            SETTINGS if frame.flags & ACK == 0 => {
                self.settings(&frame.payload);
                self.socket.write(&frame_of(SETTINGS, ACK, 0, &[]), deadline)?;
            }
            PING if frame.flags & ACK == 0 => {
                self.socket.write(&frame_of(PING, ACK, 0, &frame.payload), deadline)?;
            }
            WINDOW_UPDATE => {
                let more = frame.payload.first_chunk().map_or(0, |more| u32::from_be_bytes(*more));
                match frame.stream {
                    0 => self.window += i64::from(more),
                    stream if stream == self.stream => self.window_stream += i64::from(more),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn settings(&mut self, payload: &[u8]) {
        for setting in payload.chunks_exact(6) {
            let [0, 4, value @ ..] = setting else { continue };
            let first = value.first_chunk().map_or(0, |first| u32::from_be_bytes(*first));
            self.window_stream += i64::from(first) - self.window_first;
            self.window_first = i64::from(first);
        }
    }

    /// Takes a whole frame from the bytes that were read.
    fn taken(&mut self) -> Option<Frame> {
        let &[a, b, c, kind, flags, d, e, f, g] = self.read.first_chunk()?;
        let end = 9 + usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        let payload = self.read.get(9..end)?.to_vec();
        self.read.drain(..end);
        let stream = u32::from_be_bytes([d & 0x7f, e, f, g]);
        Some(Frame { kind, flags, stream, payload })
    }
}

fn frame_of(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Returns the header block of a POST. Each field is a literal, without Huffman (RFC 7541 §6.2.2).
fn fields(actor: &Actor, length: usize) -> Vec<u8> {
    let (authority, length) = (actor.target.address().to_string(), length.to_string());
    let token = actor.target.token.as_ref().map(|token| format!("Bearer {token}"));
    let scheme = if actor.target.security.is_some() { "https" } else { "http" };
    let mut fields = vec![
        (":method", "POST"),
        (":scheme", scheme),
        (":path", &actor.target.path),
        (":authority", &authority),
        ("content-type", "application/json"),
        ("content-length", &length),
        ("user-agent", "kube-apiserver-admission"),
    ];
    fields.extend(token.as_deref().map(|token| ("authorization", token)));
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|&size| size < 127).unwrap_or(126));
            block.extend(text.bytes().take(126));
        }
    }
    block
}

/// Reads the status and the Retry-After from a header block. Returns `None` if it is not valid.
fn fields_of(frame: &Frame, answer: &mut Reply) -> Option<()> {
    let mut block = &frame.payload[..];
    if frame.flags & PADDED != 0 {
        let padding = usize::from(*block.split_off_first()?);
        block = block.get(..block.len().checked_sub(padding)?)?;
    }
    if frame.flags & PRIORITY != 0 {
        block = block.get(5..)?;
    }
    while let Some(&first) = block.first() {
        let (name, value) = match first {
            0x80.. => (integer(&mut block, 7)?, None),
            0x40..0x80 => (integer(&mut block, 6)?, Some(())),
            // The size of a table that this client does not keep.
            0x20..0x40 => {
                integer(&mut block, 5)?;
                continue;
            }
            0..0x20 => (integer(&mut block, 4)?, Some(())),
        };
        if value.is_none() {
            const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
            if let Some(status) = name.checked_sub(8).and_then(|place| STATUSES.get(place)) {
                answer.status = *status;
            }
            continue;
        }
        if name == 0 {
            string(&mut block)?;
        }
        let value = string(&mut block)?;
        match name {
            8 => answer.status = u16::try_from(number(&value)?).ok()?,
            53 => answer.retry_after = number(&value).map(Duration::from_secs),
            _ => {}
        }
    }
    Some(())
}

/// An HPACK string: its bytes, and whether they use the Huffman code.
struct Text<'a>(&'a [u8], bool);

fn string<'a>(block: &mut &'a [u8]) -> Option<Text<'a>> {
    let is_packed = block.first()? & 0x80 != 0;
    let size = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(size)?;
    *block = rest;
    Some(Text(text, is_packed))
}

/// Reads an integer with a prefix of this many bits (RFC 7541 §5.1).
fn integer(block: &mut &[u8], bits: u32) -> Option<usize> {
    let most = (1usize << bits) - 1;
    let mut value = usize::from(*block.split_off_first()?) & most;
    if value < most {
        return Some(value);
    }
    for shift in (0..28).step_by(7) {
        let next = *block.split_off_first()?;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Reads the digits of a string. In the Huffman code, 0, 1 and 2 have five bits, and the other
/// digits six (RFC 7541, appendix B). The padding consists of ones.
fn number(text: &Text<'_>) -> Option<u64> {
    let Text(bytes, true) = text else { return std::str::from_utf8(text.0).ok()?.parse().ok() };
    let bits =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| u64::from(byte >> bit & 1)));
    let (mut digits, mut code, mut size) = (None, 0, 0);
    for bit in bits {
        (code, size) = (code << 1 | bit, size + 1);
        let digit = match (size, code) {
            (5, 0..3) => code,
            (6, 0b01_1001..=0b01_1111) => code - 0b01_1001 + 3,
            (8.., _) => return None,
            _ => continue,
        };
        digits = Some(digits.unwrap_or(0) * 10 + digit);
        (code, size) = (0, 0);
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_read_as_they_are_and_in_huffmans_code() {
        // RFC 7541, appendix C.6.1 and C.6.2: "302" and "307".
        assert_eq!(number(&Text(&[0x64, 0x02], true)), Some(302));
        assert_eq!(number(&Text(&[0x64, 0x0e, 0xff], true)), Some(307));
        assert_eq!(number(&Text(b"429", false)), Some(429));
        assert_eq!(number(&Text(&[0xff, 0xff], true)), None);
    }

    #[test]
    fn an_answer_is_found_in_its_header_block() {
        // A table size of 0, ":status: 503" with Huffman, and "retry-after: 5" without.
        let payload = vec![0x20, 0x48, 0x83, 0x6c, 0x0c, 0xff, 0x0f, 53 - 15, 1, b'5'];
        let frame = Frame { kind: HEADERS, flags: END_HEADERS, stream: 1, payload };
        let mut answer = Reply { status: 0, retry_after: None, closes: false, body: Vec::new() };
        fields_of(&frame, &mut answer).unwrap();
        assert_eq!((answer.status, answer.retry_after), (503, Some(Duration::from_secs(5))));
    }
}
