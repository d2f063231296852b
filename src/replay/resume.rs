//! The resume file: how much of each file has been accepted.
//!
//! JSON, replaced as a whole by a rename. A file is known by the beginning of its first line, whatever its name, so that a
//! log that was rotated or gzipped meanwhile is known again and another one of the same name is not.

use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

/// The one that is written, and the only one that is read.
const VERSION: u32 = 1;

/// What tells a file from others: its first line, or as much of it as this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Head {
    first_line_bytes: u64,
    first_line_crc32c: u32,
}

impl Head {
    pub(super) const BYTES_MAX: usize = 4096;

    /// Of the first line.
    pub(super) fn of(line: &[u8]) -> Self {
        let line = &line[..line.len().min(Self::BYTES_MAX)];
        Self { first_line_bytes: line.len() as u64, first_line_crc32c: crc32c::crc32c(line) }
    }
}

/// How much of a file has been accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Read {
    /// As it was named; it counts for nothing.
    pub(super) path: PathBuf,
    #[serde(flatten)]
    pub(super) head: Head,
    /// Bytes of its text.
    pub(super) offset: u64,
    pub(super) lines: u64,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    /// Events accepted by now, all runs together.
    pub(super) events: u64,
    /// Those that have been begun, in their order. All but the last have been read to their ends.
    pub(super) files: Vec<Read>,
}

impl Default for State {
    fn default() -> Self {
        Self { version: VERSION, events: 0, files: Vec::new() }
    }
}

impl State {
    /// What another run has left there; nothing where there is no such file.
    pub(super) fn load(file: &Path) -> Result<Self, String> {
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("cannot read {}: {error}", file.display())),
        };
        let state: Self = serde_json::from_slice(&text).map_err(|error| {
            format!("{} is no resume file of a replay: {error}", file.display())
        })?;
        if state.version != VERSION {
            let version = state.version;
            return Err(format!("{} is of version {version}, not {VERSION}", file.display()));
        }
        Ok(state)
    }

    /// Replaces the file. Blocks.
    pub(super) fn save(&self, file: &Path) -> io::Result<()> {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = file.with_file_name(name);
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let mut written = File::create(&new)?;
        written.write_all(&text)?;
        // A rename may reach the disk before the contents do.
        written.sync_data()?;
        std::fs::rename(&new, file)
    }
}
