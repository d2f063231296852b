//! Who causes the bytes that come in: heavy users, verbs, resources and others, of the last hour
//! and of the last 24 hours. `GET /status/volume` shows them.
//!
//! # How it counts
//!
//! Reading each event would cost too much, and a few events carry most bytes. So bytes are sampled,
//! and the events that hold them are read: of each stride of n bytes of a batch one byte is drawn,
//! uniformly, and its event stands for n bytes. Each byte has the same chance, whatever a client
//! sends and in whatever order. An event of two strides or more is always read, and counts as what
//! it is. n follows the rate of bytes (`sample::Pace`), so that about 100 events are read per
//! second. At a low rate n is so small that every event is read, and the figures are exact.
//!
//! For each of [`DIMENSIONS`], a `Summary` keeps the heaviest names and bounds what any other name
//! can have. Figures are therefore estimates with an error, which is always given with them. They
//! are scaled so that all names together have the bytes and events that came in, which are counted
//! exactly.
//!
//! # What it costs
//!
//! - A batch takes two short locks, reads the clock and draws one number for each stride.
//! - A sampled event is read, once, by the thread that has decoded the batch, and under no lock.
//!   Its bodies are skipped.
//! - Memory is limited to 1 MiB (`slices` counts it). Nothing is written to a file.
//!
//! # What is shown
//!
//! The values of an event are redacted before they count: by what is always redacted, and by the
//! rules of all filters of the config. A text that a client wrote is cut and has escapes.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `report` | the JSON of `/status/volume` |
//! | 2 | `facts` | the names in an event |
//! | 3 | `sample` | which bytes are drawn |
//! | 4 | `summary` | the heaviest names, and a bound for others |
//! | 5 | `slices` | an hour and a day, in slices |

use std::sync::Arc;
use std::sync::Mutex;

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use crate::lock::lock;
use crate::redact::Redaction;
use crate::redact::Rule;

mod facts;
mod report;
mod sample;
mod slices;
mod summary;

pub use report::Counted;
pub use report::DIMENSIONS;
pub use report::Figures;
pub use report::Report;
pub use report::Row;
pub use report::SPANS;
pub use sample::Seen;

use facts::Settings;
use sample::Pace;
use slices::Slices;

/// The volume that a relay has accepted, by cause. Listeners and sources add to it.
pub struct Volume {
    /// `None`: nothing is counted.
    settings: ArcSwapOption<Settings>,
    pace: Mutex<Pace>,
    slices: Mutex<Slices>,
}

impl Default for Volume {
    /// Makes a volume that counts nothing until it is [turned on](Volume::turn).
    fn default() -> Self {
        let now = Instant::now();
        Self {
            settings: ArcSwapOption::empty(),
            pace: Mutex::new(Pace::new(now)),
            slices: Mutex::new(Slices::new(now)),
        }
    }
}

impl Volume {
    /// Begins to count, with these rules of redaction, or, with `None`, ends counting. If the rules
    /// have changed, all names are forgotten, because earlier ones may be among them that the new
    /// rules redact.
    pub fn turn(&self, rules: Option<Vec<Rule>>) {
        let now = self.settings.load_full();
        if now.as_ref().map(|settings| &settings.rules) == rules.as_ref() {
            return;
        }
        // The rules were checked with the config. Without them, no name may be shown.
        let settings = rules.and_then(|rules| {
            let redaction = Redaction::new(&rules).ok()?;
            Some(Arc::new(Settings { rules, redaction }))
        });
        self.settings.store(settings);
        *lock(&self.slices) = Slices::new(Instant::now());
    }

    /// Samples the lines of a batch, or of a part of one. `seen` gets the result. `list` has the
    /// offsets of the bytes after the events, if these are not line breaks.
    pub fn look(&self, lines: &[u8], list: Option<&[u32]>, events: u64, seen: &mut Seen) {
        let settings = self.settings.load();
        let Some(settings) = settings.as_ref().filter(|_| !lines.is_empty()) else { return };
        let own = seen.settings.get_or_insert_with(|| Arc::clone(settings));
        if !Arc::ptr_eq(own, settings) {
            return;
        }
        let stride = lock(&self.pace).stride(lines.len(), Instant::now());
        seen.bytes += lines.len() as u64;
        seen.events += events;
        let names = |event: &[u8]| facts::names(event, &settings.redaction);
        sample::draw(lines, list, stride, &mut fastrand::Rng::new(), names, &mut seen.samples);
    }

