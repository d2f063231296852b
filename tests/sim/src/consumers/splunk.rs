//! A Splunk collector, with or without acknowledgements from its indexers.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;

use super::front::{Manners, Own};
use super::indexers::several_indexers;
use super::{Copies, Made, Making, Promise, Stand, front, is_refused, lock};
use crate::support::http_sink::Answer;
use crate::support::server::{Options, Server};
use crate::support::splunk::{Acks, Mood, Script, Splunk, TOKEN};

/// Refusals with a code: about the token, the index, and other things except server errors.
const OWN: [(u16, &str); 7] = [
    (403, r#"{"text":"Token disabled","code":1}"#),
    (401, r#"{"text":"Token is required","code":2}"#),
    (403, r#"{"text":"Invalid token","code":4}"#),
    (400, r#"{"text":"Incorrect index","code":7,"invalid-event-number":1}"#),
    (400, r#"{"text":"Data channel is missing","code":10}"#),
    (400, r#"{"text":"ACK is disabled","code":14}"#),
    (429, r#"{"text":"Queue at capacity","code":26}"#),
];

/// Some of [`OWN`], and server errors.
const OWN_WITH_ERRORS: [(u16, &str); 6] = [
    OWN[0],
    OWN[3],
    OWN[6],
    (500, r#"{"text":"Internal server error","code":8}"#),
    (503, r#"{"text":"Server is busy","code":9}"#),
    (503, r#"{"text":"Server is shutting down","code":23}"#),
];

/// The shortest time after which the collector closes an idle connection. It is longer than each
/// `ack_interval` here, as the output requires.
const IDLE_MIN: Duration = Duration::from_secs(8);

impl Stand for Splunk {
    fn servers(&mut self) -> Vec<&mut Server> {
        vec![&mut self.sink]
    }

    fn forget(&mut self) {
        lock(&self.kept).forget();
    }
}

pub(super) fn make(making: &mut Making<'_>) -> Made {
    let (acks, off) = (making.rng.u32(..3) > 0, making.rng.bool());
    let concurrency = [1, 4][making.rng.usize(..2)];
    let compression = ["none", "gzip"][making.rng.usize(..2)];
    let manners = front::manners(making);
    let own: &[_] = if manners.aside { &OWN_WITH_ERRORS } else { &OWN };
    let manners = Manners { own, ..manners };
    let manners = match acks {
        true => manners,
        false => {
            let success = Answer::status(200).body(r#"{"text":"Success","code":0}"#);
            manners.early(making, success)
        }
    };
    let own = Own::default();
    let script = script(making, &manners, &own, if acks || !off { Acks::On } else { Acks::Off });
    let options = manners.options(making);
    let options = Options { idle: options.idle.map(|idle| idle.max(IDLE_MIN)), ..options };
    let store = Splunk::with(options, script);
    let kept = Arc::clone(&store.kept);
    let drain = move || std::mem::take(&mut lock(&kept).indexed);
    let (promise, keys) = manners.promise(Promise {
        copies: if acks { Copies::AgainBesideRefused } else { Copies::AtLeastOnce },
        // Events that the store accepts from a request with refused ones are not sent again.
        ordered: !acks && concurrency == 1 && !manners.doubts && !manners.aside,
        refuses: true,
        ..Promise::PLAIN
    });
    if acks && making.rng.u32(..3) == 0 {
        front::stand_before(making, &store.sink, manners, own, drain, several_indexers());
    } else {
        front::stand(making, &store.sink, manners, own, drain);
    }
    let token = making.secret("token", TOKEN);
    let acknowledge = if acks { "indexed" } else { "accepted" };
    let keys = format!(
        "type = \"splunk_hec\"\nurls = [\"http://{}\"]\ntoken_file = {token:?}\nhost = \"h\"\n\
         acknowledge = \"{acknowledge}\"\nack_interval = \"{}ms\"\nack_timeout = \"{}s\"\n\
         concurrency = {concurrency}\ncompression = \"{compression}\"\n{keys}",
        store.address(),
        [200, 1000, 2000][making.rng.usize(..3)],
        [5, 15, 60][making.rng.usize(..3)],
    );
    Made { stand: Box::new(store), keys, promise }
}

fn script(making: &mut Making<'_>, manners: &Manners, own: &Own, acks: Acks) -> Script {
    let (mut moods, mut indexed) = (making.rng(), making.rng());
    let (aside, is_own) = (manners.aside, Arc::clone(own));
    let (slow, for_indexer) = (Arc::new(Mutex::new(0_u32)), Arc::clone(&making.ledger));
    let slowness = Arc::clone(&slow);
    Script {
        acks,
        bytes_max: 1_000_000,
        mood: Box::new(move || {
            let mood = match is_own.load(Ordering::SeqCst) {
                true => own_mood(&mut moods, aside),
                false => Mood::Serves,
            };
            // After trouble of its kind, the collector indexes slowly for a while.
            let mut slowness = lock(&slowness);
            *slowness = if mood == Mood::Serves { slowness.saturating_sub(1) } else { 20 };
            mood
        }),
        indexes: Box::new(move || {
            let slow = *lock(&slow) > 0;
            for_indexer.is_calm() || indexed.u32(..if slow { 10 } else { 2 }) == 0
        }),
        is_bad: if manners.early.is_some() { |_| false } else { is_refused },
    }
}

fn own_mood(rng: &mut Rng, aside: bool) -> Mood {
    match rng.u32(..6) {
        0 => Mood::Mute,
        1 => Mood::Babbles(200),
        2 => Mood::Restarts,
        3 if aside => Mood::BusyAfter(rng.usize(..10)),
        4 => Mood::Small,
        _ => Mood::Restarts,
    }
}
