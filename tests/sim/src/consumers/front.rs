//! The troubles of all HTTP stores, and of the network in front of them: refusals, responses that
//! are late, early, incomplete, missing or wrong, and balancers with several backends.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fastrand::Rng;

use super::weather::Weather;
use super::{Ledger, Making, Promise, Steady, fails, lock};
use crate::events::{Serial, identify_all};
use crate::kernel;
use crate::support::http_sink::{Answer, HttpSink, Reading, Request};
use crate::support::server::{Options, said};

/// How many bytes of a body the kernel can hold for a consumer with [`RECEIVE_BUFFER`] that has
/// read only the request's head. A 2xx is too early while more bytes are missing.
const KERNEL_MAX: usize = 96 * 1024;

/// The receive buffer of a consumer that responds early, in bytes.
const RECEIVE_BUFFER: usize = 16 * 1024;

/// How long a store takes that fails late.
const FAILS_LATE: Duration = Duration::from_millis(700);

/// A request with more events than this has many.
const MANY: usize = 5;

/// How often a store refuses the same body without reason. The relay gives up on an event only
/// after more refusals of it alone.
const SAME_MAX: u32 = 5;

/// The trouble that a request meets.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    /// The store does not see the request, and something else responds.
    Instead(Answer),
    /// The payload is refused with this status. The store does not see the request.
    Payload(u16),
    /// The store does not see the request. The response is 200 with a web page.
    Page,
    /// The store accepts the request, but something else responds.
    Behind(Answer),
    /// The store's response is changed on its way.
    Changed(Change),
    /// The store has the trouble that is typical of its kind, if there is one.
    Own,
}

impl Trouble {
    fn name(&self) -> &'static str {
        match self {
            Self::Instead(_) => "another answer, unseen",
            Self::Payload(_) => "a refusal of its payload",
            Self::Page => "a sign-in page",
            Self::Behind(_) => "another answer, seen",
            Self::Changed(_) => "a changed answer",
            Self::Own => "the store's own trouble",
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    Late(Duration),
    /// Only this many bytes are written.
    Cut(usize),
    /// The connection is closed after the response, which announces it.
    Closing,
    /// The connection is closed after the response, which does not announce it.
    Dropping,
    /// An interim response comes first.
    Interim,
    /// The response comes after this time if the body arrives at all: the consumer reads slowly.
    Slow(Duration),
}

/// The faults that a store can have.
#[derive(Clone)]
pub(super) struct Manners {
    /// The store returns 5xx at times.
    pub(super) aside: bool,
    /// At times, the store refuses a payload that is not at fault.
    pub(super) doubts: bool,
    /// The store always fails on certain events.
    pub(super) fails: bool,
    /// `true` if the output does not take a 200 with a web page for an acknowledgement, so the
    /// store may send one.
    pub(super) pages: bool,
    /// If set, something in front of the store sometimes gives this 2xx response before it has the
    /// whole request.
    pub(super) early: Option<Answer>,
    /// The statuses that blame the payload.
    pub(super) payload: &'static [u16],
    /// Refusals that are typical of the kind: the statuses and their bodies.
    pub(super) own: &'static [(u16, &'static str)],
}

/// `true` while the store should have the trouble that is typical of its kind. The code of the kind
/// reads this.
pub(super) type Own = Arc<std::sync::atomic::AtomicBool>;

struct Desk {
    manners: Manners,
    /// The backends. Each connection belongs to one of them.
    backends: Vec<Weather<Trouble>>,
    /// How often each body was refused without being at fault.
    refused: BTreeMap<u64, u32>,
    own: Own,
    is_broken: bool,
    /// `true` if the last answer looks like a success, and may not be one.
    is_doubtful: bool,
    /// `true` once a request has hung.
    has_hung: bool,
    /// In an outage: the events of its first request, the number of failed requests, and whether
    /// one was accepted.
    outage: (Vec<Serial>, u32, bool),
}

/// Takes the events that the store has received since the last call.
pub(super) trait Drain: FnMut() -> Vec<Vec<u8>> + Send + 'static {}
impl<F: FnMut() -> Vec<Vec<u8>> + Send + 'static> Drain for F {}

/// Draws the manners of a store. At most one of `fails` and `aside` is true, so the relay gives up
/// only on events that it must give up on.
pub(super) fn manners(making: &mut Making<'_>) -> Manners {
    let draw = making.rng.u32(..8);
    let (aside, fails) = (draw >= 5, draw < 2);
    Manners {
        aside,
        doubts: aside || fails || making.rng.u32(..3) == 0,
        fails,
        pages: true,
        early: None,
        payload: &[400, 413],
        own: &[],
    }
}

