//! `type = "stdout"`: JSON lines on this process's standard output.
//!
//! A separate thread writes, because a write to a full pipe blocks, and neither the runtime nor the
//! end of the process may wait for a write. A closed pipe ends the process.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc as async_mpsc;

use super::json_lines::LineFormat;
use super::setup::{IntoConnector, Setup};
use base::lock::lock;
use config::{OutputSettings, Target};
use config_table::table::Table;
use delivery::checkpoints::Checkpoint;
use delivery::endpoints::Probed;
use delivery::failure::Failure;
use delivery::link::{Connect, Event, Link};
use delivery::prepared;
use queue::{Batch, Claim, Take};
use telemetry::{AttemptError, OutputMetrics};

/// The maximum number of unfinished batches: one that the thread writes, and one that waits.
const WINDOW: usize = 2;

/// A batch for the writing thread. A checkpoint has no claim.
type Job = (Option<Claim>, Vec<Bytes>);
/// A report of the writing thread: the claim of a batch, and the result of its write.
type Done = (Option<Claim>, io::Result<()>);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub format: LineFormat,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "stdout";
    const SAMPLE: &'static str = "";
    const MEMORY: u64 = 0;
    const ONLY_ONE: Option<&'static str> = Some("writes to stdout");

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        Some(Self { format: LineFormat::read(t)? })
    }

    fn targets(&self) -> Vec<Target> {
        Vec::new()
    }

    fn carries_checkpoints(&self) -> bool {
        true
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn prepared::Connector> {
        let (limits, metrics) = (setup.output.batch, setup.metrics.clone());
        Box::new(StdoutConnector { format: self.format, limits, metrics })
    }
}

/// The connector of a `stdout` output, which the delivery loop owns. The loop first calls `connect`
/// when the delivery begins. `connect` starts a thread that writes to stdout. The thread runs until
/// a write fails or its link is dropped. After a failed write, the loop calls `connect` again:
/// after a pause if the link was new, otherwise without a pause. A closed pipe ends the output
/// instead, and with it the process.
#[derive(Clone)]
pub(super) struct StdoutConnector {
    format: LineFormat,
    limits: config::BatchLimits,
    metrics: OutputMetrics,
}

impl Connect for StdoutConnector {
    type Link = StdoutLink;

    const EAGER: bool = true;

    async fn probe(&mut self) -> Probed {
        vec![("stdout".to_owned(), Ok(None))]
    }

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
        Ok(StdoutLink { output: self.clone(), jobs, done, under_way: 0 })
    }
}

/// The pause before another write to a full pipe. It is used only if another process has made the
/// pipe non-blocking; otherwise the write itself waits.
const FULL_PIPE: Duration = Duration::from_millis(10);

/// The thread that writes to stdout: writes the batches from `queue` one after the other, and sends
/// each result to `report`. The thread ends when `queue` or `report` is closed, or after an error.
/// It is not joined, because a write to a full pipe may never return; it owns only its channels and
/// a copy of the file descriptor.
///
/// Only one such thread writes at a time. If the output is replaced while its thread hangs, the new
/// thread waits until the old one has ended, so that no lines are mixed. If the old one has failed
/// inside a line, the new one ends that line first. The next event would otherwise follow the torn
/// line directly, and nobody could read it.
fn write_all(mut out: impl Write, queue: &mpsc::Receiver<Job>, report: &async_mpsc::Sender<Done>) {
    /// `true` if stdout ends inside a line. The thread whose turn it is holds the lock.
    static TORN: Mutex<bool> = Mutex::new(false);
    let mut torn = lock(&TORN);
    for (claim, pieces) in queue {
        let result = write_batch(&mut out, &pieces, &mut torn);
        let failed = result.is_err();
        if report.blocking_send((claim, result)).is_err() || failed {
            return;
        }
    }
}

/// Writes a batch, which consists of whole lines. If `torn`, first ends the line in which the last
/// write stopped. Sets `torn` to whether the bytes so far end inside a line.
fn write_batch(out: &mut impl Write, pieces: &[Bytes], torn: &mut bool) -> io::Result<()> {
    if *torn {
        write_piece(out, b"\n", torn)?;
    }
    pieces.iter().try_for_each(|piece| write_piece(out, piece, torn))
}

