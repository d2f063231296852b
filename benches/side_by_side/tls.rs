//! The certificate, and the TLS settings of the load, the sink and the proxies. The load and the
//! sink speak only TLS 1.3 with AES-256-GCM, so a proxy speaks the same on both sides.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use tempfile::TempDir;

/// A stream of the load or the sink, plain or with TLS.
pub(crate) trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// A self-signed certificate (ECDSA, P-256) for 127.0.0.1, which all programs use.
pub(crate) struct Tls {
    directory: TempDir,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]);
        let rcgen::CertifiedKey { cert, signing_key } = made.expect("a valid name");
        let directory = TempDir::new().expect("a temporary directory");
        let (chain, key) = (cert.pem(), signing_key.serialize_pem());
        // HAProxy needs both in one file.
        for (name, text) in [("chain", &chain), ("key", &key), ("both", &(chain.clone() + &key))] {
            std::fs::write(directory.path().join(name), text).expect("a writable directory");
        }
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a certificate");
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384],
            ..aws_lc_rs::default_provider()
        });
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("a suite of TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("a suite of TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a certificate and its key");
        Self { directory, client: Arc::new(client), server: Arc::new(server) }
    }

    /// Returns the path of the certificate in PEM.
    pub(crate) fn chain(&self) -> PathBuf {
        self.directory.path().join("chain")
    }

    /// Returns the path of the certificate's key in PEM.
    pub(crate) fn key(&self) -> PathBuf {
        self.directory.path().join("key")
    }

    /// Returns the path of a PEM file with the certificate and its key.
    pub(crate) fn both(&self) -> PathBuf {
        self.directory.path().join("both")
    }

    /// Returns the load's side of a connection. The handshake happens with the first write.
    pub(crate) fn connect(&self, stream: TcpStream) -> impl Stream + use<> {
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let client = ClientConnection::new(Arc::clone(&self.client), name);
        StreamOwned::new(client.expect("valid settings"), stream)
    }

    /// Returns the sink's settings, for [`accept`].
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

/// Returns the sink's side of a connection.
pub(crate) fn accept(server: Arc<ServerConfig>, stream: TcpStream) -> impl Stream {
    StreamOwned::new(ServerConnection::new(server).expect("valid settings"), stream)
}
