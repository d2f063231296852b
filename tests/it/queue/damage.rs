//! Damage to the files of the queue on disk. The relay still starts, delivers every other record,
//! and counts the missing events. The unit tests of the queue damage every place of a file.
//!
//! Method: a template spool is made once, with two outputs at different positions. Each case copies
//! the template, damages one place of the copy and starts the real program on it. Only events of
//! the damaged place may be missing at the consumers, and the missing events must count as lost.

use std::ops::Range;

use crate::support::numbered::list;
use crate::support::prelude::*;
use crate::support::spool::Record;

const EVENTS: u64 = 1500;

/// How many events the output `ahead` has delivered. Its backlog therefore does not begin at the
/// first record.
const DELIVERED: u64 = 600;

const QUEUE: &str = "segment_bytes = \"128KiB\"\n";

fn config(spool: &Spool, ahead: &Tallying, behind: &Tallying) -> String {
    let outputs = [ahead.output("ahead", ""), behind.output("behind", "")].concat();
    format!("{BASE}{outputs}{}", spool.queue(QUEUE))
}

/// Makes a spool of [`EVENTS`] events, with event n at position n. The backlog of `behind` has all
/// of them, and that of `ahead` the events from [`DELIVERED`] on.
fn template() -> Spool {
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
    relay.stop();
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

/// Damage to a segment: the file is deleted.
const GONE: &str = "gone";

/// Damage to a segment: the file is overwritten with random bytes.
const GARBAGE: &str = "garbage";

/// Damage to a segment: the file is cut to length 0.
const EMPTY: &str = "empty";

/// Damage to a segment: a byte of one record is changed.
const BYTE: &str = "byte";

fn positions(records: &[Record], segment: &Path) -> BTreeSet<u64> {
    let of_segment = records.iter().filter(|record| record.segment == segment);
    of_segment.flat_map(|record| record.positions.clone()).collect()
}

/// Method: the first, the second and the last segment are deleted, and one of them is cut, filled
/// with random bytes or filled with zeros, or has one changed byte, each in a copy of the template.
/// Only events of that segment (after a changed byte: of that record) may be missing, they must
/// count as lost, and the next start must count nothing more.
#[test]
fn a_segment_that_is_gone_or_beyond_recognition_costs_its_events_at_most() {
    let template = template();
    let records = template.records();
    let segments = template.segments();
    let mut rng = rng();
    let three = [&segments[0], &segments[1], segments.last().unwrap()];
    let mut cases: Vec<_> = three.map(|segment| (segment, GONE)).to_vec();
    let others = [EMPTY, "a piece of its header", "half", GARBAGE, "zeros", BYTE];
    cases.extend(others.into_iter().enumerate().map(|(nth, what)| (three[nth % 3], what)));
    for (segment, what) in cases {
        let (mut damaged, spool) = (positions(&records, segment), template.copy());
        let of_segment: Vec<_> =
            records.iter().filter(|record| record.segment == *segment).collect();
        let record = of_segment[of_segment.len() / 2];
        match what {
            GONE => std::fs::remove_file(spool.path().join(segment)).unwrap(),
            EMPTY => spool.edit(segment, Vec::clear),
            GARBAGE => spool.edit(segment, |bytes| rng.fill(bytes)),
            "zeros" => spool.edit(segment, |bytes| bytes.fill(0)),
            BYTE => {
                damaged = record.positions.clone().collect();
                spool.edit(segment, |bytes| bytes[record.bytes.end - 10] ^= 1);
            }
            "a piece of its header" => spool.edit(segment, |bytes| bytes.truncate(17)),
            // The cut is within the record's lines, so the record's header shows that bytes are
            // missing.
            _ => spool.edit(segment, |bytes| bytes.truncate(record.bytes.end - 10)),
        }
        let about = format!("{}: {what}", segment.display());
        let Outcome { missing, log, .. } = deliver(&spool, &about, &damaged);
        let is_all = [GONE, GARBAGE, "zeros", BYTE].contains(&what);
        assert!(!is_all || missing == damaged, "{about}: {missing:?}");
        let name = segment.file_stem().unwrap().to_str().unwrap().trim_start_matches('0');
        assert!(what != BYTE || log.contains(name), "{about}: the log names the segment: {log}");
        assert_counted_once(&spool, &about);
    }
}

#[test]
fn what_is_not_of_the_queue_is_left_alone() {
    let spool = template();
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
