//! The check of a proof without its log, as `evidence prove` prints it.

use std::io;

use super::report::{Number, Report, time};
use super::request::Request;
use super::stored;
use super::stored::Line;
use base::words::counted;
use evidence_log::entry::{Entry, RANGE_MAX};
use evidence_log::lines::Salt;
use evidence_log::tlog::merkle::{Hash, PROOF_MAX, includes};
use evidence_log::tlog::note::Signed;
use evidence_log::tlog::proof::Proof;

/// The beginning of the block with the Merkle path from a line to the root of its range.
const SALT: &str = "\n\nsalt ";

/// The maximum number of lines that are compared with a proof.
const LINES_MAX: usize = 100_000;

/// Checks a proof with the keys of a request. The proven line must be one of the request's stored
/// lines. Without stored lines, only the entry is proven.
///
/// # Errors
///
/// A file of the request can't be read.
pub fn check(text: &str, request: &Request) -> io::Result<Report> {
    let mut lines = Vec::new();
    for path in &request.events {
        let mut line = |line| {
            if let Line::Event { hash, plain } = line {
                lines.push(hash);
                lines.extend(plain);
            }
            match lines.len() > LINES_MAX {
                true => Err(io::Error::other("has too many lines for one proof")),
                false => Ok(()),
            }
        };
        stored::read(path, &mut line, &mut |_| {})?;
    }
    let mut report = Report::default();
    report.counts.checkpoints.all = 1;
    if let Err(fault) = check_proof(text, request, &lines, &mut report) {
        report.faults.add(None, fault);
    }
    Ok(report)
}

fn check_proof(
    text: &str,
    request: &Request,
    lines: &[Hash],
    report: &mut Report,
) -> Result<(), String> {
    let (proof, path) = match text.rsplit_once(SALT) {
        Some((proof, path)) => (format!("{proof}\n"), Some(path)),
        None => (text.to_owned(), None),
    };
    let proof = Proof::parse(&proof).map_err(|error| error.to_string())?;
    request.signed_by_key("the checkpoint", &proof.signed)?;
    for witness in &request.witnesses {
        if !matches!(proof.signed.note.check(witness), Signed::Valid(Some(_))) {
            let witness = witness.name();
            return Err(format!("the checkpoint has no valid cosignature of {witness}"));
        }
    }
    report.counts.checkpoints.good = 1;
    let entry = proof.extra.as_deref().ok_or("the proof has no entry in its line extra")?;
    if !proof.proves(entry) {
        return Err("the entry is not in the log that the checkpoint was signed over".to_owned());
    }
    let parsed = Entry::parse(entry).map_err(|error| format!("the entry is none: {error}"))?;
    let Entry::Accepted { first, count, at, root } = parsed else {
        return Err("the entry is not about events that came in".to_owned());
    };
    let last = first.saturating_add(count).saturating_sub(1);
    // The line is searched at all indices of the range, so the range must be short.
    if !(1..=RANGE_MAX).contains(&count) || first.checked_add(count).is_none() {
        let events = counted(count, "event", "events");
        return Err(format!("the entry is about {events} from position {first} on"));
    }
    let index = proof.index;
    report.notes.push(format!(
        "entry {index}: the events at positions {first} to {last} came in until {}",
        time(at)
    ));
    let Some(path) = path else {
        let text = "the proof has no way to the line, because its line hashes were gone";
        report.unchecked.push(text.to_owned());
        return Ok(());
    };
    if lines.is_empty() && !request.events.is_empty() {
        report.unchecked.push("the line: the files of --events have no event".to_owned());
        return Ok(());
    }
    if lines.is_empty() {
        let text = "the line itself was not compared: give it with --events";
        report.notes.push(text.to_owned());
        return Ok(());
    }
    check_line(path, lines, first, count, root, report)
}

/// Checks that the path leads from one of the lines to the root.
fn check_line(
    path: &str,
    lines: &[Hash],
    first: u64,
    count: u64,
    root: Hash,
    report: &mut Report,
) -> Result<(), String> {
    let mut rows = path.lines();
    let salt = rows.next().and_then(Salt::parse).ok_or("the proof has a wrong salt")?;
    let path: Option<Vec<_>> = rows.map(Hash::parse).collect();
    let path = path.filter(|path| path.len() <= PROOF_MAX);
    let path = path.ok_or("the way to the line has something else than hashes")?;
    report.counts.events.all = 1;
    for line in lines {
        let leaf = salt.leaf(line);
        let offset = (0..count).find(|offset| includes(leaf, *offset, count, &path, root));
        if let Some(offset) = offset {
            report.counts.events.good = 1;
            let text = format!("the line is the event at position {}", first + offset);
            report.notes.push(text);
            return Ok(());
        }
    }
    report.counts[Number::Missing] = 1;
    Err("no line of --events is the one that the proof is about".to_owned())
}
