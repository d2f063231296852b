//! Work on large events that does not hold up the other tasks of a worker thread.
//!
//! An event of 64 MiB can keep a filter busy for a second. In a container with up to three cores,
//! all outputs, listeners and timers share one worker thread. This module therefore gives the
//! worker thread's other tasks to another thread while the filter works on a large event.

use std::sync::OnceLock;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

/// An event with more bytes, line break included, is large. For this many bytes, a filter needs a
/// few milliseconds, as for a batch of small events.
const LARGE: usize = 1 << 20;

/// Returns `true` if a piece has a large event or is a long JSON list. Looks only for the last line
/// break within each [`LARGE`] bytes, so it reads only a small part of a piece with small events.
pub(super) fn has_large_event(piece: &[u8]) -> bool {
    let mut rest = piece;
    while let Some(beginning) = rest.get(..LARGE) {
        if rest.len() == LARGE {
            return false;
        }
        match memchr::memrchr(b'\n', beginning) {
            Some(end) => rest = rest.get(end + 1..).unwrap_or_default(),
            None => return true,
        }
    }
    false
}

/// Calls `work`. If it takes long, another thread runs the other tasks of this worker thread in the
/// meantime, unless the runtime has no worker threads, as in some tests. At most as many long calls
/// run at the same time as there are worker threads: more would take memory, and the cores that
/// other tasks need. `work` is never cancelled.
pub(super) fn offload<T>(takes_long: bool, work: impl FnOnce() -> T) -> T {
    static TURNS: OnceLock<Semaphore> = OnceLock::new();
    match Handle::try_current() {
        Ok(runtime) if takes_long && runtime.runtime_flavor() == RuntimeFlavor::MultiThread => {
            let turns = TURNS.get_or_init(|| Semaphore::new(runtime.metrics().num_workers()));
            in_turn(&runtime, turns, work)
        }
        _ => work(),
    }
}

fn in_turn<T>(runtime: &Handle, turns: &Semaphore, work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(|| {
        // The semaphore is never closed.
        let _turn = runtime.block_on(turns.acquire()).ok();
        work()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use tokio::task::JoinSet;

    use super::*;

    #[test]
    fn a_line_of_more_than_1_mib_is_large() {
        let lines = |lengths: &[usize]| {
            let line = |length: &usize| [&*vec![b'a'; length - 1], b"\n"].concat();
            lengths.iter().flat_map(line).collect::<Vec<u8>>()
        };
        for (lengths, expected) in [
            (&[][..], false),
            (&[1, 2], false),
            (&[LARGE], false),
            (&[LARGE + 1], true),
            (&[LARGE, LARGE, LARGE], false),
            (&[1, LARGE, LARGE, 1], false),
            (&[1, LARGE + 1, 1], true),
            (&[LARGE / 2, LARGE / 2 + 1, LARGE], false),
            (&[LARGE / 2, LARGE / 2, LARGE + 1], true),
            (&[LARGE - 1, 1, 1, LARGE + 1], true),
            (&[700; 10_000], false),
        ] {
            assert_eq!(has_large_event(&lines(lengths)), expected, "{lengths:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_more_work_than_turns_is_done_at_once() {
        let (turns, working) = (Arc::new(Semaphore::new(2)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let (turns, working) = (Arc::clone(&turns), Arc::clone(&working));
            tasks.spawn(async move {
                in_turn(&Handle::current(), &turns, || {
                    let at_once = working.fetch_add(1, Ordering::SeqCst) + 1;
                    // The sender lives, so that the channel stays silent for this time.
                    let (_sender, silent) = mpsc::channel::<()>();
                    silent.recv_timeout(Duration::from_millis(20)).expect_err("nobody sends");
                    working.fetch_sub(1, Ordering::SeqCst);
                    at_once
                })
            });
        }
        let most = tasks.join_all().await.into_iter().max();
        assert!(most <= Some(2), "{most:?}");
    }

    #[tokio::test]
    async fn a_runtime_of_one_thread_does_the_work_in_its_place() {
        assert_eq!(offload(true, || 1), 1);
    }
}
