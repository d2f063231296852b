//! Senders that are refused, cannot connect, or do not send.

use super::*;
use crate::support::corpus::{lease_update, list_of};

/// Starts a relay with these tables, and returns its consumer.
fn relay(scene: &mut Scene, tables: &str) -> HttpSink {
    let sink = HttpSink::accepting();
    scene.start(&to_sink(sink.address(), tables));
    sink
}

/// In the trouble, `bad` is called before each good batch, or alone if `is_alone`.
fn bad(scene: &mut Scene, is_alone: bool, bad: fn(SocketAddr)) {
    let _sink = relay(scene, "[limits]\nmax_body = \"64KiB\"\n");
    scene.calm();
    scene.sends(move |address, seed| {
        bad(address);
        if !is_alone {
            _ = send(address, seed, 5);
        }
    });
    scene.trouble();
}

/// In the trouble, one sender has a wrong token, or all senders if `is_alone`.
fn without_token(scene: &mut Scene, is_alone: bool) {
    let directory = TempDir::new().expect("a directory");
    let token = directory.path().join("token");
    std::fs::write(&token, "right").expect("a writable directory");
    let key = format!("[[listener]]\nbearer_token_file = {:?}", text(&token));
    let sink = HttpSink::accepting();
    scene.start(&to_sink(sink.address(), "").replace("[[listener]]", &key));
    let send = |address, seed, token: &str| {
        let mut client = Client::connect(address).expect("a connection");
        let authorization = format!("Bearer {token}");
        let headers =
            [("Content-Type", "application/json"), ("Authorization", authorization.as_str())];
        drop(client.request("POST", "/audit", &headers, &generated_batch(seed, 5, 900)));
    };
    scene.sends(move |address, seed| send(address, seed, "right"));
    scene.calm();
    scene.sends(move |address, seed| {
        send(address, seed, "wrong");
        if !is_alone {
            send(address, seed, "right");
        }
    });
    scene.trouble();
}

/// Like [`bad`], at a listener with TLS.
fn tls(scene: &mut Scene, is_alone: bool, bad: fn(SocketAddr)) {
    let certificates = Certificates::new();
    let key = format!("[[listener]]\n{}", certificates.server.tls());
    let sink = HttpSink::accepting();
    scene.start(&to_sink(sink.address(), "").replace("[[listener]]", &key));
    let client = certificates.client_config(None);
    let good = move |address, seed| {
        if let Ok(mut it) = Client::connect_tls(address, Arc::clone(&client)) {
            drop(it.post("/audit", "application/json", &generated_batch(seed, 5, 900)));
        }
    };
    scene.sends(good.clone());
    scene.calm();
    scene.sends(move |address, seed| {
        bad(address);
        if !is_alone {
            good(address, seed);
        }
    });
    scene.trouble();
}

/// A client that does not know the CA of the listener's certificate.
fn stranger(address: SocketAddr) {
    let other = Certificates::new();
    assert!(Client::connect_tls(address, other.client_config(None)).is_err());
}

/// Begins requests with bodies of this length, of which only `sent` bytes are sent, and waits until
/// the relay holds them: a batch that came first would have their place.
fn begun(relay: &Relay, count: usize, length: usize, sent: usize) -> Vec<Client> {
    let head = format!(
        "POST /audit HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    let one = || {
        let mut client = Client::connect(relay.address()).expect("a connection");
        client.send(&[head.as_bytes(), &vec![b' '; sent]].concat()).expect("it is read");
        client
    };
    let clients: Vec<Client> = (0..count).map(|_| one()).collect();
    let are_in = |metrics: &Metrics| metrics.sum("in_flight_bytes") >= (count * sent) as f64;
    relay.wait_for_metrics("the bodies", PATIENCE, |it| are_in(it).then_some(()));
    clients
}

/// Three kube-apiservers, one of which falls silent.
fn one_silent(scene: &mut Scene) {
    let sink = HttpSink::accepting();
    scene.start(&to_sink(sink.address(), ""));
    let stream = |numbers: std::ops::Range<u8>| {
        let update = |number| lease_update(&format!("apiserver-{number}aaaaaaa"));
        let body = list_of(&numbers.map(update).collect::<Vec<_>>());
        move |address, seed| {
            _ = send(address, seed, 5);
            _ = send_body(address, "/audit", &body);
        }
    };
    scene.sends(stream(0..3));
    scene.calm();
    scene.sends(stream(0..2));
    scene.trouble();
}

const REJECTED: &str = "Requests were rejected permanently in the last five minutes";

