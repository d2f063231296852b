//! The options of `bind` and `server` lines.

use super::Fate;
use super::matters;
use super::nothing;

/// Options that have the same fate.
#[derive(Debug)]
pub(in crate::haproxy) struct Choice {
    /// The names of options that take no value.
    alone: &'static [&'static str],
    /// The names of options that are followed by one word, their value.
    valued: &'static [&'static str],
    pub(in crate::haproxy) fate: Fate,
}

/// Returns the row of a table for an option, and `true` if the option is followed by a value.
/// `None` if no version of HAProxy from 2.6 to 3.0 has such an option. Arguments in parentheses, as
/// in `set-proxy-v2-tlv-fmt(0x20)`, are passed over.
pub(in crate::haproxy) fn choice(
    table: &'static [Choice],
    name: &str,
) -> Option<(&'static Choice, bool)> {
    let name = name.split('(').next().unwrap_or_default();
    table.iter().find_map(|row| match () {
        () if row.alone.contains(&name) => Some((row, false)),
        () if row.valued.contains(&name) => Some((row, true)),
        () => None,
    })
}

const fn row(
    alone: &'static [&'static str],
    valued: &'static [&'static str],
    fate: Fate,
) -> Choice {
    Choice { alone, valued, fate }
}

const CIPHERS: Fate = nothing(
    "the relay offers the suites of TLS 1.3, and for TLS 1.2 ECDHE with AES-GCM or ChaCha20, and \
     no others",
);

const OPENSSL: Fate = nothing("it belongs to OpenSSL; the relay has another TLS library");

const NEWER: Fate =
    nothing("the relay also speaks the newer versions of TLS, which HAProxy did not");

const NO_REVOCATION: &str = "the relay reads no revocation lists";

const KERNEL: Fate = nothing("it tunes sockets of HAProxy; the kernel's values hold");

/// The options of `bind` lines.
pub(in crate::haproxy) static BIND: &[Choice] = &[
    row(
        &[
            "ssl",
            "force-tlsv12",
            "force-tlsv13",
            "no-sslv3",
            "no-tlsv10",
            "no-tlsv11",
            "no-tlsv12",
            "v4v6",
            "v6only",
        ],
        &["alpn", "ca-file", "crt", "crt-list", "default-crt", "maxconn", "ssl-min-ver", "verify"],
        Fate::Carried,
    ),
    row(
        &["accept-proxy"],
        &["accept-netscaler-cip"],
        matters(
            "the relay does not understand the PROXY protocol or the NetScaler header",
            "switch it off at the load balancer in front of the relay",
        ),
    ),
    row(
        &[],
        &["crl-file"],
        matters(
            NO_REVOCATION,
            "a sender whose client certificate is revoked may send: use a CA that signs for these \
             senders only, and certificates that expire soon",
        ),
    ),
    row(
        &[],
        &["ca-ignore-err", "crt-ignore-err"],
        matters(
            "HAProxy let some senders in although their certificate has an error; the relay \
             refuses them",
            "give these senders a valid client certificate",
        ),
    ),
    row(
        &[],
        &["ca-verify-file"],
        matters(
            "HAProxy also trusts the CAs of this file, in addition to those of ca-file",
            "put the certificates of both files into the file of listener.tls.client_ca",
        ),
    ),
    row(
        &["generate-certificates"],
        &["ca-sign-file", "ca-sign-pass"],
        matters(
            "HAProxy makes a certificate for each name that a sender asks for",
            "make one certificate with all names (deploy/certificate.sh does it in a cluster)",
        ),
    ),
    row(
        &["strict-sni"],
        &[],
        nothing("a listener has one certificate, which each sender gets and may check"),
    ),
    row(
        &["transparent"],
        &["interface", "namespace"],
        matters(
            "HAProxy took connections of this interface or namespace only",
            "name the interface's own IP address in listener.address, or use a NetworkPolicy",
        ),
    ),
    row(&[], &["ssl-max-ver"], NEWER),
    row(&["force-sslv3", "force-tlsv10", "force-tlsv11", "no-tlsv13"], &[], NEWER),
    row(
        &["prefer-client-ciphers"],
        &["ciphers", "ciphersuites", "client-sigalgs", "curves", "ecdhe", "sigalgs"],
        CIPHERS,
    ),
    row(
        &["allow-0rtt", "no-alpn", "no-ca-names", "no-tls-tickets"],
        &["npn", "ocsp-update", "tls-ticket-keys"],
        OPENSSL,
    ),
    row(
        &["defer-accept", "tfo"],
        &["backlog", "mss", "nice", "process", "shards", "tcp-ut", "thread"],
        KERNEL,
    ),
    row(&[], &["guid-prefix", "id", "name"], nothing("the relay names a listener by its address")),
    row(
        &[],
        &["expose-fd", "gid", "group", "level", "mode", "severity-output", "uid", "user"],
        nothing("it is for Unix sockets"),
    ),
    row(
        &["quic-force-retry"],
        &["quic-cc-algo", "quic-socket"],
        nothing("the relay speaks no QUIC, and an address with QUIC is named by itself"),
    ),
    row(&[], &["proto"], nothing("the relay takes HTTP/1.1 and h2 on each listener")),
    row(
        &[],
        &["nbconn"],
        nothing("it is for reverse HTTP, and such an address is named by itself"),
    ),
];

