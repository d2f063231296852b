//! The command `top`: reads a relay's `/status` again and again, and draws it on the terminal.
//!
//! One thread asks the relay, another one reads the keys, and both send messages to the thread that
//! draws. The terminal is restored at each end: by a key, a signal, an error or a panic.
//!
//! The thread that reads keys is not joined. It waits for a key, and once its terminal is gone,
//! crossterm reads the end of the file again and again without returning. The thread ends with the
//! process.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;
use hyper::StatusCode;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::healthcheck::Page;
use super::{Heard, failed, healthcheck, print};
use base::words::escape;
use telemetry::status::{History, Status};
use tools::top;
use tools::top::{Key, View};
use transform::volume::report::{DIMENSIONS, Report};

/// The greatest number of bytes in a response of the relay. A history of 200 outputs has 6 MiB.
const ANSWER_MAX: usize = 16 << 20;

/// The time between two requests for the last hour. The relay adds to its history every 10 s.
const HISTORY: Duration = Duration::from_secs(10);

/// The shortest and the longest interval between two requests for the status.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// The time after which the screen is drawn again even if there is no message.
const REDRAW: Duration = Duration::from_secs(1);

/// The greatest number of messages that wait to be drawn. The thread that sends one more waits.
const MESSAGES_MAX: usize = 16;

/// The width in columns of a screen that is printed and not drawn. The variable COLUMNS can set
/// another one, from 40 to 1000.
const COLUMNS: u16 = 120;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    relay: healthcheck::Relay,
    /// The time between two updates, 500ms to 1m
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// Show what causes the incoming bytes, instead of the outputs. A cause is a combination of
    /// user, verb and resource
    #[arg(long, value_name = "NAME", value_parser = DIMENSIONS)]
    by: Option<String>,
    /// Print the screen once and exit; the default if stdout is not a terminal
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = config::time(text)?;
    match (INTERVAL.0..=INTERVAL.1).contains(&time) {
        true => Ok(time),
        false => Err("500ms to 1m are allowed".to_owned()),
    }
}

/// A message to the thread that draws.
enum Message {
    Status(Box<Status>),
    History(Option<Box<History>>),
    /// The lines of the table of `--by`.
    Volume(Vec<String>),
    Failed(String),
    Key(KeyEvent),
    Resized,
    /// A signal asks the command to end.
    Stop,
}

/// Shows the relay once, or until a key or a signal ends the command. `Err` is the exit status.
pub(super) fn run(arguments: &Arguments, file: Option<&Path>) -> Result<(), u8> {
    let page = arguments.relay.page(file, "/status")?;
    if arguments.once || !std::io::stdout().is_terminal() {
        return once(&page, arguments.by.as_deref());
    }
    let (told, messages) = mpsc::sync_channel(MESSAGES_MAX);
    let stop = CancellationToken::new();
    let base = base(&page.url);
    let (every, telling, stopped) = (arguments.interval, told.clone(), stop.clone());
    let by = arguments.by.clone();
    let asking = std::thread::Builder::new().name("ask".to_owned()).spawn(move || {
        healthcheck::block_on(ask_often(&page, by.as_deref(), every, &telling, &stopped))
    });
    let asking = asking.map_err(|error| failed(format_args!("cannot start a thread: {error}")))?;
    let shown = match ratatui::try_init() {
        Ok(mut terminal) => {
            let keys = std::thread::Builder::new().name("keys".to_owned());
            let keys = keys.spawn(move || read_keys(&told));
            let shown =
                keys.and_then(|_keys| show(&mut terminal, View::new(&base, true), &messages));
            ratatui::restore();
            shown
        }
        Err(error) => Err(error),
    };
    stop.cancel();
    // If the thread is waiting to send a message, it now notices that nobody takes the message.
    drop(messages);
    let asked = asking.join();
    shown.map_err(|error| failed(format_args!("cannot draw on the terminal: {error}")))?;
    asked.unwrap_or_else(|_| Err(failed("the thread that asks the relay has panicked")))
}

/// Returns the scheme, host and port of the relay's URL.
fn base(url: &Url) -> String {
    url[..url::Position::AfterPort].to_owned()
}

/// Prints the screen once. `Err` is the exit status, which is 1 if the relay does not respond.
fn once(page: &Page, by: Option<&str>) -> Result<(), u8> {
    let failed = |error: String| failed(format_args!("{page}: {}", escape::message(&error)));
    let mut view = View::new(&base(&page.url), true);
    let (status, earlier) =
        healthcheck::block_on(async { Ok((answer(page).await?, earlier(page, by).await)) })?
            .map_err(failed)?;
    view.answered(status);
    match earlier {
        Some(Message::History(history)) => view.remembered(history.map(|it| *it)),
        Some(Message::Volume(table)) => view.counted(table),
        _ => {}
    }
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let columns = columns.filter(|columns| (40..=1000).contains(columns)).unwrap_or(COLUMNS);
    let mut terminal = Terminal::new(TestBackend::new(columns, top::height(&view)))
        .map_err(|e| failed(e.to_string()))?;
    terminal.draw(|frame| top::draw(&view, frame)).map_err(|e| failed(e.to_string()))?;
    print(&text_of(terminal.backend().buffer()))
}

/// Returns the text of a screen: its lines without spaces at their ends, and without the line of
/// keys and the empty lines before it.
fn text_of(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let cells = buffer.content.chunks(width.max(1));
    let lines = cells.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>());
    let mut lines: Vec<_> = lines.map(|line| line.trim_end().to_owned()).collect();
    lines.pop();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines.join("\n") + "\n"
}

