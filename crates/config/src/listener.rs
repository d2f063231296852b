//! `[[listener]]`: where the relay accepts requests.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::tls;
use super::tls::TlsVersion;
use config_table::problem::{Content, Need};
use config_table::reader::Context;
use config_table::table::{TABLE, Table, optional, required, whole};
use config_table::values;

/// One `[[listener]]`: an address at which the relay accepts requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// The text of the address in the config file, with each `${…}` expanded: the label `listener`
    /// of metrics.
    pub label: String,
    /// The address that the listener binds. With port 0, the kernel chooses a port.
    pub address: SocketAddr,
    /// The path at and below which requests are accepted; it starts with `/`. A request to any
    /// other path gets 404.
    pub path_prefix: String,
    /// The file with the bearer token that each request must present; `None` if requests need none.
    pub bearer_token_file: Option<PathBuf>,
    /// The settings of HTTPS; `None` if the listener speaks plain HTTP.
    pub tls: Option<ListenerTls>,
}

/// The section `[listener.tls]` or `[admin.tls]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerTls {
    /// PEM file with the certificate chain, the leaf first.
    pub certificate: PathBuf,
    /// PEM file with the private key of the leaf.
    pub private_key: PathBuf,
    /// PEM file with the certificate authorities (CAs) of the certificates that clients must
    /// present. `None` if clients need no certificate.
    pub client_ca: Option<PathBuf>,
    /// `true` if the files may be missing at startup. The listener then opens as soon as they
    /// exist.
    pub optional: bool,
    /// The lowest protocol version that the listener accepts.
    pub min_version: TlsVersion,
}

/// The address, and all settings of one `[[listener]]`; each is `None` if it could not be read. The
/// address alone is enough to find conflicts with other addresses.
pub(super) type Draft = (Option<SocketAddr>, Option<Listener>);

pub(crate) fn read(t: &mut Table<'_, '_>) -> Draft {
    let address = t.word(
        required("address", "IP:PORT", "address to listen on for POST requests with events"),
        |text| Ok((text.to_owned(), values::socket_address(text)?)),
    );
    let path_prefix = t.word_or(
        (
            "path_prefix",
            "path",
            "events are accepted at this path and below it; other paths get 404",
        ),
        "/",
        None,
        values::path_prefix,
    );
    let bearer_token_file = t.file(
        optional(
            "bearer_token_file",
            "path",
            "no authentication",
            "file with the bearer token that senders must present (surrounding whitespace is \
             ignored); kube-apiserver sends tokens only over HTTPS",
        ),
        Content::ListenerToken,
    );
    let tls = t.optional_section(
        optional(
            "tls",
            TABLE,
            "plain HTTP",
            "if present, the listener uses HTTPS (h2 and http/1.1)",
        ),
        |t| read_tls(t, false),
    );
    if bearer_token_file.is_some() && tls.is_none() {
        // client-go leaves token, password and client certificate out if the server's URL is not
        // https (clientcmd, `ClientConfig`).
        let message = "kube-apiserver sends no token over plain HTTP, so each of its batches is \
                       refused with 401: set listener.tls, or remove bearer_token_file and use a \
                       NetworkPolicy";
        t.warn("bearer_token_file", message);
    }
    let bound = address.as_ref().map(|(_, address)| *address);
    let read = || {
        let ((label, address), tls) = (address?, whole(tls)?);
        Some(Listener { label, address, path_prefix: path_prefix?, bearer_token_file, tls })
    };
    (bound, read())
}

/// Reads `[listener.tls]`, or `[admin.tls]`, which has no key `optional`. `None` if a required key
/// is missing or wrong.
pub(super) fn read_tls(t: &mut Table<'_, '_>, is_admin: bool) -> Option<ListenerTls> {
    let need = match is_admin {
        true => Need::Admin,
        false if t.is_true("optional") => Need::Later,
        false => Need::Start,
    };
    let certificate = t.file_if(
        required("certificate", "path", "PEM certificate chain, leaf first"),
        Content::Certificate,
        need,
    );
    let private_key =
        t.file_if(required("private_key", "path", "PEM private key"), Content::PrivateKey, need);
    let client_ca = t.file_if(
        optional(
            "client_ca",
            "path",
            "none",
            "PEM CA bundle; if set, clients must present a certificate (mTLS) that is issued by a \
             CA in the bundle, or is itself in the bundle. When the file changes, connections \
             accepted under the old bundle close after their current request",
        ),
        Content::Authorities,
        need,
    );
    let meaning = "`true`: the files may be missing at startup; the listener opens once they exist";
    let optional = !is_admin && t.flag("optional", false, meaning);
    let min_version = tls::min_version(t);
    Some(ListenerTls {
        certificate: certificate?,
        private_key: private_key?,
        client_ca,
        optional,
        min_version,
    })
}

/// Returns the addresses that the relay itself binds, each with the path of its key, such as
/// `listener[0].address`.
pub(super) fn own_addresses(
    listeners: &[Draft],
    admin: &[(&'static str, SocketAddr)],
) -> Vec<(String, SocketAddr)> {
    let listeners = listeners.iter().enumerate().filter_map(|(index, (address, _))| {
        Some((format!("listener[{index}].address"), (*address)?))
    });
    listeners.chain(admin.iter().map(|(key, address)| ((*key).to_owned(), *address))).collect()
}

pub(super) fn conflict(other: &str) -> String {
    format!("uses the same port as {other}: choose another port, or another address")
}

/// Reports each listener whose address the kernel cannot bind together with that of an earlier
/// listener or of `[admin]`. Port 0 never conflicts, because the kernel chooses a free port.
pub(super) fn contradictions(
    cx: &Context<'_>,
    listeners: &[Draft],
    admin: &[(&'static str, SocketAddr)],
) {
    for (index, (address, _)) in listeners.iter().enumerate() {
        let Some(address) = address.filter(|address| address.port() != 0) else { continue };
        let path = format!("listener[{index}].address");
        let first =
            listeners.iter().position(|(other, _)| other.is_some_and(|it| meets(it, address)));
        if let Some(first) = first.filter(|first| *first < index) {
            cx.error(&path, conflict(&cx.with_line(&format!("listener[{first}].address"))));
        }
        for (key, _) in admin.iter().filter(|(_, admin)| meets(*admin, address)) {
            match cx.is_set(key) {
                true => cx.error(key, conflict(&cx.with_line(&path))),
                false => cx.error(&path, conflict(&format!("the default of {key}"))),
            }
        }
    }
}

/// Returns `true` if the kernel refuses to bind one of these addresses while the other is bound.
/// Not for port 0. `[::]` also takes the port for IPv4, unless `net.ipv6.bindv6only` is 1.
pub(super) fn meets(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |it: SocketAddr, other: SocketAddr| {
        it.ip().is_unspecified() && (it.is_ipv6() || other.is_ipv4())
    };
    one == other || (one.port() == other.port() && (covers(one, other) || covers(other, one)))
}
