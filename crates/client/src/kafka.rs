//! The part that all clients of a Kafka cluster share: the settings of librdkafka, the secrets that
//! are read from files, and librdkafka's errors and log.
//!
//! librdkafka works in threads of its own, and its calls may block. Therefore none of its calls is
//! made on the runtime's threads.

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

/// The shortest timeout that librdkafka accepts for setting up a connection. For a request it would
/// accept 10 ms, but both timeouts have the same bounds here.
const SETUP_MIN: Duration = Duration::from_secs(1);
/// The longest timeout that librdkafka accepts for a request. For setting up a connection it would
/// accept 24 days.
const SETUP_MAX: Duration = Duration::from_secs(300);

/// An error of a Kafka client. The text names brokers by host and port.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Trouble {
    /// The reason under which the metrics count this error.
    pub reason: AttemptError,
    /// The text of the error for the log and for `/status`.
    pub message: String,
}

impl Trouble {
    /// Makes a `Trouble` from an error of librdkafka. `words` is librdkafka's own description of
    /// the error, or empty if there is none.
    pub fn new(error: &KafkaError, words: &str) -> Self {
        let code = error.rdkafka_error_code();
        let message = match (error, code) {
            // The error's own text would contain the value too, which may be a password or a key.
            (KafkaError::ClientConfig(_, what, key, _), _) => format!("{key}: {what}"),
            _ if !words.is_empty() => words.to_owned(),
            (_, Some(code)) => code.to_string(),
            (_, None) => error.to_string(),
        };
        // If a broker ends a connection because of the client certificate, librdkafka reports only
        // a broken connection. Its text then names SSL.
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

/// The reasons under which errors of librdkafka are counted. Every other error counts as
/// `protocol`.
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

/// Writes a line of librdkafka's log to the relay's log, with `name` as the field `of`. The level
/// is always debug, because librdkafka logs each attempt to connect. The problems that an operator
/// needs to know are logged by outputs and sources themselves.
pub fn log(name: &str, level: RDKafkaLogLevel, facility: &str, message: &str) {
    tracing::debug!(of = name, ?level, facility, message, "librdkafka");
}

/// The secrets that a Kafka client needs, read from the files that the config names. All files are
/// read and checked together, and a client never mixes secrets that were read at different times.
#[derive(Default, PartialEq)]
pub struct Secrets {
    ca: Option<String>,
    identity: Option<(String, String)>,
    /// The user name and the password; `None` if the config has no SASL.
    sasl: Option<(String, String)>,
    /// The end of the client certificate's validity, in seconds since 1970; `None` if there is no
    /// client certificate, or if it cannot be parsed.
    not_after: Option<i64>,
}

/// A topic: its name, its brokers, and the secrets that a client needs. All clients of the topic
/// share this value.
pub struct Cluster {
    config: config::Kafka,
    /// The secrets in use; `None` until the first call of [`Cluster::apply`].
    secrets: watch::Sender<Option<Arc<Secrets>>>,
}

/// Reports when the secrets of a [`Cluster`] have changed, as long as the cluster lives. Make this
/// value before the client, so that no change is missed.
pub type Changes = watch::Receiver<Option<Arc<Secrets>>>;

impl Cluster {
    /// Makes a cluster from the config. This function reads no file and makes no connection.
    pub fn new(config: &config::Kafka) -> Self {
        Self { config: config.clone(), secrets: watch::Sender::new(None) }
    }

    /// Returns the name of the topic.
    pub fn topic(&self) -> &str {
        &self.config.topic
    }

    /// Returns the addresses of the brokers from the config: `host:port,host:port`.
    pub fn brokers(&self) -> String {
        let brokers: Vec<_> = self.config.brokers.iter().map(ToString::to_string).collect();
        brokers.join(",")
    }

    /// Puts secrets in use for the clients that are made from now on. If the secrets differ from
    /// the previous secrets, each value of type [`Changes`] reports a change, so that older clients
    /// can be replaced.
    pub fn apply(&self, secrets: Secrets) {
        self.secrets.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&secrets);
            if changed {
                *current = Some(Arc::new(secrets));
            }
            changed
        });
    }

    /// Reads the files with secrets that the config names, checks the TLS files, and returns the
    /// secrets. Blocks the thread. The secrets are not in use before [`Cluster::apply`].
    ///
    /// # Errors
    ///
    /// A text that names the file and says what is wrong with it.
    pub fn read(&self) -> Result<Secrets, String> {
        let pem = |file: &Path| {
            let content = named_file::read(file, tls::FILE_BYTES_MAX);
            let text = content.and_then(|it| String::from_utf8(it).map_err(io::Error::other));
            text.map_err(|error| cannot_read(file, &error))
        };
        let mut secrets = Secrets::default();
        if let Some(tls) = &self.config.tls {
            // The result is used only to check the files, and for the end of the certificate's
            // validity: the connections use OpenSSL, not rustls.
            let client = tls::Client::read(tls, &[], None).map_err(|error| error.to_string())?;
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

    /// Returns the end of the validity of the client certificate in use, in seconds since 1970;
    /// `None` if there is no client certificate, or if it cannot be parsed.
    pub fn not_after(&self) -> Option<i64> {
        self.secrets.borrow().as_ref().and_then(|secrets| secrets.not_after)
    }

    /// Makes a value that reports when the secrets change after this call. Clients that were made
    /// before the change should then be replaced.
    pub fn changes(&self) -> Changes {
        self.secrets.subscribe()
    }

    /// Returns librdkafka's settings that all clients of the cluster have in common, with the
    /// secrets in use. `connect` is the timeout for setting up a connection, `request` the timeout
    /// for the answer to a request.
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
            // A typing error in the config must not create a topic with one partition and no
            // replica.
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

    /// Asks the brokers if the topic exists, and returns `Ok` if it does. Blocks the thread for at
    /// most `limit`.
    ///
    /// # Errors
    ///
    /// No broker answers, or the brokers report an error for the topic, such as that it does not
    /// exist.
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
