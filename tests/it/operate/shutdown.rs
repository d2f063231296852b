//! The end of a relay, and starts that fail. SIGTERM drains the relay in order and in time, and no
//! event is lost without a message.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::http::Response;
use crate::support::peers::curl;
use crate::support::prelude::*;
use crate::support::relay::Stdout;

fn drain(timeout: &str) -> String {
    format!("[shutdown]\ndrain_timeout = \"{timeout}\"\n")
}

/// Returns the head of a POST whose body has `length` bytes.
fn head(length: usize) -> Vec<u8> {
    format!("POST /audit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
        .into_bytes()
}

fn metrics_if_any(admin: SocketAddr) -> Option<Metrics> {
    Some(Metrics::parse(&http::get(admin, "/metrics").ok()?.text()))
}

/// Returns the lost events that the log counts for each output, and the total in its last line.
fn told_lost(relay: &Relay) -> (Vec<(String, u64)>, Option<u64>) {
    let fields = relay.log_fields();
    let of =
        |message: &'static str| fields.iter().filter(move |fields| fields["message"] == message);
    let lost = of(messages::UNDELIVERED)
        .map(|fields| {
            (fields["output"].as_str().unwrap().to_owned(), fields["events"].as_u64().unwrap())
        })
        .collect();
    let has_ended = |fields: &&Value| {
        fields["message"].as_str().is_some_and(|message| message.starts_with(messages::ENDED))
    };
    (lost, fields.iter().find(has_ended).and_then(|fields| fields["lost"].as_u64()))
}

/// Method: the signals whose default ends a process, and that have no meaning for a relay.
#[test]
fn a_signal_without_a_meaning_is_logged_and_ends_no_relay() {
    let sink = HttpSink::accepting();
    let relay = Relay::start(&to_sink(sink.address(), ""));
    relay.wait_for_log("listening", PATIENCE);
    let signals = [libc::SIGALRM, libc::SIGIO, libc::SIGPWR, libc::SIGPROF, libc::SIGSTKFLT];
    let more = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGVTALRM, libc::SIGXCPU, libc::SIGXFSZ];
    let all = [signals, more].concat();
    let told = || relay.log_text().matches("ignores this signal").count();
    for (index, signal) in all.iter().enumerate() {
        relay.signal(*signal);
        wait_until("a line of the log", PATIENCE, || told() == index + 1);
    }
    relay.signal(libc::SIGUSR1);
    post_batch(&relay, 1, 10, 900);
    relay.wait_until_delivered(PATIENCE);
    assert_eq!(told(), all.len(), "once a minute");
    relay.finish(Backlog::Empty);
}

#[test]
fn three_signals_end_a_relay_in_order_and_one_that_is_sent_twice_at_once_is_one() {
    // timeout(1) also sends the signal twice.
    let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];
    let signals = signals.into_iter().map(|signal| (signal, 1)).chain([(libc::SIGTERM, 2)]);
    for (signal, times) in signals {
        let slowly = Duration::from_millis(500);
        let sink = HttpSink::start(move |_| Answer::status(200).after(slowly));
        let mut relay = Relay::start(&to_sink(sink.address(), ""));
        let batch = generated_batch(1, 10, 900);
        assert_eq!(relay.post(&batch).status, 200);
        if times == 1 {
            relay.wait_until_delivered(PATIENCE);
        }
        let begun = Instant::now();
        (0..times).for_each(|_| relay.signal(signal));
        assert_eq!(relay.wait().code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_same_set(&accepted_events(&sink), &events_of(&batch));
        assert_eq!(told_lost(&relay), (vec![], Some(0)));
    }
}

