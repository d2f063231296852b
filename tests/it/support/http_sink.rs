//! A fake HTTP/1.1 consumer. The test decides its answers.

use std::collections::VecDeque;
use std::io::{BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use super::http::{Head, Unannounced, read_body, read_head};
use super::server::{Connection, Options, Server, derefs_to_its_server};
use super::stream::Stream;
use super::wait_until;

/// A request that the consumer has read completely.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The request's number, counted from 0 over all connections, in the order in which the
    /// requests were completed.
    pub(crate) number: usize,
    /// The connection that carried the request, counted from 0.
    pub(crate) connection: usize,
    pub(crate) method: String,
    /// The path and the query, as sent.
    pub(crate) target: String,
    pub(crate) head: Head,
    /// The body as sent, which may be compressed. Empty in the records of a forgetful consumer.
    pub(crate) body: Vec<u8>,
    /// When the head was complete (`began`) and when the body was complete (`read`).
    pub(crate) began: Instant,
    pub(crate) read: Instant,
    /// The status and the time of the answer, recorded just before it is written. `None` before
    /// that, for an early answer, and for an answer without a status.
    pub(crate) answered: Option<(u16, Instant)>,
    /// Whether the answer was written before the body was read. No second answer follows.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) is_early: bool,
}

impl Request {
    /// Returns the value of the first header with this name, which must be in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Returns the decompressed body.
    pub(crate) fn decoded(&self) -> Vec<u8> {
        self.decoded_from(self.header("content-encoding"))
    }

    fn decoded_from(&self, coding: Option<&str>) -> Vec<u8> {
        let mut body = Vec::new();
        match coding {
            None | Some("identity") => body.clone_from(&self.body),
            Some("gzip") => {
                let mut gzip = flate2::read::MultiGzDecoder::new(self.body.as_slice());
                gzip.read_to_end(&mut body).expect("gzip");
            }
            Some("zstd") => body = zstd::decode_all(self.body.as_slice()).expect("zstd"),
            Some(other) => panic!("a body in {other}"),
        }
        body
    }

    /// Returns the decompressed body. An object that is compressed is decompressed, too.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn lines(&self) -> Vec<u8> {
        match self.header("content-type") {
            Some("application/gzip") => self.decoded_from(Some("gzip")),
            Some("application/zstd") => self.decoded_from(Some("zstd")),
            _ => self.decoded(),
        }
    }

    /// Returns `true` if the status of the answer is 2xx.
    pub(crate) fn is_accepted(&self) -> bool {
        self.answered.is_some_and(|(status, _)| (200..300).contains(&status))
    }
}

/// How the consumer reacts to one request.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    what: What,
    delay: Duration,
    close: bool,
    /// Bytes that are written before the answer.
    interim: Vec<u8>,
    /// How many bytes are written before the connection is closed.
    cut: Option<usize>,
}

#[derive(Debug, Clone)]
enum What {
    Response { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    Raw(Vec<u8>),
    HangUp,
    Reset,
    Never,
    Interim { bytes: Vec<u8>, pause: Duration, times: u32 },
}

impl Answer {
    /// Answers with this status and an empty body.
    pub(crate) fn status(status: u16) -> Self {
        Self::of(What::Response { status, headers: Vec::new(), body: Vec::new() })
    }

    /// Writes these bytes as the answer. The connection stays open, unless `closing` is also
    /// called.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::of(What::Raw(bytes.into()))
    }

    /// Does not answer: closes the connection after reading the request.
    pub(crate) fn hang_up() -> Self {
        Self::of(What::HangUp)
    }

    /// Does not answer: resets the connection after reading the request.
    pub(crate) fn reset() -> Self {
        Self::of(What::Reset)
    }

    /// Never answers, but keeps the connection open.
    pub(crate) fn never() -> Self {
        Self::of(What::Never)
    }

