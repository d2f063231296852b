//! The simulator: the whole relay, with senders, consumers and an operator, under one seed.
//!
//! `sim run` runs seeds in separate processes. `sim seed N` runs one seed and shows its history.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this is the world, \
    which has threads that sleep"
)]

mod consumers;
mod events;
mod evidence;
mod judging;
mod kernel;
mod mutants;
mod observer;
mod operator;
mod oracle;
mod pki;
#[cfg(test)]
mod place;
mod plan;
mod reach;
mod runs;
mod senders;
mod setup;
mod support;
mod truth;
mod witness;
mod world;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The environment variable that tells a child process its seed.
const SEED: &str = "SIM_SEED";

const USAGE: &str = "\
usage: sim run [--seeds FROM..TO] [--with TEXT] [--jobs N] [--all]
                                               run seeds; the first fault ends it, but for --all
       sim seed N [--trace] [--mutant NAME]    run one seed, and print what happened
       sim same FROM..TO                       run each seed twice, and compare the traces
       sim shrink N                            the shortest history of a seed that still fails
       sim mutants [NAME...] [--seeds FROM..TO] [--with TEXT] [--most N] [--jobs N]
                                               bring back old mistakes, and look for each of them
       sim reach FROM..TO... [--jobs N]        run all, and count those that reach each place
--with TEXT: only seeds whose plan has this text, or all texts of 'ONE + ANOTHER'
--most N: so many seeds at most for each mistake";

fn main() -> ExitCode {
    if let Ok(seed) = std::env::var(SEED) {
        child(seed.parse().expect("a number"));
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let is_fine = match words.as_slice() {
        ["run", options @ ..] => runs::run(options),
        ["seed", seed, options @ ..] => runs::show(seed, options),
        ["same", seeds] => runs::same(seeds),
        ["shrink", seed] => runs::shrink(seed),
        ["mutants", words @ ..] => mutants::run(words),
        ["reach", words @ ..] => reach::run(words),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one seed in this process, whose working directory is empty. The libraries are beside it.
fn child(seed: u64) -> ! {
    let left_out = std::env::var("SIM_LEFT_OUT").unwrap_or_default();
    let left_out: BTreeSet<usize> = left_out.split(',').filter_map(|it| it.parse().ok()).collect();
    let out = std::env::var_os("SIM_TRACE").map(|_| 2);
    let directory = PathBuf::from(std::env::var_os("SIM_LIBRARIES").expect("a directory"));
    let libraries = (0..runs::LIVES).map(|life| directory.join(format!("{life}.so"))).collect();
    std::fs::create_dir("graves").expect("a writable directory");
    kernel::begin(seed, &Path::new("graves").canonicalize().expect("a directory"), out);
    let found = world::run(seed, &left_out, libraries);
    let (sum, calls) = kernel::sum();
    let reached: BTreeSet<String> = kernel::reached().into_iter().chain(reach::asked()).collect();
    let mut text = format!(
        "{{\"sum\":\"{sum:016x}\",\"calls\":{calls},\"simulated\":{},\"events\":{},\"reached\":{},\
         \"faults\":{}}}\n",
        found.simulated.as_secs(),
        found.events,
        serde_json::to_string(&reached).expect("strings"),
        serde_json::to_string(&found.faults).expect("strings"),
    );
    text.push('\n');
    kernel::print(1, &text);
    kernel::exit(i32::from(!found.faults.is_empty()))
}
