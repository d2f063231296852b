//! Writes a config of this relay as TOML.

use std::fmt;
use std::time::Duration;

use super::bind::{Bind, Tls};
use super::output::Output;
use super::report::{Notes, printable};
use super::settings::{Limits, Log};

/// The settings that become the text of the config. Paths are those in the relay's pod.
pub(super) struct Config<'a> {
    pub(super) name: &'a str,
    /// The lines of the report, which become comments above the config.
    pub(super) report: Vec<String>,
    pub(super) notes: &'a Notes,
    pub(super) binds: &'a [Bind<'a>],
    pub(super) limits: Limits,
    pub(super) log: Log,
    pub(super) output: &'a Output,
    pub(super) admin: String,
    pub(super) others: &'a [Other<'a>],
}

/// Tables for another consumer, which become comments at the end of the config.
pub(super) struct Other<'a> {
    /// The reason why they are comments.
    pub(super) why: String,
    pub(super) binds: Vec<Bind<'a>>,
    pub(super) output: Output,
}

impl fmt::Display for Config<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = printable(self.name);
        writeln!(f, "# Made from {name} by `kube-audit-forwarder migrate haproxy`.\n#")?;
        for line in &self.report {
            writeln!(f, "{}", format!("# {line}").trim_end())?;
        }
        for bind in self.binds {
            let from = self.from(&format!("listener {}", bind.address));
            f.write_str(&listener(bind, &from))?;
        }
        let Limits { max_connections, header_timeout, idle_timeout } = self.limits;
        f.write_str(&table(
            "\n[limits]",
            |key| self.from(&format!("limits.{key}")),
            [
                ("max_connections", max_connections.map(|count| count.to_string())),
                ("header_timeout", header_timeout.map(time)),
                ("idle_timeout", idle_timeout.map(time)),
            ],
        ))?;
        let queue = "\n# HAProxy kept nothing. The queue holds what is not delivered yet, in memory; \
                     with `directory` on disk,\n# where it survives a crash.\n[queue]\n\
                     max_bytes = \"256MiB\"";
        writeln!(f, "{queue}\n{}", output(self.output, |key| self.from(key)).trim_end())?;
        let admin = "\n# Status page, /metrics, /livez and /readyz.\n[admin]";
        let keys = [("address", Some(string(&self.admin)))];
        f.write_str(&table(admin, |_| self.from("admin.address"), keys))?;
        let head = format!("\n[log]{}", self.from("log"));
        f.write_str(&table(
            &head,
            no_source,
            [
                ("level", self.log.level.map(string)),
                ("format", self.log.is_json.then(|| string("json"))),
            ],
        ))?;
        for Other { why, binds, output } in self.others {
            writeln!(f, "\n# {}", printable(why))?;
            let listeners = binds.iter().map(|bind| listener(bind, ""));
            let text: String = listeners.chain([self::output(output, no_source)]).collect();
            for line in text.lines().filter(|line| !line.is_empty()) {
                writeln!(f, "# {line}")?;
            }
        }
        Ok(())
    }
}

impl Config<'_> {
    /// Returns a comment with the lines of the haproxy.cfg from which a key has its value; an empty
    /// text if there is none.
    fn from(&self, key: &str) -> String {
        let name = printable(self.name);
        let lines: Vec<String> =
            self.notes.sources(key).map(|line| format!("{name}:{line}")).collect();
        if lines.is_empty() { String::new() } else { format!(" # {}", lines.join(", ")) }
    }
}

/// Returns a table with the keys that have a value; an empty text if none has one. `from` returns
/// the comment that names the lines of the haproxy.cfg for a key.
fn table<const N: usize>(
    head: &str,
    from: impl Fn(&str) -> String,
    keys: [(&str, Option<String>); N],
) -> String {
    let keys = keys.into_iter().filter_map(|(key, value)| value.map(|value| (key, value)));
    let lines: String =
        keys.map(|(key, value)| format!("{key} = {value}{}\n", from(key))).collect();
    if lines.is_empty() { lines } else { format!("{head}\n{lines}") }
}

fn no_source(_: &str) -> String {
    String::new()
}

fn listener(bind: &Bind<'_>, from: &str) -> String {
    let keys = [("address", Some(string(&bind.address)))];
    let listener = table("\n[[listener]]", |_| from.to_owned(), keys);
    let tls = bind.tls.as_ref().map(|it| tls("[listener.tls]", "client_ca", it));
    listener + &tls.unwrap_or_default()
}

/// Returns the table of an output. `from` returns the comment that names the lines of the
/// haproxy.cfg for a key.
fn output(output: &Output, from: impl Fn(&str) -> String) -> String {
    let urls: Vec<String> = output.urls.iter().map(string).collect();
    let headers = output.headers.iter();
    let headers: Vec<String> =
        headers.map(|(name, value)| format!("{} = {}", string(name), string(value))).collect();
    let concurrency = output.concurrency;
    let is_http = output.kind == "http";
    let of_requests = "\n# HAProxy passed on the path and the headers of each request; the relay \
                       POSTs to the path of the URL,\n# with the headers below.";
    let head = format!("\n[[output]]{}{}", from("output"), if is_http { of_requests } else { "" });
    let own = table(
        &head,
        |key| from(&format!("output.{key}")),
        [
            ("name", Some(string(&output.name))),
            ("type", Some(string(output.kind))),
            (if is_http { "urls" } else { "addresses" }, Some(format!("[{}]", urls.join(", ")))),
            ("strategy", output.is_round_robin.then(|| string("round_robin"))),
            (
                "concurrency",
                concurrency.map(|count| format!("{count} # the least maxconn of a server")),
            ),
            ("compression", output.compression.map(string)),
            ("headers", (!headers.is_empty()).then(|| format!("{{ {} }}", headers.join(", ")))),
        ],
    );
    let tls = output.tls.as_ref().map(|it| tls("[output.tls]", "ca", it));
    let timeouts = table(
        "[output.timeouts]",
        |key| from(&format!("output.timeouts.{key}")),
        [("connect", output.connect.map(time))],
    );
    own + &tls.unwrap_or_default() + &timeouts
}

fn tls(head: &str, ca: &str, tls: &Tls) -> String {
    table(
        head,
        no_source,
        [
            ("certificate", tls.certificate.as_ref().map(string)),
            ("private_key", tls.private_key.as_ref().map(string)),
            (ca, tls.ca.as_ref().map(string)),
            ("server_name", tls.server_name.as_ref().map(string)),
            ("min_version", tls.min_version.map(string)),
            ("insecure_skip_verify", tls.insecure_skip_verify.then(|| "true".to_owned())),
        ],
    )
}

fn time(limit: Duration) -> String {
    match limit.as_millis() {
        millis if millis.is_multiple_of(1000) => format!("\"{}s\"", millis / 1000),
        millis => format!("\"{millis}ms\""),
    }
}

/// Returns a text as a basic string of TOML, in quotes. The escapes that serde_json writes are
/// valid in TOML too, so the text is written as JSON; only U+007F needs an escape that JSON does
/// not write.
fn string(text: impl AsRef<str>) -> String {
    serde_json::Value::from(text.as_ref()).to_string().replace('\u{7f}', "\\u007f")
}
