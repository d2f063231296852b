//! A fake consumer of JSON lines or RFC 6587 frames over TCP. A test can make it misbehave.

use std::io::Read as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::server::{Connection, Options, Server, derefs_to_its_server};
use super::stream::Stream;
use super::wait_until;

/// How the stream is divided into messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Each message ends with a line feed, which is not part of it.
    Lines,
    /// Each message is `LENGTH SP MESSAGE` (RFC 6587 §3.4.1).
    OctetCounting,
}

/// A complete message.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// The connection that carried the message, counted from 0.
    pub(crate) connection: usize,
    pub(crate) bytes: Vec<u8>,
}

/// The consumer. It `Deref`s to its [`Server`], which has `pause`, `close`, `kill` and `reopen`.
///
/// A message is recorded once it is complete. If a connection ends in the middle of a message, the
/// message is not recorded.
pub(crate) struct TcpSink {
    server: Server,
    received: Arc<Received>,
}

/// The consumer's next step after a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "the simulator uses it")]
pub(crate) enum Next {
    Read,
    /// The consumer pauses for this time before the next read.
    Rest(Duration),
    /// The consumer closes the connection.
    End,
    /// The consumer resets the connection.
    Reset,
}

/// Gets the number of the connection, and the messages that the read completed.
type Script = dyn Fn(usize, &[Vec<u8>]) -> Next + Send + Sync;

struct Received {
    framing: Framing,
    script: Box<Script>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    messages: Vec<Message>,
    /// The number of bytes read from each connection.
    bytes: Vec<u64>,
    cut_after: Option<u64>,
}

impl Received {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the state is held")
    }
}

impl TcpSink {
    pub(crate) fn start() -> Self {
        Self::with(Framing::Lines, Options::default())
    }

    pub(crate) fn with(framing: Framing, options: Options) -> Self {
        Self::scripted(framing, options, |_, _| Next::Read)
    }

    /// Starts a consumer that calls `script` after each read.
    pub(crate) fn scripted(
        framing: Framing,
        options: Options,
        script: impl Fn(usize, &[Vec<u8>]) -> Next + Send + Sync + 'static,
    ) -> Self {
        let script: Box<Script> = Box::new(script);
        let received = Arc::new(Received { framing, script, state: Mutex::default() });
        let for_handler = Arc::clone(&received);
        let server = Server::start(options, move |stream, connection| {
            read(stream, connection, &for_handler)
        });
        Self { server, received }
    }

    /// Returns the config of an output with this name that sends to this consumer. `more` adds
    /// keys.
    pub(crate) fn output(&self, name: &str, more: &str) -> String {
        let address = self.address();
        format!(
            "[[output]]\nname = \"{name}\"\ntype = \"tcp\"\naddresses = [\"{address}\"]\n\
             replay_window = \"100ms\"\n{more}\n"
        )
    }

    /// From now on, closes each connection after it has carried this many bytes. `None` ends this.
    /// If more bytes are in transit, RST is sent, and bytes that the kernel had received are lost.
    pub(crate) fn cut_each_after(&self, bytes: Option<u64>) {
        self.received.lock().cut_after = bytes;
    }

    /// Returns the complete messages of all connections, in the order of their completion.
    pub(crate) fn messages(&self) -> Vec<Message> {
        self.received.lock().messages.clone()
    }

    pub(crate) fn lines(&self) -> Vec<Vec<u8>> {
        self.received.lock().messages.iter().map(|message| message.bytes.clone()).collect()
    }

    /// Returns `true` if this message is complete. The newest messages are searched first.
    pub(crate) fn has(&self, message: &[u8]) -> bool {
        self.received.lock().messages.iter().rev().any(|complete| complete.bytes == message)
    }

    pub(crate) fn count(&self) -> usize {
        self.received.lock().messages.len()
    }

    /// Returns how many bytes have been read over all connections, including incomplete messages.
    pub(crate) fn bytes(&self) -> u64 {
        self.received.lock().bytes.iter().sum()
    }

    /// Forgets the messages and the byte counts. The connections stay open.
    pub(crate) fn clear(&self) {
        let mut state = self.received.lock();
        state.messages.clear();
        state.bytes.fill(0);
    }

