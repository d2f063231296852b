//! Where batches go out: one delivery loop for each output, over the protocol that its config names.
//!
//! A new type is one file with a `delivery::Connect` and one arm in [`prepare`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::config;
use crate::config::OutputKind;
use crate::filter::Filter;
use crate::filter::Rules;
use crate::queue;
use crate::telemetry::AttemptError;
use crate::telemetry::OutputMetrics;
use crate::telemetry::Telemetry;

mod acknowledged;
mod connection;
mod dead_letter;
mod delivery;
mod endpoints;
mod health;
mod http;
#[cfg(feature = "kafka")]
mod kafka;
mod lumberjack;
mod relp;
mod retry;
mod stdout;
mod stream;
pub mod syslog;
mod tcp;

pub use dead_letter::DeadLetters;
pub use delivery::HandOver;
pub use delivery::Orders;
pub use endpoints::AddressState;
pub use health::Snapshot;
pub use health::Status;
pub use stream::Encode;
pub use stream::Encoded;

use delivery::Connect;
use delivery::Delivery;
use delivery::Probed;
use endpoints::Endpoints;
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
    /// Reads and checks them, and changes nothing yet. Blocks.
    ///
    /// # Errors
    ///
    /// What is wrong, for the operator.
    fn stage(self: Arc<Self>) -> Result<Staged, String>;
}

/// Puts what was read in use. Dropped instead, it has changed nothing.
pub type Staged = Box<dyn FnOnce() + Send>;

/// An output that can be started.
pub struct Prepared {
    connector: Box<dyn Connector>,
    config: config::Output,
    metrics: OutputMetrics,
    status: Arc<Status>,
    filter: Option<Arc<Rules>>,
    dead_letters: DeadLetters,
}

/// A [`Connect`] of any type.
trait Connector: Send {
    fn files(&self) -> Option<Arc<dyn Files>>;

    fn endpoints(&self) -> Option<Arc<Endpoints>>;

    fn probe(&mut self) -> Pin<Box<dyn Future<Output = Probed> + Send + '_>>;

    fn deliver(
        self: Box<Self>,
        begin: HandOver,
        health: Health,
        config: &config::Output,
        filter: Option<Arc<Rules>>,
        dead_letters: DeadLetters,
        orders: Orders,
    ) -> Running;
}

impl<C: Connect + 'static> Connector for C {
    fn files(&self) -> Option<Arc<dyn Files>> {
        Connect::files(self)
    }

    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        Connect::endpoints(self)
    }

    fn probe(&mut self) -> Pin<Box<dyn Future<Output = Probed> + Send + '_>> {
        Box::pin(Connect::probe(self))
    }

    fn deliver(
        self: Box<Self>,
        begin: HandOver,
        health: Health,
        config: &config::Output,
        filter: Option<Arc<Rules>>,
        dead_letters: DeadLetters,
        orders: Orders,
    ) -> Running {
        let HandOver { cursor, claims, seen } = begin;
        let filter = filter.map(|rules| Filter::new(rules, seen));
        let delivery = Delivery::new(*self, cursor, health, config);
        Box::pin(delivery.inherit(claims).filter(filter).dead_letters(dead_letters).run(orders))
    }
}

