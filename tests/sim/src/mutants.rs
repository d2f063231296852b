//! Mutants: old mistakes of the program. `tests/sim/mutants.toml` describes them, and names their
//! places in the sources. The relay's library that is built from a copy of the sources has all of
//! them, and an environment variable tells each process which one to make.
//!
//! A seed finds a mutant if the oracle accuses the mutant by a rule that its description names, and
//! does not accuse the same build without a mistake by this rule.

mod copy;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Deserialize;

use crate::oracle::RULES;
use crate::runs::Stage;
use crate::{kernel, runs};

/// The longest sentence of the oracle that is printed, in characters.
const SENTENCE_MAX: usize = 200;

/// Runs the named mutants, or all, and returns `true` if they could be run.
pub(crate) fn run(words: &[&str]) -> bool {
    let (names, options) = runs::split(words);
    let jobs = runs::jobs(options);
    let Some((mutants, stage)) = prepared(names) else { return false };
    kernel::fix_addresses();
    let original = Original { stage, accused: Mutex::default() };
    println!("| name | seed | after | seeds | hours | rule |\n|---|---|---|---|---|---|");
    let mut found = 0;
    for (name, mutant) in &mutants {
        let search = Search::new(name, mutant, &original, &mutant.seeds(options), jobs);
        found += usize::from(search.found.is_some());
        println!("| `{name}` | {search}");
        search.told().into_iter().for_each(|told| eprintln!("{name}: {told}"));
    }
    println!("\nFound {found} of {} mutants.", mutants.len());
    true
}

/// Returns the named mutants, or all, and the library with all of them. Prints the error if there
/// is one.
pub(crate) fn prepared(names: &[&str]) -> Option<(BTreeMap<String, Mutant>, Stage)> {
    let chosen = all().and_then(|mut all| {
        if let Some(unknown) = names.iter().find(|name| !all.contains_key(**name)) {
            return Err(format!("there is no mutant {unknown}"));
        }
        let stage = stage(&all)?;
        all.retain(|name, _| names.is_empty() || names.contains(&name.as_str()));
        Ok((all, stage))
    });
    chosen.inspect_err(|error| eprintln!("{error}")).ok()
}

/// Returns the directory of the sources from which this program was built.
fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().expect("the sources that this program was built from")
}

/// Builds the relay's library with all mutants, none of them active.
fn stage(all: &BTreeMap<String, Mutant>) -> Result<Stage, String> {
    let program = std::env::current_exe().expect("this program");
    let target = program.ancestors().nth(2).expect("the target directory");
    Ok(Stage::new(&copy::build(&root(), target, all)?))
}

/// Builds the library, and returns it as this mutant.
pub(crate) fn stage_of(name: &str) -> Result<Stage, String> {
    let all = all()?;
    match all.contains_key(name) {
        true => Ok(stage(&all)?.with_mutant(name)),
        false => Err(format!("there is no mutant {name}")),
    }
}

/// Returns the descriptions of all mutants, by name.
pub(crate) fn all() -> Result<BTreeMap<String, Mutant>, String> {
    let file = root().join("tests/sim/mutants.toml");
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    parse(&text).map_err(|error| format!("{}: {error}", file.display()))
}

fn parse(text: &str) -> Result<BTreeMap<String, Mutant>, String> {
    let all: BTreeMap<String, Mutant> = toml::from_str(text).map_err(|error| error.to_string())?;
    for (name, mutant) in &all {
        mutant.check().map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(all)
}

/// The description of a mutant. The head of the file explains the keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mutant {
    mistake: String,
    from: String,
    loses: String,
    needs: String,
    rules: Vec<String>,
    why: Option<String>,
    scene: Option<String>,
    #[serde(default)]
    seeds: Vec<u64>,
    not_found: Option<String>,
    pub(crate) not_reached: Option<String>,
    #[serde(default)]
    places: Vec<copy::Place>,
}

impl Mutant {
    fn check(&self) -> Result<(), String> {
        let texts = [&self.mistake, &self.from, &self.loses, &self.needs].into_iter();
        let texts = texts.chain(&self.why).chain(&self.not_found);
        if texts.chain(&self.not_reached).any(|text| text.trim().is_empty()) {
            return Err("a text is empty".to_owned());
        }
        match self.rules.iter().find(|rule| !RULES.contains(&rule.as_str())) {
            Some(rule) => Err(format!("{rule:?} is not a rule of the oracle")),
            None if self.rules.is_empty() => Err("there is no rule".to_owned()),
            None if self.places.is_empty() => Err("there is no place".to_owned()),
            None => Ok(()),
        }
    }

