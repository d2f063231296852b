//! The process as a whole: the settings that it asks of the kernel once at the start, before
//! anything is open, what it gives up then, and the failures after which it must end.
//!
//! This crate promises that a limit or a restriction which the kernel refuses is an error or a line
//! of the log. It imports `config` (the section `[process]`). What must never happen here: a thread
//! is started before the restrictions are in force.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

mod failures;
pub mod restrict;

pub use failures::Failures;

/// Raises the soft limit of open files to the hard limit. The soft limit is often 1,024, because
/// select(2) can handle no more; nothing in the relay uses select. Without a higher limit,
/// accept(2) could fail before `limits.max_connections` is reached. Go's runtime raises the limit
/// in the same way.
///
/// # Errors
///
/// The error of the kernel. The limit stays as it was.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Returns the number of files, sockets included, that the process may have open.
pub fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Turns transparent huge pages off for this process. With huge pages, one touched byte makes 2 MiB
/// resident. The allocator mimalloc asks for huge pages if the system leaves the choice to
/// programs. A relay with 2 MiB in use then had 30 MiB resident, but the memory limits of the relay
/// count only the bytes in use.
///
/// # Errors
///
/// The error of the kernel. The pages stay as the system has them.
pub fn refuse_huge_pages() -> io::Result<()> {
    Ok(rustix::thread::disable_transparent_huge_pages(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_that_were_refused_are_not_given() {
        refuse_huge_pages().expect("this kernel has the option");
        assert!(rustix::thread::transparent_huge_pages_are_disabled().expect("the same option"));
    }
}
