//! What decode and queue cost, without a clock: the instructions of `examples/hot_path.rs`, built as a release is (but for
//! tokio's test-util), counted by valgrind. The same build has the same counts on a busy machine as on an idle one.
//!
//! On a CPU without AVX2 the portable path is counted, against figures of its own. That says nothing of the other path,
//! and `./test` ends by saying so.

use std::process::Command;
use std::process::Output;

use tempfile::TempDir;

use crate::support::repository;

/// A phase of the program, and what one pass through it takes.
struct Figure {
    phase: &'static str,
    /// Enough of them to make what a thread's start takes, some ten thousand instructions, less than a thousandth.
    passes: u64,
    /// In the order of [`INSTRUCTION_SETS`].
    instructions: [u64; INSTRUCTION_SETS.len()],
}

/// As the program names them.
const INSTRUCTION_SETS: [&str; 2] = ["x86_64 with AVX2", "x86_64"];

/// A failing test prints the rows of a new one.
#[rustfmt::skip]
const FIGURES: [Figure; 8] = [
    Figure { phase: "decode batches", passes: 4, instructions: [5896166, 26473089] },
    Figure { phase: "decode mixed", passes: 60, instructions: [352837, 1652682] },
    Figure { phase: "decode large events", passes: 10, instructions: [3528451, 10530729] },
    Figure { phase: "decode singles", passes: 1500, instructions: [17045, 59367] },
    Figure { phase: "decode lines", passes: 10, instructions: [10405544, 10355218] },
    Figure { phase: "queue batches", passes: 20000, instructions: [2392, 2454] },
    Figure { phase: "queue singles", passes: 100, instructions: [541958, 568191] },
    Figure { phase: "queue cut batches", passes: 40, instructions: [1481945, 2677082] },
];

/// Per cent, up and down.
const SLACK: u64 = 10;

/// Of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    instructions: u64,
    bytes: u64,
    events: u64,
}

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

/// The program, built as the release is, and its path.
fn build() -> String {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--locked", "--example", "hot_path"]);
    // A test has the variables of a package's build. With them ring, and all that needs it, would be built anew.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of| name.to_string_lossy().starts_with(of))
        {
            cargo.env_remove(name);
        }
    }
    let output = run(cargo.arg("--message-format=json").current_dir(repository()));
    let messages = String::from_utf8(output.stdout).unwrap();
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).expect("a message of cargo");
        message["executable"].as_str().map(str::to_owned)
    });
    executables.next().expect("cargo says what it has built")
}

/// Goes through a phase; says with which of [`INSTRUCTION_SETS`].
fn count(program: &str, figure: &Figure) -> (usize, Counted) {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("counts");
    let mut valgrind = Command::new("valgrind");
    // What could change the counts.
    valgrind.env_remove("VALGRIND_OPTS").env_remove("GLIBC_TUNABLES");
    valgrind.args(["--tool=callgrind", "--separate-threads=yes"]);
    valgrind.arg(format!("--callgrind-out-file={}", file.display()));
    let output = run(valgrind.args([program, figure.phase, &figure.passes.to_string()]));
    let said = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = said.trim_end().rsplitn(3, ' ').collect();
    let [events, bytes, set] = words[..] else { panic!("the program says {said}") };
    let set = INSTRUCTION_SETS.iter().position(|known| *known == set);
    let set = set.unwrap_or_else(|| panic!("no figures for {said}: add them to FIGURES"));
    // The start is thread 1, the passes are thread 2.
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

/// What is wrong with a count.
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

/// A line of [`FIGURES`] with what was counted.
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
