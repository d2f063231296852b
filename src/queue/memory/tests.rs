//! The queue against a model that is too simple to be wrong: every event with what each cursor has done about it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use proptest::test_runner::TestCaseResult;

use super::*;
use crate::config;
use crate::telemetry::Telemetry;

fn settings(max_bytes: u64, when_full: WhenFull, acknowledge: Acknowledge) -> config::Queue {
    let config = config::read(config::EMBEDDED).config.expect("it is right");
    config::Queue { max_bytes, when_full, acknowledge, ..config.queue }
}

fn queue(max_bytes: u64, when_full: WhenFull, acknowledge: Acknowledge) -> (Queue, Telemetry) {
    let telemetry = Telemetry::new();
    let queue = Queue::new(&settings(max_bytes, when_full, acknowledge), telemetry.queue());
    (queue, telemetry)
}

fn batch(events: &[String]) -> Append {
    let lines: String = events.iter().flat_map(|event| [event.as_str(), "\n"]).collect();
    let count = events.len() as u64;
    Append { lines: Bytes::from(lines), events: count, levels: LevelCounts::default() }
}

fn store(queue: &Queue, events: &[String], why: &str) {
    drop(queue.append(batch(events)).expect(why));
}

fn names(names: &str) -> Vec<String> {
    names.split_whitespace().map(str::to_owned).collect()
}

fn read(batch: &Batch) -> Vec<String> {
    let lines: Vec<u8> = batch.pieces.iter().flat_map(|piece| piece.to_vec()).collect();
    assert_eq!(batch.bytes, lines.len() as u64);
    assert!(batch.pieces.iter().all(|piece| piece.ends_with(b"\n")), "whole lines");
    let events: Vec<String> =
        String::from_utf8(lines).expect("as appended").lines().map(str::to_owned).collect();
    assert_eq!(batch.events, events.len() as u64);
    events
}

