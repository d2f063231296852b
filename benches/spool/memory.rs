//! The queue on disk within the memory limit of a pod. It becomes full while the consumer accepts
//! nothing. Then it becomes empty, and then it works under a steady load.
//!
//! The relay runs in a memory cgroup of its own. The page cache of the queue's files counts towards
//! the limit, so the kernel has to free cached pages at the limit. The load and the sink run
//! outside.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::figures::spread;
use crate::load::{Load, Outcome, Until};
use crate::relay::Relay;
use crate::sink::{Sink, Wire};
use crate::work::Work;
use crate::{Arguments, interrupt};

/// The memory limit of the cgroup, in MiB.
const LIMIT: u64 = 512;

/// The size of the full queue, in MiB: three times the limit, so the page cache cannot hold it.
const QUEUE: u64 = 1536;

const SENDERS: usize = 4;

/// The steady load, in requests per second, and its duration in seconds.
const RATE: f64 = 200.0;
const STEADY: f64 = 5.0;

/// The time between two looks at the memory of the cgroup.
const LOOKS: Duration = Duration::from_millis(10);

/// The phases of a run, in order.
const PHASES: [&str; 3] = ["filling", "emptying", "steady"];

/// The deduplication windows that are compared, each with the output's key that sets it.
const WINDOWS: [(&str, &str); 2] = [("none", ""), ("1m", "filter.deduplicate = '1m'")];

/// The results of one phase.
struct Sample {
    gigabytes: f64,
    seconds: f64,
    /// The CPU time of the relay's process, in seconds.
    cpu: f64,
    /// The result of the load, or `None` for the phase in which the queue becomes empty.
    load: Option<Outcome>,
    usage: Usage,
}

/// The memory use of the cgroup in one phase.
#[derive(Clone, Copy, Default)]
struct Usage {
    /// The most memory, in MiB.
    most: f64,
    /// The most page cache, in MiB, perhaps at another moment than the other values.
    cached: f64,
    /// The most anonymous memory, in MiB.
    anonymous: f64,
    /// How many times the memory would have exceeded the limit.
    limit_hit: f64,
    /// The number of page faults for which the kernel had to read from the disk.
    major_faults: f64,
}

/// Returns the table, with a row for each window and phase, or a line that says why there is none.
pub(crate) fn table(disk: &Disk, arguments: &Arguments) -> String {
    let work = Work::metadata().distinct();
    let mut text = format!(
        "\n## In a memory cgroup\n\n{}; a limit of {LIMIT} MiB, `queue.max_bytes` {QUEUE} MiB.\n",
        work.name
    );
    // In addition to its size, the queue reserves space for its next segments.
    if disk.free() >> 20 < 2 * QUEUE {
        return text
            + &format!("\nLeft out: only {} MiB of the disk are free.\n", disk.free() >> 20);
    }
    if let Err(error) = Cgroup::new() {
        return text + &format!("\nLeft out: no memory cgroup can be made here ({error}).\n");
    }
    text += "\n| window of duplicates | phase | GB | seconds | CPU s/GB | p50 ms | p99 ms | max ms \
             | most MiB | page cache, most MiB | anonymous, most MiB | limit hit | major faults \
             | refused |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";
    let mut rounds: [Vec<[Sample; 3]>; 2] = [Vec::new(), Vec::new()];
    for round in 1..=arguments.rounds {
        for ((name, output), samples) in WINDOWS.iter().zip(&mut rounds) {
            eprintln!("memory, window of duplicates: {name}, {round}/{}", arguments.rounds);
            samples.push(measure(&work, output, disk, arguments));
        }
    }
    for ((name, _), rounds) in WINDOWS.iter().zip(&rounds) {
        for (index, phase) in PHASES.iter().enumerate() {
            let samples: Vec<&Sample> = rounds.iter().map(|phases| &phases[index]).collect();
            text += &row(name, phase, &samples);
        }
    }
    text
}

