//! Senders in trouble, as `/status` and the metrics show them.

use crate::support::clock::WallClock;
use crate::support::prelude::*;

fn status(relay: &Relay) -> Value {
    http::get(relay.admin(), "/status").unwrap().json()
}

/// Returns the state of the verdict, and its findings as text.
fn verdict(relay: &Relay) -> (String, String) {
    let verdict = status(relay)["verdict"].take();
    (verdict["state"].as_str().unwrap().to_owned(), verdict["findings"].to_string())
}

fn wait_for_verdict(relay: &Relay, state: &str, words: &str) {
    wait_until(&format!("{state}: {words}"), PATIENCE, || {
        let (found, findings) = verdict(relay);
        found == state && findings.contains(words)
    });
}

/// Method: the relay allows four connections, and four bodies never end. A good sender connects.
#[test]
fn slow_bodies_in_every_place_are_bad_on_the_page_and_counted_and_the_relay_stays_ready() {
    let sink = HttpSink::accepting();
    let limits = "[limits]\nmax_connections = 4\n";
    let relay = Relay::start(&format!("{}{limits}", to_sink(sink.address(), "")));
    let head = b"POST /audit HTTP/1.1\r\nHost: relay\r\nContent-Length: 1000000\r\n\r\n{";
    let slow: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = Client::connect(relay.address()).unwrap();
            client.send(head).unwrap();
            client
        })
        .collect();
    relay.wait_for_metrics("the bodies to begin", PATIENCE, |metrics| {
        (metrics.sum("in_flight_bytes") >= 4.0).then_some(())
    });
    let body = generated_batch(1, 5, 900);
    assert!(http::post(relay.address(), "/audit", "application/json", &body).is_err());
    let refused = relay
        .metrics()
        .value("connections_refused_total", &[("listener", "127.0.0.1:0"), ("reason", "all_busy")]);
    assert!(refused >= 1.0, "{refused}");
    wait_for_verdict(&relay, "bad", "New sender connections are closed");
    assert_eq!(http::get(relay.admin(), "/readyz").unwrap().status, 200);
    drop(slow);
    relay.finish(Backlog::Empty);
}

/// Method: the process may have 64 open files, and gets 300 idle connections.
#[test]
fn idle_connections_leave_descriptors_for_probes_deliveries_and_reloads() {
    let sink = HttpSink::accepting();
    let config = to_sink(sink.address(), "");
    let relay = Relay::with(&config).launcher(&["prlimit", "--nofile=64:64"]).start();
    let told = relay.wait_for_log(
        "the limit of open files is too low, so limits.max_connections is lowered: raise the limit \
         (LimitNOFILE of systemd, or that of the container runtime)",
        PATIENCE,
    );
    assert_eq!((&told["open_files"], &told["configured"]), (&64.into(), &4096.into()), "{told}");
    assert_eq!(told["max_connections"], 32, "{told}");
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(Client::connect(relay.address()).unwrap());
    }
    relay.wait_for_metrics("connections that gave way", PATIENCE, |metrics| {
        let refused = [("listener", "127.0.0.1:0"), ("reason", "evicted")];
        (metrics.value("connections_refused_total", &refused) >= 268.0).then_some(())
    });
    for page in ["/livez", "/readyz", "/metrics", "/status"] {
        assert_eq!(http::get(relay.admin(), page).unwrap().status, 200, "{page}");
    }
    wait_for_verdict(&relay, "warn", "limits.max_connections is reached");
    post_batch(&relay, 1, 40, 700);
    relay.wait_until_delivered(PATIENCE);
    relay.reload(&format!("{config}[limits]\nidle_timeout = \"250s\"\n"), "success");
    assert_eq!(relay.reloads("error"), 0.0);
    drop(idle);
    relay.finish(Backlog::Empty);
}

/// These tests need libfaketime.
mod peers {
    use super::*;

    /// Method: time passes 20 times faster for the relay. A sender with a wrong token tries again
    /// and again. Then it is accepted.
    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn what_is_refused_altogether_is_bad_and_stays_seen_after_it_has_ended() {
        let directory = TempDir::new().unwrap();
        let token = directory.path().join("token");
        std::fs::write(&token, "right").unwrap();
        let sink = HttpSink::accepting();
        let key = format!("[[listener]]\nbearer_token_file = \"{}\"", text(&token));
        let config = to_sink(sink.address(), "").replace("[[listener]]", &key);
        let clock = WallClock::new();
        let mut builder = Relay::with(&config);
        for (name, value) in clock.times_faster(20) {
            builder = builder.variable(name, &value);
        }
        let relay = builder.start();
        let post = |token: &str| {
            let mut client = Client::connect(relay.address()).unwrap();
            let body = generated_batch(1, 5, 900);
            let authorization = format!("Authorization: Bearer {token}\r\n");
            let head = format!(
                "POST /audit HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\n\
                 {authorization}Content-Length: {}\r\n\r\n",
                body.len()
            );
            client.send(&[head.as_bytes(), &body].concat()).unwrap();
            client.read_response().unwrap().status
        };
        assert_eq!(post("right"), 200);
        assert_eq!(verdict(&relay).0, "good");
        wait_until("the finding", PATIENCE, || {
            assert_eq!(post("wrong"), 401);
            verdict(&relay).0 == "bad"
        });
        let (_, findings) = verdict(&relay);
        assert!(findings.contains("Everything is refused (requests: unauthorized)"), "{findings}");
        assert_eq!(post("right"), 200);
        let (state, findings) = verdict(&relay);
        let words = "Everything was refused for a time in the last hour";
        assert!(state == "warn" && findings.contains(words), "{state} {findings}");
        let attempts = status(&relay)["refusals"]["permanent"]["long_shut_requests"].clone();
        assert!(attempts.as_u64().unwrap() >= 5, "{attempts}");
        assert!(findings.contains(&format!("{attempts} attempts by senders")), "{findings}");
        relay.wait_until_delivered(PATIENCE);
        relay.finish(Backlog::Empty);
    }
}
