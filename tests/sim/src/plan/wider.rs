//! The additions of the seeds from [`WIDER`] on: consumers with two addresses, queues that drop
//! events when they are full, and senders that repeat bodies, for outputs that deduplicate.

use std::time::Duration;

use super::{Action, Change, Plan, Timed};
use crate::kernel::net::Fault;
use crate::senders;
use crate::truth::Acknowledge;

/// The first seed with these additions.
pub(crate) const WIDER: u64 = 2000;

/// The additions that are neither in the config nor actions.
#[derive(Debug, Default)]
pub(crate) struct Wider {
    /// The consumers with a second address, and the strategy of their outputs.
    pub(crate) doors: Vec<(usize, &'static str)>,
    /// During the calm time, the first address (`true`: the second one) of this consumer is down.
    pub(crate) shut: Option<(usize, bool, Fault)>,
    /// `true` if a sender repeats accepted bodies.
    pub(crate) repeats: bool,
}

pub(super) fn add(plan: &mut Plan, seed: u64) {
    let mut rng = senders::rng(seed, "wider");
    let share = |rng: &mut fastrand::Rng, share: u32| rng.u32(..share) == 0;
    if !share(&mut rng, 3) {
        doors(plan, &mut rng);
    }
    if share(&mut rng, 3) {
        drops(plan, &mut rng);
    }
    if !share(&mut rng, 3) {
        plan.wider.repeats = true;
        for output in &mut plan.start.outputs {
            output.deduplicates = !share(&mut rng, 3);
        }
    }
    plan.actions.sort_by_key(|timed| timed.at);
}

/// Gives consumers a second address. One of the two is in trouble at times.
fn doors(plan: &mut Plan, rng: &mut fastrand::Rng) {
    for consumer in 0..plan.consumers.len() {
        if rng.u32(..3) == 0 {
            continue;
        }
        let strategy = ["failover", "round_robin"][rng.usize(..2)];
        plan.wider.doors.push((consumer, strategy));
        for _ in 0..rng.u32(1..4) {
            let at = Duration::from_millis(rng.u64(1000..60_000));
            let time = Duration::from_millis(1 << rng.u32(9..17));
            let action = Action::Door(consumer, rng.bool(), fault(rng), time);
            plan.actions.push(Timed { at, action });
        }
    }
    if rng.bool()
        && let Some((consumer, _)) = rng.choice(&plan.wider.doors)
    {
        let fault = [Fault::Refused, Fault::Silent][rng.usize(..2)];
        plan.wider.shut = Some((*consumer, rng.bool(), fault));
    }
}

fn fault(rng: &mut fastrand::Rng) -> Fault {
    match rng.u32(..3) {
        0 => Fault::Refused,
        1 => Fault::Silent,
        _ => Fault::Slow(rng.u32(50..3000)),
    }
}

/// Makes the queue small, and a consumer unreachable until the queue drops events.
fn drops(plan: &mut Plan, rng: &mut fastrand::Rng) {
    if plan.start.acknowledge == Acknowledge::Delivered {
        return;
    }
    // With `delivered`, the queue must not drop events.
    plan.actions.retain(|timed| !matches!(timed.action, Action::Reload(Change::Acknowledge)));
    plan.start.when_full = ["drop_oldest", "drop_oldest", "drop_newest"][rng.usize(..3)];
    (plan.start.queue, plan.start.segment) = (512, 16);
    let consumer = plan.start.outputs[rng.usize(..plan.start.outputs.len())].consumer;
    let (at, time) = (rng.u64(1..40), rng.u64(30..90));
    let (at, time) = (Duration::from_secs(at), Duration::from_secs(time));
    plan.actions.push(Timed { at, action: Action::Way(consumer, Fault::Refused, time) });
    plan.length = plan.length.max(at + time + Duration::from_secs(10));
}