fn value(telemetry: &Telemetry, series: &str) -> u64 {
    let text = telemetry.render();
    let prefix = format!("kube_audit_forwarder_{series} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
    line.unwrap_or_else(|| panic!("no {series}")).parse().expect("a count")
}

const ALL: Take = Take { bytes: u64::MAX, events: u64::MAX };

#[test]
fn a_batch_counts_its_bytes_and_256_and_is_refused_where_that_is_too_much() {
    let (queue, telemetry) = queue(600, WhenFull::Reject, Acknowledge::Queued);
    let cursor = queue.join("o", telemetry.output("o"));
    // 44 bytes and 256: twice is exactly all.
    let events = [("x".repeat(21)), ("y".repeat(21))];
    for _ in 0..2 {
        assert!(queue.admits(44).is_ok());
        store(&queue, &events, "room");
    }
    assert_eq!(queue.held(), (600, 4));
    assert!(queue.admits(0).is_err());
    assert!(queue.append(batch(&names("z"))).is_err());
    assert_eq!(value(&telemetry, "event_total"), 4);
    let taken = cursor.next(ALL).expect("four events");
    assert_eq!(taken.events, 4);
    assert!(queue.append(batch(&names("z"))).is_err(), "taken is not finished");
    cursor.finish(taken.claim, 0);
    assert_eq!(queue.held(), (0, 0));
    assert!(queue.admits(344).is_ok() && queue.admits(345).is_err());
}

#[test]
fn drop_newest_counts_what_no_output_can_get_once() {
    let (queue, telemetry) = queue(300, WhenFull::DropNewest, Acknowledge::Queued);
    let cursors = ["o", "p"].map(|name| queue.join(name, telemetry.output(name)));
    assert!(queue.admits(u64::from(u32::MAX)).is_ok(), "every batch is answered with 200");
    store(&queue, &names("a b"), "room");
    store(&queue, &names("c d e"), "dropped, and that is told as stored");
    for (cursor, name) in cursors.iter().zip(["o", "p"]) {
        let taken = cursor.next(ALL).expect("what was kept");
        assert_eq!(read(&taken), ["a", "b"]);
        cursor.finish(taken.claim, 0);
        assert_eq!(value(&telemetry, &format!("error_total{{plugin=\"{name}\"}}")), 0);
    }
    assert_eq!(value(&telemetry, "event_total"), 5);
    assert_eq!(value(&telemetry, "error_total{plugin=\"queue\"}"), 3);
    assert_eq!(value(&telemetry, "queue_dropped_events_total{reason=\"drop_newest\"}"), 3);
}

#[test]
fn drop_oldest_counts_for_each_output_what_it_had_not_got() {
    let (queue, telemetry) = queue(3 * 260, WhenFull::DropOldest, Acknowledge::Queued);
    let [ahead, behind] = ["ahead", "behind"].map(|name| queue.join(name, telemetry.output(name)));
    for name in ["a b", "c d", "e f"] {
        store(&queue, &names(name), "room");
    }
    // One has the first event of the first batch, and the second of it released.
    let first = ahead.next(Take { bytes: u64::MAX, events: 1 }).expect("a");
    let second = ahead.next(Take { bytes: u64::MAX, events: 1 }).expect("b");
    ahead.finish(first.claim, 0);
    store(&queue, &names("g h"), "the second batch goes: b is on the wire");
    assert_eq!(read(&behind.next(ALL).expect("the rest")), names("a b e f g h"));
    assert_eq!(value(&telemetry, "error_total{plugin=\"ahead\"}"), 2);
    assert_eq!(value(&telemetry, "error_total{plugin=\"behind\"}"), 2);
    assert_eq!(value(&telemetry, "queue_dropped_events_total{reason=\"drop_oldest\"}"), 2);
    assert!(queue.append(batch(&names("i j"))).is_err(), "everything is on somebody's wire");
    assert_eq!(value(&telemetry, "event_total"), 8);

    behind.rewind();
    ahead.release(second.claim);
    store(&queue, &names("i j"), "now the first batch may go");
    assert_eq!(value(&telemetry, "error_total{plugin=\"ahead\"}"), 3, "it had a already");
    assert_eq!(value(&telemetry, "error_total{plugin=\"behind\"}"), 4);
    assert!(ahead.retake(second.claim).is_none(), "it is gone");
    let larger_than_all = batch(&["x".repeat(1000)]);
    assert!(queue.append(larger_than_all).is_err());
    assert_eq!(queue.held().1, 6, "and nothing was dropped for it");
}

#[test]
fn what_is_finished_behind_a_dropped_claim_is_let_go_and_told() {
    let (queue, telemetry) = queue(3 * 258, WhenFull::DropOldest, Acknowledge::Queued);
    let cursor = queue.join("o", telemetry.output("o"));
    for name in ["a", "b", "c"] {
        store(&queue, &names(name), "room");
    }
    let one = Take { bytes: u64::MAX, events: 1 };
    let claims: Vec<_> = (0..3).map(|_| cursor.next(one).expect("an event").claim).collect();
    cursor.release(claims[0]);
    cursor.finish(claims[1], 0);
    store(&queue, &names("d"), "a is dropped");
    cursor.finish(claims[2], 0);
    let rest = cursor.next(one).expect("d");
    cursor.finish(rest.claim, 0);
    let waiting = queue.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(async {
        let drained = waiting.drained();
        tokio::pin!(drained);
        // It waits: the dropped claim is still open.
        tokio::select! { biased; () = &mut drained => panic!("not yet"), () = std::future::ready(()) => {} }
        assert!(cursor.retake(claims[0]).is_none());
        let told = tokio::time::timeout(std::time::Duration::from_secs(10), drained).await;
        assert!(told.is_ok(), "the drain does not hear of it");
    });
    assert_eq!(queue.held(), (0, 0));
    assert_eq!(value(&telemetry, "error_total{plugin=\"o\"}"), 1);
    assert_eq!(value(&telemetry, "queue_dropped_events_total{reason=\"drop_oldest\"}"), 1);
}

#[tokio::test]
async fn delivered_is_answered_when_every_output_has_finished_the_batch() {
    let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Delivered);
    let cursors = ["o", "p"].map(|name| queue.join(name, telemetry.output(name)));
    let mut ticket = queue.append(batch(&names("a b"))).expect("room");
    assert_eq!(value(&telemetry, "event_total"), 0, "nobody has begun it");
    assert_eq!(queue.backlogs().iter().map(|(_, backlog)| backlog.events).sum::<u64>(), 0);
    for cursor in &cursors {
        let waiting =
            tokio::time::timeout(std::time::Duration::from_millis(1), ticket.delivered()).await;
        assert!(waiting.is_err(), "not before every output has it");
        let taken = cursor.next(ALL).expect("the batch");
        assert_eq!(value(&telemetry, "event_total"), 2);
        cursor.finish(taken.claim, 1);
    }
    ticket.delivered().await;
    drop(ticket);
    assert_eq!(queue.held(), (0, 0));
}

