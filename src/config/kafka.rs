//! The keys that an output and a source of type `kafka` share: brokers, topic, SASL and TLS.
//!
//! They are read with or without the feature `kafka`, so that a binary without it reports the same
//! problems of a config, and one more.

use std::path::PathBuf;

use super::problem::Content;
use super::table::TABLE;
use super::table::Table;
use super::table::optional;
use super::table::required;
use super::table::whole;
use super::targets::Target;
use super::template::Template;
use super::tls::ClientTls;
use super::values;
use super::values::HostPort;

/// A topic of a Kafka cluster, and how clients reach and authenticate to the brokers.
#[derive(Debug, Clone, PartialEq)]
pub struct Kafka {
    /// The brokers that clients ask first; from these, clients learn the other brokers of the
    /// cluster. At least one.
    pub brokers: Vec<HostPort>,
    /// The name of the topic: 1 to 249 characters of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`.
    pub topic: String,
    /// The settings of TLS; `None`: plain TCP. The fields `server_name` and `min_version` have
    /// their defaults and have no effect, because OpenSSL decides about both.
    pub tls: Option<ClientTls>,
    /// User and password of the clients; `None`: clients authenticate by their certificate, or not
    /// at all.
    pub sasl: Option<Sasl>,
}

/// The value of the key `sasl`: `{ mechanism, username, password_file }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sasl {
    /// The SASL mechanism, by which a client proves that it knows the password.
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
    /// SCRAM with SHA-512, in other respects like SCRAM-SHA-256.
    ScramSha512,
}

/// The brokers and the topic, which are the plain keys of a cluster. `None`: at least one of the
/// keys is wrong or missing, and the problem is recorded.
pub type KafkaTopic = Option<(Vec<HostPort>, String)>;

impl Kafka {
    /// Reads the plain keys, brokers and topic. [`Kafka::read`] reads the sections, after the
    /// table's other keys.
    pub fn read_topic(t: &mut Table<'_, '_>) -> KafkaTopic {
        let brokers = t.words(
            required(
                "brokers",
                "array of host:port",
                "the others of the cluster are found by them",
            ),
            values::host_port,
        );
        let topic = t.word(required("topic", "name", "it must exist"), values::topic);
        brokers.zip(topic)
    }

    /// Reads the sections `sasl` and `tls`, and joins them with the plain keys in `topic`. `None`:
    /// one of the keys or sections has a problem, which is recorded.
    pub fn read(t: &mut Table<'_, '_>, topic: KafkaTopic) -> Option<Self> {
        let sasl = t.optional_section(
            optional("sasl", TABLE, "none", "user and password for the brokers"),
            Sasl::keys,
        );
        let tls = ClientTls::read_for_kafka(t);
        let is_plain = matches!(&sasl, Some(Some(Sasl { mechanism: SaslMechanism::Plain, .. })));
        if is_plain && tls.is_none() {
            let path = format!("{}.mechanism", t.path_of("sasl"));
            let message = "sends the password readable without tls, better: tls, or SCRAM-SHA-512";
            t.cx.problem_at(&path, &path, message, super::problem::Severity::Warning);
        }
        let ((brokers, topic), tls, sasl) = (topic?, whole(tls)?, whole(sasl)?);
        Some(Self { brokers, topic, tls, sasl })
    }

    /// The brokers; see [`OutputSettings::targets`].
    ///
    /// [`OutputSettings::targets`]: super::protocol::OutputSettings::targets
    #[must_use]
    pub fn targets(&self) -> Vec<Target> {
        Target::of_addresses("brokers", &self.brokers)
    }
}

impl Sasl {
    fn keys(t: &mut Table<'_, '_>) -> Option<Self> {
        let mechanism = t.choice(
            "mechanism",
            &[
                ("SCRAM-SHA-512", SaslMechanism::ScramSha512),
                ("SCRAM-SHA-256", SaslMechanism::ScramSha256),
                ("PLAIN", SaslMechanism::Plain),
            ],
            Some(SaslMechanism::ScramSha512),
            "as the brokers want it; PLAIN sends the password as it is",
        );
        let username = t.secret(required("username", "string", "user"), values::user_name);
        let file = required("password_file", "path", "file with the password");
        let password_file = t.file(file, Content::Password, true);
        Some(Self { mechanism: mechanism?, username: username?, password_file: password_file? })
    }
}

/// Reports, at the key `type`, that this binary was built without Kafka. The caller has read the
/// other keys all the same, because they may hold more problems.
#[cfg(not(feature = "kafka"))]
pub(crate) fn without_kafka(t: &Table<'_, '_>) {
    let message = "this binary was built without kafka: build it, or the image, with the \
                   feature kafka (docs/operating/kafka.md)";
    t.error("type", message);
}
