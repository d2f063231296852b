//! The directives of the `global` section.

use super::Fate;
use super::Row;
use super::matters;
use super::nothing;

/// The directives of the `global` section of HAProxy 2.6 to 3.0.
pub(super) const ROWS: [Row; 27] = [
    (
        &[
            "ca-base",
            "crt-base",
            "key-base",
            "log",
            "maxconn",
            "presetenv",
            "resetenv",
            "setenv",
            "ssl-default-bind-options",
            "ssl-default-server-options",
            "ssl-server-verify",
            "unsetenv",
        ],
        Fate::Carried,
    ),
    (
        &["maxconnrate", "maxsessrate", "maxsslrate"],
        matters(
            "the relay limits how many events wait (429 when the queue is full), and no rate of \
             connections",
            "if the limit kept a sender from flooding the consumer, set queue.max_bytes and \
             output.concurrency; if it kept strangers out, use a NetworkPolicy",
        ),
    ),
    (
        &["issuers-chain-path"],
        matters(
            "HAProxy added the intermediate certificates of this directory to its certificate",
            "put the whole chain, the leaf first, into the file of listener.tls.certificate",
        ),
    ),
    (
        &["lua-load", "lua-load-per-thread", "lua-prepend-path"],
        matters(
            "the script may change requests or decide about them, and the relay runs no scripts",
            "read the script; what it drops or masks can become [filter]",
        ),
    ),
    (
        &["external-check"],
        nothing("an address that is down is tried by a connection, and used when it answers"),
    ),
    (
        &["chroot", "gid", "group", "uid", "user", "setcap", "set-dumpable"],
        nothing("the pod's security context says as whom the relay runs, and with which rights"),
    ),
    (
        &["daemon", "master-worker", "mworker-max-reloads", "nbproc", "pidfile", "localpeer"],
        nothing("the relay is one process in the foreground, and kubelet or systemd watches it"),
    ),
    (
        &["fd-hard-limit", "ulimit-n", "strict-limits", "prealloc-fd"],
        nothing("the relay raises its limit of open files by itself"),
    ),
    (
        &[
            "busy-polling",
            "cpu-map",
            "cpu-policy",
            "nbthread",
            "noepoll",
            "noevports",
            "nokqueue",
            "nopoll",
            "noreuseport",
            "nosplice",
            "numa-cpu-mapping",
            "thread-group",
            "thread-groups",
            "thread-hard-limit",
        ],
        nothing("the relay uses up to four cores by itself"),
    ),
    (&["stats"], nothing("the relay's metrics and status page are at admin.address")),
    (&["stats-file"], nothing("the relay's counters begin at 0 when it starts")),
    (
        &["grace", "hard-stop-after", "close-spread-time"],
        nothing("shutdown.drain_timeout says how long the relay takes to end, 20s by default"),
    ),
    (
        &["log-send-hostname", "log-tag"],
        nothing("the relay logs to standard error, where the node's log agent names its pod"),
    ),
    (
        &[
            "description",
            "node",
            "anonkey",
            "cluster-secret",
            "server-state-base",
            "server-state-file",
        ],
        nothing("it names this HAProxy, or keeps state for its next start"),
    ),
    (
        &["spread-checks", "max-spread-checks"],
        nothing("the relay judges a server by the answers to its requests, not by checks"),
    ),
    (
        &[
            "ssl-default-bind-ciphers",
            "ssl-default-bind-ciphersuites",
            "ssl-default-bind-client-sigalgs",
            "ssl-default-bind-curves",
            "ssl-default-bind-sigalgs",
            "ssl-default-server-ciphers",
            "ssl-default-server-ciphersuites",
            "ssl-default-server-client-sigalgs",
            "ssl-default-server-curves",
            "ssl-default-server-sigalgs",
            "ssl-security-level",
        ],
        nothing(
            "the relay offers the suites of TLS 1.3, and for TLS 1.2 ECDHE with AES-GCM or \
             ChaCha20, and no others",
        ),
    ),
    (
        &[
            "ssl-dh-param-file",
            "ssl-engine",
            "ssl-load-extra-del-ext",
            "ssl-load-extra-files",
            "ssl-mode-async",
            "ssl-propquery",
            "ssl-provider",
            "ssl-provider-path",
            "ssl-skip-self-issued-ca",
            "ocsp-update.*",
        ],
        nothing("it belongs to OpenSSL; the relay has another TLS library"),
    ),
    (&["default-path"], nothing("the config names the files where the manifests mount them")),
    (&["unix-bind"], nothing("it is for Unix sockets, on which the relay does not listen")),
    (
        &[
            "h1-accept-payload-with-any-method",
            "h1-case-adjust",
            "h1-case-adjust-file",
            "h1-do-not-close-on-insecure-transfer-encoding",
            "h2-workaround-bogus-websocket-clients",
        ],
        nothing("kube-apiserver sends plain HTTP; `option h1-case-adjust-*` is named by itself"),
    ),
    (
        &["http-err-codes", "http-fail-codes"],
        nothing("it says which answers HAProxy counts as errors"),
    ),
    (
        &["httpclient.*"],
        nothing("it is for requests that HAProxy makes by itself, such as those of scripts"),
    ),
    (&["harden.*", "limited-quic", "no-quic"], nothing("the relay speaks no QUIC")),
    (
        &["insecure-fork-wanted", "insecure-setuid-wanted"],
        nothing("the relay starts no other programs"),
    ),
    (
        &[
            "51degrees-*",
            "deviceatlas-*",
            "wurfl-*",
            "debug",
            "expose-deprecated-directives",
            "expose-experimental-directives",
            "no-memory-trimming",
            "nogetaddrinfo",
            "pp2-never-send-local",
            "profiling.*",
            "quiet",
            "resolvers",
            "set-var",
            "set-var-fmt",
            "trace",
            "zero-warning",
        ],
        nothing("it is about HAProxy's own process, or is used only by rules, which are named"),
    ),
    (
        &["maxcomprate", "maxcompcpuusage", "maxpipes", "maxsslconn", "maxzlibmem"],
        nothing(
            "it bounds memory or CPU of HAProxy; the relay's bounds are in [limits] and [queue]",
        ),
    ),
    (
        &["tune.*"],
        nothing("it tunes buffers and timers of HAProxy; the relay's bounds are in [limits]"),
    ),
];
