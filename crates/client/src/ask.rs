//! Asks servers over HTTP/1.1, with or without TLS. A [`Target`] is a server with its credentials.
//! Most callers send each request on a new connection ([`Target::open`], [`Target::get`] and
//! others). Every wait of a target has a limit. An [`AskError`] names the URL without its query,
//! and the failed step, but no token.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderValue;
use hyper::{Method, Request, StatusCode, header};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::Url;

mod connection;

pub use connection::{Connection, NoAnswer, Reply, Stream, exchange};

use crate::net::DialError;
use crate::{names, net, tls};
use base::words::escape::is_plain;
use config::{ClientTls, HostPort};

const CONNECT: Duration = Duration::from_secs(10);

/// The time limit for the head of a response, for each part of the body, and for a whole
/// [`Target::post`]. kube-apiserver takes seconds to write all of its metrics.
const WAIT: Duration = Duration::from_secs(30);

const TOTAL: Duration = Duration::from_secs(120);

const KEEPALIVE: Duration = Duration::from_secs(30);

/// The maximum size of the body that [`Target::get`] and [`Target::post`] read, in bytes. The
/// metrics of a large kube-apiserver have tens of MB.
pub const BODY_MAX: u64 = 64 << 20;

const ANSWER_MAX: usize = 64 << 10;

const SHOWN_CHARS_MAX: usize = 300;

/// The header `User-Agent` of this program's requests, unless the config sets another one.
pub const USER_AGENT: &str = concat!("kube-audit-forwarder/", env!("CARGO_PKG_VERSION"));

const ALLOWED: &str = "allowed: http://HOST:PORT or https://HOST:PORT";

/// The content type of a request with JSON.
pub const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// The category of an [`AskError`], by which callers decide. The text of the reason is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskFault {
    /// The response has this status instead of 200.
    Status(u16),
    /// The name of the server could not be resolved to an address.
    NoAddress,
    /// No TCP connection was made, or the TLS handshake did not end in time.
    NoConnection,
    /// No trusted CA has signed the server's certificate.
    Issuer,
    /// The server's certificate is only valid for other names.
    Name,
    /// The server's certificate has expired, or is not valid yet.
    Time,
    /// The server sent bytes that are not valid TLS.
    NoTls,
    /// A reason without a category of its own.
    Other,
}

impl AskFault {
    fn of_handshake(error: &io::Error) -> Self {
        use rustls::CertificateError as Wrong;
        use rustls::Error::InvalidCertificate;
        match error.get_ref().and_then(|source| source.downcast_ref()) {
            Some(InvalidCertificate(Wrong::UnknownIssuer | Wrong::BadSignature)) => Self::Issuer,
            Some(InvalidCertificate(
                Wrong::NotValidForName | Wrong::NotValidForNameContext { .. },
            )) => Self::Name,
            Some(InvalidCertificate(
                Wrong::Expired
                | Wrong::ExpiredContext { .. }
                | Wrong::NotValidYet
                | Wrong::NotValidYetContext { .. },
            )) => Self::Time,
            Some(rustls::Error::InvalidMessage(_)) => Self::NoTls,
            Some(_) | None => Self::Other,
        }
    }
}

/// The reason why a request has no usable response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {reason}")]
pub struct AskError {
    /// The category of the reason.
    pub fault: AskFault,
    url: String,
    /// The reason, without the URL.
    pub reason: String,
}

/// A response to [`Target::exchange`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status of the response.
    pub status: u16,
    /// The media type of the body, in lower case and without parameters; empty if there is none.
    pub media_type: String,
    /// The body or, if the status is not 200, at most its first 64 KiB.
    pub body: Vec<u8>,
}

/// A server, and the credentials for it.
#[derive(Clone)]
pub struct Target {
    https: bool,
    host: String,
    port: u16,
    base: String,
    path: Option<String>,
    tls: Option<Arc<tls::Client>>,
    /// The names to try for the certificate, unless `tls` has a server name; if empty, the host.
    names: Vec<String>,
    authorization: Option<HeaderValue>,
}

/// Writes the URL without its query.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.base)
    }
}

