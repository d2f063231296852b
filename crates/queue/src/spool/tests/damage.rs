//! Changes on the disk: any byte changes, any page becomes unreadable, any file disappears.
//!
//! Method: a random spool is made, and opened once unchanged, which shows what each output must
//! receive. For each place of damage, a copy of the spool is damaged in this one place, before the
//! start or while it runs. Every event outside the damaged place must be delivered, and every
//! missing event must be counted once. Damage must be logged, and its bytes copied to the
//! quarantine.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;
use crate::contract::{Batch, Claim, Redelivery};
use crate::segment;
use crate::segment::{Check, Found, Scan, Seed};
use base::disk::{Access, QUARANTINE, SEGMENTS, SPARES};

/// Returns a disk with the same files, all synced.
fn copy(disk: &SimulatedDisk) -> SimulatedDisk {
    let copy = SimulatedDisk::new(0);
    for name in disk.names() {
        let bytes = disk.contents(&name);
        let file = copy.create(&name, bytes.len() as u64).expect("it is new");
        file.write_at(&[&bytes], 0).expect("no fault is set");
        file.sync().expect("no fault is set");
    }
    for directory in ["", SEGMENTS, SPARES, QUARANTINE] {
        copy.sync_directory(directory).expect("no fault is set");
    }
    copy
}

impl Scene {
    fn on(disk: &SimulatedDisk, config: &config::Queue, names: &[&str]) -> Self {
        let outputs: Vec<_> = names.iter().map(|name| (*name, true)).collect();
        Self::open(disk.clone(), config, &outputs, |_| {})
    }

    fn positions(&self) -> Vec<u64> {
        self.queue
            .shared
            .lock()
            .log
            .cursors
            .iter()
            .map(|(_, cursor)| cursor.claims.read.get())
            .collect()
    }

    fn end(&self) -> u64 {
        self.queue.shared.lock().log.end.position.get()
    }

    fn put(&self, events: impl Iterator<Item = (u64, usize)>) {
        let mut lines = Vec::new();
        let mut count = 0;
        for (number, length) in events {
            write_line(number, length, &mut lines);
            count += 1;
        }
        let append = Append {
            lines: lines.into(),
            events: count,
            levels: LevelCounts::default(),
            list: None,
        };
        let mut ticket = self.queue.append(append, None).expect("there is room");
        // Without this, dropping the ticket would withdraw the batch.
        ticket.waits = None;
    }

    /// Takes an output's next batch, and reads the files for it if necessary. `None` if there is
    /// none.
    fn next(&mut self, chosen: usize, take: Take) -> Option<Batch> {
        loop {
            if let Some(batch) = self.cursors[chosen].next(take) {
                return Some(batch);
            }
            if !self.read(chosen) {
                return None;
            }
        }
    }

    /// Reads for an output as [`Cursor::readable`] does. Returns false if there was nothing to
    /// read.
    fn read(&self, chosen: usize) -> bool {
        let cursor = &self.cursors[chosen];
        let Some(mut job) = cursor.job(false) else { return false };
        let loaded = self.queue.shared.read(&job).unwrap_or_else(|_| {
            job.patient = false;
            self.queue.shared.read(&job).expect("it has waited long enough")
        });
        cursor.take_in(job.epoch, loaded);
        true
    }

    /// Takes a released claim again. Returns `None` if it is lost.
    fn retake(&mut self, chosen: usize, claim: Claim) -> Option<Batch> {
        for _ in 0..3 {
            match self.cursors[chosen].redeliver(claim) {
                Redelivery::Batch(batch) => return Some(batch),
                Redelivery::Gone => return None,
                Redelivery::NotYet => assert!(self.read(chosen), "{claim:?} never comes"),
            }
        }
        panic!("{claim:?} never comes");
    }

    fn stop(self) {
        self.queue.shared.lock().writing.closed = true;
        self.writer.end();
    }

    fn corrupt(&self) -> u64 {
        values(&self.telemetry, ["spool_corrupt_records_total"])[0]
    }
}

/// A record of the spool, and where it lies.
struct Placed {
    file: String,
    bytes: Range<u64>,
    positions: Range<u64>,
}

