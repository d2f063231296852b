//! The webhook of Falco's plugin `k8saudit`, version 0.18.0, as the relay sees it. The facts are
//! from `plugins/k8saudit/pkg/k8saudit/source.go` in falcosecurity/plugins:
//!
//! - `OpenWebServer` serves one path. It requires POST (otherwise 405) and a `Content-Type` with
//!   `application/json` (otherwise 400), reads at most `webhookMaxBatchSize` bytes (otherwise 400),
//!   and ignores `Content-Encoding`.
//! - It then puts the body into a channel with room for 50 bodies (`webServerEventChanBufSize`).
//!   Once the channel has the body, the webhook responds with an empty 200. Nothing has parsed the
//!   body by then. While the channel is full, there is no response.
//! - `parseAuditEventsAndPush` parses one body after the other, and logs what it cannot parse.
//!   fastjson refuses a body with a value that is nested deeper than 300.
//! - `parseSingleAuditEventJSON` skips an event without a `stageTimestamp`, and an event of more
//!   than `maxEventSize` bytes, and logs each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::value::RawValue;

use super::http_sink::{Answer, HttpSink, Request};
use super::server::Options;

/// The number of bodies that can wait between the answer and the parser.
pub(crate) const BODIES_MAX: usize = 50;

/// fastjson's `MaxDepth`.
const DEPTH_MAX: usize = 300;

/// How often the parser checks what the test wants.
const GLANCE: Duration = Duration::from_millis(5);

/// The settings of the plugin's `init_config`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// `webhookMaxBatchSize`.
    pub(crate) batch_bytes: usize,
    /// `maxEventSize`.
    pub(crate) event_bytes: usize,
}

/// The plugin's defaults.
pub(crate) const DEFAULTS: Limits =
    Limits { batch_bytes: 12 * 1024 * 1024, event_bytes: 256 * 1024 };

/// The fate of the events.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The events that the rules have seen.
    pub(crate) judged: Vec<Vec<u8>>,
    /// A log line for each event or body that they have not seen, although the response was 200.
    pub(crate) log: Vec<String>,
}

/// The detector. It judges events on its own thread.
pub(crate) struct Falco {
    pub(crate) sink: HttpSink,
    seen: Arc<Mutex<Seen>>,
    wishes: Arc<Wishes>,
}

/// The test's orders to the parser.
#[derive(Default)]
struct Wishes {
    /// If `true`, the parser judges nothing, like rules that take too long.
    stands: AtomicBool,
    ends: AtomicBool,
}

impl Falco {
    pub(crate) fn start(options: Options, limits: Limits) -> Self {
        let (bodies, waiting) = sync_channel(BODIES_MAX);
        let (seen, wishes) = (Arc::<Mutex<Seen>>::default(), Arc::<Wishes>::default());
        let sink = HttpSink::with(options, move |request| answer(request, limits, &bodies));
        std::thread::spawn({
            let (seen, wishes) = (Arc::clone(&seen), Arc::clone(&wishes));
            move || judge(&waiting, &seen, &wishes, limits)
        });
        Self { sink, seen, wishes }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.sink.address()
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("not poisoned")
    }

    /// Stops the judging if `stands`. Otherwise continues it.
    pub(crate) fn stand(&self, stands: bool) {
        self.wishes.stands.store(stands, Ordering::Relaxed);
    }
}

impl Drop for Falco {
    /// Ends the parser, so that no request waits for it.
    fn drop(&mut self) {
        self.wishes.ends.store(true, Ordering::Relaxed);
    }
}

fn answer(request: &Request, limits: Limits, bodies: &SyncSender<Vec<u8>>) -> Answer {
    if request.target.split('?').next() != Some("/k8s-audit") {
        return Answer::status(404).body("404 page not found\n");
    }
    if request.method != "POST" {
        return Answer::status(405).body(format!("{} method not allowed\n", request.method));
    }
    if !request.header("content-type").is_some_and(|it| it.contains("application/json")) {
        return Answer::status(400).body("wrong Content Type\n");
    }
    if request.body.len() > limits.batch_bytes {
        return Answer::status(400).body("bad request: http: request body too large\n").closing();
    }
    // At its end, the plugin logs "request dropped while shutting down server", and sends a 200.
    let _is_taken = bodies.send(request.body.clone()).is_ok();
    Answer::status(200)
}

fn judge(waiting: &Receiver<Vec<u8>>, seen: &Mutex<Seen>, wishes: &Wishes, limits: Limits) {
    while !wishes.ends.load(Ordering::Relaxed) {
        if wishes.stands.load(Ordering::Relaxed) {
            std::thread::sleep(GLANCE);
            continue;
        }
        let body = match waiting.recv_timeout(GLANCE) {
            Ok(body) => body,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let found = parsed(&body);
        let mut seen = seen.lock().expect("not poisoned");
        match found {
            Ok(items) => {
                for item in items {
                    match unseen(item.get(), limits) {
                        Some(why) => seen.log.push(why),
                        None => seen.judged.push(item.get().as_bytes().to_vec()),
                    }
                }
            }
            Err(why) => seen.log.push(why),
        }
    }
}

/// Returns the events of a body, or the log line if the parser refuses the whole body.
fn parsed(body: &[u8]) -> Result<Vec<Box<RawValue>>, String> {
    if depth(body) > DEPTH_MAX {
        let what = "too big depth for the nested JSON; it exceeds";
        return Err(format!("cannot parse JSON: {what} {DEPTH_MAX}"));
    }
    let list: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(body).map_err(|error| format!("cannot parse JSON: {error}"))?;
    let is_list = list.get("kind").is_some_and(|kind| kind.get() == r#""EventList""#);
    let items = list.get("items").filter(|_| is_list);
    items
        .and_then(|items| serde_json::from_str(items.get()).ok())
        .ok_or_else(|| "data not recognized as a k8s audit event".to_owned())
}

/// Returns why the rules do not see an event, or `None` if they see it.
fn unseen(event: &str, limits: Limits) -> Option<String> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(event).unwrap_or_default();
    if !members.contains_key("stageTimestamp") {
        return Some("can't read stageTimestamp".to_owned());
    }
    let size = event.len();
    (size > limits.event_bytes).then(|| format!("event larger than maxEventSize: size={size}"))
}

/// Returns the depth of the deepest value, as fastjson counts: the outermost value has depth 1.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut bytes) = (1, 1, false, json.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if in_string => drop(bytes.next()),
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
