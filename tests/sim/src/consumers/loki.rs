//! A Loki, which stores entries with the same time, labels and line once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::front::{Manners, Own};
use super::{Copies, Made, Making, Promise, Stand, front, is_refused, lock};
use crate::support::http_sink::Answer;
use crate::support::loki::{Loki, Mood, TENANT};
use crate::support::server::Server;

/// The tenant's writes are discarded, although the status looks like success.
const OWN: [(u16, &str); 1] = [(260, "blocked")];

impl Stand for Loki {
    fn servers(&mut self) -> Vec<&mut Server> {
        vec![&mut self.sink]
    }
}

pub(super) fn make(making: &mut Making<'_>) -> Made {
    let manners = Manners { own: &OWN, ..front::manners(making) };
    let manners = manners.early(making, Answer::status(204));
    let refuses = manners.early.is_none();
    let (own, mut moods) = (Own::default(), making.rng());
    let in_mood = Arc::clone(&own);
    let mood = move || match in_mood.load(Ordering::SeqCst) {
        true => [Mood::FailsWith200, Mood::Small, Mood::StoresWith200, Mood::Cut][moods.usize(..4)],
        false => [Mood::Stores, Mood::Stores, Mood::StoresWith200][moods.usize(..3)],
    };
    let is_valid = move |line: &[u8]| !(refuses && is_refused(line));
    let store = Loki::with(manners.options(making), 1024 * 1024, mood, is_valid);
    let (kept, mut from) = (Arc::clone(&store.kept), 0);
    let drain = move || {
        let store = lock(&kept);
        let entries = &store.entries[from..];
        from += entries.len();
        entries.iter().map(|entry| entry.line.clone().into_bytes()).collect()
    };
    let concurrency = [1, 4][making.rng.usize(..2)];
    let (mut promise, keys) =
        manners.promise(Promise { ordered: false, refuses: true, ..Promise::PLAIN });
    front::stand(making, &store.sink, manners, own, drain);
    let compression = ["none", "gzip"];
    let (timestamp, copies) =
        [("event", Copies::OnceMerged), ("received", Copies::Once)][making.rng.usize(..2)];
    promise.copies = copies;
    let keys = format!(
        "type = \"loki\"\nurls = [\"http://{}\"]\ntenant = \"{TENANT}\"\ntimestamp = \"{timestamp}\"\n\
         batch.max_bytes = \"1MiB\"\ncompression = \"{}\"\nconcurrency = {concurrency}\n{keys}",
        store.address(),
        compression[making.rng.usize(..2)],
    );
    Made { stand: Box::new(store), keys, promise }
}
