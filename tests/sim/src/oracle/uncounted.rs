//! Dead letters that are in a file although the relay was killed before it counted them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Letter;
use super::said::Said;
use crate::truth::Truth;

/// The longest time that an output waits for the sync of its letters (see dead-letters.md).
const SYNCED: Duration = Duration::from_secs(10);

/// Returns an output's letters without those that no life has counted. A delivery counts letters
/// when they are synced (see dead-letters.md). If a life was killed, its last reported count
/// is used. A surplus letter is left out only if it may still have been waiting for its sync, or if
/// the disk refused syncs when it was written: the relay removes a letter after a failed sync, and
/// a power loss can take back this removal.
pub(crate) fn counted(
    letters: &[Letter],
    output: &str,
    truth: &Truth,
    said: &[Said],
) -> Vec<Letter> {
    let mut uncounted = BTreeSet::new();
    let mut life = Duration::ZERO;
    for death in &truth.deaths {
        let since = std::mem::replace(&mut life, death.ended.unwrap_or(death.begun));
        let told = said.iter().filter(|it| it.started >= since && it.answered <= death.begun);
        let last = told.max_by_key(|it| it.answered).filter(|_| death.kind.is_violent());
        let Some(last) = last else { continue };
        let its = letters.iter().filter(|it| (last.started..=death.begun).contains(&it.at));
        let written: BTreeSet<_> = its.map(same).collect();
        let labels = [("output", output)];
        let count = last.metrics.count("dead_letter_events_total", &labels);
        let more = written.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
        let was_refused = |at: Duration| {
            let mut spans = truth.refusing.iter();
            spans.any(|(from, until)| (*from..=*until).contains(&at))
        };
        let may_be_left_out = |at: Duration| at + SYNCED >= death.begun || was_refused(at);
        let newest = written.into_iter().rev().filter(|(at, ..)| may_be_left_out(*at));
        uncounted.extend(newest.take(more));
    }
    letters.iter().filter(|letter| !uncounted.contains(&same(letter))).cloned().collect()
}

/// Returns the parts that a letter and its copy in the next file have in common (see
/// dead-letters.md).
pub(super) fn same(letter: &Letter) -> (Duration, &str, &[u8]) {
    (letter.at, letter.reason.as_str(), letter.event.as_slice())
}

#[cfg(test)]
#[path = "uncounted_tests.rs"]
mod tests;
