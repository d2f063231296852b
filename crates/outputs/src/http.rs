//! `type = "http"`: one POST for each batch. An answer with a status 2xx is the acknowledgement,
//! unless it began before the consumer had the whole request, or is a web page (`accept_html`).
//!
//! Each of the `concurrency` lanes sends one request at a time, and usually has at most one open
//! connection to each address. The statuses 400, 413 and 422 concern the events themselves; all
//! other failures are retried. Redirects are never followed. Nothing here logs or reports the path
//! or query of a configured URL: they may hold a token.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `cookies` `proxy` `settings` `url` `wire` | the cookies of a connection · CONNECT · the keys · the parts of a URL · how far a request got |
//! | 2 | `body` | bodies of requests |
//! | 3 | `api` | what a protocol over HTTP adds |
//! | 4 | `answer` `confirm` | the meaning of answers · requests that are confirmed later |
//! | 5 | `expanded` `request` | templates and files · compression, and the bodies of `http` |
//! | 6 | `pool` | connections between requests |
//! | 7 | `client` | picking an address, dialling |
//! | 8 | `ask` `exchange` `service` `test_request` | which requests are confirmed · a request and its answer · a server that is not the consumer · `check --connect` |
//! | 9 | `link` `transfers` | lanes, and what the delivery loop sees · requests of a protocol that has a link of its own |

use std::sync::Arc;

mod answer;
pub(crate) mod api;
mod ask;
mod body;
mod client;
mod confirm;
mod cookies;
mod exchange;
mod expanded;
mod link;
mod pool;
mod proxy;
mod request;
pub(crate) mod service;
mod settings;
mod test_request;
pub(super) mod transfers;
mod url;
mod wire;

pub(crate) use settings::Settings;

use super::setup::{IntoConnector, Setup};
use api::Api;
use client::Client;
use delivery::endpoints::{Endpoints, Probed, ResolvedAddress, Watch};
use delivery::failure::Failure;
use delivery::files::Files;
use delivery::link::{Begin, Connect};
use delivery::prepared::Connector;
use link::HttpLink;
use request::AnyConsumer;
use transfers::Transfers;

impl Settings {
    pub(crate) fn api(&self) -> Arc<dyn Api> {
        let (format, accept_html) = (self.format, self.accept_html);
        Arc::new(AnyConsumer { format, accept_html })
    }
}

impl IntoConnector for Settings {
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        HttpConnector::boxed(&self.client, self.api(), setup)
    }
}

/// The connector of an output over HTTP. It makes the link, which sends the output's requests. The
/// delivery loop owns the connector.
///
/// [`Connect::connect`] returns a link without a TCP connection. The link connects (`Client::dial`)
/// when a request needs a connection, and again after the consumer has closed the previous one. The
/// watch, a task that tests failed addresses, calls `Client::reach`, which connects without sending
/// a request. The command `check --connect` calls `Client::test_or_excuse`, which sends the test
/// requests of the protocol.
pub(super) struct HttpConnector {
    client: Arc<Client>,
    watch: Watch,
}

impl HttpConnector {
    /// Returns a boxed [`HttpConnector::new`], for a type of output that uses [`HttpLink`].
    pub(crate) fn boxed(
        config: &config::HttpClient,
        api: Arc<dyn Api>,
        setup: &Setup<'_>,
    ) -> Box<dyn Connector> {
        Box::new(Self::new(config, api, setup))
    }

    /// Makes the connector of an output with the protocol `api`. It has read no file yet.
    pub(crate) fn new(config: &config::HttpClient, api: Arc<dyn Api>, setup: &Setup<'_>) -> Self {
        Self { client: Arc::new(Client::new(config, api, setup)), watch: Watch::default() }
    }

    fn watch(&mut self) {
        let client = Arc::clone(&self.client);
        self.watch.start(&self.client.endpoints, move |address| {
            let client = Arc::clone(&client);
            async move { client.reach(address).await }
        });
    }

    /// Returns a sender for the requests of a protocol that has its own link. Also starts the
    /// watch, as [`Connect::connect`] does.
    pub(super) fn transfers(&mut self) -> Transfers {
        self.watch();
        Transfers::new(Arc::clone(&self.client))
    }
}

impl Connect for HttpConnector {
    type Link = HttpLink;

    const EAGER: bool = false;
    const IS_ONE_REQUEST: bool = false;

    fn judges_events(&self) -> bool {
        self.client.api.wraps_events()
    }

    fn sends_lists(&self) -> bool {
        self.client.api.sends_lists()
    }

    fn begin(&mut self, begin: Begin) {
        // The queue is set only once, because each delivery has its own connector.
        self.client.queue.set(begin.queue).ok();
        self.client.api.begin();
    }

    fn is_ordered(&self) -> bool {
        // A consumer that confirms requests later may confirm a later one first.
        let confirms = self.client.api.confirm().is_some();
        self.client.config.concurrency == 1 && !confirms
    }

    fn files(&self) -> Option<Arc<dyn Files>> {
        Some(Arc::clone(&self.client) as Arc<dyn Files>)
    }

    fn endpoints(&self) -> Option<Arc<Endpoints>> {
        Some(Arc::clone(&self.client.endpoints))
    }

    async fn probe(&mut self) -> Probed {
        let client = &self.client;
        // The test request may need a token.
        client.api.begin();
        let Some(expanded) = client.expanded.load_full() else { return Vec::new() };
        let shown = |address: &ResolvedAddress| {
            let endpoint = expanded.endpoints.get(address.endpoint);
            endpoint.map_or_else(|| address.name.to_string(), |it| it.base.to_string())
        };
        let test = |address| client.test_or_excuse(address);
        let mut probed = client.endpoints.try_all(shown, test).await;
        probed.extend(client.api.probe().await);
        probed
    }

    /// Makes the link, and starts the watch. Never returns an error.
    async fn connect(&mut self) -> Result<HttpLink, Failure> {
        self.watch();
        Ok(HttpLink::new(Arc::clone(&self.client)))
    }
}

#[cfg(test)]
mod tests;