fn row(name: &str, phase: &str, samples: &[&Sample]) -> String {
    let over = |value: &dyn Fn(&Sample) -> f64, digits| {
        spread(samples.iter().map(|sample| value(sample)).collect()).show(digits)
    };
    let loads: Vec<&Outcome> = samples.iter().filter_map(|sample| sample.load.as_ref()).collect();
    let of_loads = |show: &dyn Fn() -> String| {
        if loads.is_empty() { "–".to_owned() } else { show() }
    };
    let milliseconds = |percent| {
        of_loads(&|| {
            let all = loads.iter().map(|load| load.percentile(percent).as_secs_f64() * 1e3);
            spread(all.collect()).show(2)
        })
    };
    let cells = [
        name.to_owned(),
        phase.to_owned(),
        over(&|it| it.gigabytes, 2),
        over(&|it| it.seconds, 1),
        over(&|it| it.cpu / it.gigabytes, 2),
        milliseconds(50),
        milliseconds(99),
        milliseconds(100),
        over(&|it| it.usage.most, 0),
        over(&|it| it.usage.cached, 0),
        over(&|it| it.usage.anonymous, 0),
        over(&|it| it.usage.limit_hit, 0),
        over(&|it| it.usage.major_faults, 0),
        of_loads(&|| loads.iter().map(|load| load.refused).sum::<u64>().to_string()),
    ];
    format!("| {} |\n", cells.join(" | "))
}

/// Makes one run: a new cgroup, a new sink, a new relay, and the phases.
fn measure(work: &Work, output: &str, disk: &Disk, arguments: &Arguments) -> [Sample; 3] {
    disk.settle();
    let queue = disk.path().join("queue");
    // The order of these variables matters: the cgroup is removed last, when the relay has ended.
    let cgroup = Arc::new(Cgroup::new().expect("it could be made before"));
    let sink = Sink::start(Wire::Http);
    sink.hold_back(u64::MAX);
    let mut relay = Relay::start_by(
        cgroup.command(&arguments.relay),
        &format!("queue.max_bytes = '{QUEUE}MiB'\nqueue.directory = '{}'", queue.display()),
        "",
        // A request that the consumer holds back does not time out.
        &format!(
            "type = 'http'\nurls = ['http://{}/']\ntimeouts = {{ request = '1h' }}\n{output}",
            sink.address()
        ),
    );
    let load =
        Load { work, address: relay.address, senders: SENDERS, sink: &sink, ahead_max: u64::MAX };
    let bytes = |load: &Outcome| load.requests * work.body.len() as u64;

    let filling = observe(&mut relay, &cgroup, |_| {
        let load = load.run(Until::Full);
        (bytes(&load), Some(load))
    });
    let filled = filling.load.as_ref().expect("a load");
    let emptying = observe(&mut relay, &cgroup, |relay| {
        sink.hold_back(0);
        wait(relay, &sink);
        (bytes(filled), None)
    });
    // This fails if an event was dropped as a duplicate.
    relay.wait_until_empty(filled.requests * work.events);
    let steady = observe(&mut relay, &cgroup, |relay| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a thousand")]
        let requests = (RATE * STEADY) as u64;
        let load = load.run(Until::Paced { requests, per_second: RATE });
        wait(relay, &sink);
        (bytes(&load), Some(load))
    });
    let requests = filled.requests + steady.load.as_ref().expect("a load").requests;
    relay.wait_until_empty(requests * work.events);
    drop(relay);
    std::fs::remove_dir_all(&queue).expect("our own directory");
    [filling, emptying, steady]
}

/// Measures one phase. `phase` returns the size of its request bodies in bytes, and its load.
fn observe(
    relay: &mut Relay,
    cgroup: &Arc<Cgroup>,
    phase: impl FnOnce(&mut Relay) -> (u64, Option<Outcome>),
) -> Sample {
    let (watch, cpu, begun) = (Watch::start(cgroup), relay.process.cpu(), Instant::now());
    let (bytes, load) = phase(relay);
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = (relay.process.cpu() - cpu).total();
    Sample { gigabytes: bytes as f64 / 1e9, seconds, cpu, load, usage: watch.end() }
}

