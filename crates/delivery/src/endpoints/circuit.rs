//! The circuit of one address, which says whether deliveries may use the address.
//!
//! - *Closed*: the address is used. A delivery that fails there opens the circuit.
//! - *Open*: the address is probed, and passed over as long as another one can be tried. It must
//!   answer probes for a whole *hold* before the circuit becomes half-open.
//! - *Half-open*: the address is on trial. One delivery at a time uses it, until one succeeds or
//!   fails.
//!
//! An address may answer probes and still fail deliveries. The hold keeps such an address from
//! going back and forth all the time. The hold doubles each time that an address that is back fails
//! before it has worked for one hold. It is at least twice the time that the failure has cost, and
//! at most 600 s. For example, an address that takes connections and never responds costs 10 s
//! (`UNANSWERED_MAX`) at each trial. Its holds are 20 s, 40 s, and so on.
//!
//! This file has no clock and no I/O: callers pass the time.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest hold. A consumer that restarts is unreachable for a few seconds, and a return to it
/// costs a TCP stream a new connection.
pub(super) const HOLD_MIN: Duration = Duration::from_secs(10);

/// The longest hold. Each delivery to a consumer that accepts connections and hangs costs some
/// seconds, and its events may arrive twice.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(600);

/// The longest time without progress at an address while another address may respond. A consumer
/// that works responds within a second or two, and one that collects garbage or rotates its files
/// within a few more.
pub const UNANSWERED_MAX: Duration = Duration::from_secs(10);

/// The pause after the first failed probe. It doubles with each further one, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);

pub(super) const PAUSE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// The consumer was unreachable or silent, or responded with an error.
    Failed {
        asked: Option<Duration>,
        /// Zero unless the failure is a timeout.
        waited: Duration,
    },
    /// The consumer refuses events that others may accept. The events may be at fault, so the hold
    /// does not grow.
    Refused,
}

#[derive(Debug, Clone)]
pub(super) struct Circuit {
    state: CircuitState,
    since: Instant,
    /// The time for which the address must answer probes before a delivery tests it again.
    hold: Duration,
    /// The moment at which the address last became usable again; `None` before that, after a
    /// failure, and after it has worked for a whole `hold`.
    back: Option<Instant>,
    failed: Option<Instant>,
    proven: bool,
    /// `true` if the last failed delivery got no response for [`UNANSWERED_MAX`], and no delivery
    /// has succeeded since. Probes can't show this, because they only connect.
    mute: bool,
}

#[derive(Debug, Clone)]
enum CircuitState {
    Closed,
    /// `busy` is `true` while a delivery tests the address.
    HalfOpen {
        busy: bool,
    },
    Open(Open),
}

#[derive(Debug, Clone, Copy)]
struct Open {
    since: Instant,
    /// `true` if refusals of events are the only faults since the circuit opened.
    refused: bool,
    asked: Option<Instant>,
    /// The moment of the first answered probe after the last failure.
    answers: Option<Instant>,
    next_probe: Instant,
    pause: Duration,
}

impl Circuit {
    pub(super) fn new(now: Instant) -> Self {
        let state = CircuitState::Closed;
        let (hold, back, failed, proven, mute) = (HOLD_MIN, None, None, false, false);
        Self { state, since: now, hold, back, failed, proven, mute }
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    fn change<T>(&mut self, now: Instant, change: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.name();
        let result = change(self);
        if self.name() != before {
            self.since = now;
        }
        result
    }

    /// Makes the circuit of a new address if all other addresses of its host name are down. `self`
    /// is the circuit of one of them. The new address must answer probes before a delivery tests
    /// it. The first probe is due now.
    pub(super) fn of_successor(&self, now: Instant) -> Self {
        let mut circuit = self.clone();
        (circuit.failed, circuit.since) = (None, now);
        (circuit.proven, circuit.mute) = (false, false);
        if let CircuitState::Open(open) = &mut circuit.state {
            *open = Open { asked: None, answers: None, next_probe: now, pause: PAUSE_MIN, ..*open };
        }
        circuit
    }

    pub(super) fn is_open(&self) -> bool {
        self.open().is_some()
    }

    fn open(&self) -> Option<&Open> {
        match &self.state {
            CircuitState::Open(open) => Some(open),
            CircuitState::Closed | CircuitState::HalfOpen { .. } => None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, CircuitState::Closed)
    }

    /// Returns `true` if the address works, or if it may be tested and no delivery tests it now.
    pub(super) fn is_usable(&self) -> bool {
        matches!(self.state, CircuitState::Closed | CircuitState::HalfOpen { busy: false })
    }

    /// Returns `true` if this address is a reason to give up a slow request at another one. A mute
    /// address is no reason: the other consumer is slow, but this one does not respond at all.
    pub(super) fn may_answer(&self) -> bool {
        self.is_usable() && !self.mute
    }

    pub(super) fn open_since(&self) -> Option<Instant> {
        self.open().map(|open| open.since)
    }

    /// Returns the state for `/status`: `unknown` as long as no delivery has tried the address.
    pub(super) fn name(&self) -> &'static str {
        match self.state {
            CircuitState::Closed if !self.proven && self.failed.is_none() => "unknown",
            CircuitState::Closed => "up",
            CircuitState::HalfOpen { .. } => "back, on trial",
            CircuitState::Open(_) => "down",
        }
    }

