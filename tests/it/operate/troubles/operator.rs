//! Troubles that an operator causes, and those with the relay's certificates, pods and clock.

use super::*;

/// A relay whose listener has a certificate for this many days. `None`: it has expired.
fn certificate(scene: &mut Scene, days: Option<u64>) {
    let certificates = Certificates::new();
    let pair = match days {
        Some(days) => certificates.server_for(days),
        None => certificates.expired_server.clone(),
    };
    let sink = HttpSink::accepting();
    let key = format!("[[listener]]\n{}", pair.tls());
    scene.start(&to_sink(sink.address(), "").replace("[[listener]]", &key));
    let client = certificates.client_config(None);
    scene.sends(move |address, seed| {
        if let Ok(mut it) = Client::connect_tls(address, Arc::clone(&client)) {
            drop(it.post("/audit", "application/json", &generated_batch(seed, 5, 900)));
        }
    });
    scene.trouble();
}

/// A relay whose config is replaced. `config` makes the new one for the consumer's address.
fn reloaded(scene: &mut Scene, result: &str, config: fn(SocketAddr) -> String) {
    let sink = HttpSink::accepting();
    scene.start(&to_sink(sink.address(), ""));
    scene.calm();
    scene.relay().reload(&config(sink.address()), result);
    scene.trouble();
}

/// A relay with evidence and a witness, whose clock is set by this many seconds. It has reloaded
/// its config before.
fn stepped(scene: &mut Scene, seconds: i64) {
    let (sink, clock) = (HttpSink::accepting(), WallClock::new());
    let directory = TempDir::new().expect("a directory");
    let (_witness, evidence) = Witness::of_a_log(directory.path());
    // The restriction would keep the file of the clock from it.
    let config = unrestricted(&to_sink(sink.address(), &evidence));
    let mut builder = Relay::with(&config);
    for (name, value) in clock.variables() {
        builder = builder.variable(name, &value);
    }
    scene.add(builder.start());
    scene.relay().reload(&format!("{config}[nonsense]\n"), "error");
    scene.relay().reload(&config, "success");
    scene.calm();
    clock.set(seconds);
    scene.trouble();
    let status = ask(scene.relay().admin(), "/status").expect("an answer");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let ahead = status["time_seconds"].as_f64().expect("a time") - now.as_secs_f64();
    assert!((ahead - seconds as f64).abs() < 60.0, "the relay's clock is {ahead} s ahead");
    let good = scene.said.iter().skip(scene.calm).filter(|said| is_good(said)).count();
    assert_eq!(good, scene.said.len() - scene.calm, "{:?}", scene.said);
}

