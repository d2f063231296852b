//! The queue in files against a model that is too simple to be wrong, on a disk that forgets
//! writes, stores parts of them, and refuses operations.
//!
//! Everything happens on one thread. The test itself performs the writer's steps and the cursors'
//! reads, each when chance decides so, in any order in which the threads might perform them. A seed
//! gives the same run each time.
//!
//! The model is the log, event by event, with the fate of each event for each output. After every
//! step the test compares the queue's backlogs, counters, segments and sizes with the model. The
//! model asks the queue only about things that the queue may choose (which segments are dropped,
//! how old a saved cursor is), and then checks that the choice was allowed.
//!
//! An event is known by its number, which its line begins with. After a crash, a batch whose sender
//! was told nothing may be in the log or not. The model learns the numbers of this batch when the
//! first output receives it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fastrand::Rng;
use rustix::io::Errno;
use tokio::sync::oneshot::error::TryRecvError;

use super::super::load::{Job, Loaded};
use super::*;
use crate::claims::Stage;
use crate::contract::{Batch, Claim, Redelivery};
use crate::outputs::signed;
use crate::segment::RecordHeader;
use crate::{identity, segment};
use base::disk::{QUARANTINE, SEGMENTS, SPARES};
use testing::simulated_disk::Operation;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// The likelihoods and settings of one simulation.
#[derive(Debug, Clone)]
struct Profile {
    /// The number of crashes in a thousand steps.
    crashes: u32,
    /// The number of restarts of the process, orderly or not, in a thousand steps.
    restarts: u32,
    /// The number of changes of the disk's faults in a thousand steps.
    faults: u32,
    /// The number of times in a thousand steps that an output joins, leaves, or becomes required or
    /// optional, or that other settings are applied.
    changes: u32,
    when_full: &'static [WhenFull],
    /// The value of `queue.max_bytes`, in segments.
    segments: std::ops::RangeInclusive<u64>,
}

struct Sent {
    /// The number of the batch's first event.
    first: u64,
    /// The length of each line, in bytes.
    lengths: Vec<usize>,
    told: Told,
}

/// The model's knowledge about a batch's fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Waiting,
    /// The batch was not written, and must never be seen.
    Never,
    /// The batch was written, and its sender was told nothing. The batch may be there after a
    /// crash.
    Perhaps,
    Stored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Waiting,
    Finished,
    Lost,
}

/// The choice of the released claim that is taken again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    First,
    Any,
}

/// A read for a cursor, which in the real queue runs on a thread of its own.
enum Loading {
    Asked(Job),
    Done(u64, Loaded),
}

/// One output of the current process, as the model knows it.
struct Output {
    name: String,
    required: bool,
    /// If true, the output finishes its claims in order, and rewinds. If false, it releases single
    /// claims.
    ordered: bool,
    counts: Counts,
    /// The part of the output's losses that was counted while the output was not in the config.
    counted: u64,
    /// The fate of each event, by position.
    fates: Vec<Fate>,
    read: u64,
    /// The claims, by their first position: the position after the last, and whether the claim is
    /// on the wire or released.
    claims: BTreeMap<u64, (u64, Stage)>,
    /// Claims that were dropped while they were released, or on the wire of an optional output. The
    /// output has not been told yet.
    dropped: Vec<Claim>,
    start: i64,
    /// The number of events that were delivered or filtered.
    finished: u64,
    filtered: [u64; 2],
    lost: u64,
    /// The lowest position that the cursors file may hold for this output.
    saved: u64,
    /// True if the cursors file names this output.
    named: bool,
    /// The end of the log when the output joined.
    joined: u64,
    /// True while the bytes of the backlog are an estimate, because a claim was split.
    guessed: bool,
    /// True if the bytes were an estimate at any time.
    has_guessed: bool,
    loading: Option<Loading>,
}

impl Output {
    /// Returns the first position that is not finished, twice: before and after the cursor has
    /// passed the dropped events that are next.
    fn watermark(&self) -> (u64, u64) {
        let Some((start, _)) = self.claims.first_key_value() else {
            return (self.read, self.next().unwrap_or(self.fates.len() as u64));
        };
        (*start, *start)
    }

    /// Returns the next position that the output has to take, or `None` if there is none.
    fn next(&self) -> Option<u64> {
        let unread = self.fates.get(index(self.read)..)?;
        let next = unread.iter().position(|fate| *fate == Fate::Waiting)?;
        Some(self.read + next as u64)
    }

    fn waiting(&self) -> u64 {
        self.fates.iter().filter(|fate| **fate == Fate::Waiting).count() as u64
    }

    fn first(&self) -> Option<Claim> {
        self.claims.first_key_value().map(|(start, (end, _))| Claim::of(*start, *end))
    }

    fn pick(&self, rng: &mut Rng, stages: &[Stage]) -> Option<Claim> {
        let of_stage = self.claims.iter().filter(|(_, (_, stage))| stages.contains(stage));
        let claims = of_stage.map(|(start, (end, _))| Claim::of(*start, *end));
        rng.choice(claims.collect::<Vec<_>>())
    }

    /// Gives this fate to the waiting ones of these positions. Returns their number.
    fn settle(&mut self, positions: Range<u64>, fate: Fate) -> u64 {
        let mut count = 0;
        for old in &mut self.fates[index(positions.start)..index(positions.end)] {
            if *old == Fate::Waiting {
                *old = fate;
                count += 1;
            }
        }
        *(if fate == Fate::Lost { &mut self.lost } else { &mut self.finished }) += count;
        count
    }

    /// Drops a segment. Returns how many of its events the output had not finished.
    fn drop_segment(&mut self, positions: &Range<u64>) -> u64 {
        let inside: Vec<Claim> = self
            .claims
            .range(..positions.end)
            .map(|(start, (end, _))| Claim::of(*start, *end))
            .filter(|claim| claim.end > Position::new(positions.start))
            .collect();
        for claim in inside {
            let (_, stage) = self.claims.remove(&claim.start.get()).expect("it is there");
            let may_be = stage == Stage::Released || !self.required;
            assert!(may_be, "{}: {claim:?} is dropped", self.name);
            assert!(
                positions.start <= claim.start.get() && claim.end <= Position::new(positions.end)
            );
            self.dropped.push(claim);
        }
        if positions.contains(&self.read) {
            self.read = positions.end;
        }
        self.settle(positions.clone(), Fate::Lost)
    }
}

/// The positions at which an output may continue after a start.
#[derive(Debug, Clone, Copy)]
struct Known {
    from: u64,
    to: u64,
    named: bool,
    joined: u64,
    guessed: bool,
    /// True if the output has left, or did not complete its joining. The positions above are then
    /// only one possibility for its beginning.
    free: bool,
}

#[derive(Default, Clone)]
struct Left {
    counts: Counts,
    finished: u64,
    filtered: [u64; 2],
    lost: u64,
    counted: u64,
}

struct Process {
    telemetry: Telemetry,
    queue: Queue,
    /// `None` once the writer has ended.
    writer: Option<Writer>,
    cursors: Vec<Cursor>,
}

#[derive(Debug, Default)]
struct Tally {
    events: u64,
    delivered: u64,
    starts: u64,
    crashes: u64,
    /// Crashes in the middle of an operation, not between two.
    inside: u64,
    /// Batches whose senders were told nothing, and that were found after a crash.
    untold: u64,
    dropped: u64,
    faults: u64,
    full: u64,
    loads: u64,
    ambiguous: u64,
    joined: u64,
    not_joined: u64,
    left: u64,
    /// Events that only optional outputs lost because room was needed.
    spared: u64,
    /// Segments whose files had been other segments before.
    reused: u64,
}

