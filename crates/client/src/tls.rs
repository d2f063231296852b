//! Makes TLS settings from PEM files. Reading them blocks, so no thread of the runtime may do it.
//! If a file cannot be used, or does not fit another file, the old settings stay in use.

mod accept;
mod verify;

pub use accept::ServerSettings;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, InvalidMessage, OtherError, RootCertStore, ServerConfig,
    SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use verify::{Clients, Servers};
use x509_parser::extensions::GeneralName;

use audit::time::rfc3339;
use base::named_file;
use config::{ClientTls, ListenerTls, TlsVersion};

/// The reason why no TLS settings could be made from the configured files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file that could not be read.
        file: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The content of a file cannot be used.
    #[error("{} holds {what}", file.display())]
    Content {
        /// The file with this content.
        file: PathBuf,
        /// The end of the message, after "holds", such as `no certificate in PEM`.
        what: String,
    },
    /// rustls does not accept the certificate or CA.
    #[error("{} can't be used: {}", file.display(), fault(source))]
    Unusable {
        /// The certificate or CA file.
        file: PathBuf,
        /// The error of rustls. Its text may call the relay's own certificate a peer's.
        source: rustls::Error,
    },
    /// The private key does not belong to the certificate.
    #[error("{} is not the key for the certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the private key.
        key: PathBuf,
    },
    /// The certificate in the file has expired. The one in use has not, and stays in use.
    #[error("the certificate in {} has expired, and the one in use has not", file.display())]
    Expired {
        /// The file of the new certificate.
        file: PathBuf,
    },
}

impl TlsError {
    /// Returns `true` if a file does not exist, and `false` if a file is wrong or unreadable.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn fault(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(invalid) = error else { return error.to_string() };
    if let CertificateError::Other(other) = invalid {
        return certificate_fault(other);
    }
    if *invalid == CertificateError::BadEncoding {
        return "a certificate in it is not valid X.509: reissue it".to_owned();
    }
    invalid.to_string()
}

fn certificate_fault(error: &OtherError) -> String {
    match error.to_string().as_str() {
        "UnsupportedCertVersion" => {
            "the certificate is not X.509 version 3: reissue it with its names in a \
             subjectAltName, which makes it version 3"
        }
        "CaUsedAsEndEntity" => {
            "the certificate is a CA certificate: issue one for the server or client itself, or \
             name a file with exactly this certificate as the trusted CA"
        }
        "EndEntityUsedAsCa" => {
            "a certificate in the chain is not a CA certificate, but has signed another certificate"
        }
        "UnsupportedCriticalExtension" => {
            "the certificate has a critical extension that is not supported: reissue it without \
             the extension"
        }
        "MalformedExtensions" | "ExtensionValueInvalid" => {
            "the certificate has a malformed extension: reissue it"
        }
        "UnfitUsage" => {
            "its extensions do not allow this use: reissue it with keyUsage digitalSignature, and \
             with serverAuth or clientAuth if it has an extendedKeyUsage"
        }
        "InvalidSerialNumber" => "the certificate's serial number is not valid: reissue it",
        name => return format!("the certificate is not valid ({name})"),
    }
    .to_owned()
}

/// Returns the message, for the log and for `/status`, about a failed TLS handshake with a server
/// or a client. `key` is the key of the config with the CAs; `None` if a command asks.
pub fn handshake_error(error: &io::Error, key: Option<&str>) -> String {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>());
    match source {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => {
            format!("invalid peer certificate: {}", certificate_fault(other))
        }
        // The text of rustls counts the seconds until now, so it would differ each time.
        Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) => format!("its certificate expired on {}", day(*not_after)),
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            not_before,
            ..
        })) => format!("its certificate is not valid before {}", day(*not_before)),
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            let set = key.map_or(String::new(), |key| {
                format!(
                    "; set {key} to a file with the CA. If the file has it, the other side does \
                         not send its intermediate certificate"
                )
            });
            format!("{error}: it is from a CA that is not known here{set}")
        }
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            let plain = key.map_or("give it a URL with http://", |_| "remove TLS (tls, https://)");
            format!(
                "{error}: this port does not speak TLS; {plain}, or use the port that expects it"
            )
        }
        None if error.kind() == io::ErrorKind::UnexpectedEof => format!(
            "{error}: the connection was closed during the handshake, as by a port that does not \
             speak TLS"
        ),
        Some(_) | None => error.to_string(),
    }
}

