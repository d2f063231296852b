//! The command `tap`: shows the events that leave a running relay, as they leave.
//!
//! Events go to stdout, one per line. Everything else (how many events were skipped, why the tap
//! has ended) goes to stderr. A terminal gets nothing of an event without escapes.

use std::fmt::Write as _;
use std::io;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::timeout;
use url::Position;

use super::healthcheck::Page;
use super::{cannot_read, failed, healthcheck, read, whole, wrong};
use audit::request::Object;
use audit::{request, scan, time};
use base::words::{counted_in_groups, escape};
use client::ask;
use client::ask::{AskFault, Reply};

/// The time limit for the connection and the head of the response together.
const ANSWER: Duration = Duration::from_secs(10);

/// The time without a line after which the relay counts as gone. A relay sends a line at least
/// every 5 s.
const SILENCE: Duration = Duration::from_secs(30);

/// The greatest number of bytes that are held of a line without its end. An event of 256 KiB can be
/// six times as long when each of its characters is an escape.
const LINE_MAX: usize = 4 << 20;

/// The greatest number of texts that wait for a slow reader of stdout. While this many wait,
/// nothing more is read from the relay.
const PRINTED: usize = 16;

/// The arguments of the command `tap`.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    relay: healthcheck::Relay,
    /// Show only events that match a table, or one of several, as filter.match in the config takes
    /// them: { verbs = ["delete"], namespaces = ["prod"] }
    #[arg(long = "match", value_name = "TABLE")]
    wanted: Option<String>,
    /// Show only events that this output sends
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    /// Print one line of text for each event, or the redacted event as JSON
    #[arg(long, value_name = "FORMAT", default_value = "short")]
    format: Format,
    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = whole(1..=u64::MAX, "a whole number of events, 1 or more, such as 10"))]
    limit: Option<u64>,
}

/// The form in which events are printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Short,
    Json,
}

/// Shows events until the tap ends. `Err` is the exit status.
pub(super) fn run(arguments: &Arguments, file: Option<&Path>) -> Result<(), u8> {
    let asked = request(arguments, file)?;
    let looking = async {
        let (printer, texts) = mpsc::channel(PRINTED);
        let printing = tokio::task::spawn_blocking(|| print(texts));
        let ended = async {
            let looked = look(&asked, arguments, printer).await;
            match printing.await.map_err(io::Error::from).flatten() {
                // The reader of stdout has gone, as after `| head -1`.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                Err(error) => Err(format!("cannot write to standard output: {error}")),
                Ok(()) => looked,
            }
        };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => Ok(()),
            ended = ended => ended,
        }
    };
    healthcheck::block_on(looking)?.map_err(failed)
}

struct Request {
    /// The relay, without the query.
    page: Page,
    path: String,
}

/// Makes the request that the arguments ask for. `Err` is the exit status.
fn request(arguments: &Arguments, file: Option<&Path>) -> Result<Request, u8> {
    if let Some(wanted) = &arguments.wanted {
        config::read_match(wanted)
            .map_err(|error| wrong(format_args!("--match {}", escape::message(&error))))?;
    }
    let page = arguments.relay.page(file, "/tap")?;
    let page = match configured_token(arguments, file)? {
        Some(token) => page.with_token(&token)?,
        None => page,
    };
    let mut url = page.url.clone();
    {
        let mut query = url.query_pairs_mut();
        arguments.output.iter().for_each(|name| {
            query.append_pair("output", name);
        });
        arguments.wanted.iter().for_each(|wanted| {
            query.append_pair("match", wanted);
        });
    }
    let path = url[Position::BeforePath..Position::AfterQuery].to_owned();
    Ok(Request { page, path })
}

/// Returns the token of the file that the config names, unless `--token-file` names one. A relay at
/// a URL of the command line never gets the token of the config.
fn configured_token(arguments: &Arguments, file: Option<&Path>) -> Result<Option<String>, u8> {
    if arguments.relay.credentials.token_file.is_some() {
        return Ok(None);
    }
    if arguments.relay.url().is_some() {
        return Err(wrong("tap needs --token-file FILE for the relay at a URL"));
    }
    let admin = config::admin_of(&read(file)?.0).ok();
    let Some(named) = admin.and_then(|admin| admin.tap_token_file) else {
        let what = "tap needs --token-file FILE, or a config with admin.tap_token_file (--config)";
        return Err(wrong(what));
    };
    let token = config::read_token(&named);
    token.map(Some).map_err(|error| cannot_read(&named, "the token", &error))
}

