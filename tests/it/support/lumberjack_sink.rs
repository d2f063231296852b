//! A fake consumer of lumberjack version 2. The test decides its answers. It panics on everything
//! that the protocol's description does not allow. It was written from that description, and shares
//! no code with the relay.

use std::io;
use std::io::{Read, Write as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::server::{Connection, Options, Server, derefs_to_its_server};
use super::stream::Stream;

/// A complete window.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// The connection that carried the window, counted from 0.
    pub(crate) connection: usize,
    /// Whether the events came in a compressed frame.
    pub(crate) compressed: bool,
    pub(crate) events: Vec<Vec<u8>>,
}

/// Writes the answer to one window.
pub(crate) struct Reply<'a> {
    stream: &'a mut Stream,
    connection: &'a Connection,
    received: &'a Received,
}

impl Reply<'_> {
    /// Acknowledges the events of the window up to number `event`. 0 acknowledges nothing: it only
    /// shows that the consumer is alive.
    pub(crate) fn acknowledge(&mut self, event: usize) {
        let number = u32::try_from(event).expect("a small window");
        self.write(&[b"2A", &number.to_be_bytes()[..]].concat());
    }

    /// Writes any bytes. Ignores an error, because the client may have closed the connection.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes).and_then(|()| self.stream.flush()));
    }

    /// Waits for `time`. Returns `false` as soon as the connection must end.
    pub(crate) fn rest(&self, time: Duration) -> bool {
        self.connection.rest(time)
    }

    /// Returns how many windows arrived before this one, over all connections.
    pub(crate) fn number(&self) -> usize {
        self.received.lock().windows.len() - 1
    }
}

/// Answers a window. Returns `false` if the connection must be closed.
type Script = dyn Fn(&Window, &mut Reply<'_>) -> bool + Send + Sync;

/// The consumer. It `Deref`s to its [`Server`]. It records a window when the window is complete,
/// before it answers.
pub(crate) struct LumberjackSink {
    server: Server,
    received: Arc<Received>,
}

#[derive(Default)]
struct Received {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    windows: Vec<Window>,
    cut_after: Option<u64>,
}

impl Received {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the state is held")
    }
}

impl LumberjackSink {
    /// Starts a consumer that acknowledges each window in full.
    pub(crate) fn start() -> Self {
        Self::with(Options::default(), |window, reply| {
            reply.acknowledge(window.events.len());
            true
        })
    }