/// A spool, and the expected result of a start on it.
struct Spool {
    disk: SimulatedDisk,
    config: config::Queue,
    names: &'static [&'static str],
    /// The positions of the outputs.
    starts: Vec<u64>,
    end: u64,
    /// The later one of the ends of the log that `cursors` and `synced` name.
    known: u64,
    /// True if the file of the last segment was another segment before. After a power loss, the
    /// rest of its last group then looks like an unfinished write.
    is_reused: bool,
    /// The line at each position that is there.
    lines: BTreeMap<u64, Vec<u8>>,
    records: Vec<Placed>,
}

impl Spool {
    fn make(rng: &mut Rng) -> Self {
        let disk = SimulatedDisk::new(rng.u64(..));
        let segment_bytes = rng.choice([16 << 10, 32 << 10]).expect("one");
        let config = settings(1 << 20, segment_bytes, WhenFull::Reject);
        let mut names: &[&str] = if rng.bool() { &["a"] } else { &["a", "b"] };
        let mut running = Scene::on(&disk, &config, names);
        let mut number = 0;
        for _ in 0..rng.u32(3..25) {
            for _ in 0..rng.u32(1..4) {
                let most = if rng.u8(..8) == 0 { 12_000 } else { 600 };
                let lengths: Vec<usize> =
                    (0..rng.usize(1..12)).map(|_| rng.usize(12..most)).collect();
                let events = lengths.len() as u64;
                running.put((number..).zip(lengths));
                number += events;
            }
            while !running.queue.shared.lock().writing.waiting.is_empty() {
                running.work(Step::Commit);
            }
            match rng.u8(..8) {
                0 => running.work(Chore::Save),
                1 => running.work(Chore::Reclaim),
                2 => {
                    running.stop();
                    // Another output may join.
                    if rng.bool() {
                        names = &["a", "b"];
                    }
                    running = Scene::on(&disk, &config, names);
                }
                3 | 4 => {
                    let chosen = rng.usize(..names.len());
                    let take = Take { bytes: rng.u64(1..9000), events: u64::MAX };
                    if let Some(batch) = running.next(chosen, take) {
                        running.cursors[chosen].acknowledge(batch.claim, Disposition::default());
                    }
                }
                _ => {}
            }
        }
        let disk = if rng.bool() {
            running.stop();
            disk
        } else {
            drop(running);
            disk.crash(rng)
        };
        let synced = synced::read(&disk).expect("it can be read");
        let synced = synced.map(|synced| synced.end.position).unwrap_or_default();
        let found = cursors::read(&disk).expect("it can be read");
        let known = found.contents.expect("a slot is valid").end.position;

        let sound = copy(&disk);
        let running = Scene::on(&sound, &config, names);
        let (starts, end) = (running.positions(), running.end());
        let is_reused =
            running.queue.shared.lock().log.segments.back().is_some_and(|last| last.reused);
        assert_eq!(end, number, "everything was acknowledged");
        let records = Self::records(&sound);
        let without = copy(&disk);
        without.remove(cursors::FILE).expect("it is there");
        let mut running = Scene::on(&without, &config, &["all"]);
        let lines = Delivered::drain(&mut running, 0, rng).lines;
        assert_eq!(lines.keys().next_back().map(|last| last + 1).unwrap_or(end), end);
        Self {
            disk,
            config,
            names,
            starts,
            end,
            known: known.max(synced).get(),
            is_reused,
            lines,
            records,
        }
    }

    fn records(disk: &SimulatedDisk) -> Vec<Placed> {
        let mut records = Vec::new();
        let segments = disk.names().into_iter().filter(|name| name.ends_with(".seg"));
        for name in segments {
            let file = disk.open(&name, Access::Read).expect("it is there");
            let stem = name.rsplit('/').next().expect("a name");
            let first = segment::position_of(stem).expect("a segment");
            let begin = (FIRST_RECORD, first);
            let seed = Seed::of(first);
            let mut scan = Scan::new(&*file, seed, begin, u64::MAX, Position::MAX, Check::Headers);
            while let Some(found) = scan.next() {
                let Found::Record(record) = found else { panic!("{found:?}") };
                records.push(Placed {
                    file: name.clone(),
                    bytes: record.offset..record.offset + record.header.size(),
                    positions: record.header.first.get()..record.header.end().get(),
                });
            }
        }
        records
    }
}

#[derive(Default)]
struct Delivered {
    lines: BTreeMap<u64, Vec<u8>>,
    /// The last position that was taken.
    last: Option<u64>,
}

