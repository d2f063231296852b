//! After a recovery, a delivery behaves as one that has never seen a failure: what it sends in a
//! later outage, and when, is the same to the event and to the millisecond.

use super::*;

/// One request: the time since the start of the trace, its first event, and its number of events.
type Request = (Duration, String, u64);

/// A way in which a consumer fails for some time.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Nothing,
    /// Every request is answered in this way.
    All(AttemptError),
    RefusesAll,
    /// The consumer asks for a pause each time.
    Asks,
    /// The events whose names begin with "bad" are turned down, and others are accepted.
    Bad(AttemptError),
    RefusesBad,
    /// Requests of more than this many events are turned down.
    Large(u64),
    /// Every second request is answered in this way.
    Second(AttemptError),
    /// The connection ends with everything on the wire, each time.
    Gone,
}

const PHASES: [Phase; 14] = [
    Phase::Nothing,
    Phase::All(AttemptError::Status5xx),
    Phase::All(AttemptError::Status4xx),
    Phase::All(AttemptError::Timeout),
    Phase::All(AttemptError::Connect),
    Phase::All(AttemptError::Closed),
    Phase::RefusesAll,
    Phase::Asks,
    Phase::Bad(AttemptError::Status5xx),
    Phase::Bad(AttemptError::Timeout),
    Phase::RefusesBad,
    Phase::Large(40),
    Phase::Second(AttemptError::Status5xx),
    Phase::Gone,
];

impl Lanes {
    fn append_many(&self, name: &str, count: u64) {
        for first in (0..count).step_by(500) {
            let names = (first..count.min(first + 500)).map(|number| format!("{name}{number}"));
            let names: Vec<_> = names.collect();
            self.append(&names.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }

    /// Lets the consumer answer in this way. `number` counts the requests from 1.
    fn answer(&mut self, phase: Phase, batch: &Batch, number: usize) {
        let events = events_of(batch);
        match phase {
            Phase::All(reason) => self.fail(batch, reason),
            Phase::RefusesAll => self.refuse(batch),
            Phase::Asks => {
                let retry_after = Some(Duration::from_secs(20));
                let asked = Failure { retry_after, ..failure(AttemptError::Status429) };
                self.ledger().on_failed(batch.claim, &asked, 0);
            }
            Phase::Bad(reason) if is_bad(&events) => self.fail(batch, reason),
            Phase::RefusesBad if is_bad(&events) => self.refuse(batch),
            Phase::Large(most) if batch.events > most => self.fail(batch, AttemptError::Closed),
            Phase::Second(reason) if number % 2 == 1 => self.fail(batch, reason),
            Phase::Gone => {
                let gone = failure(AttemptError::Protocol);
                self.ledger().on_gone(Some(&gone), None, 0);
            }
            Phase::Nothing | Phase::Bad(_) | Phase::RefusesBad => self.accept(batch),
            Phase::Large(_) | Phase::Second(_) => self.accept(batch),
        }
    }

    /// Lets the consumer behave in this way for this long. Returns all requests.
    async fn live(&mut self, phase: Phase, time: Duration) -> Vec<Request> {
        let (started, mut requests) = (Instant::now(), Vec::new());
        loop {
            while let Some(batch) = self.try_send(u64::MAX) {
                let first = events_of(&batch).swap_remove(0);
                requests.push((started.elapsed(), first, batch.events));
                assert!(requests.len() < 20_000, "{phase:?}: no end of requests");
                self.answer(phase, &batch, requests.len());
                self.settle();
            }
            let paused = self.ledger().pacing.paused_until;
            let next = paused.or_else(|| self.ledger().next_try());
            let next = next.unwrap_or(started + time).min(started + time);
            let step = next.duration_since(Instant::now()).max(Duration::from_millis(1));
            tokio::time::advance(step).await;
            if paused.is_some_and(|until| until <= Instant::now()) {
                self.ledger().pacing.end_pause();
            }
            if started.elapsed() >= time {
                return requests;
            }
        }
    }

    /// The consumer takes everything again: the backlog, and then some large requests.
    async fn recover(&mut self, phase: Phase) {
        self.live(Phase::Nothing, Duration::from_secs(90)).await;
        for round in 0..8 {
            self.append_many(&format!("after{round}-"), self.config.batch.max_events);
            self.live(Phase::Nothing, Duration::from_secs(1)).await;
        }
        let [_, backlog, aside, lost] = self.books();
        let given_up = u64::from(matches!(phase, Phase::RefusesBad));
        assert_eq!((backlog, aside, lost), (0, 0, given_up), "{phase:?}");
        let ledger = &self.delivery.ledger;
        assert!(ledger.pacing.paused_until.is_none() && !ledger.pacing.is_serial, "{phase:?}");
        assert!(!ledger.pacing.is_unproven && !ledger.has_failed(), "{phase:?}");
        assert!(ledger.in_flight.next_wait().is_none() && ledger.next_try().is_none());
        assert!(self.is_up(), "{phase:?}");
    }
}

/// Returns the requests of an outage, and of the time after it, when the consumer has failed in
/// this way before.
async fn later_outage(before: Phase, outage: Phase, ordered: bool) -> Vec<Request> {
    let mut hand = Lanes::new(ordered);
    hand.append(&["first"]);
    hand.live(Phase::Nothing, Duration::from_secs(1)).await;
    hand.append_many("good", 300);
    hand.append(&["bad"]);
    hand.append_many("other", 300);
    hand.live(before, Duration::from_secs(100)).await;
    hand.recover(before).await;
    hand.append_many("later", 1000);
    hand.append(&["bad"]);
    hand.append_many("last", 1000);
    let mut requests = hand.live(outage, Duration::from_secs(100)).await;
    requests.extend(hand.live(Phase::Nothing, Duration::from_secs(100)).await);
    requests
}

#[tokio::test(start_paused = true)]
async fn after_a_recovery_a_later_outage_is_met_as_the_first_one() {
    for ordered in [false, true] {
        for outage in [Phase::All(AttemptError::Status5xx), Phase::RefusesAll, Phase::Gone] {
            let first = later_outage(Phase::Nothing, outage, ordered).await;
            assert!(first.len() > 5, "{outage:?}");
            for before in PHASES {
                let later = later_outage(before, outage, ordered).await;
                let differs = (0..).zip(first.iter().zip(&later)).find(|(_, (a, b))| a != b);
                assert_eq!(differs, None, "{before:?} before {outage:?}, ordered: {ordered}");
                assert_eq!(first.len(), later.len(), "{before:?} before {outage:?}, {ordered}");
            }
        }
    }
}
