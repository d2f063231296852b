//! The threads. Each is a thread of the operating system, but only the one that holds the baton
//! runs. A thread gives up the baton when it waits, and sometimes when it calls the kernel. The
//! seed decides which thread is next. If all threads wait, the time jumps to the next event.
#![allow(unsafe_code, reason = "one state for all threads; the proofs are beside the code")]

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::raw;
use super::state::{Event, Kernel};

/// The number of a thread.
pub(super) type TaskId = usize;

/// The number of a process: 0 is the world, and each life of a relay has its own.
pub(super) type Owner = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// The thread runs, or will run when it gets the baton.
    Ready,
    /// The thread waits until another one wakes it, or until its deadline.
    Waiting,
    Ended,
    /// Its process was killed. The thread never gets the baton again.
    Dead,
}

pub(super) struct Task {
    pub(super) owner: Owner,
    pub(super) doing: Doing,
    /// Counts the thread's waits, so that a deadline ends only its own wait.
    wait: u64,
    /// 1 while the thread may run. The thread waits here for the baton.
    baton: &'static AtomicU32,
    /// libc's ID of the thread, for threads that join it.
    pub(super) native: libc::pthread_t,
    /// The threads that wait for this one to end.
    pub(super) joining: Vec<TaskId>,
}

/// The state of the kernel. Only the holder of the baton uses it.
struct Shared(RefCell<Option<Box<Kernel>>>);

// SAFETY: only the thread with the baton borrows the state (see `with`), and the baton is passed on
// with a release store and an acquire load.
unsafe impl Sync for Shared {}

static KERNEL: Shared = Shared(RefCell::new(None));

/// The number of a thread that is not part of the simulation.
const OUTSIDE: TaskId = TaskId::MAX;

