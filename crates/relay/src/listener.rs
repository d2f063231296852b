//! Accepts batches from senders over HTTP/1.1 and h2, with or without TLS, and within limits. One
//! function answers all requests; `requests.rs` has the order of its checks.
//!
//! If `accept` fails, the listener tries again; this never ends the process. A listener meets the
//! outputs only at the queue.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `answer` `buffer` `policy` `repeats` `sender` `token` | answers · the memory of bodies · what the config says of all listeners · batches that are repeated · refused senders in the log · the bearer token |
//! | 2 | `connection` `handshake` `in_flight` `pieces` `settings` | phases and deadlines · TLS · bytes in flight · a list that is larger than memory · what the config says of one listener |
//! | 3 | `terms` | what requests share |
//! | 4 | `gate` `upload` | the limits of all listeners · a body that arrives |
//! | 5 | `auth` `head` `ingest` | who may send requests · which heads are those of a batch · the answer to a body |
//! | 6 | `requests` | the answer to a request |
//! | 7 | `session` | one connection from its handshake to its end |

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use client::net;
use telemetry::{ListenerMetrics, RefusedConnection, Telemetry};

mod answer;
mod auth;
mod buffer;
mod connection;
mod gate;
mod handshake;
mod head;
mod in_flight;
mod ingest;
mod pieces;
mod policy;
mod repeats;
mod requests;
mod sender;
mod session;
mod settings;
mod terms;
mod token;
mod upload;

pub use gate::Gate;
pub use handshake::handshake;
pub use settings::Settings;
pub use token::Token;

use handshake::Handshake;
use sender::{Refused, Sender};
use session::Session;
use terms::Terms;

/// The pause after an error of `accept` that concerns more than one connection, such as too many
/// open files. Without it the listener would fail in a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The number of connections that may have given their places to newer ones and still be open.
/// While there are more, each accept waits for [`GIVEN_WAY_PAUSE`] first, because such a connection
/// stays open until its task runs. Otherwise a burst of connections could take all descriptors of
/// the process.
const GIVEN_WAY_MAX: usize = 8;

/// The pause in which the tasks of connections that gave up their places can run.
const GIVEN_WAY_PAUSE: Duration = Duration::from_millis(1);

/// A listener on one bound address. All clones of this value are the same listener: they share the
/// socket and the settings, and closing one clone closes all of them.
#[derive(Clone)]
pub struct Listener {
    socket: Arc<TcpListener>,
    /// The address as configured, which is also the metrics' label `listener`.
    label: Arc<str>,
    /// The settings for TLS handshakes and requests, which a reload replaces.
    settings: Arc<ArcSwap<Settings>>,
    metrics: ListenerMetrics,
    /// The senders that were refused, for the log.
    refused: Arc<Refused>,
    telemetry: Arc<Telemetry>,
    /// Cancelled when this listener is closed, or when the drain closes all listeners. The listener
    /// then accepts no more connections.
    closing: CancellationToken,
    /// Cancelled when a reload has changed which clients may connect. The open connections must
    /// end, and their next requests are refused.
    revoked: CancellationToken,
}

impl Listener {
    /// Makes a listener on a socket that is already bound. Clients can already connect, because the
    /// kernel completes their connections. [`Listener::serve`] then accepts these connections.
    pub fn new(
        socket: TcpListener,
        config: &config::Listener,
        settings: Arc<Settings>,
        gate: &Gate,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let listener = Self {
            socket: Arc::new(socket),
            label: config.label.as_str().into(),
            settings: Arc::new(ArcSwap::new(settings)),
            metrics: telemetry.listener(&config.label),
            refused: Arc::default(),
            telemetry,
            closing: gate.shared.closing.child_token(),
            revoked: CancellationToken::new(),
        };
        listener.show_expiry();
        listener
    }

