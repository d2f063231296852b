//! The commands `evidence keygen`, `show`, `prove`, `copy` and `verify`.

use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};
use std::{fs, io};

use clap::Subcommand;

use super::{FAILED, WRONG, input, print, whole};
use audit::time::rfc3339;
use base::words::escape;
use evidence_log::entry::Entry;
use evidence_log::reader::{Directory, Log, ReadError};
use evidence_log::tlog::key::SigningKey;
use evidence_log::tlog::merkle::{Hash, inclusion};
use evidence_log::tlog::proof::Proof;

mod copy;
mod published;
mod verify;
mod witness;

/// The size in bytes of the buffer for standard output.
const BUFFER: usize = 64 << 10;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Create a signing key, write it to a file, and print its verifier key
    Keygen {
        /// The name of the log: evidence.origin in the config
        #[arg(long, value_name = "NAME")]
        origin: String,
        /// The new file for the private key; it must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the checkpoint and each entry of an evidence log
    Show {
        /// The queue's directory, its evidence subdirectory, or a copy of either
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Print only the entries, as JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Print a proof that an event was accepted, in C2SP tlog-proof format
    Prove {
        /// The queue's directory, its evidence subdirectory, or a copy of either
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The position of the event in the queue
        #[arg(long, value_name = "N", value_parser = whole(0..=u64::MAX, "a position, 0 or more, such as 4711"))]
        position: u64,
    },
    /// Make a consistent copy of a relay's evidence, even while it runs: the newest checkpoint,
    /// everything that it covers, and the line hashes. The events in the queue are not copied
    Copy {
        /// The queue's directory, its evidence subdirectory, or a copy of either
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The new directory; it must not exist, or must be empty
        #[arg(value_name = "TO")]
        to: PathBuf,
    },
    /// Verify that an evidence log is complete, and that a consumer has stored the lines that were
    /// sent to it: exit status 0 if nothing is wrong, 1 if something is, 2 if not everything could
    /// be checked
    Verify(Box<verify::Arguments>),
}

pub(super) fn run(command: &Command) -> Result<(), u8> {
    match command {
        Command::Keygen { origin, out } => keygen(origin, out),
        Command::Show { directory, json } => show(directory, *json),
        Command::Prove { directory, position } => prove(directory, *position),
        Command::Copy { directory, to } => copy::run(directory, to),
        Command::Verify(arguments) => verify::run(arguments),
    }
}

fn failed(error: impl std::fmt::Display) -> u8 {
    told(FAILED, error)
}

fn told(status: u8, error: impl std::fmt::Display) -> u8 {
    eprintln!("{}", escape::message(&error.to_string()));
    status
}

/// Writes a new key to a file that only its owner can read, and prints the public key.
fn keygen(origin: &str, file: &Path) -> Result<(), u8> {
    let (key, text) = SigningKey::generate(origin).map_err(|error| {
        eprintln!("--origin: {error}");
        WRONG
    })?;
    let failed = |error: io::Error| {
        let exists = error.kind() == io::ErrorKind::AlreadyExists;
        let hint = if exists { "; a key is never written over a file that exists" } else { "" };
        failed(format!("cannot write {}: {error}{hint}", file.display()))
    };
    let mut options = fs::OpenOptions::new();
    let mut created =
        options.write(true).create_new(true).mode(0o600).open(file).map_err(&failed)?;
    let written = created.write_all(text.as_bytes()).and_then(|()| created.sync_all());
    if let Err(error) = written {
        // A file with half a key must not stay, because each later attempt would fail on a file
        // that exists.
        fs::remove_file(file).ok();
        return Err(failed(error));
    }
    print(&format!("{}\n", key.verifier()))
}

fn find(directory: &Path) -> Result<Directory, u8> {
    input(directory, "the evidence")?;
    Directory::find(directory).map_err(|error| told(WRONG, error))
}

fn show(directory: &Path, json: bool) -> Result<(), u8> {
    let files = find(directory)?;
    let log = Log::open(&files).map_err(failed)?;
    let mut stdout = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    let told = show_to(&log, json, &mut stdout);
    told.and_then(|()| stdout.flush().map_err(failed))
}

fn show_to(log: &Log<'_>, json: bool, stdout: &mut impl Write) -> Result<(), u8> {
    if !json {
        for line in log.signed.note.text().lines() {
            writeln!(stdout, "{}", escape::message(line)).map_err(failed)?;
        }
        writeln!(stdout, "\nINDEX TIME ENTRY").map_err(failed)?;
    }
    for entry in log.entries() {
        let (index, entry) = entry.map_err(failed)?;
        let text = String::from_utf8_lossy(&entry);
        // An entry is JSON, unless it was forged. The escapes of JSON keep its meaning.
        let text = escape::json(&text);
        let told = match json {
            true => writeln!(stdout, "{text}"),
            false => {
                let at = Entry::parse(&entry).map(|entry| entry.at());
                let at = at.ok().map(|at| rfc3339(UNIX_EPOCH + Duration::from_millis(at)));
                writeln!(stdout, "{index} {} {text}", at.as_deref().unwrap_or("-"))
            }
        };
        told.map_err(failed)?;
    }
    Ok(())
}

fn prove(directory: &Path, position: u64) -> Result<(), u8> {
    let files = find(directory)?;
    let log = Log::open(&files).map_err(failed)?;
    let found = accepted(&log, position).map_err(failed)?.ok_or_else(|| {
        failed(format!("the log has no entry about an accepted event at position {position}"))
    })?;
    let Accepted { index, entry, first, count, root } = found;
    let path = inclusion(&log.nodes(), index, log.size()).map_err(failed)?;
    let proof = Proof { extra: Some(entry.clone()), index, path, signed: log.signed.clone() };
    if !proof.proves(&entry) {
        return Err(failed(format!(
            "entry {index} is not the one that the checkpoint is about: the log is damaged"
        )));
    }
    let mut text = proof.to_string();
    if let Some(range) = files.range_of(first, count, root).map_err(failed)? {
        let leaves = range.leaves();
        let path = inclusion(leaves.as_slice(), position - first, count).map_err(failed)?;
        text.push_str(&format!("\nsalt {}\n", range.salt));
        path.iter().for_each(|hash| text.push_str(&format!("{hash}\n")));
    }
    // An escape would make the proof invalid, so a proof that needs one is not printed.
    if text.lines().any(|line| escape::message(line) != line) {
        return Err(failed(
            "the checkpoint has characters that would change what a terminal shows",
        ));
    }
    print(&text)
}

/// An entry about accepted events: its index, its bytes and its contents.
struct Accepted {
    index: u64,
    entry: Vec<u8>,
    first: u64,
    count: u64,
    root: Hash,
}

/// Returns the first entry about accepted events with this position; `None` if there is none.
fn accepted(log: &Log<'_>, position: u64) -> Result<Option<Accepted>, ReadError> {
    for entry in log.entries() {
        let (index, entry) = entry?;
        if let Ok(Entry::Accepted { first, count, root, .. }) = Entry::parse(&entry)
            && (first..first.saturating_add(count)).contains(&position)
        {
            return Ok(Some(Accepted { index, entry, first, count, root }));
        }
    }
    Ok(None)
}