/// Prints texts until their sender is dropped. This runs in a thread of its own, so that Ctrl-C
/// ends the command even if nobody reads stdout.
fn print(mut texts: mpsc::Receiver<String>) -> io::Result<()> {
    let mut stdout = io::stdout();
    while let Some(text) = texts.blocking_recv() {
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())?;
    }
    Ok(())
}

/// Asks the relay for events, and prints them until `--limit`, the relay or a failed print ends the
/// tap.
async fn look(
    Request { page, path }: &Request,
    arguments: &Arguments,
    printer: mpsc::Sender<String>,
) -> Result<(), String> {
    let Arguments { format, limit, .. } = *arguments;
    let escapes = io::stdout().is_terminal();
    let mut show = Show { format, escapes, left: limit };
    let looking = async {
        let opened = timeout(ANSWER, page.target.open(Method::GET, path, None)).await;
        let opened = opened.map_err(|_| format!("no response within {} s", ANSWER.as_secs()))?;
        let mut reply = opened.map_err(|error| page.explained(error.fault, error.reason))?;
        let status = reply.status;
        if status != StatusCode::OK {
            let what = format!("{status}{}", ask::refusal(&mut reply).await);
            return Err(page.explained(AskFault::Status(status.as_u16()), what));
        }
        lines(reply, &mut show, &printer).await
    };
    looking.await.map_err(|error| format!("{page}: {error}"))
}

async fn lines(
    mut reply: Reply,
    show: &mut Show,
    printer: &mpsc::Sender<String>,
) -> Result<(), String> {
    let mut buffer = Vec::new();
    loop {
        let part = tokio::select! {
            part = reply.part(SILENCE) => part?,
            () = printer.closed() => return Ok(()),
        };
        let Some(part) = part else {
            return Err("the response ended without a reason: is the relay down?".to_owned());
        };
        buffer.extend_from_slice(&part);
        let mut start = 0;
        let mut text = String::new();
        let mut ended = None;
        for end in memchr::memchr_iter(b'\n', &buffer) {
            let line = buffer.get(start..end).unwrap_or_default();
            start = end + 1;
            ended = show.line(line, &mut text)?;
            if ended.is_some() {
                break;
            }
        }
        buffer.drain(..start);
        if buffer.len() > LINE_MAX {
            return Err(format!("a line has more than {} MiB", LINE_MAX >> 20));
        }
        printer.send(text).await.ok();
        if let Some(ended) = ended {
            return ended;
        }
    }
}

#[derive(Deserialize)]
struct Received<'a> {
    output: Option<String>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    skipped: Option<u64>,
    end: Option<End>,
}

#[derive(Deserialize)]
struct End {
    reason: String,
    message: String,
}

struct Show {
    format: Format,
    /// `true` if stdout is a terminal.
    escapes: bool,
    /// The number of events that are still to be shown; `None` without `--limit`.
    left: Option<u64>,
}

impl Show {
    /// Handles a line of the relay. An event is added to `text`; other contents are printed to
    /// stderr. Returns `Some` if the tap has ended or `--limit` is reached. `Err` if the line is
    /// not one of a relay.
    fn line(
        &mut self,
        line: &[u8],
        text: &mut String,
    ) -> Result<Option<Result<(), String>>, String> {
        let received: Received<'_> = serde_json::from_slice(line)
            .map_err(|error| format!("this is not a response from a relay's tap: {error}"))?;
        if let Some(event) = received.event {
            let (output, event) = (received.output.unwrap_or_default(), event.get());
            match self.format {
                Format::Json if self.escapes => text.push_str(&escape::json(event)),
                Format::Json => text.push_str(event),
                Format::Short => text.push_str(&short(&output, event)),
            }
            text.push('\n');
            if let Some(left) = &mut self.left {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    return Ok(Some(Ok(())));
                }
            }
        }
        if let Some(skipped) = received.skipped {
            let events = counted_in_groups(skipped, "event", "events");
            eprintln!("skipped {events}: over the limits of a tap, or not JSON");
        }
        Ok(received.end.map(|End { reason, message }| {
            let message = format!("the tap has ended: {}", escape::message(&message));
            match reason.as_str() {
                "stopped" | "time" => {
                    eprintln!("{message}");
                    Ok(())
                }
                _ => Err(message),
            }
        }))
    }
}

