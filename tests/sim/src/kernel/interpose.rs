//! The libc functions that this program replaces. Threads of the simulation use the simulated
//! kernel, and all others use libc.
#![allow(unsafe_code, reason = "these functions have the types that libc's functions have")]
#![allow(clippy::missing_safety_doc, reason = "the conditions are those of libc's functions")]
#![allow(unreachable_pub, reason = "the linker finds these functions by their names")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::unnecessary_cast,
    reason = "what libc takes has another size on each machine; descriptors are small numbers"
)]
#![allow(clippy::wildcard_enum_match_arm, reason = "what is not a socket is refused alike")]

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{
    epoll_event, iovec, msghdr, pollfd, sockaddr, sockaddr_in, sockaddr_in6, socklen_t, timespec,
};

use super::baton::{Owner, is_simulated, me, with};
use super::net_model::{Errno, Id, Object};
use super::state::{Kernel, MICROSECOND, MILLISECOND, SECOND};
use super::{baton, raw};

/// Makes a system call of the real kernel, and returns what libc's function would.
macro_rules! real {
    ($number:ident $(, $argument:expr)*) => {{
        let given: &[usize] = &[$($argument as usize),*];
        let mut arguments = [0; 6];
        arguments[..given.len()].copy_from_slice(given);
        // SAFETY: the arguments are valid for libc's function, as its caller has promised.
        raw::as_libc(unsafe { raw::call(libc::$number, arguments) }) as _
    }};
}

/// Sets the error, and returns -1.
fn failed<T: From<i8>>(error: Errno) -> T {
    raw::set_errno(error);
    T::from(-1)
}

/// A call to the kernel takes a moment, in which another thread may run.
fn enter() {
    let is_interrupted = with(|kernel| {
        kernel.calls += 1;
        kernel.now += kernel.rng.u64(200..3000);
        kernel.due();
        !kernel.ready.is_empty() && kernel.rng.u32(..16) == 0
    });
    if is_interrupted {
        baton::yield_now();
    }
}

fn owner(kernel: &Kernel) -> Owner {
    kernel.tasks[me()].owner
}

/// Returns the simulated open file of a descriptor, if this thread is simulated.
fn simulated(descriptor: c_int) -> Option<Id> {
    if !is_simulated() {
        return None;
    }
    with(|kernel| kernel.net.id(descriptor))
}

/// Returns `true` if the descriptor is standard output or error of a simulated process.
fn is_output(descriptor: c_int) -> bool {
    is_simulated() && matches!(descriptor, 1 | 2) && with(|kernel| owner(kernel)) > 0
}

unsafe fn nanoseconds(time: *const timespec) -> Option<u64> {
    if time.is_null() {
        return None;
    }
    // SAFETY: the caller promises null or the address of a time.
    let time = unsafe { *time };
    Some(time.tv_sec.unsigned_abs().saturating_mul(SECOND) + time.tv_nsec.unsigned_abs())
}

