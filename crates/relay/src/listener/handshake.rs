//! The TLS handshakes of senders, and why they fail.
//!
//! A handshake that fails is counted by its reason, and logged. A connection without a single byte
//! is not a failure: health checks of load balancers and of the kubelet open such connections.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::sender::Sender;
use client::tls::{ServerSettings, handshake_error, not_after};
use telemetry::{ListenerMetrics, Telemetry, TlsFailure};

/// Returns the message about a failed handshake with a sender, whose CAs are in this key.
fn words_of(error: &io::Error) -> Cow<'static, str> {
    handshake_error(error, Some("tls.client_ca")).into()
}

/// The beginnings of HTTP requests without TLS, and of h2 without TLS (RFC 9113 §3.4).
const PLAIN_HTTP: [&[u8; 4]; 6] = [b"POST", b"GET ", b"HEAD", b"PUT ", b"OPTI", b"PRI "];

struct Failure {
    reason: TlsFailure,
    /// The reason, worded for the operator, who may have to change the sender.
    words: Cow<'static, str>,
}

impl Failure {
    /// Returns the failure that this error means. `first` has the first bytes of the connection, at
    /// most four.
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
                "the client certificate is from a CA that is not in tls.client_ca, or the sender \
                 does not send the intermediate certificate",
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
                    words: words_of(error),
                };
            }
            Some(_) | None => {
                return Self { reason: TlsFailure::Other, words: words_of(error) };
            }
        };
        Self { reason, words: words.into() }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "TLS has dozens of alerts")]
    fn of_alert(alert: AlertDescription, error: &io::Error) -> Self {
        let (reason, words) = match alert {
            // Go mostly sends BadCertificate, and OpenSSL sends the alert that fits.
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
            _ => (TlsFailure::Other, words_of(error)),
        };
        Self { reason, words }
    }
}

/// Returns `true` if the error means only that the peer has closed the connection.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::UnexpectedEof | Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe
    )
}

/// The TLS handshake of one connection, and the metrics and log for its result.
pub(super) struct Handshake {
    pub(super) settings: Arc<ServerSettings>,
    pub(super) limit: Duration,
    pub(super) metrics: ListenerMetrics,
    pub(super) sender: Sender,
    pub(super) telemetry: Arc<Telemetry>,
}

impl Handshake {
    /// Runs the TLS handshake; `None` if it fails. After a success, the metric of the sender's
    /// certificate shows when it expires. After a failure, the reason is counted and logged, unless
    /// the sender has sent nothing at all.
    pub(super) async fn make(self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        match accept(&self.settings, stream, self.limit).await {
            Ok(stream) => {
                let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                if let Some(not_after) = leaf.and_then(not_after) {
                    let listener = &self.sender.listener;
                    self.telemetry.certificate_expiry("listener", listener, "client", not_after);
                }
                Some(stream)
            }
            Err(failure) => {
                if let Some(failure) = failure {
                    self.metrics.tls_failed(failure.reason);
                    self.sender.handshake_failed(failure.reason, &failure.words);
                }
                None
            }
        }
    }
}

/// Makes the handshake of a connection with the admin address, within `limit`.
///
/// # Errors
///
/// The reason why the handshake failed; `None` if the connection or `limit` ended before the first
/// byte.
pub async fn handshake(
    settings: &ServerSettings,
    stream: TcpStream,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, Option<Cow<'static, str>>> {
    let words = |failure: Failure| {
        // The limit of the admin address is not that of the listeners.
        if failure.reason == TlsFailure::Timeout {
            let limit = limit.as_secs();
            return format!("the client has not completed the handshake in {limit} s").into();
        }
        failure.words
    };
    accept(settings, stream, limit).await.map_err(|failure| failure.map(words))
}

/// Makes the handshake of a connection, within `limit`.
///
/// # Errors
///
/// The reason why the handshake failed; `None` if the connection or `limit` ended before the first
/// byte. This is not a failure: load balancers and browsers open connections before they need them.
async fn accept(
    settings: &ServerSettings,
    stream: TcpStream,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, Option<Failure>> {
    let end = Instant::now() + limit;
    let mut first = [0; 4];
    let seen = match tokio::time::timeout_at(end, stream.peek(&mut first)).await {
        Ok(Ok(0) | Err(_)) | Err(_) => return Err(None),
        Ok(Ok(seen)) => first.get(..seen).unwrap_or_default(),
    };
    match tokio::time::timeout_at(end, settings.accept(stream)).await {
        Ok(accepted) => accepted.map_err(|error| Some(Failure::of(&error, seen))),
        Err(_) => {
            let words = "the sender has not completed the handshake within limits.header_timeout";
            Err(Some(Failure { reason: TlsFailure::Timeout, words: words.into() }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_without_signature_algorithms_is_an_old_version_of_tls() {
        let error = PeerIncompatible::SignatureAlgorithmsExtensionRequired;
        let error = io::Error::other(Error::PeerIncompatible(error));
        let failure = Failure::of(&error, b"\x16\x03\x01\x00");
        assert_eq!(failure.reason.name(), "protocol_version");
    }
}
