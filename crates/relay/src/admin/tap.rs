//! `GET /tap`: shows a person the events that are sent, line by line, until the person disconnects.
//!
//! The route is off (404) unless the config has `admin.tap_token_file`, and needs the token of that
//! file. Taps have limits of their own. At most [`TAPS_MAX`] taps are open at the same time, each
//! for at most [`TAP_TIME`]. A tap ends when its reader does not read. Taps take no places from
//! `/metrics` and the probes.
//!
//! The response is a stream of lines, each a JSON object with one of these members: `tap` (the
//! first line), `event` with `output`, `skipped`, `heartbeat`, `end` (the last line).

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::{Request, Response, StatusCode, header};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Caller;
use super::access::Refusal;
use crate::listener::Token;
use base::lock::lock;
use base::words::escape;
use delivery::tap::{Line, Looked, TAPS_MAX, Tap, Taps, View};

/// The longest time for which a tap is open. A person who still needs it opens another.
const TAP_TIME: Duration = Duration::from_secs(3600);

/// The time after which a tap ends if its reader takes nothing.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest wait for room for the last line of a tap, and again for its reader to take it. Both
/// delay the end of the relay.
const LAST_LINE_TIME: Duration = Duration::from_millis(500);

/// The interval of the lines that say how many events were skipped.
const NOTICE: Duration = Duration::from_secs(1);

/// The number of [`NOTICE`] intervals without a line after which a heartbeat is written.
const QUIET_MAX: u32 = 5;

/// The size in bytes at which a frame of shown events is full.
const FRAME_BYTES: usize = 32 * 1024;

/// The greatest number of frames that wait between the task of a tap and its connection. A frame is
/// larger than [`FRAME_BYTES`] by at most one event.
const FRAMES: usize = 2;

/// The route `/tap` of one relay, with the token that opens taps.
pub(super) struct Door {
    taps: Arc<Taps>,
    key: Mutex<Option<Key>>,
}

struct Key {
    token: Token,
    /// Cancelled when the token is replaced or removed: the taps that this token has opened then
    /// end.
    revoked: CancellationToken,
}

/// The reason why a tap has ended, for its last line and for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stopped,
    Revoked,
    Time,
    Slow,
    Gone,
}

impl End {
    /// Returns the word that programs compare, and the sentence for people.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Stopped => ("stopped", "the relay has ended"),
            Self::Revoked => ("revoked", "the token was changed or removed"),
            Self::Time => ("time", "a tap is open for at most an hour"),
            Self::Slow => ("slow", "nothing was read for 30 s"),
            Self::Gone => ("gone", "the reader has gone"),
        }
    }
}

/// The state of one connection that may become a tap.
#[derive(Clone, Default)]
pub(super) struct Turn {
    /// Cancelled when the connection has become a tap.
    begun: CancellationToken,
    /// Cancelled when the task of the tap has ended.
    ended: CancellationToken,
}

impl Turn {
    pub(super) async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Waits until the tap has ended, and its reader has had the time to take the last line.
    pub(super) async fn over(&self) {
        self.ended.cancelled().await;
        tokio::time::sleep(LAST_LINE_TIME).await;
    }
}

/// The body of a response: a page, or the lines of a tap.
pub(super) type Answer = Either<Full<Bytes>, Lines>;

pub(super) struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|lines| lines.map(|lines| Ok(Frame::data(lines))))
    }
}

struct Wish {
    output: Option<String>,
    /// The text of the match, for the log and the first line of the tap.
    wanted: Option<String>,
    view: View,
}

impl Wish {
    /// Reads the query of a URL: `output` and `match`.
    fn of(query: &str) -> Result<Self, String> {
        let (mut output, mut wanted) = (None, None);
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "output" => output = Some(value.into_owned()),
                "match" => wanted = Some(value.into_owned()),
                _ => {
                    let key = escape::field(&key, "");
                    return Err(format!("{key}: unknown, allowed: output, match"));
                }
            }
        }
        let matches = wanted.as_deref().map(config::read_match).transpose();
        let matches = matches.map_err(|what| format!("match {}", escape::message(&what)))?;
        Ok(Self { output, wanted, view: View::new(matches.as_deref()) })
    }
}

