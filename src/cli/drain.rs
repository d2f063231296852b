//! The command `drain`: waits until a relay has delivered the events that it holds for its required
//! outputs. It serves as a pod's preStop hook in an image without a shell.
//!
//! The command changes nothing at the relay, which continues to accept new events and to deliver
//! the waiting ones until a signal stops it.

use std::path::Path;
use std::time::Duration;

use hyper::StatusCode;
use tokio::time::Instant;

use super::healthcheck::{DRAINED, Page, Relay};
use super::{failed, healthcheck};
use base::words::escape;

/// The shortest time for which the command waits, even if the relay holds no events. A pod that is
/// being stopped still gets requests from its Service for a moment. If `--seconds` is shorter, the
/// wait ends then.
const SETTLE: Duration = Duration::from_secs(5);

/// The greatest number of bytes in a response body. It has at most one line for each output.
const ANSWER_MAX: usize = 64 << 10;

const INTERVAL: Duration = Duration::from_millis(250);

/// Waits until the relay has delivered the events that it holds. `seconds` limits the wait. `Err`
/// is the exit status.
pub(super) fn run(relay: &Relay, seconds: u64, file: Option<&Path>) -> Result<(), u8> {
    let page = relay.page(file, DRAINED)?;
    let limit = Duration::from_secs(seconds);
    healthcheck::block_on(wait(&page, limit))?
        .map_err(|error| failed(format_args!("{page}: {}", escape::message(&error))))
}

/// Waits until the relay says that no events wait, but at least for [`SETTLE`], or for `limit` if
/// that is shorter. `Err` is the reason for the failure: `limit` has passed, the connection has
/// failed, or the response is not that of a relay.
async fn wait(page: &Page, limit: Duration) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let waiting = backlog(page).await?;
        if waiting.is_empty() && begun.elapsed() >= SETTLE {
            return Ok(());
        }
        if begun.elapsed() >= limit {
            return match waiting.is_empty() {
                true => Ok(()),
                false => Err(format!("not delivered within {} s: {waiting}", limit.as_secs())),
            };
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Returns a text about the events that still wait, from the relay's response; an empty text means
/// that all events are delivered. If the relay does not respond in time, or the response is a 503
/// without a body, the text says so, and the caller tries again. `Err` if the connection has
/// failed, or if the response is not that of a relay.
async fn backlog(page: &Page) -> Result<String, String> {
    let Some(answered) = page.ask(ANSWER_MAX).await else {
        return Ok("the relay does not respond".to_owned());
    };
    match answered? {
        (StatusCode::OK, body) if body == "ok\n" => Ok(String::new()),
        (StatusCode::OK, _) => Err("the response is not that of a relay".to_owned()),
        (StatusCode::SERVICE_UNAVAILABLE, body) if body.trim().is_empty() => {
            Ok("503 without a number of events, which is not the response of a relay".to_owned())
        }
        (StatusCode::SERVICE_UNAVAILABLE, body) => {
            Ok(body.trim_end().lines().collect::<Vec<_>>().join(", "))
        }
        (status, body) => Err(page.refused(status, &body)),
    }
}