// ---- Time and randomness ----

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut timespec) -> c_int {
    if !is_simulated() {
        return real!(SYS_clock_gettime, clock, time);
    }
    let now = with(|kernel| {
        kernel.now += 40;
        kernel.clock(clock)
    });
    let (seconds, rest) = (now / SECOND, now % SECOND);
    // SAFETY: the caller passes the address of a time.
    unsafe { *time = timespec { tv_sec: seconds.cast_signed(), tv_nsec: rest.cast_signed() } };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_nanosleep(
    clock: libc::clockid_t,
    flags: c_int,
    time: *const timespec,
    rest: *mut timespec,
) -> c_int {
    if !is_simulated() {
        // SAFETY: the arguments are the caller's. This function returns the error itself.
        let arguments = [clock as usize, flags as usize, time as usize, rest as usize, 0, 0];
        let result = unsafe { raw::call(libc::SYS_clock_nanosleep, arguments) };
        return c_int::try_from(-result).unwrap_or(libc::EINVAL);
    }
    // SAFETY: the caller passes the address of a time.
    let time = unsafe { nanoseconds(time) }.unwrap_or(0);
    let end = with(|kernel| match flags & libc::TIMER_ABSTIME {
        0 => kernel.now + time,
        _ => kernel.when(clock, time),
    });
    sleep_until(end);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nanosleep(time: *const timespec, rest: *mut timespec) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { clock_nanosleep(libc::CLOCK_MONOTONIC, 0, time, rest) }
}

fn sleep_until(end: u64) {
    while with(|kernel| kernel.now) < end {
        baton::wait(Some(end));
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn sched_yield() -> c_int {
    if !is_simulated() {
        return real!(SYS_sched_yield);
    }
    with(|kernel| kernel.now += MICROSECOND);
    baton::yield_now();
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sched_getaffinity(
    process: libc::pid_t,
    size: usize,
    set: *mut u8,
) -> c_int {
    if !is_simulated() {
        let result: c_int = real!(SYS_sched_getaffinity, process, size, set);
        return result.min(0);
    }
    // SAFETY: the caller passes the address of `size` bytes.
    unsafe {
        std::ptr::write_bytes(set, 0, size);
        *set = 0b1111;
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, size: usize, flags: u32) -> isize {
    if !is_simulated() {
        return real!(SYS_getrandom, buffer, size, flags);
    }
    // SAFETY: the caller passes the address of `size` bytes.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), size) };
    with(|kernel| kernel.rng.fill(buffer));
    size.cast_signed()
}

#[unsafe(no_mangle)]
pub extern "C" fn getpid() -> libc::pid_t {
    if !is_simulated() {
        return real!(SYS_getpid);
    }
    with(|kernel| 1000 + owner(kernel).cast_signed())
}

// ---- Threads ----

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    function: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { baton::create_thread(thread, attributes, function, argument, None) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_join(thread: libc::pthread_t, result: *mut *mut c_void) -> c_int {
    type Join = unsafe extern "C" fn(libc::pthread_t, *mut *mut c_void) -> c_int;
    if is_simulated() {
        baton::join(thread);
    }
    let join = baton::outside(|| raw::libc_function(c"pthread_join"));
    // SAFETY: this is the type of libc's function, and the arguments are the caller's.
    unsafe {
        let join: Join = std::mem::transmute(join);
        baton::outside(|| join(thread, result))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    if is_simulated() {
        match number {
            // SAFETY: the arguments are the caller's.
            libc::SYS_futex => return unsafe { futex(a, b, c, d) },
            libc::SYS_getrandom => {
                // SAFETY: the arguments are the caller's.
                return unsafe { getrandom(a as *mut c_void, b, 0) as c_long };
            }
            // The machine has no Landlock and no seccomp: both would apply to the simulator.
            444..=446 | libc::SYS_seccomp => return failed(libc::ENOSYS),
            _ => {}
        }
    }
    // SAFETY: the arguments are the caller's.
    raw::as_libc(unsafe { raw::call(number, [a, b, c, d, e, f]) }) as c_long
}

/// futex(2): waits at an address, or wakes the threads that wait there.
unsafe fn futex(at: usize, operation: usize, value: usize, time: usize) -> c_long {
    let operation = c_int::try_from(operation & 0xffff).unwrap_or(0);
    let time = time as *const timespec;
    match operation & 0x7f {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            // SAFETY: at this address are four bytes, which threads change atomically.
            let word = unsafe { AtomicU32::from_ptr(at as *mut u32) };
            if u32::try_from(value & 0xffff_ffff) != Ok(word.load(Ordering::SeqCst)) {
                return failed(libc::EAGAIN);
            }
            // SAFETY: the caller passes null or the address of a time.
            let time = unsafe { nanoseconds(time) };
            let deadline = with(|kernel| {
                kernel.futexes.entry(at).or_default().push_back(me());
                let is_absolute = operation & 0x7f == libc::FUTEX_WAIT_BITSET;
                let clock = match operation & libc::FUTEX_CLOCK_REALTIME {
                    0 => libc::CLOCK_MONOTONIC,
                    _ => libc::CLOCK_REALTIME,
                };
                time.map(|time| match is_absolute {
                    true => kernel.when(clock, time),
                    false => kernel.now.saturating_add(time),
                })
            });
            baton::wait(deadline);
            let was_woken = with(|kernel| {
                let Some(waiting) = kernel.futexes.get_mut(&at) else { return true };
                let before = waiting.len();
                waiting.retain(|task| *task != me());
                before == waiting.len()
            });
            if was_woken { 0 } else { failed(libc::ETIMEDOUT) }
        }
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => with(|kernel| {
            let mut woken = 0;
            while woken < value.min(1 << 20) {
                let next = kernel.futexes.get_mut(&at).and_then(|it| it.pop_front());
                let Some(task) = next else {
                    kernel.futexes.remove(&at);
                    break;
                };
                if kernel.tasks[task].doing == baton::Doing::Waiting {
                    kernel.wake(task);
                    woken += 1;
                }
            }
            woken as c_long
        }),
        _ => failed(libc::ENOSYS),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(
    number: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    type Action =
        unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
    let of = if is_simulated() { with(|kernel| owner(kernel)) } else { 0 };
    if of == 0 {
        let function = baton::outside(|| raw::libc_function(c"sigaction"));
        // SAFETY: this is the type of libc's function, and the arguments are the caller's.
        return unsafe {
            let action: Action = std::mem::transmute(function);
            action(number, new, old)
        };
    }
    // SAFETY: the caller passes null or the addresses of such structs. A handler that is neither
    // SIG_DFL (0) nor SIG_IGN (1) is a function, and Rust's libraries set SA_SIGINFO.
    unsafe {
        if !old.is_null() {
            *old = std::mem::zeroed();
        }
        if !new.is_null() && (*new).sa_sigaction > 1 {
            let handler: super::process::Handler = std::mem::transmute((*new).sa_sigaction);
            with(|kernel| kernel.process(of).map(|it| it.handlers.insert(number, handler)));
        }
    }
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn exit(status: c_int) -> ! {
    if is_simulated() {
        let of = with(|kernel| owner(kernel));
        if of > 0 {
            super::process::leave(of, status);
        }
    }
    raw::exit(status)
}

// ---- Descriptors ----

unsafe fn slices<'a>(vector: *const iovec, count: usize) -> &'a [iovec] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller passes the address of `count` such structs.
    unsafe { std::slice::from_raw_parts(vector, count) }
}

unsafe fn gather(vector: *const iovec, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    // SAFETY: each struct has the address of as many bytes as it says.
    unsafe {
        for part in slices(vector, count) {
            if part.iov_len > 0 {
                let part = std::slice::from_raw_parts(part.iov_base.cast::<u8>(), part.iov_len);
                bytes.extend_from_slice(part);
            }
        }
    }
    bytes
}

unsafe fn scatter(vector: *const iovec, count: usize, mut bytes: &[u8]) {
    // SAFETY: each struct has the address of as many bytes as it says.
    unsafe {
        for part in slices(vector, count) {
            let (now, later) = bytes.split_at(bytes.len().min(part.iov_len));
            std::ptr::copy_nonoverlapping(now.as_ptr(), part.iov_base.cast(), now.len());
            bytes = later;
        }
    }
}

/// Waits until an open file changes. Returns `false` if the deadline has passed.
fn wait_at(id: Id, deadline: Option<u64>) -> bool {
    if with(|kernel| deadline.is_some_and(|deadline| kernel.now >= deadline)) {
        return false;
    }
    with(|kernel| kernel.net.wait_for(id, me()));
    baton::wait(deadline);
    true
}

fn receive(id: Id, buffer: &mut [u8], flags: c_int) -> Result<usize, Errno> {
    enter();
    let (is_blocking, deadline) = with(|kernel| {
        let limit = kernel.net.options(id).receive_limit;
        (kernel.net.is_blocking(id), limit.map(|limit| kernel.now + limit))
    });
    let is_blocking = is_blocking && flags & libc::MSG_DONTWAIT == 0;
    loop {
        let result = with(|kernel| match kernel.net.object(id) {
            Object::Counter(_) => Ok(kernel.take_counter(id).map(|count| {
                let bytes = count.to_ne_bytes();
                let length = buffer.len().min(bytes.len());
                buffer[..length].copy_from_slice(&bytes[..length]);
                length
            })),
            Object::Stream(_) => kernel.receive(id, buffer, flags & libc::MSG_PEEK != 0),
            _ => Err(libc::ENOTCONN),
        })?;
        match result {
            Some(count) => return Ok(count),
            None if !is_blocking => return Err(libc::EAGAIN),
            None if wait_at(id, deadline) => {}
            None => return Err(libc::EAGAIN),
        }
    }
}

fn send(id: Id, bytes: &[u8], flags: c_int) -> Result<usize, Errno> {
    enter();
    if let Some((of, which)) = with(|kernel| kernel.net.output(id)) {
        return print(of, which, bytes);
    }
    let (is_blocking, deadline) = with(|kernel| {
        let limit = kernel.net.options(id).send_limit;
        (kernel.net.is_blocking(id), limit.map(|limit| kernel.now + limit))
    });
    let is_blocking = is_blocking && flags & libc::MSG_DONTWAIT == 0;
    let mut sent = 0;
    loop {
        let count = with(|kernel| match kernel.net.object(id) {
            Object::Counter(_) => {
                let mut number = [0; 8];
                number.copy_from_slice(bytes.get(..8).ok_or(libc::EINVAL)?);
                kernel.add_to_counter(id, u64::from_ne_bytes(number));
                Ok(8)
            }
            Object::Stream(_) => kernel.send(id, &bytes[sent..]),
            _ => Err(libc::ENOTCONN),
        });
        match count {
            Err(_) if sent > 0 => return Ok(sent),
            Err(error) => return Err(error),
            Ok(count) => sent += count,
        }
        // A non-blocking socket takes the bytes that fit. A blocking one takes all.
        if sent == bytes.len() || !is_blocking && sent > 0 {
            return Ok(sent);
        }
        if !is_blocking || !wait_at(id, deadline) {
            return if sent > 0 { Ok(sent) } else { Err(libc::EAGAIN) };
        }
    }
}

/// Writes to standard output or error of a simulated process. If nobody reads its standard error,
/// the thread waits there until the process ends.
fn print(of: Owner, which: c_int, bytes: &[u8]) -> Result<usize, Errno> {
    while which == 2 && with(|kernel| kernel.process(of).is_some_and(|it| it.is_unread)) {
        baton::wait(None);
    }
    with(|kernel| {
        let Some(process) = kernel.process(of) else { return Ok(bytes.len()) };
        match which {
            1 if process.is_closed => return Err(libc::EPIPE),
            1 => process.stdout.extend_from_slice(bytes),
            _ => process.stderr.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    })
}

fn counted(result: Result<usize, Errno>) -> isize {
    result.map_or_else(failed, usize::cast_signed)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(descriptor: c_int, buffer: *mut c_void, size: usize) -> isize {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_read, descriptor, buffer, size);
    };
    // SAFETY: the caller passes the address of `size` bytes.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), size) };
    counted(receive(id, buffer, 0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(
    descriptor: c_int,
    buffer: *mut c_void,
    size: usize,
    flags: c_int,
) -> isize {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_recvfrom, descriptor, buffer, size, flags);
    };
    // SAFETY: the caller passes the address of `size` bytes.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), size) };
    counted(receive(id, buffer, flags))
}

unsafe fn receive_parts(id: Id, vector: *const iovec, count: usize, flags: c_int) -> isize {
    // SAFETY: the arguments are the caller's.
    let size = unsafe { slices(vector, count) }.iter().map(|part| part.iov_len).sum();
    let mut buffer = vec![0; size];
    let result = receive(id, &mut buffer, flags);
    if let Ok(read) = result {
        // SAFETY: the arguments are the caller's, and at most `size` bytes were read.
        unsafe { scatter(vector, count, &buffer[..read]) };
    }
    counted(result)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn readv(descriptor: c_int, vector: *const iovec, count: c_int) -> isize {
    match simulated(descriptor) {
        // SAFETY: the arguments are the caller's.
        Some(id) => unsafe { receive_parts(id, vector, count.unsigned_abs() as usize, 0) },
        None => real!(SYS_readv, descriptor, vector, count),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(descriptor: c_int, message: *mut msghdr, flags: c_int) -> isize {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_recvmsg, descriptor, message, flags);
    };
    // SAFETY: the caller passes the address of a message with such parts.
    unsafe {
        (*message).msg_controllen = 0;
        (*message).msg_flags = 0;
        receive_parts(id, (*message).msg_iov, (*message).msg_iovlen as usize, flags)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(descriptor: c_int, buffer: *const c_void, size: usize) -> isize {
    if !is_simulated() {
        return real!(SYS_write, descriptor, buffer, size);
    }
    // SAFETY: the caller passes the address of `size` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), size) };
    if let Some(id) = simulated(descriptor) {
        return counted(send(id, bytes, 0));
    }
    if is_output(descriptor) {
        return counted(print(with(|kernel| owner(kernel)), descriptor, bytes));
    }
    write_file(descriptor, None, bytes)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(descriptor: c_int, vector: *const iovec, count: c_int) -> isize {
    if !is_simulated() {
        return real!(SYS_writev, descriptor, vector, count);
    }
    // SAFETY: the arguments are the caller's.
    let bytes = unsafe { gather(vector, count.unsigned_abs() as usize) };
    // SAFETY: these are the bytes of a vector.
    unsafe { write(descriptor, bytes.as_ptr().cast(), bytes.len()) }
}

#[unsafe(export_name = "send")]
pub unsafe extern "C" fn send_to_socket(
    descriptor: c_int,
    buffer: *const c_void,
    size: usize,
    flags: c_int,
) -> isize {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_sendto, descriptor, buffer, size, flags);
    };
    // SAFETY: the caller passes the address of `size` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), size) };
    counted(send(id, bytes, flags))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(descriptor: c_int, message: *const msghdr, flags: c_int) -> isize {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_sendmsg, descriptor, message, flags);
    };
    // SAFETY: the caller passes the address of a message with such parts.
    let bytes = unsafe { gather((*message).msg_iov, (*message).msg_iovlen as usize) };
    counted(send(id, &bytes, flags))
}

#[unsafe(no_mangle)]
pub extern "C" fn close(descriptor: c_int) -> c_int {
    if is_simulated() {
        let is_closed = with(|kernel| {
            let is_simulated = kernel.close(descriptor);
            if !is_simulated {
                kernel.files.close(descriptor);
            }
            is_simulated
        });
        if is_closed {
            return 0;
        }
    }
    real!(SYS_close, descriptor)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl(descriptor: c_int, command: c_int, argument: usize) -> c_int {
    if !is_simulated() {
        return real!(SYS_fcntl, descriptor, command, argument);
    }
    let is_copy = matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC);
    if let Some(id) = simulated(descriptor) {
        return with(|kernel| match command {
            _ if is_copy => kernel.duplicate(id),
            libc::F_GETFL if kernel.net.is_blocking(id) => libc::O_RDWR,
            libc::F_GETFL => libc::O_RDWR | libc::O_NONBLOCK,
            libc::F_SETFL => {
                let is_blocking = argument & libc::O_NONBLOCK.unsigned_abs() as usize == 0;
                kernel.net.set_blocking(id, is_blocking);
                0
            }
            _ => 0,
        });
    }
    if is_copy && is_output(descriptor) {
        return with(|kernel| {
            let of = owner(kernel);
            kernel.open(of, Object::Output(of, descriptor))
        });
    }
    let result: c_int = real!(SYS_fcntl, descriptor, command, argument);
    if is_copy && result >= 0 {
        with(|kernel| kernel.files.duplicate(descriptor, result));
    }
    result
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(descriptor: c_int, request: usize, argument: *mut c_int) -> c_int {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_ioctl, descriptor, request, argument);
    };
    with(|kernel| {
        match libc::Ioctl::try_from(request) {
            // SAFETY: the caller passes the address of a number.
            Ok(libc::FIONBIO) => kernel.net.set_blocking(id, unsafe { *argument } == 0),
            Ok(libc::TIOCOUTQ) => {
                let bytes = kernel.net.unacknowledged(id);
                // SAFETY: the caller passes the address of a number.
                unsafe { *argument = c_int::try_from(bytes).unwrap_or(c_int::MAX) };
            }
            _ => return failed(libc::ENOTTY),
        }
        0
    })
}

// ---- Sockets ----

unsafe fn read_address(address: *const sockaddr) -> Option<SocketAddr> {
    // SAFETY: the caller passes the address of a socket address, whose family tells its type.
    unsafe {
        match c_int::from((*address).sa_family) {
            libc::AF_INET => {
                let it = *address.cast::<sockaddr_in>();
                let ip = Ipv4Addr::from(u32::from_be(it.sin_addr.s_addr));
                Some((ip, u16::from_be(it.sin_port)).into())
            }
            libc::AF_INET6 => {
                let it = *address.cast::<sockaddr_in6>();
                Some((Ipv6Addr::from(it.sin6_addr.s6_addr), u16::from_be(it.sin6_port)).into())
            }
            _ => None,
        }
    }
}

unsafe fn write_address(from: SocketAddr, address: *mut sockaddr, size: *mut socklen_t) {
    if address.is_null() {
        return;
    }
    // SAFETY: the caller passes room for an address of any family, as Rust's libraries do. All
    // fields of these structs may be zero.
    unsafe {
        let length = match from {
            SocketAddr::V4(v4) => {
                let mut it: sockaddr_in = std::mem::zeroed();
                it.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or(0);
                it.sin_port = v4.port().to_be();
                it.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
                *address.cast::<sockaddr_in>() = it;
                size_of::<sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let mut it: sockaddr_in6 = std::mem::zeroed();
                it.sin6_family = libc::sa_family_t::try_from(libc::AF_INET6).unwrap_or(0);
                it.sin6_port = v6.port().to_be();
                it.sin6_addr.s6_addr = v6.ip().octets();
                *address.cast::<sockaddr_in6>() = it;
                size_of::<sockaddr_in6>()
            }
        };
        *size = socklen_t::try_from(length).unwrap_or(0);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_int {
    if !is_simulated() {
        return real!(SYS_socket, family, kind, protocol);
    }
    if !matches!(family, libc::AF_INET | libc::AF_INET6) || kind & 0xf != libc::SOCK_STREAM {
        return failed(libc::EAFNOSUPPORT);
    }
    with(|kernel| {
        let object = Object::Fresh { bound: None, is_v6: family == libc::AF_INET6 };
        let descriptor = kernel.open(owner(kernel), object);
        if let Some(id) = kernel.net.id(descriptor) {
            kernel.net.set_blocking(id, kind & libc::SOCK_NONBLOCK == 0);
        }
        descriptor
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn socketpair(
    family: c_int,
    kind: c_int,
    protocol: c_int,
    pair: *mut c_int,
) -> c_int {
    if !is_simulated() {
        return real!(SYS_socketpair, family, kind, protocol, pair);
    }
    let (one, other) = with(|kernel| {
        let (one, other) = kernel.pair(owner(kernel));
        for descriptor in [one, other] {
            if let Some(id) = kernel.net.id(descriptor) {
                kernel.net.set_blocking(id, kind & libc::SOCK_NONBLOCK == 0);
            }
        }
        (one, other)
    });
    // SAFETY: the caller passes the address of two descriptors.
    unsafe {
        *pair = one;
        *pair.add(1) = other;
    }
    0
}

fn done(result: Result<(), Errno>) -> c_int {
    result.map_or_else(failed, |()| 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(descriptor: c_int, to: *const sockaddr, size: socklen_t) -> c_int {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_bind, descriptor, to, size);
    };
    // SAFETY: the arguments are the caller's.
    let Some(address) = (unsafe { read_address(to) }) else { return failed(libc::EAFNOSUPPORT) };
    done(with(|kernel| kernel.bind(id, address)))
}

#[unsafe(no_mangle)]
pub extern "C" fn listen(descriptor: c_int, backlog: c_int) -> c_int {
    match simulated(descriptor) {
        Some(id) => done(with(|kernel| kernel.listen(id))),
        None => real!(SYS_listen, descriptor, backlog),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(
    descriptor: c_int,
    from: *mut sockaddr,
    size: *mut socklen_t,
    flags: c_int,
) -> c_int {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_accept4, descriptor, from, size, flags);
    };
    enter();
    loop {
        match with(|kernel| kernel.accept(id, owner(kernel))) {
            Err(error) => return failed(error),
            Ok(Some((descriptor, address))) => {
                with(|kernel| {
                    if let Some(id) = kernel.net.id(descriptor) {
                        kernel.net.set_blocking(id, flags & libc::SOCK_NONBLOCK == 0);
                    }
                });
                // SAFETY: the arguments are the caller's.
                unsafe { write_address(address, from, size) };
                return descriptor;
            }
            Ok(None) if with(|kernel| kernel.net.is_blocking(id)) => {
                wait_at(id, None);
            }
            Ok(None) => return failed(libc::EAGAIN),
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept(
    descriptor: c_int,
    from: *mut sockaddr,
    size: *mut socklen_t,
) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { accept4(descriptor, from, size, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(descriptor: c_int, to: *const sockaddr, size: socklen_t) -> c_int {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_connect, descriptor, to, size);
    };
    enter();
    // SAFETY: the arguments are the caller's.
    let Some(address) = (unsafe { read_address(to) }) else { return failed(libc::EAFNOSUPPORT) };
    if let Err(error) = with(|kernel| kernel.connect(id, address)) {
        return failed(error);
    }
    if !with(|kernel| kernel.net.is_blocking(id)) {
        return failed(libc::EINPROGRESS);
    }
    loop {
        match with(|kernel| kernel.is_connected(id)) {
            Some(result) => return done(result),
            None => {
                wait_at(id, None);
            }
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockname(
    descriptor: c_int,
    to: *mut sockaddr,
    size: *mut socklen_t,
) -> c_int {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_getsockname, descriptor, to, size);
    };
    match with(|kernel| kernel.net.local(id)) {
        // SAFETY: the arguments are the caller's.
        Some(address) => unsafe { write_address(address, to, size) },
        None => return failed(libc::ENOTSOCK),
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getpeername(
    descriptor: c_int,
    to: *mut sockaddr,
    size: *mut socklen_t,
) -> c_int {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_getpeername, descriptor, to, size);
    };
    match with(|kernel| kernel.net.remote(id)) {
        // SAFETY: the arguments are the caller's.
        Some(address) => unsafe { write_address(address, to, size) },
        None => return failed(libc::ENOTCONN),
    }
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn shutdown(descriptor: c_int, how: c_int) -> c_int {
    match simulated(descriptor) {
        Some(id) => done(with(|kernel| kernel.shut(id, how))),
        None => real!(SYS_shutdown, descriptor, how),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    descriptor: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    size: socklen_t,
) -> c_int {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_setsockopt, descriptor, level, name, value, size);
    };
    // SAFETY: the caller passes the address of the option's value.
    let (number, time) = unsafe {
        let number = *value.cast::<c_int>();
        let is_time = matches!(name, libc::SO_RCVTIMEO | libc::SO_SNDTIMEO);
        let is_time = level == libc::SOL_SOCKET && is_time;
        (number, is_time.then(|| *value.cast::<libc::timeval>()))
    };
    let time = time.map(|it| it.tv_sec.unsigned_abs() * SECOND + it.tv_usec.unsigned_abs() * 1000);
    let time = time.filter(|time| *time > 0);
    let seconds = Some(u64::from(number.unsigned_abs()) * SECOND);
    with(|kernel| {
        let options = kernel.net.options(id);
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO) => options.receive_limit = time,
            (libc::SOL_SOCKET, libc::SO_SNDTIMEO) => options.send_limit = time,
            // SAFETY: the caller passes the address of such a struct for this option.
            (libc::SOL_SOCKET, libc::SO_LINGER) => unsafe {
                let linger = *value.cast::<libc::linger>();
                options.linger_zero = linger.l_onoff != 0 && linger.l_linger == 0;
            },
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => options.keepalive = number != 0,
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => {
                options.receive_buffer = Some(number.unsigned_abs() as usize);
            }
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => {
                options.user_timeout = Some(u64::from(number.unsigned_abs()) * MILLISECOND);
            }
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => options.keepalive_idle = seconds,
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => options.keepalive_interval = seconds,
            _ => {}
        }
    });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    descriptor: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    size: *mut socklen_t,
) -> c_int {
    let Some(id) = simulated(descriptor) else {
        return real!(SYS_getsockopt, descriptor, level, name, value, size);
    };
    let number = with(|kernel| match (level, name) {
        (libc::SOL_SOCKET, libc::SO_ERROR) => kernel.net.take_error(id),
        (libc::SOL_SOCKET, libc::SO_TYPE) => libc::SOCK_STREAM,
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => libc::AF_INET,
        (libc::SOL_SOCKET, libc::SO_RCVBUF | libc::SO_SNDBUF) => 1 << 17,
        _ => 0,
    });
    // SAFETY: the caller passes the address of `size` bytes for the value.
    unsafe {
        std::ptr::write_bytes(value.cast::<u8>(), 0, *size as usize);
        if *size as usize >= size_of::<c_int>() {
            *value.cast::<c_int>() = number;
        }
    }
    0
}

// ---- epoll, poll, eventfd ----

#[unsafe(no_mangle)]
pub extern "C" fn epoll_create1(flags: c_int) -> c_int {
    if !is_simulated() {
        return real!(SYS_epoll_create1, flags);
    }
    with(|kernel| kernel.open(owner(kernel), Object::Epoll(Vec::new())))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_ctl(
    epoll: c_int,
    operation: c_int,
    descriptor: c_int,
    event: *mut epoll_event,
) -> c_int {
    let Some(id) = simulated(epoll) else {
        return real!(SYS_epoll_ctl, epoll, operation, descriptor, event);
    };
    // SAFETY: the caller passes null or the address of an event.
    let wanted = unsafe { (!event.is_null()).then(|| ((*event).events, (*event).u64)) };
    done(with(|kernel| kernel.control(id, operation, descriptor, wanted)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout: c_int,
) -> c_int {
    let Some(id) = simulated(epoll) else {
        return real!(SYS_epoll_pwait, epoll, events, most, timeout, 0, 8);
    };
    enter();
    let timeout = u64::try_from(timeout).ok().map(|milliseconds| milliseconds * MILLISECOND);
    let deadline = with(|kernel| timeout.map(|timeout| kernel.now + timeout));
    loop {
        let reported = with(|kernel| kernel.report(id, most.unsigned_abs() as usize));
        if !reported.is_empty() || !wait_at(id, deadline) {
            for (at, (ready, data)) in reported.iter().enumerate() {
                // SAFETY: the caller passes room for `most` events.
                unsafe { *events.add(at) = epoll_event { events: *ready, u64: *data } };
            }
            return c_int::try_from(reported.len()).unwrap_or(0);
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn eventfd(count: u32, flags: c_int) -> c_int {
    if !is_simulated() {
        return real!(SYS_eventfd2, count, flags);
    }
    with(|kernel| {
        let descriptor = kernel.open(owner(kernel), Object::Counter(u64::from(count)));
        if let Some(id) = kernel.net.id(descriptor) {
            kernel.net.set_blocking(id, flags & libc::EFD_NONBLOCK == 0);
        }
        descriptor
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn poll(polled: *mut pollfd, count: libc::nfds_t, timeout: c_int) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the caller passes the address of `count` such structs.
    let all = unsafe { std::slice::from_raw_parts_mut(polled, count) };
    if !all.iter().any(|it| simulated(it.fd).is_some()) {
        return real!(SYS_poll, polled, count, timeout);
    }
    enter();
    let timeout = u64::try_from(timeout).ok().map(|milliseconds| milliseconds * MILLISECOND);
    let deadline = with(|kernel| timeout.map(|timeout| kernel.now + timeout));
    loop {
        let mut ready = 0;
        with(|kernel| {
            for it in all.iter_mut() {
                let Some(id) = kernel.net.id(it.fd) else { continue };
                let wanted = it.events | libc::POLLERR | libc::POLLHUP;
                // The bits of poll(2) are the low bits of epoll's.
                let bits = kernel.net.readiness(id) & 0x7fff;
                it.revents = i16::try_from(bits).unwrap_or(0) & wanted;
                ready += c_int::from(it.revents != 0);
                kernel.net.wait_for(id, me());
            }
        });
        let is_over = with(|kernel| deadline.is_some_and(|deadline| kernel.now >= deadline));
        if ready > 0 || is_over {
            return ready;
        }
        baton::wait(deadline);
    }
}

// ---- Names ----

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getaddrinfo(
    node: *const c_char,
    service: *const c_char,
    hints: *const libc::addrinfo,
    result: *mut *mut libc::addrinfo,
) -> c_int {
    type Look = unsafe extern "C" fn(
        *const c_char,
        *const c_char,
        *const libc::addrinfo,
        *mut *mut libc::addrinfo,
    ) -> c_int;
    if !is_simulated() {
        let look = raw::libc_function(c"getaddrinfo");
        // SAFETY: this is the type of libc's function, and the arguments are the caller's.
        return unsafe {
            let look: Look = std::mem::transmute(look);
            look(node, service, hints, result)
        };
    }
    // SAFETY: the caller passes a string that ends with a zero byte.
    let name = unsafe { CStr::from_ptr(node) }.to_string_lossy().into_owned();
    let end = with(|kernel| kernel.now + kernel.short_time(20 * MILLISECOND));
    sleep_until(end);
    let found: Option<IpAddr> = match name.as_str() {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        other => other.parse().ok(),
    };
    let mut next: *mut libc::addrinfo = std::ptr::null_mut();
    if let Some(address) = found {
        let address = SocketAddr::from((address, 0));
        let room = Box::into_raw(Box::new([0_u64; 8])).cast::<sockaddr>();
        let mut size = 0;
        // SAFETY: the room is large enough for both kinds of address. All fields of the struct may
        // be zero.
        unsafe {
            write_address(address, room, &raw mut size);
            let mut it: libc::addrinfo = std::mem::zeroed();
            it.ai_family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            it.ai_socktype = libc::SOCK_STREAM;
            it.ai_addrlen = size;
            it.ai_addr = room;
            next = Box::into_raw(Box::new(it));
        }
    }
    if next.is_null() {
        return libc::EAI_NONAME;
    }
    // SAFETY: the caller passes the address of a pointer.
    unsafe { *result = next };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn freeaddrinfo(list: *mut libc::addrinfo) {
    type Free = unsafe extern "C" fn(*mut libc::addrinfo);
    if !is_simulated() {
        let free = raw::libc_function(c"freeaddrinfo");
        // SAFETY: this is the type of libc's function, and the argument is the caller's.
        return unsafe {
            let free: Free = std::mem::transmute(free);
            free(list);
        };
    }
    let mut next = list;
    while !next.is_null() {
        // SAFETY: `getaddrinfo` above made these boxes, and the caller no longer uses them.
        unsafe {
            let it = Box::from_raw(next);
            drop(Box::from_raw(it.ai_addr.cast::<[u64; 8]>()));
            next = it.ai_next;
        }
    }
}

// ---- Files ----

/// Returns `true` if file changes by this thread are recorded: it belongs to the relay.
fn is_noted() -> bool {
    is_simulated() && with(|kernel| owner(kernel)) > 0
}

unsafe fn path_of(directory: c_int, path: *const c_char) -> PathBuf {
    // SAFETY: the caller passes a string that ends with a zero byte.
    let path = Path::new(std::ffi::OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    let path = match directory {
        libc::AT_FDCWD => path.to_owned(),
        _ => {
            let base = format!("/proc/self/fd/{directory}");
            baton::outside(|| std::fs::read_link(base)).unwrap_or_default().join(path)
        }
    };
    baton::outside(|| std::path::absolute(&path)).unwrap_or(path)
}

/// A call that changes the disk takes a moment.
fn use_disk(time: u64) {
    let end = with(|kernel| {
        kernel.calls += 1;
        kernel.now + kernel.short_time(time)
    });
    sleep_until(end);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_int,
) -> c_int {
    // A descriptor that only names a place (O_PATH) can be neither read nor written.
    if !is_noted() || flags & libc::O_PATH != 0 {
        return real!(SYS_openat, directory, path, flags, mode);
    }
    // SAFETY: the arguments are the caller's.
    let at = unsafe { path_of(directory, path) };
    // The real machine's facts would differ from run to run.
    if at.starts_with("/proc") || at.starts_with("/sys") {
        return failed(libc::ENOENT);
    }
    enter();
    let is_there = baton::outside(|| at.symlink_metadata().is_ok());
    if flags & libc::O_CREAT != 0 && !is_there && with(|kernel| kernel.files.faults.no_space) {
        return failed(libc::ENOSPC);
    }
    let is_cut = flags & libc::O_TRUNC != 0 && is_there;
    let descriptor: c_int = real!(SYS_openat, directory, path, flags & !libc::O_TRUNC, mode);
    if descriptor >= 0 {
        with(|kernel| {
            let of = owner(kernel);
            let is_made = flags & libc::O_CREAT != 0 && !is_there;
            kernel.files.open(of, descriptor, at, is_made);
        });
        if is_cut {
            ftruncate64(descriptor, 0);
        }
    }
    descriptor
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_int,
) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { openat64(directory, path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { openat64(libc::AT_FDCWD, path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { openat64(libc::AT_FDCWD, path, flags, mode) }
}

/// Writes to a real file, at an offset or at the descriptor's position.
fn write_file(descriptor: c_int, offset: Option<u64>, bytes: &[u8]) -> isize {
    let (at, size) = (bytes.as_ptr(), bytes.len());
    let is_noted = with(|kernel| owner(kernel) > 0 && kernel.files.is_known(descriptor));
    let mut count = size;
    if is_noted {
        use_disk(100 * MICROSECOND);
        let end = || -> isize { real!(SYS_lseek, descriptor, 0, libc::SEEK_CUR) };
        let flags: c_int = real!(SYS_fcntl, descriptor, libc::F_GETFL);
        let position = match offset {
            Some(offset) => offset,
            None if flags & libc::O_APPEND != 0 => {
                real!(SYS_lseek, descriptor, 0, libc::SEEK_END)
            }
            None => end().unsigned_abs() as u64,
        };
        match with(|kernel| kernel.files.before_write(descriptor, position, bytes)) {
            Ok(taken) => count = taken,
            Err(error) => return failed(error),
        }
    }
    match offset {
        Some(offset) => real!(SYS_pwrite64, descriptor, at, count, offset),
        None => real!(SYS_write, descriptor, at, count),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pread64(
    descriptor: c_int,
    buffer: *mut c_void,
    size: usize,
    offset: i64,
) -> isize {
    if is_noted() {
        let (time, result) = with(|kernel| kernel.files.before_read(descriptor));
        if !time.is_zero() {
            let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            sleep_until(with(|kernel| kernel.now + time));
        }
        if let Err(error) = result {
            return failed(error);
        }
    }
    real!(SYS_pread64, descriptor, buffer, size, offset)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    descriptor: c_int,
    buffer: *const c_void,
    size: usize,
    offset: i64,
) -> isize {
    if !is_noted() {
        return real!(SYS_pwrite64, descriptor, buffer, size, offset);
    }
    // SAFETY: the caller passes the address of `size` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), size) };
    write_file(descriptor, Some(offset.unsigned_abs()), bytes)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev64(
    descriptor: c_int,
    vector: *const iovec,
    count: c_int,
    offset: i64,
) -> isize {
    if !is_noted() {
        return real!(SYS_pwritev, descriptor, vector, count, offset);
    }
    // SAFETY: the arguments are the caller's.
    let bytes = unsafe { gather(vector, count.unsigned_abs() as usize) };
    write_file(descriptor, Some(offset.unsigned_abs()), &bytes)
}

fn set_length(descriptor: c_int, length: u64, is_reserved: bool) -> Result<(), Errno> {
    if !is_noted() {
        return Ok(());
    }
    use_disk(200 * MICROSECOND);
    with(|kernel| kernel.files.before_length(descriptor, length, is_reserved))
}

#[unsafe(no_mangle)]
pub extern "C" fn ftruncate64(descriptor: c_int, length: i64) -> c_int {
    if let Err(error) = set_length(descriptor, length.unsigned_abs(), false) {
        return failed(error);
    }
    real!(SYS_ftruncate, descriptor, length)
}

#[unsafe(no_mangle)]
pub extern "C" fn fallocate64(descriptor: c_int, mode: c_int, offset: i64, length: i64) -> c_int {
    let end = (offset + length).unsigned_abs();
    if mode == 0
        && let Err(error) = set_length(descriptor, end, true)
    {
        return failed(error);
    }
    real!(SYS_fallocate, descriptor, mode, offset, length)
}

#[unsafe(no_mangle)]
pub extern "C" fn fsync(descriptor: c_int) -> c_int {
    if !is_noted() {
        return real!(SYS_fsync, descriptor);
    }
    let (time, sync) = with(|kernel| kernel.files.begin_sync(descriptor));
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    sleep_until(with(|kernel| kernel.now + time));
    done(with(|kernel| kernel.files.end_sync(sync)))
}

#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    fsync(descriptor)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    if !is_noted() || flags & libc::AT_REMOVEDIR != 0 {
        return real!(SYS_unlinkat, directory, path, flags);
    }
    // SAFETY: the arguments are the caller's.
    let at = unsafe { path_of(directory, path) };
    use_disk(100 * MICROSECOND);
    if baton::outside(|| at.symlink_metadata().is_err()) {
        return failed(libc::ENOENT);
    }
    if with(|kernel| kernel.files.is_stuck(&at)) {
        return failed(libc::EPERM);
    }
    let grave = with(|kernel| kernel.files.remove(at.clone()));
    match baton::outside(|| std::fs::rename(&at, grave)) {
        Ok(()) => 0,
        Err(error) => {
            with(|kernel| kernel.files.not_removed());
            failed(error.raw_os_error().unwrap_or(libc::EIO))
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { unlinkat(libc::AT_FDCWD, path, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat(
    from_directory: c_int,
    from: *const c_char,
    to_directory: c_int,
    to: *const c_char,
) -> c_int {
    if !is_noted() {
        return real!(SYS_renameat2, from_directory, from, to_directory, to, 0);
    }
    // SAFETY: the arguments are the caller's.
    let (from, to) = unsafe { (path_of(from_directory, from), path_of(to_directory, to)) };
    use_disk(100 * MICROSECOND);
    if baton::outside(|| from.symlink_metadata().is_err()) {
        return failed(libc::ENOENT);
    }
    if with(|kernel| kernel.files.is_stuck(&from)) {
        return failed(libc::EPERM);
    }
    let grave = with(|kernel| kernel.files.rename(from.clone(), to.clone()));
    let moved = baton::outside(|| {
        if let Some(grave) = grave {
            std::fs::rename(&to, grave)?;
        }
        std::fs::rename(&from, &to)
    });
    match moved {
        Ok(()) => 0,
        Err(error) => failed(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { renameat(libc::AT_FDCWD, from, libc::AT_FDCWD, to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdirat(
    directory: c_int,
    path: *const c_char,
    mode: libc::mode_t,
) -> c_int {
    let result: c_int = real!(SYS_mkdirat, directory, path, mode);
    if result == 0 && is_noted() {
        // SAFETY: the arguments are the caller's.
        let at = unsafe { path_of(directory, path) };
        with(|kernel| kernel.files.make_directory(at));
    }
    result
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: libc::mode_t) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { mkdirat(libc::AT_FDCWD, path, mode) }
}

/// The space on the simulated disk: like statfs(2), except for the number and size of blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatfs64(descriptor: c_int, about: *mut libc::statfs64) -> c_int {
    let result: c_int = real!(SYS_fstatfs, descriptor, about);
    // SAFETY: the caller passes the address of such a struct, which the kernel has filled.
    unsafe { limit_space(result, about) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn statfs64(path: *const c_char, about: *mut libc::statfs64) -> c_int {
    let result: c_int = real!(SYS_statfs, path, about);
    // SAFETY: the caller passes the address of such a struct, which the kernel has filled.
    unsafe { limit_space(result, about) }
}

unsafe fn limit_space(result: c_int, about: *mut libc::statfs64) -> c_int {
    if result == 0 && is_noted() {
        let free = if with(|kernel| kernel.files.faults.no_space) { 0 } else { 1 << 20 };
        // SAFETY: the caller passes the address of such a struct.
        unsafe {
            (*about).f_bsize = 4096;
            (*about).f_blocks = 1 << 21;
            ((*about).f_bfree, (*about).f_bavail) = (free, free);
        }
    }
    result
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn statvfs64(path: *const c_char, about: *mut libc::statvfs64) -> c_int {
    type Look = unsafe extern "C" fn(*const c_char, *mut libc::statvfs64) -> c_int;
    let look = baton::outside(|| raw::libc_function(c"statvfs64"));
    // SAFETY: this is the type of libc's function, and the arguments are the caller's.
    let result = unsafe {
        let look: Look = std::mem::transmute(look);
        look(path, about)
    };
    if result == 0 && is_noted() {
        let free = if with(|kernel| kernel.files.faults.no_space) { 0 } else { 1 << 20 };
        // SAFETY: the caller passes the address of such a struct.
        unsafe {
            (*about).f_frsize = 4096;
            (*about).f_blocks = 1 << 21;
            ((*about).f_bfree, (*about).f_bavail) = (free, free);
        }
    }
    result
}
