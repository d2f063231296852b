//! The program with its command line, for the simulator: one function of a shared library.
#![allow(unsafe_code, reason = "the library's one function is called from another program")]

use std::ffi::CStr;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use libc::c_char;

/// Runs the program with a command line, and returns its exit status.
///
/// # Safety
///
/// `arguments` is an array of `count` pointers to strings that end with a zero byte. The strings
/// are not changed during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn run_program(count: usize, arguments: *const *const c_char) -> i32 {
    // SAFETY: as the function's own condition.
    let arguments = unsafe { std::slice::from_raw_parts(arguments, count) };
    let arguments = arguments.iter().map(|argument| {
        // SAFETY: as the function's own condition.
        let argument = unsafe { CStr::from_ptr(*argument) };
        OsString::from_vec(argument.to_bytes().to_vec())
    });
    i32::from(kube_audit_forwarder::cli::run_with(arguments.collect::<Vec<_>>()))
}