fn day(time: UnixTime) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()));
    time.map_or_else(String::new, |time| rfc3339(time).chars().take("yyyy-mm-dd".len()).collect())
}

/// Returns notAfter, in seconds since 1970, if the error says that the certificate has expired.
pub fn expired(error: &io::Error) -> Option<i64> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) =
        error
    else {
        return None;
    };
    not_after.as_secs().try_into().ok()
}

/// The contents of a listener's files (certificate, key, CA) or of a client's (CA, certificate,
/// key), in this order. Optional files may be missing.
type Contents = Vec<Vec<u8>>;

/// The maximum size of a file with certificates or a key, in bytes.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    named_file::read(file, FILE_BYTES_MAX)
        .map_err(|source| TlsError::Read { file: file.to_owned(), source })
}

/// TLS settings: `C` is the config from which they were made, and `R` the form for a handshake.
pub struct Made<C, R> {
    config: C,
    made_of: Contents,
    rustls: Arc<R>,
    not_after: Option<i64>,
}

/// The TLS settings of a listener.
pub type Server = Made<ListenerTls, ServerSettings>;

/// The TLS settings of an output, or of any other client.
pub type Client = Made<ClientTls, ClientConfig>;

impl<C: PartialEq, R> Made<C, R> {
    /// Returns the settings for the next handshake.
    pub fn settings(&self) -> Arc<R> {
        Arc::clone(&self.rustls)
    }

    /// Returns the notAfter of the relay's own certificate, in seconds since 1970, if it is known.
    pub fn not_after(&self) -> Option<i64> {
        self.not_after
    }

    fn unless_same(
        current: Option<&Arc<Self>>,
        (config, contents): (&C, Contents),
        file: Option<&Path>,
        make: impl FnOnce(Contents) -> Result<Self, TlsError>,
    ) -> Result<Arc<Self>, TlsError> {
        if let Some(current) = current.filter(|it| it.config == *config && it.made_of == contents) {
            return Ok(Arc::clone(current));
        }
        let made = make(contents)?;
        if let Some(file) = file {
            refuse_expired(file, made.not_after, current.and_then(|it| it.not_after))?;
        }
        Ok(Arc::new(made))
    }
}

impl Server {
    /// Makes settings from the files. Returns `current` if they and the config have not changed.
    ///
    /// # Errors
    ///
    /// [`TlsError`]: a file cannot be used, or an expired certificate would replace a valid one.
    pub fn read(config: &ListenerTls, current: Option<&Arc<Self>>) -> Result<Arc<Self>, TlsError> {
        let mut contents = vec![read(&config.certificate)?, read(&config.private_key)?];
        if let Some(ca) = &config.client_ca {
            contents.push(read(ca)?);
        }
        let made_from = (config, contents);
        Self::unless_same(current, made_from, Some(&config.certificate), |contents| {
            Self::make(config, contents)
        })
    }

    fn make(config: &ListenerTls, contents: Contents) -> Result<Self, TlsError> {
        let chain = certificates(&config.certificate, &contents[0])?;
        let key = private_key(&config.private_key, &contents[1])?;
        let not_after = chain.first().and_then(not_after);
        let clients = match &config.client_ca {
            None => None,
            Some(file) => {
                let listed = certificates(file, &contents[2])?;
                let roots = Arc::new(roots(file, &listed)?);
                let webpki = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .build()
                    .map_err(|error| content(file, error.to_string()))?;
                let algorithms = provider().signature_verification_algorithms;
                Some(Arc::new(Clients { algorithms, webpki, listed }))
            }
        };
        let rustls = ServerSettings::new(&provider(), |provider| {
            let builder = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(versions(config.min_version))
                .map_err(|error| unusable(&config.certificate, error))?;
            let builder = match &clients {
                None => builder.with_no_client_auth(),
                Some(clients) => builder.with_client_cert_verifier(Arc::<Clients>::clone(clients)),
            };
            let mut rustls = builder
                .with_single_cert(chain.clone(), key.clone_key())
                .map_err(|source| no_pair(&config.certificate, &config.private_key, source))?;
            rustls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Ok(rustls)
        })?;
        Ok(Self { config: config.clone(), made_of: contents, rustls: Arc::new(rustls), not_after })
    }