impl Delivered {
    /// Notes the lines of a batch. A claim that is taken again may lack some of them.
    fn take(&mut self, batch: &Batch) {
        let bytes = batch.pieces.concat();
        let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len() as u64, batch.events);
        let mut positions = batch.claim.numbers();
        for line in lines {
            let number = line.split(|byte| *byte == b' ').next().expect("a number");
            let number = std::str::from_utf8(number).expect("a number").parse();
            let position = number.expect("a number");
            assert!(positions.any(|here| here == position), "{position} is not claimed");
            let before = self.lines.insert(position, line.to_vec());
            assert!(before.is_none(), "{position} comes twice");
        }
    }

    fn note(&mut self, batch: &Batch) {
        assert!(self.last.is_none_or(|last| last < batch.claim.start.get()), "out of order");
        self.last = Some(batch.claim.end.get() - 1);
    }

    /// Takes and finishes up to this many claims. Releases some of them and takes them again before
    /// that. Returns false if there were fewer.
    fn some(&mut self, running: &mut Scene, chosen: usize, claims: usize, rng: &mut Rng) -> bool {
        for _ in 0..claims {
            let take = match rng.u8(..3) {
                0 => ALL,
                1 => Take { bytes: rng.u64(1..5000), events: u64::MAX },
                _ => Take { bytes: u64::MAX, events: rng.u64(1..20) },
            };
            let Some(mut batch) = running.next(chosen, take) else { return false };
            self.note(&batch);
            if rng.u8(..4) == 0 {
                running.cursors[chosen].release(batch.claim);
                let Some(again) = running.retake(chosen, batch.claim) else { continue };
                batch = again;
            }
            self.take(&batch);
            running.cursors[chosen].acknowledge(batch.claim, Disposition::default());
        }
        true
    }

    fn drain(running: &mut Scene, chosen: usize, rng: &mut Rng) -> Self {
        let mut delivered = Self::default();
        delivered.some(running, chosen, usize::MAX, rng);
        delivered
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Flip { file: String, offset: u64, mask: u8 },
    Unreadable { file: String, offset: u64 },
    Gone { file: String },
}

impl Damage {
    fn choose(spool: &Spool, rng: &mut Rng) -> Self {
        let bytes = |file: &String| spool.disk.contents(file).len() as u64;
        let files = spool.disk.names().into_iter().filter(|file| bytes(file) > 0);
        let file = rng.choice(files.collect::<Vec<_>>()).expect("there are files");
        let bytes = bytes(&file);
        match rng.u8(..20) {
            0 => Self::Gone { file },
            1 | 2 => Self::Unreadable { offset: rng.u64(..bytes), file },
            dice => {
                // Headers are small, so they are hit more often than chance would.
                let records: Vec<_> =
                    spool.records.iter().filter(|record| record.file == file).collect();
                let offset = match rng.choice(records) {
                    Some(record) if dice < 8 => record.bytes.start + rng.u64(..RECORD_HEADER),
                    Some(record) if dice < 14 => rng.u64(record.bytes.clone()),
                    _ if dice < 17 => rng.u64(..bytes.min(64)),
                    _ => rng.u64(..bytes),
                };
                Self::Flip { file, offset, mask: rng.u8(1..) }
            }
        }
    }

    fn file(&self) -> &str {
        let (Self::Flip { file, .. } | Self::Unreadable { file, .. } | Self::Gone { file }) = self;
        file
    }

    fn befall(&self, disk: &SimulatedDisk) {
        match self {
            Self::Flip { file, offset, mask } => disk.flip(file, *offset, *mask),
            Self::Unreadable { file, offset } => disk.unreadable(file, *offset),
            Self::Gone { file } => {
                disk.remove(file).expect("it is there");
                for directory in ["", SEGMENTS, SPARES] {
                    disk.sync_directory(directory).expect("no fault is set");
                }
            }
        }
    }

    /// True if the damage hits this record.
    fn hits(&self, record: &Placed) -> bool {
        let bytes = &record.bytes;
        let inside = match self {
            Self::Flip { offset, .. } => bytes.contains(offset),
            Self::Unreadable { offset, .. } => {
                let page = offset / BLOCK * BLOCK;
                page < bytes.end && bytes.start < page + BLOCK
            }
            Self::Gone { .. } => true,
        };
        inside && record.file == self.file()
    }
}

