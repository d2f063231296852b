//! The rules for pauses, attempts and proofs, without a delivery, under paused time.

use super::*;

fn pacing() -> Pacing {
    let retry = Retry::new(&config::Retry {
        initial_interval: Duration::from_secs(1),
        max_interval: Duration::from_secs(30),
        multiplier: 2.0,
        randomization_factor: 0.0,
    });
    Pacing::new(retry, CancellationToken::new())
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[tokio::test(start_paused = true)]
async fn failures_of_one_moment_are_one_pause() {
    let mut pacing = pacing();
    assert_eq!(pacing.failed(None, false), secs(1));
    assert_eq!(pacing.failed(None, false), secs(1), "the same pause");
    assert_eq!(pacing.failed(Some(secs(5)), false), secs(5), "the consumer asks for more");
    assert_eq!(pacing.failed(Some(secs(3)), false), secs(5), "it has asked for more already");
    assert_eq!(pacing.paused_until, Some(Instant::now() + secs(5)));
    pacing.end_pause();
    assert_eq!(pacing.failed(None, false), secs(2), "the second pause is longer");
    pacing.end_pause();
    pacing.succeeded();
    assert_eq!(pacing.failed(None, false), secs(1), "the first pause after a success");
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_one_attempt_at_a_time_is_made_until_one_succeeds() {
    let mut pacing = pacing();
    assert!(!pacing.is_serial);
    pacing.failed(None, false);
    pacing.end_pause();
    assert!(pacing.is_serial);
    pacing.succeeded();
    assert!(!pacing.is_serial);
}

#[tokio::test(start_paused = true)]
async fn a_connection_after_one_that_broke_at_once_proves_nothing() {
    let mut pacing = pacing();
    assert!(pacing.connected());
    pacing.broke_at_once();
    pacing.failed(None, false);
    assert!(!pacing.connected() && pacing.is_unproven);
    assert!(!pacing.is_serial, "it may use its window");
    pacing.proven();
    assert!(pacing.connected());
    pacing.broke_at_once();
    pacing.succeeded();
    assert!(!pacing.is_unproven, "it has accepted something");
}

#[tokio::test(start_paused = true)]
async fn the_drain_ends_one_pause_and_shortens_the_later_ones() {
    let mut pacing = pacing();
    pacing.failed(Some(secs(60)), false);
    assert!(!pacing.is_shortened);
    pacing.draining.cancel();
    pacing.shorten();
    assert_eq!(pacing.paused_until, None);
    assert_eq!(pacing.failed(Some(secs(60)), false), DRAIN_PAUSE_MAX);
    assert_eq!(
        pacing.failed(Some(secs(60)), false),
        DRAIN_PAUSE_MAX,
        "a second request of that moment"
    );
    assert_eq!(pacing.failed(Some(secs(60)), true), secs(60), "in doubt");
    assert!(pacing.is_shortened, "once");
}
