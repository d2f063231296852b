//! The client side of TLS for outputs: certificate files that a reload replaces, and the handshake.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use base::staged::Staged;
use client::tls;
use config::HostPort;
use delivery::failure::Failure;
use delivery::files::Files;
use telemetry::{AttemptError, Telemetry};

/// The metric for the expiry of the output's own certificate and its consumers' certificates.
#[derive(Clone)]
pub(crate) struct Expiry {
    telemetry: Arc<Telemetry>,
    output: String,
}

impl Expiry {
    pub(crate) fn new(telemetry: &Arc<Telemetry>, output: &str) -> Self {
        Self { telemetry: Arc::clone(telemetry), output: output.to_owned() }
    }

    /// Sets the expiry of a certificate to `not_after`, in seconds since 1970. `role` is `client`
    /// for the output's own certificate, and `server` for the consumer's. `None` does not change
    /// the metric.
    pub(crate) fn set(&self, role: &'static str, not_after: Option<i64>) {
        if let Some(not_after) = not_after {
            self.telemetry.certificate_expiry("output", &self.output, role, not_after);
        }
    }
}

/// The TLS client of one output, shared by all its connections. After a reload, new handshakes use
/// the new certificate files, and open connections do not change.
pub(crate) struct Tls {
    config: config::ClientTls,
    /// The application protocols that the handshake offers (ALPN), such as `http/1.1`.
    alpn: &'static [&'static [u8]],
    /// The TLS settings in use. `None` before the certificate files were read.
    current: ArcSwapOption<tls::Client>,
    expiry: Expiry,
}

impl Tls {
    /// Makes a TLS client whose files are not read yet. `alpn` are the protocols to offer.
    pub(crate) fn new(
        config: config::ClientTls,
        alpn: &'static [&'static [u8]],
        expiry: Expiry,
    ) -> Self {
        Self { config, alpn, current: ArcSwapOption::empty(), expiry }
    }

    /// Does the TLS handshake on `stream` with the consumer at this address, until `deadline`.
    /// Returns the encrypted stream. Also updates the metric for the expiry of the consumer's
    /// certificate.
    ///
    /// # Errors
    ///
    /// The handshake failed or took too long, or the certificate files have not been read.
    pub(crate) async fn handshake<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        at: &HostPort,
        stream: T,
        deadline: Instant,
    ) -> Result<TlsStream<T>, Failure> {
        let client = self.current.load_full().ok_or_else(|| failed(at, "no usable settings"))?;
        let expired = |not_after| self.expiry.set("server", Some(not_after));
        let stream = shake_hands(&client, at, stream, deadline, expired).await?;
        let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        self.expiry.set("server", peer.and_then(tls::not_after));
        Ok(stream)
    }
}

/// Does the TLS handshake on `stream` with the server at this address, until `deadline`. Returns
/// the encrypted stream.
pub(crate) async fn handshake<T: AsyncRead + AsyncWrite + Unpin>(
    client: &tls::Client,
    at: &HostPort,
    stream: T,
    deadline: Instant,
) -> Result<TlsStream<T>, Failure> {
    shake_hands(client, at, stream, deadline, |_| {}).await
}

/// Like [`handshake`]. If the server's certificate has expired, calls `expired` with the end of the
/// validity in seconds since 1970.
async fn shake_hands<T: AsyncRead + AsyncWrite + Unpin>(
    client: &tls::Client,
    at: &HostPort,
    stream: T,
    deadline: Instant,
    expired: impl FnOnce(i64),
) -> Result<TlsStream<T>, Failure> {
    let name = client.server_name(&at.host).map_err(|error| failed(at, &error.to_string()))?;
    let connecting = TlsConnector::from(client.settings()).connect(name, stream);
    match tokio::time::timeout_at(deadline, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            if let Some(not_after) = tls::expired(&error) {
                expired(not_after);
            }
            Err(failed(at, &tls::handshake_error(&error, Some("tls.ca"))))
        }
        Err(_) => Err(failed(at, "no response within the connect timeout")),
    }
}

fn failed(HostPort { host, port }: &HostPort, what: &str) -> Failure {
    Failure::new(AttemptError::Tls, format!("TLS with {host}:{port}: {what}"))
}

impl Files for Tls {
    fn stage(self: Arc<Self>) -> Result<Staged, String> {
        let current = self.current.load_full();
        let client = tls::Client::read(&self.config, self.alpn, current.as_ref());
        let client = client.map_err(|error| error.to_string())?;
        Ok(Box::new(move || {
            self.expiry.set("client", client.not_after());
            self.current.store(Some(client));
        }))
    }
}
