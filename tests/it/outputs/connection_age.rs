//! `timeouts.max_connection_age`: connections are closed in order and replaced, and only the
//! consumer's load balancer notices.

use crate::support::peers::Rsyslog;
use crate::support::prelude::*;
use crate::support::tally::{check, check_unordered};

const AGE: &str = "timeouts = { max_connection_age = \"400ms\" }\n";

/// Sends a steady load until there have been 12 connections, and checks that nothing failed.
/// Returns how many events arrived more than once.
fn repeats(consumer: &Tallying, more: &str, ordered: bool) -> usize {
    let relay = Relay::start(&format!("{BASE}{}", consumer.output("consumer", more)));
    let senders = Senders::start(2, Bodies::Steady, &mut rng());
    senders.go_to(relay.address());
    wait_until("connections of age", PATIENCE, || consumer.history().len() >= 12);
    let sent = senders.finish();
    relay.wait_until_delivered(PATIENCE);
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("output_errors_total") + metrics.sum("output_retries_total"), 0.0);
    assert!(!relay.log_text().contains("down"), "{}", relay.log_text());
    // Idle connections are not kept beyond their age either.
    wait_until("the end of idle connections", PATIENCE, || consumer.open() == 0);
    let before = consumer.tally.count();
    assert_eq!(relay.post(&numbered::list(9, 0..1)).status, 200);
    consumer.tally.wait_for_count(before + 1, PATIENCE);
    relay.finish(Backlog::Empty);
    let arrivals = consumer.tally.arrivals()[..before].to_vec();
    let check = if ordered { check } else { check_unordered };
    check("the consumer", &sent, &arrivals).len()
}

#[test]
fn a_stream_is_finished_and_made_again_without_a_repetition() {
    assert_eq!(repeats(&Tallying::tcp(), AGE, true), 0);
}

#[test]
fn kept_connections_end_between_requests() {
    let one = format!("concurrency = 1\n{AGE}");
    assert_eq!(repeats(&Tallying::http(), &one, true), 0);
    let four = format!("concurrency = 4\n{AGE}");
    assert_eq!(repeats(&Tallying::http(), &four, false), 0);
}

/// These tests need rsyslog.
mod peers {
    use super::*;

    #[test]
    #[ignore = "needs peers or root: ./test"]
    fn a_window_is_acknowledged_before_its_connection_ends() {
        let rsyslog = Rsyslog::relp(Security::Plain, &Certificates::new());
        let config = format!(
            "{BASE}[[output]]\nname = \"consumer\"\ntype = \"relp\"\naddresses = [\"{}\"]\n{AGE}",
            rsyslog.address()
        );
        let relay = Relay::start(&config);
        let mut expected = Vec::new();
        // The load lasts 2 s, so that several connections reach their age.
        for seed in 0..40 {
            let batch = generated_batch(seed, 20, 900);
            expected.extend(events_of(&batch));
            assert_eq!(relay.post(&batch).status, 200);
            std::thread::sleep(Duration::from_millis(50));
        }
        relay.wait_until_delivered(PATIENCE);
        assert_eq!(rsyslog.messages(), expected);
        let metrics = relay.metrics();
        assert_eq!(metrics.sum("output_errors_total") + metrics.sum("output_retries_total"), 0.0);
        relay.finish(Backlog::Empty);
    }
}
