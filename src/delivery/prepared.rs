//! An output that is ready to start: its connector, its settings, and what the relay asks of it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::dead_letter::DeadLetters;
use super::endpoints::Endpoints;
use super::endpoints::Probed;
use super::failure::ProbeError;
use super::failure::RunError;
use super::files::Files;
use super::health::Health;
use super::health::Status;
use super::link::Connect;
use super::orders::HandOver;
use super::orders::Orders;
use super::run::Delivery;
use crate::config;
use crate::filter::Filter;
use crate::filter::Rules;
use crate::queue;
use crate::telemetry::OutputMetrics;

/// An output that can be started. Nothing is connected, and no file was read, yet.
pub struct Prepared {
    connector: Box<dyn Connector>,
    config: config::Output,
    metrics: OutputMetrics,
    status: Arc<Status>,
    filter: Option<Arc<Rules>>,
    dead_letters: DeadLetters,
}

/// A [`Connect`] of any type, so that outputs of all protocols are one type for the relay.
pub(crate) trait Connector: Send {
    /// The files that the protocol reads; `None` if it reads none.
    fn files(&self) -> Option<Arc<dyn Files>>;

    /// The addresses of the output; `None` if the output has no addresses.
    fn endpoints(&self) -> Option<Arc<Endpoints>>;

    /// Connects to each address once, and returns how each attempt went.
    fn probe(&mut self) -> Pin<Box<dyn Future<Output = Probed> + Send + '_>>;

    /// Delivers until the orders in `start` end the delivery.
    fn deliver(self: Box<Self>, start: Start) -> Running;
}

/// Everything that a delivery starts with, besides its connector.
pub(crate) struct Start {
    begin: HandOver,
    health: Health,
    config: config::Output,
    filter: Option<Arc<Rules>>,
    dead_letters: DeadLetters,
    orders: Orders,
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

    fn deliver(self: Box<Self>, start: Start) -> Running {
        let Start { begin, health, config, filter, dead_letters, orders } = start;
        let HandOver { cursor, claims, seen } = begin;
        let filter = filter.map(|rules| Filter::new(rules, seen));
        let delivery = Delivery::new(*self, cursor, health, &config);
        Box::pin(delivery.inherit(claims).filter(filter).dead_letters(dead_letters).run(orders))
    }
}

impl Prepared {
    /// Puts an output together from its config and the connector of its protocol. Events that the
    /// consumer will not get go to `dead_letters`, if the config says so.
    pub(crate) fn new(
        connector: Box<dyn Connector>,
        config: &config::Output,
        metrics: OutputMetrics,
        dead_letters: &DeadLetters,
    ) -> Self {
        let status = Arc::new(Status::new(connector.endpoints()));
        let rules = || Arc::new(Rules::new(&config.filter, config.rejected));
        let filter = (!config.filter.is_empty()).then(rules);
        let dead_letters = dead_letters.clone();
        Self { connector, config: config.clone(), metrics, status, filter, dead_letters }
    }

    /// The output's name in the config.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The settings that the queue needs to let the output join.
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

    /// The state that `/status` shows.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// The files that the protocol and the filter read; `None` if there are none.
    #[must_use]
    pub fn files(&self) -> Option<Arc<dyn Files>> {
        let rules = self.filter.as_ref().map(|rules| Arc::clone(rules) as Arc<dyn Files>);
        let all: Vec<_> = self.connector.files().into_iter().chain(rules).collect();
        (!all.is_empty()).then(|| Arc::new(all) as Arc<dyn Files>)
    }

    /// Connects to each address once, with the TLS handshake where there is one. Returns each
    /// address with the result, or with the reason why it failed.
    pub async fn probe(&mut self) -> Vec<(String, Result<(), ProbeError>)> {
        self.connector.probe().await
    }

    /// Delivers until `orders` ends it. Starts with what the delivery before it has left.
    ///
    /// The future returns `Some` if another delivery is to take over, and `None` if the process
    /// ends. An error ends the process ([`RunError`]).
    pub fn run(self, begin: HandOver, orders: Orders) -> Running {
        let Self { connector, config, metrics, status, filter, dead_letters } = self;
        let health = Health::new(&config.name, metrics, status);
        let health = health.gives_up(config.retry.max_elapsed.is_some());
        connector.deliver(Start { begin, health, config, filter, dead_letters, orders })
    }
}

/// The future that [`Prepared::run`] returns. It is `Some` if another delivery takes over, and
/// `None` if the process ends.
pub type Running = Pin<Box<dyn Future<Output = Result<Option<HandOver>, RunError>> + Send>>;
