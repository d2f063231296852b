//! The floors: the least that the same work costs here, in programs that do nothing else.
//!
//! For each of them, the bench starts its own program again, so that its CPU time is counted like a
//! proxy's:
//!
//! - **The loop** is a proxy that knows nothing of HTTP. It reads up to 64 KiB from a connection,
//!   and writes them to the other side.
//! - **The writer** has one thread, and does only what a queue on disk cannot do without. For each
//!   group of requests, it calls `pwritev` once for each MiB, and then `fdatasync` once. It writes
//!   as many bytes as the relay: for each request, a header of 64 bytes and the lines; for each
//!   group, padding to whole blocks. The writes bypass the page cache where that works. They go
//!   into a file of 64 MiB that was written before. Nothing is copied, and there is no checksum. At
//!   saturation, the writer is as fast as the disk, and a group has one request of each sender. At
//!   a fixed rate, each request is a group.
//!
//! The row of the floor on disk is the sum of HAProxy's and the writer's figures in the same round.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, IoSlice, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags};

use crate::Arguments;
use crate::disk::{BLOCK, Disk, PIECE};
use crate::load::{permille, sleep_exactly};
use crate::process::{Cpu, Process};
use crate::run::{Fixed, Paced, Saturation};
use crate::work::Work;

/// The first argument that makes this program the loop or the writer.
const LOOP: &str = "floor-loop";
const WRITER: &str = "floor-writer";

/// The most bytes that the loop reads at once.
const BUFFER: usize = 64 * 1024;

/// The size of the writer's file: the default of `queue.segment_bytes`.
const FILE: u64 = 64 << 20;

/// The size of a record's header (docs/internals/spool-format.md).
const RECORD_HEADER: u64 = 64;

/// Runs a floor if this process was started for it. Otherwise returns `false`.
pub(crate) fn run_if_asked() -> bool {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [LOOP, from, to] => pass_on(from, to),
        [WRITER, path] => carry_out_orders(Path::new(path)),
        _ => return false,
    }
    true
}

/// Returns the command that starts the loop between these addresses.
pub(crate) fn loop_between(from: SocketAddr, to: SocketAddr) -> Command {
    let mut command = Command::new(this_program());
    command.args([LOOP, &from.to_string(), &to.to_string()]);
    command
}

fn this_program() -> PathBuf {
    std::env::current_exe().expect("Linux knows it")
}

fn pass_on(from: &str, to: &str) {
    let listener = TcpListener::bind(from).expect("a free port");
    for client in listener.incoming() {
        let client = client.expect("a connection");
        let server = TcpStream::connect(to).expect("the sink listens");
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("a TCP socket");
        }
        let again = |stream: &TcpStream| stream.try_clone().expect("a free descriptor");
        let ways = [(again(&client), again(&server)), (server, client)];
        for (from, to) in ways {
            std::thread::spawn(move || copy(from, to));
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // The other direction may have ended the connection already.
    drop(to.shutdown(Shutdown::Both));
    drop(from.shutdown(Shutdown::Both));
}

/// Tells the writer which groups to write and sync. It is sent as a line of these numbers, in this
/// order.
struct Order {
    /// The size of a group before its padding.
    bytes: u64,
    groups: u64,
    /// The nanoseconds between the times at which consecutive groups are due. If it is 0, a group
    /// begins as soon as the last one is synced.
    between: u64,
    /// No group begins later than this many nanoseconds after the start.
    limit: u64,
}

/// The writer's report on an order. It is sent as a line of these numbers, in this order. Times are
/// in nanoseconds.
struct Done {
    groups: u64,
    elapsed: Duration,
    /// The times within which 50 %, 99 % and 99.9 % of the groups were synced.
    quantiles: [Duration; 3],
    late_p99: Duration,
}

/// Carries out the orders from standard input until that is closed. Runs in the writer's process.
fn carry_out_orders(path: &Path) {
    let open = |flags: OFlags| {
        let mut options = OpenOptions::new();
        let flags = flags.bits().try_into().expect("flags of open(2)");
        options.write(true).create(true).truncate(false).custom_flags(flags).open(path)
    };
    let mut file = open(OFlags::DIRECT).or_else(|_| open(OFlags::empty())).expect("a new file");
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, FILE).expect("room");
    let block = Aligned::new(BLOCK);
    if write(&file, block.bytes(), 0).is_err() {
        // The device needs larger blocks, or the file system has no direct writes.
        file = open(OFlags::empty()).expect("our own file");
    }
    // The relay usually writes into a file that was another segment before.
    let piece = Aligned::new(PIECE as u64);
    for at in (0..FILE).step_by(PIECE) {
        write(&file, piece.bytes(), at).expect("a disk that writes");
    }
    file.sync_all().expect("a disk that syncs");
    sleep_exactly();
    let mut answers = io::stdout();
    writeln!(answers, "ready").expect("the bench reads");
    let mut at = 0;
    for line in io::stdin().lines().map_while(Result::ok) {
        let done = Order::parse(&line).carry_out(&file, &mut at);
        writeln!(answers, "{}", done.text()).expect("the bench reads");
    }
}

