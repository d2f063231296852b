//! The names of the files of the evidence.

/// The name of the directory of the log, below that of the queue.
pub const DIRECTORY: &str = "evidence";

/// The directory of the files of line hashes, below that of the log.
pub(super) const LINES: &str = "lines";

/// Returns the path of a file of the log below the queue's directory.
pub(super) fn path(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

/// Returns the name of the file of line hashes whose first range is at this position.
pub(super) fn file_name(first: u64) -> String {
    format!("{first:020}")
}

/// Returns the position in the name of a file of line hashes; `None` if it is another file.
pub(super) fn first_of(name: &str) -> Option<u64> {
    name.parse().ok().filter(|first| file_name(*first) == name)
}
