//! The senders: blocking sockets, one request under way on each, the bytes made beforehand.

#![allow(dead_code, reason = "no bench needs everything")]

use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::interrupt;
use crate::process::thread_cpu;
use crate::sink::Sink;
use crate::sink::content_length;
use crate::work::Work;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who sends what, and where to.
pub(crate) struct Load<'a> {
    pub(crate) work: &'a Work,
    pub(crate) address: SocketAddr,
    pub(crate) senders: usize,
    pub(crate) sink: &'a Sink,
    /// No new request while so many bytes are missing at the sink: a relay that answers before it delivers would
    /// otherwise be measured on filling its queue.
    pub(crate) ahead_max: u64,
}

/// When a load ends.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// So many requests.
    Requests(u64),
    /// So long.
    Over(Duration),
}

/// What became of it.
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    /// Answers other than 200; each of these requests was sent again.
    pub(crate) refused: u64,
    /// From the first byte sent to the last answer.
    pub(crate) took: Duration,
    /// CPU seconds of the senders.
    pub(crate) cpu: f64,
    /// From the first byte of a request to the last of its answer; sorted.
    answers: Vec<Duration>,
}

impl Outcome {
    /// The longest of the answers but for the slowest part of them; 100: of all.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.answers, percent)
    }
}

/// Of sorted durations.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

impl Load<'_> {
    /// Sends the work's body again and again, each sender the next one when the last one is answered.
    pub(crate) fn run(&self, until: Until) -> Outcome {
        let request = request(self.address, &self.work.body);
        let next = AtomicU64::new(0);
        let started = Instant::now();
        let mut sent: Vec<Sent> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..self.senders)
                .map(|_| scope.spawn(|| self.send(&request, &next, until, started)))
                .collect();
            handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
        });
        let took = started.elapsed();
        let mut answers: Vec<Duration> =
            sent.iter_mut().flat_map(|it| it.answers.drain(..)).collect();
        answers.sort_unstable();
        Outcome {
            requests: answers.len() as u64,
            refused: sent.iter().map(|it| it.refused).sum(),
            took,
            cpu: sent.iter().map(|it| it.cpu).sum(),
            answers,
        }
    }

    fn send(&self, request: &[u8], next: &AtomicU64, until: Until, started: Instant) -> Sent {
        let lines = self.work.lines();
        let mut stream = TcpStream::connect(self.address).expect("the proxy listens");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a TCP socket");
        let mut sent = Sent { answers: Vec::new(), refused: 0, cpu: 0.0 };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let ended = match until {
                Until::Requests(requests) => index >= requests,
                Until::Over(duration) => started.elapsed() >= duration,
            };
            if ended {
                break;
            }
            while self.sink.missing() > self.ahead_max {
                interrupt::check();
                std::thread::sleep(Duration::from_micros(500));
            }
            loop {
                interrupt::check();
                let begun = Instant::now();
                stream.write_all(request).expect("the proxy reads");
                let status = read_answer(&mut stream);
                if status == 200 {
                    sent.answers.push(begun.elapsed());
                    self.sink.expect(lines);
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
}

/// One sender's part.
struct Sent {
    answers: Vec<Duration>,
    refused: u64,
    cpu: f64,
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
