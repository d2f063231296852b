//! Asks a server over HTTP/1.1, with or without TLS, on a new connection for each request.
//!
//! Every wait has a time limit, and every body a size limit. An error says what was tried, at which
//! URL, and what the operator can do. No message contains a token or the query of a URL.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Full;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header;
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::config::ClientTls;
use crate::net;
use crate::tls;

/// The time limit for a connection, with its TLS handshake.
const CONNECT: Duration = Duration::from_secs(10);

/// The time limit for the head of a response, and for each further part of its body.
/// kube-apiserver takes seconds to write all of its metrics.
const WAIT: Duration = Duration::from_secs(30);

/// The time limit for a whole request.
const TOTAL: Duration = Duration::from_secs(120);

/// The greatest number of bytes in the body of a response. The metrics of a large kube-apiserver
/// have tens of megabytes.
pub const BODY_MAX: u64 = 64 << 20;

/// The greatest number of bytes of a response that is no success, or of a short answer.
const ANSWER_MAX: usize = 64 << 10;

/// The greatest number of characters of a refusal that a message shows.
const SHOWN_CHARS_MAX: usize = 300;

const USER_AGENT: &str = concat!("kube-audit-forwarder/", env!("CARGO_PKG_VERSION"));

/// The content types of requests.
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// The reason why a server was asked in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskError {
    /// The status of the response; `None` if there was none, or if the response was a success that
    /// cannot be used.
    pub status: Option<u16>,
    /// `true` if the server's certificate is for other names than those that were tried.
    wrong_name: bool,
    /// The URL and the reason.
    what: String,
    /// The body of a response that was no success.
    refusal: Vec<u8>,
}

/// A response to [`Target::exchange`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body, of at most 64 KiB.
    pub body: Vec<u8>,
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// A stream of bytes to a server, plain or in TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A server that can be asked, and the credentials for it.
#[derive(Clone)]
pub struct Target {
    https: bool,
    host: String,
    port: u16,
    /// The path of the server's own URL, without a slash at its end.
    base: String,
    /// The path that was given with the URL; `None` if it was only the root.
    path: Option<String>,
    tls: Option<Arc<tls::Client>>,
    /// The names of which the server's certificate must have one, in the order in which they are
    /// tried. If there is none, the host is the name.
    names: Vec<String>,
    authorization: Option<HeaderValue>,
    /// `true`: an answer that is compressed is an error.
    is_plain: bool,
}

/// Writes the URL without path and query.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.base)
    }
}

