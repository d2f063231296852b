//! The cost of decoding and queueing without a clock: the instructions of `benches/hot_path`,
//! counted by valgrind. The program is built as the static release is. A build takes the same
//! number of instructions on a busy machine as on an idle one.
//!
//! On a CPU without AVX2, the path for SSE2 is counted, against its own committed numbers. That
//! says nothing about the other path, and `./test` then says so at its end.

use std::process::Command;
use std::process::Output;

use crate::support::needs::needs;
use crate::support::prelude::*;

/// A phase of the program, and the committed cost of one pass through it.
struct Figure {
    phase: &'static str,
    /// The number of passes. There are enough of them to make the instructions of a thread's start
    /// (some ten thousand) less than a thousandth of the total.
    passes: u64,
    /// The instructions of one pass, in the order of [`INSTRUCTION_SETS`].
    instructions: [u64; INSTRUCTION_SETS.len()],
}

/// The instruction sets, as the program names them.
const INSTRUCTION_SETS: [&str; 2] = ["x86_64 with AVX2", "x86_64"];

/// The committed numbers. A failing test prints the new row.
#[rustfmt::skip]
const FIGURES: [Figure; 8] = [
    Figure { phase: "decode batches", passes: 4, instructions: [5347935, 9664783] },
    Figure { phase: "decode mixed", passes: 60, instructions: [322666, 580122] },
    Figure { phase: "decode large events", passes: 10, instructions: [3217600, 5977561] },
    Figure { phase: "decode singles", passes: 1500, instructions: [15150, 27146] },
    Figure { phase: "decode lines", passes: 10, instructions: [10703263, 10355218] },
    Figure { phase: "queue batches", passes: 20000, instructions: [2894, 2454] },
    Figure { phase: "queue singles", passes: 100, instructions: [700232, 568191] },
    Figure { phase: "queue cut batches", passes: 40, instructions: [1502595, 2677082] },
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
    // The test has the environment variables of a package's build. With them, ring and every crate
    // that needs it would be built again.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of| name.to_string_lossy().starts_with(of))
        {
            script.env_remove(name);
        }
    }
    run(&mut script);
    text(&target.join("static/hot-path")).to_owned()
}

/// Runs a phase under callgrind. Returns the index in [`INSTRUCTION_SETS`] of the set that it used,
/// and the counts of one pass.
fn count(program: &str, figure: &Figure) -> (usize, Counted) {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("counts");
    let mut valgrind = Command::new("valgrind");
    // The two variables could change the counts.
    valgrind.env_remove("VALGRIND_OPTS").env_remove("GLIBC_TUNABLES");
    valgrind.args(["--tool=callgrind", "--separate-threads=yes"]);
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    let output = run(valgrind.args([program, figure.phase, &figure.passes.to_string()]));
    let said = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = said.trim_end().rsplitn(3, ' ').collect();
    let [events, bytes, set] = words[..] else { panic!("the program says {said}") };
    let set = INSTRUCTION_SETS.iter().position(|known| *known == set);
    let set = set.unwrap_or_else(|| panic!("no figures for {said}: add them to FIGURES"));
    // Thread 1 is the program's start, and thread 2 makes the passes.
    let counts = std::fs::read_to_string(directory.path().join("counts-02")).unwrap();
    let total = counts.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: u64 = total.expect("a sum at the end of the counts").parse().unwrap();
    let instructions = total / figure.passes;
    (set, Counted { instructions, bytes: bytes.parse().unwrap(), events: events.parse().unwrap() })
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output
}

/// Returns the message of a failure if the count is too far from the committed number.
fn judge(figure: &Figure, set: usize, counted: Counted) -> Option<String> {
    let committed = figure.instructions[set];
    let (name, now) = (figure.phase, describe(counted));
    let percent = 100.0 * counted.instructions as f64 / committed as f64 - 100.0;
    let what = match counted.instructions * 100 {
        hundredfold if hundredfold > committed * (100 + SLACK) => "it costs more",
        hundredfold if hundredfold < committed * (100 - SLACK) => {
            "it costs so much less that the figure would hide what comes back"
        }
        _ => return None,
    };
    let set = INSTRUCTION_SETS[set];
    Some(format!("{name} ({set}): {now}, {percent:+.1} % of the committed {committed}: {what}"))
}

fn describe(Counted { instructions, bytes, events }: Counted) -> String {
    let of = |parts: u64| instructions as f64 / parts as f64;
    format!("{instructions} instructions, {:.2} a byte, {:.0} an event", of(bytes), of(events))
}

/// Returns the line of [`FIGURES`] with the new count.
fn row(figure: &Figure, set: usize, counted: Counted) -> String {
    let Figure { phase, passes, mut instructions } = *figure;
    instructions[set] = counted.instructions;
    let [first, second] = instructions;
    format!(
        "    Figure {{ phase: \"{phase}\", passes: {passes}, instructions: [{first}, {second}] }},"
    )
}

#[test]
fn a_count_beyond_a_tenth_of_its_figure_is_wrong_both_ways() {
    let figure = Figure { phase: "phase", passes: 1, instructions: [1000, 500] };
    let judge =
        |set, instructions| judge(&figure, set, Counted { instructions, bytes: 100, events: 10 });
    for (set, instructions) in [(0, 900), (0, 1000), (0, 1100), (1, 450), (1, 550)] {
        assert_eq!(judge(set, instructions), None, "{instructions}");
    }
    for (set, instructions, says) in
        [(0, 1101, "costs more"), (0, 899, "less"), (1, 551, "costs more"), (1, 449, "less")]
    {
        let said = judge(set, instructions).expect("it is wrong");
        assert!(said.contains(says) && said.contains(INSTRUCTION_SETS[set]), "{said}");
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
        for figure in &FIGURES {
            let (set, counted) = count(&program, figure);
            eprintln!("{}, {}: {}", figure.phase, INSTRUCTION_SETS[set], describe(counted));
            wrong.extend(judge(figure, set, counted));
            rows.push(row(figure, set, counted));
        }
        assert!(
            wrong.is_empty(),
            "\n{}\nWhere that is meant, commit these rows of FIGURES:\n{}",
            wrong.join("\n"),
            rows.join("\n")
        );
    }
}