impl Target {
    /// Makes a target from a URL. A request does not contain the URL's path unless the caller adds
    /// it: see [`Target::given`] and [`Target::base`].
    ///
    /// # Errors
    ///
    /// A text that says why this is not the URL of a server.
    pub fn new(url: &str) -> Result<Self, String> {
        Self::of(&Url::parse(url).map_err(|error| format!("is not a URL ({error}), {ALLOWED}"))?)
    }

    /// Makes a target from a parsed URL.
    ///
    /// # Errors
    ///
    /// As for [`Target::new`].
    pub fn of(url: &Url) -> Result<Self, String> {
        let https = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(format!("is neither http:// nor https://, {ALLOWED}")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("has a user name or password, {ALLOWED}"));
        }
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(format!("has no host, {ALLOWED}"));
        };
        if port == 0 {
            return Err(format!("has port 0, at which nothing listens, {ALLOWED}"));
        }
        let base = url.path().trim_end_matches('/').to_owned();
        let path = url.query().map_or_else(|| base.clone(), |query| format!("{base}?{query}"));
        Ok(Self {
            https,
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            base,
            path: Some(path).filter(|path| !path.is_empty()),
            tls: None,
            names: Vec::new(),
            authorization: None,
        })
    }

    /// Returns `true` if the URL begins with `https://`.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Returns the target with TLS settings and, if `token` is `Some`, a bearer token. The server's
    /// certificate must have one of `names` or, if `names` is empty, the host. If `tls` has a
    /// server name, only that name counts.
    ///
    /// # Errors
    ///
    /// A text that says why the token can't be sent.
    pub fn with_credentials(
        mut self,
        tls: Arc<tls::Client>,
        names: Vec<String>,
        token: Option<&str>,
    ) -> Result<Self, String> {
        (self.tls, self.names) = (Some(tls), names);
        match token {
            Some(token) => self.with_token(token),
            None => Ok(self),
        }
    }

    /// Returns the target with a bearer token.
    ///
    /// # Errors
    ///
    /// A text that says why the token can't be sent.
    pub fn with_token(self, token: &str) -> Result<Self, String> {
        let value = HeaderValue::from_str(&format!("Bearer {token}"));
        let mut value = value.map_err(|_| {
            "the token contains a character that is not allowed in a header".to_owned()
        })?;
        value.set_sensitive(true);
        Ok(Self { authorization: Some(value), ..self })
    }

    /// Returns a target at another address, with the same credentials. Its certificate may have a
    /// name of this target, `host`, or one of `names`: see [`Target::with_credentials`].
    pub fn at(&self, host: &str, port: u16, names: &[&str]) -> Self {
        let mut all = match self.names.is_empty() {
            true => vec![self.host.clone()],
            false => self.names.clone(),
        };
        all.push(host.to_owned());
        all.extend(names.iter().map(|name| (*name).to_owned()));
        Self {
            host: host.to_owned(),
            port,
            names: all,
            base: String::new(),
            path: None,
            ..self.clone()
        }
    }

    /// Returns `true` if the URL has a query.
    pub fn has_query(&self) -> bool {
        self.path.as_deref().is_some_and(|path| path.contains('?'))
    }

    /// Returns the path, without a slash at its end, and the query of the URL; `None` if both are
    /// empty.
    pub fn given(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Returns the path of the URL, without its query and without a slash at its end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns the host, and the port if it is not the default, as the header `Host` has them.
    pub fn authority(&self) -> String {
        let has_default_port = self.port == if self.https { 443 } else { 80 };
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        if has_default_port { host } else { format!("{host}:{}", self.port) }
    }

    /// Returns the scheme and the host of the URL, and the port if it is not the default.
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.authority())
    }

    /// Sends a GET, and passes each part of the body to `sink`. Returns the header `Date` in
    /// seconds since 1970; `None` if the header is missing or not valid.
    ///
    /// # Errors
    ///
    /// [`AskError`]: there was no usable response with status 200, or `sink` returned an error.
    pub async fn get(
        &self,
        path: &str,
        sink: impl FnMut(&[u8]) -> Result<(), String> + Send,
    ) -> Result<Option<f64>, AskError> {
        let asked = async {
            let reply = self.open(Method::GET, path, None).await?;
            self.take(path, reply, sink).await
        };
        self.within(TOTAL, path, asked).await.map(|reply| reply.date())
    }

    /// Sends a GET for `path` and returns the body.
    ///
    /// # Errors
    ///
    /// [`AskError`]: there was no usable response with status 200, or it has more than 1 MiB.
    pub async fn get_text(&self, path: &str) -> Result<Vec<u8>, AskError> {
        let mut body = Vec::new();
        self.get(path, |part| {
            body.extend_from_slice(part);
            if body.len() > 1 << 20 { Err("more than 1 MiB".to_owned()) } else { Ok(()) }
        })
        .await?;
        Ok(body)
    }

    /// Sends a POST with JSON. Returns the notAfter of the server's certificate
    /// ([`Reply::not_after`]).
    ///
    /// # Errors
    ///
    /// [`AskError`]: there was no usable response with status 200.
    pub async fn post(&self, path: &str, body: &'static str) -> Result<Option<i64>, AskError> {
        let body = Bytes::from_static(body.as_bytes());
        let asked = async {
            let reply = self.open(Method::POST, path, Some((JSON, body))).await?;
            self.take(path, reply, |_| Ok(())).await
        };
        self.within(WAIT, path, asked).await.map(|reply| reply.not_after())
    }

    /// Sends a POST with text. Returns the response with any status. Waits for at most `limit`.
    ///
    /// # Errors
    ///
    /// [`AskError`]: there was no response in time, its body broke off, or a body of status 200 has
    /// more than 64 KiB.
    pub async fn exchange(
        &self,
        path: &str,
        text: String,
        limit: Duration,
    ) -> Result<Answer, AskError> {
        let asked = async {
            let mut reply = self.open(Method::POST, path, Some((TEXT, Bytes::from(text)))).await?;
            let (body, is_whole) = reply
                .read(ANSWER_MAX)
                .await
                .map_err(|error| self.error(path, format!("the response was cut off: {error}")))?;
            match reply.status {
                StatusCode::OK if !is_whole => Err(self.error(path, "more than 64 KiB")),
                status => {
                    let named = reply.headers.get(header::CONTENT_TYPE);
                    let named = named.and_then(|it| it.to_str().ok()?.split(';').next());
                    let media_type = named.unwrap_or_default().trim().to_ascii_lowercase();
                    Ok(Answer { status: status.as_u16(), media_type, body })
                }
            }
        };
        self.within(limit, path, asked).await
    }

    /// Sends a request on a new connection. `body` is the content type and the bytes.
    ///
    /// # Errors
    ///
    /// [`AskError`]: there was no connection or no response in time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the request and its connection.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Reply, AskError> {
        let connection = self.connect(Instant::now() + CONNECT).await;
        let connection =
            connection.map_err(|(fault, what)| AskError { fault, ..self.error(path, what) })?;
        let request = self.request(method, path, body);
        let mut request = request.map_err(|error| self.error(path, error))?;
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        let sent = timeout(WAIT, connection.send(request)).await;
        let silent = || self.error(path, format!("no response within {} s", WAIT.as_secs()));
        let sent = sent.map_err(|_| silent())?;
        sent.map_err(|error| self.error(path, format!("no HTTP response: {}", chain(&error))))
    }

    /// Makes a request with `Host`, `User-Agent` and, if needed, `Content-Type` and
    /// `Authorization`.
    ///
    /// # Errors
    ///
    /// The path cannot be part of a request.
    pub fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(if path.is_empty() { "/" } else { path })
            .header(header::HOST, self.authority())
            .header(header::USER_AGENT, USER_AGENT);
        if let Some((content_type, _)) = &body {
            request = request.header(header::CONTENT_TYPE, *content_type);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        request.body(Full::new(body.map(|(_, body)| body).unwrap_or_default()))
    }

    /// Makes a connection. With TLS, tries each name that the certificate may have on a new TCP
    /// connection, until one fits.
    ///
    /// # Errors
    ///
    /// The reason why there is no connection before `deadline`, to which the time of the lookup of
    /// the host's name is added, as a category and as a text.
    pub async fn connect(&self, mut deadline: Instant) -> Result<Connection, (AskFault, String)> {
        let other = |what: String| (AskFault::Other, what);
        let begun = |error: hyper::Error| other(format!("no HTTP response: {error}"));
        if !self.https {
            return Connection::over(self.dial(&mut deadline).await?).await.map_err(begun);
        }
        let client = match &self.tls {
            Some(client) => Arc::clone(client),
            None => tls::Client::of_contents(&ClientTls::default(), &[b"http/1.1"], Vec::new())
                .map_err(|error| other(error.to_string()))?,
        };
        let host = std::slice::from_ref(&self.host);
        let names = if self.names.is_empty() { host } else { self.names.as_slice() };
        let mut first = None;
        for name in names {
            let server = client.server_name(name).map_err(|error| other(error.to_string()))?;
            let stream = match self.handshake(server, &client, deadline).await {
                Ok(stream) => stream,
                Err(wrong @ (AskFault::Name, _)) => {
                    first.get_or_insert(wrong);
                    continue;
                }
                Err(other) => return Err(other),
            };
            let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let not_after = leaf.and_then(tls::not_after);
            let mut connection = Connection::over(stream).await.map_err(begun)?;
            connection.not_after = not_after;
            return Ok(connection);
        }
        Err(first.unwrap_or_else(|| other("no name for the certificate".to_owned())))
    }

    async fn dial(&self, deadline: &mut Instant) -> Result<TcpStream, (AskFault, String)> {
        let to = HostPort { host: self.host.clone(), port: self.port };
        let stream = net::dial(&to, names::LONGEST, deadline).await.map_err(|error| {
            let fault = match error {
                DialError::Resolve { .. } => AskFault::NoAddress,
                DialError::Connect { .. } | DialError::Timeout { .. } => AskFault::NoConnection,
            };
            (fault, chain(&error))
        })?;
        // If the options cannot be set, the time limits still notice a silent server.
        net::tune_dialled(&stream, KEEPALIVE, WAIT).ok();
        Ok(stream)
    }

    async fn handshake(
        &self,
        server: ServerName<'static>,
        client: &tls::Client,
        mut deadline: Instant,
    ) -> Result<TlsStream<TcpStream>, (AskFault, String)> {
        let stream = self.dial(&mut deadline).await?;
        let connecting = TlsConnector::from(client.settings()).connect(server, stream);
        let late = |_| {
            let what = "no TLS handshake within the connect timeout";
            (AskFault::NoConnection, what.to_owned())
        };
        timeout_at(deadline, connecting).await.map_err(late)?.map_err(|error| {
            let what = format!("TLS: {}", tls::handshake_error(&error, None));
            (AskFault::of_handshake(&error), what)
        })
    }

    async fn take(
        &self,
        path: &str,
        mut reply: Reply,
        mut sink: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<Reply, AskError> {
        let error = |what: String| self.error(path, what);
        let status = reply.status;
        if status != StatusCode::OK {
            let what = format!("{status}{}", refusal(&mut reply).await);
            return Err(AskError { fault: AskFault::Status(status.as_u16()), ..error(what) });
        }
        let encoding = reply.headers.get(header::CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| encoding != "identity") {
            let what = "the response is compressed, although the request did not ask for it";
            return Err(error(what.to_owned()));
        }
        let mut read = 0;
        while let Some(part) = reply.part(WAIT).await.map_err(error)? {
            read += part.len() as u64;
            if read > BODY_MAX {
                return Err(error("the response is larger than 64 MiB".to_owned()));
            }
            sink(&part).map_err(error)?;
        }
        Ok(reply)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        path: &str,
        asked: impl Future<Output = Result<T, AskError>>,
    ) -> Result<T, AskError> {
        let late =
            || self.error(path, format!("no complete response within {} s", limit.as_secs()));
        timeout(limit, asked).await.unwrap_or_else(|_| Err(late()))
    }

    fn error(&self, path: &str, what: impl fmt::Display) -> AskError {
        let path = path.split('?').next().unwrap_or_default();
        let url = format!("{}{path}", self.origin());
        AskError { fault: AskFault::Other, url, reason: what.to_string() }
    }
}

