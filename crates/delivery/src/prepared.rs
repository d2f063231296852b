//! An output that is ready to start: its connector, its settings, and its interface to the relay.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::dead_letter::DeadLetters;
use super::endpoints::{Endpoints, Probed};
use super::files::Files;
use super::health::{Health, Status};
use super::link::Connect;
use super::orders::{HandOver, Orders};
use super::run::{Delivery, Start};
use crate::filter::Rules;
use telemetry::OutputMetrics;

/// An output that can be started. It has made no connection and read no file.
pub struct Prepared {
    connector: Box<dyn Connector>,
    config: config::Output,
    metrics: OutputMetrics,
    status: Arc<Status>,
    filter: Option<Arc<Rules>>,
    dead_letters: DeadLetters,
}

/// A [`Connect`] of any protocol, as one type for the relay.
pub trait Connector: Send {
    /// Returns the files that the protocol reads, if there are any.
    fn files(&self) -> Option<Arc<dyn Files>>;

    /// Returns the addresses of the output, if it has any.
    fn endpoints(&self) -> Option<Arc<Endpoints>>;

    /// Connects to each address once. Returns one result for each address.
    fn probe(&mut self) -> Pin<Box<dyn Future<Output = Probed> + Send + '_>>;

    /// Runs a delivery until an order or an error ends it.
    fn deliver(self: Box<Self>, start: Start) -> Running;
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
        Box::pin(Delivery::new(*self, start).run())
    }
}

impl Prepared {
    /// Makes an output from its config and connector. Events that are given up are written to
    /// `dead_letters`, if the config says so.
    pub fn new(
        connector: Box<dyn Connector>,
        config: &config::Output,
        metrics: OutputMetrics,
        dead_letters: &DeadLetters,
    ) -> Self {
        let status = Arc::new(Status::new(connector.endpoints(), config.pause));
        let rules = || Arc::new(Rules::new(&config.filter, config.rejected));
        let filter = (!config.filter.is_empty()).then(rules);
        let dead_letters = dead_letters.clone();
        Self { connector, config: config.clone(), metrics, status, filter, dead_letters }
    }

    /// Returns the output's name in the config.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Returns the settings with which the output joins the queue.
    pub fn in_queue(&self) -> queue::Output {
        let Self { config, metrics, .. } = self;
        queue::Output {
            name: config.name.clone(),
            required: config.required,
            metrics: metrics.clone(),
            recorder: None,
        }
    }

    /// Returns the state for `/status`.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Returns the files that the protocol and the filter read, if there are any.
    pub fn files(&self) -> Option<Arc<dyn Files>> {
        let rules = self.filter.as_ref().map(|rules| Arc::clone(rules) as Arc<dyn Files>);
        let all: Vec<_> = self.connector.files().into_iter().chain(rules).collect();
        (!all.is_empty()).then(|| Arc::new(all) as Arc<dyn Files>)
    }

    /// Connects to each address once, with the TLS handshake if the output uses TLS. Returns the
    /// name and the result for each address.
    pub async fn probe(&mut self) -> Probed {
        self.connector.probe().await
    }

    /// Runs the delivery until `orders` ends it. `begin` is the state that the previous delivery of
    /// this output left. An error means that the process must end.
    pub fn run(self, begin: HandOver, orders: Orders) -> Running {
        let Self { connector, config, metrics, status, filter, dead_letters } = self;
        let health = Health::new(&config, metrics, status);
        connector.deliver(Start { begin, health, config, filter, dead_letters, orders })
    }
}

/// A running delivery. The result is `Some` if another delivery replaces this one or a reload has
/// removed the output, and `None` if the process ends.
pub type Running = Pin<Box<dyn Future<Output = Result<Option<HandOver>, String>> + Send>>;
