//! Makes the entries about the events that outputs have finished.

use std::collections::BTreeMap;

use evidence_log::entry::{Delivered, Entry, Fate, Offset, RANGE_MAX};
use evidence_log::lines::{Range, Record, Salt};
use evidence_log::tlog::merkle::Hash;
use queue::{Fates, Finished, Outcome, Position, SentLine};

/// The number of bytes of offsets at which an entry takes no more events. A whole entry has at most
/// 65,535 bytes.
const OFFSETS_BYTES_MAX: usize = 60_000;

/// The maximum number of bytes of an offset with its fate.
const FATE_BYTES: usize = r#""4095":"dead_letter","#.len();
const CHANGED_BYTES: usize = r#""4095","#.len();

/// An entry, and the hashes of the lines under its root.
#[derive(Debug, PartialEq, Eq)]
pub struct Made {
    /// The entry.
    pub entry: Entry,
    /// The hashes of the lines that were sent. `None` if no line was sent, or if the filter has
    /// neither changed nor dropped an event.
    pub sent: Option<Record>,
}

/// Makes entries about the events that the outputs have finished. Consecutive ranges of one output
/// share an entry if there is room, and if their lines were sent in the same form. `salt` returns a
/// new salt at each call.
pub fn entries(finished: &[Finished], salt: impl Fn() -> Salt) -> Vec<Made> {
    let mut sorted: Vec<_> = finished.iter().collect();
    sorted.sort_by_key(|it| (&it.output, it.claim.start));
    let mut made = Vec::new();
    let mut open: Option<Open> = None;
    for Finished { output, claim, at, outcome } in sorted {
        let (first, end) = (claim.start.get(), claim.end.get());
        match outcome {
            Outcome::Lost(reason) => {
                made.extend(open.take().map(|open| open.close(&salt)));
                let (output, reason) = (output.clone(), (*reason).to_owned());
                let count = end - first;
                let entry = Entry::Lost { output, first: Some(first), count, at: *at, reason };
                made.push(Made { entry, sent: None });
            }
            Outcome::Settled(fates) => {
                for run in runs(first..end, fates) {
                    let kind = Kind::of(fates, end - first);
                    let fits = |open: &Open| open.takes(output, &run, kind);
                    if !open.as_ref().is_some_and(fits) {
                        made.extend(open.take().map(|open| open.close(&salt)));
                    }
                    open.get_or_insert_with(|| Open::new(output, run.first, kind)).add(&run, *at);
                }
            }
        }
    }
    made.extend(open.map(|open| open.close(&salt)));
    made
}

/// The form in which the lines of some events were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No line was sent.
    None,
    /// Lines were sent as they came in.
    NotHashed,
    /// The hash of each line that was sent is known.
    Hashed,
}

impl Kind {
    fn of(fates: &Fates, events: u64) -> Self {
        if fates.rest.is_some() || fates.not_delivered.len() as u64 >= events {
            Self::None
        } else if fates.sent.is_empty() {
            Self::NotHashed
        } else {
            Self::Hashed
        }
    }
}

/// Some events that follow each other and have the same fate.
struct Run {
    first: u64,
    count: u64,
    fate: Option<Fate>,
    /// The hash of the line, if it is known. The run then has only one event.
    sent: Option<SentLine>,
}

fn runs(range: std::ops::Range<u64>, fates: &Fates) -> Vec<Run> {
    let mut runs = Vec::new();
    if *fates == Fates::default() {
        let mut first = range.start;
        while first < range.end {
            let count = (range.end - first).min(RANGE_MAX - first % RANGE_MAX);
            runs.push(Run { first, count, fate: None, sent: None });
            first += count;
        }
        return runs;
    }
    let not_delivered: BTreeMap<_, _> = fates.not_delivered.iter().copied().collect();
    let sent: BTreeMap<_, _> = fates.sent.iter().map(|line| (line.position, line)).collect();
    for first in range {
        let position = Position::new(first);
        let fate = not_delivered.get(&position).copied().or(fates.rest);
        let sent = sent.get(&position).copied().copied().filter(|_| fate.is_none());
        runs.push(Run { first, count: 1, fate, sent });
    }
    runs
}

struct Open {
    entry: Delivered,
    kind: Kind,
    lines: Vec<Hash>,
}

impl Open {
    fn new(output: &str, first: u64, kind: Kind) -> Self {
        let entry = Delivered { output: output.to_owned(), first, ..Delivered::default() };
        Self { entry, kind, lines: Vec::new() }
    }

    fn takes(&self, output: &str, run: &Run, kind: Kind) -> bool {
        let Delivered { not_delivered, changed, count, .. } = &self.entry;
        let follows = self.entry.output == output && self.entry.range().end == run.first;
        let bytes = not_delivered.len() * FATE_BYTES + changed.len() * CHANGED_BYTES;
        let has_room = count + run.count <= RANGE_MAX && bytes < OFFSETS_BYTES_MAX;
        follows && has_room && self.kind == kind
    }

    fn add(&mut self, run: &Run, at: u64) {
        let entry = &mut self.entry;
        let offset = Offset(entry.count);
        entry.count += run.count;
        entry.at = entry.at.max(at);
        if let Some(fate) = run.fate {
            entry.not_delivered.insert(offset, fate);
        }
        if let Some(SentLine { hash, is_changed, .. }) = run.sent {
            self.lines.push(Hash(hash));
            entry.changed.extend(is_changed.then_some(offset));
        }
    }

