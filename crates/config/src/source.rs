//! `[[source]]`: systems from which the relay itself fetches events.

use std::time::Duration;

use super::kafka::Kafka;
use super::queue;
use super::queue::{Acknowledge, Queue};
use config_table::reader::Context;
use config_table::table::{Table, required};
use config_table::values;
use config_table::values::{MIB, ROOM_MIN, secs};

/// One `[[source]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The name, unique among the sources. It is the label `listener` of metrics.
    pub name: String,
    /// The protocol that the source speaks, with that protocol's own keys.
    pub kind: SourceKind,
}

/// The protocol of a source, with its settings. No variant exists without the feature `kafka`.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    /// `type = "kafka"`: the source reads a Kafka topic.
    #[cfg(feature = "kafka")]
    Kafka(KafkaSource),
}

impl Source {
    /// Returns the values of `type`, `topic` and `group`.
    pub fn origin(&self) -> [&str; 3] {
        match self.kind {
            #[cfg(feature = "kafka")]
            SourceKind::Kafka(ref kafka) => ["kafka", &kafka.cluster.topic, &kafka.group],
        }
    }
}

/// A `[[source]]` with `type = "kafka"`.
#[derive(Debug, Clone, PartialEq)]
pub struct KafkaSource {
    /// The topic, and the cluster that holds it.
    pub cluster: Kafka,
    /// The consumer group. The relays of one group share the topic's partitions.
    pub group: String,
    /// The maximum number of bytes of the source's batches in the queue that some required output
    /// has not acknowledged. A batch counts as its lines plus
    /// [`BATCH_OVERHEAD`](super::BATCH_OVERHEAD). A larger batch waits until no other batch of the
    /// source counts.
    pub max_in_flight: u64,
    /// A member of the consumer group loses its partitions to the other members if the brokers hear
    /// nothing from it for this long.
    pub session_timeout: Duration,
}

/// The name, and all settings of one source; each is `None` if it could not be read. The name alone
/// is enough to find two sources with the same name.
pub(super) type Draft = (Option<String>, Option<Source>);

pub(crate) fn read(t: &mut Table<'_, '_>) -> Draft {
    let name = t.word(
        required("name", "name", "value of the `listener` label in metrics; must be unique"),
        values::output_name,
    );
    let kind = t.choice("type", &[("kafka", ())], None, "system to read events from");
    let topic = Kafka::read_topic(t);
    let group = t.word(
        required(
            "group",
            "name",
            "consumer group; relays in the same group share the topic's partitions",
        ),
        |text| values::printable(text, 255),
    );
    let max_in_flight = t.size(
        "max_in_flight",
        64 * MIB,
        ROOM_MIN..,
        "maximum bytes of messages that some required output has not yet acknowledged; after a \
         crash, these messages are read again",
    );
    let session_timeout = t.time(
        "session_timeout",
        secs(10),
        secs(1)..=secs(1800),
        "time after which the partitions of a killed relay go to other members of its group; by \
         default, brokers allow 6s to 30m",
    );
    let cluster = Kafka::read(t, topic);
    #[cfg(not(feature = "kafka"))]
    if kind.is_some() {
        super::kafka::without_kafka(t);
    }
    let read = || {
        let ((), cluster, group) = (kind?, cluster?, group?);
        let kafka = KafkaSource { cluster, group, max_in_flight, session_timeout };
        Some(Source { name: name.clone()?, kind: source_kind(kafka)? })
    };
    let source = read();
    (name, source)
}

#[cfg(feature = "kafka")]
#[allow(clippy::unnecessary_wraps, reason = "there is none in a binary without kafka")]
fn source_kind(source: KafkaSource) -> Option<SourceKind> {
    Some(SourceKind::Kafka(source))
}

#[cfg(not(feature = "kafka"))]
fn source_kind(_: KafkaSource) -> Option<SourceKind> {
    None
}

/// Reports sources with the same name, and queue settings that do not work with sources. A source
/// may commit the offset of a message only when the required outputs have finished its events, so
/// `queue.acknowledge` must be `"delivered"`.
pub(super) fn contradictions(cx: &Context<'_>, queue: &Queue, sources: &[Draft]) {
    for (index, (name, _)) in sources.iter().enumerate() {
        let first = sources.iter().position(|(other, _)| other == name).filter(|_| name.is_some());
        if let Some(first) = first.filter(|first| *first < index) {
            let first = cx.with_line(&format!("source[{first}].name"));
            let message = format!("duplicate name, also used by {first}");
            cx.error(&format!("source[{index}].name"), message);
        }
    }
    let path = "queue.acknowledge";
    if sources.is_empty() || !cx.are_known(&[path]) {
        return;
    }
    if queue::is_durable(cx) {
        let message = "conflicts with [[source]]: offsets are committed only when every required \
                       output has the events, so after a restart the events on disk would be read \
                       from Kafka again: remove queue.directory";
        cx.error("queue.directory", message);
    } else if queue.acknowledge != Acknowledge::Delivered {
        let why = "an offset would be committed before the outputs have the events, and a crash \
                   would lose them";
        match cx.is_set(path) {
            true => {
                cx.error(path, format!("conflicts with [[source]]: {why}, allowed: \"delivered\""))
            }
            false => {
                cx.error("source[0]", format!("needs {path} = \"delivered\": otherwise {why}"))
            }
        }
    }
}