/// Returns an event as one line of text: time, output, level, verb, user, object, status, address
/// and duration, separated by spaces. A value that the event does not have is `-`. The stage is
/// added if it is not `ResponseComplete`.
fn short(output: &str, event: &str) -> String {
    let event = if event.starts_with('{') { event.as_bytes() } else { b"{}" };
    let request = request::request(event);
    let members = [
        "impersonatedUser",
        "responseStatus",
        "sourceIPs",
        "requestReceivedTimestamp",
        "stageTimestamp",
    ];
    let [impersonated, status, ips, received, staged] = scan::firsts(event, members);
    let is_object = |value: &&[u8]| value.first() == Some(&b'{');
    let impersonated = impersonated.filter(is_object).and_then(|it| scan::member(it, "username"));
    let code = status.filter(is_object).and_then(|status| scan::member(status, "code"));
    let code = code.and_then(|code| std::str::from_utf8(code).ok()?.parse::<u64>().ok());
    let ip =
        ips.filter(|ips| ips.first() == Some(&b'[')).and_then(|ips| scan::elements(ips).next());
    let [impersonated, ip, received, staged] = [impersonated, ip, received, staged].map(value);
    let user = request.user.unwrap_or_default();
    let mut line = format!(
        "{} {} {} {} {}",
        escape::field(&moment(&staged), ""),
        escape::field(output, ""),
        field(&request.level, ""),
        field(&request.verb, ""),
        field(&user.name, "["),
    );
    // Writing to a `String` cannot fail.
    if !impersonated.is_empty() {
        write!(line, "[as={}]", escape::field(&impersonated, "[]")).ok();
    }
    let object = request.object.as_ref().map(object);
    let object = object.unwrap_or_else(|| field(&request.uri.text(), ""));
    let code = code.map_or_else(|| "-".to_owned(), |code| code.to_string());
    let ip = escape::field(&ip, "");
    write!(line, " {object} {code} {ip} {}", duration(&received, &staged)).ok();
    if *request.stage != *b"ResponseComplete" {
        write!(line, " stage={}", field(&request.stage, "")).ok();
    }
    line
}

/// Returns a text of an event as one field of a line.
fn field(text: &[u8], separators: &str) -> String {
    escape::field(&String::from_utf8_lossy(text), separators)
}

/// Returns a JSON string with its escapes resolved; empty if the value is not a string.
fn value(value: Option<&[u8]>) -> String {
    let text = value.and_then(scan::string).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// Returns an object as `RESOURCE.GROUP/NAMESPACE/NAME/SUBRESOURCE`.
fn object(of: &Object<'_>) -> String {
    let part = |text: &[u8]| field(text, "/");
    let mut object = part(&of.resource);
    if !of.group.is_empty() {
        write!(object, ".{}", part(&of.group)).ok();
    }
    write!(object, "/{}/{}", part(&of.namespace), part(&of.name)).ok();
    if !of.subresource.is_empty() {
        write!(object, "/{}", part(&of.subresource)).ok();
    }
    object
}

/// Returns a time, cut to milliseconds, as in `2026-11-22T14:03:05.123Z`. A text that is not a time
/// stays as it is.
fn moment(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, fraction)) if time::is_timestamp(time.as_bytes()) => {
            let zone = fraction.trim_start_matches(|char: char| char.is_ascii_digit());
            let digits: String =
                fraction.chars().take_while(char::is_ascii_digit).take(3).collect();
            format!("{seconds}.{digits}{zone}")
        }
        _ => time.to_owned(),
    }
}

