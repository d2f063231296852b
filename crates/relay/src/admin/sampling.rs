//! Takes the samples of the history from the metrics and the queue, and serves the history.
//!
//! If there are hundreds of outputs, reading all metrics takes a millisecond. Therefore a thread
//! for blocking work reads them.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::history::{OutputSample, STEP, Sample};
use super::{Admin, Output, Page, json, made};
use telemetry::status::{self, verdict};
use telemetry::{Filtered, Rejection};

impl Admin {
    /// Returns these counts since the start: accepted events, received bytes, requests that were
    /// refused with 429, lost events. The history has a line for the rate of each count.
    #[allow(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub(super) fn counters(&self) -> [f64; 4] {
        let rejections = self.telemetry.rejections().requests;
        let refused = Rejection::WITH_429.map(|reason| rejections.of(reason).get());
        [
            self.telemetry.queue().accepted.events.get(),
            self.telemetry.all_received_bytes(),
            refused.iter().sum(),
            self.telemetry.all_lost_events(),
        ]
        .map(|count| count as f64)
    }

    /// Returns these counts of one output since the start: delivered events, sent bytes, failed
    /// attempts, lost events. The history has a line for the rate of each count.
    #[allow(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    pub(super) fn output_counters(&self, name: &str) -> [f64; 4] {
        let metrics = self.telemetry.output(name);
        [
            metrics.events.get(),
            metrics.bytes.get(),
            metrics.errors.counts().into_iter().map(|(_, count)| count).sum(),
            metrics.lost.get(),
        ]
        .map(|count| count as f64)
    }

    /// Adds a sample to the history every ten seconds until `stop` is cancelled, as a task of the
    /// relay. Steps in which the machine was paused get no sample.
    pub async fn keep_history(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut late = BTreeSet::new();
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let (admin, now) = (Arc::clone(&self), Instant::now());
            let sampled = tokio::task::spawn_blocking(move || {
                (admin.history.add(now, &admin.sample()), admin.outputs())
            });
            match sampled.await {
                Ok((all_dropped, outputs)) => {
                    for output in all_dropped {
                        tracing::warn!(
                            output,
                            "the filter of the output has dropped every event for five minutes: \
                             check its rules"
                        );
                    }
                    tell_late(&mut late, &outputs);
                }
                Err(error) => tracing::error!(
                    %error,
                    "cannot take a sample of the metrics for /status/history, so it has a gap: \
                     please report this bug"
                ),
            }
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "counts and sizes are below 2^53")]
    fn sample(&self) -> Sample {
        let (bytes, events) = self.queue.held();
        let backlogs = self.queue.backlogs();
        let output = |output: &Output| {
            let name = output.name.clone();
            let backlog = backlogs.iter().find(|(of, _)| *of == name);
            let backlog = backlog.map(|(_, backlog)| *backlog).unwrap_or_default();
            let metrics = self.telemetry.output(&name);
            let counters = self.output_counters(&name);
            let states = [backlog.events as f64, backlog.lag];
            let dropped = metrics.fates.filtered.of(Filtered::Dropped).get() as f64;
            (name, OutputSample { counters, states, dropped })
        };
        Sample {
            counters: self.counters(),
            states: [bytes, self.queue.needed(), events, telemetry::memory()]
                .map(|value| value as f64),
            outputs: self.shown.load().outputs.iter().map(output).collect(),
        }
    }

    pub(super) async fn history_page(self: &Arc<Self>) -> Page {
        let admin = Arc::clone(self);
        written(move || {
            let started = telemetry::started();
            admin.history.json(Instant::now(), telemetry::now(), &admin.host, started)
        })
        .await
    }

    pub(super) async fn volume_page(&self) -> Page {
        let volume = Arc::clone(self.telemetry.volume());
        written(move || format!("{:#}\n", serde_json::json!(volume.report()))).await
    }
}

/// Writes a log line for each output that has become late, and one when it has caught up. `late`
/// has the names of the outputs whose last line says that they are late.
fn tell_late(late: &mut BTreeSet<String>, outputs: &[status::Output]) {
    for it in outputs {
        let (lag, limit) = (it.backlog.lag_seconds, it.backlog.lag_max_seconds);
        // An output that is down has lines of its own. It has caught up at half of the limit, so
        // that a lag near the limit does not fill the log.
        let is_late = verdict::is_late(it) && !verdict::is_down(it);
        let has_caught_up = it.backlog.backlog_events == 0 || lag < limit / 2.0;
        let (output, lag_seconds) = (&it.name, lag.round());
        if is_late && late.insert(it.name.clone()) {
            let events = it.backlog.backlog_events;
            tracing::warn!(
                output,
                lag_seconds,
                events,
                "output late: its oldest event has waited for more than {limit} s"
            );
        } else if has_caught_up && late.remove(&it.name) {
            tracing::info!(output, lag_seconds, "output no longer late");
        }
    }
    late.retain(|name| outputs.iter().any(|it| it.name == *name));
}