#[test]
fn a_delivered_batch_is_withdrawn_only_while_no_output_has_begun_it() {
    let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Delivered);
    let [first, second] = ["o", "p"].map(|name| queue.join(name, telemetry.output(name)));
    let tickets = ["a", "b", "c"].map(|name| queue.append(batch(&names(name))).expect("room"));
    let taken = first.next(Take { bytes: u64::MAX, events: 1 }).expect("a");
    assert_eq!(read(&taken), ["a"]);
    let [begun, withdrawn, kept] = tickets;
    drop(begun);
    drop(withdrawn);
    assert_eq!(queue.held().1, 2, "a is kept, b is gone");
    assert_eq!(read(&second.next(ALL).expect("a and c")), ["a", "c"]);
    assert_eq!(read(&first.next(ALL).expect("c")), ["c"]);
    assert_eq!(value(&telemetry, "event_total"), 2);
    drop(kept);
    assert_eq!(queue.held().1, 2);
}

#[test]
fn a_batch_is_cut_at_any_line_whatever_its_length() {
    let (queue, telemetry) = queue(10_000_000, WhenFull::Reject, Acknowledge::Queued);
    let cursor = queue.join("o", telemetry.output("o"));
    // More than a few marks, with lines of every length.
    let events: Vec<String> = (0..1000).map(|n| format!("{n}{}", "x".repeat(n % 97))).collect();
    for (bytes, count) in [(1, 1), (50, 7), (1000, 64), (1000, 63), (u64::MAX, 65), (100_000, 500)]
    {
        store(&queue, &events, "room");
        let mut got = Vec::new();
        while got.len() < events.len() {
            let taken = cursor.next(Take { bytes, events: count }).expect("more of it");
            assert!(taken.events == 1 || (taken.bytes <= bytes && taken.events <= count));
            got.extend(read(&taken));
            cursor.finish(taken.claim, 0);
        }
        assert_eq!(got, events);
        assert!(cursor.next(ALL).is_none());
    }
}

#[test]
fn abandon_counts_what_each_output_has_not_got() {
    let (queue, telemetry) = queue(10_000, WhenFull::Reject, Acknowledge::Queued);
    let cursors = ["o", "p"].map(|name| queue.join(name, telemetry.output(name)));
    store(&queue, &names("a b c"), "room");
    let taken = cursors[0].next(Take { bytes: u64::MAX, events: 2 }).expect("two");
    cursors[0].finish(taken.claim, 0);
    assert_eq!(queue.abandon(), [("o".to_owned(), 1), ("p".to_owned(), 3)]);
    assert_eq!(queue.abandon(), [("o".to_owned(), 0), ("p".to_owned(), 0)], "once");
    assert_eq!(value(&telemetry, "error_total{plugin=\"p\"}"), 3);
}

