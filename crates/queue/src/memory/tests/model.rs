//! The queue in memory against a model that is too simple to be wrong: every event with the fate
//! that each output has given it, while outputs come and go and settings change.
//!
//! Method: proptest makes random sequences of steps. Each step is applied to the real queue and to
//! the model, and then everything visible of the two is compared: claims, lines, acceptances,
//! responses to senders, counters and sizes. A sequence that fails is shortened by proptest.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestCaseResult};
use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::tests::Counts;

/// One step. Its indexes choose among the present cursors, claims or tickets, modulo their number.
#[derive(Debug, Clone)]
enum Step {
    Append(Vec<usize>),
    Next {
        cursor: usize,
        bytes: u64,
        events: u64,
    },
    Finish {
        cursor: usize,
        claim: usize,
        fate: Disposition,
    },
    Release {
        cursor: usize,
        claim: usize,
    },
    Retake {
        cursor: usize,
        claim: usize,
    },
    Split {
        cursor: usize,
        claim: usize,
    },
    Rewind {
        cursor: usize,
    },
    /// Sets the first event of a claim aside, unless its sender waits.
    SetAside {
        cursor: usize,
        claim: usize,
    },
    /// Settles an event that was set aside, even if the queue has dropped it.
    Settle {
        cursor: usize,
        event: usize,
        is_lost: bool,
    },
    /// The sender of a batch that waits for its delivery leaves.
    Withdraw {
        ticket: usize,
    },
    Join {
        name: usize,
        required: bool,
    },
    Leave {
        cursor: usize,
    },
    Require {
        cursor: usize,
        required: bool,
    },
    Apply(Settings),
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    capacity: u64,
    when_full: WhenFull,
    acknowledge: Acknowledge,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn step() -> impl Strategy<Value = Step> {
    let index = 0_usize..100;
    let cursor = 0_usize..60;
    prop_oneof![
        8 => prop::collection::vec(0_usize..300, 1..100).prop_map(Step::Append),
        8 => (cursor.clone(), 1_u64..3000, 1_u64..200)
            .prop_map(|(cursor, bytes, events)| Step::Next { cursor, bytes, events }),
        6 => (cursor.clone(), index.clone(), (0_u64..3, 0_u64..3, 0_u64..3))
            .prop_map(|(cursor, claim, (lost, dropped, duplicate))| {
                let fate = Disposition { lost, dropped, duplicate, ..Disposition::default() };
                Step::Finish { cursor, claim, fate }
            }),
        4 => (cursor.clone(), index.clone()).prop_map(|(cursor, claim)| Step::Release { cursor, claim }),
        4 => (cursor.clone(), index.clone()).prop_map(|(cursor, claim)| Step::Retake { cursor, claim }),
        4 => (cursor.clone(), index.clone()).prop_map(|(cursor, claim)| Step::Split { cursor, claim }),
        2 => cursor.clone().prop_map(|cursor| Step::Rewind { cursor }),
        6 => (cursor.clone(), index.clone())
            .prop_map(|(cursor, claim)| Step::SetAside { cursor, claim }),
        2 => (cursor.clone(), index.clone(), any::<bool>())
            .prop_map(|(cursor, event, is_lost)| Step::Settle { cursor, event, is_lost }),
        2 => index.clone().prop_map(|ticket| Step::Withdraw { ticket }),
        2 => (index, any::<bool>()).prop_map(|(name, required)| Step::Join { name, required }),
        1 => cursor.clone().prop_map(|cursor| Step::Leave { cursor }),
        2 => (cursor, any::<bool>())
            .prop_map(|(cursor, required)| Step::Require { cursor, required }),
        1 => settings_step().prop_map(Step::Apply),
    ]
}

fn settings_step() -> impl Strategy<Value = Settings> {
    use Acknowledge::{Delivered, Queued};
    let answers = prop::sample::select(vec![
        (WhenFull::Reject, Queued),
        (WhenFull::Reject, Delivered),
        (WhenFull::DropOldest, Queued),
        (WhenFull::DropNewest, Queued),
    ]);
    (prop::sample::select(vec![5_000, 10_000, 20_000, 40_000]), answers).prop_map(
        |(capacity, (when_full, acknowledge))| Settings { capacity, when_full, acknowledge },
    )
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Waiting,
    Aside,
    Finished,
    Lost,
}

struct ModelRecord {
    first: u64,
    events: Vec<String>,
    /// True unless the batch was dropped or withdrawn.
    here: bool,
    /// True once the batch is accepted.
    begun: bool,
    /// The response to the batch's sender, or `None` if there is none yet.
    answered: Option<Result<(), Refused>>,
}

impl ModelRecord {
    fn weight(&self) -> u64 {
        self.events.iter().map(|event| event.len() as u64 + 1).sum::<u64>() + BATCH_OVERHEAD
    }

    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }
}