    /// Writes these bytes `times` times, with a pause after each time, and closes the connection.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn interim(bytes: &[u8], pause: Duration, times: u32) -> Self {
        Self::of(What::Interim { bytes: bytes.to_vec(), pause, times })
    }

    fn of(what: What) -> Self {
        Self { what, delay: Duration::ZERO, close: false, interim: Vec::new(), cut: None }
    }

    /// Returns the status of a response. Returns `None` for all other reactions.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn code(&self) -> Option<u16> {
        match &self.what {
            What::Response { status, .. } => Some(*status),
            What::Raw(bytes) => {
                let head = std::str::from_utf8(bytes).ok()?.strip_prefix("HTTP/1.1 ")?;
                // The relay accepts no incomplete response of another status.
                head.split_once(' ')?.0.parse().ok().filter(|status| *status >= 300)
            }
            What::HangUp | What::Reset | What::Never | What::Interim { .. } => None,
        }
    }

    /// Returns `true` if the answer has a `Retry-After`.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn asks_for_a_pause(&self) -> bool {
        match &self.what {
            What::Response { headers, .. } => headers.iter().any(|(name, _)| name == "Retry-After"),
            What::Raw(bytes) => memchr::memmem::find(bytes, b"Retry-After").is_some(),
            What::HangUp | What::Reset | What::Never | What::Interim { .. } => false,
        }
    }

    /// Returns the time before the answer.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn delay(&self) -> Duration {
        self.delay
    }

    /// Returns `true` if the connection does not end within the answer.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn is_whole(&self) -> bool {
        self.cut.is_none_or(|bytes| bytes == usize::MAX)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        if let What::Response { headers, .. } = &mut self.what {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    pub(crate) fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        if let What::Response { body, .. } = &mut self.what {
            *body = bytes.into();
        }
        self
    }

    /// Waits for this time before the answer.
    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Closes the connection after the answer. A response announces this in its head.
    pub(crate) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Closes the connection after this many bytes, or after the whole answer if it is shorter. The
    /// answer does not announce this.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// Writes these bytes before a response or before raw bytes.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn behind(mut self, interim: &[u8]) -> Self {
        self.interim = interim.to_vec();
        self
    }
}

/// How the consumer reads the body of a request, once it has read the head.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "the simulator uses it")]
pub(crate) enum Reading {
    AtOnce,
    /// The consumer pauses after every `bytes` bytes of the body.
    Slowly {
        bytes: usize,
        pause: Duration,
    },
    /// If at least `missing` bytes of the body have not arrived, the consumer answers first. With
    /// `resets`, it then resets the connection. Otherwise [`Request::is_early`] is `true`.
    Early {
        answer: Answer,
        missing: usize,
        resets: bool,
    },
}

/// The consumer. It `Deref`s to its [`Server`], which has `pause`, `close`, `kill` and `reopen`.
pub(crate) struct HttpSink {
    server: Server,
    requests: Arc<Mutex<Vec<Request>>>,
    front: Arc<OnceLock<Box<Front>>>,
    #[allow(dead_code, reason = "the simulator uses it")]
    doorman: Arc<OnceLock<Box<Doorman>>>,
}

/// Answers in place of the consumer, like a load balancer in front of it. It gets each request and
/// the function that makes the consumer's own answer.
type Front = dyn Fn(&Request, &dyn Fn(&Request) -> Answer) -> Answer + Send + Sync;

/// Decides how a body is read. It gets the head of the request and the number of its connection.
type Doorman = dyn Fn(&Head, usize) -> Reading + Send + Sync;

