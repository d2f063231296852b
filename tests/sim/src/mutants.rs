//! Mutants: patches in `tests/sim/mutants`, each of which brings back one mistake that the program
//! had once. A mutant is found at a seed if the oracle accuses it there by a rule that its header
//! names, and does not accuse the unchanged program by this rule.
//!
//! The patches are applied to a copy of the sources below `target/mutants`, which has a target
//! directory of its own, so that only the library is built for each of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, io};

use crate::oracle::RULES;
use crate::runs::Stage;
use crate::{kernel, runs};

/// The directories that a patch may change. All else in the copy leads to the sources themselves.
const CHANGED: [&str; 2] = ["src", "crates"];

/// The longest sentence of the oracle that is printed, in characters.
const SENTENCE_MAX: usize = 200;

/// Runs the mutants of these names, or all, and returns true if each of them could be built.
pub(crate) fn run(words: &[&str]) -> bool {
    let options = words.iter().position(|word| word.starts_with("--")).unwrap_or(words.len());
    let (names, options) = words.split_at(options);
    let jobs = runs::jobs(options);
    let workshop = Workshop::of_this_build();
    kernel::fix_addresses();
    let original = Original { stage: Stage::of_this_build(), accused: Mutex::default() };
    println!(
        "| name | mistake | seed | after | seeds | hours | rule |\n|---|---|---|---|---|---|---|"
    );
    let (mut found, mut tried, mut is_fine) = (0, 0, true);
    for patch in workshop.patches(names) {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy();
        let made = Header::of(&patch).and_then(|header| Ok((workshop.make(&patch)?, header)));
        match made {
            Ok((stage, header)) => {
                tried += 1;
                let search = Search::new(&stage, &original, &header, &header.seeds(options), jobs);
                found += usize::from(search.found.is_some());
                println!("| `{name}` | {} | {search}", header.mistake);
                search.told().into_iter().for_each(|told| eprintln!("{name}: {told}"));
            }
            Err(error) => {
                is_fine = false;
                println!("| `{name}` | | | | | | FAILED: {error}");
            }
        }
    }
    println!("\nFound {found} of {tried} mutants.");
    is_fine
}

/// The names of the lines of a header.
const LINES: [&str; 7] = ["Mistake", "From", "Loses", "Needs", "Sees", "Scene", "Seed"];

/// The content of the lines before the first `diff` of a patch, as far as this program needs it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Header {
    mistake: String,
    /// The rules that object.
    rules: Vec<String>,
    /// A text in the plan of the seeds that have what the mistake needs.
    scene: Option<String>,
    /// Seeds that are tried first.
    first: Vec<u64>,
}