    pub(super) fn asked_until(&self, now: Instant) -> Option<Instant> {
        self.open()?.asked.filter(|until| *until > now)
    }

    /// Takes the address for a delivery. Returns `true` for a trial; [`Circuit::release`] must end
    /// it.
    pub(super) fn take(&mut self) -> bool {
        match &mut self.state {
            CircuitState::HalfOpen { busy } => !std::mem::replace(busy, true),
            CircuitState::Closed | CircuitState::Open(_) => false,
        }
    }

    pub(super) fn release(&mut self) {
        if let CircuitState::HalfOpen { busy } = &mut self.state {
            *busy = false;
        }
    }

    /// Notes a fault. Returns `true` if it opens the circuit.
    pub(super) fn failed(&mut self, fault: Fault, now: Instant) -> bool {
        self.change(now, |circuit| circuit.note_fault(fault, now))
    }

    fn note_fault(&mut self, fault: Fault, now: Instant) -> bool {
        let (asked, waited) = match fault {
            Fault::Failed { asked, waited } => (asked.map(|asked| now + asked), waited),
            Fault::Refused => (None, Duration::ZERO),
        };
        (self.failed, self.mute) = (Some(now), waited >= UNANSWERED_MAX);
        if let CircuitState::Open(open) = &mut self.state {
            open.asked = open.asked.max(asked);
            open.answers = None;
            open.refused &= matches!(fault, Fault::Refused);
            return false;
        }
        if self.back.take().is_some() && !matches!(fault, Fault::Refused) {
            self.hold *= 2;
        }
        self.hold = self.hold.max(waited * 2).min(HOLD_MAX);
        self.state = CircuitState::Open(Open {
            since: now,
            refused: matches!(fault, Fault::Refused),
            asked,
            answers: None,
            next_probe: now + PAUSE_MIN,
            pause: PAUSE_MIN,
        });
        true
    }

    /// Closes the circuit if it is open only because of refusals, and returns `true`. No consumer
    /// accepts the refused events, so this one was not at fault.
    pub(super) fn forgive(&mut self, now: Instant) -> bool {
        let refused = self.open().is_some_and(|open| open.refused);
        if refused {
            self.change(now, |circuit| circuit.state = CircuitState::Closed);
        }
        refused
    }

