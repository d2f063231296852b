//! Senders that go on through the ends and beginnings of the relay, and note what each of their events was answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::thread::JoinHandle;
use std::time::Duration;

use super::PATIENCE;
use super::http::Client;
use super::numbered::body;
use super::tally::Sent;
use super::wait_until;

/// Senders of numbered events, each a thread that posts one body after the other.
pub(crate) struct Senders {
    door: Arc<Door>,
    threads: Vec<JoinHandle<Vec<Sent>>>,
}

/// Where the relay is.
#[derive(Default)]
struct Door {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Counts the relays there were.
    generation: u64,
    address: Option<SocketAddr>,
    /// How many senders wait for the next.
    waiting: usize,
    over: bool,
}

/// How many events a body has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bodies {
    /// Single events, some small batches, and batches as kube-apiserver fills them.
    Mixed,
    /// Megabytes, so that a write takes its time.
    Large,
    /// About 1,000 events a second from each sender, in small batches.
    Steady,
}

impl Bodies {
    fn events(self, rng: &mut fastrand::Rng) -> u64 {
        match (self, rng.u32(..12)) {
            (Self::Large, _) => rng.u64(3000..8000),
            (Self::Steady, _) => rng.u64(1..60),
            (Self::Mixed, 0) => 400,
            (Self::Mixed, 1) => rng.u64(2..60),
            (Self::Mixed, _) => 1,
        }
    }

    /// A load, not a flood: the peers and the tests share the cores.
    fn pause(self, rng: &mut fastrand::Rng) -> Duration {
        Duration::from_micros(match self {
            Self::Mixed | Self::Large => rng.u64(..6000),
            Self::Steady => rng.u64(..50_000),
        })
    }
}

impl Senders {
    /// So many, which wait for a relay.
    pub(crate) fn start(count: u32, bodies: Bodies, rng: &mut fastrand::Rng) -> Self {
        let door = Arc::<Door>::default();
        let send = |sender| {
            let (door, rng) = (Arc::clone(&door), rng.fork());
            std::thread::spawn(move || send(sender, &door, bodies, rng))
        };
        let threads = (0..count).map(send).collect();
        Self { door, threads }
    }

    /// A relay is there.
    pub(crate) fn go_to(&self, address: SocketAddr) {
        let mut state = self.door.lock();
        state.generation += 1;
        state.address = Some(address);
        self.door.changed.notify_all();
    }

    /// It is gone.
    pub(crate) fn wait(&self) {
        self.door.lock().address = None;
    }

    /// It is not to get more: returns when every sender has its answer.
    pub(crate) fn pause(&self) {
        self.wait();
        let idle = || {
            let state = self.door.lock();
            state.waiting == self.threads.len()
        };
        wait_until("the senders' answers", PATIENCE, idle);
    }

    /// Ends them when they have their answers: what they have sent, by sender and in order.
    pub(crate) fn finish(self) -> Vec<Sent> {
        self.door.lock().over = true;
        self.door.changed.notify_all();
        self.threads.into_iter().flat_map(|thread| thread.join().expect("a sender")).collect()
    }
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// The next relay after this generation; `None` when it is over.
    fn next(&self, after: u64) -> Option<(u64, SocketAddr)> {
        let mut state = self.lock();
        state.waiting += 1;
        let next = loop {
            if state.over {
                break None;
            }
            if let Some(address) = state.address.filter(|_| state.generation > after) {
                break Some((state.generation, address));
            }
            state = self.changed.wait(state).expect("not poisoned");
        };
        state.waiting -= 1;
        next
    }

    /// Whether this relay is to get more.
    fn is_open(&self, generation: u64) -> bool {
        let state = self.lock();
        !state.over && state.address.is_some() && state.generation == generation
    }
}

fn send(sender: u32, door: &Door, bodies: Bodies, mut rng: fastrand::Rng) -> Vec<Sent> {
    let (mut sent, mut number, mut generation) = (Vec::new(), 0, 0);
    while let Some((next, address)) = door.next(generation) {
        generation = next;
        // Where it refuses connections, it is gone; where it ends one, it may not be.
        while let Ok(mut client) = Client::connect(address) {
            while door.is_open(generation) {
                let events = bodies.events(&mut rng);
                let numbers = number..number + events;
                number += events;
                let body = body(sender, numbers.clone(), events == 1 && rng.bool());
                let answer = client.post("/audit", "application/json", &body);
                let status = answer.map(|answer| answer.status).ok();
                sent.push(Sent { sender, numbers, accepted: status == Some(200) });
                assert!(matches!(status, None | Some(200 | 429 | 503)), "answered {status:?}");
                std::thread::sleep(bodies.pause(&mut rng));
                // 503 ends the connection.
                if matches!(status, None | Some(503)) {
                    break;
                }
            }
            if !door.is_open(generation) {
                break;
            }
        }
    }
    sent
}
