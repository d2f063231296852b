//! The command `drain`: waits until a relay has delivered the events that it holds. It serves as a
//! pod's preStop hook in an image without a shell.
//!
//! The command changes nothing at the relay. Until a signal stops the relay afterwards, it
//! continues to accept new events and to deliver the waiting ones.

use std::path::Path;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::{failed, healthcheck};
use base::words::escape;

/// The shortest time for which the command waits, even if the relay holds no events. A pod that is
/// being stopped still gets requests from its Service for a moment. A shorter `--seconds` ends the
/// wait earlier.
const SETTLE: Duration = Duration::from_secs(5);

/// The greatest number of bytes in the response body of `/status`. The body has about 20 lines for
/// each address of each output, so that a large config makes it long.
const STATUS_MAX: usize = 16 << 20;

/// The pause between two requests to the relay.
const INTERVAL: Duration = Duration::from_millis(250);

/// Waits until the relay at this URL has delivered the events that it holds. If `url` is `None`,
/// the config names the relay. `seconds` limits the wait. `Err` is the exit status.
pub(super) fn run(url: Option<&str>, seconds: u64, file: Option<&Path>) -> Result<(), u8> {
    let url = healthcheck::page(url, file, "/status")?;
    let limit = Duration::from_secs(seconds);
    healthcheck::block_on(wait(&url, limit))?
        .map_err(|error| failed(format_args!("{url}: {error}")))
}

/// Waits until no required output of the relay has a backlog. Waits at least [`SETTLE`], or until
/// `limit` if that is shorter. `Err` is the reason for the failure: `limit` has passed, the
/// connection has failed, or the response is not a relay's status.
async fn wait(url: &Url, limit: Duration) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let waiting = backlog(url).await?;
        if waiting.is_empty() && begun.elapsed() >= SETTLE {
            return Ok(());
        }
        if begun.elapsed() >= limit {
            return match waiting.is_empty() {
                true => Ok(()),
                false => Err(format!(
                    "not delivered within {} s: {}",
                    limit.as_secs(),
                    waiting.join(", ")
                )),
            };
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Returns one message for each required output that has a backlog; an empty list means that all
/// events are delivered. If the relay does not respond in time, the list has one message that says
/// so, and the caller tries again. `Err`: the connection failed, or the response is not a relay's
/// status.
async fn backlog(url: &Url) -> Result<Vec<String>, String> {
    let Some(answered) = healthcheck::ask_in_time(url, STATUS_MAX).await else {
        return Ok(vec!["the relay does not answer".to_owned()]);
    };
    let (status, body) = answered?;
    if status != StatusCode::OK {
        return Err(status.to_string());
    }
    let status: Value = serde_json::from_str(&body)
        .map_err(|error| format!("not the status of a relay: {error}"))?;
    let outputs =
        status["outputs"].as_array().ok_or("not the status of a relay: it has no outputs")?;
    // An output that is not required does not hold back senders, and a paused one delivers nothing,
    // so the drain does not wait for their backlogs.
    let is = |output: &&Value, key: &str, value| output[key] == Value::Bool(value);
    let required =
        outputs.iter().filter(|it| !is(it, "required", false) && !is(it, "paused", true));
    required.filter_map(of_output).collect()
}

/// Returns a message about the backlog of one output; `None` if there is none. `output` is an
/// element of `outputs` in `/status`; `Some(Err)`: this element has no number of events.
fn of_output(output: &Value) -> Option<Result<String, String>> {
    let Some(events) = output["backlog_events"].as_u64() else {
        return Some(Err("not the status of a relay: an output has no backlog_events".to_owned()));
    };
    let events = events + output["aside"]["events"].as_u64().unwrap_or_default();
    let name = escape::message(output["name"].as_str().unwrap_or("?"));
    (events > 0).then(|| Ok(format!("{events} events for the output {name}")))
}
