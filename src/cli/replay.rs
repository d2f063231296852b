//! The command `replay`: its arguments, the progress on a terminal or in lines, and the summary.

use std::io::Read as _;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Heard, failed, healthcheck, input, print, runtime, shown};
use base::words::{counted, escape};
use client::tls;
use config::ClientTls;
use tools::replay::client::{Client, Failed, PATIENCE};
use tools::replay::packing::{MAGIC_BYTES, Packing};
use tools::replay::{
    Note, OnBadLine, Progress, Replay, Replayed, Settings, Span, Stopped, To, Unit,
};

const LOOK: Duration = Duration::from_millis(200);
/// The time between two printed lines about the progress if no bar is drawn.
const TELL: Duration = Duration::from_secs(5);

/// The greatest number of the replay's messages for the user that wait to be printed.
const NOTES: usize = 256;

/// Replaces [`TELL`] for a log that is followed. The first [`BAD_LINES_SHOWN`] bad lines of such a
/// log are printed one by one; after that, one line in this time has the number of further ones.
const TELL_CALMLY: Duration = Duration::from_secs(60);

const BAD_LINES_SHOWN: u64 = 10;

/// The longest time for which the process, at its end, waits for blocking work. A name lookup or a
/// write may hang and must not keep the process alive.
const LEAVING: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(super) struct Arguments {
    /// Audit logs, in the order to send them: JSON lines from kube-apiserver, OpenShift or `oc adm
    /// node-logs`, plain or compressed with gzip or zstd; dead letters; the output of `queue
    /// export`. `-` is standard input. A directory is the queue.directory of a relay that no longer
    /// runs: events that at least one of its outputs has not finished are sent
    #[arg(required = true, value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// Follow one log as it grows and is rotated, until SIGTERM. Temporary errors are retried
    /// without limit
    #[arg(long, requires = "resume", conflicts_with_all = ["output", "even_if_running"])]
    follow: bool,
    /// From a directory, send only the events that this output has not finished
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Read a directory even if a running relay uses it and delivers these events itself
    #[arg(long)]
    even_if_running: bool,
    /// The URL to POST the events to, such as http://127.0.0.1:3000/
    #[arg(long)]
    url: String,
    /// Send at most this many events per second [default: as many as the receiver takes]
    #[arg(long, value_name = "N", value_parser = rate_max)]
    rate: Option<NonZeroU32>,
    /// Keep the progress in this file, and resume from it if the file exists
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// What to do with a line that is not an audit event [default: stop; with --follow: skip]
    #[arg(long, value_name = "WHAT")]
    on_bad_line: Option<BadLine>,
    #[command(flatten)]
    tls: Tls,
    /// File with the bearer token for the Authorization header
    #[arg(long, value_name = "FILE")]
    bearer_token_file: Option<PathBuf>,
}

/// How the receiver is verified, and how it verifies this command.
#[derive(Args)]
struct Tls {
    /// PEM file with the CAs that may sign the receiver's certificate [default: the system's CAs]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// PEM file with the client certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// PEM file with the client certificate's private key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum BadLine {
    /// Send the lines before it, and stop
    Stop,
    /// Count the line, print the first ten, and continue
    Skip,
}

fn rate_max(text: &str) -> Result<NonZeroU32, String> {
    let wrong = |_| format!("allowed: events per second, 1 to {}, such as 1000", u32::MAX);
    text.parse().map_err(wrong)
}