struct Simulation {
    talks: bool,
    profile: Profile,
    rng: Rng,
    disk: SimulatedDisk,
    config: config::Queue,
    /// The limit of the queue's size. It is more than `max_bytes` if the queue held more when
    /// `max_bytes` became less.
    bound: u64,
    /// The likelihood of an append, in per cent of the steps that are nothing else.
    pressure: u32,
    sent: Vec<Sent>,
    /// The number of the event at each position. `None` if a start has found the event, and no
    /// output has received it yet.
    log: Vec<Option<u64>>,
    /// The positions that were dropped at least once.
    dropped: BTreeSet<u64>,
    /// The segments that left the log, by first position, with the position after the last. After a
    /// start, the file of such a segment may exist again, while that of the next segment does not.
    removed: BTreeMap<u64, u64>,
    known: BTreeMap<String, Known>,
    /// True if the machine will crash at one of the next operations.
    armed: bool,
    /// True if an operation is set to fail.
    failing: bool,
    /// True if an operation was set to fail since the machine started.
    faulty: bool,
    /// True if a process found records that the one before could not sync. If the disk also refuses
    /// to store them again, a crash may remove these records.
    shaky: bool,
    /// True if the records that were found can't be judged. The run then ends.
    ambiguous: bool,

    process: Option<Process>,
    outputs: Vec<Output>,
    /// The outputs that have left since the process started, by name.
    left: BTreeMap<String, Left>,
    waiting: VecDeque<(usize, Ticket)>,
    accepted: u64,
    dropped_newest: u64,
    dropped_oldest: u64,
    tally: Tally,
}

fn index(position: u64) -> usize {
    usize::try_from(position).expect("a small log")
}

/// Prints each step if the environment asks for one seed.
macro_rules! say {
    ($simulation:expr, $($what:tt)+) => {
        if $simulation.talks {
            println!($($what)+);
        }
    };
}

impl Simulation {
    fn new(seed: u64, profile: Profile, tally: Tally) -> Self {
        let mut rng = Rng::with_seed(seed);
        let segment_bytes = rng.choice([16 << 10, 20 << 10, 32 << 10, 64 << 10]).expect("one");
        let max_bytes = (segment_bytes * rng.u64(profile.segments.clone())).max(256 << 10);
        let when_full = *rng.choice(profile.when_full).expect("one");
        let disk = SimulatedDisk::new(seed);
        let mut simulation = Self {
            talks: is_alone(),
            profile,
            pressure: rng.u32(5..60),
            rng,
            disk,
            config: settings(max_bytes, segment_bytes, when_full),
            bound: max_bytes,
            sent: Vec::new(),
            log: Vec::new(),
            dropped: BTreeSet::new(),
            removed: BTreeMap::new(),
            known: BTreeMap::new(),
            armed: false,
            failing: false,
            faulty: false,
            shaky: false,
            ambiguous: false,
            process: None,
            outputs: Vec::new(),
            left: BTreeMap::new(),
            waiting: VecDeque::new(),
            accepted: 0,
            dropped_newest: 0,
            dropped_oldest: 0,
            tally,
        };
        say!(simulation, "{segment_bytes} of {max_bytes}, {when_full:?}");
        simulation.start();
        simulation
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    fn state(&self) -> MutexGuard<'_, SpoolState> {
        self.process.as_ref().expect("it runs").queue.shared.lock()
    }

    // Functions about the log.

    /// Returns the index of the batch in `sent` that holds an event, and the index of the event in
    /// the batch.
    fn find(&self, number: u64) -> (usize, usize) {
        let sent = self.sent.partition_point(|sent| sent.first <= number) - 1;
        (sent, index(number - self.sent[sent].first))
    }

    fn length(&self, position: u64) -> Option<u64> {
        let (sent, event) = self.find(self.log[index(position)]?);
        Some(self.sent[sent].lengths[event] as u64)
    }

    /// Learns the numbers of a batch whose sender was told nothing, when the first output receives
    /// it.
    fn learn(&mut self, position: u64, lines: &[u8]) {
        let end = lines.iter().position(|byte| *byte == b' ').expect("a number, and a space");
        let number = std::str::from_utf8(&lines[..end]).expect("a number").parse();
        let number = number.expect("a number");
        let (sent, event) = self.find(number);
        let batch = &mut self.sent[sent];
        let is_long = needed(batch.lengths.iter().sum::<usize>() as u64) > GROUP_BYTES;
        if event > 0 {
            // A crash may leave the first records of a long batch.
            assert!(is_long, "the front of batch {sent} is missing");
            let before = position.checked_sub(1).and_then(|before| self.log[index(before)]);
            assert_eq!(before, Some(number - 1), "position {position}");
            self.log[index(position)] = Some(number);
            return;
        }
        assert_eq!(batch.told, Told::Perhaps, "position {position}, batch {sent}");
        batch.told = Told::Stored;
        let learnt = if is_long { 1 } else { batch.lengths.len() };
        for (event, position) in (batch.first..).zip(position..).take(learnt) {
            let slot = self.log.get_mut(index(position));
            assert_eq!(slot, Some(&mut None), "batch {sent} is not there as a whole");
            self.log[index(position)] = Some(event);
        }
        self.tally.untold += 1;
    }

    /// Compares a batch that an output has taken with the log.
    fn compare(&mut self, batch: &Batch) {
        assert_eq!(batch.events, batch.claim.end - batch.claim.start);
        let ends = batch.ends.iter().map(Option::is_some).chain(std::iter::repeat(false));
        for (piece, is_list) in batch.pieces.iter().zip(ends) {
            assert_eq!(crate::is_list(piece), is_list, "whole events");
        }
        let got: Vec<u8> = batch.events().flat_map(|event| [event, b"\n"].concat()).collect();
        assert_eq!(batch.bytes, got.len() as u64);
        assert_eq!(batch.bytes, batch.pieces.iter().map(|piece| piece.len() as u64).sum::<u64>());
        let mut wanted = Vec::with_capacity(got.len());
        for position in batch.claim.numbers() {
            if self.log[index(position)].is_none() {
                self.learn(position, &got[wanted.len().min(got.len())..]);
            }
            let number = self.log[index(position)].expect("it was learned");
            let (sent, event) = self.find(number);
            write_line(number, self.sent[sent].lengths[event], &mut wanted);
        }
        assert!(got == wanted, "{:?} is not as it was sent", batch.claim);
        assert_eq!(batch.acceptances.len(), batch.pieces.len());
        let mut next = batch.claim.start;
        for (acceptance, piece) in batch.acceptances.iter().zip(&batch.pieces) {
            // No event of the test has one of these bytes.
            let events = piece.iter().filter(|byte| b"\n,]".contains(byte)).count() as u64;
            assert_eq!((acceptance.first, acceptance.events), (next, events), "{:?}", batch.claim);
            next += events;
        }
    }

    // Functions that act on the queue.

    fn batch(&mut self) -> (u64, Vec<usize>) {
        let first = self.sent.last().map_or(0, |last| last.first + last.lengths.len() as u64);
        let segment = self.config.segment_bytes;
        let bytes = match self.rng.u8(..20) {
            0..6 => self.rng.u64(1..200),
            6..11 => self.rng.u64(1..3000),
            11..18 => self.rng.u64(1..16_000),
            18 => self.rng.u64(1..segment * 5 / 4),
            _ => self.rng.u64(1..self.config.max_bytes / 2),
        };
        // One batch in ten ends where a block does, or a few bytes from there.
        let bytes = match self.rng.u8(..10) {
            0 => (bytes.next_multiple_of(BLOCK) - RECORD_HEADER)
                .saturating_add_signed(self.rng.i64(-9..9)),
            _ => bytes,
        };
        let most = if self.rng.bool() { 3 } else { 60 };
        let events = self.rng.u64(1..=most).min(bytes.div_ceil(12));
        let mut lengths: Vec<usize> = Vec::new();
        let mut left = bytes.max(events * 12);
        for rest in (0..events).rev() {
            let length = match rest {
                0 => left,
                _ => self.rng.u64(12..=(left - rest * 12).min(left / (rest + 1) * 2).max(12)),
            };
            lengths.push(index(length));
            left -= length;
        }
        (first, lengths)
    }

