//! The common part of all clients of a Kafka cluster: settings, secrets, errors and the log.
//! librdkafka has its own threads, and its calls may block: no thread of the runtime may call it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::watch;

use crate::tls;
use base::named_file;
use config::SaslMechanism;
use telemetry::AttemptError;

/// The shortest timeout that librdkafka allows for a connection; also used for requests.
const SETUP_MIN: Duration = Duration::from_secs(1);
/// The longest timeout that librdkafka allows for a request; also used for connections.
const SETUP_MAX: Duration = Duration::from_secs(300);

/// An error of a Kafka client. The text may name brokers by host and port.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Trouble {
    /// The reason under which the metrics count this error.
    pub reason: AttemptError,
    /// The text of the error for the log and for `/status`.
    pub message: String,
}

impl Trouble {
    /// Makes a `Trouble`. `words` is librdkafka's own description of the error, and may be empty.
    pub fn new(error: &KafkaError, words: &str) -> Self {
        let code = error.rdkafka_error_code();
        let message = match (error, code) {
            // The error's own text also contains the value, which may be a password or a key.
            (KafkaError::ClientConfig(_, what, key, _), _) => format!("{key}: {what}"),
            _ if !words.is_empty() => words.to_owned(),
            (_, Some(code)) => code.to_string(),
            (_, None) => error.to_string(),
        };
        // librdkafka reports a refused client certificate as a broken connection, and writes `SSL`.
        let reason = match code {
            Some(RDKafkaErrorCode::BrokerTransportFailure) if message.contains("SSL") => {
                AttemptError::Tls
            }
            Some(code) => reason(code),
            None => AttemptError::Protocol,
        };
        Self { reason, message }
    }
}

const REASONS: [(RDKafkaErrorCode, AttemptError); 9] = [
    (RDKafkaErrorCode::Resolve, AttemptError::Resolve),
    (RDKafkaErrorCode::SSL, AttemptError::Tls),
    (RDKafkaErrorCode::BrokerTransportFailure, AttemptError::Connect),
    (RDKafkaErrorCode::AllBrokersDown, AttemptError::Connect),
    (RDKafkaErrorCode::BrokerNotAvailable, AttemptError::Connect),
    (RDKafkaErrorCode::OperationTimedOut, AttemptError::Timeout),
    (RDKafkaErrorCode::MessageTimedOut, AttemptError::Timeout),
    (RDKafkaErrorCode::TimedOutQueue, AttemptError::Timeout),
    (RDKafkaErrorCode::RequestTimedOut, AttemptError::Timeout),
];

fn reason(code: RDKafkaErrorCode) -> AttemptError {
    let known = REASONS.iter().find(|(known, _)| *known == code);
    known.map_or(AttemptError::Protocol, |(_, reason)| *reason)
}

/// Logs a line of librdkafka at the level debug, because librdkafka logs each attempt to connect.
pub fn log(name: &str, level: RDKafkaLogLevel, facility: &str, message: &str) {
    tracing::debug!(of = name, ?level, facility, message, "librdkafka");
}

/// The secrets of a Kafka client, all of them from one call of [`Cluster::read`].
#[derive(Default, PartialEq)]
pub struct Secrets {
    ca: Option<String>,
    identity: Option<(String, String)>,
    sasl: Option<(String, String)>,
    not_after: Option<i64>,
}

/// A Kafka cluster and one topic in it: the brokers, the topic and the secrets. All clients of one
/// output or source share this value.
pub struct Cluster {
    config: config::Kafka,
    secrets: watch::Sender<Option<Arc<Secrets>>>,
}

/// Reports changes of a [`Cluster`]'s secrets. Subscribe before making a client, to miss none.
pub type Changes = watch::Receiver<Option<Arc<Secrets>>>;

impl Cluster {
    /// Makes a cluster from the config. Reads no file and makes no connection.
    pub fn new(config: &config::Kafka) -> Self {
        Self { config: config.clone(), secrets: watch::Sender::new(None) }
    }

    /// Returns the name of the topic.
    pub fn topic(&self) -> &str {
        &self.config.topic
    }

    /// Returns the configured brokers as `host:port,host:port`.
    pub fn brokers(&self) -> String {
        let brokers: Vec<_> = self.config.brokers.iter().map(ToString::to_string).collect();
        brokers.join(",")
    }

