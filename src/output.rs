//! The protocols that outputs speak. Each file is one protocol; `transport` holds what several
//! share.
//!
//! A protocol implements [`Connect`](crate::delivery::link::Connect). It knows no delivery loop,
//! and of the other files only those on floors below its own.
//!
//! | floor | files | what they know |
//! |---|---|---|
//! | 1 | `transport` | TCP, TLS, and sessions on them |
//! | 2 | `json_lines` `syslog` | batches as lines · RFC 5424 messages |
//! | 3 | `http` `kafka` `lumberjack` `relp` `stdout` | one protocol each |

use std::sync::Arc;

use crate::config;
use crate::config::OutputKind;
use crate::delivery::DeadLetters;
use crate::delivery::Prepared;
use crate::delivery::prepared::Connector;
use crate::telemetry::Telemetry;

mod http;
mod json_lines;
#[cfg(feature = "kafka")]
mod kafka;
mod lumberjack;
mod relp;
mod stdout;
pub mod syslog;
mod transport;

pub use transport::encode::Encode;
pub use transport::encode::Encoded;

use json_lines::Lines;
use transport::acknowledged;
use transport::connection;
use transport::stream;
use transport::tls_session::Expiry;

/// Makes an output of its config. Nothing is connected, and no file is read, yet. Events that the
/// consumer will not get go to `dead_letters`, if the config says so.
#[must_use]
pub fn prepare(
    config: &config::Output,
    telemetry: &Arc<Telemetry>,
    dead_letters: &DeadLetters,
) -> Prepared {
    let metrics = telemetry.output(&config.name);
    let expiry = Expiry::new(telemetry, &config.name);
    let dialer = |stream| connection::Dialer::new(stream, config, metrics.clone(), expiry.clone());
    let annotate = &config.filter.annotate;
    let connector: Box<dyn Connector> = match &config.kind {
        OutputKind::Http(http) => {
            Box::new(http::HttpConnector::new(http, config, metrics.clone(), expiry.clone()))
        }
        OutputKind::Tcp(tcp) => {
            let lines = Lines::new(tcp.format);
            Box::new(stream::StreamConnector::new(dialer(&tcp.stream), lines, tcp.replay_window))
        }
        OutputKind::Syslog(syslog) => {
            let messages = syslog::Messages::new(syslog, config.rejected, annotate);
            let dialer = dialer(&syslog.stream);
            Box::new(stream::StreamConnector::new(dialer, messages, syslog.replay_window))
        }
        OutputKind::Stdout(format) => {
            let lines = Lines::new(*format);
            Box::new(stdout::StdoutConnector::new(lines, config, metrics.clone()))
        }
        OutputKind::Lumberjack(output) => {
            let level = output.compression_level;
            let make = move || lumberjack::Lumberjack::new(level);
            let dialer = dialer(&output.stream);
            Box::new(acknowledged::AcknowledgedConnector::new(dialer, output.window, make))
        }
        OutputKind::Relp(output) => {
            let messages = syslog::Rfc5424::new(&output.messages, config.rejected, annotate);
            let make = move || relp::Relp::new(messages.clone());
            let dialer = dialer(&output.stream);
            Box::new(acknowledged::AcknowledgedConnector::new(dialer, output.window, make))
        }
        #[cfg(feature = "kafka")]
        OutputKind::Kafka(kafka) => {
            Box::new(kafka::KafkaConnector::new(kafka, config, metrics.clone(), expiry))
        }
    };
    Prepared::new(connector, config, metrics, dead_letters)
}
