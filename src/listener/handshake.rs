//! The TLS handshakes of senders, and the log lines about those that fail.
//!
//! A handshake that fails is counted by its reason. The log has at most one line in ten seconds for
//! each sender and reason, so that a sender that tries again and again is seen and fills no disk. A
//! connection without a single byte is not a failure: health checks of load balancers and of the
//! kubelet do that.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::lock::lock;
use crate::telemetry::{ListenerMetrics, Telemetry, TlsFailure};
use crate::tls::{handshake_error, not_after};

/// The shortest time between two log lines about the same refused sender and reason.
const QUIET: Duration = Duration::from_secs(10);

/// The greatest number of pairs of a sender and a reason that have log lines of their own at the
/// same time. All others share a line.
const SENDERS_MAX: usize = 64;

/// The beginnings of HTTP requests without TLS, and of h2 without TLS (RFC 9113 §3.4).
const PLAIN_HTTP: [&[u8; 4]; 6] = [b"POST", b"GET ", b"HEAD", b"PUT ", b"OPTI", b"PRI "];

/// The reason why a handshake failed.
struct Failure {
    reason: TlsFailure,
    /// The reason for an operator, who may have to change the sender.
    words: Cow<'static, str>,
}

impl Failure {
    /// Returns the reason of this error. `first` is the first bytes of the connection.
    fn of(error: &io::Error, first: &[u8]) -> Self {
        let source = error.get_ref().and_then(|source| source.downcast_ref::<Error>());
        let (reason, words) = match source {
            _ if PLAIN_HTTP.iter().any(|start| first.starts_with(&start[..])) => (
                TlsFailure::PlainHttp,
                "the sender speaks HTTP without TLS: its URL must begin with https://",
            ),
            None if is_closed(error) => {
                (TlsFailure::Closed, "the sender has closed the connection during the handshake")
            }
            Some(Error::NoCertificatesPresented) => (
                TlsFailure::NoCertificate,
                "the sender presents no client certificate, and tls.client_ca asks for one",
            ),
            Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => (
                TlsFailure::UnknownCa,
                "the client certificate is from a CA that is not in tls.client_ca",
            ),
            Some(Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            )) => (TlsFailure::Expired, "the client certificate has expired, or is not valid yet"),
            Some(Error::AlertReceived(alert)) => return Self::of_alert(*alert, error),
            Some(Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::SupportedVersionsExtensionRequired
                // TLS 1.1 and older do not have this extension.
                | PeerIncompatible::SignatureAlgorithmsExtensionRequired
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            )) => (
                TlsFailure::ProtocolVersion,
                "the sender offers only versions of TLS that are older than tls.min_version",
            ),
            Some(Error::InvalidMessage(_)) => {
                (TlsFailure::Other, "the sender has sent bytes that are not TLS")
            }
            Some(Error::InvalidCertificate(_)) => {
                return Self {
                    reason: TlsFailure::BadCertificate,
                    words: handshake_error(error).into(),
                };
            }
            Some(_) | None => {
                return Self { reason: TlsFailure::Other, words: handshake_error(error).into() };
            }
        };
        Self { reason, words: words.into() }
    }

    /// Returns the reason of an error that is an alert of the sender.
    #[allow(clippy::wildcard_enum_match_arm, reason = "TLS has dozens of alerts")]
    fn of_alert(alert: AlertDescription, error: &io::Error) -> Self {
        let (reason, words) = match alert {
            // Go sends BadCertificate, and OpenSSL sends the alert that fits.
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA => (
                TlsFailure::Refused,
                Cow::from(format!(
                    "the sender does not accept the certificate of this listener ({alert:?}): \
                     the sender must trust its CA, and its subjectAltName must contain the \
                     host of the sender's URL"
                )),
            ),
            AlertDescription::ProtocolVersion => (
                TlsFailure::ProtocolVersion,
                "the sender does not accept the versions of TLS that this listener offers".into(),
            ),
            _ => (TlsFailure::Other, handshake_error(error).into()),
        };
        Self { reason, words }
    }
}

