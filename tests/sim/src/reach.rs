//! `sim reach`: counts the seeds that reach the place of each known mistake. A place that no seed
//! reaches is code that the simulator does not test, whatever the oracle checks.
//!
//! The library with the mistakes records the places, and makes none of the mistakes. Whether the
//! wrong code would have had another result is not measured: only one of the two sides runs, since
//! most of them change something.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::{kernel, mutants, runs};

/// Runs the seeds, prints the number of seeds for each place, and returns `true` if each place is
/// reached, or its section says why it is not. Faults are printed and change nothing: `run` tells
/// about them.
pub(crate) fn run(words: &[&str]) -> bool {
    let (ranges, options) = runs::split(words);
    let seeds: Vec<u64> = ranges.iter().flat_map(|range| runs::range(range)).collect();
    let Some((mutants, stage)) = mutants::prepared(&[]) else { return false };
    kernel::fix_addresses();
    let reached = Mutex::new(BTreeMap::<String, (usize, u64)>::new());
    runs::run_on(&stage, &seeds, runs::jobs(options), true, &|seed, verdict| {
        let mut reached = reached.lock().expect("nothing panics with it");
        for name in &verdict.reached {
            let (count, first) = reached.entry(name.clone()).or_insert((0, seed));
            (*count, *first) = (*count + 1, seed.min(*first));
        }
    });
    let reached = reached.into_inner().expect("nothing panics with it");
    println!("| name | seeds of {} | first |\n|---|---|---|", seeds.len());
    let mut missing = Vec::new();
    for (name, mutant) in &mutants {
        let found = reached.get(name);
        let (count, first) = found.map_or((0, String::new()), |(n, first)| (*n, first.to_string()));
        println!("| `{name}` | {count} | {first} |");
        match (count, &mutant.not_reached) {
            (0, None) => missing.push(format!("{name}: no seed reaches its place")),
            (1.., Some(_)) => missing.push(format!("{name}: is reached; delete not_reached")),
            _ => {}
        }
    }
    missing.iter().for_each(|line| println!("{line}"));
    missing.is_empty()
}