    fn append(&mut self) {
        let (first, lengths) = self.batch();
        self.send(first, lengths);
    }

    /// Appends a batch. Returns true if it waits to be written.
    fn send(&mut self, first: u64, lengths: Vec<usize>) -> bool {
        let mut lines = Vec::new();
        for (number, length) in (first..).zip(&lengths) {
            write_line(number, *length, &mut lines);
        }
        let (bytes, events) = (lines.len() as u64, lengths.len() as u64);
        let is_list = needed(bytes) <= GROUP_BYTES && self.rng.bool();
        let append = append(lines, events, is_list);
        let before = self.segments();
        let fault = self.state().writing.health.error.is_some();
        let queue = self.process().queue.clone();
        let admitted = queue.admits(bytes);
        let taken = queue.append(append, None);
        let opens = self.state().writing.waiting.back().and_then(|waiting| waiting.opens);
        let after = self.segments();
        let new: Vec<_> = before.into_iter().filter(|segment| !after.contains(segment)).collect();
        let outcome = taken.as_ref().map(|_| ()).map_err(|refused| *refused);
        say!(
            self,
            "append {} events of {bytes} bytes from {first}: {outcome:?}, opens {opens:?}, drops {new:?}",
            lengths.len()
        );
        assert_eq!(outcome == Err(Refused::Disk), fault, "{outcome:?}");
        assert!(new.is_empty() || outcome.is_ok(), "all or nothing");
        let when_full = self.config.when_full;
        match when_full {
            WhenFull::Reject => assert_eq!(admitted, outcome),
            WhenFull::DropOldest => assert_eq!(admitted.is_err(), fault),
            WhenFull::DropNewest => assert!(outcome != Err(Refused::Full) && admitted == outcome),
        }
        for range in new {
            self.dropped(range, when_full == WhenFull::DropOldest);
        }
        self.tally.full += u64::from(outcome == Err(Refused::Full));
        if outcome == Err(Refused::Full) && when_full == WhenFull::Reject {
            self.check_full(bytes);
        }
        let Ok(ticket) = taken else { return false };
        if ticket.waits.is_none() {
            assert_eq!(when_full, WhenFull::DropNewest);
            self.dropped_newest += events;
            return false;
        }
        self.waiting.push_back((self.sent.len(), ticket));
        self.sent.push(Sent { first, lengths, told: Told::Waiting });
        true
    }

    /// Checks the fill level of a queue that has refused a batch with this many bytes of lines. The
    /// needed bytes, the bytes that are promised to other batches, and the active segment must
    /// leave no room for the batch.
    fn check_full(&self, bytes: u64) {
        let shared = &self.process.as_ref().expect("it runs").queue.shared;
        let state = shared.lock();
        let active = state.log.segments.back().filter(|last| last.active);
        let others = state.writing.accounting.reserved_new() + active.map_or(0, |it| it.size);
        let (held, wanted) = (shared.needed_bytes(&state), FIRST_RECORD + needed(bytes));
        assert!(held + others + wanted + BLOCK > shared.usable(), "{held}, and is full");
    }

    fn segments(&self) -> Vec<Range<u64>> {
        let numbers = |segment: &Segment| segment.first.position.get()..segment.end.position.get();
        self.state().log.segments.iter().map(numbers).collect()
    }

    /// Notes that a segment is gone, and checks that this is allowed. `drop_oldest` is true if it
    /// may have had events that required outputs needed.
    fn dropped(&mut self, range: Range<u64>, drop_oldest: bool) {
        let mut required = self.outputs.iter().filter(|output| output.required);
        let is_spare = required.all(|output| output.watermark().1 >= range.end);
        assert!(is_spare || drop_oldest, "{range:?} is gone, and needed: {}", self.shown());
        let mut most = 0;
        for output in &mut self.outputs {
            let lost = output.drop_segment(&range);
            match output.required {
                true => most = lost.max(most),
                false => self.tally.spared += lost,
            }
        }
        self.dropped_oldest += most;
        self.tally.dropped += most;
        self.dropped.extend(range);
    }

    /// Lets a sender leave before it has its response.
    fn withdraw(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let chosen = self.rng.usize(..self.waiting.len());
        let (sent, ticket) = self.waiting.remove(chosen).expect("it is there");
        say!(self, "the sender of batch {sent} goes");
        drop(ticket);
        self.sent[sent].told = Told::Never;
    }

    fn due(&self) -> Vec<Work> {
        let writer = self.process.as_ref().and_then(|process| process.writer.as_ref());
        let is_idle = writer.is_none_or(Writer::is_idle);
        let state = self.state();
        let well = state.writing.health.error.is_none();
        let mut due = Vec::new();
        due.extend((!well).then_some(Work::Step(Step::Probe)));
        let commits = well && !state.writing.waiting.is_empty();
        due.extend(commits.then_some(Work::Step(Step::Commit)));
        due.extend(state.can_seal_for_room().then_some(Work::Step(Step::Seal)));
        due.extend(state.writing.saving.is_dirty.then_some(Work::Chore(Chore::Save)));
        due.extend((!state.writing.chores.ended.is_empty()).then_some(Work::Chore(Chore::Cut)));
        let deletes = state.can_reclaim() || !state.writing.accounting.stuck().is_empty();
        due.extend(deletes.then_some(Work::Chore(Chore::Reclaim)));
        let usable = self.process.as_ref().expect("it runs").queue.shared.usable();
        due.extend(state.wants_spare(usable).then_some(Work::Chore(Chore::Prepare)));
        assert!(due.is_empty() || !is_idle, "the writer sleeps, and {due:?} are due");
        due
    }

    /// Performs one step of the writer. Returns false if there was nothing to do.
    fn work(&mut self) -> bool {
        let due = self.due();
        let Some(work) = self.rng.choice(due) else { return false };
        let group = {
            let state = self.state();
            let later =
                state.writing.waiting.iter().skip(1).position(|waiting| waiting.opens.is_some());
            later.map_or(state.writing.waiting.len(), |later| later + 1)
        };
        let (before, told_full) = (self.segments(), self.state().writing.told_full);
        let reused = |simulation: &Self| {
            let state = simulation.state();
            state.log.segments.back().filter(|last| last.reused).map(|last| last.first)
        };
        let last = reused(self);
        work.perform(self.process().writer.as_mut().expect("it works"));
        self.tally.reused += u64::from(reused(self).is_some_and(|new| Some(new) != last));
        self.note_dropped(before, told_full);
        self.hear(if work == Work::Step(Step::Commit) { group } else { 0 });
        self.note_saved();
        say!(self, "{work:?}: {}", self.shown());
        true
    }

    /// Notes segments that the writer has deleted although optional outputs needed them. The writer
    /// may do so if the disk was full, or if the queue was full except for the active segment.
    fn note_dropped(&mut self, before: Vec<Range<u64>>, told_full: bool) {
        let after = self.segments();
        for range in before.into_iter().filter(|segment| !after.contains(segment)) {
            // A segment that begins at the same position is the same segment, and has grown.
            if after.iter().any(|segment| segment.start == range.start) {
                continue;
            }
            self.removed.insert(range.start, range.end);
            let waits = |output: &Output| {
                let positions = index(range.start)..index(range.end);
                output.fates[positions].contains(&Fate::Waiting)
            };
            if self.outputs.iter().any(waits) {
                assert!(told_full || self.faulty, "{range:?} is gone: {}", self.shown());
                self.dropped(range, false);
            }
        }
    }

