//! The senders: kube-apiservers with their audit webhook in each mode, log shippers, and clients
//! that misbehave. Each works until it is told to stop, and reports every request with events to
//! the book of truth.
//!
//! The behavior of kube-apiserver is in k8s.io/apiserver: `plugin/pkg/audit/webhook/webhook.go`
//! (every error is retried, even 4xx), `plugin/pkg/audit/buffered/buffered.go` (batches, the
//! throttle) and `pkg/util/webhook/webhook.go` (the pauses, 30 s). `rest/with_retry.go` of
//! client-go has the further requests after a Retry-After.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::events::{Event, Maker, Marks};
use crate::pki::Security;
use crate::plan::{Front, Setup};
use crate::truth::Book;

mod apiserver;
mod client;
mod http2;
mod outer;
mod shop;
mod socket;
mod strangers;

use shop::Shop;

/// The most bytes that a body has apart from its events, including the part that makes it wrong.
const BODY_SPARE: usize = 4 * 1024;

/// The relay's listener, as the senders know it.
#[derive(Clone)]
pub(crate) struct Target {
    address: SocketAddr,
    /// A path below the listener's `path_prefix`.
    path: String,
    /// The listener's bearer token, if it needs one.
    token: Option<String>,
    /// The largest body, in bytes, apart from those that must be refused as too large.
    body_max: usize,
    /// The TLS settings of the senders, if the relay uses TLS.
    security: Option<Arc<Security>>,
    /// The size of the smallest body that is refused as too large, in bytes, if there is a limit.
    too_large: Option<usize>,
}

impl Target {
    /// `body_max` is the smallest limit for a body in any config of the seed, in bytes.
    pub(crate) fn new(
        address: SocketAddr,
        path: &str,
        token: Option<&str>,
        body_max: usize,
    ) -> Self {
        let token = token.map(Into::into);
        Self { address, path: path.into(), token, body_max, security: None, too_large: None }
    }

    /// Lets a sender send bodies of this size and more, which are refused.
    pub(crate) fn too_large(self, too_large: Option<usize>) -> Self {
        Self { too_large, ..self }
    }

    /// Lets the senders use TLS.
    pub(crate) fn secured(self, security: Option<Arc<Security>>) -> Self {
        Self { security, ..self }
    }

