//! Runs parts of the path of a batch from its body to a consumer. The instructions are counted by
//! `tests/it/ingest/instructions.rs` and `tests/it/deliver/instructions.rs`.
//!
//! `hot-path PHASE PASSES` prepares a phase and makes one pass of it. Then it makes `PASSES` more
//! in another thread, so that a profiler can tell these from the preparation. The kernel's
//! instructions are not counted. The passes that decode read the bodies from their files again: the
//! kernel copies them, as it does from a socket.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for a test: it prints, and panics where it cannot go on"
)]

use std::fs::File;
use std::hint::black_box;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use audit::{Isa, Split};
use base::position::Position;
use bytes::Bytes;
use config::Rejected;
use delivery::filter::{EventView, Filter, Rules};
use delivery::{DeadLetters, HandOver, Orders};
use futures_util::FutureExt as _;
use queue::{Append, Cursor, Disposition, Output, Queue, Take};
use relay::listener::{Gate, Listener, Settings};
use telemetry::Telemetry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use transform::policy::Policy;
use transform::redact::Redaction;
use transform::volume::{Seen, Volume};

#[path = "../common/policy.rs"]
mod policy;

/// The relay's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The size of the buffer for a body, larger than the longest body.
const BUFFER: usize = 1 << 20;

/// The default of `output.batch`.
const TAKE: Take = Take { bytes: 4 << 20, events: 5000 };

/// A config in which all other values are the defaults.
const CONFIG: &str =
    "[[listener]]\naddress = '127.0.0.1:0'\n[[output]]\nname = 'output'\ntype = 'stdout'\n";

/// Makes one pass, and returns the number of bytes and of events in it.
type Pass = Box<dyn FnMut() -> (usize, u64) + Send>;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let phase = arguments.next().expect("a phase");
    let passes: u64 = arguments.next().expect("a number of passes").parse().unwrap();
    let mut pass = match phase.as_str() {
        "decode batches" => decode(accepted, [1, 2, 17, 18, 19].map(recorded)),
        // Bodies with many escapes, non-ASCII text, and few events.
        "decode mixed" => decode(accepted, [4, 5, 9, 10, 11, 12, 13, 14, 15, 16].map(recorded)),
        "decode large events" => decode(accepted, [recorded(3)]),
        "decode singles" => decode(accepted, [6, 7, 8].map(recorded)),
        "decode lines" => decode(accepted, [File::open(path("audit.log")).unwrap()]),
        "queue batches" => queue(&recorded(1), 1, TAKE),
        // One claim takes all 400 events.
        "queue singles" => queue(&recorded(7), 400, TAKE),
        "requests" => requests(&recorded(7)),
        "queue cut batches" => queue(&recorded(1), 1, Take { events: 10, ..TAKE }),
        "filter by verb" => filter("match = { verbs = ['none'] }", 0, recorded(1)),
        "filter by policy" => filter("", 20, recorded(1)),
        "filter presets" => filter("redact = []", 0, recorded(1)),
        "volume of batches" => volume(&recorded(1)),
        "filter presets of bodies" => filter("redact = []", 0, recorded(2)),
        "disk" => disk(&recorded(1)),
        "http" => {
            deliver("type = 'http'\nconcurrency = 1\nurls = ['http://ADDRESS']", &recorded(1))
        }
        "http with presets" => deliver(
            "type = 'http'\nconcurrency = 1\nurls = ['http://ADDRESS']\nfilter.redact = []",
            &recorded(1),
        ),
        "tcp" => deliver("type = 'tcp'\naddresses = ['ADDRESS']", &recorded(1)),
        // "decode batches with SSE2", or with another instruction set of this CPU.
        other => {
            let name = other.strip_prefix("decode batches with ");
            let isa = Isa::ALL.into_iter().find(|isa| name == Some(isa.name())).expect("a phase");
            let scan = move |body: &mut [u8]| audit::scan_in_place(isa, body).expect("its CPU");
            decode(scan, [1, 2, 17, 18, 19].map(recorded))
        }
    };
    let (bytes, events) = pass();
    let counted = std::thread::spawn(move || {
        for _ in 0..passes {
            black_box(pass());
        }
    });
    counted.join().unwrap();
    println!("{bytes} {events}");
}

