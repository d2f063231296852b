//! Damage to the files of the queue on disk: changed bytes, and worse. The relay still starts,
//! delivers every other record, counts the missing events, and keeps a copy of the damaged bytes.
//!
//! Method: a template spool is made once, with two outputs at different positions. Each case copies
//! the template, damages one place of the copy and starts the real program on it. Only events of
//! the damaged record may be missing at the consumers, and the missing events must count as lost.

use std::ops::Range;

use crate::support::numbered::{events, list};
use crate::support::prelude::*;
use crate::support::spool::{BLOCK, RECORD_HEADER, Record, SEGMENT_HEADER, group_behind, slots};

const EVENTS: u64 = 1500;

/// How many events the output `ahead` has delivered. Its backlog therefore does not begin at the
/// first record.
const DELIVERED: u64 = 600;

const QUEUE: &str = "segment_bytes = \"128KiB\"\n";

fn config(spool: &Spool, ahead: &Tallying, behind: &Tallying) -> String {
    let outputs = [ahead.output("ahead", ""), behind.output("behind", "")].concat();
    format!("{BASE}{outputs}{}", spool.queue(QUEUE))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stopped,
    Killed,
}

/// Makes a spool of [`EVENTS`] events, with event n at position n. The backlog of `behind` has all
/// of them, and that of `ahead` the events from [`DELIVERED`] on.
fn template(end: End) -> Spool {
    let spool = Spool::new();
    let (mut ahead, behind) = (Tallying::tcp(), Tallying::http().closed());
    let mut relay = Relay::start(&config(&spool, &ahead, &behind));
    let post = |relay: &Relay, numbers: Range<u64>| {
        let mut start = numbers.start;
        while start < numbers.end {
            // The records have many sizes, and some have a single event.
            let events = (start % 7 * 5 + 1).min(numbers.end - start);
            assert_eq!(relay.post(&list(0, start..start + events)).status, 200);
            start += events;
        }
    };
    post(&relay, 0..DELIVERED);
    relay.wait_for_metrics("the first deliveries", PATIENCE, |metrics| {
        (metrics.value("output_backlog_events", &[("output", "ahead")]) == 0.0).then_some(())
    });
    ahead.close();
    post(&relay, DELIVERED..EVENTS);
    match end {
        End::Stopped => drop(relay.stop()),
        End::Killed => relay.kill(),
    }
    assert!(spool.segments().len() >= 4, "{:?}", spool.segments());
    let records = spool.records();
    assert_eq!(records.first().unwrap().positions.start, 0);
    assert!(records.windows(2).all(|two| two[0].positions.end == two[1].positions.start));
    assert_eq!(records.last().unwrap().positions.end, EVENTS);
    spool
}

/// The result of a start on a damaged spool.
struct Outcome {
    /// The events that `behind` did not receive.
    missing: BTreeSet<u64>,
    metrics: Metrics,
    log: String,
}

/// Starts the relay on a damaged spool and waits until it has delivered everything. Only the events
/// in `damaged` may be missing. `what` describes the damage in messages of failures.
fn deliver(spool: &Spool, what: &str, damaged: &BTreeSet<u64>) -> Outcome {
    let (ahead, behind) = (Tallying::tcp(), Tallying::http());
    let config = config(spool, &ahead, &behind);
    let mut relay = Relay::with(&config).launch();
    assert!(relay.listens_or_exits(1), "{what}: it does not start:\n{}", relay.log_text());
    relay.settle(Backlog::Empty);
    let metrics = relay.metrics();
    relay.stop();
    let log = relay.log_text();
    wait_until("what was sent to be read", PATIENCE, || ahead.open() == 0);
    let numbers = |consumer: &Tallying| -> BTreeSet<u64> {
        consumer.tally.ids().iter().map(|id| id.number).collect()
    };
    let missing: BTreeSet<u64> = &(0..EVENTS).collect() - &numbers(&behind);
    assert!(
        missing.is_subset(damaged),
        "{what}: undamaged events are missing: {:?}\n{log}",
        missing.difference(damaged).collect::<Vec<_>>()
    );
    let missing_ahead: BTreeSet<u64> = &(DELIVERED..EVENTS).collect() - &numbers(&ahead);
    assert!(missing_ahead.is_subset(&missing), "{what}: the outputs read different logs\n{log}");
    let lost = |output: &str| metrics.value("error_total", &[("plugin", output)]);
    // If the end of the log is overwritten with random bytes, the number of lost events is unknown.
    // The relay then counts everything that looks like a record, and can count too many.
    let counted = lost("behind");
    let exact = counted == real(missing.len());
    let is_end = missing.contains(&(EVENTS - 1)) && what.ends_with(GARBAGE);
    assert!(
        exact || is_end && counted > real(missing.len()),
        "{what}: {counted}, {missing:?}\n{log}"
    );
    // The cursor of `ahead` may be older than its deliveries. The missing events that it passes
    // again are counted for it too.
    assert!(lost("ahead") >= real(missing_ahead.len()), "{what}: {}\n{log}", lost("ahead"));
    assert!(lost("ahead") <= lost("behind"), "{what}: {}\n{log}", lost("ahead"));
    assert_eq!(lost("queue"), 0.0, "{what}");
    // If a file is gone or empty, there is no record in it that could count as corrupt.
    if !missing.is_empty() && !what.ends_with(GONE) && !what.ends_with(EMPTY) {
        let corrupt = metrics.value("spool_corrupt_records_total", &[]);
        assert!(corrupt > 0.0, "{what}: {missing:?} missing, and no damage counted\n{log}");
    }
    Outcome { missing, metrics, log }
}