/// Checks that the inputs exist, and that `-` is named at most once. `Err` is the exit status.
pub(super) fn check(files: &[PathBuf]) -> Result<(), u8> {
    if files.iter().filter(|file| file.as_os_str() == "-").count() > 1 {
        return Err(super::wrong("- is standard input and can be named only once"));
    }
    files.iter().try_for_each(|file| input(file, "the events"))
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let wrong = |what: String| super::wrong(escape::message(&what));
    // A log that is followed need not exist yet.
    if !arguments.follow {
        check(&arguments.files)?;
    }
    let Tls { ca, certificate, key } = &arguments.tls;
    for file in [ca, certificate, key].into_iter().flatten().filter(|_| is_https(arguments)) {
        input(file, "the PEM file")?;
    }
    if let Some(file) = &arguments.bearer_token_file {
        input(file, "the token")?;
    }
    let stop = CancellationToken::new();
    let client = client(arguments, stop.clone()).map_err(wrong)?;
    let replay = Replay::new(settings(arguments)).map_err(|error| wrong(error.to_string()))?;
    if let Some(span) = replay.resumes_at() {
        eprintln!("continuing with {}", spot(&span));
    }
    for remark in replay.remarks() {
        eprintln!("{}", escape::message(&remark));
    }
    let runtime = runtime()?;
    let result = runtime.block_on(send(arguments, replay, client, stop));
    runtime.shutdown_timeout(LEAVING);
    result
}

fn settings(arguments: &Arguments) -> Settings {
    Settings {
        files: arguments.files.clone(),
        output: arguments.output.clone(),
        even_if_running: arguments.even_if_running,
        rate: arguments.rate,
        resume: arguments.resume.clone(),
        on_bad_line: match (arguments.on_bad_line, arguments.follow) {
            (Some(BadLine::Stop), _) | (None, false) => OnBadLine::Stop,
            (Some(BadLine::Skip), _) | (None, true) => OnBadLine::Skip,
        },
        only_looks: false,
        follows: arguments.follow,
    }
}

