//! Writes a config of this relay as TOML.

use std::fmt;
use std::time::Duration;

use super::Left;
use super::Limits;
use super::Log;
use super::options::Bind;
use super::output::Output;

/// The settings that become the text of the config.
pub(super) struct Config<'a> {
    pub(super) name: &'a str,
    pub(super) left: &'a [Left],
    pub(super) binds: &'a [Bind],
    pub(super) limits: Limits,
    pub(super) log: Log,
    pub(super) output: Output,
    pub(super) admin: String,
}

impl fmt::Display for Config<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name: String = self.name.chars().filter(|c| !c.is_control()).collect();
        writeln!(f, "# Made from {name} by `kube-audit-forwarder migrate haproxy`.")?;
        if !self.left.is_empty() {
            writeln!(f, "#\n# Not carried over, or done differently:")?;
        }
        for Left { line, directive, reason } in self.left {
            writeln!(f, "# - line {line}: {directive}: {reason}")?;
        }
        self.binds.iter().try_for_each(|bind| listener(f, bind))?;
        self.limits(f)?;
        writeln!(
            f,
            "\n# HAProxy kept nothing. This holds what is not delivered yet, in memory; with `directory` on disk, where it \
             survives\n# a crash.\n[queue]\nmax_bytes = \"256MiB\""
        )?;
        output(f, &self.output)?;
        writeln!(
            f,
            "\n# Status page, /metrics, /livez and /readyz.\n[admin]\naddress = {}",
            string(&self.admin)
        )?;
        let Log { level, is_json } = &self.log;
        if level.is_none() && !is_json {
            return Ok(());
        }
        writeln!(f, "\n[log]")?;
        level.iter().try_for_each(|level| writeln!(f, "level = {}", string(level)))?;
        if *is_json { writeln!(f, "format = \"json\"") } else { Ok(()) }
    }
}

impl Config<'_> {
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
        max_connections.iter().try_for_each(|count| writeln!(f, "max_connections = {count}"))?;
        times.iter().try_for_each(|(key, limit)| time(f, key, *limit))
    }
}

fn listener(f: &mut fmt::Formatter<'_>, bind: &Bind) -> fmt::Result {
    writeln!(f, "\n[[listener]]\naddress = {}", string(&bind.address))?;
    let Some(tls) = &bind.tls else { return Ok(()) };
    let file = string(&tls.certificate);
    writeln!(f, "[listener.tls]\ncertificate = {file}\nprivate_key = {file}")?;
    text(f, "client_ca", tls.client_ca.as_deref())?;
    text(f, "min_version", tls.min_version)
}

fn output(f: &mut fmt::Formatter<'_>, output: &Output) -> fmt::Result {
    writeln!(f, "\n[[output]]\nname = {}\ntype = \"http\"", string(&output.name))?;
    writeln!(
        f,
        "# HAProxy passed on each request's own path; the relay POSTs to that of the URL."
    )?;
    let urls: Vec<String> = output.urls.iter().map(|url| string(url)).collect();
    writeln!(f, "urls = [{}]", urls.join(", "))?;
    if output.is_round_robin {
        writeln!(f, "strategy = \"round_robin\"")?;
    }
    if !output.headers.is_empty() {
        let headers = output.headers.iter();
        let headers: Vec<String> =
            headers.map(|(name, value)| format!("{} = {}", string(name), string(value))).collect();
        writeln!(f, "headers = {{ {} }}", headers.join(", "))?;
    }
    if let Some(tls) = &output.tls {
        writeln!(f, "[output.tls]")?;
        text(f, "ca", tls.ca.as_deref())?;
        text(f, "certificate", tls.certificate.as_deref())?;
        text(f, "private_key", tls.certificate.as_deref())?;
        text(f, "server_name", tls.server_name.as_deref())?;
        text(f, "min_version", tls.min_version)?;
        if tls.insecure_skip_verify {
            writeln!(f, "insecure_skip_verify = true")?;
        }
    }
    if output.connect.or(output.request).is_none() {
        return Ok(());
    }
    writeln!(f, "[output.timeouts]")?;
    time(f, "connect", output.connect)?;
    time(f, "request", output.request)
}

fn text(f: &mut fmt::Formatter<'_>, key: &str, value: Option<&str>) -> fmt::Result {
    value.map_or(Ok(()), |value| writeln!(f, "{key} = {}", string(value)))
}

fn time(f: &mut fmt::Formatter<'_>, key: &str, limit: Option<Duration>) -> fmt::Result {
    let Some(limit) = limit else { return Ok(()) };
    match limit.as_millis() {
        millis if millis.is_multiple_of(1000) => writeln!(f, "{key} = \"{}s\"", millis / 1000),
        millis => writeln!(f, "{key} = \"{millis}ms\""),
    }
}

/// Returns a text as a basic string of TOML, in quotes. The escapes that serde_json writes are
/// valid in TOML too, so the text is written as JSON; only U+007F needs an escape that JSON does
/// not write.
fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
