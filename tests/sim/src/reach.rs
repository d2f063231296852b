//! The places that the seeds reach: those of the known mistakes in the relay's sources, and those
//! where the world asks for a promise. A place that no seed reaches is code that the simulator does
//! not test, whatever the oracle checks.
//!
//! The library with the mistakes records the places, and makes none of the mistakes. If a mistake
//! is a literal, the place also records whether the right value was ever another one. Other wrong
//! code is not run, since it may change something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use crate::mutants::Mutant;
use crate::plan::{DEMANDS, Demand};
use crate::{kernel, mutants, runs};

/// The promises that this seed has asked for.
static ASKED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Returns the name of the place where the world asks for a promise.
fn promise(demand: Demand) -> String {
    format!("promise: {demand:?}")
}

/// Notes that the world of this seed has what it needs to ask for this promise.
pub(crate) fn asks(demand: Demand) {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner).insert(promise(demand));
}

/// Returns the promises that this seed has asked for.
pub(crate) fn asked() -> BTreeSet<String> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Runs all of these seeds on the library that has the known mistakes, and makes none of them.
/// Returns `true` if no seed has a fault and all places are reached: see [`Reached::tell`].
pub(crate) fn run(words: &[&str]) -> bool {
    let (ranges, options) = runs::split(words);
    let seeds: Vec<u64> = ranges.iter().flat_map(|range| runs::range(range)).collect();
    let Some((mutants, stage)) = mutants::prepared(&[]) else { return false };
    kernel::fix_addresses();
    let reached = Mutex::new(Reached::default());
    let failed = runs::run_on(&stage, &seeds, runs::jobs(options), true, &|seed, verdict| {
        let mut reached = reached.lock().unwrap_or_else(PoisonError::into_inner);
        reached.add(seed, &verdict.reached);
    });
    let reached = reached.into_inner().unwrap_or_else(PoisonError::into_inner);
    reached.tell(&mutants) && failed.is_empty()
}

/// The seeds that reach a place.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    seeds: usize,
    first: u64,
    /// In how many seeds the mistake would have been another value; `None` if it is no value.
    differs: Option<usize>,
}

/// The places that all seeds of a run have reached.
#[derive(Default)]
pub(crate) struct Reached {
    seeds: usize,
    places: BTreeMap<String, Found>,
}

impl Reached {
    /// Adds the places of a seed: their names, and ` differs` or ` same` behind those of values.
    /// Seeds that move with the commit do not count: a place must be reached in each run.
    pub(crate) fn add(&mut self, seed: u64, places: &BTreeSet<String>) {
        if seed >= DEMANDS.end {
            return;
        }
        self.seeds += 1;
        let mut of_seed = BTreeMap::<&str, Option<bool>>::new();
        for place in places {
            let (name, differs) = match place.rsplit_once(' ') {
                Some((name, "differs")) => (name, Some(true)),
                Some((name, "same")) => (name, Some(false)),
                _ => (place.as_str(), None),
            };
            // Each life of the relay has its own.
            let all = of_seed.entry(name).or_default();
            *all = (*all).max(differs);
        }
        for (name, differs) in of_seed {
            let found = self.places.entry(name.to_owned()).or_default();
            let is_first = found.seeds == 0 || seed < found.first;
            found.first = if is_first { seed } else { found.first };
            found.seeds += 1;
            if let Some(differs) = differs {
                *found.differs.get_or_insert(0) += usize::from(differs);
            }
        }
    }

    /// Prints the number of seeds for each place. Returns `true` if each place is reached, or its
    /// section says why it is not.
    pub(crate) fn tell(&self, mutants: &BTreeMap<String, Mutant>) -> bool {
        println!("| name | seeds of {} | differs | first |\n|---|---|---|---|", self.seeds);
        let none = Found::default();
        let mut wrong = Vec::new();
        let reasons = mutants.iter().map(|(name, it)| (name.as_str(), it.not_reached.as_deref()));
        let promises = Demand::ALL.map(promise);
        for (name, reason) in reasons.chain(promises.iter().map(|name| (name.as_str(), None))) {
            let found = self.places.get(name).unwrap_or(&none);
            let differs = found.differs.map_or("-".to_owned(), |seeds| seeds.to_string());
            println!("| `{name}` | {} | {differs} | {} |", found.seeds, found.first);
            match (found.seeds, reason) {
                (0, None) => wrong.push(format!("{name}: no seed reaches its place")),
                (1.., Some(_)) => wrong.push(format!("{name}: is reached; delete not_reached")),
                _ => {}
            }
        }
        wrong.iter().for_each(|line| println!("{line}"));
        wrong.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_once_for_each_seed_and_differs_if_it_does_in_one_life() {
        let mut reached = Reached::default();
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        reached.add(9, &of(&["a differs", "a same", "b", "c same"]));
        reached.add(7, &of(&["a same", "b"]));
        reached.add(DEMANDS.end, &of(&["a differs", "b"]));
        let found = |seeds, first, differs| Some(Found { seeds, first, differs });
        assert_eq!(reached.places.remove("a"), found(2, 7, Some(1)));
        assert_eq!(reached.places.remove("b"), found(2, 7, None));
        assert_eq!(reached.places.remove("c"), found(1, 9, Some(0)));
    }

    #[test]
    fn a_place_that_no_seed_reaches_needs_a_reason() {
        let section = |reason: &str| {
            let text = "mistake = \"a\"\nfrom = \"a\"\nloses = \"a\"\nneeds = \"a\"\nrules = []\n";
            toml::from_str::<Mutant>(&format!("{text}{reason}")).expect("a section")
        };
        let told = |reason: &str, is_reached: bool| {
            let mut reached = Reached::default();
            let all = Demand::ALL.map(promise).into_iter();
            reached.add(1, &all.chain(is_reached.then(|| "x".to_owned())).collect());
            reached.tell(&BTreeMap::from([("x".to_owned(), section(reason))]))
        };
        assert!(told("", true) && !told("", false));
        let reason = "not_reached = \"there is no broker\"";
        assert!(told(reason, false) && !told(reason, true));
    }
}
