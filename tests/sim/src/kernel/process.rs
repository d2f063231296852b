//! The lives of the relay. Each is a copy of the relay's library with its own threads and open
//! files, and can be killed like a process.
#![allow(unsafe_code, reason = "loads a library and calls it; the proofs are beside the calls")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use super::baton;
use super::baton::{Owner, TaskId, with};
use super::state::Kernel;

/// The exit status of a process that was killed.
const KILLED: i32 = 137;

/// The kernel's state of a process.
#[derive(Default)]
pub(super) struct ProcessState {
    /// The exit status, if the process has ended.
    pub(super) status: Option<i32>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    /// `true` if standard error is a full pipe that nobody reads.
    pub(super) is_unread: bool,
    /// `true` if nobody reads standard output any more, and its pipe is closed.
    pub(super) is_closed: bool,
    /// The signal handlers of the process.
    pub(super) handlers: BTreeMap<c_int, Handler>,
    /// Returns the most bytes that were on the process's heap at one time.
    heap_most: Option<HeapMost>,
    /// `None` unless the library has the known mistakes.
    reached: Option<Reached>,
    /// The threads that wait for the process to end.
    waiting: Vec<TaskId>,
}

/// A signal handler, as sigaction(2) takes it with `SA_SIGINFO`.
pub(super) type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// The relay's function in its library.
type Program = unsafe extern "C" fn(usize, *const *const c_char) -> i32;

/// The function of the relay's library that returns the peak of its heap use.
type HeapMost = extern "C" fn() -> usize;

/// The function of the relay's library that returns the places that the program has reached.
type Reached = extern "C" fn() -> *const c_char;

/// One life of the program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(Owner);

struct Start {
    owner: Owner,
    program: Program,
    arguments: Vec<CString>,
}

impl Kernel {
    pub(super) fn process(&mut self, owner: Owner) -> Option<&mut ProcessState> {
        self.processes.get_mut((owner as usize).checked_sub(1)?)
    }

    /// Ends a process, unless it has ended already.
    pub(super) fn end_process(&mut self, owner: Owner, status: i32) {
        let Some(process) = self.process(owner) else { return };
        if process.status.is_some() {
            return;
        }
        process.status = Some(status);
        let waiting = std::mem::take(&mut process.waiting);
        self.trace.add(self.now, format_args!("process {owner} ends with {status}"));
        self.end_tasks(owner);
        self.close_all(owner);
        self.files.close_all(owner);
        for task in waiting {
            self.wake(task);
        }
    }
}

impl Process {
    /// Starts the program with these arguments, from a copy of its library that no process has used
    /// yet.
    ///
    /// # Panics
    ///
    /// If the library cannot be loaded.
    pub(crate) fn start(library: &Path, arguments: &[&str]) -> Self {
        let path = CString::new(library.as_os_str().as_bytes()).expect("a path without zeros");
        let (program, heap_most, reached) = baton::outside(|| {
            // SAFETY: the path ends with a zero byte. When the library is loaded, the only code
            // that runs is that of Rust's standard library, which keeps the program's arguments.
            let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            assert!(!library.is_null(), "cannot load {path:?}");
            // SAFETY: the library is loaded, and the name ends with a zero byte.
            let program = unsafe { libc::dlsym(library, c"run_program".as_ptr()) };
            assert!(!program.is_null(), "{path:?} has no function run_program");
            // SAFETY: the library is loaded, and the name ends with a zero byte.
            let heap_most = unsafe { libc::dlsym(library, c"heap_most".as_ptr()) };
            assert!(!heap_most.is_null(), "{path:?} has no function heap_most");
            // SAFETY: the library is loaded, and the name ends with a zero byte.
            let reached = unsafe { libc::dlsym(library, c"reached_places".as_ptr()) };
            (program, heap_most, reached)
        });
        // SAFETY: this is the function's type in tests/sim/relay.
        let program: Program = unsafe { std::mem::transmute(program) };
        // SAFETY: this is the function's type as well.
        let heap_most: HeapMost = unsafe { std::mem::transmute(heap_most) };
        // SAFETY: if the library has the function, this is its type. A null pointer becomes `None`.
        let reached: Option<Reached> = unsafe { std::mem::transmute(reached) };
        let arguments = std::iter::once(&"kube-audit-forwarder").chain(arguments);
        let arguments: Result<_, _> = arguments.map(|it| CString::new(*it)).collect();
        let owner = with(|kernel| {
            let heap_most = Some(heap_most);
            let process = ProcessState { heap_most, reached, ..ProcessState::default() };
            kernel.processes.push(process);
            let owner = Owner::try_from(kernel.processes.len()).expect("a few processes");
            kernel.trace.add(kernel.now, format_args!("process {owner} starts"));
            owner
        });
        let arguments = arguments.expect("arguments without zeros");
        let start = Box::into_raw(Box::new(Start { owner, program, arguments }));
        let mut native = 0;
        // SAFETY: `run` takes the box. Without attributes, libc uses its defaults.
        let result = unsafe {
            let (thread, none) = (&raw mut native, std::ptr::null());
            baton::create_thread(thread, none, run, start.cast(), Some(owner))
        };
        assert_eq!(result, 0, "cannot start a thread");
        Self(owner)
    }