    fn address(&self) -> SocketAddr {
        self.address
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Profile {
    /// The number in the serials of its events, unique among the senders.
    pub(crate) sender: u32,
    pub(crate) kind: Kind,
    /// How long the sender waits before it begins.
    pub(crate) delay: Duration,
    /// The percentage of bodies that are sent in pieces with pauses.
    pub(crate) slow: u8,
    /// The shares of its events that stores refuse or fail on.
    pub(crate) marks: Marks,
    /// `true`: HTTP/2, with prior knowledge or, like Go's client, after the TLS handshake.
    pub(crate) http2: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// kube-apiserver with `--audit-webhook-mode=batch`.
    Batch(Batch),
    /// kube-apiserver with `blocking` or `blocking-strict`.
    Blocking(Blocking),
    /// `replay` or a log shipper. It sends JSON lines, in part compressed with gzip or in chunks.
    Lines { gap: Duration },
    /// Sends valid bodies, and disconnects without reading the response, or half-closes.
    Vanishing { gap: Duration },
    /// Sends bodies and requests that must be refused, bodies that break off, and bodies with one
    /// event that a client of the cluster has shaped.
    Malformed { gap: Duration },
    /// Sends JSON lines until they are accepted, and then again, as if the response had been lost.
    Repeats { gap: Duration },
    /// A tenant of the cluster that tries to occupy the listener: many connections, heads that come
    /// in tiny pieces, and garbage.
    Tenant { gap: Duration },
    /// Strangers at a listener with TLS: plain HTTP, garbage, half a handshake and, if the relay
    /// asks for a client certificate, none or a wrong one.
    Intruder { gap: Duration, asks: bool },
    /// This many clients without the token, each of which sends a body slowly again and again.
    Crowd { size: u32 },
    /// kube-apiserver with occasional events of up to this many bytes.
    Large { gap: Duration, bytes: usize },
    /// Sends bodies that are too large: plain, in chunks, and compressed.
    TooLarge { gap: Duration },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Batch {
    /// The most events that are neither acknowledged nor given up
    /// (`--audit-webhook-batch-buffer-size`). Above it, new events are never sent.
    pub(crate) buffer: usize,
    /// The most events in a body (`--audit-webhook-batch-max-size`).
    pub(crate) size: usize,
    /// The longest pause between two batches (`--audit-webhook-batch-max-wait`).
    pub(crate) wait: Duration,
    /// Batches per second, and how many can follow each other at once.
    pub(crate) qps: f64,
    pub(crate) burst: u32,
    /// How many requests can be open at the same time.
    pub(crate) flights: u32,
    /// `--audit-webhook-initial-backoff`.
    pub(crate) backoff: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Blocking {
    /// The number of API clients, each of which waits for its events.
    pub(crate) clients: u32,
    /// The longest pause between the requests of a client.
    pub(crate) gap: Duration,
    /// If RequestReceived could not be delivered, the API request fails, and has no further event.
    pub(crate) strict: bool,
    pub(crate) backoff: Duration,
}

impl Profile {
    /// Draws the senders of a seed: one to three kube-apiservers, and often some others.
    pub(crate) fn draw(seed: u64) -> Vec<Self> {
        let mut rng = rng(seed, "profiles");
        let mut kinds = Vec::new();
        for _ in 0..rng.u8(1..4) {
            let blocking = rng.u8(..4) == 0;
            kinds.push(if blocking { Kind::draw_blocking(&mut rng) } else { Kind::draw(&mut rng) });
        }
        let gap = |rng: &mut fastrand::Rng| Duration::from_millis(rng.u64(1_000..12_000));
        for (share, make) in [
            (3, (|gap| Kind::Lines { gap }) as fn(Duration) -> Kind),
            (3, |gap| Kind::Vanishing { gap }),
            (2, |gap| Kind::Malformed { gap }),
            (4, |gap| Kind::Tenant { gap }),
        ] {
            if rng.u8(..share) == 0 {
                kinds.push(make(gap(&mut rng)));
            }
        }
        let marks = Marks {
            refused: if rng.u8(..3) == 0 { rng.u16(2..50) } else { 0 },
            failing: if rng.u8(..5) == 0 { rng.u16(1..10) } else { 0 },
        };
        let profile = |(sender, kind)| Self {
            sender,
            kind,
            delay: Duration::from_millis(rng.u64(..3_000)),
            slow: if rng.u8(..4) == 0 { rng.u8(1..30) } else { 0 },
            marks,
            http2: rng.u8(..4) == 0,
        };
        (1..).zip(kinds).map(profile).collect()
    }
}

impl Profile {
    /// Returns a log shipper whose events every store accepts.
    pub(crate) fn shipper(sender: u32) -> Self {
        Self {
            sender,
            kind: Kind::Lines { gap: Duration::from_secs(2) },
            delay: Duration::ZERO,
            slow: 0,
            marks: Marks::default(),
            http2: false,
        }
    }

    /// Returns a log shipper that repeats accepted bodies.
    pub(crate) fn repeater(sender: u32) -> Self {
        Self { kind: Kind::Repeats { gap: Duration::from_secs(6) }, ..Self::shipper(sender) }
    }
}

/// The numbers of the senders that only some configs have.
const INTRUDER: u32 = 901;
const CROWD: u32 = 902;
const LARGE: u32 = 903;
const TOO_LARGE: u32 = 904;

impl Profile {
    /// Returns the senders for a config: strangers at the TLS handshake, clients without the token,
    /// one with large events, and one with bodies that are too large.
    pub(crate) fn outer(start: &Setup) -> Vec<Self> {
        let Front { tls, connections, in_flight, body, .. } = start.front;
        let mut kinds = Vec::new();
        if let Some(asks) = tls {
            kinds.push((INTRUDER, Kind::Intruder { gap: Duration::from_secs(6), asks }));
        }
        if let Some(connections) = connections {
            kinds.push((CROWD, Kind::Crowd { size: connections + 2 }));
        }
        // A body may have all of it.
        if let Some(in_flight) = in_flight.filter(|_| start.on_disk && body.is_none()) {
            let bytes = usize::try_from(in_flight * 1024 * 13 / 16).unwrap_or(usize::MAX);
            kinds.push((LARGE, Kind::Large { gap: Duration::from_secs(12), bytes }));
        }
        if body.is_some() {
            kinds.push((TOO_LARGE, Kind::TooLarge { gap: Duration::from_secs(8) }));
        }
        let profile = |(sender, kind)| Self { kind, ..Self::shipper(sender) };
        kinds.into_iter().map(profile).collect()
    }
}

impl Kind {
    fn draw(rng: &mut fastrand::Rng) -> Self {
        let size = [1, 5, 20, 50].get(rng.usize(..4)).copied().unwrap_or(5);
        // Some events per second, in bodies of any size.
        let wait = 800 + rng.u64(100..400) * size as u64;
        Self::Batch(Batch {
            buffer: if rng.u8(..4) == 0 { 100 } else { 1_000 },
            size,
            wait: Duration::from_millis(wait),
            qps: 10.0,
            burst: 15,
            flights: rng.u32(1..5),
            backoff: Duration::from_secs(if rng.u8(..3) == 0 { 1 } else { 10 }),
        })
    }

    fn draw_blocking(rng: &mut fastrand::Rng) -> Self {
        Self::Blocking(Blocking {
            clients: rng.u32(1..4),
            gap: Duration::from_millis(rng.u64(1_000..8_000)),
            strict: rng.bool(),
            backoff: Duration::from_secs(if rng.bool() { 1 } else { 10 }),
        })
    }
}

/// The running senders.
pub(crate) struct Senders {
    shops: Vec<Arc<Shop>>,
    threads: Vec<JoinHandle<()>>,
}

/// The state that the threads of one sender share.
struct Actor {
    profile: Profile,
    seed: u64,
    target: Target,
    book: Book,
    shop: Arc<Shop>,
}

impl Senders {
    /// Starts all senders.
    pub(crate) fn start(seed: u64, profiles: &[Profile], target: &Target, book: &Book) -> Self {
        let mut senders = Self { shops: Vec::new(), threads: Vec::new() };
        for profile in profiles {
            let shop = Arc::<Shop>::default();
            let actor = Arc::new(Actor {
                profile: profile.clone(),
                seed,
                target: target.clone(),
                book: book.clone(),
                shop: Arc::clone(&shop),
            });
            senders.shops.push(shop);
            for (role, work) in roles(&profile.kind) {
                let actor = Arc::clone(&actor);
                let name = format!("sender-{}-{role}", profile.sender);
                let thread = std::thread::Builder::new().name(name);
                let work = move || {
                    if actor.shop.pause(actor.profile.delay) {
                        work(&actor, role);
                    }
                };
                senders.threads.push(thread.spawn(work).expect("a thread"));
            }
        }
        senders
    }

    /// Tells the senders to make no more events. They still retry.
    pub(crate) fn quiet(&self) {
        self.shops.iter().for_each(|shop| shop.quiet());
    }

    /// Ends the senders. Each has until the limit to deliver its bodies, and then gives up on the
    /// rest. Open requests are waited for.
    pub(crate) fn finish(self, limit: Duration) {
        self.quiet();
        let deadline = crate::kernel::now() + limit;
        self.shops.iter().for_each(|shop| shop.wait_until_idle(deadline));
        self.shops.iter().for_each(|shop| shop.close());
        for thread in self.threads {
            thread.join().expect("a sender does not panic");
        }
    }
}

/// The work of one thread of a sender.
type Work = fn(&Actor, u32);

/// Returns the threads of a sender. The number distinguishes threads with the same work.
fn roles(kind: &Kind) -> Vec<(u32, Work)> {
    match kind {
        Kind::Batch(Batch { flights, .. }) => {
            let couriers = (1..=*flights).map(|role| (role, apiserver::courier as Work));
            std::iter::once((0, apiserver::batches as Work)).chain(couriers).collect()
        }
        Kind::Blocking(Blocking { clients, .. }) => {
            (0..*clients).map(|role| (role, apiserver::client as Work)).collect()
        }
        Kind::Lines { .. } => vec![(0, strangers::lines)],
        Kind::Repeats { .. } => vec![(0, strangers::repeats)],
        Kind::Vanishing { .. } => vec![(0, strangers::vanishing)],
        Kind::Malformed { .. } => vec![(0, strangers::malformed)],
        Kind::Tenant { .. } => vec![(0, strangers::hammering), (1, strangers::slow_heads)],
        Kind::Intruder { .. } => vec![(0, outer::intruder)],
        Kind::Crowd { size } => {
            (0..*size).map(|role| (role, outer::without_token as Work)).collect()
        }
        Kind::Large { .. } => vec![(0, outer::large)],
        Kind::TooLarge { .. } => vec![(0, outer::too_large)],
    }
}

impl Actor {
    /// Returns the random numbers of one thread, which depend on nothing else in the seed.
    fn rng(&self, role: u32) -> fastrand::Rng {
        rng(self.seed, &format!("sender-{}-{role}", self.profile.sender))
    }

    /// Makes `count` events, or fewer if their body would be too large.
    fn events(&self, maker: &mut Maker, count: usize) -> Vec<Event> {
        let mut events = maker.events(count);
        let mut room = self.target.body_max.saturating_sub(BODY_SPARE);
        let mut fits = |event: &Event| {
            let rest = room.checked_sub(event.bytes.len() + 1);
            room = rest.unwrap_or(0);
            rest.is_some()
        };
        let count = events.iter().take_while(|event| fits(event)).count();
        events.truncate(count);
        events
    }

    /// Returns the event maker of one thread. Each thread of a sender has its own serials.
    fn maker(&self, role: u32) -> Maker {
        let rng = rng(self.seed, &format!("events-{}-{role}", self.profile.sender));
        Maker::new(self.profile.sender * 16 + role, rng, self.profile.marks)
    }
}

/// Returns the random numbers of an actor with this name.
pub(crate) fn rng(seed: u64, actor: &str) -> fastrand::Rng {
    // FNV-1a.
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let start = 0xcbf2_9ce4_8422_2325;
    let bytes: Vec<u8> = seed.to_le_bytes().into_iter().chain(actor.bytes()).collect();
    fastrand::Rng::with_seed(bytes.iter().fold(start, mix))
}
