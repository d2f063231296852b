//! Outputs over HTTP whose consumers have protocols of their own: their URL can have the path that
//! the vendor prints, and answers without end are given up. The meaning of each answer is in
//! `crates/outputs/src/http/tests.rs`.

use crate::support::prelude::*;

const INTERIM: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";

struct Store {
    kind: &'static str,
    /// The keys that the type needs besides `urls`.
    keys: &'static str,
    /// The path and query of requests with events.
    target: &'static str,
    /// URL paths that also lead to `target`.
    printed: &'static [&'static str],
    /// Returns the answer that acknowledges a request.
    acknowledges: fn(&Request) -> Answer,
}

const STORES: &[Store] = &[
    Store {
        kind: "splunk_hec",
        keys: "token_file = \"DIR/token\"\nacknowledge = \"accepted\"",
        target: "/services/collector/event",
        printed: &[
            "/services/collector/event",
            "/services/collector/event/1.0",
            "/services/collector/",
        ],
        acknowledges: |_| Answer::status(200).body(r#"{"text":"Success","code":0}"#),
    },
    Store {
        kind: "splunk_hec",
        keys: "token_file = \"DIR/token\"\nack_interval = \"100ms\"",
        target: "/services/collector/event",
        printed: &["/services/collector/event/"],
        acknowledges: |request| {
            Answer::status(200).body(match request.target.contains("/services/collector/ack") {
                true => r#"{"acks":{"7":true}}"#,
                false => r#"{"text":"Success","code":0,"ackId":7}"#,
            })
        },
    },
    Store {
        kind: "elasticsearch",
        keys: "index = \"audit\"",
        target: "/_bulk?filter_path=errors,items.*.status,items.*.error,items.*.failure_store",
        printed: &["/_bulk", "/audit/_bulk", "/_bulk/"],
        acknowledges: |request| {
            let lines = request.decoded().iter().filter(|byte| **byte == b'\n').count();
            let items = vec![r#"{"create":{"status":201}}"#; lines / 2].join(",");
            Answer::status(200).body(format!(r#"{{"items":[{items}]}}"#))
        },
    },
    Store {
        kind: "ibm_cloud_logs",
        keys: "api_key_file = \"DIR/token\"\niam_url = \"http://IAM/identity/token\"",
        target: "/logs/v1/singles",
        printed: &["/logs/v1/singles"],
        acknowledges: |_| Answer::status(200),
    },
    Store {
        kind: "s3",
        keys: "bucket = \"audit\"\nregion = \"r\"\naccess_key_id_file = \"DIR/token\"\n\
               secret_access_key_file = \"DIR/token\"\nobject_age = \"100ms\"",
        target: "/audit/",
        printed: &[],
        acknowledges: |_| Answer::status(200).header("ETag", "\"0\""),
    },
    Store {
        kind: "loki",
        keys: "",
        target: "/loki/api/v1/push",
        printed: &["/loki/api/v1/push", "/loki/api/v1/push/"],
        acknowledges: |_| Answer::status(204),
    },
    Store {
        kind: "otlp",
        keys: "",
        target: "/v1/logs",
        printed: &["/v1/logs", "/v1/logs//"],
        // Fluent Bit answers with 201.
        acknowledges: |_| Answer::status(201),
    },
];

/// A store, its token server, and the files of the keys.
struct Setup {
    sink: HttpSink,
    iam: HttpSink,
    files: TempDir,
}

impl Setup {
    fn new(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let files = TempDir::new().unwrap();
        std::fs::write(files.path().join("token"), "s3cr3t-t0ken\n").unwrap();
        let iam = HttpSink::start(|request| {
            assert_eq!(request.target, "/identity/token");
            Answer::status(200).body(r#"{"access_token":"s3cr3t","expires_in":3600}"#)
        });
        Self { sink: HttpSink::start(answer), iam, files }
    }

    /// Starts a relay whose output has this path after the store's address.
    fn relay(&self, store: &Store, url: &str) -> Relay {
        let keys = store.keys.replace("DIR", text(self.files.path()));
        let keys = keys.replace("IAM", &self.iam.address().to_string());
        Relay::start(&format!(
            "{BASE}[[output]]\nname = \"consumer\"\ntype = \"{}\"\nurls = [\"http://{}{url}\"]\n\
             {QUICK}{keys}\n",
            store.kind,
            self.sink.address()
        ))
    }
}

fn for_each_store(test: impl Fn(&Store) + Sync) {
    std::thread::scope(|scope| {
        let tests: Vec<_> = STORES.iter().map(|store| scope.spawn(|| test(store))).collect();
        tests.into_iter().for_each(|test| test.join().expect("the test of a store"));
    });
}

#[test]
fn urls_as_vendors_print_them_lead_to_the_service() {
    for_each_store(|store| {
        for printed in store.printed {
            let setup = Setup::new(store.acknowledges);
            let relay = setup.relay(store, &format!("/gate{printed}?team=a"));
            post_batch(&relay, 1, 10, 700);
            relay.wait_until_delivered(PATIENCE);
            let join = if store.target.contains('?') { '&' } else { '?' };
            let wanted = format!("/gate{}{join}team=a", store.target);
            assert_eq!(setup.sink.requests()[0].target, wanted, "{} {printed}", store.kind);
            relay.finish(Backlog::Empty);
        }
    });
}

/// Method: there is nothing at the configured URL, whose path and query have a secret. The log must
/// name the path that was requested below the URL, and not the URL's own path.
#[test]
fn a_404_names_the_path_that_was_asked_and_no_secret() {
    for_each_store(|store| {
        let setup = Setup::new(|_| Answer::status(404).body("no s3cr3t here"));
        let relay = setup.relay(store, "/s3cr3t-path?token=s3cr3t");
        post_batch(&relay, 1, 10, 700);
        let line = relay.wait_for_log("output down, events are kept", PATIENCE).to_string();
        let path = store.target.split('?').next().unwrap();
        let wanted = match store.kind {
            // The path of an object begins with the bucket's name.
            "s3" => "answered 404 Not Found for /audit/".to_owned(),
            _ => format!("answered 404 Not Found for {path} below the configured URL"),
        };
        assert!(line.contains(&wanted), "{}: {line}", store.kind);
        assert!(!relay.log_text().contains("s3cr3t"), "{}", relay.log_text());
        relay.settle(Backlog::Stable);
    });
}

/// Method: a server sends interim answers without end, to a request of each type, to a query for
/// indexed events, and to a request for a token. `timeouts.request` is 60 s, and the relay must
/// stop earlier.
#[test]
fn interim_answers_without_end_end_the_request() {
    let endless = || Answer::interim(&INTERIM.repeat(1000), Duration::ZERO, u32::MAX);
    let wait = |relay: &Relay, kind: &str| {
        let began = Instant::now();
        let words = "more than 100 interim responses (1xx) and no final one";
        wait_until(&format!("{kind} to give up"), PATIENCE, || relay.log_text().contains(words));
        assert!(began.elapsed() < Duration::from_secs(20), "{kind}: {:?}", began.elapsed());
        assert_eq!(of_output(relay, "output_events_total"), 0.0);
    };
    let http = Store { kind: "http", keys: "", target: "", printed: &[], ..STORES[0] };
    for_each_store(|store| {
        let setup = Setup::new(move |_| endless());
        let relay = setup.relay(store, "");
        post_batch(&relay, 1, 10, 700);
        wait(&relay, store.kind);
        relay.settle(Backlog::Stable);
    });
    let setup = Setup::new(move |_| endless());
    let relay = setup.relay(&http, "");
    post_batch(&relay, 1, 10, 700);
    wait(&relay, "http");
    let cpu = || relay.metrics().value("process_cpu_seconds_total", &[]);
    let before = cpu();
    std::thread::sleep(Duration::from_secs(3));
    let used = cpu() - before;
    assert!(used < 1.0, "{used} s of a processor in 3 s");
    relay.settle(Backlog::Stable);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let setup = Setup::new(move |request| match request.target.contains("/ack") {
        true => {
            count.fetch_add(1, Ordering::SeqCst);
            endless()
        }
        false => (STORES[1].acknowledges)(request),
    });
    let relay = setup.relay(&STORES[1], "");
    post_batch(&relay, 1, 10, 700);
    wait_until("questions", PATIENCE, || asked.load(Ordering::SeqCst) > 2);
    relay.settle(Backlog::Stable);
    let mut setup = Setup::new(|_| Answer::status(200));
    setup.iam = HttpSink::start(move |_| endless());
    let relay =
        setup.relay(STORES.iter().find(|store| store.kind == "ibm_cloud_logs").unwrap(), "");
    post_batch(&relay, 1, 10, 700);
    wait(&relay, "IAM");
    relay.settle(Backlog::Stable);
}

/// Method: the proxy answers CONNECT with interim answers without end. `timeouts.connect` is 5 s.
#[test]
fn interim_answers_of_a_proxy_end_the_request() {
    let setup = Setup::new(|_| Answer::status(200));
    let proxy =
        HttpSink::start(|_| Answer::interim(&INTERIM.repeat(1000), Duration::ZERO, u32::MAX));
    let proxy = format!("proxy = \"http://{}\"", proxy.address());
    let relay = Relay::start(&to_http(&[format!("http://{}/", setup.sink.address())], &proxy));
    post_batch(&relay, 1, 10, 700);
    let line = relay.wait_for_log("output down, events are kept", PATIENCE).to_string();
    assert!(line.contains("answered 102 Processing"), "{line}");
    relay.settle(Backlog::Stable);
}
