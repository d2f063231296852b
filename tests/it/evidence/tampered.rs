//! Lines that somebody has changed in the files of the queue are not sent.

use super::recorded::{Recorded, wait_for_checkpoint};
use crate::support::prelude::*;
use crate::support::spool::forge_lines;

/// Returns a relay's directory and its consumer, which answers with 503 until the value is `true`.
pub(super) fn with_consumer_away() -> (Recorded, Arc<AtomicBool>) {
    with_consumer_that_answers(|| Answer::status(503))
}

/// Like [`with_consumer_away`], but the consumer gives this answer.
fn with_consumer_that_answers(
    answer: impl Fn() -> Answer + Send + Sync + 'static,
) -> (Recorded, Arc<AtomicBool>) {
    let mut recorded = Recorded::new();
    let is_there = Arc::new(AtomicBool::new(false));
    let there = Arc::clone(&is_there);
    recorded.sink = HttpSink::start(move |_| match there.load(Ordering::Relaxed) {
        true => Answer::status(200),
        false => answer(),
    });
    (recorded, is_there)
}

/// Changes the event at a position in its segment, and corrects the checksums.
pub(super) fn forge(spool: &Spool, position: u64) {
    let records = spool.records();
    let record = records.iter().find(|it| it.positions.contains(&position)).unwrap();
    let nth = usize::try_from(position - record.positions.start).unwrap();
    spool.edit(&record.segment, |bytes| {
        forge_lines(record, bytes, |lines| {
            let line = lines.split_mut(|byte| *byte == b'\n').nth(nth).unwrap();
            let at = memchr::memmem::find(line, b"10.0.0.1").unwrap();
            line[at + 7] = b'9';
        });
    });
}

/// Method: an event is set aside, and changed in its file, with and without a correct checksum, or
/// its file is deleted, without and with its name in the other directory.
#[test]
fn a_changed_event_that_is_set_aside_is_lost_and_not_sent() {
    for (corrects, deletes) in [(false, false), (true, false), (false, true)] {
        let mut recorded = Recorded::new();
        let works = Arc::new(AtomicBool::new(false));
        let there = Arc::clone(&works);
        let bad = events_of(&generated_batch(0, 20, 700)).swap_remove(3);
        recorded.sink = HttpSink::start(move |request| {
            let fails = !there.load(Ordering::Relaxed) && events_in(request).contains(&bad);
            Answer::status(if fails { 500 } else { 200 })
        });
        let config = recorded.config("");
        let relay = Relay::start(&config);
        recorded.post(&relay, 0, 20);
        wait_until("it is set aside", PATIENCE, || of_output(&relay, "output_aside_events") == 1.0);
        recorded.wait_until_signed();
        relay.finish(Backlog::Stable);
        let mut files = std::fs::read_dir(recorded.spool.path().join("set-aside")).unwrap();
        let file = files.next().unwrap().unwrap().path();
        let mut content = std::fs::read(&file).unwrap();
        let at = memchr::memmem::find(&content, b"10.0.0.1").unwrap();
        content[at + 7] = b'9';
        if corrects {
            let begin = memchr::memmem::find(&content, b"\"time\"").unwrap();
            let crc = format!("{:08x}", crc32c::crc32c(&content[begin..]));
            content[11..19].copy_from_slice(crc.as_bytes());
        }
        std::fs::write(&file, content).unwrap();
        if deletes {
            std::fs::remove_file(&file).unwrap();
        }
        works.store(true, Ordering::Relaxed);
        let relay = Relay::start(&config);
        relay.wait_until_delivered(PATIENCE);
        let metrics = relay.metrics();
        assert_eq!(metrics.count("error_total", &[("plugin", "consumer")]), 1);
        let tampered = metrics.count("evidence_errors_total", &[("reason", "tampered")]);
        assert_eq!(tampered, u64::from(!deletes));
        relay.finish(Backlog::Empty);
        recorded.events.remove(3);
        assert_same_set(&accepted_events(&recorded.sink), &recorded.events);
        recorded.check().assert(1, &["\nFAULT position 3 "]);
    }
}