/// What is done to the queue. Numbers choose among what there is, modulo.
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
        lost: u64,
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
    /// The sender of a batch that waits for its delivery goes.
    Leave {
        ticket: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0_usize..100;
    let cursor = 0_usize..2;
    prop_oneof![
        4 => prop::collection::vec(0_usize..300, 1..100).prop_map(Step::Append),
        4 => (cursor.clone(), 1_u64..3000, 1_u64..200)
            .prop_map(|(cursor, bytes, events)| Step::Next { cursor, bytes, events }),
        3 => (cursor.clone(), index.clone(), 0_u64..3)
            .prop_map(|(cursor, claim, lost)| Step::Finish { cursor, claim, lost }),
        2 => (cursor.clone(), index.clone()).prop_map(|(cursor, claim)| Step::Release { cursor, claim }),
        2 => (cursor.clone(), index.clone()).prop_map(|(cursor, claim)| Step::Retake { cursor, claim }),
        2 => (cursor.clone(), index.clone()).prop_map(|(cursor, claim)| Step::Split { cursor, claim }),
        1 => cursor.prop_map(|cursor| Step::Rewind { cursor }),
        1 => index.prop_map(|ticket| Step::Leave { ticket }),
    ]
}

/// What one cursor has done about one event.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Waiting,
    Finished,
    Lost,
    Dropped,
}

struct ModelRecord {
    first: u64,
    events: Vec<String>,
    /// Neither dropped nor withdrawn.
    here: bool,
    begun: bool,
}

impl ModelRecord {
    fn weight(&self) -> u64 {
        self.events.iter().map(|event| event.len() as u64 + 1).sum::<u64>() + BATCH_OVERHEAD
    }

    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }
}

#[derive(Default)]
struct ModelCursor {
    read: u64,
    /// By start: end, and whether it is on the wire, released or done.
    claims: BTreeMap<u64, (u64, Stage)>,
    fates: BTreeMap<u64, Fate>,
}

impl ModelCursor {
    fn watermark(&self) -> u64 {
        let open = self.claims.iter().find(|(_, (_, stage))| *stage != Stage::Done);
        open.map_or(self.read, |(start, _)| *start)
    }

    fn pick(&self, index: usize, stages: &[Stage]) -> Option<Claim> {
        let open: Vec<Claim> = self
            .claims
            .iter()
            .filter(|(_, (_, stage))| stages.contains(stage))
            .map(|(start, (end, _))| Claim { start: *start, end: *end })
            .collect();
        (!open.is_empty()).then(|| open[index % open.len()])
    }

    fn count(&self, fate: Fate) -> u64 {
        self.fates.values().filter(|other| **other == fate).count() as u64
    }
}

struct Model {
    capacity: u64,
    when_full: WhenFull,
    delivered: bool,
    records: Vec<ModelRecord>,
    cursors: Vec<ModelCursor>,
    dropped: u64,
}

impl Model {
    fn is_held(&self, record: &ModelRecord) -> bool {
        let passed = self.cursors.iter().map(ModelCursor::watermark).min().unwrap_or_default();
        record.here && record.end() > passed
    }

    fn held(&self) -> (u64, u64) {
        let held: Vec<_> = self.records.iter().filter(|record| self.is_held(record)).collect();
        let events = held.iter().map(|record| record.events.len() as u64).sum();
        (held.iter().map(|record| record.weight()).sum(), events)
    }

    /// The events of a claim that are still here.
    fn events_of(&self, claim: Claim) -> Vec<(u64, String)> {
        let events = self.records.iter().filter(|record| record.here).flat_map(|record| {
            (record.first..)
                .zip(record.events.iter().cloned())
                .filter(|(position, _)| (claim.start..claim.end).contains(position))
        });
        events.collect()
    }

