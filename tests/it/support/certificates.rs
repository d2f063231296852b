//! A certificate authority for one test, with a valid certificate for each side, and certificates
//! that are each wrong in one way.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

use super::text;

/// The PEM files of a certificate and its key.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pair {
    /// Returns the table `tls` of a listener or an output with this certificate.
    pub(crate) fn tls(&self) -> String {
        let (certificate, key) = (text(&self.certificate), text(&self.key));
        format!("tls = {{ certificate = \"{certificate}\", private_key = \"{key}\" }}\n")
    }

    /// Returns the TLS settings of a server that presents this certificate and requests none from
    /// clients.
    pub(crate) fn server_config(&self) -> Arc<rustls::ServerConfig> {
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(chain(&self.certificate), key(&self.key));
        Arc::new(config.expect("key and certificate fit"))
    }
}

/// All certificates and keys of one test. Dropping this value deletes the files.
pub(crate) struct Certificates {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
    /// The authority that signed every certificate except `wrong_server` and `wrong_client`.
    pub(crate) ca: PathBuf,
    /// An authority that nobody should trust.
    pub(crate) wrong_ca: PathBuf,
    /// A valid server certificate, for localhost and 127.0.0.1.
    pub(crate) server: Pair,
    /// A valid certificate for client authentication. Its common name is `client`.
    pub(crate) client: Pair,
    /// Like `server`, but valid only from 2020 to 2021.
    pub(crate) expired_server: Pair,
    /// Like `client`, but valid only from 2020 to 2021.
    pub(crate) expired_client: Pair,
    /// Like `server`, but signed by `wrong_ca`.
    pub(crate) wrong_server: Pair,
    /// Like `client`, but signed by `wrong_ca`.
    pub(crate) wrong_client: Pair,
    /// Like `server`, but only for the name elsewhere.example.
    pub(crate) elsewhere_server: Pair,
}

/// The names of a server on loopback.
const HERE: [&str; 2] = ["localhost", "127.0.0.1"];

impl Certificates {
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let at = directory.path();
        let (ca, issuer) = authority(at, "ca");
        let (wrong_ca, wrong_issuer) = authority(at, "wrong-ca");
        let mut expired_server = server(&HERE);
        expire(&mut expired_server);
        let mut expired_client = client("client");
        expire(&mut expired_client);
        Self {
            server: issue(at, "server", server(&HERE), &issuer),
            client: issue(at, "client", client("client"), &issuer),
            expired_server: issue(at, "expired-server", expired_server, &issuer),
            expired_client: issue(at, "expired-client", expired_client, &issuer),
            wrong_server: issue(at, "wrong-server", server(&HERE), &wrong_issuer),
            wrong_client: issue(at, "wrong-client", client("client"), &wrong_issuer),
            elsewhere_server: issue(at, "elsewhere", server(&["elsewhere.example"]), &issuer),
            ca,
            wrong_ca,
            issuer,
            directory,
        }
    }

    /// Issues another valid server certificate, as a replacement, in files with this name.
    pub(crate) fn another_server(&self, name: &str) -> Pair {
        issue(self.directory.path(), name, server(&HERE), &self.issuer)
    }

    /// Makes a self-signed certificate for localhost and 127.0.0.1 in files with this name. Like
    /// one of `openssl req -x509`, it is a CA certificate. `change` can change it first.
    pub(crate) fn self_signed(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let mut params = server(&HERE);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = Vec::new();
        change(&mut params);
        let own_key = KeyPair::generate().expect("randomness");
        let certificate = params.self_signed(&own_key).expect("valid parameters");
        store(self.directory.path(), name, &certificate, &own_key)
    }

    /// Issues a valid server certificate that expires in `days` days.
    pub(crate) fn server_for(&self, days: u64) -> Pair {
        let mut params = server(&HERE);
        let left = Duration::from_secs(days * 24 * 60 * 60);
        params.not_after = (SystemTime::now() + left).into();
        issue(self.directory.path(), &format!("{days}-days"), params, &self.issuer)
    }

    /// Issues another valid client certificate, in files with this name.
    #[allow(dead_code, reason = "only the tests of Kafka call it")]
    pub(crate) fn another_client(&self, name: &str) -> Pair {
        issue(self.directory.path(), name, client("client"), &self.issuer)
    }

    /// Returns the TLS settings of a server that presents `pair`. With `require_client`, the server
    /// accepts only clients with a certificate that our `ca` has signed.
    pub(crate) fn server_config(
        &self,
        pair: &Pair,
        require_client: bool,
    ) -> Arc<rustls::ServerConfig> {
        if !require_client {
            return pair.server_config();
        }
        let roots = Arc::new(roots(&self.ca));
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider());
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_client_cert_verifier(verifier.build().expect("a root"))
            .with_single_cert(chain(&pair.certificate), key(&pair.key));
        Arc::new(config.expect("key and certificate fit"))
    }

    /// Returns the TLS settings of a server that presents `pair` and supports only TLS 1.2.
    pub(crate) fn old_server_config(&self, pair: &Pair) -> Arc<rustls::ServerConfig> {
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("the provider has it")
            .with_no_client_auth()
            .with_single_cert(chain(&pair.certificate), key(&pair.key));
        Arc::new(config.expect("key and certificate fit"))
    }

    /// Returns the TLS settings of a client that trusts our `ca`. If the server requests a
    /// certificate, the client presents `pair`, or none if `pair` is `None`.
    pub(crate) fn client_config(&self, pair: Option<&Pair>) -> Arc<rustls::ClientConfig> {
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(roots(&self.ca));
        Arc::new(match pair {
            Some(pair) => builder
                .with_client_auth_cert(chain(&pair.certificate), key(&pair.key))
                .expect("key and certificate fit"),
            None => builder.with_no_client_auth(),
        })
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn authority(at: &Path, name: &str) -> (PathBuf, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // OpenSSL refuses an authority whose key usage does not allow signing.
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("randomness");
    let certificate = params.self_signed(&key).expect("valid parameters");
    let file = at.join(format!("{name}.pem"));
    std::fs::write(&file, certificate.pem()).expect("a writable directory");
    (file, Issuer::new(params, key))
}

fn server(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let common_name = names[0].clone();
    let mut params = CertificateParams::new(names).expect("valid names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn client(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

pub(crate) fn expire(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
}

fn issue(
    at: &Path,
    name: &str,
    mut params: CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
) -> Pair {
    let own_key = KeyPair::generate().expect("randomness");
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&own_key, issuer).expect("valid parameters");
    store(at, name, &certificate, &own_key)
}

/// Writes a certificate and its key into files with this name.
fn store(at: &Path, name: &str, certificate: &rcgen::Certificate, own_key: &KeyPair) -> Pair {
    let pair =
        Pair { certificate: at.join(format!("{name}.crt")), key: at.join(format!("{name}.key")) };
    std::fs::write(&pair.certificate, certificate.pem()).expect("a writable directory");
    std::fs::write(&pair.key, own_key.serialize_pem()).expect("a writable directory");
    pair
}

/// Reads the certificates of a PEM file.
pub(crate) fn chain(file: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn key(file: &Path) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn roots(file: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in chain(file) {
        roots.add(certificate).expect("an authority");
    }
    roots
}
