//! The command `healthcheck`: sends one GET to a relay's `/readyz`, or to another path in the URL,
//! and exits with 0 if the response is 200. It is meant for images without a shell. What the
//! command prints goes to stderr.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hyper::{Method, StatusCode};
use url::{Position, Url};

use super::{FAILED, WRONG, cannot_read, failed, read, wrong};
use client::ask;
use client::ask::{AskFault, Target};
use client::tls::{Chain, Client};
use config::ClientTls;

/// The time limit for one request to the relay, including the lookup of the host name. Several
/// commands use it; `drain` may send many requests. A relay responds within milliseconds.
/// Docker allows 30 s for a health check. A kubelet ends a probe after its `timeoutSeconds`, by
/// default 1 s, and then reports only a timeout.
const TIMEOUT: Duration = Duration::from_secs(3);

const READY: &str = "/readyz";

pub(super) const DRAINED: &str = "/drained";

/// The greatest number of bytes in a response body. The body that a relay sends has only a few
/// lines.
const ANSWER_MAX: usize = 64 * 1024;

/// The greatest number of lines of a response body that are printed.
const LINES_MAX: usize = 50;

/// The relay that a command asks, named in either way. Commands that may ask several relays have
/// `--relay` too.
#[derive(Args)]
pub(super) struct Relay {
    /// http://HOST:PORT or https://HOST:PORT of the relay's admin address [default: admin.address
    /// of the config]
    url: Option<String>,
    /// The same as URL
    #[arg(long, value_name = "URL", conflicts_with = "url")]
    relay: Option<String>,
    #[command(flatten)]
    pub(super) credentials: Credentials,
}

/// What a relay's admin address may ask for.
#[derive(Args, Clone)]
pub(super) struct Credentials {
    /// The file with the bearer token for the relay's admin address [default: the one in the
    /// config, if the relay's address is taken from the config]
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// PEM file with the CA of the admin address [default: the system's CAs, or the certificate in
    /// the config, if the relay's address is taken from the config]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM file with the client certificate, if the admin address requires one
    #[arg(long, value_name = "FILE", requires = "private_key")]
    certificate: Option<PathBuf>,
    /// PEM file with the client certificate's private key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    private_key: Option<PathBuf>,
}

impl Relay {
    /// Returns the URL; `None` if the config names the relay.
    pub(super) fn url(&self) -> Option<&str> {
        self.url.as_deref().or(self.relay.as_deref())
    }

    /// Returns a page, such as `/status`, of this relay. Without a URL, `file` is the config that
    /// names the relay. `Err` is the exit status.
    pub(super) fn page(&self, file: Option<&Path>, path: &str) -> Result<Page, u8> {
        self.credentials.page(self.url(), file, path)
    }
}

/// A page of a relay, and the credentials for it.
#[derive(Clone)]
pub(super) struct Page {
    pub(super) url: Url,
    pub(super) target: Target,
    /// The key and the config that name the relay. `None` if the command line names it.
    key: Option<String>,
}

impl Page {
    /// Returns another page of the same relay.
    pub(super) fn at(&self, path: &str) -> Self {
        let mut page = self.clone();
        page.url.set_query(None);
        page.url.set_path(path);
        page
    }

    /// Returns the page with a bearer token. `Err` is the exit status.
    pub(super) fn with_token(self, token: &str) -> Result<Self, u8> {
        let target = self.target.with_token(token);
        let target = target.map_err(|what| wrong(format_args!("{}: {what}", self.url)))?;
        Ok(Self { target, ..self })
    }

    /// Sends a GET request. Returns the status and the body of the response; `None` if the response
    /// takes longer than [`TIMEOUT`]. `Err` says why there is no complete response, or that the
    /// body has more than `body_max` bytes.
    pub(super) async fn ask(
        &self,
        body_max: usize,
    ) -> Option<Result<(StatusCode, String), String>> {
        let asked = async {
            let path = &self.url[Position::BeforePath..Position::AfterQuery];
            let asked = self.target.open(Method::GET, path, None).await;
            let mut reply = asked.map_err(|error| self.explained(error.fault, error.reason))?;
            let status = reply.status;
            match reply.read(body_max).await {
                Ok((body, true)) => Ok((status, String::from_utf8_lossy(&body).into_owned())),
                Ok((_, false)) => Err(format!("{status}, and then more than {body_max} bytes")),
                Err(error) => Err(format!("{status}, and then: {error}")),
            }
        };
        tokio::time::timeout(TIMEOUT, asked).await.ok()
    }

    /// Returns the message about a status other than 200, with the reason in the body.
    pub(super) fn refused(&self, status: StatusCode, body: &str) -> String {
        let what = format!("{status}{}", ask::shown(body.as_bytes()));
        self.explained(AskFault::Status(status.as_u16()), what)
    }

