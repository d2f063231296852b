//! Connections through an HTTP proxy. After one CONNECT (RFC 9110 §9.3.6), a connection leads to
//! the consumer.
//!
//! The proxy resolves the consumer's name. A proxy may be slow, send garbage, or send without an
//! end: the size of its answer is limited here, and the caller limits the time. Nothing here shows
//! the credentials.

use std::{fmt, io};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::StatusCode;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use client::ask::{USER_AGENT, chain};
use config::{HostPort, Template};
use telemetry::AttemptError;

/// The maximum bytes of the head of a proxy's answer. A longer head is an error.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The configured proxy. No message shows its credentials.
#[derive(Clone, PartialEq)]
pub(super) struct Proxy {
    pub(super) at: HostPort,
    /// The header `Proxy-Authorization`, if the URL has credentials.
    credentials: Option<String>,
}

/// Shows the proxy as `the proxy http://host:port`, without its credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy http://{}", self.at)
    }
}

impl Proxy {
    /// Parses the URL of a proxy. The error text does not contain the URL, which may contain a
    /// password.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err("has no host".to_owned());
        };
        if url.scheme() != "http" {
            return Err("is not an http:// URL".to_owned());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let has_credentials = !url.username().is_empty() || url.password().is_some();
        let credentials = has_credentials.then(|| {
            let pair = format!("{}:{}", url.username(), url.password().unwrap_or_default());
            let pair: Vec<u8> = percent_decode_str(&pair).collect();
            format!("Basic {}", BASE64_STANDARD.encode(pair))
        });
        Ok(Self { at: HostPort { host, port }, credentials })
    }

    /// Fills in the template of a proxy's URL, and parses the URL. The error text has the text of
    /// [`Proxy::new`], or names the file that can't be read.
    pub(super) fn read(template: &Template) -> Result<Self, String> {
        let text = template.expand().map_err(|error| chain(&error))?;
        Self::new(&text).map_err(|what| format!("proxy {what}"))
    }

    /// Asks the proxy at the other end of `stream` to connect to `target`. After success, all bytes
    /// on `stream` are from and to the target. The error is a category and a text that names the
    /// proxy.
    pub(super) async fn open(
        &self,
        stream: &mut TcpStream,
        target: &HostPort,
    ) -> Result<(), (AttemptError, String)> {
        let credentials = self.credentials.as_ref();
        let credentials = credentials.map(|value| format!("Proxy-Authorization: {value}\r\n"));
        let credentials = credentials.unwrap_or_default();
        let request = format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {USER_AGENT}\r\n\
             {credentials}\r\n"
        );
        let broken = |error: io::Error| (AttemptError::Closed, format!("{self}: {error}"));
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        let head = self.head(stream).await?;
        let Some(status) = status_of(&head) else {
            return Err((AttemptError::Protocol, format!("{self}: its response is not HTTP")));
        };
        if status.is_success() {
            return Ok(());
        }
        let what = match status {
            // Some proxies answer wrong credentials with 401 instead of 407.
            StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED => {
                match self.credentials {
                    Some(_) => ": it rejects the credentials in its URL",
                    None => ": it requires credentials: http://USER:PASSWORD@…",
                }
            }
            _ => "",
        };
        Err((AttemptError::Connect, format!("{self}: answered {status}{what}")))
    }

    /// Reads the head of the proxy's answer, and no byte after the head, because later bytes come
    /// from the consumer. A successful answer has no body; after any other answer the connection is
    /// not used any more.
    async fn head(&self, stream: &mut TcpStream) -> Result<Vec<u8>, (AttemptError, String)> {
        let broken = |error: io::Error| (AttemptError::Closed, format!("{self}: {error}"));
        let mut head = Vec::new();
        let mut peeked = [0; 1024];
        loop {
            let length = stream.peek(&mut peeked).await.map_err(broken)?;
            if length == 0 {
                return Err((
                    AttemptError::Closed,
                    format!("{self}: closed the connection without a response"),
                ));
            }
            let before = head.len();
            head.extend_from_slice(&peeked[..length]);
            // The end of the head may begin in the bytes of an earlier read.
            let from = before.saturating_sub(3);
            let end = memchr::memmem::find(&head[from..], b"\r\n\r\n").map(|at| from + at + 4);
            let taken = end.unwrap_or(head.len()) - before;
            stream.read_exact(&mut peeked[..taken]).await.map_err(broken)?;
            if let Some(end) = end {
                head.truncate(end);
                return Ok(head);
            }
            if head.len() > HEAD_BYTES_MAX {
                let what = format!("{self}: the head of its response is too long");
                return Err((AttemptError::Protocol, what));
            }
        }
    }
}

/// Returns the status of an answer whose head begins like `HTTP/1.1 200 …`. `None` if the bytes are
/// not the head of an HTTP/1 answer.
fn status_of(head: &[u8]) -> Option<StatusCode> {
    let rest = head.strip_prefix(b"HTTP/1.0 ").or_else(|| head.strip_prefix(b"HTTP/1.1 "))?;
    let (status, behind) = rest.split_at_checked(3)?;
    matches!(behind, [b' ' | b'\r', ..]).then_some(())?;
    StatusCode::from_bytes(status).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_credentials_are_sent_and_not_shown() {
        for (url, shown, sent) in [
            ("http://relay:p%40ss%3a%25@proxy.example:3128/", "proxy.example:3128", "relay:p@ss:%"),
            ("http://100%:%zz@proxy.example", "proxy.example:80", "100%:%zz"),
            ("http://[::1]", "[::1]:80", ""),
        ] {
            let proxy = Proxy::new(url).unwrap();
            let credentials = format!("Basic {}", BASE64_STANDARD.encode(sent));
            assert_eq!(proxy.credentials, Some(credentials).filter(|_| !sent.is_empty()), "{url}");
            assert_eq!(proxy.to_string(), format!("the proxy http://{shown}"));
        }
        assert!(Proxy::new("https://proxy.example").is_err());
    }

    #[test]
    fn a_status_is_found_in_http_1_and_in_nothing_else() {
        for (head, status) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", Some(200)),
            ("HTTP/1.0 407 x\r\nProxy-Authenticate: Basic\r\n\r\n", Some(407)),
            ("HTTP/1.1 204\r\n\r\n", Some(204)),
            ("HTTP/1.1 2000 x\r\n\r\n", None),
            ("HTTP/1.1 2\r\n\r\n", None),
            ("HTTP/2 200 x\r\n\r\n", None),
            ("SSH-2.0-OpenSSH\r\n\r\n", None),
            ("\r\n\r\n", None),
        ] {
            assert_eq!(status_of(head.as_bytes()).map(|status| status.as_u16()), status, "{head}");
        }
    }
}