/// Returns the texts of an error and of its causes, separated by colons and without repetitions.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

/// Reads the body of a refusal, and returns the reason in it as [`shown`] does.
pub async fn refusal(reply: &mut Reply) -> String {
    let read = timeout(WAIT, reply.read(ANSWER_MAX)).await;
    read.ok().and_then(Result::ok).map(|(body, _)| shown(&body)).unwrap_or_default()
}

/// The body of a refusal, as Kubernetes and a relay send it.
#[derive(Deserialize)]
struct Status {
    message: String,
}

/// Returns the reason in the body of a refusal as `: reason`, safe for a terminal. Empty if there
/// is no reason.
pub fn shown(body: &[u8]) -> String {
    let message = match serde_json::from_slice::<Status>(body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    let message = message.trim_end_matches('.');
    if message.is_empty() {
        return String::new();
    }
    let safe = |char: char| if is_plain(char) { char } else { ' ' };
    format!(": {}", message.chars().take(SHOWN_CHARS_MAX).map(safe).collect::<String>())
}

/// Returns what to do if the admin address of a relay gives no usable response, as a sentence
/// without a full stop. `None` if nothing is known but that there is no relay to ask. `reason` is
/// the text of the fault.
pub fn remedy_at_admin(fault: AskFault, reason: &str) -> Option<&'static str> {
    let has = |part| reason.contains(part);
    Some(match fault {
        // A listener names the key of its token, or what it accepts.
        AskFault::Status(_) if has("audit events are accepted") || has("listener.bearer_token") => {
            "This is a listener, which only takes events: name the relay's admin.address (by \
             default, port 9090)"
        }
        AskFault::Status(401) => "Name the file with the token with --token-file",
        AskFault::Status(404) if has("probe address") => {
            "This is admin.probe_address, which has no such page: name admin.address"
        }
        AskFault::Status(404 | 405) if !has("no such page:") && !has("taps are off") => {
            "This is no relay's admin address: name its admin.address (by default, port 9090)"
        }
        AskFault::Issuer => "Name a file with the CA, or with the certificate, with --ca",
        AskFault::NoTls => "Use http:// if the config has no admin.tls",
        AskFault::Other if has("CertificateRequired") => {
            "The relay asks for a client certificate: name it with --certificate"
        }
        AskFault::Other if has("no HTTP response") => "Use https:// if the config has admin.tls",
        AskFault::Status(_)
        | AskFault::NoAddress
        | AskFault::NoConnection
        | AskFault::Name
        | AskFault::Time
        | AskFault::Other => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_with_its_path() {
        for (url, shown, authority, given) in [
            ("http://127.0.0.1:9090", "http://127.0.0.1:9090", "127.0.0.1:9090", None),
            ("https://[::1]:6443/", "https://[::1]:6443", "[::1]:6443", None),
            ("https://a/x/?y=1", "https://a/x", "a", Some("/x?y=1")),
            ("HTTP://a:80/metrics", "http://a/metrics", "a", Some("/metrics")),
        ] {
            let target = Target::new(url).unwrap();
            assert_eq!(target.to_string(), shown);
            assert_eq!((target.authority().as_str(), target.given()), (authority, given));
        }
        for (url, what) in [
            ("localhost:9090", "neither http"),
            ("/metrics", "not a URL"),
            ("http://u:p@a", "password"),
            ("http://a:0", "port 0"),
        ] {
            let refused = Target::new(url).err().unwrap();
            assert!(refused.contains(what) && refused.contains("allowed"), "{url}: {refused}");
        }
    }

    #[test]
    fn a_refusal_is_shown_in_one_safe_line() {
        assert_eq!(shown(b"{\"kind\":\"Status\",\"message\":\"no\\nway\"}"), ": no way");
        assert_eq!(shown(b"\x1b[31mred"), ":  [31mred");
        assert_eq!(shown("a\u{202e}b\u{e9}".as_bytes()), ": a b\u{e9}");
        assert_eq!(shown(b" "), "");
    }

    #[tokio::test]
    async fn an_error_names_the_url_without_its_query() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let target = Target::new(&format!("http://{address}/")).unwrap();
        let error = target.get("/metrics?token=s3cret", |_| Ok(())).await.unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with(&format!("http://{address}/metrics: cannot connect")), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}
