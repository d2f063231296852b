//! HTTP/1.1 by hand: a client that can send anything, and the parser with which the fake server
//! reads requests.
//!
//! The tests use no HTTP library, because a test must be able to send bytes that no HTTP client
//! would send.

use std::io;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::PATIENCE;
use super::stream::Stream;

/// The head of a request or a response.
#[derive(Debug, Clone, Default)]
pub(crate) struct Head {
    /// The request line or the status line.
    pub(crate) first_line: String,
    /// The headers in the order of arrival, with their names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    /// Returns the value of the first header with this name, which must be in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }
}

/// Reads one head. Returns `None` if the peer closes the connection before the first byte.
pub(crate) fn read_head(reader: &mut BufReader<Stream>) -> io::Result<Option<Head>> {
    let Some(first_line) = read_line(reader)? else { return Ok(None) };
    let mut head = Head { first_line, headers: Vec::new() };
    loop {
        let line = read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if line.is_empty() {
            return Ok(Some(head));
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| io::Error::other(format!("not a header: {line}")))?;
        head.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// Reads a line and returns it without its line break, or `None` at the end of the stream.
fn read_line(reader: &mut BufReader<Stream>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if !line.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let line = String::from_utf8(line).map_err(io::Error::other)?;
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Reads the body that `head` announces. If `head` announces none, `unannounced` decides.
pub(crate) fn read_body(
    reader: &mut BufReader<Stream>,
    head: &Head,
    unannounced: Unannounced,
) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if head.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        loop {
            let line = read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
            if size == 0 {
                // The trailers end with an empty line, like a head.
                while !read_line(reader)?.ok_or(io::ErrorKind::UnexpectedEof)?.is_empty() {}
                return Ok(body);
            }
            read_exactly(reader, size, &mut body)?;
            read_line(reader)?;
        }
    } else if let Some(length) = head.header("content-length") {
        read_exactly(reader, length.parse().map_err(io::Error::other)?, &mut body)?;
    } else if unannounced == Unannounced::UntilClose {
        reader.read_to_end(&mut body)?;
    }
    Ok(body)
}

/// The meaning of a head with neither Content-Length nor Transfer-Encoding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unannounced {
    /// There is no body, because this is a request, or a response whose status allows none.
    Empty,
    /// The body ends when the connection is closed, because this is any other response.
    UntilClose,
}

fn read_exactly(reader: &mut BufReader<Stream>, size: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let read = reader.take(size).read_to_end(body)?;
    if read as u64 == size { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A complete response.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// Returns the value of the first header with this name, which must be in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Returns the body parsed as JSON. Panics if it is not JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in an answer: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One connection to a server. Dropping this value closes it.
pub(crate) struct Client {
    reader: BufReader<Stream>,
    host: String,
}

impl Client {
    /// Connects with plain HTTP.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::over(Stream::Plain(dial(address)?), address))
    }

    /// Connects with HTTPS, under the name localhost, and completes the handshake. With TLS 1.3, a
    /// refused client certificate shows only at the first read.
    pub(crate) fn connect_tls(
        address: SocketAddr,
        config: Arc<rustls::ClientConfig>,
    ) -> io::Result<Self> {
        let name = "localhost".try_into().expect("a host name");
        let connection = rustls::ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut tls = rustls::StreamOwned::new(connection, dial(address)?);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(Self::over(Stream::Client(Box::new(tls)), address))
    }

    fn over(stream: Stream, address: SocketAddr) -> Self {
        Self { reader: BufReader::new(stream), host: address.to_string() }
    }

    /// Returns the stream of this connection, for a test that sends half a request or ends the
    /// connection suddenly.
    pub(crate) fn stream(&mut self) -> &mut Stream {
        self.reader.get_mut()
    }

    /// Returns the stream of this connection, for another protocol. Buffered bytes are lost.
    pub(crate) fn into_stream(self) -> Stream {
        self.reader.into_inner()
    }

    /// Sets how long a read can wait. The default is [`PATIENCE`].
    pub(crate) fn read_timeout(&mut self, limit: Duration) {
        self.stream().socket().set_read_timeout(Some(limit)).expect("above zero");
    }

    /// Sends any bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream().write_all(bytes)?;
        self.stream().flush()
    }

    /// Reads one response, which may be an interim one (100 Continue).
    pub(crate) fn read_response(&mut self) -> io::Result<Response> {
        let head = read_head(&mut self.reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.first_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(head.first_line.clone()))?;
        let bodiless = (100..200).contains(&status) || status == 204 || status == 304;
        let unannounced = if bodiless { Unannounced::Empty } else { Unannounced::UntilClose };
        let body = read_body(&mut self.reader, &head, unannounced)?;
        Ok(Response { status, head, body })
    }

    /// Returns `true` if the server closes the connection before it sends another byte. Returns
    /// `false` if a byte arrives, or if neither happens within the read timeout.
    pub(crate) fn is_closed_by_server(&mut self) -> bool {
        match self.reader.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => {
                error.kind() == io::ErrorKind::ConnectionReset
                    || error.kind() == io::ErrorKind::UnexpectedEof
            }
        }
    }

    /// Sends one request with these headers, Host and Content-Length, and returns the response.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        self.send(&request)?;
        self.read_response()
    }

    /// Sends a POST with this content type and returns the response.
    pub(crate) fn post(
        &mut self,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> io::Result<Response> {
        self.request("POST", path, &[("Content-Type", content_type)], body)
    }
}

fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Sends a POST on a new connection and returns the response.
pub(crate) fn post(
    address: SocketAddr,
    path: &str,
    content_type: &str,
    body: &[u8],
) -> io::Result<Response> {
    Client::connect(address)?.post(path, content_type, body)
}

/// Sends a GET on a new connection and returns the response.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<Response> {
    Client::connect(address)?.request("GET", path, &[("Connection", "close")], b"")
}