    /// A delivery that began at `begun` succeeded. This closes the circuit, unless it is open and
    /// another delivery has failed since `begun`. Returns `true` if an open circuit was closed.
    pub(super) fn succeeded(&mut self, begun: Instant, now: Instant) -> bool {
        let was_open = self.is_open();
        if was_open && self.failed.is_some_and(|failed| failed > begun) {
            return false;
        }
        self.change(now, |circuit| {
            circuit.state = CircuitState::Closed;
            (circuit.proven, circuit.mute) = (true, false);
        });
        if was_open {
            self.back = Some(now);
        } else if self.back.is_some_and(|back| now.duration_since(back) >= self.hold) {
            (self.back, self.hold) = (None, HOLD_MIN);
        }
        was_open
    }

    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.open().map(|open| open.next_probe)
    }

    /// A probe begins, and takes at most `limit`. No other probe is due before its end.
    pub(super) fn probing(&mut self, limit: Duration, now: Instant) {
        if let CircuitState::Open(open) = &mut self.state {
            open.next_probe = now + limit + PAUSE_MAX;
        }
    }

    /// Notes the result of a probe. Returns `true` if a delivery may now test the address.
    pub(super) fn probed(&mut self, answered: bool, now: Instant) -> bool {
        let CircuitState::Open(open) = &mut self.state else { return false };
        if !answered {
            open.answers = None;
            open.next_probe = now + open.pause;
            open.pause = (open.pause * 2).min(PAUSE_MAX);
            return false;
        }
        open.pause = PAUSE_MIN;
        let answers = *open.answers.get_or_insert(now);
        let ready = open.asked.unwrap_or(now).max(answers + self.hold);
        if now < ready {
            open.next_probe = ready.min(now + PAUSE_MAX);
            return false;
        }
        self.change(now, |circuit| circuit.state = CircuitState::HalfOpen { busy: false });
        self.back = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FAILED: Fault = Fault::Failed { asked: None, waited: Duration::ZERO };

    /// Answers each probe when it is due. Returns the moment when the address is back.
    fn probe_until_back(circuit: &mut Circuit, mut now: Instant) -> Instant {
        for _ in 0..1000 {
            now = now.max(circuit.next_probe().expect("it is open"));
            if circuit.probed(true, now) {
                return now;
            }
        }
        panic!("it never comes back: {circuit:?}");
    }

    #[test]
    fn it_comes_back_when_it_has_answered_for_its_hold() {
        let start = Instant::now();
        let mut circuit = Circuit::new(Instant::now());
        assert!(circuit.is_usable());
        assert!(circuit.failed(FAILED, start));
        assert!(!circuit.failed(FAILED, start), "it is open already");
        assert!(!circuit.is_usable());
        // Pauses grow to their maximum while probes fail.
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let next = circuit.next_probe().unwrap();
            pauses.push((next - now).as_secs());
            now = next;
            assert!(!circuit.probed(false, now));
        }
        assert_eq!(pauses, [1, 1, 2, 4, 8, 10]);
        let answers = circuit.next_probe().unwrap();
        assert_eq!(probe_until_back(&mut circuit, answers) - answers, HOLD_MIN);
        assert!(circuit.is_usable());
    }

    #[test]
    fn an_address_that_no_delivery_has_tried_is_not_called_up() {
        let start = Instant::now();
        let mut circuit = Circuit::new(start);
        assert_eq!((circuit.name(), circuit.is_usable()), ("unknown", true));
        circuit.succeeded(start, start + SECOND);
        assert_eq!((circuit.name(), circuit.since()), ("up", start + SECOND));
        let mut refused = Circuit::new(start);
        refused.failed(Fault::Refused, start);
        refused.forgive(start);
        assert_eq!(refused.name(), "up", "the consumer has answered");
    }

    #[test]
    fn a_probe_that_fails_begins_the_hold_anew() {
        let start = Instant::now();
        let mut circuit = Circuit::new(Instant::now());
        circuit.failed(FAILED, start);
        assert!(!circuit.probed(true, start + SECOND));
        assert!(!circuit.probed(false, start + SECOND * 5));
        assert!(!circuit.probed(true, start + SECOND * 6));
        assert!(!circuit.probed(true, start + SECOND * 12));
        assert!(circuit.probed(true, start + SECOND * 16));
    }

    #[test]
    fn the_hold_doubles_for_what_fails_again_and_shrinks_when_it_has_worked_as_long() {
        let mut now = Instant::now();
        let mut circuit = Circuit::new(Instant::now());
        let mut holds = Vec::new();
        for _ in 0..8 {
            circuit.failed(FAILED, now);
            let probed = circuit.next_probe().unwrap();
            now = probe_until_back(&mut circuit, probed);
            holds.push((now - probed).as_secs());
            // One delivery succeeds, and the next one fails a second later.
            circuit.succeeded(now, now);
            now += SECOND;
        }
        assert_eq!(holds, [10, 20, 40, 80, 160, 320, 600, 600]);
        circuit.succeeded(now, now + HOLD_MAX);
        now += HOLD_MAX * 2;
        circuit.failed(FAILED, now);
        let probed = circuit.next_probe().unwrap();
        assert_eq!(probe_until_back(&mut circuit, probed) - probed, HOLD_MIN);
    }

    #[test]
    fn the_hold_is_longer_than_what_a_failure_costs() {
        let start = Instant::now();
        for (waited, hold) in [(1, 10), (60, 120), (3600, 600)] {
            let mut circuit = Circuit::new(Instant::now());
            circuit.failed(Fault::Failed { asked: None, waited: SECOND * waited }, start);
            let probed = circuit.next_probe().unwrap();
            assert_eq!(probe_until_back(&mut circuit, probed) - probed, SECOND * hold);
        }
    }

    #[test]
    fn refusals_do_not_lengthen_the_hold() {
        let mut now = Instant::now();
        let mut circuit = Circuit::new(Instant::now());
        for _ in 0..5 {
            circuit.failed(Fault::Refused, now);
            let probed = circuit.next_probe().unwrap();
            now = probe_until_back(&mut circuit, probed);
            assert_eq!(now - probed, HOLD_MIN);
        }
    }

    #[test]
    fn a_delivery_that_succeeds_closes_it_unless_it_was_begun_before_the_failure() {
        let start = Instant::now();
        let mut circuit = Circuit::new(Instant::now());
        circuit.failed(FAILED, start + SECOND);
        assert!(!circuit.succeeded(start, start + SECOND * 2));
        assert!(circuit.is_open());
        assert!(circuit.succeeded(start + SECOND, start + SECOND * 2), "begun after it");
        assert!(circuit.is_usable());
    }
}