    fn show_expiry(&self) {
        if let Some(not_after) = self.settings.load().tls.as_ref().and_then(|tls| tls.not_after()) {
            self.telemetry.certificate_expiry("listener", &self.label, "server", not_after);
        }
    }

    /// Returns the listener's address, as it is written in the config.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the address of the socket, with the port that the kernel has chosen for port 0.
    ///
    /// # Errors
    ///
    /// The kernel cannot tell the address of the socket.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Returns the settings that are in use now for new requests.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Replaces the settings for later handshakes and requests. Open connections stay open.
    pub fn apply(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
        self.show_expiry();
    }

    /// Makes a listener on the same socket with settings under which open connections of `self` may
    /// not stay (see [`Settings::is_compatible`]). The caller must also call [`Listener::revoke`]
    /// on `self`.
    pub fn successor(&self, settings: Settings, gate: &Gate) -> Self {
        let successor = Self {
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            closing: gate.shared.closing.child_token(),
            revoked: CancellationToken::new(),
            ..self.clone()
        };
        successor.show_expiry();
        successor
    }

    /// Stops accepting connections on this listener. Each open connection ends after its current
    /// request.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Closes this listener as [`Listener::close`] does, and also refuses each request whose head
    /// is not complete yet: an h2 client that ignores GOAWAY could otherwise keep sending requests.
    pub fn revoke(&self) {
        self.revoked.cancel();
        self.closing.cancel();
    }

    /// Accepts connections, each served by a task, until this listener or all listeners are closed.
    pub async fn serve(self, gate: Arc<Gate>) {
        use io::ErrorKind::{
            ConnectionAborted as Aborted, ConnectionRefused as Refused, ConnectionReset as Reset,
        };
        let mut failing = false;
        loop {
            if gate.given_way() > GIVEN_WAY_MAX {
                tokio::time::sleep(GIVEN_WAY_PAUSE).await;
            }
            let accepted = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    failing = false;
                    self.open(stream, peer, &gate);
                }
                // The error concerns only the new connection, which has ended already.
                Err(error) if matches!(error.kind(), Aborted | Reset | Refused) => {}
                Err(error) => {
                    self.metrics.connection_refused(RefusedConnection::AcceptFailed);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(
                            listener = &*self.label,
                            %error,
                            "a listener cannot accept connections, retrying"
                        );
                    }
                    let pause = tokio::time::sleep(ACCEPT_PAUSE);
                    self.closing.run_until_cancelled(pause).await;
                }
            }
        }
    }

    /// Starts the task that serves a new connection. If the limit of connections is reached, an
    /// older connection is closed to make room, or the new one if every older connection must stay.
    fn open(&self, stream: TcpStream, peer: SocketAddr, gate: &Arc<Gate>) {
        let policy = gate.shared.policy.load_full();
        let limits = &policy.limits;
        let (listener, refused) = (Arc::clone(&self.label), Arc::clone(&self.refused));
        let sender = Sender { listener, peer, refused };
        let place =
            gate.registry.open(limits.max_connections, self.metrics.clone(), sender.clone());
        let Some(place) = place else { return };
        // An error is ignored, because a socket also works without these options.
        net::tune_accepted(&stream).ok();
        let handshake = self.settings.load().tls.as_ref().map(|tls| Handshake {
            settings: tls.settings(),
            limit: limits.header_timeout,
            metrics: self.metrics.clone(),
            sender,
            telemetry: Arc::clone(&self.telemetry),
        });
        let terms = Terms {
            shared: Arc::clone(&gate.shared),
            connection: Arc::clone(&place.connection),
            settings: Arc::clone(&self.settings),
            closing: self.closing.clone(),
            revoked: self.revoked.clone(),
            max_age: limits.max_connection_age.map(net::jittered),
        };
        let session = Session { place, policy, terms: Arc::new(terms) };
        let aborted = gate.aborted.clone();
        gate.connections.spawn(async move {
            aborted.run_until_cancelled(session.run(stream, handshake)).await;
        });
    }
}
