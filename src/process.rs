//! The process as a whole: the settings that it asks of the kernel once at the start, before
//! anything is open, and the failures after which it cannot go on.
#![allow(unsafe_code, reason = "getrlimit, setrlimit and prctl; the proofs are beside the calls")]

use std::io;

mod failures;

pub use failures::Failures;

/// Raises the soft limit of open files to the hard limit, and returns the new limit. The soft limit
/// is often 1,024, because select(2) can handle no more; nothing in the relay uses select. Without
/// a higher limit, accept(2) could fail before `limits.max_connections` is reached. Go's runtime
/// raises the limit in the same way.
///
/// # Errors
///
/// The error of the kernel. The limit stays as it was.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes one rlimit to the given address, which is that of a live local
    // variable.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == -1 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: setrlimit reads one rlimit from the given address, which is that of a live local
    // variable.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
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
    // prctl is variadic and reads each argument as an unsigned long. The upper half of an int would
    // be undefined, and with this option the kernel refuses unused arguments that are not 0.
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: with this option all arguments of prctl are numbers.
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
        // SAFETY: with this option all arguments of prctl are numbers.
        let refused =
            unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, asked, unused, unused, unused) };
        assert_eq!(refused, 1);
    }
}
