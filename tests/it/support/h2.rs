//! HTTP/2 by hand (RFC 9113): just enough to send what no client would, and to see GOAWAY and RST_STREAM.

use std::io;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

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

/// What a client says first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// True where the head says 200: hyper's encoder takes it from HPACK's static table.
    pub(crate) fn is_200(&self) -> bool {
        self.kind == HEADERS && self.payload.first() == Some(&0x88)
    }

    /// The code of RST_STREAM.
    pub(crate) fn code(&self) -> u32 {
        u32::from_be_bytes(self.payload[..4].try_into().expect("four bytes"))
    }
}

/// A connection with prior knowledge.
pub(crate) struct H2 {
    reader: BufReader<Stream>,
    /// Acknowledges no PING, so that the server does not know whether GOAWAY was heard.
    pub(crate) deaf: bool,
}

impl H2 {
    /// Connected; nothing is sent yet.
    pub(crate) fn dial(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        Ok(Self::over(Stream::Plain(socket)))
    }

    /// Over a stream that is connected; nothing is sent yet.
    pub(crate) fn over(stream: Stream) -> Self {
        Self { reader: BufReader::new(stream), deaf: false }
    }

    /// Connected, with preface and settings sent.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let mut h2 = Self::dial(address)?;
        h2.send(PREFACE)?;
        h2.frame(SETTINGS, 0, 0, &[])?;
        Ok(h2)
    }

    pub(crate) fn read_timeout(&mut self, limit: Duration) {
        self.reader.get_ref().socket().set_read_timeout(Some(limit)).expect("above zero");
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

    /// The head of a POST, complete.
    pub(crate) fn post_head(&mut self, stream: u32, length: Option<usize>) -> io::Result<()> {
        self.frame(HEADERS, END_HEADERS, stream, &post_fields(length))
    }

    /// A whole POST of less than a frame.
    pub(crate) fn post(&mut self, stream: u32, body: &[u8]) -> io::Result<()> {
        self.post_head(stream, Some(body.len()))?;
        self.frame(DATA, END_STREAM, stream, body)
    }

    /// The next frame, SETTINGS and PING (which are acknowledged) apart; `None` at the end.
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
                _ => return Ok(Some(Frame { kind, flags, stream, payload })),
            }
        }
    }

    /// The next frame of this kind; panics where the connection ends before it.
    pub(crate) fn wait_for(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().expect("a frame").expect("a frame before the end");
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Reads to the end of the connection; the frames until then.
    pub(crate) fn rest(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.next().ok().flatten()).collect()
    }
}

/// HPACK without its tables: each field as a literal.
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
