//! Mutants: patches in `tests/sim/mutants`, each of which brings back one mistake that the program
//! had once. A mutant is found at a seed if the oracle accuses it there and does not accuse the
//! unchanged program.
//!
//! The patches are applied to a copy of the sources below `target/mutants`, which has a target
//! directory of its own, so that only the library is built for each of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use crate::kernel;
use crate::runs;
use crate::runs::Stage;

/// The directories that a patch may change. All else in the copy leads to the sources themselves.
const CHANGED: [&str; 2] = ["src", "crates"];

/// The longest sentence of the oracle in the table, in characters.
const SENTENCE_MAX: usize = 150;

/// Runs the mutants of these names, or all, and returns true if each of them could be built.
pub(crate) fn run(words: &[&str]) -> bool {
    let options = words.iter().position(|word| word.starts_with("--")).unwrap_or(words.len());
    let (names, options) = words.split_at(options);
    let seeds = runs::seeds(options, "0..300");
    let jobs = runs::jobs(options);
    let workshop = Workshop::of_this_build();
    kernel::fix_addresses();
    let original = workshop.make(None).unwrap_or_else(|error| panic!("without a patch: {error}"));
    let original = Original { stage: original, accused: Mutex::default() };
    println!("| mutant | seed | seeds | simulated hours | found by |\n|---|---|---|---|---|");
    let (mut found, mut tried, mut is_fine) = (0, 0, true);
    for patch in workshop.patches(names) {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy();
        match workshop.make(Some(&patch)) {
            Ok(stage) => {
                tried += 1;
                let search = Search::new(&stage, &original, &seeds, jobs);
                found += usize::from(search.found.is_some());
                println!("| `{name}` | {search}");
            }
            Err(error) => {
                is_fine = false;
                println!("| `{name}` | | | | FAILED: {error}");
            }
        }
    }
    println!("\nFound {found} of {tried} mutants, each with {} seeds at most.", seeds.len());
    is_fine
}

/// The copy of the sources, and where it is built.
struct Workshop {
    /// The sources themselves.
    root: PathBuf,
    copy: PathBuf,
    target: PathBuf,
}

impl Workshop {
    fn of_this_build() -> Self {
        let program = std::env::current_exe().expect("this program");
        let target = program.ancestors().nth(2).expect("the target directory").join("mutants");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = root.canonicalize().expect("the sources that this program was built from");
        Self { root, copy: target.join("sources"), target: target.join("target") }
    }

    /// Returns the patches of these names, or all, by name.
    fn patches(&self, names: &[&str]) -> Vec<PathBuf> {
        let directory = self.root.join("tests/sim/mutants");
        if !names.is_empty() {
            return names.iter().map(|name| directory.join(format!("{name}.patch"))).collect();
        }
        let files = fs::read_dir(directory).expect("the directory of the patches");
        let files = files.map(|file| file.expect("a file").path());
        let mut files: Vec<_> =
            files.filter(|file| file.extension().is_some_and(|it| it == "patch")).collect();
        files.sort();
        files
    }

    /// Builds the relay's library with a patch, or without one.
    fn make(&self, patch: Option<&Path>) -> Result<Stage, String> {
        self.copy_sources().map_err(|error| format!("the sources are not copied: {error}"))?;
        if let Some(patch) = patch {
            // With this ceiling, the copy is not a part of the repository around it. In a part of
            // one, git skips the files of the patch, and is content.
            let mut apply = Command::new("git");
            apply.arg("apply").arg(patch).env("GIT_CEILING_DIRECTORIES", self.copy.join(".."));
            done(apply.current_dir(&self.copy))?;
        }
        let mut build = Command::new("cargo");
        build.args(["build", "--quiet", "--package", "simulated-relay", "--locked"]);
        done(build.env("CARGO_TARGET_DIR", &self.target).current_dir(&self.copy))?;
        Ok(Stage::new(&self.target.join("debug/libsimulated_relay.so")))
    }

    /// Makes the copy as the sources are, without the changes of a patch. A file that is the same
    /// keeps its time, so that it is not built again.
    fn copy_sources(&self) -> io::Result<()> {
        fs::create_dir_all(&self.copy)?;
        for entry in fs::read_dir(&self.root)? {
            let (from, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            let to = self.copy.join(&name);
            if CHANGED.iter().any(|changed| name == *changed) {
                copy(&from, &to)?;
            } else if name != "target" && name != ".git" && to.symlink_metadata().is_err() {
                std::os::unix::fs::symlink(from, to)?;
            }
        }
        Ok(())
    }
}

/// Makes the directory `to` as `from` is.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if !from.join(entry.file_name()).exists() {
            fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()))?;
        }
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&from, &to)?;
        } else {
            let bytes = fs::read(&from)?;
            if fs::read(&to).ok().as_ref() != Some(&bytes) {
                fs::write(&to, bytes)?;
            }
        }
    }
    Ok(())
}

/// Runs a command to its end.
fn done(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// The unchanged program.
struct Original {
    stage: Stage,
    /// Whether the oracle accuses it, by seed.
    accused: Mutex<BTreeMap<u64, bool>>,
}

impl Original {
    fn is_accused(&self, worker: usize, seed: u64) -> bool {
        let known = self.accused.lock().expect("nothing panics with it").get(&seed).copied();
        known.unwrap_or_else(|| {
            let is_accused = !self.stage.faults(worker, seed, &[]).1.is_empty();
            self.accused.lock().expect("nothing panics with it").insert(seed, is_accused);
            is_accused
        })
    }
}

/// How a mutant was looked for.
struct Search {
    /// The number of seeds that it took, and the simulated seconds.
    seeds: usize,
    simulated: u64,
    /// The seed that found it, and what the oracle says.
    found: Option<(u64, String)>,
}

impl Search {
    /// Runs seeds until one finds the mutant.
    fn new(mutant: &Stage, original: &Original, seeds: &[u64], jobs: usize) -> Self {
        let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(seeds.len()));
        let runs = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for worker in 0..jobs {
                let (next, end, runs) = (&next, &end, &runs);
                scope.spawn(move || {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(&seed) = seeds.get(at) else { break };
                        if at >= end.load(Ordering::Relaxed) {
                            break;
                        }
                        let (simulated, mut faults) = mutant.faults(worker, seed, &[]);
                        if !faults.is_empty() && original.is_accused(worker, seed) {
                            faults.clear();
                        }
                        if !faults.is_empty() {
                            end.fetch_min(at, Ordering::Relaxed);
                        }
                        let mut runs = runs.lock().expect("nothing panics with it");
                        runs.insert(seed, (simulated, faults));
                    }
                });
            }
        });
        let runs = runs.into_inner().expect("nothing panics with it");
        let mut search = Self { seeds: 0, simulated: 0, found: None };
        for (seed, (simulated, faults)) in runs {
            search.seeds += 1;
            search.simulated += simulated;
            if !faults.is_empty() {
                search.found = faults.into_iter().next().map(|fault| (seed, fault));
                break;
            }
        }
        search
    }
}

impl std::fmt::Display for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.simulated as f64 / 3600.0;
        match &self.found {
            Some((seed, fault)) => {
                let sentence = fault.trim().replace(['\n', '|'], " ");
                let sentence: String = sentence.chars().take(SENTENCE_MAX).collect();
                write!(f, "{seed} | {} | {hours:.1} | {sentence} |", self.seeds)
            }
            None => write!(f, "not found | {} | {hours:.1} | |", self.seeds),
        }
    }
}