impl Manners {
    /// Lets one in three stores respond early with this 2xx, except stores that fail on events.
    /// Such a store refuses nothing, because it responds before it can.
    pub(super) fn early(mut self, making: &mut Making<'_>, answer: Answer) -> Self {
        if !self.fails && making.rng.u32(..3) == 0 {
            self.early = Some(answer);
        }
        self
    }

    /// Draws the settings of the store's listener.
    pub(super) fn options(&self, making: &mut Making<'_>) -> Options {
        let receive_buffer = self.early.as_ref().map(|_| RECEIVE_BUFFER);
        Options { receive_buffer, ..making.options() }
    }

    /// Returns the promise of a store with these manners, and the keys that its output needs.
    pub(super) fn promise(&self, promise: Promise) -> (Promise, String) {
        let promise = Promise {
            refuses: promise.refuses && self.early.is_none(),
            fails: self.fails,
            aside: self.aside,
            ..promise
        };
        let keys = if self.fails { "rejected.after_server_errors = \"8s\"\n" } else { "" };
        (promise, keys.to_owned())
    }
}

/// Puts the troubles in front of a store, whose moods read `own`.
pub(super) fn stand(
    making: &mut Making<'_>,
    sink: &HttpSink,
    manners: Manners,
    own: Own,
    drain: impl Drain,
) {
    stand_before(making, sink, manners, own, drain, |request, store| store(request));
}

/// Like [`stand`], but with a balancer between the troubles and the store.
pub(super) fn stand_before(
    making: &mut Making<'_>,
    sink: &HttpSink,
    manners: Manners,
    own: Own,
    drain: impl Drain,
    balancer: impl Fn(&Request, &dyn Fn(&Request) -> Answer) -> Answer + Send + Sync + 'static,
) {
    let backends = [1, 1, 2, 3][making.rng.usize(..4)];
    let backends: Vec<_> = (0..backends)
        .map(|_| {
            let manners = manners.clone();
            Weather::new(making.rng(), move |rng| trouble(rng, &manners))
        })
        .collect();
    let early = manners.early.clone();
    let hasty = Mutex::new(making.rng());
    let desk = Desk {
        manners,
        backends,
        refused: BTreeMap::new(),
        own,
        is_broken: false,
        is_doubtful: false,
        has_hung: false,
        outage: Default::default(),
    };
    let desk = Arc::new(Mutex::new((desk, drain)));
    let (ledger, at_the_door) = (Arc::clone(&making.ledger), Arc::clone(&making.ledger));
    sink.stand_in_front(move |request, store| {
        let (desk, drain) = &mut *lock(&desk);
        let answer = desk.answer(request, &|request| balancer(request, store), drain, &ledger);
        ledger.answers(&answer, request, std::mem::take(&mut desk.is_doubtful));
        answer
    });
    sink.stand_at_the_door(move |_, _| {
        let mut rng = lock(&hasty);
        match early.clone() {
            Some(answer) if at_the_door.steady() == Some(Steady::Early) => {
                Reading::Early { answer, missing: KERNEL_MAX, resets: true }
            }
            Some(answer) if !at_the_door.is_calm() && rng.u32(..3) == 0 => {
                Reading::Early { answer, missing: KERNEL_MAX, resets: rng.bool() }
            }
            _ if !at_the_door.is_calm() && rng.u32(..30) == 0 => Reading::Slowly {
                bytes: rng.usize(4_000..40_000),
                pause: Duration::from_millis(rng.u64(..500)),
            },
            _ => Reading::AtOnce,
        }
    });
}

