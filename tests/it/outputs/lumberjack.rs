//! `type = "lumberjack"`, with an independent server, and with a fake that follows the protocol
//! strictly and answers as a test wants. `faults` kills and stops the independent server.
//!
//! Acknowledged events are never sent again, and others are never lost.

use crate::support::lumberjack_server::LumberjackServer;
use crate::support::lumberjack_sink::{LumberjackSink, Window};
use crate::support::prelude::*;

fn config(addresses: &[SocketAddr], more: &str) -> String {
    format!("{BASE}{}", stream_output("lumberjack", addresses, more))
}

#[test]
fn a_server_that_was_not_written_here_gets_the_corpus() {
    let server = LumberjackServer::start();
    let relay = Relay::start(&config(&[server.address()], ""));
    let expected = post_corpus(&relay);
    relay.wait_until_delivered(PATIENCE);
    // The server writes events before it acknowledges them, so they are there already.
    assert!(server.events() == expected, "an event is changed, missing or there twice");
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    assert_eq!(of_output(&relay, "output_events_total"), expected.len() as f64);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_strict_server_gets_the_corpus_at_any_level_of_compression() {
    for level in [0, 1, 9] {
        let sink = LumberjackSink::start();
        let relay = Relay::start(&config(
            &[sink.address()],
            &format!("compression_level = {level}\nwindow = 300"),
        ));
        let expected = post_corpus(&relay);
        relay.wait_until_delivered(PATIENCE);
        assert!(sink.events() == expected, "an event is changed, missing or there twice");
        for window in sink.windows() {
            assert_eq!(window.compressed, level > 0);
            assert!(window.events.len() <= 150, "two fit in the window: {}", window.events.len());
        }
        assert_eq!(sink.history().len(), 1);
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn a_strict_server_gets_the_corpus_over_tls_and_mutual_tls() {
    let certificates = Certificates::new();
    for security in [Security::Tls, Security::MutualTls] {
        let mutual = security == Security::MutualTls;
        let tls = Some(certificates.server_config(&certificates.server, mutual));
        let sink = LumberjackSink::with(Options { tls, ..Options::default() }, |window, reply| {
            reply.acknowledge(window.events.len());
            true
        });
        let keys = tls_key(security, &certificates);
        let relay = Relay::start(&config(&[sink.address()], &keys));
        let expected = post_corpus(&relay);
        relay.wait_until_delivered(PATIENCE);
        assert!(sink.events() == expected);
        assert_eq!(sink.handshake_failures(), [] as [&str; 0]);
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn no_more_than_the_window_is_under_way() {
    let sink = LumberjackSink::with(Options::default(), |_, _| true);
    let more = "window = 500\ntimeouts = { request = \"1s\" }";
    let shutdown = "[shutdown]\ndrain_timeout = \"1s\"\n";
    let relay = Relay::start(&format!("{}{shutdown}", config(&[sink.address()], more)));
    let expected = post_batches(&relay, 0..6, 400, 1500);
    wait_for_errors(&relay, "timeout", 3.0);
    let runs = sink.runs();
    // At first the output sends as many whole batches as fit into the window, and after a second
    // failure at most half as many.
    let under_way = [&runs[0], &runs[1], &runs[2]].map(Vec::len);
    assert!((250..=500).contains(&under_way[0]), "{under_way:?}");
    assert!((250..=500).contains(&under_way[1]), "{under_way:?}");
    assert!((1..=under_way[0] / 2).contains(&under_way[2]), "{under_way:?}");
    assert!(runs.iter().all(|run| expected.starts_with(run)));
    assert_eq!(of_output(&relay, "output_events_total"), 0.0);
    assert_eq!(of_output(&relay, "output_backlog_events"), expected.len() as f64);
    relay.finish(Backlog::Stable);
}

/// Method: the first of two consumers has a blocked pipeline: it takes events, and acknowledges 0,
/// or the same first events again and again. Its signs of life must not keep it the other one's
/// events.
#[test]
fn signs_of_life_do_not_keep_an_address_that_makes_no_progress() {
    for acknowledged in [0, 3] {
        let blocked = LumberjackSink::with(Options::default(), move |_, reply| {
            while reply.rest(Duration::from_millis(100)) {
                reply.acknowledge(acknowledged);
            }
            false
        });
        let good = LumberjackSink::start();
        let addresses = [blocked.address(), good.address()];
        let more = "timeouts = { request = \"1s\" }\n";
        let relay = Relay::start(&config(&addresses, more));
        let sent = post_batch(&relay, 1, 20, 900);
        relay.wait_until_delivered(PATIENCE);
        assert!(good.events() == sent[acknowledged..], "{acknowledged}");
        relay.wait_for_log(messages::ADDRESS_DOWN, PATIENCE);
        relay.finish(Backlog::Empty);
    }
}

/// Method: the only consumer asks for patience for three times as long as a request may take, and
/// then acknowledges. The output must be down meanwhile, and nothing may be sent twice.
#[test]
fn an_output_whose_only_consumer_asks_for_patience_is_down_and_waits() {
    let may_go_on = Arc::new(AtomicBool::new(false));
    let goes_on = Arc::clone(&may_go_on);
    let sink = LumberjackSink::with(Options::default(), move |window, reply| {
        while !goes_on.load(Ordering::Relaxed) && reply.rest(Duration::from_millis(100)) {
            reply.acknowledge(0);
        }
        reply.acknowledge(window.events.len());
        true
    });
    let more = "timeouts = { request = \"1s\" }\n";
    let relay = Relay::start(&config(&[sink.address()], more));
    let sent = post_batch(&relay, 1, 400, 1500);
    let told = relay.wait_for_log("output down, events are kept", PATIENCE);
    assert!(told["error"].as_str().unwrap().contains("asks for patience"), "{told}");
    let reports = || relay.metrics().sum("output_errors_total");
    wait_until("a second report", PATIENCE, || reports() >= 2.0);
    may_go_on.store(true, Ordering::Relaxed);
    relay.wait_for_log("output up again", PATIENCE);
    relay.wait_until_delivered(PATIENCE);
    assert!(sink.events() == sent && sink.history().len() == 1);
    relay.finish(Backlog::Empty);
}

/// Method: the consumer acknowledges two thirds of the first window of each connection, in two
/// steps, and ends the connection. After twenty windows it acknowledges everything. Acknowledged
/// events must not arrive again, and all events must arrive.
fn what_a_part_of_a_window_acknowledges_is_final(queue: &str) {
    let part = |window: &Window| window.events.len() - window.events.len() / 3;
    let sink = LumberjackSink::with(Options::default(), move |window, reply| {
        let in_order = reply.number() >= 20;
        reply.acknowledge(window.events.len() / 2);
        reply.acknowledge(if in_order { window.events.len() } else { part(window) });
        in_order
    });
    let relay = Relay::start(&format!("{}{queue}", config(&[sink.address()], "")));
    let expected = post_batches(&relay, 0..6, 400, 1500);
    relay.wait_until_delivered(PATIENCE);
    let runs = sink.runs();
    let mut done = 0;
    for window in &sink.windows()[..20] {
        assert!(expected[done..].starts_with(&window.events), "it begins behind the acknowledged");
        done += part(window);
    }
    assert_covers(&expected, &runs);
    assert_eq!(of_output(&relay, "output_events_total"), expected.len() as f64);
    relay.finish(Backlog::Empty);
}

#[test]
fn what_a_part_of_a_window_acknowledges_is_final_and_not_sent_again() {
    what_a_part_of_a_window_acknowledges_is_final("");
}

#[test]
fn what_a_part_of_a_window_acknowledges_is_final_on_disk_too() {
    what_a_part_of_a_window_acknowledges_is_final(&Spool::new().queue(""));
}

/// Method: the consumer cuts each connection after fewer bytes than two events have. Every event
/// must still arrive, in order.
#[test]
fn a_consumer_that_cuts_every_connection_gets_everything_at_last() {
    let sink = LumberjackSink::start();
    sink.cut_each_after(Some(3000));
    let relay = Relay::start(&config(&[sink.address()], "compression_level = 0"));
    let expected = post_batch(&relay, 1, 60, 1500);
    relay.wait_until_delivered(PATIENCE * 2);
    let runs = sink.runs();
    eprintln!("{} events in {} connections", expected.len(), runs.len());
    assert_covers(&expected, &runs);
    relay.finish(Backlog::Empty);
}

#[test]
fn what_is_no_acknowledgement_is_an_error_and_costs_no_event() {
    let wrong: [(&[u8], &str); 3] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "responds with \"HTTP/1\" instead of an ACK"),
        (b"2A\0\0\x01\x91", "acknowledges event 401, but the window has only 400"),
        (b"2A\xff\xff\xff\xff", "acknowledges event 4294967295, but the window has only 400"),
    ];
    for (answer, message) in wrong {
        let sink = LumberjackSink::with(Options::default(), move |window, reply| {
            match reply.number() {
                0 => reply.write(answer),
                _ => reply.acknowledge(window.events.len()),
            }
            true
        });
        let relay = Relay::start(&config(&[sink.address()], ""));
        let expected = post_batch(&relay, 0, 400, 1500);
        relay.wait_until_delivered(PATIENCE);
        assert_eq!(errors(&relay, "protocol"), 1.0);
        let status = http::get(relay.admin(), "/status").unwrap().json();
        let said = status["outputs"][0]["last_error"].as_str().unwrap().to_owned();
        assert!(said.ends_with(message), "{said}");
        assert_covers(&expected, &sink.runs());
        relay.finish(Backlog::Empty);
    }
}

#[test]
fn a_connection_that_the_consumer_ends_while_it_is_idle_is_no_error() {
    let sink = LumberjackSink::start();
    let relay = Relay::start(&config(&[sink.address()], ""));
    let mut expected = post_batch(&relay, 0, 400, 1500);
    relay.wait_until_delivered(PATIENCE);
    sink.close_connections();
    expected.extend(post_batch(&relay, 1, 400, 1500));
    relay.wait_until_delivered(PATIENCE);
    sink.reset_connections();
    expected.extend(post_batch(&relay, 2, 400, 1500));
    relay.wait_until_delivered(PATIENCE);
    assert!(sink.events() == expected);
    assert_eq!(sink.history().len(), 3);
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn events_go_to_the_next_address_when_one_is_dead_and_one_never_answers() {
    let mut dead = LumberjackSink::start();
    dead.close();
    let silent = LumberjackSink::with(Options::default(), |_, _| true);
    let good = LumberjackSink::start();
    let more = "timeouts = { connect = \"1s\", request = \"1s\" }";
    let addresses = [dead.address(), silent.address(), good.address()];
    let relay = Relay::start(&config(&addresses, more));
    let expected = post_batches(&relay, 0..6, 400, 1500);
    relay.wait_until_delivered(PATIENCE);
    assert!(good.events() == expected);
    assert!(errors(&relay, "connect") >= 1.0);
    assert_eq!(errors(&relay, "timeout"), 1.0);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_connection_without_events_is_ended_in_order_after_the_idle_timeout() {
    let sink = LumberjackSink::start();
    let relay = Relay::start(&config(&[sink.address()], "idle_timeout = \"300ms\""));
    let mut expected = post_batch(&relay, 0, 400, 1500);
    wait_until("the end of the connection", PATIENCE, || {
        let history = sink.history();
        !history.is_empty() && history.iter().all(|times| times.closed.is_some())
    });
    expected.extend(post_batch(&relay, 1, 400, 1500));
    relay.wait_until_delivered(PATIENCE);
    assert!(sink.events() == expected);
    assert_eq!(relay.metrics().sum("output_errors_total"), 0.0);
    relay.finish(Backlog::Empty);
}
