//! Outputs with several addresses. Delivery passes over addresses that are down or do not answer,
//! and returns to the preferred address once it works again.

use crate::support::lumberjack_sink::LumberjackSink;
use crate::support::prelude::*;
use crate::support::tally::{Arrival, check};

/// The `timeouts.request` of the outputs. The `replay_window` of a tcp output is longer, so that
/// the bytes that the silent address's kernel accepts are not lost.
const REQUEST: Duration = Duration::from_secs(1);

/// The time that a busy machine can add. A pause of the output before the next address would be
/// longer (60 s).
const BUSY: Duration = Duration::from_secs(10);

/// Method: the first of two URLs refuses connections, and later accepts requests and never answers.
/// Its trial must delay events by some seconds, and not by `timeouts.request`, which is longer than
/// the test. The verdict must be a warning until a request there has succeeded, also during the
/// trial.
#[test]
fn a_trial_is_one_request_with_a_short_deadline_and_the_verdict_warns_until_it_succeeds() {
    let answers = Arc::new(AtomicBool::new(false));
    let is_well = Arc::clone(&answers);
    let mut first = HttpSink::start(move |_| match is_well.load(Ordering::SeqCst) {
        true => Answer::status(200),
        false => Answer::never(),
    });
    let second = HttpSink::accepting();
    first.close();
    let urls = [&first, &second].map(|sink| format!("http://{}/", sink.address()));
    let relay = Relay::start(&to_http(&urls, "timeouts = { request = \"10m\" }\n"));
    let status = || http::get(relay.admin(), "/status").unwrap().json();
    let state = || status()["outputs"][0]["addresses"][0]["state"].as_str().unwrap().to_owned();
    let post = |seed| {
        post_batch(&relay, seed, 5, 900);
        relay.wait_until_delivered(PATIENCE);
    };
    post(1);
    assert_eq!(state(), "down");
    first.reopen();
    wait_until("the trial", PATIENCE, || state() == "back, on trial");
    let verdict = status()["verdict"].clone();
    assert_eq!(verdict["state"], "warn", "{verdict}");
    assert!(verdict["text"].as_str().unwrap().contains("taken no events"), "{verdict}");
    // The events of the trial soon go to the other address.
    post(2);
    assert_eq!((first.count(), second.count(), state().as_str()), (1, 2, "down"));
    assert_eq!(status()["verdict"]["state"], "warn");
    let series = [("output", "consumer"), ("state", "down")];
    assert_eq!(relay.metrics().get("output_addresses", &series), Some(1.0));
    answers.store(true, Ordering::SeqCst);
    wait_until("the second trial", PATIENCE * 2, || state() == "back, on trial");
    post(3);
    assert_eq!((state().as_str(), status()["verdict"]["state"].as_str()), ("up", Some("good")));
    relay.finish(Backlog::Empty);
}

/// Method: the first of two addresses accepts requests and does not answer them. `timeouts.request`
/// is longer than the test. The first address must be down or on trial. The other one must get each
/// event once, and in order if the output sends one request at a time.
fn the_next_gets_what_the_first_leaves_unanswered(first: &HttpSink, second: &HttpSink, more: &str) {
    let urls = [first, second].map(|sink| format!("http://{}/", sink.address()));
    let more = format!("timeouts = {{ request = \"10m\" }}\n{more}");
    let relay = Relay::start(&to_http(&urls, &more));
    let sent = post_batches(&relay, 0..30, 5, 900);
    relay.wait_until_delivered(PATIENCE * 2);
    let arrived = accepted_events(second);
    match more.contains("concurrency = 1\n") {
        true => assert!(arrived == sent, "{} of {} in order", arrived.len(), sent.len()),
        false => assert_same_set(&arrived, &sent),
    }
    let told = relay.wait_for_log(messages::ADDRESS_DOWN, PATIENCE);
    assert_eq!(told["address"], first.address().to_string());
    let states: Vec<_> = addresses(&relay).iter().map(|it| it["state"].clone()).collect();
    assert!(states[0] == "down" || states[0] == "back, on trial", "{states:?}");
    assert_eq!(states[1], "up");
    // Each request to the first address counts as a timeout.
    let unanswered = f64::from(u32::try_from(first.count()).unwrap());
    assert!((1.0..20.0).contains(&unanswered), "{unanswered} of 30");
    assert_eq!(errors_by_reason(&relay), BTreeMap::from([("timeout".to_owned(), unanswered)]));
    assert!(of_output(&relay, "output_retries_total") >= 1.0);
    assert_eq!((lost(&relay), of_output(&relay, "output_events_total")), (0.0, 150.0));
    relay.finish(Backlog::Empty);
}