/// Returns `true` if the error says only that the peer has gone.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe
    )
}

/// The TLS handshake of one connection, and where it is noted how the handshake went.
pub(super) struct Handshake {
    pub(super) acceptor: TlsAcceptor,
    /// The longest time that the handshake may take.
    pub(super) limit: Duration,
    /// The label of the listener.
    pub(super) listener: String,
    /// The address of the sender.
    pub(super) peer: SocketAddr,
    pub(super) metrics: ListenerMetrics,
    pub(super) refused: Arc<Refused>,
    pub(super) telemetry: Arc<Telemetry>,
}

impl Handshake {
    /// Makes the handshake. Notes when the sender's certificate expires or, if the handshake has
    /// failed and the sender had sent at least one byte, why it failed. `None` if it failed.
    pub(super) async fn make(self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        match accept(self.acceptor, stream, self.limit).await {
            Ok(stream) => {
                let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                if let Some(not_after) = leaf.and_then(not_after) {
                    let listener = &self.listener;
                    self.telemetry.certificate_expiry("listener", listener, "client", not_after);
                }
                Some(stream)
            }
            Err(failure) => {
                if let Some(failure) = failure {
                    self.metrics.tls_failed(failure.reason);
                    self.refused.handshake(&self.listener, self.peer, &failure);
                }
                None
            }
        }
    }
}

