//! A seed's decisions: the config, the consumers, and the actions with their times. They are made
//! before anything runs.

mod choosy;
mod demands;
mod outer;
mod scenes;
mod staged;
mod wider;
mod witnessed;

pub(crate) use choosy::{CHOOSY, Choosy, Pattern};
pub(crate) use demands::{DEMANDS, Demand};
pub(crate) use outer::{Front, Outer};
pub(crate) use staged::Stage;
pub(crate) use wider::{WIDER, Wider};

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::consumers::Kind;
use crate::kernel::net::Fault;
use crate::pki::Wrong;
use crate::senders;
use crate::truth::{Acknowledge, Filter, Output};

/// The first seed with scenes.
pub(crate) const SCENES: u64 = 100;

/// From this seed up to [`WIDER`], about half of the seeds have a scene that needs its own config
/// or time.
pub(crate) const SOLOS: u64 = 400;

/// The decisions of a seed.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) start: Setup,
    /// The kind of each consumer. A reload may add an output for the last one.
    pub(crate) consumers: Vec<Kind>,
    pub(crate) actions: Vec<Timed>,
    /// When the troubles end.
    pub(crate) length: Duration,
    pub(crate) wider: Wider,
    pub(crate) outer: Outer,
    /// How long the senders wait before they begin.
    pub(crate) silent: Duration,
}

/// A config, as far as a seed decides about it.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) on_disk: bool,
    pub(crate) acknowledge: Acknowledge,
    /// `queue.max_bytes`, in KiB.
    pub(crate) queue: u64,
    /// `queue.when_full`.
    pub(crate) when_full: &'static str,
    /// `queue.segment_bytes`, in KiB.
    pub(crate) segment: u64,
    pub(crate) has_evidence: bool,
    /// `evidence.heartbeat_interval`, in seconds. The default of an hour is longer than a seed.
    pub(crate) heartbeat: u64,
    /// `true` if the evidence log has a witness.
    pub(crate) has_witness: bool,
    /// `shutdown.drain_timeout`, in seconds.
    pub(crate) drain: u64,
    /// A second listener, to which nobody sends.
    pub(crate) second: Option<SocketAddr>,
    /// `true` if standard output is an output, too. The oracle does not know about it.
    pub(crate) has_stdout: bool,
    /// `batch.max_events` of all outputs.
    pub(crate) batch_events: Option<u32>,
    /// `true` if the plan damages files of the queue that hold events.
    pub(crate) is_damaged: bool,
    pub(crate) front: Front,
    /// The output to this consumer never gives up on an event.
    pub(crate) keeps: Option<usize>,
    /// `true` if the files with audit policies apply to all outputs.
    pub(crate) has_policies: bool,
    /// Keys of all outputs, which replace those of their consumers.
    pub(crate) own: Vec<(&'static str, &'static str)>,
    pub(crate) outputs: Vec<Output>,
}

#[derive(Debug, Clone)]
pub(crate) struct Timed {
    pub(crate) at: Duration,
    pub(crate) action: Action,
}