impl Desk {
    fn answer(
        &mut self,
        request: &Request,
        store: &dyn Fn(&Request) -> Answer,
        drain: &mut impl Drain,
        ledger: &Ledger,
    ) -> Answer {
        if self.is_broken {
            return Answer::status(503);
        }
        if let Some(answer) = self.steadily(request, ledger.steady()) {
            return answer;
        }
        if let Some(way) = ledger.turns_away(&identify_all(&request.decoded())) {
            return way.answer();
        }
        let backend = request.connection % self.backends.len();
        let mut trouble = self.backends[backend].meets(kernel::now());
        if ledger.is_calm() || request.is_early {
            trouble = None;
        }
        if ledger.steady() == Some(Steady::Own) {
            trouble = Some(Trouble::Own);
        }
        if self.manners.fails && fails(&request.decoded()) {
            return Answer::status(500);
        }
        if let Some(trouble) = &trouble {
            kernel::trace(format_args!("{}: request meets {}", ledger.name, trouble.name()));
        }
        let is_own = matches!(trouble, Some(Trouble::Own));
        // An answer instead of the store's is never a success, even if it looks like one: Loki says
        // 260 if it blocks writes.
        let is_of_another =
            matches!(trouble, Some(Trouble::Page | Trouble::Behind(_) | Trouble::Instead(_)));
        self.is_doubtful = is_own || is_of_another;
        self.own.store(is_own, std::sync::atomic::Ordering::SeqCst);
        let trouble = match trouble {
            Some(Trouble::Instead(answer)) => return answer,
            Some(Trouble::Payload(status)) => return self.refuses(request, status),
            Some(Trouble::Page) => return page(200),
            other => other,
        };
        let Ok(answer) = std::panic::catch_unwind(AssertUnwindSafe(|| store(request)))
            .map_err(|panic| ledger.violated(said(panic.as_ref())))
        else {
            self.is_broken = true;
            return Answer::status(503);
        };
        ledger.add(request.connection, drain());
        match ledger.steady() {
            Some(Steady::Unanswered) => return Answer::hang_up(),
            Some(Steady::SomeUnanswered) if is_unlucky(request) => return Answer::hang_up(),
            _ => {}
        }
        match trouble {
            Some(Trouble::Behind(behind)) => behind,
            Some(Trouble::Changed(change)) => match change {
                Change::Late(time) | Change::Slow(time) => answer.after(time),
                Change::Cut(bytes) => answer.cut(bytes),
                Change::Closing => answer.closing(),
                Change::Dropping => answer.cut(usize::MAX),
                Change::Interim => answer.behind(b"HTTP/1.1 102 Processing\r\n\r\n"),
            },
            _ => answer,
        }
    }

    /// Returns the response that the operator wants, or `None` if the store decides.
    fn steadily(&mut self, request: &Request, steady: Option<Steady>) -> Option<Answer> {
        if steady != Some(Steady::FailsTwice) {
            self.outage = Default::default();
        }
        let payload = self.manners.payload[0];
        Some(match steady? {
            Steady::Busy => long_pause(),
            Steady::BusyForMany if identify_all(&request.decoded()).len() > MANY => long_pause(),
            Steady::BusyLate => long_pause().after(Duration::from_millis(3500)),
            Steady::Refuses => page(payload),
            Steady::Fails if fails(&request.decoded()) => Answer::status(500),
            Steady::FailsLate if fails(&request.decoded()) => Answer::status(500).after(FAILS_LATE),
            Steady::Account if is_odd(request) => page(ACCOUNT[request.connection % ACCOUNT.len()]),
            Steady::Rejects => all_rejected(request),
            Steady::Interim => Answer::interim(INTERIM, Duration::from_secs(1), 900),
            Steady::FailsTwice if self.fails_twice(request) => Answer::status(503),
            Steady::Hangs if !std::mem::replace(&mut self.has_hung, true) => Answer::never(),
            Steady::SomeRefused if is_unlucky(request) => page(payload),
            Steady::SecondMute if is_second(request) => Answer::never(),
            Steady::SecondRefuses if is_second(request) || fails(&request.decoded()) => {
                page(payload)
            }
            Steady::Fails
            | Steady::FailsLate
            | Steady::Account
            | Steady::Hangs
            | Steady::BusyForMany
            | Steady::FailsTwice
            | Steady::Own
            | Steady::SomeRefused
            | Steady::SecondMute
            | Steady::SecondRefuses
            | Steady::Unanswered
            | Steady::SomeUnanswered
            | Steady::Revokes
            | Steady::Early => return None,
        })
    }

    /// Returns `true` if this request fails in an outage. After at least four failures, the first
    /// request without any event of the first one is accepted.
    fn fails_twice(&mut self, request: &Request) -> bool {
        const FAILED_MIN: u32 = 4;
        let events = identify_all(&request.decoded());
        let (first, failed, has_taken) = &mut self.outage;
        if first.is_empty() {
            first.clone_from(&events);
        }
        let is_other = !events.iter().any(|event| first.contains(event));
        if is_other && *failed >= FAILED_MIN && !*has_taken {
            *has_taken = true;
            return false;
        }
        *failed += 1;
        true
    }

    /// Refuses the payload, but not often enough for the relay to give up on an event.
    fn refuses(&mut self, request: &Request, status: u16) -> Answer {
        let body = BuildHasherDefault::<DefaultHasher>::default().hash_one(&request.body);
        let times = self.refused.entry(body).or_default();
        *times += 1;
        match *times <= SAME_MAX {
            true => page(status),
            false => Answer::status(429),
        }
    }
}

/// Returns `true` if a request went to the second address.
fn is_second(request: &Request) -> bool {
    request.header("host").is_some_and(|host| host.starts_with(&super::DOOR.to_string()))
}

/// Returns `true` for two of five requests: a balancer sends these to a broken backend.
fn is_unlucky(request: &Request) -> bool {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(request.number) % 5 < 2
}

