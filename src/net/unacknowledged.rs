//! One question to the kernel that no safe crate asks: SIOCOUTQ (tcp(7)).
#![allow(unsafe_code, reason = "an ioctl; the proof is beside the call")]

use std::io;
use std::os::fd::AsRawFd;

use tokio::net::TcpStream;

/// Bytes written to the socket that the peer's kernel has not acknowledged.
///
/// After a reset the number means nothing: whoever asks must look for an error of the socket *afterwards*.
///
/// # Errors
///
/// The kernel's.
pub fn unacknowledged(stream: &TcpStream) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as `stream` is borrowed, and SIOCOUTQ (TIOCOUTQ on Linux) writes one int to
    // the given address, which is a live local's.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    u64::try_from(bytes).map_err(|_| io::Error::other("SIOCOUTQ gave a negative number"))
}
