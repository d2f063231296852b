//! Checks an evidence log from outside: that it is whole and signed, that it says what became of
//! each event, and that a consumer has the lines that left.
//!
//! Nothing is written, and nothing is asked of a running relay. The directory may be a copy, or the
//! one that a relay writes to meanwhile: the places of the outputs are read before the journal, the
//! journal before the checkpoint, and the checkpoint before all that it covers.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `bounds` `compare` `positions` `report` `request` `stored` | entries that no relay writes · hashes in any number and order · a set of positions · counts and faults · what is asked · a consumer's lines |
//! | 2 | `hashes` `history` `proof` | line hashes by their roots · what the entries say together · a proof by itself |
//! | 3 | `log` | a log and its checkpoints |
//! | 4 | `events` `witnesses` | the lines that left, and the lines in the queue · what witnesses have seen |
//! | 5 | `published` | a log that a server has |

use std::io;
use std::path::Path;

use crate::evidence::reader::Directory;

mod bounds;
mod compare;
mod events;
mod hashes;
mod history;
mod log;
mod positions;
pub mod proof;
mod published;
pub mod report;
mod request;
mod stored;
mod witnesses;

pub use published::published;
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
