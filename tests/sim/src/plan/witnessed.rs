//! The additions of the seeds from [`WITNESSED`] on: a witness of the evidence log, queue
//! directories that are replaced with an older copy, and small queues in memory that drop events.

use std::time::Duration;

use super::{Action, Back, Change, Plan, Timed};
use crate::consumers::Kind;
use crate::kernel::net::Fault;
use crate::senders;
use crate::truth::Acknowledge;

/// The first seed with these additions.
pub(crate) const WITNESSED: u64 = 3000;

pub(super) fn add(plan: &mut Plan, seed: u64) {
    let mut rng = senders::rng(seed, "witnessed");
    match rng.u32(..5) {
        0 => drops(plan, &mut rng),
        // Damaged files of the queue raise an alarm.
        _ if plan.start.is_damaged => {}
        _ => {
            let start = &mut plan.start;
            (start.on_disk, start.acknowledge) = (true, Acknowledge::Synced);
            start.has_evidence = rng.u32(..6) > 0;
            start.has_witness = start.has_evidence && rng.u32(..4) > 0;
            if start.has_witness {
                weather(plan, &mut rng);
            }
            if rng.bool() {
                sets_back(plan, &mut rng);
            }
        }
    }
    plan.actions.sort_by_key(|timed| timed.at);
}

/// Causes troubles of the witness, or of the gateway in front of it.
fn weather(plan: &mut Plan, rng: &mut fastrand::Rng) {
    const ANSWERS: [u16; 6] = [200, 404, 429, 500, 502, 503];
    let length = plan.length.as_secs();
    for _ in 0..rng.u32(2..8) {
        let at = Duration::from_millis(rng.u64(1000..length * 1000));
        let time = Duration::from_millis(1 << rng.u32(9..17));
        let action = match rng.u32(..6) {
            0 => Action::WitnessWay(Fault::Refused, time),
            1 => Action::WitnessWay(Fault::Silent, time),
            2 => Action::WitnessWay(Fault::Slow(rng.u32(50..6000)), time),
            3 => Action::WitnessAnswers(ANSWERS[rng.usize(..ANSWERS.len())], time),
            _ => Action::WitnessContradicts([409, 422, 422][rng.usize(..3)]),
        };
        plan.actions.push(Timed { at, action });
    }
}

/// Adds a backup of the queue's directory that is put back later. After that, more events arrive,
/// and the next life reads them from files.
fn sets_back(plan: &mut Plan, rng: &mut fastrand::Rng) {
    let begin = Duration::from_millis(rng.u64(4_000..30_000));
    let seconds = |time| Duration::from_secs(time);
    let restored = begin + Duration::from_millis(rng.u64(3_000..40_000));
    let consumer = plan.start.outputs[rng.usize(..plan.start.outputs.len())].consumer;
    let back = [Back::Whole, Back::AllButEvidence][rng.usize(..2)];
    // There are only enough lives for two of these ends.
    let ends = |timed: &Timed| {
        let Timed { action, .. } = timed;
        matches!(action, Action::Kill(_) | Action::PowerLoss(_) | Action::Restart)
            || matches!(action, Action::Impatient | Action::EndInReload | Action::Drain(..))
    };
    let mut number = 0;
    plan.actions.retain(|timed| {
        number += u32::from(ends(timed));
        !ends(timed) || number <= 2
    });
    let actions = [
        (begin, Action::Backup),
        (restored, Action::Restore(back, rng.bool())),
        (restored + seconds(1), Action::Way(consumer, Fault::Refused, seconds(20))),
        (restored + seconds(14), Action::Kill(Duration::from_millis(100))),
    ];
    plan.actions.extend(actions.map(|(at, action)| Timed { at, action }));
    plan.length = plan.length.max(restored + seconds(30));
}

/// Makes the queue in memory small: it drops its oldest events. A consumer gets several requests at
/// a time, some of which hang.
fn drops(plan: &mut Plan, rng: &mut fastrand::Rng) {
    plan.actions.retain(|timed| !matches!(timed.action, Action::Reload(Change::Acknowledge)));
    let start = &mut plan.start;
    (start.on_disk, start.has_evidence, start.acknowledge) = (false, false, Acknowledge::Queued);
    (start.queue, start.when_full) = (512, "drop_oldest");
    let consumer = start.outputs[rng.usize(..start.outputs.len())].consumer;
    plan.consumers[consumer] = Kind::Http;
    start.outputs.retain(|output| output.consumer == consumer);
    start.outputs.iter_mut().for_each(|output| output.required = true);
    for _ in 0..3 {
        let at = Duration::from_millis(rng.u64(5_000..60_000));
        let action = Action::ConsumerHangs(consumer, Duration::from_secs(rng.u64(15..60)));
        plan.actions.push(Timed { at, action });
    }
}