/// Waits until nothing is missing at the sink. Panics if the relay has ended, for example because
/// the kernel has killed it for its memory.
fn wait(relay: &mut Relay, sink: &Sink) {
    while sink.missing() > 0 {
        interrupt::check();
        let ended = relay.process.child().try_wait().expect("our own process");
        assert!(ended.is_none(), "the relay has ended: {ended:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The files of a memory cgroup. In a file with several values, each follows its name and a space.
struct Files {
    limit: &'static str,
    /// The file with the peak of the memory.
    peak: &'static str,
    /// The file that counts how often the limit was hit, and the name of this value.
    limit_hit: (&'static str, &'static str),
    /// The names of the values in the file `memory.stat`.
    cached: &'static str,
    anonymous: &'static str,
}

/// The files of cgroup v1.
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    limit_hit: ("memory.failcnt", ""),
    cached: "cache ",
    anonymous: "rss ",
};

/// The files of cgroup v2.
const V2: Files = Files {
    limit: "memory.max",
    peak: "memory.peak",
    limit_hit: ("memory.events", "max "),
    cached: "file ",
    anonymous: "anon ",
};

/// A memory cgroup with a limit, which is removed on drop. Its processes must have ended by then.
struct Cgroup {
    directory: Directory,
    files: &'static Files,
    /// The file with the peak. It stays open, because with cgroup v2, only the open file that
    /// resets the peak sees the new one.
    peak: File,
}

/// The directory of a cgroup, which is removed on drop.
struct Directory(PathBuf);

impl Cgroup {
    fn new() -> io::Result<Self> {
        let mounted = Path::new("/sys/fs/cgroup");
        let memory = mounted.join("memory");
        let (files, parent) =
            if memory.join(V1.limit).exists() { (&V1, &*memory) } else { (&V2, mounted) };
        let path = parent.join(format!("kube-audit-forwarder-bench-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        let directory = Directory(path);
        std::fs::write(directory.0.join(files.limit), (LIMIT << 20).to_string())?;
        let peak = directory.0.join(files.peak);
        // With cgroup v2, the file is writable since Linux 6.12.
        let opened = File::options().read(true).write(true).open(&peak);
        let peak = opened.or_else(|_| File::open(&peak))?;
        Ok(Self { directory, files, peak })
    }

    /// Returns a command that runs `binary` in this cgroup from its first instruction. Arguments
    /// that are added to the command go to `binary`.
    fn command(&self, binary: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]);
        command.arg(self.directory.0.join("cgroup.procs")).arg(binary);
        command
    }

    /// Resets the peak. Before Linux 6.12, cgroup v2 cannot do that, and the peak is the one since
    /// the start.
    fn restart_peak(&self) {
        drop(self.peak.write_all_at(b"0", 0));
    }

    /// Returns the current values: counts since the start, and the peak since its last reset.
    fn usage(&self) -> Usage {
        let read = |name| {
            let text = std::fs::read_to_string(self.directory.0.join(name));
            text.expect("a file of each memory cgroup")
        };
        let mut peak = [0; 32];
        let length = self.peak.read_at(&mut peak, 0).expect("a file that can be read");
        let peak = std::str::from_utf8(&peak[..length]).expect("a number is ASCII");
        let (stat, (limit_hit, name)) = (read("memory.stat"), self.files.limit_hit);
        let mebibytes = |text, name| value_of(text, name) / f64::from(1 << 20);
        Usage {
            most: mebibytes(peak, ""),
            cached: mebibytes(&stat, self.files.cached),
            anonymous: mebibytes(&stat, self.files.anonymous),
            limit_hit: value_of(&read(limit_hit), name),
            major_faults: value_of(&stat, "pgmajfault "),
        }
    }
}

/// Returns the number that follows `name` at the beginning of a line.
fn value_of(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name}"))
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The kernel may need a moment after the last process has ended.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} cannot be removed", self.0.display());
    }
}

/// A thread that looks at the memory of a cgroup every [`LOOKS`].
struct Watch {
    cgroup: Arc<Cgroup>,
    before: Usage,
    ended: Arc<AtomicBool>,
    looking: Option<JoinHandle<Usage>>,
}

impl Watch {
    fn start(cgroup: &Arc<Cgroup>) -> Self {
        cgroup.restart_peak();
        let (before, ended) = (cgroup.usage(), Arc::<AtomicBool>::default());
        let (for_thread, until) = (Arc::clone(cgroup), Arc::clone(&ended));
        let looking = std::thread::spawn(move || {
            let mut most = Usage::default();
            while !until.load(Ordering::Relaxed) {
                let now = for_thread.usage();
                most.cached = most.cached.max(now.cached);
                most.anonymous = most.anonymous.max(now.anonymous);
                std::thread::sleep(LOOKS);
            }
            most
        });
        Self { cgroup: Arc::clone(cgroup), before, ended, looking: Some(looking) }
    }

    /// Returns the greatest memory values since the start, and the increase of the counts.
    fn end(mut self) -> Usage {
        self.ended.store(true, Ordering::Relaxed);
        let looking = self.looking.take().expect("it ends once");
        let (most, now) = (looking.join().expect("no panic"), self.cgroup.usage());
        Usage {
            most: now.most,
            limit_hit: now.limit_hit - self.before.limit_hit,
            major_faults: now.major_faults - self.before.major_faults,
            ..most
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(looking) = self.looking.take() {
            drop(looking.join());
        }
    }
}
