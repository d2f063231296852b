//! The command `drain`, which a pod's preStop hook runs before the relay is told to stop.

use crate::support::prelude::*;
use crate::support::tally::Tallying;

fn drain(relay: &Relay, seconds: u32) -> Said {
    let url = format!("http://{}", relay.admin());
    said(&["drain", &url, "--seconds", &seconds.to_string()], Path::new("/"))
}

#[test]
fn drain_waits_until_every_consumer_has_everything_but_no_longer_than_it_may() {
    let spool = Spool::new();
    let (up, mut down) = (Tallying::tcp(), Tallying::tcp().closed());
    let relay = Relay::start(&format!(
        "{BASE}{}{}{}",
        up.output("up", ""),
        down.output("down", ""),
        spool.queue("")
    ));
    assert_eq!(relay.post(&numbered::list(0, 0..300)).status, 200);
    drain(&relay, 3).assert(1, &["300 events for the output down"]);

    // The consumer comes back while the command runs, or just before it starts.
    let waits = std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let begun = Instant::now();
            (drain(&relay, 600), begun.elapsed())
        });
        down.reopen();
        waits.join().unwrap()
    });
    let nothing = String::new();
    assert_eq!(waits.0, Said { code: Some(0), stdout: nothing.clone(), stderr: nothing });
    assert_eq!(down.tally.count(), 300);
    // After the last delivery, the command waits a few more seconds for senders that do not know
    // yet that the pod ends.
    assert!(waits.1 >= Duration::from_secs(5), "{:?}", waits.1);
    assert_eq!(relay.post(&numbered::list(0, 300..310)).status, 200, "it takes what comes");
    relay.wait_until_delivered(PATIENCE);
    relay.finish(Backlog::Empty);
}

#[test]
fn a_relay_that_has_no_time_to_answer_is_waited_for() {
    let consumer = Tallying::tcp();
    let relay = Relay::start(&format!("{BASE}{}", consumer.output("o", "")));
    relay.signal(libc::SIGSTOP);
    let said = drain(&relay, 1);
    relay.signal(libc::SIGCONT);
    said.assert(1, &["not delivered within 1 s: the relay does not respond"]);
    relay.finish(Backlog::Empty);
}

/// Method: something else responds at the address: a server with 200, and a balancer that has no
/// relay behind it with an empty 503.
#[test]
fn only_a_relay_can_say_that_everything_is_delivered() {
    for (status, says) in [(200, "the response is not that of a relay"), (503, "503 without a")] {
        let other = HttpSink::forgetful(move |_| Answer::status(status));
        let url = format!("http://{}", other.address());
        said(&["drain", &url, "--seconds", "1"], Path::new("/")).assert(1, &[says]);
    }
}

#[test]
fn drain_asks_where_the_config_says_and_tells_when_nobody_answers() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("relay.toml");
    let port = free_port();
    std::fs::write(&file, format!("admin = {{ address = \"0.0.0.0:{port}\" }}\n")).unwrap();
    let variables = [("KUBE_AUDIT_FORWARDER_CONFIG", file.to_str().unwrap())];
    let said = Said::of(run_command_with(&["drain"], Path::new("/"), &variables));
    said.assert(1, &[&format!("http://127.0.0.1:{port}/drained: cannot connect")]);
}
