use super::super::said::Moment;
use super::super::said::tests::said;
use super::super::tests::{Small, seconds};
use super::*;
use crate::truth::{Death, Kind};

/// Writes letters at these seconds in a life from second 10 to 30, which reports `count` at its
/// end. Returns the seconds of the counted letters.
fn case(written: &[u64], count: u64, kind: Kind) -> Vec<u64> {
    case_with(written, count, kind, &[])
}

/// Like [`case`], and the disk refuses syncs in these spans of seconds.
fn case_with(written: &[u64], count: u64, kind: Kind, refusing: &[(u64, u64)]) -> Vec<u64> {
    let mut small = Small::new();
    small.truth.refusing = refusing.iter().map(|(a, b)| (seconds(*a), seconds(*b))).collect();
    small.truth.deaths.push(Death { begun: seconds(9), ended: Some(seconds(9)), kind });
    small.dies(30, kind);
    let serials = small.made(written.len(), "get");
    serials.iter().zip(written).for_each(|(serial, at)| small.letter_at(*at, *serial));
    let told = |at: u64, count: u64| {
        let text = format!("dead_letter_events_total{{output=\"out\"}} {count}\n");
        let (started, asked) = (seconds(10), seconds(at));
        Said { started, asked, answered: asked, ..said(Moment::Any, &text) }
    };
    let said = [told(12, 0), told(30, count), Said { started: seconds(31), ..told(50, 7) }];
    let counted = counted(&small.letters, "out", &small.truth, &said);
    counted.iter().map(|letter| letter.at.as_secs()).collect()
}

#[test]
fn a_letter_whose_sync_was_under_way_at_a_kill_is_not_counted() {
    assert_eq!(case(&[21, 29], 2, Kind::Kill), [21, 29]);
    assert_eq!(case(&[21, 29], 1, Kind::Kill), [21]);
    assert_eq!(case(&[21, 29], 1, Kind::PowerLoss), [21]);
    assert!(case(&[20, 29], 0, Kind::Kill).is_empty());
    // The output does not wait this long.
    assert_eq!(case(&[19, 29], 0, Kind::Kill), [19]);
    assert_eq!(case(&[18, 19], 0, Kind::Kill), [18, 19]);
    // A relay that shuts down in order waits for its letters.
    assert_eq!(case(&[21, 29], 1, Kind::Drain), [21, 29]);
}

#[test]
fn a_letter_whose_sync_has_failed_is_not_counted() {
    let case = |count| case_with(&[14, 16, 19], count, Kind::PowerLoss, &[(15, 17)]);
    assert_eq!(case(3), [14, 16, 19]);
    assert_eq!(case(2), [14, 19]);
    assert_eq!(case(0), [14, 19], "the disk has taken the others");
    assert_eq!(case_with(&[16, 29], 1, Kind::Kill, &[(15, 17)]), [16]);
}

#[test]
fn letters_of_other_lives_are_counted() {
    assert_eq!(case(&[5, 29], 0, Kind::Kill), [5]);
    assert_eq!(case(&[29, 40], 0, Kind::Kill), [40]);
    assert_eq!(case(&[5, 40], 0, Kind::Kill), [5, 40]);
}
