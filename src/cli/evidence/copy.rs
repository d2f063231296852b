//! The command `evidence copy`.

use std::ops::Range;
use std::path::Path;

use crate::cli::{FAILED, WRONG, print, shown};
use base::words::{counted, escape};
use evidence_log::copy;
use evidence_log::copy::CopyError;
use evidence_log::reader::Log;

pub(super) fn run(directory: &Path, to: &Path) -> Result<(), u8> {
    let files = super::find(directory)?;
    Log::open(&files).map_err(super::failed)?;
    let copied = copy::copy(&files, directory, to).map_err(|error| {
        let status = if matches!(error, CopyError::Target(_)) { WRONG } else { FAILED };
        super::told(status, error)
    })?;
    let origin = escape::message(&copied.origin);
    let mut text = format!(
        "{}: {} of {origin}, {} of line hashes\n",
        shown(to),
        counted(copied.entries, "entry", "entries"),
        counted(copied.line_files, "file", "files")
    );
    if let Some(Range { start, end }) = copied.unexplained {
        text.push_str(&format!(
            "the line hashes of positions {start} to {} are missing, and no entry of the log says \
             that the relay has deleted them: verify cannot compare these events\n",
            end - 1
        ));
    }
    print(&text)
}
