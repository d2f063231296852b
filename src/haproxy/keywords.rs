//! The directives of HAProxy 2.6 to 3.0, with what becomes of each: it is carried over, it matters
//! and somebody has to decide, or it has no effect on what leaves, where it goes and who may send.
//!
//! The files beside this one carry directives over. They ask this table about each directive that
//! they do not carry over. A directive that the table does not know matters, because nobody knows
//! that it has no effect.
//!
//! Source: HAProxy's configuration manuals 2.6, 2.8 and 3.0, and the lists that `haproxy -dKall`
//! prints of each of these versions.

use super::read::Line;

mod global;
mod options;
mod proxy;

pub(super) use options::BIND;
pub(super) use options::Choice;
pub(super) use options::SERVER;
pub(super) use options::choice;

/// What becomes of a directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The migration carries it over. Where it could not, somebody has to decide.
    Carried,
    /// The relay has nothing that corresponds to it, and that changes what leaves, where it goes,
    /// or who may send. `why` says what changes, and `act` what to do about it.
    Matters { why: &'static str, act: &'static str },
    /// It changes nothing of that; the text says why.
    NoEffect(&'static str),
}

/// A row of a table: the directives that have the same fate. A directive is one or two words, such
/// as `option httplog`. A `*` at its end stands for any rest of the word.
type Row = (&'static [&'static str], Fate);

const fn matters(why: &'static str, act: &'static str) -> Fate {
    Fate::Matters { why, act }
}

const fn nothing(why: &'static str) -> Fate {
    Fate::NoEffect(why)
}

/// The fate of a directive that no table knows.
pub(super) const UNKNOWN: Fate = matters(
    "no version of HAProxy from 2.6 to 3.0 documents this directive, or it is not known here",
    "look up what it does, and whether events would leave in another way without it",
);

/// The fate of a directive that is carried over as a rule, and was not here.
pub(super) const NOT_CARRIED: Fate = matters(
    "the relay could not carry it over here",
    "compare the config above with what the line does, and write what is missing",
);

/// The fate of a directive by which parts of requests go into HAProxy's log.
const LOGGED: Fate = matters(
    "HAProxy wrote parts of requests or answers into its log, so that wherever the log went was a \
     destination of its own; the relay logs no header and no body",
    "if somebody needs them there, make an output for it",
);

/// The directives whose value is the format of HAProxy's log.
const LOG_FORMATS: [&str; 3] = ["log-format", "log-format-sd", "error-log-format"];

/// Parts of a log format that stand for headers, bodies, cookies, captures and variables.
const OF_REQUESTS: [&str; 9] =
    ["%hr", "%hs", "%CC", "%CS", "capture.", "body", "hdr", "cook", "var("];

/// Returns `true` if the log format of this line shows a header, a body or a captured value.
fn shows_requests(line: &Line) -> bool {
    let mut words = line.words.iter().skip(1);
    words.any(|word| OF_REQUESTS.iter().any(|part| word.contains(part)))
}

/// Returns the fate of a line in the `global` section.
pub(super) fn of_global(line: &Line) -> Fate {
    find(&global::ROWS, line).unwrap_or(UNKNOWN)
}

/// Returns the fate of a line in a `defaults`, `frontend`, `backend` or `listen` section.
pub(super) fn of_proxy(line: &Line) -> Fate {
    if LOG_FORMATS.contains(&line.word(0)) && shows_requests(line) {
        return LOGGED;
    }
    find(&proxy::ROWS, line).unwrap_or(UNKNOWN)
}

/// Returns the fate of a section of another kind that belongs to no proxy, such as `resolvers`.
pub(super) fn of_section(head: &Line) -> Fate {
    find(&proxy::SECTIONS, head).unwrap_or(UNKNOWN)
}