    /// Adds to a fault what to do about it: which option to use, or which relay was asked.
    pub(super) fn explained(&self, fault: AskFault, what: String) -> String {
        let todo = match (ask::remedy_at_admin(fault, &what), fault, &self.key) {
            (Some(todo), ..) => todo.to_owned(),
            (None, AskFault::NoConnection | AskFault::NoAddress, Some(key)) => {
                format!("This is {key}; --relay URL or --config FILE names another relay")
            }
            (None, AskFault::NoConnection | AskFault::NoAddress, None) => {
                "Check that the relay runs, and that this is its admin.address".to_owned()
            }
            (None, ..) => return what,
        };
        format!("{what}. {todo}")
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl Credentials {
    /// Returns the page at `path` of the relay at `url`. If `url` is `None`, the config in `file`
    /// names the relay. `Err` is the exit status.
    pub(super) fn page(
        &self,
        url: Option<&str>,
        file: Option<&Path>,
        path: &str,
    ) -> Result<Page, u8> {
        let page = match url {
            Some(url) => self.given(url)?,
            None => self.configured(file, path)?,
        };
        Ok(page.at(path))
    }

    /// Returns the page of a URL from the command line; a URL without a path means `/readyz`.
    fn given(&self, url: &str) -> Result<Page, u8> {
        let parsed = parse(url).map_err(|what| wrong(format_args!("{}: {what}", shown(url))))?;
        let token = self.token_file.as_deref();
        self.open(parsed, self.ca.as_deref(), Vec::new(), token)
    }

    /// Returns a page of the relay that a config names, at the address that serves the page at
    /// `path`. Mistakes in other sections of the config are ignored: a running relay keeps its
    /// config even if the file is wrong now.
    fn configured(&self, file: Option<&Path>, path: &str) -> Result<Page, u8> {
        let (text, name) = read(file)?;
        let admin = config::admin_of(&text).map_err(|problems| {
            problems.iter().for_each(|problem| eprintln!("{}", problem.render(&name)));
            WRONG
        })?;
        let probe = admin.probe_address.filter(|_| matches!(path, READY | DRAINED));
        let (key, address) = match probe {
            Some(address) => ("admin.probe_address", address),
            None => ("admin.address", admin.address),
        };
        if address.port() == 0 {
            return Err(wrong(format_args!(
                "{name}: {key} has port 0, so the kernel chooses the port: give the URL"
            )));
        }
        let tls = admin.tls.as_ref().filter(|_| probe.is_none());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", reachable(address));
        let url = Url::parse(&url).map_err(|error| wrong(format_args!("{url}: {error}")))?;
        // If the token file does not exist, the relay has no token yet either, and its response
        // says so.
        let token = admin.bearer_token_file.filter(|token| token.is_file());
        let token = self.token_file.as_deref().or(token.as_deref());
        let why = if file.is_none() { ", because no config is named" } else { "" };
        let key = Some(format!("{key} of {name}{why}"));
        let Some(tls) = tls else {
            return Ok(Page { key, ..self.open(url, None, Vec::new(), token)? });
        };
        // The certificate hardly ever contains the address that this command asks, so the names in
        // the certificate count instead.
        let chain = Chain::read(&tls.certificate).map_err(failed)?;
        let ca = self.ca.as_deref().or(Some(&tls.certificate));
        Ok(Page { key, ..self.open(url, ca, chain.names(), token)? })
    }

    fn open(
        &self,
        url: Url,
        ca: Option<&Path>,
        names: Vec<String>,
        token: Option<&Path>,
    ) -> Result<Page, u8> {
        let target = Target::of(&url).map_err(|what| wrong(format_args!("{url}: {what}")))?;
        let target = self.add_to(target, ca, names, token)?;
        Ok(Page { url, target, key: None })
    }

    /// Adds the credentials to a server from the command line.
    pub(super) fn with(&self, target: Target) -> Result<Target, u8> {
        self.add_to(target, self.ca.as_deref(), Vec::new(), self.token_file.as_deref())
    }

    /// Trusts the CA of the command line for a server that gets no other credential.
    pub(super) fn with_ca(&self, target: Target) -> Result<Target, u8> {
        let (ca, token_file, certificate, private_key) = (self.ca.clone(), None, None, None);
        Self { token_file, ca, certificate, private_key }.with(target)
    }

    fn add_to(
        &self,
        mut target: Target,
        ca: Option<&Path>,
        names: Vec<String>,
        token: Option<&Path>,
    ) -> Result<Target, u8> {
        if target.is_https() {
            let identity = self.certificate.clone().zip(self.private_key.clone());
            let config = ClientTls { ca: ca.map(Path::to_owned), identity, ..ClientTls::default() };
            let client = Client::read(&config, &[b"http/1.1"], None).map_err(failed)?;
            target = target.with_credentials(client, names, None).map_err(failed)?;
        }
        let Some(file) = token else { return Ok(target) };
        let token = config::read_token_of_command(file);
        let token = token.map_err(|error| cannot_read(file, "the token", &error))?;
        target.with_token(&token).map_err(|what| wrong(format_args!("{}: {what}", file.display())))
    }
}

/// Asks a relay whether it is ready. `Ok` means that the response was 200; `Err` is the exit status
/// in all other cases.
pub(super) fn run(relay: &Relay, file: Option<&Path>) -> Result<(), u8> {
    let page = match relay.url() {
        Some(url) => relay.credentials.given(url)?,
        None => relay.page(file, READY)?,
    };
    let late = || Err(format!("no response within {} s", TIMEOUT.as_secs()));
    match block_on(page.ask(ANSWER_MAX))?.unwrap_or_else(late) {
        Ok((StatusCode::OK, _)) if page.url.path() != READY => {
            eprintln!("ok: {page}");
            Ok(())
        }
        Ok((status, body)) => {
            let is_ready = status == StatusCode::OK;
            match is_ready {
                true => eprintln!("ready: {page}"),
                false if status == StatusCode::SERVICE_UNAVAILABLE => eprintln!("{page}: {status}"),
                false => {
                    return Err(failed(format_args!("{page}: {}", page.refused(status, &body))));
                }
            }
            // The body of `/readyz?verbose` has a line for each check.
            let lines =
                body.lines().filter(|line| !line.is_empty() && (!is_ready || *line != "ok"));
            lines.take(LINES_MAX).for_each(|line| eprintln!("{}", line.escape_debug()));
            if is_ready { Ok(()) } else { Err(FAILED) }
        }
        Err(error) => Err(failed(format_args!("{page}: {error}"))),
    }
}

/// Runs a future to its end on this thread, and returns the future's result. If a name lookup still
/// hangs in another thread when the future ends, this function does not wait for the lookup. `Err`
/// is the exit status if the tokio runtime cannot start.
pub(super) fn block_on<T>(asked: impl Future<Output = T>) -> Result<T, u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| failed(format_args!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(asked);
    runtime.shutdown_background();
    Ok(result)
}

/// Returns a URL that can't be used, for a message about it. `…` replaces all text before the last
/// `@`, because this text may be a user and a password.
pub(super) fn shown(url: &str) -> String {
    url.rsplit_once('@').map_or_else(|| url.to_owned(), |(_, rest)| format!("…@{rest}"))
}

/// Parses a URL from the command line. A URL without a path gets the path `/readyz`. `Err` says
/// what is wrong with the URL.
fn parse(text: &str) -> Result<Url, String> {
    const ALLOWED: &str = "allowed: http://HOST:PORT or https://HOST:PORT, with or without a path";
    let mut url = Url::parse(text).map_err(|error| format!("is not a URL ({error}), {ALLOWED}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("is not an http:// URL, {ALLOWED}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("the admin address takes no user name or password, {ALLOWED}"));
    }
    if url.port() == Some(0) {
        return Err(format!("nothing can listen on port 0, {ALLOWED}"));
    }
    if url.path() == "/" {
        url.set_path(READY);
    }
    url.set_fragment(None);
    Ok(url)
}

/// Returns the address to connect to for a relay that listens on `address`. `0.0.0.0` and `::` mean
/// all addresses of the machine; for them, the result is the loopback address with the same port.
fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let ip = if address.ip().is_unspecified() { loopback } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_path_means_readyz() {
        for (text, url) in [
            ("http://127.0.0.1:9090", "http://127.0.0.1:9090/readyz"),
            ("http://127.0.0.1:9090/", "http://127.0.0.1:9090/readyz"),
            ("http://relay", "http://relay/readyz"),
            ("HTTP://[::1]:9090/?verbose#x", "http://[::1]:9090/readyz?verbose"),
            ("http://relay:1/livez", "http://relay:1/livez"),
        ] {
            assert_eq!(parse(text).map(String::from).as_deref(), Ok(url));
        }
    }

    #[test]
    fn an_unspecified_address_is_asked_on_loopback() {
        for (address, asked) in [
            ("0.0.0.0:9090", "127.0.0.1:9090"),
            ("[::]:9090", "[::1]:9090"),
            ("10.0.0.5:9090", "10.0.0.5:9090"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ] {
            assert_eq!(reachable(address.parse().unwrap()).to_string(), asked);
        }
    }
}
