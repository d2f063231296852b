//! System calls of the real kernel, which bypass the libc functions that this program replaces.
#![allow(unsafe_code, reason = "system calls; each proof is beside its call")]

use std::ffi::{CStr, c_int, c_long, c_void};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Calls the real kernel, and returns its result. A negative number is an error.
///
/// # Safety
///
/// The arguments must be valid for this system call. It may use memory at the addresses that it
/// gets.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn call(number: c_long, arguments: [usize; 6]) -> isize {
    let result: c_long;
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the registers follow Linux's system call convention on x86-64. Besides the result,
    // the kernel changes rcx and r11. The caller is responsible for the effects on memory.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    isize::try_from(result).unwrap_or(isize::MIN)
}

/// Calls the real kernel, and returns its result. A negative number is an error.
///
/// # Safety
///
/// The same as on x86-64.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn call(number: c_long, arguments: [usize; 6]) -> isize {
    let result: isize;
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the registers follow Linux's system call convention on AArch64.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    result
}

/// Converts a result of the kernel to that of a libc function: -1, with the error in `errno`.
pub(super) fn as_libc(result: isize) -> isize {
    if (-4095..0).contains(&result) {
        set_errno(c_int::try_from(-result).unwrap_or(libc::EIO));
        return -1;
    }
    result
}

pub(super) fn set_errno(error: c_int) {
    // SAFETY: the address is that of this thread's own variable.
    unsafe { *libc::__errno_location() = error };
}

/// Waits while the number is `expected`. It may also return for no reason.
pub(super) fn futex_wait(at: &AtomicU32, expected: u32) {
    let at = std::ptr::from_ref(at) as usize;
    // SAFETY: the kernel reads the four bytes of an atomic number that is borrowed for the call.
    unsafe { call(libc::SYS_futex, [at, 128, expected as usize, 0, 0, 0]) };
}

/// Wakes a thread that waits in [`futex_wait`].
pub(super) fn futex_wake(at: &AtomicU32) {
    let at = std::ptr::from_ref(at) as usize;
    // SAFETY: the kernel uses the address only to find the threads that wait there.
    unsafe { call(libc::SYS_futex, [at, 129, 1, 0, 0, 0]) };
}

/// Returns the real kernel's ID of this thread.
pub(super) fn thread_number() -> usize {
    // SAFETY: the call has no arguments.
    let number = unsafe { call(libc::SYS_gettid, [0; 6]) };
    number.unsigned_abs()
}

/// Waits until a thread has ended. By then, libc has freed its stack for the next thread.
pub(super) fn wait_until_gone(thread: usize) {
    // SAFETY: no argument is an address. Signal 0 is not sent.
    unsafe {
        let process = call(libc::SYS_getpid, [0; 6]).unsigned_abs();
        while call(libc::SYS_tgkill, [process, thread, 0, 0, 0, 0]) == 0 {
            call(libc::SYS_sched_yield, [0; 6]);
        }
    }
}

/// Returns libc's own function with this name.
///
/// # Panics
///
/// If libc has no such function.
pub(super) fn libc_function(name: &CStr) -> *mut c_void {
    // SAFETY: the name ends with a zero byte.
    let function = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!function.is_null(), "libc has no {name:?}");
    function
}

/// Writes to a descriptor of the real kernel. Errors and partial writes are ignored.
pub(super) fn write(descriptor: c_int, bytes: &[u8]) {
    let at = [descriptor as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0];
    // SAFETY: the kernel reads the bytes, which are borrowed for the call.
    unsafe { call(libc::SYS_write, at) };
}

/// Ends this process and all its threads at once.
pub(super) fn exit(status: c_int) -> ! {
    loop {
        // SAFETY: no argument is an address, and the call does not return.
        unsafe { call(libc::SYS_exit_group, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

pub(super) fn close(descriptor: c_int) {
    // SAFETY: no argument is an address.
    unsafe { call(libc::SYS_close, [descriptor as usize, 0, 0, 0, 0, 0]) };
}

/// Returns an open descriptor as a file.
pub(super) fn file(descriptor: c_int) -> std::fs::File {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the callers wrap the file so that it is not dropped, and do not keep it.
    unsafe { std::fs::File::from_raw_fd(descriptor) }
}

/// Fixes the addresses of this process's children: they are the same in each run.
pub(super) fn fix_addresses() {
    // SAFETY: no argument is an address.
    unsafe {
        let now = libc::personality(0xffff_ffff);
        let now = u64::from(now.unsigned_abs());
        libc::personality(now | libc::ADDR_NO_RANDOMIZE.unsigned_abs() as u64);
    }
}

pub(super) fn end_process(process: u32) {
    // SAFETY: no argument is an address.
    unsafe { call(libc::SYS_kill, [process as usize, 9, 0, 0, 0, 0]) };
}

/// Returns the CPU time of the child processes that this process has waited for.
pub(super) fn time_of_children() -> Duration {
    // SAFETY: all fields of the struct may be zero, and the call fills it.
    let used = unsafe {
        let mut used: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut used);
        [used.ru_utime, used.ru_stime]
    };
    let time = |it: libc::timeval| {
        Duration::from_secs(it.tv_sec.unsigned_abs())
            + Duration::from_micros(it.tv_usec.unsigned_abs())
    };
    used.into_iter().map(time).sum()
}
