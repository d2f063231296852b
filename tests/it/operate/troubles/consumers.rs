//! Consumers that are down, refuse events, hang or give wrong responses.

use super::*;
use crate::support::relay::Stdout;

/// A consumer that accepts events at first, and then gives this answer.
fn then(scene: &mut Scene, more: &str, answer: fn(&Request) -> Answer) {
    let sink = scene.consumer(answer);
    scene.start(&to_sink(sink.address(), more));
    scene.calm();
    scene.trouble();
}

/// A relay with this URL and these keys, which is in trouble from the start.
fn from_the_start(scene: &mut Scene, url: String, more: &str) {
    scene.start(&to_http(&[url], more));
    scene.trouble();
}

/// A consumer with this certificate. The relay trusts [`Certificates::ca`].
fn with_certificate(scene: &mut Scene, pair: fn(&Certificates) -> &Pair) {
    let certificates = Certificates::new();
    let tls = Some(certificates.server_config(pair(&certificates), false));
    let sink = HttpSink::with(Options { tls, ..Options::default() }, |_| Answer::status(200));
    let url = format!("https://localhost:{}/", sink.address().port());
    from_the_start(scene, url, &format!("tls = {{ ca = {:?} }}\n", text(&certificates.ca)));
}

/// Returns `true` if the request contains the event `generated-3`, which each batch has.
fn has_one(request: &Request) -> bool {
    memchr::memmem::find(&request.decoded(), b"generated-3\"").is_some()
}

/// Returns a row in which the consumer takes nothing.
const fn down(name: &'static str, run: fn(&mut Scene)) -> Row {
    let (fires, logs) = ("OutputDown", "output down");
    Row { name, run, says: ("bad", "Output consumer is down"), fires, before: &[], logs }
}

