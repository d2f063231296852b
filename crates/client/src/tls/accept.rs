//! Accepts TLS connections, and agrees on X25519MLKEM768 with every client that has it.
//!
//! rustls takes the first group of the client's list that it has too. A client whose list has
//! X25519 first would get X25519, which a quantum computer breaks, although both sides can do
//! better. So each client that has X25519MLKEM768 gets settings which have no other group for TLS
//! 1.3. If it has sent no key for this group, it is asked for one (RFC 8446 §4.1.4), which takes
//! another round trip. OpenSSL from 3.5 on and Go from 1.24 on choose in the same way.

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

/// The rustls settings of a server, for both kinds of clients.
pub struct ServerSettings {
    /// For clients that have X25519MLKEM768, which every provider here has.
    hybrid: Arc<ServerConfig>,
    /// For all others.
    other: Arc<ServerConfig>,
}

impl ServerSettings {
    /// Makes both settings by `build`. Only their groups differ, and they share the sessions that
    /// clients may resume.
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

    /// Returns `true` if only what FIPS 140-3 approves is used, in a module that is made for it.
    #[cfg(all(test, feature = "fips"))]
    pub(super) fn fips(&self) -> bool {
        self.hybrid.fips() && self.other.fips()
    }

    /// Returns the settings with another list of protocols for ALPN.
    pub fn with_alpn(&self, protocols: &[&[u8]]) -> Self {
        let with = |config: &Arc<ServerConfig>| {
            let mut config = ServerConfig::clone(config);
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        Self { hybrid: with(&self.hybrid), other: with(&self.other) }
    }

    /// Makes the handshake of a connection.
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

/// The groups for a client that has X25519MLKEM768, if the provider has them: with the feature
/// `fips` it has no X25519. X25519MLKEM768 is not for TLS 1.2.
static HYBRID: [&dyn SupportedKxGroup; 4] =
    [X25519MLKEM768, &ForTls12(X25519), &ForTls12(SECP256R1), &ForTls12(SECP384R1)];

/// A group that is used with TLS 1.2 alone.
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
