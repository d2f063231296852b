//! The access rules of the admin address: its TLS settings, its tokens, and the pages that need
//! them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Response, StatusCode, header};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::text;
use crate::listener::Token;
use base::lock::lock;
use client::tls::{Server, ServerSettings};

/// The shortest time between two log lines about refused requests and handshakes.
const REFUSED_LOG: Duration = Duration::from_secs(10);

/// The callers that get a page. A token that the config does not require is not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Everybody who has the token for metrics, or the token of the readers.
    Scrapers,
    /// Everybody who has the token of the readers: the page may name a user.
    Readers,
}

/// The TLS settings and the tokens of the admin address, as the config and its files have them. A
/// reload replaces all of them together.
///
/// The admin address must not keep the relay from forwarding events. A token file that can't be
/// used closes the pages of its token, at a start and at a reload. If the files of `tls` can't be
/// used at the start, every connection is closed until a reload has read them. Later, the old ones
/// stay.
#[derive(Default)]
pub struct Access {
    /// `false`: the files of `tls` could not be read since the start.
    is_open: bool,
    tls: Option<Arc<Server>>,
    /// The settings for the next handshake: those of `tls`, with HTTP/1.1 as the only protocol.
    rustls: Option<Arc<ServerSettings>>,
    readers: Lock,
    scrapers: Lock,
    /// The token that opens taps; `None` without one, or once `Admin::admit` has taken it.
    pub(super) tap: Option<Token>,
    /// The keys of `[admin]` whose files can't be used.
    pub(super) faults: Vec<&'static str>,
    /// Cancelled when the connections that were accepted under these settings must end.
    pub(super) revoked: CancellationToken,
}

#[derive(Default)]
enum Lock {
    /// Nothing is needed.
    #[default]
    Open,
    /// A token. `None`: its file does not exist or can't be used, and no token opens the lock.
    Token(Option<Token>),
}

impl Lock {
    fn opens_to(&self, given: Option<&[u8]>) -> bool {
        match self {
            Self::Open => true,
            Self::Token(token) => token.as_ref().is_some_and(|token| token.matches(given)),
        }
    }
}

impl Access {
    /// Reads the files that `[admin]` names. If neither the certificate files nor the TLS config
    /// have changed since `current` was read, keeps the TLS settings of `current`. Blocks on the
    /// disk.
    ///
    /// # Errors
    ///
    /// The certificate files can't be used, and `current` has other TLS settings, or speaks plain
    /// HTTP. The text names the file and its fault.
    pub fn read(config: &config::Admin, current: Option<&Self>) -> Result<Self, String> {
        let before = current.and_then(|current| current.tls.as_ref());
        let tls = config.tls.as_ref().map(|tls| Server::read(tls, before)).transpose();
        let mut access = match tls {
            Ok(tls) => Self::new(tls),
            Err(error) if current.is_some_and(|current| current.is_open) => {
                return Err(format!("admin.tls: {error}"));
            }
            Err(error) => {
                let error = error.to_string();
                tracing::error!(
                    error,
                    "the certificate files in admin.tls can't be used: the relay forwards events, \
                     but its admin address closes every connection until the files are good"
                );
                Self { faults: vec!["admin.tls"], ..Self::default() }
            }
        };
        access.read_tokens(config);
        if let Some(current) = current.filter(|current| current.asked() == access.asked()) {
            access.revoked = current.revoked.clone();
        }
        Ok(access)
    }

    /// Returns open settings without tokens.
    fn new(tls: Option<Arc<Server>>) -> Self {
        // The copy shares the store of sessions with `tls`, so clients may resume a session under
        // either.
        let rustls = tls.as_ref().map(|tls| Arc::new(tls.settings().with_alpn(&[b"http/1.1"])));
        Self { is_open: true, tls, rustls, ..Self::default() }
    }