/// The options of `server` and `default-server` lines.
pub(in crate::haproxy) static SERVER: &[Choice] = &[
    row(
        &[
            "backup",
            "disabled",
            "enabled",
            "force-tlsv12",
            "force-tlsv13",
            "no-backup",
            "no-ssl",
            "no-sslv3",
            "no-tlsv10",
            "no-tlsv11",
            "no-tlsv12",
            "ssl",
            "stick",
            "non-stick",
        ],
        &[
            "alpn",
            "ca-file",
            "crt",
            "maxconn",
            "proto",
            "sni",
            "ssl-min-ver",
            "verify",
            "verifyhost",
            "weight",
        ],
        Fate::Carried,
    ),
    row(
        &[
            "agent-check",
            "check",
            "check-send-proxy",
            "check-ssl",
            "check-via-socks4",
            "no-agent-check",
            "no-check",
            "no-check-send-proxy",
            "no-check-ssl",
        ],
        &[
            "addr",
            "agent-addr",
            "agent-inter",
            "agent-port",
            "agent-send",
            "check-alpn",
            "check-proto",
            "check-sni",
            "downinter",
            "error-limit",
            "fall",
            "fastinter",
            "inter",
            "observe",
            "on-error",
            "on-marked-down",
            "on-marked-up",
            "port",
            "rise",
            "slowstart",
            "track",
        ],
        nothing(
            "a server is down when a request fails, and up when a connection to it succeeds again",
        ),
    ),
    row(
        &["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl", "send-proxy-v2-ssl-cn"],
        &["proxy-v2-options", "set-proxy-v2-tlv-fmt"],
        matters(
            "the relay does not speak the PROXY protocol",
            "switch it off at the consumer, which would otherwise refuse the connection",
        ),
    ),
    row(
        &["no-send-proxy", "no-send-proxy-v2", "no-send-proxy-v2-ssl", "no-send-proxy-v2-ssl-cn"],
        &[],
        nothing("the relay never sends the PROXY protocol"),
    ),
    row(
        &[],
        &["crl-file"],
        matters(
            NO_REVOCATION,
            "if the consumer's certificate may be revoked, use a CA that signs for it only",
        ),
    ),
    row(
        &[],
        &["socks4"],
        matters(
            "HAProxy reached the server through a SOCKS4 proxy",
            "let the relay's pods reach the consumer directly, or set output.proxy (HTTP CONNECT)",
        ),
    ),
    row(
        &[],
        &["interface", "namespace", "source", "usesrc"],
        matters(
            "HAProxy connected to the consumer from this address or namespace",
            "if a firewall or the consumer lets only this address in, let the relay's pods in",
        ),
    ),
    row(
        &[],
        &["redir"],
        matters(
            "HAProxy redirected GET requests to this address",
            "the relay takes POST only; let clients that read ask the consumer",
        ),
    ),
    row(&["force-sslv3", "force-tlsv10", "force-tlsv11", "no-tlsv13"], &["ssl-max-ver"], NEWER),
    row(&[], &["ciphers", "ciphersuites", "client-sigalgs", "curves", "sigalgs"], CIPHERS),
    row(
        &["allow-0rtt", "no-alpn", "no-ssl-reuse", "no-tls-tickets", "ssl-reuse", "tls-tickets"],
        &["npn"],
        OPENSSL,
    ),
    row(&["no-tfo", "tfo"], &["tcp-ut"], KERNEL),
    row(
        &[],
        &[
            "max-reuse",
            "maxqueue",
            "minconn",
            "pool-conn-name",
            "pool-low-conn",
            "pool-max-conn",
            "pool-purge-delay",
        ],
        nothing("output.concurrency is the number of requests at once, 4 by default"),
    ),
    row(
        &[],
        &["cookie"],
        nothing("kube-apiserver keeps no cookies, so it had no sessions with one server"),
    ),
    row(
        &[],
        &["init-addr", "resolve-net", "resolve-opts", "resolve-prefer", "resolvers"],
        nothing("names are resolved at each connection and each 30 s, as resolv.conf says"),
    ),
    row(
        &[],
        &["guid", "hash-key", "id", "log-bufsize", "log-proto", "shard", "ws"],
        nothing("it names the server, or is for other protocols"),
    ),
];