/// Asks the relay again and again until `stop` is cancelled, a signal comes, or nobody takes the
/// messages.
async fn ask_often(
    page: &Page,
    by: Option<&str>,
    every: Duration,
    told: &mpsc::SyncSender<Message>,
    stop: &CancellationToken,
) {
    let Ok(mut heard) = Heard::new() else { return };
    let mut last_history: Option<Instant> = None;
    loop {
        let asked = async {
            let status = answer(page).await;
            let is_due = last_history.is_none_or(|at| at.elapsed() >= HISTORY);
            let history = match (&status, is_due) {
                (Ok(_), true) => earlier(page, by).await,
                _ => None,
            };
            (status, history)
        };
        let Some((status, history)) = unless_ended(asked, &mut heard, told, stop).await else {
            return;
        };
        let status = match status {
            Ok(status) => Message::Status(Box::new(status)),
            Err(error) => Message::Failed(error),
        };
        if told.send(status).is_err() {
            return;
        }
        if let Some(history) = history {
            last_history = Some(Instant::now());
            if told.send(history).is_err() {
                return;
            }
        }
        if unless_ended(tokio::time::sleep(every), &mut heard, told, stop).await.is_none() {
            return;
        }
    }
}

/// Waits for a future. Returns `None` if the command has to end first: `stop` is cancelled, or a
/// signal comes, which is passed on as [`Message::Stop`]. SIGHUP counts too, because a process gets
/// it when its terminal is closed.
async fn unless_ended<T>(
    future: impl Future<Output = T>,
    heard: &mut Heard,
    told: &mpsc::SyncSender<Message>,
    stop: &CancellationToken,
) -> Option<T> {
    tokio::select! {
        result = future => return Some(result),
        () = stop.cancelled() => return None,
        () = heard.first.cancelled() => {}
        _ = heard.reload.recv() => {}
    }
    told.send(Message::Stop).ok();
    None
}

async fn answer(page: &Page) -> Result<Status, String> {
    match get(page).await? {
        Some(status) => Ok(status),
        None => Err("not the status of a relay: 404".to_owned()),
    }
}

/// Asks for the relay's last hour or, if `by` is given, for the volume of the last hour in that
/// dimension. `None` if the request fails.
async fn earlier(page: &Page, by: Option<&str>) -> Option<Message> {
    let Some(by) = by else {
        let history = get(&page.at("/status/history")).await;
        return history.ok().map(|it| Message::History(it.map(Box::new)));
    };
    let report = get::<Report>(&page.at("/status/volume")).await.ok()?.unwrap_or_default();
    Some(Message::Volume(match report.spans.get("1h") {
        Some(hour) => top::table(hour, by),
        None => vec!["no volume is counted (volume.enabled)".to_owned()],
    }))
}

/// Asks for a JSON document; `None` if the relay responds with 404.
pub(super) async fn get<T: DeserializeOwned>(page: &Page) -> Result<Option<T>, String> {
    let asked = page.ask(ANSWER_MAX).await;
    match asked.unwrap_or_else(|| Err("no answer in time".to_owned()))? {
        (StatusCode::OK, body) => serde_json::from_str(&body)
            .map(Some)
            .map_err(|error| format!("not the status of a relay: {error}")),
        (StatusCode::NOT_FOUND, _) => Ok(None),
        (status, body) => Err(healthcheck::refused(status, &body)),
    }
}

/// Sends the keys and the changes of the terminal's size, until the receiver is dropped or the
/// terminal cannot be read any more.
fn read_keys(told: &mpsc::SyncSender<Message>) {
    while let Ok(event) = event::read() {
        let message = match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => Message::Key(key),
            Event::Resize(..) => Message::Resized,
            Event::Key(_)
            | Event::FocusGained
            | Event::FocusLost
            | Event::Mouse(_)
            | Event::Paste(_) => continue,
        };
        if told.send(message).is_err() {
            return;
        }
    }
}

/// Draws the view until a key or a signal ends the command, or both other threads have ended.
fn show(
    terminal: &mut DefaultTerminal,
    mut view: View,
    messages: &mpsc::Receiver<Message>,
) -> std::io::Result<()> {
    let mut answered = Instant::now();
    terminal.draw(|frame| top::draw(&view, frame))?;
    loop {
        match messages.recv_timeout(REDRAW) {
            Ok(Message::Status(status)) => {
                view.answered(*status);
                answered = Instant::now();
            }
            Ok(Message::History(history)) => view.remembered(history.map(|it| *it)),
            Ok(Message::Volume(table)) => view.counted(table),
            Ok(Message::Failed(error)) => view.failed(&error, answered.elapsed()),
            Ok(Message::Key(key)) => match choice(key) {
                Choice::End => return Ok(()),
                Choice::Press(key) => view.press(key),
                Choice::Nothing => continue,
            },
            Ok(Message::Resized) | Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(Message::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
        }
        terminal.draw(|frame| top::draw(&view, frame))?;
    }
}

enum Choice {
    End,
    Press(Key),
    Nothing,
}

fn choice(key: KeyEvent) -> Choice {
    match (key.code, key.modifiers.contains(KeyModifiers::CONTROL)) {
        (KeyCode::Char('c' | 'd'), true) | (KeyCode::Char('q') | KeyCode::Esc, _) => Choice::End,
        (KeyCode::Up | KeyCode::Char('k'), _) => Choice::Press(Key::Up),
        (KeyCode::Down | KeyCode::Char('j'), _) => Choice::Press(Key::Down),
        (KeyCode::Enter, _) => Choice::Press(Key::Details),
        (KeyCode::Char('p' | ' '), _) => Choice::Press(Key::Pause),
        (KeyCode::Char('h' | '?'), _) => Choice::Press(Key::Help),
        _ => Choice::Nothing,
    }
}