#[test]
fn an_address_that_leaves_requests_unanswered_is_down_and_the_next_one_gets_them() {
    let modes = ["failover", "round_robin"].iter().flat_map(|strategy| {
        [1, 4].map(|lanes| format!("strategy = \"{strategy}\"\nconcurrency = {lanes}\n"))
    });
    let modes: Vec<String> = modes.collect();
    std::thread::scope(|scope| {
        for more in &modes {
            scope.spawn(move || {
                let (silent, good) = (HttpSink::start(|_| Answer::never()), HttpSink::accepting());
                the_next_gets_what_the_first_leaves_unanswered(&silent, &good, more);
            });
        }
    });
}

/// Method: the first address answers its first request with 200 or 400, but only after the other
/// address has accepted events.
#[test]
fn an_answer_that_comes_after_the_next_address_has_the_events_changes_nothing() {
    std::thread::scope(|scope| {
        for status in [200, 400] {
            scope.spawn(move || {
                let is_taken = Arc::new(AtomicBool::new(false));
                let (takes, sees) = (Arc::clone(&is_taken), is_taken);
                let late = HttpSink::start(move |request| {
                    if request.number > 0 {
                        return Answer::never();
                    }
                    wait_until("the other one's", PATIENCE * 2, || sees.load(Ordering::SeqCst));
                    Answer::status(status)
                });
                let good = HttpSink::start(move |_| {
                    takes.store(true, Ordering::SeqCst);
                    Answer::status(200)
                });
                the_next_gets_what_the_first_leaves_unanswered(&late, &good, "concurrency = 1\n");
            });
        }
    });
}

#[test]
fn an_address_that_acknowledges_nothing_is_down_and_the_next_one_gets_its_events() {
    let silent = LumberjackSink::with(Options::default(), |_, _| true);
    let good = LumberjackSink::start();
    let output = stream_output(
        "lumberjack",
        &[silent.address(), good.address()],
        "timeouts = { request = \"10m\" }\n",
    );
    let relay = Relay::start(&format!("{BASE}{output}"));
    let sent = post_batches(&relay, 0..30, 5, 900);
    relay.wait_until_delivered(PATIENCE * 2);
    assert!(good.events() == sent, "{} of {} in order", good.events().len(), sent.len());
    let told = relay.wait_for_log(messages::ADDRESS_DOWN, PATIENCE);
    assert_eq!(told["address"], silent.address().to_string());
    assert_eq!(errors_by_reason(&relay), BTreeMap::from([("timeout".to_owned(), 1.0)]));
    relay.finish(Backlog::Empty);
}

/// Returns the keys of an output whose pauses would be 60 s, so that a pause is noticed.
fn keys() -> String {
    let request = REQUEST.as_secs();
    format!(
        "timeouts = {{ request = \"{request}s\" }}\n\
         retry = {{ initial_interval = \"60s\", max_interval = \"60s\", randomization_factor = 0.0 }}\n"
    )
}