/// Finds the row for the first two words of a line, or else the row for its first word. The words
/// `no` and `default` before a directive, the level of a `tcp-request` rule and the arguments in
/// parentheses are passed over.
fn find(rows: &[Row], line: &Line) -> Option<Fate> {
    let mut words = line.words.iter().map(|word| word.split('(').next().unwrap_or_default());
    let mut first = words.next()?;
    if matches!(first, "no" | "default") {
        first = words.next()?;
    }
    let mut second = words.next().unwrap_or_default();
    if matches!(first, "tcp-request" | "tcp-response")
        && matches!(second, "connection" | "session" | "content")
    {
        second = words.next().unwrap_or_default();
    }
    let both = format!("{first} {second}");
    let exact = |name: &str| rows.iter().find(|(names, _)| names.contains(&name));
    let open = |name: &str| {
        rows.iter().find(|(names, _)| {
            names.iter().any(|row| row.strip_suffix('*').is_some_and(|row| name.starts_with(row)))
        })
    };
    let row = exact(&both).or_else(|| open(&both)).or_else(|| exact(first)).or_else(|| open(first));
    row.map(|(_, fate)| *fate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The directives of proxies: the matrix of section 4.1 of the manuals 2.6, 2.8 and 3.0, and
    /// the rules and filters that are newer than 2.6. The installed HAProxy does not list all of
    /// them.
    const PROXY_WORDS: &str = "\
        acl, backlog, balance, bind, bind-process, capture cookie, capture request header, \
        capture response header, clitcpka-cnt, clitcpka-idle, clitcpka-intvl, compression, \
        compression algo-req, compression direction, cookie, declare capture, \
        default-server, default_backend, description, disabled, dispatch, email-alert from, \
        email-alert level, email-alert mailers, email-alert myhostname, email-alert to, \
        enabled, error-log-format, errorfile, errorfiles, errorloc, errorloc302, \
        errorloc303, external-check command, external-check path, filter bwlim-in, \
        filter bwlim-out, filter cache, filter compression, filter fcgi-app, filter spoe, \
        filter trace, force-persist, fullconn, guid, hash-balance-factor, hash-key, \
        hash-type, http-after-response, http-check comment, http-check connect, \
        http-check disable-on-404, http-check expect, http-check send, \
        http-check send-state, http-check set-var, http-check unset-var, http-error, \
        http-request sc-add-gpc, http-request set-bandwidth-limit, \
        http-request set-bc-mark, http-request set-bc-tos, http-request set-fc-mark, \
        http-request set-fc-tos, http-request set-header, http-response, http-reuse, \
        http-send-name-header, id, ignore-persist, load-server-state-from-file, log, \
        log-balance, log-format, log-format-sd, log-tag, max-keep-alive-queue, \
        max-session-srv-conns, maxconn, mode, monitor, monitor fail, monitor-uri, \
        option abortonclose, option accept-invalid-http-request, \
        option accept-invalid-http-response, option allbackups, option checkcache, \
        option clitcpka, option contstats, option disable-h2-upgrade, \
        option dontlog-normal, option dontlognull, option external-check, option forwarded, \
        option forwardfor, option h1-case-adjust-bogus-client, \
        option h1-case-adjust-bogus-server, option http-buffer-request, \
        option http-ignore-probes, option http-keep-alive, option http-no-delay, \
        option http-pretend-keepalive, option http-restrict-req-hdr-names, \
        option http-server-close, option http-use-proxy-header, option httpchk, \
        option httpclose, option httplog, option httpslog, option idle-close-on-response, \
        option independent-streams, option ldap-check, option log-health-checks, \
        option log-separate-errors, option logasap, option mysql-check, option nolinger, \
        option originalto, option persist, option pgsql-check, option prefer-last-server, \
        option redis-check, option redispatch, option smtpchk, option socket-stats, \
        option splice-auto, option splice-request, option splice-response, \
        option spop-check, option srvtcpka, option ssl-hello-chk, option tcp-check, \
        option tcp-smart-accept, option tcp-smart-connect, option tcpka, option tcplog, \
        option transparent, persist rdp-cookie, rate-limit sessions, redirect, retries, \
        retry-on, server, server-state-file-name, server-template, source, srvtcpka-cnt, \
        srvtcpka-idle, srvtcpka-intvl, stats, stats admin, stats auth, stats enable, \
        stats hide-version, stats http-request, stats realm, stats refresh, stats scope, \
        stats show-desc, stats show-legends, stats show-node, stats uri, stick match, \
        stick on, stick store-request, stick store-response, stick-table, \
        tcp-check comment, tcp-check connect, tcp-check expect, tcp-check send, \
        tcp-check send-binary, tcp-check send-binary-lf, tcp-check send-lf, \
        tcp-check set-var, tcp-check unset-var, tcp-request content set-bandwidth-limit, \
        tcp-request content set-bc-mark, tcp-request content set-bc-tos, \
        tcp-request content set-dst, tcp-request content set-fc-mark, \
        tcp-request content set-fc-tos, tcp-request content switch-mode, \
        tcp-request inspect-delay, tcp-request session attach-srv, \
        tcp-request session sc-add-gpc, tcp-request session set-fc-mark, \
        tcp-request session set-fc-tos, tcp-response inspect-delay, timeout check, \
        timeout client, timeout client-fin, timeout client-hs, timeout connect, \
        timeout http-keep-alive, timeout http-request, timeout queue, timeout server, \
        timeout server-fin, timeout tarpit, timeout tunnel, transparent, unique-id-format, \
        unique-id-header, use-fcgi-app, use-server, use_backend";

    /// The directives of `global` in the manual 3.0, with one of each family such as `tune.*`.
    const GLOBAL_WORDS: &str = "\
        51degrees-data-file, busy-polling, ca-base, chroot, close-spread-time, \
        cluster-secret, cpu-map, crt-base, daemon, default-path, description, \
        deviceatlas-json-file, expose-experimental-directives, external-check, \
        fd-hard-limit, gid, grace, group, h1-accept-payload-with-any-method, \
        h1-case-adjust, h1-case-adjust-file, h2-workaround-bogus-websocket-clients, \
        hard-stop-after, harden.reject-privileged-ports.tcp, http-err-codes, \
        http-fail-codes, httpclient.retries, insecure-fork-wanted, insecure-setuid-wanted, \
        issuers-chain-path, key-base, limited-quic, localpeer, log, log-send-hostname, \
        log-tag, lua-load, lua-load-per-thread, lua-prepend-path, master-worker, \
        max-spread-checks, maxcompcpuusage, maxcomprate, maxconn, maxconnrate, maxpipes, \
        maxsessrate, maxsslconn, maxsslrate, maxzlibmem, mworker-max-reloads, nbproc, \
        nbthread, no-memory-trimming, no-quic, node, noepoll, noevports, nogetaddrinfo, \
        nokqueue, nopoll, noreuseport, nosplice, numa-cpu-mapping, ocsp-update.mode, \
        pidfile, pp2-never-send-local, prealloc-fd, presetenv, profiling.tasks, quiet, \
        resetenv, server-state-base, server-state-file, set-dumpable, set-var, set-var-fmt, \
        setcap, setenv, spread-checks, ssl-default-bind-ciphers, \
        ssl-default-bind-ciphersuites, ssl-default-bind-client-sigalgs, \
        ssl-default-bind-curves, ssl-default-bind-options, ssl-default-bind-sigalgs, \
        ssl-default-server-ciphers, ssl-default-server-ciphersuites, \
        ssl-default-server-client-sigalgs, ssl-default-server-curves, \
        ssl-default-server-options, ssl-default-server-sigalgs, ssl-dh-param-file, \
        ssl-engine, ssl-load-extra-del-ext, ssl-load-extra-files, ssl-mode-async, \
        ssl-propquery, ssl-provider, ssl-provider-path, ssl-security-level, \
        ssl-server-verify, ssl-skip-self-issued-ca, stats, stats-file, strict-limits, \
        thread-group, thread-groups, thread-hard-limit, trace, tune.bufsize, \
        tune.quic.retry-threshold, uid, ulimit-n, unix-bind, unsetenv, user, \
        wurfl-data-file, zero-warning";

    fn line(words: &str) -> Line {
        Line { number: 1, words: words.split_whitespace().map(str::to_owned).collect() }
    }

    #[track_caller]
    fn assert_known(words: &str, table: fn(&Line) -> Fate) {
        let is_unknown = |words: &&str| match table(&line(words)) {
            Fate::Matters { why, .. } => why.contains("not known here"),
            Fate::Carried | Fate::NoEffect(_) => false,
        };
        let unknown: Vec<&str> = words.split(", ").filter(is_unknown).collect();
        assert_eq!(unknown, Vec::<&str>::new());
    }

    #[test]
    fn every_directive_of_the_manuals_has_a_row() {
        assert_known(PROXY_WORDS, of_proxy);
        assert_known(GLOBAL_WORDS, of_global);
    }

    #[test]
    fn what_no_manual_has_is_not_known() {
        for words in ["frobnicate 1", "option frobnicate", "http-request frobnicate", "tune"] {
            let Fate::Matters { why, .. } = of_proxy(&line(words)) else { panic!("{words}") };
            assert!(why.contains("not known here"), "{words}: {why}");
        }
    }

    #[test]
    fn no_directive_has_two_rows() {
        for rows in [&global::ROWS[..], &proxy::ROWS[..], &proxy::SECTIONS[..]] {
            let mut words: Vec<&str> =
                rows.iter().flat_map(|(words, _)| words.iter().copied()).collect();
            let count = words.len();
            words.sort_unstable();
            words.dedup();
            assert_eq!(words.len(), count);
        }
    }
}