/// Returns the time from the receipt of the request to the event's stage, as in `2.1ms`; `-` if it
/// is not known.
fn duration(received: &str, staged: &str) -> String {
    let nanos = |time: &str| time::nanos(time.as_bytes());
    let (Some(received), Some(staged)) = (nanos(received), nanos(staged)) else {
        return "-".to_owned();
    };
    match staged.checked_sub(received).map(Duration::from_nanos) {
        None => "-".to_owned(),
        Some(passed) if passed < Duration::from_secs(1) => {
            format!("{:.1}ms", passed.as_secs_f64() * 1e3)
        }
        Some(passed) => format!("{:.1}s", passed.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_form_has_the_same_fields_in_each_line() {
        let event = r#"{"level":"Metadata","stage":"ResponseComplete","verb":"delete",
            "user":{"username":"alice"},"sourceIPs":["10.0.0.7"],"responseStatus":{"code":403},
            "objectRef":{"resource":"secrets","namespace":"prod","name":"db"},
            "requestReceivedTimestamp":"2026-11-22T14:03:05.121456Z",
            "stageTimestamp":"2026-11-22T14:03:05.123556Z"}"#;
        assert_eq!(
            short("siem", event),
            "2026-11-22T14:03:05.123Z siem Metadata delete alice secrets/prod/db 403 10.0.0.7 2.1ms"
        );
        assert_eq!(short("o", "{}"), "- o - - - - - - - stage=-");
        let event = r#"{"stage":"ResponseStarted","verb":"create","user":{"username":"a b"},
            "impersonatedUser":{"username":"root] 200"},
            "objectRef":{"resource":"deployments","apiGroup":"apps","subresource":"scale","name":"x/y"}}"#;
        assert_eq!(
            short("o", event),
            "- o - create \"a b\"[as=\"root] 200\"] deployments.apps/-/\"x/y\"/scale - - - \
             stage=ResponseStarted"
        );
        for odd in [
            "[]",
            "1",
            r#"{"user":1,"objectRef":[],"sourceIPs":{"a":1},"responseStatus":7}"#,
            r#"{"responseStatus":{"code":"x"},"impersonatedUser":null,"sourceIPs":[{}]}"#,
        ] {
            assert_eq!(short("o", odd), short("o", "{}"), "{odd}");
        }
        let event = r#"{"verb":"get","verb":"x","user":{"username":"a\u006cice"}}"#;
        assert_eq!(short("o", event), "- o - get alice - - - - stage=-");
        let event = r#"{"requestURI":"/healthz?x= y","verb":"get","stage":"ResponseComplete"}"#;
        assert_eq!(short("o", event), "- o - get - \"/healthz?x= y\" - - -");
    }

    /// Method: a stack on which a call for each level has no room.
    #[test]
    fn an_event_of_ten_thousand_levels_is_shown() {
        let test = || {
            let deep = format!("{}{}", "[".repeat(10_005), "]".repeat(10_005));
            let event = format!(r#"{{"requestObject":{deep},"verb":"get","annotations":{deep}}}"#);
            let line = format!(r#"{{"output":"o","event":{event}}}"#);
            for (format, escapes, shown) in [
                (Format::Json, true, &*event),
                (Format::Json, false, &*event),
                (Format::Short, false, "- o - get - - - - - stage=-"),
            ] {
                let mut text = String::new();
                let mut show = Show { format, escapes, left: None };
                assert!(show.line(line.as_bytes(), &mut text).is_ok_and(|ended| ended.is_none()));
                assert_eq!(text, format!("{shown}\n"));
            }
        };
        std::thread::Builder::new().stack_size(256 * 1024).spawn(test).unwrap().join().unwrap();
    }

    #[test]
    fn a_client_cannot_forge_a_line_or_reach_the_terminal() {
        let evil = "x\u{1b}]0;t\u{7}\n2026 o \u{202e}\u{9b}31m";
        let event = serde_json::json!({
            "verb": evil, "stage": evil, "level": evil, "user": {"username": evil},
            "impersonatedUser": {"username": evil}, "sourceIPs": [evil],
            "objectRef": {"resource": evil, "namespace": evil, "name": evil, "apiGroup": evil},
            "stageTimestamp": evil, "requestReceivedTimestamp": evil,
        });
        let line = short(evil, &event.to_string());
        assert!(!line.chars().any(|char| char.is_control() || char == '\u{202e}'), "{line:?}");
        assert_eq!(line.matches(r"\u{202e}").count(), 12, "{line}");
    }

    #[test]
    fn a_time_without_a_fraction_and_any_other_text_stay_as_they_are() {
        assert_eq!(moment("2026-11-22T14:03:05Z"), "2026-11-22T14:03:05Z");
        assert_eq!(moment("no.time"), "no.time");
    }
}
