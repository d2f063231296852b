//! The process: the limits that it asks of the kernel for itself, once, before anything is open,
//! and why it can't go on.
#![allow(unsafe_code, reason = "getrlimit, setrlimit and prctl; the proofs are beside the calls")]

use std::io;

mod failures;

pub use failures::Failures;

/// Raises the soft limit of open files to the hard one, as Go's runtime does for every Go program, and says what it is
/// now. The soft one is often 1,024 for the sake of select(2), which nothing here uses; `limits.max_connections` is to
/// bound connections, not accept(2) that fails.
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

/// No transparent huge pages: 2 MiB are resident then for each byte that is touched. mimalloc asks for them where the
/// system leaves the choice (30 MiB resident for 2 MiB in use), and the bounds of the memory count what is used.
///
/// # Errors
///
/// The kernel's; the pages stay as the system has them.
pub fn refuse_huge_pages() -> io::Result<()> {
    // prctl is variadic and reads each argument as an unsigned long: the upper half of an int is
    // not defined, and with this option the kernel refuses unused arguments that are not 0.
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: with this option prctl takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, on, unused, unused, unused) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_that_were_refused_are_not_given() {
        refuse_huge_pages().expect("this kernel has the option");
        let (asked, unused): (libc::c_ulong, libc::c_ulong) = (0, 0);
        // SAFETY: with this option prctl takes numbers only.
        let refused =
            unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, asked, unused, unused, unused) };
        assert_eq!(refused, 1);
    }
}