    /// Returns the PEM text of the CA for client certificates; `None` if the config has none.
    pub fn client_ca(&self) -> Option<&[u8]> {
        self.config.client_ca.as_ref().and(self.made_of.get(2)).map(Vec::as_slice)
    }
}

impl Client {
    /// Makes settings from the files. Returns `current` if neither the files nor the config have
    /// changed. If no CA is configured, the system's root certificates are used; a change of only
    /// these certificates is not noticed. `alpn` lists the protocols that the handshake offers, and
    /// must be the list with which `current` was made.
    ///
    /// # Errors
    ///
    /// [`TlsError`]: a file cannot be used, or an expired certificate would replace a valid one.
    pub fn read(
        config: &ClientTls,
        alpn: &[&[u8]],
        current: Option<&Arc<Self>>,
    ) -> Result<Arc<Self>, TlsError> {
        let mut contents = Vec::new();
        if let Some(ca) = &config.ca {
            contents.push(read(ca)?);
        }
        if let Some((certificate, key)) = &config.identity {
            contents.extend([read(certificate)?, read(key)?]);
        }
        let certificate = config.identity.as_ref().map(|(file, _)| file.as_path());
        Self::unless_same(current, (config, contents), certificate, |contents| {
            Self::make(config, alpn, contents)
        })
    }

    /// Makes TLS settings from the contents of the configured files: the CA, the certificate and
    /// the key, in this order. Paths are only for messages. Without a CA, reads the system's CAs.
    ///
    /// # Errors
    ///
    /// [`TlsError`]: the content of a file cannot be used.
    pub fn of_contents(
        config: &ClientTls,
        alpn: &[&[u8]],
        contents: Vec<Vec<u8>>,
    ) -> Result<Arc<Self>, TlsError> {
        Self::make(config, alpn, contents).map(Arc::new)
    }

    fn make(config: &ClientTls, alpn: &[&[u8]], contents: Contents) -> Result<Self, TlsError> {
        let identity = config.identity.as_ref().map(|(file, _)| file);
        let here = config.ca.as_ref().or(identity).cloned().unwrap_or_default();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions(config.min_version))
            .map_err(|error| unusable(&here, error))?;
        let trusted = match (&config.ca, contents.first()) {
            _ if config.insecure_skip_verify => None,
            (Some(file), Some(pem)) => {
                let listed = certificates(file, pem)?;
                Some((roots(file, &listed)?, listed))
            }
            _ => {
                // A bad system certificate is ignored, because the others are still usable.
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Some((roots, Vec::new()))
            }
        };
        let verifier = |(roots, listed)| {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
            let verifier = verifier.build();
            let none = |error| content(&here, format!("no usable roots: {error}"));
            Ok::<_, TlsError>((verifier.map_err(none)?, listed))
        };
        let trusted = trusted.map(verifier).transpose()?;
        let algorithms = provider().signature_verification_algorithms;
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Servers { algorithms, trusted }));
        let mut not_after_own = None;
        let mut rustls = match &config.identity {
            None => builder.with_no_client_auth(),
            Some((file, key_file)) => {
                let [.., chain, key] = contents.as_slice() else {
                    return Err(content(file, "no client certificate"));
                };
                let chain = certificates(file, chain)?;
                not_after_own = chain.first().and_then(not_after);
                builder
                    .with_client_auth_cert(chain, private_key(key_file, key)?)
                    .map_err(|source| no_pair(file, key_file, source))?
            }
        };
        rustls.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Self {
            config: config.clone(),
            made_of: contents,
            rustls: Arc::new(rustls),
            not_after: not_after_own,
        })
    }

    /// Returns the name that the server's certificate must have: the configured name, or `host`.
    ///
    /// # Errors
    ///
    /// The name is neither a DNS name nor an IP address.
    pub fn server_name(
        &self,
        host: &str,
    ) -> Result<ServerName<'static>, rustls_pki_types::InvalidDnsNameError> {
        ServerName::try_from(self.config.server_name.as_deref().unwrap_or(host).to_owned())
    }
}