#[test]
fn the_drain_refuses_new_senders_ends_kept_connections_and_delivers_what_is_left() {
    let held = Arc::new(AtomicBool::new(true));
    let holds = Arc::clone(&held);
    let sink = HttpSink::start(move |_| {
        wait_until("the test to let go", PATIENCE, || !holds.load(Ordering::SeqCst));
        Answer::status(200)
    });
    let mut relay = Relay::start(&to_sink(sink.address(), ""));
    let (first, second) = (generated_batch(1, 10, 900), generated_batch(2, 10, 900));
    let mut idle = Client::connect(relay.address()).unwrap();
    assert_eq!(idle.post("/", "application/json", &first).unwrap().status, 200);
    let mut under_way = Client::connect(relay.address()).unwrap();
    let half = second.len() / 2;
    under_way.send(&[&head(second.len()), &second[..half]].concat()).unwrap();
    sink.wait_for_count(1, PATIENCE);
    assert_eq!(http::get(relay.admin(), "/readyz").unwrap().status, 200);

    relay.signal(libc::SIGTERM);
    wait_until("unreadiness", PATIENCE, || {
        http::get(relay.admin(), "/readyz").unwrap().status == 503
    });
    let ask = |path: &str| http::get(relay.admin(), path).unwrap();
    assert_eq!(ask("/readyz").text(), "shutting down\n");
    let verbose = ask("/readyz?verbose");
    assert_eq!(verbose.status, 503);
    for line in ["[-]serving failed", "readyz check failed"] {
        assert!(verbose.text().contains(line), "{}", verbose.text());
    }
    assert_eq!(ask("/status").json()["stopping"], true);
    assert_eq!(ask("/livez").status, 200, "it lives until it has ended");
    wait_until("closed doors", PATIENCE, || TcpStream::connect(relay.address()).is_err());
    assert!(idle.is_closed_by_server(), "a connection that idles is closed");
    // The request that had begun can finish, and is the last one on its connection.
    under_way.send(&second[half..]).unwrap();
    let response = under_way.read_response().unwrap();
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    assert!(under_way.is_closed_by_server());
    // The admin routes answer until the end.
    assert_eq!(relay.metrics().value("event_total", &[]), 20.0);
    held.store(false, Ordering::SeqCst);
    assert_eq!(relay.wait().code(), Some(0));
    assert_same_set(&accepted_events(&sink), &[events_of(&first), events_of(&second)].concat());
    assert_eq!(told_lost(&relay), (vec![], Some(0)));
}

#[test]
fn requests_get_503_during_the_drain_and_a_stuck_sender_gets_it_at_half_of_the_time() {
    let sink = HttpSink::accepting();
    let mut relay = Relay::start(&to_sink(sink.address(), &drain("8s")));
    let body = generated_batch(1, 100, 900);
    // A part of the head was sent, so the connection is not idle.
    let mut late = Client::connect(relay.address()).unwrap();
    let head = head(body.len());
    late.send(&head[..20]).unwrap();
    let mut stuck = Client::connect(relay.address()).unwrap();
    stuck.send(&[&head[..], &body[..100]].concat()).unwrap();
    wait_until("both connections", PATIENCE, || relay.metrics().sum("connections") == 2.0);
    wait_until("its bytes", PATIENCE, || relay.metrics().sum("received_bytes_total") >= 100.0);
    let begun = Instant::now();
    relay.signal(libc::SIGTERM);
    relay.wait_for_log(messages::DRAINS, PATIENCE);
    let assert_refused = |answer: &Response| {
        assert_eq!((answer.status, answer.header("connection")), (503, Some("close")));
        assert!(answer.header("retry-after").is_some());
        assert_eq!(answer.json()["reason"], "ServiceUnavailable");
    };
    // Two outcomes are right: the connection is closed without a response, or there is a 503.
    let answer =
        late.send(&head[20..]).and_then(|()| late.send(&body)).and_then(|()| late.read_response());
    answer.iter().for_each(assert_refused);
    assert_refused(&stuck.read_response().unwrap());
    let (answered, admin) = (begun.elapsed(), relay.admin());
    assert!((3900..7600).contains(&answered.as_millis()), "{answered:?}");
    if let Some(metrics) = metrics_if_any(admin) {
        let rejected = metrics.value("requests_rejected_total", &[("reason", "shutting_down")]);
        assert_eq!(rejected, if answer.is_ok() { 2.0 } else { 1.0 });
        assert_eq!(metrics.value("in_flight_bytes", &[]), 0.0);
    }
    assert_eq!(relay.wait().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(14), "{:?}", begun.elapsed());
    assert_eq!(sink.count(), 0);
}

