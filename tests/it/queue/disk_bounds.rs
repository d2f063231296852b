//! The limits of the queue on disk: `queue.max_bytes` for its files, and a fixed cache in memory,
//! whatever the size of the backlog.

use std::io::Read as _;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use crate::support::answers::assert_refusal;
use crate::support::numbered::list;
use crate::support::prelude::*;
use crate::support::spool::Usage;

const MIB: u64 = 1024 * 1024;

/// A thread that continuously measures how much space a directory uses.
struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Usage>,
}

impl Watch {
    fn over(spool: &Spool) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (told, spool) = (Arc::clone(&over), Spool::at(spool.path().to_owned()));
        let thread = std::thread::spawn(move || {
            let mut most = Usage { lengths: 0, allocated: 0 };
            while !told.load(Ordering::SeqCst) {
                let now = spool.usage();
                most.lengths = most.lengths.max(now.lengths);
                most.allocated = most.allocated.max(now.allocated);
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        Self { over, thread }
    }

    /// Ends the thread, and returns the most space that the directory has used.
    fn most(self) -> Usage {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().expect("looking does not panic")
    }
}

fn assert_within(usage: Usage, bytes: u64) {
    assert!(usage.lengths <= bytes, "{usage:?}, allowed are {bytes}");
    assert!(usage.allocated <= bytes, "{usage:?}, allowed are {bytes}");
    assert!(usage.lengths > bytes / 2, "{usage:?}: far from full, nothing was tested");
}

const MAX: u64 = 8 * MIB;

fn queue(spool: &Spool, more: &str) -> String {
    spool.queue(&format!("max_bytes = {MAX}\nsegment_bytes = \"1MiB\"\n{more}"))
}

/// The answers to senders that posted batches of 400 events at the same time.
struct Posted {
    /// The accepted batches, each with its sender and its number.
    accepted: Vec<(u32, u64)>,
    refused: u32,
}

/// Four senders each post this many batches of about 200 KB.
fn overload(address: SocketAddr, first: u32, batches: u64) -> Posted {
    let senders: Vec<_> = (first..first + 4)
        .map(|sender| {
            std::thread::spawn(move || {
                let mut client = Client::connect(address).unwrap();
                let mut posted = Posted { accepted: Vec::new(), refused: 0 };
                for batch in 0..batches {
                    let body = list(sender, batch * 400..(batch + 1) * 400);
                    let answer = client.post("/audit", "application/json", &body).unwrap();
                    match answer.status {
                        200 => posted.accepted.push((sender, batch)),
                        _ => {
                            assert_refusal(&answer, 429);
                            posted.refused += 1;
                        }
                    }
                }
                posted
            })
        })
        .collect();
    let mut posted = Posted { accepted: Vec::new(), refused: 0 };
    for sender in senders {
        let of_sender = sender.join().unwrap();
        posted.accepted.extend(of_sender.accepted);
        posted.refused += of_sender.refused;
    }
    posted
}

#[allow(clippy::cast_precision_loss, reason = "a few thousand")]
fn real(count: u64) -> f64 {
    count as f64
}

/// Returns the batches that arrived. Panics if a batch arrived in part.
fn arrived(consumer: &Tallying) -> Vec<(u32, u64)> {
    let ids: Vec<_> = consumer.tally.ids().into_iter().collect();
    let mut batches: Vec<(u32, u64)> = Vec::new();
    for batch in ids.chunk_by(|a, b| (a.sender, a.number / 400) == (b.sender, b.number / 400)) {
        assert_eq!(batch.len(), 400, "a batch arrived in part, at {:?}", batch[0]);
        batches.push((batch[0].sender, batch[0].number / 400));
    }
    batches
}

/// Method: four senders overload the queue several times: with the consumer closed, while the queue
/// is being emptied, and after a kill. A thread measures the directory all the time. The files may
/// never use more than `queue.max_bytes`, and exactly the accepted batches must arrive.
#[test]
fn a_full_directory_refuses_and_never_takes_more_than_it_may() {
    let spool = Spool::new();
    let mut consumer = Tallying::tcp().closed();
    // The consumer closes with unread bytes. On a busy machine that can take longer than 100 ms,
    // after which the output would count the bytes as delivered.
    let output = consumer.output("out", "replay_window = \"1s\"\n");
    let config = format!("{BASE}{output}{}", queue(&spool, ""));
    let relay = Relay::start(&config);
    let watch = Watch::over(&spool);
    let mut posted = overload(relay.address(), 0, 20);
    assert!(posted.refused > 10, "{} refused", posted.refused);
    let metrics = relay.metrics();
    let refused = metrics.value("requests_rejected_total", &[("reason", "queue_full")]);
    assert_eq!(refused, f64::from(posted.refused));
    assert!(metrics.value("queue_bytes", &[]) <= real(MAX));
    assert_eq!(metrics.get("queue_writable", &[]), Some(1.0), "full is not broken");
    // The queue becomes full several times, while it is being emptied and after that.
    for first in [10, 20, 30] {
        consumer.set_open(true);
        let more = overload(relay.address(), first, 10);
        posted.accepted.extend(more.accepted);
        consumer.set_open(false);
        let more = overload(relay.address(), first + 4, 10);
        posted.accepted.extend(more.accepted);
    }
    let mut relay = relay;
    relay.kill();
    let relay = Relay::start(&config);
    let more = overload(relay.address(), 100, 10);
    assert!(more.refused > 0);
    posted.accepted.extend(more.accepted);
    consumer.set_open(true);
    relay.finish(Backlog::Empty);
    assert_within(watch.most(), MAX);
    wait_until("what was sent to be read", PATIENCE, || consumer.open() == 0);
    posted.accepted.sort_unstable();
    assert_eq!(arrived(&consumer), posted.accepted);
}

/// Method: every other record of a full directory is damaged, and the relay quarantines the damaged
/// bytes while it delivers. All files together may never use more than `queue.max_bytes`.
#[test]
fn copies_of_damaged_records_are_within_the_bounds_too() {
    let spool = Spool::new();
    let consumer = Tallying::tcp().closed();
    let config = format!("{BASE}{}{}", consumer.output("out", ""), queue(&spool, ""));
    let mut relay = Relay::start(&config);
    overload(relay.address(), 0, 20);
    relay.stop();
    for record in spool.records().iter().step_by(2) {
        spool.edit(&record.segment, |bytes| bytes[record.bytes.start + 100] ^= 1);
    }
    let mut consumer = consumer;
    consumer.set_open(true);
    let watch = Watch::over(&spool);
    let relay = Relay::start(&config);
    relay.finish(Backlog::Empty);
    assert_within(watch.most(), MAX);
}

/// A consumer that only counts lines.
fn counting_lines() -> (Server, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let server = Server::start(Options::default(), move |mut stream, connection| {
        let mut buffer = vec![0; 256 * 1024];
        while connection.may_go_on() {
            let Ok(size @ 1..) = stream.read(&mut buffer) else { return };
            let lines = memchr::memchr_iter(b'\n', &buffer[..size]).count();
            counted.fetch_add(lines as u64, Ordering::SeqCst);
        }
    });
    (server, count)
}

fn counting_requests() -> (HttpSink, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let sink = HttpSink::forgetful(move |request| {
        let lines = memchr::memchr_iter(b'\n', &request.body).count();
        counted.fetch_add(lines as u64, Ordering::SeqCst);
        Answer::status(200)
    });
    (sink, count)
}

/// Method: a backlog of 200 MiB is made, and two consumers then read it from the files at the same
/// time. The relay's highest resident memory is compared with fixed limits.
#[test]
fn memory_stays_bounded_with_a_backlog_of_many_times_the_cache() {
    const BACKLOG: u64 = 200 * MIB;
    let spool = Spool::new();
    let ((mut lines, lines_count), (mut requests, requests_count)) =
        (counting_lines(), counting_requests());
    lines.close();
    requests.close();
    let retry = "retry = { initial_interval = \"20ms\", max_interval = \"100ms\" }\n";
    let config = format!(
        "{BASE}[limits]\nmax_in_flight = \"8MiB\"\n{}\
         [[output]]\nname = \"lines\"\ntype = \"tcp\"\naddresses = [\"{}\"]\n{retry}\
         [[output]]\nname = \"requests\"\ntype = \"http\"\nurls = [\"http://{}/\"]\n\
         format = \"ndjson\"\nconcurrency = 1\n{retry}",
        spool.queue("max_bytes = \"1GiB\"\n"),
        lines.address(),
        requests.address(),
    );
    let relay = Relay::start(&config);
    // There are only four different bodies, so that the test itself needs little CPU time.
    let bodies: Vec<Vec<u8>> = (0..4).map(|seed| generated_batch(seed, 400, 1600)).collect();
    let bytes: usize = events_of(&bodies[0]).iter().map(|event| event.len() + 1).sum();
    let mut client = Client::connect(relay.address()).unwrap();
    let mut events = 0;
    while events / 400 * (bytes as u64) < BACKLOG {
        let body = &bodies[usize::try_from(events / 400 % 4).unwrap()];
        let answer = client.post("/audit", "application/json", body).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        events += 400;
    }
    let filled = relay.rss_bytes_max() / MIB;
    assert!(filled < 90, "{filled} MiB with a backlog of {} MiB", BACKLOG / MIB);
    lines.reopen();
    requests.reopen();
    wait_until("both to catch up", PATIENCE * 3, || {
        [&lines_count, &requests_count].iter().all(|count| count.load(Ordering::SeqCst) >= events)
    });
    relay.wait_until_delivered(PATIENCE);
    let most = relay.rss_bytes_max() / MIB;
    eprintln!("RSS: {filled} MiB with {} MiB of backlog, {most} MiB at most", BACKLOG / MIB);
    assert!(most < 95, "{most} MiB while {} MiB were delivered", BACKLOG / MIB);
    relay.finish(Backlog::Empty);
    assert!(spool.usage().lengths < 2 * 64 * MIB + MIB, "{}", text(spool.path()));
}

/// Method: a limit for the size of files (`ulimit -f`), which the kernel reports by a signal that
/// ends a process by default. Then the limit is lifted.
#[test]
fn a_limit_for_the_size_of_files_is_an_error_of_the_disk_and_ends_no_process() {
    let spool = Spool::new();
    let there = Arc::new(AtomicBool::new(false));
    let is_there = Arc::clone(&there);
    let sink = HttpSink::start(move |_| {
        Answer::status(if is_there.load(Ordering::Relaxed) { 200 } else { 503 })
    });
    let config = format!("{}{}", to_sink(sink.address(), ""), queue(&spool, ""));
    let relay = Relay::with(&config).launcher(&["prlimit", "--fsize=16384:unlimited"]).start();
    let (mut sent, mut refused) = (Vec::new(), 0);
    for seed in 0..20 {
        let batch = generated_batch(seed, 20, 900);
        match relay.post(&batch).status {
            200 => sent.extend(events_of(&batch)),
            503 => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert!(refused > 0, "the limit was reached");
    let told =
        relay.wait_for_log("the relay ignores this signal: it has no meaning for it", PATIENCE);
    assert_eq!(told["signal"], "SIGXFSZ");
    let pid = relay.pid().to_string();
    let lifted = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status();
    assert!(lifted.unwrap().success());
    there.store(true, Ordering::Relaxed);
    wait_until("batches are taken again", PATIENCE, || {
        let batch = generated_batch(99, 20, 900);
        let is_taken = relay.post(&batch).status == 200;
        if is_taken {
            sent.extend(events_of(&batch));
        }
        is_taken
    });
    relay.wait_until_delivered(PATIENCE);
    assert_none_missing(&accepted_events(&sink), &sent);
    assert_eq!(lost(&relay), 0.0);
    relay.finish(Backlog::Empty);
}
