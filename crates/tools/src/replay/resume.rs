//! The resume file: how much of each file has been accepted.
//!
//! The resume file is JSON, and each write replaces it by a rename. A file is recognised by the
//! beginning of its first line, not by its name. A log that was rotated or compressed in the
//! meantime is therefore recognised, and another log of the same name is not taken for it.

use std::fs::File;
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use base::named_file;
use base::release::Format;
use queue::inspect::Leftover;

/// The version of the resume file's format. Only this version is written and read.
const VERSION: u32 = 1;

/// The greatest size of a resume file in bytes. It has about 300 bytes for each input.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The format of the resume file, for `--version`.
pub const FORMAT: Format =
    Format { name: "resume files of replay", reads: &[VERSION], writes: VERSION };

/// A length and a checksum of the beginning of a file's text, by which a later run recognises the
/// file. The beginning is the first line, or the first [`Head::BYTES_MAX`] bytes of a longer line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Head {
    /// The number of bytes that the checksum covers.
    first_line_bytes: u64,
    /// The CRC-32C checksum of these bytes.
    first_line_crc32c: u32,
}

impl Head {
    /// The greatest number of bytes of the first line that the checksum covers.
    pub(super) const BYTES_MAX: usize = 4096;

    /// Returns the head of a file whose first line is `line`.
    pub(super) fn of(line: &[u8]) -> Self {
        let line = &line[..line.len().min(Self::BYTES_MAX)];
        Self { first_line_bytes: line.len() as u64, first_line_crc32c: crc32c::crc32c(line) }
    }
}

/// The part of a record in the resume file that only a queue's directory has. The directory is
/// recognised by the queue's identity. A copy of it, or the same volume mounted elsewhere, is
/// therefore the same input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Queue {
    /// The queue's identity, as [`Leftover::queue`] says it.
    pub(super) identity: String,
    /// The name of the output whose unfinished events are sent. `None`: those that at least one
    /// output has not finished.
    pub(super) output: Option<String>,
    /// The position at which the first run began.
    pub(super) begin: u64,
    /// The number of events that have been accepted.
    pub(super) events: u64,
    /// The number of events before the record's position that are damaged or missing, and were
    /// therefore not sent. Each later run reports them again, so that no run denies the loss.
    pub(super) missing: u64,
    /// The number of places before the record's position at which the directory is damaged.
    pub(super) faults: u64,
}

impl Queue {
    /// Makes the record of a queue's directory of which nothing was sent yet.
    pub(super) fn new(left: &Leftover, output: Option<String>) -> Self {
        let (identity, begin) = (left.queue.clone(), left.begin.get());
        Self { identity, output, begin, events: 0, missing: 0, faults: 0 }
    }
}

/// The record in the resume file about one input, which is a file or a queue's directory: how much
/// of it has been accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Read {
    /// The path of the file or directory, for people who read the resume file. The program only
    /// shows the path in an error.
    pub(super) path: PathBuf,
    /// The beginning of the file's text, by which a later run recognises the file.
    #[serde(flatten)]
    pub(super) head: Head,
    /// The number of bytes of the file's uncompressed text that have been accepted. For a queue's
    /// directory, the number of bytes in the lines that have been accepted.
    pub(super) offset: u64,
    /// The number of the file's lines that have been accepted. For a queue's directory, the
    /// position of the first event that is not done yet.
    pub(super) lines: u64,
    /// The further facts about a queue's directory; `None` if the input is a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) queue: Option<Queue>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// The version of the resume file's format.
    version: u32,
    /// The number of events that have been accepted in all runs together.
    pub(super) events: u64,
    /// The files of which a part was accepted, in the order of the command line. All files but the
    /// last have been read to their ends. Of a log that is followed, the file with the place and
    /// the one before it.
    pub(super) files: Vec<Read>,
}

/// Notes in `files`, the record of a log that is followed, how much of a file has been accepted.
/// `is_after_gap` is `true` if the file does not follow directly on the one of the last record.
pub(super) fn go_on(files: &mut Vec<Read>, read: Read, is_after_gap: bool) {
    match files.last_mut() {
        Some(last) if last.head == read.head || !last.is_begun() || is_after_gap => *last = read,
        _ => files.push(read),
    }
    files.drain(..files.len().saturating_sub(2));
}

impl Read {
    /// Returns `false` if the record stands for a file that is not known yet: the one after the
    /// file of the record before it.
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
    /// Reads the resume file and returns its contents. If the file does not exist, returns the
    /// state of a replay that has not begun.
    ///
    /// # Errors
    ///
    /// The reason why the file cannot be used. The replay does not start then, because without
    /// this file it would send events again. The operator must name another resume file, or remove
    /// this one to send everything from the start.
    pub(super) fn load(file: &Path) -> Result<Self, String> {
        let name = file.display();
        let text = match named_file::read_of_command(file, FILE_BYTES_MAX) {
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

    /// Replaces the resume file by a file with this state. The whole file is replaced at once, so
    /// that a crash leaves either the old or the new state. Blocks the thread.
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
