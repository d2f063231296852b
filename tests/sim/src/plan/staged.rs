//! The plan of the seeds from [`STAGED`] on: one output, and one trouble that the operator directs
//! from start to end (`operator/staged.rs`). In half of these seeds, and always if events are
//! counted, the senders are silent until the trouble ends, and nothing else happens.

use std::time::Duration;

use super::demands::{DEMANDS, Demand};
use super::{Action, Plan, Timed};
use crate::consumers::{Kind, Steady};
use crate::senders;
use crate::truth::{Acknowledge, Filter};

/// The first of these seeds.
pub(crate) const STAGED: u64 = 5000;

/// A seed's number modulo this one selects its trouble. A new trouble therefore changes the
/// troubles of only a few seeds.
const SLOTS: usize = 50;

/// How long a trouble can take. If nothing else may happen, the senders are silent for this time.
const LONG: Duration = Duration::from_secs(100);

/// A trouble that the operator directs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The disk takes longer for the dead letters of refused events than the relay waits.
    SlowLetters,
    /// A store's responses get lost, and the relay is killed twice. Then a filter drops events that
    /// the store already has.
    AnswersLost,
    /// A proxy in front of a consumer answers 200 to large requests before it has read them.
    EarlyAnswers,
    /// A store fails on everything, accepts one request, and fails again.
    Outages,
    /// A store answers this way for a while.
    Answers(Steady),
    /// The start of a backlog is damaged, and its consumer is down when the relay starts.
    FirstAreMissing,
    /// A store refuses everything while nothing new is sent.
    RefusedAtRest,
    /// A store fails on one event, and a full queue drops others. Then the relay shuts down.
    AsideInFullQueue,
    /// An output is added between two copies of an event, and the relay restarts.
    JoinsBetweenCopies,
    /// A filter drops an event. After a restart with another filter, a copy passes.
    FilterBetweenCopies,
    /// A filter drops a waiting event. After a reload, a copy passes.
    FilterOfWaiting,
    /// A full queue drops events that a connection had on the wire, and a copy comes later.
    DroppedBetweenCopies,
    /// A full queue drops some events of a request that has failed, and a copy comes later.
    PartDroppedBetweenCopies,
    /// A full queue drops segments, one of which can't be deleted, and the relay is killed.
    DropsThenDies,
    /// A full queue drops segments while they are read slowly.
    DropsWhileReading,
    /// Messages are too long for an output until the operator raises its limit.
    TooLong,
    /// Two signals end the relay while events wait.
    TwoSignals,
    /// Both addresses of a consumer fail on one event.
    FailsAtBoth,
    /// One of two addresses that share the requests accepts them, but never responds.
    SecondIsMute,
    /// A consumer refuses an event and goes down, and its second address refuses everything.
    SecondRefuses,
    /// The second address of a consumer has not been tried yet, and refuses connections.
    SecondIsUntried,
    /// A reload changes an output whose accepted events wait behind a refused one.
    HeldAtReload,
    /// A reload changes an output after its object was stored and the response got lost.
    StoredAtReload,
    /// Events must be stored while the queue's disk is full.
    StoredOnFullDisk,
    /// An object waits, and then come events that are too large for it.
    TooLargeForObject,
    /// A full queue needs the room of delivered events before their evidence is written. Some of
    /// the events are sent twice.
    WithoutEvidence,
    /// A consumer resets each connection after a number of bytes.
    CutsConnections,
    /// A backlog with refused events is read slowly.
    RefusedInBacklog,
    /// Bodies of nearly half of the queue's size fill it, and come again when it is empty.
    LargeBodies,
    /// A consumer cuts its connections for a while. Then it closes each one that is idle briefly.
    EndsQuiet,
    /// The power fails while several batches are written together.
    TornGroups,
    /// A store refuses many events of its backlog.
    BadAmongGood,
    /// A store fails on an event, and then refuses everything while nothing else is sent.
    AsideThenRefused,
    /// The first address of a consumer fails on an event, and the second one is down.
    FailsAndAway,
    /// A store always fails on some events, while the relay is killed, loses power, and is
    /// restarted or reloaded.
    FailsForEver,
    Demand(Demand),
}