thread_local! {
    static ME: Cell<TaskId> = const { Cell::new(OUTSIDE) };
    /// `true` while this thread is in the simulated kernel, whose own calls go to the real one.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Returns `true` if a call of this thread goes to the simulated kernel.
pub(super) fn is_simulated() -> bool {
    ME.get() != OUTSIDE && !INSIDE.get()
}

pub(super) fn me() -> TaskId {
    ME.get()
}

/// Runs a function that uses the real kernel.
pub(super) fn outside<R>(work: impl FnOnce() -> R) -> R {
    let before = INSIDE.replace(true);
    let result = work();
    INSIDE.set(before);
    result
}

/// Gives the function access to the state of the kernel.
pub(super) fn with<R>(work: impl FnOnce(&mut Kernel) -> R) -> R {
    outside(|| {
        let mut kernel = KERNEL.0.borrow_mut();
        work(kernel.as_mut().expect("the simulation has begun"))
    })
}

/// Like [`with`], but returns `None` if this thread is not simulated, or is in the kernel already.
pub(super) fn try_with<R>(work: impl FnOnce(&mut Kernel) -> R) -> Option<R> {
    is_simulated().then(|| with(work))
}

/// Begins the simulation. This thread becomes its first one, and has the baton.
pub(super) fn begin(mut kernel: Kernel) {
    let task = kernel.add_task(0);
    *KERNEL.0.borrow_mut() = Some(Box::new(kernel));
    ME.set(task);
}

impl Kernel {
    /// Adds a thread that may run, and returns its number.
    pub(super) fn add_task(&mut self, owner: Owner) -> TaskId {
        let baton = Box::leak(Box::new(AtomicU32::new(0)));
        let task =
            Task { owner, doing: Doing::Ready, wait: 0, baton, native: 0, joining: Vec::new() };
        self.tasks.push(task);
        self.tasks.len() - 1
    }

    /// Makes a waiting thread ready to run.
    pub(super) fn wake(&mut self, task: TaskId) {
        let found = &mut self.tasks[task];
        if found.doing == Doing::Waiting {
            found.doing = Doing::Ready;
            found.wait += 1;
            self.ready.push(task);
        }
    }

    /// Wakes a thread if this wait is still its current one: the deadline has passed.
    pub(super) fn wake_from(&mut self, task: TaskId, wait: u64) {
        if self.tasks[task].wait == wait {
            self.wake(task);
        }
    }

    /// Ends the threads of a process at any point of their work.
    pub(super) fn end_tasks(&mut self, owner: Owner) {
        for task in self.tasks.iter_mut().filter(|task| task.owner == owner) {
            if task.doing != Doing::Ended {
                task.doing = Doing::Dead;
            }
        }
        let tasks = &self.tasks;
        self.ready.retain(|task| tasks[*task].doing == Doing::Ready);
    }

    /// Returns the thread that runs next, or `None` if all threads wait and no event can come.
    fn next(&mut self) -> Option<TaskId> {
        loop {
            self.due();
            if !self.ready.is_empty() {
                let at = self.rng.usize(..self.ready.len());
                let next = self.ready.remove(at);
                self.trace.runs(self.now, next);
                return Some(next);
            }
            self.jump()?;
        }
    }
}

/// Waits until another thread wakes this one, or until the deadline in simulated nanoseconds.
pub(super) fn wait(deadline: Option<u64>) {
    let me = me();
    with(|kernel| {
        let task = &mut kernel.tasks[me];
        task.doing = Doing::Waiting;
        task.wait += 1;
        let wait = task.wait;
        if let Some(deadline) = deadline {
            kernel.at(deadline, Event::Wake(me, wait));
        }
    });
    give_up_baton(me);
}

/// Lets other threads run first.
pub(super) fn yield_now() {
    let me = me();
    with(|kernel| kernel.ready.push(me));
    give_up_baton(me);
}

/// Passes the baton to the next thread, and returns when this thread has it again.
fn give_up_baton(me: TaskId) {
    let Some(next) = with(Kernel::next) else { stuck() };
    if next == me {
        return;
    }
    let mine = with(|kernel| kernel.tasks[me].baton);
    hand_to(next);
    wait_for_baton(mine);
}

fn hand_to(next: TaskId) {
    let baton = with(|kernel| kernel.tasks[next].baton);
    baton.store(1, Ordering::Release);
    raw::futex_wake(baton);
}

fn wait_for_baton(baton: &AtomicU32) {
    while baton.swap(0, Ordering::Acquire) == 0 {
        raw::futex_wait(baton, 0);
    }
    if let Some(ended) = with(|kernel| kernel.ending.take()) {
        raw::wait_until_gone(ended);
    }
}

fn stuck() -> ! {
    let text = with(|kernel| format!("all threads wait for ever: {}\n", kernel.stuck()));
    raw::write(2, text.as_bytes());
    raw::exit(3)
}

/// A new thread's function, and its argument.
struct Beginning {
    task: TaskId,
    baton: &'static AtomicU32,
    /// 1 once the thread waits for its baton. Before that, the thread uses memory of libc, which
    /// its creator must not use at the same time.
    has_begun: Arc<AtomicU32>,
    function: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
}

type Create = unsafe extern "C" fn(
    *mut libc::pthread_t,
    *const libc::pthread_attr_t,
    extern "C" fn(*mut c_void) -> *mut c_void,
    *mut c_void,
) -> c_int;

unsafe extern "C" {
    /// Registers a function for the end of the thread. The last one registered is called first.
    fn __cxa_thread_atexit_impl(
        function: unsafe extern "C" fn(*mut c_void),
        object: *mut c_void,
        library: *mut c_void,
    ) -> c_int;
    static __dso_handle: u8;
}

/// Creates a thread, like pthread_create(3). In the simulation, it belongs to the same process.
///
/// # Safety
///
/// The same as for pthread_create.
pub(super) unsafe fn create_thread(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    function: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
    owner: Option<Owner>,
) -> c_int {
    let function_of_libc = raw::libc_function(c"pthread_create");
    // SAFETY: this is the type of libc's function.
    let create: Create = unsafe { std::mem::transmute(function_of_libc) };
    if !is_simulated() && owner.is_none() {
        // SAFETY: the arguments are the caller's.
        return unsafe { create(thread, attributes, function, argument) };
    }
    let (task, baton) = with(|kernel| {
        let owner = owner.unwrap_or(kernel.tasks[me()].owner);
        let task = kernel.add_task(owner);
        kernel.ready.push(task);
        (task, kernel.tasks[task].baton)
    });
    let has_begun = Arc::new(AtomicU32::new(0));
    let of_thread = Arc::clone(&has_begun);
    let beginning = Beginning { task, baton, has_begun: of_thread, function, argument };
    let beginning = Box::into_raw(Box::new(beginning));
    // SAFETY: `run` takes the box back. The other arguments are the caller's.
    let result = unsafe { outside(|| create(thread, attributes, run, beginning.cast())) };
    while result == 0 && has_begun.load(Ordering::Acquire) == 0 {
        raw::futex_wait(&has_begun, 0);
    }
    // SAFETY: libc has written the ID of the new thread.
    let native = unsafe { *thread };
    with(|kernel| match result {
        0 => kernel.tasks[task].native = native,
        _ => {
            kernel.tasks[task].doing = Doing::Dead;
            kernel.ready.retain(|ready| *ready != task);
        }
    });
    result
}

/// Runs a simulated thread, from its first baton to its last.
extern "C" fn run(beginning: *mut c_void) -> *mut c_void {
    // SAFETY: `create_thread` made this box for this thread alone.
    let beginning = unsafe { Box::from_raw(beginning.cast::<Beginning>()) };
    let Beginning { task, baton, has_begun, function, argument } = *beginning;
    ME.set(task);
    INSIDE.set(true);
    // SAFETY: `end` may be called when a thread ends. It is registered first, so it is called last,
    // after the destructors of all thread-local values, which are still part of the simulation.
    unsafe {
        let library = (&raw const __dso_handle).cast_mut().cast();
        __cxa_thread_atexit_impl(end, std::ptr::null_mut(), library);
    }
    has_begun.store(1, Ordering::Release);
    raw::futex_wake(&has_begun);
    std::mem::forget(has_begun);
    wait_for_baton(baton);
    INSIDE.set(false);
    function(argument)
}

/// Ends a simulated thread: passes its baton on, and does nothing after that.
unsafe extern "C" fn end(_: *mut c_void) {
    let me = me();
    INSIDE.set(true);
    let next = with(|kernel| {
        kernel.tasks[me].doing = Doing::Ended;
        for task in std::mem::take(&mut kernel.tasks[me].joining) {
            kernel.wake(task);
        }
        kernel.ending = Some(raw::thread_number());
        kernel.next()
    });
    match next {
        Some(next) => hand_to(next),
        None => stuck(),
    }
    ME.set(OUTSIDE);
}

/// Waits until a thread has ended, as pthread_join(3) does before it takes the result.
pub(super) fn join(native: libc::pthread_t) {
    loop {
        let is_over = with(|kernel| {
            let mut tasks = kernel.tasks.iter_mut().rev();
            let Some(task) = tasks.find(|task| task.native == native) else { return true };
            let is_over = task.doing == Doing::Ended;
            if !is_over {
                task.joining.push(me());
            }
            is_over
        });
        if is_over {
            return;
        }
        wait(None);
    }
}
