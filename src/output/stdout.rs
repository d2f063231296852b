//! `type = "stdout"`: JSON lines on this process's standard output.
//!
//! A thread of its own writes, because a full pipe blocks: neither the runtime nor the end of the process may wait for
//! it. A closed pipe ends the process.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::mpsc;

use bytes::Bytes;
use tokio::sync::mpsc as async_mpsc;

use super::Failure;
use super::delivery::Connect;
use super::delivery::Event;
use super::delivery::Link;
use super::stream::Encode;
use super::tcp::Lines;
use crate::config;
use crate::queue::Batch;
use crate::queue::Claim;
use crate::queue::Take;
use crate::telemetry::AttemptError;
use crate::telemetry::OutputMetrics;

/// Batches handed to the thread: one that it writes and one that waits.
const WINDOW: usize = 2;

type Job = (Claim, Vec<Bytes>);
type Done = (Claim, io::Result<()>);

/// Starts the writing thread.
pub(super) struct Connector {
    lines: Lines,
    limits: config::BatchLimits,
    metrics: OutputMetrics,
}

impl Connector {
    pub(super) fn new(lines: Lines, output: &config::Output, metrics: OutputMetrics) -> Self {
        Self { lines, limits: output.batch, metrics }
    }
}

impl Connect for Connector {
    type Link = StdoutLink;

    const EAGER: bool = true;

    async fn connect(&mut self) -> Result<StdoutLink, Failure> {
        let failure =
            |error: io::Error| Failure::new(AttemptError::Connect, format!("stdout: {error}"));
        let out = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(failure)?);
        let (jobs, queue) = mpsc::sync_channel(WINDOW);
        let (report, done) = async_mpsc::channel(WINDOW);
        std::thread::Builder::new()
            .name("stdout".to_owned())
            .spawn(move || write_all(out, &queue, &report))
            .map_err(failure)?;
        Ok(StdoutLink {
            lines: self.lines,
            limits: self.limits,
            metrics: self.metrics.clone(),
            jobs,
            done,
            under_way: 0,
        })
    }
}

/// The thread: ends when the link is gone, or at the first error. It is not joined: it may hang in a full pipe for ever,
/// and owns nothing but its copy of the descriptor.
fn write_all(mut out: File, queue: &mpsc::Receiver<Job>, report: &async_mpsc::Sender<Done>) {
    for (claim, pieces) in queue {
        let result = pieces.iter().try_for_each(|piece| out.write_all(piece));
        let failed = result.is_err();
        if report.blocking_send((claim, result)).is_err() || failed {
            return;
        }
    }
}

/// The link to the writing thread.
pub(super) struct StdoutLink {
    lines: Lines,
    limits: config::BatchLimits,
    metrics: OutputMetrics,
    jobs: mpsc::SyncSender<Job>,
    done: async_mpsc::Receiver<Done>,
    under_way: usize,
}

impl Link for StdoutLink {
    fn room(&self) -> Option<Take> {
        let take = Take { bytes: self.limits.max_bytes, events: self.limits.max_events };
        (self.under_way < WINDOW).then_some(take)
    }

    fn send(&mut self, batch: Batch) {
        let claim = batch.claim;
        let pieces = match self.lines.encode(batch) {
            Ok(encoded) => encoded.pieces,
            // Lines are never refused.
            Err(_) => Vec::new(),
        };
        self.metrics.bytes.increment(pieces.iter().map(|piece| piece.len() as u64).sum());
        self.under_way += 1;
        // A channel whose thread has ended says so through `done`.
        self.jobs.try_send((claim, pieces)).ok();
    }

    async fn event(&mut self) -> Event {
        match self.done.recv().await {
            Some((claim, Ok(()))) => {
                self.under_way -= 1;
                Event::Accepted { claim, lost: 0 }
            }
            Some((_, Err(error))) => Event::Fatal(format!("cannot write to stdout: {error}")),
            None => Event::Fatal("cannot write to stdout: its thread has ended".to_owned()),
        }
    }

    async fn close(self) {}
}
