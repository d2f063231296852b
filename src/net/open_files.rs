//! The limit of open files: every connection is one.
#![allow(unsafe_code, reason = "getrlimit and setrlimit; the proof is beside the calls")]

use std::io;

/// Raises the soft limit to the hard one, as Go's runtime does for every Go program, and says what it is now. The soft
/// one is often 1,024 for the sake of select(2), which nothing here uses; `limits.max_connections` is to bound
/// connections, not accept(2) that fails.
///
/// # Errors
///
/// The kernel's; the limit stays what it was.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit to the given address, which is a live local's.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == -1 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit reads one rlimit from the given address, which is a live local's.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}
