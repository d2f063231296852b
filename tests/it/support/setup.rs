//! The relay that most tests of the ingest side want: one listener, one TCP consumer.

use super::relay::BASE;
use super::relay::Relay;
use super::tcp_sink::TcpSink;

/// The config: `listener` are keys of the listener, `tables` are whole tables.
pub(crate) fn config(sink: &TcpSink, listener: &str, tables: &str) -> String {
    let consumer = sink.address();
    format!(
        "{BASE}{listener}
[[output]]
name = \"out\"
type = \"tcp\"
addresses = [\"{consumer}\"]
replay_window = \"100ms\"
retry = {{ initial_interval = \"50ms\", max_interval = \"200ms\" }}
{tables}
"
    )
}

/// The relay and its consumer of JSON lines.
pub(crate) fn start(listener: &str, tables: &str) -> (Relay, TcpSink) {
    let sink = TcpSink::start();
    (Relay::start(&config(&sink, listener, tables)), sink)
}

/// The same with a consumer that refuses connections; the drain gives up after a moment.
pub(crate) fn start_with_dead_consumer(listener: &str, tables: &str) -> (Relay, TcpSink) {
    let mut sink = TcpSink::start();
    sink.close();
    let tables = format!("{tables}\n[shutdown]\ndrain_timeout = \"500ms\"\n");
    (Relay::start(&config(&sink, listener, &tables)), sink)
}