    /// Reads the responses to waiting senders. The first `written` batches may have been written.
    fn hear(&mut self, written: usize) {
        let end = self.state().log.end.position;
        let mut new = end - Position::new(self.log.len() as u64);
        let mut waiting = VecDeque::new();
        for (number, (sent, mut ticket)) in
            std::mem::take(&mut self.waiting).into_iter().enumerate()
        {
            let waits = ticket.waits.as_mut().expect("it was not answered");
            let answer = waits.done.try_recv();
            let batch = &mut self.sent[sent];
            let events = batch.lengths.len() as u64;
            if new > 0 {
                assert_eq!(answer, Ok(Ok(())), "batch {sent} is stored");
                assert!(new >= events, "a batch is stored whole, and in order");
                batch.told = Told::Stored;
                self.log.extend((batch.first..batch.first + events).map(Some));
                self.accepted += events;
                self.tally.events += events;
                new -= events;
                continue;
            }
            match answer {
                Err(TryRecvError::Empty) => waiting.push_back((sent, ticket)),
                Ok(Err(Refused::Disk)) => {
                    batch.told = if number < written { Told::Perhaps } else { Told::Never };
                }
                other => panic!("batch {sent} is not stored, and told: {other:?}"),
            }
        }
        assert_eq!(new, 0, "nobody has sent the last events");
        self.waiting = waiting;
        for output in &mut self.outputs {
            output.fates.resize(self.log.len(), Fate::Waiting);
        }
    }

    fn shown(&self) -> String {
        let state = self.state();
        let segments = state.log.segments.iter().map(|segment| {
            let (first, end) = (segment.first.position, segment.end.position);
            let active = if segment.active { "*" } else { "" };
            format!("{first}..{end}({}){active}", segment.size)
        });
        format!(
            "end {}, segments {:?}, doomed {:?}, stuck {:?}, fault {:?}, {} wait, free {}, opening {}",
            state.log.end.position,
            segments.collect::<Vec<_>>(),
            state.writing.accounting.pending_delete(),
            state.writing.accounting.stuck(),
            state.writing.health.error,
            state.writing.waiting.len(),
            state.writing.accounting.segment_free(),
            state.writing.accounting.reserved_new()
        )
    }

    /// Lets an output take its next claim. Returns false if there was none.
    fn next(&mut self, chosen: usize, take: Take) -> bool {
        let lists = self.rng.bool();
        let got = self.process().cursors[chosen].next_as(take, lists);
        if let Some(batch) = &got {
            assert!(lists || batch.ends.is_empty(), "lines were asked for");
        }
        let cursor = &self.process().cursors[chosen];
        let (ready, job) = (cursor.is_ready(), cursor.job(false));
        let output = &self.outputs[chosen];
        let next = output.next();
        say!(self, "{} takes {take:?}: {:?}", output.name, got.as_ref().map(|got| got.claim));
        let Some(got) = got else {
            assert!(!ready, "{} says that there is something, and gives nothing", output.name);
            assert!(next.is_none() || job.is_some(), "{} stands at {next:?}", output.name);
            return false;
        };
        assert_eq!(Some(got.claim.start.get()), next, "{} skips, or goes back", output.name);
        let fits = got.bytes <= take.bytes && got.events <= take.events;
        assert!(fits || got.events == 1, "within its bounds, or one event");
        self.compare(&got);
        let output = &mut self.outputs[chosen];
        let Claim { start, end } = got.claim;
        let fates = &output.fates[index(start.get())..index(end.get())];
        assert!(fates.iter().all(|fate| *fate == Fate::Waiting), "it had some of {start}..{end}");
        output.guessed &= !output.claims.is_empty();
        output.claims.insert(start.get(), (end.get(), Stage::OnWire));
        output.read = end.get();
        if self.rng.bool() {
            self.ask(chosen, true);
        }
        true
    }

    fn finish(&mut self, chosen: usize, lose: bool) {
        let output = &mut self.outputs[chosen];
        let claim = match output.ordered {
            true => output.first(),
            false => output.pick(&mut self.rng, &[Stage::OnWire]),
        };
        let Some(claim) = claim else { return };
        let mut rest = claim.end - claim.start;
        let mut some = || {
            let some = if lose { self.rng.u64(0..=rest) } else { 0 };
            rest -= some;
            some
        };
        let (lost, dropped, duplicate) = (some(), some(), some());
        let fate = Disposition { lost, dropped, duplicate, ..Default::default() };
        say!(self, "{} finishes {claim:?}, {fate:?}", self.outputs[chosen].name);
        let output = &mut self.outputs[chosen];
        output.claims.remove(&claim.start.get());
        output.settle(claim.start.get()..claim.end.get() - lost, Fate::Finished);
        output.settle(claim.end.get() - lost..claim.end.get(), Fate::Lost);
        output.filtered = [output.filtered[0] + dropped, output.filtered[1] + duplicate];
        self.tally.delivered += claim.end - claim.start - lost;
        self.process().cursors[chosen].acknowledge(claim, fate);
    }

    fn release(&mut self, chosen: usize) {
        let output = &mut self.outputs[chosen];
        let Some(claim) = output.pick(&mut self.rng, &[Stage::OnWire]) else { return };
        if output.ordered {
            return;
        }
        output.claims.insert(claim.start.get(), (claim.end.get(), Stage::Released));
        say!(self, "{} releases {claim:?}", self.outputs[chosen].name);
        self.process().cursors[chosen].release(claim);
    }

    fn split(&mut self, chosen: usize) {
        let output = &mut self.outputs[chosen];
        // An output that finishes in order splits its first claim anywhere. Another output splits
        // any claim in half, to send the halves again.
        let ordered = output.ordered;
        let picked = match ordered {
            true => output.first(),
            false => output.pick(&mut self.rng, &[Stage::OnWire, Stage::Released]),
        };
        let Some(claim) = picked else { return };
        let events = claim.end - claim.start;
        let middle = claim.start + if ordered { self.rng.u64(0..=events) } else { events / 2 };
        let cursor = &mut self.process().cursors[chosen];
        let split = cursor.split_at(claim, middle);
        say!(self, "{} splits {claim:?}: {split:?}", self.outputs[chosen].name);
        assert_eq!(split.is_some(), (claim.start + 1..claim.end).contains(&middle));
        let Some((left, right)) = split else { return };
        let parts = (left.start, left.end, right.start, right.end);
        assert_eq!(parts, (claim.start, middle, middle, claim.end));
        let output = &mut self.outputs[chosen];
        let (_, stage) = output.claims[&claim.start.get()];
        output.claims.insert(left.start.get(), (left.end.get(), stage));
        output.claims.insert(right.start.get(), (right.end.get(), stage));
        (output.guessed, output.has_guessed) = (true, true);
    }

    fn rewind(&mut self, chosen: usize) {
        let is_in_order = self.process().cursors[chosen].with(|it| it.claims.is_in_order());
        let output = &mut self.outputs[chosen];
        assert!(is_in_order || !output.ordered, "{} finishes in order", output.name);
        if !is_in_order {
            return;
        }
        let behind = &output.fates[index(output.watermark().0)..index(output.read)];
        assert!(!behind.contains(&Fate::Finished), "{} is not in order", output.name);
        output.read = output.watermark().0;
        output.claims.clear();
        say!(self, "{} rewinds to {}", self.outputs[chosen].name, self.outputs[chosen].read);
        self.process().cursors[chosen].rewind();
    }

    /// Takes a released claim again, to send it, or only to finish it (`only`). Returns false if
    /// there was none, or if it can't be taken yet.
    fn retake(&mut self, chosen: usize, which: Which, only: bool) -> bool {
        let Self { outputs, rng, .. } = self;
        let output = &mut outputs[chosen];
        if !output.dropped.is_empty() {
            let claim = output.dropped.swap_remove(rng.usize(..output.dropped.len()));
            say!(self, "{} asks for {claim:?}, which was dropped", self.outputs[chosen].name);
            let only_gone = self.rng.bool();
            let cursor = &mut self.process().cursors[chosen];
            if !only_gone {
                // The dropped claim was on the wire. Nothing that happens to it counts any more.
                cursor.release(claim);
                cursor.acknowledge(claim, Disposition::lost(1));
            }
            assert!(!cursor.take_back(claim), "it was dropped");
            assert!(matches!(cursor.redeliver(claim), Redelivery::Gone), "it was dropped");
            return true;
        }
        let picked = match which {
            Which::First => output.first(),
            Which::Any => output.pick(rng, &[Stage::Released]),
        };
        let Some(claim) = picked else { return false };
        if only {
            assert!(self.process().cursors[chosen].take_back(claim), "it was not dropped");
        } else {
            let retaken = self.process().cursors[chosen].redeliver(claim);
            say!(self, "{} takes {claim:?} again: {retaken:?}", self.outputs[chosen].name);
            match retaken {
                Redelivery::Batch(batch) => {
                    assert_eq!(batch.claim, claim);
                    self.compare(&batch);
                }
                Redelivery::Gone => panic!("{claim:?} was not dropped"),
                Redelivery::NotYet => {
                    let stands = self.process().cursors[chosen].job(false).is_none();
                    assert!(!stands, "nothing will ever bring {claim:?}");
                    return false;
                }
            }
        }
        self.outputs[chosen].claims.insert(claim.start.get(), (claim.end.get(), Stage::OnWire));
        true
    }

