//! Runs seeds in separate processes, shows one seed, and shortens its history.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tempfile::TempDir;

use crate::plan::Plan;
use crate::{kernel, mutants};

/// The most lives and commands of the program in a seed.
pub(crate) const LIVES: usize = 12;

/// The longest real time of a seed, which normally takes a fraction of a second.
const LIMIT: Duration = Duration::from_secs(120);

/// The result that a seed's process prints at its end.
#[derive(Debug, Deserialize)]
pub(crate) struct Verdict {
    sum: String,
    calls: u64,
    pub(crate) simulated: u64,
    events: u64,
    /// The places of known mistakes that the relay has reached, if its library records them.
    pub(crate) reached: BTreeSet<String>,
    pub(crate) faults: Vec<String>,
}

/// The copies of the relay's library that the lives of a seed load, and a place for the seeds'
/// files. The directory is in memory if possible.
pub(crate) struct Stage {
    directory: Arc<TempDir>,
    /// The mutant that is active, if any.
    mutant: Option<String>,
}

impl Stage {
    pub(crate) fn new(library: &Path) -> Self {
        let memory = Path::new("/dev/shm");
        let directory = match memory.is_dir() {
            true => TempDir::new_in(memory),
            false => TempDir::new(),
        };
        let directory = directory.expect("a writable directory");
        for life in 0..LIVES {
            let copy = directory.path().join(format!("{life}.so"));
            fs::copy(library, copy)
                .unwrap_or_else(|error| panic!("{}: {error}", library.display()));
        }
        Self { directory: Arc::new(directory), mutant: None }
    }

    /// Uses the library that cargo has built beside this program.
    pub(crate) fn of_this_build() -> Self {
        let program = std::env::current_exe().expect("this program");
        Self::new(&program.with_file_name("libsimulated_relay.so"))
    }

    /// Returns the same library with this mutant active.
    pub(crate) fn with_mutant(&self, name: &str) -> Self {
        Self { directory: Arc::clone(&self.directory), mutant: Some(name.to_owned()) }
    }

    /// Runs a seed without the actions in `left_out`. `worker` names its directory.
    pub(crate) fn run(
        &self,
        worker: usize,
        seed: u64,
        left_out: &[usize],
        trace: bool,
    ) -> (Option<Verdict>, String) {
        let directory = self.directory.path().join(format!("worker-{worker}"));
        fs::remove_dir_all(&directory).ok();
        fs::create_dir(&directory).expect("a writable directory");
        let left_out: Vec<String> = left_out.iter().map(ToString::to_string).collect();
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.env_clear().env(crate::SEED, seed.to_string());
        // AWS-LC mixes random numbers of the CPU (RDRAND) into its own, so two runs of a seed would
        // differ. Without this bit, it uses only the kernel, which is the simulated one.
        command.env("OPENSSL_ia32cap", "~0x4000000000000000");
        command.env("SIM_LIBRARIES", self.directory.path());
        command.env("SIM_LEFT_OUT", left_out.join(","));
        command.envs(self.mutant.as_ref().map(|name| ("KUBE_AUDIT_FORWARDER_MUTANT", name)));
        if trace {
            command.env("SIM_TRACE", "1");
        }
        let errors = directory.with_extension("errors");
        let out = fs::File::create(&errors).expect("a writable directory");
        command.current_dir(&directory).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(out);
        let mut child = command.spawn().expect("this program can be started");
        let (over, is_over) = mpsc::channel::<()>();
        let pid = child.id();
        let watching = std::thread::spawn(move || {
            if is_over.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                kernel::end_process(pid);
            }
        });
        let mut said = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            std::io::Read::read_to_string(&mut stdout, &mut said).ok();
        }
        let status = child.wait().expect("a child");
        drop(over);
        watching.join().expect("it does not panic");
        let mut errors =
            String::from_utf8_lossy(&fs::read(errors).unwrap_or_default()).into_owned();
        let verdict = said.lines().find_map(|line| serde_json::from_str(line).ok());
        if verdict.is_none() {
            errors += &format!("{said}\nthe process of seed {seed} ended with {status}\n");
        }
        (verdict, errors)
    }

    /// Returns the simulated seconds of a seed, and its faults or the error of its process.
    pub(crate) fn faults(
        &self,
        worker: usize,
        seed: u64,
        left_out: &[usize],
    ) -> (u64, Vec<String>) {
        match self.run(worker, seed, left_out, false) {
            (Some(verdict), _) => (verdict.simulated, verdict.faults),
            (None, errors) => (0, vec![errors]),
        }
    }
}

