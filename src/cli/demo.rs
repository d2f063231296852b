//! The command `demo`: on a terminal one line that changes, elsewhere a line every second, and the
//! summary. All of this goes to stdout, because it is the result of the command.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{FAILED, Heard, failed, print, runtime, whole};
use crate::demo;
use crate::demo::{Figures, Phase, Summary};
use base::words::counted_in_groups;

/// The time between two drawings of the progress line if stdout is a terminal.
const DRAW: Duration = Duration::from_millis(200);
/// The time between two printed lines of progress if stdout is not a terminal.
const LINE: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(super) struct Arguments {
    /// Send events for this many seconds
    #[arg(long, value_name = "N", default_value = "20", value_parser = whole(1..=3600, "a whole number of seconds, 1 to 3600, such as 20"))]
    seconds: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let runtime = runtime()?;
    let result = runtime.block_on(show(Duration::from_secs(arguments.seconds)));
    runtime.shutdown_background();
    result
}

async fn show(length: Duration) -> Result<(), u8> {
    let heard =
        Heard::new().map_err(|error| failed(format_args!("cannot listen for signals: {error}")))?;
    let stop = CancellationToken::new();
    let (told, figures) = watch::channel(Figures::default());
    let mut display = Display::new();
    let every = display.every();
    let mut draw = tokio::time::interval_at(Instant::now() + every, every);
    let mut running = std::pin::pin!(demo::run(length, told, stop.clone()));
    print(&format!(
        "{} s of kube-apiserver batches → the relay → a consumer that will be down for a while\n",
        length.as_secs()
    ))?;
    let ended = loop {
        tokio::select! {
            ended = &mut running => break ended,
            _ = draw.tick() => display.draw(*figures.borrow())?,
            () = heard.first.cancelled(), if !stop.is_cancelled() => stop.cancel(),
            () = heard.second.cancelled() => break Err("stopped immediately by a second \
                signal".to_owned()),
        }
    };
    display.line.finish_and_clear();
    let summary = ended.map_err(failed)?;
    print(&said(&summary))?;
    if summary.lost == 0 { Ok(()) } else { Err(FAILED) }
}

fn said(summary: &Summary) -> String {
    let Summary { sent, delivered, repeated, lost, away, queue_events_max, queue_bytes_max } =
        summary;
    format!(
        "\nthe consumer was down for {:.1} s; the queue held up to {} ({}), and is empty \
         again\n\nsent: {sent}\ndelivered: {delivered}\nrepeated: {repeated}\nlost: {lost}\n\nRead \
         next in docs/: start.md for a config of your own, concepts/guarantees.md for what the \
         relay guarantees,\nconcepts/queue-and-disk.md for a queue that survives a crash, \
         operating/monitoring.md for alerts.\n",
        away.as_secs_f64(),
        counted_in_groups(*queue_events_max, "event", "events"),
        HumanBytes(*queue_bytes_max),
    )
}

struct Display {
    line: ProgressBar,
    is_terminal: bool,
    begun: Instant,
    /// The time at which the last progress line was made, and the numbers in that line. The next
    /// line shows rates since that time.
    before: (Instant, Figures),
    is_announced: bool,
}

impl Display {
    fn new() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let target = match is_terminal {
            true => ProgressDrawTarget::stdout(),
            false => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template("{spinner} {msg}");
        let line = ProgressBar::with_draw_target(None, target);
        let now = Instant::now();
        Self {
            line: line.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())),
            is_terminal,
            begun: now,
            before: (now, Figures::default()),
            is_announced: false,
        }
    }

    fn every(&self) -> Duration {
        if self.is_terminal { DRAW } else { LINE }
    }

    fn draw(&mut self, figures: Figures) -> Result<(), u8> {
        let Some(admin) = figures.admin else { return Ok(()) };
        if !std::mem::replace(&mut self.is_announced, true) {
            let text = format!("status page: http://{admin}/\n");
            self.line.suspend(|| print(&text))?;
        }
        let text = self.text(figures);
        if self.is_terminal {
            self.line.set_message(text);
            self.line.tick();
            return Ok(());
        }
        print(&format!("{text}\n"))
    }

    fn text(&mut self, figures: Figures) -> String {
        let (at, before) = self.before;
        let millis = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.before = (Instant::now(), figures);
        let rate = |now: u64, before: u64| HumanCount(now.saturating_sub(before) * 1000 / millis);
        let what = match figures.phase {
            Phase::Starting => "  starting",
            Phase::Flowing => "",
            Phase::Away => "  the consumer is down",
            Phase::Emptying => "  sending has ended, the queue is emptying",
        };
        format!(
            "{:>4.1} s  in {}/s  out {}/s  queue {} events, {}  lost {}{what}",
            self.begun.elapsed().as_secs_f64(),
            rate(figures.sent, before.sent),
            rate(figures.delivered, before.delivered),
            HumanCount(figures.queue_events),
            HumanBytes(figures.queue_bytes),
            figures.lost,
        )
    }
}