/// The counters of an output, even after it has left.
#[derive(Default, Clone, Copy)]
struct Totals {
    delivered: u64,
    lost: u64,
    filtered: [u64; 2],
}

struct ModelCursor {
    name: usize,
    /// The index of the real cursor.
    index: usize,
    required: bool,
    /// The events that were set aside and are not settled, those that the queue has dropped
    /// included: the position, and the bytes of the line.
    aside: Vec<(u64, u64)>,
    /// The end of the log when the output joined.
    joined: u64,
    read: u64,
    /// The claims, by their first position: the position after the last, and the stage.
    claims: BTreeMap<u64, (u64, Stage)>,
    /// The fates of the events that were appended after the output joined.
    fates: BTreeMap<u64, Fate>,
}

impl ModelCursor {
    fn watermark(&self) -> u64 {
        let open = self.claims.iter().find(|(_, (_, stage))| stage.is_open());
        open.map_or(self.read, |(start, _)| *start)
    }

    fn is_in_order(&self) -> bool {
        let mut behind = self.claims.range(self.watermark()..);
        behind.all(|(_, (_, stage))| *stage != Stage::Done)
    }

    fn pick(&self, index: usize, stages: &[Stage]) -> Option<Claim> {
        let open: Vec<Claim> = self
            .claims
            .iter()
            .filter(|(_, (_, stage))| stages.contains(stage))
            .map(|(start, (end, _))| Claim::of(*start, *end))
            .collect();
        (!open.is_empty()).then(|| open[index % open.len()])
    }

    fn has_on_wire(&self, record: &ModelRecord) -> bool {
        self.claims.iter().any(|(start, (end, stage))| {
            *stage == Stage::OnWire && *start < record.end() && record.first < *end
        })
    }

    /// Returns the events that are set aside and that the queue still has.
    fn kept_aside(&self) -> impl Iterator<Item = (u64, u64)> {
        let is_kept = |position| self.fates[position] == Fate::Aside;
        self.aside.iter().filter(move |(position, _)| is_kept(position)).copied()
    }

    fn bytes_aside(&self) -> u64 {
        self.kept_aside().map(|(_, bytes)| bytes).sum()
    }

    /// Gives this fate to the waiting ones of these positions. Returns their number.
    fn settle(&mut self, positions: Range<u64>, fate: Fate) -> u64 {
        let waiting = self.fates.range_mut(positions).filter(|(_, fate)| **fate == Fate::Waiting);
        waiting.map(|(_, old)| *old = fate).count() as u64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Stored,
    /// The batch is dropped, and its sender is told that it is stored.
    Lost,
    No,
}

struct Model {
    settings: Settings,
    /// The limit of the queue's size. It is more than the capacity if the queue held more when the
    /// capacity became less.
    bound: u64,
    records: Vec<ModelRecord>,
    cursors: Vec<ModelCursor>,
    totals: [Totals; NAMES.len()],
    dropped_oldest: u64,
    dropped_newest: u64,
}

impl Model {
    fn watermark(&self, of: impl Fn(&ModelCursor) -> bool) -> u64 {
        let of = self.cursors.iter().filter(|cursor| of(cursor));
        let end = self.records.last().map_or(0, ModelRecord::end);
        of.map(ModelCursor::watermark).min().unwrap_or(end)
    }

    fn required_watermark(&self) -> u64 {
        self.watermark(|cursor| cursor.required)
    }

    fn held(&self) -> (u64, u64) {
        let passed = self.watermark(|_| true);
        let held: Vec<_> =
            self.records.iter().filter(|record| record.here && record.end() > passed).collect();
        let events = held.iter().map(|record| record.events.len() as u64).sum();
        let aside: u64 = self.cursors.iter().map(ModelCursor::bytes_aside).sum();
        (held.iter().map(|record| record.weight()).sum::<u64>() + aside, events)
    }