/// Writes all bytes of `piece`. Waits while `out` is a non-blocking pipe that is full.
#[allow(clippy::disallowed_methods, reason = "write_all does not say how far it came")]
fn write_piece(out: &mut impl Write, mut piece: &[u8], torn: &mut bool) -> io::Result<()> {
    while !piece.is_empty() {
        match out.write(piece) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                let (taken, rest) = piece.split_at_checked(written).unwrap_or((piece, b""));
                *torn = !taken.ends_with(b"\n");
                piece = rest;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::park_timeout(FULL_PIPE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The link to the thread that writes to stdout. A claim is final when all bytes of the claim are
/// written to the file descriptor.
pub(super) struct StdoutLink {
    output: StdoutConnector,
    jobs: mpsc::SyncSender<Job>,
    done: async_mpsc::Receiver<Done>,
    /// The number of batches that the thread has not reported yet.
    under_way: usize,
}

impl StdoutLink {
    fn write(&mut self, claim: Option<Claim>, batch: Batch) {
        let pieces = self.output.format.pieces(batch.pieces);
        self.output.metrics.bytes.increment(pieces.iter().map(|piece| piece.len() as u64).sum());
        self.under_way += 1;
        // The send fails only if the thread has ended, which the link learns from the end of
        // `done`.
        self.jobs.try_send((claim, pieces)).ok();
    }
}

impl Link for StdoutLink {
    fn room(&self) -> Option<Take> {
        let take =
            Take { bytes: self.output.limits.max_bytes, events: self.output.limits.max_events };
        (self.under_way < WINDOW).then_some(take)
    }

    fn send(&mut self, batch: Batch) {
        self.write(Some(batch.claim), batch);
    }

    fn send_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.write(None, checkpoint.batch());
    }

    async fn event(&mut self) -> Event {
        match self.done.recv().await {
            Some((claim, Ok(()))) => {
                self.under_way -= 1;
                Event::accepted(claim)
            }
            Some((_, Err(error))) if error.kind() == io::ErrorKind::BrokenPipe => {
                Event::Fatal(format!("cannot write to stdout: {error}"))
            }
            // Other errors may disappear: if stdout is a file on a full disk, the disk may get room
            // again.
            Some((_, Err(error))) => Event::Broken {
                failure: Failure::new(AttemptError::Closed, format!("stdout: {error}"))
                    .not_the_events(),
                progress: false,
            },
            None => {
                Event::Fatal("cannot write to stdout: the thread that writes has ended".to_owned())
            }
        }
    }

    async fn close(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer whose calls in turn are interrupted, take at most 7 bytes, and fail as on a full
    /// pipe.
    struct Reluctant {
        taken: Vec<u8>,
        turn: usize,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.turn += 1;
            match self.turn % 3 {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                1 => Err(io::ErrorKind::Interrupted.into()),
                _ => {
                    let taken = bytes.len().min(7);
                    self.taken.extend_from_slice(&bytes[..taken]);
                    Ok(taken)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_pipe_that_does_not_block_is_waited_for() {
        let mut out = Reluctant { taken: Vec::new(), turn: 0 };
        let line = b"{\"auditID\":\"a\",\"stage\":\"Panic\"}\n";
        write_piece(&mut out, line, &mut false).unwrap();
        assert_eq!(out.taken, line);
    }

    /// A file on a disk with room for some more bytes.
    struct Disk<'a> {
        file: &'a mut Vec<u8>,
        room: usize,
    }

    impl Write for Disk<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.file.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Writes two lines as the thread of one link after the other does: a new link sends again what
    /// failed. Each number is the room on the disk for one thread. Returns the file.
    fn written(rooms: &[usize]) -> String {
        let mut file = Vec::new();
        for room in rooms {
            let (jobs, queue) = mpsc::sync_channel(1);
            let (report, mut done) = async_mpsc::channel(1);
            jobs.send((None, vec![Bytes::from("{1}\n{"), Bytes::from("2}\n")])).unwrap();
            drop(jobs);
            write_all(Disk { file: &mut file, room: *room }, &queue, &report);
            let (_, result) = done.blocking_recv().expect("a result");
            assert_eq!(result.is_ok(), *room > 20, "{room}");
        }
        String::from_utf8(file).unwrap()
    }

    #[test]
    fn a_line_in_which_a_write_failed_is_ended_before_the_next_event() {
        assert_eq!(written(&[2, 99]), "{1\n{1}\n{2}\n");
        assert_eq!(written(&[5, 99]), "{1}\n{\n{1}\n{2}\n");
        assert_eq!(written(&[5, 0, 1, 99]), "{1}\n{\n{1}\n{2}\n");
        assert_eq!(written(&[4, 99, 99]), "{1}\n{1}\n{2}\n{1}\n{2}\n");
        assert_eq!(written(&[0, 99]), "{1}\n{2}\n");
    }
}