    fn ask(&mut self, chosen: usize, ahead: bool) {
        if self.outputs[chosen].loading.is_none() {
            let job = self.process().cursors[chosen].job(ahead);
            self.outputs[chosen].loading = job.map(Loading::Asked);
        }
    }

    fn load(&mut self, chosen: usize) {
        self.ask(chosen, false);
        let Some(loading) = self.outputs[chosen].loading.take() else { return };
        let process = self.process.as_mut().expect("it runs");
        let loading = match loading {
            Loading::Asked(job) => {
                self.tally.loads += 1;
                match process.queue.shared.read(&job) {
                    Ok(loaded) => Some(Loading::Done(job.epoch, loaded)),
                    Err(_) => {
                        assert!(self.faulty || self.disk.is_dead(), "it can be opened");
                        None
                    }
                }
            }
            Loading::Done(epoch, loaded) => {
                process.cursors[chosen].take_in(epoch, loaded);
                None
            }
        };
        self.outputs[chosen].loading = loading;
    }

    fn drain(&mut self, chosen: usize) {
        let mut patience = 0;
        loop {
            let output = &self.outputs[chosen];
            let progress = if output.claims.values().any(|(_, stage)| *stage == Stage::OnWire) {
                self.finish(chosen, false);
                true
            } else if !output.claims.is_empty() || !output.dropped.is_empty() {
                self.retake(chosen, Which::First, false)
            } else {
                self.next(chosen, ALL)
            };
            if progress {
                patience = 0;
                continue;
            }
            let output = &self.outputs[chosen];
            if output.claims.is_empty() && self.process().cursors[chosen].job(false).is_none() {
                assert_eq!(self.outputs[chosen].next(), None, "something is left");
                return;
            }
            // The first read may be useless, because it had begun before. Each later read brings a
            // claim, the lines of one segment, or the news that something is missing.
            patience += 1;
            let most = 10 + 3 * self.state().log.segments.len();
            let name = &self.outputs[chosen].name;
            assert!(patience < most, "{name} has read {patience} times for nothing");
            self.load(chosen);
            if self.disk.is_dead() {
                return;
            }
        }
    }
}

/// Functions about the machine: starts, ends, crashes and faults.
impl Simulation {
    /// Opens the queue. The machine may crash during this.
    fn start(&mut self) {
        let mut names: Vec<&str> = self
            .outputs
            .iter()
            .map(|it| NAMES.into_iter().find(|name| *name == it.name).expect("one"))
            .collect();
        if names.is_empty() {
            names = if self.rng.bool() { vec!["a"] } else { vec!["a", "b"] };
        } else if self.rng.u8(..5) == 0 {
            let amount = self.rng.usize(1..=3);
            names = self.rng.choose_multiple(NAMES, amount);
        }
        if self.rng.u8(..4) == 0 {
            let most = self.config.max_bytes / 4;
            self.config.segment_bytes = self.rng.u64((16 << 10)..=most.min(80 << 10));
            self.config.when_full = *self.rng.choice(self.profile.when_full).expect("one");
        }
        if !self.shaky && self.rng.u8(..3) == 0 {
            self.arm(12);
        }
        loop {
            self.tally.starts += 1;
            let telemetry = Telemetry::new();
            let (counts, mut outputs) = outputs(&telemetry, &names);
            let one = self.rng.usize(..outputs.len());
            for (index, output) in outputs.iter_mut().enumerate() {
                output.required = index == one || self.profile.changes == 0 || self.rng.bool();
            }
            let required = outputs.iter().map(|output| output.required).collect();
            let disk = Arc::new(self.disk.clone());
            let opened =
                recovery::open(disk, Path::new("spool"), &self.config, &telemetry, &outputs);
            if self.disk.is_dead() {
                say!(self, "crash at the start");
                self.power_off();
                self.leave_out(&names);
                continue;
            }
            match opened {
                Ok((queue, cursors, writer)) => {
                    self.process =
                        Some(Process { telemetry, queue, writer: Some(writer), cursors });
                    self.find_again(&names, counts, required);
                    return;
                }
                Err(error) => {
                    assert!(self.faulty, "{error}");
                    say!(self, "not opened: {error}");
                    self.calm();
                    self.leave_out(&names);
                }
            }
        }
    }

    /// Checks that the log, the cursors and the counters are right after a start.
    fn find_again(&mut self, names: &[&str], counts: Vec<Counts>, required: Vec<bool>) {
        let (end, holes, oldest, places, safe) = {
            let state = self.state();
            let oldest = state.log.segments.front().map_or(state.log.end, |segment| segment.first);
            let places: Vec<_> =
                state.log.cursors.iter().map(|(_, cursor)| cursor.claims.read).collect();
            (
                state.log.end.position,
                state.log.holes.clone(),
                oldest.position,
                places,
                !state.writing.saving.is_dirty,
            )
        };
        say!(self, "start with {names:?} at {places:?}: {}", self.shown());
        let before = self.log.len() as u64;
        assert!(end >= Position::new(before), "the end is {end}, it was {before}");
        if self.is_ambiguous(before) || self.has_holes() {
            self.ambiguous = true;
            self.tally.ambiguous += 1;
            return;
        }
        self.log.resize(index(end.get()), None);
        (self.accepted, self.dropped_newest, self.dropped_oldest) = (0, 0, 0);
        let mut holed = vec![false; self.log.len()];
        for position in holes.iter().flat_map(|hole| hole.start.get()..hole.end.get()) {
            assert!(self.dropped.contains(&position), "{position} was never dropped");
            holed[index(position)] = true;
        }
        let mut outputs = Vec::new();
        for (((name, counts), required), at) in names.iter().zip(counts).zip(required).zip(places) {
            let known = match self.known.get(*name) {
                Some(known) => {
                    // The output may stand before the dropped events, or after them.
                    let behind = (at.get()..end.get()).find(|position| !holed[index(*position)]);
                    let goes_on =
                        known.from <= behind.unwrap_or(end.get()) && at <= Position::new(known.to);
                    // Nothing was stored for the output, so it joins again.
                    let joins = !known.named
                        && (at == end || at == oldest)
                        && (known.joined == before || known.free);
                    assert!(goes_on || joins, "{name} is at {at}, not in {known:?}");
                    *known
                }
                None => {
                    assert!(at == end || at == oldest, "{name} is new, and at {at}");
                    Known {
                        from: 0,
                        to: end.get(),
                        named: false,
                        joined: end.get(),
                        guessed: false,
                        free: false,
                    }
                }
            };
            let fate = |(position, holed): (u64, &bool)| match holed {
                _ if position < at.get() => Fate::Finished,
                true => Fate::Lost,
                false => Fate::Waiting,
            };
            let mut output = Output {
                name: (*name).to_owned(),
                required,
                ordered: self.rng.bool(),
                counts,
                counted: 0,
                fates: (0..).zip(&holed).map(fate).collect(),
                read: at.get(),
                claims: BTreeMap::new(),
                dropped: Vec::new(),
                start: 0,
                finished: 0,
                filtered: [0; 2],
                lost: 0,
                saved: if safe { at.get() } else { known.from },
                named: safe || known.named,
                // An output that starts at the end has joined there, whatever it was before.
                joined: if at == end { end.get() } else { known.joined },
                guessed: known.guessed,
                has_guessed: known.guessed,
                loading: None,
            };
            output.start = signed(output.waiting());
            outputs.push(output);
        }
        self.left.clear();
        self.check_removed(names);
        self.leave_out(names);
        self.outputs = outputs;
        self.check();
        self.check_counters();
    }

