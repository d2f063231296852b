//! The commands `queue inspect`, `queue export` and `queue verify`: show the directory of a durable
//! queue to people and scripts.

use std::io;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::replay::style;
use super::{FAILED, WRONG, input, print, table};
use base::words::counted;
use queue::inspect::{Directory, Error, Seen, Summary, Verdict, printable};

/// The size in bytes of the buffer for standard output.
const BUFFER: usize = 256 << 10;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print the backlog of each output, and the contents of the directory
    Inspect {
        /// The directory set as queue.directory in the config
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the events as JSON lines, oldest first
    Export {
        /// The directory set as queue.directory in the config
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Print only the events that this output has not finished
        #[arg(long, value_name = "NAME")]
        output: Option<String>,
    },
    /// Check every checksum; exit status 1 if anything is damaged or missing
    Verify {
        /// The directory set as queue.directory in the config
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

pub(super) fn run(command: &Command) -> Result<(), u8> {
    match command {
        Command::Inspect { directory, json } => inspect(directory, *json),
        Command::Export { directory, output } => export(directory, output.as_deref()),
        Command::Verify { directory } => verify(directory),
    }
}

fn failed(error: Error) -> u8 {
    eprintln!("{error}");
    match error {
        Error::Absent(_) | Error::NoQueue(_) | Error::NoOutput { .. } => WRONG,
        Error::Newer { .. } | Error::Read { .. } | Error::Told(_) => FAILED,
    }
}

fn open(directory: &Path) -> Result<Directory, u8> {
    input(directory, "the queue")?;
    Directory::open(directory).map_err(failed)
}

fn inspect(directory: &Path, json: bool) -> Result<(), u8> {
    let summary = open(directory)?.summary().map_err(failed)?;
    for finding in &summary.unreadable {
        eprintln!("{finding}");
    }
    print(&if json { as_json(&summary) } else { as_table(&summary) })?;
    if summary.unreadable.is_empty() { Ok(()) } else { Err(FAILED) }
}

fn as_table(summary: &Summary) -> String {
    let mut rows = vec![["OUTPUT", "EVENTS", "BYTES", "AGE_SECONDS"].map(str::to_owned)];
    for output in &summary.outputs {
        let age = output.oldest.map_or("-".to_owned(), |age| age.as_secs().to_string());
        let (events, bytes) = (output.events.to_string(), output.bytes.to_string());
        rows.push([printable(&output.name), events, bytes, age]);
    }
    let mut text = table(&rows);
    text.push('\n');
    let rows = of_directory(summary).map(|(name, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        [name.to_owned(), value]
    });
    text + &table(&rows)
}

/// Returns the facts about the whole directory, each with its name in the JSON and in the table.
fn of_directory(summary: &Summary) -> [(&'static str, Value); 11] {
    let (files, bytes) = summary.quarantine;
    [
        ("format_version", json!(summary.format)),
        ("cursors", json!(summary.cursors.to_string())),
        ("segments", json!(summary.segments)),
        ("segment_bytes", json!(summary.segment_bytes)),
        ("first_position", json!(summary.first.get())),
        ("end_position", json!(summary.end.get())),
        ("damaged_headers", json!(summary.damaged_headers)),
        ("unreadable_segments", json!(summary.unreadable.len())),
        ("quarantine_files", json!(files)),
        ("quarantine_bytes", json!(bytes)),
        ("aside_events", json!(summary.aside)),
    ]
}

fn as_json(summary: &Summary) -> String {
    let outputs: Vec<_> = summary
        .outputs
        .iter()
        .map(|output| {
            json!({
                "name": output.name,
                "backlog_events": output.events,
                "backlog_bytes": output.bytes,
                "oldest_age_seconds": output.oldest.map(|age| age.as_secs_f64()),
            })
        })
        .collect();
    let mut all = json!({ "outputs": outputs });
    of_directory(summary).into_iter().for_each(|(name, value)| all[name] = value);
    format!("{all:#}\n")
}

fn export(directory: &Path, output: Option<&str>) -> Result<(), u8> {
    let directory = open(directory)?;
    let mut stdout = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    let mut found = false;
    let exported = directory.export(output, &mut |seen| match seen {
        Seen::Lines(lines) => stdout.write_all(lines),
        Seen::Finding(finding) => {
            found = true;
            eprintln!("{finding}");
            Ok(())
        }
        Seen::At(_) | Seen::Progress(..) => Ok(()),
    });
    let flushed = exported.and_then(|_| stdout.flush().map_err(Error::Told));
    // After a failed write, the rest of the buffer is dropped and not written again.
    drop(stdout.into_parts());
    ended(flushed, found)
}

fn verify(directory: &Path) -> Result<(), u8> {
    let directory = open(directory)?;
    // On a terminal, stderr shows how far the command is.
    let progress = ProgressBar::no_length().with_style(style("{pos} of {len} segments"));
    let mut found = false;
    let verified = directory.verify(&mut |seen| match seen {
        Seen::At(_) | Seen::Lines(_) => Ok(()),
        Seen::Finding(finding) => {
            found = true;
            progress.suspend(|| writeln!(io::stdout().lock(), "{finding}"))
        }
        Seen::Progress(done, of) => {
            progress.set_length(of as u64);
            progress.set_position(done as u64);
            Ok(())
        }
    });
    progress.finish_and_clear();
    let told = verified.and_then(|verdict| {
        let (mut stdout, summary) = (io::stdout().lock(), summary_of(&verdict));
        writeln!(stdout, "{summary}").and_then(|()| stdout.flush()).map_err(Error::Told)
    });
    ended(told, found)
}

/// Turns the result of a command into an exit status, and prints the error if there is one. `found`
/// is `true` if the command has reported damage or a gap: the exit status is then a failure even if
/// the command itself worked. It is not a failure if the reader has closed the pipe early, as
/// `head` does.
fn ended(result: Result<(), Error>, found: bool) -> Result<(), u8> {
    match result {
        Err(Error::Told(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(Error::Told(error)) => {
            return Err(super::failed(format_args!("cannot write to standard output: {error}")));
        }
        Err(error) => return Err(failed(error)),
        Ok(()) => {}
    }
    if found { Err(FAILED) } else { Ok(()) }
}

fn summary_of(verdict: &Verdict) -> String {
    let Verdict { segments, events, bytes, findings, missing, unfinished } = verdict;
    let state = match findings {
        0 => "whole".to_owned(),
        _ => format!(
            "damaged in {}, {} missing",
            counted(*findings, "place", "places"),
            counted(*missing, "event", "events")
        ),
    };
    let segments = counted(*segments, "segment", "segments");
    let events = counted(*events, "event", "events");
    let mut text = format!("{segments}, {events}, {bytes} bytes: {state}");
    if let Some((file, offset)) = unfinished {
        text.push_str(&format!(
            "; the write at {file} offset {offset} is not finished, and was not acknowledged: no damage"
        ));
    }
    text
}