impl Stage {
    /// The trouble for each number below [`SLOTS`]. Some troubles are there twice: a new one takes
    /// the place of a second one.
    const ALL: [Self; SLOTS] = [
        Self::SlowLetters,
        Self::AnswersLost,
        Self::EarlyAnswers,
        Self::Outages,
        Self::Answers(Steady::Account),
        Self::Answers(Steady::Rejects),
        Self::Answers(Steady::Revokes),
        Self::FirstAreMissing,
        Self::RefusedAtRest,
        Self::AsideInFullQueue,
        Self::JoinsBetweenCopies,
        Self::FilterBetweenCopies,
        Self::FilterOfWaiting,
        Self::DroppedBetweenCopies,
        Self::PartDroppedBetweenCopies,
        Self::DropsThenDies,
        Self::DropsWhileReading,
        Self::TooLong,
        Self::TwoSignals,
        Self::FailsAtBoth,
        Self::SecondIsMute,
        Self::SecondRefuses,
        Self::SecondIsUntried,
        Self::HeldAtReload,
        Self::StoredAtReload,
        Self::StoredOnFullDisk,
        Self::TooLargeForObject,
        Self::WithoutEvidence,
        Self::CutsConnections,
        Self::RefusedInBacklog,
        Self::LargeBodies,
        Self::Answers(Steady::Own),
        Self::Answers(Steady::Own),
        Self::Answers(Steady::SomeRefused),
        Self::Answers(Steady::Interim),
        // 35
        Self::SlowLetters,
        Self::EndsQuiet,
        Self::TornGroups,
        Self::BadAmongGood,
        Self::Answers(Steady::Account),
        Self::Answers(Steady::Rejects),
        Self::AsideThenRefused,
        Self::FailsAndAway,
        Self::RefusedAtRest,
        Self::FailsForEver,
        Self::JoinsBetweenCopies,
        Self::FilterBetweenCopies,
        Self::FilterOfWaiting,
        Self::DroppedBetweenCopies,
        Self::PartDroppedBetweenCopies,
    ];

    /// Returns the trouble of a seed.
    fn of(seed: u64) -> Self {
        let number = usize::try_from(seed).unwrap_or_default();
        let demands = Demand::ALL.len();
        if let Some(number) = seed.checked_sub(DEMANDS.start).filter(|_| seed < DEMANDS.end) {
            let number = usize::try_from(number).unwrap_or_default();
            return Self::Demand(Demand::ALL[number % demands]);
        }
        let slots = if seed < DEMANDS.start { SLOTS } else { SLOTS + demands };
        match (number % slots).checked_sub(SLOTS) {
            Some(demand) => Self::Demand(Demand::ALL[demand]),
            None => Self::ALL[number % slots],
        }
    }

