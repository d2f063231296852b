//! Requests to a server that is not the consumer, such as one that issues tokens: one request at a
//! time, each on a connection of its own.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode, header};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use super::answer;
use super::api::Outcome;
use super::client::{KEEPALIVE, tunnel};
use super::proxy::Proxy;
use super::url::{BaseUrl, HttpEndpoint};
use crate::transport::connection::dial_failure;
use crate::transport::tls_session::handshake;
use client::ask::{Connection, NoAnswer, Stream, USER_AGENT, chain};
use client::{net, tls};
use config::{ClientTls, Template};
use delivery::failure::Failure;
use telemetry::AttemptError;

const FORM: &str = "application/x-www-form-urlencoded";

/// The maximum bytes of an answer's body. A longer body is an error.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A server that is not the consumer, and how to reach it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Service {
    /// The URL of the server. The path of each request is appended to its path.
    pub url: String,
    /// A file with CAs. An https server must be verified by a CA in this file or by a CA of the
    /// system.
    pub ca: Option<PathBuf>,
    /// The proxy of all connections. `None`: connections are direct.
    pub proxy: Option<Template>,
    /// The time limits for making a connection and for waiting for an answer.
    pub timeouts: config::Timeouts,
    /// The pauses between failed requests.
    pub retry: config::Retry,
}

/// A request to a [`Service`]: a POST of a form.
pub(crate) struct Question {
    /// The path, which is added to that of the URL.
    pub path: &'static str,
    pub accept: &'static str,
    /// The form, with its names and values percent-encoded.
    pub form: String,
}

/// The reason why a request to a [`Service`] failed.
pub(crate) struct ServiceError {
    /// The status of the answer; `None` if there was no answer.
    pub status: Option<StatusCode>,
    pub failure: Failure,
}

impl From<Failure> for ServiceError {
    fn from(failure: Failure) -> Self {
        Self { status: None, failure }
    }
}

/// The settings that one request needs, read from their files.
struct Expanded {
    endpoint: HttpEndpoint,
    proxy: Option<Proxy>,
    /// The ways to verify the server: one must succeed. Empty if the URL is not https.
    tls: Vec<Arc<tls::Client>>,
}

impl Service {
    /// Makes the service at `url` that an output needs in addition to its consumer, with the CAs
    /// and the proxy of the consumer.
    pub(crate) fn beside(client: &config::HttpClient, url: &str, output: &config::Output) -> Self {
        Self {
            url: url.to_owned(),
            ca: client.tls.ca.clone(),
            proxy: client.proxy.clone(),
            timeouts: output.timeouts.clone(),
            retry: output.retry.clone(),
        }
    }

    /// Returns the scheme, host and port of the server, for messages.
    pub(crate) fn base(&self) -> String {
        let parsed = HttpEndpoint::parse(None, &self.url);
        parsed.map(|endpoint| endpoint.base.to_string()).unwrap_or_default()
    }

