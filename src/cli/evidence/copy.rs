//! The command `evidence copy`.

use std::path::Path;

use crate::cli::FAILED;
use crate::cli::WRONG;
use crate::cli::print;
use crate::cli::shown;
use crate::evidence::copy;
use crate::evidence::copy::CopyError;
use crate::words::escape;

/// Copies the evidence in a directory, and prints what was copied.
pub(super) fn run(directory: &Path, to: &Path) -> Result<(), u8> {
    let log = super::open(directory)?;
    let copied = copy::copy(log.files(), directory, to).map_err(|error| {
        eprintln!("{}", escape::message(&error.to_string()));
        match error {
            CopyError::Target(_) => WRONG,
            CopyError::Log(_) | CopyError::Changing | CopyError::Write(_) => FAILED,
        }
    })?;
    let origin = escape::message(&copied.origin);
    let mut text = format!(
        "{}: {} entries of {origin}, {} files of line hashes\n",
        shown(to),
        copied.entries,
        copied.line_files
    );
    if let Some(position) = copied.unexplained_below {
        text.push_str(&format!(
            "the line hashes below position {position} were deleted, and no checkpoint says so yet\n"
        ));
    }
    print(&text)
}