impl Header {
    fn of(patch: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(patch).map_err(|error| format!("not read: {error}"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut lines = BTreeMap::<&str, String>::new();
        let mut last = None;
        for line in text.lines().take_while(|line| !line.starts_with("diff ")) {
            if let Some(more) = line.strip_prefix("  ") {
                let content = last.and_then(|name| lines.get_mut(name));
                let content = content.ok_or_else(|| format!("it continues no line: {line}"))?;
                *content = format!("{content} {more}");
            } else if !line.is_empty() {
                let parts = line.split_once(": ").filter(|(name, _)| LINES.contains(name));
                let (name, content) = parts.ok_or_else(|| format!("unknown: {line}"))?;
                lines.insert(name, content.to_owned());
                last = Some(name);
            }
        }
        let text = |name: &str| lines.get(name).cloned().ok_or_else(|| format!("no {name}"));
        for name in ["From", "Loses", "Needs"] {
            text(name)?;
        }
        let sees = text("Sees")?;
        let rules = sees.split_once(['(', '.', ';']).map_or(sees.as_str(), |(rules, _)| rules);
        let rules: Vec<_> = rules.split(',').map(|rule| rule.trim().to_owned()).collect();
        if let Some(rule) = rules.iter().find(|rule| !RULES.contains(&rule.as_str())) {
            return Err(format!("{rule:?} is not a rule of the oracle"));
        }
        let seeds = lines.get("Seed").map_or(Ok(Vec::new()), |seeds| {
            seeds.split(", ").map(|seed| seed.parse()).collect::<Result<Vec<u64>, _>>()
        });
        let first = seeds.map_err(|error| format!("Seed: {error}"))?;
        Ok(Self { mistake: text("Mistake")?, rules, scene: lines.get("Scene").cloned(), first })
    }

    /// Returns the seeds for this mutant in the order in which they are tried.
    fn seeds(&self, options: &[&str]) -> Vec<u64> {
        let is_given = |name: &str| options.contains(&name);
        let mut options = options.to_vec();
        if let Some(scene) = self.scene.as_ref().filter(|_| !is_given("--with")) {
            options.extend(["--with", scene.as_str()]);
        }
        let first = self.first.iter().copied().filter(|_| !is_given("--seeds"));
        let default = if self.scene.is_some() { "100..7000" } else { "0..300" };
        let mut seeds: Vec<u64> = first.collect();
        for seed in runs::seeds(&options, default) {
            if !seeds.contains(&seed) {
                seeds.push(seed);
            }
        }
        seeds.truncate(runs::most(&options));
        seeds
    }

    /// Returns true if one of the mutant's rules says this.
    fn expects(&self, fault: &str) -> bool {
        self.rules.iter().any(|it| it == rule(fault))
    }
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

    /// Builds the relay's library with a patch.
    fn make(&self, patch: &Path) -> Result<Stage, String> {
        self.copy_sources().map_err(|error| format!("the sources are not copied: {error}"))?;
        // With this ceiling, the copy is not a part of the repository around it. In a part of one,
        // git skips the files of the patch, and is content.
        let mut apply = Command::new("git");
        apply.arg("apply").arg(patch).env("GIT_CEILING_DIRECTORIES", self.copy.join(".."));
        done(apply.current_dir(&self.copy))?;
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
    /// What the oracle says, by seed.
    accused: Mutex<BTreeMap<u64, Vec<String>>>,
}

impl Original {
    /// Leaves out what rules say that object to the unchanged program, too.
    fn leave_out(&self, worker: usize, seed: u64, faults: &mut Vec<String>) {
        if faults.is_empty() {
            return;
        }
        let known = self.accused.lock().expect("nothing panics with it").get(&seed).cloned();
        let known = known.unwrap_or_else(|| {
            let known = self.stage.faults(worker, seed, &[]).1;
            self.accused.lock().expect("nothing panics with it").insert(seed, known.clone());
            known
        });
        faults.retain(|fault| known.iter().all(|known| rule(known) != rule(fault)));
    }
}

/// Returns the name of the rule that a sentence of the oracle begins with.
fn rule(fault: &str) -> &str {
    let rule = fault.split_once(':').map_or("", |(rule, _)| rule);
    if RULES.contains(&rule) { rule } else { "the process ended" }
}

/// A seed at which the oracle accused a mutant.
struct Accusation {
    seed: u64,
    /// The simulated time at which the oracle judged.
    after: Duration,
    fault: String,
}

/// How a mutant was looked for.
struct Search {
    /// The number of seeds that it took, and the simulated seconds.
    seeds: usize,
    simulated: u64,
    found: Option<Accusation>,
    /// The first seed at which only rules objected that are not the mutant's.
    beside: Option<Accusation>,
}

impl Search {
    /// Runs seeds until one finds the mutant.
    fn new(
        mutant: &Stage,
        original: &Original,
        header: &Header,
        seeds: &[u64],
        jobs: usize,
    ) -> Self {
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
                        original.leave_out(worker, seed, &mut faults);
                        if faults.iter().any(|fault| header.expects(fault)) {
                            end.fetch_min(at, Ordering::Relaxed);
                        }
                        let mut runs = runs.lock().expect("nothing panics with it");
                        runs.insert(at, (seed, simulated, faults));
                    }
                });
            }
        });
        let runs = runs.into_inner().expect("nothing panics with it");
        let mut search = Self { seeds: 0, simulated: 0, found: None, beside: None };
        for (seed, simulated, faults) in runs.into_values() {
            search.seeds += 1;
            search.simulated += simulated;
            let after = Duration::from_secs(simulated);
            let accusation = |fault| Accusation { seed, after, fault };
            let (rightly, others): (Vec<_>, _) =
                faults.into_iter().partition(|fault| header.expects(fault));
            search.found = rightly.into_iter().next().map(accusation);
            if search.found.is_some() {
                break;
            }
            search.beside = search.beside.or_else(|| others.into_iter().next().map(accusation));
        }
        search
    }

    /// Returns what the oracle says, at length.
    fn told(&self) -> Option<String> {
        let Accusation { seed, fault, .. } = self.found.as_ref().or(self.beside.as_ref())?;
        let sentence: String = fault.trim().replace('\n', " ").chars().take(SENTENCE_MAX).collect();
        Some(format!("seed {seed}: {sentence}"))
    }
}

