//! Counts who causes the received bytes: heavy users, verbs, resources and others, of the last hour
//! and of the last 24 hours. `GET /status/volume` shows them.
//!
//! # How it counts
//!
//! Reading each event would cost too much, and a few events carry most bytes. So bytes are sampled,
//! and the events that hold them are read. One byte is drawn, uniformly, from each stride of n
//! bytes of a batch, and the event with this byte stands for n bytes. Each byte has the same
//! chance, whatever a client sends and in whatever order. n follows the rate of bytes
//! (`sample::Pace`), so that about 50 events are read per second. If the events of a batch have n
//! bytes or more on average, all of them are read, and the figures are exact.
//!
//! For each of [`report::DIMENSIONS`], a `Summary` keeps the heaviest names, and an estimated
//! maximum for every other name. Figures are therefore estimates, and each is given with its error.
//! The figures are scaled so that all names together have the received bytes and events, which are
//! counted exactly.
//!
//! # Its cost
//!
//! - A batch takes a short lock twice, reads the clock and draws one number for each stride.
//! - A sampled event is read, once, by the thread that has decoded the batch, and under no lock.
//!   Its bodies are skipped.
//! - Memory is limited to 1 MiB (`slices` counts it). Nothing is written to a file.
//!
//! # The kube-apiservers
//!
//! Each batch is also searched for the events that a kube-apiserver makes about itself
//! ([`apiservers`]), and for the requests of `deploy/connect.sh` ([`probes`]), whether or not the
//! volume is counted.
//!
//! # What is shown
//!
//! The values of an event are redacted before they count: those that are always redacted, and those
//! of the rules of all filters of the config. A text that a client wrote is cut, and its special
//! characters are escaped.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `report` | the JSON of `/status/volume` |
//! | 2 | `facts` | the names in an event |
//! | 3 | `sample` | which bytes are drawn |
//! | 4 | `summary` | the heaviest names, and the most of others |
//! | 5 | `apiservers` `probes` `slices` | when each kube-apiserver was last heard · the script's requests · an hour and a day, in slices |

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use crate::redact::Redaction;
use audit::ListEnds;
use base::lock::lock;

pub mod apiservers;
mod facts;
mod probes;
pub mod report;
mod sample;
mod slices;
mod summary;

pub use sample::Seen;

use apiservers::{Apiserver, Apiservers};
use probes::Probes;
use report::Report;
use sample::Pace;
use slices::Slices;

/// The volume that a relay has accepted, by cause. Listeners and sources add to it. Nothing is
/// counted until counting is [turned on](Volume::turn), but kube-apiservers are always heard.
#[derive(Default)]
pub struct Volume {
    counting: Mutex<Option<Counting>>,
    apiservers: Apiservers,
    probes: Probes,
}

struct Counting {
    redaction: Arc<Redaction>,
    pace: Pace,
    slices: Slices,
}

impl Volume {
    /// Turns counting on with this redaction of names, or off (`None`). If the redaction has
    /// changed, all figures are forgotten, because the new redaction might remove some of the
    /// names.
    pub fn turn(&self, redaction: Option<Redaction>) {
        let (mut counting, now) = (lock(&self.counting), Instant::now());
        if counting.as_ref().map(|counting| &*counting.redaction) == redaction.as_ref() {
            return;
        }
        let begin = |redaction| Counting {
            redaction: Arc::new(redaction),
            pace: Pace::new(now),
            slices: Slices::new(now),
        };
        *counting = redaction.map(begin);
    }

    /// Samples the lines of a batch, or of a part of a batch, into `seen`. `list` is `Some` if
    /// `lines` is a JSON list as it was received.
    pub fn look(&self, lines: &[u8], list: Option<&ListEnds>, events: u64, seen: &mut Seen) {
        if lines.is_empty() {
            return;
        }
        let list = list.map(ListEnds::offsets);
        apiservers::find(lines, list, &mut seen.apiservers);
        probes::find(lines, &mut seen.probes);
        let counting = lock(&self.counting)
            .as_mut()
            .map(|it| (Arc::clone(&it.redaction), it.pace.stride(lines.len(), Instant::now())));
        let Some((redaction, stride)) = counting else { return };
        seen.bytes += lines.len() as u64;
        seen.events += events;
        let (names, mut random) =
            (|event: &[u8]| facts::names(event, &redaction), fastrand::Rng::new());
        sample::draw(lines, list, (events, stride), &mut random, names, &mut seen.samples);
        seen.redaction.get_or_insert(redaction);
    }

    /// Counts an accepted batch, unless the redaction has changed since it was sampled. Notes the
    /// batch's kube-apiservers and probes in any case.
    pub fn count(&self, mut seen: Seen) {
        self.apiservers.hear(std::mem::take(&mut seen.apiservers));
        self.probes.keep(std::mem::take(&mut seen.probes));
        if let (Some(redaction), Some(counting)) = (&seen.redaction, &mut *lock(&self.counting))
            && Arc::ptr_eq(redaction, &counting.redaction)
        {
            counting.slices.count(seen, Instant::now());
        }
    }

