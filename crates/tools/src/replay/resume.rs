//! The resume file: how much of each input was accepted.
//!
//! The resume file is JSON, and each write replaces it by a rename. A log is recognised by the
//! beginning of its first line and not by its name. Therefore a log is found again after a rotation
//! or compression, and another log of the same name is not mistaken for it.

use std::fs::File;
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use base::named_file;
use base::release::Format;
use queue::inspect::Leftover;

/// The version of the format. Only this version is written and read.
const VERSION: u32 = 1;

/// The maximum bytes of a resume file. It has about 400 bytes for each input.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The format of the resume file, for `--version`.
pub const FORMAT: Format =
    Format { name: "resume files of replay", reads: &[VERSION], writes: VERSION };

/// Lengths and checksums of the first line of a file's text, which identify the file in a later
/// run. A client can choose what an event begins with, but not the times at its end. Therefore the
/// checksum covers the whole line, or the first [`Head::BYTES_MAX`] bytes of a longer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Head {
    /// The number of bytes that the first checksum covers, at most [`Head::OLD_BYTES_MAX`].
    first_line_bytes: u64,
    first_line_crc32c: u32,
    /// The whole line, if it is longer than that. Older versions did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    whole_first_line: Option<Whole>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Whole {
    bytes: u64,
    crc32c: u32,
}

impl Head {
    /// The checksums cover at most this many bytes of the first line.
    pub(super) const BYTES_MAX: usize = 4 << 20;

    /// The first checksum, the only one of older resume files, covers at most this many bytes.
    const OLD_BYTES_MAX: usize = 4096;

    pub(super) fn of(line: &[u8]) -> Self {
        let line = &line[..line.len().min(Self::BYTES_MAX)];
        let old = &line[..line.len().min(Self::OLD_BYTES_MAX)];
        let whole = || Whole { bytes: line.len() as u64, crc32c: crc32c::crc32c(line) };
        Self {
            first_line_bytes: old.len() as u64,
            first_line_crc32c: crc32c::crc32c(old),
            whole_first_line: (line.len() > old.len()).then(whole),
        }
    }

    /// Returns `true` if the lines are the same as far as both checksums cover them.
    pub(super) fn matches(self, other: Self) -> bool {
        let [this, that] = [self, other].map(|it| (it.first_line_bytes, it.first_line_crc32c));
        let wholes = self.whole_first_line.zip(other.whole_first_line);
        this == that && wholes.is_none_or(|(this, that)| this == that)
    }
}

/// The part of a record that only a queue's directory has. The queue's identity identifies the
/// directory, so a copy, or the same volume mounted elsewhere, is the same input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Queue {
    /// The queue's identity, from [`Leftover::queue`].
    pub(super) identity: String,
    /// The output whose unfinished events are sent. `None`: the events that at least one output has
    /// not finished.
    pub(super) output: Option<String>,
    /// The position at which the first run began.
    pub(super) begin: u64,
    /// The number of accepted events.
    pub(super) events: u64,
    /// The number of damaged or missing events before the record's position, which were not sent.
    /// Each later run reports them again, so that no run hides the loss.
    pub(super) missing: u64,
    /// The number of faults before the record's position that may have cost events.
    pub(super) faults: u64,
}

impl Queue {
    /// Makes the record of a queue's directory from which nothing was sent yet.
    pub(super) fn new(left: &Leftover, output: Option<String>) -> Self {
        let (identity, begin) = (left.queue.clone(), left.begin.get());
        Self { identity, output, begin, events: 0, missing: 0, faults: 0 }
    }
}

