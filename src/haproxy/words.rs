//! The directives and options of HAProxy without effect on what is forwarded, to whom, and who may
//! send: logs, checks, answers, and the resources of HAProxy's process.
//!
//! The files beside this one carry directives over. The user has to decide about each directive
//! that none of them carries over and that is not listed here. A directive that is missing here
//! therefore costs the user a look, but hides nothing.
//!
//! The lists are in `words.txt`.

use super::report::Line;

/// The lists of options of `bind` lines: those that `bind` carries over, and those without effect.
pub(super) const BIND: [&str; 2] = ["bind, carried", "bind"];

/// Directives of `defaults`, `frontend`, `backend` and `listen` sections. A `/` stands between the
/// two words by which a directive is known.
const PROXY: &str = "appsession backlog bind-process clitcpka-* clitimeout compression contimeout \
    cookie description dynamic-cookie-key email-alert enabled errorfile errorfiles \
    errorloc errorloc302 errorloc303 external-check filter/cache filter/comp-req filter/comp-res \
    filter/compression filter/opentracing filter/trace force-persist fullconn guid \
    hash-balance-factor hash-key hash-preserve-affinity hash-type http-after-response http-check \
    http-error http-request/add-acl http-request/cache-use http-request/del-acl \
    http-request/del-header http-request/del-map http-request/disable-l7-retry \
    http-request/early-hint http-request/normalize-uri http-request/ot-group http-request/sc-* \
    http-request/set-bc-tos http-request/set-fc-tos http-request/set-log-level \
    http-request/set-map http-request/set-nice http-request/set-priority-class \
    http-request/set-priority-offset http-request/set-timeout http-request/set-tos \
    http-request/set-var http-request/set-var-fmt http-request/strict-mode \
    http-request/track-sc* http-request/unset-var http-request/wait-for-body \
    http-request/wait-for-handshake http-response http-reuse id ignore-persist \
    load-server-state-from-file log-balance log-tag max-keep-alive-queue max-session-srv-conns \
    monitor monitor-net monitor-uri option/abortonclose option/accept-invalid-http-* \
    option/accept-unsafe-violations-in-http-* option/checkcache option/clitcpka option/contstats \
    option/disable-h2-upgrade option/dontlog-normal option/dontlognull option/external-check \
    option/forceclose option/h1-case-adjust-bogus-client option/http-buffer-request \
    option/http-drop-request-trailers option/http-drop-response-trailers \
    option/http-ignore-probes option/http-keep-alive option/http-no-delay \
    option/http-pretend-keepalive option/http-restrict-req-hdr-names option/http-server-close \
    option/http-tunnel option/httpchk option/httpclose option/httplog option/httpslog \
    option/idle-close-on-response option/independent-streams option/ldap-check \
    option/log-health-checks option/log-separate-errors option/logasap option/mysql-check \
    option/nolinger option/persist option/pgsql-check option/prefer-last-server \
    option/redis-check option/redispatch option/smtpchk option/socket-stats option/splice-auto \
    option/splice-request option/splice-response option/spop-check option/srvtcpka \
    option/ssl-hello-chk option/tcp-check option/tcp-smart-accept option/tcp-smart-connect \
    option/tcpka option/tcplog persist retries retry-on rspirep server-state-file-name srvtcpka-* \
    srvtimeout stats stick-table tcp-check tcp-request/inspect-delay tcp-request/ot-group \
    tcp-request/sc-* tcp-request/set-bc-tos tcp-request/set-fc-tos tcp-request/set-log-level \
    tcp-request/set-nice tcp-request/set-priority-class tcp-request/set-priority-offset \
    tcp-request/set-tos tcp-request/set-var tcp-request/set-var-fmt tcp-request/switch-mode \
    tcp-request/track-sc* tcp-request/unset-var tcp-response timeout/check timeout/client-fin \
    timeout/client-hs timeout/queue timeout/server-fin timeout/tarpit timeout/tunnel \
    unique-id-format";

/// Directives that the other files carry over where HAProxy uses them. If such a line is not
/// carried over, it was inherited by a section in which HAProxy does not use it.
const CARRIED: &str = "balance bind default-server default_backend dispatch log maxconn mode server \
    server-template timeout/client timeout/connect timeout/http-keep-alive timeout/http-request \
    timeout/server use_backend";

