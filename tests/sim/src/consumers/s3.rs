//! A server that speaks S3, and stores each object once, by its name. It refuses no event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::front::{Manners, Own};
use super::{Copies, Made, Making, Promise, Stand, front, lock};
use crate::kernel;
use crate::support::s3;
use crate::support::s3::{Mood, S3};
use crate::support::server::Server;

/// Refusals that an object meets at times.
const OWN: [(u16, &str); 3] = [
    (409, "<?xml version=\"1.0\"?>\n<Error><Code>ConditionalRequestConflict</Code></Error>"),
    (403, "<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code></Error>"),
    (503, "<?xml version=\"1.0\"?>\n<Error><Code>SlowDown</Code></Error>"),
];

impl Stand for S3 {
    fn servers(&mut self) -> Vec<&mut Server> {
        vec![&mut self.sink]
    }
}

pub(super) fn make(making: &mut Making<'_>) -> Made {
    let conditional = making.rng.u32(..4) > 0;
    // Only whole objects fail, not events.
    let manners = Manners { fails: false, aside: true, own: &OWN, ..front::manners(making) };
    let (own, mut moods) = (Own::default(), making.rng());
    let in_mood = Arc::clone(&own);
    // The draw uses a copy of the generator, so that it changes no other draw.
    let races = moods.clone().u32(..3) == 0;
    let ledger = Arc::clone(&making.ledger);
    let mood = move || match in_mood.load(Ordering::SeqCst) {
        true if conditional => {
            let all = [Mood::FailsWith200, Mood::StoresAndFails, Mood::Cut, Mood::Page];
            let mood = all[moods.usize(..4)];
            if races && matches!(mood, Mood::StoresAndFails | Mood::Cut) {
                let time = Duration::from_secs(moods.u64(2..25));
                *lock(&ledger.unsettled) = kernel::now() + time;
                Mood::Races { time, stores: moods.bool() }
            } else {
                mood
            }
        }
        _ if conditional => Mood::Stores,
        _ => Mood::Unconditional,
    };
    let store = S3::with(manners.options(making), mood);
    let (kept, mut from, ledger) = (Arc::clone(&store.kept), 0, making.name.to_owned());
    let drain = move || {
        let store = lock(&kept);
        let names = &store.order[from..];
        from += names.len();
        names.iter().for_each(|name| kernel::trace(format_args!("{ledger}: object {name}")));
        let lines = names.iter().flat_map(|name| {
            s3::lines(&BTreeMap::from([(name.clone(), store.objects[name].clone())]))
        });
        lines.collect()
    };
    let promise = Promise { copies: Copies::OnceByRange, ..Promise::PLAIN };
    front::stand(making, &store.sink, manners, own, drain);
    let (id, secret) = (making.secret("id", s3::KEY_ID), making.secret("secret", s3::SECRET));
    let keys = format!(
        "type = \"s3\"\nurls = [\"http://{}\"]\nbucket = \"{}\"\nregion = \"{}\"\n\
         prefix = \"{}\"\naccess_key_id_file = {id:?}\nsecret_access_key_file = {secret:?}\n\
         object_age = \"{}ms\"\nobject_bytes = \"{}KiB\"\ncompression = \"{}\"\n\
         conditional_writes = {conditional}\n",
        store.address(),
        s3::BUCKET,
        s3::REGION,
        s3::PREFIX,
        [300, 2000, 8000][making.rng.usize(..3)],
        [8, 64][making.rng.usize(..2)],
        ["zstd", "gzip", "none"][making.rng.usize(..3)],
    );
    Made { stand: Box::new(store), keys, promise }
}