    /// Returns the kinds of consumers that can have the trouble.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Demand(demand) => demand.kinds(),
            Self::SlowLetters | Self::RefusedAtRest => &[Kind::Http, Kind::Loki, Kind::Ibm],
            Self::AnswersLost | Self::EarlyAnswers | Self::WithoutEvidence => {
                &[Kind::Http, Kind::Otlp]
            }
            Self::Outages
            | Self::AsideInFullQueue
            | Self::PartDroppedBetweenCopies
            | Self::HeldAtReload
            | Self::RefusedInBacklog
            | Self::FailsAtBoth
            | Self::SecondIsMute
            | Self::SecondRefuses
            | Self::SecondIsUntried
            | Self::AsideThenRefused
            | Self::FailsAndAway
            | Self::FailsForEver => &[Kind::Http],
            Self::Answers(Steady::Interim) => &[Kind::Http, Kind::Loki],
            Self::Answers(Steady::SomeRefused) => &[Kind::Http, Kind::Loki, Kind::Otlp],
            Self::Answers(Steady::Own) => &[Kind::S3, Kind::Splunk],
            Self::StoredAtReload | Self::StoredOnFullDisk | Self::TooLargeForObject => &[Kind::S3],
            Self::LargeBodies | Self::TornGroups => &[Kind::Http, Kind::Ibm],
            Self::BadAmongGood => &[Kind::Splunk],
            Self::CutsConnections | Self::EndsQuiet => &[Kind::Tcp, Kind::Syslog],
            Self::Answers(Steady::Rejects) => &[Kind::Otlp],
            Self::Answers(_) => &[Kind::Ibm],
            Self::DroppedBetweenCopies => &[Kind::Relp, Kind::Lumberjack],
            Self::TooLong => &[Kind::Syslog],
            Self::DropsThenDies | Self::DropsWhileReading => &[Kind::Http, Kind::Ibm, Kind::Relp],
            Self::JoinsBetweenCopies
            | Self::FilterBetweenCopies
            | Self::FilterOfWaiting
            | Self::FirstAreMissing
            | Self::TwoSignals => &[Kind::Http, Kind::Relp, Kind::Lumberjack],
        }
    }

    /// Returns `true` if the queue must be on disk, `false` if it must be in memory.
    fn on_disk(self) -> Option<bool> {
        match self {
            Self::Demand(demand) => demand.on_disk(),
            Self::SlowLetters
            | Self::AsideInFullQueue
            | Self::PartDroppedBetweenCopies
            | Self::StoredAtReload
            | Self::TooLargeForObject
            | Self::TwoSignals => Some(false),
            Self::AnswersLost
            | Self::Answers(_)
            | Self::FirstAreMissing
            | Self::JoinsBetweenCopies
            | Self::FilterBetweenCopies
            | Self::DropsThenDies
            | Self::DropsWhileReading
            | Self::SecondRefuses
            | Self::StoredOnFullDisk
            | Self::WithoutEvidence
            | Self::RefusedInBacklog
            | Self::LargeBodies
            | Self::TornGroups
            | Self::EndsQuiet
            | Self::BadAmongGood
            | Self::AsideThenRefused => Some(true),
            Self::EarlyAnswers
            | Self::Outages
            | Self::RefusedAtRest
            | Self::FilterOfWaiting
            | Self::DroppedBetweenCopies
            | Self::FailsAtBoth
            | Self::SecondIsMute
            | Self::SecondIsUntried
            | Self::HeldAtReload
            | Self::CutsConnections
            | Self::FailsAndAway
            | Self::FailsForEver
            | Self::TooLong => None,
        }
    }

    /// Returns `true` if a full queue drops events.
    fn drops(self) -> bool {
        matches!(
            self,
            Self::AsideInFullQueue
                | Self::DroppedBetweenCopies
                | Self::PartDroppedBetweenCopies
                | Self::DropsThenDies
                | Self::DropsWhileReading
        )
    }

    /// Returns `true` if no other events may be sent during the trouble.
    fn is_counted(self) -> bool {
        let waits = matches!(
            self,
            Self::RefusedAtRest
                | Self::TooLong
                | Self::TooLargeForObject
                | Self::LargeBodies
                | Self::SecondRefuses
                | Self::EndsQuiet
                | Self::TornGroups
                | Self::BadAmongGood
                | Self::AsideThenRefused
                | Self::FailsForEver
                | Self::Demand(_)
        );
        waits || self.copies() || self.drops()
    }

    /// Returns `true` if copies of an event are posted.
    fn copies(self) -> bool {
        matches!(
            self,
            Self::JoinsBetweenCopies
                | Self::FilterBetweenCopies
                | Self::FilterOfWaiting
                | Self::DroppedBetweenCopies
                | Self::PartDroppedBetweenCopies
        )
    }
}

