//! The command `healthcheck`: sends one GET to a relay's `/readyz`, or to another path that the URL
//! has, and exits with 0 if the answer is 200. It is meant for images without a shell. It says
//! which address it asked, and what the answer was; all of this goes to stderr.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use hyper::{Method, StatusCode};
use url::{Position, Url};

use super::{FAILED, WRONG, failed, read, wrong};
use client::ask::Target;

/// The time limit for one request to the relay, including the lookup of the host name.
/// `healthcheck` sends one request, `drain` may send many. A relay responds within milliseconds.
/// Docker allows 30 s for a health check. A kubelet ends a probe after its `timeoutSeconds`, by
/// default 1 s, and then reports only a timeout.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The path at which a relay says whether it is ready.
const READY: &str = "/readyz";

/// The greatest number of bytes in a response body. The body that a relay sends has only a few
/// lines.
const ANSWER_MAX: usize = 64 * 1024;

/// The greatest number of lines of a response body that are printed.
const LINES_MAX: usize = 50;

/// The relay that a command asks, named in either way. Commands that may ask several relays have
/// `--relay` too.
#[derive(Args)]
pub(super) struct Relay {
    /// http://HOST:PORT of the relay's admin address [default: admin.address of the config]
    url: Option<String>,
    /// The same as URL
    #[arg(long, value_name = "URL", conflicts_with = "url")]
    relay: Option<String>,
}

impl Relay {
    pub(super) fn of(url: &str) -> Self {
        Self { url: Some(url.to_owned()), relay: None }
    }

    /// Returns the URL; `None` if the config names the relay.
    pub(super) fn url(&self) -> Option<&str> {
        self.url.as_deref().or(self.relay.as_deref())
    }
}

/// Asks the relay at this URL whether it is ready. If `url` is `None`, the config names the relay.
/// `Ok` means that the answer was 200; `Err` is the exit status for all other cases.
pub(super) fn run(url: Option<&str>, file: Option<&Path>) -> Result<(), u8> {
    let url = url_of(url, file)?;
    let late = || Err(format!("no answer within {} s", TIMEOUT.as_secs()));
    match block_on(ask_in_time(&url, ANSWER_MAX))?.unwrap_or_else(late) {
        Ok((StatusCode::OK, _)) if url.path() != READY => {
            eprintln!("ok: {url}");
            Ok(())
        }
        Ok((status, body)) => {
            let is_ready = status == StatusCode::OK;
            match is_ready {
                true => eprintln!("ready: {url}"),
                false => eprintln!("{url}: {status}"),
            }
            // The body of `/readyz?verbose` has a line for each check.
            let lines =
                body.lines().filter(|line| !line.is_empty() && (!is_ready || *line != "ok"));
            lines.take(LINES_MAX).for_each(|line| eprintln!("{}", line.escape_debug()));
            if is_ready { Ok(()) } else { Err(FAILED) }
        }
        Err(error) => Err(failed(format_args!("{url}: {error}"))),
    }
}

/// Parses the given URL, and sets its path to `/readyz` if it has none. If `url` is `None`, returns
/// the URL of `/readyz` at the admin address of the config. `Err` is the exit status if the URL or
/// the config is wrong.
pub(super) fn url_of(url: Option<&str>, file: Option<&Path>) -> Result<Url, u8> {
    match url {
        Some(text) => parse(text).map_err(|what| wrong(format_args!("{text}: {what}"))),
        None => configured(file),
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

/// Sends a GET request with [`ask`], and returns the result of [`ask`]; `None` if the response
/// takes longer than [`TIMEOUT`].
pub(super) async fn ask_in_time(
    url: &Url,
    body_max: usize,
) -> Option<Result<(StatusCode, String), String>> {
    tokio::time::timeout(TIMEOUT, ask(url, body_max)).await.ok()
}

/// Returns the URL of a page, such as `/status`, at the admin address that `url` or the config
/// names. `Err` is the exit status.
pub(super) fn page(url: Option<&str>, file: Option<&Path>, path: &str) -> Result<Url, u8> {
    let mut url = url_of(url, file)?;
    url.set_query(None);
    url.set_path(path);
    Ok(url)
}

/// Parses a URL from the command line. A URL without a path gets the path `/readyz`. `Err` says
/// what is wrong with the URL.
fn parse(text: &str) -> Result<Url, String> {
    const ALLOWED: &str = "allowed: http://HOST:PORT or http://HOST:PORT/PATH";
    let mut url = Url::parse(text).map_err(|error| format!("is not a URL ({error}), {ALLOWED}"))?;
    match url.scheme() {
        "http" => {}
        "https" => return Err(format!("the admin address speaks plain HTTP, {ALLOWED}")),
        _ => return Err(format!("is not an http:// URL, {ALLOWED}")),
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

/// Returns the URL of `/readyz` at the admin address that a config names. Mistakes in other
/// settings of the config are ignored: a relay that runs keeps the config that it has, even if the
/// file is wrong now. `Err` is the exit status.
fn configured(file: Option<&Path>) -> Result<Url, u8> {
    let (text, name) = read(file)?;
    let address = config::admin_address(&text).map_err(|problems| {
        problems.iter().for_each(|problem| eprintln!("{}", problem.render(&name)));
        WRONG
    })?;
    if address.port() == 0 {
        return Err(wrong(format_args!(
            "{name}: admin.address has port 0, so the kernel chooses the port: give the URL"
        )));
    }
    let url = format!("http://{}{READY}", reachable(address));
    Url::parse(&url).map_err(|error| wrong(format_args!("{url}: {error}")))
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

/// Sends a GET request to `url`. Returns the status and the body of the response. `Err` says why
/// there is no complete response, or that the body has more than `body_max` bytes.
async fn ask(url: &Url, body_max: usize) -> Result<(StatusCode, String), String> {
    let path = &url[Position::BeforePath..Position::AfterQuery];
    let asked = Target::of(url)?.open(Method::GET, path, None).await;
    let mut reply = asked.map_err(|error| error.reason)?;
    let status = reply.status;
    match reply.read(body_max).await {
        Ok((body, true)) => Ok((status, String::from_utf8_lossy(&body).into_owned())),
        Ok((_, false)) => Err(format!("{status}, and then more than {body_max} bytes")),
        Err(error) => Err(format!("{status}, and then: {error}")),
    }
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