#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// SIGKILL, and a new start after a while.
    Kill(Duration),
    /// Like [`Action::Kill`], but a part of the unsynced changes is lost.
    PowerLoss(Duration),
    /// SIGTERM, and a new start once the process has ended.
    Restart,
    /// SIGTERM twice: the second one ends the drain.
    Impatient,
    Reload(Change),
    /// The way to a consumer has a fault for a while.
    Way(usize, Fault, Duration),
    /// All connections to a consumer are reset.
    Reset(usize),
    /// A consumer ends all connections. `true`: it crashes, and forgets unacknowledged events.
    ConsumerRestarts(usize, bool),
    /// A consumer is down for a while.
    ConsumerAway(usize, Duration),
    /// A consumer reads nothing for a while.
    ConsumerHangs(usize, Duration),
    DiskFull(Duration),
    DiskSlow(Duration, Duration),
    /// Some writes and syncs fail, for a while.
    DiskFails(Duration),
    /// This share of reads from files fails, and each read takes up to the first time, for a while.
    DiskReads(f32, Duration, Duration),
    /// A file of the queue can be neither removed nor renamed, for ever.
    Stuck,
    /// Nobody reads the log of this life any more.
    UnreadLog,
    /// SIGKILL, changes in the cursors file or in all segments, and a new start.
    Damage(&'static str),
    /// The operator looks at the metrics.
    Look,
    /// SIGTERM after a consumer has refused an event and accepted later ones.
    EndBesideRefused,
    /// The relay restarts without evidence, and after a while it restarts with evidence again.
    EvidenceOff(Duration),
    /// A consumer asks for long pauses for a while. Then the relay shuts down and drains.
    Drain(usize, Duration, When, Why),
    /// A reload adds or removes the spare output. SIGTERM comes before the reload has ended.
    EndInReload,
    /// A store refuses the payload of every request for a while.
    RefusesAll(usize, Duration),
    /// The way to the first address (`true`: the second one) of a consumer has a fault for a while.
    Door(usize, bool, Fault, Duration),
    /// A reload adds a listener (`true`: moves it) at an address that is taken for a while.
    TakenAddress(bool),
    /// The way to the witness has a fault for a while.
    WitnessWay(Fault, Duration),
    /// A gateway answers for the witness with this status for a while.
    WitnessAnswers(u16, Duration),
    /// A gateway answers one request for the witness with this status, which means a contradiction.
    WitnessContradicts(u16),
    /// SIGTERM, a copy of the queue's directory, and a new start.
    Backup,
    /// SIGTERM (`true`: SIGKILL). The copy of the directory is put back, and the relay starts.
    Restore(Back, bool),
    /// The listener's files get a new certificate.
    Rotate,
    /// The listener's files are wrong for some seconds.
    WrongCertificate(Wrong),
    /// An event is too long for the output to this consumer, which may not give up on it at first.
    TooLong(usize),
    /// Many events are too large for the output to this consumer.
    TooLarge(usize),
    /// A trouble that the operator directs.
    Stage(Stage),
    /// A consumer takes only some events.
    Choose(Choosy),
}

/// The part of the queue's directory that an older copy replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Back {
    /// The whole directory.
    Whole,
    /// Everything except the evidence log and the files beside it.
    AllButEvidence,
}

/// When a consumer becomes healthy again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Shortly before the relay begins to drain.
    Before,
    /// Shortly after the relay has begun to drain.
    After,
    /// Like [`When::After`], but the consumer is busy for only 3 s before the drain, and says so
    /// late, so several requests are then on the wire.
    Late,
    /// Like [`When::Before`]. Until then, the consumer fails on one event, and accepts the others.
    OnOne,
}

/// Why the relay ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// SIGTERM.
    Signal,
    /// SIGTERM twice.
    TwoSignals,
    /// The reader of standard output, which is an output, closes the pipe.
    Stdout,
}

