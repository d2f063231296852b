//! The process as a whole: the limits that it asks the kernel for at startup, the rights that it
//! gives up at startup, and the failures after which it must end. A limit or restriction that the
//! kernel refuses is an error or a line of the log. This crate imports `config` (the section
//! `[process]`). The restrictions do not hold for threads that started before them.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

mod failures;
pub mod restrict;

pub use failures::Failures;

/// Raises the soft limit of open files to the hard limit, as Go's runtime does. The soft limit is
/// often 1,024, because select(2) can handle no more, but the relay does not use select.
///
/// # Errors
///
/// The error of the kernel. The limit stays as it was.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// The number of files, sockets included, that the process may have open.
pub fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Turns transparent huge pages off for this process. The allocator mimalloc asks for huge pages,
/// and in a huge page, one touched byte makes 2 MiB resident: a relay with 2 MiB in use had 30 MiB
/// resident.
///
/// # Errors
///
/// The error of the kernel. The process still has the system's setting for huge pages.
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
