//! Events that were set aside: they left the queue, were retried separately, and were delivered
//! late or given up. The entries are those of the recorder.

use super::*;
use ::queue::{Claim, Fates, Finished, Outcome, Position};
use recorder::outcome;

/// The position of the event that was set aside.
const ASIDE: u64 = 7;

/// The time between two batches, in milliseconds.
const PAUSE: u64 = 10_000;

/// The fates of a claim in which only [`ASIDE`] was not sent.
fn aside(fate: Fate) -> Fates {
    Fates { not_delivered: vec![(Position::new(ASIDE), fate)], ..Fates::default() }
}

/// Adds the recorder's entries about a claim of the output `a`.
fn finish(log: &mut Made, claim: std::ops::Range<u64>, fates: Fates, at: u64) {
    end(log, claim, Outcome::Settled(fates), at);
}

fn end(log: &mut Made, claim: std::ops::Range<u64>, outcome: Outcome, at: u64) {
    let (output, claim) = ("a".to_owned(), Claim::of(claim.start, claim.end));
    let finished = Finished { output, claim, at: log.time(at), outcome };
    for made in outcome::entries(&[finished], || Salt([7; SALT_BYTES])) {
        assert!(made.sent.is_none(), "no line was changed");
        log.push(&made.entry);
    }
}

/// Sixty lines are sent, ten every ten seconds. One of the first ten is set aside. `decided` has
/// the later fates of this event, with their times.
fn log(decided: &[(u64, Fates)]) -> Made {
    let mut log = Made::new("example.org/a");
    log.start(0, "1", &[("a", 0)]);
    log.accepted(0, &lines('a', 60), 5);
    let mut decided = decided.iter().cloned().peekable();
    for batch in 0..6 {
        let at = 10 + batch * PAUSE;
        while let Some((at, fates)) = decided.next_if(|it| it.0 <= at) {
            finish(&mut log, ASIDE..ASIDE + 1, fates, at);
        }
        let fates = if batch == 0 { aside(Fate::Aside) } else { Fates::default() };
        finish(&mut log, batch * 10..batch * 10 + 10, fates, at);
    }
    decided.for_each(|(at, fates)| finish(&mut log, ASIDE..ASIDE + 1, fates, at));
    log
}

fn stopped(mut log: Made) -> Made {
    log.stop(10 * PAUSE, "1", &[("a", 60)]);
    log.sign();
    log
}

fn line(at: u64) -> String {
    format!("a{at}")
}

/// Returns the first `count` lines without those in `absent`.
fn without(count: usize, absent: &[u64]) -> Vec<String> {
    let absent: Vec<_> = absent.iter().copied().map(line).collect();
    lines('a', count).into_iter().filter(|line| !absent.contains(line)).collect()
}

/// Checks an export whose last `settle` milliseconds may be missing.
fn export(log: &Made, stored: &[String], settle: u64) -> Report {
    check(&[log], stored, |it| it.settle = Duration::from_millis(settle))
}

#[test]
fn an_event_that_is_still_aside_may_be_stored_and_need_not() {
    let log = stopped(log(&[]));
    let (all, rest) = (lines('a', 60), without(60, &[ASIDE]));
    let texts = ["events 59/59 found; missing 0", "extra 0", "pending 0", "set aside 1"];
    assert(&export(&log, &rest, 0), 0, &texts);
    assert(&export(&log, &all, 0), 0, &texts);
    let row = "output a: dropped 0, duplicate 0, changed 0, given up 0, dead letters 0, lost 0, not \
               its own 0, set aside 1";
    assert(&export(&log, &all, 0), 0, &[row]);
    let log_alone = check(&[&log], &[], |request| request.events.clear());
    assert(&log_alone, 0, &["events 60/60 found", "set aside 1"]);
    // Another event is missing, or another line is in the place of the event.
    let report = export(&log, &without(60, &[ASIDE, 8]), 0);
    assert(&report, 1, &["missing 1", "FAULT position 8 2", "set aside 1"]);
    let mut altered = all;
    altered[7] = "b".to_owned();
    assert(&export(&log, &altered, 0), 1, &["missing 0, changed 0, extra 1", "set aside 1"]);
}