    /// Returns the kube-apiservers that were heard in the last hour, sorted by name. An empty list
    /// means that they are unknown: the audit policy may leave out updates of Leases.
    pub fn apiservers(&self) -> Vec<Apiserver> {
        self.apiservers.list()
    }

    /// Returns the digits of the last requests of `deploy/connect.sh`, newest first.
    pub fn probes(&self) -> Vec<String> {
        self.probes.list()
    }

    /// Returns the figures of the last hour and the last 24 hours.
    pub fn report(&self) -> Report {
        // The lock is held only for a copy.
        let slices = lock(&self.counting).as_ref().map(|counting| counting.slices.clone());
        slices.map_or_else(Report::default, |mut slices| slices.report(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fastrand::Rng;

    use super::report::Row;
    use super::*;

    #[test]
    fn names_are_forgotten_when_other_rules_redact() {
        let volume = Volume::default();
        let event = b"{\"user\":{\"username\":\"alice\"},\"userAgent\":\"curl\"}\n";
        let report = || {
            let mut seen = Seen::default();
            volume.look(event, None, 1, &mut seen);
            volume.count(seen);
            serde_json::to_string(&volume.report()).unwrap()
        };
        assert!(!report().contains("curl"));
        volume.turn(Redaction::new(&[]).ok());
        assert!(report().contains("alice"));
        volume.turn(Redaction::new(&[]).ok());
        assert!(report().contains("\"events\":2"), "the rules have not changed");
        let fields = vec!["user".to_owned()];
        let rule =
            crate::redact::Rule { resources: Vec::new(), fields, with: crate::redact::With::Drop };
        // A batch that was sampled by the old rules is accepted only now.
        let mut seen = Seen::default();
        volume.look(event, None, 1, &mut seen);
        volume.turn(Some(Redaction::new(&[rule]).unwrap()));
        volume.count(seen);
        assert!(!serde_json::to_string(&volume.report()).unwrap().contains("alice"));
        let redacted = report();
        assert!(!redacted.contains("alice") && redacted.contains("curl"), "{redacted}");
        volume.turn(None);
        assert_eq!(report(), r#"{"enabled":false}"#);
    }

    /// Method: three users send everything, in small batches of which most have no sample.
    #[test]
    fn all_names_together_have_what_came_in_and_none_has_more() {
        let (mut random, now) = (Rng::with_seed(3), Instant::now());
        let mut slices = Slices::new(now);
        for round in 0..200 {
            let user = ["a", "b", "b", "c"][round % 4];
            let lines = format!("{user} {:x<1$}\n", "", 500 + round).repeat(3).into_bytes();
            let mut seen = Seen { bytes: lines.len() as u64, events: 3, ..Seen::default() };
            let names = |event: &[u8]| {
                std::array::from_fn(|_| Some(String::from_utf8_lossy(&event[..1]).into()))
            };
            let stride = if round == 7 { 100 } else { 5000 };
            sample::draw(&lines, None, (3, stride), &mut random, names, &mut seen.samples);
            slices.count(seen, now);
            let hour = slices.report(now).spans.remove("1h").unwrap();
            let rows = &hour.by["user"].rows;
            let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum::<u64>();
            assert!(sum(|row| row.bytes) <= hour.bytes && sum(|row| row.events) <= hour.events);
            let is_all = hour.bytes - sum(|row| row.bytes) < 3;
            assert!(is_all || hour.read_events < 4, "{hour:?}");
        }
    }

    /// Method: a few bytes of each name are drawn, and the figures are compared with the truth. If
    /// figures exceed their errors in more than 5 of 100 cases, the errors are too small.
    #[test]
    fn errors_are_those_of_95_of_100_figures_also_for_names_with_few_samples() {
        let (mut random, now) = (Rng::with_seed(5), Instant::now());
        let names = |event: &[u8]| {
            std::array::from_fn(|_| Some(String::from_utf8_lossy(&event[..1]).into()))
        };
        let (mut figures, mut wrong) = (0, 0);
        for round in 1..=60 {
            let (mut slices, mut truth) = (Slices::new(now), BTreeMap::<u8, [u64; 2]>::new());
            for _ in 0..100 {
                let mut seen = Seen { events: 2 * round, ..Seen::default() };
                let mut lines = Vec::new();
                for _ in 0..seen.events {
                    // A later name has more events, of other sizes.
                    let name = b'a' + random.u8(..26).max(random.u8(..26));
                    let bytes = random.usize(20..100 + usize::from(name));
                    lines.extend_from_slice(
                        format!("{}{:x<bytes$}\n", char::from(name), "").as_bytes(),
                    );
                    let own = truth.entry(name).or_default();
                    *own = [own[0] + bytes as u64 + 2, own[1] + 1];
                }
                seen.bytes = lines.len() as u64;
                let size = (seen.events, 2000);
                sample::draw(&lines, None, size, &mut random, names, &mut seen.samples);
                slices.count(seen, now);
            }
            let hour = slices.report(now).spans.remove("1h").unwrap();
            for row in &hour.by["user"].rows {
                let [bytes, events] = truth[&row.name[0].as_bytes()[0]];
                figures += 2;
                wrong += usize::from(row.bytes.abs_diff(bytes) > row.bytes_error);
                wrong += usize::from(row.events.abs_diff(events) > row.events_error);
            }
        }
        println!("{wrong} of {figures} are more wrong than their errors");
        assert!(figures > 2000 && wrong > 0 && wrong * 20 <= figures, "{wrong} of {figures}");
    }

    /// Method: ten users send half of the events, each by one cause, in different sizes. The other
    /// half is from 10,000 users, who write as many names and causes as they can and send their
    /// events in a fixed order. Everything is counted by samples: fewer than one event in seven is
    /// read.
    #[test]
    fn the_ten_heaviest_are_found_among_ten_thousand_others() {
        let (mut random, mut truth) = (Rng::with_seed(7), [(); 2].map(|()| Truth::new()));
        let now = Instant::now();
        let (mut slices, mut adversary) = (Slices::new(now), 0);
        for _ in 0..600 {
            let (mut lines, mut seen) = (Vec::new(), Seen { events: 400, ..Seen::default() });
            for event in 0..400 {
                let (cause, bytes) = match event % 2 {
                    0 => {
                        adversary += 1;
                        let (user, other) = (adversary % 10_000, adversary % 9_973);
                        (format!("adversary-{user}\tverb-{}\tkind-{other}", other % 7), 130)
                    }
                    // User 0 sends 7 % of the honest events, user 9 sends 16 %.
                    _ => {
                        let user = ((random.usize(..145) * 2 + 81).isqrt() - 9).min(9);
                        let cause = format!("honest-{user}\tget\tkind-{}", user % 3);
                        (cause, [40, 900, 100, 150][user % 4])
                    }
                };
                let line = format!("{cause} {:x<bytes$}\n", "");
                let user = cause.split('\t').next().unwrap().to_owned();
                for (truth, name) in truth.iter_mut().zip([cause, user]) {
                    let own = truth.entry(name).or_default();
                    *own = [own[0] + line.len() as u64, own[1] + 1];
                }
                lines.extend_from_slice(line.as_bytes());
            }
            seen.bytes = lines.len() as u64;
            sample::draw(&lines, None, (400, 2_000), &mut random, own_names, &mut seen.samples);
            slices.count(seen, now);
        }
        let hour = slices.report(now).spans.remove("1h").unwrap();
        assert!(hour.read_events * 7 < hour.events, "{}", hour.read_events);
        for (by, truth) in ["cause", "user"].iter().zip(&truth) {
            compare(&hour, by, truth);
        }
    }

    /// The bytes and events of each name.
    type Truth = BTreeMap<String, [u64; 2]>;

    /// Returns the cause, the user, and no other name of an event of the test above.
    fn own_names(event: &[u8]) -> facts::Names {
        let cause = event.split(|byte| *byte == b' ').next().unwrap_or_default();
        let cause = String::from_utf8_lossy(cause).replace('\t', report::PARTS);
        let mut names = facts::Names::default();
        names[1] = cause.split(report::PARTS).next().map(Into::into);
        names[0] = Some(cause.into());
        names
    }

    fn compare(hour: &report::Figures, by: &str, truth: &Truth) {
        let (rows, mut heaviest) = (&hour.by[by].rows, Vec::from_iter(truth));
        heaviest.sort_by_key(|(_, [bytes, _])| std::cmp::Reverse(*bytes));
        let mut found: Vec<_> = rows.iter().take(10).map(|row| row.name.join("\t")).collect();
        found.sort();
        let mut expected: Vec<_> = heaviest.iter().take(10).map(|(name, _)| *name).collect();
        expected.sort();
        assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        let mut worst: f64 = 0.0;
        for row in &rows[..10] {
            let [bytes, events] = truth[&row.name.join("\t")];
            for (is, error, truth, all) in [
                (row.bytes, row.bytes_error, bytes, hour.bytes),
                (row.events, row.events_error, events, hour.events),
            ] {
                let wrong = is.abs_diff(truth) as f64 / all as f64;
                worst = worst.max(wrong);
                assert!(wrong < 0.01, "{row:?}: {truth} of {all}");
                // Two standard errors, and one more for the worst of twenty.
                assert!(is.abs_diff(truth) <= error * 3 / 2, "{row:?}: {truth}");
            }
        }
        println!("{by}: a share is wrong by at most {:.2} points of 100", worst * 100.0);
    }
}
