//! The tables `[limits]` and `[log]` of the new config, and times.

use std::time::Duration;

use super::bind::Bind;
use super::global::{CONNECTIONS_MAX, Global, connections, lines_of_global};
use super::proxy::Proxy;
use super::read::{File, Section};
use super::report::{Line, Notes};

/// A time limit of HAProxy that the relay has too. The relay's default stays instead of a limit
/// below `least` or above `most`, each in milliseconds.
struct Time {
    /// The name after `timeout`.
    name: &'static str,
    key: &'static str,
    least: u64,
    /// The reason in the report why a shorter limit has no effect.
    short: &'static str,
    most: u64,
    /// The reason in the report why somebody has to decide about a longer one.
    long: &'static str,
}

const TIMES: [Time; 5] = [
    Time {
        name: "http-request",
        key: "limits.header_timeout",
        least: 1,
        short: "",
        most: 60_000,
        long: "limits.header_timeout stays 10s: a sender that does not end the head of its request \
               would keep the connection as long",
    },
    Time {
        name: "client",
        key: "limits.body_timeout",
        least: 60_001,
        short: "a whole body may take 30s here (limits.body_timeout), after which kube-apiserver \
                has given up; a quiet connection stays open for 5m (limits.idle_timeout): \
                kube-apiserver keeps its own for 90s",
        most: 60_000,
        long: "limits.body_timeout stays 30s, after which kube-apiserver has given up: a sender \
               that does not end its body would keep the connection as long",
    },
    Time {
        name: "http-keep-alive",
        key: "limits.idle_timeout",
        least: 90_001,
        short: "limits.idle_timeout stays 5m: kube-apiserver keeps a connection for 90s, and a \
                request is lost if the relay closes the connection first",
        most: 3_600_000,
        long: "limits.idle_timeout stays 5m: quiet connections count for limits.max_connections",
    },
    Time {
        name: "connect",
        key: "output.timeouts.connect",
        least: 1,
        short: "",
        most: 60_000,
        long: "timeouts.connect stays 5s: the relay has no health check that marks a server as \
               down, so every event would wait as long for a server that does not answer",
    },
    Time {
        name: "server",
        key: "output.timeouts.request",
        least: 60_001,
        short: "timeouts.request stays 60s: a shorter one sends a slow consumer the same batch \
                again and again",
        most: 60_000,
        long: "timeouts.request stays 60s: the relay has no health check that marks a server as \
               down, so every event would wait as long for a server that takes requests and does \
               not answer. Set a longer one only if the consumer needs it for a batch",
    },
];

/// Reads a line `timeout NAME TIME` that holds for the proxy. `None` if there is no such line, or
/// if the time is not carried over; this is reported. The relay's config accepts neither 0, which
/// means "no limit" in HAProxy, nor more than a year.
pub(super) fn time(proxy: &Proxy<'_>, name: &str, notes: &mut Notes) -> Option<Duration> {
    let line = proxy.last(&["timeout", name])?;
    let Time { key, least, short, most, long, .. } = TIMES.iter().find(|time| time.name == name)?;
    match parsed_time(line.word(2)) {
        None => notes.decide(
            line,
            "not a time from 1ms to a year: the relay's default stays, because each of its waits \
             must end",
        ),
        Some(limit) if limit < Duration::from_millis(*least) => notes.no_effect(line, short),
        Some(limit) if limit > Duration::from_millis(*most) => notes.decide(line, long),
        Some(limit) => {
            notes.carried(line, key);
            return Some(limit);
        }
    }
    None
}

/// Returns a time in HAProxy's syntax, such as `30s`. A number without a unit is in milliseconds.
fn parsed_time(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    // HAProxy ignores everything after the unit.
    let millis = match unit.as_bytes() {
        [b'u', b's', ..] => number.div_ceil(1000),
        [b'm', b's', ..] | [] => number,
        [b's', ..] => number.checked_mul(1000)?,
        [b'm', ..] => number.checked_mul(60_000)?,
        [b'h', ..] => number.checked_mul(3_600_000)?,
        [b'd', ..] => number.checked_mul(86_400_000)?,
        _ => return None,
    };
    (1..=31_536_000_000).contains(&millis).then(|| Duration::from_millis(millis))
}

/// The settings of `[limits]` in the new config. `None` means that the setting keeps its default.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) max_connections: Option<u64>,
    pub(super) header_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
}

