//! librdkafka's mock cluster as a consumer. It keeps at most the newest 5 MiB of each partition, in
//! memory, so it is like a broker whose disk costs nothing.

use std::net::SocketAddr;
use std::sync::mpsc;

use rdkafka::mocking::MockCluster;

use super::{Shared, TOPIC};

/// The number of partitions of the topic.
const PARTITIONS: i32 = 4;

/// Runs a cluster of one broker until the sink is dropped. Sends its address to `address`.
pub(super) fn serve(address: &mpsc::Sender<SocketAddr>, shared: &Shared) {
    let cluster = MockCluster::new(1).expect("a cluster");
    cluster.create_topic(TOPIC, PARTITIONS, 1).expect("a new topic");
    let broker = cluster.bootstrap_servers().parse().expect("the address of one broker");
    address.send(broker).expect("the sink waits for it");
    shared.wait_until_stopped();
}
