//! HTTP/2 by hand (RFC 9113): just enough to send frames that no real client would send, and to see
//! GOAWAY and RST_STREAM.

use std::io;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;
use super::stream::Stream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// The first bytes that a client sends.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame of HTTP/2.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Returns `true` if the frame is a head with status 200. hyper's encoder takes this status
    /// from HPACK's static table, so its first byte is known.
    pub(crate) fn is_200(&self) -> bool {
        self.kind == HEADERS && self.payload.first() == Some(&0x88)
    }

    /// Returns the error code in the payload of an RST_STREAM.
    pub(crate) fn code(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().expect("four bytes"))
    }
}

/// A plain connection that speaks HTTP/2 from its first byte (prior knowledge).
pub(crate) struct H2 {
    reader: BufReader<Stream>,
    /// If `true`, the client does not acknowledge a PING, so the server cannot know whether the
    /// client received its GOAWAY.
    pub(crate) deaf: bool,
}

impl H2 {
    /// Connects, and sends nothing yet.
    pub(crate) fn dial(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        Ok(Self::over(Stream::Plain(socket)))
    }

    /// Takes a connected stream, and sends nothing yet.
    pub(crate) fn over(stream: Stream) -> Self {
        Self { reader: BufReader::new(stream), deaf: false }
    }

    /// Connects, and sends the preface and the settings.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let mut h2 = Self::dial(address)?;
        h2.send(PREFACE)?;
        h2.frame(SETTINGS, 0, 0, &[])?;
        Ok(h2)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)?;
        self.reader.get_mut().flush()
    }

    pub(crate) fn settings(&mut self) -> io::Result<()> {
        self.frame(SETTINGS, 0, 0, &[])
    }

    pub(crate) fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        let length = u32::try_from(payload.len()).expect("a frame's length").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.send(&frame)
    }

    /// Sends the complete head of a POST, with a Content-Length if `length` is given.
    pub(crate) fn post_head(&mut self, stream: u32, length: Option<usize>) -> io::Result<()> {
        self.frame(HEADERS, END_HEADERS, stream, &post_fields(length))
    }

    /// Sends a whole POST whose body fits into one frame.
    pub(crate) fn post(&mut self, stream: u32, body: &[u8]) -> io::Result<()> {
        self.post_head(stream, Some(body.len()))?;
        self.frame(DATA, END_STREAM, stream, body)
    }

    /// Returns the next frame, or `None` at the end of the connection. Acknowledges SETTINGS and
    /// PING, and skips them.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            let mut head = [0; 9];
            match self.reader.read_exact(&mut head) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            let mut payload = vec![0; usize::try_from(length).expect("24 bits")];
            self.reader.read_exact(&mut payload)?;
            let (kind, flags) = (head[3], head[4]);
            match kind {
                PING if self.deaf => {}
                SETTINGS | PING if flags & ACK == 0 => {
                    let answer = if kind == PING { &payload[..] } else { &[] };
                    self.frame(kind, ACK, 0, answer)?;
                }
                SETTINGS | PING => {}
                _ => return Ok(Some(Frame { kind, stream, payload })),
            }
        }
    }

    /// Returns the next frame of this kind, skipping others. Panics if the connection ends first.
    pub(crate) fn wait_for(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().expect("a frame").expect("a frame before the end");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Reads to the end of the connection and returns the frames until then.
    pub(crate) fn rest(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.next().ok().flatten()).collect()
    }
}

/// Returns the header block of a POST, in HPACK without its tables: each field is a literal.
pub(crate) fn post_fields(length: Option<usize>) -> Vec<u8> {
    let mut block = Vec::new();
    let length = length.map(|length| length.to_string());
    let mut fields = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/audit"),
        (":authority", "localhost"),
        ("content-type", "application/json"),
    ];
    fields.extend(length.as_deref().map(|length| ("content-length", length)));
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("below 127, so one byte of length"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}
