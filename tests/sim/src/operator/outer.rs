//! The operator's part in troubles of the listener's certificate and of events that are too long.

use std::time::Duration;

use super::{Ending, Operator};
use crate::events::{Event, Marks, identify};
use crate::kernel;
use crate::pki::Wrong;
use crate::plan::Change;
use crate::setup::LISTENER;
use crate::truth::Answer;

/// How soon a change of a file must be in use. The relay checks all files every second, and applies
/// changes within seconds (see reload.md).
pub(crate) const APPLIES: Duration = Duration::from_secs(5);

/// How long events that are too long wait before a reload lets the output give up on them.
const KEPT: Duration = Duration::from_secs(25);

/// The bytes of all events that are too large, and of each one. An output can hold 4 MiB of them.
const TOO_LARGE: usize = 5 << 20;
const EACH: usize = 60 << 10;

/// How soon the events before them must arrive, although their object may collect for longer.
const ENDS_EARLY: Duration = Duration::from_secs(15);

impl Operator<'_> {
    /// Puts a new certificate into the listener's files.
    pub(super) fn rotate(&mut self) {
        if let Some(pki) = &mut self.pki {
            self.book.certificate(pki.rotate());
        }
    }

    /// Makes the listener's files wrong for some seconds. Until they are correct again, nothing
    /// changes, and the newest correct certificate stays in use (see reload.md).
    pub(super) fn put_wrong(&mut self, wrong: Wrong) {
        let Some(pki) = self.pki.as_mut().filter(|_| self.process.is_some()) else { return };
        pki.put(Some(wrong));
        self.wait_until(kernel::now() + APPLIES);
        let is_disk = self.ending.iter().any(|(_, ending)| *ending == Ending::Disk);
        if !is_disk && !self.has_refused_a_config() {
            let text = format!("reload: a certificate that is wrong ({wrong:?}) is not refused");
            self.faults.push(text);
        }
        self.handshake(false);
        if let Some(pki) = &mut self.pki {
            pki.put(None);
        }
        self.wait_until(kernel::now() + APPLIES);
    }

    /// In the calm time, replaces the certificate with a correct one, and then with a wrong one.
    pub(crate) fn rotate_calmly(&mut self) {
        if self.process.is_none() || self.setup.front.tls.is_none() {
            return;
        }
        self.rotate();
        self.wait_until(kernel::now() + APPLIES);
        self.handshake(true);
        self.put_wrong(Wrong::ALL[kernel::now().subsec_millis() as usize % Wrong::ALL.len()]);
    }

    /// Makes a handshake. If `is_new`, the relay must use the newest certificate. If not, the rule
    /// `certificate` decides which ones are correct.
    fn handshake(&mut self, is_new: bool) {
        let Some(pki) = self.pki.as_ref().filter(|_| self.setup.front.tls.is_some()) else {
            return;
        };
        let begun = kernel::now();
        match pki.shown(LISTENER) {
            Ok(shown) if is_new && shown != pki.newest() => {
                let text = format!("certificate: an old one is shown {APPLIES:?} after the change");
                self.faults.push(text);
            }
            Ok(shown) => self.book.shook_hands(begun, shown),
            // Many strangers may occupy all connections.
            Err(_) if !is_new || self.setup.front.connections.is_some() => {}
            Err(error) => self.faults.push(format!("certificate: no handshake: {error}")),
        }
    }

    /// With `rejected.action = "retry"`, the relay never gives up on an event that is too long, and
    /// all later events wait (see refused-events.md). It must not send earlier events again.
    pub(super) fn outlast_too_long(&mut self, consumer: usize) {
        if self.process.is_none() {
            return;
        }
        self.calm_all();
        self.setup.keeps = Some(consumer);
        self.reload(&Change::Nothing);
        self.wait_until(kernel::now() + Duration::from_secs(5));
        let from = self.consumers[consumer].arrived_since(0).len();
        let good: Vec<Event> = (0..3).map(|_| self.kept_by(consumer, Marks::default())).collect();
        let long = self.kept_by(consumer, Marks::default());
        let long = long.with_bytes(40_000);
        let answer = self.post(&[&good[..], &[long]].concat());
        self.wait_until(kernel::now() + KEPT);
        let arrived = self.consumers[consumer].arrived_since(from);
        for event in good.iter().filter(|_| answer == Answer::Status(200)) {
            let its = |it: &&crate::consumers::Arrived| identify(&it.event) == Some(event.serial);
            let times = arrived.iter().filter(its).count();
            if times > 1 {
                let text = format!(
                    "repeats: event {} came {times} times before one that is too long",
                    event.serial
                );
                self.faults.push(text);
            }
        }
        self.setup.keeps = None;
        self.reload(&Change::Nothing);
        for consumer in self.consumers {
            consumer.calm(false);
        }
    }

    /// If many events exceed `filter.max_event_bytes`, an object must be completed early. The
    /// output must not wait until the object is as old as `object_age`.
    pub(super) fn too_large(&mut self, consumer: usize) {
        if self.process.is_none() {
            return;
        }
        self.calm_all();
        self.wait_until(kernel::now() + Duration::from_secs(45));
        let mut first = None;
        let mut sum = 0;
        while sum < TOO_LARGE {
            let mut events = vec![self.kept_by(consumer, Marks::default())];
            while events.len() < 10 {
                events.push(self.kept_by(consumer, Marks::default()).uncuttable(EACH));
                sum += EACH;
            }
            if self.post(&events) != Answer::Status(200) {
                break;
            }
            first.get_or_insert((kernel::now(), events[0].serial));
        }
        let Some((begun, serial)) = first.filter(|_| sum >= TOO_LARGE) else { return };
        self.wait_until(begun + ENDS_EARLY);
        let arrived = self.consumers[consumer].arrived_since(0);
        let is_there = arrived.iter().any(|it| identify(&it.event) == Some(serial));
        if !is_there {
            let text = format!("progress: event {serial} waits beside events that are too large");
            self.faults.push(text);
        }
        for consumer in self.consumers {
            consumer.calm(false);
        }
    }
}
