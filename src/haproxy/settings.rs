//! The tables `[limits]` and `[log]` of the new config, and times.

use std::time::Duration;

use super::bind::Bind;
use super::global::CONNECTIONS_MAX;
use super::global::Global;
use super::global::connections;
use super::global::lines_of_global;
use super::proxy::Proxy;
use super::read::File;
use super::read::Line;
use super::report::Notes;

/// Reads a time in HAProxy's syntax, such as `30s`, from a line `timeout NAME TIME`; a number
/// without a unit is in milliseconds. `None` if the relay's config does not take the time: if it is
/// zero (which means "no limit" in HAProxy), above a year, or not a time. This is reported.
pub(super) fn time(line: &Line, notes: &mut Notes) -> Option<Duration> {
    let limit = parsed_time(line.word(2));
    if limit.is_none() {
        notes.decide(
            line,
            "not a time from 1ms to a year: the relay's default stays, because each of its waits \
             must end",
        );
    }
    limit
}

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
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) max_connections: Option<u64>,
    pub(super) header_timeout: Option<Duration>,
    pub(super) body_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
}

/// The time for which kube-apiserver keeps an idle connection open. A server that closes the
/// connection earlier may break kube-apiserver's next request.
const KEPT_BY_SENDERS: Duration = Duration::from_secs(90);

/// The relay's default value of `limits.body_timeout`.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

impl Limits {
    pub(super) fn read(
        fronts: &[&Proxy<'_>],
        binds: &[Bind<'_>],
        global: &Global<'_>,
        notes: &mut Notes,
    ) -> Self {
        let mut limits = Self::default();
        // HAProxy bounds each frontend and all of them together; the relay bounds all together.
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
        limits.max_connections = least.map(|count| count.min(CONNECTIONS_MAX));
        for name in ["http-request", "client", "http-keep-alive"] {
            for line in fronts.iter().filter_map(|front| front.last(&["timeout", name])) {
                limits.take(line, notes);
            }
        }
        limits
    }

    /// Reads a time limit of a frontend. Of several frontends, the one with the longest limit
    /// holds, so that no sender is cut off earlier than before.
    fn take(&mut self, line: &Line, notes: &mut Notes) {
        let Some(limit) = time(line, notes) else { return };
        let (setting, key, least, why) = match line.word(1) {
            "http-request" => {
                (&mut self.header_timeout, "limits.header_timeout", Duration::ZERO, "")
            }
            "client" => (
                &mut self.body_timeout,
                "limits.body_timeout",
                BODY_TIMEOUT,
                "a whole body may take 30s here (limits.body_timeout), and a quiet connection \
                 stays open for 5m (limits.idle_timeout): kube-apiserver keeps its own for 90s",
            ),
            _ => (
                &mut self.idle_timeout,
                "limits.idle_timeout",
                KEPT_BY_SENDERS,
                "limits.idle_timeout stays 5m: kube-apiserver keeps a connection for 90s, and a \
                 request is lost if the relay closes the connection first",
            ),
        };
        if limit <= least {
            return notes.no_effect(line, why);
        }
        *setting = (*setting).max(Some(limit));
        notes.carried(line, key);
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
