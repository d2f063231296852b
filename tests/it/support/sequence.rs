//! Checks that events arrived at least once and in order: events may be repeated, but none is
//! missing, and none arrives before its turn.

/// Checks that all of `expected` arrived in the given runs. A run has the events of one connection,
/// or of one life of a consumer's process.
///
/// Each run must be a contiguous part of `expected` that begins no later than the first event that
/// had not arrived before. At the end, all events must have arrived.
pub(crate) fn assert_covers(expected: &[Vec<u8>], runs: &[Vec<Vec<u8>>]) {
    let covered = covered(expected, runs, |_, _| false);
    assert_eq!(covered, expected.len(), "{covered} of {} events arrived", expected.len());
}

/// Like [`assert_covers`], but events may be missing before a run if `may_skip` returns `true` for
/// their range. Returns how many events of `expected` the runs reach.
pub(crate) fn covered(
    expected: &[Vec<u8>],
    runs: &[Vec<Vec<u8>>],
    may_skip: impl Fn(usize, usize) -> bool,
) -> usize {
    let mut covered = 0;
    for (number, run) in runs.iter().enumerate().filter(|(_, run)| !run.is_empty()) {
        // The latest start that fits is taken, because equal events can repeat the pattern earlier.
        let fits = |start: &usize| expected[*start..].starts_with(run);
        let start = (0..=covered.min(expected.len())).rev().find(fits);
        let skipping =
            || (covered..expected.len()).find(|start| fits(start) && may_skip(covered, *start));
        let Some(start) = start.or_else(skipping) else {
            let first = run.iter().zip(&expected[covered..]).take_while(|(a, b)| a == b).count();
            panic!(
                "run {number} of {} events is no stretch from event {covered} or before; {first} fit: {}",
                run.len(),
                String::from_utf8_lossy(&run[first.min(run.len() - 1)])
            );
        };
        covered = covered.max(start + run.len());
    }
    covered
}

/// Splits a peer's messages by the lives of its process. `ends` is the number of messages at the
/// end of each life except the last.
pub(crate) fn lives(mut messages: Vec<Vec<u8>>, ends: &[usize]) -> Vec<Vec<Vec<u8>>> {
    let mut lives: Vec<_> = ends.iter().rev().map(|end| messages.split_off(*end)).collect();
    lives.push(messages);
    lives.reverse();
    lives
}

#[test]
fn repeats_pass_and_gaps_do_not() {
    let event = |name: &str| name.as_bytes().to_vec();
    let events = |names: &str| names.split_whitespace().map(event).collect::<Vec<_>>();
    let expected = events("a b c d e");
    let runs = |runs: &[&str]| runs.iter().map(|run| events(run)).collect::<Vec<_>>();
    assert_covers(&expected, &runs(&["a b c d e"]));
    assert_covers(&expected, &runs(&["a b", "", "b c", "a b c d", "e"]));
    for wrong in [&["a b", "d e"][..], &["a c"], &["b"], &["a b c d"], &["a b c d e f"]] {
        let wrong = runs(wrong);
        let caught = std::panic::catch_unwind(|| assert_covers(&expected, &wrong));
        assert!(caught.is_err(), "{wrong:?}");
    }
    assert_eq!(covered(&expected, &runs(&["a b", "d e"]), |from, to| (from, to) == (2, 3)), 5);
}
