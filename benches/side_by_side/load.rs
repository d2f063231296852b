//! The senders: blocking sockets, one request under way on each, the bytes made beforehand.

use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::proxy::Proxy;
use crate::proxy::thread_cpu;
use crate::sink::Sink;
use crate::sink::content_length;
use crate::work::Work;

/// The senders stay so close to the sink: a relay that answers before it delivers would otherwise
/// be measured on filling its queue.
pub(crate) const AHEAD_MAX: u64 = 32 * 1024 * 1024;

/// Longest wait for what should be there at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of a run.
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    /// Answers other than 200; each of these requests was sent again.
    pub(crate) refused: u64,
    /// From the first byte sent to the last one at the sink.
    pub(crate) until_arrived: Duration,
    /// CPU seconds of the senders.
    pub(crate) cpu: f64,
    /// From the first byte of a request to the last of its answer; sorted.
    answers: Vec<Duration>,
}

impl Outcome {
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let index = (self.answers.len() * percent / 100).min(self.answers.len() - 1);
        self.answers[index]
    }
}

/// Sends `requests` times the work's body and waits until all of it is at the sink.
pub(crate) fn run(
    work: &Work,
    requests: u64,
    senders: usize,
    proxy: &Proxy,
    sink: &Sink,
) -> Outcome {
    let request = request(proxy.address(), &work.body);
    let next = AtomicU64::new(0);
    let started = Instant::now();
    let sent: Vec<Sent> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..senders)
            .map(|_| {
                scope.spawn(|| send(proxy.address(), &request, work.lines(), requests, &next, sink))
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
    });
    let expected = requests * work.lines();
    while sink.arrived() < expected {
        assert!(started.elapsed() < 10 * PATIENCE, "{} of {expected} bytes", sink.arrived());
        std::thread::sleep(Duration::from_millis(1));
    }
    let until_arrived = started.elapsed();
    let mut answers: Vec<Duration> = sent.iter().flat_map(|it| it.answers.clone()).collect();
    answers.sort_unstable();
    Outcome {
        requests,
        refused: sent.iter().map(|it| it.refused).sum(),
        until_arrived,
        cpu: sent.iter().map(|it| it.cpu).sum(),
        answers,
    }
}

/// As kube-apiserver writes it.
fn request(address: SocketAddr, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /?timeout=30s HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Go-http-client/1.1\r\n\
         Content-Length: {}\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// One sender's part.
struct Sent {
    answers: Vec<Duration>,
    refused: u64,
    cpu: f64,
}

fn send(
    address: SocketAddr,
    request: &[u8],
    lines: u64,
    requests: u64,
    next: &AtomicU64,
    sink: &Sink,
) -> Sent {
    let mut stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_nodelay(true).expect("a TCP socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a TCP socket");
    let mut sent = Sent { answers: Vec::new(), refused: 0, cpu: 0.0 };
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= requests {
            break;
        }
        while (index * lines).saturating_sub(sink.arrived()) > AHEAD_MAX {
            std::thread::sleep(Duration::from_micros(500));
        }
        loop {
            let begun = Instant::now();
            stream.write_all(request).expect("the proxy reads");
            let status = read_answer(&mut stream);
            if status == 200 {
                sent.answers.push(begun.elapsed());
                break;
            }
            sent.refused += 1;
            assert!(sent.refused < 10_000, "status {status} again and again");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    sent.cpu = thread_cpu();
    sent
}

/// Reads an answer to its end and gives its status.
fn read_answer(stream: &mut TcpStream) -> u16 {
    let mut buffer = [0; 4096];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).expect("an answer");
        assert!(count > 0, "the connection ended before its answer");
        filled += count;
        let Some(head) = memchr::memmem::find(&buffer[..filled], b"\r\n\r\n") else { continue };
        let length = head + 4 + content_length(&buffer[..head]);
        assert!(length <= buffer.len(), "an answer of {length} bytes");
        if filled >= length {
            let status = std::str::from_utf8(&buffer[9..12]).expect("HTTP/1.1 and a status");
            return status.parse().expect("a number");
        }
    }
}
