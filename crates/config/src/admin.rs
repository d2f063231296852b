//! `[admin]`: the address of metrics, health checks and the status page, and the tokens for them.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::listener::{self, ListenerTls};
use config_table::problem::{Content, Need};
use config_table::reader::Context;
use config_table::table::{TABLE, Table, optional, whole};
use config_table::values;

/// The settings of the section `[admin]`.
///
/// The files of the tokens and of `tls` may be missing or unusable, because the admin address must
/// not keep the relay from forwarding events. Until such a file is good, all requests that it
/// guards are refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    /// The address that the relay binds. Port 0 lets the kernel choose one.
    pub address: SocketAddr,
    /// A second address, without TLS, that serves only `/livez`, `/healthz`, `/readyz` and
    /// `/drained`.
    pub probe_address: Option<SocketAddr>,
    /// The settings of HTTPS; `None` if `address` speaks plain HTTP.
    pub tls: Option<ListenerTls>,
    /// The file with the token for all pages except the probes, `/metrics`, `/tap` and the status
    /// page without data. `None` if no token is needed.
    pub bearer_token_file: Option<PathBuf>,
    /// The file with a token for `/metrics`, which the token of `bearer_token_file` opens too.
    /// `None` if `/metrics` needs no token.
    pub metrics_token_file: Option<PathBuf>,
    /// The file with the token that a tap needs; `None` if nobody can open a tap.
    pub tap_token_file: Option<PathBuf>,
}

/// The addresses to bind, each with its key; and all settings, or `None` if `address` or a required
/// key of `tls` is wrong or missing.
pub(super) type Draft = (Vec<(&'static str, SocketAddr)>, Option<Admin>);

pub(super) const ADDRESS: &str = "admin.address";

const PROBE_ADDRESS: &str = "admin.probe_address";

pub(super) fn read(t: &mut Table<'_, '_>) -> Draft {
    t.section("admin", |t| {
        let address = t.word_or(
            (
                "address",
                "IP:PORT",
                "address for metrics, health checks and the status page; read-only",
            ),
            "127.0.0.1:9090",
            None,
            values::socket_address,
        );
        let meaning = "second address, always without TLS, that serves only /livez, /healthz, \
                       /readyz and /drained; for probes without a client certificate";
        let key = optional("probe_address", "IP:PORT", "probes use `address`", meaning);
        let probe_address = t.word(key, values::socket_address);
        let token = |t: &mut Table<'_, '_>, key, default, meaning| {
            t.file_if(optional(key, "path", default, meaning), Content::ListenerToken, Need::Admin)
        };
        let meaning = "file with the bearer token for pages that may name users: /status, \
                       /status/history, /status/volume, /evidence/ and the status page's data; \
                       without a token in the file, they refuse every request";
        let bearer_token_file = token(t, "bearer_token_file", "no token needed", meaning);
        let meaning = "file with a bearer token for /metrics (the token in `bearer_token_file` \
                       also works); until one of the files has a token, /metrics refuses every \
                       request";
        let metrics_token_file = token(t, "metrics_token_file", "no token needed", meaning);
        let meaning = "file with the bearer token for GET /tap, which shows the events that are \
                       sent, redacted; without a token in the file, nobody can open a tap";
        let tap_token_file = token(t, "tap_token_file", "/tap is off", meaning);
        let meaning = "if present, `address` uses HTTPS; if the files can't be used at startup, it \
                       closes every connection until they can";
        let tls = t.optional_section(optional("tls", TABLE, "plain HTTP", meaning), |t| {
            listener::read_tls(t, true)
        });
        let asks = |tls: &ListenerTls| tls.client_ca.is_some();
        if tls.as_ref().and_then(Option::as_ref).is_some_and(asks) && probe_address.is_none() {
            let message = "the kubelet and healthcheck send no client certificate, so probes of \
                           admin.address fail: set admin.probe_address for them";
            t.warn("tls", message);
        }
        let bound = [(ADDRESS, address), (PROBE_ADDRESS, probe_address)];
        let bound = bound.into_iter().filter_map(|(key, address)| Some((key, address?))).collect();
        let read = || {
            Some(Admin {
                address: address?,
                probe_address,
                tls: whole(tls)?,
                bearer_token_file,
                metrics_token_file,
                tap_token_file,
            })
        };
        (bound, read())
    })
}

/// Reports addresses of `[admin]` that the kernel cannot bind together.
pub(super) fn contradictions(cx: &Context<'_>, bound: &[(&'static str, SocketAddr)]) {
    if let [(key, one), (other_key, other)] = bound
        && one.port() != 0
        && listener::meets(*one, *other)
    {
        cx.error(other_key, listener::conflict(&cx.with_line(key)));
    }
}