#[test]
fn with_a_dead_consumer_the_drain_takes_its_time_and_no_longer_and_says_what_is_lost() {
    let dead = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let hung = HttpSink::start(|_| Answer::never());
    let live = HttpSink::accepting();
    let drains = to_sink(dead, &drain("3s"));
    let config = format!("{drains}{}{}", hung.output("hung", ""), live.output("live", ""));
    let mut relay = Relay::start(&config);
    for seed in 0..3 {
        assert_eq!(relay.post(&generated_batch(seed, 10, 900)).status, 200);
    }
    live.wait_for_count(1, PATIENCE);
    let begun = Instant::now();
    relay.signal(libc::SIGTERM);
    // The metrics can be read until shortly before the process ends.
    let mut last = None;
    wait_until("the end", PATIENCE, || {
        last = metrics_if_any(relay.admin()).or(last.take());
        begun.elapsed() > Duration::from_millis(2500)
    });
    assert_eq!(last.unwrap().value("output_events_total", &[("output", "live")]), 30.0);
    assert_eq!(relay.wait().code(), Some(1));
    let took = begun.elapsed();
    assert!((2900..8000).contains(&took.as_millis()), "{took:?}");
    let expected = [("consumer", 30), ("hung", 30)].map(|(name, events)| (name.to_owned(), events));
    assert_eq!(told_lost(&relay), (expected.to_vec(), Some(60)));
}

#[test]
fn a_consumer_that_comes_back_during_the_drain_gets_everything() {
    let mut sink = HttpSink::accepting();
    sink.close();
    let mut relay = Relay::start(&to_sink(sink.address(), ""));
    let batch = generated_batch(1, 100, 900);
    assert_eq!(relay.post(&batch).status, 200);
    relay.signal(libc::SIGTERM);
    relay.wait_for_log(messages::DRAINS, PATIENCE);
    sink.reopen();
    assert_eq!(relay.wait().code(), Some(0));
    assert_same_set(&accepted_events(&sink), &events_of(&batch));
    assert_eq!(told_lost(&relay), (vec![], Some(0)));
}

#[test]
fn a_consumer_that_asks_for_half_a_minute_during_the_drain_gets_everything_when_it_works_again() {
    // All four requests are answered at the same moment, and each response asks for a pause of 30
    // s. The drain has 20 s.
    let sink = HttpSink::start(|request| match request.number {
        0..4 => Answer::status(503).header("Retry-After", "30").after(Duration::from_secs(1)),
        _ => Answer::status(200),
    });
    let mut relay = Relay::start(&to_sink(sink.address(), "batch = { max_events = 10 }\n"));
    let batch = generated_batch(1, 400, 900);
    assert_eq!(relay.post(&batch).status, 200);
    sink.wait_for_count(4, PATIENCE);
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.wait().code(), Some(0));
    assert_same_set(&accepted_events(&sink), &events_of(&batch));
    assert_eq!(told_lost(&relay), (vec![], Some(0)));
}

#[test]
fn a_second_signal_ends_at_once() {
    let hung = HttpSink::start(|_| Answer::never());
    for (first, second) in [(libc::SIGTERM, libc::SIGTERM), (libc::SIGINT, libc::SIGTERM)] {
        let mut relay = Relay::start(&to_sink(hung.address(), &drain("60s")));
        assert_eq!(relay.post(&generated_batch(1, 10, 900)).status, 200);
        relay.signal(first);
        relay.wait_for_log(messages::DRAINS, PATIENCE);
        // A signal within 10 ms of the first counts as the same signal, sent twice.
        std::thread::sleep(Duration::from_millis(100));
        let begun = Instant::now();
        relay.signal(second);
        assert_eq!(relay.wait().code(), Some(1));
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let told = told_lost(&relay);
        let lost = vec![("consumer".to_owned(), 10)];
        assert_eq!(told, (lost, Some(10)), "what is lost is said, however it ends");
        let said = messages(&relay);
        assert_eq!(said.last().map(String::as_str), Some(messages::ENDED_WITH_LOSSES));
        assert_eq!(said.iter().filter(|it| *it == "the relay has failed").count(), 1, "{said:#?}");
    }
}