    /// True if the log holds records whose senders were told nothing and that lack only their last
    /// byte, which is a line break. The same bytes appear if the last byte of an acknowledged
    /// record has become a zero. The queue therefore takes them for damage and counts their events
    /// as lost, which the model can't follow.
    fn is_ambiguous(&self, before: u64) -> bool {
        let (segment, seed, damaged) = match self.state().log.segments.back() {
            Some(last) if !last.damaged.is_empty() => (last.first, last.seed, last.damaged.clone()),
            Some(_) | None => return false,
        };
        let bytes = self.disk.contents(&segment::file_name(segment.position));
        let lacks_its_end = |offset: &u64| {
            let (header, lines) = bytes[index(*offset)..].split_at(index(RECORD_HEADER));
            let Some(header) = RecordHeader::decode(header, seed) else { return false };
            let Some((0, lines)) = lines[..index(header.length)].split_last() else { return false };
            header.first >= Position::new(before)
                && header.crc == seed.crc(&[lines, b"\n"].concat())
        };
        damaged.iter().all(lacks_its_end)
    }

    /// True if the log has a segment again that had left it, and the events after its own are
    /// missing. An output that no file names then begins at that segment, and counts the missing
    /// events as lost, which the model can't follow. A segment that was removed without events may
    /// have been made again at the same position, and does not count here.
    fn has_holes(&self) -> bool {
        let ended_earlier = |segment: &Range<u64>| {
            let removed = self.removed.get(&segment.start);
            removed.is_some_and(|end| segment.start < *end && *end < segment.end)
        };
        self.segments().iter().any(ended_earlier)
    }

    /// Checks that events which removed outputs had not received are counted as lost, as long as
    /// the cursors file names these outputs.
    fn check_removed(&mut self, names: &[&str]) {
        let telemetry = &self.process.as_ref().expect("it runs").telemetry;
        for (name, known) in self.known.iter().filter(|(name, _)| !names.contains(&name.as_str())) {
            let series = format!("error_total{{plugin=\"{name}\"}}");
            let counted = value(telemetry, &series).unwrap_or(0);
            // Events that were dropped, and are in the log again, may be counted again.
            let end = self.log.len() as u64;
            let least = (known.to..end).filter(|at| !self.dropped.contains(at)).count() as u64;
            let may_be = least..=end - known.from;
            let may_be_forgotten = counted == 0 && !known.named;
            assert!(may_be_forgotten || may_be.contains(&counted), "{name}: {counted}, {known:?}");
            self.left.insert(name.clone(), Left { counted, ..Left::default() });
        }
    }

    /// Notes that the outputs without these names may be missing in the cursors file, because a
    /// process without them may have written it, completely or not.
    fn leave_out(&mut self, names: &[&str]) {
        let end = self.log.len() as u64;
        for (_, known) in self.known.iter_mut().filter(|(name, _)| !names.contains(&name.as_str()))
        {
            (known.named, known.joined) = (false, end);
        }
    }

    /// Ends the process without notice, and records where the next one may find its outputs.
    fn stop(&mut self) {
        for (sent, _) in self.waiting.drain(..) {
            self.sent[sent].told = Told::Never;
        }
        for output in &self.outputs {
            let Output { saved: from, named, joined, has_guessed: guessed, .. } = *output;
            let to = output.watermark().1;
            let known = Known { from, to, named, joined, guessed, free: false };
            self.known.insert(output.name.clone(), known);
        }
        self.process = None;
    }

    fn power_off(&mut self) {
        self.tally.crashes += 1;
        self.tally.inside += u64::from(self.disk.is_dead());
        self.disk = self.disk.crash(&mut self.rng);
        (self.armed, self.faulty) = (false, self.failing);
    }

    fn calm(&mut self) {
        self.disk.calm();
        self.failing = false;
    }

    fn arm(&mut self, most: u64) {
        self.disk.crash_after(self.rng.u64(..most));
        self.armed = true;
    }

    fn crash(&mut self) {
        self.stop();
        if self.rng.bool() {
            self.calm();
        }
        self.power_off();
        self.start();
    }

    /// Ends the process, orderly or not, and starts another one. The machine continues.
    fn restart(&mut self, in_order: bool) {
        say!(self, "restart, in order: {in_order}");
        if in_order {
            self.end();
            if self.disk.is_dead() {
                return self.crash();
            }
        }
        if self.faulty && !self.shaky && (self.armed || self.rng.bool()) {
            return self.crash();
        }
        self.shaky |= self.faulty;
        self.stop();
        self.start();
    }

    fn end(&mut self) {
        self.state().writing.closed = true;
        let (before, told_full) = (self.segments(), self.state().writing.told_full);
        self.process().writer.take().expect("it works").end();
        self.note_dropped(before, told_full);
        self.hear(usize::MAX);
        assert!(self.waiting.is_empty(), "{} were never answered", self.waiting.len());
        self.note_saved();
    }

    /// If the cursors file is up to date, it holds all positions.
    fn note_saved(&mut self) {
        let safe = !self.state().writing.saving.is_dirty;
        if safe {
            // The file names only the outputs of this process.
            self.known.clear();
        }
        for output in self.outputs.iter_mut().filter(|_| safe) {
            (output.saved, output.named) = (output.watermark().0, true);
        }
    }

    fn fail_something(&mut self) {
        (self.failing, self.faulty) = (true, true);
        self.tally.faults += 1;
        match self.rng.u8(..9) {
            8 => {
                let name = self.rng.choice(self.disk.names()).expect("the cursors file at least");
                self.disk.undeletable(&name);
            }
            0 | 1 => self.calm(),
            2 => self.disk.faults(self.rng.choice([0.02, 0.1, 0.5, 1.0]).expect("one")),
            3 => self.disk.read_only(true),
            4 => {
                let inside = ["", SEGMENTS, SPARES].map(|name| self.disk.bytes_in(name));
                let held = inside.iter().sum::<u64>();
                self.disk.capacity(held + self.rng.u64(..self.config.segment_bytes));
            }
            _ => {
                let others = [Operation::Open, Operation::Read, Operation::List, Operation::Bytes];
                let operation = self
                    .rng
                    .choice(Operation::CHANGES.into_iter().chain(others).collect::<Vec<_>>())
                    .expect("one");
                let full = matches!(operation, Operation::Create | Operation::Write);
                let errors: &[Errno] =
                    if full { &[Errno::IO, Errno::NOSPC, Errno::DQUOT] } else { &[Errno::IO] };
                let error = *self.rng.choice(errors).expect("one");
                self.disk.fail(operation, self.rng.u64(..4), error);
            }
        }
    }

    fn step(&mut self) {
        let dice = self.rng.u32(..1000);
        let Profile { crashes, restarts, faults, changes, .. } = self.profile;
        if dice < crashes {
            if self.shaky {
                // Nothing happens: a crash could remove records that a process has found.
            } else if self.rng.u8(..4) == 0 {
                say!(self, "crash between two operations");
                self.crash();
            } else {
                // A crash matters most while a group is being written.
                if self.rng.bool() {
                    (0..self.rng.u8(1..5)).for_each(|_| self.append());
                }
                let most = if self.rng.bool() { 4 } else { 20 };
                self.arm(most);
            }
        } else if dice < crashes + restarts {
            let in_order = self.rng.bool();
            self.restart(in_order);
        } else if dice < crashes + restarts + faults {
            self.fail_something();
        } else if dice < crashes + restarts + faults + changes {
            self.change();
        } else if self.armed && self.rng.bool() {
            self.work();
        } else if self.rng.u32(..100) < self.pressure {
            self.append();
        } else {
            self.act();
        }
        if self.ambiguous {
            return;
        }
        if self.disk.is_dead() {
            say!(self, "crash at an operation");
            return self.crash();
        }
        self.check();
    }

