//! A consumer that takes only some events, and the promise of progress: everything that it takes
//! arrives soon, however it turns down the rest.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Operator;
use crate::consumers::{Kind, Way};
use crate::events::{Event, Marks, identify};
use crate::kernel;
use crate::plan::{Choosy, Pattern};
use crate::senders;
use crate::truth::Answer;

/// The number of events in a body.
const BODY: usize = 30;

/// The number of failed requests that one event can cost: those that it shares with others, and
/// those in which it is alone until it is set aside.
const FAILURES: u32 = 10;

/// How long a request takes that fails with an answer, and one that fails at the time-out of 1 s.
const QUICK: Duration = Duration::from_millis(60);
const SILENT: Duration = Duration::from_millis(1300);

/// An output without answers waits for its `replay_window` before the connection counts as fine,
/// and `splunk_hec` until an indexer confirms the events.
const UNCONFIRMED: Duration = Duration::from_millis(3500);

/// The time for what has nothing to do with the events that are turned down, such as a pause, or
/// the time until a collector confirms events.
const SPARE: Duration = Duration::from_secs(20);

/// How long an event may take while others are set aside and tried again, and nothing else is
/// wrong.
const PROMPT: Duration = Duration::from_secs(6);

impl Operator<'_> {
    /// Posts events of which the consumer takes a part, again and again.
    pub(super) fn choose(&mut self, choosy: &Choosy) {
        if self.process.is_none() || !self.has_life() {
            return;
        }
        self.calm_all();
        let mut rng = senders::rng(u64::from(self.batches), "choosy consumer");
        let consumer = &self.consumers[0];
        consumer.chooses(&choosy.ways, choosy.most, rng.fork());
        let is_unconfirmed = matches!(consumer.kind, Kind::Tcp | Kind::Syslog | Kind::Splunk);
        // After half of an answer, a relp consumer keeps its connection open.
        let is_silent =
            |way: &Way| *way == Way::Silent || (*way == Way::Half && consumer.kind == Kind::Relp);
        let failure = match choosy.ways.iter().any(is_silent) {
            _ if is_unconfirmed => UNCONFIRMED,
            true => SILENT,
            false => QUICK,
        };
        let (before, mut bad) = (self.lost(), 0);
        for round in 0..choosy.rounds {
            let (mut taken, mut refused) = (Vec::new(), 0);
            let is_down = choosy.has_outages && round % 2 == 1;
            self.consumers[0].is_down(is_down);
            for body in self.chosen(choosy, &mut rng).chunks(BODY) {
                let events: Vec<_> = body.iter().map(|(event, _)| event.clone()).collect();
                let bad = body.iter().filter(|(_, is_taken)| !is_taken);
                self.consumers[0].refuses_these(bad.map(|(event, _)| event.serial));
                if self.post(&events) == Answer::Status(200) {
                    let good = body.iter().filter(|(_, is_taken)| *is_taken);
                    let before = taken.len();
                    taken.extend(good.map(|(event, _)| event.clone()));
                    refused += body.len() - (taken.len() - before);
                }
            }
            if is_down {
                self.wait(Duration::from_secs(rng.u64(1..20)));
                self.consumers[0].is_down(false);
            }
            let singles = if choosy.most.is_some() || is_unconfirmed { taken.len() } else { 0 };
            let failures = u32::try_from(refused + singles).unwrap_or(u32::MAX) * FAILURES;
            let limit = SPARE + failure * failures;
            if !self.all_come(&taken, limit, "that its consumer takes, among others") {
                break;
            }
            bad += refused;
            self.others_are_prompt(failure, limit, before + bad as f64);
        }
        self.consumers[0].chooses(&[], None, rng);
        self.wait(Duration::from_secs(1));
    }

    /// Makes the events of a round, each with `true` if the consumer takes it.
    fn chosen(&mut self, choosy: &Choosy, rng: &mut fastrand::Rng) -> Vec<(Event, bool)> {
        if let Pattern::Longer(bytes) = choosy.pattern {
            let mut maker = self.maker(Marks::default());
            let event = |_| maker.large(rng.usize(10..2 * bytes - 1800));
            let events: Vec<_> = (0..choosy.events).map(event).collect();
            let with = |event: Event| (event.bytes.len() <= bytes, event);
            return events.into_iter().map(with).map(|(is_taken, it)| (it, is_taken)).collect();
        }
        let events = self.good(choosy.events);
        let mut is_taken = |(number, _): &(usize, &Event)| match choosy.pattern {
            Pattern::Share(share) => rng.u32(..100) >= share,
            Pattern::Runs(length) => (number / length) % 2 == 1,
            Pattern::Longer(_) => true,
        };
        let taken: Vec<_> = events.iter().enumerate().map(|it| is_taken(&it)).collect();
        events.into_iter().zip(taken).collect()
    }

    /// While events are set aside, and tried again, others arrive soon. `search`: the limit until
    /// all the `bad` events are set aside, or given up.
    fn others_are_prompt(&mut self, failure: Duration, search: Duration, bad: f64) {
        for _ in 0..12 {
            let are_aside = self.aside() + self.lost() >= bad;
            let limit = if are_aside { PROMPT + 2 * failure } else { search };
            let others = self.posted(2);
            if !others.is_empty() && !self.all_come(&others, limit, "beside some that wait") {
                return;
            }
        }
    }

    /// Returns `true` if all of these events arrive within this time. If not, that is a fault.
    fn all_come(&mut self, events: &[Event], limit: Duration, what: &str) -> bool {
        let begun = kernel::now();
        let mut missing: BTreeSet<_> = events.iter().map(|event| event.serial).collect();
        let mut from = 0;
        let all = missing.len();
        let has_all = |it: &mut Self| {
            let arrived = it.consumers[0].arrived_since(from);
            from += arrived.len();
            for serial in arrived.iter().filter_map(|it| identify(&it.event)) {
                missing.remove(&serial);
            }
            missing.is_empty()
        };
        let is_there = self.comes_true(limit, has_all);
        kernel::trace(format_args!(
            "{all} events {what}: {:?} of {limit:?}",
            kernel::now() - begun
        ));
        if let Some(first) = missing.first().filter(|_| !is_there) {
            let text = format!(
                "progress: {} of {all} events {what}, have not come within {limit:?}: {first}",
                missing.len()
            );
            self.faults.push(text);
        }
        is_there
    }
}