    /// Returns the seeds for this mutant in the order in which they are tried.
    fn seeds(&self, options: &[&str]) -> Vec<u64> {
        let is_given = |name: &str| options.contains(&name);
        let mut options = options.to_vec();
        if let Some(scene) = self.scene.as_ref().filter(|_| !is_given("--with")) {
            options.extend(["--with", scene.as_str()]);
        }
        let first = self.seeds.iter().copied().filter(|_| !is_given("--seeds"));
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

    /// Returns `true` if one of the mutant's rules reports this fault.
    fn expects(&self, fault: &str) -> bool {
        self.rules.iter().any(|it| it == rule(fault))
    }
}

struct Original {
    stage: Stage,
    /// The faults that the oracle finds in this build, by seed.
    accused: Mutex<BTreeMap<u64, Vec<String>>>,
}

impl Original {
    /// Removes the faults of rules that accuse the build without a mistake, too.
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

/// Returns the name of the rule with which a fault begins.
fn rule(fault: &str) -> &str {
    let rule = fault.split_once(':').map_or("", |(rule, _)| rule);
    if RULES.contains(&rule) { rule } else { "the process ended" }
}

/// A fault that the oracle found in a mutant.
struct Accusation {
    seed: u64,
    /// The simulated time at which the oracle judged.
    after: Duration,
    fault: String,
}

/// The result of the search for a mutant.
struct Search {
    /// How many seeds and simulated seconds were needed.
    seeds: usize,
    simulated: u64,
    found: Option<Accusation>,
    /// The first seed with faults by other rules only.
    beside: Option<Accusation>,
}

impl Search {
    /// Runs seeds until one finds the mutant.
    fn new(name: &str, mutant: &Mutant, original: &Original, seeds: &[u64], jobs: usize) -> Self {
        let stage = original.stage.with_mutant(name);
        let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(seeds.len()));
        let runs = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for worker in 0..jobs {
                let (next, end, runs, stage) = (&next, &end, &runs, &stage);
                scope.spawn(move || {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(&seed) = seeds.get(at) else { break };
                        if at >= end.load(Ordering::Relaxed) {
                            break;
                        }
                        let (simulated, mut faults) = stage.faults(worker, seed, &[]);
                        original.leave_out(worker, seed, &mut faults);
                        if faults.iter().any(|fault| mutant.expects(fault)) {
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
                faults.into_iter().partition(|fault| mutant.expects(fault));
            search.found = rightly.into_iter().next().map(accusation);
            if search.found.is_some() {
                break;
            }
            search.beside = search.beside.or_else(|| others.into_iter().next().map(accusation));
        }
        search
    }

    /// Returns the seed and the sentence of the fault, cut to [`SENTENCE_MAX`] characters.
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

    const TEXT: &str = r#"
[forgets]
mistake = "It forgets an event."
from = "1234567 queue: nothing is forgotten"
loses = "The event."
needs = "a queue"
rules = ["order", "conservation"]
scene = "Stuck"
seeds = [114, 7]
[[forgets.places]]
file = "lib.rs"
right = "all()"
"#;

    #[test]
    fn a_section_names_rules_scene_and_seeds() {
        let mutant = &parse(TEXT).unwrap()["forgets"];
        assert!(mutant.expects("order: output o0: event 1/2 came late"));
        assert!(!mutant.expects("once: output o0: order"));
        let seeds = mutant.seeds(&[]);
        assert_eq!(seeds[..2], [114, 7]);
        assert!(seeds[2..].iter().all(|seed| (100..7000).contains(seed) && *seed != 114));
        assert_eq!(mutant.seeds(&["--with", "", "--seeds", "3..5"]), [3, 4]);
        assert_eq!(mutant.seeds(&["--most", "2"]), [114, 7]);
    }

    #[test]
    fn wrong_sections_are_refused() {
        for (from, to) in [
            ("\"order\"", "\"ordre\""),
            ("[114, 7]", "\"few\""),
            ("needs = \"a queue\"\n", ""),
            ("loses =", "costs ="),
            ("\"It forgets an event.\"", "\"\""),
            ("right = \"all()\"", "rigth = \"all()\""),
        ] {
            let text = TEXT.replacen(from, to, 1);
            assert!(parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn mutants_have_a_section_and_a_row() {
        let sections: Vec<_> = all().unwrap().into_keys().collect();
        let table = fs::read_to_string(root().join("tests/sim/mutants.md")).unwrap();
        let lines = table.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows: Vec<_> = lines.filter_map(|line| line.split('`').next()).collect();
        assert_eq!(rows, sections, "the rows of mutants.md, and the sections of mutants.toml");
    }

    #[test]
    fn mutants_have_their_places_in_the_sources() {
        let found = copy::with_mistakes(&root(), &all().unwrap());
        assert!(found.is_ok(), "change the places in tests/sim/mutants.toml: {found:?}");
    }
}
