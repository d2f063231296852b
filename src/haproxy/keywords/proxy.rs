//! The directives of `defaults`, `frontend`, `backend` and `listen` sections, and the sections of
//! other kinds.

use super::Fate;
use super::LOGGED;
use super::Row;
use super::matters;
use super::nothing;

const WHO_MAY_SEND: &str = "allow the senders with a NetworkPolicy (ingress.from), with \
     listener.tls.client_ca or with listener.bearer_token_file";

const OTHER_HEADER: &str = "the consumer got a header with this line, and gets none now";

const FIXED_HEADER: &str = "if the consumer needs it, set a fixed value in output.headers, or have \
     the consumer take the value from the event itself";

/// The directives of proxies of HAProxy 2.6 to 3.0.
pub(super) const ROWS: [Row; 53] = [
    // Carried over by the other files of this module.
    (
        &[
            "balance",
            "bind",
            "default-server",
            "default_backend",
            "disabled",
            "dispatch",
            "enabled",
            "log",
            "maxconn",
            "mode",
            "server",
            "server-template",
            "timeout client",
            "timeout connect",
            "timeout http-keep-alive",
            "timeout http-request",
            "timeout server",
            "use_backend",
            "http-request set-header",
            "http-request add-header",
            "http-request set-path",
            "http-request set-query",
        ],
        Fate::Carried,
    ),
    // Who may send.
    (
        &[
            "http-request allow",
            "http-request deny",
            "http-request reject",
            "http-request silent-drop",
            "http-request tarpit",
            "tcp-request accept",
            "tcp-request reject",
            "tcp-request silent-drop",
            "block",
            "http-request return",
        ],
        matters(
            "the relay has no rules for requests: what HAProxy refused or answered here would be \
             taken and forwarded",
            WHO_MAY_SEND,
        ),
    ),
    (
        &["http-request auth"],
        matters(
            "the relay knows no users and passwords",
            "give the senders a bearer token (listener.bearer_token_file) or client certificates \
             (listener.tls.client_ca)",
        ),
    ),
    (
        &["rate-limit"],
        matters(
            "the relay limits how many events wait (429 when the queue is full), and no rate of \
             connections",
            "if the limit kept a sender from flooding the consumer, set queue.max_bytes and \
             output.concurrency; if it kept strangers out, use a NetworkPolicy",
        ),
    ),
    (
        &["http-request set-bandwidth-limit", "tcp-request set-bandwidth-limit"],
        matters(
            "the relay sends as fast as the consumer takes",
            "limit the consumer's load with output.concurrency and output.batch",
        ),
    ),
    (
        &["tcp-request expect-proxy", "tcp-request expect-netscaler-cip"],
        matters(
            "the relay does not understand the PROXY protocol or the NetScaler header",
            "switch it off at the load balancer in front of the relay",
        ),
    ),
    // Where it goes.
    (
        &["use-server"],
        matters(
            "it sends some requests to one server; the relay uses all servers of the output",
            "if the servers do not store into one place, make an output or a relay for each",
        ),
    ),
    (
        &["redirect", "http-request redirect"],
        matters(
            "HAProxy redirected these requests instead of forwarding them; the relay takes them",
            "remove the listener, or restrict who may reach it with a NetworkPolicy",
        ),
    ),
    (
        &[
            "http-request set-dst",
            "http-request set-dst-port",
            "http-request do-resolve",
            "tcp-request set-dst",
            "tcp-request set-dst-port",
            "tcp-request do-resolve",
            "option transparent",
            "transparent",
            "tcp-request attach-srv",
        ],
        matters(
            "it chooses the consumer for each request; the relay sends to the URLs of its outputs",
            "name every consumer in output.urls",
        ),
    ),
    (
        &["source", "usesrc"],
        matters(
            "HAProxy connected to the consumer from this address",
            "if a firewall or the consumer lets only this address in, let the relay's pods in",
        ),
    ),
    (
        &[
            "http-request set-mark",
            "http-request set-bc-mark",
            "http-request set-fc-mark",
            "http-request set-src",
            "http-request set-src-port",
            "tcp-request set-mark",
            "tcp-request set-bc-mark",
            "tcp-request set-fc-mark",
            "tcp-request set-src",
            "tcp-request set-src-port",
        ],
        matters(
            "it changes the packets' mark or source, by which routers and consumers may decide",
            "check the routes and firewalls between the relay's pods and the consumer",
        ),
    ),
    (
        &["stick match", "stick on", "stick store-request", "stick store-response"],
        matters(
            "HAProxy sent the requests of one sender to one server",
            "if the servers do not store into one place, keep one URL for each output",
        ),
    ),
    (
        &["use-fcgi-app", "filter fcgi-app"],
        matters("the relay does not speak FastCGI", "put a consumer that speaks HTTP in its place"),
    ),
    // What leaves.
    (
        &[
            "http-request del-header",
            "http-request normalize-uri",
            "option http-restrict-req-hdr-names",
        ],
        Fate::NoEffect("the relay passes on no path and no header of the sender"),
    ),
    (
        &["http-request replace-header", "http-request replace-value"],
        matters(
            "it rewrites a header of the sender; the relay passes on no header of the sender",
            FIXED_HEADER,
        ),
    ),
    (
        &[
            "option forwardfor",
            "option forwarded",
            "option originalto",
            "unique-id-header",
            "http-send-name-header",
            "option http-use-proxy-header",
        ],
        matters(OTHER_HEADER, FIXED_HEADER),
    ),
    (
        &[
            "http-request replace-path",
            "http-request replace-pathq",
            "http-request replace-uri",
            "http-request set-pathq",
            "http-request set-uri",
        ],
        matters(
            "the path of the request depended on this line; the relay POSTs to the path of the URL",
            "write the path that the consumer expects into output.urls",
        ),
    ),
    (
        &["http-request set-method"],
        matters("the relay sends POST, whatever the sender's method is", "check the consumer"),
    ),
    (
        &["option h1-case-adjust-bogus-server"],
        matters(
            "the relay writes the names of headers in lower case",
            "check that the consumer takes them, as RFC 9110 §5.1 demands",
        ),
    ),
    (
        &["filter spoe", "http-request send-spoe-group", "tcp-request send-spoe-group"],
        matters(
            "another program heard of each request, and may have refused or changed it",
            "find out what the agent does; what it drops or masks can become [filter]",
        ),
    ),
    (
        &["filter bwlim-in", "filter bwlim-out"],
        matters(
            "the relay sends as fast as the consumer takes",
            "limit the consumer's load with output.concurrency and output.batch",
        ),
    ),
    (
        &[
            "http-request lua.*",
            "tcp-request lua.*",
            "http-request use-service",
            "tcp-request use-service",
        ],
        matters(
            "a script or service answers or changes requests, and the relay runs none",
            "read the script; what it drops or masks can become [filter]",
        ),
    ),
    (
        &["compression algo-req", "compression direction"],
        matters("HAProxy compressed requests to the consumer", "set output.compression"),
    ),
    // What has no effect: answers and logs.
    (
        &[
            "http-response",
            "http-after-response",
            "tcp-response",
            "rspirep",
            "http-request early-hint",
            "compression",
            "filter compression",
            "filter cache",
            "filter comp-req",
            "filter comp-res",
            "http-request cache-use",
        ],
        Fate::NoEffect(
            "it changes the consumer's answer; the relay answers kube-apiserver by itself, when \
             the events are in the queue",
        ),
    ),
    (
        &["errorfile", "errorfiles", "errorloc", "errorloc302", "errorloc303", "http-error"],
        nothing("the relay's errors are Kubernetes Status objects, which kube-apiserver logs"),
    ),
    (
        &[
            "option httplog",
            "option httpslog",
            "option tcplog",
            "option dontlog-normal",
            "option dontlognull",
            "option log-separate-errors",
            "option logasap",
            "log-format",
            "log-format-sd",
            "error-log-format",
            "log-tag",
            "unique-id-format",
            "http-request set-log-level",
            "tcp-request set-log-level",
        ],
        nothing("log.level = \"debug\" writes a line for each request and delivery"),
    ),
    (&["capture", "declare", "http-request capture", "tcp-request capture"], LOGGED),
    (&["email-alert"], nothing("alerts come from Prometheus, with the rules of deploy/monitoring")),
    (
        &["stats", "option socket-stats", "option contstats"],
        nothing("the relay's status page is at admin.address, without a password"),
    ),
    (
        &["monitor-uri", "monitor", "monitor-net", "option http-ignore-probes"],
        nothing("health is at admin.address: /livez and /readyz"),
    ),
    // Checks, retries and balance.
    (
        &[
            "option httpchk",
            "option tcp-check",
            "option log-health-checks",
            "option external-check",
            "option ldap-check",
            "option mysql-check",
            "option pgsql-check",
            "option redis-check",
            "option smtpchk",
            "option spop-check",
            "option ssl-hello-chk",
            "external-check",
            "http-check",
            "tcp-check",
            "timeout check",
        ],
        nothing(
            "an address that is down is tried by a connection (and a TLS handshake), and used \
             again when it answers",
        ),
    ),
    (
        &["retries", "retry-on", "option redispatch", "http-request disable-l7-retry"],
        nothing("the relay keeps what is not delivered, and tries for ever, at each server"),
    ),
    (
        &[
            "timeout queue",
            "http-request set-priority-class",
            "http-request set-priority-offset",
            "tcp-request set-priority-class",
            "tcp-request set-priority-offset",
        ],
        nothing("events that wait stay in the queue, in their order, as long as it has room"),
    ),
    (
        &["timeout", "http-request set-timeout", "clitimeout", "contimeout", "srvtimeout"],
        nothing("the relay has time limits of its own, in [limits] and output.timeouts"),
    ),
    (
        &[
            "cookie",
            "dynamic-cookie-key",
            "persist",
            "force-persist",
            "ignore-persist",
            "option persist",
            "option prefer-last-server",
            "appsession",
        ],
        nothing("kube-apiserver keeps no cookies, so it had no sessions with one server"),
    ),
    (
        &["hash-type", "hash-balance-factor", "hash-key", "hash-preserve-affinity"],
        nothing("it belongs to a `balance` that hashes, which is named by itself"),
    ),
    (
        &["option allbackups"],
        nothing("a `backup` server is named by itself if the order of servers differs"),
    ),
    (
        &["load-server-state-from-file", "server-state-file-name"],
        nothing("the relay learns which servers work when it connects"),
    ),
    (
        &["fullconn", "max-keep-alive-queue", "max-session-srv-conns", "backlog"],
        nothing("it shapes HAProxy's own queues; the relay's bounds are [limits] and [queue]"),
    ),
    // Connections and parsing.
    (
        &[
            "option http-keep-alive",
            "option http-server-close",
            "option httpclose",
            "option http-pretend-keepalive",
            "option http-tunnel",
            "option forceclose",
            "option http-no-delay",
            "option abortonclose",
            "option http-buffer-request",
            "option idle-close-on-response",
            "option independent-streams",
            "option nolinger",
            "option splice-auto",
            "option splice-request",
            "option splice-response",
            "option tcp-smart-accept",
            "option tcp-smart-connect",
            "option tcpka",
            "option clitcpka",
            "option srvtcpka",
            "clitcpka-cnt",
            "clitcpka-idle",
            "clitcpka-intvl",
            "srvtcpka-cnt",
            "srvtcpka-idle",
            "srvtcpka-intvl",
            "http-reuse",
        ],
        nothing("the relay keeps connections by rules of its own"),
    ),
    (
        &[
            "option accept-invalid-http-request",
            "option accept-invalid-http-response",
            "option accept-unsafe-violations-in-http-request",
            "option accept-unsafe-violations-in-http-response",
            "option checkcache",
            "option disable-h2-upgrade",
            "option h1-case-adjust-bogus-client",
            "option http-drop-request-trailers",
            "option http-drop-response-trailers",
        ],
        nothing("kube-apiserver sends valid requests, and the relay takes HTTP/1.1 and h2"),
    ),
    (
        &[
            "http-request wait-for-body",
            "http-request wait-for-handshake",
            "tcp-request inspect-delay",
            "tcp-request switch-mode",
            "http-request strict-mode",
        ],
        nothing("the relay waits for the handshake and for the whole body in any case"),
    ),
    // What only other lines use.
    (
        &[
            "acl",
            "http-request set-var",
            "http-request set-var-fmt",
            "http-request unset-var",
            "tcp-request set-var",
            "tcp-request set-var-fmt",
            "tcp-request unset-var",
        ],
        nothing("by itself it changes nothing; the rules that use it are named by themselves"),
    ),
    (
        &[
            "stick-table",
            "http-request track-sc*",
            "tcp-request track-sc*",
            "http-request sc-*",
            "tcp-request sc-*",
            "http-request set-map",
            "http-request del-map",
            "http-request add-acl",
            "http-request del-acl",
        ],
        nothing("it only counts or remembers; the rules that use it are named by themselves"),
    ),
    (
        &[
            "http-request set-nice",
            "tcp-request set-nice",
            "http-request set-tos",
            "http-request set-bc-tos",
            "http-request set-fc-tos",
            "tcp-request set-tos",
            "tcp-request set-bc-tos",
            "tcp-request set-fc-tos",
        ],
        nothing("it sets a priority of the process or of packets"),
    ),
    (
        &["filter trace", "filter opentracing", "http-request ot-group", "tcp-request ot-group"],
        nothing("it only observes requests"),
    ),
    (&["description", "id", "guid"], nothing("it names the section")),
    (&["bind-process"], nothing("the relay is one process")),
    (
        &["http-request", "tcp-request", "filter"],
        matters(
            "the relay has no rules for requests, and this action is not known here",
            "look up what it does, and whether events would leave in another way without it",
        ),
    ),
    (
        &["stick"],
        matters(
            "HAProxy sent the requests of one sender to one server",
            "if the servers do not store into one place, keep one URL for each output",
        ),
    ),
    (
        &["option http_proxy", "option httpproxy"],
        matters("the relay is no proxy for any URL", "name the consumer in output.urls"),
    ),
    (&["log-balance"], nothing("it is for backends that receive logs")),
    (
        &["tcp-request lua", "http-request lua"],
        matters("the relay runs no scripts", "read the script; what it drops can become [filter]"),
    ),
];

/// The sections that are no proxies.
pub(super) const SECTIONS: [Row; 9] = [
    (
        &["resolvers"],
        nothing("names are resolved at each connection and each 30 s, as resolv.conf says"),
    ),
    (&["peers"], nothing("relays share no state, so they need not know each other")),
    (
        &["ring", "log-profile", "traces"],
        nothing("the relay logs to standard error, where the node's log agent takes it"),
    ),
    (
        &["cache", "http-errors"],
        nothing("it is about answers; the relay answers kube-apiserver by itself"),
    ),
    (&["mailers"], nothing("alerts come from Prometheus, with the rules of deploy/monitoring")),
    (&["userlist", "fcgi-app"], nothing("no line that is carried over uses it")),
    (
        &["log-forward"],
        matters(
            "HAProxy also takes syslog messages here and forwards them",
            "the relay takes audit events only: keep this section in a HAProxy of its own, or \
             have rsyslog do it",
        ),
    ),
    (
        &["program"],
        matters(
            "HAProxy starts this program beside itself",
            "find out if the program has to do with the events, and start it another way",
        ),
    ),
    (
        &["namespace_list"],
        matters(
            "HAProxy reaches servers in other network namespaces",
            "run the relay where it can reach the consumer",
        ),
    ),
];
