//! The TLS handshakes of senders, and what is said of those that fail.
//!
//! A handshake that fails is counted by its reason. The log has at most one line in ten seconds for
//! each listener, so that a sender that tries again and again is seen and fills no disk. A
//! connection that ends before its first byte is not a failure: health checks of load balancers and
//! of the kubelet do that.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use rustls::AlertDescription;
use rustls::CertificateError;
use rustls::Error;
use rustls::PeerIncompatible;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::telemetry::TlsFailure;
use crate::tls::handshake_error;

/// The shortest time between two log lines about refused senders of the same listener.
const QUIET: Duration = Duration::from_secs(10);

/// The beginnings of HTTP requests without TLS, and of h2 without TLS (RFC 9113 §3.4).
const PLAIN_HTTP: [&[u8; 4]; 6] = [b"POST", b"GET ", b"HEAD", b"PUT ", b"OPTI", b"PRI "];

/// The reason why a handshake failed.
pub(super) struct Failure {
    pub(super) reason: TlsFailure,
    /// The reason for an operator, who may have to change the sender.
    pub(super) words: Cow<'static, str>,
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
                     its CA must be the sender's, and its names must have the sender's URL"
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

/// Makes the handshake of a connection, within `limit`.
///
/// # Errors
///
/// The reason why the handshake failed; `None` if the connection has ended before its first byte.
pub(super) async fn accept(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, Option<Failure>> {
    let handshake = async {
        let mut first = [0; 4];
        let seen = match stream.peek(&mut first).await {
            Ok(0) | Err(_) => return Err(None),
            Ok(seen) => first.get(..seen).unwrap_or_default(),
        };
        acceptor.accept(stream).await.map_err(|error| Some(Failure::of(&error, seen)))
    };
    tokio::time::timeout(limit, handshake).await.unwrap_or_else(|_| {
        let words = "the sender has not completed the handshake within limits.header_timeout";
        Err(Some(Failure { reason: TlsFailure::Timeout, words: words.into() }))
    })
}

/// The senders that one listener has refused, for the log. Each of the two kinds has a line at its
/// first refusal, and then at most one line in ten seconds.
#[derive(Default)]
pub(super) struct Refused {
    handshakes: Seldom,
    tokens: Seldom,
}

impl Refused {
    /// Notes that the handshake of a sender has failed.
    pub(super) fn handshake(&self, listener: &str, peer: SocketAddr, failure: &Failure) {
        let (reason, error) = (failure.reason.name(), &*failure.words);
        if let Some(handshakes) = self.handshakes.count() {
            tracing::warn!(
                listener, %peer, reason, error, handshakes,
                "a sender cannot connect: the TLS handshake fails"
            );
        } else {
            tracing::debug!(listener, %peer, reason, error, "TLS handshake failed");
        }
    }

    /// Notes that a request of a sender was answered 401. `error` is the sentence of the answer.
    pub(super) fn token(&self, listener: &str, peer: SocketAddr, error: &str) {
        if let Some(requests) = self.tokens.count() {
            tracing::warn!(
                listener, %peer, error, requests,
                "requests of a sender are answered 401"
            );
        }
    }
}

/// Decides which refusals have a log line.
#[derive(Default)]
struct Seldom(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    /// The time of the last log line; `None`: there was none yet.
    told: Option<Instant>,
    /// The number of refusals since the last log line.
    untold: u64,
}

impl Seldom {
    /// Counts a refusal. Returns the number of refusals since the last log line if a line may be
    /// written now, and `None` if the last line is younger than [`QUIET`].
    fn count(&self) -> Option<u64> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.untold = counted.untold.saturating_add(1);
        let now = Instant::now();
        if counted.told.is_some_and(|told| now.duration_since(told) < QUIET) {
            return None;
        }
        counted.told = Some(now);
        Some(std::mem::take(&mut counted.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_has_the_number_of_refusals_since_the_line_before() {
        let seldom = Seldom::default();
        assert_eq!(seldom.count(), Some(1));
        for _ in 0..4 {
            assert_eq!(seldom.count(), None);
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(seldom.count(), Some(5));
        assert_eq!(seldom.count(), None);
    }
}
