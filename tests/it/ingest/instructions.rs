//! The cost of requests, decoding and queueing without a clock: the instructions of
//! `benches/hot_path`, counted by valgrind. The program is built as the static release is. A build
//! takes the same number of instructions on a busy machine as on an idle one.
//!
//! The numbers are those of the path for AVX2, but for one row. On a CPU without AVX2 only that row
//! is counted, and `./test` says so at its end. Valgrind has no AVX-512.

use std::process::{Command, Output};

use crate::support::needs::needs;
use crate::support::prelude::*;

/// A phase of the program, and the committed cost of one pass through it.
struct Figure {
    phase: &'static str,
    /// The number of passes. There are enough of them to make the instructions of a thread's start
    /// (some ten thousand) less than a thousandth of the total.
    passes: u64,
    /// The instructions of one pass.
    instructions: u64,
}

/// The row that is counted on every CPU.
const WITHOUT_AVX2: &str = "decode batches with SSE2";

/// The committed numbers. A failing test prints the new row.
const FIGURES: [Figure; 10] = [
    Figure { phase: "decode batches", passes: 4, instructions: 4952347 },
    Figure { phase: WITHOUT_AVX2, passes: 4, instructions: 9891758 },
    Figure { phase: "decode mixed", passes: 60, instructions: 299642 },
    Figure { phase: "decode large events", passes: 10, instructions: 2883578 },
    Figure { phase: "decode singles", passes: 1500, instructions: 14297 },
    Figure { phase: "decode lines", passes: 10, instructions: 10214620 },
    Figure { phase: "requests", passes: 2000, instructions: 30317 },
    Figure { phase: "queue batches", passes: 20000, instructions: 2894 },
    Figure { phase: "queue singles", passes: 100, instructions: 700232 },
    Figure { phase: "queue cut batches", passes: 40, instructions: 1502595 },
];

/// The difference from the committed number that is allowed, up and down, in per cent.
const SLACK: u64 = 10;

/// The counts of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    instructions: u64,
    bytes: u64,
    events: u64,
}

/// Builds the program as the static release is built, and gives its path. `./test` has built it
/// before the tests, by the same script.
fn build() -> String {
    needs("valgrind");
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let target = repository().join(target);
    let mut script = Command::new(repository().join("deploy/static-binary.sh"));
    script.args(["", text(&target), "hot-path"]).current_dir(repository());
    // The test has the environment variables of a package's build. With them, crates whose build
    // looks at these variables would be built again.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of| name.to_string_lossy().starts_with(of))
        {
            script.env_remove(name);
        }
    }
    run(&mut script);
    text(&target.join("static/hot-path")).to_owned()
}

/// Runs a phase under callgrind, and returns the counts of one pass.
fn count(program: &str, figure: &Figure) -> Counted {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("counts");
    let mut valgrind = Command::new("valgrind");
    // The two variables could change the counts.
    valgrind.env_remove("VALGRIND_OPTS").env_remove("GLIBC_TUNABLES");
    valgrind.args(["--tool=callgrind", "--separate-threads=yes"]);
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    let output = run(valgrind.args([program, figure.phase, &figure.passes.to_string()]));
    let said = String::from_utf8(output.stdout).unwrap();
    let (bytes, events) = said.trim_end().split_once(' ').expect("two numbers");
    // Thread 1 is the program's start, and thread 2 makes the passes.
    let counts = std::fs::read_to_string(directory.path().join("counts-02")).unwrap();
    let total = counts.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: u64 = total.expect("a sum at the end of the counts").parse().unwrap();
    let instructions = total / figure.passes;
    Counted { instructions, bytes: bytes.parse().unwrap(), events: events.parse().unwrap() }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output
}

/// Returns the message of a failure if the count is too far from the committed number.
fn judge(figure: &Figure, counted: Counted) -> Option<String> {
    let Figure { phase, instructions: committed, .. } = figure;
    let now = describe(counted);
    let percent = 100.0 * counted.instructions as f64 / *committed as f64 - 100.0;
    let what = match counted.instructions * 100 {
        hundredfold if hundredfold > committed * (100 + SLACK) => "it costs more",
        hundredfold if hundredfold < committed * (100 - SLACK) => {
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

/// Returns the line of [`FIGURES`] with the new count.
fn row(figure: &Figure, counted: Counted) -> String {
    let Figure { phase, passes, .. } = figure;
    let instructions = counted.instructions;
    format!("    Figure {{ phase: \"{phase}\", passes: {passes}, instructions: {instructions} }},")
}

#[test]
fn a_count_beyond_a_tenth_of_its_figure_is_wrong_both_ways() {
    let figure = Figure { phase: "phase", passes: 1, instructions: 1000 };
    let judge = |instructions| judge(&figure, Counted { instructions, bytes: 100, events: 10 });
    for instructions in [900, 1000, 1100] {
        assert_eq!(judge(instructions), None, "{instructions}");
    }
    for (instructions, says) in [(1101, "costs more"), (899, "less")] {
        let said = judge(instructions).expect("it is wrong");
        assert!(said.contains(says), "{said}");
    }
}

/// They need peers, or root.
mod peers {
    use super::*;

    /// Method: each phase of the example runs under callgrind, and the instructions of its thread
    /// are divided by the number of passes. A number that is more than a tenth above or below the
    /// committed one fails, because a cost that fell unnoticed could rise again unnoticed.
    #[test]
    fn decode_and_queue_take_the_instructions_that_are_committed() {
        let program = build();
        let (mut rows, mut wrong) = (Vec::new(), Vec::new());
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let has_avx2 = cpu.split_ascii_whitespace().any(|flag| flag == "avx2");
        let counted_here = |figure: &&Figure| has_avx2 || figure.phase == WITHOUT_AVX2;
        for figure in FIGURES.iter().filter(counted_here) {
            let counted = count(&program, figure);
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
}