    /// Reads the token files. A token whose file is missing or can't be used opens nothing.
    fn read_tokens(&mut self, config: &config::Admin) {
        let mut read = |key, file: &Option<PathBuf>| {
            let token = file.as_deref().map(Token::read)?;
            Some(token.inspect_err(|error| {
                self.faults.push(key);
                tracing::warn!(
                    key,
                    error,
                    "a token file of the admin address can't be used: nobody gets what its token \
                     opens until the file has a token"
                );
            }))
        };
        let lock = |token: Option<Result<Token, _>>| match token {
            Some(token) => Lock::Token(token.ok()),
            None => Lock::Open,
        };
        self.readers = lock(read("admin.bearer_token_file", &config.bearer_token_file));
        self.scrapers = lock(read("admin.metrics_token_file", &config.metrics_token_file));
        self.tap = read("admin.tap_token_file", &config.tap_token_file).and_then(Result::ok);
    }

    /// Returns the rules after a reload that has failed. `config` stays in force, but somebody may
    /// have taken a token back: the file of each token decides. Blocks on the disk.
    pub fn after_failure(&self, config: &config::Admin) -> Self {
        let mut access = Self {
            is_open: self.is_open,
            tls: self.tls.clone(),
            rustls: self.rustls.clone(),
            revoked: self.revoked.clone(),
            ..Self::default()
        };
        if !access.is_open {
            access.faults.push("admin.tls");
        }
        access.read_tokens(config);
        access
    }

    /// Returns `false` if every connection must be closed, except those to the probe address.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Returns the settings of the next TLS handshake; `None`: the address speaks plain HTTP, or
    /// closes every connection ([`Access::is_open`]).
    pub(super) fn tls(&self) -> Option<Arc<ServerSettings>> {
        self.rustls.clone()
    }

    /// Returns the end of the certificate's validity, in seconds since 1970; `None` without TLS.
    pub(super) fn not_after(&self) -> Option<i64> {
        self.tls.as_ref()?.not_after()
    }

    /// Returns the CA from which clients must have certificates: `None` without TLS, and
    /// `Some(None)` if TLS asks for none. Connections may stay open under settings with the same
    /// value.
    pub(super) fn asked(&self) -> Option<Option<&[u8]>> {
        self.tls.as_ref().map(|tls| tls.client_ca())
    }

    /// Returns the reason why a request for a page of this audience is refused; `None` if the
    /// request is allowed.
    pub(super) fn refusal(&self, audience: Audience, headers: &HeaderMap) -> Option<&'static str> {
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let is_reader = || match &self.readers {
            // If the readers need no token, only the token for metrics opens `/metrics`.
            Lock::Open => audience == Audience::Readers,
            readers @ Lock::Token(_) => readers.opens_to(given),
        };
        let (is_open, lock, key) = match audience {
            Audience::Scrapers => (
                self.scrapers.opens_to(given) || is_reader(),
                &self.scrapers,
                "a bearer token is required in the header Authorization, that of \
                 admin.metrics_token_file",
            ),
            Audience::Readers => (
                is_reader(),
                &self.readers,
                "a bearer token is required in the header Authorization, that of \
                 admin.bearer_token_file",
            ),
        };
        match (is_open, lock) {
            (true, _) => None,
            (false, Lock::Token(None)) => Some(
                "the file with the bearer token does not exist or has no token: nobody gets this \
                 page",
            ),
            (false, _) if given.is_some() => Some("the bearer token is wrong"),
            (false, _) => Some(key),
        }
    }
}

/// The status and the words with which a request is refused.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) String);

impl Refusal {
    pub(super) fn response(self) -> Response<Full<Bytes>> {
        let Self(status, what) = self;
        let mut response = text(status, format!("{what}\n"));
        let header = match status {
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            StatusCode::SERVICE_UNAVAILABLE => Some((header::RETRY_AFTER, "10")),
            _ => None,
        };
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// Logs refused requests and handshakes, with a limit, so that nobody can fill the log.
#[derive(Default)]
pub(super) struct Refused(Mutex<(u64, Option<Instant>)>);

impl Refused {
    /// Logs the refused request or handshake of `peer`, unless one was logged a moment ago.
    pub(super) fn note(&self, peer: SocketAddr, what: &str) {
        let mut refused = lock(&self.0);
        refused.0 += 1;
        if refused.1.is_some_and(|logged| logged.elapsed() < REFUSED_LOG) {
            return;
        }
        let (count, _) = std::mem::replace(&mut *refused, (0, Some(Instant::now())));
        drop(refused);
        let peer = peer.to_string();
        tracing::warn!(
            peer,
            count,
            reason = what,
            "a request or TLS handshake at the admin address was refused"
        );
    }
}