/// Runs each seed twice, and returns `true` if both runs of every seed have the same trace.
pub(crate) fn same(seeds: &str) -> bool {
    kernel::fix_addresses();
    let stage = Stage::of_this_build();
    let run = |worker, seed| match stage.run(worker, seed, &[], false) {
        (Some(Verdict { sum, calls, simulated, events, .. }), _) => {
            format!("{sum} after {calls} calls, {simulated} simulated seconds, {events} events")
        }
        (None, errors) => panic!("seed {seed}: {errors}"),
    };
    let mut is_same = true;
    for seed in range(seeds) {
        // The second run uses a directory with another name.
        let (one, other) = (run(0, seed), run(1, seed));
        if one == other {
            println!("seed {seed}: {one}");
        } else {
            println!("seed {seed} differs: {one}; and {other}");
            is_same = false;
        }
    }
    is_same
}

/// Returns the seeds of a range FROM..TO.
pub(crate) fn range(seeds: &str) -> Range<u64> {
    let (from, to) = seeds.split_once("..").expect("FROM..TO");
    from.parse().expect("a number")..to.parse().expect("a number")
}

/// Returns the seeds that the options select: those of `--seeds` and, with `--with TEXT`, only
/// those whose plan (config, consumers or actions) has this text.
pub(crate) fn seeds(options: &[&str], default: &str) -> Vec<u64> {
    let seeds = range(option(options, "--seeds").unwrap_or(default));
    let has = |seed: &u64| {
        let Some(text) = option(options, "--with") else { return true };
        let plan = format!("{:?}", Plan::new(*seed));
        text.split(" + ").all(|text| plan.contains(text))
    };
    seeds.filter(has).collect()
}

/// Returns the word after an option.
fn option<'a>(options: &[&'a str], name: &str) -> Option<&'a str> {
    options.iter().position(|it| *it == name).and_then(|at| options.get(at + 1)).copied()
}

/// Returns how many seeds run at the same time: the number of `--jobs`, or two.
pub(crate) fn jobs(options: &[&str]) -> usize {
    option(options, "--jobs").map_or(2, |jobs| jobs.parse().expect("a number"))
}

/// Returns how many seeds are run at most: the number of `--most`, or all.
pub(crate) fn most(options: &[&str]) -> usize {
    option(options, "--most").map_or(usize::MAX, |most| most.parse().expect("a number"))
}