/// Makes the handshake of a connection, within `limit`.
///
/// # Errors
///
/// The reason why the handshake failed; `None` if no byte has come before the end of the connection
/// or of `limit`: load balancers and browsers connect before they need it.
async fn accept(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, Option<Failure>> {
    let end = Instant::now() + limit;
    let mut first = [0; 4];
    let seen = match tokio::time::timeout_at(end, stream.peek(&mut first)).await {
        Ok(Ok(0) | Err(_)) | Err(_) => return Err(None),
        Ok(Ok(seen)) => first.get(..seen).unwrap_or_default(),
    };
    match tokio::time::timeout_at(end, acceptor.accept(stream)).await {
        Ok(accepted) => accepted.map_err(|error| Some(Failure::of(&error, seen))),
        Err(_) => {
            let words = "the sender has not completed the handshake within limits.header_timeout";
            Err(Some(Failure { reason: TlsFailure::Timeout, words: words.into() }))
        }
    }
}

/// Writes to the log which senders one listener refuses. Each sender has a line at its first
/// refusal for a reason, and then at most one line in ten seconds for the same reason.
#[derive(Default)]
pub(super) struct Refused {
    handshakes: Seldom,
    tokens: Seldom,
}

impl Refused {
    /// Notes that the handshake of a sender has failed.
    fn handshake(&self, listener: &str, peer: SocketAddr, failure: &Failure) {
        let (reason, error) = (failure.reason.name(), &*failure.words);
        if let Some([handshakes, of_many]) = self.handshakes.count(peer, reason) {
            tracing::warn!(
                listener, %peer, reason, error, handshakes, handshakes_of_many_senders = of_many,
                "a sender cannot connect: the TLS handshake fails"
            );
        } else {
            tracing::debug!(listener, %peer, reason, error, "TLS handshake failed");
        }
    }

    /// Notes that a request of a sender was answered 401. `error` is the sentence of the answer.
    pub(super) fn token(&self, listener: &str, peer: SocketAddr, error: &'static str) {
        if let Some([requests, of_many]) = self.tokens.count(peer, error) {
            tracing::warn!(
                listener, %peer, error, requests, requests_of_many_senders = of_many,
                "requests of a sender are answered 401"
            );
        }
    }
}

/// The number of refusals since the line before, for a log line: first those of one sender for one
/// reason, then those of all senders that have no entry of their own. One of them is `None`.
type Told = [Option<u64>; 2];

/// Decides which refusals have a log line. One sender cannot keep the line of another from the log,
/// unless there are more than [`SENDERS_MAX`] pairs of a sender and a reason within ten seconds.
#[derive(Default)]
struct Seldom(Mutex<Senders>);

#[derive(Default)]
struct Senders {
    /// The refusals of each sender for each reason.
    known: HashMap<(IpAddr, &'static str), Counted>,
    /// The refusals that have no entry in `known`.
    others: Counted,
}

#[derive(Default)]
struct Counted {
    /// The time of the last log line; `None`: there was none yet.
    told: Option<Instant>,
    /// The number of refusals since the last log line.
    untold: u64,
}

impl Counted {
    /// Counts a refusal. Returns the number of refusals since the last log line if a line may be
    /// written now, and `None` if the last line is younger than [`QUIET`].
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.untold = self.untold.saturating_add(1);
        if self.is_quiet(now) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }

    /// Returns `true` if the last log line is younger than [`QUIET`].
    fn is_quiet(&self, now: Instant) -> bool {
        self.told.is_some_and(|told| now.duration_since(told) < QUIET)
    }
}

impl Seldom {
    /// Counts a refusal of this sender. Returns what the log line says if one may be written now.
    fn count(&self, peer: SocketAddr, reason: &'static str) -> Option<Told> {
        let (key, now) = ((peer.ip(), reason), Instant::now());
        let mut senders = lock(&self.0);
        let Senders { known, others } = &mut *senders;
        if known.len() >= SENDERS_MAX && !known.contains_key(&key) {
            // An entry that may have a line again keeps nothing from the log; its count moves.
            known.retain(|_, counted| {
                let is_quiet = counted.is_quiet(now);
                if !is_quiet {
                    others.untold = others.untold.saturating_add(counted.untold);
                }
                is_quiet
            });
        }
        if known.len() >= SENDERS_MAX && !known.contains_key(&key) {
            return others.count(now).map(|count| [None, Some(count)]);
        }
        known.entry(key).or_default().count(now).map(|count| [Some(count), None])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_has_the_number_of_refusals_since_the_line_before() {
        let seldom = Seldom::default();
        let count = || seldom.count(sender(1), "other");
        assert_eq!(count(), Some([Some(1), None]));
        for _ in 0..4 {
            assert_eq!(count(), None);
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(count(), Some([Some(5), None]));
        assert_eq!(count(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_scanner_does_not_hide_another_sender_or_another_reason() {
        let seldom = Seldom::default();
        let count = |number, reason| seldom.count(sender(number), reason);
        assert_eq!(count(1, "other"), Some([Some(1), None]));
        assert_eq!(count(1, "other"), None);
        assert_eq!(count(2, "other"), Some([Some(1), None]));
        assert_eq!(count(1, "plain_http"), Some([Some(1), None]));
    }

    #[tokio::test(start_paused = true)]
    async fn senders_beyond_the_greatest_number_share_a_line_and_none_is_uncounted() {
        let seldom = Seldom::default();
        let mut told = 0;
        let mut count = |number| {
            let counts = seldom.count(sender(number), "other").into_iter().flatten().flatten();
            told += counts.sum::<u64>();
        };
        for _ in 0..2 {
            (0..=u8::MAX).for_each(&mut count);
        }
        tokio::time::advance(QUIET).await;
        // The entries are free again, and what they had not told is told with the others.
        (0..=u8::MAX).for_each(&mut count);
        let senders = seldom.0.lock().unwrap();
        assert_eq!(senders.known.len(), SENDERS_MAX);
        let untold: u64 = senders.known.values().map(|it| it.untold).sum();
        assert_eq!(told + untold + senders.others.untold, 3 * 256);
    }

    #[test]
    fn a_version_without_signature_algorithms_is_an_old_version_of_tls() {
        let error = PeerIncompatible::SignatureAlgorithmsExtensionRequired;
        let error = io::Error::other(Error::PeerIncompatible(error));
        let failure = Failure::of(&error, b"\x16\x03\x01\x00");
        assert_eq!(failure.reason.name(), "protocol_version");
    }
}
