//! The troubles that the operator directs from start to end. Each has its own checks, in addition
//! to the rules of the oracle.

use std::collections::BTreeSet;
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Ending, Operator};
use crate::consumers::Steady;
use crate::events::{Event, Marks, Serial, UNCUTTABLE, identify};
use crate::judging::Losses;
use crate::kernel;
use crate::kernel::disk;
use crate::kernel::net::Fault;
use crate::oracle::said::Moment;
use crate::plan::{Action, Change, Stage, Why};
use crate::truth::{Answer, Filter, Kind as Death};

/// How long an event can take to reach a healthy consumer.
pub(super) const SOON: Duration = Duration::from_secs(60);

/// How long an event can wait while its consumer fails on others.
const PROMPT: Duration = Duration::from_secs(10);

/// More events than fit into the small queues of these seeds.
const FLOOD: usize = 900;

/// Nearly half of the smallest queue, in bytes.
const LARGE: usize = 120 << 10;

/// Events with fewer bytes than this are short. Thirty short events in one body fit into every
/// queue.
pub(super) const SHORT: usize = 2000;

pub(super) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Operator<'_> {
    /// Causes a trouble.
    pub(super) fn direct(&mut self, stage: Stage) {
        if self.process.is_none() || !self.has_life() {
            return;
        }
        self.calm_all();
        match stage {
            Stage::Demand(demand) => self.demand(demand),
            Stage::SlowLetters => self.slow_letters(),
            Stage::AnswersLost => self.answers_lost(),
            Stage::EarlyAnswers => self.early_answers(),
            Stage::Outages => self.outages(),
            Stage::Answers(steady) => self.answers_for_a_while(steady),
            Stage::FirstAreMissing => self.first_are_missing(),
            Stage::RefusedAtRest => self.refused_at_rest(),
            Stage::AsideInFullQueue => self.aside_in_full_queue(),
            Stage::JoinsBetweenCopies => self.joins_between_copies(),
            Stage::FilterBetweenCopies => self.filter_between_copies(),
            Stage::FilterOfWaiting => self.filter_of_waiting(),
            Stage::DroppedBetweenCopies => self.dropped_between_copies(),
            Stage::PartDroppedBetweenCopies => self.part_dropped_between_copies(),
            Stage::DropsThenDies | Stage::DropsWhileReading => self.drops_and_dies(stage),
            Stage::TooLong => self.too_long(),
            Stage::TwoSignals => self.two_signals(),
            Stage::FailsAtBoth => self.fails_at_both(),
            Stage::SecondIsMute => self.second_is_mute(),
            Stage::SecondRefuses => self.second_refuses(),
            Stage::SecondIsUntried => self.second_is_untried(),
            Stage::HeldAtReload => self.held_at_reload(),
            Stage::StoredAtReload => self.stored_at_reload(),
            Stage::StoredOnFullDisk => self.stored_on_full_disk(),
            Stage::TooLargeForObject => self.too_large_for_object(),
            Stage::WithoutEvidence => self.without_evidence(),
            Stage::CutsConnections => self.cuts_connections(),
            Stage::RefusedInBacklog => self.refused_in_backlog(),
            Stage::LargeBodies => self.large_bodies(),
            Stage::EndsQuiet => self.ends_quiet(),
            Stage::TornGroups => self.torn_groups(),
            Stage::BadAmongGood => self.bad_among_good(),
            Stage::AsideThenRefused => self.aside_then_refused(),
            Stage::FailsAndAway => self.fails_and_away(),
            Stage::FailsForEver => self.fails_for_ever(),
        }
        for consumer in self.consumers {
            consumer.answers(None);
            consumer.calm(false);
        }
    }

    pub(super) fn wait(&mut self, time: Duration) {
        self.wait_until(kernel::now() + time);
    }

    /// Waits until this is true, but at most for `limit`. Returns `true` if it has become true.
    pub(super) fn comes_true(
        &mut self,
        limit: Duration,
        mut is_true: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let deadline = kernel::now() + limit;
        while !is_true(self) {
            if kernel::now() > deadline {
                return false;
            }
            self.wait(Duration::from_millis(500));
        }
        true
    }

    /// Waits until no output has a backlog. Returns `false` after two minutes.
    pub(super) fn rests(&mut self) -> bool {
        self.comes_true(seconds(120), |it| it.backlog() == Some(0.0))
    }

    fn backlog(&mut self) -> Option<f64> {
        self.metrics().map(|metrics| metrics.sum("output_backlog_events"))
    }

    /// Returns how often the event has arrived at a consumer.
    fn arrivals(&self, consumer: usize, serial: Serial) -> usize {
        let arrived = self.consumers[consumer].arrived_since(0);
        arrived.iter().filter(|arrived| identify(&arrived.event) == Some(serial)).count()
    }

    pub(super) fn has(&self, consumer: usize, serial: Serial) -> bool {
        self.arrivals(consumer, serial) > 0
    }

    /// Makes events that every store accepts, and that fit into every queue.
    pub(super) fn good(&mut self, count: usize) -> Vec<Event> {
        self.shorter(SHORT, count)
    }

    /// Makes events with fewer bytes than this that every store accepts.
    fn shorter(&mut self, bytes: usize, count: usize) -> Vec<Event> {
        let mut maker = self.maker(Marks::default());
        let events = std::iter::repeat_with(|| maker.event());
        events.filter(|event| event.bytes.len() < bytes).take(count).collect()
    }

    /// Posts this many new events, and returns how many were accepted.
    fn flood(&mut self, count: usize) -> usize {
        let mut accepted = 0;
        for _ in 0..count / 30 {
            let events = self.good(30);
            if self.post(&events) == Answer::Status(200) {
                accepted += events.len();
            }
        }
        accepted
    }

    pub(super) fn way(&mut self, fault: Fault, time: Duration) {
        self.act(&Action::Way(0, fault, time));
    }

    /// The sync of a dead letter takes much longer than the relay waits. Letters of events that are
    /// refused in the meantime are not written.
    fn slow_letters(&mut self) {
        let refused = |it: &mut Self| {
            let mut events = it.good(2);
            events.insert(1, it.maker(Marks { refused: 1000, failing: 0 }).event());
            it.post(&events);
        };
        let slow = disk::Faults { sync_time: seconds(50), ..disk::Faults::default() };
        // A request that got no response before this ends after 20 s. The first refusal below would
        // wait for it, and its letter would be written after the span that is noted.
        self.wait(seconds(22));
        let from = kernel::now();
        self.disk(slow, seconds(30));
        refused(self);
        self.wait(seconds(15));
        self.book.letters_hang(from, kernel::now());
        for _ in 0..3 {
            refused(self);
            self.wait(seconds(2));
        }
        self.wait(seconds(60));
    }

    /// A store's responses get lost for a while, and the relay is killed twice. Then a filter drops
    /// events that the store already has.
    fn answers_lost(&mut self) {
        self.consumers[0].answers(Some(Steady::Unanswered));
        let events = self.good(12);
        self.post(&events);
        self.wait(seconds(4));
        for _ in 0..2 {
            self.die(Death::Kill, Duration::from_millis(200));
            self.wait(seconds(4));
        }
        let filter = Filter { verbs: vec!["create", "delete"], ..Filter::default() };
        self.act(&Action::Reload(Change::Filter(0, filter)));
        self.consumers[0].answers(None);
        self.wait(seconds(10));
    }

    /// A proxy in front of a consumer answers large requests before it has read them.
    fn early_answers(&mut self) {
        self.consumers[0].answers(Some(Steady::Early));
        for _ in 0..4 {
            let mut maker = self.maker(Marks::default());
            let events: Vec<_> = (0..12).map(|_| maker.large(60_000)).collect();
            self.post(&events);
        }
        self.wait(seconds(40));
    }

    /// A store fails on everything, accepts one request, and fails again.
    fn outages(&mut self) {
        for _ in 0..3 {
            self.consumers[0].answers(Some(Steady::FailsTwice));
            self.posted(4);
            for _ in 0..12 {
                self.wait(Duration::from_millis(800));
                self.posted(1);
            }
            self.consumers[0].answers(None);
            self.wait(seconds(8));
            self.posted(2);
            self.wait(seconds(4));
        }
    }

    fn answers_for_a_while(&mut self, how: Steady) {
        self.consumers[0].answers(Some(how));
        for _ in 0..20 {
            let events = self.good(2);
            self.post(&events);
            self.wait(Duration::from_millis(if how == Steady::Revokes { 300 } else { 1500 }));
        }
        self.consumers[0].answers(None);
        self.wait(seconds(45));
    }

    /// The relay starts while a consumer is down. The start of the consumer's backlog is damaged,
    /// and the rest is read slowly.
    fn first_are_missing(&mut self) {
        self.way(Fault::Refused, seconds(60));
        for _ in 0..60 {
            self.posted(4);
        }
        self.wait(seconds(2));
        let slow = disk::Faults { read_time: seconds(3), ..disk::Faults::default() };
        self.disk(slow, seconds(40));
        self.damage("segments");
        for _ in 0..60 {
            self.look();
            self.wait(Duration::from_millis(200));
        }
    }

    /// A store refuses everything for a while, and after that at most one event. No new events are
    /// sent until the others have arrived.
    fn refused_at_rest(&mut self) {
        if !self.rests() {
            return;
        }
        self.consumers[0].answers(Some(Steady::Refuses));
        let mut events = vec![self.maker(Marks { refused: 1000, failing: 0 }).event()];
        events.extend(self.good(4));
        let answer = self.post(&events);
        self.wait(seconds(20));
        self.consumers[0].answers(None);
        let good: Vec<_> = events.iter().skip(1).map(|event| event.serial).collect();
        let limit = SOON;
        let has_all = |it: &mut Self| good.iter().all(|serial| it.has(0, *serial));
        if answer == Answer::Status(200) && !self.comes_true(limit, has_all) {
            let what = "events wait behind one that is refused, and their store takes them";
            self.faults.push(format!("progress: after {limit:?}, {what}"));
        }
    }

    /// An event on which a store fails is set aside. Then a full queue drops others, and in the
    /// drain only this event is left.
    fn aside_in_full_queue(&mut self) {
        const LIMIT: Duration = Duration::from_secs(30);
        if !self.rests() {
            return;
        }
        self.consumers[0].answers(Some(Steady::Fails));
        self.post_failing();
        for _ in 0..10 {
            self.posted(2);
            self.wait(seconds(2));
        }
        for _ in 0..FLOOD / 30 {
            self.posted(30);
            self.wait(Duration::from_millis(150));
        }
        let begun = kernel::now();
        self.stop(Why::Signal);
        let took = kernel::now() - begun;
        if took > LIMIT {
            let what = "although its consumer takes all events but one";
            self.faults.push(format!("drain: it took {took:?}, {what}"));
        }
        self.start();
    }

    /// Posts copies of earlier events. They must arrive at this consumer soon.
    fn copy_arrives(&mut self, consumer: usize, events: &[Event], why: &str) {
        let serials = events.iter().map(|event| event.serial).collect();
        if self.post_again(events, &serials) != Answer::Status(200) {
            return;
        }
        let has_all = |it: &mut Self| serials.iter().all(|serial| it.has(consumer, *serial));
        if !self.comes_true(SOON, has_all) {
            let name = &self.consumers[consumer].name;
            let what = format!("{name} has no copy of {}, {why}", events[0].serial);
            self.faults.push(format!("conservation: a repetition is held back: {what}"));
        }
    }

    /// An output is added after another one has delivered an event. The relay starts again, and the
    /// event is posted again: the new output sends it.
    fn joins_between_copies(&mut self) {
        let events = self.good(3);
        if self.post(&events) != Answer::Status(200) || !self.rests() {
            return;
        }
        let last = self.consumers.len() - 1;
        self.setup.change(&Change::Spare, last);
        self.setup.outputs.iter_mut().for_each(|output| output.deduplicates = true);
        self.act(&Action::Reload(Change::Nothing));
        let others = self.good(3);
        self.post(&others);
        if !self.rests() {
            return;
        }
        self.restart(Why::Signal);
        self.copy_arrives(last, &events, "which came before its output joined");
        self.setup.change(&Change::Spare, last);
        self.act(&Action::Reload(Change::Nothing));
    }

    /// Returns events with the verb `get`.
    fn gets(&mut self) -> Vec<Event> {
        let mut events = self.good(60);
        events.retain(|event| event.facts.verb == "get");
        events
    }

    fn filters(drops_gets: bool) -> Change {
        let verbs = if drops_gets { vec!["create", "delete"] } else { Vec::new() };
        Change::Filter(0, Filter { verbs, ..Filter::default() })
    }

    /// A filter drops an event. The relay restarts with another filter, and the event is posted
    /// again.
    fn filter_between_copies(&mut self) {
        let change = Self::filters(true);
        self.act(&Action::Reload(change));
        let events = self.gets();
        self.post(&events);
        if !self.rests() {
            return;
        }
        let change = Self::filters(false);
        self.setup.change(&change, self.consumers.len() - 1);
        self.restart(Why::Signal);
        self.copy_arrives(0, &events, "which the filter has dropped before");
    }

    /// A filter drops an event that waits for its consumer. Then the old filter is put back, and
    /// the event is posted again.
    fn filter_of_waiting(&mut self) {
        if !self.rests() {
            return;
        }
        self.way(Fault::Refused, seconds(20));
        let events = self.gets();
        self.post(&events);
        self.wait(seconds(3));
        for drops in [true, false] {
            let change = Self::filters(drops);
            self.act(&Action::Reload(change));
            self.wait(seconds(3));
        }
        self.wait(seconds(40));
        self.copy_arrives(0, &events, "which a filter has dropped while it waited");
    }

    /// A consumer crashes while events are on the wire, and a full queue drops these events.
    fn dropped_between_copies(&mut self) {
        if !self.rests() {
            return;
        }
        self.consumers[0].pause(true);
        let events = self.good(3);
        self.post(&events);
        self.wait(seconds(2));
        self.consumers[0].stop(true);
        self.flood(FLOOD);
        self.wait(seconds(2));
        self.consumers[0].pause(false);
        self.consumers[0].start_again();
        self.wait(seconds(45));
        self.copy_arrives(0, &events, "which a full queue has dropped");
    }

    /// A request fails, and a full queue drops its first events.
    fn part_dropped_between_copies(&mut self) {
        if !self.rests() {
            return;
        }
        // Events that wait behind a request that hangs are sent in one request.
        self.consumers[0].answers(Some(Steady::Hangs));
        self.posted(1);
        self.wait(seconds(1));
        let events = self.good(3);
        self.post(&events);
        self.flood(60);
        self.consumers[0].answers(Some(Steady::BusyForMany));
        self.wait(seconds(22));
        let is_dropped = |it: &mut Self| {
            it.metrics().is_some_and(|metrics| metrics.sum("queue_dropped_events_total") > 0.0)
        };
        for _ in 0..FLOOD / 10 {
            if is_dropped(self) {
                break;
            }
            let others = self.good(10);
            self.post(&others);
        }
        self.consumers[0].answers(None);
        self.wait(seconds(60));
        self.copy_arrives(0, &events, "which a full queue has dropped");
    }

    /// A full queue drops events that were never sent, either before the relay is killed or while
    /// the next life reads them slowly. Events that are counted as lost must not arrive.
    fn drops_and_dies(&mut self, stage: Stage) {
        if !self.rests() {
            return;
        }
        self.way(Fault::Refused, seconds(300));
        self.wait(seconds(1));
        let from = self.consumers[0].arrived_since(0).len();
        let mut accepted = self.flood(FLOOD / 3);
        let mut lost = -self.lost();
        match stage == Stage::DropsThenDies {
            true => {
                self.stick();
                accepted += self.flood(FLOOD);
                // Events that were dropped in the last second before a kill may arrive.
                self.wait(seconds(4));
                lost += self.lost();
                self.die(Death::Kill, Duration::from_millis(100));
                self.end_way();
            }
            false => {
                let slow = disk::Faults { read_time: seconds(8), ..disk::Faults::default() };
                self.disk(slow, seconds(40));
                self.end_way();
                self.die(Death::Kill, Duration::from_millis(100));
                accepted += self.flood(FLOOD);
                lost = self.lost();
                if self.consumers[0].arrived_since(0).len() > from {
                    // An event may have been on the wire when it was dropped.
                    return;
                }
            }
        }
        if !self.rests() {
            return;
        }
        let arrived = self.consumers[0].arrived_since(from);
        let came: BTreeSet<_> = arrived.iter().map(|it| identify(&it.event)).collect();
        if came.len() as f64 + lost > accepted as f64 {
            let what = format!("{} arrived, and {lost} are lost", came.len());
            self.faults.push(format!("counters: of {accepted} accepted events, {what}"));
        }
    }

    pub(super) fn end_way(&mut self) {
        self.ending.retain(|(_, ending)| *ending != Ending::Way(0));
        self.end(vec![(Duration::ZERO, Ending::Way(0))]);
    }

    /// Returns how many events this life has counted as lost.
    pub(super) fn lost(&mut self) -> f64 {
        self.metrics().map_or(0.0, |metrics| metrics.sum("error_total"))
    }

    /// A message is too long for an output until the operator raises its limit. Earlier events are
    /// final, and are not sent again.
    fn too_long(&mut self) {
        if !self.rests() {
            return;
        }
        let before = self.good(3);
        self.post(&before);
        let long = [self.maker(Marks::default()).large(4 * SHORT)];
        let answer = self.post(&long);
        self.wait(seconds(60));
        let copies = before.iter().map(|event| self.arrivals(0, event.serial)).max();
        if copies > Some(1) {
            let what = "and nothing is wrong but that one behind it is too long";
            self.faults.push(format!("repeats: output o0: an event came {copies:?} times, {what}"));
        }
        let waiting = self.backlog();
        if self.has(0, before[0].serial) && waiting.is_some_and(|waiting| waiting > 1.0) {
            let what = "and what came before it has arrived";
            self.faults.push(format!("progress: {waiting:?} events wait, one is too long, {what}"));
        }
        self.setup.own.clear();
        self.act(&Action::Reload(Change::Nothing));
        let has = |it: &mut Self| it.has(0, long[0].serial);
        if answer == Answer::Status(200) && !self.comes_true(SOON, has) {
            let what = "a message is not too long any more, and does not come";
            self.faults.push(format!("progress: after {SOON:?}, {what}"));
        }
    }

    /// Two signals end the relay while events wait.
    fn two_signals(&mut self) {
        self.way(Fault::Refused, seconds(20));
        let events = self.good(20);
        self.post(&events);
        self.wait(seconds(3));
        self.restart(Why::TwoSignals);
    }

    /// Returns `true` if all of these events arrive soon. If they do not, that is a fault.
    pub(super) fn come_soon(&mut self, events: &[Event], why: &str) -> bool {
        let has_all = |it: &mut Self| events.iter().all(|event| it.has(0, event.serial));
        let is_there = self.comes_true(SOON, has_all);
        if !is_there {
            let first = events[0].serial;
            let text = format!("progress: {first} has not come within {SOON:?}, {why}");
            self.faults.push(text);
        }
        is_there
    }

    /// Posts an event on which stores fail.
    pub(super) fn post_failing(&mut self) -> Event {
        let event = self.maker(Marks { refused: 0, failing: 1000 }).event();
        self.post(std::slice::from_ref(&event));
        event
    }

    /// Posts good events once. Returns them, or nothing if they were not accepted.
    pub(super) fn posted(&mut self, count: usize) -> Vec<Event> {
        let events = self.good(count);
        match self.post(&events) == Answer::Status(200) {
            true => events,
            false => Vec::new(),
        }
    }

    /// Both addresses of a consumer fail on one event, and accept the others.
    fn fails_at_both(&mut self) {
        self.consumers[0].answers(Some(Steady::Fails));
        self.post_failing();
        let mut others = Vec::new();
        for _ in 0..10 {
            others.extend(self.posted(2));
            self.wait(seconds(2));
        }
        self.come_soon(&others, "behind an event on which both addresses fail");
    }

    /// One of two addresses accepts requests and never responds.
    fn second_is_mute(&mut self) {
        if !self.consumers[0].has_door() {
            return;
        }
        // A slow request to an address is not moved to one that was mute itself, and has not
        // responded since.
        let are_up = self.comes_true(seconds(90), |it| {
            it.posted(1);
            it.metrics().is_some_and(|metrics| {
                let all = metrics.all("output_addresses");
                let is_up = |(name, value): &(String, String)| name == "state" && value == "up";
                let others = all.iter().filter(|(labels, _)| !labels.iter().any(is_up));
                others.map(|(_, count)| count).sum::<f64>() == 0.0
            })
        });
        if !are_up {
            return;
        }
        self.consumers[0].answers(Some(Steady::SecondMute));
        let begun = kernel::now();
        let mut events = Vec::new();
        for _ in 0..20 {
            events.extend(self.posted(3));
            self.wait(Duration::from_millis(500));
        }
        let has_all = |it: &mut Self| events.iter().all(|event| it.has(0, event.serial));
        // Events that the first address turns down are also tried at the mute one, up to 24 times
        // (see guarantees.md). Each of these attempts takes 10 s. An event that is turned down by
        // accident adds no time to that of the first one.
        let limit = |it: &Self| {
            let turned_down = it.consumers[0].turned_down();
            let since = || turned_down.iter().filter(|it| it.at >= begun && it.status != 0);
            let alone = since().filter(|it| it.events.len() == 1);
            let alone: BTreeSet<_> = alone.flat_map(|it| &it.events).collect();
            let refused = it.book.read(|truth| {
                let known = alone.iter().filter_map(|serial| truth.events.get(serial));
                known.filter(|known| it.consumers[0].refuses(&known.event.bytes)).count()
            });
            match since().next() {
                Some(_) => SOON + seconds(240) * u32::try_from(refused.max(1)).unwrap_or(u32::MAX),
                None => SOON / 2,
            }
        };
        let waits_since = kernel::now();
        let mut waited = Duration::ZERO;
        while waited < limit(self) {
            let left = limit(self) - waited;
            if self.comes_true(left, has_all) {
                return;
            }
            waited = kernel::now() - waits_since;
        }
        let what = "events wait for one address, and another one answers";
        self.faults.push(format!("progress: after {waited:?}, {what}"));
    }

    /// A consumer refuses an event, and its first address goes down. Its second one refuses
    /// everything for a while, and no new events are sent.
    fn second_refuses(&mut self) {
        for round in 0..4 {
            if !self.rests() {
                return;
            }
            self.consumers[0].answers(Some(Steady::SecondRefuses));
            self.post_failing();
            self.posted(2);
            self.wait(Duration::from_millis(500 + 300 * round));
            self.act(&Action::Door(0, false, Fault::Refused, seconds(60)));
            self.wait(seconds(12));
            self.end_way();
            self.consumers[0].answers(None);
            self.wait(seconds(8));
        }
    }

    /// The second address has not been tried yet, and refuses connections.
    fn second_is_untried(&mut self) {
        self.act(&Action::Door(0, true, Fault::Refused, seconds(60)));
        self.restart(Why::Signal);
        for _ in 0..5 {
            self.posted(2);
            self.wait(seconds(1));
        }
        self.ask(Moment::Looked);
    }

    /// A reload changes an output while events that its consumer has accepted wait behind a refused
    /// one. Behind them are events that its filter drops.
    fn held_at_reload(&mut self) {
        for round in 0..5 {
            self.act(&Action::Reload(Self::filters(true)));
            let (mut kept, mut dropped) = (self.good(60), self.good(60));
            let is_kept = |event: &Event| ["create", "delete"].contains(&event.facts.verb);
            kept.retain(is_kept);
            dropped.retain(|event| !is_kept(event));
            let refused = Marks { refused: 1000, failing: 0 };
            let mut refused = self.maker(refused).events(30);
            refused.retain(is_kept);
            refused.truncate(1);
            self.post(&refused);
            self.wait(Duration::from_millis(300 + 400 * round));
            self.post(&kept);
            self.wait(Duration::from_millis(600));
            self.post(&dropped);
            self.wait(Duration::from_millis(300 * round));
            self.act(&Action::Reload(Self::filters(false)));
            let after = self.posted(3);
            if !self.come_soon(&after, "after a reload") {
                return;
            }
        }
        if !self.rests() {
            self.faults.push("progress: events wait after a reload, and all have come".to_owned());
        }
    }

    /// A reload changes an output after its object was stored and the response got lost.
    fn stored_at_reload(&mut self) {
        self.consumers[0].answers(Some(Steady::Unanswered));
        let events = self.posted(4);
        let is_stored = |it: &mut Self| events.iter().all(|event| it.has(0, event.serial));
        self.comes_true(seconds(20), is_stored);
        self.posted(4);
        self.setup.own = vec![("timeouts.request", "\"11s\"")];
        self.act(&Action::Reload(Change::Nothing));
        self.posted(4);
        self.wait(seconds(2));
        self.consumers[0].answers(None);
        self.wait(seconds(30));
    }

    /// Events in the queue are stored even if the queue's disk is full.
    fn stored_on_full_disk(&mut self) {
        self.way(Fault::Refused, seconds(6));
        let events = self.posted(5);
        self.wait(seconds(1));
        self.act(&Action::DiskFull(SOON + seconds(10)));
        if !events.is_empty() {
            self.come_soon(&events, "although only the queue's disk is full");
        }
    }

    /// An object waits for a long time. It must be completed early once many events have come that
    /// are too large for it.
    fn too_large_for_object(&mut self) {
        let mut events = self.shorter(UNCUTTABLE, 3);
        if self.post(&events) != Answer::Status(200) {
            events.clear();
        }
        for _ in 0..14 {
            // An event that is too large waits for the object only if its claim also has an event
            // that passes the filter; else the claim is final at once. So each body has one that
            // passes, and is shorter than `object_bytes`: else a claim would end inside it.
            let mut maker = self.maker(Marks::default());
            let mut large: Vec<_> = (0..6).map(|_| maker.uncuttable(60_000)).collect();
            large.extend(self.shorter(UNCUTTABLE, 1));
            self.post(&large);
        }
        if !events.is_empty() {
            self.come_soon(&events, "although its object ends early");
        }
        self.setup.own.clear();
        self.act(&Action::Reload(Change::Nothing));
    }

    /// Bodies come so fast that a small queue needs the room of delivered events before their
    /// evidence is written. Some of the events are sent twice.
    fn without_evidence(&mut self) {
        self.consumers[0].answers(Some(Steady::SomeUnanswered));
        self.disk_refused.get_or_insert(kernel::now());
        for _ in 0..60 {
            let mut maker = self.maker(Marks::default());
            let large = [maker.large(LARGE / 2), maker.large(LARGE / 3)];
            self.post(&large);
            self.wait(Duration::from_millis(120));
        }
        self.consumers[0].answers(None);
        self.wait(seconds(10));
    }

    /// A consumer resets each connection after 20,000 bytes, between small and large events.
    fn cuts_connections(&mut self) {
        self.consumers[0].dies();
        self.consumers[0].cut(Some(20_000));
        let mut events = Vec::new();
        for _ in 0..10 {
            let mut some = self.good(3);
            some.push(self.maker(Marks::default()).large(12_000));
            some.extend(self.good(3));
            if self.post(&some) == Answer::Status(200) {
                events.extend(some);
            }
        }
        let has_all = |it: &mut Self| events.iter().all(|event| it.has(0, event.serial));
        if !self.comes_true(4 * SOON, has_all) {
            let what = "each connection takes 20 kB, and events of 12 kB do not come";
            self.faults.push(format!("progress: after {:?}, {what}", 4 * SOON));
        }
        self.consumers[0].cut(None);
    }

    /// A backlog with refused events is read from files, slowly.
    fn refused_in_backlog(&mut self) {
        self.way(Fault::Refused, seconds(60));
        for _ in 0..8 {
            let mut events = self.good(20);
            let refused = self.maker(Marks { refused: 1000, failing: 0 }).event();
            events.insert(7, refused);
            self.post(&events);
        }
        self.wait(seconds(1));
        let slow = disk::Faults { read_time: seconds(3), ..disk::Faults::default() };
        self.die(Death::Kill, Duration::from_millis(100));
        self.disk(slow, seconds(60));
        self.end_way();
        self.wait(seconds(60));
    }

    /// Bodies of nearly half of the queue's size arrive until the queue is full. When the queue is
    /// empty, it must accept another one.
    fn large_bodies(&mut self) {
        for round in 0..4 {
            self.way(Fault::Refused, seconds(60));
            for _ in 0..4 {
                let mut maker = self.maker(Marks::default());
                let large = [maker.large(LARGE / 2), maker.large(LARGE / 2 - 1500 * round)];
                self.post(&large);
                let small = self.good(3);
                self.post(&small);
            }
            self.end_way();
            if !self.rests() {
                return;
            }
            let mut maker = self.maker(Marks::default());
            let large = [maker.large(LARGE / 2), maker.large(LARGE / 2 - 1000)];
            let serials = self.book.made(&large);
            let is_taken = |it: &mut Self| it.post_again(&large, &serials) == Answer::Status(200);
            if !self.comes_true(SOON, is_taken) {
                let what = "an empty queue refuses a body of nearly half of its size";
                self.faults.push(format!("progress: for {SOON:?}, {what}"));
            }
        }
    }

    /// Posts these bodies at the same time, each in its own thread.
    pub(super) fn post_at_once(&mut self, bodies: Vec<Vec<Event>>) -> Vec<JoinHandle<Answer>> {
        let bodies = bodies.into_iter().map(|events| {
            let (poster, serials) = (self.poster(), self.book.made(&events));
            std::thread::spawn(move || poster.post(&events, &serials))
        });
        bodies.collect()
    }

    /// A consumer cuts its connections for a while. Then it closes each one that was idle for a
    /// time shorter than the output's `replay_window`.
    fn ends_quiet(&mut self) {
        self.consumers[0].dies();
        self.consumers[0].cut(Some(1000));
        for _ in 0..3 {
            self.posted(3);
            self.wait(seconds(1));
        }
        self.consumers[0].ends_quiet(Some(Duration::from_millis(700)));
        self.consumers[0].cut(None);
        let mut events = Vec::new();
        for _ in 0..FLOOD / 30 {
            events.extend(self.posted(30));
        }
        let has_all = |it: &mut Self| events.iter().all(|event| it.has(0, event.serial));
        if !self.comes_true(3 * SOON, has_all) {
            let what = "a consumer takes everything, and closes connections that are quiet";
            self.faults.push(format!("progress: after {:?}, {what}", 3 * SOON));
        }
        self.consumers[0].ends_quiet(None);
    }

    /// The power fails while several batches are written together. Nobody got a 200 for them, so
    /// none of them counts as lost.
    fn torn_groups(&mut self) {
        for round in 0..5 {
            if !self.rests() || !self.has_life() {
                return;
            }
            let sync_time = Duration::from_millis(300);
            let slow = disk::Faults { sync_time, tears: true, ..disk::Faults::default() };
            let until = kernel::now() + seconds(8);
            self.disk(slow, seconds(10));
            // A record has two or three sectors, so some are whole while others are not.
            let bodies = (0..12).map(|_| self.good(1)).collect();
            let threads = self.post_at_once(bodies);
            // Batches that arrive before the first one is synced are then written together.
            while kernel::now() < until && !threads.iter().any(JoinHandle::is_finished) {
                self.wait(Duration::from_millis(20));
            }
            self.wait(Duration::from_millis(50 * round));
            self.die(Death::PowerLoss, Duration::from_millis(100));
            let answers: Vec<_> = threads.into_iter().map(join).collect();
            kernel::trace(format_args!("a power loss: {answers:?}"));
            let lost = self.lost();
            if lost > 0.0 {
                let what = "and nothing that was acknowledged is missing";
                self.faults.push(format!("counters: after a power loss {lost} are lost, {what}"));
            }
        }
    }

    /// A backlog has many events that the store refuses. Events before a refused one may arrive
    /// twice, but not more often.
    fn bad_among_good(&mut self) {
        if !self.rests() {
            return;
        }
        self.way(Fault::Refused, seconds(20));
        let mut good = Vec::new();
        for _ in 0..6 {
            let mut events = self.good(24);
            good.extend(events.iter().map(|event| event.serial));
            for at in [20, 15, 10, 5] {
                events.insert(at, self.maker(Marks { refused: 1000, failing: 0 }).event());
            }
            self.post(&events);
        }
        self.wait(seconds(30));
        if !self.comes_true(4 * SOON, |it| it.backlog() == Some(0.0)) {
            return;
        }
        let most = good.iter().map(|serial| (self.arrivals(0, *serial), *serial)).max();
        if let Some((copies, serial)) = most.filter(|(copies, _)| *copies > 2) {
            let what = "and its store has only refused others";
            self.faults.push(format!("repeats: output o0: {serial} came {copies} times, {what}"));
        }
    }

    /// An event is set aside because a store fails on it. Then the store refuses everything for a
    /// while, in which no new events are sent. After that, it is healthy again.
    fn aside_then_refused(&mut self) {
        if !self.rests() || self.consumers[0].promise().fails {
            return;
        }
        self.consumers[0].answers(Some(Steady::Fails));
        let event = self.post_failing();
        let mut others = Vec::new();
        for _ in 0..10 {
            others.extend(self.posted(2));
            self.wait(seconds(2));
        }
        let has_all = |it: &mut Self| others.iter().all(|event| it.has(0, event.serial));
        if !self.comes_true(SOON, has_all) {
            return;
        }
        self.consumers[0].answers(Some(Steady::Refuses));
        self.wait(seconds(250));
        self.consumers[0].answers(None);
        self.posted(2);
        self.come_soon(&[event], "although its store takes it");
    }

    /// The first address of a consumer fails on one event and accepts the others. The second one is
    /// down.
    fn fails_and_away(&mut self) {
        self.act(&Action::Door(0, true, Fault::Refused, seconds(200)));
        self.consumers[0].answers(Some(Steady::Fails));
        self.post_failing();
        let mut others = Vec::new();
        for _ in 0..10 {
            others.extend(self.posted(2));
            self.wait(seconds(2));
        }
        self.come_soon(&others, "behind an event on which one address fails while one is away");
    }

    /// A store always fails on some events. It accepts all others, more than the queue holds: none
    /// of these may be refused or have to wait. With a directory, the relay is killed while it sets
    /// an event aside, loses power, and restarts. Once the store accepts the failing events, they
    /// arrive.
    fn fails_for_ever(&mut self) {
        if !self.rests() || self.consumers[0].promise().fails {
            return;
        }
        self.consumers[0].answers(Some(Steady::Fails));
        let mut failing = Vec::new();
        for round in 0..4 {
            failing.push(self.post_failing());
            if !self.many_come_promptly() {
                return;
            }
            failing.push(self.post_failing());
            self.posted(3);
            self.wait(Duration::from_millis(150 + 900 * round));
            match round {
                0 if self.setup.on_disk => self.die(Death::Kill, Duration::from_millis(200)),
                1 if self.setup.on_disk => self.die(Death::PowerLoss, Duration::from_millis(200)),
                2 if self.setup.on_disk => self.restart(Why::Signal),
                _ => {
                    let time = format!("\"{}s\"", 11 + round).leak();
                    self.setup.own = vec![("timeouts.request", time)];
                    self.act(&Action::Reload(Change::Nothing));
                }
            }
        }
        if !self.many_come_promptly() {
            return;
        }
        self.consumers[0].answers(None);
        if self.come_soon(&failing, "although its store takes it again") && !self.setup.on_disk {
            self.drain_beside_failing();
        }
    }

    /// Ends a relay with a queue in memory while its store fails on some events. All others must
    /// arrive during the drain. Each event that does not arrive counts as lost.
    fn drain_beside_failing(&mut self) {
        if !self.rests() || !self.has_life() {
            return;
        }
        self.consumers[0].answers(Some(Steady::Fails));
        let (mut failing, mut others) = (Vec::new(), Vec::new());
        // The last event is not set aside yet when the drain begins.
        for round in 0..5 {
            let event = self.maker(Marks { refused: 0, failing: 1000 }).event();
            if self.post(std::slice::from_ref(&event)) == Answer::Status(200) {
                failing.push(event.serial);
            }
            others.extend(self.posted(20).into_iter().map(|event| event.serial));
            self.wait(seconds(if round < 4 { 4 } else { 0 }));
        }
        let (mut before, mut after) = (Losses::default(), Losses::default());
        if let Some(metrics) = self.metrics() {
            before.add_metrics(&metrics);
        }
        let from = self.log.len();
        self.stop(Why::Signal);
        after.add_last_line(&String::from_utf8_lossy(&self.log[from..]));
        let name = self.setup.outputs[0].name.clone();
        let lost = after.of(&name).saturating_sub(before.of(&name));
        let missing = |it: &Self, serials: &[Serial]| {
            serials.iter().filter(|serial| !it.has(0, **serial)).count() as u64
        };
        let (failed, left) = (missing(self, &failing), missing(self, &others));
        kernel::trace(format_args!("a drain: {failed} and {left} have not come, {lost} are lost"));
        if left > 0 {
            let what = format!("{left} events are left over that the store takes");
            self.faults.push(format!("drain: output {name}: {what}"));
        }
        if lost != failed + left {
            let what = format!("{lost} are counted as lost in a drain");
            let text = format!("{failed} events on which the store fails have not come, {what}");
            self.faults.push(format!("counters: output {name}: {text}"));
        }
        self.start();
    }

    /// Posts more events than a queue of 2 MiB can hold. Returns `true` if all of them are accepted
    /// and arrive within [`PROMPT`].
    fn many_come_promptly(&mut self) -> bool {
        let mut others = BTreeSet::new();
        for _ in 0..80 {
            let events = self.good(30);
            let answer = self.post(&events);
            if answer != Answer::Status(200) {
                let what = "the store takes all events but a few";
                self.faults.push(format!("progress: {what}, and a body is answered {answer}"));
                return false;
            }
            others.extend(events.iter().map(|event| event.serial));
            self.wait(Duration::from_millis(100));
        }
        let come = self.comes_true(PROMPT, |it| {
            let arrived = it.consumers[0].arrived_since(0);
            let arrived = arrived.iter().filter_map(|arrived| identify(&arrived.event)).collect();
            others.is_subset(&arrived)
        });
        if !come {
            let what = "events wait beside some on which their store fails";
            self.faults.push(format!("progress: after {PROMPT:?}, {what}"));
        }
        come
    }
}

pub(super) fn join(thread: JoinHandle<Answer>) -> Answer {
    thread.join().unwrap_or(Answer::Broken)
}