fn is_https(arguments: &Arguments) -> bool {
    arguments.url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

fn client(arguments: &Arguments, stop: CancellationToken) -> Result<Client, String> {
    let Tls { ca, certificate, key } = &arguments.tls;
    let settings = ClientTls {
        ca: ca.clone(),
        identity: certificate.clone().zip(key.clone()),
        ..ClientTls::default()
    };
    let https = is_https(arguments);
    if !https && settings != ClientTls::default() {
        return Err("the options for TLS need an https:// URL".to_owned());
    }
    let tls = https.then(|| tls::Client::read(&settings, &[b"http/1.1"], None)).transpose();
    let tls = tls.map_err(|error| error.to_string())?;
    let file = arguments.bearer_token_file.as_ref();
    let token = file.map(|file| {
        let token = config::read_token_of_command(file);
        token.map_err(|error| format!("cannot read {}: {error}", shown(file)))
    });
    let token = token.transpose()?;
    let patience = if arguments.follow { Duration::MAX } else { PATIENCE };
    Client::new(&arguments.url, tls, token.as_deref(), patience, stop)
}

async fn send(
    arguments: &Arguments,
    replay: Replay,
    client: Client,
    stop: CancellationToken,
) -> Result<(), u8> {
    let mut display = Display::new(replay.file_bytes());
    display.follows = arguments.follow;
    let (progress, ended) = shown_run(replay, To::Relay(client), &mut display, stop).await?;
    print(&display.summary(progress))?;
    match ended {
        Some(Ok(())) if progress.is_nothing() && !arguments.follow => {
            Err(failed("no event was sent: every line that was read is bad"))
        }
        Some(Ok(())) => Ok(()),
        Some(Err(stopped)) => Err(failed(farewell(arguments, &stopped))),
        None => Err(failed("stopped immediately by a second signal")),
    }
}

/// Passes all events of these files and directories to the function in the parameter `look`, as
/// JSON lines, and shows the progress. Returns the number of bad lines, which are skipped, and the
/// reason if some events were not read. `Err` is the exit status.
pub(super) fn look(
    files: &[PathBuf],
    look: &mut dyn FnMut(&[u8]),
) -> Result<(u64, Option<String>), u8> {
    check(files)?;
    let replay = Replay::new(Settings {
        files: files.to_vec(),
        even_if_running: true,
        on_bad_line: OnBadLine::Skip,
        only_looks: true,
        ..Settings::default()
    });
    let replay = replay.map_err(|error| super::wrong(escape::message(&error.to_string())))?;
    let mut display = Display::new(replay.file_bytes());
    let running = shown_run(replay, To::Look(look), &mut display, CancellationToken::new());
    let (progress, ended) = healthcheck::block_on(running)??;
    let why = match ended {
        Some(ended) => ended.err().map(|stopped| stopped.what),
        None => Some("interrupted".to_owned()),
    };
    Ok((progress.bad_lines, why))
}

/// Runs a replay and shows its progress. Returns the numbers at its end, and how it has ended;
/// `None` if a second signal came before. `Err` is the exit status.
async fn shown_run(
    replay: Replay,
    to: To<'_>,
    display: &mut Display,
    stop: CancellationToken,
) -> Result<(Progress, Option<Result<(), Stopped>>), u8> {
    let heard =
        Heard::new().map_err(|error| failed(format_args!("cannot listen for signals: {error}")))?;
    let (told, mut notes) = mpsc::channel(NOTES);
    let (shown, progress) = watch::channel(Progress::default());
    let mut look = tokio::time::interval(LOOK);
    let mut running = std::pin::pin!(replay.run(to, told, shown, stop.clone()));
    let mut hangup = heard.reload;
    let ended = loop {
        tokio::select! {
            ended = &mut running => break Some(ended),
            Some(note) = notes.recv() => display.note(&note),
            _ = look.tick() => display.look(*progress.borrow()),
            () = heard.first.cancelled(), if !stop.is_cancelled() => stop.cancel(),
            // SIGHUP means that the terminal is gone, and counts as an interrupt.
            Some(()) = hangup.recv() => stop.cancel(),
            () = heard.second.cancelled() => break None,
        }
    };
    while let Ok(note) = notes.try_recv() {
        display.note(&note);
    }
    display.clear();
    let progress = *progress.borrow();
    Ok((progress, ended))
}

/// Returns the message for a replay that has stopped: the reason and, unless every readable event
/// was accepted, the place at which it stopped and how to continue from there.
fn farewell(arguments: &Arguments, stopped: &Stopped) -> String {
    let Stopped { what, at, lines } = stopped;
    let mut text = "stopped: ".to_owned();
    if let Some(lines) = lines {
        text.push_str(&format!("{}: ", spot(lines)));
    }
    text.push_str(&format!("{}\n", escape::message(what)));
    let Some(Span { file, unit, first, .. }) = at else {
        text.push_str("every event that could be read is accepted");
        return text;
    };
    let (name, word) = (shown(file), word(*unit));
    let is_bad_line = stopped.is_bad_line();
    if is_bad_line && *first == 1 {
        text.push_str(&format!(
            "nothing of {name} is sent. It is probably no audit log: that has an event of \
             kube-apiserver, as JSON, on each line. Name another file or, if only the begin of \
             this one is wrong, replay it and the files after it with --on-bad-line skip"
        ));
        return text;
    }
    text.push_str(&format!("everything before {word} {first} of {name} is accepted\n"));
    // Without this option, the next run would stop at the same line.
    let skip = if is_bad_line { " --on-bad-line skip" } else { "" };
    text.push_str(&match (&arguments.resume, unit) {
        (Some(resume), _) => {
            let resume = shown(resume);
            format!("to continue from there: run the same command, with --resume {resume}{skip}")
        }
        (None, Unit::Line) if *first == 1 => {
            format!(
                "to continue from there: run the same command with {name} and the files after it"
            )
        }
        (None, Unit::Line) => format!(
            "to continue from there: {}, then replay the files after it. With --resume FILE, a \
             replay keeps its place automatically",
            rest_of(file, *first, skip)
        ),
        (None, Unit::Position) => {
            "the same command starts again at the directory's cursors, and sends some events a \
             second time. With --resume FILE, a replay keeps its place automatically"
                .to_owned()
        }
    });
    text
}

fn word(unit: Unit) -> &'static str {
    match unit {
        Unit::Line => "line",
        Unit::Position => "position",
    }
}