impl Target {
    /// Makes a target from a URL. A path of the URL can be asked for with [`Target::given`].
    ///
    /// # Errors
    ///
    /// A text that says why this is no URL of a server.
    pub fn new(url: &str) -> Result<Self, String> {
        const ALLOWED: &str = "allowed: http://HOST:PORT or https://HOST:PORT";
        let url = Url::parse(url).map_err(|error| format!("is not a URL ({error}), {ALLOWED}"))?;
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
            is_plain: false,
        })
    }

    /// Makes an answer that is compressed an error. Otherwise its bytes are given as they come.
    #[must_use]
    pub fn plain(self) -> Self {
        Self { is_plain: true, ..self }
    }

    /// Returns `true` if the URL begins with `https://`.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Returns the target with credentials for its server: TLS settings, the names of which the
    /// server's certificate must have one (the host, if there are none), and a bearer token.
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
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| "the token has a control character".to_owned())?;
            value.set_sensitive(true);
            self.authorization = Some(value);
        }
        Ok(self)
    }

    /// Returns a target at another address that is the same server, or another instance of it. Its
    /// certificate may have the name of this target, the address, or one of `names`.
    #[must_use]
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

    /// Returns the path that was given with the URL, with its query; `None` if it was only the
    /// root.
    #[must_use]
    pub fn given(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Returns the path of the server's own URL, without a slash at its end.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns the host and the port, as kube-apiserver writes them in the label `host`.
    #[must_use]
    pub fn authority(&self) -> String {
        let has_default_port = self.port == if self.https { 443 } else { 80 };
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        if has_default_port { host } else { format!("{host}:{}", self.port) }
    }

    /// Sends a GET for `path`, and gives each part of the body to `sink`, whose error ends the
    /// request.
    ///
    /// # Errors
    ///
    /// [`AskError`]: there was no complete response with status 200, or `sink` did not take it.
    pub async fn get(
        &self,
        path: &str,
        mut sink: impl FnMut(&[u8]) -> Result<(), String> + Send,
    ) -> Result<(), AskError> {
        let asked = self.send(Method::GET, path, (TEXT, Bytes::new()), &mut sink);
        let late = || self.error(path, format!("no complete answer within {} s", TOTAL.as_secs()));
        timeout(TOTAL, asked).await.unwrap_or_else(|_| Err(late())).map(drop)
    }

    /// Sends a GET for `path` and returns the body, which may have a megabyte.
    ///
    /// # Errors
    ///
    /// [`AskError`]: there was no complete response with status 200.
    pub async fn get_text(&self, path: &str) -> Result<Vec<u8>, AskError> {
        let mut body = Vec::new();
        self.get(path, |part| {
            body.extend_from_slice(part);
            if body.len() > 1 << 20 { Err("more than 1 MiB".to_owned()) } else { Ok(()) }
        })
        .await?;
        Ok(body)
    }

    /// Sends a POST with this JSON body, and returns the end of the validity of the server's
    /// certificate (notAfter), in seconds since 1970; `None` without TLS.
    ///
    /// # Errors
    ///
    /// [`AskError`]: there was no complete response with status 200.
    pub async fn post(&self, path: &str, body: &'static str) -> Result<Option<i64>, AskError> {
        let mut sink = |_: &[u8]| Ok(());
        let body = (JSON, Bytes::from_static(body.as_bytes()));
        let asked = self.send(Method::POST, path, body, &mut sink);
        let late = || self.error(path, format!("no complete answer within {} s", WAIT.as_secs()));
        timeout(WAIT, asked).await.unwrap_or_else(|_| Err(late()))
    }

    /// Sends a POST with this text, and returns the response, whatever its status is. Waits at most
    /// for `within`.
    ///
    /// # Errors
    ///
    /// [`AskError`]: there was no complete response, or a success had more than 64 KiB.
    pub async fn exchange(
        &self,
        path: &str,
        text: String,
        within: Duration,
    ) -> Result<Answer, AskError> {
        let mut body = Vec::new();
        let mut sink = |part: &[u8]| {
            body.extend_from_slice(part);
            if body.len() > ANSWER_MAX { Err("more than 64 KiB".to_owned()) } else { Ok(()) }
        };
        let asked = self.send(Method::POST, path, (TEXT, Bytes::from(text)), &mut sink);
        let late = || self.error(path, format!("no complete answer within {} s", within.as_secs()));
        match timeout(within, asked).await.unwrap_or_else(|_| Err(late())) {
            Ok(_) => Ok(Answer { status: StatusCode::OK.as_u16(), body }),
            Err(AskError { status: Some(status), refusal, .. }) => {
                Ok(Answer { status, body: refusal })
            }
            Err(error) => Err(error),
        }
    }

    fn error(&self, path: &str, what: impl fmt::Display) -> AskError {
        let path = path.split('?').next().unwrap_or_default();
        let scheme = if self.https { "https" } else { "http" };
        let what = format!("{scheme}://{}{path}: {what}", self.authority());
        AskError { status: None, wrong_name: false, what, refusal: Vec::new() }
    }

    /// Sends one request. `Ok` has the notAfter of the server's certificate.
    async fn send(
        &self,
        method: Method,
        path: &str,
        (content_type, body): (&'static str, Bytes),
        sink: &mut (dyn FnMut(&[u8]) -> Result<(), String> + Send),
    ) -> Result<Option<i64>, AskError> {
        let (stream, not_after) = self.connect(path).await?;
        let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let no_answer = |error: hyper::Error| self.error(path, format!("no HTTP answer: {error}"));
        let (mut sender, connection) = handshake.map_err(no_answer)?;
        let target = if path.is_empty() { "/" } else { path };
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, self.authority())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::CONNECTION, "close");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization.clone());
        }
        let request = request.body(Full::new(body)).map_err(|error| self.error(path, error))?;
        let exchange = async {
            let silent = || self.error(path, format!("no answer within {} s", WAIT.as_secs()));
            let response = timeout(WAIT, sender.send_request(request)).await;
            let response = response.map_err(|_| silent())?.map_err(no_answer)?;
            self.judge(path, response, sink).await
        };
        let driver = async {
            // If the connection fails, the request fails too, and its error has the reason.
            connection.await.ok();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = exchange => answer.map(|()| not_after),
            () = driver => Err(self.error(path, "no HTTP answer")),
        }
    }

    /// Reads the body of a response to its end, or the reason of a refusal.
    async fn judge(
        &self,
        path: &str,
        response: Response<Incoming>,
        sink: &mut (dyn FnMut(&[u8]) -> Result<(), String> + Send),
    ) -> Result<(), AskError> {
        let status = response.status();
        let encoding = response.headers().get(header::CONTENT_ENCODING);
        let is_compressed = encoding.is_some_and(|encoding| encoding != "identity");
        if self.is_plain && status == StatusCode::OK && is_compressed {
            return Err(self.error(path, "the answer is compressed, which nobody has asked for"));
        }
        let mut body = response.into_body();
        let (mut read, mut refusal) = (0, Vec::new());
        loop {
            let frame = timeout(WAIT, body.frame()).await;
            let frame = frame.map_err(|_| {
                self.error(path, format!("the answer stopped for {} s", WAIT.as_secs()))
            })?;
            let part = match frame {
                None => break,
                Some(Err(error)) => {
                    return Err(self.error(path, format!("the answer broke off: {error}")));
                }
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            read += part.len() as u64;
            if status == StatusCode::OK {
                if read > BODY_MAX {
                    return Err(self.error(path, "the answer has more than 64 MiB"));
                }
                sink(&part).map_err(|what| self.error(path, what))?;
            } else {
                refusal.extend_from_slice(&part);
                if refusal.len() > ANSWER_MAX {
                    break;
                }
            }
        }
        if status == StatusCode::OK {
            return Ok(());
        }
        let error = self.error(path, format!("{status}{}{}", shown(&refusal), remedy(status)));
        refusal.truncate(ANSWER_MAX);
        Err(AskError { status: Some(status.as_u16()), refusal, ..error })
    }

    /// Connects, and tries the names of the server one after the other.
    async fn connect(&self, path: &str) -> Result<(Box<dyn Stream>, Option<i64>), AskError> {
        let deadline = Instant::now() + CONNECT;
        if !self.https {
            return Ok((Box::new(self.dial(path, deadline).await?), None));
        }
        let client = match &self.tls {
            Some(client) => Arc::clone(client),
            None => {
                let client =
                    tls::Client::of_contents(&ClientTls::default(), &[b"http/1.1"], Vec::new());
                client.map_err(|error| self.error(path, error))?
            }
        };
        let host = std::slice::from_ref(&self.host);
        let names = if self.names.is_empty() { host } else { self.names.as_slice() };
        let mut first = None;
        for name in names {
            let tried = self.handshake(path, name, &client, deadline).await;
            let error = match tried {
                Ok(connected) => return Ok(connected),
                Err(error) => error,
            };
            if !error.wrong_name {
                return Err(error);
            }
            first.get_or_insert(error);
        }
        Err(first.unwrap_or_else(|| self.error(path, "no name for the certificate")))
    }

    async fn dial(&self, path: &str, deadline: Instant) -> Result<tokio::net::TcpStream, AskError> {
        let dialled = net::dial(&self.host, self.port, deadline).await;
        dialled.map_err(|error| self.error(path, error))
    }

    async fn handshake(
        &self,
        path: &str,
        name: &str,
        client: &tls::Client,
        deadline: Instant,
    ) -> Result<(Box<dyn Stream>, Option<i64>), AskError> {
        let server = client.server_name(name).map_err(|error| self.error(path, error))?;
        let stream = self.dial(path, deadline).await?;
        let connector = TlsConnector::from(client.settings());
        let stream = timeout_at(deadline, connector.connect(server, stream)).await;
        let stream = stream.map_err(|_| {
            self.error(path, format!("no TLS handshake within {} s", CONNECT.as_secs()))
        })?;
        let stream = stream.map_err(|error| {
            let wrong_name = tls::is_wrong_name(&error);
            let what = format!("TLS: {}", tls::handshake_error(&error));
            AskError { wrong_name, ..self.error(path, what) }
        })?;
        let (_, session) = stream.get_ref();
        let not_after =
            session.peer_certificates().and_then(|chain| tls::not_after(chain.first()?));
        Ok((Box::new(stream), not_after))
    }
}

/// The body of a response that refuses a request, as Kubernetes and a relay send it.
#[derive(Deserialize)]
struct Status {
    message: String,
}

/// Returns the reason of a refusal as the end of a message: a colon and the text, which is safe for
/// a terminal; empty if there is none.
fn shown(body: &[u8]) -> String {
    let message = match serde_json::from_slice::<Status>(body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    if message.is_empty() {
        return String::new();
    }
    let safe = |char: char| if char.is_control() { ' ' } else { char };
    format!(": {}", message.chars().take(SHOWN_CHARS_MAX).map(safe).collect::<String>())
}

/// Returns the end of a message about a refusal: the likely cause, if the status has one.
fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "; the credentials are missing or have expired",
        StatusCode::FORBIDDEN => {
            "; the user needs the verb get for the nonResourceURL /metrics, and for endpoints in \
             the namespace default"
        }
        StatusCode::NOT_FOUND => "; is the path of the URL right?",
        _ => "",
    }
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
