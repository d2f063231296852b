//! What stands between a relay and its store in the field, and events on which a store fails for
//! ever. Each fault is one of [`Field`], for the random tests of the stores.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::hash::BuildHasherDefault;
use std::hash::DefaultHasher;
use std::sync::Mutex;
use std::time::Duration;

use super::PATIENCE;
use super::corpus::events_of;
use super::corpus::generated_audit_id;
use super::corpus::generated_batch;
use super::http_sink::Answer;
use super::http_sink::HttpSink;
use super::http_sink::Request;
use super::indexers::several_indexers;
use super::relay::Relay;
use super::wait_until;

/// The fault of the field in a random test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// Nothing but the store itself does what it should not.
    Plain,
    /// A balancer sends some of the requests to a backend that is broken, from the beginning to the
    /// end.
    BrokenBackend,
    /// A balancer sends each second request to a backend that answers 400, from the beginning to
    /// the end. If the relay sends a refused event and another one in turn, always the refused one
    /// meets that backend.
    TakesTurns,
    /// A gateway answers some of the requests with 200 and a page to sign in, from the beginning to
    /// the end.
    SignInPage,
    /// The store answers 500 to certain events for ever ([`Field::fails`]), and to each request
    /// with one of them if it does not judge single events.
    FailingEvents,
    /// A balancer in front of several indexers of Splunk tells by its cookie which of them took the
    /// requests of a channel.
    Cookies,
}

/// The keys of an output that soon gives up an event on which its store fails for ever.
const GIVES_UP_SOON: &str = "rejected.after_server_errors = \"2s\"\n";

/// The index of the failing events, in the first batch of each of the relay's lives.
const FAILING: usize = 17;

/// How often a balancer sends the same events to a broken backend. A store that really refuses an
/// event refuses it more often, and nothing else tells the two apart.
const SAME_MAX: usize = 5;

impl Field {
    /// Returns how many lives the relay has in a test that has `plain` of them without a fault of
    /// the field.
    pub(crate) fn lives(self, plain: u64) -> u64 {
        if self == Self::Plain { plain } else { plain.min(2) }
    }

    /// Returns how many bodies are posted in each life, of which a test posts `plain` without a
    /// fault of the field.
    pub(crate) fn bodies(self, plain: u64) -> u64 {
        if self == Self::Plain { plain } else { plain.min(2) }
    }

    /// Returns further keys of the output.
    pub(crate) fn keys(self) -> &'static str {
        match self {
            Self::Plain | Self::Cookies => "",
            // Many small requests, so that many meet the fault, and many events are refused alone.
            Self::BrokenBackend | Self::TakesTurns | Self::SignInPage => "batch.max_events = 5\n",
            Self::FailingEvents => GIVES_UP_SOON,
        }
    }

    /// Returns `true` if the store fails on this event for ever.
    pub(crate) fn fails(self, event: &[u8]) -> bool {
        self == Self::FailingEvents && has_failing(event)
    }

    /// Puts the fault in front of a store.
    pub(crate) fn stand_in_front(self, store: &HttpSink, rng: &mut fastrand::Rng) {
        match self {
            Self::Plain => {}
            Self::BrokenBackend => store.stand_in_front(broken_backend(rng.fork())),
            Self::TakesTurns => store.stand_in_front(|request, store| match request.number % 2 {
                0 => store(request),
                _ => page(400, "There is nothing here"),
            }),
            Self::SignInPage => store.stand_in_front(sign_in_page(rng.fork())),
            Self::FailingEvents => {
                store.stand_in_front(|request, store| match has_failing(&request.decoded()) {
                    true => Answer::status(500),
                    false => store(request),
                })
            }
            Self::Cookies => store.stand_in_front(several_indexers()),
        }
    }
}

/// Returns `true` if an event, or the body of a request, has the auditID of a failing event.
fn has_failing(bytes: &[u8]) -> bool {
    // The bodies of the relay's lives are made of these seeds, in `tests/it/outputs`.
    (0..10).any(|life| {
        memchr::memmem::find(bytes, generated_audit_id(life * 100, FAILING).as_bytes()).is_some()
    })
}

/// Returns a web page as an answer.
fn page(status: u16, title: &str) -> Answer {
    let body = format!("<html><head><title>{title}</title></head><body>{title}</body></html>");
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
            Some(status) => page(status, "There is nothing here"),
            None => store(request),
        }
    }
}

/// A gateway that answers the first request itself, and each fourth one, at random: with 200 and a
/// page to sign in, which may be empty.
fn sign_in_page(
    rng: fastrand::Rng,
) -> impl Fn(&Request, &dyn Fn(&Request) -> Answer) -> Answer + Send + Sync + 'static {
    let rng = Mutex::new(rng);
    move |request, store| {
        let draw = rng.lock().expect("not poisoned").u32(..12);
        match draw {
            2 => page(200, "Sign in").body(""),
            draw if draw < 2 || request.number == 0 => page(200, "Sign in"),
            _ => store(request),
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
