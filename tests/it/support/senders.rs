//! Senders that keep sending while relays end and new ones start, and record the response to each
//! of their bodies.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use super::http::Client;
use super::numbered::body;
use super::tally::Sent;
use super::{PATIENCE, wait_until};

/// Senders of numbered events. Each sender is a thread that posts one body after another.
pub(crate) struct Senders {
    door: Arc<Door>,
    threads: Vec<JoinHandle<Vec<Sent>>>,
}

/// Where senders get the current relay's address, or wait for one.
#[derive(Default)]
struct Door {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The number of relays so far.
    generation: u64,
    address: Option<SocketAddr>,
    /// The number of senders that are waiting for the next relay.
    waiting: usize,
    over: bool,
}

/// How many events the bodies have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bodies {
    /// Mostly single events, with some small batches, and some batches of 400 events,
    /// kube-apiserver's default maximum.
    Mixed,
    /// About 1,000 events per second from each sender, in small batches.
    Steady,
}

impl Bodies {
    fn events(self, rng: &mut fastrand::Rng) -> u64 {
        match (self, rng.u32(..12)) {
            (Self::Steady, _) => rng.u64(1..60),
            (Self::Mixed, 0) => 400,
            (Self::Mixed, 1) => rng.u64(2..60),
            (Self::Mixed, _) => 1,
        }
    }

    /// Returns a random pause after a body. The senders do not flood the relay, because peers and
    /// tests share the CPU.
    fn pause(self, rng: &mut fastrand::Rng) -> Duration {
        Duration::from_micros(match self {
            Self::Mixed => rng.u64(..6000),
            Self::Steady => rng.u64(..50_000),
        })
    }
}

impl Senders {
    /// Starts `count` senders, which wait for a relay.
    pub(crate) fn start(count: u32, bodies: Bodies, rng: &mut fastrand::Rng) -> Self {
        let door = Arc::<Door>::default();
        let send = |sender| {
            let (door, rng) = (Arc::clone(&door), rng.fork());
            std::thread::spawn(move || send(sender, &door, bodies, rng))
        };
        let threads = (0..count).map(send).collect();
        Self { door, threads }
    }

    /// Tells the senders that a relay listens at this address.
    pub(crate) fn go_to(&self, address: SocketAddr) {
        let mut state = self.door.lock();
        state.generation += 1;
        state.address = Some(address);
        self.door.changed.notify_all();
    }

    /// Tells the senders that the relay has ended.
    pub(crate) fn wait(&self) {
        self.door.lock().address = None;
    }

    /// Tells the senders to send nothing more to this relay. Returns when every sender has its
    /// response.
    pub(crate) fn pause(&self) {
        self.wait();
        let idle = || {
            let state = self.door.lock();
            state.waiting == self.threads.len()
        };
        wait_until("the senders' answers", PATIENCE, idle);
    }

    /// Ends the senders after their current responses. Returns everything that they have sent, by
    /// sender and in order.
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

    /// Waits for the next relay after this generation. Returns its generation and address, or
    /// `None` if the senders must end.
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

    /// Returns `true` while the senders can send to this relay.
    fn is_open(&self, generation: u64) -> bool {
        let state = self.lock();
        !state.over && state.address.is_some() && state.generation == generation
    }
}

fn send(sender: u32, door: &Door, bodies: Bodies, mut rng: fastrand::Rng) -> Vec<Sent> {
    let (mut sent, mut number, mut generation) = (Vec::new(), 0, 0);
    while let Some((next, address)) = door.next(generation) {
        generation = next;
        // A relay that refuses connections has ended. A relay that closes one connection may still
        // be running.
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
                // The relay closes the connection after a 503.
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