#[test]
fn delivered_waiters_get_their_200_or_503_before_the_end() {
    let held = Arc::new(AtomicBool::new(true));
    let holds = Arc::clone(&held);
    let slow = HttpSink::start(move |request| {
        if request.number > 0 {
            return Answer::never();
        }
        wait_until("the test to let go", PATIENCE, || !holds.load(Ordering::SeqCst));
        Answer::status(200)
    });
    let more = format!(
        "concurrency = 1\nbatch = {{ max_events = 10 }}\n[queue]\nacknowledge = \"delivered\"\n{}",
        drain("6s")
    );
    let mut relay = Relay::start(&to_sink(slow.address(), &more));
    let mut clients = Vec::new();
    for seed in 0..3 {
        let body = generated_batch(seed, 10, 900);
        let mut client = Client::connect(relay.address()).unwrap();
        client.send(&[head(body.len()), body].concat()).unwrap();
        let waiting = f64::from(u32::try_from(seed).unwrap() + 1) * 10.0;
        wait_until("the batch in the queue", PATIENCE, || {
            relay.metrics().value("queue_events", &[]) == waiting
        });
        clients.push(client);
    }
    relay.signal(libc::SIGTERM);
    relay.wait_for_log(messages::DRAINS, PATIENCE);
    held.store(false, Ordering::SeqCst);
    let answers: Vec<_> =
        clients.iter_mut().map(|client| client.read_response().unwrap()).collect();
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 503, 503]);
    assert!(answers.iter().all(|answer| answer.header("connection") == Some("close")));
    assert_eq!(relay.wait().code(), Some(1));
    // The second batch was on the wire, so it counts as lost. The third one was removed from the
    // queue.
    assert_eq!(told_lost(&relay), (vec![("consumer".to_owned(), 10)], Some(10)));
}

#[test]
fn an_idle_h2_connection_is_told_goaway() {
    let sink = HttpSink::accepting();
    let mut relay = Relay::start(&to_sink(sink.address(), ""));
    let mut client = Client::connect(relay.address()).unwrap();
    // The client sends the preface, and SETTINGS without any setting (RFC 9113 §3.4, §6.5).
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut frame = || {
        let mut head = [0; 9];
        client.stream().read_exact(&mut head).ok()?;
        let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
        client.stream().read_exact(&mut payload).unwrap();
        // Like a real client, this one acknowledges SETTINGS (4) and PING (6).
        if matches!(head[3], 4 | 6) && head[4] & 1 == 0 {
            let answer = if head[3] == 4 { Vec::new() } else { payload.clone() };
            head[2] = u8::try_from(answer.len()).unwrap();
            head[4] = 1;
            client.stream().write_all(&[&head[..], &answer].concat()).unwrap();
        }
        Some((head[3], payload))
    };
    assert_eq!(frame().unwrap().0, 4, "SETTINGS first");
    relay.signal(libc::SIGTERM);
    let begun = Instant::now();
    let frames: Vec<_> = std::iter::from_fn(frame).collect();
    let goaway = &frames.iter().find(|(kind, _)| *kind == 7).expect("GOAWAY").1;
    assert_eq!(goaway[4..8], [0; 4], "NO_ERROR");
    assert_eq!(relay.wait().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_full_standard_output_does_not_hold_up_the_end() {
    let config = format!("{BASE}[[output]]\nname = \"stdout\"\ntype = \"stdout\"\n{}", drain("1s"));
    let mut relay = Relay::with(&config).stdout(Stdout::Held).start();
    assert_eq!(relay.post(&generated_batch(1, 400, 1600)).status, 200);
    let begun = Instant::now();
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let (lost, sum) = told_lost(&relay);
    assert_eq!(lost.len(), 1);
    assert_eq!(sum, Some(lost[0].1));
}

/// Runs `run` with a config with which the relay does not start. Returns the exit status and the
/// standard error.
fn fails_to_start(config: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let output = run_command(&["run", "--config", text(&file)], directory.path());
    assert!(output.stdout.is_empty(), "messages go to standard error");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn an_address_in_use_ends_the_start_with_1_and_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = "[[output]]\nname = \"o\"\ntype = \"stdout\"\n";
    for config in [
        format!(
            "[[listener]]\naddress = \"{address}\"\n{output}[admin]\naddress = \"127.0.0.1:0\"\n"
        ),
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n{output}[admin]\naddress = \"{address}\"\n"
        ),
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"{address}\"\n{output}[admin]\naddress = \"127.0.0.1:0\"\n"
        ),
    ] {
        let (code, said) = fails_to_start(&config);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&address) && said.contains("in use"), "{said}");
        assert!(!said.contains("output up"), "nothing else is begun before: {said}");
    }
}