#[test]
fn a_late_line_is_missing_only_if_the_export_ends_clearly_behind_it() {
    // The late line was sent after forty others, five seconds before the next ones.
    let log = stopped(log(&[(35_000, Fates::default())]));
    assert(&export(&log, &lines('a', 60), 0), 0, &["events 60/60 found", "set aside 0"]);
    let before = export(&log, &without(40, &[ASIDE]), 0);
    assert(&before, 2, &["events 39/60 found; missing 0", "not settled 0, not exported 21"]);
    let shortly_behind = export(&log, &without(50, &[ASIDE]), 30_000);
    let texts = ["events 49/60 found; missing 0", "not settled 1, not exported 10"];
    assert(&shortly_behind, 2, &texts);
    for (count, settle) in [(50, 1000), (60, 0), (60, 10_000)] {
        let behind = export(&log, &without(count, &[ASIDE]), settle);
        assert(&behind, 1, &["missing 1", "FAULT position 7 2", "its line is not stored"]);
    }
    // The order at the consumer: the late line comes after the first forty.
    let changed = [without(40, &[ASIDE]), vec!["b".to_owned()], lines('a', 60)[40..].to_vec()];
    let changed = changed.concat();
    assert(&export(&log, &changed, 0), 1, &["missing 0, changed 1", "in its place: "]);
}

/// Method: the consumer stored the first attempt and answered with an error. The export ends long
/// before the late attempt.
#[test]
fn a_late_line_that_is_stored_shows_no_end_of_the_export() {
    let log = stopped(log(&[(35_000, Fates::default())]));
    let early = export(&log, &lines('a', 20), 0);
    assert(&early, 2, &["events 20/60 found; missing 0", "not exported 40"]);
    let dishonest = export(&log, &without(20, &[11]), 0);
    assert(&dishonest, 1, &["events 19/60 found; missing 1", "FAULT position 11 2"]);
    // Both tries are stored.
    let twice = [lines('a', 60), vec![line(ASIDE)]].concat();
    assert(&export(&log, &twice, 0), 0, &["events 60/60 found", "extra 0", "duplicate 1"]);
}

/// Method: the late entry and that of later events have the same time and are in the order of
/// positions, but the consumer has got the later events first.
#[test]
fn entries_of_one_time_do_not_say_which_line_left_first() {
    let log = stopped(log(&[(10 + 4 * PAUSE, Fates::default())]));
    let honest = export(&log, &without(50, &[ASIDE]), 0);
    assert(&honest, 2, &["missing 0", "not settled 1, not exported 10"]);
    assert(&export(&log, &without(60, &[ASIDE]), 0), 1, &["missing 1", "FAULT position 7 2"]);
}

#[test]
fn an_event_that_is_given_up_after_it_was_set_aside_is_lost_once() {
    let (all, rest) = (lines('a', 60), without(60, &[ASIDE]));
    for (fate, lost, row) in [
        (Fate::Lost, 1, "given up 1, dead letters 0, lost 0, not its own 0, set aside 0"),
        (Fate::DeadLetter, 0, "given up 0, dead letters 1, lost 0, not its own 0, set aside 0"),
    ] {
        let fates = Fates { rest: Some(fate), ..Fates::default() };
        let log = stopped(log(&[(35_000, fates)]));
        // A consumer may have stored an event that it refused.
        for stored in [&rest, &all] {
            let texts = [&format!("lost {lost},"), row, "events 59/59 found; missing 0", "extra 0"];
            assert(&export(&log, stored, 0), lost, &texts);
            let allowed = check(&[&log], stored, |request| request.allows_lost = true);
            assert(&allowed, 0, &[&format!("lost {lost},"), "set aside 0"]);
        }
        let dishonest = check(&[&log], &without(60, &[ASIDE, 8]), |request| {
            (request.allows_lost, request.settle) = (true, Duration::ZERO);
        });
        assert(&dishonest, 1, &["missing 1", "FAULT position 8 2"]);
    }
    // The output was removed while the event was aside.
    let mut log = log(&[]);
    end(&mut log, ASIDE..ASIDE + 1, Outcome::Lost("removed"), 6 * PAUSE);
    let log = stopped(log);
    for stored in [&rest, &all] {
        let texts =
            ["lost 1,", "lost 1, not its own 0, set aside 0", "extra 0", "FAULT position 7"];
        assert(&export(&log, stored, 0), 1, &texts);
    }
}