fn content(file: &Path, what: impl Into<String>) -> TlsError {
    TlsError::Content { file: file.to_owned(), what: what.into() }
}

fn unusable(file: &Path, source: rustls::Error) -> TlsError {
    TlsError::Unusable { file: file.to_owned(), source }
}

fn no_pair(certificate: &Path, key: &Path, source: rustls::Error) -> TlsError {
    if matches!(source, rustls::Error::InconsistentKeys(_)) {
        return TlsError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() };
    }
    unusable(certificate, source)
}

/// Returns an error if an expired certificate would replace a valid one, because peers may refuse
/// it. `new` and `current` are notAfter in seconds since 1970. If `current` is `None`, as at
/// startup, an expired certificate is accepted, because not every client checks.
pub(crate) fn refuse_expired(
    file: &Path,
    new: Option<i64>,
    current: Option<i64>,
) -> Result<(), TlsError> {
    let now = UnixTime::now().as_secs();
    let is_over = |time: i64| u64::try_from(time).is_ok_and(|time| time < now);
    if new.is_some_and(is_over) && current.is_some_and(|time| !is_over(time)) {
        return Err(TlsError::Expired { file: file.to_owned() });
    }
    Ok(())
}

/// The certificates in a file, read as a listener or an output reads them.
pub struct Chain(Vec<CertificateDer<'static>>);

/// The validity of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validity {
    /// notBefore, in seconds since 1970.
    pub from: i64,
    /// notAfter, in seconds since 1970.
    pub until: i64,
    /// notBefore and notAfter as readable texts.
    pub words: (String, String),
}

impl Chain {
    /// Reads the certificates of a file. Blocks the thread.
    ///
    /// # Errors
    ///
    /// The file cannot be read, has a broken PEM section, or contains no certificate.
    pub fn read(file: &Path) -> Result<Self, TlsError> {
        certificates(file, &read(file)?).map(Self)
    }

    /// Returns the validity of each certificate, in the order of the file.
    ///
    /// # Errors
    ///
    /// The number, from 1, of the first certificate that is not valid X.509.
    pub fn validity(&self) -> Result<Vec<Validity>, usize> {
        let validity = |(index, certificate): (usize, &CertificateDer<'static>)| {
            let parsed = x509_parser::parse_x509_certificate(certificate);
            let (_, parsed) = parsed.map_err(|_| index + 1)?;
            let validity = parsed.validity();
            let (from, until) = (validity.not_before, validity.not_after);
            Ok(Validity {
                from: from.timestamp(),
                until: until.timestamp(),
                words: (from.to_string(), until.to_string()),
            })
        };
        self.0.iter().enumerate().map(validity).collect()
    }

    /// Returns `true` if the first certificate has a `subjectAltName` or cannot be parsed.
    pub fn has_names(&self) -> bool {
        let Some(leaf) = self.0.first() else { return true };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(leaf) else { return true };
        !matches!(parsed.subject_alternative_name(), Ok(None))
    }

