//! The link of an output over HTTP: its lanes, and the open requests.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, Sleep};

use super::api::Outcome;
use super::client::Client;
use super::confirm::Settled;
use super::pool::Lane;
use delivery::checkpoints::{Checkpoint, Fate};
use delivery::link::{Event, Link, until};
use queue::{Batch, Claim, Take};

/// The longest pause after a request with a small batch (fewer than [`SMALL_BYTES`], and less than
/// half of the maximum batch). The pause ends at once when the request of any batch has ended, and
/// may end early after a question. Events that come in the pause share the next request.
const COALESCE: Duration = Duration::from_millis(5);

/// No pause of [`COALESCE`] follows a batch of at least this many bytes.
const SMALL_BYTES: u64 = 64 * 1024;

/// A running request, as a future. It owns its lane, and returns the lane and the result.
type UnderWay = Pin<Box<dyn Future<Output = (Lane, Done)> + Send>>;

/// The result of a request.
enum Done {
    /// The claim of a batch, the id of the address, and the outcome of the request.
    Sent(Claim, usize, Outcome),
    /// The result of a checkpoint of the evidence.
    Beside(Fate),
    /// The requests that the consumer has confirmed after a question.
    Asked(Vec<Settled>),
}

/// The timer for [`HttpLink::waits_until`]. Setting a timer costs a system call if it is the
/// runtime's next one, and most requests are answered long before the timer goes off. Therefore a
/// timer that is set is not moved: it is set again only after it has gone off.
#[derive(Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Waits until `time`. Never returns if `time` is `None`. No call may have an earlier time than
    /// the call before.
    async fn ring(&mut self, time: Option<Instant>) {
        let Some(time) = time else { return std::future::pending().await };
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(time)));
        loop {
            sleep.as_mut().await;
            if Instant::now() >= time {
                return;
            }
            sleep.as_mut().reset(time);
        }
    }
}

/// The link of an output over HTTP, which runs the output's requests. The delivery loop owns the
/// link. The link works only while the loop polls [`Link::event`], except for the tasks that read
/// and write connections and the threads that compress bodies.
///
/// The link is made once, and is not a connection: it holds `concurrency` [`Lane`]s, each of which
/// sends one request at a time. A batch takes an idle lane, picks an address, and uses the lane's
/// connection to that address or makes a new one. When the outcome is known, the lane returns with
/// the connection, and the link reports the outcome for the claim. The link itself never breaks: if
/// a connection fails, only the request on it has failed.
///
/// The link also does this:
///
/// - *Coalescing.* After a small request the link takes no batch for at most [`COALESCE`]. Single
///   events can then share a request.
/// - *Confirmation.* If the consumer confirms requests later, the link asks regularly, on the
///   connections of idle lanes.
/// - *Tidying.* An idle connection without an unconfirmed request is closed when it reaches
///   `max_connection_age`, and when the output no longer has its address.
/// - *Checkpoints.* A checkpoint of the evidence is a request of its own, on an idle lane.
/// - *Moving on.* A request fails early if it makes no progress while another address may answer,
///   so that its batch is sent there ([`Client::attempt`]).
///
/// Invariants: at most `concurrency` claims are being sent at any time. Each claim ends with
/// exactly one event of the link. With `concurrency = 1`, these events come in the order in which
/// the claims were sent, unless the consumer confirms requests later.
pub(crate) struct HttpLink {
    client: Arc<Client>,
    /// The lanes without a request.
    idle: Vec<Lane>,
    busy: FuturesUnordered<UnderWay>,
    /// The confirmed requests that are not reported yet.
    confirmed: VecDeque<Settled>,
    /// The time until which the link takes no batch: see [`COALESCE`].
    waits_until: Option<Instant>,
    alarm: Alarm,
    /// The id of the address that the last report is about.
    consumer: usize,
}

impl HttpLink {
    pub(super) fn new(client: Arc<Client>) -> Self {
        let idle = (0..client.config.concurrency).map(|_| Lane::default()).collect();
        let busy = FuturesUnordered::new();
        let (confirmed, alarm) = (VecDeque::new(), Alarm::default());
        Self { client, idle, busy, confirmed, waits_until: None, alarm, consumer: 0 }
    }