/// Method: the preferred address is killed under a steady load. A silent address and a good one
/// follow it in the config. The good one must receive events after one `timeouts.request` for the
/// silent one, without another pause. Once the preferred address is back, all events must go there.
/// The events must arrive in order without a gap, and the return must not repeat any.
fn preferred_dies_and_returns(config: &str, mut preferred: Tallying, good: Tallying) {
    let relay = Relay::start(config);
    let senders = Senders::start(1, Bodies::Steady, &mut rng());
    senders.go_to(relay.address());
    // After a break, a stream sends what was not final again, which is more than the kernel of the
    // silent address accepts.
    preferred.tally.wait_for_count(1000, PATIENCE);
    assert_eq!(good.tally.count(), 0);

    let died = Instant::now();
    preferred.kill();
    good.tally.wait_for_count(1, PATIENCE * 2);
    let resumed = good.tally.arrivals()[0].at - died;
    // The silent address costs `timeouts.request`. The dead one, and the change of address, cost
    // nothing.
    assert!(resumed >= REQUEST, "{resumed:?}");
    assert!(resumed < REQUEST + BUSY, "{resumed:?}");
    good.tally.wait_for_count(300, PATIENCE);

    // The first events at the good address are final after `replay_window`.
    wait_until("the good address is up", PATIENCE, || {
        let addresses = addresses(&relay);
        let states = addresses.iter().map(|it| (it["state"].as_str().unwrap(), it["used"] == true));
        states.eq([("down", false), ("down", false), ("up", true)])
    });

    let before = preferred.tally.count();
    let returned = Instant::now();
    preferred.reopen();
    preferred.tally.wait_for_count(before + 1, PATIENCE * 2);
    let came_back = preferred.tally.arrivals()[before].at - returned;
    relay.wait_for_log("address up again", PATIENCE);
    // Requests already sent to the good address still arrive there.
    let mut last = 0;
    wait_until("the end of what the other one gets", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut last, good.tally.count()) == good.tally.count()
    });
    preferred.tally.wait_for_count(preferred.tally.count() + 300, PATIENCE);
    assert_eq!(good.tally.count(), last, "it stays with the preferred one");

    let sent = senders.finish();
    relay.finish(Backlog::Empty);
    // The connection to the good address was ended in order, so the return repeats nothing.
    let of_good = good.tally.ids();
    let after = preferred.tally.arrivals().split_off(before);
    let again = after.iter().filter(|arrival| of_good.contains(&arrival.id)).count();
    assert_eq!(again, 0, "came again by the return");
    wait_until("the end", PATIENCE, || preferred.open() + good.open() == 0);
    // The arrivals of both are checked as if one consumer had received them, ordered by time.
    let of_good = good.tally.arrivals().into_iter();
    let of_good = of_good.map(|arrival| Arrival { run: arrival.run + 1_000_000, ..arrival });
    let mut arrivals = preferred.tally.arrivals();
    arrivals.extend(of_good);
    arrivals.sort_by_key(|arrival| arrival.at);
    let repeats = check("all of them", &sent, &arrivals);
    eprintln!(
        "resumed after {resumed:?}, back {came_back:?} after the return; {} events, {} came again",
        arrivals.len() - repeats.len(),
        repeats.len()
    );
}

fn addresses(relay: &Relay) -> Vec<Value> {
    let status = http::get(relay.admin(), "/status").unwrap().json();
    status["outputs"][0]["addresses"].as_array().unwrap().clone()
}

#[test]
fn lines_go_on_at_the_good_address_and_come_back_to_the_preferred_one() {
    let (preferred, good) = (Tallying::tcp(), Tallying::tcp());
    // The kernel of the silent consumer accepts connections and a few bytes. The consumer reads
    // nothing.
    let options = Options { receive_buffer: Some(16 * 1024), ..Options::default() };
    let silent = TcpSink::with(Framing::Lines, options);
    silent.pause(true);
    let addresses = [preferred.address(), silent.address(), good.address()];
    let addresses = addresses.map(|address| address.to_string());
    let config = format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"tcp\"\naddresses = {addresses:?}\n\
         replay_window = \"2s\"\n{}",
        keys()
    );
    preferred_dies_and_returns(&config, preferred, good);
}

#[test]
fn an_address_that_never_finishes_its_handshake_is_passed_over() {
    let files = Certificates::new();
    let tls = Some(files.server_config(&files.server, false));
    let good = TcpSink::with(Framing::Lines, Options { tls, ..Options::default() });
    let silent = TcpSink::start();
    silent.pause(true);
    let addresses = [silent.address(), good.address()].map(|address| address.to_string());
    let config = format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"tcp\"\naddresses = {addresses:?}\n\
         timeouts = {{ connect = \"500ms\" }}\ntls = {{ ca = {:?} }}\nreplay_window = \"100ms\"\n",
        files.ca
    );
    let relay = Relay::start(&config);
    let sent = post_batch(&relay, 1, 40, 900);
    relay.wait_until_delivered(PATIENCE);
    good.wait_for_count(sent.len(), PATIENCE);
    assert_eq!(good.lines(), sent);
    let told = relay.wait_for_log(messages::ADDRESS_DOWN, PATIENCE);
    assert_eq!(told["address"], addresses[0]);
    // While the address is down, probes try the handshake.
    wait_until("probes", PATIENCE, || silent.history().len() > 2);
    assert_eq!(good.history().len(), 1);
    relay.finish(Backlog::Empty);
}

#[test]
fn requests_go_on_at_the_good_url_and_come_back_to_the_preferred_one() {
    let (preferred, good) = (Tallying::http(), Tallying::http());
    let silent = HttpSink::start(|_| Answer::never());
    let urls = [preferred.address(), silent.address(), good.address()];
    let urls = urls.map(|address| format!("http://{address}/"));
    let config = format!(
        "{BASE}[[output]]\nname = \"consumer\"\ntype = \"http\"\nurls = {urls:?}\nconcurrency = 1\n{}",
        keys()
    );
    preferred_dies_and_returns(&config, preferred, good);
}