/// Starts two relays. The caller then brings the second one into trouble.
fn two(scene: &mut Scene) -> [HttpSink; 2] {
    let sinks = [HttpSink::accepting(), HttpSink::accepting()];
    for sink in &sinks {
        scene.start(&to_sink(sink.address(), ""));
    }
    scene.calm();
    sinks
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "a reload finds a mistake",
        run: |scene| reloaded(scene, "error", |it| format!("{}[nonsense]\n", to_sink(it, ""))),
        says: (
            "warn",
            "The last config change was refused (line 12, nonsense: unknown key `nonsense`",
        ),
        fires: "ReloadFailed",
        before: &[],
        logs: "nonsense",
    },
    Row {
        name: "a certificate expires in 10 days",
        run: |scene| certificate(scene, Some(10)),
        says: ("warn", "The relay's own certificate at listener 127.0.0.1:0 expires in 9 days"),
        fires: "CertificateExpires",
        before: &[],
        logs: "",
    },
    Row {
        name: "a certificate expires in 2 days",
        run: |scene| certificate(scene, Some(2)),
        says: ("bad", "The relay's own certificate at listener 127.0.0.1:0 expires in 1 day"),
        fires: "CertificateExpires",
        before: &[],
        logs: "",
    },
    Row {
        name: "a certificate has expired",
        run: |scene| certificate(scene, None),
        says: ("bad", "The relay's own certificate at listener 127.0.0.1:0 has expired"),
        fires: "CertificateExpires",
        before: &[],
        logs: "expired",
    },
    Row {
        name: "a reload removes an output with its backlog",
        run: |scene| {
            let (sink, mut other) = (HttpSink::accepting(), HttpSink::accepting());
            let config = to_sink(sink.address(), "");
            scene.start(&format!("{config}{}", other.output("second", "")));
            scene.calm();
            other.close();
            scene.go(3);
            scene.relay().reload(&config, "success");
            scene.trouble();
        },
        says: ("bad", "refused for good now, for outputs that a reload has removed"),
        fires: "EventsLost",
        before: &[],
        logs: messages::REMOVED,
    },
    Row {
        name: "a reload pauses an output",
        run: |scene| reloaded(scene, "success", |it| to_sink(it, "pause = true\n")),
        says: ("good", "Output consumer is paused by the config; its events wait in the queue"),
        fires: "",
        before: &[],
        logs: "paused",
    },
    Row {
        name: "a pause is forgotten",
        run: |scene| {
            let (sink, spool, clock) = (HttpSink::accepting(), Spool::new(), WallClock::new());
            let config = to_sink(sink.address(), &format!("pause = true\n{}", spool.queue("")));
            // The restriction would keep the file of the clock from it.
            let config = unrestricted(&config);
            scene.start(&config);
            scene.calm();
            scene.end(0, |relay| _ = relay.stop());
            // A day has passed when it starts again.
            clock.set(86_400);
            let mut builder = Relay::with(&config);
            for (name, value) in clock.variables() {
                builder = builder.variable(name, &value);
            }
            scene.targets[0].relay = Some(builder.start());
            scene.trouble();
        },
        says: ("warn", "and its events have waited for more than a day"),
        fires: "OutputPaused",
        before: &[],
        logs: "paused",
    },
    Row {
        name: "a reload names a host that nobody knows",
        run: |scene| {
            let config = |_| to_http(&["http://consumer.invalid:8080/".to_owned()], "");
            reloaded(scene, "success", config);
        },
        says: ("bad", "Output consumer is down"),
        fires: "OutputDown",
        before: &[],
        logs: "output down",
    },
    Row {
        name: "reloads come in a storm",
        run: |scene| {
            let sink = HttpSink::accepting();
            let config = to_sink(sink.address(), "");
            scene.start(&config);
            scene.calm();
            for _ in 0..20 {
                for _ in 0..5 {
                    scene.relay().reload(&config, "success");
                }
                scene.go(1);
            }
        },
        says: ("good", ""),
        fires: "",
        before: &[],
        logs: "",
    },
    Row {
        name: "a relay is frozen beside another",
        run: |scene| {
            let _sinks = two(scene);
            let frozen = scene.targets[1].relay.as_ref().expect("it runs");
            frozen.signal(libc::SIGSTOP);
            // The kernel accepts connections for it, but nothing answers.
            scene.sends(|_, _| ());
            scene.go(12);
            let frozen = scene.targets[1].relay.as_ref().expect("it runs");
            frozen.signal(libc::SIGCONT);
        },
        says: ("good", ""),
        fires: "RelayDown",
        before: &[],
        logs: "",
    },
    Row {
        name: "a relay does not answer beside another",
        run: |scene| {
            let _sinks = two(scene);
            scene.end(1, Relay::kill);
            scene.trouble();
        },
        says: ("good", ""),
        fires: "RelayDown",
        before: &[],
        logs: "",
    },
    Row {
        name: "a relay is gone beside another",
        run: |scene| {
            let _sinks = two(scene);
            scene.go(CALM);
            scene.end(1, |relay| _ = relay.stop());
            scene.targets[1].listed = false;
            scene.trouble();
        },
        says: ("good", ""),
        fires: "ReplicaGone",
        before: &[],
        logs: "",
    },
    Row {
        name: "the only relay is gone",
        run: |scene| {
            let sink = HttpSink::accepting();
            scene.start(&to_sink(sink.address(), ""));
            scene.calm();
            scene.end(0, |relay| _ = relay.stop());
            scene.trouble();
        },
        says: ("good", ""),
        fires: "Absent",
        before: &[],
        logs: messages::ENDED,
    },
    Row {
        name: "a relay is restarted in order",
        run: |scene| {
            let sink = HttpSink::accepting();
            let config = to_sink(sink.address(), "");
            scene.start(&config);
            scene.calm();
            scene.end(0, |relay| _ = relay.stop());
            scene.go(1);
            scene.again(&config);
            scene.trouble();
        },
        says: ("good", ""),
        fires: "",
        before: &[],
        logs: messages::ENDED,
    },
    Row {
        name: "the clock is an hour behind",
        run: |scene| stepped(scene, -3600),
        says: ("good", ""),
        fires: "",
        before: &[],
        logs: "",
    },
    Row {
        name: "the clock is an hour ahead",
        run: |scene| stepped(scene, 3600),
        says: ("good", ""),
        fires: "",
        before: &[],
        logs: "",
    },
];