#[allow(clippy::cast_precision_loss, reason = "a few thousand")]
fn real(count: usize) -> f64 {
    count as f64
}

/// Returns the bytes that every run changes. They are in the headers and lines of the first record,
/// the last record and the one where `ahead` continues, in headers of segments, and in both slots
/// of the cursors file.
fn edges(spool: &Spool, records: &[Record]) -> Vec<(PathBuf, usize)> {
    let goes_on = records.iter().find(|record| record.positions.contains(&DELIVERED));
    let mut places = Vec::new();
    for record in [records.first(), goes_on, records.last()].into_iter().flatten() {
        let start = record.bytes.start;
        for at in [start, start + 33, start + RECORD_HEADER, record.bytes.end - 1] {
            places.push((record.segment.clone(), at));
        }
    }
    let segments = spool.segments();
    places.extend(segments.first().map(|segment| (segment.clone(), 16)));
    places.extend(segments.last().map(|segment| (segment.clone(), 44)));
    let cursors = PathBuf::from("cursors");
    let bytes = std::fs::read(spool.path().join(&cursors)).expect("cursors");
    places.extend(slots(&bytes).into_iter().map(|(slot, _)| (cursors.clone(), slot.start + 50)));
    places
}

/// Returns a random byte of a file. Important bytes are chosen more often.
fn place(spool: &Spool, records: &[Record], rng: &mut fastrand::Rng) -> (PathBuf, usize) {
    // The last record, the first one, the one where `ahead` continues, or any.
    let record = match rng.u32(..6) {
        0 => records.last(),
        1 => records.first(),
        2 => records.iter().find(|record| record.positions.contains(&DELIVERED)),
        _ => records.get(rng.usize(..records.len())),
    };
    let record = record.expect("a record");
    let segments = spool.segments();
    let segment = segments[rng.usize(..segments.len())].clone();
    match rng.u32(..6) {
        0 => (record.segment.clone(), rng.usize(record.bytes.clone())),
        1 => (record.segment.clone(), record.bytes.start + rng.usize(..RECORD_HEADER)),
        2 => (segment, rng.usize(..SEGMENT_HEADER)),
        3 => {
            let cursors = PathBuf::from("cursors");
            let bytes = std::fs::read(spool.path().join(&cursors)).expect("cursors");
            let (slot, _) = slots(&bytes)[rng.usize(..2)].clone();
            (cursors, rng.usize(slot))
        }
        _ => {
            let files = spool.files();
            let mut files = files.into_iter().filter(|(_, file)| !file.bytes.is_empty());
            let nth = rng.usize(..files.by_ref().count().max(1));
            let (path, file) = spool
                .files()
                .into_iter()
                .filter(|(_, file)| !file.bytes.is_empty())
                .nth(nth)
                .expect("as counted");
            (path, rng.usize(..file.bytes.len()))
        }
    }
}

