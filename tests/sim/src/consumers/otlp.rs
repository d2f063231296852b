//! A receiver of log records that speaks OTLP over HTTP.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::front::{Manners, Own};
use super::{Copies, Made, Making, Promise, Stand, front, is_refused, lock};
use crate::support::http_sink::Answer;
use crate::support::otlp::{Mood, Otlp};
use crate::support::server::Server;

impl Stand for Otlp {
    fn servers(&mut self) -> Vec<&mut Server> {
        vec![&mut self.sink]
    }
}

pub(super) fn make(making: &mut Making<'_>) -> Made {
    let manners = Manners { payload: &[400, 413, 422], ..front::manners(making) };
    let manners = manners.early(making, Answer::status(200));
    let refuses = manners.early.is_none();
    // The receiver either counts the rejected records or refuses the whole request.
    let counts = refuses && making.rng.u32(..3) == 0;
    let (own, mut moods) = (Own::default(), making.rng());
    let in_mood = Arc::clone(&own);
    let mood = move || match in_mood.load(Ordering::SeqCst) {
        true => [Mood::EmptyPage, Mood::Small, Mood::Cut, Mood::HangsUp(true)][moods.usize(..4)],
        false if counts => [Mood::Counts, Mood::CountsInJson][moods.usize(..2)],
        false => Mood::Stores([200, 200, 201, 204][moods.usize(..4)]),
    };
    let is_valid = move |body: &[u8]| !(refuses && is_refused(body));
    let store = Otlp::with(manners.options(making), 1024 * 1024, mood, is_valid);
    let kept = Arc::clone(&store.kept);
    let drain = move || {
        let records = std::mem::take(&mut lock(&kept).records);
        records.into_iter().map(|record| record.body.into_bytes()).collect()
    };
    let concurrency = [1, 4][making.rng.usize(..2)];
    let copies = match counts && concurrency == 1 {
        true => Copies::AgainBesideRefused,
        false => Copies::AtLeastOnce,
    };
    let (promise, keys) = manners.promise(Promise {
        copies,
        ordered: concurrency == 1 && !counts,
        refuses: true,
        counts,
        ..Promise::PLAIN
    });
    front::stand(making, &store.sink, manners, own, drain);
    let keys = format!(
        "type = \"otlp\"\nurls = [\"http://{}\"]\nbatch.max_bytes = \"1MiB\"\n\
         compression = \"{}\"\nconcurrency = {concurrency}\n{keys}",
        store.address(),
        ["none", "gzip"][making.rng.usize(..2)],
    );
    Made { stand: Box::new(store), keys, promise }
}
