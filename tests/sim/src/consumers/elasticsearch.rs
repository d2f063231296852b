//! An Elasticsearch, which accepts or refuses each document separately.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::front::{Manners, Own};
use super::{Copies, Made, Making, Promise, Stand, fails, front, is_refused, lock};
use crate::support::elasticsearch::{Elasticsearch, INDEX, Mood, event_of};
use crate::support::server::Server;

impl Stand for Elasticsearch {
    fn servers(&mut self) -> Vec<&mut Server> {
        vec![&mut self.sink]
    }
}

pub(super) fn make(making: &mut Making<'_>) -> Made {
    let manners = front::manners(making);
    let (aside, fails_for_ever) = (manners.aside, manners.fails);
    let own = Own::default();
    let (of_items, mut moods, mut statuses) = (Arc::clone(&own), making.rng(), making.rng());
    let in_mood = Arc::clone(&own);
    let mood = move || match in_mood.load(Ordering::SeqCst) {
        true => [Mood::Judges, Mood::Judges, Mood::Mute, Mood::Cut, Mood::Small][moods.usize(..5)],
        false => Mood::Judges,
    };
    let status = move |document: &[u8]| match of_items.load(Ordering::SeqCst) {
        _ if is_refused(document) => 400,
        _ if fails_for_ever && fails(document) => 500,
        true => match statuses.u32(..8) {
            0 | 1 => 429,
            2 if aside => 503,
            _ => 201,
        },
        false => 201,
    };
    let store = Elasticsearch::with(manners.options(making), 1024 * 1024, mood, status);
    let (kept, mut from) = (Arc::clone(&store.kept), 0);
    let drain = move || {
        let store = lock(&kept);
        let ids = &store.order[from..];
        from += ids.len();
        ids.iter().map(|id| event_of(&store.documents[id])).collect()
    };
    let (promise, keys) = manners.promise(Promise {
        copies: Copies::Once,
        ordered: false,
        refuses: true,
        ..Promise::PLAIN
    });
    // It fails on single documents, where other stores fail on the whole request.
    let manners = Manners { fails: false, ..manners };
    front::stand(making, &store.sink, manners, own, drain);
    let compression = ["none", "gzip"][making.rng.usize(..2)];
    let keys = format!(
        "type = \"elasticsearch\"\nurls = [\"http://{}\"]\nindex = \"{INDEX}\"\n\
         filter.shape = \"event\"\nfilter.bodies = \"keep\"\nbatch.max_bytes = \"1MiB\"\n\
         compression = \"{compression}\"\nconcurrency = {}\n{keys}",
        store.address(),
        [1, 4][making.rng.usize(..2)],
    );
    Made { stand: Box::new(store), keys, promise }
}