/// Method: one byte is changed at a time, first at the [`edges`], then at random places, in a spool
/// whose relay ended in this way. After each change, exactly the events of the record with the byte
/// must be missing (none if no record has the byte), the quarantine must have the changed bytes,
/// and the log must name the segment.
fn flips(end: End) {
    let mut rng = rng();
    let template = template(end);
    let records = template.records();
    let count = number_from("KUBE_AUDIT_FORWARDER_FLIPS", 32) / 2;
    let count = usize::try_from(count).expect("a count");
    let mut with_losses = 0;
    let mut places = edges(&template, &records);
    while places.len() < count {
        places.push(place(&template, &records, &mut rng));
    }
    for (round, (file, at)) in places.into_iter().enumerate() {
        let mask = rng.u8(1..);
        let spool = template.copy();
        spool.edit(&file, |bytes| bytes[at] ^= mask);
        let hit = |record: &&Record| record.segment == file && record.bytes.contains(&at);
        let record = records.iter().find(hit);
        let damaged =
            record.map_or_else(BTreeSet::new, |record| record.positions.clone().collect());
        let what = format!("{end:?}, {} byte {at} ^ {mask:#04x}, in {record:?}", file.display());
        let outcome = deliver(&spool, &what, &damaged);
        // A checksum covers every byte of a record, so any change to it costs all its events.
        assert_eq!(outcome.missing, damaged, "{what}: delivered all the same\n{}", outcome.log);
        if let Some(record) = record {
            with_losses += 1;
            let damaged = std::fs::read(template.path().join(&file)).unwrap();
            let around =
                at.saturating_sub(20).max(record.bytes.start)..(at + 20).min(record.bytes.end);
            let mut around_it = damaged[around.clone()].to_vec();
            around_it[at - around.start] ^= mask;
            let kept = |file: &Vec<u8>| memchr::memmem::find(file, &around_it).is_some();
            let copies = spool.quarantined();
            assert!(copies.iter().any(kept), "{what}: not among {} copies", copies.len());
            let name = file.file_stem().unwrap().to_str().unwrap();
            let told = name.trim_start_matches('0');
            assert!(outcome.log.contains(told), "{what}: the log names the segment");
        }
        if round % 6 == 0 {
            assert_counted_once(&spool, &what);
        }
    }
    eprintln!("{count} flips of a spool that was {end:?}: {with_losses} records lost and counted");
}

/// Checks that the next start finds no backlog, and does not count the same damage again.
fn assert_counted_once(spool: &Spool, what: &str) {
    let (ahead, behind) = (Tallying::tcp(), Tallying::http());
    let relay = Relay::start(&config(spool, &ahead, &behind));
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("output_start_events"), 0.0, "{what}: {}", relay.log_text());
    assert_eq!(metrics.sum("error_total"), 0.0, "{what}: {}", relay.log_text());
    assert_eq!(relay.post(&list(0, EVENTS..EVENTS + 10)).status, 200);
    relay.finish(Backlog::Empty);
    wait_until("what was sent to be read", PATIENCE, || ahead.open() == 0);
    assert_eq!((ahead.tally.count(), behind.tally.count()), (10, 10), "{what}");
}

#[test]
fn a_changed_byte_after_a_clean_stop_costs_its_record_at_most() {
    flips(End::Stopped);
}

#[test]
fn a_changed_byte_after_a_kill_costs_its_record_at_most() {
    flips(End::Killed);
}

/// Damage to a segment: the file is deleted.
const GONE: &str = "gone";

/// Damage to a segment: the file is overwritten with random bytes.
const GARBAGE: &str = "garbage";

/// Damage to a segment: the file is cut to length 0.
const EMPTY: &str = "empty";

fn positions(records: &[Record], segment: &Path) -> BTreeSet<u64> {
    let of_segment = records.iter().filter(|record| record.segment == segment);
    of_segment.flat_map(|record| record.positions.clone()).collect()
}

