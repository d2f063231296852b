//! Checks an evidence log from outside: that it is whole and signed, that it says what became of
//! each event, and that a consumer has the lines that left.
//!
//! Nothing is written, and nothing is asked of a running relay. The directory may be a copy, or the
//! one that a relay writes to meanwhile: the places of the outputs are read before the journal, the
//! journal before the checkpoint, and the checkpoint before all that it covers.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `compare` `positions` `report` `request` `stored` | hashes in any number and order · a set of positions · counts and faults · what is asked · a consumer's lines |
//! | 2 | `hashes` `history` `proof` | line hashes by their roots · what the entries say together · a proof by itself |
//! | 3 | `log` | a log and its checkpoints |
//! | 4 | `events` | the lines that left, and the lines in the queue |

use std::io;
use std::path::Path;

use crate::evidence::reader::Directory;
use crate::evidence::reader::Files;

mod compare;
mod events;
mod hashes;
mod history;
mod log;
mod positions;
pub mod proof;
pub mod report;
mod request;
mod stored;

use report::Report;
pub use request::Request;

/// Checks the log in a directory: a queue's, the log's own, or a copy of either. `read` is called
/// with the number of bytes of stored lines that were read since the last call.
///
/// # Errors
///
/// A file can't be read. Something that is missing or wrong is no error: the report has it.
pub fn directory(
    directory: &Path,
    request: &Request,
    read: &mut dyn FnMut(u64),
) -> io::Result<Report> {
    let Ok(files) = Directory::find(directory) else {
        std::fs::read_dir(directory)?;
        return Ok(log::absent(directory.display()));
    };
    let queue = Some(directory).filter(|_| files.is_below(directory));
    let queue = events::Queue::open(queue)?;
    let journal = files.journal()?;
    let mut check = log::Check::new(request, Some(&files));
    check.log(&files, Some(&journal))?;
    if let Some(queue) = &queue {
        check.queue(queue)?;
    }
    check.events(&files, read)?;
    check.end(&files)
}

/// Checks a log that is somewhere else, of which only the published files are there.
///
/// # Errors
///
/// A file can't be read. Something that is missing or wrong is no error: the report has it.
pub fn published(files: &impl Files, request: &Request) -> io::Result<Report> {
    let mut check = log::Check::new(request, None);
    check.log(files, None)?;
    check.events(files, &mut |_| {})?;
    check.end(files)
}
