//! Writes a config of this relay as TOML.

use std::fmt;
use std::time::Duration;

use super::bind::Bind;
use super::output::Output;
use super::report::Notes;
use super::report::printable;
use super::settings::Limits;
use super::settings::Log;

/// The settings that become the text of the config. Paths are those in the relay's pod.
pub(super) struct Config<'a> {
    pub(super) name: &'a str,
    /// The lines of the report, which stand above the config as comments.
    pub(super) report: Vec<String>,
    pub(super) notes: &'a Notes,
    pub(super) binds: &'a [Bind<'a>],
    pub(super) limits: Limits,
    pub(super) log: Log,
    pub(super) output: &'a Output,
    /// The path of the private key of the output's certificate.
    pub(super) key: Option<&'a str>,
    pub(super) admin: String,
    pub(super) others: &'a [Other<'a>],
}

/// Tables for another consumer, which stand at the end of the config as comments.
pub(super) struct Other<'a> {
    /// The reason why they are comments.
    pub(super) why: String,
    pub(super) binds: Vec<Bind<'a>>,
    pub(super) output: Output,
    pub(super) key: Option<String>,
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
        self.limits(f)?;
        writeln!(
            f,
            "\n# HAProxy kept nothing. The queue holds what is not delivered yet, in memory; with \
             `directory` on disk,\n# where it survives a crash.\n[queue]\nmax_bytes = \"256MiB\""
        )?;
        f.write_str(&output(self.output, self.key, |key| self.from(key)))?;
        writeln!(
            f,
            "\n# Status page, /metrics, /livez and /readyz.\n[admin]\naddress = {}{}",
            string(&self.admin),
            self.from("admin.address")
        )?;
        self.log(f)?;
        for Other { why, binds, output, key } in self.others {
            writeln!(f, "\n# {}", printable(why))?;
            let mut text = String::new();
            binds.iter().for_each(|bind| text.push_str(&listener(bind, "")));
            text.push_str(&self::output(output, key.as_deref(), |_| String::new()));
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

    fn limits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limits { max_connections, header_timeout, body_timeout, idle_timeout } = self.limits;
        let times = [
            ("header_timeout", header_timeout),
            ("body_timeout", body_timeout),
            ("idle_timeout", idle_timeout),
        ];
        if max_connections.is_none() && times.iter().all(|(_, limit)| limit.is_none()) {
            return Ok(());
        }
        writeln!(f, "\n[limits]")?;
        if let Some(count) = max_connections {
            writeln!(f, "max_connections = {count}{}", self.from("limits.max_connections"))?;
        }
        for (key, limit) in times {
            f.write_str(&time(key, limit, &self.from(&format!("limits.{key}"))))?;
        }
        Ok(())
    }

    fn log(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Log { level, is_json } = &self.log;
        if level.is_none() && !is_json {
            return Ok(());
        }
        writeln!(f, "\n[log]{}", self.from("log"))?;
        level.iter().try_for_each(|level| writeln!(f, "level = {}", string(level)))?;
        if *is_json { writeln!(f, "format = \"json\"") } else { Ok(()) }
    }
}

fn listener(bind: &Bind<'_>, from: &str) -> String {
    let mut written = format!("\n[[listener]]\naddress = {}{from}\n", string(&bind.address));
    if let Some(tls) = &bind.tls {
        written.push_str("[listener.tls]\n");
        written.push_str(&text("certificate", Some(&tls.certificate)));
        written.push_str(&text("private_key", Some(&tls.private_key)));
        written.push_str(&text("client_ca", tls.client_ca.as_deref()));
        written.push_str(&text("min_version", tls.min_version));
    }
    written
}

/// Returns the table of an output. `from` gives the comment with the sources of a key.
fn output(output: &Output, key: Option<&str>, from: impl Fn(&str) -> String) -> String {
    let urls: Vec<String> = output.urls.iter().map(|url| string(url)).collect();
    let mut written = format!(
        "\n[[output]]{}\nname = {}\ntype = \"http\"\n# HAProxy passed on the path and the headers \
         of each request; the relay POSTs to the path of the URL,\n# with the headers below.\n\
         urls = [{}]{}\n",
        from("output"),
        string(&output.name),
        urls.join(", "),
        from("output.urls")
    );
    if output.is_round_robin {
        let from = from("output.strategy");
        written.push_str(&format!("strategy = \"round_robin\"{from}\n"));
    }
    if let Some(count) = output.concurrency {
        written.push_str(&format!("# The least maxconn of a server.\nconcurrency = {count}\n"));
    }
    if let Some(compression) = output.compression {
        let from = from("output.compression");
        written.push_str(&format!("compression = {}{from}\n", string(compression)));
    }
    if !output.headers.is_empty() {
        let headers = output.headers.iter();
        let headers: Vec<String> =
            headers.map(|(name, value)| format!("{} = {}", string(name), string(value))).collect();
        let from = from("output.headers");
        written.push_str(&format!("headers = {{ {} }}{from}\n", headers.join(", ")));
    }
    if let Some(tls) = &output.tls {
        written.push_str("[output.tls]\n");
        written.push_str(&text("ca", tls.ca.as_deref()));
        written.push_str(&text("certificate", tls.certificate.as_deref()));
        written.push_str(&text("private_key", key));
        written.push_str(&text("server_name", tls.server_name.as_deref()));
        written.push_str(&text("min_version", tls.min_version));
        if tls.insecure_skip_verify {
            written.push_str("insecure_skip_verify = true\n");
        }
    }
    if output.connect.or(output.request).is_some() {
        written.push_str("[output.timeouts]\n");
        written.push_str(&time("connect", output.connect, &from("output.timeouts.connect")));
        written.push_str(&time("request", output.request, &from("output.timeouts.request")));
    }
    written
}

fn text(key: &str, value: Option<&str>) -> String {
    value.map_or_else(String::new, |value| format!("{key} = {}\n", string(value)))
}

fn time(key: &str, limit: Option<Duration>, from: &str) -> String {
    let Some(limit) = limit else { return String::new() };
    match limit.as_millis() {
        millis if millis.is_multiple_of(1000) => format!("{key} = \"{}s\"{from}\n", millis / 1000),
        millis => format!("{key} = \"{millis}ms\"{from}\n"),
    }
}

/// Returns a text as a basic string of TOML, in quotes. The escapes that serde_json writes are
/// valid in TOML too, so the text is written as JSON; only U+007F needs an escape that JSON does
/// not write.
fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
