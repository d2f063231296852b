//! A consumer of JSON lines over HTTP. It notes which events have arrived, and goes down on
//! request.
//!
//! While the consumer is down, it resets every connection. It keeps listening on its port, because
//! another process could take a port that is closed.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::events;

use base::lock::lock;

/// The greatest number of bytes in a request body. The relay's requests have at most 4 MiB, except
/// for a request with a single larger event.
const BODY_BYTES_MAX: usize = 8 << 20;

/// The consumer of the demo. It listens on its port until this value is dropped.
pub(super) struct Consumer {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    away: watch::Sender<bool>,
    /// The task that accepts connections and owns them. Dropping this set ends the task and closes
    /// the connections.
    _tasks: JoinSet<()>,
}

/// The events that have arrived, as a set of their numbers with one bit for each number.
#[derive(Default)]
struct Seen {
    bits: Vec<u64>,
    events: u64,
    repeated: u64,
}

impl Seen {
    fn note(&mut self, number: u64) {
        let Ok(word) = usize::try_from(number / 64) else { return };
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        match self.bits[word] & bit {
            0 => self.events += 1,
            _ => self.repeated += 1,
        }
        self.bits[word] |= bit;
    }

    fn has(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|word| self.bits.get(word));
        word.is_some_and(|word| word & 1 << (number % 64) != 0)
    }
}

impl Consumer {
    pub(super) fn start() -> io::Result<Self> {
        let socket = client::net::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let address = socket.local_addr()?;
        let (away, is_away) = watch::channel(false);
        let seen = Arc::<Mutex<Seen>>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(socket, Arc::clone(&seen), is_away));
        Ok(Self { address, seen, away, _tasks: tasks })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes the consumer go down (`true`), so that it resets every connection, or come back
    /// (`false`). Open connections are reset too.
    pub(super) fn set_away(&self, away: bool) {
        self.away.send_if_modified(|now| std::mem::replace(now, away) != away);
    }

    pub(super) fn delivered(&self) -> u64 {
        lock(&self.seen).events
    }

    pub(super) fn repeated(&self) -> u64 {
        lock(&self.seen).repeated
    }

    pub(super) fn missing(&self, numbers: &[Range<u64>]) -> u64 {
        let seen = lock(&self.seen);
        let missing = numbers.iter().cloned().flatten().filter(|number| !seen.has(*number));
        missing.count() as u64
    }
}

async fn accept(socket: TcpListener, seen: Arc<Mutex<Seen>>, away: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = socket.accept().await else {
            // The accept may have failed because the process has no free file descriptors for a
            // moment.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        connections.spawn(serve(stream, Arc::clone(&seen), away.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Serves a connection until the relay closes it or the consumer goes down.
async fn serve(stream: TcpStream, seen: Arc<Mutex<Seen>>, mut away: watch::Receiver<bool>) {
    // Because of the linger time of 0, a connection that is dropped early is reset and not closed
    // in order.
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok();
    let service = service_fn(|request| note(request, Arc::clone(&seen)));
    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        _ = away.wait_for(|away| *away) => {}
        // An error means that the relay has closed the connection.
        _ = serving => {}
    }
}

async fn note(
    request: Request<Incoming>,
    seen: Arc<Mutex<Seen>>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut response = Response::new(Empty::new());
    match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => {
            let body = body.to_bytes();
            let mut seen = lock(&seen);
            for event in body.split(|byte| *byte == b'\n') {
                events::number(event).into_iter().for_each(|number| seen.note(number));
            }
        }
        Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_not_come_is_missed_and_what_comes_twice_is_counted_once() {
        let consumer = Consumer::start().unwrap();
        for number in [0, 1, 63, 64, 200, 64] {
            lock(&consumer.seen).note(number);
        }
        assert_eq!((consumer.delivered(), consumer.repeated()), (5, 1));
        assert_eq!(consumer.missing(&[0..2, 63..65, 200..201]), 0);
        assert_eq!(consumer.missing(&[0..3, 62..66, 1000..1010]), 1 + 2 + 10);
    }
}
