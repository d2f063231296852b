//! `[output.tls]` and `[source.tls]`: how the relay verifies a peer, and what it presents itself.
//!
//! The settings of listeners are in `listener.rs`; only the protocol version is shared.

use std::path::PathBuf;

use config_table::problem::Content;
use config_table::table::{Key, TABLE, Table, optional};
use config_table::values;

/// The lowest accepted TLS version: `"1.2"` or `"1.3"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 and TLS 1.3 are accepted.
    V1_2,
    /// Only TLS 1.3 is accepted.
    V1_3,
}

/// The sections `[output.tls]` and `[source.tls]`, for connections that the relay opens.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientTls {
    /// PEM file with the certificate authorities (CAs) of the peer's certificate. `None` for those
    /// of the operating system.
    pub ca: Option<PathBuf>,
    /// PEM files with the client's certificate chain and its private key, if it presents a
    /// certificate.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that is sent as SNI, and for which the peer's certificate must be valid. `None` for
    /// the host of the configured address.
    pub server_name: Option<String>,
    /// The lowest accepted protocol version.
    pub min_version: TlsVersion,
    /// `true` if any certificate of the peer is accepted, without verification.
    pub insecure_skip_verify: bool,
}

impl Default for ClientTls {
    fn default() -> Self {
        Self {
            ca: None,
            identity: None,
            server_name: None,
            min_version: TlsVersion::V1_2,
            insecure_skip_verify: false,
        }
    }
}

impl ClientTls {
    /// Reads the section `tls` of an output whose addresses do not say if TLS is used. The presence
    /// of the section turns TLS on.
    pub fn read_optional(t: &mut Table<'_, '_>) -> Option<Self> {
        t.optional_section(tls_key(), Self::keys)
    }

    /// Reads the section `tls` of a Kafka cluster. It has fewer keys than others, because OpenSSL
    /// decides about names and versions.
    pub(super) fn read_for_kafka(t: &mut Table<'_, '_>) -> Option<Self> {
        t.optional_section(tls_key(), |t| {
            let (ca, identity) = (ca(t), identity(t));
            let insecure_skip_verify = insecure_skip_verify(t);
            Self { ca, identity, insecure_skip_verify, ..Self::default() }
        })
    }

    /// Reads the keys of a client's section `tls`.
    pub fn keys(t: &mut Table<'_, '_>) -> Self {
        let ca = ca(t);
        let identity = identity(t);
        let server_name = t.word(
            optional(
                "server_name",
                "name",
                "the host in the address",
                "name for SNI; the certificate must be valid for it",
            ),
            values::server_name,
        );
        let min_version = min_version(t);
        let insecure_skip_verify = insecure_skip_verify(t);
        Self { ca, identity, server_name, min_version, insecure_skip_verify }
    }
}

/// Reads `min_version` of a listener or a client. The default is TLS 1.2.
pub(crate) fn min_version(t: &mut Table<'_, '_>) -> TlsVersion {
    let default = TlsVersion::V1_2;
    let words = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
    t.choice("min_version", &words, Some(default), "minimum TLS version").unwrap_or(default)
}

fn tls_key() -> Key {
    optional("tls", TABLE, "plain TCP", "if present, TLS is used")
}

fn ca(t: &mut Table<'_, '_>) -> Option<PathBuf> {
    t.file(
        optional(
            "ca",
            "path",
            "the system's CAs",
            "PEM bundle with the peer's CA, or with the peer's certificate itself",
        ),
        Content::Authorities,
    )
}

/// Reads the paths of the client's certificate and private key. It is a problem if only one of the
/// two is set.
fn identity(t: &mut Table<'_, '_>) -> Option<(PathBuf, PathBuf)> {
    let certificate = t.file(
        optional(
            "certificate",
            "path",
            "none",
            "PEM client certificate chain; requires `private_key`",
        ),
        Content::Certificate,
    );
    let private_key = t.file(
        optional("private_key", "path", "none", "PEM private key for the client certificate"),
        Content::PrivateKey,
    );
    match (t.is_set("certificate"), t.is_set("private_key")) {
        (true, false) => t.error("certificate", "needs private_key too: set both or neither"),
        (false, true) => t.error("private_key", "needs certificate too: set both or neither"),
        (true, true) | (false, false) => {}
    }
    certificate.zip(private_key)
}

fn insecure_skip_verify(t: &mut Table<'_, '_>) -> bool {
    let insecure_skip_verify = t.flag(
        "insecure_skip_verify",
        false,
        "`true`: accept any certificate; the relay warns at every start",
    );
    if insecure_skip_verify {
        let message = "certificates are not verified, so anyone on the network path can read or \
                       change events: set ca instead";
        t.warn("insecure_skip_verify", message);
    }
    insecure_skip_verify
}
