//! The orderly end of a relay.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::Error;
use super::lives::Lives;
use super::parts::Parts;
use base::words::counted;
use queue::{Left, Queue, Remains};
use telemetry::Telemetry;

/// The longest wait for the outputs to end after the queue is drained. The same limit holds for the
/// sources, for the evidence, and for the remaining tasks, each on its own.
const CLOSING: Duration = Duration::from_secs(3);

/// The longest wait for a last scrape, which reads how many events are lost at the end: the
/// interval of the shipped PodMonitor.
const SCRAPE: Duration = Duration::from_secs(30);

/// Ends all parts of the relay in order. First, the listeners and sources stop accepting events.
/// Then this function waits until the queue is drained, for at most `shutdown.drain_timeout`. A
/// queue in memory or in an ephemeral directory is drained when the outputs have finished all
/// events. Any other queue on disk is drained when no event is on the wire. If events are lost at
/// the end, Prometheus, if it has ever asked, gets the rest of the time limit, but at most
/// [`SCRAPE`], to read their number.
///
/// # Errors
///
/// `Error::Ended` if events are lost at the end, or if an output, or a task that the relay needs,
/// has failed. The other outputs are still drained.
pub(crate) async fn drain(mut parts: Parts) -> Result<(), Error> {
    let timeout = parts.config.drain_timeout;
    let deadline = Instant::now() + timeout;
    let ephemeral = parts.config.queue.ephemeral;
    // The events in an ephemeral directory are lost with the pod. Only a scrape can still report
    // their number, so a part of the time is reserved for it.
    let reserved = if ephemeral && parts.queue.is_durable() { timeout / 4 } else { Duration::ZERO };
    parts.admin.stopping();
    parts.gate.close();
    parts.listeners.close();
    parts.outputs.hurry();
    parts.sources.close().await;
    tracing::info!(
        timeout = format!("{timeout:?}"),
        "shutting down: the outputs have shutdown.drain_timeout to finish their deliveries"
    );
    let half = Instant::now() + timeout / 2;
    let cut = async {
        tokio::time::sleep_until(half).await;
        parts.gate.cut();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = parts.gate.closed(deadline) => {}
        () = cut => {}
    }
    let mut result = Ok(());
    let (queue, failures) = (parts.queue.clone(), parts.tasks.failures.clone());
    let empty = tokio::time::timeout_at(deadline - reserved, queue.drained(ephemeral));
    let mut empty = std::pin::pin!(empty);
    loop {
        tokio::select! {
            _ = &mut empty => break,
            error = parts.outputs.ended() => result = Err(Error::ended(error)),
        }
    }
    if let Ok(Some(error)) = tokio::time::timeout(CLOSING, parts.outputs.stop()).await {
        result = Err(Error::ended(error));
    }
    parts.sources.end(CLOSING).await;
    parts.dead_letters.close().await;
    if let Some(evidence) = parts.evidence.take() {
        evidence.stop(CLOSING).await;
    }
    parts.queue.close().await;
    let lost = abandon(&parts.queue, ephemeral, parts.lives.take()).await;
    if lost > 0 {
        parts.admin.scraped(deadline.min(Instant::now() + SCRAPE)).await;
        result = result.and(Err(Error::Ended(counted(
            lost,
            "event is lost by the end",
            "events are lost by the end",
        ))));
    }
    parts.tasks.stop.cancel();
    parts.tasks.running.close();
    let ended = async {
        parts.listeners.ended().await;
        parts.tasks.running.wait().await;
    };
    tokio::time::timeout(CLOSING, ended).await.ok();
    result.and_then(|()| failures.first().map_or(Ok(()), |error| Err(Error::Ended(error))))
}

/// Gives up the events that the outputs have not delivered when the process ends. Events in memory,
/// or in an ephemeral directory, are lost and counted as lost. Other events stay on disk for the
/// next start, and the log says how many. Returns the number of lost events.
pub(crate) async fn abandon(queue: &Queue, ephemeral: bool, lives: Option<Arc<Lives>>) -> u64 {
    let mut lost = 0;
    let asked = queue.clone();
    let asked = tokio::task::spawn_blocking(move || asked.remains());
    let remains = match tokio::time::timeout(CLOSING, asked).await {
        Ok(Ok(remains)) => remains,
        _ => Remains::Unknown,
    };
    for (output, left) in queue.abandon(ephemeral, remains) {
        match left {
            Left::Lost(events) => lost += events,
            Left::Kept(0) | Left::Unknown(0) => {}
            Left::Unknown(events) => {
                tracing::error!(
                    output,
                    events,
                    "the output has not delivered all events, and the next start may not find \
                     them: files of the queue were deleted, or queue.directory was moved away, \
                     replaced or covered by a mount"
                );
            }
            Left::Kept(events) => {
                tracing::info!(
                    output,
                    events,
                    "the output has not delivered all events: they are kept in the queue for the \
                     next start"
                );
            }
        }
    }
    if let Some(lives) = lives {
        // If only the container restarts, an ephemeral directory is still there, and the next
        // process delivers these events. So the file `life` does not count them as lost.
        lives.end(if queue.is_durable() { lost } else { 0 }).await;
    }
    lost
}

/// Writes the last log line of a relay: the numbers of accepted, delivered, lost and kept events
/// since the start. The last three are sums over all outputs, so that an event that two outputs
/// have delivered counts twice as delivered. `kept` is `unknown` if the next start may not find all
/// of them.
pub(super) fn tell_totals(queue: &Queue, telemetry: &Telemetry) {
    telemetry.reports().flush();
    queue.observe();
    let (mut delivered, mut lost, mut kept, mut each) = (0, 0, 0, String::new());
    let finds_kept = queue.finds_kept();
    for mut outcome in telemetry.outcomes() {
        outcome.kept = if finds_kept { outcome.kept } else { 0 };
        (delivered, lost) = (delivered + outcome.delivered, lost + outcome.lost);
        kept += outcome.kept;
        let separator = if each.is_empty() { "" } else { "; " };
        each.push_str(&format!("{separator}{outcome}"));
    }
    let accepted = telemetry.queue().accepted.events.get();
    let kept: &dyn tracing::Value = if finds_kept { &kept } else { &"unknown" };
    if lost > 0 {
        tracing::error!(
            accepted,
            delivered,
            lost,
            kept,
            outputs = each,
            "the relay has ended, and has lost accepted events"
        );
    } else {
        tracing::info!(accepted, delivered, lost, kept, outputs = each, "the relay has ended");
    }
}
