//! An HTTP/1.1 connection, and a response that is read from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

const HEAD_MAX: usize = 64 << 10;

/// The maximum number of interim responses (1xx). Servers send one or two; more cost CPU time.
const INTERIM_MAX: usize = 100;

/// The reason why a request has no final response.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// The connection ended, or carries something other than HTTP.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// The server sent more than 100 interim responses.
    #[error("more than {INTERIM_MAX} interim responses (1xx) and no final one")]
    Interim,
}

/// Sends a request, and waits for the head of the final response. Calls `interim` for each interim
/// response (1xx). The caller limits the time.
///
/// # Errors
///
/// There is no final response. The connection cannot be used any more.
///
/// # Cancel safety
///
/// Dropping the future ends the request and the connection.
pub async fn exchange<B: Body + 'static>(
    sender: &mut http1::SendRequest<B>,
    mut request: Request<B>,
    interim: impl Fn() + Send + Sync + 'static,
) -> Result<Response<Incoming>, NoAnswer> {
    let endless = Arc::new(Notify::new());
    let (noted, count) = (Arc::clone(&endless), AtomicUsize::new(0));
    hyper::ext::on_informational(&mut request, move |_| {
        interim();
        if count.fetch_add(1, Ordering::Relaxed) == INTERIM_MAX {
            noted.notify_one();
        }
    });
    tokio::select! {
        biased;
        () = endless.notified() => Err(NoAnswer::Interim),
        answer = sender.send_request(request) => Ok(answer?),
    }
}

/// A stream of bytes to a server, plain or in TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// A connection, which carries one request at a time. Dropping it closes it.
pub struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// The task that runs the connection, and returns the error that ends it. Dropping the set ends
    /// the task.
    driver: JoinSet<hyper::Result<()>>,
    pub(super) not_after: Option<i64>,
}

impl Connection {
    /// Begins HTTP/1.1 on a stream to a server.
    ///
    /// # Errors
    ///
    /// The stream cannot be used.
    pub async fn over(stream: impl Stream) -> hyper::Result<Self> {
        let mut builder = http1::Builder::new();
        // A folded header line is valid in an answer (RFC 9112 §5.2), and a space behind a name is
        // ignored (§5.1).
        builder
            .max_buf_size(HEAD_MAX)
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self { sender, driver, not_after: None })
    }

    /// Returns `true` once the connection can take the next request; `false` if it has ended.
    pub async fn is_open(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request, and waits for the head of the response. The caller limits the time.
    ///
    /// # Errors
    ///
    /// There is no response. If the connection ended before the request was written, the error says
    /// why it ended: a server may refuse the client's certificate at any time after the handshake.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the request and the connection.
    pub async fn send(self, request: Request<Full<Bytes>>) -> Result<Reply, NoAnswer> {
        let Self { mut sender, mut driver, not_after } = self;
        match exchange(&mut sender, request, || ()).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let connection = Self { sender, driver, not_after };
                Ok(Reply { status: head.status, headers: head.headers, body, connection })
            }
            Err(NoAnswer::Broken(error)) if error.is_canceled() => {
                drop(sender);
                let ended = driver.join_next().await.and_then(Result::ok);
                Err(ended.and_then(Result::err).unwrap_or(error).into())
            }
            Err(error) => Err(error),
        }
    }
}

/// A response whose body the caller can read. Dropping it closes its connection.
pub struct Reply {
    /// The status of the response.
    pub status: StatusCode,
    /// The headers of the response.
    pub headers: HeaderMap,
    body: Incoming,
    connection: Connection,
}

impl Reply {
    /// Returns the next part of the body; `None` at the end. `within` limits the wait.
    ///
    /// # Errors
    ///
    /// A text that says why the rest of the body is missing.
    pub async fn part(&mut self, within: Duration) -> Result<Option<Bytes>, String> {
        let frame = timeout(within, self.body.frame()).await;
        let frame =
            frame.map_err(|_| format!("the response stalled for {} s", within.as_secs()))?;
        let frame =
            frame.transpose().map_err(|error| format!("the response was cut off: {error}"))?;
        Ok(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    /// Returns at most `max` bytes, and `true` if the body has no more. The caller limits the time.
    ///
    /// # Errors
    ///
    /// The body broke off.
    pub async fn read(&mut self, max: usize) -> hyper::Result<(Vec<u8>, bool)> {
        let mut read = Vec::new();
        while let Some(frame) = self.body.frame().await {
            read.extend_from_slice(&frame?.into_data().unwrap_or_default());
            if read.len() > max {
                read.truncate(max);
                return Ok((read, false));
            }
        }
        Ok((read, true))
    }

    /// Returns the connection for the next request. The body must have been read to its end.
    pub fn into_connection(self) -> Connection {
        self.connection
    }

    /// Returns the header `Date` in seconds since 1970; `None` if missing or not valid.
    pub fn date(&self) -> Option<f64> {
        let date = self.headers.get(hyper::header::DATE)?.to_str().ok()?;
        let date = httpdate::parse_http_date(date).ok()?;
        Some(date.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
    }

    /// Returns the notAfter of the server's certificate, in seconds since 1970. `None` if it is not
    /// known, as without TLS.
    pub fn not_after(&self) -> Option<i64> {
        self.connection.not_after
    }
}