    pub(crate) fn wait_for_count(&self, count: usize, limit: Duration) {
        wait_until(&format!("{count} messages"), limit, || self.count() >= count);
    }
}

derefs_to_its_server!(TcpSink);

fn read(mut stream: Stream, connection: &Connection, received: &Received) {
    let mut buffer = vec![0; 64 * 1024];
    let mut pending = Vec::new();
    let mut total = 0_u64;
    while connection.may_go_on() {
        let cut_after = received.lock().cut_after.unwrap_or(u64::MAX);
        let left = usize::try_from(cut_after.saturating_sub(total)).unwrap_or(usize::MAX);
        if left == 0 {
            return;
        }
        let wanted = left.min(buffer.len());
        // An RST, or TLS that ends without close_notify, ends the connection like a FIN.
        let Ok(size @ 1..) = stream.read(&mut buffer[..wanted]) else { return };
        total += size as u64;
        pending.extend_from_slice(&buffer[..size]);
        let mut state = received.lock();
        let number = connection.number;
        if state.bytes.len() <= number {
            state.bytes.resize(number + 1, 0);
        }
        state.bytes[number] += size as u64;
        let complete = take_complete(&mut pending, size, received.framing);
        let next = (received.script)(number, &complete);
        let complete = complete.into_iter().map(|bytes| Message { connection: number, bytes });
        state.messages.extend(complete);
        drop(state);
        let goes_on = match next {
            Next::Read => true,
            Next::Rest(time) => connection.rest(time),
            Next::End => false,
            Next::Reset => {
                let socket = socket2::SockRef::from(stream.socket());
                socket.set_linger(Some(Duration::ZERO)).expect("a socket");
                false
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// Removes the complete messages from the front of `pending` and returns them. Only the last
/// `fresh` bytes are searched for line feeds, so that a long line is not searched again from its
/// start.
fn take_complete(pending: &mut Vec<u8>, fresh: usize, framing: Framing) -> Vec<Vec<u8>> {
    let mut complete = Vec::new();
    let mut start = 0;
    match framing {
        Framing::Lines => {
            let searched = pending.len() - fresh;
            for end in memchr::memchr_iter(b'\n', &pending[searched..]) {
                complete.push(pending[start..searched + end].to_vec());
                start = searched + end + 1;
            }
        }
        Framing::OctetCounting => {
            while let Some((length, digits)) = octet_count(&pending[start..]) {
                let message = start + digits..start + digits + length;
                let Some(bytes) = pending.get(message.clone()) else { break };
                complete.push(bytes.to_vec());
                start = message.end;
            }
        }
    }
    pending.drain(..start);
    complete
}

/// Returns the count at the start of a frame, and how many bytes the count and its space take.
/// Returns `None` if the space has not arrived.
fn octet_count(frame: &[u8]) -> Option<(usize, usize)> {
    let space = frame.iter().take(11).position(|&byte| byte == b' ');
    let digits = &frame[..space.unwrap_or(frame.len().min(11))];
    let valid = digits.iter().all(u8::is_ascii_digit) && digits.first() != Some(&b'0');
    assert!(valid && digits.len() < 11, "not a frame: {}", String::from_utf8_lossy(digits));
    let length = std::str::from_utf8(&frame[..space?]).expect("digits").parse();
    Some((length.expect("not a frame: no count"), space? + 1))
}

#[test]
fn messages_are_found_wherever_the_stream_is_cut() {
    let lines = b"one\n\n{\"three\":3}\nrest";
    let frames = b"3 one12 with\na space2 ok4 re";
    for step in 1..lines.len() {
        let mut found = Vec::new();
        let mut pending = Vec::new();
        for piece in lines.chunks(step) {
            pending.extend_from_slice(piece);
            found.extend(take_complete(&mut pending, piece.len(), Framing::Lines));
        }
        assert_eq!(found, [&b"one"[..], b"", b"{\"three\":3}"]);
        assert_eq!(pending, b"rest");
        let (mut found, mut pending) = (Vec::new(), Vec::new());
        for piece in frames.chunks(step) {
            pending.extend_from_slice(piece);
            found.extend(take_complete(&mut pending, piece.len(), Framing::OctetCounting));
        }
        assert_eq!(found, [&b"one"[..], b"with\na space", b"ok"]);
        assert_eq!(pending, b"4 re");
    }
}