    fn close(self, salt: impl Fn() -> Salt) -> Made {
        let Self { mut entry, lines, .. } = self;
        let sent = (!lines.is_empty()).then(|| {
            let range = Range { first: entry.first, salt: salt(), lines };
            Record { output: Some(entry.output.clone()), count: entry.count, range }
        });
        entry.root = sent.as_ref().map(|sent| sent.range.root());
        Made { entry: Entry::Delivered(entry), sent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evidence_log::lines::SALT_BYTES;
    use queue::Claim;

    fn settled(output: &str, start: u64, end: u64, fates: Fates) -> Finished {
        let (output, claim) = (output.to_owned(), Claim::of(start, end));
        Finished { output, claim, at: start, outcome: Outcome::Settled(fates) }
    }

    fn made(finished: &[Finished]) -> Vec<Made> {
        entries(finished, || Salt([3; SALT_BYTES]))
    }

    /// Returns the output, the first position and the number of events of each entry.
    fn ranges(made: &[Made]) -> Vec<(String, u64, u64)> {
        let range = |made: &Made| {
            let entry: serde_json::Value =
                serde_json::from_slice(&made.entry.bytes()).expect("it is JSON");
            let number = |name: &str| entry[name].as_u64().expect("a number");
            let output = entry["output"].as_str().expect("a name").to_owned();
            (output, number("first"), number("count"))
        };
        made.iter().map(range).collect()
    }

    /// Returns the text of an entry without its stamp.
    fn text(made: &Made) -> String {
        let text = String::from_utf8(made.entry.bytes()).expect("it is JSON");
        text.split_once(",\"boot\":").expect("a stamp").0.to_owned() + "}"
    }

    fn of(output: &str, first: u64, count: u64) -> (String, u64, u64) {
        (output.to_owned(), first, count)
    }

    fn sent(position: u64, is_changed: bool) -> SentLine {
        let Hash(hash) = Hash::of(&[&position.to_be_bytes()]);
        SentLine { position: Position::new(position), hash, is_changed }
    }

    #[test]
    fn ranges_that_follow_each_other_share_an_entry_of_at_most_4096_events() {
        let plain = Fates::default;
        let made = made(&[
            settled("a", 400, 800, plain()),
            settled("b", 0, 10, plain()),
            settled("a", 0, 400, plain()),
            settled("a", 900, 10_000, plain()),
        ]);
        let expected = [
            of("a", 0, 800),
            of("a", 900, 3196),
            of("a", 4096, 4096),
            of("a", 8192, 1808),
            of("b", 0, 10),
        ];
        assert_eq!(ranges(&made), expected);
        assert!(made.iter().all(|made| made.sent.is_none()));
    }

    #[test]
    fn an_entry_says_what_became_of_each_event() {
        let position = Position::new;
        let fates = Fates {
            not_delivered: vec![(position(6), Fate::Dropped), (position(9), Fate::Lost)],
            rest: None,
            sent: vec![sent(5, false), sent(7, true), sent(8, false)],
        };
        let given_up = Fates {
            not_delivered: vec![(position(10), Fate::Duplicate)],
            rest: Some(Fate::DeadLetter),
            sent: Vec::new(),
        };
        let made = made(&[settled("a", 5, 10, fates), settled("a", 10, 12, given_up)]);
        let [first, second] = made.as_slice() else { panic!("{made:?}") };
        let delivered = first.sent.as_ref().expect("lines were sent");
        let expected = [5, 7, 8].map(|at| Hash(sent(at, false).hash));
        assert_eq!((delivered.count, delivered.range.lines.as_slice()), (5, expected.as_slice()));
        assert_eq!(
            text(first),
            format!(
                r#"{{"type":"delivered","output":"a","first":5,"count":5,"at":5,"root":"{}","not_delivered":{{"1":"dropped","4":"lost"}},"changed":["2"]}}"#,
                delivered.range.root()
            )
        );
        assert_eq!(
            text(second),
            r#"{"type":"delivered","output":"a","first":10,"count":2,"at":10,"not_delivered":{"0":"duplicate","1":"dead_letter"}}"#
        );
    }

    #[test]
    fn events_that_were_all_dropped_share_no_entry_with_others() {
        let dropped = [5, 6].map(|at| (Position::new(at), Fate::Dropped)).to_vec();
        let dropped = Fates { not_delivered: dropped, ..Fates::default() };
        let finished = [settled("a", 0, 5, Fates::default()), settled("a", 5, 7, dropped)];
        assert_eq!(ranges(&made(&finished)), [of("a", 0, 5), of("a", 5, 2)]);
    }

    #[test]
    fn no_entry_is_longer_than_a_log_takes() {
        let fates = Fates { rest: Some(Fate::DeadLetter), ..Fates::default() };
        let made = made(&[settled("a", 0, 20_000, fates)]);
        assert!(made.iter().all(|made| made.entry.bytes().len() <= 65_535));
        let counts: u64 = ranges(&made).into_iter().map(|(_, _, count)| count).sum();
        assert_eq!(counts, 20_000);
    }

    #[test]
    fn lost_events_have_an_entry_of_their_own() {
        let outcome = Outcome::Lost("when_full");
        let lost = Finished { output: "a".to_owned(), claim: Claim::of(3, 9), at: 7, outcome };
        let made = made(&[settled("a", 0, 3, Fates::default()), lost]);
        assert_eq!(ranges(&made), [of("a", 0, 3), of("a", 3, 6)]);
        assert_eq!(
            text(&made[1]),
            r#"{"type":"lost","output":"a","first":3,"count":6,"at":7,"reason":"when_full"}"#
        );
    }
}
