//! Scenes: troubles that only matter together, or in an order that random troubles seldom have.
//! Seeds from [`super::SCENES`] on have one or two of them in addition to their other actions.

use std::time::Duration;

use super::{Action, Change, Output, Plan, Timed, When, Why};
use crate::consumers::Kind;
use crate::kernel::net::Fault;
use crate::senders;
use crate::truth::{Acknowledge, Filter};

/// A scene that is being drawn.
struct Draft<'a> {
    plan: &'a mut Plan,
    rng: &'a mut fastrand::Rng,
    /// The consumer of an output in the first config.
    consumer: usize,
    begin: Duration,
    /// The actions, with their seconds after the start of the scene.
    actions: Vec<(u64, Action)>,
}

/// Draws the actions of a scene.
type Scene = fn(&mut Draft<'_>);

/// The scenes for a queue on disk.
const ON_DISK: [Scene; 14] = [
    failing_reads,
    slow_reads,
    stuck_file,
    torn_writes,
    unread_log,
    damaged_segments,
    damaged_cursors,
    backlog,
    backlog,
    reload_on_the_wire,
    refuses_all,
    refuses_all,
    end_in_reload,
    taken_address,
];

/// The scenes for a queue in memory.
const IN_MEMORY: [Scene; 12] = [
    drain,
    drain,
    drain,
    drain,
    renamed_under_delivered,
    second_signal,
    backlog,
    reload_on_the_wire,
    reload_on_the_wire,
    refuses_all,
    end_in_reload,
    taken_address,
];

/// The scenes that need their own config or time.
const SOLOS: [Scene; 10] = [
    aside_drain,
    end_beside_refused,
    evidence_off,
    shut_out,
    ended_stdout,
    // The following scenes are in the list twice, so that each seed keeps its scene.
    aside_drain,
    end_beside_refused,
    evidence_off,
    large_requests,
    small_batches,
];

/// The kinds of consumers that refuse or fail on single events.
const CHOOSERS: [Kind; 5] = [Kind::Http, Kind::Loki, Kind::Otlp, Kind::Elasticsearch, Kind::Splunk];

/// The consumers that are not stores behind HTTP.
const STREAMS: [Kind; 4] = [Kind::Tcp, Kind::Syslog, Kind::Relp, Kind::Lumberjack];

pub(super) fn add(plan: &mut Plan, seed: u64) {
    let mut rng = senders::rng(seed, "scenes");
    let all = if plan.start.on_disk { &ON_DISK[..] } else { &IN_MEMORY[..] };
    for _ in 0..=rng.u32(..2) {
        add_one(plan, &mut rng, all);
    }
}

/// Adds one of the [`SOLOS`] to the plans of about half of the seeds.
pub(super) fn add_solo(plan: &mut Plan, seed: u64) {
    let mut rng = senders::rng(seed, "solos");
    if rng.bool() {
        add_one(plan, &mut rng, &SOLOS);
    }
}

fn add_one(plan: &mut Plan, rng: &mut fastrand::Rng, all: &[Scene]) {
    let scene = all[rng.usize(..all.len())];
    let begin = Duration::from_millis(rng.u64(8_000..60_000));
    let consumer = plan.start.outputs[rng.usize(..plan.start.outputs.len())].consumer;
    let mut draft = Draft { plan, rng, consumer, begin, actions: Vec::new() };
    scene(&mut draft);
    let Draft { plan, begin, actions, .. } = draft;
    let last = actions.iter().map(|(after, _)| *after).max().unwrap_or(0);
    plan.length = plan.length.max(begin + seconds(last + 10));
    let timed = |(after, action)| Timed { at: begin + seconds(after), action };
    plan.actions.extend(actions.into_iter().map(timed));
    plan.actions.sort_by_key(|timed| timed.at);
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Draft<'_> {
    fn after(&mut self, seconds: u64, action: Action) {
        self.actions.push((seconds, action));
    }

    /// For this many seconds from the start of the scene, nobody can connect to the consumer.
    fn away(&mut self, time: u64) {
        self.after(0, Action::Way(self.consumer, Fault::Refused, seconds(time)));
    }

    fn in_memory(&mut self) {
        let start = &mut self.plan.start;
        (start.on_disk, start.has_evidence) = (false, false);
        if start.acknowledge == Acknowledge::Synced {
            start.acknowledge = Acknowledge::Queued;
        }
    }

    fn on_disk(&mut self) {
        let start = &mut self.plan.start;
        (start.on_disk, start.acknowledge) = (true, Acknowledge::Synced);
    }

    /// Kills the relay with a backlog, which the next life must read from files.
    fn backlog_in_files(&mut self) {
        self.away(20);
        self.after(13, Action::Kill(Duration::from_millis(100)));
    }
}

/// A backlog is read from files, and reads fail for less than half a minute.
fn failing_reads(draft: &mut Draft<'_>) {
    draft.backlog_in_files();
    let part = [0.3, 1.0][draft.rng.usize(..2)];
    let time = seconds(draft.rng.u64(6..16));
    draft.after(16, Action::DiskReads(part, Duration::ZERO, time));
}

/// A backlog is read from files, slowly.
fn slow_reads(draft: &mut Draft<'_>) {
    draft.backlog_in_files();
    let slow = Duration::from_millis(draft.rng.u64(50..2000));
    draft.after(16, Action::DiskReads(0.0, slow, seconds(15)));
}

/// A file of the queue can be neither removed nor renamed. The queue is small, so that segments are
/// made and removed often.
fn stuck_file(draft: &mut Draft<'_>) {
    (draft.plan.start.queue, draft.plan.start.segment) = (512, 16);
    let time = draft.rng.u64(10..60);
    draft.away(time);
    draft.after(1, Action::Stuck);
}

/// The power fails while writes wait for a slow disk.
fn torn_writes(draft: &mut Draft<'_>) {
    let slow = Duration::from_millis(draft.rng.u64(300..4000));
    draft.after(0, Action::DiskSlow(slow, seconds(20)));
    let end = draft.rng.u64(4..12);
    draft.after(end, Action::PowerLoss(Duration::from_millis(300)));
}

/// Nobody reads the log of a life that a signal ends.
fn unread_log(draft: &mut Draft<'_>) {
    draft.after(0, Action::UnreadLog);
    let end = draft.rng.u64(5..40);
    draft.after(end, Action::Restart);
}

/// Segments that an output has not sent yet are damaged.
fn damaged_segments(draft: &mut Draft<'_>) {
    draft.plan.start.is_damaged = true;
    draft.plan.start.has_evidence = false;
    draft.away(30);
    let when = draft.rng.u64(10..20);
    draft.after(when, Action::Damage("segments"));
    draft.after(24, Action::Look);
}

/// One of the two slots of the cursors file is damaged, which loses no event.
fn damaged_cursors(draft: &mut Draft<'_>) {
    draft.plan.start.segment = 16;
    draft.after(0, Action::Damage("cursors"));
}

/// A store asks for long pauses, and the relay drains when the store becomes healthy.
fn drain(draft: &mut Draft<'_>) {
    let Draft { plan, rng, consumer, .. } = draft;
    plan.start.drain = 10;
    // Only a store behind HTTP can ask for a pause.
    let asks = |output: &&Output| !STREAMS.contains(&plan.consumers[output.consumer]);
    let asking: Vec<_> = plan.start.outputs.iter().filter(asks).collect();
    let consumer = match asking.len() {
        0 => *consumer,
        count => asking[rng.usize(..count)].consumer,
    };
    let when = [When::Before, When::After, When::Late][rng.usize(..3)];
    let why = if rng.u32(..4) == 0 { Why::Stdout } else { Why::Signal };
    plan.start.has_stdout |= why == Why::Stdout;
    let outage = seconds(rng.u64(30..45));
    draft.after(0, Action::Drain(consumer, outage, when, why));
}

/// Every output is renamed while senders wait for `delivered`.
fn renamed_under_delivered(draft: &mut Draft<'_>) {
    // The config refuses `delivered` with a required output of this kind.
    if !draft.plan.consumers.contains(&Kind::S3) {
        draft.plan.start.acknowledge = Acknowledge::Delivered;
    }
    for output in 0..draft.plan.start.outputs.len() {
        let consumer = draft.plan.start.outputs[output].consumer;
        draft.after(0, Action::Way(consumer, Fault::Refused, seconds(14)));
        draft.after(4 + output as u64, Action::Reload(Change::Rename(output)));
    }
}

/// SIGTERM twice, with a backlog. The scene comes last, so that no other action can end the process
/// first.
fn second_signal(draft: &mut Draft<'_>) {
    draft.begin = draft.plan.length;
    draft.away(20);
    draft.after(15, Action::Impatient);
}

/// A consumer is down for so long that its next requests are large.
fn backlog(draft: &mut Draft<'_>) {
    let time = draft.rng.u64(40..80);
    draft.away(time);
}

/// A reload changes an output while its requests are on the wire.
fn reload_on_the_wire(draft: &mut Draft<'_>) {
    let Draft { plan, rng, consumer, .. } = draft;
    let number = plan.start.outputs.iter().position(|output| output.consumer == *consumer);
    let (consumer, time) = (*consumer, seconds(rng.u64(5..25)));
    let filter = if rng.bool() { super::filter(rng) } else { Filter::default() };
    draft.after(0, Action::ConsumerHangs(consumer, time));
    draft.after(4, Action::Reload(Change::Filter(number.unwrap_or(0), filter)));
}

/// A store refuses everything for a while.
fn refuses_all(draft: &mut Draft<'_>) {
    let time = seconds(draft.rng.u64(12..40));
    draft.after(0, Action::RefusesAll(draft.consumer, time));
}

/// SIGTERM while a reload waits for a removed output.
fn end_in_reload(draft: &mut Draft<'_>) {
    let last = draft.plan.consumers.len() - 1;
    draft.after(0, Action::Reload(Change::Spare));
    draft.after(6, Action::ConsumerHangs(last, seconds(40)));
    draft.after(12, Action::Reload(Change::Spare));
    draft.after(13, Action::EndInReload);
}

/// A reload needs an address that somebody else has.
fn taken_address(draft: &mut Draft<'_>) {
    let moves = draft.rng.bool();
    draft.after(0, Action::TakenAddress(moves));
}

/// The relay drains when a store accepts an event on which it has failed for a minute or more.
fn aside_drain(draft: &mut Draft<'_>) {
    draft.in_memory();
    draft.plan.start.drain = 10;
    for kind in &mut draft.plan.consumers {
        *kind = CHOOSERS[draft.rng.usize(..CHOOSERS.len())];
    }
    let outage = seconds(draft.rng.u64(60..90));
    draft.after(0, Action::Drain(draft.consumer, outage, When::OnOne, Why::Signal));
}

/// The relay shuts down while a refused event is undecided and later events are accepted.
fn end_beside_refused(draft: &mut Draft<'_>) {
    draft.on_disk();
    draft.plan.start.drain = 20;
    draft.after(0, Action::EndBesideRefused);
}

/// The relay runs without evidence for a while.
fn evidence_off(draft: &mut Draft<'_>) {
    draft.on_disk();
    draft.plan.start.has_evidence = true;
    let time = seconds(draft.rng.u64(5..20));
    draft.after(0, Action::EvidenceOff(time));
}

/// A consumer is down for so long that senders give up. Nothing else happens during this time.
fn shut_out(draft: &mut Draft<'_>) {
    (draft.plan.start.queue, draft.plan.start.segment) = (512, 16);
    draft.begin = draft.plan.length;
    draft.consumer = draft.plan.start.outputs[0].consumer;
    draft.away(330);
    draft.after(330, Action::Look);
}

/// Standard output is an output whose reader closes the pipe. That ends the relay while senders
/// wait for `delivered`.
fn ended_stdout(draft: &mut Draft<'_>) {
    draft.in_memory();
    (draft.plan.start.drain, draft.plan.start.has_stdout) = (10, true);
    // The config refuses `delivered` with a required output of this kind.
    if !draft.plan.consumers.contains(&Kind::S3) {
        draft.plan.start.acknowledge = Acknowledge::Delivered;
    }
    let outage = seconds(draft.rng.u64(1..10));
    draft.after(0, Action::Drain(draft.consumer, outage, When::After, Why::Stdout));
}

/// The next requests to a consumer are larger than its kernel's buffer.
fn large_requests(draft: &mut Draft<'_>) {
    draft.plan.start.queue = 65536;
    draft.plan.consumers[draft.consumer] = [Kind::Http, Kind::Otlp][draft.rng.usize(..2)];
    draft.away(60);
    draft.after(100, Action::Look);
}

/// A stream sends a backlog in many batches.
fn small_batches(draft: &mut Draft<'_>) {
    draft.plan.start.batch_events = Some(2);
    draft.plan.consumers[draft.consumer] = [Kind::Tcp, Kind::Syslog][draft.rng.usize(..2)];
    draft.away(30);
}