/// Returns `true` if a request has an event with an odd number.
fn is_odd(request: &Request) -> bool {
    identify_all(&request.decoded()).iter().any(|serial| serial.number % 2 == 1)
}

/// Responds like an `otlp` receiver that rejects all records of a request (`partial_success`).
fn all_rejected(request: &Request) -> Answer {
    let count = identify_all(&request.decoded()).len();
    let mut number = Vec::new();
    let mut rest = count;
    while rest >= 0x80 {
        number.push(u8::try_from(rest % 0x80).unwrap_or_default() | 0x80);
        rest /= 0x80;
    }
    number.push(u8::try_from(rest).unwrap_or_default());
    let length = u8::try_from(1 + number.len()).unwrap_or_default();
    let body = [vec![0x0a, length, 0x08], number].concat();
    Answer::status(200).header("Content-Type", "application/x-protobuf").body(body)
}

fn long_pause() -> Answer {
    Answer::status(429).header("Retry-After", "30")
}

/// Returns a response with a web page.
fn page(status: u16) -> Answer {
    let body = "<html><head><title>There is nothing here</title></head></html>";
    Answer::status(status).header("Content-Type", "text/html; charset=utf-8").body(body)
}

/// Statuses that concern an account or the current moment.
const ACCOUNT: [u16; 3] = [402, 409, 421];

const INTERIM: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";

/// Statuses that blame the connection or a setting, for every store.
const SETTINGS: [u16; 10] = [401, 403, 404, 405, 415, 301, 302, 307, 308, 407];

fn trouble(rng: &mut Rng, manners: &Manners) -> Trouble {
    match rng.u32(..24) {
        0..3 => Trouble::Instead(busy(rng, 429)),
        3..6 if manners.aside => {
            let status = [500, 502, 503, 504, 507][rng.usize(..5)];
            Trouble::Instead(busy(rng, status))
        }
        3..6 => Trouble::Instead(Answer::hang_up()),
        6 if manners.doubts => {
            Trouble::Payload(manners.payload[rng.usize(..manners.payload.len())])
        }
        7 => Trouble::Instead(page(SETTINGS[rng.usize(..SETTINGS.len())])),
        8 if manners.pages => Trouble::Page,
        9 => Trouble::Instead(nothing(rng)),
        10 => Trouble::Instead(garbage(rng)),
        11 => Trouble::Behind(nothing(rng)),
        12 => Trouble::Behind(garbage(rng)),
        13 if manners.aside => Trouble::Behind(page([500, 502, 503, 504][rng.usize(..4)])),
        13 if manners.pages => Trouble::Behind(page(200)),
        14 if !manners.own.is_empty() => {
            let (status, body) = manners.own[rng.usize(..manners.own.len())];
            Trouble::Instead(Answer::status(status).body(body))
        }
        15..17 => Trouble::Changed(Change::Late(Duration::from_millis(rng.u64(10..3000)))),
        17 => Trouble::Changed(Change::Slow(Duration::from_secs(rng.u64(3..25)))),
        18 => Trouble::Changed(Change::Cut(rng.usize(..90))),
        19 => Trouble::Changed(Change::Closing),
        20 => Trouble::Changed(Change::Dropping),
        21 => Trouble::Changed(Change::Interim),
        _ => Trouble::Own,
    }
}

/// Returns a refusal, which may have a `Retry-After`.
fn busy(rng: &mut Rng, status: u16) -> Answer {
    let answer = if rng.bool() { page(status) } else { Answer::status(status) };
    match rng.u32(..10) {
        0..3 => answer.header("Retry-After", &rng.u32(..4).to_string()),
        3 => answer.header("Retry-After", "20"),
        4 => {
            let then = SystemTime::now() + Duration::from_secs(rng.u64(..5));
            answer.header("Retry-After", &httpdate::fmt_http_date(then))
        }
        5 => answer.header("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"),
        6 => answer.header("Retry-After", ["-1", "soon", ""][rng.usize(..3)]),
        _ => answer,
    }
}

/// Returns no response.
fn nothing(rng: &mut Rng) -> Answer {
    match rng.u32(..3) {
        0 => Answer::hang_up(),
        1 => Answer::reset(),
        _ => Answer::hang_up().after(Duration::from_secs(rng.u64(1..60))),
    }
}

/// Returns bytes that are not a response, or not a complete one.
fn garbage(rng: &mut Rng) -> Answer {
    let bytes = [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 \r\n\r\n",
        "HTTP/1.1 2",
        "HTTP/1.1 200 OK\r\nContent-Le",
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 600 What\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 429 No\r\nContent-Length: 100\r\n\r\nhalf",
    ];
    Answer::raw(bytes[rng.usize(..bytes.len())]).cut(usize::MAX)
}
