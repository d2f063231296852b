//! Reads the events for `policy cost` and `policy advise`: of files and directories with a progress
//! bar, or of a running relay for a time.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;
use tokio::time::sleep_until;

use crate::audit;
use crate::cli::Heard;
use crate::cli::failed;
use crate::cli::healthcheck;
use crate::cli::input;
use crate::cli::replay;
use crate::cli::runtime;
use crate::cli::shown;
use crate::cli::tap::Door;
use crate::cli::tap::Received;
use crate::cli::tap::TAP;
use crate::cli::wrong;
use crate::replay::Note;
use crate::replay::look;
use crate::replay::look::Seen;
use crate::words::escape;
use crate::words::grouped;

/// The time between two updates of the displayed progress.
const LOOK: Duration = Duration::from_millis(200);

/// The greatest number of bad lines that are printed. The others are counted.
const NOTES_SHOWN: u64 = 10;

/// The number of events per second that a relay is asked for, which is the most that it shows.
const SAMPLE: u32 = 1000;

/// The numbers of what was read, and of what could not be counted.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// The number of lines that are not events.
    bad_lines: u64,
    /// The number of stored events of a queue that are damaged or missing.
    missing: u64,
    /// The number of inputs that could not be read to their ends.
    cut_short: u64,
    /// `true`: a signal has ended the reading.
    pub(super) is_stopped: bool,
    /// The output of a relay whose events were seen; `None` for files.
    output: Option<String>,
    /// The numbers of events that left the relay, and that were seen or not.
    sample: [u64; 2],
}

impl Read {
    /// Prints what is in no figure. `Err` is the exit status if there is something.
    pub(super) fn tell(&self) -> Result<(), u8> {
        let Self { bad_lines, missing, cut_short, is_stopped, .. } = self;
        if bad_lines + missing + cut_short + u64::from(*is_stopped) == 0 {
            return Ok(());
        }
        let stopped = if *is_stopped { ", and what a signal has stopped" } else { "" };
        Err(failed(format_args!(
            "not in the figures: {bad_lines} lines that are not events, {missing} missing events \
             of queues, the rest of {cut_short} inputs{stopped}"
        )))
    }

    /// Returns a sentence about the sample of a relay; `None` for files.
    pub(super) fn sample(&self) -> Option<String> {
        let [seen, skipped] = self.sample;
        let output = escape::message(self.output.as_ref()?);
        Some(format!(
            "a sample of output {output}: {} of {} events that left, as `tap` shows them: \
             redacted, and none of more than 256 KiB",
            grouped(seen),
            grouped(seen + skipped),
        ))
    }

    pub(super) fn json(&self) -> Value {
        let [seen, skipped] = self.sample;
        json!({
            "bad_lines": self.bad_lines, "missing_events": self.missing,
            "cut_short_inputs": self.cut_short, "stopped": self.is_stopped,
            "output": self.output, "seen_events": seen, "skipped_events": skipped,
        })
    }
}

/// Reads files and directories, and passes their events to `look` as JSON lines. `Err` is the exit
/// status.
pub(super) fn files(files: &[PathBuf], look: &mut dyn FnMut(&[u8])) -> Result<Read, u8> {
    if files.iter().filter(|file| file.as_os_str() == "-").count() > 1 {
        return Err(wrong("- is standard input and can be named only once"));
    }
    for file in files {
        input(file, "the events")?;
    }
    let (runtime, mut read) = (runtime()?, Read::default());
    runtime.block_on(async {
        let heard = Heard::new();
        let heard = heard.map_err(|error| failed(format_args!("cannot hear signals: {error}")))?;
        let reading = look::read(files.to_vec());
        let reading = reading.map_err(|error| wrong(escape::message(&error.to_string())))?;
        tokio::select! {
            () = heard.first.cancelled() => read.is_stopped = true,
            () = all(reading, &mut read, look) => {}
        }
        Ok::<(), u8>(())
    })?;
    // A read of a pipe may hang, and must not delay the end.
    runtime.shutdown_background();
    Ok(read)
}

/// Reads to the end of the inputs, or of the first that cannot be read further.
async fn all(mut reading: look::Reading, read: &mut Read, look: &mut dyn FnMut(&[u8])) {
    let bar = replay::bar(reading.bytes());
    bar.enable_steady_tick(LOOK);
    let mut told = 0;
    loop {
        match reading.next().await {
            Seen::Part { lines, bad_lines, missing, bytes_read } => {
                read.bad_lines += bad_lines;
                read.missing += missing;
                bar.set_position(bytes_read);
                look(&lines);
            }
            Seen::Note(Note::BadLine { span, what }) => {
                told += 1;
                if told <= NOTES_SHOWN {
                    bar.suspend(|| eprintln!("{}", replay::skipped(&span, &what)));
                }
            }
            Seen::Note(Note::Remark { directory: path, what }) => {
                bar.suspend(|| eprintln!("{}: {}", shown(&path), escape::message(&what)));
            }
            Seen::Note(Note::Retrying { .. } | Note::Replayed(_)) => {}
            Seen::End { cut_short } => {
                read.cut_short += cut_short;
                break;
            }
            Seen::Failed(path, what) => {
                bar.suspend(|| eprintln!("{}: {}", shown(&path), escape::message(&what)));
                read.cut_short += 1;
                break;
            }
        }
    }
    bar.finish_and_clear();
}

/// Reads the events that leave a relay for this time, and passes them to `look` as JSON lines.
/// `Err` is the exit status.
pub(super) fn relay(
    url: &str,
    token: &str,
    output: Option<&str>,
    time: Duration,
    look: &mut dyn FnMut(&[u8]),
) -> Result<Read, u8> {
    let door = Door::new(healthcheck::page(Some(url), None, TAP)?, token, SAMPLE, output, &[])?;
    let mut read = Read::default();
    let end = Instant::now() + time;
    let ended = runtime()?.block_on(async {
        let heard = Heard::new().map_err(|error| format!("cannot hear signals: {error}"))?;
        tokio::select! {
            () = heard.first.cancelled() => Ok(true),
            () = sleep_until(end) => Ok(false),
            ended = tapped(&door, &mut read, look) => Err(ended.unwrap_or_else(|error| error)),
        }
    });
    read.is_stopped = ended.map_err(|error| failed(format_args!("{}: {error}", door.shown)))?;
    Ok(read)
}

/// Takes events until the tap ends, and returns the reason.
async fn tapped(
    door: &Door,
    read: &mut Read,
    look: &mut dyn FnMut(&[u8]),
) -> Result<String, String> {
    let mut lines = door.open().await?;
    loop {
        for line in lines.next().await?.split_inclusive(|byte| *byte == b'\n') {
            let Received { output, event, skipped, end } = Received::of(line)?;
            if let Some(end) = end {
                return Ok(format!("the tap has ended: {}", escape::message(&end.message)));
            }
            // Beside the numbers of events there is the size of the largest one.
            let skipped = skipped.iter().flatten().filter(|(reason, _)| *reason != "largest_bytes");
            read.sample[1] += skipped.map(|(_, events)| events).sum::<u64>();
            let Some(event) = event else { continue };
            let first = read.output.get_or_insert_with(|| output.clone().unwrap_or_default());
            if Some(&*first) != output.as_ref() {
                return Err("several outputs send events: name one with --output".to_owned());
            }
            read.sample[0] += 1;
            // An output may give its events a form that is not that of kube-apiserver.
            match audit::decode(event.get().as_bytes().to_vec()) {
                Ok(batch) => look(&batch.lines),
                Err(_) => read.bad_lines += 1,
            }
        }
    }
}
