//! Reads the common parts of `bind` and `server` lines (an address and options), and times.

use std::path::Path;

use super::read::Proxy;
use super::report::{Line, Notes};

/// The settings of a table `[listener.tls]` or `[output.tls]` in the new config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// The file with the certificate chain and the private key. `None` if the options name no such
    /// file.
    pub(super) pem: Option<String>,
    /// The CAs that may sign the peer's certificate. `None`: a listener asks for no certificate,
    /// and an output uses the system's CAs.
    pub(super) ca: Option<String>,
    pub(super) server_name: Option<String>,
    pub(super) min_version: Option<&'static str>,
    pub(super) insecure_skip_verify: bool,
}

/// The options of a `bind` or `server` line.
#[derive(Debug)]
pub(super) struct Settings<'a> {
    pub(super) line: &'a Line,
    /// `None` if neither the line nor its defaults have `ssl`.
    pub(super) tls: Option<Tls>,
    pub(super) is_backup: bool,
    /// `true`: HAProxy sends nothing to this server.
    pub(super) is_unused: bool,
}

/// The options with a value that are known here.
const VALUED: &str = "alpn ca-file ciphers ciphersuites cookie crt crt-list fall id inter log-proto \
    maxconn maxqueue name port resolvers rise sni source ssl-min-ver track verify verifyhost weight";

impl<'a> Settings<'a> {
    /// Reads the options of a `bind` or `server` line, and of the lines with their defaults. The
    /// user has to decide about options that are not carried over.
    pub(super) fn read(proxy: &Proxy<'_>, line: &'a Line, notes: &mut Notes) -> Self {
        let is_bind = line.word(0) == "bind";
        let (first, second, at) = match is_bind {
            true => ("ssl-default-bind-options", "", 2),
            false => ("ssl-default-server-options", "default-server", 3),
        };
        let mut words: Vec<&str> = Vec::new();
        for defaults in proxy.all([first]).chain(proxy.all([second])) {
            words.extend(defaults.words.iter().skip(1).map(String::as_str));
            notes.carried(defaults, "the options of each line");
        }
        words.extend(line.words.iter().skip(at).map(String::as_str));
        let mut path = |base: &str, path: &str| {
            let base = proxy.last([base]);
            base.iter().for_each(|base| notes.carried(base, "paths"));
            let path = Path::new(base.map_or("", |base| base.word(1))).join(path);
            Some(path.to_string_lossy().into_owned())
        };
        let mut settings = Self { line, tls: None, is_backup: false, is_unused: false };
        let mut tls = Tls::default();
        let (mut is_tls, mut verify) = (false, "");
        let mut unknown: Vec<String> = Vec::new();
        let mut words = words.into_iter();
        while let Some(name) = words.next() {
            let is_valued = VALUED.split_whitespace().any(|valued| valued == name);
            let value = if is_valued { words.next() } else { None };
            match (name, value.unwrap_or_default()) {
                ("ssl", _) => is_tls = true,
                ("crt", file) if tls.pem.is_none() && is_file(file) => {
                    tls.pem = path("crt-base", file);
                }
                ("ca-file", "@system-ca") => tls.ca = None,
                ("ca-file", file) if is_file(file) => tls.ca = path("ca-base", file),
                ("verify", value) => verify = value,
                ("ssl-min-ver", "TLSv1.3") => tls.min_version = Some("1.3"),
                ("verifyhost", name) if config::server_name(name).is_ok() => {
                    tls.server_name = Some(name.to_owned());
                }
                ("sni", value) if fixed_name(value).is_some() => {
                    tls.server_name = tls.server_name.take().or_else(|| fixed_name(value));
                }
                ("backup", _) => settings.is_backup = true,
                ("disabled", _) | ("weight", "0") => settings.is_unused = true,
                // The relay needs no setting for these options: for example, it has no TLS below
                // 1.2, offers HTTP/1.1 and HTTP/2 to senders, and accepts IPv4 on IPv6 addresses.
                ("v4v6", _) | ("ssl-min-ver", "TLSv1.2") | ("alpn", "h2,http/1.1" | "http/1.1") => {
                }
                ("fall" | "id" | "inter" | "name" | "port" | "rise", value)
                    if !value.is_empty() => {}
                ("check" | "no-sslv3" | "no-tlsv10" | "no-tlsv11" | "no-tls-tickets", _) => {}
                _ => unknown.extend([Some(name), value].into_iter().flatten().map(str::to_owned)),
            }
        }
        match (is_bind, verify) {
            (true, "required") if tls.ca.is_some() => {}
            (true, "" | "none") => tls.ca = None,
            (false, "none") => tls.insecure_skip_verify = true,
            (false, "" | "required") => {}
            _ => {
                tls.ca = tls.ca.filter(|_| !is_bind);
                unknown.extend(["verify".to_owned(), verify.to_owned()]);
            }
        }
        if !unknown.is_empty() {
            notes.decide_part(line, &unknown, "the relay has no equivalent here");
        }
        settings.tls = is_tls.then_some(tls);
        settings
    }
}

/// Returns `true` if the value of `crt` or `ca-file` looks like the path of a file: it does not end
/// with `/`, and is not a name such as `@store/site`.
fn is_file(path: &str) -> bool {
    !path.is_empty() && !path.starts_with('@') && !path.ends_with('/')
}

/// Returns the name in an expression `str(NAME)`, which is the same for every request.
fn fixed_name(expression: &str) -> Option<String> {
    let name = expression.strip_prefix("str(")?.strip_suffix(')')?;
    config::server_name(name).ok()
}

/// Splits `HOST:PORT`. The host loses its brackets and may be empty. `None` if the port is missing
/// or not from 1 to 65535.
pub(super) fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    let port = port?.parse().ok().filter(|&port| port > 0)?;
    Some((host.trim_matches(['[', ']']), port))
}

/// Returns a time from 1 ms to 1 minute as a value of the relay's config. HAProxy has the same
/// units; a number without a unit is milliseconds.
pub(super) fn short_time(text: &str) -> Option<String> {
    let (number, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let (unit, most) = match unit {
        "ms" | "" => ("ms", 60_000),
        "s" => ("s", 60),
        "m" => ("m", 1),
        _ => return None,
    };
    let number: u64 = number.parse().ok().filter(|number| (1..=most).contains(number))?;
    Some(format!("{number}{unit}"))
}

/// Returns the time of the line `timeout NAME TIME` for the proxy. `None`: the relay's default
/// stays, because there is no such line, or [`short_time`] refuses its time.
pub(super) fn time(proxy: &Proxy<'_>, name: &str, key: &str, notes: &mut Notes) -> Option<String> {
    let line = proxy.last(["timeout", name])?;
    let time = short_time(line.word(2))?;
    notes.carried(line, key);
    Some(time)
}