/// Returns a page of the JSON that `write` returns. `write` takes a millisecond or more.
async fn written(write: impl FnOnce() -> String + Send + 'static) -> Page {
    let failed = "the answer can't be written, and the relay's log says why\n";
    made(move || json(write()), failed).await
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use delivery::tap::Taps;
    use queue::Queue;
    use telemetry::Telemetry;

    /// A relay without outputs and listeners, whose task for the history runs.
    fn admin() -> Arc<Admin> {
        let text =
            "[[listener]]\naddress = '127.0.0.1:0'\n[[output]]\nname = 'o'\ntype = 'stdout'\n";
        let config = config::read(text, outputs::TYPES).config.expect("it is right");
        let telemetry = Arc::new(Telemetry::new());
        let (queue, _cursors) = Queue::open(&config.queue, &telemetry, &[]).unwrap();
        let taps = Arc::new(Taps::new(telemetry.taps()));
        let admin = Admin::new(telemetry, queue, None, taps, &[]);
        admin.show(Vec::new(), Vec::new(), Vec::new(), &config.queue);
        Arc::new(admin)
    }

    async fn history(admin: &Arc<Admin>) -> Value {
        use http_body_util::BodyExt as _;
        let body = admin.history_page().await.into_body().collect().await.unwrap();
        serde_json::from_slice(&body.to_bytes()).unwrap()
    }

    /// The clock jumps, as it does after a pause of the machine. The task does not make up for the
    /// samples that it has missed, and ends at the stop.
    #[tokio::test(start_paused = true)]
    async fn the_task_takes_a_sample_each_step_and_none_of_a_pause() {
        let (admin, stop) = (admin(), CancellationToken::new());
        let task = Arc::clone(&admin).keep_history(stop.clone());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(task);
        tokio::time::sleep(STEP * 3 + STEP / 2).await;
        let known = |history: &Value| -> Vec<bool> {
            let line = history["accepted_events_per_second"].as_array().unwrap();
            line.iter().map(Value::is_number).collect()
        };
        assert_eq!(known(&history(&admin).await), [true; 3]);
        tokio::time::advance(STEP * 4).await;
        tokio::time::sleep(STEP * 2).await;
        let known = known(&history(&admin).await);
        let gap = known.iter().filter(|is_known| !**is_known).count();
        assert!((3..=5).contains(&gap) && known.last() == Some(&true), "{known:?}");
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(1), tasks.join_next()).await;
        assert!(matches!(ended, Ok(Some(Ok(())))), "{ended:?}");
    }

    #[test]
    fn an_output_that_is_late_has_a_line_at_its_begin_and_one_at_its_end() {
        let log = Arc::new(tempfile::tempfile().unwrap());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Arc::clone(&log));
        let _log = tracing::subscriber::set_default(subscriber.finish());
        let mut late = BTreeSet::new();
        for (lag, events, up) in [
            (29.0, 5, true),
            // Lines at level warn and info: late, and no longer late.
            (31.0, 5, true),
            (29.0, 5, true),
            (90.0, 5, true),
            (14.0, 5, true),
            // An output that is down has a line of its own.
            (90.0, 5, false),
        ] {
            let mut output = status::Output { name: "siem".to_owned(), ..Default::default() };
            output.backlog.lag_max_seconds = 30.0;
            (output.backlog.lag_seconds, output.backlog.backlog_events) = (lag, events);
            (output.health.up, output.health.down_seconds) = (up, (!up).then_some(9.0));
            tell_late(&mut late, &[output]);
        }
        let mut text = String::new();
        let mut log = &*log;
        log.rewind().unwrap();
        log.read_to_string(&mut text).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("WARN") && lines[0].contains("waited for more than 30 s"));
        assert!(lines[0].contains("output=\"siem\" lag_seconds=31"), "{text}");
        assert!(lines[1].contains("INFO") && lines[1].contains("no longer late"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_filter_that_drops_everything_has_a_line_in_the_log() {
        let log = Arc::new(tempfile::tempfile().unwrap());
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(Arc::clone(&log));
        let _log = tracing::subscriber::set_default(subscriber.finish());
        let (admin, stop) = (admin(), CancellationToken::new());
        let output = Output {
            name: "narrow".to_owned(),
            kind: "stdout",
            required: true,
            lag_max: Duration::from_secs(30),
            rate_limit: None,
            shape: "event",
            status: Arc::default(),
        };
        let queue = admin.shown.load().queue.clone().unwrap();
        admin.show(vec![output], Vec::new(), Vec::new(), &queue);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(Arc::clone(&admin).keep_history(stop.clone()));
        for _ in 0..40 {
            admin.telemetry.output("narrow").fates.filtered.of(Filtered::Dropped).increment(1);
            tokio::time::sleep(STEP).await;
        }
        stop.cancel();
        tasks.join_next().await.unwrap().unwrap();
        let mut text = String::new();
        let mut log = &*log;
        log.rewind().unwrap();
        log.read_to_string(&mut text).unwrap();
        let line = "WARN relay::admin::sampling: the filter of the output has dropped";
        assert_eq!(text.matches(line).count(), 1, "{text}");
        assert!(text.contains("output=\"narrow\""), "{text}");
    }
}