/// Damages a copy of the spool, starts on it and delivers everything. Returns the greatest number
/// of events that are missing for one output.
fn try_one(spool: &Spool, damage: &Damage, rng: &mut Rng) -> u64 {
    let disk = copy(&spool.disk);
    let of_cursors = damage.file() == cursors::FILE;
    // The slots of the cursors are read only at startup. A long record is read in parts, and its
    // whole checksum is checked for each part, so damage may also come while the queue runs.
    let hit = || spool.records.iter().filter(|record| damage.hits(record));
    let is_late =
        rng.u8(..4) == 0 && hit().next().is_some() && !matches!(damage, Damage::Gone { .. });
    if !is_late {
        damage.befall(&disk);
    }
    let mut running = Scene::on(&disk, &spool.config, spool.names);
    let starts = running.positions();
    for (start, wanted) in starts.iter().zip(&spool.starts) {
        assert!(start == wanted || (of_cursors && start < wanted), "at {start}, not {wanted}");
    }
    let first = running.end();
    // The log may end earlier if neither the cursors file nor a later record shows the last events.
    let unknown = spool.end.saturating_sub(first);
    let is_flip = matches!(damage, Damage::Flip { .. });
    let can_be = (first >= spool.known || of_cursors) && (!is_flip || spool.is_reused);
    assert!(unknown == 0 || can_be, "the end is {first}, it was {}", spool.end);
    let new: Vec<usize> = (0..rng.usize(..5)).map(|_| rng.usize(12..300)).collect();
    let end = first + new.len() as u64;
    if !new.is_empty() {
        running.put((first..).zip(new));
        running.work(Step::Commit);
    }
    assert_eq!(running.end(), end);

    // Each output takes some events, then the process may be restarted, then each output takes the
    // rest.
    let mut delivered: Vec<Delivered> = Vec::new();
    for chosen in 0..spool.names.len() {
        let claims = rng.usize(..6);
        delivered.push(Delivered::default());
        delivered[chosen].some(&mut running, chosen, claims, rng);
    }
    if is_late && disk.names().iter().any(|name| name == damage.file()) {
        damage.befall(&disk);
    }
    let mut lost = vec![0; spool.names.len()];
    let mut corrupt = 0;
    if rng.bool() {
        lost = running.counts.iter().map(Counts::lost).collect();
        corrupt = running.corrupt();
        running.stop();
        running = Scene::on(&disk, &spool.config, spool.names);
    }
    for (chosen, delivered) in delivered.iter_mut().enumerate() {
        delivered.some(&mut running, chosen, usize::MAX, rng);
        lost[chosen] += running.counts[chosen].lost();
    }
    let told = running.corrupt();
    let inside = [SEGMENTS, SPARES, QUARANTINE].map(|name| disk.bytes_in(name));
    let files = inside.iter().sum::<u64>();
    let spares = running.queue.shared.lock().writing.accounting.spare_bytes();
    assert_eq!(running.queue.held().0, files - spares + cursors::BYTES);
    assert!(files + disk.bytes_in("") <= spool.config.max_bytes);
    assert!(running.queue.backlogs().iter().all(|(_, backlog)| backlog.events == 0));

    let victims: BTreeSet<u64> = hit().flat_map(|record| record.positions.clone()).collect();
    let mut most = 0;
    for (chosen, delivered) in delivered.iter().enumerate() {
        let missing: BTreeSet<u64> =
            (starts[chosen]..end).filter(|at| !delivered.lines.contains_key(at)).collect();
        assert!(missing.is_subset(&victims), "{missing:?} are missing, {victims:?} were hit");
        assert_eq!(lost[chosen], missing.len() as u64, "{missing:?}");
        for (position, line) in delivered.lines.range(..first) {
            assert!(spool.lines.get(position) == Some(line), "{position} is not as it was");
        }
        most = most.max(missing.len() as u64);
    }
    if let Damage::Flip { file, offset, mask } = damage {
        assert!(corrupt <= 1 && told <= 1, "in each process once");
        let mut found = spool.disk.contents(file);
        found[usize::try_from(*offset).expect("a small file")] ^= mask;
        let copied = aside(&disk, file).into_iter().find(|(at, bytes)| {
            (*at..*at + bytes.len()).contains(&usize::try_from(*offset).expect("a small file"))
        });
        let is_full = disk.bytes_in(QUARANTINE) == spool.config.max_bytes / QUARANTINE_PART;
        assert!(most == 0 || copied.is_some() || is_full, "it is not put aside");
        let is_copy = |(at, bytes): (usize, Vec<u8>)| bytes == found[at..at + bytes.len()];
        assert!(copied.is_none_or(is_copy), "it is not as it was found");
    }
    let is_told = !matches!(damage, Damage::Gone { .. }) && !spool.is_reused;
    if is_told && (most > 0 || unknown > 0) {
        assert!(corrupt + told > 0, "it is not told");
        assert!(disk.bytes_in(QUARANTINE) > 0, "it is not put aside");
    }
    running.stop();
    let running = Scene::on(&disk, &spool.config, spool.names);
    assert!(running.counts.iter().all(|counts| counts.start() == 0.0), "all was delivered");
    most
}