    /// Whether it is taken; drops for it what `drop_oldest` may.
    fn append(&mut self, events: &[String]) -> bool {
        let first = self.records.last().map_or(0, ModelRecord::end);
        let record =
            ModelRecord { first, events: events.to_vec(), here: true, begun: !self.delivered };
        let needed = (self.held().0 + record.weight()).saturating_sub(self.capacity);
        if needed > 0 {
            if self.when_full == WhenFull::Reject || record.weight() > self.capacity {
                return false;
            }
            let mut gained = 0;
            let mut chosen = Vec::new();
            for (index, old) in self.records.iter().enumerate() {
                let on_wire = |cursor: &ModelCursor| {
                    cursor.claims.iter().any(|(start, (end, stage))| {
                        *stage == Stage::OnWire && *start < old.end() && old.first < *end
                    })
                };
                if gained < needed && self.is_held(old) && !self.cursors.iter().any(on_wire) {
                    gained += old.weight();
                    chosen.push(index);
                }
            }
            if gained < needed {
                return false;
            }
            for index in chosen {
                self.records[index].here = false;
                let (first, end) = (self.records[index].first, self.records[index].end());
                let mut most = 0;
                for cursor in &mut self.cursors {
                    let waiting = cursor.fates.range_mut(first..end);
                    let waiting: Vec<_> =
                        waiting.filter(|(_, fate)| **fate == Fate::Waiting).collect();
                    most = most.max(waiting.len() as u64);
                    waiting.into_iter().for_each(|(_, fate)| *fate = Fate::Dropped);
                }
                self.dropped += most;
            }
        }
        for cursor in &mut self.cursors {
            cursor.fates.extend((first..record.end()).map(|position| (position, Fate::Waiting)));
        }
        self.records.push(record);
        true
    }

