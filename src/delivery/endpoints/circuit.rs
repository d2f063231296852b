//! Whether one address may be used.
//!
//! *Closed*: it is used. A delivery that fails there opens it. *Open*: it is passed over where another address is left, and
//! probed; it has to answer probes for the whole of its hold. *Half-open*: it is back, and tried by one delivery at a time
//! until one succeeds.
//!
//! The hold is what keeps an address from flapping that answers probes and fails at deliveries: it doubles each time that
//! the address fails before it has worked for as long, and is no shorter than twice what the failure has cost.
//!
//! *Suspect* is an address that is open for nothing but its silence, while another one answers. It
//! may be slow and well: an answer to what it was asked before closes it at once.
//!
//! No clock and no I/O: whoever asks says what time it is.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest hold: a consumer that is restarted is away for a few seconds, and coming back to it costs a stream a new
/// connection.
pub(super) const HOLD_MIN: Duration = Duration::from_secs(10);

/// The longest: each return to a consumer that takes connections and nothing else may cost `timeouts.request`.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(600);

/// Between probes that fail, at first and at most.
const PAUSE_MIN: Duration = Duration::from_secs(1);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What an address is accused of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// It could not be reached, did not answer, or answered with an error. It may have asked for a pause, and the delivery
    /// has waited so long for nothing.
    Failed { asked: Option<Duration>, waited: Duration },
    /// It refuses what others may take: that may be the event's fault, so its hold does not grow.
    Refused,
    /// It has said nothing for so long, while another address answers.
    Silent { waited: Duration },
}

/// One address. Owned by the set.
#[derive(Debug, Clone)]
pub(super) struct Circuit {
    state: State,
    hold: Duration,
    /// When it came back the last time, until it has worked for as long as its hold.
    back: Option<Instant>,
    /// The last delivery that failed.
    failed: Option<Instant>,
}

#[derive(Debug, Clone)]
enum State {
    Closed,
    HalfOpen { busy: bool },
    Open(Open),
}

#[derive(Debug, Clone, Copy)]
struct Open {
    since: Instant,
    /// For nothing but a refusal.
    refused: bool,
    /// For nothing but its silence.
    suspect: bool,
    /// It has asked for a pause until then.
    asked: Option<Instant>,
    /// No probe has failed since.
    answers: Option<Instant>,
    next_probe: Instant,
    pause: Duration,
}

impl Circuit {
    pub(super) fn new() -> Self {
        Self { state: State::Closed, hold: HOLD_MIN, back: None, failed: None }
    }