    /// Tidies the idle lanes ([`Lane::tidy`]). Returns the earliest time when another idle
    /// connection reaches its age limit.
    fn tidy(&mut self) -> Option<Instant> {
        let endpoints = &self.client.endpoints;
        let version = endpoints.version();
        self.idle.iter_mut().filter_map(|lane| lane.tidy(endpoints, version)).min()
    }

    /// Asks for confirmations on the idle lanes whose turn it is. Returns the time of the next
    /// question, if there is one.
    fn ask(&mut self) -> Option<Instant> {
        let client = &self.client;
        client.api.confirm()?;
        let now = Instant::now();
        let due = |lane: &mut Lane| client.asks_at(lane).is_some_and(|at| at <= now);
        for mut lane in self.idle.extract_if(.., due) {
            let client = Arc::clone(client);
            self.busy.push(Box::pin(async move {
                let confirmed = client.ask(&mut lane).await;
                (lane, Done::Asked(confirmed))
            }));
        }
        self.idle.iter().filter_map(|lane| self.client.asks_at(lane)).min()
    }

    /// Begins a request. `is_alone`: see [`Lane::sends_alone`].
    fn begin(&mut self, batch: Batch, is_alone: bool) {
        let mut lane = self.idle.pop().unwrap_or_default();
        lane.sends_alone = is_alone;
        let client = Arc::clone(&self.client);
        // After a batch that is at least half full, a pause for more events gains little.
        let limits = self.client.room.limits;
        let is_small = batch.bytes < SMALL_BYTES.min(limits.max_bytes / 2)
            && batch.events < limits.max_events / 2;
        self.waits_until = is_small.then(|| Instant::now() + COALESCE);
        self.busy.push(Box::pin(async move {
            let claim = batch.claim;
            let (id, outcome) = client.attempt(&mut lane, batch).await;
            (lane, Done::Sent(claim, id, outcome))
        }));
    }

    /// Returns the report about the next confirmed request or doubt.
    fn finished(&mut self) -> Option<Event> {
        let settled = self.confirmed.pop_front().or_else(|| self.client.doubts.take())?;
        self.consumer = settled.consumer;
        Some(event_of(settled.claim, settled.outcome))
    }
}

fn event_of(claim: Claim, outcome: Outcome) -> Event {
    match outcome {
        Outcome::Accepted => Event::Accepted(claim),
        Outcome::Taken(_) => Event::Taken(claim),
        Outcome::Judged(parts) => Event::Judged(claim, parts),
        Outcome::Refused(failure) => Event::Refused(claim, failure),
        Outcome::Failed(failure) => Event::Failed(claim, failure),
    }
}

impl Link for HttpLink {
    fn room(&self) -> Option<Take> {
        let may_begin = self.waits_until.is_none() && !self.client.doubts.is_full();
        (!self.idle.is_empty() && may_begin).then(|| self.client.take())
    }

    fn send(&mut self, batch: Batch) {
        self.begin(batch, false);
    }

    fn send_alone(&mut self, batch: Batch) {
        self.begin(batch, true);
    }

    fn send_checkpoint(&mut self, checkpoint: Checkpoint) {
        let mut lane = self.idle.pop().unwrap_or_default();
        let client = Arc::clone(&self.client);
        self.busy.push(Box::pin(async move {
            let fate = client.send_checkpoint(&mut lane, &checkpoint).await;
            (lane, Done::Beside(fate))
        }));
    }