    /// A batch is taken out where no output has begun it.
    fn withdraw(&mut self, first: u64) {
        let record = self.records.iter_mut().find(|record| record.first == first);
        let record = record.expect("it was appended");
        if !record.begun && record.here {
            record.here = false;
            let positions = record.first..record.end();
            for cursor in &mut self.cursors {
                cursor.fates.retain(|position, _| !positions.contains(position));
            }
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
    model: Model,
    appended: usize,
}

impl Pair {
    fn new(when_full: WhenFull, acknowledge: Acknowledge) -> Self {
        const CAPACITY: u64 = 20_000;
        let (real, telemetry) = queue(CAPACITY, when_full, acknowledge);
        let cursors =
            ["a", "b"].iter().map(|name| real.join(name, telemetry.output(name))).collect();
        let model = Model {
            capacity: CAPACITY,
            when_full,
            delivered: acknowledge == Acknowledge::Delivered,
            records: Vec::new(),
            cursors: vec![ModelCursor::default(), ModelCursor::default()],
            dropped: 0,
        };
        Self { real, cursors, tickets: Vec::new(), telemetry, model, appended: 0 }
    }

    fn apply(&mut self, step: &Step) -> TestCaseResult {
        match step {
            Step::Append(lengths) => {
                let events: Vec<String> = lengths
                    .iter()
                    .map(|length| {
                        self.appended += 1;
                        format!("{}{}", self.appended, "x".repeat(*length))
                    })
                    .collect();
                let real = self.real.append(batch(&events));
                same("taken", real.is_ok(), self.model.append(&events))?;
                if let (Ok(ticket), Some(record)) = (real, self.model.records.last()) {
                    self.tickets.push((record.first, ticket));
                }
            }
            Step::Next { cursor, bytes, events } => {
                self.next(*cursor, Take { bytes: *bytes, events: *events })?;
            }
            Step::Finish { cursor, claim, lost } => {
                let model = &mut self.model.cursors[*cursor];
                let Some(claim) = model.pick(*claim, &[Stage::OnWire]) else { return Ok(()) };
                model.claims.insert(claim.start, (claim.end, Stage::Done));
                self.cursors[*cursor].finish(claim, *lost);
                let positions = self.model.events_of(claim);
                let model = &mut self.model.cursors[*cursor];
                for (index, (position, _)) in positions.iter().enumerate() {
                    let fate = if (index as u64) < *lost { Fate::Lost } else { Fate::Finished };
                    model.fates.insert(*position, fate);
                }
            }
            Step::Release { cursor, claim } => {
                let model = &mut self.model.cursors[*cursor];
                let Some(claim) = model.pick(*claim, &[Stage::OnWire]) else { return Ok(()) };
                model.claims.insert(claim.start, (claim.end, Stage::Released));
                self.cursors[*cursor].release(claim);
            }
            Step::Retake { cursor, claim } => {
                let picked = self.model.cursors[*cursor].pick(*claim, &[Stage::Released]);
                let Some(claim) = picked else { return Ok(()) };
                let wanted: Vec<String> =
                    self.model.events_of(claim).into_iter().map(|(_, event)| event).collect();
                let real = self.cursors[*cursor].retake(claim);
                same("retaken", real.as_ref().map(read).unwrap_or_default(), wanted)?;
                let stage = if real.is_some() { Stage::OnWire } else { Stage::Done };
                self.model.cursors[*cursor].claims.insert(claim.start, (claim.end, stage));
            }
            Step::Split { cursor, claim } => {
                let stages = [Stage::OnWire, Stage::Released];
                let picked = self.model.cursors[*cursor].pick(*claim, &stages);
                let Some(claim) = picked else { return Ok(()) };
                let events = self.model.events_of(claim).len();
                let split = self.cursors[*cursor].split(claim);
                same("splits", split.is_some(), events >= 2)?;
                let Some((left, right)) = split else { return Ok(()) };
                same(
                    "ends",
                    (left.start, left.end, right.end),
                    (claim.start, right.start, claim.end),
                )?;
                let halves = [left, right].map(|half| self.model.events_of(half).len());
                same("halves", halves, [events / 2, events - events / 2])?;
                let model = &mut self.model.cursors[*cursor];
                let (_, stage) = model.claims[&claim.start];
                model.claims.insert(left.start, (left.end, stage));
                model.claims.insert(right.start, (right.end, stage));
            }
            Step::Rewind { cursor } => {
                let model = &mut self.model.cursors[*cursor];
                let watermark = model.watermark();
                if model.claims.range(watermark..).any(|(_, (_, stage))| *stage == Stage::Done) {
                    // Only for outputs that finish in order.
                    return Ok(());
                }
                model.read = watermark;
                model.claims.retain(|start, _| *start < watermark);
                self.cursors[*cursor].rewind();
            }
            Step::Leave { ticket } => {
                if !self.tickets.is_empty() {
                    let (first, ticket) = self.tickets.remove(ticket % self.tickets.len());
                    drop(ticket);
                    self.model.withdraw(first);
                }
            }
        }
        self.compare()
    }

    fn next(&mut self, cursor: usize, take: Take) -> TestCaseResult {
        let read_before = self.model.cursors[cursor].read;
        let rest = Claim { start: read_before, end: u64::MAX };
        let waiting = self.model.events_of(rest);
        let real = self.cursors[cursor].next(take);
        same("something is there", real.is_some(), !waiting.is_empty())?;
        let Some(real) = real else { return Ok(()) };
        let got = read(&real);
        let wanted: Vec<String> =
            waiting.iter().take(got.len()).map(|(_, event)| event.clone()).collect();
        same("next", &got, &wanted)?;
        let fits = real.bytes <= take.bytes && real.events <= take.events;
        same("within its bounds, or one event", fits || real.events == 1, true)?;
        same("claim", (real.claim.start, real.claim.end), {
            (waiting[0].0, waiting[got.len() - 1].0 + 1)
        })?;
        // Cut only where the first batch does not fit alone; then as much of it as fits.
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
        model.read = real.claim.end;
        model.claims.insert(real.claim.start, (real.claim.end, Stage::OnWire));
        Ok(())
    }

    fn compare(&self) -> TestCaseResult {
        same("held", self.real.held(), self.model.held())?;
        same("within its bounds", self.real.held().0 <= self.model.capacity, true)?;
        let begun = |position: &u64| {
            let record = self.model.records.iter().find(|record| *position < record.end());
            record.is_some_and(|record| record.begun)
        };
        for (cursor, (_, backlog)) in self.model.cursors.iter().zip(self.real.backlogs()) {
            let waiting: Vec<u64> = cursor
                .fates
                .iter()
                .filter(|(position, fate)| **fate == Fate::Waiting && begun(position))
                .map(|(position, _)| *position)
                .collect();
            same("backlog", backlog.events, waiting.len() as u64)?;
            let all = self.model.events_of(Claim { start: 0, end: u64::MAX });
            let bytes = all
                .iter()
                .filter(|(position, _)| waiting.contains(position))
                .map(|(_, event)| event.len() as u64 + 1)
                .sum();
            same("backlog's bytes", backlog.bytes, bytes)?;
        }
        Ok(())
    }

    /// The counters, and that the rest comes out and leaves nothing behind.
    fn finish(mut self) -> TestCaseResult {
        for cursor in 0..self.cursors.len() {
            while self.model.cursors[cursor].pick(0, &[Stage::Released]).is_some() {
                self.apply(&Step::Retake { cursor, claim: 0 })?;
            }
            while self.model.cursors[cursor].pick(0, &[Stage::OnWire]).is_some() {
                self.apply(&Step::Finish { cursor, claim: 0, lost: 0 })?;
            }
            let before = self.model.cursors[cursor].read;
            while self.cursors[cursor].position() < u64::MAX {
                self.next(cursor, ALL)?;
                if self.model.cursors[cursor].pick(0, &[Stage::OnWire]).is_none() {
                    break;
                }
                self.apply(&Step::Finish { cursor, claim: 0, lost: 0 })?;
            }
            same("never back", self.model.cursors[cursor].read >= before, true)?;
        }
        same("nothing is left", self.real.held(), (0, 0))?;
        for (cursor, name) in self.model.cursors.iter().zip(["a", "b"]) {
            let delivered =
                value(&self.telemetry, &format!("output_events_total{{output=\"{name}\"}}"));
            same("delivered", delivered, cursor.count(Fate::Finished))?;
            let lost = value(&self.telemetry, &format!("error_total{{plugin=\"{name}\"}}"));
            same("lost", lost, cursor.count(Fate::Lost) + cursor.count(Fate::Dropped))?;
            same("conserved", value(&self.telemetry, "event_total"), delivered + lost)?;
        }
        let dropped = value(&self.telemetry, "queue_dropped_events_total{reason=\"drop_oldest\"}");
        same("dropped", dropped, self.model.dropped)
    }
}

fn run(when_full: WhenFull, acknowledge: Acknowledge, steps: &[Step]) -> TestCaseResult {
    let mut pair = Pair::new(when_full, acknowledge);
    for (number, step) in steps.iter().enumerate() {
        let applied = pair.apply(step);
        applied
            .map_err(|error| TestCaseError::fail(format!("step {number}, {step:?}: {error}")))?;
    }
    pair.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_queue_that_rejects_is_as_its_model(steps in prop::collection::vec(step(), 1..80)) {
        run(WhenFull::Reject, Acknowledge::Queued, &steps)?;
    }

    #[test]
    fn a_queue_that_drops_the_oldest_is_as_its_model(steps in prop::collection::vec(step(), 1..80)) {
        run(WhenFull::DropOldest, Acknowledge::Queued, &steps)?;
    }

    #[test]
    fn a_queue_that_answers_when_delivered_is_as_its_model(steps in prop::collection::vec(step(), 1..80)) {
        run(WhenFull::Reject, Acknowledge::Delivered, &steps)?;
    }
}