impl HttpSink {
    /// Starts a consumer of plain HTTP. It calls `answer` from many threads, once for each request.
    pub(crate) fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::with(Options::default(), answer)
    }

    /// Starts a consumer that responds to every request with 200.
    pub(crate) fn accepting() -> Self {
        Self::start(|_| Answer::status(200))
    }

    /// Returns the config of an output with this name that sends to this consumer. `more` adds
    /// keys.
    pub(crate) fn output(&self, name: &str, more: &str) -> String {
        let url = format!("http://{}/", self.address());
        format!("[[output]]\nname = \"{name}\"\ntype = \"http\"\nurls = [\"{url}\"]\n{more}\n")
    }

    /// Starts a consumer that gives these answers, one for each request, in the order in which the
    /// requests are completed. It panics if it gets more requests.
    pub(crate) fn script(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = Mutex::new(answers.into_iter().collect::<VecDeque<_>>());
        Self::start(move |request| {
            let next = answers.lock().expect("not poisoned").pop_front();
            next.unwrap_or_else(|| panic!("request {} is not in the script", request.number))
        })
    }

    pub(crate) fn with(
        options: Options,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::that(Bodies::Kept, options, answer)
    }

    /// Starts a consumer that keeps no bodies, for a test whose bodies do not all fit into memory.
    /// The test sees each body in `answer`.
    pub(crate) fn forgetful(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::forgetful_with(Options::default(), answer)
    }

    /// Like `forgetful_with`, but `answer` can keep state: it is called for one request at a time.
    pub(crate) fn remembering(
        options: Options,
        answer: impl FnMut(&Request) -> Answer + Send + 'static,
    ) -> Self {
        let answer = Mutex::new(answer);
        Self::forgetful_with(options, move |request| {
            let mut answer = answer.lock().expect("not poisoned");
            answer(request)
        })
    }

    pub(crate) fn forgetful_with(
        options: Options,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::that(Bodies::Forgotten, options, answer)
    }

    fn that(
        bodies: Bodies,
        options: Options,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let front = Arc::<OnceLock<Box<Front>>>::default();
        let doorman = Arc::<OnceLock<Box<Doorman>>>::default();
        let (for_handler, in_front) = (Arc::clone(&requests), Arc::clone(&front));
        let at_the_door = Arc::clone(&doorman);
        let server = Server::start(options, move |stream, connection| {
            let answer = |request: &Request| match in_front.get() {
                Some(front) => front(request, &answer),
                None => answer(request),
            };
            let reading = |head: &Head| match at_the_door.get() {
                Some(doorman) => doorman(head, connection.number),
                None => Reading::AtOnce,
            };
            serve(stream, connection, &for_handler, bodies, &reading, &answer);
        });
        Self { server, requests, front, doorman }
    }

    /// From now on, `doorman` decides how the body of each request is read. Can be called only
    /// once.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub(crate) fn stand_at_the_door(
        &self,
        doorman: impl Fn(&Head, usize) -> Reading + Send + Sync + 'static,
    ) {
        assert!(self.doorman.set(Box::new(doorman)).is_ok(), "somebody stands there already");
    }

    /// From now on, `front` answers each request. Its second argument makes the consumer's own
    /// answer. Can be called only once.
    pub(crate) fn stand_in_front(
        &self,
        front: impl Fn(&Request, &dyn Fn(&Request) -> Answer) -> Answer + Send + Sync + 'static,
    ) {
        assert!(self.front.set(Box::new(front)).is_ok(), "something stands in front already");
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().expect("no panic while the requests are held")
    }

    /// Returns every request so far, in the order in which they were completed.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.lock().clone()
    }

    /// Returns how many requests have been completed so far.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Returns the decompressed bodies of the accepted requests, in the order of their completion.
    pub(crate) fn accepted(&self) -> Vec<Vec<u8>> {
        self.lock().iter().filter(|request| request.is_accepted()).map(Request::decoded).collect()
    }

    /// Waits until at least `count` requests are complete.
    pub(crate) fn wait_for_count(&self, count: usize, limit: Duration) {
        wait_until(&format!("{count} requests"), limit, || self.count() >= count);
    }
}

derefs_to_its_server!(HttpSink);

/// A consumer with a store that remains when the relay's process ends.
pub(crate) struct Keeper<Store> {
    pub(crate) sink: HttpSink,
    pub(crate) kept: Arc<Mutex<Store>>,
}

impl<Store> Keeper<Store> {
    pub(crate) fn address(&self) -> SocketAddr {
        self.sink.address()
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.kept.lock().expect("not poisoned")
    }
}

/// Whether the consumer's records keep the bodies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bodies {
    Kept,
    Forgotten,
}

