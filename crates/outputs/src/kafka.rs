//! `type = "kafka"`: each event becomes a message of a topic. Every binary reads the settings, so
//! that a binary without the feature `kafka` can report that it lacks Kafka. The connector is in
//! `kafka/connector.rs`, and the producer in `kafka/producer.rs`.

#[cfg(feature = "kafka")]
mod connector;
#[cfg(feature = "kafka")]
mod producer;
#[cfg(all(test, feature = "kafka"))]
mod tests;

#[cfg(not(feature = "kafka"))]
use std::convert::Infallible;

use super::setup::{IntoConnector, Setup};
use config::{Compression, Kafka, OutputSettings, Target};
use config_table::table::Table;
use delivery::prepared::Connector;

#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(not(feature = "kafka"), allow(dead_code, reason = "no value exists without kafka"))]
pub(crate) struct Settings {
    /// The topic, its brokers, and the secrets for them.
    pub cluster: Kafka,
    pub key: MessageKey,
    /// The compression of messages that are sent together.
    pub compression: Compression,
    /// A field without a possible value, so that a binary without Kafka can't make settings.
    #[cfg(not(feature = "kafka"))]
    never: Infallible,
}

/// The values of the config key `key`, which sets the key of each message. The partition of a
/// message follows from its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageKey {
    /// The key of a message is the `auditID` of its event. All stages of one request to
    /// kube-apiserver are then in one partition, in order. An event without an `auditID` has no
    /// key.
    AuditId,
    /// Messages have no key, and are spread over the partitions.
    None,
}

impl OutputSettings for Settings {
    const TYPE: &'static str = "kafka";
    const SAMPLE: &'static str = "tls = {}\nsasl = {}";
    const MEMORY: u64 = 8 * (4 << 20);

    fn read(t: &mut Table<'_, '_>) -> Option<Self> {
        let topic = Kafka::read_topic(t);
        let key = t.choice(
            "key",
            &[("audit_id", MessageKey::AuditId), ("none", MessageKey::None)],
            Some(MessageKey::AuditId),
            "message key. `audit_id`: the auditID, so that all stages of an event go to one \
             partition; `none`: no key",
        );
        let meaning = "compression of message batches; by default, brokers keep it";
        let compression = Compression::read(t, Compression::None, meaning);
        let cluster = Kafka::read(t, topic);
        #[cfg(not(feature = "kafka"))]
        {
            // The keys were read only to find the problems in them.
            drop((key, compression, cluster));
            config::without_kafka(t);
            None
        }
        #[cfg(feature = "kafka")]
        Some(Self { cluster: cluster?, key: key?, compression: compression? })
    }

    fn targets(&self) -> Vec<Target> {
        self.cluster.targets()
    }

    fn carries_checkpoints(&self) -> bool {
        true
    }
}

impl IntoConnector for Settings {
    #[cfg(feature = "kafka")]
    fn connector(&self, setup: &Setup<'_>) -> Box<dyn Connector> {
        Box::new(connector::KafkaConnector::new(self, setup))
    }

    #[cfg(not(feature = "kafka"))]
    fn connector(&self, _: &Setup<'_>) -> Box<dyn Connector> {
        match self.never {}
    }
}