    /// Sends a form, and returns the body of the answer if its status is 2xx.
    ///
    /// # Errors
    ///
    /// The request failed. No text contains anything of the answer except its status.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the request and its connection.
    pub(crate) async fn post(&self, question: Question) -> Result<Vec<u8>, ServiceError> {
        let Question { path, accept, form } = question;
        let service = self.clone();
        let read = tokio::task::spawn_blocking(move || service.expanded()).await;
        let wrong = |what: String| Failure::new(AttemptError::Protocol, what);
        let mut expanded = read.unwrap_or_else(|error| Err(wrong(error.to_string())))?;
        expanded.endpoint.cut(&[path.to_owned()]);
        let endpoint = &expanded.endpoint;
        let base = &endpoint.base;
        let request = Request::builder()
            .method(Method::POST)
            .uri(endpoint.target(path))
            .header(header::HOST, endpoint.authority.clone())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, accept)
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::CONTENT_TYPE, FORM)
            .body(Full::new(Bytes::from(form)))
            .map_err(|error| wrong(format!("{base}: {error}")))?;
        let mut deadline = Instant::now() + self.timeouts.connect;
        let stream: Box<dyn Stream> = match base.https {
            true => Box::new(self.encrypted(&expanded, deadline).await?),
            false => Box::new(self.dial(&expanded, &mut deadline).await?),
        };
        let asked = exchange(base, path, stream, request);
        let answer = tokio::time::timeout(self.timeouts.request, asked).await;
        answer.unwrap_or_else(|_| {
            let seconds = self.timeouts.request.as_secs_f64();
            let what = format!("{base}: no response within {seconds} s");
            Err(Failure::new(AttemptError::Timeout, what).into())
        })
    }

    /// Makes a TCP connection to the server, directly or through the proxy.
    async fn dial(
        &self,
        expanded: &Expanded,
        deadline: &mut Instant,
    ) -> Result<TcpStream, Failure> {
        let (base, patience) = (&expanded.endpoint.base, self.timeouts.connect);
        let stream = match &expanded.proxy {
            Some(proxy) => tunnel(base, proxy, patience, deadline).await?,
            None => {
                let dialled = net::dial(&base.at, patience, deadline).await;
                dialled.map_err(|error| dial_failure(&error))?
            }
        };
        // The socket options detect a silent server early. An error is ignored, because the timeout
        // still detects the server.
        net::tune_dialled(&stream, KEEPALIVE, self.timeouts.request).ok();
        Ok(stream)
    }

    /// Makes a TLS connection to the server. Tries each way to verify the server on a new
    /// connection, until one succeeds.
    async fn encrypted(
        &self,
        expanded: &Expanded,
        mut deadline: Instant,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let mut refused = Failure::new(AttemptError::Tls, "the URL is not https");
        for tls in &expanded.tls {
            let stream = self.dial(expanded, &mut deadline).await?;
            match handshake(tls, &expanded.endpoint.base.at, stream, deadline).await {
                Ok(stream) => return Ok(stream),
                Err(failure) => refused = failure,
            }
        }
        Err(refused)
    }

    /// Reads the files that a request needs: those of the proxy's template, and the CAs. Blocks the
    /// thread.
    fn expanded(&self) -> Result<Expanded, Failure> {
        let wrong = |what: String| Failure::new(AttemptError::Protocol, what);
        let endpoint = HttpEndpoint::parse(None, &self.url).map_err(wrong)?;
        let proxy = self.proxy.as_ref().map(Proxy::read).transpose().map_err(wrong)?;
        let authorities = self.ca.iter().cloned().map(Some).chain([None]);
        let read = |ca| {
            let settings = ClientTls { ca, ..ClientTls::default() };
            tls::Client::read(&settings, &[b"http/1.1"], None).map_err(|error| {
                Failure::new(AttemptError::Tls, format!("{}: {error}", endpoint.base))
            })
        };
        let is_https = endpoint.base.https;
        let tls = authorities.filter(|_| is_https).map(read).collect::<Result<_, _>>()?;
        Ok(Expanded { endpoint, proxy, tls })
    }
}

/// Sends a request to this path on a stream to the server. Returns the body of the answer if its
/// status is 2xx.
async fn exchange(
    base: &BaseUrl,
    path: &str,
    stream: Box<dyn Stream>,
    request: Request<Full<Bytes>>,
) -> Result<Vec<u8>, ServiceError> {
    let failed = |error: NoAnswer| {
        Failure::new(answer::reason(&error), format!("{base}: {}", chain(&error)))
    };
    let connection = Connection::over(stream).await.map_err(|error| failed(error.into()))?;
    let mut reply = connection.send(request).await.map_err(failed)?;
    let status = reply.status;
    let meaning = answer::meaning(base, path, status, &reply.headers);
    if let Outcome::Refused(failure) | Outcome::Failed(failure) = meaning {
        return Err(ServiceError { status: Some(status), failure });
    }
    match reply.read(ANSWER_BYTES_MAX).await {
        Ok((body, true)) => Ok(body),
        Ok((_, false)) | Err(_) => {
            let what =
                format!("{base}: answered {status}, but the body was cut off or is too long");
            let failure = Failure::new(AttemptError::Protocol, what);
            Err(ServiceError { status: Some(status), failure })
        }
    }
}