/// The columns of the table from the seed on.
impl std::fmt::Display for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.simulated as f64 / 3600.0;
        match &self.found {
            Some(it) => {
                let after = it.after.as_secs();
                write!(
                    f,
                    "{} | {after} s | {} | {hours:.1} | {} |",
                    it.seed,
                    self.seeds,
                    rule(&it.fault)
                )
            }
            None => {
                let beside =
                    self.beside.as_ref().map(|it| format!("another rule: {}", rule(&it.fault)));
                let beside = beside.unwrap_or_default();
                write!(f, "not found | | {} | {hours:.1} | {beside} |", self.seeds)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Mistake: It forgets
  an event.
From: 1234567 queue: nothing is forgotten
Loses: The event.
Needs: a queue.
Sees: order, conservation (an event is gone).
Scene: Stuck
Seed: 114, 7

diff --git a/crates/queue/src/lib.rs b/crates/queue/src/lib.rs
";

    #[test]
    fn header_names_rules_scene_and_seeds() {
        let header = Header::parse(TEXT).unwrap();
        assert_eq!(header.mistake, "It forgets an event.");
        assert_eq!(header.rules, ["order", "conservation"]);
        assert!(header.expects("order: output o0: event 1/2 came late"));
        assert!(!header.expects("once: output o0: order"));
        let seeds = header.seeds(&[]);
        assert_eq!(seeds[..2], [114, 7]);
        assert!(seeds[2..].iter().all(|seed| (100..7000).contains(seed) && *seed != 114));
        assert_eq!(header.seeds(&["--with", "", "--seeds", "3..5"]), [3, 4]);
        assert_eq!(header.seeds(&["--most", "2"]), [114, 7]);
    }

    #[test]
    fn wrong_headers_are_refused() {
        for (from, to) in [
            ("Sees: order", "Sees: ordre"),
            ("Seed: 114", "Seed: few"),
            ("Needs: a queue.\n", ""),
            ("Loses:", "Costs:"),
            ("Mistake: ", "  "),
        ] {
            let text = TEXT.replacen(from, to, 1);
            assert!(Header::parse(&text).is_err(), "{text}");
        }
    }

    /// Each patch can be read, and the README has a row for it, and no others.
    #[test]
    fn patches_have_headers_and_rows() {
        let workshop = Workshop::of_this_build();
        let readme = workshop.root.join("tests/sim/mutants/README.md");
        let readme = fs::read_to_string(readme).unwrap();
        let rows = readme.lines().filter(|line| line.starts_with("| `"));
        let rows: Vec<_> = rows.collect();
        let mut names = Vec::new();
        for patch in workshop.patches(&[]) {
            let name = patch.file_stem().unwrap().to_string_lossy().into_owned();
            let header = Header::of(&patch).unwrap_or_else(|error| panic!("{name}: {error}"));
            names.push(format!("| `{name}` | {} |", header.mistake));
        }
        for name in &names {
            assert!(rows.iter().any(|row| row.starts_with(name)), "no row: {name}");
        }
        for row in rows {
            let is_known = names.iter().any(|name| row.starts_with(name));
            let is_header = LINES.iter().any(|line| row.starts_with(&format!("| `{line}:`")));
            assert!(is_known || is_header, "no patch: {row}");
        }
    }
}
