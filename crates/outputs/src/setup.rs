//! The trait that makes a connector from a protocol's settings, the arguments of the trait, and the
//! rows of the table of protocols.

use std::sync::Arc;

use super::transport::connection::Dialer;
use super::transport::tls_session::Expiry;
use config::{OutputKind, OutputSettings, OutputType};
use delivery::prepared::Connector;
use telemetry::{OutputMetrics, Telemetry};

/// The settings of one protocol, which make the connector of an output. Each protocol has its own
/// type of settings, with a row in `crates/outputs/src/lib.rs`.
pub(crate) trait IntoConnector: OutputSettings {
    /// Returns the connector of an output with these settings. No connection is made and no file is
    /// read yet.
    ///
    /// The type of the connector depends on the protocol. A protocol that has one TCP connection at
    /// a time uses a [`StreamConnector`] if its consumer acknowledges nothing, and an
    /// [`AcknowledgedConnector`] if its consumer acknowledges events. Each of the two needs an
    /// implementation of one more trait, which turns events into bytes. A protocol over HTTP uses
    /// an [`HttpConnector`]. Any other one implements [`Connect`] itself.
    ///
    /// [`StreamConnector`]: super::transport::stream::StreamConnector
    /// [`AcknowledgedConnector`]: super::transport::acknowledged::AcknowledgedConnector
    /// [`HttpConnector`]: super::http::HttpConnector
    /// [`Connect`]: delivery::link::Connect
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector>;
}

/// Everything that an output's connector needs in addition to the settings of its protocol.
pub(crate) struct Setup<'a> {
    /// The config of the output, with the common keys: name, timeouts, batch limits, …
    pub output: &'a config::Output,
    pub metrics: OutputMetrics,
    /// The metric for the expiry of TLS certificates.
    pub expiry: Expiry,
}

impl<'a> Setup<'a> {
    pub(crate) fn new(output: &'a config::Output, telemetry: &Arc<Telemetry>) -> Self {
        let metrics = telemetry.output(&output.name);
        Self { output, metrics, expiry: Expiry::new(telemetry, &output.name) }
    }

    /// Makes the dialer of a protocol that has one TCP connection at a time.
    pub(super) fn dialer(&self, stream: &config::Stream) -> Dialer {
        Dialer::new(stream, self.output, self.metrics.clone(), self.expiry.clone())
    }
}

/// A row of the table of protocols: a type of output and its connector.
pub(crate) struct Row {
    /// The type of output: its name in the config, and the function that reads its keys.
    pub settings: OutputType,
    /// Makes the connector of an output. `None` if the output is of another type.
    pub connector: fn(&OutputKind, &Setup<'_>) -> Option<Box<dyn Connector>>,
}

impl Row {
    /// Makes the row of the protocol whose settings have the type `S`.
    pub(crate) const fn of<S: IntoConnector>() -> Self {
        Self {
            settings: OutputType::of::<S>(),
            connector: |kind, setup| kind.settings::<S>().map(|it| it.connector(setup)),
        }
    }

    /// Returns the types of output in `rows`, in the same order. `N` must be the number of rows.
    pub(crate) const fn types<const N: usize>(rows: &[Self]) -> [OutputType; N] {
        let mut types = [rows[0].settings; N];
        let mut index = 0;
        while index < N {
            types[index] = rows[index].settings;
            index += 1;
        }
        types
    }
}