fn path(name: &str) -> String {
    format!("{}/../../tests/corpus/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Opens the recorded body with this number.
fn recorded(number: usize) -> File {
    let mut entries = std::fs::read_dir(path("")).unwrap().map(|entry| entry.unwrap().path());
    let prefix = path(&format!("{number:02}-"));
    let body = entries.find(|path| path.to_str().unwrap().starts_with(&prefix));
    File::open(body.expect("a recorded body")).unwrap()
}

/// Reads a file into the beginning of a buffer, and returns its length in bytes.
fn read(file: &File, buffer: &mut [u8]) -> usize {
    let bytes = usize::try_from(file.metadata().unwrap().len()).unwrap();
    file.read_exact_at(&mut buffer[..bytes], 0).unwrap();
    bytes
}

/// Reads, checks and splits a body. Returns its batch, and the length of the body in bytes.
fn decoded(body: &File) -> (audit::Batch, usize) {
    let mut buffer = vec![0; BUFFER];
    let bytes = read(body, &mut buffer);
    buffer.truncate(bytes);
    (audit::decode(buffer).expect("a recorded body"), bytes)
}

/// Checks and splits a body as the relay does.
fn accepted(body: &mut [u8]) -> Split {
    audit::decode_in_place(body).expect("a recorded body")
}

/// Returns a pass that checks and splits each body with `split`.
fn decode<const N: usize>(
    split: impl Fn(&mut [u8]) -> Split + Send + 'static,
    bodies: [File; N],
) -> Pass {
    let mut buffer = vec![0; BUFFER];
    Box::new(move || {
        let (mut bytes, mut events) = (0, 0);
        for body in &bodies {
            let length = read(body, &mut buffer);
            bytes += length;
            events += split(&mut buffer[..=length]).events;
        }
        (bytes, events)
    })
}

/// Opens a queue with one output.
fn opened(config: &config::Queue, telemetry: &Telemetry) -> (Queue, Cursor) {
    let outputs = [Output {
        name: "output".to_owned(),
        required: true,
        recorder: None,
        metrics: telemetry.output("output"),
    }];
    let (queue, mut cursors) = Queue::open(config, telemetry, &outputs).unwrap();
    (queue, cursors.remove(0))
}

/// Returns a pass that appends a batch `batches` times to a queue in memory, which already has 100
/// batches. An output then claims as many events, with at most `take` in a claim, and finishes each
/// claim.
fn queue(body: &File, batches: u64, take: Take) -> Pass {
    let (batch, bytes) = decoded(body);

    let config = config::read(CONFIG, outputs::TYPES).config.expect("a valid config");
    let (queue, mut cursor) = opened(&config.queue, &Telemetry::new());
    let events = batch.events * batches;
    let append = move || {
        let lines = Bytes::clone(&batch.lines);
        let append = Append { lines, events: batch.events, levels: batch.levels, list: None };
        let mut ticket = queue.append(append).expect("room");
        ticket.acknowledged().now_or_never().expect("it is queued").unwrap();
    };
    (0..100).for_each(|_| append());
    Box::new(move || {
        (0..batches).for_each(|_| append());
        let mut left = events;
        while left > 0 {
            let claimed = cursor.next(Take { events: take.events.min(left), ..take });
            let claimed = black_box(claimed).expect("it is queued");
            cursor.acknowledge(claimed.claim, Disposition::default());
            left -= claimed.events;
        }
        (bytes * usize::try_from(batches).unwrap(), events)
    })
}

/// Returns a pass that sends a body to a listener over a kept HTTP/1.1 connection, and reads the
/// answer. The listener runs in the thread of the pass. An output then claims and finishes the
/// events.
fn requests(body: &File) -> Pass {
    let mut buffer = vec![0; BUFFER];
    let bytes = read(body, &mut buffer);
    let head = format!(
        "POST / HTTP/1.1\r\nHost: relay\r\nUser-Agent: kube-apiserver\r\nContent-Length: {bytes}\r\n\
         Accept: application/json, */*\r\nContent-Type: application/json\r\n\r\n"
    );
    let request = [head.as_bytes(), &buffer[..bytes]].concat();

    let config = config::read(CONFIG, outputs::TYPES).config.expect("a valid config");
    let telemetry = Arc::new(Telemetry::new());
    let (queue, mut cursor) = opened(&config.queue, &telemetry);
    let letters = DeadLetters::new(&telemetry);
    let gate = Gate::new(&config.limits, &config.queue, queue, letters.clone(), &telemetry);
    let gate = Arc::new(gate);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let of = &config.listeners[0];
    let socket = runtime.block_on(tokio::net::TcpListener::bind(of.address)).unwrap();
    let settings = Arc::new(Settings::read(of, None).unwrap().expect("it needs no file"));
    let listener = Listener::new(socket, of, settings, &gate, telemetry);
    let mut client = TcpStream::connect(listener.address().unwrap()).unwrap();
    client.set_nonblocking(true).unwrap();
    runtime.spawn(listener.serve(gate));
    Box::new(move || {
        client.write_all(&request).unwrap();
        let mut answer = [0; 1024];
        let length = loop {
            runtime.block_on(tokio::task::yield_now());
            match client.read(&mut answer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => break read.unwrap(),
            }
        };
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "{:?}", &answer[..length]);
        let claimed = black_box(cursor.next(TAKE)).expect("it is queued");
        cursor.acknowledge(claimed.claim, Disposition::default());
        (bytes, claimed.events)
    })
}

/// Returns a pass that appends a batch to a queue on disk, waits until it is synced, and lets an
/// output claim and finish it. The queue is in the directory for temporary files.
fn disk(body: &File) -> Pass {
    let (batch, bytes) = decoded(body);

    let directory = std::env::temp_dir().join("queue");
    let config = format!("{CONFIG}[queue]\ndirectory = {directory:?}\n");
    let config = config::read(&config, outputs::TYPES).config.expect("a valid config");
    let (queue, mut cursor) = opened(&config.queue, &Telemetry::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    Box::new(move || {
        let lines = Bytes::clone(&batch.lines);
        let append = Append { lines, events: batch.events, levels: batch.levels, list: None };
        let mut ticket = queue.append(append).expect("room");
        runtime.block_on(ticket.acknowledged()).unwrap();
        let claimed = black_box(cursor.next(TAKE)).expect("it is queued");
        cursor.acknowledge(claimed.claim, Disposition::default());
        (bytes, batch.events)
    })
}

/// The number of events in each pass of [`deliver`]. They fit into the sockets' buffers, so that
/// the number of writes and reads does not depend on the time.
const DELIVERED: usize = 100;

/// Returns a pass that appends the first events of a body to a queue in memory, and waits until a
/// consumer has all of them. If the queue keeps lists, they are appended as a received list. The
/// output with these settings and its consumer run in the thread of the pass.
fn deliver(settings: &str, body: &File) -> Pass {
    let (batch, _) = decoded(body);
    let ends = memchr::memchr_iter(b'\n', &batch.lines);
    let mut lines = batch.lines[..=ends.take(DELIVERED).last().unwrap()].to_vec();
    lines.pop();
    audit::separate(&mut lines);
    let mut list = [audit::LIST_HEAD, &lines, b"]}\n?"].concat();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let consumer = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let settings = settings.replace("ADDRESS", &consumer.local_addr().unwrap().to_string());
    let config = CONFIG.replace("type = 'stdout'", &settings);
    let config = config::read(&config, outputs::TYPES).config.expect("a valid config");
    let telemetry = Arc::new(Telemetry::new());
    let (queue, cursor) = opened(&config.queue, &telemetry);
    let letters = DeadLetters::new(&telemetry);
    let output = outputs::prepare(&config.outputs[0], &telemetry, &letters);
    if let Some(files) = output.files() {
        files.stage().unwrap()();
    }
    let is_http = settings.contains("http");
    runtime.spawn(output.run(HandOver::begin(cursor), Orders::default()));
    let (split, ends) = audit::scan_keeping_list(&mut list).expect("a list");
    let keeps = queue.keeps_list(list.len());
    if let (false, Some(ends)) = (keeps, &ends) {
        ends.end_lines(&mut list[split.lines.clone()]);
    }
    let (length, events) = (split.lines.len(), split.events);
    let (lines, levels) = (Bytes::from(list).slice(split.lines), split.levels);
    let append = Append { lines, events, levels, list: ends.filter(|_| keeps) };
    let (mut peer, mut read) = (None, vec![0; BUFFER]);
    Box::new(move || {
        let mut ticket = queue.append(append.clone()).expect("room");
        ticket.acknowledged().now_or_never().expect("it is queued").unwrap();
        runtime.block_on(async {
            // The output connects when it has something to send.
            let peer = match &mut peer {
                Some(peer) => peer,
                none => none.insert(consumer.accept().await.unwrap().0),
            };
            // An HTTP request also has a head and a tail.
            let mut got = 0;
            while got < length || is_http && !read[..got].ends_with(b"]}\n") {
                match peer.read(&mut read[got..]).await.unwrap() {
                    0 => panic!("the output has closed its connection"),
                    more => got += more,
                }
            }
            if is_http {
                peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
        });
        (length, events)
    })
}

/// Returns a pass in which a filter judges every event of a body. `settings` are the config keys of
/// the filter. `rules` is the number of rules in its policy, or 0 for no policy.
fn filter(settings: &str, rules: usize, body: File) -> Pass {
    let (batch, _) = decoded(&body);

    let config = format!("{CONFIG}[output.filter]\n{settings}\n");
    let config = config::read(&config, outputs::TYPES).config.expect("a valid config");
    let filter = Rules::new(&config.outputs[0].filter, Rejected::Retry);
    if rules > 0 {
        filter.apply(vec![Policy::read(&policy::of(rules)).expect("a valid policy")]);
    }
    let mut filter = Filter::new(Arc::new(filter), None);
    let (mut changed, position) = (Vec::new(), Position::default());
    Box::new(move || {
        let mut events = filter.events(audit::Events::of(&batch.lines, None));
        while let Some((event, request, known)) = events.next() {
            changed.clear();
            let asked = EventView { event, request, known, position, age: Duration::ZERO };
            black_box(filter.judge(&asked, &mut changed));
        }
        (batch.lines.len(), batch.events)
    })
}

/// Returns a pass that counts the volume of a body. The counter is new in each pass, so every event
/// is sampled.
fn volume(body: &File) -> Pass {
    let (batch, _) = decoded(body);
    Box::new(move || {
        let (volume, mut seen) = (Volume::default(), Seen::default());
        volume.turn(Redaction::new(&[]).ok());
        volume.look(&batch.lines, None, batch.events, &mut seen);
        volume.count(seen);
        (batch.lines.len(), batch.events)
    })
}
