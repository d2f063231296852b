//! Accepts TLS connections. With TLS 1.3, uses X25519MLKEM768 if the client supports it. rustls
//! takes the first supported group in the client's list. A client that lists X25519 first would get
//! X25519, which a quantum computer breaks. So for each client that lists X25519MLKEM768, only this
//! group is allowed with TLS 1.3. A client that has sent no key share for this group is asked for
//! one (RFC 8446 §4.1.4), which takes a round trip. OpenSSL since 3.5 and Go since 1.24 do the
//! same.

use std::sync::Arc;
use std::{fmt, io};

use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
use rustls::crypto::{ActiveKeyExchange, CryptoProvider, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::server::Acceptor;
use rustls::{NamedGroup, ProtocolVersion, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// The rustls settings of a server, for clients with and without X25519MLKEM768.
pub struct ServerSettings {
    hybrid: Arc<ServerConfig>,
    other: Arc<ServerConfig>,
}

impl ServerSettings {
    /// Builds both settings, which differ only in their groups and share the resumable sessions.
    pub(super) fn new<E>(
        provider: &Arc<CryptoProvider>,
        build: impl Fn(Arc<CryptoProvider>) -> Result<ServerConfig, E>,
    ) -> Result<Self, E> {
        let other = build(Arc::clone(provider))?;
        let has = |name| provider.kx_groups.iter().any(|group| group.name() == name);
        let kx_groups = HYBRID.into_iter().filter(|group| has(group.name())).collect();
        let mut hybrid = build(Arc::new(CryptoProvider { kx_groups, ..(**provider).clone() }))?;
        hybrid.session_storage = Arc::clone(&other.session_storage);
        hybrid.ticketer = Arc::clone(&other.ticketer);
        Ok(Self { hybrid: Arc::new(hybrid), other: Arc::new(other) })
    }

    #[cfg(all(test, feature = "fips"))]
    pub(super) fn fips(&self) -> bool {
        self.hybrid.fips() && self.other.fips()
    }

    /// Returns a copy of the settings that offers `protocols` in ALPN.
    pub fn with_alpn(&self, protocols: &[&[u8]]) -> Self {
        let with = |config: &Arc<ServerConfig>| {
            let mut config = ServerConfig::clone(config);
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        Self { hybrid: with(&self.hybrid), other: with(&self.other) }
    }

    /// Runs the TLS handshake of a connection.
    ///
    /// # Errors
    ///
    /// The handshake failed. The client has got an alert if one fits.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let started = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let groups = started.client_hello().named_groups();
        let is_hybrid = groups.is_some_and(|it| it.contains(&NamedGroup::X25519MLKEM768));
        let settings = if is_hybrid { &self.hybrid } else { &self.other };
        started.into_stream(Arc::clone(settings)).await
    }
}

/// The groups for clients that support X25519MLKEM768. TLS 1.2 lacks this group, so the other
/// groups are for TLS 1.2 only. With the feature `fips`, X25519 is left out.
static HYBRID: [&dyn SupportedKxGroup; 4] =
    [X25519MLKEM768, &ForTls12(X25519), &ForTls12(SECP256R1), &ForTls12(SECP384R1)];

struct ForTls12(&'static dyn SupportedKxGroup);

impl fmt::Debug for ForTls12 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl SupportedKxGroup for ForTls12 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        self.0.start()
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        self.0.name()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_2 && self.0.usable_for_version(version)
    }
}