    async fn event(&mut self) -> Event {
        let client = Arc::clone(&self.client);
        let exchanged = loop {
            if let Some(event) = self.finished() {
                return event;
            }
            // The futures are made before the state that they watch is read, so that no change is
            // missed.
            let (changed, doubted) = (client.endpoints.changed(), client.doubts.added.notified());
            let (expiry, next) = (self.tidy(), self.ask());
            tokio::select! {
                biased;
                exchanged = self.busy.next(), if !self.busy.is_empty() => match exchanged {
                    Some((lane, Done::Asked(confirmed))) => {
                        self.idle.push(lane);
                        self.confirmed.extend(confirmed);
                        if self.confirmed.is_empty() {
                            break None;
                        }
                    }
                    Some((lane, Done::Beside(fate))) => {
                        self.idle.push(lane);
                        return Event::Checkpoint(fate);
                    }
                    Some((lane, Done::Sent(claim, id, outcome))) => {
                        break Some((lane, claim, id, outcome));
                    }
                    None => break None,
                },
                () = self.alarm.ring(self.waits_until) => break None,
                () = until(expiry) => {}
                () = until(next) => {}
                () = doubted => {}
                () = changed => {}
            }
        };
        self.waits_until = None;
        let Some((lane, claim, id, outcome)) = exchanged else { return Event::Room };
        self.idle.push(lane);
        // A lane whose turn it is to ask does so before it gets a batch. Otherwise the lane could
        // carry one batch after the other, and never ask.
        self.ask();
        self.consumer = id;
        event_of(claim, outcome)
    }

    fn consumer(&self) -> usize {
        self.consumer
    }

    /// Aborts the running requests, whose events stay in the queue. Closes the idle connections
    /// cleanly, and waits at most `CLOSE_TIME` until all connections have ended.
    async fn close(self) {
        drop((self.idle, self.busy));
        self.client.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Settings;
    use crate::http::request::AnyConsumer;
    use crate::setup::Setup;
    use delivery::files::Files as _;
    use queue::Identity;

    /// Returns a link with three lanes, and its consumer, which takes connections and never
    /// answers.
    fn silent_link(limits: &str) -> (HttpLink, std::net::TcpListener) {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let output = crate::tests::output(&format!(
            "type = 'http'\nurls = ['http://{address}/']\nconcurrency = 3\nbatch = {{ {limits} }}"
        ));
        let http: &Settings = output.kind.settings().expect("it is http's");
        let api = Arc::new(AnyConsumer { format: http.format, accept_html: false });
        let telemetry = Arc::new(telemetry::Telemetry::new());
        let client = Client::new(&http.client, api, &Setup::new(&output, &telemetry));
        let client = Arc::new(client);
        client.queue.set(Identity::random().unwrap()).unwrap();
        (Arc::clone(&client).stage().unwrap())();
        (HttpLink::new(client), listener)
    }

    /// Returns a batch that claims to hold `events` events in `bytes` bytes.
    fn batch(events: u64, bytes: usize) -> Batch {
        let one = crate::tests::batch(0, &["x".repeat(bytes - 1)]);
        Batch { claim: Claim::of(0, events), events, ..one }
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_request_waits_for_the_one_under_way_and_not_for_long() {
        let (mut link, _consumer) = silent_link("max_events = 100");
        link.send(batch(1, 800));
        assert_eq!(link.room(), None);
        let begun = Instant::now();
        let event = link.event().await;
        assert!(matches!(event, Event::Room), "{event:?}");
        assert!((COALESCE..COALESCE * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        assert!(link.room().is_some());
        // Each small request makes the next one wait. After three requests, no lane is idle.
        link.send(batch(1, 800));
        assert_eq!(link.room(), None);
        assert!(matches!(link.event().await, Event::Room));
        link.send(batch(1, 800));
        assert!(matches!(link.event().await, Event::Room));
        assert_eq!(link.room(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_beside_a_request_that_is_large_or_holds_what_it_may() {
        for (limits, batches) in [
            ("max_events = 100", &[(10, 64 * 1024), (50, 800)][..]),
            ("max_events = 1", &[(1, 800)]),
            ("max_bytes = '16KiB'", &[(1, 8 * 1024)]),
        ] {
            let (mut link, _consumer) = silent_link(limits);
            for (events, bytes) in batches {
                link.send(batch(*events, *bytes));
                assert!(link.room().is_some(), "{limits}: {events} of {bytes}");
            }
        }
    }
}
