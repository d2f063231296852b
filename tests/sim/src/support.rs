//! The stand-ins of the integration tests, which the simulator uses unchanged. As in the tests,
//! they refer to this module as `support`.

#![allow(dead_code, reason = "the integration tests use all of it, and the simulator a part")]
#![allow(clippy::unwrap_used, clippy::panic_in_result_fn, reason = "as in the tests")]

#[path = "../../it/support/certificates.rs"]
pub(crate) mod certificates;
#[path = "../../it/support/elasticsearch.rs"]
pub(crate) mod elasticsearch;
#[path = "../../it/support/http.rs"]
pub(crate) mod http;
#[path = "../../it/support/http_sink.rs"]
pub(crate) mod http_sink;
#[path = "../../it/support/ibm.rs"]
pub(crate) mod ibm;
#[path = "../../it/support/loki.rs"]
pub(crate) mod loki;
#[path = "../../it/support/lumberjack_sink.rs"]
pub(crate) mod lumberjack_sink;
#[path = "../../it/support/metrics.rs"]
pub(crate) mod metrics;
#[path = "../../it/support/otlp.rs"]
pub(crate) mod otlp;
#[path = "../../it/support/relp_sink.rs"]
pub(crate) mod relp_sink;
#[path = "../../it/support/s3.rs"]
pub(crate) mod s3;
#[path = "../../it/support/server.rs"]
pub(crate) mod server;
#[path = "../../it/support/splunk.rs"]
pub(crate) mod splunk;
#[path = "../../it/support/stream.rs"]
pub(crate) mod stream;
#[path = "../../it/support/tcp_sink.rs"]
pub(crate) mod tcp_sink;

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// The longest wait for something that should happen at once, in simulated time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The pause between two checks, in simulated time. Each check costs real time.
const PAUSE: Duration = Duration::from_millis(100);

/// Polls `check` until it is true. Panics with `what` after `limit`.
pub(crate) fn wait_until(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    try_wait_for(limit, || check().then_some(()))
        .unwrap_or_else(|| panic!("waited {limit:?} for {what}"));
}

/// Polls `check` until it returns `Some`, and returns that value. Returns `None` after `limit`.
pub(crate) fn try_wait_for<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = check() {
            return Some(found);
        }
        if begun.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Returns a port of 127.0.0.1. Ports are counted up, so a seed always gets the same ones.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Returns the path as text, for config files.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("the paths here are UTF-8")
}