    /// Counts a batch that was accepted, unless the rules have changed since it was sampled.
    pub fn count(&self, seen: Seen) {
        let Some(settings) = &seen.settings else { return };
        let mut slices = lock(&self.slices);
        if self.settings.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, settings)) {
            slices.count(seen, Instant::now());
        }
    }

    /// Returns the figures of the last hour and the last 24 hours.
    pub fn report(&self) -> Report {
        if self.settings.load().is_none() {
            return Report::default();
        }
        // The lock is held only for a copy of what still changes.
        let now = Instant::now();
        let slices = lock(&self.slices).at(now);
        slices.report(now)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fastrand::Rng;

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
        volume.turn(Some(Vec::new()));
        assert!(report().contains("alice"));
        volume.turn(Some(Vec::new()));
        assert!(report().contains("\"events\":2"), "the rules have not changed");
        let fields = vec!["user".to_owned()];
        let rule = Rule { resources: Vec::new(), fields, with: crate::redact::With::Drop };
        // A batch that was sampled by the old rules is accepted only now.
        let mut seen = Seen::default();
        volume.look(event, None, 1, &mut seen);
        volume.turn(Some(vec![rule]));
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
            sample::draw(&lines, None, stride, &mut random, names, &mut seen.samples);
            slices.count(seen, now);
            let hour = slices.report(now).spans.remove("1h").unwrap();
            let rows = &hour.by["user"].rows;
            let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum::<u64>();
            assert!(sum(|row| row.bytes) <= hour.bytes && sum(|row| row.events) <= hour.events);
            let is_all = hour.bytes - sum(|row| row.bytes) < 3;
            assert!(is_all || hour.read_events < 4, "{hour:?}");
        }
    }

    /// Method: names of which a few bytes are drawn each, and the truth. An error that is exceeded
    /// more often than in 5 of 100 cases is too small.
    #[test]
    fn errors_are_those_of_95_of_100_figures_also_for_names_with_few_samples() {
        let (mut random, now) = (Rng::with_seed(5), Instant::now());
        let (mut figures, mut wrong) = (0, 0);
        for round in 1..=40 {
            let mut slices = Slices::new(now);
            for batch in 0..100 {
                let name = char::from(b'a' + u8::try_from(batch % 26).unwrap());
                let lines = format!("{name}{:x<99}\n", "").repeat(round).into_bytes();
                let names = |event: &[u8]| {
                    std::array::from_fn(|_| Some(String::from_utf8_lossy(&event[..1]).into()))
                };
                let mut samples = Vec::new();
                sample::draw(&lines, None, 800, &mut random, names, &mut samples);
                let events = round as u64;
                let seen = Seen { bytes: events * 101, events, samples, ..Seen::default() };
                slices.count(seen, now);
            }
            let hour = slices.report(now).spans.remove("1h").unwrap();
            for row in &hour.by["user"].rows {
                let batches = if row.name[0].as_bytes()[0] < b'w' { 4 } else { 3 };
                let truth = (batches * round) as u64;
                figures += 1;
                wrong += usize::from(row.events.abs_diff(truth) > row.events_error);
            }
        }
        assert!(figures > 800 && wrong * 20 <= figures, "{wrong} of {figures}");
    }

    /// Method: ten users have half of the bytes, in events of different sizes. The other half comes
    /// from 10,000 users, who write as many names as they can and send their events in a fixed
    /// order. All of it is seen by samples: about one event in ten is read.
    #[test]
    fn the_ten_heaviest_are_found_among_ten_thousand_others() {
        let (mut random, mut truth) = (Rng::with_seed(7), BTreeMap::<String, [u64; 2]>::new());
        let now = Instant::now();
        let (mut slices, mut adversary) = (Slices::new(now), 0);
        let names = |event: &[u8]| {
            let user = event.split(|byte| *byte == b' ').next().unwrap_or_default();
            std::array::from_fn(|_| Some(String::from_utf8_lossy(user).into()))
        };
        for _ in 0..600 {
            let (mut lines, mut seen) = (Vec::new(), Seen { events: 400, ..Seen::default() });
            for event in 0..400 {
                let (user, bytes) = match event % 2 {
                    0 => {
                        adversary = (adversary + 1) % 10_000;
                        (format!("adversary-{adversary}"), 150)
                    }
                    // User 0 sends a tenth of the honest events, user 9 twice as many.
                    _ => {
                        let user = ((random.usize(..145) * 2 + 81).isqrt() - 9).min(9);
                        (format!("honest-{user}"), [40, 900, 100, 150][user % 4])
                    }
                };
                let line = format!("{user} {:x<bytes$}\n", "");
                let own = truth.entry(user).or_default();
                *own = [own[0] + line.len() as u64, own[1] + 1];
                lines.extend_from_slice(line.as_bytes());
            }
            seen.bytes = lines.len() as u64;
            sample::draw(&lines, None, 2_000, &mut random, names, &mut seen.samples);
            slices.count(seen, now);
        }
        let hour = slices.report(now).spans.remove("1h").unwrap();
        let (rows, mut heaviest) = (&hour.by["user"].rows, Vec::from_iter(&truth));
        heaviest.sort_by_key(|(_, [bytes, _])| std::cmp::Reverse(*bytes));
        let mut found: Vec<_> = rows.iter().take(10).map(|row| &row.name[0]).collect();
        found.sort();
        let mut expected: Vec<_> = heaviest.iter().take(10).map(|(user, _)| *user).collect();
        expected.sort();
        assert_eq!(found, expected);
        let mut worst: f64 = 0.0;
        for row in &rows[..10] {
            let [bytes, events] = truth[&row.name[0]];
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
        println!("a share is wrong by at most {:.2} points of 100", worst * 100.0);
    }
}