/// Returns a text that names the input and its lines or positions, such as `audit.log, lines 1 to
/// 400`.
fn spot(span: &Span) -> String {
    let Span { file, unit, first, last } = span;
    let (name, word) = (shown(file), word(*unit));
    match first == last {
        true => format!("{name}, {word} {first}"),
        false => format!("{name}, {word}s {first} to {last}"),
    }
}

fn result_of(replayed: &Replayed) -> String {
    let Replayed { queue, events, begin, end, missing, dropped } = replayed;
    let mut text = match end.get().checked_sub(1).filter(|_| end > begin) {
        Some(last) => format!(
            "replayed {} from position {begin} to {last} of queue {queue}; the relay accepted \
             {events}",
            counted(*events, "event", "events"),
        ),
        None => {
            format!("replayed 0 events of queue {queue}: none was left from position {begin} on")
        }
    };
    if *missing > 0 {
        let (one, many) = ("damaged or missing event was", "damaged or missing events were");
        text.push_str(&format!("; {} not sent", counted(*missing, one, many)));
    }
    if *dropped > 0 {
        let dropped = counted(*dropped, "event", "events");
        text.push_str(&format!("; {dropped} had been dropped by the original relay"));
    }
    text.push('\n');
    text
}

/// Shows the progress and the messages of a replay. The progress is a bar on a terminal, and in all
/// other cases printed lines.
struct Display {
    bar: ProgressBar,
    file_bytes: Option<u64>,
    begun: Instant,
    /// The time at which the last progress line was printed, and the number of events that the
    /// relay had accepted at that time.
    told: (Instant, u64),
    /// The lines of the summary about queues' directories.
    replayed: String,
    /// The number of bad lines so far. Only the first ones are printed.
    bad_lines: u64,
    /// The number of bad lines that no printed line shows or counts yet, and the time at which this
    /// number was last set to 0.
    untold: (u64, Instant),
    follows: bool,
}

impl Display {
    /// Makes a display for files that together have this number of bytes; `None`: the size is
    /// unknown. A bar is drawn only on a terminal.
    fn new(file_bytes: Option<u64>) -> Self {
        let bar = match file_bytes {
            Some(bytes) => ProgressBar::new(bytes).with_style(style(
                "{wide_bar} {percent:>3} %  {bytes} of {total_bytes}  {msg}  {eta} left",
            )),
            None => ProgressBar::new_spinner().with_style(style("{spinner} {elapsed}  {msg}")),
        };
        let now = Instant::now();
        Self {
            bar,
            file_bytes,
            begun: now,
            told: (now, 0),
            replayed: String::new(),
            bad_lines: 0,
            untold: (0, now),
            follows: false,
        }
    }

    fn note(&mut self, note: &Note) {
        let text = match note {
            Note::BadLine { span, what } => {
                self.bad_lines += 1;
                if self.bad_lines > BAD_LINES_SHOWN {
                    self.untold.0 += 1;
                    return;
                }
                format!("{}: skipped: {}", spot(span), escape::message(what))
            }
            Note::CutShort { span, what } => {
                format!("{}: skipped: {}", spot(span), escape::message(what))
            }
            Note::Remark { directory, what } => {
                format!("{}: {}", shown(directory), escape::message(what))
            }
            Note::Retrying { span, failed } => {
                let Failed { what, attempt, pause } = failed;
                let (spot, pause) = (spot(span), pause.as_secs_f64());
                format!("{spot}: {what}; attempt {attempt}, the next in {pause:.1} s")
            }
            Note::Replayed(replayed) => {
                self.replayed.push_str(&result_of(replayed));
                return;
            }
        };
        self.bar.suspend(|| eprintln!("{text}"));
    }