/// Method: events come in while the consumer is down. Then the relay is killed, and two events in
/// different batches are changed in a segment, with correct checksums.
#[test]
fn changed_events_of_the_queue_are_lost_and_not_sent() {
    let (mut recorded, is_there) = with_consumer_away();
    let config = recorded.config("");
    let mut relay = Relay::start(&config);
    for seed in 0..5 {
        recorded.post(&relay, seed, 100);
    }
    recorded.wait_until_signed();
    relay.kill();
    let changed = [103, 399];
    changed.iter().for_each(|position| forge(&recorded.spool, *position));
    is_there.store(true, Ordering::Relaxed);
    let relay = Relay::start(&config);
    relay.wait_until_delivered(PATIENCE);
    let text = "events in the files of the queue were changed and do not match the evidence: they \
                are not sent, and count as lost; find out who can write to queue.directory";
    relay.wait_for_log(text, PATIENCE);
    let metrics = relay.metrics();
    assert_eq!(metrics.count("error_total", &[("plugin", "consumer")]), 2);
    assert!(metrics.count("evidence_errors_total", &[("reason", "tampered")]) >= 2);
    let mut expected = recorded.events.clone();
    let at = |position: &u64| usize::try_from(*position).unwrap();
    changed.iter().rev().for_each(|position| _ = expected.remove(at(position)));
    let stored = accepted_events(&recorded.sink);
    assert_same_set(&stored, &expected);
    wait_for_checkpoint(&recorded.log(), "the losses", || {
        let directory = recorded.spool.path().display().to_string();
        let shown = run_command(&["evidence", "show", &directory], Path::new("/")).stdout;
        String::from_utf8(shown).unwrap().matches("tampered").count() == 2
    });
    relay.finish(Backlog::Empty);
    let checked = recorded.check();
    checked.assert(
        1,
        &[
            "\nFAULT position 103 ",
            "\nFAULT position 399 ",
            "by the log, 2 events were lost at consumer: tampered",
            "1 event was changed in the queue before consumer could send it",
        ],
    );
}

/// Method: a restarted relay has sent the events of several segments in four requests, which the
/// consumer refuses with 429 only once all four have arrived. Then one event of the last request is
/// changed in its segment, and the claim is read and sent again.
#[test]
fn a_changed_event_of_a_claim_that_is_sent_again_is_lost_and_not_sent() {
    const FORGED: usize = 742;
    let later = Duration::from_millis(500);
    let (mut recorded, is_there) =
        with_consumer_that_answers(move || Answer::status(429).after(later));
    let config = recorded.config_with("concurrency = 4\nbatch = { max_events = 200 }\n", "");
    let mut relay = Relay::start(&config);
    for seed in 0..4 {
        recorded.post(&relay, seed, 200);
    }
    recorded.wait_until_signed();
    relay.kill();
    // The event is changed in this pause.
    let slow = "retry = { initial_interval = \"4s\", max_interval = \"4s\" }\n";
    assert!(config.contains(QUICK));
    let before = recorded.sink.requests().len();
    let relay = Relay::start(&config.replace(QUICK, slow));
    wait_until("the event is sent", PATIENCE, || {
        let requests = recorded.sink.requests();
        requests[before..].iter().any(|it| events_in(it).contains(&recorded.events[FORGED]))
    });
    relay.wait_for_log("output down, events are kept", PATIENCE);
    forge(&recorded.spool, FORGED as u64);
    is_there.store(true, Ordering::Relaxed);
    relay.wait_until_delivered(PATIENCE);
    let lost = relay.metrics().count("error_total", &[("plugin", "consumer")]);
    relay.finish(Backlog::Empty);
    let mut expected = recorded.events.clone();
    expected.remove(FORGED);
    assert_same_set(&accepted_events(&recorded.sink), &expected);
    assert_eq!(lost, 1);
    let checked = recorded.check();
    checked.assert(1, &["FAULT position 742 "]);
}
