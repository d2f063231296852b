//! SIGINT and SIGTERM end a bench like a panic: its children are killed and its files are removed.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes [`check`] notice the signals from now on. A second signal ends the process at once.
pub(crate) fn watch() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        runtime.expect("a runtime").block_on(async {
            let mut interrupt = signal(SignalKind::interrupt()).expect("a signal of every Unix");
            let mut terminate = signal(SignalKind::terminate()).expect("a signal of every Unix");
            for _ in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    std::process::exit(1);
                }
            }
        });
    });
}

/// Panics if a signal has arrived. Most long loops call this function.
pub(crate) fn check() {
    assert!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
}