#[test]
fn a_wrong_config_or_a_missing_file_ends_the_start_with_2() {
    let base = format!("{BASE}[[output]]\nname = \"o\"\ntype = \"http\"\n");
    for (config, what) in [
        ("nonsense".to_owned(), "config.toml:1:"),
        (format!("{base}urls = [\"http://127.0.0.1/\"]\ncolour = 1\n"), "colour"),
        (base.clone(), "urls"),
        (format!("{base}urls = [\"http://127.0.0.1/${{file:/no/such/file}}\"]\n"), "/no/such/file"),
        (
            format!(
                "{base}urls = [\"http://127.0.0.1/\"]\nbearer_token_file = \"/no/such/file\"\n"
            ),
            "/no/such/file",
        ),
        (
            format!("{base}urls = [\"https://127.0.0.1/\"]\ntls = {{ ca = \"/no/such/file\" }}\n"),
            "/no/such/file",
        ),
        (
            format!("{base}urls = [\"http://127.0.0.1/${{env:NO_SUCH_VARIABLE}}\"]\n"),
            "NO_SUCH_VARIABLE",
        ),
        (
            format!("{base}urls = [\"https://127.0.0.1/\"]\ntls = {{ ca = \"/dev/null\" }}\n"),
            "/dev/null",
        ),
    ] {
        let (code, said) = fails_to_start(&config);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(what), "{what}: {said}");
    }
    let output = run_command(&["run", "--config", "/no/such/config"], Path::new("/"));
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/config"));
}

/// Writes another config and sends SIGHUP, but does not wait for the reload.
fn ask_for(relay: &Relay, config: &str) {
    let beside = relay.config_file().with_extension("new");
    std::fs::write(&beside, config).unwrap();
    std::fs::rename(&beside, relay.config_file()).unwrap();
    relay.signal(libc::SIGHUP);
}

/// Starts a relay and brings it into the middle of a reload. An output with a hung consumer was
/// removed. The reload adds a new output, which has joined already, and one with the name of the
/// removed output, for which it has to wait.
fn in_a_reload_that_waits(hung: &HttpSink, live: &HttpSink, new: &HttpSink, more: &str) -> Relay {
    let base = format!("{BASE}{}{more}", live.output("live", ""));
    let with = format!("{base}{}", hung.output("hung", ""));
    let relay = Relay::start(&with);
    assert_eq!(relay.post(&generated_batch(1, 10, 900)).status, 200);
    hung.wait_for_count(1, PATIENCE);
    ask_for(&relay, &base);
    relay.wait_for_log("output removed", PATIENCE);
    relay.wait_for_log("config reloaded", PATIENCE);
    let again = format!("{base}{}{}", new.output("new", ""), live.output("hung", ""));
    ask_for(&relay, &again);
    let waits = "the reload waits until the removed output with the same name has stopped";
    relay.wait_for_log(waits, PATIENCE);
    // If the reload came into force, the new output would get this batch as well.
    assert_eq!(relay.post(&generated_batch(2, 10, 900)).status, 200);
    relay
}

fn messages(relay: &Relay) -> Vec<String> {
    let message = |fields: &Value| fields["message"].as_str().map(str::to_owned);
    relay.log_fields().iter().filter_map(message).collect()
}

