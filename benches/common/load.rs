//! The senders: blocking sockets, one request under way on each, the bytes made beforehand.

#![allow(dead_code, reason = "no bench needs everything")]

use std::io::Read;
use std::io::Write;
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
    /// So many requests, each due at its time, so many a second, whether those before are answered or not. An answer takes
    /// from then on: who waits for a free sender waits for the proxy.
    Paced { requests: u64, per_second: f64 },
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
    /// From the first byte of a request, or from when it was due, to the last of its answer; sorted.
    answers: Vec<Duration>,
    /// From when paced requests were due to their first bytes; sorted.
    late: Vec<Duration>,
}

impl Outcome {
    /// The longest of the answers but for the slowest part of them; 100: of all.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.answers, percent)
    }

    /// The same in thousandths.
    pub(crate) fn permille(&self, permille: usize) -> Duration {
        self.answers[(self.answers.len() * permille / 1000).min(self.answers.len() - 1)]
    }

    /// Of paced requests, from when they were due to their first bytes.
    pub(crate) fn late(&self, percent: usize) -> Duration {
        percentile(&self.late, percent)
    }
}

/// Of sorted durations.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

impl Load<'_> {
    /// Sends the work's requests in turn, each sender the next one when its last one is answered.
    pub(crate) fn run(&self, until: Until) -> Outcome {
        self.run_on(&mut self.connect(|stream| stream), until)
    }

    /// A connection for each sender.
    pub(crate) fn connect<S>(&self, wrap: impl Fn(TcpStream) -> S) -> Vec<S> {
        let connect = |_| {
            let stream = TcpStream::connect(self.address).expect("the proxy listens");
            stream.set_nodelay(true).expect("a TCP socket");
            stream.set_read_timeout(Some(PATIENCE)).expect("a TCP socket");
            wrap(stream)
        };
        (0..self.senders).map(connect).collect()
    }

    /// The same as [`Self::run`] on connections that there are, which are kept.
    pub(crate) fn run_on<S: Read + Write + Send>(
        &self,
        connections: &mut [S],
        until: Until,
    ) -> Outcome {
        let next = AtomicU64::new(0);
        let started = Instant::now();
        let mut sent: Vec<Sent> = std::thread::scope(|scope| {
            let next = &next;
            let handles: Vec<_> = connections
                .iter_mut()
                .map(|stream| scope.spawn(move || self.send(stream, next, until, started)))
                .collect();
            handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
        });
        let took = started.elapsed();
        let mut all = |of: fn(&mut Sent) -> &mut Vec<Duration>| {
            let mut all: Vec<Duration> = sent.iter_mut().flat_map(|it| of(it).drain(..)).collect();
            all.sort_unstable();
            all
        };
        let (answers, late) = (all(|it| &mut it.answers), all(|it| &mut it.late));
        Outcome {
            requests: answers.len() as u64,
            refused: sent.iter().map(|it| it.refused).sum(),
            took,
            cpu: sent.iter().map(|it| it.cpu).sum(),
            answers,
            late,
        }
    }

    fn send(
        &self,
        stream: &mut (impl Read + Write),
        next: &AtomicU64,
        until: Until,
        started: Instant,
    ) -> Sent {
        if matches!(until, Until::Paced { .. }) {
            sleep_exactly();
        }
        let (requests, lines) = (&self.work.requests, self.work.lines());
        let mut sent = Sent { answers: Vec::new(), late: Vec::new(), refused: 0, cpu: 0.0 };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (ended, due) = match until {
                Until::Requests(requests) => (index >= requests, None),
                Until::Over(duration) => (started.elapsed() >= duration, None),
                Until::Paced { requests, per_second } => {
                    let due = started + Duration::from_secs_f64(index as f64 / per_second);
                    (index >= requests, Some(due))
                }
            };
            if ended {
                break;
            }
            if let Some(due) = due {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                sent.late.push(due.elapsed());
            } else {
                self.wait_for_sink();
            }
            let turn = index % requests.len() as u64;
            let request = &requests[usize::try_from(turn).expect("an index")];
            loop {
                interrupt::check();
                let begun = due.unwrap_or_else(Instant::now);
                stream.write_all(request).expect("the proxy reads");
                stream.flush().expect("the proxy reads");
                let status = read_answer(stream);
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

    fn wait_for_sink(&self) {
        while self.sink.missing() > self.ahead_max {
            interrupt::check();
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

/// Ends the 50 µs by which the kernel lets this thread oversleep (prctl(2), PR_SET_TIMERSLACK).
fn sleep_exactly() {
    let task = std::fs::read_link("/proc/thread-self").expect("Linux");
    let thread = task.file_name().expect("PID/task/TID").display();
    std::fs::write(format!("/proc/{thread}/timerslack_ns"), "1").expect("a thread may");
}

/// One sender's part.
struct Sent {
    answers: Vec<Duration>,
    late: Vec<Duration>,
    refused: u64,
    cpu: f64,
}

/// Reads an answer to its end and gives its status.
fn read_answer(stream: &mut impl Read) -> u16 {
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