    /// Sets the secrets for new clients. Every [`Changes`] reports secrets that differ from the
    /// last ones.
    pub fn apply(&self, secrets: Secrets) {
        self.secrets.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&secrets);
            if changed {
                *current = Some(Arc::new(secrets));
            }
            changed
        });
    }

    /// Reads the secrets for [`Cluster::apply`], and checks the TLS files. Blocks the thread.
    ///
    /// # Errors
    ///
    /// A text that names the file and its fault. One fault is that an expired certificate would
    /// replace a valid one.
    pub fn read(&self) -> Result<Secrets, String> {
        let pem = |file: &Path| {
            let content = named_file::read(file, tls::FILE_BYTES_MAX);
            let text = content.and_then(|it| String::from_utf8(it).map_err(io::Error::other));
            text.map_err(|error| cannot_read(file, &error))
        };
        let mut secrets = Secrets::default();
        if let Some(tls) = &self.config.tls {
            // Checks the files and parses notAfter; connections use OpenSSL, not rustls.
            let client = tls::Client::read(tls, &[], None).map_err(|error| error.to_string())?;
            if let Some((certificate, _)) = &tls.identity {
                tls::refuse_expired(certificate, client.not_after(), self.not_after())
                    .map_err(|error| error.to_string())?;
            }
            secrets.not_after = client.not_after();
            secrets.ca = tls.ca.as_deref().map(pem).transpose()?;
            if let Some((certificate, key)) = &tls.identity {
                secrets.identity = Some((pem(certificate)?, pem(key)?));
            }
        }
        if let Some(sasl) = &self.config.sasl {
            let user =
                sasl.username.expand().map_err(|error| cannot_read(&error.file, &error.source))?;
            let file = &sasl.password_file;
            let password = config::read_secret(file).map_err(|error| cannot_read(file, &error))?;
            secrets.sasl = Some((user, password));
        }
        Ok(secrets)
    }

    /// Returns the client certificate's notAfter, in seconds since 1970, if it is known.
    pub fn not_after(&self) -> Option<i64> {
        self.secrets.borrow().as_ref().and_then(|secrets| secrets.not_after)
    }

    /// Returns a receiver for later changes of the secrets, after which clients should be replaced.
    pub fn changes(&self) -> Changes {
        self.secrets.subscribe()
    }

    /// Returns the settings that all clients have in common. `connect` is the timeout for a
    /// connection, and `request` for the response to a request; a value below 1 s counts as 1 s,
    /// and one above 300 s as 300 s.
    pub fn client(&self, connect: Duration, request: Duration) -> ClientConfig {
        let mut client = ClientConfig::new();
        let millis = |time: Duration| time.clamp(SETUP_MIN, SETUP_MAX).as_millis().to_string();
        let protocol = match (&self.config.tls, &self.config.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        client
            .set_log_level(RDKafkaLogLevel::Info)
            .set("bootstrap.servers", self.brokers())
            .set("client.id", "kube-audit-forwarder")
            .set("security.protocol", protocol)
            .set("socket.connection.setup.timeout.ms", millis(connect))
            .set("socket.timeout.ms", millis(request))
            .set("socket.keepalive.enable", "true")
            // A typing error must not create a topic with one partition and no replica.
            .set("allow.auto.create.topics", "false")
            // Brokers must not get metrics that the config does not ask for.
            .set("enable.metrics.push", "false");
        let secrets = self.secrets.borrow().clone().unwrap_or_default();
        if let Some(ca) = &secrets.ca {
            client.set("ssl.ca.pem", ca);
        }
        if let Some((certificate, key)) = &secrets.identity {
            client.set("ssl.certificate.pem", certificate).set("ssl.key.pem", key);
        }
        if self.config.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify) {
            client.set("enable.ssl.certificate.verification", "false");
        }
        if let (Some(sasl), Some((user, password))) = (&self.config.sasl, &secrets.sasl) {
            let mechanism = match sasl.mechanism {
                SaslMechanism::Plain => "PLAIN",
                SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
                SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
            };
            client
                .set("sasl.mechanism", mechanism)
                .set("sasl.username", user)
                .set("sasl.password", password);
        }
        client
    }

    /// Checks that the topic exists. Blocks the thread for at most `limit`.
    ///
    /// # Errors
    ///
    /// No broker responds, or the brokers report an error, such as a topic that does not exist.
    pub fn find_topic<C: ClientContext>(
        &self,
        client: &Client<C>,
        limit: Duration,
    ) -> Result<(), KafkaError> {
        let metadata = client.fetch_metadata(Some(self.topic()), limit)?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == self.topic());
        let error = match topic {
            Some(topic) => topic.error().map(RDKafkaErrorCode::from),
            None => Some(RDKafkaErrorCode::UnknownTopicOrPartition),
        };
        error.map_or(Ok(()), |code| Err(KafkaError::MetadataFetch(code)))
    }
}

fn cannot_read(file: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_certificate_replaces_none_that_is_valid() {
        let directory = tempfile::tempdir().unwrap();
        let [certificate, private_key] =
            ["tls.crt", "tls.key"].map(|name| directory.path().join(name));
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&private_key, key.serialize_pem()).unwrap();
        let write = |year| {
            let mut params = rcgen::CertificateParams::new(vec!["relay".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            std::fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        };
        let identity = Some((certificate.clone(), private_key));
        let cluster = Cluster::new(&config::Kafka {
            brokers: Vec::new(),
            topic: "audit".to_owned(),
            tls: Some(config::ClientTls { identity, ..config::ClientTls::default() }),
            sasl: None,
        });
        // At the start, no certificate is in use.
        write(2021);
        cluster.apply(cluster.read().unwrap());
        write(2020);
        cluster.apply(cluster.read().unwrap());
        write(4000);
        cluster.apply(cluster.read().unwrap());
        write(2021);
        let error = cluster.read().err();
        assert!(
            error.is_some_and(|error| error.contains("has expired, and the one in use has not"))
        );
        write(4001);
        cluster.apply(cluster.read().unwrap());
    }
}