/// Makes an output of its config. Nothing is connected, and no file read, yet. What its consumer will not get goes to the
/// dead letters, if it says so.
#[must_use]
pub fn prepare(
    config: &config::Output,
    telemetry: &Arc<Telemetry>,
    dead_letters: &DeadLetters,
) -> Prepared {
    let metrics = telemetry.output(&config.name);
    let expiry = Expiry { telemetry: Arc::clone(telemetry), output: config.name.clone() };
    let endpoint =
        |stream| connection::Endpoint::new(stream, config, metrics.clone(), expiry.clone());
    let annotate = &config.filter.annotate;
    let connector: Box<dyn Connector> = match &config.kind {
        OutputKind::Http(http) => {
            Box::new(http::Connector::new(http, config, metrics.clone(), expiry.clone()))
        }
        OutputKind::Tcp(tcp) => {
            let lines = tcp::Lines::new(tcp.format);
            Box::new(stream::Connector::new(endpoint(&tcp.stream), lines, tcp.replay_window))
        }
        OutputKind::Syslog(syslog) => {
            let messages = syslog::Messages::new(syslog, config.rejected, annotate);
            let endpoint = endpoint(&syslog.stream);
            Box::new(stream::Connector::new(endpoint, messages, syslog.replay_window))
        }
        OutputKind::Stdout(format) => {
            let lines = tcp::Lines::new(*format);
            Box::new(stdout::Connector::new(lines, config, metrics.clone()))
        }
        OutputKind::Lumberjack(output) => {
            let level = output.compression_level;
            let make = move || lumberjack::Lumberjack::new(level);
            let endpoint = endpoint(&output.stream);
            Box::new(acknowledged::Connector::new(endpoint, output.window, make))
        }
        OutputKind::Relp(output) => {
            let messages = syslog::Rfc5424::new(&output.messages, config.rejected, annotate);
            let make = move || relp::Relp::new(messages.clone());
            let endpoint = endpoint(&output.stream);
            Box::new(acknowledged::Connector::new(endpoint, output.window, make))
        }
        #[cfg(feature = "kafka")]
        OutputKind::Kafka(kafka) => {
            Box::new(kafka::Connector::new(kafka, config, metrics.clone(), expiry))
        }
    };
    let status = Arc::new(Status::new(connector.endpoints()));
    let filter =
        (!config.filter.is_empty()).then(|| Arc::new(Rules::new(&config.filter, config.rejected)));
    let dead_letters = dead_letters.clone();
    Prepared { connector, config: config.clone(), metrics, status, filter, dead_letters }
}

impl Files for Rules {
    fn stage(self: Arc<Self>) -> Result<Staged, String> {
        let read = self.read().map_err(|mistakes| mistakes.join("; "))?;
        Ok(Box::new(move || self.apply(read)))
    }
}

/// All of them, or none.
impl Files for Vec<Arc<dyn Files>> {
    fn stage(self: Arc<Self>) -> Result<Staged, String> {
        let staged = self.iter().map(|files| Arc::clone(files).stage());
        let staged = staged.collect::<Result<Vec<_>, _>>()?;
        Ok(Box::new(move || staged.into_iter().for_each(|staged| staged())))
    }
}

impl Prepared {
    /// The name in the config.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// For the queue.
    #[must_use]
    pub fn in_queue(&self) -> queue::Output {
        let Self { config, metrics, .. } = self;
        queue::Output {
            name: config.name.clone(),
            required: config.required,
            metrics: metrics.clone(),
            keeps: config.filter.deduplicate.unwrap_or_default(),
        }
    }

    /// For `/status`.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// What it reads from files.
    #[must_use]
    pub fn files(&self) -> Option<Arc<dyn Files>> {
        let rules = self.filter.as_ref().map(|rules| Arc::clone(rules) as Arc<dyn Files>);
        let all: Vec<_> = self.connector.files().into_iter().chain(rules).collect();
        (!all.is_empty()).then(|| Arc::new(all) as Arc<dyn Files>)
    }

    /// Connects to each address once, with the TLS handshake where there is one, and says how it went.
    pub async fn probe(&mut self) -> Vec<(String, Result<(), String>)> {
        self.connector.probe().await
    }

    /// The delivery, until it is stopped, or, with what it leaves, until another takes its place. It begins with what the
    /// one before it has left. An error is one that ends the process.
    pub fn run(self, begin: HandOver, orders: Orders) -> Running {
        let Self { connector, config, metrics, status, filter, dead_letters } = self;
        let health = Health::new(&config.name, metrics, status);
        let health = health.gives_up(config.retry.max_elapsed.is_some());
        connector.deliver(begin, health, &config, filter, dead_letters, orders)
    }
}

/// See [`Prepared::run`].
pub type Running = Pin<Box<dyn Future<Output = Result<Option<HandOver>, String>> + Send>>;

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
