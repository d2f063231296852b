//! The command `evidence verify`.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use clap::Args;
use indicatif::{HumanBytes, ProgressBar};

use super::published::Published;
use super::witness;
use super::witness::Witnesses;
use crate::cli::healthcheck::{Credentials, shown};
use crate::cli::replay::style;
use crate::cli::{FAILED, WRONG, input, print};
use audit::time;
use base::disk::named;
use base::named_file;
use base::words::escape;
use client::ask::Target;
use evidence_log::tlog::key::VerifierKey;
use verify::Request;
use verify::report::Report;

/// The exit status if a part of the log or of the stored lines could not be checked.
const UNCHECKED: u8 = 2;

/// The greatest size in bytes of a file with a checkpoint or a proof.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The greatest number of notes, and of parts that were not checked, that are printed.
const ROWS_MAX: usize = 100;

/// The greatest number of outputs, and of starts, stops and reloads, that are printed.
const RUNS_MAX: usize = 1000;

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// The queue's directory, its evidence subdirectory, or a copy of either; may be repeated for
    /// several relays with one store, and for a log that was set aside
    #[arg(long, value_name = "DIR", required_unless_present_any = ["proof", "url"])]
    directory: Vec<PathBuf>,
    /// The URL of a published log: http://HOST:PORT of a relay's admin address, or the base URL of
    /// the log's files
    #[arg(long, value_name = "URL", conflicts_with = "directory")]
    url: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// A proof that `evidence prove` has printed; needs no directory
    #[arg(long, value_name = "FILE", conflicts_with_all = ["directory", "url"])]
    proof: Option<PathBuf>,
    /// The verifier key of the log, as `evidence keygen` has printed it; may be repeated
    #[arg(long, value_name = "VKEY", required = true)]
    key: Vec<String>,
    #[command(flatten)]
    witnesses: Witnesses,
    /// A file with a checkpoint that was kept elsewhere; may be repeated
    #[arg(long, value_name = "NOTE", conflicts_with = "proof")]
    checkpoint: Vec<PathBuf>,
    #[command(flatten)]
    stored: Stored,
    /// Accept events that the log itself reports as lost
    #[arg(long)]
    allow_lost: bool,
    /// If the relay is running, do not wait for a checkpoint that covers the stored lines
    #[arg(long)]
    no_wait: bool,
}

// The stored lines, and the events that are compared with them. A doc comment would become the
// description of the command.
#[derive(Args)]
struct Stored {
    /// The output whose consumer has stored the lines; may be repeated if the output was renamed
    #[arg(long, value_name = "NAME", requires = "events")]
    output: Vec<String>,
    /// Files with the lines that the consumer has stored: plain, gzip or zstd, in any order
    #[arg(long, value_name = "FILE", num_args = 1..)]
    events: Vec<PathBuf>,
    /// Count only events that were accepted at this time or later, such as 2026-11-22T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<u64>,
    /// Count only events that were accepted up to this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<u64>,
    /// Lines that were sent within this time before the newest stored line may still be missing,
    /// such as 30s or 5m: for consumers that write late, or to several files
    #[arg(long, value_name = "TIME", value_parser = config::time, default_value = "30s")]
    settle: Duration,
}

