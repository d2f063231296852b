//! `[output.tls]` and `[source.tls]`: how the relay verifies a peer, and what it presents itself.
//!
//! The settings of listeners are in `listener.rs`; only the protocol version is shared.

use std::path::PathBuf;

use super::problem::Content;
use super::table::Key;
use super::table::TABLE;
use super::table::Table;
use super::table::optional;
use super::table::whole;
use super::values;

/// The lowest TLS version that is accepted, as the config names it: `"1.2"` or `"1.3"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 and 1.3.
    V1_2,
    /// TLS 1.3 only.
    V1_3,
}

const TLS_VERSIONS: [(&str, TlsVersion); 2] =
    [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];

/// The settings of `[output.tls]` and `[source.tls]`: the relay is the client.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientTls {
    /// PEM file with the authorities that the peer's chain must end in; `None`: the system's roots.
    pub ca: Option<PathBuf>,
    /// PEM files with the client's certificate chain and its private key; `None`: the client
    /// presents no certificate.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that is sent as SNI and must be in the peer's certificate; `None`: the host of the
    /// address.
    pub server_name: Option<String>,
    /// The lowest protocol version that is accepted.
    pub min_version: TlsVersion,
    /// True: any certificate of the peer is accepted.
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
    /// Reads the section `tls` of an output whose addresses do not say if TLS is used: TLS is used
    /// if the section is present. `Some(None)`: there is no such section. `None`: the section has a
    /// problem.
    pub fn read_optional(t: &mut Table<'_, '_>) -> Option<Option<Self>> {
        whole(t.optional_section(tls_key(), Self::keys))
    }

    /// Reads the section `tls` of a Kafka cluster, which has fewer keys: OpenSSL decides about
    /// names and versions. `None`: there is no such section; `Some(None)`: it has a problem.
    pub(super) fn read_for_kafka(t: &mut Table<'_, '_>) -> Option<Option<Self>> {
        t.optional_section(tls_key(), |t| {
            let (ca, identity) = (ca(t), identity(t));
            let insecure_skip_verify = insecure_skip_verify(t);
            Some(Self { ca, identity, insecure_skip_verify, ..Self::default() })
        })
    }

    /// Reads the keys of the section. `None`: there is a problem.
    pub(super) fn keys(t: &mut Table<'_, '_>) -> Option<Self> {
        let ca = ca(t);
        let identity = identity(t);
        let server_name = t.word(
            optional(
                "server_name",
                "name",
                "the host dialled",
                "SNI, and the name that is verified",
            ),
            values::server_name,
        );
        let min_version = min_version(t);
        let insecure_skip_verify = insecure_skip_verify(t);
        Some(Self { ca, identity, server_name, min_version: min_version?, insecure_skip_verify })
    }
}

/// Reads `min_version`, of a listener or a client.
pub(super) fn min_version(t: &mut Table<'_, '_>) -> Option<TlsVersion> {
    t.choice("min_version", &TLS_VERSIONS, Some(TlsVersion::V1_2), "lowest version of TLS")
}

fn tls_key() -> Key {
    optional("tls", TABLE, "plain TCP", "its presence means TLS")
}

fn ca(t: &mut Table<'_, '_>) -> Option<PathBuf> {
    t.file(
        optional(
            "ca",
            "path",
            "the system's roots",
            "PEM bundle that the peer's chain must end in",
        ),
        Content::Authorities,
        true,
    )
}

/// Reads the client's certificate and its key: both, or `None`.
fn identity(t: &mut Table<'_, '_>) -> Option<(PathBuf, PathBuf)> {
    let certificate = t.file(
        optional("certificate", "path", "none", "PEM chain of the client, with private_key"),
        Content::Certificate,
        true,
    );
    let private_key = t.file(
        optional("private_key", "path", "none", "PEM key of certificate"),
        Content::PrivateKey,
        true,
    );
    match (t.is_set("certificate"), t.is_set("private_key")) {
        (true, false) => t.error("certificate", "needs its private_key, allowed: both or none"),
        (false, true) => t.error("private_key", "needs its certificate, allowed: both or none"),
        (true, true) | (false, false) => {}
    }
    certificate.zip(private_key)
}

fn insecure_skip_verify(t: &mut Table<'_, '_>) -> bool {
    let insecure_skip_verify = t.flag(
        "insecure_skip_verify",
        false,
        "true: any certificate will do; warned of at every start",
    );
    if insecure_skip_verify {
        let message = "anybody in between can read and change the audit trail, better: ca";
        t.warn("insecure_skip_verify", message);
    }
    insecure_skip_verify
}
