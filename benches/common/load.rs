//! The senders: threads with blocking sockets, each with one request in progress.

#![allow(dead_code, reason = "no bench needs everything")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::interrupt;
use crate::process::thread_cpu;
use crate::sink::{Sink, content_length};
use crate::work::Work;

/// The longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A load: its requests, their address, the number of senders, and the sink.
pub(crate) struct Load<'a> {
    pub(crate) work: &'a Work,
    pub(crate) address: SocketAddr,
    pub(crate) senders: usize,
    pub(crate) sink: &'a Sink,
    /// Senders wait while more than this many bytes have been answered but have not arrived at the
    /// sink. Otherwise, the measurement of a relay that answers before it delivers would show how
    /// it fills its queue. [`Until::Paced`] has no such limit.
    pub(crate) ahead_max: u64,
}

/// When a load ends.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// The load ends after this many requests.
    Requests(u64),
    /// The load ends after this time.
    Over(Duration),
    /// The load sends this many requests. Each is due at a fixed time, even if earlier requests are
    /// not answered yet. The duration of its answer counts from then, so it includes the wait for a
    /// free sender, which is a wait for the proxy.
    Paced { requests: u64, per_second: f64 },
    /// The load ends when a request is answered with 429, because the queue is full. Such a request
    /// is not sent again.
    Full,
}

/// The result of a load.
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    /// The number of answers other than 200. Each of these requests was sent again, except after a
    /// 429 with [`Until::Full`].
    pub(crate) refused: u64,
    /// The time from the start of the load to the last answer.
    pub(crate) took: Duration,
    /// The CPU time of the senders, in seconds.
    pub(crate) cpu: f64,
    /// For each request, the time from the first byte of its last attempt or, if it is paced, from
    /// when it was due, to the end of its answer. Sorted.
    answers: Vec<Duration>,
    /// For each paced request, the time from when it was due to its first byte. Sorted.
    late: Vec<Duration>,
}

impl Outcome {
    /// Returns the time within which `percent` % of the requests were answered; 100 gives the
    /// slowest.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        percentile(&self.answers, percent)
    }

    /// Like [`Self::percentile`], but in thousandths.
    pub(crate) fn permille(&self, permille: usize) -> Duration {
        self::permille(&self.answers, permille)
    }

    /// Returns the delay within which `percent` % of the paced requests were sent.
    pub(crate) fn late(&self, percent: usize) -> Duration {
        percentile(&self.late, percent)
    }
}

/// Returns the value at this percentage of sorted durations.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    permille(sorted, 10 * percent)
}

/// Returns the value at this number of thousandths of sorted durations.
pub(crate) fn permille(sorted: &[Duration], permille: usize) -> Duration {
    sorted[(sorted.len() * permille / 1000).min(sorted.len() - 1)]
}

impl Load<'_> {
    /// Connects, and sends the requests of the work in turn. Each sender sends its next request
    /// when its last one has been answered.
    pub(crate) fn run(&self, until: Until) -> Outcome {
        self.run_on(&mut self.connect(|stream| stream), until)
    }

    /// Makes a connection for each sender, as `wrap` returns it.
    pub(crate) fn connect<S>(&self, wrap: impl Fn(TcpStream) -> S) -> Vec<S> {
        let connect = |_| {
            let stream = TcpStream::connect(self.address).expect("the proxy listens");
            stream.set_nodelay(true).expect("a TCP socket");
            stream.set_read_timeout(Some(PATIENCE)).expect("a TCP socket");
            wrap(stream)
        };
        (0..self.senders).map(connect).collect()
    }

    /// Like [`Self::run`], but on existing connections, which stay open.
    pub(crate) fn run_on<S: Read + Write + Send>(
        &self,
        connections: &mut [S],
        until: Until,
    ) -> Outcome {
        let (next, full) = (AtomicU64::new(0), AtomicBool::new(false));
        let started = Instant::now();
        let mut sent: Vec<Sent> = std::thread::scope(|scope| {
            let (next, full) = (&next, &full);
            let handles: Vec<_> = connections
                .iter_mut()
                .map(|stream| scope.spawn(move || self.send(stream, next, full, until, started)))
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
        full: &AtomicBool,
        until: Until,
        started: Instant,
    ) -> Sent {
        if matches!(until, Until::Paced { .. }) {
            sleep_exactly();
        }
        let (lines, mut copy) = (self.work.lines(), Vec::new());
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
                Until::Full => (full.load(Ordering::Relaxed), None),
            };
            if ended {
                break;
            }
            let request = self.work.request(index, &mut copy);
            if let Some(due) = due {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                sent.late.push(due.elapsed());
            } else {
                self.wait_for_sink();
            }
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
                if status == 429 && matches!(until, Until::Full) {
                    full.store(true, Ordering::Relaxed);
                    break;
                }
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

/// Makes this thread wake up on time. By default, the kernel may let it sleep 50 µs too long
/// (prctl(2), PR_SET_TIMERSLACK).
pub(crate) fn sleep_exactly() {
    let task = std::fs::read_link("/proc/thread-self").expect("Linux");
    let thread = task.file_name().expect("PID/task/TID").display();
    std::fs::write(format!("/proc/{thread}/timerslack_ns"), "1").expect("a thread may");
}

/// The results of one sender.
struct Sent {
    answers: Vec<Duration>,
    late: Vec<Duration>,
    refused: u64,
    cpu: f64,
}

/// Reads an answer to its end and returns its status.
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
