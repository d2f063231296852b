//! Asks the kernel for SIOCOUTQ (tcp(7)), which no safe crate offers.
#![allow(unsafe_code, reason = "an ioctl; the proof is beside the call")]

use std::io;
use std::os::fd::AsRawFd;

use tokio::net::TcpStream;

/// Returns the number of written bytes that the peer's kernel has not acknowledged. After a reset
/// the number is meaningless, so the caller must check the socket for an error *after* this call.
///
/// # Errors
///
/// The error of the kernel.
pub fn unacknowledged(stream: &TcpStream) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open while `stream` is borrowed. SIOCOUTQ (TIOCOUTQ on Linux)
    // writes one int to the given address, which belongs to a live local variable.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    u64::try_from(bytes).map_err(|_| io::Error::other("SIOCOUTQ gave a negative number"))
}
