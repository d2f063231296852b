//! The relay of most ingest tests, with one listener and one TCP consumer.

use super::relay::{BASE, Relay};
use super::tcp_sink::TcpSink;

/// Returns the config. `listener` adds keys to the listener, and `tables` adds whole tables.
pub(crate) fn config(sink: &TcpSink, listener: &str, tables: &str) -> String {
    let retry = "retry = { initial_interval = \"50ms\", max_interval = \"200ms\" }";
    format!("{BASE}{listener}\n{}{tables}\n", sink.output("out", retry))
}

/// Starts a consumer of JSON lines, and a relay that sends to it.
pub(crate) fn start(listener: &str, tables: &str) -> (Relay, TcpSink) {
    let sink = TcpSink::start();
    (Relay::start(&config(&sink, listener, tables)), sink)
}

/// Like [`start`], but the consumer refuses connections. The drain gives up after 500 ms.
pub(crate) fn start_with_dead_consumer(listener: &str, tables: &str) -> (Relay, TcpSink) {
    let mut sink = TcpSink::start();
    sink.close();
    let tables = format!("{tables}\n[shutdown]\ndrain_timeout = \"500ms\"\n");
    (Relay::start(&config(&sink, listener, &tables)), sink)
}
