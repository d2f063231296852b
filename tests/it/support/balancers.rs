//! Balancers with a broken backend between a relay and its store, for the random tests of the
//! stores.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Mutex;
use std::time::Duration;

use super::corpus::{events_of, generated_batch};
use super::http_sink::{Answer, HttpSink, Request};
use super::relay::Relay;
use super::{PATIENCE, wait_until};

/// The balancer in front of the store in a random test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Balancer {
    /// A balancer sends some of the requests to a backend that is broken, from the beginning to the
    /// end.
    BrokenBackend,
    /// A balancer sends each second request to a backend that answers 400, from the beginning to
    /// the end. If the relay sends a refused event and another one in turn, always the refused one
    /// meets that backend.
    TakesTurns,
}

/// How often a balancer sends the same events to a broken backend. A store that really refuses an
/// event refuses it more often, and nothing else tells the two apart.
const SAME_MAX: usize = 5;

impl Balancer {
    /// Puts the balancer in front of a store.
    pub(crate) fn stand_in_front(self, store: &HttpSink, rng: &mut fastrand::Rng) {
        match self {
            Self::BrokenBackend => store.stand_in_front(broken_backend(rng.fork())),
            Self::TakesTurns => store.stand_in_front(|request, store| match request.number % 2 {
                0 => store(request),
                _ => page(400),
            }),
        }
    }
}

/// Returns a web page as an answer.
fn page(status: u16) -> Answer {
    let body = "<html><head><title>There is nothing here</title></head></html>";
    Answer::status(status).header("Content-Type", "text/html; charset=utf-8").body(body)
}

/// A balancer that sends each third request, at random, to a backend without the store: that one
/// answers 400 (half of the times), 404 or 502 with a web page. The same body is sent there
/// [`SAME_MAX`] times at most.
fn broken_backend(
    rng: fastrand::Rng,
) -> impl Fn(&Request, &dyn Fn(&Request) -> Answer) -> Answer + Send + Sync + 'static {
    let statuses = [400, 400, 404, 502];
    let state = Mutex::new((rng, BTreeMap::<u64, usize>::new()));
    move |request, store| {
        let status = {
            let (rng, refused) = &mut *state.lock().expect("not poisoned");
            let body = BuildHasherDefault::<DefaultHasher>::default().hash_one(&request.body);
            let times = refused.entry(body).or_default();
            let status = (*times < SAME_MAX && rng.u32(..3) == 0).then(|| statuses[rng.usize(..4)]);
            *times += usize::from(status.is_some());
            status
        };
        match status {
            Some(status) => page(status),
            None => store(request),
        }
    }
}

/// Waits until the store's refused events are given up, and all others are delivered. An event is
/// given up only while others are accepted, so some others are posted meanwhile. They are added to
/// `sent`.
pub(crate) fn wait_until_given_up(
    relay: &Relay,
    sent: &mut Vec<Vec<u8>>,
    given_up: impl Fn() -> bool,
) {
    let mut seeds = 1_000_000..;
    wait_until("the end of the refused events", PATIENCE * 2, || {
        // Events with low numbers, of which none is refused.
        let body = generated_batch(seeds.next().expect("they do not end"), 5, 700);
        assert_eq!(relay.post(&body).status, 200);
        sent.extend(events_of(&body));
        std::thread::sleep(Duration::from_millis(250));
        given_up()
    });
    relay.wait_until_delivered(PATIENCE * 2);
}