impl Limits {
    pub(super) fn read(
        fronts: &[&Proxy<'_>],
        binds: &[Bind<'_>],
        global: &Global<'_>,
        notes: &mut Notes,
    ) -> Self {
        // HAProxy limits the connections of each frontend and of all together; the relay limits
        // only those of all together.
        let mut sum = Some(0_u64);
        for front in fronts {
            let line = front.last(&["maxconn"]);
            let count = line.and_then(|line| {
                notes.carried(line, "limits.max_connections");
                connections(line, notes)
            });
            sum = sum.zip(count).map(|(sum, count)| sum.saturating_add(count));
        }
        let of_binds: Option<u64> = binds.iter().map(|bind| bind.maxconn).sum();
        let bounds = [sum, of_binds, global.maxconn].into_iter().flatten();
        let least = bounds.filter(|&count| count > 0).min();
        // Of several frontends, the longest limit holds, so that no sender is cut off earlier than
        // before.
        let mut longest = |name| fronts.iter().filter_map(|front| time(front, name, notes)).max();
        // Only reported: the limit of a body keeps its default.
        longest("client");
        Self {
            max_connections: least.map(|count| count.min(CONNECTIONS_MAX)),
            header_timeout: longest("http-request"),
            idle_timeout: longest("http-keep-alive"),
        }
    }
}

/// The reason in the report about a line `log ADDRESS` of a file that reads the bodies of requests.
const OF_LOG: &str = "HAProxy reads bodies in this file, and the lines of its log may have them: if \
                      the events left this way, an output of type syslog sends each event to a \
                      syslog server over TCP. The relay's own log goes to standard error";

/// The reason in the report about a line `log ring@NAME`. A log-format with the bodies is a common
/// way to get them to a consumer.
const OF_RING: &str = "the relay logs to standard error, and nothing goes to the servers of this \
                       ring. If its lines have the bodies of requests (log-format), the events \
                       left this way: take the output of type syslog at the end of the config into \
                       use, which sends each event to these servers";

/// Returns the sections `ring` that a line `log ring@NAME` of the file uses.
pub(super) fn rings(file: &File) -> impl Iterator<Item = &Section> {
    let used = |ring: &&Section| {
        let lines = file.sections.iter().flat_map(|section| &section.lines);
        let mut targets = lines.filter(|line| line.word(0) == "log").map(|line| line.word(1));
        targets.any(|target| target.strip_prefix("ring@") == Some(ring.name()))
    };
    file.sections.iter().filter(|section| section.kind() == "ring").filter(used)
}

/// The settings of `[log]` in the new config that differ from their defaults.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) level: Option<&'static str>,
    pub(super) is_json: bool,
}

impl Log {
    pub(super) fn read(file: &File, proxies: &[&Proxy<'_>], notes: &mut Notes) -> Self {
        let mut log = Self::default();
        let own = || proxies.iter().flat_map(|proxy| proxy.all(&["log"]));
        let is_body = |word: &String| word.contains("req.body") && !word.contains("req.body_");
        let has_bodies =
            proxies.iter().flat_map(|it| &it.lines).any(|it| it.words.iter().any(is_body));
        // The `global` section comes last, because its level takes precedence.
        for line in own().chain(lines_of_global(file).filter(|line| line.word(0) == "log")) {
            match line.word(1) {
                "global" => notes.carried(line, "log"),
                "stdout" | "stderr" | "fd@1" | "fd@2" => log.take(line, notes),
                target if target.starts_with("ring@") => notes.decide(line, OF_RING),
                _ if has_bodies => notes.decide(line, OF_LOG),
                _ => notes.no_effect(line, "the relay logs to standard error"),
            }
        }
        log
    }

    /// Reads the format and the level from a line `log TARGET [len N] [format F] … FACILITY [LEVEL
    /// [MINLEVEL]]`.
    fn take(&mut self, line: &Line, notes: &mut Notes) {
        let format = line.words.iter().position(|word| word == "format");
        self.is_json |= format.is_some_and(|place| line.word(place + 1) == "json");
        let level = line.words.iter().skip(2).find_map(|word| match word.as_str() {
            "emerg" | "alert" | "crit" | "err" => Some("error"),
            "warning" => Some("warn"),
            "notice" | "info" => Some("info"),
            "debug" => Some("debug"),
            _ => None,
        });
        self.level = level.or(self.level);
        notes.carried(line, "log");
    }
}
