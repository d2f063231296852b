//! Counts the instructions of a phase of `benches/hot_path` with valgrind, and compares them with
//! committed numbers. The program is built like the static release. A busy machine can make the
//! number of instructions larger, but not smaller: while an output waits for its consumer, its
//! timers come more often. So the least of a few counts decides.

use std::fs::File;
use std::process::{Command, Output};

use super::needs::needs;
use super::prelude::*;

/// A phase of the program, and the committed cost of one pass through it.
pub(crate) struct Figure {
    pub(crate) phase: &'static str,
    /// The number of passes. It is so high that the start of a thread (some ten thousand
    /// instructions) is less than a thousandth of the total.
    pub(crate) passes: u64,
    /// The instructions of one pass.
    pub(crate) instructions: u64,
}

/// A count may be this many per cent above the committed one.
const MORE: u64 = 2;

/// A count may be this many per cent below the committed one.
const LESS: u64 = 10;

/// How often a phase is counted again whose count is wrong.
const AGAIN: usize = 3;

/// The counts of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    instructions: u64,
    bytes: u64,
    events: u64,
}

/// Counts the instructions of these phases. A count fails if it is more than 2 % above the
/// committed one. It also fails if it is more than 10 % below, because a cost that fell unnoticed
/// could rise again unnoticed.
pub(crate) fn compare<'a>(figures: impl Iterator<Item = &'a Figure>) {
    let (program, _alone) = build();
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    for figure in figures {
        let mut counted = count(&program, figure);
        for _ in 0..AGAIN {
            if judge(figure, counted).is_some() {
                let again = count(&program, figure);
                counted = std::cmp::min_by_key(counted, again, |it| it.instructions);
            }
        }
        eprintln!("{}: {}", figure.phase, describe(counted));
        wrong.extend(judge(figure, counted));
        rows.push(row(figure, counted));
    }
    assert!(
        wrong.is_empty(),
        "\n{}\nWhere that is meant, commit these rows of FIGURES:\n{}",
        wrong.join("\n"),
        rows.join("\n")
    );
}

/// Returns `true` if the phases that need AVX2 can be counted on this machine.
pub(crate) fn has_avx2() -> bool {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    cpu.split_ascii_whitespace().any(|flag| flag == "avx2")
}

/// Builds the program like the static release, and returns its path. `./test` has already built it
/// with the same script. Nobody else builds it until the returned file is closed.
fn build() -> (String, File) {
    needs("valgrind");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let target = repository().join(target);
    // The tests are processes, and the script replaces the program that another test counts.
    let lock = File::create(target.join("hot-path.lock")).unwrap();
    lock.lock().unwrap();
    let mut script = Command::new(repository().join("deploy/static-binary.sh"));
    script.args(["", text(&target), "hot-path"]).current_dir(repository());
    // Cargo has set these variables for the test. With them, crates whose build reads them would be
    // built again.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of| name.to_string_lossy().starts_with(of))
        {
            script.env_remove(name);
        }
    }
    run(&mut script);
    (text(&target.join("static/hot-path")).to_owned(), lock)
}

/// Runs a phase under callgrind, and returns the counts of one pass.
fn count(program: &str, figure: &Figure) -> Counted {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("counts");
    let mut valgrind = Command::new("valgrind");
    // These variables could change the counts.
    valgrind.env_remove("VALGRIND_OPTS").env_remove("GLIBC_TUNABLES");
    valgrind.env("TMPDIR", directory.path());
    valgrind.args(["--tool=callgrind", "--separate-threads=yes"]);
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    let output = run(valgrind.args([program, figure.phase, &figure.passes.to_string()]));
    let said = String::from_utf8(output.stdout).unwrap();
    let (bytes, events) = said.trim_end().split_once(' ').expect("two numbers");
    // Thread 1 is the program's start. One of the other threads makes the passes. A queue on disk
    // has threads of its own.
    let total = |thread: u32| -> Option<u64> {
        let counts = std::fs::read_to_string(format!("{}-{thread:02}", file.display())).ok()?;
        let total = counts.lines().find_map(|line| line.strip_prefix("totals: "));
        Some(total.expect("a sum at the end of the counts").parse().unwrap())
    };
    let total: u64 = (2..).map_while(total).sum();
    assert!(total > 0, "valgrind counted no thread");
    let instructions = total / figure.passes;
    Counted { instructions, bytes: bytes.parse().unwrap(), events: events.parse().unwrap() }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output
}

/// Returns a message if the count is too far from the committed number.
fn judge(figure: &Figure, counted: Counted) -> Option<String> {
    let Figure { phase, instructions: committed, .. } = figure;
    let now = describe(counted);
    let percent = 100.0 * counted.instructions as f64 / *committed as f64 - 100.0;
    let what = match counted.instructions * 100 {
        hundredfold if hundredfold > committed * (100 + MORE) => "it costs more",
        hundredfold if hundredfold < committed * (100 - LESS) => {
            "it costs so much less that the figure would hide what comes back"
        }
        _ => return None,
    };
    Some(format!("{phase}: {now}, {percent:+.1} % of the committed {committed}: {what}"))
}

fn describe(Counted { instructions, bytes, events }: Counted) -> String {
    let of = |parts: u64| instructions as f64 / parts as f64;
    format!("{instructions} instructions, {:.2} a byte, {:.0} an event", of(bytes), of(events))
}

/// Returns the line of `FIGURES` with the new count.
fn row(figure: &Figure, counted: Counted) -> String {
    let Figure { phase, passes, .. } = figure;
    let instructions = counted.instructions;
    format!("    Figure {{ phase: \"{phase}\", passes: {passes}, instructions: {instructions} }},")
}

#[test]
fn a_count_far_from_its_figure_is_wrong_both_ways() {
    let figure = Figure { phase: "phase", passes: 1, instructions: 1000 };
    let judge = |instructions| judge(&figure, Counted { instructions, bytes: 100, events: 10 });
    for instructions in [900, 1000, 1020] {
        assert_eq!(judge(instructions), None, "{instructions}");
    }
    for (instructions, says) in [(1021, "costs more"), (899, "less")] {
        let said = judge(instructions).expect("it is wrong");
        assert!(said.contains(says), "{said}");
    }
}
