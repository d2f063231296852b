//! Writes a config of this relay as TOML, and lists the Secrets that it needs.

use super::listener::Listener;
use super::options::Tls;
use super::output::Output;
use super::report::printable;

/// The settings that become the text of the config.
pub(super) struct Config {
    pub(super) listeners: Vec<Listener>,
    pub(super) max_connections: Option<u64>,
    pub(super) header_timeout: Option<String>,
    pub(super) output: Output,
    /// The outputs for other consumers, each with its reason. They become comments at the end.
    pub(super) others: Vec<(String, Output)>,
    /// As in [`Options`](super::Options).
    pub(super) keeps_paths: bool,
}

/// A Secret that the Deployment in `deploy/base` mounts: its name, its directory, and the names of
/// the files for the certificate chain, its private key and the CAs.
type Secret = [&'static str; 5];

/// The certificate of the HTTPS listeners.
const LISTENER: Secret = ["audit-webhook", "/certificates", "tls.crt", "tls.key", "client-ca.crt"];

/// The certificates and keys that outputs need.
const CONSUMER: Secret =
    ["kube-audit-forwarder-consumer", "/consumer", "client.crt", "client.key", "ca.crt"];

impl Config {
    /// Returns the config without the report.
    pub(super) fn text(&self) -> String {
        let placed = |secret| Some(secret).filter(|_| !self.keeps_paths);
        let mut text = String::new();
        for Listener { address, tls: settings } in &self.listeners {
            text += &format!("\n[[listener]]\naddress = \"{address}\"\n");
            text += &tls("listener", "client_ca", settings.as_ref(), placed(&LISTENER));
        }
        let limits = key("max_connections", self.max_connections)
            + &key("header_timeout", self.header_timeout.as_ref().map(string));
        if !limits.is_empty() {
            text += &format!("\n[limits]\n{limits}");
        }
        let is_free = |port: &u16| self.listeners.iter().all(|it| it.address.port() != *port);
        let port = (9090..).find(is_free).unwrap_or(9090);
        text += &format!(
            "\n# HAProxy stored nothing. The queue holds undelivered events in memory, or with \
             `directory` on disk,\n# where they survive a crash.\n[queue]\nmax_bytes = \"256MiB\"\n\
             \n{}\n# Status page, /metrics, /livez and \
             /readyz.\n[admin]\naddress = \"0.0.0.0:{port}\"\n",
            output(&self.output, placed(&CONSUMER))
        );
        for (why, other) in &self.others {
            text += &format!("\n# {}\n", printable(why));
            output(other, None).lines().for_each(|line| text += &format!("# {line}\n"));
        }
        text
    }

    /// Returns sentences about the Secrets that the config needs, and commands that make them from
    /// copies of HAProxy's files.
    pub(super) fn needs(&self) -> Vec<String> {
        let of_listener = self.listeners.iter().find_map(|listener| listener.tls.as_ref());
        let mut needs = Vec::new();
        for (secret, tls) in [(LISTENER, of_listener), (CONSUMER, self.output.tls.as_ref())] {
            let [name, directory, chain, key, ca] = secret;
            let has_files = |tls: &&Tls| tls.pem.is_some() || tls.ca.is_some();
            let Some(tls) = tls.filter(has_files).filter(|_| !self.keeps_paths) else { continue };
            needs.push(format!(
                "- the Secret {name}, which deploy/base/deployment.yaml mounts at {directory}. With \
                 copies of HAProxy's files (it may read the key from PEM.key instead):"
            ));
            let mut create = format!("kubectl create secret generic {name} -n ibm-kube-audit");
            if let Some(pem) = tls.pem.as_deref().map(quoted) {
                needs.push(format!("    sed -n '/-BEGIN CERT/,/-END CERT/p' {pem} > {chain}"));
                needs.push(format!("    openssl pkey -in {pem} -out {key}"));
                create += &format!(" --from-file={chain} --from-file={key}");
            }
            if let Some(file) = tls.ca.as_deref().map(quoted) {
                create += &format!(" --from-file={ca}={file}");
            }
            needs.push(format!("    {create}"));
        }
        needs
    }
}

fn quoted(path: &str) -> String {
    format!("'{}'", path.replace('\'', "'\\''"))
}

fn key(name: &str, value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(String::new, |value| format!("{name} = {value}\n"))
}

/// Returns the table of an output. Without a `secret`, its files keep their paths.
fn output(output: &Output, secret: Option<&Secret>) -> String {
    let Output { kind, name, urls, headers, .. } = output;
    let urls: Vec<String> = urls.iter().map(string).collect();
    let header = |(name, value): &(String, String)| format!("{} = {}", string(name), string(value));
    let headers: Vec<String> = headers.iter().map(header).collect();
    let headers = Some(headers.join(", ")).filter(|headers| !headers.is_empty());
    let (comment, addresses) = match *kind {
        "http" => {
            ("# The relay POSTs to the URL's path; HAProxy kept the request's path.\n", "urls")
        }
        _ => ("", "addresses"),
    };
    let mut text = format!("{comment}[[output]]\n");
    text += &key("name", Some(string(name)));
    text += &key("type", Some(string(kind)));
    text += &key(addresses, Some(format!("[{}]", urls.join(", "))));
    text += &key("strategy", output.is_round_robin.then_some("\"round_robin\""));
    text += &key("headers", headers.map(|headers| format!("{{ {headers} }}")));
    text += &tls("output", "ca", output.tls.as_ref(), secret);
    if let Some(connect) = &output.connect {
        text += &format!("[output.timeouts]\nconnect = {}\n", string(connect));
    }
    text
}

/// Returns the TLS table of a listener or an output. `ca` is the key for CAs.
fn tls(of: &str, ca: &str, tls: Option<&Tls>, secret: Option<&Secret>) -> String {
    let Some(tls) = tls else { return String::new() };
    let placed = |original: &Option<String>, index: usize| match (original, secret) {
        (Some(_), Some(secret)) => Some(string(format!("{}/{}", secret[1], secret[index]))),
        (original, _) => original.as_ref().map(string),
    };
    format!("[{of}.tls]\n")
        + &key("certificate", placed(&tls.pem, 2))
        + &key("private_key", placed(&tls.pem, 3))
        + &key(ca, placed(&tls.ca, 4))
        + &key("server_name", tls.server_name.as_ref().map(string))
        + &key("min_version", tls.min_version.map(string))
        + &key("insecure_skip_verify", Some(true).filter(|_| tls.insecure_skip_verify))
}

/// Returns a text as a basic string of TOML. JSON's escapes are valid in TOML too; only U+007F
/// needs an escape that JSON does not write.
fn string(text: impl AsRef<str>) -> String {
    serde_json::Value::from(text.as_ref()).to_string().replace('\u{7f}', "\\u007f")
}