/// Sections that change nothing unless a line names them: proxies, and what proxies use. The lines
/// that name them are reported by themselves.
const SECTIONS: &str = "backend cache crt-store defaults fcgi-app frontend http-errors listen \
    log-profile mailers peers resolvers ring traces";

/// The options of `bind` lines that `bind` carries over, and those without effect. In lists of
/// options, a `=` at the end of a name says that the next word is the option's value.
pub(super) const BIND: [&str; 2] = [
    "alpn= ca-file= crt= crt-list= default-crt= force-tlsv12 force-tlsv13 maxconn= no-sslv3 \
     no-tlsv10 no-tlsv11 no-tlsv12 ssl ssl-min-ver= v4v6 v6only verify=",
    "allow-0rtt backlog= ciphers= ciphersuites= client-sigalgs= curves= defer-accept ecdhe= \
     expose-fd= gid= group= guid-prefix= id= level= mode= mss= name= nbconn= nice= no-alpn \
     no-ca-names no-tls-tickets npn= ocsp-update= prefer-client-ciphers process= proto= \
     quic-cc-algo= quic-force-retry quic-socket= severity-output= shards= sigalgs= strict-sni \
     tcp-ut= tfo thread= tls-ticket-keys= uid= user=",
];

/// The options of `server` lines that `output` carries over, and those without effect.
pub(super) const SERVER: [&str; 2] = [
    "alpn= backup ca-file= check check-ssl crt= disabled enabled force-tlsv12 force-tlsv13 maxconn= \
     no-backup no-check no-ssl no-sslv3 no-tlsv10 no-tlsv11 no-tlsv12 non-stick proto= sni= ssl \
     ssl-min-ver= stick verify= verifyhost= weight=",
    "addr= agent-addr= agent-check agent-inter= agent-port= agent-send= allow-0rtt check-alpn= \
     check-proto= check-send-proxy check-sni= check-via-socks4 ciphers= ciphersuites= \
     client-sigalgs= cookie= curves= downinter= error-limit= fall= fastinter= guid= hash-key= id= \
     init-addr= inter= log-bufsize= log-proto= max-reuse= maxqueue= minconn= no-agent-check \
     no-alpn no-check-send-proxy no-check-ssl no-send-proxy* no-ssl-reuse no-tfo no-tls-tickets \
     npn= observe= on-error= on-marked-down= on-marked-up= pool-conn-name= pool-low-conn= \
     pool-max-conn= pool-purge-delay= port= resolve-net= resolve-opts= resolve-prefer= resolvers= \
     rise= shard= sigalgs= slowstart= ssl-reuse tcp-ut= tfo tls-tickets track= ws=",
];

/// Returns `true` if the list with the title `list` has the word `name`.
fn has(list: &str, name: &str) -> bool {
    let title = format!("[{list}]");
    let list = include_str!("words.txt").lines().skip_while(|line| *line != title).skip(1);
    let list = list.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with('#'));
    let fits = |entry: &str| match entry.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => entry == name,
    };
    list.flat_map(str::split_whitespace).any(fits)
}

/// Returns `true` if the line of a `global` section has no effect on what is forwarded.
pub(super) fn is_harmless_in_global(line: &Line) -> bool {
    has("global", line.word(0))
}

/// Returns `true` if a section of this kind has no effect on what is forwarded. This is so only if
/// nothing that is carried over uses the section.
pub(super) fn is_harmless_section(kind: &str) -> bool {
    has("sections", kind)
}

/// Returns `true` if the line of a proxy, which is not carried over, has no effect on what is
/// forwarded.
pub(super) fn is_harmless_in_proxy(line: &Line) -> bool {
    // The relay does nothing by itself that such a line could switch off.
    if matches!(line.word(0), "no" | "default") {
        return true;
    }
    // The page with HAProxy's metrics.
    if line.is(&["http-request", "use-service", "prometheus-exporter"]) {
        return true;
    }
    let mut words = line.words.iter().map(|word| word.split('(').next().unwrap_or_default());
    let first = words.next().unwrap_or_default();
    let is_level = |word: &&str| matches!(*word, "connection" | "session" | "content");
    let second = match first {
        "tcp-request" => words.find(|word| !is_level(word)),
        "compression" if matches!(line.word(1), "algo-req" | "direction") => return false,
        _ => words.next(),
    };
    let both = format!("{first}/{}", second.unwrap_or_default());
    [first, &both].iter().any(|name| has("proxy", name) || has("proxy, carried", name))
}