pub(super) const ROWS: &[Row] = &[
    down("the consumer refuses connections", |scene| {
        let mut sink = HttpSink::accepting();
        scene.start(&to_sink(sink.address(), ""));
        scene.calm();
        sink.close();
        scene.trouble();
    }),
    down("nobody knows the consumer's name", |scene| {
        from_the_start(scene, "http://consumer.invalid:8080/".to_owned(), "")
    }),
    down("the consumer's certificate is of an unknown authority", |scene| {
        with_certificate(scene, |it| &it.wrong_server)
    }),
    down("the consumer's certificate is for another name", |scene| {
        with_certificate(scene, |it| &it.elsewhere_server)
    }),
    Row {
        name: "the consumer's certificate has expired",
        run: |scene| with_certificate(scene, |it| &it.expired_server),
        says: ("bad", "The consumer's certificate at output consumer has expired"),
        fires: "CertificateExpires",
        before: &[],
        logs: "output down",
    },
    Row {
        name: "the consumer's certificate expires in 2 days",
        run: |scene| {
            let certificates = Certificates::new();
            let pair = certificates.server_for(2);
            let tls = Some(certificates.server_config(&pair, false));
            let options = Options { tls, ..Options::default() };
            let sink = HttpSink::with(options, |_| Answer::status(200));
            let url = format!("https://localhost:{}/", sink.address().port());
            from_the_start(scene, url, &format!("tls = {{ ca = {:?} }}\n", text(&certificates.ca)));
        },
        says: ("bad", "The consumer's certificate at output consumer expires in 1 day"),
        fires: "CertificateExpires",
        before: &[],
        logs: "",
    },
    Row {
        name: "an output that is not required is down",
        run: |scene| {
            let (sink, mut other) = (HttpSink::accepting(), HttpSink::accepting());
            let second = other.output("second", &format!("required = false\n{QUICK}"));
            scene.start(&to_sink(sink.address(), &second));
            scene.calm();
            other.close();
            scene.trouble();
        },
        says: ("warn", "Output second is down; it may lose events"),
        fires: "OutputDown",
        before: &[],
        logs: "output down, events wait and may be lost",
    },
    down("the consumer answers 401", |scene| then(scene, "", |_| Answer::status(401))),
    down("the consumer answers 403", |scene| then(scene, "", |_| Answer::status(403))),
    down("the consumer answers 404", |scene| then(scene, "", |_| Answer::status(404))),
    down("the consumer answers 429 and when to come again", |scene| {
        then(scene, "", |_| Answer::status(429).header("Retry-After", "2"))
    }),
    down("the consumer answers 500", |scene| then(scene, "", |_| Answer::status(500))),
    Row {
        name: "the consumer answers 400 to each event",
        run: |scene| then(scene, "", |_| Answer::status(400)),
        says: ("bad", "400 Bad Request. Output consumer is down; its events are kept"),
        fires: "OutputDown",
        before: &[],
        logs: "output down",
    },
    Row {
        name: "the consumer answers 400 to an event, and takes the others",
        run: |scene| then(scene, "", |it| Answer::status(if has_one(it) { 400 } else { 200 })),
        says: ("bad", "refused for good now, for the output consumer"),
        fires: "EventsLost",
        before: &[],
        logs: "refused",
    },
    Row {
        name: "the consumer answers 500 to an event, and takes the others",
        run: |scene| then(scene, "", |it| Answer::status(if has_one(it) { 500 } else { 200 })),
        says: ("warn", "the consumer turns down"),
        fires: "EventsSetAside",
        before: &[],
        logs: "",
    },
    Row {
        name: "a balancer answers 502 to every third request",
        run: |scene| {
            then(scene, "", |it| Answer::status(if it.number % 3 == 0 { 502 } else { 200 }))
        },
        says: ("warn", "Output consumer keeps failing and recovering (502 Bad Gateway)"),
        fires: "",
        before: &[],
        logs: "a request failed: its events are sent again",
    },
    down("the consumer hangs", |scene| {
        then(scene, "timeouts = { request = \"2s\" }\n", |_| Answer::never())
    }),
    Row {
        name: "the consumer is slow",
        run: |scene| {
            let slow = |_: &Request| Answer::status(200).after(Duration::from_secs(6));
            then(scene, "concurrency = 1\nbatch = { max_events = 5 }\n", slow);
        },
        says: ("warn", "Output consumer is late"),
        fires: "OutputLags",
        before: &[],
        logs: "output late",
    },
    down("a sign-in page answers in place of the consumer", |scene| {
        then(scene, "", |_| {
            let page = "<!DOCTYPE html><html><body>Sign in</body></html>";
            Answer::status(200).header("Content-Type", "text/html").body(page)
        });
    }),
    down("the consumer resets each connection", |scene| then(scene, "", |_| Answer::reset())),
    Row {
        name: "one of two addresses is away",
        run: |scene| {
            let (mut one, two) = (HttpSink::accepting(), HttpSink::accepting());
            let urls = [&one, &two].map(|sink| format!("http://{}/", sink.address()));
            scene.start(&to_http(&urls, ""));
            scene.calm();
            one.close();
            scene.trouble();
        },
        says: ("warn", "its other addresses take the events"),
        fires: "OutputAddressDown",
        before: &[],
        logs: "",
    },
    Row {
        name: "nobody reads stdout",
        run: |scene| {
            let config = format!("{BASE}[[output]]\nname = \"consumer\"\ntype = \"stdout\"\n");
            scene.add(Relay::with(&config).stdout(Stdout::Held).start());
            scene.sends_events(100);
            scene.trouble();
        },
        says: ("warn", "Output consumer is late"),
        fires: "OutputLags",
        before: &[],
        logs: "output late",
    },
    Row {
        name: "a filter drops everything",
        run: |scene| {
            let sink = HttpSink::accepting();
            let filter = "filter.match = { verbs = [\"Update\"] }\n";
            scene.start_faster(&to_sink(sink.address(), filter));
            scene.trouble();
        },
        says: ("warn", "The filter of output consumer has dropped every event"),
        fires: "AllFiltered",
        before: &[],
        logs: "",
    },
    Row {
        name: "the consumer comes back",
        run: |scene| {
            let mut sink = HttpSink::accepting();
            scene.start(&to_sink(sink.address(), ""));
            scene.calm();
            sink.close();
            scene.go(5);
            sink.reopen();
            scene.go(30);
        },
        says: ("good", ""),
        fires: "",
        before: &[],
        logs: "output up",
    },
    Row {
        name: "the consumer goes down and comes back again and again",
        run: |scene| {
            let mut sink = HttpSink::accepting();
            scene.start(&to_sink(sink.address(), ""));
            scene.calm();
            // No event is ever late.
            scene.lag_is_real = true;
            for _ in 0..12 {
                sink.close();
                scene.go(2);
                sink.reopen();
                scene.go(2);
            }
        },
        says: ("warn", "Output consumer keeps failing and recovering"),
        fires: "OutputLags",
        before: &[],
        logs: "output up again",
    },
    Row {
        name: "a consumer of TCP stands still",
        run: |scene| {
            let options = Options { receive_buffer: Some(4096), ..Options::default() };
            let sink = TcpSink::with(Framing::Lines, options);
            scene.start(&format!("{BASE}{}", sink.output("consumer", QUICK)));
            scene.sends_events(100);
            scene.calm();
            sink.pause(true);
            scene.trouble();
        },
        says: ("warn", "Output consumer is late"),
        fires: "OutputLags",
        before: &[],
        logs: "output late",
    },
];