    /// Returns the weight of the batches that a required output has not finished, and of the events
    /// that one has set aside.
    fn needed(&self) -> u64 {
        let required = self.required_watermark();
        let needed = self.records.iter().filter(|record| record.here && record.end() > required);
        let aside = self.cursors.iter().filter(|cursor| cursor.required);
        let aside: u64 = aside.map(ModelCursor::bytes_aside).sum();
        needed.map(ModelRecord::weight).sum::<u64>() + aside
    }

    fn accepted(&self) -> u64 {
        let begun = self.records.iter().filter(|record| record.begun);
        begun.map(|record| record.events.len() as u64).sum()
    }

    /// Returns the events of a claim that are still in the queue, with their positions.
    fn events_of(&self, claim: Claim) -> Vec<(u64, String)> {
        let events = self.records.iter().filter(|record| record.here).flat_map(|record| {
            (record.first..)
                .zip(record.events.iter().cloned())
                .filter(|(position, _)| claim.numbers().contains(position))
        });
        events.collect()
    }

    /// Appends a batch. Drops other batches for it, if necessary and allowed.
    fn append(&mut self, events: &[String]) -> Taken {
        let first = self.records.last().map_or(0, ModelRecord::end);
        let begun = self.settings.acknowledge == Acknowledge::Queued;
        let answered = begun.then_some(Ok(()));
        let record = ModelRecord { first, events: events.to_vec(), here: true, begun, answered };
        let needed = (self.held().0 + record.weight()).saturating_sub(self.settings.capacity);
        if !self.make_room(needed) {
            if self.settings.when_full == WhenFull::DropNewest {
                self.dropped_newest += record.events.len() as u64;
                return Taken::Lost;
            }
            return Taken::No;
        }
        for cursor in &mut self.cursors {
            cursor.fates.extend((first..record.end()).map(|position| (position, Fate::Waiting)));
        }
        self.records.push(record);
        Taken::Stored
    }

    /// Drops the oldest batches and events that only optional outputs need, and then, if allowed,
    /// the oldest other batches. Returns `false` if these have less than `needed` bytes.
    fn make_room(&mut self, needed: u64) -> bool {
        let (passed, required) = (self.watermark(|_| true), self.required_watermark());
        let drops_oldest = self.settings.when_full == WhenFull::DropOldest;
        // The order in which they go, their weight, and the batch or the output of the event.
        let mut old = Vec::new();
        for (index, record) in self.records.iter().enumerate() {
            let is_needed = record.end() > required;
            let on_wire = self.cursors.iter().any(|it| it.required && it.has_on_wire(record));
            let may_go = !is_needed || (drops_oldest && !on_wire);
            if record.here && record.end() > passed && may_go {
                let order = (is_needed, record.first, None);
                old.push((order, record.weight(), index));
            }
        }
        for (output, cursor) in self.cursors.iter().enumerate().filter(|(_, it)| !it.required) {
            for (position, bytes) in cursor.kept_aside() {
                old.push(((false, position, Some(cursor.index)), bytes, output));
            }
        }
        old.sort_unstable();
        let mut gained = 0;
        old.retain(|(_, weight, _)| {
            let is_enough = gained >= needed;
            gained += weight;
            !is_enough
        });
        if gained < needed {
            return false;
        }
        for ((is_needed, position, aside), _, index) in old {
            if aside.is_some() {
                let cursor = &mut self.cursors[index];
                cursor.fates.insert(position, Fate::Lost);
                self.totals[cursor.name].lost += 1;
                continue;
            }
            let old = &mut self.records[index];
            if old.answered.is_none() {
                old.answered = Some(Err(Refused::Undelivered));
                let first = old.first;
                if self.withdraw(first) {
                    continue;
                }
            }
            self.records[index].here = false;
            self.end_dropped_claims();
            let old = &self.records[index];
            let mut most = 0;
            for cursor in &mut self.cursors {
                let lost = cursor.settle(old.first..old.end(), Fate::Lost);
                self.totals[cursor.name].lost += lost;
                if cursor.required && is_needed {
                    most = most.max(lost);
                }
            }
            self.dropped_oldest += most;
        }
        true
    }

    /// Ends the claims that are to be sent again and of which no event is left.
    fn end_dropped_claims(&mut self) {
        let records = &self.records;
        let is_gone = |claim: Range<u64>| {
            let mut here = records.iter().filter(|record| record.here);
            !here.any(|record| record.first < claim.end && claim.start < record.end())
        };
        for cursor in &mut self.cursors {
            for (start, (end, stage)) in &mut cursor.claims {
                if *stage == Stage::Released && is_gone(*start..*end) {
                    *stage = Stage::Dropped;
                }
            }
        }
    }