    fn act(&mut self) {
        let chosen = self.rng.usize(..self.outputs.len());
        match self.rng.u8(..100) {
            0..30 => drop(self.work()),
            30..45 => {
                let take = Take { bytes: self.rng.u64(..20_000), events: self.rng.u64(..100) };
                self.next(chosen, take);
            }
            45..57 => {
                let lose = self.rng.u8(..10) == 0;
                self.finish(chosen, lose);
            }
            57..61 => self.release(chosen),
            61..66 => drop(self.retake(chosen, Which::Any, false)),
            66..68 => drop(self.retake(chosen, Which::Any, true)),
            68..71 => self.split(chosen),
            71..73 => self.rewind(chosen),
            73..92 => self.load(chosen),
            92..95 => self.withdraw(),
            95 => drop(self.settle()),
            _ => self.drain(chosen),
        }
    }

    // Functions that change outputs and settings, as a reload does.

    fn change(&mut self) {
        match self.rng.u8(..10) {
            0..4 => self.join(),
            4..6 => self.leave(),
            6..8 => self.require(),
            _ => self.apply(),
        }
    }

    /// True if another output than this one is required.
    fn can_spare(&self, chosen: usize) -> bool {
        let mut others = self.outputs.iter().enumerate();
        others.any(|(index, other)| index != chosen && other.required)
    }

    /// Lets an output join. The queue holds events for the output from its request on. The output
    /// has joined once the cursors file is saved with it. Sometimes that takes too long, and it
    /// does not join.
    fn join(&mut self) {
        let gone = |name: &&str| self.outputs.iter().all(|output| output.name != *name);
        let names: Vec<_> = NAMES.into_iter().filter(gone).collect();
        let Some(name) = self.rng.choice(names) else { return };
        let required = self.rng.bool();
        let Left { counts, finished, filtered, lost, counted } =
            self.left.remove(name).unwrap_or_default();
        let output = {
            let process = self.process();
            counts.output(&process.telemetry, name, required)
        };
        let at = self.log.len() as u64;
        say!(self, "{name} joins at {at}");
        let joining = self.process().queue.begin_to_join(output).expect("it has left");
        self.outputs.push(Output {
            name: name.to_owned(),
            required,
            ordered: self.rng.bool(),
            counts,
            counted,
            fates: vec![Fate::Finished; self.log.len()],
            read: at,
            claims: BTreeMap::new(),
            dropped: Vec::new(),
            start: signed(finished + lost + counted) - signed(self.accepted),
            finished,
            filtered,
            lost,
            saved: at,
            named: false,
            joined: at,
            guessed: false,
            has_guessed: false,
            loading: None,
        });
        for _ in 0..self.rng.u8(1..30) {
            if joining.is_saved() || self.disk.is_dead() {
                break;
            }
            match self.rng.bool() {
                true => self.append(),
                false => drop(self.work()),
            }
        }
        if joining.is_saved() {
            self.tally.joined += 1;
            let cursor = joining.end().expect("it has joined");
            self.process().cursors.push(cursor);
            let output = self.outputs.last_mut().expect("it joins");
            output.named = true;
            return;
        }
        self.tally.not_joined += 1;
        say!(self, "{name} has not joined");
        drop(joining);
        let output = self.outputs.pop().expect("it was to join");
        self.forget(output);
    }

    fn leave(&mut self) {
        let chosen = self.rng.usize(..self.outputs.len());
        if !self.can_spare(chosen) {
            return;
        }
        self.tally.left += 1;
        let lost = self.process().cursors.remove(chosen).remove(true);
        let mut output = self.outputs.remove(chosen);
        say!(self, "{} leaves, {lost} lost", output.name);
        assert_eq!(lost, output.waiting());
        output.lost += lost;
        self.forget(output);
    }

    /// Notes that an output is gone. The cursors file may still name it, or name it again.
    fn forget(&mut self, output: Output) {
        assert_eq!(output.counts.lost(), output.lost, "lost for {}", output.name);
        let (from, to) = (output.saved, output.watermark().1);
        // The file may not show yet that the output has left once before.
        let before = self.known.get(&output.name);
        let known = Known {
            from: before.map_or(from, |before| before.from.min(from)),
            to: before.map_or(to, |before| before.to.max(to)),
            named: false,
            joined: output.joined,
            guessed: output.has_guessed || before.is_some_and(|before| before.guessed),
            free: true,
        };
        self.known.insert(output.name.clone(), known);
        let Output { name, counts, finished, filtered, lost, counted, .. } = output;
        self.left.insert(name, Left { counts, finished, filtered, lost, counted });
    }

    fn require(&mut self) {
        let chosen = self.rng.usize(..self.outputs.len());
        let required = self.rng.bool();
        if required || self.can_spare(chosen) {
            self.outputs[chosen].required = required;
            let name = self.outputs[chosen].name.clone();
            say!(self, "{name} is required: {required}");
            self.process().queue.require(&name, required);
        }
    }

    /// Returns how many bytes the files of the queue may have now, besides copies of damage.
    fn taken(&self) -> u64 {
        let others = 2 * cursors::BYTES + synced::BYTES + identity::BYTES;
        self.state().writing.accounting.taken() + others
    }

    fn apply(&mut self) {
        let segment_bytes = self.rng.u64((16 << 10)..(80 << 10));
        let segments = self.rng.u64(self.profile.segments.clone());
        let when_full = *self.rng.choice(self.profile.when_full).expect("one");
        let max_bytes = (segment_bytes * segments).max(256 << 10);
        self.config = settings(max_bytes, segment_bytes, when_full);
        say!(self, "{segment_bytes} of {max_bytes}, {when_full:?}");
        self.bound = self.taken().max(max_bytes);
        let config = self.config.clone();
        self.process().queue.apply(&config);
    }

    /// Lets the writer do all its work. Returns true if the work came to an end.
    fn settle(&mut self) -> bool {
        (0..200).any(|_| !self.work() || self.disk.is_dead())
    }

    // Functions that check what must hold.

