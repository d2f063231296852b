//! The program with its command line, for the simulator: a shared library with one function that
//! runs it, and one that tells how much memory it has used.
#![allow(unsafe_code, reason = "an allocator, and functions that another program calls")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{CStr, OsString};
use std::os::unix::ffi::OsStringExt as _;

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use libc::c_char;

/// The system's allocator, with a count of its bytes. The threads of the simulation run one at a
/// time, so the counters need no order.
struct Counting {
    used: AtomicUsize,
    most: AtomicUsize,
}

#[global_allocator]
static HEAP: Counting = Counting { used: AtomicUsize::new(0), most: AtomicUsize::new(0) };

impl Counting {
    fn add(&self, bytes: usize) {
        let used = self.used.fetch_add(bytes, Relaxed).wrapping_add(bytes);
        self.most.fetch_max(used, Relaxed);
    }
}

// SAFETY: all memory is that of the system's allocator, which gets what was asked for here.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: as the function's own condition.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: as the function's own condition.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.used.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the function's own condition.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.used.fetch_sub(layout.size(), Relaxed);
        self.add(size);
        // SAFETY: as the function's own condition.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Returns the greatest number of bytes that the program has had from its allocator at a time.
#[unsafe(no_mangle)]
pub extern "C" fn heap_most() -> usize {
    HEAP.most.load(Relaxed)
}

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
