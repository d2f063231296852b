//! Sends the newest checkpoint of the evidence log to one consumer, between the events. A newer
//! checkpoint replaces one that could not be sent. After each further failure, the pause before the
//! next checkpoint is longer, up to a minute, so that a consumer that can't take any is seldom
//! asked. Events do not wait for a checkpoint.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::failure::Failure;
use queue::{Acceptance, Batch, Claim, Position};

/// The newest checkpoint of the relay, as a signed note; empty until there is one.
pub type Published = watch::Receiver<Bytes>;

/// The pause after the first failure. It doubles with each further failure, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);

const PAUSE_MAX: Duration = Duration::from_secs(60);

const WARN_EVERY: Duration = Duration::from_secs(60 * 60);

/// A checkpoint as a consumer gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    line: Bytes,
    note: Bytes,
}

impl Checkpoint {
    fn of(note: Bytes) -> Option<Self> {
        let text = std::str::from_utf8(&note).ok().filter(|text| !text.is_empty())?;
        let (package, text) = (base::release::NAME, serde_json::Value::from(text));
        let head = format!(r#"{{"kind":"Checkpoint","apiVersion":"{package}/v1","note":"#);
        Some(Self { line: format!("{head}{text}}}\n").into(), note })
    }

    /// Returns the checkpoint as a JSON object on one line, with a line break at its end.
    pub fn line(&self) -> &Bytes {
        &self.line
    }

    /// Returns the origin: the name of the evidence log.
    #[cfg(any(feature = "kafka", test))]
    pub fn origin(&self) -> &[u8] {
        self.note.split(|byte| *byte == b'\n').next().unwrap_or_default()
    }

    /// Returns the line as a batch. Its claim is empty and must not be reported, because the line
    /// has no position in the queue.
    pub fn batch(&self) -> Batch {
        let first = Position::START;
        Batch {
            events: 1,
            bytes: self.line.len() as u64,
            pieces: vec![self.line.clone()],
            acceptances: vec![Acceptance { first, events: 1, age: Duration::ZERO, received: 0 }],
            ..Batch::of(Claim { start: first, end: first })
        }
    }
}

/// The result of sending one checkpoint.
#[derive(Debug)]
pub enum Fate {
    /// The consumer has the checkpoint.
    Taken,
    /// The consumer has not taken the checkpoint, and may take it later.
    Failed(Failure),
    /// The consumer refuses the checkpoint, and would refuse it again.
    Refused(Failure),
}

#[derive(Default)]
pub(super) struct Checkpoints {
    output: String,
    /// `None` if this output sends no checkpoints.
    published: Option<Published>,
    /// The shortest time from the acknowledgement of one checkpoint to the sending of the next.
    interval: Duration,
    /// `true` if the newest checkpoint must be sent, even if no newer one is published.
    is_owed: bool,
    /// `true` while a link has a checkpoint and has not reported its result.
    pub(super) is_in_delivery: bool,
    waits_until: Option<Instant>,
    pause: Duration,
    /// `true` if the last log line about checkpoints says that they can't be sent.
    is_told: bool,
    warned_at: Option<Instant>,
}

impl Checkpoints {
    pub(crate) fn new(output: &str, published: Option<Published>, interval: Duration) -> Self {
        let (output, pause) = (output.to_owned(), PAUSE_MIN);
        Self { output, published, interval, pause, ..Self::default() }
    }

    /// Waits until a checkpoint can be sent, but at least until `not_before`. Never returns if the
    /// output sends no checkpoints, while a checkpoint is in progress, or if no checkpoint is left
    /// to send and none will follow. Nothing is lost when the future is dropped.
    pub(crate) async fn due(&mut self, not_before: Option<Instant>) {
        let Some(published) = self.published.as_mut().filter(|_| !self.is_in_delivery) else {
            return std::future::pending().await;
        };
        if !self.is_owed {
            if published.changed().await.is_err() {
                return std::future::pending().await;
            }
            self.is_owed = true;
        }
        if let Some(until) = self.waits_until.max(not_before) {
            tokio::time::sleep_until(until).await;
        }
    }

    /// Returns the checkpoint that must be sent now, and marks it as in progress.
    pub(crate) fn next(&mut self) -> Option<Checkpoint> {
        let published = self.published.as_mut().filter(|_| !self.is_in_delivery)?;
        let is_new = self.is_owed || published.has_changed().unwrap_or(false);
        if !is_new || self.waits_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        self.is_owed = false;
        let checkpoint = Checkpoint::of(published.borrow_and_update().clone());
        self.is_in_delivery = checkpoint.is_some();
        checkpoint
    }

    pub(crate) fn ended(&mut self, fate: Fate) {
        match fate {
            Fate::Taken => {
                self.is_in_delivery = false;
                self.pause = PAUSE_MIN;
                self.waits_until =
                    (!self.interval.is_zero()).then(|| Instant::now() + self.interval);
                if std::mem::take(&mut self.is_told) {
                    tracing::info!(
                        output = self.output,
                        "evidence checkpoints are sent to the output again"
                    );
                }
            }
            Fate::Failed(failure) => self.failed(&failure),
            Fate::Refused(failure) => {
                self.failed(&failure);
                // Only a newer checkpoint is sent: the consumer would refuse this one again.
                self.is_owed = false;
            }
        }
    }

