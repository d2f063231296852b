//! A sender that repeats a batch as the webhook backend of k8s.io/apiserver does.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::http::{Client, Response};

/// The fate of a batch at kube-apiserver's webhook client: the refusals, and whether the batch was
/// accepted in the end.
pub(crate) struct Sent {
    pub(crate) accepted: bool,
    pub(crate) refusals: Vec<Response>,
}

/// Sends a batch as kube-apiserver does, with times divided by `faster`.
///
/// The client makes 5 attempts (`DefaultRetryBackoffWithInitialDelay`). The pause between them is
/// 10 s, then 1.5 times as long each time, plus up to 20 %. An attempt takes at most 30 s. Within
/// it the client retries up to 10 times, as long as the answer is 429 or 5xx and has a whole number
/// of seconds in Retry-After. If `faster` is above 1, no request is cut off at the end of an
/// attempt, because the relay's own work does not become faster.
pub(crate) fn send_as_kube_apiserver(address: SocketAddr, body: &[u8], faster: u32) -> Sent {
    let mut sent = Sent { accepted: false, refusals: Vec::new() };
    let mut pause = Duration::from_secs(10) / faster;
    for attempt in 0..5 {
        if attempt > 0 {
            std::thread::sleep(pause.mul_f64(1.0 + 0.2 * random()));
            pause = pause.mul_f64(1.5);
        }
        let end = Instant::now() + Duration::from_secs(30) / faster;
        let left = || end.saturating_duration_since(Instant::now());
        for _ in 0..=10 {
            let posted = Client::connect(address).and_then(|mut client| {
                if faster == 1 {
                    client.read_timeout(left().max(Duration::from_millis(1)));
                }
                client.post("/audit?timeout=30s", "application/json", body)
            });
            let Ok(response) = posted else { break };
            if response.status == 200 {
                sent.accepted = true;
                return sent;
            }
            let again = response.status == 429 || response.status >= 500;
            let wait: Option<u32> =
                response.header("retry-after").and_then(|wait| wait.parse().ok());
            sent.refusals.push(response);
            let Some(wait) = wait.filter(|_| again) else { break };
            std::thread::sleep((Duration::from_secs(1) * wait / faster).min(left()));
            if left().is_zero() {
                break;
            }
        }
    }
    sent
}

/// Returns a random number from 0 to 1.
fn random() -> f64 {
    use std::hash::BuildHasher as _;
    #[allow(clippy::cast_precision_loss, reason = "a draw, not a count")]
    let draw = std::hash::RandomState::new().hash_one(()) as f64;
    draw / 2.0_f64.powi(64)
}