/// Returns the words before the first option, and the options.
pub(crate) fn split<'a>(words: &'a [&'a str]) -> (&'a [&'a str], &'a [&'a str]) {
    let options = words.iter().position(|word| word.starts_with("--")).unwrap_or(words.len());
    words.split_at(options)
}

/// Runs seeds, and returns `true` if none of them has a fault.
pub(crate) fn run(options: &[&str]) -> bool {
    let seeds = seeds(options, "0..100");
    let all = options.contains(&"--all");
    kernel::fix_addresses();
    let stage = Stage::of_this_build();
    let failed = run_on(&stage, &seeds, jobs(options), all, &|_, _| ());
    if let Some(seed) = failed.first().filter(|_| !all) {
        shrink_on(&stage, *seed);
    }
    failed.is_empty()
}

/// Runs seeds, all of them or those up to the first fault, and hands each verdict to `told`. Prints
/// the faults and a summary, and returns the seeds that have faults.
pub(crate) fn run_on(
    stage: &Stage,
    seeds: &[u64],
    jobs: usize,
    all: bool,
    told: &(dyn Fn(u64, &Verdict) + Sync),
) -> Vec<u64> {
    let begun = Instant::now();
    let (next, simulated, events) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (is_over, failed) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for worker in 0..jobs {
            let (next, is_over, failed) = (&next, &is_over, &failed);
            let (simulated, events) = (&simulated, &events);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let next = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&seed) = seeds.get(next) else { break };
                    let (verdict, errors) = stage.run(worker, seed, &[], false);
                    let faults = verdict.as_ref().map_or(vec![errors], |it| it.faults.clone());
                    if let Some(verdict) = &verdict {
                        simulated.fetch_add(verdict.simulated, Ordering::Relaxed);
                        events.fetch_add(verdict.events, Ordering::Relaxed);
                        told(seed, verdict);
                    }
                    if !faults.is_empty() {
                        is_over.fetch_or(!all, Ordering::Relaxed);
                        println!("seed {seed}: {}", faults.join("\n    "));
                        failed.lock().expect("nothing panics with it").push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("nothing panics with it");
    let took = begun.elapsed().as_secs_f64();
    let hours = simulated.into_inner() as f64 / 3600.0;
    let used = kernel::time_of_children().as_secs_f64();
    println!(
        "{} seeds in {took:.1} s with {jobs} at once: {hours:.1} simulated hours, {} events, {} failed",
        next.into_inner().min(seeds.len()),
        events.into_inner(),
        failed.len(),
    );
    let each = hours * 3600.0 / used.max(0.001);
    println!("{used:.1} s of processors: {each:.0} simulated hours for each hour of a core");
    failed
}

/// Runs a seed, with a mutant if the options name one. Prints its history, its faults and, if the
/// options say so, its trace.
pub(crate) fn show(seed: &str, options: &[&str]) -> bool {
    let seed = seed.parse().expect("a number");
    kernel::fix_addresses();
    let stage = match option(options, "--mutant") {
        Some(name) => mutants::stage_of(name).unwrap_or_else(|error| panic!("{error}")),
        None => Stage::of_this_build(),
    };
    let (verdict, errors) = stage.run(0, seed, &[], options.contains(&"--trace"));
    print!("{errors}");
    history(seed, &[]);
    println!("{verdict:#?}");
    verdict.is_some_and(|verdict| verdict.faults.is_empty())
}

fn history(seed: u64, left_out: &[usize]) {
    let plan = Plan::new(seed);
    println!("{:#?}\n{:?}, ends at {:?}", plan.start, plan.consumers, plan.length);
    for (number, timed) in plan.actions.iter().enumerate() {
        if !left_out.contains(&number) {
            println!("{number:3} {timed}");
        }
    }
}

pub(crate) fn shrink(seed: &str) -> bool {
    kernel::fix_addresses();
    shrink_on(&Stage::of_this_build(), seed.parse().expect("a number"))
}

/// Leaves out as many actions as it can while the seed still fails, and prints the others.
fn shrink_on(stage: &Stage, seed: u64) -> bool {
    let fails = |left_out: &[usize]| {
        let (_, faults) = stage.faults(0, seed, left_out);
        (!faults.is_empty()).then_some(faults)
    };
    let Some(mut faults) = fails(&[]) else {
        println!("seed {seed} does not fail");
        return true;
    };
    let mut left_out = Vec::new();
    let count = Plan::new(seed).actions.len();
    let mut size = count.div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < count {
            let tried: Vec<usize> = (at..count.min(at + size)).chain(left_out.clone()).collect();
            if tried.len() > left_out.len()
                && let Some(found) = fails(&tried)
            {
                (faults, left_out) = (found, tried);
                left_out.sort_unstable();
                left_out.dedup();
            }
            at += size;
        }
        size /= 2;
    }
    println!("the shortest history of seed {seed} that still fails:");
    history(seed, &left_out);
    println!("{}", faults.join("\n"));
    println!("left out: {left_out:?}");
    false
}