/// A change that a reload makes.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Adds or removes an output to the last consumer.
    Spare,
    /// Renames an output.
    Rename(usize),
    Filter(usize, Filter),
    Required(usize),
    /// Changes `queue.acknowledge`, if the queue is in memory.
    Acknowledge,
    /// Changes nothing: only SIGHUP is sent.
    Nothing,
    /// Makes the config wrong, so that it must be refused.
    Wrong,
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7.3} s  {:?}", self.at.as_secs_f64(), self.action)
    }
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = senders::rng(seed, "plan");
        let count = 1 + rng.usize(..3);
        let consumers: Vec<Kind> = (0..=count).map(|_| kind(&mut rng)).collect();
        let on_disk = rng.u32(..3) > 0;
        // The config refuses `delivered` with a required `s3` output, which collects events.
        let collects = consumers.contains(&Kind::S3);
        let acknowledge = match (on_disk, rng.bool() && !collects) {
            (true, _) => Acknowledge::Synced,
            (false, true) => Acknowledge::Delivered,
            (false, false) => Acknowledge::Queued,
        };
        let output = |rng: &mut fastrand::Rng, consumer: usize| Output {
            name: format!("o{consumer}"),
            consumer,
            required: consumer == 0 || rng.u32(..5) > 0,
            filter: if rng.u32(..4) == 0 { filter(rng) } else { Filter::default() },
            may_lose: None,
            deduplicates: false,
            addresses: Vec::new(),
        };
        let start = Setup {
            on_disk,
            acknowledge,
            queue: [512, 2048, 65536][rng.usize(..3)],
            when_full: "reject",
            segment: [16, 64, 128][rng.usize(..3)],
            has_evidence: on_disk && rng.u32(..3) == 0,
            heartbeat: if senders::rng(seed, "heartbeat").bool() { 10 } else { 3600 },
            has_witness: false,
            drain: [1, 5, 20][rng.usize(..3)],
            second: None,
            has_stdout: false,
            batch_events: None,
            is_damaged: false,
            front: Front::default(),
            keeps: None,
            has_policies: false,
            own: Vec::new(),
            outputs: (0..count).map(|consumer| output(&mut rng, consumer)).collect(),
        };
        let length = Duration::from_secs(rng.u64(60..300));
        let mut actions = Vec::new();
        let mut at = Duration::from_millis(rng.u64(1000..20_000));
        let pause = [10_000, 30_000, 90_000][rng.usize(..3)];
        while at < length {
            actions.push(Timed { at, action: action(&mut rng, &start, count, !collects) });
            // Some faults show only if several troubles come close together.
            let next = if rng.bool() { rng.u64(50..3000) } else { rng.u64(1000..pause) };
            at += Duration::from_millis(next);
        }
        let (wider, outer, silent) = (Wider::default(), Outer::default(), Duration::ZERO);
        let mut plan = Self { start, consumers, actions, length, wider, outer, silent };
        if CHOOSY.contains(&seed) {
            choosy::add(&mut plan, seed);
            return plan;
        }
        if seed >= staged::STAGED {
            staged::add(&mut plan, seed);
            return plan;
        }
        if seed >= SCENES {
            scenes::add(&mut plan, seed);
        }
        if (SOLOS..WIDER).contains(&seed) {
            scenes::add_solo(&mut plan, seed);
        }
        if seed >= WIDER {
            wider::add(&mut plan, seed);
        }
        if seed >= witnessed::WITNESSED {
            witnessed::add(&mut plan, seed);
        }
        if outer::OUTER.contains(&seed) {
            outer::add(&mut plan, seed);
        }
        plan
    }
}

fn kind(rng: &mut fastrand::Rng) -> Kind {
    Kind::ALL[rng.usize(..Kind::ALL.len())]
}

fn filter(rng: &mut fastrand::Rng) -> Filter {
    let mut filter = Filter::default();
    match rng.u32(..3) {
        0 => filter.verbs = vec!["create", "delete", "update", "patch"],
        1 => filter.namespaces = vec!["default", "kube-system"],
        _ => filter.verbs = vec!["get", "list", "watch"],
    }
    filter
}

fn action(rng: &mut fastrand::Rng, start: &Setup, outputs: usize, can_wait: bool) -> Action {
    let seconds = |rng: &mut fastrand::Rng| {
        let most = 1 << rng.u32(8..17);
        Duration::from_millis(rng.u64(100..100 + most))
    };
    let consumer = rng.usize(..=outputs);
    match rng.u32(..24) {
        0..3 => Action::Kill(seconds(rng)),
        3 | 4 => Action::PowerLoss(seconds(rng)),
        5 | 6 => Action::Restart,
        7 => Action::Impatient,
        8..13 => Action::Reload(change(rng, outputs, can_wait)),
        13..16 => {
            let fault = match rng.u32(..3) {
                0 => Fault::Refused,
                1 => Fault::Silent,
                _ => Fault::Slow(rng.u32(50..3000)),
            };
            Action::Way(consumer, fault, seconds(rng))
        }
        16 => Action::Reset(consumer),
        17 | 18 => Action::ConsumerRestarts(consumer, rng.bool()),
        19 => Action::ConsumerAway(consumer, seconds(rng)),
        20 => Action::ConsumerHangs(consumer, seconds(rng)),
        _ if !start.on_disk => Action::Kill(seconds(rng)),
        21 => Action::DiskFull(seconds(rng)),
        22 => Action::DiskSlow(Duration::from_millis(rng.u64(10..8000)), seconds(rng)),
        _ => Action::DiskFails(seconds(rng)),
    }
}

fn change(rng: &mut fastrand::Rng, outputs: usize, can_wait: bool) -> Change {
    let output = rng.usize(..outputs);
    match rng.u32(..9) {
        0 | 1 => Change::Spare,
        2 => Change::Rename(output),
        3 | 4 => Change::Filter(output, if rng.bool() { filter(rng) } else { Filter::default() }),
        5 => Change::Required(output),
        6 if can_wait => Change::Acknowledge,
        6 | 7 => Change::Nothing,
        _ => Change::Wrong,
    }
}