/// Returns the copies of damaged bytes of a file, each with its offset in the file.
fn aside(disk: &SimulatedDisk, file: &str) -> Vec<(usize, Vec<u8>)> {
    let stem = file.trim_start_matches("segments/").trim_end_matches(".seg");
    let copies = disk.names().into_iter().filter_map(|name| {
        let (segment, at) =
            name.strip_prefix("quarantine/")?.strip_suffix(".bad")?.split_once('-')?;
        (segment == stem).then(|| (at.parse().expect("an offset"), disk.contents(&name)))
    });
    copies.collect()
}

/// Method: for each seed a random spool is made and damaged in 60 places, each in a copy of its
/// own; see the head of this file.
#[test]
fn any_damage_costs_what_it_hits_and_that_is_counted() {
    let (mut tries, mut missing, mut harmless) = (0, 0, 0);
    for seed in seeds(60) {
        let _failing = Failing(seed);
        let mut rng = Rng::with_seed(seed);
        let spool = Spool::make(&mut rng);
        for _ in 0..60 {
            let damage = Damage::choose(&spool, &mut rng);
            if is_alone() {
                println!("{damage:?}, of {:?}, known {}", spool.disk.names(), spool.known);
            }
            let lost = try_one(&spool, &damage, &mut rng);
            tries += 1;
            missing += lost;
            harmless += u64::from(lost == 0);
        }
    }
    println!("{tries} places, {harmless} without a loss, {missing} events lost in the others");
}

#[test]
fn what_is_missing_in_a_segment_is_counted_once_though_it_is_dropped_too() {
    let disk = SimulatedDisk::new(0);
    let config = settings(256 << 10, 16 << 10, WhenFull::DropOldest);
    let mut running = Scene::on(&disk, &config, &["a", "b"]);
    let append = |running: &mut Scene, number: u64| {
        // The two events fill a segment.
        running.put([(number, 6000), (number + 1, 6000)].into_iter());
        running.work(Step::Commit);
        running.work(Chore::Reclaim);
    };
    (0..8).step_by(2).for_each(|number| append(&mut running, number));
    disk.flip(&segment::file_name(Position::new(2)), FIRST_RECORD + RECORD_HEADER, 1);
    let first = Claim::of(0, 2);
    for _ in 0..2 {
        assert_eq!(running.next(0, ALL).map(|batch| batch.claim), Some(first));
        assert_eq!(running.next(0, ALL).map(|batch| batch.claim), Some(Claim::of(4, 6)));
        assert_eq!(running.counts[0].lost(), 2, "once, however often the cursor comes there");
        running.cursors[0].rewind();
    }
    // The claim on the wire stays, and segments after it are dropped.
    assert_eq!(running.next(1, ALL).map(|batch| batch.claim), Some(first));
    (8..40).step_by(2).for_each(|number| append(&mut running, number));
    assert!(disk.names().contains(&segment::file_name(Position::new(0))));
    assert!(!disk.names().contains(&segment::file_name(Position::new(2))));

    let conserved = |running: &Scene| {
        for (counts, (name, backlog)) in running.counts.iter().zip(running.queue.backlogs()) {
            let all = counts.delivered() + counts.lost() + backlog.events;
            assert_eq!(all, running.end(), "{name} has {backlog:?}");
        }
    };
    conserved(&running);
    while let Some(batch) = running.next(0, ALL) {
        running.cursors[0].acknowledge(batch.claim, Disposition::default());
        conserved(&running);
    }
    assert_eq!(running.counts[0].lost(), running.counts[1].lost());
    assert_eq!(running.queue.backlogs()[0].1.events, 0);
}

