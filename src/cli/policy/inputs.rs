//! Reads the events for `policy cost` and `policy advise`: of files and directories with a progress
//! bar, or of a running relay for a time.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use crate::audit;
use crate::cli::Heard;
use crate::cli::failed;
use crate::cli::healthcheck;
use crate::cli::replay;
use crate::cli::replay::Display;
use crate::cli::tap::Door;
use crate::cli::tap::Received;
use crate::cli::tap::TAP;
use crate::cli::wrong;
use crate::cost::Sum;
use crate::replay::Note;
use crate::replay::look;
use crate::words::escape;
use crate::words::grouped;

/// The time between two updates of the displayed progress.
const LOOK: Duration = Duration::from_millis(200);

/// The greatest number of bad lines that are printed. The others are counted.
const NOTES_SHOWN: u64 = 10;

/// The number of events per second that a relay is asked for, which is the most that it shows.
const SAMPLE: u32 = 1000;

/// The numbers of what was read, and of what could not be counted.
#[derive(Debug, Default, Serialize)]
pub(super) struct Read {
    #[serde(flatten)]
    found: look::Found,
    /// `true`: a signal has ended the reading.
    pub(super) stopped: bool,
    /// The output of a relay whose events were seen; `None` for files.
    output: Option<String>,
    /// The numbers of events that left the relay, and that were seen or not.
    seen_events: u64,
    skipped_events: u64,
}

impl Read {
    /// Prints what is in no figure about these events. `Err` is the exit status if there is
    /// something, or if there are no events.
    pub(super) fn tell(&self, total: Sum) -> Result<(), u8> {
        let Self { found, stopped, .. } = self;
        let look::Found { bad_lines, missing_events, cut_short_inputs, .. } = found;
        if bad_lines + missing_events + cut_short_inputs > 0 || *stopped {
            let stopped = if *stopped { ", and what a signal has stopped" } else { "" };
            return Err(failed(format_args!(
                "not in the figures: {bad_lines} lines that are not events, {missing_events} \
                 missing events of queues, the rest of {cut_short_inputs} inputs{stopped}"
            )));
        }
        match total.events {
            0 => Err(failed("there are no events in the input")),
            _ => Ok(()),
        }
    }

    /// Returns a sentence about the sample of a relay; `None` for files.
    pub(super) fn sample(&self) -> Option<String> {
        let output = escape::message(self.output.as_ref()?);
        Some(format!(
            "a sample of output {output}: {} of {} events that left, as `tap` shows them: \
             redacted, and none of more than 256 KiB",
            grouped(self.seen_events),
            grouped(self.seen_events + self.skipped_events),
        ))
    }
}

/// Reads files and directories, and passes their events to `look` as JSON lines. `Err` is the exit
/// status.
pub(super) fn files(files: &[PathBuf], look: &mut dyn FnMut(&[u8])) -> Result<Read, u8> {
    replay::check(files)?;
    let reading = look::read(files.to_vec());
    let mut reading = reading.map_err(|error| wrong(escape::message(&error.to_string())))?;
    let mut display = Display::new(reading.bytes());
    let bar = display.bar.clone();
    bar.enable_steady_tick(LOOK);
    let mut told = 0;
    let mut tell = |note: &Note| {
        told += u64::from(matches!(note, Note::BadLine { .. }));
        if told <= NOTES_SHOWN {
            display.note(note);
        }
    };
    let read = until_a_signal(async {
        while let Some(lines) = reading.next(&mut tell).await {
            bar.set_position(reading.found.bytes_read);
            look(&lines);
        }
    });
    bar.finish_and_clear();
    Ok(Read { found: reading.found, stopped: read?.is_none(), ..Read::default() })
}

/// Returns the result of `work`; `None` if a signal comes before it. `Err` is the exit status.
fn until_a_signal<T>(work: impl Future<Output = T>) -> Result<Option<T>, u8> {
    healthcheck::block_on(async {
        let heard = Heard::new();
        let heard = heard.map_err(|error| failed(format_args!("cannot hear signals: {error}")))?;
        Ok(tokio::select! {
            () = heard.first.cancelled() => None,
            done = work => Some(done),
        })
    })?
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
    let looking = async { timeout(time, tapped(&door, &mut read, look)).await };
    let ended = until_a_signal(looking)?;
    if let Some(Ok(ended)) = ended {
        let why = ended.unwrap_or_else(|error| error);
        return Err(failed(format_args!("{}: {why}", door.shown)));
    }
    read.stopped = ended.is_none();
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
            read.skipped_events += skipped.map(|(_, events)| events).sum::<u64>();
            let Some(event) = event else { continue };
            let first = read.output.get_or_insert_with(|| output.clone().unwrap_or_default());
            if Some(&*first) != output.as_ref() {
                return Err("several outputs send events: name one with --output".to_owned());
            }
            read.seen_events += 1;
            // An output may give its events a form that is not that of kube-apiserver.
            match audit::decode(event.get().as_bytes().to_vec()) {
                Ok(batch) => look(&batch.lines),
                Err(_) => read.found.bad_lines += 1,
            }
        }
    }
}