#[test]
fn a_signal_is_heard_while_a_reload_waits_for_an_output_that_leaves() {
    for directory in [None, Some(tempfile::tempdir().unwrap())] {
        let queue = directory.as_ref().map_or(String::new(), |directory| {
            format!("[queue]\ndirectory = \"{}\"\n", text(directory.path()))
        });
        let hung = HttpSink::start(|_| Answer::never());
        let (live, new) = (HttpSink::accepting(), HttpSink::accepting());
        let more = format!("{queue}{}", drain("1s"));
        let mut relay = in_a_reload_that_waits(&hung, &live, &new, &more);
        // After the signal, a queue on disk hands out no more events.
        live.wait_for_count(2, PATIENCE);
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.wait().code(), Some(directory.is_none().into()));
        let said = messages(&relay);
        let at = |message: &str| said.iter().position(|it| it == message);
        let drains = at(messages::DRAINS).expect("it drains");
        // Without the signal, the removed output would take ten seconds to stop.
        let left = at(messages::REMOVED);
        assert!(left.is_none_or(|left| drains < left), "{said:#?}");
        let reloads = said.iter().filter(|message| *message == "config reloaded").count();
        assert_eq!(reloads, 1, "the second is given up: {said:#?}");
        let batches = [generated_batch(1, 10, 900), generated_batch(2, 10, 900)];
        let all = batches.each_ref().map(|batch| events_of(batch)).concat();
        assert_same_set(&accepted_events(&live), &all);
        // The reload did not come into force, so the new output never received an event. Nothing is
        // lost or kept for it.
        assert_eq!(new.count(), 0);
        let (lost, sum) = told_lost(&relay);
        let Some(directory) = directory else {
            // The removed output loses all events that were accepted before it stopped.
            assert_eq!((lost, sum), (vec![("hung".to_owned(), 20)], Some(20)), "{said:#?}");
            continue;
        };
        assert_eq!((lost, sum), (vec![], Some(0)), "{said:#?}");
        let is_kept = "the output has not delivered all events: they are kept in the queue for the \
                       next start";
        let kept: Vec<_> = relay
            .log_fields()
            .iter()
            .filter(|fields| fields["message"] == is_kept)
            .map(|fields| (fields["output"].clone(), fields["events"].clone()))
            .collect();
        assert_eq!(kept, [("hung".into(), 20.into())]);
        let base = format!("{BASE}{}", live.output("live", ""));
        let hung = live.output("hung", "");
        let queue = format!("[queue]\ndirectory = \"{}\"\n", text(directory.path()));
        let again = Relay::start(&format!("{base}{hung}{queue}"));
        again.wait_until_delivered(PATIENCE);
        let gone =
            "an output of the last run is no longer in the config: its backlog counts as lost";
        assert!(!messages(&again).iter().any(|message| message == gone), "{}", again.log_text());
        let expected = [&all[..], &all].concat();
        assert_same_set(&accepted_events(&live), &expected);
        again.finish(Backlog::Empty);
    }
}

#[test]
fn a_second_signal_ends_at_once_what_the_first_has_interrupted_in_a_reload() {
    let hung = HttpSink::start(|_| Answer::never());
    let (live, new) = (HttpSink::accepting(), HttpSink::accepting());
    let mut relay = in_a_reload_that_waits(&hung, &live, &new, &drain("100s"));
    relay.signal(libc::SIGTERM);
    relay.wait_for_log(messages::DRAINS, PATIENCE);
    // A signal within 10 ms of the first counts as the same signal, sent twice.
    std::thread::sleep(Duration::from_millis(100));
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.wait().code(), Some(1));
    let (lost, _) = told_lost(&relay);
    assert!(lost.iter().all(|(name, _)| name == "hung"), "{lost:?}");
}

/// Tests that need peers.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn an_h2_request_that_is_under_way_is_finished() {
        let certificates = Certificates::new();
        let slow = HttpSink::start(|_| Answer::status(200).after(Duration::from_secs(2)));
        let config =
            format!("{}[queue]\nacknowledge = \"delivered\"\n", to_sink(slow.address(), ""));
        let tls = certificates.server.tls();
        let mut relay = Relay::start(&config.replacen(BASE, &format!("{BASE}{tls}"), 1));
        let url = format!("https://localhost:{}/", relay.address().port());
        let ca = text(&certificates.ca).to_owned();
        let sender = std::thread::spawn(move || {
            let body = ["--header", "Content-Type: application/json", "--data-binary", "@-"];
            let write = ["--write-out", " %{http_code} %{http_version}"];
            let arguments = ["--http2", "--verbose", "--cacert", &ca, &url];
            curl(&[&arguments[..], &body, &write].concat(), &generated_batch(1, 10, 900))
        });
        slow.wait_for_count(1, PATIENCE);
        relay.signal(libc::SIGTERM);
        let output = sender.join().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"accepted\":10} 200 2", "{said}");
        assert_eq!(relay.wait().code(), Some(0));
        assert_eq!(told_lost(&relay), (vec![], Some(0)));
    }
}
