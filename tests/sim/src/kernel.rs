//! The simulated kernel: threads, time, network, files and randomness, all from one seed.
//!
//! The functions of libc in [`interpose`] take the place of libc's own, for this program and for
//! the relay's library, which it loads. Below them, one thread runs at a time.

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

/// Begins the simulation with this seed. From now on, this thread and all that it starts run on the
/// simulated kernel. `graves` is a directory on the relay's file system, for files whose removal
/// is not stored yet. Trace lines go to the descriptor `out`, if there is one.
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

/// Adds a line to the trace.
pub(crate) fn trace(text: fmt::Arguments<'_>) {
    baton::with(|kernel| kernel.trace.add(kernel.now, text));
}

/// Returns the sum of all trace lines so far, and the number of calls to the kernel.
pub(crate) fn sum() -> (u64, u64) {
    baton::with(|kernel| (kernel.trace.sum(), kernel.calls))
}

/// Lets the processes that this one starts have the same addresses in each run.
pub(crate) fn fix_addresses() {
    raw::fix_addresses();
}

/// Returns the time of processors that all seeds have used whose processes have ended.
pub(crate) fn time_of_children() -> Duration {
    raw::time_of_children()
}

/// Ends another process.
pub(crate) fn end_process(process: u32) {
    raw::end_process(process);
}

/// Writes to a descriptor of the real process, such as 1.
pub(crate) fn print(descriptor: i32, text: &str) {
    raw::write(descriptor, text.as_bytes());
}

/// Ends the real process.
pub(crate) fn exit(status: i32) -> ! {
    raw::exit(status)
}

/// The network.
pub(crate) mod net {
    use std::net::SocketAddr;

    use super::baton::with;
    pub(crate) use super::net_model::Fault;

    /// Sets what is wrong on the way to a listener, for its connections and for new ones.
    pub(crate) fn fault(listener: SocketAddr, fault: Fault) {
        with(|kernel| kernel.set_fault(listener, fault));
    }

    /// Gives a listener another address, which has faults of its own.
    pub(crate) fn open_door(door: SocketAddr, listener: SocketAddr) {
        with(|kernel| kernel.open_door(door, listener));
    }

    /// Ends all connections to a listener with a reset.
    pub(crate) fn reset(listener: SocketAddr) {
        with(|kernel| kernel.reset_all(listener));
    }
}

/// The relay's disk.
pub(crate) mod disk {
    use std::path::Path;

    use super::baton::with;
    pub(crate) use super::files::Faults;

    /// Sets what is wrong with the disk.
    pub(crate) fn set(faults: Faults) {
        with(|kernel| {
            kernel.trace.add(kernel.now, format_args!("disk {faults:?}"));
            kernel.files.faults = faults;
        });
    }

    /// Lets this file be one that the relay can neither remove nor rename.
    pub(crate) fn stick(path: &Path) {
        with(|kernel| {
            // The rest of the path is another one in each run.
            let name = path.file_name().unwrap_or_default().display();
            kernel.trace.add(kernel.now, format_args!("{name} is stuck"));
            kernel.files.stick(path.to_owned());
        });
    }

    /// The file that was stuck is gone: somebody else has replaced its directory.
    pub(crate) fn unstick() {
        with(|kernel| kernel.files.unstick());
    }

    /// Everything that the relay has written is stored: somebody else has taken its directory.
    pub(crate) fn store_all() {
        with(|kernel| kernel.files.store_all());
    }

    /// The power is gone, after the relay's end: a part of what was not synced is lost.
    pub(crate) fn power_loss() {
        with(|kernel| {
            kernel.trace.add(kernel.now, format_args!("power loss"));
            kernel.files.power_loss();
        });
    }
}
