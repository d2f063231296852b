//! Decides whether the certificate of a peer is trusted. webpki refuses a certificate for a server
//! or client that is also a CA certificate, as `openssl req -x509` makes it. OpenSSL and Go trust a
//! certificate that is itself in the file of trusted CAs. The verifiers here do the same if the
//! certificate equals one in the file byte for byte, and if its dates, its usage and, for a server,
//! its names fit. Without `insecure_skip_verify`, they trust nothing else that webpki refuses.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::extensions::ExtendedKeyUsage;
use x509_parser::time::ASN1Time;

#[derive(Debug, thiserror::Error)]
#[error("UnfitUsage")]
struct UnfitUsage;

/// Checks a certificate that webpki has refused with the error `refused`. Returns `Ok` if it is one
/// of `listed` and its dates and usage fit. Returns `refused` if it is not one of `listed`.
fn is_listed(
    listed: &[CertificateDer<'static>],
    certificate: &CertificateDer<'_>,
    now: UnixTime,
    is_for: fn(&ExtendedKeyUsage<'_>) -> bool,
    refused: Error,
) -> Result<(), Error> {
    if !listed.contains(certificate) {
        return Err(refused);
    }
    let parsed = x509_parser::parse_x509_certificate(certificate);
    let (_, parsed) = parsed.map_err(|_| CertificateError::BadEncoding)?;
    let of = |time: ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    };
    let validity = parsed.validity();
    let (not_before, not_after) = (of(validity.not_before), of(validity.not_after));
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    // RFC 5280 §4.2.1.3 and §4.2.1.12: without these extensions, every use is allowed.
    let signs = parsed.key_usage().is_ok_and(|usage| {
        usage.is_none_or(|it| {
            it.value.digital_signature() || it.value.key_encipherment() || it.value.key_agreement()
        })
    });
    let fits =
        parsed.extended_key_usage().is_ok_and(|usage| usage.is_none_or(|it| is_for(it.value)));
    match signs && fits {
        true => Ok(()),
        false => Err(CertificateError::Other(OtherError(Arc::new(UnfitUsage))).into()),
    }
}

macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signature, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

#[derive(Debug)]
pub(super) struct Servers {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    /// The verifier for the trusted CAs, and the certificates in the file `tls.ca` (none if the CAs
    /// are the system's). `None` with `insecure_skip_verify`: every certificate is accepted, but
    /// the server must still sign the handshake with the key of its certificate.
    pub(super) trusted: Option<(Arc<WebPkiServerVerifier>, Vec<CertificateDer<'static>>)>,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some((webpki, listed)) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        webpki.verify_server_cert(certificate, others, name, ocsp, now).or_else(|refused| {
            is_listed(listed, certificate, now, |usage| usage.server_auth, refused)?;
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            Ok(ServerCertVerified::assertion())
        })
    }

    signatures!();
}

#[derive(Debug)]
pub(super) struct Clients {
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) webpki: Arc<dyn ClientCertVerifier>,
    pub(super) listed: Vec<CertificateDer<'static>>,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.webpki.verify_client_cert(certificate, others, now).or_else(|refused| {
            is_listed(&self.listed, certificate, now, |usage| usage.client_auth, refused)?;
            ParsedCertificate::try_from(certificate)?;
            Ok(ClientCertVerified::assertion())
        })
    }

    signatures!();
}