/// Makes the plan of a seed with a trouble.
pub(super) fn add(plan: &mut Plan, seed: u64) {
    let mut rng = senders::rng(seed, "staged");
    let stage = Stage::of(seed);
    let is_quiet = rng.bool() || stage.is_counted();
    let begin = Duration::from_secs(rng.u64(20..50));
    let kinds = stage.kinds();
    let start = &mut plan.start;
    start.outputs.retain(|output| output.consumer == 0);
    plan.consumers[0] = kinds[rng.usize(..kinds.len())];
    for kind in plan.consumers.iter_mut().skip(1) {
        // The config refuses `delivered` with a required `s3` output.
        if *kind == Kind::S3 {
            *kind = Kind::Http;
        }
    }
    if let Some(on_disk) = stage.on_disk() {
        start.on_disk = on_disk;
    }
    start.acknowledge = match start.on_disk {
        true => Acknowledge::Synced,
        false => Acknowledge::Queued,
    };
    start.has_evidence &= start.on_disk;
    for output in &mut start.outputs {
        (output.required, output.filter) = (true, Filter::default());
        output.deduplicates = stage.copies();
    }
    if stage.drops() {
        (start.queue, start.segment, start.when_full) = (512, 16, "drop_oldest");
    }
    set_up(plan, stage);
    let is_early = |timed: &Timed| timed.at < begin && !is_quiet;
    let fits = |timed: &Timed| !matches!(timed.action, Action::Reload(_) | Action::Stuck);
    plan.actions.retain(|timed| is_early(timed) && fits(timed));
    plan.actions.push(Timed { at: begin, action: Action::Stage(stage) });
    let longer = [(Stage::AsideThenRefused, 4), (Stage::FailsForEver, 2)];
    let longer = longer.into_iter().find(|(longer, _)| *longer == stage).map_or(1, |(_, by)| by);
    let long = LONG * if let Stage::Demand(demand) = stage { demand.lasts() } else { longer };
    plan.silent = if is_quiet { begin + long } else { Duration::ZERO };
    plan.length = begin + long + Duration::from_secs(20);
}

/// Changes the config for a trouble.
fn set_up(plan: &mut Plan, stage: Stage) {
    let start = &mut plan.start;
    match stage {
        Stage::Demand(demand) => demand.set_up(plan),
        Stage::AnswersLost => start.has_evidence = true,
        Stage::WithoutEvidence => {
            (start.queue, start.segment, start.has_evidence) = (256, 64, true);
        }
        Stage::FailsAtBoth
        | Stage::SecondRefuses
        | Stage::SecondIsUntried
        | Stage::FailsAndAway => {
            plan.wider.doors = vec![(0, "failover")];
        }
        Stage::SecondIsMute => {
            start.own = vec![("timeouts.request", "\"60s\"")];
            plan.wider.doors = vec![(0, "round_robin")];
        }
        Stage::TooLargeForObject => {
            start.queue = 65536;
            start.own = vec![
                ("object_age", "\"300s\""),
                ("object_bytes", "\"1MiB\""),
                ("filter.max_event_bytes", "\"1KiB\""),
            ];
        }
        Stage::LargeBodies => {
            (start.queue, start.segment, start.has_evidence) = (256, 64, false);
        }
        Stage::EarlyAnswers | Stage::EndsQuiet | Stage::BadAmongGood => start.queue = 65536,
        Stage::FirstAreMissing => (start.is_damaged, start.has_evidence) = (true, false),
        Stage::AsideInFullQueue => start.drain = 60,
        Stage::FailsForEver => (start.queue, start.when_full) = (2048, "reject"),
        Stage::PartDroppedBetweenCopies => start.own = vec![("timeouts.request", "\"4s\"")],
        // If the room of events is needed before they are read, they have no evidence.
        Stage::DropsWhileReading => start.has_evidence = false,
        Stage::TooLong => {
            start.own = vec![("max_message_bytes", "\"4KiB\""), ("rejected.action", "\"retry\"")];
        }
        Stage::SlowLetters
        | Stage::Outages
        | Stage::Answers(_)
        | Stage::RefusedAtRest
        | Stage::JoinsBetweenCopies
        | Stage::FilterBetweenCopies
        | Stage::FilterOfWaiting
        | Stage::DroppedBetweenCopies
        | Stage::DropsThenDies
        | Stage::TwoSignals
        | Stage::HeldAtReload
        | Stage::StoredAtReload
        | Stage::StoredOnFullDisk
        | Stage::CutsConnections
        | Stage::TornGroups
        | Stage::AsideThenRefused
        | Stage::RefusedInBacklog => {}
    }
}