    /// Handles the end of a link. If a checkpoint was in progress, the newest one is sent next:
    /// after a pause if the end was a failure.
    pub(super) fn link_ended(&mut self, failure: Option<&Failure>) {
        if !self.is_in_delivery {
            return;
        }
        match failure {
            Some(failure) => self.failed(failure),
            None => (self.is_in_delivery, self.is_owed) = (false, true),
        }
    }

    pub(crate) fn failed(&mut self, failure: &Failure) {
        (self.is_in_delivery, self.is_owed) = (false, true);
        let now = Instant::now();
        self.waits_until = Some(now + self.pause.max(failure.retry_after.unwrap_or_default()));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        let is_quiet = self.warned_at.is_some_and(|at| now < at + WARN_EVERY);
        if !self.is_told && !is_quiet {
            (self.is_told, self.warned_at) = (true, Some(now));
            tracing::warn!(
                output = self.output,
                error = %failure,
                "cannot send the newest evidence checkpoint to the output, retrying: the delivery \
                 of events does not wait for it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use telemetry::AttemptError;

    fn checkpoints(published: Published, interval: Duration) -> Checkpoints {
        Checkpoints::new("o", Some(published), interval)
    }

    const NOTE: &str = "example.org/log\n7\nAAAA\n\n— example.org/log abcd\n";

    fn failure() -> Failure {
        Failure::new(AttemptError::Status5xx, "no")
    }

    fn note(number: u32) -> Bytes {
        Bytes::from(format!("example.org/log\n{number}\n"))
    }

    /// Returns the number in the checkpoint that is sent now; `None` if there is none.
    fn next(checkpoints: &mut Checkpoints) -> Option<u32> {
        let line = checkpoints.next()?.line;
        let object: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let note = object["note"].as_str().unwrap();
        Some(note.lines().nth(1).unwrap().parse().unwrap())
    }

    #[test]
    fn the_line_is_that_of_the_contract() {
        let checkpoint = Checkpoint::of(Bytes::from(NOTE)).unwrap();
        let expected = "{\"kind\":\"Checkpoint\",\"apiVersion\":\"kube-audit-forwarder/v1\",\
                        \"note\":\"example.org/log\\n7\\nAAAA\\n\\n— example.org/log abcd\\n\"}\n";
        assert_eq!(checkpoint.line(), expected);
        assert_eq!(checkpoint.origin(), b"example.org/log");
        let batch = checkpoint.batch();
        assert_eq!((batch.events, batch.bytes), (1, expected.len() as u64));
        assert_eq!((Checkpoint::of(Bytes::new()), batch.claim.numbers().count()), (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_newest_counts_and_each_is_sent_once() {
        let (publish, published) = watch::channel(Bytes::new());
        let mut checkpoints = checkpoints(published, Duration::ZERO);
        assert_eq!(next(&mut checkpoints), None);
        publish.send_replace(note(1));
        publish.send_replace(note(2));
        checkpoints.due(None).await;
        assert_eq!(next(&mut checkpoints), Some(2));
        publish.send_replace(note(3));
        assert_eq!(next(&mut checkpoints), None, "one at a time");
        checkpoints.ended(Fate::Taken);
        assert_eq!(next(&mut checkpoints), Some(3));
        checkpoints.ended(Fate::Taken);
        assert_eq!(next(&mut checkpoints), None);
        let waited = tokio::time::timeout(Duration::from_secs(3600), checkpoints.due(None)).await;
        assert!(waited.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_tried_again_with_the_newest_after_pauses_that_grow() {
        let (publish, published) = watch::channel(note(1));
        let mut checkpoints = checkpoints(published, Duration::ZERO);
        publish.send_replace(note(1));
        let mut pauses = Vec::new();
        for number in 1..10 {
            assert_eq!(next(&mut checkpoints), Some(number));
            publish.send_replace(note(number + 1));
            checkpoints.ended(Fate::Failed(failure()));
            assert_eq!(next(&mut checkpoints), None);
            let begun = Instant::now();
            checkpoints.due(None).await;
            pauses.push(begun.elapsed().as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(next(&mut checkpoints), Some(10));
        checkpoints.link_ended(None);
        assert_eq!(next(&mut checkpoints), Some(10));
        checkpoints.ended(Fate::Taken);
        publish.send_replace(note(11));
        assert_eq!(next(&mut checkpoints), Some(11));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_refused_is_not_sent_again() {
        let (publish, published) = watch::channel(Bytes::new());
        let mut checkpoints = checkpoints(published, Duration::ZERO);
        publish.send_replace(note(1));
        assert_eq!(next(&mut checkpoints), Some(1));
        checkpoints.ended(Fate::Refused(failure()));
        let waited = tokio::time::timeout(Duration::from_secs(3600), checkpoints.due(None)).await;
        assert!(waited.is_err());
        publish.send_replace(note(2));
        checkpoints.due(None).await;
        assert_eq!(next(&mut checkpoints), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_output_that_collects_sends_one_in_each_interval() {
        let (publish, published) = watch::channel(Bytes::new());
        let interval = Duration::from_secs(300);
        let mut checkpoints = checkpoints(published, interval);
        publish.send_replace(note(1));
        assert_eq!(next(&mut checkpoints), Some(1));
        checkpoints.ended(Fate::Taken);
        publish.send_replace(note(2));
        let begun = Instant::now();
        assert_eq!(next(&mut checkpoints), None);
        checkpoints.due(None).await;
        assert_eq!((next(&mut checkpoints), begun.elapsed()), (Some(2), interval));
    }
}