/// Serves one connection until either side closes it.
fn serve(
    stream: Stream,
    connection: &Connection,
    requests: &Mutex<Vec<Request>>,
    bodies: Bodies,
    reading: &dyn Fn(&Head) -> Reading,
    answer: &dyn Fn(&Request) -> Answer,
) {
    let mut reader = BufReader::with_capacity(64 * 1024, stream);
    // A client that resets or closes the connection in the middle of a request gets no answer.
    while connection.may_go_on() {
        let Ok(Some(head)) = read_head(&mut reader) else { return };
        let began = Instant::now();
        if head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
            && reader.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_err()
        {
            return;
        }
        let reading = reading(&head);
        let Some(is_early) = answers_first(&mut reader, connection, &head, &reading) else {
            return;
        };
        let body = match reading {
            Reading::Slowly { bytes, pause } => {
                read_slowly(&mut reader, connection, &head, bytes, pause)
            }
            Reading::AtOnce | Reading::Early { .. } => {
                read_body(&mut reader, &head, Unannounced::Empty).ok()
            }
        };
        let Some(body) = body else { return };
        if !connection.may_go_on() {
            return;
        }
        let asked_to_close = head.header("connection").is_some_and(|value| value == "close");
        let mut line = head.first_line.split(' ').map(str::to_owned);
        let mut request = {
            let mut requests = requests.lock().expect("not poisoned");
            let number = requests.len();
            let mut request = Request {
                number,
                connection: connection.number,
                method: line.next().unwrap_or_default(),
                target: line.next().unwrap_or_default(),
                head,
                body,
                began,
                read: Instant::now(),
                answered: None,
                is_early,
            };
            let forgotten =
                (bodies == Bodies::Forgotten).then(|| std::mem::take(&mut request.body));
            requests.push(request.clone());
            request.body = forgotten.unwrap_or(request.body);
            request
        };
        let answer = answer(&request);
        request.body = Vec::new();
        let last = answer.close || answer.cut.is_some() || asked_to_close;
        if is_early {
            continue;
        }
        // The answer is recorded before it is written, because a test that has read the answer may
        // look for the record at once.
        let record = |status: Option<u16>| {
            let mut requests = requests.lock().expect("not poisoned");
            requests[request.number].answered = status.map(|status| (status, Instant::now()));
        };
        if !connection.rest(answer.delay)
            || write(reader.get_mut(), connection, answer, record).is_none()
            || last
        {
            return;
        }
    }
}

/// Answers before the body is read, if `reading` says so. Returns whether it has answered, or
/// `None` if the connection has ended.
fn answers_first(
    reader: &mut BufReader<Stream>,
    connection: &Connection,
    head: &Head,
    reading: &Reading,
) -> Option<bool> {
    let Reading::Early { answer, missing, resets } = reading else { return Some(false) };
    if announced(head) < reader.buffer().len() + missing {
        return Some(false);
    }
    write(reader.get_mut(), connection, answer.clone(), |_| {})?;
    if *resets {
        write(reader.get_mut(), connection, Answer::reset(), |_| {})?;
    }
    Some(true)
}

/// Reads a body in pieces of `bytes` bytes, with pauses. Returns `None` if the connection ends.
fn read_slowly(
    reader: &mut BufReader<Stream>,
    connection: &Connection,
    head: &Head,
    bytes: usize,
    pause: Duration,
) -> Option<Vec<u8>> {
    let mut body = vec![0; announced(head)];
    for piece in body.chunks_mut(bytes) {
        reader.read_exact(piece).ok()?;
        connection.rest(pause).then_some(())?;
    }
    Some(body)
}

/// Returns the length of the body, as the head announces it.
fn announced(head: &Head) -> usize {
    assert_eq!(head.header("transfer-encoding"), None, "a body of unknown length");
    head.header("content-length").map_or(0, |length| length.parse().expect("a length"))
}

/// Calls `record` with the status and writes the answer. `None`: the connection has ended.
fn write(
    stream: &mut Stream,
    connection: &Connection,
    answer: Answer,
    record: impl FnOnce(Option<u16>),
) -> Option<()> {
    let (status, bytes) = match answer.what {
        What::Response { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} As-Told\r\n");
            for (name, value) in &headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            if answer.close {
                head.push_str("Connection: close\r\n");
            }
            if status != 204 && status != 304 {
                head.push_str(&format!("Content-Length: {}\r\n", body.len()));
            }
            head.push_str("\r\n");
            (Some(status), [head.into_bytes(), body].concat())
        }
        What::Raw(bytes) => {
            let status = bytes.get(9..12).and_then(|status| std::str::from_utf8(status).ok());
            (status.and_then(|status| status.parse().ok()), bytes)
        }
        What::HangUp => return None,
        What::Reset => {
            let socket = socket2::SockRef::from(stream.socket());
            socket.set_linger(Some(Duration::ZERO)).expect("a socket");
            return None;
        }
        What::Interim { bytes, pause, times } => {
            for _ in 0..times {
                stream.write_all(&bytes).and_then(|()| stream.flush()).ok()?;
                if !connection.rest(pause) {
                    break;
                }
            }
            return None;
        }
        What::Never => {
            while connection.rest(Duration::from_secs(3600)) {}
            return None;
        }
    };
    record(status);
    let bytes = [answer.interim, bytes].concat();
    let end = answer.cut.unwrap_or(bytes.len()).min(bytes.len());
    stream.write_all(&bytes[..end]).and_then(|()| stream.flush()).ok()
}
