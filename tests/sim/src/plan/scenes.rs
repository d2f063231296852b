//! Scenes: troubles that only matter together, or in an order that single troubles seldom have.
//! Seeds from [`super::SCENES`] on have one or two of them besides their other actions.

use std::time::Duration;

use super::Action;
use super::Change;
use super::Output;
use super::Plan;
use super::Timed;
use super::When;
use super::Why;
use crate::consumers::Kind;
use crate::kernel::net::Fault;
use crate::senders;
use crate::truth::Acknowledge;
use crate::truth::Filter;

/// A scene, with what it needs: the queue on disk, in memory, or either.
#[derive(Debug, Clone, Copy)]
enum Scene {
    /// Disk. A backlog is read from files, whose reads fail for less than half a minute.
    FailingReads,
    /// Disk. A backlog is read from files, slowly.
    SlowReads,
    /// Disk. One file of the queue can be neither removed nor renamed.
    StuckFile,
    /// Disk. The power goes while writes wait for a slow disk.
    TornWrites,
    /// Disk. Nobody reads the log of a life, which ends by a signal.
    UnreadLog,
    /// Disk. A segment is damaged that no output has sent yet.
    DamagedSegment,
    /// Disk. One of the two slots of the cursors file is damaged.
    DamagedCursors,
    /// Memory. A consumer asks for long pauses until the drain, and is well from then on.
    Drain,
    /// Memory. Each output gets another name while senders wait for `delivered`.
    RenamedUnderDelivered,
    /// Memory. SIGTERM, and again, with a backlog. Nothing else ends the process after that.
    SecondSignal,
    /// Either. A consumer is away for so long that its next requests are large.
    Backlog,
    /// Either. A reload changes an output while its requests are on the wire.
    ReloadOnTheWire,
    /// Either. A store refuses everything for a while.
    RefusesAll,
    /// Either. SIGTERM while a reload waits for an output to leave.
    EndInReload,
    /// Either. A reload asks for an address that somebody else has.
    TakenAddress,
}

const ON_DISK: [Scene; 14] = [
    Scene::FailingReads,
    Scene::SlowReads,
    Scene::StuckFile,
    Scene::TornWrites,
    Scene::UnreadLog,
    Scene::DamagedSegment,
    Scene::DamagedCursors,
    Scene::Backlog,
    Scene::ReloadOnTheWire,
    Scene::RefusesAll,
    Scene::RefusesAll,
    Scene::Backlog,
    Scene::EndInReload,
    Scene::TakenAddress,
];

const IN_MEMORY: [Scene; 10] = [
    Scene::Drain,
    Scene::Drain,
    Scene::RenamedUnderDelivered,
    Scene::SecondSignal,
    Scene::Backlog,
    Scene::ReloadOnTheWire,
    Scene::ReloadOnTheWire,
    Scene::RefusesAll,
    Scene::EndInReload,
    Scene::TakenAddress,
];

/// The consumers that are not stores behind HTTP.
const STREAMS: [Kind; 4] = [Kind::Tcp, Kind::Syslog, Kind::Relp, Kind::Lumberjack];

