//! Load balancers with a broken backend, between a relay and its store, for the random tests of the
//! stores.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Mutex;
use std::time::Duration;

use super::corpus::{events_of, generated_batch};
use super::http_sink::{Answer, HttpSink, Request};
use super::relay::Relay;
use super::{PATIENCE, wait_until};

/// The load balancer in front of the store in a random test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Balancer {
    /// The balancer sends some of the requests to a broken backend, during the whole test.
    BrokenBackend,
    /// The balancer sends every second request to a backend that responds with 400, during the
    /// whole test. If the relay alternates between a refused event and another one, only the
    /// refused one reaches that backend.
    TakesTurns,
    /// A firewall that dislikes some events ([`is_disliked`]), during the whole test. It turns down
    /// each request that has one of them, in one way: a status, a close, a reset or half an answer.
    Firewall,
}

/// Returns `true` for an event that the firewall dislikes, or for a request that has one, in
/// whatever form: one event of each batch of more than 17.
pub(crate) fn is_disliked(bytes: &[u8]) -> bool {
    let name = b"generated-17";
    let digit = |at: usize| bytes.get(at + name.len()).is_some_and(u8::is_ascii_digit);
    memchr::memmem::find_iter(bytes, name).any(|at| !digit(at))
}

/// How often a balancer sends the same body to a broken backend. A store that really refuses an
/// event refuses it more often. Nothing else distinguishes the two.
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
            Self::Firewall => {
                let half = Answer::raw(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()).closing();
                let ways =
                    [page(403), page(404), page(503), Answer::hang_up(), Answer::reset(), half];
                let way = ways[rng.usize(..ways.len())].clone();
                eprintln!("the firewall's way is {way:?}");
                store.stand_in_front(move |request, store| match is_disliked(&request.decoded()) {
                    true => way.clone(),
                    false => store(request),
                });
            }
        }
    }
}

/// Returns a web page as an answer.
fn page(status: u16) -> Answer {
    let body = "<html><head><title>There is nothing here</title></head></html>";
    Answer::status(status).header("Content-Type", "text/html; charset=utf-8").body(body)
}

/// Returns a balancer that sends a random third of the requests to a backend without the store.
/// That backend responds with 400 (half of the time), 404 or 502, and a web page. It gets the same
/// body at most [`SAME_MAX`] times.
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

/// Waits until the store's refused events are given up and all others are delivered. An event is
/// given up only while others are accepted, so this posts more events and adds them to `sent`.
pub(crate) fn wait_until_given_up(
    relay: &Relay,
    sent: &mut Vec<Vec<u8>>,
    given_up: impl Fn() -> bool,
) {
    let mut seeds = 1_000_000..;
    wait_until("the end of the refused events", PATIENCE * 2, || {
        // These events have low numbers, of which none is refused.
        let body = generated_batch(seeds.next().expect("they do not end"), 5, 700);
        assert_eq!(relay.post(&body).status, 200);
        sent.extend(events_of(&body));
        std::thread::sleep(Duration::from_millis(250));
        given_up()
    });
    relay.wait_until_delivered(PATIENCE * 2);
}