fn time(text: &str) -> Result<u64, String> {
    time::parse(text)
        .ok_or_else(|| "is not a time of RFC 3339, such as 2026-11-22T08:00:00Z".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let (wrong, stored) = (|text: String| super::told(WRONG, text), &arguments.stored);
    for (files, what) in [
        (&arguments.directory, "the evidence"),
        (&arguments.proof.iter().cloned().collect(), "the proof"),
        (&arguments.checkpoint, "the checkpoint"),
        (&stored.events, "the events"),
    ] {
        files.iter().try_for_each(|file| input(file, what))?;
    }
    if stored.since.zip(stored.until).is_some_and(|(since, until)| until < since) {
        return Err(wrong("--since is later than --until".to_owned()));
    }
    let mut request = request(arguments).map_err(wrong)?;
    // The witness is asked before the log is read: the log must have what the witness has seen.
    let unasked = witness::ask(&arguments.witnesses, &arguments.credentials, &mut request)?;
    let is_proof = arguments.proof.is_some();
    if !is_proof && request.outputs.is_empty() && !request.events.is_empty() {
        return Err(wrong("--events needs --output: the name of the output".to_owned()));
    }
    if arguments.url.is_some() && !request.events.is_empty() {
        let text = "--events needs --directory: a published log has no line hashes";
        return Err(wrong(text.to_owned()));
    }
    let report = match (&arguments.proof, &arguments.url) {
        (Some(file), _) => read(file)
            .and_then(|text| verify::proof::check(&String::from_utf8_lossy(&text), &request)),
        (None, None) => match directory_report(&arguments.directory, &request) {
            Err(verify::Error::Usage(text)) => return Err(wrong(text)),
            Err(verify::Error::Io(error)) => Err(error),
            Ok(report) => Ok(report),
        },
        (None, Some(url)) => {
            let of_url = |why| wrong(format!("--url {}: {why}", shown(url)));
            let target = arguments.credentials.with(Target::new(url).map_err(of_url)?)?;
            let published = Published::new(target).map_err(of_url)?;
            verify::published(&published, &request)
        }
    };
    let mut report = report.map_err(|error| super::told(UNCHECKED, error))?;
    report.unchecked.extend(unasked);
    print(&text_of(&report))?;
    match report.status() {
        0 => Ok(()),
        UNCHECKED => Err(UNCHECKED),
        _ => Err(FAILED),
    }
}

fn request(arguments: &Arguments) -> Result<Request, String> {
    let keys = |option: &str, keys: &[String]| -> Result<Vec<VerifierKey>, String> {
        let read = |key: &String| key.parse().map_err(|error| format!("{option} {key}: {error}"));
        keys.iter().map(read).collect()
    };
    let checkpoint = |path: &PathBuf| -> Result<_, String> {
        let content = read(path).map_err(|error| error.to_string())?;
        Ok((path.display().to_string(), content))
    };
    let stored = &arguments.stored;
    Ok(Request {
        keys: keys("--key", &arguments.key)?,
        witnesses: keys("--witness", &arguments.witnesses.witness)?,
        checkpoints: arguments.checkpoint.iter().map(checkpoint).collect::<Result<_, _>>()?,
        outputs: stored.output.clone(),
        events: stored.events.clone(),
        since: stored.since,
        until: stored.until,
        settle: stored.settle,
        allows_lost: arguments.allow_lost,
        waits: !arguments.no_wait,
        witnessed: Vec::new(),
        witness_max_age: arguments.witnesses.witness_max_age,
    })
}

/// Reads a small file, which may be a pipe.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = path.display().to_string();
    named_file::read_of_command(path, FILE_BYTES_MAX).map_err(named(&file))
}

/// Checks directories, and shows on a terminal how many bytes of the stored lines are read.
fn directory_report(directories: &[PathBuf], request: &Request) -> Result<Report, verify::Error> {
    let sizes = request.events.iter().filter_map(|path| fs::metadata(path).ok());
    let bar = ProgressBar::new(sizes.map(|metadata| metadata.len()).sum())
        .with_style(style("{bar:40} {bytes} of {total_bytes}, {eta} left"));
    let mut read = 0;
    let report = verify::directories(directories, request, &mut |bytes| {
        read += bytes;
        bar.set_position(read);
    });
    bar.finish_and_clear();
    let mut report = report?;
    if read > 0 {
        report.notes.push(format!("{} of stored lines were read", HumanBytes(read)));
    }
    Ok(report)
}

fn text_of(report: &Report) -> String {
    let limited = |word: &str, rows: &[String], max: usize| -> Vec<String> {
        let more = (rows.len() > max).then(|| format!("{word}{} more", rows.len() - max));
        rows.iter().take(max).map(|row| format!("{word}{row}")).chain(more).collect()
    };
    let kept = report.faults.kept();
    let more = report.faults.count() - kept.len() as u64;
    let more = (more > 0).then(|| format!("FAULT: {more} more"));
    let rows = [
        limited("", &report.outputs, RUNS_MAX),
        limited("", &report.runs, RUNS_MAX),
        kept.iter().map(ToString::to_string).chain(more).collect(),
        limited("NOT CHECKED: ", &report.unchecked, ROWS_MAX),
        limited("note: ", &report.notes, ROWS_MAX),
    ];
    let rows = rows.iter().flatten().map(|row| format!("{}\n", escape::message(row)));
    format!("{}\n{}", report.counts, rows.collect::<String>())
}
