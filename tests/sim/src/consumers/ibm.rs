//! IBM Cloud Logs and IBM's IAM, both over TLS.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::front::Own;
use super::weather::Weather;
use super::{Made, Making, Promise, Stand, Steady, front, is_refused, lock};
use crate::kernel;
use crate::support::http_sink::Answer;
use crate::support::ibm;
use crate::support::ibm::{Grant, Ibm, Mood, Script};
use crate::support::server::Server;

/// If a token is refused directly after its renewal, the relay renews it again after five minutes.
/// This is a little longer.
const RENEWED: Duration = Duration::from_secs(5 * 60 + 10);

impl Stand for Ibm {
    fn servers(&mut self) -> Vec<&mut Server> {
        vec![&mut self.logs, &mut self.iam]
    }
}

pub(super) fn make(making: &mut Making<'_>) -> Made {
    let manners = front::manners(making).early(making, Answer::status(200));
    let refuses = manners.early.is_none();
    let (own, mut moods) = (Own::default(), making.rng());
    let in_mood = Arc::clone(&own);
    let iam = Mutex::new(Weather::new(making.rng(), |rng| match rng.u32(..6) {
        0 => Grant::Status(500),
        1 => Grant::Status(429),
        2 => Grant::Babbles,
        3 => Grant::Garbage,
        4 => Grant::HangsUp,
        _ => Grant::Empty,
    }));
    let ledger = Arc::clone(&making.ledger);
    let of_mood = Arc::clone(&ledger);
    let life = [3, 20, 3600][making.rng.usize(..3)];
    let script = Script {
        expires_in: life,
        // IAM may report a life that is a second longer than the real one. The relay renews a token
        // after four fifths of the reported life, so it still renews it in time.
        life: Duration::from_secs(life - u64::from(life > 5 && making.rng.bool())),
        grant: Box::new(move || match lock(&iam).meets(kernel::now()) {
            Some(grant) if !ledger.is_calm() => grant,
            _ => Grant::Judges,
        }),
        mood: Box::new(move || {
            let mood = match of_mood.steady() == Some(Steady::Revokes) {
                true => Mood::Revokes,
                false if !in_mood.load(Ordering::SeqCst) => return Mood::Stores,
                false => [Mood::Revokes, Mood::Small, Mood::Mute, Mood::Resets][moods.usize(..4)],
            };
            if matches!(mood, Mood::Revokes) {
                *lock(&of_mood.unsettled) = kernel::now() + RENEWED;
            }
            mood
        }),
        is_bad: Box::new(move |event| refuses && is_refused(event)),
        ..Script::default()
    };
    let key = making.secret("key", "");
    ibm::write_secret(&key, &script.credential);
    let store = Ibm::with(&manners.options(making), script);
    let memory = Arc::clone(&store.memory);
    let drain = move || std::mem::take(&mut lock(&memory).stored);
    let concurrency = [1, 4][making.rng.usize(..2)];
    let (promise, keys) =
        manners.promise(Promise { ordered: concurrency == 1, refuses: true, ..Promise::PLAIN });
    front::stand(making, &store.logs, manners, own, drain);
    let keys = format!(
        "{}api_key_file = {key:?}\ntls.ca = {:?}\nconcurrency = {concurrency}\n{keys}",
        ibm::keys(store.logs.address(), store.iam.address()),
        store.certificates.ca,
    );
    Made { stand: Box::new(store), keys, promise }
}