/// The record about one input, a file or a queue's directory: how much of it was accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Read {
    /// The path, for messages and for people who read the resume file.
    pub(super) path: PathBuf,
    /// The beginning of the file's text, which identifies the file.
    #[serde(flatten)]
    pub(super) head: Head,
    /// The bytes of uncompressed text that are done: each event was accepted, and bad lines were
    /// skipped. For a queue's directory, the bytes of its lines.
    pub(super) offset: u64,
    /// The number of lines that are done. For a queue's directory, the position of the first event
    /// that is not done.
    pub(super) lines: u64,
    /// Further facts about a queue's directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) queue: Option<Queue>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    /// The number of accepted events in all runs.
    pub(super) events: u64,
    /// The inputs that were begun, in the order of the command line. For a followed log, the file
    /// that is read and the file before it.
    pub(super) files: Vec<Read>,
}

/// Updates `files`, the record of a followed log, with the progress `read` of a file.
/// `is_after_gap` is `true` if events may be missing between the last record's file and this one.
pub(super) fn go_on(files: &mut Vec<Read>, read: Read, is_after_gap: bool) {
    match files.last_mut() {
        Some(last) if last.head.matches(read.head) || !last.is_begun() || is_after_gap => {
            *last = read
        }
        _ => files.push(read),
    }
    files.drain(..files.len().saturating_sub(2));
}

impl Read {
    /// Returns `true` if the file of the record is known. Otherwise, in a followed log, the record
    /// stands for the file that comes after the one of the previous record, if there is one.
    pub(super) fn is_begun(&self) -> bool {
        self.head != Head::default()
    }
}

impl Default for State {
    fn default() -> Self {
        Self { version: VERSION, events: 0, files: Vec::new() }
    }
}

impl State {
    /// Reads the resume file. If it does not exist, returns the state of a replay that has not
    /// begun.
    ///
    /// # Errors
    ///
    /// The file can't be used. The replay must not start then, because without this file it would
    /// send events again. The operator must name another resume file, or remove this one to send
    /// everything again.
    pub(super) fn load(file: &Path) -> Result<Self, String> {
        let name = file.display();
        let text = match named_file::read(file, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("cannot read {name}: {error}")),
        };
        let state: Self = serde_json::from_slice(&text)
            .map_err(|error| format!("{name} is not the resume file of a replay: {error}"))?;
        if state.version != VERSION {
            return Err(format!(
                "the resume file {name} has version {}, but this program reads version {VERSION}",
                state.version
            ));
        }
        Ok(state)
    }

    /// Replaces the resume file by a rename, so that a crash leaves the old or the new state.
    /// Blocks the thread.
    pub(super) fn save(&self, file: &Path) -> io::Result<()> {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = file.with_file_name(name);
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let mut written = File::create(&new)?;
        written.write_all(&text)?;
        // Without this sync, the rename might reach the disk before the contents.
        written.sync_data()?;
        std::fs::rename(&new, file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_covers_the_whole_first_line_and_an_old_one_what_it_covered() {
        let line = |end: &str| Head::of(format!("{}{end}\n", "x".repeat(5000)).as_bytes());
        assert!(line("a").matches(line("a")));
        assert!(!line("a").matches(line("b")));
        assert!(!line("a").matches(line("ab")));
        // A line of exactly the old length is not the beginning of a longer one.
        let short = Head::of(format!("{}\n", "x".repeat(4095)).as_bytes());
        assert!(short.matches(short) && !short.matches(line("a")));
        // The record of an older version.
        let crc = crc32c::crc32c("x".repeat(4096).as_bytes());
        let old = format!(
            r#"{{"path":"p","first_line_bytes":4096,"first_line_crc32c":{crc},"offset":1,"lines":1}}"#
        );
        let old: Read = serde_json::from_str(&old).unwrap();
        assert!(old.head.matches(line("a")) && line("b").matches(old.head));
        assert!(!old.head.matches(Head::of(b"y\n")) && !old.head.matches(short));
        let new = Read { head: line("a"), ..old };
        let text = serde_json::to_string(&new).unwrap();
        assert_eq!(serde_json::from_str::<Read>(&text).unwrap(), new, "{text}");
    }
}
