//! Where batches go out: one delivery loop for each output, over the protocol that its config names.
//!
//! A new type is one file with a `delivery::Connect` and one arm in [`prepare`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config;
use crate::config::OutputKind;
use crate::queue::Cursor;
use crate::telemetry::AttemptError;
use crate::telemetry::OutputMetrics;
use crate::telemetry::Telemetry;

mod delivery;
mod endpoints;
mod health;
mod http;
mod retry;
mod stdout;
mod stream;
pub mod syslog;
mod tcp;

pub use health::Snapshot;
pub use health::Status;
pub use stream::Encode;
pub use stream::Encoded;

use delivery::Connect;
use delivery::Delivery;
use health::Health;

/// Why an attempt failed. The message is for the log and `/status`: it names scheme, host and port, never a path or query.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    reason: AttemptError,
    message: String,
    /// The consumer asks for so long a pause.
    retry_after: Option<Duration>,
    /// Another address is left to try at once.
    elsewhere: bool,
}

impl Failure {
    fn new(reason: AttemptError, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None, elsewhere: false }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What of an output is read from files, and read again when they change.
pub trait Files: Send + Sync {
    /// Reads them; says whether something in use was replaced. Blocks.
    ///
    /// # Errors
    ///
    /// What is wrong, for the operator; what is in use stays.
    fn reload(&self) -> Result<bool, String>;
}

/// An output that can be started.
pub struct Prepared {
    kind: Kind,
    config: config::Output,
    metrics: OutputMetrics,
    status: Arc<Status>,
}

enum Kind {
    Http(Arc<http::Client>),
    Tcp(stream::Connector<tcp::Lines>),
    Syslog(stream::Connector<syslog::Messages>),
    Stdout(Box<stdout::Connector>),
}

/// Makes an output of its config. Nothing is connected, and no file read, yet.
#[must_use]
pub fn prepare(config: &config::Output, telemetry: &Arc<Telemetry>) -> Prepared {
    let metrics = telemetry.output(&config.name);
    let expiry = Expiry { telemetry: Arc::clone(telemetry), output: config.name.clone() };
    let stream = |stream| stream::Endpoint::new(stream, config, metrics.clone(), expiry.clone());
    let kind = match &config.kind {
        OutputKind::Http(http) => {
            Kind::Http(Arc::new(http::Client::new(http, config, metrics.clone(), expiry.clone())))
        }
        OutputKind::Tcp(tcp) => {
            Kind::Tcp(stream(&tcp.stream).connector(tcp::Lines::new(tcp.format)))
        }
        OutputKind::Syslog(syslog) => Kind::Syslog(
            stream(&syslog.stream).connector(syslog::Messages::new(syslog, config.rejected)),
        ),
        OutputKind::Stdout(format) => {
            let lines = tcp::Lines::new(*format);
            Kind::Stdout(Box::new(stdout::Connector::new(lines, config, metrics.clone())))
        }
    };
    Prepared { kind, config: config.clone(), metrics, status: Arc::default() }
}

impl Prepared {
    /// The name in the config.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// For the queue's cursor.
    #[must_use]
    pub fn metrics(&self) -> OutputMetrics {
        self.metrics.clone()
    }

    /// For `/status`.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// What it reads from files.
    #[must_use]
    pub fn files(&self) -> Option<Arc<dyn Files>> {
        match &self.kind {
            Kind::Http(client) => Some(Arc::clone(client) as Arc<dyn Files>),
            Kind::Tcp(connector) => connector.files(),
            Kind::Syslog(connector) => connector.files(),
            Kind::Stdout(_) => None,
        }
    }

    /// Connects to each address once, with the TLS handshake where there is one, and says how it went.
    pub async fn probe(&mut self) -> Vec<(String, Result<(), String>)> {
        match &mut self.kind {
            Kind::Http(client) => client.probe().await,
            Kind::Tcp(connector) => connector.probe().await,
            Kind::Syslog(connector) => connector.probe().await,
            Kind::Stdout(_) => vec![("stdout".to_owned(), Ok(()))],
        }
    }

    /// The delivery, until `stop`; from `draining` on with short pauses. An error is one that ends the process.
    pub fn run(
        self,
        cursor: Cursor,
        draining: CancellationToken,
        stop: CancellationToken,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
        fn deliver<C: Connect + 'static>(
            delivery: Delivery<C>,
            draining: CancellationToken,
            stop: CancellationToken,
        ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
            Box::pin(delivery.draining(draining).run(stop))
        }
        let health = Health::new(&self.config.name, self.metrics, self.status);
        let config = &self.config;
        match self.kind {
            Kind::Http(client) => {
                let ordered = client.concurrency() == 1;
                let connector = http::Connector(client);
                deliver(Delivery::new(connector, cursor, health, config, ordered), draining, stop)
            }
            Kind::Tcp(connector) => {
                deliver(Delivery::new(connector, cursor, health, config, true), draining, stop)
            }
            Kind::Syslog(connector) => {
                deliver(Delivery::new(connector, cursor, health, config, true), draining, stop)
            }
            Kind::Stdout(connector) => {
                deliver(Delivery::new(*connector, cursor, health, config, true), draining, stop)
            }
        }
    }
}

/// Where an output reports the certificates it sees.
#[derive(Clone)]
struct Expiry {
    telemetry: Arc<Telemetry>,
    output: String,
}

impl Expiry {
    fn set(&self, role: &'static str, not_after: Option<i64>) {
        if let Some(not_after) = not_after {
            self.telemetry.certificate_expiry("output", &self.output, role, not_after);
        }
    }
}
