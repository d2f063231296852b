//! The simulated kernel: threads, time, network, files and randomness, all from one seed.
//!
//! The functions in [`interpose`] replace those of libc, both for this program and for the relay's
//! library, which it loads. Below them, one thread runs at a time.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::Duration;

mod baton;
mod counter;
mod files;
mod interpose;
mod net_model;
mod process;
mod raw;
mod state;
mod trace;

pub(crate) use process::Process;

/// Begins the simulation with this seed. From now on, this thread and all threads that it starts
/// run on the simulated kernel. `graves` is a directory on the relay's file system, for files whose
/// removal is not synced yet. Trace lines go to the descriptor `out`, if any.
pub(crate) fn begin(seed: u64, graves: &Path, out: Option<i32>) {
    let mut kernel = state::Kernel::new(seed, trace::Trace::new(out));
    kernel.files.set_graves(graves.to_owned());
    counter::simulate();
    baton::begin(kernel);
}

/// Returns the simulated time since the start.
pub(crate) fn now() -> Duration {
    Duration::from_nanos(baton::with(|kernel| kernel.now))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn trace(text: fmt::Arguments<'_>) {
    baton::with(|kernel| kernel.trace.add(kernel.now, text));
}

/// Returns the sum of all trace lines so far, and the number of calls to the kernel.
pub(crate) fn sum() -> (u64, u64) {
    baton::with(|kernel| (kernel.trace.sum(), kernel.calls))
}

/// Returns the names of the known mistakes whose places the processes have reached.
pub(crate) fn reached() -> BTreeSet<String> {
    process::reached()
}

/// Gives the child processes of this process the same addresses in each run.
pub(crate) fn fix_addresses() {
    raw::fix_addresses();
}

/// Returns the CPU time of all seeds whose processes have ended.
pub(crate) fn time_of_children() -> Duration {
    raw::time_of_children()
}

pub(crate) fn end_process(process: u32) {
    raw::end_process(process);
}

/// Writes to a descriptor of the real process, such as 1.
pub(crate) fn print(descriptor: i32, text: &str) {
    raw::write(descriptor, text.as_bytes());
}

pub(crate) fn exit(status: i32) -> ! {
    raw::exit(status)
}

pub(crate) mod net {
    use std::net::SocketAddr;

    use super::baton::with;
    pub(crate) use super::net_model::Fault;

    /// Sets the fault on the way to a listener, for new and open connections.
    pub(crate) fn fault(listener: SocketAddr, fault: Fault) {
        with(|kernel| kernel.set_fault(listener, fault));
    }

    /// Gives a listener a second address, which has its own faults.
    pub(crate) fn open_door(door: SocketAddr, listener: SocketAddr) {
        with(|kernel| kernel.open_door(door, listener));
    }

    /// Resets all connections to a listener.
    pub(crate) fn reset(listener: SocketAddr) {
        with(|kernel| kernel.reset_all(listener));
    }
}

pub(crate) mod disk {
    use std::path::Path;

    use super::baton::with;
    pub(crate) use super::files::Faults;

    pub(crate) fn set(faults: Faults) {
        with(|kernel| {
            kernel.trace.add(kernel.now, format_args!("disk {faults:?}"));
            kernel.files.faults = faults;
        });
    }

    /// Makes a file that the relay can neither remove nor rename.
    pub(crate) fn stick(path: &Path) {
        with(|kernel| {
            // The rest of the path differs in each run.
            let name = path.file_name().unwrap_or_default().display();
            kernel.trace.add(kernel.now, format_args!("{name} is stuck"));
            kernel.files.stick(path.to_owned());
        });
    }

    /// Ends [`stick`]: somebody has replaced the directory around the file.
    pub(crate) fn unstick() {
        with(|kernel| kernel.files.unstick());
    }

    /// Returns how many files have become segments of the queue by a new name.
    pub(crate) fn renamed() -> usize {
        with(|kernel| kernel.files.renamed)
    }

    /// Stores all changes by the relay, because somebody else replaces its directory.
    pub(crate) fn store_all() {
        with(|kernel| kernel.files.store_all());
    }

    /// Cuts the power after the relay's end: a part of the unsynced changes is lost.
    pub(crate) fn power_loss() {
        with(|kernel| {
            kernel.trace.add(kernel.now, format_args!("power loss"));
            kernel.files.power_loss();
        });
    }
}
