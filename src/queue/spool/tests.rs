//! The queue in files: a simulation against a model, damage of every kind, and many threads on a
//! real disk.

use std::ops::Range;

use super::upkeep::Chore;
use super::writer::Step;
use super::writer::Writer;
use super::*;
use crate::config;
use crate::position::Position;
use crate::queue::tests::Counts;
use crate::queue::tests::outputs;
use crate::queue::tests::value;
use crate::queue::tests::values;
use crate::tests::Failing;
use crate::tests::is_alone;
use crate::tests::seeds;

mod alone;
mod before;
mod damage;
mod optional;
mod simulation;
mod threads;

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

fn settings(max_bytes: u64, segment_bytes: u64, when_full: WhenFull) -> config::Queue {
    let config = config::read(config::EMBEDDED, crate::output::TYPES).config.expect("it is right");
    config::Queue { max_bytes, segment_bytes, when_full, ..config.queue }
}

/// Appends an event's line to `lines`: its number and letters, `length` bytes in all.
fn write_line(number: u64, length: usize, lines: &mut Vec<u8>) {
    let begin = lines.len();
    lines.extend(number.to_string().bytes());
    lines.push(b' ');
    let filler = b'a' + u8::try_from(number % 26).expect("a letter");
    lines.resize((begin + length - 1).max(lines.len()), filler);
    lines.push(b'\n');
}
