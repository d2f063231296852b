//! `drain`: waits until a relay has delivered what it holds, for a pod's preStop hook in an image without a shell.
//!
//! It changes nothing at the relay, which is told to stop afterwards, by a signal: until then it goes on with what still
//! comes in, and with what waits.

use std::path::Path;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::FAILED;
use super::healthcheck;

/// At least so long: a pod that ends is still in its Service for a moment.
const SETTLE: Duration = Duration::from_secs(5);

/// Of an answer: `/status` has some lines for each address of each output.
const STATUS_MAX: usize = 1024 * 1024;

/// Between looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// Waits for the relay at this URL, or for the one that the config describes.
pub(super) fn run(url: Option<&str>, seconds: u64, file: Option<&Path>) -> Result<(), u8> {
    let mut url = healthcheck::url_of(url, file)?;
    url.set_path("/status");
    url.set_query(None);
    let limit = Duration::from_secs(seconds);
    healthcheck::block_on(wait(&url, limit))?.map_err(|error| {
        eprintln!("{url}: {error}");
        FAILED
    })
}

/// Returns when no required output has a backlog; an error when that takes longer than the limit.
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

/// What each output has not got yet, for people. A relay that has no time to answer is no reason to stop it.
async fn backlog(url: &Url) -> Result<Vec<String>, String> {
    let Some(answered) = healthcheck::ask_in_time(url, STATUS_MAX).await else {
        return Ok(vec!["the relay does not answer".to_owned()]);
    };
    let (status, body) = answered?;
    if status != StatusCode::OK {
        return Err(status.to_string());
    }
    let status: Value =
        serde_json::from_str(&body).map_err(|error| format!("no status of a relay: {error}"))?;
    let outputs = status["outputs"].as_array().ok_or("no status of a relay: it has no outputs")?;
    // One that is not required holds nobody up: no 200 has waited for it.
    let required = outputs.iter().filter(|output| output["required"] != Value::Bool(false));
    required.filter_map(of_output).collect()
}

/// `None` where it has got everything.
fn of_output(output: &Value) -> Option<Result<String, String>> {
    let Some(events) = output["backlog_events"].as_u64() else {
        return Some(Err("no status of a relay: an output without backlog_events".to_owned()));
    };
    let name = output["name"].as_str().unwrap_or("?").escape_debug();
    (events > 0).then(|| Ok(format!("{events} events for the output {name}")))
}