/// Method: the first events are missing, and those after them are read ahead. The time at which
/// missing events were received is unknown, and must not be taken for 1970.
#[test]
fn missing_events_make_no_output_lag_for_decades() {
    let disk = SimulatedDisk::new(0);
    let config = settings(256 << 10, 16 << 10, WhenFull::Reject);
    let mut running = Scene::on(&disk, &config, &["a"]);
    for number in (0..6).step_by(2) {
        running.put([(number, 6000), (number + 1, 6000)].into_iter());
        running.work(Step::Commit);
    }
    running.stop();
    disk.flip(&segment::file_name(Position::START), FIRST_RECORD + RECORD_HEADER, 1);
    let running = Scene::on(&disk, &config, &["a"]);
    assert!(running.read(0), "the events are read from the files");
    let (_, backlog) = running.queue.backlogs().remove(0);
    assert!(backlog.events >= 4, "{backlog:?}");
    assert!(backlog.lag < 3600.0, "{backlog:?}");
}

/// Method: two claims wait to be sent again, and the events of the first one are missing in their
/// file. An output that waits for these events must be told, so that it can send the second claim.
#[test]
fn an_output_that_waits_for_missing_events_hears_of_them() {
    let disk = SimulatedDisk::new(0);
    let config = settings(256 << 10, 16 << 10, WhenFull::Reject);
    let mut running = Scene::on(&disk, &config, &["a"]);
    for number in 0..2 {
        running.put(std::iter::once((number, 6000)));
        running.work(Step::Commit);
    }
    running.stop();
    let mut running = Scene::on(&disk, &config, &["a"]);
    let one = Take { bytes: u64::MAX, events: 1 };
    let claims = [(); 2].map(|()| running.next(0, one).expect("an event").claim);
    claims.iter().rev().for_each(|claim| running.cursors[0].release(*claim));
    disk.flip(&segment::file_name(Position::START), FIRST_RECORD + RECORD_HEADER, 1);
    let [first, second] = claims;
    assert!(matches!(running.cursors[0].redeliver(first), Redelivery::NotYet), "it is to be read");
    while running.read(0) {}
    assert_eq!(running.counts[0].lost(), 1);
    assert!(running.cursors[0].readable().now_or_never().is_some(), "the output waits for ever");
    assert!(matches!(running.cursors[0].redeliver(first), Redelivery::Gone));
    assert!(running.cursors[0].readable().now_or_never().is_none(), "there is nothing new");
    assert_eq!(running.retake(0, second).map(|batch| batch.events), Some(1));
}

/// Method: on a copy of a spool, nothing of one file, or of all files, can be read. The start must
/// fail, and change nothing.
#[test]
fn a_disk_that_can_not_be_read_is_not_damage() {
    let mut rng = Rng::with_seed(7);
    for _ in 0..40 {
        let spool = Spool::make(&mut rng);
        let names = spool.disk.names().into_iter();
        let names: Vec<_> = names.filter(|name| !name.starts_with(SPARES)).collect();
        for only in names.iter().map(Some).chain([None]) {
            let disk = copy(&spool.disk);
            let bytes = |name: &String| disk.contents(name).len() as u64;
            // A segment of one block has no records. A power loss may have left `synced` empty.
            let is_needed = |name: &String| {
                let is_known = ["cursors", "synced"].contains(&name.as_str());
                bytes(name) > BLOCK && (is_known || name.ends_with(".seg"))
            };
            let hit = names.iter().filter(|name| only.is_none_or(|only| only == *name));
            let hit: Vec<_> = hit.filter(|name| is_needed(name)).collect();
            for name in &hit {
                (0..bytes(name).div_ceil(BLOCK)).for_each(|at| disk.unreadable(name, at * BLOCK));
            }
            if hit.is_empty() {
                continue;
            }
            let (before, changes) = (disk.names(), disk.changes());
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            let telemetry = Telemetry::new();
            let counts = Counts::default();
            let outputs = spool.names.iter().map(|name| counts.output(&telemetry, name, true));
            let outputs: Vec<_> = outputs.collect();
            let path = Path::new("spool");
            let opened = recovery::open(shared, path, &spool.config, &telemetry, &outputs);
            let error = opened.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("start again when it works"), "{error:?} {hit:?}");
            assert_eq!((disk.names(), disk.changes()), (before, changes), "{hit:?}");
            assert_eq!(values(&telemetry, ["spool_corrupt_records_total"])[0], 0);
        }
    }
}