    /// For an address that takes the place of one that is down: it has to show itself before it is preferred to others,
    /// and has not failed yet.
    pub(super) fn of_successor(&self, now: Instant) -> Self {
        let mut circuit = self.clone();
        circuit.failed = None;
        if let State::Open(open) = &mut circuit.state {
            *open = Open { asked: None, answers: None, next_probe: now, pause: PAUSE_MIN, ..*open };
        }
        circuit
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether a delivery may use it where another one is closed.
    pub(super) fn is_usable(&self) -> bool {
        matches!(self.state, State::Closed | State::HalfOpen { busy: false })
    }

    /// Since when it is open.
    pub(super) fn open_since(&self) -> Option<Instant> {
        match &self.state {
            State::Open(open) => Some(open.since),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// For people.
    pub(super) fn name(&self) -> &'static str {
        match self.state {
            State::Closed => "up",
            State::HalfOpen { .. } => "back, on trial",
            State::Open(Open { suspect: true, .. }) => "suspect",
            State::Open(_) => "down",
        }
    }

    /// It has asked for a pause that is not over.
    pub(super) fn asked_until(&self, now: Instant) -> Option<Instant> {
        match &self.state {
            State::Open(open) => open.asked.filter(|until| *until > now),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// A delivery begins. True where it is the one that tries whether the address works again, for [`Circuit::release`].
    pub(super) fn take(&mut self) -> bool {
        match &mut self.state {
            State::HalfOpen { busy } => !std::mem::replace(busy, true),
            State::Closed | State::Open(_) => false,
        }
    }

    /// The delivery that tried it has ended, perhaps without a word.
    pub(super) fn release(&mut self) {
        if let State::HalfOpen { busy } = &mut self.state {
            *busy = false;
        }
    }

    /// A delivery failed. True where that opens it.
    pub(super) fn failed(&mut self, fault: Fault, now: Instant) -> bool {
        let (asked, waited) = match fault {
            Fault::Failed { asked, waited } => (asked.map(|asked| now + asked), waited),
            Fault::Refused => (None, Duration::ZERO),
            // Known already.
            Fault::Silent { .. } if self.is_open() => return false,
            Fault::Silent { waited } => (None, waited),
        };
        self.failed = Some(now);
        if let State::Open(open) = &mut self.state {
            open.asked = open.asked.max(asked);
            open.answers = None;
            open.refused &= matches!(fault, Fault::Refused);
            open.suspect = false;
            return false;
        }
        if self.back.take().is_some() && !matches!(fault, Fault::Refused) {
            self.hold *= 2;
        }
        self.hold = self.hold.max(waited * 2).min(HOLD_MAX);
        self.state = State::Open(Open {
            since: now,
            refused: matches!(fault, Fault::Refused),
            suspect: matches!(fault, Fault::Silent { .. }),
            asked,
            answers: None,
            next_probe: now + PAUSE_MIN,
            pause: PAUSE_MIN,
        });
        true
    }

    /// Nobody takes what it refused: it was not its fault. True where that closes it.
    pub(super) fn forgive(&mut self) -> bool {
        let refused = matches!(&self.state, State::Open(open) if open.refused);
        if refused {
            self.state = State::Closed;
        }
        refused
    }

    /// A delivery that was begun at `begun` succeeded. True where that closes it: what was begun before it failed says
    /// nothing of what it is now, but ends a silence.
    pub(super) fn succeeded(&mut self, begun: Instant, now: Instant) -> bool {
        let was_open = self.is_open();
        let suspect = matches!(&self.state, State::Open(open) if open.suspect);
        if was_open && !suspect && self.failed.is_some_and(|failed| failed > begun) {
            return false;
        }
        self.state = State::Closed;
        if was_open {
            self.back = Some(now);
        } else if self.back.is_some_and(|back| now.duration_since(back) >= self.hold) {
            (self.back, self.hold) = (None, HOLD_MIN);
        }
        was_open
    }

    /// When the next probe is due.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        match &self.state {
            State::Open(open) => Some(open.next_probe),
            State::Closed | State::HalfOpen { .. } => None,
        }
    }

    /// A probe begins, which takes no longer than `limit`.
    pub(super) fn probing(&mut self, limit: Duration, now: Instant) {
        if let State::Open(open) = &mut self.state {
            open.next_probe = now + limit + PAUSE_MAX;
        }
    }

    /// A probe has ended. True where the address is back by that.
    pub(super) fn probed(&mut self, answered: bool, now: Instant) -> bool {
        let State::Open(open) = &mut self.state else { return false };
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
        self.state = State::HalfOpen { busy: false };
        self.back = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FAILED: Fault = Fault::Failed { asked: None, waited: Duration::ZERO };

    /// Probes it when that is due, until it is back; the time when it is.
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
        let mut circuit = Circuit::new();
        assert!(circuit.is_usable());
        assert!(circuit.failed(FAILED, start));
        assert!(!circuit.failed(FAILED, start), "it is open already");
        assert!(!circuit.is_usable());
        // Pauses grow to their cap while it does not answer.
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
    fn a_probe_that_fails_begins_the_hold_anew() {
        let start = Instant::now();
        let mut circuit = Circuit::new();
        circuit.failed(FAILED, start);
        assert!(!circuit.probed(true, start + SECOND));
        assert!(!circuit.probed(false, start + SECOND * 5));
        assert!(!circuit.probed(true, start + SECOND * 6));
        assert!(!circuit.probed(true, start + SECOND * 12));
        assert!(circuit.probed(true, start + SECOND * 16));
    }

    #[test]
    fn one_delivery_at_a_time_tries_it_until_one_succeeds() {
        let start = Instant::now();
        let mut circuit = Circuit::new();
        circuit.failed(FAILED, start);
        let now = probe_until_back(&mut circuit, start);
        assert!(circuit.take());
        assert!(!circuit.is_usable());
        assert!(!circuit.take(), "another one where none else is left: it does not release");
        circuit.release();
        assert!(circuit.is_usable() && circuit.take());
        circuit.succeeded(now, now + SECOND);
        assert!(circuit.is_usable() && !circuit.take() && circuit.is_usable());
    }

    #[test]
    fn the_hold_doubles_for_what_fails_again_and_shrinks_when_it_has_worked_as_long() {
        let mut now = Instant::now();
        let mut circuit = Circuit::new();
        let mut holds = Vec::new();
        for _ in 0..8 {
            circuit.failed(FAILED, now);
            let probed = circuit.next_probe().unwrap();
            now = probe_until_back(&mut circuit, probed);
            holds.push((now - probed).as_secs());
            // It takes one, and the next fails a minute later.
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
            let mut circuit = Circuit::new();
            circuit.failed(Fault::Failed { asked: None, waited: SECOND * waited }, start);
            let probed = circuit.next_probe().unwrap();
            assert_eq!(probe_until_back(&mut circuit, probed) - probed, SECOND * hold);
        }
    }

    #[test]
    fn refusals_do_not_lengthen_the_hold() {
        let mut now = Instant::now();
        let mut circuit = Circuit::new();
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
        let mut circuit = Circuit::new();
        circuit.failed(FAILED, start + SECOND);
        assert!(!circuit.succeeded(start, start + SECOND * 2));
        assert!(circuit.is_open());
        assert!(circuit.succeeded(start + SECOND, start + SECOND * 2), "begun after it");
        assert!(circuit.is_usable());
    }

    #[test]
    fn a_silent_address_is_suspect_until_it_answers_also_what_it_was_asked_before() {
        let start = Instant::now();
        let silent = Fault::Silent { waited: SECOND };
        let mut circuit = Circuit::new();
        assert!(circuit.failed(silent, start + SECOND));
        assert!(!circuit.failed(silent, start + SECOND));
        assert_eq!((circuit.name(), circuit.is_usable()), ("suspect", false));
        assert!(circuit.succeeded(start, start + SECOND * 2));
        assert_eq!(circuit.name(), "up");
        // Silent again, it is probed as one that is down, and its hold has doubled.
        circuit.failed(silent, start + SECOND * 3);
        let probed = circuit.next_probe().unwrap();
        assert_eq!(probe_until_back(&mut circuit, probed) - probed, HOLD_MIN * 2);
        // What fails besides is down, and stays so whatever is answered of before.
        circuit.failed(silent, start + SECOND * 100);
        assert!(!circuit.failed(FAILED, start + SECOND * 101));
        assert_eq!(circuit.name(), "down");
        assert!(!circuit.succeeded(start + SECOND * 99, start + SECOND * 102));
    }

    #[test]
    fn a_pause_that_was_asked_for_is_kept() {
        let start = Instant::now();
        let mut circuit = Circuit::new();
        circuit.failed(Fault::Failed { asked: Some(SECOND * 100), waited: SECOND }, start);
        assert_eq!(circuit.asked_until(start), Some(start + SECOND * 100));
        assert_eq!(probe_until_back(&mut circuit, start), start + SECOND * 100);
        assert_eq!(circuit.asked_until(start), None);
    }
}