impl Door {
    pub(super) fn new(taps: Arc<Taps>) -> Self {
        Self { taps, key: Mutex::default() }
    }

    /// Sets the token that opens taps; if it is `None`, nobody can open one. If the token has
    /// changed, the open taps end.
    pub(super) fn lock_with(&self, token: Option<Token>) {
        let mut key = lock(&self.key);
        if let (Some(key), Some(token)) = (&*key, &token)
            && key.token.is_same(token)
        {
            return;
        }
        let new = token.map(|token| Key { token, revoked: CancellationToken::new() });
        let old = std::mem::replace(&mut *key, new);
        drop(key);
        if let Some(old) = old {
            old.revoked.cancel();
        }
    }

    /// Responds to a request for a tap. `names` are the names of the outputs.
    pub(super) fn open(
        &self,
        request: &Request<Incoming>,
        names: &[String],
        caller: &Caller,
    ) -> Result<Response<Answer>, Refusal> {
        let revoked = self.admitted(request, caller)?;
        let wish = Wish::of(request.uri().query().unwrap_or_default());
        let wish = wish.map_err(|what| Refusal(StatusCode::BAD_REQUEST, what))?;
        if let Some(name) = wish.output.as_ref().filter(|name| !names.contains(name)) {
            let (name, names) = (escape::field(name, ""), names.join(", "));
            let what = format!("no output {name}, there are: {names}");
            return Err(Refusal(StatusCode::BAD_REQUEST, what));
        }
        let Some(tap) = self.taps.open(wish.output.clone()) else {
            let what = format!("{TAPS_MAX} taps are open, which is the most: try again later");
            return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, what));
        };
        Ok(self.begin(wish, tap, revoked, caller))
    }

    /// Checks the right to open a tap. Returns a token that is cancelled when this right ends.
    fn admitted(
        &self,
        request: &Request<Incoming>,
        caller: &Caller,
    ) -> Result<CancellationToken, Refusal> {
        let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let right = |key: &Key| key.token.matches(given).then(|| key.revoked.clone());
        let is_right = lock(&self.key).as_ref().map(right);
        let what = match is_right {
            Some(Some(revoked)) => return Ok(revoked),
            None => {
                let what = "taps are off: the config has no admin.tap_token_file, or the file has \
                            no token"
                    .to_owned();
                return Err(Refusal(StatusCode::NOT_FOUND, what));
            }
            Some(None) if given.is_some() => "the bearer token is wrong",
            Some(None) => {
                "a bearer token is required in the header Authorization, that of \
                           admin.tap_token_file"
            }
        };
        Err(caller.refuse(what))
    }

    /// Starts the task of a tap, and returns the response whose lines the task writes.
    fn begin(
        &self,
        wish: Wish,
        tap: Tap,
        revoked: CancellationToken,
        caller: &Caller,
    ) -> Response<Answer> {
        let (sender, receiver) = mpsc::channel(FRAMES);
        let Wish { output, wanted, view } = wish;
        let shown_output = output.as_deref().unwrap_or("all").to_owned();
        let (peer, stop) = (caller.peer.to_string(), caller.stop.clone());
        tracing::info!(
            peer,
            output = shown_output,
            matches = wanted.as_deref().map(escape::message),
            "tap opened"
        );
        let head = json!({ "tap": { "output": output, "match": wanted } });
        let mut writer = Writer {
            tap,
            view,
            frames: sender,
            lines: format!("{}\n", escape::json(&head.to_string())),
            skipped: 0,
            seen: 0,
            shown: 0,
            all_skipped: 0,
            quiet: 0,
        };
        let ended = caller.turn.ended.clone().drop_guard();
        caller.tracker.spawn(async move {
            let _ended = ended;
            let end = writer.run(&stop, &revoked).await;
            writer.last_line(end).await;
            let (_, reason) = end.words();
            let (shown, skipped) = (writer.shown, writer.all_skipped);
            tracing::info!(peer, output = shown_output, shown, skipped, reason, "tap closed");
        });
        caller.turn.begun.cancel();
        let mut response = Response::new(Either::Right(Lines(receiver)));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// Writes the lines of one tap. The task of the tap owns this value.
struct Writer {
    tap: Tap,
    view: View,
    frames: mpsc::Sender<Bytes>,
    /// Lines that are not handed to the connection yet.
    lines: String,
    /// The number of events that have been skipped since the last notice.
    skipped: u64,
    /// The number of events that the tap has looked at, shown or not.
    seen: u64,
    shown: u64,
    all_skipped: u64,
    /// The number of [`NOTICE`] intervals since the last line.
    quiet: u32,
}

impl Writer {
    /// Writes lines until something ends the tap, and returns the reason.
    async fn run(&mut self, stop: &CancellationToken, revoked: &CancellationToken) -> End {
        let frames = self.frames.clone();
        let time = tokio::time::sleep(TAP_TIME);
        tokio::select! {
            biased;
            () = stop.cancelled() => End::Stopped,
            () = revoked.cancelled() => End::Revoked,
            () = frames.closed() => End::Gone,
            () = time => End::Time,
            () = self.write() => End::Slow,
        }
    }

    /// Writes lines until the reader no longer takes them.
    async fn write(&mut self) {
        let mut notice = tokio::time::interval(NOTICE);
        notice.set_missed_tick_behavior(MissedTickBehavior::Delay);
        notice.tick().await;
        loop {
            if !self.lines.is_empty() && !self.flush().await {
                return;
            }
            tokio::select! {
                biased;
                _ = notice.tick() => self.notice(),
                line = self.tap.next() => {
                    self.look(line);
                    // All events that wait are written together, until the frame is full.
                    while self.lines.len() < FRAME_BYTES && let Some(line) = self.tap.try_next() {
                        self.look(line);
                        // Lets other tasks of this thread run between two events.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    /// Adds an event to the lines if the reader asks for it.
    fn look(&mut self, line: Line) {
        let looked = self.view.look(line.event());
        self.seen += 1;
        match looked {
            Looked::Unreadable => self.skipped += 1,
            Looked::Other => {}
            Looked::Shown(event) => {
                let output = json!(line.output()).to_string();
                let output = escape::json(&output);
                self.lines.push_str(&format!("{{\"output\":{output},\"event\":{event}}}\n"));
                self.shown += 1;
                self.tap.metrics().shown.increment(1);
            }
        }
    }

    /// Adds a line about skipped events, or a heartbeat if there was no other line for some time.
    fn notice(&mut self) {
        let skipped = self.take_skipped();
        if skipped > 0 {
            self.lines.push_str(&format!("{{\"skipped\":{skipped}}}\n"));
            return;
        }
        self.quiet += 1;
        if self.quiet >= QUIET_MAX {
            let heartbeat = json!({ "heartbeat": { "seen": self.seen, "shown": self.shown } });
            self.lines.push_str(&format!("{heartbeat}\n"));
        }
    }

    /// Counts the events that have been skipped since the last call, and returns their number.
    fn take_skipped(&mut self) -> u64 {
        let skipped = std::mem::take(&mut self.skipped) + self.tap.take_skipped();
        self.all_skipped += skipped;
        self.tap.metrics().skipped.increment(skipped);
        skipped
    }

    /// Hands the lines to the connection. Returns `false` if the reader takes nothing for
    /// [`WRITE_TIMEOUT`].
    async fn flush(&mut self) -> bool {
        self.quiet = 0;
        let lines = Bytes::from(std::mem::take(&mut self.lines));
        let sent = tokio::time::timeout(WRITE_TIMEOUT, self.frames.send(lines)).await;
        // If the connection is gone, `run` notices that, and the result is `true`.
        sent.is_ok()
    }

    /// Writes the last line, which says why the tap ends. A reader that does not read misses it.
    async fn last_line(&mut self, end: End) {
        self.take_skipped();
        let (reason, message) = end.words();
        let line = json!({ "end": { "reason": reason, "message": message } });
        let lines = Bytes::from(format!("{line}\n"));
        tokio::time::timeout(LAST_LINE_TIME, self.frames.send(lines)).await.ok();
    }
}