const REFUSED: &str = "requests from a sender are refused";

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "one of three kube-apiservers is silent",
        run: one_silent,
        says: ("good", "Every output works"),
        fires: "ApiserverSilent",
        before: &[],
        logs: "",
    },
    Row {
        name: "every sender has a wrong token",
        run: |scene| without_token(scene, true),
        says: (
            "warn",
            "Requests were rejected permanently in the last five minutes (unauthorized)",
        ),
        fires: "EverythingRefused",
        before: &[],
        logs: REFUSED,
    },
    Row {
        name: "one sender has a wrong token",
        run: |scene| without_token(scene, false),
        says: (
            "warn",
            "Requests were rejected permanently in the last five minutes (unauthorized)",
        ),
        fires: "RequestsRejected",
        before: &[],
        logs: REFUSED,
    },
    Row {
        name: "every sender has a wrong path",
        run: |scene| bad(scene, true, |it| _ = send_body(it, "/a/b/c", b"{}")),
        says: ("warn", REJECTED),
        fires: "EverythingRefused",
        before: &[],
        logs: REFUSED,
    },
    Row {
        name: "a load balancer asks for / beside the senders",
        run: |scene| bad(scene, false, |it| _ = http::get(it, "/")),
        says: ("good", ""),
        fires: "",
        before: &[],
        logs: "",
    },
    Row {
        name: "one sender has no JSON",
        run: |scene| bad(scene, false, |it| _ = send_body(it, "/audit", b"no JSON")),
        says: ("warn", REJECTED),
        fires: "RequestsRejected",
        before: &[],
        logs: REFUSED,
    },
    Row {
        name: "no sender has JSON",
        run: |scene| bad(scene, true, |it| _ = send_body(it, "/audit", b"no JSON")),
        says: ("warn", REJECTED),
        fires: "EverythingRefused",
        before: &[],
        logs: REFUSED,
    },
    Row {
        name: "batches are too large",
        run: |scene| bad(scene, false, |it| _ = send_body(it, "/audit", &[b'x'; 70_000])),
        says: ("warn", REJECTED),
        fires: "BatchTooLarge",
        before: &[],
        logs: REFUSED,
    },
    Row {
        name: "no sender knows the listener's authority",
        run: |scene| tls(scene, true, stranger),
        says: ("warn", "TLS handshakes at 127.0.0.1:0 failed recently"),
        fires: "EverythingRefused",
        before: &[],
        logs: "TLS",
    },
    Row {
        name: "one sender does not know the listener's authority",
        run: |scene| tls(scene, false, stranger),
        says: ("warn", "TLS handshakes at 127.0.0.1:0 failed recently"),
        fires: "TlsHandshakesFail",
        before: &[],
        logs: "TLS",
    },
    Row {
        name: "one sender speaks plain HTTP to TLS",
        run: |scene| tls(scene, false, |it| _ = send(it, 1, 5)),
        says: ("warn", "failed recently (plain_http)"),
        fires: "TlsHandshakesFail",
        before: &[],
        logs: "plain",
    },
    Row {
        name: "one sender speaks TLS to plain HTTP",
        run: |scene| bad(scene, false, stranger),
        says: ("warn", REJECTED),
        fires: "RequestsRejected",
        before: &[],
        logs: "the sender speaks TLS to a listener without TLS",
    },
    Row {
        name: "slow bodies hold all places",
        run: |scene| {
            let _sink = relay(scene, "[limits]\nmax_connections = 4\nbody_timeout = \"5m\"\n");
            scene.calm();
            let relay = scene.relay();
            // An idle connection would be closed to make room.
            let of_calm = |metrics: &Metrics| metrics.sum("connections") == 0.0;
            relay.wait_for_metrics("places", PATIENCE, |it| of_calm(it).then_some(()));
            let _slow = begun(relay, 4, 1_000_000, 1);
            scene.trouble();
        },
        says: ("bad", "New sender connections are closed"),
        fires: "ConnectionsRefused",
        before: &[],
        logs: "connections from a sender are closed",
    },
    Row {
        name: "idle connections hold all places",
        run: |scene| {
            let _sink = relay(scene, "[limits]\nmax_connections = 4\n");
            scene.calm();
            let idle = std::cell::RefCell::new(Vec::new());
            scene.sends(move |address, seed| {
                idle.borrow_mut().extend((0..4).map(|_| Client::connect(address)));
                _ = send(address, seed, 5);
            });
            scene.trouble();
        },
        says: ("warn", "limits.max_connections is reached"),
        fires: "ConnectionsRefused",
        before: &[],
        logs: "connections from a sender are closed",
    },
    Row {
        name: "the bodies under way reach the limit",
        run: |scene| {
            let limits = "[limits]\nmax_in_flight = \"1MiB\"\nmax_body = \"1MiB\"\n\
                          body_timeout = \"5m\"\n";
            let _sink = relay(scene, limits);
            scene.calm();
            let _slow = begun(scene.relay(), 1, 1_040_000, 1_000_000);
            scene.sends_events(100);
            scene.trouble();
        },
        says: ("warn", "the request bodies in progress have reached limits.max_in_flight"),
        fires: "SendersWait",
        before: &[],
        logs: REFUSED,
    },
    Row {
        name: "nothing comes",
        run: |scene| {
            let sink = HttpSink::accepting();
            scene.start_faster(&to_sink(sink.address(), ""));
            scene.calm();
            scene.sends(|_, _| ());
            scene.trouble();
        },
        says: ("warn", "No event has arrived for more than 15 minutes"),
        fires: "NothingReceived",
        before: &[],
        logs: "",
    },
];
