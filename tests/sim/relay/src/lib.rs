//! The program with its command line, as a shared library for the simulator. One function runs it,
//! and another one returns its peak memory use.
#![allow(unsafe_code, reason = "an allocator, and functions that another program calls")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{CStr, OsString};
use std::os::unix::ffi::OsStringExt as _;

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use libc::c_char;

/// The system's allocator, with a count of the allocated bytes. Only one thread of the simulation
/// runs at a time, so relaxed counters are exact.
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

// SAFETY: all memory comes from the system's allocator, which gets each request unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: the caller fulfills the conditions of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: the caller fulfills the conditions of this function.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.used.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller fulfills the conditions of this function.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.used.fetch_sub(layout.size(), Relaxed);
        self.add(size);
        // SAFETY: the caller fulfills the conditions of this function.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Returns the most bytes that the program's allocator had handed out at one time.
#[unsafe(no_mangle)]
pub extern "C" fn heap_most() -> usize {
    HEAP.most.load(Relaxed)
}

/// Runs the program with a command line, and returns its exit status.
///
/// # Safety
///
/// `arguments` must be an array of `count` pointers to strings that end with a zero byte. The
/// strings must not change during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn run_program(count: usize, arguments: *const *const c_char) -> i32 {
    // SAFETY: the caller fulfills the conditions of this function.
    let arguments = unsafe { std::slice::from_raw_parts(arguments, count) };
    let arguments = arguments.iter().map(|argument| {
        // SAFETY: the caller fulfills the conditions of this function.
        let argument = unsafe { CStr::from_ptr(*argument) };
        OsString::from_vec(argument.to_bytes().to_vec())
    });
    i32::from(kube_audit_forwarder::cli::run_with(arguments.collect::<Vec<_>>()))
}
