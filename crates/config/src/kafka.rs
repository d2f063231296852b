//! The keys that an output and a source of type `kafka` share: brokers, topic, SASL and TLS.
//!
//! The keys are read even by a binary without the feature `kafka`, so that it reports the same
//! problems of a config, and one more: the missing feature.

use std::path::PathBuf;

use super::targets::Target;
use super::tls::ClientTls;
use config_table::problem::Content;
use config_table::table::{TABLE, Table, optional, required, whole};
use config_table::template::Template;
use config_table::values;
use config_table::values::HostPort;

/// One topic of a Kafka cluster: its brokers, and how clients authenticate to them.
#[derive(Debug, Clone, PartialEq)]
pub struct Kafka {
    /// The brokers from which clients learn the other brokers of the cluster; at least one.
    pub brokers: Vec<HostPort>,
    /// The name of the topic: 1 to 249 characters of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`.
    pub topic: String,
    /// The settings of TLS; `None` for plain TCP. `server_name` and `min_version` have no effect,
    /// because OpenSSL decides about both.
    pub tls: Option<ClientTls>,
    /// User and password of the clients. `None` if they authenticate by certificate, or not at all.
    pub sasl: Option<Sasl>,
}

/// The value of the key `sasl`: `{ mechanism, username, password_file }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sasl {
    /// The mechanism by which a client proves that it knows the password.
    pub mechanism: SaslMechanism,
    /// The name of the user.
    pub username: Template,
    /// The file that holds the password.
    pub password_file: PathBuf,
}

/// The values of the key `mechanism` of `sasl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// SASL PLAIN (RFC 4616), which sends the password itself.
    Plain,
    /// SCRAM with SHA-256 (RFC 7677), which does not send the password.
    ScramSha256,
    /// SCRAM with SHA-512, which does not send the password.
    ScramSha512,
}

/// The values of `brokers` and `topic`; `None` if one of them is wrong or missing.
pub type KafkaTopic = Option<(Vec<HostPort>, String)>;

impl Kafka {
    /// Reads the keys `brokers` and `topic`. [`Kafka::read`] reads the sections later, because they
    /// come after all plain keys of the table.
    pub fn read_topic(t: &mut Table<'_, '_>) -> KafkaTopic {
        let brokers = t.words(
            required("brokers", "array of host:port", "bootstrap brokers of the cluster"),
            values::host_port,
        );
        let topic = t.word(required("topic", "name", "topic; must already exist"), values::topic);
        brokers.zip(topic)
    }

    /// Reads the sections `sasl` and `tls`. `None` if `topic` is `None`, or if a key of `sasl` is
    /// missing or wrong.
    pub fn read(t: &mut Table<'_, '_>, topic: KafkaTopic) -> Option<Self> {
        let sasl = t.optional_section(
            optional("sasl", TABLE, "none", "username and password for the brokers"),
            Sasl::keys,
        );
        let tls = ClientTls::read_for_kafka(t);
        let is_plain = matches!(&sasl, Some(Some(Sasl { mechanism: SaslMechanism::Plain, .. })));
        if is_plain && tls.is_none() {
            let path = format!("{}.mechanism", t.path_of("sasl"));
            let message = "sends the password in clear text without tls: set tls, or use \
                           SCRAM-SHA-512";
            t.cx.problem_at(&path, &path, message, config_table::problem::Severity::Warning);
        }
        let ((brokers, topic), sasl) = (topic?, whole(sasl)?);
        Some(Self { brokers, topic, tls, sasl })
    }

    /// Returns the brokers, as `OutputSettings::targets` needs them.
    pub fn targets(&self) -> Vec<Target> {
        Target::of_addresses("brokers", &self.brokers)
    }
}

impl Sasl {
    /// Reads the section `sasl`. `None` if a key is missing or wrong.
    fn keys(t: &mut Table<'_, '_>) -> Option<Self> {
        let mechanism = t.choice(
            "mechanism",
            &[
                ("SCRAM-SHA-512", SaslMechanism::ScramSha512),
                ("SCRAM-SHA-256", SaslMechanism::ScramSha256),
                ("PLAIN", SaslMechanism::Plain),
            ],
            Some(SaslMechanism::ScramSha512),
            "SASL mechanism that the brokers expect; `PLAIN` sends the password itself",
        );
        let username = t.secret(required("username", "string", "username"), values::user_name);
        let file = required("password_file", "path", "file with the password");
        let password_file = t.file(file, Content::Password);
        Some(Self { mechanism: mechanism?, username: username?, password_file: password_file? })
    }
}

/// Records the error that this binary was built without Kafka, at the key `type`.
#[cfg(not(feature = "kafka"))]
pub fn without_kafka(t: &Table<'_, '_>) {
    let message = "this binary was built without kafka: build it, or the image, with the kafka \
                   feature (docs/destinations/kafka.md)";
    t.error("type", message);
}
