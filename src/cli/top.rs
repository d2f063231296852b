//! The command `top`: reads a relay's `/status` again and again, and prints it as plain text. On a
//! terminal, each text replaces the one before it, as with `watch`.

use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use hyper::StatusCode;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use url::Position;

use super::healthcheck::Page;
use super::{Heard, failed, healthcheck, print, time_within};
use base::words::escape;
use telemetry::status::Status;
use tools::top::{self, View};
use transform::volume::report::{DIMENSIONS, Report};

/// The greatest number of bytes in a response of the relay.
const ANSWER_MAX: usize = 16 << 20;

/// The width in columns where there is no terminal. The variable COLUMNS can set another one, from
/// 40 to 1000.
const COLUMNS: usize = 120;

/// The bytes that put the cursor of a terminal into the corner, and that remove the rest of the
/// line or of the screen.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_SCREEN: &str = "\x1b[J";

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    relay: healthcheck::Relay,
    /// The time between two updates, 500ms to 1m
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time_within("500ms", "1m"))]
    interval: Duration,
    /// Show what causes the incoming bytes, instead of the outputs. A cause is a combination of
    /// user, verb and resource
    #[arg(long, value_name = "NAME", value_parser = DIMENSIONS)]
    by: Option<String>,
    /// Print the screen once and exit; the default if stdout is not a terminal
    #[arg(long)]
    once: bool,
}

/// Prints the relay once, or again and again until a signal ends the command. `Err` is the exit
/// status.
pub(super) fn run(arguments: &Arguments, file: Option<&Path>) -> Result<(), u8> {
    let page = arguments.relay.page(file, "/status")?;
    let by = arguments.by.as_deref();
    match arguments.once || !std::io::stdout().is_terminal() {
        true => once(&page, by),
        false => healthcheck::block_on(again(&page, by, arguments.interval))?,
    }
}

/// Prints the screen once. `Err` is the exit status, which is 1 if the relay does not respond.
fn once(page: &Page, by: Option<&str>) -> Result<(), u8> {
    let mut view = View::new(&page.url[..Position::AfterPort]);
    healthcheck::block_on(ask(page, by, &mut view))?
        .map_err(|error| failed(format_args!("{page}: {}", escape::message(&error))))?;
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let columns = columns.filter(|columns| (40..=1000).contains(columns)).unwrap_or(COLUMNS);
    print(&(top::lines(&view, columns).join("\n") + "\n"))
}

/// Prints the screen again and again until a signal comes or the terminal is gone. SIGHUP counts
/// too, because a process gets it when its terminal is closed.
async fn again(page: &Page, by: Option<&str>, every: Duration) -> Result<(), u8> {
    let cannot = |error| failed(format_args!("cannot print to the terminal: {error}"));
    let mut heard = Heard::new().map_err(cannot)?;
    let (mut view, mut answered) = (View::new(&page.url[..Position::AfterPort]), Instant::now());
    refresh(&view).map_err(cannot)?;
    loop {
        let turn = async {
            match ask(page, by, &mut view).await {
                Ok(()) => answered = Instant::now(),
                Err(error) => view.failed(&error, answered.elapsed()),
            }
            refresh(&view).map_err(cannot)?;
            tokio::time::sleep(every).await;
            Ok::<_, u8>(())
        };
        tokio::select! {
            ended = turn => ended?,
            () = heard.first.cancelled() => return Ok(()),
            _ = heard.reload.recv() => return Ok(()),
        }
    }
}

/// Replaces the text on the terminal. Lines that do not fit its height are left out, and counted.
fn refresh(view: &View) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let size = rustix::termios::tcgetwinsize(&out)?;
    let (width, height) = (usize::from(size.ws_col), usize::from(size.ws_row));
    let mut lines = top::lines(view, if width == 0 { COLUMNS } else { width });
    if height > 1 && lines.len() >= height {
        let more = lines.split_off(height - 2).len();
        lines.push(format!("… {more} more lines: the terminal is too low, or use --once"));
    }
    let text: String = lines.iter().map(|line| format!("{line}{REST_OF_LINE}\n")).collect();
    write!(out, "{HOME}{text}{REST_OF_SCREEN}")?;
    out.flush()
}

/// Asks the relay for its status and, if `by` is given, for the volume of the last hour in that
/// dimension.
async fn ask(page: &Page, by: Option<&str>, view: &mut View) -> Result<(), String> {
    view.answered(get::<Status>(page).await?);
    if let Some(by) = by
        && let Ok(report) = get::<Report>(&page.at("/status/volume")).await
    {
        view.counted(match report.spans.get("1h") {
            Some(hour) => top::table(hour, by),
            None => vec!["no volume is counted (volume.enabled)".to_owned()],
        });
    }
    Ok(())
}

/// Asks for a JSON document.
pub(super) async fn get<T: DeserializeOwned>(page: &Page) -> Result<T, String> {
    let asked = page.ask(ANSWER_MAX).await;
    match asked.unwrap_or_else(|| Err("no answer in time".to_owned()))? {
        (StatusCode::OK, body) => serde_json::from_str(&body)
            .map_err(|error| format!("not the status of a relay: {error}")),
        (status, body) => Err(page.refused(status, &body)),
    }
}