/// Writes the bytes in calls of at most [`PIECE`] bytes.
fn write(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    for (piece, bytes) in bytes.chunks(PIECE).enumerate() {
        let at = at + (piece * PIECE) as u64;
        if rustix::io::pwritev(file, &[IoSlice::new(bytes)], at)? != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

impl Order {
    fn text(&self) -> String {
        let Self { bytes, groups, between, limit } = self;
        format!("{bytes} {groups} {between} {limit}")
    }

    fn parse(text: &str) -> Self {
        let [bytes, groups, between, limit] = numbers(text);
        Self { bytes, groups, between, limit }
    }

    /// Writes and syncs the groups one after the other, beginning at `at`. When the file is full,
    /// continues at its beginning.
    fn carry_out(&self, file: &File, at: &mut u64) -> Done {
        let group = Aligned::new(self.bytes);
        let (mut took, mut late) = (Vec::new(), Vec::new());
        let started = Instant::now();
        for index in 0..self.groups {
            if started.elapsed() >= Duration::from_nanos(self.limit) {
                break;
            }
            let mut begun = Instant::now();
            if self.between > 0 {
                let due = started + Duration::from_nanos(self.between * index);
                std::thread::sleep(due.saturating_duration_since(begun));
                late.push(due.elapsed());
                begun = due;
            }
            if *at + group.bytes().len() as u64 > FILE {
                *at = 0;
            }
            write(file, group.bytes(), *at).expect("a disk that writes");
            file.sync_data().expect("a disk that syncs");
            *at += group.bytes().len() as u64;
            took.push(begun.elapsed());
        }
        let elapsed = started.elapsed();
        took.sort_unstable();
        late.sort_unstable();
        let late_p99 = if late.is_empty() { Duration::ZERO } else { permille(&late, 990) };
        let quantiles = [500, 990, 999].map(|part| permille(&took, part));
        Done { groups: took.len() as u64, elapsed, quantiles, late_p99 }
    }
}

impl Done {
    fn text(&self) -> String {
        let Self { groups, elapsed, quantiles: [p50, p99, p999], late_p99 } = self;
        let mut text = groups.to_string();
        for time in [elapsed, p50, p99, p999, late_p99] {
            write!(text, " {}", time.as_nanos()).expect("a String takes everything");
        }
        text
    }

    fn parse(text: &str) -> Self {
        let [groups, times @ ..] = numbers::<6>(text);
        let [elapsed, p50, p99, p999, late_p99] = times.map(Duration::from_nanos);
        Self { groups, elapsed, quantiles: [p50, p99, p999], late_p99 }
    }
}

fn numbers<const N: usize>(text: &str) -> [u64; N] {
    let numbers: Option<Vec<u64>> = text.split_whitespace().map(|it| it.parse().ok()).collect();
    let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.unwrap_or_else(|| panic!("{N} numbers, not {text:?}"))
}

/// Filler text for a direct write: whole blocks, in memory that is aligned to blocks.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// Makes enough blocks for `bytes` bytes.
    fn new(bytes: u64) -> Self {
        let size = |bytes: u64| usize::try_from(bytes).expect("it fits into memory");
        let length = size(bytes.next_multiple_of(BLOCK));
        let memory: Vec<u8> = (b'a'..=b'z').cycle().take(length + size(BLOCK)).collect();
        let start = memory.as_ptr().align_offset(size(BLOCK));
        Self { memory, start, length }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

/// The writer's process, as the bench sees it.
pub(crate) struct Writer<'a> {
    work: &'a Work,
    // The order of these fields matters: the process ends before `disk` removes its file.
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    process: Process,
    disk: Disk,
    rss_idle: f64,
}

impl<'a> Writer<'a> {
    /// Starts the process, and waits until it has written its file.
    pub(crate) fn start(work: &'a Work, arguments: &Arguments) -> Self {
        let disk = Disk::new(&arguments.directory);
        let mut command = Command::new(this_program());
        command.arg(WRITER).arg(disk.path().join("file"));
        let mut process = Process::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let orders = process.child().stdin.take().expect("piped");
        let mut answers = BufReader::new(process.child().stdout.take().expect("piped"));
        let mut ready = String::new();
        answers.read_line(&mut ready).expect("the writer starts");
        assert_eq!(ready, "ready\n", "the writer starts");
        disk.settle();
        let rss_idle = process.memory("VmRSS:");
        Self { work, orders, answers, process, disk, rss_idle }
    }

    fn carry_out(&mut self, order: &Order) -> Done {
        writeln!(self.orders, "{}", order.text()).expect("the writer reads");
        let mut done = String::new();
        self.answers.read_line(&mut done).expect("the writer answers");
        Done::parse(&done)
    }

    fn order(&self, requests: u64) -> Order {
        let bytes = requests * (RECORD_HEADER + self.work.lines());
        Order { bytes, groups: u64::MAX, between: 0, limit: u64::MAX }
    }

    /// Writes groups with one request of each sender, as fast as the disk allows.
    pub(crate) fn saturate(mut self, arguments: &Arguments) -> Saturation {
        let in_group = arguments.senders as u64;
        let mut order = self.order(in_group);
        order.groups = 8;
        self.carry_out(&order);
        order.groups = u64::MAX;
        order.limit = nanoseconds(arguments.seconds);
        let before = self.process.cpu();
        let done = self.carry_out(&order);
        let cpu = self.process.cpu() - before;
        self.disk.settle();
        let requests = done.groups * in_group;
        Saturation {
            cpu,
            load_cpu: 0.0,
            sink_cpu: 0.0,
            requests,
            events: requests * self.work.events,
            gigabytes: (requests * self.work.body.len() as u64) as f64 / 1e9,
            seconds: done.elapsed.as_secs_f64(),
            refused: 0,
            rss_idle: self.rss_idle,
            rss_peak: self.process.memory("VmHWM:"),
            rss_beyond: 0.0,
        }
    }

    /// Writes this many groups of one request each, at this rate.
    pub(crate) fn hold(&mut self, requests: u64, per_second: f64) -> Fixed {
        let mut order = self.order(1);
        order.groups = requests;
        order.between = nanoseconds(1.0 / per_second);
        let before = self.process.threads();
        let done = self.carry_out(&order);
        let spent = self.process.threads().since(&before);
        let [p50, p99, p999] = done.quantiles;
        Fixed {
            cpu: spent.cpu,
            gigabytes: (requests * self.work.body.len() as u64) as f64 / 1e9,
            seconds: done.elapsed.as_secs_f64(),
            waits: spent.waits as f64 / requests as f64,
            answers: Paced { p50, p99, p999, late_p99: done.late_p99, refused: 0 },
        }
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    Duration::from_secs_f64(seconds).as_nanos().try_into().expect("less than centuries")
}

/// Returns the sum of HAProxy's run and the writer's, whose CPU time and duration are scaled to
/// HAProxy's bytes. The duration is that of the slower one.
pub(crate) fn at_saturation(haproxy: &Saturation, writer: &Saturation) -> Saturation {
    let share = haproxy.gigabytes / writer.gigabytes;
    let cpu = Cpu {
        user: haproxy.cpu.user + share * writer.cpu.user,
        system: haproxy.cpu.system + share * writer.cpu.system,
    };
    Saturation {
        cpu,
        seconds: haproxy.seconds.max(share * writer.seconds),
        rss_idle: haproxy.rss_idle + writer.rss_idle,
        rss_peak: haproxy.rss_peak + writer.rss_peak,
        ..*haproxy
    }
}

/// Returns the sum of HAProxy's run and the writer's at the same rate. Answer times are summed too,
/// because an answer has to wait until its request is on disk.
pub(crate) fn at_rate(haproxy: &Fixed, writer: &Fixed) -> Fixed {
    let (answers, synced) = (&haproxy.answers, &writer.answers);
    Fixed {
        cpu: haproxy.cpu + writer.cpu,
        waits: haproxy.waits + writer.waits,
        answers: Paced {
            p50: answers.p50 + synced.p50,
            p99: answers.p99 + synced.p99,
            p999: answers.p999 + synced.p999,
            late_p99: answers.late_p99.max(synced.late_p99),
            refused: answers.refused,
        },
        ..*haproxy
    }
}