    fn look(&mut self, progress: Progress) {
        if self.follows && self.untold.1.elapsed() >= TELL_CALMLY {
            self.tell_bad_lines();
        }
        let rate = rate(progress.accepted, self.begun.elapsed());
        let sent = format!("{} events  {}/s", HumanCount(progress.accepted), HumanCount(rate));
        if self.file_bytes.is_some() {
            // The bytes before the first position that is seen may be from an earlier run, and
            // don't count for the pace of this one.
            let is_first = self.bar.position() == 0;
            self.bar.set_position(progress.file_bytes);
            if is_first {
                self.bar.reset_eta();
            }
        }
        if !self.bar.is_hidden() {
            self.bar.set_message(sent);
            self.bar.tick();
            return;
        }
        let (at, before) = self.told;
        if at.elapsed() < if self.follows { TELL_CALMLY } else { TELL } {
            return;
        }
        let rate = self::rate(progress.accepted - before, at.elapsed());
        self.told = (Instant::now(), progress.accepted);
        let left = match self.file_bytes {
            Some(bytes) if bytes > 0 => {
                let percent = progress.file_bytes.min(bytes) * 100 / bytes;
                let eta = match self.bar.eta() {
                    Duration::ZERO => String::new(),
                    eta => format!(", {} left", HumanDuration(eta)),
                };
                format!(", {percent} % of {}{eta}", HumanBytes(bytes))
            }
            _ => String::new(),
        };
        eprintln!("{} done, {rate}/s{left}", counted(progress.accepted, "event", "events"));
    }

    fn clear(&mut self) {
        self.bar.finish_and_clear();
        self.tell_bad_lines();
    }

    /// Prints the number of bad lines that no printed line shows or counts yet.
    fn tell_bad_lines(&mut self) {
        let more = std::mem::replace(&mut self.untold, (0, Instant::now())).0;
        if more > 0 {
            let more = counted(more, "more bad line was", "more bad lines were");
            self.bar.suspend(|| eprintln!("{more} skipped"));
        }
    }

    fn summary(&self, progress: Progress) -> String {
        let took = self.begun.elapsed();
        let before = match progress.events_before {
            0 => String::new(),
            events => format!("accepted before: {events}\n"),
        };
        let gaps = match self.follows {
            true => format!("gaps: {}\n", progress.gaps),
            false => String::new(),
        };
        format!(
            "sent: {}\naccepted: {}\n{before}bad lines: {}\n{gaps}bytes: {}\nseconds: {:.1}\nevents per second: {}\n{}",
            progress.sent,
            progress.accepted,
            progress.bad_lines,
            progress.bytes,
            took.as_secs_f64(),
            rate(progress.accepted, took),
            self.replayed,
        )
    }
}

/// Returns the style with this template of the library indicatif.
pub(super) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn rate(events: u64, time: Duration) -> u64 {
    let millis = time.as_millis().max(1);
    u64::try_from(u128::from(events) * 1000 / millis).unwrap_or(u64::MAX)
}

/// Returns a text that explains how to send a file again, beginning with the given line. `skip` is
/// an option that the command needs.
fn rest_of(file: &Path, line: u64, skip: &str) -> String {
    let name = shown(file);
    let is_file = std::fs::metadata(file).is_ok_and(|found| found.is_file());
    if !is_file {
        return format!("send {name} again, from its line {line} on, with `replay -{skip}`");
    }
    let mut magic = Vec::new();
    let opened = std::fs::File::open(file);
    // A file that cannot be read now counts as plain.
    opened.and_then(|file| file.take(MAGIC_BYTES as u64).read_to_end(&mut magic)).ok();
    let cut = match Packing::of(&magic) {
        Packing::Plain => format!("tail -n +{line} {name}"),
        Packing::Gzip => format!("zcat {name} | tail -n +{line}"),
        Packing::Zstd => format!("zstdcat {name} | tail -n +{line}"),
    };
    format!("run `{cut} | kube-audit-forwarder replay -{skip} --url …`")
}