/// Method: the first, the second and the last segment are deleted, and one of them is cut, filled
/// with random bytes or filled with zeros, each in a copy of the template. Only events of that
/// segment may be missing, they must count as lost, and the next start must count nothing more.
#[test]
fn a_segment_that_is_gone_or_beyond_recognition_costs_its_events_at_most() {
    let template = template(End::Stopped);
    let records = template.records();
    let segments = template.segments();
    let mut rng = rng();
    let three = [&segments[0], &segments[1], segments.last().unwrap()];
    let mut cases: Vec<_> = three.map(|segment| (segment, GONE)).to_vec();
    let others = [EMPTY, "a piece of its header", "half", GARBAGE, "zeros"];
    cases.extend(others.into_iter().enumerate().map(|(nth, what)| (three[nth % 3], what)));
    for (segment, what) in cases {
        let (damaged, spool) = (positions(&records, segment), template.copy());
        let of_segment: Vec<_> =
            records.iter().filter(|record| record.segment == *segment).collect();
        let record = of_segment[of_segment.len() / 2];
        match what {
            GONE => std::fs::remove_file(spool.path().join(segment)).unwrap(),
            EMPTY => spool.edit(segment, Vec::clear),
            GARBAGE => spool.edit(segment, |bytes| rng.fill(bytes)),
            "zeros" => spool.edit(segment, |bytes| bytes.fill(0)),
            "a piece of its header" => spool.edit(segment, |bytes| bytes.truncate(17)),
            // The cut is within the record's lines, so the record's header shows that bytes are
            // missing.
            _ => spool.edit(segment, |bytes| bytes.truncate(record.bytes.end - 10)),
        }
        let about = format!("{}: {what}", segment.display());
        let missing = deliver(&spool, &about, &damaged).missing;
        let is_all = [GONE, GARBAGE, "zeros"].contains(&what);
        assert!(!is_all || missing == damaged, "{about}: {missing:?}");
        assert_counted_once(&spool, &about);
    }
}

#[test]
fn what_is_not_of_the_queue_is_left_alone() {
    let spool = template(End::Stopped);
    let strange = ["segments/lost+found/file", "segments/readme.txt", "segments/7.seg", "note"];
    for path in strange {
        let path = spool.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "somebody's").unwrap();
    }
    let outcome = deliver(&spool, "strange files", &BTreeSet::new());
    assert_eq!(outcome.metrics.value("spool_corrupt_records_total", &[]), 0.0, "{}", outcome.log);
    for path in strange {
        assert_eq!(std::fs::read(spool.path().join(path)).unwrap(), b"somebody's", "{path}");
    }
}

/// Method: a group of two records follows the log of a killed relay, as a crash during a write
/// leaves it: complete, cut, or with sectors of 512 bytes that still have zeros. No sender got a
/// 200 for the group, so nothing may be missing, nothing may count as corrupt, and nothing may be
/// quarantined.
#[test]
fn a_write_that_was_not_finished_costs_nothing() {
    let template = template(End::Killed);
    let records = template.records();
    let last = records.last().unwrap();
    let lines = |numbers: Range<u64>| {
        let line = |event: Vec<u8>| [&event[..], b"\n"].concat();
        events(0, numbers).into_iter().flat_map(line).collect::<Vec<u8>>()
    };
    let (first, second) = (lines(EVENTS..EVENTS + 100), lines(EVENTS + 100..EVENTS + 150));
    let at = last.bytes.end.next_multiple_of(BLOCK);
    let write = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let spool = template.copy();
        spool.edit(&last.segment, |bytes| {
            let mut group =
                group_behind(&last.segment, &bytes[last.bytes.start..], &[&first, &second]);
            let length = group.len();
            change(&mut group);
            // If the group was cut, the file ends with it. Otherwise the bytes that were reserved
            // for the segment follow.
            bytes.resize(bytes.len().max(at + length), 0);
            bytes[at..at + group.len()].copy_from_slice(&group);
            if group.len() < length {
                bytes.truncate(at + group.len());
            }
        });
        let outcome = deliver(&spool, what, &BTreeSet::new());
        let corrupt = outcome.metrics.value("spool_corrupt_records_total", &[]);
        assert_eq!(corrupt, 0.0, "{what}: nobody was told of it\n{}", outcome.log);
        assert!(spool.quarantined().is_empty(), "{what}: it was never in the queue");
        assert_counted_once(&spool, what);
    };
    write("all of it, but not synced", &|_| {});
    write("cut in its lines", &|group| group.truncate(first.len() / 2));
    for sectors in [0..1, 9..20] {
        let zeros = sectors.start * 512..sectors.end * 512;
        write(&format!("without its sectors {sectors:?}"), &|group| group[zeros.clone()].fill(0));
    }
    write("without its second half", &|group| {
        let half = group.len() / 2 / 512 * 512;
        group[half..].fill(0);
    });
}