    fn check(&mut self) {
        self.note_saved();
        let state = self.process.as_ref().expect("it runs").queue.shared.lock();
        assert!(
            self.faulty || state.writing.health.error.is_none(),
            "{:?}",
            state.writing.health.error
        );
        assert_eq!(state.log.end.position, self.log.len() as u64);
        assert_eq!(state.writing.waiting.len(), self.waiting.len());
        assert_eq!(state.log.cursors.len(), self.outputs.len());
        for output in &self.outputs {
            let found = state.log.cursors.iter().find(|(_, it)| it.output.name == output.name);
            let (_, cursor) = found.expect("it has not left");
            let (name, backlog) = (&output.name, state.log.backlog(cursor));
            let fates = || (0..).zip(&output.fates);
            let waiting_at = || fates().filter(|(_, fate)| **fate == Fate::Waiting);
            let waiting = output.waiting();
            assert_eq!(backlog.events, waiting, "backlog of {name}");
            let [dropped, duplicate] = output.filtered;
            let delivered = output.finished - dropped - duplicate;
            assert_eq!(output.counts.delivered(), delivered, "delivered to {name}");
            assert_eq!(output.counts.filtered(), output.filtered, "filtered of {name}");
            assert_eq!(output.counts.lost(), output.lost, "lost for {name}");
            #[allow(clippy::cast_precision_loss, reason = "a small log")]
            let start = output.start as f64;
            assert_eq!(output.counts.start(), start, "start of {name}");
            assert_eq!(
                signed(self.accepted) + output.start,
                signed(output.finished + backlog.events + output.lost + output.counted),
                "conservation, {name}"
            );
            // Holes may have been joined. Only the sum of their bytes is known then.
            let read = cursor.claims.read;
            let is_within = state.log.holes.iter().any(|hole| hole.start < read && read < hole.end);
            if !output.guessed && !is_within {
                let waiting = waiting_at().map(|(position, _)| self.length(position));
                // The lengths of some events are not known yet.
                let bytes: Option<u64> = waiting.sum();
                let got = backlog.bytes;
                assert!(bytes.is_none_or(|bytes| bytes == got), "{name} has {got}, not {bytes:?}");
            }
            // A segment that an output still needs must be there.
            if let Some((oldest, _)) = waiting_at().next() {
                let holds =
                    |segment: &Segment| segment.positions().contains(&Position::new(oldest));
                assert!(state.log.segments.iter().any(holds), "{oldest} is gone, {name} needs it");
            }
        }
        let shared = &self.process.as_ref().expect("it runs").queue.shared;
        let (all, most) = (shared.held_bytes(&state), shared.needed_bytes(&state));
        assert!(most <= all, "{most} of {all} are needed");
        if state.log.required_watermark() == state.log.end.position {
            let segments: u64 = state.log.segments.iter().map(|segment| segment.size).sum();
            let given = segments + state.writing.accounting.pending_bytes();
            assert_eq!(most + given, all, "no required output needs anything");
        }
        // A cursor may have passed dropped events, or not.
        let to = self.outputs.iter().map(|output| output.watermark().1).min().unwrap_or(0);
        let from = self.outputs.iter().map(|output| output.watermark().0).min().unwrap_or(0);
        let held = state.log.watermark();
        let before = (held.get()..from).all(|position| self.dropped.contains(&position));
        assert!(before && held <= Position::new(to), "{held} is held, not {from} to {to}");
        let names = self.disk.names();
        for segment in &state.log.segments {
            let name = segment::file_name(segment.first.position);
            assert!(names.contains(&name), "{name} is gone");
        }
        drop(state);
        let [segments, spare, quarantine, others] =
            [SEGMENTS, SPARES, QUARANTINE, ""].map(|directory| self.disk.bytes_in(directory));
        let segments = segments + spare;
        assert_eq!(quarantine, 0, "nothing is damaged: {names:?}");
        let (held, spares) = {
            let queue = &self.process().queue;
            let spares = queue.shared.lock().writing.accounting.spare_bytes();
            (queue.held().0, spares)
        };
        // Bytes that were cut off a file still count if the cut could not be synced.
        let files = (segments + cursors::BYTES).saturating_sub(spares);
        assert!(held == files || (self.faulty && held > files), "{held}, and has {files}");
        self.bound = self.config.max_bytes.max(self.bound.min(self.taken()));
        let most = self.bound;
        assert!(segments + others <= most, "{segments} and {others} of {most}");
        assert!(held <= most);
    }

    fn check_counters(&mut self) {
        let process = self.process.as_ref().expect("it runs");
        let series = [
            "event_total",
            "error_total{plugin=\"queue\"}",
            "queue_dropped_events_total{reason=\"drop_newest\"}",
            "queue_dropped_events_total{reason=\"drop_oldest\"}",
            "spool_corrupt_records_total",
        ];
        let newest = self.dropped_newest;
        let wanted = [self.accepted + newest, newest, newest, self.dropped_oldest, 0];
        assert_eq!(values(&process.telemetry, series), wanted, "{series:?}");
    }

    /// Without faults, everything must come to its end.
    fn finish_all(&mut self) {
        say!(self, "the end");
        self.calm();
        self.disk.crash_after(u64::MAX / 2);
        assert!(self.settle(), "the writer never rests: {}", self.shown());
        assert_eq!(self.process().queue.fault(), None, "the disk is well");
        self.drain_all();
        // The body is as large as a body may be.
        let (first, bytes) = (
            self.sent.last().map_or(0, |last| last.first + last.lengths.len() as u64),
            self.config.max_bytes / 2,
        );
        if !self.send(first, vec![index(bytes)]) {
            assert!(self.settle());
            let taken = self.send(first, vec![index(bytes)]);
            assert!(
                taken || self.config.when_full == WhenFull::DropNewest,
                "it is empty, and full: {}",
                self.shown()
            );
        }
        assert!(self.settle());
        self.check();
        self.drain_all();
        self.check_counters();
        self.restart(true);
        assert!(self.outputs.iter().all(|output| output.start == 0), "all was delivered");
    }

    fn drain_all(&mut self) {
        for chosen in 0..self.outputs.len() {
            self.drain(chosen);
        }
        self.check();
        assert!(self.settle());
        self.check();
        let state = self.state();
        let left = state.log.segments.iter().filter(|segment| !segment.active).count();
        let accounting = &state.writing.accounting;
        let is_clean = [
            accounting.pending_delete().len(),
            accounting.stuck().len(),
            accounting.abandoned().len(),
        ] == [0; 3];
        assert!(left == 0 && is_clean, "{left} segments are left");
    }
}

fn run(seed: u64, profile: &Profile, tally: Tally) -> Tally {
    let _failing = Failing(seed);
    let mut simulation = Simulation::new(seed, profile.clone(), tally);
    let steps = simulation.rng.u32(20..250);
    for step in 0..steps {
        simulation.step();
        if simulation.ambiguous {
            return simulation.tally;
        }
        if step % 32 == 31 {
            simulation.check_counters();
        }
    }
    simulation.finish_all();
    simulation.tally
}

fn run_all(profile: &Profile) {
    let seeds = seeds(120);
    let tally = seeds.iter().fold(Tally::default(), |tally, seed| run(*seed, profile, tally));
    println!("{} seeds: {tally:?}", seeds.len());
    let is_used = tally.reused > 0 || seeds.len() < 100;
    assert!(is_used, "no file was used again: {tally:?}");
}

/// Method: the machine often crashes, between operations and in the middle of them, on a disk
/// without faults that forgets and tears writes that were not synced. Every event that was
/// acknowledged must be there after each start.
#[test]
fn nothing_is_lost_whenever_the_machine_crashes() {
    let profile = Profile {
        crashes: 40,
        restarts: 10,
        faults: 0,
        changes: 0,
        when_full: &[WhenFull::Reject],
        segments: 4..=20,
    };
    run_all(&profile);
}

/// Method: the disk refuses operations of any type, for some time or permanently, and the machine
/// crashes now and then. Every event that was acknowledged must be there, and the queue must work
/// again once the disk does.
#[test]
fn nothing_is_lost_whatever_the_disk_refuses() {
    let profile = Profile {
        crashes: 15,
        restarts: 10,
        faults: 60,
        changes: 0,
        when_full: &[WhenFull::Reject],
        segments: 4..=20,
    };
    run_all(&profile);
}

/// Method: the queue is small and drops the oldest or the newest events, with crashes in between.
/// Exactly the dropped events must be counted as lost.
#[test]
fn what_a_full_queue_drops_is_counted_and_nothing_else() {
    let profile = Profile {
        crashes: 20,
        restarts: 10,
        faults: 0,
        changes: 0,
        when_full: &[WhenFull::DropOldest, WhenFull::DropNewest],
        segments: 4..=8,
    };
    run_all(&profile);
}

/// Method: crashes, ends, faults of the disk, changes of outputs and settings, and each `when_full`
/// come together.
#[test]
fn all_at_once() {
    let profile = Profile {
        crashes: 20,
        restarts: 15,
        faults: 30,
        changes: 30,
        when_full: &[WhenFull::Reject, WhenFull::DropOldest, WhenFull::DropNewest],
        segments: 4..=8,
    };
    run_all(&profile);
}

/// Method: outputs join, leave and become required or optional all the time, with crashes in
/// between. An output may lose only events that are counted for it.
#[test]
fn outputs_come_and_go_and_lose_only_what_is_counted() {
    let profile = Profile {
        crashes: 20,
        restarts: 10,
        faults: 0,
        changes: 100,
        when_full: &[WhenFull::Reject],
        segments: 4..=8,
    };
    run_all(&profile);
}