/// Method: the relay is killed, and writes the same entries again.
#[test]
fn an_event_that_is_set_aside_or_decided_twice_is_no_fault() {
    let (all, rest) = (lines('a', 60), without(60, &[ASIDE]));
    let lost = || Fates { rest: Some(Fate::Lost), ..Fates::default() };
    let killed = |decided: &[(u64, Fates)], again: &[(std::ops::Range<u64>, Fates)]| {
        let mut log = log(decided);
        log.boot += 1;
        log.start(7 * PAUSE, "1", &[("a", 0)]);
        for (claim, fates) in again {
            finish(&mut log, claim.clone(), fates.clone(), 7 * PAUSE);
        }
        stopped(log)
    };
    let (late, alone) = (|| (35_000, Fates::default()), ASIDE..ASIDE + 1);
    let again = || (0..60, aside(Fate::Aside));
    // The event is set aside again, and may have been delivered before.
    let log = killed(&[], &[again()]);
    assert(&export(&log, &rest, 0), 0, &["events 59/59 found", "set aside 1"]);
    assert(&export(&log, &without(60, &[ASIDE, 8]), 0), 1, &["missing 1", "set aside 1"]);
    let log = killed(&[late()], &[again()]);
    assert(&export(&log, &all, 0), 0, &["events 60/60 found", "set aside 0"]);
    assert(&export(&log, &rest, 0), 1, &["events 59/60 found; missing 1", "FAULT position 7 2"]);
    // The event gets its final fate again.
    let log = killed(&[late()], &[(alone.clone(), Fates::default())]);
    assert(&export(&log, &all, 0), 0, &["events 60/60 found", "duplicate 0", "set aside 0"]);
    let twice = [all.clone(), vec![line(ASIDE)]].concat();
    assert(&export(&log, &twice, 0), 0, &["events 60/60 found", "extra 0", "duplicate 1"]);
    assert(&export(&log, &rest, 0), 1, &["missing 1", "FAULT position 7 2"]);
    let log = killed(&[(35_000, lost())], &[again(), (alone, lost())]);
    assert(&export(&log, &rest, 0), 1, &["lost 1,", "given up 1", "missing 0", "set aside 0"]);
}

/// Method: the relay stops while the event is aside, and delivers it after the next start.
#[test]
fn a_late_entry_after_a_restart_is_no_gap_and_no_step_back() {
    let mut log = log(&[]);
    log.stop(7 * PAUSE, "1", &[("a", 60)]);
    log.start(8 * PAUSE, "1", &[("a", 60)]);
    log.accepted(60, &lines('b', 5), 8 * PAUSE + 1);
    finish(&mut log, 60..65, Fates::default(), 8 * PAUSE + 2);
    finish(&mut log, ASIDE..ASIDE + 1, Fates::default(), 8 * PAUSE + 3);
    log.stop(9 * PAUSE, "1", &[("a", 65)]);
    log.sign();
    let all = [lines('a', 60), lines('b', 5)].concat();
    let report = export(&log, &all, 0);
    assert(&report, 0, &["events 65/65 found", "set aside 0", "pending 0"]);
    assert_eq!(report.faults.count(), 0);
    let rest: Vec<_> = all.iter().filter(|it| **it != line(ASIDE)).cloned().collect();
    assert(&export(&log, &rest, 0), 2, &["missing 0", "not exported 1"]);
    let rest: Vec<_> = all.iter().filter(|it| *it != "a9").cloned().collect();
    assert(&export(&log, &rest, 0), 1, &["missing 1", "FAULT position 9 2"]);
}