    /// Ends the process at once, at any point of its threads' work (SIGKILL).
    pub(crate) fn kill(self) {
        with(|kernel| kernel.end_process(self.0, KILLED));
    }

    /// Sends a signal. It ends a process that has no handler for it.
    pub(crate) fn signal(self, number: c_int) {
        let handler = with(|kernel| {
            kernel.trace.add(kernel.now, format_args!("signal {number} to {}", self.0));
            let process = kernel.process(self.0).filter(|process| process.status.is_none())?;
            Some(process.handlers.get(&number).copied())
        });
        match handler {
            None => {}
            Some(None) => with(|kernel| kernel.end_process(self.0, 128 + number)),
            Some(Some(handler)) => {
                // SAFETY: all fields of this struct may be zero.
                let mut about: libc::siginfo_t = unsafe { std::mem::zeroed() };
                about.si_signo = number;
                // SAFETY: the process registered this handler. It does only what a signal handler
                // may do: it writes a byte to a socket. It runs on this thread, outside the kernel.
                unsafe { handler(number, &raw mut about, std::ptr::null_mut()) };
            }
        }
    }

    /// Waits for the end of the process, and returns its exit status, or `None` if the process is
    /// still running after this time.
    pub(crate) fn wait(self, limit: Duration) -> Option<i32> {
        let deadline = super::now() + limit;
        loop {
            let status = with(|kernel| {
                let process = kernel.process(self.0)?;
                if process.status.is_none() {
                    process.waiting.push(baton::me());
                }
                process.status
            });
            if status.is_some() || super::now() >= deadline {
                return status;
            }
            baton::wait(Some(super::nanoseconds(deadline)));
        }
    }

    /// From now on, nobody reads the process's standard error.
    pub(crate) fn read_no_more(self) {
        with(|kernel| {
            kernel.trace.add(kernel.now, format_args!("nobody reads the log of {}", self.0));
            if let Some(process) = kernel.process(self.0) {
                process.is_unread = true;
            }
        });
    }

    /// Returns `true` after [`Process::read_no_more`].
    pub(crate) fn is_unread(self) -> bool {
        with(|kernel| kernel.process(self.0).is_some_and(|process| process.is_unread))
    }

    /// Returns the most bytes that were on the process's heap at one time.
    pub(crate) fn heap_most(self) -> usize {
        let heap_most = with(|kernel| kernel.process(self.0)?.heap_most);
        heap_most.map_or(0, |heap_most| heap_most())
    }

    /// Closes the reader's end of the process's standard output.
    pub(crate) fn close_stdout(self) {
        with(|kernel| {
            kernel.trace.add(kernel.now, format_args!("the stdout of {} is closed", self.0));
            if let Some(process) = kernel.process(self.0) {
                process.is_closed = true;
            }
        });
    }

    /// Returns the process's standard output so far.
    pub(crate) fn stdout(self) -> Vec<u8> {
        with(|kernel| kernel.process(self.0).map_or_else(Vec::new, |it| it.stdout.clone()))
    }

    /// Returns the process's standard error so far.
    pub(crate) fn stderr(self) -> Vec<u8> {
        with(|kernel| kernel.process(self.0).map_or_else(Vec::new, |it| it.stderr.clone()))
    }
}

/// Returns the names of the places that processes have reached, if the library records them. No
/// thread of a process may run at the same time.
pub(super) fn reached() -> BTreeSet<String> {
    let all: Vec<_> = with(|kernel| kernel.processes.iter().filter_map(|it| it.reached).collect());
    let mut names = BTreeSet::new();
    for reached in all {
        // SAFETY: the function returns a text that ends with a zero byte and stays in memory.
        let text = unsafe { CStr::from_ptr(reached()) }.to_string_lossy();
        names.extend(text.lines().map(str::to_owned));
    }
    names
}

/// The first thread of a process.
extern "C" fn run(start: *mut c_void) -> *mut c_void {
    // SAFETY: `Process::start` made this box for this thread alone.
    let start = unsafe { Box::from_raw(start.cast::<Start>()) };
    let pointers: Vec<*const c_char> = start.arguments.iter().map(|it| it.as_ptr()).collect();
    // SAFETY: the pointers belong to strings that live until the call returns.
    let status = unsafe { (start.program)(pointers.len(), pointers.as_ptr()) };
    leave(start.owner, status)
}

/// Ends the process at the request of this thread, which ends with it.
pub(super) fn leave(owner: Owner, status: i32) -> ! {
    with(|kernel| kernel.end_process(owner, status));
    // The thread is dead now, and never gets the baton again.
    loop {
        baton::wait(None);
    }
}