    /// Returns the DNS names and IP addresses of the first certificate. `*.` becomes `any.`,
    /// because nobody connects to a name with a wildcard.
    pub fn names(&self) -> Vec<String> {
        let Some(leaf) = self.0.first() else { return Vec::new() };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(leaf) else { return Vec::new() };
        let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
        let name = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
                Ok(bytes) => Some(IpAddr::from(bytes).to_string()),
                Err(_) => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            },
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::URI(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => None,
        };
        let names = names.value.general_names.iter().filter_map(name);
        names.map(|name| name.replacen("*.", "any.", 1)).collect()
    }

    /// Returns the numbers, from 1, of the readable certificates that are neither marked as a CA
    /// nor self-signed. An old CA's certificate may lack the mark, but is self-signed.
    pub fn leaves(&self) -> Vec<usize> {
        let is_leaf = |certificate: &CertificateDer<'static>| {
            x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| {
                let constraints = parsed.basic_constraints();
                let is_ca = match constraints {
                    Ok(Some(constraints)) => constraints.value.ca,
                    Ok(None) => false,
                    Err(_) => true,
                };
                !is_ca && parsed.subject() != parsed.issuer()
            })
        };
        let numbered = self.0.iter().zip(1..);
        numbered.filter(|(it, _)| is_leaf(it)).map(|(_, number)| number).collect()
    }

    /// Checks that the certificates can be used as CAs. `file` is only named in the message.
    ///
    /// # Errors
    ///
    /// A certificate cannot be used as a CA, for example because it is not valid X.509.
    pub fn roots(&self, file: &Path) -> Result<(), TlsError> {
        roots(file, &self.0).map(drop)
    }

    /// Checks that `key_file` fits the first certificate, which is from `file`. Blocks the thread.
    ///
    /// # Errors
    ///
    /// The key file cannot be read, contains no usable key, or contains another certificate's key.
    pub fn fits(&self, file: &Path, key_file: &Path) -> Result<(), TlsError> {
        let key = private_key(key_file, &read(key_file)?)?;
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(rustls::DEFAULT_VERSIONS)
            .map(|builder| builder.with_no_client_auth())
            .and_then(|builder| builder.with_single_cert(self.0.clone(), key))
            .map(drop)
            .map_err(|source| no_pair(file, key_file, source))
    }
}

/// Checks that a file contains a private key. Blocks the thread.
///
/// # Errors
///
/// The file cannot be read, or contains no private key that can be used.
pub fn check_private_key(file: &Path) -> Result<(), TlsError> {
    private_key(file, &read(file)?).map(drop)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

static TLS13_ONLY: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match min {
        TlsVersion::V1_2 => rustls::DEFAULT_VERSIONS,
        TlsVersion::V1_3 => &TLS13_ONLY,
    }
}

fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| content(file, format!("a broken PEM section: {error}")))?;
    if !chain.is_empty() {
        return Ok(chain);
    }
    let what = if PrivateKeyDer::from_pem_slice(pem).is_ok() {
        "a private key and no certificate (are certificate and private_key swapped?)"
    } else {
        "no certificate in PEM"
    };
    Err(content(file, what))
}

fn private_key(file: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        if CertificateDer::from_pem_slice(pem).is_ok() {
            let what =
                "a certificate and no private key (are certificate and private_key swapped?)";
            return content(file, what);
        }
        if memchr::memmem::find(pem, b"-----BEGIN ENCRYPTED PRIVATE KEY").is_some() {
            let what = "a private key that needs a passphrase: store it without one, as `openssl \
                        pkey` writes it";
            return content(file, what);
        }
        content(file, format!("no private key in PEM: {error}"))
    })?;
    // Without this check, rustls would later say only that certificate and key can't be used.
    provider().key_provider.load_private_key(key.clone_key()).map_err(|_| {
        let what = "a private key that can't be used: RSA of 2048 to 4096 bits, ECDSA with P-256 or \
                    P-384, and Ed25519 can";
        content(file, what)
    })?;
    Ok(key)
}

fn roots(file: &Path, certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).map_err(|error| unusable(file, error))?;
    }
    Ok(roots)
}

/// Returns notAfter (RFC 5280 §4.1.2.5), in seconds since 1970, if the certificate can be parsed.
pub fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests;