/// Adds the scenes of a seed to its plan.
pub(super) fn add(plan: &mut Plan, seed: u64) {
    let mut rng = senders::rng(seed, "scenes");
    let all = if plan.start.on_disk { &ON_DISK[..] } else { &IN_MEMORY[..] };
    for _ in 0..=rng.u32(..2) {
        let scene = all[rng.usize(..all.len())];
        let begin = match scene {
            Scene::SecondSignal => plan.length,
            _ => Duration::from_millis(rng.u64(8_000..60_000)),
        };
        let mut actions = Vec::new();
        draw(scene, plan, &mut rng, &mut actions);
        let times = actions.iter().map(|(after, _)| *after);
        let end = begin + seconds(times.max().unwrap_or(0) + 10);
        plan.length = plan.length.max(end);
        let timed = |(after, action)| Timed { at: begin + seconds(after), action };
        plan.actions.extend(actions.into_iter().map(timed));
    }
    plan.actions.sort_by_key(|timed| timed.at);
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Draws the actions of a scene, each with the seconds after its begin.
fn draw(scene: Scene, plan: &mut Plan, rng: &mut fastrand::Rng, actions: &mut Vec<(u64, Action)>) {
    let start = &mut plan.start;
    let consumer = start.outputs[rng.usize(..start.outputs.len())].consumer;
    let away = |seconds_| Action::Way(consumer, Fault::Refused, seconds(seconds_));
    match scene {
        Scene::FailingReads | Scene::SlowReads => {
            let (errors, slow) = match scene {
                Scene::FailingReads => ([0.3, 1.0][rng.usize(..2)], Duration::ZERO),
                _ => (0.0, Duration::from_millis(rng.u64(50..2000))),
            };
            actions.push((0, away(20)));
            actions.push((13, Action::Kill(Duration::from_millis(100))));
            actions.push((16, Action::DiskReads(errors, slow, seconds(rng.u64(6..16)))));
        }
        Scene::StuckFile => {
            // Segments come and go only where there is little room.
            (start.queue, start.segment) = (512, 16);
            actions.push((0, Action::Stuck));
            actions.push((1, away(rng.u64(10..60))));
        }
        Scene::TornWrites => {
            let slow = Duration::from_millis(rng.u64(300..4000));
            actions.push((0, Action::DiskSlow(slow, seconds(20))));
            actions.push((rng.u64(4..12), Action::PowerLoss(Duration::from_millis(300))));
        }
        Scene::UnreadLog => {
            actions.push((0, Action::UnreadLog));
            actions.push((rng.u64(5..40), Action::Restart));
        }
        Scene::DamagedSegment => {
            start.is_damaged = true;
            start.has_evidence = false;
            actions.push((0, away(30)));
            actions.push((rng.u64(10..20), Action::Damage("segments")));
            actions.push((24, Action::Look));
        }
        Scene::DamagedCursors => {
            start.segment = 16;
            actions.push((0, Action::Damage("cursors")));
        }
        Scene::Drain => {
            start.drain = 10;
            // Only a store behind HTTP can ask for a pause.
            let asks = |output: &&Output| !STREAMS.contains(&plan.consumers[output.consumer]);
            let asking: Vec<_> = start.outputs.iter().filter(asks).collect();
            let consumer = match asking.len() {
                0 => consumer,
                count => asking[rng.usize(..count)].consumer,
            };
            let when = [When::Before, When::After, When::Late, When::Late][rng.usize(..4)];
            start.has_stdout = rng.bool();
            let why = if start.has_stdout { Why::Stdout } else { Why::Signal };
            actions.push((0, Action::Drain(consumer, seconds(rng.u64(30..45)), when, why)));
        }
        Scene::RenamedUnderDelivered => {
            if !plan.consumers.contains(&Kind::S3) {
                start.acknowledge = Acknowledge::Delivered;
            }
            for output in 0..start.outputs.len() {
                let consumer = start.outputs[output].consumer;
                actions.push((0, Action::Way(consumer, Fault::Refused, seconds(14))));
                let after = 4 + output as u64;
                actions.push((after, Action::Reload(Change::Rename(output))));
            }
        }
        Scene::EndInReload => {
            let last = plan.consumers.len() - 1;
            actions.push((0, Action::Reload(Change::Spare)));
            actions.push((6, Action::ConsumerHangs(last, seconds(40))));
            actions.push((12, Action::Reload(Change::Spare)));
            actions.push((13, Action::EndInReload));
        }
        Scene::SecondSignal => {
            actions.push((0, away(20)));
            actions.push((15, Action::Impatient));
        }
        Scene::Backlog => actions.push((0, away(rng.u64(40..80)))),
        Scene::ReloadOnTheWire => {
            let number = start.outputs.iter().position(|output| output.consumer == consumer);
            let time = seconds(rng.u64(5..25));
            actions.push((0, Action::ConsumerHangs(consumer, time)));
            let filter = if rng.bool() { super::filter(rng) } else { Filter::default() };
            actions.push((4, Action::Reload(Change::Filter(number.unwrap_or(0), filter))));
        }
        Scene::RefusesAll => {
            actions.push((0, Action::RefusesAll(consumer, seconds(rng.u64(12..40)))));
        }
        Scene::TakenAddress => actions.push((0, Action::TakenAddress(rng.bool()))),
    }
}