/// Looks up an option in two lists: first the options that are carried over, then those without
/// effect. Returns whether it is in the first list, and whether the next word is its value. `None`
/// if it is in neither list.
fn option(lists: [&str; 2], name: &str) -> Option<(bool, bool)> {
    let name = name.split('(').next().unwrap_or_default();
    let valued = format!("{name}=");
    lists.iter().enumerate().find_map(|(index, list)| match () {
        () if has(list, name) => Some((index == 0, false)),
        () if has(list, &valued) => Some((index == 0, true)),
        () => None,
    })
}

/// An option of a `bind` or `server` line, such as `maxconn 100`. `value` is empty if the option
/// takes no value, or if the value is missing.
#[derive(Debug, Clone)]
pub(super) struct Switch {
    pub(super) name: String,
    pub(super) value: String,
    /// `true`: the option has no effect on what is forwarded.
    pub(super) is_harmless: bool,
}

/// Groups the words of a `bind` or `server` line into options with their values. An option that is
/// in neither of `lists` gets the next word as its value, unless that word is in `lists`.
pub(super) fn switches(words: &[String], lists: [&str; 2]) -> Vec<Switch> {
    let mut switches = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(name) = words.next() {
        let known = option(lists, name);
        let value = match known {
            Some((_, true)) => words.next(),
            Some((_, false)) => None,
            None => words.next_if(|word| option(lists, word).is_none()),
        };
        switches.push(match (known, value) {
            (Some((_, true)), None) => Switch {
                name: format!("{name} (without its value)"),
                value: String::new(),
                is_harmless: false,
            },
            (_, value) => Switch {
                name: name.clone(),
                value: value.cloned().unwrap_or_default(),
                is_harmless: known.is_some_and(|(is_carried, _)| !is_carried),
            },
        });
    }
    switches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> Line {
        Line { number: 1, words: words.split_whitespace().map(str::to_owned).collect() }
    }

    /// Directives that change what leaves, where it goes, or who may send.
    const DANGEROUS: &str = "\
        acl a src 10.0.0.1, block if a, capture request header Host len 9, capture response \
        header Server len 9, error-log-format %hr, tcp-request content capture \
        req.payload(0,0) len 9, compression algo-req gzip, declare capture request len 9, \
        disabled, filter spoe engine a, frobnicate 1, http-request allow, http-request auth, \
        http-request capture src len 9, http-request deny, http-request lua.a, http-request \
        redirect location /, http-request reject, http-request replace-path a b, http-request \
        return, http-request set-dst hdr(a), http-request set-header a b, http-request set-src \
        src, http-request silent-drop, http-request tarpit, http-request use-service lua.a, \
        http-send-name-header X, log-format %hr, option allbackups, option forwardfor, option \
        frobnicate, option transparent, rate-limit sessions 5, redirect scheme https, source \
        10.0.0.1, stick on src, tcp-request connection accept, tcp-request connection expect- \
        proxy layer4, tcp-request connection reject, tcp-request content reject if a, tcp- \
        request content set-dst src, tcp-request session reject, timeout frobnicate 5s, \
        unique-id-header X, use-fcgi-app a, use-server s if a";

    #[test]
    fn no_directive_that_changes_what_is_forwarded_is_without_effect() {
        for words in DANGEROUS.split(", ") {
            assert!(!is_harmless_in_proxy(&line(words)), "{words}");
        }
        for words in ["frobnicate", "issuers-chain-path /a", "lua-load /a", "maxconnrate 5", "tune"]
        {
            assert!(!is_harmless_in_global(&line(words)), "{words}");
        }
        for kind in ["acme", "log-forward", "namespace_list", "program", "userlist"] {
            assert!(!is_harmless_section(kind), "{kind}");
        }
    }

    #[test]
    fn options_have_their_values_and_one_without_its_value_is_never_harmless() {
        let words = "ssl crt /a.pem frobnicate 1 name ssl accept-proxy alpn";
        let switches = switches(&line(words).words, BIND);
        let seen: Vec<_> = switches
            .iter()
            .map(|it| (it.name.as_str(), it.value.as_str(), it.is_harmless))
            .collect();
        let expected = [
            ("ssl", "", false),
            ("crt", "/a.pem", false),
            ("frobnicate", "1", false),
            ("name", "ssl", true),
            ("accept-proxy", "", false),
            ("alpn (without its value)", "", false),
        ];
        assert_eq!(seen, expected);
    }
}
