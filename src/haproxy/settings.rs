//! The settings of `global` and `crt-store` sections that other sections depend on, and the tables
//! `[limits]` and `[log]` of the new config.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bind::Bind;
use super::proxy::Proxy;
use super::read::File;
use super::read::Line;
use super::report::Notes;

/// The settings of the `global` section and of `crt-store` sections that other sections depend on.
#[derive(Debug, Default)]
pub(super) struct Global<'a> {
    pub(super) ca_base: Option<&'a str>,
    pub(super) crt_base: Option<&'a str>,
    key_base: Option<&'a str>,
    /// `true`: `ssl-server-verify none` is set, so the certificates of servers are not checked.
    pub(super) trusts_all_servers: bool,
    pub(super) bind_options: Vec<String>,
    pub(super) server_options: Vec<String>,
    maxconn: Option<u64>,
    /// The certificates of `crt-store` sections (HAProxy 3.0), by the name such as `@store/site`
    /// with which `crt` asks for one: the line, the certificate and the private key.
    stored: BTreeMap<String, (&'a Line, String, String)>,
}

impl<'a> Global<'a> {
    pub(super) fn read(file: &'a File, notes: &mut Notes) -> Self {
        let mut global = Self::default();
        for line in lines_of_global(file) {
            let mut key = "";
            match line.word(0) {
                "ca-base" => global.ca_base = Some(line.word(1)),
                "crt-base" => global.crt_base = Some(line.word(1)),
                "key-base" => global.key_base = Some(line.word(1)),
                "ssl-server-verify" => global.trusts_all_servers = line.word(1) == "none",
                "ssl-default-bind-options" => global.bind_options = line.words[1..].to_vec(),
                "ssl-default-server-options" => global.server_options = line.words[1..].to_vec(),
                "setenv" | "presetenv" => {}
                "maxconn" => {
                    global.maxconn = connections(line, notes);
                    key = "limits.max_connections";
                }
                // `Log::read` reads the `log` lines of all sections together.
                _ => continue,
            }
            notes.carried(line, key);
        }
        for section in file.sections.iter().filter(|section| section.kind() == "crt-store") {
            global.store(section.name(), &section.lines);
        }
        global
    }

    /// Reads the lines of a `crt-store` section.
    fn store(&mut self, store: &str, lines: &'a [Line]) {
        let (mut crt_base, mut key_base) = (self.crt_base, self.key_base);
        for line in lines {
            let after = |name: &str| {
                let at = line.words.iter().position(|word| word == name)?;
                line.words.get(at + 1)
            };
            match (line.word(0), after("crt")) {
                ("crt-base", _) => crt_base = Some(line.word(1)),
                ("key-base", _) => key_base = Some(line.word(1)),
                ("load", Some(crt)) => {
                    let certificate = Self::path(crt_base, crt);
                    let key = after("key").map(|key| Self::path(key_base, key));
                    let key = key.unwrap_or_else(|| certificate.clone());
                    for name in [Some(crt), after("alias")].into_iter().flatten() {
                        let stored = (line, certificate.clone(), key.clone());
                        self.stored.insert(format!("@{store}/{name}"), stored);
                    }
                }
                _ => {}
            }
        }
    }

    /// Returns the files of the certificate and the private key that `crt` asks for.
    pub(super) fn certificate(&self, crt: &str, notes: &mut Notes) -> (String, String) {
        if let Some((line, certificate, key)) = self.stored.get(crt) {
            notes.carried(line, "listener.tls");
            return (certificate.clone(), key.clone());
        }
        let path = Self::path(self.crt_base, crt);
        (path.clone(), path)
    }

    /// Returns the path of a file that a directive names. A relative `path` is joined to `base`, if
    /// there is a base directory such as `ca-base`.
    pub(super) fn path(base: Option<&str>, path: &str) -> String {
        match base {
            Some(base) if !path.starts_with('/') => {
                format!("{}/{path}", base.trim_end_matches('/'))
            }
            _ => path.to_owned(),
        }
    }
}

fn lines_of_global(file: &File) -> impl Iterator<Item = &Line> {
    let sections = file.sections.iter().filter(|section| section.kind() == "global");
    sections.flat_map(|section| &section.lines)
}

/// The largest value that `limits.max_connections` accepts.
const CONNECTIONS_MAX: u64 = 1 << 20;

/// Returns the number in a `maxconn` line, which HAProxy reads up to the first character that is
/// not a digit, but at most [`CONNECTIONS_MAX`]. `None` if there is no number above 0, which is
/// reported.
fn connections(line: &Line, notes: &mut Notes) -> Option<u64> {
    let digits = line.word(1).bytes().take_while(u8::is_ascii_digit).count();
    let count = line.word(1).get(..digits).and_then(|digits| digits.parse().ok());
    let count = count.filter(|&count: &u64| count > 0);
    if count.is_none() {
        notes.decide(line, "limits.max_connections takes a number above 0");
    }
    count.map(|count| count.min(CONNECTIONS_MAX))
}

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