    /// Removes a batch, and returns true, if no output has begun to send it.
    fn withdraw(&mut self, first: u64) -> bool {
        let record = self.records.iter_mut().find(|record| record.first == first);
        let record = record.expect("it was appended");
        let is_whole = !record.begun && record.here;
        if is_whole {
            record.here = false;
            let positions = record.first..record.end();
            for cursor in &mut self.cursors {
                cursor.fates.retain(|position, _| !positions.contains(position));
            }
        }
        is_whole
    }

    fn leave(&mut self, index: usize) -> u64 {
        let mut cursor = self.cursors.remove(index);
        self.answer();
        let begun = self.records.iter().filter(|record| record.begun);
        let lost = begun.map(|record| cursor.settle(record.first..record.end(), Fate::Lost));
        let lost = lost.sum::<u64>() + cursor.kept_aside().count() as u64;
        self.totals[cursor.name].lost += lost;
        lost
    }

    /// Responds to the senders of the batches that all required outputs have finished. A batch
    /// counts as delivered, unless no required output was to receive it.
    fn answer(&mut self) {
        let required = self.required_watermark();
        let passed = |it: &&mut ModelRecord| it.here && it.end() <= required;
        let mut refused = Vec::new();
        for record in self.records.iter_mut().filter(passed).filter(|it| it.answered.is_none()) {
            let is_needed = |it: &ModelCursor| it.required && it.joined <= record.first;
            let is_delivered = self.cursors.iter().any(is_needed);
            record.answered = Some(if is_delivered { Ok(()) } else { Err(Refused::Undelivered) });
            refused.extend((!is_delivered).then_some(record.first));
        }
        for first in refused {
            self.withdraw(first);
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, real: T, model: T) -> TestCaseResult {
    match real == model {
        true => Ok(()),
        false => Err(TestCaseError::fail(format!("{what}: {real:?}, the model has {model:?}"))),
    }
}

struct Pair {
    real: Queue,
    cursors: Vec<Cursor>,
    tickets: Vec<(u64, Ticket)>,
    telemetry: Telemetry,
    counts: [Counts; NAMES.len()],
    model: Model,
    appended: usize,
}

impl Pair {
    fn new(settings: Settings, required: [bool; 2]) -> Self {
        let Settings { capacity, when_full, acknowledge } = settings;
        let (real, telemetry) = queue(capacity, when_full, acknowledge);
        let model = Model {
            settings,
            bound: capacity,
            records: Vec::new(),
            cursors: Vec::new(),
            totals: Default::default(),
            dropped_oldest: 0,
            dropped_newest: 0,
        };
        let mut pair = Self {
            real,
            cursors: Vec::new(),
            tickets: Vec::new(),
            telemetry,
            counts: Default::default(),
            model,
            appended: 0,
        };
        for (name, required) in required.into_iter().enumerate() {
            pair.join(name, required);
        }
        pair
    }

    fn join(&mut self, name: usize, required: bool) {
        let output = self.counts[name].output(&self.telemetry, NAMES[name], required);
        let joined = self.real.join(output);
        if self.model.cursors.iter().any(|cursor| cursor.name == name) {
            assert_eq!(joined.err(), Some(JoinError::Taken));
            return;
        }
        let joined = joined.unwrap_or_else(|error| panic!("{error}"));
        self.model.cursors.push(ModelCursor {
            name,
            index: joined.index,
            required,
            aside: Vec::new(),
            joined: self.model.records.last().map_or(0, ModelRecord::end),
            read: self.model.records.last().map_or(0, ModelRecord::end),
            claims: BTreeMap::new(),
            fates: BTreeMap::new(),
        });
        self.cursors.push(joined);
    }

    /// True if another output than this one is required.
    fn can_spare(&self, cursor: usize) -> bool {
        let mut others = self.model.cursors.iter().enumerate();
        others.any(|(index, other)| index != cursor && other.required)
    }

    fn apply(&mut self, step: &Step) -> TestCaseResult {
        let cursors = self.cursors.len();
        match step {
            Step::Append(lengths) => self.append(lengths)?,
            Step::Next { cursor, bytes, events } => {
                self.next(cursor % cursors, Take { bytes: *bytes, events: *events })?;
            }
            Step::Finish { cursor, claim, fate } => {
                self.finish(cursor % cursors, *claim, fate.clone())
            }
            Step::Release { cursor, claim } => {
                let model = &mut self.model.cursors[cursor % cursors];
                let Some(claim) = model.pick(*claim, &[Stage::OnWire]) else { return Ok(()) };
                model.claims.insert(claim.start.get(), (claim.end.get(), Stage::Released));
                self.model.end_dropped_claims();
                self.cursors[cursor % cursors].release(claim);
            }
            Step::Retake { cursor, claim } => self.retake(cursor % cursors, *claim)?,
            Step::Split { cursor, claim } => self.split(cursor % cursors, *claim)?,
            Step::Rewind { cursor } => {
                let (real, model) =
                    (&self.cursors[cursor % cursors], &mut self.model.cursors[cursor % cursors]);
                same("in order", real.with(|it| it.claims.is_in_order()), model.is_in_order())?;
                if model.is_in_order() {
                    let watermark = model.watermark();
                    model.read = watermark;
                    model.claims.retain(|start, _| *start < watermark);
                    real.rewind();
                }
            }
            Step::SetAside { cursor, claim } => self.set_aside(cursor % cursors, *claim)?,
            Step::Settle { cursor, event, is_lost } => {
                self.settle(cursor % cursors, *event, *is_lost);
            }
            Step::Withdraw { ticket } => {
                if !self.tickets.is_empty() {
                    let (first, ticket) = self.tickets.remove(ticket % self.tickets.len());
                    drop(ticket);
                    self.model.withdraw(first);
                }
            }
            Step::Join { name, required } => self.join(name % NAMES.len(), *required),
            Step::Leave { cursor } => {
                let index = cursor % cursors;
                if self.can_spare(index) {
                    let lost = self.cursors.remove(index).remove(true);
                    same("left", lost, self.model.leave(index))?;
                }
            }
            Step::Require { cursor, required } => {
                let index = cursor % cursors;
                if *required || self.can_spare(index) {
                    let model = &mut self.model.cursors[index];
                    model.required = *required;
                    self.real.require(NAMES[model.name], *required);
                }
            }
            Step::Apply(settings) => {
                let Settings { capacity, when_full, acknowledge } = *settings;
                self.real.apply(&super::settings(capacity, when_full, acknowledge));
                self.model.settings = *settings;
                self.model.bound = capacity.max(self.model.held().0);
            }
        }
        self.model.answer();
        self.compare()
    }

    fn append(&mut self, lengths: &[usize]) -> TestCaseResult {
        let events: Vec<String> = lengths
            .iter()
            .map(|length| {
                self.appended += 1;
                format!("{}{}", self.appended, "x".repeat(*length))
            })
            .collect();
        let is_list = self.appended.is_multiple_of(2) && !events.is_empty();
        let batch = if is_list { list(&events) } else { batch(&events) };
        let admitted = self.real.admits(batch.lines.len() as u64).is_ok();
        let real = self.real.append(batch);
        let taken = self.model.append(&events);
        same("taken", real.is_ok(), taken != Taken::No)?;
        same("admitted", admitted || self.model.settings.when_full != WhenFull::Reject, {
            taken != Taken::No || self.model.settings.when_full != WhenFull::Reject
        })?;
        if let (Taken::Stored, Ok(ticket), Some(record)) = (taken, real, self.model.records.last())
        {
            let waits = self.model.settings.acknowledge == Acknowledge::Delivered;
            same("waits", ticket.waits.is_some(), waits)?;
            if waits {
                self.tickets.push((record.first, ticket));
            }
        }
        Ok(())
    }

    fn finish(&mut self, cursor: usize, claim: usize, fate: Disposition) {
        let model = &mut self.model.cursors[cursor];
        let Some(claim) = model.pick(claim, &[Stage::OnWire]) else { return };
        model.claims.insert(claim.start.get(), (claim.end.get(), Stage::Done));
        self.cursors[cursor].acknowledge(claim, fate.clone());
        let positions = self.model.events_of(claim);
        let model = &mut self.model.cursors[cursor];
        let totals = &mut self.model.totals[model.name];
        for (index, (position, _)) in positions.iter().enumerate() {
            let Disposition { lost, dropped, duplicate, .. } = fate;
            let ends = [lost, lost + dropped, lost + dropped + duplicate];
            let [dropped, duplicate] = &mut totals.filtered;
            let total = match ends.iter().position(|end| (index as u64) < *end) {
                Some(0) => &mut totals.lost,
                Some(1) => dropped,
                Some(_) => duplicate,
                None => &mut totals.delivered,
            };
            *total += model.settle(*position..position + 1, Fate::Finished);
        }
    }

    fn set_aside(&mut self, cursor: usize, claim: usize) -> TestCaseResult {
        let model = &self.model.cursors[cursor];
        let Some(claim) = model.pick(claim, &[Stage::OnWire]) else { return Ok(()) };
        let events = self.model.events_of(claim);
        let Some((position, event)) = events.first() else { return Ok(()) };
        let record = self.model.records.iter().find(|record| *position < record.end());
        let waits = record.is_none_or(|record| record.answered.is_none());
        if waits || *position != claim.start.get() {
            return Ok(());
        }
        let (model, real) = (&mut self.model.cursors[cursor], &self.cursors[cursor]);
        let (next, end) = (position + 1, claim.end.get());
        if end > next {
            same("cut", real.split_at(claim, Position::new(next)).is_some(), true)?;
            model.claims.insert(next, (end, Stage::OnWire));
        }
        let line = format!("{event}\n");
        let kept = real.set_aside(Claim::of(*position, next), line.as_bytes());
        same("here", kept.is_some(), true)?;
        model.claims.insert(*position, (next, Stage::Done));
        same("set aside", model.settle(*position..next, Fate::Aside), 1)?;
        model.aside.push((*position, line.len() as u64));
        let is_required = model.required;
        let excess = self.model.held().0.saturating_sub(self.model.settings.capacity);
        if excess > 0 && !self.model.make_room(excess) {
            // Only the events of required outputs may take more room than there is.
            same("too much", is_required || excess > line.len() as u64, true)?;
            self.model.bound = self.model.bound.max(self.model.held().0);
        }
        Ok(())
    }

    fn settle(&mut self, cursor: usize, event: usize, is_lost: bool) {
        let model = &mut self.model.cursors[cursor];
        if model.aside.is_empty() {
            return;
        }
        let (position, bytes) = model.aside.remove(event % model.aside.len());
        let fate = if is_lost { Disposition::lost(1) } else { Disposition::default() };
        let event = Aside { bytes, received: now() };
        self.cursors[cursor].settle_aside(Position::new(position), event, fate);
        let totals = &mut self.model.totals[model.name];
        if model.fates[&position] == Fate::Aside {
            model.fates.insert(position, Fate::Finished);
            *(if is_lost { &mut totals.lost } else { &mut totals.delivered }) += 1;
        }
    }

    fn retake(&mut self, cursor: usize, claim: usize) -> TestCaseResult {
        let picked = self.model.cursors[cursor].pick(claim, &[Stage::Released]);
        let Some(claim) = picked else { return Ok(()) };
        let wanted: Vec<String> =
            self.model.events_of(claim).into_iter().map(|(_, event)| event).collect();
        let real = self.cursors[cursor].redeliver(claim);
        same("retaken", real.as_ref().map(read).unwrap_or_default(), wanted)?;
        self.compare_acceptances(real.as_ref())?;
        let stage = if real.is_some() { Stage::OnWire } else { Stage::Dropped };
        self.model.cursors[cursor].claims.insert(claim.start.get(), (claim.end.get(), stage));
        Ok(())
    }

    fn split(&mut self, cursor: usize, claim: usize) -> TestCaseResult {
        let stages = [Stage::OnWire, Stage::Released];
        let picked = self.model.cursors[cursor].pick(claim, &stages);
        let Some(claim) = picked else { return Ok(()) };
        let middle = claim.start + (claim.end - claim.start) / 2;
        let split = self.cursors[cursor].split_at(claim, middle);
        same("splits", split.is_some(), middle > claim.start)?;
        let Some((left, right)) = split else { return Ok(()) };
        let ends = (left.start, left.end, right.start, right.end);
        same("ends", ends, (claim.start, middle, middle, claim.end))?;
        let model = &mut self.model.cursors[cursor];
        let (_, stage) = model.claims[&claim.start.get()];
        model.claims.insert(left.start.get(), (left.end.get(), stage));
        model.claims.insert(right.start.get(), (right.end.get(), stage));
        self.model.end_dropped_claims();
        Ok(())
    }

    fn next(&mut self, cursor: usize, take: Take) -> TestCaseResult {
        let read_before = self.model.cursors[cursor].read;
        let rest = Claim::of(read_before, u64::MAX);
        let waiting = self.model.events_of(rest);
        // Some outputs take lists, and some claims must be lines for each output.
        let lists = cursor > 0 && !take.events.is_multiple_of(3);
        let real = self.cursors[cursor].next(take, lists);
        let are_lines = real.iter().flat_map(|real| &real.pieces).all(|piece| !is_list(piece));
        same("lines", are_lines || lists, true)?;
        same("something is there", real.is_some(), !waiting.is_empty())?;
        let Some(real) = real else { return Ok(()) };
        let got = read(&real);
        let wanted: Vec<String> =
            waiting.iter().take(got.len()).map(|(_, event)| event.clone()).collect();
        same("next", &got, &wanted)?;
        self.compare_acceptances(Some(&real))?;
        let fits = real.bytes <= take.bytes && real.events <= take.events;
        same("within its bounds, or one event", fits || real.events == 1, true)?;
        same("claim", (real.claim.start, real.claim.end), {
            (Position::new(waiting[0].0), Position::new(waiting[got.len() - 1].0 + 1))
        })?;
        // A batch is cut only if it is the first and does not fit as a whole. The claim then holds
        // as much of it as fits.
        let positions = &waiting[..got.len()];
        let (mut records, mut next_fits) = (0, false);
        for record in &mut self.model.records {
            let of_it = |position: &u64| (record.first..record.end()).contains(position);
            let taken = positions.iter().filter(|(position, _)| of_it(position)).count();
            let there = waiting.iter().filter(|(position, _)| of_it(position)).count();
            if record.here && taken > 0 {
                records += 1;
                record.begun = true;
                if taken < there {
                    let following = waiting[got.len()].1.len() as u64 + 1;
                    next_fits = real.bytes + following <= take.bytes && real.events < take.events;
                    same("cut only the first", records, 1)?;
                }
            }
        }
        same("could be longer", next_fits, false)?;
        let model = &mut self.model.cursors[cursor];
        model.read = real.claim.end.get();
        model.claims.insert(real.claim.start.get(), (real.claim.end.get(), Stage::OnWire));
        Ok(())
    }

    /// Checks that each piece's acceptance says where its lines are in the log.
    fn compare_acceptances(&self, batch: Option<&Batch>) -> TestCaseResult {
        let Some(batch) = batch else { return Ok(()) };
        same("acceptances", batch.acceptances.len(), batch.pieces.len())?;
        for (acceptance, piece) in batch.acceptances.iter().zip(&batch.pieces) {
            let piece = as_lines(piece);
            let events = piece.iter().filter(|byte| **byte == b'\n').count() as u64;
            same("lines", acceptance.events, events)?;
            let claim = Claim { start: acceptance.first, end: acceptance.first + events };
            let wanted: String =
                self.model.events_of(claim).iter().map(|(_, event)| format!("{event}\n")).collect();
            same("piece", &piece[..], wanted.as_bytes())?;
        }
        Ok(())
    }

    fn compare(&mut self) -> TestCaseResult {
        let held = self.model.held();
        same("held", self.real.held(), held)?;
        same("needed", self.real.needed(), self.model.needed())?;
        self.model.bound = self.model.settings.capacity.max(self.model.bound.min(held.0));
        same("within its bounds", held.0 <= self.model.bound, true)?;
        same("accepted", self.real.shared.lock().counted.events, self.model.accepted())?;
        same("capacity", self.real.capacity(), self.model.settings.capacity)?;
        self.compare_tickets()?;
        let all = self.model.events_of(Claim::of(0, u64::MAX));
        let backlogs: BTreeMap<String, Backlog> = self.real.backlogs().into_iter().collect();
        same("outputs", backlogs.len(), self.model.cursors.len())?;
        for (cursor, real) in self.model.cursors.iter().zip(&self.cursors) {
            let (name, counts) = (NAMES[cursor.name], &self.counts[cursor.name]);
            let aside = cursor.kept_aside().count() as u64;
            same("aside", real.with(|real| real.aside.events), aside)?;
            let begun = |position: &u64| {
                let record = self.model.records.iter().find(|record| *position < record.end());
                record.is_some_and(|record| record.begun)
            };
            let waiting: Vec<u64> = cursor
                .fates
                .iter()
                .filter(|(position, fate)| **fate == Fate::Waiting && begun(position))
                .map(|(position, _)| *position)
                .collect();
            let backlog = backlogs[name];
            same("backlog", backlog.events, waiting.len() as u64)?;
            let bytes = all
                .iter()
                .filter(|(position, _)| waiting.contains(position))
                .map(|(_, event)| event.len() as u64 + 1)
                .sum();
            same("backlog's bytes", backlog.bytes, bytes)?;
            #[allow(clippy::cast_precision_loss, reason = "a small queue")]
            let [accepted, delivered, lost, filtered, backlog] = [
                self.model.accepted(),
                counts.delivered(),
                counts.lost(),
                counts.filtered().iter().sum(),
                backlog.events + aside,
            ]
            .map(|count| count as f64);
            let all = delivered + lost + filtered + backlog;
            same("conserved", accepted + counts.start(), all)?;
        }
        for (counts, totals) in self.counts.iter().zip(self.model.totals) {
            same("delivered", counts.delivered(), totals.delivered)?;
            same("lost", counts.lost(), totals.lost)?;
            same("filtered", counts.filtered(), totals.filtered)?;
        }
        Ok(())
    }

    /// Checks that exactly those senders have a response whose batches have one in the model.
    fn compare_tickets(&mut self) -> TestCaseResult {
        let mut waiting = Vec::new();
        for (first, mut ticket) in std::mem::take(&mut self.tickets) {
            let waits = ticket.waits.as_mut();
            let told = waits.map_or(Ok(ticket.answer), |waits| waits.done.try_recv());
            same("heard", told == Err(TryRecvError::Closed), false)?;
            let told = told.ok();
            let record = self.model.records.iter().find(|record| record.first == first);
            let record = record.expect("it was appended");
            same("answered", told, record.answered)?;
            if told.is_none() {
                waiting.push((first, ticket));
            }
        }
        self.tickets = waiting;
        Ok(())
    }

    /// Checks the counters, delivers all events, and checks that none is left.
    fn end(mut self) -> TestCaseResult {
        for cursor in 0..self.cursors.len() {
            while self.model.cursors[cursor].pick(0, &[Stage::Released]).is_some() {
                self.apply(&Step::Retake { cursor, claim: 0 })?;
            }
            while self.model.cursors[cursor].pick(0, &[Stage::OnWire]).is_some() {
                self.apply(&Step::Finish { cursor, claim: 0, fate: Disposition::default() })?;
            }
            while !self.model.cursors[cursor].aside.is_empty() {
                self.apply(&Step::Settle { cursor, event: 0, is_lost: false })?;
            }
            let before = self.model.cursors[cursor].read;
            loop {
                self.next(cursor, ALL)?;
                if self.model.cursors[cursor].pick(0, &[Stage::OnWire]).is_none() {
                    break;
                }
                self.apply(&Step::Finish { cursor, claim: 0, fate: Disposition::default() })?;
            }
            same("never back", self.model.cursors[cursor].read >= before, true)?;
        }
        same("nothing is left", self.real.held(), (0, 0))?;
        let [oldest, newest] = ["drop_oldest", "drop_newest"].map(|reason| {
            let series = format!("queue_dropped_events_total{{reason=\"{reason}\"}}");
            value(&self.telemetry, &series)
        });
        same("oldest", oldest, self.model.dropped_oldest)?;
        same("newest", newest, self.model.dropped_newest)?;
        same("queue", value(&self.telemetry, "error_total{plugin=\"queue\"}"), newest)?;
        let accepted = self.model.accepted() + newest;
        same("all", value(&self.telemetry, "event_total"), accepted)
    }
}

fn run(settings: Settings, required: [bool; 2], steps: &[Step]) -> TestCaseResult {
    let mut pair = Pair::new(settings, required);
    for (number, step) in steps.iter().enumerate() {
        let applied = pair.apply(step);
        applied
            .map_err(|error| TestCaseError::fail(format!("step {number}, {step:?}: {error}")))?;
    }
    pair.end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: testing::cases(250), ..ProptestConfig::default() })]

    #[test]
    fn a_queue_that_changes_as_events_flow_is_as_its_model(
        steps in prop::collection::vec(step(), 1..150),
        settings in settings_step(),
    ) {
        run(settings, [true, false], &steps)?;
    }
}
