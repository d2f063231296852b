//! The queue in files: a simulation against a model, all types of damage, and many threads on a
//! real disk.

use std::ops::Range;

use bytes::Bytes;
use futures_util::FutureExt;

use super::cursor::Cursor;
use super::upkeep::Chore;
use super::writer::{Step, Writer};
use super::*;
use crate::contract::{Disposition, Take};
use crate::tests::{Counts, outputs, value, values};
use audit::{LevelCounts, ListEnds};
use base::position::Position;
use testing::simulated_disk::SimulatedDisk;
use testing::{Failing, is_alone, seeds};

mod alone;
mod aside;
mod damage;
mod foreign;
mod optional;
mod power;
mod simulation;
mod threads;

const ALL: Take = Take { bytes: u64::MAX, events: u64::MAX };

/// The next action of the writer's thread or of the upkeep's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Step(Step),
    Chore(Chore),
}

impl From<Step> for Work {
    fn from(step: Step) -> Self {
        Self::Step(step)
    }
}

impl From<Chore> for Work {
    fn from(chore: Chore) -> Self {
        Self::Chore(chore)
    }
}

impl Work {
    fn perform(self, writer: &mut Writer) {
        match self {
            Self::Step(step) => writer.perform(step),
            Self::Chore(chore) => writer.keep_up(chore),
        }
    }
}

/// A queue on one thread, on a disk that does what the test says.
struct Scene {
    disk: SimulatedDisk,
    queue: Queue,
    writer: Writer,
    cursors: Vec<Cursor>,
    counts: Vec<Counts>,
    telemetry: Telemetry,
    /// The number of events that were stored.
    sent: u64,
}

impl Scene {
    /// Opens the queue with these outputs: the name of each, and `true` if it is required. `change`
    /// changes the last one.
    fn open(
        disk: SimulatedDisk,
        config: &config::Queue,
        outputs: &[(&str, bool)],
        change: impl FnOnce(&mut Output),
    ) -> Self {
        let telemetry = Telemetry::new();
        let counts: Vec<_> = outputs.iter().map(|_| Counts::default()).collect();
        let output = |(counts, (name, required)): (&Counts, &(&str, bool))| {
            counts.output(&telemetry, name, *required)
        };
        let mut outputs: Vec<_> = counts.iter().zip(outputs).map(output).collect();
        change(outputs.last_mut().expect("one at least"));
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let opened = recovery::open(shared, Path::new("spool"), config, &telemetry, &outputs);
        let (queue, cursors, writer) = opened.expect("the disk is well");
        Self { disk, queue, writer, cursors, counts, telemetry, sent: 0 }
    }

    fn work(&mut self, work: impl Into<Work>) {
        work.into().perform(&mut self.writer);
    }

    fn append(&mut self, events: u64, bytes: usize) -> Result<Ticket, Refused> {
        let mut lines = Vec::new();
        (0..events).for_each(|event| write_line(self.sent + event, bytes, &mut lines));
        let (lines, levels) = (Bytes::from(lines), LevelCounts::default());
        self.queue.append(Append { lines, events, levels, list: None }, None)
    }

    /// Appends one event of this many bytes and writes it. Returns the response to its sender.
    fn send(&mut self, bytes: usize) -> Result<(), Refused> {
        let mut ticket = self.append(1, bytes)?;
        self.work(Step::Commit);
        let answer = ticket.acknowledged().now_or_never().expect("it is told");
        self.sent += u64::from(answer.is_ok());
        answer
    }

    /// Lets the first output take and finish all events.
    fn deliver(&mut self) {
        self.deliver_to(0);
        assert_eq!(self.counts[0].delivered(), self.sent);
    }

    fn deliver_to(&mut self, output: usize) {
        let cursor = &mut self.cursors[output];
        loop {
            while let Some(batch) = cursor.next(ALL) {
                cursor.acknowledge(batch.claim, Disposition::default());
            }
            let Some(job) = cursor.job(false) else { break };
            let loaded = self.queue.shared.read(&job).expect("the disk is well");
            cursor.take_in(job.epoch, loaded);
        }
    }
}

fn settings(max_bytes: u64, segment_bytes: u64, when_full: WhenFull) -> config::Queue {
    let config = config::read(config::EMBEDDED, testing_config::TYPES).config.expect("it is right");
    config::Queue { max_bytes, segment_bytes, when_full, ..config.queue }
}

/// Makes a batch of these lines. If `is_list` is `true`, it is a JSON list as it was received.
fn append(mut lines: Vec<u8>, events: u64, is_list: bool) -> Append {
    let ends = memchr::memchr_iter(b'\n', &lines).map(|end| u32::try_from(end).expect("it fits"));
    let list = is_list.then(|| ListEnds::from_iter(ends));
    for end in list.iter().flat_map(ListEnds::iter) {
        lines[end] = if end + 1 == lines.len() { b']' } else { b',' };
    }
    Append { lines: Bytes::from(lines), events, levels: LevelCounts::default(), list }
}

/// Appends the line of an event to `lines`, `length` bytes in all: its number, and then letters.
fn write_line(number: u64, length: usize, lines: &mut Vec<u8>) {
    let begin = lines.len();
    lines.extend(number.to_string().bytes());
    lines.push(b' ');
    let filler = b'a' + u8::try_from(number % 26).expect("a letter");
    lines.resize((begin + length - 1).max(lines.len()), filler);
    lines.push(b'\n');
}
