//! The way back to HAProxy: `deploy/way-back` forwards like the tutorial's HAProxy, with fewer
//! privileges. `deploy/test/manifests.py` checks the manifests.

use crate::support::peers::{Haproxy, forwarder};
use crate::support::prelude::*;

fn shipped() -> String {
    std::fs::read_to_string(repository().join("deploy/way-back/haproxy.cfg")).unwrap()
}

#[test]
fn the_shipped_config_is_the_tutorials() {
    let without_comments = |config: &str| {
        let lines = config.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let tutorials = forwarder("  bind :3000", "  server s1 192.0.2.1:8080 check");
    assert_eq!(without_comments(&shipped()), without_comments(&tutorials));
}

/// Tests that need peers.
mod peers {
    use super::*;

    /// The shipped config, with the port and the consumer of this test, runs under the real HAProxy
    /// as user 65532 without any capability, as in the pod. The consumer gets each body of the
    /// corpus byte for byte.
    #[test]
    fn haproxy_forwards_without_privileges() {
        let sink = HttpSink::accepting();
        let consumer = sink.address();
        let haproxy = Haproxy::unprivileged(|port| {
            let config = shipped().replace("bind :3000", &format!("bind 127.0.0.1:{port}"));
            config.replace("192.0.2.1:8080", &consumer.to_string())
        });
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", haproxy.process.pid())).unwrap();
        for line in
            ["Uid:\t65532\t65532\t65532\t65532", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"]
        {
            assert!(status.lines().any(|it| it == line), "{line}: {status}");
        }
        for (index, body) in corpus().into_iter().enumerate() {
            let answer =
                http::post(haproxy.address(), "/post", "application/json", &body.bytes).unwrap();
            assert_eq!(answer.status, 200, "{}", body.name);
            sink.wait_for_count(index + 1, PATIENCE);
            assert!(sink.accepted()[index] == body.bytes, "{}", body.name);
        }
    }
}
