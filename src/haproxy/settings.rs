//! The tables `[limits]` and `[log]` of the new config, and times.

use std::time::Duration;

use super::bind::Bind;
use super::global::CONNECTIONS_MAX;
use super::global::Global;
use super::global::connections;
use super::global::lines_of_global;
use super::proxy::Proxy;
use super::read::File;
use super::report::Line;
use super::report::Notes;

/// The time limits of HAProxy that the relay has too: the name after `timeout`, the key of the new
/// config, the shortest limit that is carried over, in milliseconds, and the reason why shorter
/// ones are not.
const TIMES: [(&str, &str, u64, &str); 5] = [
    ("http-request", "limits.header_timeout", 1, ""),
    (
        "client",
        "limits.body_timeout",
        30_001,
        "a whole body may take 30s here (limits.body_timeout), and a quiet connection stays open \
         for 5m (limits.idle_timeout): kube-apiserver keeps its own for 90s",
    ),
    (
        "http-keep-alive",
        "limits.idle_timeout",
        90_001,
        "limits.idle_timeout stays 5m: kube-apiserver keeps a connection for 90s, and a request is \
         lost if the relay closes the connection first",
    ),
    ("connect", "output.timeouts.connect", 1, ""),
    (
        "server",
        "output.timeouts.request",
        60_000,
        "timeouts.request stays 60s: a shorter one sends a slow consumer the same batch again and \
         again",
    ),
];

/// Reads a line `timeout NAME TIME` that holds for the proxy. `None` if there is no such line, or
/// if the time is not carried over; this is reported. The relay's config accepts neither 0, which
/// means "no limit" in HAProxy, nor more than a year.
pub(super) fn time(proxy: &Proxy<'_>, name: &str, notes: &mut Notes) -> Option<Duration> {
    let line = proxy.last(&["timeout", name])?;
    let (_, key, least, why) = TIMES.iter().find(|(of, ..)| *of == name)?;
    match parsed_time(line.word(2)) {
        None => notes.decide(
            line,
            "not a time from 1ms to a year: the relay's default stays, because each of its waits \
             must end",
        ),
        Some(limit) if limit < Duration::from_millis(*least) => notes.no_effect(line, why),
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
    pub(super) body_timeout: Option<Duration>,
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
        Self {
            max_connections: least.map(|count| count.min(CONNECTIONS_MAX)),
            header_timeout: longest("http-request"),
            body_timeout: longest("client"),
            idle_timeout: longest("http-keep-alive"),
        }
    }
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
        // The `global` section comes last, because its level takes precedence.
        for line in own().chain(lines_of_global(file).filter(|line| line.word(0) == "log")) {
            match line.word(1) {
                "global" => notes.carried(line, "log"),
                "stdout" | "stderr" | "fd@1" | "fd@2" => log.take(line, notes),
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