    pub(crate) fn with(
        options: Options,
        script: impl Fn(&Window, &mut Reply<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let received = Arc::<Received>::default();
        let for_handler = Arc::clone(&received);
        let script: Box<Script> = Box::new(script);
        let server = Server::start(options, move |stream, connection| {
            serve(stream, connection, &for_handler, &script);
        });
        Self { server, received }
    }

    /// From now on, closes each connection after it has carried this many bytes. `None` ends this.
    pub(crate) fn cut_each_after(&self, bytes: Option<u64>) {
        self.received.lock().cut_after = bytes;
    }

    /// Returns the complete windows of all connections, in the order of arrival.
    pub(crate) fn windows(&self) -> Vec<Window> {
        self.received.lock().windows.clone()
    }

    /// Returns the events of all complete windows.
    pub(crate) fn events(&self) -> Vec<Vec<u8>> {
        self.received.lock().windows.iter().flat_map(|window| window.events.clone()).collect()
    }

    /// Returns the events of each connection.
    pub(crate) fn runs(&self) -> Vec<Vec<Vec<u8>>> {
        let mut runs = vec![Vec::new(); self.history().len()];
        for window in self.windows() {
            runs[window.connection].extend(window.events);
        }
        runs
    }

    pub(crate) fn count(&self) -> usize {
        self.received.lock().windows.iter().map(|window| window.events.len()).sum()
    }
}

derefs_to_its_server!(LumberjackSink);

/// Serves one connection to its end, or to the byte where it is cut.
fn serve(mut stream: Stream, connection: &Connection, received: &Received, script: &Script) {
    let mut read = 0;
    while connection.may_go_on() {
        let left = received.lock().cut_after.map_or(u64::MAX, |bytes| bytes.saturating_sub(read));
        let mut limited = (&mut stream).take(left);
        // A connection can end anywhere. Then an incomplete window does not count.
        let Ok((compressed, events)) = window(&mut limited) else { return };
        read += left - limited.limit();
        let window = Window { connection: connection.number, compressed, events };
        received.lock().windows.push(window.clone());
        let mut reply = Reply { stream: &mut stream, connection, received };
        if !script(&window, &mut reply) {
            return;
        }
    }
}

/// Reads a window: `2W`, the number of events, and the events, in one compressed frame or in plain
/// frames. Returns the events, and `true` if they were compressed.
fn window(from: &mut impl Read) -> io::Result<(bool, Vec<Vec<u8>>)> {
    assert_eq!(kind(from)?, b'W', "a window begins");
    let count = number(from)?;
    assert!(count > 0, "a window is not empty");
    match kind(from)? {
        b'J' => {
            let mut events = vec![json(from, 1)?];
            for index in 2..=count {
                assert_eq!(kind(from)?, b'J', "the window has {count} events, {index} follows");
                events.push(json(from, index)?);
            }
            Ok((false, events))
        }
        b'C' => {
            let length = number(from)?;
            let mut compressed = vec![0; usize::try_from(length).expect("64 bits")];
            from.read_exact(&mut compressed)?;
            let mut inside = Vec::new();
            let mut zlib = flate2::bufread::ZlibDecoder::new(compressed.as_slice());
            zlib.read_to_end(&mut inside).expect("zlib");
            assert!(zlib.into_inner().is_empty(), "nothing follows the zlib stream");
            let (mut inside, mut events) = (inside.as_slice(), Vec::new());
            for index in 1..=count {
                let whole = "frames are whole inside a compressed one";
                assert_eq!(kind(&mut inside).expect(whole), b'J');
                events.push(json(&mut inside, index).expect(whole));
            }
            assert!(inside.is_empty(), "a compressed frame has the events of its window, no more");
            Ok((true, events))
        }
        other => panic!("a frame of the kind {:?} in a window", char::from(other)),
    }
}

/// Reads the first two bytes of a frame, checks the version and returns the frame's type.
fn kind(from: &mut impl Read) -> io::Result<u8> {
    let mut head = [0; 2];
    from.read_exact(&mut head)?;
    assert_eq!(head[0], b'2', "the version");
    Ok(head[1])
}

fn number(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

/// Reads the rest of a JSON frame: its number in the window, a length and an object.
fn json(from: &mut impl Read, index: u32) -> io::Result<Vec<u8>> {
    assert_eq!(number(from)?, index, "the sequence number");
    let length = number(from)?;
    let mut event = vec![0; usize::try_from(length).expect("64 bits")];
    from.read_exact(&mut event)?;
    let object: &serde_json::value::RawValue = serde_json::from_slice(&event).expect("JSON");
    assert!(object.get().starts_with('{'), "an object");
    Ok(event)
}

#[test]
fn the_sink_takes_what_the_protocol_allows_and_nothing_else() {
    let events = [br#"{"a":1}"#.to_vec(), br#"{"b":[]}"#.to_vec()];
    let plain = b"2W\0\0\0\x022J\0\0\0\x01\0\0\0\x07{\"a\":1}2J\0\0\0\x02\0\0\0\x08{\"b\":[]}";
    let (head, frames) = plain.split_at(6);
    let zlib = |inside: &[u8]| {
        let mut encoder =
            flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(inside).unwrap();
        let compressed = encoder.finish().unwrap();
        let length = u32::try_from(compressed.len()).unwrap().to_be_bytes();
        [head, b"2C", &length, &compressed].concat()
    };
    assert_eq!(window(&mut plain.as_slice()).unwrap(), (false, events.to_vec()));
    assert_eq!(window(&mut zlib(frames).as_slice()).unwrap(), (true, events.to_vec()));
    let changed = |at: usize, byte: u8| {
        let mut changed = plain.to_vec();
        changed[at] = byte;
        changed
    };
    for wrong in [
        changed(0, b'1'),
        changed(1, b'J'),
        changed(5, 0),
        changed(11, 2),
        changed(15, 8),
        changed(24, b'W'),
        zlib(plain),
        zlib(&frames[..17]),
        zlib(&frames[..frames.len() - 1]),
        zlib(&[frames, frames].concat()),
    ] {
        let caught = std::panic::catch_unwind(|| window(&mut wrong.as_slice()));
        assert!(caught.is_err(), "{}", wrong.escape_ascii());
    }
    for end in 0..plain.len() {
        assert!(window(&mut &plain[..end]).is_err(), "cut after {end} bytes");
    }
}
