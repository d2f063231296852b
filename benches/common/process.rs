//! A program that is measured, and its figures from `/proc`.

#![allow(dead_code, reason = "no bench needs everything")]

use std::collections::BTreeMap;
use std::ops::Sub;
use std::process::{Child, Command};

/// The ticks of CPU time per second in `/proc/PID/stat` (USER_HZ): 100 on x86-64 and ARM.
const TICKS_PER_SECOND: f64 = 100.0;

/// A child process, which is killed when this is dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let program = command.get_program().to_owned();
        Self(command.spawn().unwrap_or_else(|error| panic!("{program:?} does not run: {error}")))
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Returns the CPU time of the process, including threads that have ended and children that it
    /// has waited for.
    pub(crate) fn cpu(&self) -> Cpu {
        cpu_of(&self.0.id().to_string())
    }

    /// Returns the CPU time of the thread with this name, or zero if there is no such thread.
    pub(crate) fn cpu_of_thread(&self, name: &str) -> Cpu {
        let tasks = format!("/proc/{}/task", self.0.id());
        for task in std::fs::read_dir(tasks).expect("the process lives") {
            let task = task.expect("a thread").path();
            // A thread may have ended since it was listed.
            let comm = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
            if comm.trim_end() == name {
                let task = task.strip_prefix("/proc").expect("what was listed");
                return cpu_of(&task.display().to_string());
            }
        }
        Cpu { user: 0.0, system: 0.0 }
    }

    /// Returns how often the current threads of the process have begun to wait.
    pub(crate) fn waits(&self) -> u64 {
        self.threads().0.values().map(|thread| thread.waits).sum()
    }

    /// Returns the CPU time and the waits of the current threads of the process.
    pub(crate) fn threads(&self) -> Threads {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id()));
        let threads = tasks.expect("the process lives").filter_map(|task| {
            let task = task.expect("a thread");
            // The thread may have ended since it was listed.
            let status = std::fs::read_to_string(task.path().join("status")).ok()?;
            let schedstat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            let mut lines = status.lines();
            let waits = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            let waits = waits.trim().parse().expect("a number");
            let thread = task.file_name().to_string_lossy().parse().expect("its number");
            Some((thread, Thread { cpu: seconds_of(&schedstat), waits }))
        });
        Threads(threads.collect())
    }

    /// Returns the value in the line `key` of `/proc/PID/status`, in MiB.
    pub(crate) fn memory(&self, key: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()));
        let status = status.expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a memory line");
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kibibytes / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The threads of a process, by thread ID.
pub(crate) struct Threads(BTreeMap<u32, Thread>);

/// The CPU time and the waits of a thread since its start.
#[derive(Clone, Copy, Default)]
pub(crate) struct Thread {
    /// The CPU time in seconds. The kernel counts it in nanoseconds here, but in hundredths of a
    /// second for [`Process::cpu`].
    pub(crate) cpu: f64,
    /// The number of times that the thread has begun to wait (voluntary context switches).
    pub(crate) waits: u64,
}

impl Threads {
    /// Returns the CPU time and the waits of all threads since `before`. A thread that has ended
    /// does not count.
    pub(crate) fn since(&self, before: &Self) -> Thread {
        self.0.iter().fold(Thread::default(), |sum, (number, now)| {
            let before = before.0.get(number).copied().unwrap_or_default();
            let waits = sum.waits + now.waits - before.waits;
            Thread { cpu: sum.cpu + now.cpu - before.cpu, waits }
        })
    }
}

/// CPU time in user mode and in the kernel, in seconds.
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl Cpu {
    pub(crate) fn total(self) -> f64 {
        self.user + self.system
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { user: self.user - before.user, system: self.system - before.system }
    }
}

/// Returns the CPU time of this process, which runs the load and the sink.
pub(crate) fn own_cpu() -> Cpu {
    cpu_of("self")
}

fn cpu_of(task: &str) -> Cpu {
    let stat = std::fs::read_to_string(format!("/proc/{task}/stat"));
    let stat = stat.expect("the process lives");
    // The name in brackets may contain any character. Field 3 comes after it (proc(5)).
    let (_, rest) = stat.rsplit_once(')').expect("a name in brackets");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let seconds = |field: usize| {
        let ticks: f64 = fields[field - 3].parse().expect("a number");
        ticks / TICKS_PER_SECOND
    };
    // Fields 14 to 17 are utime, stime, cutime and cstime. For a thread, the last two are those of
    // its process, and do not count.
    let children = if task.contains("task") { 0.0 } else { 1.0 };
    Cpu { user: seconds(14) + children * seconds(16), system: seconds(15) + children * seconds(17) }
}

/// Returns the CPU time of the calling thread, in seconds.
pub(crate) fn thread_cpu() -> f64 {
    seconds_of(&std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux"))
}

/// Returns the CPU time of a thread in seconds, from its file `schedstat`.
fn seconds_of(schedstat: &str) -> f64 {
    let nanoseconds = schedstat.split(' ').next().and_then(|text| text.parse::<f64>().ok());
    nanoseconds.expect("a number") / 1e9
}
